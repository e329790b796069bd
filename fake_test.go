package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	corefake "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// secretMarker is in every value of every secret; it must show up nowhere else.
const secretMarker = "s3cr3t-marker"

const testVerifyInterval = 10 * time.Minute

// testStart is before every pass, so that a status written then is an old one.
var testStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// harness is both reconcilers on client-go's fakes and a store in memory. It gives the
// fakes what they lack of an API server (resourceVersions with optimistic lock, deletion
// with the last finalizer, namespaces that must exist), keeps one trace of all requests
// in their order, and checks in every test what must hold in all of them.
type harness struct {
	t        *testing.T
	core     *corefake.Clientset
	dyn      *dynamicfake.FakeDynamicClient
	cloud    *memStore
	recorder *harnessRecorder
	metrics  *metrics
	scope    *scope
	buckets  *bucketReconciler
	entries  *entryReconciler
	sweeper  *sweeper
	stale    *staleness
	// frozen keeps the cache as it is, as a watch that lags.
	frozen bool

	version int
	hooks   []*harnessHook
	// interfere answers every API request in place of serve, which it may call.
	interfere func(action clienttesting.Action, serve func() (bool, runtime.Object, error)) (bool, runtime.Object, error)

	mu    sync.Mutex
	trace []string
}

// harnessHook runs before a request is served; its error is the answer.
type harnessHook struct {
	verb, resource string
	times          int
	run            func() error
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	scheme := runtime.NewScheme()
	h := &harness{
		t:    t,
		core: corefake.NewSimpleClientset(),
		dyn: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(scheme, map[schema.GroupVersionResource]string{
			bucketsGVR: kindBackupBucket + "List", entriesGVR: kindBackupEntry + "List"}),
		metrics: newMetrics(),
		scope:   &scope{classes: []string{defaultClass}},
	}
	h.recorder = &harnessRecorder{t: t}
	h.cloud = &memStore{h: h, buckets: map[string]*memBucket{}, accounts: map[string]*memAccount{}, fail: map[string]error{}}
	for fake, tracker := range map[interface {
		PrependReactor(verb, resource string, reaction clienttesting.ReactionFunc)
	}]clienttesting.ObjectTracker{h.core: h.core.Tracker(), h.dyn: h.dyn.Tracker()} {
		serve := h.serve(tracker)
		fake.PrependReactor("*", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
			if h.interfere == nil {
				return serve(action)
			}
			return h.interfere(action, func() (bool, runtime.Object, error) { return serve(action) })
		})
	}

	bucketController := newCalmController(t, resourceBackupBuckets, h.metrics)
	entryController := newCalmController(t, resourceBackupEntries, h.metrics)
	sweeps := newCalmController(t, resourceSweeps, h.metrics)
	index := func() cache.Indexer {
		return cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{indexSecret: indexBySecret})
	}
	h.scope.providers = map[string]provider{"aws": h.cloud, "s3": h.cloud, "azure": memAzure{memStore: h.cloud}}
	entryClient := &resourceClient{client: h.dyn.Resource(entriesGVR), kind: kindBackupEntry, finalizer: finalizerBackupEntry, controller: entryController}
	keys := newKeyWatch(bucketController.queue.Add)
	h.entries = &entryReconciler{reconciler{
		resource: entryClient,
		secrets:  &secrets{client: h.core, finalizer: finalizerBackupEntry},
		cached:   index(),
		scope:    h.scope, recorder: h.recorder, metrics: h.metrics, purges: &purges{}, keys: keys,
	}}
	h.buckets = &bucketReconciler{
		reconciler: reconciler{
			resource: &resourceClient{client: h.dyn.Resource(bucketsGVR), kind: kindBackupBucket, finalizer: finalizerBackupBucket, controller: bucketController},
			secrets:  &secrets{client: h.core, finalizer: finalizerBackupBucket},
			cached:   index(),
			scope:    h.scope, recorder: h.recorder, metrics: h.metrics, purges: &purges{}, keys: keys,
		},
		verifyInterval: testVerifyInterval,
		sweeps:         sweeps,
		entries:        h.entries.cached,
		entriesClient:  entryClient,
	}
	h.sweeper = newSweeper(h.buckets)
	staleBuckets := newCalmController(t, resourceStaleness, h.metrics)
	h.stale = &staleness{bucketReconciler: h.buckets, controller: staleBuckets}
	return h
}

// newCalmController is newController with a queue that does not tick: its gauges of running work stand still. A test that lets days
// go by in virtual time would do little else than tick, twice in each second.
func newCalmController(t *testing.T, resource string, m *metrics) *controller {
	c := newController(resource, m)
	c.queue.ShutDown()
	c.queue = workqueue.NewTypedRateLimitingQueueWithConfig(c.limiter,
		workqueue.TypedRateLimitingQueueConfig[cache.ObjectName]{Name: resource, MetricsProvider: m.queue, Clock: calmClock{}})
	t.Cleanup(c.queue.ShutDown)
	return c
}

// calmClock is the time, with tickers that never tick.
type calmClock struct{ clock.RealClock }

type calmTicker struct{}

func (calmClock) NewTicker(time.Duration) clock.Ticker { return calmTicker{} }

func (calmTicker) C() <-chan time.Time { return nil }

func (calmTicker) Stop() {}

