package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// A third store, as small as the seam allows: it shows what has to be written to add one. The server is a map under a
// mutex that answers with HTTP statuses, the store above it has the rules: a version is retained as long as the policy of
// its bucket says when it is written, and a locked policy can only grow.

const (
	storeMemory = "memory"
	// memoryKey of the credentials secret has the one key that the server takes.
	memoryKey     = "secretAccessKey"
	memoryRegion  = "attic"
	memoryMaxDays = 36500
	memoryPage    = 1000
)

// memoryServer keeps buckets.
type memoryServer struct {
	key     string
	mu      sync.Mutex
	buckets map[string]*memoryBucket
	next    int
	// Of the acceptance suite, by bucket: requests got, answers to be given, and what to call before a deletion.
	requests map[string]int
	failures map[string]*suiteFailure
	deletes  map[string]func()
	// content and tagged are of versions, by their ids, which are unique; a version without content is zeros.
	content map[string][]byte
	tagged  map[string]map[string]string
	// governed are the ids of versions whose retention can be taken away, mayBypass whether everybody may.
	governed  map[string]bool
	mayBypass bool
	// refuse is the answer to an operation, unless it is StatusOK; broken what is read of a version, unless it is nil.
	refuse func(operation string) int
	broken func(version) io.Reader
	// lies: what is deleted stays.
	lies bool
}

type memoryBucket struct {
	region   string
	policy   Policy
	versions []version // by key, the oldest first
}

func newMemoryServer() *memoryServer {
	return &memoryServer{key: "open sesame", buckets: map[string]*memoryBucket{}, requests: map[string]int{},
		failures: map[string]*suiteFailure{}, deletes: map[string]func(){}, content: map[string][]byte{},
		tagged: map[string]map[string]string{}, governed: map[string]bool{}}
}

// serve answers one request. What f gets is nil if there is no bucket of that name.
func (s *memoryServer) serve(ref bucketRef, key string, f func(*memoryBucket) int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[ref.Name]++
	if failure := s.failures[ref.Name]; failure != nil && failure.times > 0 {
		failure.times--
		return failure.status
	}
	b := s.buckets[ref.Name]
	switch {
	case key != s.key:
		return http.StatusUnauthorized
	case b != nil && b.region != ref.Region:
		return http.StatusMisdirectedRequest
	}
	return f(b)
}

// write adds a version, or a delete marker, which is never retained.
func (s *memoryServer) write(b *memoryBucket, v version) version {
	s.next++
	v.id, v.created = fmt.Sprintf("%012d", s.next), cmp.Or(v.created, time.Now())
	if !b.policy.None() && !v.marker {
		v.until, s.governed[v.id] = b.policy.until(v.created), !b.policy.Locked
	}
	i, _ := slices.BinarySearchFunc(b.versions, v, compareMemory)
	b.versions = slices.Insert(b.versions, i, v)
	return v
}

func compareMemory(v, w version) int {
	return cmp.Or(cmp.Compare(v.key, w.key), cmp.Compare(v.id, w.id))
}

// memoryProvider implements provider.
type memoryProvider struct {
	server  *memoryServer
	metrics *metrics
}

type memoryConfig struct {
	configHeader
	Immutability *immutabilityConfig `json:"immutability,omitempty"`
}

func (p *memoryProvider) name() string { return storeMemory }

func (p *memoryProvider) verifyInterval() time.Duration { return time.Minute }

func (p *memoryProvider) parseConfig(path *field.Path, providerType string, raw []byte) (desired, error) {
	var config memoryConfig
	if err := decodeConfig(path, providerType, raw, &config); err != nil {
		return desired{}, err
	}
	policy, err := config.Immutability.policy(path.Child("immutability"), memoryMaxDays)
	return desired{Policy: policy}, err
}

func (p *memoryProvider) record(providerType string, r record) any {
	if status := providerStatus(providerType, r); status != nil {
		return status
	}
	return nil
}

func (p *memoryProvider) warnings(*field.Path, Policy, Policy) map[string]string { return nil }

func (p *memoryProvider) entrySecret(_ *backupEntry, source, _, wanted *corev1.Secret) error {
	maps.Copy(wanted.Data, source.Data)
	return nil
}

