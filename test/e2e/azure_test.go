package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources/v3"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/storage/armstorage/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"bucketwarden/test/env"
)

const (
	azureRegion = "westeurope"

	annotationRotate                   = "azure.provider.extensions.gardener.cloud/rotate"
	annotationGeneratedSecretNamespace = "backupbucket.extensions.gardener.cloud/generated-secret-namespace"
)

// azureName returns a name for a bucket. No other one contains it, by which the requests
// of an Azure are told apart.
func azureName() string { return newName("az-bucket") + "-x" }

// azureAccountName is the storage account that a bucket gets
// (gardener/gardener-extension-provider-azure pkg/controller/backupbucket).
func azureAccountName(bucket string) string {
	sum := sha256.Sum256([]byte(bucket))
	return "bkp" + hex.EncodeToString(sum[:])[:15]
}

func generatedName(bucket string) string { return "generated-bucket-" + bucket }

// days is spec.providerConfig.immutability on Azure.
func days(n int, locked bool) map[string]any {
	return map[string]any{"retentionType": "bucket", "retentionPeriod": fmt.Sprintf("%dh", n*24), "locked": locked}
}

// azureBucket is a BackupBucket on the daemon's Azure.
func (d *daemon) azureBucket(name string, immutability map[string]any) *unstructured.Unstructured {
	config := providerConfig(d.kind, immutability)
	config["cloudConfiguration"] = map[string]any{"name": d.azure.CloudName}
	o := bucketObject(name, d.kind, config)
	set(o, azureRegion, "spec", "region")
	return o
}

// createAzureBucket creates a BackupBucket and its secret and waits until it is healthy.
func (d *daemon) createAzureBucket(t *testing.T, name string, immutability map[string]any) *unstructured.Unstructured {
	t.Helper()
	writeSecret(t, secretName(buckets, name), d.azure.SecretData())
	create(t, buckets, d.azureBucket(name, immutability))
	return waitHealthy(t, buckets, name)
}

// immutable is a change for reconcile that keeps the rest of the configuration.
func immutable(immutability map[string]any) func(*unstructured.Unstructured) {
	return func(o *unstructured.Unstructured) {
		if immutability == nil {
			unstructured.RemoveNestedField(o.Object, "spec", "providerConfig", "immutability")
			return
		}
		set(o, immutability, "spec", "providerConfig", "immutability")
	}
}

