package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAzureStorePurgeCounts(t *testing.T) {
	t.Parallel()
	hour := func(i int) time.Duration { return time.Duration(i) * time.Second }
	for name, c := range map[string]struct {
		recorded       Policy
		set            func(f *fakeAzure)
		age            func(i int) time.Duration
		deleted, kept  int64
		requests       int
		untilKnown     bool
		requestsAtMost bool
	}{
		"deletable":                 {age: hour, deleted: 5000, requests: 21},
		"retained for long":         {recorded: Policy{Days: azureMaxRetentionDays}, age: hour, kept: 5000, requests: 1, untilKnown: true},
		"deletable after retention": {recorded: Policy{Days: 1}, age: func(i int) time.Duration { return 25*time.Hour + hour(i) }, deleted: 5000, requests: 21},
		"retained":                  {recorded: Policy{Days: 1}, age: hour, kept: 5000, requests: 1, untilKnown: true},
		"retained, not known": {age: hour, set: func(f *fakeAzure) {
			f.refuse = func(fakeAzureBlob) (int, string) { return 409, "BlobImmutableDueToPolicy" }
		}, kept: 5000, requests: 5, requestsAtMost: true},
		"legal hold, not known": {age: hour, set: func(f *fakeAzure) {
			f.refuse = func(fakeAzureBlob) (int, string) { return 409, "BlobImmutableDueToLegalHold" }
		}, kept: 5000, requests: 5, requestsAtMost: true},
		"half retained, not known": {age: hour, set: func(f *fakeAzure) {
			f.refuse = func(b fakeAzureBlob) (int, string) {
				if b.created.After(f.now.Add(-2500 * time.Second)) {
					return 409, "BlobImmutableDueToPolicy"
				}
				return 0, ""
			}
		}, deleted: 2500, kept: 2500, requests: 14, requestsAtMost: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			f.addBlobs(5000, "shoot--a/", c.age)
			if c.set != nil {
				c.set(f)
			}
			result, err := testPurge(t.Context(), f.entry(c.recorded), "shoot--a/", nil)
			if err != nil {
				t.Fatal(err)
			}
			if result.Deleted != c.deleted || result.Retained != c.kept || result.DeletedBytes != 10*c.deleted || result.RetainedBytes != 10*c.kept {
				t.Errorf("%+v", result)
			}
			if int64(len(f.deleted)) != c.deleted {
				t.Errorf("%d were deleted", len(f.deleted))
			}
			if n := len(f.calls); n != c.requests && !(c.requestsAtMost && n <= c.requests) {
				t.Errorf("%d requests: %v", n, f.calls)
			}
			if c.untilKnown != !result.RetainedUntil.IsZero() {
				t.Errorf("until %v", result.RetainedUntil)
			}
			if c.untilKnown {
				if want := f.now.AddDate(0, 0, int(c.recorded.Days)); !result.RetainedUntil.Equal(want) {
					t.Errorf("until %v, want %v", result.RetainedUntil, want)
				}
			}
		})
	}
}

