// From a secret to the clients of Azure, and what goes through their pipelines.
//
// Rules:
//   - Nothing here makes a request.
//   - What is wrong with a secret is a *configError that names the key and never a value.
//   - Clients of the management plane are shared, since they hold tokens.

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	stdjson "encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	azcloud "github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources/v3"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/storage/armstorage/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"sigs.k8s.io/yaml"
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

// azureLabel is a label of a host name.
const azureLabel = `[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?`

var (
	// azureIDPattern is what may stand in a URL path: IDs are GUIDs, tenants may be domains.
	azureIDPattern      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,126}[A-Za-z0-9])?$`)
	azureAccountPattern = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	azureBucketPattern  = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	azureDomainPattern  = regexp.MustCompile(`^` + azureLabel + `(\.` + azureLabel + `)*(:[0-9]{1,5})?$`)
	// azureVolatilePattern is what changes between two answers about the same: request IDs
	// and times.
	azureVolatilePattern = regexp.MustCompile(`(?i)\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|` +
		`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[0-9.]*(Z|[+-]\d\d:\d\d)?`)
)

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
		return nil, configErrorf("the credentials secret has both %s and %s (workload identity): keep one of the two", azureKeyClientSecret,
			azureKeyToken)
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
	transport *storeTransport
	// retryDelay and pollInterval are shorter in tests.
	retryDelay, pollInterval time.Duration
	cache                    clientCache[*azureClient]
}

// newAzureClients returns an empty cache of clients that report to m; clouds are the
// custom ones.
func newAzureClients(m *metrics, clouds azureClouds) *azureClients {
	return &azureClients{
		metrics: m, clouds: clouds, retryDelay: azureRetryDelay, pollInterval: azurePollInterval,
		transport: newTransport(&tls.Config{}),
	}
}

// openStore implements provider.
func (c *azureClients) openStore(ref bucketRef, credentials map[string][]byte) (Store, error) {
	if err := checkAzureBucketName(ref.Name); err != nil {
		return nil, err
	}
	ref.Account = cmp.Or(ref.Account, azureAccountName(ref.Name))
	if !azureAccountPattern.MatchString(ref.Account) {
		return nil, configErrorf("%s in the generated secret is not the name of a storage account, 3 to 24 lower-case letters and digits",
			dataKeyStorageAccount)
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
	account, key := azureValue(credentials, dataKeyStorageAccount), azureKeyBreaks.Replace(azureValue(credentials, dataKeyStorageKey))
	domain := strings.ToLower(cmp.Or(azureValue(credentials, dataKeyDomain), azureKnownClouds[0].domain))
	switch _, err := base64.StdEncoding.DecodeString(key); {
	case !azureAccountPattern.MatchString(account):
		return nil, configErrorf("%s in the credentials secret is not the name of a storage account, 3 to 24 lower-case letters and digits",
			dataKeyStorageAccount)
	case err != nil:
		return nil, configErrorf("%s in the credentials secret is not in base64, as Azure's keys are", dataKeyStorageKey)
	case !azureDomainPattern.MatchString(domain):
		return nil, configErrorf("%s in the credentials secret is not a host name such as %s", dataKeyDomain, azureKnownClouds[0].domain)
	}
	generated := account == cmp.Or(ref.Account, azureAccountName(ref.Name))
	ref.Account = account
	cloud := c.clouds.ofDomain(domain)
	blobs, err := c.blobs(cloud, ref, key)
	if err != nil {
		return nil, err
	}
	subject := &azureSubject{bucketRef: ref, secrets: []string{key}, entry: true, generated: generated}
	return &azureEntry{azureBlobs{azureSubject: subject, clients: c, cloud: cloud, blobs: blobs, days: int(ref.Recorded.Days)}}, nil
}

// endpoint implements versions.
func (b *azureBucket) endpoint() endpointRef { return b.arm }

// endpoint implements versions.
func (e *azureEntry) endpoint() endpointRef {
	return endpointRef{host: azureHost(e.blobs.URL()), part: e.Name}
}

func azureHost(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}

// azureAccountName is the storage account of a bucket, as in
// gardener/gardener-extension-provider-azure pkg/controller/backupbucket.
func azureAccountName(bucket string) string {
	sum := sha256.Sum256([]byte(bucket))
	return "bkp" + hex.EncodeToString(sum[:])[:15]
}

// azureClient is the management plane with the credentials of one secret.
type azureClient struct {
	// arm is the management plane with the subscription, by which it limits requests.
	arm        endpointRef
	groups     *armresources.ResourceGroupsClient
	resources  *armresources.Client
	accounts   *armstorage.AccountsClient
	containers *armstorage.BlobContainersClient
	shares     *armstorage.FileSharesClient
	queues     *armstorage.QueueClient
	tables     *armstorage.TableClient
	// deletions are the resume tokens of the deletions that were begun, by resource group.
	deletions sync.Map
	// versionLevels says of accounts that were read whether they have version-level immutability, by group and account.
	versionLevels sync.Map
}

func (c *azureClients) client(cloud *azureCloud, config *azureConfig) (*azureClient, error) {
	key := newClientKey(cloud.name, config.subscriptionID, config.tenantID, config.clientID, config.clientSecret, config.token)
	return c.cache.get(key, func() (*azureClient, error) { return c.newClient(cloud, config) })
}

func (c *azureClients) newClient(cloud *azureCloud, config *azureConfig) (*azureClient, error) {
	options := c.options()
	options.Cloud = cloud.config
	tokens := options
	tokens.Transport = c.httpClient(c.transport.logins())
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
	resourceOptions := &arm.ClientOptions{ClientOptions: options, DisableRPRegistration: true}
	armOptions.APIVersion, resourceOptions.APIVersion = cloud.versions.Storage, cloud.versions.Resources
	credential := azureCredential{inner}
	client := &azureClient{arm: endpointRef{part: "subscription " + config.subscriptionID}}
	client.arm.host = azureHost(cloud.config.Services[azcloud.ResourceManager].Endpoint)
	if client.groups, err = armresources.NewResourceGroupsClient(config.subscriptionID, credential, resourceOptions); err != nil {
		return nil, err
	}
	if client.resources, err = armresources.NewClient(config.subscriptionID, credential, resourceOptions); err != nil {
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

// options are those of every SDK client. It waits exactly as long as Retry-After says; a longer one than MaxRetryDelay is not
// waited for: the queue has better things to do.
func (c *azureClients) options() policy.ClientOptions {
	return policy.ClientOptions{
		Retry: policy.RetryOptions{MaxRetries: azureMaxRetries, RetryDelay: c.retryDelay, MaxRetryDelay: maxWait,
			TryTimeout: azureTryTimeout},
		Telemetry:        policy.TelemetryOptions{ApplicationID: azureUserAgent},
		Transport:        c.httpClient(c.transport),
		PerRetryPolicies: []policy.Policy{azurePolicy(c.observe)},
	}
}

func (c *azureClients) httpClient(transport *storeTransport) *http.Client {
	// A token belongs to one host.
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// blobs returns a client for the container of a bucket.
func (c *azureClients) blobs(cloud *azureCloud, ref bucketRef, key string) (*container.Client, error) {
	credential, err := container.NewSharedKeyCredential(ref.Account, key)
	if err != nil {
		return nil, configErrorf("the key of storage account %s is not in base64", ref.Account)
	}
	options := c.options()
	if version := cloud.versions.Blob; version != "" {
		// Ahead of what signs the request.
		options.PerCallPolicies = append(options.PerCallPolicies, azurePolicy(func(r *policy.Request) (*http.Response, error) {
			r.Raw().Header["x-ms-version"] = []string{version} // spelled as the SDK does
			return r.Next()
		}))
	}
	blobs, err := container.NewClientWithSharedKeyCredential(cloud.url(ref.Account, ref.Name), credential,
		&container.ClientOptions{ClientOptions: options})
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

// azureTokenError is a token that Microsoft Entra ID did not give.
type azureTokenError struct {
	// status and body are Entra's last answer, if it gave one.
	status int
	body   struct {
		Error string `json:"error"`
		Codes []int  `json:"error_codes"`
	}
	// after is how long that answer said to wait.
	after time.Duration
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
		failure.status, failure.after = response.StatusCode, azureAfter(response, time.Now())
		if body, err := runtime.Payload(response); err == nil {
			_ = stdjson.Unmarshal(body, &failure.body) // what is no JSON has no codes
		}
	}
	return response, err
}

// azureCall makes a request, or several, that are observed as operation.
func azureCall[T any](ctx context.Context, operation string, call func(context.Context) (T, error)) (T, error) {
	var response *http.Response
	out, err := call(policy.WithCaptureResponse(context.WithValue(ctx, azureOperation{}, operation), &response))
	if err != nil {
		err = &azureCallError{operation: operation, err: err, answered: response != nil && response.StatusCode < http.StatusMultipleChoices}
	}
	return out, err
}

// storeAzure is the name of this store, as in --type NAME=STORE.
const storeAzure = "azure"

// azureMaxRetentionDays: "between 1 and 146,000 days"
// (learn.microsoft.com/azure/storage/blobs/immutable-time-based-retention-policy-overview).
const azureMaxRetentionDays int32 = 146000

// annotationRotate asks for a rotation of a storage account's keys
// (gardener/gardener-extension-provider-azure pkg/azure/types.go).
const annotationRotate = "azure" + annotationRotateSuffix

// warnExtend is a reason of a warning, beside those of policyWarnings.
const warnExtend = "extend"

var (
	_ accountProvider = &azureClients{}
	_ extensionLimit  = &azureClients{}
)

// newAzureProvider serves the line of daemon.go.
func newAzureProvider(c *config, m *metrics) (provider, error) {
	clouds, err := loadAzureClouds(c.azureCloudConfig)
	if err != nil {
		return nil, fmt.Errorf("--azure-cloud-config: %w", err)
	}
	clients := newAzureClients(m, clouds)
	clients.transport.refuse = c.refusesOfStores()
	return clients, nil
}

func (c *azureClients) name() string { return storeAzure }

// verifyInterval is long: nobody can take a locked policy away.
func (c *azureClients) verifyInterval() time.Duration { return 10 * time.Minute }

// azureBucketConfig is spec.providerConfig of a BackupBucket, in the format of gardener-extension-provider-azure
// (pkg/apis/azure/v1alpha1/types_backupbucket.go).
type azureBucketConfig struct {
	configHeader
	Immutability       *immutabilityConfig `json:"immutability,omitempty"`
	CloudConfiguration *cloudConfiguration `json:"cloudConfiguration,omitempty"`
	RotationConfig     *rotationConfig     `json:"rotationConfig,omitempty"`
}

type rotationConfig struct {
	RotationPeriodDays   int32  `json:"rotationPeriodDays"`
	ExpirationPeriodDays *int32 `json:"expirationPeriodDays,omitempty"`
}

func (c *azureClients) parseConfig(path *field.Path, providerType string, raw []byte) (want desired, err error) {
	var config azureBucketConfig
	decodeErr := decodeConfig(path, providerType, raw, &config)
	if config.CloudConfiguration != nil {
		want.Cloud = config.CloudConfiguration.Name
	}
	switch {
	case decodeErr != nil:
		want.CloudUnknown = want.Cloud == ""
		return want, decodeErr
	case config.CloudConfiguration != nil && want.Cloud == "":
		return want, configErrorf("%s is empty", path.Child("cloudConfiguration", "name"))
	}
	if want.Rotation, err = config.RotationConfig.rotation(path.Child("rotationConfig")); err != nil {
		return want, err
	}
	want.Policy, err = config.Immutability.policy(path.Child("immutability"), azureMaxRetentionDays)
	return want, err
}

// rotation applies the rules of gardener/gardener-extension-provider-azure
// pkg/apis/azure/validation/backupbucket.go.
func (c *rotationConfig) rotation(path *field.Path) (keyRotation, error) {
	if c == nil {
		return keyRotation{}, nil
	}
	if c.RotationPeriodDays < 2 {
		return keyRotation{}, configErrorf("%s is %d, must be at least 2", path.Child("rotationPeriodDays"), c.RotationPeriodDays)
	}
	rotation := keyRotation{Days: c.RotationPeriodDays}
	if c.ExpirationPeriodDays != nil {
		rotation.ExpirationDays = *c.ExpirationPeriodDays
		if rotation.ExpirationDays <= c.RotationPeriodDays {
			return keyRotation{}, configErrorf("%s is %d, must be above rotationPeriodDays, which is %d",
				path.Child("expirationPeriodDays"), rotation.ExpirationDays, c.RotationPeriodDays)
		}
	}
	return rotation, nil
}

func (c *azureClients) record(providerType string, r record) any {
	if status := providerStatus(providerType, r); status != nil {
		return status
	}
	return nil
}

func (c *azureClients) warnings(path *field.Path, desired, floor Policy) map[string]string {
	if !floor.Locked || desired.Days <= floor.Days {
		return nil
	}
	return map[string]string{warnExtend: fmt.Sprintf("%s: Azure allows a locked policy to be extended five times, ever; "+
		"this is one of them", path.Child("immutability", "retentionPeriod"))}
}

// refuseExtension implements extensionLimit.
func (c *azureClients) refuseExtension(desired, live Policy) *Refusal {
	return &Refusal{Reason: reasonExtend, Message: fmt.Sprintf("the bucket has a %s, spec.providerConfig asks for %s: "+
		"Azure allows a locked policy to be extended only five times, and that has been done; write retentionPeriod: %s",
		live, desired, live.Hours())}
}

func (c *azureClients) entrySecret(_ *backupEntry, source, _, wanted *corev1.Secret) error {
	if isWorkloadIdentity(source) {
		return configErrorf("secret %s/%s is one of a workload identity, which etcd-backup-restore does not support on Azure: "+
			"it needs %s and %s, as the BackupBucket's generated secret has them",
			source.Namespace, source.Name, dataKeyStorageAccount, dataKeyStorageKey)
	}
	maps.Copy(wanted.Data, source.Data)
	// etcd-backup-restore takes the content of each of these as it is, an empty domain as well.
	c.handOver(wanted.Data)
	return nil
}

// handOver makes the keys of a secret that etcd-backup-restore reads what openObjects has validated: without the spaces and line
// breaks that people leave in secrets, and spelled as it reads them.
func (c *azureClients) handOver(data map[string][]byte) {
	for _, key := range []string{dataKeyStorageAccount, dataKeyStorageKey, dataKeyDomain} {
		if _, there := data[key]; !there {
			continue
		}
		value := azureValue(data, key)
		switch key {
		case dataKeyStorageKey:
			value = azureKeyBreaks.Replace(value)
		case dataKeyDomain:
			value = strings.ToLower(value)
		}
		if data[key] = []byte(value); value == "" {
			delete(data, key)
		}
	}
}

// azureKeyBreaks are what Go ignores in base64, and others do not.
var azureKeyBreaks = strings.NewReplacer("\n", "", "\r", "")

func (c *azureClients) rotateAnnotation() string { return annotationRotate }

func (c *azureClients) published(generated *corev1.Secret) (account, key string) {
	return azureValue(generated.Data, dataKeyStorageAccount), azureValue(generated.Data, dataKeyStorageKey)
}
