package env

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	azuriteStartTimeout = 10 * time.Minute
	// azurePoolSize is how many storage accounts can exist at the same time. Azurite
	// takes them from an environment variable, which Linux limits to 128 KiB.
	azurePoolSize = 300
	// azureOperationTime is how long a long-running operation takes.
	azureOperationTime = 100 * time.Millisecond
)

// azuritePreload makes deletions in Azurite cheap. Its database, lokijs, sorts every index
// anew after it has removed by query, whatever it has removed: with 10,000 blobs that takes
// 50 ms for each of them. Removing documents one by one keeps the indexes up to date.
const azuritePreload = `
const { Collection } = require(require.resolve("lokijs", { paths: [process.argv[1]] }));
const many = Collection.prototype.removeBatchByPositions;
Collection.prototype.removeBatchByPositions = function (positions) {
  if (positions.length > 16) return many.call(this, positions);
  for (const doc of positions.map((position) => this.data[position])) this.remove(doc);
};
`

// The planes of Azure, as in AzureRequest and AzureFault.
const (
	PlaneEntra = "entra"
	PlaneARM   = "arm"
	PlaneBlob  = "blob"
)

// AzureOptions says how an Azure is started.
type AzureOptions struct {
	// Azurite is Binaries.Azurite.
	Azurite string
}

// Azure is what bucketwarden needs of Azure, on this machine:
//
//   - Microsoft Entra and Azure Resource Manager, served over TLS by this process. Its
//     rules are those of Azure's documentation; comments say which page.
//   - Azurite as the data plane, behind a proxy in this process. The proxy checks shared
//     keys against those that Resource Manager gave out, and enforces policies and legal
//     holds, which Azurite does not.
//
// There is one subscription with one service principal, which may do everything. The
// daemon reaches it as the custom cloud CloudName:
//
//	azure, err := env.StartAzure(ctx, env.AzureOptions{Azurite: bin.Azurite})
//	defer azure.Stop()
//	daemon, err := env.StartDaemon(ctx, env.DaemonOptions{
//		Args: []string{"--azure-cloud-config=" + azure.CloudConfig},
//		Env:  []string{"SSL_CERT_FILE=" + azure.CAFile},
//	})
//
// with spec.providerConfig.cloudConfiguration.name = azure.CloudName and a secret with
// azure.SecretData(). Methods that take a bucket find its container in any account.
// All methods may be called concurrently, and many tests can share one Azure, with two
// exceptions: the clock is the same for all, and a fault without PathContains hits all.
//
// What is not as in Azure: the data plane speaks HTTP; an account that does not exist
// answers 404 ResourceNotFound, where in Azure its host name does not resolve; tokens and
// signatures expire by the real clock; there are no versions, no soft delete and no SAS.
type Azure struct {
	// CloudName is the name of this Azure in the file CloudConfig, which is one for
	// --azure-cloud-config.
	CloudName, CloudConfig string
	// CAFile holds the certificate of the CA, for SSL_CERT_FILE; CAPEM is its content.
	CAFile string
	CAPEM  []byte
	// The service principal and its subscription. Token is the one that the token
	// endpoint takes as a client assertion.
	SubscriptionID, TenantID, ClientID, ClientSecret, Token string
	// ARMEndpoint and EntraEndpoint are URLs without a path.
	ARMEndpoint, EntraEndpoint string
	// BlobEndpoint is that of an account if {account} in it is replaced by its name.
	BlobEndpoint string
	// ControlURL is for tests in another process. GET / describes this Azure, see
	// AzureDescription; POST /advance?seconds=N, GET and DELETE /requests, GET
	// /containers/BUCKET, GET /accounts/NAME, PUT /blobs/BUCKET/NAME, GET
	// /blobs/BUCKET?prefix=P, POST and DELETE /faults, PUT and DELETE
	// /legalholds/BUCKET/TAG, PUT /policies/BUCKET?days=N&locked=true and DELETE
	// /policies/BUCKET do what the methods do.
	ControlURL string

	dir, azurite string
	pool         []poolAccount
	process      *Process
	servers      []*http.Server
	client       *http.Client // for Azurite

	// offset is how many nanoseconds the clock is ahead of the real one.
	offset atomic.Int64

	mu        sync.Mutex
	requests  []AzureRequest
	faults    []*AzureFault
	tokens    map[string]bool
	groups    map[string]*azureGroup // by lower-case name, as Azure compares them
	accounts  map[string]*azureAccount
	taken     map[string]bool
	free      []int // of the pool
	running   map[string]*azureOperation
	held      map[string]int
	sequences int
}

