package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/dynamicinformer"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
)

// checkHarness is a harness with the checks of backups, on a list in memory.
type checkHarness struct {
	*harness
	checker  *entryChecker
	objects  *checkObjects
	clusters *dynamicfake.FakeDynamicClient
	// opened is what the objects were opened with last, openErr the answer.
	opened  bucketRef
	openErr error
}

// checkObjects are the objects of a check, whose retention has to be asked for.
type checkObjects struct {
	*taggedVersions
	versions []version
	// locked and held are the answers about a key, failing that about all.
	locked  map[string]time.Time
	held    map[string]bool
	lockErr error
	locks   []string
}

func (o *checkObjects) Put(context.Context, string) error { return errors.New("a check writes") }

func (o *checkObjects) remove(context.Context, []version) ([]removal, error) {
	return nil, errors.New("a check removes")
}

func (o *checkObjects) lock(_ context.Context, v version) (versionLock, error) {
	o.locks = append(o.locks, v.key)
	until, ok := o.locked[v.key]
	if !ok {
		until = o.locked["*"]
	}
	return versionLock{until: until, held: o.held[v.key]}, o.lockErr
}

// plainObjects are without lockReader, as Azure's.
type plainObjects struct{ Objects }

// checkProvider is a memStore whose objects are another's.
type checkProvider struct {
	*memStore
	h *checkHarness
}

func (p *checkProvider) openObjects(ref bucketRef, _ map[string][]byte) (Objects, error) {
	p.h.opened = ref
	if p.h.openErr != nil {
		return nil, p.h.openErr
	}
	return p.h.objects, nil
}

func newCheckHarness(t *testing.T) *checkHarness {
	t.Helper()
	h := &checkHarness{harness: newHarness(t)}
	h.clusters = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{clustersGVR: "ClusterList"})
	store := &checkProvider{memStore: h.cloud, h: h}
	h.scope.providers = map[string]provider{"aws": store, "s3": store}
	checks := newCalmController(t, resourceChecks, h.metrics)
	h.checker = newEntryChecker(h.entries.reconciler, checks, h.clusters.Resource(clustersGVR), h.metrics.entries)
	checks.onGone = h.metrics.entries.forget
	h.have()
	return h
}

// have is what lies in the bucket from now on.
func (h *checkHarness) have(versions ...version) {
	slices.SortStableFunc(versions, func(v, w version) int { return strings.Compare(v.key, w.key) })
	mem := newMemVersions(len(versions), func(i int) version { return versions[i] })
	old := h.objects
	h.objects = &checkObjects{taggedVersions: &taggedVersions{memVersions: mem, set: map[string]map[string]string{}}, versions: versions}
	if old != nil {
		h.objects.locked, h.objects.held, h.objects.set = old.locked, old.held, old.set
	}
	if h.objects.locked == nil {
		h.objects.locked, h.objects.held = map[string]time.Time{}, map[string]bool{}
	}
}

// snap is a snapshot of the test's entry that was taken some time ago.
func (h *checkHarness) snap(kind string, first, last int64, ago time.Duration) version {
	at := time.Now().Add(-ago).Truncate(time.Second)
	return version{key: fmt.Sprintf("%s/%s/v2/%s-%08d-%08d-%d.gz", testEntry, etcdName, kind, first, last, at.Unix()), id: "1", size: 10, created: at}
}

// check makes a look.
func (h *checkHarness) check() (time.Duration, error) {
	h.t.Helper()
	return h.pass(h.t.Context(), h.checker.reconcile, testEntry, false)
}

func (h *checkHarness) mustCheck() {
	h.t.Helper()
	if _, err := h.check(); err != nil {
		h.t.Fatal(err)
	}
}

// entryMetrics are the metrics of the test's entry, by the end of their names; times are rounded to how many minutes ago.
func (h *checkHarness) entryMetrics() map[string]float64 {
	h.t.Helper()
	found := map[string]float64{}
	families, err := h.metrics.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, family := range families {
		name, ok := strings.CutPrefix(family.GetName(), entryMetricPrefix)
		if !ok {
			continue
		}
		for _, m := range family.GetMetric() {
			value := m.GetGauge().GetValue()
			if strings.HasSuffix(name, "_timestamp_seconds") && value > 0 && !math.IsInf(value, 1) {
				value = math.Round((float64(time.Now().Unix()) - value) / 60)
			}
			found[name] = value
		}
	}
	return found
}

