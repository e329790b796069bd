package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
)

// A bucket that could never be adopted is not ours to empty.
func TestBucketDeleteNeverAdopted(t *testing.T) {
	for name, test := range map[string]struct {
		edits []editObject
		full  bool
		gone  bool
	}{
		"with data of others":   {edits: []editObject{withLast(operationTypeCreate, stateError, "cannot be made immutable")}, full: true},
		"empty":                 {edits: []editObject{withLast(operationTypeCreate, stateError, "x")}, gone: true},
		"cut off at its start":  {edits: []editObject{withLast(operationTypeCreate, stateProcessing, "x")}, full: true},
		"adopted once, in use":  {edits: []editObject{withLast(operationTypeCreate, stateSucceeded, "x")}, full: true, gone: true},
		"adopted, now in Error": {edits: []editObject{withLast(operationTypeReconcile, stateError, "x")}, full: true, gone: true},
		"deletion goes on":      {edits: []editObject{withLast(operationTypeDelete, stateError, "x")}, full: true, gone: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putDeletingBucket(test.edits...)
			if test.full {
				bucket.objects["x/1"] = memObject{size: 1}
			}
			// A first attempt that fails must not make it ours.
			h.cloud.fail["Delete"] = unavailable
			if _, err := h.passBucket("b"); err == nil {
				t.Error("no error")
			}
			delete(h.cloud.fail, "Delete")
			h.recorder.events = nil
			if wait, err := h.passBucket("b"); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if got := h.cloud.buckets["b"] == nil; got != test.gone {
				t.Errorf("the bucket is gone: %t", got)
			}
			if !test.gone {
				h.wantEvents("BucketLeft")
				if len(bucket.objects) != 1 {
					t.Error("objects of others were deleted")
				}
			}
			if u := h.get(bucketsGVR, "b"); len(u.GetFinalizers()) != 1 {
				t.Errorf("finalizers %v", u.GetFinalizers())
			}
		})
	}
}

// Whatever comes in between, a bucket that was never adopted does not become ours.
func TestBucketDeleteNeverAdoptedSurvivesFaults(t *testing.T) {
	unavailable := apierrors.NewServiceUnavailable("x")
	for name, fault := range map[string]func(h *harness){
		"an entry refers to it first": func(h *harness) { h.putEntry(testEntry, false) },
		"entries cannot be listed":    func(h *harness) { h.answer("list", "backupentries", 1, unavailable) },
		"secret cannot be released":   func(h *harness) { h.answer("patch", "secrets", 1, unavailable) },
		"killed before the release":   func(h *harness) { h.on("patch", "secrets", 1, func() error { panic("killed") }) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putDeletingBucket(withLast(operationTypeCreate, stateError, "cannot be made immutable"))
			bucket.objects["of-others/1"] = memObject{size: 1}
			fault(h)
			func() {
				defer func() { _ = recover() }()
				_, _ = h.passBucket("b")
			}()
			if name == "an entry refers to it first" {
				if err := h.dyn.Tracker().Delete(entriesGVR, "", testEntry); err != nil {
					t.Fatal(err)
				}
				clear(h.buckets.resource.controller.due)
			}
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			if len(bucket.objects) != 1 {
				t.Error("objects of others were deleted")
			}
			if u := h.get(bucketsGVR, "b"); slices.Contains(u.GetFinalizers(), finalizerBackupBucket) {
				t.Error("not released")
			}
		})
	}
}

// putDeletingBucket stores BackupBucket b being deleted, and its bucket.
func (h *harness) putDeletingBucket(edits ...editObject) *memBucket {
	h.t.Helper()
	h.putBucket(true, append([]editObject{withFinalizers("other"), deleting}, edits...)...)
	return h.cloud.put("b", Policy{})
}

var bucketDeleted = []string{
	"get backupbuckets b",
	"list backupentries",
	"store b Delete",
	"status backupbuckets b Delete Succeeded",
	"get secrets garden/bucket-b",
	"patch secrets garden/bucket-b finalizers",
	"get backupbuckets b",
	"patch backupbuckets b finalizers",
}

var bucketDeleting = []string{
	"get backupbuckets b",
	"list backupentries",
	"status backupbuckets b Delete Processing",
	"get secrets garden/bucket-b",
	"store b Observe",
	"get backupbuckets b",
	"list backupentries",
	"store b Delete",
}

