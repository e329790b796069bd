package env

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources/v3"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/storage/armstorage/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

var azuriteBinary = sync.OnceValues(func() (string, error) {
	b, err := newBuilder(context.Background(), os.Stderr)
	if err != nil {
		return "", err
	}
	defer b.unlock()
	return b.azurite(context.Background())
})

func startAzure(t *testing.T) *Azure {
	t.Helper()
	azurite, err := azuriteBinary()
	if err != nil {
		t.Fatal(err)
	}
	azure, err := StartAzure(t.Context(), AzureOptions{Azurite: azurite})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(azure.Stop)
	return azure
}

// azureClients are clients that are recorded and failed like the daemon's.
type azureClients struct {
	groups     *armresources.ResourceGroupsClient
	resources  *armresources.Client
	accounts   *armstorage.AccountsClient
	containers *armstorage.BlobContainersClient
	shares     *armstorage.FileSharesClient
	queues     *armstorage.QueueClient
	tables     *armstorage.TableClient
}

func newAzureClients(t *testing.T, a *Azure) azureClients {
	t.Helper()
	return azureClientsFor(t, a, a.SubscriptionID, azureCredential(t, a, a.TenantID, a.ClientID, a.ClientSecret))
}

func azureOptions(a *Azure) azcore.ClientOptions {
	return azcore.ClientOptions{
		Cloud: cloud.Configuration{
			ActiveDirectoryAuthorityHost: a.EntraEndpoint,
			Services:                     map[cloud.ServiceName]cloud.ServiceConfiguration{cloud.ResourceManager: {Endpoint: a.ARMEndpoint, Audience: a.ARMEndpoint}},
		},
		Transport: &http.Client{Transport: a.transport()},
		Retry:     policy.RetryOptions{MaxRetries: -1},
	}
}

func azureCredential(t *testing.T, a *Azure, tenant, client, secret string) azcore.TokenCredential {
	t.Helper()
	credential, err := azidentity.NewClientSecretCredential(tenant, client, secret,
		&azidentity.ClientSecretCredentialOptions{ClientOptions: azureOptions(a), DisableInstanceDiscovery: true})
	if err != nil {
		t.Fatal(err)
	}
	return credential
}

func azureClientsFor(t *testing.T, a *Azure, subscription string, credential azcore.TokenCredential) azureClients {
	t.Helper()
	options := &arm.ClientOptions{ClientOptions: azureOptions(a), DisableRPRegistration: true}
	resources, err := armresources.NewClientFactory(subscription, credential, options)
	if err != nil {
		t.Fatal(err)
	}
	storage, err := armstorage.NewClientFactory(subscription, credential, options)
	if err != nil {
		t.Fatal(err)
	}
	return azureClients{
		resources.NewResourceGroupsClient(), resources.NewClient(), storage.NewAccountsClient(), storage.NewBlobContainersClient(),
		storage.NewFileSharesClient(), storage.NewQueueClient(), storage.NewTableClient(),
	}
}

// account is how bucketwarden creates one.
func newAccount(region string) armstorage.AccountCreateParameters {
	return armstorage.AccountCreateParameters{
		Kind:     to.Ptr(armstorage.KindStorageV2),
		Location: &region,
		SKU:      &armstorage.SKU{Name: to.Ptr(armstorage.SKUNameStandardZRS)},
		Properties: &armstorage.AccountPropertiesCreateParameters{
			MinimumTLSVersion: to.Ptr(armstorage.MinimumTLSVersionTLS12),
			KeyPolicy:         &armstorage.KeyPolicy{KeyExpirationPeriodInDays: to.Ptr[int32](90)},
		},
	}
}

// mustBucket makes a resource group, an account and a container: the group and the
// container are called name, the account name without dashes.
func mustBucket(t *testing.T, c azureClients, name string) (account string) {
	t.Helper()
	account = strings.ReplaceAll(name, "-", "")
	if _, err := c.groups.CreateOrUpdate(t.Context(), name, armresources.ResourceGroup{Location: to.Ptr("westeurope")}, nil); err != nil {
		t.Fatal(err)
	}
	poller, err := c.accounts.BeginCreate(t.Context(), name, account, newAccount("West Europe"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := poller.PollUntilDone(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.containers.Create(t.Context(), name, account, name, armstorage.BlobContainer{}, nil); err != nil {
		t.Fatal(err)
	}
	return account
}

// wantCode checks the status and the code of an SDK's error; status 0 wants success.
func wantCode(t *testing.T, what string, err error, status int, code string) {
	t.Helper()
	var response *azcore.ResponseError
	switch {
	case status == 0 && err != nil:
		t.Errorf("%s: %v", what, err)
	case status != 0 && (!errors.As(err, &response) || response.StatusCode != status || response.ErrorCode != code):
		t.Errorf("%s: got %v, want %d %s", what, err, status, code)
	}
}

func TestAzure(t *testing.T) {
	t.Parallel()
	azure := startAzure(t)
	for name, test := range map[string]func(*testing.T, *Azure){
		"policy transitions": testAzurePolicyTransitions,
		"policy history":     testAzurePolicyHistory,
		"missing policy":     testAzureMissingPolicy,
		"legal hold":         testAzureLegalHold,
		"container deletion": testAzureContainerDeletion,
		"group deletion":     testAzureGroupDeletion,
		"accounts":           testAzureAccounts,
		"other services":     testAzureOtherServices,
		"keys":               testAzureKeys,
		"credentials":        testAzureCredentials,
		"management errors":  testAzureManagementErrors,
		"blobs":              testAzureBlobs,
		"batches":            testAzureBatches,
		"faults":             testAzureFaults,
		"control":            testAzureControl,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, azure)
		})
	}
}

// policyBody is the body of a put or an extension.
func policyBody(days int32) *armstorage.ImmutabilityPolicy {
	return &armstorage.ImmutabilityPolicy{Properties: &armstorage.ImmutabilityPolicyProperty{ImmutabilityPeriodSinceCreationInDays: &days}}
}

// changePolicy does one operation on the policy of a bucket of mustBucket.
func changePolicy(ctx context.Context, c azureClients, bucket, account, operation string, days int32, etag string) error {
	var err error
	switch operation {
	case "put":
		options := &armstorage.BlobContainersClientCreateOrUpdateImmutabilityPolicyOptions{Parameters: policyBody(days)}
		if etag != "" {
			options.IfMatch = &etag
		}
		_, err = c.containers.CreateOrUpdateImmutabilityPolicy(ctx, bucket, account, bucket, options)
	case "delete":
		_, err = c.containers.DeleteImmutabilityPolicy(ctx, bucket, account, bucket, etag, nil)
	case "lock":
		_, err = c.containers.LockImmutabilityPolicy(ctx, bucket, account, bucket, etag, nil)
	case "extend":
		_, err = c.containers.ExtendImmutabilityPolicy(ctx, bucket, account, bucket, etag,
			&armstorage.BlobContainersClientExtendImmutabilityPolicyOptions{Parameters: policyBody(days)})
	}
	return err
}

