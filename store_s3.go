package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"sigs.k8s.io/yaml"
)

const (
	// s3MaxRetentionDays is S3's maximum, 100 years: "minimum retention period of 1
	// day, maximum 100 years"
	// (docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock-managing.html).
	s3MaxRetentionDays int32 = 36500

	s3MaxClients      = 32
	s3MaxAttempts     = 4
	s3MaxBackoff      = 5 * time.Second
	s3RequestTimeout  = time.Minute
	s3PageSize        = 1000 // the maximum of ListObjectVersions and DeleteObjects
	s3DeletesInFlight = 3
	s3MaxPurgeRounds  = 5
	s3DefaultRegion   = "us-east-1"
	s3UserAgent       = "bucketwarden"
	s3ClockSkew       = 15 * time.Minute // S3 refuses requests whose time is off by more
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
			return "", configErrorf("the credentials secret has neither %s nor %s, one of which has to go with %s", s3KeyRoleARN, s3KeyConfig, s3KeyToken)
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
		return nil, configErrorf("the credentials secret has no credentials: it needs %s and %s, or %s and %s", s3KeyAccessKeyID, s3KeySecretAccessKey, s3KeyToken, s3KeyRoleARN)
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
	switch value(s3KeyRequestChecksum) {
	case "", "when_supported":
	case "when_required":
		c.requestChecksum = aws.RequestChecksumCalculationWhenRequired
	default:
		return nil, configErrorf("%s in the credentials secret is neither when_supported nor when_required", s3KeyRequestChecksum)
	}
	switch value(s3KeyResponseChecksum) {
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
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return nil, configErrorf("%s in the credentials secret is not an http or https URL of a host, such as https://s3.example.com", s3KeyEndpoint)
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

	mu      sync.Mutex
	clients map[[sha256.Size]byte]*s3Client
	uses    uint64
}

// newS3Clients returns an empty cache of clients that report to m.
func newS3Clients(m *metrics) *s3Clients {
	return &s3Clients{metrics: m, maxBackoff: s3MaxBackoff, clients: map[[sha256.Size]byte]*s3Client{}}
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
	return &s3Bucket{bucketRef: bucketRef{Name: ref.Name, Region: client.region}, s3Client: client}, nil
}

// s3NoSuchBucket is the error of a name or region that no bucket can have.
func s3NoSuchBucket(err error) error {
	return &storeError{code: codeConfigurationProblem, err: &s3Failure{text: err.Error(), cause: errors.Join(errNotOurBucket, err)}}
}

func (c *s3Clients) client(region string, credentials map[string][]byte) (*s3Client, error) {
	key := s3ClientKey(region, credentials)
	c.mu.Lock()
	defer c.mu.Unlock()
	client := c.clients[key]
	if client == nil {
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
		client = c.newClient(region, config)
		if len(c.clients) >= s3MaxClients {
			var oldest [sha256.Size]byte
			least := uint64(math.MaxUint64)
			for k, v := range c.clients {
				if v.lastUse < least {
					oldest, least = k, v.lastUse
				}
			}
			c.clients[oldest].transport.CloseIdleConnections()
			delete(c.clients, oldest)
		}
		c.clients[key] = client
	}
	c.uses++
	client.lastUse = c.uses
	return client, nil
}

// s3ClientKey identifies a client without keeping its secrets in one more place.
func s3ClientKey(region string, credentials map[string][]byte) [sha256.Size]byte {
	h := sha256.New()
	add := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		h.Write(b)
	}
	add([]byte(region))
	for _, key := range s3Keys {
		add(bytes.TrimSpace(credentials[key]))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// s3Client is what the buckets of one secret share.
type s3Client struct {
	*s3.Client
	sts       *sts.Client
	transport *http.Transport
	backoff   retry.BackoffDelayer
	region    string
	// aws says that this is AWS itself and not a store that speaks its API.
	aws       bool
	plainHTTP bool
	partition string
	// secrets are the values that no error may show.
	secrets []string
	lastUse uint64 // guarded by s3Clients.mu

	accountLock chan struct{}
	account     string
	// noTLSVersion is set once the store has refused the condition key s3:TlsVersion.
	noTLSVersion atomic.Bool
}

func (c *s3Clients) newClient(region string, config *s3Credentials) *s3Client {
	client := &s3Client{
		transport: &http.Transport{
			Proxy:       http.ProxyFromEnvironment,
			DialContext: (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig: &tls.Config{
				MinVersion:         tls.VersionTLS12,
				RootCAs:            config.roots,
				InsecureSkipVerify: config.insecure,
			},
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 45 * time.Second,
			ExpectContinueTimeout: time.Second,
			IdleConnTimeout:       90 * time.Second,
			MaxIdleConnsPerHost:   8,
		},
		backoff:     retry.NewExponentialJitterBackoff(c.maxBackoff),
		region:      region,
		aws:         config.endpoint == nil || isAWSHost(config.endpoint.Hostname()),
		partition:   "aws",
		accountLock: make(chan struct{}, 1),
	}
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
		o.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(s3Retryable)}, o.Retryables...)
	})
	observe := func(stack *middleware.Stack) error { return stack.Deserialize.Add(c.observer(), middleware.Before) }

	stsOptions := sts.Options{
		Region: region, HTTPClient: httpClient, Retryer: retryer, AppID: s3UserAgent,
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
		APIOptions: []func(*middleware.Stack) error{observe},
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
		client.plainHTTP = config.endpoint.Scheme == "http"
		s3Options.BaseEndpoint = aws.String(config.endpoint.String())
	}
	if client.aws && c.awsEndpoint != "" {
		s3Options.BaseEndpoint = &c.awsEndpoint
	}
	client.Client = s3.New(s3Options)
	return client
}

type s3Token string

func (t s3Token) GetIdentityToken() ([]byte, error) { return []byte(t), nil }

// isAWSHost says that an endpoint is one of AWS's own, such as a VPC endpoint.
func isAWSHost(host string) bool {
	return slices.ContainsFunc([]string{".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu"}, func(suffix string) bool {
		return strings.HasSuffix(strings.ToLower(host), suffix)
	})
}

// s3Partition returns the partition of a region
// (docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html).
func s3Partition(region string) string {
	for _, p := range [][2]string{{"cn-", "aws-cn"}, {"us-gov-", "aws-us-gov"}, {"eusc-", "aws-eusc"}, {"us-iso-", "aws-iso"}, {"us-isob-", "aws-iso-b"}} {
		if strings.HasPrefix(region, p[0]) {
			return p[1]
		}
	}
	return "aws"
}