func TestAzureStorePurge(t *testing.T) {
	t.Parallel()
	minute := func(i int) time.Duration { return time.Duration(i+1) * time.Minute }
	t.Run("with the credentials of a bucket", func(t *testing.T) {
		f := newFakeAzure(t)
		f.days = 1
		f.addBlobs(3, "a/", minute)
		f.addBlobs(2, "b/", func(int) time.Duration { return 48 * time.Hour })
		b := f.open(f.ref())
		result, err := testPurge(t.Context(), b, "", nil)
		if err != nil || result.Deleted != 2 || result.Retained != 3 || !result.RetainedUntil.Equal(f.now.Add(24*time.Hour-time.Minute)) {
			t.Errorf("%+v %v", result, err)
		}
		f.expect("Container.GET Account.GET Account.listKeys List Batch")
		if _, err := testPurge(t.Context(), b, "", nil); err != nil {
			t.Error(err)
		}
		f.expect("List")
	})
	t.Run("legal hold", func(t *testing.T) {
		f := newFakeAzure(t)
		f.legalHold = true
		f.addBlobs(3, "a/", minute)
		result, err := testPurge(t.Context(), f.open(f.ref()), "", nil)
		if err != nil || result.Retained != 3 || !result.RetainedUntil.IsZero() {
			t.Errorf("%+v %v", result, err)
		}
		f.expect("Container.GET Account.listKeys List")
	})
	t.Run("blobs of their own", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(4, "a/", minute)
		f.blobs[1].held = true
		f.blobs[2].until = f.now.Add(time.Hour)
		f.blobs[3].until = f.now.Add(-time.Hour)
		result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		if err != nil || result.Deleted != 2 || result.Retained != 2 || !result.RetainedUntil.IsZero() {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("until dates", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(2, "a/", minute)
		f.blobs[0].until = f.now.Add(time.Hour)
		result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		if err != nil || result.Deleted != 1 || result.Retained != 1 || !result.RetainedUntil.Equal(f.now.Add(time.Hour)) {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("append blobs", func(t *testing.T) {
		f := newFakeAzure(t)
		f.days = 1
		old := f.now.Add(-48 * time.Hour)
		f.blobs = []fakeAzureBlob{{name: "a/block", created: old}, {name: "a/free", created: old, appended: f.now.Add(-25 * time.Hour)}, {name: "a/young", created: old, appended: f.now.Add(-time.Hour)}}
		result, err := testPurge(t.Context(), f.open(f.ref()), "a/", nil)
		if err != nil || result.Deleted != 2 || result.Retained != 1 || !result.RetainedUntil.Equal(f.now.Add(23*time.Hour)) || slices.Contains(f.deleted, "a/young") {
			t.Errorf("%+v %v, deleted %v", result, err, f.deleted)
		}
	})
	t.Run("append blobs tell nothing about others", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(2000, "a/", func(int) time.Duration { return 24 * time.Hour })
		f.blobs = append(f.blobs, fakeAzureBlob{name: "a/appended", created: f.now.Add(-48 * time.Hour), appended: f.now.Add(-time.Hour)})
		f.refuse = func(b fakeAzureBlob) (int, string) {
			if b.name == "a/appended" {
				return 409, "BlobImmutableDueToPolicy"
			}
			return 0, ""
		}
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result.Deleted != 2000 || result.Retained != 1 {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("version-level", func(t *testing.T) {
		f := newFakeAzure(t)
		f.days, f.versionLevel = 4, map[string]any{"enabled": true}
		f.addBlobs(2, "a/", minute)
		f.blobs[0].until = f.now.Add(time.Hour)
		if result, err := testPurge(t.Context(), f.open(f.ref()), "", nil); err != nil || result.Deleted != 1 || !result.RetainedUntil.Equal(f.now.Add(time.Hour)) {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("versions", func(t *testing.T) {
		f := newFakeAzure(t)
		f.blobs = []fakeAzureBlob{
			{name: "a/x", version: "1", previous: true, created: f.now.Add(-time.Hour)},
			{name: "a/x", version: "2", created: f.now.Add(-time.Minute)},
		}
		if _, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil {
			t.Fatal(err)
		}
		if len(f.blobs) != 0 {
			t.Errorf("left: %+v", f.blobs)
		}
		f.expect("List Batch List Batch List")
	})
	t.Run("somebody keeps writing", func(t *testing.T) {
		f := newFakeAzure(t)
		f.on["List"] = func(http.ResponseWriter, *http.Request, string) bool {
			f.blobs = []fakeAzureBlob{{name: "a/x", version: "1", previous: true, created: f.now}}
			return false
		}
		_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		checkAzureError(t, err, "", "still lists")
	})
	t.Run("errors of parts", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(600, "a/", minute)
		tries := map[string]int{}
		f.refuse = func(b fakeAzureBlob) (int, string) {
			tries[b.name]++
			switch {
			case b.name == "a/00001" && tries[b.name] < 4:
				return 503, "ServerBusy"
			case b.name == "a/00002" && tries[b.name] < 2:
				return 500, "OperationTimedOut"
			}
			return 0, ""
		}
		result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		if err != nil || result.Deleted != 600 {
			t.Errorf("%+v %v", result, err)
		}
		f.expect("List Batch Batch Batch Batch Batch Batch")
	})
	t.Run("always busy", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(3, "a/", minute)
		f.refuse = func(b fakeAzureBlob) (int, string) { return 503, "ServerBusy" }
		_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		checkAzureError(t, err, codeRetryableDependencies, "Blobs.Batch", "ServerBusy", "a/0000")
		f.expect("List Batch Batch Batch Batch")
	})
	t.Run("refused part", func(t *testing.T) {
		for range 5 {
			f := newFakeAzure(t)
			f.addBlobs(600, "a/", func(i int) time.Duration { return time.Duration(600-i) * time.Minute })
			f.refuse = func(b fakeAzureBlob) (int, string) {
				if b.name == "a/00010" || b.name == "a/00300" {
					return 412, "SnapshotsPresent"
				}
				return 0, ""
			}
			_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
			checkAzureError(t, err, codeRetryableDependencies, "SnapshotsPresent", `(blob "a/00010")`)
		}
	})
	t.Run("gone meanwhile", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(3, "a/", minute)
		f.refuse = func(b fakeAzureBlob) (int, string) { return 404, "BlobNotFound" }
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result.Deleted != 3 {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("other prefix", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(3, "a--10/", minute)
		_, err := testPurge(t.Context(), f.entry(Policy{}), "a--1/", nil)
		checkAzureError(t, err, "", "nothing of that page was deleted")
		f.expect("List")
	})
	t.Run("names", func(t *testing.T) {
		f := newFakeAzure(t)
		for _, name := range []string{"a/x y", "a/ü", "a/../b", "a/50%", "a/q?x=1#f", "a/v2/deep"} {
			f.blobs = append(f.blobs, fakeAzureBlob{name: name, created: f.now.Add(-time.Hour)})
		}
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result.Deleted != 6 || len(f.blobs) != 0 {
			t.Errorf("%+v %v, left %v", result, err, f.blobs)
		}
	})
	t.Run("pages", func(t *testing.T) {
		f := newFakeAzure(t)
		f.pageSize = 100
		f.addBlobs(250, "a/", minute)
		f.on["Batch"] = func(http.ResponseWriter, *http.Request, string) bool { return false }
		// Deleting moves the fake's pages, which Azure's do not.
		f.refuse = func(b fakeAzureBlob) (int, string) { return 404, "BlobNotFound" }
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result.Deleted != 250 {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("no container", func(t *testing.T) {
		f := newFakeAzure(t)
		f.container = false
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result != (PurgeResult{}) {
			t.Errorf("%+v %v", result, err)
		}
		if result, err := testPurge(t.Context(), f.open(f.ref()), "", nil); err != nil || result != (PurgeResult{}) {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("no account", func(t *testing.T) {
		f := newFakeAzure(t)
		objects, err := f.clients.openObjects(bucketRef{Name: fakeAzureBucket}, map[string][]byte{
			"storageAccount": []byte("account"), "storageKey": []byte(fakeAzureKey), "domain": []byte("blob.invalid")})
		if err != nil {
			t.Fatal(err)
		}
		_, err = testPurge(t.Context(), objects, "a/", nil)
		if code := codeOf(err); code != codeRetryableConfiguration && code != codeRetryableDependencies {
			t.Errorf("%q %v", code, err)
		}
	})
}

// A connection that breaks within an answer is the network's, and reads are repeated.
func TestAzureConnectionBreaksWithinAnAnswer(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for operation, call := range map[string]func(context.Context, *fakeAzure) error{
			"List": func(ctx context.Context, f *fakeAzure) error {
				_, err := testPurge(ctx, f.entry(Policy{}), "a/", nil)
				return err
			},
			"Batch": func(ctx context.Context, f *fakeAzure) error {
				_, err := testPurge(ctx, f.entry(Policy{}), "a/", nil)
				return err
			},
			"Container.GET": func(ctx context.Context, f *fakeAzure) error { _, err := f.open(f.ref()).Observe(ctx); return err },
		} {
			t.Run(fmt.Sprintf("%s reset=%t", operation, reset), func(t *testing.T) {
				f := newFakeAzure(t)
				f.addBlobs(3, "a/", func(int) time.Duration { return time.Hour })
				broken := 0
				f.on[operation] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
					if broken == 0 {
						return false
					}
					broken--
					breakAnswer(w, `<EnumerationResults><Blobs></Blobs></EnumerationResults>`, reset)
					return true
				}
				broken = 2
				if err := call(t.Context(), f); err != nil {
					t.Errorf("though it was repeated: %v", err)
				}
				f.addBlobs(3, "a/", func(int) time.Duration { return time.Hour })
				broken = 100
				err := call(t.Context(), f)
				if codeOf(err) != codeRetryableDependencies || !isTransient(err) {
					t.Errorf("%v has code %q", err, codeOf(err))
				}
			})
		}
	}
}

// A container's legal hold is learned from one answer.
func TestAzurePurgeLearnsOfALegalHold(t *testing.T) {
	f := newFakeAzure(t)
	f.pageSize = 256
	f.addBlobs(2560, "a/", func(int) time.Duration { return time.Hour })
	f.refuse = func(fakeAzureBlob) (int, string) { return 409, "BlobImmutableDueToLegalHold" }
	result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
	if err != nil || result.Retained != 2560 || result.Deleted != 0 || !result.RetainedUntil.IsZero() {
		t.Errorf("%+v, %v", result, err)
	}
	if batches := strings.Count(f.take(), "Batch"); batches < 1 || batches > purgeInFlight {
		t.Errorf("%d batches", batches)
	}
}

// A lease, which anybody with the account's key can take and which need not end, holds up a deletion no longer than a pass.
func TestAzureLeasedBlobs(t *testing.T) {
	start := func(leased ...int) (*fakeAzure, *int) {
		f := newFakeAzure(t)
		f.addBlobs(5, "a/", func(int) time.Duration { return time.Hour })
		for _, i := range leased {
			f.blobs[i].leased = true
		}
		return f, new(int)
	}
	ask := func(n *int) func(context.Context) error { return func(context.Context) error { *n++; return nil } }
	t.Run("are deleted", func(t *testing.T) {
		f, asked := start(1, 3)
		result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", ask(asked))
		if err != nil || result.Deleted != 5 || result.Retained != 0 {
			t.Errorf("%+v %v", result, err)
		}
		f.expect("List Batch Break Break Batch")
		if *asked != 3 {
			t.Errorf("the permit was asked %d times", *asked)
		}
	})
	t.Run("with the credentials of a bucket", func(t *testing.T) {
		f, asked := start(1)
		result, err := testPurge(t.Context(), f.open(f.ref()), "", ask(asked))
		if err != nil || result.Deleted != 5 {
			t.Errorf("%+v %v", result, err)
		}
		f.expect("Container.GET Account.listKeys List Batch Break Batch")
	})
	for name, c := range map[string]struct {
		set  func(f *fakeAzure)
		left string
	}{
		"and again at once":                    {set: func(f *fakeAzure) { f.relet = true }},
		"the lease cannot be broken":           {set: func(f *fakeAzure) { f.on["Break"] = answerAzure(403, "AuthorizationFailure") }},
		"the lease is being broken by another": {set: func(f *fakeAzure) { f.on["Break"] = answerAzure(409, "LeaseAlreadyBroken") }},
	} {
		t.Run(name, func(t *testing.T) {
			f, asked := start(0, 2)
			c.set(f)
			result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", ask(asked))
			// What is leased teaches nothing about the others.
			if err != nil || result.Deleted != 3 || result.Retained != 2 || !result.RetainedUntil.IsZero() {
				t.Errorf("%+v %v", result, err)
			}
			if breaks := strings.Count(f.take(), "Break"); breaks < 1 || breaks > 2 {
				t.Errorf("%d leases were broken", breaks)
			}
		})
	}
	t.Run("no leave", func(t *testing.T) {
		f, asked := start(0)
		refused := errors.New("no")
		_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", func(context.Context) error {
			if *asked++; *asked > 1 {
				return refused
			}
			return nil
		})
		if !errors.Is(err, refused) {
			t.Error(err)
		}
		f.expect("List Batch")
	})
	t.Run("many", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(maxUnleased+300, "a/", func(int) time.Duration { return time.Hour })
		for i := range f.blobs {
			f.blobs[i].leased = true
		}
		result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		if err != nil || result.Deleted != maxUnleased || result.Retained != 300 {
			t.Errorf("%+v %v", result, err)
		}
		if breaks := strings.Count(f.take(), "Break"); breaks != maxUnleased {
			t.Errorf("%d leases were broken", breaks)
		}
	})
}
