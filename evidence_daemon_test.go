package main

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// evidenceHarness is a harness whose buckets have evidence.
type evidenceHarness struct {
	*harness
	writer *evidenceWriter
	keys   evidenceKeys
}

// withEvidence runs a test in virtual time, on bucket b with a lock of 4 days.
func withEvidence(t *testing.T, run func(h *evidenceHarness)) {
	t.Helper()
	inVirtualTime(t, func(h *harness) {
		e := &evidenceHarness{harness: h, keys: evidenceKeys{testEvidenceKey(1)}}
		h.cloud.put("b", locked4d)
		h.putBucket(true, withPolicy(locked4d), withRecord(locked4d))
		e.restart()
		run(e)
	})
}

// restart is a new process: nothing that was in memory is there any more.
func (h *evidenceHarness) restart() {
	h.buckets.evidence = newEvidenceLog()
	c := newCalmController(h.t, resourceEvidence, h.metrics)
	var earlier looks
	if h.writer != nil {
		earlier = h.writer.earlier
	}
	h.writer = newEvidenceWriter(h.buckets, c, h.core, &config{namespace: "garden"}, h.metrics.entries)
	h.writer.keys, h.writer.earlier = h.keys, earlier
	h.buckets.askEvidence = h.writer.ask
}

// live makes passes over the bucket for a time, with those over its evidence that they ask for. Errors of the latter are returned.
func (h *evidenceHarness) live(d time.Duration) (errs []error) {
	h.t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(min(testVerifyInterval, time.Until(end))) {
		if _, err := h.passBucket("b"); err != nil {
			h.t.Fatal(err)
		}
		if err := h.passEvidence(); err != nil {
			errs = append(errs, err)
		}
		if !time.Now().Before(end) {
			return errs
		}
	}
}

// passEvidence makes a pass over the evidence of the bucket, if one was asked for.
func (h *evidenceHarness) passEvidence() error {
	h.t.Helper()
	h.trace = nil
	if h.writer.controller.queue.Len() == 0 {
		return nil
	}
	key, _ := h.writer.controller.queue.Get()
	defer h.writer.controller.queue.Done(key)
	_, err := h.pass(h.t.Context(), h.writer.reconcile, key.Name, false)
	return err
}

func (h *evidenceHarness) stored() (stored []storedEvidence) {
	for key, o := range h.cloud.buckets["b"].objects {
		if strings.HasPrefix(key, evidencePrefix) {
			stored = append(stored, storedEvidence{name: key, content: o.content})
		}
	}
	return stored
}

// statements are what is in the bucket, of which nothing may be wrong but what is named.
func (h *evidenceHarness) statements(findings ...string) []evidence {
	h.t.Helper()
	verified, found, err := readEvidence(eachStored(h.stored()), evidenceQuery{keys: []ed25519.PublicKey{publicOf(testEvidenceKey(1))}})
	if err != nil {
		h.t.Fatal(err)
	}
	if got := kinds(found); !slices.Equal(got, findings) {
		h.t.Errorf("found %v, want %q", found, findings)
	}
	var all []evidence
	for _, v := range verified {
		all = append(all, v.Statement)
	}
	return all
}

// reasons are what was written, in order.
func reasonsOf(all []evidence) (reasons []string) {
	for _, e := range all {
		reasons = append(reasons, e.Reason)
	}
	return reasons
}

func TestEvidenceDaily(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.cloud.offset = 90 * time.Second
		h.cloud.gaps = nil
		if h.has("bucketwarden_backupbucket_evidence_timestamp_seconds", "b") {
			t.Error("there is a series before the first pass")
		}
		if _, err := h.passBucket("b"); err != nil {
			t.Fatal(err)
		}
		h.wantMetric(0, "bucketwarden_backupbucket_evidence_timestamp_seconds", "b")
		begun := time.Now()
		if err := h.passEvidence(); err != nil {
			t.Fatal(err)
		}
		first := h.statements()
		key := h.stored()[0].name
		h.wantTrace("get secrets garden/bucket-b", `store b Purge ".bucketwarden/evidence/"`, "store b Put "+key)
		if h.metric("bucketwarden_backupbucket_evidence_timestamp_seconds", "b") != float64(time.Now().Unix()) {
			t.Error("it is not shown when it was written")
		}
		e := first[0]
		if e.Sequence != 1 || e.Reason != evidenceDaily || !e.Time.Equal(begun.Add(90*time.Second)) || e.ClockOffset != -90 ||
			e.Bucket.Name != "b" || e.Policy.policy() != locked4d || e.Record.policy() != locked4d || e.Spec.policy() != locked4d ||
			e.VerifiedSince == nil || !e.VerifiedSince.Equal(e.Time) || e.Interruption != "bucketwarden started" || e.Foreign {
			t.Errorf("the first is %+v", e)
		}
		h.live(72 * time.Hour)
		all := h.statements()
		// What is known of the hardening comes an hour later at the latest, which is a change.
		if reasons := slices.DeleteFunc(reasonsOf(all), func(r string) bool { return r == evidenceChange }); len(reasons) != 4 {
			t.Errorf("in three days there are %q", reasonsOf(all))
		}
		if since := all[len(all)-1].VerifiedSince; since == nil || since.After(begun.Add(time.Hour)) {
			t.Errorf("verified since %v", since)
		}
		h.live(time.Minute)
		h.wantTrace()
		payload, _ := json.Marshal(all)
		if strings.Contains(string(payload), secretMarker) {
			t.Error("a secret is in the evidence")
		}
	})
}

