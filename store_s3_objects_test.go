package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
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

// Ten thousand retained versions are listed, and asked for with a sample.
func TestS3PurgeOfManyRetained(t *testing.T) {
	f := newFormS3(t, s3Form{})
	policy := Policy{Days: 30, Locked: true}
	b, bucket := f.open(t, policy)
	start := time.Now().UTC().Add(-24 * time.Hour).Truncate(time.Second)
	for i := range 10000 {
		created := start.Add(time.Duration(i) * time.Second)
		bucket.versions = append(bucket.versions, formVersion{key: fmt.Sprintf("a/%06d", i), id: "v", size: 1, created: created, until: policy.until(created)})
	}
	result, err := testPurge(t.Context(), b, "a/", nil)
	want := PurgeResult{Retained: 10000, RetainedBytes: 10000, Now: result.Now, RetainedUntil: policy.until(start.Add(9999 * time.Second))}
	if err != nil || result != want {
		t.Errorf("%+v, %v", result, err)
	}
	calls := f.take()
	if want := map[string]int{"ListObjectVersions": 10, "DeleteObjects": 1, "GET retention": 1, "ListMultipartUploads": 1}; !maps.Equal(calls, want) {
		t.Errorf("requests %v, want %v", calls, want)
	}
}

// NetApp ONTAP answers a batch with one retained object by a 403 for all of it, and has no date
// of an object.
func TestS3PurgeWhereBatchesAreRefused(t *testing.T) {
	t.Parallel()
	policy := Policy{Days: 30, Locked: true}
	start := func(t *testing.T, recorded Policy, age time.Duration) (*formS3, *s3Bucket, *formBucket, time.Time) {
		f := newFormS3(t, s3Form{wholly: true})
		b, bucket := f.open(t, recorded)
		young := time.Now().UTC().Add(-age).Truncate(time.Second)
		for i := range 1500 {
			v := formVersion{key: fmt.Sprintf("a/%06d", i), id: "v", size: 1, created: young.Add(-100 * 24 * time.Hour)}
			if i%100 == 7 {
				v.created, v.until = young, time.Now().Add(time.Hour)
			}
			bucket.versions = append(bucket.versions, v)
		}
		return f, b, bucket, young
	}
	for name, recorded := range map[string]Policy{"known": policy, "longer": {Days: 1000, Locked: true}} {
		t.Run(name, func(t *testing.T) {
			_, b, bucket, young := start(t, recorded, time.Hour)
			result, err := testPurge(t.Context(), b, "a/", nil)
			if err != nil || result.Deleted != 1485 || result.Retained != 15 || !result.RetainedUntil.Equal(recorded.until(young)) || len(bucket.versions) != 15 {
				t.Errorf("%+v, %v, %d are left", result, err, len(bucket.versions))
			}
		})
	}
	t.Run("the policy does not cover it", func(t *testing.T) {
		_, b, _, _ := start(t, policy, 40*24*time.Hour)
		_, err := testPurge(t.Context(), b, "a/", nil)
		wantS3Error(t, err, codeUnauthorized, "s3:DeleteObjectVersion")
	})
	t.Run("no policy is known", func(t *testing.T) {
		_, b, _, _ := start(t, Policy{}, time.Hour)
		_, err := testPurge(t.Context(), b, "a/", nil)
		wantS3Error(t, err, codeUnauthorized, "s3:DeleteObjectVersion")
	})
	t.Run("AWS", func(t *testing.T) {
		_, b, _, _ := start(t, policy, time.Hour)
		b.aws, b.account = true, testAccount
		_, err := testPurge(t.Context(), b, "a/", nil)
		wantS3Error(t, err, codeUnauthorized, "s3:DeleteObjectVersion")
	})
}

// A delete marker is never retained: if it may not be deleted, a permission is missing.
func TestS3PurgeOfMarkersWithoutPermission(t *testing.T) {
	f := newFakeS3(t, false)
	f.objects = []fakeS3Object{{key: "a/1", id: "1", marker: true, modified: time.Now()}}
	f.keyErrors["a/1"] = "AccessDenied"
	f.refuse("GetObjectRetention", -1, http.StatusMethodNotAllowed, "MethodNotAllowed", "a delete marker")
	f.refuse("GetObjectLegalHold", -1, http.StatusMethodNotAllowed, "MethodNotAllowed", "a delete marker")
	_, err := testPurge(t.Context(), f.custom("eu-west-1"), "a/", nil)
	wantS3Error(t, err, codeUnauthorized, "s3:DeleteObjectVersion")
}

