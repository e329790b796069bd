// What a restore would take of an entry's snapshots, and what is wrong with them. Pure, as snapshot.go.
//
// Rules:
//   - A restore takes the last full snapshot and every delta behind it, and fails at the first that does not fit
//     (gardener/etcd-backup-restore pkg/miscellaneous/miscellaneous.go, pkg/snapshot/restorer/restorer.go).
//   - A chain without a fault is complete, never "will restore": only its names and what the store lists were looked at.
//   - What cannot be told is not known, and never fine.
//   - Whoever can write can forge a name. One that fits neither the store's time nor its neighbours is suspicious.

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// maxProblems bounds those of a kind that are kept; all are counted.
	maxProblems = 20

	// nameAhead is how far a time in a name may be ahead of the store's, and nameBehind behind it: uploads take their time, and
	// clocks differ. copied is how long a copy of all backups to another bucket may take: it leaves old names in new objects.
	nameAhead  = 10 * time.Minute
	nameBehind = time.Hour
	copied     = 24 * time.Hour

	// An etcd may get on by leapSlack revisions at once, and in a second by leapFactor times what is usual for it, or times one, but
	// not by more than leapMost. Whatever exceeds that is a leap.
	leapSlack  = 500000
	leapFactor = 50
	leapMost   = 2000
)

// problemKind is what is wrong with an entry's snapshots.
type problemKind string

// Problems of the chain: a restore fails.
const (
	// problemNoFull: there is no full snapshot, so nothing would be restored.
	problemNoFull problemKind = "NoFull"
	// problemGap: revisions are in no snapshot of the chain.
	problemGap problemKind = "Gap"
	// problemOverlap: revisions are in two deltas, so that they would be applied twice.
	problemOverlap problemKind = "Overlap"
	// problemNothingNew: the first delta has nothing that the full has not, and would be applied from its start.
	problemNothingNew problemKind = "NothingNew"
	// problemEmpty: an object of the chain has no bytes.
	problemEmpty problemKind = "Empty"
	// problemCompression: the ending of the name is none that etcd-backup-restore can decompress.
	problemCompression problemKind = "Compression"
	// problemElsewhere: etcd-backup-restore takes the name, but would read another key.
	problemElsewhere problemKind = "Elsewhere"
	// problemLost: the object is gone, only an earlier version of it is listed.
	problemLost problemKind = "Lost"
)

// Problems that show a possible forgery.
const (
	// problemLeap: a revision is far beyond what the etcd can have got to.
	problemLeap problemKind = "Leap"
	// problemAhead: snapshots that were taken later have lower revisions.
	problemAhead problemKind = "Ahead"
	// problemFuture: the name claims a time after that at which it was stored.
	problemFuture problemKind = "Future"
	// problemLate: the name claims a time long before that at which it was stored.
	problemLate problemKind = "Late"
)

// What is worth to know.
const (
	// problemExcluded: a restore leaves the snapshot out.
	problemExcluded problemKind = "Excluded"
	// problemExclusionUnknown: it could not be told whether a restore leaves the snapshot out.
	problemExclusionUnknown problemKind = "ExclusionUnknown"
	// problemUnreadable: etcd-backup-restore ignores the name.
	problemUnreadable problemKind = "Unreadable"
	// problemSameRevision: two full snapshots have the same revision; a restore takes the one with the later name.
	problemSameRevision problemKind = "SameRevision"
	// problemTooMany: there are more snapshots than are looked at, and the chain may begin among those that were not.
	problemTooMany problemKind = "TooMany"
)

// breaks says that a restore fails because of it.
func (k problemKind) breaks() bool {
	switch k {
	case problemNoFull, problemGap, problemOverlap, problemNothingNew, problemEmpty, problemCompression, problemElsewhere, problemLost:
		return true
	}
	return false
}

// suspicious says that it may show a forgery.
func (k problemKind) suspicious() bool {
	switch k {
	case problemLeap, problemAhead, problemFuture, problemLate:
		return true
	}
	return false
}

