package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// observerHarness is a harness with an observer in the place of the reconciler of buckets.
type observerHarness struct {
	*harness
	observer *bucketObserver
}

func newObserverHarness(t *testing.T) *observerHarness {
	h := &observerHarness{harness: newHarness(t)}
	h.observer = newBucketObserver(h.buckets)
	h.buckets.resource.controller.onGone = h.observer.forget
	return h
}

// look makes a pass, which must write nothing.
func (h *observerHarness) look() (time.Duration, error) {
	h.t.Helper()
	wait, err := h.pass(h.t.Context(), h.observer.reconcile, "b", false)
	for _, line := range h.trace {
		if !strings.HasPrefix(line, "get ") && !strings.HasSuffix(line, " Observe") {
			h.t.Errorf("it did more than look: %s", line)
		}
	}
	return wait, err
}

// owned stores BackupBucket b as a provider extension leaves it: ready, with its finalizer, without a providerStatus.
func (h *observerHarness) owned(p Policy, edits ...editObject) {
	h.t.Helper()
	h.put(bucketsGVR, testObject(kindBackupBucket, "b", "bucket-b", append([]editObject{withFinalizers(finalizerBackupBucket),
		withLast(operationTypeReconcile, stateSucceeded, "done"), withPolicy(p)}, edits...)...))
	h.putSecret("garden", "bucket-b", staticCredentials())
}

func (h *observerHarness) wantPolicies(live, expected Policy) {
	h.t.Helper()
	number := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	const prefix = "bucketwarden_backupbucket_"
	h.wantMetric(number(live.Locked), prefix+"locked", "b")
	h.wantMetric(float64(live.Days)*24*3600, prefix+"retention_seconds", "b")
	h.wantMetric(number(expected.Locked), prefix+"expected_locked", "b")
	h.wantMetric(float64(expected.Days)*24*3600, prefix+"expected_retention_seconds", "b")
}

