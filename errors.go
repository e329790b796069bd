// Every error that carries a Gardener code, and what can be found out from an error. An error knows its own code, so codeOf
// finds it by type in the chain, never by its text. isTransient says that waiting helps. Errors of the network are told
// by cause, with the host, and without addresses or ports of ours, since their text becomes part of a status.

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// errorCode is one of Gardener's error codes
// (gardener/gardener pkg/apis/core/v1beta1/types_common.go).
type errorCode string

const (
	codeUnauthenticated        errorCode = "ERR_INFRA_UNAUTHENTICATED"
	codeUnauthorized           errorCode = "ERR_INFRA_UNAUTHORIZED"
	codeQuotaExceeded          errorCode = "ERR_INFRA_QUOTA_EXCEEDED"
	codeRateLimitsExceeded     errorCode = "ERR_INFRA_RATE_LIMITS_EXCEEDED"
	codeConfigurationProblem   errorCode = "ERR_CONFIGURATION_PROBLEM"
	codeRetryableDependencies  errorCode = "ERR_RETRYABLE_INFRA_DEPENDENCIES"
	codeRetryableConfiguration errorCode = "ERR_RETRYABLE_CONFIGURATION_PROBLEM"
)

// coded is an error that knows its Gardener error code; empty if none fits.
type coded interface {
	error
	errorCode() errorCode
}

// codeOf is the Gardener error code that an error carries, empty if it has none.
func codeOf(err error) errorCode {
	var e coded
	if errors.As(err, &e) {
		return e.errorCode()
	}
	return ""
}

func (e *storeError) errorCode() errorCode { return e.code }
func (*configError) errorCode() errorCode  { return codeConfigurationProblem }
func (*Refusal) errorCode() errorCode      { return codeConfigurationProblem }

