// The seam between the daemon and object stores: what a store must do (provider, Store, Objects), and what it may be able
// to do, in small interfaces that are asked for with a type assertion, never by the kind of store (accountProvider,
// extensionLimit, accountStore). The rules of each method are here; an implementation has only what differs.

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Objects is what lies in one bucket, reached with the credentials of one secret, that
// of a BackupEntry or of a BackupBucket. Its methods may be called concurrently.
//
// Every error of the store is a *storeError. Requests are observed in
// bucketwarden_store_request_duration_seconds by the implementation, one
// observation for each HTTP request including the SDK's own retries.
type Objects interface {
	purger
	// List returns what is under prefix, at most maxListed objects, and the store's time. An object that was deleted
	// but has versions counts as there, and as old as its oldest. A bucket that does not
	// exist is an empty one.
	List(ctx context.Context, prefix string) ([]objectInfo, time.Time, error)
	// Put writes an empty object.
	Put(ctx context.Context, key string) error
}

// maxListed bounds the memory of a List. Whoever can write to a bucket could fill the
// daemon's otherwise; of a longer list nothing is believed.
const maxListed = 100000

// purger deletes objects.
type purger interface {
	// Purge deletes every object version under prefix (all if it is empty) that
	// is not retained. Before each batch of deletions before is called, unless it is nil;
	// its error ends the purge and is in the chain of the one returned. On an error the
	// result says what was done until then. A bucket that does not exist is an empty one.
	Purge(ctx context.Context, prefix string, before func(context.Context) error) (PurgeResult, error)
}

// beforeError is the error of the function that a Purge calls before each batch. It is
// neither the store's nor to be described as such.
type beforeError struct{ err error }

func (e *beforeError) Error() string { return e.err.Error() }
func (e *beforeError) Unwrap() error { return e.err }

// checkBefore calls before, if there is one.
func checkBefore(ctx context.Context, before func(context.Context) error) error {
	if before == nil {
		return nil
	}
	if err := before(ctx); err != nil {
		return &beforeError{err}
	}
	return nil
}

// objectInfo is an object in a bucket.
type objectInfo struct {
	Key string
	// Created is by the store's clock.
	Created time.Time
}

// Store is one bucket on one object store, with the credentials of a BackupBucket.
type Store interface {
	purger
	// Observe returns what the cloud itself says about the bucket. A bucket that
	// does not exist is no error. One that belongs to somebody else, or on S3 lies in
	// another region, is, so that it is never adopted: ERR_CONFIGURATION_PROBLEM, or
	// ERR_INFRA_UNAUTHORIZED where the store does not tell that from a missing
	// permission. An Azure account is adopted wherever it lies; Harden reports another
	// region as a gap. At most 3 requests, and once for a client one for its account.
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
	// Delete deletes the empty bucket. One that is gone is no error; one that is not
	// empty is errBucketNotEmpty; one that the store keeps for another reason that only
	// time or somebody else can end, such as a legal hold, is a *waitError.
	Delete(ctx context.Context) error
}

// accountStore is a Store whose bucket lies in an account of its own, with access keys
// that the generated secret publishes for BackupEntries (Azure).
type accountStore interface {
	Store
	// Keys reads the account's access keys, always in the same order.
	Keys(ctx context.Context) ([]accessKey, error)
	// RegenerateKey replaces a key, which ends the access of everybody who uses the old
	// one, and returns all keys as they are then. Irreversible: the caller has read the
	// keys right before.
	RegenerateKey(ctx context.Context, name string) ([]accessKey, error)
	// EntryCredentials is the data of the generated secret that publishes a key.
	EntryCredentials(key accessKey) map[string][]byte
	// DeleteAccount deletes the account and its resource group, unless they hold anything
	// but the bucket, which is gone by now. It does not wait for the end: the caller comes
	// back until the state is neither Started nor Deleting.
	DeleteAccount(ctx context.Context) (AccountState, error)
}

// accessKey is a key of an account.
type accessKey struct {
	Name, Value string
	// Created is zero where the store does not know.
	Created time.Time
}