// poolAccount is one of the accounts that Azurite was started with.
type poolAccount struct {
	name string
	key  []byte
}

// AzureRequest is a request that an Azure received.
type AzureRequest struct {
	Plane, Method string
	// Operation is the operation's id in the REST API specifications for Resource
	// Manager (e.g. BlobContainers_LockImmutabilityPolicy; Operations_Get polls a
	// long-running one), its name in the documentation without spaces for the data
	// plane (e.g. DeleteBlob, BlobBatch), and OpenIDConfiguration or Token for Entra.
	Operation string
	// Path is without the query. That of the data plane begins with the account.
	Path string
	// Status is 0 if the connection was closed without an answer.
	Status int
	// SubRequests is how many a BlobBatch held.
	SubRequests int
}

// AzureFault is what an Azure does to the requests that match. The parts of a BlobBatch
// match as requests of their own, with Operation DeleteBlob or SetBlobTier: their fault
// is in the answer to that part.
type AzureFault struct {
	// Plane, Operation and PathContains are as in AzureRequest; empty ones match all.
	Plane, Operation, PathContains string
	// Status and Code are those of an Azure error, e.g. 429 and TooManyRequests. An empty
	// Code is the one that Azure usually sends with the status. The code
	// AuthorizationFailed names the missing action.
	Status int
	Code   string
	// RetryAfter is sent with the error, in whole seconds.
	RetryAfter time.Duration
	// Times is how often it happens; 0 is until it is cleared.
	Times int
	// Drop closes the connection without an answer and does nothing. DropAnswer does what
	// was asked before.
	Drop, DropAnswer bool
	// Do is called before the request is handled, e.g. to change something behind the
	// back of the client.
	Do func() `json:"-"`
}

// Fail makes an Azure fail requests from now on, until clear is called. Of several
// faults that match, the first one given happens.
func (a *Azure) Fail(fault AzureFault) (clear func()) {
	f := &fault
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = append(a.faults, f)
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.faults = slices.DeleteFunc(a.faults, func(other *AzureFault) bool { return other == f })
	}
}

// ClearFaults ends all faults, those of other tests too.
func (a *Azure) ClearFaults() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = nil
}

// Requests returns the requests in the order in which they were answered; if strings are
// given, only those whose path contains one of them, such as the bucket or the account.
// A request with a client of this package is not among them.
func (a *Azure) Requests(pathContains ...string) []AzureRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.requests), func(r AzureRequest) bool { return !matchesPath(r, pathContains) })
}

// ResetRequests forgets the requests that Requests would return.
func (a *Azure) ResetRequests(pathContains ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = slices.DeleteFunc(a.requests, func(r AzureRequest) bool { return matchesPath(r, pathContains) })
}

func matchesPath(r AzureRequest, pathContains []string) bool {
	return len(pathContains) == 0 || slices.ContainsFunc(pathContains, func(s string) bool { return strings.Contains(r.Path, s) })
}

// Now returns the time by the clock of this Azure.
func (a *Azure) Now() time.Time { return time.Now().Add(time.Duration(a.offset.Load())).UTC() }

// Advance moves the clock, by which blobs are retained, keys age and answers are dated.
func (a *Azure) Advance(d time.Duration) { a.offset.Add(int64(d)) }

