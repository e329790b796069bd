package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// Between the simulation's models and the product as it is wired and as its stores are
// asked today: the only file to change when those interfaces do. Each request to a store is
// one call of the scheduler. A daemon is put together as main.go's wire does it.

// simPageSize is how many versions a list has on a page, and a batch.
const simPageSize = 3

// simOpener is one life's access to one kind of store: it opens the model, and reads and
// writes everything else as the real provider does.
type simOpener struct {
	provider
	life *simLife
	kind string
}

// simAzureProvider is one whose buckets lie in accounts.
type simAzureProvider struct {
	*azureClients
	opener simOpener
}

func (o simAzureProvider) openStore(ref bucketRef, credentials map[string][]byte) (Store, error) {
	return o.opener.openStore(ref, credentials)
}

func (o simAzureProvider) openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error) {
	return o.opener.openObjects(ref, credentials)
}

func (o simOpener) client(ref bucketRef, credential string) (*simClient, error) {
	if ref.Name == "" {
		return nil, &storeError{code: codeConfigurationProblem, err: fmt.Errorf("no such name: %w", errNotOurBucket)}
	}
	return &simClient{life: o.life, store: o.life.w.store, kind: o.kind, ref: ref, credential: credential}, nil
}

// openStore implements provider.
func (o simOpener) openStore(ref bucketRef, credentials map[string][]byte) (Store, error) {
	if o.kind == storeAzure {
		if len(credentials["clientSecret"]) == 0 {
			return nil, configErrorf("the credentials secret lacks clientSecret")
		}
		c, err := o.client(ref, string(credentials["clientSecret"]))
		return &simAccount{c}, err
	}
	if err := checkS3Credentials(credentials); err != nil {
		return nil, err
	}
	c, err := o.client(ref, string(credentials["accessKeyID"])+string(credentials["token"]))
	return &simS3{c}, err
}

// openObjects implements provider.
func (o simOpener) openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error) {
	if o.kind == storeAzure {
		if len(credentials[dataKeyStorageKey]) == 0 {
			return nil, configErrorf("the credentials secret lacks %s", dataKeyStorageKey)
		}
		return o.client(ref, string(credentials[dataKeyStorageKey]))
	}
	if err := checkS3Credentials(credentials); err != nil {
		return nil, err
	}
	c, err := o.client(ref, string(credentials["accessKeyID"])+string(credentials["token"]))
	return &simS3{c}, err
}

type simClient struct {
	life       *simLife
	store      *simStore
	kind       string
	ref        bucketRef
	credential string
}

func simAsk[T any](ctx context.Context, c *simClient, op string, serve func(b *simBucket) (T, error)) (T, error) {
	return simCall(ctx, c.life, simToStore, c.ref.Name+": "+op, func() (T, error) {
		var none T
		b := c.store.buckets[c.ref.Name]
		if !c.authorized() {
			return none, &storeError{code: codeUnauthenticated, err: errors.New("InvalidAccessKeyId")}
		}
		if b != nil && c.kind == storeS3 && b.region != c.ref.Region && c.ref.Region != "" {
			return none, &storeError{code: codeConfigurationProblem, err: fmt.Errorf("the bucket lies in %s: %w", b.region, errNotOurBucket)}
		}
		return serve(b)
	})
}

// authorized says that the store takes the credentials: on Azure a key is one of the account's.
func (c *simClient) authorized() bool {
	if strings.HasPrefix(c.credential, secretMarker+"-key") {
		g := c.store.group(c.ref.Name)
		return g == nil || slices.ContainsFunc(g.keys, func(k accessKey) bool { return k.Value == c.credential })
	}
	return !c.store.broken[c.credential]
}

// worked says that a pass has looked at data, or changed some.
func (c *simClient) worked(prefix string) {
	if w := c.life.w; w.current != nil && !strings.HasPrefix(prefix, tombstonesRoot) {
		w.current.work, w.current.workAt = w.seq, time.Now()
	}
}

