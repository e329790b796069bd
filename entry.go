// A BackupEntry. Its reconcile writes the etcd-backup secret for its cluster first, whether the store answers or not, and
// revokes a tombstone that an earlier deletion has left. Migration hands it over to another seed and deletes nothing. Its
// deletion deletes its objects, unless it never got ready or another live entry uses the prefix. What is retained is left
// to a tombstone, so the entry never waits for it.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	"k8s.io/klog/v2"
)

const (
	finalizerBackupEntry = "extensions.gardener.cloud/backupentry"

	// tokenRetry is how soon an entry is looked at again whose workload identity has no token
	// yet; gardenlet writes one within seconds.
	tokenRetry = time.Minute
)

// entryReconciler owns the BackupEntries.
type entryReconciler struct {
	reconciler
}

// reconcile makes one pass over a BackupEntry (gardener/gardener
// extensions/pkg/controller/backupentry/reconciler.go).
func (r *entryReconciler) reconcile(ctx context.Context, key cache.ObjectName, wanted bool) (time.Duration, error) {
	obj, exists, err := r.cached.GetByKey(key.String())
	if err != nil || !exists {
		r.resource.controller.gone(key)
		return 0, err
	}
	cached, ok := obj.(*backupEntry)
	if !ok || !r.scope.responsible(&cached.object) || cached.operation() == operationWaitForState {
		return 0, nil
	}
	own := *cached
	e := &own
	if r.resource.controller.stale(&e.object) {
		return staleRetry, nil
	}
	opType := computeOperationType(&e.object)
	if last := e.LastOperation; opType != operationTypeMigrate && opType != operationTypeRestore &&
		last != nil && last.Type == operationTypeMigrate && last.State == stateSucceeded {
		if opType == operationTypeDelete && e.hasFinalizer(finalizerBackupEntry) {
			// Its annotation was taken away before the finalizers were: it is handed over all the same.
			return 0, r.handOver(ctx, e)
		}
		return 0, nil
	}
	switch {
	case opType == operationTypeMigrate:
		return 0, r.migrate(ctx, e)
	case opType == operationTypeDelete:
		return r.atStore(ctx, e, false, func(ctx context.Context) (time.Duration, error) { return r.delete(ctx, e) })
	case !r.needsWork(&e.object, wanted):
		return 0, nil
	}
	return r.ensure(ctx, e, opType)
}

// ensure makes the etcd-backup secret what it should be, which needs no store, and then looks at the marks of the prefix.
// New entries take 5 API requests, unchanged ones 4.
func (r *entryReconciler) ensure(ctx context.Context, e *backupEntry, opType operationType) (again time.Duration, err error) {
	defer r.wantAgain(&e.object, &err)
	if err := r.resource.claim(ctx, &e.object, e.operation() != operationRestore); err != nil {
		return 0, err
	}
	objects, source, err := r.ensureSecrets(ctx, e, opType)
	if err != nil {
		return 0, r.resource.failure(ctx, &e.object, opType, err, nil)
	}
	return r.atStore(ctx, e, true, func(ctx context.Context) (again time.Duration, err error) {
		defer r.wantAgain(&e.object, &err)
		return r.finish(ctx, e, opType, objects, source)
	})
}

// atStore goes on with a pass where it may wait for a store, and notes if that does not accept the entry's key.
func (r *entryReconciler) atStore(ctx context.Context, e *backupEntry, interruptible bool,
	then func(context.Context) (time.Duration, error)) (time.Duration, error) {
	return r.resource.controller.atStore(ctx, interruptible, func(ctx context.Context) (time.Duration, error) {
		again, err := then(ctx)
		r.keys.noteRejection(e.BucketName, err, time.Now())
		return again, err
	})
}

