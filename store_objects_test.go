package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// suiteOdd are names that are easily encoded wrongly.
var suiteOdd = []string{
	"object", "deep/er/and/deeper", "with space", " leading and trailing ", "plus+plus", "100%25", "%41%2F", "ünïcödé/日本語/🪣", "a&b=c?d#e;f",
	"quote'\"<>", "[brackets]{}|^`~",
}

func testStorePurge(t *testing.T, backend storeBackend) {
	under := func(prefix string, names ...string) (out []string) {
		for _, name := range names {
			out = append(out, prefix+name)
		}
		return out
	}
	t.Run("prefixes", func(t *testing.T) {
		t.Parallel()
		both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
			one, ten := under("a--1/", suiteOdd...), under("a--10/", suiteOdd...)
			// Not a--1 itself: MinIO does not list what is below an object.
			rest := []string{"a--1.object", "a-1/object", "A--1/object", "b/a--1/object", "object"}
			all := slices.Concat(one, ten, rest)
			b.put(all...)
			b.wantObjects(all...)
			size := map[string]int64{}
			for _, object := range backend.list(b.t, b.name) {
				size[object.name] = object.size
			}
			result := func(names ...string) (r PurgeResult) {
				for _, name := range names {
					r.Deleted++
					r.DeletedBytes += size[name]
				}
				return r
			}
			objects := open(Policy{})
			b.purge(objects, "c/", PurgeResult{})
			b.wantObjects(all...)
			b.purge(objects, "a--1/", result(one...))
			b.wantObjects(slices.Concat(ten, rest)...)
			b.purge(objects, "a--1/", PurgeResult{})
			b.purge(objects, "a--1", result(append(slices.Clone(ten), rest[0])...))
			b.wantObjects(rest[1:]...)
			b.purge(objects, "b/a--1/object", result("b/a--1/object"))
			b.purge(objects, "", result("a-1/object", "A--1/object", "object"))
			b.wantObjects()
			b.purge(objects, "", PurgeResult{})
			if state := b.observe(); !state.Exists {
				b.t.Error("the bucket itself is gone")
			}
		})
	})
	t.Run("odd prefixes", func(t *testing.T) {
		t.Parallel()
		both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
			objects := open(Policy{})
			for _, prefix := range suiteOdd {
				b.put(under(prefix+"/", suiteOdd...)...)
				b.put("other/object")
				result, err := testPurge(b.t.Context(), objects, prefix+"/", nil)
				b.must(err)
				if result.Deleted != int64(len(suiteOdd)) || result.Retained != 0 {
					b.t.Errorf("the purge of %q returned %+v", prefix, result)
				}
				b.wantObjects("other/object")
				b.purge(objects, "", PurgeResult{Deleted: 1})
			}
		})
	})
	t.Run("absent bucket", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.wantNoWrites("Purge of an absent bucket", func() { b.purge(b, "", PurgeResult{}) })
		b.create()
		entry := b.entry(Policy{})
		b.must(b.Delete(t.Context(), anything))
		b.wantNoWrites("Purge of a deleted bucket", func() {
			b.purge(b, "", PurgeResult{})
			b.purge(entry, "a--1/", PurgeResult{})
			b.purge(entry, "", PurgeResult{})
		})
		b.wantAbsent()
	})
}

// testStorePurgeMany needs several pages and batches in every store.
func testStorePurgeMany(t *testing.T, backend storeBackend) {
	const many = 1100
	both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
		names := make([]string, many)
		for i := range names {
			names[i] = fmt.Sprintf("many/%05d", i)
		}
		bytes := b.put(names...)
		b.put("other/1", "other/2")
		objects := open(Policy{})
		b.purge(objects, "none", PurgeResult{}) // asks for keys
		b.observe()
		b.wantRequests(fmt.Sprintf("Purge of %d objects", many), requestsOf{
			// The list is read again until it is empty.
			storeS3: {"ListObjectVersions": 3, "DeleteObjects": 2, "ListMultipartUploads": 1},
			// Under load it was seen to take one more batch.
			suiteCeph:  {"ListObjectVersions": 3, "DeleteObjects": some, "ListMultipartUploads": 1},
			storeAzure: {"Blobs.List": 1, "Blobs.Batch": 5},
		}, func() { b.purge(objects, "many/", PurgeResult{Deleted: many, DeletedBytes: bytes}) })
		b.wantObjects("other/1", "other/2")
	})
}

