package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// Who else acts in the simulation: gardenlet on both clusters, the etcds that write backups,
// and somebody with credentials and no good intentions (sim_tamper_test.go). Rules: gardenlet
// does what it does in Gardener, in any order that is allowed there; an entry without
// "source-" lives on one cluster at a time, and moves by migrate and restore.

type simEnv struct {
	w *simWorld
	// kinds of the buckets; owners of them.
	kinds   map[string]string
	owner   map[string]*simDaemon
	buckets []string
	secrets int
	written int
	// over: no more is made.
	over bool
}

const simRegion = "eu-1"

var (
	simShoots = []string{"shoot--p--x--u1", "shoot--p--y--u2", "shoot--p--z--u3"}
	// simOdd are entries that are refused, or whose name is a trap.
	simOdd = []string{"plain", "source--a--b", "shoot--p--noregion--u4"}
)

func (e *simEnv) init(w *simWorld) {
	e.w, e.kinds, e.owner = w, map[string]string{}, map[string]*simDaemon{}
	for i, d := range w.daemons {
		for _, namespace := range []string{"garden", "shoot--p--x", "shoot--p--y", "shoot--p--z"} {
			if _, err := d.api.create("namespaces", simObject{"metadata": simObject{"name": namespace}}); err != nil {
				panic(err)
			}
		}
		bucket := []string{"bucket-a", "bucket-b"}[i]
		e.buckets = append(e.buckets, bucket)
		e.owner[bucket], e.kinds[bucket] = d, storeS3
		if w.rng.IntN(4) == 0 {
			e.kinds[bucket] = storeAzure
		}
		if w.rng.IntN(3) == 0 {
			e.adopt(bucket)
		}
		e.putBucket(d)
	}
	for _, base := range []string{"plain", "shoot--p--noregion--u4", "others"} {
		for _, bucket := range e.buckets {
			if b := w.store.buckets[bucket]; b != nil {
				w.store.put(b, base+"/theirs", 7)
			}
		}
	}
}

// adopt makes a bucket before its BackupBucket does, with data of others in it.
func (e *simEnv) adopt(bucket string) {
	e.w.note("bucket %s was there before", bucket)
	b := e.w.store.makeBucket(bucket, simRegion, e.kinds[bucket], true)
	if e.kinds[bucket] == storeAzure {
		g := e.w.store.makeGroup(bucket, true)
		g.account, g.keys = true, []accessKey{e.w.store.newKey("key1"), e.w.store.newKey("key2")}
	}
	if e.w.rng.IntN(4) > 0 {
		e.w.store.put(b, "others/1", 100)
		e.w.store.put(b, "shoot--p--xx--u1/1", 100)
	}
}

func simTimestamp() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// bucketOf is the bucket of a cluster.
func (e *simEnv) bucketOf(d *simDaemon) string {
	i := slices.IndexFunc(e.buckets, func(b string) bool { return e.owner[b] == d })
	return e.buckets[i]
}

func (e *simEnv) typeOf(bucket string) string {
	if e.kinds[bucket] == storeAzure {
		return "azure"
	}
	return "aws"
}

func (e *simEnv) putSecret(d *simDaemon, name string, data map[string][]byte, identity bool) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: name}, Data: data}
	if identity {
		secret.Labels = map[string]string{labelPurpose: purposeTokenRequestor, labelWorkloadProvider: "aws"}
		secret.Annotations = map[string]string{annotationWorkloadName: "n", annotationWorkloadNS: "ns"}
	}
	if _, err := d.api.create("secrets", simUntyped(secret)); err != nil {
		e.w.note("no secret %s: %v", name, err)
	}
}

func (e *simEnv) config(bucket string) any {
	days := e.w.rng.IntN(4)
	if days == 0 {
		return nil
	}
	immutability := simObject{"retentionType": "bucket", "retentionPeriod": fmt.Sprintf("%dh", 24*days)}
	if locked := e.w.rng.IntN(4) > 0; e.kinds[bucket] == storeAzure {
		immutability["locked"] = locked
	} else {
		immutability["mode"] = map[bool]string{true: "compliance", false: "governance"}[locked]
	}
	return simObject{"apiVersion": e.typeOf(bucket) + providerGroupSuffix + "/v1alpha1", "kind": backupBucketConfigKind, "immutability": immutability}
}