// finish is the rest of ensure, for which the store is needed.
func (r *entryReconciler) finish(ctx context.Context, e *backupEntry, opType operationType, objects Objects, source *corev1.Secret,
) (again time.Duration, err error) {
	if objects != nil {
		err = r.ensureMarks(ctx, e, opType, objects)
	} else if again, err = tokenRetry, nil; opType == operationTypeRestore || strings.HasPrefix(e.Name, sourcePrefix) {
		// On its own cluster a live entry is never purged; a tombstone that the owner of the
		// bucket would follow on another one can only be there after a migration. Else whoever
		// sweeps the bucket revokes one, and so does this entry once it has the token.
		err = fmt.Errorf("the workload identity secret %s has no %s yet, without which a tombstone of an earlier "+
			"deletion cannot be revoked", e.SecretRef, dataKeyToken)
	}
	if err == nil {
		err = r.followSecret(ctx, &e.object)
	}
	if err != nil {
		return 0, r.resource.failure(ctx, &e.object, opType, err, nil)
	}
	if err := r.resource.success(ctx, &e.object, opType, "The etcd-backup secret is up to date", nil); err != nil {
		return 0, err
	}
	if again > 0 {
		r.resource.controller.want(cache.MetaObjectToName(e))
	}
	if e.operation() != operationRestore {
		return again, nil
	}
	// With an optimistic lock: the client may ask for the next operation meanwhile.
	_, err = r.resource.patch(ctx, &e.object, map[string]any{"metadata": map[string]any{
		"annotations": map[string]any{annotationOperation: nil}, "resourceVersion": e.ResourceVersion}})
	return again, ignoreNotFound(err)
}

// ensureSecrets writes the etcd-backup secret, whether the store answers or not. It returns what lies in the bucket, nil if
// that cannot be opened yet.
func (r *entryReconciler) ensureSecrets(ctx context.Context, e *backupEntry, opType operationType) (Objects, *corev1.Secret, error) {
	if err := validateEntry(e); err != nil {
		return nil, nil, err
	}
	start := sync.OnceValue(func() error {
		return r.resource.processing(ctx, &e.object, opType, "Writing the etcd-backup secret")
	})
	source, err := r.credentials(ctx, e, start)
	if err != nil {
		return nil, nil, err
	}
	// What can't work is found before anything is written for the cluster.
	if _, err := etcdBackupSecret(r.provider(&e.object), e, source, nil); err != nil {
		return nil, nil, err
	}
	var objects Objects
	// The token of a workload identity comes later, from gardenlet.
	if !isWorkloadIdentity(source) || len(source.Data[dataKeyToken]) > 0 {
		if objects, err = r.openObjects(&e.object, e.BucketName, e.record(), source); err != nil {
			return nil, nil, err
		}
	}
	if opType != operationTypeReconcile {
		if err := start(); err != nil {
			return nil, nil, err
		}
	}
	return objects, source, r.ensureEtcdBackup(ctx, e, source, start)
}

// ensureMarks revokes the tombstone that an earlier deletion has left.
func (r *entryReconciler) ensureMarks(ctx context.Context, e *backupEntry, opType operationType, objects Objects) error {
	if err := r.endpoints().enter(ctx, objects.endpoint(), classLook); err != nil {
		return err
	}
	take := revoke
	if opType == operationTypeRestore || opType == operationTypeCreate && strings.HasPrefix(e.Name, sourcePrefix) {
		take = takeOver
	}
	revoked, err := take(ctx, objects, entryBase(e.Name), e.UID)
	if revoked {
		klog.FromContext(ctx).Info("Revoked the tombstone of an earlier deletion", "bucket", e.BucketName)
		r.normal(e, "TombstoneRevoked", "Reconcile", "The objects under %s/ in bucket %s are in use again; what was "+
			"retained of an earlier deletion is not deleted any more", entryBase(e.Name), e.BucketName)
	}
	return err
}

// credentials reads the referenced secret and sees to its finalizer. That of a new entry
// most likely has none yet.
func (r *entryReconciler) credentials(ctx context.Context, e *backupEntry, start func() error) (*corev1.Secret, error) {
	if e.LastOperation == nil {
		if err := start(); err != nil {
			return nil, err
		}
		if err := r.noteSecret(ctx, &e.object); err != nil {
			return nil, err
		}
		return r.secrets.holdUnread(ctx, e.SecretRef)
	}
	source, err := r.secrets.get(ctx, e.SecretRef)
	if err != nil || r.secrets.held(source) {
		return source, err
	}
	if err := start(); err != nil {
		return nil, err
	}
	if err := r.noteSecret(ctx, &e.object); err != nil {
		return nil, err
	}
	return source, r.secrets.hold(ctx, source)
}

