package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memVersions is a list of versions in memory, of any length, and what a store does with them.
type memVersions struct {
	mu sync.Mutex
	n  int
	at func(i int) version // the i-th of the list, which is in the order of keys
	// keeps says that a version is retained.
	keeps func(v version) bool
	// answer may answer for the store; nil leaves it to keeps.
	answer func(batch []version) ([]removal, error)
	// wholly: a batch with one that is retained is refused wholly.
	wholly bool
	ends   func(v version) (time.Time, error)
	// listing is called ahead of each page.
	listing func(from cursor) error
	open    []version // uploads
	has     traits
	page    int
	now     time.Time

	gone           map[[2]string]bool
	lists, removes int
	asked          []version
	dated          []version
}

func newMemVersions(n int, at func(i int) version) *memVersions {
	return &memVersions{
		n: n, at: at, page: 1000, gone: map[[2]string]bool{}, now: time.Now().UTC(),
		has: traits{batch: 1000, verify: true, backoff: func(int) time.Duration { return 0 }},
	}
}

func (s *memVersions) pages(_ context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		i, _ := strconv.Atoi(from.key)
		for {
			if s.listing != nil {
				if err := s.listing(cursor{key: strconv.Itoa(i)}); err != nil {
					yield(page{}, err)
					return
				}
			}
			p := page{now: s.now}
			s.mu.Lock()
			s.lists++
			for ; i < s.n && len(p.versions) < s.page; i++ {
				if v := s.at(i); strings.HasPrefix(v.key, prefix) && (len(s.gone) == 0 || !s.gone[[2]string{v.key, v.id}]) {
					p.versions = append(p.versions, v)
				}
			}
			s.mu.Unlock()
			if i < s.n {
				p.next = cursor{key: strconv.Itoa(i)}
			}
			if !yield(p, nil) || i == s.n {
				return
			}
		}
	}
}

func (s *memVersions) remove(_ context.Context, batch []version) ([]removal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removes++
	s.asked = append(s.asked, batch...)
	kept := func(v version) bool { return s.keeps != nil && !v.marker && !v.upload && s.keeps(v) }
	answers, err := []removal(nil), error(nil)
	if s.answer != nil {
		answers, err = s.answer(batch)
	}
	if answers == nil && err == nil {
		answers = make([]removal, len(batch))
		for i, v := range batch {
			switch {
			case s.wholly && slices.ContainsFunc(batch, kept):
				answers[i].outcome = removalRefused
			case kept(v):
				answers[i].outcome = removalRetained
			default:
				answers[i].outcome = removalGone
			}
		}
	}
	for i, a := range answers {
		if a.outcome == removalGone {
			s.gone[[2]string{batch[i].key, batch[i].id}] = true
		}
	}
	return answers, err
}

func (s *memVersions) until(_ context.Context, v version) (time.Time, error) {
	s.dated = append(s.dated, v)
	if s.ends == nil {
		return time.Time{}, nil
	}
	return s.ends(v)
}

func (s *memVersions) endpoint() endpointRef { return endpointRef{host: "mem"} }

func (s *memVersions) traits() traits { return s.has }

func (s *memVersions) uploads(context.Context, string) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) { yield(page{now: s.now, versions: s.open}, nil) }
}

// left is what is not gone.
func (s *memVersions) left() (left []version) {
	for i := range s.n {
		if v := s.at(i); !s.gone[[2]string{v.key, v.id}] {
			left = append(left, v)
		}
	}
	return left
}

// memKeys are n versions of as many keys, each of one byte and a second younger than the one before.
func memKeys(n int, oldest time.Time) func(int) version {
	return func(i int) version {
		return version{key: fmt.Sprintf("a/%08d", i), id: "1", size: 1, created: oldest.Add(time.Duration(i) * time.Second)}
	}
}

