// The retention of single object versions on S3: read, and made longer.
//
// Rules:
//   - What is written is always COMPLIANCE, whose date can only grow, for everybody; GOVERNANCE counts as none.
//   - One request for a version, without a look before it: an earlier date is refused and does no harm.
//   - What a refusal means differs by store and is often several things at once (docs/stores.md); where the answer does not
//     tell, the error says so, and whoever called looks.

package main

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

var _ extender = &s3Bucket{}

// lock implements lockReader.
func (b *s3Bucket) lock(ctx context.Context, v version) (versionLock, error) {
	var lock versionLock
	out, err := b.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id)})
	switch {
	case err != nil && !s3NoLock(err):
		return versionLock{}, b.failVersion(err, v)
	case err == nil && out.Retention != nil:
		if until := aws.ToTime(out.Retention.RetainUntilDate); until.After(time.Now()) {
			if out.Retention.Mode == types.ObjectLockRetentionModeCompliance {
				return versionLock{until: until}, nil
			}
			lock.governance = true
		}
	}
	hold, err := b.GetObjectLegalHold(ctx, &s3.GetObjectLegalHoldInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id)})
	if err != nil && !s3NoLock(err) {
		return versionLock{}, b.failVersion(err, v)
	}
	lock.held = err == nil && hold.LegalHold != nil && hold.LegalHold.Status == types.ObjectLockLegalHoldStatusOn
	return lock, nil
}

// s3LastDate is the last date that every store keeps: Ceph counts seconds in 32 bits, and one second later is 1970 to it, which
// would free the version.
var s3LastDate = time.Unix(math.MaxUint32, 0)

// extend implements extender.
func (b *s3Bucket) extend(ctx context.Context, v version, until time.Time, bypass bool) error {
	until = wholeSecond(until)
	switch {
	case v.marker:
		return b.errorf("", errNoVersion, "object %q of bucket %q is a delete marker, which cannot be retained", v.key, b.Name)
	case !b.aws && until.After(s3LastDate):
		return b.errorf(codeConfigurationProblem, errNoRetention, "no version in bucket %q is retained beyond %s: some stores take a later "+
			"date for one in the past", b.Name, s3LastDate.UTC().Format(time.RFC3339))
	}
	in := &s3.PutObjectRetentionInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id), Retention: &types.ObjectLockRetention{
		Mode: types.ObjectLockRetentionModeCompliance, RetainUntilDate: &until,
	}}
	if bypass {
		in.BypassGovernanceRetention = &bypass
	}
	out, err := b.PutObjectRetention(ctx, in, func(o *s3.Options) {
		// Beside the SDK's own checksum, for the stores that ask for this one.
		o.APIOptions = append(slices.Clone(o.APIOptions), smithyhttp.AddContentChecksumMiddleware)
	})
	code := s3ErrorCode(err)
	switch {
	case err == nil && !s3Wrote(out.ResultMetadata):
		return nil
	case err == nil:
		// What was under the key is a version below it, and the next look at the backups tells of it.
		return b.errorf(codeConfigurationProblem, errors.Join(errNoRetention, errS3OtherAnswer), "bucket %q cannot retain single versions: "+
			"the store took the request for a new content of object %q", b.Name, v.key)
	case s3Unsupported(err), code == "ObjectLockConfigurationNotFoundError", b.aws && code == "InvalidRequest":
		return b.errorf(codeConfigurationProblem, errors.Join(errNoRetention, err), "bucket %q cannot retain single versions (%s)", b.Name,
			cmp.Or(code, strconv.Itoa(s3Status(err))))
	case code == "ObjectLocked":
		return b.fail(errors.Join(errRetainedLonger, err))
	case s3Denied(err), s3RetainedCodes[code]:
		return b.fail(errors.Join(errNotExtended, err))
	}
	return b.failVersion(err, v)
}

// s3Wrote says that an answer is that to another object: the store did not look at what it was asked beside the key.
func s3Wrote(metadata middleware.Metadata) bool {
	response, ok := awsmiddleware.GetRawResponse(metadata).(*smithyhttp.Response)
	return ok && response.Header.Get("ETag") != ""
}

// wholeSecond is the first whole second that is not before t, in UTC.
func wholeSecond(t time.Time) time.Time {
	whole := t.UTC().Truncate(time.Second)
	if whole.Before(t) {
		whole = whole.Add(time.Second)
	}
	return whole
}
