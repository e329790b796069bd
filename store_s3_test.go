package main

import (
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const (
	testAccount   = "123456789012"
	testSecretKey = "super-secret-value"
	testKeyID     = "AKIATESTTESTTEST"
)

// fakeS3Object is a version in the fake's list.
type fakeS3Object struct {
	key, id  string
	size     int
	modified time.Time
	marker   bool
}

// fakeS3 speaks as much of the S3 and STS protocols as the store uses. Operations
// answer from its fields unless a test scripts them in on.
type fakeS3 struct {
	*httptest.Server
	t *testing.T

	mu      sync.Mutex
	calls   []string
	headers map[string]http.Header
	bodies  map[string]string
	// on replaces the answer of an operation; false falls back to the default one.
	on                            map[string]func(w http.ResponseWriter, r *http.Request, body string) bool
	lock, encryption, block       string // documents, or an error code
	policy, versioning            string
	objects                       []fakeS3Object
	keyErrors                     map[string]string // key to code
	uploads                       []string
	initiated                     time.Time // of each upload
	ignorePrefix, ignoreKeyErrors bool
	requestID                     int
	// What happens to settings, see store_s3_harden_test.go.
	fakeS3Ways
	// puts are the objects that were put, by key, with their headers.
	puts map[string]http.Header
}

func newFakeS3(t *testing.T, tls bool) *fakeS3 {
	f := &fakeS3{
		t: t, on: map[string]func(http.ResponseWriter, *http.Request, string) bool{},
		headers: map[string]http.Header{}, bodies: map[string]string{}, keyErrors: map[string]string{}, puts: map[string]http.Header{},
		lock: "ObjectLockConfigurationNotFoundError", encryption: "ServerSideEncryptionConfigurationNotFoundError",
		block: "NoSuchPublicAccessBlockConfiguration",
	}
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes
	if tls {
		f.StartTLS()
	} else {
		f.Start()
	}
	t.Cleanup(f.Close)
	return f
}

// fakeS3Operation names the operation of a request.
func fakeS3Operation(r *http.Request, body string) string {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if bucket == "" {
		if r.Method == http.MethodPost {
			form, _ := url.ParseQuery(body)
			return "STS." + form.Get("Action")
		}
		return "ListBuckets"
	}
	verb := map[string]string{"GET": "Get", "PUT": "Put", "DELETE": "Delete", "HEAD": "Head", "POST": "Post"}[r.Method]
	for sub, name := range map[string]string{
		"object-lock": "ObjectLockConfiguration", "versioning": "BucketVersioning", "encryption": "BucketEncryption",
		"publicAccessBlock": "PublicAccessBlock", "policy": "BucketPolicy", "retention": "ObjectRetention", "legal-hold": "ObjectLegalHold",
	} {
		if r.URL.Query().Has(sub) {
			return verb + name
		}
	}
	switch {
	case r.URL.Query().Has("versions"):
		return "ListObjectVersions"
	case r.URL.Query().Has("delete"):
		return "DeleteObjects"
	case r.URL.Query().Has("uploads") && key != "":
		return "CreateMultipartUpload"
	case r.URL.Query().Has("uploads"):
		return "ListMultipartUploads"
	case r.URL.Query().Has("uploadId") && key != "":
		return "AbortMultipartUpload"
	case key != "":
		return verb + "Object"
	case r.Method == http.MethodPut:
		return "CreateBucket"
	}
	return verb + "Bucket"
}

func (f *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	body := string(raw)
	operation := fakeS3Operation(r, body)
	f.mu.Lock()
	f.calls = append(f.calls, operation)
	f.headers[operation], f.bodies[operation] = r.Header.Clone(), body
	f.requestID++
	w.Header().Set("X-Amz-Request-Id", fmt.Sprintf("REQUEST%d", f.requestID))
	w.Header().Set("X-Amz-Id-2", fmt.Sprintf("HOST%d", f.requestID))
	script := f.on[operation]
	f.mu.Unlock()
	if script != nil && script(w, r, body) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	document := func(value string) {
		if strings.HasPrefix(value, "<") {
			_, _ = io.WriteString(w, value)
			return
		}
		answerS3Error(w, http.StatusNotFound, value, "not there")
	}
	switch operation {
	case "GetObjectLockConfiguration":
		document(f.lock)
	case "PutObjectLockConfiguration":
		f.lock = body
	case "GetBucketEncryption":
		document(f.encryption)
	case "PutBucketEncryption":
		f.encryption = body
	case "GetPublicAccessBlock":
		document(f.block)
	case "PutPublicAccessBlock":
		f.block = body
	case "DeletePublicAccessBlock":
		f.block = "NoSuchPublicAccessBlockConfiguration"
		w.WriteHeader(http.StatusNoContent)
	case "DeleteBucketEncryption":
		f.encryption = "ServerSideEncryptionConfigurationNotFoundError"
		w.WriteHeader(http.StatusNoContent)
	case "DeleteBucketPolicy":
		f.policy = ""
		w.WriteHeader(http.StatusNoContent)
	case "CreateMultipartUpload", "HeadObject", "PutObject":
		f.object(w, r)
	case "GetBucketPolicy":
		if f.policy == "" {
			answerS3Error(w, http.StatusNotFound, "NoSuchBucketPolicy", "no policy")
			return
		}
		_, _ = io.WriteString(w, f.policy)
	case "PutBucketPolicy":
		f.policy = body
	case "GetBucketVersioning":
		status := ""
		if f.versioning != "" {
			status = "<Status>" + f.versioning + "</Status>"
		}
		_, _ = io.WriteString(w, "<VersioningConfiguration>"+status+"</VersioningConfiguration>")
	case "PutBucketVersioning":
		_, f.versioning, _ = strings.Cut(body, "<Status>")
		f.versioning, _, _ = strings.Cut(f.versioning, "</Status>")
	case "ListObjectVersions":
		f.list(w, r)
	case "DeleteObjects":
		f.delete(w, body)
	case "ListMultipartUploads":
		_, _ = io.WriteString(w, "<ListMultipartUploadsResult>")
		for _, key := range f.uploads {
			fmt.Fprintf(w, "<Upload><Key>%s</Key><UploadId>u</UploadId><Initiated>%s</Initiated></Upload>", key, f.initiated.UTC().Format(time.RFC3339))
		}
		_, _ = io.WriteString(w, "</ListMultipartUploadsResult>")
	case "AbortMultipartUpload":
		f.uploads = slices.DeleteFunc(f.uploads, func(key string) bool { return strings.HasSuffix(r.URL.Path, "/"+key) })
		w.WriteHeader(http.StatusNoContent)
	case "GetObjectRetention", "GetObjectLegalHold":
		answerS3Error(w, http.StatusNotFound, "NoSuchObjectLockConfiguration", "none")
	case "ListBuckets":
		_, _ = io.WriteString(w, "<ListAllMyBucketsResult><Buckets></Buckets></ListAllMyBucketsResult>")
	case "STS.GetCallerIdentity":
		fmt.Fprintf(w, "<GetCallerIdentityResponse><GetCallerIdentityResult><Account>%s</Account></GetCallerIdentityResult></GetCallerIdentityResponse>", testAccount)
	case "STS.AssumeRoleWithWebIdentity":
		fmt.Fprintf(w, "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIATEMP</AccessKeyId><SecretAccessKey>temp</SecretAccessKey><SessionToken>session</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
			time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	case "HeadBucket", "CreateBucket", "DeleteBucket":
	default:
		f.t.Errorf("the fake has no %s (%s %s)", operation, r.Method, r.URL)
		w.WriteHeader(http.StatusTeapot)
	}
}

func answerS3Error(w http.ResponseWriter, status int, code, message string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message><RequestId>%s</RequestId><HostId>%s</HostId></Error>",
		code, message, w.Header().Get("X-Amz-Request-Id"), w.Header().Get("X-Amz-Id-2"))
}

func (f *fakeS3) list(w io.Writer, r *http.Request) {
	query := r.URL.Query()
	limit, _ := strconv.Atoi(query.Get("max-keys"))
	marker := query.Get("key-marker") + "\x00" + query.Get("version-id-marker")
	_, _ = io.WriteString(w, "<ListVersionsResult>")
	var last fakeS3Object
	n, truncated := 0, false
	for _, o := range f.objects {
		if !strings.HasPrefix(o.key, query.Get("prefix")) && !f.ignorePrefix || query.Has("key-marker") && o.key+"\x00"+o.id <= marker {
			continue
		}
		if n == limit {
			truncated = true
			break
		}
		element := "Version"
		if o.marker {
			element = "DeleteMarker"
		}
		fmt.Fprintf(w, "<%s><Key>%s</Key><VersionId>%s</VersionId><Size>%d</Size><LastModified>%s</LastModified></%s>", element, o.key, o.id, o.size, o.modified.UTC().Format(time.RFC3339), element)
		last = o
		n++
	}
	if truncated {
		fmt.Fprintf(w, "<IsTruncated>true</IsTruncated><NextKeyMarker>%s</NextKeyMarker><NextVersionIdMarker>%s</NextVersionIdMarker>", last.key, last.id)
	}
	_, _ = io.WriteString(w, "</ListVersionsResult>")
}

func (f *fakeS3) delete(w io.Writer, body string) {
	var in struct {
		Quiet  bool
		Object []struct{ Key, VersionId string }
	}
	if err := xml.Unmarshal([]byte(body), &in); err != nil || !in.Quiet || len(in.Object) > 1000 {
		f.t.Errorf("DeleteObjects of %d keys, quiet %t: %v", len(in.Object), in.Quiet, err)
	}
	gone := map[[2]string]bool{}
	_, _ = io.WriteString(w, "<DeleteResult>")
	for _, o := range in.Object {
		if code := f.keyErrors[o.Key]; code != "" && !f.ignoreKeyErrors {
			fmt.Fprintf(w, "<Error><Key>%s</Key><VersionId>%s</VersionId><Code>%s</Code><Message>refused</Message></Error>", o.Key, o.VersionId, code)
			gone[[2]string{o.Key, o.VersionId}] = strings.HasPrefix(code, "NoSuch")
			continue
		}
		gone[[2]string{o.Key, o.VersionId}] = true
	}
	_, _ = io.WriteString(w, "</DeleteResult>")
	f.objects = slices.DeleteFunc(f.objects, func(o fakeS3Object) bool { return gone[[2]string{o.key, o.id}] })
}

// refuse scripts an operation to answer an error, times times (always if negative).
func (f *fakeS3) refuse(operation string, times, status int, code, message string) {
	f.on[operation] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if times == 0 {
			return false
		}
		times--
		if code == "" {
			w.WriteHeader(status)
		} else {
			answerS3Error(w, status, code, message)
		}
		return true
	}
}

