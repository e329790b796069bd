// A BackupBucket: ensured and verified. A pass compares what the spec asks for (desired), what we remember (old) and
// what the cloud says (live), and changes one thing at a time, with a look at the cloud after each. passKind says what
// a pass may do; every kind of pass restores a lock that was recorded. The policy (bucket_policy.go) comes before
// everything that could fail without need, and only what the cloud has confirmed is recorded (bucket_status.go).

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
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	finalizerBackupBucket = "extensions.gardener.cloud/backupbucket"

	// referencedRetry is how soon the deletion of a bucket that a BackupEntry still
	// refers to is tried again; it costs a request to the store.
	referencedRetry = 30 * time.Second

	// defaultSweepInterval is how often the tombstones in a bucket are looked at without --verify-interval.
	defaultSweepInterval = 10 * time.Minute
)

// bucketReconciler owns the BackupBuckets.
type bucketReconciler struct {
	reconciler
	// verifyInterval is --verify-interval, zero if each store has its own.
	verifyInterval time.Duration
	// sweeps is the queue of buckets to sweep.
	sweeps *controller
	// tellings are the changes behind our back that were told.
	tellings tellings
	// evidence is what passes leave for the evidence of their buckets; nil without --evidence. askEvidence has it written if it is due.
	evidence    *evidenceLog
	askEvidence func(*backupBucket)
	// entries are the informer's BackupEntries; entriesClient reads them live.
	entries       cache.Indexer
	entriesClient *resourceClient
	// retention keeps the versions in the buckets; nil if nobody should.
	retention *retentionKeeper
}

// reconcile makes one pass over a BackupBucket: a full one if the object asks for it,
// else a verification against the cloud.
func (r *bucketReconciler) reconcile(ctx context.Context, key cache.ObjectName, wanted bool) (again time.Duration, err error) {
	defer func() { r.metrics.facts.failed(key.Name, err) }()
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
	r.showExpected(b)
	r.begin(b)
	if b.operation() == operationWaitForState {
		return r.interval(b), nil
	}
	if r.resource.controller.stale(&b.object) {
		return staleRetry, nil
	}
	r.metrics.initBucket(b)
	if r.askEvidence != nil && b.DeletionTimestamp != nil {
		r.askEvidence(cached)
	} else if r.askEvidence != nil {
		defer r.askEvidence(cached)
	}
	if b.DeletionTimestamp != nil {
		return r.delete(ctx, b)
	}
	// Whatever becomes of this pass, what was deleted before is to go.
	full := r.needsWork(&b.object, wanted) || r.scope.rotationRequested(&b.object)
	defer r.askSweep(key, full)
	if !full {
		return r.verify(ctx, b)
	}
	return r.ensure(ctx, b)
}

// askSweep has the tombstones in a bucket looked at if that is due, or at once.
func (r *bucketReconciler) askSweep(key cache.ObjectName, now bool) {
	if now || r.sweeps.notDue(key, time.Now()) == 0 {
		r.sweeps.queue.Add(key)
	}
}

// interval is how often a bucket is verified.
func (r *bucketReconciler) interval(b *backupBucket) time.Duration {
	return cmp.Or(r.verifyInterval, r.provider(&b.object).verifyInterval())
}

// sweepInterval is how often the tombstones in a bucket are looked at, if none becomes due before.
func (r *bucketReconciler) sweepInterval() time.Duration {
	return cmp.Or(r.verifyInterval, defaultSweepInterval)
}

// bucketOperationType is the type of an operation on a BackupBucket, which knows no
// migration: the annotations migrate and restore count as reconcile.
func bucketOperationType(b *backupBucket) operationType {
	o := b.object
	o.ObjectMeta.Annotations = nil
	return computeOperationType(&o)
}

