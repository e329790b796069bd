// A bucket on S3 and stores that speak its API, and its immutability policy.
//
// Rules:
//   - Locked is a default retention in COMPLIANCE mode, unlocked one in GOVERNANCE mode.
//   - What exists and belongs to somebody else, or lies elsewhere, is never adopted.
//   - Versioning, once enabled, can only be suspended: on a bucket that exists it is enabled on AWS only, for object lock.

package main

import (
	"context"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const (
	// s3MaxRetentionDays is S3's maximum, 100 years: "minimum retention period of 1
	// day, maximum 100 years"
	// (docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock-managing.html).
	s3MaxRetentionDays int32 = 36500

	s3MaxAttempts    = 4
	s3MaxBackoff     = 5 * time.Second
	s3RequestTimeout = time.Minute
	s3PageSize       = 1000 // the maximum of ListObjectVersions and DeleteObjects
	s3DefaultRegion  = "us-east-1"
	s3UserAgent      = "bucketwarden"
	s3ClockSkew      = 15 * time.Minute // S3 refuses requests whose time is off by more
)

var s3ReservedNames = struct{ prefixes, suffixes []string }{
	prefixes: []string{"xn--", "sthree-", "amzn-s3-demo-"},
	suffixes: []string{"-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"},
}

// checkS3BucketName applies
// docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html.
func checkS3BucketName(name string) error {
	if !s3BucketNamePattern.MatchString(name) || strings.Contains(name, "..") {
		return configErrorf("bucket name %q is not allowed on S3: it must be 3 to 63 lower-case letters, digits, hyphens and single dots, "+
			"and begin and end with a letter or digit", name)
	}
	if addr, err := netip.ParseAddr(name); err == nil && addr.Is4() {
		return configErrorf("bucket name %q is not allowed on S3: it is formatted like an IP address", name)
	}
	for _, prefix := range s3ReservedNames.prefixes {
		if strings.HasPrefix(name, prefix) {
			return configErrorf("bucket name %q is not allowed on S3: the prefix %q is reserved", name, prefix)
		}
	}
	for _, suffix := range s3ReservedNames.suffixes {
		if strings.HasSuffix(name, suffix) {
			return configErrorf("bucket name %q is not allowed on S3: the suffix %q is reserved", name, suffix)
		}
	}
	return nil
}

// s3Bucket implements Store.
type s3Bucket struct {
	*s3Client
	bucketRef
	// retains says that the bucket had a policy when it was last observed.
	retains atomic.Bool
}

var _ Store = &s3Bucket{}

// Observe implements Store. The first request is the one whose answer has most in it:
// unlike HeadBucket, its errors have codes. A locked bucket needs no other.
func (b *s3Bucket) Observe(ctx context.Context) (BucketState, error) {
	lock, err := b.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &b.Name})
	switch {
	case err == nil:
		if config := lock.ObjectLockConfiguration; config != nil && (config.ObjectLockEnabled == types.ObjectLockEnabledEnabled ||
			config.Rule != nil) {
			policy, err := b.policy(config.Rule)
			if err != nil {
				return BucketState{}, err
			}
			b.retains.Store(!policy.None())
			return BucketState{Exists: true, Policy: policy, Years: !policy.None() && config.Rule.DefaultRetention.Days == nil}, nil
		}
	case s3ErrorCode(err) == "NoSuchBucket":
		return BucketState{}, nil
	case s3Denied(err):
		return BucketState{}, b.denied(ctx, err)
	case !b.lacksLock(err):
		return BucketState{}, b.fail(err)
	}
	// No object lock; some stores say so of buckets that do not exist as well.
	lockErr := err
	head, err := b.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &b.Name})
	switch {
	case err != nil && s3Status(err) == http.StatusNotFound && s3OddNotFound(lockErr):
		return BucketState{}, b.fail(lockErr) // it never said that there is no such bucket
	case err != nil && s3Status(err) == http.StatusNotFound:
		return BucketState{}, nil
	case err != nil && s3Denied(err):
		return BucketState{}, b.denied(ctx, err)
	case err != nil:
		return BucketState{}, b.fail(err)
	}
	// Other stores say us-east-1, or nothing, of every bucket.
	if region := aws.ToString(head.BucketRegion); b.aws && region != "" && region != b.Region {
		return BucketState{}, b.errorf(codeConfigurationProblem, errNotOurBucket, "bucket %q lies in region %q and not in %q", b.Name, region,
			b.Region)
	}
	return BucketState{Exists: true}, nil
}

