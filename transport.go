// The one way to a store: every HTTP request to one goes through a storeTransport.
//
// Rules:
//   - An answer has to begin within answerTime, to keep coming, and to stay below the size that its request can expect,
//     so that no store delays a pass without end or fills our memory. That of an object is as large as the list said.
//   - A request that changes something is made only while this replica holds the lease, and never with --observe.
//   - The endpoints hear of each answer and each failure, and say which requests are not to be made now.
//   - Answers are taken as they are: no decompression, and no redirect to another host.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// answerTime is how long the beginning of an answer may take, with the connection; longAnswerTime is that of a
	// change, which may delete a thousand objects or create an account.
	answerTime     = 15 * time.Second
	longAnswerTime = 45 * time.Second

	// slowAfter is how long an answer may keep us waiting before it has to be as fast as slowRate, in bytes a second.
	slowAfter = 15 * time.Second
	slowRate  = 4 << 10

	// maxAnswer is the size of an answer; maxListAnswer is that of a list or a batch, in which names of 1 KB may be
	// escaped to three times their size, 5000 in one answer.
	maxAnswer     = 1 << 20
	maxListAnswer = 32 << 20

	// maxAnswerHeader is the size of the header of an answer.
	maxAnswerHeader = 64 << 10

	// maxPause is how long a request waits by itself when the store asks for a pause; for longer ones the pass ends.
	maxPause = 5 * time.Second

	// maxWait is how long a pass waits before it asks again, if the store said so. Beyond, the queue waits.
	maxWait = 20 * time.Second
)

// newTransport returns a transport to a store with the given TLS settings.
func newTransport(config *tls.Config) *storeTransport {
	config.MinVersion = tls.VersionTLS12
	return &storeTransport{Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    10 * time.Second,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        90 * time.Second,
		MaxIdleConnsPerHost:    8,
		MaxResponseHeaderBytes: maxAnswerHeader,
		DisableCompression:     true,
	}}
}

// storeTransport is an http.RoundTripper to stores.
type storeTransport struct {
	*http.Transport
	// refuse says why a request is never to be made; nil if there are none such.
	refuse func(*http.Request) error
}

// logins is the same way for the requests of a login, which are POSTs and change nothing in a store.
func (t *storeTransport) logins() *storeTransport { return &storeTransport{Transport: t.Transport} }

// RoundTrip implements http.RoundTripper. The pass that makes the request is found in its context.
func (t *storeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	p := passOf(r.Context())
	err := mayAsk(r, p)
	if err == nil && t.refuse != nil {
		err = t.refuse(r)
	}
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	limit, largest := answerTime, int64(maxAnswer)
	if isChange(r.Method) {
		limit = longAnswerTime
	}
	if isList(r) {
		largest = maxListAnswer
	}
	if size, ok := r.Context().Value(streamSize{}).(int64); ok {
		largest = max(largest, size)
	}
	timer := time.AfterFunc(limit, func() { cancel(errNoAnswer) })
	response, err := t.Transport.RoundTrip(r.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if errors.Is(context.Cause(ctx), errNoAnswer) {
			err = errNoAnswer
		}
		cancel(nil)
		tellFailure(r, p, err)
		return nil, err
	}
	p.hear(response.Header.Get("Date"))
	if p != nil && p.endpoints != nil {
		if after := throttledFor(response, time.Now()); after > 0 {
			p.endpoints.throttled(p, r.URL.Host, after)
		}
	}
	if response.Body == http.NoBody && p != nil && p.endpoints != nil {
		p.endpoints.answered(p, r.URL.Host)
	}
	response.Body = &answerBody{ReadCloser: response.Body, request: r, pass: p, cancel: cancel, left: largest,
		gateway: response.StatusCode == http.StatusBadGateway || response.StatusCode == http.StatusGatewayTimeout}
	return response, nil
}

// mayAsk says why a request is not to be made. It waits for a short pause.
func mayAsk(r *http.Request, p *pass) error {
	for p != nil && p.endpoints != nil {
		pause, err := p.endpoints.refuseRequest(p, r.URL.Host)
		if err == nil {
			break
		}
		if pause > maxPause || !errors.As(err, new(*throttledError)) {
			return err
		}
		if err := sleep(r.Context(), pause); err != nil {
			return err
		}
	}
	return p.mayChange(r.Method)
}

// isList says that the answer to a request may be long: a list, or a batch. Of S3 lists are versions, list-type and uploads,
// of Azure comp=list; a batch is a POST.
func isList(r *http.Request) bool {
	query := r.URL.Query()
	return r.Method == http.MethodPost || query.Has("versions") || query.Has("list-type") || query.Has("uploads") ||
		query.Get("comp") == "list"
}

// streamSize is the context key of the size of an object that is read, an int64.
type streamSize struct{}

// objectBody is the body of an object that is read. It fails with a store's own errors, and once it is longer than the list said.
type objectBody struct {
	io.ReadCloser
	left int64
	fail func(error) error
}

