// The story that the demo tells, on each real S3 server over HTTPS: a bucket is made, locked and
// hardened, a cluster writes its backups with the secret that it was given, nobody can delete
// them, weakening is refused, tampering is undone, and what is deleted goes when it may.
//
// Rules: what cannot be deleted is shown with the credentials of the store's owner; everything is
// read from the store itself.

package e2e

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"bucketwarden/test/env"
)

func TestStory(t *testing.T) {
	t.Parallel()
	onEachSecureStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		bucket := newName("bucket")
		entry, namespace := newShoot(t)

		store.createBucket(t, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		o := waitHealthy(t, buckets, bucket)
		store.checkRetention(t, bucket, "COMPLIANCE 4")
		mustEqual(t, "condition BucketImmutable", []any{conditionOf(o, "BucketImmutable")["status"], conditionOf(o, "BucketImmutable")["reason"]},
			[]any{"True", "Locked"})

		store.createEntry(t, entryObject(entry, d.kind, bucket))
		waitHealthy(t, entries, entry)
		data := getSecret(t, namespace, "etcd-backup").Data
		// Values lose the space around them, a certificate its last line break.
		mustEqual(t, "etcd-backup", data, with(store.secret(), map[string][]byte{"bucketName": []byte(bucket), "trustedCaCert": bytes.TrimSpace(store.CAPEM)}))

		// A snapshot, as the cluster writes it.
		cluster := newS3Store(store.name, &env.S3Server{Endpoint: string(data["endpoint"]), Region: string(data["region"]), CAPEM: data["trustedCaCert"],
			AccessKeyID: string(data["accessKeyID"]), SecretAccessKey: string(data["secretAccessKey"])})
		key := entry + "/etcd-main/v2/Full-00000000-00004711-1762500000.gz"
		version := cluster.putObject(t, string(data["bucketName"]), key, noRetention)
		for _, bypass := range []bool{false, true} {
			_, err := store.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &key, VersionId: &version,
				BypassGovernanceRetention: aws.Bool(bypass)})
			if err == nil {
				t.Errorf("a snapshot under retention was deleted; with bypass: %t", bypass)
			}
		}
		retention, err := store.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &bucket, Key: &key, VersionId: &version})
		must(t, err)
		until := *retention.Retention.RetainUntilDate
		// Without a version, it is only hidden; overwritten, it is still there.
		store.hideObject(t, bucket, key)
		store.putObject(t, bucket, key, noRetention)
		store.checkVersions(t, bucket, entry+"/", key, key, key)

		refusals := d.value(t, "bucketwarden_policy_refusals_total", "bucket="+bucket)
		reconcile(t, buckets, bucket, setImmutability(immutability("compliance", "24h")))
		waitFailed(t, buckets, bucket, codeConfiguration, "locked retention of 96h", "locked retention of 24h")
		store.checkRetention(t, bucket, "COMPLIANCE 4")
		d.awaitValue(t, refusals+1, "bucketwarden_policy_refusals_total", "bucket="+bucket)
		reconcile(t, buckets, bucket, setImmutability(immutability("compliance", "96h")))
		waitHealthy(t, buckets, bucket)

		store.putRetention(t, bucket, "", 0)
		store.awaitRetention(t, bucket, "COMPLIANCE 4")
		awaitEvent(t, "PolicyDrift", bucket, "locked retention of 96h")
		d.awaitValue(t, 1, "bucketwarden_backupbucket_locked", "bucket="+bucket)

		// The entry goes, and what it leaves is marked in the bucket; then the bucket waits.
		remove(t, entries, entry)
		waitGone(t, entries, entry)
		noSecret(t, namespace, "etcd-backup")
		awaitEvent(t, "ObjectsRetained", entry, "2 objects")
		marks, err := store.versions(t.Context(), bucket, tombstones)
		must(t, err)
		if !slices.ContainsFunc(marks, func(key string) bool { return strings.HasPrefix(key, tombstones+entry+"/deleted-") }) {
			t.Errorf("tombstones are %v", marks)
		}
		remove(t, buckets, bucket)
		o = waitFor(t, buckets, bucket, inState("Processing", "retained until "))
		mustEqual(t, "condition DeletionWaiting", conditionOf(o, "DeletionWaiting")["reason"], any("ObjectsRetained"))
		again, err := store.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &bucket, Key: &key, VersionId: &version})
		must(t, err)
		mustEqual(t, "end of the retention", again.Retention.RetainUntilDate.String(), until.String())
	})
}

// Over HTTPS, Ceph refuses every object that comes with a checksum in a trailer, as the AWS SDK
// sends them by default: so would every backup be. The condition says what to set.
func TestCephWantsNoTrailers(t *testing.T) {
	t.Parallel()
	server := ceph(t).TLS
	server.NoTrailers = false
	store := newS3Store("ceph", &server)
	d := startDaemon(t)
	bucket := newName("bucket")
	store.createBucket(t, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	o := waitHealthy(t, buckets, bucket)
	if message, _ := conditionOf(o, "BucketHardened")["message"].(string); !strings.Contains(message, "set requestChecksumCalculation: when_required") {
		t.Errorf("condition BucketHardened is %q", message)
	}
	store.checkRetention(t, bucket, "COMPLIANCE 4")
}