// rotation is a change for reconcile.
func rotation(period, expiration int64) func(*unstructured.Unstructured) {
	return func(o *unstructured.Unstructured) {
		set(o, map[string]any{"rotationPeriodDays": period, "expirationPeriodDays": expiration}, "spec", "providerConfig", "rotationConfig")
	}
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// policyOf is the policy of a container as "Locked 4", "none" or "no container".
func policyOf(a *env.Azure, bucket string) string {
	switch c := a.Container(bucket); {
	case !c.Exists:
		return "no container"
	case c.State == "":
		return "none"
	default:
		return fmt.Sprintf("%s %d", c.State, c.Days)
	}
}

func (d *daemon) checkPolicy(t *testing.T, bucket, want string) {
	t.Helper()
	mustEqual(t, "policy of container "+bucket, policyOf(d.azure, bucket), want)
}

func (d *daemon) awaitPolicy(t *testing.T, bucket, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the policy of container %s is %q", bucket, want), func(context.Context) error {
		if got := policyOf(d.azure, bucket); got != want {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
}

// operations are the names of the operations, in order.
func operations(requests []env.AzureRequest) []string {
	var names []string
	for _, r := range requests {
		names = append(names, r.Operation)
	}
	return names
}

// azureWrites are those of the requests that change something.
func azureWrites(requests []env.AzureRequest) []env.AzureRequest {
	return slices.DeleteFunc(slices.Clone(requests), func(r env.AzureRequest) bool {
		return r.Plane == env.PlaneEntra || r.Method == http.MethodGet || r.Method == http.MethodHead || r.Operation == "StorageAccounts_ListKeys"
	})
}

// count returns how many of the requests are such an operation.
func count(requests []env.AzureRequest, operation string) int {
	n := 0
	for _, r := range requests {
		if r.Operation == operation {
			n++
		}
	}
	return n
}

// idle waits until the daemon has made a few passes over its buckets since now.
func (d *daemon) idle(t *testing.T) {
	t.Helper()
	d.awaitPasses(t, "backupbuckets", 3)
}

func azureAccount(t *testing.T, a *env.Azure, name string) env.AzureAccount {
	t.Helper()
	account, err := a.Account(name)
	must(t, err)
	return account
}

// property is a property of an account as Resource Manager answers it.
func property(account env.AzureAccount, path ...string) any {
	value, _, _ := unstructured.NestedFieldNoCopy(account.Resource, path...)
	return value
}

// blobError deletes a blob with a key as any client of the data plane would, and returns the
// error code.
func blobError(t *testing.T, a *env.Azure, account, key, bucket, blob string) string {
	t.Helper()
	credential, err := azblob.NewSharedKeyCredential(account, key)
	must(t, err)
	client, err := azblob.NewClientWithSharedKeyCredential(strings.ReplaceAll(a.BlobEndpoint, "{account}", account), credential, nil)
	must(t, err)
	_, err = client.DeleteBlob(t.Context(), bucket, blob, nil)
	var response *azcore.ResponseError
	if err != nil && !errors.As(err, &response) {
		t.Fatal(err)
	}
	if response == nil {
		return ""
	}
	return response.ErrorCode
}

// makeGroup creates a resource group as somebody else would.
func makeGroup(t *testing.T, a *env.Azure, name string, tags map[string]*string) {
	t.Helper()
	credential, options, err := a.ClientOptions()
	must(t, err)
	groups, err := armresources.NewResourceGroupsClient(a.SubscriptionID, credential, options)
	must(t, err)
	_, err = groups.CreateOrUpdate(t.Context(), name, armresources.ResourceGroup{Location: to.Ptr(azureRegion), Tags: tags}, nil)
	must(t, err)
}

// makeAccount creates a storage account with Azure's defaults, as somebody else would.
func makeAccount(t *testing.T, a *env.Azure, group, name string) {
	t.Helper()
	credential, options, err := a.ClientOptions()
	must(t, err)
	accounts, err := armstorage.NewAccountsClient(a.SubscriptionID, credential, options)
	must(t, err)
	poller, err := accounts.BeginCreate(t.Context(), group, name, armstorage.AccountCreateParameters{
		Kind: to.Ptr(armstorage.KindStorageV2), Location: to.Ptr(azureRegion), SKU: &armstorage.SKU{Name: to.Ptr(armstorage.SKUNameStandardZRS)},
	}, nil)
	must(t, err)
	_, err = poller.PollUntilDone(t.Context(), nil)
	must(t, err)
}

// makeContainer creates a container as somebody else would.
func makeContainer(t *testing.T, a *env.Azure, group, account, name string) {
	t.Helper()
	credential, options, err := a.ClientOptions()
	must(t, err)
	containers, err := armstorage.NewBlobContainersClient(a.SubscriptionID, credential, options)
	must(t, err)
	_, err = containers.Create(t.Context(), group, account, name, armstorage.BlobContainer{}, nil)
	must(t, err)
}

func blobs(t *testing.T, a *env.Azure, bucket, prefix string) []string {
	t.Helper()
	list, err := a.ListBlobs(t.Context(), bucket, prefix)
	must(t, err)
	var names []string
	for _, b := range list {
		names = append(names, b.Name)
	}
	slices.Sort(names)
	return names
}

func checkBlobs(t *testing.T, a *env.Azure, bucket, prefix string, want ...string) {
	t.Helper()
	if got := blobs(t, a, bucket, prefix); !slices.Equal(got, want) {
		t.Errorf("blobs under %q in container %s are %v, want %v", prefix, bucket, got, want)
	}
}

func TestAzureBucketIsCreatedLocked(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name, namespace := azureName(), newName("generated")
	createNamespace(t, namespace, nil)
	writeSecret(t, secretName(buckets, name), azure.SecretData())
	wanted := d.azureBucket(name, days(4, true))
	rotation(30, 90)(wanted)
	annotate(wanted, annotationGeneratedSecretNamespace, namespace)
	created := create(t, buckets, wanted)
	o := waitHealthy(t, buckets, name)

	group, err := azure.Group(name)
	must(t, err)
	account := azureAccount(t, azure, azureAccountName(name))
	container := azure.Container(name)
	var history []string
	for _, update := range container.History {
		history = append(history, fmt.Sprintf("%s %d", update.Update, update.Days))
	}
	secret := getSecret(t, namespace, generatedName(name))
	youngest := account.Keys[0]
	if account.Keys[1].Created.After(youngest.Created) {
		youngest = account.Keys[1]
	}
	domain := strings.TrimPrefix(strings.TrimSuffix(azure.BlobEndpoint, "/{account}"), "http://")
	immutable, hardened := conditionOf(o, "BucketImmutable"), conditionOf(o, "BucketHardened")
	for _, check := range []struct {
		what      string
		got, want any
	}{
		{"location of the group", group.Location, azureRegion},
		{"content of the group", group.Resources, []string{account.Name}},
		{"location of the account", property(account, "location"), azureRegion},
		{"kind", property(account, "kind"), "StorageV2"},
		{"sku", property(account, "sku", "name"), "Standard_ZRS"},
		{"access tier", property(account, "properties", "accessTier"), "Cool"},
		{"HTTPS only", property(account, "properties", "supportsHttpsTrafficOnly"), true},
		{"TLS", property(account, "properties", "minimumTlsVersion"), "TLS1_2"},
		{"public blob access", property(account, "properties", "allowBlobPublicAccess"), false},
		{"key expiration", property(account, "properties", "keyPolicy", "keyExpirationPeriodInDays"), float64(90)},
		{"containers", account.Containers, []string{name}},
		{"public access of the container", container.PublicAccess, "None"},
		{"policy", policyOf(azure, name), "Locked 4"},
		{"protected append writes", container.AppendWrites, false},
		{"history", history, []string{"put 4", "lock 4"}},
		{"generated secret", secret.Data, map[string][]byte{"storageAccount": []byte(account.Name), "storageKey": []byte(youngest.Value), "domain": []byte(domain)}},
		{"name of the generated secret", str(o, "status", "generatedSecretRef", "name"), generatedName(name)},
		{"namespace of the generated secret", str(o, "status", "generatedSecretRef", "namespace"), namespace},
		{"recorded retention", str(o, "status", "providerStatus", "immutability", "retentionPeriod"), "96h"},
		{"recorded lock", o.Object["status"].(map[string]any)["providerStatus"].(map[string]any)["immutability"].(map[string]any)["locked"], true},
		{"recorded mode", has(o, "status", "providerStatus", "immutability", "mode"), false},
		{"type of the operation", str(o, "status", "lastOperation", "type"), "Create"},
		{"progress", num(o, "status", "lastOperation", "progress"), int64(100)},
		{"finalizers", o.GetFinalizers(), []string{finalizerBackupBucket}},
		{"finalizers of the credentials", getSecret(t, gardenNamespace, secretName(buckets, name)).Finalizers, []string{finalizerBackupBucket}},
		{"condition BucketImmutable", []any{immutable["status"], immutable["reason"]}, []any{"True", "Locked"}},
		{"condition BucketHardened", []any{hardened["status"], hardened["reason"]}, []any{"True", "Hardened"}},
		{"spec", o.Object["spec"], created.Object["spec"]},
		{"generation", o.GetGeneration(), created.GetGeneration()},
	} {
		mustEqual(t, check.what, check.got, check.want)
	}
	checkSpecIsTheClients(t, o)
	noSecret(t, gardenNamespace, generatedName(name))

	const blob = "shoot--p--s--1/etcd-main/v2/Full"
	must(t, azure.PutBlob(t.Context(), name, blob, []byte("snapshot")))
	mustEqual(t, "error of deleting a retained blob", blobError(t, azure, account.Name, youngest.Value, name, blob), "BlobImmutableDueToPolicy")
	checkBlobs(t, azure, name, "", blob)

	bucket := "bucket=" + name
	for metric, want := range map[string]float64{
		"bucketwarden_backupbucket_locked":                        1,
		"bucketwarden_backupbucket_retention_seconds":             4 * 24 * 3600,
		"bucketwarden_backupbucket_desired_locked":                1,
		"bucketwarden_backupbucket_desired_retention_seconds":     4 * 24 * 3600,
		"bucketwarden_backupbucket_policy_drift_total":            0,
		"bucketwarden_backupbucket_policy_locks_total":            1,
		"bucketwarden_backupbucket_policy_extensions_remaining":   5,
		"bucketwarden_backupbucket_key_created_timestamp_seconds": float64(youngest.Created.Unix()),
		"bucketwarden_backupbucket_key_rotations_total":           0,
		"bucketwarden_policy_refusals_total":                      0,
	} {
		if got := d.value(t, metric, bucket); got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
	if got := d.value(t, "bucketwarden_backupbucket_info", bucket, "type="+d.kind, "region="+azureRegion); got != 1 {
		t.Errorf("bucketwarden_backupbucket_info is %v, want 1", got)
	}
	awaitEvent(t, "BucketCreated", name)
	awaitEvent(t, "PolicyLocked", name, "locked retention of 96h")

	// The annotation may change.
	reconcile(t, buckets, name, func(o *unstructured.Unstructured) {
		annotations := o.GetAnnotations()
		delete(annotations, annotationGeneratedSecretNamespace)
		o.SetAnnotations(annotations)
	})
	o = waitHealthy(t, buckets, name)
	mustEqual(t, "namespace of the generated secret", str(o, "status", "generatedSecretRef", "namespace"), gardenNamespace)
	mustEqual(t, "data of the secret that moved", getSecret(t, gardenNamespace, generatedName(name)).Data, secret.Data)
	noSecret(t, namespace, generatedName(name))
}

// gardenlet wants the generated secret and its reference before a success.
func TestAzureBucketWritesAreOrdered(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	early := make(chan string, 100)
	clear := azure.Fail(env.AzureFault{PathContains: name, Do: func() {
		secret, err := kube.Client.CoreV1().Secrets(gardenNamespace).Get(context.Background(), secretName(buckets, name), metav1.GetOptions{})
		if err != nil || !slices.Contains(secret.Finalizers, finalizerBackupBucket) {
			early <- "a request"
		}
	}})
	t.Cleanup(clear)
	object := record(t, buckets, "", name)
	generated := record(t, secrets, gardenNamespace, generatedName(name))
	d.createAzureBucket(t, name, days(4, true))
	if len(early) > 0 {
		t.Errorf("%d requests to Azure before the secret had its finalizer", len(early))
	}
	succeeded := object.await(t, "is Succeeded", func(s state) bool { return s.state() == "Succeeded" })
	published := generated.await(t, "exists", func(state) bool { return true })
	if published.revision > succeeded.revision || !has(succeeded.Unstructured, "status", "generatedSecretRef") {
		t.Errorf("the generated secret (%v) or its reference came after Succeeded (%v)", published, succeeded)
	}
	var order []string
	for _, r := range azure.Requests(name) {
		switch r.Operation {
		case "ResourceGroups_CreateOrUpdate", "StorageAccounts_Create", "BlobContainers_Create",
			"BlobContainers_CreateOrUpdateImmutabilityPolicy", "BlobContainers_LockImmutabilityPolicy":
			order = append(order, r.Operation)
		case "BlobContainers_Get", "BlobContainers_GetImmutabilityPolicy":
			order = append(order, "read")
		}
	}
	mustEqual(t, "order of the requests", slices.Compact(order), []string{
		"read", "ResourceGroups_CreateOrUpdate", "StorageAccounts_Create", "BlobContainers_Create",
		"read", "BlobContainers_CreateOrUpdateImmutabilityPolicy", "read", "BlobContainers_LockImmutabilityPolicy", "read",
	})
	t.Logf("creating a locked bucket takes %d requests: %v", len(azure.Requests(name)), operations(azure.Requests(name)))
}

func TestAzureRequestsOfABucket(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	d.createAzureBucket(t, name, days(4, true))
	d.awaitPassesSince(t, "backupbuckets", 0, 2)

	written, passes := d.requests(t, writes...), d.passes(t, "backupbuckets")
	azure.ResetRequests(name)
	d.awaitPassesSince(t, "backupbuckets", passes, 5)
	requests := azure.Requests(name)
	written, passes = d.requests(t, writes...)-written, d.passes(t, "backupbuckets")-passes
	// One more may just be at work. The lists are those of tombstones.
	n, lists := count(requests, "BlobContainers_Get"), count(requests, "ListBlobs")
	if n == 0 || lists == 0 || n+lists != len(requests) || float64(n) > passes+1 || float64(lists) > passes+1 || written != 0 {
		t.Errorf("%v verifications took the requests %v, and %v writes to the API server", passes, operations(requests), written)
	}
	t.Logf("%v verifications took %d requests", passes, len(requests))

	// A reconcile that changes nothing writes nothing but the object itself.
	secret := getSecret(t, gardenNamespace, generatedName(name))
	azure.ResetRequests(name)
	reconcile(t, buckets, name, nil)
	waitHealthy(t, buckets, name)
	requests = azure.Requests(name)
	// Verifications go on meanwhile.
	other := slices.DeleteFunc(operations(requests), func(operation string) bool {
		return operation == "BlobContainers_Get" || operation == "ListBlobs"
	})
	mustEqual(t, "requests of a reconcile that changes nothing, but for verifications", other, []string{"StorageAccounts_GetProperties", "StorageAccounts_ListKeys"})
	t.Logf("a reconcile that changes nothing made the requests %v", operations(requests))
	mustEqual(t, "version of the generated secret", getSecret(t, gardenNamespace, generatedName(name)).ResourceVersion, secret.ResourceVersion)

	// Nor does a restart.
	d.stop(t)
	version := get(t, buckets, name).GetResourceVersion()
	azure.ResetRequests(name)
	d.start(t)
	d.awaitPassesSince(t, "backupbuckets", 0, 3)
	mustEqual(t, "writes after the restart", d.requests(t, writes...), 0.0)
	mustEqual(t, "writes to Azure after the restart", len(azureWrites(azure.Requests(name))), 0)
	mustEqual(t, "version of the BackupBucket", get(t, buckets, name).GetResourceVersion(), version)
	d.awaitValue(t, 1, "bucketwarden_backupbucket_locked", "bucket="+name)
	d.awaitValue(t, 5, "bucketwarden_backupbucket_policy_extensions_remaining", "bucket="+name)
	if got := d.value(t, "bucketwarden_backupbucket_key_created_timestamp_seconds", "bucket="+name); got == 0 {
		t.Error("after a restart there is no age of the key")
	}
}

func TestAzurePolicyIsFreeWhileUnlocked(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	o := d.createAzureBucket(t, name, days(4, false))
	d.checkPolicy(t, name, "Unlocked 4")
	mustEqual(t, "reason of BucketImmutable", conditionOf(o, "BucketImmutable")["reason"], any("Unlocked"))
	mustEqual(t, "recorded lock", o.Object["status"].(map[string]any)["providerStatus"].(map[string]any)["immutability"].(map[string]any)["locked"], any(false))

	for _, step := range []struct {
		immutability map[string]any
		want         string
	}{
		{days(10, false), "Unlocked 10"},
		{days(1, false), "Unlocked 1"},
		{nil, "none"},
		{map[string]any{"retentionType": "bucket", "retentionPeriod": "72h"}, "Unlocked 3"},
		{days(2, true), "Locked 2"},
	} {
		reconcile(t, buckets, name, immutable(step.immutability))
		o = waitHealthy(t, buckets, name)
		d.checkPolicy(t, name, step.want)
		mustEqual(t, "append writes", azure.Container(name).AppendWrites, false)
		if step.immutability == nil && has(o, "status", "providerStatus", "immutability") {
			t.Errorf("providerStatus is %v without a policy", o.Object["status"])
		}
	}
	mustEqual(t, "refusals", d.value(t, "bucketwarden_policy_refusals_total", "bucket="+name), 0.0)
	mustEqual(t, "drift", d.value(t, "bucketwarden_backupbucket_policy_drift_total", "bucket="+name), 0.0)

	// What only has to be locked is not written once more.
	other := azureName()
	d.createAzureBucket(t, other, days(4, false))
	azure.ResetRequests(other)
	reconcile(t, buckets, other, immutable(days(4, true)))
	waitHealthy(t, buckets, other)
	mustEqual(t, "writes", operations(azureWrites(azure.Requests(other))), []string{"BlobContainers_LockImmutabilityPolicy"})
	d.checkPolicy(t, other, "Locked 4")
}

func TestAzureAppendWritesStayOff(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	d.createAzureBucket(t, name, days(4, false))
	must(t, azure.SetAppendWrites(name, true))
	reconcile(t, buckets, name, nil)
	waitHealthy(t, buckets, name)
	d.checkPolicy(t, name, "Unlocked 4")
	mustEqual(t, "append writes", azure.Container(name).AppendWrites, false)
}

// "between 1 and 146,000 days", which is more than a Go duration holds
// (learn.microsoft.com/azure/storage/blobs/immutable-time-based-retention-policy-overview).
func TestAzureLongestPolicy(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	d.createAzureBucket(t, name, days(146000, true))
	d.checkPolicy(t, name, "Locked 146000")
	d.awaitValue(t, 146000*24*3600, "bucketwarden_backupbucket_retention_seconds", "bucket="+name)
	// A blob that is retained for longer than a Go duration holds is retained all the same.
	entry, _ := newShoot(t)
	d.createAzureEntry(t, entry, name)
	must(t, azure.PutBlob(t.Context(), name, entry+"/x", []byte("x")))
	azure.ResetRequests(name)
	remove(t, entries, entry)
	waitGone(t, entries, entry)
	awaitEvent(t, "ObjectsRetained", entry, "1 objects", fmt.Sprintf("retained until %d", time.Now().AddDate(0, 0, 146000).Year()))
	mustEqual(t, "attempts to delete", count(azure.Requests(name), "BlobBatch"), 0)
	checkBlobs(t, azure, name, entry+"/", entry+"/x")
}

func TestAzureRefusesToWeakenALockedPolicy(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	d.createAzureBucket(t, name, days(4, true))
	azure.ResetRequests(name)
	for _, test := range []struct {
		reason, asked string
		immutability  map[string]any
	}{
		{"shorten", "locked retention of 24h", days(1, true)},
		{"unlock", "unlocked retention of 96h", days(4, false)},
		{"unlock", "unlocked retention of 240h", days(10, false)},
		{"disable", "no immutability", nil},
	} {
		refusals := d.value(t, "bucketwarden_policy_refusals_total", "bucket="+name, "reason="+test.reason)
		reconcile(t, buckets, name, immutable(test.immutability))
		waitFailed(t, buckets, name, codeConfiguration, "locked retention of 96h", test.asked, "retentionPeriod: 96h")
		awaitEvent(t, "WeakeningRefused", name, test.asked)
		written := d.requests(t, writes...)
		d.idle(t)
		d.awaitValue(t, refusals+1, "bucketwarden_policy_refusals_total", "bucket="+name, "reason="+test.reason)
		// Events are written a moment later.
		if got := d.requests(t, "PATCH", "PUT") - written; got > 0 {
			t.Errorf("a refused spec was written about %v more times", got)
		}
		d.checkPolicy(t, name, "Locked 4")
		mustEqual(t, "recorded retention", str(get(t, buckets, name), "status", "providerStatus", "immutability", "retentionPeriod"), "96h")
	}
	if got := azureWrites(azure.Requests(name)); len(got) > 0 {
		t.Errorf("refusals made the writes %v", operations(got))
	}
	reconcile(t, buckets, name, immutable(days(4, true)))
	waitHealthy(t, buckets, name)
}

func TestAzureExtensions(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	d.createAzureBucket(t, name, days(4, true))
	remaining := func(want float64) {
		t.Helper()
		d.awaitValue(t, want, "bucketwarden_backupbucket_policy_extensions_remaining", "bucket="+name)
	}
	for i := range 5 {
		remaining(float64(5 - i))
		if i == 4 {
			noEvent(t, "LastExtension", name)
		}
		azure.ResetRequests(name)
		reconcile(t, buckets, name, immutable(days(5+i, true)))
		waitHealthy(t, buckets, name)
		mustEqual(t, "writes", operations(azureWrites(azure.Requests(name))), []string{"BlobContainers_ExtendImmutabilityPolicy"})
		d.checkPolicy(t, name, fmt.Sprintf("Locked %d", 5+i))
	}
	remaining(0)
	awaitEvent(t, "LastExtension", name, "216h")

	azure.ResetRequests(name)
	reconcile(t, buckets, name, immutable(days(10, true)))
	waitFailed(t, buckets, name, codeConfiguration, "locked retention of 216h", "locked retention of 240h", "five times", "retentionPeriod: 216h")
	d.idle(t)
	d.checkPolicy(t, name, "Locked 9")
	if got := azureWrites(azure.Requests(name)); len(got) > 0 {
		t.Errorf("the sixth extension made the writes %v", operations(got))
	}
	mustEqual(t, "refused extensions", d.value(t, "bucketwarden_policy_refusals_total", "bucket="+name, "reason=extend"), 1.0)
	remaining(0)
	mustEqual(t, "locked", d.value(t, "bucketwarden_backupbucket_locked", "bucket="+name), 1.0)

	// What is live is fine, and what is less is refused as before.
	reconcile(t, buckets, name, immutable(days(9, true)))
	waitHealthy(t, buckets, name)
	reconcile(t, buckets, name, immutable(days(8, true)))
	waitFailed(t, buckets, name, codeConfiguration, "cannot be shortened")
}

// noEvent checks that there is no event about the object so far.
func noEvent(t *testing.T, reason, name string) {
	t.Helper()
	list, err := kube.Client.EventsV1().Events(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for _, event := range list.Items {
		if event.Regarding.Name == name && event.Reason == reason {
			t.Errorf("there is an event %s about %s: %s", reason, name, event.Note)
		}
	}
}

func TestAzureDriftIsRepaired(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	healed := d.createAzureBucket(t, name, days(4, false))
	drifts := 0.0
	check := func(event, found string) {
		t.Helper()
		drifts++
		d.awaitPolicy(t, name, "Unlocked 4")
		d.awaitValue(t, drifts, "bucketwarden_backupbucket_policy_drift_total", "bucket="+name)
		d.awaitValue(t, 4*24*3600, "bucketwarden_backupbucket_retention_seconds", "bucket="+name)
		awaitEvent(t, event, name, found)
		mustEqual(t, "state after a repair", str(get(t, buckets, name), "status", "lastOperation", "state"), "Succeeded")
	}
	must(t, azure.RemovePolicy(name))
	check("PolicyDrift", "said no immutability")
	must(t, azure.SetPolicy(name, 1, false))
	check("PolicyDrift", "said unlocked retention of 24h")

	// The container is gone with the account and the group.
	key := string(getSecret(t, gardenNamespace, generatedName(name)).Data["storageKey"])
	deleteGroup(t, azure, name)
	check("BucketLost", "created anew")
	eventually(t, "the generated secret has a key of the new account", func(ctx context.Context) error {
		secret, err := kube.Client.CoreV1().Secrets(gardenNamespace).Get(ctx, generatedName(name), metav1.GetOptions{})
		if err == nil && string(secret.Data["storageKey"]) == key {
			err = errors.New("it has the old one")
		}
		return err
	})
	if got, want := get(t, buckets, name).Object["spec"], healed.Object["spec"]; !equality.Semantic.DeepEqual(got, want) {
		t.Errorf("the spec became %v, was %v", got, want)
	}
}

func deleteAccount(t *testing.T, a *env.Azure, group, name string) {
	t.Helper()
	credential, options, err := a.ClientOptions()
	must(t, err)
	accounts, err := armstorage.NewAccountsClient(a.SubscriptionID, credential, options)
	must(t, err)
	_, err = accounts.Delete(t.Context(), group, name, nil)
	must(t, err)
}

func deleteGroup(t *testing.T, a *env.Azure, name string) {
	t.Helper()
	credential, options, err := a.ClientOptions()
	must(t, err)
	groups, err := armresources.NewResourceGroupsClient(a.SubscriptionID, credential, options)
	must(t, err)
	_, err = groups.BeginDelete(t.Context(), name, nil)
	must(t, err)
	eventually(t, "resource group "+name+" is gone", func(context.Context) error {
		if _, err := a.Group(name); !errors.Is(err, env.ErrAzureNotFound) {
			return errors.Join(err, errors.New("it is there"))
		}
		return nil
	})
}

// A lock that somebody else set is reported as it is.
func TestAzureForeignLocks(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)

	// Where nothing is asked for.
	name := azureName()
	account := azureAccountName(name)
	makeGroup(t, azure, name, nil)
	makeAccount(t, azure, name, account)
	makeContainer(t, azure, name, account, name)
	must(t, azure.SetPolicy(name, 7, true))
	o := d.createAzureBucket(t, name, nil)
	d.idle(t)
	d.checkPolicy(t, name, "Locked 7")
	immutability := conditionOf(o, "BucketImmutable")
	if immutability["status"] != "True" || immutability["reason"] != "Locked" || !strings.Contains(immutability["message"].(string), "not set by bucketwarden") {
		t.Errorf("condition BucketImmutable is %v", immutability)
	}
	if has(o, "status", "providerStatus", "immutability") {
		t.Errorf("providerStatus claims a foreign policy: %v", o.Object["status"])
	}
	mustEqual(t, "locked", d.value(t, "bucketwarden_backupbucket_locked", "bucket="+name), 1.0)
	mustEqual(t, "retention", d.value(t, "bucketwarden_backupbucket_retention_seconds", "bucket="+name), 7.0*24*3600)
	mustEqual(t, "ForeignPolicy", conditionOf(o, "ForeignPolicy")["status"], any("True"))
	awaitEvent(t, "ForeignPolicy", name, "168h", "no immutability")
	// Asked for less, it is left and no failure, and what was asked for is ours; asked for more, all of it is.
	reconcile(t, buckets, name, immutable(days(4, true)))
	o = waitHealthy(t, buckets, name)
	mustEqual(t, "recorded", str(o, "status", "providerStatus", "immutability", "retentionPeriod"), "96h")
	mustEqual(t, "ForeignPolicy", conditionOf(o, "ForeignPolicy")["status"], any("True"))
	reconcile(t, buckets, name, immutable(days(8, true)))
	o = waitHealthy(t, buckets, name)
	d.checkPolicy(t, name, "Locked 8")
	mustEqual(t, "ForeignPolicy", conditionOf(o, "ForeignPolicy")["status"], any("False"))
	d.awaitValue(t, 4, "bucketwarden_backupbucket_policy_extensions_remaining", "bucket="+name)
	// Somebody extends it: no failure of a verification either, and entries are not in its way.
	must(t, azure.SetPolicy(name, 11, true))
	d.awaitValue(t, 1, "bucketwarden_backupbucket_foreign_policy", "bucket="+name)
	awaitEvent(t, "ForeignPolicy", name, "264h", "192h")
	mustEqual(t, "state", str(get(t, buckets, name), "status", "lastOperation", "state"), "Succeeded")
	azure.ResetRequests(name)
	reconcile(t, buckets, name, immutable(days(9, true)))
	o = waitHealthy(t, buckets, name)
	mustEqual(t, "recorded", str(o, "status", "providerStatus", "immutability", "retentionPeriod"), "216h")
	mustEqual(t, "writes", len(azureWrites(azure.Requests(name))), 0)
	// What was asked for is a promise.
	reconcile(t, buckets, name, immutable(days(8, true)))
	waitFailed(t, buckets, name, codeConfiguration, "locked retention of 216h", "cannot be shortened")

	// Where an unlocked policy is asked for.
	name = azureName()
	d.createAzureBucket(t, name, days(4, false))
	must(t, azure.SetPolicy(name, 4, true))
	d.awaitValue(t, 1, "bucketwarden_backupbucket_locked", "bucket="+name)
	awaitEvent(t, "ForeignPolicy", name, "locked retention of 96h")
	o = waitHealthy(t, buckets, name)
	mustEqual(t, "reason of BucketImmutable", conditionOf(o, "BucketImmutable")["reason"], any("Locked"))
	azure.ResetRequests(name)
	reconcile(t, buckets, name, immutable(days(4, true)))
	waitHealthy(t, buckets, name)
	mustEqual(t, "writes", len(azureWrites(azure.Requests(name))), 0)

	// An unlocked one that nobody asked for stays as well.
	name = azureName()
	d.createAzureBucket(t, name, nil)
	must(t, azure.SetPolicy(name, 3, false))
	d.awaitValue(t, 3*24*3600, "bucketwarden_backupbucket_retention_seconds", "bucket="+name)
	reconcile(t, buckets, name, nil)
	o = waitHealthy(t, buckets, name)
	d.checkPolicy(t, name, "Unlocked 3")
	if message, _ := conditionOf(o, "BucketImmutable")["message"].(string); !strings.Contains(message, "not set by bucketwarden") {
		t.Errorf("the condition does not report the foreign policy: %q", message)
	}
}

func TestAzureAdopts(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	for what, account := range map[string]string{"the account of that name": "", "the account that the generated secret names": "adopted" + strings.ReplaceAll(newName("x"), "-", "")} {
		t.Run(what, func(t *testing.T) {
			name := azureName()
			if account == "" {
				account = azureAccountName(name)
			} else {
				must(t, createSecret(t, gardenNamespace, generatedName(name), map[string][]byte{"storageAccount": []byte(account), "storageKey": []byte("b2xk"), "domain": []byte("example.com")}))
			}
			makeGroup(t, azure, name, map[string]*string{"owner": to.Ptr("somebody")})
			makeAccount(t, azure, name, account)
			makeContainer(t, azure, name, account, name)
			must(t, azure.SetPolicy(name, 2, false))
			must(t, azure.PutBlob(t.Context(), name, "old", []byte("x")))
			before := azureAccount(t, azure, account)
			d.createAzureBucket(t, name, days(4, true))

			d.checkPolicy(t, name, "Locked 4")
			mustEqual(t, "account of the container", azure.Container(name).Account, account)
			checkBlobs(t, azure, name, "", "old")
			secret := getSecret(t, gardenNamespace, generatedName(name))
			mustEqual(t, "published account", string(secret.Data["storageAccount"]), account)
			if key := string(secret.Data["storageKey"]); key != before.Keys[0].Value && key != before.Keys[1].Value {
				t.Error("the published key is not one of the account's")
			}
			if !slices.Equal(azureAccount(t, azure, account).Keys, before.Keys) {
				t.Error("the keys were changed")
			}
			group, err := azure.Group(name)
			must(t, err)
			mustEqual(t, "tags of the group", group.Tags, map[string]any{"owner": "somebody"})
			mustEqual(t, "content of the group", group.Resources, []string{account})
			// Azure's default is TLS 1.0.
			mustEqual(t, "TLS", property(azureAccount(t, azure, account), "properties", "minimumTlsVersion"), any("TLS1_2"))
			for _, operation := range []string{"ResourceGroups_CreateOrUpdate", "StorageAccounts_Create", "BlobContainers_Create", "StorageAccounts_RegenerateKey"} {
				mustEqual(t, operation, count(azure.Requests(name), operation), 0)
			}
			azure.ResetRequests(name)
			d.idle(t)
			mustEqual(t, "writes of verifications", len(azureWrites(azure.Requests(name))), 0)
		})
	}
	t.Run("an empty resource group", func(t *testing.T) {
		name := azureName()
		makeGroup(t, azure, name, map[string]*string{"owner": to.Ptr("somebody")})
		d.createAzureBucket(t, name, days(4, true))
		group, err := azure.Group(name)
		must(t, err)
		mustEqual(t, "tags of the group", group.Tags, map[string]any{"owner": "somebody"})
		d.checkPolicy(t, name, "Locked 4")
	})
	t.Run("an account without the container", func(t *testing.T) {
		name := azureName()
		makeGroup(t, azure, name, nil)
		makeAccount(t, azure, name, azureAccountName(name))
		d.createAzureBucket(t, name, days(4, true))
		d.checkPolicy(t, name, "Locked 4")
		mustEqual(t, "account creations", count(azure.Requests(name), "StorageAccounts_Create"), 0)
		mustEqual(t, "TLS", property(azureAccount(t, azure, azureAccountName(name)), "properties", "minimumTlsVersion"), any("TLS1_2"))
	})
}

// createSecret creates a secret as another controller would.
func createSecret(t *testing.T, namespace, name string, data map[string][]byte) error {
	t.Helper()
	_, err := kube.Client.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}, metav1.CreateOptions{})
	return err
}

func TestAzureHardening(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	account := azureAccountName(name)
	writeSecret(t, secretName(buckets, name), azure.SecretData())
	wanted := d.azureBucket(name, days(4, true))
	rotation(30, 90)(wanted)
	create(t, buckets, wanted)
	waitHealthy(t, buckets, name)

	foreign := map[string]any{
		"tags.owner":             "somebody",
		"properties.accessTier":  "Hot",
		"properties.networkAcls": map[string]any{"defaultAction": "Deny", "bypass": "AzureServices", "ipRules": []any{map[string]any{"value": "192.0.2.1", "action": "Allow"}}},
	}
	for path, value := range foreign {
		must(t, azure.SetAccountProperty(account, path, value))
	}
	good := map[string]any{
		"properties.supportsHttpsTrafficOnly": true, "properties.minimumTlsVersion": "TLS1_2", "properties.allowBlobPublicAccess": false,
		"properties.keyPolicy": map[string]any{"keyExpirationPeriodInDays": float64(90)},
	}
	check := func() {
		t.Helper()
		now := azureAccount(t, azure, account)
		for _, want := range []map[string]any{good, foreign} {
			for path, value := range want {
				mustEqual(t, path, property(now, strings.Split(path, ".")...), value)
			}
		}
	}
	for path, weak := range map[string]any{
		"properties.supportsHttpsTrafficOnly": false, "properties.minimumTlsVersion": "TLS1_0", "properties.allowBlobPublicAccess": true,
		"properties.keyPolicy": map[string]any{"keyExpirationPeriodInDays": float64(365)},
	} {
		must(t, azure.SetAccountProperty(account, path, weak))
		azure.ResetRequests(name)
		reconcile(t, buckets, name, nil)
		o := waitHealthy(t, buckets, name)
		check()
		mustEqual(t, "writes for "+path, operations(azureWrites(azure.Requests(name))), []string{"StorageAccounts_Update"})
		mustEqual(t, "BucketHardened", conditionOf(o, "BucketHardened")["status"], any("True"))
	}
	// What is stronger stays; what cannot be changed is told and left.
	must(t, azure.SetAccountProperty(account, "properties.minimumTlsVersion", "TLS1_3"))
	must(t, azure.SetAccountProperty(account, "properties.allowSharedKeyAccess", false))
	must(t, azure.SetPublicAccess(name, "Blob"))
	azure.ResetRequests(name)
	reconcile(t, buckets, name, nil)
	o := waitHealthy(t, buckets, name)
	mustEqual(t, "writes", len(azureWrites(azure.Requests(name))), 0)
	mustEqual(t, "TLS", property(azureAccount(t, azure, account), "properties", "minimumTlsVersion"), any("TLS1_3"))
	hardened := conditionOf(o, "BucketHardened")
	for _, part := range []string{"access with keys", "public access"} {
		if message, _ := hardened["message"].(string); hardened["status"] != "False" || !strings.Contains(message, part) {
			t.Errorf("condition BucketHardened does not tell of %s: %v", part, hardened)
		}
	}
	must(t, azure.SetAccountProperty(account, "properties.allowSharedKeyAccess", nil))
}

// Whatever happens between a read and a write, the write carries the etag of what was read.
func TestAzureStaleETags(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	t.Run("protected append writes are off before the lock", func(t *testing.T) {
		name := azureName()
		d.createAzureBucket(t, name, days(4, false))
		must(t, azure.SetAppendWrites(name, true))
		reconcile(t, buckets, name, immutable(days(4, true)))
		waitHealthy(t, buckets, name)
		d.checkPolicy(t, name, "Locked 4")
		mustEqual(t, "append writes", azure.Container(name).AppendWrites, false)
	})
	healthyWithoutError := func(t *testing.T, states *recorder, name string) {
		t.Helper()
		waitHealthy(t, buckets, name)
		for _, s := range states.seen() {
			if s.state() == "Error" {
				t.Errorf("a stale etag became an error: %v", str(s.Unstructured, "status", "lastError", "description"))
			}
		}
	}
	for _, operation := range []string{"BlobContainers_CreateOrUpdateImmutabilityPolicy", "BlobContainers_LockImmutabilityPolicy", "BlobContainers_ExtendImmutabilityPolicy"} {
		t.Run(operation, func(t *testing.T) {
			name := azureName()
			d.createAzureBucket(t, name, days(2, operation == "BlobContainers_ExtendImmutabilityPolicy"))
			states := record(t, buckets, "", name)
			azure.Fail(env.AzureFault{Operation: operation, PathContains: name, Status: http.StatusPreconditionFailed, Times: 1})
			reconcile(t, buckets, name, immutable(days(4, true)))
			healthyWithoutError(t, states, name)
			d.checkPolicy(t, name, "Locked 4")
		})
	}
	t.Run("shortened right before the lock", func(t *testing.T) {
		name := azureName()
		d.createAzureBucket(t, name, days(4, false))
		states := record(t, buckets, "", name)
		azure.Fail(env.AzureFault{Operation: "BlobContainers_LockImmutabilityPolicy", PathContains: name, Times: 1, Do: func() {
			if err := azure.SetPolicy(name, 1, false); err != nil {
				t.Error(err)
			}
		}})
		reconcile(t, buckets, name, immutable(days(4, true)))
		healthyWithoutError(t, states, name)
		d.checkPolicy(t, name, "Locked 4")
		for _, update := range azure.Container(name).History {
			mustEqual(t, "days in the history of the lock", update.Days, int32(4))
		}
	})
	t.Run("locked by somebody else right before the lock", func(t *testing.T) {
		name := azureName()
		d.createAzureBucket(t, name, days(4, false))
		azure.Fail(env.AzureFault{Operation: "BlobContainers_LockImmutabilityPolicy", PathContains: name, Times: 1, Do: func() {
			if err := azure.SetPolicy(name, 6, true); err != nil {
				t.Error(err)
			}
		}})
		reconcile(t, buckets, name, immutable(days(4, true)))
		waitForeign(t, name)
		d.checkPolicy(t, name, "Locked 6")
	})
	t.Run("locked right before a change", func(t *testing.T) {
		name := azureName()
		d.createAzureBucket(t, name, days(4, false))
		azure.Fail(env.AzureFault{Operation: "BlobContainers_CreateOrUpdateImmutabilityPolicy", PathContains: name, Times: 1, Do: func() {
			if err := azure.SetPolicy(name, 4, true); err != nil {
				t.Error(err)
			}
		}})
		reconcile(t, buckets, name, immutable(days(2, false)))
		waitForeign(t, name)
		d.checkPolicy(t, name, "Locked 4")
	})
}

// waitForeign waits until a bucket is healthy with a policy that somebody else made stronger.
func waitForeign(t *testing.T, name string) {
	t.Helper()
	waitFor(t, buckets, name, func(o *unstructured.Unstructured) error {
		if status := conditionOf(o, "ForeignPolicy")["status"]; status != "True" {
			return fmt.Errorf("the condition ForeignPolicy is %v", status)
		}
		return healthy(o)
	})
}

// published returns the key that the generated secret of a bucket publishes.
func published(t *testing.T, bucket string) string {
	t.Helper()
	return string(getSecret(t, gardenNamespace, generatedName(bucket)).Data["storageKey"])
}

// awaitPublished waits until the generated secret publishes another key.
func awaitPublished(t *testing.T, bucket, before string) (key string) {
	t.Helper()
	eventually(t, "another key of bucket "+bucket+" is published", func(ctx context.Context) error {
		secret, err := kube.Client.CoreV1().Secrets(gardenNamespace).Get(ctx, generatedName(bucket), metav1.GetOptions{})
		if err == nil && string(secret.Data["storageKey"]) == before {
			err = errors.New("it is the same")
		}
		if err == nil {
			key = string(secret.Data["storageKey"])
		}
		return err
	})
	return key
}

// checkRotated checks that exactly one key was regenerated since before, that it is the
// published one, and that the one published before is still the other one.
func checkRotated(t *testing.T, a *env.Azure, account string, before env.AzureAccount, was, now string) {
	t.Helper()
	keys := azureAccount(t, a, account).Keys
	changed := 0
	for i, key := range keys {
		if key.Value == before.Keys[i].Value {
			mustEqual(t, "the key that stays", key.Value, was)
			continue
		}
		changed++
		mustEqual(t, "published key", now, key.Value)
	}
	mustEqual(t, "regenerated keys", changed, 1)
}

// rotateRequested asks for a rotation, and for nothing else.
func rotateRequested(t *testing.T, name string) {
	t.Helper()
	update(t, buckets, name, func(o *unstructured.Unstructured) { annotate(o, annotationRotate, "true") })
}

// awaitRotateRemoved waits until the request is gone.
func awaitRotateRemoved(t *testing.T, name string) {
	t.Helper()
	waitFor(t, buckets, name, func(o *unstructured.Unstructured) error {
		if o == nil {
			return errors.New("it does not exist")
		}
		if _, ok := o.GetAnnotations()[annotationRotate]; ok {
			return errors.New("it still has the annotation")
		}
		return env.Healthy(o)
	})
}

const regenerateKey = "StorageAccounts_RegenerateKey"

func TestAzureKeyRotationByAge(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	account := azureAccountName(name)
	writeSecret(t, secretName(buckets, name), azure.SecretData())
	wanted := d.azureBucket(name, nil)
	rotation(2, 7)(wanted)
	create(t, buckets, wanted)
	waitHealthy(t, buckets, name)
	d.idle(t)
	mustEqual(t, "regenerated keys of a new account", count(azure.Requests(name), regenerateKey), 0)

	// Both keys are old, and then of unknown age.
	for _, created := range []time.Time{azure.Now().Add(-49 * time.Hour), {}} {
		first := published(t, name)
		for _, key := range []string{"key1", "key2"} {
			must(t, azure.SetKeyCreated(account, key, created))
		}
		changeSecret(t, gardenNamespace, generatedName(name), func(s *corev1.Secret) { s.Annotations = nil })
		before := azureAccount(t, azure, account)
		azure.ResetRequests(name)
		reconcile(t, buckets, name, nil)
		waitHealthy(t, buckets, name)
		now := published(t, name)
		checkRotated(t, azure, account, before, first, now)
		var fresh time.Time
		for _, key := range azureAccount(t, azure, account).Keys {
			if key.Value == now {
				fresh = key.Created
			}
			if created.IsZero() {
				// Azure may never know, and that is no reason to rotate again and again.
				must(t, azure.SetKeyCreated(account, key.Name, time.Time{}))
			}
		}
		d.idle(t)
		reconcile(t, buckets, name, nil)
		waitHealthy(t, buckets, name)
		mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 1)
		mustEqual(t, "age of the key", d.value(t, "bucketwarden_backupbucket_key_created_timestamp_seconds", "bucket="+name), float64(fresh.Unix()))
	}
	mustEqual(t, "rotations", d.value(t, "bucketwarden_backupbucket_key_rotations_total", "bucket="+name), 2.0)
	awaitEvent(t, "KeyRotated", name)

	// A verification notices as well, from the age that the secret tells.
	first := published(t, name)
	old := azure.Now().Add(-50 * time.Hour)
	for _, key := range azureAccount(t, azure, account).Keys {
		created := old
		if key.Value != first {
			created = old.Add(-time.Hour)
		}
		must(t, azure.SetKeyCreated(account, key.Name, created))
	}
	before := azureAccount(t, azure, account)
	changeSecret(t, gardenNamespace, generatedName(name), func(s *corev1.Secret) {
		for key := range s.Annotations {
			if strings.HasPrefix(key, "bucketwarden") {
				s.Annotations[key] = old.Format(time.RFC3339)
			}
		}
	})
	checkRotated(t, azure, account, before, first, awaitPublished(t, name, first))

	// Without rotationConfig, age is nothing.
	reconcile(t, buckets, name, func(o *unstructured.Unstructured) {
		unstructured.RemoveNestedField(o.Object, "spec", "providerConfig", "rotationConfig")
	})
	waitHealthy(t, buckets, name)
	for _, key := range []string{"key1", "key2"} {
		must(t, azure.SetKeyCreated(account, key, old))
	}
	azure.ResetRequests(name)
	reconcile(t, buckets, name, nil)
	waitHealthy(t, buckets, name)
	d.idle(t)
	mustEqual(t, "regenerated keys without rotationConfig", count(azure.Requests(name), regenerateKey), 0)
}

