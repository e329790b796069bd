package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"
)

// editObject is a change of an object under test.
type editObject = func(*unstructured.Unstructured)

// testObject makes a custom resource of type aws in region eu-1.
func testObject(kind, name, secret string, edits ...editObject) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": extensionsGV.String(),
		"kind":       kind,
		"spec": map[string]any{
			"type": "aws", "region": "eu-1",
			"secretRef": map[string]any{"namespace": "garden", "name": secret},
		},
	}}
	u.SetName(name)
	u.SetGeneration(1)
	for _, edit := range edits {
		edit(u)
	}
	return u
}

func set(value any, path ...string) editObject {
	return func(u *unstructured.Unstructured) {
		if err := unstructured.SetNestedField(u.Object, value, path...); err != nil {
			panic(err)
		}
	}
}

func withAnnotation(key, value string) editObject {
	return func(u *unstructured.Unstructured) {
		annotations := u.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[key] = value
		u.SetAnnotations(annotations)
	}
}

func withOperation(operation string) editObject {
	return withAnnotation(annotationOperation, operation)
}

func withFinalizers(finalizers ...string) editObject {
	return func(u *unstructured.Unstructured) { u.SetFinalizers(append(u.GetFinalizers(), finalizers...)) }
}

func deleting(u *unstructured.Unstructured) {
	now := metav1.NewTime(testStart)
	u.SetDeletionTimestamp(&now)
}

// withLast is a status of an earlier pass that has seen the current generation.
func withLast(opType operationType, state operationState, description string) editObject {
	return func(u *unstructured.Unstructured) {
		set(map[string]any{
			"type": string(opType), "state": string(state), "progress": progress[state],
			"description": description, "lastUpdateTime": testStart.Format(time.RFC3339),
		}, "status", "lastOperation")(u)
		set(u.GetGeneration(), "status", "observedGeneration")(u)
		if state == stateError {
			set(map[string]any{"description": description}, "status", "lastError")(u)
		}
	}
}

// testConfig is a providerConfig that asks for p.
func testConfig(p Policy) map[string]any {
	config := map[string]any{"apiVersion": "aws.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketConfig"}
	if !p.None() {
		config["immutability"] = map[string]any{"retentionType": "bucket", "retentionPeriod": p.Hours(), "locked": p.Locked}
	}
	return config
}

func withPolicy(p Policy) editObject { return set(testConfig(p), "spec", "providerConfig") }

// withRecord is the status.providerStatus that records p, of a bucket that we have created.
func withRecord(p Policy) editObject {
	return func(u *unstructured.Unstructured) {
		status := map[string]any{"apiVersion": "aws.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketStatus", "origin": "Created"}
		if !p.None() {
			mode := modeGovernance
			if p.Locked {
				mode = modeCompliance
			}
			status["immutability"] = map[string]any{"retentionType": "bucket", "retentionPeriod": p.Hours(), "locked": p.Locked, "mode": mode}
		}
		set(status, "status", "providerStatus")(u)
	}
}

// putBucket stores BackupBucket b with its secret. A settled one has both finalizers and
// has Succeeded.
func (h *harness) putBucket(settled bool, edits ...editObject) {
	h.t.Helper()
	var held []string
	if settled {
		held = []string{finalizerBackupBucket}
		edits = append([]editObject{withFinalizers(finalizerBackupBucket), withLast(operationTypeReconcile, stateSucceeded, "done"), withRecord(Policy{})}, edits...)
	}
	h.put(bucketsGVR, testObject(kindBackupBucket, "b", "bucket-b", edits...))
	h.putSecret("garden", "bucket-b", staticCredentials(), held...)
}

func (h *harness) conditionOf(conditionType string) map[string]any {
	h.t.Helper()
	conditions, _, _ := unstructured.NestedSlice(h.get(bucketsGVR, "b").Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == conditionType {
			return c
		}
	}
	return map[string]any{}
}

func (h *harness) record() Policy {
	h.t.Helper()
	return readRecord(decodeBucket(h.get(bucketsGVR, "b")).ProviderStatus).Policy
}

var (
	locked1d    = Policy{Days: 1, Locked: true}
	locked4d    = Policy{Days: 4, Locked: true}
	locked10d   = Policy{Days: 10, Locked: true}
	unlocked1d  = Policy{Days: 1}
	unlocked4d  = Policy{Days: 4}
	errTesting  = errors.New("out of order")
	unavailable = &storeError{code: codeRetryableDependencies, err: errTesting}
	denied      = &storeError{code: codeUnauthorized, err: errors.New("access denied")}
)