func TestBucketDeleteEmpty(t *testing.T) {
	h := newHarness(t)
	h.putDeletingBucket()
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(bucketDeleting[:5:5], bucketDeleted...)...)
	if got := h.get(bucketsGVR, "b").GetFinalizers(); !slices.Equal(got, []string{"other"}) {
		t.Errorf("finalizers %v", got)
	}
	if got := h.secret("garden", "bucket-b").Finalizers; len(got) > 0 {
		t.Errorf("the secret has finalizers %v", got)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
	h.wantEvents("BucketDeleted")
	h.wantMetric(1, "bucketwarden_deleted_buckets_total")
	if len(h.cloud.buckets) > 0 {
		t.Error("the bucket is still there")
	}
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantNothing()
}

func TestBucketDeletePurges(t *testing.T) {
	h := newHarness(t)
	h.putDeletingBucket(withOperation(operationMigrate)).objects["x/1"] = memObject{size: 2048}
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	want := slices.Concat(bucketDeleting, []string{`store b Purge ""`, "get backupbuckets b", "list backupentries"}, bucketDeleted)
	h.wantTrace(slices.Insert(want, 1, "patch backupbuckets b annotations")...)
	h.wantEvents("ObjectsDeleted", "BucketDeleted")
	h.wantMetric(1, "bucketwarden_purged_objects_total", "b")
	h.wantMetric(2048, "bucketwarden_purged_bytes_total", "b")
}

// MinIO hides "a/b" from a list while an object "a" exists.
func TestBucketDeletePurgesUntilEmpty(t *testing.T) {
	h := newHarness(t)
	bucket := h.putDeletingBucket()
	bucket.objects["a"], bucket.objects["a/b"] = memObject{}, memObject{behind: "a"}
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	want := []string{"store b Delete", `store b Purge ""`, "store b Delete", `store b Purge ""`, "store b Delete"}
	if got := h.storeChanges(); !slices.Equal(got, want) {
		t.Errorf("the store saw %q, want %q", got, want)
	}
	h.wantMetric(2, "bucketwarden_purged_objects_total", "b")

	// What no purge sees must not make an endless loop.
	h = newHarness(t)
	h.putDeletingBucket().objects["a"] = memObject{behind: "a"}
	if wait, err := h.passBucket("b"); !errors.Is(err, errBucketNotEmpty) || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateError)
}

func TestBucketDeleteWaitsForEntries(t *testing.T) {
	for _, name := range []string{"in the cache", "only live"} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingBucket()
			h.putEntry("shoot--p--s--u", false)
			want := []string{"get backupbuckets b", "get secrets garden/bucket-b", "store b Observe", "status backupbuckets b Delete Processing +conditions"}
			if name == "only live" {
				want = slices.Insert(want, 1, "list backupentries")
				h.sync()
				if err := h.entries.cached.Replace(nil, ""); err != nil {
					t.Fatal(err)
				}
				h.frozen = true
			}
			if wait, err := h.passBucket("b"); err != nil || wait != referencedRetry {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantTrace(want...)
			if s := h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing); !strings.Contains(s.Description, "shoot--p--s--u") {
				t.Errorf("the message %q does not name the entry", s.Description)
			}
			if wait, err := h.passBucket("b"); err != nil || wait <= 0 || wait > referencedRetry {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if h.requests() != 0 && !h.frozen {
				t.Errorf("a pass that is not due did %q", h.trace)
			}
		})
	}
	t.Run("on a later page", func(t *testing.T) {
		h := newHarness(t)
		h.putDeletingBucket()
		pages := 0
		h.dyn.PrependReactor("list", resourceBackupEntries, func(clienttesting.Action) (bool, runtime.Object, error) {
			page := &unstructured.UnstructuredList{}
			page.SetAPIVersion(extensionsGV.String())
			page.SetKind(kindBackupEntry + "List")
			bucket := "b"
			if pages++; pages == 1 {
				bucket = "other"
				page.SetContinue("2")
			}
			page.Items = []unstructured.Unstructured{*testObject(kindBackupEntry, "in-"+bucket, "entry", set(bucket, "spec", "bucketName"))}
			return true, page, nil
		})
		if wait, err := h.passBucket("b"); err != nil || wait != referencedRetry {
			t.Errorf("wait %s, error %v", wait, err)
		}
		if s := h.status(bucketsGVR, "b"); !strings.Contains(s.Description, "in-b") || len(h.storeChanges()) > 0 {
			t.Errorf("description %q, trace %q", s.Description, h.trace)
		}
	})
	t.Run("not for those of other buckets", func(t *testing.T) {
		h := newHarness(t)
		h.putDeletingBucket()
		h.putEntry("shoot--p--s--u", false, set("other", "spec", "bucketName"))
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
	})
}

