// Sweeps: the objects of deleted entries go once their retention ends, and their tombstones after them.
//
// Rules:
//   - Only the owner of a bucket sweeps it, and only what a tombstone stands against.
//   - A prefix of a live entry is never swept: its tombstone is revoked, by a live look.
//   - What was found is remembered between sweeps, so that nothing is asked in vain.
//   - One entry's trouble ends no other's sweep; what the store or the API server refuses to all is not tried on.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// sweeper purges the prefixes whose tombstones are due in the buckets of our BackupBuckets.
// The verification of a bucket asks for a sweep once in sweepInterval; between two, a sweep
// comes back by itself for the next tombstone that becomes due.
type sweeper struct {
	*bucketReconciler

	mu sync.Mutex
	// plans remembers what past sweeps of a bucket have found, by the key of an entry's
	// newest mark, so that nothing is tried in vain.
	plans map[string]map[string]sweepPlan
	// nextUploads is when the uploads in a bucket are looked at next.
	nextUploads map[string]time.Time
}

func newSweeper(buckets *bucketReconciler) *sweeper {
	return &sweeper{bucketReconciler: buckets, plans: map[string]map[string]sweepPlan{}, nextUploads: map[string]time.Time{}}
}

// maxPlans bounds what is remembered of a bucket; what is beyond is looked at in each sweep.
const maxPlans = 100000

// sweepPlan is what is known of the marks of an entry.
type sweepPlan struct {
	// next is when it is worth to try again, by the store's clock.
	next time.Time
	// swept says that its prefix was found empty, only the mark itself is still retained.
	swept bool
	// objects and bytes are what was left at the last try.
	objects, bytes int64
	// failed says that the last try did: the next pass tries the others first.
	failed bool
}

// reconcile makes one sweep of a bucket: one list request if nothing is due.
func (s *sweeper) reconcile(ctx context.Context, key cache.ObjectName, _ bool) (time.Duration, error) {
	obj, exists, err := s.cached.GetByKey(key.String())
	b, ok := obj.(*backupBucket)
	if err != nil || !exists || !ok || !s.scope.responsible(&b.object) {
		s.setPlans(key.Name, nil)
		s.sweeps.gone(key)
		return 0, err
	}
	// The secret of a spec that was not reconciled may be another one; the next
	// verification asks again.
	if b.operation() == operationWaitForState || !b.hasFinalizer(finalizerBackupBucket) || !b.specObserved() {
		return 0, nil
	}
	objects, err := s.openContents(ctx, b, classPurge)
	if err != nil || objects == nil {
		return 0, err
	}
	wait, err := s.pass(ctx, b, objects)
	s.keys.noteRejection(b.Name, err, time.Now())
	if err == nil {
		// A verification that comes a little early does not miss the next one.
		s.sweeps.waitUntil(key, time.Now().Add(s.sweepInterval()*9/10))
	}
	return wait, errors.Join(err, wrapf(s.abortStaleUploads(ctx, b, objects), "aborting incomplete uploads in bucket %s", b.Name))
}

// pass sweeps a bucket while it reads the marks in it.
func (s *sweeper) pass(ctx context.Context, b *backupBucket, objects Objects) (time.Duration, error) {
	known, current := s.knownPlans(b.Name), map[string]sweepPlan{}
	var reader markReader
	var failed []marks // before
	var failure error
	down := false
	one := func(of marks) {
		p := s.planned(b, of, known)
		gone := false
		if inUse := s.livingOn(b, of); inUse || !p.next.After(reader.now) && !down {
			var err error
			p.failed = false
			if inUse {
				err = s.revokeLive(ctx, b, objects, of)
			} else {
				p, gone, err = s.sweep(ctx, b, objects, of, p, reader.now)
			}
			if err != nil {
				s.metrics.purgeFailures.WithLabelValues(b.Name).Inc()
				failure = cmp.Or(failure, fmt.Errorf("sweeping bucket %s after BackupEntry %s: %w", b.Name, of.entry, err))
				// What the store or the API server refuses now, it refuses for all others.
				down = isTransient(err)
				p.failed = true
			}
		}
		if !gone && len(current) < maxPlans {
			current[of.newest.key] = p
		}
	}
	err := reader.each(ctx, objects, tombstonePrefix, func(of marks) error {
		if known[of.newest.key].failed && len(failed) < maxMarks {
			of.tombstones, of.revocations = slices.Clip(of.tombstones), slices.Clip(of.revocations)
			failed = append(failed, of)
			return nil
		}
		one(of)
		return nil
	})
	if err != nil {
		return 0, cmp.Or(failure, err)
	}
	for _, of := range failed {
		one(of)
	}
	s.setPlans(b.Name, current)
	s.metrics.facts.confirm(b.Name, factSweep, 0, time.Now())
	s.metrics.bucketStrangers.WithLabelValues(b.Name).Set(float64(reader.strangers))
	next := s.report(b, current, reader.now)
	if failure != nil || next.IsZero() || next.Sub(reader.now) > s.sweepInterval() {
		return 0, failure
	}
	return next.Sub(reader.now) + markTick, nil
}

