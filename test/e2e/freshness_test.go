package e2e

import (
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
)

// That a state is unknown is written to the status with the resourceVersion that it was decided on: of what a pass has written
// meanwhile nothing is lost.
func TestStatusPatchKeepsToTheResourceVersion(t *testing.T) {
	t.Parallel()
	name := newName("bucket")
	old := create(t, buckets, bucketObject(name, "nobody-serves-this", nil))
	write := func(version, reason string) error {
		patch := fmt.Sprintf(`{"metadata":{"resourceVersion":%q},"status":{"conditions":[{"type":"BucketImmutable","status":"Unknown","reason":%q,`+
			`"message":"x","lastTransitionTime":"2026-01-02T03:04:05Z","lastUpdateTime":"2026-01-02T03:04:05Z"}]}}`, version, reason)
		_, err := kube.Dynamic.Resource(buckets).Patch(t.Context(), name, apitypes.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
		return err
	}
	if err := write(old.GetResourceVersion(), "First"); err != nil {
		t.Fatal(err)
	}
	if err := write(old.GetResourceVersion(), "Second"); !apierrors.IsConflict(err) {
		t.Errorf("got %v, want a conflict", err)
	}
	o := get(t, buckets, name)
	if reason := conditionOf(o, "BucketImmutable")["reason"]; reason != "First" {
		t.Errorf("the reason is %v", reason)
	}
	if err := write(o.GetResourceVersion(), "Third"); err != nil {
		t.Error(err)
	}
}
