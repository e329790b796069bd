package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bucketwarden/test/dashboard"
	"bucketwarden/test/env"
)

// pictureFile names the file that make dashboard-picture wants the picture in. The scene then lasts longer, for lines that
// can be seen.
const pictureFile = "BUCKETWARDEN_DASHBOARD_PICTURE"

// The dashboard with real data: a Prometheus scrapes a daemon with a bucket for each fate, and every panel shows what
// happened to it.
func TestMonitoringDashboard(t *testing.T) {
	t.Parallel()
	picture := os.Getenv(pictureFile)
	pause := func() {}
	if picture != "" {
		pause = func() { time.Sleep(20 * time.Second) }
	}
	scene := startScene(t)
	pause()
	scene.act(t, pause)
	pause()

	content, err := os.ReadFile(filepath.Join(deployDir, "chart", "files", "dashboard.json"))
	must(t, err)
	d, err := dashboard.Load(content)
	must(t, err)
	var views []dashboard.View
	var shown dashboard.Range
	// Scrapes and rules are a second behind.
	eventually(t, "the dashboard shows what happened", func(ctx context.Context) error {
		shown = dashboard.Range{From: scene.begin, To: time.Now().Add(-time.Second), Quick: quickInterval.Seconds()}
		if views, err = d.Query(ctx, scene.prometheus.Get, shown); err != nil {
			return err
		}
		return scene.check(views)
	})
	file := filepath.Join(t.TempDir(), "dashboard.html")
	must(t, os.WriteFile(file, []byte(dashboard.Page(d.Title, views, shown)), 0o600))

	browser, err := env.EnsureChromium(t.Context(), os.Stderr)
	if errors.Is(err, env.ErrUnavailable) && picture == "" {
		t.Skipf("every panel has the right data, but nothing draws them here: %v", err)
	}
	must(t, err)
	text, err := browser.Text(t.Context(), file)
	must(t, err)
	scene.checkText(t, text, views)
	png := filepath.Join(t.TempDir(), "dashboard.png")
	// What the daemon itself does is not for a first look.
	daemon := slices.IndexFunc(views, func(v dashboard.View) bool { return v.Title == "The daemon" })
	must(t, browser.Picture(t.Context(), file, png, dashboard.Width, dashboard.Height(views[:daemon])))
	drawn, err := os.ReadFile(png)
	must(t, err)
	const blank = 30 << 10
	if !bytes.HasPrefix(drawn, []byte("\x89PNG")) || len(drawn) < blank {
		t.Errorf("the picture has %d bytes", len(drawn))
	}
	if picture != "" {
		must(t, os.WriteFile(picture, drawn, 0o644))
	}
}

// scene is a daemon with a bucket for each fate.
type scene struct {
	daemon     *daemon
	azureSide  *daemon
	proxy      *env.Proxy
	prometheus *env.Prometheus
	begin      time.Time
	// names of buckets
	fine, repaired, weaker, open, azure string
}

func startScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{fine: newName("seed-fine"), repaired: newName("seed-repaired"), weaker: newName("seed-weaker"),
		open: newName("seed-unlocked"), azure: newName("seed-azure") + "-x"}
	directory := t.TempDir()
	crt, key := selfSigned(t, 1)
	must(t, os.WriteFile(filepath.Join(directory, "tls.crt"), crt, 0o600))
	must(t, os.WriteFile(filepath.Join(directory, "tls.key"), key, 0o600))
	kind := newName("t")
	s.daemon = startDaemonFor(t, &daemon{kind: newName("t"), env: []string{"SSL_CERT_FILE=" + azure.CAFile}, args: []string{
		"--type=" + kind + "=azure", "--azure-cloud-config=" + azure.CloudConfig, "--webhook-address=127.0.0.1:0", "--webhook-cert-dir=" + directory}}, "s3")
	s.azureSide = &daemon{Daemon: s.daemon.Daemon, kind: kind, azure: azure}
	s.proxy = startProxy(t, minio)

	bin := prometheusBinaries(t)
	var err error
	s.prometheus, err = env.StartPrometheus(t.Context(), env.PrometheusOptions{Binary: bin.Prometheus, MetricsURL: s.daemon.MetricsURL, Rules: quickRules(t)})
	must(t, err)
	t.Cleanup(s.prometheus.Stop)

	locked := providerConfig(s.daemon.kind, immutability("compliance", "96h"))
	for _, name := range []string{s.fine, s.repaired} {
		store.createBucket(t, bucketObject(name, s.daemon.kind, locked))
	}
	store.createBucket(t, bucketObject(s.open, s.daemon.kind, nil))
	writeSecret(t, secretName(buckets, s.weaker), minio.SecretData(s.proxy.URL))
	create(t, buckets, bucketObject(s.weaker, s.daemon.kind, locked))
	s.azureSide.createAzureBucket(t, s.azure, days(4, true))
	for _, name := range []string{s.fine, s.repaired, s.open, s.weaker} {
		waitHealthy(t, buckets, name)
	}
	// A cluster with a backup, in the bucket that will be repaired.
	live := &retentionScene{store: store, daemon: s.daemon, proxy: s.proxy, bucket: s.repaired}
	live.entry, _ = newShoot(t)
	live.putChain(t, live.entry, 0, "", noRetention)
	live.addEntry(t, live.entry)
	// What is proven begins when all is well.
	eventually(t, "Prometheus has seen all buckets", func(ctx context.Context) error {
		var answer struct{ Result []json.RawMessage }
		if err := s.prometheus.Get(ctx, "/api/v1/query?query=bucketwarden:backupbucket_proven", &answer); err != nil {
			return err
		}
		if len(answer.Result) != 5 {
			return fmt.Errorf("%d of 5", len(answer.Result))
		}
		return nil
	})
	s.begin = time.Now()
	return s
}

// act is what happens to the buckets.
func (s *scene) act(t *testing.T, pause func()) {
	t.Helper()
	// Backups are deleted with their cluster: what is retained stays for now, the rest goes.
	for _, bucket := range []string{s.fine, s.open, s.open} {
		pause()
		entry, _ := newShoot(t)
		store.createEntry(t, entryObject(entry, s.daemon.kind, bucket))
		waitHealthy(t, entries, entry)
		for i := range 5 {
			store.putObject(t, bucket, fmt.Sprintf("%s/etcd-main/v2/Full-00000000-0000%d-1762500000.gz", entry, i), time.Time{})
		}
		remove(t, entries, entry)
		waitGone(t, entries, entry)
	}
	pause()
	// Somebody tampers with two buckets; of one, the daemon may not restore the policy.
	store.putRetention(t, s.repaired, "", 0)
	store.awaitRetention(t, s.repaired, "COMPLIANCE 4")
	pause()
	s.proxy.SetFault(func(r env.Request) *env.Fault {
		if r.Operation != "PutObjectLockConfiguration" {
			return nil
		}
		return &env.Fault{Status: http.StatusForbidden, Code: "AccessDenied"}
	})
	store.putRetention(t, s.weaker, "", 0)
	pause()
	// Somebody asks for less, and is refused; at admission, and where that is bypassed.
	fine := get(t, buckets, s.fine).Object
	s.review(t, "UPDATE", fine, "24h", false)
	s.review(t, "CREATE", fine, "96h", true)
	reconcile(t, buckets, s.repaired, setImmutability(immutability("compliance", "24h")))
	awaitEvent(t, "WeakeningRefused", s.repaired)
	reconcile(t, buckets, s.repaired, setImmutability(immutability("compliance", "96h")))
	waitHealthy(t, buckets, s.repaired)
}

