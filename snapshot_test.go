package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// The names that etcd-backup-restore's own test accepts and refuses (pkg/snapstore/snapshot_test.go), and others that it
// accepts or refuses as its ParseSnapshot is written.
func TestParseSnapshotPath(t *testing.T) {
	full := snapshot{full: true, last: 2088, named: time.Unix(2387428, 0).UTC()}
	with := func(s snapshot, change func(*snapshot)) *snapshot {
		change(&s)
		return &s
	}
	gz := func(s *snapshot) { s.compression = ".gz" }
	for path, want := range map[string]*snapshot{
		// Its table.
		"/abc/v1/Backup--00000000-00002088-2387428/Full-00000000-00002088-2387428": &full,
		"v1/Backup--00000000-00002088-2387428/Full-00000000-00002088-2387428":      &full,
		"/abc/v2/Full-00000000-00002088-2387428":                                   &full,
		"v2/Full-00000000-00002088-2387428":                                        &full,
		"/abc/Full-00000000-00002088-2387428":                                      nil,
		"Full-00000000-00002088-2387428":                                           nil,
		"v2/Full-00000000-00030009-1518427675": with(full, func(s *snapshot) {
			s.last, s.named = 30009, time.Unix(1518427675, 0).UTC()
		}),
		"v2/Full-00000000-00002088-2387428.gz":    with(full, gz),
		"v2/Full-00000000-00002088-2387428.final": with(full, func(s *snapshot) { s.final = true }),
		"v2/Full-00000000-00002088-2387428.gz.final": with(full, func(s *snapshot) {
			s.compression, s.final = ".gz", true
		}),
		"v2/Full-00000000-00002088-2387428-43":       nil,
		"v2/Full-00h000000-00002088-2387428":         nil,
		"v2/Full-00000000-00sdf002088-2387428":       nil,
		"v2/Full-00012345-00002088-2387428":          nil,
		"v2/Full-00000000-00002088-23874sdf43":       nil,
		"v2/meta-00000000-00002088-2387428":          nil,
		"v2/Backup--00000000-00002088-2387428":       nil,
		"v1/Full-00000000-00002088-2387428":          nil, // the directory is missing
		"v1/Backup-1/Full-00000000-00002088-2387428": &full,

		// Revisions and times of any length, and no more than an int64 can hold.
		"v2/Full-0-2088-2387428":                          &full,
		"v2/Incr-100000001-9223372036854775807-2387428.Z": {first: 100000001, last: math.MaxInt64, named: full.named, compression: ".Z"},
		"v2/Incr-00000001-9223372036854775808-2387428":    nil,
		"v2/Incr-00002088-00002088-2387428.zlib":          {first: 2088, last: 2088, named: full.named, compression: ".zlib"},
		"v2/Incr-+0000001-+0000002-+2387428":              {first: 1, last: 2, named: full.named},
		"v2/Full-00000003-00002088-2387428":               with(full, func(s *snapshot) { s.first = 3 }),
		"v2/Full-00000000-00002088-":                      nil,
		"v2/Full-00000000--00002088-2387428":              nil,
		"v2/Full-0x00-00002088-2387428":                   nil,
		"v2/Full-1_0-00002088-2387428":                    nil,
		"v2/full-00000000-00002088-2387428":               nil,
		"v2/ Full-00000000-00002088-2387428":              nil,
		"v2/Full-00000000-00002088-2387428 ":              nil,
		"v2/Full-00000000-00002088-2387428\x00":           nil,

		// Endings of any kind; the first is the compression, the last may be .final.
		"v2/Full-00000000-00002088-2387428.":             with(full, func(s *snapshot) { s.compression = "." }),
		"v2/Full-00000000-00002088-2387428.bak":          with(full, func(s *snapshot) { s.compression = ".bak" }),
		"v2/Full-00000000-00002088-2387428.gz.bak":       with(full, gz),
		"v2/Full-00000000-00002088-2387428.final.gz":     full.bare(),
		"v2/Full-00000000-00002088-2387428.gz.x.final":   with(full, func(s *snapshot) { s.compression, s.final = ".gz", true }),
		"v2/Full-00000000-00002088-2387428.\x00\n":       with(full, func(s *snapshot) { s.compression = ".\x00\n" }),
		"v2/Full-00000000-00002088-2387428.gz/0000001":   with(full, func(s *snapshot) { s.compression, s.chunk = ".gz", true }),
		"v2/Full-00000000-00002088-2387428.chunk/1/2":    with(full, func(s *snapshot) { s.compression = ".chunk" }),
		"v2/Full-00000000-00002088-2387428/1/2/3":        nil,
		"v1/Backup-1/Full-00000000-00002088-2387428/1":   with(full, func(s *snapshot) { s.chunk = true }),
		"v1/Backup-1/Full-00000000-00002088-2387428/1/2": nil,

		// Whatever is before the last v1/ or v2/ does not count; v1/ wins.
		"a/v2/b/v2/Full-00000000-00002088-2387428": &full,
		"shootv2/Full-00000000-00002088-2387428":   &full,
		"a/v1/v2/Full-00000000-00002088-2387428":   &full,
		"a/v2/v1/Full-00000000-00002088-2387428":   nil,
		"v2/":                                      nil,
		"v2":                                       nil,
		"":                                         nil,
		// A path is cleaned before it is read: another key would be fetched.
		"v2//Full-00000000-00002088-2387428":       with(full, func(s *snapshot) { s.chunk, s.elsewhere = true, true }),
		"v2/./x/../Full-00000000-00002088-2387428": nil, // too many parts
		"a//v2/Full-00000000-00002088-2387428":     with(full, func(s *snapshot) { s.elsewhere = true }),
		"./v2/Full-00000000-00002088-2387428":      with(full, func(s *snapshot) { s.elsewhere = true }),
		"v2/../Full-00000000-00002088-2387428":     nil,
		"v2/Full-00000000-00002088-2387428/":       with(full, func(s *snapshot) { s.chunk, s.elsewhere = true, true }),
		"v2/Full-00000000-00002088-2387428/..":     nil,
	} {
		got, err := parseSnapshotPath(path)
		var refused *snapshotNameError
		if want == nil {
			if !errors.As(err, &refused) {
				t.Errorf("%q is read as %+v, %v", path, got, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q is refused: %v", path, err)
			continue
		}
		if got.key != path {
			t.Errorf("%q has the key %q", path, got.key)
		}
		got.key, got.name = "", ""
		if *got != *want {
			t.Errorf("%q is read as %+v, want %+v", path, *got, *want)
		}
	}
}

// bare is a copy.
func (s snapshot) bare() *snapshot { return &s }

func TestSnapshotName(t *testing.T) {
	s, err := parseSnapshot("shoot--foo--bar--1", "shoot--foo--bar--1/etcd-main/v1/Backup-5/Incr-00000001-00000002-3.gz")
	if err != nil || s.name != "Incr-00000001-00000002-3.gz" {
		t.Errorf("got %+v, %v", s, err)
	}
}

// What etcd-backup-restore looks at lies below <entry>/etcd-main, without a slash behind it.
func TestIsSnapshotKey(t *testing.T) {
	for key, want := range map[string]bool{
		"a--1/etcd-main/v2/x":   true,
		"a--1/etcd-main/v1/x":   true,
		"a--1/etcd-main/xv2x":   true,
		"a--1/etcd-main-2/v2/x": true,
		"a--1/etcd-mainv2/x":    true,
		"a--1/etcd-main/x":      false,
		"a--1/etcd-events/v2/x": false,
		"a--1/v2/x":             false,
		"a--10/etcd-main/v2/x":  false,
		"x/a--1/etcd-main/v2/x": false,
		"":                      false,
	} {
		if got := isSnapshotKey("a--1", key); got != want {
			t.Errorf("%q: got %t", key, got)
		}
		if _, err := parseSnapshot("a--1", key); err == nil {
			t.Errorf("%q is taken for a snapshot", key)
		}
	}
}

// The order is that of etcd-backup-restore's own test.
func TestSnapshotOrder(t *testing.T) {
	names := []string{
		"Full-00000000-00001588-100", "Full-00000000-00001688-90", "Incr-00001689-00001700-80",
		// The same last revision: a chunk last, then by time, and a delta behind a full.
		"Incr-00001701-00001800-70", "Full-00000000-00001800-71", "Incr-00001801-00001800-71", "Full-00000000-00001800-72",
		"Full-00000000-00001800-60/1",
		"Incr-00001701-100000000-1", "Full-00000000-9223372036854775807-9223372036854775807",
	}
	names[5] = "Incr-00001702-00001800-71"
	var want, got []*snapshot
	for _, name := range names {
		s, err := parseSnapshotPath("v2/" + name)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, s)
	}
	got = slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, (*snapshot).compare)
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("place %d has %s, want %s", i, got[i].name, want[i].name)
		}
	}
	// Not by their keys.
	delta, err1 := parseSnapshotPath("v1/Backup-1/Incr-00000001-00000002-3")
	full, err2 := parseSnapshotPath("v2/Full-00000000-00000002-3")
	if err1 != nil || err2 != nil || full.compare(delta) >= 0 {
		t.Errorf("a delta comes ahead of a full of the same revision and time: %v, %v", err1, err2)
	}
}