func (h *checkHarness) wantEntryMetrics(want map[string]float64) {
	h.t.Helper()
	if got := h.entryMetrics(); !maps.Equal(got, want) {
		h.t.Errorf("metrics\n\t%v, want\n\t%v", got, want)
	}
}

func lockedEntry(u *unstructured.Unstructured) {
	set(map[string]any{"apiVersion": "aws.provider.extensions.gardener.cloud/v1alpha1", "kind": bucketStatusKind, "immutability": map[string]any{
		"retentionType": "bucket", "retentionPeriod": "96h", "mode": modeCompliance}}, "spec", "backupBucketProviderStatus")(u)
}

// A look takes one read of the secret and one list, and writes nothing.
func TestEntryCheck(t *testing.T) {
	h := newCheckHarness(t)
	h.putEntry(testEntry, true)
	h.have(h.snap(snapshotFull, 0, 100, 50*time.Minute), h.snap(snapshotDelta, 101, 120, 45*time.Minute), h.snap(snapshotDelta, 121, 130, 40*time.Minute),
		version{key: testEntry + "/other", size: 5})
	wait, err := h.check()
	if err != nil || wait <= 30*time.Minute || wait > 90*time.Minute {
		t.Errorf("again after %s, %v", wait, err)
	}
	h.wantTrace("get secrets garden/entry")
	if h.objects.lists != 1 || len(h.objects.asked)+len(h.objects.locks) != 0 || h.opened.Name != "b" {
		t.Errorf("%d lists, asked for %q and %q in %s", h.objects.lists, h.objects.asked, h.objects.locks, h.opened.Name)
	}
	if n := len(h.clusters.Actions()); n != 0 {
		t.Errorf("%d looks at the Cluster, though there is a fresh backup", n)
	}
	h.wantEvents()
	h.wantEntryMetrics(map[string]float64{"last_checked_timestamp_seconds": 0, "last_full_snapshot_timestamp_seconds": 50,
		"last_delta_snapshot_timestamp_seconds": 40, "chain_complete": 1, "restorable_revision": 130, "excluded_snapshots": 0,
		"unannounced_exclusions": 0, "suspicious_snapshots": 0, "snapshots": 3, "snapshot_bytes": 30})
}

// Which entries are looked at; series begin and go with them.
func TestEntryCheckable(t *testing.T) {
	for name, c := range map[string]struct {
		entry   string
		edits   []editObject
		checked bool
	}{
		"ready":                   {edits: []editObject{}, checked: true},
		"failing, but ready once": {edits: []editObject{withLast(operationTypeReconcile, stateError, "x")}, checked: true},
		"being reconciled":        {edits: []editObject{withOperation(operationReconcile)}, checked: true},
		"never ready":             {edits: []editObject{withLast(operationTypeCreate, stateError, "x")}},
		"created":                 {edits: []editObject{withLast(operationTypeCreate, stateSucceeded, "x")}, checked: true},
		"being deleted":           {edits: []editObject{deleting}},
		"to be migrated":          {edits: []editObject{withOperation(operationMigrate)}},
		"migrated":                {edits: []editObject{withLast(operationTypeMigrate, stateSucceeded, "x")}},
		"being restored":          {edits: []editObject{withOperation(operationRestore)}},
		"restored":                {edits: []editObject{withLast(operationTypeRestore, stateSucceeded, "x")}, checked: true},
		"waiting for its state":   {edits: []editObject{withOperation(operationWaitForState)}},
		"of another type":         {edits: []editObject{set("gcp", "spec", "type")}},
		"the source of a move":    {entry: sourcePrefix + testEntry},
		"without a bucket":        {edits: []editObject{set("", "spec", "bucketName")}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newCheckHarness(t)
			if c.entry == "" {
				c.entry = testEntry
			}
			h.putEntry(c.entry, true, append([]editObject{set("b", "spec", "bucketName")}, c.edits...)...)
			wait, err := h.pass(t.Context(), h.checker.reconcile, c.entry, false)
			if err != nil || c.checked != (wait > 0) {
				t.Errorf("again after %s, %v", wait, err)
			}
			if (h.objects.lists == 1) != c.checked || (len(h.entryMetrics()) > 0) != c.checked {
				t.Errorf("%d lists, metrics %v", h.objects.lists, h.entryMetrics())
			}
			if !c.checked {
				h.wantNothing()
				return
			}
			// What is gone has no series.
			h.edit(entriesGVR, c.entry, deleting)
			if _, err := h.pass(t.Context(), h.checker.reconcile, c.entry, false); err != nil || len(h.entryMetrics()) > 0 {
				t.Errorf("metrics %v, %v", h.entryMetrics(), err)
			}
		})
	}
}

