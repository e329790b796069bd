// What a bucket on Azure is configured with: spec.providerConfig as gardener-extension-provider-azure has it, the record of
// it in providerStatus, and the secret that etcd-backup-restore reads. A bucket lies in a storage account of its own: its
// keys are rotated by age or on request, and a generated secret publishes one of them. Nothing in this file makes a
// request.

package main

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// storeAzure is the name of this store, as in --type NAME=STORE.
const storeAzure = "azure"

// azureMaxRetentionDays: "between 1 and 146,000 days"
// (learn.microsoft.com/azure/storage/blobs/immutable-time-based-retention-policy-overview).
const azureMaxRetentionDays int32 = 146000

// annotationRotate asks for a rotation of a storage account's keys
// (gardener/gardener-extension-provider-azure pkg/azure/types.go).
const annotationRotate = "azure" + annotationRotateSuffix

// warnExtend is a reason of a warning, beside those of policyWarnings.
const warnExtend = "extend"

var (
	_ accountProvider = &azureClients{}
	_ extensionLimit  = &azureClients{}
)

// newAzureProvider serves the line of daemon.go.
func newAzureProvider(c *config, m *metrics) (provider, error) {
	clouds, err := loadAzureClouds(c.azureCloudConfig)
	if err != nil {
		return nil, fmt.Errorf("--azure-cloud-config: %w", err)
	}
	return newAzureClients(m, clouds), nil
}

func (c *azureClients) name() string { return storeAzure }

// azureBucketConfig is spec.providerConfig of a BackupBucket, in the format of gardener-extension-provider-azure
// (pkg/apis/azure/v1alpha1/types_backupbucket.go).
type azureBucketConfig struct {
	configHeader
	Immutability       *immutabilityConfig `json:"immutability,omitempty"`
	CloudConfiguration *cloudConfiguration `json:"cloudConfiguration,omitempty"`
	RotationConfig     *rotationConfig     `json:"rotationConfig,omitempty"`
}

type rotationConfig struct {
	RotationPeriodDays   int32  `json:"rotationPeriodDays"`
	ExpirationPeriodDays *int32 `json:"expirationPeriodDays,omitempty"`
}

func (c *azureClients) parseConfig(path *field.Path, providerType string, raw []byte) (want desired, err error) {
	var config azureBucketConfig
	decodeErr := decodeConfig(path, providerType, raw, &config)
	if config.CloudConfiguration != nil {
		want.Cloud = config.CloudConfiguration.Name
	}
	switch {
	case decodeErr != nil:
		want.CloudUnknown = want.Cloud == ""
		return want, decodeErr
	case config.CloudConfiguration != nil && want.Cloud == "":
		return want, configErrorf("%s is empty", path.Child("cloudConfiguration", "name"))
	}
	if want.Rotation, err = config.RotationConfig.rotation(path.Child("rotationConfig")); err != nil {
		return want, err
	}
	want.Policy, err = config.Immutability.policy(path.Child("immutability"), azureMaxRetentionDays)
	return want, err
}

// rotation applies the rules of gardener/gardener-extension-provider-azure
// pkg/apis/azure/validation/backupbucket.go.
func (c *rotationConfig) rotation(path *field.Path) (keyRotation, error) {
	if c == nil {
		return keyRotation{}, nil
	}
	if c.RotationPeriodDays < 2 {
		return keyRotation{}, configErrorf("%s is %d, must be at least 2", path.Child("rotationPeriodDays"), c.RotationPeriodDays)
	}
	rotation := keyRotation{Days: c.RotationPeriodDays}
	if c.ExpirationPeriodDays != nil {
		rotation.ExpirationDays = *c.ExpirationPeriodDays
		if rotation.ExpirationDays <= c.RotationPeriodDays {
			return keyRotation{}, configErrorf("%s is %d, must be above rotationPeriodDays, which is %d",
				path.Child("expirationPeriodDays"), rotation.ExpirationDays, c.RotationPeriodDays)
		}
	}
	return rotation, nil
}

func (c *azureClients) record(providerType string, r record) any {
	if status := providerStatus(providerType, r); status != nil {
		return status
	}
	return nil
}

func (c *azureClients) warnings(path *field.Path, desired, floor Policy) map[string]string {
	if !floor.Locked || desired.Days <= floor.Days {
		return nil
	}
	return map[string]string{warnExtend: fmt.Sprintf("%s: Azure allows a locked policy to be extended five times, ever; "+
		"this is one of them", path.Child("immutability", "retentionPeriod"))}
}

// refuseExtension implements extensionLimit.
func (c *azureClients) refuseExtension(desired, live Policy) *Refusal {
	return &Refusal{Reason: reasonExtend, Message: fmt.Sprintf("the bucket has a %s, spec.providerConfig asks for %s: "+
		"Azure allows a locked policy to be extended only five times, and that has been done; write retentionPeriod: %s",
		live, desired, live.Hours())}
}

func (c *azureClients) entrySecret(_ *backupEntry, source, _, wanted *corev1.Secret) error {
	if isWorkloadIdentity(source) {
		return configErrorf("secret %s/%s is one of a workload identity, which etcd-backup-restore does not support on Azure: "+
			"it needs %s and %s, as the BackupBucket's generated secret has them",
			source.Namespace, source.Name, dataKeyStorageAccount, dataKeyStorageKey)
	}
	maps.Copy(wanted.Data, source.Data)
	return nil
}

func (c *azureClients) rotateAnnotation() string { return annotationRotate }

func (c *azureClients) published(generated *corev1.Secret) (account, key string) {
	return string(generated.Data[dataKeyStorageAccount]), string(generated.Data[dataKeyStorageKey])
}
