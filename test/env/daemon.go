package env

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const daemonStartTimeout = 10 * time.Minute

// DaemonOptions says how bucketwarden is started.
type DaemonOptions struct {
	// Binary is Binaries.Daemon.
	Binary     string
	Kubeconfig string
	// Args are flags; they win over those that StartDaemon sets itself, which switch
	// the webhook off.
	Args []string
	// Env is added to the environment of this process, as NAME=value.
	Env []string
	// Root, if not empty, makes the daemon run as in its container image: with this
	// root directory, in which Binary and Kubeconfig are, as an unprivileged user, and
	// with no environment but Env.
	Root string
	// OnWebhook is called with host:port of the webhook before the daemon is ready: it
	// has no certificate before a configuration names it.
	OnWebhook func(ctx context.Context, address string) error
	// LogTo gets a copy of the log; nil means none.
	LogTo io.Writer
}

// Daemon is a running bucketwarden.
type Daemon struct {
	*Process
	// MetricsURL is the URL of /metrics, HealthURL that under which /livez and
	// /readyz are. WebhookAddress is host:port of the webhook, empty if it is off.
	MetricsURL     string
	HealthURL      string
	WebhookAddress string
}

// ErrNoSeries is what Daemon.Value returns when no series matches.
var ErrNoSeries = errors.New("no such series")

// The daemon logs the ports it was given, as "Serving metrics" address="host:port", or the
// same in JSON.
var (
	metricsAddress = regexp.MustCompile(`"Serving metrics".*address"?[=:]"([^"]+)"`)
	healthAddress  = regexp.MustCompile(`"Serving health".*address"?[=:]"([^"]+)"`)
	webhookAddress = regexp.MustCompile(`"Serving webhook".*address"?[=:]"([^"]+)"`)
)

// StartDaemon starts bucketwarden on free ports and waits until it is ready.
func StartDaemon(ctx context.Context, options DaemonOptions) (*Daemon, error) {
	args := append([]string{
		"--kubeconfig=" + options.Kubeconfig,
		"--metrics-address=127.0.0.1:0",
		"--health-address=127.0.0.1:0",
		"--webhook-address=",
	}, options.Args...)
	cmd := exec.Command(options.Binary, args...)
	cmd.Env = append(os.Environ(), options.Env...)
	if options.Root != "" {
		confine(cmd, options.Root)
		cmd.Env = append([]string{}, options.Env...)
	}
	process, err := startProcess("bucketwarden", cmd, options.LogTo)
	if err != nil {
		return nil, err
	}
	d := &Daemon{Process: process}
	err = process.waitStarted(ctx, daemonStartTimeout, func(ctx context.Context) error {
		if d.HealthURL == "" {
			log := d.Log()
			metrics, health := metricsAddress.FindStringSubmatch(log), healthAddress.FindStringSubmatch(log)
			if metrics == nil || health == nil {
				return errors.New("no address of metrics or health in the log")
			}
			d.MetricsURL, d.HealthURL = "http://"+metrics[1]+"/metrics", "http://"+health[1]
		}
		if webhook := webhookAddress.FindStringSubmatch(d.Log()); webhook != nil && d.WebhookAddress == "" {
			if options.OnWebhook != nil {
				if err := options.OnWebhook(ctx, webhook[1]); err != nil {
					return err
				}
			}
			d.WebhookAddress = webhook[1]
		}
		body, err := get(ctx, d.HealthURL+"/readyz")
		if err != nil {
			return err
		}
		return body.Close()
	})
	if err != nil {
		process.Kill()
		return nil, err
	}
	return d, nil
}

// confine makes cmd run as the user of the image, with its own root directory.
func confine(cmd *exec.Cmd, root string) {
	const user = 65532
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user}
		return
	}
	// Other users may change the root directory only in a user namespace.
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getgid(), Size: 1}}
}

// Metrics returns what /metrics answers, by name.
func (d *Daemon) Metrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	return d.metricsOf(ctx, "")
}

// metricsOf is Metrics of those whose names begin so. Parsing all of them is most of what a poll costs.
func (d *Daemon) metricsOf(ctx context.Context, prefix string) (map[string]*dto.MetricFamily, error) {
	body, err := get(ctx, d.MetricsURL)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	text, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("reading the metrics: %w", err)
	}
	var wanted bytes.Buffer
	for line := range bytes.Lines(text) {
		name := bytes.TrimPrefix(bytes.TrimPrefix(line, []byte("# TYPE ")), []byte("# HELP "))
		if bytes.HasPrefix(name, []byte(prefix)) {
			wanted.Write(line)
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(&wanted)
	if err != nil {
		return nil, fmt.Errorf("parsing the metrics: %w", err)
	}
	return families, nil
}

// Value returns the sum of the series of a metric that have all the labels,
// each given as name=value; ErrNoSeries if there are none. Histograms and
// summaries count by their number of observations.
func (d *Daemon) Value(ctx context.Context, name string, labels ...string) (float64, error) {
	families, err := d.metricsOf(ctx, name)
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	for _, m := range families[name].GetMetric() {
		if !matches(m, labels) {
			continue
		}
		found = true
		// Every getter of a nil message returns zero, and only one is not nil.
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue() +
			float64(m.GetHistogram().GetSampleCount()) + float64(m.GetSummary().GetSampleCount())
	}
	if !found {
		return 0, fmt.Errorf("%s{%s}: %w", name, strings.Join(labels, ","), ErrNoSeries)
	}
	return sum, nil
}

// matches reports whether the series has all the labels.
func matches(m *dto.Metric, labels []string) bool {
	have := map[string]bool{}
	for _, label := range m.GetLabel() {
		have[label.GetName()+"="+label.GetValue()] = true
	}
	for _, label := range labels {
		if !have[label] {
			return false
		}
	}
	return true
}

// get returns the body of a successful answer.
func get(ctx context.Context, url string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("getting %s: %w", url, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("getting %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		_ = response.Body.Close()
		return nil, fmt.Errorf("getting %s: %s: %s", url, response.Status, text)
	}
	return response.Body, nil
}
