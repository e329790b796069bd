// The end of a BackupBucket. Its bucket is deleted only when no BackupEntry refers to it, after a live look. It is emptied
// only if we made it or took it over; one that was there before loses only what entries have left in it, and one of a
// BackupBucket that never got ready nothing: both are deleted only if they are empty. What is retained makes the deletion
// wait in Processing, without any request until it is due. Until the last entry is gone, the lock is defended.

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// delete deletes the bucket with everything that is in it, once no BackupEntry refers
// to it and nothing in it is retained.
func (r *bucketReconciler) delete(ctx context.Context, cached *backupBucket) (time.Duration, error) {
	if again, err := r.lookMeanwhile(ctx, cached); again > 0 || err != nil {
		return again, err
	}
	b, ok, again, err := dueDeletion(ctx, &r.reconciler, cached, decodeBucket, bucketOperationType)
	if !ok {
		return again, err
	}
	// One that never got ready stays a Create until it is gone, so that each pass knows.
	opType, remove := operationTypeDelete, r.deleteBucket
	if b.neverReady() {
		opType, remove = operationTypeCreate, r.deleteUnused
	}
	user, err := r.referringEntry(ctx, b)
	if err != nil {
		return 0, r.resource.failure(ctx, &b.object, opType, err, nil)
	}
	if user != "" {
		// Its backups are still needed, so its lock is still defended.
		if err := r.defend(ctx, b); err != nil {
			klog.FromContext(ctx).Error(err, "Could not verify the bucket while its deletion waits")
			r.metrics.facts.failed(b.Name, err)
		}
		r.askSweep(cache.MetaObjectToName(b), false)
		return r.wait(ctx, b, opType, "InUse", fmt.Sprintf("The bucket is kept as long as BackupEntries refer to it, such "+
			"as %s", user), min(referencedRetry, r.interval(b)))
	}
	// A pass that only looks again at what is waited for has nothing new to tell.
	if last := b.LastOperation; last == nil || last.Type != opType || last.State != stateProcessing {
		if err := r.resource.processing(ctx, &b.object, opType, "Deleting the bucket"); err != nil {
			return 0, err
		}
	}
	if wait, err := remove(ctx, b); wait > 0 || err != nil {
		return wait, err
	}
	if err := r.deleteGeneratedSecret(ctx, b); err != nil {
		return 0, r.resource.failure(ctx, &b.object, opType, err, nil)
	}
	if opType == operationTypeDelete {
		if err := r.resource.success(ctx, &b.object, opType, "The bucket is deleted", nil); err != nil {
			return 0, err
		}
	}
	if err := r.releaseSecret(ctx, &b.object); err != nil {
		return 0, r.resource.failure(ctx, &b.object, opType, err, nil)
	}
	return 0, r.resource.release(ctx, &b.object)
}

// bucketToDelete opens the bucket of a BackupBucket after a fresh look at it; nil if there
// is nothing of ours, which needs no deletion.
func (r *bucketReconciler) bucketToDelete(ctx context.Context, b *backupBucket) (Store, BucketState, error) {
	if err := checkSecretRef(b.SecretRef); err != nil {
		return nil, BucketState{}, r.bucketLeft(ctx, b, err)
	}
	secret, err := r.secrets.get(ctx, b.SecretRef)
	if err != nil {
		return nil, BucketState{}, err
	}
	want, old := r.scope.readBucket(b)
	store, _, err := r.openStore(ctx, b, secret, want, old, classPurge)
	var unopened *storeError
	if errors.As(err, &unopened) && b.neverReady() {
		// Such as a cloud that does not exist: nothing was ever created there.
		return nil, BucketState{}, r.bucketLeft(ctx, b, err)
	}
	if err == nil {
		var state BucketState
		if state, err = store.Observe(ctx); err == nil {
			err = r.deleting(ctx, b, state)
		}
		if err == nil && (state.Exists || state.Remains) {
			return store, state, nil
		}
	}
	if errors.Is(err, errNotOurBucket) {
		err = r.bucketLeft(ctx, b, err)
	}
	return nil, BucketState{}, err
}

