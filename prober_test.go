package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// probeHarness is a harness with the probe, on the store in memory.
type probeHarness struct {
	*harness
	server *memoryServer
	store  *probeProvider
	prober *prober
}

// probeProvider is a memoryProvider that opens buckets of any name, unless it fails.
type probeProvider struct {
	*memoryProvider
	fail error
}

func (p *probeProvider) openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error) {
	if p.fail != nil {
		return nil, p.fail
	}
	return &memoryStore{p.memoryProvider, ref, string(credentials[memoryKey])}, nil
}

func newProbeHarness(t *testing.T, policy Policy) *probeHarness {
	h := &probeHarness{harness: newHarness(t), server: newMemoryServer()}
	h.store = &probeProvider{memoryProvider: &memoryProvider{h.server, h.metrics}}
	h.scope.providers = map[string]provider{"aws": h.store}
	h.server.key = secretMarker + "-key"
	h.server.buckets["b"] = &memoryBucket{region: "eu-1", policy: policy}
	queue, checks := newCalmController(t, resourceProbes, h.metrics), newCalmController(t, resourceChecks, h.metrics)
	h.prober = &prober{bucketReconciler: h.buckets, queue: queue, entries: newEntryChecker(h.entries.reconciler, checks, nil, h.metrics.entries),
		probes: &probes{}}
	queue.onGone = h.prober.gone
	return h
}

// probe makes a pass.
func (h *probeHarness) probe() (time.Duration, error) {
	h.t.Helper()
	return h.pass(h.t.Context(), h.prober.reconcile, "b", false)
}

// next waits until the bucket is due and makes a pass.
func (h *probeHarness) next() {
	h.t.Helper()
	wait, err := h.probe()
	if err != nil || wait <= 0 {
		h.t.Fatalf("again after %s, %v", wait, err)
	}
	h.wantTrace()
	time.Sleep(wait)
	if wait, err = h.probe(); err != nil || wait < probeInterval/2 || wait > probeInterval*3/2 {
		h.t.Fatalf("again after %s, %v", wait, err)
	}
}

func (h *probeHarness) shown() map[string]float64 {
	h.t.Helper()
	all := map[string]float64{}
	families, err := h.metrics.registry.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, family := range families {
		name, ok := strings.CutPrefix(family.GetName(), "bucketwarden_backupbucket_probe_")
		for _, m := range family.GetMetric() {
			if !ok {
				break
			}
			for _, pair := range m.GetLabel() {
				if pair.GetName() != "bucket" {
					name += " " + pair.GetValue()
				}
			}
			all[name] = m.GetGauge().GetValue()
			name, _ = strings.CutPrefix(family.GetName(), "bucketwarden_backupbucket_probe_")
		}
	}
	return all
}

func (h *probeHarness) wantShown(want map[string]float64) {
	h.t.Helper()
	if got := h.shown(); !maps.Equal(got, want) {
		h.t.Errorf("metrics\n\t%v, want\n\t%v", got, want)
	}
}

