package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	stdjson "encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources/v3"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/storage/armstorage/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	// azureMaxExtensions: "A maximum of five increases to the effective retention period is
	// allowed over the lifetime of a locked policy"
	// (learn.microsoft.com/azure/storage/blobs/immutable-storage-overview).
	azureMaxExtensions = 5

	azureMaxClients      = 32
	azureMaxRetries      = 3
	azureRetryDelay      = 800 * time.Millisecond
	azureMaxRetryDelay   = 30 * time.Second
	azureTryTimeout      = time.Minute
	azurePollInterval    = 2 * time.Second
	azureWriteRounds     = 4
	azurePageSize        = 5000 // the maximum of List Blobs
	azureBatchSize       = 256  // the maximum of Blob Batch
	azureBatchesInFlight = 3
	azureMaxPurgeRounds  = 5
	azureHoldRetry       = time.Hour
	azureUserAgent       = "bucketwarden"

	azureAccountType = "Microsoft.Storage/storageAccounts"
)

// Keys of Azure credentials secrets: those of BackupBuckets as in
// gardener/gardener-extension-provider-azure pkg/azure/types.go.
const (
	azureKeySubscriptionID = "subscriptionID"
	azureKeyTenantID       = "tenantID"
	azureKeyClientID       = "clientID"
	azureKeyClientSecret   = "clientSecret"
	azureKeyToken          = dataKeyToken
	azureKeyConfig         = dataKeyConfig
)

var (
	// azureIDPattern is what may stand in a URL path: IDs are GUIDs, tenants may be domains.
	azureIDPattern      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,126}[A-Za-z0-9])?$`)
	azureAccountPattern = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	azureBucketPattern  = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	azureDomainPattern  = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*(:[0-9]{1,5})?$`)
	// azureVolatilePattern is what changes between two answers about the same: request IDs
	// and times.
	azureVolatilePattern = regexp.MustCompile(`(?i)\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[0-9.]*(Z|[+-]\d\d:\d\d)?`)
)

// azureCloud is where the planes of a cloud are.
type azureCloud struct {
	name                     string
	config                   cloud.Configuration
	disableInstanceDiscovery bool
	// blobEndpoint is a URL with {account} in it; domain is what of it the generated
	// secret publishes.
	blobEndpoint, domain string
}

const azureAccountPlaceholder = "{account}"

// url is where the container of an account is.
func (c *azureCloud) url(account, container string) string {
	return strings.Replace(c.blobEndpoint, azureAccountPlaceholder, account, 1) + "/" + container
}

func azurePublicCloud(name string, config cloud.Configuration, domain string) *azureCloud {
	return &azureCloud{name: name, config: config, blobEndpoint: "https://" + azureAccountPlaceholder + "." + domain, domain: domain}
}

// azureKnownClouds are the clouds that need no configuration, as in
// gardener/gardener-extension-provider-azure pkg/azure/client/helper.go and storage.go.
var azureKnownClouds = []*azureCloud{
	azurePublicCloud("AzurePublic", cloud.AzurePublic, "blob.core.windows.net"),
	azurePublicCloud("AzureChina", cloud.AzureChina, "blob.core.chinacloudapi.cn"),
	azurePublicCloud("AzureGovernment", cloud.AzureGovernment, "blob.core.usgovcloudapi.net"),
}

// azureClouds are custom Azure clouds by lower-case name.
type azureClouds map[string]*azureCloud

// azureCloudConfig is an entry of the file that --azure-cloud-config names.
type azureCloudConfig struct {
	ActiveDirectoryAuthorityHost string `json:"activeDirectoryAuthorityHost"`
	ResourceManagerEndpoint      string `json:"resourceManagerEndpoint"`
	ResourceManagerAudience      string `json:"resourceManagerAudience"`
	BlobEndpoint                 string `json:"blobEndpoint"`
	DisableInstanceDiscovery     bool   `json:"disableInstanceDiscovery"`
}

// loadAzureClouds reads the file that --azure-cloud-config names; none if it is empty.
func loadAzureClouds(file string) (azureClouds, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the Azure clouds: %w", err)
	}
	clouds, err := parseAzureClouds(data)
	if err != nil {
		return nil, fmt.Errorf("reading the Azure clouds from %s: %w", file, err)
	}
	return clouds, nil
}

func parseAzureClouds(data []byte) (azureClouds, error) {
	var configs map[string]azureCloudConfig
	strict, err := json.UnmarshalStrict(data, &configs)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err != nil {
		return nil, fmt.Errorf("not a JSON object of clouds by name: %w", err)
	}
	names, domains := map[string]string{}, map[string]string{}
	for _, c := range azureKnownClouds {
		names[strings.ToLower(c.name)], domains[c.domain] = c.name, c.name
	}
	clouds := azureClouds{}
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		c, err := configs[name].cloud(name)
		if err != nil {
			return nil, fmt.Errorf("cloud %q: %w", name, err)
		}
		key := strings.ToLower(name)
		if other, taken := names[key]; taken {
			return nil, fmt.Errorf("cloud %q has the name of cloud %q: names are compared without case", name, other)
		}
		if other, taken := domains[c.domain]; taken {
			return nil, fmt.Errorf("cloud %q: blobEndpoint has the domain %s of cloud %q", name, c.domain, other)
		}
		names[key], domains[c.domain], clouds[key] = name, name, c
	}
	return clouds, nil
}

func (c azureCloudConfig) cloud(name string) (*azureCloud, error) {
	if name == "" {
		return nil, errors.New("it has no name")
	}
	for field, value := range map[string]string{"activeDirectoryAuthorityHost": c.ActiveDirectoryAuthorityHost, "resourceManagerEndpoint": c.ResourceManagerEndpoint} {
		// The SDK sends tokens over TLS only.
		if u, err := url.Parse(value); err != nil || u.Scheme != "https" || !plainURL(u) {
			return nil, fmt.Errorf("%s is not the https URL of a host", field)
		}
	}
	if c.ResourceManagerAudience == "" {
		return nil, errors.New("resourceManagerAudience is missing")
	}
	out := &azureCloud{
		name:                     name,
		disableInstanceDiscovery: c.DisableInstanceDiscovery,
		blobEndpoint:             strings.TrimSuffix(c.BlobEndpoint, "/"),
		config: cloud.Configuration{
			ActiveDirectoryAuthorityHost: c.ActiveDirectoryAuthorityHost,
			Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
				cloud.ResourceManager: {Endpoint: c.ResourceManagerEndpoint, Audience: c.ResourceManagerAudience},
			},
		},
	}
	const account = "account"
	u, err := url.Parse(strings.Replace(out.blobEndpoint, azureAccountPlaceholder, account, 1))
	if err == nil && (u.Scheme == "http" || u.Scheme == "https") && plainURL(u) && strings.Count(out.blobEndpoint, azureAccountPlaceholder) == 1 {
		domain, inHost := strings.CutPrefix(u.Host, account+".")
		switch {
		case inHost && u.Path == "":
			out.domain = strings.ToLower(domain)
		case u.Path == "/"+account:
			out.domain = strings.ToLower(u.Host)
		}
	}
	if !azureDomainPattern.MatchString(out.domain) {
		return nil, fmt.Errorf("blobEndpoint is not an http or https URL with %s either as first label of the host or as path, such as https://%[1]s.blob.example.com or http://host:10000/%[1]s", azureAccountPlaceholder)
	}
	return out, nil
}

// plainURL says that a URL has a host and nothing after its path.
func plainURL(u *url.URL) bool {
	return u.Hostname() != "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
}

// choose returns the cloud of a bucket, by its name or its region.
func (c azureClouds) choose(name, region string) (*azureCloud, error) {
	if name == "" {
		name = "AzurePublic"
		region = strings.ToLower(region)
		switch {
		case strings.HasPrefix(region, "usgov"), strings.HasPrefix(region, "usdod"), strings.HasPrefix(region, "ussec"):
			name = "AzureGovernment"
		case strings.HasPrefix(region, "china"):
			name = "AzureChina"
		}
	}
	if custom := c[strings.ToLower(name)]; custom != nil {
		return custom, nil
	}
	known := make([]string, 0, len(azureKnownClouds)+len(c))
	for _, k := range azureKnownClouds {
		if strings.EqualFold(k.name, name) {
			return k, nil
		}
		known = append(known, k.name)
	}
	for _, custom := range c {
		known = append(known, custom.name)
	}
	slices.Sort(known)
	return nil, &storeError{code: codeConfigurationProblem, err: configErrorf(
		"spec.providerConfig.cloudConfiguration.name is %q, which is no cloud that is known here: it must be one of %s", name, strings.Join(known, ", "))}
}

// ofDomain returns the cloud that a domain belongs to.
func (c azureClouds) ofDomain(domain string) *azureCloud {
	for _, custom := range c {
		if custom.domain == domain {
			return custom
		}
	}
	return azurePublicCloud("", cloud.Configuration{}, domain)
}

// azureConfig is the content of a BackupBucket's credentials secret.
type azureConfig struct {
	subscriptionID, tenantID, clientID string
	clientSecret, token                string // one of the two
}

// azureValue is a value of a secret; people create them with a trailing newline.
func azureValue(credentials map[string][]byte, key string) string {
	return string(bytes.TrimSpace(credentials[key]))
}

// azureLacks names the keys that a secret lacks, as a *configError.
func azureLacks(credentials map[string][]byte, keys ...string) error {
	missing := slices.DeleteFunc(keys, func(key string) bool { return azureValue(credentials, key) != "" })
	if len(missing) == 0 {
		return nil
	}
	return configErrorf("the credentials secret lacks %s", strings.Join(missing, ", "))
}

