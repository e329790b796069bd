package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"
)

const (
	sweepList  = `store b List ".bucketwarden/tombstones/"`
	sweepPurge = `store b Purge "shoot--p--s--u/"`
	// sweepCheck is what a sweep asks before a batch.
	sweepCheck = `store b List ".bucketwarden/tombstones/shoot--p--s--u/"`
)

// marks are those of an entry in bucket b, the newest last, without a request.
func (h *harness) marks(entry string) []mark {
	h.t.Helper()
	var marks []mark
	for key, o := range h.cloud.buckets["b"].objects {
		if m, ok := parseMark(key, o.created); ok && m.entry == entry {
			marks = append(marks, m)
		}
	}
	slices.SortFunc(marks, mark.compare)
	return marks
}

// putSwept stores a healthy BackupBucket and its bucket, which holds the objects of the
// deleted testEntry, those of another one, and of nobody.
func (h *harness) putSwept(p Policy, edits ...editObject) *memBucket {
	h.t.Helper()
	h.putBucket(true, append([]editObject{withPolicy(p), withRecord(p)}, edits...)...)
	bucket := h.cloud.put("b", p)
	for _, key := range []string{testEntry + "/1", testEntry + "/2", testEntry + "0/1", "source-" + testEntry + "/1", "other"} {
		bucket.objects[key] = memObject{size: 1024, created: h.cloud.now().Add(-time.Hour)}
	}
	return bucket
}

// putTombstone writes a tombstone as of an hour ago, which is due after a time.
func (h *harness) putTombstone(entry string, due time.Duration) string {
	key := tombstoneKey(entry, h.cloud.now().Add(due), PurgeResult{Retained: 2, RetainedBytes: 2048})
	h.cloud.buckets["b"].objects[key] = memObject{created: h.cloud.now().Add(-time.Hour)}
	return key
}

// putRevocation writes a revocation of now.
func (h *harness) putRevocation(entry string) string {
	key := revocationKey(entry, "")
	h.cloud.buckets["b"].objects[key] = memObject{created: h.cloud.now()}
	return key
}

// keep are the objects that no sweep may touch.
var keep = []string{"other", "shoot--p--s--u0/1", "source-shoot--p--s--u/1"}

