// With --observe: buckets that another controller owns, such as a provider extension of Gardener, are looked at and nothing more.
//
// Rules:
//   - Nothing is written but events and a lease of its own name: no status, no finalizer, no annotation, nothing in a store but, with
//     --probe, canaries. No code here writes, and observer_guard.go refuses the requests of whatever code would.
//   - What is expected is what the spec asks for; the formats are those that provider-aws and provider-azure read too. Neither
//     writes a providerStatus (gardener/gardener-extension-provider-aws, -azure: pkg/controller/backupbucket/actuator*.go), so
//     nothing is recorded; what the daemon has recorded before counts on.
//   - Drift is what was seen to become weaker. A bucket that never was as asked is no drift: its gauges tell.
//   - What is not served (provider-gcp, for one) is told once for each bucket, and is no failure.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
)

// bucketObserver looks at the BackupBuckets of others.
type bucketObserver struct {
	*bucketReconciler
	// own is the secret to look with; empty if it is the one that each object names.
	own types.NamespacedName
	// forgetEvidence forgets what was signed about a bucket; nil without --evidence.
	forgetEvidence func(bucket string)

	mu   sync.Mutex
	seen map[string]sighting
}

// sighting is what is remembered of a bucket.
type sighting struct {
	// live is what the store has said last, good the last that was no weaker than expected; none if there was none.
	live, good Policy
	// expected is what was expected then.
	expected Policy
	// notServed is the type that was told not to be served, empty if it is.
	notServed string
}

func newBucketObserver(r *bucketReconciler) *bucketObserver {
	return &bucketObserver{bucketReconciler: r, seen: map[string]sighting{}}
}

// note changes what is remembered of a bucket, and returns what was remembered before.
func (o *bucketObserver) note(bucket string, change func(*sighting)) (before sighting) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before = o.seen[bucket]
	after := before
	change(&after)
	o.seen[bucket] = after
	return before
}

// forget ends everything about a bucket.
func (o *bucketObserver) forget(bucket string) {
	o.mu.Lock()
	delete(o.seen, bucket)
	o.mu.Unlock()
	o.metrics.forgetBucket(bucket)
	o.tellings.forget(bucket)
	o.evidence.forget(bucket)
	if o.forgetEvidence != nil {
		o.forgetEvidence(bucket)
	}
}

// ours says that a bucket is to be looked at, served or not.
func (o *bucketObserver) ours(b *backupBucket) bool { return slices.Contains(o.scope.classes, b.Class) }

// watch has buckets looked at as they come, when their spec changes, when their owner has carried it out, and when they are to
// be deleted.
func (o *bucketObserver) watch(buckets cache.SharedIndexInformer) (cache.ResourceEventHandlerRegistration, error) {
	c := o.resource.controller
	add := func(obj any) {
		if b, ok := obj.(*backupBucket); ok && o.ours(b) {
			c.enqueue(cache.MetaObjectToName(b))
		}
	}
	return buckets.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add,
		UpdateFunc: func(oldObj, newObj any) {
			before, ok1 := oldObj.(*backupBucket)
			b, ok2 := newObj.(*backupBucket)
			switch {
			case !ok1 || !ok2:
			case before.UID != b.UID, !o.ours(b):
				c.gone(cache.MetaObjectToName(before))
				add(b)
			case before.Generation != b.Generation, !before.succeeded() && b.succeeded(), !o.ours(before):
				add(b)
			}
		},
		DeleteFunc: func(obj any) {
			if name, err := cache.DeletionHandlingObjectToName(obj); err == nil {
				c.gone(name)
			}
		},
	})
}

// reconcile looks at a bucket: the API requests for its secrets, and those of Store.Observe.
func (o *bucketObserver) reconcile(ctx context.Context, key cache.ObjectName, _ bool) (again time.Duration, err error) {
	defer func() { o.metrics.facts.failed(key.Name, err) }()
	obj, exists, err := o.cached.GetByKey(key.String())
	cached, ok := obj.(*backupBucket)
	if err != nil || !exists || !ok || !o.ours(cached) {
		o.resource.controller.gone(key)
		return 0, err
	}
	own := *cached
	b := &own
	if o.provider(&b.object) == nil {
		o.tellNotServed(ctx, b)
		return 0, nil
	}
	o.metrics.bucketNotServed.DeleteLabelValues(b.Name)
	o.note(b.Name, func(s *sighting) { s.notServed = "" })
	o.showExpected(b)
	o.metrics.facts.begin(b.Name, o.unknownAfter(b), time.Now())
	o.metrics.initObserved(b)
	if o.askEvidence != nil {
		defer o.askEvidence(cached)
	}
	return o.look(ctx, b)
}

