// Package e2e drives the built bucketwarden binary from outside, against a real
// kube-apiserver, a real MinIO, a real Ceph where it can be had, and an Azure of real parts, as gardenlet would.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bucketwarden/test/env"
)

// timeout is for everything awaited. Nothing is expected to take this long; the
// machine may be slow, and a condition that never holds has to end some time.
const timeout = 10 * time.Minute

const gardenNamespace = "garden"

// What all tests share.
var (
	kube  *env.Kube
	minio *env.MinIO
	// azure is not for tests that move its clock.
	azure *env.Azure
	// store is minio, of which most tests use nothing else.
	store    *s3Store
	binaries env.Binaries
)

func TestMain(m *testing.M) {
	// Tests wait far more than they work.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	ctx := context.Background()
	var err error
	if binaries, err = env.EnsureBinaries(ctx, os.Stderr, "-race"); err != nil {
		return 1, err
	}
	if kube, err = env.StartKube(ctx, binaries.Testkube); err != nil {
		return 1, err
	}
	defer kube.Stop()
	if minio, err = env.StartMinIO(ctx, env.MinIOOptions{Binary: binaries.MinIO}); err != nil {
		return 1, err
	}
	defer minio.Stop()
	store = newS3Store("minio", &minio.S3Server)
	defer stopCeph()
	if azure, err = env.StartAzure(ctx, env.AzureOptions{Azurite: binaries.Azurite}); err != nil {
		return 1, err
	}
	defer azure.Stop()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: gardenNamespace}}
	if _, err := kube.Client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return 1, fmt.Errorf("creating namespace %s: %w", gardenNamespace, err)
	}
	return m.Run(), nil
}

// tlsMinIO is a MinIO that serves HTTPS, for the tests that need one.
func tlsMinIO(t *testing.T) *env.MinIO { return startMinIO(t, env.MinIOOptions{TLS: true}) }

// startAzure starts an Azure for one test that moves its clock.
func startAzure(t *testing.T) *env.Azure {
	t.Helper()
	a, err := env.StartAzure(t.Context(), env.AzureOptions{Azurite: binaries.Azurite})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	return a
}

// startMinIO starts a MinIO for one test.
func startMinIO(t *testing.T, options env.MinIOOptions) *env.MinIO {
	t.Helper()
	options.Binary = binaries.MinIO
	m, err := env.StartMinIO(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Stop)
	return m
}

func startProxy(t *testing.T, m *env.MinIO) *env.Proxy {
	t.Helper()
	proxy, err := env.StartProxy(&m.S3Server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	return proxy
}

var nameCounter atomic.Int64

// newName returns a name that nothing else in this run has.
func newName(prefix string) string { return fmt.Sprintf("%s-%d", prefix, nameCounter.Add(1)) }

// daemon is a bucketwarden that serves a spec.type of its own.
type daemon struct {
	*env.Daemon
	kind string
	args []string
	env  []string
	// azure is what it serves; nil on S3.
	azure *env.Azure

	mu sync.Mutex
	// logs are those of the daemons that ended before a restart.
	logs []string
}

// startDaemon starts a daemon for one test. When the test ends it has to stop
// gracefully, without a data race or a panic in its log.
func startDaemon(t *testing.T, args ...string) *daemon {
	t.Helper()
	return startDaemonFor(t, &daemon{kind: newName("t"), args: args}, "s3")
}

// startAzureDaemon is startDaemon for a daemon that serves azure.
func startAzureDaemon(t *testing.T, args ...string) *daemon {
	t.Helper()
	return startDaemonOn(t, azure, args...)
}

// startDaemonOn is startDaemon for a daemon that serves an Azure.
func startDaemonOn(t *testing.T, a *env.Azure, args ...string) *daemon {
	t.Helper()
	return startDaemonFor(t, &daemon{
		kind: newName("t"), azure: a, env: []string{"SSL_CERT_FILE=" + a.CAFile},
		args: append([]string{"--azure-cloud-config=" + a.CloudConfig}, args...),
	}, "azure")
}

func startDaemonFor(t *testing.T, d *daemon, store string) *daemon {
	t.Helper()
	d.args = append([]string{"--type=" + d.kind + "=" + store, "--verify-interval=1s"}, d.args...)
	d.env = append(d.env, "KUBE_CACHE_MUTATION_DETECTOR=true")
	d.start(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, errors.New("the daemon does not stop"))
		defer cancel()
		if err := d.Terminate(ctx); err != nil {
			t.Errorf("the daemon did not stop gracefully: %v", err)
		}
		log := d.allLogs()
		for _, bad := range []string{"WARNING: DATA RACE", "Reconcile panicked", "panic:"} {
			if strings.Contains(log, bad) {
				t.Errorf("the daemon's log has %q", bad)
			}
		}
		if t.Failed() {
			const limit = 64 << 10
			t.Logf("log of the daemon (at most its last %d bytes):\n%s", limit, log[max(0, len(log)-limit):])
		}
	})
	return d
}

