// A container on Azure, and its immutability policy.
//
// Rules:
//   - Locked is a locked container-level policy; it can be extended five times, ever.
//   - Each change carries the etag of what was read before: if somebody was faster, it is read anew.
//   - With version-level immutability, of the container or of its whole account, the policy is only a default: no lock.

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/storage/armstorage/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
)

const (
	// azureMaxExtensions: "A maximum of five increases to the effective retention period is
	// allowed over the lifetime of a locked policy"
	// (learn.microsoft.com/azure/storage/blobs/immutable-storage-overview).
	azureMaxExtensions = 5

	azureMaxRetries   = 3
	azureRetryDelay   = 800 * time.Millisecond
	azureTryTimeout   = time.Minute
	azurePollInterval = 2 * time.Second
	azureWriteRounds  = 4
	azurePageSize     = 5000 // the maximum of List Blobs
	azureBatchSize    = 256  // the maximum of Blob Batch
	azureHoldRetry    = time.Hour
	azureUserAgent    = "bucketwarden"

	azureAccountType = "Microsoft.Storage/storageAccounts"
)

// checkAzureBucketName applies
// learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata.
func checkAzureBucketName(name string) error {
	if len(name) >= 3 && len(name) <= 63 && azureBucketPattern.MatchString(name) {
		return nil
	}
	err := configErrorf("bucket name %q is not allowed on Azure: it must be 3 to 63 lower-case letters, digits and single hyphens, and "+
		"begin and end with a letter or digit", name)
	return &storeError{code: codeConfigurationProblem, err: &azureFailure{text: err.Error(), cause: errors.Join(errNotOurBucket, err)}}
}

// azureBucket implements accountStore: a container in a storage account in a resource
// group of the bucket's name.
type azureBucket struct {
	azureSubject
	*azureClient
	clients *azureClients
	cloud   *azureCloud

	mu sync.Mutex
	// last is what was read, nil after a change.
	last *azureContainer
	// key is an access key of the account, once it was needed.
	key string
	// account is what was read of the storage account in this pass, nil if it was not.
	account *armstorage.Account
}

var _ accountStore = &azureBucket{}

// azureContainer is what the management plane says about the container.
type azureContainer struct {
	group, account, exists bool
	policy                 Policy
	etag                   string // of the policy
	// appendWrites and appendWritesAll are the policy's exceptions for appended blocks.
	appendWrites, appendWritesAll *bool
	extensions                    int32
	legalHold, public             bool
	history                       *policyHistory
	// versionLevel says that the policy is only a default, which each blob may have or not, and by what, as the subject of a
	// sentence; empty if it is not so: learn.microsoft.com/azure/storage/blobs/immutable-version-level-worm-policies.
	versionLevel string
}

// effective is the policy as far as it holds for all blobs, and what is only a default.
func (c *azureContainer) effective() (all, byDefault Policy) {
	if c.versionLevel != "" {
		return Policy{}, c.policy
	}
	return c.policy, Policy{}
}

// retention is how many days every blob is retained.
func (c *azureContainer) retention() int {
	if c.versionLevel != "" {
		return 0
	}
	return int(c.policy.Days)
}

func (c *azureContainer) appends() bool { return isTrue(c.appendWrites) || isTrue(c.appendWritesAll) }

func isTrue(b *bool) bool { return b != nil && *b }

