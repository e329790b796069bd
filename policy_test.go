package main

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestPlanPolicy(t *testing.T) {
	var (
		none     = Policy{}
		unlocked = func(days int32) Policy { return Policy{Days: days} }
		locked   = func(days int32) Policy { return Policy{Days: days, Locked: true} }
		set      = func(days int32) Step { return Step{Policy: unlocked(days)} }
		lock     = func(days int32) Step { return Step{Lock: true, Policy: locked(days)} }
		remove   = Step{}
	)
	tests := []struct {
		name                    string
		desired, live, recorded Policy
		steps                   []Step
		drift                   bool
		refusal                 string
	}{
		{name: "nothing desired, nothing there", desired: none, live: none, recorded: none},
		{name: "nothing desired, our unlocked policy is gone already", desired: none, live: none, recorded: unlocked(4)},
		{name: "our unlocked policy is removed", desired: none, live: unlocked(4), recorded: unlocked(4), steps: []Step{remove}},
		{name: "our unlocked policy is left once others changed it", desired: none, live: unlocked(2), recorded: unlocked(4)},
		{name: "an unlocked policy of others is left", desired: none, live: unlocked(4), recorded: none},
		{name: "a locked policy of others is left", desired: none, live: locked(4), recorded: none},
		{name: "a policy that others locked is left", desired: none, live: locked(4), recorded: unlocked(4)},
		{name: "a lock cannot be disabled", desired: none, live: locked(4), recorded: locked(4), refusal: reasonDisable},
		{name: "a longer lock cannot be disabled", desired: none, live: locked(5), recorded: locked(4), refusal: reasonDisable},
		{name: "a removed lock is restored, not disabled", desired: none, live: none, recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonDisable},
		{name: "an unlocked lock is restored, not disabled", desired: none, live: unlocked(4), recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonDisable},
		{name: "a shortened lock is restored, not disabled", desired: none, live: locked(2), recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonDisable},

		{name: "unlocked is set", desired: unlocked(4), live: none, recorded: none, steps: []Step{set(4)}},
		{name: "unlocked is as desired", desired: unlocked(4), live: unlocked(4), recorded: unlocked(4)},
		{name: "unlocked is adopted", desired: unlocked(4), live: unlocked(4), recorded: none},
		{name: "unlocked is extended", desired: unlocked(4), live: unlocked(2), recorded: unlocked(2), steps: []Step{set(4)}},
		{name: "unlocked is shortened", desired: unlocked(2), live: unlocked(4), recorded: unlocked(4), steps: []Step{set(2)}},
		{name: "removed unlocked is set again", desired: unlocked(4), live: none, recorded: unlocked(4), steps: []Step{set(4)}, drift: true},
		{name: "shortened unlocked is set again", desired: unlocked(4), live: unlocked(1), recorded: unlocked(4), steps: []Step{set(4)}, drift: true},
		{name: "a lock cannot be unlocked", desired: unlocked(4), live: locked(4), recorded: locked(4), refusal: reasonUnlock},
		{name: "a lock of others is left where unlocked is asked for", desired: unlocked(4), live: locked(4), recorded: none},
		{name: "a policy of ours that others locked is left", desired: unlocked(4), live: locked(4), recorded: unlocked(4)},
		{name: "a policy of ours that others made longer and locked is left", desired: unlocked(4), live: locked(9), recorded: unlocked(4)},
		{name: "a lock of others that is too short stands against unlocked", desired: unlocked(9), live: locked(4), recorded: none, refusal: reasonUnlock},
		{name: "a policy of ours that others shortened and locked", desired: unlocked(9), live: locked(4), recorded: unlocked(9), drift: true, refusal: reasonUnlock},
		{name: "a lock cannot be unlocked by asking for longer", desired: unlocked(9), live: locked(4), recorded: locked(4), refusal: reasonUnlock},
		{name: "a removed lock is restored, not unlocked", desired: unlocked(4), live: none, recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonUnlock},

		{name: "locked is set, then locked", desired: locked(4), live: none, recorded: none, steps: []Step{set(4), lock(4)}},
		{name: "another unlocked is set, then locked", desired: locked(4), live: unlocked(2), recorded: unlocked(2), steps: []Step{set(4), lock(4)}},
		{name: "a longer unlocked is shortened, then locked", desired: locked(4), live: unlocked(9), recorded: none, steps: []Step{set(4), lock(4)}},
		{name: "what was read back is locked", desired: locked(4), live: unlocked(4), recorded: none, steps: []Step{lock(4)}},
		{name: "weakened unlocked is set before it is locked", desired: locked(4), live: unlocked(1), recorded: unlocked(2), steps: []Step{set(4), lock(4)}, drift: true},
		{name: "locked is as desired", desired: locked(4), live: locked(4), recorded: locked(4)},
		{name: "locked is adopted", desired: locked(4), live: locked(4), recorded: none},
		{name: "locked is extended", desired: locked(4), live: locked(2), recorded: locked(2), steps: []Step{lock(4)}},
		{name: "a lock of others is extended", desired: locked(4), live: locked(2), recorded: none, steps: []Step{lock(4)}},
		{name: "a lock cannot be shortened", desired: locked(2), live: locked(4), recorded: locked(4), refusal: reasonShorten},
		{name: "a longer lock of others is left", desired: locked(2), live: locked(4), recorded: none},
		{name: "a lock that others extended is left", desired: locked(2), live: locked(4), recorded: locked(2)},
		{name: "a lock that others extended is left though more is asked for", desired: locked(3), live: locked(4), recorded: locked(2)},
		{name: "a lock that others extended is extended further", desired: locked(9), live: locked(4), recorded: locked(2), steps: []Step{lock(9)}},
		{name: "what others extended does not shorten what is recorded", desired: locked(2), live: locked(9), recorded: locked(4), refusal: reasonShorten},
		{name: "a removed lock is restored", desired: locked(4), live: none, recorded: locked(4), steps: []Step{lock(4)}, drift: true},
		{name: "an unlocked lock is restored", desired: locked(4), live: unlocked(4), recorded: locked(4), steps: []Step{lock(4)}, drift: true},
		{name: "a shortened lock is restored", desired: locked(4), live: locked(2), recorded: locked(4), steps: []Step{lock(4)}, drift: true},
		{name: "a removed lock is restored and extended", desired: locked(9), live: none, recorded: locked(4), steps: []Step{lock(9)}, drift: true},
		{name: "a removed lock is restored, not shortened", desired: locked(2), live: none, recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonShorten},
		{name: "a shortened lock is restored, not left short", desired: locked(2), live: locked(2), recorded: locked(4), steps: []Step{lock(4)}, drift: true, refusal: reasonShorten},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			plan := planPolicy(test.desired, test.live, test.recorded, false)
			reason := ""
			if plan.Refusal != nil {
				reason = plan.Refusal.Reason
			}
			if !slices.Equal(plan.Steps, test.steps) || plan.Drift != test.drift || reason != test.refusal {
				t.Errorf("desired %s, live %s, recorded %s: got steps %v, drift %t, refusal %q; want steps %v, drift %t, refusal %q",
					test.desired, test.live, test.recorded, plan.Steps, plan.Drift, reason, test.steps, test.drift, test.refusal)
			}
			// A store that locks in one step: the same without what is only on the way to the lock.
			once := planPolicy(test.desired, test.live, test.recorded, true)
			if last := test.steps[max(len(test.steps)-1, 0):]; !slices.Equal(once.Steps, last) || once.Drift != plan.Drift ||
				(once.Refusal == nil) != (plan.Refusal == nil) {
				t.Errorf("locked at once: got %+v, want the steps %v", once, last)
			}
		})
	}
}