func TestAzureKeyRotationOnRequest(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	for what, configure := range map[string]func(*unstructured.Unstructured){"without rotationConfig": func(*unstructured.Unstructured) {}, "with rotationConfig": rotation(30, 90)} {
		t.Run(what, func(t *testing.T) {
			name := azureName()
			account := azureAccountName(name)
			writeSecret(t, secretName(buckets, name), azure.SecretData())
			wanted := d.azureBucket(name, days(4, true))
			configure(wanted)
			// A request that comes with the creation finds nothing to rotate.
			annotate(wanted, annotationRotate, "true")
			create(t, buckets, wanted)
			awaitRotateRemoved(t, name)
			mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 0)
			const blob = "blob"
			must(t, azure.PutBlob(t.Context(), name, blob, []byte("x")))

			for range 2 {
				before, was := azureAccount(t, azure, account), published(t, name)
				azure.ResetRequests(name)
				rotateRequested(t, name)
				awaitRotateRemoved(t, name)
				now := awaitPublished(t, name, was)
				checkRotated(t, azure, account, before, was, now)
				d.idle(t)
				mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 1)
				// The one published before is valid until the next rotation; the one before
				// that is not.
				for _, key := range []string{was, now} {
					mustEqual(t, "error with a valid key", blobError(t, azure, account, key, name, blob), "BlobImmutableDueToPolicy")
				}
				for _, key := range before.Keys {
					if key.Value != was {
						mustEqual(t, "error with a replaced key", blobError(t, azure, account, key.Value, name, blob), "AuthenticationFailed")
					}
				}
			}
			mustEqual(t, "rotations", d.value(t, "bucketwarden_backupbucket_key_rotations_total", "bucket="+name), 2.0)

			// Together with a reconcile it is one rotation as well.
			before, was := azureAccount(t, azure, account), published(t, name)
			azure.ResetRequests(name)
			reconcile(t, buckets, name, func(o *unstructured.Unstructured) { annotate(o, annotationRotate, "true") })
			awaitRotateRemoved(t, name)
			checkRotated(t, azure, account, before, was, awaitPublished(t, name, was))
			d.idle(t)
			mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 1)

			// Only true is a request.
			update(t, buckets, name, func(o *unstructured.Unstructured) { annotate(o, annotationRotate, "false") })
			d.idle(t)
			mustEqual(t, "annotation", get(t, buckets, name).GetAnnotations()[annotationRotate], "false")
			mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 1)
		})
	}
}

