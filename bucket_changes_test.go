package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var locked100y = Policy{Days: s3MaxRetentionDays, Locked: true}

func (h *harness) wantExpected(want Policy) {
	h.t.Helper()
	locked := 0.0
	if want.Locked {
		locked = 1
	}
	h.wantMetric(locked, "bucketwarden_backupbucket_expected_locked", "b")
	h.wantMetric(float64(want.Days)*24*3600, "bucketwarden_backupbucket_expected_retention_seconds", "b")
}

// wantNotes checks the reasons and parts of the notes of the last pass's events.
func (h *harness) wantNotes(want ...[2]string) {
	h.t.Helper()
	ok := len(h.recorder.events) == len(want)
	for i := range want {
		ok = ok && h.recorder.events[i].reason == want[i][0] && strings.Contains(h.recorder.events[i].note, want[i][1])
	}
	if !ok {
		h.t.Errorf("events %q, want %q", h.recorder.events, want)
	}
}

// What is expected is known before anything is tried, and does not sink with a spec that is broken or weaker.
func TestExpectedIsShownWhateverHappens(t *testing.T) {
	broken := set(map[string]any{"kind": "Nonsense"}, "spec", "providerConfig")
	for _, test := range []struct {
		name    string
		edits   []editObject
		prepare func(h *harness)
		want    Policy
	}{
		{name: "the spec alone", edits: []editObject{withPolicy(locked4d)}, want: locked4d},
		{name: "a spec that asks for more than is recorded", edits: []editObject{withPolicy(locked10d), withRecord(locked4d)}, want: locked10d},
		{name: "a weaker spec", edits: []editObject{withPolicy(locked1d), withRecord(locked4d)}, want: locked4d},
		{name: "an unlocked spec", edits: []editObject{withPolicy(Policy{Days: 9}), withRecord(locked4d)}, want: locked4d},
		{name: "an empty spec", edits: []editObject{withRecord(locked4d)}, want: locked4d},
		{name: "a broken spec", edits: []editObject{broken, withRecord(locked4d)}, want: locked4d},
		{name: "a broken spec and nothing recorded", edits: []editObject{broken}},
		{name: "a record that cannot be read", edits: []editObject{withPolicy(locked4d), set("x", "status", "providerStatus")}, want: locked4d},
		{name: "an unlocked policy that was made shorter", edits: []editObject{withPolicy(unlocked1d), withRecord(unlocked4d)}, want: unlocked4d},
		{name: "a spec that was not asked to be carried out", edits: []editObject{withPolicy(locked10d), withRecord(locked4d), set(int64(7), "metadata", "generation")}, want: locked10d},
		{name: "a deletion that waits", edits: []editObject{withPolicy(locked1d), withRecord(locked4d), deleting},
			prepare: func(h *harness) { h.putEntry(testEntry, false) }, want: locked4d},
		{name: "a deletion", edits: []editObject{withPolicy(locked1d), withRecord(locked4d), deleting}, want: locked4d},
		{name: "wait-for-state", edits: []editObject{withPolicy(locked4d), withOperation(operationWaitForState)}, want: locked4d},
	} {
		for name, trouble := range map[string]func(h *harness){
			"the secret is missing": func(h *harness) { h.deleteSecret("garden", "bucket-b") },
			"the store is down":     func(h *harness) { h.cloud.fail["Observe"] = unavailable },
			"the store denies":      func(h *harness) { h.cloud.fail["Observe"] = denied },
			"the API server is down": func(h *harness) {
				h.answer("patch", "backupbuckets/status", 100, apierrors.NewServiceUnavailable("x"))
				h.answer("patch", "backupbuckets", 100, apierrors.NewServiceUnavailable("x"))
				h.answer("get", "secrets", 100, apierrors.NewServiceUnavailable("x"))
			},
		} {
			for _, operation := range []string{"", operationReconcile} {
				t.Run(test.name+", "+name+" "+operation, func(t *testing.T) {
					h := newHarness(t)
					h.cloud.put("b", Policy{})
					edits := test.edits
					if operation != "" {
						edits = append([]editObject{withOperation(operation)}, edits...)
					}
					h.putBucket(true, edits...)
					if test.prepare != nil {
						test.prepare(h)
					}
					trouble(h)
					_, _ = h.passBucket("b")
					h.wantExpected(test.want)
				})
			}
		}
	}
}

