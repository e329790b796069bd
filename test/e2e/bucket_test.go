package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"bucketwarden/test/env"
)

func TestBucketIsCreatedLocked(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		name := newName("bucket")
		created := store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		o := waitHealthy(t, buckets, name)

		store.checkRetention(t, name, "COMPLIANCE 4")
		for _, check := range []struct{ got, want any }{
			{str(o, "status", "providerStatus", "immutability", "retentionPeriod"), "96h"},
			{str(o, "status", "providerStatus", "immutability", "mode"), "compliance"},
			{str(o, "status", "lastOperation", "type"), "Create"},
			{num(o, "status", "lastOperation", "progress"), int64(100)},
			{has(o, "status", "generatedSecretRef"), false},
			{o.GetFinalizers(), []string{finalizerBackupBucket}},
			{getSecret(t, gardenNamespace, secretName(buckets, name)).Finalizers, []string{finalizerBackupBucket}},
			{o.Object["spec"], created.Object["spec"]},
			{o.GetGeneration(), created.GetGeneration()},
		} {
			if !equality.Semantic.DeepEqual(check.got, check.want) {
				t.Errorf("got %v, want %v\n%v", check.got, check.want, o)
			}
		}
		checkSpecIsTheClients(t, o)
		immutable := conditionOf(o, "BucketImmutable")
		if immutable["status"] != "True" || immutable["reason"] != "Locked" {
			t.Errorf("condition BucketImmutable is %v", immutable)
		}

		version := store.putObject(t, name, "shoot--p--s--1/etcd-main/v2/Full", noRetention)
		key := "shoot--p--s--1/etcd-main/v2/Full"
		if _, err := store.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &name, Key: &key, VersionId: &version}); err == nil {
			t.Error("the store deleted a snapshot version that is under retention")
		}

		bucket := "bucket=" + name
		for metric, want := range map[string]float64{
			"bucketwarden_backupbucket_locked":                    1,
			"bucketwarden_backupbucket_retention_seconds":         4 * 24 * 3600,
			"bucketwarden_backupbucket_desired_locked":            1,
			"bucketwarden_backupbucket_desired_retention_seconds": 4 * 24 * 3600,
			"bucketwarden_backupbucket_policy_drift_total":        0,
			"bucketwarden_backupbucket_policy_locks_total":        1,
			"bucketwarden_policy_refusals_total":                  0,
		} {
			if got := d.value(t, metric, bucket); got != want {
				t.Errorf("%s is %v, want %v", metric, got, want)
			}
		}
		if got := d.value(t, "bucketwarden_backupbucket_info", bucket, "type="+d.kind, "region="+store.Region); got != 1 {
			t.Errorf("bucketwarden_backupbucket_info is %v, want 1", got)
		}
	})
}

