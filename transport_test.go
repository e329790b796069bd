package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/tools/cache"
)

// pipeDialer answers every connection by serve, in memory, so that time can be virtual.
type pipeDialer func(net.Conn)

func (serve pipeDialer) dial(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go serve(theirs)
	return ours, nil
}

// answering reads a request from each connection and lets f answer it.
func answering(f func(net.Conn)) pipeDialer {
	return func(c net.Conn) {
		defer func() { _ = c.Close() }()
		if _, err := c.Read(make([]byte, 64<<10)); err == nil {
			f(c)
		}
	}
}

func always(answer string) pipeDialer {
	return answering(func(c net.Conn) { _, _ = io.WriteString(c, answer) })
}

// pipeBucket is a bucket on an S3 store that answers in memory.
func pipeBucket(t *testing.T, host, bucket string, serve pipeDialer) *s3Bucket {
	t.Helper()
	clients := newS3Clients(newMetrics())
	clients.maxBackoff = time.Second
	store, err := clients.open(bucketRef{Name: bucket, Region: "eu-1"}, map[string][]byte{
		s3KeyAccessKeyID: []byte("key"), s3KeySecretAccessKey: []byte("geheim"), s3KeyEndpoint: []byte("http://" + host), s3KeyPathStyle: []byte("true")})
	if err != nil {
		t.Fatal(err)
	}
	store.transport.DialContext, store.transport.Proxy = serve.dial, nil
	return store
}

// passAt is a pass that has a place at a bucket's endpoint, until the end of the test.
func passAt(t *testing.T, e *endpoints, name string, store versions) (context.Context, *pass) {
	t.Helper()
	p := &pass{id: passKey{"tests", cache.ObjectName{Name: name}}, endpoints: e, wake: func() {}}
	ctx := context.WithValue(t.Context(), passContext{}, p)
	if err := e.enter(ctx, store.endpoint(), classLook); err != nil {
		t.Fatal(err)
	}
	return ctx, p
}

// A store that answers in a way that could keep a pass or fill our memory is left, with one sentence that says why.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\n"
	endless := func(start, more string, pause time.Duration) pipeDialer {
		return answering(func(c net.Conn) {
			_, err := io.WriteString(c, start)
			for err == nil {
				time.Sleep(pause)
				_, err = io.WriteString(c, more)
			}
		})
	}
	zipped := func() string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(bytes.Repeat([]byte(" "), 100<<20))
		_ = w.Close()
		return fmt.Sprintf("%sContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", ok, b.Len(), b.String())
	}
	for name, test := range map[string]struct {
		serve pipeDialer
		want  string
		most  time.Duration
	}{
		"no answer":       {answering(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), "store.example.com did not answer in time", time.Minute},
		"endless header":  {endless("HTTP/1.1 200 OK\r\n", "X-A: "+strings.Repeat("a", 1000)+"\r\n", 0), "closes the connection", time.Minute},
		"dripping header": {endless("HTTP/1.1 200 OK\r\n", "a", time.Second), "store.example.com did not answer in time", time.Minute},
		"endless body":    {endless(ok+"\r\n<ObjectLockConfiguration>", strings.Repeat("a", 64<<10), 0), "the answer is larger than 1.0 MiB", time.Minute},
		"dripping body":   {endless(ok+"\r\n<ObjectLockConfiguration>", "a", time.Second), "store.example.com did not answer in time", 2 * time.Minute},
		"10 MB":           {always(ok + "\r\n<ObjectLockConfiguration>" + strings.Repeat("<a/>", 10<<18)), "the answer is larger than 1.0 MiB", time.Minute},
		"invalid XML":     {always(ok + "Content-Length: 5\r\n\r\n<a><b"), "is not one of S3", time.Minute},
		"HTML":            {always(ok + "Content-Length: 19\r\n\r\n<html><body></html>"), "is not one of S3", time.Minute},
		"gzip":            {always(zipped()), "is not one of S3", time.Minute},
		"TLS":             {always("\x15\x03\x01\x00\x02\x02\x16"), "store.example.com", time.Minute},
		"redirect": {always("HTTP/1.1 302 Found\r\nLocation: http://other.example.com/\r\nContent-Length: 0\r\n\r\n"),
			"the store answers Found", time.Minute},
		"closed": {answering(func(net.Conn) {}), "closes the connection without an answer", time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := pipeBucket(t, "store.example.com", "backups", test.serve)
				defer store.transport.CloseIdleConnections()
				e := newEndpoints(5, nil)
				ctx, p := passAt(t, e, "a", store)
				start := time.Now()
				_, err := store.Observe(ctx)
				e.leave(p)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				if took := time.Since(start); took > test.most {
					t.Errorf("it took %s", took)
				}
				if err != nil && (len(err.Error()) > 400 || strings.Contains(err.Error(), "geheim")) {
					t.Errorf("the error is %s", err)
				}
			})
		})
	}
}