// A statement costs one request, the write. Only the first of a process has to find where the chain is, and the one after a failure.
func TestEvidenceRequests(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.live(2 * time.Hour)
		before, days := len(h.stored()), int32(locked4d.Days)
		want := func(wrong int, calls ...string) {
			t.Helper()
			days++
			h.cloud.buckets["b"].state.Policy = Policy{Days: days, Locked: true}
			errs := h.live(0)
			var got []string
			for _, call := range h.storeCalls() {
				got = append(got, strings.Fields(call)[2])
			}
			if before++; len(errs) != wrong || len(h.stored()) != before || !slices.Equal(got, calls) {
				t.Errorf("%d statements instead of %d for %q, want %q; %v", len(h.stored()), before, h.trace, calls, errs)
			}
			time.Sleep(testVerifyInterval)
		}
		want(0, "Put")
		want(0, "Put")
		h.restart()
		want(0, "Purge", "Open", "Put")
		want(0, "Put")
		h.cloud.fail["written"] = unavailable
		want(1, "Put")
		delete(h.cloud.fail, "written")
		want(0, "Purge", "Open", "Purge", "Put")
		want(0, "Put")
		all := h.statements()
		if last := all[len(all)-1]; !last.Foreign || !last.has(evidenceForeign) || last.Reason != evidenceChange || last.Policy.Days != days {
			t.Errorf("the last is %+v", last)
		}
	})
}

// A store that stores something else than it says goes unnoticed until somebody verifies. The chain goes on.
func TestEvidenceThatIsStoredWrong(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.live(26 * time.Hour)
		n := len(h.statements())
		h.cloud.garbles = true
		h.buckets.evidence.note("b", evidenceDenial, "denied")
		h.live(0)
		h.cloud.garbles = false
		h.live(26 * time.Hour)
		h.restart()
		h.live(26 * time.Hour)
		if all := h.statements(findingUnreadable+" 0", fmt.Sprintf("%s %d", findingMissing, n+2)); len(all) != n+2 {
			t.Errorf("then there is %q", reasonsOf(all))
		}
	})
}

// Times are the store's, whose answers tell whole seconds of it: what was stated once stays as it is, whatever becomes of the clocks.
func TestEvidenceOfSteadyTimes(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		time.Sleep(700 * time.Millisecond)
		begun := time.Now()
		h.live(26 * time.Hour)
		for _, ahead := range []time.Duration{300 * time.Millisecond, -400 * time.Millisecond, 900 * time.Millisecond, 0, 30 * time.Second} {
			h.cloud.offset = ahead
			h.live(26 * time.Hour)
		}
		all := h.statements()
		last := all[len(all)-1]
		if !last.VerifiedSince.Equal(begun.Truncate(time.Second)) || last.Time.Sub(time.Now().Add(30*time.Second)).Abs() > 26*time.Hour ||
			last.ClockOffset > -29 {
			t.Errorf("begun at %v, the last is %+v", begun, last)
		}
		h.restart()
		h.live(26 * time.Hour)
		h.statements()
	})
}