// ensure carries out the spec and writes the status.
func (r *bucketReconciler) ensure(ctx context.Context, b *backupBucket) (again time.Duration, err error) {
	opType := bucketOperationType(b)
	defer r.wantAgain(&b.object, &err)
	if err := r.resource.claim(ctx, &b.object, true); err != nil {
		return 0, err
	}
	p := r.newPass(ctx, b, passEnsure)
	if p.desired.err != nil && p.old.Policy.None() {
		return r.interval(b), r.resource.failure(ctx, &b.object, opType, p.desired.err, nil)
	}
	p.start = sync.OnceValue(func() error {
		return r.resource.processing(ctx, &b.object, opType, "Reconciling the bucket")
	})
	err = p.run(ctx)
	refused := r.reportRefusal(ctx, b, err, opType)
	extra := p.statusFields()
	if err != nil {
		failure := r.resource.failure(ctx, &b.object, opType, err, extra)
		if failure == err && (refused || err == p.desired.err) {
			// Told, and nothing to retry until the spec changes; the lock is still verified.
			return r.interval(b), err
		}
		return 0, failure
	}
	if err := r.followSecret(ctx, &b.object); err != nil {
		return 0, r.resource.failure(ctx, &b.object, opType, err, extra)
	}
	if err := r.resource.success(ctx, &b.object, opType, p.succeeded(), extra); err != nil {
		return 0, err
	}
	return p.interval(), nil
}

// succeeded describes what a pass that succeeded has found.
func (p *bucketPass) succeeded() string {
	if p.foreign() {
		return "The bucket is as desired, and more, which somebody else has set: " + p.live.Policy.String()
	}
	return "The bucket is as desired: " + p.live.Policy.String()
}

// verify asks the cloud, repairs drift and writes nothing if nothing is new. It never
// carries out a spec that no reconcile has seen.
func (r *bucketReconciler) verify(ctx context.Context, b *backupBucket) (time.Duration, error) {
	if b.Generation != b.ObservedGeneration {
		err := r.defend(ctx, b)
		if err != nil && !errors.Is(err, errNotDefended) {
			return 0, err
		}
		return r.interval(b), err
	}
	p := r.newPass(ctx, b, passVerify)
	if err := p.run(ctx); err != nil {
		if isTransient(err) {
			return 0, errors.Join(err, r.show(ctx, b, p.news()))
		}
		r.reportRefusal(ctx, b, err, operationTypeReconcile)
		return 0, r.resource.failure(ctx, &b.object, operationTypeReconcile, err, p.statusFields())
	}
	// A lock that was set before our time, or what others did to the bucket since the last
	// reconcile.
	fields := p.news()
	if p.republished {
		return p.interval(), r.resource.success(ctx, &b.object, operationTypeReconcile, p.succeeded(), fields)
	}
	return p.interval(), r.show(ctx, b, fields)
}

// news are the status fields of a pass that is no reconcile, which writes the first conditions.
func (p *bucketPass) news() map[string]any {
	fields := p.statusFields()
	if len(p.b.Conditions) == 0 {
		delete(fields, "conditions")
	}
	return fields
}

// show writes what a pass has seen, if there is anything new.
func (r *bucketReconciler) show(ctx context.Context, b *backupBucket, fields map[string]any) error {
	if len(fields) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	_, err := r.resource.patch(ctx, &b.object, map[string]any{"status": fields}, "status")
	return ignoreNotFound(err)
}

// defend verifies a bucket whose spec is not to be carried out: it has changed without a
// reconcile, or the bucket is being deleted. What was recorded is still restored.
func (r *bucketReconciler) defend(ctx context.Context, b *backupBucket) error {
	p := r.newPass(ctx, b, passDefend)
	err := p.run(ctx)
	return errors.Join(err, p.writeConditions(ctx))
}

// passKind says what a pass may do beside restoring the policy that a reconcile has left, which each does.
type passKind int

const (
	// passDefend is made while the spec is not to be carried out: it has changed without a reconcile, or the bucket is
	// being deleted.
	passDefend passKind = iota
	// passVerify checks what the last reconcile has left.
	passVerify
	// passEnsure is a reconcile.
	passEnsure
)

// creates says that a bucket that is not there is created, holds that the credentials get a finalizer, rotates that access
// keys are looked at, and refuses that a spec that would weaken the bucket is an error.
func (k passKind) creates() bool { return k != passDefend }
func (k passKind) holds() bool   { return k != passDefend }
func (k passKind) rotates() bool { return k != passDefend }
func (k passKind) refuses() bool { return k != passDefend }

