// From a secret to a client of S3.
//
// Rules:
//   - Nothing here makes a request, except that AWS is asked once whose credentials these are.
//   - What is wrong with a secret is a *configError that names the key and never a value.
//   - Clients are shared between buckets until the content of the secret changes.

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"sigs.k8s.io/yaml"
)

// Keys of S3 credentials secrets, as etcd-backup-restore reads them
// (gardener/etcd-backup-restore pkg/snapstore/s3_snapstore.go), and those of
// workload identity (gardener/gardener-extension-provider-aws pkg/aws/types.go).
const (
	s3KeyAccessKeyID      = "accessKeyID"
	s3KeySecretAccessKey  = "secretAccessKey"
	s3KeyToken            = "token"
	s3KeyRoleARN          = "roleARN"
	s3KeyConfig           = "config"
	s3KeyRegion           = "region"
	s3KeyEndpoint         = "endpoint"
	s3KeyPathStyle        = "s3ForcePathStyle"
	s3KeyTrustedCA        = "trustedCaCert"
	s3KeyInsecure         = "insecureSkipVerify"
	s3KeyRequestChecksum  = "requestChecksumCalculation"
	s3KeyResponseChecksum = "responseChecksumValidation"
)

// s3Keys are the keys that make a client, in the order in which they are hashed.
var s3Keys = []string{
	s3KeyAccessKeyID, s3KeySecretAccessKey, s3KeyToken, s3KeyRoleARN, s3KeyConfig, s3KeyRegion, s3KeyEndpoint,
	s3KeyPathStyle, s3KeyTrustedCA, s3KeyInsecure, s3KeyRequestChecksum, s3KeyResponseChecksum,
}

var (
	s3RoleARNPattern    = regexp.MustCompile(`^arn:aws(-[a-z]+)*:iam::([0-9]{12}):role/[\w+=,.@/-]+$`)
	s3RegionPattern     = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)
	s3BucketNamePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
)

// s3Credentials is the content of a credentials secret.
type s3Credentials struct {
	accessKeyID, secretAccessKey string
	token, roleARN               string
	region                       string
	endpoint                     *url.URL // nil on AWS
	pathStyle, insecure          bool
	roots                        *x509.CertPool
	requestChecksum              aws.RequestChecksumCalculation
	responseChecksum             aws.ResponseChecksumValidation
}

// s3Value is a value of a secret; people create them with a trailing newline.
func s3Value(credentials map[string][]byte, key string) string {
	return string(bytes.TrimSpace(credentials[key]))
}

// s3RoleARN returns the role that workload identity credentials assume, from
// roleARN or from the WorkloadIdentityConfig in config. Its errors are *configError.
func s3RoleARN(credentials map[string][]byte) (string, error) {
	key, role := s3KeyRoleARN, s3Value(credentials, s3KeyRoleARN)
	if role == "" {
		raw := s3Value(credentials, s3KeyConfig)
		if raw == "" {
			return "", configErrorf("the credentials secret has neither %s nor %s, one of which has to go with %s", s3KeyRoleARN, s3KeyConfig,
				s3KeyToken)
		}
		var config struct {
			RoleARN string `json:"roleARN"`
		}
		if err := yaml.Unmarshal([]byte(raw), &config); err != nil {
			return "", configErrorf("%s in the credentials secret is not a WorkloadIdentityConfig in JSON or YAML", s3KeyConfig)
		}
		key, role = s3KeyConfig+".roleARN", strings.TrimSpace(config.RoleARN)
	}
	if !s3RoleARNPattern.MatchString(role) {
		return "", configErrorf("%s in the credentials secret is not the ARN of a role, such as arn:aws:iam::123456789012:role/backup", key)
	}
	return role, nil
}

// checkS3Credentials says what is wrong with the data of a credentials secret, as a
// *configError that names the key and no value.
func checkS3Credentials(credentials map[string][]byte) error {
	_, err := parseS3Credentials(credentials)
	return err
}