// passedWait says that wait ended at until, give or take the pass itself.
func passedWait(start time.Time, wait time.Duration, until time.Time) bool {
	return !start.Add(wait).After(until) && !time.Now().Add(wait).Before(until)
}

func TestBucketDeleteWaitsForRetention(t *testing.T) {
	until := time.Now().Add(72 * time.Hour).UTC().Truncate(time.Second)
	h := newHarness(t)
	bucket := h.putDeletingBucket()
	bucket.objects["x/free"] = memObject{size: 1}
	bucket.objects["x/1"] = memObject{size: 1024, until: until.Add(-time.Hour)}
	bucket.objects["x/2"] = memObject{size: 1024, until: until}
	start := time.Now()
	wait, err := h.passBucket("b")
	if err != nil || wait != testVerifyInterval || !passedWait(start, h.deletionDue(), until.Add(time.Second)) {
		t.Errorf("wait %s, due in %s, error %v", wait, h.deletionDue(), err)
	}
	s := h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing)
	want := "2 objects (2.0 KiB) in bucket b are retained until " + until.Format(time.RFC3339)
	if s.Description != want || s.Error != "" {
		t.Errorf("description %q, want %q", s.Description, want)
	}
	h.wantMetric(2, "bucketwarden_backupbucket_retained_objects", "b")
	h.wantEvents("ObjectsDeleted")

	h.edit(bucketsGVR, "b", withAnnotation(annotationTimestamp, time.Now().UTC().Format(time.RFC3339Nano)))
	if wait, err := h.passBucket("b"); err != nil || wait <= 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantNothing()

	// Somebody knows better, of a legal hold that is gone for instance.
	h.edit(bucketsGVR, "b", withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil || len(h.storeCalls()) == 0 {
		t.Errorf("asked for a reconcile, the pass did %q, error %v", h.trace, err)
	}

	// Due, but the store is not done: the status says so again.
	key := cache.ObjectName{Name: "b"}
	h.buckets.resource.controller.waitUntil(key, testStart)
	if wait, err := h.passBucket("b"); err != nil || wait <= 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if s := h.status(bucketsGVR, "b"); s.Description != want {
		t.Errorf("description %q, want %q", s.Description, want)
	}

	h.buckets.resource.controller.waitUntil(key, testStart)
	clear(bucket.objects)
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
}

// A retention that the store says is over, and still holds, must not make a hot loop.
func TestBucketDeleteRetainedByAClockThatLags(t *testing.T) {
	h := newHarness(t)
	h.putBucket(true, deleting)
	wait, err := h.buckets.waitForRetention(t.Context(), decodeBucket(h.get(bucketsGVR, "b")), PurgeResult{Retained: 1, Now: time.Now(), RetainedUntil: testStart})
	if err != nil || wait != time.Minute {
		t.Errorf("wait %s, error %v", wait, err)
	}
}

func TestBucketDeleteWaitsForLegalHold(t *testing.T) {
	h := newHarness(t)
	h.putDeletingBucket().objects["x/1"] = memObject{held: true}
	wait, err := h.passBucket("b")
	if due := h.deletionDue(); err != nil || wait != testVerifyInterval || due > sweepRetry || due < sweepRetry-time.Minute {
		t.Errorf("wait %s, due in %s, error %v", wait, due, err)
	}
	if s := h.status(bucketsGVR, "b"); !strings.Contains(s.Description, "legal hold") {
		t.Errorf("description %q", s.Description)
	}
}

