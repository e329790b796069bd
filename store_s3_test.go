package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
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
}

func newFakeS3(t *testing.T, tls bool) *fakeS3 {
	f := &fakeS3{
		t: t, on: map[string]func(http.ResponseWriter, *http.Request, string) bool{},
		headers: map[string]http.Header{}, bodies: map[string]string{}, keyErrors: map[string]string{},
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
	case r.URL.Query().Has("uploads"):
		return "ListMultipartUploads"
	case r.URL.Query().Has("uploadId") && key != "":
		return "AbortMultipartUpload"
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

// A VPC endpoint is AWS as well: the owner is checked.
func TestS3EndpointsOfAWS(t *testing.T) {
	for endpoint, want := range map[string]bool{
		"": true, "https://s3.eu-west-1.amazonaws.com": true, "https://bucket.vpce-1a2b.s3.eu-west-1.vpce.amazonaws.com": true,
		"https://s3.cn-north-1.amazonaws.com.cn": true, "https://minio.example.com": false, "https://amazonaws.com.example.com": false,
	} {
		store, err := newS3Clients(newMetrics()).openStore(bucketRef{Name: "backups", Region: "eu-west-1"}, testS3Credentials(map[string]string{s3KeyEndpoint: endpoint}))
		if err != nil {
			t.Fatal(err)
		}
		if got := store.(*s3Bucket).aws; got != want {
			t.Errorf("%q: AWS is %t", endpoint, got)
		}
	}
}

func TestS3RegionNoBucketCanBeIn(t *testing.T) {
	_, err := newS3Clients(newMetrics()).openStore(bucketRef{Name: "backups", Region: "eu west"}, testS3Credentials(nil))
	if codeOf(err) != codeConfigurationProblem || !errors.Is(err, errNotOurBucket) || !strings.Contains(err.Error(), "eu west") {
		t.Errorf("got %v with code %q", err, codeOf(err))
	}
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
	}{
		"locked days":  {lock: lockDocument(lockRule("COMPLIANCE", "<Days>4</Days>")), want: BucketState{Exists: true, Policy: Policy{Days: 4, Locked: true}}, calls: lockOnly},
		"unlocked":     {lock: lockDocument(lockRule("GOVERNANCE", "<Days>4</Days>")), want: BucketState{Exists: true, Policy: Policy{Days: 4}}, calls: lockOnly},
		"years":        {lock: lockDocument(lockRule("COMPLIANCE", "<Years>2</Years>")), want: BucketState{Exists: true, Policy: Policy{Days: 730, Locked: true}}, calls: lockOnly},
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
			code: codeRetryableConfiguration, parts: []string{"404", s3KeyEndpoint}, calls: lockOnly},
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
			got, err := b.Observe(t.Context())
			if errors.Is(err, errNotOurBucket) != test.notOurs {
				t.Errorf("not our bucket: %t", !test.notOurs)
			}
			if test.code != "" {
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
	} {
		if err := step.put(); err != nil {
			t.Fatal(err)
		}
		wantCalls(t, f, "PutObjectLockConfiguration")
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

func TestS3Harden(t *testing.T) {
	f := newFakeS3(t, true)
	b := f.custom("eu-west-1")
	if gaps, err := b.Harden(t.Context()); err != nil || len(gaps) != 0 {
		t.Fatal(gaps, err)
	}
	wantCalls(t, f, "GetBucketEncryption", "PutBucketEncryption", "GetPublicAccessBlock", "PutPublicAccessBlock", "GetBucketPolicy", "PutBucketPolicy")
	if !strings.Contains(f.encryption, "AES256") || strings.Count(f.block, ">true<") != 4 {
		t.Errorf("got %s and %s", f.encryption, f.block)
	}
	var policy struct {
		Version   string
		Statement []struct {
			Sid, Effect, Principal, Action string
			Resource                       []string
			Condition                      map[string]map[string]string
		}
	}
	if err := json.Unmarshal([]byte(f.policy), &policy); err != nil || policy.Version != "2012-10-17" || len(policy.Statement) != 2 {
		t.Fatalf("got %s, %v", f.policy, err)
	}
	conditions := []map[string]map[string]string{{"Bool": {"aws:SecureTransport": "false"}}, {"NumericLessThan": {"s3:TlsVersion": "1.2"}}}
	for i, s := range policy.Statement {
		if s.Effect != "Deny" || s.Principal != "*" || s.Action != "s3:*" || !slices.Equal(s.Resource, []string{"arn:aws:s3:::backups", "arn:aws:s3:::backups/*"}) || !reflect.DeepEqual(s.Condition, conditions[i]) {
			t.Errorf("got statement %+v", s)
		}
	}

	if gaps, err := b.Harden(t.Context()); err != nil || len(gaps) != 0 {
		t.Fatal(gaps, err)
	}
	wantCalls(t, f, "GetBucketEncryption", "GetPublicAccessBlock", "GetBucketPolicy")

	f.encryption = "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"
	f.block = "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>false</IgnorePublicAcls><BlockPublicPolicy>true</BlockPublicPolicy><RestrictPublicBuckets>false</RestrictPublicBuckets></PublicAccessBlockConfiguration>"
	gaps, err := b.Harden(t.Context())
	if err != nil || len(gaps) != 1 || !strings.Contains(gaps[0], "IgnorePublicAcls, RestrictPublicBuckets off") {
		t.Errorf("got %q, %v", gaps, err)
	}
	wantCalls(t, f, "GetBucketEncryption", "GetPublicAccessBlock", "GetBucketPolicy")
}

func TestS3HardenPlainHTTPHasNoPolicy(t *testing.T) {
	f := newFakeS3(t, false)
	if gaps, err := f.custom("eu-west-1").Harden(t.Context()); err != nil || len(gaps) != 1 || !strings.Contains(gaps[0], "plain http") {
		t.Fatal(gaps, err)
	}
	wantCalls(t, f, "GetBucketEncryption", "PutBucketEncryption", "GetPublicAccessBlock", "PutPublicAccessBlock")
}

func TestS3HardenGaps(t *testing.T) {
	for name, test := range map[string]struct {
		refuse map[string]int // operation to status
		want   int
	}{
		"nothing can be read":    {map[string]int{"GetBucketEncryption": 501, "GetPublicAccessBlock": 405, "GetBucketPolicy": 501}, 3},
		"nothing can be written": {map[string]int{"PutBucketEncryption": 501, "PutPublicAccessBlock": 501, "PutBucketPolicy": 405}, 3},
		"no KMS":                 {map[string]int{"PutBucketEncryption": 501}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, true)
			for operation, status := range test.refuse {
				f.refuse(operation, -1, status, "NotImplemented", "")
			}
			b := f.custom("eu-west-1")
			first, err := b.Harden(t.Context())
			if err != nil || len(first) != test.want {
				t.Fatalf("got %q, %v", first, err)
			}
			if second, err := b.Harden(t.Context()); err != nil || !slices.Equal(first, second) {
				t.Errorf("gaps change from %q to %q, %v", first, second, err)
			}
		})
	}

	t.Run("no TlsVersion", func(t *testing.T) {
		f := newFakeS3(t, true)
		f.on["PutBucketPolicy"] = func(w http.ResponseWriter, _ *http.Request, body string) bool {
			if strings.Contains(body, "TlsVersion") {
				answerS3Error(w, http.StatusBadRequest, "MalformedPolicy", "invalid condition key")
				return true
			}
			return false
		}
		b := f.custom("eu-west-1")
		for i, want := range [][]string{{"GetBucketPolicy", "PutBucketPolicy", "PutBucketPolicy"}, {"GetBucketPolicy"}} {
			gap, err := b.ensureTLS(t.Context())
			if err != nil || !strings.Contains(gap, "s3:TlsVersion") || !strings.Contains(f.policy, "aws:SecureTransport") {
				t.Fatalf("round %d: got %q, %v with %s", i, gap, err, f.policy)
			}
			wantCalls(t, f, want...)
		}
	})
	t.Run("denied", func(t *testing.T) {
		f := newFakeS3(t, true)
		f.refuse("PutBucketPolicy", -1, 403, "AccessDenied", "")
		gaps, err := f.custom("eu-west-1").Harden(t.Context())
		if err != nil || len(gaps) != 1 || !strings.Contains(gaps[0], "s3:PutBucketPolicy") || !strings.HasPrefix(gaps[0], "S3 PutBucketPolicy") {
			t.Errorf("got %q, %v", gaps, err)
		}
	})
	for name, policy := range map[string]string{"not JSON": "hello", "no object": `["a"]`, "null": "null", "odd statement": `{"Statement":"x"}`, "odd member": `{"Statement":[1]}`} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, true)
			f.policy = policy
			gap, err := f.custom("eu-west-1").ensureTLS(t.Context())
			if err != nil || !strings.Contains(gap, "left as it is") || f.policy != policy {
				t.Errorf("got %q, %v, and policy %s", gap, err, f.policy)
			}
		})
	}
}

