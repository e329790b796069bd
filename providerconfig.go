// What the spec asks for (desired) and what status.providerStatus remembers (record): two values, read from and written
// to the resource. Each store has a format of its own for providerConfig and reads it with the parts that are here.
// Decoding is strict, since a slip could cost protection, and every error names the field. Of a record, what cannot be
// read or is not ours is taken for nothing.

package main

import (
	"cmp"
	stdjson "encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/json"
)

// desired is what spec.providerConfig of a BackupBucket asks for.
type desired struct {
	Policy Policy
	// Cloud is the name of the cloud, empty if there is none. CloudUnknown says that it may be there but could not be read.
	Cloud        string
	CloudUnknown bool
	// Rotation is zero if keys are not to be rotated by age.
	Rotation keyRotation
	// err says why the spec cannot be carried out. What is recorded is then still defended: a broken spec must not open
	// the door.
	err error
}

// record is what status.providerStatus remembers of a bucket: the policy that we have set, where it was found, and where
// it came from.
type record struct {
	Policy         Policy
	Cloud, Account string
	Origin         bucketOrigin
}

// bucketOrigin says where a bucket came from; empty if that is not known.
type bucketOrigin string

const (
	// originCreated: by us.
	originCreated bucketOrigin = "Created"
	// originTakenOver: from another controller, that had made it for the same BackupBucket.
	originTakenOver bucketOrigin = "TakenOver"
	// originAdopted: it was there before its BackupBucket.
	originAdopted bucketOrigin = "Adopted"
)

// ours says that everything in the bucket goes with its BackupBucket. What is not known is treated as somebody else's.
func (r record) ours() bool { return r.Origin == originCreated || r.Origin == originTakenOver }

// keyRotation says when an account's access keys are rotated; the zero value: never.
type keyRotation struct {
	Days int32
	// ExpirationDays is the account's key expiration policy, 0 if none is asked for.
	ExpirationDays int32
}

// due says whether a key created then is to be replaced; one of unknown age is.
func (r keyRotation) due(created, now time.Time) bool {
	return r.Days > 0 && (created.IsZero() || !now.Before(created.UTC().AddDate(0, 0, int(r.Days))))
}

// readBucket reads what a BackupBucket asks for and what is remembered of it.
func (s *scope) readBucket(b *backupBucket) (desired, record) {
	old := readRecord(b.ProviderStatus)
	want, err := s.providers[b.Type].parseConfig(providerConfigPath, b.Type, b.ProviderConfig)
	// Without spec.providerConfig, credentials of a custom cloud must not go to the public one.
	want.Cloud = cmp.Or(want.Cloud, old.Cloud)
	switch {
	case b.decodeErr != nil:
		err = configErrorf("the BackupBucket cannot be read: %v", b.decodeErr)
	case b.Region == "":
		err = configErrorf("spec.region is empty")
	}
	if err != nil {
		want.Policy, want.err = old.Policy, err
	}
	return want, old
}

const (
	backupBucketConfigKind = "BackupBucketConfig"
	providerGroupSuffix    = ".provider.extensions.gardener.cloud"
)

// providerConfigPath is where a BackupBucket has its providerConfig.
var providerConfigPath = field.NewPath("spec", "providerConfig")

type configHeader struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// Metadata is in the samples of Gardener's documentation, and means nothing.
	Metadata any `json:"metadata,omitempty"`
}

func (h *configHeader) header() configHeader { return *h }

