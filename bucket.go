package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
)

const (
	finalizerBackupBucket = "extensions.gardener.cloud/backupbucket"

	// referencedRetry is how soon the deletion of a bucket that a BackupEntry still
	// refers to is tried again; it costs a request to the store.
	referencedRetry = 30 * time.Second

	// maxConvergeSteps bounds the changes of a policy in one pass: at most two are ever
	// needed, so a store that does not do what it says is found out.
	maxConvergeSteps = 3
)

// Condition types of a BackupBucket.
const (
	conditionImmutable = "BucketImmutable"
	conditionHardened  = "BucketHardened"
	// conditionWaiting is there, and True, only while a deletion waits.
	conditionWaiting = "DeletionWaiting"
)

// reconciler is what both resources need for a pass.
type reconciler struct {
	resource  *resourceClient
	secrets   *secrets
	cached   cache.Indexer
	scope *scope
	stores    stores
	recorder  events.EventRecorder
	metrics   *metrics
}

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
	if *err != nil {
		r.resource.controller.want(cache.MetaObjectToName(o))
	}
}

// releaseSecret removes our finalizer from the credentials, unless another object of the
// resource lives on them.
func (r *reconciler) releaseSecret(ctx context.Context, o *object) error {
	sharing, err := r.cached.ByIndex(indexSecret, o.SecretRef.String())
	if err != nil {
		return fmt.Errorf("looking up the users of secret %s: %w", o.SecretRef, err)
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
		going := live.LastOperation != nil && live.succeeded() && (live.LastOperation.Type == operationTypeDelete || live.LastOperation.Type == operationTypeMigrate)
		if live.hasFinalizer(r.resource.finalizer) && !going {
			return nil
		}
	}
	return r.secrets.release(ctx, o.SecretRef)
}

// storeKind is the kind of store that an object we are responsible for lies on.
func (r *reconciler) storeKind(o *object) storeKind { return r.scope.stores[o.Type] }

// credentialsError names the secret in an error of a storeOpener about the credentials.
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
		r.normal(obj, "ObjectsDeleted", "Delete", "Deleted %d object versions (%s) from bucket %s", result.Deleted, formatBytes(result.DeletedBytes), bucket)
	}
	if err == nil {
		return 0, nil
	}
	if ctx.Err() != nil && result.Deleted > 0 {
		description := fmt.Sprintf("Deleted %d object versions so far", result.Deleted)
		return time.Second, r.resource.waiting(ctx, o, operationTypeDelete, description, nil)
	}
	r.metrics.purgeFailures.WithLabelValues(bucket).Inc()
	return 0, r.resource.failure(ctx, o, operationTypeDelete, err, nil)
}