// hardens says that the bucket is hardened; it was created just now or not.
func (k passKind) hardens(created bool) bool { return created || k == passEnsure }

// settled says that nothing should have to be done to the policy.
func (k passKind) settled() bool { return k != passEnsure }

// newPass prepares a pass over a bucket.
func (r *bucketReconciler) newPass(ctx context.Context, b *backupBucket, kind passKind) *bucketPass {
	p := &bucketPass{bucketReconciler: r, b: b, kind: kind, start: func() error { return nil }}
	p.announce = sync.OnceValue(func() error {
		if kind == passEnsure {
			return p.start()
		}
		return r.resource.processing(ctx, &b.object, operationTypeReconcile, "Publishing an access key")
	})
	p.desired, p.old = r.scope.readBucket(b)
	p.next, p.saved, p.asked = p.old, p.old, p.desired.Policy
	switch {
	case kind == passDefend:
		p.desired.Policy, p.desired.err = p.old.Policy, nil
	case p.desired.err == nil:
		setPolicyGauges(r.metrics.bucketDesiredLocked, r.metrics.bucketDesiredRetention, b.Name, p.desired.Policy)
	}
	return p
}

// bucketPass is one pass over one bucket; it lives no longer than that.
type bucketPass struct {
	*bucketReconciler
	b    *backupBucket
	kind passKind
	// desired is what the spec asks for, old what was remembered of the bucket before the pass, and next what is to be
	// remembered after it.
	desired   desired
	old, next record
	// saved is what the status remembers by now. asked is what the spec asks for, whether it is to be carried out or not.
	saved record
	asked Policy
	// start is called before the first change in the cloud; announce before the generated secret changes, which gardenlet reads
	// only when lastOperation does, so that a verification writes it too.
	start, announce func() error
	// republished says that the content of the generated secret changed in this pass.
	republished bool

	// lockAtOnce is a trait of the store.
	lockAtOnce bool
	observed   bool
	live       BucketState
	gaps       []string
	hardened   bool
	// unhardened is why it is not known whether the bucket is hardened.
	unhardened error
	// generated is the generated secret, nil if there is none.
	generated *corev1.Secret
}

// run compares the bucket with what is desired and changes it until they agree. What it
// returns as error after the policy is as desired may be desired's own error.
func (p *bucketPass) run(ctx context.Context) error {
	secret, err := p.secrets.get(ctx, p.b.SecretRef)
	if err != nil {
		return err
	}
	if !p.secrets.held(secret) {
		if !p.kind.holds() {
			return errNotDefended
		}
		if err := p.start(); err != nil {
			return err
		}
		if err := p.noteSecret(ctx, &p.b.object); err != nil {
			return err
		}
		if err := p.secrets.hold(ctx, secret); err != nil {
			return err
		}
	}
	store, generated, err := p.openStore(ctx, p.b, secret, p.desired, p.old, classLook)
	if err != nil {
		return err
	}
	p.generated, p.lockAtOnce = generated, store.traits().locksAtOnce
	begun := time.Now()
	if err := p.observe(ctx, store); err != nil {
		return err
	}
	defer p.showChanges(ctx)
	existed := p.live.Exists
	if existed && p.kind == passEnsure && p.next.Origin == "" {
		if p.next.Origin = originTakenOver; p.b.neverReady() {
			p.next.Origin = originAdopted
		}
	}
	plan := p.nextSteps()
	if !existed && !p.kind.creates() {
		return errNotDefended
	}
	found := p.findDrift(plan)
	if p.noteDrift(ctx, found); found != nil {
		p.retention.broken(p.b)
	}
	// The policy comes before everything that could fail without need.
	if err := p.bringAbout(ctx, store, found != nil, len(plan.Steps) > 0); err != nil {
		if found == nil {
			return err
		}
		p.tellUnrepaired(ctx, found, err)
		if !p.live.Exists {
			return err
		}
		return fmt.Errorf("the store says %s of a bucket that should have a %s, which could not be restored: %w",
			found.found, found.expected, err)
	}
	if found != nil {
		p.tellRepair(ctx, found, plan.Refusal)
	}
	_, each := store.(extender)
	p.retention.verified(p.b, p.old.Policy, p.next.Policy, p.live.Policy, found != nil, each, begun)
	if p.kind.hardens(!existed) || p.kind == passVerify && p.hardeningDue() {
		if err := p.harden(ctx, store); err != nil {
			return err
		}
	}
	if account, ok := store.(accountStore); ok && p.kind.rotates() && (p.kind.hardens(!existed) || p.keyDue()) {
		if err := p.ensureKeys(ctx, account); err != nil {
			return err
		}
	}
	// What is desired without being the spec's is no fault of the spec.
	if p.desired.err == nil && p.kind.refuses() && plan.Refusal != nil {
		return plan.Refusal
	}
	return p.desired.err
}

