// The immutability policy of a bucket: compare, plan, refuse, warn. Everything here is pure: no request, no clock, no
// knowledge of a kind of store. planPolicy is the heart of the daemon, a table of what is desired, live and recorded,
// and it is tested as one. No plan ever makes a lock weaker.

package main

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Policy is the immutability of a bucket: how long every new object version is
// retained, and whether that is locked. The zero value is no policy at all.
type Policy struct {
	Days   int32
	Locked bool
}

// None says that nothing is retained.
func (p Policy) None() bool { return p.Days == 0 }

// until is when the retention of what was created then ends; S3 and Azure both count days
// of 24 hours, more of them than a time.Duration holds.
func (p Policy) until(created time.Time) time.Time { return created.UTC().AddDate(0, 0, int(p.Days)) }

// Hours is the retention period as an operator writes it in retentionPeriod.
func (p Policy) Hours() string { return fmt.Sprintf("%dh", int64(p.Days)*24) }

func (p Policy) String() string {
	switch {
	case p.None():
		return "no immutability"
	case p.Locked:
		return "locked retention of " + p.Hours()
	default:
		return "unlocked retention of " + p.Hours()
	}
}

// weakerThan says whether p protects less than q in any respect.
func (p Policy) weakerThan(q Policy) bool {
	return p.Days < q.Days || q.Locked && !p.Locked
}

// strongerThan says that p protects no less than q in any respect, and more in one.
func (p Policy) strongerThan(q Policy) bool { return p != q && !p.weakerThan(q) }

// stronger is the one that protects more: the locked one, else the longer one.
func stronger(p, q Policy) Policy {
	if q.Locked != p.Locked && q.Locked || q.Locked == p.Locked && q.Days > p.Days {
		return q
	}
	return p
}

// Step is one change of a bucket's policy in the cloud.
type Step struct {
	// Lock makes Policy irreversible; without it the policy is set unlocked,
	// or removed if it is none.
	Lock   bool
	Policy Policy
}

// Refusal says why what is desired is not carried out.
type Refusal struct {
	// Reason is disable, unlock, shorten or extend; it is a metric label.
	Reason  string
	Message string
}

// Refusal reasons.
const (
	reasonDisable = "disable"
	reasonUnlock  = "unlock"
	reasonShorten = "shorten"
	// reasonExtend: no weakening, but the store allows no further extension.
	reasonExtend = "extend"
)

var refusalReasons = []string{reasonDisable, reasonUnlock, reasonShorten, reasonExtend}

// Error makes a refusal the error of a reconcile.
func (r *Refusal) Error() string { return r.Message }

// policyPlan is what has to happen to a bucket's policy.
type policyPlan struct {
	Steps []Step
	// Drift says that somebody weakened what we had recorded; Steps repair it, if it can be repaired.
	Drift bool
	// Refusal is set when what is desired would weaken a lock that is recorded, or cannot be had because of a lock of
	// somebody else. Steps then hold at most the repair of a lock that was weakened behind our back.
	Refusal *Refusal
}