// planned is what is known of the marks of an entry, from an earlier sweep or their names.
func (s *sweeper) planned(b *backupBucket, of marks, known map[string]sweepPlan) sweepPlan {
	if p, seen := known[of.newest.key]; seen {
		return p
	}
	if of.newest.revoked {
		next := s.free(b, of)
		if kept := of.newest.created.Add(revocationKept); kept.After(next) {
			next = kept
		}
		return sweepPlan{swept: true, next: next}
	}
	return sweepPlan{next: of.newest.due, objects: of.newest.objects, bytes: of.newest.bytes}
}

func (s *sweeper) knownPlans(bucket string) map[string]sweepPlan {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plans[bucket]
}

func (s *sweeper) setPlans(bucket string, plans map[string]sweepPlan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(plans) == 0 {
		delete(s.plans, bucket)
		return
	}
	s.plans[bucket] = plans
}

// free is when the last of the marks can be deleted: they are retained as long as
// everything that is written to the bucket.
func (s *sweeper) free(b *backupBucket, of marks) time.Time {
	return readRecord(b.ProviderStatus).Policy.until(of.newest.created)
}

// sweep purges the prefix of an entry if its newest mark is a tombstone, and deletes its marks
// once they say nothing any more. gone says that no mark is left.
func (s *sweeper) sweep(ctx context.Context, b *backupBucket, objects Objects, of marks, p sweepPlan, now time.Time) (_ sweepPlan,
	gone bool, err error) {
	policy := readRecord(b.ProviderStatus).Policy
	again := func(at time.Time) sweepPlan {
		if latest := latestTry(policy, now); at.After(latest) {
			at = latest
		}
		// Not more often than hourly, whatever the store says.
		p.next = at.Add(markTick)
		if earliest := now.Add(sweepRetry); p.next.Before(earliest) {
			p.next = earliest
		}
		return p
	}
	if of.buried() && !p.swept {
		result, err := s.purges.run(ctx, objects, purgeOrder{
			bucket: b.Name, name: of.newest.key, prefix: of.entry + "/", policy: policy, uploads: true,
			permit: s.permitSweep(b, objects, of.newest)})
		s.swept(ctx, b, of.entry, result)
		var inUse *prefixInUseError
		var changed *markChangedError
		switch {
		case errors.As(err, &inUse):
			return p, false, s.revokeFor(ctx, b, objects, of, inUse)
		case errors.As(err, &changed):
			klog.FromContext(ctx).V(2).Info("Not swept", "reason", err.Error())
			return p, false, nil
		}
		if err != nil {
			return p, false, err
		}
		if p.objects, p.bytes = result.Retained, result.RetainedBytes; result.Unfinished {
			p.next = now.Add(markTick)
			return p, false, nil
		}
		if result.Retained > 0 {
			return again(result.RetainedUntil), false, nil
		}
		p.swept = true
		if free := s.free(b, of); free.After(now) {
			p.next = free.Add(markTick)
			return p, false, nil
		}
	}
	// Revocations go last: without one, an older tombstone would count again.
	keys := of.tombstones
	if !of.more {
		keys = append(keys, of.revocations...)
	}
	for _, key := range keys {
		// A mark is known by its whole name: a newer one may have come meanwhile.
		result, err := s.purges.run(ctx, objects, purgeOrder{bucket: b.Name, name: key, prefix: key, permit: permitMark(key)})
		if err != nil {
			return p, false, err
		}
		if result.Retained > 0 {
			return again(result.RetainedUntil), false, nil
		}
	}
	if of.more {
		p.next = now.Add(markTick)
		return p, false, nil
	}
	return p, true, nil
}

