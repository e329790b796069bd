// Evidence: what a statement about a bucket says. One is signed for each bucket and day and on every change (evidence_daemon.go),
// as an in-toto Statement v1 (github.com/in-toto/attestation/blob/main/spec/v1/statement.md) in a DSSE envelope
// (evidence_sign.go). Each names the digest of the one before (evidence_chain.go).
//
// Rules:
//   - Times are the store's, but those that say otherwise. What is not known is absent and named in unknown, never shown as fine.
//   - No secret, no content of an object. Texts are bounded.
//   - Fields are only ever added. A reader ignores what it does not know.

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

const (
	// evidenceStatementType and evidencePayloadType are in-toto's.
	evidenceStatementType = "https://in-toto.io/Statement/v1"
	evidencePayloadType   = "application/vnd.in-toto+json"
	// evidencePredicateType is the type of what we say in a statement.
	evidencePredicateType = "urn:bucketwarden:evidence:v1"

	evidencePrefix = tombstonesRoot + "evidence/"
)

// evidenceStatement is an in-toto Statement.
type evidenceStatement struct {
	Type          string            `json:"_type"`
	Subject       []evidenceSubject `json:"subject"`
	PredicateType string            `json:"predicateType"`
	Predicate     evidence          `json:"predicate"`
}

// evidenceSubject names the bucket: a bucket has no digest of its own, so that of its name is given.
type evidenceSubject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// Reasons of a statement.
const (
	// evidenceDaily is the first statement of a day.
	evidenceDaily = "daily"
	// evidenceChange says that something has changed since the last statement of the same day.
	evidenceChange = "change"
	// evidenceRotation says that this is the last statement of a key; NextKey is the one that signs from now on.
	evidenceRotation = "rotation"
)

// evidence is what is said of a bucket at a time.
type evidence struct {
	// Sequence is 1 for the first statement of a bucket and one more for each that follows. Previous is the SHA-256, in hex, of the
	// envelope before, as it is stored; empty in the first.
	Sequence int64  `json:"sequence"`
	Previous string `json:"previous,omitempty"`
	Reason   string `json:"reason"`
	// Time is when it was made, by the store's clock.
	Time time.Time `json:"time"`
	// ClockOffset is how far the daemon's clock is ahead of the store's, in seconds.
	ClockOffset float64 `json:"clockOffsetSeconds"`
	// Writer is the version of bucketwarden that wrote it.
	Writer string         `json:"writer"`
	Bucket evidenceBucket `json:"bucket"`
	// Observer says that bucketwarden only looks at the bucket, which another controller owns: verified is what has at least the lock
	// that Spec asks for.
	Observer bool `json:"observer,omitempty"`
	// Observed is when the store was asked for the policy last, and Policy what it answered; both are absent if it did not answer.
	Observed *time.Time      `json:"observed,omitempty"`
	Policy   *evidencePolicy `json:"policy,omitempty"`
	// VerifiedSince is since when the policy was looked at without a gap and never found weaker than Expected; absent if the last
	// look failed or found less. VerifyInterval is how often it is looked at, Interruption what ended an earlier such time, if the
	// last statement named an earlier one.
	VerifiedSince  *time.Time `json:"verifiedSince,omitempty"`
	VerifyInterval float64    `json:"verifyIntervalSeconds,omitempty"`
	Interruption   string     `json:"interruption,omitempty"`
	// Earlier are the times for which it was verified in the same way, and which have ended since the last statement.
	Earlier []evidenceStretch `json:"verifiedEarlier,omitempty"`
	// Spec is what spec.providerConfig asks for; absent if it cannot be read. Record is what bucketwarden has promised to keep.
	Spec   *evidencePolicy `json:"spec,omitempty"`
	Record *evidencePolicy `json:"record,omitempty"`
	// Foreign says that the policy is stronger than spec and record: somebody else made it so.
	Foreign bool `json:"foreign,omitempty"`
	// History is the container's own list of changes of its policy, where the store has one (Azure): who, when, what.
	History []evidenceUpdate `json:"history,omitempty"`
	// Events are what has happened since the last statement, the oldest first; EventsLeftOut is how many more there were.
	Events        []evidenceEvent `json:"events,omitempty"`
	EventsLeftOut int64           `json:"eventsLeftOut,omitempty"`
	// Hardened is nil if it is not known; Gaps are what is missing.
	Hardened *bool    `json:"hardened,omitempty"`
	Gaps     []string `json:"hardeningGaps,omitempty"`
	// UnprotectedVersions is how many versions that should be retained are not; absent if it is not known.
	UnprotectedVersions *int64 `json:"unprotectedVersions,omitempty"`
	// Probe are the last attacks on a canary of ours, and what they came to; absent if there were none.
	Probe []evidenceAttack `json:"probe,omitempty"`
	// Entries are the backups in the bucket, by name.
	Entries []evidenceEntry `json:"entries"`
	// Unknown is what could not be seen, one sentence each; NotClaimed is what this statement does not say.
	Unknown    []string `json:"unknown,omitempty"`
	NotClaimed []string `json:"notClaimed"`
	// NextKey is the public key that signs from the next statement on, in PEM, and NextKeyID its id: only of evidenceRotation.
	NextKey   string `json:"nextKey,omitempty"`
	NextKeyID string `json:"nextKeyID,omitempty"`
}

