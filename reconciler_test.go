package main

import (
	"context"
	"testing"

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
