// What a container on Azure lies in: the resource group, the storage account and its keys.
//
// Rules:
//   - Settings that are weaker than wanted are changed; what cannot be changed is a gap.
//   - A request that regenerates a key is never repeated: the repetition would replace the new key.
//   - An account or group is deleted only if it has our tag, which is set when it is created, and
//     holds nothing but the bucket.

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources/v3"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/storage/armstorage/v2"
)

// checkName keeps a group from being made for an account whose name is taken. It needs a
// permission on the whole subscription: without that the creation will tell.
func (b *azureBucket) checkName(ctx context.Context) error {
	answer, err := azureCall(ctx, "StorageAccounts.CheckName",
		func(ctx context.Context) (armstorage.AccountsClientCheckNameAvailabilityResponse, error) {
			return b.accounts.CheckNameAvailability(ctx, armstorage.AccountCheckNameAvailabilityParameters{Name: &b.Account,
				Type: to.Ptr(azureAccountType)}, nil)
		})
	switch {
	case azureStatus(err) == http.StatusForbidden:
		return nil
	case err != nil:
		return b.fail(err)
	case deref(answer.Reason) == armstorage.ReasonAlreadyExists:
		return b.errorf(codeConfigurationProblem, errNotOurBucket, "bucket %q cannot be created: %s", b.Name,
			b.taken(string(armstorage.ReasonAlreadyExists)))
	}
	return nil
}

// createGroup asks first: writing a group that exists replaces its tags.
func (b *azureBucket) createGroup(ctx context.Context) error {
	_, err := b.group(ctx)
	if azureErrorCode(err) != "ResourceGroupNotFound" {
		return b.failIf(err)
	}
	_, err = azureCall(ctx, "ResourceGroups.Create",
		func(ctx context.Context) (armresources.ResourceGroupsClientCreateOrUpdateResponse, error) {
			return b.groups.CreateOrUpdate(ctx, b.Name, armresources.ResourceGroup{Location: &b.Region, Tags: b.tags()}, nil)
		})
	return b.failIf(err)
}

func (b *azureBucket) group(ctx context.Context) (armresources.ResourceGroupsClientGetResponse, error) {
	return azureCall(ctx, "ResourceGroups.Get", func(ctx context.Context) (armresources.ResourceGroupsClientGetResponse, error) {
		return b.groups.Get(ctx, b.Name, nil)
	})
}

func (b *azureBucket) storageAccount(ctx context.Context) (armstorage.AccountsClientGetPropertiesResponse, error) {
	return azureCall(ctx, "StorageAccounts.Get", func(ctx context.Context) (armstorage.AccountsClientGetPropertiesResponse, error) {
		return b.accounts.GetProperties(ctx, b.Name, b.Account, nil)
	})
}

// readAccount reads the storage account and remembers for all passes what cannot change: whether it has version-level
// immutability ("The property is immutable and can only be set to true at the account creation time",
// learn.microsoft.com/rest/api/storagerp/storage-accounts/create).
func (b *azureBucket) readAccount(ctx context.Context) (*armstorage.Account, error) {
	response, err := b.storageAccount(ctx)
	if err != nil {
		return nil, err
	}
	account := &response.Account
	if account.Properties == nil {
		return nil, &azureCallError{operation: "StorageAccounts.Get", err: errAzureAnswer}
	}
	level := false
	if p := account.Properties.ImmutableStorageWithVersioning; p != nil {
		level = isTrue(p.Enabled) || p.ImmutabilityPolicy != nil
	}
	b.versionLevels.Store(b.Name+"/"+b.Account, level)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.account = account
	return account, nil
}

