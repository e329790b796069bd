package main

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// converge does what a reconcile does until the bucket has the policy, reads back every
// step and returns them.
func (b *suiteBucket) converge(desired, recorded Policy) (steps []Step, refusal *Refusal) {
	b.t.Helper()
	live := b.observe().Policy
	for range maxConvergeSteps {
		plan := planPolicy(desired, live, recorded, b.traits().locksAtOnce)
		if len(plan.Steps) == 0 {
			return steps, plan.Refusal
		}
		step := plan.Steps[0]
		if step.Lock {
			b.must(b.LockPolicy(b.t.Context(), step.Policy))
		} else {
			b.must(b.SetPolicy(b.t.Context(), step.Policy))
		}
		if live = b.observe().Policy; live != step.Policy {
			b.t.Fatalf("after step %+v the bucket has a %s", step, live)
		}
		steps, recorded = append(steps, step), step.Policy
	}
	b.t.Fatalf("no %s after %v", desired, steps)
	return nil, nil
}

func unlockedPolicy(days int32) Policy { return Policy{Days: days} }

func lockedPolicy(days int32) Policy { return Policy{Days: days, Locked: true} }

func testStorePolicy(t *testing.T, backend storeBackend) {
	none, longest := Policy{}, backend.maxDays()
	set := func(p Policy) Step { return Step{Policy: p} }
	lock := func(p Policy) Step { return Step{Policy: p, Lock: true} }
	type change struct {
		desired Policy
		steps   []Step
		refused string // the reason
	}
	for _, test := range []struct {
		name    string
		changes []change
	}{
		{"unlocked", []change{
			{desired: none},
			{desired: unlockedPolicy(1), steps: []Step{set(unlockedPolicy(1))}},
			{desired: unlockedPolicy(1)},
			{desired: unlockedPolicy(4), steps: []Step{set(unlockedPolicy(4))}},
			{desired: unlockedPolicy(2), steps: []Step{set(unlockedPolicy(2))}},
			{desired: none, steps: []Step{set(none)}},
			{desired: none},
			{desired: unlockedPolicy(longest), steps: []Step{set(unlockedPolicy(longest))}},
		}},
		{"locked after unlocked", []change{
			{desired: unlockedPolicy(4), steps: []Step{set(unlockedPolicy(4))}},
			{desired: lockedPolicy(4), steps: []Step{lock(lockedPolicy(4))}},
			{desired: none, refused: reasonDisable},
			{desired: unlockedPolicy(9), refused: reasonUnlock},
			{desired: lockedPolicy(3), refused: reasonShorten},
			{desired: lockedPolicy(9), steps: []Step{lock(lockedPolicy(9))}},
			{desired: lockedPolicy(9)},
			{desired: lockedPolicy(longest), steps: []Step{lock(lockedPolicy(longest))}},
			{desired: lockedPolicy(longest)},
		}},
		{"locked at other days", []change{
			{desired: unlockedPolicy(9), steps: []Step{set(unlockedPolicy(9))}},
			{desired: lockedPolicy(4), steps: []Step{set(unlockedPolicy(4)), lock(lockedPolicy(4))}},
		}},
		{"locked at once", []change{
			{desired: lockedPolicy(1), steps: []Step{set(unlockedPolicy(1)), lock(lockedPolicy(1))}},
			{desired: lockedPolicy(2), steps: []Step{lock(lockedPolicy(2))}},
		}},
		{"locked for longest", []change{
			{desired: lockedPolicy(longest), steps: []Step{set(unlockedPolicy(longest)), lock(lockedPolicy(longest))}},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newSuiteBucket(t, backend)
			b.create()
			recorded := none
			for _, c := range test.changes {
				if b.traits().locksAtOnce && len(c.steps) > 0 {
					c.steps = c.steps[len(c.steps)-1:]
				}
				steps, refusal := []Step(nil), (*Refusal)(nil)
				requests := b.counted(func() { steps, refusal = b.converge(c.desired, recorded) })
				if !slices.Equal(steps, c.steps) {
					t.Errorf("to a %s it took %v, want %v", c.desired, steps, c.steps)
				}
				// A step is one write: nothing is tried that is refused.
				if writes := suiteWrites(requests); sum(writes) != len(c.steps) {
					t.Errorf("to a %s it took the writes %v", c.desired, writes)
				}
				want := c.desired
				if c.refused != "" {
					want = recorded
				}
				if reason := refusalReason(refusal); reason != c.refused {
					t.Errorf("a %s was refused for %q, want %q", c.desired, reason, c.refused)
				}
				b.wantPolicy(want)
				recorded = want
			}
		})
	}

	t.Run("LockPolicy without a policy", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		b.must(b.LockPolicy(t.Context(), lockedPolicy(3)))
		b.wantPolicy(lockedPolicy(3))
	})

	t.Run("LockPolicy again", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		b.must(b.LockPolicy(t.Context(), lockedPolicy(3)))
		before := b.observe()
		b.wantRequests("LockPolicy of what is locked", requestsOf{storeS3: {"PutObjectLockConfiguration": 1}, storeAzure: {}},
			func() { b.must(b.LockPolicy(t.Context(), lockedPolicy(3))) })
		after := b.observe()
		if before.Policy != after.Policy || remaining(before) != remaining(after) {
			t.Errorf("the bucket was %+v and is %+v", before, after)
		}
	})

	t.Run("a store of its own for each step", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		for _, step := range []Step{set(unlockedPolicy(5)), set(none), set(unlockedPolicy(6)), lock(lockedPolicy(6)), lock(lockedPolicy(7))} {
			store, err := b.opener.openStore(backend.ref(b.name), backend.credentials())
			b.must(err)
			if step.Lock {
				b.must(store.LockPolicy(t.Context(), step.Policy))
			} else {
				b.must(store.SetPolicy(t.Context(), step.Policy))
			}
			b.wantPolicy(step.Policy)
		}
	})

	// On S3 nothing keeps anybody from weakening a default retention: that is drift.
	t.Run("SetPolicy of what is locked", func(t *testing.T) {
		t.Parallel()
		if backend.kind() == storeS3 {
			t.Skip("the default retention of a bucket is never really locked on S3")
		}
		b := newSuiteBucket(t, backend)
		b.create()
		b.must(b.LockPolicy(t.Context(), lockedPolicy(3)))
		for _, weaker := range []Policy{none, unlockedPolicy(1), unlockedPolicy(3), unlockedPolicy(9)} {
			b.wantNoWrites("SetPolicy of what is locked", func() {
				wantStoreError(t, func(ctx context.Context) error { return b.SetPolicy(ctx, weaker) }, codeConfigurationProblem)
			})
			b.wantPolicy(lockedPolicy(3))
		}
		b.wantNoWrites("LockPolicy for fewer days", func() { b.must(b.LockPolicy(t.Context(), lockedPolicy(2))) })
		b.wantPolicy(lockedPolicy(3))
	})

	t.Run("bucket that does not exist", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		for name, call := range map[string]func(context.Context) error{
			"SetPolicy":  func(ctx context.Context) error { return b.SetPolicy(ctx, unlockedPolicy(1)) },
			"LockPolicy": func(ctx context.Context) error { return b.LockPolicy(ctx, lockedPolicy(1)) },
		} {
			err, again := call(t.Context()), call(t.Context())
			var failed *storeError
			if !errors.As(err, &failed) || again == nil || err.Error() != again.Error() {
				t.Errorf("%s of a bucket that does not exist: %v, %v", name, err, again)
			}
		}
		b.wantAbsent()
	})
}