// A request is taken back even if the spec is refused.
func TestAzureKeyRotationOfARefusedBucket(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	d.createAzureBucket(t, name, days(4, true))
	reconcile(t, buckets, name, immutable(days(1, true)))
	waitFailed(t, buckets, name, codeConfiguration)
	was := published(t, name)
	rotateRequested(t, name)
	awaitPublished(t, name, was)
	waitFor(t, buckets, name, func(o *unstructured.Unstructured) error {
		if _, ok := o.GetAnnotations()[annotationRotate]; ok {
			return errors.New("it still has the annotation")
		}
		return failed(codeConfiguration, "cannot be shortened")(o)
	})
	d.idle(t)
	mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 1)
}

// What is cut off between the new key and its publication is finished, and no key is
// regenerated once more: that would end the access of everybody who uses the published one.
func TestAzureKeyRotationIsCutOff(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	setUp := func(t *testing.T) (name, account, was string, before env.AzureAccount) {
		t.Helper()
		name = azureName()
		account = azureAccountName(name)
		d.createAzureBucket(t, name, nil)
		azure.ResetRequests(name)
		return name, account, published(t, name), azureAccount(t, azure, account)
	}
	t.Run("killed", func(t *testing.T) {
		name, account, was, before := setUp(t)
		azure.Fail(env.AzureFault{Operation: regenerateKey, PathContains: account, Times: 1, DropAnswer: true})
		// Nothing more may be done until the daemon is gone.
		clear := azure.Fail(env.AzureFault{Operation: regenerateKey, PathContains: account, Drop: true})
		rotateRequested(t, name)
		eventually(t, "the key is regenerated", func(context.Context) error {
			if count(azure.Requests(name), regenerateKey) == 0 {
				return errors.New("not yet")
			}
			return nil
		})
		d.Kill()
		clear()
		mustEqual(t, "published key", published(t, name), was)
		azure.ResetRequests(name)
		d.start(t)
		awaitRotateRemoved(t, name)
		checkRotated(t, azure, account, before, was, awaitPublished(t, name, was))
		d.idle(t)
		mustEqual(t, "keys regenerated once more", count(azure.Requests(name), regenerateKey), 0)
	})
	t.Run("the secret cannot be written", func(t *testing.T) {
		name, account, was, before := setUp(t)
		changeSecret(t, gardenNamespace, generatedName(name), func(s *corev1.Secret) { s.Immutable = to.Ptr(true) })
		rotateRequested(t, name)
		waitFailed(t, buckets, name, "", generatedName(name))
		d.stop(t)
		d.start(t)
		d.idle(t)
		mustEqual(t, "published key", published(t, name), was)
		mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 1)
		if err := kube.Client.CoreV1().Secrets(gardenNamespace).Delete(t.Context(), generatedName(name), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		reconcile(t, buckets, name, nil)
		awaitRotateRemoved(t, name)
		checkRotated(t, azure, account, before, was, published(t, name))
		mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 1)
	})
	t.Run("the answer is lost", func(t *testing.T) {
		name, account, was, before := setUp(t)
		azure.Fail(env.AzureFault{Operation: regenerateKey, PathContains: account, Times: 1, DropAnswer: true})
		rotateRequested(t, name)
		awaitRotateRemoved(t, name)
		checkRotated(t, azure, account, before, was, awaitPublished(t, name, was))
		d.idle(t)
		mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 1)
	})
}

