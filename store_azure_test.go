package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
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
	"os"
	"path/filepath"
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
	// foreignGroup and foreignAccount: we did not make them.
	foreignGroup, foreignAccount bool
	bucket                       string // that they are of
}

// tags are those of what we made, or others.
func (f *fakeAzure) tags(foreign bool) map[string]string {
	if foreign {
		return map[string]string{"team": "x"}
	}
	return map[string]string{strings.ToUpper(azureTag): f.bucket}
}

func newFakeAzure(t *testing.T) *fakeAzure {
	f := &fakeAzure{
		t: t, bodies: map[string]string{}, headers: map[string]http.Header{}, on: map[string]func(http.ResponseWriter, *http.Request, string) bool{},
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
			var list []map[string]any
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
	if r.URL.Query().Get("comp") == "batch" {
		operation = "Batch"
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

func TestLoadAzureClouds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clouds.json")
	load := func(content string) (azureClouds, error) {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return loadAzureClouds(file)
	}
	const good = `"activeDirectoryAuthorityHost": "https://login.example.com/", "resourceManagerEndpoint": "https://arm.example.com", "resourceManagerAudience": "https://arm.example.com"`
	entry := func(name, endpoint string) string {
		return fmt.Sprintf(`%q: {%s, "blobEndpoint": %q}`, name, good, endpoint)
	}
	clouds, err := load("{" + entry("Mine", "https://{account}.blob.Example.com/") + "," + entry("Local", "http://127.0.0.1:10000/{account}") + "}")
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]string{
		"blob.example.com":           "https://acc.blob.Example.com/bucket",
		"127.0.0.1:10000":            "http://127.0.0.1:10000/acc/bucket",
		"blob.core.chinacloudapi.cn": "https://acc.blob.core.chinacloudapi.cn/bucket",
		"blob.elsewhere.example":     "https://acc.blob.elsewhere.example/bucket",
	} {
		if got := clouds.ofDomain(domain).url("acc", "bucket"); got != want {
			t.Errorf("%s: %s, want %s", domain, got, want)
		}
	}
	for _, c := range []struct{ name, region, want string }{
		{"mine", "chinaeast", "Mine"}, {"AZURECHINA", "westeurope", "AzureChina"}, {"", "westeurope", "AzurePublic"}, {"", "ChinaNorth", "AzureChina"},
		{"", "usgovvirginia", "AzureGovernment"}, {"", "USDoDeast", "AzureGovernment"}, {"", "usseceast", "AzureGovernment"},
	} {
		if got, err := clouds.choose(c.name, c.region); err != nil || got.name != c.want {
			t.Errorf("%+v: %v %v", c, got, err)
		}
	}
	_, err = clouds.choose("Other", "westeurope")
	checkAzureError(t, err, codeConfigurationProblem, "spec.providerConfig.cloudConfiguration.name", `"Other"`, "AzureChina, AzureGovernment, AzurePublic, Local, Mine")
	if none, err := loadAzureClouds(""); err != nil || len(none) != 0 {
		t.Errorf("no file: %v %v", none, err)
	}
	if _, err := loadAzureClouds(file + ".missing"); err == nil {
		t.Error("a missing file is no error")
	}
	for name, content := range map[string]string{
		"not JSON":          `[`,
		"a list":            `[]`,
		"unknown field":     `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "surprise": 1}}`,
		"twice":             `{` + entry("A", "https://{account}.a.example") + `,` + entry("A", "https://{account}.b.example") + `}`,
		"twice by case":     `{` + entry("A", "https://{account}.a.example") + `,` + entry("a", "https://{account}.b.example") + `}`,
		"built in":          `{` + entry("azurepublic", "https://{account}.a.example") + `}`,
		"no name":           `{` + entry("", "https://{account}.a.example") + `}`,
		"same domain":       `{` + entry("A", "https://{account}.a.example") + `,` + entry("B", "https://a.example/{account}") + `}`,
		"built-in domain":   `{` + entry("A", "https://{account}.blob.core.windows.net") + `}`,
		"plain authority":   `{"A": {"activeDirectoryAuthorityHost": "http://a", "resourceManagerEndpoint": "https://a", "resourceManagerAudience": "a", "blobEndpoint": "https://{account}.a"}}`,
		"no audience":       `{"A": {"activeDirectoryAuthorityHost": "https://a", "resourceManagerEndpoint": "https://a", "blobEndpoint": "https://{account}.a"}}`,
		"no endpoint":       `{"A": {` + good + `}}`,
		"no account":        `{` + entry("A", "https://blob.example.com") + `}`,
		"account twice":     `{` + entry("A", "https://{account}.example.com/{account}") + `}`,
		"account elsewhere": `{` + entry("A", "https://blob.{account}.example.com") + `}`,
		"account in query":  `{` + entry("A", "https://example.com/?a={account}") + `}`,
		"deeper path":       `{` + entry("A", "https://example.com/x/{account}") + `}`,
		"other scheme":      `{` + entry("A", "ftp://{account}.example.com") + `}`,
	} {
		if clouds, err := load(content); err == nil {
			t.Errorf("%s: %v", name, clouds)
		}
	}
}

func TestAzureStoreCredentials(t *testing.T) {
	f := newFakeAzure(t)
	with := func(change ...string) map[string][]byte {
		c := fakeAzureCredentials()
		for i := 0; i < len(change); i += 2 {
			c[change[i]] = []byte(change[i+1])
		}
		return c
	}
	workload := `{"apiVersion":"azure.provider.extensions.gardener.cloud/v1alpha1","kind":"WorkloadIdentityConfig","subscriptionID":"s","tenantID":"t","clientID":"c"}`
	entry := func(change ...string) map[string][]byte {
		c := map[string][]byte{"storageAccount": []byte("account"), "storageKey": []byte(fakeAzureKey)}
		for i := 0; i < len(change); i += 2 {
			c[change[i]] = []byte(change[i+1])
		}
		return c
	}
	store := func(c map[string][]byte) error { _, err := f.clients.openStore(f.ref(), c); return err }
	objects := func(c map[string][]byte) error { _, err := f.clients.openObjects(f.ref(), c); return err }
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"good":                  {store(with()), ""},
		"workload identity":     {store(map[string][]byte{"token": []byte("t"), "config": []byte(workload)}), ""},
		"workload identity IDs": {store(with("clientSecret", "", "token", "t")), ""},
		"both":                  {store(with("token", "t")), "both clientSecret and token"},
		"no secret":             {store(with("clientSecret", " \n")), "lacks clientSecret"},
		"nothing":               {store(nil), "lacks subscriptionID, tenantID, clientID, clientSecret"},
		"of an entry":           {store(entry()), "lacks subscriptionID, tenantID, clientID, clientSecret"},
		"no token":              {store(map[string][]byte{"config": []byte(workload)}), "lacks token"},
		"bad config":            {store(map[string][]byte{"token": []byte("t"), "config": []byte("\tx")}), "WorkloadIdentityConfig"},
		"config without IDs":    {store(map[string][]byte{"token": []byte("t"), "config": []byte("{}")}), "subscriptionID neither"},
		"path in ID":            {store(with("subscriptionID", "../x")), "subscriptionID"},
		"tenant":                {store(with("tenantID", "a b")), "tenantID"},
		"entry":                 {objects(entry()), ""},
		"entry of a bucket":     {objects(with()), "lacks storageAccount, storageKey"},
		"entry without key":     {objects(entry("storageKey", "")), "lacks storageKey"},
		"entry: key":            {objects(entry("storageKey", "!!!")), "storageKey"},
		"entry: account":        {objects(entry("storageAccount", "a/b")), "storageAccount"},
		"entry: domain":         {objects(entry("domain", "evil.example/x?")), "domain"},
	} {
		if c.want == "" {
			if c.err != nil {
				t.Errorf("%s: %v", name, c.err)
			}
			continue
		}
		var config *configError
		if !errors.As(c.err, &config) {
			t.Errorf("%s: %v is no configError", name, c.err)
			continue
		}
		checkAzureError(t, c.err, codeConfigurationProblem, c.want)
	}
	f.expect("")
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
			want: BucketState{Exists: true, Policy: Policy{Days: 4}, Extensions: &five}},
		"migrating to version-level": {set: func(f *fakeAzure) {
			f.days, f.locked, f.versionLevel = 4, true, map[string]any{"enabled": false, "migrationState": "InProgress"}
		}, want: BucketState{Exists: true, Policy: Policy{Days: 4}, Extensions: &five}},
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
			f.expect("Container.GET")
			if c.code != "" {
				checkAzureError(t, err, c.code, c.text)
				return
			}
			if err != nil || got.Exists != c.want.Exists || got.Remains != c.want.Remains || got.Policy != c.want.Policy || got.Appends != c.want.Appends || deref(got.Extensions) != deref(c.want.Extensions) {
				t.Errorf("%+v %v, want %+v", got, err, c.want)
			}
		})
	}
}

