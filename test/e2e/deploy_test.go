package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	apitypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/restmapper"

	"bucketwarden/test/env"
)

// deployVariants are values with which the chart has to work, by what they are for.
var deployVariants = map[string][]string{
	"default":          nil,
	"several replicas": {"replicaCount=2", "leaderElection.enabled=true"},
	"garden":           {"controllers=false", "webhook.cluster=garden", "webhook.url=https://bucketwarden.example.com", "replicaCount=2"},
	"observer":         {"observe=true", "observeCredentials=garden/reader", "replicaCount=2", "leaderElection.enabled=true", "alerts.enabled=true"},
	"no admission":     {"webhook.enabled=false", "admissionPolicy.enabled=false"},
	"given CA":         {"webhook.certificate.secretName=bucketwarden-tls", "webhook.certificate.caBundle=x"},
	"cert-manager": {"webhook.certificate.secretName=bucketwarden-tls",
		`webhook.certificate.annotations.cert-manager\.io/inject-ca-from=bucketwarden/bucketwarden`, "webhook.failurePolicy=Fail"},
	"daemon of a virtual garden": {"controllers=false", "webhook.cluster=garden", "webhook.url=https://bucketwarden.example.com", "webhook.certificate.secretName=tls", "install=daemon"},
	"another name":               {"fullnameOverride=warden"},
	"external certificate":       {"controllers=false", "webhook.cluster=garden", "webhook.url=https://bucketwarden.example.com", "webhook.certificate.secretName=tls"},
	"webhook on a seed":          {"controllers=false", "replicaCount=2"},
	"annotations ignored":        {"ignoreOperationAnnotation=true", "class=garden\\,shoot", "types.aws=s3", "verifyInterval=5m"},
	"Azure cloud": {"azureClouds.MyCloud.activeDirectoryAuthorityHost=https://login.example.com", "azureClouds.MyCloud.resourceManagerEndpoint=https://management.example.com",
		"azureClouds.MyCloud.resourceManagerAudience=https://management.example.com", "azureClouds.MyCloud.blobEndpoint=https://{account}.blob.example.com",
		"trustedCertificates=-----BEGIN CERTIFICATE-----\n"},
	"through a proxy": {"env[0].name=HTTPS_PROXY", "env[0].value=http://proxy.example.com:3128", "env[1].name=TOKEN", "env[1].valueFrom.secretKeyRef.name=a",
		"env[1].valueFrom.secretKeyRef.key=b"},
	"everything on": {"evidence=true", "vpa.enabled=true", "alerts.enabled=true", "dashboard.enabled=true", "profiling=true", "log.format=json", "log.verbosity=7",
		"image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "imagePullSecrets[0].name=registry", "nodeSelector.a=b", "podLabels.c=d", "podAnnotations.e=f",
		"tolerations[0].operator=Exists", "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight=1",
		"affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].key=a",
		"affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].operator=Exists"},
	"in Gardener":              {"gardener.version=v1.150.0", "gardener.seed.name=eu1", "gardener.garden.clusterIdentity=garden", "global.a=b"},
	"garden's runtime cluster": {"gardener.runtimeCluster.enabled=true", "gardener.runtimeCluster.priorityClassName=gardener-garden-system-200", "class=garden"},
}