// However the daemon ends, what it left is finished by the next one.
func TestAzureKilledWhileCreating(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	for _, operation := range []string{
		"ResourceGroups_CreateOrUpdate", "StorageAccounts_Create", "BlobContainers_Create",
		"BlobContainers_CreateOrUpdateImmutabilityPolicy", "BlobContainers_LockImmutabilityPolicy", "StorageAccounts_ListKeys",
	} {
		t.Run(operation, func(t *testing.T) {
			name := azureName()
			killed := make(chan struct{})
			azure.Fail(env.AzureFault{Operation: operation, PathContains: name, Times: 1, DropAnswer: true, Do: func() {
				d.Kill()
				close(killed)
			}})
			writeSecret(t, secretName(buckets, name), azure.SecretData())
			create(t, buckets, d.azureBucket(name, days(4, true)))
			awaitSignal(t, operation, killed)
			d.start(t)
			waitHealthy(t, buckets, name)
			d.checkPolicy(t, name, "Locked 4")
			if key := published(t, name); key == "" {
				t.Error("no key is published")
			}
		})
	}
	t.Run("while the account is created", func(t *testing.T) {
		name := azureName()
		release := azure.HoldOperations(name)
		t.Cleanup(release)
		writeSecret(t, secretName(buckets, name), azure.SecretData())
		create(t, buckets, d.azureBucket(name, days(4, true)))
		eventually(t, "the creation of the account has begun", func(context.Context) error {
			if count(azure.Requests(name), "StorageAccounts_Create") == 0 {
				return errors.New("not yet")
			}
			return nil
		})
		d.Kill()
		d.start(t)
		waitFailed(t, buckets, name, codeRetryableDependencies)
		release()
		waitHealthy(t, buckets, name)
		mustEqual(t, "account creations", count(azure.Requests(name), "StorageAccounts_Create"), 1)
	})
}