func TestBucketDeleteErrors(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		heal    func(h *harness)
		codes   []errorCode
	}{
		"secret is gone": {
			prepare: func(h *harness) { h.deleteSecret("garden", "bucket-b") },
			heal:    func(h *harness) { h.putSecret("garden", "bucket-b", staticCredentials()) },
		},
		"secret is empty": {
			prepare: func(h *harness) { h.editSecret("garden", "bucket-b", func(s *corev1.Secret) { s.Data = nil }) },
			heal: func(h *harness) {
				h.editSecret("garden", "bucket-b", func(s *corev1.Secret) { s.Data = staticCredentials() })
			},
			codes: []errorCode{codeConfigurationProblem},
		},
		"bucket is foreign": {
			prepare: func(h *harness) { h.cloud.fail["Observe"] = denied },
			heal:    func(h *harness) { delete(h.cloud.fail, "Observe") },
			codes:   []errorCode{codeUnauthorized},
		},
		"delete fails": {
			prepare: func(h *harness) { h.cloud.fail["Delete"] = unavailable },
			heal:    func(h *harness) { delete(h.cloud.fail, "Delete") },
			codes:   []errorCode{codeRetryableDependencies},
		},
		"purge fails": {
			prepare: func(h *harness) {
				h.cloud.buckets["b"].objects["x/1"] = memObject{}
				h.cloud.fail["Purge"] = denied
			},
			heal:  func(h *harness) { delete(h.cloud.fail, "Purge") },
			codes: []errorCode{codeUnauthorized},
		},
		"entries cannot be listed": {
			prepare: func(h *harness) {
				h.answer("list", "backupentries", 3, apierrors.NewGenericServerResponse(http.StatusServiceUnavailable, "list", entriesGVR.GroupResource(), "", "", 0, true))
			},
			heal: func(*harness) {},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingBucket()
			test.prepare(h)
			for range 3 {
				if wait, err := h.passBucket("b"); err == nil || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
				h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateError, test.codes...)
				if h.cloud.buckets["b"] == nil || !slices.Contains(h.get(bucketsGVR, "b").GetFinalizers(), finalizerBackupBucket) {
					t.Error("the bucket or its finalizer is gone")
				}
				if s := h.secret("garden", "bucket-b"); s != nil && len(s.Finalizers) == 0 {
					t.Error("the secret was released")
				}
			}
			test.heal(h)
			if wait, err := h.passBucket("b"); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
		})
	}
}

func TestBucketDeleteWithoutBucket(t *testing.T) {
	notOurs := &storeError{code: codeConfigurationProblem, err: fmt.Errorf("it belongs to somebody else: %w", errNotOurBucket)}
	for name, test := range map[string]struct {
		prepare func(h *harness)
		events  []string
	}{
		"gone":           {func(h *harness) { delete(h.cloud.buckets, "b") }, nil},
		"of others":      {func(h *harness) { h.cloud.fail["Observe"] = notOurs }, []string{"BucketLeft"}},
		"forbidden name": {func(h *harness) { h.cloud.fail["open"] = notOurs }, []string{"BucketLeft"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingBucket()
			test.prepare(h)
			if wait, err := h.passBucket("b"); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if got := h.storeChanges(); len(got) > 0 {
				t.Errorf("the store saw %q", got)
			}
			h.wantEvents(test.events...)
			h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
			h.wantMetric(0, "bucketwarden_deleted_buckets_total")
			if len(h.secret("garden", "bucket-b").Finalizers) > 0 || len(h.get(bucketsGVR, "b").GetFinalizers()) != 1 {
				t.Error("not released")
			}
		})
	}
}

// putDeletingAzure stores BackupBucket b being deleted, with all that belongs to it.
func (h *harness) putDeletingAzure(edits ...editObject) *memAccount {
	h.t.Helper()
	return h.putAzure(true, Policy{}, append([]editObject{withFinalizers("other"), deleting}, edits...)...)
}

// groupGone ends the deletion of the resource group, and the time until the next look.
func (h *harness) groupGone() {
	if a := h.cloud.accounts["b"]; a != nil && a.group == groupDeleting {
		delete(h.cloud.accounts, "b")
	}
	clear(h.buckets.resource.controller.due)
}

func (h *harness) wantReleased() {
	h.t.Helper()
	if got := h.get(bucketsGVR, "b").GetFinalizers(); !slices.Equal(got, []string{"other"}) {
		h.t.Errorf("finalizers %v", got)
	}
	if got := h.secret("garden", "bucket-b").Finalizers; len(got) > 0 {
		h.t.Errorf("the secret has finalizers %v", got)
	}
}

