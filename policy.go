package main

import (
	stdjson "encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
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

// Step is one change of a bucket's policy in the cloud.
type Step struct {
	// Lock makes Policy irreversible; without it the policy is set unlocked,
	// or removed if it is none.
	Lock   bool
	Policy Policy
}

// Refusal says why a wish is not carried out.
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
func planPolicy(desired, live, recorded Policy) policyPlan {
	floor := lockedFloor(live, recorded)
	// A lock that we never set and nobody asks for is left alone and reported.
	foreign := desired.None() && !recorded.Locked
	if floor.Locked && !foreign && desired.weakerThan(floor) {
		plan := policyPlan{Refusal: refuse(providerConfigPath, desired, floor)}
		if live.weakerThan(floor) {
			plan.Drift = true
			plan.Steps = []Step{{Lock: true, Policy: floor}}
		}
		return plan
	}

	switch {
	case desired == live:
		return policyPlan{}
	case desired.None():
		if live.None() || live != recorded || live.Locked {
			return policyPlan{}
		}
		return policyPlan{Steps: []Step{{}}}
	}
	plan := policyPlan{Drift: live.weakerThan(recorded)}
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

// refuse says why the wish in the providerConfig at path is not carried out on a bucket
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
	warnLock       = "lock"
	warnExtend     = "extend"
	warnLong       = "long"
	warnShort      = "short"
	warnGovernance = "governance"
)

const (
	// longRetentionDays: what is retained longer is paid for longer, and nobody can undo it.
	longRetentionDays = 365
	// shortRetentionDays: backups should outlast a weekend on which nobody looks.
	shortRetentionDays = 3
)

// policyWarnings says, by reason, what is legal but dangerous about a wish for a bucket on
// the kind of store that has been locked so far as floor says.
func policyWarnings(path *field.Path, kind storeKind, desired, floor Policy) map[string]string {
	warnings := map[string]string{}
	warn := func(reason, field, format string, args ...any) {
		warnings[reason] = fmt.Sprintf("%s: ", path.Child("immutability", field)) + fmt.Sprintf(format, args...)
	}
	lockField := "locked"
	if kind == storeS3 {
		lockField = "mode"
	}
	if desired.Locked && !floor.Locked {
		warn(warnLock, lockField, "locking is irreversible: from now on retention can only grow, and a bucket with a retention of %s cannot be deleted before it ends", desired.Hours())
	}
	if kind == storeAzure && floor.Locked && desired.Days > floor.Days {
		warn(warnExtend, "retentionPeriod", "Azure allows a locked policy to be extended five times, ever; this is one of them")
	}
	if desired.Days > longRetentionDays {
		warn(warnLong, "retentionPeriod", "%s is longer than a year; nothing in the bucket can be deleted before", desired.Hours())
	}
	if desired.Locked && desired.Days < shortRetentionDays {
		warn(warnShort, "retentionPeriod", "%s is very short: after a weekend on which nobody looks, every backup can be deleted", desired.Hours())
	}
	if kind == storeS3 && !desired.None() && !desired.Locked {
		warn(warnGovernance, lockField, "governance protects only from those without the permission s3:BypassGovernanceRetention, and can be undone; compliance is the locked form")
	}
	return warnings
}

// refuseExtension says why a locked policy cannot be extended any more.
func refuseExtension(desired, live Policy) *Refusal {
	return &Refusal{Reason: reasonExtend, Message: fmt.Sprintf("the bucket has a %s, spec.providerConfig asks for %s: "+
		"Azure allows a locked policy to be extended only five times, and that has been done; write retentionPeriod: %s", live, desired, live.Hours())}
}

// configError is a mistake in the resource that its author can fix.
type configError struct{ message string }

func (e *configError) Error() string { return e.message }

func configErrorf(format string, args ...any) error {
	return &configError{message: fmt.Sprintf(format, args...)}
}

const (
	// azureMaxRetentionDays: "between 1 and 146,000 days"
	// (learn.microsoft.com/azure/storage/blobs/immutable-time-based-retention-policy-overview).
	azureMaxRetentionDays int32 = 146000

	backupBucketConfigKind = "BackupBucketConfig"
	providerGroupSuffix    = ".provider.extensions.gardener.cloud"

	modeCompliance = "compliance"
	modeGovernance = "governance"
)

// bucketConfig is what spec.providerConfig of a BackupBucket asks for.
type bucketConfig struct {
	Policy Policy
	// Cloud is cloudConfiguration.name, empty if there is none. CloudUnknown says that it
	// may be there but could not be read.
	Cloud        string
	CloudUnknown bool
	// Rotation is nil if keys are not to be rotated by age.
	Rotation *keyRotation
}

// keyRotation says when an account's access keys are rotated.
type keyRotation struct {
	Days int32
	// ExpirationDays is the account's key expiration policy, 0 if none is asked for.
	ExpirationDays int32
}

// s3BucketConfig and azureBucketConfig are spec.providerConfig of a BackupBucket, in the
// formats of gardener-extension-provider-aws and gardener-extension-provider-azure
// (pkg/apis/*/v1alpha1/types_backupbucket.go).
type s3BucketConfig struct {
	configHeader
	Immutability *s3Immutability `json:"immutability,omitempty"`
}

type azureBucketConfig struct {
	configHeader
	Immutability       *immutabilityConfig `json:"immutability,omitempty"`
	CloudConfiguration *cloudConfiguration `json:"cloudConfiguration,omitempty"`
	RotationConfig     *rotationConfig     `json:"rotationConfig,omitempty"`
}

type cloudConfiguration struct {
	Name string `json:"name"`
}

type configHeader struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

func (h *configHeader) header() configHeader { return *h }

// immutabilityConfig is the part of spec.providerConfig.immutability that all stores have.
type immutabilityConfig struct {
	RetentionType   string `json:"retentionType"`
	RetentionPeriod string `json:"retentionPeriod"`
	Locked          *bool  `json:"locked,omitempty"`
}

type s3Immutability struct {
	immutabilityConfig
	Mode string `json:"mode,omitempty"`
}

type rotationConfig struct {
	RotationPeriodDays   int32  `json:"rotationPeriodDays"`
	ExpirationPeriodDays *int32 `json:"expirationPeriodDays,omitempty"`
}

// providerConfigPath is where a BackupBucket has its providerConfig.
var providerConfigPath = field.NewPath("spec", "providerConfig")

// parseConfig reads the providerConfig at path of a bucket with the given provider type,
// which lies on the given kind of store. Absent means nothing is asked for. Every error is
// a *configError that names the field; what could be read is returned with it.
func parseConfig(path *field.Path, kind storeKind, providerType string, raw []byte) (bucketConfig, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return bucketConfig{}, nil
	}
	if kind == storeAzure {
		var c azureBucketConfig
		decodeErr := decodeConfig(path, providerType, raw, &c)
		config := bucketConfig{}
		if c.CloudConfiguration != nil {
			config.Cloud = c.CloudConfiguration.Name
		}
		if decodeErr != nil {
			config.CloudUnknown = config.Cloud == ""
			return config, decodeErr
		}
		err := c.parse(path, &config)
		return config, err
	}
	var c s3BucketConfig
	if err := decodeConfig(path, providerType, raw, &c); err != nil {
		return bucketConfig{}, err
	}
	policy, err := c.Immutability.policy(path.Child("immutability"), s3MaxRetentionDays)
	return bucketConfig{Policy: policy}, err
}

