package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
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

// A replica that is killed is replaced within 20 seconds, however unlucky the moment.
func TestHandOverAfterACrash(t *testing.T) {
	look := time.Duration((1 + leaderelection.JitterFactor) * float64(retryPeriod))
	if worst := leaseDuration + 2*look; worst >= 20*time.Second {
		t.Errorf("it may take %s", worst)
	}
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
			d.checks = newController(resourceChecks, d.metrics)
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

// leadTestReplica is a replica with --leader-elect, which is started anew when it ends, as Kubernetes does.
type leadTestReplica struct {
	api  *healthTestAPI
	core *fake.Clientset
	mu   sync.Mutex
	d    *daemon
	ends []error
}

func (r *leadTestReplica) run(t *testing.T, ctx context.Context) {
	for ctx.Err() == nil {
		d := healthTestDaemon(t, r.api, r.core, "--leader-elect")
		r.mu.Lock()
		r.d = d
		r.mu.Unlock()
		life, end := context.WithCancel(ctx)
		err := d.lead(life)
		end()
		d.listening.Wait()
		for _, c := range d.allControllers() {
			c.shutDown()
		}
		r.mu.Lock()
		r.ends = append(r.ends, err)
		r.mu.Unlock()
	}
}

func (r *leadTestReplica) leads(t *testing.T) bool {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return queueTestSeries(t, r.d.metrics, "bucketwarden_leader") == 1
}

// ended is how its processes ended.
func (r *leadTestReplica) ended() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ends)
}

func leadTestReplicas(t *testing.T, test func(core *fake.Clientset, one, two *leadTestReplica)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, _ := healthTestLog(t)
		ctx, stop := context.WithCancel(ctx)
		core := fake.NewClientset()
		// The fake knows no conflicts.
		var version atomic.Int64
		core.PrependReactor("*", "leases", func(action clienttesting.Action) (bool, runtime.Object, error) {
			var lease *coordinationv1.Lease
			switch action := action.(type) {
			case clienttesting.UpdateAction: // and creations
				lease = action.GetObject().(*coordinationv1.Lease)
			default:
				return false, nil, nil
			}
			if old, err := core.Tracker().Get(action.GetResource(), lease.Namespace, lease.Name); err == nil && action.GetVerb() == "update" &&
				old.(*coordinationv1.Lease).ResourceVersion != lease.ResourceVersion {
				return true, nil, apierrors.NewConflict(coordinationv1.Resource("leases"), lease.Name, errors.New("changed"))
			}
			lease.ResourceVersion = strconv.FormatInt(version.Add(1), 10)
			return false, nil, nil
		})
		var replicas []*leadTestReplica
		var running sync.WaitGroup
		for range 2 {
			r := &leadTestReplica{api: newHealthTestAPI(), core: core}
			replicas = append(replicas, r)
			test := r
			running.Go(func() { test.run(t, ctx) })
			// The first one takes it.
			time.Sleep(5 * time.Second)
		}
		test(core, replicas[0], replicas[1])
		stop()
		running.Wait()
	})
}

// A leader that hears nothing gives the lease up; another one takes it, and the first does not come back before it hears again.
func TestALeaderThatHearsNothingGivesUp(t *testing.T) {
	leadTestReplicas(t, func(core *fake.Clientset, one, two *leadTestReplica) {
		if !one.leads(t) || two.leads(t) {
			t.Fatalf("the first leads: %t, the second: %t", one.leads(t), two.leads(t))
		}
		if asked := two.api.asked(); asked != 0 {
			t.Errorf("a replica that waits has made %d lists and watches", asked)
		}

		one.api.set(feedTestRefused)
		time.Sleep(2*time.Minute - healthInterval)
		if !one.leads(t) {
			t.Error("gave up too early")
		}
		time.Sleep(2*healthInterval + 3*time.Second)
		if one.leads(t) || !two.leads(t) {
			t.Errorf("the first leads: %t, the second: %t", one.leads(t), two.leads(t))
		}
		if ends := one.ended(); len(ends) != 1 || !errors.Is(ends[0], feedTestRefused) || !strings.Contains(ends[0].Error(), "gave the lease up") {
			t.Errorf("the first ended with %v", ends)
		}

		// Now none can: the lease is given up once more, and stays with nobody.
		two.api.set(feedTestMissing)
		time.Sleep(5 * time.Minute)
		if one.leads(t) || two.leads(t) {
			t.Error("one that cannot work leads")
		}
		lease, err := core.CoordinationV1().Leases("own").Get(t.Context(), programName, metav1.GetOptions{})
		if err != nil || *lease.Spec.HolderIdentity != "" || len(one.ended())+len(two.ended()) != 2 {
			t.Errorf("%+v, %v; ends %v, %v", lease.Spec, err, one.ended(), two.ended())
		}
		core.ClearActions()
		lists := one.api.asked()
		time.Sleep(2 * time.Minute)
		if leases, lists := len(core.Actions()), one.api.asked()-lists; leases != 0 || lists > 15 {
			t.Errorf("waiting makes %d requests for the lease, %d lists and watches in two minutes", leases, lists)
		}

		// Whoever hears first takes it, without a restart.
		one.api.set(nil)
		time.Sleep(90 * time.Second)
		if !one.leads(t) || two.leads(t) || len(one.ended())+len(two.ended()) != 2 {
			t.Errorf("the first leads: %t, the second: %t", one.leads(t), two.leads(t))
		}
		two.api.set(nil)
		time.Sleep(30 * time.Second)
		if !one.leads(t) || two.leads(t) {
			t.Error("the lease moved for no reason")
		}
	})
}
