package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

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
		"storage version":          `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "apiVersions": {"storage": "latest"}}}`,
		"storage version too old":  `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "apiVersions": {"storage": "2017-10-01"}}}`,
		"version without a date":   `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "apiVersions": {"resources": "2019-13-01"}}}`,
		"version with more":        `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "apiVersions": {"storage": "2019-06-01&x=y"}}}`,
		"blob version":             `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "apiVersions": {"blob": "2019-07-07-preview"}}}`,
		"blob version too old":     `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "apiVersions": {"blob": "2015-04-05"}}}`,
		"version that is a number": `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "apiVersions": {"blob": 2019}}}`,
		"unknown API":              `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "apiVersions": {"table": "2019-07-07"}}}`,
		"SKU":                      `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "accountSKU": "LRS"}}`,
		"SKU without block blobs":  `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "accountSKU": "Premium_LRS"}}`,
		"kind":                     `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "accountKind": "BlobStorage"}}`,
		"not JSON":                 `[`,
		"a list":                   `[]`,
		"unknown field":            `{"A": {` + good + `, "blobEndpoint": "https://{account}.a.example", "surprise": 1}}`,
		"twice":                    `{` + entry("A", "https://{account}.a.example") + `,` + entry("A", "https://{account}.b.example") + `}`,
		"twice by case":            `{` + entry("A", "https://{account}.a.example") + `,` + entry("a", "https://{account}.b.example") + `}`,
		"built in":                 `{` + entry("azurepublic", "https://{account}.a.example") + `}`,
		"no name":                  `{` + entry("", "https://{account}.a.example") + `}`,
		"same domain":              `{` + entry("A", "https://{account}.a.example") + `,` + entry("B", "https://a.example/{account}") + `}`,
		"built-in domain":          `{` + entry("A", "https://{account}.blob.core.windows.net") + `}`,
		"plain authority":          `{"A": {"activeDirectoryAuthorityHost": "http://a", "resourceManagerEndpoint": "https://a", "resourceManagerAudience": "a", "blobEndpoint": "https://{account}.a"}}`,
		"no audience":              `{"A": {"activeDirectoryAuthorityHost": "https://a", "resourceManagerEndpoint": "https://a", "blobEndpoint": "https://{account}.a"}}`,
		"no endpoint":              `{"A": {` + good + `}}`,
		"no account":               `{` + entry("A", "https://blob.example.com") + `}`,
		"account twice":            `{` + entry("A", "https://{account}.example.com/{account}") + `}`,
		"account elsewhere":        `{` + entry("A", "https://blob.{account}.example.com") + `}`,
		"account in query":         `{` + entry("A", "https://example.com/?a={account}") + `}`,
		"deeper path":              `{` + entry("A", "https://example.com/x/{account}") + `}`,
		"other scheme":             `{` + entry("A", "ftp://{account}.example.com") + `}`,
	} {
		if clouds, err := load(content); err == nil {
			t.Errorf("%s: %v", name, clouds)
		}
	}
}

// A cloud that lags behind Azure is asked only what its APIs have, in the versions that its configuration names.
func TestAzureCloudWithOlderAPIs(t *testing.T) {
	f := newFakeAzure(t)
	config, err := json.Marshal(map[string]any{"Fake": map[string]any{
		"activeDirectoryAuthorityHost": f.arm.URL, "resourceManagerEndpoint": f.arm.URL, "resourceManagerAudience": "https://management.example.com",
		"blobEndpoint": f.blob.URL + "/{account}", "disableInstanceDiscovery": true,
		"apiVersions": map[string]string{"storage": "2018-07-01", "resources": "2016-06-01", "blob": "2019-07-07"},
		"accountSKU":  "Standard_LRS", "accountKind": "Storage",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if f.clients.clouds, err = parseAzureClouds(config); err != nil {
		t.Fatal(err)
	}
	f.group, f.account, f.container, f.sku, f.kind = false, false, false, "Standard_LRS", "Storage"
	ref := f.ref()
	ref.KeyExpirationDays = 90
	b := f.open(ref)
	if err := b.Create(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	var created struct {
		SKU        struct{ Name string }
		Kind       string
		Properties map[string]any
	}
	if err := json.Unmarshal([]byte(f.bodies["Account.PUT"]), &created); err != nil {
		t.Fatal(err)
	}
	if created.SKU.Name != "Standard_LRS" || created.Kind != "Storage" || len(created.Properties) != 1 {
		t.Errorf("created as %s", f.bodies["Account.PUT"])
	}
	// What the API does not know is a gap and is not asked for, again and again.
	delete(f.properties, "minimumTlsVersion")
	delete(f.properties, "allowBlobPublicAccess")
	f.take()
	gaps, err := b.Harden(t.Context())
	if err != nil || len(gaps) != 2 || !strings.Contains(gaps[0], "2018-07-01 of the storage API of cloud Fake") || !strings.Contains(gaps[1], "no key expiration policy") {
		t.Errorf("%q %v", gaps, err)
	}
	f.expect("Container.GET Account.GET")
	if err := b.LockPolicy(t.Context(), Policy{Days: 4, Locked: true}); err != nil {
		t.Error(err)
	}
	f.days, f.locked = 0, false
	f.addBlobs(60, "a/", func(int) time.Duration { return time.Hour })
	f.blobs[7].leased = true
	for _, gone := range []int{3, 40} {
		f.blobs[gone].created = f.now.Add(-2 * time.Hour)
	}
	f.take()
	result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", nil)
	if err != nil || result.Deleted != 60 {
		t.Errorf("%+v %v", result, err)
	}
	if calls := f.take(); strings.Count(calls, "List") != 1 || strings.Count(calls, "Delete") != 61 || strings.Count(calls, "Break") != 1 || strings.Contains(calls, "Batch") {
		t.Errorf("requests: %s", calls)
	}
	if include := f.query["List"].Get("include"); include != "" {
		t.Errorf("the list includes %s", include)
	}
	if err := f.entry(Policy{}).Put(t.Context(), "a/mark"); err != nil {
		t.Error(err)
	}
	if err := b.Delete(t.Context(), anything); err != nil {
		t.Error(err)
	}
	f.on["Share.List"] = answerAzure(404, "InvalidResourceType")
	state, err := b.DeleteAccount(t.Context(), anything, false)
	if err != nil || !strings.Contains(state.Kept, "does not tell whether a file share is in it") {
		t.Errorf("%+v %v", state, err)
	}
	for operation, versions := range f.versions {
		want := "2018-07-01"
		switch operation {
		case "Token", "Discovery":
			continue
		case "Group.GET", "Group.PUT", "Group.DELETE", "Resources.List":
			want = "2016-06-01"
		case "List", "Delete", "Break", "Put":
			want = "2019-07-07"
		}
		if !slices.Equal(versions, []string{want}) {
			t.Errorf("%s with versions %q, want %s", operation, versions, want)
		}
	}
	// Some fail.
	f.container = true
	f.addBlobs(4, "c/", func(int) time.Duration { return time.Hour })
	f.refuse = func(blob fakeAzureBlob) (int, string) {
		switch blob.name {
		case "c/00001":
			return 409, "BlobImmutableDueToPolicy"
		case "c/00002":
			return 403, "AuthorizationFailure"
		}
		return 0, ""
	}
	_, err = testPurge(t.Context(), f.entry(Policy{}), "c/", nil)
	checkAzureError(t, err, codeUnauthorized, "Blobs.Delete", "c/00002")
}