// A store whose clock goes back, or that lies in its date, is found by whoever verifies, and so are two daemons that write at once.
func TestEvidenceOfWrongClocks(t *testing.T) {
	for _, back := range []time.Duration{90 * time.Minute, 10000 * time.Hour} {
		withEvidence(t, func(h *evidenceHarness) {
			h.live(2 * time.Hour)
			h.buckets.evidence.note("b", evidenceDenial, "denied")
			h.live(0)
			time.Sleep(testVerifyInterval)
			h.cloud.offset = -back
			h.buckets.evidence.note("b", evidenceDenial, "denied again")
			h.live(0)
			var found []string
			_, findings, _ := readEvidence(eachStored(h.stored()), evidenceQuery{keys: h.keys.public()})
			for _, f := range findings {
				found = append(found, f.Kind)
			}
			if !slices.Contains(found, findingClock) {
				t.Errorf("a clock that goes back by %v: found %v", back, findings)
			}
		})
	}
	withEvidence(t, func(h *evidenceHarness) {
		h.cloud.timeless = true
		h.live(2 * time.Hour)
		for _, e := range h.statements() {
			if !strings.Contains(strings.Join(e.Unknown, " "), "The store's time is not known") {
				t.Errorf("without a date there is %+v", e)
			}
		}
	})
}

func TestEvidenceOfTwoDaemons(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.live(26 * time.Hour)
		n := len(h.statements())
		one, log := h.writer, h.buckets.evidence
		h.restart()
		h.live(0) // the other one has found where the chain is
		h.live(26 * time.Hour)
		other, otherLog := h.writer, h.buckets.evidence
		h.writer, h.buckets.evidence, h.buckets.askEvidence = one, log, one.ask
		h.live(0)
		h.statements(fmt.Sprintf("%s %d", findingFork, n+1))
		h.writer, h.buckets.evidence, h.buckets.askEvidence = other, otherLog, other.ask
	})
}

func TestEvidenceOfChanges(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.live(2 * time.Hour)
		before := len(h.statements())
		begun := time.Now()
		h.cloud.buckets["b"].state.Policy = Policy{}
		h.live(testVerifyInterval)
		all := h.statements()
		last := all[before]
		if !last.has(evidenceDrift) || !last.has(evidenceRepair) || !last.has(evidenceLock) || last.Policy.policy() != locked4d ||
			last.Interruption == "" || last.VerifiedSince == nil || last.VerifiedSince.Before(begun) {
			t.Errorf("after drift there is %+v", last)
		}
		// Events are told once.
		h.live(2 * testVerifyInterval)
		if all = h.statements(); len(all) != before+1 {
			t.Errorf("one drift makes %q", reasonsOf(all[before:]))
		}
		// One statement in a minute, however much happens.
		for range 10 {
			h.buckets.evidence.note("b", evidenceDenial, "denied")
			h.live(time.Second)
		}
		if all = h.statements(); len(all) != before+2 {
			t.Errorf("ten denials make %q", reasonsOf(all[before+1:]))
		}
		h.live(time.Minute)
		all = h.statements()
		n := 0
		for _, e := range all {
			for _, event := range e.Events {
				if event.Kind == evidenceDenial {
					n++
				}
			}
		}
		if len(all) != before+3 || n != 10 {
			t.Errorf("%d denials are told in %q", n, reasonsOf(all[before+1:]))
		}
	})
}

// What cannot be seen is told as that, and ends what is claimed.
func TestEvidenceOfSilence(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.live(time.Hour)
		h.cloud.fail["Observe"] = unavailable
		for range 24 * 6 {
			time.Sleep(testVerifyInterval)
			if _, err := h.passBucket("b"); err == nil {
				t.Fatal("the store answers")
			}
			if err := h.passEvidence(); err != nil {
				t.Fatal(err)
			}
		}
		delete(h.cloud.fail, "Observe")
		all := h.statements("unlocked 2")
		last := all[len(all)-1]
		if last.Policy != nil || last.VerifiedSince != nil || last.Observed != nil || !strings.Contains(fmt.Sprint(last.Unknown), "has not answered") {
			t.Errorf("without an answer there is %+v", last)
		}
		h.live(time.Hour)
		all = h.statements("unlocked 2")
		if last = all[len(all)-1]; last.Policy == nil || last.VerifiedSince == nil || last.Interruption == "" {
			t.Errorf("after it there is %+v", last)
		}
	})
}

