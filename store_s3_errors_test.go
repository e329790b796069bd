package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestS3ErrorClasses(t *testing.T) {
	for code, want := range map[string]errorCode{
		"InvalidAccessKeyId": codeUnauthenticated, "AuthFailure": codeUnauthenticated, "InvalidSecretAccessKey": codeUnauthenticated,
		"ExpiredToken": codeUnauthenticated, "ExpiredTokenException": codeUnauthenticated, "InvalidToken": codeUnauthenticated,
		"InvalidIdentityToken": codeUnauthenticated, "IDPRejectedClaim": codeUnauthenticated, "TokenRefreshRequired": codeUnauthenticated,
		"SignatureDoesNotMatch": codeUnauthorized, "AccessDenied": codeUnauthorized, "AllAccessDisabled": codeUnauthorized,
		"UnauthorizedOperation": codeUnauthorized, "Unauthorized": codeUnauthorized, "InvalidClientTokenId": codeUnauthorized,
		"TooManyBuckets": codeQuotaExceeded, "LimitExceeded": codeQuotaExceeded, "QuotaExceeded": codeQuotaExceeded,
		"Throttling": codeRateLimitsExceeded, "ThrottlingException": codeRateLimitsExceeded, "RequestLimitExceeded": codeRateLimitsExceeded, "TooManyRequests": codeRateLimitsExceeded,
		"SlowDown": codeRetryableDependencies, "ServiceUnavailable": codeRetryableDependencies, "InternalError": codeRetryableDependencies,
		"InvalidBucketName": codeConfigurationProblem, "IllegalLocationConstraintException": codeConfigurationProblem,
		"InvalidLocationConstraint": codeConfigurationProblem, "AuthorizationHeaderMalformed": codeConfigurationProblem,
		"PermanentRedirect": codeConfigurationProblem, "BucketAlreadyExists": codeConfigurationProblem, "NotImplemented": codeConfigurationProblem,
		"NeverHeardOf": "", "NoSuchBucket": "", "ConflictNotFound": "",
	} {
		t.Run(code, func(t *testing.T) {
			f := newFakeS3(t, false)
			b := f.custom("eu-west-1")
			var texts []string
			for range 2 {
				f.on["CreateBucket"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
					answerS3Error(w, http.StatusBadRequest, code, "the key "+testKeyID+"\n and  "+w.Header().Get("X-Amz-Request-Id")+" and "+w.Header().Get("X-Amz-Id-2")+" and "+testSecretKey)
					return true
				}
				err := b.Create(t.Context(), false)
				wantS3Error(t, err, want, "S3 CreateBucket")
				texts = append(texts, err.Error())
			}
			if texts[0] != texts[1] {
				t.Errorf("the text changes from %q to %q", texts[0], texts[1])
			}
		})
	}
	for status, want := range map[int]errorCode{
		401: codeUnauthorized, 403: codeUnauthorized, 429: codeRateLimitsExceeded, 500: codeRetryableDependencies, 502: codeRetryableDependencies,
		503: codeRetryableDependencies, 501: codeConfigurationProblem, 405: codeConfigurationProblem, 301: codeConfigurationProblem, 307: codeRetryableDependencies, 418: "",
	} {
		f := newFakeS3(t, false)
		f.refuse("CreateBucket", -1, status, "", "")
		err := f.custom("eu-west-1").Create(t.Context(), false)
		wantS3Error(t, err, want, "S3 CreateBucket")
	}
	f := newFakeS3(t, false)
	f.on["GetObjectLockConfiguration"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		_, _ = io.WriteString(w, "<html><p>Welcome!<br></html>")
		return true
	}
	_, err := f.custom("eu-west-1").Observe(t.Context())
	wantS3Error(t, err, codeRetryableConfiguration, "200")
}

