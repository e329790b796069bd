// The seam between the daemon and object stores: what a store must do (provider, versions, Store, Objects), and what it may
// be able to do, in small interfaces that are asked for with a type assertion, never by the kind of store (accountProvider,
// accountStore, extensionLimit, uploader, leaser, reader, writer, tagger, tagLister, hider, lockReader, extender, attacker,
// attackControl). The rules of each method are here; an implementation has only what differs.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
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
	// endpoint is what requests go to; it needs no request.
	endpoint() endpointRef
}

// uploader is a versions that may hold incomplete multipart uploads. Only remove takes them.
type uploader interface {
	uploads(ctx context.Context, prefix string) iter.Seq2[page, error]
}

// leaser is a versions where somebody may hold a lease on an object, which keeps it from being deleted as long as it lasts, and
// it need not end. Whoever may delete the object may end the lease.
type leaser interface {
	// breakLease ends the lease on a version that is to be deleted: one request. The permit was asked right before.
	breakLease(ctx context.Context, v version) error
}

// reader is a versions whose objects can be read.
type reader interface {
	// open begins to read a version that a list has shown: one request. It is read once, slowly or fast, and ends with an
	// error if it goes on beyond the size that the list said. What it returns has to be closed; its errors are *storeErrors,
	// with errNoVersion of one that is not there any more.
	open(ctx context.Context, v version) (io.ReadCloser, error)
}

// excludeTag with the value excludeValue, exactly, keeps a snapshot out of a restore
// (gardener/etcd-backup-restore docs/usage/enabling_immutable_snapshots.md). Where there are delete markers (hider) it counts
// only together with one on the same key, and only on the oldest version of the key.
const (
	excludeTag   = "x-etcd-snapshot-exclude"
	excludeValue = "true"
)

// writer is an Objects that writes more than empty objects.
type writer interface {
	// write writes a small object under a key that nobody uses: one request. A checksum of the content goes with it, which the store
	// checks: without an error it is stored as it is.
	write(ctx context.Context, key string, content []byte) error
}

// tagger is a versions whose objects carry tags.
type tagger interface {
	// tags reads all tags of a version: one request. Of one that is not there any more the error is errNoVersion.
	tags(ctx context.Context, v version) (map[string]string, error)
	// setTags replaces all tags of a version, those of others included: one request.
	setTags(ctx context.Context, v version, tags map[string]string) error
}

// tagLister is a tagger whose list can tell the tags too, so that nobody has to ask for those of each object.
type tagLister interface {
	// taggedPages is pages with version.excluded filled in. It may need a permission that pages does not need.
	taggedPages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error]
}

// lockReader is a versions whose list does not tell until when a version is retained.
type lockReader interface {
	// lock says how a version is retained: one request if nobody can take that away, else two. Of a version that is not there any
	// more the error is errNoVersion.
	lock(ctx context.Context, v version) (versionLock, error)
}

// versionLock is how a version is retained.
type versionLock struct {
	// until is when a retention ends that nobody can take away; zero if there is none.
	until time.Time
	// held: a legal hold keeps it. It is unknown, and false, if there is such a retention.
	held bool
	// governance: it has a retention that somebody can take away (S3's GOVERNANCE), which counts as none: until is zero.
	governance bool
}

// extender is a versions whose versions can be retained for longer, one by one.
type extender interface {
	versions
	lockReader
	// extend retains a version, which is no delete marker, until then at least, in whole seconds, so that nobody can take that
	// away: one request. It never shortens: a version that is retained for longer stays so. bypass asks for the leave to replace
	// a retention that somebody can take away, which all known stores do only with it; an earlier date is taken then as well.
	//
	// Errors: errNoVersion if the version is not there any more. errNoRetention if the store, or the bucket, cannot retain single
	// versions; then it is so for all of them. errRetainedLonger if the answer itself says that the version is retained for longer.
	// Stores mix up why they refuse a version: errNotExtended says that lock has to tell whether it is retained for longer, or in
	// governance, or a permission is missing, for which the code is codeUnauthorized as well.
	extend(ctx context.Context, v version, until time.Time, bypass bool) error
}