// The generated secret is the daemon's: what others did to it is repaired.
func TestAzureGeneratedSecretIsRestored(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	d.createAzureBucket(t, name, nil)
	want := getSecret(t, gardenNamespace, generatedName(name)).Data

	// A verification notices that it is gone.
	must(t, kube.Client.CoreV1().Secrets(gardenNamespace).Delete(t.Context(), generatedName(name), metav1.DeleteOptions{}))
	eventually(t, "the generated secret is back", func(ctx context.Context) error {
		_, err := kube.Client.CoreV1().Secrets(gardenNamespace).Get(ctx, generatedName(name), metav1.GetOptions{})
		return err
	})
	mustEqual(t, "data", getSecret(t, gardenNamespace, generatedName(name)).Data, want)
	// A reconcile replaces the whole data.
	changeSecret(t, gardenNamespace, generatedName(name), func(s *corev1.Secret) {
		s.Data["stale"] = []byte("x")
		s.Data["domain"] = []byte("example.com")
	})
	reconcile(t, buckets, name, nil)
	waitHealthy(t, buckets, name)
	mustEqual(t, "data", getSecret(t, gardenNamespace, generatedName(name)).Data, want)
	mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 0)

	// Its namespace may come later.
	name, namespace := azureName(), newName("generated")
	writeSecret(t, secretName(buckets, name), azure.SecretData())
	o := d.azureBucket(name, nil)
	annotate(o, annotationGeneratedSecretNamespace, namespace)
	create(t, buckets, o)
	waitFailed(t, buckets, name, "", namespace)
	createNamespace(t, namespace, nil)
	waitHealthy(t, buckets, name)
	getSecret(t, namespace, generatedName(name))
	mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 0)
}

