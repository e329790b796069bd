package env

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Request is an S3 request that passes a Proxy.
type Request struct {
	// Operation is the S3 operation's name in the API reference, e.g. PutObject.
	Operation string
	Bucket    string
	Key       string
	// Prefix is that of a list.
	Prefix string
}

// Fault is what a Proxy does to a request. With only a Latency the request is
// passed on after that time; with a Status it is answered by the proxy.
type Fault struct {
	Latency time.Duration
	// Status and Code are those of an S3 error, e.g. 503 and SlowDown.
	Status int
	Code   string
	// Hang answers nothing, Close closes the connection, and Drip answers one byte a second.
	Hang, Close, Drip bool
}

// Proxy is an HTTP proxy in front of an S3 server that counts the requests by
// operation and injects faults.
type Proxy struct {
	URL string

	server *http.Server
	mu     sync.Mutex
	counts map[string]int
	fault  func(Request) *Fault
	// aged is by how much versions are older than they are, by the prefix that is listed.
	aged map[string]time.Duration
}

// StartProxy starts a proxy in front of an S3 server. It serves plain HTTP, also when
// the server serves TLS.
func StartProxy(m *S3Server) (*Proxy, error) {
	target, err := url.Parse(m.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("starting the proxy: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the proxy: %w", err)
	}
	p := &Proxy{URL: "http://" + listener.Addr().String(), counts: map[string]int{}, aged: map[string]time.Duration{}}
	forward := &httputil.ReverseProxy{
		Transport: m.transport(),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			// The Host header is part of what the client signed.
			r.Out.Host = r.In.Host
		},
		ModifyResponse: p.makeOlder,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			writeError(w, &Fault{Status: http.StatusBadGateway, Code: "BadGateway"})
		},
	}
	p.server = &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fault := p.observe(requestOf(r))
			if fault == nil {
				forward.ServeHTTP(w, r)
				return
			}
			if fault.Hang || fault.Close || fault.Drip {
				fault.disturb(w, r)
				return
			}
			if wait(r.Context(), fault.Latency) != nil {
				return
			}
			if fault.Status == 0 {
				forward.ServeHTTP(w, r)
				return
			}
			writeError(w, fault)
		}),
	}
	go func() { _ = p.server.Serve(listener) }()
	return p, nil
}

// disturb answers as a store in trouble does, as long as the client stays.
func (f *Fault) disturb(w http.ResponseWriter, r *http.Request) {
	connection, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = connection.Close() }()
	if f.Close {
		return
	}
	answer := strings.NewReader("HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat(" ", 100000))
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, connection)
	}()
	for {
		select {
		case <-gone:
			return
		case <-time.After(time.Second):
		}
		if !f.Drip {
			continue
		}
		if _, err := io.CopyN(connection, answer, 1); err != nil {
			return
		}
	}
}

// Stop ends the proxy and its connections.
func (p *Proxy) Stop() { _ = p.server.Close() }

// SetFault makes the proxy ask hook about every request; hook returns nil to
// let it pass. A nil hook ends all faults. The hook is called by many
// goroutines, one at a time.
func (p *Proxy) SetFault(hook func(Request) *Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = hook
}

// Age makes each ListObjectVersions of exactly this prefix tell that everything was written so much earlier: no store lets
// the time of a version be chosen.
func (p *Proxy) Age(prefix string, by time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.aged[prefix] = by
}

var lastModified = regexp.MustCompile(`<LastModified>([^<]*)</LastModified>`)

func (p *Proxy) makeOlder(response *http.Response) error {
	query := response.Request.URL.Query()
	p.mu.Lock()
	by := p.aged[query.Get("prefix")]
	p.mu.Unlock()
	if by == 0 || requestOf(response.Request).Operation != "ListObjectVersions" || response.StatusCode != http.StatusOK {
		return nil
	}
	body, err := io.ReadAll(response.Body)
	if err = errors.Join(err, response.Body.Close()); err != nil {
		return fmt.Errorf("reading a list: %w", err)
	}
	body = lastModified.ReplaceAllFunc(body, func(match []byte) []byte {
		written, err2 := time.Parse(time.RFC3339, string(lastModified.FindSubmatch(match)[1]))
		if err = errors.Join(err, err2); err2 != nil {
			return match
		}
		return []byte("<LastModified>" + written.Add(-by).UTC().Format("2006-01-02T15:04:05.000Z") + "</LastModified>")
	})
	response.Body = io.NopCloser(bytes.NewReader(body))
	response.ContentLength = int64(len(body))
	response.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return err
}

// Counts returns how many requests came in by operation, faulted ones too.
func (p *Proxy) Counts() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