func (h *harness) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trace = append(h.trace, fmt.Sprintf(format, args...))
}

// on runs f before the next requests with a verb to a resource (such as "secrets" or
// "backupbuckets/status"); f's error is the answer.
func (h *harness) on(verb, resource string, times int, f func() error) {
	h.hooks = append(h.hooks, &harnessHook{verb: verb, resource: resource, times: times, run: f})
}

// answer makes the next requests with a verb to a resource fail.
func (h *harness) answer(verb, resource string, times int, err error) {
	h.on(verb, resource, times, func() error { return err })
}

func (h *harness) nextVersion() string {
	h.version++
	return strconv.Itoa(h.version)
}

// serve is the API server.
func (h *harness) serve(tracker clienttesting.ObjectTracker) clienttesting.ReactionFunc {
	react := clienttesting.ObjectReaction(tracker)
	return func(action clienttesting.Action) (bool, runtime.Object, error) {
		h.note("%s", h.describe(action))
		resource := action.GetResource().Resource
		if sub := action.GetSubresource(); sub != "" {
			resource += "/" + sub
		}
		for _, hook := range h.hooks {
			if hook.times > 0 && hook.verb == action.GetVerb() && hook.resource == resource {
				hook.times--
				if err := hook.run(); err != nil {
					return true, nil, err
				}
			}
		}
		gvr, ns := action.GetResource(), action.GetNamespace()
		switch a := action.(type) {
		case clienttesting.CreateActionImpl:
			if err := h.checkNamespace(ns); err != nil {
				return true, nil, err
			}
			m, err := meta.Accessor(a.GetObject())
			if err != nil {
				return true, nil, err
			}
			m.SetResourceVersion(h.nextVersion())
			m.SetUID(types.UID("uid-" + m.GetResourceVersion()))
		case clienttesting.PatchActionImpl:
			obj, err := tracker.Get(gvr, ns, a.GetName())
			if err != nil {
				return true, nil, err
			}
			if err := h.checkPatch(a, obj); err != nil {
				return true, nil, err
			}
			_, obj, err = react(action)
			if err != nil {
				return true, nil, err
			}
			m, err := meta.Accessor(obj)
			if err != nil {
				return true, nil, err
			}
			m.SetResourceVersion(h.nextVersion())
			if m.GetDeletionTimestamp() != nil && len(m.GetFinalizers()) == 0 {
				return true, obj, tracker.Delete(gvr, ns, a.GetName())
			}
			return true, obj, tracker.Update(gvr, obj, ns)
		case clienttesting.DeleteActionImpl:
			obj, err := tracker.Get(gvr, ns, a.GetName())
			if err != nil {
				return true, nil, err
			}
			m, err := meta.Accessor(obj)
			if err != nil {
				return true, nil, err
			}
			if p := a.DeleteOptions.Preconditions; p != nil && (p.UID != nil && *p.UID != m.GetUID() || p.ResourceVersion != nil && *p.ResourceVersion != m.GetResourceVersion()) {
				return true, nil, apierrors.NewConflict(gvr.GroupResource(), a.GetName(), fmt.Errorf("precondition failed"))
			}
		}
		return react(action)
	}
}

func (h *harness) checkNamespace(name string) error {
	obj, err := h.core.Tracker().Get(namespaceGVR, "", name)
	if err != nil {
		return apierrors.NewNotFound(namespaceGVR.GroupResource(), name)
	}
	if obj.(*corev1.Namespace).DeletionTimestamp == nil {
		return nil
	}
	err = apierrors.NewForbidden(secretsGVR.GroupResource(), "x", fmt.Errorf("unable to create new content in namespace %s because it is being terminated", name))
	status := err.(*apierrors.StatusError)
	status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
	return status
}