// evidenceStretch is a time, from the first to the last of the looks.
type evidenceStretch struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
}

// evidenceBucket says which bucket it is.
type evidenceBucket struct {
	Name string `json:"name"`
	// UID is that of the BackupBucket, Type its spec.type; Store is the kind of store.
	UID      string `json:"uid,omitempty"`
	Type     string `json:"type,omitempty"`
	Store    string `json:"store"`
	Endpoint string `json:"endpoint"`
	Region   string `json:"region,omitempty"`
	// Origin is Created, TakenOver or Adopted; empty if that is not known.
	Origin string `json:"origin,omitempty"`
}

// evidencePolicy is the retention of a bucket; 0 days are none.
type evidencePolicy struct {
	Days   int32 `json:"days"`
	Locked bool  `json:"locked"`
	// DefaultOnly says that a policy is there, but that objects may be written without it; Days is 0 then. Appends says that objects
	// may be appended to. Extensions is how often it can still be made longer, absent if there is no limit.
	DefaultOnly bool   `json:"defaultOnly,omitempty"`
	Appends     bool   `json:"appends,omitempty"`
	Extensions  *int32 `json:"extensionsLeft,omitempty"`
}

func (p *evidencePolicy) policy() Policy {
	if p == nil {
		return Policy{}
	}
	return Policy{Days: p.Days, Locked: p.Locked}
}

// evidenceUpdate is one change of a container's policy, as the store remembers it.
type evidenceUpdate struct {
	// Update is put, lock or extend. Days is the period since then.
	Update string    `json:"update"`
	Days   int32     `json:"days"`
	Time   time.Time `json:"time"`
	// Object and Tenant are the ids of who made it, User the user principal name, if there is one.
	Object string `json:"objectIdentifier,omitempty"`
	Tenant string `json:"tenantId,omitempty"`
	User   string `json:"user,omitempty"`
}

// Kinds of evidenceEvent.
const (
	evidenceDrift   = "drift"   // the bucket was found weaker than it should be
	evidenceRepair  = "repair"  // that was put right
	evidenceRefusal = "refusal" // a spec that would weaken the bucket was not carried out
	evidenceDenial  = "denial"  // a request that would weaken the bucket was denied at admission, by this process
	evidenceForeign = "foreign" // somebody else made the policy stronger
	evidenceLock    = "lock"    // bucketwarden set or locked a policy
	evidenceCreated = "created" // bucketwarden created the bucket
	evidenceGap     = "gap"     // nobody looked at the bucket for a while
)

// evidenceEvent is something that has happened to a bucket.
type evidenceEvent struct {
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	Message string    `json:"message"`
}