// requireOwner makes AWS refuse every request on a bucket that belongs to another
// account: somebody else may have taken the name and let us in by their policy.
func (c *s3Client) requireOwner(stack *middleware.Stack) error {
	return stack.Build.Add(middleware.BuildMiddlewareFunc("ExpectedBucketOwner", func(ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler) (middleware.BuildOutput, middleware.Metadata, error) {
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
	return middleware.DeserializeMiddlewareFunc("ObserveRequest", func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
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

func s3Outcome(err error) string {
	switch code, status := s3ErrorCode(err), s3Status(err); {
	case err == nil:
		return outcomeSuccess
	case s3Codes[code] == codeRateLimitsExceeded, code == "SlowDown", status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return outcomeThrottled
	case status == http.StatusNotFound, s3Unsupported(err),
		code == "BucketAlreadyOwnedByYou", code == "BucketNotEmpty", code == "InvalidBucketState", code == "NoSuchObjectLockConfiguration":
		return outcomeExpected
	}
	return outcomeError
}

var s3ReservedNames = struct{ prefixes, suffixes []string }{
	prefixes: []string{"xn--", "sthree-", "amzn-s3-demo-"},
	suffixes: []string{"-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"},
}

// checkS3BucketName applies
// docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html.
func checkS3BucketName(name string) error {
	if !s3BucketNamePattern.MatchString(name) || strings.Contains(name, "..") {
		return configErrorf("bucket name %q is not allowed on S3: it must be 3 to 63 lower-case letters, digits, hyphens and single dots, and begin and end with a letter or digit", name)
	}
	if addr, err := netip.ParseAddr(name); err == nil && addr.Is4() {
		return configErrorf("bucket name %q is not allowed on S3: it is formatted like an IP address", name)
	}
	for _, prefix := range s3ReservedNames.prefixes {
		if strings.HasPrefix(name, prefix) {
			return configErrorf("bucket name %q is not allowed on S3: the prefix %q is reserved", name, prefix)
		}
	}
	for _, suffix := range s3ReservedNames.suffixes {
		if strings.HasSuffix(name, suffix) {
			return configErrorf("bucket name %q is not allowed on S3: the suffix %q is reserved", name, suffix)
		}
	}
	return nil
}

// s3Codes are the error codes of S3 and STS that say what kind of problem it is;
// for all others the HTTP status decides.
var s3Codes = map[string]errorCode{
	"AuthFailure":            codeUnauthenticated,
	"ExpiredToken":           codeUnauthenticated,
	"ExpiredTokenException":  codeUnauthenticated,
	"IDPRejectedClaim":       codeUnauthenticated,
	"InvalidAccessKeyId":     codeUnauthenticated,
	"InvalidIdentityToken":   codeUnauthenticated,
	"InvalidSecretAccessKey": codeUnauthenticated,
	"InvalidToken":           codeUnauthenticated,
	"TokenRefreshRequired":   codeUnauthenticated,

	"AccessDenied":          codeUnauthorized,
	"AccessDeniedException": codeUnauthorized,
	"AllAccessDisabled":     codeUnauthorized,
	"InvalidClientTokenId":  codeUnauthorized,
	"SignatureDoesNotMatch": codeUnauthorized,
	"Unauthorized":          codeUnauthorized,
	"UnauthorizedOperation": codeUnauthorized,

	"LimitExceeded":          codeQuotaExceeded,
	"LimitExceededException": codeQuotaExceeded,
	"QuotaExceeded":          codeQuotaExceeded,
	"TooManyBuckets":         codeQuotaExceeded,

	"RequestLimitExceeded":     codeRateLimitsExceeded,
	"Throttling":               codeRateLimitsExceeded,
	"ThrottlingException":      codeRateLimitsExceeded,
	"TooManyRequests":          codeRateLimitsExceeded,
	"TooManyRequestsException": codeRateLimitsExceeded,

	"IDPCommunicationError": codeRetryableDependencies,
	"InternalError":         codeRetryableDependencies,
	"OperationAborted":      codeRetryableDependencies,
	"RequestTimeout":        codeRetryableDependencies,
	"ServiceUnavailable":    codeRetryableDependencies,
	"SlowDown":              codeRetryableDependencies,

	"AuthorizationHeaderMalformed":       codeConfigurationProblem,
	"BucketAlreadyExists":                codeConfigurationProblem,
	"IllegalLocationConstraintException": codeConfigurationProblem,
	"InvalidBucketName":                  codeConfigurationProblem,
	"InvalidBucketState":                 codeConfigurationProblem,
	"InvalidLocationConstraint":          codeConfigurationProblem,
	"PermanentRedirect":                  codeConfigurationProblem,
}

// s3Permissions are the IAM permissions that operations need, where the names differ
// (docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html).
var s3Permissions = map[string]string{
	"DeleteObjects":              "DeleteObjectVersion",
	"GetBucketEncryption":        "GetEncryptionConfiguration",
	"GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
	"GetPublicAccessBlock":       "GetBucketPublicAccessBlock",
	"HeadBucket":                 "ListBucket",
	"ListBuckets":                "ListAllMyBuckets",
	"ListMultipartUploads":       "ListBucketMultipartUploads",
	"ListObjectVersions":         "ListBucketVersions",
	"PutBucketEncryption":        "PutEncryptionConfiguration",
	"PutObjectLockConfiguration": "PutBucketObjectLockConfiguration",
	"PutPublicAccessBlock":       "PutBucketPublicAccessBlock",
}

func s3ErrorCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func s3Response(err error) *http.Response {
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.Response != nil {
		return response.Response.Response
	}
	return nil
}

func s3Status(err error) int {
	if response := s3Response(err); response != nil {
		return response.StatusCode
	}
	return 0
}

// s3Unsupported says that the store does not have a feature.
func s3Unsupported(err error) bool {
	switch s3ErrorCode(err) {
	case "NotImplemented", "MethodNotAllowed", "UnsupportedOperation":
		return true
	}
	status := s3Status(err)
	return status == http.StatusNotImplemented || status == http.StatusMethodNotAllowed
}

func s3Retryable(err error) aws.Ternary {
	code, _ := s3Cause(err)
	switch {
	case code == codeRetryableConfiguration:
		return aws.FalseTernary // a certificate is not renewed within seconds
	case code == codeRateLimitsExceeded, s3ErrorCode(err) == "ServiceUnavailable":
		return aws.TrueTernary
	}
	return aws.UnknownTernary
}

// s3Cause classifies an error. Its text has no request id, port or time, since it
// becomes part of a status; it is empty for what only s3Bucket.fail can describe.
func s3Cause(err error) (errorCode, string) {
	if errors.Is(err, context.Canceled) {
		return "", "the request was canceled"
	}
	if apiCode, status := s3ErrorCode(err), s3Status(err); apiCode != "" || status != 0 {
		code, known := s3Codes[apiCode]
		switch {
		case known:
		case status == http.StatusUnauthorized || status == http.StatusForbidden:
			code = codeUnauthorized
		case status == http.StatusTooManyRequests:
			code = codeRateLimitsExceeded
		case s3Unsupported(err), status == http.StatusMovedPermanently:
			code = codeConfigurationProblem
		case status >= 500 || status == http.StatusTemporaryRedirect:
			code = codeRetryableDependencies
		case apiCode == "":
			return codeRetryableConfiguration, fmt.Sprintf("the answer with HTTP status %d is not one of S3", status)
		}
		return code, ""
	}

	code, text := networkCause(err)
	var (
		unknownCA x509.UnknownAuthorityError
		record    tls.RecordHeaderError
		send      *smithyhttp.RequestSendError
	)
	switch {
	case errors.As(err, &unknownCA):
		text += fmt.Sprintf(": set %s in the credentials secret", s3KeyTrustedCA)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		text += fmt.Sprintf(": check the scheme of %s in the credentials secret", s3KeyEndpoint)
	case text == "" && errors.As(err, &send):
		return codeRetryableDependencies, "the store closes the connection without an answer"
	}
	return code, text
}

func s3Innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// s3Failure is an error with a text of ours around the SDK's.
type s3Failure struct {
	text  string
	cause error
}

func (e *s3Failure) Error() string { return e.text }
func (e *s3Failure) Unwrap() error { return e.cause }

// s3Bucket implements Store.
type s3Bucket struct {
	*s3Client
	bucketRef
}

var _ Store = &s3Bucket{}

func (b *s3Bucket) errorf(code errorCode, cause error, format string, args ...any) error {
	return &storeError{code: code, err: &s3Failure{text: fmt.Sprintf(format, args...), cause: cause}}
}

// fail makes the *storeError of an SDK error.
func (b *s3Bucket) fail(err error) error {
	var done *storeError
	if errors.As(err, &done) {
		return err
	}
	// The innermost operation failed: S3 requests fetch credentials from STS.
	service, operation := s3.ServiceID, "request"
	for op, rest := (*smithy.OperationError)(nil), err; errors.As(rest, &op); rest = op.Err {
		service, operation = op.ServiceID, op.OperationName
	}
	code, text := s3Cause(err)
	switch {
	case text != "":
	case s3ErrorCode(err) == "" && s3Status(err) == 0: // the SDK itself
		text = b.clean(err, s3Innermost(err).Error())
	default:
		code, text = b.answer(err, service, operation, code)
		if s3ErrorCode(err) == "BucketAlreadyExists" || b.otherRegion(err) != "" {
			err = errNotOurBucket
		}
	}
	return b.errorf(code, err, "%s %s for bucket %q failed: %s", service, operation, b.Name, text)
}

// answer describes an error that the store answered.
func (b *s3Bucket) answer(err error, service, operation string, code errorCode) (errorCode, string) {
	apiCode, status := s3ErrorCode(err), s3Status(err)
	name := apiCode
	if name == "" || name == "UnknownError" {
		name = fmt.Sprintf("HTTP status %d", status)
	}
	said := b.message(err)
	if region := b.otherRegion(err); region != "" {
		return codeConfigurationProblem, fmt.Sprintf("the bucket lies in region %q and not in %q", region, b.Region)
	}
	switch apiCode {
	case "SignatureDoesNotMatch":
		return code, fmt.Sprintf("the store does not accept the signature (%s): check %s in the credentials secret", name, s3KeySecretAccessKey)
	case "InvalidClientTokenId":
		return code, fmt.Sprintf("the credentials are not valid (%s): check the credentials secret", name)
	case "BucketAlreadyExists":
		return code, "the bucket exists and belongs to somebody else: bucket names are shared by all accounts, choose another one"
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "MovedPermanently", "IllegalLocationConstraintException", "InvalidLocationConstraint":
		return codeConfigurationProblem, fmt.Sprintf("the store refuses region %q for the bucket (%s)%s", b.Region, name, said)
	}
	switch {
	case code == codeUnauthenticated:
		return code, fmt.Sprintf("the store does not accept the credentials (%s): check the credentials secret", name)
	case s3Unsupported(err):
		return code, fmt.Sprintf("the store does not support this (%s)", name)
	case s3Denied(err) && service == s3.ServiceID:
		return code, fmt.Sprintf("access denied (%s): the credentials need the permission s3:%s, and no policy may deny it%s", name, cmp.Or(s3Permissions[operation], operation), said)
	}
	return code, fmt.Sprintf("the store answers %s%s", name, said)
}

// message is the message of the store, if it has one.
func (b *s3Bucket) message(err error) string {
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorMessage() == api.ErrorCode() || api.ErrorMessage() == "UnknownError" {
		return ""
	}
	if text := b.clean(err, api.ErrorMessage()); text != "" {
		return ": " + text
	}
	return ""
}

// clean makes one short line of a text, without what changes between requests and
// without secrets.
func (b *s3Bucket) clean(err error, text string) string {
	replace := slices.Clone(b.secrets)
	var request interface{ ServiceRequestID() string }
	if errors.As(err, &request) && request.ServiceRequestID() != "" {
		replace = append(replace, request.ServiceRequestID(), "***")
	}
	var host interface{ ServiceHostID() string }
	if errors.As(err, &host) && host.ServiceHostID() != "" {
		replace = append(replace, host.ServiceHostID(), "***")
	}
	text = strings.NewReplacer(replace...).Replace(strings.ToValidUTF8(text, "?"))
	text = strings.TrimSuffix(strings.Join(strings.Fields(text), " "), ".")
	if runes := []rune(text); len(runes) > 300 {
		text = string(runes[:300]) + "..."
	}
	return text
}

// otherRegion is the region that the store names in an error, if it is not ours.
func (b *s3Bucket) otherRegion(err error) string {
	response := s3Response(err)
	if response == nil {
		return ""
	}
	region := response.Header.Get("X-Amz-Bucket-Region")
	if region == b.Region || !b.aws && response.StatusCode != http.StatusMovedPermanently && response.StatusCode != http.StatusTemporaryRedirect && s3ErrorCode(err) != "AuthorizationHeaderMalformed" {
		return ""
	}
	return region
}

// Observe implements Store. The first request is the one whose answer has most in it:
// unlike HeadBucket, its errors have codes. A locked bucket needs no other.
func (b *s3Bucket) Observe(ctx context.Context) (BucketState, error) {
	lock, err := b.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &b.Name})
	switch {
	case err == nil:
		if config := lock.ObjectLockConfiguration; config != nil && (config.ObjectLockEnabled == types.ObjectLockEnabledEnabled || config.Rule != nil) {
			policy, err := b.policy(config.Rule)
			if err != nil {
				return BucketState{}, err
			}
			return BucketState{Exists: true, Policy: policy}, nil
		}
	case s3ErrorCode(err) == "NoSuchBucket":
		return BucketState{}, nil
	case s3Status(err) == http.StatusNotFound && s3ErrorCode(err) != "ObjectLockConfigurationNotFoundError":
		return BucketState{}, b.errorf(codeRetryableConfiguration, err, "S3 GetObjectLockConfiguration for bucket %q failed: "+
			"the answer with HTTP status 404 is not one of S3: check %s in the credentials secret", b.Name, s3KeyEndpoint)
	case s3Denied(err):
		return BucketState{}, b.denied(ctx, err)
	case !s3Unsupported(err) && s3Status(err) != http.StatusNotFound:
		return BucketState{}, b.fail(err)
	}
	// No object lock; some stores say so of buckets that do not exist as well.
	head, err := b.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &b.Name})
	switch {
	case err != nil && s3Status(err) == http.StatusNotFound:
		return BucketState{}, nil
	case err != nil && s3Denied(err):
		return BucketState{}, b.denied(ctx, err)
	case err != nil:
		return BucketState{}, b.fail(err)
	}
	// Other stores say us-east-1, or nothing, of every bucket.
	if region := aws.ToString(head.BucketRegion); b.aws && region != "" && region != b.Region {
		return BucketState{}, b.errorf(codeConfigurationProblem, errNotOurBucket, "bucket %q lies in region %q and not in %q", b.Name, region, b.Region)
	}
	return BucketState{Exists: true}, nil
}

// s3Denied says that a request was refused for lack of permission, and not because
// of the credentials themselves.
func s3Denied(err error) bool {
	switch s3ErrorCode(err) {
	case "AccessDenied", "AllAccessDisabled", "Forbidden", "UnknownError", "":
		return s3Status(err) == http.StatusForbidden
	}
	return false
}

// denied explains why an existing bucket may not be read: it is ours and a permission
// is missing, or it is somebody else's. Both are the same error in S3.
func (b *s3Bucket) denied(ctx context.Context, denied error) error {
	list, err := b.ListBuckets(ctx, &s3.ListBucketsInput{Prefix: &b.Name, MaxBuckets: aws.Int32(s3PageSize)})
	switch {
	case err != nil && !s3Denied(err) && !s3Unsupported(err):
		return b.fail(err)
	case err == nil && slices.ContainsFunc(list.Buckets, func(bucket types.Bucket) bool { return aws.ToString(bucket.Name) == b.Name }):
		return b.fail(denied)
	// Other stores list only the buckets that the credentials may see.
	case b.aws && err == nil && aws.ToString(list.ContinuationToken) == "":
		return b.errorf(codeConfigurationProblem, errNotOurBucket, "bucket %q exists and is not among the buckets of these credentials: "+
			"it belongs to somebody else, or a policy hides it; choose another name or other credentials", b.Name)
	}
	return b.errorf(codeUnauthorized, denied, "access to bucket %q is denied: it belongs to somebody else, "+
		"or the credentials lack the permissions s3:ListBucket and s3:GetBucketObjectLockConfiguration", b.Name)
}

func (b *s3Bucket) policy(rule *types.ObjectLockRule) (Policy, error) {
	if rule == nil || rule.DefaultRetention == nil {
		return Policy{}, nil
	}
	retention := rule.DefaultRetention
	days := int64(aws.ToInt32(retention.Days))
	if retention.Days == nil {
		days = 365 * int64(aws.ToInt32(retention.Years))
	}
	if days <= 0 || days > math.MaxInt32 {
		return Policy{}, b.errorf(codeConfigurationProblem, nil, "bucket %q has a default retention of %d days, which is none that S3 allows: correct or remove it", b.Name, days)
	}
	switch retention.Mode {
	case types.ObjectLockRetentionModeCompliance:
		return Policy{Days: int32(days), Locked: true}, nil
	case types.ObjectLockRetentionModeGovernance:
		return Policy{Days: int32(days)}, nil
	}
	return Policy{}, b.errorf(codeConfigurationProblem, nil, "bucket %q has a default retention in mode %q, which is neither %s nor %s: correct or remove it",
		b.Name, retention.Mode, types.ObjectLockRetentionModeCompliance, types.ObjectLockRetentionModeGovernance)
}

// Create implements Store.
func (b *s3Bucket) Create(ctx context.Context, immutable bool) error {
	in := &s3.CreateBucketInput{Bucket: &b.Name}
	if immutable {
		in.ObjectLockEnabledForBucket = aws.Bool(true)
	}
	if b.Region != s3DefaultRegion {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(b.Region)}
	}
	_, err := b.CreateBucket(ctx, in)
	switch {
	case err == nil, s3ErrorCode(err) == "BucketAlreadyOwnedByYou":
		return nil
	case immutable && s3Unsupported(err):
		return b.noObjectLock()
	}
	return b.fail(err)
}