// hardenedAccount is the account as it was read in this pass, once.
func (b *azureBucket) hardenedAccount(ctx context.Context) (*armstorage.Account, error) {
	b.mu.Lock()
	account := b.account
	b.account = nil
	b.mu.Unlock()
	if account != nil {
		return account, nil
	}
	account, err := b.readAccount(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.account = nil
	return account, err
}

// readVersionLevel finds out whether the account has version-level immutability, unless the container itself has: one request
// for a client, none afterwards. A missing permission leaves it open, which is a gap of Harden.
func (b *azureBucket) readVersionLevel(ctx context.Context, c *azureContainer) error {
	if c.versionLevel != "" {
		return nil
	}
	key := b.Name + "/" + b.Account
	level, known := b.versionLevels.Load(key)
	if !known {
		switch _, err := b.readAccount(ctx); {
		case azureStatus(err) == http.StatusForbidden:
			b.versionLevels.Store(key, false) // until the next Harden
			return nil
		case err != nil:
			return b.fail(err)
		}
		level, _ = b.versionLevels.Load(key)
	}
	if level == true {
		c.versionLevel = fmt.Sprintf("storage account %s", b.Account)
	}
	return nil
}

func (b *azureBucket) createAccount(ctx context.Context) error {
	account, err := b.storageAccount(ctx)
	switch {
	case err == nil:
		// Writing one whose creation failed again is how it is repaired.
		if state := accountProvisioning(account.Account); state == "" || state == armstorage.ProvisioningStateSucceeded {
			return nil
		} else if state != armstorage.ProvisioningStateFailed && state != armstorage.ProvisioningStateCanceled {
			return b.errorf(codeRetryableDependencies, nil, "storage account %s of bucket %q is not ready yet: it is in state %s", b.Account,
				b.Name, state)
		}
	case !azureGone(err):
		return b.fail(err)
	}
	parameters := armstorage.AccountCreateParameters{
		Kind:       &b.cloud.kind,
		Location:   &b.Region,
		Tags:       b.tags(),
		SKU:        &armstorage.SKU{Name: &b.cloud.sku},
		Properties: &armstorage.AccountPropertiesCreateParameters{EnableHTTPSTrafficOnly: to.Ptr(true)},
	}
	if b.cloud.kind == armstorage.KindStorageV2 {
		parameters.Properties.AccessTier = to.Ptr(armstorage.AccessTierCool)
	}
	if azureHas(b.cloud.versions.Storage, azureStorageTLS) {
		parameters.Properties.AllowBlobPublicAccess = to.Ptr(false)
		parameters.Properties.MinimumTLSVersion = to.Ptr(armstorage.MinimumTLSVersionTLS12)
	}
	if b.KeyExpirationDays > 0 && azureHas(b.cloud.versions.Storage, azureStorageKeys) {
		parameters.Properties.KeyPolicy = &armstorage.KeyPolicy{KeyExpirationPeriodInDays: &b.KeyExpirationDays}
	}
	_, err = azureCall(ctx, "StorageAccounts.Create", func(ctx context.Context) (armstorage.AccountsClientCreateResponse, error) {
		var first *http.Response
		poller, err := b.accounts.BeginCreate(policy.WithCaptureResponse(ctx, &first), b.Name, b.Account, parameters, nil)
		if err != nil {
			return armstorage.AccountsClientCreateResponse{}, err
		}
		return awaitAzure(ctx, poller, first, b.clients.pollInterval)
	})
	if err == nil {
		b.versionLevels.Store(b.Name+"/"+b.Account, false) // we did not ask for it
	}
	return b.failIf(err)
}

// awaitAzure polls an operation until it is done, no sooner than the answers say. It does not wait within a pass for longer than
// maxWait at a time: the next pass looks again. The SDK's own way waits however long it is told.
func awaitAzure[T any](ctx context.Context, poller *runtime.Poller[T], response *http.Response, every time.Duration) (out T, err error) {
	for pause := time.Duration(0); !poller.Done(); pause = every {
		delay := time.Duration(0)
		if response != nil {
			delay = retryDelay(response.Header, time.Now())
		}
		if delay > maxWait {
			return out, &azureUnfinished{status: response.StatusCode, after: delay}
		}
		if err := sleep(ctx, max(delay, pause)); err != nil {
			return out, err
		}
		if response, err = poller.Poll(ctx); err != nil {
			return out, err
		}
	}
	return poller.Result(ctx)
}

func accountProvisioning(account armstorage.Account) armstorage.ProvisioningState {
	if account.Properties == nil {
		return ""
	}
	return deref(account.Properties.ProvisioningState)
}

// Harden implements Store. The settings are the account's; the container has none but
// those of its policy.
func (b *azureBucket) Harden(ctx context.Context) ([]string, error) {
	known, err := b.known(ctx)
	if err != nil {
		return nil, err
	}
	var gaps []string
	gap := func(format string, args ...any) { gaps = append(gaps, fmt.Sprintf(format, args...)) }
	if known.public {
		gap("Container %s allows public access; it is left as it is.", b.Name)
	}
	// An unlocked one of ours is set anew.
	if ours := !known.policy.Locked && known.policy == b.Recorded; !known.policy.None() && known.appends() && !ours {
		gap("The immutability policy allows protected append writes, so that blobs can be appended to; it is left as it is.")
	}
	account, err := b.hardenedAccount(ctx)
	if err == nil {
		err = b.readVersionLevel(ctx, known)
	}
	if known.versionLevel != "" {
		gap("It has version-level immutability (%s), under which a container's policy is only a default that blobs need not have; it is "+
			"left as it is.", known.versionLevel)
	}
	if azureStatus(err) == http.StatusForbidden {
		// A missing permission for hardening must not keep the bucket from being locked.
		gap("%s; so it is not known whether the storage account has version-level immutability, under which a container's policy is "+
			"only a default.", b.fail(err))
		return gaps, nil
	}
	if err != nil {
		return gaps, b.fail(err)
	}
	properties := account.Properties
	if sku := account.SKU; sku != nil && deref(sku.Name) != b.cloud.sku && !strings.HasSuffix(string(deref(sku.Name)), "ZRS") {
		gap("Storage account %s is not zone-redundant but %s; it is left as it is.", b.Account, deref(sku.Name))
	}
	if kind := deref(account.Kind); kind != b.cloud.kind {
		gap("Storage account %s is of kind %s and not %s; it is left as it is.", b.Account, kind, b.cloud.kind)
	}
	if version := b.cloud.versions.Storage; !azureHas(version, azureStorageTLS) {
		gap("Version %s of the storage API of cloud %s can neither require TLS 1.2 nor forbid public access.", version, b.cloud.name)
	}
	if location := deref(account.Location); azureRegion(location) != azureRegion(b.Region) {
		gap("Storage account %s lies in region %s and not in %s.", b.Account, location, b.Region)
	}
	if properties.AllowSharedKeyAccess != nil && !*properties.AllowSharedKeyAccess {
		gap("Storage account %s does not allow access with keys, which etcd-backup-restore needs; it is left as it is.", b.Account)
	}
	hardening, err := b.hardenAccount(ctx, properties)
	return append(gaps, hardening...), err
}

// azureRegion makes "West Europe" and "westeurope" the same.
func azureRegion(name string) string {
	return strings.ToLower(strings.ReplaceAll(name, " ", ""))
}

// hardenAccount changes only those settings of the account that are weaker than wanted.
func (b *azureBucket) hardenAccount(ctx context.Context, is *armstorage.AccountProperties) (gaps []string, err error) {
	var change armstorage.AccountPropertiesUpdateParameters
	weak := false
	if !isTrue(is.EnableHTTPSTrafficOnly) {
		change.EnableHTTPSTrafficOnly, weak = to.Ptr(true), true
	}
	known := azureHas(b.cloud.versions.Storage, azureStorageTLS)
	// The versions sort by their names, TLS1_0 to TLS1_3.
	if known && deref(is.MinimumTLSVersion) < armstorage.MinimumTLSVersionTLS12 {
		change.MinimumTLSVersion, weak = to.Ptr(armstorage.MinimumTLSVersionTLS12), true
	}
	if known && (is.AllowBlobPublicAccess == nil || *is.AllowBlobPublicAccess) {
		change.AllowBlobPublicAccess, weak = to.Ptr(false), true
	}
	if b.KeyExpirationDays > 0 && !azureHas(b.cloud.versions.Storage, azureStorageKeys) {
		gaps = append(gaps, fmt.Sprintf("Version %s of the storage API of cloud %s has no key expiration policy.", b.cloud.versions.Storage,
			b.cloud.name))
	} else if b.KeyExpirationDays > 0 && (is.KeyPolicy == nil || deref(is.KeyPolicy.KeyExpirationPeriodInDays) != b.KeyExpirationDays) {
		// "You must regenerate both keys at least once before setting expiration policy"
		// (learn.microsoft.com/azure/storage/common/storage-account-keys-manage), if the time
		// of one is not known.
		if created := is.KeyCreationTime; created != nil && created.Key1 != nil && created.Key2 != nil {
			change.KeyPolicy = &armstorage.KeyPolicy{KeyExpirationPeriodInDays: &b.KeyExpirationDays}
		} else {
			gaps = append(gaps, fmt.Sprintf("Storage account %s cannot have a key expiration policy before both of its keys were rotated once.",
				b.Account))
		}
	}
	if change.KeyPolicy != nil {
		err := b.updateAccount(ctx, change)
		code := azureErrorCode(err)
		if _, other := azureCodes[code]; other || azureStatus(err) != http.StatusBadRequest && azureStatus(err) != http.StatusConflict {
			return b.hardened(gaps, err)
		}
		gaps = append(gaps, fmt.Sprintf("Azure refuses the key expiration policy of storage account %s (%s).", b.Account, code))
		change.KeyPolicy = nil // which the other settings need not wait for
	}
	if !weak {
		return gaps, nil
	}
	return b.hardened(gaps, b.updateAccount(ctx, change))
}

func (b *azureBucket) updateAccount(ctx context.Context, change armstorage.AccountPropertiesUpdateParameters) error {
	_, err := azureCall(ctx, "StorageAccounts.Update", func(ctx context.Context) (armstorage.AccountsClientUpdateResponse, error) {
		return b.accounts.Update(ctx, b.Name, b.Account, armstorage.AccountUpdateParameters{Properties: &change}, nil)
	})
	return err
}

// hardened makes a gap of a change that is denied.
func (b *azureBucket) hardened(gaps []string, err error) ([]string, error) {
	if azureStatus(err) == http.StatusForbidden {
		return append(gaps, b.fail(err).Error()+"."), nil
	}
	return gaps, b.failIf(err)
}

// Keys implements accountStore.
func (b *azureBucket) Keys(ctx context.Context) ([]accessKey, error) {
	response, err := azureCall(ctx, "StorageAccounts.ListKeys", func(ctx context.Context) (armstorage.AccountsClientListKeysResponse, error) {
		return b.accounts.ListKeys(ctx, b.Name, b.Account, nil)
	})
	if err != nil {
		return nil, b.fail(err)
	}
	return b.accessKeys(response.AccountListKeysResult, ""), nil
}

// RegenerateKey implements accountStore.
func (b *azureBucket) RegenerateKey(ctx context.Context, name string) ([]accessKey, error) {
	// If the answer is lost, repeating the request would regenerate the key again; the next
	// pass sees what happened.
	ctx = policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1})
	response, err := azureCall(ctx, "StorageAccounts.RegenerateKey",
		func(ctx context.Context) (armstorage.AccountsClientRegenerateKeyResponse, error) {
			return b.accounts.RegenerateKey(ctx, b.Name, b.Account, armstorage.AccountRegenerateKeyParameters{KeyName: &name}, nil)
		})
	if err != nil {
		return nil, b.fail(err)
	}
	return b.accessKeys(response.AccountListKeysResult, name), nil
}