// hider is a versions that keeps old versions below a delete marker.
type hider interface {
	// hide writes a delete marker on a key, and returns it: two requests, the first to be sure that the bucket keeps what is
	// hidden, since else this would delete it. remove takes the marker away again.
	hide(ctx context.Context, key string) (version, error)
}

// attacker is an Objects whose lock can be tried with an empty object that is made for that, the canary (probe.go). Each method
// makes one request. What attacks or deletes is not repeated, and asks the permit right before.
type attacker interface {
	Objects
	// attacks are the names of those that there are, in the order in which they are tried. It needs no request.
	attacks() []string
	// plant writes an empty object under a key that nobody uses, and returns its version.
	plant(ctx context.Context, key string) (version, error)
	// retention says until when a version is retained, zero if it is not, and that whoever may bypass it can take that away (S3's
	// GOVERNANCE). Of a version that is not there any more the error is errNoVersion.
	retention(ctx context.Context, v version) (until time.Time, removable bool, err error)
	// attack does what its name says to a version that is retained until then. Without an error the store says that it is done. In
	// the chain of the error is errLocked if the store names the lock as the reason, errRefused if that may be the lock or a
	// missing permission; of a store that answers so there is an attackControl.
	attack(ctx context.Context, name string, v version, until time.Time, leave permit) error
	// discard deletes a version that is not retained any more, or a delete marker.
	discard(ctx context.Context, v version, leave permit) error
}

// attackControl is an attacker that does not tell a lock from a missing permission. What needs the permission and no lock forbids
// tells: to discard a delete marker, and to make a retention longer.
type attackControl interface {
	attacker
	// mark writes a delete marker on the key of a canary, and returns it: one request.
	mark(ctx context.Context, key string) (version, error)
	// lengthen gives a version a later end of its retention, in the mode that it has: one request. removable is as retention tells.
	lengthen(ctx context.Context, v version, until time.Time, removable bool) error
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
	// excluded: it has the tag excludeTag. Only taggedPages tells.
	excluded bool
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
	// removalLeased: somebody holds a lease on it. Only of a leaser.
	removalLeased
	// removalRefused: the store refused the whole batch, because of this version or another.
	removalRefused
	// removalAgain: worth another attempt, after a pause.
	removalAgain
	// removalUntried: there was no place for it in the request.
	removalUntried
)

// traits are what the purge and the plan of a policy have to know of a store.
type traits struct {
	// batch is how many versions remove takes.
	batch int
	// verify says that a list that goes on behind deleted versions may skip some.
	verify bool
	// serial says that it cannot do two things at a time.
	serial bool
	// locksAtOnce says that LockPolicy sets the policy too, in one request: it need not be set unlocked before.
	locksAtOnce bool
	backoff     func(attempt int) time.Duration
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
	// weakened; whether it may be the first to set it is in traits. Irreversible: the caller has observed the bucket
	// right before.
	LockPolicy(ctx context.Context, p Policy) error
	// Delete deletes the empty bucket. One that is gone is no error; one that is not
	// empty is errBucketNotEmpty; one that the store keeps for another reason that only
	// time or somebody else can end, such as a legal hold, is a *waitError. The permit is
	// asked right before.
	Delete(ctx context.Context, leave permit) error
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
	// DeleteAccount deletes the account and its resource group, if we made them and unless
	// they hold anything but the bucket, which is gone by now. It does not wait for the end:
	// the caller comes back until the state is neither Started nor Deleting, and says that it
	// has begun. The permit is asked ahead of each deletion.
	DeleteAccount(ctx context.Context, leave permit, begun bool) (AccountState, error)
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
	// Default is a policy that new objects get unless they are written with another one or none: it protects nothing for sure,
	// so Policy is none then.
	Default Policy
	// Extensions is how often a locked policy can still be extended; nil if there is no
	// limit. Azure: "A maximum of five increases to the effective retention period is
	// allowed over the lifetime of a locked policy"
	// (learn.microsoft.com/azure/storage/blobs/immutable-storage-overview).
	Extensions *int32
	// Appends says that the policy lets blobs be appended to, which ours never do.
	Appends bool
	// Years says that the policy is written in years (365 days each), where etcd-backup-restore reads days only.
	Years bool
	// History is the store's own list of changes of the policy, the oldest first; nil if it has none to tell.
	History *policyHistory
}