func TestS3NetworkErrors(t *testing.T) {
	closed := newFakeS3(t, false)
	closed.Close()
	plain, secure := newFakeS3(t, false), newFakeS3(t, true)
	hangUp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp.Close()
	go func() {
		for {
			conn, err := hangUp.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	for name, test := range map[string]struct {
		endpoint string
		code     errorCode
		part     string
	}{
		"refused":       {closed.URL, codeRetryableDependencies, "connection refused"},
		"hang up":       {"http://" + hangUp.Addr().String(), codeRetryableDependencies, hangUp.Addr().String()},
		"no such host":  {"http://bucketwarden.invalid", codeRetryableConfiguration, "bucketwarden.invalid"},
		"unknown CA":    {secure.URL, codeRetryableConfiguration, "trustedCaCert"},
		"no TLS at all": {strings.Replace(plain.URL, "http:", "https:", 1), codeRetryableConfiguration, "TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			b := plain.open("eu-west-1", testS3Credentials(map[string]string{s3KeyEndpoint: test.endpoint, s3KeyPathStyle: "true"}))
			b.transport.Proxy = nil // it would resolve the host for us
			_, first := b.Observe(t.Context())
			var dns *net.DNSError
			if name == "no such host" && errors.As(first, &dns) && !dns.IsNotFound {
				t.Skipf("this machine cannot tell that a host does not exist: %v", dns)
			}
			wantS3Error(t, first, test.code, test.part)
			if _, second := b.Observe(t.Context()); second == nil || first.Error() != second.Error() {
				t.Errorf("the text changes from %q to %q", first, second)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := plain.custom("eu-west-1").Observe(ctx)
		wantS3Error(t, err, "")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v does not wrap context.Canceled", err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		slow := newFakeS3(t, false)
		slow.on["GetObjectLockConfiguration"] = func(_ http.ResponseWriter, r *http.Request, _ string) bool {
			<-r.Context().Done()
			return true
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := slow.custom("eu-west-1").Observe(ctx)
		wantS3Error(t, err, codeRetryableDependencies)
	})
	t.Run("trusted CA", func(t *testing.T) {
		if _, err := secure.custom("eu-west-1").Observe(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("insecure", func(t *testing.T) {
		b := secure.open("eu-west-1", testS3Credentials(map[string]string{s3KeyEndpoint: secure.URL, s3KeyPathStyle: "true", s3KeyInsecure: "true"}))
		if _, err := b.Observe(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestS3RetriesAndMetrics(t *testing.T) {
	f := newFakeS3(t, false)
	f.lock = lockDocument("")
	f.refuse("GetObjectLockConfiguration", 2, http.StatusServiceUnavailable, "SlowDown", "")
	clients := f.clients()
	store, err := clients.openStore(bucketRef{Name: "backups", Region: "eu-west-1"}, testS3Credentials(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.lock = "ObjectLockConfigurationNotFoundError"
	if _, err := store.Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	families, err := clients.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "bucketwarden_store_request_duration_seconds" {
			continue
		}
		for _, metric := range family.Metric {
			labels := map[string]string{}
			for _, label := range metric.Label {
				labels[label.GetName()] = label.GetValue()
			}
			got[labels["store"]+" "+labels["operation"]+" "+labels["outcome"]] = metric.GetHistogram().GetSampleCount()
		}
	}
	want := map[string]uint64{
		"s3 STS.GetCallerIdentity success": 1, "s3 GetObjectLockConfiguration throttled": 2,
		"s3 GetObjectLockConfiguration success": 1, "s3 GetObjectLockConfiguration expected": 1, "s3 HeadBucket success": 1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	f.refuse("GetObjectLockConfiguration", -1, http.StatusServiceUnavailable, "SlowDown", "")
	f.takeCalls()
	_, err = store.Observe(t.Context())
	wantS3Error(t, err, codeRetryableDependencies, "SlowDown")
	if calls := f.takeCalls(); len(calls) != s3MaxAttempts {
		t.Errorf("%d attempts, want %d", len(calls), s3MaxAttempts)
	}
}
