package main

import (
	stdjson "encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"sigs.k8s.io/json"
)

// Policy is the immutability of a bucket: how long every new object version is
// retained, and whether that is locked. The zero value is no policy at all.
type Policy struct {
	Days   int32
	Locked bool
}

// None says that nothing is retained.
func (p Policy) None() bool { return p.Days == 0 }

// Retention is the retention period; S3 and Azure both count days of 24 hours.
func (p Policy) Retention() time.Duration { return time.Duration(p.Days) * 24 * time.Hour }

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

// Step is one change of a bucket's policy in the cloud.
type Step struct {
	// Lock makes Policy irreversible; without it the policy is set unlocked,
	// or removed if it is none.
	Lock   bool
	Policy Policy
}

// Refusal says why a wish is not carried out.
type Refusal struct {
	// Reason is disable, unlock or shorten; it is a metric label.
	Reason  string
	Message string
}

// Refusal reasons.
const (
	reasonDisable = "disable"
	reasonUnlock  = "unlock"
	reasonShorten = "shorten"
)

var refusalReasons = []string{reasonDisable, reasonUnlock, reasonShorten}

// Error makes a refusal the error of a reconcile.
func (r *Refusal) Error() string { return r.Message }

// Plan is what has to happen to a bucket's policy.
type Plan struct {
	Steps []Step
	// Drift says that somebody weakened what we had recorded; Steps repair it.
	Drift bool
	// Refusal is set when the wish would weaken a lock. Steps then hold at most
	// the repair of a lock that was weakened behind our back.
	Refusal *Refusal
}

// planPolicy compares the wish, the cloud's answer and our own record of what
// was set before (none if nothing was). It is pure.
//
// The record matters because on S3 anyone with s3:PutBucketObjectLockConfiguration
// can remove a bucket's default retention in COMPLIANCE mode too: a recorded lock
// is a floor for the wish even while the cloud shows less.
func planPolicy(desired, live, recorded Policy) Plan {
	floor := Policy{}
	if live.Locked {
		floor = live
	}
	if recorded.Locked && recorded.Days > floor.Days {
		floor = recorded
	}
	// A lock that we never set and nobody asks for is left alone and reported.
	foreign := desired.None() && !recorded.Locked
	if floor.Locked && !foreign && desired.weakerThan(floor) {
		plan := Plan{Refusal: refuse(desired, floor)}
		if live.weakerThan(floor) {
			plan.Drift = true
			plan.Steps = []Step{{Lock: true, Policy: floor}}
		}
		return plan
	}

	switch {
	case desired == live:
		return Plan{}
	case desired.None():
		if live.None() || live != recorded || live.Locked {
			return Plan{}
		}
		return Plan{Steps: []Step{{}}}
	}
	plan := Plan{Drift: live.weakerThan(recorded)}
	locked := Step{Lock: true, Policy: desired}
	unlocked := Step{Policy: Policy{Days: desired.Days}}
	switch {
	case !desired.Locked:
		plan.Steps = []Step{unlocked}
	case live.Locked, plan.Drift && recorded.Locked, live == unlocked.Policy:
		plan.Steps = []Step{locked}
	default:
		plan.Steps = []Step{unlocked, locked}
	}
	return plan
}

func refuse(desired, floor Policy) *Refusal {
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
	r.Message = fmt.Sprintf("the bucket has a %s, spec.providerConfig asks for %s: a locked policy cannot be %s; "+
		"keep immutability locked (S3: mode: compliance) with retentionPeriod: %s or longer", floor, asked, rule, floor.Hours())
	return r
}

// configError is a mistake in the resource that its author can fix.
type configError struct{ message string }

func (e *configError) Error() string { return e.message }

func configErrorf(format string, args ...any) error {
	return &configError{message: fmt.Sprintf(format, args...)}
}

const (
	backupBucketConfigKind = "BackupBucketConfig"
	providerGroupSuffix    = ".provider.extensions.gardener.cloud"

	modeCompliance = "compliance"
	modeGovernance = "governance"
)

// immutabilityConfig is spec.providerConfig.immutability, in the format of
// gardener-extension-provider-aws and -azure (pkg/apis/*/v1alpha1/types_backupbucket.go).
type immutabilityConfig struct {
	RetentionType   string `json:"retentionType"`
	RetentionPeriod string `json:"retentionPeriod"`
	Locked          *bool  `json:"locked,omitempty"`
	Mode            string `json:"mode,omitempty"`
}

