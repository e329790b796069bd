// Tombstones: what the deletion of an entry leaves behind because it is retained is remembered
// in the bucket itself, which survives the loss of the seed and may belong to another seed.
//
// Rules:
//   - The newest mark of an entry decides, by the store's own creation time: a tombstone says
//     that the prefix <entry>/ is to be purged once it is due, a revocation that it is in use.
//   - Marks are never overwritten and never deleted before they say nothing any more:
//     .bucketwarden/tombstones/<entry>/deleted-<due>-<objects>-<bytes>-<random>
//     .bucketwarden/tombstones/<entry>/revoked-<random>
//   - They are read as a stream: whoever can write to a bucket must not fill our memory.

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	// tombstonesRoot is where everything of ours lies that is no backup.
	tombstonesRoot  = ".bucketwarden/"
	tombstonePrefix = tombstonesRoot + "tombstones/"
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
	return fmt.Sprintf("%s%s/%s-%s-%d-%d-%s", tombstonePrefix, entry, markDeleted, due.UTC().Format(markTime), result.Retained,
		result.RetainedBytes, rand.Text()[:markNonce])
}

// revocationKey names a revocation so that the entry that wrote it can be told from others.
func revocationKey(entry string, owner types.UID) string {
	return tombstonePrefix + entry + "/" + markRevoked + "-" + (markOwner(owner) + rand.Text())[:markNonce]
}

// markOwner is the beginning of the random part of the revocations that an object writes.
func markOwner(uid types.UID) string {
	if uid == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(uid))
	return base32.StdEncoding.EncodeToString(sum[:])[:markNonce/2]
}

// by says that a revocation was written by an object, as far as its name tells.
func (m mark) by(uid types.UID) bool {
	return m.revoked && strings.HasPrefix(m.key, tombstonePrefix+m.entry+"/"+markRevoked+"-"+markOwner(uid))
}