func validateEntry(e *backupEntry) error {
	if e.decodeErr != nil {
		return configErrorf("the BackupEntry cannot be read: %v", e.decodeErr)
	}
	if !hasNamespace(e) {
		return configErrorf("metadata.name %q is not of the form <technical ID>--<UID>, so the namespace of its cluster is unknown", e.Name)
	}
	if e.BucketName == "" {
		return configErrorf("spec.bucketName is empty")
	}
	if e.Region == "" {
		return configErrorf("spec.region is empty")
	}
	return nil
}

// hasNamespace says that an entry's name tells the namespace of its cluster. Gardener's
// own derivation takes a name without "--" for a namespace; no client of Gardener makes
// one, and a mistake must not write credentials into a namespace such as kube-system.
func hasNamespace(e *backupEntry) bool {
	technicalID, uid := splitEntryName(e.Name)
	return technicalID != "" && uid != "" && strings.Contains(strings.TrimPrefix(e.Name, sourcePrefix), "--")
}

// ensureEtcdBackup writes the secret; started is called before the first write. A
// missing or terminating namespace is fine: there is no cluster to serve (yet).
func (r *entryReconciler) ensureEtcdBackup(ctx context.Context, e *backupEntry, source *corev1.Secret, start func() error) error {
	namespace, _ := splitEntryName(e.Name)
	client := r.secrets.client.CoreV1().Secrets(namespace)
	name := namespace + "/" + etcdBackupName(e.Name)
	create := func() error {
		wanted, err := etcdBackupSecret(r.provider(&e.object), e, source, nil)
		if err != nil {
			return err
		}
		_, err = client.Create(ctx, wanted, metav1.CreateOptions{FieldManager: fieldManager})
		if apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			klog.FromContext(ctx).V(2).Info("No etcd-backup secret, the namespace is missing or terminating", "namespace", namespace)
			return nil
		}
		return err
	}
	// Of a new entry the secret is most likely not there: creating it at once saves
	// two reads.
	if e.LastOperation == nil {
		if err := create(); !apierrors.IsAlreadyExists(err) {
			return wrapf(err, "creating secret %s", name)
		}
	}
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		existing, err := client.Get(ctx, etcdBackupName(e.Name), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			if err := start(); err != nil {
				return err
			}
			return wrapf(create(), "creating secret %s", name)
		}
		if err != nil {
			return fmt.Errorf("reading secret %s: %w", name, err)
		}
		wanted, err := etcdBackupSecret(r.provider(&e.object), e, source, existing)
		if err != nil {
			return err
		}
		patch := replaceSecretPatch(existing, wanted)
		if patch == nil {
			return nil
		}
		ns, err := r.secrets.client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && ns.DeletionTimestamp != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading namespace %s: %w", namespace, err)
		}
		if err := start(); err != nil {
			return err
		}
		return r.secrets.patch(ctx, existing, patch)
	})
}

// migrate hands the entry to another seed: nothing is deleted, all finalizers go. The
// operation annotation goes in the same patch, so that nobody sees one without the other.
func (r *entryReconciler) migrate(ctx context.Context, e *backupEntry) error {
	// One that never got ready keeps a status that says so: if somebody takes the annotation away, its deletion purges nothing.
	if !e.neverReady() {
		if err := r.resource.processing(ctx, &e.object, operationTypeMigrate, "Handing the BackupEntry over"); err != nil {
			return err
		}
	}
	if err := r.resource.success(ctx, &e.object, operationTypeMigrate, "The BackupEntry can be handed over", nil); err != nil {
		return err
	}
	return r.handOver(ctx, e)
}

