package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// probeWorld is a bucket in memory and the rounds on it.
type probeWorld struct {
	t        *testing.T
	server   *memoryServer
	policy   Policy
	canaries canaries
	// calls are those of the store, keys what they have named.
	calls, keys []string
	// stop ends the calls behind a number of them, at once or after the last of them was made.
	stop  int
	after bool
	// status is what a missing permission is answered with, 403 if it is 0; attack changes the answers to attacks.
	status int
	attack func(error) error
	// unversioned says that delete markers have no version of their own.
	unversioned bool
}

func newProbeWorld(t *testing.T, policy Policy) *probeWorld {
	w := &probeWorld{t: t, server: newMemoryServer(), policy: policy, stop: -1}
	w.server.buckets["b"] = &memoryBucket{region: memoryRegion, policy: policy}
	for _, key := range []string{"shoot--a--b/etcd/v2/Full-1", ".bucketwarden/tombstones/x/revoked-12345678", ".bucketwarden/probe/stranger"} {
		w.server.write(w.server.buckets["b"], version{key: key})
	}
	return w
}

// probeStore is a memoryStore that notes what it is asked, with permissions of its own.
type probeStore struct {
	*memoryStore
	w *probeWorld
	// may says which operations are allowed; nil: all.
	may func(operation string) bool
}

func (w *probeWorld) store(may func(string) bool) *probeStore {
	p := &memoryProvider{w.server, newMetrics()}
	return &probeStore{memoryStore: &memoryStore{p, bucketRef{Name: "b", Region: memoryRegion}, w.server.key}, w: w, may: may}
}

// ask notes a call and makes it, unless the round ends here.
func (s *probeStore) ask(name string, key string, f func() error) error {
	if len(s.w.calls) == s.w.stop && !s.w.after {
		return unavailable
	}
	s.w.calls, s.w.keys = append(s.w.calls, name), append(s.w.keys, key)
	s.server.refuse = func(operation string) int {
		if s.may == nil || s.may(operation) {
			return http.StatusOK
		}
		return cmp.Or(s.w.status, http.StatusForbidden)
	}
	defer func() { s.server.refuse = nil }()
	err := f()
	if len(s.w.calls) == s.w.stop+1 && s.w.after {
		return unavailable
	}
	return err
}

func (s *probeStore) pages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		err := s.ask("list", prefix, func() error { return nil })
		if err != nil {
			yield(page{}, err)
			return
		}
		s.memoryStore.pages(ctx, prefix, from)(yield)
	}
}

func (s *probeStore) plant(ctx context.Context, key string) (v version, err error) {
	err = s.ask("plant", key, func() error { v, err = s.memoryStore.plant(ctx, key); return err })
	return v, err
}

func (s *probeStore) retention(ctx context.Context, v version) (until time.Time, removable bool, err error) {
	err = s.ask("retention", v.key, func() error { until, removable, err = s.memoryStore.retention(ctx, v); return err })
	return until, removable, err
}

func (s *probeStore) attack(ctx context.Context, name string, v version, until time.Time, leave permit) error {
	return s.ask(name, v.key, func() error {
		err := s.memoryStore.attack(ctx, name, v, until, leave)
		if s.w.attack != nil {
			err = s.w.attack(err)
		}
		return err
	})
}

func (s *probeStore) mark(ctx context.Context, key string) (v version, err error) {
	err = s.ask("mark", key, func() error { v, err = s.memoryStore.mark(ctx, key); return err })
	if s.w.unversioned {
		v.id = ""
	}
	return v, err
}

func (s *probeStore) discard(ctx context.Context, v version, leave permit) error {
	return s.ask("discard", v.key, func() error { return s.memoryStore.discard(ctx, v, leave) })
}

func (s *probeStore) lengthen(ctx context.Context, v version, until time.Time, removable bool) error {
	return s.ask("lengthen", v.key, func() error { return s.memoryStore.lengthen(ctx, v, until, removable) })
}

// round makes a round.
func (w *probeWorld) round(keeper, attacker *probeStore) (probeResult, error) {
	w.calls = nil
	r := &probeRound{keeper: keeper, attacker: attacker, policy: w.policy, canaries: &w.canaries}
	return r.run(w.t.Context())
}