// A look that fails leaves what was found until that is too old to count; then only its time is left.
func TestEntryCheckFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newCheckHarness(t)
		h.putEntry(testEntry, true)
		h.have(h.snap(snapshotFull, 0, 100, 0))
		down := &storeError{code: codeRetryableDependencies, err: errors.New("down")}
		h.objects.listing = func(cursor) error { return down }
		if wait, err := h.check(); wait != checkRetry || !errors.Is(err, down) || !strings.Contains(err.Error(), testEntry) {
			t.Errorf("again after %s, %v", wait, err)
		}
		h.wantEntryMetrics(map[string]float64{"last_checked_timestamp_seconds": 0})
		h.objects.listing = nil
		h.mustCheck()
		found := h.entryMetrics()
		h.objects.listing = func(cursor) error { return down }
		time.Sleep(checkStale)
		if _, err := h.check(); err == nil || len(h.entryMetrics()) != len(found) {
			t.Errorf("%v, metrics %v", err, h.entryMetrics())
		}
		time.Sleep(time.Second)
		h.wantEntryMetrics(map[string]float64{"last_checked_timestamp_seconds": 180})

		h.openErr = configErrorf("no key")
		if wait, err := h.check(); wait != checkRetry || !strings.Contains(err.Error(), "secret garden/entry") {
			t.Errorf("again after %s, %v", wait, err)
		}
		h.deleteSecret("garden", "entry")
		var missing *secretMissingError
		if wait, err := h.check(); wait != checkRetry || !errors.As(err, &missing) {
			t.Errorf("again after %s, %v", wait, err)
		}
		h.putSecret("garden", "entry", nil)
		h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Labels = map[string]string{labelPurpose: purposeTokenRequestor} })
		if _, err := h.check(); err == nil || !strings.Contains(err.Error(), dataKeyToken) {
			t.Errorf("without a token: %v", err)
		}
	})
}

// A parked look is no failure, and the prefix is free again.
func TestEntryCheckParked(t *testing.T) {
	h := newCheckHarness(t)
	h.putEntry(testEntry, true)
	places := newEndpoints(1, h.metrics)
	h.entries.resource.controller.endpoints = places
	other := context.WithValue(t.Context(), passContext{}, &pass{id: passKey{resourceChecks, cache.ObjectName{Name: "other"}}, endpoints: places, wake: func() {}})
	if err := places.enter(other, h.objects.endpoint(), classCheck); err != nil {
		t.Fatal(err)
	}
	ctx := context.WithValue(t.Context(), passContext{}, &pass{id: passKey{resourceChecks, cache.ObjectName{Name: testEntry}}, endpoints: places, wake: func() {}})
	wait, err := h.pass(ctx, h.checker.reconcile, testEntry, false)
	if !goesOn(err) || wait != 0 || h.objects.lists != 0 || len(h.checker.listed) != 0 {
		t.Errorf("again after %s, %v", wait, err)
	}
	// Checks have places of their own: they keep none from a verification.
	look := context.WithValue(t.Context(), passContext{}, &pass{id: passKey{resourceBackupBuckets, cache.ObjectName{Name: "b"}}, endpoints: places, wake: func() {}})
	if err := places.enter(look, h.objects.endpoint(), classLook); err != nil {
		t.Errorf("a verification finds no place: %v", err)
	}
}

// A prefix is never listed twice at a time.
func TestEntryCheckOnceAtATime(t *testing.T) {
	h := newCheckHarness(t)
	h.putEntry(testEntry, true)
	h.have(h.snap(snapshotFull, 0, 100, 0))
	h.objects.listing = func(cursor) error {
		wait, err := h.checker.reconcile(t.Context(), cache.ObjectName{Name: testEntry}, false)
		if wait != checkBusy || err != nil {
			t.Errorf("the second look ended with %s, %v", wait, err)
		}
		return nil
	}
	h.mustCheck()
	if h.objects.lists != 1 {
		t.Errorf("%d lists", h.objects.lists)
	}
	h.objects.listing = nil
	h.mustCheck()
}

