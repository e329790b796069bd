package main

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A second reader of etcd-backup-restore's layout, in another way than snapshot.go: names by a regular expression, and the chain
// by doing what a restore does, revision by revision. It was written from the description of the layout alone: the oldest
// version of a key is the snapshot, one with a delete marker and the tag on the oldest version is left out, snapshots go by last
// revision and then by time, the last full and every delta behind it are taken; of the first delta the events that the full
// has are skipped, and after each delta the etcd must be at its last revision.

var readerName = regexp.MustCompile(`^(Full|Incr)-([0-9]+)-([0-9]+)-([0-9]+)(\.gz|\.Z|\.zlib)?(\.final)?$`)

type readerSnapshot struct {
	path, version           string
	isFull                  bool
	begin, finish, unixTime int
	bytes                   int64
}

// readerList is what is in a bucket: for each path its versions, the newest first.
type readerVersion struct {
	path, id     string
	at           time.Time
	bytes        int64
	marker, tags bool
}

// readerRestore tells which versions a restore reads, whether it gets through, and where it ends.
func readerRestore(entry string, bucket []readerVersion) (reads []string, whole bool, revision int) {
	byPath := map[string][]readerVersion{}
	for _, v := range bucket {
		byPath[v.path] = append(byPath[v.path], v)
	}
	var found []readerSnapshot
	for path, versions := range byPath {
		below, ok := strings.CutPrefix(path, entry+"/etcd-main/")
		if !ok {
			continue
		}
		name, ok := strings.CutPrefix(below, "v2/")
		if !ok {
			parts := regexp.MustCompile(`^v1/Backup-[0-9]+/([^/]+)$`).FindStringSubmatch(below)
			if parts == nil {
				continue
			}
			name = parts[1]
		}
		fields := readerName.FindStringSubmatch(name)
		if fields == nil {
			continue // also a chunk, which has a number behind a slash
		}
		var oldest *readerVersion
		hidden := false
		for i := range versions {
			v := &versions[i]
			if v.marker {
				hidden = true
			} else if oldest == nil || v.at.Before(oldest.at) {
				oldest = v
			}
		}
		if oldest == nil || hidden && oldest.tags {
			continue
		}
		number := func(i int) int { n, _ := strconv.Atoi(fields[i]); return n }
		s := readerSnapshot{path: path, version: oldest.id, isFull: fields[1] == "Full", begin: number(2), finish: number(3),
			unixTime: number(4), bytes: oldest.bytes}
		if s.begin <= s.finish {
			found = append(found, s)
		}
	}
	sort.Slice(found, func(i, j int) bool {
		if found[i].finish != found[j].finish {
			return found[i].finish < found[j].finish
		}
		return found[i].unixTime < found[j].unixTime
	})
	last := -1
	for i, s := range found {
		if s.isFull {
			last = i
		}
	}
	if last < 0 {
		return nil, false, 0
	}
	etcd, failed := 0, false
	for i, s := range found[last:] {
		reads = append(reads, s.path+"@"+s.version)
		switch {
		case failed:
			continue
		case s.bytes == 0:
			failed = true
			continue
		case i == 0:
			etcd = s.finish
		default:
			now := etcd
			from := s.begin
			// If there is no new event, all are applied.
			if i == 1 && now >= from && now < s.finish {
				from = now + 1
			}
			for range s.finish - from + 1 {
				now++
			}
			if failed = now != s.finish; failed {
				continue
			}
			etcd = now
		}
		revision = etcd
	}
	return reads, !failed, revision
}

// randomBucket makes what may be under the prefix of an entry: mostly a chain, with all kinds of accidents.
func randomBucket(r *rand.Rand, entry string) (bucket []readerVersion) {
	clock := time.Unix(1790000000+r.Int64N(1000000), 0).UTC()
	revision := 1 + r.IntN(50)
	dirs := []string{"/etcd-main/v2/", "/etcd-main/v2/", "/etcd-main/v2/", "/etcd-main/v1/Backup-" + strconv.FormatInt(clock.Unix(), 10) + "/", "/etcd-events/v2/", "/"}
	endings := []string{".gz", ".gz", "", ".Z", ".zlib", ".final", ".gz.final"}
	dir := dirs[0]
	for range r.IntN(14) {
		clock = clock.Add(time.Duration(1+r.IntN(600)) * time.Second)
		if r.IntN(8) == 0 {
			dir = dirs[r.IntN(len(dirs))]
		}
		kind, first, last := "Incr", revision+1, revision+1+r.IntN(4)
		if r.IntN(4) == 0 {
			kind, first, last = "Full", 0, revision+r.IntN(2)
		}
		switch r.IntN(24) {
		case 0: // a gap or an overlap
			first = max(0, first+r.IntN(7)-3)
		case 1: // an old revision
			last = max(first, last-r.IntN(4))
		case 2: // a name that is none
			first = last + 1 + r.IntN(3)
		}
		revision = max(revision, last)
		name := fmt.Sprintf("%s-%08d-%08d-%d%s", kind, first, last, clock.Unix(), endings[r.IntN(len(endings))])
		switch r.IntN(24) {
		case 0:
			name += "/" + strconv.Itoa(1+r.IntN(3))
		case 1:
			name = []string{"x" + name, name + "-1", strings.ToLower(name), "Full-00000001"}[r.IntN(4)]
		}
		path := entry + dir + name
		at := clock.Add(time.Duration(r.IntN(60)) * time.Second)
		versions := []readerVersion{{path: path, id: "first", at: at, bytes: int64(r.IntN(30))}}
		for n := range r.IntN(6) {
			if n > 2 {
				break
			}
			at = at.Add(time.Duration(1+r.IntN(5)) * time.Second)
			versions = append(versions, readerVersion{path: path, id: fmt.Sprint(n), at: at, bytes: 9, marker: r.IntN(2) == 0})
		}
		for i := range versions {
			versions[i].tags = r.IntN(4) == 0 && !versions[i].marker
		}
		if r.IntN(12) == 0 { // the snapshot itself is gone
			versions = versions[1:]
		}
		slices.Reverse(versions)
		bucket = append(bucket, versions...)
	}
	return bucket
}

