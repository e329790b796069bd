// Secrets in and out: the credentials that a spec names, held with a finalizer as long as an object uses them; the
// generated secret that publishes an account's key; and the wanted etcd-backup secret of an entry. All are replaced with
// an optimistic lock, and not written if they are as wanted. No value of a secret is ever logged or put into a status.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

const (
	etcdBackupSecretName = "etcd-backup"
	annotationCreatedBy  = "backup.gardener.cloud/created-by"

	// Workload identity: gardener/gardener pkg/apis/security/v1alpha1/constants/types_constants.go.
	labelPurpose              = "security.gardener.cloud/purpose"
	purposeTokenRequestor     = "workload-identity-token-requestor"
	workloadIdentityPrefix    = "workloadidentity.security.gardener.cloud/"
	labelWorkloadProvider     = workloadIdentityPrefix + "provider"
	annotationWorkloadName    = workloadIdentityPrefix + "name"
	annotationWorkloadNS      = workloadIdentityPrefix + "namespace"
	annotationWorkloadContext = workloadIdentityPrefix + "context-object"
	annotationTokenRenew      = workloadIdentityPrefix + "token-renew-timestamp"

	dataKeyBucketName = "bucketName"
	dataKeyConfig     = "config"
	dataKeyToken      = "token"
	dataKeyRegion     = "region"
	dataKeyRoleARN    = "roleARN"

	// Keys of the generated secret of an Azure bucket, which etcd-backup-restore reads
	// (gardener/etcd-backup-restore pkg/snapstore/abs_snapstore.go).
	dataKeyStorageAccount = "storageAccount"
	dataKeyStorageKey     = "storageKey"
	dataKeyDomain         = "domain"

	// Names of gardener/gardener pkg/apis/core/v1beta1/constants/types_constants.go.
	gardenNamespace       = "garden"
	generatedSecretPrefix = "generated-bucket-"

	// annotationKeyCreated tells when the published key was created, in RFC 3339, and annotationKeySince, where that is not known,
	// since when it is published: it is at least as old.
	annotationKeyCreated = "bucketwarden/key-created"
	annotationKeySince   = "bucketwarden/key-published-since"
)

// secrets reads and writes the secrets around one resource.
type secrets struct {
	client kubernetes.Interface
	// finalizer is what the resource holds on the secrets it refers to.
	finalizer string
}

func checkSecretRef(ref types.NamespacedName) error {
	if ref.Name == "" || ref.Namespace == "" {
		return configErrorf("spec.secretRef is incomplete: both name and namespace are needed")
	}
	return nil
}

// get reads the secret that spec.secretRef names from the API server.
func (s *secrets) get(ctx context.Context, ref types.NamespacedName) (*corev1.Secret, error) {
	if err := checkSecretRef(ref); err != nil {
		return nil, err
	}
	secret, err := s.client.CoreV1().Secrets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, &secretMissingError{ref: ref}
	}
	if err != nil {
		return nil, fmt.Errorf("reading secret %s: %w", ref, err)
	}
	return secret, nil
}

func (s *secrets) patch(ctx context.Context, secret *corev1.Secret, patch map[string]any) error {
	data, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("encoding a patch of secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	_, err = s.client.CoreV1().Secrets(secret.Namespace).Patch(ctx, secret.Name, types.MergePatchType, data,
		metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return fmt.Errorf("patching secret %s/%s: %w", secret.Namespace, secret.Name, err)
	}
	return nil
}

func (s *secrets) setFinalizers(ctx context.Context, secret *corev1.Secret, finalizers []string) error {
	return s.patch(ctx, secret, map[string]any{"metadata": map[string]any{
		"finalizers": finalizers, "resourceVersion": secret.ResourceVersion}})
}

func (s *secrets) held(secret *corev1.Secret) bool {
	return slices.Contains(secret.Finalizers, s.finalizer)
}