// SetPolicy implements Store.
func (b *s3Bucket) SetPolicy(ctx context.Context, p Policy) error {
	if p.None() {
		return b.putObjectLock(ctx, nil)
	}
	return b.putObjectLock(ctx, &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: types.ObjectLockRetentionModeGovernance, Days: &p.Days}})
}

// LockPolicy implements Store.
func (b *s3Bucket) LockPolicy(ctx context.Context, p Policy) error {
	return b.putObjectLock(ctx, &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: types.ObjectLockRetentionModeCompliance, Days: &p.Days}})
}

// putObjectLock sets the default retention. Where the bucket has no object lock yet it
// is enabled, with versioning, which it needs. If that fails, versioning is put back.
func (b *s3Bucket) putObjectLock(ctx context.Context, rule *types.ObjectLockRule) error {
	put := func() error {
		_, err := b.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{
			Bucket:                  &b.Name,
			ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled, Rule: rule},
		})
		return err
	}
	err := put()
	if !s3NotLockable(err) {
		return b.failObjectLock(err)
	}
	versioning, err := b.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &b.Name})
	if err != nil {
		return b.failObjectLock(err)
	}
	if versioning.Status == types.BucketVersioningStatusEnabled {
		return b.objectLockOnlyAtCreation()
	}
	// Of the stores that are not AWS, few can; versioning, which once enabled never goes
	// away again, is not enabled on a guess.
	if !b.aws {
		return b.errorf(codeConfigurationProblem, nil, "bucket %q cannot be made immutable: it was created without object lock; "+
			"if the store can enable that later, enable versioning on the bucket first, else the bucket has to be recreated", b.Name)
	}
	if err := b.putVersioning(ctx, types.BucketVersioningStatusEnabled); err != nil {
		return b.failObjectLock(err)
	}
	err = put()
	// On AWS it takes a moment until everyone knows that versioning is enabled.
	for attempt := 1; b.aws && attempt < s3MaxAttempts && s3NotLockable(err); attempt++ {
		if err := b.wait(ctx, attempt); err != nil {
			break
		}
		err = put()
	}
	if err == nil {
		return nil
	}
	undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s3RequestTimeout)
	defer cancel()
	if undoErr := b.putVersioning(undoCtx, types.BucketVersioningStatusSuspended); undoErr != nil {
		return b.fail(undoErr)
	}
	return b.failObjectLock(err)
}

