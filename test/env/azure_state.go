package env

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
)

// ErrAzureNotFound is returned for what is not there.
var ErrAzureNotFound = errors.New("not found in Azure")

// AzureKey is a key of a storage account. Created is zero if Azure does not know.
type AzureKey struct {
	Name, Value string
	Created     time.Time
}

// AzureAccount is a storage account.
type AzureAccount struct {
	Name, ResourceGroup string
	// Resource is what Resource Manager answers, decoded from JSON.
	Resource   map[string]any
	Keys       []AzureKey
	Containers []string
}

// AzureGroup is a resource group.
type AzureGroup struct {
	Name, Location string
	Tags           map[string]any
	// State is Succeeded or Deleting.
	State string
	// Resources are the names of its accounts and other resources.
	Resources []string
}

// ContainerState is a container, its policy and its legal hold.
type ContainerState struct {
	Exists  bool
	Account string
	// State is empty without a policy, else Unlocked or Locked.
	State        string
	Days         int32
	ETag         string
	AppendWrites bool
	History      []PolicyUpdate
	// LegalHold are the tags.
	LegalHold    []string
	PublicAccess string
}

// PolicyUpdate is an entry of the update history of a policy.
type PolicyUpdate struct {
	// Update is put, lock or extend.
	Update string
	Days   int32
	Time   time.Time
}

// ClientOptions returns credentials and options for clients of armstorage and
// armresources. Their requests are neither recorded nor failed.
func (a *Azure) ClientOptions() (azcore.TokenCredential, *arm.ClientOptions, error) {
	options := azcore.ClientOptions{
		Cloud: cloud.Configuration{
			ActiveDirectoryAuthorityHost: a.EntraEndpoint,
			Services:                     map[cloud.ServiceName]cloud.ServiceConfiguration{cloud.ResourceManager: {Endpoint: a.ARMEndpoint, Audience: a.ARMEndpoint}},
		},
		Transport:       &http.Client{Transport: a.transport()},
		PerCallPolicies: []policy.Policy{ownPolicy{}},
	}
	credential, err := azidentity.NewClientSecretCredential(a.TenantID, a.ClientID, a.ClientSecret,
		&azidentity.ClientSecretCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: true})
	if err != nil {
		return nil, nil, fmt.Errorf("making the credential: %w", err)
	}
	return credential, &arm.ClientOptions{ClientOptions: options, DisableRPRegistration: true}, nil
}

// ownPolicy marks requests with ownHeader.
type ownPolicy struct{}

func (ownPolicy) Do(r *policy.Request) (*http.Response, error) {
	r.Raw().Header.Set(ownHeader, "true")
	return r.Next()
}

// Blobs returns a client of the data plane with the first key of an account. Policies
// hold for it, but its requests are neither recorded nor failed.
func (a *Azure) Blobs(account string) (*azblob.Client, error) {
	found, err := a.Account(account)
	if err != nil {
		return nil, err
	}
	credential, err := azblob.NewSharedKeyCredential(account, found.Keys[0].Value)
	if err != nil {
		return nil, fmt.Errorf("making the credential: %w", err)
	}
	client, err := azblob.NewClientWithSharedKeyCredential(strings.ReplaceAll(a.BlobEndpoint, "{account}", account), credential,
		&azblob.ClientOptions{ClientOptions: azcore.ClientOptions{PerCallPolicies: []policy.Policy{ownPolicy{}}}})
	if err != nil {
		return nil, fmt.Errorf("making the client: %w", err)
	}
	return client, nil
}

// Container returns the container with the name of a bucket; one that does not exist is
// no error.
func (a *Azure) Container(bucket string) ContainerState {
	a.mu.Lock()
	defer a.mu.Unlock()
	account, container := a.find(bucket)
	if container == nil {
		return ContainerState{}
	}
	state := ContainerState{Exists: true, Account: account.name, PublicAccess: container.publicAccess}
	if p := container.policy; p != nil {
		state.State, state.Days, state.ETag, state.AppendWrites = p.state(), p.days, p.etag, p.append || p.appendAll
		state.History = slices.Clone(p.history)
	}
	for _, hold := range container.holds {
		state.LegalHold = append(state.LegalHold, hold.tag)
	}
	return state
}