const listedEntry = "shoot--foo--bar--1"

var listedTime = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// listedKey is the key of a snapshot taken some minutes after listedTime.
func listedKey(kind string, first, last int64, minutes int) string {
	return fmt.Sprintf("%s/%s/v2/%s-%08d-%08d-%d.gz", listedEntry, etcdName, kind, first, last, listedTime.Add(time.Duration(minutes)*time.Minute).Unix())
}

func listedVersion(key, id string, minutes int) version {
	return version{key: key, id: id, size: 100, created: listedTime.Add(time.Duration(minutes) * time.Minute)}
}

// readPagesOf reads versions in pages of a size.
func readPagesOf(versions []version, size int) *snapshotList {
	l := newSnapshotList(listedEntry)
	for part := range slices.Chunk(versions, size) {
		l.add(page{versions: slices.Clone(part), now: listedTime.Add(24 * time.Hour)})
	}
	l.end()
	return l
}

// Of the versions of a key, the oldest is the one that a restore reads, wherever pages end.
func TestSnapshotListVersions(t *testing.T) {
	key := listedKey(snapshotFull, 0, 10, 0)
	other := listedKey(snapshotFull, 0, 20, 1)
	marker := func(v version) version { v.marker = true; return v }
	previous := func(v version) version { v.leaves = true; return v }
	excludedTag := func(v version) version { v.excluded = true; return v }
	for name, c := range map[string]struct {
		versions []version
		want     snapshot
		none     bool
	}{
		"one":                            {versions: []version{listedVersion(key, "a", 5)}, want: snapshot{id: "a", versions: 1}},
		"without versions":               {versions: []version{listedVersion(key, "", 5)}, want: snapshot{versions: 1}},
		"the oldest":                     {versions: []version{listedVersion(key, "c", 7), listedVersion(key, "b", 6), listedVersion(key, "a", 5)}, want: snapshot{id: "a", versions: 3}},
		"the oldest, whatever the order": {versions: []version{listedVersion(key, "a", 5), listedVersion(key, "c", 7), listedVersion(key, "b", 6)}, want: snapshot{id: "a", versions: 3}},
		"of two of the same time the first of the list": {versions: []version{listedVersion(key, "b", 5), listedVersion(key, "a", 5)}, want: snapshot{id: "b", versions: 2}},
		"below a delete marker": {versions: []version{marker(listedVersion(key, "m", 9)), listedVersion(key, "a", 5)},
			want: snapshot{id: "a", versions: 1, marked: true, excluded: exclusionUnknown}},
		"above a delete marker": {versions: []version{listedVersion(key, "b", 9), marker(listedVersion(key, "m", 7)), listedVersion(key, "a", 5)},
			want: snapshot{id: "a", versions: 2, marked: true, excluded: exclusionUnknown}},
		"only delete markers": {versions: []version{marker(listedVersion(key, "m", 9)), marker(listedVersion(key, "n", 7))}, none: true},
		"the current one of Azure": {versions: []version{previous(listedVersion(key, "2", 5)), previous(listedVersion(key, "", 7))},
			want: snapshot{versions: 2}},
		"only previous ones on Azure": {versions: []version{previous(listedVersion(key, "2", 5)), previous(listedVersion(key, "3", 6))},
			want: snapshot{id: "3", versions: 2, lost: true}},
		"tagged by the list": {versions: []version{excludedTag(listedVersion(key, "", 5))}, want: snapshot{versions: 1, excluded: excluded}},
		"the tag of another version": {versions: []version{excludedTag(listedVersion(key, "b", 6)), listedVersion(key, "a", 5)},
			want: snapshot{id: "a", versions: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			for size := 1; size <= 4; size++ {
				l := readPagesOf(append(slices.Clone(c.versions), listedVersion(other, "z", 100)), size)
				if c.none {
					if len(l.all) != 1 || l.counts.fulls != 1 {
						t.Fatalf("pages of %d: got %+v", size, l.all)
					}
					continue
				}
				if len(l.all) != 2 || l.counts.fulls != 2 {
					t.Fatalf("pages of %d: got %d snapshots, %+v", size, len(l.all), l.counts)
				}
				got := l.all[0]
				if got.id != c.want.id || got.versions != c.want.versions || got.marked != c.want.marked || got.excluded != c.want.excluded ||
					got.lost != c.want.lost {
					t.Errorf("pages of %d: got %+v", size, *got)
				}
			}
		})
	}
}