// testStoreRetained: what is known to be retained is not tried one by one.
func testStoreRetained(t *testing.T, backend storeBackend) {
	const many = 300
	both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
		policy := unlockedPolicy(suiteDays)
		b.must(b.SetPolicy(b.t.Context(), policy))
		names := make([]string, many)
		for i := range names {
			names[i] = fmt.Sprintf("kept/%03d", i)
		}
		bytes := b.put(names...)
		want := PurgeResult{Retained: many, RetainedBytes: bytes, RetainedUntil: backend.until(b.t, b.name, names...)}
		if days := time.Until(want.RetainedUntil).Hours() / 24; days < suiteDays/2 {
			b.t.Fatalf("the server says that the objects are free in %v days", days)
		}
		objects := open(policy)
		b.purge(objects, "none", PurgeResult{})
		b.observe()
		b.wantRequests(fmt.Sprintf("Purge of %d retained objects", many), requestsOf{
			storeS3: {"ListObjectVersions": 1, "DeleteObjects": 1, "GetObjectRetention": 1, "ListMultipartUploads": 1},
			// Under load it was seen not to answer in time, so that it was asked again.
			suiteCeph:  {"ListObjectVersions": some, "DeleteObjects": some, "GetObjectRetention": some, "ListMultipartUploads": some},
			storeAzure: {"Blobs.List": 1},
		}, func() { b.purge(objects, "", want) })
		b.wantObjects(names...)
		if err := b.Delete(b.t.Context(), anything); !errors.Is(err, errBucketNotEmpty) {
			b.t.Errorf("Delete of a bucket with retained objects: %v", err)
		}
	})
	// The record of the policy is missing, or older than the policy.
	for _, recorded := range []Policy{{}, unlockedPolicy(1)} {
		t.Run(fmt.Sprintf("entry with record of %d days", recorded.Days), func(t *testing.T) {
			t.Parallel()
			if recorded.None() && suiteForm(backend).wholly {
				t.Skip("without a date of the object or a policy, a refusal is a missing permission")
			}
			b := newSuiteBucket(t, backend)
			b.create()
			b.must(b.SetPolicy(t.Context(), unlockedPolicy(suiteDays)))
			bytes := b.put("a/1", "a/2", "a/3")
			result, err := testPurge(t.Context(), b.entry(recorded), "a/", nil)
			b.must(err)
			if truth := backend.until(t, b.name, "a/1", "a/2", "a/3"); result.RetainedUntil.After(truth.Add(time.Second)) {
				t.Errorf("the objects are retained until %s, and not until %s", truth, result.RetainedUntil)
			}
			result.RetainedUntil, result.Now = time.Time{}, time.Time{}
			if want := (PurgeResult{Retained: 3, RetainedBytes: bytes}); result != want {
				t.Errorf("the purge returned %+v, want %+v", result, want)
			}
			b.wantObjects("a/1", "a/2", "a/3")
		})
	}
}

// testStoreAgeing: some objects become free earlier than others.
func testStoreAgeing(t *testing.T, backend storeBackend) {
	for _, apart := range []time.Duration{20 * time.Second, time.Minute, 3 * time.Minute} {
		if testStoreAgeingOnce(t, backend, apart) {
			return
		}
	}
	t.Error("again and again, objects became free before a purge ended that should find them retained")
}