// find needs a.mu.
func (a *Azure) find(bucket string) (*azureAccount, *azureContainer) {
	a.settle()
	for _, account := range a.accounts {
		if container := account.containers[bucket]; container != nil {
			return account, container
		}
	}
	return nil, nil
}

// change calls f for a container.
func (a *Azure) change(bucket string, f func(*azureContainer) *azureAnswer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, container := a.find(bucket)
	if container == nil {
		return fmt.Errorf("container %s: %w", bucket, ErrAzureNotFound)
	}
	if answer := f(container); answer != nil && answer.status >= 300 {
		return fmt.Errorf("changing container %s: %d: %s", bucket, answer.status, answer.body)
	}
	return nil
}

// SetLegalHold puts a bucket under a legal hold.
func (a *Azure) SetLegalHold(bucket string, tags ...string) error {
	return a.setHold(bucket, tags, true)
}

// ClearLegalHold removes tags of a legal hold.
func (a *Azure) ClearLegalHold(bucket string, tags ...string) error {
	return a.setHold(bucket, tags, false)
}

func (a *Azure) setHold(bucket string, tags []string, set bool) error {
	list := []any{}
	for _, tag := range tags {
		list = append(list, tag)
	}
	return a.change(bucket, func(c *azureContainer) *azureAnswer { return a.changeHold(c, map[string]any{"tags": list}, set) })
}

// SetPolicy sets the policy of a bucket behind the daemon's back: it puts an unlocked one
// and may lock it, or extends a locked one. It fails where Azure would.
func (a *Azure) SetPolicy(bucket string, days int32, locked bool) error {
	whatever := policyMatch{given: true, etag: "*"}
	properties := map[string]any{"immutabilityPeriodSinceCreationInDays": float64(days)}
	return a.change(bucket, func(c *azureContainer) *azureAnswer {
		if c.policy != nil && c.policy.locked && locked {
			return a.extendPolicy(c, whatever, properties)
		}
		if answer := a.putPolicy(c, policyMatch{}, properties); answer != nil || !locked {
			return answer
		}
		return a.lockPolicy(c, whatever)
	})
}

// SetAppendWrites allows or forbids protected append writes, which Azure does only while
// the policy is unlocked.
func (a *Azure) SetAppendWrites(bucket string, allowed bool) error {
	return a.change(bucket, func(c *azureContainer) *azureAnswer {
		if c.policy == nil {
			return wrongState()
		}
		return a.putPolicy(c, policyMatch{}, map[string]any{
			"immutabilityPeriodSinceCreationInDays": float64(c.policy.days), "allowProtectedAppendWrites": allowed,
		})
	})
}

// RemovePolicy removes an unlocked policy behind the daemon's back.
func (a *Azure) RemovePolicy(bucket string) error {
	return a.change(bucket, func(c *azureContainer) *azureAnswer { return a.deletePolicy(c, policyMatch{given: true, etag: "*"}) })
}

// SetPublicAccess sets the public access of a container: None, Blob or Container.
func (a *Azure) SetPublicAccess(bucket, access string) error {
	return a.change(bucket, func(c *azureContainer) *azureAnswer {
		c.publicAccess, c.modified, c.etag = access, a.Now(), a.newETag()
		return nil
	})
}

// Account returns a storage account, or ErrAzureNotFound.
func (a *Azure) Account(name string) (AzureAccount, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settle()
	account := a.accounts[name]
	if account == nil {
		return AzureAccount{}, fmt.Errorf("storage account %s: %w", name, ErrAzureNotFound)
	}
	result := AzureAccount{Name: name, ResourceGroup: a.groups[account.group].name, Resource: a.accountJSON(account), Keys: slices.Clone(account.keys[:])}
	for container := range account.containers {
		result.Containers = append(result.Containers, container)
	}
	slices.Sort(result.Containers)
	return result, nil
}

