package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"bucketwarden/test/env"
)

// azureEntry is a BackupEntry on the daemon's Azure; it has the provider status of its
// BackupBucket, as gardenlet copies it.
func (d *daemon) azureEntry(name, bucket string) *unstructured.Unstructured {
	o := entryObject(name, d.kind, bucket)
	set(o, azureRegion, "spec", "region")
	return o
}

// createAzureEntry creates a BackupEntry with copies of the generated secret and the
// provider status of its BackupBucket.
func (d *daemon) createAzureEntry(t *testing.T, name, bucket string) {
	t.Helper()
	writeSecret(t, secretName(entries, name), getSecret(t, gardenNamespace, generatedName(bucket)).Data)
	o := d.azureEntry(name, bucket)
	if status, found, _ := unstructured.NestedMap(get(t, buckets, bucket).Object, "status", "providerStatus"); found {
		set(o, status, "spec", "backupBucketProviderStatus")
	}
	create(t, entries, o)
	waitHealthy(t, entries, name)
}

// again asks for another pass over a deletion that waits.
func again(t *testing.T, resource schema.GroupVersionResource, name string) {
	t.Helper()
	if err := confirm(t.Context(), resource, name); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	_, err := kube.Dynamic.Resource(resource).Patch(t.Context(), name, "application/merge-patch+json",
		fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"reconcile"}}}`, annotationOperation), metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

// dataPlane are the requests to the blobs of a bucket.
func dataPlane(requests []env.AzureRequest) []env.AzureRequest {
	return slices.DeleteFunc(slices.Clone(requests), func(r env.AzureRequest) bool { return r.Plane != env.PlaneBlob })
}

func TestAzureEntryGetsItsSecret(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	name, namespace := newShoot(t)
	azure.ResetRequests(bucket)
	d.createAzureEntry(t, name, bucket)
	generated := getSecret(t, gardenNamespace, generatedName(bucket)).Data
	check := func() {
		t.Helper()
		mustEqual(t, "data", getSecret(t, namespace, "etcd-backup").Data, map[string][]byte{
			"storageAccount": []byte(azureAccountName(bucket)), "storageKey": []byte(published(t, bucket)), "domain": generated["domain"], "bucketName": []byte(bucket)})
	}
	check()
	secret := getSecret(t, namespace, "etcd-backup")
	mustEqual(t, "annotations", secret.Annotations, map[string]string{annotationCreatedBy: name})
	mustEqual(t, "labels", len(secret.Labels), 0)
	o := get(t, entries, name)
	mustEqual(t, "finalizers", o.GetFinalizers(), []string{finalizerBackupEntry})
	mustEqual(t, "region", str(o, "spec", "region"), azureRegion)
	checkSpecIsTheClients(t, o)
	// Both the entry and the verifications of the bucket look for tombstones.
	mustEqual(t, "requests to the data plane", slices.Compact(operations(dataPlane(azure.Requests(bucket)))), []string{"ListBlobs"})

	// gardenlet brings a rotated key.
	was := published(t, bucket)
	rotateRequested(t, bucket)
	awaitRotateRemoved(t, bucket)
	writeSecret(t, secretName(entries, name), getSecret(t, gardenNamespace, generatedName(bucket)).Data)
	reconcile(t, entries, name, nil)
	waitHealthy(t, entries, name)
	check()
	if string(getSecret(t, namespace, "etcd-backup").Data["storageKey"]) == was {
		t.Error("the secret has the key from before the rotation")
	}

	// A workload identity has no key for etcd-backup-restore.
	other, otherNamespace := newShoot(t)
	writeSecret(t, secretName(entries, other), nil)
	identity(t, other, nil)
	create(t, entries, d.azureEntry(other, bucket))
	waitFailed(t, entries, other, codeConfiguration, "storageAccount", "storageKey")
	noSecret(t, otherNamespace, "etcd-backup")
}

func TestAzureEntryDeletionIsExact(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket := azureName()
	d.createAzureBucket(t, bucket, nil)
	_, namespace := newShoot(t)
	first, tenth := namespace+"--1", namespace+"--10"
	kept := []string{tenth + "/etcd-main/v2/Full", first + "-x", "foreign/" + first + "/x", namespace + "/x"}
	must(t, azure.PutBlobs(t.Context(), bucket, kept...))
	for _, key := range []string{"/etcd-main/v2/Full-00000000-00000001-1", "/etcd-main/v2/Incr-00000001-00000002-2", "/etcd-main/v1/Backup-1/Full", "/x y+z/ü?#%2F&<>\"'"} {
		must(t, azure.PutBlob(t.Context(), bucket, first+key, []byte("x")))
		must(t, azure.Snapshot(t.Context(), bucket, first+key))
	}
	d.createAzureEntry(t, first, bucket)
	d.createAzureEntry(t, tenth, bucket)
	remove(t, entries, first)
	waitGone(t, entries, first)
	slices.Sort(kept)
	checkBlobs(t, azure, bucket, "", kept...)
	awaitEvent(t, "ObjectsDeleted", first, "4 object")
	mustEqual(t, "deleted blobs", d.value(t, "bucketwarden_purged_objects_total", "bucket="+bucket), 4.0)
	mustEqual(t, "finalizers of the credentials", len(getSecret(t, gardenNamespace, secretName(entries, first)).Finalizers), 0)
	// After a rotation, the key that an entry still has is good for it.
	rotateRequested(t, bucket)
	awaitRotateRemoved(t, bucket)
	if published(t, bucket) == string(getSecret(t, gardenNamespace, secretName(entries, tenth)).Data["storageKey"]) {
		t.Error("the key of the entry is the new one")
	}
	remove(t, entries, tenth)
	waitGone(t, entries, tenth)
	noSecret(t, namespace, "etcd-backup")
	checkBlobs(t, azure, bucket, tenth+"/")
}

// awaitAzureGone waits until a BackupBucket and all of its Azure is gone.
func (d *daemon) awaitAzureGone(t *testing.T, bucket string) {
	t.Helper()
	waitGone(t, buckets, bucket)
	if group, err := d.azure.Group(bucket); !errors.Is(err, env.ErrAzureNotFound) {
		t.Errorf("the resource group is %v (%v), want that there is none", group, err)
	}
	noGeneratedSecret(t, bucket)
	eventually(t, "there are no series of BackupBucket "+bucket, func(context.Context) error {
		if got := d.value(t, "bucketwarden_backupbucket_info", "bucket="+bucket); got != 0 {
			return fmt.Errorf("info is %v", got)
		}
		return nil
	})
}

func TestAzureBucketDeletionWaitsForRetention(t *testing.T) {
	t.Parallel()
	a := startAzure(t)
	d := startDaemonOn(t, a)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	must(t, a.PutBlobs(t.Context(), bucket, "old/1", "old/2"))
	a.Advance(5 * 24 * time.Hour)
	// An extension retains again what was free already.
	reconcile(t, buckets, bucket, immutable(days(6, true)))
	waitHealthy(t, buckets, bucket)
	must(t, a.Snapshot(t.Context(), bucket, "old/1"))

	a.ResetRequests(bucket)
	remove(t, buckets, bucket)
	o := waitFor(t, buckets, bucket, inState("Processing", "2 objects", "retained until"))
	if has(o, "status", "lastError") {
		t.Errorf("waiting is an error: %v", o.Object["status"])
	}
	d.awaitValue(t, 2, "bucketwarden_backupbucket_retained_objects", "bucket="+bucket)
	mustEqual(t, "attempts to delete blobs", count(a.Requests(bucket), "BlobBatch"), 0)
	getSecret(t, gardenNamespace, generatedName(bucket))
	d.checkPolicy(t, bucket, "Locked 6")

	a.Advance(24 * time.Hour)
	again(t, buckets, bucket)
	d.awaitAzureGone(t, bucket)
	awaitEvent(t, "ObjectsDeleted", bucket, "2 object")
	awaitEvent(t, "BucketDeleted", bucket)
}

// The numbers of requests are what the daemon promises.
func TestAzureRequestsOfADeletion(t *testing.T) {
	t.Parallel()
	// Few enough for a pass that a slow machine finishes it in time.
	const objects = 5 * 256
	a := startAzure(t)
	d := startDaemonOn(t, a, "--verify-interval=1h")
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	name, _ := newShoot(t)
	keys := make([]string, objects)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s/etcd-main/v2/Incr-%08d", name, i)
	}
	must(t, a.PutBlobs(t.Context(), bucket, keys...))
	measure := func(entry, what string, limit int) {
		t.Helper()
		a.ResetRequests(bucket)
		remove(t, entries, entry)
		waitGone(t, entries, entry)
		requests := a.Requests(bucket)
		t.Logf("deleting an entry with %d %s blobs took %d requests: %v", objects, what, len(requests), operations(requests))
		if len(requests) > limit || len(dataPlane(requests)) != len(requests) {
			t.Errorf("deleting an entry with %d %s blobs took %d requests, want at most %d", objects, what, len(requests), limit)
		}
	}
	revoked := func(want string, create func()) {
		t.Helper()
		a.ResetRequests(bucket)
		create()
		mustEqual(t, "requests of a new entry", operations(a.Requests(bucket)), strings.Fields(want))
	}

	// One that does not know of the policy learns from the first refusals, and asks for a sample of
	// the rest; as the source of a migrated cluster it has left a mark, after which another is read back.
	writeSecret(t, secretName(entries, "source-"+name), getSecret(t, gardenNamespace, generatedName(bucket)).Data)
	create(t, entries, d.azureEntry("source-"+name, bucket))
	waitHealthy(t, entries, "source-"+name)
	measure("source-"+name, "retained (by an unknown policy)", 10)
	awaitEvent(t, "ObjectsRetained", "source-"+name, fmt.Sprintf("%d objects", objects))
	revoked("ListBlobs PutBlob ListBlobs", func() { d.createAzureEntry(t, name, bucket) })
	measure(name, "retained", 4)
	revoked("ListBlobs PutBlob ListBlobs", func() { d.createAzureEntry(t, name, bucket) })

	a.Advance(4 * 24 * time.Hour)
	measure(name, "deletable", 10)
	checkBlobs(t, a, bucket, name+"/")
	mustEqual(t, "deleted blobs", d.value(t, "bucketwarden_purged_objects_total", "bucket="+bucket), float64(objects))
}

// An empty container as well is kept by a hold.
func TestAzureLegalHold(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	must(t, azure.SetLegalHold(bucket, "case43"))
	remove(t, buckets, bucket)
	o := waitFor(t, buckets, bucket, inState("Processing", "legal hold"))
	if has(o, "status", "lastError") {
		t.Errorf("waiting is an error: %v", o.Object["status"])
	}
	mustEqual(t, "reason of the wait", conditionOf(o, "DeletionWaiting")["reason"], any("KeptByStore"))
	getSecret(t, gardenNamespace, generatedName(bucket))
	must(t, azure.ClearLegalHold(bucket, "case43"))
	again(t, buckets, bucket)
	d.awaitAzureGone(t, bucket)
}

// A batch answers for each of its parts.
func TestAzureBatchErrors(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket := azureName()
	d.createAzureBucket(t, bucket, nil)
	setUp := func(t *testing.T) (entry string) {
		t.Helper()
		entry, _ = newShoot(t)
		d.createAzureEntry(t, entry, bucket)
		must(t, azure.PutBlobs(t.Context(), bucket, entry+"/1", entry+"/2", entry+"/3"))
		return entry
	}
	for _, test := range []struct {
		what  string
		fault env.AzureFault
	}{
		{"a part that is busy once", env.AzureFault{Operation: "DeleteBlob", Status: http.StatusServiceUnavailable, Times: 1}},
		{"a part that is throttled once", env.AzureFault{Operation: "DeleteBlob", Status: http.StatusTooManyRequests, Times: 1}},
		{"a part that fails once", env.AzureFault{Operation: "DeleteBlob", Status: http.StatusInternalServerError, Times: 1}},
		{"a part whose answer is lost", env.AzureFault{Operation: "DeleteBlob", DropAnswer: true, Times: 1}},
		{"a batch that is busy once", env.AzureFault{Operation: "BlobBatch", Status: http.StatusServiceUnavailable, Times: 1}},
		{"a batch that is dropped", env.AzureFault{Operation: "BlobBatch", Drop: true, Times: 1}},
		{"a batch whose answer is lost", env.AzureFault{Operation: "BlobBatch", DropAnswer: true, Times: 1}},
		{"a list that is busy once", env.AzureFault{Operation: "ListBlobs", Status: http.StatusServiceUnavailable, Times: 1}},
	} {
		t.Run(test.what, func(t *testing.T) {
			entry := setUp(t)
			fault := test.fault
			fault.PathContains = bucket
			if fault.Operation == "DeleteBlob" {
				fault.PathContains = entry + "/2"
			}
			states := record(t, entries, "", entry)
			azure.Fail(fault)
			remove(t, entries, entry)
			waitGone(t, entries, entry)
			checkBlobs(t, azure, bucket, entry)
			for _, s := range states.seen() {
				if s.state() == "Error" {
					t.Errorf("it became an error: %v", str(s.Unstructured, "status", "lastError", "description"))
				}
			}
		})
	}
	for _, test := range []struct {
		what         string
		status       int
		azure, code  string
		part, remain string
	}{
		{"a part that is denied", http.StatusForbidden, "AuthorizationFailure", codeUnauthorized, "/2", "/2"},
		{"a part that always fails", http.StatusInternalServerError, "InternalError", codeRetryableDependencies, "/2", "/2"},
		{"a part that is a mystery", http.StatusConflict, "SnapshotsPresent", codeRetryableDependencies, "/3", "/3"},
	} {
		t.Run(test.what, func(t *testing.T) {
			entry := setUp(t)
			clear := azure.Fail(env.AzureFault{Operation: "DeleteBlob", PathContains: entry + test.part, Status: test.status, Code: test.azure})
			t.Cleanup(clear)
			remove(t, entries, entry)
			waitFor(t, entries, entry, inState("Error", entry+test.part))
			mustEqual(t, "codes", get(t, entries, entry).Object["status"].(map[string]any)["lastError"].(map[string]any)["codes"], []any{test.code})
			checkBlobs(t, azure, bucket, entry, entry+test.remain)
			clear()
			waitGone(t, entries, entry)
			checkBlobs(t, azure, bucket, entry)
		})
	}
	t.Run("a key that was replaced", func(t *testing.T) {
		entry := setUp(t)
		for range 2 {
			rotateRequested(t, bucket)
			awaitRotateRemoved(t, bucket)
		}
		remove(t, entries, entry)
		waitFor(t, entries, entry, inState("Error", "generated secret", azureAccountName(bucket)))
		// Gardener gives up on a cluster whose credentials are not accepted, and these come by themselves.
		mustEqual(t, "codes", get(t, entries, entry).Object["status"].(map[string]any)["lastError"].(map[string]any)["codes"], []any{codeRetryableConfiguration})
		// gardenlet brings the one that is published.
		writeSecret(t, secretName(entries, entry), getSecret(t, gardenNamespace, generatedName(bucket)).Data)
		waitGone(t, entries, entry)
		checkBlobs(t, azure, bucket, entry)
	})
	t.Run("a container that is gone", func(t *testing.T) {
		entry := setUp(t)
		o := get(t, entries, entry)
		mustEqual(t, "bucket", str(o, "spec", "bucketName"), bucket)
		reconcile(t, entries, entry, func(o *unstructured.Unstructured) { set(o, azureName(), "spec", "bucketName") })
		waitHealthy(t, entries, entry)
		remove(t, entries, entry)
		waitGone(t, entries, entry)
	})
}

func TestAzureBucketDeletion(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)

	t.Run("in order", func(t *testing.T) {
		t.Parallel()
		bucket := azureName()
		d.createAzureBucket(t, bucket, days(4, true))
		azure.ResetRequests(bucket)
		clear := azure.Fail(env.AzureFault{Operation: "ResourceGroups_Delete", PathContains: bucket, Do: func() {
			if azure.Container(bucket).Exists {
				t.Error("the group is deleted before the container")
			}
			if _, err := kube.Client.CoreV1().Secrets(gardenNamespace).Get(context.Background(), generatedName(bucket), metav1.GetOptions{}); err != nil {
				t.Errorf("the generated secret went before the group: %v", err)
			}
		}})
		t.Cleanup(clear)
		object, secret := record(t, buckets, "", bucket), record(t, secrets, gardenNamespace, generatedName(bucket))
		remove(t, buckets, bucket)
		d.awaitAzureGone(t, bucket)
		requests := azure.Requests(bucket)
		mustEqual(t, "writes", operations(azureWrites(requests)), []string{"BlobContainers_Delete", "ResourceGroups_Delete"})
		t.Logf("deleting an empty bucket takes %d requests: %v", len(requests), operations(requests))
		gone := secret.await(t, "is gone", func(s state) bool { return s.gone })
		deleted := object.await(t, "is Delete/Succeeded", func(s state) bool { return s.opType() == "Delete" && s.state() == "Succeeded" })
		if gone.revision > deleted.revision {
			t.Errorf("the generated secret went (%v) after Delete/Succeeded (%v)", gone, deleted)
		}
		awaitEvent(t, "BucketDeleted", bucket)
		awaitEvent(t, "ResourceGroupDeleted", bucket)
		mustEqual(t, "finalizers of the credentials", len(getSecret(t, gardenNamespace, secretName(buckets, bucket)).Finalizers), 0)
	})
	for what, destroy := range map[string]func(t *testing.T, bucket string){
		"the group is gone": func(t *testing.T, bucket string) { deleteGroup(t, azure, bucket) },
		"the container is gone": func(t *testing.T, bucket string) {
			t.Helper()
			client, err := azure.Blobs(azureAccountName(bucket))
			must(t, err)
			_, err = client.DeleteContainer(t.Context(), bucket, nil)
			must(t, err)
		},
		"the account is gone": func(t *testing.T, bucket string) { deleteAccount(t, azure, bucket, azureAccountName(bucket)) },
		"the generated secret is gone": func(t *testing.T, bucket string) {
			t.Helper()
			must(t, kube.Client.CoreV1().Secrets(gardenNamespace).Delete(t.Context(), generatedName(bucket), metav1.DeleteOptions{}))
		},
		"it holds blobs and snapshots": func(t *testing.T, bucket string) {
			t.Helper()
			must(t, azure.PutBlobs(t.Context(), bucket, "a", "a/b", "c"))
			must(t, azure.Snapshot(t.Context(), bucket, "a/b"))
		},
		"its container has an unlocked policy and nothing in it": func(t *testing.T, bucket string) {
			t.Helper()
			must(t, azure.SetPolicy(bucket, 3, false))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			bucket := azureName()
			d.createAzureBucket(t, bucket, nil)
			// Nobody is to repair it: whoever deletes a bucket by hand stops the verification.
			operate(t, buckets, bucket, "wait-for-state", nil)
			remove(t, buckets, bucket)
			d.idle(t)
			destroy(t, bucket)
			reconcile(t, buckets, bucket, nil)
			d.awaitAzureGone(t, bucket)
		})
	}
	t.Run("something else is in the group", func(t *testing.T) {
		t.Parallel()
		bucket := azureName()
		d.createAzureBucket(t, bucket, nil)
		must(t, azure.CreateForeign(bucket, "vnet"))
		remove(t, buckets, bucket)
		waitGone(t, buckets, bucket)
		group, err := azure.Group(bucket)
		must(t, err)
		mustEqual(t, "content of the group", group.Resources, []string{"vnet"})
		mustEqual(t, "group deletions", count(azure.Requests(bucket), "ResourceGroups_Delete"), 0)
		awaitEvent(t, "ResourceGroupKept", bucket, "virtualNetworks vnet")
		noGeneratedSecret(t, bucket)
	})
	t.Run("another container is in the account", func(t *testing.T) {
		t.Parallel()
		bucket := azureName()
		d.createAzureBucket(t, bucket, nil)
		makeContainer(t, azure, bucket, azureAccountName(bucket), "others")
		remove(t, buckets, bucket)
		waitGone(t, buckets, bucket)
		mustEqual(t, "containers", azureAccount(t, azure, azureAccountName(bucket)).Containers, []string{"others"})
		awaitEvent(t, "ResourceGroupKept", bucket, "others")
		noGeneratedSecret(t, bucket)
	})
	t.Run("the group takes its time", func(t *testing.T) {
		t.Parallel()
		bucket := azureName()
		d.createAzureBucket(t, bucket, nil)
		release := azure.HoldOperations(bucket)
		t.Cleanup(release)
		azure.ResetRequests(bucket)
		remove(t, buckets, bucket)
		waitFor(t, buckets, bucket, inState("Processing", "resource group is being deleted"))
		for range 3 {
			before := d.passes(t, "backupbuckets")
			again(t, buckets, bucket)
			d.awaitPassesSince(t, "backupbuckets", before, 1)
		}
		o := waitFor(t, buckets, bucket, inState("Processing", "resource group is being deleted"))
		if has(o, "status", "lastError") {
			t.Errorf("waiting is an error: %v", o.Object["status"])
		}
		getSecret(t, gardenNamespace, generatedName(bucket))
		mustEqual(t, "group deletions", count(azure.Requests(bucket), "ResourceGroups_Delete"), 1)
		release()
		d.awaitAzureGone(t, bucket)
	})
	t.Run("a bucket that was never ready", func(t *testing.T) {
		t.Parallel()
		bucket := azureName()
		clear := azure.Fail(env.AzureFault{Operation: "BlobContainers_Create", PathContains: bucket, Status: http.StatusForbidden})
		t.Cleanup(clear)
		writeSecret(t, secretName(buckets, bucket), azure.SecretData())
		create(t, buckets, d.azureBucket(bucket, days(4, true)))
		waitFailed(t, buckets, bucket, codeUnauthorized)
		remove(t, buckets, bucket)
		d.awaitAzureGone(t, bucket)
	})
	t.Run("a bucket that was never adopted", func(t *testing.T) {
		t.Parallel()
		bucket := azureName()
		account := azureAccountName(bucket)
		makeGroup(t, azure, bucket, nil)
		makeAccount(t, azure, bucket, account)
		makeContainer(t, azure, bucket, account, bucket)
		must(t, azure.SetPolicy(bucket, 8, true))
		must(t, azure.PutBlob(t.Context(), bucket, "x", []byte("x")))
		writeSecret(t, secretName(buckets, bucket), azure.SecretData())
		create(t, buckets, d.azureBucket(bucket, days(9, false)))
		waitFailed(t, buckets, bucket, codeConfiguration, "cannot be unlocked")
		remove(t, buckets, bucket)
		waitGone(t, buckets, bucket)
		checkBlobs(t, azure, bucket, "", "x")
		awaitEvent(t, "BucketLeft", bucket)
		noGeneratedSecret(t, bucket)
	})
	t.Run("an entry refers to it", func(t *testing.T) {
		t.Parallel()
		bucket := azureName()
		d.createAzureBucket(t, bucket, days(4, false))
		entry, _ := newShoot(t)
		d.createAzureEntry(t, entry, bucket)
		remove(t, buckets, bucket)
		waitFor(t, buckets, bucket, inState("Processing", entry))
		// Its policy is defended until then.
		must(t, azure.RemovePolicy(bucket))
		d.awaitPolicy(t, bucket, "Unlocked 4")
		remove(t, entries, entry)
		waitGone(t, entries, entry)
		again(t, buckets, bucket)
		d.awaitAzureGone(t, bucket)
	})
	t.Run("it fails and heals", func(t *testing.T) {
		t.Parallel()
		bucket := azureName()
		d.createAzureBucket(t, bucket, nil)
		clear := azure.Fail(env.AzureFault{Operation: "BlobContainers_Delete", PathContains: bucket, Status: http.StatusForbidden})
		t.Cleanup(clear)
		remove(t, buckets, bucket)
		waitFor(t, buckets, bucket, inState("Error", "containers/delete"))
		clear()
		d.awaitAzureGone(t, bucket)
	})
	t.Run("a management lock", func(t *testing.T) {
		t.Parallel()
		bucket := azureName()
		d.createAzureBucket(t, bucket, nil)
		clear := azure.Fail(env.AzureFault{Operation: "ResourceGroups_Delete", PathContains: bucket, Status: http.StatusConflict, Code: "ScopeLocked"})
		t.Cleanup(clear)
		remove(t, buckets, bucket)
		waitFor(t, buckets, bucket, inState("Error", "lock", bucket))
		getSecret(t, gardenNamespace, generatedName(bucket))
		clear()
		d.awaitAzureGone(t, bucket)
	})
}

// A bucket of an account that the generated secret names goes with that account.
func TestAzureDeletionUsesThePublishedAccount(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket, account := azureName(), "other"+strings.ReplaceAll(newName("x"), "-", "")
	must(t, createSecret(t, gardenNamespace, generatedName(bucket), map[string][]byte{"storageAccount": []byte(account)}))
	d.createAzureBucket(t, bucket, days(4, true))
	mustEqual(t, "account", azure.Container(bucket).Account, account)
	entry, _ := newShoot(t)
	d.createAzureEntry(t, entry, bucket)
	mustEqual(t, "account of the entry", string(getSecret(t, gardenNamespace, secretName(entries, entry)).Data["storageAccount"]), account)
	remove(t, entries, entry)
	waitGone(t, entries, entry)
	remove(t, buckets, bucket)
	d.awaitAzureGone(t, bucket)
	if _, err := azure.Account(account); !errors.Is(err, env.ErrAzureNotFound) {
		t.Errorf("the account is still there: %v", err)
	}
}

// However the daemon ends, what it left is finished by the next one.
func TestAzureKilledWhileDeleting(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	for _, operation := range []string{"BlobContainers_Delete", "ResourceGroups_Delete", "BlobBatch"} {
		bucket := azureName()
		d.createAzureBucket(t, bucket, nil)
		must(t, azure.PutBlobs(t.Context(), bucket, "a", "b"))
		killed := make(chan struct{})
		azure.Fail(env.AzureFault{Operation: operation, PathContains: bucket, Times: 1, DropAnswer: true, Do: func() {
			d.Kill()
			close(killed)
		}})
		remove(t, buckets, bucket)
		awaitSignal(t, operation, killed)
		d.start(t)
		again(t, buckets, bucket)
		d.awaitAzureGone(t, bucket)
	}
}