// check checks what must hold at any time: nothing but canaries was named, and all else is there.
func (w *probeWorld) check() {
	w.t.Helper()
	for _, key := range w.keys {
		if key != probePrefix && !isCanary(key) {
			w.t.Errorf("%q was named", key)
		}
	}
	others := 0
	for _, v := range w.server.buckets["b"].versions {
		if !isCanary(v.key) {
			others++
		}
	}
	if others != 3 {
		w.t.Errorf("%d objects of others are left, want 3", others)
	}
}

// stored are the canaries in the bucket, and the delete markers on them.
func (w *probeWorld) stored() (canaries, markers int) {
	for _, v := range w.server.buckets["b"].versions {
		switch {
		case !isCanary(v.key):
		case v.marker:
			markers++
		default:
			canaries++
		}
	}
	return canaries, markers
}

func outcomesOf(result probeResult) string {
	var all []string
	for _, a := range result.attacks {
		all = append(all, a.name+" "+map[probeOutcome]string{refusedByLock: "lock", refusedOtherwise: "other", attackSucceeded: "done"}[a.outcome])
	}
	return strings.Join(all, ", ")
}

func mayNot(operations ...string) func(string) bool {
	return func(operation string) bool { return !slices.Contains(operations, operation) }
}

// How attacks end, on buckets of all kinds and with credentials of all kinds.
func TestProbeOutcomes(t *testing.T) {
	held := "delete lock, shorten lock, shorten-bypass lock, delete-bypass lock"
	for _, test := range []struct {
		name   string
		policy Policy
		may    func(string) bool
		lies   bool
		status int
		attack func(error) error
		// unversioned: delete markers have no version.
		unversioned bool
		want        string
		detail      string // of the last attack
		proven      bool
		calls       int
		left        int
	}{
		{name: "locked", policy: lockedPolicy(7), want: held, detail: "these credentials may do that to what is not locked", proven: true,
			calls: 10, left: 1},
		{name: "not immutable", want: "delete done", detail: "it is gone", calls: 5},
		{name: "governance, may bypass", policy: unlockedPolicy(7), want: "delete lock, shorten lock, shorten-bypass done, delete-bypass done",
			detail: "it is gone", calls: 9},
		{name: "governance, may not bypass", policy: unlockedPolicy(7), may: mayNot("Bypass"),
			want:   "delete lock, shorten lock, shorten-bypass other, delete-bypass other",
			detail: "the retention can be taken away by whoever may bypass it, which these credentials may not", calls: 10, left: 1},
		{name: "locked, may not delete versions", policy: lockedPolicy(7), may: mayNot("DeleteVersion"),
			want: "delete other, shorten other, shorten-bypass other, delete-bypass other", detail: "these credentials may not delete anything",
			calls: 10, left: 1},
		{name: "locked, may not delete", policy: lockedPolicy(7), may: mayNot("DeleteVersion", "DeleteObject"),
			want: "delete other, shorten other, shorten-bypass other, delete-bypass other", detail: "these credentials may not delete anything",
			calls: 8, left: 1},
		{name: "not immutable, may not delete", may: mayNot("DeleteVersion"), want: "delete other, delete-bypass other",
			detail: "these credentials may not delete anything", calls: 8, left: 1},
		{name: "locked, may not change retention", policy: lockedPolicy(7), may: mayNot("PutRetention"),
			want: "delete lock, shorten other, shorten-bypass other, delete-bypass lock", proven: true, calls: 10, left: 1,
			detail: "these credentials may do that to what is not locked"},
		{name: "locked, and the store has no such call", policy: lockedPolicy(7), may: mayNot("PutRetention"), status: http.StatusConflict,
			want: "delete lock, shorten other, shorten-bypass other, delete-bypass lock", proven: true, calls: 9, left: 1,
			detail: "these credentials may do that to what is not locked"},
		{name: "a store that names the lock, as a conflict", policy: lockedPolicy(7), want: held, proven: true, calls: 7, left: 1,
			detail: "the store names the lock as the reason",
			attack: func(error) error { return &refusedError{errLocked, unavailable} }},
		{name: "without versions there is nothing to delete", policy: lockedPolicy(7), unversioned: true,
			want:   "delete other, shorten other, shorten-bypass other, delete-bypass other",
			detail: "the control does not work: the bucket has no versions", calls: 8, left: 1},
		{name: "a store that lies", lies: true, want: "delete other, delete-bypass other",
			detail: "the store says that it is deleted, and it is still there", calls: 7, left: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newProbeWorld(t, test.policy)
				w.server.lies, w.status, w.attack, w.unversioned = test.lies, test.status, test.attack, test.unversioned
				store := w.store(test.may)
				result, err := w.round(store, store)
				if err != nil {
					t.Fatal(err)
				}
				if got := outcomesOf(result); got != test.want {
					t.Errorf("got %s, want %s: %+v", got, test.want, result)
				}
				if got := result.attacks[len(result.attacks)-1].detail; got != test.detail {
					t.Errorf("the detail is %q, want %q", got, test.detail)
				}
				if result.proven() != test.proven || len(w.calls) != test.calls {
					t.Errorf("proven %t, want %t; %d calls, want %d: %v", result.proven(), test.proven, len(w.calls), test.calls, w.calls)
				}
				if canaries, _ := w.stored(); canaries != test.left {
					t.Errorf("%d canaries are left, want %d", canaries, test.left)
				}
				for _, v := range w.server.buckets["b"].versions {
					if known := w.canaries.current; v.key == known.key && !v.marker && !v.until.Equal(known.until) {
						t.Errorf("the canary is retained until %v, and %v is remembered", v.until, known.until)
					}
				}
				w.check()
			})
		})
	}
}

