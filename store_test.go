package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"github.com/aws/aws-sdk-go-v2/aws"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// What a Store has to do is written down once, in testStore, and every store passes it
// against a server: MinIO, and Azurite with a management plane. test/e2e starts them,
// runs these tests and says where they are: the data of a credentials secret in JSON, and
// a URL that describes the Azure.
const (
	suiteEnvS3    = "BUCKETWARDEN_TEST_S3"
	suiteEnvAzure = "BUCKETWARDEN_TEST_AZURE"
)

func TestStoreAcceptance(t *testing.T) {
	for _, backend := range []struct {
		kind  string
		env   string
		start func(*testing.T, string) storeBackend
	}{
		{storeS3, suiteEnvS3, startS3Backend},
		{storeAzure, suiteEnvAzure, startAzureBackend},
	} {
		t.Run(backend.kind, func(t *testing.T) {
			t.Parallel()
			where := os.Getenv(backend.env)
			if where == "" {
				t.Skipf("needs a server, which %s names: run make test-e2e", backend.env)
			}
			testStore(t, backend.start(t, where))
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
	b.must(b.Create(b.t.Context(), true))
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
		f(b, func(Policy) versions { return b.Store })
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

// requestsOf are the requests that a call makes, by store.
type requestsOf map[string]map[string]int

// some are one or more.
const some = -1

// wantRequests checks the requests that f makes.
func (b *suiteBucket) wantRequests(what string, want requestsOf, f func()) {
	b.t.Helper()
	got, wanted := b.counted(f), want[b.backend.kind()]
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
func testStore(t *testing.T, backend storeBackend) {
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
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, backend)
		})
	}
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
				storeS3:    {"GetBucketEncryption": 1, "PutBucketEncryption": 1, "GetPublicAccessBlock": 1},
				storeAzure: {"StorageAccounts.Get": 1},
			}, func() {
				second, err := b.Harden(ctx)
				b.must(err)
				if !slices.Equal(first, second) {
					t.Errorf("the gaps change from %q to %q", first, second)
				}
			})

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

// converge does what a reconcile does until the bucket has the policy, reads back every
// step and returns them.
func (b *suiteBucket) converge(desired, recorded Policy) (steps []Step, refusal *Refusal) {
	b.t.Helper()
	live := b.observe().Policy
	for range maxConvergeSteps {
		plan := planPolicy(desired, live, recorded)
		if len(plan.Steps) == 0 {
			return steps, plan.Refusal
		}
		step := plan.Steps[0]
		if step.Lock {
			b.must(b.LockPolicy(b.t.Context(), step.Policy))
		} else {
			b.must(b.SetPolicy(b.t.Context(), step.Policy))
		}
		if live = b.observe().Policy; live != step.Policy {
			b.t.Fatalf("after step %+v the bucket has a %s", step, live)
		}
		steps, recorded = append(steps, step), step.Policy
	}
	b.t.Fatalf("no %s after %v", desired, steps)
	return nil, nil
}

func unlockedPolicy(days int32) Policy { return Policy{Days: days} }
func lockedPolicy(days int32) Policy   { return Policy{Days: days, Locked: true} }