func ensureHelm(t *testing.T) env.Helm {
	t.Helper()
	helm, err := env.EnsureHelm(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return helm
}

func TestDeployLint(t *testing.T) {
	t.Parallel()
	helm := ensureHelm(t)
	for name, values := range deployVariants {
		if err := helm.Lint(t.Context(), values...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The chart's schema catches mistakes before anything is rendered.
func TestDeployMistakes(t *testing.T) {
	t.Parallel()
	helm := ensureHelm(t)
	for value, want := range map[string]string{
		"replica=2":              "replica",
		"replicas=2":             "replicas",
		"replicaCount=-1":        "replicaCount",
		"replicaCount=2":         "leaderElection.enabled",
		"types.gcp=gcs":          "types/gcp",
		"class=shoots":           "class",
		"webhook.cluster=garden": "controllers: false",
		"controllers=false,webhook.enabled=false":             "nothing to do",
		"observe=true,controllers=false":                      "controllers: true",
		"observe=true,evidence=true":                          "docs/observer.md",
		"observe=true,probe=true,observeCredentials=garden/x": "exclude each other",
		"observe=yes":                            "observe",
		"observe=true,observeCredentials=reader": "observeCredentials",
		"resources.limit.memory=1Gi":             "limit",
		"trustedCertificates=/ca.pem":            "trustedCertificates",
		"controllers=maybe":                      "controllers",
		"concurrentSyncs=0":                      "concurrentSyncs",
		"verifyInterval=ten":                     "verifyInterval",
		"env[0].value=x":                         "name",
		"env[0].name=A,env[0].from=b":            "from",
		"webhook.cluster=shoot":                  "webhook/cluster",
		"install=nothing":                        "install",
		"install=daemon":                         "webhook.cluster: garden",
		"install=daemon,webhook.cluster=garden,controllers=false":               "webhook.certificate.secretName",
		"install=webhookConfiguration,webhook.cluster=garden,controllers=false": "webhook.url",
		"fullnameOverride=a.b":            "fullnameOverride",
		"imagePullSecrets[0]=x":           "imagePullSecrets/0",
		"webhook.failurePolicy=Allow":     "webhook/failurePolicy",
		"webhook.url=http://insecure":     "webhook/url",
		"webhook.certificate.days=3":      "days",
		"log.format=xml":                  "log/format",
		"log.verbosity=8":                 "log/verbosity",
		"image.tag=1":                     "image/tag",
		"image.digest=latest":             "image/digest",
		"image.pullPolicy=Sometimes":      "image/pullPolicy",
		"azureClouds.MyCloud.endpoint=x":  "endpoint",
		"leaderElection.enabled=possibly": "leaderElection/enabled",
	} {
		if _, err := helm.Template(t.Context(), "bucketwarden", value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, which does not say %q", value, err, want)
		}
	}
}

func TestDeployManifestsAreCurrent(t *testing.T) {
	t.Parallel()
	want, err := ensureHelm(t).Manifests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file, err := env.ManifestsFile()
	must(t, err)
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("deploy/manifests.yaml is not what the chart renders: run make manifests")
	}
}

func decodeYAML(t *testing.T, content []byte) []*unstructured.Unstructured {
	t.Helper()
	objects, err := env.DecodeYAML(content)
	must(t, err)
	return objects
}

// What is in deploy/ is what the API server accepts, without a single unknown field.
func TestDeployDryRun(t *testing.T) {
	t.Parallel()
	cluster, err := env.StartKube(t.Context(), binaries.Testkube)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Stop)
	if err := cluster.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A dry run makes no namespaces.
	for _, namespace := range []string{"bucketwarden", "garden"} {
		if err := (env.Gardenlet{Kube: cluster}).Namespace(t.Context(), namespace); err != nil {
			t.Fatal(err)
		}
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery.NewDiscoveryClientForConfigOrDie(cluster.Config)))
	apply := func(t *testing.T, o *unstructured.Unstructured) error {
		gvk := o.GroupVersionKind()
		mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			t.Fatal(err)
		}
		namespace := o.GetNamespace()
		if (namespace != "") != (mapping.Scope.Name() == meta.RESTScopeNameNamespace) {
			t.Fatalf("%s %s: namespace %q", gvk.Kind, o.GetName(), namespace)
		}
		data, err := runtime.Encode(unstructured.UnstructuredJSONScheme, o)
		if err != nil {
			t.Fatal(err)
		}
		client := cluster.Dynamic.Resource(mapping.Resource).Namespace(namespace)
		return answered(t, func(ctx context.Context) error {
			_, err := client.Patch(ctx, o.GetName(), apitypes.ApplyPatchType, data,
				metav1.PatchOptions{FieldManager: "test", DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict})
			return err
		})
	}
	check := func(name string, content []byte, atLeast int) {
		t.Run(name, func(t *testing.T) {
			objects := decodeYAML(t, content)
			if len(objects) < atLeast {
				t.Fatalf("only %d objects", len(objects))
			}
			for _, o := range objects {
				if err := apply(t, o); err != nil {
					t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
				}
			}
		})
	}
	file, err := env.ManifestsFile()
	must(t, err)
	manifests, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	check("manifests.yaml", manifests, 12)
	helm := ensureHelm(t)
	for name, values := range deployVariants {
		rendered, err := helm.Template(t.Context(), "bucketwarden", values...)
		if err != nil {
			t.Fatal(err)
		}
		check(name, rendered, 4)
	}
	t.Run("pod security", func(t *testing.T) { checkPodSecurity(t, cluster, manifests) })

	// The examples also have to be what the daemon accepts.
	startAdmission(t, cluster, "bucketwarden")
	examples, err := filepath.Glob("../../deploy/examples/*.yaml")
	if err != nil || len(examples) < 4 {
		t.Fatalf("examples: %v, %v", examples, err)
	}
	for _, file := range examples {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		check(filepath.Base(file), content, 1)
	}

	// That it would have caught mistakes.
	content, err := os.ReadFile("../../deploy/examples/aws.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(t, decodeYAML(t, bytes.Replace(content, []byte("96h"), []byte("95h"), 1))[1]); !apierrors.IsInvalid(err) {
		t.Errorf("a retention of 95h: %v", err)
	}
	wrong := decodeYAML(t, manifests)[0].DeepCopy()
	if err := unstructured.SetNestedField(wrong.Object, "x", "spec", "unknown"); err != nil {
		t.Fatal(err)
	}
	if err := apply(t, wrong); err == nil || !strings.Contains(err.Error(), ".spec.unknown: field not declared") {
		t.Errorf("an unknown field: %v", err)
	}
}

