package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
)

const (
	fakeAzureSecret = "very-secret-client-secret"
	fakeAzureBucket = "seed-backup"
)

var fakeAzureKey = base64.StdEncoding.EncodeToString([]byte("the first key of the account"))

// fakeAzureBlob is a blob, or a previous version of one.
type fakeAzureBlob struct {
	name, version string
	previous      bool
	created       time.Time
	// appended is when an append blob was last modified, zero for a block blob.
	appended time.Time
	until    time.Time
	held     bool
	leased   bool
}

// fakeAzure speaks as much of Entra's, Resource Manager's and the Blob service's protocols
// as the store uses. It answers from its fields unless a test scripts an operation in on.
type fakeAzure struct {
	t         *testing.T
	arm, blob *httptest.Server
	clients   *azureClients

	mu                        sync.Mutex
	calls                     []string
	bodies                    map[string]string
	headers                   map[string]http.Header
	versions                  map[string][]string // of the API
	query                     map[string]url.Values
	on                        map[string]func(w http.ResponseWriter, r *http.Request, body string) bool
	group, account, container bool
	groupState                string
	properties                map[string]any // of the account
	sku, kind, location       string
	days, etag, extended      int
	locked, appends           bool
	legalHold                 bool
	public                    string
	versionLevel              map[string]any
	resources, containers     []string
	shares, queues, tables    []string
	blobs                     []fakeAzureBlob
	now                       time.Time
	// refuse returns the status and code of the refusal to delete a blob.
	refuse   func(b fakeAzureBlob) (int, string)
	pageSize int
	deleted  []string
	// leased: somebody holds a lease on the container. relet: whoever holds a lease takes it anew when it is broken.
	leased, relet bool
	// foreignGroup and foreignAccount: we did not make them.
	foreignGroup, foreignAccount bool
	bucket                       string // that they are of
}

func newFakeAzure(t *testing.T) *fakeAzure {
	f := &fakeAzure{
		t: t, bodies: map[string]string{}, headers: map[string]http.Header{}, versions: map[string][]string{}, query: map[string]url.Values{}, on: map[string]func(http.ResponseWriter, *http.Request, string) bool{},
		bucket: fakeAzureBucket, group: true, account: true, container: true, groupState: "Succeeded", sku: "Standard_ZRS", kind: "StorageV2", location: "westeurope",
		properties: map[string]any{"supportsHttpsTrafficOnly": true, "minimumTlsVersion": "TLS1_2", "allowBlobPublicAccess": false, "provisioningState": "Succeeded",
			"keyCreationTime": map[string]string{"key1": "2026-01-02T03:04:05Z", "key2": "2026-01-03T03:04:05Z"}},
		now: time.Now().UTC().Truncate(time.Second), pageSize: 5000,
	}
	f.arm = httptest.NewUnstartedServer(http.HandlerFunc(f.serveARM))
	f.arm.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.arm.StartTLS()
	f.blob = httptest.NewServer(http.HandlerFunc(f.serveBlob))
	t.Cleanup(f.arm.Close)
	t.Cleanup(f.blob.Close)
	clouds, err := parseAzureClouds([]byte(fmt.Sprintf(`{"Fake": {"activeDirectoryAuthorityHost": %q, "resourceManagerEndpoint": %q,
		"resourceManagerAudience": "https://management.example.com", "blobEndpoint": %q, "disableInstanceDiscovery": true}}`,
		f.arm.URL, f.arm.URL, f.blob.URL+"/{account}")))
	if err != nil {
		t.Fatal(err)
	}
	f.clients = newAzureClients(newMetrics(), clouds)
	f.clients.retryDelay, f.clients.pollInterval = time.Millisecond, time.Millisecond
	f.clients.transport.TLSClientConfig = f.arm.Client().Transport.(*http.Transport).TLSClientConfig
	return f
}

func fakeAzureCredentials() map[string][]byte {
	return map[string][]byte{
		"subscriptionID": []byte("00000000-0000-0000-0000-000000000001"), "tenantID": []byte("00000000-0000-0000-0000-000000000002\n"),
		"clientID": []byte("00000000-0000-0000-0000-000000000003"), "clientSecret": []byte(fakeAzureSecret),
	}
}

func (f *fakeAzure) ref() bucketRef {
	return bucketRef{Name: fakeAzureBucket, Region: "westeurope", Cloud: "FAKE"}
}

func (f *fakeAzure) open(ref bucketRef) *azureBucket {
	f.t.Helper()
	store, err := f.clients.openStore(ref, fakeAzureCredentials())
	if err != nil {
		f.t.Fatal(err)
	}
	return store.(*azureBucket)
}

func (f *fakeAzure) entry(recorded Policy) Objects {
	f.t.Helper()
	ref := bucketRef{Name: fakeAzureBucket, Recorded: recorded}
	objects, err := f.clients.openObjects(ref, map[string][]byte{
		"storageAccount": []byte("account"), "storageKey": []byte(fakeAzureKey), "domain": []byte(strings.TrimPrefix(f.blob.URL, "http://")),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return objects
}

// take returns the operations since the last call, without those for tokens.
func (f *fakeAzure) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := slices.DeleteFunc(f.calls, func(c string) bool { return c == "Token" || c == "Discovery" })
	f.calls = nil
	return strings.Join(calls, " ")
}

func (f *fakeAzure) expect(want string) {
	f.t.Helper()
	if got := f.take(); got != want {
		f.t.Errorf("requests: %s\nwant:     %s", got, want)
	}
}

func (f *fakeAzure) script(operation string, answers ...func(http.ResponseWriter, *http.Request, string) bool) {
	i := 0
	f.on[operation] = func(w http.ResponseWriter, r *http.Request, body string) bool {
		if i >= len(answers) {
			return false
		}
		i++
		return answers[i-1](w, r, body)
	}
}

func answerAzure(status int, code string) func(http.ResponseWriter, *http.Request, string) bool {
	return func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		fakeAzureError(w, status, code)
		return true
	}
}