// SecretData returns the data of a secret with the credentials of a BackupBucket.
func (a *Azure) SecretData() map[string][]byte {
	return map[string][]byte{
		"subscriptionID": []byte(a.SubscriptionID),
		"tenantID":       []byte(a.TenantID),
		"clientID":       []byte(a.ClientID),
		"clientSecret":   []byte(a.ClientSecret),
	}
}

// WorkloadIdentityData returns the data of a secret with a workload identity.
func (a *Azure) WorkloadIdentityData() map[string][]byte {
	data := a.SecretData()
	delete(data, "clientSecret")
	data["token"] = []byte(a.Token)
	return data
}

// StartAzure starts an empty Azure.
func StartAzure(ctx context.Context, options AzureOptions) (_ *Azure, err error) {
	dir, err := os.MkdirTemp("", "bucketwarden-azure-")
	if err != nil {
		return nil, fmt.Errorf("making the directory of Azure: %w", err)
	}
	a := &Azure{
		CloudName:      "Test" + rand.Text()[:8],
		CloudConfig:    filepath.Join(dir, "clouds.json"),
		CAFile:         filepath.Join(dir, "ca.crt"),
		SubscriptionID: newUUID(),
		TenantID:       newUUID(),
		ClientID:       newUUID(),
		ClientSecret:   rand.Text(),
		Token:          rand.Text(),
		dir:            dir,
		client:         &http.Client{Transport: &http.Transport{DisableCompression: true, MaxConnsPerHost: 32, MaxIdleConnsPerHost: 32, IdleConnTimeout: 2 * time.Second}},
		tokens:         map[string]bool{},
		groups:         map[string]*azureGroup{},
		accounts:       map[string]*azureAccount{},
		taken:          map[string]bool{},
		running:        map[string]*azureOperation{},
		held:           map[string]int{},
	}
	defer func() {
		if err != nil {
			a.Stop()
		}
	}()
	for i := range azurePoolSize {
		a.pool = append(a.pool, poolAccount{name: fmt.Sprintf("pool%03d", i), key: newKey()})
		a.free = append(a.free, azurePoolSize-1-i)
	}
	if err := a.startAzurite(ctx, options.Azurite); err != nil {
		return nil, err
	}
	if err := a.serve(); err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{a.CloudName: map[string]any{
		"activeDirectoryAuthorityHost": a.EntraEndpoint,
		"resourceManagerEndpoint":      a.ARMEndpoint,
		"resourceManagerAudience":      a.ARMEndpoint,
		"blobEndpoint":                 a.BlobEndpoint,
		"disableInstanceDiscovery":     true,
	}})
	if err != nil {
		return nil, fmt.Errorf("encoding the configuration of the cloud: %w", err)
	}
	for name, content := range map[string][]byte{a.CloudConfig: config, a.CAFile: a.CAPEM} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			return nil, fmt.Errorf("writing a file of Azure: %w", err)
		}
	}
	return a, nil
}

// Stop ends everything that StartAzure started and removes its data.
func (a *Azure) Stop() {
	for _, server := range a.servers {
		_ = server.Close()
	}
	if a.process != nil {
		a.process.Kill()
	}
	a.client.CloseIdleConnections()
	_ = os.RemoveAll(a.dir)
}

// azuriteClock makes Azurite's clock that of its Azure, which each request to it tells.
const azuriteClock = `
let offset = 0;
const RealDate = Date;
globalThis.Date = new Proxy(RealDate, {
  construct: (target, args, self) => Reflect.construct(target, args.length ? args : [target.now() + offset], self),
  get: (target, property) => property === "now" ? () => target.now() + offset : Reflect.get(target, property),
});
const { Server } = require("http");
const emit = Server.prototype.emit;
Server.prototype.emit = function (event, request, ...rest) {
  if (event === "request") offset = Math.max(offset, Number(request.headers["x-test-offset"]));
  return emit.call(this, event, request, ...rest);
};
`