func (h *harness) wantObjects(want ...string) {
	h.t.Helper()
	want = slices.Sorted(slices.Values(want))
	if got := slices.Sorted(maps.Keys(h.cloud.buckets["b"].objects)); !slices.Equal(got, want) {
		h.t.Errorf("the bucket has\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// sweep makes a sweep that must work.
func (h *harness) sweep() time.Duration {
	h.t.Helper()
	wait, err := h.passSweep()
	if err != nil {
		h.t.Error(err)
	}
	return wait
}

func TestMarkNames(t *testing.T) {
	created := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	due := time.Date(2027, 5, 6, 7, 8, 9, 0, time.FixedZone("x", 3600))
	for _, entry := range []string{"a", testEntry, "source-x", "a.b", "0", "-a--b"} {
		key := tombstoneKey(entry, due, PurgeResult{Retained: 3, RetainedBytes: 1 << 40})
		got, ok := parseMark(key, created)
		want := mark{key: key, entry: entry, created: created, due: due.UTC(), objects: 3, bytes: 1 << 40}
		if !ok || got != want {
			t.Errorf("%s is %+v, %t; want %+v", key, got, ok, want)
		}
		key = revocationKey(entry, "")
		if got, ok := parseMark(key, created); !ok || got != (mark{key: key, entry: entry, revoked: true, created: created}) {
			t.Errorf("%s is %+v, %t", key, got, ok)
		}
		one, another := tombstoneKey(entry, due, PurgeResult{}), tombstoneKey(entry, due, PurgeResult{})
		if !strings.HasPrefix(key, ".bucketwarden/tombstones/"+entry+"/revoked-") || one == another || key == revocationKey(entry, "") {
			t.Errorf("%s is not a new name", key)
		}
	}
	const tombstone = "deleted-20270506T070809Z-3-1024-ABCDEFGH"
	for _, key := range []string{
		"", "x", ".bucketwarden", tombstonePrefix, tombstonePrefix + "a", tombstonePrefix + "a/",
		"x/" + tombstonePrefix + "a/" + tombstone, ".bucketwarden/other/a/" + tombstone, "a/" + tombstone,
		tombstonePrefix + tombstone, tombstonePrefix + "/" + tombstone,
		// What would make a sweep purge anything but the objects of an entry.
		tombstonePrefix + "../" + tombstone, tombstonePrefix + "./" + tombstone, tombstonePrefix + ".bucketwarden/" + tombstone,
		tombstonePrefix + ".bucketwarden/tombstones/" + tombstone, tombstonePrefix + "a/b/" + tombstone,
		tombstonePrefix + "A/" + tombstone, tombstonePrefix + "a /" + tombstone, tombstonePrefix + "a%2F/" + tombstone,
		tombstonePrefix + "a-/" + tombstone, tombstonePrefix + strings.Repeat("a", 254) + "/" + tombstone,
		// Of another version, or of nobody.
		tombstonePrefix + "a/deleted", tombstonePrefix + "a/revoked", tombstonePrefix + "a/deleted-", tombstonePrefix + "a/moved-ABCDEFGH",
		tombstonePrefix + "a/revoked-", tombstonePrefix + "a/deleted-20270506T070809Z-3-1024-",
		tombstonePrefix + "a/" + tombstone + "-x", tombstonePrefix + "a/revoked-x-y",
		tombstonePrefix + "a/deleted-20271306T070809Z-3-1024-ABCDEFGH", tombstonePrefix + "a/deleted-20270506T070809-3-1024-ABCDEFGH",
		tombstonePrefix + "a/deleted-20270506T070809Z-x-1024-ABCDEFGH", tombstonePrefix + "a/deleted-20270506T070809Z-3--ABCDEFGH",
		tombstonePrefix + "a/deleted-20270506T070809Z-3-99999999999999999999-ABCDEFGH",
	} {
		if m, ok := parseMark(key, time.Time{}); ok {
			t.Errorf("%q is taken for %+v", key, m)
		}
	}
}

// parseMarkSeeds are those of FuzzParseMark.
func parseMarkSeeds(testing.TB) []string {
	return []string{
		tombstoneKey(testEntry, testStart, PurgeResult{Retained: 1, RetainedBytes: 2}),
		revocationKey(testEntry, ""),
		tombstonePrefix + "../revoked-x",
		tombstonePrefix + "a/b/deleted-20270506T070809Z-3-1024-ABCDEFGH",
	}
}

// checkParseMark is what must hold for every key.
func checkParseMark(t testing.TB, key string) {
	m, ok := parseMark(key, testStart)
	if !ok {
		return
	}
	if m.key != key || !strings.HasPrefix(key, tombstonePrefix+m.entry+"/") || m.entry == "" || strings.ContainsAny(m.entry, "/ ") ||
		strings.HasPrefix(m.entry, ".") || strings.HasPrefix(tombstonePrefix, m.entry+"/") || !m.created.Equal(testStart) || m.objects < 0 || m.bytes < 0 {
		t.Errorf("%q is %+v", key, m)
	}
}

func TestMarkOrder(t *testing.T) {
	at := func(s int) time.Time { return testStart.Add(time.Duration(s) * time.Second) }
	want := []mark{
		{key: "z", created: at(0), revoked: true, due: at(99)},
		{key: "y", created: at(1), due: at(98)},
		{key: "a", created: at(2), due: at(1)},
		{key: "b", created: at(2)},
		{key: "A", created: at(2), revoked: true},
		{key: "B", created: at(2), revoked: true},
		{key: "0", created: at(3)},
	}
	for i, m := range want {
		for j, n := range want {
			if got := m.compare(n); (got > 0) != (i > j) || (got < 0) != (i < j) {
				t.Errorf("%s newer than %s: %d", m.key, n.key, got)
			}
		}
	}
}

// markClient is bucket b for the functions that write marks.
func (h *harness) markClient() *memClient {
	h.cloud.put("b", Policy{})
	c, err := h.cloud.client(bucketRef{Name: "b"})
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// wantCalls checks how often the store was called since the last time.
func (h *harness) wantCalls(n int) {
	h.t.Helper()
	if len(h.trace) != n {
		h.t.Errorf("the store saw %q, want %d requests", h.trace, n)
	}
	h.trace = nil
}

func TestBury(t *testing.T) {
	h := newHarness(t)
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		for _, offset := range []time.Duration{0, 49 * time.Hour, -49 * time.Hour, 3 * time.Hour, -3 * time.Hour} {
			h.cloud.offset = offset
			c := h.markClient()
			h.trace = nil
			must := func(result PurgeResult) {
				t.Helper()
				if err := testBury(ctx, c, "a", Policy{}, result); err != nil {
					t.Error(err)
				}
			}
			newest := func() mark { m := h.marks("a"); return m[len(m)-1] }
			until := h.cloud.now().Truncate(time.Second).Add(24*time.Hour + time.Millisecond)

			must(PurgeResult{Retained: 7, RetainedBytes: 8, RetainedUntil: until})
			h.wantCalls(2)
			if m := newest(); !m.due.Equal(until.Truncate(time.Second).Add(time.Second)) || m.objects != 7 || m.bytes != 8 || m.revoked {
				t.Errorf("%+v, want due after %s", m, until)
			}
			// Killed before the release: the next pass finds the same, or less.
			must(PurgeResult{Retained: 7, RetainedUntil: until})
			must(PurgeResult{Retained: 1, RetainedUntil: until.Add(-time.Hour)})
			must(PurgeResult{Retained: 1})
			h.wantCalls(3)
			if n := len(h.marks("a")); n != 1 {
				t.Errorf("%d tombstones, want 1", n)
			}
			// What is retained longer needs another one.
			time.Sleep(2 * time.Second)
			must(PurgeResult{Retained: 9, RetainedUntil: until.Add(time.Hour)})
			h.wantCalls(3)
			if m := newest(); len(h.marks("a")) != 2 || m.objects != 9 {
				t.Errorf("%+v", h.marks("a"))
			}

			// Without a date: in an hour by the store's clock.
			c = h.markClient()
			want := h.cloud.now().Add(time.Hour)
			must(PurgeResult{Retained: 1})
			if m := newest(); m.due.Before(want) || m.due.Sub(want) >= time.Second {
				t.Errorf("due at %s, want %s", m.due, want)
			}
			time.Sleep(time.Minute)
			must(PurgeResult{Retained: 1})
			if n := len(h.marks("a")); n != 1 {
				t.Errorf("%d tombstones, want 1", n)
			}
			// One that may have been swept does not count.
			time.Sleep(time.Hour)
			must(PurgeResult{Retained: 1})
			if n := len(h.marks("a")); n != 2 {
				t.Errorf("%d tombstones, want 2", n)
			}
			// Other entries have nothing to do with it.
			must(PurgeResult{Retained: 1})
			if n := len(h.marks("b")); n != 0 {
				t.Errorf("%d tombstones of another entry", n)
			}
		}
	})
}

func TestRevoke(t *testing.T) {
	h := newHarness(t)
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		for _, offset := range []time.Duration{0, 72 * time.Hour, -72 * time.Hour} {
			h.cloud.offset = offset
			c := h.markClient()
			h.trace = nil
			want := func(revoked bool, calls int) {
				t.Helper()
				got, err := revoke(ctx, c, "a", "")
				if err != nil || got != revoked {
					t.Errorf("revoked: %t, %v", got, err)
				}
				h.wantCalls(calls)
				if m := h.marks("a"); len(m) > 0 && !m[len(m)-1].revoked {
					t.Errorf("the newest mark is %+v", m[len(m)-1])
				}
			}
			want(false, 1)
			if err := testBury(ctx, c, "ab", Policy{}, PurgeResult{Retained: 1}); err != nil {
				t.Error(err)
			}
			h.trace = nil
			want(false, 1)
			if err := testBury(ctx, c, "a", Policy{}, PurgeResult{Retained: 1}); err != nil {
				t.Error(err)
			}
			h.trace = nil
			// Within one second the revocation counts.
			want(true, 3)
			want(false, 1)

			// And a tombstone has to wait until it is the newer one.
			start := time.Now()
			if err := testBury(ctx, c, "a", Policy{}, PurgeResult{Retained: 1}); err != nil {
				t.Error(err)
			}
			if m := h.marks("a"); m[len(m)-1].revoked || time.Since(start) > 2*markTick {
				t.Errorf("after %s the marks are %+v", time.Since(start), m)
			}
			h.trace = nil
			time.Sleep(time.Minute)
			want(true, 3)
		}

		// A clock that lags behind the tombstone must not be waited for without end.
		c := h.markClient()
		h.cloud.buckets["b"].objects[tombstoneKey("a", h.cloud.now(), PurgeResult{})] = memObject{created: h.cloud.now().Add(3 * time.Second)}
		if _, err := revoke(ctx, c, "a", ""); err != nil {
			t.Error(err)
		}
		if m := h.marks("a"); !m[len(m)-1].revoked {
			t.Errorf("the newest mark is %+v", m[len(m)-1])
		}
		h.cloud.buckets["b"].objects[tombstoneKey("a", h.cloud.now(), PurgeResult{})] = memObject{created: h.cloud.now().Add(time.Hour)}
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if _, err := revoke(short, c, "a", ""); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "a") {
			t.Errorf("error %v", err)
		}
	})
}