func TestAzureStoreClientsAreReused(t *testing.T) {
	f := newFakeAzure(t)
	for range 3 {
		b := f.open(f.ref())
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Keys(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"Discovery", "Token", "Container.GET", "Account.listKeys", "Container.GET", "Account.listKeys", "Container.GET", "Account.listKeys"}; !slices.Equal(f.calls, want) {
		t.Errorf("requests: %v", f.calls)
	}
	if !strings.Contains(f.bodies["Token"], "client_secret="+fakeAzureSecret) {
		t.Errorf("token request %s", f.bodies["Token"])
	}
	for i := range 2 * maxClients {
		c := fakeAzureCredentials()
		c["clientID"] = []byte(strconv.Itoa(i))
		if _, err := f.clients.openStore(f.ref(), c); err != nil {
			t.Fatal(err)
		}
		f.open(f.ref())
	}
	if len(f.clients.cache.clients) != maxClients {
		t.Errorf("%d clients", len(f.clients.cache.clients))
	}
	f.take()
	if _, err := f.open(f.ref()).Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(f.calls) != 1 {
		t.Errorf("the client in use was dropped: %v", f.calls)
	}
	// Workload identity: the token is the assertion.
	c := fakeAzureCredentials()
	delete(c, "clientSecret")
	c["token"] = []byte("an-assertion")
	store, err := f.clients.openStore(f.ref(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.bodies["Token"], "client_assertion=an-assertion") {
		t.Errorf("token request %s", f.bodies["Token"])
	}
}

func TestAzureStoreTokenErrors(t *testing.T) {
	entra := func(status int, name string, code int) func(http.ResponseWriter, *http.Request, string) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			fakeAzureJSON(w, status, map[string]any{"error": name, "error_codes": []int{code}, "error_description": "AADSTS" + strconv.Itoa(code) + " Trace ID aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"})
			return true
		}
	}
	always := func(answer func(http.ResponseWriter, *http.Request, string) bool) []func(http.ResponseWriter, *http.Request, string) bool {
		return slices.Repeat([]func(http.ResponseWriter, *http.Request, string) bool{answer}, 20)
	}
	for name, c := range map[string]struct {
		operation string
		answer    func(http.ResponseWriter, *http.Request, string) bool
		code      errorCode
		text      string
		requests  int
	}{
		"tenant":       {"Discovery", entra(400, "invalid_tenant", 90002), codeUnauthenticated, "(AADSTS90002): check tenantID in the credentials secret", 1},
		"client":       {"Token", entra(400, "unauthorized_client", 700016), codeUnauthenticated, "check clientID in", 2},
		"secret":       {"Token", entra(401, "invalid_client", 7000215), codeUnauthenticated, "check clientSecret in", 2},
		"expired":      {"Token", entra(401, "invalid_client", 7000222), codeUnauthenticated, "check clientSecret in", 2},
		"unknown code": {"Token", entra(401, "invalid_client", 1), codeUnauthenticated, "check clientID, clientSecret in", 2},
		"no code":      {"Token", entra(400, "invalid_grant", 0), codeUnauthenticated, "check tenantID, clientID, clientSecret in", 2},
		"not Entra":    {"Discovery", func(w http.ResponseWriter, _ *http.Request, _ string) bool { http.NotFound(w, nil); return true }, codeRetryableConfiguration, "HTTP status 404", 1},
		"down":         {"Token", entra(503, "temporarily_unavailable", 0), codeRetryableDependencies, "HTTP status 503", 1 + 4},
		"hangs up": {"Token", func(http.ResponseWriter, *http.Request, string) bool { panic(http.ErrAbortHandler) },
			codeRetryableDependencies, "no token from Microsoft Entra ID: ", 1 + 4},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			f.script(c.operation, always(c.answer)...)
			b := f.open(f.ref())
			_, err := b.Observe(t.Context())
			checkAzureError(t, err, c.code, c.text)
			if len(f.calls) != c.requests {
				t.Errorf("%d requests: %v", len(f.calls), f.calls)
			}
			if _, again := b.Observe(t.Context()); again == nil || again.Error() != err.Error() {
				t.Errorf("the error changes: %v, %v", err, again)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		f := newFakeAzure(t)
		f.arm.Close()
		_, err := f.open(f.ref()).Observe(t.Context())
		checkAzureError(t, err, codeRetryableDependencies, "no token from Microsoft Entra ID: ", "cannot be reached")
	})
	t.Run("canceled", func(t *testing.T) {
		f := newFakeAzure(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := f.open(f.ref()).Observe(ctx)
		checkAzureError(t, err, "", "the request was canceled")
	})
}

func TestAzureStoreErrorClasses(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   errorCode
		text   string
	}{
		{401, "InvalidAuthenticationTokenTenant", codeUnauthenticated, "another tenant"},
		{401, "ExpiredAuthenticationToken", codeUnauthenticated, "does not accept the credentials"},
		{400, "InvalidSubscriptionId", codeUnauthenticated, "subscriptionID"},
		{403, "AuthorizationFailed", codeUnauthorized, "Microsoft.Storage/storageAccounts/listKeys/action"},
		{403, "RequestDisallowedByPolicy", codeConfigurationProblem, "RequestDisallowedByPolicy: Because of"},
		{409, "MissingSubscriptionRegistration", codeConfigurationProblem, "Microsoft.Storage"},
		{409, "StorageAccountOperationInProgress", codeRetryableDependencies, "StorageAccountOperationInProgress"},
		{409, "ScopeLocked", codeConfigurationProblem, "remove the lock"},
		{409, "QuotaExceeded", codeQuotaExceeded, "QuotaExceeded"},
		{409, "SomethingNew", codeRetryableDependencies, "SomethingNew"},
		{400, "SomethingNew", codeConfigurationProblem, "SomethingNew"},
		{500, "InternalError", codeRetryableDependencies, "InternalError"},
		{429, "SubscriptionRequestsThrottled", codeRateLimitsExceeded, "SubscriptionRequestsThrottled"},
		{401, "", codeUnauthenticated, "HTTP status 401"},
		{404, "ContainerNotFound", codeRetryableDependencies, "ContainerNotFound"},
		{404, "ParentResourceNotFound", codeRetryableDependencies, "ParentResourceNotFound"},
		{404, "ResourceGroupNotFound", codeRetryableDependencies, "ResourceGroupNotFound"},
		{404, "ResourceNotFound", codeRetryableDependencies, "ResourceNotFound"},
	} {
		f := newFakeAzure(t)
		f.on["Account.listKeys"] = answerAzure(c.status, c.code)
		b := f.open(f.ref())
		_, err := b.Keys(t.Context())
		checkAzureError(t, err, c.want, "Azure StorageAccounts.ListKeys for bucket", c.text)
		if _, again := b.Keys(t.Context()); again.Error() != err.Error() {
			t.Errorf("the error changes: %v, %v", err, again)
		}
	}
}