// testStoreAgeingOnce returns false if this machine was too slow: apart is how long the
// purges may take that follow a free.
func testStoreAgeingOnce(t *testing.T, backend storeBackend, apart time.Duration) (inTime bool) {
	// What is put now is as old as the clock was moved, see apart.
	policy := unlockedPolicy(int32(time.Until(backend.now(t)).Hours()/24) + 2)
	old, young := []string{"a/1", "a/2", "a/3"}, []string{"a/4", "b/1"}
	type opened struct {
		*suiteBucket
		objects           versions
		oldSize, newSize  int64
		aged              PurgeResult
		until, untilYoung time.Time
	}
	var buckets []*opened
	for _, entry := range []bool{false, true} {
		b := &opened{suiteBucket: newSuiteBucket(t, backend)}
		b.create()
		b.must(b.SetPolicy(t.Context(), policy))
		b.objects = b.Store
		if entry {
			b.objects = b.entry(policy)
		}
		b.oldSize = b.put(old...)
		buckets = append(buckets, b)
	}
	backend.apart(t, apart)
	for _, b := range buckets {
		b.newSize = b.put(young...)
		b.until, b.untilYoung = backend.until(t, b.name, young...), backend.until(t, b.name, "a/4")
		b.purge(b.objects, "", PurgeResult{Retained: 5, RetainedBytes: b.oldSize + b.newSize, RetainedUntil: b.until})
		b.purge(b.objects, "a/1", PurgeResult{Retained: 1, RetainedUntil: backend.until(t, b.name, "a/1")})
		b.wantObjects(slices.Concat(old, young)...)
	}
	for _, b := range buckets {
		backend.free(t, b.name, old...)
	}
	for _, b := range buckets {
		var err error
		b.aged, err = testPurge(t.Context(), b.objects, "a/", nil)
		b.must(err)
		if !backend.now(t).Before(b.untilYoung) {
			return false
		}
	}
	for _, b := range buckets {
		want := PurgeResult{Deleted: 3, DeletedBytes: b.oldSize, Retained: 1, RetainedUntil: b.untilYoung}
		if off := b.aged.RetainedUntil.Sub(b.untilYoung).Abs(); off > time.Second {
			t.Errorf("the object is retained until %s, want %s", b.aged.RetainedUntil, b.untilYoung)
		}
		b.aged.RetainedUntil, b.aged.Now = b.untilYoung, time.Time{}
		if b.aged != want {
			t.Errorf("the purge returned %+v, want %+v", b.aged, want)
		}
		b.wantObjects(young...)
	}
	for _, b := range buckets {
		backend.free(t, b.name, young...)
		b.purge(b.objects, "", PurgeResult{Deleted: 2, DeletedBytes: b.newSize})
		b.wantObjects()
		b.must(b.Delete(t.Context(), anything))
		b.wantAbsent()
	}
	return true
}

func testStoreLegalHold(t *testing.T, backend storeBackend) {
	both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
		bytes := b.put("a/1", "a/2")
		backend.hold(b.t, b.name, true)
		objects := open(Policy{})
		b.purge(objects, "a/", PurgeResult{Retained: 2, RetainedBytes: bytes})
		b.wantObjects("a/1", "a/2")
		if err := b.Delete(b.t.Context(), anything); !errors.Is(err, errBucketNotEmpty) {
			b.t.Errorf("Delete of a bucket with held objects: %v", err)
		}
		backend.hold(b.t, b.name, false)
		b.observe()
		b.purge(objects, "a/", PurgeResult{Deleted: 2, DeletedBytes: bytes})
		b.wantObjects()

		if backend.kind() == storeAzure { // where it is the container that is held
			backend.hold(b.t, b.name, true)
			b.observe()
			err := b.Delete(b.t.Context(), anything)
			var wait *waitError
			if !errors.As(err, &wait) || wait.after <= 0 {
				b.t.Errorf("Delete of a held bucket: %v", err)
			}
			b.wantPolicy(Policy{})
			backend.hold(b.t, b.name, false)
		}
		b.must(b.Delete(b.t.Context(), anything))
		b.wantAbsent()
	})
}

// suiteHard are keys that XML 1.0 cannot carry, or changes.
var suiteHard = []string{
	"control\x01", "\x1f", "new\nline", "carriage\rreturn", "tab\t", "not\uFFFEXML", "\uFFFF", "delete\x7f", "&#1;", "]]>", "%00%01",
}