// isTransient says that an error is the cloud's or the API server's and likely to pass by
// itself.
func isTransient(err error) bool {
	var store *storeError
	if !errors.As(err, &store) {
		var network net.Error
		return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.As(err, &network) ||
			apierrors.IsInternalError(err) || apierrors.IsServerTimeout(err) || apierrors.IsServiceUnavailable(err) ||
			apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err)
	}
	switch store.code {
	case codeRateLimitsExceeded, codeRetryableDependencies:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// configError is a mistake in the resource that its author can fix.
type configError struct{ message string }

func (e *configError) Error() string { return e.message }

func configErrorf(format string, args ...any) error {
	return &configError{message: fmt.Sprintf(format, args...)}
}

// secretMissingError says that spec.secretRef points nowhere. It carries no error code:
// the secret may well appear.
type secretMissingError struct{ ref types.NamespacedName }

func (e *secretMissingError) Error() string {
	return fmt.Sprintf("the secret %s that spec.secretRef names does not exist: create it, or correct spec.secretRef", e.ref)
}

// storeError is a failed store operation with its Gardener error code.
type storeError struct {
	// code is the Gardener error code, empty if none fits.
	code errorCode
	err  error
	// after is how long the store said to wait before it is asked again (Retry-After); zero if it did not say.
	after time.Duration
}

func (e *storeError) Error() string { return e.err.Error() }

func (e *storeError) Unwrap() error { return e.err }

// retryAfter is how long a store is not to be asked again, since it said so or does not answer; zero if that is not known.
func retryAfter(err error) time.Duration {
	var store *storeError
	var down *endpointDownError
	var throttled *throttledError
	after := time.Duration(0)
	if errors.As(err, &store) {
		after = store.after
	}
	if errors.As(err, &down) {
		after = max(after, down.after)
	}
	if errors.As(err, &throttled) {
		after = max(after, throttled.after)
	}
	return after
}

// isThrottled says that a store or its cloud asks for fewer requests.
func isThrottled(err error) bool { return codeOf(err) == codeRateLimitsExceeded }

// waitError says that a store keeps something for now. It is no failure: the caller says
// why and comes back later.
type waitError struct {
	// reason is a clause such as "container x is under a legal hold".
	reason string
	after  time.Duration
}

func (e *waitError) Error() string { return e.reason }

// prefixInUseError says that a live BackupEntry owns the objects that were to be deleted.
type prefixInUseError struct {
	entry string
	uid   types.UID // empty if not known
}

func (e *prefixInUseError) Error() string {
	return fmt.Sprintf("the objects belong to the live BackupEntry %s", e.entry)
}

// networkCause classifies an error of the network or of TLS; its text is empty for all
// others. It has no port of ours and no address, since it becomes part of a status.
func networkCause(err error) (errorCode, string) {
	var (
		dns         *net.DNSError
		unknownCA   x509.UnknownAuthorityError
		hostname    x509.HostnameError
		invalid     x509.CertificateInvalidError
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		alert       tls.AlertError
		errno       syscall.Errno
		timeout     interface{ Timeout() bool }
		request     *url.Error
		down        *endpointDownError
		throttled   *throttledError
		answer      *answerError
		refused     *observeError
	)
	host := "the store" // without the address that it resolved to
	if errors.As(err, &request) {
		if u, err := url.Parse(request.URL); err == nil && u.Host != "" {
			host = u.Host
		}
	}
	switch {
	case errors.As(err, &refused):
		return codeConfigurationProblem, refused.Error()
	case errors.As(err, &down):
		return codeRetryableDependencies, down.Error()
	case errors.As(err, &throttled):
		return codeRateLimitsExceeded, throttled.Error()
	case errors.As(err, &answer) && !answer.timeout:
		return codeRetryableConfiguration, fmt.Sprintf("%s does not answer as such a store does: %s", host, answer.text)
	case errors.As(err, &dns) && dns.IsNotFound:
		return codeRetryableConfiguration, fmt.Sprintf("the host %s does not resolve", dns.Name)
	case errors.As(err, &dns):
		return codeRetryableDependencies, fmt.Sprintf("the host %s could not be looked up", dns.Name)
	case errors.As(err, &unknownCA):
		return codeRetryableConfiguration, fmt.Sprintf("the certificate of %s is signed by an unknown authority", host)
	case errors.As(err, &hostname):
		return codeRetryableConfiguration, fmt.Sprintf("the certificate of %s is for another host", host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return codeRetryableConfiguration, fmt.Sprintf("the certificate of %s is expired or not yet valid", host)
	case errors.As(err, &invalid), errors.As(err, &certificate):
		return codeRetryableConfiguration, fmt.Sprintf("the certificate of %s is not valid", host)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return codeRetryableConfiguration, fmt.Sprintf("%s does not speak TLS", host)
	case errors.As(err, &alert):
		return codeRetryableConfiguration, fmt.Sprintf("%s refuses the TLS connection: %s", host, alert.Error())
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return codeRetryableDependencies, fmt.Sprintf("%s did not answer in time", host)
	case errors.As(err, &errno) && errno != syscall.ECONNRESET && errno != syscall.EPIPE:
		return codeRetryableDependencies, fmt.Sprintf("%s cannot be reached: %s", host, errno.Error())
	case request != nil, errno != 0, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		// A connection that is closed early ends in one of several errors, by chance.
		return codeRetryableDependencies, fmt.Sprintf("%s closes the connection without an answer", host)
	}
	return "", ""
}

// wrapf says what was being done when err is not nil.
func wrapf(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// maxDescription keeps a value that an error quotes from exceeding what the API server
// accepts; the description is stored twice.
const maxDescription = 4000

// shortened keeps a value that a message quotes from making it endless.
func shortened(message string) string { return cut(message, maxDescription) }

// cut keeps at most limit bytes of a text, with an ellipsis for what is lost.
func cut(text string, limit int) string {
	const ellipsis = "..."
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit-len(ellipsis)], "") + ellipsis
}
