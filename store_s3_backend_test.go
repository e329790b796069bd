package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// s3Backend is a real S3 server behind a proxy.
type s3Backend struct {
	*suiteProxy
	name   string // of a real server
	data   map[string][]byte
	client *s3.Client // past the proxy
}

func startS3Backend(t *testing.T, secret string) storeBackend {
	t.Helper()
	b := &s3Backend{}
	if err := json.Unmarshal([]byte(secret), &b.data); err != nil {
		t.Fatal(err)
	}
	endpoint := string(b.data[s3KeyEndpoint])
	b.client = s3.New(s3.Options{
		BaseEndpoint: aws.String(endpoint), Region: string(b.data[s3KeyRegion]), UsePathStyle: true,
		Credentials: awscredentials.NewStaticCredentialsProvider(string(b.data[s3KeyAccessKeyID]), string(b.data[s3KeySecretAccessKey]), ""),
	})
	b.suiteProxy = startSuiteProxy(t, endpoint, func(path string) string {
		bucket, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		return bucket
	}, func(w http.ResponseWriter, status int) {
		codes := map[int]string{
			http.StatusForbidden: "AccessDenied", http.StatusTooManyRequests: "TooManyRequests",
			http.StatusServiceUnavailable: "SlowDown", http.StatusInternalServerError: "InternalError",
		}
		answerS3Error(w, status, codes[status], "This error was injected.")
	})
	b.data = suiteWith(b.data, s3KeyEndpoint, b.URL)
	return b
}

func (b *s3Backend) kind() string { return storeS3 }

func (b *s3Backend) server() string { return b.name }

func (b *s3Backend) credentials() map[string][]byte { return maps.Clone(b.data) }

func (b *s3Backend) permission() string { return "s3:GetBucketObjectLockConfiguration" }

func (b *s3Backend) maxDays() int32 { return s3MaxRetentionDays }

func (b *s3Backend) now(*testing.T) time.Time { return time.Now() }

func (b *s3Backend) apart(*testing.T, time.Duration) {}

func (b *s3Backend) ref(bucket string) bucketRef {
	return bucketRef{Name: bucket, Region: string(b.data[s3KeyRegion])}
}

func (b *s3Backend) opener(m *metrics) provider {
	c := newS3Clients(m)
	c.maxBackoff = time.Millisecond
	return c
}

func (b *s3Backend) wrong(bucket *suiteBucket) []wrongStore {
	notS3 := httptest.NewServer(http.NotFoundHandler())
	bucket.t.Cleanup(notS3.Close)
	ref, opener := bucket.backend.ref(bucket.name), b.opener(newMetrics())
	elsewhere := ref
	elsewhere.Region = "eu-west-3"
	region := wrongStore{name: "region", opener: opener, ref: elsewhere, credentials: b.credentials(), want: codeConfigurationProblem,
		notOurs: true}
	if b.name == suiteCeph {
		// It takes signatures for any region, and looks at it only when it creates a bucket.
		region.ref.Name, region.only, region.notOurs = region.ref.Name+"-elsewhere", "Create", false
	}
	return []wrongStore{
		{name: "access key", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeyAccessKeyID, "nobody"), want: codeUnauthenticated},
		{name: "secret key", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeySecretAccessKey, "wrong-secret-key"),
			want: codeUnauthorized},
		{name: "secret key of an entry", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeySecretAccessKey, "wrong-secret-key"),
			entry: true, want: codeUnauthorized},
		{name: "nothing listens", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeyEndpoint, suiteClosed()),
			want: codeRetryableDependencies},
		{name: "no TLS", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeyEndpoint, strings.Replace(b.URL, "http:", "https:", 1)),
			want: codeRetryableConfiguration},
		{name: "no S3", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeyEndpoint, notS3.URL), want: codeRetryableConfiguration,
			only: "Observe"},
		region,
	}
}

func (b *s3Backend) put(t *testing.T, bucket, name string, size int) {
	t.Helper()
	if err := b.tryPut(bucket, name, size); err != nil {
		t.Errorf("putting object %q: %v", name, err)
	}
}