func parseS3Credentials(credentials map[string][]byte) (*s3Credentials, error) {
	value := func(key string) string { return s3Value(credentials, key) }
	c := &s3Credentials{
		accessKeyID: value(s3KeyAccessKeyID), secretAccessKey: value(s3KeySecretAccessKey),
		token: value(s3KeyToken), region: value(s3KeyRegion),
		requestChecksum: aws.RequestChecksumCalculationWhenSupported, responseChecksum: aws.ResponseChecksumValidationWhenSupported,
	}
	static := c.accessKeyID != "" || c.secretAccessKey != ""
	identity := c.token != "" || value(s3KeyRoleARN) != "" || value(s3KeyConfig) != ""
	switch {
	case static && identity:
		return nil, configErrorf("the credentials secret has both access keys (%s, %s) and workload identity (%s, %s, %s): keep one of the two",
			s3KeyAccessKeyID, s3KeySecretAccessKey, s3KeyToken, s3KeyRoleARN, s3KeyConfig)
	case !static && !identity:
		return nil, configErrorf("the credentials secret has no credentials: it needs %s and %s, or %s and %s", s3KeyAccessKeyID,
			s3KeySecretAccessKey, s3KeyToken, s3KeyRoleARN)
	case static && c.accessKeyID == "":
		return nil, configErrorf("the credentials secret lacks %s", s3KeyAccessKeyID)
	case static && c.secretAccessKey == "":
		return nil, configErrorf("the credentials secret lacks %s", s3KeySecretAccessKey)
	case identity && c.token == "":
		return nil, configErrorf("the credentials secret lacks %s", s3KeyToken)
	}
	var err error
	if identity {
		if c.roleARN, err = s3RoleARN(credentials); err != nil {
			return nil, err
		}
	}
	for key, target := range map[string]*bool{s3KeyPathStyle: &c.pathStyle, s3KeyInsecure: &c.insecure} {
		if v := value(key); v != "" {
			if *target, err = strconv.ParseBool(v); err != nil {
				return nil, configErrorf("%s in the credentials secret is neither true nor false", key)
			}
		}
	}
	switch strings.ToLower(value(s3KeyRequestChecksum)) {
	case "", "when_supported":
	case "when_required":
		c.requestChecksum = aws.RequestChecksumCalculationWhenRequired
	default:
		return nil, configErrorf("%s in the credentials secret is neither when_supported nor when_required", s3KeyRequestChecksum)
	}
	switch strings.ToLower(value(s3KeyResponseChecksum)) {
	case "", "when_supported":
	case "when_required":
		c.responseChecksum = aws.ResponseChecksumValidationWhenRequired
	default:
		return nil, configErrorf("%s in the credentials secret is neither when_supported nor when_required", s3KeyResponseChecksum)
	}
	if pem := value(s3KeyTrustedCA); pem != "" {
		// In addition to the system's: STS is AWS's even if the store is not.
		if c.roots, err = x509.SystemCertPool(); err != nil {
			c.roots = x509.NewCertPool()
		}
		if !c.roots.AppendCertsFromPEM([]byte(pem)) {
			return nil, configErrorf("%s in the credentials secret has no PEM certificate", s3KeyTrustedCA)
		}
	}
	if endpoint := value(s3KeyEndpoint); endpoint != "" {
		if !strings.Contains(endpoint, "://") {
			endpoint = "https://" + endpoint
		}
		u, err := url.Parse(endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" ||
			u.Fragment != "" {
			return nil, configErrorf("%s in the credentials secret is not an http or https URL of a host, such as https://s3.example.com",
				s3KeyEndpoint)
		}
		c.endpoint = u
	}
	return c, nil
}

// s3Clients are the clients of all buckets, one for each content of a secret and region.
type s3Clients struct {
	metrics *metrics
	// stsEndpoint replaces AWS's regional STS endpoints, and awsEndpoint those of S3;
	// only tests set them.
	stsEndpoint, awsEndpoint string
	maxBackoff               time.Duration
	// refuse says which requests are never to be made to a store; nil if there are none such.
	refuse func(*http.Request) error
	cache  clientCache[*s3Client]
}

// newS3Clients returns an empty cache of clients that report to m.
func newS3Clients(m *metrics) *s3Clients {
	return &s3Clients{metrics: m, maxBackoff: s3MaxBackoff, cache: clientCache[*s3Client]{
		evicted: func(client *s3Client) { client.transport.CloseIdleConnections() }}}
}

// openStore implements provider.
func (c *s3Clients) openStore(ref bucketRef, credentials map[string][]byte) (Store, error) {
	b, err := c.open(ref, credentials)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// openObjects implements provider: entries have the same credentials as buckets.
func (c *s3Clients) openObjects(ref bucketRef, credentials map[string][]byte) (Objects, error) {
	b, err := c.open(ref, credentials)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (c *s3Clients) open(ref bucketRef, credentials map[string][]byte) (*s3Bucket, error) {
	if err := checkS3BucketName(ref.Name); err != nil {
		return nil, s3NoSuchBucket(err)
	}
	client, err := c.client(ref.Region, credentials)
	if err != nil {
		return nil, err
	}
	ref.Region = client.region
	return &s3Bucket{bucketRef: ref, s3Client: client}, nil
}

func (c *s3Clients) client(region string, credentials map[string][]byte) (*s3Client, error) {
	parts := []string{region}
	for _, key := range s3Keys {
		parts = append(parts, s3Value(credentials, key))
	}
	return c.cache.get(newClientKey(parts...), func() (*s3Client, error) {
		config, err := parseS3Credentials(credentials)
		if err != nil {
			return nil, err
		}
		switch region = cmp.Or(region, config.region); {
		case region == "":
			return nil, configErrorf("there is no region: set spec.region, or %s in the credentials secret", s3KeyRegion)
		case !s3RegionPattern.MatchString(region):
			return nil, s3NoSuchBucket(configErrorf("region %q must consist of letters, digits and hyphens", region))
		}
		return c.newClient(region, config), nil
	})
}

// s3Client is what the buckets of one secret share.
type s3Client struct {
	*s3.Client
	sts       *sts.Client
	transport *storeTransport
	backoff   retry.BackoffDelayer
	region    string
	// host is that of S3, whose virtual hosts end with it.
	host string
	// aws says that this is AWS itself and not a store that speaks its API.
	aws       bool
	plainHTTP bool
	partition string
	// secrets are the values that no error may show.
	secrets []string

	accountLock chan struct{}
	account     string
	// plainLists and singleDeletes are set once the store has said that it has no lists of
	// versions and no batches. contentMD5: whether it wants Content-MD5 for a batch.
	plainLists, singleDeletes atomic.Bool
	contentMD5                atomic.Int32
	// noTLSVersion is set once the store has refused the condition key s3:TlsVersion.
	noTLSVersion atomic.Bool
	// plainURL is where an https endpoint would serve plain HTTP.
	plainURL string
	// encryptionTried has, by bucket, whether an object could be written with its default encryption, blockTried the gap if
	// none could with its public access block, and tlsTried an s3TLS.
	encryptionTried, blockTried, tlsTried sync.Map
}

func (c *s3Clients) newClient(region string, config *s3Credentials) *s3Client {
	client := &s3Client{
		transport:   newTransport(&tls.Config{RootCAs: config.roots, InsecureSkipVerify: config.insecure}),
		backoff:     s3Backoff(retry.NewExponentialJitterBackoff(c.maxBackoff)),
		region:      region,
		aws:         config.endpoint == nil || isAWSHost(config.endpoint.Hostname(), region),
		partition:   "aws",
		accountLock: make(chan struct{}, 1),
	}
	client.transport.refuse = c.refuse
	for _, secret := range []string{config.secretAccessKey, config.accessKeyID, config.token} {
		if secret != "" {
			client.secrets = append(client.secrets, secret, "***")
		}
	}
	httpClient := &http.Client{
		Transport: client.transport,
		Timeout:   s3RequestTimeout,
		// A signed request belongs to one host; S3's redirects are answers about regions.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	retryer := retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = s3MaxAttempts
		o.Backoff = client.backoff
		// The SDK's quota would replace the store's error by its own.
		o.RateLimiter = ratelimit.None
		o.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(s3Patient), retry.IsErrorRetryableFunc(s3Retryable)},
			o.Retryables...)
	})
	observe := func(stack *middleware.Stack) error { return stack.Deserialize.Add(c.observer(), middleware.Before) }
	check := func(stack *middleware.Stack) error { return stack.Deserialize.Add(s3CheckDocument, middleware.After) }

	logins := *httpClient
	logins.Transport = client.transport.logins()
	stsOptions := sts.Options{
		Region: region, HTTPClient: &logins, Retryer: retryer, AppID: s3UserAgent,
		APIOptions: []func(*middleware.Stack) error{observe},
	}
	if c.stsEndpoint != "" {
		stsOptions.BaseEndpoint = &c.stsEndpoint
	}
	var provider aws.CredentialsProvider
	if config.roleARN != "" {
		client.account = s3RoleARNPattern.FindStringSubmatch(config.roleARN)[2]
		provider = aws.NewCredentialsCache(stscreds.NewWebIdentityRoleProvider(sts.New(stsOptions), config.roleARN, s3Token(config.token),
			// The default, a timestamp, would show up in AccessDenied messages.
			func(o *stscreds.WebIdentityRoleOptions) { o.RoleSessionName = s3UserAgent },
		), func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = time.Minute })
	} else {
		provider = awscredentials.NewStaticCredentialsProvider(config.accessKeyID, config.secretAccessKey, "")
	}
	stsOptions.Credentials = provider
	client.sts = sts.New(stsOptions)

	s3Options := s3.Options{
		Region: region, HTTPClient: httpClient, Retryer: retryer, AppID: s3UserAgent, Credentials: provider,
		UsePathStyle:               config.pathStyle,
		RequestChecksumCalculation: config.requestChecksum, ResponseChecksumValidation: config.responseChecksum,
		APIOptions: []func(*middleware.Stack) error{observe, check},
	}
	if config.requestChecksum == aws.RequestChecksumCalculationWhenRequired {
		// Stores that do not know x-amz-checksum-* ask for this one.
		s3Options.APIOptions = append(s3Options.APIOptions, smithyhttp.AddContentChecksumMiddleware)
	}
	if client.aws {
		client.partition = s3Partition(region)
		s3Options.APIOptions = append(s3Options.APIOptions, client.requireOwner)
	}
	if config.endpoint != nil {
		client.plainHTTP, client.plainURL = config.endpoint.Scheme == "http", s3PlainURL(config.endpoint)
		s3Options.BaseEndpoint = aws.String(config.endpoint.String())
	}
	if client.aws && c.awsEndpoint != "" {
		s3Options.BaseEndpoint = &c.awsEndpoint
	}
	client.Client = s3.New(s3Options)
	client.host = s3Host(s3Options)
	return client
}