// Nothing is asked for, or taken, that a small answer can blow up.
func TestAnswersAreNotUnpacked(t *testing.T) {
	var header http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header = r.Header
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, "packed")
	}))
	defer server.Close()
	transport := newTransport(&tls.Config{})
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if header.Get("Accept-Encoding") != "" || string(body) != "packed" || err != nil {
		t.Errorf("asked with %v, got %q, %v", header, body, err)
	}
	if err := response.Body.Close(); err != nil {
		t.Error(err)
	}
}

// A list may be as long as a list is.
func TestLongListIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := "<ListVersionsResult><Name>backups</Name>" + strings.Repeat(" ", 4<<20) + "</ListVersionsResult>"
		store := pipeBucket(t, "store.example.com", "backups", always(fmt.Sprintf(
			"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)))
		defer store.transport.CloseIdleConnections()
		for _, err := range store.pages(t.Context(), "a/", cursor{}) {
			if err != nil {
				t.Error(err)
			}
		}
	})
}

// A store that does not answer is asked no more than six times a minute, by whatever passes.
func TestDownEndpointIsLeftAlone(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"hangs":   func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"refuses": func(net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked atomic.Int64
				var up atomic.Bool
				var done sync.Map
				store := pipeBucket(t, "store.example.com", "backups", answering(func(c net.Conn) {
					if up.Load() {
						_, _ = io.WriteString(c, "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
						return
					}
					asked.Add(1)
					serve(c)
				}))
				defer store.transport.CloseIdleConnections()
				m := newMetrics()
				c := newController("tests", m)
				c.endpoints = newEndpoints(5, m)
				c.reconcile = func(ctx context.Context, key cache.ObjectName, _ bool) (time.Duration, error) {
					if err := c.endpoints.enter(ctx, store.endpoint(), classLook); err != nil {
						return 0, err
					}
					if _, err := store.Observe(ctx); retryAfter(err) > 0 || isTransient(err) {
						return 0, err
					}
					done.Store(key, true)
					return 0, nil
				}
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { c.run(ctx, context.WithoutCancel(ctx), 5); close(ended) }()
				for i := range 200 {
					c.enqueue(cache.ObjectName{Name: fmt.Sprint(i)})
				}
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				asked.Store(0)
				const minutes = 30
				time.Sleep(minutes * time.Minute)
				synctest.Wait()
				if n := asked.Load(); n > 6*minutes || n < minutes/2 {
					t.Errorf("%d requests in %d minutes", n, minutes)
				}
				if open := queueTestSeries(t, m, "bucketwarden_endpoint_breaker_open", "endpoint", "store.example.com"); open != 1 {
					t.Errorf("the metric of the breaker is %v", open)
				}
				// Once it answers all are done, at the latest after the next look at it.
				up.Store(true)
				time.Sleep(probeMax * 5 / 4)
				synctest.Wait()
				for i := range 200 {
					if _, ok := done.Load(cache.ObjectName{Name: fmt.Sprint(i)}); !ok {
						t.Errorf("%d is not done though the store answers again", i)
					}
				}
				stop()
				<-ended
			})
		})
	}
}

