// What makes a bucket on S3 safer beside its policy: encryption, no public access, TLS (store_s3_public.go, store_s3_tls.go).
//
// Rules:
//   - What others configured is left as it is.
//   - What cannot be done is a gap, one sentence, always the same for the same bucket; so is every answer that nobody foresaw.
//   - A change counts once the store shows it, an encryption default or a public access block once an object could be
//     written with it.

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Harden implements Store.
func (b *s3Bucket) Harden(ctx context.Context) ([]string, error) {
	var gaps []string
	for _, ensure := range []func(context.Context) (string, error){b.ensureEncryption, b.ensurePrivate, b.ensureTLS} {
		gap, err := ensure(ctx)
		if err != nil {
			failed := b.fail(err)
			if !s3AboutFeature(err, failed) {
				return gaps, failed
			}
			gap = failed.Error() + "."
		}
		if gap != "" {
			gaps = append(gaps, gap)
		}
	}
	return gaps, nil
}

// s3AboutFeature says that an answer is about what was asked for, and not about the store, the credentials or the network.
func s3AboutFeature(err, failed error) bool {
	if _, text := networkCause(err); text != "" || s3Status(err) == 0 || errors.Is(failed, errNotOurBucket) {
		return false
	}
	switch s3ErrorCode(err) {
	case "SignatureDoesNotMatch", "InvalidClientTokenId", "SlowDown", "ServiceUnavailable":
		return false
	}
	switch s3Status(err) {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return false
	}
	code := codeOf(failed)
	return code != codeUnauthenticated && code != codeRateLimitsExceeded && retryAfter(failed) == 0
}

// s3NotSet says that a setting of a bucket is not there; stores have several codes for that.
func s3NotSet(err error) bool {
	return s3Status(err) == http.StatusNotFound && !s3Codeless(err) && s3ErrorCode(err) != "NoSuchBucket" && s3Codes[s3ErrorCode(err)] == ""
}

// s3CheckPrefix is where objects lie that try something out. They go with the bucket.
const s3CheckPrefix = tombstonesRoot + "checks/"

const (
	// s3EncryptionCheck is an object that could be written after we had set the default encryption.
	s3EncryptionCheck = s3CheckPrefix + "encryption"
	// s3BlockCheck is one that could be written after we had set the public access block.
	s3BlockCheck = s3CheckPrefix + "public-access"
	// s3CheckRetention is how long it is retained at least in a bucket with a policy, which would retain it for longer.
	s3CheckRetention = s3ClockSkew + 5*time.Minute
)

// Gaps of the default encryption.
const (
	gapNoEncryption   = "The store cannot encrypt objects by default."
	gapEncryptionLost = "The store takes a default encryption and does not keep it."
	gapNoKey          = "The store takes a default encryption, but writes no object with it, so that it was removed again; the store " +
		"may have no key."
	gapKeyless = "The bucket has a default encryption with which the store writes no object; it was there before, so it is left as it is: " +
		"remove it, or give the store a key."
	gapNotUndone = "The bucket has a default encryption with which the store writes no object, and it could not be removed: remove it, " +
		"or give the store a key."
)

// ensureEncryption sets a default encryption where there is none. AWS always has a key; another store may take the setting
// and then refuse every object.
func (b *s3Bucket) ensureEncryption(ctx context.Context) (gap string, err error) {
	rules, err := b.encryptionRules(ctx)
	switch {
	case s3Unsupported(err):
		return gapNoEncryption, nil
	case err != nil:
		return "", err
	case len(rules) > 0 && !b.aws && s3OurEncryption(rules):
		return b.checkEncryption(ctx)
	case len(rules) > 0:
		return "", nil
	}
	// Each attempt is a moment in which no backup could be written.
	if worked, tried := b.encryptionTried.Load(b.Name); tried && worked == false {
		return gapNoKey, nil
	}
	_, err = b.PutBucketEncryption(ctx, &s3.PutBucketEncryptionInput{
		Bucket: &b.Name,
		ServerSideEncryptionConfiguration: &types.ServerSideEncryptionConfiguration{Rules: []types.ServerSideEncryptionRule{{
			ApplyServerSideEncryptionByDefault: &types.ServerSideEncryptionByDefault{SSEAlgorithm: types.ServerSideEncryptionAes256},
		}}},
	})
	switch {
	case s3Unsupported(err):
		return gapNoEncryption, nil
	case err != nil || b.aws:
		return "", err
	}
	if rules, err = b.encryptionRules(ctx); err != nil || len(rules) == 0 {
		if err == nil || s3Unsupported(err) {
			return gapEncryptionLost, nil
		}
		return "", err
	}
	return b.tryEncryption(ctx, gapNoKey)
}