// Every argument that the chart gives is a flag of the daemon, and every flag that an
// operator may need can be set.
func TestDeployArguments(t *testing.T) {
	t.Parallel()
	help, err := exec.CommandContext(t.Context(), binaries.Daemon, "--help").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllSubmatch(help, -1) {
		known[string(match[1])] = false
	}
	// Not for a pod, which knows its API server and its namespace.
	for _, flag := range []string{"evidence-directory", "evidence-key", "kubeconfig", "namespace", "version"} {
		delete(known, flag)
	}
	for name, values := range deployVariants {
		rendered, err := ensureHelm(t).Template(t.Context(), "bucketwarden", values...)
		if err != nil {
			t.Fatal(err)
		}
		deployment := &appsv1.Deployment{}
		findRendered(t, rendered, deployment)
		container := deployment.Spec.Template.Spec.Containers[0]
		// The kubeconfig ends the run: whatever is wrong with an argument comes first.
		args := append([]string{"--namespace=own", "--kubeconfig=/nonexistent/kubeconfig"}, container.Args...)
		output, err := exec.CommandContext(t.Context(), binaries.Daemon, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(output), "/nonexistent/kubeconfig: no such file") {
			t.Errorf("%s: %v, %s", name, err, output)
		}
		for _, arg := range container.Args {
			flag, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			if _, ok := known[flag]; !ok {
				t.Errorf("%s: the daemon does not know %s", name, arg)
			}
			known[flag] = true
		}
	}
	for flag, set := range known {
		if !set {
			t.Errorf("no value of the chart sets --%s", flag)
		}
	}
}

// checkPodSecurity checks that the pod of the manifests may run in their namespace.
func checkPodSecurity(t *testing.T, cluster *env.Kube, manifests []byte) {
	t.Helper()
	namespace, account, deployment := &corev1.Namespace{}, &corev1.ServiceAccount{}, &appsv1.Deployment{}
	findRendered(t, manifests, namespace)
	findRendered(t, manifests, account)
	findRendered(t, manifests, deployment)
	namespace.Name += "-pod"
	ctx, spec := t.Context(), &deployment.Spec.Template.Spec
	_, err := cluster.Client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	must(t, err)
	account.Namespace = ""
	_, err = cluster.Client.CoreV1().ServiceAccounts(namespace.Name).Create(ctx, account, metav1.CreateOptions{})
	must(t, err)
	_, err = cluster.Client.SchedulingV1().PriorityClasses().Create(ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: spec.PriorityClassName}}, metav1.CreateOptions{})
	must(t, err)
	create := func() error {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "bucketwarden", Labels: deployment.Spec.Template.Labels}, Spec: *spec}
		_, err := cluster.Client.CoreV1().Pods(namespace.Name).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	// Admission does not know the PriorityClass at once.
	eventually(t, "the pod is accepted", func(context.Context) error { return create() })
	security := spec.Containers[0].SecurityContext
	if security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem {
		t.Error("the root file system is not read-only")
	}
	*security.AllowPrivilegeEscalation = true
	if err := create(); !apierrors.IsForbidden(err) {
		t.Errorf("a pod with privilege escalation: %v", err)
	}
}