// problem is one thing that is wrong.
type problem struct {
	kind problemKind
	// snapshot is the one that it is about, before its neighbour, if it is about two; nil if it is about none.
	snapshot, before *snapshot
	// key is that of a name that is ignored.
	key string
	// from and to are the revisions of a gap or an overlap.
	from, to int64
}

// String is a sentence without a stop.
func (p problem) String() string {
	name := plainName(p.key)
	if p.snapshot != nil {
		name = plainName(p.snapshot.name)
	}
	before := ""
	if p.before != nil {
		before = plainName(p.before.name)
	}
	switch p.kind {
	case problemNoFull:
		return "there is no full snapshot, so a restore would find nothing to begin with"
	case problemGap:
		return fmt.Sprintf("revisions %d to %d are in no snapshot between %s and %s, where a restore fails", p.from, p.to, before, name)
	case problemOverlap:
		return fmt.Sprintf("revisions %d to %d are in %s and again in %s, where a restore fails", p.from, p.to, before, name)
	case problemNothingNew:
		return fmt.Sprintf("%s has nothing that %s has not, but a restore applies it again and fails", name, before)
	case problemEmpty:
		return fmt.Sprintf("%s is empty, where a restore fails", name)
	case problemCompression:
		return fmt.Sprintf("%s ends in %q, which a restore cannot decompress", name, p.snapshot.compression)
	case problemElsewhere:
		return fmt.Sprintf("a restore takes %s for %s, looks for it elsewhere and fails", plainName(p.snapshot.key), name)
	case problemLost:
		return fmt.Sprintf("%s is gone, only an earlier version of it is listed, and a restore fails to read it", name)
	case problemLeap:
		return fmt.Sprintf("%s claims revision %d, far beyond the %d before it: a restore takes it for the newest, whatever is in it, and no "+
			"newer snapshot counts until the etcd has got there", name, p.snapshot.last, p.before.last)
	case problemAhead:
		return fmt.Sprintf("%s claims revision %d, but %s, which was taken later, ends at %d: a restore takes the former for the newer, "+
			"whatever is in it", name, p.snapshot.last, before, p.before.last)
	case problemFuture:
		return fmt.Sprintf("%s claims to be of %s, but was stored at %s, before that", name, formatTime(p.snapshot.named),
			formatTime(p.snapshot.stored))
	case problemLate:
		return fmt.Sprintf("%s claims to be of %s, but was stored as late as %s", name, formatTime(p.snapshot.named),
			formatTime(p.snapshot.stored))
	case problemExcluded:
		return fmt.Sprintf("%s is excluded, a restore leaves it out", name)
	case problemExclusionUnknown:
		return fmt.Sprintf("whether a restore leaves %s out is not known, since its tags could not be read", name)
	case problemUnreadable:
		return fmt.Sprintf("%s lies among the snapshots, but its name is none", name)
	case problemSameRevision:
		return fmt.Sprintf("%s and %s are full snapshots of the same revision; a restore takes the former", name, before)
	case problemTooMany:
		return "there are more snapshots than can be looked at, so the chain is not known"
	}
	return string(p.kind)
}

// plainName is a name as it can be shown: others choose it, and it may have characters that do something to a terminal.
func plainName(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !strconv.IsPrint(r) }) || !utf8.ValidString(name) {
		return strconv.Quote(name)
	}
	return name
}

// formatTime is for sentences; a name may claim a year that has more than four digits.
func formatTime(t time.Time) string {
	if t = t.UTC(); t.Year() < 0 || t.Year() > 9999 {
		return fmt.Sprintf("second %d", t.Unix())
	}
	return t.Format(time.RFC3339)
}

// chainLock is until when something is locked: the chain until the first of its links is not.
type chainLock struct {
	// known is false if it is not known of each link; nothing else means anything then.
	known bool
	// locked is false if a link is not locked any more, or never was.
	locked bool
	// until is when the first lock ends; zero if none does, since a legal hold keeps each.
	until time.Time
}

