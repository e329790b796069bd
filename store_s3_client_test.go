package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func TestS3CredentialErrors(t *testing.T) {
	const role = "arn:aws:iam::123456789012:role/backup"
	for name, test := range map[string]struct {
		credentials map[string]string
		want        string // empty: no error
	}{
		"keys":                  {map[string]string{"accessKeyID": "a", "secretAccessKey": "b"}, ""},
		"role":                  {map[string]string{"token": "t", "roleARN": role + "\n"}, ""},
		"china":                 {map[string]string{"token": "t", "roleARN": "arn:aws-cn:iam::123456789012:role/path/backup"}, ""},
		"config json":           {map[string]string{"token": "t", "config": `{"apiVersion":"aws.provider.extensions.gardener.cloud/v1alpha1","kind":"WorkloadIdentityConfig","roleARN":"` + role + `"}`}, ""},
		"config yaml":           {map[string]string{"token": "t", "config": "kind: WorkloadIdentityConfig\nroleARN: " + role + "\n"}, ""},
		"empty":                 {nil, "accessKeyID"},
		"blank":                 {map[string]string{"accessKeyID": " \n", "secretAccessKey": "\n"}, "no credentials"},
		"no id":                 {map[string]string{"secretAccessKey": "SECRET"}, "lacks accessKeyID"},
		"no secret":             {map[string]string{"accessKeyID": "SECRET"}, "lacks secretAccessKey"},
		"both":                  {map[string]string{"accessKeyID": "SECRET", "secretAccessKey": "SECRET", "token": "SECRET"}, "both"},
		"token only":            {map[string]string{"token": "SECRET"}, "roleARN"},
		"role only":             {map[string]string{"roleARN": role}, "lacks token"},
		"bad role":              {map[string]string{"token": "SECRET", "roleARN": "arn:aws:iam::12:role/SECRET"}, "roleARN"},
		"user, not role":        {map[string]string{"token": "SECRET", "roleARN": "arn:aws:iam::123456789012:user/SECRET"}, "roleARN"},
		"config not yaml":       {map[string]string{"token": "SECRET", "config": "{SECRET"}, "config"},
		"config without role":   {map[string]string{"token": "SECRET", "config": "{}"}, "config.roleARN"},
		"bad path style":        {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "s3ForcePathStyle": "SECRET"}, "s3ForcePathStyle"},
		"bad insecure":          {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "insecureSkipVerify": "SECRET"}, "insecureSkipVerify"},
		"bad request checksum":  {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "requestChecksumCalculation": "SECRET"}, "requestChecksumCalculation"},
		"bad response checksum": {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "responseChecksumValidation": "SECRET"}, "responseChecksumValidation"},
		"bad CA":                {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "trustedCaCert": "SECRET"}, "trustedCaCert"},
		"bad scheme":            {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "endpoint": "ftp://SECRET"}, "endpoint"},
		"no host":               {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "endpoint": "https://"}, "endpoint"},
		"user in endpoint":      {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "endpoint": "https://SECRET:SECRET@host"}, "endpoint"},
		"unparsable endpoint":   {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "endpoint": "http://SECRET\x7f"}, "endpoint"},
		"bare endpoint":         {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "endpoint": "minio.example.com:9000\n"}, ""},
		"all options": {map[string]string{"accessKeyID": "a", "secretAccessKey": "b", "s3ForcePathStyle": "true\n", "insecureSkipVerify": "false",
			"requestChecksumCalculation": "when_required", "responseChecksumValidation": "when_supported"}, ""},
		"AWS's own spelling": {map[string]string{"accessKeyID": "a", "secretAccessKey": "b",
			"requestChecksumCalculation": "WHEN_REQUIRED", "responseChecksumValidation": "When_Required\n"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			credentials := map[string][]byte{}
			for key, value := range test.credentials {
				credentials[key] = []byte(value)
			}
			err := checkS3Credentials(credentials)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if config := (*configError)(nil); !errors.As(err, &config) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "SECRET") {
				t.Errorf("got %v, want a *configError with %q and no value", err, test.want)
			}
			if _, err := newS3Clients(newMetrics()).openStore(bucketRef{Name: "backups", Region: "eu-west-1"}, credentials); err == nil {
				t.Error("open takes these credentials")
			}
		})
	}
}

func TestS3RegionNoBucketCanBeIn(t *testing.T) {
	_, err := newS3Clients(newMetrics()).openStore(bucketRef{Name: "backups", Region: "eu west"}, testS3Credentials(nil))
	if codeOf(err) != codeConfigurationProblem || !errors.Is(err, errNotOurBucket) || !strings.Contains(err.Error(), "eu west") {
		t.Errorf("got %v with code %q", err, codeOf(err))
	}
}

func TestS3Region(t *testing.T) {
	clients := newS3Clients(newMetrics())
	for name, test := range map[string]struct{ spec, secret, want string }{
		"spec": {"eu-west-1", "", "eu-west-1"}, "secret": {"", "eu-west-2", "eu-west-2"}, "spec wins": {"eu-west-1", "eu-west-2", "eu-west-1"},
		"none": {"", "", ""}, "not a host label": {"eu/west", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			store, err := clients.openStore(bucketRef{Name: "backups", Region: test.spec}, testS3Credentials(map[string]string{s3KeyRegion: test.secret}))
			if config := (*configError)(nil); test.want == "" && !errors.As(err, &config) {
				t.Errorf("got %v, want a *configError", err)
			}
			if test.want != "" && (err != nil || store.(*s3Bucket).Region != test.want) {
				t.Errorf("got %+v, %v, want %s", store, err, test.want)
			}
		})
	}
}