func testStorePolicy(t *testing.T, backend storeBackend) {
	none, longest := Policy{}, backend.maxDays()
	set := func(p Policy) Step { return Step{Policy: p} }
	lock := func(p Policy) Step { return Step{Policy: p, Lock: true} }
	type change struct {
		desired Policy
		steps   []Step
		refused string // the reason
	}
	for _, test := range []struct {
		name    string
		changes []change
	}{
		{"unlocked", []change{
			{desired: none},
			{desired: unlockedPolicy(1), steps: []Step{set(unlockedPolicy(1))}},
			{desired: unlockedPolicy(1)},
			{desired: unlockedPolicy(4), steps: []Step{set(unlockedPolicy(4))}},
			{desired: unlockedPolicy(2), steps: []Step{set(unlockedPolicy(2))}},
			{desired: none, steps: []Step{set(none)}},
			{desired: none},
			{desired: unlockedPolicy(longest), steps: []Step{set(unlockedPolicy(longest))}},
		}},
		{"locked after unlocked", []change{
			{desired: unlockedPolicy(4), steps: []Step{set(unlockedPolicy(4))}},
			{desired: lockedPolicy(4), steps: []Step{lock(lockedPolicy(4))}},
			{desired: none, refused: reasonDisable},
			{desired: unlockedPolicy(9), refused: reasonUnlock},
			{desired: lockedPolicy(3), refused: reasonShorten},
			{desired: lockedPolicy(9), steps: []Step{lock(lockedPolicy(9))}},
			{desired: lockedPolicy(9)},
			{desired: lockedPolicy(longest), steps: []Step{lock(lockedPolicy(longest))}},
			{desired: lockedPolicy(longest)},
		}},
		{"locked at other days", []change{
			{desired: unlockedPolicy(9), steps: []Step{set(unlockedPolicy(9))}},
			{desired: lockedPolicy(4), steps: []Step{set(unlockedPolicy(4)), lock(lockedPolicy(4))}},
		}},
		{"locked at once", []change{
			{desired: lockedPolicy(1), steps: []Step{set(unlockedPolicy(1)), lock(lockedPolicy(1))}},
			{desired: lockedPolicy(2), steps: []Step{lock(lockedPolicy(2))}},
		}},
		{"locked for longest", []change{
			{desired: lockedPolicy(longest), steps: []Step{set(unlockedPolicy(longest)), lock(lockedPolicy(longest))}},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newSuiteBucket(t, backend)
			b.create()
			recorded := none
			for _, c := range test.changes {
				steps, refusal := []Step(nil), (*Refusal)(nil)
				requests := b.counted(func() { steps, refusal = b.converge(c.desired, recorded) })
				if !slices.Equal(steps, c.steps) {
					t.Errorf("to a %s it took %v, want %v", c.desired, steps, c.steps)
				}
				// A step is one write: nothing is tried that is refused.
				if writes := suiteWrites(requests); sum(writes) != len(c.steps) {
					t.Errorf("to a %s it took the writes %v", c.desired, writes)
				}
				want := c.desired
				if c.refused != "" {
					want = recorded
				}
				if reason := refusalReason(refusal); reason != c.refused {
					t.Errorf("a %s was refused for %q, want %q", c.desired, reason, c.refused)
				}
				b.wantPolicy(want)
				recorded = want
			}
		})
	}

	t.Run("LockPolicy without a policy", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		b.must(b.LockPolicy(t.Context(), lockedPolicy(3)))
		b.wantPolicy(lockedPolicy(3))
	})

	t.Run("LockPolicy again", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		b.must(b.LockPolicy(t.Context(), lockedPolicy(3)))
		before := b.observe()
		b.wantRequests("LockPolicy of what is locked", requestsOf{storeS3: {"PutObjectLockConfiguration": 1}},
			func() { b.must(b.LockPolicy(t.Context(), lockedPolicy(3))) })
		after := b.observe()
		if before.Policy != after.Policy || remaining(before) != remaining(after) {
			t.Errorf("the bucket was %+v and is %+v", before, after)
		}
	})

	t.Run("a store of its own for each step", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.create()
		for _, step := range []Step{set(unlockedPolicy(5)), set(none), set(unlockedPolicy(6)), lock(lockedPolicy(6)), lock(lockedPolicy(7))} {
			store, err := b.opener.openStore(backend.ref(b.name), backend.credentials())
			b.must(err)
			if step.Lock {
				b.must(store.LockPolicy(t.Context(), step.Policy))
			} else {
				b.must(store.SetPolicy(t.Context(), step.Policy))
			}
			b.wantPolicy(step.Policy)
		}
	})

	// On S3 nothing keeps anybody from weakening a default retention: that is drift.
	t.Run("SetPolicy of what is locked", func(t *testing.T) {
		t.Parallel()
		if backend.kind() == storeS3 {
			t.Skip("the default retention of a bucket is never really locked on S3")
		}
		b := newSuiteBucket(t, backend)
		b.create()
		b.must(b.LockPolicy(t.Context(), lockedPolicy(3)))
		for _, weaker := range []Policy{none, unlockedPolicy(1), unlockedPolicy(3), unlockedPolicy(9)} {
			b.wantNoWrites("SetPolicy of what is locked", func() {
				wantStoreError(t, func(ctx context.Context) error { return b.SetPolicy(ctx, weaker) }, codeConfigurationProblem)
			})
			b.wantPolicy(lockedPolicy(3))
		}
		b.wantNoWrites("LockPolicy for fewer days", func() { b.must(b.LockPolicy(t.Context(), lockedPolicy(2))) })
		b.wantPolicy(lockedPolicy(3))
	})

	t.Run("bucket that does not exist", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		for name, call := range map[string]func(context.Context) error{
			"SetPolicy":  func(ctx context.Context) error { return b.SetPolicy(ctx, unlockedPolicy(1)) },
			"LockPolicy": func(ctx context.Context) error { return b.LockPolicy(ctx, lockedPolicy(1)) },
		} {
			err, again := call(t.Context()), call(t.Context())
			var failed *storeError
			if !errors.As(err, &failed) || again == nil || err.Error() != again.Error() {
				t.Errorf("%s of a bucket that does not exist: %v, %v", name, err, again)
			}
		}
		b.wantAbsent()
	})
}

func sum(counts map[string]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}

func refusalReason(r *Refusal) string {
	if r == nil {
		return ""
	}
	return r.Reason
}

// remaining is -1 without a limit.
func remaining(state BucketState) int32 {
	if state.Extensions == nil {
		return -1
	}
	return *state.Extensions
}

func testStoreExtensions(t *testing.T, backend storeBackend) {
	b := newSuiteBucket(t, backend)
	b.create()
	b.must(b.LockPolicy(t.Context(), lockedPolicy(1)))
	days, left := int32(1), remaining(b.observe())
	if limited := backend.kind() == storeAzure; limited && left != azureMaxExtensions || !limited && left != -1 {
		t.Fatalf("%d extensions remain", left)
	}
	for range azureMaxExtensions {
		days++
		b.must(b.LockPolicy(t.Context(), lockedPolicy(days)))
		b.wantPolicy(lockedPolicy(days))
		if left > 0 {
			left--
		}
		if got := remaining(b.observe()); got != left {
			t.Errorf("after the extension to %d days %d remain, want %d", days, got, left)
		}
	}
	if left != 0 {
		return
	}
	b.wantNoWrites("an extension too many", func() {
		wantStoreError(t, func(ctx context.Context) error { return b.LockPolicy(ctx, lockedPolicy(days+1)) }, codeConfigurationProblem)
	})
	b.wantPolicy(lockedPolicy(days))
}