// A spec that is not to be carried out yet is expected all the same, and what it asks for is not foreign.
func TestExpectedOfASpecThatIsNotCarriedOut(t *testing.T) {
	h := newHarness(t)
	b := h.cloud.put("b", locked4d)
	h.putBucket(true, withPolicy(locked10d), withRecord(locked4d), set(int64(7), "metadata", "generation"))
	for _, live := range []Policy{locked4d, locked10d, locked100y} {
		b.state.Policy = live
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.wantExpected(locked10d)
		foreign := 0.0
		if live == locked100y {
			foreign = 1
		}
		h.wantMetric(foreign, "bucketwarden_backupbucket_foreign_policy", "b")
	}
}

// Afterwards it is what is recorded then: an unlocked policy may be made shorter.
func TestExpectedFollowsThePass(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", unlocked4d)
	h.putBucket(true, withPolicy(unlocked1d), withRecord(unlocked4d), withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	h.wantExpected(unlocked1d)
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
		withPolicy(Policy{})(u)
		withOperation(operationReconcile)(u)
	})
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	h.wantExpected(Policy{})
	h.wantMetric(0, "bucketwarden_backupbucket_foreign_policy", "b")
}

// Drift counts when it is seen, once, whatever becomes of its repair. That it was not repaired is told once, and seen in
// status and metrics.
func TestDriftThatCannotBeRepaired(t *testing.T) {
	const drift, repairs = "bucketwarden_backupbucket_policy_drift_total", "bucketwarden_backupbucket_policy_repairs_total"
	for _, test := range []struct {
		name string
		err  error
		// edits are of a BackupBucket that is verified.
		edits []editObject
		// shown: as an Error.
		shown bool
	}{
		{name: "denied", err: denied, edits: []editObject{withPolicy(locked4d)}, shown: true},
		{name: "unavailable", err: unavailable, edits: []editObject{withPolicy(locked4d)}},
		{name: "a broken spec", err: denied, edits: []editObject{set(map[string]any{"kind": "Nonsense"}, "spec", "providerConfig")}, shown: true},
		{name: "a weaker spec", err: denied, edits: []editObject{withPolicy(locked1d)}, shown: true},
		{name: "an empty spec", err: denied, edits: []editObject{withPolicy(Policy{})}, shown: true},
		{name: "a spec that is not to be carried out", err: denied, edits: []editObject{withPolicy(Policy{}), set(int64(7), "metadata", "generation")}},
		{name: "a deletion that waits", err: denied, edits: []editObject{withPolicy(locked4d), deleting}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			h.cloud.put("b", locked4d)
			h.putEntry(testEntry, false)
			h.putBucket(true, append([]editObject{withRecord(locked4d), set([]any{map[string]any{"type": conditionImmutable, "status": "True", "reason": "Locked"}},
				"status", "conditions")}, test.edits...)...)
			h.cloud.put("b", Policy{})
			h.cloud.fail["LockPolicy"] = test.err
			for i := range 3 {
				clear(h.buckets.resource.controller.due)
				_, _ = h.passBucket("b")
				h.wantExpected(locked4d)
				h.wantMetric(0, "bucketwarden_backupbucket_locked", "b")
				h.wantMetric(0, "bucketwarden_backupbucket_retention_seconds", "b")
				h.wantMetric(1, drift, "b")
				h.wantMetric(0, repairs, "b")
				if i > 0 {
					h.wantNotes()
					continue
				}
				h.wantNotes([2]string{"PolicyNotRestored", "The bucket should have a locked retention of 96h, the store says no immutability; it was not restored: " + test.err.Error()})
			}
			if c := h.conditionOf(conditionImmutable); c["status"] != "False" || c["reason"] != "NoPolicy" {
				t.Errorf("condition %v", c)
			}
			if s := h.status(bucketsGVR, "b"); strings.Contains(s.Error, "could not be restored") != test.shown {
				t.Errorf("status %+v", s)
			}
			// Another change, though the first one was not undone.
			h.cloud.put("b", unlocked1d)
			for range 2 {
				clear(h.buckets.resource.controller.due)
				_, _ = h.passBucket("b")
			}
			h.wantMetric(2, drift, "b")
			h.cloud.put("b", Policy{})
			clear(h.buckets.resource.controller.due)
			_, _ = h.passBucket("b")
			h.wantMetric(3, drift, "b")
			h.wantNotes([2]string{"PolicyNotRestored", "no immutability"})

			delete(h.cloud.fail, "LockPolicy")
			clear(h.buckets.resource.controller.due)
			_, _ = h.passBucket("b")
			events := h.recorder.events
			if !slices.ContainsFunc(events, func(e harnessEvent) bool {
				return e.reason == "PolicyDrift" && strings.HasSuffix(e.note, "it was restored")
			}) {
				t.Errorf("events %q", events)
			}
			h.wantMetric(3, drift, "b")
			h.wantMetric(1, repairs, "b")
			h.wantMetric(1, "bucketwarden_backupbucket_locked", "b")
			if c := h.conditionOf(conditionImmutable); c["status"] != "True" {
				t.Errorf("condition %v", c)
			}
			// The same again is a change of its own.
			h.cloud.put("b", Policy{})
			clear(h.buckets.resource.controller.due)
			_, _ = h.passBucket("b")
			h.wantMetric(4, drift, "b")
			h.wantMetric(2, repairs, "b")
		})
	}
}