func TestMarkErrors(t *testing.T) {
	for _, method := range []string{"List", "Put"} {
		h := newHarness(t)
		c := h.markClient()
		h.putTombstone("a", -time.Hour)
		h.cloud.fail[method] = unavailable
		if err := testBury(t.Context(), c, "a", Policy{}, PurgeResult{Retained: 1}); !errors.Is(err, unavailable) {
			t.Errorf("%s fails, bury returned %v", method, err)
		}
		if _, err := revoke(t.Context(), c, "a", ""); !errors.Is(err, unavailable) {
			t.Errorf("%s fails, revoke returned %v", method, err)
		}
		m := h.marks("a")[0]
		if method == "List" {
			var inUse *prefixInUseError
			if err := checkStands(t.Context(), c, m); !errors.Is(err, unavailable) || errors.As(err, &inUse) {
				t.Errorf("checkStands returned %v", err)
			}
		}
		if len(h.marks("a")) != 1 {
			t.Errorf("marks %+v", h.marks("a"))
		}
	}
}

// A bucket where nothing is due costs one request, and what is no mark is left alone.
func TestSweepNothingDue(t *testing.T) {
	for title, test := range map[string]struct {
		prepare func(h *harness)
		wait    time.Duration
	}{
		"no tombstones": {func(*harness) {}, 0},
		"foreign objects": {func(h *harness) {
			for _, key := range []string{tombstonePrefix + "../deleted-20200506T070809Z-3-1024-ABCDEFGH", tombstonePrefix + "x", tombstonePrefix + ".bucketwarden/deleted-20200506T070809Z-3-1024-ABCDEFGH", ".bucketwarden/x"} {
				h.cloud.buckets["b"].objects[key] = memObject{}
			}
		}, 0},
		"soon":      {func(h *harness) { h.putTombstone(testEntry, 5*time.Minute) }, 5*time.Minute + markTick},
		"later":     {func(h *harness) { h.putTombstone(testEntry, testVerifyInterval+time.Minute) }, 0},
		"revoked":   {func(h *harness) { h.putTombstone(testEntry, -time.Hour); h.putRevocation(testEntry) }, 0},
		"no bucket": {func(h *harness) { delete(h.cloud.buckets, "b") }, 0},
	} {
		for _, offset := range []time.Duration{0, 5 * time.Hour, -5 * time.Hour, 96 * time.Hour, -96 * time.Hour} {
			t.Run(fmt.Sprintf("%s, the store's clock is %s ahead", title, offset), func(t *testing.T) {
				h := newHarness(t)
				h.cloud.offset = offset
				start := time.Now()
				bucket := h.putSwept(locked4d)
				test.prepare(h)
				objects := slices.Collect(maps.Keys(bucket.objects))
				wait := h.sweep()
				// Marks tell whole seconds.
				if off := (wait - test.wait).Abs(); off > time.Second+time.Since(start) {
					t.Errorf("wait %s, want %s", wait, test.wait)
				}
				h.wantTrace("get secrets garden/bucket-b", sweepList)
				h.wantEvents()
				if h.cloud.buckets["b"] != nil {
					h.wantObjects(objects...)
				}
			})
		}
	}
}

func TestSweepDue(t *testing.T) {
	for _, offset := range []time.Duration{0, 5 * time.Hour, -5 * time.Hour, 96 * time.Hour, -96 * time.Hour} {
		t.Run(fmt.Sprintf("the store's clock is %s ahead", offset), func(t *testing.T) {
			h := newHarness(t)
			h.cloud.offset = offset
			h.putSwept(Policy{})
			key := h.putTombstone(testEntry, -time.Second)
			later := h.putTombstone("later", time.Minute)
			wait := h.sweep()
			if wait <= 0 || wait > time.Minute+2*markTick {
				t.Errorf("wait %s", wait)
			}
			h.wantTrace("get secrets garden/bucket-b", sweepList, sweepPurge,
				"get backupentries shoot--p--s--u", "get backupentries source-shoot--p--s--u", sweepCheck,
				fmt.Sprintf("store b Purge %q", key))
			h.wantObjects(append(slices.Clone(keep), later)...)
			h.wantMetric(2, "bucketwarden_purged_objects_total", "b")
			h.wantMetric(2048, "bucketwarden_purged_bytes_total", "b")
			h.wantMetric(1, "bucketwarden_backupbucket_tombstones", "b")
			h.wantMetric(0, "bucketwarden_purge_failures_total", "b")
			h.wantEvents("ObjectsDeleted")
			if note := h.recorder.events[0].note; !strings.Contains(note, "2 object versions (2.0 KiB)") || !strings.Contains(note, testEntry) {
				t.Errorf("event %q", note)
			}
		})
	}
}

// The marks are retained like everything else: the prefix is swept once, the marks go when
// they are free.
func TestSweepRetainedMarks(t *testing.T) {
	h := newHarness(t)
	h.putSwept(locked4d)
	key := h.putTombstone(testEntry, -time.Second)
	bucket := h.cloud.buckets["b"]
	mark := bucket.objects[key]
	mark.until = locked4d.until(mark.created)
	bucket.objects[key] = mark
	if wait := h.sweep(); wait != 0 {
		t.Errorf("wait %s", wait)
	}
	h.wantObjects(append(slices.Clone(keep), key)...)
	h.wantMetric(0, "bucketwarden_backupbucket_tombstones", "b")
	h.wantMetric(0, "bucketwarden_backupbucket_retained_objects", "b")
	h.wantMetric(0, "bucketwarden_backupbucket_next_sweep_timestamp_seconds", "b")
	for range 3 {
		h.cloud.offset += 24 * time.Hour
		h.sweep()
		h.wantTrace("get secrets garden/bucket-b", sweepList)
	}
	h.cloud.offset += 24 * time.Hour
	h.sweep()
	h.wantTrace("get secrets garden/bucket-b", sweepList, fmt.Sprintf("store b Purge %q", key))
	h.wantObjects(keep...)
	h.sweep()
	h.wantTrace("get secrets garden/bucket-b", sweepList)

	// Longer than the record tells, nobody knows until when.
	key = h.putTombstone(testEntry, -time.Second)
	bucket.objects[key] = memObject{created: h.cloud.now().Add(-1000 * time.Hour), held: true}
	for range 2 {
		h.sweep()
		h.wantTrace("get secrets garden/bucket-b", sweepList, sweepPurge, fmt.Sprintf("store b Purge %q", key))
		h.sweep()
		h.wantTrace("get secrets garden/bucket-b", sweepList)
		h.sweeper.plans = map[string]map[string]sweepPlan{}
		h.cloud.offset += time.Hour
	}
	h.sweep()
	h.cloud.offset += time.Hour + 2*markTick
	h.sweep()
	h.wantTrace("get secrets garden/bucket-b", sweepList, fmt.Sprintf("store b Purge %q", key))
}