func (e *simEnv) putBucket(d *simDaemon) bool {
	bucket := e.bucketOf(d)
	if d.api.read(resourceBackupBuckets, "", bucket) != nil || e.over {
		return false
	}
	e.w.note("gardenlet %s makes BackupBucket %s", d.name, bucket)
	e.secrets++
	name := fmt.Sprintf("bucket-%s-%d", bucket, e.secrets)
	data := map[string][]byte{"accessKeyID": []byte("id-" + bucket), "secretAccessKey": []byte(secretMarker)}
	if e.kinds[bucket] == storeAzure {
		data = map[string][]byte{"clientSecret": []byte("id-" + bucket)}
	}
	e.putSecret(d, name, data, false)
	spec := simObject{"type": e.typeOf(bucket), "region": simRegion, "secretRef": simObject{"namespace": "garden", "name": name}}
	if config := e.config(bucket); config != nil {
		spec["providerConfig"] = config
	}
	_, err := d.api.create(resourceBackupBuckets, simObject{
		"apiVersion": extensionsGV.String(), "kind": kindBackupBucket, "spec": spec,
		"metadata": simObject{"name": bucket, "annotations": simObject{annotationOperation: operationReconcile, annotationTimestamp: simTimestamp()}}})
	if b := e.w.store.buckets[bucket]; b != nil && b.foreign && e.w.rng.IntN(3) == 0 {
		e.w.note("another controller had made the bucket of BackupBucket %s", bucket)
		status := simObject{"status": simObject{"observedGeneration": 1, "lastOperation": simObject{
			"type": "Create", "state": "Succeeded", "progress": 100, "description": "theirs", "lastUpdateTime": testStart.Format(time.RFC3339)}}}
		if _, err := d.api.patch(resourceBackupBuckets, "", bucket, types.MergePatchType, []byte(simJSON(status)), "status"); err != nil {
			panic(err)
		}
		e.w.truth.promise(bucket).takenOver = true
	}
	return err == nil
}

// entryData are the credentials of an entry; nil if there are none yet.
func (e *simEnv) entryData(bucket string) map[string][]byte {
	if e.kinds[bucket] == storeS3 {
		return map[string][]byte{"accessKeyID": []byte("id-entry-" + bucket), "secretAccessKey": []byte(secretMarker)}
	}
	o := e.owner[bucket].api.read("secrets", "garden", generatedSecretPrefix+bucket)
	if o == nil {
		return nil
	}
	return simTyped[corev1.Secret](o).Data
}

func (e *simEnv) putEntry(d *simDaemon, name, bucket, operation string) bool {
	if d.api.read(resourceBackupEntries, "", name) != nil {
		return false
	}
	if operation == operationReconcile && e.elsewhere(d, name, bucket) {
		operation = operationRestore
	}
	e.secrets++
	secret := fmt.Sprintf("entry-%s-%d", name, e.secrets)
	data, identity := e.entryData(bucket), false
	if data == nil {
		return false
	}
	if e.kinds[bucket] == storeS3 && e.w.rng.IntN(4) == 0 {
		identity, data = true, map[string][]byte{dataKeyRoleARN: []byte("arn:aws:iam::123456789012:role/backup")}
	}
	e.putSecret(d, secret, data, identity)
	spec := simObject{"type": e.typeOf(bucket), "region": simRegion, "bucketName": bucket, "secretRef": simObject{"namespace": "garden", "name": secret}}
	if strings.Contains(name, "noregion") {
		spec["region"] = ""
	}
	e.setProviderStatus(spec, bucket)
	_, err := d.api.create(resourceBackupEntries, simObject{
		"apiVersion": extensionsGV.String(), "kind": kindBackupEntry, "spec": spec,
		"metadata": simObject{"name": name, "annotations": simObject{annotationOperation: operation, annotationTimestamp: simTimestamp()}}})
	e.w.note("gardenlet %s makes BackupEntry %s in %s to %s, identity: %t (%v)", d.name, name, bucket, operation, identity, err)
	return err == nil
}