// What a pass leaves half done is no further change of somebody else, and one that was cut off has not failed.
func TestDriftIsNotCountedAgainForWhatWeDid(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.cloud.fail["LockPolicy"] = unavailable
	h.putBucket(true, withPolicy(locked4d), withRecord(unlocked4d))
	for range 3 {
		if _, err := h.passBucket("b"); err == nil {
			t.Error("no error")
		}
	}
	if got := h.cloud.buckets["b"].state.Policy; got != unlocked4d {
		t.Errorf("the bucket has %s", got)
	}
	h.wantMetric(1, "bucketwarden_backupbucket_policy_drift_total", "b")

	h = newHarness(t)
	h.cloud.put("b", Policy{})
	h.cloud.fail["LockPolicy"] = &storeError{err: context.Canceled}
	h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
	if _, err := h.passBucket("b"); err == nil {
		t.Error("no error")
	}
	h.wantEvents()
	h.wantMetric(1, "bucketwarden_backupbucket_policy_drift_total", "b")
}

// A stranger's shorter lock over an unlocked policy cannot be undone: it is less than what should be, and shown as that.
func TestDriftThatTheStoreKeeps(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", locked1d)
	h.putBucket(true, withPolicy(unlocked4d), withRecord(unlocked4d))
	for range 2 {
		if _, err := h.passBucket("b"); err == nil {
			t.Error("no error")
		}
	}
	h.wantExpected(unlocked4d)
	h.wantMetric(1, "bucketwarden_backupbucket_policy_drift_total", "b")
	h.wantMetric(0, "bucketwarden_backupbucket_policy_repairs_total", "b")
	h.wantMetric(0, "bucketwarden_backupbucket_foreign_policy", "b")
	if h.record() != unlocked4d {
		t.Errorf("recorded %s", h.record())
	}
	// What the message says helps.
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
		withPolicy(locked4d)(u)
		withOperation(operationReconcile)(u)
	})
	if _, err := h.passBucket("b"); err != nil || h.record() != locked4d {
		t.Errorf("recorded %s, error %v", h.record(), err)
	}
}

// A bucket that is gone counts once, even if it cannot be created anew at once, or not locked.
func TestLossIsCountedOnce(t *testing.T) {
	for _, recorded := range []Policy{locked4d, {}} {
		for _, method := range []string{"Create", "LockPolicy"} {
			if recorded.None() && method == "LockPolicy" {
				continue
			}
			t.Run(fmt.Sprint(recorded, " ", method), func(t *testing.T) {
				h := newHarness(t)
				h.cloud.fail[method] = denied
				h.putBucket(true, withPolicy(recorded), withRecord(recorded))
				var notes []string
				for range 3 {
					if _, err := h.passBucket("b"); err == nil {
						t.Error("no error")
					}
					for _, e := range h.recorder.events {
						notes = append(notes, e.reason)
					}
				}
				want := []string{"BucketLost"}
				if method == "LockPolicy" {
					want = []string{"BucketCreated", "BucketLost", "PolicyNotRestored"}
				}
				if !slices.Equal(notes, want) {
					t.Errorf("events %q, want %q", notes, want)
				}
				h.wantMetric(0, "bucketwarden_backupbucket_policy_repairs_total", "b")
				delete(h.cloud.fail, method)
				if _, err := h.passBucket("b"); err != nil {
					t.Error(err)
				}
				h.wantMetric(1, "bucketwarden_backupbucket_policy_drift_total", "b")
				h.wantMetric(1, "bucketwarden_backupbucket_policy_repairs_total", "b")
				if method == "Create" && !slices.ContainsFunc(h.recorder.events, func(e harnessEvent) bool {
					return e.reason == "BucketLost" && strings.HasSuffix(e.note, "created anew")
				}) {
					t.Errorf("events %q", h.recorder.events)
				}
				if h.cloud.buckets["b"].state.Policy != recorded {
					t.Errorf("the bucket has %s", h.cloud.buckets["b"].state.Policy)
				}
			})
		}
	}
}