// Once a day, with the credentials of both where they are the same: a read of each secret, a round, a read and a write of the status.
func TestProberDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newProbeHarness(t, locked4d)
		h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
		h.putEntry(testEntry, true)
		h.buckets.evidence = newEvidenceLog()
		h.buckets.evidence.saw("b", BucketState{Exists: true, Policy: locked4d}, locked4d, time.Hour, nil)
		h.next()
		if notes, _ := h.buckets.evidence.get("b"); len(notes.probe) != 8 {
			t.Errorf("the evidence has heard of %+v", notes.probe)
		}
		h.wantTrace("get secrets garden/bucket-b", "get secrets garden/entry", "get backupbuckets b", "status backupbuckets b <nil> <nil> +conditions")
		at := float64(time.Now().Unix())
		h.wantShown(map[string]float64{"timestamp_seconds bucket": at, "timestamp_seconds entry": at,
			"attacks bucket refused_by_lock": 4, "attacks bucket refused_otherwise": 0, "attacks bucket succeeded": 0,
			"attacks entry refused_by_lock": 4, "attacks entry refused_otherwise": 0, "attacks entry succeeded": 0})
		h.wantEvents()
		want := fmt.Sprintf("At %s, with the credentials of the bucket, which are those of a BackupEntry too: delete, shorten, shorten-bypass, "+
			"delete-bypass refused by the lock.", time.Now().UTC().Format(time.RFC3339))
		if c := h.conditionOf(conditionProven); c["status"] != "True" || c["reason"] != reasonProbeRefused || c["message"] != want {
			t.Errorf("%v, want %s", c, want)
		}
		if last := h.prober.probes.last("b"); len(last) != 2 || last[0].credentials != probeWithBucket || last[1].credentials != probeWithEntry ||
			!last[0].proven() || len(last[1].attacks) != 4 {
			t.Errorf("%+v", last)
		}
		for range 20 {
			before := h.server.requests["b"]
			h.next()
			if n := h.server.requests["b"] - before; n > 8 {
				t.Errorf("a day costs %d requests", n)
			}
		}
		// The entry goes, then the bucket.
		h.edit(entriesGVR, testEntry, deleting)
		h.next()
		if got := h.shown(); len(got) != 4 {
			t.Errorf("without entries there are %v", got)
		}
		h.edit(bucketsGVR, "b", deleting)
		if wait, err := h.probe(); err != nil || wait != 0 {
			t.Error(wait, err)
		}
		h.wantTrace()
		h.wantShown(map[string]float64{})
		if last := h.prober.probes.last("b"); last != nil {
			t.Errorf("%+v", last)
		}
	})
}

// Of a bucket of others nothing is written to the API server, and what it was seen to have counts.
func TestProberObserves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newProbeHarness(t, locked4d)
		h.prober.observed = fixedPolicies{live: locked4d, expected: locked4d}
		h.prober.entries.observed = h.prober.observed
		h.put(bucketsGVR, testObject(kindBackupBucket, "b", "bucket-b", withFinalizers(finalizerBackupBucket),
			withLast(operationTypeReconcile, stateSucceeded, "done"), withPolicy(locked4d)))
		h.putSecret("garden", "bucket-b", map[string][]byte{memoryKey: []byte(h.server.key)})
		h.next()
		h.wantTrace("get secrets garden/bucket-b")
		if last := h.prober.probes.last("b"); len(last) != 1 || !last[0].proven() {
			t.Errorf("found %+v", last)
		}
	})
}

// Other credentials of entries take turns with those of the bucket. What they may not do proves nothing, and takes no proof away.
func TestProberTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newProbeHarness(t, locked4d)
		h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
		for _, name := range []string{"shoot--p--a--u", "shoot--p--b--u", "shoot--p--c--u"} {
			h.putEntry(name, true, set(name, "spec", "secretRef", "name"))
			h.putSecret("garden", name, map[string][]byte{memoryKey: []byte(h.server.key), "of": []byte(name)}, finalizerBackupEntry)
		}
		used := map[string]int{}
		for range 12 {
			h.next()
			secret := ""
			for _, line := range h.trace {
				if name, ok := strings.CutPrefix(line, "get secrets garden/shoot"); ok {
					secret = name
				}
			}
			used[secret]++
		}
		if len(used) != 3 || slices.Min(slices.Collect(maps.Values(used))) < 2 {
			t.Errorf("the entries had %v turns", used)
		}
		last := h.prober.probes.last("b")
		if len(last) != 2 || last[0].at.Equal(last[1].at) || !last[0].proven() || !last[1].proven() {
			t.Errorf("%+v", last)
		}
		// One that cannot be read, or that the store does not know any more.
		h.deleteSecret("garden", "shoot--p--a--u")
		for range 6 {
			h.next()
		}
		if c := h.conditionOf(conditionProven); c["status"] != "True" || !strings.Contains(fmt.Sprint(c["message"]), "credentials of a BackupEntry:") {
			t.Error(c)
		}
	})
}