// policyHistory are the last changes of a policy, as the store remembers them.
type policyHistory struct{ updates []policyUpdate }

// policyUpdate is one of them: what was done, which period it has had since, when, and who has done it, as far as the store tells.
type policyUpdate struct {
	Update               string
	Days                 int32
	Time                 time.Time
	Object, Tenant, User string
}

var (
	errBucketNotEmpty = errors.New("the bucket is not empty")
	// errNoBucket is what remove answers of a bucket that does not exist any more.
	errNoBucket = errors.New("the bucket does not exist")
	// errNoVersion is in the chain of errors about a version that does not exist any more.
	errNoVersion = errors.New("the object version does not exist")
	// errNoRetention is in the chain of errors that say that a store or a bucket cannot retain single versions.
	errNoRetention = errors.New("single versions cannot be retained there")
	// errRetainedLonger is in the chain of errors that say that a version is retained for longer than was asked for.
	errRetainedLonger = errors.New("the object version is retained for longer already")
	// errNotExtended is in the chain of errors about a version whose retention the store refuses to change for a reason that its
	// answer does not tell.
	errNotExtended = errors.New("the store refuses to extend the retention of the object version")
	// errLocked and errRefused are in the chain of errors of attacker.attack.
	errLocked  = errors.New("the lock forbids it")
	errRefused = errors.New("the store refuses it")
	// errKeyRejected is in the chain of errors that say that the store does not accept a key that a generated secret publishes:
	// it was regenerated, or altered in the secret.
	errKeyRejected = errors.New("the published key is not accepted")
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
	// Created says that we have made the bucket, so that its settings are ours if they look so.
	Created bool
	// Cloud, KeyExpirationDays and Account are Azure's: spec.providerConfig's
	// cloudConfiguration.name and rotationConfig.expirationPeriodDays (0: not asked for),
	// and the storage account that the provider status records, else the generated secret names (empty: derived from Name).
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
	// verifyInterval is how often a bucket should be looked at without --verify-interval: the sooner, the more others
	// can take away of its lock.
	verifyInterval() time.Duration
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

// PurgeResult counts object versions, delete markers included.
type PurgeResult struct {
	Deleted, Retained           int64
	DeletedBytes, RetainedBytes int64
	// Now is the store's time; only meaningful if something is retained.
	Now time.Time
	// RetainedUntil is when the newest retained version becomes free, as the store
	// says; zero when it gives no date (a legal hold, or it was deleted meanwhile).
	RetainedUntil time.Time
	// Unfinished says that the next pass has to go on; Seen is how many versions this purge
	// has looked at so far.
	Unfinished bool
	Seen       int64
}

// retained describes what a purge has left.
func (result PurgeResult) retained() string {
	until := "; the store does not tell until when (a legal hold, for one, has no end)"
	if !result.RetainedUntil.IsZero() {
		until = " until " + result.RetainedUntil.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("retained%s", until)
}

// add adds what another purge has left.
func (result *PurgeResult) add(other PurgeResult) {
	if other.Retained == 0 {
		return
	}
	if result.Retained == 0 {
		*result = PurgeResult{Now: other.Now, RetainedUntil: other.RetainedUntil}
	}
	result.Retained, result.RetainedBytes = result.Retained+other.Retained, result.RetainedBytes+other.RetainedBytes
	if other.RetainedUntil.IsZero() || other.RetainedUntil.After(result.RetainedUntil) && !result.RetainedUntil.IsZero() {
		result.RetainedUntil = other.RetainedUntil
	}
}