func TestAzureStoreRetriesAndMetrics(t *testing.T) {
	f := newFakeAzure(t)
	f.script("Container.GET", answerAzure(503, "ServerBusy"), answerAzure(429, "TooManyRequests"))
	if _, err := f.open(f.ref()).Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.expect("Container.GET Container.GET Container.GET")
	f.account = false
	if _, err := f.open(f.ref()).Observe(t.Context()); err != nil {
		t.Fatal(err)
	}
	families, err := f.clients.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, family := range families {
		if family.GetName() != "bucketwarden_store_request_duration_seconds" {
			continue
		}
		for _, m := range family.Metric {
			labels := map[string]string{}
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			got[labels["store"]+" "+labels["operation"]+" "+labels["outcome"]] = m.GetHistogram().GetSampleCount()
		}
	}
	want := map[string]uint64{"azure Token success": 2, "azure BlobContainers.Get throttled": 2, "azure BlobContainers.Get success": 1, "azure BlobContainers.Get expected": 1}
	if !maps.Equal(got, want) {
		t.Errorf("observed %v, want %v", got, want)
	}
}

func TestAzureStoreCreate(t *testing.T) {
	t.Run("from nothing", func(t *testing.T) {
		f := newFakeAzure(t)
		f.group, f.account, f.container = false, false, false
		ref := f.ref()
		ref.KeyExpirationDays = 90
		b := f.open(ref)
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.script("Poll", func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.WriteHeader(http.StatusAccepted)
			return true
		})
		if err := b.Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET CheckName Group.GET Group.PUT Account.GET Account.PUT Poll Poll Container.PUT")
		if got := f.bodies["Group.PUT"]; got != `{"location":"westeurope","tags":{"bucketwarden-bucket":"seed-backup"}}` {
			t.Errorf("group %s", got)
		}
		for _, want := range []string{`"kind":"StorageV2"`, `"name":"Standard_ZRS"`, `"accessTier":"Cool"`, `"supportsHttpsTrafficOnly":true`, `"minimumTlsVersion":"TLS1_2"`,
			`"tags":{"bucketwarden-bucket":"seed-backup"}`, `"allowBlobPublicAccess":false`, `"keyExpirationPeriodInDays":90`, `"location":"westeurope"`} {
			if !strings.Contains(f.bodies["Account.PUT"], want) {
				t.Errorf("%s is not in %s", want, f.bodies["Account.PUT"])
			}
		}
		if !strings.Contains(f.bodies["Container.PUT"], `"publicAccess":"None"`) {
			t.Errorf("container %s", f.bodies["Container.PUT"])
		}
		// What exists is adopted.
		if err := b.Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET")
	})
	t.Run("adopts a group and an account", func(t *testing.T) {
		f := newFakeAzure(t)
		f.account, f.container = false, false
		if err := f.open(f.ref()).Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET Account.GET Account.PUT Poll Container.PUT")
		f.container = false
		if err := f.open(f.ref()).Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET Container.PUT")
	})
	t.Run("a group that appeared is not written", func(t *testing.T) {
		f := newFakeAzure(t)
		f.group, f.account, f.container = false, false, false
		b := f.open(f.ref())
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.group = true
		if err := b.Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET CheckName Group.GET Account.GET Account.PUT Poll Container.PUT")
	})
	t.Run("a taken name leaves no group behind", func(t *testing.T) {
		f := newFakeAzure(t)
		f.group, f.account, f.container = false, false, false
		f.script("CheckName", func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			fakeAzureJSON(w, http.StatusOK, map[string]any{"nameAvailable": false, "reason": "AlreadyExists"})
			return true
		}, answerAzure(403, "AuthorizationFailed"))
		err := f.open(f.ref()).Create(t.Context(), true)
		checkAzureError(t, err, codeConfigurationProblem, "is taken")
		if !errors.Is(err, errNotOurBucket) {
			t.Error(err)
		}
		f.expect("Container.GET CheckName")
		// Whoever may not ask finds out.
		if err := f.open(f.ref()).Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET CheckName Group.GET Group.PUT Account.GET Account.PUT Poll Container.PUT")
	})
	t.Run("a failed check of the name makes no group", func(t *testing.T) {
		for _, c := range []struct {
			status int
			code   string
			want   errorCode
		}{{429, "TooManyRequests", codeRateLimitsExceeded}, {503, "ServerBusy", codeRetryableDependencies}, {401, "ExpiredAuthenticationToken", codeUnauthenticated}, {409, "MissingSubscriptionRegistration", codeConfigurationProblem}} {
			f := newFakeAzure(t)
			f.group, f.account, f.container = false, false, false
			f.on["CheckName"] = answerAzure(c.status, c.code)
			checkAzureError(t, f.open(f.ref()).Create(t.Context(), true), c.want, "StorageAccounts.CheckName", c.code)
			if f.group {
				t.Errorf("%s: the group was made", c.code)
			}
		}
	})
	t.Run("not known everywhere yet", func(t *testing.T) {
		for operation, code := range map[string]string{"Account.GET": "SubscriptionNotFound", "Account.PUT": "ResourceGroupNotFound", "Container.PUT": "ParentResourceNotFound", "Poll": "ResourceNotFound"} {
			f := newFakeAzure(t)
			f.account, f.container = false, false
			f.script(operation, answerAzure(404, code))
			want := codeRetryableDependencies
			if code == "SubscriptionNotFound" {
				want = codeUnauthenticated
			}
			checkAzureError(t, f.open(f.ref()).Create(t.Context(), true), want, code)
		}
	})
	t.Run("half made", func(t *testing.T) {
		f := newFakeAzure(t)
		f.account, f.container = false, false
		f.script("Poll", answerAzure(409, "SomethingFailed"))
		b := f.open(f.ref())
		checkAzureError(t, b.Create(t.Context(), true), codeRetryableDependencies, "StorageAccounts.Create")
		f.properties["provisioningState"] = "Creating"
		f.script("Container.GET", answerAzure(404, "ResourceNotFound"), answerAzure(404, "ResourceNotFound"))
		checkAzureError(t, b.Create(t.Context(), true), codeRetryableDependencies, "in state Creating")
		f.properties["provisioningState"] = "Failed"
		f.script("Poll", func(http.ResponseWriter, *http.Request, string) bool {
			f.properties["provisioningState"] = "Succeeded"
			return false
		})
		f.take()
		if err := b.Create(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		f.expect("Container.GET Account.GET Account.PUT Poll Container.PUT")
	})
	for code, want := range map[string]struct {
		operation string
		status    int
		texts     []string
		notOurs   bool
	}{
		"StorageAccountAlreadyTaken":           {"Account.PUT", 409, []string{"is taken", azureAccountName(fakeAzureBucket)}, true},
		"StorageAccountInAnotherResourceGroup": {"Account.PUT", 409, []string{"is taken"}, true},
		"StorageAccountAlreadyExists":          {"Account.PUT", 409, []string{"is taken"}, true},
		"LocationNotAvailableForResourceGroup": {"Group.PUT", 400, []string{`region "westeurope" does not exist`}, false},
		"LocationNotAvailableForResourceType":  {"Account.PUT", 400, []string{`region "westeurope" does not exist`}, false},
		"SkuNotAvailable":                      {"Account.PUT", 409, []string{"zone-redundant"}, false},
	} {
		t.Run(code, func(t *testing.T) {
			f := newFakeAzure(t)
			f.group, f.account, f.container = false, false, false
			f.script(want.operation, answerAzure(want.status, code))
			err := f.open(f.ref()).Create(t.Context(), true)
			checkAzureError(t, err, codeConfigurationProblem, want.texts...)
			if errors.Is(err, errNotOurBucket) != want.notOurs {
				t.Errorf("errNotOurBucket: %t", !want.notOurs)
			}
			if strings.Contains(f.take(), "Container.PUT") {
				t.Error("went on")
			}
		})
	}
}