// elsewhere says that a prefix was used by another cluster, or may have a tombstone that
// another one sweeps. In Gardener a name contains the UID of its cluster, so that such an entry
// comes by restore alone.
func (e *simEnv) elsewhere(d *simDaemon, name, bucket string) bool {
	return !strings.HasPrefix(name, sourcePrefix) && slices.ContainsFunc(e.w.truth.owners, func(o *simOwner) bool {
		return o.base == name && o.bucket == bucket && (o.api != d.api || e.owner[bucket] != d)
	})
}

func (e *simEnv) setProviderStatus(spec simObject, bucket string) {
	if o := e.owner[bucket].api.read(resourceBackupBuckets, "", bucket); o != nil {
		if status, ok, _ := unstructured.NestedMap(o, "status", "providerStatus"); ok {
			spec["backupBucketProviderStatus"] = status
		}
	}
}

// simEntry is a BackupEntry that is there.
type simEntry struct {
	d *simDaemon
	*backupEntry
}

func (e *simEnv) entries(of func(simEntry) bool) []simEntry {
	var found []simEntry
	for _, d := range e.w.daemons {
		for _, name := range d.api.names(resourceBackupEntries) {
			entry := simEntry{d, decodeEntry(simMeta(d.api.read(resourceBackupEntries, "", name)))}
			if of == nil || of(entry) {
				found = append(found, entry)
			}
		}
	}
	return found
}

func (x simEntry) live() bool  { return x.DeletionTimestamp == nil }
func (x simEntry) plain() bool { return x.operation() == "" }
func (x simEntry) migrated() bool {
	return x.LastOperation != nil && x.LastOperation.Type == operationTypeMigrate
}

func (e *simEnv) annotate(d *simDaemon, resource, name string, annotations map[string]string) bool {
	return d.api.edit(resource, "", name, func(u *unstructured.Unstructured) { annotate(u, annotations) })
}

// annotate sets annotations, or removes those that are empty, as gardenlet does: it keeps those of others.
func annotate(u *unstructured.Unstructured, annotations map[string]string) {
	all := u.GetAnnotations()
	if all == nil {
		all = map[string]string{}
	}
	for key, value := range annotations {
		if all[key] = value; value == "" {
			delete(all, key)
		}
	}
	u.SetAnnotations(all)
}

// limbo are the entries that were handed over and that nobody has taken yet.
func (e *simEnv) limbo() []*simOwner {
	return slices.DeleteFunc(slices.Clone(e.w.truth.owners), func(o *simOwner) bool { return !o.gone || o.live == 0 })
}

// simAction is something that somebody does; false if it is not possible now.
type simAction struct {
	name   string
	weight int
	do     func() bool
}

// act does something; pass is the one in whose middle, nil if in none.
func (e *simEnv) act(pass *simPass) {
	actions := slices.Concat(e.gardenlet(pass), e.tamper(pass), e.retention(), e.stories(pass))
	total := 0
	for _, a := range actions {
		total += a.weight
	}
	for range 8 {
		n := e.w.rng.IntN(total)
		for _, a := range actions {
			if n -= a.weight; n >= 0 {
				continue
			}
			if a.do() {
				e.w.count("act", a.name)
				return
			}
			break
		}
	}
}