func (b *s3Bucket) putVersioning(ctx context.Context, status types.BucketVersioningStatus) error {
	_, err := b.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{
		Bucket: &b.Name, VersioningConfiguration: &types.VersioningConfiguration{Status: status},
	})
	return err
}

// s3NotLockable is the answer for a bucket without object lock or versioning.
func s3NotLockable(err error) bool {
	code := s3ErrorCode(err)
	return code == "InvalidBucketState" || code == "ObjectLockConfigurationNotFoundError"
}

func (b *s3Bucket) failObjectLock(err error) error {
	switch {
	case err == nil:
		return nil
	case s3Unsupported(err):
		return b.noObjectLock()
	case s3NotLockable(err):
		return b.objectLockOnlyAtCreation()
	}
	return b.fail(err)
}

func (b *s3Bucket) noObjectLock() error {
	return b.errorf(codeConfigurationProblem, nil, "bucket %q cannot be made immutable: the store has no object lock", b.Name)
}

func (b *s3Bucket) objectLockOnlyAtCreation() error {
	return b.errorf(codeConfigurationProblem, nil, "bucket %q cannot be made immutable: it was created without object lock, "+
		"and this store can enable it only when a bucket is created: the bucket has to be recreated", b.Name)
}

// wait sleeps before another attempt of what the SDK does not retry.
func (b *s3Bucket) wait(ctx context.Context, attempt int) error {
	delay, err := b.backoff.BackoffDelay(attempt, nil)
	if err != nil {
		return err
	}
	select {
	case <-time.After(delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Harden implements Store.
func (b *s3Bucket) Harden(ctx context.Context) ([]string, error) {
	var gaps []string
	for _, ensure := range []func(context.Context) (string, error){b.ensureEncryption, b.ensurePrivate, b.ensureTLS} {
		gap, err := ensure(ctx)
		switch {
		case s3Denied(err):
			// A missing permission for hardening must not keep the bucket from being locked.
			gap = b.fail(err).Error() + "."
		case err != nil:
			return gaps, b.fail(err)
		}
		if gap != "" {
			gaps = append(gaps, gap)
		}
	}
	return gaps, nil
}

func (b *s3Bucket) ensureEncryption(ctx context.Context) (gap string, err error) {
	const unsupported = "The store cannot encrypt objects by default."
	encryption, err := b.GetBucketEncryption(ctx, &s3.GetBucketEncryptionInput{Bucket: &b.Name})
	switch {
	case err == nil:
		if c := encryption.ServerSideEncryptionConfiguration; c != nil && len(c.Rules) > 0 {
			return "", nil
		}
	case s3Unsupported(err):
		return unsupported, nil
	case s3ErrorCode(err) != "ServerSideEncryptionConfigurationNotFoundError":
		return "", err
	}
	_, err = b.PutBucketEncryption(ctx, &s3.PutBucketEncryptionInput{
		Bucket: &b.Name,
		ServerSideEncryptionConfiguration: &types.ServerSideEncryptionConfiguration{Rules: []types.ServerSideEncryptionRule{{
			ApplyServerSideEncryptionByDefault: &types.ServerSideEncryptionByDefault{SSEAlgorithm: types.ServerSideEncryptionAes256},
		}}},
	})
	if s3Unsupported(err) {
		return unsupported, nil
	}
	return "", err
}

func (b *s3Bucket) ensurePrivate(ctx context.Context) (gap string, err error) {
	const unsupported = "The store cannot block public access."
	block, err := b.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: &b.Name})
	switch {
	case err == nil:
		c := block.PublicAccessBlockConfiguration
		if c == nil || *c == (types.PublicAccessBlockConfiguration{}) {
			return unsupported, nil // it answered another question
		}
		var off []string
		for _, setting := range []struct {
			name string
			on   *bool
		}{
			{"BlockPublicAcls", c.BlockPublicAcls}, {"IgnorePublicAcls", c.IgnorePublicAcls},
			{"BlockPublicPolicy", c.BlockPublicPolicy}, {"RestrictPublicBuckets", c.RestrictPublicBuckets},
		} {
			if !aws.ToBool(setting.on) {
				off = append(off, setting.name)
			}
		}
		if len(off) > 0 {
			return fmt.Sprintf("Somebody configured the public access block with %s off; it is left as it is.", strings.Join(off, ", ")), nil
		}
		return "", nil
	case s3Unsupported(err):
		return unsupported, nil
	case s3ErrorCode(err) != "NoSuchPublicAccessBlockConfiguration":
		return "", err
	}
	on := aws.Bool(true)
	_, err = b.PutPublicAccessBlock(ctx, &s3.PutPublicAccessBlockInput{
		Bucket: &b.Name,
		PublicAccessBlockConfiguration: &types.PublicAccessBlockConfiguration{
			BlockPublicAcls: on, IgnorePublicAcls: on, BlockPublicPolicy: on, RestrictPublicBuckets: on,
		},
	})
	if s3Unsupported(err) {
		return unsupported, nil
	}
	return "", err
}

// Sids of our statements in bucket policies.
const (
	s3SidTLS        = "BucketwardenDenyPlainHTTP"
	s3SidTLSVersion = "BucketwardenDenyOldTLS"
)

// ensureTLS denies plain HTTP and TLS below 1.2, in two statements: the conditions of
// one statement must all hold, which would deny neither alone.
func (b *s3Bucket) ensureTLS(ctx context.Context) (gap string, err error) {
	const (
		noPolicies = "The store has no bucket policies, so that plain HTTP is not denied."
		noVersion  = "The store does not know the policy condition s3:TlsVersion, so that TLS below 1.2 is not denied by it."
		unreadable = "The bucket policy is not a JSON object with statements, so that plain HTTP is not denied; it is left as it is."
		refused    = "The store refuses our statements in the bucket policy as malformed, so that plain HTTP is not denied."
	)
	if b.plainHTTP {
		return "The endpoint is plain http, so that TLS is not required.", nil
	}
	var document string
	current, err := b.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: &b.Name})
	switch {
	case err == nil:
		document = aws.ToString(current.Policy)
	case s3Unsupported(err):
		return noPolicies, nil
	case s3ErrorCode(err) != "NoSuchBucketPolicy":
		return "", err
	}
	put := func(statements []s3Statement) error {
		merged, changed, err := mergeS3Policy(document, statements)
		if err != nil || !changed {
			return err
		}
		_, err = b.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: &b.Name, Policy: &merged})
		return err
	}
	statements := b.tlsStatements()
	if b.noTLSVersion.Load() {
		statements, gap = statements[:1], noVersion
	}
	err = put(statements)
	if s3ErrorCode(err) == "MalformedPolicy" && gap == "" {
		if err = put(statements[:1]); err == nil {
			b.noTLSVersion.Store(true)
			gap = noVersion
		}
	}
	switch {
	case errors.Is(err, errS3Policy):
		return unreadable, nil
	case s3Unsupported(err):
		return noPolicies, nil
	case s3ErrorCode(err) == "MalformedPolicy":
		return refused, nil
	}
	return gap, err
}

