package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apitypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

// newShoot returns the name of a BackupEntry and the namespace of its cluster, which
// exists.
func newShoot(t *testing.T) (entry, namespace string) {
	t.Helper()
	namespace = newName("shoot--p--s")
	createNamespace(t, namespace, nil)
	return namespace + "--uid", namespace
}

// noSecret checks that there is no such secret.
func noSecret(t *testing.T, namespace, name string) {
	t.Helper()
	if _, err := kube.Client.CoreV1().Secrets(namespace).Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("reading secret %s/%s: got %v, want that there is none", namespace, name, err)
	}
}

// mustEqual checks that a value is what it has to be.
func mustEqual(t *testing.T, what string, got, want any) {
	t.Helper()
	if !equality.Semantic.DeepEqual(got, want) {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// changeSecret changes any secret.
func changeSecret(t *testing.T, namespace, name string, change func(*corev1.Secret)) {
	t.Helper()
	client := kube.Client.CoreV1().Secrets(namespace)
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		secret, err := client.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(secret)
		_, err = client.Update(t.Context(), secret, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEntryGetsItsSecret(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name, namespace := newShoot(t)
	states := record(t, entries, "", name)
	source := record(t, secrets, gardenNamespace, secretName(entries, name))
	created := store.createEntry(t, entryObject(name, d.kind, "the-bucket"))
	o := waitHealthy(t, entries, name)

	want := minio.SecretData(minio.Endpoint)
	want["bucketName"] = []byte("the-bucket")
	secret := getSecret(t, namespace, "etcd-backup")
	mustEqual(t, "data", secret.Data, want)
	mustEqual(t, "annotations", secret.Annotations, map[string]string{annotationCreatedBy: name})
	mustEqual(t, "labels", len(secret.Labels), 0)
	mustEqual(t, "finalizers", o.GetFinalizers(), []string{finalizerBackupEntry})
	mustEqual(t, "finalizers of the credentials", getSecret(t, gardenNamespace, secretName(entries, name)).Finalizers, []string{finalizerBackupEntry})
	mustEqual(t, "spec", o.Object["spec"], created.Object["spec"])
	mustEqual(t, "type of the operation", str(o, "status", "lastOperation", "type"), "Create")
	checkSpecIsTheClients(t, o)

	claimed := states.await(t, "has lost its operation annotation", func(s state) bool { return s.GetAnnotations()[annotationOperation] == "" })
	if !claimed.holds(finalizerBackupEntry) || claimed.state() != "" {
		t.Errorf("the operation annotation did not go together with adding the finalizer, before the first status: %v", claimed)
	}
	processing := states.await(t, "is Processing", func(s state) bool { return s.state() == "Processing" })
	held := source.await(t, "has the finalizer", func(s state) bool { return s.holds(finalizerBackupEntry) })
	succeeded := states.await(t, "is Succeeded", func(s state) bool { return s.state() == "Succeeded" })
	if !slices.IsSorted([]int64{claimed.revision, processing.revision, held.revision, succeeded.revision}) {
		t.Errorf("want the finalizer (%v), Processing (%v), the secret's finalizer (%v), Succeeded (%v) in this order", claimed, processing, held, succeeded)
	}

	// Other credentials replace everything; what others added to the secret goes.
	changeSecret(t, namespace, "etcd-backup", func(s *corev1.Secret) {
		s.Data["stale"] = []byte("x")
		s.Labels = map[string]string{"foreign": "label"}
		s.Annotations["foreign"] = "annotation"
	})
	other := startProxy(t, minio).URL
	writeSecret(t, secretName(entries, name), map[string][]byte{
		"accessKeyID": []byte(minio.AccessKeyID), "secretAccessKey": []byte(minio.SecretAccessKey), "endpoint": []byte(other), "s3ForcePathStyle": []byte("1"), "region": []byte("elsewhere")})
	reconcile(t, entries, name, func(o *unstructured.Unstructured) { set(o, "other-bucket", "spec", "bucketName") })
	o = waitHealthy(t, entries, name)
	mustEqual(t, "type of the operation", str(o, "status", "lastOperation", "type"), "Reconcile")
	secret = getSecret(t, namespace, "etcd-backup")
	mustEqual(t, "data", secret.Data, map[string][]byte{
		"accessKeyID": []byte(minio.AccessKeyID), "secretAccessKey": []byte(minio.SecretAccessKey), "endpoint": []byte(other), "s3ForcePathStyle": []byte("true"), "region": []byte(minio.Region), "bucketName": []byte("other-bucket")})
	mustEqual(t, "annotations", secret.Annotations, map[string]string{annotationCreatedBy: name})
	mustEqual(t, "labels", len(secret.Labels), 0)

	// The cluster gets its secret even if the store does not accept what is in it.
	writeSecret(t, secretName(entries, name), with(minio.SecretData(minio.Endpoint), map[string][]byte{"accessKeyID": []byte("unknown")}))
	reconcile(t, entries, name, nil)
	waitFailed(t, entries, name, codeUnauthenticated, "InvalidAccessKeyId")
	mustEqual(t, "key ID", string(getSecret(t, namespace, "etcd-backup").Data["accessKeyID"]), "unknown")
	writeSecret(t, secretName(entries, name), minio.SecretData(minio.Endpoint))
	waitHealthy(t, entries, name)

	// A secret that somebody deleted comes back.
	if err := kube.Client.CoreV1().Secrets(namespace).Delete(t.Context(), "etcd-backup", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	reconcile(t, entries, name, nil)
	waitHealthy(t, entries, name)
	getSecret(t, namespace, "etcd-backup")
}

func TestEntryWithoutItsNamespaceSucceeds(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	t.Run("missing", func(t *testing.T) {
		namespace := newName("shoot--p--s")
		name := namespace + "--uid"
		store.createEntry(t, entryObject(name, d.kind, "the-bucket"))
		waitHealthy(t, entries, name)
		createNamespace(t, namespace, map[string]string{annotationShootUID: "uid"})
		noSecret(t, namespace, "etcd-backup")
		reconcile(t, entries, name, nil)
		waitHealthy(t, entries, name)
		getSecret(t, namespace, "etcd-backup")
	})
	t.Run("terminating", func(t *testing.T) {
		name, namespace := newShoot(t)
		// Without a controller manager it stays so.
		if err := kube.Client.CoreV1().Namespaces().Delete(t.Context(), namespace, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		store.createEntry(t, entryObject(name, d.kind, "the-bucket"))
		waitHealthy(t, entries, name)
		noSecret(t, namespace, "etcd-backup")
		reconcile(t, entries, name, nil)
		waitHealthy(t, entries, name)
		noSecret(t, namespace, "etcd-backup")
	})
}

func TestSourceEntry(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		name, namespace := newShoot(t)
		bucket := newName("backups")
		store.makeVersioned(t, bucket)
		store.createEntry(t, entryObject("source-"+name, d.kind, bucket))
		waitHealthy(t, entries, "source-"+name)
		mustEqual(t, "created-by", getSecret(t, namespace, "source-etcd-backup").Annotations[annotationCreatedBy], "source-"+name)
		noSecret(t, namespace, "etcd-backup")

		// The objects of both lie under one prefix: while the other entry lives, they stay.
		store.createEntry(t, entryObject(name, d.kind, bucket))
		waitHealthy(t, entries, name)
		store.putObject(t, bucket, name+"/etcd-main/v2/Full", noRetention)
		store.putObject(t, bucket, "source-"+name+"/etcd-main/v2/Full", noRetention)
		remove(t, entries, "source-"+name)
		waitGone(t, entries, "source-"+name)
		noSecret(t, namespace, "source-etcd-backup")
		getSecret(t, namespace, "etcd-backup")
		store.checkVersions(t, bucket, "", name+"/etcd-main/v2/Full", "source-"+name+"/etcd-main/v2/Full")
		awaitEvent(t, "ObjectsKept", "source-"+name, name)

		// Without it they go, and only those.
		remove(t, entries, name)
		waitGone(t, entries, name)
		store.checkVersions(t, bucket, "", "source-"+name+"/etcd-main/v2/Full")
		store.putObject(t, bucket, name+"/etcd-main/v2/Full", noRetention)
		store.createEntry(t, entryObject("source-"+name, d.kind, bucket))
		waitHealthy(t, entries, "source-"+name)
		remove(t, entries, "source-"+name)
		waitGone(t, entries, "source-"+name)
		store.checkVersions(t, bucket, "", "source-"+name+"/etcd-main/v2/Full")
	})
}

// identity makes the credentials of an entry those of a workload identity.
func identity(t *testing.T, entry string, change func(*corev1.Secret)) {
	t.Helper()
	changeSecret(t, gardenNamespace, secretName(entries, entry), func(s *corev1.Secret) {
		s.Labels = map[string]string{
			"security.gardener.cloud/purpose":                   "workload-identity-token-requestor",
			"workloadidentity.security.gardener.cloud/provider": "aws",
		}
		s.Annotations = map[string]string{
			annotationTimestamp:                                       timestamp(),
			"workloadidentity.security.gardener.cloud/name":           "backup",
			"workloadidentity.security.gardener.cloud/namespace":      "garden-local",
			"workloadidentity.security.gardener.cloud/context-object": `{"kind":"Seed"}`,
		}
		s.Data = map[string][]byte{"config": []byte(`{"roleARN":"arn:aws:iam::123456789012:role/backup"}`)}
		if change != nil {
			change(s)
		}
	})
}

func TestEntryWithWorkloadIdentity(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name, namespace := newShoot(t)
	writeSecret(t, secretName(entries, name), nil)
	for key, want := range map[string]string{
		"workloadidentity.security.gardener.cloud/provider":  "label workloadidentity.security.gardener.cloud/provider",
		"workloadidentity.security.gardener.cloud/name":      "annotation workloadidentity.security.gardener.cloud/name",
		"workloadidentity.security.gardener.cloud/namespace": "annotation workloadidentity.security.gardener.cloud/namespace",
	} {
		broken, _ := newShoot(t)
		writeSecret(t, secretName(entries, broken), nil)
		identity(t, broken, func(s *corev1.Secret) {
			delete(s.Labels, key)
			delete(s.Annotations, key)
		})
		create(t, entries, entryObject(broken, d.kind, "the-bucket"))
		waitFailed(t, entries, broken, codeConfiguration, want)
	}

	identity(t, name, nil)
	create(t, entries, entryObject(name, d.kind, "the-bucket"))
	waitHealthy(t, entries, name)
	data := map[string][]byte{
		"config":     []byte(`{"roleARN":"arn:aws:iam::123456789012:role/backup"}`),
		"roleARN":    []byte("arn:aws:iam::123456789012:role/backup"),
		"bucketName": []byte("the-bucket"), "region": []byte(minio.Region),
	}
	annotations := map[string]string{
		annotationCreatedBy:                                       name,
		"workloadidentity.security.gardener.cloud/name":           "backup",
		"workloadidentity.security.gardener.cloud/namespace":      "garden-local",
		"workloadidentity.security.gardener.cloud/context-object": `{"kind":"Seed"}`,
	}
	secret := getSecret(t, namespace, "etcd-backup")
	mustEqual(t, "data", secret.Data, data)
	mustEqual(t, "annotations", secret.Annotations, annotations)
	mustEqual(t, "labels", secret.Labels, map[string]string{
		"security.gardener.cloud/purpose":                   "workload-identity-token-requestor",
		"workloadidentity.security.gardener.cloud/provider": "aws",
	})

	// gardenlet's token requestor writes the token whenever it likes.
	const rounds = 8
	states := record(t, secrets, namespace, "etcd-backup")
	var last string
	ctx, stop := context.WithCancel(t.Context())
	var requestor sync.WaitGroup
	t.Cleanup(requestor.Wait)
	t.Cleanup(stop)
	requestor.Go(func() {
		pause := 20 * time.Millisecond
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			begun := time.Now()
			token := fmt.Sprintf("token-%d", i)
			patch, err := json.Marshal(map[string]any{
				"metadata": map[string]any{"annotations": map[string]any{"workloadidentity.security.gardener.cloud/token-renew-timestamp": token}},
				"data":     map[string]any{"token": []byte(token)},
			})
			if err == nil {
				// Not bound to ctx: a request that was cut off may have been carried out.
				_, err = kube.Client.CoreV1().Secrets(namespace).Patch(t.Context(), "etcd-backup", apitypes.MergePatchType, patch, metav1.PatchOptions{})
			}
			if err != nil {
				t.Errorf("writing a token: %v", err)
				return
			}
			last = token
			// On a slow machine too, the daemon has a chance between two writes.
			pause = max(pause, 10*time.Since(begun))
		}
	})
	for i := range rounds {
		bucket := fmt.Sprintf("the-bucket-%d", i)
		reconcile(t, entries, name, func(o *unstructured.Unstructured) { set(o, bucket, "spec", "bucketName") })
		waitFor(t, entries, name, func(o *unstructured.Unstructured) error {
			if err := settled(o); err != nil {
				return err
			}
			return inState("Succeeded")(o)
		})
	}
	stop()
	requestor.Wait()
	reconcile(t, entries, name, nil)
	waitHealthy(t, entries, name)
	secret = getSecret(t, namespace, "etcd-backup")
	data["token"], data["bucketName"] = []byte(last), []byte(fmt.Sprintf("the-bucket-%d", rounds-1))
	annotations["workloadidentity.security.gardener.cloud/token-renew-timestamp"] = last
	mustEqual(t, "data", secret.Data, data)
	mustEqual(t, "annotations", secret.Annotations, annotations)
	// The token of the source is for the daemon only, which looks for tombstones with it. Here
	// no STS accepts it.
	changeSecret(t, gardenNamespace, secretName(entries, name), func(s *corev1.Secret) { s.Data["token"] = []byte("the-source-token") })
	reconcile(t, entries, name, nil)
	waitFor(t, entries, name, inState("Error", "AssumeRoleWithWebIdentity"))
	mustEqual(t, "data", getSecret(t, namespace, "etcd-backup").Data, data)
	// No token was ever replaced by an older one.
	states.await(t, "has the last version", func(s state) bool { return s.GetResourceVersion() == secret.ResourceVersion })
	newest := -1
	for _, s := range states.seen() {
		token, err := base64.StdEncoding.DecodeString(str(s.Unstructured, "data", "token"))
		if err != nil {
			t.Fatal(err)
		}
		n := -1
		if len(token) > 0 {
			if n, err = strconv.Atoi(strings.TrimPrefix(string(token), "token-")); err != nil {
				t.Fatal(err)
			}
		}
		if n < newest {
			t.Errorf("token %d was replaced by token %d", newest, n)
		}
		newest = n
	}
}

func TestEntryIsMigratedAndRestored(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		name, namespace := newShoot(t)
		bucket := newName("backups")
		store.makeVersioned(t, bucket)
		store.putObject(t, bucket, name+"/etcd-main/v2/Full", noRetention)
		store.createEntry(t, entryObject(name, d.kind, bucket))
		waitHealthy(t, entries, name)
		update(t, entries, name, func(o *unstructured.Unstructured) { o.SetFinalizers(append(o.GetFinalizers(), "example.com/foreign")) })
		states := record(t, entries, "", name)
		source := record(t, secrets, gardenNamespace, secretName(entries, name))

		operate(t, entries, name, "migrate", nil)
		waitHealthy(t, entries, name)
		o := get(t, entries, name)
		mustEqual(t, "type of the operation", str(o, "status", "lastOperation", "type"), "Migrate")
		mustEqual(t, "finalizers", len(o.GetFinalizers()), 0)
		getSecret(t, namespace, "etcd-backup")
		store.checkVersions(t, bucket, "", name+"/etcd-main/v2/Full")
		succeeded := states.await(t, "is Migrate/Succeeded", func(s state) bool { return s.opType() == "Migrate" && s.state() == "Succeeded" })
		released := source.await(t, "has lost the finalizer", func(s state) bool { return !s.holds(finalizerBackupEntry) })
		last := states.await(t, "has lost its operation annotation", func(s state) bool { return s.opType() == "Migrate" && s.GetAnnotations()[annotationOperation] == "" })
		if succeeded.revision > released.revision || released.revision > last.revision {
			t.Errorf("want Migrate/Succeeded (%v), the secret's finalizer gone (%v), the annotation gone (%v) in this order", succeeded, released, last)
		}

		// Of a migrated entry nothing is reconciled any more.
		before := d.passes(t, "backupentries")
		store.makeBucket(t, "other-bucket", false)
		changed := reconcile(t, entries, name, func(o *unstructured.Unstructured) { set(o, "other-bucket", "spec", "bucketName") })
		d.awaitPassesSince(t, "backupentries", before, 1)
		mustEqual(t, "version of the skipped entry", get(t, entries, name).GetResourceVersion(), changed.GetResourceVersion())

		// The destination applies the entry with wait-for-state and then restores it.
		operate(t, entries, name, "wait-for-state", nil)
		operate(t, entries, name, "restore", nil)
		waitHealthy(t, entries, name)
		mustEqual(t, "bucketName", string(getSecret(t, namespace, "etcd-backup").Data["bucketName"]), "other-bucket")
		restored := states.await(t, "is Restore/Succeeded", func(s state) bool { return s.opType() == "Restore" && s.state() == "Succeeded" })
		mustEqual(t, "operation annotation at Restore/Succeeded", restored.GetAnnotations()[annotationOperation], "restore")
		if !restored.holds(finalizerBackupEntry) {
			t.Errorf("no finalizer after restore: %v", restored)
		}
		mustEqual(t, "finalizers of the credentials", getSecret(t, gardenNamespace, secretName(entries, name)).Finalizers, []string{finalizerBackupEntry})

		// A follow-up reconcile is an ordinary one.
		reconcile(t, entries, name, nil)
		o = waitHealthy(t, entries, name)
		mustEqual(t, "type of the operation", str(o, "status", "lastOperation", "type"), "Reconcile")
	})
}

func TestMigrateWinsOverDeletion(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name, _ := newShoot(t)
	bucket := newName("backups")
	store.makeVersioned(t, bucket)
	store.putObject(t, bucket, name+"/etcd-main/v2/Full", noRetention)
	store.createEntry(t, entryObject(name, d.kind, bucket))
	waitHealthy(t, entries, name)
	states := record(t, entries, "", name)

	operate(t, entries, name, "wait-for-state", nil)
	remove(t, entries, name)
	operate(t, entries, name, "migrate", nil)
	waitGone(t, entries, name)
	states.await(t, "is Migrate/Succeeded", func(s state) bool { return s.opType() == "Migrate" && s.state() == "Succeeded" })
	if slices.ContainsFunc(states.seen(), func(s state) bool { return s.opType() == "Delete" }) {
		t.Error("the entry was deleted instead of migrated")
	}
	store.checkVersions(t, bucket, "", name+"/etcd-main/v2/Full")
}

func TestWaitForStateStopsEverything(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name, namespace := newShoot(t)
	bucket := newName("bucket")
	writeSecret(t, secretName(entries, name), minio.SecretData(minio.Endpoint))
	writeSecret(t, secretName(buckets, bucket), minio.SecretData(minio.Endpoint))
	entry, b := entryObject(name, d.kind, bucket), bucketObject(bucket, d.kind, nil)
	annotate(entry, annotationOperation, "wait-for-state")
	annotate(b, annotationOperation, "wait-for-state")
	createAsIs(t, entries, entry)
	createAsIs(t, buckets, b)
	other, _ := newShoot(t)
	untouched := func() {
		t.Helper()
		// Events come in order: once a later one was dealt with, these were too.
		store.createEntry(t, entryObject(other, d.kind, bucket))
		waitHealthy(t, entries, other)
		remove(t, entries, other)
		waitGone(t, entries, other)
		d.awaitPasses(t, "backupbuckets", 1)
		for resource, name := range map[schema.GroupVersionResource]string{entries: name, buckets: bucket} {
			if o := get(t, resource, name); has(o, "status") && o.GetDeletionTimestamp() == nil || o.GetAnnotations()[annotationOperation] != "wait-for-state" {
				t.Errorf("%s was touched: %v", name, o.Object)
			}
		}
	}
	untouched()
	noSecret(t, namespace, "etcd-backup")
	if bucketExists(t, store, bucket) {
		t.Error("the bucket was created")
	}

	reconcile(t, entries, name, nil)
	waitHealthy(t, entries, name)
	reconcile(t, buckets, bucket, nil)
	waitHealthy(t, buckets, bucket)
	operate(t, entries, name, "wait-for-state", nil)
	operate(t, buckets, bucket, "wait-for-state", nil)
	remove(t, entries, name)
	remove(t, buckets, bucket)
	untouched()
	getSecret(t, namespace, "etcd-backup")
	if !bucketExists(t, store, bucket) {
		t.Error("the bucket was deleted")
	}
	reconcile(t, entries, name, nil)
	reconcile(t, buckets, bucket, nil)
	waitGone(t, entries, name)
	waitGone(t, buckets, bucket)
}

func TestEntryDeletionIsExact(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		_, namespace := newShoot(t)
		first := namespace + "--1"
		bucket := newName("backups")
		store.makeVersioned(t, bucket)
		kept := []string{namespace + "--10/etcd-main/v2/Full", first + "-x", "foreign/" + first + "/x", namespace + "/x"}
		for _, key := range kept {
			store.putObject(t, bucket, key, noRetention)
		}
		for _, key := range []string{"/etcd-main/v2/Full-00000000-00000001-1", "/etcd-main/v2/Incr-00000001-00000002-2", "/etcd-main/v1/Backup-1/Full", "/x y+z/ü"} {
			store.putObject(t, bucket, first+key, noRetention)
			store.putObject(t, bucket, first+key, noRetention)
			store.hideObject(t, bucket, first+key)
		}
		store.createEntry(t, entryObject(first, d.kind, bucket))
		store.createEntry(t, entryObject(namespace+"--10", d.kind, bucket))
		waitHealthy(t, entries, first)
		waitHealthy(t, entries, namespace+"--10")
		states := record(t, entries, "", first)
		source := record(t, secrets, gardenNamespace, secretName(entries, first))
		// Both entries serve one cluster here; whose secret it is, its annotation says.
		changeSecret(t, namespace, "etcd-backup", func(s *corev1.Secret) { s.Annotations[annotationCreatedBy] = namespace + "--10" })

		remove(t, entries, first)
		waitGone(t, entries, first)
		slices.Sort(kept)
		store.checkVersions(t, bucket, "", kept...)
		getSecret(t, namespace, "etcd-backup")
		awaitEvent(t, "ObjectsDeleted", first, "12 object versions")
		mustEqual(t, "deleted versions", d.value(t, "bucketwarden_purged_objects_total", "bucket="+bucket), 12.0)

		deleted := states.await(t, "is Delete/Succeeded", func(s state) bool { return s.opType() == "Delete" && s.state() == "Succeeded" })
		released := source.await(t, "has lost the finalizer", func(s state) bool { return !s.holds(finalizerBackupEntry) })
		gone := states.await(t, "is gone", func(s state) bool { return s.gone })
		if deleted.revision > released.revision || released.revision > gone.revision {
			t.Errorf("want Delete/Succeeded (%v), the secret's finalizer gone (%v), the object gone (%v) in this order", deleted, released, gone)
		}
		for _, s := range states.seen() {
			if s.GetDeletionTimestamp() != nil && s.GetAnnotations()[annotationConfirmation] != "true" {
				t.Errorf("the confirmation annotation is gone: %v", s)
			}
		}

		remove(t, entries, namespace+"--10")
		waitGone(t, entries, namespace+"--10")
		noSecret(t, namespace, "etcd-backup")
	})
}

