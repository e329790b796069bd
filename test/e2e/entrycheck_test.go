package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"bucketwarden/test/env"
)

// snapshotKey is the key of a snapshot of an entry, taken some minutes ago.
func snapshotKey(entry, kind string, first, last, ago int) string {
	return fmt.Sprintf("%s/etcd-main/v2/%s-%08d-%08d-%d.gz", entry, kind, first, last, time.Now().Add(-time.Duration(ago)*time.Minute).Unix())
}

// exclude tags the oldest version of a key; without a version the tag is that of all.
func (store *s3Store) exclude(t *testing.T, bucket, key, version string) {
	t.Helper()
	_, err := store.PutObjectTagging(t.Context(), &s3.PutObjectTaggingInput{Bucket: &bucket, Key: &key, VersionId: &version,
		Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("x-etcd-snapshot-exclude"), Value: aws.String("true")}}}})
	must(t, err)
}

// wantBackups waits for a look at the backups of an entry and compares its metrics; -1 is none.
func (d *daemon) wantBackups(t *testing.T, entry string, want map[string]float64) {
	t.Helper()
	eventually(t, "the backups of "+entry+" were looked at", func(ctx context.Context) error {
		at, err := d.Value(ctx, "bucketwarden_backupentry_last_checked_timestamp_seconds", "entry="+entry)
		if err == nil && at == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	for name, value := range want {
		got, err := d.Value(t.Context(), "bucketwarden_backupentry_"+name, "entry="+entry)
		switch {
		case errors.Is(err, env.ErrNoSeries):
			got = -1
		case err != nil:
			t.Fatal(err)
		}
		if got != value {
			t.Errorf("%s: %s is %v, want %v", entry, name, got, value)
		}
	}
}

// What lies in a store before an entry comes is looked at once it is there, by its own credentials, in one list.
func TestBackupsAreLookedAt(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		bucket := newName("bucket")
		store.createBucket(t, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		waitHealthy(t, buckets, bucket)
		put := func(key string) string {
			t.Helper()
			return store.putObject(t, bucket, key, time.Time{})
		}
		entry := func(what string) string {
			t.Helper()
			name, _ := newShoot(t)
			t.Logf("%s is %s", what, name)
			return name
		}

		whole, gap, out, tagged, forged, none := entry("whole"), entry("gap"), entry("excluded"), entry("only tagged"), entry("forged"), entry("none")
		full := snapshotKey(whole, "Full", 0, 100, 20)
		first := put(full)
		time.Sleep(1100 * time.Millisecond) // a store's times may have seconds only
		put(full)                           // a newer version changes nothing
		put(snapshotKey(whole, "Incr", 101, 120, 15))
		put(snapshotKey(whole, "Incr", 121, 130, 10))
		put(whole + "/etcd-main/v2/readme")

		put(snapshotKey(gap, "Full", 0, 100, 20))
		put(snapshotKey(gap, "Incr", 103, 120, 15))

		put(snapshotKey(out, "Full", 0, 100, 20))
		delta := snapshotKey(out, "Incr", 101, 120, 15)
		store.exclude(t, bucket, delta, put(delta))
		store.hideObject(t, bucket, delta)

		put(snapshotKey(tagged, "Full", 0, 100, 20))
		delta = snapshotKey(tagged, "Incr", 101, 120, 15)
		store.exclude(t, bucket, delta, put(delta))

		put(snapshotKey(forged, "Full", 0, 527, 20))
		put(snapshotKey(forged, "Full", 0, 9999998, 15))

		proxy := store.proxy(t)
		for _, name := range []string{whole, gap, out, tagged, forged, none} {
			o := entryObject(name, d.kind, bucket)
			if status, found, _ := unstructured.NestedMap(get(t, buckets, bucket).Object, "status", "providerStatus"); found {
				set(o, status, "spec", "backupBucketProviderStatus")
			}
			writeSecret(t, secretName(entries, name), store.SecretData(proxy.URL))
			create(t, entries, o)
			waitHealthy(t, entries, name)
		}
		retained, err := store.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &bucket, Key: &full, VersionId: &first})
		must(t, err)
		d.wantBackups(t, whole, map[string]float64{"chain_complete": 1, "restorable_revision": 130, "snapshots": 3, "excluded_snapshots": 0,
			"unannounced_exclusions": 0, "suspicious_snapshots": 0, "chain_locked_until_timestamp_seconds": float64(retained.Retention.RetainUntilDate.Unix())})
		d.wantBackups(t, gap, map[string]float64{"chain_complete": 0, "restorable_revision": -1, "snapshots": 2})
		d.wantBackups(t, out, map[string]float64{"chain_complete": 1, "restorable_revision": 100, "snapshots": 2, "excluded_snapshots": 1, "unannounced_exclusions": 1})
		d.wantBackups(t, tagged, map[string]float64{"chain_complete": 1, "restorable_revision": 120, "excluded_snapshots": 0})
		d.wantBackups(t, forged, map[string]float64{"chain_complete": 1, "restorable_revision": 9999998, "suspicious_snapshots": 1})
		d.wantBackups(t, none, map[string]float64{"chain_complete": 0, "snapshots": 0, "last_full_snapshot_timestamp_seconds": -1,
			"chain_locked_until_timestamp_seconds": -1})
		awaitEvent(t, "SnapshotsExcluded", out, "revision 120")
		awaitEvent(t, "SuspiciousSnapshot", forged, "9999998")

		// Of six entries: a list each for its marks and its snapshots; the tags of one; the retention of each link, unless who keeps
		// versions retained has asked for it with the credentials of the bucket.
		counts := proxy.Counts()
		if counts["ListObjectVersions"] != 12 || counts["GetObjectTagging"] != 1 || counts["GetObjectRetention"] > 3+2+1+2+1 || counts["PutObject"]+counts["DeleteObjects"] != 0 {
			t.Errorf("the requests are %v", counts)
		}

		// What goes has no series.
		remove(t, entries, none)
		eventually(t, "the series are gone", func(ctx context.Context) error {
			_, err := d.Value(ctx, "bucketwarden_backupentry_last_checked_timestamp_seconds", "entry="+none)
			if errors.Is(err, env.ErrNoSeries) {
				return nil
			}
			return fmt.Errorf("still there, %v", err)
		})
		if log := d.Log(); !strings.Contains(log, "The chain of backups is not complete") {
			t.Error("the log does not tell of the gap")
		}
	})
}