// What a store has said that it does not have is never asked for again.
func TestS3PurgeWithoutVersionsAndBatches(t *testing.T) {
	t.Parallel()
	for _, form := range []s3Form{{plain: 501}, {plain: 405}, {noBatches: 501}, {plain: 501, noBatches: 405}} {
		t.Run(fmt.Sprintf("%+v", form), func(t *testing.T) {
			f := newFormS3(t, form)
			b, bucket := f.open(t, Policy{})
			id := ""
			if form.plain == 0 {
				id = "v"
			}
			fill := func(n int) {
				for i := range n {
					bucket.versions = append(bucket.versions, formVersion{key: fmt.Sprintf("a/%06d", i), id: id, created: time.Now().Add(-time.Hour)})
				}
			}
			fill(1100)
			list, lists := "ListObjectVersions", 3
			if form.plain != 0 {
				list = "ListObjectsV2"
			}
			for pass := range 2 {
				result, err := testPurge(t.Context(), b, "a/", nil)
				if err != nil || result.Deleted != 1100 || len(bucket.versions) != 0 {
					t.Errorf("%+v, %v, %d are left", result, err, len(bucket.versions))
				}
				want := map[string]int{list: lists, "DeleteObjects": 2, "ListMultipartUploads": 1}
				if form.noBatches != 0 {
					want["DELETE object"], want["DeleteObjects"] = 1100, 0
				}
				calls := f.take()
				if pass == 0 && form.plain != 0 {
					want["ListObjectVersions"] = 1
				}
				if pass == 0 && form.noBatches != 0 {
					want["DeleteObjects"] = max(1, calls["DeleteObjects"]) // those that were under way
				}
				maps.DeleteFunc(want, func(_ string, n int) bool { return n == 0 })
				// What goes while the list is read shortens it.
				if want[list] = calls[list]; calls[list] > lists || calls["DeleteObjects"] > 2 || !maps.Equal(calls, want) {
					t.Errorf("pass %d made the requests %v, want %v", pass, calls, want)
				}
				fill(1100)
			}
			if form.plain != 0 {
				if of, _, err := readMarks(t.Context(), b, "a"); err != nil || of.count != 0 {
					t.Errorf("marks %+v, %v", of, err)
				}
			}
		})
	}
	t.Run("where there is a policy", func(t *testing.T) {
		f := newFormS3(t, s3Form{plain: 501})
		b, bucket := f.open(t, Policy{Days: 1})
		bucket.versions = []formVersion{{key: "a/1", created: time.Now()}}
		if _, err := testPurge(t.Context(), b, "a/", nil); codeOf(err) != codeConfigurationProblem || len(bucket.versions) != 1 {
			t.Errorf("%v, %d are left", err, len(bucket.versions))
		}
	})
	t.Run("single deletes", func(t *testing.T) {
		for status, code := range map[int]errorCode{403: codeUnauthorized, 500: codeRetryableDependencies, 429: codeRateLimitsExceeded, 400: ""} {
			f := newFakeS3(t, false)
			f.objects = []fakeS3Object{{key: "a/1", id: "1", modified: time.Now()}}
			f.refuse("DeleteObjects", -1, 501, "", "")
			f.refuse("DeleteObject", -1, status, "", "")
			result, err := testPurge(t.Context(), f.custom("eu-west-1"), "a/", nil)
			if wantS3Error(t, err, code); (result.Retained == 1) != (status == 403) {
				t.Errorf("%d: %+v", status, result)
			}
			deletes := 0
			for _, call := range f.takeCalls() {
				if call == "DeleteObject" {
					deletes++
				}
			}
			if want := map[bool]int{true: purgeAttempts, false: 1}[isTransient(err)]; deletes != want {
				t.Errorf("%d: %d deletes, want %d", status, deletes, want)
			}
		}
	})
}

