// What a bucket on S3 is configured with: spec.providerConfig as gardener-extension-provider-aws has it, the record of it in
// providerStatus, and the secret that etcd-backup-restore reads. Here the words are S3's: a locked policy is one in
// mode compliance, an unlocked one in mode governance, and credentials may be those of a workload identity. Nothing in
// this file makes a request.

package main

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// storeS3 is the name of this store, as in --type NAME=STORE.
const storeS3 = "s3"

// Values of immutability.mode.
const (
	modeCompliance = "compliance"
	modeGovernance = "governance"
)

// warnGovernance is a reason of a warning, beside those of policyWarnings.
const warnGovernance = "governance"

var _ provider = &s3Clients{}

// newS3Provider serves the line of daemon.go.
func newS3Provider(_ *config, m *metrics) (provider, error) { return newS3Clients(m), nil }

func (c *s3Clients) name() string { return storeS3 }

// s3BucketConfig is spec.providerConfig of a BackupBucket, in the format of gardener-extension-provider-aws
// (pkg/apis/aws/v1alpha1/types_backupbucket.go).
type s3BucketConfig struct {
	configHeader
	Immutability *s3Immutability `json:"immutability,omitempty"`
}

type s3Immutability struct {
	immutabilityConfig
	Mode string `json:"mode,omitempty"`
}

func (c *s3Clients) parseConfig(path *field.Path, providerType string, raw []byte) (desired, error) {
	var config s3BucketConfig
	if err := decodeConfig(path, providerType, raw, &config); err != nil {
		return desired{}, err
	}
	policy, err := config.Immutability.policy(path.Child("immutability"))
	return desired{Policy: policy}, err
}

func (c *s3Immutability) policy(path *field.Path) (Policy, error) {
	if c == nil {
		return Policy{}, nil
	}
	policy, err := c.immutabilityConfig.policy(path, s3MaxRetentionDays)
	if err != nil {
		return Policy{}, err
	}
	switch mode := c.Mode; mode {
	case "":
	case modeCompliance, modeGovernance:
		policy.Locked = mode == modeCompliance
		if c.Locked != nil && *c.Locked != policy.Locked {
			return Policy{}, configErrorf("%s %q contradicts locked: %t; compliance is locked, governance is not: "+
				"write only one of the two", path.Child("mode"), mode, *c.Locked)
		}
	default:
		return Policy{}, configErrorf("%s is %q, must be %q or %q", path.Child("mode"), mode, modeCompliance, modeGovernance)
	}
	return policy, nil
}

// record adds the mode.
func (c *s3Clients) record(providerType string, r record) any {
	status := providerStatus(providerType, r)
	if status == nil {
		return nil
	}
	if immutability := status.Immutability; immutability != nil {
		immutability.Mode = modeGovernance
		if r.Policy.Locked {
			immutability.Mode = modeCompliance
		}
	}
	return status
}

func (c *s3Clients) warnings(path *field.Path, desired, floor Policy) map[string]string {
	path = path.Child("immutability", "mode")
	warnings := map[string]string{}
	if desired.Locked && !floor.Locked {
		warnings[warnLock] = lockWarning(path, desired)
	}
	if !desired.None() && !desired.Locked {
		warnings[warnGovernance] = fmt.Sprintf("%s: governance protects only from those without the permission "+
			"s3:BypassGovernanceRetention, and can be undone; compliance is the locked form", path)
	}
	return warnings
}

func (c *s3Clients) entrySecret(e *backupEntry, source, existing, wanted *corev1.Secret) error {
	if isWorkloadIdentity(source) {
		if err := addWorkloadIdentity(wanted, source, existing); err != nil {
			return err
		}
	} else {
		maps.Copy(wanted.Data, source.Data)
	}
	wanted.Data[dataKeyRegion] = []byte(e.Region)
	return nil
}

// addWorkloadIdentity makes wanted the secret of a workload identity. The token is what gardenlet has written there.
func addWorkloadIdentity(wanted, source, existing *corev1.Secret) error {
	for _, key := range []string{annotationWorkloadName, annotationWorkloadNS} {
		if source.Annotations[key] == "" {
			return configErrorf("the workload identity secret %s/%s lacks the annotation %s", source.Namespace, source.Name, key)
		}
		wanted.Annotations[key] = source.Annotations[key]
	}
	if context, ok := source.Annotations[annotationWorkloadContext]; ok {
		wanted.Annotations[annotationWorkloadContext] = context
	}
	provider := source.Labels[labelWorkloadProvider]
	if provider == "" {
		return configErrorf("the workload identity secret %s/%s lacks the label %s", source.Namespace, source.Name, labelWorkloadProvider)
	}
	wanted.Labels = map[string]string{labelPurpose: purposeTokenRequestor, labelWorkloadProvider: provider}
	roleARN, err := s3RoleARN(source.Data)
	if err != nil {
		return fmt.Errorf("workload identity secret %s/%s: %w", source.Namespace, source.Name, err)
	}
	wanted.Data[dataKeyRoleARN] = []byte(roleARN)
	if config, ok := source.Data[dataKeyConfig]; ok {
		wanted.Data[dataKeyConfig] = config
	}
	if existing != nil {
		if token, ok := existing.Data[dataKeyToken]; ok {
			wanted.Data[dataKeyToken] = token
		}
		if renew, ok := existing.Annotations[annotationTokenRenew]; ok {
			wanted.Annotations[annotationTokenRenew] = renew
		}
	}
	return nil
}