// What a bucket without a lock, and one whose lock does not hold, tell.
func TestProberFinds(t *testing.T) {
	for _, test := range []struct {
		name           string
		live, recorded Policy
		refuse         string
		status, reason string
		events         []string
		succeeded      float64
		message        string
	}{
		{name: "not locked, and should not be", status: "False", reason: reasonProbeSucceeded, succeeded: 1, message: "delete succeeded (it is gone)."},
		{name: "not locked, and should be", recorded: locked4d, status: "False", reason: reasonProbeSucceeded, succeeded: 1,
			events: []string{"ProbeSucceeded"}, message: "delete succeeded (it is gone)."},
		{name: "governance", live: unlocked4d, recorded: unlocked4d, status: "False", reason: reasonProbeSucceeded, succeeded: 2,
			message: "shorten-bypass, delete-bypass succeeded (its retention is shorter now, or can be taken away; it is gone); delete, shorten refused by the lock."},
		{name: "governance without bypass", live: unlocked4d, recorded: unlocked4d, refuse: "Bypass", status: "False", reason: reasonProbeUnlocked,
			message: "shorten-bypass, delete-bypass refused for another reason (the retention can be taken away by whoever may bypass it, which " +
				"these credentials may not); delete, shorten refused by the lock."},
		{name: "a permission is missing", live: locked4d, recorded: locked4d, refuse: "DeleteVersion", status: "Unknown", reason: reasonProbeNothing,
			message: "delete, shorten, shorten-bypass, delete-bypass refused for another reason (these credentials may not delete anything)."},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newProbeHarness(t, test.live)
				h.putBucket(true, withPolicy(test.recorded), withRecord(test.recorded))
				h.server.refuse = func(operation string) int {
					if operation == test.refuse {
						return http.StatusForbidden
					}
					return http.StatusOK
				}
				h.next()
				c := h.conditionOf(conditionProven)
				if c["status"] != test.status || c["reason"] != test.reason || !strings.HasSuffix(fmt.Sprint(c["message"]), "with the credentials of the bucket: "+test.message) {
					t.Errorf("got %v", c)
				}
				h.wantEvents(test.events...)
				h.wantMetric(test.succeeded, "bucketwarden_backupbucket_probe_attacks", "b", "bucket", "succeeded")
				h.wantMetric(0, "bucketwarden_backupbucket_probe_timestamp_seconds", "b", "bucket")
			})
		})
	}
}

// A bucket that is not ready, goes, or does not answer is attacked later.
func TestProberFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newProbeHarness(t, locked4d)
		h.putBucket(false, withPolicy(locked4d))
		wait, _ := h.probe()
		time.Sleep(wait)
		var err error
		if wait, err = h.probe(); wait != probeRetry || err != nil || h.server.requests["b"] > 0 {
			t.Errorf("not ready: %s, %v, %d requests", wait, err, h.server.requests["b"])
		}
		h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
			for _, edit := range []editObject{withFinalizers(finalizerBackupBucket), withLast(operationTypeReconcile, stateSucceeded, "done"), withRecord(locked4d)} {
				edit(u)
			}
		})
		h.server.failures["b"] = &suiteFailure{status: 503, times: 4}
		time.Sleep(probeRetry)
		if wait, err = h.probe(); wait != probeRetry || err == nil {
			t.Errorf("down: %s, %v", wait, err)
		}
		h.wantTrace("get secrets garden/bucket-b")
		h.wantShown(map[string]float64{"timestamp_seconds bucket": 0})
		h.next()
		if c := h.conditionOf(conditionProven); c["status"] != "True" {
			t.Error(c)
		}

		// Whose key is not accepted has its keys looked at.
		h.prober.keys.published("b", nil)
		h.store.fail = &storeError{code: codeRetryableConfiguration, err: fmt.Errorf("the key: %w", errKeyRejected)}
		time.Sleep(probeInterval * 3 / 2)
		if wait, err = h.probe(); wait != probeRetry || !errors.Is(err, errKeyRejected) {
			t.Errorf("not accepted: %s, %v", wait, err)
		}
		if got := queued(h.buckets.resource.controller); !slices.Equal(got, []string{"b"}) {
			t.Errorf("to be verified: %q", got)
		}

		// One that is being deleted while it is attacked is not written to any more.
		h.store.fail = nil
		time.Sleep(probeRetry)
		before := h.conditionOf(conditionProven)
		h.on("get", "backupbuckets", 1, func() error {
			h.edit(bucketsGVR, "b", deleting)
			return nil
		})
		if _, err = h.probe(); err != nil {
			t.Error(err)
		}
		if got := h.conditionOf(conditionProven); !maps.Equal(got, before) {
			t.Errorf("the condition was written: %v", got)
		}
	})
}

