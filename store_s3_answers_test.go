package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// An answer is believed only with the document that was asked for.
func TestS3AnswersToAnotherQuestion(t *testing.T) {
	const bucketList = `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>backups</Name></ListBucketResult>`
	for name, test := range map[string]struct {
		operation, answer string
		call              func(context.Context, *s3Bucket) error
		// fails is the code of the error; none: the store is taken for one that cannot.
		fails errorCode
		calls []string
	}{
		"a list of the bucket for that of versions": {
			"ListObjectVersions", bucketList, func(ctx context.Context, b *s3Bucket) error { _, err := testPurge(ctx, b, "a/", nil); return err },
			"", []string{"ListObjectVersions", "GetBucket", "ListMultipartUploads"},
		},
		"nothing for the list of versions": {
			"ListObjectVersions", "", func(ctx context.Context, b *s3Bucket) error { _, err := testPurge(ctx, b, "a/", nil); return err },
			"", []string{"ListObjectVersions", "GetBucket", "ListMultipartUploads"},
		},
		"a page for the list of versions": {
			"ListObjectVersions", "<html><body>Hello</body></html>", func(ctx context.Context, b *s3Bucket) error { _, err := testPurge(ctx, b, "a/", nil); return err },
			codeRetryableConfiguration, []string{"ListObjectVersions"},
		},
		"a list of the bucket for that of uploads": {
			"ListMultipartUploads", bucketList, func(ctx context.Context, b *s3Bucket) error { _, err := testPurge(ctx, b, "a/", nil); return err },
			"", []string{"ListObjectVersions", "ListMultipartUploads"},
		},
		"a page for the object lock": {
			"GetObjectLockConfiguration", "<html></html>", func(ctx context.Context, b *s3Bucket) error { _, err := b.Observe(ctx); return err },
			codeRetryableConfiguration, []string{"GetObjectLockConfiguration"},
		},
		"an error for the object lock": {
			"GetObjectLockConfiguration", "<Error><Code>InternalError</Code></Error>", func(ctx context.Context, b *s3Bucket) error { _, err := b.Observe(ctx); return err },
			codeRetryableConfiguration, []string{"GetObjectLockConfiguration"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, false)
			f.on[test.operation] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = io.WriteString(w, test.answer)
				return true
			}
			f.on["GetBucket"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = io.WriteString(w, bucketList)
				return true
			}
			err := test.call(t.Context(), f.custom("eu-west-1"))
			if test.fails != "" {
				wantS3Error(t, err, test.fails, "200")
			} else if err != nil {
				t.Error(err)
			}
			wantCalls(t, f, test.calls...)
		})
	}
}

// Ceph gives this answer another name (16.2).
func TestS3PublicAccessBlockOfCeph(t *testing.T) {
	f := newFakeS3(t, false)
	f.block = `<?xml version="1.0" encoding="UTF-8"?><BlockPublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls>` +
		`<IgnorePublicAcls>false</IgnorePublicAcls></BlockPublicAccessBlockConfiguration>`
	b := f.custom("eu-west-1")
	block, err := b.GetPublicAccessBlock(t.Context(), &s3.GetPublicAccessBlockInput{Bucket: &b.Name})
	if err != nil {
		t.Fatal(err)
	}
	if c := block.PublicAccessBlockConfiguration; c == nil || !aws.ToBool(c.BlockPublicAcls) || c.IgnorePublicAcls == nil || *c.IgnorePublicAcls {
		t.Errorf("the public access block is %+v", c)
	}
}

func TestS3Root(t *testing.T) {
	long := "<!-- " + strings.Repeat("x", s3RootLimit) + " --><a/>"
	for text, want := range map[string]string{
		"<a/>": "a", "<?xml version=\"1.0\"?>\n\n<a xmlns=\"b\">c</a>": "a", "<n:a xmlns:n=\"b\"/>": "a", "\ufeff<a/>": "a",
		"": "", " \n": "", "hello": "", "<a": "", "{}": "", "<!-- x -->": "", long: "",
	} {
		root, body := s3Root(io.NopCloser(strings.NewReader(text)))
		rest, err := io.ReadAll(body)
		if empty := strings.TrimSpace(text) == ""; root != want || err != nil || empty != (body == http.NoBody) || !empty && string(rest) != text {
			t.Errorf("%.40q: root %q, then %.40q, %v", text, root, rest, err)
		}
	}
}

// A store that says when to come back is not asked sooner.
func TestS3RetryAfter(t *testing.T) {
	date := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, test := range map[string]struct {
		header   string
		after    time.Duration
		attempts int
	}{
		"none":                {"", 0, s3MaxAttempts},
		"zero":                {"0", 0, s3MaxAttempts},
		"longer than a pass":  {"120", 2 * time.Minute, 1},
		"just too long":       {"21", 21 * time.Second, 1},
		"hours":               {"36000", 10 * time.Hour, 1},
		"days":                {"864000", maxRetryAfter, 1},
		"for ever":            {"99999999999999999999999", maxRetryAfter, 1},
		"a time":              {date.Add(time.Hour).Format(http.TimeFormat), time.Hour, 1},
		"a time that is over": {date.Add(-time.Hour).Format(http.TimeFormat), 0, s3MaxAttempts},
		"negative":            {"-5", 0, s3MaxAttempts},
		"nonsense":            {"soon", 0, s3MaxAttempts},
	} {
		t.Run(name, func(t *testing.T) {
			for _, status := range []int{http.StatusServiceUnavailable, http.StatusTooManyRequests} {
				f := newFakeS3(t, false)
				f.on["GetObjectLockConfiguration"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
					w.Header().Set("Date", date.Format(http.TimeFormat))
					w.Header().Set("Retry-After", test.header)
					answerS3Error(w, status, "SlowDown", "")
					return true
				}
				_, err := f.custom("eu-west-1").Observe(t.Context())
				wantS3Error(t, err, codeRetryableDependencies)
				if got := retryAfter(err); got != test.after {
					t.Errorf("%d: to come back after %s, want %s", status, got, test.after)
				}
				if calls := f.takeCalls(); len(calls) != test.attempts {
					t.Errorf("%d: %d attempts, want %d", status, len(calls), test.attempts)
				}
			}
		})
	}
	t.Run("short", func(t *testing.T) {
		f := newFakeS3(t, false)
		f.lock = lockDocument("")
		var first time.Time
		f.on["GetObjectLockConfiguration"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			if !first.IsZero() {
				return false
			}
			first = time.Now()
			w.Header().Set("Retry-After", "1")
			answerS3Error(w, http.StatusServiceUnavailable, "SlowDown", "")
			return true
		}
		if _, err := f.custom("eu-west-1").Observe(t.Context()); err != nil || time.Since(first) < time.Second {
			t.Errorf("asked again after %s, %v", time.Since(first), err)
		}
	})
	// The wait for a short one ends with the pass.
	t.Run("canceled", func(t *testing.T) {
		f := newFakeS3(t, false)
		f.on["GetObjectLockConfiguration"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.Header().Set("Retry-After", "15")
			answerS3Error(w, http.StatusServiceUnavailable, "SlowDown", "")
			return true
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := f.custom("eu-west-1").Observe(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