func (c *simClient) Observe(ctx context.Context) (BucketState, error) {
	return simAsk(ctx, c, "Observe", func(b *simBucket) (BucketState, error) {
		if w := c.life.w; w.current != nil {
			w.current.looked = w.seq
		}
		if b == nil {
			return BucketState{}, nil
		}
		state := BucketState{Exists: true, Policy: b.policy}
		if c.kind == storeAzure && b.policy.Locked {
			left := b.extensions
			state.Extensions = &left
		}
		return state, nil
	})
}

func (c *simClient) Create(ctx context.Context, immutable bool) error {
	_, err := simAsk(ctx, c, "Create", func(b *simBucket) (bool, error) {
		if b == nil {
			c.life.w.count("call", "bucket made")
			c.store.makeBucket(c.ref.Name, c.ref.Region, c.kind, false)
		}
		return true, nil
	})
	return err
}

func (c *simClient) Harden(ctx context.Context) ([]string, error) {
	return simAsk(ctx, c, "Harden", func(*simBucket) ([]string, error) { return nil, nil })
}

func (c *simClient) SetPolicy(ctx context.Context, p Policy) error {
	return c.policy(ctx, "SetPolicy", p)
}

func (c *simClient) LockPolicy(ctx context.Context, p Policy) error {
	return c.policy(ctx, "LockPolicy", p)
}

func (c *simClient) policy(ctx context.Context, op string, p Policy) error {
	_, err := simAsk(ctx, c, op+" "+p.String(), func(b *simBucket) (bool, error) {
		if b == nil {
			return false, &storeError{code: codeConfigurationProblem, err: errors.New("NoSuchBucket")}
		}
		c.life.w.truth.setting(b, p)
		if !c.store.setPolicy(b, p) {
			return false, &storeError{code: codeConfigurationProblem, err: errors.New("the policy is locked")}
		}
		c.life.w.count("call", op)
		return true, nil
	})
	return err
}

// Put implements Objects.
func (c *simClient) Put(ctx context.Context, key string) error {
	_, err := simAsk(ctx, c, "Put "+key, func(b *simBucket) (bool, error) {
		if b == nil {
			return false, &storeError{code: codeConfigurationProblem, err: errors.New("NoSuchBucket")}
		}
		c.life.w.truth.burying(b, key)
		if c.store.put(b, key, 0) == nil {
			return false, &storeError{code: codeConfigurationProblem, err: errors.New("BlobImmutableDueToPolicy")}
		}
		c.life.w.count("call", "mark put")
		return true, nil
	})
	return err
}

// pages implements versions.
func (c *simClient) pages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		for {
			p, err := simAsk(ctx, c, "ListVersions "+prefix, func(b *simBucket) (page, error) { return c.page(b, prefix, from), nil })
			if !yield(p, err) || err != nil || p.next == (cursor{}) {
				return
			}
			from = p.next
		}
	}
}

func (c *simClient) page(b *simBucket, prefix string, from cursor) page {
	p := page{now: c.store.now()}
	if b == nil {
		return p
	}
	c.worked(prefix)
	// What counts is when the first page was read.
	if w := c.life.w; w.current != nil && from == (cursor{}) && strings.HasPrefix(prefix, tombstonePrefix) && strings.HasSuffix(prefix, "/") {
		w.current.marks = w.seq
	}
	var after *simVersion
	if from != (cursor{}) {
		id, _ := strconv.Atoi(from.id)
		after = &simVersion{key: from.key, id: id}
	}
	listed, more := c.store.list(c.ref.Name, prefix, after, simPageSize)
	for _, v := range listed {
		out := version{key: v.key, id: strconv.Itoa(v.id), size: v.size, created: v.created, marker: v.marker}
		// As store_azure_objects.go: the list and the recorded policy tell until when.
		if c.kind == storeAzure {
			if out.held = v.hold; !c.ref.Recorded.None() {
				out.until = c.ref.Recorded.until(v.created)
			}
		}
		p.versions = append(p.versions, out)
	}
	if more {
		last := listed[len(listed)-1]
		p.next = cursor{key: last.key, id: strconv.Itoa(last.id)}
	}
	return p
}