// SetAccountProperty changes what Resource Manager answers for an account, behind the
// daemon's back. The path is such as "properties.minimumTlsVersion" or "tags.owner"; nil
// removes.
func (a *Azure) SetAccountProperty(name, path string, value any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	account := a.accounts[name]
	if account == nil {
		return fmt.Errorf("storage account %s: %w", name, ErrAzureNotFound)
	}
	segments := strings.Split(path, ".")
	object := account.resource
	for _, segment := range segments[:len(segments)-1] {
		next, ok := object[segment].(map[string]any)
		if !ok {
			next = map[string]any{}
			object[segment] = next
		}
		object = next
	}
	last := segments[len(segments)-1]
	if value == nil {
		delete(object, last)
	} else {
		object[last] = value
	}
	return nil
}

// SetKeyCreated sets when a key of an account, key1 or key2, was created; the zero time
// stands for a key that is older than Azure's record of it.
func (a *Azure) SetKeyCreated(account, key string, created time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if found := a.accounts[account]; found != nil {
		for i := range found.keys {
			if found.keys[i].Name == key {
				found.keys[i].Created = created.UTC()
				return nil
			}
		}
	}
	return fmt.Errorf("key %s of storage account %s: %w", key, account, ErrAzureNotFound)
}

// TakeAccountName makes an account name belong to somebody else.
func (a *Azure) TakeAccountName(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken[name] = true
}

// ReleaseAccountName ends TakeAccountName.
func (a *Azure) ReleaseAccountName(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.taken, name)
}

// Group returns a resource group, or ErrAzureNotFound.
func (a *Azure) Group(name string) (AzureGroup, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settle()
	group := a.groups[strings.ToLower(name)]
	if group == nil {
		return AzureGroup{}, fmt.Errorf("resource group %s: %w", name, ErrAzureNotFound)
	}
	result := AzureGroup{Name: group.name, Location: group.location, State: group.state(), Resources: slices.Clone(group.foreign)}
	if group.tags != nil {
		result.Tags = copyJSON(group.tags)
	}
	for account, found := range a.accounts {
		if found.group == strings.ToLower(name) {
			result.Resources = append(result.Resources, account)
		}
	}
	slices.Sort(result.Resources)
	return result, nil
}

// CreateForeign adds a resource, a virtual network, to a group.
func (a *Azure) CreateForeign(group, name string) error {
	return a.foreign(group, func(g *azureGroup) { g.foreign = append(g.foreign, name) })
}

// DeleteForeign removes what CreateForeign added.
func (a *Azure) DeleteForeign(group, name string) error {
	return a.foreign(group, func(g *azureGroup) {
		g.foreign = slices.DeleteFunc(g.foreign, func(other string) bool { return other == name })
	})
}

// CreateShare adds a file share to an account.
func (a *Azure) CreateShare(account, name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := a.accounts[account]
	if found == nil {
		return fmt.Errorf("storage account %s: %w", account, ErrAzureNotFound)
	}
	found.shares = append(found.shares, name)
	return nil
}

func (a *Azure) foreign(group string, change func(*azureGroup)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := a.groups[strings.ToLower(group)]
	if found == nil {
		return fmt.Errorf("resource group %s: %w", group, ErrAzureNotFound)
	}
	change(found)
	return nil
}

// HoldOperations keeps long-running operations of a resource group, its deletion and the
// creation of its accounts, from ending until release is called.
func (a *Azure) HoldOperations(group string) (release func()) {
	group = strings.ToLower(group)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held[group]++
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.held[group]--
	})
}

// inAzurite returns the pool account of a bucket.
func (a *Azure) inAzurite(bucket string) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	account, container := a.find(bucket)
	if container == nil {
		return 0, fmt.Errorf("container %s: %w", bucket, ErrAzureNotFound)
	}
	return account.pool, nil
}

// PutBlob writes a block blob whatever the policy says.
func (a *Azure) PutBlob(ctx context.Context, bucket, name string, data []byte) error {
	return a.PutChecked(ctx, bucket, name, data, "")
}

