package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"bucketwarden/test/env"
)

var (
	gardenSeeds   = schema.GroupVersionResource{Group: "core.gardener.cloud", Version: "v1beta1", Resource: "seeds"}
	gardenBuckets = schema.GroupVersionResource{Group: "core.gardener.cloud", Version: "v1beta1", Resource: "backupbuckets"}
)

// startGarden starts a garden cluster with a bucketwarden that serves admission only, as the
// chart configures it there.
func startGarden(t *testing.T) (dynamic.Interface, *warningRecorder) {
	t.Helper()
	cluster, err := env.StartKube(t.Context(), binaries.Testkube)
	must(t, err)
	t.Cleanup(cluster.Stop)
	must(t, cluster.InstallGardenCRDs(t.Context()))
	must(t, (env.Gardenlet{Kube: cluster}).Namespace(t.Context(), env.GardenNamespace))
	helm := ensureHelm(t)
	d, err := env.StartDaemon(t.Context(), env.DaemonOptions{
		Binary: binaries.Daemon, Kubeconfig: cluster.Kubeconfig,
		Args: []string{"--controllers=false", "--webhook-address=127.0.0.1:0", "--namespace=" + env.GardenNamespace},
		OnWebhook: func(ctx context.Context, address string) error {
			rendered, err := helm.Template(ctx, env.GardenNamespace, "controllers=false", "webhook.cluster=garden", "webhook.url=https://"+address)
			if err != nil {
				return err
			}
			objects, err := env.DecodeYAML(rendered)
			if err != nil {
				return err
			}
			for _, o := range objects {
				if o.GetKind() != "ValidatingWebhookConfiguration" {
					continue
				}
				configuration := &admissionregistrationv1.ValidatingWebhookConfiguration{}
				if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, configuration, true); err != nil {
					return err
				}
				configuration.Name = "bucketwarden"
				_, err := cluster.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx, configuration, metav1.CreateOptions{})
				return err
			}
			return fmt.Errorf("the chart renders no ValidatingWebhookConfiguration:\n%s", rendered)
		},
	})
	must(t, err)
	t.Cleanup(d.Kill)
	config, seen := rest.CopyConfig(cluster.Config), &warningRecorder{}
	config.WarningHandlerWithContext = seen
	client, err := dynamic.NewForConfig(config)
	must(t, err)
	eventually(t, "the webhook is asked", func(ctx context.Context) error {
		_, err := client.Resource(gardenBuckets).Create(ctx, gardenBucket("invalid", "aws", map[string]any{"kind": "None"}), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if !apierrors.IsInvalid(err) {
			return fmt.Errorf("creating an invalid BackupBucket: %w", err)
		}
		return nil
	})
	return client, seen
}

func gardenObject(kind, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "core.gardener.cloud/v1beta1", "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec}}
}

func gardenBucket(name, provider string, config map[string]any) *unstructured.Unstructured {
	spec := map[string]any{"provider": map[string]any{"type": provider, "region": "r"}, "seedName": "seed"}
	if config != nil {
		spec["providerConfig"] = config
	}
	return gardenObject("BackupBucket", name, spec)
}

// gardenSeed is a Seed on another infrastructure than its backups.
func gardenSeed(name, provider string, config map[string]any) *unstructured.Unstructured {
	backup := map[string]any{"provider": provider, "region": "r"}
	if config != nil {
		backup["providerConfig"] = config
	}
	return gardenObject("Seed", name, map[string]any{"provider": map[string]any{"type": "openstack"}, "backup": backup})
}

// createAnswered creates an object that is allowed.
func createAnswered(t *testing.T, client dynamic.ResourceInterface, o *unstructured.Unstructured) {
	t.Helper()
	must(t, answered(t, func(ctx context.Context) error {
		_, err := client.Create(ctx, o, metav1.CreateOptions{})
		return err
	}))
}

// updateAnswered updates an object. No warning comes of an update that is not judged.
func updateAnswered(t *testing.T, client dynamic.ResourceInterface, o *unstructured.Unstructured, dryRun ...string) error {
	t.Helper()
	return answered(t, func(ctx context.Context) error {
		_, err := client.Update(ctx, o, metav1.UpdateOptions{DryRun: dryRun})
		return err
	})
}

