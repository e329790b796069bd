// Incomplete multipart uploads of live entries: nobody finishes them, and they cost money until they are aborted.
//
// Rules:
//   - The owner of the bucket aborts those that began more than seven days ago
//     (gardener/gardener-extension-provider-aws installs a lifecycle rule for the same).
//   - Only those under the prefix of a BackupEntry that a fresh read shows alive: all others stay.
//   - They are looked for once a day, with a sweep; the uploads of deleted entries go with a purge.

package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

const (
	staleUploadAge  = 7 * 24 * time.Hour
	uploadsInterval = 24 * time.Hour
	// uploadsFirst is how long after a start it is looked for.
	uploadsFirst = time.Hour
)

// uploadsDue says that the uploads of a bucket have to be looked at.
func (s *sweeper) uploadsDue(bucket string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, known := s.nextUploads[bucket]
	switch {
	case !known:
		s.nextUploads[bucket] = now.Add(uploadsFirst)
	case !next.After(now):
		s.nextUploads[bucket] = now.Add(uploadsInterval)
		return true
	}
	return false
}

// abortStaleUploads aborts what was begun long ago and never finished.
func (s *sweeper) abortStaleUploads(ctx context.Context, b *backupBucket, objects Objects) error {
	store, ok := objects.(uploader)
	if !ok || !s.uploadsDue(b.Name, time.Now()) {
		return nil
	}
	live := map[string]bool{}
	for _, obj := range s.entries.List() {
		if e, ok := obj.(*backupEntry); ok && e.BucketName == b.Name && e.DeletionTimestamp == nil {
			live[entryBase(e.Name)] = true
		}
	}
	aborted := 0
	for page, err := range store.uploads(ctx, "") {
		if err != nil {
			return err
		}
		for _, v := range page.versions {
			base, _, inside := strings.Cut(v.key, "/")
			if !inside || !live[base] || v.created.IsZero() || page.now.Sub(v.created) < staleUploadAge {
				continue
			}
			err := s.permitUpload(b, base).ask(ctx)
			if errors.As(err, new(*deletionEndedError)) {
				live[base] = false
				continue
			}
			if err != nil {
				return err
			}
			answers, err := objects.remove(ctx, []version{v})
			if err == nil {
				err = answers[0].err
			}
			if err != nil {
				return err
			}
			aborted++
		}
	}
	if aborted > 0 {
		klog.FromContext(ctx).Info("Aborted incomplete multipart uploads", "bucket", b.Name, "uploads", aborted)
		s.normal(b, "UploadsAborted", "Sweep", "Aborted %d multipart uploads in bucket %s that began more than 7 days ago and were never "+
			"finished", aborted, b.Name)
	}
	return nil
}