// takeCalls returns the operations since the last call.
func (f *fakeS3) takeCalls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

func (f *fakeS3) keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var keys []string
	for _, o := range f.objects {
		keys = append(keys, o.key)
	}
	return keys
}

func (f *fakeS3) clients() *s3Clients {
	c := newS3Clients(newMetrics())
	c.maxBackoff = time.Millisecond
	c.stsEndpoint, c.awsEndpoint = f.URL, f.URL
	return c
}

func testS3Credentials(extra map[string]string) map[string][]byte {
	credentials := map[string][]byte{s3KeyAccessKeyID: []byte(testKeyID + "\n"), s3KeySecretAccessKey: []byte(testSecretKey)}
	for key, value := range extra {
		credentials[key] = []byte(value)
	}
	return credentials
}

// custom opens bucket backups with the fake as an S3-compatible store.
func (f *fakeS3) custom(region string) *s3Bucket {
	f.t.Helper()
	extra := map[string]string{s3KeyEndpoint: f.URL, s3KeyPathStyle: "true"}
	if f.TLS != nil {
		extra[s3KeyTrustedCA] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}))
	}
	return f.open(region, testS3Credentials(extra))
}

// aws opens bucket backups with the fake as AWS.
func (f *fakeS3) aws(region string) *s3Bucket {
	f.t.Helper()
	return f.open(region, testS3Credentials(nil))
}

