package main

import (
	"slices"
	"testing"
	"time"
)

// What a live entry has begun to upload long ago goes; nothing else does.
func TestStaleUploads(t *testing.T) {
	f := newFakeS3(t, false)
	f.uploads = []string{testEntry + "/old", "nobody/old", "stray", testEntry + "0/older"}
	f.initiated = time.Now().Add(-staleUploadAge - time.Hour)
	h := newHarness(t)
	h.putEntry(testEntry, true)
	h.putBucket(true)
	h.sync()
	b := decodeBucket(h.get(bucketsGVR, "b"))
	objects := f.custom("eu-west-1")
	objects.Name = "b"
	look := func(want ...string) {
		t.Helper()
		if err := h.sweeper.abortStaleUploads(t.Context(), b, objects); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(f.uploads, want) {
			t.Errorf("left are %q, want %q", f.uploads, want)
		}
	}
	all := slices.Clone(f.uploads)
	look(all...) // an hour after the start at the earliest
	due := func() { h.sweeper.nextUploads["b"] = time.Now() }
	due()
	young := f.initiated
	f.initiated = time.Now().Add(-staleUploadAge + time.Hour)
	look(all...)
	f.initiated = young
	look(all...) // once a day
	due()
	look("nobody/old", "stray", testEntry+"0/older")
	h.wantEvents("UploadsAborted")
	// The cache still knows an entry that is being deleted.
	f.uploads = []string{testEntry + "/old"}
	h.edit(entriesGVR, testEntry, deleting)
	due()
	look(testEntry + "/old")
}
