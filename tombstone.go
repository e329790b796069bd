package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// What an entry's deletion leaves behind because it is retained is remembered in the bucket
// itself: it survives the loss of the seed, and the owner of the bucket may be another seed.
// Marks are never overwritten and never deleted before their time, since the bucket retains
// them like everything else. The store's own creation time orders those of one entry:
//
//	.bucketwarden/tombstones/<entry>/deleted-<due>-<objects>-<bytes>-<random>
//	.bucketwarden/tombstones/<entry>/revoked-<random>
//
// The newest decides: a tombstone says that the prefix <entry>/ is to be purged once it is
// due, a revocation that the prefix is in use again.
const (
	tombstonePrefix = ".bucketwarden/tombstones/"
	markDeleted     = "deleted"
	markRevoked     = "revoked"
	markTime        = "20060102T150405Z"
	markNonce       = 8

	// sweepRetry is how soon the sweep of a prefix that is still retained is tried again:
	// individual retention and legal holds are not announced.
	sweepRetry = time.Hour

	// concurrentSweeps keeps a sweep of many prefixes from starving anything else.
	concurrentSweeps = 2

	// markTick is the resolution of a store's creation times.
	markTick = time.Second
)

// mark is a tombstone or the revocation of one.
type mark struct {
	key     string
	entry   string // without source-
	revoked bool
	created time.Time // by the store's clock
	// Of a tombstone: when the retention of what was left ends, and how much that was.
	due            time.Time
	objects, bytes int64
}

func tombstoneKey(entry string, due time.Time, result PurgeResult) string {
	return fmt.Sprintf("%s%s/%s-%s-%d-%d-%s", tombstonePrefix, entry, markDeleted, due.UTC().Format(markTime), result.Retained, result.RetainedBytes, rand.Text()[:markNonce])
}

func revocationKey(entry string) string {
	return tombstonePrefix + entry + "/" + markRevoked + "-" + rand.Text()[:markNonce]
}

// parseMark reads a mark from its name; false for whatever else lies there.
func parseMark(o objectInfo) (mark, bool) {
	rest, ok := strings.CutPrefix(o.Key, tombstonePrefix)
	entry, name, slash := strings.Cut(rest, "/")
	// What is no name of a BackupEntry may be another part of the bucket, such as
	// .bucketwarden itself.
	if !ok || !slash || len(validation.IsDNS1123Subdomain(entry)) > 0 {
		return mark{}, false
	}
	m := mark{key: o.Key, entry: entry, created: o.Created}
	parts := strings.Split(name, "-")
	switch {
	case len(parts[len(parts)-1]) != markNonce:
		// Marks are deleted by their whole name, which must not be the prefix of others.
		return mark{}, false
	case parts[0] == markRevoked && len(parts) == 2:
		m.revoked = true
		return m, true
	case parts[0] != markDeleted || len(parts) != 5:
		return mark{}, false
	}
	var errs [3]error
	m.due, errs[0] = time.Parse(markTime, parts[1])
	m.objects, errs[1] = strconv.ParseInt(parts[2], 10, 64)
	m.bytes, errs[2] = strconv.ParseInt(parts[3], 10, 64)
	return m, errors.Join(errs[:]...) == nil
}

// compare orders marks of one entry. Of two of the same time the revocation counts: what is
// alive must not be purged.
func (m mark) compare(n mark) int {
	revoked := func(m mark) int {
		if m.revoked {
			return 1
		}
		return 0
	}
	return cmp.Or(m.created.Compare(n.created), cmp.Compare(revoked(m), revoked(n)), cmp.Compare(m.key, n.key))
}

// readMarks lists the marks of all entries, or of one, the newest last.
func readMarks(ctx context.Context, objects Objects, entry string) (map[string][]mark, time.Time, error) {
	prefix := tombstonePrefix
	if entry != "" {
		prefix += entry + "/"
	}
	listed, now, err := objects.List(ctx, prefix)
	if err != nil {
		return nil, time.Time{}, err
	}
	marks := map[string][]mark{}
	for _, o := range listed {
		if m, ok := parseMark(o); ok {
			marks[m.entry] = append(marks[m.entry], m)
		}
	}
	for _, of := range marks {
		slices.SortFunc(of, mark.compare)
	}
	return marks, now, nil
}

