// What a report says: the answer in one sentence, the time line of each bucket's lock, until when each cluster's backups are
// locked, and what has happened. It is worked out from verified statements and from what verification has found; no request.
//
// Rules:
//   - Evidence that is not whole is said first. What is not known is never counted as locked.
//   - Every text in a statement is somebody else's: it is shortened here and escaped where the page is written.
//   - However much evidence there is, the report stays short: it is summed up, and what is left out is counted.

package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Limits of what a report lists.
const (
	maxReportLines   = 60
	maxReportBars    = 30
	maxReportGaps    = 100
	maxReportEvents  = 300
	maxReportEntries = 1500
	maxReportFound   = 50
	maxReportAttacks = 30
	maxReportText    = 240
)

// reportVerdict is the answer in a word, the worst last.
type reportVerdict int

const (
	verdictLockedAll reportVerdict = iota
	verdictNotKnown
	verdictGaps
	verdictNotWhole
)

// reportInput is all that a report is made of.
type reportInput struct {
	verified []verifiedEvidence
	findings []evidenceFinding
	// from and to are what was asked for; zero: as far as the evidence goes.
	from, to time.Time
	// made is when the report is made, by the clock of who makes it, and program what makes it.
	made    time.Time
	program string
}

// reportKey is the id of a public key, and how many statements it has signed.
type reportKey struct {
	ID         string
	Statements int
}

// report is what the page shows.
type report struct {
	From, To, Made time.Time
	Program        string
	Verdict        reportVerdict
	Sentence       string
	Findings       []evidenceFinding
	FindingsMore   int
	Statements     int
	Buckets        []*reportBucket
	Gaps           []reportGap
	GapsMore       int
	// Entries are the backups as of the last statement of their bucket, the soonest free first.
	Entries     []*reportEntry
	EntriesMore int
	// Free counts them by what is known of their lock.
	Free          map[freeState]int
	Events        []reportEvent
	EventsMore    int
	EventsLeftOut int64
	Attacks       []reportAttack
	NotClaimed    []string
	Keys          []reportKey
}

// LastDay is a time within the last day.
func (r *report) LastDay() time.Time { return laterOf(r.From, r.To.Add(-1)) }

// reportBucket is a bucket with its time line.
type reportBucket struct {
	// Name is shown; Subject tells it from others of the same name.
	Name, Subject string
	Last          *evidence
	First         time.Time
	Statements    int
	Line          []lineSpan
	// How long it was locked and so on. IsOpen says that it is not at the end.
	Locked, Open, Unknown time.Duration
	IsOpen                bool
	Opens                 int // how many gaps
	OpenAt                time.Time
	// Begins is when the evidence begins, if that is within the report.
	Begins time.Time
	// LockedBy is who locked the policy, where the store tells.
	LockedBy string
	NoLock   bool // nobody has asked for one
}

// reportGap is a time at which a bucket was not locked, or not known to be.
type reportGap struct {
	Bucket string
	lineSpan
}

// freeState is what is known of until when backups are locked, in the order in which they become free.
type freeState int

const (
	freeNow     freeState = iota // not locked
	freeUnknown                  // not known
	freeAt                       // locked until a time
	freeNever                    // kept without an end
)

// reportEntry are the backups of a cluster.
type reportEntry struct {
	Bucket string
	evidenceEntry
	Free freeState
	At   time.Time // when the last statement was made
}

// Kinds of reportEvent beside those of evidence.
const (
	reportHistory     = "history"     // the store's own list of changes has it
	reportAttacked    = "attacked"    // an attack on a canary succeeded
	reportUnproven    = "unproven"    // an attack was refused for another reason than the lock
	reportUnprotected = "unprotected" // versions that should be retained are not
	reportBackups     = "backups"     // backups that are not as they should be
	reportHardening   = "hardening"   // the bucket is not hardened
	reportRotation    = "rotation"    // another key signs from now on
)

// reportEvent is something that has happened, or the same several times on a day.
type reportEvent struct {
	Time         time.Time
	Bucket, Kind string
	Text         string
	Times        int
	rank         int // in badEvents
}

// Bad says that the event needs an explanation.
func (e reportEvent) Bad() bool {
	return slices.Contains([]string{reportAttacked, reportUnprotected, reportBackups, evidenceDrift, evidenceForeign}, e.Kind)
}

// reportAttack counts what attacks of one kind came to.
type reportAttack struct {
	Bucket, Attack, Credentials string
	Lock, Other, Succeeded      int
	Last                        time.Time
}

