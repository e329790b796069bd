// What the passes over a bucket leave for its evidence: the store's last answer, since when it has been good without a gap, and what
// has happened since the last statement. In memory, bounded, by our clock; a nil log takes nothing and costs nothing.
//
// Rules:
//   - Verified is a bucket whose record (to an observer: spec or record) has a lock, which the store has confirmed at each look, no two
//     of which lie further apart than what makes it unknown (bucket_freshness.go).
//   - Whatever ends that is told in the next statement, and so is a start of the daemon.

package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxEvidenceEvents bounds what is remembered of a bucket between two statements, maxEvidenceEarlier the times for which it was
	// verified, maxEvidenceText each text, in bytes.
	maxEvidenceEvents, maxEvidenceEarlier = 100, 50
	maxEvidenceText                       = 500
)

// evidenceLog is what is remembered of all buckets. It is safe for concurrent use.
type evidenceLog struct {
	mu      sync.Mutex
	buckets map[string]*evidenceNotes
}

func newEvidenceLog() *evidenceLog { return &evidenceLog{buckets: map[string]*evidenceNotes{}} }

// evidenceNotes are what is remembered of one bucket. All times are by our clock.
type evidenceNotes struct {
	// begun is when the bucket was first looked at by this process, observed when the store answered last, with live.
	begun, observed time.Time
	live            BucketState
	// limit is how long an answer counts.
	limit time.Duration
	// offset is how far our clock is ahead of the store's, as it has told its time last; timeless says that its last answer did not.
	offset   time.Duration
	timeless bool
	// since is since when the bucket is verified, zero if it is not; interruption is what has ended it, or how it began. stated is
	// since by the store's clock: it stays as it is, whatever becomes of the clocks.
	since, stated time.Time
	interruption  string
	// earlier are such times that have ended since the last statement.
	earlier     []evidenceStretch
	events      []evidenceEvent
	leftOut     int64
	probe       []evidenceAttack
	unprotected *int64
}

// change changes what is noted of a bucket that is known.
func (l *evidenceLog) change(bucket string, f func(*evidenceNotes)) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.buckets[bucket]; n != nil {
		f(n)
	}
}

// saw notes what the store has just answered about a bucket, and what its record or, to an observer, its spec makes one expect. An
// answer counts for limit. ahead is how far our clock is ahead of the store's; nil if its answer did not tell.
func (l *evidenceLog) saw(bucket string, live BucketState, expected Policy, limit time.Duration, ahead *time.Duration) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	n := l.buckets[bucket]
	if n == nil {
		n = &evidenceNotes{begun: now, interruption: "bucketwarden started"}
		l.buckets[bucket] = n
	}
	if gap := now.Sub(n.observed); !n.observed.IsZero() && gap > n.limit {
		n.add(now, evidenceGap, fmt.Sprintf("Nobody has heard from the store about the bucket for %s.", gap.Round(time.Second)))
		if !n.since.IsZero() {
			n.end("nobody heard from the store about the bucket until " + formatTime(now))
		}
	}
	if n.timeless = ahead == nil; !n.timeless {
		n.offset = *ahead
	}
	switch {
	case !expected.Locked:
		n.end("no lock was expected of the bucket")
	case !live.Exists || live.Policy.weakerThan(expected):
		n.end("the store said " + live.Policy.String() + " at " + formatTime(now))
	case n.since.IsZero():
		n.since, n.stated = now, *storeTime(now, n.offset)
	}
	n.observed, n.live, n.limit = now, live, limit
}

// unanswered says that the store has not answered for so long that what it said does not count.
func (n *evidenceNotes) unanswered(now time.Time) bool {
	return n.observed.IsZero() || now.Sub(n.observed) > n.limit
}

// end notes that the bucket is not verified any more, and until when it was: until the answer before this one.
func (n *evidenceNotes) end(why string) {
	if n.observed.After(n.since) && !n.since.IsZero() && len(n.earlier) < maxEvidenceEarlier {
		n.earlier = append(n.earlier, evidenceStretch{From: n.since, Until: n.observed})
	}
	n.since, n.interruption = time.Time{}, why
}

// note notes something that has happened to a bucket.
func (l *evidenceLog) note(bucket, kind, format string, args ...any) {
	l.change(bucket, func(n *evidenceNotes) { n.add(time.Now(), kind, fmt.Sprintf(format, args...)) })
}

func (n *evidenceNotes) add(at time.Time, kind, message string) {
	if len(n.events) == maxEvidenceEvents {
		n.leftOut++
		return
	}
	n.events = append(n.events, evidenceEvent{Time: at, Kind: kind, Message: cut(strings.ToValidUTF8(message, "?"), maxEvidenceText)})
}

// probed notes what attacks with some credentials came to; those before with the same credentials do not count any more.
func (l *evidenceLog) probed(bucket, credentials string, attacks []evidenceAttack) {
	l.change(bucket, func(n *evidenceNotes) {
		n.probe = slices.DeleteFunc(slices.Clone(n.probe), func(a evidenceAttack) bool { return a.Credentials == credentials })
		n.probe = append(n.probe, attacks...)
	})
}

// stated is what a statement says of the attacks.
func (r probeResult) stated() (attacks []evidenceAttack) {
	for _, a := range r.attacks {
		attacks = append(attacks, evidenceAttack{Time: r.at, Attack: a.name, Credentials: r.credentials, Outcome: a.outcome.text(),
			Message: a.detail})
	}
	return attacks
}

// countUnprotected notes how many versions are not retained that should be; nil if that is not known.
func (l *evidenceLog) countUnprotected(bucket string, count *int64) {
	l.change(bucket, func(n *evidenceNotes) { n.unprotected = count })
}

// get is what is noted of a bucket; false if nothing is.
func (l *evidenceLog) get(bucket string) (evidenceNotes, bool) {
	if l == nil {
		return evidenceNotes{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.buckets[bucket]
	if n == nil {
		return evidenceNotes{}, false
	}
	notes := *n
	notes.events, notes.earlier = slices.Clone(n.events), slices.Clone(n.earlier)
	return notes, true
}

// told forgets the events up to a time, which a statement has told, and the times for which the bucket was verified until then.
func (l *evidenceLog) told(bucket string, until time.Time, leftOut int64) {
	l.change(bucket, func(n *evidenceNotes) {
		n.events = slices.DeleteFunc(n.events, func(e evidenceEvent) bool { return !e.Time.After(until) })
		n.earlier = slices.DeleteFunc(n.earlier, func(s evidenceStretch) bool { return !s.Until.After(until) })
		n.leftOut -= min(leftOut, n.leftOut)
	})
}

// goOn notes that an earlier process had verified a bucket since a time, by the store's clock, and looked at it last at another one, by
// ours: without a gap, it counts on. With one it still counts for what it was.
func (l *evidenceLog) goOn(bucket string, stated, looked time.Time) {
	l.change(bucket, func(n *evidenceNotes) {
		since := stated.Add(n.offset)
		switch before := (evidenceStretch{From: since, Until: looked}); {
		case !n.since.IsZero() && n.since.Equal(n.begun) && n.since.Sub(looked) <= n.limit && since.Before(n.since):
			n.since, n.stated, n.interruption = since, stated, ""
		case looked.After(since) && looked.Before(n.begun) && !slices.Contains(n.earlier, before):
			n.earlier = slices.Insert(n.earlier, 0, before)
		}
	})
}

// forget forgets a bucket that is gone or not ours any more.
func (l *evidenceLog) forget(bucket string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.buckets, bucket)
}
