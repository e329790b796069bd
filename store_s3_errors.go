// The errors of S3 and STS in our words.
//
// Rules:
//   - They are classified by codes and types, never by parts of a text.
//   - The network is looked for first: a connection can break inside an answer.
//   - A text has no request id, port or time, since it becomes part of a status, and no secret.

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// s3NoSuchBucket is the error of a name or region that no bucket can have.
func s3NoSuchBucket(err error) error {
	return &storeError{code: codeConfigurationProblem, err: &s3Failure{text: err.Error(), cause: errors.Join(errNotOurBucket, err)}}
}

func s3Outcome(err error) string {
	switch code, status := s3ErrorCode(err), s3Status(err); {
	case err == nil:
		return outcomeSuccess
	case s3Codes[code] == codeRateLimitsExceeded, code == "SlowDown", status == http.StatusTooManyRequests,
		status == http.StatusServiceUnavailable:
		return outcomeThrottled
	case status == http.StatusNotFound, s3Unsupported(err),
		code == "BucketAlreadyOwnedByYou", code == "BucketNotEmpty", code == "InvalidBucketState", code == "NoSuchObjectLockConfiguration":
		return outcomeExpected
	}
	return outcomeError
}

// s3Codes are the error codes of S3 and STS that say what kind of problem it is;
// for all others the HTTP status decides.
var s3Codes = map[string]errorCode{
	"AuthFailure":            codeUnauthenticated,
	"ExpiredToken":           codeUnauthenticated,
	"ExpiredTokenException":  codeUnauthenticated,
	"IDPRejectedClaim":       codeUnauthenticated,
	"InvalidAccessKey":       codeUnauthenticated,
	"InvalidAccessKeyID":     codeUnauthenticated,
	"InvalidAccessKeyId":     codeUnauthenticated,
	"InvalidIdentityToken":   codeUnauthenticated,
	"InvalidSecretAccessKey": codeUnauthenticated,
	"InvalidToken":           codeUnauthenticated,
	"InvalidUser":            codeUnauthenticated,
	"NoSuchAccessKey":        codeUnauthenticated,
	"NoSuchUser":             codeUnauthenticated,
	"TokenRefreshRequired":   codeUnauthenticated,

	"AccessDenied":          codeUnauthorized,
	"AccessDeniedException": codeUnauthorized,
	"AllAccessDisabled":     codeUnauthorized,
	"InvalidClientTokenId":  codeUnauthorized,
	"SignatureDoesNotMatch": codeUnauthorized,
	"Unauthorized":          codeUnauthorized,
	"UnauthorizedOperation": codeUnauthorized,
	"UserSuspended":         codeUnauthorized,

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
	"GetObject":                  "GetObjectVersion",
	"GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
	"GetObjectTagging":           "GetObjectVersionTagging",
	"GetPublicAccessBlock":       "GetBucketPublicAccessBlock",
	"HeadBucket":                 "ListBucket",
	"ListBuckets":                "ListAllMyBuckets",
	"ListMultipartUploads":       "ListBucketMultipartUploads",
	"ListObjectVersions":         "ListBucketVersions",
	"PutBucketEncryption":        "PutEncryptionConfiguration",
	"PutObjectLockConfiguration": "PutBucketObjectLockConfiguration",
	"PutObjectTagging":           "PutObjectVersionTagging",
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

// s3Codeless says that an error came without a code of S3's, so that it may be somebody else's answer.
func s3Codeless(err error) bool {
	switch s3ErrorCode(err) {
	case "", "UnknownError", "NotFound":
		return true
	}
	return false
}

// s3OddNotFound says that something was not found and that the store did not say what. Some answer so to an access key that
// they do not know.
func s3OddNotFound(err error) bool {
	switch s3ErrorCode(err) {
	case "NoSuchBucket", "NoSuchKey", "NoSuchVersion", "NoSuchUpload", "ObjectLockConfigurationNotFoundError":
		return false
	}
	_, known := s3Codes[s3ErrorCode(err)]
	return s3Status(err) == http.StatusNotFound && !known && !s3Unsupported(err)
}

// s3Unsupported says that the store does not have a feature.
func s3Unsupported(err error) bool {
	switch s3ErrorCode(err) {
	case "NotImplemented", "MethodNotAllowed", "UnsupportedOperation":
		return true
	}
	if errors.Is(err, errS3OtherAnswer) {
		return true
	}
	status := s3Status(err)
	return status == http.StatusNotImplemented || status == http.StatusMethodNotAllowed
}

func s3Retryable(err error) aws.Ternary {
	code, text := s3Cause(err)
	switch {
	case retryAfter(err) > 0:
		return aws.FalseTernary // there is no request before that
	case code == codeRetryableConfiguration:
		return aws.FalseTernary // a certificate is not renewed within seconds
	case code == codeRateLimitsExceeded, s3ErrorCode(err) == "ServiceUnavailable":
		return aws.TrueTernary
	case code == codeRetryableDependencies && text != "" && !errors.Is(err, context.DeadlineExceeded):
		return aws.TrueTernary // the network, also within an answer
	}
	return aws.UnknownTernary
}

// s3Cause classifies an error. Its text has no request id, port or time, since it
// becomes part of a status; it is empty for what only s3Bucket.fail can describe.
func s3Cause(err error) (errorCode, string) {
	if errors.Is(err, context.Canceled) {
		return "", "the request was canceled"
	}
	code, text := networkCause(err)
	var (
		unknownCA x509.UnknownAuthorityError
		record    tls.RecordHeaderError
		send      *smithyhttp.RequestSendError
	)
	switch {
	case errors.As(err, &unknownCA):
		return code, text + fmt.Sprintf(": set %s in the credentials secret", s3KeyTrustedCA)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return code, text + fmt.Sprintf(": check the scheme of %s in the credentials secret", s3KeyEndpoint)
	case text != "":
		return code, text
	case errors.As(err, &send):
		return codeRetryableDependencies, "the store closes the connection without an answer"
	}
	apiCode, status := s3ErrorCode(err), s3Status(err)
	if apiCode == "" && status == 0 {
		return "", ""
	}
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
	case apiCode == "" && status != http.StatusNotFound: // see answer
		return codeRetryableConfiguration, fmt.Sprintf("the answer with HTTP status %d is not one of S3", status)
	}
	return code, ""
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
	after := s3RetryAfter(err)
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
	text = fmt.Sprintf("%s %s for bucket %q failed: %s", service, operation, b.Name, text)
	return &storeError{code: code, err: &s3Failure{text: text, cause: err}, after: after}
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
	case "XAmzContentSHA256Mismatch": // Ceph RGW 16, over HTTPS
		return codeConfigurationProblem, fmt.Sprintf("the store does not accept the checksum of an object (%s): set %s: when_required in the "+
			"credentials secret", name, s3KeyRequestChecksum)
	case "InvalidClientTokenId":
		return code, fmt.Sprintf("the credentials are not valid (%s): check the credentials secret", name)
	case "BucketAlreadyExists":
		return code, "the bucket exists and belongs to somebody else: bucket names are shared by all accounts, choose another one"
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "MovedPermanently", "IllegalLocationConstraintException",
		"InvalidLocationConstraint":
		return codeConfigurationProblem, fmt.Sprintf("the store refuses region %q for the bucket (%s)%s", b.Region, name, said)
	}
	if s3OddNotFound(err) && (s3Codeless(err) || operation == "GetObjectLockConfiguration" || operation == "CreateBucket") {
		what := "the store answers " + name + said
		if s3Codeless(err) {
			what = "the answer with HTTP status 404 is not one of S3"
		}
		return codeRetryableConfiguration, fmt.Sprintf("%s: check %s in the credentials secret, and %s, since some stores answer so to "+
			"an access key that they do not know", what, s3KeyEndpoint, s3KeyAccessKeyID)
	}
	switch {
	case code == codeUnauthenticated:
		return code, fmt.Sprintf("the store does not accept the credentials (%s): check the credentials secret", name)
	case s3Unsupported(err):
		return code, fmt.Sprintf("the store does not support this (%s)", name)
	case s3Denied(err) && service == s3.ServiceID:
		return code, fmt.Sprintf("access denied (%s): the credentials need the permission s3:%s, and no policy may deny it%s", name,
			cmp.Or(s3Permissions[operation], operation), said)
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
	if region == b.Region || !b.aws && response.StatusCode != http.StatusMovedPermanently &&
		response.StatusCode != http.StatusTemporaryRedirect && s3ErrorCode(err) != "AuthorizationHeaderMalformed" {
		return ""
	}
	return region
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