// testStoreDrift: somebody else changes the policy.
func testStoreDrift(t *testing.T, backend storeBackend) {
	for _, test := range []struct {
		name     string
		recorded Policy
		drifted  Policy
		steps    int
	}{
		{"removed", unlockedPolicy(10), Policy{}, 1},
		{"shortened", unlockedPolicy(10), unlockedPolicy(3), 1},
		{"extended", unlockedPolicy(10), unlockedPolicy(30), 1},
		{"locked", unlockedPolicy(10), lockedPolicy(10), 0},
		{"locked policy removed", lockedPolicy(10), Policy{}, 1},
		{"locked policy unlocked", lockedPolicy(10), unlockedPolicy(10), 1},
		{"locked policy shortened", lockedPolicy(10), lockedPolicy(3), 1},
		{"locked policy extended", lockedPolicy(10), lockedPolicy(11), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.recorded.Locked && test.drifted.weakerThan(test.recorded) && backend.kind() == storeAzure {
				t.Skip("Azure allows nobody to do that")
			}
			b := newSuiteBucket(t, backend)
			b.create()
			b.converge(test.recorded, Policy{})
			backend.setPolicy(t, b.name, test.drifted)
			b.wantPolicy(test.drifted)
			steps, _ := b.converge(test.recorded, test.recorded)
			if len(steps) != test.steps {
				t.Errorf("it was repaired with %v, want %d steps", steps, test.steps)
			}
			want := test.recorded
			if test.drifted.Locked && want.weakerThan(test.drifted) {
				want = test.drifted
			}
			b.wantPolicy(want)
		})
	}
	t.Run("after it was read", func(t *testing.T) {
		t.Parallel()
		for _, test := range []struct {
			seen, drifted Policy
			step          Step
		}{
			{Policy{}, unlockedPolicy(3), Step{Policy: unlockedPolicy(10)}},
			{unlockedPolicy(5), unlockedPolicy(3), Step{Policy: unlockedPolicy(10)}},
			{unlockedPolicy(5), Policy{}, Step{Policy: unlockedPolicy(10)}},
			{unlockedPolicy(10), unlockedPolicy(3), Step{Policy: lockedPolicy(10), Lock: true}},
			{unlockedPolicy(10), Policy{}, Step{Policy: lockedPolicy(10), Lock: true}},
			{lockedPolicy(5), lockedPolicy(6), Step{Policy: lockedPolicy(10), Lock: true}},
		} {
			b := newSuiteBucket(t, backend)
			b.create()
			b.converge(test.seen, Policy{})
			b.wantPolicy(test.seen)
			backend.setPolicy(t, b.name, test.drifted)
			if test.step.Lock {
				b.must(b.LockPolicy(t.Context(), test.step.Policy))
			} else {
				b.must(b.SetPolicy(t.Context(), test.step.Policy))
			}
			b.wantPolicy(test.step.Policy)
		}
	})
}

// suiteOdd are names that are easily encoded wrongly.
var suiteOdd = []string{
	"object", "deep/er/and/deeper", "with space", " leading and trailing ", "plus+plus", "100%25", "%41%2F", "ünïcödé/日本語/🪣", "a&b=c?d#e;f",
	"quote'\"<>", "[brackets]{}|^`~",
}

func testStorePurge(t *testing.T, backend storeBackend) {
	under := func(prefix string, names ...string) (out []string) {
		for _, name := range names {
			out = append(out, prefix+name)
		}
		return out
	}
	t.Run("prefixes", func(t *testing.T) {
		t.Parallel()
		both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
			one, ten := under("a--1/", suiteOdd...), under("a--10/", suiteOdd...)
			// Not a--1 itself: MinIO does not list what is below an object.
			rest := []string{"a--1.object", "a-1/object", "A--1/object", "b/a--1/object", "object"}
			all := slices.Concat(one, ten, rest)
			b.put(all...)
			b.wantObjects(all...)
			size := map[string]int64{}
			for _, object := range backend.list(b.t, b.name) {
				size[object.name] = object.size
			}
			result := func(names ...string) (r PurgeResult) {
				for _, name := range names {
					r.Deleted++
					r.DeletedBytes += size[name]
				}
				return r
			}
			objects := open(Policy{})
			b.purge(objects, "c/", PurgeResult{})
			b.wantObjects(all...)
			b.purge(objects, "a--1/", result(one...))
			b.wantObjects(slices.Concat(ten, rest)...)
			b.purge(objects, "a--1/", PurgeResult{})
			b.purge(objects, "a--1", result(append(slices.Clone(ten), rest[0])...))
			b.wantObjects(rest[1:]...)
			b.purge(objects, "b/a--1/object", result("b/a--1/object"))
			b.purge(objects, "", result("a-1/object", "A--1/object", "object"))
			b.wantObjects()
			b.purge(objects, "", PurgeResult{})
			if state := b.observe(); !state.Exists {
				b.t.Error("the bucket itself is gone")
			}
		})
	})
	t.Run("odd prefixes", func(t *testing.T) {
		t.Parallel()
		both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
			objects := open(Policy{})
			for _, prefix := range suiteOdd {
				b.put(under(prefix+"/", suiteOdd...)...)
				b.put("other/object")
				result, err := testPurge(b.t.Context(), objects, prefix+"/", nil)
				b.must(err)
				if result.Deleted != int64(len(suiteOdd)) || result.Retained != 0 {
					b.t.Errorf("the purge of %q returned %+v", prefix, result)
				}
				b.wantObjects("other/object")
				b.purge(objects, "", PurgeResult{Deleted: 1})
			}
		})
	})
	t.Run("absent bucket", func(t *testing.T) {
		t.Parallel()
		b := newSuiteBucket(t, backend)
		b.wantNoWrites("Purge of an absent bucket", func() { b.purge(b, "", PurgeResult{}) })
		b.create()
		entry := b.entry(Policy{})
		b.must(b.Delete(t.Context(), anything))
		b.wantNoWrites("Purge of a deleted bucket", func() {
			b.purge(b, "", PurgeResult{})
			b.purge(entry, "a--1/", PurgeResult{})
			b.purge(entry, "", PurgeResult{})
		})
		b.wantAbsent()
	})
}

