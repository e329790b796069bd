package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// testStoreContent: an object is read, tagged and hidden, by its version.
func testStoreContent(t *testing.T, backend storeBackend) {
	b := newSuiteBucket(t, backend)
	b.create()
	ctx, objects := t.Context(), b.entry(Policy{})
	store, ok := objects.(interface {
		reader
		tagger
	})
	if !ok {
		t.Skip("the store cannot be read")
	}
	const key, size = "a/v2/Full & more", 3 << 20
	backend.put(t, b.name, key, size)
	list := func(pages func(context.Context, string, cursor) (out []version)) []version {
		return pages(ctx, "a/", cursor{})
	}
	plain := func(ctx context.Context, prefix string, from cursor) (out []version) {
		for page, err := range objects.pages(ctx, prefix, from) {
			b.must(err)
			out = append(out, page.versions...)
		}
		return out
	}
	found := list(plain)
	if len(found) != 1 || found[0].size != size {
		t.Fatalf("in the bucket are %+v", found)
	}
	v := found[0]

	read := func(v version) (int64, error) {
		body, err := store.open(ctx, v)
		if err != nil {
			return 0, err
		}
		defer func() { _ = body.Close() }()
		return io.Copy(io.Discard, body)
	}
	b.wantRequests("reading an object", requestsOf{storeS3: {"GetObject": 1}, storeAzure: {"Blobs.Get": 1}, storeMemory: {"GetObject": 1}},
		func() {
			if n, err := read(v); n != size || err != nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
		})
	for listed, want := range map[int64]string{size - 1: "larger than the list says", size + 1: "smaller than the list says"} {
		other := v
		other.size = listed
		if _, err := read(other); err == nil || !strings.Contains(err.Error(), want) || isTransient(err) || !errors.As(err, new(*storeError)) {
			t.Errorf("an object of %d bytes that the list calls %d: %v", size, listed, err)
		}
	}
	gone := v
	gone.key = "a/v2/not there"
	if _, err := read(gone); !errors.Is(err, errNoVersion) || !errors.As(err, new(*storeError)) {
		t.Errorf("reading what is not there: %v", err)
	}
	if _, err := store.tags(ctx, gone); !errors.Is(err, errNoVersion) {
		t.Errorf("tags of what is not there: %v", err)
	}
	if err := store.setTags(ctx, gone, map[string]string{"a": "b"}); !errors.Is(err, errNoVersion) {
		t.Errorf("tagging what is not there: %v", err)
	}

	wantTags := func(want map[string]string) {
		t.Helper()
		tags, err := store.tags(ctx, v)
		if b.must(err); !maps.Equal(tags, want) {
			t.Errorf("the tags are %v, want %v", tags, want)
		}
		if lister, ok := objects.(tagLister); ok {
			b.wantRequests("listing with tags", requestsOf{storeAzure: {"Blobs.List": 1}}, func() {
				for page, err := range lister.taggedPages(ctx, "a/", cursor{}) {
					b.must(err)
					if len(page.versions) != 1 || page.versions[0].excluded != (want[excludeTag] == excludeValue) {
						t.Errorf("with the tags %v the list is %+v", want, page.versions)
					}
				}
			})
		}
	}
	wantTags(map[string]string{})
	for _, tags := range []map[string]string{{"team": "a b", excludeTag: "True"}, {"team": "a b", excludeTag: excludeValue}, {"team": "x"}} {
		b.wantRequests("tagging", requestsOf{storeS3: {"PutObjectTagging": 1}, storeAzure: {"Blobs.SetTags": 1}, storeMemory: {"PutTags": 1}},
			func() { b.must(store.setTags(ctx, v, tags)) })
		wantTags(tags)
	}

	if locks, ok := objects.(lockReader); ok && suiteForm(backend).plain == 0 {
		lock, err := locks.lock(ctx, v)
		if b.must(err); lock != (versionLock{}) {
			t.Errorf("it is retained: %+v", lock)
		}
		if _, err := locks.lock(ctx, gone); !errors.Is(err, errNoVersion) {
			t.Errorf("the lock of what is not there: %v", err)
		}
		backend.hold(t, b.name, true)
		if lock, err = locks.lock(ctx, v); lock != (versionLock{held: true}) || err != nil {
			t.Errorf("with a hold it is retained: %+v, %v", lock, err)
		}
		backend.hold(t, b.name, false)
		b.must(b.SetPolicy(ctx, unlockedPolicy(suiteDays)))
		backend.put(t, b.name, "b/unlocked", 1)
		for page, err := range objects.pages(ctx, "b/", cursor{}) {
			b.must(err)
			b.wantRequests("reading an unlocked retention", requestsOf{storeS3: {"GetObjectRetention": 1, "GetObjectLegalHold": 1},
				storeMemory: {"GetVersion": 1}}, func() { lock, err = locks.lock(ctx, page.versions[0]) })
			if lock != (versionLock{governance: true}) || err != nil {
				t.Errorf("what somebody can take away counts as locked: %+v, %v", lock, err)
			}
		}
		_, err = b.Observe(ctx)
		b.must(err)
		b.must(b.LockPolicy(ctx, lockedPolicy(suiteDays)))
		backend.put(t, b.name, "c/locked", 1)
		for page, err := range objects.pages(ctx, "c/", cursor{}) {
			b.must(err)
			b.wantRequests("reading a lock", requestsOf{storeS3: {"GetObjectRetention": 1}, storeMemory: {"GetVersion": 1}}, func() {
				lock, err = locks.lock(ctx, page.versions[0])
			})
			if off := lock.until.Sub(backend.until(t, b.name, "c/locked")).Abs(); off > time.Second || lock.held || lock.governance || err != nil {
				t.Errorf("it is locked: %+v, %v", lock, err)
			}
		}
	}

	h, ok := objects.(hider)
	if !ok {
		return
	}
	if suiteForm(backend).plain != 0 {
		if _, err := h.hide(ctx, key); err == nil {
			t.Error("an object was deleted instead of hidden")
		}
		if after := list(plain); len(after) != 1 || after[0] != v {
			t.Errorf("after hiding was refused there are %+v", after)
		}
		return
	}
	var marker version
	b.wantRequests("hiding", requestsOf{storeS3: {"GetBucketVersioning": 1, "DeleteObject": 1}, storeMemory: {"DeleteObject": 1}}, func() {
		var err error
		marker, err = h.hide(ctx, key)
		b.must(err)
	})
	var kept, markers int
	for _, w := range list(plain) {
		switch {
		case w.marker && w.same(marker):
			markers++
		case w.same(v):
			kept++
		default:
			t.Errorf("there is also %+v", w)
		}
	}
	if kept != 1 || markers != 1 {
		t.Errorf("after hiding, %d objects and %d markers", kept, markers)
	}
	if n, err := read(v); n != size || err != nil {
		t.Errorf("read %d bytes of what is hidden, %v", n, err)
	}
	wantTags(map[string]string{"team": "x"})
	if answer := b.tryRemove(objects, marker); answer.outcome != removalGone {
		t.Errorf("removing the marker: %+v", answer)
	}
	if after := list(plain); len(after) != 1 || !after[0].same(v) {
		t.Errorf("after the marker is gone there are %+v", after)
	}
}