// deleteBucket deletes the bucket with everything that is in it.
func (r *bucketReconciler) deleteBucket(ctx context.Context, b *backupBucket) (time.Duration, error) {
	fail := func(err error) (time.Duration, error) { return r.notDeleted(ctx, b, operationTypeDelete, err) }
	store, state, err := r.bucketToDelete(ctx, b)
	if err != nil {
		return fail(err)
	}
	if store == nil {
		return 0, nil
	}
	for state.Exists {
		err := r.deleteEmpty(ctx, b, store)
		if err == nil {
			break
		}
		var wait *waitError
		if errors.As(err, &wait) {
			return r.wait(ctx, b, operationTypeDelete, "KeptByStore", "The deletion waits: "+wait.reason, wait.after)
		}
		if !errors.Is(err, errBucketNotEmpty) {
			return fail(err)
		}
		if !readRecord(b.ProviderStatus).ours() {
			return r.deleteAdopted(ctx, b, store)
		}
		result, purgeErr := r.purges.run(ctx, store, purgeOrder{
			bucket: b.Name, name: purgeName(&b.object), policy: readRecord(b.ProviderStatus).Policy, uploads: true,
			permit: r.permitBucket(b)})
		if errors.As(purgeErr, new(*deletionEndedError)) {
			return fail(purgeErr)
		}
		if wait, err := r.purged(ctx, b, b.Name, result, purgeErr); wait > 0 || err != nil {
			return wait, err
		}
		if result.Retained > 0 {
			return r.waitForRetention(ctx, b, result)
		}
		// MinIO hides "a/b" from a list while an object "a" exists: what a first purge
		// could not see is found by the next.
		if result.Deleted == 0 {
			return fail(err)
		}
	}
	return r.deleteAccount(ctx, b, store, operationTypeDelete)
}

// notDeleted tells why a deletion cannot go on. One that has ended is no failure.
func (r *bucketReconciler) notDeleted(ctx context.Context, b *backupBucket, opType operationType, err error) (time.Duration, error) {
	if errors.As(err, new(*deletionEndedError)) {
		klog.FromContext(ctx).Info("Stopped deleting the bucket", "reason", err.Error())
		return staleRetry, nil
	}
	return 0, r.resource.failure(ctx, &b.object, opType, err, nil)
}

// errPurgeUnfinished says that a purge goes on later, which is reported already.
var errPurgeUnfinished = errors.New("the purge is not finished")

// isEmpty says that nothing lies under a prefix.
func isEmpty(ctx context.Context, objects Objects, prefix string) (bool, error) {
	for page, err := range objects.pages(ctx, prefix, cursor{}) {
		if err != nil || len(page.versions) > 0 {
			return false, err
		}
	}
	return true, nil
}

