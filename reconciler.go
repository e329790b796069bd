// What every pass has: the clients of its resource, events, and the only ways to open a bucket. These pick the credentials
// (the secret that the spec names, or the generated one), tell the provider where the bucket was found, and name the
// secret in errors about it. The secrets that an object holds are followed here when its spec changes. The start of a
// deletion is here too, since both resources must read the object live before anything is deleted.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
)

// reconciler is what both resources need for a pass.
type reconciler struct {
	resource *resourceClient
	secrets  *secrets
	cached   cache.Indexer
	scope    *scope
	recorder events.EventRecorder
	metrics  *metrics
	purges   *purges
	keys     *keyWatch
}

// endpoints are where a pass finds a place before it asks a store.
func (r *reconciler) endpoints() *endpoints { return r.resource.controller.endpoints }

// needsWork says that a pass has to reconcile, from what the object itself shows.
func (r *reconciler) needsWork(o *object, wanted bool) bool {
	if wanted || !o.succeeded() {
		return true
	}
	if r.scope.ignoreOperationAnnotation {
		return o.Generation != o.ObservedGeneration
	}
	return isOperation(o.operation()) || o.interrupted()
}

// wantAgain keeps a failed reconcile wanted: its operation annotation is gone, and maybe
// no status tells of it.
func (r *reconciler) wantAgain(o *object, err *error) {
	if *err != nil && !goesOn(*err) {
		r.resource.controller.want(cache.MetaObjectToName(o))
	}
}

// heldSecrets are the secrets that we may hold for an object, as its annotation says.
func (o *object) heldSecrets() (held []types.NamespacedName) {
	for _, secret := range strings.Split(o.Annotations[annotationSecret], ",") {
		namespace, name, _ := strings.Cut(secret, "/")
		if ref := (types.NamespacedName{Namespace: namespace, Name: name}); checkSecretRef(ref) == nil {
			held = append(held, ref)
		}
	}
	return held
}

// noteSecret writes down, before a secret is held, that it is: one that the spec names only
// for a while must be released too. Most often that was done with the finalizer.
func (r *reconciler) noteSecret(ctx context.Context, o *object) error {
	if checkSecretRef(o.SecretRef) != nil || slices.Contains(o.heldSecrets(), o.SecretRef) {
		return nil
	}
	return r.annotateSecret(ctx, o, strings.TrimPrefix(o.Annotations[annotationSecret]+","+o.SecretRef.String(), ","))
}

func (r *reconciler) annotateSecret(ctx context.Context, o *object, value string) error {
	_, err := r.resource.patch(ctx, o, map[string]any{"metadata": map[string]any{
		"annotations": map[string]any{annotationSecret: value}, "resourceVersion": o.ResourceVersion}})
	return ignoreNotFound(err)
}

// followSecret releases the secrets that the spec named before, now that the new one is held:
// with our finalizer nobody could delete the old credentials.
func (r *reconciler) followSecret(ctx context.Context, o *object) error {
	held := o.heldSecrets()
	if len(held) == 0 || len(held) == 1 && held[0] == o.SecretRef {
		return nil
	}
	for _, old := range held {
		if old == o.SecretRef {
			continue
		}
		if err := r.releaseFrom(ctx, o, old); err != nil {
			return err
		}
	}
	return r.annotateSecret(ctx, o, o.SecretRef.String())
}

// releaseSecret removes our finalizer from the credentials of an object, unless another object
// of the resource lives on them.
func (r *reconciler) releaseSecret(ctx context.Context, o *object) error {
	for _, old := range o.heldSecrets() {
		if old == o.SecretRef {
			continue
		}
		if err := r.releaseFrom(ctx, o, old); err != nil {
			return err
		}
	}
	return r.releaseFrom(ctx, o, o.SecretRef)
}