func (f *fakeS3) open(region string, credentials map[string][]byte) *s3Bucket {
	f.t.Helper()
	store, err := f.clients().openStore(bucketRef{Name: "backups", Region: region}, credentials)
	if err != nil {
		f.t.Fatal(err)
	}
	return store.(*s3Bucket)
}

func wantS3Error(t *testing.T, err error, code errorCode, parts ...string) {
	t.Helper()
	var store *storeError
	if !errors.As(err, &store) {
		t.Fatalf("got %v, want a *storeError", err)
	}
	if store.code != code {
		t.Errorf("got code %q, want %q: %v", store.code, code, err)
	}
	for _, part := range append(parts, `"backups"`) {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not contain %q", err, part)
		}
	}
	for _, secret := range []string{testSecretKey, testKeyID, "REQUEST", "HOST"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q contains %q", err, secret)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q has more than one line", err)
	}
}

func wantCalls(t *testing.T, f *fakeS3, want ...string) {
	t.Helper()
	if got := f.takeCalls(); !slices.Equal(got, want) {
		t.Errorf("got requests %q, want %q", got, want)
	}
}

func lockDocument(rule string) string {
	return "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>" + rule + "</ObjectLockConfiguration>"
}

func lockRule(mode, period string) string {
	return "<Rule><DefaultRetention><Mode>" + mode + "</Mode>" + period + "</DefaultRetention></Rule>"
}