// A large object may take long, as long as it keeps coming; an answer that stands still, or drips, is left.
func TestObjectsAreStreamed(t *testing.T) {
	const size = 64 << 20
	head := "HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\nConnection: close\r\n\r\n"
	chunk := bytes.Repeat([]byte("a"), 1<<20)
	for name, c := range map[string]struct {
		pause time.Duration
		chunk []byte
		want  string
	}{
		"ten minutes": {10 * time.Second, chunk, ""},
		"still":       {time.Hour, chunk, "did not answer in time"},
		"drips":       {time.Second, []byte("a"), "did not answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := pipeBucket(t, "store.example.com", "backups", answering(func(client net.Conn) {
					_, err := io.WriteString(client, head)
					for err == nil {
						time.Sleep(c.pause)
						_, err = client.Write(c.chunk)
					}
				}))
				defer store.transport.CloseIdleConnections()
				body, err := store.open(t.Context(), version{key: "a", id: "1", size: size})
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, body)
				_ = body.Close()
				time.Sleep(2 * time.Hour) // the server sees that nobody reads
				switch {
				case c.want == "" && (n != size || err != nil):
					t.Errorf("read %d bytes, %v", n, err)
				case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !isTransient(err)):
					t.Errorf("got %v, want %q", err, c.want)
				}
			})
		})
	}
}

