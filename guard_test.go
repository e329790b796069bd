package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
)

// A permit that nobody has given lets nothing go.
func TestZeroPermitRefuses(t *testing.T) {
	h := newHarness(t)
	bucket := h.cloud.put("b", Policy{})
	bucket.objects["a/1"] = memObject{size: 1}
	c, err := h.cloud.client(bucketRef{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&purges{}).run(t.Context(), c, purgeOrder{bucket: "b", name: "a", prefix: "a/"}); err == nil || len(bucket.objects) != 1 {
		t.Errorf("error %v, objects %v", err, bucket.objects)
	}
	if err := c.Delete(t.Context(), permit{}); err == nil || len(h.cloud.buckets) != 1 {
		t.Errorf("error %v, buckets %v", err, h.cloud.buckets)
	}
}

// Only guard.go gives leave, and what a store or the API server deletes is deleted with it.
func TestOnlyTheGuardGivesLeave(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	made := regexp.MustCompile(`permit\{`)
	deletes := regexp.MustCompile(`\.(DeleteObjects?|AbortMultipartUpload|DeleteBucket|SubmitBatch|BeginDelete|Delete)\(ctx`)
	// Where requests that delete are made; each of these functions takes a permit, or is called with one.
	allowed := map[string]bool{"store_s3.go": true, "store_s3_objects.go": true, "store_azure.go": true, "store_azure_account.go": true,
		"store_azure_objects.go": true, "secret.go": true,
		// Uploads that it has just begun itself, to try something out.
		"store_s3_tls.go": true, "bucket_delete.go": true, "webhook_certs.go": true,
		// Without a version, where versions are kept: that makes a delete marker.
		"store_s3_content.go": true,
		// The canary, with a permit for its name.
		"store_s3_probe.go": true, "store_azure_probe.go": true}
	removes := map[string]bool{"purge.go": true, "uploads.go": true, "store_azure_objects.go": true,
		// Delete markers alone, which removeMarker checks.
		"cmd_exclude.go": true}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if file != "guard.go" && made.Match(text) {
			t.Errorf("%s makes a permit", file)
		}
		if strings.Contains(string(text), ".remove(ctx") && !removes[file] {
			t.Errorf("%s removes versions", file)
		}
		if found := deletes.FindString(string(text)); found != "" && !allowed[file] {
			t.Errorf("%s deletes: %s", file, found)
		}
	}
}

// putPrefix stores the objects of an entry in bucket b, one of them retained for a day.
func (h *harness) putPrefix(base string) *memBucket {
	h.t.Helper()
	bucket := h.cloud.buckets["b"]
	if bucket == nil {
		bucket = h.cloud.put("b", Policy{})
	}
	for _, key := range []string{"/1", "/2"} {
		bucket.objects[base+key] = memObject{size: 1024, created: h.cloud.now().Add(-time.Hour)}
	}
	return bucket
}

func (h *harness) wantPrefix(base string, n int) {
	h.t.Helper()
	got := 0
	for key := range h.cloud.buckets["b"].objects {
		if strings.HasPrefix(key, base+"/") {
			got++
		}
	}
	if got != n {
		h.t.Errorf("%d objects are left under %s/, want %d", got, base, n)
	}
}

// Fault 1: an entry that was refused, or never got ready, has nothing to delete.
func TestEntryThatNeverGotReadyDeletesNothing(t *testing.T) {
	for name, edits := range map[string][]editObject{
		"virtual-garden-etcd-main": {withLast(operationTypeCreate, stateError, "no")},
		testEntry:                  {withLast(operationTypeCreate, stateError, "spec.region is empty"), set("", "spec", "region")},
		"shoot--p--new--u":         {withLast(operationTypeCreate, stateProcessing, "x")},
		"shoot--p--seen--u":        nil,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putPrefix(name)
			h.putEntry(name, false, append([]editObject{withFinalizers(finalizerBackupEntry, "other"), deleting}, edits...)...)
			if wait, err := h.passEntry(name); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantPrefix(name, 2)
			h.wantEvents("ObjectsLeft")
			if got := h.get(entriesGVR, name).GetFinalizers(); !slices.Equal(got, []string{"other"}) {
				t.Errorf("finalizers %v", got)
			}
			if calls := h.storeCalls(); len(calls) > 0 {
				t.Errorf("store calls %q", calls)
			}
		})
	}
}