func (p *memoryProvider) open(ref bucketRef, credentials map[string][]byte) (*memoryStore, error) {
	key := strings.TrimSpace(string(credentials[memoryKey]))
	switch {
	case key == "":
		return nil, configErrorf("the credentials secret lacks %s", memoryKey)
	case !s3BucketNamePattern.MatchString(ref.Name):
		return nil, &storeError{code: codeConfigurationProblem, err: fmt.Errorf("the bucket name %q is not allowed: %w", ref.Name, errNotOurBucket)}
	}
	return &memoryStore{p, ref, key}, nil
}

func (p *memoryProvider) openStore(ref bucketRef, credentials map[string][]byte) (Store, error) {
	return p.open(ref, credentials)
}

func (p *memoryProvider) openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error) {
	return p.open(ref, credentials)
}

// memoryStore implements Store and Objects.
type memoryStore struct {
	*memoryProvider
	bucketRef
	key string
}

var _ interface {
	Store
	Objects
} = &memoryStore{}

// once makes one request about a bucket; a status that is no success comes with an error.
func (s *memoryStore) once(ctx context.Context, operation string, f func(*memoryBucket) int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, &storeError{err: fmt.Errorf("%s for bucket %q was not sent: %w", operation, s.Name, err)}
	}
	status := http.StatusOK
	if s.server.refuse != nil {
		status = s.server.refuse(operation)
	}
	if status == http.StatusOK {
		status = s.server.serve(s.bucketRef, s.key, f)
	}
	outcome, failed := outcomeError, &storeError{err: fmt.Errorf("%s for bucket %q failed: %s", operation, s.Name, http.StatusText(status))}
	switch status {
	case http.StatusOK:
		s.metrics.observeStoreRequest(storeMemory, operation, outcomeSuccess, 0)
		return status, nil
	case http.StatusUnauthorized:
		failed.code = codeUnauthenticated
	case http.StatusForbidden:
		failed.code = codeUnauthorized
	case http.StatusMisdirectedRequest:
		failed.code, failed.err = codeConfigurationProblem, fmt.Errorf("bucket %q lies elsewhere: %w", s.Name, errNotOurBucket)
	case http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed:
		outcome = outcomeExpected
	case http.StatusTooManyRequests:
		outcome, failed.code = outcomeThrottled, codeRateLimitsExceeded
	case http.StatusServiceUnavailable:
		outcome, failed.code = outcomeThrottled, codeRetryableDependencies
	case http.StatusNotImplemented, http.StatusBadRequest:
		failed.code = codeConfigurationProblem
	default:
		failed.code = codeRetryableDependencies
	}
	s.metrics.observeStoreRequest(storeMemory, operation, outcome, 0)
	return status, failed
}

// request makes a request that may be repeated.
func (s *memoryStore) request(ctx context.Context, operation string, f func(*memoryBucket) int) (status int, err error) {
	for range 4 {
		if status, err = s.once(ctx, operation, f); err == nil || !isTransient(err) || ctx.Err() != nil {
			break
		}
	}
	return status, err
}

// there makes a request about a bucket that has to be there.
func there(f func(*memoryBucket)) func(*memoryBucket) int {
	return func(b *memoryBucket) int {
		if b == nil {
			return http.StatusNotFound
		}
		f(b)
		return http.StatusOK
	}
}

func (s *memoryStore) Observe(ctx context.Context) (state BucketState, err error) {
	status, err := s.request(ctx, "GetBucket", there(func(b *memoryBucket) { state = BucketState{Exists: true, Policy: b.policy} }))
	if status == http.StatusNotFound {
		err = nil
	}
	return state, err
}

func (s *memoryStore) Create(ctx context.Context, _ bool) error {
	_, err := s.request(ctx, "CreateBucket", func(b *memoryBucket) int {
		if b == nil {
			s.server.buckets[s.Name] = &memoryBucket{region: s.Region}
		}
		return http.StatusOK
	})
	return err
}

// Harden has nothing to do but to ask whether the bucket is there.
func (s *memoryStore) Harden(ctx context.Context) ([]string, error) {
	_, err := s.request(ctx, "GetBucket", there(func(*memoryBucket) {}))
	return nil, err
}