func TestSnapshotListCounts(t *testing.T) {
	dir := listedEntry + "/" + etcdName + "/v2/"
	versions := []version{
		listedVersion(listedEntry+"/canary", "a", 0),
		listedVersion(listedEntry+"/"+etcdName+"-x/v2/Full-0-5-6", "a", 0),
		listedVersion(listedEntry+"/etcd-events/v2/Full-0-5-6", "a", 0),
		listedVersion(dir+"Full-0-5-6", "b", 1),
		listedVersion(dir+"Full-0-5-6", "a", 0),
		listedVersion(dir+"Full-0-5-7/1", "a", 0),
		listedVersion(dir+"Full-0-5-x", "a", 0),
		listedVersion(dir+"Incr-6-7-8", "a", 0),
		listedVersion(dir+"readme\x01", "a", 0),
	}
	slices.SortStableFunc(versions, func(v, w version) int { return strings.Compare(v.key, w.key) })
	for size := 1; size <= len(versions); size++ {
		l := readPagesOf(versions, size)
		want := snapshotCounts{fulls: 2, deltas: 1, chunks: 1, bytes: 300, unreadable: 2, others: 2, versions: 9}
		if l.counts != want {
			t.Errorf("pages of %d: counted %+v, want %+v", size, l.counts, want)
		}
		if c := l.chain(); c.numbers[problemUnreadable] != 2 || c.counts != want {
			t.Errorf("pages of %d: problems %v", size, c.problems)
		}
	}
}

