// The names of etcd-backup-restore's snapshots, and what a store says of each. Pure: nothing here asks anybody.
//
// Rules:
//   - A name is read as etcd-backup-restore reads it, with all that it accepts by accident
//     (gardener/etcd-backup-restore pkg/snapstore/snapshot.go, List in s3_snapstore.go and abs_snapstore.go).
//   - A name is a claim: revisions and times in it are kept apart from what the store says.
//   - A list is read as a stream. Of a key only what counts is kept, of all keys only the newest, so that nobody who can
//     write to a bucket fills our memory.

package main

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// etcdName is the etcd of a cluster that is backed up: its snapshots lie under <entry>/etcd-main.
	etcdName = "etcd-main"

	snapshotFull  = "Full"
	snapshotDelta = "Incr"
	// snapshotFinal ends the name of the last full snapshot before hibernation or deletion.
	snapshotFinal = ".final"

	// maxFulls and maxDeltas bound the snapshots of an entry that are kept, the newest by revision. Gardener keeps about sixty full
	// snapshots, and deltas of 15 days, one in 5 minutes.
	maxFulls, maxDeltas = 1000, 20000
)

// compressions are the endings of compressed snapshots that etcd-backup-restore can read.
var compressions = map[string]bool{"": true, ".gz": true, ".Z": true, ".zlib": true}

// exclusion says whether a restore leaves a snapshot out.
type exclusion int8

const (
	included exclusion = iota
	excluded
	// exclusionUnknown: there is a delete marker on the key, and its tags could not be read or were not asked for.
	exclusionUnknown
)

// snapshot is one object that etcd-backup-restore takes for a snapshot. A look holds tens of thousands, so what is small lies together.
type snapshot struct {
	key string
	// name is the part of the key behind v2/ or v1/Backup-…/.
	name string
	// first and last are the revisions in the name; first is 0 for a full snapshot that etcd-backup-restore has written.
	first, last int64
	// named is the time in the name.
	named       time.Time
	compression string

	// id, size and stored are those of the version that a restore reads.
	id     string
	size   int64
	stored time.Time
	// until is when the retention of the version ends, zero if it has none, and held that a legal hold keeps it. Both mean
	// nothing unless lockKnown.
	until           time.Time
	held, lockKnown bool

	full, final bool
	// chunk: a part of a snapshot on stores that we do not serve. A restore does not look at it.
	chunk bool
	// elsewhere: a restore takes the name, but reads another key, and fails.
	elsewhere bool
	// versions are how many the key has; lost says that there is none any more that a restore could read (Azure lists
	// previous versions of a deleted blob).
	versions int32
	lost     bool
	// marked: there is a delete marker on the key, without which a tag does not exclude it on S3.
	marked   bool
	excluded exclusion
}

// version is the version of the object that a restore reads.
func (s *snapshot) version() version {
	return version{key: s.key, id: s.id, size: s.size, created: s.stored, until: s.until, held: s.held}
}

// taken is when a snapshot was taken: as its name says, but not after it was stored.
func (s *snapshot) taken() time.Time {
	if s.named.Unix() > s.stored.Unix() {
		return s.stored
	}
	return s.named
}

// kind is the word for it in sentences.
func (s *snapshot) kind() string {
	if s.full {
		return "full"
	}
	return "delta"
}

// compare is the order that a restore goes by (SnapList in pkg/types/snapstore.go). There the order of two with the same last
// revision and the same second is left to chance; here a delta comes behind a full, which is the worse of the two.
func (s *snapshot) compare(t *snapshot) int {
	flag := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(s.last, t.last), cmp.Compare(flag(s.chunk), flag(t.chunk)), cmp.Compare(s.named.Unix(), t.named.Unix()),
		cmp.Compare(flag(t.full), flag(s.full)), cmp.Compare(s.key, t.key))
}

// snapshotNameError says why etcd-backup-restore ignores a name.
type snapshotNameError struct{ name, why string }

func (e *snapshotNameError) Error() string {
	return fmt.Sprintf("%q is no name of a snapshot: %s", e.name, e.why)
}

// isSnapshotKey says that etcd-backup-restore looks at a key: below the prefix of its list (which does not end in a slash),
// with v1 or v2 anywhere behind it. base is the name of a BackupEntry without source-.
func isSnapshotKey(base, key string) bool {
	rest, ok := strings.CutPrefix(key, base+"/"+etcdName)
	return ok && (strings.Contains(rest, "v1") || strings.Contains(rest, "v2"))
}