func TestRefusalMessage(t *testing.T) {
	tests := []struct {
		desired Policy
		want    string
	}{
		{Policy{}, "the bucket has a locked retention of 96h, spec.providerConfig asks for no immutability: a locked policy cannot be disabled; " +
			"keep immutability locked (S3: mode: compliance) with retentionPeriod: 96h or longer"},
		{Policy{Days: 9}, "the bucket has a locked retention of 96h, spec.providerConfig asks for unlocked retention of 216h: a locked policy cannot be unlocked; " +
			"keep immutability locked (S3: mode: compliance) with retentionPeriod: 96h or longer"},
		{Policy{Days: 1, Locked: true}, "the bucket has a locked retention of 96h, spec.providerConfig asks for locked retention of 24h: a locked policy cannot be shortened; " +
			"keep immutability locked (S3: mode: compliance) with retentionPeriod: 96h or longer"},
	}
	for _, test := range tests {
		refusal := planPolicy(test.desired, Policy{Days: 4, Locked: true}, Policy{Days: 4, Locked: true}, false).Refusal
		if refusal == nil || refusal.Error() != test.want {
			t.Errorf("asked for %s: got %v, want %s", test.desired, refusal, test.want)
		}
	}
}

// TestPlanPolicyProperties looks at every combination of small policies.
func TestPlanPolicyProperties(t *testing.T) {
	for _, atOnce := range []bool{false, true} {
		t.Run(fmt.Sprintf("at once %t", atOnce), func(t *testing.T) { testPlanPolicyProperties(t, atOnce) })
	}
}

