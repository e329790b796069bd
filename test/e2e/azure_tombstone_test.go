package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bucketwarden/test/env"
)

const day = 24 * time.Hour

// awaitNoBlobs waits until nothing is left under a prefix but marks that are revoked.
func awaitNoBlobs(t *testing.T, a *env.Azure, bucket, prefix string) {
	t.Helper()
	eventually(t, "nothing is left under "+prefix+" in container "+bucket, func(ctx context.Context) error {
		list, err := a.ListBlobs(ctx, bucket, prefix)
		var left []string
		for _, b := range list {
			left = append(left, b.Name)
		}
		if left = withoutRevoked(left); err == nil && len(left) > 0 {
			err = fmt.Errorf("left are %v", left)
		}
		return err
	})
}

// createdLast is when the youngest of the blobs under a prefix was created.
func createdLast(t *testing.T, a *env.Azure, bucket, prefix string) time.Time {
	t.Helper()
	list, err := a.ListBlobs(t.Context(), bucket, prefix)
	must(t, err)
	return slices.MaxFunc(list, func(x, y env.AzureBlob) int { return x.Created.Compare(y.Created) }).Created
}

// checkTombstone checks that there is one tombstone of an entry.
func checkTombstone(t *testing.T, a *env.Azure, bucket, entry string, due time.Time, objects int) {
	t.Helper()
	want := fmt.Sprintf("%s%s/deleted-%s-%d-", tombstones, entry, due.UTC().Format("20060102T150405Z"), objects)
	// One that was written within the same second as an older mark is written again.
	if left := blobs(t, a, bucket, tombstones+entry+"/deleted-"); len(left) == 0 || !strings.HasPrefix(left[0], want) {
		t.Errorf("tombstones are %v, want one that begins with %s", left, want)
	}
}

// finishSweeps waits until sweeps that have begun after now have ended.
func (d *daemon) finishSweeps(t *testing.T) {
	t.Helper()
	d.awaitPasses(t, "sweeps", 2)
}

// In a container with a locked policy everything is retained, the tombstones too.
func TestAzureRetainedObjectsAreSwept(t *testing.T) {
	t.Parallel()
	a := startAzure(t)
	d := startDaemonOn(t, a)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	extended, _ := newShoot(t)
	d.createAzureEntry(t, extended, bucket)
	// What an entry knows may be older than the extension.
	reconcile(t, buckets, bucket, immutable(days(6, true)))
	waitHealthy(t, buckets, bucket)
	name, namespace := newShoot(t)
	sibling, _ := newShoot(t)
	sibling = name + "0" + strings.TrimPrefix(sibling, namespace)
	d.createAzureEntry(t, name, bucket)
	d.createAzureEntry(t, sibling, bucket)
	kept := []string{sibling + "/etcd-main/v2/Full", name + "-x", "foreign/" + name + "/x", "source-" + name + "/x"}
	ours := []string{name + "/etcd-main/v2/Full", name + "/etcd-main/v2/Incr", extended + "/x"}
	slices.Sort(kept)
	must(t, a.PutBlobs(t.Context(), bucket, slices.Concat(kept, ours)...))
	label := "bucket=" + bucket

	a.Advance(time.Hour)
	until := createdLast(t, a, bucket, name+"/").Add(6 * day)
	remove(t, entries, name)
	waitGone(t, entries, name)
	awaitEvent(t, "ObjectsRetained", name, "2 objects", until.Format(time.RFC3339))
	checkTombstone(t, a, bucket, name, until, 2)
	remove(t, entries, extended)
	waitGone(t, entries, extended)
	checkTombstone(t, a, bucket, extended, createdLast(t, a, bucket, extended+"/").Add(4*day), 1)
	d.awaitValue(t, 2, "bucketwarden_backupbucket_tombstones", label)
	d.awaitValue(t, 3, "bucketwarden_backupbucket_retained_objects", label)

	// The tombstone of the entry that knew less is due too early: the longer retention holds.
	everything := blobs(t, a, bucket, "")
	a.ResetRequests(bucket)
	a.Advance(5 * day)
	d.finishSweeps(t)
	checkBlobs(t, a, bucket, "", everything...)
	mustEqual(t, "attempts to delete what is retained", count(a.Requests(bucket), "BlobBatch"), 0)
	d.awaitValue(t, 2, "bucketwarden_backupbucket_tombstones", label)

	// An hour before that of the tombstones, the retention of the objects ends.
	a.Advance(23 * time.Hour)
	awaitNoBlobs(t, a, bucket, name+"/")
	awaitNoBlobs(t, a, bucket, extended+"/")
	awaitEvent(t, "ObjectsDeleted", bucket, "whose retention has ended")
	d.awaitValue(t, 0, "bucketwarden_backupbucket_tombstones", label)
	d.awaitValue(t, 0, "bucketwarden_backupbucket_retained_objects", label)
	a.ResetRequests(bucket)
	d.finishSweeps(t)
	mustEqual(t, "tombstones", len(blobs(t, a, bucket, tombstones)), 2)
	mustEqual(t, "attempts to delete what is retained", count(a.Requests(bucket), "BlobBatch"), 0)
	a.Advance(2 * time.Hour)
	awaitNoBlobs(t, a, bucket, tombstones)
	checkBlobs(t, a, bucket, "", kept...)
	mustEqual(t, "deleted blobs", d.value(t, "bucketwarden_purged_objects_total", label), 3.0)
}