// The order of the writes is what gardenlet and etcd-backup-restore rely on.
func TestBucketWritesAreOrdered(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name := newName("bucket")
	proxy := startProxy(t, minio)
	// The hook runs before the store sees a request; the first one decides.
	var early []string
	seen := map[string]bool{}
	proxy.SetFault(func(r env.Request) *env.Fault {
		if seen[r.Operation] {
			return nil
		}
		seen[r.Operation] = true
		secret, err := kube.Client.CoreV1().Secrets(gardenNamespace).Get(context.Background(), secretName(buckets, name), metav1.GetOptions{})
		if err != nil || !slices.Contains(secret.Finalizers, finalizerBackupBucket) {
			early = append(early, r.Operation)
		}
		return nil
	})
	object := record(t, buckets, "", name)
	secret := record(t, secrets, gardenNamespace, secretName(buckets, name))

	writeSecret(t, secretName(buckets, name), minio.SecretData(proxy.URL))
	create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	waitHealthy(t, buckets, name)
	proxy.SetFault(nil)
	if len(early) > 0 {
		t.Errorf("requests to the store before the secret had its finalizer: %v", early)
	}

	claimed := object.await(t, "has lost its operation annotation", func(s state) bool { return s.GetAnnotations()[annotationOperation] == "" })
	if !claimed.holds(finalizerBackupBucket) || claimed.state() != "" {
		t.Errorf("the operation annotation did not go together with adding the finalizer, before the first status: %v", claimed)
	}
	processing := object.await(t, "is Processing", func(s state) bool { return s.state() == "Processing" })
	if processing.revision < claimed.revision || processing.opType() != "Create" || num(processing.Unstructured, "status", "lastOperation", "progress") != 1 || has(processing.Unstructured, "status", "observedGeneration") {
		t.Errorf("the first status is %v", processing)
	}
	held := secret.await(t, "has the finalizer", func(s state) bool { return s.holds(finalizerBackupBucket) })
	if held.revision < processing.revision {
		t.Errorf("the secret's finalizer (%v) came before Processing (%v)", held, processing)
	}
	succeeded := object.await(t, "is Succeeded", func(s state) bool { return s.state() == "Succeeded" })
	if succeeded.revision < held.revision {
		t.Errorf("Succeeded (%v) came before the secret's finalizer (%v)", succeeded, held)
	}

	remove(t, buckets, name)
	waitGone(t, buckets, name)
	deleted := object.await(t, "is Delete/Succeeded", func(s state) bool { return s.opType() == "Delete" && s.state() == "Succeeded" })
	released := secret.awaitAfter(t, held.revision, "has lost the finalizer", func(s state) bool { return !s.holds(finalizerBackupBucket) })
	gone := object.await(t, "is gone", func(s state) bool { return s.gone })
	if deleted.revision > released.revision || released.revision > gone.revision {
		t.Errorf("want Delete/Succeeded (%v), the secret's finalizer gone (%v), the object gone (%v) in this order", deleted, released, gone)
	}
	if bucketExists(t, store, name) {
		t.Error("the bucket still exists")
	}
	awaitEvent(t, "BucketDeleted", name)
	eventually(t, "the deleted BackupBucket has no metrics", func(ctx context.Context) error {
		// The daemon hears of the end of the object as we do, by its watch.
		value, err := d.Value(ctx, "bucketwarden_backupbucket_info", "bucket="+name)
		if err == nil {
			return fmt.Errorf("it is %v", value)
		}
		if errors.Is(err, env.ErrNoSeries) {
			return nil
		}
		return err
	})
}

func TestBucketRefusesToWeakenALockedPolicy(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		name := newName("bucket")
		locked := immutability("compliance", "96h")
		store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, locked)))
		waitHealthy(t, buckets, name)

		for _, test := range []struct {
			reason, asked string
			change        func(*unstructured.Unstructured)
		}{
			{"shorten", "locked retention of 24h", setImmutability(immutability("compliance", "24h"))},
			{"unlock", "unlocked retention of 96h", setImmutability(immutability("governance", "96h"))},
			{"unlock", "unlocked retention of 240h", setImmutability(map[string]any{"retentionType": "bucket", "retentionPeriod": "240h", "locked": false})},
			{"disable", "no immutability", setImmutability(nil)},
			{"disable", "no immutability", func(o *unstructured.Unstructured) {
				unstructured.RemoveNestedField(o.Object, "spec", "providerConfig")
			}},
		} {
			refusals := d.value(t, "bucketwarden_policy_refusals_total", "bucket="+name, "reason="+test.reason)
			reconcile(t, buckets, name, test.change)
			waitFailed(t, buckets, name, codeConfiguration, "locked retention of 96h", test.asked, "retentionPeriod: 96h")
			awaitEvent(t, "WeakeningRefused", name, test.asked)
			// A refusal that is merely looked at again is neither counted nor written again. An event
			// may still be on its way.
			eventually(t, "a refused spec is no longer written about", func(context.Context) error {
				before := d.requests(t, "PATCH", "PUT")
				d.awaitPasses(t, "backupbuckets", 3)
				if got := d.requests(t, "PATCH", "PUT") - before; got != 0 {
					return fmt.Errorf("%v times", got)
				}
				return nil
			})
			d.awaitValue(t, refusals+1, "bucketwarden_policy_refusals_total", "bucket="+name, "reason="+test.reason)
			store.checkRetention(t, name, "COMPLIANCE 4")
			if got := str(get(t, buckets, name), "status", "providerStatus", "immutability", "retentionPeriod"); got != "96h" {
				t.Errorf("providerStatus says %q while the policy is that of 96h", got)
			}
		}

		// While a wish is refused, what was locked is still defended.
		store.putRetention(t, name, "", 0)
		store.awaitRetention(t, name, "COMPLIANCE 4")
		awaitEvent(t, "PolicyDrift", name, "locked retention of 96h")

		reconcile(t, buckets, name, setImmutability(locked))
		waitHealthy(t, buckets, name)
		store.checkRetention(t, name, "COMPLIANCE 4")
		if got := d.value(t, "bucketwarden_backupbucket_policy_locks_total", "bucket="+name); got != 2 {
			t.Errorf("locks are %v, want one at creation and one repair", got)
		}

		reconcile(t, buckets, name, setImmutability(immutability("compliance", "120h")))
		o := waitHealthy(t, buckets, name)
		store.checkRetention(t, name, "COMPLIANCE 5")
		if got := str(o, "status", "providerStatus", "immutability", "retentionPeriod"); got != "120h" {
			t.Errorf("providerStatus says %q after the policy was extended to 120h", got)
		}
	})
}