// bringAbout creates the bucket if it is not there, and gives it its policy.
func (p *bucketPass) bringAbout(ctx context.Context, store Store, lost, immutable bool) error {
	if !p.live.Exists {
		if err := p.create(ctx, store, immutable); err != nil {
			return err
		}
		if lost {
			p.tellLoss(ctx)
		}
		if err := p.observe(ctx, store); err != nil {
			return err
		}
	}
	return p.converge(ctx, store)
}

// hardeningDue says that a verification hardens the bucket: in its turn, or because it is not known how hardened it is.
func (p *bucketPass) hardeningDue() bool {
	return conditionStatus(p.b.Conditions, conditionHardened) == "Unknown" || p.metrics.facts.hardeningDue(p.b.Name, time.Now())
}

// harden hardens the bucket, which never fails it: what could not be done is told, and what the store did not answer to is
// unknown until the next look at the bucket; at a mere verification what is known counts on, until it is too old. An error is
// the end of the pass.
func (p *bucketPass) harden(ctx context.Context, store Store) error {
	gaps, err := store.Harden(ctx)
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not harden the bucket")
	}
	switch p.gaps = gaps; {
	case err == nil:
	case isTransient(err), retryAfter(err) > 0:
		p.unhardened = err
		status := conditionStatus(p.b.Conditions, conditionHardened)
		if p.kind == passVerify && status != "" && status != "Unknown" {
			return nil
		}
	default:
		p.gaps = append(gaps, sentence(err))
	}
	if p.hardened = true; p.unhardened == nil {
		p.metrics.facts.confirm(p.b.Name, factHardening, hardeningInterval, time.Now())
	}
	p.metrics.showHardening(p.b.Name, hardenedCondition(p.gaps, p.unhardened).Status, len(p.gaps))
	return nil
}

// sentence is what an error says, as a part of a condition's message.
func sentence(err error) string { return strings.TrimSuffix(shortened(err.Error()), ".") + "." }

// interval is when to look at the bucket again: not before the store wants to be asked.
func (p *bucketPass) interval() time.Duration {
	return max(p.bucketReconciler.interval(p.b), retryAfter(p.unhardened))
}

// errNotDefended says that a pass that only defends found something that only a
// reconcile may change: a spec that nobody has asked to carry out may name another secret
// or region.
var errNotDefended = errors.New("the bucket cannot be verified: with the secret and region of a spec that was not " +
	"reconciled since it changed, or that is being deleted, there is no such bucket, or the secret was never used")

func (p *bucketPass) create(ctx context.Context, store Store, immutable bool) error {
	if err := p.start(); err != nil {
		return err
	}
	if err := store.Create(ctx, immutable); err != nil {
		return err
	}
	p.next.Origin = originCreated
	p.evidence.note(p.b.Name, evidenceCreated, "bucketwarden created the bucket.")
	klog.FromContext(ctx).Info("Created the bucket", "region", p.b.Region, "immutable", immutable)
	p.normal(p.b, "BucketCreated", "Create", "Created bucket %s in region %s", p.b.Name, p.b.Region)
	return nil
}
