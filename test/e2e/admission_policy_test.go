package e2e

import (
	"context"
	"errors"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var admissionregistration = schema.GroupVersion{Group: "admissionregistration.k8s.io", Version: "v1"}

// The ValidatingAdmissionPolicy protects what is locked while no webhook answers.
func TestAdmissionPolicy(t *testing.T) {
	t.Parallel()
	r := prepareAdmission(t)
	installPolicy(t, r.kube)
	probe := r.named(t, "aws: none over locked")
	eventually(t, "the policy is enforced", func(ctx context.Context) error {
		if r.write(ctx, probe, metav1.DryRunAll) == nil {
			return errors.New("a lock could be disabled")
		}
		return nil
	})
	r.run(t, func(c *admissionCase) (string, []string) {
		switch {
		case c.onlyWebhook:
			return "", nil
		case c.policyDenied != "":
			return c.policyDenied, nil
		default:
			return c.denied, nil
		}
	})
	r.patch(t)
}