func TestBucketPolicyIsFreeWhileUnlocked(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		name := newName("bucket")
		store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("governance", "96h"))))
		o := waitHealthy(t, buckets, name)
		store.checkRetention(t, name, "GOVERNANCE 4")
		if immutable := conditionOf(o, "BucketImmutable"); immutable["reason"] != "Unlocked" {
			t.Errorf("condition BucketImmutable is %v", immutable)
		}

		reconcile(t, buckets, name, setImmutability(immutability("governance", "24h")))
		waitHealthy(t, buckets, name)
		store.checkRetention(t, name, "GOVERNANCE 1")

		// Neither mode nor locked is the form that can be undone.
		reconcile(t, buckets, name, setImmutability(map[string]any{"retentionType": "bucket", "retentionPeriod": "72h"}))
		waitHealthy(t, buckets, name)
		store.checkRetention(t, name, "GOVERNANCE 3")

		store.putRetention(t, name, "", 0)
		store.awaitRetention(t, name, "GOVERNANCE 3")

		reconcile(t, buckets, name, setImmutability(nil))
		o = waitHealthy(t, buckets, name)
		store.checkRetention(t, name, "none")
		if has(o, "status", "providerStatus", "immutability") {
			t.Errorf("providerStatus is %v without a policy", o.Object["status"])
		}
		if got := d.value(t, "bucketwarden_backupbucket_retention_seconds", "bucket="+name); got != 0 {
			t.Errorf("retention is %v without a policy", got)
		}

		reconcile(t, buckets, name, setImmutability(map[string]any{"retentionType": "bucket", "retentionPeriod": "24h", "locked": true}))
		waitHealthy(t, buckets, name)
		store.checkRetention(t, name, "COMPLIANCE 1")
		if got := d.value(t, "bucketwarden_policy_refusals_total", "bucket="+name); got != 0 {
			t.Errorf("%v refusals, want none", got)
		}
	})
}

func TestBucketLeavesForeignPoliciesAlone(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		for _, mode := range []types.ObjectLockRetentionMode{types.ObjectLockRetentionModeGovernance, types.ObjectLockRetentionModeCompliance} {
			name := newName("bucket")
			store.makeBucket(t, name, true)
			store.putRetention(t, name, mode, 7)
			store.createBucket(t, bucketObject(name, d.kind, nil))
			o := waitHealthy(t, buckets, name)
			d.awaitPasses(t, "backupbuckets", 2)
			store.checkRetention(t, name, string(mode)+" 7")
			if message, _ := conditionOf(o, "BucketImmutable")["message"].(string); !strings.Contains(message, "not set by bucketwarden") {
				t.Errorf("the condition does not report the foreign policy: %q", message)
			}
			if has(o, "status", "providerStatus", "immutability") {
				t.Errorf("providerStatus claims a foreign policy: %v", o.Object["status"])
			}
			mustEqual(t, "where the bucket comes from", str(o, "status", "providerStatus", "origin"), "Adopted")
			// Once it is asked for, it becomes ours.
			reconcile(t, buckets, name, setImmutability(immutability("compliance", "192h")))
			waitHealthy(t, buckets, name)
			store.checkRetention(t, name, "COMPLIANCE 8")
		}
	})
}