func TestS3ClientsAreReused(t *testing.T) {
	clients := newS3Clients(newMetrics())
	open := func(region string, credentials map[string][]byte) *s3Client {
		t.Helper()
		store, err := clients.openStore(bucketRef{Name: "backups", Region: region}, credentials)
		if err != nil {
			t.Fatal(err)
		}
		return store.(*s3Bucket).s3Client
	}
	first := open("eu-west-1", testS3Credentials(nil))
	if open("eu-west-1", testS3Credentials(map[string]string{"unrelated": "x"})) != first {
		t.Error("an unrelated key makes another client")
	}
	for name, other := range map[string]*s3Client{
		"region":  open("eu-west-2", testS3Credentials(nil)),
		"secret":  open("eu-west-1", testS3Credentials(map[string]string{s3KeySecretAccessKey: "rotated"})),
		"shifted": open("eu-west-1", map[string][]byte{s3KeyAccessKeyID: []byte(testKeyID + testSecretKey[:1]), s3KeySecretAccessKey: []byte(testSecretKey[1:])}),
	} {
		if other == first {
			t.Errorf("another %s has the same client", name)
		}
	}
	var group sync.WaitGroup
	for i := range 3 * maxClients {
		group.Go(func() {
			open("eu-west-1", testS3Credentials(map[string]string{s3KeyAccessKeyID: strconv.Itoa(i)}))
			if open("eu-west-1", testS3Credentials(nil)) == nil {
				t.Error("no client")
			}
		})
	}
	group.Wait()
	if len(clients.cache.clients) != maxClients {
		t.Errorf("%d clients are kept, want %d", len(clients.cache.clients), maxClients)
	}
	kept := open("eu-west-1", testS3Credentials(nil))
	for i := range 3 * maxClients {
		open("us-east-1", testS3Credentials(map[string]string{s3KeyAccessKeyID: strconv.Itoa(i)}))
		if open("eu-west-1", testS3Credentials(nil)) != kept {
			t.Fatal("the most recently used client was evicted")
		}
	}
}

func TestS3ExpectsTheOwnerOnAWS(t *testing.T) {
	const header = "X-Amz-Expected-Bucket-Owner"
	f := newFakeS3(t, false)
	f.lock = lockDocument("")
	b := f.aws("eu-west-1")
	for range 2 {
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantCalls(t, f, "STS.GetCallerIdentity", "GetObjectLockConfiguration", "GetObjectLockConfiguration")
	f.on["GetObjectRetention"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		_, _ = io.WriteString(w, "<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>2999-01-01T00:00:00Z</RetainUntilDate></Retention>")
		return true
	}
	f.objects, f.keyErrors["a"], f.uploads = []fakeS3Object{{key: "a", id: "1"}}, "AccessDenied", []string{"a"}
	ctx := t.Context()
	_, hardenErr := b.Harden(ctx)
	_, purgeErr := testPurge(ctx, b, "", nil)
	f.lock = "ObjectLockConfigurationNotFoundError"
	_, observeErr := b.Observe(ctx)
	for _, err := range []error{hardenErr, purgeErr, observeErr, b.Create(ctx, true), b.SetPolicy(ctx, Policy{Days: 1}), b.Delete(ctx, anything)} {
		if err != nil {
			t.Error(err)
		}
	}
	for operation, h := range f.headers {
		want := testAccount
		if operation == "CreateBucket" || strings.HasPrefix(operation, "STS.") {
			want = ""
		}
		if got := h.Get(header); got != want {
			t.Errorf("%s has owner %q, want %q", operation, got, want)
		}
		if want != "" && !strings.Contains(h.Get("Authorization"), strings.ToLower(header)) {
			t.Errorf("%s does not sign the owner", operation)
		}
	}
	if len(f.headers) < 15 {
		t.Errorf("only %q was tried", slices.Collect(maps.Keys(f.headers)))
	}

	custom := newFakeS3(t, false)
	if _, err := custom.custom("eu-west-1").Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := custom.headers["HeadBucket"].Get(header); got != "" {
		t.Errorf("another store is asked for owner %q", got)
	}
}

func TestS3WebIdentity(t *testing.T) {
	f := newFakeS3(t, false)
	f.lock = lockDocument("")
	credentials := map[string][]byte{s3KeyToken: []byte("jwt\n"), s3KeyRoleARN: []byte("arn:aws:iam::210987654321:role/backup")}
	b := f.open("eu-west-1", credentials)
	for range 2 {
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantCalls(t, f, "STS.AssumeRoleWithWebIdentity", "GetObjectLockConfiguration", "GetObjectLockConfiguration")
	form, err := url.ParseQuery(f.bodies["STS.AssumeRoleWithWebIdentity"])
	if err != nil || form.Get("WebIdentityToken") != "jwt" || form.Get("RoleArn") != "arn:aws:iam::210987654321:role/backup" {
		t.Errorf("asked for %v, %v", form, err)
	}
	h := f.headers["GetObjectLockConfiguration"]
	if h.Get("X-Amz-Expected-Bucket-Owner") != "210987654321" || h.Get("X-Amz-Security-Token") != "session" {
		t.Errorf("got headers %v", h)
	}

	for code, want := range map[string]errorCode{"InvalidIdentityToken": codeUnauthenticated, "ExpiredTokenException": codeUnauthenticated, "IDPRejectedClaim": codeUnauthenticated, "AccessDenied": codeUnauthorized} {
		f := newFakeS3(t, false)
		f.on["STS.AssumeRoleWithWebIdentity"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, "<ErrorResponse><Error><Code>%s</Code><Message>no</Message></Error><RequestId>REQUEST</RequestId></ErrorResponse>", code)
			return true
		}
		_, err := f.open("eu-west-1", credentials).Observe(t.Context())
		wantS3Error(t, err, want, "STS AssumeRoleWithWebIdentity", code)
	}
}