// Fault 2: a purge looks at its own entry again before each batch.
func TestPurgeLooksAtItsOwnEntryAgain(t *testing.T) {
	for name, change := range map[string]func(h *harness){
		"created anew": func(h *harness) {
			if err := h.dyn.Tracker().Delete(entriesGVR, "", testEntry); err != nil {
				h.t.Fatal(err)
			}
			h.putEntry(testEntry, true, func(u *unstructured.Unstructured) { u.SetUID("another") })
		},
		"gone": func(h *harness) {
			if err := h.dyn.Tracker().Delete(entriesGVR, "", testEntry); err != nil {
				h.t.Fatal(err)
			}
		},
		"to be migrated":      func(h *harness) { h.edit(entriesGVR, testEntry, withOperation(operationMigrate)) },
		"waits for its state": func(h *harness) { h.edit(entriesGVR, testEntry, withOperation(operationWaitForState)) },
		"without our finalizer": func(h *harness) {
			h.edit(entriesGVR, testEntry, func(u *unstructured.Unstructured) { u.SetFinalizers([]string{"other"}) })
		},
	} {
		for _, when := range []string{"before the first batch", "between two batches"} {
			t.Run(name+", "+when, func(t *testing.T) {
				h := newHarness(t)
				h.putPrefix(testEntry)
				h.putEntry(testEntry, true, withFinalizers(finalizerBackupEntry, "other"), deleting)
				h.cloud.batch = 1
				left := 2
				if when == "before the first batch" {
					h.cloud.listed = func() { change(h); h.cloud.listed = nil }
				} else {
					left = 1
					h.cloud.deleting = func(string) { change(h); h.cloud.deleting = nil }
				}
				if wait, err := h.passEntry(testEntry); err != nil || wait != staleRetry {
					t.Errorf("wait %s, error %v", wait, err)
				}
				h.wantPrefix(testEntry, left)
				if len(h.marks(testEntry)) > 0 {
					t.Errorf("marks %+v", h.marks(testEntry))
				}
			})
		}
	}
}

// A purge that can delete nothing asks nobody for leave; the tombstone needs it all the same.
func TestNoTombstoneOfADeletionThatEnded(t *testing.T) {
	for name, change := range map[string]func(h *harness){
		"created anew": func(h *harness) {
			if err := h.dyn.Tracker().Delete(entriesGVR, "", testEntry); err != nil {
				h.t.Fatal(err)
			}
			h.putEntry(testEntry, true, func(u *unstructured.Unstructured) { u.SetUID("another") })
		},
		"to be migrated": func(h *harness) { h.edit(entriesGVR, testEntry, withOperation(operationMigrate)) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putPrefix(testEntry)
			for key, o := range bucket.objects {
				o.until = h.cloud.now().Add(time.Hour)
				bucket.objects[key] = o
			}
			h.putEntry(testEntry, true, withFinalizers(finalizerBackupEntry, "other"), deleting)
			h.cloud.listed = func() { change(h); h.cloud.listed = nil }
			if wait, err := h.passEntry(testEntry); err != nil || wait != staleRetry {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if got := h.marks(testEntry); len(got) > 0 {
				t.Errorf("marks %+v", got)
			}
		})
	}
}

// An entry whose secret is gone lets the one go that it held before.
func TestEntryWithoutCredentialsLetsTheSecretGo(t *testing.T) {
	h := newHarness(t)
	h.putPrefix(testEntry)
	h.putEntry(testEntry, true, withFinalizers(finalizerBackupEntry, "other"), deleting)
	h.edit(entriesGVR, testEntry, set("gone", "spec", "secretRef", "name"))
	h.edit(entriesGVR, testEntry, set("garden/entry", "metadata", "annotations", annotationSecret))
	h.editSecret("garden", "entry", func(s *corev1.Secret) { s.Finalizers = []string{finalizerBackupEntry} })
	if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantPrefix(testEntry, 2)
	h.editSecret("garden", "entry", func(s *corev1.Secret) {
		if len(s.Finalizers) > 0 {
			t.Errorf("finalizers %v", s.Finalizers)
		}
	})
}