// In the garden cluster Seeds and BackupBuckets of core.gardener.cloud are judged, of the
// types that are served and no others.
func TestAdmissionInTheGarden(t *testing.T) {
	t.Parallel()
	client, seen := startGarden(t)
	config := func(kind, period string, locked bool) map[string]any {
		return env.BucketConfig(kind, map[string]any{"retentionType": "bucket", "retentionPeriod": period, "locked": locked})
	}
	for _, resource := range []struct {
		gvr  schema.GroupVersionResource
		path string
		make func(name, provider string, config map[string]any) *unstructured.Unstructured
	}{
		{gardenSeeds, "spec.backup.providerConfig", gardenSeed},
		{gardenBuckets, "spec.providerConfig", gardenBucket},
	} {
		for _, test := range []struct {
			name, provider string
			old, new       map[string]any
			denied, warned string
		}{
			{name: "disabled", provider: "aws", old: config("aws", "96h", true), denied: ": the bucket has a locked retention of 96h, PATH asks for no immutability: a locked policy cannot be disabled"},
			{name: "unlocked", provider: "azure", old: config("azure", "96h", true), new: config("azure", "96h", false), denied: "cannot be unlocked"},
			{name: "shortened", provider: "aws", old: config("aws", "96h", true), new: config("aws", "72h", true), denied: "cannot be shortened"},
			{name: "extended", provider: "aws", old: config("aws", "96h", true), new: config("aws", "5784m", true), denied: "PATH.immutability.retentionPeriod is 5784m, must be whole days"},
			{name: "longer", provider: "aws", old: config("aws", "96h", true), new: config("aws", "120h", true)},
			{name: "first-lock", provider: "azure", old: nil, new: config("azure", "96h", true), warned: "PATH.immutability.locked: locking is irreversible"},
			{name: "invalid", provider: "azure", old: nil, new: config("aws", "96h", true), denied: "PATH.apiVersion"},
			{name: "not-served", provider: "gcp", old: config("gcp", "96h", true), new: map[string]any{"what": "ever"}},
		} {
			t.Run(resource.gvr.Resource+"/"+test.name, func(t *testing.T) {
				c := client.Resource(resource.gvr)
				createAnswered(t, c, resource.make(test.name, test.provider, test.old))
				for _, dryRun := range [][]string{{metav1.DryRunAll}, nil} {
					o, err := c.Get(t.Context(), test.name, metav1.GetOptions{})
					must(t, err)
					before := o.GetResourceVersion()
					o.Object["spec"] = resource.make(test.name, test.provider, test.new).Object["spec"]
					seen.take()
					err = updateAnswered(t, c, o, dryRun...)
					replace := strings.NewReplacer("PATH", resource.path)
					switch denied := replace.Replace(test.denied); {
					case denied == "" && err != nil:
						t.Errorf("denied: %v", err)
					case denied != "" && (err == nil || !strings.Contains(err.Error(), denied) || !strings.Contains(err.Error(), resource.path)):
						t.Errorf("got %v, want %q", err, denied)
					}
					var warned []string
					if test.warned != "" {
						warned = []string{replace.Replace(test.warned)}
					}
					checkWarnings(t, seen.take(), warned)
					o, err = c.Get(t.Context(), test.name, metav1.GetOptions{})
					must(t, err)
					if changed := o.GetResourceVersion() != before; changed != (test.denied == "" && dryRun == nil) {
						t.Errorf("dry run %v: changed %t", dryRun, changed)
					}
				}
			})
		}
	}

	// A Seed does not lose its locked backup as a whole, and one that has none is nobody's business.
	c := client.Resource(gardenSeeds)
	createAnswered(t, c, gardenSeed("whole", "aws", config("aws", "96h", true)))
	o, err := c.Get(t.Context(), "whole", metav1.GetOptions{})
	must(t, err)
	unstructured.RemoveNestedField(o.Object, "spec", "backup")
	if err := updateAnswered(t, c, o); !apierrors.IsForbidden(err) {
		t.Errorf("removing spec.backup: %v", err)
	}
	createAnswered(t, c, gardenObject("Seed", "none", map[string]any{}))

	// What is recorded of the bucket counts where its spec asks for nothing.
	b := client.Resource(gardenBuckets)
	createAnswered(t, b, gardenBucket("recorded", "aws", nil))
	o, err = b.Get(t.Context(), "recorded", metav1.GetOptions{})
	must(t, err)
	o.Object["status"] = map[string]any{"providerStatus": map[string]any{"apiVersion": "aws.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketStatus",
		"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "96h", "locked": true}}}
	o, err = b.UpdateStatus(t.Context(), o, metav1.UpdateOptions{})
	must(t, err)
	o.Object["spec"] = gardenBucket("recorded", "aws", config("aws", "24h", false)).Object["spec"]
	if err := updateAnswered(t, b, o); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "cannot be unlocked") {
		t.Errorf("weaker than what is recorded: %v", err)
	}
}
