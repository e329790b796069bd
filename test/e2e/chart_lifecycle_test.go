package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"bucketwarden/test/env"
)

// formerCommit is the last one whose chart named cluster-wide objects after the release alone.
const formerCommit = "cedf3d9d663d96badf791c7f866a294981844449"

// formerChart is the chart of formerCommit, empty in a clone without history.
func formerChart(t *testing.T) string {
	t.Helper()
	archive, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "archive", "--format=tar", formerCommit, "deploy/chart").Output()
	if err != nil {
		t.Logf("the former chart cannot be had, so upgrades are from this one: %v", err)
		return ""
	}
	directory := t.TempDir()
	for files := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return filepath.Join(directory, "deploy", "chart")
		}
		must(t, err)
		path := filepath.Join(directory, filepath.FromSlash(header.Name))
		switch {
		case !filepath.IsLocal(header.Name):
			// The commit's own message is among the headers.
		case header.Typeflag == tar.TypeDir:
			must(t, os.MkdirAll(path, 0o755))
		case header.Typeflag == tar.TypeReg:
			content, err := io.ReadAll(files)
			must(t, err)
			must(t, os.WriteFile(path, content, 0o600))
		}
	}
}

// chartCluster is an API server on which Helm works. No pod ever runs, so no webhook answers.
type chartCluster struct {
	t *testing.T
	*env.Kube
	helm env.Helm
}

func startChartCluster(t *testing.T) *chartCluster {
	t.Helper()
	cluster, err := env.StartKube(t.Context(), binaries.Testkube)
	must(t, err)
	t.Cleanup(cluster.Stop)
	must(t, (env.Gardenlet{Kube: cluster}).Namespace(t.Context(), env.GardenNamespace))
	return &chartCluster{t: t, Kube: cluster, helm: ensureHelm(t)}
}

// chartRelease is a release of the chart.
type chartRelease struct {
	name, namespace string
	values          []string
	// formerValues are those of the former chart, if they differ.
	formerValues []string
}

// run runs Helm on the release, with further arguments.
func (c *chartCluster) run(r chartRelease, command string, args ...string) {
	c.t.Helper()
	_, err := c.helm.Run(c.t.Context(), append([]string{command, r.name}, append(args, "--namespace="+r.namespace, "--kubeconfig="+c.Kubeconfig)...)...)
	must(c.t, err)
}

func setValues(values []string) (args []string) {
	for _, value := range values {
		args = append(args, "--set="+value)
	}
	return args
}

// upgrade installs a release, or upgrades it.
func (c *chartCluster) upgrade(r chartRelease) {
	c.t.Helper()
	c.run(r, "upgrade", append([]string{c.helm.Chart, "--install", "--create-namespace"}, setValues(r.values)...)...)
}

// installFormer installs a release of the former chart, of this one without a former.
func (c *chartCluster) installFormer(former string, r chartRelease) {
	c.t.Helper()
	if former == "" {
		c.run(r, "install", append([]string{c.helm.Chart, "--create-namespace"}, setValues(r.values)...)...)
		return
	}
	values := r.formerValues
	if values == nil {
		values = r.values
	}
	c.run(r, "install", append([]string{former, "--create-namespace"}, setValues(values)...)...)
}

// clusterWide are all objects without a namespace that a release may have.
func (c *chartCluster) clusterWide() (names []string) {
	c.t.Helper()
	rbac := schema.GroupVersion{Group: "rbac.authorization.k8s.io", Version: "v1"}
	for _, resource := range []schema.GroupVersionResource{
		admissionregistration.WithResource("validatingwebhookconfigurations"), admissionregistration.WithResource("mutatingwebhookconfigurations"),
		admissionregistration.WithResource("validatingadmissionpolicies"), admissionregistration.WithResource("validatingadmissionpolicybindings"),
		rbac.WithResource("clusterroles"), rbac.WithResource("clusterrolebindings"),
	} {
		list, err := c.Dynamic.Resource(resource).List(c.t.Context(), metav1.ListOptions{})
		must(c.t, err)
		for _, o := range list.Items {
			if strings.Contains(o.GetName(), "bucketwarden") {
				names = append(names, resource.Resource+"/"+o.GetName())
			}
		}
	}
	return names
}

