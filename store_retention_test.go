package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

// testStoreExtend: a version is retained for longer, never for shorter, each with one request.
func testStoreExtend(t *testing.T, backend storeBackend) {
	b := newSuiteBucket(t, backend)
	b.create()
	ctx, objects := t.Context(), b.entry(Policy{})
	store, ok := objects.(extender)
	if !ok {
		t.Skip("versions have no retention of their own")
	}
	now := backend.now(t).Truncate(time.Second)
	put := func(name string) (v version) {
		t.Helper()
		backend.put(t, b.name, name, 1)
		return b.only(objects, name)
	}
	wantLock := func(what string, v version, want versionLock) {
		t.Helper()
		got, err := store.lock(ctx, v)
		if b.must(err); !got.until.Equal(want.until) || got.held != want.held || got.governance != want.governance {
			t.Errorf("%s: the lock is %+v, want %+v", what, got, want)
		}
	}
	extend := func(what string, v version, until time.Time, bypass bool, want ...error) {
		t.Helper()
		var err error
		b.wantRequests(what, requestsOf{storeS3: {"PutObjectRetention": 1}, storeMemory: {"ExtendVersion": 1}}, func() {
			err = store.extend(ctx, v, until, bypass)
		})
		if len(want) == 0 && err == nil {
			return
		}
		for _, want := range want {
			if errors.Is(err, want) && errors.As(err, new(*storeError)) && !isTransient(err) {
				return
			}
		}
		t.Errorf("%s: %v, want one of %v", what, err, want)
	}
	hour := func(n int) time.Time { return now.Add(time.Duration(n) * time.Hour) }

	v := put("a/plain")
	extend("one that is not retained", v, hour(1).Add(time.Millisecond), false)
	wantLock("it ends in the next whole second", v, versionLock{until: hour(1).Add(time.Second)})
	extend("longer", v, hour(2), false)
	extend("equal", v, hour(2), false)
	extend("longer, with a bypass that is not needed", v, hour(3), true)
	for _, bypass := range []bool{false, true} {
		extend("shorter", v, hour(1), bypass, errRetainedLonger, errNotExtended)
		wantLock("what was refused changes nothing", v, versionLock{until: hour(3)})
	}
	if answer := b.tryRemove(objects, v); answer.outcome == removalGone {
		t.Errorf("what was extended was deleted: %+v", answer)
	}
	if err := store.extend(ctx, put("a/past"), hour(-24), false); !errors.As(err, new(*storeError)) || isTransient(err) {
		t.Errorf("a date in the past: %v", err)
	}

	gone := put("a/gone")
	b.tryRemove(objects, gone)
	extend("one that is gone", gone, hour(1), false, errNoVersion)
	gone.key = "a/never"
	extend("one that never was", gone, hour(1), false, errNoVersion)
	marker, err := objects.(hider).hide(ctx, put("a/hidden").key)
	b.must(err)
	if err := store.extend(ctx, marker, hour(1), false); !errors.Is(err, errNoVersion) {
		t.Errorf("a delete marker: %v", err)
	}
	b.tryRemove(objects, marker)

	v = put("a/held")
	backend.hold(t, b.name, true)
	extend("one with a legal hold", v, hour(1), false)
	wantLock("it is known to be retained, and no more", v, versionLock{until: hour(1)})
	backend.hold(t, b.name, false)

	b.must(b.SetPolicy(ctx, unlockedPolicy(suiteDays)))
	later := hour(24 * 2 * suiteDays)
	v = put("b/governance")
	extend("one in governance", v, later, false, errNotExtended)
	wantLock("it stays in governance", v, versionLock{governance: true})
	extend("one in governance, with a bypass", v, later, true)
	wantLock("it is in compliance", v, versionLock{until: later})
	extend("it stays in compliance", v, hour(1), true, errRetainedLonger, errNotExtended)
}

// only is the one version of an object.
func (b *suiteBucket) only(objects Objects, name string) version {
	b.t.Helper()
	var found []version
	for page, err := range objects.pages(b.t.Context(), name, cursor{}) {
		b.must(err)
		found = append(found, page.versions...)
	}
	if len(found) != 1 {
		b.t.Fatalf("of %s there are %+v", name, found)
	}
	return found[0]
}

