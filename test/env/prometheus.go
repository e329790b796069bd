package env

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const prometheusStartTimeout = 10 * time.Minute

// PrometheusBinaries are paths.
type PrometheusBinaries struct {
	Prometheus string
	Promtool   string
}

// EnsurePrometheus finds prometheus and promtool in PATH, or unpacks the distribution's
// package (Debian and the like) into the cache directory, see EnsureBinaries.
func EnsurePrometheus(ctx context.Context, progress io.Writer) (PrometheusBinaries, error) {
	prometheus, err := exec.LookPath("prometheus")
	promtool, err2 := exec.LookPath("promtool")
	if err == nil && err2 == nil {
		return PrometheusBinaries{Prometheus: prometheus, Promtool: promtool}, nil
	}
	b, err := newBuilder(ctx, progress)
	if err != nil {
		return PrometheusBinaries{}, err
	}
	defer b.unlock()
	root := filepath.Join(b.cache, "prometheus-package")
	bin := PrometheusBinaries{Prometheus: filepath.Join(root, "usr", "bin", "prometheus"), Promtool: filepath.Join(root, "usr", "bin", "promtool")}
	if exists(root) {
		return bin, nil
	}
	return bin, b.report(ctx, "unpacking the distribution's package prometheus", func() error {
		return b.unpack(ctx, root, false, nil, "prometheus")
	})
}

// PrometheusOptions says how Prometheus is started.
type PrometheusOptions struct {
	// Binary is PrometheusBinaries.Prometheus.
	Binary string
	// MetricsURL is what it scrapes every second, as job bucketwarden.
	MetricsURL string
	// Rules are the content of a file of rules, evaluated every second.
	Rules []byte
}

// Prometheus is a running Prometheus.
type Prometheus struct {
	*Process
	// URL is without a slash at its end.
	URL string
	dir string
}

// StartPrometheus starts Prometheus with an empty database.
func StartPrometheus(ctx context.Context, options PrometheusOptions) (_ *Prometheus, err error) {
	target, err := url.Parse(options.MetricsURL)
	if err != nil {
		return nil, fmt.Errorf("configuring Prometheus: %w", err)
	}
	dir, err := os.MkdirTemp("", "bucketwarden-prometheus-")
	if err != nil {
		return nil, fmt.Errorf("making the directory of Prometheus: %w", err)
	}
	p := &Prometheus{dir: dir}
	defer func() {
		if err != nil {
			p.Stop()
		}
	}()
	config, err := json.Marshal(map[string]any{ // YAML reads JSON
		"global":     map[string]any{"scrape_interval": "1s", "evaluation_interval": "1s"},
		"rule_files": []string{"rules.yaml"},
		"scrape_configs": []any{map[string]any{
			"job_name": "bucketwarden", "scheme": target.Scheme, "metrics_path": target.Path,
			"static_configs": []any{map[string]any{"targets": []string{target.Host}}},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("configuring Prometheus: %w", err)
	}
	for name, content := range map[string][]byte{"prometheus.yaml": config, "rules.yaml": options.Rules} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, fmt.Errorf("configuring Prometheus: %w", err)
		}
	}
	// Prometheus does not tell which port it was given, so it gets a free one; another
	// process may take it first.
	const attempts = 5
	for range attempts {
		address, err := freeAddress(ctx)
		if err != nil {
			return nil, err
		}
		// A path that nobody else has tells this Prometheus from another one.
		p.URL = "http://" + address + "/" + rand.Text()
		if err = p.start(ctx, options.Binary, address); err == nil {
			return p, nil
		}
		if !errors.Is(err, errEnded) {
			return nil, err
		}
	}
	return nil, errors.New("starting Prometheus: it ended at each attempt\n" + p.logTail())
}

func (p *Prometheus) start(ctx context.Context, binary, address string) error {
	process, err := startProcess("Prometheus", exec.Command(binary,
		"--config.file="+filepath.Join(p.dir, "prometheus.yaml"), "--storage.tsdb.path="+filepath.Join(p.dir, "data"),
		"--web.listen-address="+address, "--web.external-url="+p.URL), nil)
	if err != nil {
		return err
	}
	p.Process = process
	err = process.waitStarted(ctx, prometheusStartTimeout, func(ctx context.Context) error {
		body, err := get(ctx, p.URL+"/-/ready")
		if err != nil {
			return err
		}
		return body.Close()
	})
	if err != nil {
		process.Kill()
	}
	return err
}

// Stop ends Prometheus and removes its data.
func (p *Prometheus) Stop() {
	if p.Process != nil {
		p.Kill()
	}
	_ = os.RemoveAll(p.dir)
}

// Get decodes the data of an answer of the HTTP API into data; path begins with /api/.
func (p *Prometheus) Get(ctx context.Context, path string, data any) error {
	body, err := get(ctx, p.URL+path)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	answer := struct {
		Data any `json:"data"`
	}{data}
	if err := json.NewDecoder(body).Decode(&answer); err != nil {
		return fmt.Errorf("decoding the answer of Prometheus to %s: %w", path, err)
	}
	return nil
}