func parseAzureCredentials(credentials map[string][]byte) (*azureConfig, error) {
	value := func(key string) string { return azureValue(credentials, key) }
	c := &azureConfig{
		subscriptionID: value(azureKeySubscriptionID), tenantID: value(azureKeyTenantID), clientID: value(azureKeyClientID),
		clientSecret: value(azureKeyClientSecret), token: value(azureKeyToken),
	}
	if c.clientSecret != "" && c.token != "" {
		return nil, configErrorf("the credentials secret has both %s and %s (workload identity): keep one of the two", azureKeyClientSecret, azureKeyToken)
	}
	raw := value(azureKeyConfig)
	if c.token == "" || raw == "" {
		required := []string{azureKeySubscriptionID, azureKeyTenantID, azureKeyClientID}
		switch {
		case c.token != "":
		case raw != "":
			required = []string{azureKeyToken}
		default:
			required = append(required, azureKeyClientSecret)
		}
		if err := azureLacks(credentials, required...); err != nil {
			return nil, err
		}
	} else {
		// gardener/gardener-extension-provider-azure pkg/apis/azure/v1alpha1/types_workloadidentity.go
		var config struct {
			SubscriptionID string `json:"subscriptionID"`
			TenantID       string `json:"tenantID"`
			ClientID       string `json:"clientID"`
		}
		if err := yaml.Unmarshal([]byte(raw), &config); err != nil {
			return nil, configErrorf("%s in the credentials secret is not a WorkloadIdentityConfig in JSON or YAML", azureKeyConfig)
		}
		c.subscriptionID = cmp.Or(c.subscriptionID, strings.TrimSpace(config.SubscriptionID))
		c.tenantID = cmp.Or(c.tenantID, strings.TrimSpace(config.TenantID))
		c.clientID = cmp.Or(c.clientID, strings.TrimSpace(config.ClientID))
	}
	for _, id := range []struct{ key, value string }{
		{azureKeySubscriptionID, c.subscriptionID}, {azureKeyTenantID, c.tenantID}, {azureKeyClientID, c.clientID},
	} {
		if id.value == "" {
			return nil, configErrorf("the credentials secret has %s neither as a key nor in %s", id.key, azureKeyConfig)
		}
		if !azureIDPattern.MatchString(id.value) {
			return nil, configErrorf("%s in the credentials secret is not an ID such as 00000000-0000-0000-0000-000000000000", id.key)
		}
	}
	return c, nil
}

// azureClients opens buckets and caches the clients of the management plane, one for each
// cloud and content of a secret, since they hold tokens.
type azureClients struct {
	metrics   *metrics
	clouds    azureClouds
	transport *http.Transport
	// retryDelay and pollInterval are shorter in tests.
	retryDelay, pollInterval time.Duration

	mu      sync.Mutex
	clients map[[sha256.Size]byte]*azureClient
	uses    uint64
}

// newAzureClients returns an empty cache of clients that report to m; clouds are the
// custom ones.
func newAzureClients(m *metrics, clouds azureClouds) *azureClients {
	return &azureClients{
		metrics: m, clouds: clouds, retryDelay: azureRetryDelay, pollInterval: azurePollInterval,
		clients: map[[sha256.Size]byte]*azureClient{},
		transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 45 * time.Second,
			ExpectContinueTimeout: time.Second,
			IdleConnTimeout:       90 * time.Second,
			MaxIdleConnsPerHost:   8,
		},
	}
}

// openStore implements provider.
func (c *azureClients) openStore(ref bucketRef, credentials map[string][]byte) (Store, error) {
	if err := checkAzureBucketName(ref.Name); err != nil {
		return nil, err
	}
	ref.Account = cmp.Or(ref.Account, azureAccountName(ref.Name))
	if !azureAccountPattern.MatchString(ref.Account) {
		return nil, configErrorf("%s in the generated secret is not the name of a storage account, 3 to 24 lower-case letters and digits", dataKeyStorageAccount)
	}
	config, err := parseAzureCredentials(credentials)
	if err != nil {
		return nil, err
	}
	cloud, err := c.clouds.choose(ref.Cloud, ref.Region)
	if err != nil {
		return nil, err
	}
	client, err := c.client(cloud, config)
	if err != nil {
		return nil, configErrorf("the credentials secret or the configuration of cloud %s is not valid: %v", cloud.name, err)
	}
	secret, key := config.clientSecret, azureKeyClientSecret
	if secret == "" {
		secret, key = config.token, azureKeyToken
	}
	return &azureBucket{
		azureSubject: azureSubject{bucketRef: ref, secrets: []string{secret}, proof: key},
		azureClient:  client, clients: c, cloud: cloud,
	}, nil
}

// openObjects implements provider.
func (c *azureClients) openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error) {
	if err := checkAzureBucketName(ref.Name); err != nil {
		return nil, err
	}
	if err := azureLacks(credentials, dataKeyStorageAccount, dataKeyStorageKey); err != nil {
		return nil, err
	}
	account, key := azureValue(credentials, dataKeyStorageAccount), azureValue(credentials, dataKeyStorageKey)
	domain := strings.ToLower(cmp.Or(azureValue(credentials, dataKeyDomain), azureKnownClouds[0].domain))
	switch _, err := base64.StdEncoding.DecodeString(key); {
	case !azureAccountPattern.MatchString(account):
		return nil, configErrorf("%s in the credentials secret is not the name of a storage account, 3 to 24 lower-case letters and digits", dataKeyStorageAccount)
	case err != nil:
		return nil, configErrorf("%s in the credentials secret is not in base64, as Azure's keys are", dataKeyStorageKey)
	case !azureDomainPattern.MatchString(domain):
		return nil, configErrorf("%s in the credentials secret is not a host name such as %s", dataKeyDomain, azureKnownClouds[0].domain)
	}
	ref.Account = account
	blobs, err := c.blobs(c.clouds.ofDomain(domain), ref, key)
	if err != nil {
		return nil, err
	}
	return &azureEntry{azureSubject: azureSubject{bucketRef: ref, secrets: []string{key}, entry: true}, clients: c, blobs: blobs}, nil
}

// azureAccountName is the storage account of a bucket, as in
// gardener/gardener-extension-provider-azure pkg/controller/backupbucket.
func azureAccountName(bucket string) string {
	sum := sha256.Sum256([]byte(bucket))
	return "bkp" + hex.EncodeToString(sum[:])[:15]
}

// checkAzureBucketName applies
// learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata.
func checkAzureBucketName(name string) error {
	if len(name) >= 3 && len(name) <= 63 && azureBucketPattern.MatchString(name) {
		return nil
	}
	err := configErrorf("bucket name %q is not allowed on Azure: it must be 3 to 63 lower-case letters, digits and single hyphens, and begin and end with a letter or digit", name)
	return &storeError{code: codeConfigurationProblem, err: &azureFailure{text: err.Error(), cause: errors.Join(errNotOurBucket, err)}}
}

// azureClient is the management plane with the credentials of one secret.
type azureClient struct {
	groups     *armresources.ResourceGroupsClient
	resources  *armresources.Client
	accounts   *armstorage.AccountsClient
	containers *armstorage.BlobContainersClient
	shares     *armstorage.FileSharesClient
	queues     *armstorage.QueueClient
	tables     *armstorage.TableClient
	// deletions are the resume tokens of the deletions that were begun, by resource group.
	deletions sync.Map
	lastUse   uint64 // guarded by azureClients.mu
}

func (c *azureClients) client(cloud *azureCloud, config *azureConfig) (*azureClient, error) {
	key := azureClientKey(cloud, config)
	c.mu.Lock()
	defer c.mu.Unlock()
	client := c.clients[key]
	if client == nil {
		var err error
		if client, err = c.newClient(cloud, config); err != nil {
			return nil, err
		}
		if len(c.clients) >= azureMaxClients {
			var oldest [sha256.Size]byte
			least := uint64(math.MaxUint64)
			for k, v := range c.clients {
				if v.lastUse < least {
					oldest, least = k, v.lastUse
				}
			}
			delete(c.clients, oldest)
		}
		c.clients[key] = client
	}
	c.uses++
	client.lastUse = c.uses
	return client, nil
}

// azureClientKey identifies a client without keeping its secrets in one more place.
func azureClientKey(cloud *azureCloud, config *azureConfig) [sha256.Size]byte {
	h := sha256.New()
	for _, value := range []string{cloud.name, config.subscriptionID, config.tenantID, config.clientID, config.clientSecret, config.token} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(value))))
		h.Write([]byte(value))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (c *azureClients) newClient(cloud *azureCloud, config *azureConfig) (*azureClient, error) {
	options := c.options()
	options.Cloud = cloud.config
	tokens := options
	tokens.PerRetryPolicies = append(slices.Clone(options.PerRetryPolicies), azurePolicy(recordAzureToken))
	var inner azcore.TokenCredential
	var err error
	if config.token != "" {
		inner, err = azidentity.NewClientAssertionCredential(config.tenantID, config.clientID,
			func(context.Context) (string, error) { return config.token, nil },
			&azidentity.ClientAssertionCredentialOptions{ClientOptions: tokens, DisableInstanceDiscovery: cloud.disableInstanceDiscovery})
	} else {
		inner, err = azidentity.NewClientSecretCredential(config.tenantID, config.clientID, config.clientSecret,
			&azidentity.ClientSecretCredentialOptions{ClientOptions: tokens, DisableInstanceDiscovery: cloud.disableInstanceDiscovery})
	}
	if err != nil {
		return nil, err
	}
	// Registering a resource provider is a permission on the whole subscription.
	armOptions := &arm.ClientOptions{ClientOptions: options, DisableRPRegistration: true}
	credential := azureCredential{inner}
	client := &azureClient{}
	if client.groups, err = armresources.NewResourceGroupsClient(config.subscriptionID, credential, armOptions); err != nil {
		return nil, err
	}
	if client.resources, err = armresources.NewClient(config.subscriptionID, credential, armOptions); err != nil {
		return nil, err
	}
	if client.accounts, err = armstorage.NewAccountsClient(config.subscriptionID, credential, armOptions); err != nil {
		return nil, err
	}
	if client.containers, err = armstorage.NewBlobContainersClient(config.subscriptionID, credential, armOptions); err != nil {
		return nil, err
	}
	if client.shares, err = armstorage.NewFileSharesClient(config.subscriptionID, credential, armOptions); err != nil {
		return nil, err
	}
	if client.queues, err = armstorage.NewQueueClient(config.subscriptionID, credential, armOptions); err != nil {
		return nil, err
	}
	if client.tables, err = armstorage.NewTableClient(config.subscriptionID, credential, armOptions); err != nil {
		return nil, err
	}
	return client, nil
}