// s3Statement is a statement of ours in a bucket policy.
type s3Statement struct {
	Sid       string
	Effect    string
	Principal string
	Action    string
	Resource  []string
	Condition map[string]map[string]string
}

func (b *s3Bucket) tlsStatements() []s3Statement {
	arn := "arn:" + b.partition + ":s3:::" + b.Name
	deny := func(sid, operator, key, value string) s3Statement {
		return s3Statement{
			Sid: sid, Effect: "Deny", Principal: "*", Action: "s3:*", Resource: []string{arn, arn + "/*"},
			Condition: map[string]map[string]string{operator: {key: value}},
		}
	}
	return []s3Statement{
		deny(s3SidTLS, "Bool", "aws:SecureTransport", "false"),
		deny(s3SidTLSVersion, "NumericLessThan", "s3:TlsVersion", "1.2"),
	}
}

var errS3Policy = errors.New("not a policy document")

// mergeS3Policy puts our statements into a policy document (empty if there is none)
// and says whether that changes anything. All else is kept byte for byte.
func mergeS3Policy(document string, ours []s3Statement) (merged string, changed bool, err error) {
	fields := map[string]json.RawMessage{"Version": json.RawMessage(`"2012-10-17"`)}
	var statements []json.RawMessage
	if strings.TrimSpace(document) != "" {
		fields = nil
		if err := json.Unmarshal([]byte(document), &fields); err != nil || fields == nil {
			return "", false, errS3Policy
		}
		if raw := bytes.TrimSpace(fields["Statement"]); bytes.HasPrefix(raw, []byte("{")) {
			statements = []json.RawMessage{raw}
		} else if len(raw) > 0 {
			if err := json.Unmarshal(raw, &statements); err != nil {
				return "", false, errS3Policy
			}
		}
	}
	sids := make([]string, len(statements))
	for i, raw := range statements {
		var statement struct{ Sid string }
		if err := json.Unmarshal(raw, &statement); err != nil {
			return "", false, errS3Policy
		}
		sids[i] = statement.Sid
	}
	for _, statement := range ours {
		raw, err := json.Marshal(statement)
		if err != nil {
			return "", false, fmt.Errorf("encoding a policy statement: %w", err)
		}
		switch i := slices.Index(sids, statement.Sid); {
		case i < 0:
			statements, sids, changed = append(statements, raw), append(sids, statement.Sid), true
		case !sameS3Statement(statements[i], raw):
			statements[i], changed = raw, true
		}
	}
	// Not json.Marshal, which compacts and escapes what others wrote.
	fields["Statement"] = slices.Concat([]byte("["), bytes.Join(rawBytes(statements), []byte(",")), []byte("]"))
	var members [][]byte
	for _, name := range []string{"Version", "Id", "Statement"} {
		if raw, ok := fields[name]; ok {
			members = append(members, slices.Concat([]byte(`"`+name+`":`), raw))
			delete(fields, name)
		}
	}
	if len(fields) > 0 { // nothing that a policy document has
		return "", false, errS3Policy
	}
	return "{" + string(bytes.Join(members, []byte(","))) + "}", changed, nil
}