func (r *reconciler) releaseFrom(ctx context.Context, o *object, ref types.NamespacedName) error {
	sharing, err := r.cached.ByIndex(indexSecret, ref.String())
	if err != nil {
		return fmt.Errorf("looking up the users of secret %s: %w", ref, err)
	}
	for _, obj := range sharing {
		co, ok := obj.(commonObject)
		if !ok || co.common().Name == o.Name || !co.common().hasFinalizer(r.resource.finalizer) || !r.scope.responsible(co.common()) {
			continue
		}
		other := *co.common()
		u, err := r.resource.live(ctx, &other)
		if err != nil {
			return err
		}
		if u == nil {
			continue
		}
		// Two that go at once must not wait for each other: who has succeeded is through.
		live, _ := decodeObject(u, r.resource.kind)
		going := live.LastOperation != nil && live.succeeded() &&
			(live.LastOperation.Type == operationTypeDelete || live.LastOperation.Type == operationTypeMigrate)
		if live.hasFinalizer(r.resource.finalizer) && !going {
			return nil
		}
	}
	return r.secrets.release(ctx, ref)
}

// provider is the kind of store that an object we are responsible for lies on.
func (r *reconciler) provider(o *object) provider { return r.scope.providers[o.Type] }

// generated reads the generated secret of a BackupBucket; nil if there is none, as always on a store without accounts.
func (r *reconciler) generated(ctx context.Context, b *backupBucket) (*corev1.Secret, error) {
	if _, ok := r.provider(&b.object).(accountProvider); !ok {
		return nil, nil
	}
	return r.secrets.generated(ctx, generatedSecretRefs(b)...)
}

// published is the account and the key in a generated secret, empty if there is none.
func (r *reconciler) published(b *backupBucket, generated *corev1.Secret) (account, key string) {
	if p, ok := r.provider(&b.object).(accountProvider); ok && generated != nil {
		return p.published(generated)
	}
	return "", ""
}

// openStore opens the bucket of a BackupBucket with its credentials. It returns the generated secret, which may name the
// account, as well. The pass has a place at the store then.
func (r *reconciler) openStore(ctx context.Context, b *backupBucket, secret *corev1.Secret, want desired, old record, class passClass,
) (Store, *corev1.Secret, error) {
	generated, err := r.generated(ctx, b)
	if err != nil {
		return nil, nil, err
	}
	account, _ := r.published(b, generated)
	ref, err := storeRef(b, want, old, account)
	if err != nil {
		return nil, nil, err
	}
	store, err := r.provider(&b.object).openStore(ref, secret.Data)
	if err == nil {
		err = r.endpoints().enter(ctx, store.endpoint(), class)
	}
	return store, generated, credentialsError(err, secret)
}

// storeRef is where the bucket of a BackupBucket is; account is the one that its generated secret names, if any. It is an error
// if that is not known: credentials of a custom cloud must not go to the public one.
func storeRef(b *backupBucket, want desired, old record, account string) (bucketRef, error) {
	if want.err != nil && want.CloudUnknown && old.Cloud == "" && old.Policy.None() && b.GeneratedSecretRef.Name == "" {
		return bucketRef{}, &storeError{code: codeConfigurationProblem,
			err: fmt.Errorf("the cloud is not known: %w", errors.Join(want.err, errNotOurBucket))}
	}
	return bucketRef{
		Name: b.Name, Region: b.Region, Recorded: old.Policy, Created: old.Origin == originCreated, Cloud: want.Cloud,
		KeyExpirationDays: want.Rotation.ExpirationDays,
		// A secret that was lost or altered must not make us look into another account.
		Account: cmp.Or(old.Account, account),
	}, nil
}

// openObjects opens what lies in a bucket with the credentials of a BackupEntry.
func (r *reconciler) openObjects(o *object, bucket string, of record, secret *corev1.Secret) (Objects, error) {
	objects, err := r.provider(o).openObjects(bucketRef{Name: bucket, Region: o.Region, Recorded: of.Policy, Account: of.Account},
		secret.Data)
	return objects, credentialsError(err, secret)
}

// openContents opens what lies in the bucket of a BackupBucket with the credentials that are the cheapest: those of the
// generated secret, where there are any, for which the management plane need not be asked. It is nil until they exist.
func (r *reconciler) openContents(ctx context.Context, b *backupBucket, class passClass) (Objects, error) {
	secret, err := r.contentsSecret(ctx, b)
	if err != nil || secret == nil {
		return nil, err
	}
	return r.openContentsWith(ctx, b, secret, class)
}

// openContentsWith is openContents with a secret.
func (r *reconciler) openContentsWith(ctx context.Context, b *backupBucket, secret *corev1.Secret, class passClass) (Objects, error) {
	objects, err := r.openObjects(&b.object, b.Name, readRecord(b.ProviderStatus), secret)
	if err == nil {
		// The sweeps have a controller, and places, of their own.
		err = r.endpoints().enter(ctx, objects.endpoint(), class)
	}
	return objects, err
}