// A restart goes on where the chain is, whatever it has not noticed, and whatever others have put there.
func TestEvidenceAfterRestart(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.live(26 * time.Hour)
		n := len(h.statements())
		// A statement of today is enough.
		h.restart()
		h.live(time.Hour)
		if all := h.statements(); len(all) != n {
			t.Errorf("a restart makes %q", reasonsOf(all[n:]))
		}
		// A write whose answer was lost, and a restart after it.
		h.cloud.fail["written"] = unavailable
		h.buckets.evidence.note("b", evidenceDenial, "denied")
		if errs := h.live(0); len(errs) != 1 {
			t.Errorf("a write without an answer gives %v", errs)
		}
		delete(h.cloud.fail, "written")
		h.restart()
		h.live(2 * testVerifyInterval)
		if all := h.statements(); len(all) != n+1 {
			t.Errorf("after a write without an answer there is %q", reasonsOf(all[n:]))
		}
		// The same without a restart: what was written is found, and not written again.
		h.cloud.fail["written"] = unavailable
		h.buckets.evidence.note("b", evidenceDenial, "denied again")
		if errs := h.live(0); len(errs) != 1 {
			t.Errorf("a write without an answer gives %v", errs)
		}
		delete(h.cloud.fail, "written")
		h.live(2 * testVerifyInterval)
		if all := h.statements(); len(all) != n+2 {
			t.Errorf("after another write without an answer there is %q", reasonsOf(all[n:]))
		}
		// What somebody else puts there does not count.
		junk := signedBy(t, testEvidenceKey(9), evidence{Sequence: 999, Reason: evidenceDaily, Time: time.Now(), Bucket: evidenceBucket{Name: "b"}})
		for i, content := range [][]byte{junk, []byte("x"), nil} {
			h.cloud.buckets["b"].objects[fmt.Sprintf("%s%010d-2026-01-03-%s.json", evidencePrefix, n+3+i*100, strings.Repeat("a", 32))] =
				memObject{content: content, size: int64(len(content))}
		}
		h.cloud.buckets["b"].objects[evidencePrefix+"note"] = memObject{}
		for _, restart := range []bool{false, true} {
			if restart {
				h.restart()
			}
			h.live(26 * time.Hour)
		}
		verified, _, _ := readEvidence(eachStored(h.stored()), evidenceQuery{keys: h.keys.public()})
		for i, v := range verified {
			if v.Statement.Sequence != int64(i+1) {
				t.Errorf("%d is number %d", i, v.Statement.Sequence)
			}
		}
		if len(verified) < n+4 {
			t.Errorf("with junk there are %d statements, there were %d", len(verified), n+2)
		}
	})
}

// The first statement waits until the backups of all entries have been looked at, but not for ever.
func TestEvidenceWaitsForEntries(t *testing.T) {
	for name, test := range map[string]struct {
		checked bool
		before  int
	}{"not looked at": {false, 0}, "looked at": {true, 1}} {
		withEvidence(t, func(h *evidenceHarness) {
			state := entryState{bucket: "b"}
			if test.checked {
				state.checked = time.Now()
			}
			h.metrics.entries.states["e"] = state
			h.live(evidencePatience - testVerifyInterval)
			if all := h.statements(); len(all) != test.before {
				t.Errorf("%s: there is %q", name, reasonsOf(all))
			}
			h.live(2 * testVerifyInterval)
			if all := h.statements(); len(all) != 1 {
				t.Errorf("%s: then there is %q", name, reasonsOf(all))
			}
		})
	}
}

// However many objects somebody has put there, one pass looks at some of them, and the next goes on.
func TestEvidenceBehindManyStrangers(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		for i := range 2*maxEvidenceTries + 1 {
			h.cloud.buckets["b"].objects[fmt.Sprintf("%s%010d-2026-01-03-%s.json", evidencePrefix, 100+i, strings.Repeat("a", 32))] =
				memObject{content: []byte("x"), size: 1}
		}
		for pass, want := range []int{0, 0, 1} {
			errs := h.live(0)
			verified, _, _ := readEvidence(eachStored(h.stored()), evidenceQuery{keys: h.keys.public()})
			if len(verified) != want || (len(errs) == 0) != (want > 0) {
				t.Errorf("pass %d: %d statements, %v", pass, len(verified), errs)
			}
			time.Sleep(testVerifyInterval)
		}
	})
}

// What is too large to be a statement is not read.
func TestEvidenceBehindLargeStrangers(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		for i := range maxEvidenceTries + 1 {
			h.cloud.buckets["b"].objects[fmt.Sprintf("%s%010d-2026-01-03-%s.json", evidencePrefix, 100+i, strings.Repeat("a", 32))] =
				memObject{content: []byte("x"), size: maxEvidence + 1}
		}
		errs := h.live(0)
		if verified, _, _ := readEvidence(eachStored(h.stored()), evidenceQuery{keys: h.keys.public()}); len(verified) != 1 || len(errs) > 0 {
			t.Errorf("%d statements, %v", len(verified), errs)
		}
	})
}