func TestBucketCreate(t *testing.T) {
	h := newHarness(t)
	h.putBucket(false, withPolicy(locked4d), withOperation(operationReconcile), withAnnotation(annotationTimestamp, "2026-01-02T03:04:05.6Z"))
	wait, err := h.passBucket("b")
	if err != nil || wait != testVerifyInterval {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(
		"patch backupbuckets b annotations,finalizers",
		"get secrets garden/bucket-b",
		"status backupbuckets b Create Processing",
		"patch secrets garden/bucket-b finalizers",
		"store b Observe",
		"store b Create immutable",
		"store b Observe",
		"store b SetPolicy unlocked retention of 96h",
		"store b Observe",
		"store b LockPolicy locked retention of 96h",
		"store b Observe",
		"status backupbuckets b <nil> <nil> +providerStatus",
		"store b Harden",
		"status backupbuckets b Create Succeeded +conditions",
	)
	h.wantEvents("BucketCreated", "PolicySet", "PolicyLocked")
	h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateSucceeded)
	if got := h.record(); got != locked4d {
		t.Errorf("recorded %v", got)
	}
	if c := h.conditionOf(conditionImmutable); c["status"] != "True" || c["reason"] != "Locked" {
		t.Errorf("condition %v", c)
	}
	if c := h.conditionOf(conditionHardened); c["status"] != "True" {
		t.Errorf("condition %v", c)
	}
	if got := h.cloud.buckets["b"]; got.region != "eu-1" || got.state.Policy != locked4d {
		t.Errorf("bucket %+v", got)
	}
	h.wantMetric(1, "bucketwarden_backupbucket_locked", "b")
	h.wantMetric(4*24*3600, "bucketwarden_backupbucket_retention_seconds", "b")
	h.wantMetric(1, "bucketwarden_backupbucket_desired_locked", "b")
	h.wantMetric(4*24*3600, "bucketwarden_backupbucket_desired_retention_seconds", "b")
	h.wantMetric(1, "bucketwarden_backupbucket_policy_locks_total", "b")
	h.wantMetric(1, "bucketwarden_backupbucket_info", "b", "eu-1", "aws")
	u := h.get(bucketsGVR, "b")
	if u.GetAnnotations()[annotationTimestamp] == "" || u.GetGeneration() != 1 {
		t.Errorf("metadata %v", u.Object["metadata"])
	}
	if _, found, _ := unstructured.NestedFieldNoCopy(u.Object, "status", "generatedSecretRef"); found {
		t.Error("S3 has no generated secret")
	}

	h.edit(bucketsGVR, "b", withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantTrace(
		"patch backupbuckets b annotations",
		"get secrets garden/bucket-b",
		"store b Observe",
		"store b Harden",
		"status backupbuckets b Reconcile Succeeded",
	)
	h.wantEvents()
}

func TestBucketWithoutImmutabilityIsCreatedWithoutObjectLock(t *testing.T) {
	h := newHarness(t)
	h.cloud.gaps = []string{"No TLS.", "No encryption."}
	h.putBucket(false)
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	if got, want := h.storeChanges(), []string{"store b Create", "store b Harden"}; !slices.Equal(got, want) {
		t.Errorf("changes %v, want %v", got, want)
	}
	if c := h.conditionOf(conditionHardened); c["status"] != "False" || c["message"] != "No TLS. No encryption." {
		t.Errorf("condition %v", c)
	}
	if c := h.conditionOf(conditionImmutable); c["status"] != "False" || c["reason"] != "NoPolicy" {
		t.Errorf("condition %v", c)
	}
}

func TestBucketPolicyTable(t *testing.T) {
	const (
		setUnlocked4d = "store b SetPolicy unlocked retention of 96h"
		lock4d        = "store b LockPolicy locked retention of 96h"
	)
	type row struct {
		name                    string
		desired, live, recorded Policy
		// changes come before hardening.
		changes []string
		refusal string
		drift   bool
		// keeps: the record is as before; else it is the wish.
		keeps bool
		// foreign: the bucket has more than that, which is left and reported.
		foreign   bool
		condition string
	}
	var tests []row
	for _, test := range []row{
		{name: "nothing wanted, nothing there", condition: "False NoPolicy"},
		{name: "our unlocked policy is removed", live: unlocked4d, recorded: unlocked4d, changes: []string{"store b SetPolicy no immutability"}, condition: "False NoPolicy"},
		{name: "an unlocked policy of others is left", live: unlocked4d, foreign: true, condition: "False Unlocked"},
		{name: "a locked policy of others is left", live: locked4d, foreign: true, condition: "True Locked"},
		{name: "our lock is not disabled", live: locked4d, recorded: locked4d, refusal: reasonDisable, keeps: true, condition: "True Locked"},
		{name: "unlocked is set", desired: unlocked4d, changes: []string{setUnlocked4d}, condition: "False Unlocked"},
		{name: "unlocked is shortened", desired: unlocked1d, live: unlocked4d, recorded: unlocked4d, changes: []string{"store b SetPolicy unlocked retention of 24h"}, condition: "False Unlocked"},
		{name: "a lock of others is left where unlocked is asked for", desired: unlocked4d, live: locked4d, foreign: true, condition: "True Locked"},
		{name: "an unlocked policy that others locked is left", desired: unlocked4d, live: locked4d, recorded: unlocked4d, foreign: true, condition: "True Locked"},
		{name: "a shorter lock of others stands against unlocked", desired: unlocked4d, live: locked1d, refusal: reasonUnlock, keeps: true, condition: "True Locked"},
		{name: "our lock is not unlocked", desired: unlocked4d, live: locked4d, recorded: locked4d, refusal: reasonUnlock, keeps: true, condition: "True Locked"},
		{name: "locked is set, then locked", desired: locked4d, changes: []string{setUnlocked4d, lock4d}, condition: "True Locked"},
		{name: "unlocked is locked", desired: locked4d, live: unlocked4d, recorded: unlocked4d, changes: []string{lock4d}, condition: "True Locked"},
		{name: "another unlocked is set, then locked", desired: locked4d, live: unlocked1d, recorded: unlocked1d, changes: []string{setUnlocked4d, lock4d}, condition: "True Locked"},
		{name: "a lock is extended", desired: locked10d, live: locked4d, recorded: locked4d, changes: []string{"store b LockPolicy locked retention of 240h"}, condition: "True Locked"},
		{name: "a lock is adopted", desired: locked4d, live: locked4d, condition: "True Locked"},
		{name: "a lock is not shortened", desired: locked1d, live: locked4d, recorded: locked4d, refusal: reasonShorten, keeps: true, condition: "True Locked"},
		{name: "a longer lock of others is left", desired: locked1d, live: locked4d, foreign: true, condition: "True Locked"},
		{name: "a lock that others extended is left", desired: locked4d, live: locked10d, recorded: locked4d, foreign: true, condition: "True Locked"},
		{name: "a lock that others extended does not keep ours from growing", desired: locked4d, live: locked10d, recorded: locked1d, foreign: true, condition: "True Locked"},
		{name: "our lock that others extended is not shortened", desired: locked1d, live: locked10d, recorded: locked4d, refusal: reasonShorten, keeps: true, foreign: true, condition: "True Locked"},
		{name: "a removed lock is restored", desired: locked4d, recorded: locked4d, changes: []string{lock4d}, drift: true, condition: "True Locked"},
		{name: "an opened lock is restored", desired: locked4d, live: unlocked4d, recorded: locked4d, changes: []string{lock4d}, drift: true, condition: "True Locked"},
		{name: "a shortened lock is restored", desired: locked4d, live: locked1d, recorded: locked4d, changes: []string{lock4d}, drift: true, condition: "True Locked"},
		{name: "a removed lock is restored and not shortened", desired: locked1d, recorded: locked4d, changes: []string{lock4d}, drift: true, refusal: reasonShorten, keeps: true, condition: "True Locked"},
		{name: "a removed lock is restored and not disabled", recorded: locked4d, changes: []string{lock4d}, drift: true, refusal: reasonDisable, keeps: true, condition: "True Locked"},
	} {
		// A store that locks in one step gets no other on the way to a lock.
		once := test
		once.name += ", at once"
		if once.changes = slices.Clone(test.changes); len(once.changes) == 2 {
			once.changes = once.changes[1:]
		}
		tests = append(tests, test, once)
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			h.cloud.atOnce = i%2 == 1
			h.cloud.put("b", test.live)
			h.putBucket(true, withPolicy(test.desired), withRecord(test.recorded), withOperation(operationReconcile))
			wait, err := h.passBucket("b")
			if wait != testVerifyInterval {
				t.Errorf("wait %s", wait)
			}
			want := append(slices.Clone(test.changes), "store b Harden")
			if got := h.storeChanges(); !slices.Equal(got, want) {
				t.Errorf("changes %q, want %q", got, want)
			}
			wantLive, wantRecord := test.live, test.recorded
			switch {
			case test.refusal == "" && test.foreign:
				wantRecord = test.desired
			case test.refusal == "":
				wantLive, wantRecord = test.desired, test.desired
			case test.drift:
				wantLive = test.recorded
			}
			if got := h.cloud.buckets["b"].state.Policy; got != wantLive {
				t.Errorf("the bucket has %v, want %v", got, wantLive)
			}
			if got := h.record(); got != wantRecord || test.keeps && got != test.recorded {
				t.Errorf("recorded %v, want %v", got, wantRecord)
			}
			if _, found, _ := unstructured.NestedFieldNoCopy(h.get(bucketsGVR, "b").Object, "status", "providerStatus", "immutability"); found == wantRecord.None() {
				t.Errorf("providerStatus is there: %t", found)
			}
			c := h.conditionOf(conditionImmutable)
			if got := fmt.Sprint(c["status"], " ", c["reason"]); got != test.condition {
				t.Errorf("condition %s, want %s", got, test.condition)
			}
			if strings.Contains(fmt.Sprint(c["message"]), "left alone") != test.foreign {
				t.Errorf("condition message %q", c["message"])
			}
			foreign, status := 0.0, any(nil)
			if test.foreign {
				foreign, status = 1, "True"
			}
			h.wantMetric(foreign, "bucketwarden_backupbucket_foreign_policy", "b")
			if got := h.conditionOf(conditionForeign)["status"]; got != status {
				t.Errorf("condition %s is %v, want %v", conditionForeign, got, status)
			}
			if got := slices.ContainsFunc(h.recorder.events, func(e harnessEvent) bool { return e.reason == "ForeignPolicy" }); got != test.foreign {
				t.Errorf("there is an event about a foreign policy: %t", got)
			}
			setPolicyGauges(h.metrics.bucketDesiredLocked, h.metrics.bucketDesiredRetention, "wanted", stronger(test.desired, wantRecord))
			for _, gauge := range []string{"locked", "retention_seconds"} {
				h.wantMetric(h.metric("bucketwarden_backupbucket_desired_"+gauge, "wanted"), "bucketwarden_backupbucket_expected_"+gauge, "b")
			}
			if test.refusal == "" {
				h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
				if err != nil {
					t.Error(err)
				}
			} else {
				s := h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeConfigurationProblem)
				floor := test.recorded.Days
				if test.recorded.None() {
					floor = test.live.Days
				}
				for _, part := range []string{Policy{Days: floor, Locked: true}.String(), test.desired.String(), "retentionPeriod: " + Policy{Days: floor}.Hours()} {
					if !strings.Contains(s.Error, part) {
						t.Errorf("the message %q does not say %q", s.Error, part)
					}
				}
				if refusal := new(Refusal); !errors.As(err, &refusal) {
					t.Errorf("error %v", err)
				}
			}
			for _, reason := range refusalReasons {
				want := 0.0
				if reason == test.refusal {
					want = 1
				}
				h.wantMetric(want, "bucketwarden_policy_refusals_total", "b", reason)
			}
			drift := 0.0
			if test.drift {
				drift = 1
			}
			h.wantMetric(drift, "bucketwarden_backupbucket_policy_drift_total", "b")
			h.wantMetric(drift, "bucketwarden_backupbucket_policy_repairs_total", "b")
			h.wantMetric(float64(strings.Count(strings.Join(test.changes, ","), "LockPolicy")), "bucketwarden_backupbucket_policy_locks_total", "b")

			// A second look finds nothing to do, and counts nothing again.
			before := h.status(bucketsGVR, "b")
			if wait, _ := h.passBucket("b"); wait != testVerifyInterval {
				t.Errorf("second wait %s", wait)
			}
			if h.requests() != 1 || before.Description != h.status(bucketsGVR, "b").Description {
				t.Errorf("the second look did %q", h.trace)
			}
			h.wantEvents()
			h.wantMetric(drift, "bucketwarden_backupbucket_policy_drift_total", "b")
			if test.refusal != "" {
				h.wantMetric(1, "bucketwarden_policy_refusals_total", "b", test.refusal)
			}
		})
	}
}