// putMark writes a mark and sees to it that it is the newest of its entry. There are
// others if existing.
func putMark(ctx context.Context, objects Objects, entry string, revoked bool, existing []mark, key func() string) error {
	for {
		if err := objects.Put(ctx, key()); err != nil || len(existing) == 0 {
			return err
		}
		marks, _, err := readMarks(ctx, objects, entry)
		if err != nil {
			return err
		}
		if of := marks[entry]; len(of) > 0 && (of[len(of)-1].revoked == revoked || !revoked && of[len(of)-1].key != existing[len(existing)-1].key) {
			return nil
		}
		// Written within one tick of the store's clock.
		select {
		case <-time.After(markTick):
		case <-ctx.Done():
			return fmt.Errorf("writing a mark of %s: %w", entry, ctx.Err())
		}
	}
}

// latestTry is when a prefix is tried again at the latest: a single object with a longer
// retention of its own must not keep all others.
func latestTry(longest Policy, now time.Time) time.Time {
	if longest.None() {
		longest.Days = 30
	}
	return longest.until(now)
}

// bury writes the tombstone of an entry whose purge has left something retained, unless
// there is one already: 2 requests, 3 if the entry was buried before.
func bury(ctx context.Context, objects Objects, entry string, longest Policy, result PurgeResult) error {
	marks, now, err := readMarks(ctx, objects, entry)
	if err != nil {
		return err
	}
	due, enough := result.RetainedUntil, result.RetainedUntil
	if latest := latestTry(longest, now); due.After(latest) {
		due, enough = latest, latest.Add(-sweepRetry)
	}
	if due.IsZero() {
		// Any tombstone that was not swept yet does.
		due, enough = now.Add(sweepRetry), now.Add(markTick)
	}
	of := marks[entry]
	if len(of) > 0 {
		if newest := of[len(of)-1]; newest.revoked && !result.Now.IsZero() && newest.created.After(result.Now) {
			// Another cluster took the prefix into use while it was purged.
			return &prefixInUseError{entry: entry}
		}
		if newest := of[len(of)-1]; !newest.revoked && !newest.due.Before(enough) {
			return nil
		}
	}
	// Names have seconds: rounded down, the sweep would come too early.
	due = due.Add(time.Second - 1).Truncate(time.Second)
	return putMark(ctx, objects, entry, false, of, func() string { return tombstoneKey(entry, due, result) })
}

// revoke says that the prefix of an entry is in use: one request, 3 if there is a tombstone.
func revoke(ctx context.Context, objects Objects, entry string) (revoked bool, err error) {
	marks, _, err := readMarks(ctx, objects, entry)
	if err != nil {
		return false, err
	}
	of := marks[entry]
	if len(of) == 0 || of[len(of)-1].revoked {
		return false, nil
	}
	return true, putMark(ctx, objects, entry, true, of, func() string { return revocationKey(entry) })
}

// checkStands makes sure that a tombstone is still the newest mark of its entry.
func checkStands(ctx context.Context, objects Objects, tombstone mark) error {
	marks, _, err := readMarks(ctx, objects, tombstone.entry)
	if err != nil {
		return err
	}
	if of := marks[tombstone.entry]; len(of) == 0 || of[len(of)-1].key != tombstone.key {
		return &prefixInUseError{entry: tombstone.entry}
	}
	return nil
}