// testStorePurgeMany needs several pages and batches in every store.
func testStorePurgeMany(t *testing.T, backend storeBackend) {
	const many = 1100
	both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
		names := make([]string, many)
		for i := range names {
			names[i] = fmt.Sprintf("many/%05d", i)
		}
		bytes := b.put(names...)
		b.put("other/1", "other/2")
		objects := open(Policy{})
		b.purge(objects, "none", PurgeResult{}) // asks for keys
		b.observe()
		b.wantRequests(fmt.Sprintf("Purge of %d objects", many), requestsOf{
			// The list is read again until it is empty.
			storeS3:    {"ListObjectVersions": 3, "DeleteObjects": 2, "ListMultipartUploads": 1},
			storeAzure: {"Blobs.List": 1, "Blobs.Batch": 5},
		}, func() { b.purge(objects, "many/", PurgeResult{Deleted: many, DeletedBytes: bytes}) })
		b.wantObjects("other/1", "other/2")
	})
}

// testStoreRetained: what is known to be retained is not tried one by one.
func testStoreRetained(t *testing.T, backend storeBackend) {
	const many = 300
	both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
		policy := unlockedPolicy(suiteDays)
		b.must(b.SetPolicy(b.t.Context(), policy))
		names := make([]string, many)
		for i := range names {
			names[i] = fmt.Sprintf("kept/%03d", i)
		}
		bytes := b.put(names...)
		want := PurgeResult{Retained: many, RetainedBytes: bytes, RetainedUntil: backend.until(b.t, b.name, names...)}
		if days := time.Until(want.RetainedUntil).Hours() / 24; days < suiteDays/2 {
			b.t.Fatalf("the server says that the objects are free in %v days", days)
		}
		objects := open(policy)
		b.purge(objects, "none", PurgeResult{})
		b.observe()
		b.wantRequests(fmt.Sprintf("Purge of %d retained objects", many), requestsOf{
			storeS3:    {"ListObjectVersions": 1, "DeleteObjects": 1, "GetObjectRetention": 1, "ListMultipartUploads": 1},
			storeAzure: {"Blobs.List": 1},
		}, func() { b.purge(objects, "", want) })
		b.wantObjects(names...)
		if err := b.Delete(b.t.Context(), anything); !errors.Is(err, errBucketNotEmpty) {
			b.t.Errorf("Delete of a bucket with retained objects: %v", err)
		}
	})
	// The record of the policy is missing, or older than the policy.
	for _, recorded := range []Policy{{}, unlockedPolicy(1)} {
		t.Run(fmt.Sprintf("entry with record of %d days", recorded.Days), func(t *testing.T) {
			t.Parallel()
			b := newSuiteBucket(t, backend)
			b.create()
			b.must(b.SetPolicy(t.Context(), unlockedPolicy(suiteDays)))
			bytes := b.put("a/1", "a/2", "a/3")
			result, err := testPurge(t.Context(), b.entry(recorded), "a/", nil)
			b.must(err)
			if truth := backend.until(t, b.name, "a/1", "a/2", "a/3"); result.RetainedUntil.After(truth.Add(time.Second)) {
				t.Errorf("the objects are retained until %s, and not until %s", truth, result.RetainedUntil)
			}
			result.RetainedUntil, result.Now = time.Time{}, time.Time{}
			if want := (PurgeResult{Retained: 3, RetainedBytes: bytes}); result != want {
				t.Errorf("the purge returned %+v, want %+v", result, want)
			}
			b.wantObjects("a/1", "a/2", "a/3")
		})
	}
}

// testStoreAgeing: some objects become free earlier than others.
func testStoreAgeing(t *testing.T, backend storeBackend) {
	for _, apart := range []time.Duration{20 * time.Second, time.Minute, 3 * time.Minute} {
		if testStoreAgeingOnce(t, backend, apart) {
			return
		}
	}
	t.Error("again and again, objects became free before a purge ended that should find them retained")
}