func TestS3BucketNames(t *testing.T) {
	clients := newS3Clients(newMetrics())
	for name, ok := range map[string]bool{
		"abc": true, "backups": true, "a.b-c.1": true, strings.Repeat("a", 63): true, "1abc": true, "192.168.1.x": true,
		"ab": false, "": false, strings.Repeat("a", 64): false, "Backups": false, "a_b": false, "-ab": false, "ab-": false, ".ab": false,
		"a..b": false, "192.168.1.1": false, "xn--a": false, "sthree-a": false, "amzn-s3-demo-a": false, "a-s3alias": false,
		"a--ol-s3": false, "a.mrap": false, "a--x-s3": false, "a--table-s3": false, "a/b": false, "a?b": false, "a\nb": false,
	} {
		_, err := clients.openStore(bucketRef{Name: name, Region: "eu-west-1"}, testS3Credentials(nil))
		if config := (*configError)(nil); ok != (err == nil) || err != nil && !errors.As(err, &config) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestS3Observe(t *testing.T) {
	lockOnly, withHead := []string{"GetObjectLockConfiguration"}, []string{"GetObjectLockConfiguration", "HeadBucket"}
	listed := []string{"GetObjectLockConfiguration", "ListBuckets"}
	for name, test := range map[string]struct {
		lock    string
		prepare func(*fakeS3)
		aws     bool
		want    BucketState
		code    errorCode
		parts   []string
		calls   []string
		notOurs bool
		// recorded is the policy on record; fails: with an error that has no code.
		recorded Policy
		fails    bool
	}{
		"locked days":  {lock: lockDocument(lockRule("COMPLIANCE", "<Days>4</Days>")), want: BucketState{Exists: true, Policy: Policy{Days: 4, Locked: true}}, calls: lockOnly},
		"unlocked":     {lock: lockDocument(lockRule("GOVERNANCE", "<Days>4</Days>")), want: BucketState{Exists: true, Policy: Policy{Days: 4}}, calls: lockOnly},
		"years":        {lock: lockDocument(lockRule("COMPLIANCE", "<Years>2</Years>")), want: BucketState{Exists: true, Policy: Policy{Days: 730, Locked: true}, Years: true}, calls: lockOnly},
		"no rule":      {lock: lockDocument(""), want: BucketState{Exists: true}, calls: lockOnly},
		"empty rule":   {lock: lockDocument("<Rule></Rule>"), want: BucketState{Exists: true}, calls: lockOnly},
		"unknown mode": {lock: lockDocument(lockRule("ETERNAL", "<Days>4</Days>")), code: codeConfigurationProblem, parts: []string{"ETERNAL"}, calls: lockOnly},
		"no period":    {lock: lockDocument(lockRule("COMPLIANCE", "")), code: codeConfigurationProblem, calls: lockOnly},
		"no lock":      {lock: "ObjectLockConfigurationNotFoundError", want: BucketState{Exists: true}, calls: withHead},
		"absent":       {lock: "NoSuchBucket", want: BucketState{}, calls: lockOnly},
		"absent, but no lock": {lock: "ObjectLockConfigurationNotFoundError", prepare: func(f *fakeS3) {
			f.refuse("HeadBucket", -1, http.StatusNotFound, "", "")
		}, calls: withHead},
		"answers 501":            {prepare: func(f *fakeS3) { f.refuse("GetObjectLockConfiguration", -1, 501, "NotImplemented", "") }, want: BucketState{Exists: true}, calls: withHead},
		"method not allowed":     {prepare: func(f *fakeS3) { f.refuse("GetObjectLockConfiguration", -1, 405, "", "") }, want: BucketState{Exists: true}, calls: withHead},
		"subresource is ignored": {lock: "<ListBucketResult><Name>backups</Name></ListBucketResult>", want: BucketState{Exists: true}, calls: withHead},
		"foreign": {aws: true, prepare: func(f *fakeS3) { f.refuse("GetObjectLockConfiguration", -1, 403, "AccessDenied", "Access Denied") },
			code: codeConfigurationProblem, parts: []string{"somebody else"}, calls: slices.Concat([]string{"STS.GetCallerIdentity"}, listed), notOurs: true},
		"foreign without object lock": {aws: true, prepare: func(f *fakeS3) { f.refuse("HeadBucket", -1, 403, "", "") }, lock: "ObjectLockConfigurationNotFoundError",
			code: codeConfigurationProblem, parts: []string{"somebody else"}, calls: slices.Concat([]string{"STS.GetCallerIdentity"}, withHead, []string{"ListBuckets"}), notOurs: true},
		"not listed by another store": {prepare: func(f *fakeS3) { f.refuse("GetObjectLockConfiguration", -1, 403, "AccessDenied", "Access Denied") },
			code: codeUnauthorized, parts: []string{"somebody else"}, calls: listed},
		"404 of a proxy": {prepare: func(f *fakeS3) { f.refuse("GetObjectLockConfiguration", -1, 404, "", "") },
			code: codeRetryableConfiguration, parts: []string{"404", s3KeyEndpoint, s3KeyAccessKeyID}, calls: lockOnly},
		"404 in HTML": {prepare: func(f *fakeS3) {
			f.on["GetObjectLockConfiguration"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				w.WriteHeader(http.StatusNotFound)
				_, _ = io.WriteString(w, "<!DOCTYPE html><html><head><title>404</title></head><body><p>Not here<br></body></html>")
				return true
			}
		}, code: codeRetryableConfiguration, parts: []string{"404", s3KeyEndpoint, s3KeyAccessKeyID}, calls: lockOnly},
		"unknown access key, answered with 404": {prepare: func(f *fakeS3) {
			f.refuse("GetObjectLockConfiguration", -1, 404, "InvalidAccessKeyId", "no key "+testKeyID)
		}, code: codeUnauthenticated, parts: []string{"InvalidAccessKeyId", "credentials"}, calls: lockOnly},
		"unknown access key, answered by Ceph": {prepare: func(f *fakeS3) {
			f.refuse("GetObjectLockConfiguration", -1, 403, "InvalidAccessKeyId", "")
		}, code: codeUnauthenticated, parts: []string{"InvalidAccessKeyId", "credentials"}, calls: lockOnly},
		"unknown access key, the user is not found": {prepare: func(f *fakeS3) {
			f.refuse("GetObjectLockConfiguration", -1, 404, "NoSuchUser", "")
		}, code: codeUnauthenticated, parts: []string{"NoSuchUser", "credentials"}, calls: lockOnly},
		"unknown access key, nothing is found": {prepare: func(f *fakeS3) {
			f.refuse("GetObjectLockConfiguration", -1, 404, "AccountNotFound", "")
			f.refuse("HeadBucket", -1, 404, "", "")
		}, code: codeRetryableConfiguration, parts: []string{"AccountNotFound", s3KeyEndpoint, s3KeyAccessKeyID}, calls: withHead},
		"object lock is not found": {prepare: func(f *fakeS3) { f.refuse("GetObjectLockConfiguration", -1, 404, "NoSuchConfiguration", "") },
			want: BucketState{Exists: true}, calls: withHead},
		"object lock is a bad request": {prepare: func(f *fakeS3) { f.refuse("GetObjectLockConfiguration", -1, 400, "InvalidArgument", "") },
			want: BucketState{Exists: true}, calls: withHead},
		"object lock is a bad request, of a bucket with a policy": {prepare: func(f *fakeS3) { f.refuse("GetObjectLockConfiguration", -1, 400, "InvalidArgument", "") },
			recorded: Policy{Days: 4}, parts: []string{"InvalidArgument"}, fails: true, calls: lockOnly},
		"the token has run out": {prepare: func(f *fakeS3) { f.refuse("GetObjectLockConfiguration", -1, 400, "ExpiredToken", "") },
			code: codeUnauthenticated, calls: lockOnly},
		"an empty answer": {prepare: func(f *fakeS3) {
			f.on["GetObjectLockConfiguration"] = func(http.ResponseWriter, *http.Request, string) bool { return true }
		}, want: BucketState{Exists: true}, calls: withHead},
		"ours without permission": {prepare: func(f *fakeS3) {
			f.refuse("GetObjectLockConfiguration", -1, 403, "AccessDenied", "Access Denied")
			f.on["ListBuckets"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = io.WriteString(w, "<ListAllMyBucketsResult><Buckets><Bucket><Name>backups-2</Name></Bucket><Bucket><Name>backups</Name></Bucket></Buckets></ListAllMyBucketsResult>")
				return true
			}
		}, code: codeUnauthorized, parts: []string{"s3:GetBucketObjectLockConfiguration"}, calls: listed},
		"foreign or without permission": {prepare: func(f *fakeS3) {
			f.refuse("GetObjectLockConfiguration", -1, 403, "AccessDenied", "Access Denied")
			f.refuse("ListBuckets", -1, 403, "AccessDenied", "Access Denied")
		}, code: codeUnauthorized, parts: []string{"somebody else", "s3:ListBucket"}, calls: listed},
		"wrong key behind a store without object lock": {prepare: func(f *fakeS3) {
			f.refuse("GetObjectLockConfiguration", -1, 501, "", "")
			f.refuse("HeadBucket", -1, 403, "", "")
			f.refuse("ListBuckets", -1, 403, "InvalidAccessKeyId", "no key "+testKeyID)
		}, code: codeUnauthenticated, calls: append(slices.Clone(withHead), "ListBuckets")},
		"redirect": {prepare: func(f *fakeS3) {
			f.on["GetObjectLockConfiguration"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
				answerS3Error(w, http.StatusMovedPermanently, "PermanentRedirect", "elsewhere")
				return true
			}
		}, code: codeConfigurationProblem, parts: []string{"eu-central-1", "eu-west-1"}, calls: lockOnly, notOurs: true},
		"signed for another region": {prepare: func(f *fakeS3) {
			f.refuse("GetObjectLockConfiguration", -1, 400, "AuthorizationHeaderMalformed", "the region is wrong; expecting 'eu-central-1'")
		}, code: codeConfigurationProblem, parts: []string{"eu-central-1", "eu-west-1"}, calls: lockOnly},
		"custom store with another region": {lock: "ObjectLockConfigurationNotFoundError", prepare: func(f *fakeS3) {
			f.on["HeadBucket"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				w.Header().Set("X-Amz-Bucket-Region", "us-east-1")
				return false
			}
		}, want: BucketState{Exists: true}, calls: withHead},
		"AWS with another region": {aws: true, lock: "ObjectLockConfigurationNotFoundError", prepare: func(f *fakeS3) {
			f.on["HeadBucket"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				w.Header().Set("X-Amz-Bucket-Region", "us-east-1")
				return false
			}
		}, code: codeConfigurationProblem, parts: []string{"us-east-1", "eu-west-1"}, calls: append([]string{"STS.GetCallerIdentity"}, withHead...), notOurs: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, false)
			if f.lock = test.lock; test.prepare != nil {
				test.prepare(f)
			}
			b := f.custom("eu-west-1")
			if test.aws {
				b = f.aws("eu-west-1")
			}
			b.Recorded = test.recorded
			got, err := b.Observe(t.Context())
			if errors.Is(err, errNotOurBucket) != test.notOurs {
				t.Errorf("not our bucket: %t", !test.notOurs)
			}
			if test.code != "" || test.fails {
				wantS3Error(t, err, test.code, test.parts...)
			} else if err != nil {
				t.Fatal(err)
			}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			wantCalls(t, f, test.calls...)
		})
	}
}

