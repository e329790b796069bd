package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What a Store has to do is written down once, in testStore, and every store passes it
// against a server: MinIO, Ceph, and Azurite with a management plane. test/e2e starts them,
// runs these tests and says where they are: the data of a credentials secret for each S3
// server, by its name, in JSON; and a URL that describes the Azure.
const (
	suiteEnvS3    = "BUCKETWARDEN_TEST_S3"
	suiteEnvAzure = "BUCKETWARDEN_TEST_AZURE"
)

func TestStoreAcceptance(t *testing.T) {
	servers := map[string]json.RawMessage{}
	if where := os.Getenv(suiteEnvS3); where != "" {
		if err := json.Unmarshal([]byte(where), &servers); err != nil {
			t.Fatal(err)
		}
	}
	azure := os.Getenv(suiteEnvAzure)
	if len(servers) == 0 && azure == "" {
		t.Skipf("needs servers, which %s and %s name: run make test-e2e", suiteEnvS3, suiteEnvAzure)
	}
	for name, secret := range servers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			backend := startS3Backend(t, string(secret))
			backend.(*s3Backend).name = name
			testStore(t, backend)
		})
	}
	if azure != "" {
		t.Run(storeAzure, func(t *testing.T) {
			t.Parallel()
			testStore(t, startAzureBackend(t, azure))
		})
	}
}

// storeBackend is a store with its server, and a way around the store to the server.
type storeBackend interface {
	kind() string
	// opener opens buckets with short pauses between attempts.
	opener(*metrics) provider
	ref(bucket string) bucketRef
	credentials() map[string][]byte
	// wrong are credentials and buckets with which nothing works.
	wrong(b *suiteBucket) []wrongStore
	// permission is what Observe needs, as errors name it.
	permission() string
	maxDays() int32

	// put may be called from any goroutine.
	put(t *testing.T, bucket, name string, size int)
	// tryPut says whether the server takes an object of that name.
	tryPut(bucket, name string, size int) error
	list(t *testing.T, bucket string) []suiteObject
	// setPolicy changes the policy behind the store's back.
	setPolicy(t *testing.T, bucket string, p Policy)
	// hold sets or clears a legal hold on all that is in a bucket.
	hold(t *testing.T, bucket string, on bool)
	// now is the time by the server's clock.
	now(t *testing.T) time.Time
	// until is when the newest of the objects becomes free.
	until(t *testing.T, bucket string, names ...string) time.Time
	// apart returns once objects put from now on can outlive those put before by a time.
	apart(t *testing.T, by time.Duration)
	// free ends the retention of objects, and not of those that were put apart. The clock
	// of a server is the same for all: only one test may free objects, and all others use a
	// retention of suiteDays, which outlasts it.
	free(t *testing.T, bucket string, names ...string)
	// fail makes the server answer the next requests about a bucket with an error.
	fail(t *testing.T, bucket string, status, times int)
	// onDelete calls f when the next objects of a bucket are to be deleted.
	onDelete(bucket string, f func())
	// served is how many requests about a bucket the server has got.
	served(t *testing.T, bucket string) int
}

const suiteDays = 100

type suiteObject struct {
	name string
	size int64
}

// wrongStore is opened and used without success.
type wrongStore struct {
	name        string
	opener      provider
	ref         bucketRef
	credentials map[string][]byte
	// entry: the credentials are those of a BackupEntry.
	entry bool
	want  errorCode
	// only is the method that fails, empty if all do.
	only string
	// notOurs: the error says that the bucket is not ours.
	notOurs bool
}

// suiteBucket is a bucket that one test has for itself, with metrics of its own.
type suiteBucket struct {
	Store
	t       *testing.T
	backend storeBackend
	name    string
	metrics *metrics
	opener  provider
	// unserved: some requests never reach the server.
	unserved bool
}

var suiteNames atomic.Int64

var suiteRun = strings.ToLower(rand.Text()[:8])

// clearChecks deletes what Harden may have written to try something out.
func (b *suiteBucket) clearChecks() {
	b.t.Helper()
	_, err := testPurge(b.t.Context(), b.Store, tombstonesRoot, nil)
	b.must(err)
}