func TestBucketRefusalIsCountedOncePerAttempt(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", locked4d)
	h.putBucket(true, withPolicy(locked1d), withRecord(locked4d), withOperation(operationReconcile))
	for range 3 {
		if _, err := h.passBucket("b"); err == nil {
			t.Fatal("no error")
		}
	}
	h.wantMetric(1, "bucketwarden_policy_refusals_total", "b", reasonShorten)
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
		withPolicy(unlocked4d)(u)
		withOperation(operationReconcile)(u)
	})
	if _, err := h.passBucket("b"); err == nil {
		t.Fatal("no error")
	}
	h.wantEvents("WeakeningRefused")
	h.wantMetric(1, "bucketwarden_policy_refusals_total", "b", reasonShorten)
	h.wantMetric(1, "bucketwarden_policy_refusals_total", "b", reasonUnlock)

	h.edit(bucketsGVR, "b", withPolicy(locked4d))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
}

func TestBucketVerifyHealthy(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", locked4d)
	h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
	wait, err := h.passBucket("b")
	if err != nil || wait != testVerifyInterval {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace("get secrets garden/bucket-b", "store b Observe")
	if n := h.requests(); n != 1 {
		t.Errorf("%d API requests, want 1", n)
	}
	h.wantEvents()
	if h.metric("bucketwarden_backupbucket_last_verified_timestamp_seconds", "b") == 0 {
		t.Error("the time of the verification is not published")
	}
}

func TestBucketVerifyRepairsDrift(t *testing.T) {
	for _, live := range []Policy{{}, unlocked4d, locked1d, unlocked1d} {
		t.Run(live.String(), func(t *testing.T) {
			h := newHarness(t)
			h.cloud.put("b", live)
			h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
			wait, err := h.passBucket("b")
			if err != nil || wait != testVerifyInterval {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantTrace("get secrets garden/bucket-b", "store b Observe", "store b LockPolicy locked retention of 96h", "store b Observe")
			h.wantEvents("PolicyLocked", "PolicyDrift")
			h.wantMetric(1, "bucketwarden_backupbucket_policy_drift_total", "b")
			h.wantMetric(1, "bucketwarden_backupbucket_locked", "b")
			if got := h.cloud.buckets["b"].state.Policy; got != locked4d {
				t.Errorf("the bucket has %v", got)
			}
		})
	}
	t.Run("of an unlocked policy", func(t *testing.T) {
		h := newHarness(t)
		h.cloud.put("b", Policy{})
		h.putBucket(true, withPolicy(unlocked4d), withRecord(unlocked4d))
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.wantTrace("get secrets garden/bucket-b", "store b Observe", "store b SetPolicy unlocked retention of 96h", "store b Observe")
		h.wantMetric(1, "bucketwarden_backupbucket_policy_drift_total", "b")
	})
}

// What others do to a bucket that wants no policy is no drift, but is shown.
func TestBucketVerifyUpdatesConditions(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.putBucket(true)
	h.edit(bucketsGVR, "b", withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	if got := h.conditionOf(conditionImmutable)["reason"]; got != "NoPolicy" {
		t.Fatalf("reason %v", got)
	}
	h.cloud.put("b", unlocked4d)
	for range 2 {
		if _, err := h.passBucket("b"); err != nil {
			t.Fatal(err)
		}
	}
	h.wantTrace("get secrets garden/bucket-b", "store b Observe")
	if got := h.conditionOf(conditionImmutable); got["reason"] != "Unlocked" || got["status"] != "False" {
		t.Errorf("got %v", got)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
}

// A loss is told even if the new bucket cannot be locked at once.
func TestBucketLossIsTold(t *testing.T) {
	h := newHarness(t)
	h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
	h.cloud.fail["LockPolicy"] = unavailable
	if _, err := h.passBucket("b"); err == nil {
		t.Error("no error")
	}
	h.wantEvents("BucketCreated", "BucketLost", "PolicyNotRestored")
}

// An auditor reads the condition, also while the spec is not carried out.
func TestBucketThatCannotBeDefended(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", locked4d)
	h.putBucket(true, withPolicy(locked4d), withRecord(locked4d), withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	h.edit(bucketsGVR, "b", set(int64(2), "metadata", "generation"))
	h.cloud.put("b", Policy{})
	h.cloud.fail["LockPolicy"] = denied
	if wait, err := h.passBucket("b"); err == nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if c := h.conditionOf(conditionImmutable); c["status"] != "False" || c["reason"] != "NoPolicy" {
		t.Errorf("condition %v", c)
	}
	delete(h.cloud.fail, "LockPolicy")
	h.cloud.put("b", locked10d)
	if wait, err := h.passBucket("b"); err != nil || wait != testVerifyInterval {
		t.Errorf("of a longer lock: wait %s, error %v", wait, err)
	}
}

// A BackupBucket that waits for its entries still guards their backups.
func TestBucketIsDefendedWhileItsDeletionWaits(t *testing.T) {
	h := newHarness(t)
	h.putDeletingBucket(withPolicy(locked1d), withRecord(locked4d))
	h.putEntry("shoot--p--s--u", false)
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	if got := h.cloud.buckets["b"].state.Policy; got != locked4d {
		t.Errorf("the bucket has %v", got)
	}
	h.wantEvents("PolicyLocked", "PolicyDrift")
}

// A verification follows no spec that nobody has asked to carry out.
func TestBucketVerifyDoesNotFollowAChangedSecretRef(t *testing.T) {
	for name, prepare := range map[string]func(h *harness){
		"another secret": func(h *harness) { h.editSecret("garden", "bucket-b", func(s *corev1.Secret) { s.Finalizers = nil }) },
		"no bucket":      func(h *harness) { delete(h.cloud.buckets, "b") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.cloud.put("b", locked4d)
			h.putBucket(true, withPolicy(locked4d), withRecord(locked4d), set(int64(2), "metadata", "generation"))
			prepare(h)
			if _, err := h.passBucket("b"); !errors.Is(err, errNotDefended) {
				t.Errorf("error %v", err)
			}
			if changes := h.storeChanges(); len(changes) > 0 {
				t.Errorf("changes %q", changes)
			}
			if s := h.status(bucketsGVR, "b"); s.State != string(stateSucceeded) {
				t.Errorf("state %s", s.State)
			}
			h.wantEvents()
		})
	}
}

// A bucket that another controller had locked is recorded by the first look at it.
func TestBucketVerifyRecordsALock(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", locked4d)
	h.putBucket(true, withPolicy(locked4d))
	for range 2 {
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
	}
	if got := h.record(); got != locked4d {
		t.Errorf("recorded %v", got)
	}
	h.wantTrace("get secrets garden/bucket-b", "store b Observe")
}

// Whatever else fails: a lock that was undone is restored.
func TestBucketDriftIsRepairedBeforeHardening(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.cloud.fail["Harden"] = &storeError{code: codeUnauthorized, err: errors.New("denied")}
	h.putBucket(true, withPolicy(locked4d), withRecord(locked4d), withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
	if got := h.cloud.buckets["b"].state.Policy; got != locked4d {
		t.Errorf("the bucket has %v", got)
	}
}

// Hardening never fails a bucket. What the store said is a gap; what it did not say is unknown, and asked for again with the
// next look at the bucket, not before the store wants to be asked.
func TestBucketHardeningFailsNothing(t *testing.T) {
	for _, test := range []struct {
		name           string
		err            error
		status, reason string
		says           string
		wait           time.Duration
	}{
		{"denied", denied, "False", "Gaps", "No TLS. access denied.", testVerifyInterval},
		{"an error without a code", &storeError{err: errTesting}, "False", "Gaps", "No TLS. out of order.", testVerifyInterval},
		{"no error of a store", errors.New("odd"), "False", "Gaps", "No TLS. odd.", testVerifyInterval},
		{"unavailable", unavailable, "Unknown", "NoAnswer", "No TLS. It is not known whether the rest is in place, and is tried again: out of order.", testVerifyInterval},
		{"throttled", &storeError{code: codeRateLimitsExceeded, err: errTesting, after: 48 * time.Hour}, "Unknown", "NoAnswer", "out of order.", 48 * time.Hour},
	} {
		for _, operation := range []string{"", operationReconcile} {
			t.Run(test.name+" "+operation, func(t *testing.T) {
				h := newHarness(t)
				h.cloud.fail["Harden"], h.cloud.gaps = test.err, []string{"No TLS."}
				if operation == "" {
					h.putBucket(false, withPolicy(locked4d))
				} else {
					h.cloud.put("b", locked4d)
					h.putBucket(true, withPolicy(locked4d), withRecord(locked4d), withOperation(operation))
				}
				if wait, err := h.passBucket("b"); err != nil || wait != test.wait {
					t.Errorf("wait %s, error %v", wait, err)
				}
				if h.record() != locked4d {
					t.Errorf("recorded %v", h.record())
				}
				h.wantStatus(bucketsGVR, "b", map[bool]operationType{true: operationTypeCreate, false: operationTypeReconcile}[operation == ""], stateSucceeded)
				c := h.conditionOf(conditionHardened)
				if message, _ := c["message"].(string); c["status"] != test.status || c["reason"] != test.reason || !strings.Contains(message, test.says) {
					t.Errorf("condition %v", c)
				}
				if test.status == "False" {
					h.wantMetric(0, "bucketwarden_backupbucket_hardened", "b")
				}
				// A look at the bucket tries again only what is not known.
				h.storeChanges()
				delete(h.cloud.fail, "Harden")
				h.cloud.gaps = nil
				var want []string
				if test.status == "Unknown" {
					want = []string{"store b Harden"}
				}
				for range 2 {
					if wait, err := h.passBucket("b"); err != nil || wait != testVerifyInterval {
						t.Errorf("wait %s, error %v", wait, err)
					}
					if got := h.storeChanges(); !slices.Equal(got, want) {
						t.Errorf("a look at the bucket changed %q, want %q", got, want)
					}
					want = nil
				}
				if c := h.conditionOf(conditionHardened); test.status == "Unknown" && c["status"] != "True" {
					t.Errorf("condition %v", c)
				}
				if test.status == "Unknown" {
					h.wantMetric(1, "bucketwarden_backupbucket_hardened", "b")
				}
			})
		}
	}
	t.Run("the pass is over", func(t *testing.T) {
		h := newHarness(t)
		h.cloud.fail["Harden"] = &storeError{err: context.Canceled}
		h.putBucket(false)
		ctx, cancel := context.WithCancel(t.Context())
		h.cloud.hardening = cancel
		if _, err := h.pass(ctx, h.buckets.reconcile, "b", false); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

var brokenConfigs = map[string]func(config map[string]any){
	"unknown field":     func(c map[string]any) { c["immutabilty"] = map[string]any{} },
	"wrong apiVersion":  func(c map[string]any) { c["apiVersion"] = "azure.provider.extensions.gardener.cloud/v1alpha1" },
	"wrong kind":        func(c map[string]any) { c["kind"] = "ControlPlaneConfig" },
	"25h":               func(c map[string]any) { c["immutability"].(map[string]any)["retentionPeriod"] = "25h" },
	"1h":                func(c map[string]any) { c["immutability"].(map[string]any)["retentionPeriod"] = "1h" },
	"-24h":              func(c map[string]any) { c["immutability"].(map[string]any)["retentionPeriod"] = "-24h" },
	"4d":                func(c map[string]any) { c["immutability"].(map[string]any)["retentionPeriod"] = "4d" },
	"1000000000h":       func(c map[string]any) { c["immutability"].(map[string]any)["retentionPeriod"] = "1000000000h" },
	"contradiction":     func(c map[string]any) { c["immutability"].(map[string]any)["mode"] = modeGovernance },
	"number for string": func(c map[string]any) { c["immutability"].(map[string]any)["retentionPeriod"] = int64(96) },
}

func TestBucketBrokenSpec(t *testing.T) {
	for name, breakIt := range brokenConfigs {
		config := testConfig(locked4d)
		breakIt(config)
		t.Run(name+" without a record", func(t *testing.T) {
			h := newHarness(t)
			h.putBucket(false, set(config, "spec", "providerConfig"))
			wait, err := h.passBucket("b")
			if err == nil || wait != testVerifyInterval {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantTrace("patch backupbuckets b finalizers", "status backupbuckets b Create Error")
			h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateError, codeConfigurationProblem)
			if wait, _ := h.passBucket("b"); wait != testVerifyInterval {
				t.Errorf("second wait %s", wait)
			}
			h.wantNothing()

			h.edit(bucketsGVR, "b", withPolicy(locked4d))
			if _, err := h.passBucket("b"); err != nil {
				t.Fatal(err)
			}
			h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateSucceeded)
		})
		t.Run(name+" with a recorded lock", func(t *testing.T) {
			h := newHarness(t)
			bucket := h.cloud.put("b", Policy{})
			h.putBucket(true, set(config, "spec", "providerConfig"), withRecord(locked4d), withOperation(operationReconcile))
			for range 2 {
				bucket.state.Policy = Policy{}
				wait, err := h.passBucket("b")
				if err == nil || wait != testVerifyInterval {
					t.Errorf("wait %s, error %v", wait, err)
				}
				if s := h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeConfigurationProblem); !strings.Contains(s.Error, "spec.providerConfig") {
					t.Errorf("message %q", s.Error)
				}
				if got := bucket.state.Policy; got != locked4d || h.record() != locked4d {
					t.Errorf("the bucket has %v, recorded %v", got, h.record())
				}
			}
			h.wantMetric(2, "bucketwarden_backupbucket_policy_drift_total", "b")
			h.wantMetric(0, "bucketwarden_policy_refusals_total", "b", reasonDisable)
		})
		t.Run(name+" with a recorded unlocked policy", func(t *testing.T) {
			h := newHarness(t)
			bucket := h.cloud.put("b", unlocked4d)
			h.putBucket(true, set(config, "spec", "providerConfig"), withRecord(unlocked4d), withOperation(operationReconcile))
			if _, err := h.passBucket("b"); err == nil {
				t.Error("no error")
			}
			if bucket.state.Policy != unlocked4d || h.record() != unlocked4d {
				t.Errorf("the bucket has %v, recorded %v", bucket.state.Policy, h.record())
			}
		})
	}
}

func TestBucketBrokenSpecIsVerified(t *testing.T) {
	h := newHarness(t)
	bucket := h.cloud.put("b", Policy{})
	h.putBucket(true, set(map[string]any{"kind": "Nonsense"}, "spec", "providerConfig"), withRecord(locked4d))
	if _, err := h.passBucket("b"); err == nil {
		t.Error("no error")
	}
	if bucket.state.Policy != locked4d {
		t.Errorf("the bucket has %v", bucket.state.Policy)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeConfigurationProblem)
}

// The repair of a lock must not wait for the next verification because the spec is
// broken too.
func TestBucketBrokenSpecAndFailedRepairIsRetriedSoon(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.cloud.fail["LockPolicy"] = unavailable
	h.putBucket(true, set(map[string]any{"kind": "Nonsense"}, "spec", "providerConfig"), withRecord(locked4d), withOperation(operationReconcile))
	wait, err := h.passBucket("b")
	if !errors.Is(err, errTesting) || wait != 0 {
		t.Errorf("wait %s, error %v; want the backoff of the queue", wait, err)
	}
}

func TestBucketShapesThatNobodyExpects(t *testing.T) {
	for name, edit := range map[string]editObject{
		"no region":                  set("", "spec", "region"),
		"spec.region is a number":    set(int64(1), "spec", "region"),
		"conditions are strings":     set([]any{"x"}, "status", "conditions"),
		"observedGeneration is text": set("x", "status", "observedGeneration"),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putBucket(false, edit)
			if _, err := h.passBucket("b"); err == nil {
				t.Error("no error")
			}
			if got := h.storeCalls(); len(got) > 0 {
				t.Errorf("the store saw %q", got)
			}
			h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateError, codeConfigurationProblem)
		})
	}
}

// In the default mode a spec counts once it is annotated.
func TestBucketVerifyLeavesUnseenSpecAlone(t *testing.T) {
	none := Policy{}
	for _, test := range []struct{ desired, live, recorded, want Policy }{
		{desired: locked10d, live: locked4d, recorded: locked4d, want: locked4d},
		{desired: locked4d, live: unlocked1d, recorded: unlocked1d, want: unlocked1d},
		{desired: none, live: unlocked1d, recorded: unlocked1d, want: unlocked1d},
		{desired: none, live: locked4d, recorded: locked4d, want: locked4d},
		{desired: locked1d, live: none, recorded: locked4d, want: locked4d},
		{desired: locked10d, live: none, recorded: none, want: none},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			h := newHarness(t)
			bucket := h.cloud.put("b", test.live)
			h.putBucket(true, withRecord(test.recorded))
			h.edit(bucketsGVR, "b", withPolicy(test.desired))
			if wait, err := h.passBucket("b"); err != nil || wait != testVerifyInterval {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if bucket.state.Policy != test.want {
				t.Errorf("the bucket has %v, want %v", bucket.state.Policy, test.want)
			}
			if n := h.requests(); n != 1 {
				t.Errorf("requests %q", h.trace)
			}
		})
	}
	t.Run("unless the annotation is ignored", func(t *testing.T) {
		h := newHarness(t)
		h.scope.ignoreOperationAnnotation = true
		bucket := h.cloud.put("b", locked4d)
		h.putBucket(true, withRecord(locked4d))
		h.edit(bucketsGVR, "b", withPolicy(locked10d))
		if _, err := h.passBucket("b"); err != nil || bucket.state.Policy != locked10d {
			t.Errorf("the bucket has %v, error %v", bucket.state.Policy, err)
		}
	})
}

func TestBucketLostIsMadeAnew(t *testing.T) {
	for _, operation := range []string{"", operationReconcile} {
		t.Run("operation "+operation, func(t *testing.T) {
			h := newHarness(t)
			edits := []editObject{withPolicy(locked4d), withRecord(locked4d)}
			if operation != "" {
				edits = append(edits, withOperation(operation))
			}
			h.putBucket(true, edits...)
			if wait, err := h.passBucket("b"); err != nil || wait != testVerifyInterval {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if got, want := h.storeChanges(), []string{"store b Create immutable", "store b LockPolicy locked retention of 96h", "store b Harden"}; !slices.Equal(got, want) {
				t.Errorf("changes %q, want %q", got, want)
			}
			if got := h.cloud.buckets["b"].state.Policy; got != locked4d {
				t.Errorf("the bucket has %v", got)
			}
			h.wantEvents("BucketCreated", "BucketLost", "PolicyLocked")
			h.wantMetric(1, "bucketwarden_backupbucket_policy_drift_total", "b")
			h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
		})
	}
	t.Run("without immutability", func(t *testing.T) {
		h := newHarness(t)
		h.putBucket(true)
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.wantEvents("BucketCreated", "BucketLost")
	})
}

func TestBucketStoreErrors(t *testing.T) {
	foreign := &storeError{code: codeConfigurationProblem, err: errors.New("the bucket belongs to somebody else")}
	for _, test := range []struct {
		method string
		err    *storeError
		// last is the last call of the store.
		last string
	}{
		{"Observe", foreign, "store b Observe"},
		{"Observe", denied, "store b Observe"},
		{"Observe", unavailable, "store b Observe"},
		{"Create", foreign, "store b Create immutable"},
		{"SetPolicy", unavailable, "store b SetPolicy unlocked retention of 96h"},
		{"LockPolicy", &storeError{err: errTesting}, "store b LockPolicy locked retention of 96h"},
	} {
		t.Run(test.method+" "+string(test.err.code), func(t *testing.T) {
			h := newHarness(t)
			h.cloud.fail[test.method] = test.err
			h.putBucket(false, withPolicy(locked4d))
			var codes []errorCode
			if test.err.code != "" {
				codes = append(codes, test.err.code)
			}
			for range 3 {
				wait, err := h.passBucket("b")
				if !errors.Is(err, test.err) || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
				if calls := h.storeCalls(); calls[len(calls)-1] != test.last {
					t.Errorf("the store saw %q, want %q last", calls, test.last)
				}
				h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateError, codes...)
			}
			if got := h.cloud.buckets["b"]; (got != nil) != (test.method != "Observe" && test.method != "Create") {
				t.Errorf("bucket %v", got)
			}
			delete(h.cloud.fail, test.method)
			if _, err := h.passBucket("b"); err != nil {
				t.Fatal(err)
			}
			h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateSucceeded)
			if h.record() != locked4d {
				t.Errorf("recorded %v", h.record())
			}
			h.wantMetric(0, "bucketwarden_backupbucket_policy_drift_total", "b")
		})
	}
}

// What was set before an error is remembered, so that it can be undone.
func TestBucketRecordsHalfWay(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.cloud.fail["LockPolicy"] = unavailable
	h.putBucket(true, withPolicy(locked4d), withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err == nil {
		t.Fatal("no error")
	}
	if h.record() != unlocked4d {
		t.Errorf("recorded %v", h.record())
	}
	h.edit(bucketsGVR, "b", withPolicy(Policy{}))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	if got := h.cloud.buckets["b"].state.Policy; !got.None() {
		t.Errorf("the bucket has %v", got)
	}
}

func TestBucketVerifyErrors(t *testing.T) {
	for _, test := range []struct {
		name  string
		err   error
		codes []errorCode
	}{
		{name: "unavailable", err: unavailable},
		{name: "throttled", err: &storeError{code: codeRateLimitsExceeded, err: errTesting}},
		{name: "unknown", err: &storeError{err: errTesting}, codes: []errorCode{}},
		{name: "out of time", err: context.DeadlineExceeded},
		{name: "denied", err: denied, codes: []errorCode{codeUnauthorized}},
		{name: "foreign", err: &storeError{code: codeConfigurationProblem, err: errTesting}, codes: []errorCode{codeConfigurationProblem}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			h.cloud.put("b", locked4d)
			h.cloud.fail["Observe"] = test.err
			h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
			wait, err := h.passBucket("b")
			if !errors.Is(err, test.err) || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if test.codes == nil {
				h.wantTrace("get secrets garden/bucket-b", "store b Observe")
				return
			}
			h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, test.codes...)
			delete(h.cloud.fail, "Observe")
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
		})
	}
	t.Run("of the API server", func(t *testing.T) {
		h := newHarness(t)
		h.cloud.put("b", locked4d)
		h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
		h.answer("get", "secrets", 1, apierrors.NewServiceUnavailable("etcd is slow"))
		if _, err := h.passBucket("b"); err == nil {
			t.Error("no error")
		}
		h.wantTrace("get secrets garden/bucket-b")
	})
}

