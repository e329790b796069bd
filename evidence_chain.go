// The chain of evidence of a bucket, verified offline: no request, only the public keys that were given. A key that is inside an
// envelope never counts, but the one that a verified rotation names, from there on. What is wrong is a finding; it ends nothing.
//
// Rules:
//   - A statement counts if its signature is good. Whether it fits its neighbours is told by findings.
//   - Each follows the one before: number, digest, time, one for each day, and nothing that contradicts it.

package main

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// storedEvidence is an envelope as it is stored, with the name of its object or file. problem says what is wrong with how it is
// stored; the content may be missing then.
type storedEvidence struct {
	name    string
	content []byte
	problem string
	// bucket is in which it lies; empty of a file.
	bucket string
}

// verifiedEvidence is a statement whose signature is good, with what it was read from.
type verifiedEvidence struct {
	// Name is that of the object or file, Digest the SHA-256 of the envelope in hex, KeyID the key that has signed it.
	Name   string `json:"name"`
	Digest string `json:"digest"`
	KeyID  string `json:"keyid"`
	// Size is that of the envelope, in bytes.
	Size      int      `json:"size"`
	Statement evidence `json:"statement"`

	key ed25519.PublicKey
}

// evidenceFinding is something that is wrong with evidence. Kind is one of the constants below.
type evidenceFinding struct {
	// Bucket and Sequence are empty where they are not known. Name is that of the object or file.
	Bucket   string `json:"bucket,omitempty"`
	Sequence int64  `json:"sequence,omitempty"`
	Name     string `json:"name,omitempty"`
	Kind     string `json:"kind"`
	Message  string `json:"message"`
}

// Kinds of evidenceFinding.
const (
	findingUnreadable    = "unreadable"    // no envelope, or none that is well-formed: truncated, changed, too large
	findingSignature     = "signature"     // no signature, more than one, one by a key that was not given, or one that is wrong
	findingMissing       = "missing"       // a statement of the sequence is not there, or none was made for a day
	findingRepeated      = "repeated"      // two daily statements of one day
	findingFork          = "fork"          // two statements of one number, or one that does not follow from the one before
	findingClock         = "clock"         // a statement is older than the one before it
	findingContradiction = "contradiction" // a statement does not fit the one before it, or itself
	findingUnlocked      = "unlocked"      // the bucket was not locked, or not known to be
	findingName          = "name"          // the object or file does not have the name that its content gives it
)

// evidenceQuery is what is asked of evidence: which public keys count, and the days, at UTC, for which there must be a statement;
// zero for no limit.
type evidenceQuery struct {
	keys     []ed25519.PublicKey
	from, to time.Time
	// through is a day up to which there must be statements, where those behind it count too.
	through time.Time
}