// Read implements io.Reader.
func (b *objectBody) Read(buffer []byte) (int, error) {
	n, err := b.ReadCloser.Read(buffer)
	b.left -= int64(n)
	switch {
	case b.left < 0:
		err = b.fail(&answerError{text: "the object is larger than the list says"})
	case err != nil && err != io.EOF:
		err = b.fail(err)
	case err == io.EOF && b.left > 0:
		err = b.fail(&answerError{text: "the object is smaller than the list says"})
	}
	return n, err
}

// readCause says why an object could not be read to its end.
func readCause(err error) (errorCode, string) {
	code, text := networkCause(err)
	var answer *answerError
	switch {
	case errors.Is(err, context.Canceled):
		return "", "the request was canceled"
	case errors.As(err, &answer) && !answer.timeout:
		return "", answer.text
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return codeRetryableDependencies, "the connection breaks off"
	case text != "":
		return code, text
	}
	for next := err; next != nil; next = errors.Unwrap(next) {
		text = next.Error()
	}
	return "", text
}

// errNoAnswer is a timeout for networkCause.
var errNoAnswer error = &answerError{"no answer began in time", true}

// answerError says that an answer is not one that we can wait for or take.
type answerError struct {
	text string
	// timeout says that it did not come fast enough.
	timeout bool
}

func (e *answerError) Error() string { return e.text }

// Timeout is that of net.Error.
func (e *answerError) Timeout() bool { return e.timeout }

// tellFailure tells the endpoints that a request got no answer, if that is the store's trouble: not a pass that was ended,
// nor what somebody has configured.
func tellFailure(r *http.Request, p *pass, err error) {
	if p == nil || p.endpoints == nil || r.Context().Err() != nil {
		return
	}
	if code, text := networkCause(&url.Error{Op: r.Method, URL: r.URL.Redacted(), Err: err}); code == codeRetryableDependencies {
		p.endpoints.failed(p, r.URL.Host, text)
	}
}

// answerBody is the body of an answer. Reading it fails once it is too slow or too large.
type answerBody struct {
	io.ReadCloser
	request *http.Request
	pass    *pass
	cancel  context.CancelCauseFunc
	left    int64
	read    int64
	waited  time.Duration
	// gateway says that the answer is not the store's: what stands before it cannot reach it.
	gateway bool
	failed  bool
	once    sync.Once
}

// Read implements io.Reader.
func (b *answerBody) Read(buffer []byte) (int, error) {
	slow := &answerError{"the answer does not go on", true}
	timer := time.AfterFunc(slowAfter, func() { b.cancel(slow) })
	start := time.Now()
	n, err := b.ReadCloser.Read(buffer)
	stopped := timer.Stop()
	b.waited += time.Since(start)
	b.read += int64(n)
	b.left -= int64(n)
	switch {
	case !stopped && err != nil && err != io.EOF:
		err = slow
	case err != nil:
	case b.left < 0:
		return n, &answerError{text: fmt.Sprintf("the answer is larger than %s", formatBytes(b.read-1))}
	case b.waited > slowAfter && b.read < int64(b.waited.Seconds()*slowRate):
		err = &answerError{"the answer comes too slowly", true}
	}
	if err != nil && err != io.EOF {
		b.failed = true
		b.once.Do(func() { tellFailure(b.request, b.pass, err) })
	}
	return n, err
}

// Close implements io.Closer.
func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	b.once.Do(func() {
		switch {
		case b.pass == nil || b.pass.endpoints == nil:
		case b.gateway:
			b.pass.endpoints.failed(b.pass, b.request.URL.Host, "what stands before "+b.request.URL.Host+" cannot reach it")
		default:
			b.pass.endpoints.answered(b.pass, b.request.URL.Host)
		}
	})
	return err
}

// throttledFor is how long a store that asks for fewer requests wants not to be asked; zero if it does not say, or answers.
func throttledFor(response *http.Response, now time.Time) time.Duration {
	if response.StatusCode != http.StatusTooManyRequests && response.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	return retryDelay(response.Header, now)
}

// retryDelay is how long the header of an answer asks to wait, at most maxRetryAfter; zero if it does not say. It is in seconds,
// a time by the store's own clock (RFC 9110, 10.2.3), or one of Azure's forms, which are finer.
func retryDelay(header http.Header, now time.Time) time.Duration {
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		now = date
	}
	for _, form := range []struct {
		name string
		unit time.Duration
	}{{"Retry-After-Ms", time.Millisecond}, {"X-Ms-Retry-After-Ms", time.Millisecond}, {"Retry-After", time.Second}} {
		value := strings.TrimSpace(header.Get(form.name))
		var after time.Duration
		// Of a number that is too large ParseInt returns the largest.
		if n, err := strconv.ParseInt(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
			after = time.Duration(min(n, int64(maxRetryAfter/form.unit))) * form.unit
		} else if at, err := http.ParseTime(value); err == nil {
			after = min(at.Sub(now), maxRetryAfter)
		}
		if after > 0 {
			return after
		}
	}
	return 0
}

// leaderTransport lets a pass change nothing at the API server once this replica has lost the lease. Requests that are no
// pass's, such as events and the lease itself, go through.
type leaderTransport struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t leaderTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := passOf(r.Context()).mayChange(r.Method); err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	return t.next.RoundTrip(r)
}