func (b *s3Backend) tryPut(bucket, name string, size int) error {
	_, err := b.client.PutObject(context.Background(), &s3.PutObjectInput{Bucket: &bucket, Key: &name, Body: bytes.NewReader(make([]byte, size))})
	return err
}

// hide writes a delete marker.
func (b *s3Backend) hide(t *testing.T, bucket, name string) {
	t.Helper()
	if _, err := b.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &name}); err != nil {
		t.Fatal(err)
	}
}

// versions calls f for every version and delete marker; a bucket that is absent has none.
func (b *s3Backend) versions(t *testing.T, bucket string, f func(name, id string, size int64)) {
	t.Helper()
	pages := s3.NewListObjectVersionsPaginator(b.client, &s3.ListObjectVersionsInput{Bucket: &bucket, EncodingType: types.EncodingTypeUrl})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if s3ErrorCode(err) == "NoSuchBucket" {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		decode := s3Decoder(page.EncodingType)
		for _, v := range page.Versions {
			f(decode(v.Key), aws.ToString(v.VersionId), aws.ToInt64(v.Size))
		}
		for _, v := range page.DeleteMarkers {
			f(decode(v.Key), aws.ToString(v.VersionId), 0)
		}
	}
}

func (b *s3Backend) list(t *testing.T, bucket string) (objects []suiteObject) {
	t.Helper()
	b.versions(t, bucket, func(name, _ string, size int64) { objects = append(objects, suiteObject{name, size}) })
	return objects
}

func (b *s3Backend) setPolicy(t *testing.T, bucket string, p Policy) {
	t.Helper()
	config := &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled}
	if !p.None() {
		mode := types.ObjectLockRetentionModeGovernance
		if p.Locked {
			mode = types.ObjectLockRetentionModeCompliance
		}
		config.Rule = &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: mode, Days: &p.Days}}
	}
	if _, err := b.client.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{Bucket: &bucket,
		ObjectLockConfiguration: config}); err != nil {
		t.Fatal(err)
	}
}

func (b *s3Backend) hold(t *testing.T, bucket string, on bool) {
	t.Helper()
	status := types.ObjectLockLegalHoldStatusOff
	if on {
		status = types.ObjectLockLegalHoldStatusOn
	}
	b.versions(t, bucket, func(name, id string, _ int64) {
		if _, err := b.client.PutObjectLegalHold(t.Context(), &s3.PutObjectLegalHoldInput{
			Bucket: &bucket, Key: &name, VersionId: &id, LegalHold: &types.ObjectLockLegalHold{Status: status},
		}); err != nil {
			t.Fatal(err)
		}
	})
}

func (b *s3Backend) until(t *testing.T, bucket string, names ...string) (until time.Time) {
	t.Helper()
	for _, name := range names {
		retention, err := b.client.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &bucket, Key: &name})
		if err != nil {
			t.Fatal(err)
		}
		if end := aws.ToTime(retention.Retention.RetainUntilDate); end.After(until) {
			until = end
		}
	}
	return until
}

// free lifts the retention, which S3 allows in governance mode. Ceph cannot lift it; there it ends
// in a moment.
func (b *s3Backend) free(t *testing.T, bucket string, names ...string) {
	t.Helper()
	var end time.Time
	retention := &types.ObjectLockRetention{}
	if b.name == suiteCeph {
		end = time.Now().Add(2 * time.Second).Truncate(time.Second)
		retention = &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeGovernance, RetainUntilDate: &end}
	}
	for _, name := range names {
		if _, err := b.client.PutObjectRetention(t.Context(), &s3.PutObjectRetentionInput{
			Bucket: &bucket, Key: &name, BypassGovernanceRetention: aws.Bool(true), Retention: retention,
		}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-time.After(time.Until(end)):
	case <-t.Context().Done():
		t.Fatal(context.Cause(t.Context()))
	}
}

func (b *s3Backend) fail(_ *testing.T, bucket string, status, times int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures[bucket] = &suiteFailure{status, times}
}

func (b *s3Backend) served(_ *testing.T, bucket string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[bucket]
}