// fakeAzureRawPolicy answers with a container that has this policy.
func fakeAzureRawPolicy(policy string) func(http.ResponseWriter, *http.Request, string) bool {
	return func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		fakeAzureJSON(w, http.StatusOK, map[string]any{"properties": map[string]any{"hasImmutabilityPolicy": true, "immutabilityPolicy": json.RawMessage(policy)}})
		return true
	}
}

var fakeAzureRequests atomic.Int64

func fakeAzureError(w http.ResponseWriter, status int, code string) {
	request := fakeAzureRequests.Add(1)
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%q,"message":"Because of %s. Tracking ID 'aaaaaaaa-bbbb-cccc-dddd-%012d' at 2026-01-01T00:00:%02d.123Z"}}`, code, code, request, request%60)
}

// begin records a request; true if a test scripts its answer.
func (f *fakeAzure) begin(operation string, w http.ResponseWriter, r *http.Request, body string) bool {
	f.calls = append(f.calls, operation)
	f.query[operation] = r.URL.Query()
	f.versions[operation] = append(r.Header.Values("x-ms-version"), r.URL.Query()["api-version"]...)
	f.bodies[operation], f.headers[operation] = body, r.Header.Clone()
	if on := f.on[operation]; on != nil {
		return on(w, r, body)
	}
	return false
}

func fakeAzureJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (f *fakeAzure) accountJSON() map[string]any {
	return map[string]any{"name": azureAccountName(fakeAzureBucket), "location": f.location, "kind": f.kind, "sku": map[string]any{"name": f.sku}, "properties": f.properties}
}

func (f *fakeAzure) keysJSON() map[string]any {
	return map[string]any{"keys": []map[string]any{
		{"keyName": "key2", "value": base64.StdEncoding.EncodeToString([]byte("the second key")), "permissions": "FULL"},
		{"keyName": "key1", "value": fakeAzureKey, "permissions": "FULL", "creationTime": "2026-01-02T03:04:05Z"},
	}}
}

func (f *fakeAzure) etagText() string { return fmt.Sprintf("\"%d\"", f.etag) }

func (f *fakeAzure) policyJSON() map[string]any {
	state := "Unlocked"
	if f.locked {
		state = "Locked"
	}
	if f.days == 0 {
		return map[string]any{"etag": "", "properties": map[string]any{"immutabilityPeriodSinceCreationInDays": 0, "state": "Deleted"}}
	}
	history := []map[string]any{{"update": "put"}, {"update": "lock"}}
	for range f.extended {
		history = append(history, map[string]any{"update": "extend"})
	}
	return map[string]any{"etag": f.etagText(), "updateHistory": history, "properties": map[string]any{
		"immutabilityPeriodSinceCreationInDays": f.days, "state": state, "allowProtectedAppendWrites": f.appends,
	}}
}

func (f *fakeAzure) serveARM(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	raw, _ := io.ReadAll(r.Body)
	body := string(raw)
	switch {
	case strings.HasSuffix(r.URL.Path, "/openid-configuration"):
		if f.begin("Discovery", w, r, body) {
			return
		}
		base := f.arm.URL + "/" + strings.Split(r.URL.Path, "/")[1]
		fakeAzureJSON(w, http.StatusOK, map[string]string{"issuer": base + "/v2.0", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "token_endpoint": base + "/oauth2/v2.0/token"})
		return
	case strings.HasSuffix(r.URL.Path, "/token"):
		if !f.begin("Token", w, r, body) {
			fakeAzureJSON(w, http.StatusOK, map[string]any{"access_token": "token", "token_type": "Bearer", "expires_in": 3600})
		}
		return
	case strings.HasPrefix(r.URL.Path, "/operations/"):
		if !f.begin("Poll", w, r, body) {
			fakeAzureJSON(w, http.StatusOK, f.accountJSON())
		}
		return
	}
	if r.Header.Get("Authorization") != "Bearer token" {
		f.t.Errorf("%s %s without token", r.Method, r.URL.Path)
	}
	if strings.HasSuffix(r.URL.Path, "/checkNameAvailability") {
		if !f.begin("CheckName", w, r, body) {
			fakeAzureJSON(w, http.StatusOK, map[string]any{"nameAvailable": true})
		}
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")[4:] // subscriptions/S/resourceGroups/G
	switch {
	case len(parts) == 0:
		f.serveGroup(w, r, body)
	case parts[0] == "resources":
		if !f.begin("Resources.List", w, r, body) {
			list := []map[string]any{}
			if f.account {
				list = append(list, map[string]any{"type": "Microsoft.Storage/storageAccounts", "name": azureAccountName(fakeAzureBucket), "tags": f.tags(f.foreignAccount)})
			}
			for _, name := range f.resources {
				list = append(list, map[string]any{"type": "Microsoft.Other/things", "name": name})
			}
			fakeAzureJSON(w, http.StatusOK, map[string]any{"value": list})
		}
	case len(parts) == 4 || parts[4] == "listKeys" || parts[4] == "regenerateKey":
		f.serveAccount(w, r, body, parts)
	case parts[4] != "blobServices":
		operation, names := "Share.List", f.shares
		switch parts[4] {
		case "queueServices":
			operation, names = "Queue.List", f.queues
		case "tableServices":
			operation, names = "Table.List", f.tables
		}
		if !f.begin(operation, w, r, body) {
			fakeAzureNames(w, names)
		}
	default:
		f.serveContainer(w, r, body, parts[6:])
	}
}

// fakeAzureNames answers with a list of what has these names.
func fakeAzureNames(w http.ResponseWriter, names []string) {
	list := []map[string]string{}
	for _, name := range names {
		list = append(list, map[string]string{"name": name})
	}
	fakeAzureJSON(w, http.StatusOK, map[string]any{"value": list})
}

func (f *fakeAzure) serveGroup(w http.ResponseWriter, r *http.Request, body string) {
	switch {
	case f.begin("Group."+r.Method, w, r, body):
	case r.Method == http.MethodPut:
		f.group = true
		fakeAzureJSON(w, http.StatusCreated, map[string]any{})
	case !f.group:
		fakeAzureError(w, http.StatusNotFound, "ResourceGroupNotFound")
	case r.Method == http.MethodDelete:
		w.Header().Set("Location", f.arm.URL+"/operations/2")
		w.WriteHeader(http.StatusAccepted)
	default:
		fakeAzureJSON(w, http.StatusOK, map[string]any{"tags": f.tags(f.foreignGroup), "properties": map[string]string{"provisioningState": f.groupState}})
	}
}

func (f *fakeAzure) serveAccount(w http.ResponseWriter, r *http.Request, body string, parts []string) {
	operation := "Account." + r.Method
	if len(parts) > 4 {
		operation = "Account." + parts[4]
	}
	switch {
	case f.begin(operation, w, r, body):
	case !f.group:
		fakeAzureError(w, http.StatusNotFound, "ResourceGroupNotFound")
	case r.Method == http.MethodPut:
		f.account = true
		w.Header().Set("Location", f.arm.URL+"/operations/1")
		w.WriteHeader(http.StatusAccepted)
	case !f.account:
		fakeAzureError(w, http.StatusNotFound, "ResourceNotFound")
	case r.Method == http.MethodDelete:
		f.account = false
	case r.Method == http.MethodPost:
		fakeAzureJSON(w, http.StatusOK, f.keysJSON())
	case r.Method == http.MethodPatch:
		var change struct {
			Properties map[string]any `json:"properties"`
		}
		_ = json.Unmarshal([]byte(body), &change)
		maps.Copy(f.properties, change.Properties)
		fakeAzureJSON(w, http.StatusOK, f.accountJSON())
	default:
		fakeAzureJSON(w, http.StatusOK, f.accountJSON())
	}
}

func (f *fakeAzure) serveContainer(w http.ResponseWriter, r *http.Request, body string, parts []string) {
	operation := "Container." + r.Method
	switch {
	case len(parts) == 1:
		operation = "Container.List"
	case len(parts) == 4:
		operation = "Policy." + r.Method
	case len(parts) == 5:
		operation = "Policy." + parts[4]
	}
	var change struct {
		Properties struct {
			Days int `json:"immutabilityPeriodSinceCreationInDays"`
		} `json:"properties"`
	}
	_ = json.Unmarshal([]byte(body), &change)
	ifMatch := r.Header.Get("If-Match")
	switch {
	case f.begin(operation, w, r, body):
	case !f.group:
		fakeAzureError(w, http.StatusNotFound, "ResourceGroupNotFound")
	case !f.account:
		fakeAzureError(w, http.StatusNotFound, "ResourceNotFound")
	case operation == "Container.List":
		fakeAzureNames(w, f.containers)
	case operation == "Container.PUT":
		f.container = true
		fakeAzureJSON(w, http.StatusCreated, map[string]any{})
	case !f.container:
		fakeAzureError(w, http.StatusNotFound, "ContainerNotFound")
	case operation == "Container.GET":
		fakeAzureJSON(w, http.StatusOK, map[string]any{"properties": map[string]any{
			"immutabilityPolicy": f.policyJSON(), "hasLegalHold": f.legalHold, "publicAccess": cmp.Or(f.public, "None"), "immutableStorageWithVersioning": f.versionLevel,
		}})
	case operation == "Container.DELETE" && f.leased:
		fakeAzureError(w, http.StatusPreconditionFailed, "LeaseIdMissing")
	case operation == "Container.DELETE":
		f.container = false
	case f.days > 0 && ifMatch != f.etagText() || f.days == 0 && ifMatch != "":
		fakeAzureError(w, http.StatusPreconditionFailed, "PreconditionFailed")
	default:
		f.etag++
		switch operation {
		case "Policy.PUT":
			f.days, f.appends = change.Properties.Days, strings.Contains(body, `"allowProtectedAppendWrites":true`)
		case "Policy.DELETE":
			f.days = 0
		case "Policy.lock":
			f.locked = true
		case "Policy.extend":
			f.days, f.extended = change.Properties.Days, f.extended+1
		}
		fakeAzureJSON(w, http.StatusOK, f.policyJSON())
	}
}

func (f *fakeAzure) serveBlob(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	raw, _ := io.ReadAll(r.Body)
	operation := "List"
	switch {
	case r.URL.Query().Get("comp") == "batch":
		operation = "Batch"
	case r.URL.Query().Get("comp") == "lease":
		operation = "Break"
	case r.Method == http.MethodDelete:
		operation = "Delete"
	case r.Method == http.MethodPut:
		operation = "Put"
	}
	w.Header().Set("Date", f.now.Format(http.TimeFormat))
	switch {
	case f.begin(operation, w, r, string(raw)):
	case !strings.HasPrefix(r.Header.Get("Authorization"), "SharedKey "):
		f.t.Errorf("%s without shared key", operation)
	case !f.container:
		w.Header().Set("x-ms-error-code", "ContainerNotFound")
		w.WriteHeader(http.StatusNotFound)
	case operation == "List":
		f.serveList(w, r.URL.Query())
	case operation == "Delete":
		status, code := f.deleteBlob(strings.SplitN(strings.Trim(r.URL.Path, "/"), "/", 3)[2], r.URL.Query().Get("versionid"))
		if code != "" {
			w.Header().Set("x-ms-error-code", code)
		}
		w.WriteHeader(status)
	case operation == "Put":
		w.WriteHeader(http.StatusCreated)
	case operation == "Break":
		f.serveBreak(w, r)
	default:
		f.serveBatch(w, r, raw)
	}
}

func (f *fakeAzure) serveList(w http.ResponseWriter, q url.Values) {
	from, _ := strconv.Atoi(q.Get("marker"))
	size, _ := strconv.Atoi(q.Get("maxresults"))
	end := min(from+min(size, f.pageSize), len(f.blobs))
	marker := ""
	if end < len(f.blobs) {
		marker = strconv.Itoa(end)
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprint(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>`)
	for _, b := range f.blobs[min(from, end):end] {
		version := ""
		if b.version != "" {
			version = fmt.Sprintf("<VersionId>%s</VersionId><IsCurrentVersion>%t</IsCurrentVersion>", b.version, !b.previous)
		}
		until := ""
		if !b.until.IsZero() {
			until = "<ImmutabilityPolicyUntilDate>" + b.until.Format(http.TimeFormat) + "</ImmutabilityPolicyUntilDate>"
		}
		kind, modified := "BlockBlob", b.created
		if !b.appended.IsZero() {
			kind, modified = "AppendBlob", b.appended
		}
		fmt.Fprintf(w, "<Blob><Name>%s</Name>%s<Properties><Creation-Time>%s</Creation-Time><Last-Modified>%s</Last-Modified><Content-Length>10</Content-Length>"+
			"<BlobType>%s</BlobType>%s<LegalHold>%t</LegalHold></Properties></Blob>",
			b.name, version, b.created.UTC().Format(http.TimeFormat), modified.UTC().Format(http.TimeFormat), kind, until, b.held)
	}
	fmt.Fprintf(w, "</Blobs><NextMarker>%s</NextMarker></EnumerationResults>", marker)
}