// parseSnapshot reads the key of an object below the prefix of an entry. An error is a *snapshotNameError.
func parseSnapshot(base, key string) (*snapshot, error) {
	if !isSnapshotKey(base, key) {
		return nil, &snapshotNameError{key, fmt.Sprintf("it is not below %s/%s/v2", base, etcdName)}
	}
	return parseSnapshotPath(key)
}

// parseSnapshotPath is ParseSnapshot of pkg/snapstore/snapshot.go.
func parseSnapshotPath(key string) (*snapshot, error) {
	s := &snapshot{key: key}
	at, old := strings.LastIndex(key, "v1/"), true
	if at < 0 {
		at, old = strings.LastIndex(key, "v2/"), false
	}
	if at < 0 {
		return nil, &snapshotNameError{key, "there is neither v1/ nor v2/ in it"}
	}
	prefix, rest := key[:at+3], key[at+3:]
	parts, directory := strings.Split(rest, "/"), ""
	if len(parts) > 3 {
		return nil, &snapshotNameError{rest, "there are too many slashes in it"}
	}
	if old {
		s.chunk = len(parts) == 3
		directory, s.name = parts[0], path.Join(parts[1:]...)
	} else {
		s.chunk = len(parts) == 2
		s.name = path.Join(parts...)
	}
	if rest, ok := strings.CutSuffix(key, s.name); ok {
		s.name = key[len(rest):] // which needs no memory of its own
	}
	s.elsewhere = path.Join(prefix, directory, s.name) != key
	return s, s.parseName()
}

// parseName reads kind, revisions, time and endings.
func (s *snapshot) parseName() error {
	refuse := func(why string) error { return &snapshotNameError{s.name, why} }
	parts := strings.Split(s.name, "-")
	switch {
	case len(parts) != 4:
		return refuse("it has not four parts with a - between them")
	case parts[0] != snapshotFull && parts[0] != snapshotDelta:
		return refuse("it begins with neither " + snapshotFull + " nor " + snapshotDelta)
	}
	s.full = parts[0] == snapshotFull
	var err error
	if s.first, err = strconv.ParseInt(parts[1], 10, 64); err != nil {
		return refuse("its first revision is no number")
	}
	if s.last, err = strconv.ParseInt(parts[2], 10, 64); err != nil {
		return refuse("its last revision is no number")
	}
	if s.first > s.last {
		return refuse("its first revision is above its last")
	}
	ending, _, _ := strings.Cut(parts[3], "/")
	endings := strings.Split(ending, ".")
	seconds, err := strconv.ParseInt(endings[0], 10, 64)
	if err != nil {
		return refuse("its time is no number")
	}
	s.named = time.Unix(seconds, 0).UTC()
	if len(endings) > 1 {
		if s.compression = ending[len(endings[0]) : len(endings[0])+1+len(endings[1])]; s.compression == snapshotFinal {
			s.compression = ""
		}
		s.final = "."+endings[len(endings)-1] == snapshotFinal
	}
	return nil
}

// snapshotCounts counts what lies under the prefix of an entry.
type snapshotCounts struct {
	// fulls, deltas and chunks are snapshots by name, excluded ones too, each key once; bytes is the size of the fulls and deltas.
	fulls, deltas, chunks, bytes int64
	// unreadable are keys that etcd-backup-restore looks at and ignores, others those that it does not look at.
	unreadable, others int64
	// versions and markers are what was listed.
	versions, markers int64
}

// snapshotList reads the list of what lies under the prefix of an entry, page by page, in the order of keys.
type snapshotList struct {
	base   string
	counts snapshotCounts
	// now is the store's time, earliest when the oldest of all snapshots was stored.
	now, earliest time.Time
	// unreadable are the first names that etcd-backup-restore ignores.
	unreadable []string

	fulls, deltas keptSnapshots
	at            snapshotKey
	// all are the snapshots that were kept, in the order that a restore goes by, once the list has ended.
	all []*snapshot
	// untagged says that the list does not tell what is excluded, though its store could.
	untagged bool
}

// snapshotKey is the key that the list has come to. Its versions may go on in the next page.
type snapshotKey struct {
	key string
	// snapshot is nil if the name is none of a snapshot, for the reason err.
	snapshot *snapshot
	err      error
	// read says that a version was seen that a restore can read, markers that a delete marker was.
	read, marked bool
	versions     int32
	previous     version
}