// testStoreExtendUnlockable: nothing is extended in a bucket without object lock, and no date is sent that some stores take for
// one in the past.
func testStoreExtendUnlockable(t *testing.T, backend storeBackend) {
	if backend.kind() != storeS3 {
		t.Skip("all its buckets can hold a policy")
	}
	b := newSuiteBucket(t, backend)
	b.must(b.Create(t.Context(), false))
	objects := b.entry(Policy{})
	store, ok := objects.(extender)
	if !ok {
		t.Fatal("it extends nothing")
	}
	backend.put(t, b.name, "a", 1)
	v := b.only(objects, "a")
	err := store.extend(t.Context(), v, backend.now(t).Add(time.Hour), false)
	if !errors.Is(err, errNoRetention) && !errors.Is(err, errNotExtended) || !errors.As(err, new(*storeError)) || isTransient(err) {
		t.Errorf("without object lock: %v", err)
	}
	b.wantRequests("a date that some stores take for one in the past", requestsOf{storeS3: {}}, func() {
		if err := store.extend(t.Context(), v, s3LastDate.Add(time.Nanosecond), false); !errors.Is(err, errNoRetention) {
			t.Errorf("beyond the last date: %v", err)
		}
	})
	if lock, err := store.lock(t.Context(), v); lock != (versionLock{}) || err != nil {
		t.Errorf("it is retained: %+v, %v", lock, err)
	}
}

// What stores answer to an extension, and what it means. That of AWS is from its documentation, that of MinIO and Ceph was seen
// (docs/stores.md).
func TestS3ExtendAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		aws        bool
		status     int
		code, text string
		want       error
		class      errorCode
		parts      []string
	}{
		"AWS, retained longer, governance or no permission": {aws: true, status: 403, code: "AccessDenied", text: "Access Denied",
			want: errNotExtended, class: codeUnauthorized, parts: []string{"s3:PutObjectRetention"}},
		"AWS, no object lock":          {aws: true, status: 400, code: "InvalidRequest", text: "Bucket is missing Object Lock Configuration", want: errNoRetention, class: codeConfigurationProblem},
		"AWS, delete marker":           {aws: true, status: 405, code: "MethodNotAllowed", want: errNoRetention, class: codeConfigurationProblem},
		"AWS, gone":                    {aws: true, status: 404, code: "NoSuchVersion", want: errNoVersion},
		"AWS, past":                    {aws: true, status: 400, code: "InvalidArgument", text: "The retain until date must be in the future!", parts: []string{"in the future"}},
		"MinIO, longer or governance":  {status: 400, code: "InvalidRequest", text: "Object is WORM protected and cannot be overwritten", want: errNotExtended, parts: []string{"WORM"}},
		"MinIO, no object lock":        {status: 400, code: "InvalidRequest", text: "Bucket is missing ObjectLockConfiguration", want: errNotExtended},
		"MinIO, gone":                  {status: 404, code: "NoSuchVersion", want: errNoVersion},
		"MinIO, no key":                {status: 404, code: "NoSuchKey", want: errNoVersion},
		"MinIO, past":                  {status: 400, code: "MalformedXML", text: "the retain until date must be in the future"},
		"Ceph, longer":                 {status: 403, code: "AccessDenied", text: "proposed retain-until date shortens", want: errNotExtended, class: codeUnauthorized},
		"Ceph, no code":                {status: 403, want: errNotExtended, class: codeUnauthorized},
		"Ceph, no object lock":         {status: 400, code: "InvalidRequest", want: errNotExtended},
		"another, longer":              {status: 400, code: "ObjectLocked", want: errRetainedLonger},
		"another, no such call":        {status: 501, code: "NotImplemented", want: errNoRetention, class: codeConfigurationProblem},
		"another, no such call either": {status: 405, want: errNoRetention, class: codeConfigurationProblem},
		"another, no configuration":    {status: 404, code: "ObjectLockConfigurationNotFoundError", want: errNoRetention, class: codeConfigurationProblem},
		"throttled":                    {status: 503, code: "SlowDown", class: codeRetryableDependencies},
		"too many":                     {status: 429, code: "TooManyRequests", class: codeRateLimitsExceeded},
		"a key that is not accepted":   {status: 403, code: "InvalidAccessKeyId", class: codeUnauthenticated},
		"no bucket":                    {status: 404, code: "NoSuchBucket"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, false)
			f.refuse("PutObjectRetention", -1, test.status, test.code, test.text)
			b := f.custom("eu-west-1")
			if test.aws {
				b = f.aws("eu-west-1")
			}
			err := b.extend(t.Context(), version{key: "a", id: "1"}, time.Now().Add(time.Hour), false)
			wantS3Error(t, err, test.class, test.parts...)
			for _, typed := range []error{errNotExtended, errNoRetention, errNoVersion, errRetainedLonger} {
				if errors.Is(err, typed) != (typed == test.want) {
					t.Errorf("that it is %q is %t: %v", typed, errors.Is(err, typed), err)
				}
			}
			if transient := isTransient(err); transient != (test.status == 503 || test.status == 429) {
				t.Errorf("that it is transient is %t: %v", transient, err)
			}
			for _, call := range f.takeCalls() {
				if call != "PutObjectRetention" && !strings.HasPrefix(call, "STS.") {
					t.Errorf("made %s", call)
				}
			}
		})
	}
}

