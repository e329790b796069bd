package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Store is one bucket on one object store, with the credentials of one secret.
// Its methods may be called concurrently.
//
// Every error of the store is a *storeError. Requests are observed in
// bucketwarden_store_request_duration_seconds by the implementation, one
// observation for each HTTP request including the SDK's own retries.
type Store interface {
	// Observe returns what the cloud itself says about the bucket. A bucket that
	// does not exist is no error. One that belongs to somebody else, or lies in
	// another region, is, so that it is never adopted: ERR_CONFIGURATION_PROBLEM, or
	// ERR_INFRA_UNAUTHORIZED where the store does not tell that from a missing
	// permission. At most 3 requests, and once for a client one for its account.
	Observe(ctx context.Context) (BucketState, error)
	// Create makes the bucket; with immutable it can hold a policy. A bucket that
	// we own already is no error.
	Create(ctx context.Context, immutable bool) error
	// Harden ensures encryption, no public access and TLS, without overwriting what
	// others configured. What it has to leave as it is, or may not do for lack of a
	// permission, comes back as gaps, one sentence each, always the same sentence in the same order for the same bucket.
	Harden(ctx context.Context) (gaps []string, err error)
	// SetPolicy sets an unlocked policy, or removes an unlocked one if p is none.
	SetPolicy(ctx context.Context, p Policy) error
	// LockPolicy locks a policy, extends a locked one, or restores one that was
	// weakened. Irreversible: the caller has observed the bucket right before.
	LockPolicy(ctx context.Context, p Policy) error
	// Purge deletes every object version under prefix (all if it is empty) that
	// is not retained. On an error the result says what was done until then.
	// A bucket that does not exist is an empty one.
	Purge(ctx context.Context, prefix string) (PurgeResult, error)
	// Delete deletes the empty bucket. One that is gone is no error; one that is not
	// empty is errBucketNotEmpty.
	Delete(ctx context.Context) error
}

// BucketState is a bucket as the cloud describes it.
type BucketState struct {
	Exists bool
	// Policy is the bucket's default retention and whether it is locked.
	Policy Policy
}

// PurgeResult counts object versions, delete markers included.
type PurgeResult struct {
	Deleted, Retained           int64
	DeletedBytes, RetainedBytes int64
	// RetainedUntil is when the newest retained version becomes free, as the store
	// says; zero when it gives no date (a legal hold, or it was deleted meanwhile).
	RetainedUntil time.Time
}

var (
	errBucketNotEmpty = errors.New("the bucket is not empty")
	// errNotOurBucket is in the chain of errors that say that the name stands for no
	// bucket of ours: it belongs to somebody else, lies in another region, or is one that
	// no bucket can have. There is nothing of ours to delete then.
	errNotOurBucket = errors.New("not a bucket of ours")
)

// storeError is a failed store operation with its Gardener error code.
type storeError struct {
	// code is the Gardener error code, empty if none fits.
	code errorCode
	err  error
}

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// bucketRef names a bucket.
type bucketRef struct {
	Name, Region string
}

// storeKind names a store implementation, as in --type NAME=STORE.
type storeKind string

const storeS3 storeKind = "s3"

// openStoreFunc returns the Store for a bucket with the credentials of a secret's
// data. It makes no request. Clients are shared between buckets and reused until
// the data changes. What is wrong with the credentials is a *configError that names the
// key, all else a *storeError.
type openStoreFunc func(ref bucketRef, credentials map[string][]byte) (Store, error)

// stores opens buckets by store kind.
type stores map[storeKind]openStoreFunc

func newStores(m *metrics) stores {
	return stores{storeS3: newS3Clients(m).open}
}

func (s stores) open(kind storeKind, ref bucketRef, credentials map[string][]byte) (Store, error) {
	open, ok := s[kind]
	if !ok {
		return nil, fmt.Errorf("no store of kind %q", kind)
	}
	return open(ref, credentials)
}
