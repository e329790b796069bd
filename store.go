package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"
)

// versions is what purging, listing, sweeping, checking and extending stand on, each written
// once above it. Its methods may be called concurrently.
//
// Every error of a store is a *storeError. Requests are observed in
// bucketwarden_store_request_duration_seconds by the implementation, one
// observation for each HTTP request including the SDK's own retries.
type versions interface {
	// pages lists every version and delete marker under prefix, from a cursor of an earlier
	// page on (the zero value: from the start). It ends after an error. A bucket that does
	// not exist is an empty one.
	pages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error]
	// remove makes one attempt, one request, to delete what it can of the batch, and answers
	// for each version. An error is about all of them.
	remove(ctx context.Context, batch []version) ([]removal, error)
	// until says when a version becomes free whose deletion was refused; zero if the store
	// does not tell (a legal hold). That it is not retained, but a permission is missing, is
	// an error.
	until(ctx context.Context, v version) (time.Time, error)
	// traits needs no request.
	traits() traits
}

// uploader is a versions that may hold incomplete multipart uploads. Only remove takes them.
type uploader interface {
	uploads(ctx context.Context, prefix string) iter.Seq2[page, error]
}

// version is one thing in a bucket that can be deleted by itself.
type version struct {
	key, id string // the id is empty where the bucket has no versions
	size    int64
	created time.Time // by the store's clock
	// marker: a delete marker. upload: an incomplete multipart upload.
	marker, upload bool
	// until is when its retention ends and held says that a legal hold keeps it, as far as
	// the list tells. own: its retention is its own and teaches nothing about others.
	until     time.Time
	held, own bool
	// leaves: deleting it may leave another version behind.
	leaves bool
}

func (v version) same(w version) bool { return v.key == w.key && v.id == w.id }

// page is a part of a list.
type page struct {
	versions []version
	// now is the store's time, ours if it does not tell.
	now time.Time
	// next is where the list goes on, zero at its end.
	next cursor
}

// cursor is a place in a list, in the store's own words.
type cursor struct{ key, id string }

// removal is what became of a version.
type removal struct {
	outcome removalOutcome
	// held says that a legal hold keeps it.
	held bool
	err  error // of removalFailed and removalAgain
}

type removalOutcome int

const (
	removalFailed removalOutcome = iota
	removalGone
	removalRetained
	// removalRefused: the store refused the whole batch, because of this version or another.
	removalRefused
	// removalAgain: worth another attempt, after a pause.
	removalAgain
	// removalUntried: there was no place for it in the request.
	removalUntried
)

// traits are what the purge has to know of a store.
type traits struct {
	// batch is how many versions remove takes.
	batch int
	// verify says that a list that goes on behind deleted versions may skip some.
	verify bool
	// serial says that it cannot do two things at a time.
	serial  bool
	backoff func(attempt int) time.Duration
}

// Objects is what lies in one bucket, reached with the credentials of a BackupEntry or, for
// sweeps, with those that are the cheapest.
type Objects interface {
	versions
	// Put writes an empty object.
	Put(ctx context.Context, key string) error
}

// Store is one bucket on one object store, with the credentials of a BackupBucket.
type Store interface {
	versions
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

var (
	errBucketNotEmpty = errors.New("the bucket is not empty")
	// errNoBucket is what remove answers of a bucket that does not exist any more.
	errNoBucket = errors.New("the bucket does not exist")
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

// waitError says that a store keeps something for now. It is no failure: the caller says
// why and comes back later.
type waitError struct {
	// reason is a clause such as "container x is under a legal hold".
	reason string
	after  time.Duration
}

func (e *waitError) Error() string { return e.reason }

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

// storeKind names a store implementation, as in --type NAME=STORE.
type storeKind string

const (
	storeS3    storeKind = "s3"
	storeAzure storeKind = "azure"
)

// storeOpener opens buckets of one kind of store with the data of a credentials secret,
// without a request. Clients are shared between buckets and reused until the data
// changes. What is wrong with the credentials is a *configError that names the key, all
// else a *storeError.
type storeOpener interface {
	// openStore is for the credentials of a BackupBucket.
	openStore(ref bucketRef, credentials map[string][]byte) (Store, error)
	// openObjects is for those of a BackupEntry.
	openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error)
}

// stores opens buckets by store kind.
type stores map[storeKind]storeOpener

// newStores returns all stores; clouds are the custom Azure clouds.
func newStores(m *metrics, clouds azureClouds) stores {
	return stores{storeS3: newS3Clients(m), storeAzure: newAzureClients(m, clouds)}
}

// networkCause classifies an error of the network or of TLS; its text is empty for all
// others. It has no port of ours and no address, since it becomes part of a status.
func networkCause(err error) (errorCode, string) {
	var (
		dns         *net.DNSError
		unknownCA   x509.UnknownAuthorityError
		hostname    x509.HostnameError
		invalid     x509.CertificateInvalidError
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		alert       tls.AlertError
		errno       syscall.Errno
		timeout     interface{ Timeout() bool }
		request     *url.Error
	)
	host := "the store" // without the address that it resolved to
	if errors.As(err, &request) {
		if u, err := url.Parse(request.URL); err == nil && u.Host != "" {
			host = u.Host
		}
	}
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return codeRetryableConfiguration, fmt.Sprintf("the host %s does not resolve", dns.Name)
	case errors.As(err, &dns):
		return codeRetryableDependencies, fmt.Sprintf("the host %s could not be looked up", dns.Name)
	case errors.As(err, &unknownCA):
		return codeRetryableConfiguration, fmt.Sprintf("the certificate of %s is signed by an unknown authority", host)
	case errors.As(err, &hostname):
		return codeRetryableConfiguration, fmt.Sprintf("the certificate of %s is for another host", host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return codeRetryableConfiguration, fmt.Sprintf("the certificate of %s is expired or not yet valid", host)
	case errors.As(err, &invalid), errors.As(err, &certificate):
		return codeRetryableConfiguration, fmt.Sprintf("the certificate of %s is not valid", host)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return codeRetryableConfiguration, fmt.Sprintf("%s does not speak TLS", host)
	case errors.As(err, &alert):
		return codeRetryableConfiguration, fmt.Sprintf("%s refuses the TLS connection: %s", host, alert.Error())
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return codeRetryableDependencies, fmt.Sprintf("%s did not answer in time", host)
	case errors.As(err, &errno) && errno != syscall.ECONNRESET && errno != syscall.EPIPE:
		return codeRetryableDependencies, fmt.Sprintf("%s cannot be reached: %s", host, errno.Error())
	case request != nil, errno != 0, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		// A connection that is closed early ends in one of several errors, by chance.
		return codeRetryableDependencies, fmt.Sprintf("%s closes the connection without an answer", host)
	}
	return "", ""
}
