package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	k8stesting "k8s.io/client-go/testing"
)

// prepareBucket does what scripts about buckets need beside scriptWorld.prepare:
//
//	bucket NAME [asked=POLICY] [recorded=POLICY] [type=TYPE] [secret=NAME] [gaps=WORD]
//	                                makes a BackupBucket
//	live POLICY                     is what the store has from here on
//	gone                            there is no bucket
//	down                            the store does not answer any more
//	unreachable                     nor does the API server
//	tombstone ENTRY DAYS OBJECTS    what is kept of a deleted entry
//	revoke ENTRY                    is in use again
//	deleting ENTRY                  its BackupEntry is being deleted
//	write FILE TEXT                 a file, @/FILE in command lines
//
// POLICY is none, DAYS or DAYSlocked.
func (w *scriptWorld) prepareBucket(bucket *memoryBucket, args []string) bool {
	switch args[0] {
	case "bucket":
		w.makeBucket(args[1], args[2:])
	case "live":
		bucket.policy = scriptPolicy(w.t, args[1])
	case "gone":
		delete(w.server.buckets, "backups")
	case "down":
		w.server.failures["backups"] = &suiteFailure{status: 503, times: 1 << 30}
	case "unreachable":
		refuse := func(k8stesting.Action) (bool, runtime.Object, error) {
			return true, nil, fmt.Errorf("connection refused")
		}
		w.dyn.PrependReactor("*", "*", refuse)
		w.core.PrependReactor("*", "*", refuse)
	case "tombstone":
		days, _ := strconv.Atoi(args[2])
		objects, _ := strconv.ParseInt(args[3], 10, 64)
		w.server.write(bucket, version{key: tombstoneKey(args[1], time.Now().AddDate(0, 0, days), PurgeResult{Retained: objects, RetainedBytes: 10 * objects})})
	case "revoke":
		w.server.write(bucket, version{key: revocationKey(args[1], "")})
	case "deleting":
		u, err := w.dyn.Resource(entriesGVR).Get(w.t.Context(), args[1], metav1.GetOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		u.SetFinalizers([]string{"a/b"})
		u.SetDeletionTimestamp(&metav1.Time{Time: time.Now()})
		if _, err := w.dyn.Resource(entriesGVR).Update(w.t.Context(), u, metav1.UpdateOptions{}); err != nil {
			w.t.Fatal(err)
		}
	case "write":
		if err := os.WriteFile(filepath.Join(w.directory, args[1]), []byte(strings.Join(args[2:], " ")), 0o600); err != nil {
			w.t.Fatal(err)
		}
	default:
		return false
	}
	return true
}

func scriptPolicy(t *testing.T, word string) Policy {
	if word == "none" {
		return Policy{}
	}
	digits, locked := strings.CutSuffix(word, "locked")
	days, err := strconv.ParseInt(digits, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return Policy{Days: int32(days), Locked: locked}
}

// scriptImmutability is a policy as providerConfig or providerStatus.
func scriptImmutability(kind string, p Policy) map[string]any {
	m := map[string]any{"apiVersion": "mem" + providerGroupSuffix + "/v1alpha1", "kind": kind}
	if !p.None() {
		m["immutability"] = map[string]any{"retentionType": "bucket", "retentionPeriod": p.Hours(), "locked": p.Locked}
	}
	return m
}

func (w *scriptWorld) makeBucket(name string, how []string) {
	kind, secret := "mem", "credentials"
	spec, status := map[string]any{}, map[string]any{"observedGeneration": int64(1)}
	for _, h := range how {
		switch option, value, _ := strings.Cut(h, "="); option {
		case "asked":
			spec["providerConfig"] = scriptImmutability(backupBucketConfigKind, scriptPolicy(w.t, value))
		case "recorded":
			status["providerStatus"] = scriptImmutability(bucketStatusKind, scriptPolicy(w.t, value))
		case "type":
			kind = value
		case "secret":
			secret = value
		case "gaps":
			status["conditions"] = []any{map[string]any{"type": conditionHardened, "status": "False", "reason": "Gaps", "message": value + " is missing."}}
		default:
			w.t.Fatalf("%q is no way to make a bucket", h)
		}
	}
	spec["type"], spec["region"], spec["secretRef"] = kind, memoryRegion, map[string]any{"name": secret, "namespace": "garden"}
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": extensionsGV.String(), "kind": kindBackupBucket,
		"metadata": map[string]any{"name": name, "uid": "uid-" + name, "generation": int64(1)}, "spec": spec, "status": status}}
	if _, err := w.dyn.Resource(bucketsGVR).Create(w.t.Context(), u, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	_ = w.core.Tracker().Add(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "credentials", Namespace: "garden"},
		Data: map[string][]byte{memoryKey: []byte(w.server.key)}})
}