// Exclusions that nobody has announced are told once, with an event, and again when there is another one.
func TestEntryCheckExclusions(t *testing.T) {
	h := newCheckHarness(t)
	h.putEntry(testEntry, true)
	full, delta, last := h.snap(snapshotFull, 0, 100, 30*time.Minute), h.snap(snapshotDelta, 101, 120, 25*time.Minute), h.snap(snapshotDelta, 121, 130, 20*time.Minute)
	marker := func(v version) version { return version{key: v.key, id: "m", marker: true, created: time.Now()} }
	exclude := func(v version) { h.objects.set[v.key+"@1"] = map[string]string{excludeTag: excludeValue} }
	h.have(full, delta, last, marker(last), last, marker(delta), delta)
	exclude(last)
	h.mustCheck()
	h.wantEvents("SnapshotsExcluded")
	if note := h.recorder.events[0].note; !strings.Contains(note, "1 snapshots") || !strings.Contains(note, "revision 130") {
		t.Errorf("the event says %s", note)
	}
	want := map[string]float64{"excluded_snapshots": 1, "unannounced_exclusions": 1, "chain_complete": 1, "restorable_revision": 120}
	wantSome := func() {
		t.Helper()
		got := h.entryMetrics()
		for name, value := range want {
			if found, ok := got[name]; found != value || !ok {
				t.Errorf("%s is %v, want %v", name, found, value)
			}
		}
	}
	wantSome()
	h.mustCheck()
	h.wantEvents()

	// Announced.
	h.edit(entriesGVR, testEntry, withAnnotation(annotationExcluded, "130"))
	h.mustCheck()
	h.wantEvents()
	want["unannounced_exclusions"] = 0
	wantSome()

	// One more.
	exclude(delta)
	h.mustCheck()
	h.wantEvents("SnapshotsExcluded")
	want["excluded_snapshots"], want["unannounced_exclusions"], want["restorable_revision"] = 2, 1, 100
	wantSome()

	// All: the chain is gone.
	h.edit(entriesGVR, testEntry, withAnnotation(annotationExcluded, "100-130"))
	h.have(marker(full), full, marker(delta), delta, marker(last), last)
	exclude(full)
	h.mustCheck()
	h.wantEvents()
	got := h.entryMetrics()
	if _, ok := got["restorable_revision"]; ok || got["chain_complete"] != 0 || got["excluded_snapshots"] != 3 {
		t.Errorf("metrics %v", got)
	}

	// Tags that cannot be read make it unknown.
	h.objects.failed = &storeError{code: codeUnauthorized, err: errors.New("denied")}
	h.mustCheck()
	got = h.entryMetrics()
	for _, name := range []string{"restorable_revision", "chain_complete", "excluded_snapshots", "unannounced_exclusions"} {
		if value, ok := got[name]; ok {
			t.Errorf("%s is %v, though it is not known", name, value)
		}
	}
}

func TestEntryCheckSuspicious(t *testing.T) {
	h := newCheckHarness(t)
	h.putEntry(testEntry, true)
	full, forged := h.snap(snapshotFull, 0, 527, 30*time.Minute), h.snap(snapshotFull, 0, 9999998, 20*time.Minute)
	h.have(full, forged)
	h.mustCheck()
	h.wantEvents("SuspiciousSnapshot")
	if e := h.recorder.events[0]; e.eventType != corev1.EventTypeWarning || !strings.Contains(e.note, "claims revision 9999998") {
		t.Errorf("the event is %+v", e)
	}
	if got := h.entryMetrics(); got["suspicious_snapshots"] != 1 || got["restorable_revision"] != 9999998 {
		t.Errorf("metrics %v", got)
	}
	h.mustCheck()
	h.wantEvents()
	h.have(full)
	h.mustCheck()
	h.wantEvents()
	h.have(full, forged)
	h.mustCheck()
	h.wantEvents("SuspiciousSnapshot")
}

