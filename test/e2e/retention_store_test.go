package e2e

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// What docs/stores.md says about the retention of single versions and the acceptance suite, which goes through the daemon's own
// store, cannot show: what a date that is too late for a store does to a version, and what policies about retention deny.
func TestVersionRetentionOfStores(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		bucket := newName("retention")
		store.makeBucket(t, bucket, true)
		day := time.Now().AddDate(0, 0, 1)
		extend := func(key, version string, until time.Time) string {
			_, err := store.PutObjectRetention(t.Context(), &s3.PutObjectRetentionInput{Bucket: &bucket, Key: &key, VersionId: &version,
				Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeCompliance, RetainUntilDate: &until}})
			return s3Code(err)
		}
		deletable := func(key, version string) bool {
			_, err := store.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &key, VersionId: &version})
			return err == nil
		}

		// Ceph counts seconds in 32 bits.
		for key, until := range map[string]time.Time{
			"last second": time.Date(2106, 2, 7, 6, 28, 15, 0, time.UTC), "too late": time.Date(2107, 1, 1, 0, 0, 0, 0, time.UTC),
		} {
			version := store.putObject(t, bucket, key, day)
			if deletable(key, version) {
				t.Fatalf("%s: a version in COMPLIANCE was deleted", key)
			}
			mustEqual(t, "extending until "+until.String(), extend(key, version, until), "")
			mustEqual(t, "it can be deleted, "+key, deletable(key, version), store.name == "ceph" && key == "too late")
		}

		// MinIO's policies do not bind its root user, which this is; Ceph knows no condition about retention.
		deny := func(condition string) {
			t.Helper()
			policy := `{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:PutObjectRetention",
				"Resource": "arn:aws:s3:::` + bucket + `/*"` + condition + `}]}`
			_, err := store.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &bucket, Policy: &policy})
			must(t, err)
		}
		version := store.putObject(t, bucket, "denied", noRetention)
		deny("")
		mustEqual(t, "extending without the permission", extend("denied", version, day), map[string]string{"ceph": "AccessDenied"}[store.name])
		deny(`, "Condition": {"NumericGreaterThan": {"s3:object-lock-remaining-retention-days": "4"}}`)
		mustEqual(t, "extending beyond the cap", extend("denied", version, day.AddDate(0, 0, 10)), "")
	})
}