// Very many retained versions are looked at piece by piece, in constant memory, and all that is
// asked for is a sample of them.
func TestPurgeOfAMillionRetained(t *testing.T) {
	const n = 1000000
	policy := Policy{Days: 100, Locked: true}
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	store := newMemVersions(n, memKeys(n, time.Now().Add(-n*time.Second).UTC()))
	store.keeps = func(version) bool { return true }
	most, before := uint64(0), heap()
	store.ends = func(v version) (time.Time, error) {
		most = max(most, heap())
		return policy.until(v.created), nil
	}
	order := purgeOrder{bucket: "b", name: "x", prefix: "a/", policy: policy, uploads: true, permit: anything}
	want := PurgeResult{Retained: n, RetainedBytes: n, RetainedUntil: policy.until(store.at(n - 1).created), Now: store.now, Seen: n}
	all, restart, passes := &purges{}, true, 1
	for {
		result, err := all.run(t.Context(), store, order)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, heap())
		if !result.Unfinished {
			if result != want {
				t.Errorf("the purge ends with %+v, want %+v", result, want)
			}
			break
		}
		if seen := int64(passes) * purgeWork; result.Seen != seen || result.Retained != seen || !result.RetainedUntil.IsZero() {
			t.Errorf("pass %d returned %+v", passes, result)
		}
		if passes++; restart && passes == 3 { // which begins anew
			all, restart, passes, store.lists = &purges{}, false, 1, 0
		}
	}
	if passes != n/purgeWork || store.lists != n/1000 || store.removes != 1 || len(all.states) != 0 {
		t.Errorf("%d passes, %d pages, %d deletions, %d purges are remembered", passes, store.lists, store.removes, len(all.states))
	}
	if grown := int64(most) - int64(before); grown > 20<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// What a policy is presumed to retain is asked for with a sample. If some of that goes, the
// next round takes nothing for granted.
func TestPurgeSample(t *testing.T) {
	policy := Policy{Days: 30}
	for name, test := range map[string]struct {
		n, free int
		removes int
		lists   int
	}{
		"all are retained":         {n: 5000, removes: 1, lists: 5},
		"all are asked for":        {n: 900, free: 300, removes: 1, lists: 1},
		"none is retained":         {n: 5000, free: 5000, removes: 1 + 5, lists: 11},
		"the older ones are free":  {n: 5000, free: 2500, removes: 1 + 5, lists: 10},
		"nearly all are free":      {n: 5000, free: 4999, removes: 1 + 5, lists: 10},
		"an even number of pages":  {n: 4000, free: 1000, removes: 1 + 4, lists: 8},
		"one more than the sample": {n: 1001, free: 500, removes: 1 + 1, lists: 3},
	} {
		t.Run(name, func(t *testing.T) {
			store := newMemVersions(test.n, memKeys(test.n, time.Now().Add(-24*time.Hour).UTC()))
			store.keeps = func(v version) bool { return v.key >= store.at(test.free).key }
			store.ends = func(v version) (time.Time, error) { return policy.until(v.created), nil }
			result, err := (&purges{}).run(t.Context(), store, purgeOrder{bucket: "b", prefix: "a/", policy: policy, permit: anything})
			kept := int64(test.n - test.free)
			want := PurgeResult{
				Deleted: int64(test.free), DeletedBytes: int64(test.free), Retained: kept, RetainedBytes: kept, Now: store.now, Seen: result.Seen,
			}
			if kept > 0 {
				want.RetainedUntil = policy.until(store.at(test.n - 1).created)
			}
			if err != nil || result != want {
				t.Errorf("%+v, %v, want %+v", result, err, want)
			}
			if len(store.gone) != test.free || store.removes != test.removes || store.lists != test.lists {
				t.Errorf("%d are gone, after %d deletions and %d pages", len(store.gone), store.removes, store.lists)
			}
		})
	}
}

// Without a policy that is known, the first refusals teach what is retained.
func TestPurgeLearnsFromRefusals(t *testing.T) {
	const n = 20000
	store := newMemVersions(n, memKeys(n, time.Now().Add(-24*time.Hour).UTC()))
	store.has.serial = true
	store.keeps = func(v version) bool { return v.key >= store.at(n/2).key }
	result, err := (&purges{}).run(t.Context(), store, purgeOrder{bucket: "b", prefix: "a/", permit: anything})
	if err != nil || result.Deleted != n/2 || result.Retained != n/2 || len(store.gone) != n/2 {
		t.Errorf("%+v, %v", result, err)
	}
	// The free ones, the batch that taught it, and the sample.
	if store.removes != n/2/1000+1+1 {
		t.Errorf("%d deletions", store.removes)
	}
}

