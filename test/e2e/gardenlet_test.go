package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"bucketwarden/test/env"
)

// The helpers of this file write what gardenlet writes (gardener/gardener
// pkg/gardenlet/controller/backupbucket and backupentry).

const (
	annotationOperation    = "gardener.cloud/operation"
	annotationTimestamp    = "gardener.cloud/timestamp"
	annotationConfirmation = "confirmation.gardener.cloud/deletion"
	annotationCreatedBy    = "backup.gardener.cloud/created-by"
	annotationShootUID     = "shoot.gardener.cloud/uid"

	finalizerBackupBucket = "extensions.gardener.cloud/backupbucket"
	finalizerBackupEntry  = "extensions.gardener.cloud/backupentry"

	codeConfiguration          = "ERR_CONFIGURATION_PROBLEM"
	codeUnauthenticated        = "ERR_INFRA_UNAUTHENTICATED"
	codeUnauthorized           = "ERR_INFRA_UNAUTHORIZED"
	codeRetryableConfiguration = "ERR_RETRYABLE_CONFIGURATION_PROBLEM"
	codeRetryableDependencies  = "ERR_RETRYABLE_INFRA_DEPENDENCIES"
)

var (
	buckets = env.BackupBuckets
	entries = env.BackupEntries
	secrets = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
)

func timestamp() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// secretName is the secret that gardenlet writes for an object.
func secretName(resource schema.GroupVersionResource, name string) string {
	if resource == buckets {
		return "bucket-" + name
	}
	return "entry-" + name
}

// immutability is spec.providerConfig.immutability.
func immutability(mode, period string) map[string]any {
	return map[string]any{"retentionType": "bucket", "retentionPeriod": period, "mode": mode}
}

// providerConfig is spec.providerConfig for a spec.type; nil immutability means none.
func providerConfig(kind string, immutability map[string]any) map[string]any {
	config := env.BucketConfig(kind, immutability)
	if immutability == nil {
		delete(config, "immutability")
	}
	return config
}

// bucketObject is a BackupBucket in the region of minio; a nil config is left out.
func bucketObject(name, kind string, config map[string]any) *unstructured.Unstructured {
	spec := map[string]any{
		"type": kind, "region": minio.Region,
		"secretRef": map[string]any{"name": secretName(buckets, name), "namespace": gardenNamespace},
	}
	if config != nil {
		spec["providerConfig"] = config
	}
	return newObject("BackupBucket", name, spec)
}

func entryObject(name, kind, bucket string) *unstructured.Unstructured {
	return newObject("BackupEntry", name, map[string]any{
		"type": kind, "region": minio.Region, "bucketName": bucket,
		"secretRef": map[string]any{"name": secretName(entries, name), "namespace": gardenNamespace},
	})
}

func newObject(kind, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": buckets.GroupVersion().String(), "kind": kind,
		"metadata": map[string]any{"name": name, "annotations": map[string]any{}},
		"spec":     spec,
	}}
}

