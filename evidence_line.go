// The time line of a bucket's lock, worked out from its statements: when it was locked as promised, when it was known not to be, and
// when nobody knows.
//
// Rules:
//   - Locked is only what a verified statement claims: without a gap since a time until the store's last answer, or earlier.
//   - What was found weakened counts as not locked until it was repaired, and so does the time since the look before: a gap is shown as
//     long as it can have been.
//   - The rest is not known, also before the first statement and behind the last.

package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// lineState is what is known of a bucket for a while.
type lineState int

const (
	// lineUnknown: nobody has looked, or the store gave no answer, or the statement that would tell is not there.
	lineUnknown lineState = iota
	// lineBefore: the evidence of the bucket had not begun.
	lineBefore
	// lineLocked: locked, for as long as was promised.
	lineLocked
	// lineOpen: not locked, or for less than was promised.
	lineOpen
)

// lineSpan is a stretch of a time line. why is for humans, empty where nothing is to be said.
type lineSpan struct {
	from, to time.Time
	state    lineState
	why      string
}

func (s lineSpan) length() time.Duration { return s.to.Sub(s.from) }

// maxLineHole is how long nothing may be known between two looks that are as far apart as looks are.
const maxLineHole = 30 * time.Minute

// lockLook is what a statement says of the lock.
type lockLook struct {
	at    time.Time
	state lineState
	why   string
	// since is zero if nothing is claimed about the time before; earlier are other times that are claimed.
	since   time.Time
	earlier []evidenceStretch
	first   bool // that there is none before
	// hole is how far apart two looks may be, broken why since is not earlier.
	hole   time.Duration
	broken string
	events []evidenceEvent
}

// lookOf reads the lock from a statement.
func lookOf(e *evidence) lockLook {
	l := lockLook{at: e.Time, first: e.Sequence == 1, broken: e.Interruption, earlier: e.Earlier,
		hole: min(2*time.Duration(e.VerifyInterval*float64(time.Second)), maxLineHole)}
	l.state, l.why = lockStateOf(e)
	if e.Observed != nil && l.state != lineUnknown {
		l.at = *e.Observed
	}
	if e.VerifiedSince != nil && !e.VerifiedSince.After(l.at) && l.state == lineLocked {
		l.since = *e.VerifiedSince
	}
	for _, event := range e.Events {
		switch event.Kind {
		case evidenceDrift, evidenceRepair, evidenceLock, evidenceCreated:
			l.events = append(l.events, event)
		}
	}
	slices.SortStableFunc(l.events, func(a, b evidenceEvent) int { return a.Time.Compare(b.Time) })
	return l
}

// promisedDays is for how long the bucket should be locked at least: what was promised, else what was asked for; 0 if it need not be.
func (e *evidence) promisedDays() int32 {
	for _, p := range []*evidencePolicy{e.Record, e.Spec} {
		if p != nil && p.Locked {
			return p.Days
		}
	}
	return 0
}

// lockStateOf says whether the bucket was locked as the store answered last, and if not, what there was.
func lockStateOf(e *evidence) (state lineState, why string) {
	p, promised := e.Policy, e.promisedDays()
	switch {
	case p == nil:
		return lineUnknown, "the store gave no answer"
	case p.Locked && p.Days > 0 && p.Days >= promised:
		return lineLocked, ""
	case p.Locked && p.Days > 0:
		why = fmt.Sprintf("locked for %s in place of %s", dayCount(p.Days), dayCount(promised))
	case p.DefaultOnly:
		why = "files could be written without retention"
	case p.Days > 0:
		why = fmt.Sprintf("a retention of %s that can be taken away", dayCount(p.Days))
	default:
		why = "no retention"
	}
	if promised == 0 {
		why += "; no lock was asked for"
	}
	return lineOpen, why
}

func dayCount(days int32) string {
	if days == 1 {
		return "1 day"
	}
	return fmt.Sprintf("%d days", days)
}

// timeline is the lock of one bucket from one time to another, without holes, from its statements in any order.
func timeline(statements []*evidence, from, to time.Time) []lineSpan {
	looks := make([]lockLook, 0, len(statements))
	for _, e := range statements {
		looks = append(looks, lookOf(e))
	}
	slices.SortStableFunc(looks, func(a, b lockLook) int { return a.at.Compare(b.at) })
	line := paint{}
	for i, l := range looks {
		if i == 0 {
			before := lineUnknown
			if l.first {
				before = lineBefore
			}
			begin := l.at
			if l.state == lineLocked && !l.since.IsZero() {
				begin = l.since
			}
			line.add(time.Time{}, begin, before, "")
			line.add(begin, l.at, l.state, l.why)
			continue
		}
		line = append(line, l.stretch(looks[i-1])...)
	}
	end := time.Time{}
	if len(looks) > 0 {
		end = looks[len(looks)-1].at
	}
	if to.After(end) {
		line.add(end, to, lineUnknown, "no later statement")
	}
	return line.joined(from, to)
}