// A connection that breaks off within an object is an error of the store that passes.
func TestObjectBreaksOff(t *testing.T) {
	store := pipeBucket(t, "store.example.com", "backups", always("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"))
	defer store.transport.CloseIdleConnections()
	body, err := store.open(t.Context(), version{key: "a", id: "1", size: 100})
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(body)
	if err == nil || !strings.Contains(err.Error(), "the connection breaks off") || !isTransient(err) || strings.Contains(err.Error(), "geheim") {
		t.Errorf("got %v", err)
	}
	_ = body.Close()
}

// On Azure a blob is read and tagged by its version too.
func TestAzureContentOfAVersion(t *testing.T) {
	f := newFakeAzure(t)
	entry, ok := f.entry(Policy{}).(*azureEntry)
	if !ok {
		t.Fatal("not an entry")
	}
	v := version{key: "a b/c", id: "2026-01-01T00:00:00.0000000Z", size: 3}
	f.on["Put"] = func(w http.ResponseWriter, r *http.Request, body string) bool {
		if r.URL.Query().Get("versionid") != v.id || r.URL.Query().Get("comp") != "tags" || !strings.Contains(body, excludeTag) {
			t.Errorf("%s %s: %s", r.Method, r.URL, body)
		}
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	f.on["List"] = func(w http.ResponseWriter, r *http.Request, _ string) bool {
		if r.URL.Query().Get("versionid") != v.id || !strings.HasSuffix(r.URL.Path, "/a b/c") {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		if r.URL.Query().Get("comp") == "tags" {
			w.Header().Set("Content-Type", "application/xml")
			_, _ = io.WriteString(w, "<Tags><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tags>")
			return true
		}
		_, _ = io.WriteString(w, "abc")
		return true
	}
	body, err := entry.open(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if content, err := io.ReadAll(body); string(content) != "abc" || err != nil {
		t.Errorf("read %q, %v", content, err)
	}
	_ = body.Close()
	if tags, err := entry.tags(t.Context(), v); err != nil || !maps.Equal(tags, map[string]string{"k": "v"}) {
		t.Errorf("tags %v, %v", tags, err)
	}
	if err := entry.setTags(t.Context(), v, map[string]string{excludeTag: excludeValue}); err != nil {
		t.Error(err)
	}
}

// With what is written goes a checksum that the store checks, so that nobody has to read it back.
func TestWritesAreChecked(t *testing.T) {
	content := []byte("content")
	sum := md5.Sum(content)
	want := base64.StdEncoding.EncodeToString(sum[:])
	onS3 := newFakeS3(t, false)
	if err := onS3.custom("eu-west-1").write(t.Context(), "a/x", content); err != nil {
		t.Fatal(err)
	}
	if got := onS3.headers["PutObject"].Get("Content-Md5"); got != want {
		t.Errorf("S3: the checksum is %q, want %q", got, want)
	}
	onAzure := newFakeAzure(t)
	onAzure.container = true
	if err := onAzure.entry(Policy{}).(writer).write(t.Context(), "a/x", content); err != nil {
		t.Fatal(err)
	}
	if got := onAzure.headers["Put"].Get("Content-Md5"); got != want {
		t.Errorf("Azure: the checksum is %q, want %q", got, want)
	}
}
