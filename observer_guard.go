// What keeps a daemon with --observe from changing anything, whatever code asks for it: each of its two ways out refuses every
// request that may change something, at the last moment before it is sent.
//
// Rules:
//   - To the API server: only GET (lists and watches are GETs), events, and the lease of its own name.
//   - To a store: only GET and HEAD; with --probe also PUT and DELETE of canaries. Logins are POSTs and go another way
//     (storeTransport.logins), to the login services only.
//   - What is refused is never tried again.

package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"
)

// observerLease is the lease of --leader-elect with --observe. The daemon that owns buckets has another, since both may run.
const observerLease = programName + "-observer"

// observeError says that a request was not made, since it might change something.
type observeError struct{ method, path string }

func (e *observeError) Error() string {
	return fmt.Sprintf("with --observe nothing is changed: %s %s was not sent", e.method, e.path)
}

// NonRetriable keeps the SDK for Azure from trying again.
func (*observeError) NonRetriable() {}

// RetryableError keeps that for S3 from it.
func (*observeError) RetryableError() bool { return false }

// refuseChange refuses what is no reading.
func refuseChange(r *http.Request) error {
	if isChange(r.Method) {
		return &observeError{r.Method, r.URL.Path}
	}
	return nil
}

// refusesOfStores says which requests are never made to a store; nil if there are none such.
func (c *config) refusesOfStores() func(*http.Request) error {
	switch {
	case !c.observe:
		return nil
	case c.probe:
		return refuseButProbe
	}
	return refuseChange
}

// refuseButProbe refuses what is no reading, but for what the probe does to its canaries.
func refuseButProbe(r *http.Request) error {
	if (r.Method == http.MethodPut || r.Method == http.MethodDelete) && isCanaryPath(r.URL) {
		return nil
	}
	return refuseChange(r)
}

// isCanaryPath says that an address is that of a canary: behind nothing, a bucket, or an account and a bucket. The name of one has no
// character that would be written in another way, but for the slashes: the SDK of Azure escapes them.
func isCanaryPath(at *url.URL) bool {
	above, _, found := strings.Cut(at.Path, "/"+probePrefix)
	if !found {
		return false
	}
	key := at.Path[len(above)+1:]
	if raw := at.RawPath; raw != "" && raw != at.Path && raw != above+"/"+url.PathEscape(key) {
		return false
	}
	parts := strings.Split(strings.TrimPrefix(above, "/"), "/")
	for _, part := range parts {
		if part == "." || part == ".." || part == "" && above != "" {
			return false
		}
	}
	return len(parts) <= 2 && isCanary(key)
}

// observeTransport is the way to the API server.
type observeTransport struct {
	next http.RoundTripper
	// base is the path under which the API server is, lease that of the leases in the own namespace, empty if there are none.
	base, leases string
}

// guardAPI lets clients of rc write nothing but events, and the lease in a namespace.
func guardAPI(rc *rest.Config, namespace string) error {
	at, err := url.Parse(rc.Host)
	if err != nil {
		return fmt.Errorf("reading the address of the API server: %w", err)
	}
	t := observeTransport{base: strings.TrimSuffix(at.Path, "/")}
	if namespace != "" {
		t.leases = "/apis/coordination.k8s.io/v1/namespaces/" + namespace + "/leases"
	}
	rc.Wrap(func(next http.RoundTripper) http.RoundTripper {
		guarded := t
		guarded.next = next
		return guarded
	})
	return nil
}

// RoundTrip implements http.RoundTripper.
func (t observeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := refuseChange(r); err != nil && !t.allows(r.Method, strings.TrimPrefix(r.URL.Path, t.base)) {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	return t.next.RoundTrip(r)
}

// allows says that a change is one of an event or of the own lease.
func (t observeTransport) allows(method, path string) bool {
	if t.leases != "" && (method == http.MethodPost && path == t.leases || method == http.MethodPut && path == t.leases+"/"+observerLease) {
		return true
	}
	events, ok := strings.CutPrefix(path, "/apis/events.k8s.io/v1/namespaces/")
	if !ok {
		return false
	}
	parts := strings.Split(events, "/")
	switch method {
	case http.MethodPost:
		return len(parts) == 2 && parts[1] == "events"
	case http.MethodPatch:
		return len(parts) == 3 && parts[1] == "events"
	}
	return false
}