// immutabilityConfig is the part of spec.providerConfig.immutability that all stores have.
type immutabilityConfig struct {
	RetentionType   string `json:"retentionType"`
	RetentionPeriod string `json:"retentionPeriod"`
	Locked          *bool  `json:"locked,omitempty"`
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

// withoutEmbedded removes what encoding/json puts into a field's path though no user wrote it.
var withoutEmbedded = strings.NewReplacer("configHeader.", "", "immutabilityConfig.", "")

// decodeConfig decodes a providerConfig strictly; an absent one asks for nothing.
func decodeConfig(path *field.Path, providerType string, raw []byte, config interface{ header() configHeader }) error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	strict, err := json.UnmarshalStrict(raw, config)
	if err != nil {
		// encoding/json says the same with a typed error that names the field.
		var mismatch *stdjson.UnmarshalTypeError
		if errors.As(stdjson.Unmarshal(raw, config), &mismatch) {
			at := strings.TrimSuffix(path.String()+"."+withoutEmbedded.Replace(mismatch.Field), ".")
			return configErrorf("%s must not be a JSON %s", at, mismatch.Value)
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
		return 0, configErrorf("%s %q is not a duration up to %dh: write whole days in hours, such as \"96h\"", path,
			strings.ToValidUTF8(value, "?"), int64(limit)*24)
	case period < day:
		return 0, configErrorf("%s is %s, must be at least 24h", path, value)
	case period%day != 0:
		return 0, configErrorf("%s is %s, must be whole days (a multiple of 24h)", path, value)
	case period/day > time.Duration(limit):
		return 0, configErrorf("%s is %s, the store allows at most %dh", path, value, int64(limit)*24)
	}
	return int32(period / day), nil
}

type cloudConfiguration struct {
	Name string `json:"name"`
}

// bucketStatus is status.providerStatus. gardenlet copies it into every BackupEntry and
// reconciles them all when it changes, so it holds only facts that rarely do.
type bucketStatus struct {
	configHeader
	// Not omitempty: in a merge patch only null removes what was there.
	Immutability       *recordedPolicy     `json:"immutability"`
	CloudConfiguration *cloudConfiguration `json:"cloudConfiguration"`
	StorageAccount     string              `json:"storageAccount,omitempty"`
	Origin             bucketOrigin        `json:"origin,omitempty"`
}

// recordedPolicy is a policy in providerStatus. Mode is what the store calls it; compliance is locked.
type recordedPolicy struct {
	immutabilityConfig
	Mode string `json:"mode,omitempty"`
}

const bucketStatusKind = "BackupBucketStatus"

// providerStatus is a record as providerStatus; nil if there is nothing to remember.
func providerStatus(providerType string, r record) *bucketStatus {
	if r == (record{}) {
		return nil
	}
	status := &bucketStatus{
		configHeader:   configHeader{APIVersion: providerType + providerGroupSuffix + "/v1alpha1", Kind: bucketStatusKind},
		StorageAccount: r.Account, Origin: r.Origin,
	}
	if r.Cloud != "" {
		status.CloudConfiguration = &cloudConfiguration{Name: r.Cloud}
	}
	if !r.Policy.None() {
		status.Immutability = &recordedPolicy{immutabilityConfig: immutabilityConfig{
			RetentionType: "bucket", RetentionPeriod: r.Policy.Hours(), Locked: &r.Policy.Locked}}
	}
	return status
}

// readRecord reads providerStatus. Whatever another controller left there is no record of ours. A field that cannot be read
// makes no other one unread: the lock must not be forgotten for a word beside it.
func readRecord(raw []byte) record {
	var fields struct {
		Kind, Immutability, CloudConfiguration, StorageAccount, Origin stdjson.RawMessage
	}
	var status bucketStatus
	if len(raw) == 0 || stdjson.Unmarshal(raw, &fields) != nil || stdjson.Unmarshal(fields.Kind, &status.Kind) != nil ||
		status.Kind != bucketStatusKind {
		return record{}
	}
	var immutability *recordedPolicy
	if stdjson.Unmarshal(fields.Immutability, &immutability) == nil {
		status.Immutability = immutability
	}
	var cloud *cloudConfiguration
	if stdjson.Unmarshal(fields.CloudConfiguration, &cloud) == nil {
		status.CloudConfiguration = cloud
	}
	_ = stdjson.Unmarshal(fields.StorageAccount, &status.StorageAccount) // else they stay empty
	_ = stdjson.Unmarshal(fields.Origin, &status.Origin)
	r := record{Account: status.StorageAccount, Origin: status.Origin}
	if status.CloudConfiguration != nil {
		r.Cloud = status.CloudConfiguration.Name
	}
	if status.Immutability != nil {
		// What cannot be read, or contradicts itself, is no policy.
		policy, err := status.Immutability.policy(providerConfigPath, math.MaxInt32)
		if mode := status.Immutability.Mode; err == nil && mode != "" {
			locked := status.Immutability.Locked
			if locked != nil && *locked != (mode == modeCompliance) {
				return r
			}
			policy.Locked = mode == modeCompliance
		}
		r.Policy = policy
	}
	return r
}