func refusalReason(r *Refusal) string {
	if r == nil {
		return ""
	}
	return r.Reason
}

// remaining is -1 without a limit.
func remaining(state BucketState) int32 {
	if state.Extensions == nil {
		return -1
	}
	return *state.Extensions
}

func testStoreExtensions(t *testing.T, backend storeBackend) {
	b := newSuiteBucket(t, backend)
	b.create()
	b.must(b.LockPolicy(t.Context(), lockedPolicy(1)))
	days, left := int32(1), remaining(b.observe())
	if limited := backend.kind() == storeAzure; limited && left != azureMaxExtensions || !limited && left != -1 {
		t.Fatalf("%d extensions remain", left)
	}
	for range azureMaxExtensions {
		days++
		b.must(b.LockPolicy(t.Context(), lockedPolicy(days)))
		b.wantPolicy(lockedPolicy(days))
		if left > 0 {
			left--
		}
		if got := remaining(b.observe()); got != left {
			t.Errorf("after the extension to %d days %d remain, want %d", days, got, left)
		}
	}
	if left != 0 {
		return
	}
	b.wantNoWrites("an extension too many", func() {
		wantStoreError(t, func(ctx context.Context) error { return b.LockPolicy(ctx, lockedPolicy(days+1)) }, codeConfigurationProblem)
	})
	b.wantPolicy(lockedPolicy(days))
}