func TestEntryDeletionWithoutItsCredentials(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name, namespace := newShoot(t)
	bucket := newName("backups")
	store.makeVersioned(t, bucket)
	store.putObject(t, bucket, name+"/x", noRetention)
	store.createEntry(t, entryObject(name, d.kind, bucket))
	waitHealthy(t, entries, name)
	changeSecret(t, gardenNamespace, secretName(entries, name), func(s *corev1.Secret) { s.Finalizers = nil })
	if err := kube.Client.CoreV1().Secrets(gardenNamespace).Delete(t.Context(), secretName(entries, name), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	stored := d.value(t, "bucketwarden_store_request_duration_seconds")
	remove(t, entries, name)
	waitGone(t, entries, name)
	mustEqual(t, "store requests", d.value(t, "bucketwarden_store_request_duration_seconds"), stored)
	store.checkVersions(t, bucket, "", name+"/x")
	getSecret(t, namespace, "etcd-backup")
	awaitEvent(t, "ObjectsLeft", name, bucket)
}

// retainFor returns a time so near that a test can wait for it.
func retainFor(d time.Duration) time.Time { return time.Now().Add(d).Truncate(time.Second) }

// An entry is released although something of it is retained; its bucket waits, without a
// request to the store and whatever gardenlet renews meanwhile.
func TestDeletionWaitsForRetention(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		inTime(t, 15*time.Second, func(t *testing.T, retention time.Duration, late func(time.Time)) {
			d := startDaemon(t)
			name, namespace := newShoot(t)
			bucket := newName("bucket")
			store.makeBucket(t, bucket, true)
			store.createBucket(t, bucketObject(bucket, d.kind, nil))
			store.createEntry(t, entryObject(name, d.kind, bucket))
			waitHealthy(t, buckets, bucket)
			waitHealthy(t, entries, name)
			foreign := map[string]string{"example.com/foreign": "kept"}
			for resource, name := range map[schema.GroupVersionResource]string{buckets: bucket, entries: name} {
				update(t, resource, name, func(o *unstructured.Unstructured) {
					annotations := o.GetAnnotations()
					maps.Copy(annotations, foreign)
					o.SetAnnotations(annotations)
				})
			}
			until := retainFor(retention)
			key := name + "/etcd-main/v2/Full"
			store.putObject(t, bucket, key, until)
			store.putObject(t, bucket, key+"-free", noRetention)
			states := []*recorder{record(t, entries, "", name), record(t, buckets, "", bucket)}

			// The bucket waits for the entry.
			remove(t, buckets, bucket)
			o := waitFor(t, buckets, bucket, inState("Processing", name))
			mustEqual(t, "reason of the wait", conditionOf(o, "DeletionWaiting")["reason"], any("InUse"))
			proxy := store.proxy(t)
			writeSecret(t, secretName(buckets, bucket), store.SecretData(proxy.URL))
			remove(t, entries, name)
			waitGone(t, entries, name)
			noSecret(t, namespace, "etcd-backup")
			late(until)
			awaitEvent(t, "ObjectsRetained", name, "1 objects", until.UTC().Format(time.RFC3339))

			// Then for what is retained.
			o = waitFor(t, buckets, bucket, func(o *unstructured.Unstructured) error {
				err := inState("Processing", "1 objects", "retained until "+until.UTC().Format(time.RFC3339))(o)
				if err != nil {
					late(until)
				}
				return err
			})
			if has(o, "status", "lastError") {
				t.Errorf("waiting is an error: %v", o.Object["status"])
			}
			waiting := conditionOf(o, "DeletionWaiting")
			mustEqual(t, "condition DeletionWaiting", []any{waiting["status"], waiting["reason"]}, []any{"True", "ObjectsRetained"})
			eventually(t, "the metrics tell of it", func(context.Context) error {
				got := d.value(t, "bucketwarden_backupbucket_retained_objects", "bucket="+bucket)
				late(until)
				if got != 1 {
					return fmt.Errorf("%v objects", got)
				}
				return nil
			})
			d.awaitIdle(t, "sweeps")
			proxy.Reset()
			const renewed = 20
			passes := d.passes(t, "backupbuckets")
			for range renewed {
				writeSecret(t, secretName(buckets, bucket), store.SecretData(proxy.URL))
				err := confirm(t.Context(), buckets, bucket)
				late(until)
				must(t, err)
			}
			passes, counts := d.passes(t, "backupbuckets")-passes, proxy.Counts()
			left, err := store.versions(t.Context(), bucket, "")
			late(until)
			must(t, err)
			if passes > renewed+1 {
				t.Errorf("%d renewals of the confirmation made %v passes", renewed, passes)
			}
			mustEqual(t, "store requests of a deletion that is not due", counts, map[string]int{})
			// The bucket was there before: the tombstone stays until what it stands for is gone.
			left = slices.DeleteFunc(left, func(key string) bool { return strings.HasPrefix(key, ".bucketwarden/") })
			mustEqual(t, "what is left", left, []string{key})

			ctx, stop := context.WithCancel(t.Context())
			var renewals sync.WaitGroup
			t.Cleanup(renewals.Wait)
			t.Cleanup(stop)
			renewals.Go(func() {
				ticker := time.NewTicker(200 * time.Millisecond)
				defer ticker.Stop()
				for {
					select {
					case <-ctx.Done():
						return
					case <-ticker.C:
					}
					// Either may be gone by now.
					if err := confirm(ctx, buckets, bucket); err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
						t.Error(err)
					}
					patch := []byte(fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, annotationTimestamp, timestamp()))
					_, err := kube.Client.CoreV1().Secrets(gardenNamespace).Patch(ctx, secretName(buckets, bucket), apitypes.MergePatchType, patch, metav1.PatchOptions{})
					if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
						t.Error(err)
					}
				}
			})
			awaitEnd(t, until)
			waitGone(t, buckets, bucket)
			gone := states[1].await(t, "is gone", func(s state) bool { return s.gone })
			if gone.seen.Before(until) {
				t.Error("the bucket went away before the retention ended")
			}
			for _, s := range slices.Concat(states[0].seen(), states[1].seen()) {
				if s.GetAnnotations()["example.com/foreign"] != "kept" || s.GetDeletionTimestamp() != nil && s.GetAnnotations()[annotationConfirmation] != "true" {
					t.Errorf("annotations of others were touched: %v", s.GetAnnotations())
				}
			}
			stop()
			if bucketExists(t, store, bucket) {
				t.Error("the bucket still exists")
			}
			eventually(t, "its metrics are gone", func(context.Context) error {
				if got := d.value(t, "bucketwarden_backupbucket_retained_objects", "bucket="+bucket); got != 0 {
					return fmt.Errorf("%v retained objects", got)
				}
				return nil
			})
		})
	})
}