// What is retained longer than its tombstone says is tried again, not more often than hourly.
func TestSweepRetainedAgain(t *testing.T) {
	for title, test := range map[string]struct {
		until time.Duration
		held  bool
		next  time.Duration
	}{
		"shortly":    {until: time.Minute, next: time.Hour},
		"for long":   {until: 5 * time.Hour, next: 5*time.Hour + markTick},
		"legal hold": {held: true, next: time.Hour},
	} {
		t.Run(title, func(t *testing.T) {
			h := newHarness(t)
			h.cloud.offset = -50 * time.Hour
			bucket := h.putSwept(Policy{})
			key := h.putTombstone(testEntry, -time.Second)
			o := memObject{size: 512, held: test.held}
			if test.until > 0 {
				o.until = h.cloud.now().Add(test.until)
			}
			bucket.objects[testEntry+"/1"] = o
			start := h.cloud.now()
			h.sweep()
			h.wantObjects(append(slices.Clone(keep), key, testEntry+"/1")...)
			h.wantMetric(1, "bucketwarden_purged_objects_total", "b")
			h.wantMetric(1, "bucketwarden_backupbucket_tombstones", "b")
			h.wantMetric(1, "bucketwarden_backupbucket_retained_objects", "b")
			h.wantMetric(512, "bucketwarden_backupbucket_retained_bytes", "b")
			if off := h.metric("bucketwarden_backupbucket_next_sweep_timestamp_seconds", "b") - float64(start.Add(test.next).Unix()); off < 0 || off > 2+h.cloud.now().Sub(start).Seconds() {
				t.Errorf("the next sweep is %v s off", off)
			}
			bucket.objects[testEntry+"/1"] = memObject{}
			h.cloud.offset += test.next - 10*time.Minute
			h.sweep()
			h.wantTrace("get secrets garden/bucket-b", sweepList)
			h.cloud.offset += 20 * time.Minute
			h.sweep()
			h.wantObjects(keep...)
			h.wantMetric(0, "bucketwarden_backupbucket_tombstones", "b")
			h.wantMetric(0, "bucketwarden_backupbucket_retained_objects", "b")
			h.wantMetric(0, "bucketwarden_backupbucket_retained_bytes", "b")
		})
	}
}

func TestSweepComesBackByItself(t *testing.T) {
	h := newHarness(t)
	h.cloud.offset = 1000 * time.Hour
	start := time.Now()
	h.putSwept(Policy{})
	h.putTombstone("b", 9*time.Minute)
	h.putTombstone("a", 3*time.Minute)
	h.putTombstone("c", 300*time.Hour)
	if wait := h.sweep(); wait < 3*time.Minute-time.Since(start) || wait > 3*time.Minute+2*markTick {
		t.Errorf("wait %s", wait)
	}
	h.wantMetric(3, "bucketwarden_backupbucket_tombstones", "b")
	h.wantMetric(6, "bucketwarden_backupbucket_retained_objects", "b")
	h.wantMetric(3*2048, "bucketwarden_backupbucket_retained_bytes", "b")
	h.cloud.offset += 4 * time.Minute
	if wait := h.sweep(); wait < 5*time.Minute-time.Since(start) || wait > 5*time.Minute+2*markTick {
		t.Errorf("wait %s", wait)
	}
	h.cloud.offset += 6 * time.Minute
	if wait := h.sweep(); wait != 0 {
		t.Errorf("wait %s", wait)
	}
	h.wantMetric(1, "bucketwarden_backupbucket_tombstones", "b")
}

// A prefix with a live entry is never purged, whatever the cache or the tombstones say.
func TestSweepSparesLiveEntries(t *testing.T) {
	released := func(u *unstructured.Unstructured) { deleting(u); withFinalizers("other")(u) }
	for title, test := range map[string]struct {
		entry string
		edits []editObject
		gone  bool
	}{
		"alive":                      {entry: testEntry},
		"source":                     {entry: "source-" + testEntry},
		"of another type":            {entry: testEntry, edits: []editObject{set("other", "spec", "type")}},
		"of another class":           {entry: testEntry, edits: []editObject{set("garden", "spec", "class")}},
		"waits for its state":        {entry: testEntry, edits: []editObject{withOperation(operationWaitForState)}},
		"failed":                     {entry: testEntry, edits: []editObject{withLast(operationTypeCreate, stateError, "no")}},
		"to be migrated":             {entry: testEntry, edits: []editObject{withOperation(operationMigrate)}},
		"migrating, deleted":         {entry: testEntry, edits: []editObject{released, withLast(operationTypeMigrate, stateSucceeded, "done")}},
		"to be migrated, deleted":    {entry: "source-" + testEntry, edits: []editObject{released, withOperation(operationMigrate)}},
		"deleting":                   {entry: testEntry, edits: []editObject{released}, gone: true},
		"in another bucket":          {entry: testEntry, edits: []editObject{set("c", "spec", "bucketName")}, gone: true},
		"of a name that begins so":   {entry: testEntry + "0", gone: true},
		"of a name with two sources": {entry: "source-source-" + testEntry, gone: true},
	} {
		for _, when := range []string{"from the start", "not in the cache", "since the list", "since the first batch"} {
			t.Run(title+", "+when, func(t *testing.T) {
				h := newHarness(t)
				bucket := h.putSwept(Policy{})
				key := h.putTombstone(testEntry, -time.Second)
				objects := slices.Collect(maps.Keys(bucket.objects))
				put := func() { h.putEntry(test.entry, false, test.edits...) }
				switch when {
				case "from the start":
					put()
				case "not in the cache":
					h.sync()
					h.frozen = true
					put()
				case "since the list":
					h.cloud.listed = func() { put(); h.cloud.listed = nil }
				case "since the first batch":
					h.cloud.batch = 1
					h.cloud.deleting = func(string) { put(); h.cloud.deleting = nil }
					objects = slices.DeleteFunc(objects, func(o string) bool { return o == testEntry+"/1" })
				}
				wait := h.sweep()
				if test.gone {
					h.wantObjects(keep...)
					return
				}
				// The tombstone stands against a live entry: the sweeper revokes it.
				left := slices.Collect(maps.Keys(bucket.objects))
				if of := h.marks(testEntry); len(of) != 2 || !of[1].revoked {
					t.Errorf("the marks are %+v", of)
				} else if objects = append(objects, of[1].key); !slices.Equal(slices.Sorted(slices.Values(left)), slices.Sorted(slices.Values(objects))) {
					t.Errorf("left are %q, want %q", left, objects)
				}
				if slices.Contains(h.trace, fmt.Sprintf("store b Purge %q", key)) {
					t.Errorf("wait %s, trace %q", wait, h.trace)
				}
				h.wantMetric(0, "bucketwarden_purge_failures_total", "b")
				if when == "since the first batch" {
					h.wantMetric(1, "bucketwarden_purged_objects_total", "b")
				}

				// Whoever has migrated away leaves its objects: only the marks go.
				h.cloud.listed, h.cloud.deleting = nil, nil
				if err := h.dyn.Tracker().Delete(entriesGVR, "", test.entry); err != nil {
					t.Fatal(err)
				}
				h.cloud.offset += revocationKept
				h.sweep()
				h.wantObjects(slices.DeleteFunc(objects, func(o string) bool { return strings.HasPrefix(o, tombstonePrefix) })...)
			})
		}
	}
}

