package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"time"
)

// deepObjects are objects whose content can be read.
type deepObjects struct {
	*checkObjects
	content map[string][]byte
	openErr error
	opened  []string
	panics  bool
}

func (o *deepObjects) open(ctx context.Context, v version) (io.ReadCloser, error) {
	o.opened = append(o.opened, v.key)
	if o.panics {
		panic("a test")
	}
	if o.openErr != nil {
		return nil, o.openErr
	}
	if data, ok := o.content[v.key]; ok {
		return io.NopCloser(bytes.NewReader(data)), ctx.Err()
	}
	return nil, &storeError{code: codeConfigurationProblem, err: errNoVersion}
}

// deepProvider is a memStore whose objects are another's.
type deepProvider struct {
	*memStore
	objects Objects
}

func (p *deepProvider) openObjects(bucketRef, map[string][]byte) (Objects, error) {
	return p.objects, nil
}

// deepHarness is a checkHarness with a full snapshot and two deltas whose content is right.
type deepHarness struct {
	*checkHarness
	deep    *deepChecker
	store   *deepProvider
	objects *deepObjects
	keys    []string
}

func newDeepHarness(t *testing.T) *deepHarness {
	t.Helper()
	h := &deepHarness{checkHarness: newCheckHarness(t)}
	h.putEntry(testEntry, true)
	content := map[string][]byte{}
	var versions []version
	for i, data := range [][]byte{hashed(testDatabase(t, 100, false)), hashed(testEvents(101, 120)), hashed(testEvents(121, 130))} {
		v := h.snap(snapshotDelta, []int64{0, 101, 121}[i], []int64{100, 120, 130}[i], time.Duration(50-i)*time.Minute)
		if i == 0 {
			v = h.snap(snapshotFull, 0, 100, 50*time.Minute)
		}
		content[v.key] = packed(t, data, ".gz")
		v.size = int64(len(content[v.key]))
		versions, h.keys = append(versions, v), append(h.keys, v.key)
	}
	h.have(versions...)
	h.objects = &deepObjects{checkObjects: h.checkHarness.objects, content: content}
	h.store = &deepProvider{memStore: h.cloud, objects: h.objects}
	h.scope.providers = map[string]provider{"aws": h.store, "s3": h.store}
	h.deep = newDeepChecker(h.checker)
	return h
}

// entry is the test's, which is watched.
func (h *deepHarness) entry() *backupEntry {
	h.t.Helper()
	h.sync()
	for _, obj := range h.deep.cached.List() {
		if e, ok := obj.(*backupEntry); ok && e.Name == testEntry {
			h.metrics.entries.watch(e)
			return e
		}
	}
	h.t.Fatal("the entry is not cached")
	return nil
}

// Each snapshot that a restore takes is read once, and only what is in it is a verdict.
func TestDeepCheck(t *testing.T) {
	unavailable := &storeError{code: codeUnauthorized, err: errors.New("AccessDenied")}
	for name, c := range map[string]struct {
		do      func(*deepHarness)
		fails   bool
		opened  int
		verdict map[string]float64
		events  []string
	}{
		"intact": {do: func(*deepHarness) {}, opened: 3, verdict: map[string]float64{"content_intact": 1, "content_checked_timestamp_seconds": 0}},
		"cut off": {do: func(h *deepHarness) {
			h.objects.content[h.keys[1]] = h.objects.content[h.keys[1]][:20]
			h.objects.content[h.keys[2]] = nil
		}, opened: 3, verdict: map[string]float64{"content_intact": 0, "content_checked_timestamp_seconds": 0}, events: []string{"SnapshotNotIntact"}},
		"another content than the name says": {do: func(h *deepHarness) {
			h.objects.content[h.keys[1]], h.objects.content[h.keys[2]] = h.objects.content[h.keys[2]], h.objects.content[h.keys[1]]
		}, opened: 3, verdict: map[string]float64{"content_intact": 0, "content_checked_timestamp_seconds": 0}, events: []string{"SnapshotNotIntact"}},
		"deleted meanwhile": {do: func(h *deepHarness) { delete(h.objects.content, h.keys[1]) }, opened: 2},
		"may not be read":   {do: func(h *deepHarness) { h.objects.openErr = unavailable }, opened: 1, fails: true},
		"no snapshots":      {do: func(h *deepHarness) { h.objects.n = 0 }},
		"cannot be read":    {do: func(h *deepHarness) { h.store.objects = plainObjects{h.objects} }, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newDeepHarness(t)
			e := h.entry()
			c.do(h)
			h.trace = nil
			if err := h.deep.check(t.Context(), e); (err != nil) != c.fails {
				t.Error(err)
			}
			if len(h.objects.opened) != c.opened || !slices.Equal(h.objects.opened, h.keys[:c.opened]) || h.objects.lists != 1 {
				t.Errorf("read %q after %d lists", h.objects.opened, h.objects.lists)
			}
			h.wantTrace("get secrets garden/entry")
			h.wantEvents(c.events...)
			// A look shows it, and keeps it.
			for range 2 {
				h.mustCheck()
				got := h.entryMetrics()
				maps.DeleteFunc(got, func(name string, _ float64) bool { return name[:7] != "content" })
				if !maps.Equal(got, c.verdict) {
					t.Errorf("metrics %v, want %v", got, c.verdict)
				}
			}
		})
	}
}

