// The errors of Azure and of Microsoft Entra ID in our words.
//
// Rules:
//   - They are classified by codes and types, never by parts of a text.
//   - The network is looked for first: a connection can break inside an answer.
//   - A text has no request id and no time, since it becomes part of a status, and no secret.

package main

import (
	"bytes"
	"cmp"
	"context"
	stdjson "encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
)

// azureNonRetriable is an error that the SDK does not retry.
type azureNonRetriable string

func (e azureNonRetriable) Error() string { return string(e) }

// NonRetriable marks the error for the SDK.
func (azureNonRetriable) NonRetriable() {}

// errAzureAnswer is an answer of success that Azure does not give: it lacks what every one has.
var errAzureAnswer = errors.New("the answer cannot be understood, it is not one of Azure")

// azureUnfinished says that an operation goes on, and that Azure does not want to be asked about it for longer than a pass waits.
type azureUnfinished struct {
	status int // of the last answer
	after  time.Duration
}

func (e *azureUnfinished) Error() string {
	return "the operation goes on; Azure wants to be asked about it later"
}

// azureCallError is a failed request with its operation.
type azureCallError struct {
	operation string
	blob      string // of a part of a batch
	err       error
	// answered says that the answer, or the last of several, was a success.
	answered bool
}

func (e *azureCallError) Error() string { return e.err.Error() }

func (e *azureCallError) Unwrap() error { return e.err }

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
	"InvalidResourceLocation": true, "StorageAccountAlreadyExists": true, "StorageAccountAlreadyTaken": true,
	"StorageAccountInAnotherResourceGroup": true,
}

// azureBadRegion are the answers about a region that does not exist or cannot hold the account.
var azureBadRegion = map[string]bool{
	"DisallowedLocation": true, "InvalidLocation": true, "LocationNotAvailableForResourceGroup": true,
	"LocationNotAvailableForResourceType": true,
	"NoRegisteredProviderFound":           true, "SkuNotAvailable": true,
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
	// generated says that they are for the bucket's own account, so that they come from a generated secret.
	generated bool
	// proof is the key of the secret by which a BackupBucket's credentials are proven.
	proof string
	// secrets are the values that no error may show.
	secrets []string
}

func (s *azureSubject) errorf(code errorCode, cause error, format string, args ...any) *storeError {
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
	var unfinished *azureUnfinished
	code, text := errorCode(""), ""
	switch {
	case errors.As(err, &unfinished):
		code, text = codeRetryableDependencies, unfinished.Error()
		if unfinished.status == http.StatusTooManyRequests {
			code = codeRateLimitsExceeded
		}
	case errors.Is(err, context.Canceled):
		text = "the request was canceled"
	case errors.As(err, &token):
		code, text = s.tokenAnswer(token)
	default:
		code, text = networkCause(err)
	}
	switch {
	case text != "":
	case azureStatus(err) != 0:
		code, text = s.answer(err, operation)
		if azureTaken[azureErrorCode(err)] {
			err = errors.Join(errNotOurBucket, err)
		}
		if s.generated && azureCodes[azureErrorCode(err)] == codeUnauthenticated {
			err = errors.Join(errKeyRejected, err)
		}
	case errors.Is(err, errAzureAnswer), call != nil && call.answered && !errors.As(err, new(azureNonRetriable)):
		// HTML of a proxy, for one.
		code, text = codeRetryableConfiguration, errAzureAnswer.Error()
	default: // the SDK itself
		if errors.As(err, new(azureNonRetriable)) {
			code = codeRetryableDependencies
		}
		for next := err; next != nil; next = errors.Unwrap(next) {
			text = s.clean(next.Error())
		}
	}
	failure := s.errorf(code, err, "Azure %s for bucket %q failed: %s%s", operation, s.Name, text, about)
	failure.after = azureRetryAfter(err)
	return failure
}

// azureRetryAfter is how long the answer that an error is about said to wait, zero if it did not say.
func azureRetryAfter(err error) time.Duration {
	var token *azureTokenError
	var unfinished *azureUnfinished
	var response *azcore.ResponseError
	switch {
	case errors.As(err, &token):
		return token.after
	case errors.As(err, &unfinished):
		return unfinished.after
	case errors.As(err, &response) && response.RawResponse != nil:
		return azureAfter(response.RawResponse, time.Now())
	}
	return 0
}

// azureAfter is how long an answer says to wait. Only answers about something that passes count.
func azureAfter(response *http.Response, now time.Time) time.Duration {
	switch status := response.StatusCode; {
	case status == http.StatusRequestTimeout, status == http.StatusConflict, status == http.StatusTooManyRequests,
		status >= http.StatusInternalServerError:
	default:
		return 0
	}
	return retryDelay(response.Header, now)
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
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout, status == http.StatusConflict,
		status == http.StatusPreconditionFailed,
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
		return code, fmt.Sprintf("the subscription does not exist for the credentials (%s): check %s in the credentials secret", name,
			azureKeySubscriptionID)
	case name == "InvalidAuthenticationTokenTenant":
		return code, fmt.Sprintf("the subscription belongs to another tenant (%s): check %s and %s in the credentials secret", name,
			azureKeyTenantID, azureKeySubscriptionID)
	case name == "MissingSubscriptionRegistration":
		return code, fmt.Sprintf("the resource provider Microsoft.Storage is not registered in the subscription (%s): register it", name)
	case name == "ScopeLocked":
		return code, fmt.Sprintf("a management lock on resource group %q or on something in it forbids this (%s): remove the lock", s.Name, name)
	case name == "KeyBasedAuthenticationNotPermitted":
		return code, fmt.Sprintf("storage account %s does not allow access with keys (%s): set allowSharedKeyAccess, which "+
			"etcd-backup-restore needs as well", s.Account, name)
	case action == "" && code == codeUnauthenticated && s.generated:
		// Gardener does not retry clusters for credentials that are not accepted; these pass without anybody's help.
		return codeRetryableConfiguration, fmt.Sprintf("storage account %s does not accept the key of the generated secret (%s): somebody has "+
			"regenerated it, or altered the secret; a valid key is published when its BackupBucket is verified", s.Account, name)
	case action == "" && code == codeUnauthenticated && s.entry:
		return code, fmt.Sprintf("storage account %s does not accept the key (%s): check %s in the credentials secret", s.Account, name,
			dataKeyStorageKey)
	case action == "" && code == codeUnauthenticated:
		// The key was read just before.
		return codeRetryableDependencies, fmt.Sprintf("storage account %s does not accept its own key (%s): somebody has regenerated it "+
			"meanwhile", s.Account, name)
	case action == "" && code == codeUnauthorized && s.entry:
		return code, fmt.Sprintf("storage account %s denies access (%s): its network rules have to admit this daemon, and %s in the "+
			"credentials secret has to be its key%s", s.Account, name, dataKeyStorageKey, said)
	case action == "" && code == codeUnauthorized:
		return code, fmt.Sprintf("storage account %s denies access (%s): its network rules or a policy have to admit this daemon%s", s.Account,
			name, said)
	case code == codeUnauthenticated:
		return code, fmt.Sprintf("Azure does not accept the credentials (%s): check the credentials secret", name)
	case code == codeUnauthorized:
		return code, fmt.Sprintf("access denied (%s): a role of the client has to allow the action %s on resource group %q, and nothing may "+
			"deny it", name, action, s.Name)
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