// checkPatch is the optimistic lock, and what holds for every patch that we send.
func (h *harness) checkPatch(a clienttesting.PatchActionImpl, stored runtime.Object) error {
	h.t.Helper()
	m, err := meta.Accessor(stored)
	if err != nil {
		return err
	}
	var patch map[string]any
	if err := json.Unmarshal(a.GetPatch(), &patch); err != nil {
		h.t.Errorf("a patch of %s is no JSON: %v", a.GetName(), err)
	}
	metadata, _ := patch["metadata"].(map[string]any)
	for key, have := range map[string]string{"resourceVersion": m.GetResourceVersion(), "uid": string(m.GetUID())} {
		if want, ok := metadata[key]; ok && want != have {
			return apierrors.NewConflict(a.GetResource().GroupResource(), a.GetName(), fmt.Errorf("%s is %s, not %v", key, have, want))
		}
	}
	if a.GetResource().Group != extensionsGV.Group {
		// Adding to a list needs no lock, replacing one does.
		if _, locked := metadata["resourceVersion"]; !locked && a.GetResource().Resource != "configmaps" && a.GetPatchType() != types.StrategicMergePatchType {
			h.t.Errorf("a patch of secret %s has no optimistic lock", a.GetName())
		}
		return nil
	}
	if a.GetPatchType() != types.MergePatchType {
		h.t.Errorf("%s of %s: a custom resource knows no other than a merge patch", a.GetPatchType(), a.GetName())
	}
	if strings.Contains(string(a.GetPatch()), secretMarker) {
		h.t.Errorf("a patch of %s shows a secret: %s", a.GetName(), a.GetPatch())
	}
	allowed := "metadata"
	if a.GetSubresource() == "status" {
		allowed = "status"
	}
	for key := range patch {
		if lock := key == "metadata" && len(metadata) == 1 && metadata["resourceVersion"] != nil; key != allowed && !lock {
			h.t.Errorf("a patch of %s %q touches %s", a.GetName(), a.GetSubresource(), key)
		}
	}
	for key := range metadata {
		if !slices.Contains([]string{"annotations", "finalizers", "resourceVersion", "uid"}, key) {
			h.t.Errorf("a patch of %s touches metadata.%s", a.GetName(), key)
		}
	}
	annotations, _ := metadata["annotations"].(map[string]any)
	for key, value := range annotations {
		if key != annotationSecret && (key != annotationOperation && key != annotationRotate || value != nil) {
			h.t.Errorf("a patch of %s touches the annotation %s", a.GetName(), key)
		}
	}
	status, _ := patch["status"].(map[string]any)
	for key := range status {
		if !slices.Contains([]string{"lastOperation", "lastError", "observedGeneration", "conditions", "providerStatus", "generatedSecretRef"}, key) {
			h.t.Errorf("a patch of %s touches status.%s", a.GetName(), key)
		}
	}
	if _, ok := status["lastOperation"]; ok || status["lastError"] != nil {
		last, _ := status["lastOperation"].(map[string]any)
		for _, key := range []string{"description", "lastUpdateTime", "progress", "state", "type"} {
			if value := last[key]; value == nil || value == "" {
				h.t.Errorf("a patch of %s has no lastOperation.%s, which its CRD requires", a.GetName(), key)
			}
		}
	}
	return nil
}

// describe is a request as a line of the trace.
func (h *harness) describe(action clienttesting.Action) string {
	resource := action.GetResource().Resource
	target := resource
	if ns := action.GetNamespace(); ns != "" {
		target += " " + ns
	}
	switch a := action.(type) {
	case clienttesting.GetActionImpl:
		return "get " + join(target, a.GetName())
	case clienttesting.DeleteActionImpl:
		return "delete " + join(target, a.GetName())
	case clienttesting.CreateActionImpl:
		m, err := meta.Accessor(a.GetObject())
		if err != nil {
			h.t.Fatal(err)
		}
		return "create " + join(target, m.GetName())
	case clienttesting.PatchActionImpl:
		var patch struct {
			Metadata map[string]any
			Status   map[string]any
			Data     map[string]any
		}
		if err := json.Unmarshal(a.GetPatch(), &patch); err != nil {
			h.t.Errorf("a patch of %s is no JSON: %v", a.GetName(), err)
		}
		if a.GetSubresource() == "status" {
			last, _ := patch.Status["lastOperation"].(map[string]any)
			for _, key := range []string{"lastOperation", "lastError", "observedGeneration"} {
				delete(patch.Status, key)
			}
			line := fmt.Sprintf("status %s %v %v", join(resource, a.GetName()), last["type"], last["state"])
			for _, key := range slices.Sorted(maps.Keys(patch.Status)) {
				line += " +" + key
			}
			return line
		}
		delete(patch.Metadata, "resourceVersion")
		delete(patch.Metadata, "uid")
		// Which secret is held is noted by the way.
		if annotations, ok := patch.Metadata["annotations"].(map[string]any); ok && annotations[annotationSecret] != nil {
			if delete(annotations, annotationSecret); len(annotations) == 0 {
				delete(patch.Metadata, "annotations")
			}
		}
		keys := slices.Sorted(maps.Keys(patch.Metadata))
		if patch.Data != nil {
			keys = append(keys, "data")
		}
		return fmt.Sprintf("patch %s %s", join(target, a.GetName()), strings.Join(keys, ","))
	}
	return action.GetVerb() + " " + target
}

// join writes "resource name" or "resource namespace/name".
func join(target, name string) string {
	if strings.Contains(target, " ") {
		return target + "/" + name
	}
	return target + " " + name
}

// put stores an object as a client would have.
func (h *harness) put(gvr schema.GroupVersionResource, obj runtime.Object) {
	h.t.Helper()
	m, err := meta.Accessor(obj)
	if err != nil {
		h.t.Fatal(err)
	}
	m.SetResourceVersion(h.nextVersion())
	if m.GetUID() == "" {
		m.SetUID(types.UID("uid-" + m.GetResourceVersion()))
	}
	tracker := h.core.Tracker()
	if gvr.Group == extensionsGV.Group {
		tracker = h.dyn.Tracker()
	}
	if err := tracker.Create(gvr, obj, m.GetNamespace()); err != nil {
		h.t.Fatal(err)
	}
}