// newSuiteBucket opens a bucket that does not exist. When the test ends, every request
// that the server got must have been observed, and no other.
func newSuiteBucket(t *testing.T, backend storeBackend) *suiteBucket {
	t.Helper()
	b := &suiteBucket{t: t, backend: backend, name: fmt.Sprintf("suite-%s-%04d", suiteRun, suiteNames.Add(1)), metrics: newMetrics()}
	b.opener = backend.opener(b.metrics)
	var err error
	if b.Store, err = b.opener.openStore(backend.ref(b.name), backend.credentials()); err != nil {
		t.Fatal(err)
	}
	// A token is asked for here, and not where requests are counted.
	if state := b.observe(); state != (BucketState{}) {
		t.Fatalf("a new bucket is %+v", state)
	}
	t.Cleanup(func() {
		observed := 0
		for operation, n := range b.requests() {
			// These name no bucket.
			if operation != azureTokenOperation && operation != "StorageAccounts.CheckName" {
				observed += n
			}
		}
		if served := backend.served(t, b.name); served != observed && !b.unserved {
			t.Errorf("the server got %d requests about bucket %s, observed were %d: %v", served, b.name, observed, b.requests())
		}
	})
	return b
}

// must fails the test unless a call succeeds.
func (b *suiteBucket) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *suiteBucket) observe() BucketState {
	b.t.Helper()
	state, err := b.Observe(b.t.Context())
	b.must(err)
	return state
}

func (b *suiteBucket) create() {
	b.t.Helper()
	b.must(b.Create(b.t.Context(), suiteForm(b.backend).plain == 0))
}

func (b *suiteBucket) wantPolicy(want Policy) {
	b.t.Helper()
	if state := b.observe(); !state.Exists || state.Policy != want {
		b.t.Errorf("that the bucket exists is %t, and it has %s; want %s", state.Exists, state.Policy, want)
	}
}

func (b *suiteBucket) wantAbsent() {
	b.t.Helper()
	if state := b.observe(); state.Exists || state.Policy != (Policy{}) {
		b.t.Errorf("a bucket that does not exist is %+v", state)
	}
}

// put puts objects of different sizes and returns how many bytes they have.
func (b *suiteBucket) put(names ...string) (bytes int64) {
	b.t.Helper()
	const workers = 16
	var group sync.WaitGroup
	for worker := range min(workers, len(names)) {
		group.Go(func() {
			for i := worker; i < len(names); i += workers {
				b.backend.put(b.t, b.name, names[i], i%100)
			}
		})
	}
	group.Wait()
	for i := range names {
		bytes += int64(i % 100)
	}
	if b.t.Failed() {
		b.t.FailNow()
	}
	return bytes
}

func (b *suiteBucket) wantObjects(want ...string) {
	b.t.Helper()
	var got []string
	for _, object := range b.backend.list(b.t, b.name) {
		got = append(got, object.name)
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		b.t.Errorf("in bucket %s are %q, want %q", b.name, got, want)
	}
}

// tryRemove tries to delete a version as whoever deletes does: again if the store has to be asked in another way first, or closes the
// connection without an answer, as Ceph does now and then.
func (b *suiteBucket) tryRemove(objects versions, v version) removal {
	b.t.Helper()
	for attempt := 0; ; attempt++ {
		answers, err := objects.remove(b.t.Context(), []version{v})
		if again := isTransient(err) || err == nil && answers[0].outcome == removalUntried; again && attempt < 3 {
			continue
		}
		b.must(err)
		return answers[0]
	}
}

// purge purges with the credentials of the BackupBucket, or with those of an entry.
func (b *suiteBucket) purge(objects versions, prefix string, want PurgeResult) {
	b.t.Helper()
	got, err := testPurge(b.t.Context(), objects, prefix, nil)
	b.must(err)
	if off := got.RetainedUntil.Sub(want.RetainedUntil).Abs(); off > time.Second {
		b.t.Errorf("the newest object under %q is retained until %s, want %s", prefix, got.RetainedUntil, want.RetainedUntil)
	}
	got.RetainedUntil, got.Now = want.RetainedUntil, want.Now
	if got != want {
		b.t.Errorf("the purge of %q returned %+v, want %+v", prefix, got, want)
	}
}