func TestAzureDelete(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure()
	if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(slices.Insert(slices.Clone(azureDeleteLooks), 2, "status backupbuckets b Delete Processing"),
		"get backupbuckets b", "list backupentries", "store b Delete", "store b DeleteAccount", "status backupbuckets b Delete Processing +conditions")...)
	h.wantEvents("BucketDeleted", "ResourceGroupDeleted")
	s := h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing)
	if s.Description != "The bucket is deleted, its resource group is being deleted" || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	h.wantMetric(1, "bucketwarden_deleted_buckets_total")
	h.wantMetric(1, "bucketwarden_deleted_accounts_total")
	if h.secret("garden", testGenerated) == nil || !slices.Contains(h.get(bucketsGVR, "b").GetFinalizers(), finalizerBackupBucket) {
		t.Error("the generated secret or the finalizer is gone")
	}

	// Not due, though gardenlet patches the object every few seconds.
	h.edit(bucketsGVR, "b", withAnnotation("x", "y"))
	if wait, err := h.passBucket("b"); err != nil || wait <= 0 || wait > accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantNothing()

	// Due, and still under way: there is nothing new to tell.
	clear(h.buckets.resource.controller.due)
	if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(slices.Clone(azureDeleteLooks), "store b DeleteAccount")...)
	h.wantEvents()

	h.groupGone()
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(slices.Clone(azureDeleteLooks), azureReleased...)...)
	h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
	h.wantReleased()
	h.wantMetric(1, "bucketwarden_deleted_accounts_total")
	if h.secret("garden", testGenerated) != nil {
		t.Error("the generated secret is still there")
	}
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantNothing()
}

// A deletion that comes while a reconcile is under way is announced as one.
func TestAzureDeleteAfterACutOffReconcile(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure(withLast(operationTypeReconcile, stateProcessing, "Reconciling the bucket"))
	h.cloud.fail["Observe"] = context.Canceled
	if _, err := h.passBucket("b"); err == nil {
		t.Error("no error")
	}
	h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing)
}

func TestAzureDeletePurgesFirst(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure()
	bucket := h.cloud.buckets["b"]
	bucket.objects["x/1"] = memObject{size: 1}
	bucket.objects["x/2"] = memObject{size: 1, until: time.Now().Add(time.Hour)}
	if wait, err := h.passBucket("b"); err != nil || wait <= 0 || wait > time.Hour+time.Second {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if got, want := h.storeChanges(), []string{"store b Delete", `store b Purge ""`}; !slices.Equal(got, want) {
		t.Errorf("changes %q, want %q", got, want)
	}
	clear(bucket.objects)
	clear(h.buckets.resource.controller.due)
	if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if got, want := h.storeChanges(), []string{"store b Delete", "store b DeleteAccount"}; !slices.Equal(got, want) {
		t.Errorf("changes %q, want %q", got, want)
	}
}

// Whatever is gone already, and whatever is not there any more when it is to go.
func TestAzureDeleteOfWhatIsGone(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		changes []string
	}{
		"everything": {prepare: func(h *harness) {
			clear(h.cloud.buckets)
			clear(h.cloud.accounts)
			h.deleteSecret("garden", testGenerated)
		}},
		"the container": {prepare: func(h *harness) { clear(h.cloud.buckets) }, changes: []string{"store b DeleteAccount"}},
		"container and account": {prepare: func(h *harness) {
			clear(h.cloud.buckets)
			clear(h.cloud.accounts)
		}},
		"the generated secret": {prepare: func(h *harness) { h.deleteSecret("garden", testGenerated) }, changes: []string{"store b Delete", "store b DeleteAccount"}},
		"the generated secret meanwhile": {prepare: func(h *harness) {
			h.on("delete", "secrets", 1, func() error { h.deleteSecret("garden", testGenerated); return nil })
		}, changes: []string{"store b Delete", "store b DeleteAccount"}},
		"the reference in the status": {prepare: func(h *harness) {
			h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
				unstructured.RemoveNestedField(u.Object, "status", "generatedSecretRef")
			})
		}, changes: []string{"store b Delete", "store b DeleteAccount"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingAzure()
			test.prepare(h)
			var changes []string
			for range 2 {
				if _, err := h.passBucket("b"); err != nil {
					t.Error(err)
				}
				changes = append(changes, h.storeChanges()...)
				h.groupGone()
			}
			if !slices.Equal(changes, test.changes) {
				t.Errorf("changes %q, want %q", changes, test.changes)
			}
			h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
			h.wantReleased()
			if h.secret("garden", testGenerated) != nil || len(h.cloud.buckets)+len(h.cloud.accounts) > 0 {
				t.Error("something is left")
			}
		})
	}
}