// retained describes what a purge has left.
func (result PurgeResult) retained() string {
	until := "; the store does not tell until when (a legal hold, for one, has no end)"
	if !result.RetainedUntil.IsZero() {
		until = " until " + result.RetainedUntil.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("retained%s", until)
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

// bucketReconciler owns the BackupBuckets.
type bucketReconciler struct {
	reconciler
	verifyInterval time.Duration
	// sweeps is the queue of buckets to sweep.
	sweeps *controller
	// entries are the informer's BackupEntries; entriesClient reads them live.
	entries       cache.Indexer
	entriesClient *resourceClient
}

// reconcile makes one pass over a BackupBucket: a full one if the object asks for it,
// else a verification against the cloud.
func (r *bucketReconciler) reconcile(ctx context.Context, key cache.ObjectName, wanted bool) (time.Duration, error) {
	obj, exists, err := r.cached.GetByKey(key.String())
	if err != nil || !exists {
		r.resource.controller.gone(key)
		return 0, err
	}
	cached, ok := obj.(*backupBucket)
	if !ok || !r.scope.responsible(&cached.object) {
		r.resource.controller.gone(key)
		return 0, nil
	}
	own := *cached
	b := &own
	if b.operation() == operationWaitForState {
		return r.verifyInterval, nil
	}
	if r.resource.controller.stale(&b.object) {
		return staleRetry, nil
	}
	if b.DeletionTimestamp != nil {
		return r.delete(ctx, b)
	}
	r.metrics.initBucket(b)
	// Whatever becomes of this pass, what was deleted before is to go.
	defer r.sweeps.queue.Add(key)
	if !r.needsWork(&b.object, wanted) && !r.scope.rotationRequested(&b.object) {
		return r.verify(ctx, b)
	}
	return r.ensure(ctx, b)
}

// bucketOperationType is the type of an operation on a BackupBucket, which knows no
// migration: the annotations migrate and restore count as reconcile.
func bucketOperationType(b *backupBucket) operationType {
	o := b.object
	o.ObjectMeta.Annotations = nil
	return computeOperationType(&o)
}

// wish is what a pass wants the bucket's policy to be.
type wish struct {
	desired, recorded Policy
	// config is the spec's, as far as it could be read; its cloud is the recorded one if
	// the spec names none.
	config bucketConfig
	// recordedCloud and recordedAccount are where the bucket was found.
	recordedCloud, recordedAccount string
	// err says why the spec cannot be carried out. The recorded policy is then still
	// defended: a broken spec must not open the door.
	err error
}

func (r *bucketReconciler) bucketWish(b *backupBucket) wish {
	status := recordedStatus(b.ProviderStatus)
	w := wish{recorded: recordedPolicy(b.ProviderStatus), recordedCloud: status.cloud(), recordedAccount: status.StorageAccount}
	w.config, w.err = parseConfig(providerConfigPath, r.storeKind(&b.object), b.Type, b.ProviderConfig)
	// Without spec.providerConfig, credentials of a custom cloud must not go to the public one.
	w.config.Cloud = cmp.Or(w.config.Cloud, w.recordedCloud)
	w.desired = w.config.Policy
	switch {
	case b.decodeErr != nil:
		w.err = configErrorf("the BackupBucket cannot be read: %v", b.decodeErr)
	case b.Region == "":
		w.err = configErrorf("spec.region is empty")
	}
	if w.err != nil {
		w.desired = w.recorded
	}
	return w
}

// openStore opens the bucket of a BackupBucket. On a store with accounts it reads the
// generated secret as well (nil if there is none), which may name the account.
func (r *bucketReconciler) openStore(ctx context.Context, b *backupBucket, secret *corev1.Secret, w wish) (Store, *corev1.Secret, error) {
	kind := r.storeKind(&b.object)
	ref := bucketRef{Name: b.Name, Region: b.Region, Recorded: w.recorded, Cloud: w.config.Cloud}
	if w.config.Rotation != nil {
		ref.KeyExpirationDays = w.config.Rotation.ExpirationDays
	}
	var generated *corev1.Secret
	if kind == storeAzure {
		var err error
		if generated, err = r.secrets.generated(ctx, generatedSecretRefs(b)...); err != nil {
			return nil, nil, err
		}
		// A secret that was lost must not make us look into another account.
		ref.Account = w.recordedAccount
		if generated != nil && len(generated.Data[dataKeyStorageAccount]) > 0 {
			ref.Account = string(generated.Data[dataKeyStorageAccount])
		}
		if w.err != nil && w.config.CloudUnknown && w.recordedCloud == "" && w.recorded.None() && b.GeneratedSecretRef.Name == "" {
			return nil, nil, &storeError{code: codeConfigurationProblem, err: fmt.Errorf("the cloud is not known: %w", errors.Join(w.err, errNotOurBucket))}
		}
	}
	store, err := r.stores[kind].openStore(ref, secret.Data)
	return store, generated, credentialsError(err, secret)
}

// ensure carries out the spec and writes the status.
func (r *bucketReconciler) ensure(ctx context.Context, b *backupBucket) (again time.Duration, err error) {
	opType := bucketOperationType(b)
	defer r.wantAgain(&b.object, &err)
	if err := r.resource.claim(ctx, &b.object, true); err != nil {
		return 0, err
	}
	w := r.bucketWish(b)
	if w.err != nil && w.recorded.None() {
		return r.verifyInterval, r.resource.failure(ctx, &b.object, opType, w.err, nil)
	}
	if w.err == nil {
		setPolicyGauges(r.metrics.bucketDesiredLocked, r.metrics.bucketDesiredRetention, b.Name, w.desired)
	}
	p := &bucketPass{bucketReconciler: r, b: b, wish: w, full: true,
		start: sync.OnceValue(func() error {
			return r.resource.processing(ctx, &b.object, opType, "Reconciling the bucket")
		})}
	err = p.run(ctx)
	refused := r.reportRefusal(ctx, b, err, opType)
	extra := p.statusFields()
	if err != nil {
		failure := r.resource.failure(ctx, &b.object, opType, err, extra)
		if failure == err && (refused || err == w.err) {
			// Told, and nothing to retry until the spec changes; the lock is still verified.
			return r.verifyInterval, err
		}
		return 0, failure
	}
	if err := r.resource.success(ctx, &b.object, opType, "The bucket is as desired: "+p.live.Policy.String(), extra); err != nil {
		return 0, err
	}
	return r.verifyInterval, nil
}

// reportRefusal says whether err is a refusal, and tells of a new one.
func (r *bucketReconciler) reportRefusal(ctx context.Context, b *backupBucket, err error, opType operationType) bool {
	var refused *Refusal
	if !errors.As(err, &refused) {
		return false
	}
	if r.refusalIsNew(b, err, opType) {
		r.metrics.refusals.WithLabelValues(b.Name, refused.Reason).Inc()
		klog.FromContext(ctx).Info("Refused to weaken the bucket", "reason", refused.Reason, "message", refused.Message)
		r.warn(b, "WeakeningRefused", "Reconcile", "%s", refused.Message)
	}
	return true
}

// refusalIsNew says that this is not just the same refused spec looked at again.
func (r *bucketReconciler) refusalIsNew(b *backupBucket, err error, opType operationType) bool {
	last := b.LastOperation
	return last == nil || last.State != stateError || b.ObservedGeneration != b.Generation ||
		last.Description != failureDescription(r.resource.kind, b.Name, opType, err)
}

// verify asks the cloud, repairs drift and writes nothing if nothing is new. It never
// carries out a spec that no reconcile has seen.
func (r *bucketReconciler) verify(ctx context.Context, b *backupBucket) (time.Duration, error) {
	if b.Generation != b.ObservedGeneration {
		err := r.defend(ctx, b)
		if err != nil && !errors.Is(err, errNotDefended) {
			return 0, err
		}
		return r.verifyInterval, err
	}
	w := r.bucketWish(b)
	if w.err == nil {
		setPolicyGauges(r.metrics.bucketDesiredLocked, r.metrics.bucketDesiredRetention, b.Name, w.desired)
	}
	p := &bucketPass{bucketReconciler: r, b: b, wish: w, start: func() error { return nil }}
	if err := p.run(ctx); err != nil {
		if isTransient(err) {
			return 0, err
		}
		r.reportRefusal(ctx, b, err, operationTypeReconcile)
		return 0, r.resource.failure(ctx, &b.object, operationTypeReconcile, err, p.statusFields())
	}
	// A lock that was set before our time, or what others did to the bucket since the last
	// reconcile.
	fields := p.statusFields()
	if len(b.Conditions) == 0 {
		delete(fields, "conditions")
	}
	if len(fields) == 0 {
		return r.verifyInterval, nil
	}
	_, err := r.resource.patch(ctx, &b.object, map[string]any{"status": fields}, "status")
	return r.verifyInterval, ignoreNotFound(err)
}

// defend verifies a bucket whose spec is not to be carried out: it has changed without a
// reconcile, or the bucket is being deleted. What was recorded is still restored.
func (r *bucketReconciler) defend(ctx context.Context, b *backupBucket) error {
	w := r.bucketWish(b)
	w.desired, w.err = w.recorded, nil
	p := &bucketPass{bucketReconciler: r, b: b, defendOnly: true, wish: w, start: func() error { return nil }}
	err := p.run(ctx)
	conditions, ok := p.statusFields()["conditions"].([]condition)
	if !ok || len(b.Conditions) == 0 {
		return err
	}
	_, patchErr := r.resource.patch(ctx, &b.object, map[string]any{"status": map[string]any{"conditions": conditions}}, "status")
	if patchErr == nil {
		b.Conditions = conditions
	}
	return errors.Join(err, ignoreNotFound(patchErr))
}

// bucketPass is one pass over one bucket; it lives no longer than that.
type bucketPass struct {
	*bucketReconciler
	b    *backupBucket
	wish wish
	// full passes harden the bucket too; those that only defend change nothing but the
	// policy of the bucket that a reconcile has left.
	full, defendOnly bool
	// start is called before the first change in the cloud.
	start func() error

	observed bool
	live     BucketState
	gaps     []string
	hardened bool
	recorded Policy
	// generated is the generated secret, nil if there is none.
	generated *corev1.Secret
}

// run compares the bucket with the wish and changes it until they agree. What it
// returns as error after the policy is as wished may be the wish's own error.
func (p *bucketPass) run(ctx context.Context) error {
	p.recorded = p.wish.recorded
	secret, err := p.secrets.get(ctx, p.b.SecretRef)
	if err != nil {
		return err
	}
	if !p.secrets.held(secret) {
		if p.defendOnly {
			return errNotDefended
		}
		if err := p.start(); err != nil {
			return err
		}
		if err := p.secrets.hold(ctx, secret); err != nil {
			return err
		}
	}
	store, generated, err := p.openStore(ctx, p.b, secret, p.wish)
	if err != nil {
		return err
	}
	p.generated = generated
	if err := p.observe(ctx, store); err != nil {
		return err
	}
	existed, was := p.live.Exists, p.live.Policy
	plan := p.plan()
	if !existed {
		if p.defendOnly {
			return errNotDefended
		}
		if err := p.create(ctx, store, len(plan.Steps) > 0); err != nil {
			return err
		}
		p.reportLoss(ctx)
		if err := p.observe(ctx, store); err != nil {
			return err
		}
	}
	// The policy comes before everything that could fail without need.
	if err := p.converge(ctx, store); err != nil {
		if p.drifted(plan) {
			return fmt.Errorf("the store says %s of a bucket that should have a %s, which could not be restored: %w", was, p.expected(), err)
		}
		return err
	}
	if existed && p.drifted(plan) {
		p.reportDrift(ctx, was)
	}
	if p.full || !existed {
		if p.gaps, err = store.Harden(ctx); err != nil {
			return err
		}
		p.hardened = true
	}
	if account, ok := store.(accountStore); ok && !p.defendOnly && (p.full || !existed || p.keyDue()) {
		if err := p.ensureKeys(ctx, account); err != nil {
			return err
		}
	}
	// What a wish that is not the spec's would weaken is no fault of the spec.
	if p.wish.err == nil && !p.defendOnly && plan.Refusal != nil {
		return plan.Refusal
	}
	return p.wish.err
}

// errNotDefended says that a pass that only defends found something that only a
// reconcile may change: a spec that nobody has asked to carry out may name another secret
// or region.
var errNotDefended = errors.New("the bucket cannot be verified: with the secret and region of a spec that was not reconciled since it changed, or that is being deleted, there is no such bucket, or the secret was never used")

func (p *bucketPass) observe(ctx context.Context, store Store) error {
	state, err := store.Observe(ctx)
	if err != nil {
		return err
	}
	p.live, p.observed = state, true
	if state.Extensions != nil {
		p.metrics.bucketExtensions.WithLabelValues(p.b.Name).Set(float64(*state.Extensions))
	}
	setPolicyGauges(p.metrics.bucketLocked, p.metrics.bucketRetention, p.b.Name, state.Policy)
	p.metrics.bucketLastVerified.WithLabelValues(p.b.Name).SetToCurrentTime()
	return nil
}

// expected is the policy that the bucket should have had before this pass.
func (p *bucketPass) expected() Policy {
	if !p.full && p.wish.recorded.None() {
		return p.wish.desired
	}
	return p.wish.recorded
}

// drifted says that somebody changed the policy behind our back: it is weaker than
// recorded, or not what the last reconcile had left.
func (p *bucketPass) drifted(plan policyPlan) bool {
	return plan.Drift || !p.full && len(plan.Steps) > 0
}

// reportLoss tells that a bucket that was just created had been there before.
func (p *bucketPass) reportLoss(ctx context.Context) {
	if !p.b.succeeded() && p.wish.recorded.None() {
		return
	}
	p.metrics.bucketDrift.WithLabelValues(p.b.Name).Inc()
	klog.FromContext(ctx).Info("The bucket was gone, it was created anew", "expected", p.expected().String())
	p.warn(p.b, "BucketLost", "Verify", "The bucket was gone from the store with all backups in it; it was created anew")
}

// reportDrift tells of drift that this pass has repaired.
func (p *bucketPass) reportDrift(ctx context.Context, was Policy) {
	p.metrics.bucketDrift.WithLabelValues(p.b.Name).Inc()
	klog.FromContext(ctx).Info("The bucket's policy had been changed behind our back, it was restored", "expected", p.expected().String(), "found", was.String())
	p.warn(p.b, "PolicyDrift", "Verify", "The bucket should have a %s, the store said %s; it was restored", p.expected(), was)
}

func (p *bucketPass) create(ctx context.Context, store Store, immutable bool) error {
	if err := p.start(); err != nil {
		return err
	}
	if err := store.Create(ctx, immutable); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Created the bucket", "region", p.b.Region, "immutable", immutable)
	p.normal(p.b, "BucketCreated", "Create", "Created bucket %s in region %s", p.b.Name, p.b.Region)
	return nil
}

// plan is what the policy needs now.
func (p *bucketPass) plan() policyPlan {
	plan := planPolicy(p.wish.desired, p.live.Policy, p.wish.recorded)
	if p.extends(plan) && p.live.Extensions != nil && *p.live.Extensions == 0 {
		return policyPlan{Refusal: refuseExtension(plan.Steps[0].Policy, p.live.Policy)}
	}
	if p.live.Appends && !p.live.Policy.Locked && !p.live.Policy.None() && p.live.Policy == p.wish.desired {
		// Setting it anew switches protected append writes off, which we never allow.
		plan.Steps = []Step{{Policy: p.wish.desired}}
	}
	return plan
}

// extends says that the next step extends a locked policy.
func (p *bucketPass) extends(plan policyPlan) bool {
	return len(plan.Steps) > 0 && plan.Steps[0].Lock && p.live.Policy.Locked
}

// converge changes the policy one step at a time. After each step the cloud is asked
// again, so a policy is locked only after it was read back, and on its current state.
func (p *bucketPass) converge(ctx context.Context, store Store) error {
	for range maxConvergeSteps {
		plan := p.plan()
		if len(plan.Steps) == 0 {
			p.record(plan)
			return nil
		}
		if err := p.start(); err != nil {
			return err
		}
		step := plan.Steps[0]
		if err := p.apply(ctx, store, step); err != nil {
			return err
		}
		before := p.recorded
		if plan.Refusal == nil {
			p.recorded = step.Policy
		}
		if err := p.readBack(ctx, store); err != nil {
			return err
		}
		if p.live.Policy != step.Policy {
			p.recorded = before
		}
	}
	return configErrorf("the store does not keep the policy it was given: it answers %s, wanted is %s", p.live.Policy, p.wish.desired)
}

// keyDue says, without a request to the store, that the access keys need a look.
func (p *bucketPass) keyDue() bool {
	if p.generated == nil || len(p.generated.Data[dataKeyStorageKey]) == 0 || p.b.GeneratedSecretRef.Name == "" {
		return true
	}
	created := keyCreated(p.generated)
	p.setKeyCreated(created)
	rotation := p.wish.config.Rotation
	return rotation != nil && rotation.due(created, time.Now())
}

// keyCreated is when the key that a generated secret publishes was created; zero if that
// is not known.
func keyCreated(generated *corev1.Secret) time.Time {
	created, err := time.Parse(time.RFC3339, generated.Annotations[annotationKeyCreated])
	if err != nil {
		return time.Time{}
	}
	return created
}

func (p *bucketPass) setKeyCreated(created time.Time) {
	p.metrics.bucketKeyRotations.WithLabelValues(p.b.Name)
	if created.IsZero() {
		p.metrics.bucketKeyCreated.DeleteLabelValues(p.b.Name)
		return
	}
	p.metrics.bucketKeyCreated.WithLabelValues(p.b.Name).Set(float64(created.Unix()))
}

// ensureKeys publishes the youngest access key of the account in the generated secret, and
// rotates the keys if that is due. The request for a rotation is taken back after the
// rotation and before the key is published: whenever the daemon stops in between, the next
// pass sees a secret that lags and only publishes.
func (p *bucketPass) ensureKeys(ctx context.Context, store accountStore) error {
	keys, err := store.Keys(ctx)
	if err != nil {
		return err
	}
	published := ""
	if p.generated != nil {
		published = string(p.generated.Data[dataKeyStorageKey])
		for i := range keys {
			// Of a key that we have regenerated ourselves we know what Azure does not tell.
			if keys[i].Value == published && keys[i].Created.IsZero() {
				keys[i].Created = keyCreated(p.generated)
			}
		}
	}
	requested := p.scope.rotationRequested(&p.b.object)
	publish, regenerate := planKeys(keys, published, p.wish.config.Rotation, requested, time.Now())
	if regenerate != "" {
		if err := p.start(); err != nil {
			return err
		}
		// A cache that lags shows requests that were carried out already; the key that
		// would go now is the one that every cluster uses.
		if requested, err = p.rotationStillRequested(ctx); err != nil {
			return err
		}
		publish, regenerate = planKeys(keys, published, p.wish.config.Rotation, requested, time.Now())
	}
	if regenerate != "" {
		if publish, err = p.regenerateKey(ctx, store, regenerate); err != nil {
			return err
		}
	}
	if publish.Value == "" {
		return configErrorf("the storage account of bucket %s has no access key that could be published", p.b.Name)
	}
	if requested {
		// With an optimistic lock: the client may ask for the next rotation meanwhile.
		_, err := p.resource.patch(ctx, &p.b.object, map[string]any{"metadata": map[string]any{
			"annotations": map[string]any{annotationRotate: nil}, "resourceVersion": p.b.ResourceVersion}})
		if err != nil {
			return err
		}
	}
	data := store.EntryCredentials(publish)
	if p.generated == nil || publish.Value != published {
		if err := p.start(); err != nil {
			return err
		}
	}
	generated, err := p.secrets.publish(ctx, p.b, p.generated, data, publish.Created)
	if err != nil {
		return err
	}
	p.generated = generated
	p.setKeyCreated(publish.Created)
	return nil
}

// rotationStillRequested reads the request for a rotation from the API server.
func (p *bucketPass) rotationStillRequested(ctx context.Context) (bool, error) {
	u, err := p.resource.live(ctx, &p.b.object)
	if err != nil {
		return false, err
	}
	if u == nil || u.GetDeletionTimestamp() != nil {
		return false, apierrors.NewConflict(bucketsGVR.GroupResource(), p.b.Name, errors.New("it is gone or going"))
	}
	live := decodeBucket(u)
	p.b.ResourceVersion, p.b.Annotations = live.ResourceVersion, live.Annotations
	return p.scope.rotationRequested(&live.object), nil
}

// regenerateKey replaces a key that was read just before and returns the new one.
func (p *bucketPass) regenerateKey(ctx context.Context, store accountStore, name string) (accessKey, error) {
	keys, err := store.RegenerateKey(ctx, name)
	if err != nil {
		return accessKey{}, err
	}
	p.metrics.bucketKeyRotations.WithLabelValues(p.b.Name).Inc()
	klog.FromContext(ctx).Info("Regenerated an access key of the storage account", "key", name)
	p.normal(p.b, "KeyRotated", "Rotate", "Regenerated access key %s of the storage account of bucket %s; it is published instead of the other one, which stays valid", name, p.b.Name)
	i := slices.IndexFunc(keys, func(key accessKey) bool { return key.Name == name })
	if i < 0 {
		return accessKey{}, nil
	}
	if keys[i].Created.IsZero() {
		keys[i].Created = time.Now()
	}
	return keys[i], nil
}

// readBackDelays are the pauses between reads of a changed policy: S3 may answer with the
// old one for a while ("bucket configurations have an eventual consistency model",
// docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html#ConsistencyModel).
var readBackDelays = []time.Duration{250 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}

// readBack observes the bucket until its policy is another one than before.
func (p *bucketPass) readBack(ctx context.Context, store Store) error {
	before := p.live
	for i := 0; ; i++ {
		if err := p.observe(ctx, store); err != nil || p.live.Policy != before.Policy || p.live.Appends != before.Appends || i == len(readBackDelays) {
			return err
		}
		select {
		case <-time.After(readBackDelays[i]):
		case <-ctx.Done():
			return fmt.Errorf("reading back the policy of bucket %s: %w", p.b.Name, ctx.Err())
		}
	}
}

func (p *bucketPass) apply(ctx context.Context, store Store, step Step) error {
	logger := klog.FromContext(ctx)
	if !step.Lock {
		if err := store.SetPolicy(ctx, step.Policy); err != nil {
			return err
		}
		logger.Info("Set the bucket's policy", "was", p.live.Policy.String(), "policy", step.Policy.String())
		p.normal(p.b, "PolicySet", "Reconcile", "The policy of bucket %s was: %s; now: %s", p.b.Name, p.live.Policy, step.Policy)
		return nil
	}
	if err := store.LockPolicy(ctx, step.Policy); err != nil {
		return err
	}
	p.metrics.bucketLocks.WithLabelValues(p.b.Name).Inc()
	logger.Info("Locked the bucket's policy", "was", p.live.Policy.String(), "policy", step.Policy.String())
	p.normal(p.b, "PolicyLocked", "Reconcile", "The policy of bucket %s was: %s; now: %s", p.b.Name, p.live.Policy, step.Policy)
	if p.live.Policy.Locked && p.live.Extensions != nil && *p.live.Extensions == 1 {
		p.warn(p.b, "LastExtension", "Reconcile", "The policy of bucket %s was extended to %s; that was the last extension that the store allows", p.b.Name, step.Policy.Hours())
	}
	return nil
}

// record keeps what is ours once the policy has converged.
func (p *bucketPass) record(plan policyPlan) {
	switch {
	case plan.Refusal != nil:
		// A lock that we found is defended from now on, too.
		if !p.recorded.Locked && p.live.Policy.Locked {
			p.recorded = p.live.Policy
		}
	case p.wish.desired == p.live.Policy:
		p.recorded = p.live.Policy
	default:
		// Nothing is desired and what is there is not ours.
		p.recorded = Policy{}
	}
}

// statusFields are the status fields that follow from what was seen.
func (p *bucketPass) statusFields() map[string]any {
	fields := map[string]any{}
	cloud, account := p.wish.recordedCloud, p.wish.recordedAccount
	if p.observed {
		cloud = p.wish.config.Cloud
		if p.generated != nil {
			account = string(p.generated.Data[dataKeyStorageAccount])
		}
	}
	if p.recorded != p.wish.recorded || cloud != p.wish.recordedCloud || account != p.wish.recordedAccount {
		fields["providerStatus"] = providerStatus(p.storeKind(&p.b.object), p.b.Type, p.recorded, cloud, account)
	}
	if p.generated != nil {
		if ref := (types.NamespacedName{Namespace: p.generated.Namespace, Name: p.generated.Name}); ref != p.b.GeneratedSecretRef {
			fields["generatedSecretRef"] = map[string]any{"namespace": ref.Namespace, "name": ref.Name}
		}
	}
	if !p.observed {
		return fields
	}
	wanted := []condition{p.immutableCondition()}
	if p.hardened {
		wanted = append(wanted, hardenedCondition(p.gaps))
	}
	if conditions, changed := mergeConditions(p.b.Conditions, time.Now(), wanted...); changed {
		fields["conditions"] = conditions
	}
	return fields
}

func (p *bucketPass) immutableCondition() condition {
	// True only if it can't be undone.
	c := condition{Type: conditionImmutable, Status: "True", Reason: "Locked"}
	switch {
	case !p.live.Exists:
		c.Status, c.Reason, c.Message = "False", "NoBucket", "The bucket does not exist."
		return c
	case p.live.Policy.None():
		c.Status, c.Reason = "False", "NoPolicy"
	case !p.live.Policy.Locked:
		c.Status, c.Reason = "False", "Unlocked"
	}
	c.Message = fmt.Sprintf("The store says: %s.", p.live.Policy)
	if !p.live.Policy.None() && p.wish.desired.None() && p.recorded.None() {
		c.Message += " It was not set by bucketwarden and is left alone."
	}
	return c
}

func hardenedCondition(gaps []string) condition {
	if len(gaps) == 0 {
		return condition{Type: conditionHardened, Status: "True", Reason: "Hardened", Message: "Encryption, public access block and TLS-only access are in place."}
	}
	return condition{Type: conditionHardened, Status: "False", Reason: "Gaps", Message: strings.Join(gaps, " ")}
}

// bucketStatus is status.providerStatus. gardenlet copies it into every BackupEntry and
// reconciles them all when it changes, so it holds only facts that rarely do.
type bucketStatus struct {
	configHeader
	// Not omitempty: in a merge patch only null removes what was there.
	Immutability       *s3Immutability     `json:"immutability"`
	CloudConfiguration *cloudConfiguration `json:"cloudConfiguration"`
	StorageAccount     string              `json:"storageAccount,omitempty"`
}

func (s *bucketStatus) cloud() string {
	if s.CloudConfiguration == nil {
		return ""
	}
	return s.CloudConfiguration.Name
}

const bucketStatusKind = "BackupBucketStatus"

// providerStatus records the policy that we set, the cloud if the spec names it, and the
// storage account; null if there is nothing.
func providerStatus(kind storeKind, providerType string, p Policy, cloud, account string) any {
	if p.None() && cloud == "" && account == "" {
		return nil
	}
	status := bucketStatus{
		configHeader:   configHeader{APIVersion: providerType + providerGroupSuffix + "/v1alpha1", Kind: bucketStatusKind},
		StorageAccount: account,
	}
	if cloud != "" {
		status.CloudConfiguration = &cloudConfiguration{Name: cloud}
	}
	if p.None() {
		return status
	}
	status.Immutability = &s3Immutability{immutabilityConfig: immutabilityConfig{RetentionType: "bucket", RetentionPeriod: p.Hours(), Locked: &p.Locked}}
	if kind == storeS3 {
		status.Immutability.Mode = modeGovernance
		if p.Locked {
			status.Immutability.Mode = modeCompliance
		}
	}
	return status
}

// recordedStatus decodes providerStatus; empty if it is not ours.
func recordedStatus(raw []byte) (status bucketStatus) {
	if len(raw) == 0 || json.Unmarshal(raw, &status) != nil || status.Kind != bucketStatusKind {
		return bucketStatus{}
	}
	return status
}

// recordedPolicy reads back what providerStatus recorded. Whatever another controller
// left there is no record of ours.
func recordedPolicy(raw []byte) Policy {
	policy, err := recordedStatus(raw).Immutability.policy(providerConfigPath, max(s3MaxRetentionDays, azureMaxRetentionDays))
	if err != nil {
		return Policy{}
	}
	return policy
}

// delete deletes the bucket with everything that is in it, once no BackupEntry refers
// to it and nothing in it is retained.
func (r *bucketReconciler) delete(ctx context.Context, cached *backupBucket) (time.Duration, error) {
	if !cached.hasFinalizer(finalizerBackupBucket) {
		return 0, nil
	}
	key := cache.MetaObjectToName(cached)
	if wait := r.resource.controller.notDue(key, time.Now()); wait > 0 && cached.operation() != operationReconcile {
		return wait, nil
	}
	u, err := r.resource.live(ctx, &cached.object)
	if err != nil || u == nil {
		return 0, err
	}
	b := decodeBucket(u)
	if b.DeletionTimestamp == nil || b.operation() == operationWaitForState || !b.hasFinalizer(finalizerBackupBucket) {
		// The cache lags; what the object is now comes as an event of its own.
		return 0, nil
	}
	if err := r.resource.claim(ctx, &b.object, true); err != nil {
		return 0, err
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
		}
		r.sweeps.queue.Add(key)
		return r.wait(ctx, b, opType, "InUse", fmt.Sprintf("The bucket is kept as long as BackupEntries refer to it, such as %s", user), min(referencedRetry, r.verifyInterval))
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

// neverReady says that the creation of a BackupBucket has never succeeded.
func (b *backupBucket) neverReady() bool {
	return b.LastOperation == nil || b.LastOperation.Type == operationTypeCreate && !b.succeeded()
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
	store, _, err := r.openStore(ctx, b, secret, r.bucketWish(b))
	var unopened *storeError
	if errors.As(err, &unopened) && b.neverReady() {
		// Such as a cloud that does not exist: nothing was ever created there.
		return nil, BucketState{}, r.bucketLeft(ctx, b, err)
	}
	if err == nil {
		var state BucketState
		if state, err = store.Observe(ctx); err == nil && (state.Exists || state.Remains) {
			return store, state, nil
		}
	}
	if errors.Is(err, errNotOurBucket) {
		err = r.bucketLeft(ctx, b, err)
	}
	return nil, BucketState{}, err
}

// deleteGeneratedSecret deletes the generated secret of a bucket that is gone.
func (r *bucketReconciler) deleteGeneratedSecret(ctx context.Context, b *backupBucket) error {
	if r.storeKind(&b.object) != storeAzure {
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
		if err := r.secrets.deleteGenerated(ctx, generated); err != nil {
			return err
		}
	}
	return nil
}

// accountRetry is how soon the deletion of a resource group is looked at again.
const accountRetry = 10 * time.Second

// deleteAccount deletes what a bucket that is gone has lain in, if the store has that.
func (r *bucketReconciler) deleteAccount(ctx context.Context, b *backupBucket, store Store, opType operationType) (time.Duration, error) {
	account, ok := store.(accountStore)
	if !ok {
		return 0, nil
	}
	state, err := account.DeleteAccount(ctx)
	if err != nil {
		return 0, r.resource.failure(ctx, &b.object, opType, err, nil)
	}
	if state.Started {
		r.metrics.accountsDeleted.Inc()
		klog.FromContext(ctx).Info("Deleting the resource group")
		r.normal(b, "ResourceGroupDeleted", "Delete", "Deleting resource group %s with the storage account of bucket %s", b.Name, b.Name)
	}
	if state.Started || state.Deleting {
		return r.wait(ctx, b, opType, "ResourceGroup", "The bucket is deleted, its resource group is being deleted", accountRetry)
	}
	if state.Kept != "" {
		klog.FromContext(ctx).Info("Kept the resource group or storage account", "reason", state.Kept)
		r.warn(b, "ResourceGroupKept", "Delete", "The bucket is deleted, but: %s", state.Kept)
	}
	return 0, nil
}

// wait lets a deletion wait, without any request until then.
func (r *bucketReconciler) wait(ctx context.Context, b *backupBucket, opType operationType, reason, description string, after time.Duration) (time.Duration, error) {
	r.resource.controller.waitUntil(cache.MetaObjectToName(b), time.Now().Add(after))
	var extra map[string]any
	waiting := condition{Type: conditionWaiting, Status: "True", Reason: reason, Message: description + "."}
	if conditions, changed := mergeConditions(b.Conditions, time.Now(), waiting); changed {
		extra = map[string]any{"conditions": conditions}
	}
	return after, r.resource.waiting(ctx, &b.object, opType, description, extra)
}

// waitForRetention lets the deletion of a bucket wait for what a purge has left in it.
func (r *bucketReconciler) waitForRetention(ctx context.Context, b *backupBucket, result PurgeResult) (time.Duration, error) {
	r.metrics.setTombstones(b.Name, 0, result.Retained, result.RetainedBytes, result.RetainedUntil)
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
	description := fmt.Sprintf("%d objects (%s) in bucket %s are %s", result.Retained, formatBytes(result.RetainedBytes), b.Name, result.retained())
	return r.wait(ctx, b, operationTypeDelete, "ObjectsRetained", description, after)
}

// bucketLeft tells that a BackupBucket goes and a bucket of its name may stay.
func (r *bucketReconciler) bucketLeft(ctx context.Context, b *backupBucket, reason error) error {
	klog.FromContext(ctx).Info("Released the BackupBucket without deleting a bucket", "reason", reason.Error())
	r.warn(b, "BucketLeft", "Delete", "The BackupBucket is released, no bucket was deleted: %v", reason)
	return nil
}

func (r *bucketReconciler) deleteEmpty(ctx context.Context, b *backupBucket, store Store) error {
	if err := store.Delete(ctx); err != nil {
		return err
	}
	r.metrics.bucketsDeleted.Inc()
	klog.FromContext(ctx).Info("Deleted the bucket")
	r.normal(b, "BucketDeleted", "Delete", "Deleted bucket %s", b.Name)
	return nil
}

// deleteUnused deletes the bucket of a BackupBucket that never got ready, if it is empty.
// It may be one that was there before and could not be adopted: what is in it is not ours.
func (r *bucketReconciler) deleteUnused(ctx context.Context, b *backupBucket) (time.Duration, error) {
	fail := func(err error) (time.Duration, error) {
		return 0, r.resource.failure(ctx, &b.object, operationTypeCreate, fmt.Errorf("deleting it failed: %w", err), nil)
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

// deleteBucket deletes the bucket with everything that is in it.
func (r *bucketReconciler) deleteBucket(ctx context.Context, b *backupBucket) (time.Duration, error) {
	fail := func(err error) (time.Duration, error) {
		return 0, r.resource.failure(ctx, &b.object, operationTypeDelete, err, nil)
	}
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
		result, purgeErr := store.Purge(ctx, "", func(context.Context) error { return r.checkUnreferred(b) })
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

// checkUnreferred looks into the cache for a BackupEntry that came since the deletion of
// the bucket began.
func (r *bucketReconciler) checkUnreferred(b *backupBucket) error {
	for _, obj := range r.entries.List() {
		if e, ok := obj.(*backupEntry); ok && e.BucketName == b.Name {
			return &prefixInUseError{entry: e.Name}
		}
	}
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
		if i := slices.IndexFunc(page.Items, func(u unstructured.Unstructured) bool { return decodeEntry(&u).BucketName == bucket }); i >= 0 {
			return page.Items[i].GetName(), nil
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return "", nil
		}
	}
}
