package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// azureBackend is the Azure of test/env, with its data plane behind a proxy.
type azureBackend struct {
	*suiteProxy
	control                string
	data, identity         map[string][]byte
	cloudName, unreachable string
	clouds                 azureClouds
	roots                  *x509.CertPool
}

func startAzureBackend(t *testing.T, control string) storeBackend {
	t.Helper()
	b := &azureBackend{control: control, roots: x509.NewCertPool(), unreachable: "Unreachable"}
	var description struct {
		CloudName, CloudConfig, CAFile, BlobEndpoint string
		SecretData, WorkloadIdentityData             map[string][]byte
	}
	b.call(t, http.MethodGet, "/", nil, &description)
	b.data, b.identity, b.cloudName = description.SecretData, description.WorkloadIdentityData, description.CloudName
	ca, err := os.ReadFile(description.CAFile)
	if err != nil || !b.roots.AppendCertsFromPEM(ca) {
		t.Fatalf("no CA: %v", err)
	}
	endpoint, err := url.Parse(strings.ReplaceAll(description.BlobEndpoint, azureAccountPlaceholder, ""))
	if err != nil {
		t.Fatal(err)
	}
	endpoint.Path = ""
	b.suiteProxy = startSuiteProxy(t, endpoint.String(), func(path string) string {
		_, path, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
		bucket, _, _ := strings.Cut(path, "/")
		return bucket
	}, nil)
	config, err := os.ReadFile(description.CloudConfig)
	if err != nil {
		t.Fatal(err)
	}
	var clouds map[string]azureCloudConfig
	if err := json.Unmarshal(config, &clouds); err != nil {
		t.Fatal(err)
	}
	cloud := clouds[b.cloudName]
	cloud.BlobEndpoint = b.URL + "/" + azureAccountPlaceholder
	closed := suiteClosed()
	away := cloud
	away.ActiveDirectoryAuthorityHost = strings.Replace(closed, "http:", "https:", 1)
	away.ResourceManagerEndpoint = away.ActiveDirectoryAuthorityHost
	away.BlobEndpoint = closed + "/" + azureAccountPlaceholder
	config, err = json.Marshal(map[string]azureCloudConfig{b.cloudName: cloud, b.unreachable: away})
	if err != nil {
		t.Fatal(err)
	}
	if b.clouds, err = parseAzureClouds(config); err != nil {
		t.Fatal(err)
	}
	return b
}

// try makes a request to the environment's control server.
func (b *azureBackend) try(method, path string, body []byte, answer any) error {
	request, err := http.NewRequest(method, b.control+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return err
	case response.StatusCode >= http.StatusBadRequest:
		return fmt.Errorf("%s %s: HTTP status %d: %s", method, path, response.StatusCode, data)
	case answer == nil:
		return nil
	}
	return json.Unmarshal(data, answer)
}

func (b *azureBackend) call(t *testing.T, method, path string, body []byte, answer any) {
	t.Helper()
	if err := b.try(method, path, body, answer); err != nil {
		t.Fatal(err)
	}
}

func (b *azureBackend) kind() string { return storeAzure }

func (b *azureBackend) credentials() map[string][]byte { return maps.Clone(b.data) }

func (b *azureBackend) maxDays() int32 { return azureMaxRetentionDays }

func (b *azureBackend) permission() string {
	return "Microsoft.Storage/storageAccounts/blobServices/containers/read"
}

func (b *azureBackend) ref(bucket string) bucketRef {
	return bucketRef{Name: bucket, Region: "westeurope", Cloud: b.cloudName}
}

func (b *azureBackend) opener(m *metrics) provider {
	c := b.strange(m)
	c.transport.TLSClientConfig.RootCAs = b.roots
	return c
}

// strange opens without knowing the CA.
func (b *azureBackend) strange(m *metrics) *azureClients {
	c := newAzureClients(m, b.clouds)
	c.retryDelay, c.pollInterval = time.Millisecond, time.Second
	return c
}