// startAzurite sets azurite and process.
func (a *Azure) startAzurite(ctx context.Context, script string) (err error) {
	accounts := make([]string, len(a.pool))
	for i, account := range a.pool {
		accounts[i] = account.name + ":" + base64.StdEncoding.EncodeToString(account.key)
	}
	preload := filepath.Join(a.dir, "preload.js")
	if err := os.WriteFile(preload, []byte(azuritePreload+azuriteClock), 0o600); err != nil {
		return fmt.Errorf("writing a file of Azurite: %w", err)
	}
	// As with MinIO, another process may take a free port before Azurite does.
	const attempts = 5
	for range attempts {
		var address, port string
		if address, err = freeAddress(ctx); err != nil {
			return err
		}
		if _, port, err = net.SplitHostPort(address); err != nil {
			return fmt.Errorf("finding a free port: %w", err)
		}
		// Azurite knows the versions of the API up to its own release only, and fails
		// requests of newer SDKs unless told not to look.
		cmd := exec.Command("node", "--require", preload, script, "--blobHost", "127.0.0.1", "--blobPort", port,
			"--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck",
			// By default it closes idle connections after 5 seconds. One that is just being
			// used would be an error.
			"--blobKeepAliveTimeout", "3600")
		cmd.Dir = a.dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + a.dir, "AZURITE_ACCOUNTS=" + strings.Join(accounts, ";")}
		if a.process, err = startProcess("Azurite", cmd, nil); err != nil {
			return err
		}
		a.azurite = "http://" + address
		err = a.process.waitStarted(ctx, azuriteStartTimeout, func(ctx context.Context) error {
			// Only our Azurite knows the key.
			_, err := a.azuriteDo(ctx, http.MethodGet, 0, "", "comp=list", nil, nil)
			return err
		})
		if err == nil {
			return nil
		}
		a.process.Kill()
		if !errors.Is(err, errEnded) {
			return err
		}
	}
	return err
}

// serve starts the servers and sets their URLs.
func (a *Azure) serve() (err error) {
	if a.CAPEM, err = writeCertificate(a.dir); err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(a.dir, "public.crt"), filepath.Join(a.dir, "private.key"))
	if err != nil {
		return fmt.Errorf("reading the certificate: %w", err)
	}
	start := func(handler http.Handler, secure bool) (string, error) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", fmt.Errorf("starting a server of Azure: %w", err)
		}
		server := &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: time.Minute,
			ErrorLog:          log.New(io.Discard, "", 0),
			// Only connections of HTTP/1.1 can be dropped.
			TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		}
		a.servers = append(a.servers, server)
		if !secure {
			go func() { _ = server.Serve(listener) }()
			return "http://" + listener.Addr().String(), nil
		}
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}}
		go func() { _ = server.ServeTLS(listener, "", "") }()
		return "https://" + listener.Addr().String(), nil
	}
	if a.ARMEndpoint, err = start(http.HandlerFunc(a.serveARM), true); err != nil {
		return err
	}
	if a.EntraEndpoint, err = start(http.HandlerFunc(a.serveEntra), true); err != nil {
		return err
	}
	blob, err := start(http.HandlerFunc(a.serveBlob), false)
	if err != nil {
		return err
	}
	a.BlobEndpoint = blob + "/{account}"
	a.ControlURL, err = start(a.control(), false)
	return err
}

// transport trusts the CA.
func (a *Azure) transport() *http.Transport {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.CAPEM)
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
}

// ownHeader marks the requests of the clients of this package, which are neither
// recorded nor failed.
const ownHeader = "X-Bucketwarden-Test"

// azureAnswer is the answer to a request.
type azureAnswer struct {
	status int
	header http.Header
	body   []byte
}

