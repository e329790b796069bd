package main

import (
	"cmp"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// s3Form is how a store differs from AWS. The zero value does not.
type s3Form struct {
	// plain is the HTTP status with which it answers what it does not have: versions, object lock.
	plain int
	// noBatches is that for DeleteObjects.
	noBatches int
	// wholly: a batch with one retained object is refused as a whole, and there is no retention
	// of an object to be read (NetApp ONTAP).
	wholly bool
	// md5 is its error code for a batch, or a retention, without Content-MD5.
	md5 string
	// refusal is the error code for a retention that may not be changed so, with its status; AWS says 403 AccessDenied.
	refusal string
}

// formS3 is an S3 store in memory that answers in one of the known forms.
type formS3 struct {
	*httptest.Server
	s3Form
	mu      sync.Mutex
	buckets map[string]*formBucket
	calls   []string
	next    int
	// silent closes the connection within the answer to an operation, so many times.
	silent map[string]int
	reset  bool
}

type formBucket struct {
	lockable  bool
	rule      string
	days      int
	versioned bool
	versions  []formVersion // by key, the newest first
	uploads   [][2]string
}

type formVersion struct {
	key, id      string
	size         int
	created      time.Time
	marker, held bool
	until        time.Time
	mode         string
	tags         string // a Tagging document
}

func (v formVersion) kept() bool { return v.held || v.until.After(time.Now()) }

func newFormS3(t *testing.T, form s3Form) *formS3 {
	f := &formS3{s3Form: form, buckets: map[string]*formBucket{}, silent: map[string]int{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// secret is the data of a credentials secret in JSON.
func (f *formS3) secret() string {
	data, _ := json.Marshal(map[string][]byte{
		s3KeyAccessKeyID: []byte(testKeyID), s3KeySecretAccessKey: []byte(testSecretKey), s3KeyRegion: []byte("eu-west-1"),
		s3KeyEndpoint: []byte(f.URL), s3KeyPathStyle: []byte("true"),
	})
	return string(data)
}

// open opens a bucket that has one.
func (f *formS3) open(t *testing.T, recorded Policy) (*s3Bucket, *formBucket) {
	t.Helper()
	c := newS3Clients(newMetrics())
	c.maxBackoff = time.Millisecond
	var data map[string][]byte
	if err := json.Unmarshal([]byte(f.secret()), &data); err != nil {
		t.Fatal(err)
	}
	b, err := c.open(bucketRef{Name: "backups", Region: "eu-west-1", Recorded: recorded}, data)
	if err != nil {
		t.Fatal(err)
	}
	bucket := &formBucket{versioned: f.plain == 0, lockable: f.plain == 0}
	f.buckets["backups"] = bucket
	return b, bucket
}

func (f *formS3) take() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := map[string]int{}
	for _, call := range f.calls {
		counts[call]++
	}
	f.calls = nil
	return counts
}

// add adds a version with a time of its own, in the order of the list.
func (b *formBucket) add(v formVersion) {
	i, _ := slices.BinarySearchFunc(b.versions, v, func(v, w formVersion) int {
		return cmp.Or(cmp.Compare(v.key, w.key), w.created.Compare(v.created), 1)
	})
	b.versions = slices.Insert(b.versions, i, v)
}

func (f *formS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	operation := formOperation(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, operation)
	w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
	if f.silent[operation] > 0 {
		f.silent[operation]--
		answer := httptest.NewRecorder()
		f.serve(answer, r, operation, raw)
		breakAnswer(w, answer.Body.String(), f.reset)
		return
	}
	f.serve(w, r, operation, raw)
}

// breakAnswer sends a part of an answer and closes the connection, or resets it.
func breakAnswer(w http.ResponseWriter, body string, reset bool) {
	body = "<?xml version=\"1.0\"?>\n" + body
	connection, buffer, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(buffer, "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s",
		len(body)+100, body[:len(body)-10])
	_ = buffer.Flush()
	if linger, ok := connection.(interface{ SetLinger(int) error }); ok && reset {
		_ = linger.SetLinger(0)
	}
	_ = connection.Close()
}

func formOperation(r *http.Request) string {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	q := r.URL.Query()
	for _, sub := range []string{"object-lock", "versioning", "encryption", "publicAccessBlock", "policy", "retention", "legal-hold", "tagging"} {
		if q.Has(sub) {
			return r.Method + " " + sub
		}
	}
	switch {
	case bucket == "":
		return "ListBuckets"
	case q.Has("versions"):
		return "ListObjectVersions"
	case q.Has("list-type"):
		return "ListObjectsV2"
	case q.Has("delete"):
		return "DeleteObjects"
	case q.Has("uploads") && key == "":
		return "ListMultipartUploads"
	case q.Has("uploadId"):
		return "AbortMultipartUpload"
	case key == "":
		return r.Method + " bucket"
	}
	return r.Method + " object"
}

func (f *formS3) serve(w http.ResponseWriter, r *http.Request, operation string, raw []byte) {
	name, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	q, b := r.URL.Query(), f.buckets[name]
	missing := func(status int) {
		answerS3Error(w, status, map[int]string{501: "NotImplemented", 405: "MethodNotAllowed"}[status], "no")
	}
	switch operation {
	case "PUT bucket":
		lockable := r.Header.Get("X-Amz-Bucket-Object-Lock-Enabled") == "true"
		switch {
		case lockable && f.plain != 0:
			missing(f.plain)
		case b != nil:
			answerS3Error(w, http.StatusConflict, "BucketAlreadyOwnedByYou", "yours")
		default:
			f.buckets[name] = &formBucket{lockable: lockable, versioned: lockable}
		}
		return
	case "GET object-lock":
		switch {
		case f.plain != 0:
			missing(f.plain)
		case b == nil || !b.lockable: // MinIO says so of both
			answerS3Error(w, http.StatusNotFound, "ObjectLockConfigurationNotFoundError", "none")
		default:
			_, _ = io.WriteString(w, lockDocument(b.rule))
		}
		return
	case "GET versioning":
		fmt.Fprintf(w, "<VersioningConfiguration>%s</VersioningConfiguration>",
			map[bool]string{true: "<Status>Enabled</Status>"}[b != nil && b.versioned])
		return
	case "GET encryption":
		answerS3Error(w, http.StatusNotFound, "ServerSideEncryptionConfigurationNotFoundError", "none")
		return
	case "PUT encryption", "GET publicAccessBlock", "GET policy":
		missing(http.StatusNotImplemented)
		return
	case "ListBuckets":
		_, _ = io.WriteString(w, "<ListAllMyBucketsResult><Buckets></Buckets></ListAllMyBucketsResult>")
		return
	}
	if b == nil {
		answerS3Error(w, http.StatusNotFound, "NoSuchBucket", "none")
		return
	}
	switch operation {
	case "HEAD bucket":
	case "DELETE bucket":
		if len(b.versions) > 0 {
			answerS3Error(w, http.StatusConflict, "BucketNotEmpty", "not empty")
			return
		}
		delete(f.buckets, name)
		w.WriteHeader(http.StatusNoContent)
	case "PUT object-lock":
		f.putLock(b, raw)
	case "ListObjectVersions", "ListObjectsV2":
		if operation == "ListObjectVersions" && f.plain != 0 {
			missing(f.plain)
			return
		}
		b.list(w, q, operation == "ListObjectsV2")
	case "DeleteObjects":
		f.deleteObjects(w, r, b, raw)
	case "ListMultipartUploads":
		f.listUploads(w, q, b)
	case "AbortMultipartUpload":
		b.uploads = slices.DeleteFunc(b.uploads, func(u [2]string) bool { return u == [2]string{key, q.Get("uploadId")} })
		w.WriteHeader(http.StatusNoContent)
	case "PUT object":
		f.next++
		v := formVersion{key: key, size: len(raw), created: time.Now().UTC()}
		if decoded := r.Header.Get("X-Amz-Decoded-Content-Length"); decoded != "" {
			v.size, _ = strconv.Atoi(decoded)
		}
		if b.days > 0 {
			v.until, v.mode = v.created.AddDate(0, 0, b.days), formMode(b.rule)
		}
		if b.versioned {
			v.id = fmt.Sprintf("v%08d", f.next)
		} else {
			b.versions = slices.DeleteFunc(b.versions, func(w formVersion) bool { return w.key == key })
		}
		b.add(v)
	case "DELETE object":
		id := q.Get("versionId")
		if code := f.deleteOne(b, key, id); code != "" {
			answerS3Error(w, http.StatusForbidden, code, "retained")
			return
		}
		if id == "" && b.versioned {
			w.Header().Set("X-Amz-Version-Id", fmt.Sprintf("v%08d", f.next))
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		f.object(w, r, operation, b, key, raw)
	}
}

func (f *formS3) putLock(b *formBucket, raw []byte) {
	var lock struct {
		Rule *struct {
			DefaultRetention struct {
				Mode string
				Days int
			}
		}
	}
	_ = xml.Unmarshal(raw, &lock)
	b.rule, b.days = "", 0
	if lock.Rule != nil {
		r := lock.Rule.DefaultRetention
		b.days, b.rule = r.Days, lockRule(r.Mode, fmt.Sprintf("<Days>%d</Days>", r.Days))
	}
}

// object serves the retention and the legal hold of an object.
func (f *formS3) object(w http.ResponseWriter, r *http.Request, operation string, b *formBucket, key string, raw []byte) {
	id := r.URL.Query().Get("versionId")
	i := slices.IndexFunc(b.versions, func(v formVersion) bool { return v.key == key && (id == "" || v.id == id) })
	switch {
	case i < 0:
		answerS3Error(w, http.StatusNotFound, "NoSuchKey", "none")
	case b.versions[i].marker:
		answerS3Error(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "a delete marker")
	case operation == "GET object":
		w.Header().Set("Content-Length", strconv.Itoa(b.versions[i].size))
		_, _ = w.Write(make([]byte, b.versions[i].size))
	case operation == "PUT tagging":
		b.versions[i].tags = string(raw)
	case operation == "GET tagging":
		_, _ = io.WriteString(w, cmp.Or(b.versions[i].tags, "<Tagging><TagSet></TagSet></Tagging>"))
	case f.wholly && r.Method == http.MethodGet:
		answerS3Error(w, http.StatusNotFound, "NoSuchObjectLockConfiguration", "none")
	case operation == "PUT legal-hold":
		b.versions[i].held = strings.Contains(string(raw), ">ON<")
	case operation == "GET legal-hold":
		fmt.Fprintf(w, "<LegalHold><Status>%s</Status></LegalHold>", map[bool]string{true: "ON", false: "OFF"}[b.versions[i].held])
	case operation == "PUT retention" && !b.lockable:
		answerS3Error(w, http.StatusBadRequest, "InvalidRequest", "Bucket is missing Object Lock Configuration")
	case operation == "PUT retention":
		f.retain(w, r, &b.versions[i], raw)
	case b.versions[i].until.IsZero():
		answerS3Error(w, http.StatusNotFound, "NoSuchObjectLockConfiguration", "none")
	default:
		fmt.Fprintf(w, "<Retention><Mode>%s</Mode><RetainUntilDate>%s</RetainUntilDate></Retention>", b.versions[i].mode,
			b.versions[i].until.Format(time.RFC3339Nano))
	}
}

func formMode(rule string) string {
	if strings.Contains(rule, "GOVERNANCE") {
		return "GOVERNANCE"
	}
	return "COMPLIANCE"
}

// retain changes the retention of a version: one in COMPLIANCE only grows, one in GOVERNANCE can be bypassed.
func (f *formS3) retain(w http.ResponseWriter, r *http.Request, v *formVersion, raw []byte) {
	var in struct{ Mode, RetainUntilDate string }
	_ = xml.Unmarshal(raw, &in)
	until, _ := time.Parse(time.RFC3339, in.RetainUntilDate)
	bypass := r.Header.Get("X-Amz-Bypass-Governance-Retention") == "true"
	grows := in.Mode == v.mode && !until.Before(v.until.Truncate(time.Second))
	switch {
	case in.Mode != "" && f.md5 != "" && r.Header.Get("Content-Md5") == "":
		answerS3Error(w, http.StatusBadRequest, f.md5, "no checksum")
	case in.Mode != "" && !until.After(time.Now()):
		answerS3Error(w, http.StatusBadRequest, "InvalidArgument", "The retain until date must be in the future!")
	case v.until.After(time.Now()) && !grows && (v.mode == "COMPLIANCE" || !bypass):
		if f.refusal != "" {
			answerS3Error(w, http.StatusBadRequest, f.refusal, "not so")
			return
		}
		answerS3Error(w, http.StatusForbidden, "AccessDenied", "not so")
	default:
		v.mode, v.until = in.Mode, until
	}
}

func (b *formBucket) list(w io.Writer, q url.Values, plain bool) {
	encode, encoding := func(s string) string { return s }, ""
	if q.Get("encoding-type") == "url" {
		encode, encoding = url.QueryEscape, "<EncodingType>url</EncodingType>"
	}
	limit, err := strconv.Atoi(q.Get("max-keys"))
	if err != nil {
		limit = 1000
	}
	from, id := q.Get("key-marker"), q.Get("version-id-marker")
	if plain {
		raw, _ := url.QueryUnescape(q.Get("continuation-token"))
		from = strings.TrimPrefix(raw, "token ")
	}
	root := map[bool]string{true: "ListBucketResult", false: "ListVersionsResult"}[plain]
	fmt.Fprintf(w, "<%s>%s", root, encoding)
	n, past, last := 0, false, formVersion{}
	for _, v := range b.versions {
		behind := v.key > from || v.key == from && id != "" && past
		past = past || v.key == from && v.id == id
		if !behind || !strings.HasPrefix(v.key, q.Get("prefix")) {
			continue
		}
		if n == limit {
			if plain {
				fmt.Fprintf(w, "<IsTruncated>true</IsTruncated><NextContinuationToken>%s</NextContinuationToken>", url.QueryEscape("token "+last.key))
			} else {
				fmt.Fprintf(w, "<IsTruncated>true</IsTruncated><NextKeyMarker>%s</NextKeyMarker><NextVersionIdMarker>%s</NextVersionIdMarker>",
					encode(last.key), last.id)
			}
			break
		}
		element := map[bool]string{true: "Contents", false: "Version"}[plain]
		if v.marker {
			element = "DeleteMarker"
		}
		fmt.Fprintf(w, "<%s><Key>%s</Key><VersionId>%s</VersionId><Size>%d</Size><LastModified>%s</LastModified></%s>",
			element, encode(v.key), v.id, v.size, v.created.Format(time.RFC3339Nano), element)
		last = v
		n++
	}
	fmt.Fprintf(w, "</%s>", root)
}

func (f *formS3) listUploads(w io.Writer, q url.Values, b *formBucket) {
	_, _ = io.WriteString(w, "<ListMultipartUploadsResult><EncodingType>url</EncodingType>")
	for _, u := range b.uploads {
		if strings.HasPrefix(u[0], q.Get("prefix")) {
			fmt.Fprintf(w, "<Upload><Key>%s</Key><UploadId>%s</UploadId></Upload>", url.QueryEscape(u[0]), u[1])
		}
	}
	_, _ = io.WriteString(w, "</ListMultipartUploadsResult>")
}

func (f *formS3) deleteObjects(w http.ResponseWriter, r *http.Request, b *formBucket, raw []byte) {
	var in struct {
		Object []struct{ Key, VersionId string }
	}
	switch err := xml.Unmarshal(raw, &in); {
	case f.noBatches != 0:
		w.WriteHeader(f.noBatches)
		return
	case f.md5 != "" && r.Header.Get("Content-Md5") == "":
		answerS3Error(w, http.StatusBadRequest, f.md5, "no checksum")
		return
	case err != nil || len(in.Object) > 1000:
		answerS3Error(w, http.StatusBadRequest, "MalformedXML", "not XML")
		return
	}
	if f.wholly {
		for _, o := range in.Object {
			if slices.ContainsFunc(b.versions, func(v formVersion) bool { return v.key == o.Key && v.id == o.VersionId && v.kept() }) {
				answerS3Error(w, http.StatusForbidden, "AccessDenied", "one of them")
				return
			}
		}
	}
	_, _ = io.WriteString(w, "<DeleteResult>")
	for _, o := range in.Object {
		if code := f.deleteOne(b, o.Key, o.VersionId); code != "" {
			fmt.Fprintf(w, "<Error><Key>")
			_ = xml.EscapeText(w, []byte(o.Key))
			fmt.Fprintf(w, "</Key><VersionId>%s</VersionId><Code>%s</Code><Message>retained</Message></Error>", o.VersionId, code)
		}
	}
	_, _ = io.WriteString(w, "</DeleteResult>")
}

// deleteOne deletes a version; without one it hides the object, where there are versions.
func (f *formS3) deleteOne(b *formBucket, key, id string) (code string) {
	if id == "" && b.versioned {
		f.next++
		b.add(formVersion{key: key, id: fmt.Sprintf("v%08d", f.next), created: time.Now().UTC(), marker: true})
		return ""
	}
	i := slices.IndexFunc(b.versions, func(v formVersion) bool { return v.key == key && v.id == id })
	switch {
	case i < 0:
	case b.versions[i].kept():
		return "AccessDenied"
	default:
		b.versions = slices.Delete(b.versions, i, i+1)
	}
	return ""
}

// formBackend is a formS3 as a backend of the acceptance suite.
type formBackend struct {
	*s3Backend
	form *formS3
}

func startFormBackend(t *testing.T, form s3Form) *formBackend {
	f := newFormS3(t, form)
	return &formBackend{startS3Backend(t, f.secret()).(*s3Backend), f}
}

// inForm says which form of its kind a store has.
func (b *formBackend) inForm() s3Form { return b.form.s3Form }

// until implements storeBackend: some forms do not tell.
func (b *formBackend) until(_ *testing.T, bucket string, names ...string) (until time.Time) {
	b.form.mu.Lock()
	defer b.form.mu.Unlock()
	for _, v := range b.form.buckets[bucket].versions {
		if slices.Contains(names, v.key) && v.until.After(until) {
			until = v.until
		}
	}
	return until
}

// list implements storeBackend, past what the form cannot list.
func (b *formBackend) list(_ *testing.T, bucket string) (objects []suiteObject) {
	b.form.mu.Lock()
	defer b.form.mu.Unlock()
	if of := b.form.buckets[bucket]; of != nil {
		for _, v := range of.versions {
			objects = append(objects, suiteObject{v.key, int64(v.size)})
		}
	}
	return objects
}

// TestStoreForms runs the acceptance suite against S3 in its other known forms.
func TestStoreForms(t *testing.T) {
	all := []string{
		"LifeCycle", "Policy", "Extensions", "Drift", "Purge", "PurgeMany", "HardKeys", "Marks", "Markers", "Content", "Extend",
		"ExtendUnlockable", "Retained", "Ageing", "LegalHold", "Delete", "Open", "Faults", "Concurrency", "Cancellation",
	}
	unlocked := []string{"Purge", "PurgeMany", "HardKeys", "Marks", "Content", "Open", "Concurrency", "Cancellation"}
	for name, test := range map[string]struct {
		form s3Form
		run  []string
	}{
		"AWS":             {run: all},
		"Content-MD5":     {form: s3Form{md5: "MissingContentMD5"}, run: all},
		"MinIO's refusal": {form: s3Form{refusal: "InvalidRequest"}, run: []string{"Content", "Extend", "ExtendUnlockable"}},
		"no batches":      {form: s3Form{noBatches: 501}, run: all},
		"refuses batches": {form: s3Form{wholly: true}, run: []string{
			"Policy", "Purge", "PurgeMany", "HardKeys", "Marks", "Markers", "Retained", "Delete", "Concurrency", "Cancellation",
		}},
		"no versions":              {form: s3Form{plain: 501}, run: unlocked},
		"no versions, not allowed": {form: s3Form{plain: 405, noBatches: 405}, run: unlocked},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			backend := startFormBackend(t, test.form)
			// The form does not check credentials, hence no Errors.
			testStoreOnly(t, backend, test.run)
		})
	}
}