// A bucket has its turn once a day, and not after a start.
func TestDeepCheckBegins(t *testing.T) {
	h := newDeepHarness(t)
	h.entry()
	now := time.Now()
	read := func(at time.Time) int {
		t.Helper()
		h.objects.opened = nil
		h.deep.begin(t.Context(), at)
		h.deep.readers.Wait()
		return len(h.objects.opened)
	}
	if n := read(now); n != 0 {
		t.Errorf("%d snapshots are read after a start", n)
	}
	for day := range 3 {
		sum := 0
		for tick := range int(deepInterval / deepTick) {
			n := read(now.Add(time.Duration(day)*deepInterval + time.Duration(tick+1)*deepTick))
			sum += n
		}
		if sum != 3 {
			t.Errorf("%d snapshots are read on day %d", sum, day)
		}
	}
	// A panic ends the reading and not the daemon, and the bucket has its next turn.
	h.objects.panics = true
	n := read(now.Add(4 * deepInterval))
	if shown := metricsTestOf(t, h.metrics, "resource", resourceChecks); n != 1 || shown["reconcile_panics_total,resource=checks"] != 1 {
		t.Errorf("%d snapshots are read, %v", n, shown)
	}
	h.objects.panics = false
	// One that is still being read is not begun again.
	h.deep.take("b")
	if n := read(now.Add(5 * deepInterval)); n != 0 {
		t.Errorf("%d snapshots are read beside others of the bucket", n)
	}
	h.deep.release("b")
	// And nothing of what is being deleted.
	h.edit(entriesGVR, testEntry, deleting)
	h.sync()
	if n := read(now.Add(6 * deepInterval)); n != 0 {
		t.Errorf("%d snapshots of a deleted entry are read", n)
	}
}

// All entries have their turns; one that was not intact is read every second day.
func TestDeepCheckTurns(t *testing.T) {
	h := newDeepHarness(t)
	var entries []*backupEntry
	for i := range 5 {
		e := &backupEntry{BucketName: "b"}
		e.Name = fmt.Sprint("entry-", i)
		h.metrics.entries.watch(e)
		entries = append(entries, e)
	}
	seen := map[string]bool{}
	for day := range int64(5) {
		seen[h.deep.choose(slices.Clone(entries), 20000+day).Name] = true
	}
	if len(seen) != 5 {
		t.Errorf("only %v in 5 days", seen)
	}
	h.metrics.entries.setDeep(entries[3], deepState{at: time.Now()})
	// What is damaged stays so as long as it is locked: the others have their turns meanwhile.
	clear(seen)
	for day := range int64(10) {
		e := h.deep.choose(slices.Clone(entries), 20000+day)
		if seen[e.Name] = true; day%2 == 0 && e != entries[3] {
			t.Errorf("%s is read on day %d", e.Name, day)
		}
	}
	if len(seen) != 5 {
		t.Errorf("only %v in 10 days, since one is not intact", seen)
	}
	h.metrics.entries.setDeep(entries[3], deepState{at: time.Now(), intact: true})
	if e := h.deep.choose(slices.Clone(entries), 20000); e != entries[0] {
		t.Errorf("%s has its turn", e.Name)
	}
}