// shortReadBack makes reads of a changed policy come at once.
func shortReadBack(t *testing.T) {
	delays := readBackDelays
	readBackDelays = make([]time.Duration, len(delays))
	t.Cleanup(func() { readBackDelays = delays })
}

// etcd-backup-restore reads only days: a default retention in years is written anew in days if it is as desired, and left
// where it is not.
func TestBucketPolicyInYears(t *testing.T) {
	years := lockedPolicy(730)
	for _, test := range []struct {
		name                    string
		desired, live, recorded Policy
		operation               string
		changes                 []string
		drift                   float64
		fails                   bool
	}{
		{name: "found by a reconcile", desired: years, live: years, operation: operationReconcile, changes: []string{"store b LockPolicy locked retention of 17520h"}},
		{name: "rewritten behind our back", desired: years, live: years, recorded: years, changes: []string{"store b LockPolicy locked retention of 17520h"}, drift: 1},
		{name: "unlocked", desired: unlockedPolicy(365), live: unlockedPolicy(365), recorded: unlockedPolicy(365), operation: operationReconcile,
			changes: []string{"store b SetPolicy unlocked retention of 8760h"}},
		{name: "extended", desired: lockedPolicy(731), live: years, recorded: years, operation: operationReconcile, changes: []string{"store b LockPolicy locked retention of 17544h"}},
		{name: "not asked for", live: years, operation: operationReconcile},
		{name: "shorter is asked for", desired: lockedPolicy(729), live: years, recorded: lockedPolicy(729), operation: operationReconcile},
		{name: "shorter than recorded is asked for", desired: lockedPolicy(729), live: years, recorded: years, operation: operationReconcile, fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			shortReadBack(t)
			h := newHarness(t)
			h.cloud.atOnce = true
			b := h.cloud.put("b", test.live)
			b.state.Years = true
			edits := []editObject{withPolicy(test.desired), withRecord(test.recorded)}
			if test.operation != "" {
				edits = append(edits, withOperation(test.operation))
			}
			h.putBucket(true, edits...)
			if _, err := h.passBucket("b"); (err != nil) != test.fails {
				t.Errorf("got error %v", err)
			}
			changes := slices.DeleteFunc(h.storeChanges(), func(line string) bool { return line == "store b Harden" })
			if !slices.Equal(changes, test.changes) || b.state.Years != (len(test.changes) == 0) {
				t.Errorf("changes %q, want %q; in years: %t", changes, test.changes, b.state.Years)
			}
			if b.state.Policy.weakerThan(test.live) {
				t.Errorf("the bucket has %s, it had %s", b.state.Policy, test.live)
			}
			h.wantMetric(test.drift, "bucketwarden_backupbucket_policy_drift_total", "b")
		})
	}
}