func rawBytes(raw []json.RawMessage) [][]byte {
	out := make([][]byte, len(raw))
	for i := range raw {
		out[i] = raw[i]
	}
	return out
}

// sameS3Statement compares the meaning of two statements: stores turn single values
// into lists, sort them and write the principal in another way.
func sameS3Statement(a, b []byte) bool {
	x, okX := normalS3Statement(a)
	y, okY := normalS3Statement(b)
	return okX && okY && reflect.DeepEqual(x, y)
}

func normalS3Statement(raw []byte) (map[string]any, bool) {
	var statement map[string]any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if decoder.Decode(&statement) != nil {
		return nil, false
	}
	if statement["Principal"] == "*" {
		statement["Principal"] = map[string]any{"AWS": "*"}
	}
	normal, _ := normalS3Value(statement).(map[string]any)
	return normal, true
}

func normalS3Value(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key := range v {
			v[key] = normalS3Value(v[key])
		}
		return v
	case []any:
		list := make([]string, len(v))
		for i := range v {
			list[i] = fmt.Sprint(v[i])
		}
		slices.Sort(list)
		return list
	}
	return []string{fmt.Sprint(v)}
}

// Delete implements Store.
func (b *s3Bucket) Delete(ctx context.Context) error {
	_, err := b.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &b.Name})
	switch {
	case err == nil, s3ErrorCode(err) == "NoSuchBucket":
		return nil
	case s3ErrorCode(err) == "BucketNotEmpty":
		return b.errorf("", errBucketNotEmpty, "bucket %q cannot be deleted: %s", b.Name, errBucketNotEmpty)
	}
	return b.fail(err)
}

// s3Version is an object version or a delete marker.
type s3Version struct {
	key, id  string
	size     int64
	modified time.Time
	marker   bool
}

func (v s3Version) identifier() types.ObjectIdentifier {
	return types.ObjectIdentifier{Key: aws.String(v.key), VersionId: aws.String(v.id)}
}

// s3Purge is a purge in progress.
type s3Purge struct {
	*s3Bucket
	prefix string
	before func(context.Context) error

	mu     sync.Mutex
	result PurgeResult
	// newest is the newest of the retained versions, markers aside.
	newest *s3Version
	// failedKey orders failures, so that the same one is reported every time.
	failedKey string
	err       error
}