// options are those of every SDK client. A longer Retry-After than MaxRetryDelay is not
// waited for: the queue has better things to do.
func (c *azureClients) options() policy.ClientOptions {
	return policy.ClientOptions{
		Retry:     policy.RetryOptions{MaxRetries: azureMaxRetries, RetryDelay: c.retryDelay, MaxRetryDelay: azureMaxRetryDelay, TryTimeout: azureTryTimeout},
		Telemetry: policy.TelemetryOptions{ApplicationID: azureUserAgent},
		Transport: &http.Client{
			Transport: c.transport,
			// A token belongs to one host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		PerRetryPolicies: []policy.Policy{azurePolicy(c.observe)},
	}
}

// blobs returns a client for the container of a bucket.
func (c *azureClients) blobs(cloud *azureCloud, ref bucketRef, key string) (*container.Client, error) {
	credential, err := container.NewSharedKeyCredential(ref.Account, key)
	if err != nil {
		return nil, configErrorf("the key of storage account %s is not in base64", ref.Account)
	}
	blobs, err := container.NewClientWithSharedKeyCredential(cloud.url(ref.Account, ref.Name), credential, &container.ClientOptions{ClientOptions: c.options()})
	if err != nil {
		return nil, fmt.Errorf("making a client for storage account %s: %w", ref.Account, err)
	}
	return blobs, nil
}

// azurePolicy is a step of the SDK's pipeline.
type azurePolicy func(*policy.Request) (*http.Response, error)

func (p azurePolicy) Do(r *policy.Request) (*http.Response, error) { return p(r) }

// azureOperation is the context key of the operation that requests are observed as, and
// azureBatchParts that of the number of parts of a batch.
type (
	azureOperation  struct{}
	azureBatchParts struct{}
)

const (
	azureTokenOperation = "Token"
	azureBatchOperation = "Blobs.Batch"
)

// observe measures each HTTP attempt: it runs inside the retries.
func (c *azureClients) observe(r *policy.Request) (*http.Response, error) {
	operation, _ := r.Raw().Context().Value(azureOperation{}).(string)
	start := time.Now()
	response, err := r.Next()
	if err == nil && operation == azureBatchOperation {
		response, err = readAzureBatch(r.Raw().Context(), response)
	}
	outcome := outcomeError
	if response != nil {
		switch status := response.StatusCode; {
		case status < http.StatusBadRequest:
			outcome = outcomeSuccess
		case status == http.StatusNotFound, status == http.StatusPreconditionFailed:
			outcome = outcomeExpected
		case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
			outcome = outcomeThrottled
		}
	}
	c.metrics.observeStoreRequest(storeAzure, operation, outcome, time.Since(start))
	return response, err
}

// readAzureBatch reads the answer to a batch, which the SDK neither closes nor checks: it
// panics over parts that answer no request. A batch that is refused as a whole is answered
// with one part without Content-ID (learn.microsoft.com/rest/api/storageservices/blob-batch).
func readAzureBatch(ctx context.Context, response *http.Response) (*http.Response, error) {
	body, err := runtime.Payload(response)
	if err != nil {
		return nil, fmt.Errorf("reading the answer to a batch: %w", err)
	}
	if response.StatusCode != http.StatusAccepted {
		return response, nil
	}
	size, _ := ctx.Value(azureBatchParts{}).(int)
	_, params, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil {
		return nil, errAzureBatch
	}
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for answered := 0; ; answered++ {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) && answered == size {
			return response, nil
		}
		if err != nil {
			return nil, errAzureBatch
		}
		if id, err := strconv.Atoi(strings.TrimSpace(part.Header.Get("Content-ID"))); err == nil && id >= 0 && id < size {
			continue
		}
		// Azure ends a part without the newline that HTTP needs.
		whole, err := http.ReadResponse(bufio.NewReader(io.MultiReader(part, strings.NewReader("\n"))), response.Request)
		if err != nil || whole.StatusCode < http.StatusBadRequest {
			return nil, errAzureBatch
		}
		if _, err := runtime.Payload(whole); err != nil {
			return nil, errAzureBatch
		}
		return whole, nil
	}
}

// azureNonRetriable is an error that the SDK does not retry.
type azureNonRetriable string

func (e azureNonRetriable) Error() string { return string(e) }

// NonRetriable marks the error for the SDK.
func (azureNonRetriable) NonRetriable() {}

const errAzureBatch azureNonRetriable = "the answer to a batch is not one of Blob Batch"

// azureTokenError is a token that Microsoft Entra ID did not give.
type azureTokenError struct {
	// status and body are Entra's last answer, if it gave one.
	status int
	body   struct {
		Error string `json:"error"`
		Codes []int  `json:"error_codes"`
	}
	// err is why there was none, or the SDK's error.
	err error
}

func (e *azureTokenError) Error() string { return e.err.Error() }
func (e *azureTokenError) Unwrap() error { return e.err }

// NonRetriable marks the error for the SDK, which has retried already.
func (*azureTokenError) NonRetriable() {}

// azureCredential keeps what the SDK drops of failed token requests: why the network failed.
type azureCredential struct{ azcore.TokenCredential }

// GetToken implements azcore.TokenCredential.
func (c azureCredential) GetToken(ctx context.Context, options policy.TokenRequestOptions) (azcore.AccessToken, error) {
	failure := &azureTokenError{}
	ctx = context.WithValue(context.WithValue(ctx, azureOperation{}, azureTokenOperation), azureTokenFailure{}, failure)
	token, err := c.TokenCredential.GetToken(ctx, options)
	if err == nil {
		return token, nil
	}
	if failure.status == 0 && ctx.Err() != nil {
		failure.err = ctx.Err()
	}
	if failure.err == nil {
		failure.err = err
	}
	return token, failure
}

// azureTokenFailure is the context key of the *azureTokenError that is filled.
type azureTokenFailure struct{}

func recordAzureToken(r *policy.Request) (*http.Response, error) {
	response, err := r.Next()
	failure, ok := r.Raw().Context().Value(azureTokenFailure{}).(*azureTokenError)
	if !ok {
		return response, err
	}
	*failure = azureTokenError{err: err}
	if err == nil {
		failure.status = response.StatusCode
		if body, err := runtime.Payload(response); err == nil {
			_ = stdjson.Unmarshal(body, &failure.body) // what is no JSON has no codes
		}
	}
	return response, err
}

// azureCallError is a failed request with its operation.
type azureCallError struct {
	operation string
	blob      string // of a part of a batch
	err       error
}

func (e *azureCallError) Error() string { return e.err.Error() }
func (e *azureCallError) Unwrap() error { return e.err }

// azureCall makes a request, or several, that are observed as operation.
func azureCall[T any](ctx context.Context, operation string, call func(context.Context) (T, error)) (T, error) {
	out, err := call(context.WithValue(ctx, azureOperation{}, operation))
	if err != nil {
		err = &azureCallError{operation: operation, err: err}
	}
	return out, err
}

func azureErrorCode(err error) string {
	var response *azcore.ResponseError
	if errors.As(err, &response) {
		return response.ErrorCode
	}
	return ""
}

func azureStatus(err error) int {
	var response *azcore.ResponseError
	if errors.As(err, &response) {
		return response.StatusCode
	}
	return 0
}