// testStoreDrift: somebody else changes the policy.
func testStoreDrift(t *testing.T, backend storeBackend) {
	for _, test := range []struct {
		name     string
		recorded Policy
		drifted  Policy
		steps    int
	}{
		{"removed", unlockedPolicy(10), Policy{}, 1},
		{"shortened", unlockedPolicy(10), unlockedPolicy(3), 1},
		{"extended", unlockedPolicy(10), unlockedPolicy(30), 1},
		{"locked", unlockedPolicy(10), lockedPolicy(10), 0},
		{"locked policy removed", lockedPolicy(10), Policy{}, 1},
		{"locked policy unlocked", lockedPolicy(10), unlockedPolicy(10), 1},
		{"locked policy shortened", lockedPolicy(10), lockedPolicy(3), 1},
		{"locked policy extended", lockedPolicy(10), lockedPolicy(11), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.recorded.Locked && test.drifted.weakerThan(test.recorded) && backend.kind() == storeAzure {
				t.Skip("Azure allows nobody to do that")
			}
			b := newSuiteBucket(t, backend)
			b.create()
			b.converge(test.recorded, Policy{})
			backend.setPolicy(t, b.name, test.drifted)
			b.wantPolicy(test.drifted)
			steps, _ := b.converge(test.recorded, test.recorded)
			if len(steps) != test.steps {
				t.Errorf("it was repaired with %v, want %d steps", steps, test.steps)
			}
			want := test.recorded
			if test.drifted.Locked && want.weakerThan(test.drifted) {
				want = test.drifted
			}
			b.wantPolicy(want)
		})
	}
	t.Run("after it was read", func(t *testing.T) {
		t.Parallel()
		for _, test := range []struct {
			seen, drifted Policy
			step          Step
		}{
			{Policy{}, unlockedPolicy(3), Step{Policy: unlockedPolicy(10)}},
			{unlockedPolicy(5), unlockedPolicy(3), Step{Policy: unlockedPolicy(10)}},
			{unlockedPolicy(5), Policy{}, Step{Policy: unlockedPolicy(10)}},
			{unlockedPolicy(10), unlockedPolicy(3), Step{Policy: lockedPolicy(10), Lock: true}},
			{unlockedPolicy(10), Policy{}, Step{Policy: lockedPolicy(10), Lock: true}},
			{lockedPolicy(5), lockedPolicy(6), Step{Policy: lockedPolicy(10), Lock: true}},
		} {
			b := newSuiteBucket(t, backend)
			b.create()
			b.converge(test.seen, Policy{})
			b.wantPolicy(test.seen)
			backend.setPolicy(t, b.name, test.drifted)
			if test.step.Lock {
				b.must(b.LockPolicy(t.Context(), test.step.Policy))
			} else {
				b.must(b.SetPolicy(t.Context(), test.step.Policy))
			}
			b.wantPolicy(test.step.Policy)
		}
	})
}