// accessKeys reads the answer of Azure and remembers a key for the data plane: an old one,
// because it takes a moment until a new one is known everywhere.
func (b *azureBucket) accessKeys(result armstorage.AccountListKeysResult, fresh string) []accessKey {
	var keys []accessKey
	for _, key := range result.Keys {
		if key == nil {
			continue
		}
		if value := strings.TrimSpace(deref(key.Value)); value != "" {
			keys = append(keys, accessKey{Name: deref(key.KeyName), Value: value, Created: deref(key.CreationTime)})
		}
	}
	slices.SortFunc(keys, func(x, y accessKey) int { return cmp.Compare(x.Name, y.Name) })
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.IndexFunc(keys, func(key accessKey) bool { return key.Name != fresh }); i >= 0 {
		b.key = keys[i].Value
	}
	return keys
}

// EntryCredentials implements accountStore.
func (b *azureBucket) EntryCredentials(key accessKey) map[string][]byte {
	return map[string][]byte{
		dataKeyStorageAccount: []byte(b.Account),
		dataKeyStorageKey:     []byte(key.Value),
		dataKeyDomain:         []byte(b.cloud.domain),
	}
}

// azureTag is on the groups and accounts that we made, with the name of the bucket. Nothing
// without it is deleted: a group that looks empty may hold role assignments, locks and
// policies, which no list shows.
const azureTag = "bucketwarden-bucket"

