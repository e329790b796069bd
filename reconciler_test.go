package main

import (
	"context"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
)

func TestEntryKeepsSharedCredentials(t *testing.T) {
	for name, operation := range map[string]string{"delete": "", "migrate": operationMigrate} {
		for title, test := range map[string]struct {
			edits []editObject
			kept  bool
		}{
			"shared":                    {[]editObject{withFinalizers(finalizerBackupEntry)}, true},
			"shared by an unheld entry": {nil, false},
			"shared by a deleting one":  {[]editObject{withFinalizers(finalizerBackupEntry), deleting}, true},
			"other secret":              {[]editObject{withFinalizers(finalizerBackupEntry), set("other", "spec", "secretRef", "name")}, false},
		} {
			t.Run(name+" "+title, func(t *testing.T) {
				h := newHarness(t)
				h.putDeletingEntry(testEntry)
				if operation != "" {
					h.edit(entriesGVR, testEntry, withOperation(operation))
				}
				h.putEntry("shoot--p--other--u", false, test.edits...)
				if _, err := h.passEntry(testEntry); err != nil {
					t.Error(err)
				}
				if held := len(h.secret("garden", "entry").Finalizers) > 0; held != test.kept {
					t.Errorf("the secret is held: %t", held)
				}
			})
		}
	}
}

// Of two entries that go at once, one releases the secret.
func TestEntrySharedCredentialsAreReleasedByOne(t *testing.T) {
	h := newHarness(t)
	h.putDeletingEntry(testEntry)
	h.putEntry("shoot--p--other--u", true, deleting, withLast(operationTypeDelete, stateSucceeded, "done"))
	if _, err := h.passEntry(testEntry); err != nil {
		t.Error(err)
	}
	if held := h.secret("garden", "entry").Finalizers; len(held) > 0 {
		t.Errorf("finalizers %v", held)
	}
}

// A reconcile that ends without a status, as at a shutdown, is not lost with its annotation.
func TestBucketReconcileIsWantedUntilItIsDone(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.cloud.fail["Observe"] = context.Canceled
	h.putBucket(true, withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err == nil {
		t.Error("no error")
	}
	if s := h.status(bucketsGVR, "b"); s.State != string(stateSucceeded) {
		t.Errorf("state %s", s.State)
	}
	if !h.buckets.resource.controller.takeWanted(cache.ObjectName{Name: "b"}) {
		t.Error("the reconcile is forgotten")
	}
}

// A reconcile that ends without a status, as at a shutdown, is not lost with its annotation.
func TestEntryReconcileIsWantedUntilItIsDone(t *testing.T) {
	h := newHarness(t)
	h.putNamespace(testNamespace, false)
	h.putEntry(testEntry, true, withOperation(operationReconcile))
	h.answer("get", "secrets", 1, context.Canceled)
	if _, err := h.passEntry(testEntry); err == nil {
		t.Error("no error")
	}
	if !h.entries.resource.controller.takeWanted(cache.ObjectName{Name: testEntry}) {
		t.Error("the reconcile is forgotten")
	}
}

// deletedObjects are one of each, as it is being deleted, with all that belongs to it.
var deletedObjects = map[string]struct {
	gvr          schema.GroupVersionResource
	name, secret string
	put          func(*harness)
	pass         func(*harness, string) (time.Duration, error)
	// migrates: an operation of that name ends the deletion.
	migrates bool
}{
	"bucket": {bucketsGVR, "b", "bucket-b", func(h *harness) { h.putDeletingBucket() }, (*harness).passBucket, false},
	"Azure":  {bucketsGVR, "b", "bucket-b", func(h *harness) { h.putDeletingAzure() }, (*harness).passBucket, false},
	"entry":  {entriesGVR, testEntry, "entry", func(h *harness) { h.putDeletingEntry(testEntry) }, (*harness).passEntry, true},
}

// The cache may lag: what counts is the live object.
func TestDeleteReadsLive(t *testing.T) {
	for kind, object := range deletedObjects {
		for name, change := range map[string]editObject{
			"another object":  func(u *unstructured.Unstructured) { u.SetUID("new") },
			"wait-for-state":  withOperation(operationWaitForState),
			"migrate":         withOperation(operationMigrate),
			"not deleting":    func(u *unstructured.Unstructured) { u.SetDeletionTimestamp(nil) },
			"released by now": func(u *unstructured.Unstructured) { u.SetFinalizers([]string{"other"}) },
			"gone":            nil,
		} {
			if name == "migrate" && !object.migrates {
				continue
			}
			t.Run(kind+" "+name, func(t *testing.T) {
				h := newHarness(t)
				object.put(h)
				h.sync()
				h.frozen = true
				if change != nil {
					h.edit(object.gvr, object.name, change)
				} else if err := h.dyn.Tracker().Delete(object.gvr, "", object.name); err != nil {
					t.Fatal(err)
				}
				if wait, err := object.pass(h, object.name); err != nil || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
				h.wantTrace("get " + object.gvr.Resource + " " + object.name)
			})
		}
	}
}

// gardenlet patches the secret every few seconds while it waits for a deletion.
func TestDeleteSurvivesConflicts(t *testing.T) {
	for _, kind := range []string{"bucket", "entry"} {
		t.Run(kind, func(t *testing.T) {
			object, h := deletedObjects[kind], newHarness(t)
			object.put(h)
			for range 2 {
				h.on("patch", "secrets", 1, func() error {
					h.editSecret("garden", object.secret, func(s *corev1.Secret) { s.Annotations = map[string]string{"x": h.nextVersion()} })
					return nil
				})
				h.on("patch", object.gvr.Resource, 1, func() error {
					h.edit(object.gvr, object.name, withAnnotation("x", h.nextVersion()))
					return nil
				})
			}
			if wait, err := object.pass(h, object.name); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if got := h.get(object.gvr, object.name).GetFinalizers(); !slices.Equal(got, []string{"other"}) {
				t.Errorf("finalizers %v", got)
			}
			if got := h.secret("garden", object.secret).Finalizers; len(got) > 0 {
				t.Errorf("the secret has finalizers %v", got)
			}
		})
	}
}