// entryCredentials are those that a BackupEntry of the bucket has.
func (b *suiteBucket) entryCredentials() map[string][]byte {
	b.t.Helper()
	account, ok := b.Store.(accountStore)
	if !ok {
		return b.backend.credentials()
	}
	keys, err := account.Keys(b.t.Context())
	b.must(err)
	if len(keys) == 0 {
		b.t.Fatal("the account has no keys")
	}
	return account.EntryCredentials(keys[0])
}

// entry opens the bucket for a BackupEntry that knows of a policy.
func (b *suiteBucket) entry(recorded Policy) Objects {
	b.t.Helper()
	ref := b.backend.ref(b.name)
	ref.Recorded = recorded
	objects, err := b.opener.openObjects(ref, b.entryCredentials())
	b.must(err)
	return objects
}

// both calls f for both kinds of credentials, each with a bucket of its own that exists.
func both(t *testing.T, backend storeBackend, f func(b *suiteBucket, open func(recorded Policy) versions)) {
	t.Run("bucket", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		f(b, func(recorded Policy) versions {
			ref := backend.ref(b.name)
			if ref.Recorded = recorded; backend.kind() == storeAzure {
				return b.Store // which has read the policy
			}
			store, err := b.opener.openStore(ref, backend.credentials())
			b.must(err)
			return store
		})
	})
	t.Run("entry", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		f(b, func(recorded Policy) versions { return b.entry(recorded) })
	})
}

// requests are how many requests were observed, by operation.
func (b *suiteBucket) requests() map[string]int {
	counts := map[string]int{}
	for labels, n := range b.observations() {
		counts[labels[0]] += n
	}
	return counts
}

// observations are by operation and outcome.
func (b *suiteBucket) observations() map[[2]string]int {
	b.t.Helper()
	families, err := b.metrics.registry.Gather()
	b.must(err)
	counts := map[[2]string]int{}
	for _, family := range families {
		if family.GetName() != "bucketwarden_store_request_duration_seconds" {
			continue
		}
		for _, series := range family.Metric {
			labels := map[string]string{}
			for _, label := range series.Label {
				labels[label.GetName()] = label.GetValue()
			}
			if labels["store"] != string(b.backend.kind()) {
				b.t.Errorf("requests are observed for store %q", labels["store"])
			}
			counts[[2]string{labels["operation"], labels["outcome"]}] += int(series.Histogram.GetSampleCount())
		}
	}
	return counts
}

// counted returns the requests that f made.
func (b *suiteBucket) counted(f func()) map[string]int {
	b.t.Helper()
	before := b.requests()
	f()
	after := b.requests()
	for operation, n := range before {
		if after[operation] -= n; after[operation] == 0 {
			delete(after, operation)
		}
	}
	return after
}

// suiteCeph is the name of Ceph among the S3 servers.
const suiteCeph = "ceph"

// suiteServer is the name of a real server, if there are several of its kind.
func suiteServer(backend storeBackend) (name string) {
	if named, ok := backend.(interface{ server() string }); ok {
		name = named.server()
	}
	return name
}

// requestsOf are the requests that a call makes, by store, or by server where they differ; those of a store that is not among them are not
// checked.
type requestsOf map[string]map[string]int

// some are one or more.
const some = -1

// wantRequests checks the requests that f makes.
func (b *suiteBucket) wantRequests(what string, want requestsOf, f func()) {
	b.t.Helper()
	got := b.counted(f)
	wanted, known := want[suiteServer(b.backend)]
	if !known {
		wanted, known = want[b.backend.kind()]
	}
	if !known || suiteForm(b.backend) != (s3Form{}) {
		return // it takes what it takes
	}
	same := func(got, want int) bool { return got == want || want == some && got > 0 }
	if !maps.EqualFunc(got, wanted, same) {
		b.t.Errorf("%s made the requests %v, want %v", what, got, wanted)
	}
}

// suiteWrites are the requests that change something.
func suiteWrites(requests map[string]int) map[string]int {
	writes := maps.Clone(requests)
	maps.DeleteFunc(writes, func(operation string, _ int) bool {
		_, verb, found := strings.Cut(operation, ".")
		if !found {
			verb = operation
		}
		return operation == azureTokenOperation || slices.ContainsFunc([]string{"Check", "Get", "Head", "List"},
			func(prefix string) bool { return strings.HasPrefix(verb, prefix) })
	})
	return writes
}