// A list of any length needs a page and what is kept. The chain is found as long as it is not longer than that.
func TestSnapshotListBounded(t *testing.T) {
	t.Parallel()
	read := func(n int, at func(i int) version) *snapshotList {
		l := newSnapshotList(listedEntry)
		for i := 0; i < n; {
			p := page{now: listedTime.Add(24 * time.Hour)}
			for ; i < n && len(p.versions) < 1000; i++ {
				p.versions = append(p.versions, at(i))
			}
			l.add(p)
			if kept := len(l.fulls.all) + len(l.deltas.all); kept > 2*(maxFulls+maxDeltas) {
				t.Fatalf("%d snapshots are kept", kept)
			}
		}
		l.end()
		return l
	}
	key := func(kind string, first, last int) string {
		return fmt.Sprintf("%s/%s/v2/%s-%09d-%09d-%d", listedEntry, etcdName, kind, first, last, listedTime.Unix()+int64(last))
	}
	const n = 200000
	delta := func(i int) version { return listedVersion(key(snapshotDelta, i, i), "a", 0) }
	// The full is the third last of revisions, the first of names.
	l := read(n, func(i int) version {
		if i == 0 {
			return listedVersion(strings.Replace(key(snapshotFull, 0, n-3), fmt.Sprint(listedTime.Unix()+n-3), fmt.Sprint(listedTime.Unix()+n-2), 1), "a", 0)
		}
		return delta(i)
	})
	if c := l.chain(); !c.known || !c.complete || c.revision != n-1 || len(c.links) != 3 || l.counts.deltas != n-1 {
		t.Errorf("got %t, %t, %d, %d links", c.known, c.complete, c.revision, len(c.links))
	}
	l = read(n, func(i int) version {
		if i == 0 {
			return listedVersion(key(snapshotFull, 0, 1), "a", 0)
		}
		return delta(i)
	})
	if c := l.chain(); c.known || c.complete || c.numbers[problemTooMany] != 1 {
		t.Errorf("a chain that is too long is known: %v", c.problems)
	}
	l = read(n, delta)
	if c := l.chain(); c.known || c.complete || c.full != nil {
		t.Errorf("a chain without a full is known: %v", c.problems)
	}
	// A key with any number of versions.
	l = read(n, func(i int) version { return listedVersion(key(snapshotFull, 0, 1), fmt.Sprint(i), i%100) })
	if c := l.chain(); !c.complete || c.full.versions != n || c.full.id != "0" {
		t.Errorf("got %+v", c.full)
	}
}