func testPlanPolicyProperties(t *testing.T, atOnce bool) {
	all := []Policy{{}}
	for days := int32(1); days <= 3; days++ {
		all = append(all, Policy{Days: days}, Policy{Days: days, Locked: true})
	}
	covers := func(p, q Policy) bool { return p.Days >= q.Days && (p.Locked || !q.Locked) }
	for _, desired := range all {
		for _, live := range all {
			for _, recorded := range all {
				t.Run(fmt.Sprintf("%s, %s, %s", desired, live, recorded), func(t *testing.T) {
					// What is recorded is a promise. What is live was maybe set by somebody else, and is only not weakened.
					promised := Policy{}
					if recorded.Locked {
						promised = recorded
					}
					stands := live.Locked && !covers(desired, live) && !covers(live, desired)
					refused := !covers(desired, promised) || stands

					plan := planPolicy(desired, live, recorded, atOnce)
					if got := plan.Refusal != nil; got != refused {
						t.Fatalf("refused: %t, want %t", got, refused)
					}
					if plan.Drift && len(plan.Steps) == 0 && !stands {
						t.Error("drift without a repair")
					}
					if refused && plan.Refusal.Reason == "" {
						t.Error("a refusal without a reason")
					}
					if foreign := live.Locked && covers(live, desired) && live != desired && covers(desired, promised); foreign &&
						(len(plan.Steps) > 0 || plan.Drift) {
						t.Errorf("a lock that is stronger than asked for is not left alone: %+v", plan)
					}
					for _, step := range plan.Steps {
						if atOnce && desired.Locked && !step.Lock {
							t.Errorf("step %v of a bucket that is to be locked can come late, over the lock", step)
						}
						if step.Lock != step.Policy.Locked {
							t.Errorf("step %v locks and does not", step)
						}
						if !covers(step.Policy, promised) {
							t.Errorf("step %v is weaker than %s", step, promised)
						}
						if step.Lock && step.Policy != desired && step.Policy != recorded {
							t.Errorf("step %v locks what neither the spec nor the record says", step)
						}
						if live.Locked && !covers(step.Policy, live) {
							t.Errorf("step %v is weaker than the live lock %s", step, live)
						}
						if refused && step.Policy != promised {
							t.Errorf("step %v of a refused plan leads elsewhere than to %s", step, promised)
						}
					}

					// One step at a time, as in a pass: the record is that of its start.
					at, taken := live, 0
					for ; ; taken++ {
						plan := planPolicy(desired, at, recorded, atOnce)
						if len(plan.Steps) == 0 {
							break
						}
						if taken == 2 || atOnce && taken == 1 {
							t.Fatalf("not converged after %d steps: at %s, next %v", taken, at, plan.Steps)
						}
						step := plan.Steps[0]
						readBack := at == Policy{Days: step.Policy.Days}
						extends := at.Locked && covers(step.Policy, at)
						repairs := recorded.Locked && covers(step.Policy, recorded)
						if step.Lock && !readBack && !extends && !repairs && !atOnce {
							t.Errorf("locks %s unseen: the bucket has %s", step.Policy, at)
						}
						at = step.Policy
					}
					switch {
					case !covers(at, promised):
						t.Errorf("ends at %s, weaker than %s", at, promised)
					case !refused && !desired.None() && at != desired && !(at.Locked && at == live && covers(at, desired)):
						t.Errorf("ends at %s, want %s", at, desired)
					case desired.None() && recorded.None() && taken > 0:
						t.Errorf("changed to %s what is not ours", at)
					}

					// What the pass recorded is at rest.
					if !refused {
						if next := planPolicy(desired, at, desired, atOnce); len(next.Steps) > 0 || next.Drift || next.Refusal != nil {
							t.Errorf("the next pass is not idle: %+v", next)
						}
					}
				})
			}
		}
	}
}