// Content-MD5 is tried once where a batch is a bad request, and remembered where it helps.
func TestS3PurgeWithContentMD5(t *testing.T) {
	t.Parallel()
	fill := func(bucket *formBucket) {
		bucket.versions = nil
		for i := range 4000 {
			bucket.versions = append(bucket.versions, formVersion{key: fmt.Sprintf("a/%06d", i), id: "v", created: time.Now().Add(-time.Hour)})
		}
	}
	for _, code := range []string{"InvalidRequest", "MissingContentMD5", "InvalidDigest", "Whatever"} {
		f := newFormS3(t, s3Form{md5: code})
		b, bucket := f.open(t, Policy{})
		for pass := range 2 {
			fill(bucket)
			result, err := testPurge(t.Context(), b, "a/", nil)
			if err != nil || result.Deleted != 4000 {
				t.Errorf("%s: %+v, %v", code, result, err)
			}
			// In the first pass, as many as were under way are asked for twice.
			if n := f.take()["DeleteObjects"]; pass == 0 && (n < 5 || n > 4+purgeInFlight) || pass == 1 && n != 4 {
				t.Errorf("%s: pass %d made %d deletions", code, pass, n)
			}
		}
	}
	f := newFakeS3(t, false)
	f.objects = fakeS3Objects("a/", 3)
	f.refuse("DeleteObjects", -1, http.StatusBadRequest, "NeverHeardOf", "for a reason")
	b := f.custom("eu-west-1")
	for range 2 {
		if _, err := testPurge(t.Context(), b, "a/", nil); err == nil || !strings.Contains(err.Error(), "NeverHeardOf") {
			t.Errorf("got %v", err)
		}
		wantCalls(t, f, "ListObjectVersions", "DeleteObjects", "DeleteObjects")
	}
}

// Batches that are under way when a store first asks for Content-MD5 get it as well.
func TestS3PurgeWithContentMD5AtOnce(t *testing.T) {
	f := newFakeS3(t, false)
	f.objects = fakeS3Objects("a/", 3000)
	for i := range f.objects {
		f.objects[i].marker = false
	}
	var arrived sync.WaitGroup
	arrived.Add(purgeInFlight)
	f.on["DeleteObjects"] = func(w http.ResponseWriter, r *http.Request, _ string) bool {
		if r.Header.Get("Content-Md5") != "" {
			return false
		}
		arrived.Done()
		arrived.Wait()
		answerS3Error(w, http.StatusBadRequest, "MissingContentMD5", "no")
		return true
	}
	if result, err := testPurge(t.Context(), f.custom("eu-west-1"), "a/", nil); err != nil || result.Deleted != 3000 {
		t.Errorf("%+v, %v", result, err)
	}
}

// A connection that breaks within an answer is the network's, and reads are repeated.
func TestS3ConnectionBreaksWithinAnAnswer(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for operation, call := range map[string]func(context.Context, *s3Bucket) error{
			"ListObjectVersions":   func(ctx context.Context, b *s3Bucket) error { _, err := testPurge(ctx, b, "a/", nil); return err },
			"DeleteObjects":        func(ctx context.Context, b *s3Bucket) error { _, err := testPurge(ctx, b, "a/", nil); return err },
			"ListMultipartUploads": func(ctx context.Context, b *s3Bucket) error { _, err := testPurge(ctx, b, "a/", nil); return err },
			"GET object-lock":      func(ctx context.Context, b *s3Bucket) error { _, err := b.Observe(ctx); return err },
			"GET encryption":       func(ctx context.Context, b *s3Bucket) error { _, err := b.Harden(ctx); return err },
		} {
			t.Run(fmt.Sprintf("%s reset=%t", operation, reset), func(t *testing.T) {
				f := newFormS3(t, s3Form{})
				f.reset = reset
				b, bucket := f.open(t, Policy{})
				bucket.versions = []formVersion{{key: "a/1", id: "v", created: time.Now().Add(-time.Hour)}}
				f.silent[operation] = s3MaxAttempts - 1
				if err := call(t.Context(), b); err != nil {
					t.Errorf("though it was repeated: %v", err)
				}
				bucket.versions = []formVersion{{key: "a/1", id: "v", created: time.Now().Add(-time.Hour)}}
				f.silent[operation] = 100
				err := call(t.Context(), b)
				if codeOf(err) != codeRetryableDependencies || !isTransient(err) {
					t.Errorf("%v has code %q", err, codeOf(err))
				}
				if n := 100 - f.silent[operation]; n != s3MaxAttempts {
					t.Errorf("%d attempts", n)
				}
			})
		}
	}
}