// get reads a custom resource without a request; nil if it is gone.
func (h *harness) get(gvr schema.GroupVersionResource, name string) *unstructured.Unstructured {
	h.t.Helper()
	obj, err := h.dyn.Tracker().Get(gvr, "", name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return obj.(*unstructured.Unstructured).DeepCopy()
}

// edit changes a custom resource as another client would.
func (h *harness) edit(gvr schema.GroupVersionResource, name string, change func(*unstructured.Unstructured)) {
	h.t.Helper()
	u := h.get(gvr, name)
	spec := fmt.Sprint(u.Object["spec"])
	change(u)
	if fmt.Sprint(u.Object["spec"]) != spec {
		u.SetGeneration(u.GetGeneration() + 1)
	}
	u.SetResourceVersion(h.nextVersion())
	if err := h.dyn.Tracker().Update(gvr, u, ""); err != nil {
		h.t.Fatal(err)
	}
}

// secret reads a secret without a request; nil if it is gone.
func (h *harness) secret(namespace, name string) *corev1.Secret {
	h.t.Helper()
	obj, err := h.core.Tracker().Get(secretsGVR, namespace, name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return obj.(*corev1.Secret).DeepCopy()
}

func (h *harness) editSecret(namespace, name string, change func(*corev1.Secret)) {
	h.t.Helper()
	secret := h.secret(namespace, name)
	change(secret)
	secret.ResourceVersion = h.nextVersion()
	if err := h.core.Tracker().Update(secretsGVR, secret, namespace); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) deleteSecret(namespace, name string) {
	h.t.Helper()
	if err := h.core.Tracker().Delete(secretsGVR, namespace, name); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) putNamespace(name string, terminating bool) {
	h.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if terminating {
		now := metav1.NewTime(testStart)
		ns.DeletionTimestamp, ns.Finalizers = &now, []string{"kubernetes"}
	}
	h.put(namespaceGVR, ns)
}

// staticCredentials are the data of a secret with access keys.
func staticCredentials() map[string][]byte {
	return map[string][]byte{
		"accessKeyID":     []byte(secretMarker + "-id"),
		"secretAccessKey": []byte(secretMarker + "-key"),
	}
}

func (h *harness) putSecret(namespace, name string, data map[string][]byte, finalizers ...string) {
	h.t.Helper()
	h.put(secretsGVR, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Finalizers: finalizers}, Type: corev1.SecretTypeOpaque, Data: data})
}

// sync brings the caches up to date.
func (h *harness) sync() {
	h.t.Helper()
	if h.frozen {
		return
	}
	fill := func(gvr schema.GroupVersionResource, kind string, indexer cache.Indexer, decode func(*unstructured.Unstructured) any) {
		list, err := h.dyn.Tracker().List(gvr, extensionsGV.WithKind(kind), "")
		if err != nil {
			h.t.Fatal(err)
		}
		var objects []any
		for _, u := range list.(*unstructured.UnstructuredList).Items {
			objects = append(objects, decode(&u))
		}
		if err := indexer.Replace(objects, ""); err != nil {
			h.t.Fatal(err)
		}
	}
	fill(bucketsGVR, kindBackupBucket, h.buckets.cached, func(u *unstructured.Unstructured) any { return decodeBucket(u) })
	fill(entriesGVR, kindBackupEntry, h.entries.cached, func(u *unstructured.Unstructured) any { return decodeEntry(u) })
}

// pass makes one pass with a fresh cache; afterwards the trace, the events and the
// requests are those of this pass alone.
func (h *harness) pass(ctx context.Context, reconcile reconcileFunc, name string, wanted bool) (time.Duration, error) {
	h.t.Helper()
	h.sync()
	cached := append(h.buckets.cached.List(), h.entries.cached.List()...)
	before := harnessJSON(h.t, cached)
	h.trace, h.recorder.events = nil, nil
	h.core.ClearActions()
	h.dyn.ClearActions()
	if passOf(ctx) == nil {
		ctx = context.WithValue(ctx, passContext{}, &pass{})
	}
	wait, err := reconcile(klog.NewContext(ctx, klog.New(harnessLogs{h.t})), cache.ObjectName{Name: name}, wanted)
	if after := harnessJSON(h.t, cached); after != before {
		h.t.Errorf("the pass changed the cache from\n%s\nto\n%s", before, after)
	}
	if err != nil && strings.Contains(err.Error(), secretMarker) {
		h.t.Errorf("the error shows a secret: %v", err)
	}
	return wait, err
}

func harnessJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// passBucket makes one pass over a BackupBucket, passEntry over a BackupEntry.
func (h *harness) passBucket(name string) (time.Duration, error) {
	h.t.Helper()
	return h.pass(h.t.Context(), h.buckets.reconcile, name, false)
}

func (h *harness) passEntry(name string) (time.Duration, error) {
	h.t.Helper()
	return h.pass(h.t.Context(), h.entries.reconcile, name, false)
}

// passSweep makes one sweep of bucket b.
func (h *harness) passSweep() (time.Duration, error) {
	h.t.Helper()
	return h.pass(h.t.Context(), h.sweeper.reconcile, "b", false)
}

// passStale looks whether what is known of bucket b is too old.
func (h *harness) passStale() (time.Duration, error) {
	h.t.Helper()
	return h.pass(h.t.Context(), h.stale.reconcile, "b", false)
}

// has says that there is a series, given as name and label values.
func (h *harness) has(name string, labels ...string) bool {
	h.t.Helper()
	families, err := h.metrics.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var have []string
			for _, pair := range m.GetLabel() {
				have = append(have, pair.GetValue())
			}
			if family.GetName() == name && slices.Equal(have, labels) {
				return true
			}
		}
	}
	return false
}

// deletionDue is when the deletion of bucket b, which waits, goes on.
func (h *harness) deletionDue() time.Duration {
	return h.buckets.resource.controller.notDue(cache.ObjectName{Name: "b"}, time.Now())
}

