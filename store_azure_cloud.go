// The clouds of Azure: the hosts of their management plane, their data plane and Microsoft Entra ID.
//
// Rules:
//   - Only the daemon's operator can add one, so that no resource can send credentials to a
//     host of its own choice.
//   - A cloud is found by its name, or by the region if there is none; for an entry, by the domain in its secret.

package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/storage/armstorage/v2"
	"sigs.k8s.io/json"
)

// azureCloud is where the planes of a cloud are.
type azureCloud struct {
	name                     string
	config                   cloud.Configuration
	disableInstanceDiscovery bool
	// blobEndpoint is a URL with {account} in it; domain is what of it the generated
	// secret publishes.
	blobEndpoint, domain string
	// versions are of the APIs; empty ones are the SDK's.
	versions azureVersions
	// sku and kind are what a storage account is created as.
	sku  armstorage.SKUName
	kind armstorage.Kind
}

// azureVersions are API versions, of the resource providers Microsoft.Storage and Microsoft.Resources and of the blob service.
type azureVersions struct {
	Storage   string `json:"storage"`
	Resources string `json:"resources"`
	Blob      string `json:"blob"`
}

// What came to the APIs later than what we cannot do without: learn.microsoft.com/azure/templates/microsoft.storage/allversions,
// learn.microsoft.com/rest/api/storageservices/previous-azure-storage-service-versions. Versions are dates, so they sort.
const (
	azureStorageOldest = "2018-02-01" // containers and their immutability policies
	azureStorageTLS    = "2019-06-01" // minimumTlsVersion, allowBlobPublicAccess
	azureStorageKeys   = "2021-02-01" // the key expiration policy
	azureBlobOldest    = "2017-11-09" // the creation time of blobs
	azureBlobVersions  = "2019-12-12" // versions of blobs
	azureBlobWorm      = "2020-06-12" // policies of blobs; batches of one container
)

// azureHas says that an API of a version, empty for the SDK's, has what came with another one.
func azureHas(version, since string) bool { return version == "" || version >= since }

const azureAccountPlaceholder = "{account}"

// url is where the container of an account is.
func (c *azureCloud) url(account, container string) string {
	return strings.Replace(c.blobEndpoint, azureAccountPlaceholder, account, 1) + "/" + container
}

func azurePublicCloud(name string, config cloud.Configuration, domain string) *azureCloud {
	return &azureCloud{name: name, config: config, blobEndpoint: "https://" + azureAccountPlaceholder + "." + domain, domain: domain,
		sku: armstorage.SKUNameStandardZRS, kind: armstorage.KindStorageV2}
}

// azureKnownClouds are the clouds that need no configuration, as in
// gardener/gardener-extension-provider-azure pkg/azure/client/helper.go and storage.go.
var azureKnownClouds = []*azureCloud{
	azurePublicCloud("AzurePublic", cloud.AzurePublic, "blob.core.windows.net"),
	azurePublicCloud("AzureChina", cloud.AzureChina, "blob.core.chinacloudapi.cn"),
	azurePublicCloud("AzureGovernment", cloud.AzureGovernment, "blob.core.usgovcloudapi.net"),
}

// azureClouds are custom Azure clouds by lower-case name.
type azureClouds map[string]*azureCloud

// azureCloudConfig is an entry of the file that --azure-cloud-config names.
type azureCloudConfig struct {
	ActiveDirectoryAuthorityHost string `json:"activeDirectoryAuthorityHost"`
	ResourceManagerEndpoint      string `json:"resourceManagerEndpoint"`
	ResourceManagerAudience      string `json:"resourceManagerAudience"`
	BlobEndpoint                 string `json:"blobEndpoint"`
	DisableInstanceDiscovery     bool   `json:"disableInstanceDiscovery"`
	// Of clouds that lag behind Azure: empty fields are Azure's.
	APIVersions azureVersions `json:"apiVersions"`
	AccountSKU  string        `json:"accountSKU"`
	AccountKind string        `json:"accountKind"`
}

