// Leave to delete: every destructive path passes here.
//
// Rules:
//   - A purge, and the deletion of a bucket, of what it lies in or of a secret, takes a permit.
//     Only this file makes one, and a zero one refuses, so that no path can leave it out.
//   - A permit is asked ahead of every attempt. For objects and buckets it reads live what shows
//     that they belong to the very object that is being deleted: the same UID, still being deleted.
//   - If that cannot be read, nothing is deleted.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// permit is leave to delete one thing.
type permit struct {
	check func(context.Context) error
}

// ask says why the thing must not be deleted now. For some stores and objects it makes requests.
func (p permit) ask(ctx context.Context) error {
	if p.check == nil {
		return errors.New("nobody has given leave to delete this")
	}
	return p.check(ctx)
}

// deletionEndedError says that an object is not being deleted any more as it was when its
// deletion began. What it is now comes as an event of its own.
type deletionEndedError struct{ kind, name, why string }

func (e *deletionEndedError) Error() string {
	return fmt.Sprintf("the deletion of %s %s has ended: %s", e.kind, e.name, e.why)
}

// stillDeleting makes sure, by a live read, that the object whose deletion goes on is still
// the one that it was, and that nobody wants anything else of it.
func (c *resourceClient) stillDeleting(ctx context.Context, o *object) (*unstructured.Unstructured, error) {
	u, err := c.live(ctx, o)
	if err != nil {
		return nil, err
	}
	ended := &deletionEndedError{kind: c.kind, name: o.Name}
	if u == nil {
		ended.why = "it is gone, or another one has its name"
		return nil, ended
	}
	live, _ := decodeObject(u, c.kind)
	switch operation := live.operation(); {
	case live.DeletionTimestamp == nil:
		ended.why = "it is not being deleted"
	case operation == operationMigrate, operation == operationWaitForState:
		ended.why = fmt.Sprintf("it is annotated %s=%s", annotationOperation, operation)
	case !live.hasFinalizer(c.finalizer):
		ended.why = "somebody has removed the finalizer"
	default:
		return u, nil
	}
	return nil, ended
}

// marksFresh is how long what was read of an entry's marks is relied on.
const marksFresh = 10 * time.Second

// revocationKept is how long a revocation stays at least: another cluster's deletion of the
// same prefix, begun before it was written, ends by it, and may take long.
const revocationKept = 30 * 24 * time.Hour

// prefixGuard gives leave to purge the prefix of a BackupEntry that is being deleted.
type prefixGuard struct {
	entries *resourceClient
	entry   *backupEntry
	base    string
	objects Objects

	mu sync.Mutex // of what follows
	// marks are those of the prefix as they were read at a time; now is the store's then.
	marks   marks
	now, at time.Time
}

func (g *prefixGuard) permit() permit { return permit{g.check} }

func (g *prefixGuard) check(ctx context.Context) error {
	if _, err := g.entries.stillDeleting(ctx, &g.entry.object); err != nil {
		return err
	}
	if err := g.entries.checkUnused(ctx, g.entry.BucketName, g.base, g.entry.Name); err != nil {
		return err
	}
	if err := g.readMarks(ctx); err != nil {
		return err
	}
	return g.checkMarks()
}

// readMarks reads the marks of the prefix, unless that was done just before.
func (g *prefixGuard) readMarks(ctx context.Context) (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.at) < marksFresh {
		return nil
	}
	if g.marks, g.now, err = readMarks(ctx, g.objects, g.base); err != nil {
		return fmt.Errorf("looking for tombstones of %s: %w", g.base, err)
	}
	g.at = time.Now()
	return nil
}

// checkMarks makes sure that no other cluster has taken the prefix into use: by a revocation
// that is younger than this entry, or, for the source of a migrated cluster, by any that this
// entry has not written itself: the cluster may live on another seed.
func (g *prefixGuard) checkMarks() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	newest := g.marks.newest
	if g.marks.count == 0 || !newest.revoked || newest.by(g.entry.UID) {
		return nil
	}
	since := g.entry.CreationTimestamp.Time
	if since.IsZero() {
		since = g.entry.DeletionTimestamp.Time
	}
	// By the store's clock, which need not be ours.
	if newest.created.After(since.Add(g.now.Sub(g.at))) || strings.HasPrefix(g.entry.Name, sourcePrefix) {
		return &prefixInUseError{entry: g.base}
	}
	return nil
}

// permitSweep gives leave to purge the prefix of a tombstone, as long as no live BackupEntry
// owns it and no newer mark is there.
func (s *sweeper) permitSweep(b *backupBucket, objects Objects, tombstone mark) permit {
	return permit{func(ctx context.Context) error {
		if err := s.entriesClient.checkUnused(ctx, b.Name, tombstone.entry, ""); err != nil {
			return err
		}
		return checkStands(ctx, objects, tombstone)
	}}
}