// s3Host is the host that the buckets of a client lie on.
func s3Host(o s3.Options) string {
	resolved, err := s3.NewDefaultEndpointResolverV2().ResolveEndpoint(context.Background(),
		s3.EndpointParameters{Region: &o.Region, Endpoint: o.BaseEndpoint, UseFIPS: new(bool), UseDualStack: new(bool)})
	if err != nil {
		return "s3." + o.Region
	}
	return resolved.URI.Host
}

// endpoint implements versions.
func (b *s3Bucket) endpoint() endpointRef { return endpointRef{host: b.host, part: b.Name} }

type s3Token string

func (t s3Token) GetIdentityToken() ([]byte, error) { return []byte(t), nil }

// requireOwner makes AWS refuse every request on a bucket that belongs to another
// account: somebody else may have taken the name and let us in by their policy.
func (c *s3Client) requireOwner(stack *middleware.Stack) error {
	return stack.Build.Add(middleware.BuildMiddlewareFunc("ExpectedBucketOwner", func(ctx context.Context, in middleware.BuildInput,
		next middleware.BuildHandler) (middleware.BuildOutput, middleware.Metadata, error) {
		switch awsmiddleware.GetOperationName(ctx) {
		case "CreateBucket", "ListBuckets": // they have no owner to expect
			return next.HandleBuild(ctx, in)
		}
		account, err := c.accountID(ctx)
		if err != nil {
			return middleware.BuildOutput{}, middleware.Metadata{}, err
		}
		if r, ok := in.Request.(*smithyhttp.Request); ok {
			r.Header.Set("X-Amz-Expected-Bucket-Owner", account)
		}
		return next.HandleBuild(ctx, in)
	}), middleware.After)
}