// azureCodes are error codes that say what kind of problem it is; for all others the HTTP
// status decides. They are of
// learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors,
// learn.microsoft.com/rest/api/storagerp/srp_error_codes_common and
// learn.microsoft.com/rest/api/storageservices/blob-service-error-codes.
var azureCodes = map[string]errorCode{
	"AuthenticationFailed":             codeUnauthenticated,
	"ExpiredAuthenticationToken":       codeUnauthenticated,
	"InvalidAuthenticationInfo":        codeUnauthenticated,
	"InvalidAuthenticationToken":       codeUnauthenticated,
	"InvalidAuthenticationTokenTenant": codeUnauthenticated,
	"InvalidSubscriptionId":            codeUnauthenticated,
	"NoAuthenticationInformation":      codeUnauthenticated,
	"SubscriptionNotFound":             codeUnauthenticated,

	"MaxStorageAccountsCountPerSubscriptionExceeded": codeQuotaExceeded,
	"QuotaExceeded":              codeQuotaExceeded,
	"ResourceGroupQuotaExceeded": codeQuotaExceeded,
	"ResourceQuotaExceeded":      codeQuotaExceeded,

	// What a bucket lies in is gone: it is being deleted, or was just made and is not known
	// everywhere yet.
	"ContainerNotFound":      codeRetryableDependencies,
	"ParentResourceNotFound": codeRetryableDependencies,
	"ResourceGroupNotFound":  codeRetryableDependencies,
	"ResourceNotFound":       codeRetryableDependencies,

	"AccountBeingCreated":               codeRetryableDependencies,
	"StorageAccountBeingCreated":        codeRetryableDependencies,
	"StorageAccountIsNotProvisioned":    codeRetryableDependencies,
	"StorageAccountOperationInProgress": codeRetryableDependencies,

	"SubscriptionRequestsThrottled": codeRateLimitsExceeded,
	"TooManyRequests":               codeRateLimitsExceeded,

	"AccountIsDisabled":                    codeConfigurationProblem,
	"DisallowedLocation":                   codeConfigurationProblem,
	"InvalidLocation":                      codeConfigurationProblem,
	"InvalidResourceGroupLocation":         codeConfigurationProblem,
	"InvalidResourceLocation":              codeConfigurationProblem,
	"KeyBasedAuthenticationNotPermitted":   codeConfigurationProblem,
	"LocationNotAvailableForResourceGroup": codeConfigurationProblem,
	"LocationNotAvailableForResourceType":  codeConfigurationProblem,
	"MissingSubscriptionRegistration":      codeConfigurationProblem,
	"NoRegisteredProviderFound":            codeConfigurationProblem,
	"ReadOnlyDisabledSubscription":         codeConfigurationProblem,
	"RequestDisallowedByPolicy":            codeConfigurationProblem,
	"ScopeLocked":                          codeConfigurationProblem,
	"SkuNotAvailable":                      codeConfigurationProblem,
	"StorageAccountAlreadyExists":          codeConfigurationProblem,
	"StorageAccountAlreadyTaken":           codeConfigurationProblem,
	"StorageAccountInAnotherResourceGroup": codeConfigurationProblem,
	"SubscriptionDisabled":                 codeConfigurationProblem,
}

// azureActions are the actions that a role has to allow
// (learn.microsoft.com/azure/role-based-access-control/permissions/storage and .../management-and-governance).
var azureActions = map[string]string{
	"ResourceGroups.Get":    "Microsoft.Resources/subscriptions/resourceGroups/read",
	"ResourceGroups.Create": "Microsoft.Resources/subscriptions/resourceGroups/write",
	"ResourceGroups.Delete": "Microsoft.Resources/subscriptions/resourceGroups/delete",
	"Resources.List":        "Microsoft.Resources/subscriptions/resourceGroups/resources/read",

	"StorageAccounts.CheckName":     "Microsoft.Storage/checknameavailability/read",
	"StorageAccounts.Get":           azureAccountType + "/read",
	"StorageAccounts.Create":        azureAccountType + "/write",
	"StorageAccounts.Update":        azureAccountType + "/write",
	"StorageAccounts.Delete":        azureAccountType + "/delete",
	"StorageAccounts.ListKeys":      azureAccountType + "/listKeys/action",
	"StorageAccounts.RegenerateKey": azureAccountType + "/regenerateKey/action",

	"BlobContainers.Get":    azureAccountType + "/blobServices/containers/read",
	"BlobContainers.List":   azureAccountType + "/blobServices/containers/read",
	"BlobContainers.Create": azureAccountType + "/blobServices/containers/write",
	"BlobContainers.Delete": azureAccountType + "/blobServices/containers/delete",

	"FileShares.List": azureAccountType + "/fileServices/shares/read",
	"Queues.List":     azureAccountType + "/queueServices/queues/read",
	"Tables.List":     azureAccountType + "/tableServices/tables/read",

	"ImmutabilityPolicies.Put":    azureAccountType + "/blobServices/containers/immutabilityPolicies/write",
	"ImmutabilityPolicies.Delete": azureAccountType + "/blobServices/containers/immutabilityPolicies/delete",
	"ImmutabilityPolicies.Lock":   azureAccountType + "/blobServices/containers/immutabilityPolicies/lock/action",
	"ImmutabilityPolicies.Extend": azureAccountType + "/blobServices/containers/immutabilityPolicies/extend/action",
}

// azureTaken are the answers about a storage account whose name is not free.
var azureTaken = map[string]bool{
	"InvalidResourceLocation": true, "StorageAccountAlreadyExists": true, "StorageAccountAlreadyTaken": true, "StorageAccountInAnotherResourceGroup": true,
}

// azureBadRegion are the answers about a region that does not exist or cannot hold the account.
var azureBadRegion = map[string]bool{
	"DisallowedLocation": true, "InvalidLocation": true, "LocationNotAvailableForResourceGroup": true, "LocationNotAvailableForResourceType": true,
	"NoRegisteredProviderFound": true, "SkuNotAvailable": true,
}

// azureEntraKeys tell which key of the credentials secret an error of Entra is about
// (learn.microsoft.com/entra/identity-platform/reference-error-codes).
var azureEntraKeys = map[int]string{
	90002: azureKeyTenantID, 90013: azureKeyTenantID, 900021: azureKeyTenantID, 900023: azureKeyTenantID, 90072: azureKeyTenantID,
	700016: azureKeyClientID, 7000112: azureKeyClientID, 7000229: azureKeyClientID, 90009: azureKeyClientID,
	7000215: azureKeyClientSecret, 7000222: azureKeyClientSecret, 7000216: azureKeyClientSecret, 7000218: azureKeyClientSecret,
	50027: azureKeyToken, 700021: azureKeyToken, 700024: azureKeyToken, 700027: azureKeyToken, 700211: azureKeyToken, 700212: azureKeyToken,
	700213: azureKeyToken, 70021: azureKeyToken, 5002723: azureKeyToken,
}

// azureFailure is an error with a text of ours around the SDK's.
type azureFailure struct {
	text  string
	cause error
}

func (e *azureFailure) Error() string { return e.text }
func (e *azureFailure) Unwrap() error { return e.cause }

// azureSubject describes the errors about one bucket.
type azureSubject struct {
	bucketRef
	// entry says that the credentials are those of a BackupEntry.
	entry bool
	// proof is the key of the secret by which a BackupBucket's credentials are proven.
	proof string
	// secrets are the values that no error may show.
	secrets []string
}

func (s *azureSubject) errorf(code errorCode, cause error, format string, args ...any) error {
	return &storeError{code: code, err: &azureFailure{text: fmt.Sprintf(format, args...), cause: cause}}
}

// fail makes the *storeError of an SDK error. Its text has no request id and no time, since
// it becomes part of a status.
func (s *azureSubject) fail(err error) error {
	var done *storeError
	if errors.As(err, &done) {
		return err
	}
	operation, about := "request", ""
	var call *azureCallError
	if errors.As(err, &call) {
		operation = call.operation
		if call.blob != "" {
			about = fmt.Sprintf(" (blob %q)", call.blob)
		}
	}
	var token *azureTokenError
	code, text := errorCode(""), ""
	switch {
	case errors.Is(err, context.Canceled):
		text = "the request was canceled"
	case errors.As(err, &token):
		code, text = s.tokenAnswer(token)
	case azureStatus(err) != 0:
		code, text = s.answer(err, operation)
		if azureTaken[azureErrorCode(err)] {
			err = errors.Join(errNotOurBucket, err)
		}
	default:
		code, text = networkCause(err)
		if errors.As(err, new(azureNonRetriable)) {
			code = codeRetryableDependencies
		}
		if text == "" { // the SDK itself
			for next := err; next != nil; next = errors.Unwrap(next) {
				text = s.clean(next.Error())
			}
		}
	}
	return s.errorf(code, err, "Azure %s for bucket %q failed: %s%s", operation, s.Name, text, about)
}

// tokenAnswer describes why there is no token.
func (s *azureSubject) tokenAnswer(err *azureTokenError) (errorCode, string) {
	const entra = "Microsoft Entra ID"
	switch {
	case err.status == 0:
		code, text := networkCause(err.err)
		if text == "" {
			return codeRetryableConfiguration, fmt.Sprintf("%s could not be asked for a token: %s", entra, s.clean(err.err.Error()))
		}
		return code, fmt.Sprintf("no token from %s: %s", entra, text)
	case err.status == http.StatusTooManyRequests:
		return codeRateLimitsExceeded, fmt.Sprintf("%s gives no token now: too many requests", entra)
	case err.status >= http.StatusInternalServerError:
		return codeRetryableDependencies, fmt.Sprintf("%s gives no token: HTTP status %d", entra, err.status)
	case err.status < http.StatusBadRequest:
		return codeRetryableConfiguration, fmt.Sprintf("the answer of %s to a token request cannot be understood", entra)
	case err.body.Error == "" && len(err.body.Codes) == 0:
		return codeRetryableConfiguration, fmt.Sprintf("the answer with HTTP status %d is not one of %s", err.status, entra)
	}
	name := s.clean(err.body.Error)
	key := strings.Join([]string{azureKeyTenantID, azureKeyClientID, s.proof}, ", ")
	switch err.body.Error {
	case "invalid_tenant":
		key = azureKeyTenantID
	case "unauthorized_client":
		key = azureKeyClientID
	case "invalid_client":
		key = azureKeyClientID + ", " + s.proof
	}
	for _, code := range err.body.Codes {
		name = fmt.Sprintf("AADSTS%d", code)
		if known := azureEntraKeys[code]; known != "" {
			key = known
			break
		}
	}
	if key == azureKeyClientSecret || key == azureKeyToken {
		key = s.proof
	}
	return codeUnauthenticated, fmt.Sprintf("%s does not accept the credentials (%s): check %s in the credentials secret", entra, name, key)
}