// requests is how many API requests the last pass made.
func (h *harness) requests() int { return len(h.core.Actions()) + len(h.dyn.Actions()) }

// storeCalls are the store's lines of the trace.
func (h *harness) storeCalls() []string {
	return slices.DeleteFunc(slices.Clone(h.trace), func(line string) bool { return !strings.HasPrefix(line, "store ") })
}

// storeChanges are the store's lines of the trace that change something.
func (h *harness) storeChanges() []string {
	return slices.DeleteFunc(h.storeCalls(), func(line string) bool { return strings.HasSuffix(line, " Observe") })
}

func (h *harness) wantTrace(want ...string) {
	h.t.Helper()
	if !slices.Equal(h.trace, want) {
		h.t.Errorf("the pass did\n\t%s\nwant\n\t%s", strings.Join(h.trace, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func (h *harness) wantNothing() {
	h.t.Helper()
	h.wantTrace()
	if n := h.requests(); n != 0 {
		h.t.Errorf("%d API requests, want none", n)
	}
}

func (h *harness) wantEvents(reasons ...string) {
	h.t.Helper()
	var got []string
	for _, e := range h.recorder.events {
		got = append(got, e.reason)
	}
	if !slices.Equal(got, reasons) {
		h.t.Errorf("events %v, want %v", got, reasons)
	}
}

// harnessStatus is what of a status most tests look at.
type harnessStatus struct {
	Type, State string
	Progress    int64
	Description string
	Error       string
	Codes       []string
	Observed    int64
}

func (h *harness) status(gvr schema.GroupVersionResource, name string) harnessStatus {
	h.t.Helper()
	u := h.get(gvr, name)
	if u == nil {
		h.t.Fatalf("%s is gone", name)
	}
	str := func(path ...string) string {
		s, _, _ := unstructured.NestedString(u.Object, append([]string{"status"}, path...)...)
		return s
	}
	s := harnessStatus{Type: str("lastOperation", "type"), State: str("lastOperation", "state"),
		Description: str("lastOperation", "description"), Error: str("lastError", "description")}
	s.Progress, _, _ = unstructured.NestedInt64(u.Object, "status", "lastOperation", "progress")
	s.Observed, _, _ = unstructured.NestedInt64(u.Object, "status", "observedGeneration")
	s.Codes, _, _ = unstructured.NestedStringSlice(u.Object, "status", "lastError", "codes")
	return s
}

// wantStatus checks the whole status contract of a state.
func (h *harness) wantStatus(gvr schema.GroupVersionResource, name string, opType operationType, state operationState, codes ...errorCode) harnessStatus {
	h.t.Helper()
	s := h.status(gvr, name)
	if s.Type != string(opType) || s.State != string(state) || s.Progress != progress[state] {
		h.t.Errorf("%s is %s %s %d%%, want %s %s %d%%: %s", name, s.Type, s.State, s.Progress, opType, state, progress[state], s.Description)
	}
	var got []errorCode
	for _, code := range s.Codes {
		got = append(got, errorCode(code))
	}
	if !slices.Equal(got, codes) {
		h.t.Errorf("%s has codes %v, want %v", name, got, codes)
	}
	switch generation := h.get(gvr, name).GetGeneration(); state {
	case stateError:
		if s.Error != s.Description || s.Observed != generation {
			h.t.Errorf("%s: lastError %q, lastOperation %q, observedGeneration %d of %d", name, s.Error, s.Description, s.Observed, generation)
		}
	case stateSucceeded:
		if s.Error != "" || s.Observed != generation {
			h.t.Errorf("%s: lastError %q, observedGeneration %d of %d", name, s.Error, s.Observed, generation)
		}
	}
	return s
}

// metric is the value of a series, given as name and label values; 0 if there is none.
func (h *harness) metric(name string, labels ...string) float64 {
	h.t.Helper()
	families, err := h.metrics.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var have []string
			for _, pair := range m.GetLabel() {
				have = append(have, pair.GetValue())
			}
			if slices.Equal(have, labels) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func (h *harness) wantMetric(want float64, name string, labels ...string) {
	h.t.Helper()
	if got := h.metric(name, labels...); got != want {
		h.t.Errorf("%s%v is %v, want %v", name, labels, got, want)
	}
}

// harnessRecorder keeps events.
type harnessRecorder struct {
	t      *testing.T
	events []harnessEvent
}

type harnessEvent struct {
	eventType, reason, note string
}

// Eventf implements events.EventRecorder.
func (r *harnessRecorder) Eventf(regarding, _ runtime.Object, eventType, reason, action, note string, args ...any) {
	text := fmt.Sprintf(note, args...)
	if strings.Contains(text, secretMarker) {
		r.t.Errorf("an event shows a secret: %s", text)
	}
	if len(text) > maxEventNote || action == "" || reason == "" || regarding.GetObjectKind().GroupVersionKind().Empty() {
		r.t.Errorf("the API server refuses the event %s of %v: %s", reason, regarding.GetObjectKind().GroupVersionKind(), text)
	}
	r.events = append(r.events, harnessEvent{eventType: eventType, reason: reason, note: text})
}

// harnessLogs are all logs at all verbosities; it looks for secrets in them.
type harnessLogs struct{ t *testing.T }

func (l harnessLogs) check(args ...any) {
	if text := fmt.Sprintf("%+v", args); strings.Contains(text, secretMarker) {
		l.t.Errorf("a log shows a secret: %s", text)
	}
}

func (l harnessLogs) Init(klog.RuntimeInfo)                    {}
func (l harnessLogs) Enabled(int) bool                         { return true }
func (l harnessLogs) Info(_ int, msg string, args ...any)      { l.check(msg, args) }
func (l harnessLogs) Error(err error, msg string, args ...any) { l.check(err, msg, args) }
func (l harnessLogs) WithValues(args ...any) klog.LogSink      { l.check(args); return l }
func (l harnessLogs) WithName(string) klog.LogSink             { return l }

// memStore is an object store in memory.
type memStore struct {
	pureS3
	h        *harness
	buckets  map[string]*memBucket
	accounts map[string]*memAccount
	// opened is what the bucket was opened with last.
	opened bucketRef
	// failLate: RegenerateKey fails after it has regenerated the key.
	failLate bool
	// undated: it does not know when a key was created.
	undated bool
	// generation counts regenerated keys.
	generation int
	// fail makes a method fail, by its name.
	fail map[string]error
	// gaps is what Harden answers; hardening is called before.
	gaps      []string
	hardening func()
	// locked is called after each LockPolicy.
	locked func()
	// atOnce: it locks in one step.
	atOnce bool
	// ignoresPolicy: it takes policies and does not keep them.
	ignoresPolicy bool
	// offset is how much the store's clock is ahead of ours.
	offset time.Duration
	// lag is how many reads of a changed policy still see the old one.
	lag int
	// purgeLimit is how many objects are deleted before afterPurge is called, whose error is
	// that of the next one; 0 is no limit. removed counts them.
	purgeLimit, removed int
	afterPurge          func() error
	// batch is how many objects are listed and deleted at once, 1000 if it is 0. listed is
	// called before each batch, deleting before each object of it.
	batch    int
	listed   func()
	deleting func(key string)
	// beforePut is called before each Put. failPut counts the Puts until one fails, if it
	// is not 0.
	beforePut func()
	failPut   int
	// garbles: what is stored is not what was written.
	garbles bool
	// timeless: its answers have no Date.
	timeless bool
}

type memBucket struct {
	region  string
	state   BucketState
	objects map[string]memObject
	// read says that the policy was observed since it was set.
	read bool
	// before is the old policy, which the next lag reads see.
	before Policy
	lag    int
}

type memObject struct {
	size    int64
	created time.Time
	// until is when the retention ends.
	until time.Time
	held  bool
	// behind is the key of an object that hides this one from a Purge.
	behind  string
	content []byte
}

// put makes a bucket with a policy.
func (s *memStore) put(name string, p Policy) *memBucket {
	b := &memBucket{region: "eu-1", state: BucketState{Exists: true, Policy: p}, objects: map[string]memObject{}}
	s.buckets[name] = b
	return b
}

// openStore implements provider.
func (s *memStore) openStore(ref bucketRef, credentials map[string][]byte) (Store, error) {
	if err := checkS3Credentials(credentials); err != nil {
		return nil, err
	}
	return s.client(ref)
}

// openObjects implements provider.
func (s *memStore) openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error) {
	if err := checkS3Credentials(credentials); err != nil {
		return nil, err
	}
	return s.client(ref)
}

func (s *memStore) client(ref bucketRef) (*memClient, error) {
	s.opened = ref
	if err := s.fail["open"]; err != nil {
		return nil, err
	}
	if ref.Name == "" {
		return nil, &storeError{code: codeConfigurationProblem, err: fmt.Errorf("the store allows no such name: %w", errNotOurBucket)}
	}
	return &memClient{memStore: s, ref: ref}, nil
}

// memAzure is a memStore whose buckets lie in accounts.
type memAzure struct {
	*memStore
	pureAzure
}

// pureS3 and pureAzure have what needs no client, one level deeper than what a fake has of its own.
type (
	pureS3    struct{ *s3Clients }
	pureAzure struct{ *azureClients }
)

// testProviders serves types on stores that are never opened: S3, but Azure for azure.
func testProviders(types ...string) map[string]provider {
	providers := map[string]provider{}
	for _, name := range types {
		providers[name] = &s3Clients{}
		if name == "azure" {
			providers[name] = &azureClients{}
		}
	}
	return providers
}

// openStore implements provider.
func (s memAzure) openStore(ref bucketRef, credentials map[string][]byte) (Store, error) {
	if len(credentials["clientSecret"]) == 0 {
		return nil, configErrorf("the credentials secret lacks clientSecret")
	}
	client, err := s.client(ref)
	return &memAccountClient{client}, err
}

// openObjects implements provider.
func (s memAzure) openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error) {
	if len(credentials[dataKeyStorageKey]) == 0 {
		return nil, configErrorf("the credentials secret lacks %s", dataKeyStorageKey)
	}
	return s.client(ref)
}

// memAccount is what a bucket of memAzure lies in.
type memAccount struct {
	keys  []accessKey
	group memGroup
}

type memGroup int

const (
	groupExists memGroup = iota
	groupDeleting
	groupKept
)

// memAccountClient is the accountStore of one bucket.
type memAccountClient struct{ *memClient }

func (c *memAccountClient) account() *memAccount {
	a := c.accounts[c.ref.Name]
	if a == nil {
		c.h.t.Fatalf("bucket %s has no account", c.ref.Name)
	}
	return a
}

func (c *memAccountClient) Observe(ctx context.Context) (BucketState, error) {
	state, err := c.memClient.Observe(ctx)
	state.Remains = !state.Exists && c.accounts[c.ref.Name] != nil
	return state, err
}

func (c *memAccountClient) Create(ctx context.Context, immutable bool) error {
	err := c.memClient.Create(ctx, immutable)
	if err == nil && c.accounts[c.ref.Name] == nil {
		c.putAccount(c.ref.Name)
	}
	return err
}

// Values of the keys of a new account.
const (
	memKey1 = secretMarker + "-key1-1"
	memKey2 = secretMarker + "-key2-1"
)

// putAccount makes an account with two keys of the same age.
func (s *memStore) putAccount(bucket string) *memAccount {
	a := &memAccount{keys: []accessKey{{Name: "key1", Value: memKey1, Created: testStart}, {Name: "key2", Value: memKey2, Created: testStart}}}
	s.accounts[bucket] = a
	return a
}

func (c *memAccountClient) Keys(context.Context) ([]accessKey, error) {
	if err := c.call("Keys", ""); err != nil {
		return nil, err
	}
	return slices.Clone(c.account().keys), nil
}

func (c *memAccountClient) RegenerateKey(_ context.Context, name string) ([]accessKey, error) {
	err := c.call("RegenerateKey", name)
	if err != nil && !c.failLate {
		return nil, err
	}
	a := c.account()
	i := slices.IndexFunc(a.keys, func(k accessKey) bool { return k.Name == name })
	if i < 0 {
		c.h.t.Fatalf("RegenerateKey of %q", name)
	}
	c.generation++
	a.keys[i].Value = fmt.Sprintf("%s-%s-new%d", secretMarker, name, c.generation)
	a.keys[i].Created = time.Now().Add(time.Duration(c.generation) * time.Millisecond)
	if c.undated {
		a.keys[i].Created = time.Time{}
	}
	return slices.Clone(a.keys), err
}

func (c *memAccountClient) EntryCredentials(key accessKey) map[string][]byte {
	account := c.ref.Account
	if account == "" {
		account = "derived"
	}
	return map[string][]byte{dataKeyStorageAccount: []byte(account), dataKeyStorageKey: []byte(key.Value), dataKeyDomain: []byte("blob.example.com")}
}

func (c *memAccountClient) DeleteAccount(ctx context.Context, leave permit, _ bool) (AccountState, error) {
	if err := c.call("DeleteAccount", ""); err != nil {
		return AccountState{}, err
	}
	if c.buckets[c.ref.Name] != nil {
		c.h.t.Errorf("DeleteAccount of bucket %s, which exists", c.ref.Name)
	}
	a := c.accounts[c.ref.Name]
	switch {
	case a == nil:
		return AccountState{}, nil
	case a.group == groupKept:
		return AccountState{Kept: "the resource group holds something else."}, nil
	case a.group == groupDeleting:
		return AccountState{Deleting: true}, nil
	}
	a.group = groupDeleting
	return AccountState{Started: true}, nil
}

// memClient is the Store of one bucket.
type memClient struct {
	*memStore
	ref bucketRef
}

func (c *memClient) call(method, argument string) error {
	line := "store " + c.ref.Name + " " + method
	if argument != "" {
		line += " " + argument
	}
	c.h.note("%s", line)
	return c.fail[method]
}

func (c *memClient) existing(method string) *memBucket {
	b := c.buckets[c.ref.Name]
	if b == nil {
		c.h.t.Fatalf("%s of bucket %s, which does not exist", method, c.ref.Name)
	}
	return b
}

func (c *memClient) Observe(ctx context.Context) (BucketState, error) {
	if err := c.call("Observe", ""); err != nil {
		return BucketState{}, err
	}
	date := c.now().UTC().Format(http.TimeFormat)
	if c.timeless {
		date = ""
	}
	passOf(ctx).hear(date)
	b := c.buckets[c.ref.Name]
	if b == nil {
		return BucketState{}, nil
	}
	if b.lag > 0 {
		b.lag--
		state := b.state
		state.Policy = b.before
		return state, nil
	}
	b.read = true
	return b.state, nil
}

func (c *memClient) Create(_ context.Context, immutable bool) error {
	argument := ""
	if immutable {
		argument = "immutable"
	}
	if err := c.call("Create", argument); err != nil {
		return err
	}
	b := c.put(c.ref.Name, Policy{})
	b.region = c.ref.Region
	return nil
}

func (c *memClient) Harden(context.Context) ([]string, error) {
	c.existing("Harden")
	if c.hardening != nil {
		c.hardening()
	}
	return c.gaps, c.call("Harden", "")
}

func (c *memClient) SetPolicy(_ context.Context, p Policy) error {
	if err := c.call("SetPolicy", p.String()); err != nil {
		return err
	}
	b := c.existing("SetPolicy")
	if b.state.Policy.Locked || p.Locked {
		c.h.t.Errorf("SetPolicy of %v over %v", p, b.state.Policy)
	}
	c.apply(b, p)
	return nil
}

func (c *memClient) LockPolicy(_ context.Context, p Policy) error {
	if err := c.call("LockPolicy", p.String()); err != nil {
		return err
	}
	b := c.existing("LockPolicy")
	if !b.read || !p.Locked || p.weakerThan(b.state.Policy) {
		c.h.t.Errorf("LockPolicy of %v over %v, read back: %t", p, b.state.Policy, b.read)
	}
	if left := b.state.Extensions; left != nil && b.state.Policy.Locked {
		if *left == 0 {
			c.h.t.Error("LockPolicy once more than the store allows")
		}
		less := *left - 1
		b.state.Extensions = &less
	}
	c.apply(b, p)
	if c.locked != nil {
		c.locked()
	}
	return nil
}

func (c *memClient) apply(b *memBucket, p Policy) {
	b.read, b.before, b.lag = false, b.state.Policy, c.lag
	if !c.ignoresPolicy {
		b.state.Policy, b.state.Appends, b.state.Years = p, false, false
	}
}

// now is the store's time.
func (s *memStore) now() time.Time { return time.Now().Add(s.offset) }

// Put implements Objects; objects are retained by the bucket's policy.
func (c *memClient) Put(_ context.Context, key string) error {
	if err := c.call("Put", key); err != nil {
		return err
	}
	if c.failPut > 0 {
		if c.failPut--; c.failPut == 0 {
			return unavailable
		}
	}
	if c.beforePut != nil {
		c.beforePut()
	}
	b := c.existing("Put")
	if _, exists := b.objects[key]; exists {
		c.h.t.Errorf("Put overwrites %s", key)
	}
	created := c.now().Truncate(time.Second)
	o := memObject{created: created}
	if p := b.state.Policy; !p.None() {
		o.until = p.until(created)
	}
	b.objects[key] = o
	return nil
}

// write implements writer.
func (c *memClient) write(ctx context.Context, key string, content []byte) error {
	if err := c.Put(ctx, key); err != nil {
		return err
	}
	o := c.buckets[c.ref.Name].objects[key]
	o.content, o.size = slices.Clone(content), int64(len(content))
	if c.garbles {
		o.content[0] ^= 1
	}
	c.buckets[c.ref.Name].objects[key] = o
	return c.fail["written"]
}

// open implements reader.
func (c *memClient) open(_ context.Context, v version) (io.ReadCloser, error) {
	if err := c.call("Open", v.key); err != nil {
		return nil, err
	}
	o, ok := c.existing("Open").objects[v.key]
	if !ok {
		return nil, &storeError{err: errNoVersion}
	}
	return io.NopCloser(bytes.NewReader(o.content)), nil
}

// pages implements versions. A list of marks is traced as List, all others as Purge.
func (c *memClient) pages(_ context.Context, prefix string, _ cursor) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		method := "Purge"
		if strings.HasPrefix(prefix, tombstonePrefix) && strings.HasSuffix(prefix, "/") {
			method = "List"
		}
		if err := c.call(method, strconv.Quote(prefix)); err != nil {
			yield(page{}, err)
			return
		}
		b := c.buckets[c.ref.Name]
		if b == nil {
			return
		}
		var all []version
		for _, key := range slices.Sorted(maps.Keys(b.objects)) {
			o := b.objects[key]
			if _, hidden := b.objects[o.behind]; !hidden && strings.HasPrefix(key, prefix) {
				all = append(all, version{key: key, size: o.size, created: o.created, until: o.until, held: o.held})
			}
		}
		now, deletes := c.now(), method == "Purge"
		for batch := range slices.Chunk(all, cmp.Or(c.batch, 1000)) {
			if deletes && c.listed != nil {
				c.listed()
			}
			if !yield(page{now: now, versions: batch, next: cursor{key: batch[len(batch)-1].key}}, nil) {
				return
			}
		}
		yield(page{now: now}, nil)
	}
}

// remove implements versions.
func (c *memClient) remove(_ context.Context, batch []version) ([]removal, error) {
	if err := c.fail["batch"]; err != nil {
		return nil, err
	}
	answers := make([]removal, len(batch))
	b := c.existing("remove")
	for i, v := range batch {
		if c.purgeLimit > 0 && c.removed == c.purgeLimit {
			answers[i].err = c.afterPurge()
			continue
		}
		answers[i].outcome = removalGone
		if _, exists := b.objects[v.key]; exists {
			if c.deleting != nil {
				c.deleting(v.key)
			}
			delete(b.objects, v.key)
			c.removed++
		}
	}
	return answers, nil
}

// until implements versions: the list tells all.
func (c *memClient) until(context.Context, version) (time.Time, error) { return time.Time{}, nil }

// traits implements versions.
func (c *memClient) endpoint() endpointRef { return endpointRef{"mem", c.ref.Name} }

func (c *memClient) traits() traits {
	return traits{batch: cmp.Or(c.batch, 1000), serial: true, locksAtOnce: c.atOnce, backoff: func(int) time.Duration { return 0 }}
}

func (c *memClient) Delete(ctx context.Context, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	if err := c.call("Delete", ""); err != nil {
		return err
	}
	if b := c.buckets[c.ref.Name]; b != nil && len(b.objects) > 0 {
		return &storeError{err: fmt.Errorf("deleting bucket %s: %w", c.ref.Name, errBucketNotEmpty)}
	}
	delete(c.buckets, c.ref.Name)
	return nil
}
