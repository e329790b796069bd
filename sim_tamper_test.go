package main

import (
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Somebody who tampers with what the daemons stand on: the bucket's default retention, its
// objects and marks, finalizers, annotations, secrets and credentials. Rules: what nobody
// could see to afterwards excuses the daemons from that prefix alone, and is written down
// (simPrefix); a lock that the store keeps is never in anybody's way, and what was made stronger is no error.

func (e *simEnv) tamper(pass *simPass) []simAction {
	w := e.w
	bucket := pick(w, e.buckets)
	b := w.store.buckets[bucket]
	owner := e.owner[bucket]
	deleting := e.entries(func(x simEntry) bool {
		return !x.live() && (pass == nil || pass.ctl.c.resource != resourceBackupEntries || x.Name == pass.key && x.d == pass.life.daemon)
	})
	return []simAction{
		{"default retention changed", 4, func() bool {
			if b == nil {
				return false
			}
			p := Policy{Days: int32(w.rng.IntN(6)), Locked: w.rng.IntN(2) == 0}
			if p.None() || b.kind == storeAzure {
				// There a stranger can only add to a lock.
				p.Locked = b.kind == storeAzure && w.rng.IntN(4) == 0 && !p.None()
			}
			if p == b.policy || !w.store.setPolicy(b, p) {
				return false
			}
			w.note("somebody sets the policy of %s to %s", bucket, p)
			w.store.repaired(b)
			return true
		}},
		{"policy made stronger", 3, func() bool {
			if b == nil {
				return false
			}
			p := Policy{Days: b.policy.Days + int32(w.rng.IntN(3)), Locked: true}
			// In the end everything has to be free.
			if p.Days == 0 || p.Days > 6 || p == b.policy || !w.store.setPolicy(b, p) {
				return false
			}
			w.note("somebody makes the policy of %s stronger: %s", bucket, p)
			w.store.repaired(b)
			return true
		}},
		{"foreign object put", 2, func() bool {
			if b == nil {
				return false
			}
			w.store.put(b, pick(w, []string{"others/2", "plain/theirs", "shoot--p--noregion--u4/theirs", "shoot--p--xx--u1/2", ".bucketwarden/tombstones/shoot--p--x--u1/junk",
				".bucketwarden/tombstones/junk", ".bucketwarden/tombstones/shoot--p--x--u1/deleted-20200101T000000Z-1-1-short"}), 5)
			return true
		}},
		{"legal hold set", 1, func() bool {
			if b == nil || b.kind != storeS3 || len(b.versions) == 0 {
				return false
			}
			pick(w, b.versions).hold = true
			return true
		}},
		{"legal holds cleared", 3, func() bool { return e.unhold() }},
		{"mark removed", 1, func() bool {
			if b == nil {
				return false
			}
			for _, v := range b.versions {
				if m, ok := parseMark(v.key, time.Time{}); ok && w.store.free(b, v) && w.rng.IntN(2) == 0 {
					w.note("somebody removes the mark %s", v.key)
					w.truth.prefix(bucket, m.entry).excused = "a mark was removed"
					w.truth.prefix(bucket, m.entry).unmarked = true
					return w.store.remove(bucket, v)
				}
			}
			return false
		}},
		{"finalizers removed by hand", 2, func() bool {
			if len(deleting) == 0 {
				return false
			}
			x := pick(w, deleting)
			w.note("somebody removes the finalizers of %s on %s", x.Name, x.d.name)
			p := w.truth.prefix(x.BucketName, entryBase(x.Name))
			p.excused = "the finalizers were removed by hand"
			w.truth.excuseSecret(x.d.api, &x.object)
			x.d.api.edit(resourceBackupEntries, "", x.Name, func(u *unstructured.Unstructured) { u.SetFinalizers(nil) })
			if w.rng.IntN(3) > 0 {
				// And the entry is made anew.
				e.putEntry(x.d, x.Name, x.BucketName, operationReconcile)
			}
			return true
		}},
		{"entry annotated while it is deleted", 3, func() bool {
			if len(deleting) == 0 {
				return false
			}
			x := pick(w, deleting)
			operation := pick(w, []string{operationMigrate, operationMigrate, operationWaitForState, operationReconcile, operationRestore})
			if operation == operationMigrate && w.truth.promise(x.BucketName).deleting {
				// Gardener keeps the bucket of one that migrates.
				return false
			}
			w.note("somebody annotates %s on %s with %s", x.Name, x.d.name, operation)
			return e.annotate(x.d, resourceBackupEntries, x.Name, map[string]string{annotationOperation: operation})
		}},
		{"operation annotation removed", 1, func() bool {
			held := e.entries(func(x simEntry) bool { return x.operation() == operationWaitForState })
			if len(held) == 0 {
				return false
			}
			x := pick(w, held)
			return e.annotate(x.d, resourceBackupEntries, x.Name, map[string]string{annotationOperation: ""})
		}},
		{"finalizer of a live object removed", 1, func() bool {
			live := e.entries(func(x simEntry) bool { return x.live() && len(x.Finalizers) > 0 })
			if len(live) == 0 || w.rng.IntN(2) == 0 {
				return owner.api.edit(resourceBackupBuckets, "", bucket, func(u *unstructured.Unstructured) {
					if u.GetDeletionTimestamp() == nil {
						w.truth.excuseSecret(owner.api, &decodeBucket(u).object)
						u.SetFinalizers(nil)
					}
				})
			}
			x := pick(w, live)
			w.truth.prefix(x.BucketName, entryBase(x.Name)).excused = "the finalizer was removed by hand"
			w.truth.excuseSecret(x.d.api, &x.object)
			return x.d.api.edit(resourceBackupEntries, "", x.Name, func(u *unstructured.Unstructured) { u.SetFinalizers(nil) })
		}},
		{"finalizer of a secret removed", 1, func() bool {
			names := owner.api.names("secrets")
			if len(names) == 0 {
				return false
			}
			namespace, name, _ := strings.Cut(pick(w, names), "/")
			return owner.api.edit("secrets", namespace, name, func(u *unstructured.Unstructured) {
				if u.GetDeletionTimestamp() == nil {
					u.SetFinalizers(nil)
				}
			})
		}},
		{"credentials broken", 1, func() bool {
			w.store.broken[pick(w, []string{"id-" + bucket, "id-entry-" + bucket})] = true
			return true
		}},
		{"credentials repaired", 4, func() bool {
			was := len(w.store.broken) > 0
			clear(w.store.broken)
			return was
		}},
		{"resource group shared", 1, func() bool {
			g := w.store.groups[bucket]
			if g == nil {
				return false
			}
			g.other = !g.other
			return true
		}},
	}
}

// focus does, in the middle of a pass that deletes, what matters most to it: its own entry
// or the sibling comes alive, on this cluster or on the other one.
func (e *simEnv) focus(pass *simPass) bool {
	w := e.w
	if e.over || w.rng.IntN(3) == 0 {
		return false
	}
	d, name := pass.life.daemon, pass.key
	if pass.ctl.c.resource == resourceBackupBuckets {
		name = pick(w, simShoots)
		if !w.truth.promise(pass.key).deleting || !e.mayMake(d, name, pass.key) || !e.putEntry(d, name, pass.key, operationReconcile) {
			return false
		}
		w.count("act", "BackupEntry made while its BackupBucket goes")
		return true
	}
	if pass.ctl.c.resource == resourceSweeps {
		bases := e.condemned(pass.key)
		if len(bases) == 0 {
			return false
		}
		name = pick(w, bases)
		if w.rng.IntN(2) == 0 {
			d = pick(w, w.daemons)
		}
		if !e.mayMake(d, name, pass.key) || !e.putEntry(d, name, pass.key, operationReconcile) {
			return false
		}
		w.count("act", "BackupEntry made during a sweep")
		for range 2 {
			w.catchUp(d, name)
		}
		return true
	}
	o := d.api.read(resourceBackupEntries, "", name)
	if o == nil || simMeta(o).GetDeletionTimestamp() == nil {
		return false
	}
	x := decodeEntry(simMeta(o))
	p := w.truth.prefix(x.BucketName, entryBase(name))
	switch w.rng.IntN(6) {
	case 0:
		w.note("somebody removes the finalizers of %s on %s, and it is made anew", name, d.name)
		p.excused = "the finalizers were removed by hand"
		w.truth.excuseSecret(d.api, &x.object)
		d.api.edit(resourceBackupEntries, "", name, func(u *unstructured.Unstructured) { u.SetFinalizers(nil) })
		p.excused = ""
		w.count("act", "BackupEntry made anew during its purge")
		return e.putEntry(d, name, x.BucketName, operationReconcile)
	case 1:
		if w.truth.promise(x.BucketName).deleting || !e.annotate(d, resourceBackupEntries, name, map[string]string{annotationOperation: operationMigrate}) {
			return false
		}
		w.note("somebody annotates %s on %s with migrate", name, d.name)
		w.count("act", "BackupEntry to migrate during its purge")
		return true
	case 2:
		w.note("somebody annotates %s on %s with wait-for-state", name, d.name)
		w.count("act", "BackupEntry to wait during its purge")
		return e.annotate(d, resourceBackupEntries, name, map[string]string{annotationOperation: operationWaitForState})
	default:
		// The sibling, or the other cluster takes the prefix into use.
		other := pick(w, []string{entryBase(name), sourcePrefix + entryBase(name)})
		if w.rng.IntN(2) == 0 {
			d = pick(w, w.daemons)
		}
		if !e.mayMake(d, other, x.BucketName) || !e.putEntry(d, other, x.BucketName, operationReconcile) {
			return false
		}
		w.count("act", "another BackupEntry made during a purge")
		if w.rng.IntN(2) == 0 {
			w.catchUp(d, other)
		}
		return true
	}
}

// condemned are the names whose objects in a bucket are to go.
func (e *simEnv) condemned(bucket string) []string {
	var names []string
	for _, name := range simShoots {
		if p := e.w.truth.prefix(bucket, name); p.condemned {
			names = append(names, name)
		}
	}
	return names
}

// catchUp shows a daemon what there is and lets it make a pass over an entry.
func (w *simWorld) catchUp(d *simDaemon, name string) {
	if !d.up {
		return
	}
	d.entries.deliverAll()
	for _, r := range w.ready(d) {
		if r.ctl.c.resource == resourceBackupEntries && r.key.Name == name {
			w.start(r.ctl, r.key)
			return
		}
	}
}

// unhold clears all legal holds.
func (e *simEnv) unhold() bool {
	changed := false
	for _, name := range e.buckets {
		if b := e.w.store.buckets[name]; b != nil {
			for _, v := range b.versions {
				changed = changed || v.hold
				v.hold = false
			}
		}
	}
	return changed
}

// finish ends all life: entries, retention, buckets. What is left then was forgotten.
func (e *simEnv) finish() {
	w := e.w
	e.over, w.faults = true, false
	clear(w.store.broken)
	e.allowRetention()
	e.tokens()
	e.unhold()
	w.settle(2 * simVerifyInterval)
	for round := range 6 {
		// Whoever was handed over lives on.
		for _, o := range e.limbo() {
			e.putEntry(w.daemons[round%2], o.name, o.bucket, operationRestore)
		}
		for _, x := range e.entries(nil) {
			switch {
			case x.operation() == operationWaitForState, x.operation() == operationMigrate && !x.live():
				e.annotate(x.d, resourceBackupEntries, x.Name, map[string]string{annotationOperation: ""})
			}
			e.refreshKey(x)
		}
		e.tokens()
		w.settle(simVerifyInterval + time.Minute)
		w.truth.settled()
		for _, x := range e.entries(nil) {
			if x.live() && (x.migrated() || round > 1) {
				_ = x.d.api.delete(resourceBackupEntries, "", x.Name, nil)
			} else {
				e.annotate(x.d, resourceBackupEntries, x.Name, map[string]string{annotationTimestamp: simTimestamp()})
			}
		}
		w.settle(simVerifyInterval + time.Minute)
		if w.failed != "" {
			return
		}
	}
	// Retention ends, and then there is time for what is due. gardenlet asks for a reconcile of what has been as it is for 12 hours.
	for range 14 {
		ended := e.free()
		for _, d := range w.daemons {
			e.annotate(d, resourceBackupBuckets, e.bucketOf(d), map[string]string{annotationOperation: operationReconcile, annotationTimestamp: simTimestamp()})
		}
		w.settle(12 * time.Hour)
		if w.failed != "" {
			return
		}
		if ended {
			w.settle(12 * time.Hour)
			break
		}
	}
	if w.truth.ended(); w.failed != "" {
		return
	}
	for _, d := range w.daemons {
		_ = d.api.delete(resourceBackupBuckets, "", e.bucketOf(d), nil)
	}
	w.settle(time.Hour)
	for i := 0; i < 14 && (len(w.store.buckets) > 0 || len(w.store.groups) > 0); i++ {
		w.settle(12 * time.Hour)
	}
	e.collect()
	e.ended()
}

// free says that nothing is retained any more.
func (e *simEnv) free() bool {
	for _, name := range e.buckets {
		b := e.w.store.buckets[name]
		if b != nil && slices.ContainsFunc(b.versions, func(v *simVersion) bool { return !e.w.store.free(b, v) }) {
			return false
		}
	}
	return true
}

// ended is what holds once the BackupBuckets were deleted too.
func (e *simEnv) ended() {
	w := e.w
	for _, bucket := range e.buckets {
		b, g, p := w.store.buckets[bucket], w.store.group(bucket), w.truth.promise(bucket)
		switch d := e.owner[bucket]; {
		case p.exists:
			w.violation("bucket stuck", "BackupBucket %s is still there: %s", bucket, simJSON(d.api.read(resourceBackupBuckets, "", bucket)))
		case b != nil && (!b.foreign || p.takenOver) && p.everReady && p.ours:
			keys := []string{}
			for _, v := range b.versions {
				keys = append(keys, v.key)
			}
			w.violation("bucket left", "bucket %s is still there with %q", bucket, keys)
		case g != nil && !g.foreign && !g.other && p.everReady && p.ours:
			w.violation("group left", "the resource group %s is still there", bucket)
		}
	}
	for _, d := range w.daemons {
		for _, key := range d.api.names("secrets") {
			namespace, name, _ := strings.Cut(key, "/")
			f := simMeta(d.api.read("secrets", namespace, name)).GetFinalizers()
			if w.truth.excusedSecrets[d.name+" "+key] == "" && (slices.Contains(f, finalizerBackupEntry) || slices.Contains(f, finalizerBackupBucket)) {
				w.violation("secret held", "the secret %s of %s is still held: %v", key, d.name, f)
			}
		}
	}
}