func (b *suiteBucket) wantNoWrites(what string, f func()) {
	b.t.Helper()
	if writes := suiteWrites(b.counted(f)); len(writes) > 0 {
		b.t.Errorf("%s wrote: %v", what, writes)
	}
}

// calls are all methods of a store.
func suiteCalls(store Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Observe": func(ctx context.Context) error { _, err := store.Observe(ctx); return err },
		"Create":  func(ctx context.Context) error { return store.Create(ctx, true) },
		"Harden":  func(ctx context.Context) error { _, err := store.Harden(ctx); return err },
		"SetPolicy": func(ctx context.Context) error {
			return store.SetPolicy(ctx, Policy{Days: 1})
		},
		"LockPolicy": func(ctx context.Context) error {
			return store.LockPolicy(ctx, Policy{Days: 1, Locked: true})
		},
		"Purge":  func(ctx context.Context) error { return suitePurge(ctx, store) },
		"Delete": func(ctx context.Context) error { return store.Delete(ctx, anything) },
	}
}

// suitePurge returns the error of a purge, which has done nothing.
func suitePurge(ctx context.Context, objects versions) error {
	result, err := testPurge(ctx, objects, "", nil)
	if err != nil && result != (PurgeResult{}) {
		return fmt.Errorf("the failed purge returned %+v: %w", result, err)
	}
	return err
}

// wantStoreError checks an error: its code, that it is one sentence without a secret, and
// that it is the same the next time.
func wantStoreError(t *testing.T, call func(context.Context) error, want errorCode, credentials ...map[string][]byte) error {
	t.Helper()
	err, again := call(t.Context()), call(t.Context())
	if err == nil || again == nil {
		t.Errorf("there is no error: %v, %v", err, again)
		return nil
	}
	var failed *storeError
	var config *configError
	switch {
	case errors.As(err, &failed):
		if failed.code != want {
			t.Errorf("the code is %q, want %q: %v", failed.code, want, err)
		}
	case !errors.As(err, &config):
		t.Errorf("%v is a %T", err, err)
	case want != codeConfigurationProblem:
		t.Errorf("%v is a *configError, want code %q", err, want)
	}
	text := err.Error()
	if text != again.Error() {
		t.Errorf("the text changes from %q to %q", text, again)
	}
	if text == "" || strings.ContainsAny(text, "\r\n\t") || strings.HasSuffix(strings.TrimSuffix(text, "..."), ".") || len(text) > 1000 {
		t.Errorf("%q is not one sentence", text)
	}
	for _, data := range credentials {
		for _, key := range []string{s3KeyAccessKeyID, s3KeySecretAccessKey, azureKeyClientSecret, azureKeyToken, dataKeyStorageKey} {
			if value := s3Value(data, key); value != "" && strings.Contains(text, value) {
				t.Errorf("%q shows %s", text, key)
			}
		}
	}
	return err
}

// testStore is what every store has to pass.
func testStore(t *testing.T, backend storeBackend) { testStoreOnly(t, backend, nil) }

// testStoreOnly are some of the tests, all if there are no names.
func testStoreOnly(t *testing.T, backend storeBackend, only []string) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, storeBackend)
	}{
		{"LifeCycle", testStoreLifeCycle},
		{"Policy", testStorePolicy},
		{"Extensions", testStoreExtensions},
		{"Drift", testStoreDrift},
		{"Purge", testStorePurge},
		{"PurgeMany", testStorePurgeMany},
		{"HardKeys", testStoreHardKeys},
		{"Marks", testStoreMarks},
		{"Markers", testStoreMarkers},
		{"Content", testStoreContent},
		{"Extend", testStoreExtend},
		{"ExtendUnlockable", testStoreExtendUnlockable},
		{"Retained", testStoreRetained},
		{"Ageing", testStoreAgeing},
		{"LegalHold", testStoreLegalHold},
		{"Delete", testStoreDelete},
		{"Open", testStoreOpen},
		{"Errors", testStoreErrors},
		{"Faults", testStoreFaults},
		{"Concurrency", testStoreConcurrency},
		{"Cancellation", testStoreCancellation},
	} {
		if only != nil && !slices.Contains(only, test.name) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, backend)
		})
	}
}

// suiteForm is the form of a store that is not the one of a real server.
func suiteForm(backend storeBackend) (form s3Form) {
	if formed, ok := backend.(interface{ inForm() s3Form }); ok {
		form = formed.inForm()
	}
	return form
}