// review asks the webhook about a BackupBucket with another retention, as an API server would.
func (s *scene) review(t *testing.T, operation string, old map[string]any, period string, allowed bool) {
	t.Helper()
	content, err := json.Marshal(old)
	must(t, err)
	changed := strings.ReplaceAll(string(content), `"retentionPeriod":"96h"`, fmt.Sprintf(`"retentionPeriod":%q`, period))
	before := content
	if operation == "CREATE" {
		before = []byte("null")
	}
	review := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":%q,"name":%q,
		"kind":{"group":"extensions.gardener.cloud","version":"v1alpha1","kind":"BackupBucket"},
		"resource":{"group":"extensions.gardener.cloud","version":"v1alpha1","resource":"backupbuckets"},
		"userInfo":{"username":"somebody"},"object":%s,"oldObject":%s}}`, operation, s.fine, changed, before)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+s.daemon.WebhookAddress+"/validate", strings.NewReader(review))
	must(t, err)
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	must(t, err)
	answer, err := io.ReadAll(response.Body)
	must(t, errors.Join(err, response.Body.Close()))
	if response.StatusCode != http.StatusOK || !strings.Contains(string(answer), fmt.Sprintf(`"allowed":%v`, allowed)) {
		t.Fatalf("the webhook answers %d %s", response.StatusCode, answer)
	}
}

// table is what the table says of each bucket, by column.
func (s *scene) table() map[string]map[string]string {
	return map[string]map[string]string{
		s.fine:     {"State": "as expected", "Locked": "Yes", "Lock expected": "Yes", "Locked all the time": "Yes", "Retention": "4 days", "Drift": "0", "Tombstones": "1"},
		s.repaired: {"State": "as expected", "Locked": "Yes", "Lock expected": "Yes", "Locked all the time": "No", "Retention": "4 days", "Retention expected": "4 days"},
		s.weaker:   {"State": "weaker", "Locked": "No", "Lock expected": "Yes", "Locked all the time": "No", "Retention": "0 s", "Retention expected": "4 days"},
		s.open:     {"State": "as expected", "Locked": "No", "Lock expected": "No", "Locked all the time": "No", "Retention": "0 s", "Tombstones": "0"},
		s.azure:    {"State": "as expected", "Locked": "Yes", "Lock expected": "Yes", "Locked all the time": "Yes", "Retention": "4 days", "Extensions left": "5"},
	}
}

// check says what a panel does not show that it should.
func (s *scene) check(views []dashboard.View) error {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	stats := map[string]string{"Buckets": "5", "Locked": "3", "Locked all the time": "2", "Weaker than expected": "1", "State not known": "0",
		"Working": "1", "Failing objects": "1", "Panics": "0"}
	for _, v := range views {
		if v.Type == "row" {
			continue
		}
		for i, data := range v.Data {
			if len(data) == 0 {
				wrong("panel %q: no data of query %s", v.Title, v.Targets[i].RefID)
			}
		}
		switch v.Type {
		case "stat":
			if want, ok := stats[v.Title]; ok && v.Stats()[0].Text != want {
				wrong("panel %q shows %q, want %s", v.Title, v.Stats()[0].Text, want)
			}
		case "table":
			header, rows := v.Table()
			if len(rows) != 5 {
				wrong("the table has %d rows", len(rows))
			}
			for bucket, want := range s.table() {
				row := slices.IndexFunc(rows, func(row []dashboard.Cell) bool { return row[0].Text == bucket })
				if row < 0 {
					wrong("the table has no bucket %s", bucket)
					continue
				}
				for column, text := range want {
					if i := slices.Index(header, column); i < 0 || rows[row][i].Text != text {
						wrong("bucket %s, column %s: want %q in %v %v", bucket, column, text, header, rows[row])
					}
				}
			}
		}
		switch v.Title {
		case "Firing alerts":
			if !slices.ContainsFunc(v.Data[0], func(line dashboard.Series) bool {
				return line.Labels["alertname"] == "BucketwardenBucketNotLocked" && line.Labels["bucket"] == s.weaker
			}) {
				wrong("no alert of %s", s.weaker)
			}
		case "Drift":
			if v.Stats()[0].Color != "red" {
				wrong("drift is %v", v.Stats())
			}
		}
	}
	return errors.Join(problems...)
}

// checkText compares what the browser has read with what Prometheus says.
func (s *scene) checkText(t *testing.T, text string, views []dashboard.View) {
	t.Helper()
	for _, v := range views {
		_, section, ok := strings.Cut(text, fmt.Sprintf(`id="panel-%d"`, v.ID))
		section, _, _ = strings.Cut(section, "</section>")
		var want []string
		switch v.Type {
		case "stat":
			for _, cell := range v.Stats() {
				want = append(want, ">"+cell.Text+"<")
			}
		case "table":
			_, rows := v.Table()
			for _, row := range rows {
				for _, cell := range row {
					want = append(want, ">"+cell.Text+"</td>")
				}
			}
		case "graph":
			for _, data := range v.Data {
				for _, line := range data {
					want = append(want, "<path ", line.Legend)
				}
			}
		}
		for _, part := range want {
			if !ok || !strings.Contains(section, part) {
				t.Errorf("panel %q is drawn without %q", v.Title, part)
			}
		}
	}
}