// testStoreAgeingOnce returns false if this machine was too slow: apart is how long the
// purges may take that follow a free.
func testStoreAgeingOnce(t *testing.T, backend storeBackend, apart time.Duration) (inTime bool) {
	// What is put now is as old as the clock was moved, see apart.
	policy := unlockedPolicy(int32(time.Until(backend.now(t)).Hours()/24) + 2)
	old, young := []string{"a/1", "a/2", "a/3"}, []string{"a/4", "b/1"}
	type opened struct {
		*suiteBucket
		objects           versions
		oldSize, newSize  int64
		aged              PurgeResult
		until, untilYoung time.Time
	}
	var buckets []*opened
	for _, entry := range []bool{false, true} {
		b := &opened{suiteBucket: newSuiteBucket(t, backend)}
		b.create()
		b.must(b.SetPolicy(t.Context(), policy))
		b.objects = b.Store
		if entry {
			b.objects = b.entry(policy)
		}
		b.oldSize = b.put(old...)
		buckets = append(buckets, b)
	}
	backend.apart(t, apart)
	for _, b := range buckets {
		b.newSize = b.put(young...)
		b.until, b.untilYoung = backend.until(t, b.name, young...), backend.until(t, b.name, "a/4")
		b.purge(b.objects, "", PurgeResult{Retained: 5, RetainedBytes: b.oldSize + b.newSize, RetainedUntil: b.until})
		b.purge(b.objects, "a/1", PurgeResult{Retained: 1, RetainedUntil: backend.until(t, b.name, "a/1")})
		b.wantObjects(slices.Concat(old, young)...)
	}
	for _, b := range buckets {
		backend.free(t, b.name, old...)
	}
	for _, b := range buckets {
		var err error
		b.aged, err = testPurge(t.Context(), b.objects, "a/", nil)
		b.must(err)
		if !backend.now(t).Before(b.untilYoung) {
			return false
		}
	}
	for _, b := range buckets {
		want := PurgeResult{Deleted: 3, DeletedBytes: b.oldSize, Retained: 1, RetainedUntil: b.untilYoung}
		if off := b.aged.RetainedUntil.Sub(b.untilYoung).Abs(); off > time.Second {
			t.Errorf("the object is retained until %s, want %s", b.aged.RetainedUntil, b.untilYoung)
		}
		b.aged.RetainedUntil, b.aged.Now = b.untilYoung, time.Time{}
		if b.aged != want {
			t.Errorf("the purge returned %+v, want %+v", b.aged, want)
		}
		b.wantObjects(young...)
	}
	for _, b := range buckets {
		backend.free(t, b.name, young...)
		b.purge(b.objects, "", PurgeResult{Deleted: 2, DeletedBytes: b.newSize})
		b.wantObjects()
		b.must(b.Delete(t.Context(), anything))
		b.wantAbsent()
	}
	return true
}

