// What the daemon says in a statement: made from what passes have noted, the cached BackupBucket and the looks at its backups, without
// any request. Times become the store's.
//
// Rules:
//   - An answer of the store that is too old is not told as its answer; what is not known is listed.
//   - Entries are in the order of their names, so that two statements can be compared.

package main

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// storeTime is a time of ours by the store's clock, in whole seconds; nil if it is none.
func storeTime(t time.Time, offset time.Duration) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.Add(-offset).UTC().Truncate(time.Second)
	return &t
}

func statedPolicy(p Policy) *evidencePolicy { return &evidencePolicy{Days: p.Days, Locked: p.Locked} }

// describe says all of a bucket but its entries, number and reason.
func (w *evidenceWriter) describe(b *backupBucket, h *evidenceHead, notes evidenceNotes, now time.Time) *evidence {
	want, record := w.scope.readBucket(b)
	provider := w.provider(&b.object)
	e := &evidence{Time: *storeTime(now, notes.offset), ClockOffset: notes.offset.Round(100 * time.Millisecond).Seconds(),
		Writer: buildVersion(), Bucket: evidenceBucket{Name: b.Name, UID: string(b.UID), Type: b.Type, Store: provider.name(), Region: b.Region,
			Origin: string(record.Origin), Endpoint: h.endpoint},
		VerifyInterval: w.interval(b).Seconds(), Record: statedPolicy(record.Policy), Probe: notes.probe, NotClaimed: evidenceNotClaimed,
		UnprotectedVersions: notes.unprotected, EventsLeftOut: notes.leftOut}
	for i := range notes.events {
		event := notes.events[i]
		event.Time = *storeTime(event.Time, notes.offset)
		e.Events = append(e.Events, event)
	}
	unknown := func(format string, args ...any) { e.Unknown = append(e.Unknown, fmt.Sprintf(format, args...)) }
	if want.err == nil {
		e.Spec = statedPolicy(want.Policy)
	} else {
		unknown("What the spec asks for cannot be read: %s", sentence(want.err))
	}
	if notes.timeless || notes.unanswered(now) {
		unknown("The store's time is not known. All times are by the clock of bucketwarden, less what it was ahead of the store's before.")
	}
	if w.observes {
		e.describeObserved()
	}
	e.describeAnswer(notes, now, stronger(want.Policy, record.Policy), unknown)
	switch c, _ := findCondition(b.Conditions, conditionHardened); {
	case w.observes: // what an earlier daemon has left there is not confirmed by anybody
		unknown(hardeningUnknown)
	case c.Status == "True" || c.Status == "False":
		hardened := c.Status == "True"
		if e.Hardened = &hardened; !hardened {
			e.Gaps = []string{cut(c.Message, 4*maxEvidenceText)}
		}
	default:
		unknown(hardeningUnknown)
	}
	if e.UnprotectedVersions == nil {
		unknown("It is not known whether there are versions that are not retained as they should be.")
	}
	if len(e.Probe) == 0 {
		unknown("It is not known whether the lock holds against attacks: none was made since bucketwarden started.")
	}
	return e
}

// hardeningUnknown is said of a bucket whose hardening is not known.
const hardeningUnknown = "It is not known whether encryption, the public access block and TLS-only access are in place."

// describeObserved says of whom a statement is. What belongs to others has no record, unless a daemon has left one.
func (e *evidence) describeObserved() {
	e.Observer, e.NotClaimed = true, append(slices.Clone(evidenceNotClaimed), evidenceObserved)
	if e.Record.policy().None() {
		e.Record = nil
	}
}

// tellWeaker adds to a statement of an observer that the policy is weaker than the one before said, if no event of its own tells
// that: its owner may have been asked to, or nobody has looked meanwhile.
func (e *evidence) tellWeaker(before *evidence) {
	was := before.Policy.policy()
	if e.Policy == nil || !was.Locked || !e.Policy.policy().weakerThan(was) || e.has(evidenceDrift) {
		return
	}
	e.Events = append(e.Events, evidenceEvent{Time: e.Time, Kind: evidenceDrift, Message: fmt.Sprintf("The policy became weaker: it was %s, "+
		"now it is %s.", was, e.Policy.policy())})
}