// With --watch the status is printed when it is another one than before, and looked at in between.
func TestWatchStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScriptWorld(t)
		w.makeBucket("backups", []string{"asked=7locked", "recorded=7locked"})
		w.server.buckets["backups"].policy = lockedPolicy(7)
		ctx, cancel := context.WithTimeout(t.Context(), 10*watchInterval+time.Second)
		defer cancel()
		time.AfterFunc(5*watchInterval+time.Second, func() {
			w.server.mu.Lock()
			defer w.server.mu.Unlock()
			w.server.buckets["backups"].policy = Policy{}
		})
		var out, errOut bytes.Buffer
		if code := w.cli(&out, &errOut).main(ctx, []string{"status", "--watch"}); code != exitFine {
			t.Errorf("it ends with %d", code)
		}
		if got := strings.Count(out.String(), "BUCKET"); got != 2 {
			t.Errorf("it was printed %d times, want 2:\n%s", got, out.String())
		}
		if !strings.Contains(out.String(), "Locked") || !strings.Contains(out.String(), "Drift") ||
			!strings.Contains(errOut.String(), "recorded is locked retention of 168h") {
			t.Errorf("it does not tell of the drift:\n%s%s", out.String(), errOut.String())
		}
		// Two requests a look: the bucket and its tombstones.
		if got := w.server.requests["backups"]; got != 22 {
			t.Errorf("%d requests to the store, want 22", got)
		}
	})
}

// What is asked for once is not asked for again: secrets that buckets share; and nothing is written.
func TestStatusRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newScriptWorld(t)
		w.server.buckets["second"] = &memoryBucket{region: memoryRegion, policy: lockedPolicy(7)}
		w.server.buckets["backups"].policy = lockedPolicy(7)
		for _, name := range []string{"backups", "second"} {
			w.makeBucket(name, []string{"asked=7locked", "recorded=7locked"})
		}
		for i := range 3 {
			entry := fmt.Sprintf("shoot--dev--%d--uid", i)
			w.prepare([]string{"entry", entry})
			w.prepare([]string{"full", entry, entry, "100"})
		}
		w.dyn.ClearActions()
		w.core.ClearActions()
		var out, errOut bytes.Buffer
		if code := w.cli(&out, &errOut).main(t.Context(), []string{"status"}); code != exitFine {
			t.Errorf("it ends with %d: %s%s", code, out.String(), errOut.String())
		}
		var asked []string
		for _, action := range slices.Concat(w.dyn.Actions(), w.core.Actions()) {
			asked = append(asked, action.GetVerb()+" "+action.GetResource().Resource)
		}
		if got := strings.Join(asked, ", "); got != "list backupbuckets, list backupentries, get secrets" {
			t.Errorf("the API server was asked to %s", got)
		}
		// The bucket, its tombstones, and a list for each entry.
		for name, want := range map[string]int{"backups": 5, "second": 2} {
			if got := w.server.requests[name]; got != want {
				t.Errorf("%d requests about bucket %s, want %d", got, name, want)
			}
		}
	})
}

// The steps are those of the daemon, also where extensions are limited.
func TestPlanSteps(t *testing.T) {
	left := func(n int32) *int32 { return &n }
	for _, test := range []struct {
		name                    string
		desired, live, recorded Policy
		extensions              *int32
		atOnce                  bool
		steps                   string
		left                    *int32
	}{
		{"nothing", Policy{}, Policy{}, Policy{}, nil, false, "", nil},
		{"as desired", lockedPolicy(7), lockedPolicy(7), lockedPolicy(7), left(3), false, "", left(3)},
		{"unlocked", unlockedPolicy(7), Policy{}, Policy{}, nil, false, "set", nil},
		{"remove", Policy{}, unlockedPolicy(7), unlockedPolicy(7), nil, false, "remove", nil},
		{"lock", lockedPolicy(7), Policy{}, Policy{}, nil, false, "set lock!", nil},
		{"lock at once", lockedPolicy(7), Policy{}, Policy{}, nil, true, "lock!", nil},
		{"extend", lockedPolicy(9), lockedPolicy(7), lockedPolicy(7), left(2), false, "extend!1", left(1)},
		{"extend without limit", lockedPolicy(9), lockedPolicy(7), lockedPolicy(7), nil, true, "extend!", nil},
		{"restore", lockedPolicy(7), Policy{}, lockedPolicy(7), nil, true, "restore!", nil},
		{"refused, and restored", unlockedPolicy(7), Policy{}, lockedPolicy(7), nil, true, "restore! refused", nil},
		{"shortened", lockedPolicy(5), lockedPolicy(7), lockedPolicy(7), nil, true, "refused", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := &backupBucket{}
			b.Type, b.Region = "mem", memoryRegion
			v := &bucketView{b: b, desired: desired{Policy: test.desired}, record: record{Policy: test.recorded},
				live:  BucketState{Exists: true, Policy: test.live, Extensions: test.extensions},
				scope: &scope{providers: map[string]provider{"mem": &memoryProvider{newMemoryServer(), newMetrics()}}},
				store: &planStore{atOnce: test.atOnce}}
			r := &planned{Admission: plannedAdmission{Allowed: true}}
			(&planner{}).steps(v, r, false)
			var steps []string
			for _, s := range r.Steps {
				step := s.Action
				if s.Irreversible {
					step += "!"
				}
				if s.Extensions > 0 {
					step += strconv.Itoa(int(s.Extensions))
				}
				steps = append(steps, step)
			}
			if r.Refused {
				steps = append(steps, "refused")
			}
			if got := strings.Join(steps, " "); got != test.steps {
				t.Errorf("the steps are %q, want %q", got, test.steps)
			}
			if (r.ExtensionsLeft == nil) != (test.left == nil) || test.left != nil && *r.ExtensionsLeft != *test.left {
				t.Errorf("%v extensions are left", r.ExtensionsLeft)
			}
			if slices.ContainsFunc(r.Steps, func(s plannedStep) bool { return s.Text == "" }) {
				t.Errorf("a step says nothing: %+v", r.Steps)
			}
		})
	}
}