// What was deleted as "source-x" lives again as "x".
func TestAzureTombstoneIsRevoked(t *testing.T) {
	t.Parallel()
	a := startAzure(t)
	d := startDaemonOn(t, a)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	name, _ := newShoot(t)
	blob := name + "/etcd-main/v2/Full"
	d.createAzureEntry(t, "source-"+name, bucket)
	must(t, a.PutBlobs(t.Context(), bucket, blob))
	until := createdLast(t, a, bucket, name+"/").Add(4 * day)
	remove(t, entries, "source-"+name)
	waitGone(t, entries, "source-"+name)
	checkTombstone(t, a, bucket, name, until, 1)

	a.Advance(day)
	d.createAzureEntry(t, name, bucket)
	awaitEvent(t, "TombstoneRevoked", name, bucket)
	marks := blobs(t, a, bucket, tombstones)
	// The source has left one as well, when it took the prefix over; a mark is written anew until it is the newest.
	if n := len(blobs(t, a, bucket, tombstones+name+"/revoked-")); n < 2 {
		t.Errorf("the tombstone was not revoked: %v", marks)
	}
	d.awaitValue(t, 0, "bucketwarden_backupbucket_tombstones", "bucket="+bucket)
	a.Advance(3 * day)
	d.finishSweeps(t)
	checkBlobs(t, a, bucket, "", append(marks, blob)...)
	// A reconcile writes no second revocation.
	reconcile(t, entries, name, nil)
	waitHealthy(t, entries, name)
	checkBlobs(t, a, bucket, "", append(marks, blob)...)
	// The marks go when they can be deleted; what is alive stays.
	a.Advance(27 * day)
	eventually(t, "the marks are gone", func(ctx context.Context) error {
		left, err := a.ListBlobs(ctx, bucket, tombstones)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left are %v", left)
		}
		return err
	})
	checkBlobs(t, a, bucket, "", blob)

	// While it lives, the other one takes nothing with it.
	d.createAzureEntry(t, "source-"+name, bucket)
	remove(t, entries, "source-"+name)
	waitGone(t, entries, "source-"+name)
	awaitEvent(t, "ObjectsKept", "source-"+name, name)
	checkBlobs(t, a, bucket, name+"/", blob)
	remove(t, entries, name)
	waitGone(t, entries, name)
	checkBlobs(t, a, bucket, name+"/")
}

// A legal hold has no end: the sweep is tried hourly by Azure's clock.
func TestAzureLegalHoldIsRetried(t *testing.T) {
	t.Parallel()
	a := startAzure(t)
	d := startDaemonOn(t, a)
	bucket := azureName()
	d.createAzureBucket(t, bucket, nil)
	name, _ := newShoot(t)
	d.createAzureEntry(t, name, bucket)
	must(t, a.PutBlobs(t.Context(), bucket, name+"/1", name+"/2", "foreign"))
	must(t, a.SetLegalHold(bucket, "case42"))
	remove(t, entries, name)
	waitGone(t, entries, name)
	awaitEvent(t, "ObjectsRetained", name, "2 objects", "legal hold")
	d.awaitValue(t, 1, "bucketwarden_backupbucket_tombstones", "bucket="+bucket)
	everything := blobs(t, a, bucket, "")
	for range 2 {
		a.ResetRequests(bucket)
		a.Advance(30 * time.Minute)
		d.finishSweeps(t)
		mustEqual(t, "attempts within an hour", count(a.Requests(bucket), "BlobBatch"), 0)
		a.Advance(35 * time.Minute)
		eventually(t, "the sweep is tried", func(context.Context) error {
			if count(a.Requests(bucket), "BlobBatch") == 0 {
				return fmt.Errorf("the requests are %v", operations(a.Requests(bucket)))
			}
			return nil
		})
		d.finishSweeps(t)
		mustEqual(t, "attempts after an hour", count(a.Requests(bucket), "BlobBatch"), 1)
		checkBlobs(t, a, bucket, "", everything...)
	}
	d.awaitValue(t, 2, "bucketwarden_backupbucket_retained_objects", "bucket="+bucket)
	must(t, a.ClearLegalHold(bucket, "case42"))
	d.finishSweeps(t)
	checkBlobs(t, a, bucket, "", everything...)
	a.Advance(65 * time.Minute)
	awaitNoBlobs(t, a, bucket, name+"/")
	awaitNoBlobs(t, a, bucket, tombstones)
	checkBlobs(t, a, bucket, "", "foreign")
}

