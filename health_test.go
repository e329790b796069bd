package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

func TestHealth(t *testing.T) {
	d := &daemon{config: &config{controllers: true}, sweeps: newController(resourceSweeps, newMetrics()),
		checks: newController(resourceChecks, newMetrics())}
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

func (mainTestCertificate) run(context.Context) {}

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

// healthTestAPI is what the fakes of an API server answer to lists and watches of BackupBuckets.
type healthTestAPI struct {
	dyn *dynamicfake.FakeDynamicClient
	mu  sync.Mutex
	err error
	// open are the watches, requests all lists and watches.
	open     []*watch.FakeWatcher
	requests int
}

func newHealthTestAPI() *healthTestAPI {
	a := &healthTestAPI{dyn: informersTestDynamic()}
	answer := func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.requests++
		return a.err
	}
	a.dyn.PrependReactor("list", resourceBackupBuckets, func(clienttesting.Action) (bool, runtime.Object, error) {
		err := answer()
		return err != nil, nil, err
	})
	a.dyn.PrependWatchReactor(resourceBackupBuckets, func(clienttesting.Action) (bool, watch.Interface, error) {
		if err := answer(); err != nil {
			return true, nil, err
		}
		w := watch.NewFake()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.open = append(a.open, w)
		return true, w, nil
	})
	return a
}

// asked is how many lists and watches there were.
func (a *healthTestAPI) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests
}

// set changes the answer and ends all watches.
func (a *healthTestAPI) set(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
	for _, w := range a.open {
		w.Stop()
	}
	a.open = nil
}

// healthTestDaemon has the API server's answers, and a log.
func healthTestDaemon(t *testing.T, a *healthTestAPI, core kubernetes.Interface, args ...string) *daemon {
	t.Helper()
	c := mainTestConfig(t, args...)
	d := &daemon{config: c, core: core, leases: core, metrics: newMetrics()}
	if err := d.wire(a.dyn, nil, c.scope(nil), events.NewFakeRecorder(1)); err != nil {
		t.Fatal(err)
	}
	return d
}

func healthTestLog(t *testing.T) (context.Context, func() string) {
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(0)))
	return klog.NewContext(t.Context(), logger), logger.GetSink().(ktesting.Underlier).GetBuffer().String
}

// expectHealth checks what a daemon tells.
func (d *daemon) expectHealth(t *testing.T, what string, leader float64, livez, readyz int, text string) {
	t.Helper()
	synctest.Wait()
	if got := queueTestSeries(t, d.metrics, "bucketwarden_leader"); got != leader {
		t.Errorf("%s: bucketwarden_leader is %v, want %v", what, got, leader)
	}
	for path, want := range map[string]int{"/livez": livez, "/readyz": readyz} {
		response := httptest.NewRecorder()
		d.healthHandler().ServeHTTP(response, httptest.NewRequest(http.MethodGet, path, nil))
		if response.Code != want || path == "/readyz" && !strings.Contains(response.Body.String(), text) {
			t.Errorf("%s: %s: %d %s, want %d with %q", what, path, response.Code, response.Body, want, text)
		}
	}
}

func TestDaemonThatHearsNothing(t *testing.T) {
	for name, admission := range map[string]bool{"with admission": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, api := fake.NewClientset(), newHealthTestAPI()
				api.set(feedTestMissing)
				d := healthTestDaemon(t, api, core)
				deafReady, deafText := http.StatusServiceUnavailable, "backupbuckets.extensions.gardener.cloud cannot be listed"
				if admission {
					d.webhook = &webhook{}
					deafReady, deafText = http.StatusOK, "ok for admission, but: "+deafText
				}
				renewed := func() time.Time {
					lease, err := core.CoordinationV1().Leases("own").Get(t.Context(), heartbeatLease, metav1.GetOptions{})
					if err != nil {
						return time.Time{}
					}
					return lease.Spec.RenewTime.Time
				}
				// heartbeats says whether the heartbeat was renewed since it was asked for last.
				var last time.Time
				heartbeats := func(want bool) {
					t.Helper()
					now := renewed()
					if got := now.After(last); got != want {
						t.Errorf("heartbeat at %s, last %s", now, last)
					}
					last = now
				}
				ctx, log := healthTestLog(t)
				ctx, stop := context.WithCancel(ctx)
				var working sync.WaitGroup
				working.Go(func() { d.work(ctx, ctx, nil) })

				time.Sleep(time.Hour)
				d.expectHealth(t, "no CRD at the start", 0, http.StatusOK, http.StatusServiceUnavailable, "caches are not synced")
				heartbeats(false)
				if text := log(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "create the CustomResourceDefinition backupbuckets.") {
					t.Errorf("the log:\n%s", text)
				}

				api.set(nil)
				time.Sleep(time.Minute)
				d.expectHealth(t, "with CRDs", 1, http.StatusOK, http.StatusOK, "ok\n")
				time.Sleep(heartbeatInterval) // it was able to work for less, perhaps
				heartbeats(true)

				api.set(feedTestRefused)
				time.Sleep(2*time.Minute - healthInterval)
				d.expectHealth(t, "a short outage", 1, http.StatusOK, http.StatusOK, "ok\n")
				heartbeats(true)
				time.Sleep(2 * healthInterval)
				d.expectHealth(t, "an outage", 0, http.StatusOK, deafReady, deafText)
				last = renewed() // there may have been one before the two minutes were over
				time.Sleep(time.Hour)
				d.expectHealth(t, "a long outage", 0, http.StatusOK, deafReady, deafText)
				heartbeats(false)

				api.set(nil)
				time.Sleep(time.Minute)
				d.expectHealth(t, "after the outage", 1, http.StatusOK, http.StatusOK, "ok\n")
				time.Sleep(heartbeatInterval) // it was able to work for less, perhaps
				heartbeats(true)
				if text := log(); strings.Count(text, "Cannot work") != 1 || strings.Count(text, "Works again") != 1 {
					t.Errorf("the log:\n%s", text)
				}
				stop()
				working.Wait()
				d.listening.Wait()
			})
		})
	}
}