func TestBucketDriftIsRepaired(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		name := newName("bucket")
		store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		healed := waitHealthy(t, buckets, name)

		drifts := 0.0
		check := func(how, event, found string) {
			t.Helper()
			drifts++
			store.awaitRetention(t, name, "COMPLIANCE 4")
			d.awaitValue(t, drifts, "bucketwarden_backupbucket_policy_drift_total", "bucket="+name)
			d.awaitValue(t, drifts, "bucketwarden_backupbucket_policy_repairs_total", "bucket="+name)
			d.awaitValue(t, 1, "bucketwarden_backupbucket_locked", "bucket="+name)
			// Each has a text of its own, also if one follows the other closely.
			awaitEvent(t, event, name, found)
			// A repair is not a reconcile that the client asked for.
			if got := str(get(t, buckets, name), "status", "lastOperation", "state"); got != "Succeeded" {
				t.Errorf("after the repair of %s the state is %s", how, got)
			}
		}
		store.putRetention(t, name, "", 0)
		check("a removed retention", "PolicyDrift", "said no immutability")
		store.putRetention(t, name, types.ObjectLockRetentionModeGovernance, 4)
		check("a retention weakened to GOVERNANCE", "PolicyDrift", "said unlocked retention of 96h")
		store.putRetention(t, name, types.ObjectLockRetentionModeCompliance, 1)
		check("a shortened retention", "PolicyDrift", "said locked retention of 24h")
		store.clear(t, name)
		if _, err := store.DeleteBucket(t.Context(), &s3.DeleteBucketInput{Bucket: &name}); err != nil {
			t.Fatal(err)
		}
		check("a deleted bucket", "BucketLost", "created anew")

		// Longer is no drift and no failure. It is not ours either.
		store.putRetention(t, name, types.ObjectLockRetentionModeCompliance, 36500)
		d.awaitValue(t, 36500*24*3600, "bucketwarden_backupbucket_retention_seconds", "bucket="+name)
		d.awaitValue(t, 1, "bucketwarden_backupbucket_foreign_policy", "bucket="+name)
		awaitEvent(t, "ForeignPolicy", name, "876000h", "96h")
		reconcile(t, buckets, name, nil)
		o := waitHealthy(t, buckets, name)
		mustEqual(t, "ForeignPolicy", conditionOf(o, "ForeignPolicy")["status"], any("True"))
		mustEqual(t, "recorded", str(o, "status", "providerStatus", "immutability", "retentionPeriod"), "96h")
		mustEqual(t, "expected", d.value(t, "bucketwarden_backupbucket_expected_retention_seconds", "bucket="+name), 4*24*3600.0)
		store.checkRetention(t, name, "COMPLIANCE 36500")
		if got := d.value(t, "bucketwarden_backupbucket_policy_drift_total", "bucket="+name); got != drifts {
			t.Errorf("a longer retention was counted as drift: %v, want %v", got, drifts)
		}
		// Whoever undoes it is not undone.
		store.putRetention(t, name, types.ObjectLockRetentionModeCompliance, 4)
		d.awaitValue(t, 0, "bucketwarden_backupbucket_foreign_policy", "bucket="+name)
		d.awaitPasses(t, "backupbuckets", 2)
		store.checkRetention(t, name, "COMPLIANCE 4")
		mustEqual(t, "ForeignPolicy", conditionOf(get(t, buckets, name), "ForeignPolicy")["status"], any("False"))
		if got, want := get(t, buckets, name).Object["spec"], healed.Object["spec"]; !equality.Semantic.DeepEqual(got, want) {
			t.Errorf("the spec became %v, was %v", got, want)
		}
	})
}