// evidenceAttack is one attack: Outcome is "refused by the lock", "refused for another reason" (which proves nothing) or "succeeded".
type evidenceAttack struct {
	Time        time.Time `json:"time"`
	Attack      string    `json:"attack"`
	Credentials string    `json:"credentials"`
	Outcome     string    `json:"outcome"`
	Message     string    `json:"message,omitempty"`
}

// evidenceEntry is what is known of the backups of a BackupEntry. A bucket has thousands: what is short stays out of it, and good
// news are told by a time or a number, bad news by a flag. What has neither is not known.
type evidenceEntry struct {
	Name string `json:"name"`
	// Checked is when its backups were looked at last; absent if they were not, or so long ago that it does not count. Nothing else
	// is there then.
	Checked *time.Time `json:"checked,omitempty"`
	// Full and Delta are when the newest snapshots were taken; absent if there are none.
	Full  *time.Time `json:"full,omitempty"`
	Delta *time.Time `json:"delta,omitempty"`
	// Revision is what a restore would reach. There is one only if what a restore would take is complete by names and sizes: a full
	// snapshot and all deltas behind it without a gap. Incomplete says that it is not.
	Revision   *int64 `json:"revision,omitempty"`
	Incomplete bool   `json:"incomplete,omitempty"`
	// LockedUntil: nobody can delete any snapshot of the chain before. Held: legal holds keep them, without an end. Unlocked: one of
	// them can be deleted.
	LockedUntil *time.Time `json:"lockedUntil,omitempty"`
	Held        bool       `json:"held,omitempty"`
	Unlocked    bool       `json:"unlocked,omitempty"`
	// Excluded is how many snapshots a restore leaves out, Unannounced how many of them nobody has announced, as far as is known;
	// ExclusionsUnknown says that it is not known of all.
	Excluded          int64 `json:"excluded,omitempty"`
	Unannounced       int64 `json:"unannounced,omitempty"`
	ExclusionsUnknown bool  `json:"exclusionsUnknown,omitempty"`
	// Suspicious are signs that a snapshot is forged.
	Suspicious int64 `json:"suspicious,omitempty"`
	Snapshots  int64 `json:"snapshots"`
	Bytes      int64 `json:"bytes"`
	// Read is when the snapshots were read last; all had the hash that they should have unless Damaged says that one had not.
	Read    *time.Time `json:"read,omitempty"`
	Damaged bool       `json:"damaged,omitempty"`
}

// newest is when the newest backup was taken; zero if there is none or it is not known.
func (e *evidenceEntry) newest() (t time.Time) {
	for _, of := range []*time.Time{e.Full, e.Delta} {
		if of != nil {
			t = laterOf(t, *of)
		}
	}
	return t
}

// evidenceNotClaimed is in each statement.
var evidenceNotClaimed = []string{
	"It is not proven that the daemon was not lying: who has taken over its key, or the process, can sign what he likes from then on.",
	"It is not proven that the store tells the truth: the statement says what the store has answered.",
	"It is not proven that a backup can be restored: the chain is judged by names, sizes and times, its content only where read says so.",
	"It is not proven that nothing was weaker between two looks at the store.",
	"Admission requests that other replicas have denied are not listed.",
	"This is no certification.",
}

// evidenceObserved is in the statements of an observer too.
const evidenceObserved = "bucketwarden only looks at the bucket: another controller owns it, and nothing is claimed of what that one does."

// expected is the policy that the bucket is to have at least.
func (e *evidence) expected() Policy {
	if e.Observer {
		return stronger(e.Spec.policy(), e.Record.policy())
	}
	return e.Record.policy()
}

// evidenceSubjectName is how a statement names a bucket.
func evidenceSubjectName(b evidenceBucket) string { return b.Store + "://" + b.Endpoint + "/" + b.Name }

// statement wraps what is said of a bucket.
func (e evidence) statement() evidenceStatement {
	name := evidenceSubjectName(e.Bucket)
	sum := sha256.Sum256([]byte(name))
	return evidenceStatement{Type: evidenceStatementType, PredicateType: evidencePredicateType, Predicate: e,
		Subject: []evidenceSubject{{Name: name, Digest: map[string]string{"sha256": hex.EncodeToString(sum[:])}}}}
}