// deleteAdopted deletes from a bucket that was there before its BackupBucket what entries of
// ours have left in it, and the bucket if nothing else is there. A prefix whose newest mark is
// a revocation belongs to a cluster that lives on elsewhere.
func (r *bucketReconciler) deleteAdopted(ctx context.Context, b *backupBucket, store Store) (time.Duration, error) {
	fail := func(err error) (time.Duration, error) { return r.notDeleted(ctx, b, operationTypeDelete, err) }
	objects, err := r.openContents(ctx, b, classPurge)
	if err != nil {
		return fail(err)
	}
	var left PurgeResult
	var again time.Duration
	var reported error
	purge := func(prefix string, leave permit) error {
		result, err := r.purges.run(ctx, store, purgeOrder{bucket: b.Name, name: purgeName(&b.object) + "/" + prefix, prefix: prefix,
			policy: readRecord(b.ProviderStatus).Policy, uploads: true, permit: leave})
		if errors.As(err, new(*deletionEndedError)) || errors.As(err, new(*markChangedError)) {
			return err
		}
		if again, reported = r.purged(ctx, b, b.Name, result, err); again > 0 || reported != nil {
			return errPurgeUnfinished
		}
		left.add(result)
		return nil
	}
	// Each entry that has left a tombstone, first.
	foreign := ""
	if objects != nil {
		err = (&markReader{}).each(ctx, objects, tombstonePrefix, func(of marks) error {
			if of.buried() {
				err := purge(of.entry+"/", r.permitBuried(b, objects, of.newest))
				if !errors.As(err, new(*markChangedError)) {
					return err
				}
			} else if empty, err := isEmpty(ctx, objects, of.entry+"/"); empty || err != nil {
				return err
			}
			foreign = of.entry
			return nil
		})
	}
	// While something is left, the marks are still needed.
	if err == nil && left.Retained == 0 && foreign == "" {
		err = purge(tombstonesRoot, r.permitBucket(b))
	}
	switch {
	case errors.Is(err, errPurgeUnfinished):
		return again, reported
	case err != nil:
		return fail(err)
	case foreign != "":
		return 0, r.bucketLeft(ctx, b, fmt.Errorf("bucket %s was there before its BackupBucket, and another cluster uses the prefix %s/ "+
			"in it; if nobody needs it, delete it by hand", b.Name, foreign))
	}
	if left.Retained > 0 {
		return r.waitForRetention(ctx, b, left)
	}
	var wait *waitError
	switch err := r.deleteEmpty(ctx, b, store); {
	case errors.As(err, &wait):
		return r.wait(ctx, b, operationTypeDelete, "KeptByStore", "The deletion waits: "+wait.reason, wait.after)
	case errors.Is(err, errBucketNotEmpty):
		return 0, r.bucketLeft(ctx, b, fmt.Errorf("bucket %s was there before its BackupBucket and holds more than the backups of "+
			"BackupEntries; if nobody needs it, delete it by hand", b.Name))
	case err != nil:
		return fail(err)
	}
	return r.deleteAccount(ctx, b, store, operationTypeDelete)
}

// deleteUnused deletes the bucket of a BackupBucket that never got ready, if it is empty.
// It may be one that was there before and could not be adopted: what is in it is not ours.
func (r *bucketReconciler) deleteUnused(ctx context.Context, b *backupBucket) (time.Duration, error) {
	fail := func(err error) (time.Duration, error) {
		return r.notDeleted(ctx, b, operationTypeCreate, fmt.Errorf("deleting it failed: %w", err))
	}
	store, state, err := r.bucketToDelete(ctx, b)
	if err != nil {
		return fail(err)
	}
	if store == nil {
		return 0, nil
	}
	if state.Exists {
		err := r.deleteEmpty(ctx, b, store)
		var wait *waitError
		if errors.Is(err, errBucketNotEmpty) || errors.As(err, &wait) {
			return 0, r.bucketLeft(ctx, b, err)
		}
		if err != nil {
			return fail(err)
		}
	}
	return r.deleteAccount(ctx, b, store, operationTypeCreate)
}

func (r *bucketReconciler) deleteEmpty(ctx context.Context, b *backupBucket, store Store) error {
	if err := store.Delete(ctx, r.permitBucket(b)); err != nil {
		return err
	}
	r.metrics.bucketsDeleted.Inc()
	klog.FromContext(ctx).Info("Deleted the bucket")
	r.normal(b, "BucketDeleted", "Delete", "Deleted bucket %s", b.Name)
	return nil
}

// deleteGeneratedSecret deletes the generated secret of a bucket that is gone.
func (r *bucketReconciler) deleteGeneratedSecret(ctx context.Context, b *backupBucket) error {
	if _, ok := r.provider(&b.object).(accountProvider); !ok {
		return nil
	}
	// There are two if a move to another namespace was cut off.
	for _, ref := range generatedSecretRefs(b) {
		generated, err := r.secrets.generated(ctx, ref)
		if err != nil {
			return err
		}
		if generated == nil {
			continue
		}
		if err := r.secrets.deleteSecret(ctx, generated, r.permitBucket(b)); err != nil {
			return err
		}
	}
	return nil
}