// chain is what a restore would take, and what there is beside it.
type chain struct {
	// now is the store's time at which it was listed.
	now time.Time
	// all are the snapshots in the order that a restore goes by, the newest last, excluded ones too. links are those that a
	// restore takes in their order, the full first.
	all, links []*snapshot
	// known is false if it could not be told what a restore takes.
	known bool
	// complete: nothing that was looked at makes a restore fail. revision is what it would reach then; else how far the chain
	// is without a fault, 0 if there is no full snapshot.
	complete bool
	revision int64
	// reached is the last link that has no fault; nil if there is none.
	reached *snapshot
	// full and delta are the newest that are not excluded; nil if there are none.
	full, delta *snapshot
	counts      snapshotCounts
	// problems are at most maxProblems of each kind, numbers tells how many there are of each.
	problems []problem
	numbers  map[problemKind]int
	// suspects are the snapshots that look forged, and one reason each.
	suspects map[*snapshot]problemKind
}

// excluded is how many snapshots a restore leaves out.
func (c *chain) excluded() int { return c.numbers[problemExcluded] }

// suspicious is how many signs of a forgery there are.
func (c *chain) suspicious() (n int) {
	for kind, number := range c.numbers {
		if kind.suspicious() {
			n += number
		}
	}
	return n
}

// has says whether a snapshot is a link.
func (c *chain) has(s *snapshot) bool { return slices.Contains(c.links, s) }

// lock is until when every link is locked.
func (c *chain) lock() chainLock {
	if !c.known || len(c.links) == 0 {
		return chainLock{}
	}
	lock := chainLock{known: true, locked: true}
	for _, s := range c.links {
		switch {
		case !s.lockKnown:
			return chainLock{}
		case s.held:
		case !s.until.After(c.now):
			lock.locked, lock.until = false, time.Time{}
		case lock.locked && (lock.until.IsZero() || s.until.Before(lock.until)):
			lock.until = s.until
		}
	}
	return lock
}

func (c *chain) note(p problem) {
	if p.kind.suspicious() && p.snapshot != nil {
		if c.suspects == nil {
			c.suspects = map[*snapshot]problemKind{}
		}
		if at := c.suspects[p.snapshot]; at != problemFuture && at != problemLate {
			c.suspects[p.snapshot] = p.kind
		}
	}
	if c.numbers[p.kind]++; c.numbers[p.kind] <= maxProblems {
		c.problems = append(c.problems, p)
	}
}

// chain tells what a restore would take of a list that has ended.
func (l *snapshotList) chain() *chain {
	c := newChain(l.all, l.now, l.earliest)
	c.counts = l.counts
	for _, key := range l.unreadable {
		c.note(problem{kind: problemUnreadable, key: key})
	}
	if l.counts.unreadable > 0 {
		c.numbers[problemUnreadable] = int(l.counts.unreadable)
	}
	if l.cut(c.full) {
		c.note(problem{kind: problemTooMany})
		c.known, c.complete, c.revision, c.reached = false, false, 0, nil
	}
	return c
}

// newChain tells what a restore would take of snapshots in the order that it goes by. Their exclusions may be changed, and it
// be called again, to know what would be then. earliest is when the oldest of the bucket was stored.
func newChain(all []*snapshot, now, earliest time.Time) *chain {
	c := &chain{now: now, all: all, known: true, numbers: map[problemKind]int{}}
	taken := make([]*snapshot, 0, len(all))
	for _, s := range all {
		switch {
		case s.chunk:
			continue
		case s.excluded == excluded:
			c.note(problem{kind: problemExcluded, snapshot: s})
			continue
		case s.excluded == exclusionUnknown:
			c.note(problem{kind: problemExclusionUnknown, snapshot: s})
		}
		taken = append(taken, s)
		if s.full {
			c.full = s
		} else {
			c.delta = s
		}
	}
	c.pick(taken)
	c.follow()
	c.suspect(taken, earliest)
	return c
}