func testAzurePolicyTransitions(t *testing.T, a *Azure) {
	c := newAzureClients(t, a)
	const refused = "ContainerImmutabilityPolicyFailure"
	for i, test := range []struct {
		// before is the state with 3 days.
		before, operation, etag string
		days                    int32
		status                  int
		code                    string
		after                   string
		afterDays               int32
	}{
		{"", "put", "", 5, 0, "", "Unlocked", 5},
		{"", "put", "*", 5, 412, refused, "", 0},
		{"", "put", "stale", 5, 412, refused, "", 0},
		{"", "put", "", 0, 400, "InvalidRequestPropertyValue", "", 0},
		{"", "put", "", 146_001, 400, "InvalidRequestPropertyValue", "", 0},
		{"", "put", "", 146_000, 0, "", "Unlocked", 146_000},
		{"", "delete", "*", 0, 412, refused, "", 0},
		{"", "lock", "*", 0, 412, refused, "", 0},
		{"", "extend", "*", 5, 412, refused, "", 0},
		{"Unlocked", "put", "", 5, 0, "", "Unlocked", 5},
		{"Unlocked", "put", "fresh", 1, 0, "", "Unlocked", 1},
		{"Unlocked", "put", "unquoted", 1, 0, "", "Unlocked", 1},
		{"Unlocked", "put", "*", 1, 0, "", "Unlocked", 1},
		{"Unlocked", "put", "stale", 1, 412, refused, "Unlocked", 3},
		{"Unlocked", "delete", "fresh", 0, 0, "", "", 0},
		{"Unlocked", "delete", "stale", 0, 412, refused, "Unlocked", 3},
		{"Unlocked", "lock", "fresh", 0, 0, "", "Locked", 3},
		{"Unlocked", "lock", "*", 0, 0, "", "Locked", 3},
		{"Unlocked", "lock", "stale", 0, 412, refused, "Unlocked", 3},
		{"Unlocked", "extend", "fresh", 5, 409, refused, "Unlocked", 3},
		{"Locked", "put", "", 5, 409, refused, "Locked", 3},
		{"Locked", "put", "fresh", 5, 409, refused, "Locked", 3},
		{"Locked", "delete", "fresh", 0, 409, refused, "Locked", 3},
		{"Locked", "lock", "fresh", 0, 409, refused, "Locked", 3},
		{"Locked", "extend", "fresh", 5, 0, "", "Locked", 5},
		{"Locked", "extend", "stale", 5, 412, refused, "Locked", 3},
		{"Locked", "extend", "fresh", 3, 409, refused, "Locked", 3},
		{"Locked", "extend", "fresh", 2, 409, refused, "Locked", 3},
		{"Locked", "extend", "fresh", 146_001, 400, "InvalidRequestPropertyValue", "Locked", 3},
	} {
		t.Run(fmt.Sprintf("%s %s %s %d", test.before, test.operation, test.etag, test.days), func(t *testing.T) {
			t.Parallel()
			bucket := fmt.Sprintf("transition-%d", i)
			account := mustBucket(t, c, bucket)
			stale := `"none"`
			if test.before != "" {
				if err := a.SetPolicy(bucket, 4, false); err != nil {
					t.Fatal(err)
				}
				stale = a.Container(bucket).ETag
				if err := a.SetPolicy(bucket, 3, test.before == "Locked"); err != nil {
					t.Fatal(err)
				}
			}
			before := a.Container(bucket)
			etag := map[string]string{"fresh": before.ETag, "unquoted": strings.Trim(before.ETag, `"`), "stale": stale, "*": "*"}[test.etag]
			wantCode(t, test.operation, changePolicy(t.Context(), c, bucket, account, test.operation, test.days, etag), test.status, test.code)
			after := a.Container(bucket)
			if after.State != test.after || after.Days != test.afterDays {
				t.Errorf("policy is %q with %d days, want %q with %d", after.State, after.Days, test.after, test.afterDays)
			}
			if changed := after.ETag != before.ETag; changed != (test.status == 0) {
				t.Errorf("etag was %s and is %s", before.ETag, after.ETag)
			}
		})
	}
}