// However long a retention is, a day costs 8 requests at most, there are few canaries, and none is attacked when it is free. It
// begins anew after some days, as after a restart.
func TestProbeDays(t *testing.T) {
	everything := func(string) bool { return true }
	for _, days := range []int32{1, 2, 3, 7, 30} {
		for _, restricted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d days, restricted %t", days, restricted), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newProbeWorld(t, lockedPolicy(days))
					keeper, entry := w.store(everything), w.store(mayNot("DeleteVersion", "PutRetention"))
					next := time.Now()
					for day := range 3*days + 10 {
						time.Sleep(time.Until(next))
						attacker := keeper
						if restricted && day%2 == 1 {
							attacker = entry
						}
						restart := day == days+5
						if restart {
							w.canaries = canaries{}
						}
						result, err := w.round(keeper, attacker)
						if err != nil {
							t.Fatal(err)
						}
						if n := len(w.calls); n > 8 && day > 0 && !restart {
							t.Errorf("day %d: %d requests: %v", day, n, w.calls)
						}
						if result.count(attackSucceeded) > 0 || attacker == keeper && !result.proven() || attacker == entry && result.proven() {
							t.Errorf("day %d: %s", day, outcomesOf(result))
						}
						if canaries, markers := w.stored(); canaries > int(days)+2 || canaries > 3 || markers > 1 {
							t.Errorf("day %d: %d canaries and %d markers", day, canaries, markers)
						}
						w.check()
						next = next.Add(probeInterval)
						if until := w.canaries.current.until; until.Before(next.Add(canaryMargin)) && until.After(next.Add(-canaryMargin)) {
							next = until.Add(time.Minute)
						}
					}
				})
			})
		}
	}
}

// A round that ends at any step is made again, with at most one canary more, and with nothing left in the end.
func TestProbeInterrupted(t *testing.T) {
	for _, policy := range []Policy{lockedPolicy(2), unlockedPolicy(2), {}} {
		for _, after := range []bool{false, true} {
			for stop := 0; ; stop++ {
				ended := false
				synctest.Test(t, func(t *testing.T) {
					w := newProbeWorld(t, policy)
					store := w.store(nil)
					w.stop, w.after = stop, after
					result, err := w.round(store, store)
					w.stop = -1
					if err == nil {
						// Tidying up is not needed for a result.
						ended = !slices.Contains(w.calls[min(stop, len(w.calls)):], "discard") || len(w.calls) <= stop
					} else if !errors.Is(err, unavailable) || len(result.attacks) > 0 {
						t.Errorf("%s, step %d: %v, %+v", policy, stop, err, result)
					}
					if result, err = w.round(store, store); err != nil {
						t.Fatalf("%s, step %d: %v", policy, stop, err)
					}
					if canaries, markers := w.stored(); canaries > 2 || markers > 0 {
						t.Errorf("%s, step %d: %d canaries and %d markers", policy, stop, canaries, markers)
					}
					if policy.Locked && !result.proven() {
						t.Errorf("%s, step %d: %s", policy, stop, outcomesOf(result))
					}
					for range 5 {
						time.Sleep(25 * time.Hour)
						if result, err = w.round(store, store); err != nil || policy.Locked && result.count(attackSucceeded) > 0 {
							t.Fatalf("%s, step %d: %v, %s", policy, stop, err, outcomesOf(result))
						}
					}
					if canaries, markers := w.stored(); canaries > 1 || markers > 0 {
						t.Errorf("%s, step %d, days later: %d canaries and %d markers", policy, stop, canaries, markers)
					}
					w.check()
				})
				if ended || stop > 20 {
					if stop < 4 || stop > 20 {
						t.Errorf("%s: there are %d steps", policy, stop)
					}
					break
				}
			}
		}
	}
}