// Only the resource group is left, of a creation that was cut off for instance.
func TestAzureDeleteRemains(t *testing.T) {
	for name, edits := range map[string][]editObject{"of a bucket": nil, "of one that never got ready": {withLast(operationTypeCreate, stateError, "no")}} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingAzure(edits...)
			clear(h.cloud.buckets)
			if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if got := h.storeChanges(); !slices.Equal(got, []string{"store b DeleteAccount"}) {
				t.Errorf("changes %q", got)
			}
			h.wantEvents("ResourceGroupDeleted")
			h.groupGone()
			if wait, err := h.passBucket("b"); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantReleased()
			h.wantMetric(0, "bucketwarden_deleted_buckets_total")
		})
	}
}

func TestAzureDeleteKeepsTheGroup(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure().group = groupKept
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantEvents("BucketDeleted", "ResourceGroupKept")
	if e := h.recorder.events[1]; e.eventType != corev1.EventTypeWarning || !strings.Contains(e.note, "holds something else") {
		t.Errorf("event %+v", e)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
	h.wantReleased()
	h.wantMetric(0, "bucketwarden_deleted_accounts_total")
	if h.cloud.accounts["b"] == nil || h.secret("garden", testGenerated) != nil {
		t.Error("the account is gone, or the generated secret is not")
	}
}

func TestAzureDeleteWaitsForWhatTheStoreKeeps(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure()
	h.cloud.fail["Delete"] = fmt.Errorf("deleting container b: %w", &waitError{reason: "container b is under a legal hold", after: time.Hour})
	if wait, err := h.passBucket("b"); err != nil || wait != testVerifyInterval || h.deletionDue() < 59*time.Minute {
		t.Errorf("wait %s, error %v", wait, err)
	}
	s := h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing)
	if s.Description != "The deletion waits: container b is under a legal hold" || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	if h.cloud.accounts["b"].group != groupExists || h.secret("garden", testGenerated) == nil {
		t.Error("the account or the generated secret goes")
	}
	if wait, err := h.passBucket("b"); err != nil || wait <= 0 || wait > time.Hour {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantNothing()
	clear(h.buckets.resource.controller.due)
	if wait, err := h.passBucket("b"); err != nil || wait != testVerifyInterval || h.deletionDue() < 59*time.Minute {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(slices.Clone(azureDeleteLooks), "get backupbuckets b", "list backupentries", "store b Delete")...)

	delete(h.cloud.fail, "Delete")
	clear(h.buckets.resource.controller.due)
	if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
}

func TestAzureDeleteErrors(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		codes   []errorCode
	}{
		"the account":   {func(h *harness) { h.cloud.fail["DeleteAccount"] = denied }, []errorCode{codeUnauthorized}},
		"the container": {func(h *harness) { h.cloud.fail["Delete"] = denied }, []errorCode{codeUnauthorized}},
		"the generated secret cannot be read": {func(h *harness) {
			h.hooks = append(h.hooks, &harnessHook{verb: "get", resource: "secrets", times: 99, run: func() error {
				if strings.HasSuffix(h.trace[len(h.trace)-1], testGenerated) {
					return apierrors.NewServiceUnavailable("etcd is slow")
				}
				return nil
			}})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingAzure()
			test.prepare(h)
			for range 2 {
				if wait, err := h.passBucket("b"); err == nil || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
				h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateError, test.codes...)
				if h.cloud.accounts["b"] == nil || h.secret("garden", testGenerated) == nil || len(h.get(bucketsGVR, "b").GetFinalizers()) != 2 {
					t.Error("more is gone than there should be")
				}
			}
			h.hooks, h.cloud.fail = nil, map[string]error{}
			for range 2 {
				if _, err := h.passBucket("b"); err != nil {
					t.Error(err)
				}
				h.groupGone()
			}
			h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
			h.wantReleased()
		})
	}
}