func TestAzureWorkloadIdentity(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	labels := map[string]string{
		"security.gardener.cloud/purpose":                   "workload-identity-token-requestor",
		"workloadidentity.security.gardener.cloud/provider": d.kind,
	}
	identity := azure.WorkloadIdentityData()
	config := map[string][]byte{"token": identity["token"], "config": fmt.Appendf(nil,
		`{"apiVersion":"azure.provider.extensions.gardener.cloud/v1alpha1","kind":"WorkloadIdentityConfig","subscriptionID":%q,"tenantID":%q,"clientID":%q}`,
		azure.SubscriptionID, azure.TenantID, azure.ClientID)}
	for what, data := range map[string]map[string][]byte{"IDs": identity, "config": config} {
		t.Run(what, func(t *testing.T) {
			name := azureName()
			writeSecret(t, secretName(buckets, name), data)
			changeSecret(t, gardenNamespace, secretName(buckets, name), func(s *corev1.Secret) { s.Labels = labels })
			create(t, buckets, d.azureBucket(name, days(4, true)))
			waitHealthy(t, buckets, name)
			d.checkPolicy(t, name, "Locked 4")
			mustEqual(t, "published account", string(getSecret(t, gardenNamespace, generatedName(name)).Data["storageAccount"]), azureAccountName(name))

			// gardenlet's token requestor renews the token; one that Entra does not know is told.
			changeSecret(t, gardenNamespace, secretName(buckets, name), func(s *corev1.Secret) { s.Data["token"] = []byte("not-the-token") })
			reconcile(t, buckets, name, nil)
			waitFailed(t, buckets, name, codeUnauthenticated, "token")
			changeSecret(t, gardenNamespace, secretName(buckets, name), func(s *corev1.Secret) { s.Data["token"] = identity["token"] })
			waitHealthy(t, buckets, name)

			remove(t, buckets, name)
			waitGone(t, buckets, name)
			if _, err := azure.Group(name); !errors.Is(err, env.ErrAzureNotFound) {
				t.Errorf("the resource group is still there: %v", err)
			}
		})
	}
}