// contentsSecret reads the secret of openContents; nil until it exists.
func (r *reconciler) contentsSecret(ctx context.Context, b *backupBucket) (*corev1.Secret, error) {
	if _, ok := r.provider(&b.object).(accountProvider); ok {
		return r.generated(ctx, b)
	}
	return r.secrets.get(ctx, b.SecretRef)
}

// credentialsError names the secret in an error of a provider about the credentials.
func credentialsError(err error, secret *corev1.Secret) error {
	var credentials *configError
	var other *storeError
	if errors.As(err, &credentials) && !errors.As(err, &other) {
		return fmt.Errorf("secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	return err
}

// maxEventNote is events.k8s.io's limit for a note, in bytes.
const maxEventNote = 1024

func (r *reconciler) event(obj runtime.Object, eventType, reason, action, format string, args ...any) {
	note := fmt.Sprintf(format, args...)
	if len(note) > maxEventNote {
		note = strings.ToValidUTF8(note[:maxEventNote-3], "") + "..."
	}
	r.recorder.Eventf(obj, nil, eventType, reason, action, "%s", note)
}

func (r *reconciler) warn(obj runtime.Object, reason, action, format string, args ...any) {
	r.event(obj, corev1.EventTypeWarning, reason, action, format, args...)
}

func (r *reconciler) normal(obj runtime.Object, reason, action, format string, args ...any) {
	r.event(obj, corev1.EventTypeNormal, reason, action, format, args...)
}

// purged records what a purge did. A purge that ran out of time has a wait, after which the
// next pass goes on where it stopped.
func (r *reconciler) purged(ctx context.Context, obj commonObject, bucket string, result PurgeResult, err error) (time.Duration, error) {
	o := obj.common()
	r.metrics.purgedObjects.WithLabelValues(bucket).Add(float64(result.Deleted))
	r.metrics.purgedBytes.WithLabelValues(bucket).Add(float64(result.DeletedBytes))
	if result.Deleted > 0 {
		klog.FromContext(ctx).Info("Deleted objects", "bucket", bucket, "objects", result.Deleted, "bytes", result.DeletedBytes)
		r.normal(obj, "ObjectsDeleted", "Delete", "Deleted %d object versions (%s) from bucket %s", result.Deleted,
			formatBytes(result.DeletedBytes), bucket)
	}
	if err == nil && !result.Unfinished {
		return 0, nil
	}
	if err == nil || ctx.Err() != nil && result.Deleted > 0 {
		description := fmt.Sprintf("Deleted %d object versions in this pass, looked at %d so far, of which %d are retained",
			result.Deleted, result.Seen, result.Retained)
		return time.Second, r.resource.waiting(ctx, o, operationTypeDelete, description, nil)
	}
	r.metrics.purgeFailures.WithLabelValues(bucket).Inc()
	return 0, r.resource.failure(ctx, o, operationTypeDelete, err, nil)
}

func formatBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/1024, 0
	for value >= 1024 && i < len(units)-1 {
		value /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", value, units[i])
}

// dueDeletion reads and claims an object that is being deleted; ok is false if there is nothing to do, or not yet.
// operationType is what an operation on the object would be now.
func dueDeletion[T commonObject](ctx context.Context, r *reconciler, cached T, decode func(*unstructured.Unstructured) T,
	operationType func(T) operationType,
) (live T, ok bool, again time.Duration, err error) {
	o := cached.common()
	if !o.hasFinalizer(r.resource.finalizer) {
		return live, false, 0, nil
	}
	if wait := r.resource.controller.notDue(cache.MetaObjectToName(o), time.Now()); wait > 0 && o.operation() != operationReconcile {
		return live, false, wait, nil
	}
	u, err := r.resource.live(ctx, o)
	if err != nil || u == nil {
		return live, false, 0, err
	}
	live = decode(u)
	o = live.common()
	if operationType(live) != operationTypeDelete || o.operation() == operationWaitForState || !o.hasFinalizer(r.resource.finalizer) {
		// The cache lags; what the object is now comes as an event of its own.
		return live, false, 0, nil
	}
	err = r.resource.claim(ctx, o, true)
	return live, err == nil, 0, err
}