// BenchmarkSnapshotList reads 1,000,000 versions of as many keys.
func BenchmarkSnapshotList(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		l := newSnapshotList(listedEntry)
		for i := 0; i < 1000000; {
			p := page{now: listedTime}
			for range 1000 {
				p.versions = append(p.versions, listedVersion(listedKey(snapshotDelta, int64(i), int64(i), i/1000), "a", i/1000))
				i++
			}
			l.add(p)
		}
		l.end()
		if c := l.chain(); c.known {
			b.Fatal("it is known")
		}
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-live")
		runtime.KeepAlive(l)
	}
}

// taggedVersions are memVersions with tags, and maybe a list that tells them.
type taggedVersions struct {
	*memVersions
	set    map[string]map[string]string // by key and id
	failed error
	asked  []string
}

func (s *taggedVersions) tags(_ context.Context, v version) (map[string]string, error) {
	s.asked = append(s.asked, v.key+"@"+v.id)
	return s.set[v.key+"@"+v.id], s.failed
}

func (s *taggedVersions) setTags(context.Context, version, map[string]string) error { return nil }

type listTaggedVersions struct {
	*taggedVersions
	denied error
}

func (s *listTaggedVersions) taggedPages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	if s.denied != nil {
		return func(yield func(page, error) bool) { yield(page{}, s.denied) }
	}
	return func(yield func(page, error) bool) {
		for p, err := range s.pages(ctx, prefix, from) {
			for i, v := range p.versions {
				p.versions[i].excluded = s.set[v.key+"@"+v.id][excludeTag] == excludeValue
			}
			if !yield(p, err) {
				return
			}
		}
	}
}