// The retention of a link is asked for once, the oldest first, not more than maxLockLookups in a pass, and only in a bucket that
// was locked.
func TestEntryCheckLocks(t *testing.T) {
	h := newCheckHarness(t)
	h.putEntry(testEntry, true, lockedEntry)
	end := time.Now().Add(48 * time.Hour).Truncate(time.Second)
	h.objects.locked["*"] = end
	const deltas = maxLockLookups + 20
	var versions []version
	add := func(n int) {
		for range n {
			i := int64(len(versions))
			kind, first := snapshotDelta, i
			if i == 0 {
				kind, first = snapshotFull, 0
			}
			versions = append(versions, h.snap(kind, first, i, time.Duration(1000-i)*time.Second))
		}
		h.have(slices.Clone(versions)...)
	}
	wantLock := func(asked int, want float64, known bool) {
		t.Helper()
		h.mustCheck()
		if len(h.objects.locks) != asked {
			t.Errorf("asked %d times, want %d", len(h.objects.locks), asked)
		}
		h.objects.locks = nil
		found, ok := 0.0, false
		families, _ := h.metrics.registry.Gather()
		for _, family := range families {
			if family.GetName() == entryMetricPrefix+"chain_locked_until_timestamp_seconds" {
				found, ok = family.GetMetric()[0].GetGauge().GetValue(), true
			}
		}
		if found != want || ok != known {
			t.Errorf("locked until %v, known %t, want %v, %t", found, ok, want, known)
		}
	}
	add(1 + deltas)
	wantLock(maxLockLookups, 0, false)
	wantLock(1+deltas-maxLockLookups, float64(end.Unix()), true)
	wantLock(0, float64(end.Unix()), true)
	// Twelve new ones within an hour, one of them locked shorter.
	shorter := end.Add(-time.Hour)
	h.objects.locked[h.snap(snapshotDelta, 1+deltas+3, 1+deltas+3, time.Duration(1000-(1+deltas+3))*time.Second).key] = shorter
	add(12)
	wantLock(12, float64(shorter.Unix()), true)
	// A full begins a new chain.
	versions = append(versions, h.snap(snapshotFull, 0, int64(len(versions)), time.Second))
	h.have(slices.Clone(versions)...)
	wantLock(1, float64(end.Unix()), true)
	// Another version of it is another object.
	versions[len(versions)-1].id = "2"
	h.have(slices.Clone(versions)...)
	wantLock(1, float64(end.Unix()), true)

	// One that is not locked.
	add(0)
	free := h.snap(snapshotDelta, int64(len(versions)), int64(len(versions)), 0)
	versions = append(versions, free)
	h.objects.locked[free.key] = time.Time{}
	h.have(slices.Clone(versions)...)
	wantLock(1, 0, true)
	wantLock(1, 0, true) // it may have been locked meanwhile
	h.objects.held[free.key] = true
	wantLock(1, float64(end.Unix()), true)
	wantLock(0, float64(end.Unix()), true)

	// Not readable.
	versions[len(versions)-2].id = "3"
	h.have(slices.Clone(versions)...)
	h.objects.lockErr = &storeError{code: codeUnauthorized, err: errors.New("denied")}
	wantLock(1, 0, false)
	h.objects.lockErr = nil
	h.objects.locked["*"] = time.Now().Add(time.Minute) // about to end: asked anew each time
	wantLock(2, float64(h.objects.locked["*"].Unix()), true)
	wantLock(2, float64(h.objects.locked["*"].Unix()), true)

	// Nobody asked for a lock.
	h.edit(entriesGVR, testEntry, func(u *unstructured.Unstructured) {
		unstructured.RemoveNestedField(u.Object, "spec", "backupBucketProviderStatus")
	})
	wantLock(0, 0, false)
}

// Where the list tells retention, nothing is asked; what somebody could take away does not count.
func TestReadLockOfList(t *testing.T) {
	now := time.Now()
	found := newChain([]*snapshot{{full: true, size: 1, lockKnown: true, until: now.Add(time.Hour)}}, now, now)
	store := plainObjects{&checkObjects{}}
	if got := readLock(t.Context(), store, true, found, &linkMemory{}, maxLockLookups); got != (chainLock{true, true, now.Add(time.Hour)}) {
		t.Errorf("got %+v", got)
	}
	if got := readLock(t.Context(), store, false, found, &linkMemory{}, maxLockLookups); got.known {
		t.Errorf("got %+v", got)
	}
}