func testStoreLegalHold(t *testing.T, backend storeBackend) {
	both(t, backend, func(b *suiteBucket, open func(Policy) versions) {
		bytes := b.put("a/1", "a/2")
		backend.hold(b.t, b.name, true)
		objects := open(Policy{})
		b.purge(objects, "a/", PurgeResult{Retained: 2, RetainedBytes: bytes})
		b.wantObjects("a/1", "a/2")
		if err := b.Delete(b.t.Context(), anything); !errors.Is(err, errBucketNotEmpty) {
			b.t.Errorf("Delete of a bucket with held objects: %v", err)
		}
		backend.hold(b.t, b.name, false)
		b.observe()
		b.purge(objects, "a/", PurgeResult{Deleted: 2, DeletedBytes: bytes})
		b.wantObjects()

		if backend.kind() == storeAzure { // where it is the container that is held
			backend.hold(b.t, b.name, true)
			b.observe()
			err := b.Delete(b.t.Context(), anything)
			var wait *waitError
			if !errors.As(err, &wait) || wait.after <= 0 {
				b.t.Errorf("Delete of a held bucket: %v", err)
			}
			b.wantPolicy(Policy{})
			backend.hold(b.t, b.name, false)
		}
		b.must(b.Delete(b.t.Context(), anything))
		b.wantAbsent()
	})
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

// s3Backend is MinIO behind a proxy.
type s3Backend struct {
	*suiteProxy
	data   map[string][]byte
	client *s3.Client // past the proxy
}

func startS3Backend(t *testing.T, secret string) storeBackend {
	t.Helper()
	b := &s3Backend{}
	if err := json.Unmarshal([]byte(secret), &b.data); err != nil {
		t.Fatal(err)
	}
	endpoint := string(b.data[s3KeyEndpoint])
	b.client = s3.New(s3.Options{
		BaseEndpoint: aws.String(endpoint), Region: string(b.data[s3KeyRegion]), UsePathStyle: true,
		Credentials: awscredentials.NewStaticCredentialsProvider(string(b.data[s3KeyAccessKeyID]), string(b.data[s3KeySecretAccessKey]), ""),
	})
	b.suiteProxy = startSuiteProxy(t, endpoint, func(path string) string {
		bucket, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		return bucket
	}, func(w http.ResponseWriter, status int) {
		codes := map[int]string{
			http.StatusForbidden: "AccessDenied", http.StatusTooManyRequests: "TooManyRequests",
			http.StatusServiceUnavailable: "SlowDown", http.StatusInternalServerError: "InternalError",
		}
		answerS3Error(w, status, codes[status], "This error was injected.")
	})
	b.data = suiteWith(b.data, s3KeyEndpoint, b.URL)
	return b
}

func (b *s3Backend) kind() string                    { return storeS3 }
func (b *s3Backend) credentials() map[string][]byte  { return maps.Clone(b.data) }
func (b *s3Backend) permission() string              { return "s3:GetBucketObjectLockConfiguration" }
func (b *s3Backend) maxDays() int32                  { return s3MaxRetentionDays }
func (b *s3Backend) now(*testing.T) time.Time        { return time.Now() }
func (b *s3Backend) apart(*testing.T, time.Duration) {}

func (b *s3Backend) ref(bucket string) bucketRef {
	return bucketRef{Name: bucket, Region: string(b.data[s3KeyRegion])}
}

func (b *s3Backend) opener(m *metrics) provider {
	c := newS3Clients(m)
	c.maxBackoff = time.Millisecond
	return c
}

func (b *s3Backend) wrong(bucket *suiteBucket) []wrongStore {
	notS3 := httptest.NewServer(http.NotFoundHandler())
	bucket.t.Cleanup(notS3.Close)
	ref, opener := bucket.backend.ref(bucket.name), b.opener(newMetrics())
	elsewhere := ref
	elsewhere.Region = "eu-west-3"
	return []wrongStore{
		{name: "access key", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeyAccessKeyID, "nobody"), want: codeUnauthenticated},
		{name: "secret key", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeySecretAccessKey, "wrong-secret-key"),
			want: codeUnauthorized},
		{name: "secret key of an entry", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeySecretAccessKey, "wrong-secret-key"),
			entry: true, want: codeUnauthorized},
		{name: "nothing listens", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeyEndpoint, suiteClosed()),
			want: codeRetryableDependencies},
		{name: "no TLS", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeyEndpoint, strings.Replace(b.URL, "http:", "https:", 1)),
			want: codeRetryableConfiguration},
		{name: "no S3", opener: opener, ref: ref, credentials: suiteWith(b.data, s3KeyEndpoint, notS3.URL), want: codeRetryableConfiguration,
			only: "Observe"},
		{name: "region", opener: opener, ref: elsewhere, credentials: b.credentials(), want: codeConfigurationProblem, notOurs: true},
	}
}

func (b *s3Backend) put(t *testing.T, bucket, name string, size int) {
	t.Helper()
	if _, err := b.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &name, Body: bytes.NewReader(make([]byte,
		size))}); err != nil {
		t.Errorf("putting object %q: %v", name, err)
	}
}

// versions calls f for every version and delete marker; a bucket that is absent has none.
func (b *s3Backend) versions(t *testing.T, bucket string, f func(name, id string, size int64)) {
	t.Helper()
	pages := s3.NewListObjectVersionsPaginator(b.client, &s3.ListObjectVersionsInput{Bucket: &bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if s3ErrorCode(err) == "NoSuchBucket" {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range page.Versions {
			f(aws.ToString(v.Key), aws.ToString(v.VersionId), aws.ToInt64(v.Size))
		}
		for _, v := range page.DeleteMarkers {
			f(aws.ToString(v.Key), aws.ToString(v.VersionId), 0)
		}
	}
}

func (b *s3Backend) list(t *testing.T, bucket string) (objects []suiteObject) {
	t.Helper()
	b.versions(t, bucket, func(name, _ string, size int64) { objects = append(objects, suiteObject{name, size}) })
	return objects
}

func (b *s3Backend) setPolicy(t *testing.T, bucket string, p Policy) {
	t.Helper()
	config := &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled}
	if !p.None() {
		mode := types.ObjectLockRetentionModeGovernance
		if p.Locked {
			mode = types.ObjectLockRetentionModeCompliance
		}
		config.Rule = &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: mode, Days: &p.Days}}
	}
	if _, err := b.client.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{Bucket: &bucket,
		ObjectLockConfiguration: config}); err != nil {
		t.Fatal(err)
	}
}

func (b *s3Backend) hold(t *testing.T, bucket string, on bool) {
	t.Helper()
	status := types.ObjectLockLegalHoldStatusOff
	if on {
		status = types.ObjectLockLegalHoldStatusOn
	}
	b.versions(t, bucket, func(name, id string, _ int64) {
		if _, err := b.client.PutObjectLegalHold(t.Context(), &s3.PutObjectLegalHoldInput{
			Bucket: &bucket, Key: &name, VersionId: &id, LegalHold: &types.ObjectLockLegalHold{Status: status},
		}); err != nil {
			t.Fatal(err)
		}
	})
}

func (b *s3Backend) until(t *testing.T, bucket string, names ...string) (until time.Time) {
	t.Helper()
	for _, name := range names {
		retention, err := b.client.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &bucket, Key: &name})
		if err != nil {
			t.Fatal(err)
		}
		if end := aws.ToTime(retention.Retention.RetainUntilDate); end.After(until) {
			until = end
		}
	}
	return until
}