// A retention of its own says nothing about other versions.
func TestPurgeGoesPastOneThatIsRetainedForLong(t *testing.T) {
	t.Parallel()
	const n = 3000
	for _, which := range []int{0, 1000, n - 1} {
		for _, policy := range []Policy{{}, {Days: 1000}} {
			for _, wholly := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d %d %t", which, policy.Days, wholly), func(t *testing.T) {
					store := newMemVersions(n, memKeys(n, time.Now().Add(-100*24*time.Hour).UTC()))
					until := store.now.AddDate(100, 0, 0)
					store.keeps = func(v version) bool { return v.key == store.at(which).key }
					store.ends = func(v version) (time.Time, error) {
						if v.key != store.at(which).key {
							t.Errorf("asked for the end of %s", v.key)
						}
						return until, nil
					}
					store.wholly = wholly
					result, err := (&purges{}).run(t.Context(), store, purgeOrder{bucket: "b", prefix: "a/", policy: policy, permit: anything})
					want := PurgeResult{
						Deleted: n - 1, DeletedBytes: n - 1, Retained: 1, RetainedBytes: 1, Now: store.now, RetainedUntil: until, Seen: result.Seen,
					}
					if err != nil || result != want {
						t.Errorf("%+v, %v, want %+v", result, err, want)
					}
				})
			}
		}
	}
}

// Each round has requests of its own to find the free ones among what is refused wholly.
func TestPurgeFindsFreeOnesInRefusedBatches(t *testing.T) {
	const n = 3000
	store := newMemVersions(n, memKeys(n, time.Now().Add(-24*time.Hour).UTC()))
	kept := []string{store.at(7).key, store.at(1007).key, store.at(2007).key}
	store.has.serial, store.wholly = true, true
	store.keeps = func(v version) bool { return slices.Contains(kept, v.key) }
	result, err := (&purges{}).run(t.Context(), store, purgeOrder{bucket: "b", prefix: "a/", permit: anything})
	if err != nil || result.Deleted != n-3 || result.Retained != 3 || len(store.gone) != n-3 {
		t.Errorf("%+v, %v", result, err)
	}
	if store.removes > 4*purgeSplits {
		t.Errorf("%d deletions", store.removes)
	}
}

// A legal hold of the whole bucket is learned from one answer, and what the list says is held
// or retained is never asked for.
func TestPurgeAsksForNothingThatIsKnown(t *testing.T) {
	t.Run("hold", func(t *testing.T) {
		store := newMemVersions(20000, memKeys(20000, time.Now().Add(-24*time.Hour).UTC()))
		store.has.serial = true
		store.answer = func(batch []version) ([]removal, error) {
			return slices.Repeat([]removal{{outcome: removalRetained, held: true}}, len(batch)), nil
		}
		result, err := (&purges{}).run(t.Context(), store, purgeOrder{bucket: "b", prefix: "a/", permit: anything})
		if err != nil || result.Retained != 20000 || !result.RetainedUntil.IsZero() || store.removes != 1 {
			t.Errorf("%+v, %v after %d deletions", result, err, store.removes)
		}
	})
	t.Run("own", func(t *testing.T) {
		at := memKeys(0, time.Now().Add(-24*time.Hour).UTC())
		store := newMemVersions(5000, func(i int) version { v := at(i); v.own = i == 0; return v })
		store.has.serial = true
		store.keeps = func(v version) bool { return v.own }
		result, err := (&purges{}).run(t.Context(), store, purgeOrder{bucket: "b", prefix: "a/", permit: anything})
		if err != nil || result.Deleted != 4999 || result.Retained != 1 || store.removes != 5 {
			t.Errorf("%+v, %v after %d deletions", result, err, store.removes)
		}
	})
	t.Run("told", func(t *testing.T) {
		end := time.Now().Add(time.Hour).UTC()
		store := newMemVersions(3000, nil)
		store.at = func(i int) version {
			v := memKeys(0, time.Now().Add(-24*time.Hour).UTC())(i)
			switch i % 3 {
			case 0:
				v.until = end
			case 1:
				v.until = store.now.Add(-time.Minute)
			}
			return v
		}
		result, err := (&purges{}).run(t.Context(), store, purgeOrder{bucket: "b", prefix: "a/", permit: anything})
		if err != nil || result.Deleted != 2000 || result.Retained != 1000 || !result.RetainedUntil.Equal(end) || len(store.dated) > 0 {
			t.Errorf("%+v, %v, asked about %d", result, err, len(store.dated))
		}
		if i := slices.IndexFunc(store.asked, func(v version) bool { return v.until.After(store.now) }); i >= 0 {
			t.Errorf("%s was asked for", store.asked[i].key)
		}
	})
}