// Another cluster may take the prefix into use, or delete its entry again, at any time.
func TestSweepRespectsOtherClusters(t *testing.T) {
	h := newHarness(t)
	bucket := h.putSwept(Policy{})
	h.cloud.batch = 1
	h.putTombstone(testEntry, -time.Second)
	h.cloud.deleting = func(string) { h.putRevocation(testEntry); h.cloud.deleting = nil }
	h.sweep()
	if bucket.objects[testEntry+"/2"].size == 0 || len(h.marks(testEntry)) != 2 {
		t.Errorf("the bucket has %v", bucket.objects)
	}
	// The revocation says that the prefix is in use: only the marks go, and not before every
	// deletion that was begun before it can have seen it.
	h.cloud.offset += revocationKept - time.Minute
	h.sweep()
	if len(h.marks(testEntry)) != 2 {
		t.Errorf("the bucket has %v", bucket.objects)
	}
	h.cloud.offset += 2 * time.Minute
	h.sweep()
	if bucket.objects[testEntry+"/2"].size == 0 || len(h.marks(testEntry)) != 0 {
		t.Errorf("the bucket has %v", bucket.objects)
	}

	// A tombstone that is written while the old one is swept is kept.
	h.putTombstone(testEntry, -time.Second)
	fresh := ""
	h.cloud.deleting = func(string) {
		fresh = tombstoneKey(testEntry, h.cloud.now().Add(time.Minute), PurgeResult{Retained: 1})
		bucket.objects[fresh] = memObject{created: h.cloud.now()}
		bucket.objects[testEntry+"/3"] = memObject{until: h.cloud.now().Add(time.Minute)}
		h.cloud.deleting = nil
	}
	h.sweep()
	for range 2 {
		if _, ok := bucket.objects[fresh]; !ok {
			t.Errorf("the bucket has %v", bucket.objects)
		}
		h.sweep()
	}
	h.cloud.offset += 2 * time.Minute
	h.sweep()
	h.wantObjects(keep...)
}

// Without an answer nothing is deleted.
func TestSweepWithoutLiveCheck(t *testing.T) {
	for title, prepare := range map[string]func(h *harness){
		"API server": func(h *harness) {
			h.answer("get", resourceBackupEntries, 1, apierrors.NewServiceUnavailable("etcd is slow"))
		},
		"API server, of the source": func(h *harness) {
			h.on("get", resourceBackupEntries, 1, func() error {
				h.answer("get", resourceBackupEntries, 1, apierrors.NewForbidden(entriesGVR.GroupResource(), "x", errors.New("no")))
				return nil
			})
		},
		"store": func(h *harness) { h.cloud.listed = func() { h.cloud.fail["List"] = denied } },
	} {
		t.Run(title, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putSwept(Policy{})
			h.putTombstone(testEntry, -time.Second)
			objects := slices.Collect(maps.Keys(bucket.objects))
			prepare(h)
			if wait, err := h.passSweep(); err == nil || wait != 0 || !strings.Contains(err.Error(), testEntry) {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantObjects(objects...)
			h.wantMetric(1, "bucketwarden_purge_failures_total", "b")
			h.wantMetric(1, "bucketwarden_backupbucket_tombstones", "b")
			h.cloud.listed = nil
			clear(h.cloud.fail)
			h.sweep()
			h.wantObjects(keep...)
		})
	}
}

// The end of a sweep may be cut off after each deletion: without a revocation an older
// tombstone would count again.
func TestSweepDeletesMarksInSafeOrder(t *testing.T) {
	for _, newest := range []string{markRevoked, markDeleted} {
		for cut := range 5 {
			t.Run(fmt.Sprintf("%s, cut off after %d", newest, cut), func(t *testing.T) {
				h := newHarness(t)
				bucket := h.putSwept(Policy{})
				for i := range 5 {
					key := h.putTombstone(testEntry, -time.Second)
					if (i%2 == 0) == (newest == markRevoked) {
						delete(bucket.objects, key)
						key = h.putRevocation(testEntry)
					}
					bucket.objects[key] = memObject{created: h.cloud.now().Add(time.Duration(i-10)*time.Minute - revocationKept)}
				}
				left := cut
				h.cloud.deleting = func(key string) {
					if !strings.HasPrefix(key, tombstonePrefix) {
						if newest == markRevoked {
							t.Errorf("%s was deleted", key)
						}
						return
					}
					if left--; left == 0 {
						h.cloud.fail["Purge"] = unavailable
					}
					rest := slices.DeleteFunc(h.marks(testEntry), func(m mark) bool { return m.key == key })
					if newest == markRevoked && len(rest) > 0 && !rest[len(rest)-1].revoked {
						t.Errorf("after %s a tombstone counts", key)
					}
				}
				if cut == 0 {
					h.cloud.fail["Purge"] = unavailable
				}
				if _, err := h.passSweep(); !errors.Is(err, unavailable) {
					t.Errorf("error %v", err)
				}
				if n := len(h.marks(testEntry)); n != 5-cut {
					t.Errorf("%d marks are left", n)
				}
				clear(h.cloud.fail)
				h.sweeper.plans = map[string]map[string]sweepPlan{}
				h.sweep()
				if newest == markDeleted {
					h.wantObjects(keep...)
				} else {
					h.wantObjects(append(slices.Clone(keep), testEntry+"/1", testEntry+"/2")...)
				}
			})
		}
	}
}

func TestSweepSurvivesARestart(t *testing.T) {
	h := newHarness(t)
	bucket := h.putSwept(Policy{})
	h.putTombstone(testEntry, time.Minute)
	bucket.objects[testEntry+"/1"] = memObject{until: h.cloud.now().Add(3 * time.Hour)}
	for range 5 {
		h.sweep()
		h.sweeper.plans = map[string]map[string]sweepPlan{}
		h.cloud.offset += time.Hour
	}
	h.sweep()
	h.wantObjects(keep...)
}

