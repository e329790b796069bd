package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

func TestHeartbeat(t *testing.T) {
	client := fake.NewClientset()
	first := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	for _, now := range []time.Time{first, first.Add(heartbeatInterval)} {
		if err := renewHeartbeat(t.Context(), client, "own", now); err != nil {
			t.Fatal(err)
		}
		lease, err := client.CoordinationV1().Leases("own").Get(t.Context(), "gardener-extension-heartbeat", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		spec := lease.Spec
		if spec.HolderIdentity == nil || *spec.HolderIdentity != "bucketwarden" || spec.LeaseDurationSeconds == nil || *spec.LeaseDurationSeconds != 30 ||
			spec.RenewTime == nil || !spec.RenewTime.Time.Equal(now) {
			t.Errorf("at %s: got %+v", now, spec)
		}
	}

	for _, verb := range []string{"get", "create", "update"} {
		t.Run("no right to "+verb, func(t *testing.T) {
			client := fake.NewClientset()
			if verb == "update" {
				client = fake.NewClientset(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "own", Name: heartbeatLease}})
			}
			client.PrependReactor(verb, "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, apierrors.NewForbidden(coordinationv1.Resource("leases"), heartbeatLease, nil)
			})
			err := renewHeartbeat(t.Context(), client, "own", first)
			if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "lease own/"+heartbeatLease) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	d := &daemon{config: &config{controllers: true}}
	handler := d.healthHandler()
	expect := func(path string, want int) {
		t.Helper()
		response := httptest.NewRecorder()
		handler.ServeHTTP(response, httptest.NewRequest(http.MethodGet, path, nil))
		if response.Code != want {
			t.Errorf("%s, ready %t: got %d, want %d", path, d.ready.Load(), response.Code, want)
		}
	}
	expect("/livez", http.StatusOK)
	expect("/readyz", http.StatusServiceUnavailable)
	expect("/other", http.StatusNotFound)
	d.ready.Store(true)
	expect("/livez", http.StatusOK)
	expect("/readyz", http.StatusOK)
}

// Profiles tell much about a process: they are served only when asked for.
func TestProfiling(t *testing.T) {
	for profiling, want := range map[bool]int{true: http.StatusOK, false: http.StatusNotFound} {
		response := httptest.NewRecorder()
		(&daemon{config: &config{profiling: profiling}}).healthHandler().ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/debug/pprof/", nil))
		if response.Code != want {
			t.Errorf("profiling %t: %d", profiling, response.Code)
		}
	}
}

// mainTestCertificate is a certificate that is there or not.
type mainTestCertificate struct{ err error }

func (c mainTestCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, c.err }

func (c mainTestCertificate) ready() error { return c.err }