// An old statement that somebody has copied to the name of a later one is not the newest: the chain goes on behind that.
func TestEvidenceOfCopies(t *testing.T) {
	for _, restart := range []bool{true, false} {
		for _, place := range []string{"%010[1]d-2026-01-03-" + strings.Repeat("a", 32) + ".json", "00000010%02[1]d/%[2]s"} {
			withEvidence(t, func(h *evidenceHarness) {
				h.live(50 * time.Hour)
				stored := h.stored()
				n := len(stored)
				for _, behind := range []int{1, 1000} {
					key := evidencePrefix + fmt.Sprintf(place, n+behind, path.Base(stored[0].name))
					h.cloud.buckets["b"].objects[key] = memObject{content: stored[0].content, size: int64(len(stored[0].content))}
				}
				if restart {
					h.restart()
				} else {
					h.cloud.fail["written"] = unavailable
					h.live(25 * time.Hour)
					delete(h.cloud.fail, "written")
				}
				h.live(50 * time.Hour)
				verified, _, _ := readEvidence(eachStored(h.stored()), evidenceQuery{keys: h.keys.public()})
				numbers := map[int64]bool{}
				for _, v := range verified {
					if number := v.Statement.Sequence; numbers[number] && number != 1 {
						t.Errorf("restart %t, %s: there are two statements with number %d", restart, place, number)
					} else {
						numbers[number] = true
					}
				}
				if len(numbers) < n+2 {
					t.Errorf("restart %t, %s: %d statements, before there were %d", restart, place, len(numbers), n)
				}
			})
		}
	}
}

// What the same key has signed about another bucket, and somebody has copied, is no part of the chain: the bucket is not verified since
// the other one was.
func TestEvidenceOfAnotherBucket(t *testing.T) {
	for _, restart := range []bool{true, false} {
		withEvidence(t, func(h *evidenceHarness) {
			begun := time.Now()
			h.live(2 * time.Hour)
			n := len(h.stored())
			since, now := begun.Add(-1000*time.Hour).UTC(), time.Now().UTC()
			e := evidence{Sequence: int64(n + 1), Reason: evidenceDaily, Time: now, Observed: &now, VerifiedSince: &since,
				Policy: statedPolicy(locked4d), Record: statedPolicy(locked4d), Bucket: evidenceBucket{Name: "other"}}
			content := signedBy(t, testEvidenceKey(1), e)
			h.cloud.buckets["b"].objects[evidencePrefix+evidenceName(&e, evidenceDigest(content))] = memObject{content: content, size: int64(len(content))}
			if restart {
				h.restart()
			}
			h.live(26 * time.Hour)
			verified, _, _ := readEvidence(eachStored(h.stored()), evidenceQuery{keys: h.keys.public()})
			numbers := map[int64]bool{}
			for _, v := range verified {
				e := &v.Statement
				if e.Bucket.Name == "other" {
					continue
				}
				if e.VerifiedSince != nil && e.VerifiedSince.Before(begun.Add(-time.Second)) || numbers[e.Sequence] {
					t.Errorf("restart %t: number %d says that the bucket is verified since %v", restart, e.Sequence, e.VerifiedSince)
				}
				numbers[e.Sequence] = true
			}
			if !numbers[int64(n+1)] {
				t.Errorf("restart %t: the chain does not go on with number %d", restart, n+1)
			}
		})
	}
}