// stretch is what is known from the look before until this one.
func (l lockLook) stretch(before lockLook) paint {
	a, b := before.at, l.at
	line := paint{}
	line.add(a, b, lineUnknown, cmp.Or(l.broken, l.why, "it was not looked at all the time"))
	if before.state == lineOpen || l.state == lineOpen && before.state == lineLocked && l.drift(a).IsZero() {
		line.set(a, b, lineOpen, cmp.Or(before.why, l.why))
	}
	for _, claimed := range l.earlier {
		line.set(claimed.From, claimed.Until, lineLocked, "")
	}
	if !l.since.IsZero() {
		since := l.since
		if before.state == lineOpen && !since.After(a) {
			since = l.lastLock(a) // it contradicts the look before
		}
		line.set(since, b, lineLocked, "")
	}
	for i, event := range l.events {
		if event.Kind == evidenceDrift {
			line.set(event.Time, l.repaired(i), lineOpen, event.Message)
		}
	}
	return line.withoutHoles(l.hole, before.state, l.state)
}

// drift is when the first drift was found behind a time; zero if none was.
func (l lockLook) drift(behind time.Time) time.Time {
	for _, event := range l.events {
		if event.Kind == evidenceDrift && event.Time.After(behind) {
			return event.Time
		}
	}
	return time.Time{}
}

// repaired is when the drift was repaired that an event tells; the time of the look if it was not.
func (l lockLook) repaired(i int) time.Time {
	end := l.at
	if l.since.After(l.events[i].Time) {
		end = l.since
	}
	for _, later := range l.events[i+1:] {
		if later.Kind != evidenceDrift && !later.Time.After(end) {
			return later.Time
		}
	}
	return end
}

// lastLock is when the bucket was locked last behind a time; the time of the look if that is not known.
func (l lockLook) lastLock(behind time.Time) time.Time {
	for _, event := range slices.Backward(l.events) {
		if event.Kind == evidenceLock && event.Time.After(behind) && !event.Time.After(l.at) {
			return event.Time
		}
	}
	return l.at
}

// paint are spans in their order, without overlaps.
type paint []lineSpan

func (p paint) first() time.Time {
	if len(p) == 0 {
		return time.Time{}
	}
	return p[0].from
}

func (p *paint) add(from, to time.Time, state lineState, why string) {
	if to.After(from) {
		*p = append(*p, lineSpan{from, to, state, why})
	}
}

// set paints over what is there, not beyond its ends.
func (p *paint) set(from, to time.Time, state lineState, why string) {
	if len(*p) == 0 {
		return
	}
	from = laterOf(from, p.first())
	if end := (*p)[len(*p)-1].to; to.After(end) {
		to = end
	}
	if !to.After(from) {
		return
	}
	var painted paint
	placed := false
	for _, s := range *p {
		if s.from.Before(from) {
			painted.add(s.from, earlierOf(s.to, from), s.state, s.why)
		}
		if !placed && s.to.After(from) {
			painted.add(from, to, state, why)
			placed = true
		}
		if s.to.After(to) {
			painted.add(laterOf(s.from, to), s.to, s.state, s.why)
		}
	}
	*p = painted
}

func earlierOf(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// withoutHoles gives what lies between two looks, no longer than the time from one look to the next, to the worse of its
// neighbours. left and right are those of the whole.
func (p paint) withoutHoles(interval time.Duration, left, right lineState) paint {
	for i := range p {
		if p[i].state == lineUnknown && p[i].length() <= interval {
			before, behind := lineSpan{state: left}, lineSpan{state: right}
			if i > 0 {
				before = p[i-1]
			}
			if i+1 < len(p) {
				behind = p[i+1]
			}
			if before.state < lineLocked || behind.state < lineLocked {
				continue
			}
			if before.state < behind.state {
				before = behind
			}
			p[i].state, p[i].why = before.state, before.why
		}
	}
	return p
}

// joined is the part between two times, neighbours in the same state as one, with what is said of the first.
func (p paint) joined(from, to time.Time) []lineSpan {
	var line []lineSpan
	for _, s := range p {
		s.from, s.to = laterOf(s.from, from), earlierOf(s.to, to)
		if !s.to.After(s.from) {
			continue
		}
		if n := len(line); n > 0 && line[n-1].state == s.state {
			line[n-1].to = s.to
			continue
		}
		line = append(line, s)
	}
	return line
}