// What is sent: the version, the mode, whole seconds in UTC, both checksums, and no bypass unless it is asked for.
func TestS3ExtendRequest(t *testing.T) {
	at := time.Date(2026, 3, 1, 10, 0, 0, 1, time.FixedZone("", 3600))
	for _, bypass := range []bool{false, true} {
		f := newFakeS3(t, false)
		f.on["PutObjectRetention"] = func(_ http.ResponseWriter, r *http.Request, body string) bool {
			if id := r.URL.Query().Get("versionId"); id != "v1" || r.URL.Path != "/backups/a/b" {
				t.Errorf("asked for version %q of %s", id, r.URL.Path)
			}
			for _, part := range []string{"<Mode>COMPLIANCE</Mode>", "<RetainUntilDate>2026-03-01T09:00:01Z</RetainUntilDate>"} {
				if !strings.Contains(body, part) {
					t.Errorf("%s is not in %s", part, body)
				}
			}
			for header, want := range map[string]bool{"Content-Md5": true, "X-Amz-Checksum-Crc32": true, "X-Amz-Bypass-Governance-Retention": bypass} {
				if got := r.Header.Get(header) != ""; got != want {
					t.Errorf("with bypass %t the header %s is sent: %t", bypass, header, got)
				}
			}
			return true
		}
		if err := f.custom("eu-west-1").extend(t.Context(), version{key: "a/b", id: "v1"}, at, bypass); err != nil {
			t.Error(err)
		}
		wantCalls(t, f, "PutObjectRetention")
	}
}

// A store that does not know the request writes an object: that is no success, and tells that nothing can be extended.
func TestS3ExtendOfAStoreThatWrites(t *testing.T) {
	f := newFakeS3(t, false)
	f.on["PutObjectRetention"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		w.Header().Set("ETag", `"0"`)
		return true
	}
	err := f.custom("eu-west-1").extend(context.Background(), version{key: "a", id: "1"}, time.Now().Add(time.Hour), false)
	if wantS3Error(t, err, codeConfigurationProblem); !errors.Is(err, errNoRetention) {
		t.Errorf("got %v", err)
	}
}

// A retention in governance counts as none, and so does one that is over.
func TestS3LockTellsGovernance(t *testing.T) {
	for name, test := range map[string]struct {
		mode  string
		until time.Duration
		want  versionLock
	}{
		"compliance":          {mode: "COMPLIANCE", until: time.Hour, want: versionLock{until: time.Unix(0, 0)}},
		"compliance, over":    {mode: "COMPLIANCE", until: -time.Hour},
		"governance":          {mode: "GOVERNANCE", until: time.Hour, want: versionLock{governance: true}},
		"governance, over":    {mode: "GOVERNANCE", until: -time.Hour},
		"an unheard-of mode":  {mode: "MAYBE", until: time.Hour, want: versionLock{governance: true}},
		"a date that wrapped": {mode: "COMPLIANCE", until: -36 * 365 * 24 * time.Hour},
	} {
		f := newFakeS3(t, false)
		until := time.Now().Add(test.until).UTC().Truncate(time.Second)
		f.on["GetObjectRetention"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			_, _ = w.Write([]byte("<Retention><Mode>" + test.mode + "</Mode><RetainUntilDate>" + until.Format(time.RFC3339) + "</RetainUntilDate></Retention>"))
			return true
		}
		if !test.want.until.IsZero() {
			test.want.until = until
		}
		got, err := f.custom("eu-west-1").lock(t.Context(), version{key: "a", id: "1"})
		if err != nil || got.held || got.governance != test.want.governance || !got.until.Equal(test.want.until) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, test.want)
		}
	}
}