// On Azure one list tells all: retention and tags too.
func TestAzureBackupsAreLookedAt(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	whole, _ := newShoot(t)
	out, _ := newShoot(t)
	put := func(keys ...string) {
		t.Helper()
		for _, key := range keys {
			must(t, azure.PutBlob(t.Context(), bucket, key, []byte("snapshot")))
		}
	}
	put(snapshotKey(whole, "Full", 0, 100, 20), snapshotKey(whole, "Incr", 101, 120, 15))
	full, delta := snapshotKey(out, "Full", 0, 100, 20), snapshotKey(out, "Incr", 101, 120, 15)
	put(full, delta)
	client, err := azure.Blobs(azureAccountName(bucket))
	must(t, err)
	_, err = client.ServiceClient().NewContainerClient(bucket).NewBlobClient(delta).SetTags(t.Context(), map[string]string{"x-etcd-snapshot-exclude": "true"}, nil)
	must(t, err)
	list, err := azure.ListBlobs(t.Context(), bucket, whole)
	must(t, err)
	created := list[0].Created
	for _, b := range list {
		if b.Created.Before(created) {
			created = b.Created
		}
	}
	azure.ResetRequests(bucket)
	for _, name := range []string{whole, out} {
		d.createAzureEntry(t, name, bucket)
	}
	d.wantBackups(t, whole, map[string]float64{"chain_complete": 1, "restorable_revision": 120, "snapshots": 2, "excluded_snapshots": 0,
		"chain_locked_until_timestamp_seconds": float64(created.AddDate(0, 0, 4).Unix())})
	d.wantBackups(t, out, map[string]float64{"chain_complete": 1, "restorable_revision": 100, "excluded_snapshots": 1, "unannounced_exclusions": 1})
	awaitEvent(t, "SnapshotsExcluded", out, "revision 120")
	// The policy covers every blob, which is known without a request.
	waitFor(t, buckets, bucket, conditionIs("BackupsRetained", "True"))
	d.awaitValue(t, 0, "bucketwarden_backupbucket_unprotected_versions", "bucket="+bucket)
	requests := azure.Requests(bucket)
	if n := count(requests, "GetBlobTags") + count(requests, "SetBlobTags") + count(requests, "GetBlobProperties"); n != 0 {
		t.Errorf("the requests are %v", operations(requests))
	}
}