// serveBreak ends the lease on a blob or on the container.
func (f *fakeAzure) serveBreak(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("x-ms-lease-action") != "break" || r.Header.Get("x-ms-lease-break-period") != "0" {
		f.t.Errorf("lease action %q with period %q", r.Header.Get("x-ms-lease-action"), r.Header.Get("x-ms-lease-break-period"))
	}
	leased := &f.leased
	if r.URL.Query().Get("restype") != "container" {
		name := strings.SplitN(strings.Trim(r.URL.Path, "/"), "/", 3)[2]
		i := slices.IndexFunc(f.blobs, func(b fakeAzureBlob) bool { return b.name == name })
		if i < 0 {
			w.Header().Set("x-ms-error-code", "BlobNotFound")
			w.WriteHeader(http.StatusNotFound)
			return
		}
		leased = &f.blobs[i].leased
	}
	*leased = *leased && f.relet
	w.WriteHeader(http.StatusAccepted)
}

func (f *fakeAzure) serveBatch(w http.ResponseWriter, r *http.Request, raw []byte) {
	_, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	in := multipart.NewReader(bytes.NewReader(raw), params["boundary"])
	var answer bytes.Buffer
	out := multipart.NewWriter(&answer)
	n := 0
	for {
		part, err := in.NextPart()
		if err != nil {
			break
		}
		n++
		request, err := http.ReadRequest(bufio.NewReader(part))
		if err != nil {
			f.t.Errorf("part of a batch: %v", err)
			return
		}
		version := request.URL.Query().Get("versionid")
		if (version == "") != (request.Header.Get("x-ms-delete-snapshots") == "include") {
			f.t.Errorf("version %q with x-ms-delete-snapshots %q", version, request.Header.Get("x-ms-delete-snapshots"))
		}
		name := strings.SplitN(strings.Trim(request.URL.Path, "/"), "/", 3)[2]
		status, code := f.deleteBlob(name, version)
		w, _ := out.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/http"}, "Content-ID": {part.Header.Get("Content-ID")}})
		fmt.Fprintf(w, "HTTP/1.1 %d X\r\nx-ms-request-id: %d\r\n", status, n)
		if code != "" {
			fmt.Fprintf(w, "x-ms-error-code: %s\r\n", code)
		}
		fmt.Fprint(w, "Content-Length: 0\r\n\r\n")
	}
	if n > 256 {
		f.t.Errorf("a batch of %d parts", n)
	}
	out.Close()
	w.Header().Set("Content-Type", "multipart/mixed; boundary="+out.Boundary())
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write(answer.Bytes())
}