// Only what is ready is probed.
func TestProbeable(t *testing.T) {
	for name, edits := range map[string][]editObject{
		"ready":                        nil,
		"never ready":                  {withLast(operationTypeCreate, stateError, "failed")},
		"without a finalizer":          {func(u *unstructured.Unstructured) { u.SetFinalizers(nil) }},
		"with a spec that is not seen": {set(int64(0), "status", "observedGeneration"), set(int64(7), "metadata", "generation")},
		"that waits for its state":     {withOperation(operationWaitForState)},
		"that cannot be read":          {set(int64(7), "spec", "region")},
		"that is reconciled once more": {withOperation(operationReconcile)},
	} {
		h := newProbeHarness(t, locked4d)
		h.putBucket(true, append([]editObject{withPolicy(locked4d), withRecord(locked4d)}, edits...)...)
		want := len(edits) == 0 || name == "that is reconciled once more"
		if got := h.prober.probeable(decodeBucket(h.get(bucketsGVR, "b"))); got != want {
			t.Errorf("a bucket %s is probed: %t", name, got)
		}
	}
}

// An attack that succeeded counts whatever else is proven, and a proof is not undone by what proves nothing.
func TestProvenCondition(t *testing.T) {
	held := probeResult{retained: true, attacks: []probeAttack{{name: attackDelete, outcome: refusedByLock}}}
	broken := probeResult{retained: true, attacks: []probeAttack{{name: attackDelete, outcome: attackSucceeded}}}
	nothing := probeResult{retained: true, attacks: []probeAttack{{name: attackDelete, outcome: refusedOtherwise}}}
	open := probeResult{attacks: []probeAttack{{name: attackDelete, outcome: refusedOtherwise}}}
	for _, test := range []struct {
		last           []probeResult
		status, reason string
	}{
		{[]probeResult{held, broken}, "False", reasonProbeSucceeded},
		{[]probeResult{broken, held}, "False", reasonProbeSucceeded},
		{[]probeResult{broken, open}, "False", reasonProbeSucceeded},
		{[]probeResult{held, nothing}, "True", reasonProbeRefused},
		{[]probeResult{nothing, held}, "True", reasonProbeRefused},
		{[]probeResult{held, open}, "True", reasonProbeRefused},
		{[]probeResult{nothing, open}, "False", reasonProbeUnlocked},
		{[]probeResult{nothing, nothing}, "Unknown", reasonProbeNothing},
	} {
		if c := provenCondition(test.last); c.Status != test.status || c.Reason != test.reason {
			t.Errorf("%+v: %s, %s; want %s, %s", test.last, c.Status, c.Reason, test.status, test.reason)
		}
	}
}

// Each bucket has a time of the day of its own, and a start attacks nothing.
func TestNextProbe(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	times := map[time.Duration]bool{}
	for i := range 100 {
		name := fmt.Sprint("bucket-", i)
		first := nextProbe(name, now, 0)
		second := nextProbe(name, now.Add(first), probeInterval/2)
		if first < 0 || first >= probeInterval || second != probeInterval {
			t.Errorf("%s: %s, then %s", name, first, second)
		}
		times[first.Truncate(time.Hour)] = true
	}
	if len(times) < 12 {
		t.Errorf("all come within %d hours", len(times))
	}
}

// What was found of a bucket says nothing of another one that takes its name, and a lock that can be taken away is not proven.
func TestProbesOfAnotherBucket(t *testing.T) {
	p, b, now := &probes{}, &backupBucket{}, time.Now()
	b.Name, b.UID = "b", "1"
	p.of(b, now)
	result := probeResult{credentials: probeWithBucket, retained: true, attacks: []probeAttack{{name: attackDelete, outcome: refusedByLock}}}
	p.note(b.Name, now, result)
	if p.of(b, now); len(p.last(b.Name)) != 1 || !result.proven() {
		t.Errorf("of the same bucket: %v", p.last(b.Name))
	}
	b.UID = "2"
	if p.of(b, now); len(p.last(b.Name)) != 0 {
		t.Errorf("of another bucket: %v", p.last(b.Name))
	}
	if result.removable = true; result.proven() {
		t.Error("what can be taken away is proven")
	}
}