func TestObserverLooks(t *testing.T) {
	h := newObserverHarness(t)
	h.owned(locked4d)
	h.cloud.put("b", locked4d)
	wait, err := h.look()
	if err != nil || wait != testVerifyInterval {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace("get secrets garden/bucket-b", "store b Observe")
	h.wantEvents()
	h.wantPolicies(locked4d, locked4d)
	h.wantMetric(0, "bucketwarden_backupbucket_policy_drift_total", "b")
	h.wantMetric(0, "bucketwarden_backupbucket_foreign_policy", "b")
	h.wantMetric(1, "bucketwarden_backupbucket_info", "b", "eu-1", "aws")
	if time.Since(time.Unix(int64(h.metric("bucketwarden_backupbucket_last_verified_timestamp_seconds", "b")), 0)) > time.Minute {
		t.Error("it is not told when the bucket was verified")
	}
	// What only an owner does and knows has no series: it is not known, and no alert compares with it.
	for _, name := range []string{"hardened", "hardening_gaps", "policy_repairs_total", "policy_locks_total", "tombstones"} {
		if h.has("bucketwarden_backupbucket_"+name, "b") {
			t.Errorf("there is a series of %s", name)
		}
	}
}

// What an earlier daemon's status says of hardening is not confirmed by anybody.
func TestObserverDoesNotTellWhatOthersToldOfHardening(t *testing.T) {
	h := newObserverHarness(t)
	h.owned(locked4d, set([]any{map[string]any{"type": conditionHardened, "status": "True", "reason": "Hardened", "message": "x",
		"lastTransitionTime": testStart.Format(time.RFC3339), "lastUpdateTime": testStart.Format(time.RFC3339)}}, "status", "conditions"))
	h.cloud.put("b", locked4d)
	if _, err := h.look(); err != nil {
		t.Fatal(err)
	}
	if h.has("bucketwarden_backupbucket_hardened", "b") {
		t.Error("it says that the bucket is hardened")
	}
}

func TestObserverDrift(t *testing.T) {
	gone := Policy{Days: -1}
	type step struct {
		spec, live Policy
		drift      float64
		events     []string
	}
	for name, steps := range map[string][]step{
		"the lock is taken away, and put back by its owner": {
			{locked4d, locked4d, 0, nil},
			{locked4d, Policy{}, 1, []string{"PolicyNotRestored"}},
			{locked4d, Policy{}, 1, nil},
			{locked4d, locked4d, 1, nil},
			{locked4d, unlocked4d, 2, []string{"PolicyNotRestored"}},
			{locked4d, Policy{}, 3, []string{"PolicyNotRestored"}},
		},
		"it is shortened": {{locked10d, locked10d, 0, nil}, {locked10d, locked4d, 1, []string{"PolicyNotRestored"}}},
		"it never was as asked: the gauges tell, nobody has changed it": {
			{locked4d, unlocked4d, 0, nil}, {locked4d, unlocked4d, 0, nil}, {locked4d, locked4d, 0, nil}},
		"it never was as asked, and becomes weaker": {{locked4d, unlocked4d, 0, nil}, {locked4d, Policy{}, 0, nil}},
		"more is asked for, and carried out later": {
			{locked4d, locked4d, 0, nil}, {locked10d, locked4d, 0, nil}, {locked10d, locked10d, 0, nil}},
		"less is asked for, and carried out later": {
			{unlocked4d, unlocked4d, 0, nil}, {unlocked1d, unlocked4d, 0, []string{conditionForeign}}, {unlocked1d, unlocked1d, 0, nil}},
		"an unlocked policy is removed": {{unlocked4d, unlocked4d, 0, nil}, {unlocked4d, Policy{}, 1, []string{"PolicyNotRestored"}}},
		"the bucket is deleted":         {{locked4d, locked4d, 0, nil}, {locked4d, gone, 1, []string{"BucketLost"}}, {locked4d, gone, 1, nil}},
		"the bucket is gone already, though its owner says that it is ready": {{locked4d, gone, 1, []string{"BucketLost"}}},
		"somebody made it stronger": {
			{locked4d, locked4d, 0, nil}, {locked4d, locked10d, 0, []string{conditionForeign}}, {locked4d, locked10d, 0, nil}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newObserverHarness(t)
			h.owned(steps[0].spec)
			for i, s := range steps {
				h.edit(bucketsGVR, "b", withPolicy(s.spec))
				live := s.live
				if delete(h.cloud.buckets, "b"); live != gone {
					h.cloud.put("b", live)
				} else {
					live = Policy{}
				}
				if wait, err := h.look(); err != nil || wait != testVerifyInterval {
					t.Errorf("step %d: wait %s, error %v", i, wait, err)
				}
				h.wantEvents(s.events...)
				h.wantPolicies(live, s.spec)
				h.wantMetric(s.drift, "bucketwarden_backupbucket_policy_drift_total", "b")
				for _, e := range h.recorder.events {
					if e.reason != conditionForeign && !strings.Contains(e.note, "not") {
						t.Errorf("step %d: %s %s", i, e.reason, e.note)
					}
				}
			}
		})
	}
}

// A bucket that its owner has not made yet is not lost, and one that its owner deletes is not either.
func TestObserverKnowsBeginAndEnd(t *testing.T) {
	h := newObserverHarness(t)
	h.owned(locked4d, withLast(operationTypeCreate, stateProcessing, "creating"))
	if _, err := h.look(); err != nil {
		t.Fatal(err)
	}
	h.wantEvents()
	h.wantMetric(0, "bucketwarden_backupbucket_policy_drift_total", "b")
	h.wantPolicies(Policy{}, locked4d)

	h.cloud.put("b", locked4d)
	h.edit(bucketsGVR, "b", deleting)
	if _, err := h.look(); err != nil {
		t.Fatal(err)
	}
	h.wantPolicies(locked4d, locked4d)
	delete(h.cloud.buckets, "b")
	if _, err := h.look(); err != nil {
		t.Fatal(err)
	}
	h.wantEvents()
	for _, name := range []string{"info", "locked", "expected_locked", "policy_drift_total"} {
		if h.has("bucketwarden_backupbucket_"+name, "b") {
			t.Errorf("the bucket is gone, and there is a series of %s", name)
		}
	}
}