// sweeper purges the prefixes whose tombstones are due in the buckets of our BackupBuckets.
// Each verification of a bucket asks for a sweep; between two, a sweep comes back by itself
// for the next tombstone that becomes due.
type sweeper struct {
	*bucketReconciler

	mu sync.Mutex
	// plans remembers what past sweeps of a bucket have found, by the key of an entry's
	// newest mark, so that nothing is tried in vain.
	plans map[string]map[string]sweepPlan
}

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
	// verification asks again. The API server counts a deletion as a generation
	// (kubernetes/kubernetes staging/src/k8s.io/apiserver/pkg/registry/rest/delete.go).
	observed := b.ObservedGeneration
	if b.DeletionTimestamp != nil {
		observed++
	}
	if b.operation() == operationWaitForState || !b.hasFinalizer(finalizerBackupBucket) || b.Generation > observed {
		return 0, nil
	}
	objects, err := s.openContents(ctx, b)
	if err != nil || objects == nil {
		return 0, err
	}
	marks, now, err := readMarks(ctx, objects, "")
	if err != nil {
		return 0, err
	}
	known := s.knownPlans(b.Name)
	current := map[string]sweepPlan{}
	var failure error
	down := false
	failed := func(entry string) bool { of := marks[entry]; return known[of[len(of)-1].key].failed }
	entries := slices.Sorted(maps.Keys(marks))
	slices.SortStableFunc(entries, func(a, b string) int {
		switch fa, fb := failed(a), failed(b); {
		case fa == fb:
			return 0
		case fa:
			return 1
		}
		return -1
	})
	for _, entry := range entries {
		of := marks[entry]
		newest := of[len(of)-1]
		p, seen := known[newest.key]
		if !seen {
			p = sweepPlan{next: newest.due, objects: newest.objects, bytes: newest.bytes}
			if newest.revoked {
				p = sweepPlan{swept: true, next: s.free(b, of)}
			}
		}
		if !p.next.After(now) && !down {
			var gone bool
			p.failed = false
			if p, gone, err = s.sweep(ctx, b, objects, of, p, now); err != nil {
				s.metrics.purgeFailures.WithLabelValues(b.Name).Inc()
				failure = cmp.Or(failure, fmt.Errorf("sweeping bucket %s after BackupEntry %s: %w", b.Name, entry, err))
				// What the store or the API server refuses now, it refuses for all others.
				down = isTransient(err)
				p.failed = true
			}
			if gone {
				continue
			}
		}
		current[newest.key] = p
	}
	s.setPlans(b.Name, current)
	next := s.report(b, current, now)
	if failure != nil || next.IsZero() || next.Sub(now) > s.verifyInterval {
		return 0, failure
	}
	return next.Sub(now) + markTick, nil
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
func (s *sweeper) free(b *backupBucket, marks []mark) time.Time {
	return readRecord(b.ProviderStatus).Policy.until(marks[len(marks)-1].created)
}

// sweep purges the prefix of the newest mark if that is a tombstone, and deletes the marks
// of an entry once they say nothing any more. gone says that no mark is left.
func (s *sweeper) sweep(ctx context.Context, b *backupBucket, objects Objects, marks []mark, p sweepPlan, now time.Time) (_ sweepPlan, gone bool, err error) {
	newest := marks[len(marks)-1]
	again := func(at time.Time) sweepPlan {
		if latest := latestTry(readRecord(b.ProviderStatus).Policy, now); at.After(latest) {
			at = latest
		}
		// Not more often than hourly, whatever the store says.
		p.next = at.Add(markTick)
		if earliest := now.Add(sweepRetry); p.next.Before(earliest) {
			p.next = earliest
		}
		return p
	}
	if !newest.revoked && !p.swept {
		result, err := objects.Purge(ctx, newest.entry+"/", func(ctx context.Context) error {
			if err := s.entriesClient.checkUnused(ctx, b.Name, newest.entry, ""); err != nil {
				return err
			}
			// Another cluster may have taken the prefix into use meanwhile.
			return checkStands(ctx, objects, newest)
		})
		s.swept(ctx, b, newest.entry, result)
		var inUse *prefixInUseError
		if errors.As(err, &inUse) {
			// Its reconcile revokes the tombstone.
			klog.FromContext(ctx).V(2).Info("Not swept, the prefix is in use", "entry", inUse.entry)
			return p, false, nil
		}
		if err != nil {
			return p, false, err
		}
		p.objects, p.bytes = result.Retained, result.RetainedBytes
		if result.Retained > 0 {
			return again(result.RetainedUntil), false, nil
		}
		p.swept = true
		if free := s.free(b, marks); free.After(now) {
			p.next = free.Add(markTick)
			return p, false, nil
		}
	}
	// Revocations go last: without one, an older tombstone would count again.
	for _, revoked := range []bool{false, true} {
		for _, m := range marks {
			if m.revoked != revoked {
				continue
			}
			result, err := objects.Purge(ctx, m.key, nil)
			if err != nil {
				return p, false, err
			}
			if result.Retained > 0 {
				return again(result.RetainedUntil), false, nil
			}
		}
	}
	return p, true, nil
}

// swept tells what a sweep has deleted.
func (s *sweeper) swept(ctx context.Context, b *backupBucket, entry string, result PurgeResult) {
	if result.Deleted == 0 {
		return
	}
	s.metrics.purgedObjects.WithLabelValues(b.Name).Add(float64(result.Deleted))
	s.metrics.purgedBytes.WithLabelValues(b.Name).Add(float64(result.DeletedBytes))
	klog.FromContext(ctx).Info("Deleted objects whose retention has ended", "entry", entry, "objects", result.Deleted, "bytes", result.DeletedBytes, "retained", result.Retained)
	s.normal(b, "ObjectsDeleted", "Sweep", "Deleted %d object versions (%s) of the deleted BackupEntry %s, whose retention has ended", result.Deleted, formatBytes(result.DeletedBytes), entry)
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