// before is asked ahead of every attempt, whatever that is, and its error ends the purge.
func TestPurgeAsksBeforeEveryAttempt(t *testing.T) {
	unavailable := &storeError{code: codeRetryableDependencies, err: errors.New("busy")}
	// Half of 40 versions are retained, and their batches refused wholly. Every other answer
	// is none, one version has to be tried again, one has no place in the request.
	start := func() *memVersions {
		store := newMemVersions(40, memKeys(40, time.Now().Add(-time.Hour).UTC()))
		store.has = traits{batch: 8, serial: true, verify: true, backoff: func(int) time.Duration { return 0 }}
		store.page, store.wholly = 20, true
		store.keeps = func(v version) bool { return v.key >= "a/00000020" }
		store.open = []version{{key: "a/u", id: "1", upload: true}, {key: "a/u", id: "2", upload: true}, {key: "b/u", id: "3", upload: true}}
		calls, again := 0, false
		store.answer = func(batch []version) ([]removal, error) {
			if calls++; calls%2 == 1 {
				return nil, unavailable
			}
			if batch[0].upload {
				answers := slices.Repeat([]removal{{outcome: removalUntried}}, len(batch))
				answers[0].outcome = removalGone
				return answers, nil
			}
			if batch[0].key == "a/00000008" && !again {
				again = true
				answers := slices.Repeat([]removal{{outcome: removalGone}}, len(batch))
				answers[3] = removal{outcome: removalAgain, err: unavailable}
				answers[5] = removal{outcome: removalUntried}
				return answers, nil
			}
			return nil, nil
		}
		return store
	}
	store, asked := start(), 0
	order := purgeOrder{bucket: "b", prefix: "a/", uploads: true, permit: anything}
	order.permit.check = func(context.Context) error {
		if asked != store.removes {
			t.Errorf("asked %d times ahead of attempt %d", asked+1, store.removes+1)
		}
		asked++
		return nil
	}
	result, err := (&purges{}).run(t.Context(), store, order)
	if err != nil || result.Deleted != 20 || result.Retained != 20 || asked != store.removes || asked < 20 {
		t.Errorf("%+v, %v; asked %d times ahead of %d attempts", result, err, asked, store.removes)
	}
	if !store.gone[[2]string{"a/u", "1"}] || !store.gone[[2]string{"a/u", "2"}] || store.gone[[2]string{"b/u", "3"}] {
		t.Error("not the uploads of the prefix are gone")
	}
	no := &prefixInUseError{entry: "x"}
	for limit := range asked {
		store = start()
		times := 0
		order.permit.check = func(context.Context) error {
			if times == limit {
				return no
			}
			times++
			return nil
		}
		_, err := (&purges{}).run(t.Context(), store, order)
		var failed *storeError
		if !errors.Is(err, no) || errors.As(err, &failed) || store.removes != limit {
			t.Errorf("%v after %d attempts, want %d", err, store.removes, limit)
		}
	}
}