// Killed or failed at any request, before or after it took effect, a deletion is taken up
// where it was.
func TestAzureDeleteSurvivesEverything(t *testing.T) {
	t.Parallel()
	for _, never := range []bool{false, true} {
		for _, late := range []bool{false, true} {
			for _, kill := range []bool{false, true} {
				done := false
				for at := 1; !done; at++ {
					t.Run(fmt.Sprintf("never ready %t, late %t, killed %t, request %d", never, late, kill, at), func(t *testing.T) {
						h := newHarness(t)
						var edits []editObject
						if never {
							edits = append(edits, withLast(operationTypeCreate, stateError, "no"))
						}
						h.putDeletingAzure(edits...)
						request := 0
						h.interfere = func(_ clienttesting.Action, serve func() (bool, runtime.Object, error)) (bool, runtime.Object, error) {
							request++
							if request != at {
								return serve()
							}
							if late {
								if _, _, err := serve(); err != nil {
									return true, nil, err
								}
							}
							if kill {
								panic("killed")
							}
							return true, nil, apierrors.NewServiceUnavailable("etcd is slow")
						}
						for range 6 {
							_ = h.passOrKill()
							h.groupGone()
						}
						done = request < at
						h.interfere = nil
						if h.secret("garden", testGenerated) != nil || len(h.cloud.buckets)+len(h.cloud.accounts) > 0 {
							t.Error("something is left")
						}
						h.wantReleased()
						if err := h.passOrKill(); err != nil {
							t.Error(err)
						}
						h.wantNothing()
					})
				}
			}
		}
	}
}

// A BackupBucket that never got ready has nothing of ours but what is empty.
func TestAzureDeleteNeverReady(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		kept    bool
	}{
		"empty":  {prepare: func(*harness) {}},
		"in use": {prepare: func(h *harness) { h.cloud.buckets["b"].objects["x/1"] = memObject{size: 1} }, kept: true},
		"withheld": {prepare: func(h *harness) {
			h.cloud.fail["Delete"] = &waitError{reason: "container b is under a legal hold", after: time.Hour}
		}, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingAzure(withLast(operationTypeCreate, stateError, "no"))
			test.prepare(h)
			wait, err := h.passBucket("b")
			if err != nil || (wait == 0) != test.kept {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if test.kept {
				h.wantEvents("BucketLeft")
				if h.cloud.buckets["b"] == nil || h.cloud.accounts["b"].group != groupExists {
					t.Error("the bucket or its account goes")
				}
			} else {
				h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateProcessing)
				h.wantEvents("BucketDeleted", "ResourceGroupDeleted")
				h.groupGone()
				if wait, err := h.passBucket("b"); err != nil || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
			}
			h.wantReleased()
			if s := h.status(bucketsGVR, "b"); s.Type != string(operationTypeCreate) {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// No secret but the generated one goes, whatever the status says.
func TestAzureDeleteOnlyTheGeneratedSecret(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure(withGeneratedRef("garden", "precious"))
	h.putSecret("garden", "precious", azureCredentials())
	for range 2 {
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.groupGone()
	}
	h.wantReleased()
	if h.secret("garden", "precious") == nil || h.secret("garden", testGenerated) != nil {
		t.Error("the wrong secret was deleted")
	}

	// A new one of the same name is not the one that was read.
	h = newHarness(t)
	h.putDeletingAzure()
	clear(h.cloud.buckets)
	clear(h.cloud.accounts)
	h.on("delete", "secrets", 1, func() error {
		h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.UID = "new" })
		return nil
	})
	if _, err := h.passBucket("b"); !apierrors.IsConflict(err) || h.secret("garden", testGenerated) == nil {
		t.Errorf("error %v", err)
	}
}

// A generated secret that was moved is found by the status, not by today's annotation.
func TestAzureDeleteTheGeneratedSecretOfTheStatus(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure(withAnnotation(annotationGeneratedSecretNamespace, "other"))
	for range 2 {
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.groupGone()
	}
	h.wantReleased()
	if h.secret("garden", testGenerated) != nil {
		t.Error("the generated secret is still there")
	}
}

// A move of the generated secret was cut off, so there are two.
func TestAzureDeleteAfterACutOffMove(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure(withAnnotation(annotationGeneratedSecretNamespace, "other"))
	h.putGenerated("other", generatedData("derived", memKey1))
	for range 2 {
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.groupGone()
	}
	h.wantReleased()
	for _, namespace := range []string{"garden", "other"} {
		if h.secret(namespace, testGenerated) != nil {
			t.Errorf("the generated secret in namespace %s is still there", namespace)
		}
	}
}

func TestS3DeleteKnowsNoAccount(t *testing.T) {
	h := newHarness(t)
	h.putDeletingBucket(withGeneratedRef("garden", testGenerated))
	h.putSecret("garden", testGenerated, staticCredentials())
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if h.secret("garden", testGenerated) == nil {
		t.Error("a secret that is not ours was deleted")
	}
	h.wantReleased()
}