func TestNotReady(t *testing.T) {
	none := errors.New("no certificate")
	for name, test := range map[string]struct {
		config         config
		certificate    certificate
		working, ready bool
		stopping       bool
		want           string
	}{
		"starting":                     {config: config{controllers: true}, want: "caches"},
		"ready":                        {config: config{controllers: true}, working: true, ready: true},
		"waits for the lease":          {config: config{controllers: true, leaderElect: true}},
		"has just got the lease":       {config: config{controllers: true, leaderElect: true}, working: true, want: "caches"},
		"leads":                        {config: config{controllers: true, leaderElect: true}, working: true, ready: true},
		"admission only":               {certificate: mainTestCertificate{}},
		"admission only, not yet":      {certificate: mainTestCertificate{none}, want: "no certificate"},
		"ready but for a certificate":  {config: config{controllers: true}, working: true, ready: true, certificate: mainTestCertificate{none}, want: "no certificate"},
		"admission only, but stopping": {certificate: mainTestCertificate{}, stopping: true, want: "stopping"},
	} {
		d := &daemon{config: &test.config, certificate: test.certificate}
		d.working.Store(test.working)
		d.ready.Store(test.ready)
		d.stopping.Store(test.stopping)
		if err := d.notReady(); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// A replica that is killed is replaced within 20 seconds, however unlucky the moment.
func TestHandOverAfterACrash(t *testing.T) {
	look := time.Duration((1 + leaderelection.JitterFactor) * float64(retryPeriod))
	if worst := leaseDuration + 2*look; worst >= 20*time.Second {
		t.Errorf("it may take %s", worst)
	}
}

// mainTestStore is a bucket that is as it should be.
type mainTestStore struct {
	Store
	pureS3
}

func (mainTestStore) Observe(context.Context) (BucketState, error) {
	return BucketState{Exists: true}, nil
}

func (s mainTestStore) openStore(bucketRef, map[string][]byte) (Store, error) { return s, nil }

func (s mainTestStore) endpoint() endpointRef { return endpointRef{"store", "seed"} }

func (s mainTestStore) openObjects(bucketRef, map[string][]byte) (Objects, error) { return s, nil }

func (mainTestStore) traits() traits { return traits{} }

func (mainTestStore) Harden(context.Context) ([]string, error) { return nil, nil }

func (mainTestStore) Put(context.Context, string) error { return nil }

func (mainTestStore) pages(context.Context, string, cursor) iter.Seq2[page, error] {
	return func(func(page, error) bool) {}
}

func TestDaemon(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		name := "annotation mode"
		if ignore {
			name = "ignoring annotations"
		}
		t.Run(name, func(t *testing.T) {
			// The bucket was reconciled before; the entry is new.
			bucket := informersTestObject(t, `
apiVersion: extensions.gardener.cloud/v1alpha1
kind: BackupBucket
metadata: {name: seed, uid: uid-1, generation: 1, finalizers: [extensions.gardener.cloud/backupbucket]}
spec: {type: s3, region: eu-1, secretRef: {name: credentials, namespace: garden}}
status: {observedGeneration: 1, lastOperation: {type: Create, state: Succeeded, progress: 100, description: x, lastUpdateTime: "2026-01-02T03:04:05Z"}}
`)
			entry := informersTestObject(t, `
apiVersion: extensions.gardener.cloud/v1alpha1
kind: BackupEntry
metadata: {name: shoot--a--b--1, uid: uid-2, generation: 1, annotations: {gardener.cloud/operation: reconcile}}
spec: {type: s3, region: eu-1, bucketName: seed, secretRef: {name: credentials, namespace: garden}}
`)
			core := fake.NewClientset(
				&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shoot--a--b"}},
				&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "credentials"},
					Data: map[string][]byte{"accessKeyID": []byte("id"), "secretAccessKey": []byte("key"), "region": []byte("eu-1")}})
			dyn := informersTestDynamic(bucket, entry)
			scheme := metadatafake.NewTestScheme()
			if err := metav1.AddMetaToScheme(scheme); err != nil {
				t.Fatal(err)
			}
			c := mainTestConfig(t, fmt.Sprintf("--ignore-operation-annotation=%t", ignore), "--concurrent-syncs=2")
			d := &daemon{config: c, core: core, leases: core, metrics: newMetrics(), broadcaster: newBroadcaster(core)}
			if err := d.wire(dyn, metadatafake.NewSimpleMetadataClient(scheme), c.scope(map[string]provider{storeS3: mainTestStore{}}), newRecorder(d.broadcaster)); err != nil {
				t.Fatal(err)
			}

			logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
			log := logger.GetSink().(ktesting.Underlier).GetBuffer()
			ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- d.run(ctx) }()
			informersTestAwait(t, "ready", d.ready.Load)

			address := func(server string) string {
				match := regexp.MustCompile(`Serving ` + server + ` address="([^"]+)"`).FindStringSubmatch(log.String())
				if match == nil {
					t.Fatalf("the address of %s is not logged:\n%s", server, log.String())
				}
				return match[1]
			}
			health, metrics := address("health"), address("metrics")
			if status, body := mainTestGet(t, "http://"+health+"/readyz"); status != http.StatusOK || body != "ok\n" {
				t.Errorf("/readyz: %d %s", status, body)
			}
			informersTestAwait(t, "the entry has its secret and Succeeded", func() bool {
				u, err := dyn.Resource(entriesGVR).Get(ctx, "shoot--a--b--1", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				e := decodeEntry(u)
				secret, err := core.CoreV1().Secrets("shoot--a--b").Get(ctx, "etcd-backup", metav1.GetOptions{})
				return err == nil && string(secret.Data["bucketName"]) == "seed" && e.succeeded() && e.operation() == "" && e.hasFinalizer(finalizerBackupEntry)
			})
			informersTestAwait(t, "the bucket is verified", func() bool {
				return queueTestSeries(t, d.metrics, "bucketwarden_backupbucket_last_verified_timestamp_seconds", "bucket", "seed") > 0
			})
			informersTestAwait(t, "heartbeat", func() bool {
				_, err := core.CoordinationV1().Leases("own").Get(ctx, heartbeatLease, metav1.GetOptions{})
				return err == nil
			})
			if status, body := mainTestGet(t, "http://"+metrics+"/metrics"); status != http.StatusOK || !strings.Contains(body, `bucketwarden_backupbucket_info{bucket="seed",region="eu-1",type="s3"} 1`) {
				t.Errorf("/metrics: %d %s", status, body)
			}

			stop()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Minute):
				t.Fatal("does not stop")
			}
			if d.ready.Load() {
				t.Error("ready after the end")
			}
			for _, server := range []string{health, metrics} {
				if response, err := http.Get("http://" + server + "/livez"); err == nil {
					_ = response.Body.Close()
					t.Errorf("%s still answers", server)
				}
			}
			for _, controller := range d.controllers {
				if !controller.queue.ShuttingDown() {
					t.Errorf("the queue of %s still runs", controller.resource)
				}
			}
		})
	}
}