func signedBy(t *testing.T, key ed25519.PrivateKey, e evidence) []byte {
	t.Helper()
	content, err := signEvidence(e.statement(), key)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// What is verified without a gap goes on over a restart if the last look is not too long ago, which only a signed note can tell.
func TestEvidenceSinceOverRestarts(t *testing.T) {
	for name, test := range map[string]struct {
		down  time.Duration
		looks func(*evidenceHarness, looks) looks
		goes  bool
	}{
		"short":           {down: time.Minute, looks: func(_ *evidenceHarness, l looks) looks { return l }, goes: true},
		"long":            {down: time.Hour, looks: func(_ *evidenceHarness, l looks) looks { return l }},
		"without a note":  {down: time.Minute, looks: func(*evidenceHarness, looks) looks { return nil }},
		"by another hand": {down: time.Minute, looks: func(h *evidenceHarness, l looks) looks { return readLooks(map[string]string{looksKey: "{}"}, h.keys) }},
	} {
		t.Run(name, func(t *testing.T) {
			withEvidence(t, func(h *evidenceHarness) {
				h.live(20 * time.Hour)
				data, err := h.buckets.evidence.verified().sign(h.keys.signer())
				if err != nil {
					t.Fatal(err)
				}
				since := h.statements()[0].VerifiedSince
				time.Sleep(test.down)
				h.restart()
				h.writer.earlier = test.looks(h, readLooks(data, h.keys))
				h.live(26 * time.Hour)
				all := h.statements()
				last := all[len(all)-1]
				if goes := last.VerifiedSince != nil && last.VerifiedSince.Equal(*since); goes != test.goes || !goes && last.Interruption == "" {
					t.Errorf("first since %v, now since %v, interrupted: %q", since, last.VerifiedSince, last.Interruption)
				}
			})
		})
	}
	if l := readLooks(map[string]string{looksKey: `{"b":"2026-01-01T00:00:00Z"}`, looksSignature: "AAAA"}, evidenceKeys{testEvidenceKey(1)}); l != nil {
		t.Errorf("a note without a signature tells %v", l)
	}
}

func TestEvidenceRotation(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.live(2 * time.Hour)
		n := len(h.statements())
		h.keys = evidenceKeys{testEvidenceKey(2), testEvidenceKey(1)}
		h.restart()
		h.live(50 * time.Hour)
		all := h.statements()
		if len(all) < n+3 || all[n].Reason != evidenceRotation || all[n].NextKeyID != evidenceKeyID(publicOf(testEvidenceKey(2))) {
			t.Errorf("a new key makes %q", reasonsOf(all[n:]))
		}
		verified, _, _ := readEvidence(eachStored(h.stored()), evidenceQuery{keys: []ed25519.PublicKey{publicOf(testEvidenceKey(1))}})
		for i, v := range verified {
			if want := evidenceKeyID(publicOf(h.keys[min(1, max(0, n-i+1))])); v.KeyID != want {
				t.Errorf("number %d is signed with %s, want %s", i+1, v.KeyID, want)
			}
		}
	})
}

// Evidence is for buckets that were ready and stay; it does not keep one from being deleted.
func TestEvidenceAndDeletion(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.live(time.Hour)
		n := len(h.stored())
		h.edit(bucketsGVR, "b", deleting)
		for range 3 {
			time.Sleep(time.Hour)
			if _, err := h.passBucket("b"); err != nil {
				t.Fatal(err)
			}
			if err := h.passEvidence(); err != nil {
				t.Fatal(err)
			}
		}
		if h.cloud.buckets["b"] != nil {
			if len(h.stored()) > n {
				t.Error("there is evidence of a bucket that is being deleted")
			}
			for key, o := range h.cloud.buckets["b"].objects {
				if o.until.IsZero() {
					t.Errorf("%s is not retained and still there", key)
				}
			}
		}
		if h.has("bucketwarden_backupbucket_evidence_timestamp_seconds", "b") {
			t.Error("there is a series of a bucket that is being deleted")
		}
	})
	withEvidence(t, func(h *evidenceHarness) {
		h.edit(bucketsGVR, "b", withLast(operationTypeCreate, stateError, "no"))
		h.sync()
		h.writer.ask(h.buckets.cached.List()[0].(*backupBucket))
		if h.writer.controller.queue.Len() > 0 {
			t.Error("there is evidence of a bucket that was never ready")
		}
	})
}

// Without --evidence a pass leaves nothing.
func TestEvidenceIsOff(t *testing.T) {
	var l *evidenceLog
	l.saw("b", BucketState{}, Policy{}, 0, nil)
	l.note("b", evidenceDrift, "x")
	l.forget("b")
	if _, ok := l.get("b"); ok {
		t.Error("a log that is off knows a bucket")
	}
	inVirtualTime(t, func(h *harness) {
		h.putVerified()
		if h.has("bucketwarden_backupbucket_evidence_timestamp_seconds", "b") {
			t.Error("there is a series")
		}
	})
}

func TestEvidenceLogIsBounded(t *testing.T) {
	l := newEvidenceLog()
	l.saw("b", BucketState{Exists: true, Policy: locked4d}, locked4d, time.Hour, nil)
	for range 1000 {
		l.note("b", evidenceDenial, "%s", strings.Repeat("é", 10000))
		l.note("unknown", evidenceDenial, "x")
	}
	n, _ := l.get("b")
	if len(n.events) != maxEvidenceEvents || n.leftOut != 900 || len(n.events[0].Message) > maxEvidenceText || len(l.buckets) != 1 {
		t.Errorf("%d events, %d left out, %d bytes, %d buckets", len(n.events), n.leftOut, len(n.events[0].Message), len(l.buckets))
	}
}