// hold adds the finalizer to the secret as it was read.
func (s *secrets) hold(ctx context.Context, secret *corev1.Secret) error {
	if s.held(secret) {
		return nil
	}
	return s.setFinalizers(ctx, secret, append(slices.Clone(secret.Finalizers), s.finalizer))
}

// holdUnread adds the finalizer and returns the secret, in one request. A strategic merge
// patch adds to the finalizers whatever they are, so that they need not be read before.
func (s *secrets) holdUnread(ctx context.Context, ref types.NamespacedName) (*corev1.Secret, error) {
	if err := checkSecretRef(ref); err != nil {
		return nil, err
	}
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"finalizers": []string{s.finalizer}}})
	if err != nil {
		return nil, fmt.Errorf("encoding a patch of secret %s: %w", ref, err)
	}
	secret, err := s.client.CoreV1().Secrets(ref.Namespace).Patch(ctx, ref.Name, types.StrategicMergePatchType, data,
		metav1.PatchOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		return nil, &secretMissingError{ref: ref}
	}
	return secret, wrapf(err, "adding a finalizer to secret %s", ref)
}

// release removes the finalizer after a fresh read: gardenlet patches the secret every
// few seconds while it waits for a deletion. A secret that is gone is fine.
func (s *secrets) release(ctx context.Context, ref types.NamespacedName) error {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		secret, err := s.get(ctx, ref)
		if err != nil {
			return err
		}
		if !s.held(secret) {
			return nil
		}
		return s.setFinalizers(ctx, secret, slices.DeleteFunc(slices.Clone(secret.Finalizers),
			func(f string) bool { return f == s.finalizer }))
	})
	var missing *secretMissingError
	var config *configError
	if errors.As(err, &missing) || errors.As(err, &config) {
		return nil
	}
	return ignoreNotFound(err)
}

// generatedSecretRef is where the generated secret of a BackupBucket goes
// (gardener/gardener docs/extensions/resources/backupbucket.md).
func generatedSecretRef(b *backupBucket) types.NamespacedName {
	namespace := b.Annotations[annotationGeneratedSecretNamespace]
	if namespace == "" {
		namespace = gardenNamespace
	}
	return types.NamespacedName{Namespace: namespace, Name: generatedSecretPrefix + b.Name}
}

// generatedSecretRefs are where the generated secret may be, the first one counts: the
// annotation may have changed since the status referred to it.
func generatedSecretRefs(b *backupBucket) []types.NamespacedName {
	ref := generatedSecretRef(b)
	if b.GeneratedSecretRef.Name == ref.Name && b.GeneratedSecretRef != ref {
		return []types.NamespacedName{b.GeneratedSecretRef, ref}
	}
	return []types.NamespacedName{ref}
}

// generated reads the first generated secret that exists; nil if there is none.
func (s *secrets) generated(ctx context.Context, refs ...types.NamespacedName) (*corev1.Secret, error) {
	for _, ref := range refs {
		secret, err := s.client.CoreV1().Secrets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return secret, wrapf(err, "reading the generated secret %s", ref)
		}
	}
	return nil, nil
}