// What a bucket is called, by what is asked for, live and recorded.
func TestJudgeBucket(t *testing.T) {
	for _, test := range []struct {
		name                    string
		desired, live, recorded Policy
		err                     error
		gone                    bool
		want                    string
	}{
		{"as desired", lockedPolicy(7), lockedPolicy(7), lockedPolicy(7), nil, false, stateLocked},
		{"unlocked", unlockedPolicy(7), unlockedPolicy(7), unlockedPolicy(7), nil, false, stateUnlocked},
		{"open", Policy{}, Policy{}, Policy{}, nil, false, stateOpen},
		{"taken away", lockedPolicy(7), Policy{}, lockedPolicy(7), nil, false, stateDrift},
		{"shortened", lockedPolicy(7), lockedPolicy(5), lockedPolicy(7), nil, false, stateDrift},
		{"unlocked by somebody", lockedPolicy(7), unlockedPolicy(7), lockedPolicy(7), nil, false, stateDrift},
		{"taken away, and refused", unlockedPolicy(7), Policy{}, lockedPolicy(7), nil, false, stateDrift},
		{"refused", lockedPolicy(5), lockedPolicy(7), lockedPolicy(7), nil, false, stateRefused},
		{"not understood", lockedPolicy(7), lockedPolicy(7), lockedPolicy(7), configErrorf("a slip"), false, stateRefused},
		{"somebody else's", Policy{}, lockedPolicy(9), Policy{}, nil, false, stateForeign},
		{"not carried out", lockedPolicy(9), lockedPolicy(7), lockedPolicy(7), nil, false, statePending},
		{"not locked yet", lockedPolicy(7), unlockedPolicy(7), unlockedPolicy(7), nil, false, statePending},
		{"gone", lockedPolicy(7), Policy{}, lockedPolicy(7), nil, true, stateMissing},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := &backupBucket{}
			b.Type, b.Region = "mem", memoryRegion
			v := &bucketView{b: b, desired: desired{Policy: test.desired, err: test.err}, record: record{Policy: test.recorded},
				live:  BucketState{Exists: !test.gone, Policy: test.live},
				scope: &scope{providers: map[string]provider{"mem": &memoryProvider{newMemoryServer(), newMetrics()}}},
				store: &planStore{atOnce: true}}
			if got, problem := v.judge(); got != test.want || (problem == "") != (got == stateLocked || got == stateUnlocked || got == stateOpen) {
				t.Errorf("it is %s, %q, want %s", got, problem, test.want)
			}
		})
	}
}

// What by its status its owner has done and the cloud does not have is no mere wish, though nothing is recorded.
func TestJudgeBucketOfAnotherOwner(t *testing.T) {
	done, doing := &lastOperation{State: stateSucceeded}, &lastOperation{State: stateProcessing}
	for _, test := range []struct {
		name          string
		desired, live Policy
		last          *lastOperation
		generation    int64
		want          string
	}{
		{"as desired", lockedPolicy(7), lockedPolicy(7), done, 1, stateLocked},
		{"taken away", lockedPolicy(7), Policy{}, done, 1, stateDrift},
		{"never locked", lockedPolicy(7), unlockedPolicy(7), done, 1, stateDrift},
		{"at work", lockedPolicy(7), Policy{}, doing, 1, statePending},
		{"spec has changed", lockedPolicy(7), Policy{}, done, 2, statePending},
		{"unlocked and longer", unlockedPolicy(7), unlockedPolicy(9), done, 1, stateForeign},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := &backupBucket{}
			b.Type, b.Region, b.LastOperation, b.Generation, b.ObservedGeneration = "mem", memoryRegion, test.last, test.generation, 1
			v := &bucketView{b: b, desired: desired{Policy: test.desired}, live: BucketState{Exists: true, Policy: test.live},
				scope: &scope{providers: map[string]provider{"mem": &memoryProvider{newMemoryServer(), newMetrics()}}}, store: &planStore{atOnce: true}}
			if got, _ := v.judge(); got != test.want {
				t.Errorf("it is %s, want %s", got, test.want)
			}
		})
	}
}

// planStore tells how it sets policies, and nothing else.
type planStore struct {
	Store
	atOnce bool
}

func (s *planStore) traits() traits { return traits{locksAtOnce: s.atOnce} }