// testStoreHardKeys: whoever can write to a bucket must not keep us from listing and deleting.
func testStoreHardKeys(t *testing.T, backend storeBackend) {
	both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
		var hard []string
		for _, name := range suiteHard {
			if backend.tryPut(b.name, name, 1) == nil {
				hard = append(hard, name)
			}
		}
		b.t.Logf("the store takes %q", hard)
		b.purge(open(Policy{}), "", PurgeResult{Deleted: int64(len(hard)), DeletedBytes: int64(len(hard))})
		b.wantObjects()
		for _, prefix := range []string{"a--1/", tombstonePrefix + "a/", ""} {
			var names []string
			for _, name := range append(slices.Clone(hard), suiteOdd...) {
				names = append(names, prefix+name)
			}
			bytes := b.put(names...)
			b.wantObjects(names...)
			if prefix == tombstonePrefix+"a/" {
				var reader markReader
				b.must(reader.each(b.t.Context(), b.entry(Policy{}), tombstonePrefix, func(m marks) error {
					b.t.Errorf("%+v is a mark", m)
					return nil
				}))
				if reader.strangers != int64(len(names)) {
					b.t.Errorf("%d strangers, want %d", reader.strangers, len(names))
				}
			}
			b.purge(open(Policy{}), prefix, PurgeResult{Deleted: int64(len(names)), DeletedBytes: bytes})
			b.wantObjects()
		}
	})
}

// testStoreMarks: a tombstone and its revocation are found, in an unlocked bucket as well.
func testStoreMarks(t *testing.T, backend storeBackend) {
	b := newSuiteBucket(t, backend)
	b.create()
	ctx, objects := t.Context(), b.entry(Policy{})
	check := func(count int, buried bool) {
		t.Helper()
		of, now, err := readMarks(ctx, objects, "a")
		b.must(err)
		if of.count != count || of.buried() != buried || now.Sub(backend.now(t)).Abs() > time.Hour {
			t.Errorf("marks %+v at %s", of, now)
		}
	}
	check(0, false)
	revoked, err := revoke(ctx, objects, "a", "")
	if b.must(err); revoked {
		t.Error("what is not buried was revoked")
	}
	b.must(testBury(ctx, objects, "a", Policy{Days: 1}, PurgeResult{Retained: 1, RetainedUntil: backend.now(t).Add(time.Hour)}))
	check(1, true)
	b.put(tombstonePrefix+"a/junk", tombstonePrefix+"a-b/deleted-junk", tombstonePrefix+"junk")
	revoked, err = revoke(ctx, objects, "a", "")
	if b.must(err); !revoked {
		t.Error("what is buried was not revoked")
	}
	check(2, false)
}

// testStoreMarkers: a delete marker stays as long as a version of its key does.
func testStoreMarkers(t *testing.T, backend storeBackend) {
	store, ok := backend.(interface {
		hide(t *testing.T, bucket, name string)
	})
	if !ok {
		t.Skip("the store has no delete markers")
	}
	both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
		for _, prefix := range []string{"a/", "b/"} {
			b.put(prefix + "gone")
			for range 3 { // MinIO makes one marker of that
				store.hide(b.t, b.name, prefix+"gone")
			}
			store.hide(b.t, b.name, prefix+"never there")
		}
		policy := unlockedPolicy(suiteDays)
		b.must(b.SetPolicy(b.t.Context(), policy))
		for _, prefix := range []string{"a/", "b/"} {
			b.put(prefix + "kept")
			store.hide(b.t, b.name, prefix+"kept")
		}
		var want []string
		free := int64(0)
		for _, o := range backend.list(b.t, b.name) {
			if strings.HasPrefix(o.name, "a/") && o.name != "a/kept" {
				free++
				continue
			}
			want = append(want, o.name)
		}
		if free < 2 || len(want) < 5 {
			b.t.Fatalf("%d are free, retained are %q", free, want)
		}
		result, err := testPurge(b.t.Context(), open(policy), "a/", nil)
		b.must(err)
		// All is presumed to be retained, and some of it was written before the policy.
		if result.Retained != 1 || result.Deleted != free || result.RetainedUntil.IsZero() {
			b.t.Errorf("the purge returned %+v", result)
		}
		b.wantObjects(want...)
	})
}