// S3 may answer with the old policy for a while.
func TestBucketStoreThatLags(t *testing.T) {
	shortReadBack(t)
	h := newHarness(t)
	h.cloud.lag = 2
	h.putBucket(false, withPolicy(locked4d))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	want := []string{"store b Create immutable", "store b SetPolicy unlocked retention of 96h", "store b LockPolicy locked retention of 96h", "store b Harden"}
	if got := h.storeChanges(); !slices.Equal(got, want) || h.record() != locked4d {
		t.Errorf("changes %q, recorded %v", got, h.record())
	}
}

func TestBucketStoreThatIgnoresThePolicy(t *testing.T) {
	shortReadBack(t)
	h := newHarness(t)
	h.cloud.ignoresPolicy = true
	h.putBucket(false, withPolicy(locked4d))
	for range 2 {
		if _, err := h.passBucket("b"); err == nil {
			t.Fatal("no error")
		}
		sets := 0
		for _, line := range h.storeChanges() {
			if strings.Contains(line, "LockPolicy") {
				t.Errorf("%s without having read the policy back", line)
			}
			if strings.Contains(line, "SetPolicy") {
				sets++
			}
		}
		if sets == 0 || sets > maxConvergeSteps {
			t.Errorf("the policy was set %d times", sets)
		}
		h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateError, codeConfigurationProblem)
		if got := h.record(); !got.None() {
			t.Errorf("recorded %v, which the store never had", got)
		}
	}
	h.wantMetric(0, "bucketwarden_backupbucket_policy_drift_total", "b")
}