func TestAzureStoreHarden(t *testing.T) {
	harden := func(f *fakeAzure, expiration int32) []string {
		t.Helper()
		ref := f.ref()
		ref.KeyExpirationDays = expiration
		gaps, err := f.open(ref).Harden(t.Context())
		if err != nil {
			t.Error(err)
		}
		return gaps
	}
	t.Run("nothing to do", func(t *testing.T) {
		f := newFakeAzure(t)
		f.location, f.properties["minimumTlsVersion"] = "West Europe", "TLS1_3"
		if gaps := harden(f, 0); len(gaps) > 0 {
			t.Error(gaps)
		}
		f.expect("Container.GET Account.GET")
	})
	t.Run("only what is weaker", func(t *testing.T) {
		f := newFakeAzure(t)
		f.properties["minimumTlsVersion"], f.properties["allowBlobPublicAccess"] = "TLS1_0", true
		for range 2 {
			if gaps := harden(f, 30); len(gaps) > 0 {
				t.Error(gaps)
			}
		}
		f.expect("Container.GET Account.GET Account.PATCH Container.GET Account.GET")
		if got := f.bodies["Account.PATCH"]; got != `{"properties":{"allowBlobPublicAccess":false,"keyPolicy":{"keyExpirationPeriodInDays":30},"minimumTlsVersion":"TLS1_2"}}` {
			t.Error(got)
		}
	})
	t.Run("gaps", func(t *testing.T) {
		f := newFakeAzure(t)
		f.sku, f.kind, f.location, f.public, f.days, f.appends = "Standard_LRS", "BlobStorage", "northeurope", "Blob", 4, true
		f.properties["allowSharedKeyAccess"] = false
		gaps := harden(f, 0)
		for i, want := range []string{"public access", "append writes", "zone-redundant", "kind BlobStorage", "northeurope", "keys"} {
			if i >= len(gaps) || !strings.Contains(gaps[i], want) {
				t.Errorf("%q is not gap %d of %q", want, i, gaps)
			}
		}
		f.expect("Container.GET Account.GET")
	})
	t.Run("appends", func(t *testing.T) {
		for _, c := range []struct {
			locked   bool
			recorded Policy
			gap      bool
		}{
			{false, Policy{Days: 4}, false}, // bucket.go ends that
			{false, Policy{}, true}, {false, Policy{Days: 5}, true}, {true, Policy{Days: 4, Locked: true}, true}, {true, Policy{Days: 4}, true},
		} {
			f := newFakeAzure(t)
			f.days, f.appends, f.locked = 4, true, c.locked
			ref := f.ref()
			ref.Recorded = c.recorded
			gaps, err := f.open(ref).Harden(t.Context())
			if err != nil || (len(gaps) > 0) != c.gap || c.gap && !strings.Contains(gaps[0], "append writes") {
				t.Errorf("%+v: %q %v", c, gaps, err)
			}
			f.expect("Container.GET Account.GET")
		}
	})
	t.Run("version-level", func(t *testing.T) {
		f := newFakeAzure(t)
		f.days, f.locked, f.versionLevel = 4, true, map[string]any{"enabled": true}
		if gaps := harden(f, 0); len(gaps) != 1 || !strings.Contains(gaps[0], "version-level immutability") {
			t.Error(gaps)
		}
	})
	t.Run("denied", func(t *testing.T) {
		f := newFakeAzure(t)
		f.properties["allowBlobPublicAccess"] = true
		f.on["Account.PATCH"] = answerAzure(403, "AuthorizationFailed")
		if gaps := harden(f, 0); len(gaps) != 1 || !strings.Contains(gaps[0], "Microsoft.Storage/storageAccounts/write") {
			t.Error(gaps)
		}
		f.on["Account.GET"] = answerAzure(403, "AuthorizationFailed")
		if gaps := harden(f, 0); len(gaps) != 1 || !strings.Contains(gaps[0], "Microsoft.Storage/storageAccounts/read") {
			t.Error(gaps)
		}
	})
	t.Run("key policy refused", func(t *testing.T) {
		f := newFakeAzure(t)
		f.properties["allowBlobPublicAccess"] = true
		f.script("Account.PATCH", answerAzure(400, "InvalidRequestPropertyValue"))
		if gaps := harden(f, 30); len(gaps) != 1 || !strings.Contains(gaps[0], "InvalidRequestPropertyValue") {
			t.Error(gaps)
		}
		f.expect("Container.GET Account.GET Account.PATCH Account.PATCH")
		if got := f.bodies["Account.PATCH"]; got != `{"properties":{"allowBlobPublicAccess":false}}` {
			t.Error(got)
		}
		f.script("Account.PATCH", answerAzure(409, "InvalidRequestPropertyValue"))
		if gaps := harden(f, 30); len(gaps) != 1 {
			t.Error(gaps)
		}
		f.expect("Container.GET Account.GET Account.PATCH")
		delete(f.properties, "keyCreationTime")
		if gaps := harden(f, 30); len(gaps) != 1 || !strings.Contains(gaps[0], "rotated once") {
			t.Error(gaps)
		}
		f.expect("Container.GET Account.GET")
	})
	t.Run("busy", func(t *testing.T) {
		f := newFakeAzure(t)
		f.on["Account.PATCH"] = answerAzure(409, "StorageAccountOperationInProgress")
		ref := f.ref()
		ref.KeyExpirationDays = 30
		_, err := f.open(ref).Harden(t.Context())
		checkAzureError(t, err, codeRetryableDependencies)
	})
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

func TestAzureStoreKeys(t *testing.T) {
	f := newFakeAzure(t)
	b := f.open(f.ref())
	keys, err := b.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 2 || keys[0].Name != "key1" || keys[1].Name != "key2" || keys[0].Created.IsZero() || !keys[1].Created.IsZero() {
		t.Errorf("keys %+v", keys)
	}
	if _, err := b.RegenerateKey(t.Context(), "key2"); err != nil {
		t.Fatal(err)
	}
	if got := f.bodies["Account.regenerateKey"]; got != `{"keyName":"key2"}` {
		t.Error(got)
	}
	if b.key != fakeAzureKey {
		t.Error("the new key is used at once")
	}
	got := b.EntryCredentials(keys[0])
	if len(got) != 3 || string(got["storageAccount"]) != azureAccountName(fakeAzureBucket) || string(got["storageKey"]) != fakeAzureKey || string(got["domain"]) != strings.TrimPrefix(f.blob.URL, "http://") {
		t.Errorf("%q", got)
	}
	if _, err := f.clients.openObjects(f.ref(), got); err != nil {
		t.Error(err)
	}
}

func TestAzureStorePurgeCounts(t *testing.T) {
	hour := func(i int) time.Duration { return time.Duration(i) * time.Second }
	for name, c := range map[string]struct {
		recorded       Policy
		set            func(f *fakeAzure)
		age            func(i int) time.Duration
		deleted, kept  int64
		requests       int
		untilKnown     bool
		requestsAtMost bool
	}{
		"deletable":                 {age: hour, deleted: 5000, requests: 21},
		"retained for long":         {recorded: Policy{Days: azureMaxRetentionDays}, age: hour, kept: 5000, requests: 1, untilKnown: true},
		"deletable after retention": {recorded: Policy{Days: 1}, age: func(i int) time.Duration { return 25*time.Hour + hour(i) }, deleted: 5000, requests: 21},
		"retained":                  {recorded: Policy{Days: 1}, age: hour, kept: 5000, requests: 1, untilKnown: true},
		"retained, not known": {age: hour, set: func(f *fakeAzure) {
			f.refuse = func(fakeAzureBlob) (int, string) { return 409, "BlobImmutableDueToPolicy" }
		}, kept: 5000, requests: 5, requestsAtMost: true},
		"legal hold, not known": {age: hour, set: func(f *fakeAzure) {
			f.refuse = func(fakeAzureBlob) (int, string) { return 409, "BlobImmutableDueToLegalHold" }
		}, kept: 5000, requests: 5, requestsAtMost: true},
		"half retained, not known": {age: hour, set: func(f *fakeAzure) {
			f.refuse = func(b fakeAzureBlob) (int, string) {
				if b.created.After(f.now.Add(-2500 * time.Second)) {
					return 409, "BlobImmutableDueToPolicy"
				}
				return 0, ""
			}
		}, deleted: 2500, kept: 2500, requests: 14, requestsAtMost: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			f.addBlobs(5000, "shoot--a/", c.age)
			if c.set != nil {
				c.set(f)
			}
			result, err := testPurge(t.Context(), f.entry(c.recorded), "shoot--a/", nil)
			if err != nil {
				t.Fatal(err)
			}
			if result.Deleted != c.deleted || result.Retained != c.kept || result.DeletedBytes != 10*c.deleted || result.RetainedBytes != 10*c.kept {
				t.Errorf("%+v", result)
			}
			if int64(len(f.deleted)) != c.deleted {
				t.Errorf("%d were deleted", len(f.deleted))
			}
			if n := len(f.calls); n != c.requests && !(c.requestsAtMost && n <= c.requests) {
				t.Errorf("%d requests: %v", n, f.calls)
			}
			if c.untilKnown != !result.RetainedUntil.IsZero() {
				t.Errorf("until %v", result.RetainedUntil)
			}
			if c.untilKnown {
				if want := f.now.AddDate(0, 0, int(c.recorded.Days)); !result.RetainedUntil.Equal(want) {
					t.Errorf("until %v, want %v", result.RetainedUntil, want)
				}
			}
		})
	}
}