// What a store does not do for the moment is tried again, as long as it makes progress.
func TestPurgeTriesAgain(t *testing.T) {
	busy := &storeError{code: codeRetryableDependencies, err: errors.New("busy")}
	one := func(f func(v version) removal) func([]version) ([]removal, error) {
		return func(batch []version) ([]removal, error) {
			answers := slices.Repeat([]removal{{outcome: removalUntried}}, len(batch))
			answers[0] = f(batch[0])
			return answers, nil
		}
	}
	t.Run("each once", func(t *testing.T) {
		store := newMemVersions(50, memKeys(50, time.Now().Add(-time.Hour)))
		tried := map[string]bool{}
		store.answer = one(func(v version) removal {
			if !tried[v.key] {
				tried[v.key] = true
				return removal{outcome: removalAgain, err: busy}
			}
			return removal{outcome: removalGone}
		})
		result, err := (&purges{}).run(t.Context(), store, purgeOrder{prefix: "a/", permit: anything})
		if err != nil || result.Deleted != 50 || store.removes != 100 {
			t.Errorf("%+v, %v after %d attempts", result, err, store.removes)
		}
	})
	t.Run("never", func(t *testing.T) {
		store := newMemVersions(50, memKeys(50, time.Now().Add(-time.Hour)))
		store.answer = one(func(v version) removal {
			if v.key == "a/00000010" {
				return removal{outcome: removalAgain, err: busy}
			}
			return removal{outcome: removalGone}
		})
		result, err := (&purges{}).run(t.Context(), store, purgeOrder{prefix: "a/", permit: anything})
		if !errors.Is(err, busy) || result.Deleted != 10 || store.removes != 10+purgeAttempts {
			t.Errorf("%+v, %v after %d attempts", result, err, store.removes)
		}
	})
	t.Run("wrong number of answers", func(t *testing.T) {
		store := newMemVersions(50, memKeys(50, time.Now().Add(-time.Hour)))
		store.answer = func([]version) ([]removal, error) { return make([]removal, 49), nil }
		var failed *storeError
		if result, err := (&purges{}).run(t.Context(), store, purgeOrder{prefix: "a/", permit: anything}); !errors.As(err, &failed) || result.Deleted != 0 {
			t.Errorf("%+v, %v", result, err)
		}
	})
	t.Run("the bucket is gone", func(t *testing.T) {
		store := newMemVersions(50, memKeys(50, time.Now().Add(-time.Hour)))
		store.answer = func([]version) ([]removal, error) { return nil, errNoBucket }
		result, err := (&purges{}).run(t.Context(), store, purgeOrder{prefix: "a/", permit: anything})
		if err != nil || result.Deleted != 0 || result.Retained != 0 {
			t.Errorf("%+v, %v", result, err)
		}
	})
}

// A pass that runs out of time goes on where it was, one that failed where the last one ended.
func TestPurgeGoesOn(t *testing.T) {
	const n = 20000
	policy := Policy{Days: 30}
	t.Run("time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store := newMemVersions(n, memKeys(n, time.Now().Add(-24*time.Hour).UTC()))
			store.listing = func(cursor) error { time.Sleep(10 * time.Second); return nil }
			all, passes := &purges{}, 0
			for unfinished := true; unfinished; passes++ {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				result, err := all.run(ctx, store, purgeOrder{prefix: "a/", name: "x", permit: anything})
				cancel()
				if err != nil {
					t.Fatal(err)
				}
				unfinished = result.Unfinished
			}
			if len(store.gone) != n || store.lists != n/1000+1 || passes != 4 {
				t.Errorf("%d are gone, after %d pages in %d passes", len(store.gone), store.lists, passes)
			}
		})
	})
	t.Run("error", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store := newMemVersions(n, memKeys(n, time.Now().Add(-24*time.Hour).UTC()))
			store.keeps = func(version) bool { return true }
			store.ends = func(v version) (time.Time, error) { return policy.until(v.created), nil }
			fail, froms := false, []string{}
			broken := &storeError{err: errors.New("broken")}
			store.listing = func(from cursor) error {
				time.Sleep(10 * time.Second)
				if froms = append(froms, from.key); fail && len(froms) == 4 {
					return broken
				}
				return nil
			}
			all := &purges{}
			run := func() (PurgeResult, error) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				froms = froms[:0]
				return all.run(ctx, store, purgeOrder{prefix: "a/", name: "x", policy: policy, permit: anything})
			}
			first, err := run()
			if err != nil || !first.Unfinished {
				t.Fatalf("%+v, %v", first, err)
			}
			fail = true
			if result, err := run(); !errors.Is(err, broken) || result.Unfinished {
				t.Errorf("%+v, %v", result, err)
			}
			fail = false
			for {
				result, err := run()
				if err != nil {
					t.Fatal(err)
				}
				if froms[0] == "0" {
					t.Error("it began anew")
				}
				if result.Unfinished {
					continue
				}
				if result.Retained != n || !result.RetainedUntil.Equal(policy.until(store.at(n-1).created)) {
					t.Errorf("%+v", result)
				}
				break
			}
			// A version that was looked at twice is in the sample once.
			different := map[string]bool{}
			for _, v := range store.asked {
				different[v.key] = true
			}
			if len(different) != len(store.asked) {
				t.Errorf("of %d that were asked for, %d are different", len(store.asked), len(different))
			}
		})
	})
	t.Run("forgotten", func(t *testing.T) {
		const n = purgeWork + 1000
		store := newMemVersions(n, memKeys(n, time.Now().Add(-24*time.Hour).UTC()))
		all, first := &purges{}, ""
		store.listing = func(from cursor) error { first = cmp.Or(first, from.key); return nil }
		for _, want := range []string{"0", strconv.Itoa(purgeWork)} {
			if first = ""; want == "0" {
				if result, err := all.run(t.Context(), store, purgeOrder{prefix: "b/", name: "other", permit: anything}); err != nil || result.Unfinished {
					t.Fatalf("%+v, %v", result, err)
				}
				first = ""
			}
			if _, err := all.run(t.Context(), store, purgeOrder{prefix: "a/", name: "x", permit: anything}); err != nil || first != want {
				t.Errorf("%v, it began at %s, want %s", err, first, want)
			}
		}
	})
}