// withoutEmbedded removes what encoding/json puts into a field's path though no user wrote it.
var withoutEmbedded = strings.NewReplacer("configHeader.", "", "immutabilityConfig.", "")

// decodeConfig decodes strictly.
func decodeConfig(path *field.Path, providerType string, raw []byte, config interface{ header() configHeader }) error {
	strict, err := json.UnmarshalStrict(raw, config)
	if err != nil {
		// encoding/json says the same with a typed error that names the field.
		var mismatch *stdjson.UnmarshalTypeError
		if errors.As(stdjson.Unmarshal(raw, config), &mismatch) {
			return configErrorf("%s must not be a JSON %s", strings.TrimSuffix(path.String()+"."+withoutEmbedded.Replace(mismatch.Field), "."), mismatch.Value)
		}
		return configErrorf("%s cannot be decoded: %v", path, err)
	}
	// Group and kind come first: with another kind, its fields are unknown as well.
	want, have := providerType+providerGroupSuffix+"/v1alpha1", config.header()
	if have.Kind != backupBucketConfigKind {
		return configErrorf("%s is %q, must be %q", path.Child("kind"), have.Kind, backupBucketConfigKind)
	}
	if have.APIVersion != want {
		return configErrorf("%s is %q, must be %q for type %q", path.Child("apiVersion"), have.APIVersion, want, providerType)
	}
	if len(strict) > 0 {
		return configErrorf("%s is not valid: %s", path, strings.ReplaceAll(errors.Join(strict...).Error(), "\n", ", "))
	}
	return nil
}

func (c *azureBucketConfig) parse(path *field.Path, config *bucketConfig) (err error) {
	if c.CloudConfiguration != nil && config.Cloud == "" {
		return configErrorf("%s is empty", path.Child("cloudConfiguration", "name"))
	}
	if config.Rotation, err = c.RotationConfig.rotation(path.Child("rotationConfig")); err != nil {
		return err
	}
	config.Policy, err = c.Immutability.policy(path.Child("immutability"), azureMaxRetentionDays)
	return err
}