// handOver releases an entry that has migrated; its objects belong to another seed.
func (r *entryReconciler) handOver(ctx context.Context, e *backupEntry) error {
	if err := r.releaseSecret(ctx, &e.object); err != nil {
		return r.resource.failure(ctx, &e.object, operationTypeMigrate, err, nil)
	}
	// Whatever changes meanwhile: gardenlet deletes the entry as soon as it sees Succeeded.
	_, err := r.resource.patch(ctx, &e.object, map[string]any{"metadata": map[string]any{
		"annotations": map[string]any{annotationOperation: nil}, "finalizers": nil}})
	return ignoreNotFound(err)
}

// entryBase is the name under which the objects of an entry lie in its bucket, followed by
// a slash, which keeps "a--1" from meaning "a--10".
func entryBase(entry string) string { return strings.TrimPrefix(entry, sourcePrefix) }

// delete removes the etcd-backup secret and the entry's objects, then releases it.
func (r *entryReconciler) delete(ctx context.Context, cached *backupEntry) (time.Duration, error) {
	e, ok, again, err := dueDeletion(ctx, &r.reconciler, cached, decodeEntry,
		func(e *backupEntry) operationType { return computeOperationType(&e.object) })
	if !ok {
		return again, err
	}
	if e.neverReady() {
		return 0, r.deleteUnused(ctx, e)
	}
	if err := r.resource.processing(ctx, &e.object, operationTypeDelete, "Deleting the etcd-backup secret and the objects"); err != nil {
		return 0, err
	}
	source, err := r.secrets.get(ctx, e.SecretRef)
	var missing *secretMissingError
	var incomplete *configError
	if errors.As(err, &missing) || errors.As(err, &incomplete) {
		r.warn(e, "ObjectsLeft", "Delete", "The BackupEntry is released, but its objects stay in bucket %s: %v", e.BucketName, err)
		if err := r.releaseSecret(ctx, &e.object); err != nil {
			return 0, r.resource.failure(ctx, &e.object, operationTypeDelete, err, nil)
		}
		return 0, r.resource.release(ctx, &e.object)
	}
	if err != nil {
		return 0, r.resource.failure(ctx, &e.object, operationTypeDelete, err, nil)
	}
	if err := r.deleteEtcdBackup(ctx, e); err != nil {
		return 0, r.resource.failure(ctx, &e.object, operationTypeDelete, err, nil)
	}
	if wait, err := r.purge(ctx, e, source); wait > 0 || err != nil {
		return wait, err
	}
	if err := r.resource.success(ctx, &e.object, operationTypeDelete, "The BackupEntry can be released", nil); err != nil {
		return 0, err
	}
	if err := r.releaseSecret(ctx, &e.object); err != nil {
		return 0, r.resource.failure(ctx, &e.object, operationTypeDelete, err, nil)
	}
	return 0, r.resource.release(ctx, &e.object)
}

// deleteUnused releases an entry that never got ready. What lies under its prefix is not known
// to be its own; its status stays a Create until it is gone, so that each pass knows.
func (r *entryReconciler) deleteUnused(ctx context.Context, e *backupEntry) error {
	if err := r.deleteEtcdBackup(ctx, e); err != nil {
		return r.resource.failure(ctx, &e.object, operationTypeCreate, err, nil)
	}
	if err := r.releaseSecret(ctx, &e.object); err != nil {
		return r.resource.failure(ctx, &e.object, operationTypeCreate, err, nil)
	}
	r.warn(e, "ObjectsLeft", "Delete", "The BackupEntry never became ready, so it is released and nothing was deleted: what lies under "+
		"%s/ in bucket %s, if anything, stays; delete it by hand if it is this cluster's", entryBase(e.Name), e.BucketName)
	return r.resource.release(ctx, &e.object)
}

// deleteEtcdBackup deletes the entry's etcd-backup secret unless another entry wrote it.
func (r *entryReconciler) deleteEtcdBackup(ctx context.Context, e *backupEntry) error {
	if !hasNamespace(e) {
		// Nothing was ever written for it.
		return nil
	}
	namespace, _ := splitEntryName(e.Name)
	name := etcdBackupName(e.Name)
	client := r.secrets.client.CoreV1().Secrets(namespace)
	secret, err := client.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading secret %s/%s: %w", namespace, name, err)
	}
	err = r.secrets.deleteSecret(ctx, secret, permitEtcdBackup(e, secret))
	var inUse *prefixInUseError
	if errors.As(err, &inUse) {
		return nil
	}
	return err
}