// A stranger's lock for a hundred years is seen and left. It is not ours: once the operator undoes it, nothing puts it back.
func TestForeignPolicyIsLeftAndNotPutBack(t *testing.T) {
	for _, atOnce := range []bool{true, false} {
		for _, recorded := range []Policy{locked4d, {}} {
			t.Run(fmt.Sprint(atOnce, recorded), func(t *testing.T) {
				h := newHarness(t)
				h.cloud.atOnce = atOnce
				b := h.cloud.put("b", locked4d)
				h.putBucket(true, withPolicy(locked4d), withRecord(recorded), withOperation(operationReconcile))
				if recorded.None() {
					// It was there before.
					b.state.Policy = locked100y
				}
				if _, err := h.passBucket("b"); err != nil {
					t.Fatal(err)
				}
				b.state.Policy = locked100y
				passes := 0
				pass := func(edits ...editObject) {
					t.Helper()
					passes++
					h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
						for _, edit := range edits {
							edit(u)
						}
					})
					if _, err := h.passBucket("b"); err != nil {
						t.Error(err)
					}
					if changes := slices.DeleteFunc(h.storeChanges(), func(line string) bool { return line == "store b Harden" }); len(changes) > 0 {
						t.Errorf("changes %q", changes)
					}
					h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
					if got := h.record(); got.Days > 10 || !got.Locked {
						t.Errorf("recorded %s", got)
					}
				}
				for range 3 {
					pass()
				}
				h.wantEvents()
				h.wantExpected(locked4d)
				h.wantMetric(1, "bucketwarden_backupbucket_foreign_policy", "b")
				if c := h.conditionOf(conditionForeign); c["status"] != "True" || !strings.Contains(fmt.Sprint(c["message"]), locked100y.String()) || !strings.Contains(fmt.Sprint(c["message"]), locked4d.String()) {
					t.Errorf("condition %v", c)
				}
				// More may be asked for, and is ours then.
				pass(withPolicy(locked10d), withOperation(operationReconcile))
				if h.record() != locked10d {
					t.Errorf("recorded %s", h.record())
				}
				h.wantExpected(locked10d)
				// The operator undoes it, on S3.
				b.state.Policy = locked10d
				pass()
				h.wantMetric(0, "bucketwarden_backupbucket_foreign_policy", "b")
				if c := h.conditionOf(conditionForeign); c["status"] != "False" {
					t.Errorf("condition %v", c)
				}
				// Or all of it: what was asked for comes back.
				b.state.Policy = locked100y
				pass()
				b.state.Policy = Policy{}
				if _, err := h.passBucket("b"); err != nil || b.state.Policy != locked10d {
					t.Errorf("the bucket has %s, error %v", b.state.Policy, err)
				}
				h.wantMetric(0, "bucketwarden_policy_refusals_total", "b", reasonShorten)
			})
		}
	}
}

// It is told when it begins and when it changes, not at every look, and not again by another process.
func TestForeignPolicyIsToldOnce(t *testing.T) {
	h := newHarness(t)
	b := h.cloud.put("b", locked4d)
	h.putBucket(true, withPolicy(locked4d), withRecord(locked4d), withOperation(operationReconcile))
	look := func(live Policy, notes ...[2]string) {
		t.Helper()
		b.state.Policy = live
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.wantNotes(notes...)
	}
	look(locked4d)
	look(locked10d, [2]string{"ForeignPolicy", "The store says: locked retention of 240h. Expected is: locked retention of 96h."})
	h.wantTrace("get secrets garden/bucket-b", "store b Observe", "status backupbuckets b <nil> <nil> +conditions")
	look(locked10d)
	h.wantTrace("get secrets garden/bucket-b", "store b Observe")
	look(locked100y, [2]string{"ForeignPolicy", locked100y.String()})
	h.buckets.tellings.forget("b")
	look(locked100y)
	look(locked4d)
	look(locked100y, [2]string{"ForeignPolicy", locked100y.String()})
	// Also where no condition tells yet.
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) { unstructured.RemoveNestedField(u.Object, "status", "conditions") })
	look(locked10d, [2]string{"ForeignPolicy", locked10d.String()})
	look(locked10d)
	if len(h.buckets.tellings.told) != 1 {
		t.Errorf("remembered %v", h.buckets.tellings.told)
	}
	look(locked4d)
	if len(h.buckets.tellings.told) != 0 {
		t.Errorf("remembered %v", h.buckets.tellings.told)
	}
}