// remove implements versions; some of a batch may be throttled.
func (c *simClient) remove(ctx context.Context, batch []version) ([]removal, error) {
	return simAsk(ctx, c, fmt.Sprintf("Delete %d from %s", len(batch), batch[0].key), func(b *simBucket) ([]removal, error) {
		if b == nil {
			return nil, errNoBucket
		}
		c.life.w.count("call", "delete batch")
		answers := make([]removal, len(batch))
		for i, v := range batch {
			answers[i].outcome = removalGone
			model := b.find(v)
			switch {
			case c.life.w.faults && c.life.w.rng.IntN(25) == 0:
				c.life.w.count("fault", "store: part of a batch throttled")
				answers[i] = removal{outcome: removalAgain, err: &storeError{code: codeRateLimitsExceeded, err: errors.New("SlowDown")}}
			case model != nil && !c.store.remove(c.ref.Name, model):
				answers[i].outcome = removalRetained
			}
		}
		c.worked(batch[0].key)
		return answers, nil
	})
}

func (b *simBucket) find(v version) *simVersion {
	for _, model := range b.versions {
		if model.key == v.key && strconv.Itoa(model.id) == v.id {
			return model
		}
	}
	return nil
}

// until implements versions.
func (c *simClient) until(ctx context.Context, v version) (time.Time, error) {
	if c.kind == storeAzure {
		return time.Time{}, nil
	}
	return simAsk(ctx, c, "GetObjectRetention "+v.key, func(b *simBucket) (time.Time, error) {
		if b == nil {
			return time.Time{}, nil
		}
		if model := b.find(v); model != nil && !model.hold {
			return c.store.ends(b, model), nil
		}
		return time.Time{}, nil
	})
}

// traits implements versions.
func (c *simClient) endpoint() endpointRef { return endpointRef{host: "sim"} }

func (c *simClient) traits() traits {
	return traits{batch: simPageSize, verify: c.kind == storeS3, locksAtOnce: c.kind == storeS3, serial: true,
		backoff: func(int) time.Duration { return time.Second }}
}

func (c *simClient) Delete(ctx context.Context, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	_, err := simAsk(ctx, c, "DeleteBucket", func(b *simBucket) (bool, error) {
		c.life.w.count("call", "delete bucket")
		if err := c.store.deleteBucket(c.ref.Name); err != nil {
			return false, &storeError{err: fmt.Errorf("deleting bucket %s: %w", c.ref.Name, err)}
		}
		return true, nil
	})
	return err
}

// simS3 is a bucket whose versions have each a retention of their own.
type simS3 struct{ *simClient }

var _ extender = &simS3{}

// version asks about a version that is no delete marker.
func (c *simS3) version(ctx context.Context, op string, v version, serve func(*simBucket, *simVersion) error) error {
	_, err := simAsk(ctx, c.simClient, op+" "+v.key, func(b *simBucket) (bool, error) {
		var model *simVersion
		if b != nil {
			model = b.find(v)
		}
		if model == nil || model.marker {
			return false, &storeError{err: fmt.Errorf("%s: %w", v.key, errNoVersion)}
		}
		return true, serve(b, model)
	})
	return err
}

// lock implements lockReader.
func (c *simS3) lock(ctx context.Context, v version) (lock versionLock, err error) {
	err = c.version(ctx, "GetObjectRetention", v, func(_ *simBucket, model *simVersion) error {
		switch retained := model.until.After(c.store.now()); {
		case retained && !model.governance:
			lock.until = model.until
		default:
			lock.held, lock.governance = model.hold, retained
		}
		return nil
	})
	return lock, err
}