// accountID asks STS once whose credentials these are; that needs no permission.
func (c *s3Client) accountID(ctx context.Context) (string, error) {
	select {
	case c.accountLock <- struct{}{}:
		defer func() { <-c.accountLock }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if c.account == "" {
		identity, err := c.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			return "", err
		}
		c.account = aws.ToString(identity.Account)
	}
	return c.account, nil
}

// observer measures each HTTP attempt: the deserialize step is inside the retries.
func (c *s3Clients) observer() middleware.DeserializeMiddleware {
	return middleware.DeserializeMiddlewareFunc("ObserveRequest", func(ctx context.Context, in middleware.DeserializeInput,
		next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
		start := time.Now()
		out, metadata, err := next.HandleDeserialize(ctx, in)
		operation := awsmiddleware.GetOperationName(ctx)
		if service := awsmiddleware.GetServiceID(ctx); service != s3.ServiceID {
			operation = service + "." + operation
		}
		c.metrics.observeStoreRequest(storeS3, operation, s3Outcome(err), time.Since(start))
		return out, metadata, err
	})
}

// storeS3 is the name of this store, as in --type NAME=STORE.
const storeS3 = "s3"

// Values of immutability.mode.
const (
	modeCompliance = "compliance"
	modeGovernance = "governance"
)