func TestObserverFailures(t *testing.T) {
	t.Run("no secret", func(t *testing.T) {
		h := newObserverHarness(t)
		h.owned(locked4d)
		h.deleteSecret("garden", "bucket-b")
		if _, err := h.look(); !errors.As(err, new(*secretMissingError)) {
			t.Errorf("got %v", err)
		}
		h.wantTrace("get secrets garden/bucket-b")
	})
	t.Run("the store does not answer", func(t *testing.T) {
		h := newObserverHarness(t)
		h.owned(locked4d)
		h.cloud.put("b", locked4d)
		h.cloud.fail["Observe"] = unavailable
		if _, err := h.look(); !errors.Is(err, errTesting) {
			t.Errorf("got %v", err)
		}
		h.wantMetric(1, "bucketwarden_backupbucket_expected_locked", "b")
		if h.has("bucketwarden_backupbucket_locked", "b") {
			t.Error("what nobody has told is shown")
		}
	})
	t.Run("a spec that cannot be read", func(t *testing.T) {
		h := newObserverHarness(t)
		h.owned(locked4d, set("weeks", "spec", "providerConfig", "immutability", "retentionPeriod"))
		h.cloud.put("b", locked4d)
		wait, err := h.look()
		if wait != testVerifyInterval || !errors.As(err, new(*configError)) {
			t.Errorf("wait %s, error %v", wait, err)
		}
		// What the store says is shown nevertheless.
		h.wantMetric(1, "bucketwarden_backupbucket_locked", "b")
	})
}

func TestObserverTellsWhatIsNotServed(t *testing.T) {
	h := newObserverHarness(t)
	gcp := set("gcp", "spec", "type")
	h.owned(locked4d, gcp)
	for i := range 2 {
		wait, err := h.look()
		if err != nil || wait != 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantTrace()
		if i == 0 {
			h.wantEvents("NotServed")
			if note := h.recorder.events[0].note; !strings.Contains(note, `"gcp"`) {
				t.Errorf("the event says %q", note)
			}
			continue
		}
		h.wantEvents()
	}
	h.wantMetric(1, "bucketwarden_backupbucket_not_served", "b")
	if h.has("bucketwarden_backupbucket_info", "b") {
		t.Error("it is told to be served")
	}
	// Of another class it is nobody's business.
	h.edit(bucketsGVR, "b", set("garden", "spec", "class"))
	if _, err := h.look(); err != nil {
		t.Fatal(err)
	}
	if h.has("bucketwarden_backupbucket_not_served", "b") {
		t.Error("it is still told")
	}
}

func TestObserverWatch(t *testing.T) {
	bucket := func(name string, edits ...editObject) *backupBucket {
		b := decodeBucket(testObject(kindBackupBucket, name, "s", edits...))
		b.UID = "1"
		return b
	}
	succeeded := withLast(operationTypeCreate, stateSucceeded, "x")
	of := func(change func(*backupBucket), edits ...editObject) *backupBucket {
		b := bucket("b", edits...)
		change(b)
		return b
	}
	for name, test := range map[string]struct {
		old, new *backupBucket
		want     bool
	}{
		"nothing that counts":          {bucket("b", succeeded), bucket("b", succeeded, withOperation("reconcile")), false},
		"another spec":                 {bucket("b"), of(func(b *backupBucket) { b.Generation++ }), true},
		"its owner is through":         {bucket("b"), bucket("b", succeeded), true},
		"it became ours":               {bucket("b", set("garden", "spec", "class")), bucket("b"), true},
		"it is not ours any more":      {bucket("b"), bucket("b", set("garden", "spec", "class")), false},
		"another one of the name":      {bucket("b"), of(func(b *backupBucket) { b.UID = "2" }), true},
		"not ours":                     {bucket("b", set("garden", "spec", "class")), of(func(b *backupBucket) { b.Generation++ }, set("garden", "spec", "class")), false},
		"not served, and another spec": {bucket("b", set("gcp", "spec", "type")), of(func(b *backupBucket) { b.Generation++ }, set("gcp", "spec", "type")), true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newObserverHarness(t)
			handlers := &handlerInformer{}
			if _, err := h.observer.watch(handlers); err != nil {
				t.Fatal(err)
			}
			handlers.OnUpdate(test.old, test.new)
			if got := h.buckets.resource.controller.queue.Len() > 0; got != test.want {
				t.Errorf("looked at %t, want %t", got, test.want)
			}
		})
	}
}

// handlerInformer is an informer that only keeps its handler.
type handlerInformer struct {
	cache.SharedIndexInformer
	cache.ResourceEventHandler
}

func (i *handlerInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	i.ResourceEventHandler = h
	return nil, nil
}