// permitUpload gives leave to abort an upload under the prefix of an entry that nobody will
// finish, as long as a live BackupEntry owns the prefix.
func (s *sweeper) permitUpload(b *backupBucket, base string) permit {
	return permit{func(ctx context.Context) error {
		err := s.entriesClient.checkUnused(ctx, b.Name, base, "")
		if errors.As(err, new(*prefixInUseError)) {
			return nil
		}
		return cmp.Or(err, error(&deletionEndedError{kind: "uploads of", name: base, why: "no live BackupEntry owns the prefix"}))
	}}
}

// permitMark gives leave to delete a mark that says nothing any more, and nothing else.
func permitMark(key string) permit {
	return permit{func(context.Context) error {
		if _, ok := parseMark(key, time.Time{}); !ok {
			return fmt.Errorf("%q is no mark of ours", key)
		}
		return nil
	}}
}

// permitCanary gives leave to attack and to delete a canary of the probe or a delete marker on it, and nothing else.
func permitCanary(v version) permit {
	return permit{func(context.Context) error {
		if !isCanary(v.key) {
			return fmt.Errorf("%q is no canary", v.key)
		}
		return nil
	}}
}

// permitBucket gives leave to empty and to delete the bucket of a BackupBucket, and what it lies in, as long as that is being
// deleted and the API server has no BackupEntry that refers to it: a cache may not know yet of one that has just come.
func (r *bucketReconciler) permitBucket(b *backupBucket) permit {
	return permit{func(ctx context.Context) error {
		if _, err := r.resource.stillDeleting(ctx, &b.object); err != nil {
			return err
		}
		user, err := r.referringEntry(ctx, b)
		if err == nil && user != "" {
			return &prefixInUseError{entry: user}
		}
		return err
	}}
}

// permitBuried gives leave to purge the prefix of a tombstone in the bucket of a BackupBucket
// that is being deleted: as permitBucket, and no newer mark is there.
func (r *bucketReconciler) permitBuried(b *backupBucket, objects Objects, tombstone mark) permit {
	return permit{func(ctx context.Context) error {
		if err := r.permitBucket(b).ask(ctx); err != nil {
			return err
		}
		return checkStands(ctx, objects, tombstone)
	}}
}

// permitEtcdBackup gives leave to delete the etcd-backup secret of a BackupEntry that was
// just read, unless another one wrote it.
func permitEtcdBackup(e *backupEntry, secret *corev1.Secret) permit {
	return permit{func(context.Context) error {
		if creator := secret.Annotations[annotationCreatedBy]; creator != "" && creator != e.Name {
			return &prefixInUseError{entry: creator}
		}
		if e.DeletionTimestamp == nil {
			return &deletionEndedError{kind: kindBackupEntry, name: e.Name, why: "it is not being deleted"}
		}
		return nil
	}}
}

// permitMoved gives leave to delete a generated secret that another one of the same
// BackupBucket, in another namespace, has replaced.
func permitMoved(old, published *corev1.Secret) permit {
	return permit{func(context.Context) error {
		if published == nil || old.Name != published.Name || old.Namespace == published.Namespace {
			return fmt.Errorf("secret %s/%s is not replaced by another one", old.Namespace, old.Name)
		}
		return nil
	}}
}

// extensionEndedError says that the versions of an entry must not be extended any more, or not as far.
type extensionEndedError struct{ entry, why string }

func (e *extensionEndedError) Error() string {
	return fmt.Sprintf("the versions of BackupEntry %s are not to be extended: %s", e.entry, e.why)
}

// extensionFresh is how long what was read of an entry and its bucket is relied on.
const extensionFresh = 10 * time.Second

// permitExtension gives leave to extend the retention of versions of an entry, which nobody can take back, as long as the entry
// lives and its bucket should have the policy: b is the bucket, nil if it is not ours. It makes a request for each.
func (k *retentionKeeper) permitExtension(e *backupEntry, b *backupBucket, policy Policy) permit {
	read := time.Time{}
	return permit{func(ctx context.Context) error {
		if time.Since(read) < extensionFresh {
			return nil
		}
		ended := &extensionEndedError{entry: e.Name}
		u, err := k.entriesClient.live(ctx, &e.object)
		if err != nil {
			return err
		}
		if u == nil {
			ended.why = "it is gone, or another one has its name"
			return ended
		}
		live := decodeEntry(u)
		promised := live.promised()
		if b != nil {
			if u, err = k.resource.live(ctx, &b.object); err != nil {
				return err
			}
			if u == nil {
				ended.why = "its bucket is gone, or another one has its name"
				return ended
			}
			promised = k.scope.promised(decodeBucket(u))
		}
		switch {
		case !k.checkable(live) || live.BucketName != e.BucketName:
			ended.why = "it is not live any more"
		case promised.weakerThan(policy):
			ended.why = fmt.Sprintf("its bucket should have %s, not %s", promised, policy)
		default:
			read = time.Now()
			return nil
		}
		return ended
	}}
}
