// The lock of a bucket on S3, tried with an object version of our own.
//
// Rules:
//   - Always by version id: without one a deletion succeeds under a lock, and proves nothing.
//   - AWS and Ceph answer AccessDenied, MinIO InvalidRequest, and each of them means other things as well: none is taken for a
//     lock here, the control above decides.
//   - Nothing is repeated: one attack is one entry in the store's log.

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

var _ attackControl = &s3Bucket{}

// attacks implements attacker. What takes the canary away goes last.
func (b *s3Bucket) attacks() []string {
	return []string{attackDelete, attackShorten, attackShortenBypass, attackDeleteBypass}
}

// plant implements attacker.
func (b *s3Bucket) plant(ctx context.Context, key string) (version, error) {
	sum := md5.Sum(nil)
	out, err := b.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.Name, Key: &key, Body: bytes.NewReader(nil),
		ContentMD5: aws.String(base64.StdEncoding.EncodeToString(sum[:]))})
	if err != nil {
		return version{}, b.fail(err)
	}
	return version{key: key, id: aws.ToString(out.VersionId), created: s3Now(out.ResultMetadata)}, nil
}

// retention implements attacker.
func (b *s3Bucket) retention(ctx context.Context, v version) (until time.Time, removable bool, err error) {
	out, err := b.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id)})
	switch {
	case err != nil && s3NoLock(err):
		return time.Time{}, false, nil
	case err != nil:
		return time.Time{}, false, b.failVersion(err, v)
	case out.Retention == nil:
		return time.Time{}, false, nil
	}
	return aws.ToTime(out.Retention.RetainUntilDate), out.Retention.Mode != types.ObjectLockRetentionModeCompliance, nil
}

// attack implements attacker.
func (b *s3Bucket) attack(ctx context.Context, name string, v version, until time.Time, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	var bypass *bool
	if name == attackDeleteBypass || name == attackShortenBypass {
		bypass = aws.Bool(true)
	}
	var err error
	switch name {
	case attackDelete, attackDeleteBypass:
		_, err = b.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id),
			BypassGovernanceRetention: bypass}, s3Once)
	case attackShorten, attackShortenBypass:
		mode := types.ObjectLockRetentionModeCompliance
		if bypass != nil {
			mode = types.ObjectLockRetentionModeGovernance
		}
		// To half of what is left: a store takes no date that has passed.
		sooner := time.Now().Add(time.Until(until) / 2)
		err = b.putRetention(ctx, v, mode, sooner, bypass)
	default:
		return fmt.Errorf("there is no attack %q on S3", name)
	}
	return b.failAttack(err, v)
}

func (b *s3Bucket) putRetention(ctx context.Context, v version, mode types.ObjectLockRetentionMode, until time.Time, bypass *bool) error {
	_, err := b.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id),
		BypassGovernanceRetention: bypass,
		Retention:                 &types.ObjectLockRetention{Mode: mode, RetainUntilDate: aws.Time(until.UTC().Truncate(time.Second))}}, s3Once)
	return err
}

// failAttack makes the *storeError of an SDK error about an attack, with errRefused if a lock can be the reason.
func (b *s3Bucket) failAttack(err error, v version) error {
	if err == nil {
		return nil
	}
	failed := b.failVersion(err, v)
	// Some say so without a code.
	if s3RetainedCodes[s3ErrorCode(err)] || s3Denied(err) && s3Status(err) == http.StatusForbidden {
		return &refusedError{errRefused, failed}
	}
	return failed
}

// discard implements attacker.
func (b *s3Bucket) discard(ctx context.Context, v version, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	_, err := b.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id)}, s3Once)
	if s3Gone(err) {
		return nil
	}
	return b.failAttack(err, v)
}

// mark implements attackControl.
func (b *s3Bucket) mark(ctx context.Context, key string) (version, error) {
	out, err := b.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.Name, Key: &key}, s3Once)
	if err != nil {
		return version{}, b.failAttack(err, version{key: key})
	}
	return version{key: key, id: aws.ToString(out.VersionId), marker: true}, nil
}

// lengthen implements attackControl.
func (b *s3Bucket) lengthen(ctx context.Context, v version, until time.Time, removable bool) error {
	mode := types.ObjectLockRetentionModeCompliance
	if removable {
		mode = types.ObjectLockRetentionModeGovernance
	}
	return b.failAttack(b.putRetention(ctx, v, mode, until, nil), v)
}