func TestSweepStoreErrors(t *testing.T) {
	for _, test := range []struct {
		title string
		err   error
		stops bool
	}{{"transient", unavailable, true}, {"for good", denied, false}} {
		t.Run(test.title, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putSwept(Policy{})
			for _, entry := range []string{"a", "b", "c"} {
				h.putTombstone(entry, -time.Second)
				bucket.objects[entry+"/1"] = memObject{}
			}
			h.putTombstone("d", 5*time.Minute)
			h.cloud.fail["batch"] = test.err
			h.cloud.listed = func() { h.cloud.listed = func() { clear(h.cloud.fail) } }
			if wait, err := h.passSweep(); wait != 0 || !errors.Is(err, test.err) || !strings.Contains(err.Error(), "BackupEntry a") {
				t.Errorf("wait %s, error %v", wait, err)
			}
			want := append(slices.Clone(keep), "a/1", testEntry+"/1", testEntry+"/2")
			if test.stops {
				want = append(want, "b/1", "c/1")
			}
			got := slices.DeleteFunc(slices.Sorted(maps.Keys(bucket.objects)), func(key string) bool { return strings.HasPrefix(key, tombstonePrefix) })
			if !slices.Equal(got, slices.Sorted(slices.Values(want))) {
				t.Errorf("left %q, want %q", got, want)
			}
			h.wantMetric(1, "bucketwarden_purge_failures_total", "b")
			h.wantMetric(map[bool]float64{true: 4, false: 2}[test.stops], "bucketwarden_backupbucket_tombstones", "b")
			h.cloud.listed = nil
			clear(h.cloud.fail)
			h.sweep()
			if len(h.marks("a"))+len(h.marks("b"))+len(h.marks("c")) > 0 || len(bucket.objects) != 6 {
				t.Errorf("left %v", bucket.objects)
			}
		})
	}
	for _, method := range []string{"open", "List"} {
		h := newHarness(t)
		h.putSwept(Policy{})
		h.cloud.fail[method] = unavailable
		if wait, err := h.passSweep(); wait != 0 || !errors.Is(err, unavailable) {
			t.Errorf("%s: wait %s, error %v", method, wait, err)
		}
	}
}

func TestSweepIsNotMade(t *testing.T) {
	for title, prepare := range map[string]func(h *harness){
		"gone": func(h *harness) {
			if err := h.dyn.Tracker().Delete(bucketsGVR, "", "b"); err != nil {
				h.t.Fatal(err)
			}
		},
		"of another class":    func(h *harness) { h.edit(bucketsGVR, "b", set("garden", "spec", "class")) },
		"of another type":     func(h *harness) { h.edit(bucketsGVR, "b", set("gcp", "spec", "type")) },
		"waits for its state": func(h *harness) { h.edit(bucketsGVR, "b", withOperation(operationWaitForState)) },
		"without a finalizer": func(h *harness) {
			h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) { u.SetFinalizers(nil) })
		},
		"not reconciled": func(h *harness) { h.edit(bucketsGVR, "b", set("other", "spec", "secretRef", "name")) },
		"not reconciled, deleting": func(h *harness) {
			h.edit(bucketsGVR, "b", set("other", "spec", "secretRef", "name"))
			h.edit(bucketsGVR, "b", apiDeleting)
		},
	} {
		t.Run(title, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putSwept(Policy{})
			h.putTombstone(testEntry, -time.Second)
			objects := slices.Collect(maps.Keys(bucket.objects))
			prepare(h)
			if wait := h.sweep(); wait != 0 {
				t.Errorf("wait %s", wait)
			}
			h.wantNothing()
			h.wantObjects(objects...)
		})
	}
}

// apiDeleting is a deletion as the API server does it.
func apiDeleting(u *unstructured.Unstructured) {
	now := metav1.Now()
	u.SetDeletionTimestamp(&now)
	u.SetGeneration(u.GetGeneration() + 1)
}

// A BackupBucket whose deletion waits for an entry goes on sweeping for others.
func TestSweepWhileTheBucketWaitsForEntries(t *testing.T) {
	h := newHarness(t)
	h.putSwept(Policy{})
	h.putTombstone(testEntry, -time.Second)
	h.putEntry("shoot--p--other--u", true)
	h.edit(bucketsGVR, "b", apiDeleting)
	if wait, err := h.passBucket("b"); err != nil || wait != referencedRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if n := h.sweeper.sweeps.queue.Len(); n != 1 {
		t.Errorf("%d sweeps are asked for", n)
	}
	if c := h.conditionOf(conditionWaiting); c["status"] != "True" || c["reason"] != "InUse" || !strings.Contains(fmt.Sprint(c["message"]), "shoot--p--other--u") {
		t.Errorf("condition %v", c)
	}
	h.sweep()
	h.wantObjects(keep...)
}

// Every look at the bucket asks for a sweep, one that fails too.
func TestVerificationAsksForASweep(t *testing.T) {
	h := newHarness(t)
	h.putSwept(Policy{})
	queue := h.sweeper.sweeps.queue
	for _, failing := range []bool{false, true} {
		if failing {
			h.cloud.fail["Observe"] = unavailable
		}
		if _, err := h.passBucket("b"); (err != nil) != failing {
			t.Errorf("error %v", err)
		}
		if queue.Len() != 1 {
			t.Fatalf("%d sweeps are asked for", queue.Len())
		}
		key, _ := queue.Get()
		queue.Done(key)
		if key != (cache.ObjectName{Name: "b"}) {
			t.Errorf("key %v", key)
		}
	}
}

// On Azure a sweep needs nothing of the management plane.
func TestAzureSweep(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d)
	bucket := h.cloud.buckets["b"]
	h.sweep()
	h.wantTrace("get secrets garden/generated-bucket-b", sweepList)
	if want := (bucketRef{Name: "b", Region: "eu-1", Recorded: locked4d, Account: "derived"}); h.cloud.opened != want {
		t.Errorf("opened %+v, want %+v", h.cloud.opened, want)
	}
	bucket.objects[testEntry+"/1"] = memObject{}
	key := h.putTombstone(testEntry, -time.Second)
	h.sweep()
	h.wantTrace("get secrets garden/generated-bucket-b", sweepList, sweepPurge,
		"get backupentries shoot--p--s--u", "get backupentries source-shoot--p--s--u", sweepCheck)
	h.wantObjects(key)
	h.cloud.offset += 5 * 24 * time.Hour
	h.sweep()
	h.wantTrace("get secrets garden/generated-bucket-b", sweepList, fmt.Sprintf("store b Purge %q", key))
	h.wantObjects()

	h.deleteSecret("garden", testGenerated)
	if wait := h.sweep(); wait != 0 {
		t.Errorf("wait %s", wait)
	}
	h.wantTrace("get secrets garden/generated-bucket-b")
}

