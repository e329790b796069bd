package e2e

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

func s3Code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

type lister interface {
	ListBuckets(context.Context, *s3.ListBucketsInput, ...func(*s3.Options)) (*s3.ListBucketsOutput, error)
}

// bucketExists asks the store.
func bucketExists(t *testing.T, client lister, bucket string) bool {
	t.Helper()
	list, err := client.ListBuckets(t.Context(), &s3.ListBucketsInput{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(list.Buckets, func(b types.Bucket) bool { return aws.ToString(b.Name) == bucket })
}

// retention is the default retention of a bucket as "COMPLIANCE 4", "none" without a
// rule, "no object lock" or "no bucket".
func (store *s3Store) retention(ctx context.Context, bucket string) (string, error) {
	lock, err := store.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &bucket})
	switch {
	case s3Code(err) == "NoSuchBucket":
		return "no bucket", nil
	case s3Code(err) == "ObjectLockConfigurationNotFoundError":
		return "no object lock", nil
	case err != nil:
		return "", err
	}
	rule := lock.ObjectLockConfiguration.Rule
	if rule == nil || rule.DefaultRetention == nil {
		return "none", nil
	}
	return fmt.Sprintf("%s %d", rule.DefaultRetention.Mode, aws.ToInt32(rule.DefaultRetention.Days)), nil
}

func (store *s3Store) checkRetention(t *testing.T, bucket, want string) {
	t.Helper()
	got, err := store.retention(t.Context(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("default retention of bucket %s is %q, want %q", bucket, got, want)
	}
}

func (store *s3Store) awaitRetention(t *testing.T, bucket, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the default retention of bucket %s is %q", bucket, want), func(ctx context.Context) error {
		got, err := store.retention(ctx, bucket)
		if err == nil && got != want {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

// putRetention changes the default retention behind the daemon's back; no mode removes it.
func (store *s3Store) putRetention(t *testing.T, bucket string, mode types.ObjectLockRetentionMode, days int32) {
	t.Helper()
	config := &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled}
	if mode != "" {
		config.Rule = &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: mode, Days: &days}}
	}
	if _, err := store.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{Bucket: &bucket, ObjectLockConfiguration: config}); err != nil {
		t.Fatal(err)
	}
}

// makeBucket creates a bucket behind the daemon's back.
func (store *s3Store) makeBucket(t *testing.T, bucket string, lockable bool) {
	t.Helper()
	if _, err := store.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket, ObjectLockEnabledForBucket: &lockable}); err != nil {
		t.Fatal(err)
	}
}

// makeVersioned creates a bucket with versioning and without object lock.
func (store *s3Store) makeVersioned(t *testing.T, bucket string) {
	t.Helper()
	store.makeBucket(t, bucket, false)
	store.putVersioning(t, bucket, types.BucketVersioningStatusEnabled)
}

func (store *s3Store) putVersioning(t *testing.T, bucket string, status types.BucketVersioningStatus) {
	t.Helper()
	if _, err := store.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
		Bucket: &bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: status},
	}); err != nil {
		t.Fatal(err)
	}
}

// putObject writes an object; until is its retention, none if it is zero. It returns
// the version.
func (store *s3Store) putObject(t *testing.T, bucket, key string, until time.Time) string {
	t.Helper()
	in := &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("snapshot")}
	if !until.IsZero() {
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockModeCompliance, &until
	}
	out, err := store.PutObject(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.VersionId)
}

// hideObject writes a delete marker, where the bucket has versions.
func (store *s3Store) hideObject(t *testing.T, bucket, key string) {
	t.Helper()
	if _, err := store.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &key}); err != nil {
		t.Fatal(err)
	}
}

// versions returns the keys of all versions and delete markers under a prefix, once
// for each version.
func (store *s3Store) versions(ctx context.Context, bucket, prefix string) ([]string, error) {
	var keys []string
	pages := s3.NewListObjectVersionsPaginator(store, &s3.ListObjectVersionsInput{Bucket: &bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, v := range page.Versions {
			keys = append(keys, aws.ToString(v.Key))
		}
		for _, m := range page.DeleteMarkers {
			keys = append(keys, aws.ToString(m.Key))
		}
	}
	slices.Sort(keys)
	return keys, nil
}

// clear deletes all versions that are not in compliance mode, with the permission to do so.
func (store *s3Store) clear(t *testing.T, bucket string) {
	t.Helper()
	pages := s3.NewListObjectVersionsPaginator(store, &s3.ListObjectVersionsInput{Bucket: &bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		must(t, err)
		for _, v := range page.Versions {
			_, err := store.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: v.Key, VersionId: v.VersionId,
				BypassGovernanceRetention: aws.Bool(true)})
			must(t, err)
		}
	}
}

// isRevocation says that a key is a mark that stays for 30 days.
func isRevocation(key string) bool {
	return strings.HasPrefix(key, tombstones) && strings.Contains(key, "/revoked-")
}

// withoutRevoked leaves out the marks of each entry that has a revocation: they stay as long; and
// what hardening tries a store out with.
func withoutRevoked(keys []string) []string {
	keys = slices.DeleteFunc(keys, func(key string) bool { return strings.HasPrefix(key, ".bucketwarden/checks/") })
	revoked := map[string]bool{}
	for _, key := range keys {
		if isRevocation(key) {
			revoked[path.Dir(key)] = true
		}
	}
	return slices.DeleteFunc(keys, func(key string) bool { return revoked[path.Dir(key)] })
}

func (store *s3Store) checkVersions(t *testing.T, bucket, prefix string, want ...string) {
	t.Helper()
	got, err := store.versions(t.Context(), bucket, prefix)
	if err != nil {
		t.Fatal(err)
	}
	if got = withoutRevoked(got); !slices.Equal(got, want) {
		t.Errorf("versions under %q in bucket %s are %v, want %v", prefix, bucket, got, want)
	}
}

// noRetention is the retention of an object that has none of its own.
var noRetention time.Time
