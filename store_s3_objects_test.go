package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

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

// An upload that is under way may be that of a live entry.
func TestS3PurgeAsksBeforeItAbortsUploads(t *testing.T) {
	no := &prefixInUseError{entry: "x"}
	f := newFakeS3(t, false)
	f.uploads = []string{"a/upload"}
	b := f.custom("eu-west-1")
	if _, err := testPurge(t.Context(), b, "a/", func(context.Context) error { return no }); !errors.Is(err, no) || !slices.Equal(f.uploads, []string{"a/upload"}) {
		t.Errorf("error %v, left are %q", err, f.uploads)
	}
	asked := 0
	if _, err := testPurge(t.Context(), b, "a/", func(context.Context) error { asked++; return nil }); err != nil || len(f.uploads) > 0 || asked != 1 {
		t.Errorf("error %v, left are %q, asked %d times", err, f.uploads, asked)
	}
	if _, err := testPurge(t.Context(), b, "a/", func(context.Context) error { return no }); err != nil {
		t.Errorf("nothing is left, and still: %v", err)
	}
}