func (e *simEnv) gardenlet(pass *simPass) []simAction {
	w := e.w
	d := pick(w, w.daemons)
	// In the middle of a pass things happen most often to what it works on.
	name := pick(w, simShoots)
	if w.rng.IntN(2) == 0 {
		name = sourcePrefix + name
	}
	if w.rng.IntN(8) == 0 {
		name = pick(w, simOdd)
	}
	if pass != nil && pass.ctl.c.resource == resourceBackupEntries && w.rng.IntN(4) > 0 {
		d, name = pass.life.daemon, pass.key
		if w.rng.IntN(3) == 0 {
			name = entryBase(name)
		}
	}
	one := func(of func(simEntry) bool) (simEntry, bool) {
		found := e.entries(of)
		if len(found) == 0 {
			return simEntry{}, false
		}
		if same := slices.DeleteFunc(slices.Clone(found), func(x simEntry) bool { return x.d != d || x.Name != name }); len(same) > 0 {
			found = same
		}
		return pick(w, found), true
	}
	bucket := pick(w, e.buckets)
	if w.rng.IntN(2) == 0 {
		bucket = e.bucketOf(d)
	}
	own := e.bucketOf(d)
	return []simAction{
		{"BackupBucket made", 4, func() bool { return e.putBucket(d) }},
		{"BackupBucket configured", 5, func() bool {
			return !e.over && d.api.edit(resourceBackupBuckets, "", own, func(u *unstructured.Unstructured) {
				if u.GetDeletionTimestamp() != nil {
					return
				}
				spec := u.Object["spec"].(simObject)
				delete(spec, "providerConfig")
				if config := e.config(own); config != nil {
					spec["providerConfig"] = config
				}
				w.note("gardenlet %s configures %s: %s", d.name, own, simJSON(spec["providerConfig"]))
				annotate(u, map[string]string{annotationOperation: operationReconcile, annotationTimestamp: simTimestamp()})
			})
		}},
		{"BackupBucket poked", 3, func() bool {
			o := d.api.read(resourceBackupBuckets, "", own)
			annotations := map[string]string{annotationTimestamp: simTimestamp()}
			if o != nil && simMeta(o).GetDeletionTimestamp() == nil {
				annotations[annotationOperation] = operationReconcile
			}
			return e.annotate(d, resourceBackupBuckets, own, annotations)
		}},
		{"BackupBucket deleted", 1, func() bool {
			owned := slices.ContainsFunc(w.truth.owners, func(o *simOwner) bool { return o.bucket == own && o.live > 0 })
			if owned || len(e.entries(func(x simEntry) bool { return x.BucketName == own && (x.d != d || x.live()) })) > 0 {
				return false
			}
			w.note("gardenlet %s deletes BackupBucket %s", d.name, own)
			return d.api.delete(resourceBackupBuckets, "", own, nil) == nil
		}},
		{"secret of BackupBucket changed", 1, func() bool {
			return d.api.edit(resourceBackupBuckets, "", own, func(u *unstructured.Unstructured) {
				if u.GetDeletionTimestamp() == nil {
					e.changeSecret(d, u)
				}
			})
		}},
		{"BackupEntry made", 14, func() bool {
			if e.over || !e.mayMake(d, name, bucket) {
				return false
			}
			return e.putEntry(d, name, bucket, operationReconcile)
		}},
		{"BackupEntry restored", 8, func() bool {
			limbo := e.limbo()
			if len(limbo) == 0 {
				return false
			}
			o := pick(w, limbo)
			if bb := w.truth.promise(o.bucket); !bb.exists || bb.deleting {
				return false
			}
			if w.rng.IntN(4) > 0 {
				d = w.daemons[0]
				if d.api == o.api {
					d = w.daemons[1]
				}
			}
			operation := operationRestore
			if w.rng.IntN(4) == 0 {
				operation = operationWaitForState
			}
			return e.putEntry(d, o.name, o.bucket, operation)
		}},
		{"BackupEntry's state came", 6, func() bool {
			x, ok := one(func(x simEntry) bool { return x.live() && x.operation() == operationWaitForState })
			return ok && e.annotate(x.d, resourceBackupEntries, x.Name, map[string]string{annotationOperation: operationRestore, annotationTimestamp: simTimestamp()})
		}},
		{"BackupEntry poked", 8, func() bool {
			x, ok := one(func(x simEntry) bool { return x.plain() && !x.migrated() })
			if !ok {
				return false
			}
			annotations := map[string]string{annotationTimestamp: simTimestamp()}
			if x.live() {
				x.d.api.edit(resourceBackupEntries, "", x.Name, func(u *unstructured.Unstructured) {
					e.setProviderStatus(u.Object["spec"].(simObject), x.BucketName)
				})
				e.refreshKey(x)
				annotations[annotationOperation] = operationReconcile
			}
			return e.annotate(x.d, resourceBackupEntries, x.Name, annotations)
		}},
		{"BackupEntry deleted", 9, func() bool {
			x, ok := one(func(x simEntry) bool { return x.live() && x.operation() != operationMigrate && !x.migrated() })
			if !ok {
				return false
			}
			w.note("gardenlet %s deletes BackupEntry %s", x.d.name, x.Name)
			return x.d.api.delete(resourceBackupEntries, "", x.Name, nil) == nil
		}},
		{"BackupEntry to migrate", 5, func() bool {
			x, ok := one(func(x simEntry) bool {
				return x.live() && x.plain() && !x.migrated() && !strings.HasPrefix(x.Name, sourcePrefix)
			})
			if !ok || e.over || w.truth.promise(x.BucketName).deleting {
				return false
			}
			w.note("gardenlet %s migrates BackupEntry %s", x.d.name, x.Name)
			return e.annotate(x.d, resourceBackupEntries, x.Name, map[string]string{annotationOperation: operationMigrate, annotationTimestamp: simTimestamp()})
		}},
		{"migrated BackupEntry deleted", 10, func() bool {
			x, ok := one(func(x simEntry) bool { return x.live() && x.migrated() && x.succeeded() && x.plain() })
			return ok && x.d.api.delete(resourceBackupEntries, "", x.Name, nil) == nil
		}},
		{"secret of BackupEntry changed", 2, func() bool {
			x, ok := one(func(x simEntry) bool { return x.live() && x.plain() && !x.migrated() })
			return ok && x.d.api.edit(resourceBackupEntries, "", x.Name, func(u *unstructured.Unstructured) { e.changeSecret(x.d, u) })
		}},
		{"token came", 4, func() bool { return e.tokens() }},
		{"unused secrets deleted", 4, func() bool { return e.collect() }},
		{"objects written", 14, func() bool { return e.write() }},
		{"etcd's own garbage collection", 3, func() bool { return e.collectObjects() }},
	}
}