// azureVersionPattern is an API version; those of the blob service have no suffix.
var azureVersionPattern = regexp.MustCompile(`^(\d{4}-\d{2}-\d{2})(-preview)?$`)

// check says what is wrong with the versions.
func (v azureVersions) check() error {
	for _, api := range []struct {
		field, value, oldest, lacks string
		preview                     bool
	}{
		{"storage", v.Storage, azureStorageOldest, "older ones know no containers", true},
		{"resources", v.Resources, "", "", true},
		{"blob", v.Blob, azureBlobOldest, "older ones do not tell when a blob was created", false},
	} {
		match := azureVersionPattern.FindStringSubmatch(api.value)
		switch {
		case api.value == "":
			continue
		case match == nil, match[2] != "" && !api.preview:
			return fmt.Errorf("apiVersions.%s %q is not a version such as 2019-06-01", api.field, api.value)
		case api.value < api.oldest:
			return fmt.Errorf("apiVersions.%s is %s, must be at least %s: %s", api.field, api.value, api.oldest, api.lacks)
		}
		if _, err := time.Parse(time.DateOnly, match[1]); err != nil {
			return fmt.Errorf("apiVersions.%s %q is not a version: there is no such date", api.field, api.value)
		}
	}
	return nil
}

// account is what a storage account is created as.
func (c azureCloudConfig) account() (armstorage.SKUName, armstorage.Kind, error) {
	sku := armstorage.SKUName(cmp.Or(c.AccountSKU, string(armstorage.SKUNameStandardZRS)))
	kind := armstorage.Kind(cmp.Or(c.AccountKind, string(armstorage.KindStorageV2)))
	var known []string
	for _, name := range armstorage.PossibleSKUNameValues() {
		// Premium accounts of these kinds hold no block blobs.
		if strings.HasPrefix(string(name), "Standard") {
			known = append(known, string(name))
		}
	}
	switch {
	case !slices.Contains(known, string(sku)):
		return "", "", fmt.Errorf("accountSKU %q is none of %s", c.AccountSKU, strings.Join(known, ", "))
	case kind != armstorage.KindStorageV2 && kind != armstorage.KindStorage:
		return "", "", fmt.Errorf("accountKind %q is neither %s nor %s", c.AccountKind, armstorage.KindStorageV2, armstorage.KindStorage)
	}
	return sku, kind, nil
}

// loadAzureClouds reads the file that --azure-cloud-config names; none if it is empty.
func loadAzureClouds(file string) (azureClouds, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the Azure clouds: %w", err)
	}
	clouds, err := parseAzureClouds(data)
	if err != nil {
		return nil, fmt.Errorf("reading the Azure clouds from %s: %w", file, err)
	}
	return clouds, nil
}

func parseAzureClouds(data []byte) (azureClouds, error) {
	var configs map[string]azureCloudConfig
	strict, err := json.UnmarshalStrict(data, &configs)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err != nil {
		return nil, fmt.Errorf("not a JSON object of clouds by name: %w", err)
	}
	names, domains := map[string]string{}, map[string]string{}
	for _, c := range azureKnownClouds {
		names[strings.ToLower(c.name)], domains[c.domain] = c.name, c.name
	}
	clouds := azureClouds{}
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		c, err := configs[name].cloud(name)
		if err != nil {
			return nil, fmt.Errorf("cloud %q: %w", name, err)
		}
		key := strings.ToLower(name)
		if other, taken := names[key]; taken {
			return nil, fmt.Errorf("cloud %q has the name of cloud %q: names are compared without case", name, other)
		}
		if other, taken := domains[c.domain]; taken {
			return nil, fmt.Errorf("cloud %q: blobEndpoint has the domain %s of cloud %q", name, c.domain, other)
		}
		names[key], domains[c.domain], clouds[key] = name, name, c
	}
	return clouds, nil
}