// lacksLock says that an answer to GetObjectLockConfiguration means no object lock. Of a bucket that has no policy on record,
// that is also what a store says with an error that nobody has foreseen: what a bucket without a lock does not need must
// not fail it, and setting a policy tells for sure.
func (b *s3Bucket) lacksLock(err error) bool {
	_, known := s3Codes[s3ErrorCode(err)]
	switch status := s3Status(err); {
	case err == nil, s3Unsupported(err), s3ErrorCode(err) == "ObjectLockConfigurationNotFoundError":
		return true
	case known, s3Codeless(err), !b.Recorded.None():
		return false
	default:
		return status == http.StatusBadRequest || status == http.StatusNotFound
	}
}

// denied explains why an existing bucket may not be read: it is ours and a permission
// is missing, or it is somebody else's. Both are the same error in S3.
func (b *s3Bucket) denied(ctx context.Context, denied error) error {
	list, err := b.ListBuckets(ctx, &s3.ListBucketsInput{Prefix: &b.Name, MaxBuckets: aws.Int32(s3PageSize)})
	switch {
	case err != nil && !s3Denied(err) && !s3Unsupported(err):
		return b.fail(err)
	case err == nil && slices.ContainsFunc(list.Buckets, func(bucket types.Bucket) bool { return aws.ToString(bucket.Name) == b.Name }):
		return b.fail(denied)
	// Other stores list only the buckets that the credentials may see.
	case b.aws && err == nil && aws.ToString(list.ContinuationToken) == "":
		return b.errorf(codeConfigurationProblem, errNotOurBucket, "bucket %q exists and is not among the buckets of these credentials: "+
			"it belongs to somebody else, or a policy hides it; choose another name or other credentials", b.Name)
	}
	return b.errorf(codeUnauthorized, denied, "access to bucket %q is denied: it belongs to somebody else, "+
		"or the credentials lack the permissions s3:ListBucket and s3:GetBucketObjectLockConfiguration", b.Name)
}

func (b *s3Bucket) policy(rule *types.ObjectLockRule) (Policy, error) {
	if rule == nil || rule.DefaultRetention == nil {
		return Policy{}, nil
	}
	retention := rule.DefaultRetention
	days := int64(aws.ToInt32(retention.Days))
	if retention.Days == nil {
		days = 365 * int64(aws.ToInt32(retention.Years))
	}
	if days <= 0 || days > math.MaxInt32 {
		return Policy{}, b.errorf(codeConfigurationProblem, nil, "bucket %q has a default retention of %d days, which is none that S3 "+
			"allows: correct or remove it", b.Name, days)
	}
	switch retention.Mode {
	case types.ObjectLockRetentionModeCompliance:
		return Policy{Days: int32(days), Locked: true}, nil
	case types.ObjectLockRetentionModeGovernance:
		return Policy{Days: int32(days)}, nil
	}
	return Policy{}, b.errorf(codeConfigurationProblem, nil, "bucket %q has a default retention in mode %q, which is neither %s nor %s: "+
		"correct or remove it",
		b.Name, retention.Mode, types.ObjectLockRetentionModeCompliance, types.ObjectLockRetentionModeGovernance)
}

// Create implements Store.
func (b *s3Bucket) Create(ctx context.Context, immutable bool) error {
	in := &s3.CreateBucketInput{Bucket: &b.Name}
	if immutable {
		in.ObjectLockEnabledForBucket = aws.Bool(true)
	}
	if b.Region != s3DefaultRegion {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(b.Region)}
	}
	_, err := b.CreateBucket(ctx, in)
	switch {
	case err == nil, s3ErrorCode(err) == "BucketAlreadyOwnedByYou":
		return nil
	case immutable && s3Unsupported(err):
		return b.noObjectLock()
	}
	return b.fail(err)
}