func TestS3Create(t *testing.T) {
	for name, test := range map[string]struct {
		region     string
		immutable  bool
		constraint bool
	}{
		"region":                    {"eu-west-1", true, true},
		"us-east-1 has no location": {"us-east-1", true, false},
		"not immutable":             {"eu-west-1", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, false)
			if err := f.custom(test.region).Create(t.Context(), test.immutable); err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(f.bodies["CreateBucket"], "<LocationConstraint>"+test.region+"</LocationConstraint>"); got != test.constraint {
				t.Errorf("location constraint %t, want %t: %s", got, test.constraint, f.bodies["CreateBucket"])
			}
			if got := f.headers["CreateBucket"].Get("X-Amz-Bucket-Object-Lock-Enabled") == "true"; got != test.immutable {
				t.Errorf("object lock %t, want %t", got, test.immutable)
			}
			wantCalls(t, f, "CreateBucket")
		})
	}
	f := newFakeS3(t, false)
	f.refuse("CreateBucket", -1, http.StatusConflict, "BucketAlreadyOwnedByYou", "")
	if err := f.custom("eu-west-1").Create(t.Context(), true); err != nil {
		t.Error(err)
	}
	f.refuse("CreateBucket", -1, http.StatusConflict, "BucketAlreadyExists", "")
	wantS3Error(t, f.custom("eu-west-1").Create(t.Context(), true), codeConfigurationProblem, "somebody else")
	f.refuse("CreateBucket", -1, http.StatusNotImplemented, "NotImplemented", "")
	wantS3Error(t, f.custom("eu-west-1").Create(t.Context(), true), codeConfigurationProblem, "no object lock")
}