// The tombstones go with their bucket, and while it waits nobody asks for anything.
func TestBucketDeleteTakesTheTombstones(t *testing.T) {
	h := newHarness(t)
	h.cloud.offset = 30 * time.Hour
	bucket := h.putSwept(Policy{})
	key := h.putTombstone(testEntry, time.Hour)
	until := h.cloud.now().Add(2 * time.Hour).UTC().Truncate(time.Second)
	bucket.objects[key] = memObject{until: until}
	bucket.objects[testEntry+"/1"] = memObject{size: 1024, until: until.Add(-time.Hour)}
	h.edit(bucketsGVR, "b", apiDeleting)
	h.edit(bucketsGVR, "b", withFinalizers("other"))
	start := time.Now()
	if _, err := h.passBucket("b"); err != nil || !passedWait(start, h.deletionDue(), until.Add(time.Second-h.cloud.offset)) {
		t.Errorf("due in %s, error %v", h.deletionDue(), err)
	}
	says := "2 objects (1.0 KiB) in bucket b are retained until " + until.Format(time.RFC3339)
	if s := h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing); s.Description != says {
		t.Errorf("description %q, want %q", s.Description, says)
	}
	if c := h.conditionOf(conditionWaiting); c["status"] != "True" || c["reason"] != "ObjectsRetained" || c["message"] != says+"." {
		t.Errorf("condition %v", c)
	}
	h.wantObjects(key, testEntry+"/1")
	h.wantMetric(2, "bucketwarden_backupbucket_retained_objects", "b")
	h.wantMetric(1024, "bucketwarden_backupbucket_retained_bytes", "b")
	h.wantMetric(float64(until.Unix()), "bucketwarden_backupbucket_next_sweep_timestamp_seconds", "b")
	for range 3 {
		if wait, err := h.passBucket("b"); err != nil || wait <= 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantNothing()
	}
	h.cloud.offset += 3 * time.Hour
	h.buckets.resource.controller.waitUntil(cache.ObjectName{Name: "b"}, testStart)
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if h.cloud.buckets["b"] != nil || !slices.Equal(h.get(bucketsGVR, "b").GetFinalizers(), []string{"other"}) {
		t.Error("not released")
	}
}

func TestBucketDeletionSaysWhyItWaits(t *testing.T) {
	for reason, prepare := range map[string]func(h *harness){
		"InUse":           func(h *harness) { h.putEntry(testEntry, true) },
		"ObjectsRetained": func(h *harness) { h.cloud.buckets["b"].objects["x"] = memObject{held: true} },
		"KeptByStore": func(h *harness) {
			h.cloud.fail["Delete"] = &waitError{reason: "bucket b is under a legal hold", after: time.Hour}
		},
	} {
		h := newHarness(t)
		h.putDeletingBucket(set([]any{map[string]any{"type": conditionImmutable, "status": "True", "reason": "Locked", "message": "x",
			"lastTransitionTime": "2025-01-01T00:00:00Z", "lastUpdateTime": "2025-01-01T00:00:00Z"}}, "status", "conditions"))
		prepare(h)
		if wait, err := h.passBucket("b"); err != nil || wait <= 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		s := h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing)
		if c := h.conditionOf(conditionWaiting); c["status"] != "True" || c["reason"] != reason || c["message"] != s.Description+"." {
			t.Errorf("%s: condition %v, description %q", reason, c, s.Description)
		}
		// What the bucket itself is said to be is not lost.
		if c := h.conditionOf(conditionImmutable); reason == "InUse" && c["reason"] != "NoPolicy" {
			t.Errorf("condition %v", c)
		}
		// The same again changes nothing.
		h.buckets.resource.controller.waitUntil(cache.ObjectName{Name: "b"}, testStart)
		if _, err := h.passBucket("b"); err != nil || slices.ContainsFunc(h.trace, func(line string) bool { return strings.HasPrefix(line, "status") }) {
			t.Errorf("%s: error %v, trace %q", reason, err, h.trace)
		}
	}
}

// A tombstone must be revoked before the entry is Succeeded.
func TestEntryRevokesItsTombstone(t *testing.T) {
	for _, name := range []string{testEntry, "source-" + testEntry} {
		for title, edits := range map[string][]editObject{"create": nil, "restore": {withOperation(operationRestore)},
			"reconcile": {withFinalizers(finalizerBackupEntry), withLast(operationTypeReconcile, stateSucceeded, "done"), withOperation(operationReconcile)}} {
			t.Run(name+", "+title, func(t *testing.T) {
				h := newHarness(t)
				h.putNamespace(testNamespace, false)
				h.cloud.put("b", Policy{})
				h.putTombstone(testEntry, -time.Hour)
				h.putTombstone(testEntry+"0", -time.Hour)
				h.putEntry(name, false, edits...)
				for _, method := range []string{"Put", "List"} {
					h.cloud.fail[method] = unavailable
					if _, err := h.passEntry(name); !errors.Is(err, unavailable) {
						t.Errorf("error %v", err)
					}
					if s := h.status(entriesGVR, name); s.State != string(stateError) {
						t.Errorf("status %+v", s)
					}
					clear(h.cloud.fail)
				}
				if h.secret(testNamespace, etcdBackupName(name)) == nil {
					t.Error("the cluster has to do without its secret")
				}
				h.edit(entriesGVR, name, withOperation(operationReconcile))
				if _, err := h.passEntry(name); err != nil {
					t.Error(err)
				}
				h.wantEvents("TombstoneRevoked")
				if m := h.marks(testEntry); len(m) != 2 || !m[1].revoked {
					t.Errorf("marks %+v", m)
				}
				put := slices.IndexFunc(h.trace, func(line string) bool { return strings.HasPrefix(line, "store b Put") })
				done := slices.IndexFunc(h.trace, func(line string) bool { return strings.HasSuffix(line, "Succeeded") })
				if put < 0 || done < put {
					t.Errorf("trace %q", h.trace)
				}
				h.edit(entriesGVR, name, withOperation(operationReconcile))
				if _, err := h.passEntry(name); err != nil || len(h.storeCalls()) != 1 {
					t.Errorf("error %v, trace %q", err, h.trace)
				}
				h.wantEvents()
				if len(h.marks(testEntry+"0")) != 1 {
					t.Error("the tombstone of another entry was revoked")
				}
			})
		}
	}
}

// Killed after the tombstone was written, the next pass needs no other.
func TestEntryDeleteSurvivesAKillAfterItsTombstone(t *testing.T) {
	for title, o := range map[string]memObject{"dated": {until: time.Now().Add(time.Hour)}, "legal hold": {held: true}} {
		t.Run(title, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingEntry(testEntry).objects[testEntry+"/1"] = o
			h.answer("patch", resourceBackupEntries+"/status", 1, nil)
			h.on("patch", resourceBackupEntries, 2, func() error { return apierrors.NewInternalError(errors.New("killed")) })
			for range 2 {
				if _, err := h.passEntry(testEntry); err == nil {
					t.Error("no error")
				}
			}
			if _, err := h.passEntry(testEntry); err != nil {
				t.Error(err)
			}
			if n := len(h.marks(testEntry)); n != 1 {
				t.Errorf("%d tombstones", n)
			}
			if got := h.get(entriesGVR, testEntry).GetFinalizers(); !slices.Equal(got, []string{"other"}) {
				t.Errorf("finalizers %v", got)
			}
		})
	}
}

func TestEntryDeleteWithoutATombstone(t *testing.T) {
	for _, method := range []string{"List", "Put"} {
		h := newHarness(t)
		h.putDeletingEntry(testEntry).objects[testEntry+"/1"] = memObject{held: true}
		h.cloud.fail[method] = unavailable
		for range 2 {
			if wait, err := h.passEntry(testEntry); !errors.Is(err, unavailable) || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if s := h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateError, codeRetryableDependencies); !strings.Contains(s.Error, "tombstone") {
				t.Errorf("the message %q does not say what failed", s.Error)
			}
			if len(h.get(entriesGVR, testEntry).GetFinalizers()) != 2 {
				t.Error("released without a tombstone")
			}
		}
		clear(h.cloud.fail)
		if _, err := h.passEntry(testEntry); err != nil || len(h.marks(testEntry)) != 1 {
			t.Errorf("error %v, marks %+v", err, h.marks(testEntry))
		}
	}
}