// Fault 3: a revocation in the bucket tells of a cluster that lives on another seed.
func TestPurgeSeesTheLifeOfAnotherCluster(t *testing.T) {
	const source = "source-" + testEntry
	for name, test := range map[string]struct {
		entry string
		mark  func(h *harness) string
		left  int
	}{
		"the source, and x lives on another seed": {source, func(h *harness) string { return revocationKey(testEntry, "x on another seed") }, 2},
		"the source, revoked by itself":           {source, func(h *harness) string { return revocationKey(testEntry, h.get(entriesGVR, source).GetUID()) }, 0},
		"x, taken into use since it goes":         {testEntry, func(h *harness) string { return revocationKey(testEntry, "another") }, 2},
		"x, revoked by itself long ago":           {testEntry, func(h *harness) string { return revocationKey(testEntry, h.get(entriesGVR, testEntry).GetUID()) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putPrefix(testEntry)
			h.putEntry(test.entry, true, withFinalizers(finalizerBackupEntry, "other"), deleting)
			created := h.cloud.now().Add(time.Second)
			if strings.HasPrefix(name, "the source") {
				created = h.cloud.now().Add(-24 * time.Hour)
			}
			bucket.objects[test.mark(h)] = memObject{created: created}
			if _, err := h.passEntry(test.entry); err != nil {
				t.Error(err)
			}
			h.wantPrefix(testEntry, test.left)
			if kept := slices.ContainsFunc(h.recorder.events, func(e harnessEvent) bool { return e.reason == "ObjectsKept" }); kept != (test.left > 0) {
				t.Errorf("events %+v", h.recorder.events)
			}
		})
	}
	t.Run("x, revoked by others before it goes", func(t *testing.T) {
		h := newHarness(t)
		h.putPrefix(testEntry).objects[revocationKey(testEntry, "an earlier life")] = memObject{created: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}
		h.putEntry(testEntry, true, withFinalizers(finalizerBackupEntry, "other"), deleting)
		if _, err := h.passEntry(testEntry); err != nil {
			t.Error(err)
		}
		h.wantPrefix(testEntry, 0)
	})
}

// Fault 4: an entry without a token comes back for the tombstone of its earlier life.
func TestEntryWithoutATokenComesBack(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.putTombstone(testEntry, time.Hour)
	h.putEntry(testEntry, false, withOperation(operationReconcile))
	h.workloadIdentity("")
	if wait, err := h.passEntry(testEntry); err != nil || wait != tokenRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantStatus(entriesGVR, testEntry, operationTypeCreate, stateSucceeded)
	if m := h.marks(testEntry); len(m) != 1 {
		t.Fatalf("marks %+v", m)
	}
	h.workloadIdentity("token")
	key := cache.ObjectName{Name: testEntry}
	if wait, err := h.pass(t.Context(), h.entries.reconcile, testEntry, h.entries.resource.controller.takeWanted(key)); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if m := h.marks(testEntry); len(m) != 2 || !m[1].revoked {
		t.Errorf("marks %+v", m)
	}
}