// Somebody removes the lock and the permission to put it back, and stores a broken spec: the metrics show it all the same.
func TestBucketDriftThatCannotBeRepaired(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	proxy := startProxy(t, minio)
	name := newName("bucket")
	writeSecret(t, secretName(buckets, name), minio.SecretData(proxy.URL))
	create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	waitHealthy(t, buckets, name)

	proxy.SetFault(func(r env.Request) *env.Fault {
		if r.Operation == "PutObjectLockConfiguration" {
			return &env.Fault{Status: http.StatusForbidden, Code: "AccessDenied"}
		}
		return nil
	})
	store.putRetention(t, name, "", 0)
	update(t, buckets, name, setImmutability(map[string]any{"retentionType": "bucket", "retentionPeriod": "nonsense"}))
	d.awaitValue(t, 0, "bucketwarden_backupbucket_locked", "bucket="+name)
	awaitEvent(t, "PolicyNotRestored", name, "should have a locked retention of 96h", "access denied")
	reconcile(t, buckets, name, nil)
	waitFailed(t, buckets, name, "ERR_INFRA_UNAUTHORIZED", "should have a locked retention of 96h", "could not be restored")
	d.awaitPasses(t, "backupbuckets", 2)
	for metric, want := range map[string]float64{"expected_locked": 1, "expected_retention_seconds": 4 * 24 * 3600, "locked": 0, "retention_seconds": 0,
		"policy_drift_total": 1, "policy_repairs_total": 0} {
		mustEqual(t, metric, d.value(t, "bucketwarden_backupbucket_"+metric, "bucket="+name), want)
	}
	mustEqual(t, "BucketImmutable", conditionOf(get(t, buckets, name), "BucketImmutable")["reason"], any("NoPolicy"))

	proxy.SetFault(nil)
	d.awaitValue(t, 1, "bucketwarden_backupbucket_policy_repairs_total", "bucket="+name)
	store.checkRetention(t, name, "COMPLIANCE 4")
	awaitEvent(t, "PolicyDrift", name, "said no immutability", "it was restored")
	mustEqual(t, "drift", d.value(t, "bucketwarden_backupbucket_policy_drift_total", "bucket="+name), 1.0)
}

func TestBucketIgnoresSpecChangesNobodyAskedFor(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name := newName("bucket")
	store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	before := waitHealthy(t, buckets, name)

	update(t, buckets, name, setImmutability(immutability("compliance", "120h")))
	d.awaitPasses(t, "backupbuckets", 3)
	store.checkRetention(t, name, "COMPLIANCE 4")
	o := get(t, buckets, name)
	if !equality.Semantic.DeepEqual(o.Object["status"], before.Object["status"]) {
		t.Errorf("the status became %v, was %v", o.Object["status"], before.Object["status"])
	}
	// Drift is repaired to what was set, not to what nobody asked for yet.
	store.putRetention(t, name, "", 0)
	store.awaitRetention(t, name, "COMPLIANCE 4")

	reconcile(t, buckets, name, nil)
	waitHealthy(t, buckets, name)
	store.checkRetention(t, name, "COMPLIANCE 5")
}