// wantNames checks that every object without a namespace is of one of these releases, and that each has one.
func (c *chartCluster) wantNames(when string, releases ...string) {
	c.t.Helper()
	names := c.clusterWide()
	of := map[string]int{}
	for _, name := range names {
		_, object, _ := strings.Cut(name, "/")
		// That of a webhook configuration may have its content after it.
		if i := slices.IndexFunc(releases, func(r string) bool {
			rest, found := strings.CutPrefix(object, r)
			return found && (rest == "" || len(rest) == 9 && rest[0] == '-')
		}); i >= 0 {
			of[releases[i]]++
			continue
		}
		c.t.Errorf("%s there is %s", when, name)
	}
	for _, r := range releases {
		if of[r] == 0 {
			c.t.Errorf("%s there is nothing of %s in %q", when, r, names)
		}
	}
}

// write patches an object with a dry run.
func (c *chartCluster) write(ctx context.Context, resource schema.GroupVersionResource, name, patch string) error {
	_, err := c.Dynamic.Resource(resource).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// wantDenied waits until writes are denied, or not asked for because no webhook answers; what is denied says why.
func (c *chartCluster) wantDenied(when string, resource schema.GroupVersionResource, name, patch, why string) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%s %s %s cannot be written", when, resource.Resource, name), func(ctx context.Context) error {
		if err := c.write(ctx, resource, name, patch); err == nil || !strings.Contains(err.Error(), why) {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
}

// wantAllowed waits until writes pass.
func (c *chartCluster) wantAllowed(when string, resource schema.GroupVersionResource, name, patch string) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%s %s %s can be written", when, resource.Resource, name), func(ctx context.Context) error {
		return c.write(ctx, resource, name, patch)
	})
}

func (c *chartCluster) create(resource schema.GroupVersionResource, o *unstructured.Unstructured) {
	c.t.Helper()
	_, err := c.Dynamic.Resource(resource).Create(c.t.Context(), o, metav1.CreateOptions{})
	must(c.t, err)
}

const (
	shorten       = `{"spec":{"providerConfig":{"immutability":{"retentionPeriod":"24h"}}}}`
	noFinalizers  = `{"metadata":{"finalizers":null}}`
	shortenSeed   = `{"spec":{"backup":{"providerConfig":{"immutability":{"retentionPeriod":"24h"}}}}}`
	lengthenSeed  = `{"spec":{"backup":{"providerConfig":{"immutability":{"retentionPeriod":"960h"}}}}}`
	cannotShorten = "a locked policy cannot be shortened"
)

// Helm installs, upgrades, rolls back and uninstalls the chart in a seed, which is the garden's runtime cluster too, and in
// a garden. What is locked stays protected throughout, although no pod runs; what others own is never blocked; and in the
// end nothing is left.
func TestChartLifecycle(t *testing.T) {
	t.Parallel()
	former := formerChart(t)
	t.Run("seed and runtime cluster", func(t *testing.T) { t.Parallel(); checkSeedLifecycle(t, former) })
	t.Run("garden", func(t *testing.T) { t.Parallel(); checkGardenLifecycle(t, former) })
}