// waitGroup is the reason of conditionWaiting while a resource group is being deleted.
const waitGroup = "ResourceGroup"

// waitsFor says that the deletion waited for this when the status was written.
func (b *backupBucket) waitsFor(reason string) bool {
	return slices.ContainsFunc(b.Conditions, func(c condition) bool { return c.Type == conditionWaiting && c.Reason == reason })
}

// accountRetry is how soon the deletion of a resource group is looked at again.
const accountRetry = 10 * time.Second

// deleteAccount deletes what a bucket that is gone has lain in, if the store has that.
func (r *bucketReconciler) deleteAccount(ctx context.Context, b *backupBucket, store Store, opType operationType) (time.Duration, error) {
	account, ok := store.(accountStore)
	if !ok {
		return 0, nil
	}
	state, err := account.DeleteAccount(ctx, r.permitBucket(b), b.waitsFor(waitGroup))
	if err != nil {
		return r.notDeleted(ctx, b, opType, err)
	}
	if state.Started {
		r.metrics.accountsDeleted.Inc()
		klog.FromContext(ctx).Info("Deleting the resource group")
		r.normal(b, "ResourceGroupDeleted", "Delete", "Deleting resource group %s with the storage account of bucket %s", b.Name, b.Name)
	}
	if state.Started || state.Deleting {
		if conditionStatus(b.Conditions, conditionImmutable) != "" {
			b.Conditions, _ = mergeConditions(b.Conditions, time.Now(), noBucket)
		}
		r.metrics.facts.clear(b.Name, factState, factHardening)
		return r.wait(ctx, b, opType, waitGroup, "The bucket is deleted, its resource group is being deleted", accountRetry)
	}
	if state.Kept != "" {
		klog.FromContext(ctx).Info("Kept the resource group or storage account", "reason", state.Kept)
		r.warn(b, "ResourceGroupKept", "Delete", "The bucket is deleted, but: %s", state.Kept)
	}
	return 0, nil
}

// wait lets a deletion wait, without any request until then.
func (r *bucketReconciler) wait(ctx context.Context, b *backupBucket, opType operationType, reason, description string,
	after time.Duration) (time.Duration, error) {
	r.resource.controller.waitUntil(cache.MetaObjectToName(b), time.Now().Add(after))
	r.metrics.facts.triedLook(b.Name, time.Now())
	var extra map[string]any
	waiting := condition{Type: conditionWaiting, Status: "True", Reason: reason, Message: description + "."}
	if conditions, changed := mergeConditions(b.Conditions, time.Now(), waiting); changed {
		extra = map[string]any{"conditions": conditions}
	}
	return min(after, r.lookInterval(b)), r.resource.waiting(ctx, &b.object, opType, description, extra)
}

// lookInterval is how often a bucket is looked at while its deletion waits for something that is not due.
func (r *bucketReconciler) lookInterval(b *backupBucket) time.Duration {
	return max(r.interval(b), deletionLookInterval)
}

// lookMeanwhile looks at a bucket whose deletion waits, from time to time, since what is retained in it is still guarded by its
// policy: one read of the secret and one look at the store. Nothing is changed, and an error does not fail the deletion. It is how
// long the deletion waits on, zero if it is due.
func (r *bucketReconciler) lookMeanwhile(ctx context.Context, b *backupBucket) (time.Duration, error) {
	key, now, every := cache.MetaObjectToName(b), time.Now(), r.lookInterval(b)
	wait := r.resource.controller.notDue(key, now)
	if wait == 0 || !b.hasFinalizer(r.resource.finalizer) || b.operation() == operationReconcile {
		return 0, nil
	}
	if next := r.metrics.facts.nextLook(b.Name, every, now); next > 0 {
		return min(wait, next), nil
	}
	exists, err := r.look(ctx, b)
	if goesOn(err) {
		return 0, err
	}
	r.metrics.facts.triedLook(b.Name, now)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not look at the bucket while its deletion waits")
		r.metrics.facts.failed(b.Name, err)
	} else if !exists {
		r.resource.controller.waitUntil(key, now)
		return 0, nil
	}
	return min(wait, every), nil
}