func TestThrottledFor(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		status      int
		name, value string
		want        time.Duration
	}{
		{429, "Retry-After", "120", 2 * time.Minute},
		{503, "Retry-After", "1", time.Second},
		{429, "Retry-After", "Fri, 02 Jan 2026 03:05:05 GMT", time.Minute},
		{429, "Retry-After", "Fri, 02 Jan 2026 03:03:05 GMT", 0},
		{429, "Retry-After", "99999999999999", maxRetryAfter},
		{429, "Retry-After", "-5", 0},
		{429, "Retry-After", "soon", 0},
		{429, "x-ms-retry-after-ms", "1500", 1500 * time.Millisecond},
		{200, "Retry-After", "120", 0},
		{202, "Retry-After", "120", 0},
	} {
		response := &http.Response{StatusCode: test.status, Header: http.Header{}}
		response.Header.Set(test.name, test.value)
		if got := throttledFor(response, now); got != test.want {
			t.Errorf("%d %s: %s is %s, want %s", test.status, test.name, test.value, got, test.want)
		}
	}
}

// A store that says when to come back is asked again no sooner, by no pass; another bucket on the same host is.
func TestRetryAfterIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		store := pipeBucket(t, "store.example.com", "backups", answering(func(c net.Conn) {
			at = append(at, time.Since(start))
			_, _ = io.WriteString(c, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n")
		}))
		defer store.transport.CloseIdleConnections()
		e := newEndpoints(5, nil)
		ctx, p := passAt(t, e, "a", store)
		_, err := store.Observe(ctx)
		if after := retryAfter(err); !isThrottled(err) || after < 115*time.Second || after > 2*time.Minute {
			t.Errorf("got %v, to be tried again after %s", err, after)
		}
		e.leave(p)
		other := &pass{id: passKey{"tests", cache.ObjectName{Name: "b"}}, endpoints: e, wake: func() {}}
		if err := e.enter(context.WithValue(t.Context(), passContext{}, other), store.endpoint(), classLook); !isThrottled(err) {
			t.Errorf("another pass over the bucket: %v", err)
		}
		elsewhere := &pass{id: passKey{"tests", cache.ObjectName{Name: "c"}}, endpoints: e, wake: func() {}}
		if err := e.enter(context.WithValue(t.Context(), passContext{}, elsewhere), endpointRef{"store.example.com", "others"}, classLook); err != nil {
			t.Errorf("a pass over another bucket: %v", err)
		}
		time.Sleep(2 * time.Minute)
		ctx, _ = passAt(t, e, "d", store)
		_, _ = store.Observe(ctx)
		if len(at) != 2 || at[1]-at[0] < 2*time.Minute {
			t.Errorf("asked at %v", at)
		}
	})
}

// A replica that has lost the lease changes nothing, neither in a store nor at the API server.
func TestLostLeaseEndsChanges(t *testing.T) {
	asked := ""
	round := roundTripper(func(r *http.Request) (*http.Response, error) {
		asked += r.Method + " "
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	})
	leading := true
	p := &pass{leading: func() error {
		if leading {
			return nil
		}
		return errLeaseLost
	}}
	send := func(ctx context.Context, method string) error {
		r, err := http.NewRequestWithContext(ctx, method, "http://api.example.com/", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = leaderTransport{round}.RoundTrip(r)
		return err
	}
	within := context.WithValue(t.Context(), passContext{}, p)
	for _, ctx := range []context.Context{within, t.Context()} {
		for _, lost := range []bool{false, true} {
			leading = !lost
			for _, method := range []string{"GET", "PATCH", "DELETE"} {
				refused := lost && ctx == within && method != "GET"
				if err := send(ctx, method); (err != nil) != refused {
					t.Errorf("%s with the lease lost %t, by a pass %t: %v", method, lost, ctx == within, err)
				}
			}
		}
	}
	leading = false
	store := newTransport(&tls.Config{})
	r, err := http.NewRequestWithContext(within, "PUT", "http://127.0.0.1:1/", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.RoundTrip(r); err != errLeaseLost {
		t.Errorf("a change of a store: %v", err)
	}
	if want := "GET PATCH DELETE GET GET PATCH DELETE GET PATCH DELETE "; asked != want {
		t.Errorf("asked was %q, want %q", asked, want)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
