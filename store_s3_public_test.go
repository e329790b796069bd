package main

import (
	"net/http"
	"strings"
	"testing"
)

// A public access block is kept only if an object could be written with it.
func TestS3PublicAccessBlockIsTried(t *testing.T) {
	const get, put, object, head, undo = "GetPublicAccessBlock", "PutPublicAccessBlock", "PutObject", "HeadObject", "DeletePublicAccessBlock"
	const none = "NoSuchPublicAccessBlockConfiguration"
	const all = "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>true</IgnorePublicAcls>" +
		"<BlockPublicPolicy>true</BlockPublicPolicy><RestrictPublicBuckets>true</RestrictPublicBuckets></PublicAccessBlockConfiguration>"
	// Ceph answers so where nothing was ever set.
	ceph := "<BlockPublicAccessBlockConfiguration>" + strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(all, "<PublicAccessBlockConfiguration>"),
		"</PublicAccessBlockConfiguration>"), "true", "false") + "</BlockPublicAccessBlockConfiguration>"
	const denied = `S3 PutObject for bucket "backups" failed: access denied (AccessDenied): the credentials need the permission ` +
		"s3:PutObject, and no policy may deny it."
	type round struct {
		gap   string
		fails bool
		calls []string
	}
	for name, test := range map[string]struct {
		block   string
		prepare func(*fakeS3)
		created bool
		rounds  []round
		// on is how many settings are on in the end.
		on int
	}{
		"works": {block: none, rounds: []round{{calls: []string{get, put, get, object}}, {calls: []string{get}}}, on: 4},
		"Ceph RGW 16": {block: ceph, prepare: func(f *fakeS3) { f.cephACLs = true },
			rounds: []round{{gap: gapBlockACLs, calls: []string{get, put, get, object, put, object}}, {gap: gapBlockACLs, calls: []string{get}}}, on: 3},
		"Ceph RGW 16, interrupted": {block: all, created: true, prepare: func(f *fakeS3) { f.cephACLs = true },
			rounds: []round{{gap: gapBlockACLs, calls: []string{get, head, object, put, object}}, {gap: gapBlockACLs, calls: []string{get}}}, on: 3},
		"of somebody's, works":     {block: all, rounds: []round{{calls: []string{get, head, object}}, {calls: []string{get}}}, on: 4},
		"of somebody's, does not":  {block: all, prepare: func(f *fakeS3) { f.cephACLs = true }, rounds: []round{{fails: true, calls: []string{get, head, object}}}, on: 4},
		"tried in an earlier life": {block: all, prepare: func(f *fakeS3) { f.puts[s3BlockCheck] = http.Header{} }, rounds: []round{{calls: []string{get, head}}, {calls: []string{get}}}, on: 4},
		"with no setting": {block: none, prepare: func(f *fakeS3) { f.blockRefuses = true }, rounds: []round{
			{gap: gapBlockRefuses, calls: []string{get, put, get, object, put, object, undo, object}}, {gap: gapBlockRefuses, calls: []string{get}}}},
		"cannot be removed": {block: none, prepare: func(f *fakeS3) {
			f.blockRefuses = true
			f.refuse(undo, -1, 501, "NotImplemented", "")
		}, rounds: []round{{gap: gapBlockNotUndone, calls: []string{get, put, get, object, put, object, undo}}}, on: 3},
		"nothing can be written at all": {block: none, prepare: func(f *fakeS3) { f.refuse(object, -1, 403, "AccessDenied", "") },
			rounds: []round{{gap: denied, calls: []string{get, put, get, object, put, object, undo, object}}, {gap: denied, calls: []string{get}}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, false)
			f.block = test.block
			if test.prepare != nil {
				test.prepare(f)
			}
			b := f.custom("eu-west-1")
			b.Created = test.created
			for i, round := range test.rounds {
				gap, err := b.ensurePrivate(t.Context())
				if (err != nil) != round.fails || gap != round.gap {
					t.Errorf("round %d: got %q, %v, want %q", i, gap, err, round.gap)
				}
				wantCalls(t, f, round.calls...)
			}
			if on := strings.Count(f.block, ">true<"); on != test.on {
				t.Errorf("the block is %s", f.block)
			}
		})
	}
	// Ceph RGW 16 over HTTPS, with the default of the SDK.
	t.Run("no checksums in trailers", func(t *testing.T) {
		f := newFakeS3(t, true)
		f.refuse(object, -1, 400, "XAmzContentSHA256Mismatch", "")
		b := f.custom("eu-west-1")
		for range 2 {
			gap, err := b.ensurePrivate(t.Context())
			if err != nil || !strings.HasSuffix(gap, "set requestChecksumCalculation: when_required in the credentials secret.") || f.block != none {
				t.Errorf("got %q, %v with %s", gap, err, f.block)
			}
		}
	})
	t.Run("the store is busy", func(t *testing.T) {
		f := newFakeS3(t, false)
		f.refuse(object, s3MaxAttempts, 503, "SlowDown", "")
		b := f.custom("eu-west-1")
		if _, err := b.ensurePrivate(t.Context()); !isTransient(b.fail(err)) || f.block != none {
			t.Errorf("got %v with %s", err, f.block)
		}
		if gap, err := b.ensurePrivate(t.Context()); gap != "" || err != nil || strings.Count(f.block, ">true<") != 4 {
			t.Errorf("got %q, %v with %s", gap, err, f.block)
		}
	})
}