// thousand is what is known of 1000 entries.
func thousand(now time.Time) map[string]entryState {
	states := map[string]entryState{}
	for i := range 1000 {
		states[fmt.Sprintf("shoot--project%03d--cluster%03d--%08x-1c5d-4a8a-9d1e-%012x", i%100, i, i, i)] = entryState{bucket: "b", checked: now,
			full: now.Add(-time.Hour), delta: now.Add(-time.Minute), known: true, complete: true, revision: 123456789,
			lock: chainLock{known: true, locked: true, until: now.AddDate(0, 0, 30)}, exclusionsKnown: true, snapshots: 1234, sizeSum: 12345678901,
			deep: deepState{at: now, intact: true}}
	}
	return states
}

// A statement about a bucket with 1000 entries has at most 400 kB.
func TestEvidenceSize(t *testing.T) {
	e := newEvidenceChain(t).days(1).last
	e.describeEntries(thousand(evidenceStart), evidenceStart, 0)
	if content := signedBy(t, testEvidenceKey(1), e); len(content) > 400_000 || len(e.Entries) != 1000 || len(e.Unknown) > 0 {
		t.Errorf("%d entries have %d bytes", len(e.Entries), len(content))
	}
}

func BenchmarkEvidenceSign(b *testing.B) {
	e := newEvidenceChain(b).days(1).last
	states := thousand(evidenceStart)
	for b.Loop() {
		e.describeEntries(states, evidenceStart, 0)
		if _, err := signEvidence(e.statement(), testEvidenceKey(1)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEvidenceVerify400Days(b *testing.B) {
	c := newEvidenceChain(b)
	states := thousand(evidenceStart)
	for range 400 {
		c.add(func(e *evidence) { e.describeEntries(states, evidenceStart, 0) })
	}
	for b.Loop() {
		if verified, findings := c.read(evidenceQuery{}); len(verified) != 400 || len(findings) > 0 {
			b.Fatal(findings)
		}
	}
}

func TestEvidenceOfEntries(t *testing.T) {
	now := evidenceStart
	fresh := entryState{checked: now, exclusionsKnown: true}
	for name, test := range map[string]struct {
		change func(*entryState)
		want   string
	}{
		"not looked at":      {func(s *entryState) { s.checked = time.Time{} }, `{"name":"e","snapshots":0,"bytes":0}`},
		"looked at long ago": {func(s *entryState) { s.checked, s.complete = now.Add(-4*time.Hour), true }, `{"name":"e","snapshots":0,"bytes":0}`},
		"nothing known":      {func(*entryState) {}, `{"name":"e","checked":"2026-03-01T00:05:00Z","snapshots":0,"bytes":0}`},
		"incomplete": {func(s *entryState) { s.known, s.snapshots = true, 3 },
			`{"name":"e","checked":"2026-03-01T00:05:00Z","incomplete":true,"snapshots":3,"bytes":0}`},
		"complete and unlocked": {func(s *entryState) { s.known, s.complete, s.revision, s.lock = true, true, 7, chainLock{known: true} },
			`{"name":"e","checked":"2026-03-01T00:05:00Z","revision":7,"unlocked":true,"snapshots":0,"bytes":0}`},
		"held": {func(s *entryState) { s.lock = chainLock{known: true, locked: true} },
			`{"name":"e","checked":"2026-03-01T00:05:00Z","held":true,"snapshots":0,"bytes":0}`},
		"exclusions": {func(s *entryState) { s.exclusionsKnown, s.excluded, s.unannounced, s.suspicious = false, 2, 1, 1 },
			`{"name":"e","checked":"2026-03-01T00:05:00Z","excluded":2,"unannounced":1,"exclusionsUnknown":true,"suspicious":1,"snapshots":0,"bytes":0}`},
		"damaged": {func(s *entryState) { s.deep.at = now },
			`{"name":"e","checked":"2026-03-01T00:05:00Z","snapshots":0,"bytes":0,"read":"2026-03-01T00:05:00Z","damaged":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := fresh
			test.change(&s)
			if got := harnessJSON(t, s.evidence("e", now, 0)); got != test.want {
				t.Errorf("%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestEvidenceKeyLoading(t *testing.T) {
	h := newHarness(t)
	h.putNamespace("garden", false)
	h.trace = nil
	keys, earlier, err := loadEvidenceKeys(t.Context(), h.core, "garden", "")
	if err != nil || len(keys) != 1 || earlier != nil {
		t.Fatalf("%d keys, %v, %v", len(keys), earlier, err)
	}
	if len(h.core.Actions()) != 4 {
		t.Errorf("making it takes %q", h.trace)
	}
	h.core.ClearActions()
	again, _, err := loadEvidenceKeys(t.Context(), h.core, "garden", "")
	if err != nil || !again.signer().Equal(keys.signer()) || len(h.core.Actions()) != 2 {
		t.Errorf("again: %v, %q", err, h.trace)
	}
	shown, err := h.core.CoreV1().ConfigMaps("garden").Get(t.Context(), evidenceObject, metav1.GetOptions{})
	if err != nil || shown.Data[evidencePublicKeys] != keys.publicPEM() || strings.Contains(harnessJSON(t, shown), "PRIVATE") {
		t.Errorf("the ConfigMap is %v, %v", shown, err)
	}
	h.editSecret("garden", evidenceObject, func(s *corev1.Secret) { s.Data[evidencePrivateKeys] = []byte(secretMarker) })
	if _, _, err := loadEvidenceKeys(t.Context(), h.core, "garden", ""); err == nil || strings.Contains(err.Error(), secretMarker) {
		t.Errorf("a broken key: %v", err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	text, err := newEvidenceKey()
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if fromFile, _, err := loadEvidenceKeys(t.Context(), h.core, "garden", file); err != nil || fromFile.signer().Equal(keys.signer()) {
		t.Errorf("from a file: %v", err)
	}
	if _, _, err := loadEvidenceKeys(t.Context(), h.core, "garden", file+"x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if shown, err = h.core.CoreV1().ConfigMaps("garden").Get(t.Context(), evidenceObject, metav1.GetOptions{}); err != nil ||
		strings.Contains(shown.Data[evidencePublicKeys], keys.publicPEM()) {
		t.Errorf("the ConfigMap shows a key that is not ours: %v", err)
	}
}

// evidenceSeeds are one that is signed, and what is nearly one.
func evidenceSeeds(t testing.TB) []string {
	good := string(newEvidenceChain(t).days(1).stored[0].content)
	return []string{good, good[:len(good)/2], `{"payload":"e30=","payload":"e30="}`,
		`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":""}]}`}
}

// checkEvidenceEnvelope: whatever lies in a bucket, it is what we have signed or an error.
func checkEvidenceEnvelope(t testing.TB, content []byte) {
	statement, _, err := openEnvelope(content, []ed25519.PublicKey{publicOf(testEvidenceKey(1))})
	var wrong *envelopeError
	if err != nil {
		if !errors.As(err, &wrong) || wrong.kind == "" {
			t.Errorf("%v", err)
		}
		return
	}
	c := newEvidenceChain(t).days(1)
	if harnessText(t, statement.Predicate) != harnessText(t, c.last) {
		t.Errorf("%v counts as signed by us", statement)
	}
}

func harnessText(t testing.TB, v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func FuzzEvidenceEnvelope(f *testing.F) { fuzz(f, evidenceSeeds(f), checkEvidenceEnvelope) }

func TestEvidenceMutations(t *testing.T) {
	checkMutations(t, "FuzzEvidenceEnvelope", evidenceSeeds(t), 2000, checkEvidenceEnvelope)
}

// What the probe and the care for versions leave is told; without them it is not known.
func TestEvidenceOfOthers(t *testing.T) {
	withEvidence(t, func(h *evidenceHarness) {
		h.live(time.Hour)
		before := h.statements()
		if text := fmt.Sprint(before[0].Unknown); !strings.Contains(text, "holds against attacks") || !strings.Contains(text, "versions that are not retained") {
			t.Errorf("unknown is %s", text)
		}
		some, attack := int64(3), evidenceAttack{Time: time.Now().UTC(), Attack: "delete", Credentials: "bucket", Outcome: "refused by the lock"}
		h.buckets.evidence.probed("b", "bucket", []evidenceAttack{{Credentials: "bucket", Outcome: "succeeded"}})
		h.buckets.evidence.probed("b", "bucket", []evidenceAttack{attack})
		h.buckets.evidence.countUnprotected("b", &some)
		h.live(0)
		all := h.statements()
		last := all[len(all)-1]
		if len(all) != len(before)+1 || last.UnprotectedVersions == nil || *last.UnprotectedVersions != 3 || !slices.Equal(last.Probe, []evidenceAttack{attack}) {
			t.Errorf("the last of %d says %+v", len(all), last)
		}
		full, delta := testStart, testStart.Add(time.Minute)
		if newest := (&evidenceEntry{Full: &full, Delta: &delta}).newest(); !newest.Equal(delta) {
			t.Errorf("the newest is of %v", newest)
		}
	})
}