func TestStrongerPolicy(t *testing.T) {
	unlocked, locked := func(days int32) Policy { return Policy{Days: days} }, func(days int32) Policy { return Policy{Days: days, Locked: true} }
	for _, test := range []struct {
		p, q, stronger Policy
		// more: q protects more than p and less in nothing.
		more bool
	}{
		{},
		{p: unlocked(4), q: unlocked(4), stronger: unlocked(4)},
		{q: unlocked(1), stronger: unlocked(1), more: true},
		{p: unlocked(4), q: unlocked(5), stronger: unlocked(5), more: true},
		{p: unlocked(4), q: locked(4), stronger: locked(4), more: true},
		{p: locked(4), q: locked(5), stronger: locked(5), more: true},
		// Neither protects more in every respect. What cannot be undone counts.
		{p: unlocked(9), q: locked(4), stronger: locked(4)},
	} {
		if got, back := stronger(test.p, test.q), stronger(test.q, test.p); got != test.stronger || back != test.stronger {
			t.Errorf("of %s and %s: got %s and %s, want %s", test.p, test.q, got, back, test.stronger)
		}
		if got := test.q.strongerThan(test.p); got != test.more || test.p.strongerThan(test.q) {
			t.Errorf("%s is stronger than %s: %t", test.q, test.p, got)
		}
	}
}

func TestPolicyString(t *testing.T) {
	tests := []struct {
		policy Policy
		text   string
		// end of the retention of an object of 2026-01-02.
		end string
	}{
		{Policy{}, "no immutability", "2026-01-02"},
		{Policy{Days: 1}, "unlocked retention of 24h", "2026-01-03"},
		{Policy{Days: 4, Locked: true}, "locked retention of 96h", "2026-01-06"},
		{Policy{Days: s3MaxRetentionDays, Locked: true}, "locked retention of 876000h", "2125-12-09"},
		{Policy{Days: azureMaxRetentionDays, Locked: true}, "locked retention of 3504000h", "2425-09-27"},
	}
	for _, test := range tests {
		if got := test.policy.String(); got != test.text {
			t.Errorf("got %q, want %q", got, test.text)
		}
		if got := test.policy.until(time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)).Format(time.DateOnly); got != test.end {
			t.Errorf("%s: ends on %s, want %s", test.text, got, test.end)
		}
	}
}

func TestRefuseExtension(t *testing.T) {
	refusal := (&azureClients{}).refuseExtension(Policy{Days: 10, Locked: true}, Policy{Days: 4, Locked: true})
	want := "the bucket has a locked retention of 96h, spec.providerConfig asks for locked retention of 240h: " +
		"Azure allows a locked policy to be extended only five times, and that has been done; write retentionPeriod: 96h"
	if refusal.Error() != want || refusal.Reason != "extend" {
		t.Errorf("reason %s, got %s", refusal.Reason, refusal)
	}
}