// SetPolicy implements Store.
func (b *s3Bucket) SetPolicy(ctx context.Context, p Policy) error {
	if p.None() {
		return b.putObjectLock(ctx, nil)
	}
	return b.putObjectLock(ctx, s3Rule(types.ObjectLockRetentionModeGovernance, p))
}

// LockPolicy implements Store.
func (b *s3Bucket) LockPolicy(ctx context.Context, p Policy) error {
	return b.putObjectLock(ctx, s3Rule(types.ObjectLockRetentionModeCompliance, p))
}

func s3Rule(mode types.ObjectLockRetentionMode, p Policy) *types.ObjectLockRule {
	return &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: mode, Days: &p.Days}}
}

// putObjectLock sets the default retention. Where the bucket has no object lock yet it
// is enabled, with versioning, which it needs. If that fails, versioning is put back.
func (b *s3Bucket) putObjectLock(ctx context.Context, rule *types.ObjectLockRule) error {
	put := func() error {
		_, err := b.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{
			Bucket:                  &b.Name,
			ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled, Rule: rule},
		})
		return err
	}
	err := put()
	if !s3NotLockable(err) {
		return b.failObjectLock(err)
	}
	versioning, err := b.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &b.Name})
	if err != nil {
		return b.failObjectLock(err)
	}
	if versioning.Status == types.BucketVersioningStatusEnabled {
		return b.objectLockOnlyAtCreation()
	}
	// Of the stores that are not AWS, few can; versioning, which once enabled never goes
	// away again, is not enabled on a guess.
	if !b.aws {
		return b.errorf(codeConfigurationProblem, nil, "bucket %q cannot be made immutable: it was created without object lock; "+
			"if the store can enable that later, enable versioning on the bucket first, else the bucket has to be recreated", b.Name)
	}
	if err := b.putVersioning(ctx, types.BucketVersioningStatusEnabled); err != nil {
		return b.failObjectLock(err)
	}
	err = put()
	// On AWS it takes a moment until everyone knows that versioning is enabled.
	for attempt := 1; b.aws && attempt < s3MaxAttempts && s3NotLockable(err); attempt++ {
		if err := sleep(ctx, b.traits().backoff(attempt)); err != nil {
			break
		}
		err = put()
	}
	if err == nil {
		return nil
	}
	undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s3RequestTimeout)
	defer cancel()
	if undoErr := b.putVersioning(undoCtx, types.BucketVersioningStatusSuspended); undoErr != nil {
		return b.fail(undoErr)
	}
	return b.failObjectLock(err)
}

func (b *s3Bucket) putVersioning(ctx context.Context, status types.BucketVersioningStatus) error {
	_, err := b.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{
		Bucket: &b.Name, VersioningConfiguration: &types.VersioningConfiguration{Status: status},
	})
	return err
}

// s3NotLockable is the answer for a bucket without object lock or versioning.
func s3NotLockable(err error) bool {
	code := s3ErrorCode(err)
	return code == "InvalidBucketState" || code == "ObjectLockConfigurationNotFoundError"
}

func (b *s3Bucket) failObjectLock(err error) error {
	switch {
	case err == nil:
		return nil
	case s3Unsupported(err):
		return b.noObjectLock()
	case s3NotLockable(err):
		return b.objectLockOnlyAtCreation()
	}
	return b.fail(err)
}

func (b *s3Bucket) noObjectLock() error {
	return b.errorf(codeConfigurationProblem, nil, "bucket %q cannot be made immutable: the store has no object lock", b.Name)
}

func (b *s3Bucket) objectLockOnlyAtCreation() error {
	return b.errorf(codeConfigurationProblem, nil, "bucket %q cannot be made immutable: it was created without object lock, "+
		"and this store can enable it only when a bucket is created: the bucket has to be recreated", b.Name)
}

// Delete implements Store.
func (b *s3Bucket) Delete(ctx context.Context, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	_, err := b.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &b.Name})
	switch {
	case err == nil, s3ErrorCode(err) == "NoSuchBucket":
		return nil
	case s3ErrorCode(err) == "BucketNotEmpty":
		return b.errorf("", errBucketNotEmpty, "bucket %q cannot be deleted: %s", b.Name, errBucketNotEmpty)
	}
	return b.fail(err)
}