func testStoreLifeCycle(t *testing.T, backend storeBackend) {
	ctx := t.Context()
	for _, immutable := range []bool{true, false} {
		t.Run(fmt.Sprintf("immutable=%t", immutable), func(t *testing.T) {
			t.Parallel()
			b := newSuiteBucket(t, backend)
			b.wantRequests("Observe of an absent bucket", requestsOf{
				// MinIO says that it has no object lock.
				storeS3:    {"GetObjectLockConfiguration": 1, "HeadBucket": 1},
				suiteCeph:  {"GetObjectLockConfiguration": 1},
				storeAzure: {"BlobContainers.Get": 1},
			}, b.wantAbsent)
			b.wantRequests("Create", requestsOf{
				storeS3: {"CreateBucket": 1},
				// An account is waited for.
				storeAzure: {
					"ResourceGroups.Get": 1, "ResourceGroups.Create": 1, "StorageAccounts.Get": 1,
					"StorageAccounts.CheckName": 1, "StorageAccounts.Create": some, "BlobContainers.Create": 1,
				},
			}, func() { b.must(b.Create(ctx, immutable)) })
			healthy := requestsOf{
				storeS3:    {"GetObjectLockConfiguration": 1},
				storeAzure: {"BlobContainers.Get": 1},
			}
			if !immutable {
				healthy[storeS3]["HeadBucket"] = 1
			}
			b.wantRequests("Observe", healthy, func() { b.wantPolicy(Policy{}) })
			b.must(b.Create(ctx, immutable))
			again, err := b.opener.openStore(backend.ref(b.name), backend.credentials())
			b.must(err)
			b.must(again.Create(ctx, immutable)) // without having observed it
			b.wantPolicy(Policy{})

			first, err := b.Harden(ctx)
			b.must(err)
			for _, gap := range first {
				if !strings.HasSuffix(gap, ".") || strings.ContainsAny(gap, "\r\n") {
					t.Errorf("the gap %q is not one sentence", gap)
				}
			}
			b.observe()
			b.wantRequests("Harden of a hardened bucket", requestsOf{
				// MinIO has no keys to encrypt with, and refuses that each time.
				storeS3: {"GetBucketEncryption": 1, "PutBucketEncryption": 1, "GetPublicAccessBlock": 1},
				// Ceph does not know the question.
				suiteCeph:  {"GetBucketEncryption": 1, "GetPublicAccessBlock": 1},
				storeAzure: {"StorageAccounts.Get": 1},
			}, func() {
				second, err := b.Harden(ctx)
				b.must(err)
				if !slices.Equal(first, second) {
					t.Errorf("the gaps change from %q to %q", first, second)
				}
			})

			b.clearChecks()
			b.must(b.Delete(ctx, anything))
			b.wantAbsent()
			b.wantRequests("Delete of an absent bucket", requestsOf{
				storeS3:    {"DeleteBucket": 1},
				storeAzure: {},
			}, func() { b.must(b.Delete(ctx, anything)) })
			b.wantAbsent()
			b.must(b.Create(ctx, immutable))
			b.wantPolicy(Policy{})
			account, ok := b.Store.(accountStore)
			if !ok {
				b.must(b.Delete(ctx, anything))
				b.wantAbsent()
				return
			}
			state, err := account.DeleteAccount(ctx, anything, false)
			b.must(err)
			if state.Started || state.Deleting || !strings.Contains(state.Kept, b.name) {
				t.Errorf("the deletion of an account with a bucket is %+v", state)
			}
			b.wantPolicy(Policy{})
			b.must(b.Delete(ctx, anything))
			if state := b.observe(); state != (BucketState{Remains: true}) {
				t.Errorf("an account without its bucket is %+v", state)
			}
			for state.Started = true; state.Started || state.Deleting; {
				state, err = account.DeleteAccount(ctx, anything, false)
				b.must(err)
			}
			if state != (AccountState{}) {
				t.Errorf("the deleted account is %+v", state)
			}
			if state := b.observe(); state != (BucketState{}) {
				t.Errorf("the deleted bucket is %+v", state)
			}
		})
	}
}

func sum(counts map[string]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}