// The look at backups goes by what the observer has seen of the bucket, since no status tells.
func TestObserverOfEntries(t *testing.T) {
	until := time.Now().Add(48 * time.Hour).Truncate(time.Second)
	for name, test := range map[string]struct {
		live, expected Policy
		plain, asks    bool
	}{
		"locked":                              {live: locked4d, expected: locked4d, asks: true},
		"locked by a stranger":                {live: locked4d, asks: true},
		"the bucket's policy is gone":         {expected: locked4d, asks: true},
		"nobody has locked or asked":          {live: unlocked4d, expected: unlocked4d},
		"lists tell, and policy is gone":      {expected: locked4d, plain: true},
		"lists tell, and the policy is there": {live: locked4d, expected: locked4d, plain: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newCheckHarness(t)
			h.checker.observed = fixedPolicies{test.live, test.expected}
			h.put(entriesGVR, testObject(kindBackupEntry, testEntry, "entry", withLast(operationTypeReconcile, stateSucceeded, "x"),
				set("b", "spec", "bucketName")))
			h.putSecret("garden", "entry", staticCredentials())
			full := h.snap("Full", 0, 10, time.Minute)
			if test.plain && test.live.Locked {
				full.until = until
			}
			h.have(full)
			h.objects.locked["*"] = until
			if test.plain {
				h.checker.scope.providers["aws"] = plainProvider{h.scope.providers["aws"].(*checkProvider)}
			}
			if _, err := h.check(); err != nil {
				t.Fatal(err)
			}
			if h.opened.Recorded != test.live {
				t.Errorf("opened for a bucket with %v, the store said %v", h.opened.Recorded, test.live)
			}
			if asked := len(h.objects.locks) > 0; asked != test.asks {
				t.Errorf("asked for retention: %t", asked)
			}
			if known := h.has("bucketwarden_backupentry_chain_locked_until_timestamp_seconds", "b", testEntry); known != (test.asks || test.live.Locked) {
				t.Errorf("the lock is known: %t", known)
			}
			if test.asks {
				h.wantMetric(float64(until.Unix()), "bucketwarden_backupentry_chain_locked_until_timestamp_seconds", "b", testEntry)
			}
		})
	}
}

type fixedPolicies struct{ live, expected Policy }

func (p fixedPolicies) credentials(e *backupEntry) types.NamespacedName { return e.SecretRef }

func (p fixedPolicies) policies(string) (live, expected Policy) { return p.live, p.expected }

// plainProvider opens objects whose lists tell of retention.
type plainProvider struct{ *checkProvider }

func (p plainProvider) openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error) {
	objects, err := p.checkProvider.openObjects(ref, credentials)
	return plainObjects{objects}, err
}

// What the store said counts only as long as it does for metrics.
func TestObserverForgetsWhatIsOld(t *testing.T) {
	h := newObserverHarness(t)
	h.owned(locked4d)
	h.cloud.put("b", locked4d)
	if _, err := h.look(); err != nil {
		t.Fatal(err)
	}
	if live, expected := h.observer.policies("b"); live != locked4d || expected != locked4d {
		t.Errorf("live %v, expected %v", live, expected)
	}
	h.metrics.facts.buckets["b"].until[factState] = time.Now().Add(-time.Second)
	if live, expected := h.observer.policies("b"); live != (Policy{}) || expected != locked4d {
		t.Errorf("later: live %v, expected %v", live, expected)
	}
}

// With credentials of its own it reads no others, but the key of an account.
func TestObserverWithItsOwnCredentials(t *testing.T) {
	h := newObserverHarness(t)
	h.observer.own = types.NamespacedName{Namespace: "own", Name: "reader"}
	h.owned(locked4d)
	h.putSecret("own", "reader", staticCredentials())
	h.deleteSecret("garden", "bucket-b")
	h.cloud.put("b", locked4d)
	if _, err := h.look(); err != nil {
		t.Fatal(err)
	}
	h.wantTrace("get secrets own/reader", "store b Observe")
	for kind, want := range map[string]string{"aws": "own/reader", "azure": "garden/entry"} {
		e := decodeEntry(testObject(kindBackupEntry, testEntry, "entry", set(kind, "spec", "type")))
		if got := h.observer.credentials(e); got.String() != want {
			t.Errorf("%s: %s, want %s", kind, got, want)
		}
	}
}