// newReport works out a report.
func newReport(in reportInput) *report {
	r := &report{Made: in.made.UTC(), Program: shortText(in.program), Free: map[freeState]int{}, Statements: len(in.verified)}
	byBucket := map[string][]*evidence{}
	for i := range in.verified {
		e := &in.verified[i].Statement
		subject := bucketOf(e)
		byBucket[subject] = append(byBucket[subject], e)
		if at := slices.IndexFunc(r.Keys, func(k reportKey) bool { return k.ID == in.verified[i].KeyID }); at >= 0 {
			r.Keys[at].Statements++
		} else {
			r.Keys = append(r.Keys, reportKey{shortText(in.verified[i].KeyID), 1})
		}
	}
	names := map[string]int{}
	for subject, statements := range byBucket {
		slices.SortStableFunc(statements, func(a, b *evidence) int { return a.Time.Compare(b.Time) })
		last := statements[len(statements)-1]
		names[last.Bucket.Name]++
		r.Buckets = append(r.Buckets, &reportBucket{Name: shortText(last.Bucket.Name), Subject: shortText(subject), Last: last,
			First: statements[0].Time, Statements: len(statements)})
	}
	for _, b := range r.Buckets {
		if names[b.Last.Bucket.Name] > 1 {
			b.Name = b.Subject
		}
	}
	slices.SortFunc(r.Buckets, func(a, b *reportBucket) int { return cmp.Compare(a.Subject, b.Subject) })
	r.period(in, byBucket)
	claims := map[string]bool{}
	for _, b := range r.Buckets {
		statements := byBucket[bucketOf(b.Last)]
		b.measure(statements, r.From, r.To)
		r.addGaps(b)
		r.addEntries(b)
		r.addEvents(b, statements)
		for _, claim := range b.Last.NotClaimed {
			if !claims[claim] && len(r.NotClaimed) < maxReportFound {
				claims[claim] = true
				r.NotClaimed = append(r.NotClaimed, shortText(claim))
			}
		}
	}
	for _, f := range in.findings {
		if f.Kind != findingUnlocked { // the time line tells
			f.Message, f.Name, f.Bucket = shortText(f.Message), shortText(f.Name), shortText(f.Bucket)
			r.Findings = append(r.Findings, f)
		}
	}
	r.Verdict, r.Sentence = r.answer()
	r.limit()
	return r
}

// period is what was asked for. Without that it begins with the first statement, and ends when the last was made of the bucket whose
// last is the oldest, as long as that is not more than a day ago: then it is missing.
func (r *report) period(in reportInput, byBucket map[string][]*evidence) {
	var first, newest time.Time
	for _, statements := range byBucket {
		l := lookOf(statements[0])
		if statements[0].Sequence <= 1 && !l.since.IsZero() {
			l.at = l.since // what it claims of the time before, which is of no statement that is missing
		}
		if first.IsZero() || l.at.Before(first) {
			first = l.at
		}
		newest = laterOf(newest, lookOf(statements[len(statements)-1]).at)
	}
	end := newest
	for _, statements := range byBucket {
		if t := lookOf(statements[len(statements)-1]).at; newest.Sub(t) <= 26*time.Hour {
			end = earlierOf(end, t)
		}
	}
	r.From, r.To = in.from, in.to
	if r.From.IsZero() {
		r.From = first
	}
	if r.To.IsZero() {
		r.To = end
	} else {
		r.To = earlierOf(r.To, laterOf(in.made, newest)) // nobody knows the future
	}
	r.From, r.To = r.From.UTC(), laterOf(r.From, r.To).UTC()
}

// measure makes the time line.
func (b *reportBucket) measure(statements []*evidence, from, to time.Time) {
	b.Line = timeline(statements, from, to)
	for _, e := range statements {
		if at := lookOf(e); !at.at.After(to) {
			b.IsOpen = at.state == lineOpen
		}
	}
	for _, s := range b.Line {
		switch s.state {
		case lineLocked:
			b.Locked += s.length()
		case lineOpen:
			b.Open += s.length()
			if b.Opens++; b.Opens == 1 {
				b.OpenAt = s.from
			}
		case lineUnknown:
			b.Unknown += s.length()
		case lineBefore:
			b.Begins = s.to
		}
	}
	b.NoLock = b.open() && b.Last.promisedDays() == 0
	for _, update := range b.Last.History {
		if update.Update == "lock" {
			b.LockedBy = fmt.Sprintf("%s on %s", shortText(cmp.Or(update.User, update.Object, "unknown")), reportTime(update.Time))
		}
	}
}

// open says that it was not locked at some time, or in none of which it is known that it was and not in the end.
func (b *reportBucket) open() bool { return b.Open > 0 || b.Locked == 0 && b.IsOpen }

func (r *report) addGaps(b *reportBucket) {
	for _, s := range b.Line {
		if s.state == lineOpen || s.state == lineUnknown {
			s.why = shortText(s.why)
			r.Gaps = append(r.Gaps, reportGap{b.Name, s})
		}
	}
}