// planPolicy compares what is desired, the cloud's answer and our own record of what
// was set before (none if nothing was). It is pure.
//
// The record matters because on S3 anyone with s3:PutBucketObjectLockConfiguration
// can remove a bucket's default retention in COMPLIANCE mode too: a recorded lock
// is a floor for what is desired even while the cloud shows less.
//
// A lock that is live counts only as far as it is never made weaker. It is no floor: a stranger may have set it, and
// what a stranger set is neither refused nor put back.
//
// atOnce says that the store sets what it locks in the same step. There is then no unlocked step before the
// lock: one that comes late, from a daemon that was frozen in between, would put an unlocked policy over the lock.
func planPolicy(desired, live, recorded Policy, atOnce bool) policyPlan {
	drift := live.weakerThan(recorded)
	switch {
	case recorded.Locked && desired.weakerThan(recorded):
		plan := policyPlan{Refusal: refuse(providerConfigPath, desired, recorded)}
		if drift {
			plan.Drift = true
			plan.Steps = []Step{{Lock: true, Policy: recorded}}
		}
		return plan
	case live.Locked && !live.weakerThan(desired):
		// As desired, or stronger: then it is foreign, and left alone.
		return policyPlan{}
	case live.Locked && desired.weakerThan(live):
		// A foreign lock that is shorter than the unlocked policy that is desired. Nothing leads from one to the other.
		return policyPlan{Refusal: refuse(providerConfigPath, desired, live), Drift: drift}
	case desired == live:
		return policyPlan{}
	case desired.None():
		if live.None() || live != recorded {
			return policyPlan{}
		}
		return policyPlan{Steps: []Step{{}}}
	}
	plan := policyPlan{Drift: drift}
	locked := Step{Lock: true, Policy: desired}
	unlocked := Step{Policy: Policy{Days: desired.Days}}
	switch {
	case !desired.Locked:
		plan.Steps = []Step{unlocked}
	case atOnce, live.Locked, drift && recorded.Locked, live == unlocked.Policy:
		plan.Steps = []Step{locked}
	default:
		plan.Steps = []Step{unlocked, locked}
	}
	return plan
}

// lockedFloor is the longest of the locked policies; none if none is locked.
func lockedFloor(policies ...Policy) Policy {
	floor := Policy{}
	for _, p := range policies {
		if p.Locked && p.Days > floor.Days {
			floor = p
		}
	}
	return floor
}

// refuse says why the providerConfig at path is not carried out on a bucket
// that has to stay locked as floor says.
func refuse(path *field.Path, desired, floor Policy) *Refusal {
	r := &Refusal{}
	var asked, rule string
	switch {
	case desired.None():
		r.Reason, asked, rule = reasonDisable, "no immutability", "disabled"
	case !desired.Locked:
		r.Reason, asked, rule = reasonUnlock, desired.String(), "unlocked"
	default:
		r.Reason, asked, rule = reasonShorten, desired.String(), "shortened"
	}
	r.Message = fmt.Sprintf("the bucket has a %s, %s asks for %s: a locked policy cannot be %s; "+
		"keep immutability locked (S3: mode: compliance) with retentionPeriod: %s or longer", floor, path, asked, rule, floor.Hours())
	return r
}

// Reasons of policyWarnings; metric labels.
const (
	warnLock  = "lock"
	warnLong  = "long"
	warnShort = "short"
)

const (
	// longRetentionDays: what is retained longer is paid for longer, and nobody can undo it.
	longRetentionDays = 365
	// shortRetentionDays: backups should outlast a weekend on which nobody looks.
	shortRetentionDays = 3
)

// policyWarnings says, by reason, what is legal but dangerous about a policy for a bucket that has been locked so far as
// floor says, on whatever store.
func policyWarnings(path *field.Path, desired, floor Policy) map[string]string {
	path = path.Child("immutability")
	period := path.Child("retentionPeriod")
	warnings := map[string]string{}
	if desired.Locked && !floor.Locked {
		warnings[warnLock] = lockWarning(path.Child("locked"), desired)
	}
	if desired.Days > longRetentionDays {
		warnings[warnLong] = fmt.Sprintf("%s: %s is longer than a year; nothing in the bucket can be deleted before", period,
			desired.Hours())
	}
	if desired.Locked && desired.Days < shortRetentionDays {
		warnings[warnShort] = fmt.Sprintf("%s: %s is very short: after a weekend on which nobody looks, every backup can be deleted",
			period, desired.Hours())
	}
	return warnings
}

// lockWarning warns of locking, which the field at path asks for.
func lockWarning(path *field.Path, desired Policy) string {
	return fmt.Sprintf("%s: locking is irreversible: from now on retention can only grow, "+
		"and a bucket with a retention of %s cannot be deleted before it ends", path, desired.Hours())
}