// Fault 5: of an adopted bucket only what entries of ours have left is deleted.
func TestAdoptedBucketIsNotEmptied(t *testing.T) {
	t.Parallel()
	origin := func(origin string) editObject { return set(origin, "status", "providerStatus", "origin") }
	for name, test := range map[string]struct {
		edits []editObject
		other bool
		stays bool
	}{
		"adopted, with the data of others":   {[]editObject{origin("Adopted")}, true, true},
		"adopted, nothing else is in it":     {[]editObject{origin("Adopted")}, false, false},
		"unknown, with the data of others":   {[]editObject{origin("")}, true, true},
		"created, with whatever is in it":    {[]editObject{origin("Created")}, true, false},
		"taken over, with whatever is in it": {[]editObject{origin("TakenOver")}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putDeletingBucket(test.edits...)
			h.putPrefix(testEntry)
			h.putTombstone(testEntry, -time.Second)
			if test.other {
				bucket.objects["of another garden/1"] = memObject{size: 7}
			}
			if wait, err := h.passBucket("b"); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if _, exists := h.cloud.buckets["b"]; exists != test.stays {
				t.Fatalf("the bucket is there: %t", exists)
			}
			if test.stays {
				if got := bucket.objects; len(got) != 1 || got["of another garden/1"].size != 7 {
					t.Errorf("left are %v", got)
				}
				if !slices.ContainsFunc(h.recorder.events, func(e harnessEvent) bool { return e.reason == "BucketLeft" && strings.Contains(e.note, "by hand") }) {
					t.Errorf("events %+v", h.recorder.events)
				}
			}
			if got := h.get(bucketsGVR, "b").GetFinalizers(); !slices.Equal(got, []string{"other"}) {
				t.Errorf("finalizers %v", got)
			}
		})
	}
	t.Run("another cluster uses a prefix", func(t *testing.T) {
		h := newHarness(t)
		bucket := h.putDeletingBucket(origin("Adopted"))
		h.putPrefix(testEntry)
		bucket.objects[revocationKey(testEntry, "on another seed")] = memObject{created: h.cloud.now()}
		h.putPrefix("shoot--p--gone--u")
		h.putTombstone("shoot--p--gone--u", -time.Second)
		bucket.objects[revocationKey("shoot--p--empty--u", "u")] = memObject{created: h.cloud.now()}
		if wait, err := h.passBucket("b"); err != nil || wait != 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantPrefix(testEntry, 2)
		h.wantPrefix("shoot--p--gone--u", 0)
		if len(h.marks(testEntry)) != 1 {
			t.Errorf("marks %+v", h.marks(testEntry))
		}
	})
	t.Run("another cluster takes a prefix while the bucket goes", func(t *testing.T) {
		h := newHarness(t)
		bucket := h.putDeletingBucket(origin("Adopted"))
		h.putPrefix(testEntry)
		h.putTombstone(testEntry, -time.Second)
		h.cloud.batch = 1
		h.cloud.deleting = func(string) {
			bucket.objects[revocationKey(testEntry, "on another seed")] = memObject{created: h.cloud.now().Add(time.Second)}
			h.cloud.deleting = nil
		}
		if wait, err := h.passBucket("b"); err != nil || wait != 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantPrefix(testEntry, 1)
	})
	t.Run("more entries than anybody counts", func(t *testing.T) {
		h := newHarness(t)
		bucket := h.putDeletingBucket(origin("Adopted"))
		for i := range maxMarks + 1 {
			name := fmt.Sprintf("shoot--p--%04d--u", i)
			bucket.objects[name+"/1"] = memObject{created: h.cloud.now()}
			h.putTombstone(name, -time.Second)
		}
		if wait, err := h.passBucket("b"); err != nil || wait != 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		if _, exists := h.cloud.buckets["b"]; exists {
			t.Errorf("the bucket is there, with %d objects", len(bucket.objects))
		}
	})
	t.Run("retained objects of an entry are waited for", func(t *testing.T) {
		h := newHarness(t)
		bucket := h.putDeletingBucket(origin("Adopted"))
		bucket.objects[testEntry+"/1"] = memObject{until: h.cloud.now().Add(time.Hour)}
		mark := h.putTombstone(testEntry, time.Hour)
		if wait, err := h.passBucket("b"); err != nil || wait != testVerifyInterval || h.deletionDue() < 59*time.Minute {
			t.Errorf("wait %s, due in %s, error %v", wait, h.deletionDue(), err)
		}
		if _, there := bucket.objects[mark]; !there {
			t.Error("the tombstone went before what it stands for")
		}
	})
}

// Where a bucket came from is recorded when it is first seen.
func TestBucketOriginIsRecorded(t *testing.T) {
	for name, test := range map[string]struct {
		there, ready bool
		want         bucketOrigin
	}{
		"not there":                     {want: originCreated},
		"there before":                  {there: true, want: originAdopted},
		"made by another controller":    {there: true, ready: true, want: originTakenOver},
		"ready, but the bucket is lost": {ready: true, want: originCreated},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			if test.there {
				h.cloud.put("b", Policy{})
			}
			edits := []editObject{withOperation(operationReconcile)}
			if test.ready {
				edits = append(edits, withLast(operationTypeReconcile, stateSucceeded, "done"))
			}
			h.putBucket(false, edits...)
			if _, err := h.passBucket("b"); err != nil {
				t.Fatal(err)
			}
			if got := readRecord(decodeBucket(h.get(bucketsGVR, "b")).ProviderStatus).Origin; got != test.want {
				t.Errorf("origin %q, want %q", got, test.want)
			}
		})
	}
}