func TestBucketSecretProblems(t *testing.T) {
	t.Run("missing", func(t *testing.T) {
		for _, settled := range []bool{false, true} {
			h := newHarness(t)
			if settled {
				h.cloud.put("b", locked4d)
			}
			h.putBucket(settled, withPolicy(locked4d), withRecord(locked4d))
			h.deleteSecret("garden", "bucket-b")
			wait, err := h.passBucket("b")
			if err == nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			opType := operationTypeCreate
			if settled {
				opType = operationTypeReconcile
			}
			if s := h.wantStatus(bucketsGVR, "b", opType, stateError); !strings.Contains(s.Error, "garden/bucket-b") {
				t.Errorf("the message %q does not name the secret", s.Error)
			}
			if _, err := h.passBucket("b"); err == nil {
				t.Error("no error")
			}
			h.wantTrace("get secrets garden/bucket-b")
			h.putSecret("garden", "bucket-b", staticCredentials())
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantStatus(bucketsGVR, "b", opType, stateSucceeded)
			if !slices.Contains(h.secret("garden", "bucket-b").Finalizers, finalizerBackupBucket) {
				t.Error("the secret is not held")
			}
		}
	})
	for name, edit := range map[string]editObject{
		"no name":      set(map[string]any{"namespace": "garden"}, "spec", "secretRef"),
		"no namespace": set(map[string]any{"name": "bucket-b"}, "spec", "secretRef"),
		"no reference": set(map[string]any{}, "spec", "secretRef"),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putBucket(false, edit)
			if _, err := h.passBucket("b"); err == nil {
				t.Error("no error")
			}
			h.wantTrace("patch backupbuckets b finalizers", "status backupbuckets b Create Error")
			h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateError, codeConfigurationProblem)
		})
	}
	t.Run("without keys", func(t *testing.T) {
		h := newHarness(t)
		h.putBucket(false)
		h.editSecret("garden", "bucket-b", func(s *corev1.Secret) { delete(s.Data, "accessKeyID") })
		if _, err := h.passBucket("b"); err == nil {
			t.Error("no error")
		}
		s := h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateError, codeConfigurationProblem)
		if !strings.Contains(s.Error, "garden/bucket-b") || !strings.Contains(s.Error, "accessKeyID") || len(h.storeCalls()) > 0 {
			t.Errorf("message %q, trace %q", s.Error, h.trace)
		}
		h.editSecret("garden", "bucket-b", func(s *corev1.Secret) { s.Data = staticCredentials() })
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
	})
	t.Run("is not what is wrong", func(t *testing.T) {
		h := newHarness(t)
		h.cloud.fail["open"] = &storeError{code: codeConfigurationProblem, err: errors.New("the store allows no such name")}
		h.putBucket(false)
		if _, err := h.passBucket("b"); err == nil {
			t.Error("no error")
		}
		s := h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateError, codeConfigurationProblem)
		if strings.Contains(s.Error, "garden/bucket-b") {
			t.Errorf("message %q", s.Error)
		}
	})
	t.Run("changed by gardenlet meanwhile", func(t *testing.T) {
		h := newHarness(t)
		h.putBucket(false)
		h.on("patch", "secrets", 1, func() error {
			h.editSecret("garden", "bucket-b", func(s *corev1.Secret) { s.Annotations = map[string]string{"x": "y"} })
			return nil
		})
		if _, err := h.passBucket("b"); !apierrors.IsConflict(err) || len(h.storeCalls()) > 0 {
			t.Errorf("error %v, trace %q", err, h.trace)
		}
		h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateProcessing)
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		if s := h.secret("garden", "bucket-b"); s.Annotations["x"] != "y" || len(s.Finalizers) != 1 {
			t.Errorf("secret %v", s.ObjectMeta)
		}
	})
}

