package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"bucketwarden/test/env"
)

// installPolicy creates the ValidatingAdmissionPolicy of deploy/manifests.yaml.
func installPolicy(t *testing.T, k *env.Kube) {
	t.Helper()
	for kind, resource := range map[string]string{
		"ValidatingAdmissionPolicy":        "validatingadmissionpolicies",
		"ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
	} {
		objects, err := env.Manifests(kind)
		must(t, err)
		for _, o := range objects {
			_, err := k.Dynamic.Resource(admissionregistration.WithResource(resource)).Create(t.Context(), o, metav1.CreateOptions{})
			must(t, err)
		}
	}
}

// Every denied weakening leaves a trace with who tried it. The webhook is asked before the policy, which would end the
// request: so it is in the daemon's log and metrics. While no webhook answers the policy denies the same, and it is in the
// API server's audit log.
func TestDenialsLeaveATrace(t *testing.T) {
	t.Parallel()
	k, err := env.StartAuditedKube(t.Context(), binaries.Testkube)
	must(t, err)
	t.Cleanup(k.Stop)
	must(t, (env.Gardenlet{Kube: k}).Namespace(t.Context(), gardenNamespace))
	installPolicy(t, k)
	d, err := env.StartDaemon(t.Context(), env.DaemonOptions{
		Binary: binaries.Daemon, Kubeconfig: k.Kubeconfig,
		Args: []string{"--controllers=false", "--webhook-address=127.0.0.1:0", "--namespace=" + gardenNamespace, "--mutating-webhook-configuration=bucketwarden"},
		OnWebhook: func(ctx context.Context, address string) error {
			return errors.Join(k.InstallWebhook(ctx, address), k.InstallMutatingWebhook(ctx, address))
		},
	})
	must(t, err)
	t.Cleanup(d.Kill)

	// Whoever it is has all rights of the cluster, as an administrator has.
	const somebody = "system:serviceaccount:" + gardenNamespace + ":somebody"
	kubeconfig, err := k.ServiceAccountKubeconfig(t.Context(), gardenNamespace, "somebody")
	must(t, err)
	_, err = k.Client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "somebody"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: gardenNamespace, Name: "somebody"}}}, metav1.CreateOptions{})
	must(t, err)
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	must(t, err)
	client, err := dynamic.NewForConfig(config)
	must(t, err)
	_, err = k.Dynamic.Resource(buckets).Create(t.Context(), bucketObject("traced", "aws", configWith("aws", lockedFor("aws", "96h"))), metav1.CreateOptions{})
	must(t, err)
	patch := func(ctx context.Context, period string, dryRun ...string) error {
		body := fmt.Sprintf(`{"spec":{"providerConfig":{"immutability":{"retentionPeriod":%q}}}}`, period)
		_, err := client.Resource(buckets).Patch(ctx, "traced", types.MergePatchType, []byte(body), metav1.PatchOptions{DryRun: dryRun})
		return err
	}
	const webhookSays = `admission webhook "weakenings.bucketwarden.gardener.cloud" denied the request: spec.providerConfig.immutability: the bucket has a locked retention of 96h`
	const policySays = `ValidatingAdmissionPolicy 'bucketwarden' with binding 'bucketwarden' denied request: spec.providerConfig.immutability: the bucket has a locked retention of 96h`
	deniedBy := func(who string, dryRun ...string) {
		t.Helper()
		eventually(t, "it is denied with: "+who, func(ctx context.Context) error {
			if err := patch(ctx, "24h", dryRun...); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), who) {
				return fmt.Errorf("got %w", err)
			}
			return nil
		})
	}
	deniedBy(webhookSays, metav1.DryRunAll)

	count := func(name string, labels ...string) float64 {
		t.Helper()
		value, err := d.Value(t.Context(), name, labels...)
		if err != nil && !errors.Is(err, env.ErrNoSeries) {
			t.Fatal(err)
		}
		return value
	}
	denials := func() float64 { return count("bucketwarden_admission_denials_total", "reason=shorten") }
	reviews := func() float64 { return count("bucketwarden_admission_reviews_total", "outcome=allowed") }
	before := denials()
	if err := patch(t.Context(), "24h"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), webhookSays) {
		t.Fatalf("got %v", err)
	}
	mustEqual(t, "number of denials", denials(), before+1)
	found := false
	for line := range strings.Lines(d.Log()) {
		found = found || strings.Contains(line, `"Denied"`) && strings.Contains(line, `name="traced"`) && strings.Contains(line, `user="`+somebody+`"`) &&
			strings.Contains(line, `reason="shorten" dryRun=false`)
	}
	if !found {
		t.Errorf("who it was is not in the log:\n%s", d.Log())
	}

	// What is allowed is asked about twice and counts once.
	eventually(t, "the webhook is asked", func(ctx context.Context) error {
		before = reviews()
		if err := patch(ctx, "120h", metav1.DryRunAll); err != nil {
			return err
		}
		switch got := reviews() - before; {
		case got > 1:
			t.Errorf("%v reviews were counted", got)
			return nil
		case got < 1:
			return errors.New("no review was counted")
		}
		return nil
	})

	d.Kill()
	deniedBy(policySays)
	requests, err := k.Requests(somebody)
	must(t, err)
	found = false
	for _, r := range requests {
		found = found || r.ResponseStatus.Code == 403 &&
			strings.Contains(r.Annotations["validation.policy.admission.k8s.io/validation_failure"], "the bucket has a locked retention of 96h")
	}
	if !found {
		t.Errorf("who it was is not in the audit log: %+v", requests)
	}
}