// Fault 7: what a tombstone promises is kept for every name that an entry can have.
func TestTombstonesOfOddNames(t *testing.T) {
	for _, name := range []string{"source--a--b", "a--b", "source-source-x--y", "a.b--c", "0--0"} {
		key := tombstoneKey(entryBase(name), testStart, PurgeResult{Retained: 1})
		if m, ok := parseMark(key, testStart); !ok || m.entry != entryBase(name) {
			t.Errorf("%s: %q is %+v, %t", name, key, m, ok)
		}
	}
}

// A changed spec.secretRef lets the old secret go, once the new one is held.
func TestChangedSecretRefReleasesTheOldSecret(t *testing.T) {
	moved := set("new", "spec", "secretRef", "name")
	t.Run("entry", func(t *testing.T) {
		h := newHarness(t)
		h.cloud.put("b", Policy{})
		h.putEntry(testEntry, false, withOperation(operationReconcile))
		if _, err := h.passEntry(testEntry); err != nil {
			t.Fatal(err)
		}
		h.putSecret("garden", "new", staticCredentials())
		h.edit(entriesGVR, testEntry, moved)
		h.edit(entriesGVR, testEntry, withOperation(operationReconcile))
		if _, err := h.passEntry(testEntry); err != nil {
			t.Fatal(err)
		}
		h.wantHeld("new", finalizerBackupEntry, "entry")
		if got := h.get(entriesGVR, testEntry).GetAnnotations()[annotationSecret]; got != "garden/new" {
			t.Errorf("annotation %q", got)
		}
	})
	t.Run("bucket", func(t *testing.T) {
		h := newHarness(t)
		h.putBucket(false, withOperation(operationReconcile))
		if _, err := h.passBucket("b"); err != nil {
			t.Fatal(err)
		}
		h.putSecret("garden", "new", staticCredentials())
		h.edit(bucketsGVR, "b", moved)
		h.edit(bucketsGVR, "b", withOperation(operationReconcile))
		if _, err := h.passBucket("b"); err != nil {
			t.Fatal(err)
		}
		h.wantHeld("new", finalizerBackupBucket, "bucket-b")
	})
	t.Run("deleted before the new one was held", func(t *testing.T) {
		h := newHarness(t)
		h.putPrefix(testEntry)
		h.putEntry(testEntry, true, withFinalizers(finalizerBackupEntry, "other"), deleting, moved, withAnnotation(annotationSecret, "garden/entry"))
		h.putSecret("garden", "new", staticCredentials())
		if _, err := h.passEntry(testEntry); err != nil {
			t.Fatal(err)
		}
		h.wantHeld("", "", "entry")
	})
}

// wantHeld checks that we hold one secret, and not the other.
func (h *harness) wantHeld(held, finalizer, released string) {
	h.t.Helper()
	if held != "" && !slices.Equal(h.secret("garden", held).Finalizers, []string{finalizer}) {
		h.t.Errorf("secret %s has finalizers %q", held, h.secret("garden", held).Finalizers)
	}
	if got := h.secret("garden", released).Finalizers; len(got) > 0 {
		h.t.Errorf("secret %s has finalizers %q", released, got)
	}
}

// A relist may bring the deletion of an object and its successor as one update.
func TestNewObjectOfTheSameName(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		c := newController("x", newMetrics())
		s := &scope{providers: map[string]provider{"s3": nil}, classes: []string{defaultClass}, ignoreOperationAnnotation: ignore}
		informer := &recordingInformer{}
		if _, err := watchObjects(informer, s, c, nil); err != nil {
			t.Fatal(err)
		}
		gone := ""
		c.onGone = func(name string) { gone = name }
		key := cache.ObjectName{Name: "x"}
		c.waitUntil(key, time.Now().Add(time.Hour))
		one := func(uid types.UID, last *lastOperation) *backupEntry {
			return &backupEntry{object: object{ObjectMeta: metav1.ObjectMeta{Name: "x", UID: uid, ResourceVersion: "1"}, Type: "s3", Class: defaultClass, LastOperation: last}}
		}
		informer.handler.OnUpdate(one("1", &lastOperation{State: stateSucceeded}), one("2", nil))
		if gone != "x" || c.notDue(key, time.Now()) > 0 {
			t.Errorf("ignore %t: the old object is remembered", ignore)
		}
		if c.queue.Len() != 1 {
			t.Errorf("ignore %t: the new object is not looked at", ignore)
		}
		c.queue.ShutDown()
	}
}