// A list that shows other keys than those asked for is not to be believed.
func TestPurgeChecksKeys(t *testing.T) {
	for _, stranger := range []string{"", "a", "b/1", "A/1", "aa/1"} {
		store := newMemVersions(3, memKeys(3, time.Now().Add(-time.Hour)))
		pages := &strangePages{memVersions: store, stranger: stranger}
		result, err := (&purges{}).run(t.Context(), pages, purgeOrder{bucket: "b", prefix: "a/", permit: anything})
		var failed *storeError
		if !errors.As(err, &failed) || result.Deleted != 0 || store.removes != 0 {
			t.Errorf("%q: %+v, %v", stranger, result, err)
		}
	}
}

type strangePages struct {
	*memVersions
	stranger string
}

func (s *strangePages) pages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		for p, err := range s.memVersions.pages(ctx, prefix, from) {
			p.versions = append(p.versions, version{key: s.stranger, id: "1"})
			if !yield(p, err) {
				return
			}
		}
	}
}

// A key may have more delete markers than are kept in memory.
func TestPurgeOfVeryManyMarkers(t *testing.T) {
	t.Parallel()
	const n = 3*maxMarkers + 5
	for name, test := range map[string]struct {
		versions []int // which are no markers
		other    bool  // another key is retained
		left     int
	}{
		"markers only":                    {},
		"a version goes":                  {versions: []int{n - 1}},
		"a version at the end is kept":    {versions: []int{n - 1}, other: true, left: n},
		"a version at the start is kept":  {versions: []int{0}, other: true, left: n},
		"another key is kept":             {other: true},
		"another key, and a version goes": {versions: []int{17}},
	} {
		t.Run(name, func(t *testing.T) {
			store := newMemVersions(n+1, func(i int) version {
				v := version{key: "a/1", id: fmt.Sprint(i), marker: !slices.Contains(test.versions, i), created: time.Now().Add(-time.Hour)}
				if i == n {
					v.key, v.marker = "a/2", false
				}
				return v
			})
			store.keeps = func(v version) bool { return test.other && (test.left > 0 || v.key == "a/2") }
			result, err := (&purges{}).run(t.Context(), store, purgeOrder{bucket: "b", prefix: "a/", permit: anything})
			if err != nil {
				t.Error(err)
			}
			want := test.left
			if test.other {
				want++
			}
			if left := store.left(); len(left) != want || result.Deleted != int64(n+1-want) {
				t.Errorf("%+v, left are %d, want %d", result, len(left), want)
			}
		})
	}
}