// purge deletes the entry's objects, and leaves a tombstone for those that are retained. It
// keeps them if the prefix belongs to a live entry: after a cluster moved, "x" and "source-x"
// may both point to it.
func (r *entryReconciler) purge(ctx context.Context, e *backupEntry, source *corev1.Secret) (time.Duration, error) {
	base := entryBase(e.Name)
	fail := func(err error) (time.Duration, error) {
		return 0, r.resource.failure(ctx, &e.object, operationTypeDelete, err, nil)
	}
	if base == "" {
		return fail(configErrorf("metadata.name %q leaves no prefix in the bucket", e.Name))
	}
	unused := func(ctx context.Context) error { return r.resource.checkUnused(ctx, e.BucketName, base, e.Name) }
	guard := &prefixGuard{entries: r.resource, entry: e, base: base}
	objects, openErr := r.openObjects(&e.object, e.BucketName, e.record(), source)
	if openErr == nil {
		openErr = r.endpoints().enter(ctx, objects.endpoint(), classPurge)
	}
	var result PurgeResult
	err := cmp.Or(unused(ctx), openErr)
	if guard.objects = objects; err == nil {
		result, err = r.purges.run(ctx, objects, purgeOrder{bucket: e.BucketName, name: purgeName(&e.object), prefix: base + "/",
			policy: e.Recorded, permit: guard.permit(), uploads: true})
	}
	var inUse *prefixInUseError
	var ended *deletionEndedError
	keep := func() (time.Duration, error) {
		// Its reconcile may have looked for a tombstone just before we have written one.
		if openErr == nil {
			if err := leaveTo(ctx, objects, base, inUse.uid); err != nil && !errors.Is(err, errNotOurBucket) {
				return fail(fmt.Errorf("revoking the tombstone of %s, which is in use by BackupEntry %s: %w", base, inUse.entry, err))
			}
		}
		r.warn(e, "ObjectsKept", "Delete", "The objects under %s/ in bucket %s belong to the live BackupEntry %s and are "+
			"kept", base, e.BucketName, inUse.entry)
		return 0, nil
	}
	switch {
	case errors.As(err, &ended):
		klog.FromContext(ctx).Info("Stopped deleting objects", "deleted", result.Deleted, "reason", ended.Error())
		_, _ = r.purged(ctx, e, e.BucketName, PurgeResult{Deleted: result.Deleted, DeletedBytes: result.DeletedBytes}, nil)
		return staleRetry, nil
	case errors.As(err, &inUse):
		return keep()
	case errors.Is(err, errNotOurBucket):
		r.warn(e, "ObjectsLeft", "Delete", "The BackupEntry is released, there are no objects of ours to delete: %v", err)
		return 0, nil
	}
	if wait, err := r.purged(ctx, e, e.BucketName, result, err); wait > 0 || err != nil {
		return wait, err
	}
	if result.Retained == 0 {
		return 0, nil
	}
	// Where nothing could be deleted, no leave was asked.
	if err = guard.check(ctx); err == nil {
		err = bury(ctx, guard, result)
	}
	switch {
	case errors.As(err, &ended):
		klog.FromContext(ctx).Info("Left no tombstone", "reason", ended.Error())
		return staleRetry, nil
	case errors.As(err, &inUse):
		return keep()
	case err != nil:
		return fail(fmt.Errorf("writing the tombstone for %d objects that are %s: %w", result.Retained, result.retained(), err))
	}
	if err := unused(ctx); errors.As(err, &inUse) {
		return keep()
	} else if err != nil {
		return fail(err)
	}
	klog.FromContext(ctx).Info("Left a tombstone for retained objects", "bucket", e.BucketName, "objects", result.Retained,
		"bytes", result.RetainedBytes, "until", result.RetainedUntil)
	r.normal(e, "ObjectsRetained", "Delete", "%d objects (%s) in bucket %s are %s; a tombstone in the bucket sees to "+
		"their deletion then", result.Retained, formatBytes(result.RetainedBytes), e.BucketName, result.retained())
	return 0, nil
}