// errObserved is why nothing is put back.
var errObserved = errors.New("bucketwarden only observes it")

// look asks the store and shows what it says.
func (o *bucketObserver) look(ctx context.Context, b *backupBucket) (time.Duration, error) {
	p := o.newPass(ctx, b, passVerify)
	secret, err := o.secrets.get(ctx, cmp.Or(o.own, b.SecretRef))
	if err != nil {
		return 0, err
	}
	store, _, err := o.openStore(ctx, b, secret, p.desired, p.old, classLook)
	if err != nil {
		return 0, err
	}
	if p.live, err = store.Observe(ctx); err != nil {
		return 0, err
	}
	if b.DeletionTimestamp != nil && !p.live.Exists {
		o.forget(b.Name) // its owner has deleted it
		return o.interval(b), nil
	}
	p.evidence.saw(b.Name, p.live, p.wanted(), o.unknownAfter(b), passOf(ctx).clock())
	o.showState(b, p.live)
	p.showChanges(ctx)
	found := o.findDrift(p)
	p.noteDrift(ctx, found)
	if found != nil {
		p.tellUnrepaired(ctx, found, errObserved)
	}
	return o.interval(b), p.desired.err
}

// findDrift says what has become weaker than it was and than it should be; nil if nothing has.
func (o *bucketObserver) findDrift(p *bucketPass) *drift {
	expected, live := p.wanted(), p.live.Policy
	enough := p.live.Exists && !live.weakerThan(expected)
	before := o.note(p.b.Name, func(s *sighting) {
		if s.live, s.expected = live, expected; enough {
			s.good = live
		}
	})
	d := &drift{gone: !p.live.Exists, expected: expected, found: live}
	switch {
	case enough:
		return nil
	case d.gone && p.b.succeeded(): // its owner says that it is there
		return d
	case d.gone, !live.weakerThan(before.good):
		return nil
	}
	return d
}

// policies are what the store has said last of a bucket, none if that is not known any more, and what is expected of it.
func (o *bucketObserver) policies(bucket string) (live, expected Policy) {
	o.mu.Lock()
	s := o.seen[bucket]
	o.mu.Unlock()
	if why, _ := o.metrics.facts.overdue(bucket, time.Now()); why[factState] != "" {
		return Policy{}, s.expected
	}
	return s.live, s.expected
}

// tellNotServed tells once that a bucket is not looked at.
func (o *bucketObserver) tellNotServed(ctx context.Context, b *backupBucket) {
	if o.note(b.Name, func(s *sighting) { *s = sighting{notServed: b.Type} }).notServed == b.Type {
		return
	}
	o.metrics.forgetBucket(b.Name)
	o.metrics.bucketNotServed.WithLabelValues(b.Name).Set(1)
	klog.FromContext(ctx).Info("The bucket is not looked at: no store is known for its type", "type", b.Type)
	o.warn(b, "NotServed", "Observe", "Nothing is known of this bucket and the backups in it: bucketwarden serves no spec.type %q; stores "+
		"that it can serve are %s", b.Type, storeNames())
}

// observedEntries is what the look at the backups of an entry has to know of its bucket where no status tells it.
type observedEntries interface {
	policies(bucket string) (live, expected Policy)
	// credentials is the secret that opens the bucket for an entry.
	credentials(e *backupEntry) types.NamespacedName
}

// credentials is the secret that opens the bucket for an entry. What lies in an account needs its key, which only the entry's has.
func (o *bucketObserver) credentials(e *backupEntry) types.NamespacedName {
	if _, account := o.provider(&e.object).(accountProvider); account {
		return e.SecretRef
	}
	return cmp.Or(o.own, e.SecretRef)
}

// credentials is the secret that opens the bucket for an entry.
func (c *entryChecker) credentials(e *backupEntry) types.NamespacedName {
	if c.observed == nil {
		return e.SecretRef
	}
	return c.observed.credentials(e)
}