// answer describes an error that Azure answered.
func (s *azureSubject) answer(err error, operation string) (errorCode, string) {
	name, status := azureErrorCode(err), azureStatus(err)
	action := azureActions[operation]
	code, known := azureCodes[name]
	switch {
	case known:
	case status == http.StatusUnauthorized:
		code = codeUnauthenticated
	case status == http.StatusForbidden:
		code = codeUnauthorized
	case status == http.StatusTooManyRequests:
		code = codeRateLimitsExceeded
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout, status == http.StatusConflict, status == http.StatusPreconditionFailed,
		status < http.StatusBadRequest: // a long-running operation that failed
		code = codeRetryableDependencies
	case name == "":
		return codeRetryableConfiguration, fmt.Sprintf("the answer with HTTP status %d is not one of Azure", status)
	default:
		code = codeConfigurationProblem
	}
	if name == "" {
		name = fmt.Sprintf("HTTP status %d", status)
	}
	said := s.message(err)
	switch {
	case azureTaken[name]:
		return code, s.taken(name)
	case azureBadRegion[name]:
		return code, fmt.Sprintf("region %q does not exist in the cloud, or has no zone-redundant storage accounts (%s)%s", s.Region, name, said)
	case name == "SubscriptionNotFound", name == "InvalidSubscriptionId":
		return code, fmt.Sprintf("the subscription does not exist for the credentials (%s): check %s in the credentials secret", name, azureKeySubscriptionID)
	case name == "InvalidAuthenticationTokenTenant":
		return code, fmt.Sprintf("the subscription belongs to another tenant (%s): check %s and %s in the credentials secret", name, azureKeyTenantID, azureKeySubscriptionID)
	case name == "MissingSubscriptionRegistration":
		return code, fmt.Sprintf("the resource provider Microsoft.Storage is not registered in the subscription (%s): register it", name)
	case name == "ScopeLocked":
		return code, fmt.Sprintf("a management lock on resource group %q or on something in it forbids this (%s): remove the lock", s.Name, name)
	case name == "KeyBasedAuthenticationNotPermitted":
		return code, fmt.Sprintf("storage account %s does not allow access with keys (%s): set allowSharedKeyAccess, which etcd-backup-restore needs as well", s.Account, name)
	case action == "" && code == codeUnauthenticated && s.entry:
		return code, fmt.Sprintf("storage account %s does not accept the key (%s): check %s in the credentials secret", s.Account, name, dataKeyStorageKey)
	case action == "" && code == codeUnauthenticated:
		// The key was read just before.
		return codeRetryableDependencies, fmt.Sprintf("storage account %s does not accept its own key (%s): somebody has regenerated it meanwhile", s.Account, name)
	case action == "" && code == codeUnauthorized && s.entry:
		return code, fmt.Sprintf("storage account %s denies access (%s): its network rules have to admit this daemon, and %s in the credentials secret has to be its key%s", s.Account, name, dataKeyStorageKey, said)
	case action == "" && code == codeUnauthorized:
		return code, fmt.Sprintf("storage account %s denies access (%s): its network rules or a policy have to admit this daemon%s", s.Account, name, said)
	case code == codeUnauthenticated:
		return code, fmt.Sprintf("Azure does not accept the credentials (%s): check the credentials secret", name)
	case code == codeUnauthorized:
		return code, fmt.Sprintf("access denied (%s): a role of the client has to allow the action %s on resource group %q, and nothing may deny it", name, action, s.Name)
	}
	return code, fmt.Sprintf("Azure answers %s%s", name, said)
}

func (s *azureSubject) taken(code string) string {
	return fmt.Sprintf("the name of storage account %s is taken (%s): it exists outside of resource group %q, or belongs to somebody else; "+
		"storage account names are shared by all customers, choose another name for the bucket", s.Account, code, s.Name)
}

// message is the message of Azure, if it has one.
func (s *azureSubject) message(err error) string {
	var response *azcore.ResponseError
	if !errors.As(err, &response) || response.RawResponse == nil {
		return ""
	}
	body, err := runtime.Payload(response.RawResponse)
	if err != nil {
		return ""
	}
	type answer struct {
		Message string `json:"message" xml:"Message"`
	}
	var parsed struct {
		answer
		Error answer `json:"error" xml:"-"`
	}
	if stdjson.Unmarshal(body, &parsed) != nil && xml.Unmarshal(bytes.TrimPrefix(body, []byte("\ufeff")), &parsed.answer) != nil {
		return ""
	}
	// The data plane adds the request id and the time in lines of their own.
	text, _, _ := strings.Cut(strings.TrimSpace(cmp.Or(parsed.Error.Message, parsed.Message)), "\n")
	if text = s.clean(text); text != "" {
		return ": " + text
	}
	return ""
}

// clean makes one short line of a text, without what changes between requests and without
// secrets.
func (s *azureSubject) clean(text string) string {
	for _, secret := range s.secrets {
		text = strings.ReplaceAll(text, secret, "***")
	}
	text = azureVolatilePattern.ReplaceAllString(strings.ToValidUTF8(text, "?"), "***")
	text = strings.TrimSuffix(strings.Join(strings.Fields(text), " "), ".")
	if runes := []rune(text); len(runes) > 300 {
		text = string(runes[:300]) + "..."
	}
	return text
}

// azureEntry implements Objects with the credentials of a BackupEntry.
type azureEntry struct {
	azureSubject
	clients *azureClients
	blobs   *container.Client
}

// Purge implements Objects.
func (e *azureEntry) Purge(ctx context.Context, prefix string, before func(context.Context) error) (PurgeResult, error) {
	p := &azurePurge{azureSubject: &e.azureSubject, clients: e.clients, blobs: e.blobs, prefix: prefix, before: before, days: int(e.Recorded.Days)}
	return p.run(ctx)
}

// List implements Objects. It lists versions: one that is not current is still there.
func (e *azureEntry) List(ctx context.Context, prefix string) ([]objectInfo, time.Time, error) {
	var objects []objectInfo
	now := time.Now()
	pager := e.blobs.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, MaxResults: to.Ptr[int32](azurePageSize), Include: container.ListBlobsInclude{Versions: true}})
	for pager.More() {
		page, err := azureCall(ctx, "Blobs.List", pager.NextPage)
		if azureGone(err) {
			return nil, now, nil
		}
		if err != nil {
			return nil, now, e.fail(err)
		}
		now = cmp.Or(deref(page.Date), now)
		if len(objects) > maxListed {
			return nil, now, e.errorf("", nil, "Azure Blobs.List for bucket %q failed: there are more than %d blobs under %q", e.Name, maxListed, prefix)
		}
		if page.Segment == nil {
			continue
		}
		for _, item := range page.Segment.BlobItems {
			o := objectInfo{Key: deref(item.Name)}
			if item.Properties != nil {
				o.Created = deref(item.Properties.CreationTime)
			}
			// The versions of a blob follow each other.
			if n := len(objects); n > 0 && objects[n-1].Key == o.Key {
				if o.Created.Before(objects[n-1].Created) {
					objects[n-1].Created = o.Created
				}
				continue
			}
			objects = append(objects, o)
		}
	}
	return objects, now, nil
}

// Put implements Objects.
func (e *azureEntry) Put(ctx context.Context, key string) error {
	_, err := azureCall(ctx, "Blobs.Put", func(ctx context.Context) (blockblob.UploadResponse, error) {
		return e.blobs.NewBlockBlobClient(key).Upload(ctx, streaming.NopCloser(bytes.NewReader(nil)), nil)
	})
	if err != nil {
		return e.fail(err)
	}
	return nil
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
	// versionLevel says that the policy is only a default, which each blob may have or not:
	// learn.microsoft.com/azure/storage/blobs/immutable-version-level-worm-policies.
	versionLevel bool
}

// effective is the policy as far as it holds for all blobs.
func (c *azureContainer) effective() Policy {
	p := c.policy
	p.Locked = p.Locked && !c.versionLevel
	return p
}