func TestObserveFlags(t *testing.T) {
	c, err := parseFlags([]string{"--observe"}, io.Discard)
	if err != nil || c.webhookAddress != "" || c.role() != "observer" || c.leaseName() != "bucketwarden-observer" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, test := range []struct{ arg, want string }{
		{"--webhook-address=:10250", "--observe and --webhook-address exclude each other"},
		{"--controllers=false", "leave nothing to do"},
		{"--ignore-operation-annotation", "--observe and --ignore-operation-annotation exclude each other"},
	} {
		if _, err := parseFlags([]string{"--observe", "--namespace=own", test.arg}, io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.arg, err, test.want)
		}
	}
	for _, value := range []string{"x", "/x", "x/", "x/y/z", "/"} {
		if _, err := parseFlags([]string{"--observe", "--observe-credentials=" + value}, io.Discard); err == nil || !strings.Contains(err.Error(), "NAMESPACE/NAME") {
			t.Errorf("%s: got %v", value, err)
		}
	}
	if _, err := parseFlags([]string{"--observe-credentials=x/y", "--namespace=own"}, io.Discard); err == nil || !strings.Contains(err.Error(), "needs --observe") {
		t.Errorf("got %v", err)
	}
	if c, err := parseFlags([]string{"--observe", "--webhook-address="}, io.Discard); err != nil || c.webhookAddress != "" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestObserverAPIGuard(t *testing.T) {
	const events, leases = "/apis/events.k8s.io/v1/namespaces/default/events", "/apis/coordination.k8s.io/v1/namespaces/own/leases"
	for _, base := range []string{"", "/clusters/seed"} {
		var sent []string
		rc := &rest.Config{Host: "https://api.example.com" + base + "/"}
		if err := guardAPI(rc, "own"); err != nil {
			t.Fatal(err)
		}
		transport := rc.WrapTransport(roundTripper(func(r *http.Request) (*http.Response, error) {
			sent = append(sent, r.Method+" "+r.URL.Path)
			return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
		}))
		for _, test := range []struct {
			method, path string
			refused      bool
		}{
			{"GET", "/apis/extensions.gardener.cloud/v1alpha1/backupbuckets", false},
			{"GET", "/api/v1/namespaces/garden/secrets/x", false},
			{"POST", events, false},
			{"PATCH", events + "/x", false},
			{"POST", leases, false},
			{"PUT", leases + "/bucketwarden-observer", false},
			{"DELETE", events + "/x", true},
			{"PUT", events + "/x", true},
			{"DELETE", events, true},
			{"POST", events + "/x", true},
			{"PATCH", events + "/x/y", true},
			{"POST", "/api/v1/namespaces/default/events", true},
			{"PUT", leases + "/bucketwarden", true},
			{"PUT", leases + "/gardener-extension-heartbeat", true},
			{"PATCH", leases + "/bucketwarden-observer", true},
			{"POST", "/apis/coordination.k8s.io/v1/namespaces/other/leases", true},
			{"PATCH", "/apis/extensions.gardener.cloud/v1alpha1/backupbuckets/b", true},
			{"PATCH", "/apis/extensions.gardener.cloud/v1alpha1/backupbuckets/b/status", true},
			{"PATCH", "/api/v1/namespaces/garden/secrets/x", true},
			{"POST", "/api/v1/namespaces/events/secrets", true},
			{"DELETE", "/apis/extensions.gardener.cloud/v1alpha1/backupbuckets/b", true},
			{"POST", "/elsewhere" + events, true},
		} {
			sent = nil
			r := httptest.NewRequestWithContext(t.Context(), test.method, "https://api.example.com"+base+test.path, strings.NewReader("x"))
			_, err := transport.RoundTrip(r)
			if refused := errors.As(err, new(*observeError)); refused != test.refused || refused == (len(sent) > 0) {
				t.Errorf("%s %s: error %v, sent %q", test.method, base+test.path, err, sent)
			}
		}
	}
}