// publish writes the generated secret of a BackupBucket with the given data, created says
// when its key was. existing is the one that there is so far, nil if there is none; one in
// another namespace is deleted. A secret that is as wanted is not written.
func (s *secrets) publish(ctx context.Context, b *backupBucket, existing *corev1.Secret, data map[string][]byte,
	created time.Time) (*corev1.Secret, error) {
	ref := generatedSecretRef(b)
	wanted := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name},
		Type: corev1.SecretTypeOpaque, Data: data}
	if !created.IsZero() {
		wanted.Annotations = map[string]string{annotationKeyCreated: created.UTC().Format(time.RFC3339)}
	} else {
		since := time.Now()
		if existing != nil && hashData(existing.Data) == hashData(data) && !keySince(existing).IsZero() {
			since = keySince(existing)
		}
		wanted.Annotations = map[string]string{annotationKeySince: since.UTC().Format(time.RFC3339)}
	}
	client := s.client.CoreV1().Secrets(ref.Namespace)
	if moved := existing != nil && existing.Namespace != ref.Namespace; existing == nil || moved {
		secret, err := client.Create(ctx, wanted, metav1.CreateOptions{FieldManager: fieldManager})
		if err == nil && moved {
			err = s.deleteSecret(ctx, existing, permitMoved(existing, secret))
		}
		if !apierrors.IsAlreadyExists(err) {
			return secret, wrapf(err, "creating the generated secret %s", ref)
		}
		// A move was cut off.
		there, err := client.Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("reading the generated secret %s: %w", ref, err)
		}
		secret, err = s.publish(ctx, b, there, data, created)
		if err == nil && moved {
			err = s.deleteSecret(ctx, existing, permitMoved(existing, there))
		}
		return secret, err
	}
	wanted.Labels = existing.Labels
	annotations := maps.Clone(existing.Annotations)
	delete(annotations, annotationKeyCreated)
	delete(annotations, annotationKeySince)
	maps.Copy(wanted.Annotations, annotations)
	patch := replaceSecretPatch(existing, wanted)
	if patch == nil {
		return existing, nil
	}
	return wanted, s.patch(ctx, existing, patch)
}

// deleteSecret deletes a secret as it was read; one that is gone is fine.
func (s *secrets) deleteSecret(ctx context.Context, secret *corev1.Secret, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	err := s.client.CoreV1().Secrets(secret.Namespace).Delete(ctx, secret.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion}})
	return wrapf(ignoreNotFound(err), "deleting secret %s/%s", secret.Namespace, secret.Name)
}

func isWorkloadIdentity(secret *corev1.Secret) bool {
	return secret.Labels[labelPurpose] == purposeTokenRequestor
}

// etcdBackupName is the name of the secret that etcd-backup-restore reads for a
// BackupEntry (gardener/gardener extensions/pkg/controller/backupentry/genericactuator).
func etcdBackupName(entry string) string {
	if strings.HasPrefix(entry, "source") {
		return "source-" + etcdBackupSecretName
	}
	return etcdBackupSecretName
}

// etcdBackupSecret is the wanted etcd-backup secret of an entry. existing may be nil;
// of a workload identity it lends the token, which gardenlet's token requestor writes.
// The rules are those of gardener/gardener
// extensions/pkg/controller/backupentry/genericactuator/actuator.go.
func etcdBackupSecret(p provider, e *backupEntry, source, existing *corev1.Secret) (*corev1.Secret, error) {
	namespace, _ := splitEntryName(e.Name)
	wanted := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   namespace,
			Name:        etcdBackupName(e.Name),
			Annotations: map[string]string{annotationCreatedBy: e.Name},
		},
		Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{},
	}
	if err := p.entrySecret(e, source, existing, wanted); err != nil {
		return nil, err
	}
	wanted.Data[dataKeyBucketName] = []byte(e.BucketName)
	return wanted, nil
}

// replaceSecretPatch is the merge patch, with optimistic lock, that makes labels,
// annotations and data of existing exactly those of wanted; nil if they are.
func replaceSecretPatch(existing, wanted *corev1.Secret) map[string]any {
	sameBytes := func(a, b []byte) bool { return string(a) == string(b) }
	if maps.Equal(existing.Labels, wanted.Labels) && maps.Equal(existing.Annotations, wanted.Annotations) &&
		maps.EqualFunc(existing.Data, wanted.Data, sameBytes) {
		return nil
	}
	return map[string]any{
		"metadata": map[string]any{
			"resourceVersion": existing.ResourceVersion,
			"labels":          replaceMap(existing.Labels, wanted.Labels),
			"annotations":     replaceMap(existing.Annotations, wanted.Annotations),
		},
		"data": replaceMap(existing.Data, wanted.Data),
	}
}

// replaceMap is the merge patch that makes one map of another: null removes a key.
func replaceMap[V any](existing, wanted map[string]V) map[string]any {
	patch := map[string]any{}
	for key := range existing {
		patch[key] = nil
	}
	for key, value := range wanted {
		patch[key] = value
	}
	return patch
}