// mayMake says that Gardener could make an entry now.
func (e *simEnv) mayMake(d *simDaemon, name, bucket string) bool {
	o := e.owner[bucket].api.read(resourceBackupBuckets, "", bucket)
	if o == nil || simMeta(o).GetDeletionTimestamp() != nil && (d != e.owner[bucket] || e.w.rng.IntN(4) > 0) {
		return false
	}
	if strings.HasPrefix(name, sourcePrefix) {
		return true
	}
	for _, owner := range e.w.truth.owners {
		if owner.name == name && owner.live > 0 && (owner.api != d.api || owner.gone) {
			return false
		}
	}
	return true
}

// changeSecret gives an object another secret with the same credentials.
func (e *simEnv) changeSecret(d *simDaemon, u *unstructured.Unstructured) {
	old, _, _ := unstructured.NestedString(u.Object, "spec", "secretRef", "name")
	o := d.api.read("secrets", "garden", old)
	if o == nil {
		return
	}
	secret := simTyped[corev1.Secret](o)
	e.secrets++
	name := fmt.Sprintf("%s-%d", strings.TrimRight(old, "0123456789"), e.secrets)
	e.putSecret(d, name, secret.Data, isWorkloadIdentity(secret))
	e.w.note("gardenlet %s gives %s the secret %s in place of %s", d.name, u.GetName(), name, old)
	_ = unstructured.SetNestedField(u.Object, name, "spec", "secretRef", "name")
	annotations := u.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	if annotations[annotationOperation] == "" {
		annotations[annotationOperation] = operationReconcile
	}
	annotations[annotationTimestamp] = simTimestamp()
	u.SetAnnotations(annotations)
}