// A Cluster is read only if its backups are not fresh or not complete.
func TestEntryCheckCluster(t *testing.T) {
	shoot := func(edits ...editObject) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": extensionsGV.String(), "kind": "Cluster",
			"metadata": map[string]any{"name": testNamespace}, "spec": map[string]any{"shoot": map[string]any{
				"metadata": map[string]any{"name": "s"}, "spec": map[string]any{},
				"status": map[string]any{"uid": "u", "lastOperation": map[string]any{"type": "Reconcile", "state": "Succeeded"}}}}}}
		for _, edit := range edits {
			edit(u)
		}
		return u
	}
	last := func(opType, state string) editObject {
		return set(map[string]any{"type": opType, "state": state}, "spec", "shoot", "status", "lastOperation")
	}
	unknown := -1.0
	for name, c := range map[string]struct {
		cluster *unstructured.Unstructured
		err     error
		want    float64
	}{
		"awake":         {cluster: shoot(), want: 1},
		"failing":       {cluster: shoot(last("Reconcile", "Error")), want: 1},
		"created":       {cluster: shoot(last("Create", "Succeeded")), want: 1},
		"being created": {cluster: shoot(last("Create", "Processing"))},
		"new": {cluster: shoot(func(u *unstructured.Unstructured) {
			unstructured.RemoveNestedField(u.Object, "spec", "shoot", "status", "lastOperation")
		})},
		"to be hibernated":    {cluster: shoot(set(true, "spec", "shoot", "spec", "hibernation", "enabled"))},
		"hibernated":          {cluster: shoot(set(true, "spec", "shoot", "spec", "hibernation", "enabled"), set(true, "spec", "shoot", "status", "isHibernated"))},
		"waking up":           {cluster: shoot(set(false, "spec", "shoot", "spec", "hibernation", "enabled"), set(true, "spec", "shoot", "status", "isHibernated"))},
		"woken up":            {cluster: shoot(set(false, "spec", "shoot", "spec", "hibernation", "enabled"), set(false, "spec", "shoot", "status", "isHibernated")), want: 1},
		"being deleted":       {cluster: shoot(set("2026-01-01T00:00:00Z", "spec", "shoot", "metadata", "deletionTimestamp"))},
		"migrating":           {cluster: shoot(last("Migrate", "Succeeded"))},
		"being restored":      {cluster: shoot(last("Restore", "Processing"))},
		"restored":            {cluster: shoot(last("Restore", "Succeeded")), want: 1},
		"another of the name": {cluster: shoot(set("v", "spec", "shoot", "status", "uid"))},
		"without a uid":       {cluster: shoot(set("", "spec", "shoot", "status", "uid")), want: 1},
		"of no shoot":         {cluster: shoot(set(map[string]any{}, "spec")), want: unknown},
		"of a wrong shape":    {cluster: shoot(set("yes", "spec", "shoot", "spec", "hibernation", "enabled")), want: unknown},
		"gone":                {want: 0},
		"without the CRD": {err: &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonNotFound, Code: 404, Details: &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Type: metav1.CauseTypeUnexpectedServerResponse}}}}}, want: unknown},
		"forbidden":   {err: apierrors.NewForbidden(clustersGVR.GroupResource(), testNamespace, errors.New("no")), want: unknown},
		"unavailable": {err: apierrors.NewServiceUnavailable("down"), want: unknown},
	} {
		t.Run(name, func(t *testing.T) {
			h := newCheckHarness(t)
			h.putEntry(testEntry, true)
			h.have(h.snap(snapshotFull, 0, 100, 2*time.Hour))
			if c.cluster != nil {
				if err := h.clusters.Tracker().Create(clustersGVR, c.cluster, ""); err != nil {
					t.Fatal(err)
				}
			}
			if c.err != nil {
				h.clusters.PrependReactor("get", "clusters", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, c.err })
			}
			h.mustCheck()
			if n := len(h.clusters.Actions()); n != 1 {
				t.Errorf("%d requests for the Cluster", n)
			}
			got, ok := h.entryMetrics()["cluster_awake"]
			if ok != (c.want != unknown) || ok && got != c.want {
				t.Errorf("awake is %v, %t", got, ok)
			}
			// With a fresh backup nobody is asked, without a complete chain it is.
			h.clusters.ClearActions()
			h.have(h.snap(snapshotFull, 0, 100, 2*time.Hour), h.snap(snapshotDelta, 101, 110, time.Minute))
			h.mustCheck()
			if n := len(h.clusters.Actions()); n != 0 {
				t.Errorf("%d requests for the Cluster of a fresh backup", n)
			}
			h.have(h.snap(snapshotDelta, 101, 110, time.Minute))
			h.mustCheck()
			if n := len(h.clusters.Actions()); n != 1 {
				t.Errorf("%d requests for the Cluster without a chain", n)
			}
		})
	}
}