// Every client of a daemon with --observe is guarded, and those of another one are not.
func TestObserverClientsAreGuarded(t *testing.T) {
	var sent atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		sent.Add(1)
		http.Error(w, "", http.StatusNotFound)
	}))
	defer server.Close()
	for _, observe := range []bool{true, false} {
		c := mainTestConfig(t, fmt.Sprintf("--observe=%t", observe))
		d, err := newDaemon(c, &rest.Config{Host: server.URL}, newMetrics())
		if err != nil {
			t.Fatal(err)
		}
		for name, client := range map[string]kubernetes.Interface{"core": d.core, "leases": d.leases} {
			sent.Store(0)
			err := client.CoreV1().Secrets("garden").Delete(t.Context(), "x", metav1.DeleteOptions{})
			if refused := errors.As(err, new(*observeError)); refused != observe || (sent.Load() == 0) != observe {
				t.Errorf("--observe=%t: client %s: %v, %d requests", observe, name, err, sent.Load())
			}
		}
		c.probe, c.evidence, c.evidenceDirectory, c.evidenceKey = true, true, "directory", "key"
		more, err := newDaemon(c, &rest.Config{Host: server.URL}, newMetrics())
		if err != nil || len(more.allControllers()) != len(d.allControllers())+2 || observe != (more.evidence.namespace == "") {
			t.Errorf("--observe=%t: with --probe and --evidence there are %d controllers, %v", observe, len(more.allControllers()), err)
		}
		if (len(d.allControllers()) == 2) != observe {
			t.Errorf("--observe=%t: %d controllers", observe, len(d.allControllers()))
		}
	}
}

