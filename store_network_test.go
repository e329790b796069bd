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
	"syscall"
	"testing"
)

// Errors of the network are found by their cause, at any depth.
func TestNetworkCause(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want errorCode
	}{
		"no such host":           {&net.DNSError{Name: "x", IsNotFound: true}, codeRetryableConfiguration},
		"lookup fails":           {&net.DNSError{Name: "x", IsTimeout: true}, codeRetryableDependencies},
		"unknown CA":             {x509.UnknownAuthorityError{}, codeRetryableConfiguration},
		"other host":             {x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}, codeRetryableConfiguration},
		"expired":                {x509.CertificateInvalidError{Reason: x509.Expired}, codeRetryableConfiguration},
		"invalid":                {&tls.CertificateVerificationError{Err: errors.New("x")}, codeRetryableConfiguration},
		"no TLS":                 {tls.RecordHeaderError{Msg: "x"}, codeRetryableConfiguration},
		"scheme":                 {http.ErrSchemeMismatch, codeRetryableConfiguration},
		"alert":                  {tls.AlertError(40), codeRetryableConfiguration},
		"deadline":               {context.DeadlineExceeded, codeRetryableDependencies},
		"deadline of the system": {os.ErrDeadlineExceeded, codeRetryableDependencies},
		"refused":                {syscall.ECONNREFUSED, codeRetryableDependencies},
		"reset":                  {syscall.ECONNRESET, codeRetryableDependencies},
		"reset while reading":    {&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, codeRetryableDependencies},
		"broken pipe":            {&net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)}, codeRetryableDependencies},
		"closed":                 {net.ErrClosed, codeRetryableDependencies},
		"closed while reading":   {&net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed}, codeRetryableDependencies},
		"cut off":                {io.ErrUnexpectedEOF, codeRetryableDependencies},
		"end of a request":       {&url.Error{Op: "Get", URL: "https://x", Err: io.EOF}, codeRetryableDependencies},
		"something else":         {errors.New("connection reset by peer"), ""},
		"canceled":               {context.Canceled, ""},
		"end":                    {io.EOF, ""},
	} {
		for depth, err := range []error{
			test.err, fmt.Errorf("reading: %w", test.err), &url.Error{Op: "Get", URL: "https://store.example.com/a?b", Err: test.err},
			errors.Join(errors.New("x"), fmt.Errorf("y: %w", test.err)), &azureCallError{operation: "x", err: test.err},
		} {
			code, text := networkCause(err)
			want := test.want
			if want == "" && depth == 2 {
				want = codeRetryableDependencies // a request that failed
			}
			if code != want || (text == "") != (want == "") {
				t.Errorf("%s at depth %d: %q, %q, want %q", name, depth, code, text, want)
			}
		}
	}
}