func TestRevisionSpans(t *testing.T) {
	spans := parseSpans("5, 10-20,x,30-y,-4,40-30,,9223372036854775807")
	for revision, want := range map[int64]bool{5: true, 4: false, 9: false, 10: true, 20: true, 21: false, 30: false, 35: false, math.MaxInt64: true} {
		if got := spans.has(revision); got != want {
			t.Errorf("%d: %t", revision, got)
		}
	}
	if parseSpans("").has(0) {
		t.Error("nothing announces 0")
	}
}

// Each entry has its own time of the hour; after a start all are looked at within minutes.
func TestNextCheck(t *testing.T) {
	now := time.Date(2026, 11, 28, 7, 0, 0, 0, time.UTC)
	var firsts, slots [4]int
	for i := range 1000 {
		name := fmt.Sprintf("shoot--p--s--%d", i)
		first := firstCheck(name)
		if first < checkCalm || first >= checkCalm+checkFirst {
			t.Fatalf("first after %s", first)
		}
		firsts[(first-checkCalm)*4/checkFirst]++
		at := now.Add(first)
		second := at.Add(nextCheck(name, at))
		if gap := second.Sub(at); gap <= checkInterval/2 || gap > checkInterval*3/2 {
			t.Fatalf("second %s after the first", gap)
		}
		slots[second.Sub(second.Truncate(time.Hour))*4/time.Hour]++
		// From then on once an hour, also if a look begins late.
		for _, late := range []time.Duration{0, time.Minute, 29 * time.Minute} {
			if third := second.Add(late).Add(nextCheck(name, second.Add(late))); third.Sub(second) != checkInterval {
				t.Fatalf("third %s after the second", third.Sub(second))
			}
		}
	}
	for _, n := range append(firsts[:], slots[:]...) {
		if n < 150 {
			t.Errorf("not spread: %v, %v", firsts, slots)
		}
	}
}

// Events of entries begin and end checks and series.
func TestEntryCheckWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newCheckHarness(t)
		h.putEntry(testEntry, true)
		h.putEntry("shoot--p--new--v", false)
		informer := dynamicinformer.NewFilteredDynamicInformer(h.dyn, entriesGVR, "", 0, cache.Indexers{}, nil).Informer()
		if err := informer.SetTransform(transformWith(decodeEntry)); err != nil {
			t.Fatal(err)
		}
		if err := h.checker.watch(informer); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go informer.RunWithContext(ctx)
		series := func() int {
			synctest.Wait()
			return len(h.metrics.entries.states)
		}
		if n := series(); n != 1 {
			t.Errorf("%d entries have series", n)
		}
		time.Sleep(checkFirst)
		if key, _ := h.checker.checks.queue.Get(); key.Name != testEntry {
			t.Errorf("%s is checked", key.Name)
		}
		added := cache.ObjectName{Name: "shoot--p--new--v"}
		h.edit(entriesGVR, "shoot--p--new--v", withLast(operationTypeCreate, stateSucceeded, "done"))
		if n := series(); n != 2 {
			t.Errorf("%d entries have series", n)
		}
		time.Sleep(checkFirst)
		if key, _ := h.checker.checks.queue.Get(); key != added {
			t.Errorf("%s is checked", key.Name)
		}
		h.edit(entriesGVR, testEntry, deleting)
		if n := series(); n != 1 {
			t.Errorf("%d entries have series", n)
		}
		if err := h.dyn.Tracker().Delete(entriesGVR, "", "shoot--p--new--v"); err != nil {
			t.Fatal(err)
		}
		if n := series(); n != 0 {
			t.Errorf("%d entries have series", n)
		}
		// A pass that ends behind that leaves nothing.
		h.metrics.entries.set(&backupEntry{object: object{ObjectMeta: metav1.ObjectMeta{Name: testEntry}}}, entryState{checked: time.Now()})
		if n := series(); n != 0 {
			t.Errorf("%d entries have series", n)
		}
		h.checker.checks.queue.ShutDown()
	})
}

// BenchmarkEntryStates is the memory of 1,000 entries whose backups are known.
func BenchmarkEntryStates(b *testing.B) {
	for b.Loop() {
		s := newEntryStates()
		for i := range 1000 {
			e := &backupEntry{object: object{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("shoot--project--name%d--%036d", i, i)}}, BucketName: "bucket"}
			s.watch(e)
			s.set(e, entryState{checked: time.Now()})
		}
	}
	b.ReportAllocs()
}