// free lifts the retention, which S3 allows in governance mode.
func (b *s3Backend) free(t *testing.T, bucket string, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := b.client.PutObjectRetention(t.Context(), &s3.PutObjectRetentionInput{
			Bucket: &bucket, Key: &name, BypassGovernanceRetention: aws.Bool(true), Retention: &types.ObjectLockRetention{},
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *s3Backend) fail(_ *testing.T, bucket string, status, times int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures[bucket] = &suiteFailure{status, times}
}

func (b *s3Backend) served(_ *testing.T, bucket string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[bucket]
}

// azureBackend is the Azure of test/env, with its data plane behind a proxy.
type azureBackend struct {
	*suiteProxy
	control                string
	data, identity         map[string][]byte
	cloudName, unreachable string
	clouds                 azureClouds
	roots                  *x509.CertPool
}

func startAzureBackend(t *testing.T, control string) storeBackend {
	t.Helper()
	b := &azureBackend{control: control, roots: x509.NewCertPool(), unreachable: "Unreachable"}
	var description struct {
		CloudName, CloudConfig, CAFile, BlobEndpoint string
		SecretData, WorkloadIdentityData             map[string][]byte
	}
	b.call(t, http.MethodGet, "/", nil, &description)
	b.data, b.identity, b.cloudName = description.SecretData, description.WorkloadIdentityData, description.CloudName
	ca, err := os.ReadFile(description.CAFile)
	if err != nil || !b.roots.AppendCertsFromPEM(ca) {
		t.Fatalf("no CA: %v", err)
	}
	endpoint, err := url.Parse(strings.ReplaceAll(description.BlobEndpoint, azureAccountPlaceholder, ""))
	if err != nil {
		t.Fatal(err)
	}
	endpoint.Path = ""
	b.suiteProxy = startSuiteProxy(t, endpoint.String(), func(path string) string {
		_, path, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
		bucket, _, _ := strings.Cut(path, "/")
		return bucket
	}, nil)
	config, err := os.ReadFile(description.CloudConfig)
	if err != nil {
		t.Fatal(err)
	}
	var clouds map[string]azureCloudConfig
	if err := json.Unmarshal(config, &clouds); err != nil {
		t.Fatal(err)
	}
	cloud := clouds[b.cloudName]
	cloud.BlobEndpoint = b.URL + "/" + azureAccountPlaceholder
	closed := suiteClosed()
	away := cloud
	away.ActiveDirectoryAuthorityHost = strings.Replace(closed, "http:", "https:", 1)
	away.ResourceManagerEndpoint = away.ActiveDirectoryAuthorityHost
	away.BlobEndpoint = closed + "/" + azureAccountPlaceholder
	config, err = json.Marshal(map[string]azureCloudConfig{b.cloudName: cloud, b.unreachable: away})
	if err != nil {
		t.Fatal(err)
	}
	if b.clouds, err = parseAzureClouds(config); err != nil {
		t.Fatal(err)
	}
	return b
}

// try makes a request to the environment's control server.
func (b *azureBackend) try(method, path string, body []byte, answer any) error {
	request, err := http.NewRequest(method, b.control+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode >= http.StatusBadRequest:
		return fmt.Errorf("%s %s: HTTP status %d: %s", method, path, response.StatusCode, data)
	case answer == nil:
		return nil
	}
	return json.Unmarshal(data, answer)
}

func (b *azureBackend) call(t *testing.T, method, path string, body []byte, answer any) {
	t.Helper()
	if err := b.try(method, path, body, answer); err != nil {
		t.Fatal(err)
	}
}

func (b *azureBackend) kind() string                   { return storeAzure }
func (b *azureBackend) credentials() map[string][]byte { return maps.Clone(b.data) }
func (b *azureBackend) maxDays() int32                 { return azureMaxRetentionDays }
func (b *azureBackend) permission() string {
	return "Microsoft.Storage/storageAccounts/blobServices/containers/read"
}

func (b *azureBackend) ref(bucket string) bucketRef {
	return bucketRef{Name: bucket, Region: "westeurope", Cloud: b.cloudName}
}

func (b *azureBackend) opener(m *metrics) provider {
	c := b.strange(m)
	c.transport.TLSClientConfig.RootCAs = b.roots
	return c
}

// strange opens without knowing the CA.
func (b *azureBackend) strange(m *metrics) *azureClients {
	c := newAzureClients(m, b.clouds)
	c.retryDelay, c.pollInterval = time.Millisecond, time.Second
	return c
}

func (b *azureBackend) wrong(bucket *suiteBucket) []wrongStore {
	const id = "12345678-0000-4000-8000-123456789abc"
	ref, opener, entry := b.ref(bucket.name), b.opener(newMetrics()), bucket.entryCredentials()
	other := func(change func(*bucketRef)) bucketRef {
		ref := b.ref(fmt.Sprintf("suite-%s-%04d", suiteRun, suiteNames.Add(1)))
		change(&ref)
		return ref
	}
	return []wrongStore{
		{name: "subscription", opener: opener, ref: ref, credentials: suiteWith(b.data, azureKeySubscriptionID, id), want: codeUnauthenticated},
		{name: "tenant", opener: opener, ref: ref, credentials: suiteWith(b.data, azureKeyTenantID, id), want: codeUnauthenticated},
		{name: "client", opener: opener, ref: ref, credentials: suiteWith(b.data, azureKeyClientID, id), want: codeUnauthenticated},
		{name: "client secret", opener: opener, ref: ref, credentials: suiteWith(b.data, azureKeyClientSecret, "wrong-client-secret"),
			want: codeUnauthenticated},
		{name: "token", opener: opener, ref: ref, credentials: suiteWith(b.identity, azureKeyToken, "wrong-token-value"),
			want: codeUnauthenticated},
		{name: "storage key", opener: opener, ref: ref, entry: true, credentials: suiteWith(entry, dataKeyStorageKey, "d3Jvbmcta2V5"),
			want: codeUnauthenticated},
		{name: "nothing listens", opener: opener, ref: other(func(r *bucketRef) { r.Cloud = b.unreachable }), credentials: b.credentials(),
			want: codeRetryableDependencies},
		{
			name: "nothing listens for an entry", opener: opener, ref: ref, entry: true, want: codeRetryableDependencies,
			credentials: suiteWith(entry, dataKeyDomain, b.clouds[strings.ToLower(b.unreachable)].domain),
		},
		{name: "unknown CA", opener: b.strange(newMetrics()), ref: ref, credentials: b.credentials(), want: codeRetryableConfiguration},
		{name: "cloud", opener: opener, ref: other(func(r *bucketRef) { r.Cloud = "Nowhere" }), credentials: b.credentials(),
			want: codeConfigurationProblem},
		{name: "region", opener: opener, ref: other(func(r *bucketRef) { r.Region = "nowhere" }), credentials: b.credentials(),
			want: codeConfigurationProblem, only: "Create"},
		{
			name: "name that is taken", opener: opener, ref: other(func(r *bucketRef) { r.Account = azureAccountName(bucket.name) }),
			credentials: b.credentials(),
			want:        codeConfigurationProblem, only: "Create", notOurs: true,
		},
	}
}

func (b *azureBackend) put(t *testing.T, bucket, name string, size int) {
	t.Helper()
	if err := b.try(http.MethodPut, "/blobs/"+bucket+"/"+url.PathEscape(name), make([]byte, size), nil); err != nil {
		t.Errorf("putting object %q: %v", name, err)
	}
}

type suiteBlob struct {
	Name    string
	Created time.Time
	Size    int64
}

func (b *azureBackend) blobs(t *testing.T, bucket string) (blobs []suiteBlob) {
	t.Helper()
	b.call(t, http.MethodGet, "/blobs/"+bucket, nil, &blobs)
	return blobs
}

func (b *azureBackend) list(t *testing.T, bucket string) (objects []suiteObject) {
	t.Helper()
	for _, blob := range b.blobs(t, bucket) {
		objects = append(objects, suiteObject{blob.Name, blob.Size})
	}
	return objects
}

func (b *azureBackend) setPolicy(t *testing.T, bucket string, p Policy) {
	t.Helper()
	if p.None() {
		b.call(t, http.MethodDelete, "/policies/"+bucket, nil, nil)
		return
	}
	b.call(t, http.MethodPut, fmt.Sprintf("/policies/%s?days=%d&locked=%t", bucket, p.Days, p.Locked), nil, nil)
}

func (b *azureBackend) hold(t *testing.T, bucket string, on bool) {
	t.Helper()
	method := http.MethodDelete
	if on {
		method = http.MethodPut
	}
	b.call(t, method, "/legalholds/"+bucket+"/suite", nil, nil)
}

func (b *azureBackend) until(t *testing.T, bucket string, names ...string) (until time.Time) {
	t.Helper()
	var container struct{ Days int }
	b.call(t, http.MethodGet, "/containers/"+bucket, nil, &container)
	for _, blob := range b.blobs(t, bucket) {
		if end := blob.Created.AddDate(0, 0, container.Days); slices.Contains(names, blob.Name) && end.After(until) {
			until = end
		}
	}
	return until
}

func (b *azureBackend) now(t *testing.T) time.Time {
	t.Helper()
	var description struct{ Now time.Time }
	b.call(t, http.MethodGet, "/", nil, &description)
	return description.Now
}

// apart waits: a blob is as old as it is by the real clock and the server's together, and
// the container's retention is the same for all.
func (b *azureBackend) apart(t *testing.T, by time.Duration) {
	t.Helper()
	select {
	case <-time.After(by):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

func (b *azureBackend) free(t *testing.T, bucket string, names ...string) {
	t.Helper()
	if ahead := b.until(t, bucket, names...).Sub(b.now(t)); ahead > 0 {
		b.call(t, http.MethodPost, fmt.Sprintf("/advance?seconds=%d", ahead/time.Second+1), nil, nil)
	}
}

func (b *azureBackend) fail(t *testing.T, bucket string, status, times int) {
	t.Helper()
	fault, err := json.Marshal(map[string]any{"PathContains": bucket, "Status": status, "Times": times})
	if err != nil {
		t.Fatal(err)
	}
	b.call(t, http.MethodPost, "/faults", fault, nil)
}

func (b *azureBackend) served(t *testing.T, bucket string) int {
	t.Helper()
	var requests []struct{}
	b.call(t, http.MethodGet, "/requests?path="+bucket, nil, &requests)
	return len(requests)
}