func (f *fakeAzure) deleteBlob(name, version string) (int, string) {
	i := slices.IndexFunc(f.blobs, func(b fakeAzureBlob) bool {
		return b.name == name && (version == "" && !b.previous || version != "" && version == b.version)
	})
	if i < 0 {
		return http.StatusNotFound, "BlobNotFound"
	}
	if f.refuse != nil {
		if status, code := f.refuse(f.blobs[i]); status != 0 {
			return status, code
		}
	}
	if f.blobs[i].leased {
		return http.StatusPreconditionFailed, "LeaseIdMissing"
	}
	f.deleted = append(f.deleted, name)
	if f.blobs[i].version != "" && !f.blobs[i].previous {
		f.blobs[i].previous = true
	} else {
		f.blobs = slices.Delete(f.blobs, i, i+1)
	}
	return http.StatusAccepted, ""
}

func (f *fakeAzure) addBlobs(n int, prefix string, age func(i int) time.Duration) {
	for i := range n {
		f.blobs = append(f.blobs, fakeAzureBlob{name: fmt.Sprintf("%s%05d", prefix, i), created: f.now.Add(-age(i))})
	}
}

func checkAzureError(t *testing.T, err error, code errorCode, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if got := codeOf(err); got != code {
		t.Errorf("code %q of %q, want %q", got, err, code)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in %q", text, err)
		}
	}
	for _, secret := range []string{fakeAzureSecret, fakeAzureKey, "aaaaaaaa-bbbb", "2026-01-01T"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q is in %q", secret, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q is not one line", err)
	}
}