// Two daemons never work on the same objects, neither during an update nor because Gardener
// thinks that a server needs two replicas.
func TestDeployOneWorks(t *testing.T) {
	t.Parallel()
	helm := ensureHelm(t)
	const haType = "high-availability-config.resources.gardener.cloud/type"
	for name, values := range deployVariants {
		rendered, err := helm.Template(t.Context(), "bucketwarden", values...)
		must(t, err)
		deployment := &appsv1.Deployment{}
		findRendered(t, rendered, deployment)
		strategy, replicas, args := deployment.Spec.Strategy.Type, *deployment.Spec.Replicas, deployment.Spec.Template.Spec.Containers[0].Args
		if slices.Contains(args, "--leader-elect=true") || slices.Contains(args, "--controllers=false") {
			if strategy != "RollingUpdate" || deployment.GetLabels()[haType] != "server" {
				t.Errorf("%s: strategy %q, labels %v", name, strategy, deployment.GetLabels())
			}
		} else if strategy != "Recreate" || replicas != 1 || deployment.GetLabels()[haType] != "" {
			t.Errorf("%s: strategy %q, %d replicas, labels %v", name, strategy, replicas, deployment.GetLabels())
		}
	}
}

// Whatever releases there are in a cluster, they have no object in common: a seed may be the garden's runtime cluster and a
// garden too, and Gardener names releases after the Extension.
func TestDeploySeveralInOneCluster(t *testing.T) {
	t.Parallel()
	helm := ensureHelm(t)
	seen := map[string]string{}
	all := []string{"alerts.enabled=true", "dashboard.enabled=true", "vpa.enabled=true", "trustedCertificates=-----BEGIN CERTIFICATE-----\n"}
	for _, release := range []struct{ name, namespace, variant string }{
		{"bucketwarden", "bucketwarden", "default"},
		{"bucketwarden", "extension-bucketwarden-x2x4b", "in Gardener"},
		{"bucketwarden", "runtime-extension-bucketwarden", "garden's runtime cluster"},
		{"bucketwarden", "garden", "daemon of a virtual garden"},
		{"bucketwarden-garden", "garden", "garden"},
		{"bucketwarden-garden", "bucketwarden", "default"},
		{"bucketwarden.bucketwarden", "extension", "default"},
		{"bucketwarden", "other", "another name"},
		{"bucketwarden", "warden", "another name"},
	} {
		id := release.name + " in " + release.namespace
		rendered, err := helm.TemplateRelease(t.Context(), release.name, release.namespace, slices.Concat(deployVariants[release.variant], all)...)
		must(t, err)
		for _, o := range decodeYAML(t, rendered) {
			object := strings.Join([]string{o.GetKind(), o.GetNamespace(), o.GetName()}, "/")
			if other := seen[object]; other != "" {
				t.Errorf("%s is of %s and of %s", object, other, id)
			}
			seen[object] = id
		}
	}
}

// gardener-resource-manager must not reset caBundles that the daemon keeps, or somebody else such as cert-manager. A
// caBundle of the chart it has to write.
func TestDeployWebhookLeftAlone(t *testing.T) {
	t.Parallel()
	helm := ensureHelm(t)
	for variant, want := range map[string]string{"default": "true", "garden": "true", "cert-manager": "true", "external certificate": "true", "given CA": ""} {
		rendered, err := helm.Template(t.Context(), "bucketwarden", deployVariants[variant]...)
		must(t, err)
		configuration := &admissionregistrationv1.ValidatingWebhookConfiguration{}
		findRendered(t, rendered, configuration)
		if got := configuration.Annotations["resources.gardener.cloud/ignore"]; got != want {
			t.Errorf("%s: ignore is %q, want %q", variant, got, want)
		}
		for _, w := range configuration.Webhooks {
			if given := len(w.ClientConfig.CABundle) > 0; given != (want == "") {
				t.Errorf("%s: caBundle %q", variant, w.ClientConfig.CABundle)
			}
		}
	}
}