// Whatever a store holds and in whichever way it answers: what is free goes, what is retained
// stays with the markers above it, and the result says so.
func TestPurgeModel(t *testing.T) {
	for seed := range uint64(400) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testPurgeModel(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func testPurgeModel(t *testing.T, random *rand.Rand) {
	busy := &storeError{code: codeRetryableDependencies, err: errors.New("busy")}
	now := time.Now().UTC()
	var all []version
	ends := map[[2]string]time.Time{}
	retained := map[string]bool{} // keys
	var want PurgeResult
	tells, percent := random.IntN(2) == 0, random.IntN(101)
	for i := range random.IntN(60) {
		key := fmt.Sprintf("a/%03d", i)
		for j := range 1 + random.IntN(8) {
			v := version{key: key, id: fmt.Sprint(j), created: now.Add(-time.Duration(random.IntN(1000)) * time.Hour)}
			if v.marker = random.IntN(3) == 0; !v.marker {
				v.size = int64(random.IntN(10))
				if random.IntN(100) < percent {
					end := now.Add(time.Duration(1+random.IntN(1000)) * time.Hour)
					retained[key] = true
					ends[[2]string{v.key, v.id}] = end
					want.Retained++
					want.RetainedBytes += v.size
					if tells {
						v.until = end
					}
				}
			}
			all = append(all, v)
		}
	}
	wantLeft := map[[2]string]bool{}
	for _, v := range all {
		_, kept := ends[[2]string{v.key, v.id}]
		if kept || v.marker && retained[v.key] {
			wantLeft[[2]string{v.key, v.id}] = true
			continue
		}
		want.Deleted++
		want.DeletedBytes += v.size
	}
	store := newMemVersions(len(all), func(i int) version { return all[i] })
	store.page = 1 + random.IntN(40)
	// A sample of all finds all; a smaller one may not.
	whole := random.IntN(2) == 0
	store.has = traits{batch: 1 + random.IntN(20), verify: true, serial: random.IntN(2) == 0, backoff: func(int) time.Duration { return 0 }}
	if whole {
		store.has.batch = 1000
	}
	store.keeps = func(v version) bool { _, kept := ends[[2]string{v.key, v.id}]; return kept }
	store.ends = func(v version) (time.Time, error) {
		if v.marker {
			t.Errorf("asked for the end of marker %s %s", v.key, v.id)
		}
		return ends[[2]string{v.key, v.id}], nil
	}
	hiccups, calls := random.IntN(3) == 0, 0
	store.answer = func(batch []version) ([]removal, error) {
		calls++
		switch {
		case hiccups && calls%4 == 0:
			return nil, busy
		case hiccups && random.IntN(6) == 0:
			return slices.Repeat([]removal{{outcome: removalUntried}}, len(batch)), nil
		}
		return nil, nil
	}
	var mu sync.Mutex
	asked := 0
	order := purgeOrder{bucket: "b", prefix: "a/", policy: Policy{Days: int32(random.IntN(40))}, permit: permit{func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return nil
	}}}
	result, err := (&purges{}).run(t.Context(), store, order)
	if err != nil {
		t.Fatal(err)
	}
	got := map[[2]string]bool{}
	for _, v := range store.left() {
		got[[2]string{v.key, v.id}] = true
	}
	for _, v := range store.left() {
		name := [2]string{v.key, v.id}
		switch {
		case wantLeft[name]:
		case whole:
			t.Errorf("%v is left", name)
		case !v.marker:
			want.Deleted--
			want.DeletedBytes -= v.size
			want.Retained++
			want.RetainedBytes += v.size
		default:
			want.Deleted--
		}
	}
	for v := range wantLeft {
		if !got[v] {
			t.Errorf("%v is gone", v)
		}
	}
	want.Now, want.Seen, want.RetainedUntil = result.Now, result.Seen, result.RetainedUntil
	if result != want || asked != store.removes {
		t.Errorf("%+v, want %+v; asked %d times ahead of %d attempts", result, want, asked, store.removes)
	}
	if (want.Retained > 0) == result.RetainedUntil.IsZero() || !result.RetainedUntil.IsZero() && !result.RetainedUntil.After(now) {
		t.Errorf("retained until %s", result.RetainedUntil)
	}
}