func TestAzureStoreBucketNames(t *testing.T) {
	f := newFakeAzure(t)
	for _, name := range []string{"ab", "-abc", "abc-", "a--b", "Abc", "a.b", "a_b", strings.Repeat("a", 64), "../x"} {
		ref := f.ref()
		ref.Name = name
		_, err := f.clients.openStore(ref, fakeAzureCredentials())
		checkAzureError(t, err, codeConfigurationProblem, name)
		if !errors.Is(err, errNotOurBucket) {
			t.Errorf("%s: %v is not errNotOurBucket", name, err)
		}
	}
	if got := azureAccountName("backup"); len(got) != 18 || !strings.HasPrefix(got, "bkp") {
		t.Errorf("account %q", got)
	}
}

func TestAzureStoreObserve(t *testing.T) {
	five := int32(5)
	for name, c := range map[string]struct {
		set  func(f *fakeAzure)
		want BucketState
		code errorCode // of the error
		text string
	}{
		"no group":       {set: func(f *fakeAzure) { f.group = false }, want: BucketState{}},
		"no account":     {set: func(f *fakeAzure) { f.account = false }, want: BucketState{Remains: true}},
		"no container":   {set: func(f *fakeAzure) { f.container = false }, want: BucketState{Remains: true}},
		"no policy":      {set: func(*fakeAzure) {}, want: BucketState{Exists: true, Extensions: &five}},
		"unlocked":       {set: func(f *fakeAzure) { f.days = 4 }, want: BucketState{Exists: true, Policy: Policy{Days: 4}, Extensions: &five}},
		"locked":         {set: func(f *fakeAzure) { f.days, f.locked, f.extended = 4, true, 3 }, want: BucketState{Exists: true, Policy: Policy{Days: 4, Locked: true}, Extensions: to.Ptr[int32](2)}},
		"extended a lot": {set: func(f *fakeAzure) { f.days, f.locked, f.extended = 4, true, 9 }, want: BucketState{Exists: true, Policy: Policy{Days: 4, Locked: true}, Extensions: to.Ptr[int32](0)}},
		"appends":        {set: func(f *fakeAzure) { f.days, f.appends = 4, true }, want: BucketState{Exists: true, Policy: Policy{Days: 4}, Extensions: &five, Appends: true}},
		"version-level": {set: func(f *fakeAzure) { f.days, f.locked, f.versionLevel = 4, true, map[string]any{"enabled": true} },
			want: BucketState{Exists: true, Default: Policy{Days: 4, Locked: true}, Extensions: &five}},
		"version-level account": {set: func(f *fakeAzure) {
			f.days, f.locked, f.properties["immutableStorageWithVersioning"] = 4, true, map[string]any{"enabled": true}
		}, want: BucketState{Exists: true, Default: Policy{Days: 4, Locked: true}, Extensions: &five}},
		"version-level account with a policy": {set: func(f *fakeAzure) {
			f.days, f.properties["immutableStorageWithVersioning"] = 4, map[string]any{"enabled": true, "immutabilityPolicy": map[string]any{
				"immutabilityPeriodSinceCreationInDays": 9, "state": "Locked"}}
		}, want: BucketState{Exists: true, Default: Policy{Days: 4}, Extensions: &five}},
		"account that is not version-level": {set: func(f *fakeAzure) {
			f.days, f.locked, f.properties["immutableStorageWithVersioning"] = 4, true, map[string]any{"enabled": false}
		}, want: BucketState{Exists: true, Policy: Policy{Days: 4, Locked: true}, Extensions: &five}},
		"account that may not be read": {set: func(f *fakeAzure) {
			f.days, f.locked, f.on["Account.GET"] = 4, true, answerAzure(403, "AuthorizationFailed")
		}, want: BucketState{Exists: true, Policy: Policy{Days: 4, Locked: true}, Extensions: &five}},
		"account that cannot be read": {set: func(f *fakeAzure) {
			f.days, f.on["Account.GET"] = 4, answerAzure(409, "StorageAccountOperationInProgress")
		},
			code: codeRetryableDependencies, text: "StorageAccounts.Get"},
		"migrating to version-level": {set: func(f *fakeAzure) {
			f.days, f.locked, f.versionLevel = 4, true, map[string]any{"enabled": false, "migrationState": "InProgress"}
		}, want: BucketState{Exists: true, Default: Policy{Days: 4, Locked: true}, Extensions: &five}},
		"not version-level": {set: func(f *fakeAzure) { f.days, f.locked, f.versionLevel = 4, true, map[string]any{"enabled": false} },
			want: BucketState{Exists: true, Policy: Policy{Days: 4, Locked: true}, Extensions: &five}},
		"no etag": {set: func(f *fakeAzure) {
			f.script("Container.GET", fakeAzureRawPolicy(`{"properties":{"immutabilityPeriodSinceCreationInDays":4,"state":"Locked"}}`))
		}, code: codeRetryableDependencies, text: "without an etag"},
		"no etag, unlocked": {set: func(f *fakeAzure) {
			f.script("Container.GET", fakeAzureRawPolicy(`{"etag":"","properties":{"immutabilityPeriodSinceCreationInDays":4,"state":"Unlocked"}}`))
		}, code: codeRetryableDependencies, text: "without an etag"},
		"deleted with days": {set: func(f *fakeAzure) {
			f.script("Container.GET", fakeAzureRawPolicy(`{"etag":"1","properties":{"immutabilityPeriodSinceCreationInDays":4,"state":"Deleted"}}`))
		}, want: BucketState{Exists: true, Extensions: &five}},
		"no days": {set: func(f *fakeAzure) {
			f.script("Container.GET", fakeAzureRawPolicy(`{"etag":"1","properties":{"state":"Unlocked"}}`))
		}, want: BucketState{Exists: true, Extensions: &five}},
		"unknown state": {set: func(f *fakeAzure) {
			f.script("Container.GET", fakeAzureRawPolicy(`{"etag":"1","properties":{"immutabilityPeriodSinceCreationInDays":4,"state":"Melted"}}`))
		}, code: codeConfigurationProblem, text: "Melted"},
		"other subscription": {set: func(f *fakeAzure) { f.script("Container.GET", answerAzure(404, "SubscriptionNotFound")) },
			code: codeUnauthenticated, text: "check subscriptionID"},
		"other 404": {set: func(f *fakeAzure) { f.script("Container.GET", answerAzure(404, "InvalidResourceType")) }, code: codeConfigurationProblem, text: "InvalidResourceType"},
		"denied": {set: func(f *fakeAzure) { f.script("Container.GET", answerAzure(403, "AuthorizationFailed")) },
			code: codeUnauthorized, text: "Microsoft.Storage/storageAccounts/blobServices/containers/read"},
		"throttled for long": {set: func(f *fakeAzure) {
			f.script("Container.GET", func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				w.Header().Set("Retry-After", "300")
				fakeAzureError(w, 429, "TooManyRequests")
				return true
			})
		}, code: codeRateLimitsExceeded, text: "TooManyRequests"},
		"something else": {set: func(f *fakeAzure) {
			f.script("Container.GET", func(w http.ResponseWriter, _ *http.Request, _ string) bool { http.NotFound(w, nil); return true })
		}, code: codeRetryableConfiguration, text: "not one of Azure"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			c.set(f)
			got, err := f.open(f.ref()).Observe(t.Context())
			calls := strings.Fields(f.take())
			// The account is read once for a client, if there is a policy that it may make a default.
			if want := f.days > 0 && f.group && f.account && f.container && f.versionLevel["enabled"] != true && f.versionLevel["migrationState"] == nil; !slices.Equal(calls, []string{"Container.GET"}) &&
				!(want && slices.Equal(calls, []string{"Container.GET", "Account.GET"})) {
				t.Errorf("requests: %v", calls)
			}
			if _, err := f.open(f.ref()).Observe(t.Context()); err == nil {
				f.expect("Container.GET")
			}
			if c.code != "" {
				checkAzureError(t, err, c.code, c.text)
				return
			}
			if err != nil || got.Exists != c.want.Exists || got.Remains != c.want.Remains || got.Policy != c.want.Policy || got.Default != c.want.Default || got.Appends != c.want.Appends || deref(got.Extensions) != deref(c.want.Extensions) {
				t.Errorf("%+v %v, want %+v", got, err, c.want)
			}
		})
	}
}