// newSnapshotList is for the entry whose name without source- is base.
func newSnapshotList(base string) *snapshotList {
	return &snapshotList{base: base, fulls: keptSnapshots{limit: maxFulls}, deltas: keptSnapshots{limit: maxDeltas}}
}

// add reads a page.
func (l *snapshotList) add(p page) {
	l.now = p.now
	// In a page of S3 delete markers come behind versions.
	slices.SortStableFunc(p.versions, func(v, w version) int { return cmp.Compare(v.key, w.key) })
	for _, v := range p.versions {
		if v.key != l.at.key {
			l.next(v.key)
		}
		l.addVersion(v)
	}
}

// addVersion adds a version or a delete marker of the key that the list has come to.
func (l *snapshotList) addVersion(v version) {
	at := &l.at
	switch {
	case v.upload:
		return
	case v.marker:
		l.counts.markers++
		at.marked = true
		return
	}
	l.counts.versions++
	at.versions++
	s := at.snapshot
	if s == nil {
		return
	}
	if v.leaves && v.id != "" {
		// Azure reads a blob by its name, which is its current version.
		at.previous = v
		return
	}
	// Of several with the same time etcd-backup-restore takes the one that is listed first.
	if at.read && !v.created.Before(s.stored) {
		return
	}
	at.read = true
	s.of(v)
}

// of notes what the store says of the version that a restore reads.
func (s *snapshot) of(v version) {
	s.id, s.size, s.stored, s.until, s.held = v.id, v.size, v.created, v.until, v.held
	s.lockKnown = s.held || !s.until.IsZero()
	s.excluded = included
	if v.excluded {
		s.excluded = excluded
	}
}

// next goes on to another key.
func (l *snapshotList) next(key string) {
	l.finish()
	l.at = snapshotKey{key: key}
	if l.at.snapshot, l.at.err = parseSnapshot(l.base, key); l.at.err != nil {
		l.at.snapshot = nil
	}
}

// finish counts the key that the list has come to the end of, and keeps its snapshot.
func (l *snapshotList) finish() {
	at := l.at
	l.at = snapshotKey{}
	s := at.snapshot
	switch {
	case at.versions == 0:
		return // all that is left are delete markers
	case s == nil && !isSnapshotKey(l.base, at.key):
		l.counts.others++
		return
	case s == nil:
		l.counts.unreadable++
		if len(l.unreadable) < maxProblems {
			l.unreadable = append(l.unreadable, at.key)
		}
		return
	}
	if !at.read {
		s.of(at.previous)
		s.lost = true
	}
	s.versions, s.marked = at.versions, at.marked
	if s.marked || l.untagged {
		s.excluded = exclusionUnknown
	}
	if s.chunk {
		l.counts.chunks++
		return
	}
	if l.earliest.IsZero() || s.stored.Before(l.earliest) {
		l.earliest = s.stored
	}
	l.counts.bytes += s.size
	if s.full {
		l.counts.fulls++
		l.fulls.add(s)
	} else {
		l.counts.deltas++
		l.deltas.add(s)
	}
}

// end is called behind the last page.
func (l *snapshotList) end() {
	l.finish()
	l.all = slices.Concat(l.fulls.all, l.deltas.all)
	slices.SortFunc(l.all, (*snapshot).compare)
}

// cut says that what was not kept may belong to a chain that begins with a full snapshot, nil if none is left.
func (l *snapshotList) cut(full *snapshot) bool {
	if full == nil {
		return l.fulls.highest != nil || l.deltas.highest != nil
	}
	return l.deltas.highest != nil && l.deltas.highest.last >= full.last
}

// keptSnapshots are those with the highest revisions out of any number, at most twice limit.
type keptSnapshots struct {
	limit int
	all   []*snapshot
	// highest is that of those that were dropped.
	highest *snapshot
}

func (k *keptSnapshots) add(s *snapshot) {
	if k.highest != nil && s.compare(k.highest) < 0 {
		return
	}
	if k.all = append(k.all, s); len(k.all) < 2*k.limit {
		return
	}
	slices.SortFunc(k.all, (*snapshot).compare)
	k.highest = k.all[k.limit-1]
	k.all = slices.Clone(k.all[k.limit:])
}