// Reset sets all counts to zero.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.counts)
}

// observe counts the request and returns its fault.
func (p *Proxy) observe(r Request) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[r.Operation]++
	if p.fault == nil {
		return nil
	}
	return p.fault(r)
}

// wait waits for d, or until ctx is done and then returns why.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// writeError answers with an S3 error.
func writeError(w http.ResponseWriter, fault *Fault) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(fault.Status)
	_ = xml.NewEncoder(w).Encode(struct {
		XMLName   xml.Name `xml:"Error"`
		Code      string
		Message   string
		RequestID string `xml:"RequestId"`
	}{Code: fault.Code, Message: "Injected by the test proxy.", RequestID: "proxy"})
}

// requestOf derives the S3 operation of a path-style request.
func requestOf(r *http.Request) Request {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	query := r.URL.Query()
	request := Request{Bucket: bucket, Key: key, Prefix: query.Get("prefix")}
	switch {
	case bucket == "":
		request.Operation = "ListBuckets"
	case key == "":
		request.Operation = bucketOperation(r.Method, query)
	default:
		request.Operation = objectOperation(r.Method, query, r.Header)
	}
	return request
}

// verbs are the first words of the operations on a subresource.
var verbs = map[string]string{http.MethodGet: "Get", http.MethodPut: "Put", http.MethodDelete: "Delete"}

// subresource returns the operation on the subresource that the query names,
// or an empty string.
func subresource(method string, query url.Values, names map[string]string) string {
	for parameter, name := range names {
		if query.Has(parameter) && verbs[method] != "" {
			return verbs[method] + name
		}
	}
	return ""
}

func bucketOperation(method string, query url.Values) string {
	if method == http.MethodDelete && query.Has("lifecycle") {
		// The API has no DeleteBucketLifecycleConfiguration.
		return "DeleteBucketLifecycle"
	}
	if operation := subresource(method, query, map[string]string{
		"acl":               "BucketAcl",
		"cors":              "BucketCors",
		"encryption":        "BucketEncryption",
		"lifecycle":         "BucketLifecycleConfiguration",
		"location":          "BucketLocation",
		"logging":           "BucketLogging",
		"notification":      "BucketNotificationConfiguration",
		"object-lock":       "ObjectLockConfiguration",
		"ownershipControls": "BucketOwnershipControls",
		"policy":            "BucketPolicy",
		"policyStatus":      "BucketPolicyStatus",
		"publicAccessBlock": "PublicAccessBlock",
		"replication":       "BucketReplication",
		"tagging":           "BucketTagging",
		"versioning":        "BucketVersioning",
	}); operation != "" {
		return operation
	}
	switch {
	case method == http.MethodHead:
		return "HeadBucket"
	case method == http.MethodPut:
		return "CreateBucket"
	case method == http.MethodDelete:
		return "DeleteBucket"
	case method == http.MethodPost && query.Has("delete"):
		return "DeleteObjects"
	case method == http.MethodGet && query.Has("uploads"):
		return "ListMultipartUploads"
	case method == http.MethodGet && query.Has("versions"):
		return "ListObjectVersions"
	case method == http.MethodGet && query.Get("list-type") == "2":
		return "ListObjectsV2"
	case method == http.MethodGet:
		return "ListObjects"
	}
	return "Unknown"
}

func objectOperation(method string, query url.Values, header http.Header) string {
	if operation := subresource(method, query, map[string]string{
		"acl":        "ObjectAcl",
		"attributes": "ObjectAttributes",
		"legal-hold": "ObjectLegalHold",
		"retention":  "ObjectRetention",
		"tagging":    "ObjectTagging",
	}); operation != "" {
		return operation
	}
	upload, copySource := query.Has("uploadId"), header.Get("X-Amz-Copy-Source") != ""
	switch {
	case method == http.MethodPost && query.Has("uploads"):
		return "CreateMultipartUpload"
	case method == http.MethodPost && upload:
		return "CompleteMultipartUpload"
	case method == http.MethodPut && upload && copySource:
		return "UploadPartCopy"
	case method == http.MethodPut && upload:
		return "UploadPart"
	case method == http.MethodPut && copySource:
		return "CopyObject"
	case method == http.MethodPut:
		return "PutObject"
	case method == http.MethodDelete && upload:
		return "AbortMultipartUpload"
	case method == http.MethodDelete:
		return "DeleteObject"
	case method == http.MethodGet && upload:
		return "ListParts"
	case method == http.MethodGet:
		return "GetObject"
	case method == http.MethodHead:
		return "HeadObject"
	}
	return "Unknown"
}