// pick finds the links.
func (c *chain) pick(taken []*snapshot) {
	at := len(taken)
	for at > 0 {
		at--
		// What is behind the last full that is surely taken decides; one that may be left out makes all behind it uncertain.
		if taken[at].excluded == exclusionUnknown {
			c.known = false
		}
		if taken[at].full {
			c.links = taken[at:]
			return
		}
	}
}

// follow goes along the links as a restore does.
func (c *chain) follow() {
	c.complete = true
	fault := func(p problem) {
		c.note(p)
		c.complete = false
	}
	if len(c.links) == 0 {
		fault(problem{kind: problemNoFull})
	}
	for i, s := range c.links {
		switch {
		case s.lost:
			fault(problem{kind: problemLost, snapshot: s})
		case s.elsewhere:
			fault(problem{kind: problemElsewhere, snapshot: s})
		case s.size == 0:
			fault(problem{kind: problemEmpty, snapshot: s})
		}
		if !compressions[s.compression] {
			fault(problem{kind: problemCompression, snapshot: s})
		}
		if i > 0 {
			before := c.links[i-1]
			switch {
			case s.first-1 > before.last:
				fault(problem{kind: problemGap, snapshot: s, before: before, from: before.last + 1, to: s.first - 1})
			case i == 1 && s.last == before.last:
				fault(problem{kind: problemNothingNew, snapshot: s, before: before})
			case i > 1 && s.first <= before.last:
				fault(problem{kind: problemOverlap, snapshot: s, before: before, from: s.first, to: before.last})
			}
		}
		if c.complete {
			c.reached, c.revision = s, s.last
		}
	}
	c.complete = c.complete && c.known
}

// suspect looks for names that fit neither the store's time nor their neighbours.
func (c *chain) suspect(taken []*snapshot, earliest time.Time) {
	var before, latest *snapshot
	rate := usualRate(taken)
	for _, s := range taken {
		// In seconds: a name may claim a time that no time.Duration reaches.
		switch late := s.stored.Unix() - s.named.Unix(); {
		case s.stored.IsZero():
		case late < -int64(nameAhead.Seconds()):
			c.note(problem{kind: problemFuture, snapshot: s})
		case late > int64(nameBehind.Seconds()) && s.stored.Sub(earliest) > copied:
			c.note(problem{kind: problemLate, snapshot: s})
		}
		if before != nil {
			if leaps(before, s, rate) {
				c.note(problem{kind: problemLeap, snapshot: s, before: before})
			}
			if s.full && before.full && s.last == before.last {
				c.note(problem{kind: problemSameRevision, snapshot: s, before: before})
			}
		}
		// A delta that was taken later has a higher revision; a full may be one that was compacted from older ones. A copy to
		// another bucket stores in any order, but keeps the names.
		if latest != nil && latest.taken().Sub(s.stored) > nameAhead && s.last > latest.last {
			c.note(problem{kind: problemAhead, snapshot: s, before: latest})
		}
		if !s.full && (latest == nil || s.taken().After(latest.taken())) {
			latest = s
		}
		before = s
	}
}

// leaps says that a snapshot is further beyond another one than the etcd can have got in the time between.
func leaps(before, s *snapshot, rate float64) bool {
	return s.last-before.last > leapSlack+int64(rate*secondsBetween(before, s))
}

// secondsBetween is the time between two snapshots, by the store, or by their names where both were copied.
func secondsBetween(before, s *snapshot) float64 {
	return min(1e9, max(0, s.stored.Sub(before.stored).Seconds(), s.taken().Sub(before.taken()).Seconds()))
}

// usualRate is how many revisions in a second are no leap yet. The median does not heed a few forgeries.
func usualRate(taken []*snapshot) float64 {
	var rates []float64
	for i := 1; i < len(taken); i++ {
		if seconds := secondsBetween(taken[i-1], taken[i]); seconds >= 1 {
			rates = append(rates, float64(taken[i].last-taken[i-1].last)/seconds)
		}
	}
	if len(rates) == 0 {
		return leapFactor
	}
	slices.Sort(rates)
	return min(leapMost, leapFactor*max(1, rates[len(rates)/2]))
}