func (b *azureBackend) wrong(bucket *suiteBucket) []wrongStore {
	const id = "12345678-0000-4000-8000-123456789abc"
	ref, opener, entry := b.ref(bucket.name), b.opener(newMetrics()), bucket.entryCredentials()
	other := func(change func(*bucketRef)) bucketRef {
		ref := b.ref(fmt.Sprintf("suite-%s-%04d", suiteRun, suiteNames.Add(1)))
		change(&ref)
		return ref
	}
	return []wrongStore{
		{name: "subscription", opener: opener, ref: ref, credentials: suiteWith(b.data, azureKeySubscriptionID, id), want: codeUnauthenticated},
		{name: "tenant", opener: opener, ref: ref, credentials: suiteWith(b.data, azureKeyTenantID, id), want: codeUnauthenticated},
		{name: "client", opener: opener, ref: ref, credentials: suiteWith(b.data, azureKeyClientID, id), want: codeUnauthenticated},
		{name: "client secret", opener: opener, ref: ref, credentials: suiteWith(b.data, azureKeyClientSecret, "wrong-client-secret"),
			want: codeUnauthenticated},
		{name: "token", opener: opener, ref: ref, credentials: suiteWith(b.identity, azureKeyToken, "wrong-token-value"),
			want: codeUnauthenticated},
		{name: "storage key", opener: opener, ref: ref, entry: true, credentials: suiteWith(entry, dataKeyStorageKey, "d3Jvbmcta2V5"),
			want: codeRetryableConfiguration},
		{name: "nothing listens", opener: opener, ref: other(func(r *bucketRef) { r.Cloud = b.unreachable }), credentials: b.credentials(),
			want: codeRetryableDependencies},
		{
			name: "nothing listens for an entry", opener: opener, ref: ref, entry: true, want: codeRetryableDependencies,
			credentials: suiteWith(entry, dataKeyDomain, b.clouds[strings.ToLower(b.unreachable)].domain),
		},
		{name: "unknown CA", opener: b.strange(newMetrics()), ref: ref, credentials: b.credentials(), want: codeRetryableConfiguration},
		{name: "cloud", opener: opener, ref: other(func(r *bucketRef) { r.Cloud = "Nowhere" }), credentials: b.credentials(),
			want: codeConfigurationProblem},
		{name: "region", opener: opener, ref: other(func(r *bucketRef) { r.Region = "nowhere" }), credentials: b.credentials(),
			want: codeConfigurationProblem, only: "Create"},
		{
			name: "name that is taken", opener: opener, ref: other(func(r *bucketRef) { r.Account = azureAccountName(bucket.name) }),
			credentials: b.credentials(),
			want:        codeConfigurationProblem, only: "Create", notOurs: true,
		},
	}
}

func (b *azureBackend) put(t *testing.T, bucket, name string, size int) {
	t.Helper()
	if err := b.tryPut(bucket, name, size); err != nil {
		t.Errorf("putting object %q: %v", name, err)
	}
}

func (b *azureBackend) tryPut(bucket, name string, size int) error {
	if !s3Nameable(name) {
		return errors.New("Azurite fails to list what XML cannot name")
	}
	return b.try(http.MethodPut, "/blobs/"+bucket+"/"+url.PathEscape(name), make([]byte, size), nil)
}

type suiteBlob struct {
	Name    string
	Created time.Time
	Size    int64
}

func (b *azureBackend) blobs(t *testing.T, bucket string) (blobs []suiteBlob) {
	t.Helper()
	b.call(t, http.MethodGet, "/blobs/"+bucket, nil, &blobs)
	return blobs
}

func (b *azureBackend) list(t *testing.T, bucket string) (objects []suiteObject) {
	t.Helper()
	for _, blob := range b.blobs(t, bucket) {
		objects = append(objects, suiteObject{blob.Name, blob.Size})
	}
	return objects
}

func (b *azureBackend) setPolicy(t *testing.T, bucket string, p Policy) {
	t.Helper()
	if p.None() {
		b.call(t, http.MethodDelete, "/policies/"+bucket, nil, nil)
		return
	}
	b.call(t, http.MethodPut, fmt.Sprintf("/policies/%s?days=%d&locked=%t", bucket, p.Days, p.Locked), nil, nil)
}

func (b *azureBackend) hold(t *testing.T, bucket string, on bool) {
	t.Helper()
	method := http.MethodDelete
	if on {
		method = http.MethodPut
	}
	b.call(t, method, "/legalholds/"+bucket+"/suite", nil, nil)
}

func (b *azureBackend) until(t *testing.T, bucket string, names ...string) (until time.Time) {
	t.Helper()
	var container struct{ Days int }
	b.call(t, http.MethodGet, "/containers/"+bucket, nil, &container)
	for _, blob := range b.blobs(t, bucket) {
		if end := blob.Created.AddDate(0, 0, container.Days); slices.Contains(names, blob.Name) && end.After(until) {
			until = end
		}
	}
	return until
}

func (b *azureBackend) now(t *testing.T) time.Time {
	t.Helper()
	var description struct{ Now time.Time }
	b.call(t, http.MethodGet, "/", nil, &description)
	return description.Now
}

// apart waits: a blob is as old as it is by the real clock and the server's together, and
// the container's retention is the same for all.
func (b *azureBackend) apart(t *testing.T, by time.Duration) {
	t.Helper()
	select {
	case <-time.After(by):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

func (b *azureBackend) free(t *testing.T, bucket string, names ...string) {
	t.Helper()
	if ahead := b.until(t, bucket, names...).Sub(b.now(t)); ahead > 0 {
		b.call(t, http.MethodPost, fmt.Sprintf("/advance?seconds=%d", ahead/time.Second+1), nil, nil)
	}
}

func (b *azureBackend) fail(t *testing.T, bucket string, status, times int) {
	t.Helper()
	fault, err := json.Marshal(map[string]any{"PathContains": bucket, "Status": status, "Times": times})
	if err != nil {
		t.Fatal(err)
	}
	b.call(t, http.MethodPost, "/faults", fault, nil)
}

func (b *azureBackend) served(t *testing.T, bucket string) int {
	t.Helper()
	var requests []struct{}
	b.call(t, http.MethodGet, "/requests?path="+bucket, nil, &requests)
	return len(requests)
}