// encryptionRules reads the default encryption; none if there is none.
func (b *s3Bucket) encryptionRules(ctx context.Context) ([]types.ServerSideEncryptionRule, error) {
	encryption, err := b.GetBucketEncryption(ctx, &s3.GetBucketEncryptionInput{Bucket: &b.Name})
	switch {
	case s3NotSet(err):
		return nil, nil
	case err != nil || encryption.ServerSideEncryptionConfiguration == nil:
		return nil, err
	}
	return encryption.ServerSideEncryptionConfiguration.Rules, nil
}

// s3OurEncryption says that a default encryption is just what we set, here or in an earlier version.
func s3OurEncryption(rules []types.ServerSideEncryptionRule) bool {
	def := rules[0].ApplyServerSideEncryptionByDefault
	return len(rules) == 1 && def != nil && def.SSEAlgorithm == types.ServerSideEncryptionAes256 && aws.ToString(def.KMSMasterKeyID) == ""
}

// checkEncryption looks, once in the life of a client, whether an object could be written with a default encryption that may
// be ours. If that was never tried, it is tried now. It is removed again only from a bucket that we made.
func (b *s3Bucket) checkEncryption(ctx context.Context) (gap string, err error) {
	if worked, tried := b.encryptionTried.Load(b.Name); tried && worked == true {
		return "", nil
	}
	_, err = b.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.Name, Key: aws.String(s3EncryptionCheck)})
	switch {
	case err == nil:
		b.encryptionTried.Store(b.Name, true)
		return "", nil
	case s3Status(err) != http.StatusNotFound && s3Status(err) != http.StatusForbidden:
		return "", err
	}
	return b.tryEncryption(ctx, gapKeyless)
}

// tryEncryption writes an object with the default encryption. If the store cannot, what we have set is undone; gap is what
// is told then.
func (b *s3Bucket) tryEncryption(ctx context.Context, gap string) (string, error) {
	err := b.putCheck(ctx, s3EncryptionCheck)
	if err == nil {
		b.encryptionTried.Store(b.Name, true)
		return "", nil
	}
	if gap == gapKeyless && !b.Created {
		if s3Status(err) != http.StatusInternalServerError {
			return "", err // it need not be the encryption
		}
		return gap, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), s3RequestTimeout)
	defer cancel()
	_, undoErr := b.DeleteBucketEncryption(undo, &s3.DeleteBucketEncryptionInput{Bucket: &b.Name})
	switch failed := b.fail(err); {
	case !s3AboutFeature(err, failed):
		return "", failed // it is tried again later
	case undoErr != nil:
		return gapNotUndone, nil
	}
	b.encryptionTried.Store(b.Name, false)
	return gapNoKey, nil
}

// putCheck writes an object that tries something out. In a bucket with a policy it has a short retention of its own, so that
// it does not keep the bucket from being deleted for as long as a backup would, unless the store or a permission is against
// that.
func (b *s3Bucket) putCheck(ctx context.Context, key string) error {
	const text = "bucketwarden: objects can be written with the settings of this bucket\n"
	sum := md5.Sum([]byte(text))
	in := &s3.PutObjectInput{Bucket: &b.Name, Key: &key, Body: bytes.NewReader([]byte(text)),
		ContentMD5: aws.String(base64.StdEncoding.EncodeToString(sum[:]))}
	if b.retains.Load() {
		short := *in
		short.ObjectLockMode, short.ObjectLockRetainUntilDate = types.ObjectLockModeGovernance, aws.Time(time.Now().Add(s3CheckRetention))
		if _, err := b.PutObject(ctx, &short); err == nil || s3Status(err) < 400 || s3Status(err) >= 500 {
			return err
		}
		in.Body = bytes.NewReader([]byte(text))
	}
	_, err := b.PutObject(ctx, in)
	return err
}