// start starts the daemon, again after it has ended.
func (d *daemon) start(t *testing.T) {
	t.Helper()
	if d.Daemon != nil {
		d.mu.Lock()
		d.logs = append(d.logs, d.Log())
		d.mu.Unlock()
	}
	started, err := env.StartDaemon(t.Context(), env.DaemonOptions{
		Binary: binaries.Daemon, Kubeconfig: kube.Kubeconfig, Args: d.args, Env: d.env,
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Daemon = started
}

func (d *daemon) allLogs() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(append(slices.Clone(d.logs), d.Log()), "\n")
}

// value returns the sum of the matching series of a metric, 0 if there are none.
func (d *daemon) value(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	value, err := d.Value(t.Context(), name, labels...)
	if err != nil && !errors.Is(err, env.ErrNoSeries) {
		t.Fatal(err)
	}
	return value
}

// awaitValue waits until a metric has the value.
func (d *daemon) awaitValue(t *testing.T, want float64, name string, labels ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s%v is %v", name, labels, want), func(ctx context.Context) error {
		value, err := d.Value(ctx, name, labels...)
		if err == nil && value != want {
			err = fmt.Errorf("it is %v", value)
		}
		return err
	})
}

// passes returns how many reconciles of a resource have ended.
func (d *daemon) passes(t *testing.T, resource string) float64 {
	t.Helper()
	return d.value(t, "bucketwarden_reconcile_duration_seconds", "resource="+resource)
}

// awaitPasses waits until n more reconciles of a resource have ended. Something must
// bring them about again and again.
func (d *daemon) awaitPasses(t *testing.T, resource string, n float64) {
	t.Helper()
	d.awaitPassesSince(t, resource, d.passes(t, resource), n)
}

// awaitPassesSince waits until n reconciles of a resource have ended since there were
// before.
func (d *daemon) awaitPassesSince(t *testing.T, resource string, before, n float64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%v more reconciles of %s ended", n, resource), func(ctx context.Context) error {
		passes, err := d.Value(ctx, "bucketwarden_reconcile_duration_seconds", "resource="+resource)
		if err == nil && passes < before+n {
			err = fmt.Errorf("%v of %v", passes-before, n)
		}
		return err
	})
}

// awaitIdle waits until the work that a queue has got so far is done. The gauges of the
// queue would not do: they lag behind.
func (d *daemon) awaitIdle(t *testing.T, queue string) {
	t.Helper()
	eventually(t, "queue "+queue+" is idle", func(ctx context.Context) error {
		added, err := d.Value(ctx, "workqueue_adds_total", "name="+queue)
		if err != nil {
			return err
		}
		ended, err := d.Value(ctx, "bucketwarden_reconcile_duration_seconds", "resource="+queue)
		if err == nil && ended < added {
			err = fmt.Errorf("%v of %v passes have ended", ended, added)
		}
		return err
	})
}

// requests returns how many requests the daemon has made to the API server with the
// methods, all if none is given.
func (d *daemon) requests(t *testing.T, methods ...string) float64 {
	t.Helper()
	if len(methods) == 0 {
		return d.value(t, "rest_client_requests_total")
	}
	sum := 0.0
	for _, method := range methods {
		sum += d.value(t, "rest_client_requests_total", "method="+method)
	}
	return sum
}

var writes = []string{"POST", "PUT", "PATCH", "DELETE"}

// eventually waits until condition returns nil.
func eventually(t *testing.T, what string, condition func(context.Context) error) {
	t.Helper()
	if err := env.Eventually(t.Context(), timeout, what, condition); err != nil {
		t.Fatal(err)
	}
}