// record is what is known of the bucket of an entry.
func (c *entryChecker) record(e *backupEntry) record {
	if c.observed == nil {
		return e.record()
	}
	live, _ := c.observed.policies(e.BucketName)
	return record{Policy: live, Account: e.Account}
}

// mayBeLocked says that it makes sense to look until when the backups of an entry are locked. Where each has to be asked for,
// what was written before somebody took the bucket's policy away still is.
func (c *entryChecker) mayBeLocked(e *backupEntry, objects versions) bool {
	if c.observed == nil {
		return e.Recorded.Locked
	}
	live, expected := c.observed.policies(e.BucketName)
	_, asks := objects.(lockReader)
	return live.Locked || asks && expected.Locked
}

// wireObserver is wire with --observe.
func (d *daemon) wireObserver(dyn dynamic.Interface, scope *scope, recorder events.EventRecorder) error {
	buckets, bucketFeed, err := newBucketInformer(dyn)
	if err != nil {
		return fmt.Errorf("making the BackupBucket informer: %w", err)
	}
	entries, entryFeed, err := newEntryInformer(dyn)
	if err != nil {
		return fmt.Errorf("making the BackupEntry informer: %w", err)
	}
	bucketController := newController(resourceBackupBuckets, d.metrics)
	d.checks = newController(resourceChecks, d.metrics)
	places := newEndpoints(d.config.concurrentSyncs, d.metrics)
	bucketController.endpoints, d.checks.endpoints = places, places
	common := reconciler{secrets: &secrets{client: d.core}, scope: scope, recorder: recorder, metrics: d.metrics, purges: &purges{},
		keys: newKeyWatch(bucketController.queue.Add)}

	ofBuckets := common
	ofBuckets.cached = buckets.GetIndexer()
	ofBuckets.resource = &resourceClient{client: dyn.Resource(bucketsGVR), kind: kindBackupBucket, controller: bucketController}
	observer := newBucketObserver(&bucketReconciler{reconciler: ofBuckets, verifyInterval: d.config.verifyInterval})
	observer.own = d.config.ownCredentials()
	bucketController.reconcile, bucketController.onGone = observer.reconcile, observer.forget

	ofEntries := common
	ofEntries.cached = entries.GetIndexer()
	ofEntries.resource = &resourceClient{client: dyn.Resource(entriesGVR), kind: kindBackupEntry, controller: d.checks}
	checker := newEntryChecker(ofEntries, d.checks, dyn.Resource(clustersGVR), d.metrics.entries)
	checker.observed = observer
	d.checks.reconcile, d.checks.onGone = checker.reconcile, d.metrics.entries.forget
	if d.config.deepCheck {
		d.deep = newDeepChecker(checker)
	}

	if d.config.probe {
		d.probes = newController(resourceProbes, d.metrics)
		d.probes.endpoints = places
		p := &prober{bucketReconciler: observer.bucketReconciler, queue: d.probes, entries: checker, probes: &probes{}, observed: observer}
		d.probes.reconcile, d.probes.onGone = p.reconcile, p.gone
		if _, err := watchObjects(buckets, scope, d.probes, d.probes.queue.Add); err != nil {
			return fmt.Errorf("watching BackupBuckets: %w", err)
		}
	}
	if d.config.evidence {
		c := newController(resourceEvidence, d.metrics)
		c.endpoints = places
		observer.evidence = newEvidenceLog()
		d.evidence = newEvidenceWriter(observer.bucketReconciler, c, d.core, d.config, d.metrics.entries)
		// The key comes from a file, and nothing is shown in a ConfigMap.
		d.evidence.namespace, d.evidence.observes = "", true
		d.evidence.place = observer.placeInDirectory(d.config.evidenceDirectory)
		observer.askEvidence, observer.forgetEvidence = d.evidence.ask, d.evidence.forget
	}

	bucketEvents, err := observer.watch(buckets)
	if err != nil {
		return fmt.Errorf("watching BackupBuckets: %w", err)
	}
	if err := checker.watch(entries); err != nil {
		return fmt.Errorf("watching BackupEntries: %w", err)
	}
	d.controllers = []*controller{bucketController}
	d.informers = []cache.SharedIndexInformer{buckets, entries}
	d.synced = []cache.InformerSynced{bucketEvents.HasSynced, entries.HasSynced}
	d.feeds = []*feed{bucketFeed, entryFeed}
	return nil
}