func (b *azureBucket) tags() map[string]*string { return map[string]*string{azureTag: &b.Name} }

// made says whether we made what has these tags; Azure's names of tags have no case
// (learn.microsoft.com/azure/azure-resource-manager/management/tag-resources).
func (b *azureBucket) made(tags map[string]*string) bool {
	for name, value := range tags {
		if strings.EqualFold(name, azureTag) && deref(value) == b.Name {
			return true
		}
	}
	return false
}

// notMade is why something stays.
const notMade = "bucketwarden has not made it (it lacks the tag " + azureTag + ")"

// DeleteAccount implements accountStore.
func (b *azureBucket) DeleteAccount(ctx context.Context, leave permit, begun bool) (AccountState, error) {
	if running, err := b.pollDeletion(ctx); err != nil || running {
		return AccountState{Deleting: running}, err
	}
	group, err := b.group(ctx)
	switch {
	case azureErrorCode(err) == "ResourceGroupNotFound":
		return AccountState{}, nil
	case begun && azureStatus(err) == http.StatusForbidden:
		return AccountState{Kept: fmt.Sprintf("whether resource group %s is gone cannot be seen any more: its deletion was begun, and roles "+
			"on a group go with it.", b.Name)}, nil
	case err != nil:
		return AccountState{}, b.fail(err)
	case group.Properties == nil:
		return AccountState{}, b.fail(&azureCallError{operation: "ResourceGroups.Get", err: errAzureAnswer})
	case deref(group.Properties.ProvisioningState) == "Deleting":
		return AccountState{Deleting: true}, nil
	}
	account, others, err := b.resourcesOfGroup(ctx)
	if err != nil {
		return AccountState{}, err
	}
	if account != nil {
		why := notMade
		if b.made(account.Tags) {
			if why, err = b.occupied(ctx); err != nil {
				return AccountState{}, err
			}
		}
		if why != "" {
			return AccountState{Kept: fmt.Sprintf("resource group %s and storage account %s stay, because %s.", b.Name, b.Account, why)}, nil
		}
	}
	if len(others) > 0 || !b.made(group.Tags) {
		if account != nil {
			if err := leave.ask(ctx); err != nil {
				return AccountState{}, err
			}
			_, err := azureCall(ctx, "StorageAccounts.Delete", func(ctx context.Context) (armstorage.AccountsClientDeleteResponse, error) {
				return b.accounts.Delete(ctx, b.Name, b.Account, nil)
			})
			if err != nil && !azureGone(err) {
				return AccountState{}, b.fail(err)
			}
		}
		why := notMade
		if len(others) > 0 {
			why = "something else is in it, such as " + slices.Min(others)
		}
		return AccountState{Kept: fmt.Sprintf("resource group %s stays, because %s.", b.Name, why)}, nil
	}
	if err := leave.ask(ctx); err != nil {
		return AccountState{}, err
	}
	deletion, err := azureCall(ctx, "ResourceGroups.Delete",
		func(ctx context.Context) (*runtime.Poller[armresources.ResourceGroupsClientDeleteResponse], error) {
			return b.groups.BeginDelete(ctx, b.Name, nil)
		})
	switch {
	case azureErrorCode(err) == "ResourceGroupNotFound":
		return AccountState{}, nil
	case azureErrorCode(err) == "ResourceGroupBeingDeleted":
		return AccountState{Deleting: true}, nil
	case err != nil:
		return AccountState{}, b.fail(err)
	}
	b.rememberDeletion(deletion)
	return AccountState{Started: true}, nil
}