func TestChainAsSecondReader(t *testing.T) {
	t.Parallel()
	number := *mutationSeed
	if number == 0 {
		number = rand.Uint64()
	}
	t.Logf("-mutation-seed=%d", number)
	r := rand.New(rand.NewPCG(number, 1))
	whole, broken, none, left := 0, 0, 0, 0
	for round := range 20000 {
		bucket := randomBucket(r, listedEntry)
		slices.SortStableFunc(bucket, func(v, w readerVersion) int { return strings.Compare(v.path, w.path) })
		wantReads, wantWhole, wantRevision := readerRestore(listedEntry, bucket)

		set := map[string]map[string]string{}
		versions := make([]version, len(bucket))
		for i, v := range bucket {
			versions[i] = version{key: v.path, id: v.id, created: v.at, size: v.bytes, marker: v.marker}
			if v.tags {
				set[v.path+"@"+v.id] = map[string]string{excludeTag: excludeValue}
			}
		}
		store := &taggedVersions{memVersions: newMemVersions(len(versions), func(i int) version { return versions[i] }), set: set}
		store.page = 1 + r.IntN(5)
		got, err := readChain(t.Context(), store, listedEntry)
		if err != nil {
			t.Fatal(err)
		}
		var reads []string
		for _, s := range got.links {
			reads = append(reads, s.key+"@"+s.id)
		}
		if !got.known || !slices.Equal(reads, wantReads) || got.complete != wantWhole || got.revision != int64(wantRevision) {
			for _, v := range bucket {
				t.Logf("%+v", v)
			}
			t.Fatalf("round %d: got %s, want %q, %t, %d", round, got.described(), wantReads, wantWhole, wantRevision)
		}
		switch {
		case len(reads) == 0:
			none++
		case wantWhole:
			whole++
		default:
			broken++
		}
		left += got.excluded()
	}
	// Each kind has to come up, or the comparison says nothing.
	if min(whole, broken, none, left) < 500 {
		t.Errorf("%d whole, %d broken, %d without a full, %d excluded", whole, broken, none, left)
	}
	t.Logf("%d whole, %d broken, %d without a full, %d excluded", whole, broken, none, left)
}

// What both readers take for a name is the same, where the description says something.
func FuzzParseSnapshot(f *testing.F) { fuzz(f, parseSnapshotSeeds(f), checkParseSnapshot) }

func TestParseSnapshotMutations(t *testing.T) {
	checkMutations(t, "FuzzParseSnapshot", parseSnapshotSeeds(t), 3000, checkParseSnapshot)
}

func parseSnapshotSeeds(testing.TB) []string {
	return []string{
		"v2/Full-00000000-00002088-2387428.gz", "v2/Incr-00002089-00002100-2387429", "v2/Full-00000000-00002088-2387428.final",
		"v2/Incr-100000000-9223372036854775807-2387429.zlib", "v1/Backup-2387428/Full-00000000-00002088-2387428.gz.final",
		"v2/Full-00000000-00002088-2387428.gz/0000000001", "v2//Incr-00000002-00000001-3.Z", "", "v2/", "v1/a/b/c",
	}
}

func checkParseSnapshot(t testing.TB, below string) {
	key := listedEntry + "/etcd-main/" + below
	s, err := parseSnapshot(listedEntry, key)
	name := readerName.FindString(strings.TrimPrefix(below, "v2/"))
	if err != nil {
		fields := readerName.FindStringSubmatch(name)
		if fields == nil || !strings.HasPrefix(below, "v2/") {
			return
		}
		// Numbers that no int64 holds, and revisions the wrong way round.
		var numbers []int64
		for _, field := range fields[2:5] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return
			}
			numbers = append(numbers, n)
		}
		if numbers[0] <= numbers[1] {
			t.Errorf("%q is refused: %v", key, err)
		}
		return
	}
	if name != "" && strings.HasPrefix(below, "v2/") && (s.name != name || s.chunk || s.elsewhere || !compressions[s.compression] ||
		s.final != strings.HasSuffix(name, ".final") || s.full != strings.HasPrefix(name, "Full")) {
		t.Errorf("%q is read as %+v", key, s)
	}
	if s.first > s.last || s.first < 0 || strings.Contains(s.name, "//") || s.compare(s) != 0 || s.key != key {
		t.Errorf("%q is read as %+v", key, s)
	}
	// Whatever it is, it can be told and put in order.
	l := newSnapshotList(listedEntry)
	l.add(page{now: listedTime, versions: []version{listedVersion(listedKey(snapshotFull, 0, 10, 0), "a", 0), listedVersion(key, "a", 5)}})
	l.end()
	c := l.chain()
	for _, p := range c.problems {
		if p.String() == "" {
			t.Errorf("%q: a problem is not told", key)
		}
	}
	if c.complete && c.revision < 10 {
		t.Errorf("%q: the chain ends at %d", key, c.revision)
	}
}