// extend implements extender.
func (c *simS3) extend(ctx context.Context, v version, until time.Time, bypass bool) error {
	return c.version(ctx, "PutObjectRetention", v, func(b *simBucket, model *simVersion) error {
		c.life.w.count("call", "extend")
		c.life.w.truth.extending(b, model, wholeSecond(until))
		return c.store.extend(b, model, wholeSecond(until), bypass)
	})
}

// simAccount is the accountStore of one bucket. Its DeleteAccount decides as
// store_azure.go's does.
type simAccount struct{ *simClient }

func (c *simAccount) Observe(ctx context.Context) (BucketState, error) {
	state, err := c.simClient.Observe(ctx)
	if g := c.store.group(c.ref.Name); err == nil && g != nil {
		state.Remains = !state.Exists
	}
	return state, err
}

func (c *simAccount) Create(ctx context.Context, immutable bool) error {
	_, err := simAsk(ctx, c.simClient, "Create group and account", func(*simBucket) (bool, error) {
		g := c.store.group(c.ref.Name)
		if g == nil {
			g = c.store.makeGroup(c.ref.Name, false)
		}
		if !g.account {
			g.account, g.keys = true, []accessKey{c.store.newKey("key1"), c.store.newKey("key2")}
		}
		return true, nil
	})
	return cmp.Or(err, c.simClient.Create(ctx, immutable))
}

func (c *simAccount) Keys(ctx context.Context) ([]accessKey, error) {
	return simAsk(ctx, c.simClient, "Keys", func(*simBucket) ([]accessKey, error) {
		if g := c.store.group(c.ref.Name); g != nil {
			return slices.Clone(g.keys), nil
		}
		return nil, &storeError{code: codeRetryableDependencies, err: errors.New("ResourceGroupNotFound")}
	})
}

func (c *simAccount) RegenerateKey(ctx context.Context, name string) ([]accessKey, error) {
	return simAsk(ctx, c.simClient, "RegenerateKey "+name, func(*simBucket) ([]accessKey, error) {
		c.life.w.count("call", "key regenerated")
		g := c.store.group(c.ref.Name)
		for i := range g.keys {
			if g.keys[i].Name == name {
				g.keys[i] = c.store.newKey(name)
			}
		}
		return slices.Clone(g.keys), nil
	})
}

func (c *simAccount) EntryCredentials(key accessKey) map[string][]byte {
	return map[string][]byte{dataKeyStorageAccount: []byte("account"), dataKeyStorageKey: []byte(key.Value), dataKeyDomain: []byte("blob.example.com")}
}

func (c *simAccount) DeleteAccount(ctx context.Context, leave permit, _ bool) (AccountState, error) {
	state, err := simAsk(ctx, c.simClient, "Get group", func(*simBucket) (AccountState, error) {
		g := c.store.group(c.ref.Name)
		switch {
		case g == nil:
			return AccountState{}, nil
		case !g.deleted.IsZero():
			return AccountState{Deleting: true}, nil
		case !g.tagged:
			return AccountState{Kept: "the resource group stays, because bucketwarden has not made it."}, nil
		}
		return AccountState{Started: true}, nil
	})
	if err != nil || !state.Started {
		return state, err
	}
	if err := leave.ask(ctx); err != nil {
		return AccountState{}, err
	}
	return simAsk(ctx, c.simClient, "DeleteAccount", func(*simBucket) (AccountState, error) {
		g := c.store.group(c.ref.Name)
		switch {
		case g == nil:
			return AccountState{}, nil
		case !g.deleted.IsZero():
			return AccountState{Deleting: true}, nil
		case g.other:
			g.account = false
			return AccountState{Kept: "the resource group stays, because something else is in it."}, nil
		}
		c.life.w.count("call", "delete group")
		c.store.deleteGroup(c.ref.Name)
		return AccountState{Started: true}, nil
	})
}

// simRecorder takes the events of a life.
type simRecorder struct{ life *simLife }

