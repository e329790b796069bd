package e2e

import (
	"context"
	"encoding/base64"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// An altered generated secret is noticed by a verification, and gardenlet is told by a new lastOperation.
func TestAzureAlteredKeyIsRepublished(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	name := azureName()
	d.createAzureBucket(t, name, nil)
	want := getSecret(t, gardenNamespace, generatedName(name)).Data
	updated := func() string {
		at, _, _ := unstructured.NestedString(get(t, buckets, name).Object, "status", "lastOperation", "lastUpdateTime")
		return at
	}
	before := updated()
	time.Sleep(time.Second) // the time has seconds
	dead := base64.StdEncoding.EncodeToString([]byte("no key of this account"))
	changeSecret(t, gardenNamespace, generatedName(name), func(s *corev1.Secret) { s.Data["storageKey"] = []byte(dead) })
	mustEqual(t, "the published key", awaitPublished(t, name, dead), string(want["storageKey"]))
	waitHealthy(t, buckets, name)
	if after := updated(); after <= before {
		t.Errorf("lastOperation is of %s, before it was of %s", after, before)
	}
	awaitEvent(t, "KeyRepublished", name)
	mustEqual(t, "regenerated keys", count(azure.Requests(name), regenerateKey), 0)
}

// A lease that never ends does not keep an entry from being deleted.
func TestAzureLeasedBlobIsDeleted(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket := azureName()
	d.createAzureBucket(t, bucket, nil)
	entry, _ := newShoot(t)
	d.createAzureEntry(t, entry, bucket)
	must(t, azure.PutBlobs(t.Context(), bucket, entry+"/v2/one", entry+"/v2/two"))
	blobs, err := azure.Blobs(azureAccountName(bucket))
	must(t, err)
	client, err := lease.NewBlobClient(blobs.ServiceClient().NewContainerClient(bucket).NewBlobClient(entry+"/v2/one"), nil)
	must(t, err)
	_, err = client.AcquireLease(t.Context(), -1, nil)
	must(t, err)
	remove(t, entries, entry)
	waitGone(t, entries, entry)
	eventually(t, "all blobs are gone", func(ctx context.Context) error {
		left, err := azure.ListBlobs(ctx, bucket, entry+"/")
		if err == nil && len(left) > 0 {
			t.Errorf("%d blobs are left", len(left))
		}
		return err
	})
}