func TestMergeS3Policy(t *testing.T) {
	b := &s3Bucket{s3Client: &s3Client{partition: "aws"}, bucketRef: bucketRef{Name: "backups"}}
	ours := b.tlsStatements()
	fresh, changed, err := mergeS3Policy("", ours)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	_, statements, _ := strings.Cut(strings.TrimSuffix(fresh, "]}"), "[")
	const foreign = `{"Sid":"Theirs",  "Effect":"Allow","Principal":{"AWS":"arn:aws:iam::1:root"},"Action":"s3:Get<x>&","Resource":"*", "Condition":{"NumericLessThan":{"n":1.50}}}`
	minio := strings.NewReplacer(`"Principal":"*"`, `"Principal":{"AWS":["*"]}`, `"s3:*"`, `["s3:*"]`, `"false"`, `["false"]`,
		`["arn:aws:s3:::backups","arn:aws:s3:::backups/*"]`, `["arn:aws:s3:::backups/*","arn:aws:s3:::backups"]`).Replace(fresh)
	for name, test := range map[string]struct{ current, want string }{
		"equal":                {fresh, ""},
		"spelled by MinIO":     {minio, ""},
		"boolean":              {strings.Replace(fresh, `"false"`, `false`, 1), ""},
		"number":               {strings.Replace(fresh, `"1.2"`, `1.2`, 1), ""},
		"foreign is kept":      {`{"Id":"x","Version":"2008-10-17","Statement":[` + foreign + `]}`, `{"Version":"2008-10-17","Id":"x","Statement":[` + foreign + `,` + statements + `]}`},
		"single statement":     {`{"Statement":` + foreign + `}`, `{"Statement":[` + foreign + `,` + statements + `]}`},
		"no statement":         {`{"Version":"2012-10-17"}`, fresh},
		"ours between theirs":  {`{"Version":"2012-10-17","Statement":[` + statements + `,` + foreign + `]}`, ""},
		"allowed":              {strings.Replace(fresh, `"Deny"`, `"Allow"`, 1), fresh},
		"less resources":       {strings.Replace(fresh, `,"arn:aws:s3:::backups/*"`, "", 1), fresh},
		"weaker principal":     {strings.Replace(fresh, `"Principal":"*"`, `"Principal":{"AWS":"arn:aws:iam::1:root"}`, 1), fresh},
		"further condition":    {strings.Replace(fresh, `{"Bool":`, `{"StringEquals":{"a":"b"},"Bool":`, 1), fresh},
		"lower version":        {strings.Replace(fresh, `"1.2"`, `"1.0"`, 1), fresh},
		"ours changed, theirs": {`{"Version":"2012-10-17","Statement":[` + foreign + `,` + strings.ReplaceAll(statements, "Deny\"", "Allow\"") + `]}`, `{"Version":"2012-10-17","Statement":[` + foreign + `,` + statements + `]}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, changed, err := mergeS3Policy(test.current, ours)
			if err != nil || changed != (test.want != "") || changed && got != test.want {
				t.Errorf("got changed %t, %v:\n%s\nwant\n%s", changed, err, got, test.want)
			}
		})
	}
}

func TestS3Partitions(t *testing.T) {
	clients := newS3Clients(newMetrics())
	for region, want := range map[string]string{
		"eu-west-1": "aws", "cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov", "eusc-de-east-1": "aws-eusc", "us-iso-east-1": "aws-iso", "us-isob-east-1": "aws-iso-b",
	} {
		for endpoint, want := range map[string]string{"": want, "https://minio.example.com": "aws", "https://s3.amazonaws.com": want} {
			store, err := clients.openStore(bucketRef{Name: "backups", Region: region}, testS3Credentials(map[string]string{s3KeyEndpoint: endpoint}))
			if err != nil {
				t.Fatal(err)
			}
			if got := store.(*s3Bucket).tlsStatements()[0].Resource[0]; got != "arn:"+want+":s3:::backups" {
				t.Errorf("%s %s: got %s", region, endpoint, got)
			}
		}
	}
}

func fakeS3Objects(prefix string, n int) []fakeS3Object {
	objects := make([]fakeS3Object, n)
	for i := range objects {
		objects[i] = fakeS3Object{key: fmt.Sprintf("%s%06d", prefix, i/3), id: fmt.Sprintf("v%d", i%3), size: 2, marker: i%3 == 0}
	}
	return objects
}

func TestS3PurgeMany(t *testing.T) {
	f := newFakeS3(t, false)
	f.objects = slices.Concat(fakeS3Objects("a-sibling/", 10), fakeS3Objects("a/", 3000), fakeS3Objects("b/", 10))
	b := f.custom("eu-west-1")
	got, err := testPurge(t.Context(), b, "a/", nil)
	got.Now = time.Time{}
	if want := (PurgeResult{Deleted: 3000, DeletedBytes: 4000}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if calls := f.takeCalls(); len(calls) > 10 {
		t.Errorf("%d requests: %q", len(calls), calls)
	}
	if keys := f.keys(); len(keys) != 20 || slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, "a/") }) {
		t.Errorf("%d versions are left: %q", len(keys), keys)
	}
	if h := f.headers["DeleteObjects"]; h.Get("X-Amz-Checksum-Crc32") == "" || h.Get("Content-Md5") != "" || h.Get("X-Amz-Bypass-Governance-Retention") != "" {
		t.Errorf("got headers %v", h)
	}

	if got, err := testPurge(t.Context(), b, "a/", nil); err != nil || got != (PurgeResult{Now: got.Now}) {
		t.Errorf("got %+v, %v", got, err)
	}
	wantCalls(t, f, "ListObjectVersions", "ListMultipartUploads")
}

func TestS3PurgeSendsMD5WhereChecksumsAreRefused(t *testing.T) {
	f := newFakeS3(t, false)
	f.objects = fakeS3Objects("a/", 3)
	b := f.open("eu-west-1", testS3Credentials(map[string]string{s3KeyEndpoint: f.URL, s3KeyRequestChecksum: "when_required"}))
	if _, err := testPurge(t.Context(), b, "a/", nil); err != nil {
		t.Fatal(err)
	}
	if f.headers["DeleteObjects"].Get("Content-Md5") == "" {
		t.Errorf("got headers %v", f.headers["DeleteObjects"])
	}
}

func TestS3Purge(t *testing.T) {
	until := time.Date(2999, 1, 2, 3, 4, 5, 0, time.UTC)
	retained := func(w http.ResponseWriter, date time.Time) bool {
		fmt.Fprintf(w, "<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>%s</RetainUntilDate></Retention>", date.Format(time.RFC3339))
		return true
	}
	old, young := until.Add(-time.Hour), until
	justOver := time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	objects := []fakeS3Object{
		{key: "a/1", id: "1", size: 3, modified: old}, {key: "a/2", id: "1", size: 5, modified: young}, {key: "a/3", id: "1", size: 7}, {key: "a/3", id: "2", marker: true, modified: young.Add(time.Hour)},
	}
	for name, test := range map[string]struct {
		codes   map[string]string
		prepare func(*fakeS3)
		want    PurgeResult
		code    errorCode
		parts   []string
		deletes int
	}{
		"nothing retained": {want: PurgeResult{Deleted: 4, DeletedBytes: 15}, deletes: 2},
		"retained by AWS": {codes: map[string]string{"a/1": "AccessDenied", "a/2": "AccessDenied"}, prepare: func(f *fakeS3) {
			f.on["GetObjectRetention"] = func(w http.ResponseWriter, r *http.Request, _ string) bool {
				if !strings.HasSuffix(r.URL.Path, "/a/2") || r.URL.Query().Get("versionId") != "1" {
					t.Errorf("asked about %s", r.URL)
				}
				return retained(w, until)
			}
		}, want: PurgeResult{Deleted: 2, DeletedBytes: 7, Retained: 2, RetainedBytes: 8, RetainedUntil: until}, deletes: 2},
		"retained by MinIO": {codes: map[string]string{"a/2": "InvalidRequest"}, prepare: func(f *fakeS3) {
			f.on["GetObjectRetention"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool { return retained(w, until) }
		}, want: PurgeResult{Deleted: 3, DeletedBytes: 10, Retained: 1, RetainedBytes: 5, RetainedUntil: until}, deletes: 2},
		"retained by a clock behind ours": {codes: map[string]string{"a/2": "AccessDenied"}, prepare: func(f *fakeS3) {
			f.on["GetObjectRetention"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool { return retained(w, justOver) }
		}, want: PurgeResult{Deleted: 3, DeletedBytes: 10, Retained: 1, RetainedBytes: 5, RetainedUntil: justOver}, deletes: 2},
		"legal hold": {codes: map[string]string{"a/2": "AccessDenied"}, prepare: func(f *fakeS3) {
			f.on["GetObjectLegalHold"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = io.WriteString(w, "<LegalHold><Status>ON</Status></LegalHold>")
				return true
			}
		}, want: PurgeResult{Deleted: 3, DeletedBytes: 10, Retained: 1, RetainedBytes: 5}, deletes: 2},
		"missing permission": {codes: map[string]string{"a/1": "AccessDenied", "a/2": "AccessDenied", "a/3": "AccessDenied"},
			want: PurgeResult{Retained: 3, RetainedBytes: 15}, code: codeUnauthorized, parts: []string{"s3:DeleteObjectVersion"}, deletes: 1},
		"missing permission, retention over": {codes: map[string]string{"a/2": "AccessDenied"}, prepare: func(f *fakeS3) {
			f.on["GetObjectRetention"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				return retained(w, time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC))
			}
			f.on["GetObjectLegalHold"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = io.WriteString(w, "<LegalHold><Status>OFF</Status></LegalHold>")
				return true
			}
		}, want: PurgeResult{Deleted: 3, DeletedBytes: 10, Retained: 1, RetainedBytes: 5}, code: codeUnauthorized, parts: []string{"s3:DeleteObjectVersion"}, deletes: 2},
		"retention cannot be read": {codes: map[string]string{"a/2": "AccessDenied"}, prepare: func(f *fakeS3) {
			f.refuse("GetObjectRetention", -1, 403, "AccessDenied", "")
		}, want: PurgeResult{Deleted: 3, DeletedBytes: 10, Retained: 1, RetainedBytes: 5}, code: codeUnauthorized, parts: []string{"s3:GetObjectRetention"}, deletes: 2},
		"gone meanwhile":      {codes: map[string]string{"a/1": "NoSuchKey", "a/2": "NoSuchVersion"}, want: PurgeResult{Deleted: 4, DeletedBytes: 15}, deletes: 2},
		"throttled for good":  {codes: map[string]string{"a/1": "SlowDown"}, want: PurgeResult{Deleted: 2, DeletedBytes: 12}, code: codeRetryableDependencies, parts: []string{"SlowDown", "a/1"}, deletes: s3MaxAttempts},
		"another key failure": {codes: map[string]string{"a/3": "NeverHeardOf"}, want: PurgeResult{Deleted: 2, DeletedBytes: 8}, parts: []string{"NeverHeardOf", "a/3"}, deletes: 1},
		"throttled once": {codes: map[string]string{"a/1": "SlowDown", "a/2": "InternalError"}, prepare: func(f *fakeS3) {
			n := 0
			f.on["DeleteObjects"] = func(_ http.ResponseWriter, _ *http.Request, body string) bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				if n++; n > 1 {
					f.ignoreKeyErrors = true
					if n == 2 && strings.Contains(body, "a/3") {
						t.Error("a deleted key is deleted again")
					}
				}
				return false
			}
		}, want: PurgeResult{Deleted: 4, DeletedBytes: 15}, deletes: 3},
		"version missing in the answer": {prepare: func(f *fakeS3) {
			f.on["DeleteObjects"] = func(w http.ResponseWriter, _ *http.Request, body string) bool {
				if strings.Contains(body, "a/2") {
					_, _ = io.WriteString(w, "<DeleteResult><Error><Key>a/2</Key><Code>AccessDenied</Code></Error></DeleteResult>")
				}
				return strings.Contains(body, "a/2")
			}
			f.on["GetObjectRetention"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool { return retained(w, until) }
		}, want: PurgeResult{Deleted: 2, DeletedBytes: 10, Retained: 1, RetainedBytes: 5, RetainedUntil: until}, deletes: 1},
		"answer about nothing we asked": {prepare: func(f *fakeS3) {
			f.on["DeleteObjects"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = io.WriteString(w, "<DeleteResult><Error><Key>z</Key><Code>InternalError</Code></Error></DeleteResult>")
				return true
			}
		}, code: codeRetryableDependencies, deletes: purgeAttempts},
		"prefix is ignored": {prepare: func(f *fakeS3) {
			f.ignorePrefix = true
			f.objects = append(f.objects, fakeS3Object{key: "b/1", id: "1"})
		}, parts: []string{"b/1", `"a/"`}},
		"deletes are not done": {prepare: func(f *fakeS3) {
			f.on["DeleteObjects"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = io.WriteString(w, "<DeleteResult></DeleteResult>")
				return true
			}
		}, want: PurgeResult{Deleted: 3 * purgeRounds / 2, DeletedBytes: 15 * purgeRounds / 2}, parts: []string{"still lists"}, deletes: purgeRounds / 2},
		"the list goes in circles": {prepare: func(f *fakeS3) {
			f.on["ListObjectVersions"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = io.WriteString(w, "<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>a/1</NextKeyMarker></ListVersionsResult>")
				return true
			}
		}, parts: []string{"where it was"}},
		"no bucket": {prepare: func(f *fakeS3) { f.refuse("ListObjectVersions", -1, 404, "NoSuchBucket", "") }},
		"bucket deleted meanwhile": {prepare: func(f *fakeS3) { f.refuse("DeleteObjects", -1, 404, "NoSuchBucket", "") },
			deletes: 1},
		"list denied":             {prepare: func(f *fakeS3) { f.refuse("ListObjectVersions", -1, 403, "AccessDenied", "") }, code: codeUnauthorized, parts: []string{"s3:ListBucketVersions"}},
		"uploads":                 {prepare: func(f *fakeS3) { f.uploads = []string{"a/upload"} }, want: PurgeResult{Deleted: 4, DeletedBytes: 15}, deletes: 2},
		"no uploads in the store": {prepare: func(f *fakeS3) { f.refuse("ListMultipartUploads", -1, 501, "NotImplemented", "") }, want: PurgeResult{Deleted: 4, DeletedBytes: 15}, deletes: 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, false)
			f.objects = slices.Clone(objects)
			if f.keyErrors = test.codes; test.prepare != nil {
				test.prepare(f)
			}
			got, err := testPurge(t.Context(), f.custom("eu-west-1"), "a/", nil)
			got.Now = time.Time{}
			if test.parts != nil || test.code != "" {
				wantS3Error(t, err, test.code, test.parts...)
			} else if err != nil {
				t.Fatal(err)
			}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			deletes := 0
			for _, call := range f.takeCalls() {
				if call == "DeleteObjects" {
					deletes++
				}
			}
			if deletes != test.deletes || len(f.uploads) > 0 {
				t.Errorf("%d deletes, want %d; uploads left: %q", deletes, test.deletes, f.uploads)
			}
			if name == "prefix is ignored" && len(f.keys()) != 5 {
				t.Errorf("only %q are left", f.keys())
			}
		})
	}
}

func TestS3PurgeKeepsForeignUploads(t *testing.T) {
	f := newFakeS3(t, false)
	f.uploads = []string{"a-sibling/upload", "a/upload"}
	if _, err := testPurge(t.Context(), f.custom("eu-west-1"), "a/", nil); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, f, "ListObjectVersions", "ListMultipartUploads", "AbortMultipartUpload")
	if !slices.Equal(f.uploads, []string{"a-sibling/upload"}) {
		t.Errorf("left are %q", f.uploads)
	}
}

// TestS3PurgeListsWhileItDeletes holds the first delete back until the next page is asked for.
func TestS3PurgeListsWhileItDeletes(t *testing.T) {
	f := newFakeS3(t, false)
	f.objects = fakeS3Objects("a/", 1500)
	listed := make(chan struct{})
	lists := 0
	f.on["ListObjectVersions"] = func(http.ResponseWriter, *http.Request, string) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if lists++; lists == 2 {
			close(listed)
		}
		return false
	}
	f.on["DeleteObjects"] = func(_ http.ResponseWriter, r *http.Request, _ string) bool {
		select {
		case <-listed:
		case <-r.Context().Done():
		}
		return false
	}
	if got, err := testPurge(t.Context(), f.custom("eu-west-1"), "a/", nil); err != nil || got.Deleted != 1500 {
		t.Errorf("got %+v, %v", got, err)
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