// describeAnswer says what the store has answered, and what follows from that.
func (e *evidence) describeAnswer(notes evidenceNotes, now time.Time, wanted Policy, unknown func(string, ...any)) {
	live, earlier, offset, unanswered := notes.live, notes.earlier, notes.offset, notes.unanswered(now)
	if unanswered && notes.observed.After(notes.since) && !notes.since.IsZero() {
		earlier = append(earlier, evidenceStretch{From: notes.since, Until: notes.observed})
	}
	for _, s := range earlier {
		e.Earlier = append(e.Earlier, evidenceStretch{From: *storeTime(s.From, offset), Until: *storeTime(s.Until, offset)})
	}
	if unanswered {
		unknown("The store has not answered since %s, so its policy is not known.", formatTime(notes.observed.Add(-offset)))
		return
	}
	e.Observed = storeTime(notes.observed, offset)
	e.Policy = statedPolicy(live.Policy)
	e.Policy.DefaultOnly, e.Policy.Appends, e.Policy.Extensions = !live.Default.None(), live.Appends, live.Extensions
	e.Foreign = live.Policy.strongerThan(wanted)
	if e.Interruption = notes.interruption; !notes.since.IsZero() {
		e.VerifiedSince = &notes.stated
	}
	if !live.Exists {
		unknown("The store says that there is no such bucket.")
	}
	if live.History == nil {
		unknown("The store does not tell who has changed the policy, and when.")
		return
	}
	for _, u := range live.History.updates {
		e.History = append(e.History, evidenceUpdate(u))
	}
}

// describeEntries says what is known of the backups in the bucket.
func (e *evidence) describeEntries(states map[string]entryState, now time.Time, offset time.Duration) {
	e.Entries = make([]evidenceEntry, 0, len(states))
	unseen := 0
	for _, name := range slices.Sorted(maps.Keys(states)) {
		state := states[name]
		entry := state.evidence(name, now, offset)
		if entry.Checked == nil {
			unseen++
		}
		e.Entries = append(e.Entries, entry)
	}
	if unseen > 0 {
		e.Unknown = append(e.Unknown, fmt.Sprintf("The backups of %d entries could not be looked at.", unseen))
	}
}

// evidence says what is known of the backups of an entry.
func (s *entryState) evidence(name string, now time.Time, offset time.Duration) evidenceEntry {
	e := evidenceEntry{Name: name}
	if s.checked.IsZero() || now.Sub(s.checked) > checkStale {
		return e
	}
	e.Checked, e.Full, e.Delta = storeTime(s.checked, offset), storeTime(s.full, 0), storeTime(s.delta, 0)
	switch {
	case s.complete:
		e.Revision = &s.revision
	case s.known:
		e.Incomplete = true
	}
	switch {
	case !s.lock.known:
	case !s.lock.locked:
		e.Unlocked = true
	case s.lock.until.IsZero():
		e.Held = true
	default:
		e.LockedUntil = storeTime(s.lock.until, 0)
	}
	e.Excluded, e.Unannounced, e.ExclusionsUnknown, e.Suspicious = s.excluded, s.unannounced, !s.exclusionsKnown, s.suspicious
	e.Snapshots, e.Bytes = s.snapshots, s.sizeSum
	e.Read, e.Damaged = storeTime(s.deep.at, offset), !s.deep.at.IsZero() && !s.deep.intact
	return e
}

// in are the states of the entries in a bucket.
func (s *entryStates) in(bucket string) map[string]entryState {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]entryState{}
	for name, state := range s.states {
		if state.bucket == bucket {
			found[name] = state
		}
	}
	return found
}