func testStoreDelete(t *testing.T, backend storeBackend) {
	for _, policy := range []Policy{{}, unlockedPolicy(suiteDays), lockedPolicy(suiteDays)} {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			t.Run("not empty", func(t *testing.T) {
				t.Parallel()
				b := newSuiteBucket(t, backend)
				b.create()
				b.converge(policy, Policy{})
				b.put("object")
				err := wantStoreError(t, func(ctx context.Context) error { return b.Delete(ctx, anything) }, "")
				if !errors.Is(err, errBucketNotEmpty) {
					t.Errorf("%v is not %v", err, errBucketNotEmpty)
				}
				b.wantPolicy(policy)
				b.wantObjects("object")
			})
			t.Run("empty", func(t *testing.T) {
				t.Parallel()
				b := newSuiteBucket(t, backend)
				b.create()
				b.converge(policy, Policy{})
				if account, ok := b.Store.(accountStore); ok {
					_, err := account.Keys(t.Context())
					b.must(err)
				}
				b.observe()
				b.wantRequests("Delete", requestsOf{
					storeS3:    {"DeleteBucket": 1},
					storeAzure: {"Blobs.List": 1, "BlobContainers.Delete": 1},
				}, func() { b.must(b.Delete(t.Context(), anything)) })
				b.wantAbsent()
				b.create()
				b.wantPolicy(Policy{})
			})
		})
	}
}

// testStoreOpen: what is wrong without asking the store.
func testStoreOpen(t *testing.T, backend storeBackend) {
	b := newSuiteBucket(t, backend)
	b.create()
	ref := backend.ref(b.name)
	for _, test := range []struct {
		what        string
		credentials map[string][]byte
		open        func(map[string][]byte) error
	}{
		{"store", backend.credentials(), func(c map[string][]byte) error { _, err := b.opener.openStore(ref, c); return err }},
		{"objects", b.entryCredentials(), func(c map[string][]byte) error { _, err := b.opener.openObjects(ref, c); return err }},
	} {
		for _, key := range []string{
			s3KeyAccessKeyID, s3KeySecretAccessKey, azureKeySubscriptionID, azureKeyTenantID, azureKeyClientID, azureKeyClientSecret,
			dataKeyStorageAccount, dataKeyStorageKey,
		} {
			if test.credentials[key] == nil {
				continue
			}
			for _, value := range []string{"", " \n"} {
				credentials := maps.Clone(test.credentials)
				credentials[key] = []byte(value)
				err := wantStoreError(t, func(context.Context) error { return test.open(credentials) }, codeConfigurationProblem, test.credentials)
				var config *configError
				if !errors.As(err, &config) || !strings.Contains(err.Error(), key) {
					t.Errorf("%s without %s: %v (%T)", test.what, key, err, err)
				}
			}
			// People create secrets with a trailing newline.
			credentials := maps.Clone(test.credentials)
			credentials[key] = append(slices.Clone(credentials[key]), '\n')
			b.must(test.open(credentials))
		}
		wantStoreError(t, func(context.Context) error { return test.open(nil) }, codeConfigurationProblem)
	}
	for _, name := range []string{"", "a", "No_Bucket", "bucket-", "-bucket", strings.Repeat("a", 64), "a/b", "a b"} {
		ref := backend.ref(name)
		for _, open := range []func(context.Context) error{
			func(context.Context) error { _, err := b.opener.openStore(ref, backend.credentials()); return err },
			func(context.Context) error { _, err := b.opener.openObjects(ref, b.entryCredentials()); return err },
		} {
			if err := wantStoreError(t, open, codeConfigurationProblem); !errors.Is(err, errNotOurBucket) {
				t.Errorf("%v is not %v", err, errNotOurBucket)
			}
		}
	}
}