// No method of a store gets a change through, and none is tried twice; what reads does, and so do logins.
func TestObserverStoreGuard(t *testing.T) {
	allowed := permit{func(context.Context) error { return nil }}
	changes := func(s Store) map[string]func(context.Context) error {
		some := []version{{key: "k", id: "1"}}
		return map[string]func(context.Context) error{
			"Create":     func(ctx context.Context) error { return s.Create(ctx, true) },
			"SetPolicy":  func(ctx context.Context) error { return s.SetPolicy(ctx, unlocked4d) },
			"LockPolicy": func(ctx context.Context) error { return s.LockPolicy(ctx, locked4d) },
			"Delete":     func(ctx context.Context) error { return s.Delete(ctx, allowed) },
			"remove": func(ctx context.Context) error {
				removed, err := s.remove(ctx, some)
				for _, r := range removed {
					err = errors.Join(err, r.err)
				}
				return err
			},
		}
	}
	refused := func(t *testing.T, name string, call func(context.Context) error) {
		t.Helper()
		if err := call(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	t.Run("S3", func(t *testing.T) {
		f := newFakeS3(t, false)
		f.lock = lockDocument("")
		p, err := newS3Provider(&config{observe: true}, newMetrics())
		if err != nil {
			t.Fatal(err)
		}
		clients := p.(*s3Clients)
		clients.maxBackoff, clients.awsEndpoint, clients.stsEndpoint = time.Millisecond, f.URL, f.URL
		b, err := clients.open(bucketRef{Name: "bucket", Region: "eu-west-1"}, map[string][]byte{s3KeyToken: []byte("jwt"),
			s3KeyRoleARN: []byte("arn:aws:iam::210987654321:role/backup")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantCalls(t, f, "STS.AssumeRoleWithWebIdentity", "GetObjectLockConfiguration")
		for name, call := range changes(b) {
			refused(t, name, call)
		}
		refused(t, "Put", func(ctx context.Context) error { return b.Put(ctx, "k") })
		refused(t, "setTags", func(ctx context.Context) error { return b.setTags(ctx, version{key: "k"}, nil) })
		// Hardening never fails; what it reads on the way is no harm.
		_, _ = b.Harden(t.Context())
		for _, call := range f.takeCalls() {
			if !strings.HasPrefix(call, "Get") && !strings.HasPrefix(call, "Head") && !strings.HasPrefix(call, "STS.") {
				t.Errorf("the store got %s", call)
			}
		}
	})
	t.Run("Azure", func(t *testing.T) {
		f := newFakeAzure(t)
		f.clients.transport.refuse = refuseChange
		b := f.open(f.ref())
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		for name, call := range changes(b) {
			if name != "Create" { // it is there
				refused(t, name, call)
			}
		}
		refused(t, "Keys", func(ctx context.Context) error { _, err := b.Keys(ctx); return err })
		refused(t, "RegenerateKey", func(ctx context.Context) error { _, err := b.RegenerateKey(ctx, "key1"); return err })
		objects := f.entry(locked4d)
		refused(t, "Put", func(ctx context.Context) error { return objects.Put(ctx, "k") })
		refused(t, "remove", func(ctx context.Context) error {
			removed, err := objects.remove(ctx, []version{{key: "k"}})
			for _, r := range removed {
				err = errors.Join(err, r.err)
			}
			return err
		})
		for call := range strings.FieldsSeq(f.take()) {
			if !strings.HasSuffix(call, ".GET") {
				t.Errorf("Azure got %s", call)
			}
		}
		p, err := newAzureProvider(&config{observe: true}, newMetrics())
		if err != nil || p.(*azureClients).transport.refuse == nil {
			t.Errorf("%v: a daemon with --observe does not refuse changes", err)
		}
	})
}

// With --probe canaries may be written and deleted, and nothing else.
func TestObserverGuardWithProbe(t *testing.T) {
	const canary = "/.bucketwarden/probe/canary-ABCDEFGHIJKL"
	guard := (&config{observe: true, probe: true}).refusesOfStores()
	for _, test := range []struct {
		method, address string
		refused         bool
	}{
		{"GET", "/b/x", false},
		{"PUT", canary, false},
		{"PUT", "/b" + canary + "?retention&versionId=1", false},
		{"DELETE", "/b" + canary + "?versionId=1", false},
		{"DELETE", "/account/b" + canary, false},
		{"DELETE", "/account/b/" + url.PathEscape(canary[1:]), false},
		{"DELETE", "/account%2Fb/" + url.PathEscape(canary[1:]), true},
		{"POST", "/b" + canary, true},
		{"POST", "/b?delete", true},
		{"PUT", "/b?object-lock", true},
		{"DELETE", "/b", true},
		{"PUT", "/b/.bucketwarden/probe/", true},
		{"DELETE", "/b/.bucketwarden/probe/canary-", true},
		{"DELETE", "/b/.bucketwarden/probe/x", true},
		{"PUT", "/b/.bucketwarden/evidence/x", true},
		{"PUT", "/b" + canary + "/x", true},
		{"PUT", "/b" + canary + "/../../../x", true},
		{"PUT", "/b/.." + canary, true},
		{"PUT", "//b" + canary, true},
		{"PUT", "/b/shoot/v2" + canary, true},
		{"PUT", "/b%2Fc" + canary, true},
		{"PUT", "/b/.bucketwarden%2Fprobe/canary-ABCDEFGHIJKL", true},
		{"PUT", "/b/x?" + canary, true},
	} {
		r := httptest.NewRequestWithContext(t.Context(), test.method, "https://store.example.com"+test.address, nil)
		if err := guard(r); (err != nil) != test.refused || err != nil && !errors.As(err, new(*observeError)) {
			t.Errorf("%s %s: %v", test.method, test.address, err)
		}
		if err := (&config{observe: true}).refusesOfStores()(r); (err == nil) != (test.method == "GET") {
			t.Errorf("without --probe %s %s: %v", test.method, test.address, err)
		}
	}
}

// What the SDKs make of a request for a canary gets through, and nothing else that changes something.
func TestObserverProbesWithSDKs(t *testing.T) {
	onS3, onAzure := newFakeS3(t, false), newFakeAzure(t)
	onAzure.container = true
	bucket := onS3.custom("eu-west-1")
	bucket.transport.refuse, onAzure.clients.transport.refuse = refuseButProbe, refuseButProbe
	for name, store := range map[string]Objects{"S3": bucket, "Azure": onAzure.entry(Policy{})} {
		if _, err := store.(attacker).plant(t.Context(), newCanaryKey()); err != nil {
			t.Errorf("%s: a canary: %v", name, err)
		}
		for _, key := range []string{"x", probePrefix + "x", canaryPrefix + "ABCDEFGHIJK%", "a/b/" + newCanaryKey()} {
			if err := store.Put(t.Context(), key); !errors.As(err, new(*observeError)) {
				t.Errorf("%s: %s: %v", name, key, err)
			}
		}
	}
}

// Nothing that is refused is sent again, nor taken for a store that does not answer.
func TestObserverRefusalIsFinal(t *testing.T) {
	f := newFakeS3(t, false)
	b := f.custom("eu-west-1")
	asked := 0
	b.transport.refuse = func(r *http.Request) error {
		asked++
		return refuseChange(r)
	}
	if err := b.LockPolicy(t.Context(), locked4d); !errors.As(err, new(*storeError)) || isTransient(err) {
		t.Errorf("got %v", err)
	}
	a := newFakeAzure(t)
	a.clients.transport.refuse = b.transport.refuse
	if err := a.entry(locked4d).Put(t.Context(), "k"); !errors.As(err, new(*storeError)) || isTransient(err) {
		t.Errorf("got %v", err)
	}
	if asked != 2 {
		t.Errorf("%d attempts, want one on each store", asked)
	}
}