// rotation applies the rules of gardener/gardener-extension-provider-azure
// pkg/apis/azure/validation/backupbucket.go.
func (c *rotationConfig) rotation(path *field.Path) (*keyRotation, error) {
	if c == nil {
		return nil, nil
	}
	if c.RotationPeriodDays < 2 {
		return nil, configErrorf("%s is %d, must be at least 2", path.Child("rotationPeriodDays"), c.RotationPeriodDays)
	}
	rotation := &keyRotation{Days: c.RotationPeriodDays}
	if c.ExpirationPeriodDays != nil {
		rotation.ExpirationDays = *c.ExpirationPeriodDays
		if rotation.ExpirationDays <= c.RotationPeriodDays {
			return nil, configErrorf("%s is %d, must be above rotationPeriodDays, which is %d", path.Child("expirationPeriodDays"), rotation.ExpirationDays, c.RotationPeriodDays)
		}
	}
	return rotation, nil
}

func (c *immutabilityConfig) policy(path *field.Path, limit int32) (Policy, error) {
	if c == nil {
		return Policy{}, nil
	}
	if c.RetentionType != "bucket" {
		return Policy{}, configErrorf("%s is %q, must be \"bucket\"", path.Child("retentionType"), c.RetentionType)
	}
	days, err := parseRetentionDays(path.Child("retentionPeriod"), c.RetentionPeriod, limit)
	if err != nil {
		return Policy{}, err
	}
	// Unlocked is the form that can be undone.
	return Policy{Days: days, Locked: c.Locked != nil && *c.Locked}, nil
}

func (c *s3Immutability) policy(path *field.Path, limit int32) (Policy, error) {
	if c == nil {
		return Policy{}, nil
	}
	policy, err := c.immutabilityConfig.policy(path, limit)
	if err != nil {
		return Policy{}, err
	}
	switch mode := c.Mode; mode {
	case "":
	case modeCompliance, modeGovernance:
		policy.Locked = mode == modeCompliance
		if c.Locked != nil && *c.Locked != policy.Locked {
			return Policy{}, configErrorf("%s %q contradicts locked: %t; compliance is locked, governance is not: write only one of the two", path.Child("mode"), mode, *c.Locked)
		}
	default:
		return Policy{}, configErrorf("%s is %q, must be %q or %q", path.Child("mode"), mode, modeCompliance, modeGovernance)
	}
	return policy, nil
}

// parseRetentionDays reads a retention period written as a Go duration: whole
// days, at least one, at most limit days.
func parseRetentionDays(path *field.Path, value string, limit int32) (int32, error) {
	const day = 24 * time.Hour
	if value == "" {
		return 0, configErrorf("%s is missing: write whole days in hours, such as \"96h\"", path)
	}
	// A duration ends at about 292 years, Azure's retention at 400.
	if digits, ok := strings.CutSuffix(value, "h"); ok {
		if hours, err := strconv.ParseUint(digits, 10, 63); err == nil && hours%24 == 0 && hours > 0 && hours/24 <= uint64(limit) {
			return int32(hours / 24), nil
		}
	}
	period, err := time.ParseDuration(value)
	switch {
	// The ValidatingAdmissionPolicy can read no longer one.
	case err != nil, len(value) >= 300:
		return 0, configErrorf("%s %q is not a duration up to %dh: write whole days in hours, such as \"96h\"", path, strings.ToValidUTF8(value, "?"), int64(limit)*24)
	case period < day:
		return 0, configErrorf("%s is %s, must be at least 24h", path, value)
	case period%day != 0:
		return 0, configErrorf("%s is %s, must be whole days (a multiple of 24h)", path, value)
	case period/day > time.Duration(limit):
		return 0, configErrorf("%s is %s, the store allows at most %dh", path, value, int64(limit)*24)
	}
	return int32(period / day), nil
}

// planKeys says which access key the generated secret is to publish, and which one has to
// be regenerated before and published instead; empty if none. published is the value that
// the secret has, empty if there is no secret. It is pure.
//
// A secret that does not publish the youngest key means that a rotation was cut off after
// the key had been regenerated: publishing ends it, rotating again would cut off everybody
// who uses the key published so far.
func planKeys(keys []accessKey, published string, rotation *keyRotation, requested bool, now time.Time) (publish accessKey, regenerate string) {
	for _, key := range keys {
		younger := key.Created.After(publish.Created)
		if publish.Name == "" || younger || key.Created.Equal(publish.Created) && key.Value == published {
			publish = key
		}
	}
	due := rotation != nil && rotation.due(publish.Created, now)
	if publish.Value != published || !requested && !due {
		return publish, ""
	}
	oldest := accessKey{}
	for _, key := range keys {
		if key.Name != publish.Name && (oldest.Name == "" || key.Created.Before(oldest.Created)) {
			oldest = key
		}
	}
	return publish, oldest.Name
}

// due says whether a key created then is to be replaced; one of unknown age is.
func (r *keyRotation) due(created, now time.Time) bool {
	return created.IsZero() || !now.Before(created.UTC().AddDate(0, 0, int(r.Days)))
}