func TestAzureStorePurge(t *testing.T) {
	minute := func(i int) time.Duration { return time.Duration(i+1) * time.Minute }
	t.Run("with the credentials of a bucket", func(t *testing.T) {
		f := newFakeAzure(t)
		f.days = 1
		f.addBlobs(3, "a/", minute)
		f.addBlobs(2, "b/", func(int) time.Duration { return 48 * time.Hour })
		b := f.open(f.ref())
		result, err := testPurge(t.Context(), b, "", nil)
		if err != nil || result.Deleted != 2 || result.Retained != 3 || !result.RetainedUntil.Equal(f.now.Add(24*time.Hour-time.Minute)) {
			t.Errorf("%+v %v", result, err)
		}
		f.expect("Container.GET Account.listKeys List Batch")
		if _, err := testPurge(t.Context(), b, "", nil); err != nil {
			t.Error(err)
		}
		f.expect("List")
	})
	t.Run("legal hold", func(t *testing.T) {
		f := newFakeAzure(t)
		f.legalHold = true
		f.addBlobs(3, "a/", minute)
		result, err := testPurge(t.Context(), f.open(f.ref()), "", nil)
		if err != nil || result.Retained != 3 || !result.RetainedUntil.IsZero() {
			t.Errorf("%+v %v", result, err)
		}
		f.expect("Container.GET Account.listKeys List")
	})
	t.Run("blobs of their own", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(4, "a/", minute)
		f.blobs[1].held = true
		f.blobs[2].until = f.now.Add(time.Hour)
		f.blobs[3].until = f.now.Add(-time.Hour)
		result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		if err != nil || result.Deleted != 2 || result.Retained != 2 || !result.RetainedUntil.IsZero() {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("until dates", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(2, "a/", minute)
		f.blobs[0].until = f.now.Add(time.Hour)
		result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		if err != nil || result.Deleted != 1 || result.Retained != 1 || !result.RetainedUntil.Equal(f.now.Add(time.Hour)) {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("append blobs", func(t *testing.T) {
		f := newFakeAzure(t)
		f.days = 1
		old := f.now.Add(-48 * time.Hour)
		f.blobs = []fakeAzureBlob{{name: "a/block", created: old}, {name: "a/free", created: old, appended: f.now.Add(-25 * time.Hour)}, {name: "a/young", created: old, appended: f.now.Add(-time.Hour)}}
		result, err := testPurge(t.Context(), f.open(f.ref()), "a/", nil)
		if err != nil || result.Deleted != 2 || result.Retained != 1 || !result.RetainedUntil.Equal(f.now.Add(23*time.Hour)) || slices.Contains(f.deleted, "a/young") {
			t.Errorf("%+v %v, deleted %v", result, err, f.deleted)
		}
	})
	t.Run("append blobs tell nothing about others", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(2000, "a/", func(int) time.Duration { return 24 * time.Hour })
		f.blobs = append(f.blobs, fakeAzureBlob{name: "a/appended", created: f.now.Add(-48 * time.Hour), appended: f.now.Add(-time.Hour)})
		f.refuse = func(b fakeAzureBlob) (int, string) {
			if b.name == "a/appended" {
				return 409, "BlobImmutableDueToPolicy"
			}
			return 0, ""
		}
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result.Deleted != 2000 || result.Retained != 1 {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("version-level", func(t *testing.T) {
		f := newFakeAzure(t)
		f.days, f.versionLevel = 4, map[string]any{"enabled": true}
		f.addBlobs(2, "a/", minute)
		f.blobs[0].until = f.now.Add(time.Hour)
		if result, err := testPurge(t.Context(), f.open(f.ref()), "", nil); err != nil || result.Deleted != 1 || !result.RetainedUntil.Equal(f.now.Add(time.Hour)) {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("versions", func(t *testing.T) {
		f := newFakeAzure(t)
		f.blobs = []fakeAzureBlob{
			{name: "a/x", version: "1", previous: true, created: f.now.Add(-time.Hour)},
			{name: "a/x", version: "2", created: f.now.Add(-time.Minute)},
		}
		if _, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil {
			t.Fatal(err)
		}
		if len(f.blobs) != 0 {
			t.Errorf("left: %+v", f.blobs)
		}
		f.expect("List Batch List Batch List")
	})
	t.Run("somebody keeps writing", func(t *testing.T) {
		f := newFakeAzure(t)
		f.on["List"] = func(http.ResponseWriter, *http.Request, string) bool {
			f.blobs = []fakeAzureBlob{{name: "a/x", version: "1", previous: true, created: f.now}}
			return false
		}
		_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		checkAzureError(t, err, "", "still lists")
	})
	t.Run("errors of parts", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(600, "a/", minute)
		tries := map[string]int{}
		f.refuse = func(b fakeAzureBlob) (int, string) {
			tries[b.name]++
			switch {
			case b.name == "a/00001" && tries[b.name] < 4:
				return 503, "ServerBusy"
			case b.name == "a/00002" && tries[b.name] < 2:
				return 500, "OperationTimedOut"
			}
			return 0, ""
		}
		result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		if err != nil || result.Deleted != 600 {
			t.Errorf("%+v %v", result, err)
		}
		f.expect("List Batch Batch Batch Batch Batch Batch")
	})
	t.Run("always busy", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(3, "a/", minute)
		f.refuse = func(b fakeAzureBlob) (int, string) { return 503, "ServerBusy" }
		_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
		checkAzureError(t, err, codeRetryableDependencies, "Blobs.Batch", "ServerBusy", "a/0000")
		f.expect("List Batch Batch Batch Batch")
	})
	t.Run("refused part", func(t *testing.T) {
		for range 5 {
			f := newFakeAzure(t)
			f.addBlobs(600, "a/", func(i int) time.Duration { return time.Duration(600-i) * time.Minute })
			f.refuse = func(b fakeAzureBlob) (int, string) {
				if b.name == "a/00010" || b.name == "a/00300" {
					return 412, "LeaseIdMissing"
				}
				return 0, ""
			}
			_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
			checkAzureError(t, err, codeRetryableDependencies, "LeaseIdMissing", `(blob "a/00010")`)
		}
	})
	t.Run("gone meanwhile", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(3, "a/", minute)
		f.refuse = func(b fakeAzureBlob) (int, string) { return 404, "BlobNotFound" }
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result.Deleted != 3 {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("other prefix", func(t *testing.T) {
		f := newFakeAzure(t)
		f.addBlobs(3, "a--10/", minute)
		_, err := testPurge(t.Context(), f.entry(Policy{}), "a--1/", nil)
		checkAzureError(t, err, "", "nothing of that page was deleted")
		f.expect("List")
	})
	t.Run("names", func(t *testing.T) {
		f := newFakeAzure(t)
		for _, name := range []string{"a/x y", "a/ü", "a/../b", "a/50%", "a/q?x=1#f", "a/v2/deep"} {
			f.blobs = append(f.blobs, fakeAzureBlob{name: name, created: f.now.Add(-time.Hour)})
		}
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result.Deleted != 6 || len(f.blobs) != 0 {
			t.Errorf("%+v %v, left %v", result, err, f.blobs)
		}
	})
	t.Run("pages", func(t *testing.T) {
		f := newFakeAzure(t)
		f.pageSize = 100
		f.addBlobs(250, "a/", minute)
		f.on["Batch"] = func(http.ResponseWriter, *http.Request, string) bool { return false }
		// Deleting moves the fake's pages, which Azure's do not.
		f.refuse = func(b fakeAzureBlob) (int, string) { return 404, "BlobNotFound" }
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result.Deleted != 250 {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("no container", func(t *testing.T) {
		f := newFakeAzure(t)
		f.container = false
		if result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil); err != nil || result != (PurgeResult{}) {
			t.Errorf("%+v %v", result, err)
		}
		if result, err := testPurge(t.Context(), f.open(f.ref()), "", nil); err != nil || result != (PurgeResult{}) {
			t.Errorf("%+v %v", result, err)
		}
	})
	t.Run("no account", func(t *testing.T) {
		f := newFakeAzure(t)
		objects, err := f.clients.openObjects(bucketRef{Name: fakeAzureBucket}, map[string][]byte{
			"storageAccount": []byte("account"), "storageKey": []byte(fakeAzureKey), "domain": []byte("blob.invalid")})
		if err != nil {
			t.Fatal(err)
		}
		_, err = testPurge(t.Context(), objects, "a/", nil)
		if code := codeOf(err); code != codeRetryableConfiguration && code != codeRetryableDependencies {
			t.Errorf("%q %v", code, err)
		}
	})
}

func TestAzureStoreDataPlaneErrors(t *testing.T) {
	refuse := func(status int, code string) func(http.ResponseWriter, *http.Request, string) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			w.Header().Set("x-ms-error-code", code)
			w.WriteHeader(status)
			fmt.Fprintf(w, "\ufeff<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>It was %s, key %s.\nRequestId:aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\nTime:2026-01-01T00:00:00Z</Message></Error>", code, code, fakeAzureKey)
			return true
		}
	}
	for code, c := range map[string]struct {
		status int
		entry  errorCode
		text   string
		bucket errorCode
	}{
		"AuthenticationFailed":               {403, codeUnauthenticated, "check storageKey", codeRetryableDependencies},
		"AuthorizationFailure":               {403, codeUnauthorized, "network rules", codeUnauthorized},
		"KeyBasedAuthenticationNotPermitted": {403, codeConfigurationProblem, "allowSharedKeyAccess", codeConfigurationProblem},
		"AccountIsDisabled":                  {403, codeConfigurationProblem, "AccountIsDisabled: It was AccountIsDisabled, key ***", codeConfigurationProblem},
	} {
		for _, operation := range []string{"List", "Batch"} {
			f := newFakeAzure(t)
			f.addBlobs(1, "a/", func(int) time.Duration { return time.Hour })
			f.on[operation] = refuse(c.status, code)
			_, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
			checkAzureError(t, err, c.entry, "Azure Blobs."+operation, c.text)
			_, err = testPurge(t.Context(), f.open(f.ref()), "a/", nil)
			checkAzureError(t, err, c.bucket, code)
		}
	}
	for name, c := range map[string]struct {
		answer string
		code   errorCode
		text   string
	}{
		"refused as a whole": {"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 403 X\r\nx-ms-error-code: AuthorizationFailure\r\n\r\n--b--\r\n", codeUnauthorized, "AuthorizationFailure"},
		"unknown part":       {"--b\r\nContent-ID: 7\r\n\r\nHTTP/1.1 202 X\r\n\r\n--b--\r\n", codeRetryableDependencies, "not one of Blob Batch"},
		"no parts":           {"--b--\r\n", codeRetryableDependencies, ""},
		"part twice":         {strings.Repeat("--b\r\nContent-ID: 0\r\n\r\nHTTP/1.1 202 X\r\n\r\n", 2) + "--b--\r\n", codeRetryableDependencies, ""},
		"not multipart":      {"hello", codeRetryableDependencies, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			f.addBlobs(2, "a/", func(int) time.Duration { return time.Hour })
			f.on["Batch"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				w.Header().Set("Content-Type", "multipart/mixed; boundary=b")
				w.WriteHeader(http.StatusAccepted)
				fmt.Fprint(w, c.answer)
				return true
			}
			result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
			checkAzureError(t, err, c.code, c.text)
			if result.Deleted != 0 {
				t.Errorf("%+v", result)
			}
			f.expect("List Batch")
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

func TestAzureStoreDeleteAccount(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(f *fakeAzure)
		want  AccountState
		kept  string
		calls string
		code  errorCode
		begun bool
	}{
		"alone":       {want: AccountState{Started: true}, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
		"empty group": {set: func(f *fakeAzure) { f.account = false }, want: AccountState{Started: true}, calls: "Group.GET Resources.List Group.DELETE"},
		"gone":        {set: func(f *fakeAzure) { f.group = false }, calls: "Group.GET"},
		"deleting":    {set: func(f *fakeAzure) { f.groupState = "Deleting" }, want: AccountState{Deleting: true}, calls: "Group.GET"},
		"logs only":   {set: func(f *fakeAzure) { f.containers = []string{"$logs"} }, want: AccountState{Started: true}, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
		"others":      {set: func(f *fakeAzure) { f.resources = []string{"vault", "disk"} }, kept: "Microsoft.Other/things disk", calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Account.DELETE"},
		"containers": {set: func(f *fakeAzure) { f.containers = []string{"other"}; f.resources = []string{"vault"} }, kept: "container other",
			calls: "Group.GET Resources.List Container.List"},
		"locked":  {set: func(f *fakeAzure) { f.script("Group.DELETE", answerAzure(409, "ScopeLocked")) }, code: codeConfigurationProblem, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
		"denied":  {set: func(f *fakeAzure) { f.script("Group.GET", answerAzure(403, "AuthorizationFailed")) }, code: codeUnauthorized, calls: "Group.GET"},
		"a share": {set: func(f *fakeAzure) { f.shares = []string{"home"} }, kept: "file share home", calls: "Group.GET Resources.List Container.List Share.List"},
		"a queue": {set: func(f *fakeAzure) { f.queues, f.resources = []string{"jobs"}, []string{"vault"} }, kept: "queue jobs",
			calls: "Group.GET Resources.List Container.List Share.List Queue.List"},
		"a table": {set: func(f *fakeAzure) { f.tables = []string{"people"} }, kept: "table people",
			calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List"},
		"shares denied": {set: func(f *fakeAzure) { f.on["Share.List"] = answerAzure(403, "AuthorizationFailed") },
			kept: "Microsoft.Storage/storageAccounts/fileServices/shares/read", calls: "Group.GET Resources.List Container.List Share.List"},
		"queues denied": {set: func(f *fakeAzure) { f.on["Queue.List"] = answerAzure(403, "AuthorizationFailed") },
			kept: "Microsoft.Storage/storageAccounts/queueServices/queues/read", calls: "Group.GET Resources.List Container.List Share.List Queue.List"},
		"tables denied": {set: func(f *fakeAzure) { f.on["Table.List"] = answerAzure(403, "AuthorizationFailed") },
			kept: "Microsoft.Storage/storageAccounts/tableServices/tables/read", calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List"},
		"not supported": {set: func(f *fakeAzure) {
			f.on["Share.List"], f.on["Queue.List"] = answerAzure(400, "FeatureNotSupportedForAccount"), answerAzure(409, "FeatureNotSupportedForAccount")
			f.on["Table.List"] = answerAzure(404, "FeatureNotSupportedForAccount")
		}, want: AccountState{Started: true}, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
		"shares not known": {set: func(f *fakeAzure) { f.on["Share.List"] = answerAzure(409, "StorageAccountOperationInProgress") }, code: codeRetryableDependencies,
			calls: "Group.GET Resources.List Container.List Share.List"},
		"a group of others": {set: func(f *fakeAzure) { f.foreignGroup = true }, kept: "resource group seed-backup stays, because bucketwarden has not made it",
			calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Account.DELETE"},
		"an empty group of others": {set: func(f *fakeAzure) { f.foreignGroup, f.account = true, false }, kept: "bucketwarden has not made it", calls: "Group.GET Resources.List"},
		"an account of others":     {set: func(f *fakeAzure) { f.foreignAccount = true }, kept: "storage account bkp2fde1d146d29c16 stay", calls: "Group.GET Resources.List"},
		"denied after it was begun": {set: func(f *fakeAzure) { f.script("Group.GET", answerAzure(403, "AuthorizationFailed")) }, begun: true,
			kept: "cannot be seen any more", calls: "Group.GET"},
		"gone meanwhile": {set: func(f *fakeAzure) { f.script("Group.DELETE", answerAzure(404, "ResourceGroupNotFound")) }, calls: "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			if c.set != nil {
				c.set(f)
			}
			got, err := f.open(f.ref()).DeleteAccount(t.Context(), anything, c.begun)
			f.expect(c.calls)
			if c.code != "" {
				checkAzureError(t, err, c.code)
				return
			}
			if err != nil || (got.Kept != "") != (c.kept != "") || !strings.Contains(got.Kept, c.kept) || got.Started != c.want.Started || got.Deleting != c.want.Deleting {
				t.Errorf("%+v %v", got, err)
			}
		})
	}
}

func TestAzureStoreDeleteAccountFollowsTheDeletion(t *testing.T) {
	running := func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		w.WriteHeader(http.StatusAccepted)
		return true
	}
	const begin = "Group.GET Resources.List Container.List Share.List Queue.List Table.List Group.DELETE"
	type step struct {
		poll  func(http.ResponseWriter, *http.Request, string) bool
		set   func(f *fakeAzure)
		want  AccountState
		calls string // empty: as many as it takes
		code  errorCode
		text  string
	}
	started := step{want: AccountState{Started: true}, calls: begin}
	gone := func(f *fakeAzure) { f.group = false }
	for name, steps := range map[string][]step{
		"done":          {started, {poll: running, want: AccountState{Deleting: true}, calls: "Poll"}, {set: gone, calls: "Poll Group.GET"}, {calls: "Group.GET"}},
		"not quite yet": {started, {set: func(f *fakeAzure) { f.groupState = "Deleting" }, want: AccountState{Deleting: true}, calls: "Poll Group.GET"}, {want: AccountState{Deleting: true}, calls: "Group.GET"}},
		"rolled back": {started, {poll: running, want: AccountState{Deleting: true}, calls: "Poll"},
			{poll: answerAzure(409, "ResourceGroupDeletionBlocked"), code: codeRetryableDependencies, text: "ResourceGroupDeletionBlocked: Because of", calls: "Poll"}, started},
		"locked": {started, {poll: answerAzure(409, "ScopeLocked"), code: codeConfigurationProblem, text: "remove the lock", calls: "Poll"}, started},
		"token has expired": {started, {poll: answerAzure(401, "ExpiredAuthenticationToken"), code: codeUnauthenticated, text: "ExpiredAuthenticationToken", calls: "Poll"},
			{poll: running, want: AccountState{Deleting: true}, calls: "Poll"}},
		"result has expired": {started, {poll: answerAzure(404, "NotFound"), want: AccountState{Started: true}, calls: "Poll " + begin}},
		"may not look":       {started, {poll: answerAzure(403, "AuthorizationFailed"), want: AccountState{Started: true}, calls: "Poll " + begin}},
		"hangs up": {started, {poll: func(http.ResponseWriter, *http.Request, string) bool { panic(http.ErrAbortHandler) }, code: codeRetryableDependencies, text: "closes the connection"},
			{poll: answerAzure(409, "ResourceGroupDeletionBlocked"), code: codeRetryableDependencies, text: "ResourceGroupDeletionBlocked", calls: "Poll"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAzure(t)
			for i, step := range steps {
				if step.set != nil {
					step.set(f)
				}
				delete(f.on, "Poll")
				if step.poll != nil {
					f.on["Poll"] = step.poll
				}
				// Each call opens the bucket anew, as reconciles do.
				got, err := f.open(f.ref()).DeleteAccount(t.Context(), anything, false)
				if calls := f.take(); step.calls != "" && calls != step.calls {
					t.Errorf("step %d: requests: %s\nwant:     %s", i, calls, step.calls)
				}
				if step.code != "" {
					checkAzureError(t, err, step.code, step.text)
				} else if err != nil || got != step.want {
					t.Errorf("step %d: %+v %v, want %+v", i, got, err, step.want)
				}
			}
		})
	}
	t.Run("others have begun none", func(t *testing.T) {
		f := newFakeAzure(t)
		for _, name := range []string{fakeAzureBucket, "other-backup"} {
			ref := f.ref()
			ref.Name, ref.Account = name, azureAccountName(fakeAzureBucket)
			f.bucket = name
			if got, err := f.open(ref).DeleteAccount(t.Context(), anything, false); err != nil || !got.Started {
				t.Errorf("%+v %v", got, err)
			}
			f.expect(begin)
		}
	})
}