// An entry may be made anew in the middle of a pass over the one that was there before, whose finalizers somebody removed: no
// write of that pass goes to the new one, which would then count as one that was ready, and write no mark of its own.
func TestWritesStayWithTheirObject(t *testing.T) {
	const source = "source-" + testEntry
	anew := func(h *harness, name string) {
		if err := h.dyn.Tracker().Delete(entriesGVR, "", name); err != nil {
			h.t.Fatal(err)
		}
		h.putEntry(name, false, withFinalizers("other"))
		h.sync()
	}
	for name, at := range map[string]int{"as the deletion begins": 1, "as the deletion ends": 2} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putPrefix(testEntry)
			h.putNamespace(testNamespace, false)
			h.putEntry(source, true, withFinalizers(finalizerBackupEntry, "other"), deleting)
			h.on("patch", "backupentries/status", 2, func() error {
				if at--; at == 0 {
					anew(h, source)
				}
				return nil
			})
			if _, err := h.passEntry(source); err != nil {
				t.Error(err)
			}
			u := h.get(entriesGVR, source)
			if u == nil || u.Object["status"] != nil {
				t.Fatalf("the new entry is %v", u)
			}
			// A mark of another cluster, and then its own: as one that is new.
			bucket.objects[revocationKey(testEntry, "another")] = memObject{created: h.cloud.now().Add(-time.Hour)}
			if _, err := h.passEntry(source); err != nil {
				t.Error(err)
			}
			own := func(key string) bool { m, ok := parseMark(key, time.Time{}); return ok && m.by(u.GetUID()) }
			if keys := slices.Sorted(maps.Keys(bucket.objects)); !slices.ContainsFunc(keys, own) {
				t.Errorf("no mark of its own in %q", keys)
			}
		})
	}
	t.Run("as it is handed over", func(t *testing.T) {
		h := newHarness(t)
		h.putEntry(testEntry, true, withOperation(operationMigrate))
		h.on("patch", "backupentries", 1, func() error { anew(h, testEntry); return nil })
		if _, err := h.passEntry(testEntry); err != nil {
			t.Error(err)
		}
		if u := h.get(entriesGVR, testEntry); u == nil || !slices.Equal(u.GetFinalizers(), []string{"other"}) {
			t.Errorf("the new entry is %v", u)
		}
	})
	t.Run("a change of the same object is no obstacle", func(t *testing.T) {
		h := newHarness(t)
		h.putEntry(testEntry, true, withFinalizers(finalizerBackupEntry))
		e := decodeEntry(h.get(entriesGVR, testEntry))
		h.edit(entriesGVR, testEntry, func(u *unstructured.Unstructured) { u.SetAnnotations(map[string]string{annotationTimestamp: "x"}) })
		if err := h.entries.resource.processing(t.Context(), &e.object, operationTypeReconcile, "working"); err != nil {
			t.Fatal(err)
		}
		h.wantStatus(entriesGVR, testEntry, operationTypeReconcile, stateProcessing)
		if h.requests() != 3 {
			t.Errorf("%d requests, want 3: a try, a look, another try", h.requests())
		}
	})
}

// Of an entry that never got ready nothing is deleted either after somebody asked for its migration, and not for long.
func TestMigrationDoesNotMakeReady(t *testing.T) {
	h := newHarness(t)
	h.putPrefix(testEntry)
	h.putEntry(testEntry, true, withFinalizers(finalizerBackupEntry, "other"), deleting, withLast(operationTypeCreate, stateError, "no"),
		withOperation(operationMigrate))
	h.interfere = func(action clienttesting.Action, serve func() (bool, runtime.Object, error)) (bool, runtime.Object, error) {
		if patch, ok := action.(clienttesting.PatchAction); ok && strings.Contains(string(patch.GetPatch()), string(stateSucceeded)) {
			return true, nil, errors.New("the API server is gone")
		}
		return serve()
	}
	if _, err := h.passEntry(testEntry); err == nil {
		t.Error("no error")
	}
	h.interfere = nil
	h.edit(entriesGVR, testEntry, func(u *unstructured.Unstructured) { u.SetAnnotations(nil) })
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	h.wantPrefix(testEntry, 2)
}