// Purge implements Store.
func (b *s3Bucket) Purge(ctx context.Context, prefix string, before func(context.Context) error) (PurgeResult, error) {
	p := &s3Purge{s3Bucket: b, prefix: prefix, before: before}
	var refused *beforeError
	start := time.Now()
	for round := 1; ; round++ {
		deleted := p.result.Deleted
		err := p.deleteVersions(ctx)
		switch {
		case s3ErrorCode(err) == "NoSuchBucket":
			return p.result, nil
		case errors.As(err, &refused):
			return p.result, refused.err
		case err != nil:
			return p.result, b.fail(err)
		}
		// Pages continue behind versions that were deleted meanwhile. What a store
		// skips then, or does not delete as it says, is found by listing again.
		if p.result.Retained > 0 || p.result.Deleted == deleted {
			break
		}
		if round == s3MaxPurgeRounds {
			return p.result, b.errorf("", nil, "S3 DeleteObjects for bucket %q failed: the store still lists object versions under %q that it said it deleted, or somebody keeps writing them", b.Name, prefix)
		}
	}
	if p.result.Retained > 0 {
		until, err := p.retainedUntil(ctx, start)
		if err != nil {
			return p.result, b.fail(err)
		}
		p.result.RetainedUntil = until
	}
	err := p.abortUploads(ctx)
	if errors.As(err, &refused) {
		return p.result, refused.err
	}
	if err != nil {
		return p.result, b.fail(err)
	}
	return p.result, nil
}

// deleteVersions lists all versions and deletes each page while it lists the next.
func (p *s3Purge) deleteVersions(ctx context.Context) (err error) {
	var deletes sync.WaitGroup
	slots := make(chan struct{}, s3DeletesInFlight)
	in := &s3.ListObjectVersionsInput{Bucket: &p.Name, MaxKeys: aws.Int32(s3PageSize)}
	if p.prefix != "" {
		in.Prefix = &p.prefix
	}
	for err == nil {
		var page *s3.ListObjectVersionsOutput
		if page, err = p.ListObjectVersions(ctx, in); err != nil {
			break
		}
		p.noteTime(page.ResultMetadata)
		var versions []s3Version
		if versions, err = p.versions(page); err != nil {
			break
		}
		if len(versions) > 0 {
			slots <- struct{}{}
			deletes.Go(func() {
				defer func() { <-slots }()
				p.deleteBatch(ctx, versions)
			})
		}
		if !aws.ToBool(page.IsTruncated) {
			break
		}
		if aws.ToString(page.NextKeyMarker) == "" {
			err = p.errorf("", nil, "S3 ListObjectVersions for bucket %q failed: the store truncates the list without saying where it continues", p.Name)
			break
		}
		if aws.ToString(page.NextKeyMarker) == aws.ToString(in.KeyMarker) && aws.ToString(page.NextVersionIdMarker) == aws.ToString(in.VersionIdMarker) {
			err = p.errorf("", nil, "S3 ListObjectVersions for bucket %q failed: the store continues the list where it was", p.Name)
			break
		}
		in.KeyMarker, in.VersionIdMarker = page.NextKeyMarker, page.NextVersionIdMarker
		p.mu.Lock()
		err = p.err
		p.mu.Unlock()
	}
	deletes.Wait()
	if p.err != nil {
		err = p.err
	}
	return err
}

// noteTime keeps the store's time, ours if it does not tell.
func (p *s3Purge) noteTime(metadata middleware.Metadata) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.result.Now = s3Now(metadata)
}

func s3Now(metadata middleware.Metadata) time.Time {
	if now, ok := awsmiddleware.GetServerTime(metadata); ok {
		return now
	}
	return time.Now()
}

// List implements Objects. It lists versions: a delete marker does not hide an object.
func (b *s3Bucket) List(ctx context.Context, prefix string) ([]objectInfo, time.Time, error) {
	var objects []objectInfo
	now := time.Now()
	pager := s3.NewListObjectVersionsPaginator(b.Client, &s3.ListObjectVersionsInput{Bucket: &b.Name, Prefix: &prefix, MaxKeys: aws.Int32(s3PageSize)})
	for pager.HasMorePages() {
		page, err := pager.NextPage(ctx)
		if s3ErrorCode(err) == "NoSuchBucket" {
			return nil, now, nil
		}
		if err != nil {
			return nil, now, b.fail(err)
		}
		now = s3Now(page.ResultMetadata)
		if len(objects) > maxListed {
			return nil, now, b.errorf("", nil, "S3 ListObjectVersions for bucket %q failed: there are more than %d objects under %q", b.Name, maxListed, prefix)
		}
		for _, v := range page.Versions {
			o := objectInfo{Key: aws.ToString(v.Key), Created: aws.ToTime(v.LastModified)}
			// The versions of a key follow each other, the newest first.
			if n := len(objects); n > 0 && objects[n-1].Key == o.Key {
				objects[n-1].Created = o.Created
				continue
			}
			objects = append(objects, o)
		}
	}
	return objects, now, nil
}

// Put implements Objects. AWS wants a checksum of everything that falls under object lock,
// whichever the client is configured to send.
func (b *s3Bucket) Put(ctx context.Context, key string) error {
	sum := md5.Sum(nil)
	_, err := b.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.Name, Key: &key, Body: bytes.NewReader(nil), ContentMD5: aws.String(base64.StdEncoding.EncodeToString(sum[:]))})
	if err != nil {
		return b.fail(err)
	}
	return nil
}

// versions reads a page. A store that lists other keys than those asked for gets none
// of them deleted.
func (p *s3Purge) versions(page *s3.ListObjectVersionsOutput) ([]s3Version, error) {
	versions := make([]s3Version, 0, len(page.Versions)+len(page.DeleteMarkers))
	for _, v := range page.Versions {
		versions = append(versions, s3Version{key: aws.ToString(v.Key), id: aws.ToString(v.VersionId), size: aws.ToInt64(v.Size), modified: aws.ToTime(v.LastModified)})
	}
	for _, v := range page.DeleteMarkers {
		versions = append(versions, s3Version{key: aws.ToString(v.Key), id: aws.ToString(v.VersionId), modified: aws.ToTime(v.LastModified), marker: true})
	}
	for _, v := range versions {
		if v.key == "" || !strings.HasPrefix(v.key, p.prefix) {
			return nil, p.errorf("", nil, "S3 ListObjectVersions for bucket %q failed: the store lists key %q, which is not under prefix %q; nothing of that page was deleted", p.Name, v.key, p.prefix)
		}
	}
	return versions, nil
}