// livingOn says that the cache knows a live entry whose prefix a tombstone stands against.
func (s *sweeper) livingOn(b *backupBucket, of marks) bool {
	if !of.buried() {
		return false
	}
	for _, name := range []string{of.entry, sourcePrefix + of.entry} {
		obj, exists, err := s.entries.GetByKey(name)
		if e, ok := obj.(*backupEntry); err == nil && exists && ok && e.BucketName == b.Name && e.DeletionTimestamp == nil {
			return true
		}
	}
	return false
}

// revokeLive revokes a tombstone against a live entry, after a live look.
func (s *sweeper) revokeLive(ctx context.Context, b *backupBucket, objects Objects, of marks) error {
	err := s.entriesClient.checkUnused(ctx, b.Name, of.entry, "")
	var inUse *prefixInUseError
	if errors.As(err, &inUse) {
		return s.revokeFor(ctx, b, objects, of, inUse)
	}
	return err
}

// revokeFor revokes a tombstone for the live entry that owns its prefix: when that migrates,
// the owner of the bucket would purge it.
func (s *sweeper) revokeFor(ctx context.Context, b *backupBucket, objects Objects, of marks, inUse *prefixInUseError) error {
	revoked, err := revoke(ctx, objects, of.entry, inUse.uid)
	if revoked {
		klog.FromContext(ctx).Info("Revoked the tombstone of a live BackupEntry", "bucket", b.Name, "entry", inUse.entry)
		s.normal(b, "TombstoneRevoked", "Sweep", "The objects under %s/ in bucket %s belong to the live BackupEntry %s; what was "+
			"retained of an earlier deletion is not deleted any more", of.entry, b.Name, inUse.entry)
	}
	return wrapf(err, "revoking the tombstone of %s, which is in use by BackupEntry %s", of.entry, inUse.entry)
}

// swept tells what a sweep has deleted.
func (s *sweeper) swept(ctx context.Context, b *backupBucket, entry string, result PurgeResult) {
	if result.Deleted == 0 {
		return
	}
	s.metrics.purgedObjects.WithLabelValues(b.Name).Add(float64(result.Deleted))
	s.metrics.purgedBytes.WithLabelValues(b.Name).Add(float64(result.DeletedBytes))
	klog.FromContext(ctx).Info("Deleted objects whose retention has ended", "entry", entry, "objects", result.Deleted, "bytes",
		result.DeletedBytes, "retained", result.Retained)
	s.normal(b, "ObjectsDeleted", "Sweep", "Deleted %d object versions (%s) of the deleted BackupEntry %s, whose retention has ended",
		result.Deleted, formatBytes(result.DeletedBytes), entry)
}

// report sets the metrics of a bucket's tombstones and returns when something becomes due
// next; zero if nothing does. What is due already waits for the next verification.
func (s *sweeper) report(b *backupBucket, plans map[string]sweepPlan, now time.Time) time.Time {
	pending, objects, bytes := 0, int64(0), int64(0)
	var next, nextSweep time.Time
	for _, p := range plans {
		if p.next.After(now) && (next.IsZero() || p.next.Before(next)) {
			next = p.next
		}
		if p.swept {
			continue
		}
		pending, objects, bytes = pending+1, objects+p.objects, bytes+p.bytes
		if nextSweep.IsZero() || p.next.Before(nextSweep) {
			nextSweep = p.next
		}
	}
	s.metrics.setTombstones(b.Name, pending, objects, bytes, nextSweep)
	return next
}