func TestBucketConflictInClaimIsNoError(t *testing.T) {
	h := newHarness(t)
	h.putBucket(false, withOperation(operationReconcile))
	h.on("patch", "backupbuckets", 1, func() error {
		h.edit(bucketsGVR, "b", withAnnotation("x", "y"))
		return nil
	})
	if _, err := h.passBucket("b"); !apierrors.IsConflict(err) {
		t.Errorf("error %v", err)
	}
	h.wantTrace("patch backupbuckets b annotations,finalizers")
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
}

func TestBucketKnowsNoMigration(t *testing.T) {
	for _, operation := range []string{operationMigrate, operationRestore, operationReconcile} {
		t.Run(operation, func(t *testing.T) {
			h := newHarness(t)
			h.cloud.put("b", Policy{})
			h.putBucket(true, withOperation(operation))
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantTrace("patch backupbuckets b annotations", "get secrets garden/bucket-b", "store b Observe", "store b Harden",
				"status backupbuckets b Reconcile Succeeded +conditions")
			if got := h.get(bucketsGVR, "b").GetAnnotations()[annotationOperation]; got != "" {
				t.Errorf("the annotation %s is still there", got)
			}
		})
	}
}

// The annotation is gone, and the daemon was killed before it wrote a status.
func TestBucketInterruptedReconcileIsMadeUpFor(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", Policy{})
	h.putBucket(true, withPolicy(locked4d), withAnnotation(annotationTimestamp, testStart.Add(time.Second).Format(time.RFC3339Nano)))
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	if h.record() != locked4d {
		t.Errorf("recorded %v", h.record())
	}
	if changes := h.storeChanges(); !slices.Contains(changes, "store b Harden") {
		t.Errorf("it was only verified: %q", changes)
	}
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantTrace("get secrets garden/bucket-b", "store b Observe")
}

