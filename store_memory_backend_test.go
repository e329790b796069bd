package main

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/events"
)

// memoryBackend is the server as a backend of the acceptance suite.
type memoryBackend struct{ *memoryServer }

func (b memoryBackend) kind() string { return storeMemory }

func (b memoryBackend) opener(m *metrics) provider { return &memoryProvider{b.memoryServer, m} }

func (b memoryBackend) ref(bucket string) bucketRef {
	return bucketRef{Name: bucket, Region: memoryRegion}
}

func (b memoryBackend) credentials() map[string][]byte {
	return map[string][]byte{memoryKey: []byte(b.key)}
}

func (b memoryBackend) permission() string { return "GetBucket" }

func (b memoryBackend) maxDays() int32 { return memoryMaxDays }

func (b memoryBackend) now(*testing.T) time.Time { return time.Now() }

func (b memoryBackend) apart(*testing.T, time.Duration) {}

func (b memoryBackend) wrong(bucket *suiteBucket) []wrongStore {
	opener, ref, elsewhere := b.opener(newMetrics()), b.ref(bucket.name), bucketRef{Name: bucket.name, Region: "cellar"}
	key := suiteWith(b.credentials(), memoryKey, "wrong")
	return []wrongStore{
		{name: "key", opener: opener, ref: ref, credentials: key, want: codeUnauthenticated},
		{name: "key of an entry", opener: opener, ref: ref, credentials: key, entry: true, want: codeUnauthenticated},
		{name: "region", opener: opener, ref: elsewhere, credentials: b.credentials(), want: codeConfigurationProblem, notOurs: true},
	}
}

// with calls f with a bucket; there may be none.
func (b memoryBackend) with(bucket string, f func(*memoryBucket)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if of := b.buckets[bucket]; of != nil {
		f(of)
	}
}

func (b memoryBackend) put(t *testing.T, bucket, name string, size int) {
	t.Helper()
	if err := b.tryPut(bucket, name, size); err != nil {
		t.Error(err)
	}
}

func (b memoryBackend) tryPut(bucket, name string, size int) error {
	err := errNoBucket
	b.with(bucket, func(of *memoryBucket) { b.write(of, version{key: name, size: int64(size)}); err = nil })
	return err
}

func (b memoryBackend) hide(_ *testing.T, bucket, name string) {
	b.with(bucket, func(of *memoryBucket) { b.write(of, version{key: name, marker: true}) })
}

func (b memoryBackend) list(_ *testing.T, bucket string) (objects []suiteObject) {
	b.with(bucket, func(of *memoryBucket) {
		for _, v := range of.versions {
			objects = append(objects, suiteObject{v.key, v.size})
		}
	})
	return objects
}

func (b memoryBackend) setPolicy(_ *testing.T, bucket string, p Policy) {
	b.with(bucket, func(of *memoryBucket) { of.policy = p })
}

// each calls f for the versions of some names.
func (b memoryBackend) each(bucket string, names []string, f func(*version)) {
	b.with(bucket, func(of *memoryBucket) {
		for i := range of.versions {
			if names == nil || slices.Contains(names, of.versions[i].key) {
				f(&of.versions[i])
			}
		}
	})
}

func (b memoryBackend) hold(_ *testing.T, bucket string, on bool) {
	b.each(bucket, nil, func(v *version) { v.held = on })
}

func (b memoryBackend) until(_ *testing.T, bucket string, names ...string) (until time.Time) {
	b.each(bucket, names, func(v *version) {
		if v.until.After(until) {
			until = v.until
		}
	})
	return until
}

func (b memoryBackend) free(_ *testing.T, bucket string, names ...string) {
	b.each(bucket, names, func(v *version) { v.until = time.Time{} })
}

func (b memoryBackend) fail(_ *testing.T, bucket string, status, times int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures[bucket] = &suiteFailure{status, times}
}

func (b memoryBackend) onDelete(bucket string, f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deletes[bucket] = f
}

func (b memoryBackend) served(_ *testing.T, bucket string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests[bucket]
}

// TestThirdStore: nothing but store_memory_test.go and one line of knownStores is needed for a store to be served.
func TestThirdStore(t *testing.T) {
	t.Parallel()
	t.Run("acceptance", func(t *testing.T) {
		server := newMemoryServer()
		server.mayBypass = true
		testStore(t, memoryBackend{server})
	})
	t.Run("daemon", func(t *testing.T) { synctest.Test(t, testThirdStoreDaemon) })
}