// read asks for the container. The answer has its policy: one request.
func (b *azureBucket) read(ctx context.Context) (*azureContainer, error) {
	response, err := azureCall(ctx, "BlobContainers.Get", func(ctx context.Context) (armstorage.BlobContainersClientGetResponse, error) {
		return b.containers.Get(ctx, b.Name, b.Account, b.Name, nil)
	})
	c := &azureContainer{group: true, account: true, exists: err == nil}
	if err != nil {
		switch code := azureErrorCode(err); {
		case azureStatus(err) != http.StatusNotFound:
			return nil, b.fail(err)
		case code == "ResourceGroupNotFound":
			c.group, c.account = false, false
		case code == "ResourceNotFound", code == "ParentResourceNotFound":
			c.account = false
		case code != "ContainerNotFound":
			return nil, b.fail(err)
		}
	} else if properties := response.ContainerProperties; properties == nil {
		// Nothing is no sign that there is no policy.
		return nil, b.fail(&azureCallError{operation: "BlobContainers.Get", err: errAzureAnswer})
	} else {
		c.legalHold = isTrue(properties.HasLegalHold)
		c.public = properties.PublicAccess != nil && *properties.PublicAccess != armstorage.PublicAccessNone
		if versions := properties.ImmutableStorageWithVersioning; versions != nil && (isTrue(versions.Enabled) ||
			deref(versions.MigrationState) != "") {
			c.versionLevel = fmt.Sprintf("container %s", b.Name)
		}
		if err := b.readPolicy(c, properties.ImmutabilityPolicy); err != nil {
			return nil, err
		}
		if !c.policy.None() {
			if err := b.readVersionLevel(ctx, c); err != nil {
				return nil, err
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = c
	return c, nil
}

// readPolicy reads the policy of a container. One that is missing may be there with the
// state Deleted, or without days.
func (b *azureBucket) readPolicy(c *azureContainer, p *armstorage.ImmutabilityPolicyProperties) error {
	c.extensions, c.history = azureMaxExtensions, readAzureHistory(p)
	if p == nil || p.Properties == nil || deref(p.Properties.ImmutabilityPeriodSinceCreationInDays) <= 0 {
		return nil
	}
	policy := Policy{Days: *p.Properties.ImmutabilityPeriodSinceCreationInDays}
	switch state := deref(p.Properties.State); state {
	case armstorage.ImmutabilityPolicyStateLocked:
		policy.Locked = true
	case armstorage.ImmutabilityPolicyStateUnlocked:
	case "Deleted":
		return nil
	default:
		return b.errorf(codeConfigurationProblem, nil, "the immutability policy of container %q is in state %q, which is neither %s nor %s",
			b.Name, string(state), armstorage.ImmutabilityPolicyStateLocked, armstorage.ImmutabilityPolicyStateUnlocked)
	}
	if deref(p.Etag) == "" {
		return b.errorf(codeRetryableDependencies, nil, "Azure answers with the immutability policy of container %q without an etag, "+
			"without which it cannot be changed safely", b.Name)
	}
	for _, update := range p.UpdateHistory {
		if update != nil && deref(update.Update) == armstorage.ImmutabilityPolicyUpdateTypeExtend && c.extensions > 0 {
			c.extensions--
		}
	}
	c.policy, c.etag = policy, *p.Etag
	c.appendWrites, c.appendWritesAll = p.Properties.AllowProtectedAppendWrites, p.Properties.AllowProtectedAppendWritesAll
	return nil
}

// azureMaxHistory bounds the changes of a policy that are remembered: an unlocked one can be changed any number of times.
const azureMaxHistory = 50

// readAzureHistory reads who changed a policy, and when.
func readAzureHistory(p *armstorage.ImmutabilityPolicyProperties) *policyHistory {
	if p == nil || len(p.UpdateHistory) == 0 {
		return nil
	}
	h := &policyHistory{}
	for _, u := range p.UpdateHistory[max(0, len(p.UpdateHistory)-azureMaxHistory):] {
		if u != nil {
			h.updates = append(h.updates, policyUpdate{Update: string(deref(u.Update)), Days: deref(u.ImmutabilityPeriodSinceCreationInDays),
				Time: deref(u.Timestamp).UTC(), Object: deref(u.ObjectIdentifier), Tenant: deref(u.TenantID), User: deref(u.Upn)})
		}
	}
	return h
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// known is what was read last, read now if nothing was or if it changed since.
func (b *azureBucket) known(ctx context.Context) (*azureContainer, error) {
	b.mu.Lock()
	last := b.last
	b.mu.Unlock()
	if last != nil {
		return last, nil
	}
	return b.read(ctx)
}

// forget makes the next use of the container's state read it.
func (b *azureBucket) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = nil
}

// Observe implements Store.
func (b *azureBucket) Observe(ctx context.Context) (BucketState, error) {
	c, err := b.read(ctx)
	switch {
	case err != nil:
		return BucketState{}, err
	case !c.exists:
		return BucketState{Remains: c.group}, nil
	}
	all, byDefault := c.effective()
	return BucketState{Exists: true, Policy: all, Default: byDefault, Extensions: &c.extensions,
		Appends: !all.None() && c.appends(), History: c.history}, nil
}

// Create implements Store. What exists is adopted as it is. A container can get a policy at
// any time.
func (b *azureBucket) Create(ctx context.Context, _ bool) error {
	known, err := b.known(ctx)
	if err != nil {
		return err
	}
	if known.exists {
		return nil
	}
	b.forget()
	if !known.account {
		if !known.group {
			if err := b.checkName(ctx); err != nil {
				return err
			}
			if err := b.createGroup(ctx); err != nil {
				return err
			}
		}
		if err := b.createAccount(ctx); err != nil {
			return err
		}
	}
	_, err = azureCall(ctx, "BlobContainers.Create", func(ctx context.Context) (armstorage.BlobContainersClientCreateResponse, error) {
		return b.containers.Create(ctx, b.Name, b.Account, b.Name, armstorage.BlobContainer{
			ContainerProperties: &armstorage.ContainerProperties{PublicAccess: to.Ptr(armstorage.PublicAccessNone)},
		}, nil)
	})
	if err != nil {
		return b.fail(err)
	}
	return nil
}

func (b *azureBucket) failIf(err error) error {
	if err != nil {
		return b.fail(err)
	}
	return nil
}

// SetPolicy implements Store.
func (b *azureBucket) SetPolicy(ctx context.Context, p Policy) error {
	p.Locked = false
	return b.changePolicy(ctx, p, func(live *azureContainer) (bool, error) {
		switch {
		case live.policy.Locked:
			return false, b.errorf(codeConfigurationProblem, nil, "the immutability policy of container %q is a %s by now, which can be "+
				"neither changed nor removed", b.Name, live.policy)
		case p.None() && live.policy.None(), live.policy == p && !live.appends():
			return true, nil
		case p.None():
			return true, b.deletePolicy(ctx, live)
		}
		return true, b.putPolicy(ctx, live, p)
	})
}

// LockPolicy implements Store. What is locked is always what was read back from Azure with
// exactly the days that are asked for.
func (b *azureBucket) LockPolicy(ctx context.Context, p Policy) error {
	p.Locked = false
	return b.changePolicy(ctx, p, func(live *azureContainer) (bool, error) {
		switch {
		case live.policy.Locked && live.policy.Days >= p.Days:
			return true, nil
		case live.policy.Locked && live.extensions <= 0:
			return false, b.errorf(codeConfigurationProblem, nil, "the %s of container %q cannot be extended to %s: Azure allows that %d "+
				"times, and that has been done", live.policy, b.Name, p.Hours(), azureMaxExtensions)
		case live.policy.Locked:
			return true, b.extendPolicy(ctx, live, p)
		case live.policy == p && !live.appends():
			_, err := azureCall(ctx, "ImmutabilityPolicies.Lock",
				func(ctx context.Context) (armstorage.BlobContainersClientLockImmutabilityPolicyResponse, error) {
					return b.containers.LockImmutabilityPolicy(ctx, b.Name, b.Account, b.Name, live.etag, nil)
				})
			return true, err
		}
		return false, b.putPolicy(ctx, live, p)
	})
}

// changePolicy repeats a step with the state as it is then until the step says that it was
// the last one. A step that comes too late, because somebody else changed the policy
// meanwhile, is made again on a fresh read, unless it would weaken what they did.
func (b *azureBucket) changePolicy(ctx context.Context, want Policy, step func(*azureContainer) (last bool, err error)) error {
	var expected *Policy
	for range azureWriteRounds {
		live, err := b.known(ctx)
		if err != nil {
			return err
		}
		if !live.exists {
			return b.errorf(codeRetryableDependencies, nil, "container %q does not exist any more", b.Name)
		}
		if !want.None() {
			// Whoever finds a policy has asked before.
			if err := b.readVersionLevel(ctx, live); err != nil {
				return err
			}
		}
		if live.versionLevel != "" && !want.None() {
			return b.errorf(codeConfigurationProblem, nil, "%s has version-level immutability, under which the policy of container %q "+
				"is only a default: blobs may be written with another one or none, so it locks nothing. That cannot be switched off: use a "+
				"bucket in a storage account without it, or ask for no immutability in spec.providerConfig", live.versionLevel, b.Name)
		}
		if expected != nil && live.policy != *expected && !live.policy.Locked && want.Days < live.policy.Days {
			return b.errorf(codeRetryableDependencies, nil, "somebody else changed the immutability policy of container %q to an %s meanwhile",
				b.Name, live.policy)
		}
		b.forget()
		last, err := step(live)
		switch {
		case err == nil && last:
			return nil
		case err == nil:
			expected = &want
		case azureStatus(err) == http.StatusPreconditionFailed:
			expected = &live.policy
		default:
			return b.fail(err)
		}
	}
	return b.errorf(codeRetryableDependencies, nil, "the immutability policy of container %q changes again and again: somebody else "+
		"keeps writing it", b.Name)
}

// putPolicy sets an unlocked policy. Protected append writes would let blobs grow that are
// meant to be immutable.
func (b *azureBucket) putPolicy(ctx context.Context, live *azureContainer, p Policy) error {
	options := &armstorage.BlobContainersClientCreateOrUpdateImmutabilityPolicyOptions{Parameters: &armstorage.ImmutabilityPolicy{
		Properties: &armstorage.ImmutabilityPolicyProperty{
			ImmutabilityPeriodSinceCreationInDays: &p.Days,
			AllowProtectedAppendWrites:            to.Ptr(false), AllowProtectedAppendWritesAll: to.Ptr(false),
		},
	}}
	if live.etag != "" {
		options.IfMatch = &live.etag
	}
	_, err := azureCall(ctx, "ImmutabilityPolicies.Put",
		func(ctx context.Context) (armstorage.BlobContainersClientCreateOrUpdateImmutabilityPolicyResponse, error) {
			return b.containers.CreateOrUpdateImmutabilityPolicy(ctx, b.Name, b.Account, b.Name, options)
		})
	return err
}

func (b *azureBucket) deletePolicy(ctx context.Context, live *azureContainer) error {
	_, err := azureCall(ctx, "ImmutabilityPolicies.Delete",
		func(ctx context.Context) (armstorage.BlobContainersClientDeleteImmutabilityPolicyResponse, error) {
			return b.containers.DeleteImmutabilityPolicy(ctx, b.Name, b.Account, b.Name, live.etag, nil)
		})
	return err
}

// extendPolicy leaves the append writes as they are: "This property cannot be changed with
// ExtendImmutabilityPolicy API"
// (learn.microsoft.com/rest/api/storagerp/blob-containers/extend-immutability-policy).
func (b *azureBucket) extendPolicy(ctx context.Context, live *azureContainer, p Policy) error {
	_, err := azureCall(ctx, "ImmutabilityPolicies.Extend",
		func(ctx context.Context) (armstorage.BlobContainersClientExtendImmutabilityPolicyResponse, error) {
			return b.containers.ExtendImmutabilityPolicy(ctx, b.Name, b.Account, b.Name, live.etag,
				&armstorage.BlobContainersClientExtendImmutabilityPolicyOptions{
					Parameters: &armstorage.ImmutabilityPolicy{Properties: &armstorage.ImmutabilityPolicyProperty{
						ImmutabilityPeriodSinceCreationInDays: &p.Days,
						AllowProtectedAppendWrites:            live.appendWrites, AllowProtectedAppendWritesAll: live.appendWritesAll,
					}},
				})
		})
	return err
}

// azureKept are the refusals to delete a container because of what protects it. Those of
// the management plane are known from reports only.
var azureKept = map[string]bool{
	"ContainerHasLegalHold": true, "ContainerImmutabilityPolicyLocked": true, "ContainerImmutableStorageWithVersioningEnabled": true,
	"ContainerProtectedFromDeletion": true, "BlobImmutableDueToLegalHold": true, "BlobImmutableDueToPolicy": true,
}

// Delete implements Store. It is the management plane that deletes: the data plane refuses
// an empty container too while it has a locked policy
// (learn.microsoft.com/rest/api/storageservices/blob-service-error-codes, ContainerImmutabilityPolicyLocked).
// That plane however deletes a container with all that is in it where no policy protects it.
func (b *azureBucket) Delete(ctx context.Context, leave permit) error {
	known, err := b.known(ctx)
	if err != nil || !known.exists {
		return err
	}
	b.forget()
	blobs, subject, err := b.blobs(ctx)
	if azureGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	pager := blobs.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{MaxResults: to.Ptr[int32](1),
		Include: container.ListBlobsInclude{Versions: azureHas(b.cloud.versions.Blob, azureBlobVersions), Snapshots: true}})
	for pager.More() {
		page, err := azureCall(ctx, "Blobs.List", pager.NextPage)
		switch {
		case azureGone(err):
			return nil
		case err != nil:
			return subject.fail(err)
		case page.Segment == nil:
			return subject.fail(&azureCallError{operation: "Blobs.List", err: errAzureAnswer})
		case len(page.Segment.BlobItems) > 0:
			return b.errorf("", errBucketNotEmpty, "bucket %q cannot be deleted: %s", b.Name, errBucketNotEmpty)
		}
	}
	err = b.deleteContainer(ctx, leave)
	if azureErrorCode(err) == azureLeased {
		if err := b.breakContainerLease(ctx, leave, blobs, subject); err != nil {
			return err
		}
		err = b.deleteContainer(ctx, leave)
	}
	var refused *permitError
	switch {
	case err == nil, azureGone(err):
		return nil
	case errors.As(err, &refused):
		return refused.err
	case azureErrorCode(err) == azureLeased:
		return &waitError{reason: fmt.Sprintf("somebody holds a lease on container %s, and took it anew after it was broken", b.Name),
			after: azureHoldRetry}
	case !azureKept[azureErrorCode(err)]:
		return b.fail(err)
	}
	if known.legalHold || azureErrorCode(err) == "ContainerHasLegalHold" {
		return &waitError{reason: fmt.Sprintf("container %s is under a legal hold, which somebody has to clear", b.Name), after: azureHoldRetry}
	}
	return &waitError{reason: fmt.Sprintf("Azure keeps container %s because of its immutability policy (%s)", b.Name, azureErrorCode(err)),
		after: azureHoldRetry}
}

// deleteContainer makes one attempt to delete the container. An error of the permit is not Azure's.
func (b *azureBucket) deleteContainer(ctx context.Context, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return &permitError{err}
	}
	_, err := azureCall(ctx, "BlobContainers.Delete", func(ctx context.Context) (armstorage.BlobContainersClientDeleteResponse, error) {
		return b.containers.Delete(ctx, b.Name, b.Account, b.Name, nil)
	})
	return err
}

// breakContainerLease ends a lease on the container, which need not end by itself and keeps the container. What is refused
// shows when the container is deleted again.
func (b *azureBucket) breakContainerLease(ctx context.Context, leave permit, blobs *container.Client, subject *azureSubject) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	client, err := lease.NewContainerClient(blobs, nil)
	if err != nil {
		return b.fail(err)
	}
	_, err = azureCall(ctx, "Container.BreakLease", func(ctx context.Context) (lease.ContainerBreakResponse, error) {
		return client.BreakLease(ctx, &lease.ContainerBreakOptions{BreakPeriod: to.Ptr[int32](0)})
	})
	if azureStatus(err) == http.StatusConflict || err == nil {
		return nil // it is broken already, or not leased any more
	}
	if failure := subject.fail(err); isTransient(failure) {
		return failure
	}
	return nil
}