func (r *report) addEntries(b *reportBucket) {
	for _, e := range b.Last.Entries {
		entry := &reportEntry{Bucket: b.Name, evidenceEntry: e, At: b.Last.Time, Free: freeUnknown}
		switch {
		case e.Unlocked, e.LockedUntil != nil && !e.LockedUntil.After(b.Last.Time):
			entry.Free = freeNow
		case e.LockedUntil != nil:
			entry.Free = freeAt
		case e.Held:
			entry.Free = freeNever
		}
		entry.Name = shortText(e.Name)
		r.Free[entry.Free]++
		r.Entries = append(r.Entries, entry)
	}
}

// until is when the backups become free; zero where that is no time.
func (e *reportEntry) until() time.Time {
	if e.Free != freeAt {
		return time.Time{}
	}
	return *e.LockedUntil
}

// addEvents collects what has happened to a bucket within the report.
func (r *report) addEvents(b *reportBucket, statements []*evidence) {
	type seen struct {
		kind, text string
		day        int64
	}
	events := map[seen]*reportEvent{}
	told := map[evidenceEvent]bool{}
	add := func(at time.Time, kind, text string) {
		if at.Before(r.From) || at.After(r.To) || told[evidenceEvent{at, kind, text}] {
			return // statements that were asked for repeat what those of the chain say
		}
		told[evidenceEvent{at, kind, text}] = true
		key := seen{kind, text, at.Unix() / 86400}
		if e := events[key]; e != nil {
			e.Times++
			return
		}
		events[key] = &reportEvent{Time: at, Bucket: b.Name, Kind: kind, Text: shortText(text), Times: 1}
	}
	attacks := map[[2]string]*reportAttack{}
	trouble := map[string]string{}
	for _, e := range statements {
		for _, event := range e.Events {
			add(event.Time, event.Kind, event.Message)
		}
		if !e.Time.Before(r.From) && !e.Time.After(r.To) {
			r.EventsLeftOut += e.EventsLeftOut
		}
		for _, update := range e.History {
			by := cmp.Or(update.User, update.Object, "unknown")
			add(update.Time, reportHistory, fmt.Sprintf("%s, %s, by %s", update.Update, dayCount(update.Days), by))
		}
		for _, attack := range e.Probe {
			key := [2]string{shortText(attack.Attack), shortText(attack.Credentials)}
			if attack.Time.Before(r.From) || attack.Time.After(r.To) || attacks[key] != nil && !attack.Time.After(attacks[key].Last) {
				continue // each statement has the last ones
			}
			text := "attack " + attack.Attack + " with the credentials of the " + attack.Credentials
			switch countAttack(attacks, key, attack) {
			case outcomeSucceeded:
				add(attack.Time, reportAttacked, text)
			case outcomeOther:
				add(attack.Time, reportUnproven, text+": "+attack.Message)
			}
		}
		if e.NextKeyID != "" {
			add(e.Time, reportRotation, "from now on the key "+e.NextKeyID+" signs")
		}
		now := troubles(e)
		for kind, text := range now {
			if text != trouble[kind] {
				add(e.Time, kind, text)
			}
		}
		trouble = now
	}
	for _, e := range events {
		r.Events = append(r.Events, *e)
	}
	for _, key := range slices.SortedFunc(maps.Keys(attacks), func(x, y [2]string) int { return slices.Compare(x[:], y[:]) }) {
		attacks[key].Bucket = b.Name
		r.Attacks = append(r.Attacks, *attacks[key])
	}
}

// sumAttacks makes one line of those that the lock refused each time, of all buckets, if there are too many.
func (r *report) sumAttacks() {
	if len(r.Attacks) <= maxReportAttacks {
		return
	}
	sums := map[[2]string]*reportAttack{}
	buckets := map[[2]string]int{}
	var kept []reportAttack
	for _, a := range r.Attacks {
		key := [2]string{a.Attack, a.Credentials}
		switch sum := sums[key]; {
		case a.Other+a.Succeeded > 0:
			kept = append(kept, a)
			continue
		case sum == nil:
			sums[key] = &a
		default:
			sum.Lock += a.Lock
			sum.Last = laterOf(sum.Last, a.Last)
		}
		buckets[key]++
	}
	for key, sum := range sums {
		sum.Bucket = countText(buckets[key], "bucket", "buckets")
		kept = append(kept, *sum)
	}
	slices.SortFunc(kept, func(a, b reportAttack) int {
		return cmp.Or(cmp.Compare(b.Succeeded, a.Succeeded), cmp.Compare(b.Other, a.Other), cmp.Compare(a.Bucket, b.Bucket),
			cmp.Compare(a.Attack, b.Attack), cmp.Compare(a.Credentials, b.Credentials))
	})
	r.Attacks = kept[:min(len(kept), maxReportGaps)]
}

// reportOutcome is what an attack came to.
type reportOutcome int