func testStoreErrors(t *testing.T, backend storeBackend) {
	b := newSuiteBucket(t, backend)
	b.create()
	b.put("object")
	b.unserved = true
	for _, wrong := range backend.wrong(b) {
		t.Run(wrong.name, func(t *testing.T) {
			opener := wrong.opener
			calls := map[string]func(context.Context) error{}
			if wrong.entry {
				objects, err := opener.openObjects(wrong.ref, wrong.credentials)
				b.must(err)
				calls["Purge"] = func(ctx context.Context) error { return suitePurge(ctx, objects) }
			} else {
				store, err := opener.openStore(wrong.ref, wrong.credentials)
				if err != nil { // then it is all calls
					wantStoreError(t, func(context.Context) error {
						_, err := opener.openStore(wrong.ref, wrong.credentials)
						return err
					}, wrong.want, wrong.credentials)
					return
				}
				calls = suiteCalls(store)
			}
			for name, call := range calls {
				if wrong.only != "" && name != wrong.only {
					continue
				}
				t.Run(name, func(t *testing.T) {
					err := wantStoreError(t, call, wrong.want, wrong.credentials, backend.credentials())
					if errors.Is(err, errNotOurBucket) != wrong.notOurs {
						t.Errorf("that it is %v should be %t: %v", errNotOurBucket, wrong.notOurs, err)
					}
				})
			}
			if wrong.only == "Create" { // and leaves nothing behind
				store, err := b.opener.openStore(wrong.ref, wrong.credentials)
				b.must(err)
				if state, err := store.Observe(t.Context()); err != nil || state != (BucketState{}) {
					t.Errorf("the bucket that could not be created is %+v, %v", state, err)
				}
			}
		})
	}
	b.wantPolicy(Policy{})
	b.wantObjects("object")
}

// testStoreFaults: the server refuses what it usually does.
func testStoreFaults(t *testing.T, backend storeBackend) {
	t.Run("denied", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		b.put("object")
		b.must(b.SetPolicy(t.Context(), unlockedPolicy(suiteDays)))
		calls := suiteCalls(b.Store)
		delete(calls, "Harden") // it has gaps
		// Each call is made twice, and ends with the first request that is denied.
		backend.fail(t, b.name, http.StatusForbidden, 2*len(calls))
		for name, call := range calls {
			t.Run(name, func(t *testing.T) {
				err := wantStoreError(t, call, codeUnauthorized, backend.credentials())
				if name == "Observe" && !strings.Contains(err.Error(), backend.permission()) {
					t.Errorf("%q does not name %s", err, backend.permission())
				}
			})
		}
		b.wantPolicy(unlockedPolicy(suiteDays))
		b.wantObjects("object")
	})
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusInternalServerError} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			b := newSuiteBucket(t, backend)
			b.create()
			want := codeRetryableDependencies
			outcome := outcomeThrottled
			switch status {
			case http.StatusTooManyRequests:
				want = codeRateLimitsExceeded
			case http.StatusInternalServerError:
				outcome = outcomeError
			}
			before := b.observations()
			backend.fail(t, b.name, status, 2)
			b.wantPolicy(Policy{}) // which tries again
			after := b.observations()
			got := map[string]int{}
			for labels, n := range after {
				if n -= before[labels]; n > 0 {
					got[labels[1]] += n
				}
			}
			if wanted := map[string]int{outcome: 2, outcomeSuccess: 1}; !maps.Equal(got, wanted) {
				t.Errorf("outcomes are %v, want %v", got, wanted)
			}
			const attempts = 4
			backend.fail(t, b.name, status, 2*attempts)
			wantStoreError(t, func(ctx context.Context) error { _, err := b.Observe(ctx); return err }, want, backend.credentials())
			b.wantPolicy(Policy{})
		})
	}
}

func testStoreConcurrency(t *testing.T, backend storeBackend) {
	const prefixes, each = 6, 30
	b := newSuiteBucket(t, backend)
	b.create()
	var names []string
	for i := range prefixes {
		for j := range each {
			names = append(names, fmt.Sprintf("p--%d/%02d", i, j))
		}
	}
	b.put(names...)
	objects := []versions{b.Store, b.entry(Policy{})}
	var group sync.WaitGroup
	for i := range prefixes {
		group.Go(func() {
			result, err := testPurge(t.Context(), objects[i%2], fmt.Sprintf("p--%d/", i), nil)
			if err != nil || result.Deleted != each || result.Retained != 0 {
				t.Errorf("the purge of prefix %d returned %+v, %v", i, result, err)
			}
		})
		group.Go(func() {
			for range 3 {
				if state, err := b.Observe(t.Context()); err != nil || !state.Exists {
					t.Errorf("Observe returned %+v, %v", state, err)
				}
				if _, err := b.Harden(t.Context()); err != nil {
					t.Errorf("Harden: %v", err)
				}
			}
		})
	}
	group.Wait()
	b.clearChecks()
	b.wantObjects()

	// Of what two delete at the same time nothing may be left, and nothing be retained.
	names = names[:each]
	b.put(names...)
	for range 4 {
		group.Go(func() {
			result, err := testPurge(t.Context(), b, "", nil)
			if err != nil || result.Deleted > each || result.Retained != 0 {
				t.Errorf("the purge returned %+v, %v", result, err)
			}
		})
	}
	group.Wait()
	b.wantObjects()
}