// AccountState is how far the deletion of an account is. The zero value: all is gone.
type AccountState struct {
	// Started: this call has asked for it. Deleting: it was under way already.
	Started, Deleting bool
	// Kept says, as one sentence, what stays and why; empty if nothing does.
	Kept string
}

// BucketState is a bucket as the cloud describes it.
type BucketState struct {
	Exists bool
	// Remains says that there is no bucket but its account or resource group is there.
	Remains bool
	// Policy is the bucket's default retention and whether it is locked.
	Policy Policy
	// Extensions is how often a locked policy can still be extended; nil if there is no
	// limit. Azure: "A maximum of five increases to the effective retention period is
	// allowed over the lifetime of a locked policy"
	// (learn.microsoft.com/azure/storage/blobs/immutable-storage-overview).
	Extensions *int32
	// Appends says that the policy lets blobs be appended to, which ours never do.
	Appends bool
}

// PurgeResult counts object versions, delete markers included.
type PurgeResult struct {
	Deleted, Retained           int64
	DeletedBytes, RetainedBytes int64
	// Now is the store's time; only meaningful if something is retained.
	Now time.Time
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

// bucketRef names a bucket and tells what its resource knows about it.
type bucketRef struct {
	Name, Region string
	// Recorded is the policy that the BackupBucket's provider status records. The
	// credentials of an entry cannot read the policy of an Azure container.
	Recorded Policy
	// Cloud, KeyExpirationDays and Account are Azure's: spec.providerConfig's
	// cloudConfiguration.name and rotationConfig.expirationPeriodDays (0: not asked for),
	// and the storage account that the generated secret names (empty: derived from Name).
	Cloud             string
	KeyExpirationDays int32
	Account           string
}

// provider is one kind of store. None of its methods makes a request.
//
// Buckets are opened with the data of a credentials secret. Clients are shared between them and reused until the data
// changes. What is wrong with the credentials is a *configError that names the key, all else a *storeError.
type provider interface {
	// name is that of --type NAME=STORE, and the label store of metrics.
	name() string
	// parseConfig reads the providerConfig at path strictly; an absent one asks for nothing. An error is a *configError
	// that names the field; what could be read is returned with it.
	parseConfig(path *field.Path, providerType string, raw []byte) (desired, error)
	// record is providerStatus in this store's own words; nil if there is nothing to remember.
	record(providerType string, r record) any
	// warnings says, by reason, what is legal but dangerous about a policy for a bucket that has been locked so far as
	// floor says. They count more than those that policyWarnings gives for all stores.
	warnings(path *field.Path, desired, floor Policy) map[string]string
	// entrySecret writes what etcd-backup-restore reads from the credentials in source into wanted. existing is the
	// secret that there is so far, nil if there is none.
	entrySecret(e *backupEntry, source, existing, wanted *corev1.Secret) error
	// openStore is for the credentials of a BackupBucket.
	openStore(ref bucketRef, credentials map[string][]byte) (Store, error)
	// openObjects is for those of a BackupEntry.
	openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error)
}

// accountProvider is a provider whose buckets lie in accounts of their own, whose keys a generated secret publishes. Its
// Store is an accountStore, and the generated secret has the credentials of a BackupEntry.
type accountProvider interface {
	provider
	// rotateAnnotation is the annotation that asks for new keys; it ends in annotationRotateSuffix.
	rotateAnnotation() string
	// published is the account and the key in a generated secret.
	published(generated *corev1.Secret) (account, key string)
}

// extensionLimit is a provider whose locked policies can be extended only so often.
type extensionLimit interface {
	// refuseExtension says why a locked policy cannot be extended any more.
	refuseExtension(desired, live Policy) *Refusal
}

// retained describes what a purge has left.
func (result PurgeResult) retained() string {
	until := "; the store does not tell until when (a legal hold, for one, has no end)"
	if !result.RetainedUntil.IsZero() {
		until = " until " + result.RetainedUntil.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("retained%s", until)
}