// writeSecret creates the secret in the garden namespace, or replaces its data and
// renews its timestamp.
func writeSecret(t *testing.T, name string, data map[string][]byte) {
	t.Helper()
	ctx, client := t.Context(), kube.Client.CoreV1().Secrets(gardenNamespace)
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		secret, err := client.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = client.Create(ctx, &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{annotationTimestamp: timestamp()}},
				Data:       data,
			}, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		secret.Annotations = map[string]string{annotationTimestamp: timestamp()}
		secret.Data = data
		_, err = client.Update(ctx, secret, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// create creates an object that asks to be reconciled.
func create(t *testing.T, resource schema.GroupVersionResource, o *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	annotate(o, annotationOperation, "reconcile")
	annotate(o, annotationTimestamp, timestamp())
	return createAsIs(t, resource, o)
}

func createAsIs(t *testing.T, resource schema.GroupVersionResource, o *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	created, err := kube.Dynamic.Resource(resource).Create(t.Context(), o, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return created
}

// createBucket creates a BackupBucket on the store and its secret.
func (store *s3Store) createBucket(t *testing.T, o *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	writeSecret(t, secretName(buckets, o.GetName()), store.SecretData(store.Endpoint))
	annotate(o, "backupbucket.extensions.gardener.cloud/generated-secret-namespace", gardenNamespace)
	return create(t, buckets, o)
}

// createEntry creates a BackupEntry on minio and its secret.
func (store *s3Store) createEntry(t *testing.T, o *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	writeSecret(t, secretName(entries, o.GetName()), store.SecretData(store.Endpoint))
	return create(t, entries, o)
}

func annotate(o *unstructured.Unstructured, key, value string) {
	annotations := o.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	o.SetAnnotations(annotations)
}

// update changes an object without asking for a reconcile.
func update(t *testing.T, resource schema.GroupVersionResource, name string, change func(*unstructured.Unstructured)) *unstructured.Unstructured {
	t.Helper()
	ctx, client := t.Context(), kube.Dynamic.Resource(resource)
	var updated *unstructured.Unstructured
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		o, err := client.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(o)
		updated, err = client.Update(ctx, o, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return updated
}

// reconcile changes an object, if change is not nil, and asks for a reconcile.
func reconcile(t *testing.T, resource schema.GroupVersionResource, name string, change func(*unstructured.Unstructured)) *unstructured.Unstructured {
	t.Helper()
	return operate(t, resource, name, "reconcile", change)
}

// operate sets an operation annotation. Its timestamp is later than the last status, so
// that only a status written for this operation makes the object healthy again.
func operate(t *testing.T, resource schema.GroupVersionResource, name, operation string, change func(*unstructured.Unstructured)) *unstructured.Unstructured {
	t.Helper()
	return update(t, resource, name, func(o *unstructured.Unstructured) {
		if change != nil {
			change(o)
		}
		now := time.Now().UTC()
		if last, err := time.Parse(time.RFC3339, str(o, "status", "lastOperation", "lastUpdateTime")); err == nil && !now.Truncate(time.Second).After(last) {
			now = last.Add(time.Second)
		}
		annotate(o, annotationOperation, operation)
		annotate(o, annotationTimestamp, now.Format(time.RFC3339Nano))
	})
}

// setImmutability is a change for reconcile.
func setImmutability(immutability map[string]any) func(*unstructured.Unstructured) {
	return func(o *unstructured.Unstructured) {
		set(o, providerConfig(str(o, "spec", "type"), immutability), "spec", "providerConfig")
	}
}

// confirm renews the confirmation of a deletion, as gardenlet does while it waits.
func confirm(ctx context.Context, resource schema.GroupVersionResource, name string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{
		annotationConfirmation: "true", annotationTimestamp: timestamp()}}})
	if err != nil {
		return err
	}
	_, err = kube.Dynamic.Resource(resource).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// remove confirms the deletion of an object and deletes it.
func remove(t *testing.T, resource schema.GroupVersionResource, name string) {
	t.Helper()
	if err := confirm(t.Context(), resource, name); err != nil {
		t.Fatal(err)
	}
	if err := kube.Dynamic.Resource(resource).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// waitFor waits until a BackupBucket or BackupEntry satisfies the condition.
func waitFor(t *testing.T, resource schema.GroupVersionResource, name string, condition func(*unstructured.Unstructured) error) *unstructured.Unstructured {
	t.Helper()
	o, err := kube.WaitFor(t.Context(), timeout, resource, "", name, condition)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func waitHealthy(t *testing.T, resource schema.GroupVersionResource, name string) *unstructured.Unstructured {
	t.Helper()
	return waitFor(t, resource, name, healthy)
}

func waitFailed(t *testing.T, resource schema.GroupVersionResource, name, code string, parts ...string) *unstructured.Unstructured {
	t.Helper()
	return waitFor(t, resource, name, failed(code, parts...))
}

// waitThrottled waits until an object waits for a store that asks for fewer requests, which is no failure at once.
func waitThrottled(t *testing.T, resource schema.GroupVersionResource, name string) {
	t.Helper()
	waitFor(t, resource, name, func(o *unstructured.Unstructured) error {
		state, description := str(o, "status", "lastOperation", "state"), str(o, "status", "lastOperation", "description")
		if state != "Processing" || !strings.Contains(description, "asks for fewer requests") {
			return fmt.Errorf("it is %s: %s", state, description)
		}
		return nil
	})
}

func waitGone(t *testing.T, resource schema.GroupVersionResource, name string) {
	t.Helper()
	waitFor(t, resource, name, func(o *unstructured.Unstructured) error {
		if o != nil {
			return errors.New("it still exists")
		}
		return nil
	})
}

// get reads an object.
func get(t *testing.T, resource schema.GroupVersionResource, name string) *unstructured.Unstructured {
	t.Helper()
	o, err := kube.Dynamic.Resource(resource).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

var healthy = env.Healthy

// settled says that the latest request was taken up and its generation observed.
func settled(o *unstructured.Unstructured) error {
	if operation, ok := o.GetAnnotations()[annotationOperation]; ok {
		return fmt.Errorf("operation annotation is %q", operation)
	}
	if observed := num(o, "status", "observedGeneration"); observed != o.GetGeneration() {
		return fmt.Errorf("generation %d is observed, current is %d", observed, o.GetGeneration())
	}
	return nil
}

// failed is the contract's Error status with one code (none if it is empty) and a
// description that contains all parts.
func failed(code string, parts ...string) func(*unstructured.Unstructured) error {
	return func(o *unstructured.Unstructured) error {
		if o == nil {
			return errors.New("it does not exist")
		}
		if err := settled(o); err != nil {
			return err
		}
		state, progress := str(o, "status", "lastOperation", "state"), num(o, "status", "lastOperation", "progress")
		if state != "Error" || progress != 50 {
			return fmt.Errorf("state is %s/%d, want Error/50", state, progress)
		}
		description := str(o, "status", "lastError", "description")
		if description != str(o, "status", "lastOperation", "description") {
			return fmt.Errorf("the descriptions of lastError and lastOperation differ")
		}
		if description == "" || strings.ToUpper(description[:1]) != description[:1] {
			return fmt.Errorf("description %q does not begin with an upper-case letter", description)
		}
		for _, part := range parts {
			if !strings.Contains(description, part) {
				return fmt.Errorf("description %q does not contain %q", description, part)
			}
		}
		codes, _, err := unstructured.NestedStringSlice(o.Object, "status", "lastError", "codes")
		if err != nil {
			return err
		}
		var want []string
		if code != "" {
			want = []string{code}
		}
		if !slices.Equal(codes, want) {
			return fmt.Errorf("codes are %v, want %v (%s)", codes, want, description)
		}
		return nil
	}
}

// inState waits for a state with a description that contains all parts.
func inState(state string, parts ...string) func(*unstructured.Unstructured) error {
	return func(o *unstructured.Unstructured) error {
		if o == nil {
			return errors.New("it does not exist")
		}
		have, description := str(o, "status", "lastOperation", "state"), str(o, "status", "lastOperation", "description")
		if have != state {
			return fmt.Errorf("state is %q: %s", have, description)
		}
		for _, part := range parts {
			if !strings.Contains(description, part) {
				return fmt.Errorf("description %q does not contain %q", description, part)
			}
		}
		return nil
	}
}

func str(o *unstructured.Unstructured, path ...string) string {
	s, _, _ := unstructured.NestedString(o.Object, path...)
	return s
}

func num(o *unstructured.Unstructured, path ...string) int64 {
	n, _, _ := unstructured.NestedInt64(o.Object, path...)
	return n
}

func has(o *unstructured.Unstructured, path ...string) bool {
	v, found, _ := unstructured.NestedFieldNoCopy(o.Object, path...)
	return found && v != nil
}

func set(o *unstructured.Unstructured, value any, path ...string) {
	if err := unstructured.SetNestedField(o.Object, value, path...); err != nil {
		panic(err)
	}
}

// conditionOf returns a condition of status.conditions, nil if there is none.
func conditionOf(o *unstructured.Unstructured, conditionType string) map[string]any {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == conditionType {
			return c
		}
	}
	return nil
}

// checkSpecIsTheClients checks that the daemon owns no field of the spec: gardenlet
// compares it with what it wants and would ask for a reconcile for ever.
func checkSpecIsTheClients(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	ours := false
	for _, f := range o.GetManagedFields() {
		if f.Manager != "bucketwarden" || f.FieldsV1 == nil {
			continue
		}
		ours = true
		if strings.Contains(f.FieldsV1.GetRawString(), `"f:spec"`) {
			t.Errorf("the daemon wrote into the spec of %s: %s", o.GetName(), f.FieldsV1.GetRawString())
		}
	}
	if !ours {
		t.Errorf("%s has no fields of the daemon", o.GetName())
	}
}

// awaitEvent waits for an event about the object.
func awaitEvent(t *testing.T, reason, name string, parts ...string) {
	t.Helper()
	eventually(t, "there is an event "+reason+" about "+name, func(ctx context.Context) error {
		list, err := kube.Client.EventsV1().Events(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		seen := []string{}
		for _, event := range list.Items {
			if event.Regarding.Name != name {
				continue
			}
			if event.Reason == reason && !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(event.Note, part) }) {
				return nil
			}
			seen = append(seen, event.Reason+": "+event.Note)
		}
		return fmt.Errorf("there are only %q", seen)
	})
}

func getSecret(t *testing.T, namespace, name string) *corev1.Secret {
	t.Helper()
	secret, err := kube.Client.CoreV1().Secrets(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func createNamespace(t *testing.T, name string, annotations map[string]string) {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}
	if _, err := kube.Client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}