// recordingInformer keeps the handler that it is given.
type recordingInformer struct {
	cache.SharedIndexInformer
	handler cache.ResourceEventHandler
}

func (i *recordingInformer) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	i.handler = handler
	return nil, nil
}

// Without an answer of the API server nothing is deleted.
func TestGuardWithoutAnswers(t *testing.T) {
	h := newHarness(t)
	h.putPrefix(testEntry)
	h.putEntry(testEntry, true, withFinalizers(finalizerBackupEntry, "other"), deleting)
	refused := errors.New("no answer")
	h.cloud.listed = func() { h.answer("get", resourceBackupEntries, 1, refused) }
	if _, err := h.passEntry(testEntry); !errors.Is(err, refused) {
		t.Errorf("error %v", err)
	}
	h.wantPrefix(testEntry, 2)
	if err := (permit{func(context.Context) error { return refused }}).ask(t.Context()); !errors.Is(err, refused) {
		t.Error(err)
	}
}

// workloadIdentity makes the credentials of entries a workload identity with this token.
func (h *harness) workloadIdentity(token string) {
	h.t.Helper()
	h.editSecret("garden", "entry", func(s *corev1.Secret) {
		s.Labels = map[string]string{labelPurpose: purposeTokenRequestor, labelWorkloadProvider: "aws"}
		s.Annotations = map[string]string{annotationWorkloadName: "w", annotationWorkloadNS: "garden"}
		s.Data = map[string][]byte{dataKeyRoleARN: []byte("arn:aws:iam::123456789012:role/backup")}
		if token != "" {
			s.Data[dataKeyToken] = []byte(token)
		}
	})
}

// Where all is retained no leave to delete is asked, and none to write the order for later.
func TestNoTombstoneAgainstAnotherCluster(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{Days: 1})
	c, err := h.cloud.client(bucketRef{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	h.putRevocation(testEntry)
	made := metav1.NewTime(h.cloud.now().Add(-time.Hour))
	entry := &backupEntry{object: object{ObjectMeta: metav1.ObjectMeta{Name: testEntry, UID: "other", CreationTimestamp: made, DeletionTimestamp: &made}}}
	// The pass began after the other cluster had written its mark.
	result := PurgeResult{Retained: 1, RetainedUntil: h.cloud.now().Add(time.Hour), Now: h.cloud.now().Add(time.Minute)}
	err = bury(t.Context(), &prefixGuard{entry: entry, base: testEntry, objects: c}, result)
	var inUse *prefixInUseError
	if marks := h.marks(testEntry); !errors.As(err, &inUse) || len(marks) != 1 {
		t.Errorf("error %v, marks %v", err, marks)
	}
}

// The clock of a store may have whole seconds: a mark that the entry has written itself may
// seem younger than its purge.
func TestTombstoneAfterTheOwnRevocation(t *testing.T) {
	h := newHarness(t)
	bucket := h.cloud.put("b", Policy{Days: 1})
	c, err := h.cloud.client(bucketRef{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	made := metav1.NewTime(h.cloud.now())
	entry := &backupEntry{object: object{ObjectMeta: metav1.ObjectMeta{Name: "source-" + testEntry, UID: "own", CreationTimestamp: made, DeletionTimestamp: &made}}}
	bucket.objects[revocationKey(testEntry, "own")] = memObject{created: h.cloud.now().Add(300 * time.Millisecond)}
	result := PurgeResult{Retained: 1, RetainedUntil: h.cloud.now().Add(time.Hour), Now: h.cloud.now()}
	err = bury(t.Context(), &prefixGuard{entry: entry, base: testEntry, objects: c}, result)
	if marks := h.marks(testEntry); err != nil || !slices.ContainsFunc(marks, func(m mark) bool { return !m.revoked }) {
		t.Errorf("error %v, marks %v", err, marks)
	}
}

// A version that holds data is never taken for a delete marker.
func TestRemoveMarkerRemovesNothingElse(t *testing.T) {
	for _, v := range []version{{key: "a", id: "1"}, {key: "a", marker: true}, {}} {
		if err := removeMarker(t.Context(), nil, v); err == nil {
			t.Errorf("%+v: no error", v)
		}
	}
}