// rememberDeletion keeps a deletion of the group for pollDeletion, unless it has ended. A
// restart or other credentials forget it: then the state of the group tells whether one is
// under way.
func (b *azureBucket) rememberDeletion(poller *runtime.Poller[armresources.ResourceGroupsClientDeleteResponse]) {
	if token, err := poller.ResumeToken(); err == nil {
		b.deletions.Store(b.Name, token)
	}
}

// pollDeletion asks once how the deletion of the group is that was begun before. Azure
// accepts it and may fail and roll it back later: that is told, and the next call begins
// another one.
func (b *azureBucket) pollDeletion(ctx context.Context) (running bool, err error) {
	token, begun := b.deletions.Load(b.Name)
	if !begun {
		return false, nil
	}
	_, err = azureCall(ctx, "ResourceGroups.Delete", func(ctx context.Context) (out armresources.ResourceGroupsClientDeleteResponse,
		err error) {
		poller, err := b.groups.BeginDelete(ctx, b.Name, &armresources.ResourceGroupsClientBeginDeleteOptions{ResumeToken: token.(string)})
		if err != nil {
			return out, err
		}
		if _, err := poller.Poll(ctx); err != nil {
			return out, err
		}
		if running = !poller.Done(); running {
			b.rememberDeletion(poller) // Azure may have moved it
			return out, nil
		}
		return poller.Result(ctx)
	})
	status := azureStatus(err)
	switch {
	case running:
		return true, nil
	case err != nil && (status == 0 || status >= http.StatusInternalServerError || status == http.StatusTooManyRequests ||
		status == http.StatusUnauthorized):
		return false, b.fail(err) // of the question, which can be asked again
	}
	b.deletions.Delete(b.Name)
	if status == http.StatusForbidden || status == http.StatusNotFound {
		return false, nil // it cannot be asked about any more
	}
	return false, b.failIf(err)
}