// Eventf implements events.EventRecorder.
func (r simRecorder) Eventf(regarding, _ runtime.Object, _, reason, _, note string, args ...any) {
	r.life.w.truth.told(r.life.daemon.api, regarding, reason)
	r.life.w.note("%s event %s: %s", r.life.daemon.name, reason, cut(fmt.Sprintf(note, args...), 200))
	r.life.w.count("event", reason)
}

const simVerifyInterval = time.Hour

// wire puts a life of a daemon together.
func (d *simDaemon) wire(life *simLife) {
	metrics := newMetrics()
	life.metrics = metrics
	s3Provider, azureProvider := newS3Clients(metrics), newAzureClients(metrics, nil)
	a := &scope{classes: []string{defaultClass}, providers: map[string]provider{
		"aws": simOpener{s3Provider, life, storeS3}, "azure": simAzureProvider{azureProvider, simOpener{nil, life, storeAzure}}}}
	d.buckets = newSimInformer(d.api, resourceBackupBuckets, decodeBucket, cache.Indexers{indexSecret: indexBySecret})
	d.entries = newSimInformer(d.api, resourceBackupEntries, decodeEntry, cache.Indexers{indexSecret: indexBySecret, indexNamespace: indexByNamespace})
	recorder := simRecorder{life}
	d.controllers = nil
	controller := func(resource string) *controller {
		c := newController(resource, metrics)
		c.queue.ShutDown()
		q := newSimQueue()
		c.queue = q
		d.controllers = append(d.controllers, &simController{c: c, q: q, life: life})
		return c
	}
	bucketController, entryController, sweeps := controller(resourceBackupBuckets), controller(resourceBackupEntries), controller(resourceSweeps)
	keys := newKeyWatch(bucketController.queue.Add)
	entryClient := &resourceClient{client: &simDynamic{life: life, resource: resourceBackupEntries}, kind: kindBackupEntry, finalizer: finalizerBackupEntry, controller: entryController}
	bucketReconciler := &bucketReconciler{
		reconciler: reconciler{
			resource: &resourceClient{client: &simDynamic{life: life, resource: resourceBackupBuckets}, kind: kindBackupBucket, finalizer: finalizerBackupBucket, controller: bucketController},
			secrets:  &secrets{client: simCore{life: life}, finalizer: finalizerBackupBucket},
			cached:   d.buckets.indexer,
			scope:    a, recorder: recorder, metrics: metrics, purges: &purges{}, keys: keys,
		},
		verifyInterval: simVerifyInterval,
		sweeps:         sweeps,
		entries:        d.entries.indexer,
		entriesClient:  entryClient,
	}
	bucketController.reconcile = bucketReconciler.reconcile
	sweeps.reconcile = newSweeper(bucketReconciler).reconcile
	entryReconciler := &entryReconciler{reconciler{
		resource: entryClient,
		secrets:  &secrets{client: simCore{life: life}, finalizer: finalizerBackupEntry},
		cached:   d.entries.indexer,
		scope:    a, recorder: recorder, metrics: metrics, purges: &purges{}, keys: keys,
	}}
	entryController.reconcile = entryReconciler.reconcile
	checks := controller(resourceChecks)
	d.wireChecks(bucketReconciler, entryReconciler.reconciler, checks)
	staleBuckets := controller(resourceStaleness)
	staleBuckets.reconcile = (&staleness{bucketReconciler: bucketReconciler, controller: staleBuckets}).reconcile
	staleBuckets.onGone = metrics.facts.forget
	if _, err := watchObjects(d.buckets, a, staleBuckets, staleBuckets.queue.Add); err != nil {
		panic(err)
	}
	if _, err := watchObjects(d.buckets, a, bucketController, bucketController.queue.Add); err != nil {
		panic(err)
	}
	if _, err := watchObjects(d.entries, a, entryController, nil); err != nil {
		panic(err)
	}
}