func (s *memoryStore) SetPolicy(ctx context.Context, p Policy) error {
	state, err := s.Observe(ctx)
	switch {
	case err != nil:
		return err
	case state.Policy.Locked:
		return &storeError{code: codeConfigurationProblem, err: fmt.Errorf("bucket %q has a %s, which can only be extended", s.Name, state.Policy)}
	}
	return s.putPolicy(ctx, p)
}

func (s *memoryStore) LockPolicy(ctx context.Context, p Policy) error {
	if state, err := s.Observe(ctx); err != nil || !p.Locked || state.Policy.Locked && p.Days <= state.Policy.Days {
		return err
	}
	return s.putPolicy(ctx, p)
}

func (s *memoryStore) putPolicy(ctx context.Context, p Policy) error {
	_, err := s.request(ctx, "PutPolicy", func(b *memoryBucket) int {
		switch {
		case b == nil:
			return http.StatusNotFound
		case b.policy.Locked && p.weakerThan(b.policy):
			return http.StatusConflict
		}
		b.policy = p
		return http.StatusOK
	})
	return err
}

func (s *memoryStore) Delete(ctx context.Context, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	status, err := s.request(ctx, "DeleteBucket", func(b *memoryBucket) int {
		if b != nil && len(b.versions) > 0 {
			return http.StatusConflict
		}
		delete(s.server.buckets, s.Name)
		return http.StatusOK
	})
	if status == http.StatusConflict {
		return &storeError{err: fmt.Errorf("bucket %q cannot be deleted: %w", s.Name, errBucketNotEmpty)}
	}
	return err
}

func (s *memoryStore) Put(ctx context.Context, key string) error {
	_, err := s.request(ctx, "PutObject", there(func(b *memoryBucket) { s.server.write(b, version{key: key}) }))
	return err
}

func (s *memoryStore) endpoint() endpointRef { return endpointRef{"memory", s.Name} }

func (s *memoryStore) traits() traits {
	return traits{batch: 100, backoff: func(int) time.Duration { return time.Millisecond }}
}

func (s *memoryStore) pages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		for {
			var p page
			status, err := s.request(ctx, "ListVersions", there(func(b *memoryBucket) { p = b.page(prefix, from) }))
			switch {
			case status == http.StatusNotFound:
				return
			case !yield(p, err), err != nil, p.next == cursor{}:
				return
			}
			from = p.next
		}
	}
}

// page is the part of the list behind a version.
func (b *memoryBucket) page(prefix string, from cursor) page {
	p := page{now: time.Now()}
	for _, v := range b.versions {
		if !strings.HasPrefix(v.key, prefix) || compareMemory(v, version{key: from.key, id: from.id}) <= 0 {
			continue
		}
		if len(p.versions) == memoryPage {
			last := p.versions[memoryPage-1]
			p.next = cursor{last.key, last.id}
			break
		}
		p.versions = append(p.versions, v)
	}
	return p
}

func (s *memoryStore) remove(ctx context.Context, batch []version) ([]removal, error) {
	s.server.deleting(s.Name)
	answers := make([]removal, len(batch))
	status, err := s.once(ctx, "DeleteVersions", there(func(b *memoryBucket) {
		for i, v := range batch {
			at := slices.IndexFunc(b.versions, v.same)
			switch {
			case at >= 0 && (b.versions[at].held || b.versions[at].until.After(time.Now())):
				answers[i].outcome = removalRetained
				continue
			case at >= 0:
				b.versions = slices.Delete(b.versions, at, at+1)
			}
			answers[i].outcome = removalGone
		}
	}))
	if status == http.StatusNotFound {
		err = errNoBucket
	}
	return answers, err
}

func (s *memoryStore) until(ctx context.Context, v version) (until time.Time, err error) {
	_, err = s.request(ctx, "GetVersion", there(func(b *memoryBucket) {
		if at := slices.IndexFunc(b.versions, v.same); at >= 0 && !b.versions[at].held {
			until = b.versions[at].until
		}
	}))
	return until, err
}

var _ interface {
	reader
	tagger
	hider
	extender
} = &memoryStore{}

// version makes a request about a version.
func (s *memoryStore) version(ctx context.Context, operation string, v version, f func(version)) error {
	_, err := s.change(ctx, operation, v, func(stored *version) int {
		f(*stored)
		return http.StatusOK
	})
	return err
}