// What gardener-resource-manager never updates gets another name when its content changes, and only then. The daemon is told
// the name, and allowed to write what has it.
func TestDeployWebhookRenewedInGardener(t *testing.T) {
	t.Parallel()
	helm := ensureHelm(t)
	name := func(values ...string) string {
		t.Helper()
		rendered, err := helm.Template(t.Context(), "extension-bucketwarden", values...)
		must(t, err)
		validating, mutating := &admissionregistrationv1.ValidatingWebhookConfiguration{}, &admissionregistrationv1.MutatingWebhookConfiguration{}
		deployment, role := &appsv1.Deployment{}, &rbacv1.ClusterRole{}
		findRendered(t, rendered, validating)
		findRendered(t, rendered, mutating)
		findRendered(t, rendered, deployment)
		findRendered(t, rendered, role)
		mustEqual(t, "name of the MutatingWebhookConfiguration", mutating.Name, validating.Name)
		args := deployment.Spec.Template.Spec.Containers[0].Args
		if !slices.Contains(args, "--webhook-configuration="+validating.Name) || !slices.Contains(args, "--mutating-webhook-configuration="+validating.Name) {
			t.Errorf("%s: %q", validating.Name, args)
		}
		if !slices.ContainsFunc(role.Rules, func(r rbacv1.PolicyRule) bool {
			return slices.Equal(r.Resources, []string{"validatingwebhookconfigurations", "mutatingwebhookconfigurations"}) && slices.Equal(r.ResourceNames, []string{validating.Name})
		}) {
			t.Errorf("%s: %+v", validating.Name, role.Rules)
		}
		return validating.Name
	}
	gardener := deployVariants["in Gardener"]
	first := name(gardener...)
	if !regexp.MustCompile(`^bucketwarden\.extension-bucketwarden-[0-9a-f]{8}$`).MatchString(first) {
		t.Errorf("it is %s", first)
	}
	mustEqual(t, "name with another image", name(append(gardener, "image.tag=v2", "log.verbosity=2", "gardener.version=v2")...), first)
	if second := name(append(gardener, "webhook.timeoutSeconds=5")...); second == first {
		t.Error("the same name for other webhooks")
	}
	mustEqual(t, "name without Gardener", name(), "bucketwarden.extension-bucketwarden")
}

// gardener-operator renders the chart of an Extension's admission for both clusters with the same values of the operator;
// by hand, install tells which is which.
func TestDeployVirtualGarden(t *testing.T) {
	t.Parallel()
	helm := ensureHelm(t)
	garden := []string{"controllers=false", "webhook.cluster=garden", "webhook.url=https://bucketwarden.garden", "webhook.certificate.secretName=tls", "webhook.certificate.caBundle=x"}
	for name, test := range map[string]struct {
		values []string
		kinds  string
	}{
		"runtime cluster": {[]string{"gardener.runtimeCluster.priorityClassName=a", "gardener.virtualCluster.enabled=true", "gardener.virtualCluster.namespace=extension-bucketwarden"},
			"Deployment PodDisruptionBudget Service ServiceAccount"},
		"virtual garden": {[]string{"gardener.virtualCluster.enabled=true", "gardener.virtualCluster.serviceAccount.name=a", "gardener.virtualCluster.serviceAccount.namespace=kube-system"},
			"ValidatingWebhookConfiguration"},
		"runtime cluster by hand": {[]string{"install=daemon"}, "Deployment PodDisruptionBudget Service ServiceAccount"},
		"virtual garden by hand":  {[]string{"install=webhookConfiguration", "alerts.enabled=true", "dashboard.enabled=true", "vpa.enabled=true", "trustedCertificates=-----BEGIN CERTIFICATE-----\n"}, "ValidatingWebhookConfiguration"},
		"one cluster":             {nil, "Deployment PodDisruptionBudget Service ServiceAccount ValidatingWebhookConfiguration"},
	} {
		rendered, err := helm.Template(t.Context(), "garden", slices.Concat(garden, test.values)...)
		must(t, err)
		var kinds []string
		for _, o := range decodeYAML(t, rendered) {
			kinds = append(kinds, o.GetKind())
		}
		slices.Sort(kinds)
		mustEqual(t, name, strings.Join(kinds, " "), test.kinds)
	}
}

// findRendered decodes the only object of the type of typed.
func findRendered(t *testing.T, rendered []byte, typed runtime.Object) {
	t.Helper()
	kinds, _, err := scheme.Scheme.ObjectKinds(typed)
	must(t, err)
	found := 0
	for _, o := range decodeYAML(t, rendered) {
		if o.GroupVersionKind() == kinds[0] {
			found++
			must(t, runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, typed, true))
		}
	}
	if found != 1 {
		t.Fatalf("there are %d of kind %s", found, kinds[0].Kind)
	}
}