// A sibling that appears while an entry goes keeps the objects, and no tombstone stands
// against it: the bucket's owner may be another cluster, which sees no entry of ours.
func TestEntryDeleteMeetsANewSibling(t *testing.T) {
	sibling := "source-" + testEntry
	for title, test := range map[string]struct {
		when func(h *harness, appear func())
		left int
	}{
		"before a batch":        {func(h *harness, appear func()) { h.cloud.listed = appear }, 3},
		"between two batches":   {func(h *harness, appear func()) { h.cloud.batch = 1; h.cloud.deleting = func(string) { appear() } }, 2},
		"before the tombstone":  {func(h *harness, appear func()) { h.cloud.beforePut = appear }, 1},
		"and the store is down": {func(h *harness, appear func()) { h.cloud.beforePut = func() { appear(); h.cloud.failPut = 1 } }, 1},
	} {
		t.Run(title, func(t *testing.T) {
			h := newHarness(t)
			bucket := h.putDeletingEntry(testEntry)
			bucket.objects[testEntry+"/0"] = memObject{until: time.Now().Add(time.Hour)}
			once := true
			test.when(h, func() {
				if once {
					once = false
					h.putEntry(sibling, true)
				}
			})
			for range 3 {
				if _, err := h.passEntry(testEntry); err == nil {
					break
				}
			}
			h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateSucceeded)
			n := 0
			for key := range bucket.objects {
				if strings.HasPrefix(key, testEntry+"/") {
					n++
				}
			}
			if n != test.left {
				t.Errorf("%d objects are left, want %d", n, test.left)
			}
			if m := h.marks(testEntry); len(m) > 0 && !m[len(m)-1].revoked {
				t.Errorf("a tombstone stands against a live entry: %+v", m)
			}
			if !slices.ContainsFunc(h.recorder.events, func(e harnessEvent) bool { return e.reason == "ObjectsKept" }) {
				t.Errorf("events %+v", h.recorder.events)
			}
		})
	}
}

// What is kept for a sibling in a bucket that is not ours has no tombstone of ours.
func TestEntryDeleteWithASiblingInABucketOfOthers(t *testing.T) {
	h := newHarness(t)
	h.putDeletingEntry(testEntry)
	h.putEntry("source-"+testEntry, true)
	h.cloud.fail["List"] = &storeError{code: codeConfigurationProblem, err: errNotOurBucket}
	if wait, err := h.passEntry(testEntry); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantEvents("ObjectsKept")
	h.wantStatus(entriesGVR, testEntry, operationTypeDelete, stateSucceeded)
}

// testBury buries an entry in a bucket with the recorded policy, as its deletion would.
func testBury(ctx context.Context, objects Objects, base string, recorded Policy, result PurgeResult) error {
	return bury(ctx, &prefixGuard{entry: &backupEntry{Recorded: recorded}, base: base, objects: objects}, result)
}

// A workload identity has access to the store once it has a token.
func TestEntryOfAWorkloadIdentityRevokes(t *testing.T) {
	for _, token := range []bool{false, true} {
		h := newHarness(t)
		h.putNamespace(testNamespace, false)
		h.cloud.put("b", Policy{})
		h.putTombstone(testEntry, time.Hour)
		h.putEntry(testEntry, true, withOperation(operationReconcile))
		h.editSecret("garden", "entry", func(s *corev1.Secret) {
			source := workloadIdentitySource()
			s.Labels, s.Annotations, s.Data = source.Labels, source.Annotations, source.Data
			if !token {
				delete(s.Data, dataKeyToken)
			}
		})
		if _, err := h.passEntry(testEntry); err != nil {
			t.Error(err)
		}
		if m := h.marks(testEntry); m[len(m)-1].revoked != token {
			t.Errorf("with a token: %t, marks %+v", token, m)
		}
	}
}

// Whoever can write to a bucket must not keep us from finding the marks, nor fill our memory.
func TestMarksAmongJunk(t *testing.T) {
	const junk, many = 150000, 3 * maxMarks
	created := time.Now().Add(-time.Hour)
	list := func(i int) version {
		switch {
		case i < junk:
			return version{key: fmt.Sprintf("%s%06d\x01", tombstonePrefix, i), id: "1", created: created}
		case i < junk+many:
			return version{key: fmt.Sprintf("%sa/revoked-%08d", tombstonePrefix, i), id: "1", created: created.Add(time.Duration(i) * time.Second)}
		default:
			return version{key: fmt.Sprintf("%sb/revoked-%08d", tombstonePrefix, i), id: "1", created: created}
		}
	}
	store := markStore{newMemVersions(junk+many+1, list)}
	var reader markReader
	found := map[string]marks{}
	if err := reader.each(t.Context(), store, tombstonePrefix, func(m marks) error { found[m.entry] = m; return nil }); err != nil {
		t.Fatal(err)
	}
	a, b := found["a"], found["b"]
	if reader.strangers != junk || len(found) != 2 || b.count != 1 || b.more {
		t.Errorf("%d strangers, %d entries", reader.strangers, len(found))
	}
	if a.count != many || !a.more || len(a.revocations) != maxMarks || a.newest.key != list(junk+many-1).key {
		t.Errorf("%d marks, more %t, of which %d are kept, the newest is %s", a.count, a.more, len(a.revocations), a.newest.key)
	}

	twice := []string{"a/revoked-00000001", "b/revoked-00000001", "a/revoked-00000002"}
	store = markStore{newMemVersions(3, func(i int) version { return version{key: tombstonePrefix + twice[i], id: "1", created: created} })}
	var failed *storeError
	if err := reader.each(t.Context(), store, tombstonePrefix, func(marks) error { return nil }); !errors.As(err, &failed) || !strings.Contains(err.Error(), "two places") {
		t.Errorf("an entry in two places: %v", err)
	}
}

type markStore struct{ *memVersions }

func (markStore) Put(context.Context, string) error { return nil }

// A sweep counts what is no mark, and leaves it alone.
func TestSweepCountsForeignMarks(t *testing.T) {
	h := newHarness(t)
	h.putSwept(Policy{})
	b := h.cloud.buckets["b"]
	for i := range 3 {
		b.objects[fmt.Sprintf("%sjunk%d", tombstonePrefix, i)] = memObject{created: h.cloud.now()}
	}
	h.sweep()
	h.wantMetric(3, "bucketwarden_backupbucket_foreign_marks", "b")
	for i := range 3 {
		if key := fmt.Sprintf("%sjunk%d", tombstonePrefix, i); b.objects[key].created.IsZero() {
			t.Errorf("%s is gone", key)
		}
	}
}