// PutChecked is PutBlob with an MD5 checksum, in base64, that need not be right.
func (a *Azure) PutChecked(ctx context.Context, bucket, name string, data []byte, sum string) error {
	pool, err := a.inAzurite(bucket)
	if err != nil {
		return err
	}
	header := http.Header{"X-Ms-Blob-Type": {"BlockBlob"}, "Content-Type": {"application/octet-stream"}}
	if sum != "" {
		header.Set("Content-Md5", sum)
	}
	_, err = a.azuriteDo(ctx, http.MethodPut, pool, blobPath(bucket, name), "", header, data)
	return err
}

// PutBlobs writes small blobs, many at a time, whatever the policy says.
func (a *Azure) PutBlobs(ctx context.Context, bucket string, names ...string) error {
	const workers = 8
	failed := make([]error, workers)
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for i := worker; i < len(names) && failed[worker] == nil; i += workers {
				failed[worker] = a.PutBlob(ctx, bucket, names[i], []byte(names[i]))
			}
		})
	}
	group.Wait()
	return errors.Join(failed...)
}

// DeleteBlob deletes a blob with its snapshots whatever the policy says.
func (a *Azure) DeleteBlob(ctx context.Context, bucket, name string) error {
	pool, err := a.inAzurite(bucket)
	if err != nil {
		return err
	}
	_, err = a.azuriteDo(ctx, http.MethodDelete, pool, blobPath(bucket, name), "", http.Header{"X-Ms-Delete-Snapshots": {"include"}}, nil)
	return err
}

// Snapshot takes a snapshot of a blob, as if it was taken before there was a policy.
func (a *Azure) Snapshot(ctx context.Context, bucket, name string) error {
	pool, err := a.inAzurite(bucket)
	if err != nil {
		return err
	}
	_, err = a.azuriteDo(ctx, http.MethodPut, pool, blobPath(bucket, name), "comp=snapshot", nil, nil)
	return err
}

// AzureBlob is a blob, or a snapshot of one.
type AzureBlob struct {
	Name, Snapshot string
	Created        time.Time
	Size           int64
}

// ListBlobs returns the blobs of a bucket whose names begin with a prefix, with their
// snapshots. A bucket that does not exist has none.
func (a *Azure) ListBlobs(ctx context.Context, bucket, prefix string) ([]AzureBlob, error) {
	pool, err := a.inAzurite(bucket)
	if errors.Is(err, ErrAzureNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var blobs []AzureBlob
	for marker := ""; ; {
		query := url.Values{"restype": {"container"}, "comp": {"list"}, "include": {"snapshots"}}
		if prefix != "" {
			query.Set("prefix", prefix)
		}
		if marker != "" {
			query.Set("marker", marker)
		}
		answer, err := a.azuriteDo(ctx, http.MethodGet, pool, "/"+bucket, query.Encode(), nil, nil)
		if err != nil {
			return nil, err
		}
		var page struct {
			Blobs []struct {
				Name       string
				Snapshot   string
				Properties struct {
					Created string `xml:"Creation-Time"`
					Size    int64  `xml:"Content-Length"`
				}
			} `xml:"Blobs>Blob"`
			NextMarker string
		}
		if err := xml.Unmarshal(bytes.TrimPrefix(answer.body, []byte("\ufeff")), &page); err != nil {
			return nil, fmt.Errorf("decoding Azurite's list of blobs: %w", err)
		}
		for _, blob := range page.Blobs {
			created, err := time.Parse(http.TimeFormat, blob.Properties.Created)
			if err != nil {
				return nil, fmt.Errorf("decoding Azurite's list of blobs: %w", err)
			}
			blobs = append(blobs, AzureBlob{blob.Name, blob.Snapshot, created, blob.Properties.Size})
		}
		if marker = page.NextMarker; marker == "" {
			return blobs, nil
		}
	}
}

// blobPath is relative to the account.
func blobPath(bucket, name string) string { return "/" + bucket + "/" + url.PathEscape(name) }