// retention is how many days every blob is retained.
func (c *azureContainer) retention() int {
	if c.versionLevel {
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
	} else if properties := response.ContainerProperties; properties != nil {
		c.legalHold = isTrue(properties.HasLegalHold)
		c.public = properties.PublicAccess != nil && *properties.PublicAccess != armstorage.PublicAccessNone
		if versions := properties.ImmutableStorageWithVersioning; versions != nil {
			c.versionLevel = isTrue(versions.Enabled) || deref(versions.MigrationState) != ""
		}
		if err := b.readPolicy(c, properties.ImmutabilityPolicy); err != nil {
			return nil, err
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
	c.extensions = azureMaxExtensions
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
		return b.errorf(codeRetryableDependencies, nil, "Azure answers with the immutability policy of container %q without an etag, without which it cannot be changed safely", b.Name)
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
	return BucketState{Exists: true, Policy: c.effective(), Extensions: &c.extensions, Appends: !c.policy.None() && c.appends()}, nil
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

// checkName keeps a group from being made for an account whose name is taken. It needs a
// permission on the whole subscription: without that the creation will tell.
func (b *azureBucket) checkName(ctx context.Context) error {
	answer, err := azureCall(ctx, "StorageAccounts.CheckName", func(ctx context.Context) (armstorage.AccountsClientCheckNameAvailabilityResponse, error) {
		return b.accounts.CheckNameAvailability(ctx, armstorage.AccountCheckNameAvailabilityParameters{Name: &b.Account, Type: to.Ptr(azureAccountType)}, nil)
	})
	switch {
	case azureStatus(err) == http.StatusForbidden:
		return nil
	case err != nil:
		return b.fail(err)
	case deref(answer.Reason) == armstorage.ReasonAlreadyExists:
		return b.errorf(codeConfigurationProblem, errNotOurBucket, "bucket %q cannot be created: %s", b.Name, b.taken(string(armstorage.ReasonAlreadyExists)))
	}
	return nil
}

// createGroup asks first: writing a group that exists replaces its tags.
func (b *azureBucket) createGroup(ctx context.Context) error {
	_, err := b.group(ctx)
	if azureErrorCode(err) != "ResourceGroupNotFound" {
		return b.failIf(err)
	}
	_, err = azureCall(ctx, "ResourceGroups.Create", func(ctx context.Context) (armresources.ResourceGroupsClientCreateOrUpdateResponse, error) {
		return b.groups.CreateOrUpdate(ctx, b.Name, armresources.ResourceGroup{Location: &b.Region}, nil)
	})
	return b.failIf(err)
}

func (b *azureBucket) group(ctx context.Context) (armresources.ResourceGroupsClientGetResponse, error) {
	return azureCall(ctx, "ResourceGroups.Get", func(ctx context.Context) (armresources.ResourceGroupsClientGetResponse, error) {
		return b.groups.Get(ctx, b.Name, nil)
	})
}

func (b *azureBucket) failIf(err error) error {
	if err != nil {
		return b.fail(err)
	}
	return nil
}

func (b *azureBucket) storageAccount(ctx context.Context) (armstorage.AccountsClientGetPropertiesResponse, error) {
	return azureCall(ctx, "StorageAccounts.Get", func(ctx context.Context) (armstorage.AccountsClientGetPropertiesResponse, error) {
		return b.accounts.GetProperties(ctx, b.Name, b.Account, nil)
	})
}

func (b *azureBucket) createAccount(ctx context.Context) error {
	account, err := b.storageAccount(ctx)
	switch {
	case err == nil:
		// Writing one whose creation failed again is how it is repaired.
		if state := accountProvisioning(account.Account); state == "" || state == armstorage.ProvisioningStateSucceeded {
			return nil
		} else if state != armstorage.ProvisioningStateFailed && state != armstorage.ProvisioningStateCanceled {
			return b.errorf(codeRetryableDependencies, nil, "storage account %s of bucket %q is not ready yet: it is in state %s", b.Account, b.Name, state)
		}
	case !azureGone(err):
		return b.fail(err)
	}
	parameters := armstorage.AccountCreateParameters{
		Kind:     to.Ptr(armstorage.KindStorageV2),
		Location: &b.Region,
		SKU:      &armstorage.SKU{Name: to.Ptr(armstorage.SKUNameStandardZRS)},
		Properties: &armstorage.AccountPropertiesCreateParameters{
			AccessTier:             to.Ptr(armstorage.AccessTierCool),
			AllowBlobPublicAccess:  to.Ptr(false),
			EnableHTTPSTrafficOnly: to.Ptr(true),
			MinimumTLSVersion:      to.Ptr(armstorage.MinimumTLSVersionTLS12),
		},
	}
	if b.KeyExpirationDays > 0 {
		parameters.Properties.KeyPolicy = &armstorage.KeyPolicy{KeyExpirationPeriodInDays: &b.KeyExpirationDays}
	}
	_, err = azureCall(ctx, "StorageAccounts.Create", func(ctx context.Context) (armstorage.AccountsClientCreateResponse, error) {
		poller, err := b.accounts.BeginCreate(ctx, b.Name, b.Account, parameters, nil)
		if err != nil {
			return armstorage.AccountsClientCreateResponse{}, err
		}
		return poller.PollUntilDone(ctx, &runtime.PollUntilDoneOptions{Frequency: b.clients.pollInterval})
	})
	return b.failIf(err)
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
	if known.versionLevel {
		gap("Container %s has version-level immutability, under which its policy is only a default that blobs need not have; it is left as it is.", b.Name)
	}
	// An unlocked one of ours is set anew.
	if ours := !known.policy.Locked && known.policy == b.Recorded; !known.policy.None() && known.appends() && !ours {
		gap("The immutability policy allows protected append writes, so that blobs can be appended to; it is left as it is.")
	}
	response, err := b.storageAccount(ctx)
	if azureStatus(err) == http.StatusForbidden {
		// A missing permission for hardening must not keep the bucket from being locked.
		gap("%s.", b.fail(err))
		return gaps, nil
	}
	if err != nil {
		return gaps, b.fail(err)
	}
	account, properties := response.Account, response.Properties
	if properties == nil {
		properties = &armstorage.AccountProperties{}
	}
	if sku := account.SKU; sku != nil && !strings.HasSuffix(string(deref(sku.Name)), "ZRS") {
		gap("Storage account %s is not zone-redundant but %s; it is left as it is.", b.Account, deref(sku.Name))
	}
	if kind := deref(account.Kind); kind != armstorage.KindStorageV2 {
		gap("Storage account %s is of kind %s and not %s; it is left as it is.", b.Account, kind, armstorage.KindStorageV2)
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
	// The versions sort by their names, TLS1_0 to TLS1_3.
	if deref(is.MinimumTLSVersion) < armstorage.MinimumTLSVersionTLS12 {
		change.MinimumTLSVersion, weak = to.Ptr(armstorage.MinimumTLSVersionTLS12), true
	}
	if is.AllowBlobPublicAccess == nil || *is.AllowBlobPublicAccess {
		change.AllowBlobPublicAccess, weak = to.Ptr(false), true
	}
	if b.KeyExpirationDays > 0 && (is.KeyPolicy == nil || deref(is.KeyPolicy.KeyExpirationPeriodInDays) != b.KeyExpirationDays) {
		// "You must regenerate both keys at least once before setting expiration policy"
		// (learn.microsoft.com/azure/storage/common/storage-account-keys-manage), if the time
		// of one is not known.
		if created := is.KeyCreationTime; created != nil && created.Key1 != nil && created.Key2 != nil {
			change.KeyPolicy = &armstorage.KeyPolicy{KeyExpirationPeriodInDays: &b.KeyExpirationDays}
		} else {
			gaps = append(gaps, fmt.Sprintf("Storage account %s cannot have a key expiration policy before both of its keys were rotated once.", b.Account))
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

// SetPolicy implements Store.
func (b *azureBucket) SetPolicy(ctx context.Context, p Policy) error {
	p.Locked = false
	return b.changePolicy(ctx, p, func(live *azureContainer) (bool, error) {
		switch {
		case live.policy.Locked:
			return false, b.errorf(codeConfigurationProblem, nil, "the immutability policy of container %q is a %s by now, which can be neither changed nor removed", b.Name, live.policy)
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
			return false, b.errorf(codeConfigurationProblem, nil, "the %s of container %q cannot be extended to %s: Azure allows that %d times, and that has been done", live.policy, b.Name, p.Hours(), azureMaxExtensions)
		case live.policy.Locked:
			return true, b.extendPolicy(ctx, live, p)
		case live.policy == p && !live.appends():
			_, err := azureCall(ctx, "ImmutabilityPolicies.Lock", func(ctx context.Context) (armstorage.BlobContainersClientLockImmutabilityPolicyResponse, error) {
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
		if live.versionLevel && !want.None() {
			return b.errorf(codeConfigurationProblem, nil, "container %q has version-level immutability, under which its policy is only a default that blobs need not have: use another container, in a storage account without it", b.Name)
		}
		if expected != nil && live.policy != *expected && !live.policy.Locked && want.Days < live.policy.Days {
			return b.errorf(codeRetryableDependencies, nil, "somebody else changed the immutability policy of container %q to an %s meanwhile", b.Name, live.policy)
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
	return b.errorf(codeRetryableDependencies, nil, "the immutability policy of container %q changes again and again: somebody else keeps writing it", b.Name)
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
	_, err := azureCall(ctx, "ImmutabilityPolicies.Put", func(ctx context.Context) (armstorage.BlobContainersClientCreateOrUpdateImmutabilityPolicyResponse, error) {
		return b.containers.CreateOrUpdateImmutabilityPolicy(ctx, b.Name, b.Account, b.Name, options)
	})
	return err
}

func (b *azureBucket) deletePolicy(ctx context.Context, live *azureContainer) error {
	_, err := azureCall(ctx, "ImmutabilityPolicies.Delete", func(ctx context.Context) (armstorage.BlobContainersClientDeleteImmutabilityPolicyResponse, error) {
		return b.containers.DeleteImmutabilityPolicy(ctx, b.Name, b.Account, b.Name, live.etag, nil)
	})
	return err
}

// extendPolicy leaves the append writes as they are: "This property cannot be changed with
// ExtendImmutabilityPolicy API"
// (learn.microsoft.com/rest/api/storagerp/blob-containers/extend-immutability-policy).
func (b *azureBucket) extendPolicy(ctx context.Context, live *azureContainer, p Policy) error {
	_, err := azureCall(ctx, "ImmutabilityPolicies.Extend", func(ctx context.Context) (armstorage.BlobContainersClientExtendImmutabilityPolicyResponse, error) {
		return b.containers.ExtendImmutabilityPolicy(ctx, b.Name, b.Account, b.Name, live.etag, &armstorage.BlobContainersClientExtendImmutabilityPolicyOptions{
			Parameters: &armstorage.ImmutabilityPolicy{Properties: &armstorage.ImmutabilityPolicyProperty{
				ImmutabilityPeriodSinceCreationInDays: &p.Days,
				AllowProtectedAppendWrites:            live.appendWrites, AllowProtectedAppendWritesAll: live.appendWritesAll,
			}},
		})
	})
	return err
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
	response, err := azureCall(ctx, "StorageAccounts.RegenerateKey", func(ctx context.Context) (armstorage.AccountsClientRegenerateKeyResponse, error) {
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
		if key != nil && deref(key.Value) != "" {
			keys = append(keys, accessKey{Name: deref(key.KeyName), Value: *key.Value, Created: deref(key.CreationTime)})
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

// blobs returns a client for the data plane and the subject of its errors.
func (b *azureBucket) blobs(ctx context.Context) (*container.Client, *azureSubject, error) {
	b.mu.Lock()
	key := b.key
	b.mu.Unlock()
	if key == "" {
		if _, err := b.Keys(ctx); err != nil {
			return nil, nil, err
		}
		b.mu.Lock()
		key = b.key
		b.mu.Unlock()
	}
	if key == "" {
		return nil, nil, b.errorf(codeRetryableDependencies, nil, "storage account %s of bucket %q has no access key", b.Account, b.Name)
	}
	client, err := b.clients.blobs(b.cloud, b.bucketRef, key)
	if err != nil {
		return nil, nil, b.errorf("", err, "%s", err)
	}
	subject := b.azureSubject
	subject.secrets = append(slices.Clone(b.secrets), key)
	return client, &subject, nil
}

// Purge implements Store.
func (b *azureBucket) Purge(ctx context.Context, prefix string, before func(context.Context) error) (PurgeResult, error) {
	known, err := b.known(ctx)
	if err != nil || !known.exists {
		return PurgeResult{}, err
	}
	blobs, subject, err := b.blobs(ctx)
	if azureGone(err) {
		return PurgeResult{}, nil
	}
	if err != nil {
		return PurgeResult{}, err
	}
	p := &azurePurge{azureSubject: subject, clients: b.clients, blobs: blobs, prefix: prefix, before: before, days: known.retention(), held: known.legalHold}
	return p.run(ctx)
}

// azureKept are the refusals to delete a container because of what protects it. Those of
// the management plane are known from reports only.
var azureKept = map[string]bool{
	"ContainerHasLegalHold": true, "ContainerImmutabilityPolicyLocked": true, "ContainerImmutableStorageWithVersioningEnabled": true,
	"ContainerProtectedFromDeletion": true, "BlobImmutableDueToLegalHold": true, "BlobImmutableDueToPolicy": true,
}

// azureGone says that a container does not exist, or nothing of what it lies in.
func azureGone(err error) bool {
	switch azureErrorCode(err) {
	case "ContainerNotFound", "ResourceNotFound", "ParentResourceNotFound", "ResourceGroupNotFound":
		return azureStatus(err) == http.StatusNotFound
	case "ContainerBeingDeleted":
		return true
	}
	return false
}

// Delete implements Store. It is the management plane that deletes: the data plane refuses
// an empty container too while it has a locked policy
// (learn.microsoft.com/rest/api/storageservices/blob-service-error-codes, ContainerImmutabilityPolicyLocked).
// That plane however deletes a container with all that is in it where no policy protects it.
func (b *azureBucket) Delete(ctx context.Context) error {
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
	pager := blobs.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{MaxResults: to.Ptr[int32](1), Include: container.ListBlobsInclude{Versions: true, Snapshots: true}})
	for pager.More() {
		page, err := azureCall(ctx, "Blobs.List", pager.NextPage)
		switch {
		case azureGone(err):
			return nil
		case err != nil:
			return subject.fail(err)
		case page.Segment != nil && len(page.Segment.BlobItems) > 0:
			return b.errorf("", errBucketNotEmpty, "bucket %q cannot be deleted: %s", b.Name, errBucketNotEmpty)
		}
	}
	_, err = azureCall(ctx, "BlobContainers.Delete", func(ctx context.Context) (armstorage.BlobContainersClientDeleteResponse, error) {
		return b.containers.Delete(ctx, b.Name, b.Account, b.Name, nil)
	})
	switch {
	case err == nil, azureGone(err):
		return nil
	case !azureKept[azureErrorCode(err)]:
		return b.fail(err)
	}
	if known.legalHold || azureErrorCode(err) == "ContainerHasLegalHold" {
		return &waitError{reason: fmt.Sprintf("container %s is under a legal hold, which somebody has to clear", b.Name), after: azureHoldRetry}
	}
	return &waitError{reason: fmt.Sprintf("Azure keeps container %s because of its immutability policy (%s)", b.Name, azureErrorCode(err)), after: azureHoldRetry}
}

// DeleteAccount implements accountStore.
func (b *azureBucket) DeleteAccount(ctx context.Context) (AccountState, error) {
	if running, err := b.pollDeletion(ctx); err != nil || running {
		return AccountState{Deleting: running}, err
	}
	group, err := b.group(ctx)
	switch {
	case azureErrorCode(err) == "ResourceGroupNotFound":
		return AccountState{}, nil
	case err != nil:
		return AccountState{}, b.fail(err)
	case group.Properties != nil && deref(group.Properties.ProvisioningState) == "Deleting":
		return AccountState{Deleting: true}, nil
	}
	ours, others, err := b.resourcesOfGroup(ctx)
	if err != nil {
		return AccountState{}, err
	}
	if ours {
		why, err := b.occupied(ctx)
		if err != nil {
			return AccountState{}, err
		}
		if why != "" {
			return AccountState{Kept: fmt.Sprintf("resource group %s and storage account %s stay, because %s.", b.Name, b.Account, why)}, nil
		}
	}
	if len(others) > 0 {
		if ours {
			_, err := azureCall(ctx, "StorageAccounts.Delete", func(ctx context.Context) (armstorage.AccountsClientDeleteResponse, error) {
				return b.accounts.Delete(ctx, b.Name, b.Account, nil)
			})
			if err != nil && !azureGone(err) {
				return AccountState{}, b.fail(err)
			}
		}
		return AccountState{Kept: fmt.Sprintf("resource group %s stays, because something else is in it, such as %s.", b.Name, slices.Min(others))}, nil
	}
	deletion, err := azureCall(ctx, "ResourceGroups.Delete", func(ctx context.Context) (*runtime.Poller[armresources.ResourceGroupsClientDeleteResponse], error) {
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
	_, err = azureCall(ctx, "ResourceGroups.Delete", func(ctx context.Context) (out armresources.ResourceGroupsClientDeleteResponse, err error) {
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
	case err != nil && (status == 0 || status >= http.StatusInternalServerError || status == http.StatusTooManyRequests || status == http.StatusUnauthorized):
		return false, b.fail(err) // of the question, which can be asked again
	}
	b.deletions.Delete(b.Name)
	if status == http.StatusForbidden || status == http.StatusNotFound {
		return false, nil // it cannot be asked about any more
	}
	return false, b.failIf(err)
}

// resourcesOfGroup says whether our account is in the group, and what else is.
func (b *azureBucket) resourcesOfGroup(ctx context.Context) (ours bool, others []string, err error) {
	pager := b.resources.NewListByResourceGroupPager(b.Name, nil)
	for pager.More() {
		page, err := azureCall(ctx, "Resources.List", pager.NextPage)
		switch {
		case azureGone(err):
			return false, nil, nil
		case err != nil:
			return false, nil, b.fail(err)
		}
		for _, r := range page.Value {
			switch {
			case r == nil:
			case strings.EqualFold(deref(r.Type), azureAccountType) && deref(r.Name) == b.Account:
				ours = true
			default:
				others = append(others, deref(r.Type)+" "+deref(r.Name))
			}
		}
	}
	return ours, others, nil
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
			return azureFirst(ctx, operation, b.containers.NewListPager(b.Name, b.Account, &armstorage.BlobContainersClientListOptions{Maxpagesize: to.Ptr("10")}),
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
			return fmt.Sprintf("the client may not see whether a %s is in it: a role has to allow the action %s", kind.name, azureActions[kind.operation]), nil
		case err != nil:
			return "", b.fail(err)
		case name != "":
			return fmt.Sprintf("%s %s is in it", kind.name, name), nil
		}
	}
	return "", nil
}

// azureFirst returns the name of the first item of a list, empty if there is none. Kinds
// of accounts without a service have nothing of it.
func azureFirst[P, I any](ctx context.Context, operation string, pager *runtime.Pager[P], items func(P) []*I, name func(*I) *string) (string, error) {
	for pager.More() {
		page, err := azureCall(ctx, operation, pager.NextPage)
		switch {
		case azureGone(err), azureErrorCode(err) == "FeatureNotSupportedForAccount":
			return "", nil
		case err != nil:
			return "", err
		}
		for _, item := range items(page) {
			// Azure makes these containers by itself.
			if found := deref(name(item)); found != "$logs" && found != "$blobchangefeed" {
				return found, nil
			}
		}
	}
	return "", nil
}

// azureBlob is a blob or a version of one, without its snapshots.
type azureBlob struct {
	name, version string // version is empty for the current one
	size          int64
	created       time.Time
	// since is when the retention of the container begins to count.
	since    time.Time
	appended bool // an append blob
	// until is the end of the blob's own retention; held says that it has a legal hold.
	until time.Time
	held  bool
}

func (b azureBlob) compare(c azureBlob) int {
	return cmp.Or(b.created.Compare(c.created), cmp.Compare(b.name, c.name), cmp.Compare(b.version, c.version))
}

// azurePurge is a purge in progress.
type azurePurge struct {
	*azureSubject
	clients *azureClients
	blobs   *container.Client
	prefix  string
	before  func(context.Context) error
	// days are those of the container's policy, zero if it is not known; held says that
	// the container is under a legal hold.
	days int
	held bool

	versions bool // seen, by the lister only

	mu     sync.Mutex
	result PurgeResult
	// retainedSince is the creation time of the oldest blob that
	// the container itself retains: what was created later is retained as well.
	retainedSince *time.Time
	// endless says that the end of a retention is not known.
	endless bool
	// failedName orders failures, so that the same one is reported every time.
	failedName string
	err        error
}

// run deletes until nothing is left that can be: deleting the current version of a blob
// leaves it behind as a previous one
// (learn.microsoft.com/azure/storage/blobs/versioning-overview).
func (p *azurePurge) run(ctx context.Context) (PurgeResult, error) {
	var before *beforeError
	for round := 1; ; round++ {
		deleted := p.result.Deleted
		p.result.Retained, p.result.RetainedBytes, p.result.RetainedUntil, p.endless = 0, 0, time.Time{}, false
		err := p.deleteBlobs(ctx)
		if p.endless {
			p.result.RetainedUntil = time.Time{}
		}
		switch {
		case azureGone(err):
			return p.result, nil
		case errors.As(err, &before):
			return p.result, before.err
		case err != nil:
			return p.result, p.fail(err)
		case !p.versions || p.result.Deleted == deleted:
			return p.result, nil
		case round == azureMaxPurgeRounds:
			return p.result, p.errorf("", nil, "Azure Blobs.Batch for bucket %q failed: the store still lists blobs under %q that it said it deleted, or somebody keeps writing them", p.Name, p.prefix)
		}
	}
}

// deleteBlobs lists all blobs and deletes each page while it lists the next.
func (p *azurePurge) deleteBlobs(ctx context.Context) (err error) {
	var deletes sync.WaitGroup
	slots := make(chan struct{}, azureBatchesInFlight)
	options := &container.ListBlobsFlatOptions{
		MaxResults: to.Ptr[int32](azurePageSize),
		Include:    container.ListBlobsInclude{Versions: true, ImmutabilityPolicy: true, LegalHold: true},
	}
	if p.prefix != "" {
		options.Prefix = &p.prefix
	}
	pager := p.blobs.NewListBlobsFlatPager(options)
	for err == nil && pager.More() {
		var page container.ListBlobsFlatResponse
		if page, err = azureCall(ctx, "Blobs.List", pager.NextPage); err != nil {
			break
		}
		var blobs []azureBlob
		if blobs, err = p.page(page); err != nil {
			break
		}
		for batch := range slices.Chunk(blobs, azureBatchSize) {
			slots <- struct{}{}
			if err = p.failed(); err == nil {
				batch = p.deletable(batch)
			}
			if err != nil || len(batch) == 0 {
				<-slots
				continue
			}
			deletes.Go(func() {
				defer func() { <-slots }()
				p.deleteBatch(ctx, batch)
			})
		}
	}
	deletes.Wait()
	return cmp.Or(p.failed(), err)
}

func (p *azurePurge) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// page reads a page, oldest first. A store that lists other blobs than those asked for gets
// none of them deleted.
func (p *azurePurge) page(page container.ListBlobsFlatResponse) ([]azureBlob, error) {
	p.mu.Lock()
	p.result.Now = cmp.Or(deref(page.Date), time.Now())
	p.mu.Unlock()
	if page.Segment == nil {
		return nil, nil
	}
	blobs := make([]azureBlob, 0, len(page.Segment.BlobItems))
	for _, item := range page.Segment.BlobItems {
		b := azureBlob{name: deref(item.Name)}
		if b.name == "" || !strings.HasPrefix(b.name, p.prefix) {
			return nil, p.errorf("", nil, "Azure Blobs.List for bucket %q failed: the store lists blob %q, which is not under prefix %q; nothing of that page was deleted", p.Name, b.name, p.prefix)
		}
		if id := deref(item.VersionID); id != "" {
			p.versions = true
			if !isTrue(item.IsCurrentVersion) {
				b.version = id
			}
		}
		if properties := item.Properties; properties != nil {
			b.size, b.created = deref(properties.ContentLength), deref(properties.CreationTime)
			b.since = b.created
			// That of an append blob counts from its last modification
			// (learn.microsoft.com/azure/storage/blobs/immutable-container-level-worm-policies).
			if b.appended = deref(properties.BlobType) == container.BlobTypeAppendBlob; b.appended && deref(properties.LastModified).After(b.created) {
				b.since = *properties.LastModified
			}
			b.until, b.held = deref(properties.ImmutabilityPolicyExpiresOn), isTrue(properties.LegalHold)
		}
		blobs = append(blobs, b)
	}
	slices.SortFunc(blobs, azureBlob.compare)
	return blobs, nil
}

// deletable leaves out what is known to be retained: a blob is from its creation on, as long
// as the policy says (learn.microsoft.com/azure/storage/blobs/immutable-storage-overview).
func (p *azurePurge) deletable(batch []azureBlob) (out []azureBlob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range batch {
		learned := p.retainedSince != nil && !b.created.Before(*p.retainedSince)
		if p.held || b.held || learned || p.end(b).After(p.result.Now) {
			p.retain(b)
		} else {
			out = append(out, b)
		}
	}
	return out
}

// end is when a blob becomes free, as far as that is known. All that Azure allows as days
// is more than a time.Duration can hold.
func (p *azurePurge) end(b azureBlob) time.Time {
	if end := b.since.AddDate(0, 0, p.days); p.days > 0 && end.After(b.until) {
		return end
	}
	return b.until
}

// retain counts a retained blob.
func (p *azurePurge) retain(b azureBlob) {
	p.result.Retained++
	p.result.RetainedBytes += b.size
	end := p.end(b)
	if p.held || b.held || !end.After(p.result.Now) {
		p.endless = true
	}
	if end.After(p.result.RetainedUntil) {
		p.result.RetainedUntil = end
	}
}

// deleteBatch deletes up to 256 blobs. Errors come per blob within a success.
func (p *azurePurge) deleteBatch(ctx context.Context, batch []azureBlob) {
	for attempt := 1; ; attempt++ {
		err := checkBefore(ctx, p.before)
		var answers []error
		if err == nil {
			answers, err = p.submit(ctx, batch)
		}
		var again []azureBlob
		if err == nil {
			again, err = p.count(batch, answers, attempt <= azureMaxRetries)
		}
		if err == nil && len(again) > 0 || azureAgain(err) && attempt <= azureMaxRetries {
			if len(again) == 0 {
				again = batch
			}
			err = p.clients.wait(ctx, attempt)
		}
		if err != nil {
			p.setError(batch[0].name, err)
		}
		if err != nil || len(again) == 0 {
			return
		}
		batch = again
	}
}

// azureAgain says that a batch as a whole is worth another attempt.
func azureAgain(err error) bool {
	status := azureStatus(err)
	if status != 0 {
		return status >= http.StatusInternalServerError || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
	}
	if err == nil || errors.Is(err, context.Canceled) || errors.As(err, new(*beforeError)) || errors.As(err, new(azureNonRetriable)) {
		return false
	}
	_, text := networkCause(err)
	return text != ""
}

// wait sleeps before another attempt of what the SDK does not retry.
func (c *azureClients) wait(ctx context.Context, attempt int) error {
	delay := time.Duration(float64(c.retryDelay<<attempt) * (0.5 + rand.Float64()/2))
	select {
	case <-time.After(delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// submit sends a batch and returns the error of each of its parts.
func (p *azurePurge) submit(ctx context.Context, batch []azureBlob) ([]error, error) {
	builder, err := p.blobs.NewBatchBuilder()
	if err != nil {
		return nil, err
	}
	for _, b := range batch {
		options := &container.BatchDeleteOptions{}
		if b.version == "" {
			options.DeleteSnapshots = to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)
		} else {
			options.VersionID = &b.version
		}
		if err := builder.Delete(b.name, options); err != nil {
			return nil, err
		}
	}
	// The SDK would repeat a batch without asking whether it may still be sent.
	ctx = policy.WithRetryOptions(context.WithValue(ctx, azureBatchParts{}, len(batch)), policy.RetryOptions{MaxRetries: -1, TryTimeout: azureTryTimeout})
	response, err := azureCall(ctx, azureBatchOperation, func(ctx context.Context) (container.SubmitBatchResponse, error) {
		return p.blobs.SubmitBatch(ctx, builder, nil)
	})
	if err != nil {
		return nil, err
	}
	answers := make([]error, len(batch))
	answered := make([]bool, len(batch))
	for _, part := range response.Responses {
		answers[*part.ContentID], answered[*part.ContentID] = part.Error, true
	}
	if slices.Contains(answered, false) {
		return nil, errAzureBatch
	}
	return answers, nil
}

func (p *azurePurge) setError(name string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil || name < p.failedName {
		p.failedName, p.err = name, err
	}
}

// count adds the answer about a batch to the result and returns the blobs that are to be
// tried again.
func (p *azurePurge) count(batch []azureBlob, answers []error, retry bool) (again []azureBlob, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, b := range batch {
		code, status := azureErrorCode(answers[i]), azureStatus(answers[i])
		switch {
		case answers[i] == nil, code == "BlobNotFound", azureGone(answers[i]):
			p.result.Deleted++
			p.result.DeletedBytes += b.size
		case code == "BlobImmutableDueToPolicy", code == "BlobImmutableDueToLegalHold":
			if code == "BlobImmutableDueToLegalHold" && !b.held {
				// It is the container's, which holds everything.
				p.held = true
			} else if !b.held && !b.appended && b.until.IsZero() && (p.retainedSince == nil || b.created.Before(*p.retainedSince)) {
				p.retainedSince = &b.created
			}
			p.retain(b)
		case retry && (status >= http.StatusInternalServerError || status == http.StatusTooManyRequests):
			again = append(again, b)
		case err == nil:
			err = &azureCallError{operation: azureBatchOperation, blob: b.name, err: answers[i]}
		}
	}
	return again, err
}