func TestAzureStorePolicy(t *testing.T) {
	ptr := func(p Policy) *Policy { return &p }
	// meanwhile makes somebody else change the policy right before the operation.
	meanwhile := func(f *fakeAzure, operation string, change func()) {
		f.script(operation, func(http.ResponseWriter, *http.Request, string) bool {
			change()
			f.etag++
			return false
		})
	}
	for name, c := range map[string]struct {
		set       func(f *fakeAzure)
		setPolicy *Policy
		lock      *Policy
		calls     string
		want      Policy
		code      errorCode
		text      string
		ifMatch   map[string]string
		fresh     bool // the account was not read yet
	}{
		"set":            {setPolicy: ptr(Policy{Days: 4}), calls: "Container.GET Policy.PUT", want: Policy{Days: 4}, ifMatch: map[string]string{"Policy.PUT": ""}},
		"set the same":   {set: func(f *fakeAzure) { f.days = 4 }, setPolicy: ptr(Policy{Days: 4}), calls: "Container.GET", want: Policy{Days: 4}},
		"append writes":  {set: func(f *fakeAzure) { f.days, f.appends, f.etag = 4, true, 7 }, setPolicy: ptr(Policy{Days: 4}), calls: "Container.GET Policy.PUT", want: Policy{Days: 4}, ifMatch: map[string]string{"Policy.PUT": `"7"`}},
		"shorten":        {set: func(f *fakeAzure) { f.days, f.etag = 9, 7 }, setPolicy: ptr(Policy{Days: 4}), calls: "Container.GET Policy.PUT", want: Policy{Days: 4}, ifMatch: map[string]string{"Policy.PUT": `"7"`}},
		"remove":         {set: func(f *fakeAzure) { f.days, f.etag = 9, 7 }, setPolicy: &Policy{}, calls: "Container.GET Policy.DELETE", ifMatch: map[string]string{"Policy.DELETE": `"7"`}},
		"remove nothing": {setPolicy: &Policy{}, calls: "Container.GET"},
		"set on a lock":  {set: func(f *fakeAzure) { f.days, f.locked = 2, true }, setPolicy: ptr(Policy{Days: 4}), calls: "Container.GET", want: Policy{Days: 2, Locked: true}, code: codeConfigurationProblem, text: "locked retention of 48h"},
		"remove a lock":  {set: func(f *fakeAzure) { f.days, f.locked = 2, true }, setPolicy: &Policy{}, calls: "Container.GET", want: Policy{Days: 2, Locked: true}, code: codeConfigurationProblem, text: "removed"},
		"etag changed":   {set: func(f *fakeAzure) { f.days = 4; meanwhile(f, "Policy.PUT", func() {}) }, setPolicy: ptr(Policy{Days: 6}), calls: "Container.GET Policy.PUT Container.GET Policy.PUT", want: Policy{Days: 6}},
		"locked meanwhile": {set: func(f *fakeAzure) { f.days = 4; meanwhile(f, "Policy.PUT", func() { f.locked = true }) }, setPolicy: ptr(Policy{Days: 2}),
			calls: "Container.GET Policy.PUT Container.GET", want: Policy{Days: 4, Locked: true}, code: codeConfigurationProblem, text: "by now"},
		"raised meanwhile": {set: func(f *fakeAzure) { f.days = 4; meanwhile(f, "Policy.PUT", func() { f.days = 30 }) }, setPolicy: ptr(Policy{Days: 6}),
			calls: "Container.GET Policy.PUT Container.GET", want: Policy{Days: 30}, code: codeRetryableDependencies, text: "somebody else changed"},
		"raised before removal": {set: func(f *fakeAzure) { f.days = 4; meanwhile(f, "Policy.DELETE", func() { f.days = 30 }) }, setPolicy: &Policy{},
			calls: "Container.GET Policy.DELETE Container.GET", want: Policy{Days: 30}, code: codeRetryableDependencies, text: "somebody else changed"},
		"never quiet": {set: func(f *fakeAzure) { f.days = 4; f.on["Policy.PUT"] = answerAzure(412, "PreconditionFailed") }, setPolicy: ptr(Policy{Days: 6}),
			calls: strings.TrimSpace(strings.Repeat("Container.GET Policy.PUT ", 4)), want: Policy{Days: 4}, code: codeRetryableDependencies, text: "again and again"},
		"container gone": {set: func(f *fakeAzure) { f.container = false }, setPolicy: ptr(Policy{Days: 6}), calls: "Container.GET", code: codeRetryableDependencies, text: "does not exist"},

		"lock what is there":  {set: func(f *fakeAzure) { f.days, f.etag = 4, 7 }, lock: ptr(Policy{Days: 4, Locked: true}), calls: "Container.GET Policy.lock", want: Policy{Days: 4, Locked: true}, ifMatch: map[string]string{"Policy.lock": `"7"`}},
		"lock from nothing":   {lock: ptr(Policy{Days: 4, Locked: true}), calls: "Container.GET Policy.PUT Container.GET Policy.lock", want: Policy{Days: 4, Locked: true}, ifMatch: map[string]string{"Policy.lock": `"1"`}},
		"lock with appends":   {set: func(f *fakeAzure) { f.days, f.appends = 4, true }, lock: ptr(Policy{Days: 4, Locked: true}), calls: "Container.GET Policy.PUT Container.GET Policy.lock", want: Policy{Days: 4, Locked: true}},
		"locked as asked":     {set: func(f *fakeAzure) { f.days, f.locked = 4, true }, lock: ptr(Policy{Days: 4, Locked: true}), calls: "Container.GET", want: Policy{Days: 4, Locked: true}},
		"locked longer":       {set: func(f *fakeAzure) { f.days, f.locked = 9, true }, lock: ptr(Policy{Days: 4, Locked: true}), calls: "Container.GET", want: Policy{Days: 9, Locked: true}},
		"extend":              {set: func(f *fakeAzure) { f.days, f.locked, f.extended, f.etag = 4, true, 4, 7 }, lock: ptr(Policy{Days: 9, Locked: true}), calls: "Container.GET Policy.extend", want: Policy{Days: 9, Locked: true}, ifMatch: map[string]string{"Policy.extend": `"7"`}},
		"extend a sixth time": {set: func(f *fakeAzure) { f.days, f.locked, f.extended = 4, true, 5 }, lock: ptr(Policy{Days: 9, Locked: true}), calls: "Container.GET", want: Policy{Days: 4, Locked: true}, code: codeConfigurationProblem, text: "5 times"},
		"locked longer meanwhile": {set: func(f *fakeAzure) { f.days = 4; meanwhile(f, "Policy.lock", func() { f.days, f.locked = 30, true }) }, lock: ptr(Policy{Days: 4, Locked: true}),
			calls: "Container.GET Policy.lock Container.GET", want: Policy{Days: 30, Locked: true}},
		"raised before lock": {set: func(f *fakeAzure) { f.days = 4; meanwhile(f, "Policy.lock", func() { f.days = 30 }) }, lock: ptr(Policy{Days: 4, Locked: true}),
			calls: "Container.GET Policy.lock Container.GET", want: Policy{Days: 30}, code: codeRetryableDependencies, text: "somebody else changed"},
		"lowered before lock": {set: func(f *fakeAzure) { f.days = 4; meanwhile(f, "Policy.lock", func() { f.days = 1 }) }, lock: ptr(Policy{Days: 4, Locked: true}),
			calls: "Container.GET Policy.lock Container.GET Policy.PUT Container.GET Policy.lock", want: Policy{Days: 4, Locked: true}},
		"extended meanwhile": {set: func(f *fakeAzure) {
			f.days, f.locked = 4, true
			meanwhile(f, "Policy.extend", func() { f.days, f.extended = 6, 5 })
		}, lock: ptr(Policy{Days: 9, Locked: true}), calls: "Container.GET Policy.extend Container.GET", want: Policy{Days: 6, Locked: true}, code: codeConfigurationProblem, text: "5 times"},
		"version-level: set": {set: func(f *fakeAzure) { f.versionLevel = map[string]any{"enabled": true} }, setPolicy: ptr(Policy{Days: 4}),
			calls: "Container.GET", code: codeConfigurationProblem, text: "version-level immutability"},
		"version-level: lock": {set: func(f *fakeAzure) { f.days, f.versionLevel = 4, map[string]any{"enabled": true} }, lock: ptr(Policy{Days: 4, Locked: true}),
			want: Policy{Days: 4}, calls: "Container.GET", code: codeConfigurationProblem, text: "version-level immutability"},
		"version-level: locked": {set: func(f *fakeAzure) { f.days, f.locked, f.versionLevel = 4, true, map[string]any{"enabled": true} }, lock: ptr(Policy{Days: 4, Locked: true}),
			want: Policy{Days: 4, Locked: true}, calls: "Container.GET", code: codeConfigurationProblem, text: "version-level immutability"},
		"version-level account: lock": {set: func(f *fakeAzure) { f.properties["immutableStorageWithVersioning"] = map[string]any{"enabled": true} },
			lock: ptr(Policy{Days: 4, Locked: true}), fresh: true, calls: "Container.GET Account.GET", code: codeConfigurationProblem,
			text: "storage account " + azureAccountName(fakeAzureBucket) + " has version-level immutability"},
		"version-level account: locked": {set: func(f *fakeAzure) {
			f.days, f.locked, f.properties["immutableStorageWithVersioning"] = 4, true, map[string]any{"enabled": true}
		}, lock: ptr(Policy{Days: 4, Locked: true}), fresh: true, want: Policy{Days: 4, Locked: true}, calls: "Container.GET Account.GET",
			code: codeConfigurationProblem, text: "version-level immutability"},
		"version-level: remove": {set: func(f *fakeAzure) { f.days, f.versionLevel = 4, map[string]any{"enabled": true} }, setPolicy: &Policy{}, calls: "Container.GET Policy.DELETE"},
		"denied": {set: func(f *fakeAzure) { f.days = 4; f.on["Policy.lock"] = answerAzure(403, "AuthorizationFailed") }, lock: ptr(Policy{Days: 4, Locked: true}),
			calls: "Container.GET Policy.lock", want: Policy{Days: 4}, code: codeUnauthorized, text: "containers/immutabilityPolicies/lock/action"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			if c.set != nil {
				c.set(f)
			}
			b := f.open(f.ref())
			if !c.fresh {
				b.versionLevels.Store(b.Name+"/"+b.Account, false)
			}
			if _, err := b.Observe(t.Context()); err != nil {
				t.Fatal(err)
			}
			var err error
			if c.setPolicy != nil {
				err = b.SetPolicy(t.Context(), *c.setPolicy)
			} else {
				err = b.LockPolicy(t.Context(), *c.lock)
			}
			f.expect(c.calls)
			if c.code != "" {
				checkAzureError(t, err, c.code, c.text)
			} else if err != nil {
				t.Error(err)
			}
			if got := (Policy{Days: int32(f.days), Locked: f.locked}); got != c.want {
				t.Errorf("the policy is %v, want %v", got, c.want)
			}
			for operation, want := range c.ifMatch {
				if got := f.headers[operation].Get("If-Match"); got != want {
					t.Errorf("%s with If-Match %s, want %s", operation, got, want)
				}
			}
			if put := f.bodies["Policy.PUT"]; put != "" && (!strings.Contains(put, `"allowProtectedAppendWrites":false`) || !strings.Contains(put, `"allowProtectedAppendWritesAll":false`)) {
				t.Errorf("append writes are not off in %s", put)
			}
		})
	}
}