// look asks the store for the state of a bucket that is being deleted, and tells it.
func (r *bucketReconciler) look(ctx context.Context, b *backupBucket) (exists bool, err error) {
	secret, err := r.secrets.get(ctx, b.SecretRef)
	if err != nil {
		return false, err
	}
	want, old := r.scope.readBucket(b)
	store, _, err := r.openStore(ctx, b, secret, want, old, classLook)
	if err != nil {
		return false, err
	}
	state, err := store.Observe(ctx)
	if err != nil {
		return false, err
	}
	return state.Exists, r.deleting(ctx, b, state)
}

// deleting tells what the store says of a bucket that is being deleted. Of one that is gone no policy is shown.
func (r *bucketReconciler) deleting(ctx context.Context, b *backupBucket, state BucketState) error {
	if !state.Exists {
		r.confirmed(b)
		r.metrics.facts.clear(b.Name, factState, factHardening)
		return nil
	}
	if r.showState(b, state); conditionStatus(b.Conditions, conditionImmutable) == "" {
		return nil
	}
	p := r.newPass(ctx, b, passDefend)
	p.live, p.observed = state, true
	return p.writeConditions(ctx)
}

// noBucket is the condition of a bucket that is deleted.
var noBucket = condition{Type: conditionImmutable, Status: "False", Reason: "NoBucket", Message: "The bucket does not exist."}

// waitForRetention lets the deletion of a bucket wait for what a purge has left in it.
func (r *bucketReconciler) waitForRetention(ctx context.Context, b *backupBucket, result PurgeResult) (time.Duration, error) {
	after := sweepRetry
	if !result.RetainedUntil.IsZero() {
		// A second covers the store's rounding, a minute a lag of ours.
		if after = result.RetainedUntil.Sub(result.Now); after <= -time.Second {
			after = time.Minute
		} else {
			// A duration ends at 292 years.
			after = min(after, 365*24*time.Hour) + time.Second
		}
	}
	// Nobody could delete them before that.
	r.metrics.facts.confirm(b.Name, factSweep, after, time.Now())
	r.metrics.setTombstones(b.Name, 0, result.Retained, result.RetainedBytes, result.RetainedUntil)
	description := fmt.Sprintf("%d objects (%s) in bucket %s are %s", result.Retained, formatBytes(result.RetainedBytes),
		b.Name, result.retained())
	return r.wait(ctx, b, operationTypeDelete, "ObjectsRetained", description, after)
}

// bucketLeft tells that a BackupBucket goes and a bucket of its name may stay.
func (r *bucketReconciler) bucketLeft(ctx context.Context, b *backupBucket, reason error) error {
	klog.FromContext(ctx).Info("Released the BackupBucket without deleting a bucket", "reason", reason.Error())
	r.warn(b, "BucketLeft", "Delete", "The BackupBucket is released, no bucket was deleted: %v", reason)
	return nil
}

// referringEntry names a BackupEntry that refers to the bucket. The cache may say yes;
// no is only believed after a live read.
func (r *bucketReconciler) referringEntry(ctx context.Context, b *backupBucket) (string, error) {
	for _, obj := range r.entries.List() {
		if e, ok := obj.(*backupEntry); ok && e.BucketName == b.Name {
			return e.Name, nil
		}
	}
	return referringEntry(ctx, r.entriesClient.client, b.Name)
}

// referringEntry returns the name of a BackupEntry that lies in the bucket as the API
// server has it now, empty if there is none. Most often the first page of 500 tells.
func referringEntry(ctx context.Context, client dynamic.ResourceInterface, bucket string) (string, error) {
	options := metav1.ListOptions{Limit: 500}
	for {
		page, err := client.List(ctx, options)
		if err != nil {
			return "", fmt.Errorf("listing BackupEntries: %w", err)
		}
		for i := range page.Items {
			if e := decodeEntry(&page.Items[i]); e.BucketName == bucket {
				return e.Name, nil
			}
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return "", nil
		}
	}
}