// ask calls before for each attempt: the SDK repeats a request for up to minutes.
func (p *s3Purge) ask(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("CheckBefore", func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
			if err := checkBefore(ctx, p.before); err != nil {
				return middleware.FinalizeOutput{}, middleware.Metadata{}, err
			}
			return next.HandleFinalize(ctx, in)
		}), "Retry", middleware.After)
	})
}

// deleteBatch deletes up to 1000 versions. Errors come per key within a success.
func (p *s3Purge) deleteBatch(ctx context.Context, batch []s3Version) {
	for attempt := 1; ; attempt++ {
		objects := make([]types.ObjectIdentifier, len(batch))
		for i, v := range batch {
			objects[i] = v.identifier()
		}
		out, err := p.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &p.Name, Delete: &types.Delete{Objects: objects, Quiet: aws.Bool(true)}}, p.ask)
		if err == nil {
			var again []s3Version
			if again, err = p.count(batch, out.Errors, attempt < s3MaxAttempts); len(again) > 0 && err == nil {
				if err = p.wait(ctx, attempt); err == nil {
					batch = again
					continue
				}
			}
		}
		if err != nil {
			p.setError(batch[0].key, err)
		}
		return
	}
}

func (p *s3Purge) setError(key string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil || key < p.failedKey {
		p.failedKey, p.err = key, err
	}
}

// count adds the answer about a batch to the result and returns the versions that are
// to be tried again.
func (p *s3Purge) count(batch []s3Version, answered []types.Error, retry bool) (again []s3Version, err error) {
	type version struct{ key, id string }
	failed := make(map[version]types.Error, len(answered))
	for _, e := range answered {
		failed[version{aws.ToString(e.Key), aws.ToString(e.VersionId)}] = e
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	matched := map[version]bool{}
	for _, v := range batch {
		name := version{v.key, v.id}
		e, ok := failed[name]
		if !ok { // some stores leave the version out
			name.id = ""
			e, ok = failed[name]
		}
		matched[name] = ok
		code := aws.ToString(e.Code)
		switch {
		case !ok, code == "NoSuchKey", code == "NoSuchVersion":
			p.result.Deleted++
			p.result.DeletedBytes += v.size
		case s3RetainedCodes[code]:
			p.result.Retained++
			p.result.RetainedBytes += v.size
			if !v.marker && (p.newest == nil || v.modified.After(p.newest.modified)) {
				p.newest = &v
			}
		case retry && s3AgainCodes[code]:
			again = append(again, v)
		case err == nil:
			err = s3KeyError(e)
		}
	}
	for name, e := range failed {
		if !matched[name] && err == nil {
			err = s3KeyError(e)
		}
	}
	return again, err
}

var (
	// s3RetainedCodes: AWS says AccessDenied, MinIO InvalidRequest. Both also mean
	// other things, see retainedUntil.
	s3RetainedCodes = map[string]bool{"AccessDenied": true, "InvalidRequest": true, "ObjectLocked": true}
	s3AgainCodes    = map[string]bool{"SlowDown": true, "InternalError": true, "ServiceUnavailable": true, "OperationAborted": true, "RequestTimeout": true}
)

func s3KeyError(e types.Error) error {
	return &smithy.OperationError{ServiceID: s3.ServiceID, OperationName: "DeleteObjects", Err: &smithy.GenericAPIError{
		Code: aws.ToString(e.Code), Message: fmt.Sprintf("%s (key %q)", strings.TrimSuffix(aws.ToString(e.Message), "."), aws.ToString(e.Key)),
	}}
}

// retainedUntil asks the store about the newest version whose deletion was refused.
// Without retention or legal hold it was refused for lack of permission.
func (p *s3Purge) retainedUntil(ctx context.Context, start time.Time) (time.Time, error) {
	missing := p.errorf(codeUnauthorized, nil, "S3 DeleteObjects for bucket %q failed: the store denies the deletion of object versions that are not under retention: "+
		"the credentials need the permission s3:DeleteObjectVersion, and no policy may deny it", p.Name)
	if p.newest == nil {
		return time.Time{}, missing
	}
	retention, err := p.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &p.Name, Key: &p.newest.key, VersionId: &p.newest.id})
	switch {
	case err == nil:
		// The store's clock decides, and ours may be ahead of it.
		if r := retention.Retention; r != nil && aws.ToTime(r.RetainUntilDate).After(start.Add(-s3ClockSkew)) {
			return *r.RetainUntilDate, nil
		}
	case s3Gone(err):
		return time.Time{}, nil
	case !s3NoLock(err):
		return time.Time{}, err
	}
	hold, err := p.GetObjectLegalHold(ctx, &s3.GetObjectLegalHoldInput{Bucket: &p.Name, Key: &p.newest.key, VersionId: &p.newest.id})
	switch {
	case err == nil && hold.LegalHold != nil && hold.LegalHold.Status == types.ObjectLockLegalHoldStatusOn, s3Gone(err):
		return time.Time{}, nil
	case err != nil && !s3NoLock(err):
		return time.Time{}, err
	}
	return time.Time{}, missing
}

func s3Gone(err error) bool {
	code := s3ErrorCode(err)
	return code == "NoSuchKey" || code == "NoSuchVersion"
}

// s3NoLock says that an object version or its bucket has no retention or legal hold.
func s3NoLock(err error) bool {
	switch s3ErrorCode(err) {
	case "NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest":
		return true
	}
	return s3Unsupported(err)
}

// abortUploads aborts incomplete multipart uploads. MinIO lists only those of one key.
func (p *s3Purge) abortUploads(ctx context.Context) error {
	in := &s3.ListMultipartUploadsInput{Bucket: &p.Name}
	if p.prefix != "" {
		in.Prefix = &p.prefix
	}
	for {
		list, err := p.ListMultipartUploads(ctx, in)
		if err != nil {
			if s3Unsupported(err) || s3ErrorCode(err) == "NoSuchBucket" {
				return nil
			}
			return err
		}
		if len(list.Uploads) > 0 {
			if err := checkBefore(ctx, p.before); err != nil {
				return err
			}
		}
		for _, upload := range list.Uploads {
			if !strings.HasPrefix(aws.ToString(upload.Key), p.prefix) {
				continue
			}
			_, err := p.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &p.Name, Key: upload.Key, UploadId: upload.UploadId})
			if err != nil && s3ErrorCode(err) != "NoSuchUpload" {
				return err
			}
		}
		if !aws.ToBool(list.IsTruncated) || aws.ToString(list.NextKeyMarker) == "" {
			return nil
		}
		in.KeyMarker, in.UploadIdMarker = list.NextKeyMarker, list.NextUploadIdMarker
	}
}