// resourcesOfGroup returns the account, nil if it is not in the group, and what else is.
func (b *azureBucket) resourcesOfGroup(ctx context.Context) (account *armresources.GenericResourceExpanded, others []string, err error) {
	pager := b.resources.NewListByResourceGroupPager(b.Name, nil)
	for pager.More() {
		page, err := azureCall(ctx, "Resources.List", pager.NextPage)
		switch {
		case azureGone(err):
			return nil, nil, nil
		case err != nil:
			return nil, nil, b.fail(err)
		case page.Value == nil:
			// Nothing is no sign that the group is empty.
			return nil, nil, b.fail(&azureCallError{operation: "Resources.List", err: errAzureAnswer})
		}
		for _, r := range page.Value {
			switch {
			case r == nil:
			case strings.EqualFold(deref(r.Type), azureAccountType) && deref(r.Name) == b.Account:
				account = r
			default:
				others = append(others, deref(r.Type)+" "+deref(r.Name))
			}
		}
	}
	return account, others, nil
}

// occupied says, as a clause, what is in the account besides the bucket, or what has to be
// allowed to know; empty if nothing is.
func (b *azureBucket) occupied(ctx context.Context) (string, error) {
	one := to.Ptr("1")
	for _, kind := range []struct {
		name, operation string
		first           func(ctx context.Context, operation string) (string, error)
	}{
		{"container", "BlobContainers.List", func(ctx context.Context, operation string) (string, error) {
			// More than one, since some do not count.
			return azureFirst(ctx, operation, b.containers.NewListPager(b.Name, b.Account,
				&armstorage.BlobContainersClientListOptions{Maxpagesize: to.Ptr("10")}),
				func(page armstorage.BlobContainersClientListResponse) []*armstorage.ListContainerItem {
					return page.Value
				},
				func(c *armstorage.ListContainerItem) *string { return c.Name })
		}},
		{"file share", "FileShares.List", func(ctx context.Context, operation string) (string, error) {
			return azureFirst(ctx, operation, b.shares.NewListPager(b.Name, b.Account, &armstorage.FileSharesClientListOptions{Maxpagesize: one}),
				func(page armstorage.FileSharesClientListResponse) []*armstorage.FileShareItem { return page.Value },
				func(s *armstorage.FileShareItem) *string { return s.Name })
		}},
		{"queue", "Queues.List", func(ctx context.Context, operation string) (string, error) {
			return azureFirst(ctx, operation, b.queues.NewListPager(b.Name, b.Account, &armstorage.QueueClientListOptions{Maxpagesize: one}),
				func(page armstorage.QueueClientListResponse) []*armstorage.ListQueue { return page.Value },
				func(q *armstorage.ListQueue) *string { return q.Name })
		}},
		{"table", "Tables.List", func(ctx context.Context, operation string) (string, error) {
			return azureFirst(ctx, operation, b.tables.NewListPager(b.Name, b.Account, nil),
				func(page armstorage.TableClientListResponse) []*armstorage.Table { return page.Value },
				func(t *armstorage.Table) *string { return t.Name })
		}},
	} {
		name, err := kind.first(ctx, kind.operation)
		switch {
		case azureStatus(err) == http.StatusForbidden:
			return fmt.Sprintf("the client may not see whether a %s is in it: a role has to allow the action %s", kind.name,
				azureActions[kind.operation]), nil
		case azureUnknownType[azureErrorCode(err)]:
			return fmt.Sprintf("the storage API of the cloud does not tell whether a %s is in it (%s)", kind.name, azureErrorCode(err)), nil
		case err != nil:
			return "", b.fail(err)
		case name != "":
			return fmt.Sprintf("%s %s is in it", kind.name, name), nil
		}
	}
	return "", nil
}

// azureUnknownType are the answers of an API that does not know a kind of resource, or not in this version.
var azureUnknownType = map[string]bool{"InvalidApiVersionParameter": true, "InvalidResourceType": true, "NoRegisteredProviderFound": true}

// azureFirst returns the name of the first item of a list, empty if there is none. Kinds
// of accounts without a service have nothing of it.
func azureFirst[P, I any](ctx context.Context, operation string, pager *runtime.Pager[P], items func(P) []*I,
	name func(*I) *string) (string, error) {
	for pager.More() {
		page, err := azureCall(ctx, operation, pager.NextPage)
		switch {
		case azureGone(err), azureErrorCode(err) == "FeatureNotSupportedForAccount":
			return "", nil
		case err != nil:
			return "", err
		case items(page) == nil:
			return "", &azureCallError{operation: operation, err: errAzureAnswer}
		}
		for _, item := range items(page) {
			if item == nil {
				return "", &azureCallError{operation: operation, err: errAzureAnswer}
			}
			// Azure makes these containers by itself.
			if found := deref(name(item)); found != "$logs" && found != "$blobchangefeed" {
				return found, nil
			}
		}
	}
	return "", nil
}