// evidenceDay is the day of a time, at UTC.
func evidenceDay(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// evidenceName is how the object of an envelope is called, without the prefix. Nobody else can guess it before it is written, since
// it depends on the signature: so nobody can put something else in its place.
func evidenceName(e *evidence, digest string) string {
	return fmt.Sprintf("%010d-%s-%s.json", e.Sequence, e.Time.UTC().Format(time.DateOnly), digest[:32])
}

// parseEvidenceName reads the number in the name of an object of ours; false for all others.
func parseEvidenceName(key string) (sequence int64, ok bool) {
	name, json := strings.CutSuffix(path.Base(key), ".json")
	if !json || len(name) != len("0000000001-2006-01-02-")+32 || name[10] != '-' || name[21] != '-' {
		return 0, false
	}
	if _, err := time.Parse(time.DateOnly, name[11:21]); err != nil || strings.Trim(name[22:], "0123456789abcdef") != "" {
		return 0, false
	}
	sequence, err := strconv.ParseInt(name[:10], 10, 64)
	return sequence, err == nil && sequence > 0
}

// readEvidence verifies envelopes, of one or more buckets, in any order. verified are the statements with a good signature, by bucket
// and sequence. An error is about the source: what was read so far is returned with it.
func readEvidence(source iter.Seq2[storedEvidence, error], query evidenceQuery) (verified []verifiedEvidence, findings []evidenceFinding,
	err error) {
	c := &evidenceCheck{query: query, seen: map[string]bool{}}
	for stored, sourceErr := range source {
		if sourceErr != nil {
			err = sourceErr
			break
		}
		c.add(stored)
	}
	c.followRotations()
	buckets := map[string][]verifiedEvidence{}
	for _, v := range c.verified {
		name := v.Statement.Bucket.Store + "://" + v.Statement.Bucket.Name
		buckets[name] = append(buckets[name], v)
	}
	names := make([]string, 0, len(buckets))
	for name := range buckets {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		verified = append(verified, c.checkBucket(buckets[name])...)
	}
	return verified, c.findings, err
}

// maxHeldEvidence bounds what is kept of envelopes by keys that are not known yet.
const maxHeldEvidence = 64 << 20

// evidenceCheck is one verification.
type evidenceCheck struct {
	query    evidenceQuery
	verified []verifiedEvidence
	findings []evidenceFinding
	// seen are the digests of what was verified.
	seen map[string]bool
	// held wait for a rotation that names their key.
	held     []storedEvidence
	heldSize int
}

func (c *evidenceCheck) find(of *verifiedEvidence, kind, format string, args ...any) {
	c.findings = append(c.findings, evidenceFinding{Bucket: of.Statement.Bucket.Name, Sequence: of.Statement.Sequence, Name: of.Name,
		Kind: kind, Message: fmt.Sprintf(format, args...)})
}

// add verifies one envelope with the keys that were given.
func (c *evidenceCheck) add(stored storedEvidence) {
	if stored.problem != "" {
		c.findings = append(c.findings, evidenceFinding{Name: stored.name, Kind: findingName, Message: stored.problem})
		return
	}
	if err := c.open(stored, c.query.keys); err != nil {
		if err.keyID != "" && c.heldSize+len(stored.content) <= maxHeldEvidence {
			c.held = append(c.held, stored)
			c.heldSize += len(stored.content)
			return
		}
		c.findings = append(c.findings, evidenceFinding{Name: stored.name, Kind: err.kind, Message: err.text})
	}
}

// open verifies one envelope with some keys.
func (c *evidenceCheck) open(stored storedEvidence, keys []ed25519.PublicKey) *envelopeError {
	statement, key, err := openEnvelope(stored.content, keys)
	if err != nil {
		var wrong *envelopeError
		if !errors.As(err, &wrong) {
			wrong = &envelopeError{kind: findingUnreadable, text: err.Error()}
		}
		return wrong
	}
	v := verifiedEvidence{Name: stored.name, Digest: evidenceDigest(stored.content), KeyID: evidenceKeyID(key), Size: len(stored.content),
		Statement: statement.Predicate, key: key}
	if c.seen[v.Digest] {
		return nil
	}
	c.seen[v.Digest] = true
	if sequence, ok := parseEvidenceName(v.Name); ok && path.Base(v.Name) != evidenceName(&v.Statement, v.Digest) {
		c.find(&v, findingName, "its name says that it is number %d with another content or day", sequence)
	}
	c.verified = append(c.verified, v)
	return nil
}

// followRotations verifies what was signed with keys that verified statements name as their successors, and ends the trust in keys
// that were replaced. A new key counts in the bucket of the rotation only, and behind it.
func (c *evidenceCheck) followRotations() {
	type keyIn struct{ bucket, key string }
	replaced := map[keyIn]int64{}
	for done := 0; done < len(c.verified); done++ {
		r := c.verified[done]
		next := nextKey(&r.Statement)
		if next == nil {
			continue
		}
		old := keyIn{r.bucket(), string(r.key)}
		if at, ok := replaced[old]; !ok || r.Statement.Sequence < at {
			replaced[old] = r.Statement.Sequence
		}
		c.held = slices.DeleteFunc(c.held, func(stored storedEvidence) bool {
			statement, _, err := openEnvelope(stored.content, []ed25519.PublicKey{next})
			return err == nil && statement.Predicate.Sequence > r.Statement.Sequence && bucketOf(&statement.Predicate) == r.bucket() &&
				c.open(stored, []ed25519.PublicKey{next}) == nil
		})
	}
	for _, stored := range c.held {
		if err := c.open(stored, c.query.keys); err != nil {
			c.findings = append(c.findings, evidenceFinding{Name: stored.name, Kind: err.kind, Message: err.text})
		}
	}
	kept := make([]verifiedEvidence, 0, len(c.verified))
	for i := range c.verified {
		v := &c.verified[i]
		if at, ok := replaced[keyIn{v.bucket(), string(v.key)}]; ok && v.Statement.Sequence > at {
			c.find(v, findingSignature, "it is signed with the key %s, which number %d has replaced", v.KeyID, at)
			continue
		}
		kept = append(kept, *v)
	}
	c.verified = kept
}

// bucketOf is which bucket a statement is about, for a chain: its endpoint may change.
func bucketOf(e *evidence) string { return e.Bucket.Store + "://" + e.Bucket.Name }

func (v *verifiedEvidence) bucket() string { return bucketOf(&v.Statement) }

// nextKey is the key that a rotation names; nil if it is none.
func nextKey(e *evidence) ed25519.PublicKey {
	if e.Reason != evidenceRotation {
		return nil
	}
	keys, err := parsePublicKeys([]byte(e.NextKey))
	if err != nil || len(keys) != 1 || evidenceKeyID(keys[0]) != e.NextKeyID {
		return nil
	}
	return keys[0]
}

// checkBucket checks the chain of one bucket and returns what counts of it in the order of the chain.
func (c *evidenceCheck) checkBucket(chain []verifiedEvidence) []verifiedEvidence {
	slices.SortFunc(chain, func(a, b verifiedEvidence) int {
		return cmp.Or(cmp.Compare(a.Statement.Sequence, b.Statement.Sequence), a.Statement.Time.Compare(b.Statement.Time),
			cmp.Compare(a.Digest, b.Digest))
	})
	inside := slices.DeleteFunc(slices.Clone(chain), func(v verifiedEvidence) bool {
		day := evidenceDay(v.Statement.Time)
		return !c.query.from.IsZero() && day.Before(evidenceDay(c.query.from)) || !c.query.to.IsZero() && day.After(evidenceDay(c.query.to))
	})
	var last *verifiedEvidence
	for i := range inside {
		v := &inside[i]
		c.checkItself(v)
		switch {
		case last == nil:
			c.checkFirst(v)
		default:
			c.checkLink(last, v)
		}
		last = v
	}
	c.checkEnds(inside, last)
	c.checkLocked(inside)
	return inside
}

// checkFirst checks the first statement that is asked for.
func (c *evidenceCheck) checkFirst(v *verifiedEvidence) {
	switch e := &v.Statement; {
	case (e.Sequence == 1) != (e.Previous == ""):
		c.find(v, findingFork, "number %d names %q as the digest of the one before", e.Sequence, e.Previous)
	case e.Sequence > 1 && c.query.from.IsZero():
		c.find(v, findingMissing, "the chain begins with number %d; those before are missing", e.Sequence)
	}
	if day := evidenceDay(v.Statement.Time); !c.query.from.IsZero() && v.Statement.Sequence > 1 && day.After(evidenceDay(c.query.from)) {
		c.findDays(v, evidenceDay(c.query.from), day.AddDate(0, 0, -1))
	}
}

// checkEnds checks that the statements reach to the last day that was asked for.
func (c *evidenceCheck) checkEnds(inside []verifiedEvidence, last *verifiedEvidence) {
	end := laterOf(c.query.to, c.query.through)
	if last == nil || end.IsZero() {
		return
	}
	if day, to := evidenceDay(last.Statement.Time), evidenceDay(end); day.Before(to) {
		c.findDays(last, day.AddDate(0, 0, 1), to)
	}
}

func (c *evidenceCheck) findDays(v *verifiedEvidence, from, to time.Time) {
	if from.Equal(to) {
		c.find(v, findingMissing, "there is no statement for %s", from.Format(time.DateOnly))
		return
	}
	c.find(v, findingMissing, "there is no statement for the days from %s to %s", from.Format(time.DateOnly), to.Format(time.DateOnly))
}

// checkLink checks that a statement follows from the one before.
func (c *evidenceCheck) checkLink(last, v *verifiedEvidence) {
	before, e := &last.Statement, &v.Statement
	switch {
	case e.Sequence == before.Sequence:
		c.find(v, findingFork, "there are two statements number %d: %s and %s", e.Sequence, last.Digest, v.Digest)
		return
	case e.Sequence != before.Sequence+1:
		c.find(v, findingMissing, "between number %d and number %d there are %d missing", before.Sequence, e.Sequence,
			e.Sequence-before.Sequence-1)
	case e.Previous != last.Digest:
		c.find(v, findingFork, "number %d does not follow from number %d: it names another digest as that of the one before", e.Sequence,
			before.Sequence)
	}
	if e.Time.Before(before.Time) {
		c.find(v, findingClock, "number %d is of %s, before number %d of %s", e.Sequence, formatTime(e.Time), before.Sequence,
			formatTime(before.Time))
	}
	day, was := evidenceDay(e.Time), evidenceDay(before.Time)
	switch next := was.AddDate(0, 0, 1); {
	case day.After(next):
		c.findDays(v, next, day.AddDate(0, 0, -1))
	case day.Equal(was) && e.Reason == evidenceDaily:
		c.find(v, findingRepeated, "number %d is a daily statement of %s, of which there is one already", e.Sequence, day.Format(time.DateOnly))
	}
	c.checkContradictions(before, v)
}

// has says that something of a kind has happened since the statement before.
func (e *evidence) has(kinds ...string) bool {
	return e.EventsLeftOut > 0 || slices.ContainsFunc(e.Events, func(event evidenceEvent) bool { return slices.Contains(kinds, event.Kind) })
}

// checkContradictions compares what two statements say that follow each other.
func (c *evidenceCheck) checkContradictions(before *evidence, v *verifiedEvidence) {
	e := &v.Statement
	if was, is := before.Record.policy(), e.Record.policy(); was.Locked && is.weakerThan(was) {
		c.find(v, findingContradiction, "the record shrinks from a %s to %s, which bucketwarden never lets happen", was, is)
	}
	if was := before.Policy.policy(); was.Locked && e.Policy != nil && e.Policy.policy().weakerThan(was) && !e.has(evidenceDrift) {
		c.find(v, findingContradiction, "the %s became %s, and no drift is told", was, e.Policy.policy())
	}
	if e.VerifiedSince != nil && before.VerifiedSince != nil {
		switch {
		case e.VerifiedSince.Before(*before.VerifiedSince):
			c.find(v, findingContradiction, "it claims that the bucket is verified since %s, the one before said since %s",
				formatTime(*e.VerifiedSince), formatTime(*before.VerifiedSince))
		case e.VerifiedSince.After(*before.VerifiedSince) && e.Interruption == "":
			c.find(v, findingContradiction, "the bucket is verified since %s only, before it was since %s, and no interruption is told",
				formatTime(*e.VerifiedSince), formatTime(*before.VerifiedSince))
		}
	}
	if e.Bucket.Endpoint != before.Bucket.Endpoint {
		c.find(v, findingContradiction, "the bucket lies at %s, before it was at %s", e.Bucket.Endpoint, before.Bucket.Endpoint)
	}
	if len(e.History) < len(before.History) && e.Policy != nil && before.Bucket.UID == e.Bucket.UID && !e.has(evidenceDrift) {
		c.find(v, findingContradiction, "the store's own history of the policy became shorter")
	}
	entries := make(map[string]*evidenceEntry, len(before.Entries))
	for i := range before.Entries {
		entries[before.Entries[i].Name] = &before.Entries[i]
	}
	for i := range e.Entries {
		entry := &e.Entries[i]
		was := entries[entry.Name]
		if was == nil || was.LockedUntil == nil || entry.LockedUntil == nil || was.Full == nil || entry.Full == nil ||
			!was.Full.Equal(*entry.Full) || e.has(evidenceDrift) {
			continue
		}
		if entry.LockedUntil.Before(*was.LockedUntil) {
			c.find(v, findingContradiction, "the backups of %s with the same full snapshot are locked until %s, before it was until %s", entry.Name,
				formatTime(*entry.LockedUntil), formatTime(*was.LockedUntil))
		}
	}
}

// checkItself checks what a statement says against itself.
func (c *evidenceCheck) checkItself(v *verifiedEvidence) {
	e := &v.Statement
	switch {
	case e.VerifiedSince == nil:
	case e.Policy == nil:
		c.find(v, findingContradiction, "it claims that the bucket is verified, but not what the store answered")
	case e.Policy.policy().weakerThan(e.expected()):
		c.find(v, findingContradiction, "it claims that the bucket is verified with %s, where there should be a %s", e.Policy.policy(),
			e.expected())
	case e.VerifiedSince.After(e.Time):
		c.find(v, findingContradiction, "it claims that the bucket is verified since a time that is still to come")
	}
	if e.Reason == evidenceRotation && nextKey(e) == nil {
		c.find(v, findingContradiction, "it replaces the key, but the new key cannot be read")
	}
}

// checkLocked tells of the times at which the bucket was not locked, or not known to be, once for each.
func (c *evidenceCheck) checkLocked(inside []verifiedEvidence) {
	var begun *verifiedEvidence
	why := ""
	end := func(until string) {
		if begun != nil {
			c.find(begun, findingUnlocked, "%s: from %s %s", why, formatTime(begun.Statement.Time), until)
			begun = nil
		}
	}
	for i := range inside {
		v := &inside[i]
		now := v.Statement.unlocked()
		if now != why {
			end("to " + formatTime(v.Statement.Time))
		}
		if why = now; why != "" && begun == nil {
			begun = v
		}
	}
	end("on")
}

// unlocked says why the bucket is not known to be locked as it should be; empty if it is.
func (e *evidence) unlocked() string {
	switch p := e.Policy.policy(); {
	case e.Policy == nil:
		return "it is not known whether the bucket was locked"
	case !p.Locked:
		return "the bucket was not locked"
	case p.weakerThan(e.expected()):
		return "the bucket was locked for less than it should be"
	}
	return ""
}