func TestStatusFollowsTheContract(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name := newName("bucket")
	states := record(t, buckets, "", name)
	// Until the first success every operation is a Create.
	create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	o := waitFailed(t, buckets, name, "", secretName(buckets, name), "does not exist")
	if got := str(o, "status", "lastOperation", "type"); got != "Create" {
		t.Errorf("the first operation is a %s", got)
	}
	writeSecret(t, secretName(buckets, name), minio.SecretData(minio.Endpoint))
	o = waitHealthy(t, buckets, name)
	if got := str(o, "status", "lastOperation", "type"); got != "Create" {
		t.Errorf("the first success is that of a %s", got)
	}

	reconcile(t, buckets, name, setImmutability(map[string]any{"retentionType": "bucket", "retentionPeriod": "96h", "mode": "compliance", "forever": true}))
	o = waitFailed(t, buckets, name, codeConfiguration, "forever")
	if got := str(o, "status", "lastOperation", "type"); got != "Reconcile" {
		t.Errorf("the operation after a success is a %s", got)
	}
	before := o.GetResourceVersion()
	reconcile(t, buckets, name, setImmutability(immutability("compliance", "120h")))
	waitHealthy(t, buckets, name)
	failure := states.await(t, "has failed", func(s state) bool { return s.GetResourceVersion() == before })
	processing := states.awaitAfter(t, failure.revision, "is Processing", func(s state) bool { return s.state() == "Processing" })
	if str(processing.Unstructured, "status", "lastError", "description") != str(o, "status", "lastError", "description") ||
		num(processing.Unstructured, "status", "observedGeneration") != num(o, "status", "observedGeneration") ||
		num(processing.Unstructured, "status", "lastOperation", "progress") != 1 {
		t.Errorf("Processing must leave lastError and observedGeneration as they are: %v", processing)
	}
}

func TestBucketHardeningKeepsWhatOthersConfigured(t *testing.T) {
	t.Parallel()
	// What is missing is said once, in a condition. MinIO's policies do not bind the owner, so that there is none of ours.
	gaps := map[string][]string{
		"minio": {"cannot encrypt", "cannot block public access", "Bucket policies do not bind these credentials"},
		"ceph":  {"cannot encrypt", "without BlockPublicAcls"},
	}
	onEachSecureStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		name := newName("bucket")
		store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		o := waitHealthy(t, buckets, name)

		policy := func() string {
			out, err := store.GetBucketPolicy(t.Context(), &s3.GetBucketPolicyInput{Bucket: &name})
			if s3Code(err) == "NoSuchBucketPolicy" {
				return ""
			}
			must(t, err)
			return aws.ToString(out.Policy)
		}
		binds := store.name != "minio"
		if got := policy(); strings.Contains(got, "aws:SecureTransport") != binds {
			t.Errorf("policies bind the owner: %t, the policy is %q", binds, got)
		}
		hardened := conditionOf(o, "BucketHardened")
		message, _ := hardened["message"].(string)
		for _, gap := range gaps[store.name] {
			if hardened["status"] != "False" || !strings.Contains(message, gap) {
				t.Errorf("condition BucketHardened does not tell of %q: %v", gap, hardened)
			}
		}
		if told := d.value(t, "bucketwarden_backupbucket_hardening_gaps", "bucket="+name); (told > 0) != (hardened["status"] == "False") {
			t.Errorf("bucketwarden_backupbucket_hardening_gaps is %v with %q", told, message)
		}
		// Whatever was tried, objects can be written.
		store.putObject(t, name, "shoot--p--s--1/etcd-main/v2/Full", noRetention)

		foreign := `{"Version":"2012-10-17","Statement":[{"Sid":"Auditor","Effect":"Deny","Principal":{"AWS":["*"]},"Action":["s3:GetObject"],` +
			`"Resource":["arn:aws:s3:::` + name + `/auditor/*"]}]}`
		if _, err := store.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &name, Policy: &foreign}); err != nil {
			t.Fatal(err)
		}
		reconcile(t, buckets, name, nil)
		waitHealthy(t, buckets, name)
		// Another life of the daemon tries it anew, and puts back what was there.
		d.stop(t)
		d.start(t)
		reconcile(t, buckets, name, nil)
		mustEqual(t, "the gaps of another life", conditionOf(waitHealthy(t, buckets, name), "BucketHardened")["message"], any(message))
		if got := policy(); strings.Contains(got, "aws:SecureTransport") != binds || strings.Contains(got, "BucketwardenCheck") ||
			!strings.Contains(got, "/auditor/") {
			t.Errorf("policies bind the owner: %t, the policy of others is now %s", binds, got)
		}
		store.putObject(t, name, "shoot--p--s--1/etcd-main/v2/Full", noRetention)
	})
}