func TestAzureStoreDelete(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(f *fakeAzure)
		calls string
		wait  string
		code  errorCode
	}{
		"empty":                {calls: "Container.GET Account.listKeys List Container.DELETE"},
		"no container":         {set: func(f *fakeAzure) { f.container = false }, calls: "Container.GET"},
		"no account":           {set: func(f *fakeAzure) { f.account = false }, calls: "Container.GET"},
		"no group":             {set: func(f *fakeAzure) { f.group = false }, calls: "Container.GET"},
		"gone before the keys": {set: func(f *fakeAzure) { f.script("Account.listKeys", answerAzure(404, "ResourceNotFound")) }, calls: "Container.GET Account.listKeys"},
		"gone meanwhile":       {set: func(f *fakeAzure) { f.script("Container.DELETE", answerAzure(404, "ResourceGroupNotFound")) }, calls: "Container.GET Account.listKeys List Container.DELETE"},
		"policy": {set: func(f *fakeAzure) { f.script("Container.DELETE", answerAzure(409, "ContainerProtectedFromDeletion")) },
			calls: "Container.GET Account.listKeys List Container.DELETE", wait: "immutability policy"},
		"legal hold": {set: func(f *fakeAzure) {
			f.legalHold = true
			f.script("Container.DELETE", answerAzure(409, "ContainerProtectedFromDeletion"))
		},
			calls: "Container.GET Account.listKeys List Container.DELETE", wait: "legal hold"},
		"denied": {set: func(f *fakeAzure) { f.script("Container.DELETE", answerAzure(403, "AuthorizationFailed")) },
			calls: "Container.GET Account.listKeys List Container.DELETE", code: codeUnauthorized},
		"leased": {set: func(f *fakeAzure) { f.leased = true }, calls: "Container.GET Account.listKeys List Container.DELETE Break Container.DELETE"},
		"leased again and again": {set: func(f *fakeAzure) { f.leased, f.relet = true, true },
			calls: "Container.GET Account.listKeys List Container.DELETE Break Container.DELETE", wait: "holds a lease on container"},
		"leased, and the lease cannot be broken": {set: func(f *fakeAzure) { f.leased = true; f.on["Break"] = answerAzure(403, "AuthorizationFailure") },
			calls: "Container.GET Account.listKeys List Container.DELETE Break Container.DELETE", wait: "holds a lease on container"},
		"leased, and Azure is busy": {set: func(f *fakeAzure) { f.leased = true; f.on["Break"] = answerAzure(503, "ServerBusy") },
			calls: "Container.GET Account.listKeys List Container.DELETE Break Break Break Break", code: codeRetryableDependencies},
		"locked scope": {set: func(f *fakeAzure) { f.script("Container.DELETE", answerAzure(409, "ScopeLocked")) },
			calls: "Container.GET Account.listKeys List Container.DELETE", code: codeConfigurationProblem},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			if c.set != nil {
				c.set(f)
			}
			err := f.open(f.ref()).Delete(t.Context(), anything)
			f.expect(c.calls)
			var wait *waitError
			switch {
			case c.wait != "":
				if !errors.As(err, &wait) || !strings.Contains(wait.reason, c.wait) || wait.after != time.Hour {
					t.Errorf("%v", err)
				}
			case c.code != "":
				checkAzureError(t, err, c.code)
			case err != nil:
				t.Error(err)
			}
		})
	}
	f := newFakeAzure(t)
	f.addBlobs(1, "a/", func(int) time.Duration { return time.Hour })
	if err := f.open(f.ref()).Delete(t.Context(), anything); !errors.Is(err, errBucketNotEmpty) || codeOf(err) != "" {
		t.Error(err)
	}
	f.expect("Container.GET Account.listKeys List")
}

// tags are those of what we made, or others.
func (f *fakeAzure) tags(foreign bool) map[string]string {
	if foreign {
		return map[string]string{"team": "x"}
	}
	return map[string]string{strings.ToUpper(azureTag): f.bucket}
}