// Tags are asked for only where there is a delete marker, of the oldest version, the newest snapshots first.
func TestReadChain(t *testing.T) {
	f1, d1, f2, d2 := listedKey(snapshotFull, 0, 10, 0), listedKey(snapshotDelta, 11, 20, 5), listedKey(snapshotFull, 0, 20, 6), listedKey(snapshotDelta, 21, 30, 10)
	marker := func(key string) version {
		return version{key: key, id: "m", created: listedTime.Add(time.Hour), marker: true}
	}
	all := []version{listedVersion(f1, "a", 0), marker(f2), listedVersion(f2, "b", 7), listedVersion(f2, "a", 6), listedVersion(d1, "a", 5),
		marker(d2), listedVersion(d2, "a", 10)}
	tag := map[string]string{excludeTag: excludeValue, "other": "x"}
	denied := &storeError{code: codeUnauthorized, err: errors.New("denied")}
	down := &storeError{code: codeRetryableDependencies, err: errors.New("down")}
	store := func(set map[string]map[string]string) *taggedVersions {
		mem := newMemVersions(len(all), func(i int) version { return all[i] })
		mem.page = 2
		return &taggedVersions{memVersions: mem, set: set}
	}
	ask := []string{d2 + "@a", f2 + "@a"}

	for name, c := range map[string]struct {
		store    versions
		revision int64
		links    int
		excluded int
		unknown  bool
		err      error
	}{
		"not tagged":       {store: store(nil), revision: 30, links: 2},
		"both tagged":      {store: store(map[string]map[string]string{f2 + "@a": tag, d2 + "@a": tag}), revision: 20, links: 2, excluded: 2},
		"tagged elsewhere": {store: store(map[string]map[string]string{f2 + "@b": tag, d2 + "@m": tag}), revision: 30, links: 2},
		"another value":    {store: store(map[string]map[string]string{f2 + "@a": {excludeTag: "True"}, d2 + "@a": {excludeTag: "true "}}), revision: 30, links: 2},
		"not readable":     {store: &taggedVersions{memVersions: store(nil).memVersions, failed: denied}, revision: 30, links: 2, unknown: true},
		"down":             {store: &taggedVersions{memVersions: store(nil).memVersions, failed: down}, err: down},
		"no tags at all":   {store: store(nil).memVersions, revision: 30, links: 2},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readChain(t.Context(), c.store, listedEntry)
			if !errors.Is(err, c.err) {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			if got.revision != c.revision || len(got.links) != c.links || got.excluded() != c.excluded || got.known == c.unknown {
				t.Errorf("got revision %d, %d links, %d excluded, known %t: %v", got.revision, len(got.links), got.excluded(), got.known, got.problems)
			}
			if s, ok := c.store.(*taggedVersions); ok && s.failed == nil && !slices.Equal(s.asked, ask) {
				t.Errorf("asked for the tags of %q", s.asked)
			}
			if s, ok := c.store.(*taggedVersions); ok && s.failed != nil && len(s.asked) != 1 {
				t.Errorf("asked %d times for what is refused", len(s.asked))
			}
		})
	}

	t.Run("removed while it is read", func(t *testing.T) {
		s := &taggedVersions{memVersions: store(nil).memVersions, failed: &storeError{err: fmt.Errorf("gone: %w", errNoVersion)}}
		got, err := readChain(t.Context(), s, listedEntry)
		if err != nil || !got.known || got.complete || got.numbers[problemLost] != 2 {
			t.Errorf("got %+v, %v", got.problems, err)
		}
	})
	t.Run("by the list", func(t *testing.T) {
		plain := []version{listedVersion(f1, "", 0), listedVersion(f2, "", 6), listedVersion(d1, "", 5), listedVersion(d2, "", 10)}
		mem := newMemVersions(len(plain), func(i int) version { return plain[i] })
		s := &listTaggedVersions{taggedVersions: &taggedVersions{memVersions: mem, set: map[string]map[string]string{f2 + "@": tag, d2 + "@": tag}}}
		got, err := readChain(t.Context(), s, listedEntry)
		if err != nil || got.revision != 20 || got.excluded() != 2 || len(s.asked) != 0 || s.lists != 1 {
			t.Errorf("got %+v, %v, asked %q, %d lists", got.problems, err, s.asked, s.lists)
		}
		s.denied = denied
		got, err = readChain(t.Context(), s, listedEntry)
		if err != nil || got.known || got.complete || got.numbers[problemExclusionUnknown] != 4 || len(s.asked) != 0 {
			t.Errorf("got %+v, %v, asked %q", got.problems, err, s.asked)
		}
		s.denied = down
		if _, err = readChain(t.Context(), s, listedEntry); !errors.Is(err, down) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		got, err := readChain(t.Context(), newMemVersions(0, nil), listedEntry)
		if err != nil || !got.known || got.complete || got.numbers[problemNoFull] != 1 || got.now.IsZero() {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("other keys", func(t *testing.T) {
		s := &strangeLister{newMemVersions(1, func(int) version { return listedVersion("other/x", "a", 0) })}
		if _, err := readChain(t.Context(), s, listedEntry); err == nil {
			t.Error("a list of other keys is believed")
		}
	})
}

// strangeLister lists what it was not asked for.
type strangeLister struct{ *memVersions }

func (s *strangeLister) pages(ctx context.Context, _ string, from cursor) iter.Seq2[page, error] {
	return s.memVersions.pages(ctx, "", from)
}

// Delete markers on any number of snapshots cost no more than maxTagLookups requests; older ones do not matter.
func TestReadChainTagLookups(t *testing.T) {
	const n = 2 * maxTagLookups
	s := &taggedVersions{memVersions: newMemVersions(2*n, func(i int) version {
		// A full of the highest revision, then deltas.
		kind, revision, first := snapshotDelta, int64(i/2), int64(i/2)
		if revision == 0 {
			kind, revision = snapshotFull, n
		}
		v := listedVersion(listedKey(kind, first, revision, int(revision)), "a", int(revision))
		v.marker = i%2 == 0
		return v
	})}
	got, err := readChain(t.Context(), s, listedEntry)
	if err != nil || len(s.asked) != maxTagLookups || !got.complete || got.revision != n {
		t.Errorf("asked %d times: %v, %v", len(s.asked), got.problems, err)
	}
}