func TestBucketLeftAlone(t *testing.T) {
	for name, test := range map[string]struct {
		edit editObject
		wait time.Duration
	}{
		"wait-for-state":              {withOperation(operationWaitForState), testVerifyInterval},
		"wait-for-state and deleting": {func(u *unstructured.Unstructured) { withOperation(operationWaitForState)(u); deleting(u) }, testVerifyInterval},
		"other type":                  {set("gcp", "spec", "type"), 0},
		"other class":                 {set("garden", "spec", "class"), 0},
		"deleting without finalizer":  {func(u *unstructured.Unstructured) { deleting(u); u.SetFinalizers([]string{"other"}) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putBucket(true, test.edit)
			c, key := h.buckets.resource.controller, cache.ObjectName{Name: "b"}
			c.want(key)
			if wait, err := h.passBucket("b"); err != nil || wait != test.wait {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantNothing()
			if forgotten := !c.takeWanted(key); forgotten != strings.HasPrefix(name, "other") {
				t.Errorf("it is forgotten: %t", forgotten)
			}
		})
	}
	t.Run("unknown", func(t *testing.T) {
		h := newHarness(t)
		c, key := h.buckets.resource.controller, cache.ObjectName{Name: "b"}
		c.want(key)
		if wait, err := h.passBucket("b"); err != nil || wait != 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantNothing()
		if c.takeWanted(key) {
			t.Error("it is not forgotten")
		}
	})
	t.Run("stale cache", func(t *testing.T) {
		h := newHarness(t)
		h.putBucket(false, withOperation(operationReconcile))
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.edit(bucketsGVR, "b", withOperation(operationReconcile))
		h.sync()
		h.frozen = true
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		if wait, err := h.passBucket("b"); err != nil || wait != staleRetry {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantNothing()
		h.frozen = false
		if wait, err := h.passBucket("b"); err != nil || wait != testVerifyInterval {
			t.Errorf("wait %s, error %v", wait, err)
		}
	})
}

func TestBucketKeepsWhatOthersWrote(t *testing.T) {
	h := newHarness(t)
	foreign := map[string]any{"type": "Other", "status": "Unknown", "reason": "R", "message": "M",
		"lastTransitionTime": "2025-01-01T00:00:00Z", "lastUpdateTime": "2025-01-01T00:00:00Z", "codes": []any{"ERR_X"}}
	h.putBucket(false, withFinalizers("other/finalizer"), withAnnotation("confirmation.gardener.cloud/deletion", "true"),
		withOperation(operationReconcile), set([]any{foreign}, "status", "conditions"), set(map[string]any{"a": "b"}, "status", "state"))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	u := h.get(bucketsGVR, "b")
	if got := u.GetFinalizers(); !slices.Equal(got, []string{"other/finalizer", finalizerBackupBucket}) {
		t.Errorf("finalizers %v", got)
	}
	if got := u.GetAnnotations(); len(got) != 2 || got[annotationSecret] != "garden/bucket-b" || got["confirmation.gardener.cloud/deletion"] != "true" {
		t.Errorf("annotations %v", got)
	}
	if got := h.conditionOf("Other"); fmt.Sprint(got) != fmt.Sprint(foreign) {
		t.Errorf("condition %v, want %v", got, foreign)
	}
	if got, _, _ := unstructured.NestedString(u.Object, "status", "state", "a"); got != "b" {
		t.Errorf("status.state %q", got)
	}
}

// A condition's times move only with its content.
func TestBucketConditionsStayStable(t *testing.T) {
	h := newHarness(t)
	h.cloud.put("b", locked4d)
	old := map[string]any{"type": conditionImmutable, "status": "True", "reason": "Locked", "message": "The store says: locked retention of 96h.",
		"lastTransitionTime": "2025-01-01T00:00:00Z", "lastUpdateTime": "2025-01-01T00:00:00Z"}
	h.putBucket(true, withPolicy(locked4d), withRecord(locked4d), withOperation(operationReconcile), set([]any{old}, "status", "conditions"))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	if got := h.conditionOf(conditionImmutable); fmt.Sprint(got) != fmt.Sprint(old) {
		t.Errorf("condition %v, want %v", got, old)
	}
}

// gardenlet takes an object for unhealthy while lastUpdateTime lies before its timestamp.
func TestBucketLastUpdateTimeIsNotBeforeTheClients(t *testing.T) {
	h := newHarness(t)
	ahead := time.Now().Add(time.Hour).UTC()
	h.putBucket(false, withAnnotation(annotationTimestamp, ahead.Format(time.RFC3339Nano)))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	if got := decodeBucket(h.get(bucketsGVR, "b")).LastOperation.LastUpdateTime; !got.Equal(ahead.Truncate(time.Second)) {
		t.Errorf("lastUpdateTime %v, want %v", got, ahead.Truncate(time.Second))
	}
}

// What each kind of pass may do.
func TestPassKind(t *testing.T) {
	type may struct{ creates, holds, rotates, refuses, hardens, hardensNew, settled bool }
	for kind, want := range map[passKind]may{
		passDefend: {hardensNew: true, settled: true},
		passVerify: {creates: true, holds: true, rotates: true, refuses: true, hardensNew: true, settled: true},
		passEnsure: {creates: true, holds: true, rotates: true, refuses: true, hardens: true, hardensNew: true},
	} {
		got := may{kind.creates(), kind.holds(), kind.rotates(), kind.refuses(), kind.hardens(false), kind.hardens(true), kind.settled()}
		if got != want {
			t.Errorf("kind %d: got %+v, want %+v", kind, got, want)
		}
	}
}

// A connection that breaks within an answer makes no Error of a healthy bucket.
func TestVerifyOfABrokenConnection(t *testing.T) {
	for _, reset := range []bool{false, true} {
		f := newFormS3(t, s3Form{})
		f.reset = reset
		b, _ := f.open(t, Policy{})
		f.silent["GET object-lock"] = 100
		_, broken := b.Observe(t.Context())
		h := newHarness(t)
		h.putBucket(true)
		h.cloud.put("b", Policy{})
		h.cloud.fail["Observe"] = broken
		if _, err := h.passBucket("b"); !errors.Is(err, broken) {
			t.Errorf("%v is not %v", err, broken)
		}
		h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
	}
}