// mainTestConfig is the configuration of a daemon without admission.
func mainTestConfig(t *testing.T, args ...string) *config {
	t.Helper()
	c, err := parseFlags(append([]string{"--verify-interval=1h", "--metrics-address=127.0.0.1:0", "--health-address=127.0.0.1:0", "--webhook-address=", "--namespace=own"}, args...), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mainTestGet(t *testing.T, url string) (int, string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestDaemonStopsBeforeItIsReady(t *testing.T) {
	d := mainTestBareDaemon(t, "127.0.0.1:0")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := d.run(ctx); err != nil {
		t.Error(err)
	}
	if d.ready.Load() {
		t.Error("ready")
	}
}

func TestDaemonNeedsItsAddresses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	address := taken.Addr().String()
	if err := mainTestBareDaemon(t, address).run(t.Context()); err == nil || !strings.Contains(err.Error(), "listening for health on "+address) {
		t.Errorf("got %v", err)
	}
}

// mainTestBareDaemon has nothing to work on.
func mainTestBareDaemon(t *testing.T, healthAddress string) *daemon {
	t.Helper()
	core := fake.NewClientset()
	c := mainTestConfig(t, "--health-address="+healthAddress)
	d := &daemon{config: c, core: core, leases: core, metrics: newMetrics(), broadcaster: newBroadcaster(core)}
	if err := d.wire(informersTestDynamic(), nil, c.scope(nil), events.NewFakeRecorder(1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, controller := range d.controllers {
			controller.shutDown()
		}
	})
	return d
}

// A leader whose lease cannot be renewed has ended its work before another one begins.
func TestLostLeaseEndsTheWorkFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core := fake.NewClientset()
		var first atomic.Pointer[string]
		var failing atomic.Bool
		core.PrependReactor("update", "leases", func(action clienttesting.Action) (bool, runtime.Object, error) {
			lease := action.(clienttesting.UpdateAction).GetObject().(*coordinationv1.Lease)
			if lease.Spec.HolderIdentity != nil && failing.Load() && *lease.Spec.HolderIdentity == *first.Load() {
				return true, nil, errors.New("the API server cannot be reached")
			}
			return false, nil, nil
		})
		// A pass lasts until it is cut off.
		replica := func() (d *daemon, began, ended chan time.Time) {
			began, ended = make(chan time.Time, 10), make(chan time.Time, 10)
			d = &daemon{config: mainTestConfig(t, "--leader-elect"), leases: core, core: core, metrics: newMetrics()}
			c := newController("passes", d.metrics)
			c.reconcile = func(ctx context.Context, _ cache.ObjectName, _ bool) (time.Duration, error) {
				began <- time.Now()
				<-ctx.Done()
				// What it is at needs a moment to end.
				time.Sleep(3 * retryPeriod)
				ended <- time.Now()
				return 0, ctx.Err()
			}
			c.enqueue(cache.ObjectName{Name: "object"})
			d.controllers, d.sweeps = []*controller{c}, newController(resourceSweeps, d.metrics)
			d.metrics.facts.begin("b", time.Hour, time.Now())
			d.metrics.bucketLocked.WithLabelValues("b").Set(1)
			return d, began, ended
		}
		lost := make(chan error, 1)
		d, began, ended := replica()
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { lost <- d.lead(ctx) })
		<-began
		lease, err := core.CoordinationV1().Leases("own").Get(ctx, programName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		first.Store(lease.Spec.HolderIdentity)
		if shown := metricsTestOf(t, d.metrics, "bucket", "b"); len(shown) != 1 {
			t.Errorf("the leader shows %v", shown)
		}

		other, otherBegan, _ := replica()
		all.Go(func() { _ = other.lead(ctx) })
		time.Sleep(5 * retryPeriod)
		failing.Store(true)
		if cut, taken := <-ended, <-otherBegan; !cut.Before(taken) {
			t.Errorf("the first pass ended at %s, after the other began at %s", cut, taken)
		}
		if shown := metricsTestOf(t, d.metrics, "bucket", "b"); len(shown) > 0 {
			t.Errorf("who leads no more shows %v", shown)
		}
		if err := <-lost; !errors.Is(err, errLeaseLost) {
			t.Errorf("the first ended with %v", err)
		}
		stop()
		all.Wait()
		// The work ended, so the lease is free at once.
		lease, err = core.CoordinationV1().Leases("own").Get(context.WithoutCancel(ctx), programName, metav1.GetOptions{})
		if err != nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != "" {
			t.Errorf("the lease after the end: %+v, %v", lease.Spec, err)
		}
	})
}