// warnGovernance is a reason of a warning, beside those of policyWarnings.
const warnGovernance = "governance"

var _ provider = &s3Clients{}

// newS3Provider serves the line of daemon.go.
func newS3Provider(c *config, m *metrics) (provider, error) {
	clients := newS3Clients(m)
	clients.refuse = c.refusesOfStores()
	return clients, nil
}

func (c *s3Clients) name() string { return storeS3 }

// verifyInterval is short: whoever has the permission can take a bucket's default retention away.
func (c *s3Clients) verifyInterval() time.Duration { return time.Minute }

// s3BucketConfig is spec.providerConfig of a BackupBucket, in the format of gardener-extension-provider-aws
// (pkg/apis/aws/v1alpha1/types_backupbucket.go).
type s3BucketConfig struct {
	configHeader
	Immutability *s3Immutability `json:"immutability,omitempty"`
}

type s3Immutability struct {
	immutabilityConfig
	Mode string `json:"mode,omitempty"`
}

func (c *s3Clients) parseConfig(path *field.Path, providerType string, raw []byte) (desired, error) {
	var config s3BucketConfig
	if err := decodeConfig(path, providerType, raw, &config); err != nil {
		return desired{}, err
	}
	policy, err := config.Immutability.policy(path.Child("immutability"))
	return desired{Policy: policy}, err
}

func (c *s3Immutability) policy(path *field.Path) (Policy, error) {
	if c == nil {
		return Policy{}, nil
	}
	policy, err := c.immutabilityConfig.policy(path, s3MaxRetentionDays)
	if err != nil {
		return Policy{}, err
	}
	switch mode := c.Mode; mode {
	case "":
	case modeCompliance, modeGovernance:
		policy.Locked = mode == modeCompliance
		if c.Locked != nil && *c.Locked != policy.Locked {
			return Policy{}, configErrorf("%s %q contradicts locked: %t; compliance is locked, governance is not: "+
				"write only one of the two", path.Child("mode"), mode, *c.Locked)
		}
	default:
		return Policy{}, configErrorf("%s is %q, must be %q or %q", path.Child("mode"), mode, modeCompliance, modeGovernance)
	}
	return policy, nil
}

// record adds the mode.
func (c *s3Clients) record(providerType string, r record) any {
	status := providerStatus(providerType, r)
	if status == nil {
		return nil
	}
	if immutability := status.Immutability; immutability != nil {
		immutability.Mode = modeGovernance
		if r.Policy.Locked {
			immutability.Mode = modeCompliance
		}
	}
	return status
}

