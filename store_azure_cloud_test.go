package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
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
