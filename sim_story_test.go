package main

import (
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// What the simulation's random steps come to too seldom: stories about the retention of versions, each from its begin to its end.
// Rules: a story makes what it needs as gardenlet and an etcd would, and leaves the daemons alone in between, so that what must
// hold then is judged (simTruth.settled); what it cannot make, it does not insist on.

// stories are steps that take their time; they are not for the middle of a pass.
func (e *simEnv) stories(pass *simPass) []simAction {
	if pass != nil || e.w.depth > 0 || e.over {
		return nil
	}
	w := e.w
	// judge says what has become of what was written before.
	judge := func(d time.Duration) bool {
		if w.settle(d); w.failed == "" {
			w.truth.settled()
		}
		return true
	}
	// weakly has an etcd write while the bucket has another policy than it should.
	weakly := func(p Policy) bool {
		x, ok := e.serving(Policy{Days: int32(1 + w.rng.IntN(3)), Locked: true})
		if !ok {
			return false
		}
		b := w.store.buckets[x.BucketName]
		w.note("somebody sets the policy of %s to %s", b.name, p)
		if !w.store.setPolicy(b, p) {
			return false
		}
		e.chain(x, 1+w.rng.IntN(4))
		return judge(4 * time.Hour)
	}
	return []simAction{
		{"cluster sleeps longer than a period", 3, func() bool {
			x, ok := e.serving(Policy{Days: int32(1 + w.rng.IntN(3)), Locked: true})
			if !ok {
				return false
			}
			e.chain(x, 1+w.rng.IntN(4))
			days := w.truth.promise(x.BucketName).recorded.Days
			return judge(time.Duration(days)*24*time.Hour + time.Duration(w.rng.IntN(24))*time.Hour)
		}},
		{"written in a gap", 3, func() bool { return weakly(Policy{}) }},
		{"written in GOVERNANCE in a gap", 1, func() bool {
			w.store.mayBypass = w.rng.IntN(4) > 0
			return weakly(Policy{Days: 6})
		}},
		{"GOVERNANCE from before", 4, func() bool {
			days := int32(1 + w.rng.IntN(3))
			x, ok := e.serving(Policy{Days: days})
			if !ok {
				return false
			}
			e.chain(x, 1+w.rng.IntN(4))
			w.store.mayBypass = w.rng.IntN(4) > 0
			w.settle(time.Hour)
			e.configure(x.d, Policy{Days: days, Locked: true})
			return judge(4 * time.Hour)
		}},
		{"retention grows", 2, func() bool {
			x, ok := e.serving(Policy{Days: int32(1 + w.rng.IntN(3)), Locked: true})
			if !ok {
				return false
			}
			e.chain(x, 1+w.rng.IntN(4))
			w.settle(time.Hour)
			recorded := w.truth.promise(x.BucketName).recorded
			if recorded.Days > 4 || !recorded.Locked {
				return false
			}
			e.configure(x.d, Policy{Days: recorded.Days + 1, Locked: true})
			return judge(4 * time.Hour)
		}},
	}
}

// serving is an entry that is served in a bucket on S3 with a policy, the recorded one if that is locked; false if there is none.
// Nobody keeps the daemon from extending versions.
func (e *simEnv) serving(p Policy) (x simEntry, ok bool) {
	w := e.w
	d := pick(w, w.daemons)
	bucket := e.bucketOf(d)
	if e.kinds[bucket] != storeS3 {
		return x, false
	}
	clear(w.store.broken)
	e.allowRetention()
	e.putBucket(d)
	switch recorded := w.truth.promise(bucket).recorded; {
	case w.truth.promise(bucket).deleting, recorded.Locked && !p.Locked:
		return x, false
	case recorded.Locked:
		p = recorded
	}
	e.configure(d, p)
	w.settle(10 * time.Minute)
	name := pick(w, simShoots)
	if e.mayMake(d, name, bucket) {
		e.putEntry(d, name, bucket, operationReconcile)
	}
	e.tokens()
	w.settle(30 * time.Minute)
	found := e.entries(func(x simEntry) bool {
		return x.d == d && x.Name == name && x.BucketName == bucket && x.live() && x.plain() && x.succeeded() && !x.migrated()
	})
	if len(found) == 0 || w.failed != "" || w.store.buckets[bucket] == nil {
		return x, false
	}
	w.count("note", "entry of a story")
	return found[0], true
}

// configure has gardenlet ask for a policy.
func (e *simEnv) configure(d *simDaemon, p Policy) {
	bucket := e.bucketOf(d)
	mode := modeGovernance
	if p.Locked {
		mode = modeCompliance
	}
	d.api.edit(resourceBackupBuckets, "", bucket, func(u *unstructured.Unstructured) {
		if u.GetDeletionTimestamp() != nil {
			return
		}
		spec := u.Object["spec"].(simObject)
		spec["providerConfig"] = simObject{"apiVersion": e.typeOf(bucket) + providerGroupSuffix + "/v1alpha1", "kind": backupBucketConfigKind,
			"immutability": simObject{"retentionType": "bucket", "retentionPeriod": p.Hours(), "mode": mode}}
		e.w.note("gardenlet %s configures %s: %s", d.name, bucket, p)
		annotate(u, map[string]string{annotationOperation: operationReconcile, annotationTimestamp: simTimestamp()})
	})
}

// chain has the etcd of an entry write a full snapshot and deltas, with names as etcd-backup-restore gives them.
func (e *simEnv) chain(x simEntry, n int) {
	b := e.w.store.buckets[x.BucketName]
	for i := range n {
		e.written++
		kind, first := snapshotDelta, e.written
		if i == 0 {
			kind, first = snapshotFull, 0
		}
		e.w.store.put(b, fmt.Sprintf("%s/%s/v2/%s-%08d-%08d-%d", entryBase(x.Name), etcdName, kind, first, e.written, e.w.store.now().Unix()), 1024)
	}
}

// countExtended counts what a life has extended.
func (l *simLife) countExtended() {
	families, err := l.metrics.registry.Gather()
	if err != nil {
		panic(err)
	}
	for _, family := range families {
		if family.GetName() != "bucketwarden_backupbucket_extended_versions_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, pair := range m.GetLabel() {
				if pair.GetName() == "reason" && m.GetCounter().GetValue() > 0 {
					l.w.counts.add("extended", pair.GetValue(), int(m.GetCounter().GetValue()))
				}
			}
		}
	}
}

// missingReasons are those for which nothing was extended.
func (c simCounts) missingReasons() []string {
	return slices.DeleteFunc(slices.Clone(extensionReasons), func(reason string) bool { return c["extended"][reason] > 0 })
}