// With a bucket go its tombstones.
func TestAzureBucketWithTombstonesIsDeleted(t *testing.T) {
	t.Parallel()
	a := startAzure(t)
	d := startDaemonOn(t, a)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	name, _ := newShoot(t)
	d.createAzureEntry(t, name, bucket)
	must(t, a.PutBlobs(t.Context(), bucket, name+"/1", name+"/2"))
	remove(t, buckets, bucket)
	o := waitFor(t, buckets, bucket, inState("Processing", name))
	mustEqual(t, "reason of the wait", conditionOf(o, "DeletionWaiting")["reason"], any("InUse"))
	a.Advance(time.Hour)
	remove(t, entries, name)
	waitGone(t, entries, name)
	until := createdLast(t, a, bucket, tombstones).Add(4 * day)
	o = waitFor(t, buckets, bucket, inState("Processing", "3 objects", "retained until "+until.Format(time.RFC3339)))
	if has(o, "status", "lastError") {
		t.Errorf("waiting is an error: %v", o.Object["status"])
	}
	waiting := conditionOf(o, "DeletionWaiting")
	mustEqual(t, "condition DeletionWaiting", []any{waiting["status"], waiting["reason"]}, []any{"True", "ObjectsRetained"})
	d.awaitValue(t, 3, "bucketwarden_backupbucket_retained_objects", "bucket="+bucket)
	d.awaitValue(t, float64(until.Unix()), "bucketwarden_backupbucket_next_sweep_timestamp_seconds", "bucket="+bucket)

	// No request until then, but for one that was asked for.
	d.awaitIdle(t, "sweeps")
	a.ResetRequests(bucket)
	passes := d.passes(t, "backupbuckets")
	const renewed = 5
	for range renewed {
		must(t, confirm(t.Context(), buckets, bucket))
		d.awaitPassesSince(t, "backupbuckets", passes, 1)
		passes++
	}
	mustEqual(t, "requests of a deletion that waits", operations(a.Requests(bucket)), []string(nil))
	a.Advance(4*day + time.Minute)
	again(t, buckets, bucket)
	d.awaitAzureGone(t, bucket)
	awaitEvent(t, "ObjectsDeleted", bucket, "3 object")
}

// x-etcd-snapshot-exclude keeps etcd-backup-restore from a snapshot; nothing that
// bucketwarden does may replace a tag.
func TestAzureTagsSurvive(t *testing.T) {
	t.Parallel()
	a := startAzure(t)
	d := startDaemonOn(t, a)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	name, _ := newShoot(t)
	d.createAzureEntry(t, name, bucket)
	blob := name + "/etcd-main/v2/Full"
	must(t, a.PutBlobs(t.Context(), bucket, blob))
	client, err := a.Blobs(azureAccountName(bucket))
	must(t, err)
	tagged := client.ServiceClient().NewContainerClient(bucket).NewBlobClient(blob)
	tags := map[string]string{"x-etcd-snapshot-exclude": "true", "other": "kept"}
	_, err = tagged.SetTags(t.Context(), tags, nil)
	must(t, err)
	check := func() {
		t.Helper()
		got, err := tagged.GetTags(t.Context(), nil)
		must(t, err)
		have := map[string]string{}
		for _, tag := range got.BlobTagSet {
			have[*tag.Key] = *tag.Value
		}
		mustEqual(t, "tags", have, tags)
	}
	for range 2 {
		remove(t, entries, name)
		waitGone(t, entries, name)
		a.Advance(day)
		d.finishSweeps(t)
		check()
		d.createAzureEntry(t, name, bucket)
		check()
	}
	a.Advance(4 * day)
	d.finishSweeps(t)
	check()
	mustEqual(t, "requests that change tags", count(a.Requests(bucket), "SetBlobTags"), 0)
	remove(t, entries, name)
	waitGone(t, entries, name)
	awaitNoBlobs(t, a, bucket, "")
}