const (
	outcomeOther reportOutcome = iota // proves nothing
	outcomeLock
	outcomeSucceeded
)

func countAttack(attacks map[[2]string]*reportAttack, key [2]string, a evidenceAttack) reportOutcome {
	counted := attacks[key]
	if counted == nil {
		counted = &reportAttack{Attack: key[0], Credentials: key[1]}
		if len(attacks) < maxReportFound {
			attacks[key] = counted
		}
	}
	counted.Last = a.Time
	switch a.Outcome {
	case "refused by the lock":
		counted.Lock++
		return outcomeLock
	case "succeeded":
		counted.Succeeded++
		return outcomeSucceeded
	}
	counted.Other++
	return outcomeOther
}

// troubles are states that a statement tells, in words, by the kind of their event; they are events when they change.
func troubles(e *evidence) map[string]string {
	t := map[string]string{}
	if n := e.UnprotectedVersions; n != nil && *n > 0 {
		t[reportUnprotected] = countText(int(*n), "version of a file that should be retained is not",
			"versions of files that should be retained are not")
	}
	if e.Hardened != nil && !*e.Hardened {
		t[reportHardening] = "not as it should be: " + strings.Join(e.Gaps, "; ")
	}
	var broken, forged, excluded, damaged int
	for i := range e.Entries {
		entry := &e.Entries[i]
		broken += one(entry.Incomplete)
		forged += one(entry.Suspicious > 0)
		excluded += one(entry.Unannounced > 0)
		damaged += one(entry.Damaged)
	}
	var parts []string
	for _, of := range []struct {
		n    int
		what string
	}{{broken, "no complete chain"}, {damaged, "damaged content"}, {forged, "signs of a forgery"},
		{excluded, "excluded backups that nobody announced"}} {
		if of.n > 0 {
			parts = append(parts, fmt.Sprintf("%s with %s", countText(of.n, "cluster", "clusters"), of.what))
		}
	}
	if len(parts) > 0 {
		t[reportBackups] = strings.Join(parts, ", ")
	}
	return t
}

func one(is bool) int {
	if is {
		return 1
	}
	return 0
}

// countText is a number with its noun.
func countText(n int, singular, plural string) string {
	if n == 1 {
		return "1 " + singular
	}
	return fmt.Sprintf("%d %s", n, plural)
}

// badEvents are kinds that stay in the list when it is too long, the worst first.
var badEvents = []string{reportAttacked, evidenceDrift, reportUnprotected, evidenceRepair, evidenceRefusal, evidenceForeign, evidenceGap,
	reportHistory, reportBackups, reportRotation, evidenceDenial}

// limit sorts the lists and cuts them.
func (r *report) limit() {
	cut := func(n, limit int) int { return max(0, n-limit) }
	for i := range r.Events {
		if r.Events[i].rank = slices.Index(badEvents, r.Events[i].Kind); r.Events[i].rank < 0 {
			r.Events[i].rank = len(badEvents)
		}
	}
	newest := func(a, b reportEvent) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(a.Bucket, b.Bucket), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Text, b.Text))
	}
	slices.SortFunc(r.Events, func(a, b reportEvent) int { return cmp.Or(cmp.Compare(a.rank, b.rank), newest(a, b)) })
	r.EventsMore = cut(len(r.Events), maxReportEvents)
	r.Events = r.Events[:len(r.Events)-r.EventsMore]
	slices.SortFunc(r.Events, newest)

	slices.SortFunc(r.Entries, func(a, b *reportEntry) int {
		return cmp.Or(cmp.Compare(a.Free, b.Free), a.until().Compare(b.until()), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Bucket, b.Bucket))
	})
	r.EntriesMore = cut(len(r.Entries), maxReportEntries)
	r.Entries = r.Entries[:len(r.Entries)-r.EntriesMore]
	// The longest stay, those without a lock before those that are not known.
	slices.SortStableFunc(r.Gaps, func(a, b reportGap) int {
		return cmp.Or(cmp.Compare(b.state, a.state), cmp.Compare(b.length(), a.length()))
	})
	r.GapsMore = cut(len(r.Gaps), maxReportGaps)
	r.Gaps = r.Gaps[:len(r.Gaps)-r.GapsMore]
	slices.SortStableFunc(r.Gaps, func(a, b reportGap) int { return cmp.Or(a.from.Compare(b.from), cmp.Compare(a.Bucket, b.Bucket)) })
	r.sumAttacks()
	r.FindingsMore = cut(len(r.Findings), maxReportFound)
	r.Findings = r.Findings[:len(r.Findings)-r.FindingsMore]
}

// shortText is a text of somebody else, no longer than a report needs it, without characters that change how others are shown.
func shortText(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0, r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x206f, r == 0xfeff:
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return cutText(text, maxReportText)
}

func cutText(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}