func testAzurePolicyHistory(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "history"
	account := mustBucket(t, c, bucket)
	for _, days := range []int32{7, 3} {
		if err := changePolicy(ctx, c, bucket, account, "put", days, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.SetAppendWrites(bucket, true); err != nil {
		t.Fatal(err)
	}
	if err := changePolicy(ctx, c, bucket, account, "put", 3, a.Container(bucket).ETag); err != nil {
		t.Fatal(err)
	}
	if a.Container(bucket).AppendWrites {
		t.Error("append writes are allowed after a put without them")
	}
	if err := changePolicy(ctx, c, bucket, account, "lock", 0, a.Container(bucket).ETag); err != nil {
		t.Fatal(err)
	}
	if err := a.SetAppendWrites(bucket, true); err == nil {
		t.Error("append writes could be allowed in a locked policy")
	}
	for days := int32(4); days <= 8; days++ {
		if err := changePolicy(ctx, c, bucket, account, "extend", days, a.Container(bucket).ETag); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, "the sixth extension", changePolicy(ctx, c, bucket, account, "extend", 9, a.Container(bucket).ETag), 409, "ContainerImmutabilityPolicyFailure")

	got, err := c.containers.Get(ctx, bucket, account, bucket, nil)
	if err != nil {
		t.Fatal(err)
	}
	policy := got.ContainerProperties.ImmutabilityPolicy
	if !*got.ContainerProperties.HasImmutabilityPolicy || *policy.Etag != a.Container(bucket).ETag ||
		*policy.Properties.State != armstorage.ImmutabilityPolicyStateLocked || *policy.Properties.ImmutabilityPeriodSinceCreationInDays != 8 {
		t.Errorf("policy of the container is %+v", policy)
	}
	var history []string
	for i, update := range policy.UpdateHistory {
		history = append(history, fmt.Sprintf("%s %d", *update.Update, *update.ImmutabilityPeriodSinceCreationInDays))
		if i > 0 && update.Timestamp.Before(*policy.UpdateHistory[i-1].Timestamp) {
			t.Error("the history is not in order")
		}
	}
	if want := []string{"put 3", "lock 3", "extend 4", "extend 5", "extend 6", "extend 7", "extend 8"}; !slices.Equal(history, want) {
		t.Errorf("history is %v, want %v", history, want)
	}
}

func testAzureMissingPolicy(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "missing"
	account := mustBucket(t, c, bucket)
	check := func(when string) {
		t.Helper()
		got, err := c.containers.GetImmutabilityPolicy(ctx, bucket, account, bucket, nil)
		if err != nil || *got.Properties.State != "Deleted" || *got.Etag != "" || *got.Properties.ImmutabilityPeriodSinceCreationInDays != 0 {
			t.Errorf("%s: got %+v, %v; want state Deleted without an etag", when, got.Properties, err)
		}
		of, err := c.containers.Get(ctx, bucket, account, bucket, nil)
		if err != nil || *of.ContainerProperties.HasImmutabilityPolicy || of.ContainerProperties.ImmutabilityPolicy != nil {
			t.Errorf("%s: container is %+v, %v; want no policy", when, of.ContainerProperties, err)
		}
	}
	check("at first")
	put, err := c.containers.CreateOrUpdateImmutabilityPolicy(ctx, bucket, account, bucket,
		&armstorage.BlobContainersClientCreateOrUpdateImmutabilityPolicyOptions{Parameters: policyBody(2)})
	if err != nil || *put.Etag == "" || *put.ETag != *put.Etag {
		t.Fatalf("put: got %+v, %v; want the etag in body and header", put, err)
	}
	deleted, err := c.containers.DeleteImmutabilityPolicy(ctx, bucket, account, bucket, *put.Etag, nil)
	if err != nil || *deleted.Properties.ImmutabilityPeriodSinceCreationInDays != 0 {
		t.Errorf("delete: got %+v, %v", deleted, err)
	}
	check("after the deletion")
}

func testAzureLegalHold(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "hold"
	account := mustBucket(t, c, bucket)
	blobs := mustBlobs(t, a, account)
	if err := a.PutBlob(ctx, bucket, "blob", nil); err != nil {
		t.Fatal(err)
	}
	set, err := c.containers.SetLegalHold(ctx, bucket, account, bucket, armstorage.LegalHold{Tags: []*string{to.Ptr("Case1"), to.Ptr("case2")}}, nil)
	if err != nil || !*set.HasLegalHold || len(set.Tags) != 2 {
		t.Fatalf("got %+v, %v", set, err)
	}
	if got := a.Container(bucket).LegalHold; !slices.Equal(got, []string{"case1", "case2"}) {
		t.Errorf("tags are %v", got)
	}
	got, err := c.containers.Get(ctx, bucket, account, bucket, nil)
	if err != nil || !*got.ContainerProperties.HasLegalHold || *got.ContainerProperties.LegalHold.Tags[0].Tag != "case1" {
		t.Errorf("container is %+v, %v", got.ContainerProperties, err)
	}
	_, err = blobs.DeleteBlob(ctx, bucket, "blob", nil)
	wantCode(t, "deleting a blob", err, 409, "BlobImmutableDueToLegalHold")
	_, err = blobs.UploadBuffer(ctx, bucket, "blob", nil, nil)
	wantCode(t, "overwriting a blob", err, 409, "BlobImmutableDueToLegalHold")
	_, err = blobs.UploadBuffer(ctx, bucket, "other", nil, nil)
	wantCode(t, "writing another blob", err, 0, "")
	_, err = blobs.DeleteContainer(ctx, bucket, nil)
	wantCode(t, "deleting the container on the data plane", err, 409, "ContainerHasLegalHold")
	_, err = c.containers.Delete(ctx, bucket, account, bucket, nil)
	wantCode(t, "deleting the container", err, 409, "ContainerProtectedFromDeletion")
	_, err = c.accounts.Delete(ctx, bucket, account, nil)
	wantCode(t, "deleting the account", err, 409, "AccountProtectedFromDeletion")

	if _, err := c.containers.ClearLegalHold(ctx, bucket, account, bucket, armstorage.LegalHold{Tags: []*string{to.Ptr("case1"), to.Ptr("nothing")}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.ClearLegalHold(bucket, "case2"); err != nil {
		t.Fatal(err)
	}
	_, err = blobs.DeleteBlob(ctx, bucket, "blob", nil)
	wantCode(t, "deleting a blob after the hold", err, 0, "")
	_, err = c.containers.SetLegalHold(ctx, bucket, account, bucket, armstorage.LegalHold{Tags: []*string{to.Ptr("no")}}, nil)
	wantCode(t, "a short tag", err, 400, "InvalidRequestPropertyValue")
}

func mustBlobs(t *testing.T, a *Azure, account string) *azblob.Client {
	t.Helper()
	client, err := a.Blobs(account)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func testAzureContainerDeletion(t *testing.T, a *Azure) {
	c := newAzureClients(t, a)
	for i, test := range []struct {
		policy string
		blobs  bool
		// status and code of the management plane, and those of the data plane.
		status     int
		code       string
		dataStatus int
		dataCode   string
	}{
		{"", false, 0, "", 0, ""},
		{"", true, 0, "", 0, ""},
		{"Unlocked", false, 0, "", 409, "ContainerImmutabilityPolicyLocked"},
		{"Unlocked", true, 409, "ContainerProtectedFromDeletion", 409, "ContainerImmutabilityPolicyLocked"},
		{"Locked", false, 0, "", 409, "ContainerImmutabilityPolicyLocked"},
		{"Locked", true, 409, "ContainerProtectedFromDeletion", 409, "ContainerImmutabilityPolicyLocked"},
	} {
		for _, plane := range []string{PlaneARM, PlaneBlob} {
			t.Run(fmt.Sprintf("%s policy, blobs %t, %s", test.policy, test.blobs, plane), func(t *testing.T) {
				t.Parallel()
				ctx, bucket := t.Context(), fmt.Sprintf("deletion-%s-%d", plane, i)
				account := mustBucket(t, c, bucket)
				if test.blobs {
					if err := a.PutBlob(ctx, bucket, "blob", nil); err != nil {
						t.Fatal(err)
					}
				}
				if test.policy != "" {
					if err := a.SetPolicy(bucket, 1, test.policy == "Locked"); err != nil {
						t.Fatal(err)
					}
				}
				var err error
				status, code := test.status, test.code
				if plane == PlaneARM {
					_, err = c.containers.Delete(ctx, bucket, account, bucket, nil)
				} else {
					_, err = mustBlobs(t, a, account).DeleteContainer(ctx, bucket, nil)
					status, code = test.dataStatus, test.dataCode
				}
				wantCode(t, "deleting", err, status, code)
				if exists := a.Container(bucket).Exists; exists != (status != 0) {
					t.Errorf("the container exists: %t", exists)
				}
				if status == 0 {
					_, err = mustBlobs(t, a, account).DeleteBlob(ctx, bucket, "blob", nil)
					wantCode(t, "a blob in it", err, 404, "ContainerNotFound")
					_, err = c.containers.Get(ctx, bucket, account, bucket, nil)
					wantCode(t, "getting it", err, 404, "ContainerNotFound")
					_, err = c.containers.Delete(ctx, bucket, account, bucket, nil)
					wantCode(t, "deleting it again", err, 0, "")
				}
			})
		}
	}
}

func testAzureGroupDeletion(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "group-deletion"
	account := mustBucket(t, c, bucket)
	if err := a.CreateForeign(bucket, "network"); err != nil {
		t.Fatal(err)
	}
	page, err := c.resources.NewListByResourceGroupPager(bucket, nil).NextPage(ctx)
	if err != nil || len(page.Value) != 2 || *page.Value[0].Type != "Microsoft.Storage/storageAccounts" || *page.Value[1].Name != "network" {
		t.Errorf("resources are %+v, %v", page.Value, err)
	}
	if err := a.SetPolicy(bucket, 1, true); err != nil {
		t.Fatal(err)
	}
	_, err = c.accounts.Delete(ctx, bucket, account, nil)
	wantCode(t, "deleting the account", err, 409, "AccountProtectedFromDeletion")
	poller, err := c.groups.BeginDelete(ctx, bucket, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = poller.PollUntilDone(ctx, nil)
	wantCode(t, "deleting the group", err, 409, "ResourceGroupDeletionBlocked")
	if err == nil || !strings.Contains(err.Error(), "AccountProtectedFromDeletion") || !strings.Contains(err.Error(), "group-deletion have a locked immutability policy") {
		t.Errorf("got %v, want the reason", err)
	}
	if group, err := a.Group(bucket); err != nil || group.State != "Succeeded" || !slices.Equal(group.Resources, []string{account, "network"}) {
		t.Errorf("group is %+v, %v", group, err)
	}
	if _, err := c.containers.Delete(ctx, bucket, account, bucket, nil); err != nil {
		t.Fatal(err)
	}

	release := a.HoldOperations(bucket)
	defer release()
	if poller, err = c.groups.BeginDelete(ctx, bucket, nil); err != nil {
		t.Fatal(err)
	}
	// Without the hold it would end within this time.
	for begin := time.Now(); time.Since(begin) < 2*azureOperationTime; {
		if _, err := poller.Poll(ctx); err != nil || poller.Done() {
			t.Fatalf("deletion ended although it is held: %v", err)
		}
	}
	if group, err := c.groups.Get(ctx, strings.ToUpper(bucket), nil); err != nil || *group.Properties.ProvisioningState != "Deleting" {
		t.Errorf("group is %+v, %v; want it to be deleted", group.Properties, err)
	}
	_, err = c.containers.Create(ctx, bucket, account, bucket, armstorage.BlobContainer{}, nil)
	wantCode(t, "creating a container in it", err, 409, "ResourceGroupBeingDeleted")
	_, err = c.groups.CreateOrUpdate(ctx, bucket, armresources.ResourceGroup{Location: to.Ptr("westeurope")}, nil)
	wantCode(t, "creating it again", err, 409, "ResourceGroupBeingDeleted")
	_, err = c.accounts.BeginCreate(ctx, bucket, "other"+account, newAccount("westeurope"), nil)
	wantCode(t, "creating an account in it", err, 409, "ResourceGroupBeingDeleted")
	release()
	if _, err := poller.PollUntilDone(ctx, nil); err != nil {
		t.Error(err)
	}
	_, err = c.groups.Get(ctx, bucket, nil)
	wantCode(t, "getting it", err, 404, "ResourceGroupNotFound")
	_, err = c.groups.BeginDelete(ctx, bucket, nil)
	wantCode(t, "deleting it", err, 404, "ResourceGroupNotFound")
	if exists, err := c.groups.CheckExistence(ctx, bucket, nil); err != nil || exists.Success {
		t.Errorf("existence is %t, %v", exists.Success, err)
	}
	if _, err := a.Account(account); !errors.Is(err, ErrAzureNotFound) {
		t.Errorf("account: got %v, want that it is gone", err)
	}
}

func testAzureOtherServices(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "other-services"
	account := mustBucket(t, c, bucket)
	wantShares := func(names ...string) {
		t.Helper()
		page, err := c.shares.NewListPager(bucket, account, nil).NextPage(ctx)
		var got []string
		for _, share := range page.Value {
			got = append(got, *share.Name)
		}
		if err != nil || !slices.Equal(got, names) {
			t.Errorf("shares are %q, %v; want %q", got, err, names)
		}
	}
	wantShares()
	if err := a.CreateShare(account, "home"); err != nil {
		t.Fatal(err)
	}
	wantShares("home")
	if page, err := c.queues.NewListPager(bucket, account, nil).NextPage(ctx); err != nil || len(page.Value) != 0 {
		t.Errorf("queues are %+v, %v", page.Value, err)
	}
	if page, err := c.tables.NewListPager(bucket, account, nil).NextPage(ctx); err != nil || len(page.Value) != 0 {
		t.Errorf("tables are %+v, %v", page.Value, err)
	}
	_, err := c.shares.NewListPager(bucket, "another"+account, nil).NextPage(ctx)
	wantCode(t, "listing the shares of no account", err, 404, "ResourceNotFound")
	if err := a.CreateShare("another"+account, "home"); !errors.Is(err, ErrAzureNotFound) {
		t.Errorf("got %v, want that there is no such account", err)
	}
}

func testAzureAccounts(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "accounts"
	const account = "theaccount"
	if _, err := c.groups.CreateOrUpdate(ctx, bucket, armresources.ResourceGroup{Location: to.Ptr("West Europe"), Tags: map[string]*string{"a": to.Ptr("b")}}, nil); err != nil {
		t.Fatal(err)
	}
	group, err := c.groups.Update(ctx, bucket, armresources.ResourceGroupPatchable{Tags: map[string]*string{"c": to.Ptr("d")}}, nil)
	if err != nil || len(group.Tags) != 1 || *group.Tags["c"] != "d" || *group.Location != "westeurope" {
		t.Errorf("group is %+v, %v", group.ResourceGroup, err)
	}

	release := a.HoldOperations(bucket)
	defer release()
	poller, err := c.accounts.BeginCreate(ctx, bucket, account, newAccount("westeurope"), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.accounts.GetProperties(ctx, bucket, account, nil)
	if err != nil || *got.Properties.ProvisioningState != armstorage.ProvisioningStateCreating {
		t.Errorf("account is %+v, %v; want it to be created", got.Properties, err)
	}
	_, err = c.accounts.ListKeys(ctx, bucket, account, nil)
	wantCode(t, "its keys", err, 409, "StorageAccountIsNotProvisioned")
	_, err = c.containers.Create(ctx, bucket, account, bucket, armstorage.BlobContainer{}, nil)
	wantCode(t, "a container in it", err, 409, "StorageAccountIsNotProvisioned")
	_, err = c.accounts.BeginCreate(ctx, bucket, account, newAccount("westeurope"), nil)
	wantCode(t, "creating it again", err, 409, "StorageAccountOperationInProgress")
	release()
	created, err := poller.PollUntilDone(ctx, nil)
	if err != nil || *created.Properties.ProvisioningState != armstorage.ProvisioningStateSucceeded || *created.Properties.KeyPolicy.KeyExpirationPeriodInDays != 90 ||
		*created.SKU.Tier != armstorage.SKUTierStandard || *created.Properties.PrimaryEndpoints.Blob != strings.ReplaceAll(a.BlobEndpoint, "{account}", account)+"/" {
		t.Errorf("created %+v, %v", created.Properties, err)
	}

	for path, value := range map[string]any{"properties.minimumTlsVersion": "TLS1_0", "tags.owner": "somebody", "properties.isLocalUserEnabled": true} {
		if err := a.SetAccountProperty(account, path, value); err != nil {
			t.Fatal(err)
		}
	}
	updated, err := c.accounts.Update(ctx, bucket, account, armstorage.AccountUpdateParameters{
		Properties: &armstorage.AccountPropertiesUpdateParameters{MinimumTLSVersion: to.Ptr(armstorage.MinimumTLSVersionTLS12)},
	}, nil)
	if err != nil || *updated.Properties.MinimumTLSVersion != armstorage.MinimumTLSVersionTLS12 || *updated.Tags["owner"] != "somebody" || !*updated.Properties.IsLocalUserEnabled {
		t.Errorf("updated %+v, %v; want only the TLS version changed", updated.Properties, err)
	}
	if err := a.SetAccountProperty(account, "properties.isLocalUserEnabled", nil); err != nil {
		t.Fatal(err)
	}
	parameters := newAccount("westeurope")
	parameters.Properties = &armstorage.AccountPropertiesCreateParameters{AllowSharedKeyAccess: to.Ptr(false)}
	poller, err = c.accounts.BeginCreate(ctx, bucket, account, parameters, nil)
	if err != nil {
		t.Fatal(err)
	}
	put, err := poller.Result(ctx)
	if err != nil || *put.Properties.MinimumTLSVersion != armstorage.MinimumTLSVersionTLS12 || *put.Properties.AllowSharedKeyAccess || put.Properties.IsLocalUserEnabled != nil {
		t.Errorf("put %+v, %v; want it changed at once and the rest as it was", put.Properties, err)
	}
	_, err = mustBlobs(t, a, account).DownloadStream(ctx, bucket, "blob", nil)
	wantCode(t, "without shared keys", err, 403, "KeyBasedAuthenticationNotPermitted")
	_, err = c.containers.Create(ctx, bucket, account, bucket, armstorage.BlobContainer{ContainerProperties: &armstorage.ContainerProperties{PublicAccess: to.Ptr(armstorage.PublicAccessBlob)}}, nil)
	wantCode(t, "a public container", err, 409, "PublicAccessNotPermitted")
	if _, err := c.containers.Create(ctx, bucket, account, bucket, armstorage.BlobContainer{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.SetPublicAccess(bucket, "Blob"); err != nil {
		t.Fatal(err)
	}
	container, err := c.containers.Update(ctx, bucket, account, bucket, armstorage.BlobContainer{ContainerProperties: &armstorage.ContainerProperties{PublicAccess: to.Ptr(armstorage.PublicAccessNone)}}, nil)
	if err != nil || *container.ContainerProperties.PublicAccess != armstorage.PublicAccessNone || a.Container(bucket).PublicAccess != "None" {
		t.Errorf("container is %+v, %v", container.ContainerProperties, err)
	}
	page, err := c.containers.NewListPager(bucket, account, nil).NextPage(ctx)
	if err != nil || len(page.Value) != 1 || *page.Value[0].Name != bucket {
		t.Errorf("containers are %+v, %v", page.Value, err)
	}
	accounts, err := c.accounts.NewListByResourceGroupPager(bucket, nil).NextPage(ctx)
	if err != nil || len(accounts.Value) != 1 || *accounts.Value[0].Name != account {
		t.Errorf("accounts are %+v, %v", accounts.Value, err)
	}
	if _, err := c.accounts.Delete(ctx, bucket, account, nil); err != nil {
		t.Error(err)
	}
	if _, err := c.accounts.Delete(ctx, bucket, account, nil); err != nil {
		t.Errorf("deleting what is gone: %v", err)
	}
	_, err = c.accounts.GetProperties(ctx, bucket, account, nil)
	wantCode(t, "getting what is gone", err, 404, "ResourceNotFound")
}

func testAzureKeys(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "keys"
	account := mustBucket(t, c, bucket)
	before, err := c.accounts.ListKeys(ctx, bucket, account, nil)
	if err != nil || len(before.Keys) != 2 || *before.Keys[0].KeyName != "key1" || before.Keys[0].CreationTime == nil {
		t.Fatalf("got %+v, %v", before.Keys, err)
	}
	list := func(key string) error {
		credential, err := azblob.NewSharedKeyCredential(account, key)
		if err != nil {
			return err
		}
		client, err := azblob.NewClientWithSharedKeyCredential(strings.ReplaceAll(a.BlobEndpoint, "{account}", account), credential,
			&azblob.ClientOptions{ClientOptions: azcore.ClientOptions{Retry: policy.RetryOptions{MaxRetries: -1}}})
		if err != nil {
			return err
		}
		_, err = client.NewListBlobsFlatPager(bucket, nil).NextPage(ctx)
		return err
	}
	for _, key := range before.Keys {
		wantCode(t, "with "+*key.KeyName, list(*key.Value), 0, "")
	}
	if err := a.SetKeyCreated(account, "key1", time.Time{}); err != nil {
		t.Fatal(err)
	}
	old := a.Now().Add(-48 * time.Hour)
	if err := a.SetKeyCreated(account, "key2", old); err != nil {
		t.Fatal(err)
	}
	aged, err := c.accounts.GetProperties(ctx, bucket, account, nil)
	if err != nil || aged.Properties.KeyCreationTime.Key1 != nil || !aged.Properties.KeyCreationTime.Key2.Equal(old) {
		t.Errorf("account is %+v, %v", aged.Properties.KeyCreationTime, err)
	}
	after, err := c.accounts.RegenerateKey(ctx, bucket, account, armstorage.AccountRegenerateKeyParameters{KeyName: to.Ptr("key1")}, nil)
	if err != nil || *after.Keys[0].Value == *before.Keys[0].Value || *after.Keys[1].Value != *before.Keys[1].Value ||
		after.Keys[0].CreationTime.Before(old.Add(time.Hour)) || !after.Keys[1].CreationTime.Equal(old) {
		t.Errorf("got %+v, %v; want key1 new", after.Keys, err)
	}
	wantCode(t, "with the old key", list(*before.Keys[0].Value), 403, "AuthenticationFailed")
	wantCode(t, "with the new key", list(*after.Keys[0].Value), 0, "")
	wantCode(t, "with the other key", list(*after.Keys[1].Value), 0, "")
	_, err = c.accounts.RegenerateKey(ctx, bucket, account, armstorage.AccountRegenerateKeyParameters{KeyName: to.Ptr("key3")}, nil)
	wantCode(t, "a third key", err, 400, "InvalidValuesForRequestParameters")

	for _, test := range []struct {
		authorization, code string
		status              int
	}{{"", "NoAuthenticationInformation", 401}, {"Bearer token", "AuthorizationPermissionMismatch", 403}, {"SharedKey other:x", "AuthenticationFailed", 403}} {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.ReplaceAll(a.BlobEndpoint, "{account}", account)+"/keys?restype=container", nil)
		if err != nil {
			t.Fatal(err)
		}
		if test.authorization != "" {
			request.Header.Set("Authorization", test.authorization)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != test.status || response.Header.Get("X-Ms-Error-Code") != test.code {
			t.Errorf("authorization %q: got %d %s", test.authorization, response.StatusCode, response.Header.Get("X-Ms-Error-Code"))
		}
	}
}

func testAzureCredentials(t *testing.T, a *Azure) {
	ctx, other := t.Context(), newUUID()
	assertion := func(token string) azcore.TokenCredential {
		credential, err := azidentity.NewClientAssertionCredential(a.TenantID, a.ClientID, func(context.Context) (string, error) { return token, nil },
			&azidentity.ClientAssertionCredentialOptions{ClientOptions: azureOptions(a), DisableInstanceDiscovery: true})
		if err != nil {
			t.Fatal(err)
		}
		return credential
	}
	for _, test := range []struct {
		name       string
		credential azcore.TokenCredential
		status     int
		code       string
		number     int
	}{
		{"good", azureCredential(t, a, a.TenantID, a.ClientID, a.ClientSecret), 0, "", 0},
		{"good assertion", assertion(a.Token), 0, "", 0},
		{"tenant", azureCredential(t, a, other, a.ClientID, a.ClientSecret), 400, "invalid_tenant", 90002},
		{"client", azureCredential(t, a, a.TenantID, other, a.ClientSecret), 400, "unauthorized_client", 700016},
		{"secret", azureCredential(t, a, a.TenantID, a.ClientID, "wrong"), 401, "invalid_client", 7000215},
		{"assertion", assertion("wrong"), 401, "invalid_client", 700211},
	} {
		_, err := azureClientsFor(t, a, a.SubscriptionID, test.credential).groups.CheckExistence(ctx, "x", nil)
		if test.status == 0 {
			wantCode(t, test.name, err, 0, "")
			continue
		}
		var failed *azidentity.AuthenticationFailedError
		if !errors.As(err, &failed) || !strings.Contains(err.Error(), fmt.Sprintf("AADSTS%d: ", test.number)) {
			t.Errorf("%s: got %v, want AADSTS%d", test.name, err, test.number)
			continue
		}
		var body struct {
			Error            string `json:"error"`
			ErrorDescription string `json:"error_description"`
			ErrorCodes       []int  `json:"error_codes"`
		}
		content, err := runtime.Payload(failed.RawResponse)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(content, &body); err != nil {
			t.Fatal(err)
		}
		if failed.RawResponse.StatusCode != test.status || body.Error != test.code || !slices.Equal(body.ErrorCodes, []int{test.number}) ||
			!strings.Contains(body.ErrorDescription, " Trace ID: ") || !strings.Contains(body.ErrorDescription, " Timestamp: ") {
			t.Errorf("%s: got %d, %s", test.name, failed.RawResponse.StatusCode, content)
		}
	}
	if got, want := a.SecretData(), a.WorkloadIdentityData(); string(got["clientSecret"]) != a.ClientSecret || string(want["token"]) != a.Token || want["clientSecret"] != nil {
		t.Errorf("secrets are %v and %v", got, want)
	}

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.ARMEndpoint+"/subscriptions/"+a.SubscriptionID+"/resourcegroups?api-version=x", nil)
	if err != nil {
		t.Fatal(err)
	}
	for token, code := range map[string]string{"": "AuthenticationFailed", "Bearer wrong": "InvalidAuthenticationToken"} {
		request.Header.Set("Authorization", token)
		response, err := (&http.Client{Transport: a.transport()}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if response.StatusCode != 401 || response.Header.Get("WWW-Authenticate") == "" || !strings.Contains(string(body), `"code":"`+code+`"`) {
			t.Errorf("token %q: got %d %s", token, response.StatusCode, body)
		}
	}
}

func testAzureManagementErrors(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "errors"
	account := mustBucket(t, c, bucket)
	if _, err := c.groups.CreateOrUpdate(ctx, "errors2", armresources.ResourceGroup{Location: to.Ptr("westeurope")}, nil); err != nil {
		t.Fatal(err)
	}
	a.TakeAccountName("takenbysomebody")
	create := func(group, account, region string) error {
		_, err := c.accounts.BeginCreate(ctx, group, account, newAccount(region), nil)
		return err
	}
	group := func(name, region string) error {
		_, err := c.groups.CreateOrUpdate(ctx, name, armresources.ResourceGroup{Location: &region}, nil)
		return err
	}
	getContainer := func(c azureClients, group, account, container string) error {
		_, err := c.containers.Get(ctx, group, account, container, nil)
		return err
	}
	makeContainer := func(account, name string) error {
		_, err := c.containers.Create(ctx, bucket, account, name, armstorage.BlobContainer{}, nil)
		return err
	}
	elsewhere := azureClientsFor(t, a, newUUID(), azureCredential(t, a, a.TenantID, a.ClientID, a.ClientSecret))
	for _, test := range []struct {
		what   string
		err    error
		status int
		code   string
	}{
		{"another subscription", getContainer(elsewhere, bucket, account, bucket), 404, "SubscriptionNotFound"},
		{"no group", getContainer(c, "nogroup", account, bucket), 404, "ResourceGroupNotFound"},
		{"no account", getContainer(c, bucket, "noaccount", bucket), 404, "ResourceNotFound"},
		{"account of another group", getContainer(c, "errors2", account, bucket), 404, "ResourceNotFound"},
		{"no container", getContainer(c, bucket, account, "nocontainer"), 404, "ContainerNotFound"},
		{"container without an account", makeContainer("noaccount", bucket), 404, "ParentResourceNotFound"},
		{"name of a container", makeContainer(account, "a--b"), 400, "InvalidResourceName"},
		{"group in no region", group("errors3", "nowhere"), 400, "LocationNotAvailableForResourceGroup"},
		{"group in another region", group(bucket, "eastus"), 409, "InvalidResourceGroupLocation"},
		{"account in no region", create(bucket, "errors3", "nowhere"), 400, "LocationNotAvailableForResourceType"},
		{"account in another region", create(bucket, account, "eastus"), 409, "InvalidResourceLocation"},
		{"account in no group", create("nogroup", "errors3", "westeurope"), 404, "ResourceGroupNotFound"},
		{"account in another group", create("errors2", account, "westeurope"), 409, "StorageAccountInAnotherResourceGroup"},
		{"account of somebody else", create(bucket, "takenbysomebody", "westeurope"), 409, "StorageAccountAlreadyTaken"},
		{"name of an account", create(bucket, "Not-Valid", "westeurope"), 400, "AccountNameInvalid"},
	} {
		wantCode(t, test.what, test.err, test.status, test.code)
	}
	for name, available := range map[string]bool{"takenbysomebody": false, account: false, "afreename": true, "x": false} {
		got, err := c.accounts.CheckNameAvailability(ctx, armstorage.AccountCheckNameAvailabilityParameters{Name: &name, Type: to.Ptr("Microsoft.Storage/storageAccounts")}, nil)
		if err != nil || *got.NameAvailable != available {
			t.Errorf("availability of %s: got %+v, %v", name, got, err)
		}
	}
	a.ReleaseAccountName("takenbysomebody")
	wantCode(t, "a name that became free", create(bucket, "takenbysomebody", "westeurope"), 0, "")
}

func testAzureBlobs(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "blobs"
	account := mustBucket(t, c, bucket)
	blobs := mustBlobs(t, a, account)
	names := []string{"plain", "a b/ü+%#?&=/x", "back\\slash", "%2F", "dir/"}
	for _, name := range names[:2] {
		if _, err := blobs.UploadBuffer(ctx, bucket, name, []byte(name), nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	names = names[:2]
	if _, err := blobs.UploadStream(ctx, bucket, "blocks", bytes.NewReader(make([]byte, 5<<20)), nil); err != nil {
		t.Error(err)
	}
	names = append(names, "blocks")
	if err := a.Snapshot(ctx, bucket, "plain"); err != nil {
		t.Error(err)
	}
	slices.Sort(names)
	var got []string
	snapshots := 0
	pager := blobs.NewListBlobsFlatPager(bucket, &azblob.ListBlobsFlatOptions{MaxResults: to.Ptr[int32](2), Include: container.ListBlobsInclude{
		Snapshots: true, Versions: true, Metadata: true, Tags: true, ImmutabilityPolicy: true, LegalHold: true, Deleted: true, UncommittedBlobs: true,
	}})
	pages := 0
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, item := range page.Segment.BlobItems {
			if item.Properties.CreationTime == nil {
				t.Errorf("%s has no creation time", *item.Name)
			}
			if item.Snapshot != nil && *item.Snapshot != "" {
				snapshots++
				continue
			}
			got = append(got, *item.Name)
		}
	}
	if !slices.Equal(got, names) || snapshots != 1 || pages != 2 {
		t.Errorf("listed %q with %d snapshots on %d pages", got, snapshots, pages)
	}
	for _, name := range names[:2] {
		stream, err := blobs.DownloadStream(ctx, bucket, name, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		content, err := io.ReadAll(stream.Body)
		if err != nil || name != "blocks" && string(content) != name {
			t.Errorf("%s: got %d bytes, %v", name, len(content), err)
		}
	}
	_, err := blobs.DeleteBlob(ctx, bucket, "plain", nil)
	wantCode(t, "deleting a blob with a snapshot", err, 409, string(bloberror.SnapshotsPresent))
	properties, err := blobs.ServiceClient().NewContainerClient(bucket).GetProperties(ctx, nil)
	if err != nil || *properties.HasImmutabilityPolicy || *properties.HasLegalHold {
		t.Errorf("properties are %+v, %v", properties, err)
	}
	if err := a.SetPolicy(bucket, 1, false); err != nil {
		t.Fatal(err)
	}
	properties, err = blobs.ServiceClient().NewContainerClient(bucket).GetProperties(ctx, nil)
	if err != nil || !*properties.HasImmutabilityPolicy {
		t.Errorf("properties are %+v, %v", properties, err)
	}
	blob := blobs.ServiceClient().NewContainerClient(bucket).NewBlobClient("plain")
	_, err = blob.CreateSnapshot(ctx, nil)
	wantCode(t, "a snapshot of an immutable blob", err, 409, "BlobImmutableDueToPolicy")
	_, err = blob.SetMetadata(ctx, map[string]*string{"a": to.Ptr("b")}, nil)
	wantCode(t, "metadata of an immutable blob", err, 409, "BlobImmutableDueToPolicy")
	_, err = blob.SetTags(ctx, map[string]string{"a": "b"}, nil)
	wantCode(t, "tags of an immutable blob", err, 0, "")
	_, err = blobs.UploadStream(ctx, bucket, "blocks", bytes.NewReader(make([]byte, 5<<20)), nil)
	wantCode(t, "overwriting with blocks", err, 409, "BlobImmutableDueToPolicy")
	append1 := blobs.ServiceClient().NewContainerClient(bucket).NewAppendBlobClient("append")
	if _, err := append1.Create(ctx, nil); err != nil {
		t.Fatal(err)
	}
	_, err = append1.AppendBlock(ctx, nopCloser{strings.NewReader("x")}, nil)
	wantCode(t, "appending", err, 409, "BlobImmutableDueToPolicy")
	if err := a.SetAppendWrites(bucket, true); err != nil {
		t.Fatal(err)
	}
	_, err = append1.AppendBlock(ctx, nopCloser{strings.NewReader("x")}, nil)
	wantCode(t, "appending when it is allowed", err, 0, "")

	_, err = blobs.CreateContainer(ctx, "by-data-plane", nil)
	wantCode(t, "creating a container on the data plane", err, 0, "")
	_, err = c.containers.Get(ctx, bucket, account, "by-data-plane", nil)
	wantCode(t, "getting it on the management plane", err, 0, "")

	if all, err := a.ListBlobs(ctx, bucket, "pl"); err != nil || len(all) != 2 || all[0].Name != "plain" || all[0].Created.IsZero() {
		t.Errorf("ListBlobs = %+v, %v", all, err)
	}
	if err := a.DeleteBlob(ctx, bucket, "plain"); err != nil {
		t.Error(err)
	}
	if all, err := a.ListBlobs(ctx, bucket, "pl"); err != nil || len(all) != 0 {
		t.Errorf("ListBlobs = %+v, %v", all, err)
	}
	if _, err := a.ListBlobs(ctx, "nosuchbucket", ""); err != nil {
		t.Error(err)
	}

	credential, err := azblob.NewSharedKeyCredential("nosuchaccount", "aaaa")
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := azblob.NewClientWithSharedKeyCredential(strings.ReplaceAll(a.BlobEndpoint, "{account}", "nosuchaccount"), credential, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = nobody.DeleteBlob(ctx, bucket, "blob", nil)
	wantCode(t, "no account", err, 404, "ResourceNotFound")
}

// nopCloser makes a seeker a body.
type nopCloser struct{ *strings.Reader }

func (nopCloser) Close() error { return nil }

// deleteBatch returns the error of each part.
func deleteBatch(t *testing.T, client *container.Client, names ...string) []error {
	t.Helper()
	builder, err := client.NewBatchBuilder()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := builder.Delete(name, &container.BatchDeleteOptions{DeleteOptions: azblob.DeleteBlobOptions{DeleteSnapshots: to.Ptr(azblob.DeleteSnapshotsOptionTypeInclude)}}); err != nil {
			t.Fatal(err)
		}
	}
	answer, err := client.SubmitBatch(t.Context(), builder, nil)
	if err != nil {
		return []error{err}
	}
	errs := make([]error, len(names))
	for i, response := range answer.Responses {
		if *response.ContentID != i {
			t.Errorf("answer %d is that of part %d", i, *response.ContentID)
		}
		errs[*response.ContentID] = response.Error
	}
	return errs
}

func testAzureBatches(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "batches"
	account := mustBucket(t, c, bucket)
	keys, err := c.accounts.ListKeys(ctx, bucket, account, nil)
	if err != nil {
		t.Fatal(err)
	}
	credential, err := azblob.NewSharedKeyCredential(account, *keys.Keys[1].Value)
	if err != nil {
		t.Fatal(err)
	}
	client, err := container.NewClientWithSharedKeyCredential(strings.ReplaceAll(a.BlobEndpoint, "{account}", account)+"/"+bucket, credential,
		&container.ClientOptions{ClientOptions: azcore.ClientOptions{Retry: policy.RetryOptions{MaxRetries: -1}}})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range batchLimit + 1 {
		names = append(names, fmt.Sprintf("dir/blob %d", i))
	}
	if err := a.PutBlobs(ctx, bucket, names...); err != nil {
		t.Fatal(err)
	}
	if err := a.Snapshot(ctx, bucket, names[0]); err != nil {
		t.Fatal(err)
	}
	a.ResetRequests(account)
	errs := deleteBatch(t, client, names[:batchLimit]...)
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	requests := a.Requests(account)
	if want := []AzureRequest{{PlaneBlob, "POST", "BlobBatch", "/" + account + "/" + bucket, 202, batchLimit}}; !reflect.DeepEqual(requests, want) {
		t.Errorf("requests are %v, want %v", requests, want)
	}
	if left, err := a.ListBlobs(ctx, bucket, ""); err != nil || len(left) != 1 {
		t.Errorf("%d blobs are left, %v", len(left), err)
	}
	if errs := deleteBatch(t, client, names...); len(errs) != 1 || errs[0] == nil || !strings.Contains(errs[0].Error(), "256 are allowed") {
		t.Errorf("257 parts: got %v", errs[0])
	}

	if err := a.SetPolicy(bucket, 1, false); err != nil {
		t.Fatal(err)
	}
	clear := a.Fail(AzureFault{Operation: "DeleteBlob", PathContains: "batches/fail", Status: 503, Times: 1})
	defer clear()
	errs = deleteBatch(t, client, names[batchLimit], "missing", "fail")
	wantCode(t, "an immutable blob", errs[0], 409, "BlobImmutableDueToPolicy")
	wantCode(t, "a missing blob", errs[1], 404, "BlobNotFound")
	wantCode(t, "a failed part", errs[2], 503, "ServerBusy")

	if _, err := c.accounts.RegenerateKey(ctx, bucket, account, armstorage.AccountRegenerateKeyParameters{KeyName: to.Ptr("key2")}, nil); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a batch with an old key", deleteBatch(t, client, "x")[0], 403, "AuthenticationFailed")
	// Each part is authorized by itself.
	builder, err := client.NewBatchBuilder()
	if err != nil {
		t.Fatal(err)
	}
	if err := builder.Delete("x", nil); err != nil {
		t.Fatal(err)
	}
	answer, err := mustBlobs(t, a, account).ServiceClient().NewContainerClient(bucket).SubmitBatch(ctx, builder, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a part with an old key", answer.Responses[0].Error, 403, "AuthenticationFailed")
}

func testAzureFaults(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "faults"
	account := mustBucket(t, c, bucket)
	get := func() error {
		_, err := c.containers.Get(ctx, bucket, account, bucket, nil)
		return err
	}
	with := func(fault AzureFault) {
		t.Helper()
		fault.PathContains = bucket
		t.Cleanup(a.Fail(fault))
	}

	with(AzureFault{Plane: PlaneARM, Status: 429, RetryAfter: 1500 * time.Millisecond, Times: 1})
	err := get()
	wantCode(t, "throttled", err, 429, "TooManyRequests")
	var response *azcore.ResponseError
	if errors.As(err, &response) && response.RawResponse.Header.Get("Retry-After") != "2" {
		t.Errorf("Retry-After is %q", response.RawResponse.Header.Get("Retry-After"))
	}
	wantCode(t, "after that", get(), 0, "")

	with(AzureFault{Operation: "BlobContainers_Get", Status: 403, Times: 1})
	err = get()
	wantCode(t, "forbidden", err, 403, "AuthorizationFailed")
	if !strings.Contains(err.Error(), "'Microsoft.Storage/storageAccounts/blobServices/containers/read'") {
		t.Errorf("got %v, want the action named", err)
	}
	with(AzureFault{Status: 409, Code: "Other", Times: 1})
	wantCode(t, "another code", get(), 409, "Other")

	a.ResetRequests(bucket)
	with(AzureFault{Drop: true, Times: 1})
	if err := get(); err == nil || errors.As(err, &response) && response.StatusCode == 200 {
		t.Errorf("dropped: got %v", err)
	}
	regenerate := func() error {
		_, err := c.accounts.RegenerateKey(ctx, bucket, account, armstorage.AccountRegenerateKeyParameters{KeyName: to.Ptr("key1")}, nil)
		return err
	}
	before, err := a.Account(account)
	if err != nil {
		t.Fatal(err)
	}
	with(AzureFault{Operation: "StorageAccounts_RegenerateKey", DropAnswer: true, Times: 1})
	if err := regenerate(); err == nil {
		t.Error("the answer was not dropped")
	}
	after, err := a.Account(account)
	if err != nil || after.Keys[0].Value == before.Keys[0].Value {
		t.Errorf("the key was not regenerated: %v", err)
	}
	var seen []string
	for _, request := range a.Requests(bucket) {
		seen = append(seen, fmt.Sprint(request.Operation, request.Status))
	}
	if want := []string{"BlobContainers_Get0", "StorageAccounts_RegenerateKey0"}; !slices.Equal(seen, want) {
		t.Errorf("requests are %v, want %v", seen, want)
	}

	if err := a.SetPolicy(bucket, 3, false); err != nil {
		t.Fatal(err)
	}
	with(AzureFault{Operation: "BlobContainers_LockImmutabilityPolicy", Times: 1, Do: func() {
		if err := a.SetPolicy(bucket, 1, false); err != nil {
			t.Error(err)
		}
	}})
	etag := a.Container(bucket).ETag
	wantCode(t, "a policy that changed meanwhile", changePolicy(ctx, c, bucket, account, "lock", 0, etag), 412, "ContainerImmutabilityPolicyFailure")

	with(AzureFault{Plane: PlaneARM, Status: 500})
	wantCode(t, "an error", get(), 500, "InternalError")
	credential, options, err := a.ClientOptions()
	if err != nil {
		t.Fatal(err)
	}
	a.ResetRequests()
	own, err := armstorage.NewClientFactory(a.SubscriptionID, credential, options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := own.NewBlobContainersClient().Get(ctx, bucket, account, bucket, nil); err != nil {
		t.Errorf("own client: %v", err)
	}
	if _, err := mustBlobs(t, a, account).UploadBuffer(ctx, bucket, "blob", nil, nil); err != nil {
		t.Errorf("own client: %v", err)
	}
	if requests := a.Requests(bucket); len(requests) != 0 {
		t.Errorf("requests of the own client are recorded: %v", requests)
	}
	a.ClearFaults()
	wantCode(t, "without faults", get(), 0, "")
}

func testAzureControl(t *testing.T, a *Azure) {
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "control"
	account := mustBucket(t, c, bucket)
	call := func(method, path, body string, result any) int {
		t.Helper()
		request, err := http.NewRequestWithContext(ctx, method, a.ControlURL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		if result != nil {
			if err := json.NewDecoder(response.Body).Decode(result); err != nil {
				t.Errorf("%s %s: %v", method, path, err)
			}
		}
		return response.StatusCode
	}
	var description AzureDescription
	if status := call("GET", "/", "", &description); status != 200 || description.CloudName != a.CloudName || string(description.SecretData["clientID"]) != a.ClientID {
		t.Errorf("got %d %+v", status, description)
	}
	if status := call("PUT", "/blobs/control/dir/blob", "data", nil); status != 204 {
		t.Errorf("putting a blob: %d", status)
	}
	var blobs []AzureBlob
	if call("GET", "/blobs/control?prefix=dir/", "", &blobs); len(blobs) != 1 || blobs[0].Size != 4 {
		t.Errorf("blobs are %+v", blobs)
	}
	if status := call("PUT", "/policies/control?days=2&locked=true", "", nil); status != 204 {
		t.Errorf("setting a policy: %d", status)
	}
	if status := call("DELETE", "/policies/control", "", nil); status != 400 {
		t.Errorf("deleting a locked policy: %d", status)
	}
	if status := call("PUT", "/legalholds/control/tag1", "", nil); status != 204 {
		t.Errorf("setting a legal hold: %d", status)
	}
	var state ContainerState
	if call("GET", "/containers/control", "", &state); state.State != "Locked" || state.Days != 2 || !slices.Equal(state.LegalHold, []string{"tag1"}) {
		t.Errorf("container is %+v", state)
	}
	if status := call("DELETE", "/legalholds/control/tag1", "", nil); status != 204 || len(a.Container(bucket).LegalHold) != 0 {
		t.Errorf("clearing a legal hold: %d", status)
	}
	var got AzureAccount
	if call("GET", "/accounts/"+account, "", &got); len(got.Keys) != 2 {
		t.Errorf("account is %+v", got)
	}
	if status := call("GET", "/accounts/nobody", "", nil); status != 404 {
		t.Errorf("an account that does not exist: %d", status)
	}
	if status := call("POST", "/faults", `{"Status":500,"PathContains":"containers/control","Times":1}`, nil); status != 204 {
		t.Errorf("a fault: %d", status)
	}
	_, err := c.containers.Get(ctx, bucket, account, bucket, nil)
	wantCode(t, "with a fault", err, 500, "InternalError")
	var requests []AzureRequest
	if call("GET", "/requests?path="+bucket, "", &requests); len(requests) == 0 || requests[len(requests)-1].Status != 500 {
		t.Errorf("requests are %v", requests)
	}
	if status := call("DELETE", "/requests?path="+bucket, "", nil); status != 204 || len(a.Requests(bucket)) != 0 {
		t.Errorf("forgetting the requests: %d", status)
	}
}

// TestAzureClock has an Azure of its own: the clock is the same for all tests.
func TestAzureClock(t *testing.T) {
	t.Parallel()
	a := startAzure(t)
	ctx, c := t.Context(), newAzureClients(t, a)
	const bucket = "clock"
	account := mustBucket(t, c, bucket)
	client := mustBlobs(t, a, account).ServiceClient().NewContainerClient(bucket)
	if err := a.PutBlobs(ctx, bucket, "one", "two", "three", "four"); err != nil {
		t.Fatal(err)
	}
	if err := a.Snapshot(ctx, bucket, "three"); err != nil {
		t.Fatal(err)
	}
	if err := a.SetPolicy(bucket, 2, true); err != nil {
		t.Fatal(err)
	}
	check := func(when string, deleted, overwritten int) {
		t.Helper()
		code := map[int]string{409: "BlobImmutableDueToPolicy"}
		_, err := client.NewBlobClient("one").Delete(ctx, nil)
		wantCode(t, when+": deleting", err, deleted, code[deleted])
		for _, err := range deleteBatch(t, client, "two", "three") {
			wantCode(t, when+": deleting in a batch", err, deleted, code[deleted])
		}
		_, err = client.NewBlockBlobClient("four").UploadBuffer(ctx, []byte("new"), nil)
		wantCode(t, when+": overwriting", err, overwritten, code[overwritten])
	}
	check("at first", 409, 409)
	a.Advance(47 * time.Hour)
	check("before the end", 409, 409)
	if err := a.SetPolicy(bucket, 3, true); err != nil {
		t.Fatal(err)
	}
	a.Advance(2 * time.Hour)
	check("after an extension", 409, 409)
	a.Advance(24 * time.Hour)
	check("after the end", 0, 409)
	if left, err := a.ListBlobs(ctx, bucket, ""); err != nil || len(left) != 1 {
		t.Errorf("%d blobs are left, %v", len(left), err)
	}

	var response *http.Response
	if _, err := client.GetProperties(policy.WithCaptureResponse(ctx, &response), nil); err != nil {
		t.Fatal(err)
	}
	if date, err := http.ParseTime(response.Header.Get("Date")); err != nil || date.Before(time.Now().Add(72*time.Hour)) {
		t.Errorf("the date of an answer is %v, %v", date, err)
	}
	if _, err := c.containers.Get(policy.WithCaptureResponse(ctx, &response), bucket, account, bucket, nil); err != nil {
		t.Fatal(err)
	}
	if date, err := http.ParseTime(response.Header.Get("Date")); err != nil || date.Before(time.Now().Add(72*time.Hour)) {
		t.Errorf("the date of an answer is %v, %v", date, err)
	}
	keys, err := c.accounts.RegenerateKey(ctx, bucket, account, armstorage.AccountRegenerateKeyParameters{KeyName: to.Ptr("key2")}, nil)
	if err != nil || keys.Keys[1].CreationTime.Sub(*keys.Keys[0].CreationTime) < 73*time.Hour {
		t.Errorf("keys are %+v, %v; want their times by the clock", keys.Keys, err)
	}
}

func TestAzureFiles(t *testing.T) {
	t.Parallel()
	a := startAzure(t)
	content, err := os.ReadFile(a.CloudConfig)
	if err != nil {
		t.Fatal(err)
	}
	var clouds map[string]map[string]any
	if err := json.Unmarshal(content, &clouds); err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]any{a.CloudName: {
		"activeDirectoryAuthorityHost": a.EntraEndpoint, "resourceManagerEndpoint": a.ARMEndpoint, "resourceManagerAudience": a.ARMEndpoint,
		"blobEndpoint": a.BlobEndpoint, "disableInstanceDiscovery": true,
	}}
	if !reflect.DeepEqual(clouds, want) {
		t.Errorf("clouds are %v, want %v", clouds, want)
	}
	if ca, err := os.ReadFile(a.CAFile); err != nil || !bytes.Equal(ca, a.CAPEM) {
		t.Errorf("CA is %q, %v", ca, err)
	}
	a.Stop()
	if _, err := os.Stat(a.CAFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Stop: %v, want the files gone", err)
	}
	if _, err := (&http.Client{Transport: a.transport()}).Get(a.ARMEndpoint); err == nil {
		t.Error("after Stop: Resource Manager answers")
	}
}

// The lock file must not say where somebody got the packages from.
func TestAzuriteLockFile(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join("..", "azurite", "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(content, []byte(`"resolved"`)) {
		t.Error("the lock file holds the address of a registry")
	}
	if !regexp.MustCompile(`"node_modules/azurite": \{\s+"version": "3\.37\.0"`).Match(content) {
		t.Error("the lock file does not pin Azurite")
	}
}

func TestAzuriteNeedsNode(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := new(builder).azurite(t.Context()); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "Node.js") {
		t.Errorf("without Node.js: got %v", err)
	}
}