// Values of secrets must not appear anywhere but in secrets.
func TestAzureSecretsStaySecret(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t, "-v=7")
	good := azure.SecretData()
	marker := func(what string) []byte { return []byte("Marker" + what + "Marker") }
	name := azureName()
	d.createAzureBucket(t, name, days(4, true))
	entry, _ := newShoot(t)
	must(t, azure.PutBlob(t.Context(), name, entry+"/x", []byte("x")))
	d.createAzureEntry(t, entry, name)
	waitHealthy(t, entries, entry)
	rotateRequested(t, name)
	awaitRotateRemoved(t, name)
	remove(t, entries, entry)
	waitGone(t, entries, entry)
	secretValues := []string{"Marker", azure.ClientSecret, azure.Token}
	for _, key := range azureAccount(t, azure, azureAccountName(name)).Keys {
		secretValues = append(secretValues, key.Value)
	}

	for what, data := range map[string]map[string][]byte{
		"secret":       with(good, map[string][]byte{"clientSecret": marker("Secret")}),
		"both":         with(good, map[string][]byte{"token": marker("Token")}),
		"token":        with(azure.WorkloadIdentityData(), map[string][]byte{"token": marker("OtherToken")}),
		"config":       {"token": marker("ThirdToken"), "config": marker("Config")},
		"client":       with(good, map[string][]byte{"clientID": []byte("Marker and a space")}),
		"subscription": with(good, map[string][]byte{"subscriptionID": []byte("../Marker")}),
	} {
		name := azureName()
		writeSecret(t, secretName(buckets, name), data)
		create(t, buckets, d.azureBucket(name, days(4, true)))
		t.Log(what, str(waitFor(t, buckets, name, inState("Error")), "status", "lastError", "description"))
	}
	for what, data := range map[string]map[string][]byte{
		"wrong key":   {"storageAccount": []byte(azureAccountName(name)), "storageKey": []byte("TWFya2VyTWFya2Vy"), "domain": []byte(strings.TrimSuffix(strings.TrimPrefix(azure.BlobEndpoint, "http://"), "/{account}"))},
		"no base64":   {"storageAccount": []byte(azureAccountName(name)), "storageKey": marker("Key!")},
		"bad account": {"storageAccount": marker("Account"), "storageKey": []byte("TWFya2VyTWFya2Vy")},
		"bad domain":  {"storageAccount": []byte(azureAccountName(name)), "storageKey": []byte("TWFya2VyTWFya2Vy"), "domain": []byte("http://user:Marker@x")},
	} {
		entry, _ := newShoot(t)
		writeSecret(t, secretName(entries, entry), data)
		create(t, entries, d.azureEntry(entry, name))
		waitFor(t, entries, entry, func(o *unstructured.Unstructured) error {
			if err := inState("Error")(o); err != nil {
				return inState("Succeeded")(o)
			}
			return nil
		})
		remove(t, entries, entry)
		o := waitFor(t, entries, entry, func(o *unstructured.Unstructured) error {
			if o == nil {
				return nil // it was never ready
			}
			if str(o, "status", "lastOperation", "type") != "Delete" {
				return errors.New("deletion has not begun")
			}
			return inState("Error")(o)
		})
		if o != nil {
			t.Log(what, str(o, "status", "lastError", "description"))
		}
	}
	secretValues = append(secretValues, "TWFya2VyTWFya2Vy")

	places := map[string]string{"the metrics": metricsText(t, d), "the log": d.allLogs()}
	events, err := kube.Client.EventsV1().Events(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for _, event := range events.Items {
		places["events"] += event.Note + "\n"
	}
	for _, resource := range []schema.GroupVersionResource{buckets, entries} {
		list, err := kube.Dynamic.Resource(resource).List(t.Context(), metav1.ListOptions{})
		must(t, err)
		text, err := list.MarshalJSON()
		must(t, err)
		places[resource.Resource] = string(text)
	}
	for place, text := range places {
		if text == "" {
			t.Errorf("nothing to look at in %s", place)
		}
		for _, secret := range secretValues {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s show a secret value: ...%s...", place, text[max(0, i-200):min(len(text), i+100)])
			}
		}
	}
}

func metricsText(t *testing.T, d *daemon) string {
	t.Helper()
	response, err := http.Get(d.MetricsURL)
	must(t, err)
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	must(t, err)
	return string(text)
}

// noGeneratedSecret checks that there is no generated secret.
func noGeneratedSecret(t *testing.T, bucket string) {
	t.Helper()
	if _, err := kube.Client.CoreV1().Secrets(gardenNamespace).Get(t.Context(), generatedName(bucket), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("reading the generated secret of %s: got %v, want that there is none", bucket, err)
	}
}
