package env

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Gardenlet makes objects the way gardenlet does
// (gardener/gardener pkg/gardenlet/controller/backup{bucket,entry}/reconciler.go).
type Gardenlet struct{ Kube *Kube }

// GardenNamespace is where gardenlet keeps the credentials.
const GardenNamespace = "garden"

func (g Gardenlet) trigger() map[string]any {
	return map[string]any{
		"gardener.cloud/operation": "reconcile",
		"gardener.cloud/timestamp": time.Now().UTC().Format(time.RFC3339Nano),
	}
}

// Namespace creates a namespace, if it is not there.
func (g Gardenlet) Namespace(ctx context.Context, name string) error {
	_, err := g.Kube.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return nil
}

// Secret creates a secret in the garden namespace.
func (g Gardenlet) Secret(ctx context.Context, name string, data map[string][]byte) error {
	_, err := g.Kube.Client.CoreV1().Secrets(GardenNamespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{
			"gardener.cloud/timestamp": time.Now().UTC().Format(time.RFC3339Nano)}},
		Data: data,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating secret %s: %w", name, err)
	}
	return nil
}

func (g Gardenlet) create(ctx context.Context, resource schema.GroupVersionResource, kind, name string, spec map[string]any) error {
	_, err := g.Kube.Dynamic.Resource(resource).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": resource.GroupVersion().String(),
		"kind":       kind,
		"metadata":   map[string]any{"name": name, "annotations": g.trigger()},
		"spec":       spec,
	}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating %s %s: %w", kind, name, err)
	}
	return nil
}

// BucketConfig is spec.providerConfig of a BackupBucket.
func BucketConfig(providerType string, immutability map[string]any) map[string]any {
	return map[string]any{
		"apiVersion":   providerType + ".provider.extensions.gardener.cloud/v1alpha1",
		"kind":         "BackupBucketConfig",
		"immutability": immutability,
	}
}

// Bucket creates a BackupBucket whose credentials are the secret bucket-<name>.
func (g Gardenlet) Bucket(ctx context.Context, name, providerType, region string, providerConfig map[string]any) error {
	spec := map[string]any{
		"type": providerType, "region": region,
		"secretRef": map[string]any{"namespace": GardenNamespace, "name": "bucket-" + name},
	}
	if providerConfig != nil {
		spec["providerConfig"] = providerConfig
	}
	return g.create(ctx, BackupBuckets, "BackupBucket", name, spec)
}

// Entry creates a BackupEntry whose credentials are the secret entry-<name>, with the
// provider status of its BackupBucket if that is on this cluster.
func (g Gardenlet) Entry(ctx context.Context, name, bucket, providerType, region string) error {
	spec := map[string]any{
		"type": providerType, "region": region, "bucketName": bucket,
		"secretRef": map[string]any{"namespace": GardenNamespace, "name": "entry-" + name},
	}
	o, err := g.Kube.Dynamic.Resource(BackupBuckets).Get(ctx, bucket, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("reading BackupBucket %s: %w", bucket, err)
	}
	if err == nil {
		if status, found, _ := unstructured.NestedMap(o.Object, "status", "providerStatus"); found {
			spec["backupBucketProviderStatus"] = status
		}
	}
	return g.create(ctx, BackupEntries, "BackupEntry", name, spec)
}

// Reconcile triggers an operation on an object; spec, if not nil, is merged into its
// spec in the same write.
func (g Gardenlet) Reconcile(ctx context.Context, resource schema.GroupVersionResource, name string, spec map[string]any) error {
	patch := map[string]any{"metadata": map[string]any{"annotations": g.trigger()}}
	if spec != nil {
		patch["spec"] = spec
	}
	return g.patch(ctx, resource, name, patch)
}

// Delete confirms the deletion of an object and deletes it.
func (g Gardenlet) Delete(ctx context.Context, resource schema.GroupVersionResource, name string) error {
	if err := g.patch(ctx, resource, name, map[string]any{"metadata": map[string]any{"annotations": map[string]any{
		"confirmation.gardener.cloud/deletion": "true",
		"gardener.cloud/timestamp":             time.Now().UTC().Format(time.RFC3339Nano),
	}}}); err != nil {
		return err
	}
	if err := g.Kube.Dynamic.Resource(resource).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("deleting %s %s: %w", resource.Resource, name, err)
	}
	return nil
}

func (g Gardenlet) patch(ctx context.Context, resource schema.GroupVersionResource, name string, patch map[string]any) error {
	data, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("encoding a patch of %s %s: %w", resource.Resource, name, err)
	}
	if _, err := g.Kube.Dynamic.Resource(resource).Patch(ctx, name, types.MergePatchType, data, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("patching %s %s: %w", resource.Resource, name, err)
	}
	return nil
}

// Healthy says why gardenlet would not take an object for healthy
// (gardener/gardener pkg/utils/kubernetes/health/extensions.go).
func Healthy(o *unstructured.Unstructured) error {
	if o == nil {
		return errors.New("it does not exist")
	}
	if description, found, _ := unstructured.NestedString(o.Object, "status", "lastError", "description"); found {
		return fmt.Errorf("lastError: %s", description)
	}
	if observed, _, _ := unstructured.NestedInt64(o.Object, "status", "observedGeneration"); observed != o.GetGeneration() {
		return fmt.Errorf("observedGeneration is %d, generation %d", observed, o.GetGeneration())
	}
	if operation, found := o.GetAnnotations()["gardener.cloud/operation"]; found {
		return fmt.Errorf("operation %q is pending", operation)
	}
	state, _, _ := unstructured.NestedString(o.Object, "status", "lastOperation", "state")
	if state != "Succeeded" {
		return fmt.Errorf("state is %q", state)
	}
	updated, _, _ := unstructured.NestedString(o.Object, "status", "lastOperation", "lastUpdateTime")
	at, err := time.Parse(time.RFC3339, updated)
	if err != nil {
		return fmt.Errorf("lastUpdateTime %q: %w", updated, err)
	}
	if timestamp, found := o.GetAnnotations()["gardener.cloud/timestamp"]; found {
		asked, err := time.Parse(time.RFC3339Nano, timestamp)
		if err == nil && asked.Truncate(time.Second).After(at) {
			return fmt.Errorf("lastUpdateTime %s lies before the timestamp %s", updated, timestamp)
		}
	}
	return nil
}

// InState returns a condition that an object's last operation is in a state.
func InState(state string) func(*unstructured.Unstructured) error {
	return func(o *unstructured.Unstructured) error {
		if o == nil {
			return errors.New("it does not exist")
		}
		got, _, _ := unstructured.NestedString(o.Object, "status", "lastOperation", "state")
		if got != state || o.GetAnnotations()["gardener.cloud/operation"] != "" {
			return fmt.Errorf("state is %q", got)
		}
		return nil
	}
}