func checkSeedLifecycle(t *testing.T, former string) {
	c := startChartCluster(t)
	seed := chartRelease{name: "bucketwarden", namespace: "extension-bucketwarden-x2x4b", values: deployVariants["in Gardener"]}
	runtime := chartRelease{name: "bucketwarden", namespace: "runtime-extension-bucketwarden", values: deployVariants["garden's runtime cluster"]}
	// Beside them what serves the garden (docs/admission.md), which a former chart could not have here.
	garden := chartRelease{name: "bucketwarden-garden", namespace: env.GardenNamespace, values: []string{"controllers=false", "replicaCount=2",
		"webhook.cluster=garden", "webhook.url=https://bucketwarden-garden.garden", "webhook.certificate.secretName=tls", "webhook.certificate.caBundle=x"}}
	locked := func(name, kind, class string) {
		o := bucketObject(name, kind, configWith(kind, lockedFor(kind, "96h")))
		o.SetFinalizers([]string{"extensions.gardener.cloud/backupbucket"})
		set(o, class, "spec", "class")
		c.create(buckets, o)
	}
	locked("of-seed", "aws", "shoot")
	locked("of-garden", "azure", "garden")
	locked("of-others", "gcp", "shoot")
	protected := func(when string) {
		t.Helper()
		c.wantDenied(when, buckets, "of-seed", shorten, cannotShorten)
		c.wantDenied(when, buckets, "of-garden", shorten, cannotShorten)
		for _, name := range []string{"of-seed", "of-garden", "of-others"} {
			c.wantAllowed(when, buckets, name, noFinalizers)
		}
		c.wantAllowed(when, buckets, "of-others", shorten)
	}
	const seedName, runtimeName, gardenName = "bucketwarden.extension-bucketwarden-x2x4b", "bucketwarden.runtime-extension-bucketwarden", "bucketwarden-garden.garden"

	c.installFormer(former, seed)
	c.installFormer(former, runtime)
	protected("of the former chart")
	c.upgrade(seed)
	protected("with the seed upgraded")
	c.upgrade(runtime)
	c.upgrade(garden)
	protected("upgraded")
	c.wantNames("upgraded", seedName, runtimeName, gardenName)
	c.run(garden, "uninstall")
	c.run(seed, "rollback", "1")
	protected("with the seed rolled back")
	c.run(runtime, "rollback", "1")
	protected("rolled back")
	if former != "" {
		c.wantNames("rolled back", "bucketwarden", "bucketwarden-garden")
	}
	c.upgrade(seed)
	c.upgrade(runtime)
	protected("upgraded again")
	c.wantNames("upgraded again", seedName, runtimeName)

	// One goes without harm to the other.
	c.run(runtime, "uninstall")
	c.wantAllowed("without the runtime cluster's", buckets, "of-garden", shorten)
	c.wantDenied("without the runtime cluster's", buckets, "of-seed", shorten, cannotShorten)
	c.wantNames("without the runtime cluster's", seedName)
	c.run(seed, "uninstall")
	c.wantNames("uninstalled")
	for _, name := range []string{"of-seed", "of-garden", "of-others"} {
		c.wantAllowed("uninstalled", buckets, name, shorten)
		// The finalizer stays until somebody takes it away.
		o, err := c.Dynamic.Resource(buckets).Get(t.Context(), name, metav1.GetOptions{})
		must(t, err)
		mustEqual(t, "number of finalizers", len(o.GetFinalizers()), 1)
		must(t, c.Dynamic.Resource(buckets).Delete(t.Context(), name, metav1.DeleteOptions{}))
		_, err = c.Dynamic.Resource(buckets).Patch(t.Context(), name, types.MergePatchType, []byte(noFinalizers), metav1.PatchOptions{})
		must(t, err)
		if _, err := c.Dynamic.Resource(buckets).Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	c.wantNothing(seed.namespace, runtime.namespace, garden.namespace)
}

func checkGardenLifecycle(t *testing.T, former string) {
	c := startChartCluster(t)
	must(t, c.InstallGardenCRDs(t.Context()))
	values := []string{"controllers=false", "webhook.cluster=garden", "priorityClassName="}
	// In the garden itself; and in a virtual garden nothing but the configuration.
	real := chartRelease{name: "bucketwarden-garden", namespace: env.GardenNamespace, values: append(values, "replicaCount=2"), formerValues: append(values, "replicas=2")}
	virtual := chartRelease{name: "bucketwarden", namespace: "extension-bucketwarden", values: append(values, "install=webhookConfiguration", "webhook.url=https://bucketwarden.garden",
		"webhook.certificate.secretName=tls")}
	for _, kind := range []string{"aws", "gcp"} {
		config := configWith(kind, lockedFor(kind, "96h"))
		c.create(gardenSeeds, gardenSeed(kind, kind, config))
		c.create(gardenBuckets, gardenBucket(kind, kind, config))
	}
	c.create(gardenSeeds, gardenObject("Seed", "none", map[string]any{}))
	// No webhook answers: what is served is blocked, nothing else.
	const why = "failed calling webhook"
	blocked := func(when string, others bool) {
		t.Helper()
		c.wantDenied(when, gardenSeeds, "aws", shortenSeed, why)
		c.wantDenied(when, gardenSeeds, "aws", lengthenSeed, why)
		c.wantDenied(when, gardenBuckets, "aws", shorten, why)
		c.wantDenied(when, gardenSeeds, "gcp", `{"spec":{"backup":{"provider":"aws"}}}`, why)
		c.wantDenied(when, gardenSeeds, "none", `{"spec":{"backup":{"provider":"aws"}}}`, why)
		c.wantAllowed(when, gardenSeeds, "aws", `{"spec":{"settings":{"scheduling":{"visible":false}}}}`)
		c.wantAllowed(when, gardenSeeds, "aws", `{"metadata":{"finalizers":["gardener"]}}`)
		c.wantAllowed(when, gardenBuckets, "aws", noFinalizers)
		if others {
			c.wantAllowed(when, gardenSeeds, "gcp", shortenSeed)
			c.wantAllowed(when, gardenSeeds, "none", `{"spec":{"backup":{"provider":"gcp"}}}`)
			c.wantAllowed(when, gardenBuckets, "gcp", shorten)
		}
	}
	free := func(when string) {
		t.Helper()
		c.wantNames(when)
		for _, kind := range []string{"aws", "gcp"} {
			c.wantAllowed(when, gardenSeeds, kind, shortenSeed)
			c.wantAllowed(when, gardenBuckets, kind, shorten)
		}
		c.wantNothing(env.GardenNamespace, virtual.namespace)
	}

	c.installFormer(former, real)
	// The former chart's blocked all providers.
	blocked("of the former chart", former == "")
	c.upgrade(real)
	blocked("upgraded", true)
	c.wantNames("upgraded", "bucketwarden-garden.garden")
	c.run(real, "rollback", "1")
	blocked("rolled back", former == "")
	c.upgrade(real)
	c.upgrade(virtual)
	blocked("with both", true)
	c.run(real, "uninstall")
	blocked("in a virtual garden", true)
	c.wantNames("in a virtual garden", "bucketwarden.extension-bucketwarden")
	c.run(virtual, "uninstall")
	free("uninstalled")
}

// wantNothing checks that the releases' namespaces are empty.
func (c *chartCluster) wantNothing(namespaces ...string) {
	c.t.Helper()
	apps, rbac := schema.GroupVersion{Group: "apps", Version: "v1"}, schema.GroupVersion{Group: "rbac.authorization.k8s.io", Version: "v1"}
	core, policy := schema.GroupVersion{Version: "v1"}, schema.GroupVersion{Group: "policy", Version: "v1"}
	for _, namespace := range namespaces {
		for _, resource := range []schema.GroupVersionResource{apps.WithResource("deployments"), core.WithResource("services"), core.WithResource("serviceaccounts"),
			core.WithResource("configmaps"), core.WithResource("secrets"), policy.WithResource("poddisruptionbudgets"), rbac.WithResource("roles"), rbac.WithResource("rolebindings")} {
			list, err := c.Dynamic.Resource(resource).Namespace(namespace).List(c.t.Context(), metav1.ListOptions{})
			must(c.t, err)
			for _, o := range list.Items {
				if o.GetName() != "kube-root-ca.crt" && o.GetName() != "default" {
					c.t.Errorf("%s %s/%s is left", resource.Resource, namespace, o.GetName())
				}
			}
		}
	}
}