func TestBucketDeletionWithoutItsCredentials(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name := newName("bucket")
	store.createBucket(t, bucketObject(name, d.kind, nil))
	waitHealthy(t, buckets, name)
	changeSecret(t, gardenNamespace, secretName(buckets, name), func(s *corev1.Secret) { s.Finalizers = nil })
	if err := kube.Client.CoreV1().Secrets(gardenNamespace).Delete(t.Context(), secretName(buckets, name), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	remove(t, buckets, name)
	// A verification may have found out before.
	waitFor(t, buckets, name, func(o *unstructured.Unstructured) error {
		if o != nil && str(o, "status", "lastOperation", "type") != "Delete" {
			return errors.New("the deletion has not begun")
		}
		return inState("Error", secretName(buckets, name), "does not exist")(o)
	})
	writeSecret(t, secretName(buckets, name), minio.SecretData(minio.Endpoint))
	waitGone(t, buckets, name)
	if bucketExists(t, store, name) {
		t.Error("the bucket still exists")
	}
	mustEqual(t, "finalizers of the secret", len(getSecret(t, gardenNamespace, secretName(buckets, name)).Finalizers), 0)
}

// A failing deletion is retried with backoff, whatever annotations are left.
func TestFailingDeletionDoesNotLoop(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	name, _ := newShoot(t)
	bucket := newName("backups")
	store.makeVersioned(t, bucket)
	store.createEntry(t, entryObject(name, d.kind, bucket))
	waitHealthy(t, entries, name)
	good := minio.SecretData(minio.Endpoint)
	writeSecret(t, secretName(entries, name), with(good, map[string][]byte{"secretAccessKey": []byte("wrong")}))
	operate(t, entries, name, "wait-for-state", nil)
	remove(t, entries, name)
	operate(t, entries, name, "reconcile", nil)
	waitFor(t, entries, name, inState("Error", "SignatureDoesNotMatch"))
	start := time.Now()
	before := d.passes(t, "backupentries")
	d.awaitPasses(t, "backupentries", 2)
	// The second and third retry come after 1 s, 2 s and 4 s at the earliest.
	if passes, seconds := d.passes(t, "backupentries")-before, time.Since(start).Seconds(); passes > 3+2*seconds {
		t.Errorf("%v passes in %v seconds", passes, seconds)
	}
	writeSecret(t, secretName(entries, name), good)
	waitGone(t, entries, name)
}