func testStoreCancellation(t *testing.T, backend storeBackend) {
	t.Run("before", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		b.put("object")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		b.unserved = true
		for name, call := range suiteCalls(b.Store) {
			err := wantStoreError(t, func(context.Context) error { return call(ctx) }, "", backend.credentials())
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v is not %v", name, err, context.Canceled)
			}
		}
		entry := b.entry(Policy{})
		wantStoreError(t, func(context.Context) error { return suitePurge(ctx, entry) }, "")
		b.wantPolicy(Policy{})
		b.wantObjects("object")
	})
	t.Run("during a purge", func(t *testing.T) {
		t.Parallel()
		both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
			const many = 300 // more than a batch
			names := make([]string, many)
			for i := range names {
				names[i] = fmt.Sprintf("a/%03d", i)
			}
			b.put(names...)
			objects := open(Policy{})
			ctx, cancel := context.WithCancel(b.t.Context())
			defer cancel()
			b.unserved = true
			backend.onDelete(b.name, cancel)
			first, err := testPurge(ctx, objects, "", nil)
			if !errors.Is(err, context.Canceled) {
				b.t.Errorf("the canceled purge returned %v", err)
			}
			left := len(backend.list(b.t, b.name))
			if first.Retained != 0 || first.RetainedBytes != 0 || !first.RetainedUntil.IsZero() || first.Deleted > int64(many-left) {
				b.t.Errorf("the canceled purge returned %+v, and %d of %d objects are left", first, left, many)
			}
			second, err := testPurge(b.t.Context(), objects, "", nil)
			b.must(err)
			if second.Deleted > int64(left) || second.Retained != 0 {
				b.t.Errorf("the second purge returned %+v, and %d objects were left", second, left)
			}
			b.wantObjects()
		})
	})
}

// suiteProxy is an HTTP proxy in front of a server.
type suiteProxy struct {
	*httptest.Server
	mu sync.Mutex
	// counts, failures and deletes are by bucket.
	counts   map[string]int
	failures map[string]*suiteFailure
	deletes  map[string]func()
}

type suiteFailure struct{ status, times int }

// startSuiteProxy starts a proxy; bucketOf names the bucket that a path is about, and
// answer writes an error of the store.
func startSuiteProxy(t *testing.T, target string, bucketOf func(path string) string, answer func(http.ResponseWriter, int)) *suiteProxy {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &suiteProxy{counts: map[string]int{}, failures: map[string]*suiteFailure{}, deletes: map[string]func(){}}
	forward := &httputil.ReverseProxy{
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100, IdleConnTimeout: 10 * time.Second},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host // which is signed
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil { // else the client has gone away
				t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		bucket := bucketOf(r.URL.Path)
		p.mu.Lock()
		p.counts[cmp.Or(bucket, query.Get("prefix"))]++
		status := 0
		if f := p.failures[bucket]; f != nil && f.times > 0 {
			f.times--
			status = f.status
		}
		var deleting func()
		if r.Method == http.MethodPost && (query.Has("delete") || query.Get("comp") == "batch") {
			deleting = p.deletes[bucket]
			delete(p.deletes, bucket)
		}
		p.mu.Unlock()
		if deleting != nil {
			deleting()
		}
		if status != 0 {
			answer(w, status)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

// onDelete implements storeBackend.
func (p *suiteProxy) onDelete(bucket string, f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deletes[bucket] = f
}

// suiteClosed is an address at which nothing listens.
func suiteClosed() string {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	return server.URL
}

// suiteWith is a copy of a secret's data with other values.
func suiteWith(data map[string][]byte, values ...string) map[string][]byte {
	data = maps.Clone(data)
	for i := 0; i < len(values); i += 2 {
		data[values[i]] = []byte(values[i+1])
	}
	return data
}