// Nobody but us may know of a lock that we have set: it is recorded before anything else can go wrong.
func TestLockIsRecordedAtOnce(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: resourceBackupBuckets}, "b", errTesting)
	for name, trouble := range map[string]func(h *harness){
		"hardening is cut off": func(h *harness) {
			h.cloud.fail["Harden"] = &storeError{err: context.Canceled}
		},
		"killed while it is hardened": func(h *harness) { h.cloud.hardening = func() { panic("killed") } },
		"the last status has a conflict": func(h *harness) {
			h.cloud.hardening = func() { h.answer("patch", "backupbuckets/status", 1, conflict) }
		},
		"read back fails": func(h *harness) { h.cloud.locked = func() { h.cloud.fail["Observe"] = unavailable } },
		"read back is cut off": func(h *harness) {
			h.cloud.locked = func() { h.cloud.fail["Observe"] = &storeError{err: context.Canceled} }
		},
	} {
		for _, verify := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", verify), func(t *testing.T) {
				h := newHarness(t)
				h.cloud.put("b", Policy{})
				edits := []editObject{withPolicy(locked4d)}
				if !verify {
					edits = append(edits, withOperation(operationReconcile))
				} else if strings.Contains(name, "harden") || strings.Contains(name, "conflict") {
					// A verification hardens what is not known to be hardened.
					edits = append(edits, set([]any{map[string]any{"type": conditionHardened, "status": "Unknown"}}, "status", "conditions"))
				}
				h.putBucket(true, edits...)
				trouble(h)
				ctx, cancel := context.WithCancel(t.Context())
				if strings.Contains(name, "cut off") {
					h.cloud.locked = after(h.cloud.locked, cancel)
				}
				func() {
					defer func() { _ = recover() }()
					_, _ = h.pass(ctx, h.buckets.reconcile, "b", false)
				}()
				cancel()
				if h.record() != locked4d || h.cloud.buckets["b"].state.Policy != locked4d {
					t.Errorf("recorded %s, the bucket has %s", h.record(), h.cloud.buckets["b"].state.Policy)
				}
			})
		}
	}
	t.Run("the record cannot be written", func(t *testing.T) {
		h := newHarness(t)
		h.cloud.put("b", Policy{})
		h.putBucket(true, withPolicy(locked4d), withOperation(operationReconcile))
		h.cloud.locked = func() { h.answer("patch", "backupbuckets/status", 1, conflict) }
		if _, err := h.passBucket("b"); err != nil || h.record() != locked4d {
			t.Errorf("recorded %s, error %v", h.record(), err)
		}
	})
	t.Run("killed before it is recorded", func(t *testing.T) {
		h := newHarness(t)
		h.cloud.put("b", Policy{})
		h.putBucket(true, withPolicy(locked4d), withOperation(operationReconcile))
		h.cloud.locked = func() { panic("killed") }
		func() {
			defer func() { _ = recover() }()
			_, _ = h.passBucket("b")
		}()
		h.cloud.locked = nil
		if h.record() != (Policy{}) {
			t.Fatalf("recorded %s", h.record())
		}
		if _, err := h.passBucket("b"); err != nil || h.record() != locked4d {
			t.Errorf("recorded %s, error %v", h.record(), err)
		}
	})
	t.Run("with the cloud that it is in", func(t *testing.T) {
		h := newHarness(t)
		h.putAzure(false, locked4d, withAzureConfig(locked4d, map[string]any{"cloudConfiguration": map[string]any{"name": "AzurePublic"}}))
		h.cloud.hardening = func() { panic("killed") }
		func() {
			defer func() { _ = recover() }()
			_, _ = h.passBucket("b")
		}()
		if got := readRecord(decodeBucket(h.get(bucketsGVR, "b")).ProviderStatus); got.Policy != locked4d || got.Cloud != "AzurePublic" {
			t.Errorf("recorded %+v", got)
		}
	})
	t.Run("a repair", func(t *testing.T) {
		h := newHarness(t)
		h.cloud.put("b", Policy{})
		h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
		if _, err := h.passBucket("b"); err != nil || h.requests() != 1 {
			t.Errorf("requests %q, error %v", h.trace, err)
		}
	})
}

// after calls first, if there is one, and then.
func after(first, then func()) func() {
	return func() {
		if first != nil {
			first()
		}
		then()
	}
}

// What is not kept is not recorded.
func TestLockThatIsNotKeptIsNotRecorded(t *testing.T) {
	shortReadBack(t)
	h := newHarness(t)
	h.cloud.ignoresPolicy = true
	h.cloud.atOnce = true
	h.putBucket(false, withPolicy(locked4d))
	if _, err := h.passBucket("b"); err == nil || errors.As(err, new(*Refusal)) || h.record() != (Policy{}) {
		t.Errorf("recorded %s, error %v", h.record(), err)
	}
}