func TestS3PutPolicy(t *testing.T) {
	f := newFakeS3(t, false)
	b := f.custom("eu-west-1")
	ctx := t.Context()
	for _, step := range []struct {
		put  func() error
		want Policy
	}{
		{func() error { return b.SetPolicy(ctx, Policy{Days: 4}) }, Policy{Days: 4}},
		{func() error { return b.LockPolicy(ctx, Policy{Days: 5, Locked: true}) }, Policy{Days: 5, Locked: true}},
		{func() error { return b.SetPolicy(ctx, Policy{}) }, Policy{}},
		{func() error { return b.LockPolicy(ctx, Policy{Days: 6, Locked: true}) }, Policy{Days: 6, Locked: true}},
	} {
		if err := step.put(); err != nil {
			t.Fatal(err)
		}
		wantCalls(t, f, "PutObjectLockConfiguration")
		if mode := types.ObjectLockRetentionModeCompliance; strings.Contains(f.lock, string(mode)) != step.want.Locked {
			t.Errorf("a %s was written as %s", step.want, f.lock)
		}
		state, err := b.Observe(ctx)
		if want := (BucketState{Exists: true, Policy: step.want}); err != nil || state != want {
			t.Errorf("got %+v, %v, want %+v", state, err, want)
		}
		f.takeCalls()
	}
}