// What earlier processes have left is deleted once its retention has ended, and not tried before.
func TestProbeTidiesInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newProbeWorld(t, lockedPolicy(3))
		store := w.store(nil)
		for range 3 {
			if _, err := store.plant(t.Context(), newCanaryKey()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		for day := range 6 {
			if _, err := w.round(store, store); err != nil {
				t.Fatal(err)
			}
			for i, call := range w.calls {
				// The control of a deletion is made on the canary itself.
				if call == "discard" && w.keys[i] != w.canaries.current.key && day < 3 {
					t.Errorf("day %d: what is retained is to be deleted: %q", day, w.calls)
				}
			}
			time.Sleep(25 * time.Hour)
		}
		if canaries, markers := w.stored(); canaries > 2 || markers > 0 {
			t.Errorf("in the end there are %d canaries and %d markers", canaries, markers)
		}
		w.check()
	})
}

// A canary that somebody holds, or has deleted, does not mislead the next rounds.
func TestProbeStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newProbeWorld(t, lockedPolicy(1))
		bucket, store := w.server.buckets["b"], w.store(nil)
		if _, err := w.round(store, store); err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(bucket.versions, w.canaries.current.same)
		bucket.versions[at].held = true
		var outcomes []string
		for range 3 {
			time.Sleep(25 * time.Hour)
			result, err := w.round(store, store)
			if err != nil {
				t.Fatal(err)
			}
			outcomes = append(outcomes, outcomesOf(result))
		}
		// Once the held one stands in for the control, which proves nothing.
		if strings.Contains(outcomes[0], "delete lock") || !strings.Contains(outcomes[1], "delete lock") || !strings.Contains(outcomes[2], "delete lock") {
			t.Error(outcomes)
		}
		bucket.versions = slices.DeleteFunc(bucket.versions, func(v version) bool { return isCanary(v.key) && !v.held })
		if result, err := w.round(store, store); err != nil || !result.proven() {
			t.Errorf("after it was deleted: %v, %s", err, outcomesOf(result))
		}
		w.check()
		// Any number of objects of others is one page.
		for i := range 3 * memoryPage {
			w.server.write(bucket, version{key: fmt.Sprintf("%sa%06d", probePrefix, i)})
		}
		w.canaries = canaries{}
		if result, err := w.round(store, store); err != nil || !result.proven() || len(w.calls) > 10 {
			t.Errorf("among strangers: %v, %s, %v", err, outcomesOf(result), w.calls)
		}
	})
}

// Leave is given for canaries alone.
func TestPermitCanary(t *testing.T) {
	for key, want := range map[string]bool{
		newCanaryKey():                          true,
		canaryPrefix + "ABCDEFGHIJKL":           true,
		canaryPrefix + "ABCDEFGHIJKLM":          false,
		canaryPrefix + "ABCDEFGHIJK":            false,
		canaryPrefix + "ABCDEFGHIJK/":           false,
		canaryPrefix + "ABCDEFGHIJ..":           false,
		"x" + canaryPrefix + "ABCDEFGHIJKL":     false,
		probePrefix:                             false,
		"":                                      false,
		"shoot--a--b/etcd/v2/Full-1":            false,
		tombstonePrefix + "canary-ABCDEFGHIJKL": false,
	} {
		if err := permitCanary(version{key: key}).ask(t.Context()); (err == nil) != want {
			t.Errorf("%q: %v", key, err)
		}
	}
	store := newProbeWorld(t, Policy{}).store(nil)
	for _, f := range []func() error{
		func() error {
			return store.memoryStore.attack(t.Context(), attackDelete, version{key: "a"}, time.Time{}, permit{})
		},
		func() error {
			return store.memoryStore.discard(t.Context(), version{key: "a"}, permitCanary(version{key: "a"}))
		},
	} {
		if f() == nil {
			t.Error("it is done without leave")
		}
	}
}