// refreshKey gives an entry on Azure the key that is published now.
func (e *simEnv) refreshKey(x simEntry) {
	if e.kinds[x.BucketName] != storeAzure {
		return
	}
	if data := e.entryData(x.BucketName); data != nil {
		x.d.api.edit("secrets", x.SecretRef.Namespace, x.SecretRef.Name, func(u *unstructured.Unstructured) {
			u.Object["data"] = simUntyped(&corev1.Secret{Data: data})["data"]
		})
	}
}

// tokens gives the workload identities that have none a token.
func (e *simEnv) tokens() bool {
	changed := false
	for _, d := range e.w.daemons {
		for _, name := range d.api.names("secrets") {
			namespace, name, _ := strings.Cut(name, "/")
			secret := simTyped[corev1.Secret](d.api.read("secrets", namespace, name))
			if isWorkloadIdentity(secret) && len(secret.Data[dataKeyToken]) == 0 && namespace == "garden" {
				d.api.edit("secrets", namespace, name, func(u *unstructured.Unstructured) {
					secret.Data[dataKeyToken] = []byte("token")
					u.Object["data"] = simUntyped(secret)["data"]
				})
				changed = true
			}
		}
	}
	return changed
}

// collect deletes the secrets that no object refers to any more, as gardenlet does.
func (e *simEnv) collect() bool {
	changed := false
	for _, d := range e.w.daemons {
		used := map[string]bool{}
		for _, resource := range []string{resourceBackupBuckets, resourceBackupEntries} {
			for _, name := range d.api.names(resource) {
				ref, _, _ := unstructured.NestedString(d.api.read(resource, "", name), "spec", "secretRef", "name")
				used[ref] = true
			}
		}
		for _, key := range d.api.names("secrets") {
			namespace, name, _ := strings.Cut(key, "/")
			if (strings.HasPrefix(name, "entry-") || strings.HasPrefix(name, "bucket-")) && !used[name] {
				changed = d.api.delete("secrets", namespace, name, nil) == nil || changed
			}
		}
	}
	return changed
}

// write lets the etcd of an entry that is served write backups.
func (e *simEnv) write() bool {
	serving := e.entries(func(x simEntry) bool {
		return x.live() && x.succeeded() && !x.migrated() && x.operation() != operationMigrate && e.w.store.buckets[x.BucketName] != nil
	})
	if len(serving) == 0 {
		return false
	}
	x := pick(e.w, serving)
	b := e.w.store.buckets[x.BucketName]
	for range 1 + e.w.rng.IntN(4) {
		e.written++
		name := func(n int) string { return fmt.Sprintf("%s/etcd-main/v2/Full-0-%d-%d", entryBase(x.Name), n, 1+n) }
		key := name(e.written)
		if e.w.rng.IntN(6) == 0 {
			key = name(1 + e.w.rng.IntN(e.written))
		}
		if v := e.w.store.put(b, key, 1024); v != nil && b.kind == storeS3 {
			switch e.w.rng.IntN(12) {
			// Written with a retention of its own, or none.
			case 0:
				v.odd = true
				v.until = v.created.Add(time.Duration(e.w.rng.IntN(96)) * time.Hour)
			case 1, 2, 3:
				v.until, v.odd = time.Time{}, true
			case 4:
				v.marker, v.until, v.size = true, time.Time{}, 0
			}
		}
	}
	return true
}

// collectObjects deletes what is free of a live entry, as etcd-backup-restore does.
func (e *simEnv) collectObjects() bool {
	for _, name := range e.buckets {
		b := e.w.store.buckets[name]
		if b == nil {
			continue
		}
		for _, v := range b.versions {
			if strings.Contains(v.key, "/etcd-main/") && e.w.store.free(b, v) && e.w.rng.IntN(3) == 0 {
				return e.w.store.remove(name, v)
			}
		}
	}
	return false
}