// testThirdStoreDaemon lets a bucket and an entry live and die on the third store. The clock is that of a bubble, for the
// store as well: days pass at once.
func testThirdStoreDaemon(t *testing.T) {
	const bucketName, entryName, namespace = "seed", "shoot--a--b--1", "shoot--a--b"
	server := newMemoryServer()
	backend := memoryBackend{server}
	known := knownStores
	defer func() { knownStores = known }()
	open := func(_ *config, m *metrics) (provider, error) { return backend.opener(m), nil }
	knownStores = append(slices.Clone(known), knownStore{storeMemory, open, nil})

	credentials := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "credentials"}, Data: backend.credentials()}
	core := fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, credentials)
	dyn := informersTestDynamic()
	c := mainTestConfig(t, "--type=mem=memory", "--namespace=")
	d := &daemon{config: c, core: core, leases: core, metrics: newMetrics()}
	providers, err := newProviders(c, d.metrics)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.wire(dyn, nil, c.scope(providers), events.NewFakeRecorder(1000)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { d.work(ctx, ctx, nil) })
	defer work.Wait()
	defer stop()

	buckets, entries := dyn.Resource(bucketsGVR), dyn.Resource(entriesGVR)
	create := func(client dynamic.ResourceInterface, text string) {
		t.Helper()
		if _, err := client.Create(ctx, informersTestObject(t, text), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
	}
	get := func(client dynamic.ResourceInterface, name string) *unstructured.Unstructured {
		t.Helper()
		u, err := client.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	remove := func(client dynamic.ResourceInterface, name string) {
		t.Helper()
		u, now := get(client, name), metav1.Now()
		u.SetDeletionTimestamp(&now)
		if _, err := client.Update(ctx, u, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
	}
	// released lets go an object without finalizers, as an API server would.
	released := func(client dynamic.ResourceInterface, name string) {
		t.Helper()
		if u := get(client, name); len(u.GetFinalizers()) > 0 {
			t.Fatalf("%s is not released: %v", name, u.Object["status"])
		}
		if err := client.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
	}

	create(buckets, `
apiVersion: extensions.gardener.cloud/v1alpha1
kind: BackupBucket
metadata: {name: seed, uid: uid-1, generation: 1, annotations: {gardener.cloud/operation: reconcile}}
spec:
  type: mem
  region: attic
  secretRef: {name: credentials, namespace: garden}
  providerConfig:
    apiVersion: mem.provider.extensions.gardener.cloud/v1alpha1
    kind: BackupBucketConfig
    immutability: {retentionType: bucket, retentionPeriod: 24h, locked: true}
`)
	policy := lockedPolicy(1)
	b := decodeBucket(get(buckets, bucketName))
	if old := readRecord(b.ProviderStatus); !b.succeeded() || b.operation() != "" || old != (record{Policy: policy, Origin: originCreated}) {
		t.Fatalf("the BackupBucket is %+v with record %+v", b.LastOperation, old)
	}
	wantLocked := func() {
		t.Helper()
		var live Policy
		if backend.with(bucketName, func(b *memoryBucket) { live = b.policy }); live != policy {
			t.Fatalf("the bucket has a %s, want a %s", live, policy)
		}
	}
	wantLocked()

	create(entries, `
apiVersion: extensions.gardener.cloud/v1alpha1
kind: BackupEntry
metadata: {name: shoot--a--b--1, uid: uid-2, generation: 1, annotations: {gardener.cloud/operation: reconcile}}
spec: {type: mem, region: attic, bucketName: seed, secretRef: {name: credentials, namespace: garden}}
`)
	if e := decodeEntry(get(entries, entryName)); !e.succeeded() {
		t.Fatalf("the BackupEntry is %+v", e.LastOperation)
	}
	secret, err := core.CoreV1().Secrets(namespace).Get(ctx, "etcd-backup", metav1.GetOptions{})
	if err != nil || string(secret.Data["bucketName"]) != bucketName || string(secret.Data[memoryKey]) != server.key {
		t.Fatalf("the etcd-backup secret is %v, %v", secret, err)
	}
	backend.put(t, bucketName, entryName+"/v2/Full", 100)
	written := time.Now()

	// The entry goes at once, and what is retained of it is left to a tombstone.
	remove(entries, entryName)
	released(entries, entryName)
	of, _, err := readMarks(ctx, &memoryStore{backend.opener(d.metrics).(*memoryProvider), backend.ref(bucketName), server.key}, entryName)
	if err != nil || !of.buried() || of.newest.objects != 1 || of.newest.bytes != 100 || of.newest.due.Before(policy.until(written).Add(-time.Second)) {
		t.Errorf("the marks of the entry are %+v, %v", of, err)
	}
	// The bucket waits until nothing in it is retained, and stays locked.
	remove(buckets, bucketName)
	time.Sleep(time.Until(policy.until(written)) - time.Second)
	if b := decodeBucket(get(buckets, bucketName)); b.LastOperation.State != stateProcessing || len(backend.list(t, bucketName)) != 2 {
		t.Errorf("the BackupBucket is %+v, in its bucket are %v", b.LastOperation, backend.list(t, bucketName))
	}
	wantLocked()
	time.Sleep(time.Hour)
	released(buckets, bucketName)
	server.mu.Lock()
	defer server.mu.Unlock()
	if len(server.buckets) > 0 {
		t.Errorf("the store has still %v", server.buckets)
	}
	if held, err := core.CoreV1().Secrets("garden").Get(ctx, "credentials", metav1.GetOptions{}); err != nil || len(held.Finalizers) > 0 {
		t.Errorf("the credentials are %v, %v", held, err)
	}
}