// change makes a request that may change a version.
func (s *memoryStore) change(ctx context.Context, operation string, v version, f func(*version) int) (int, error) {
	status, err := s.request(ctx, operation, func(b *memoryBucket) int {
		if b == nil {
			return http.StatusNotFound
		}
		at := slices.IndexFunc(b.versions, v.same)
		if at < 0 || b.versions[at].marker {
			return http.StatusNotFound
		}
		return f(&b.versions[at])
	})
	if status == http.StatusNotFound {
		err = &storeError{err: fmt.Errorf("%s of %q in bucket %q: %w", operation, v.key, s.Name, errNoVersion)}
	}
	return status, err
}

func (s *memoryStore) lock(ctx context.Context, v version) (lock versionLock, err error) {
	err = s.version(ctx, "GetVersion", v, func(stored version) {
		switch retained := stored.until.After(time.Now()); {
		case retained && !s.server.governed[stored.id]:
			lock.until = stored.until
		default:
			lock.held, lock.governance = stored.held, retained
		}
	})
	return lock, err
}

// extend says of a version in governance without leave the same as of a missing permission, as AWS does.
func (s *memoryStore) extend(ctx context.Context, v version, until time.Time, bypass bool) error {
	until = wholeSecond(until)
	status, err := s.change(ctx, "ExtendVersion", v, func(stored *version) int {
		governed := s.server.governed[stored.id] && stored.until.After(time.Now())
		switch {
		case !until.After(time.Now()):
			return http.StatusBadRequest
		case governed && !(bypass && s.server.mayBypass):
			return http.StatusForbidden
		case !governed && stored.until.After(until):
			return http.StatusPreconditionFailed
		}
		stored.until = until
		delete(s.server.governed, stored.id)
		return http.StatusOK
	})
	switch status {
	case http.StatusForbidden:
		return &storeError{code: codeUnauthorized, err: fmt.Errorf("extending %q in bucket %q: %w", v.key, s.Name, errNotExtended)}
	case http.StatusPreconditionFailed:
		return &storeError{err: fmt.Errorf("extending %q in bucket %q: %w", v.key, s.Name, errRetainedLonger)}
	case http.StatusNotImplemented:
		return &storeError{code: codeConfigurationProblem, err: fmt.Errorf("extending %q in bucket %q: %w", v.key, s.Name, errNoRetention)}
	}
	return err
}

func (s *memoryStore) open(ctx context.Context, v version) (body io.ReadCloser, err error) {
	err = s.version(ctx, "GetObject", v, func(stored version) {
		content, ok := s.server.content[stored.id]
		if !ok {
			content = make([]byte, stored.size)
		}
		reader := io.Reader(bytes.NewReader(content))
		if s.server.broken != nil {
			reader = cmp.Or(s.server.broken(stored), reader)
		}
		body = &objectBody{ReadCloser: io.NopCloser(reader), left: v.size, fail: func(err error) error {
			code, text := readCause(err)
			return &storeError{code: code, err: fmt.Errorf("reading %q: %s", v.key, text)}
		}}
	})
	return body, err
}

func (s *memoryStore) tags(ctx context.Context, v version) (tags map[string]string, err error) {
	err = s.version(ctx, "GetTags", v, func(stored version) { tags = maps.Clone(s.server.tagged[stored.id]) })
	return tags, err
}

func (s *memoryStore) setTags(ctx context.Context, v version, tags map[string]string) error {
	return s.version(ctx, "PutTags", v, func(stored version) { s.server.tagged[stored.id] = maps.Clone(tags) })
}

func (s *memoryStore) hide(ctx context.Context, key string) (marker version, err error) {
	_, err = s.request(ctx, "DeleteObject", there(func(b *memoryBucket) { marker = s.server.write(b, version{key: key, marker: true}) }))
	return marker, err
}

// deleting calls what the acceptance suite wants to be called.
func (s *memoryServer) deleting(bucket string) {
	s.mu.Lock()
	f := s.deletes[bucket]
	delete(s.deletes, bucket)
	s.mu.Unlock()
	if f != nil {
		f()
	}
}
