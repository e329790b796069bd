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
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
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
	manifests, err := Manifests("ValidatingWebhookConfiguration")
	if err != nil {
		return err
	}
	configuration := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	if err := k8sruntime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(manifests[0].Object, configuration, true); err != nil {
		return fmt.Errorf("decoding the ValidatingWebhookConfiguration: %w", err)
	}
	for i := range configuration.Webhooks {
		config := &configuration.Webhooks[i].ClientConfig
		path := "/"
		if config.Service != nil && config.Service.Path != nil {
			path = *config.Service.Path
		}
		url := "https://" + address + path
		config.Service, config.URL = nil, &url
	}
	if _, err := k.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx, configuration, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the ValidatingWebhookConfiguration: %w", err)
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
