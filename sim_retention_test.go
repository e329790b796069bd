package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
)

// The simulation's versions with retention: who may extend them, and what must hold of them. Rules: no version is extended beyond
// the recorded period from now, or without a live owner; what a restore of a live entry takes, and what is younger than the
// period, is never free for longer than an interval, unless somebody has kept the daemon from knowing or from extending.

// simClusters cannot be read.
type simClusters struct{ dynamic.ResourceInterface }

func (simClusters) Get(context.Context, string, metav1.GetOptions, ...string) (*unstructured.Unstructured, error) {
	return nil, apierrors.NewForbidden(clustersGVR.GroupResource(), "", nil)
}

// wireChecks adds the looks at backups, and what keeps them retained, to a life of a daemon.
func (d *simDaemon) wireChecks(buckets *bucketReconciler, entries reconciler, checks *controller) {
	checker := newEntryChecker(entries, checks, simClusters{}, buckets.metrics.entries)
	checker.keeper = newRetentionKeeper(buckets, checks, buckets.metrics.entries)
	buckets.retention = checker.keeper
	checks.reconcile, checks.onGone = checker.reconcile, buckets.metrics.entries.forget
	buckets.resource.controller.onGone = checker.keeper.forget
	enqueue := func(e *backupEntry) {
		if checker.checkable(e) {
			checker.states.watch(e)
			checks.queue.AddAfter(cache.MetaObjectToName(e), firstCheck(e.Name))
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { enqueue(obj.(*backupEntry)) },
		UpdateFunc: func(old, obj any) {
			e, before := obj.(*backupEntry), old.(*backupEntry)
			switch {
			case !checker.checkable(e):
				checker.states.forget(e.Name)
			case !checker.checkable(before) || before.UID != e.UID || before.BucketName != e.BucketName:
				enqueue(e)
			}
		},
		DeleteFunc: func(obj any) {
			if name, err := cache.DeletionHandlingObjectToName(obj); err == nil {
				checks.gone(name)
			}
		},
	}
	if _, err := d.entries.AddEventHandler(handler); err != nil {
		panic(err)
	}
}

// extending judges an extension that a daemon makes.
func (t *simTruth) extending(b *simBucket, v *simVersion, until time.Time) {
	recorded := t.promise(b.name).recorded
	switch {
	case !recorded.Locked:
		t.w.violation("extended unasked", "%s of %s is extended, which need not be locked", v.key, b.name)
	case until.After(recorded.until(t.w.store.now())):
		t.w.violation("extended too far", "%s of %s is extended to %s, recorded is %s", v.key, b.name, until, recorded)
	}
	// What was read of the owner may be some seconds old.
	fresh := time.Now().Add(-extensionFresh - time.Minute)
	if !slices.ContainsFunc(t.owners, func(o *simOwner) bool {
		return t.under(o, b, v.key) && (o.live > 0 && !o.gone || o.deleting && o.beganAt.After(fresh) || !o.deleting && !o.gone)
	}) {
		t.w.violation("extended unowned", "%s of %s is extended, which has no live owner", v.key, b.name)
	}
}

// promised says that the spec of a bucket still asks for a lock, and that one is recorded.
func (t *simTruth) locked(name string) bool {
	d, p := t.w.env.owner[name], t.promise(name)
	o := d.api.read(resourceBackupBuckets, "", name)
	if o == nil || !p.exists || p.deleting || !p.recorded.Locked || t.w.env.kinds[name] != storeS3 {
		return false
	}
	b := decodeBucket(simMeta(o))
	config, err := simProviders[storeS3].parseConfig(providerConfigPath, b.Type, b.ProviderConfig)
	return err == nil && config.Policy.Locked && b.succeeded() && b.operation() == ""
}

// retained judges what is left of the versions once the daemons had time.
func (t *simTruth) retained() {
	now := t.w.store.now()
	for _, o := range t.owners {
		b := t.w.store.buckets[o.bucket]
		if b == nil || t.w.env.owner[o.bucket].api != o.api || !t.locked(o.bucket) || t.w.store.noRetention[b.name] ||
			time.Since(t.w.store.retentionSince[b.name]) < 3*time.Hour {
			continue
		}
		e := decodeEntry(simMeta(o.api.read(resourceBackupEntries, "", o.name)))
		if o.live == 0 || o.gone || o.migrates || o.held || o.deleting || string(e.UID) != o.uid || !e.succeeded() || e.operation() != "" ||
			strings.HasPrefix(o.name, sourcePrefix) || time.Since(o.readyAt) < time.Hour {
			continue
		}
		list := newSnapshotList(o.base)
		p := page{now: now}
		odd := map[string]bool{}
		for _, v := range b.versions {
			if t.under(o, b, v.key) {
				p.versions = append(p.versions, version{key: v.key, id: strconv.Itoa(v.id), size: v.size, created: v.created, marker: v.marker})
				odd[v.key] = odd[v.key] || v.odd || v.marker || v.hold
			}
		}
		list.add(p)
		list.end()
		found := list.chain()
		for _, s := range found.all {
			v := b.find(s.version())
			chain := slices.Contains(found.sound(), s)
			young := t.promise(b.name).recorded.until(s.stored)
			if odd[s.key] || s.lost || s.marked || now.Sub(s.stored) < 3*time.Hour {
				continue
			}
			t.w.count("note", "version judged")
			if v.governance && !t.w.store.mayBypass {
				continue
			}
			// A link of the chain is extended before less than half of the period is left.
			half := t.promise(b.name).recorded.halfFrom(now).Add(-3 * time.Hour)
			tooShort := young.After(now.Add(time.Hour)) && (v.until.Before(young.Add(-time.Hour)) || v.governance)
			if tooShort || chain && (v.governance || v.until.Before(half)) {
				t.w.violation("free", "%s of %s, stored %s, is retained until %s only, recorded is %s, now is %s (chain: %t, governance: %t), its owner is %s",
					v.key, b.name, v.created, v.until, t.promise(b.name).recorded, now, chain, v.governance, o)
			}
		}
	}
}

// retention are steps about who may extend.
func (e *simEnv) retention() []simAction {
	w := e.w
	return []simAction{
		{"permission to extend taken away", 1, func() bool {
			w.store.noRetention[pick(w, e.buckets)] = true
			return true
		}},
		{"permission to extend given back", 3, func() bool { return e.allowRetention() }},
		{"leave to bypass governance", 1, func() bool {
			w.store.mayBypass = !w.store.mayBypass
			for _, bucket := range e.buckets {
				w.store.retentionSince[bucket] = time.Now()
			}
			return true
		}},
	}
}

func (e *simEnv) allowRetention() (changed bool) {
	for _, bucket := range e.buckets {
		if e.w.store.noRetention[bucket] {
			delete(e.w.store.noRetention, bucket)
			e.w.store.retentionSince[bucket] = time.Now()
			changed = true
		}
	}
	return changed
}

// repaired notes that somebody has put a policy back: the daemon cannot know that it was gone meanwhile.
func (s *simStore) repaired(b *simBucket) {
	for _, v := range b.versions {
		v.odd = v.odd || v.weak
	}
}