// s3BucketConfig is spec.providerConfig of a BackupBucket on S3.
type s3BucketConfig struct {
	APIVersion   string              `json:"apiVersion"`
	Kind         string              `json:"kind"`
	Immutability *immutabilityConfig `json:"immutability,omitempty"`
}

// parsePolicy reads the wished policy from spec.providerConfig of a BackupBucket
// with the given spec.type. Absent means none. Every error is a *configError
// that names the field.
func parsePolicy(providerType string, raw []byte) (Policy, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return Policy{}, nil
	}
	var config s3BucketConfig
	strict, err := json.UnmarshalStrict(raw, &config)
	if err != nil {
		// encoding/json says the same with a typed error that names the field.
		var mismatch *stdjson.UnmarshalTypeError
		if errors.As(stdjson.Unmarshal(raw, &config), &mismatch) {
			path := strings.TrimSuffix("spec.providerConfig."+mismatch.Field, ".")
			return Policy{}, configErrorf("%s must not be a JSON %s", path, mismatch.Value)
		}
		return Policy{}, configErrorf("spec.providerConfig cannot be decoded: %v", err)
	}
	// Group and kind come first: with another kind, its fields are unknown as well.
	want := providerType + providerGroupSuffix + "/v1alpha1"
	if config.Kind != backupBucketConfigKind {
		return Policy{}, configErrorf("spec.providerConfig.kind is %q, must be %q", config.Kind, backupBucketConfigKind)
	}
	if config.APIVersion != want {
		return Policy{}, configErrorf("spec.providerConfig.apiVersion is %q, must be %q for spec.type %q", config.APIVersion, want, providerType)
	}
	if len(strict) > 0 {
		return Policy{}, configErrorf("spec.providerConfig is not valid: %s", strings.ReplaceAll(errors.Join(strict...).Error(), "\n", ", "))
	}
	if config.Immutability == nil {
		return Policy{}, nil
	}
	return config.Immutability.policy()
}

func (c *immutabilityConfig) policy() (Policy, error) {
	const path = "spec.providerConfig.immutability."
	if c.RetentionType != "bucket" {
		return Policy{}, configErrorf("%sretentionType is %q, must be \"bucket\"", path, c.RetentionType)
	}
	days, err := parseRetentionDays(path+"retentionPeriod", c.RetentionPeriod, s3MaxRetentionDays)
	if err != nil {
		return Policy{}, err
	}
	// Neither mode nor locked means unlocked, the form that can be undone.
	policy := Policy{Days: days}
	switch mode := c.Mode; mode {
	case "":
		policy.Locked = c.Locked != nil && *c.Locked
	case modeCompliance, modeGovernance:
		policy.Locked = mode == modeCompliance
		if c.Locked != nil && *c.Locked != policy.Locked {
			return Policy{}, configErrorf("%smode %q contradicts locked: %t; compliance is locked, governance is not: write only one of the two", path, mode, *c.Locked)
		}
	default:
		return Policy{}, configErrorf("%smode is %q, must be %q or %q", path, mode, modeCompliance, modeGovernance)
	}
	return policy, nil
}

// parseRetentionDays reads a retention period written as a Go duration: whole
// days, at least one, at most limit days.
func parseRetentionDays(path, value string, limit int32) (int32, error) {
	const day = 24 * time.Hour
	if value == "" {
		return 0, configErrorf("%s is missing: write whole days in hours, such as \"96h\"", path)
	}
	period, err := time.ParseDuration(value)
	switch {
	case err != nil:
		// Beyond about 292 years a duration overflows and reads as malformed.
		return 0, configErrorf("%s %q is not a duration up to %dh: write whole days in hours, such as \"96h\"", path, strings.ToValidUTF8(value, "?"), int64(limit)*24)
	case period < day:
		return 0, configErrorf("%s is %s, must be at least 24h", path, value)
	case period%day != 0:
		return 0, configErrorf("%s is %s, must be whole days (a multiple of 24h)", path, value)
	case period/day > time.Duration(min(limit, math.MaxInt32)):
		return 0, configErrorf("%s is %s, the store allows at most %dh", path, value, int64(limit)*24)
	}
	return int32(period / day), nil
}