// parseMark reads a mark from its name; false for whatever else lies there.
func parseMark(key string, created time.Time) (mark, bool) {
	rest, ok := strings.CutPrefix(key, tombstonePrefix)
	entry, name, slash := strings.Cut(rest, "/")
	if !ok || !slash || !isEntryBase(entry) {
		return mark{}, false
	}
	m := mark{key: key, entry: entry, created: created}
	parts := strings.Split(name, "-")
	switch {
	case len(parts[len(parts)-1]) != markNonce:
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

// isEntryBase says that a BackupEntry can have its objects under the name. Whatever else may
// be another part of the bucket, such as .bucketwarden itself.
func isEntryBase(name string) bool {
	return len(validation.IsDNS1123Subdomain(name)) == 0 || len(validation.IsDNS1123Subdomain(sourcePrefix+name)) == 0
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

// marks are those of one entry; the zero value: there are none.
type marks struct {
	entry  string
	newest mark
	count  int
	// tombstones and revocations are their keys, in the order of the list. more says that
	// there are further ones.
	tombstones, revocations []string
	more                    bool
}

// maxMarks bounds the keys of one entry that are kept in memory.
const maxMarks = 1000

// buried says that the prefix is to be purged.
func (m marks) buried() bool { return m.count > 0 && !m.newest.revoked }

func (m *marks) add(n mark) {
	if m.count == 0 || m.newest.compare(n) < 0 {
		m.entry, m.newest = n.entry, n
	}
	m.count++
	keys := &m.tombstones
	if n.revoked {
		keys = &m.revocations
	}
	if len(*keys) == maxMarks {
		m.more = true
		return
	}
	*keys = append(*keys, n.key)
}

// markReader reads marks.
type markReader struct {
	// now is the store's time; strangers is how much was listed that is no mark.
	now       time.Time
	strangers int64
}

// each lists what is under prefix and calls f for each entry that has marks. A store that
// lists an entry in two places would hide its newest mark, which is an error.
func (r *markReader) each(ctx context.Context, objects Objects, prefix string, f func(marks) error) error {
	var last version
	var current marks
	r.now = time.Now()
	done := map[string]bool{}
	entry := func() error {
		if current.count == 0 {
			return nil
		}
		if done[current.entry] {
			return &storeError{err: fmt.Errorf("the store lists the marks of %s in two places", current.entry)}
		}
		if len(done) < maxPlans {
			done[current.entry] = true
		}
		of := current
		current = marks{}
		return f(of)
	}
	// The versions of a key follow each other; the oldest is the mark.
	key := func() error {
		m, ok := parseMark(last.key, last.created)
		switch {
		case last.key == "":
		case !ok:
			r.strangers++
		default:
			if m.entry != current.entry {
				if err := entry(); err != nil {
					return err
				}
			}
			current.add(m)
		}
		return nil
	}
	for page, err := range objects.pages(ctx, prefix, cursor{}) {
		if err != nil {
			return err
		}
		r.now = page.now
		for _, v := range page.versions {
			switch {
			case v.marker:
				// It hides an object, which is there all the same.
			case v.key != last.key:
				if err := key(); err != nil {
					return err
				}
				last = v
			case v.created.Before(last.created):
				last = v
			}
		}
	}
	if err := key(); err != nil {
		return err
	}
	return entry()
}

// readMarks reads the marks of one entry, and the store's time.
func readMarks(ctx context.Context, objects Objects, entry string) (of marks, now time.Time, err error) {
	var reader markReader
	err = reader.each(ctx, objects, tombstonePrefix+entry+"/", func(m marks) error {
		of = m
		return nil
	})
	return of, reader.now, err
}

// putMark writes a mark and sees to it that it counts: that done says so of the marks that
// there are then. existing are those that there were before.
func putMark(ctx context.Context, objects Objects, entry string, existing marks, key func() string, done func(marks) bool) error {
	for {
		if err := objects.Put(ctx, key()); err != nil || existing.count == 0 {
			return err
		}
		of, _, err := readMarks(ctx, objects, entry)
		if err != nil {
			return err
		}
		if done(of) {
			return nil
		}
		// Written within one tick of the store's clock.
		if err := sleep(ctx, markTick); err != nil {
			return fmt.Errorf("writing a mark of %s: %w", entry, err)
		}
	}
}

// putRevocation revokes whatever the marks of a prefix say.
func putRevocation(ctx context.Context, objects Objects, entry string, existing marks, owner types.UID) error {
	return putMark(ctx, objects, entry, existing, func() string { return revocationKey(entry, owner) },
		func(of marks) bool { return of.newest.by(owner) })
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
// there is one already: one request, 2 more if the entry was buried before.
func bury(ctx context.Context, guard *prefixGuard, result PurgeResult) error {
	objects, entry := guard.objects, guard.base
	// The last batch was refused right before.
	if err := guard.readMarks(ctx); err != nil {
		return err
	}
	if err := guard.checkMarks(); err != nil {
		return err
	}
	of, now := guard.marks, guard.now.Add(time.Since(guard.at))
	due, enough := result.RetainedUntil, result.RetainedUntil
	if latest := latestTry(guard.entry.Recorded, now); due.After(latest) {
		due, enough = latest, latest.Add(-sweepRetry)
	}
	if due.IsZero() {
		// Any tombstone that was not swept yet does.
		due, enough = now.Add(sweepRetry), now.Add(markTick)
	}
	switch {
	case of.count > 0 && of.newest.revoked && !of.newest.by(guard.entry.UID) && !result.Now.IsZero() && of.newest.created.After(result.Now):
		// Another cluster took the prefix into use while it was purged.
		return &prefixInUseError{entry: entry}
	case of.buried() && !of.newest.due.Before(enough):
		return nil
	}
	// Names have seconds: rounded down, the sweep would come too early.
	due = due.Add(time.Second - 1).Truncate(time.Second)
	return putMark(ctx, objects, entry, of, func() string { return tombstoneKey(entry, due, result) },
		// Whoever has written a later one is right.
		func(now marks) bool { return now.newest.key != of.newest.key })
}

// revoke says that the prefix of an entry is in use: one request, 3 if there is a tombstone.
func revoke(ctx context.Context, objects Objects, entry string, owner types.UID) (revoked bool, err error) {
	of, _, err := readMarks(ctx, objects, entry)
	if err != nil || !of.buried() {
		return false, err
	}
	return true, putRevocation(ctx, objects, entry, of, owner)
}

// takeOver is a revoke for an entry that comes from another cluster: it says so even if there
// is no tombstone, since that cluster may be deleting its own entry just now.
func takeOver(ctx context.Context, objects Objects, entry string, owner types.UID) (revoked bool, err error) {
	of, _, err := readMarks(ctx, objects, entry)
	if err != nil || of.newest.by(owner) {
		return false, err
	}
	return of.buried(), putRevocation(ctx, objects, entry, of, owner)
}

// leaveTo says that a prefix is in use by another entry, if its marks say anything else.
func leaveTo(ctx context.Context, objects Objects, entry string, owner types.UID) error {
	of, _, err := readMarks(ctx, objects, entry)
	if err != nil || of.count == 0 || of.newest.by(owner) || of.newest.revoked && owner == "" {
		return err
	}
	return putRevocation(ctx, objects, entry, of, owner)
}

// checkStands makes sure that a tombstone is still the newest mark of its entry.
func checkStands(ctx context.Context, objects Objects, tombstone mark) error {
	of, _, err := readMarks(ctx, objects, tombstone.entry)
	if err != nil {
		return err
	}
	if of.newest.key != tombstone.key {
		return &markChangedError{entry: tombstone.entry}
	}
	return nil
}

// markChangedError says that another cluster has written a newer mark meanwhile.
type markChangedError struct{ entry string }

func (e *markChangedError) Error() string {
	return fmt.Sprintf("another cluster has written a newer mark of %s", e.entry)
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
	wait, err := s.pass(ctx, b, objects)
	s.keys.noteRejection(b.Name, err, time.Now())
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
	s.metrics.bucketStrangers.WithLabelValues(b.Name).Set(float64(reader.strangers))
	next := s.report(b, current, reader.now)
	if failure != nil || next.IsZero() || next.Sub(reader.now) > s.verifyInterval {
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