func TestS3EnableObjectLock(t *testing.T) {
	const put, get, version = "PutObjectLockConfiguration", "GetBucketVersioning", "PutBucketVersioning"
	for name, test := range map[string]struct {
		versioning string
		fails      int // times that PutObjectLockConfiguration answers the error
		status     int
		error      string
		aws        bool
		want       string // versioning afterwards
		code       errorCode
		part       string
		calls      []string
	}{
		"AWS enables it":            {fails: 1, aws: true, want: "Enabled", calls: []string{"STS.GetCallerIdentity", put, get, version, put}},
		"AWS does not":              {fails: -1, aws: true, want: "Suspended", code: codeConfigurationProblem, part: "recreated", calls: []string{"STS.GetCallerIdentity", put, get, version, put, put, put, put, version}},
		"AWS needs a moment":        {fails: 3, aws: true, want: "Enabled", calls: []string{"STS.GetCallerIdentity", put, get, version, put, put, put}},
		"MinIO":                     {fails: -1, code: codeConfigurationProblem, part: "enable versioning on the bucket first", calls: []string{put, get}},
		"MinIO, versioned already":  {versioning: "Enabled", fails: -1, want: "Enabled", code: codeConfigurationProblem, part: "recreated", calls: []string{put, get}},
		"no object lock":            {fails: -1, status: 501, error: "NotImplemented", code: codeConfigurationProblem, part: "no object lock", calls: []string{put}},
		"another error":             {fails: -1, status: 403, error: "AccessDenied", code: codeUnauthorized, part: "s3:PutBucketObjectLockConfiguration", calls: []string{put}},
		"no configuration to write": {fails: -1, status: 404, error: "ObjectLockConfigurationNotFoundError", code: codeConfigurationProblem, part: "recreated", calls: []string{put, get}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, false)
			f.versioning = test.versioning
			if test.status == 0 {
				test.status, test.error = http.StatusConflict, "InvalidBucketState"
			}
			f.refuse(put, test.fails, test.status, test.error, "no")
			b := f.custom("eu-west-1")
			if test.aws {
				b = f.aws("eu-west-1")
			}
			err := b.LockPolicy(t.Context(), Policy{Days: 4})
			if test.code != "" {
				wantS3Error(t, err, test.code, test.part)
			} else if err != nil {
				t.Error(err)
			}
			if f.versioning != test.want {
				t.Errorf("versioning is %q, want %q", f.versioning, test.want)
			}
			wantCalls(t, f, test.calls...)
		})
	}
}

func TestS3Delete(t *testing.T) {
	f := newFakeS3(t, false)
	b := f.custom("eu-west-1")
	if err := b.Delete(t.Context(), anything); err != nil {
		t.Error(err)
	}
	f.refuse("DeleteBucket", -1, 404, "NoSuchBucket", "")
	if err := b.Delete(t.Context(), anything); err != nil {
		t.Error(err)
	}
	f.refuse("DeleteBucket", -1, 409, "BucketNotEmpty", "")
	err := b.Delete(t.Context(), anything)
	if wantS3Error(t, err, ""); !errors.Is(err, errBucketNotEmpty) {
		t.Errorf("%v does not wrap errBucketNotEmpty", err)
	}
}