// exchange handles a request: it finds its fault, calls handle without a lock, records
// and answers. The fault's error is made by failure.
func (a *Azure) exchange(w http.ResponseWriter, r *http.Request, request AzureRequest,
	failure func(*AzureFault) *azureAnswer, handle func(*AzureRequest) *azureAnswer,
) {
	own := r.Header.Get(ownHeader) != ""
	fault := &AzureFault{}
	if !own {
		fault = a.faultOf(request)
	}
	if fault.Do != nil {
		fault.Do()
	}
	var answer *azureAnswer
	switch {
	case fault.Drop:
	case fault.Status != 0:
		answer = failure(fault)
	default:
		answer = handle(&request)
	}
	dropped := answer == nil || fault.DropAnswer
	if !dropped {
		request.Status = answer.status
	}
	if !own {
		// Before the client can see the answer.
		a.mu.Lock()
		a.requests = append(a.requests, request)
		a.mu.Unlock()
	}
	if dropped {
		drop(w)
		return
	}
	for name, values := range answer.header {
		w.Header()[name] = values
	}
	w.Header().Set("Date", a.Now().Format(http.TimeFormat))
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body)
}

// faultOf returns what is to happen to a request, and counts it.
func (a *Azure) faultOf(r AzureRequest) *AzureFault {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, f := range a.faults {
		if f.Plane != "" && f.Plane != r.Plane || f.Operation != "" && f.Operation != r.Operation || !strings.Contains(r.Path, f.PathContains) {
			continue
		}
		fault := *f
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				a.faults = slices.Delete(a.faults, i, i+1)
			}
		}
		return &fault
	}
	return &AzureFault{}
}

// retryAfter sets the header of a fault's error.
func (f *AzureFault) retryAfter(header http.Header) {
	if f.RetryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(int((f.RetryAfter+time.Second-1)/time.Second)))
	}
}

// drop closes the connection in the middle of an answer's first line: Go's client
// repeats a request by itself if not a byte of an answer has come.
func drop(w http.ResponseWriter) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	connection, _, err := hijacker.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_, _ = connection.Write([]byte("HTTP/1.1 "))
	_ = connection.Close()
}

// azuriteDo sends a request to Azurite itself, past the proxy, and fails unless it
// succeeds. It needs no lock.
func (a *Azure) azuriteDo(ctx context.Context, method string, pool int, path, query string, header http.Header, body []byte) (*azureAnswer, error) {
	answer, err := a.azuriteSend(ctx, method, pool, path, query, header, body)
	if err == nil && answer.status >= 300 {
		err = &azuriteError{status: answer.status, code: answer.header.Get("X-Ms-Error-Code")}
	}
	if err != nil {
		return answer, fmt.Errorf("asking Azurite to %s %s: %w", method, cmp.Or(path, "/"), err)
	}
	return answer, nil
}

// azuriteError is an error that Azurite answered.
type azuriteError struct {
	status int
	code   string
}

func (e *azuriteError) Error() string { return fmt.Sprintf("%d %s", e.status, e.code) }

// azuriteSend sends a request to Azurite itself and returns its answer. The path is
// escaped, begins with a slash and is relative to the account.
func (a *Azure) azuriteSend(ctx context.Context, method string, pool int, path, query string, header http.Header, body []byte) (*azureAnswer, error) {
	account := a.pool[pool]
	url := a.azurite + "/" + account.name + cmp.Or(path, "/")
	if query != "" {
		url += "?" + query
	}
	// What a client gives up on, Azure still ends.
	request, err := http.NewRequestWithContext(context.WithoutCancel(ctx), method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	// Everything sent here can be repeated, if Azurite has just closed the connection.
	request.Header["X-Idempotency-Key"] = nil
	for name, values := range header {
		request.Header[name] = values
	}
	if request.Header.Get("X-Ms-Version") == "" {
		request.Header.Set("X-Ms-Version", "2025-01-05")
	}
	if request.Header.Get("X-Ms-Date") == "" {
		request.Header.Set("X-Ms-Date", time.Now().UTC().Format(http.TimeFormat))
	}
	signShared(request, account)
	request.Header.Set("X-Test-Offset", strconv.FormatInt(time.Duration(a.offset.Load()).Milliseconds(), 10))
	response, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	return &azureAnswer{status: response.StatusCode, header: response.Header, body: content}, nil
}

// newKey returns a key as long as those of Azure.
func newKey() []byte {
	key := make([]byte, 64)
	_, _ = rand.Read(key)
	return key
}

// newUUID returns a random UUID.
func newUUID() string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
