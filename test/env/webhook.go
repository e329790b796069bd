package env

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"
)

// ManifestsFile is the path of deploy/manifests.yaml.
func ManifestsFile() (string, error) {
	module, err := moduleDirectory()
	return filepath.Join(module, "..", "deploy", "manifests.yaml"), err
}

// Manifests returns the objects of the kind in deploy/manifests.yaml.
func Manifests(kind string) ([]*unstructured.Unstructured, error) {
	path, err := ManifestsFile()
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the manifests: %w", err)
	}
	objects, err := DecodeYAML(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	objects = slices.DeleteFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() != kind })
	if len(objects) == 0 {
		return nil, fmt.Errorf("%s has no %s", path, kind)
	}
	return objects, nil
}

// DecodeYAML returns the objects of a file of manifests; empty documents are left out.
func DecodeYAML(content []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for decoder := k8syaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096); ; {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decoding manifests: %w", err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}

// InstallWebhook creates the ValidatingWebhookConfiguration of deploy/manifests.yaml for a
// daemon that serves at the address, host:port, instead of in a pod.
func (k *Kube) InstallWebhook(ctx context.Context, address string) error {
	return k.installWebhooks(ctx, "ValidatingWebhookConfiguration", address)
}

// InstallMutatingWebhook is InstallWebhook for the MutatingWebhookConfiguration, of which the daemon has to be told.
func (k *Kube) InstallMutatingWebhook(ctx context.Context, address string) error {
	return k.installWebhooks(ctx, "MutatingWebhookConfiguration", address)
}

func (k *Kube) installWebhooks(ctx context.Context, kind, address string) error {
	manifests, err := Manifests(kind)
	if err != nil {
		return err
	}
	return k.CreateWebhooks(ctx, manifests[0], address)
}

// CreateWebhooks creates a configuration of either kind for a daemon that serves at the address.
func (k *Kube) CreateWebhooks(ctx context.Context, configuration *unstructured.Unstructured, address string) error {
	kind := configuration.GetKind()
	webhooks, _, err := unstructured.NestedSlice(configuration.Object, "webhooks")
	if err != nil || len(webhooks) == 0 {
		return fmt.Errorf("a %s with %d webhooks: %w", kind, len(webhooks), err)
	}
	for _, w := range webhooks {
		webhook, ok := w.(map[string]any)
		if !ok {
			return fmt.Errorf("a webhook of a %s is no object", kind)
		}
		path, _, err := unstructured.NestedString(webhook, "clientConfig", "service", "path")
		if err != nil {
			return fmt.Errorf("the path of a webhook: %w", err)
		}
		webhook["clientConfig"] = map[string]any{"url": "https://" + address + path}
	}
	o := configuration.DeepCopy()
	if err := unstructured.SetNestedSlice(o.Object, webhooks, "webhooks"); err != nil {
		return fmt.Errorf("changing a %s: %w", kind, err)
	}
	resource := schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: strings.ToLower(kind) + "s"}
	if _, err := k.Dynamic.Resource(resource).Create(ctx, o, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
		return fmt.Errorf("creating the %s: %w", kind, err)
	}
	return nil
}

// AwaitWebhook waits until the API server asks the webhook, which takes a moment after its
// configuration was made or got its caBundle. providerType is one that the daemon serves.
func (k *Kube) AwaitWebhook(ctx context.Context, timeout time.Duration, providerType string) error {
	invalid := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": BackupBuckets.GroupVersion().String(), "kind": "BackupBucket",
		"metadata": map[string]any{"generateName": "await-webhook-"},
		"spec": map[string]any{"type": providerType, "region": "none", "secretRef": map[string]any{"namespace": "none", "name": "none"},
			"providerConfig": map[string]any{"kind": "None"}},
	}}
	return Eventually(ctx, timeout, "the webhook denies an invalid BackupBucket", func(ctx context.Context) error {
		_, err := k.Dynamic.Resource(BackupBuckets).Create(ctx, invalid, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		switch {
		case apierrors.IsInvalid(err):
			return nil
		case err == nil:
			return errors.New("it was not denied")
		default:
			return fmt.Errorf("creating it: %w", err)
		}
	})
}