func (c *s3Clients) warnings(path *field.Path, desired, floor Policy) map[string]string {
	path = path.Child("immutability", "mode")
	warnings := map[string]string{}
	if desired.Locked && !floor.Locked {
		warnings[warnLock] = lockWarning(path, desired)
	}
	if !desired.None() && !desired.Locked {
		warnings[warnGovernance] = fmt.Sprintf("%s: governance protects only from those without the permission "+
			"s3:BypassGovernanceRetention, and can be undone; compliance is the locked form", path)
	}
	return warnings
}

func (c *s3Clients) entrySecret(e *backupEntry, source, existing, wanted *corev1.Secret) error {
	if isWorkloadIdentity(source) {
		if err := addWorkloadIdentity(wanted, source, existing); err != nil {
			return err
		}
	} else {
		spelled, err := spellS3Credentials(source.Data)
		if err != nil {
			return fmt.Errorf("secret %s/%s: %w", source.Namespace, source.Name, err)
		}
		maps.Copy(wanted.Data, spelled)
	}
	wanted.Data[dataKeyRegion] = []byte(e.Region)
	return nil
}

// spellS3Credentials is the data of a credentials secret as it was understood, for etcd-backup-restore, which takes
// values as they are: without spaces around them, and without the empty ones that count as absent here.
func spellS3Credentials(credentials map[string][]byte) (map[string][]byte, error) {
	c, err := parseS3Credentials(credentials)
	if err != nil {
		return nil, err
	}
	spelled := make(map[string][]byte, len(credentials))
	for key := range credentials {
		if value := s3Value(credentials, key); value != "" || !slices.Contains(s3Keys, key) {
			spelled[key] = []byte(value)
		}
	}
	respell := func(key, value string) {
		if _, ok := spelled[key]; ok {
			spelled[key] = []byte(value)
		}
	}
	respell(s3KeyPathStyle, strconv.FormatBool(c.pathStyle))
	respell(s3KeyInsecure, strconv.FormatBool(c.insecure))
	respell(s3KeyRequestChecksum, strings.ToLower(s3Value(credentials, s3KeyRequestChecksum)))
	respell(s3KeyResponseChecksum, strings.ToLower(s3Value(credentials, s3KeyResponseChecksum)))
	if c.endpoint != nil {
		respell(s3KeyEndpoint, c.endpoint.String())
	}
	return spelled, nil
}

// addWorkloadIdentity makes wanted the secret of a workload identity. The token is what gardenlet has written there.
func addWorkloadIdentity(wanted, source, existing *corev1.Secret) error {
	for _, key := range []string{annotationWorkloadName, annotationWorkloadNS} {
		if source.Annotations[key] == "" {
			return configErrorf("the workload identity secret %s/%s lacks the annotation %s", source.Namespace, source.Name, key)
		}
		wanted.Annotations[key] = source.Annotations[key]
	}
	if context, ok := source.Annotations[annotationWorkloadContext]; ok {
		wanted.Annotations[annotationWorkloadContext] = context
	}
	provider := source.Labels[labelWorkloadProvider]
	if provider == "" {
		return configErrorf("the workload identity secret %s/%s lacks the label %s", source.Namespace, source.Name, labelWorkloadProvider)
	}
	wanted.Labels = map[string]string{labelPurpose: purposeTokenRequestor, labelWorkloadProvider: provider}
	roleARN, err := s3RoleARN(source.Data)
	if err != nil {
		return fmt.Errorf("workload identity secret %s/%s: %w", source.Namespace, source.Name, err)
	}
	wanted.Data[dataKeyRoleARN] = []byte(roleARN)
	if config, ok := source.Data[dataKeyConfig]; ok {
		wanted.Data[dataKeyConfig] = config
	}
	if existing != nil {
		if token, ok := existing.Data[dataKeyToken]; ok {
			wanted.Data[dataKeyToken] = token
		}
		if renew, ok := existing.Annotations[annotationTokenRenew]; ok {
			wanted.Annotations[annotationTokenRenew] = renew
		}
	}
	return nil
}