func (c azureCloudConfig) cloud(name string) (*azureCloud, error) {
	if name == "" {
		return nil, errors.New("it has no name")
	}
	for field, value := range map[string]string{"activeDirectoryAuthorityHost": c.ActiveDirectoryAuthorityHost,
		"resourceManagerEndpoint": c.ResourceManagerEndpoint} {
		// The SDK sends tokens over TLS only.
		if u, err := url.Parse(value); err != nil || u.Scheme != "https" || !plainURL(u) {
			return nil, fmt.Errorf("%s is not the https URL of a host", field)
		}
	}
	if c.ResourceManagerAudience == "" {
		return nil, errors.New("resourceManagerAudience is missing")
	}
	if err := c.APIVersions.check(); err != nil {
		return nil, err
	}
	sku, kind, err := c.account()
	if err != nil {
		return nil, err
	}
	out := &azureCloud{
		name: name, versions: c.APIVersions, sku: sku, kind: kind,
		disableInstanceDiscovery: c.DisableInstanceDiscovery,
		blobEndpoint:             strings.TrimSuffix(c.BlobEndpoint, "/"),
		config: cloud.Configuration{
			ActiveDirectoryAuthorityHost: c.ActiveDirectoryAuthorityHost,
			Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
				cloud.ResourceManager: {Endpoint: c.ResourceManagerEndpoint, Audience: c.ResourceManagerAudience},
			},
		},
	}
	const account = "account"
	u, err := url.Parse(strings.Replace(out.blobEndpoint, azureAccountPlaceholder, account, 1))
	if err == nil && (u.Scheme == "http" || u.Scheme == "https") && plainURL(u) && strings.Count(out.blobEndpoint,
		azureAccountPlaceholder) == 1 {
		domain, inHost := strings.CutPrefix(u.Host, account+".")
		switch {
		case inHost && u.Path == "":
			out.domain = strings.ToLower(domain)
		case u.Path == "/"+account:
			out.domain = strings.ToLower(u.Host)
		}
	}
	if !azureDomainPattern.MatchString(out.domain) {
		return nil, fmt.Errorf("blobEndpoint is not an http or https URL with %s either as first label of the host or as path, such as "+
			"https://%[1]s.blob.example.com or http://host:10000/%[1]s", azureAccountPlaceholder)
	}
	return out, nil
}

// plainURL says that a URL has a host and nothing after its path.
func plainURL(u *url.URL) bool {
	return u.Hostname() != "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
}

// choose returns the cloud of a bucket, by its name or its region.
func (c azureClouds) choose(name, region string) (*azureCloud, error) {
	if name == "" {
		name = "AzurePublic"
		region = strings.ToLower(region)
		switch {
		case strings.HasPrefix(region, "usgov"), strings.HasPrefix(region, "usdod"), strings.HasPrefix(region, "ussec"):
			name = "AzureGovernment"
		case strings.HasPrefix(region, "china"):
			name = "AzureChina"
		}
	}
	if custom := c[strings.ToLower(name)]; custom != nil {
		return custom, nil
	}
	known := make([]string, 0, len(azureKnownClouds)+len(c))
	for _, k := range azureKnownClouds {
		if strings.EqualFold(k.name, name) {
			return k, nil
		}
		known = append(known, k.name)
	}
	for _, custom := range c {
		known = append(known, custom.name)
	}
	slices.Sort(known)
	return nil, &storeError{code: codeConfigurationProblem, err: configErrorf(
		"spec.providerConfig.cloudConfiguration.name is %q, which is no cloud that is known here: it must be one of %s", name,
		strings.Join(known, ", "))}
}

// ofDomain returns the cloud that a domain belongs to.
func (c azureClouds) ofDomain(domain string) *azureCloud {
	for _, custom := range c {
		if custom.domain == domain {
			return custom
		}
	}
	return azurePublicCloud("", cloud.Configuration{}, domain)
}