// Workers that hang for good are the one thing that a restart cures.
func TestDaemonWhoseWorkersHang(t *testing.T) {
	for name, stores := range map[string]bool{"the queue": false, "the queue of stores": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &daemon{config: mainTestConfig(t, "--concurrent-syncs=1", "--namespace="), metrics: newMetrics()}
				c, unhang := newController(resourceBackupEntries, d.metrics), make(chan struct{})
				hang := func(context.Context) (time.Duration, error) {
					<-unhang
					return 0, nil
				}
				c.reconcile = func(ctx context.Context, _ cache.ObjectName, _ bool) (time.Duration, error) { return hang(ctx) }
				workers := 1
				if stores {
					c.splitStores()
					workers = 2 * storeWorkers
					c.reconcile = func(ctx context.Context, _ cache.ObjectName, _ bool) (time.Duration, error) {
						return c.atStore(ctx, false, hang)
					}
				}
				d.controllers, d.sweeps = []*controller{c}, newController(resourceSweeps, d.metrics)
				d.checks = newController(resourceChecks, d.metrics)
				logged, _ := healthTestLog(t)
				ctx, stop := context.WithCancel(logged)
				var working sync.WaitGroup
				working.Go(func() { d.work(ctx, ctx, func(err error) { t.Errorf("gave up: %v", err) }) })
				for i := range workers {
					c.enqueue(cache.ObjectName{Name: fmt.Sprint(i)})
				}
				time.Sleep(time.Hour)
				d.expectHealth(t, "all workers are busy", 1, http.StatusOK, http.StatusOK, "ok")
				c.enqueue(cache.ObjectName{Name: "waits"})
				time.Sleep(10*time.Minute - healthInterval)
				d.expectHealth(t, "a key waits", 1, http.StatusOK, http.StatusOK, "ok")
				time.Sleep(2 * healthInterval)
				d.expectHealth(t, "a key waits for long", 0, http.StatusServiceUnavailable, http.StatusServiceUnavailable, "hang")
				close(unhang)
				time.Sleep(healthInterval)
				d.expectHealth(t, "it goes on", 1, http.StatusOK, http.StatusOK, "ok")
				stop()
				working.Wait()
			})
		})
	}
}

// An API server that refuses all that passes ask is told, and no reason to give the lease up: it would refuse others too.
func TestDaemonWhosePassesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &daemon{config: mainTestConfig(t, "--namespace="), metrics: newMetrics()}
		c := newController(resourceBackupBuckets, d.metrics)
		var refuses atomic.Bool
		refuses.Store(true)
		c.reconcile = func(context.Context, cache.ObjectName, bool) (time.Duration, error) {
			if refuses.Load() {
				return 0, feedTestForbidden
			}
			return time.Minute, nil
		}
		d.controllers, d.sweeps = []*controller{c}, newController(resourceSweeps, d.metrics)
		d.checks = newController(resourceChecks, d.metrics)
		logged, _ := healthTestLog(t)
		ctx, stop := context.WithCancel(logged)
		var working sync.WaitGroup
		working.Go(func() { d.work(ctx, ctx, func(err error) { t.Errorf("gave up: %v", err) }) })
		c.enqueue(queueTestKey)
		time.Sleep(2*time.Minute - healthInterval)
		d.expectHealth(t, "for a moment", 1, http.StatusOK, http.StatusOK, "ok")
		time.Sleep(2 * healthInterval)
		d.expectHealth(t, "for long", 0, http.StatusOK, http.StatusServiceUnavailable, "has refused all passes over backupbuckets")
		refuses.Store(false)
		c.enqueue(queueTestKey)
		time.Sleep(healthInterval)
		d.expectHealth(t, "it goes on", 1, http.StatusOK, http.StatusOK, "ok")
		stop()
		working.Wait()
	})
}
