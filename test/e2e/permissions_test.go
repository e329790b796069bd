package e2e

import (
	"os"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// documentedRules are the rules that docs/operations.md tells operators to grant.
func documentedRules(t *testing.T) []rbacv1.PolicyRule {
	t.Helper()
	document, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(document), "## Permissions on the seed\n\n```yaml\n")
	block, _, found := strings.Cut(after, "```")
	var role struct{ Rules []rbacv1.PolicyRule }
	if err := yaml.UnmarshalStrict([]byte(block), &role); err != nil || !found || len(role.Rules) == 0 {
		t.Fatalf("no rules in the document: %v", err)
	}
	return role.Rules
}

func TestDocumentedPermissionsSuffice(t *testing.T) {
	t.Parallel()
	name := newName("permissions")
	kubeconfig, err := kube.ServiceAccountKubeconfig(t.Context(), gardenNamespace, name)
	if err != nil {
		t.Fatal(err)
	}
	rbac := kube.Client.RbacV1()
	if _, err := rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: documentedRules(t)}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: gardenNamespace, Name: name}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	namespace := newName("own")
	createNamespace(t, namespace, nil)
	d := startDaemon(t, "--kubeconfig="+kubeconfig, "--namespace="+namespace)
	bucket := newName("backups")
	createBucket(t, bucketObject(bucket, d.kind, nil))
	waitHealthy(t, buckets, bucket)
	awaitEvent(t, "BucketCreated", bucket)
	entry, _ := newShoot(t)
	createEntry(t, entryObject(entry, d.kind, bucket))
	waitHealthy(t, entries, entry)
	reconcile(t, entries, entry, nil)
	waitHealthy(t, entries, entry)
	for range 2 {
		writeSecret(t, secretName(entries, entry), map[string][]byte{
			"accessKeyID": []byte(minio.AccessKeyID), "secretAccessKey": []byte(minio.SecretAccessKey), "endpoint": []byte(minio.Endpoint), "s3ForcePathStyle": []byte("true")})
		reconcile(t, entries, entry, nil)
		waitHealthy(t, entries, entry)
	}
	remove(t, entries, entry)
	waitGone(t, entries, entry)
	remove(t, buckets, bucket)
	waitGone(t, buckets, bucket)
	awaitEvent(t, "BucketDeleted", bucket)
	if strings.Contains(d.allLogs(), "forbidden") {
		t.Errorf("the daemon lacks a permission:\n%s", d.allLogs())
	}
}
