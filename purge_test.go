package main

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A purge asks before each batch, and once it gets no, it deletes nothing more; the error is
// the caller's own.
func TestPurgeAsksBeforeEachBatch(t *testing.T) {
	no := &prefixInUseError{entry: "x"}
	for title, start := range map[string]func(t *testing.T) (objects versions, left func() int){
		"S3": func(t *testing.T) (versions, func() int) {
			f := newFakeS3(t, false)
			f.objects = fakeS3Objects("a/", 3000)
			return f.custom("eu-west-1"), func() int { return len(f.keys()) }
		},
		"Azure": func(t *testing.T) (versions, func() int) {
			f := newFakeAzure(t)
			f.addBlobs(600, "a/", func(int) time.Duration { return 0 })
			return f.entry(Policy{}), func() int { return 600 - len(f.deleted) }
		},
	} {
		t.Run(title, func(t *testing.T) {
			objects, left := start(t)
			all := left()
			result, err := testPurge(t.Context(), objects, "a/", func(context.Context) error { return no })
			var store *storeError
			if !errors.Is(err, no) || errors.As(err, &store) || result.Deleted != 0 || left() != all {
				t.Errorf("%+v, %v, %d of %d are left", result, err, left(), all)
			}
			asked := make(chan struct{}, 1000)
			result, err = testPurge(t.Context(), objects, "a/", func(context.Context) error { asked <- struct{}{}; return nil })
			if err != nil || result.Deleted != int64(all) || left() != 0 || len(asked) != 3 {
				t.Errorf("%+v, %v, %d are left, asked %d times", result, err, left(), len(asked))
			}
		})
	}
}

// testPurge purges a prefix as a BackupEntry's or a BackupBucket's deletion would.
func testPurge(ctx context.Context, store versions, prefix string, before func(context.Context) error) (PurgeResult, error) {
	order := purgeOrder{bucket: "b", prefix: prefix, before: before, uploads: true}
	switch store := store.(type) {
	case *s3Bucket:
		order.bucket, order.policy = store.Name, store.Recorded
	case *azureEntry:
		order.bucket, order.policy = store.Name, store.Recorded
	case *azureBucket:
		order.bucket, order.policy = store.Name, store.Recorded
	}
	result, err := (&purges{}).run(ctx, store, order)
	result.Seen = 0
	return result, err
}
