package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"bucketwarden/test/env"
)

// documentedRules are the rules that docs/operations.md tells operators to grant: in the
// whole cluster, and in the daemon's own namespace.
func documentedRules(t *testing.T) (cluster, own []rbacv1.PolicyRule) {
	t.Helper()
	var roles [][]rbacv1.PolicyRule
	blocks, _ := splitPage(t, "docs/operations.md")
	for _, b := range blocks {
		var role struct{ Rules []rbacv1.PolicyRule }
		if err := yaml.UnmarshalStrict([]byte(b.text), &role); b.language == "yaml" && err == nil && len(role.Rules) > 0 {
			roles = append(roles, role.Rules)
		}
	}
	if len(roles) != 2 {
		t.Fatalf("the document has %d roles", len(roles))
	}
	return roles[0], roles[1]
}

// documentedAccount returns the kubeconfig of a service account with only the documented
// permissions.
func documentedAccount(t *testing.T, namespace string) (kubeconfig string) {
	t.Helper()
	name := newName("permissions")
	kubeconfig, err := kube.ServiceAccountKubeconfig(t.Context(), namespace, name)
	must(t, err)
	cluster, own := documentedRules(t)
	rbac, meta := kube.Client.RbacV1(), metav1.ObjectMeta{Name: name}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}}
	_, err = rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: cluster}, metav1.CreateOptions{})
	must(t, err)
	_, err = rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}}, metav1.CreateOptions{})
	must(t, err)
	_, err = rbac.Roles(namespace).Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: own}, metav1.CreateOptions{})
	must(t, err)
	_, err = rbac.RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name}}, metav1.CreateOptions{})
	must(t, err)
	return kubeconfig
}

func TestDocumentedPermissionsSuffice(t *testing.T) {
	t.Parallel()
	namespace := newName("own")
	createNamespace(t, namespace, nil)
	d := startDaemon(t, "--kubeconfig="+documentedAccount(t, namespace), "--namespace="+namespace, "--leader-elect")
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
	checkNothingForbidden(t, d)
}

func checkNothingForbidden(t *testing.T, d *daemon) {
	t.Helper()
	if strings.Contains(d.allLogs(), "forbidden") {
		t.Errorf("the daemon lacks a permission:\n%s", d.allLogs())
	}
}

// documentedActions are the actions of the role that docs/security.md tells operators to grant.
func documentedActions(t *testing.T) map[string]bool {
	t.Helper()
	actions := map[string]bool{}
	blocks, _ := splitPage(t, "docs/security.md")
	for _, b := range blocks {
		var role struct{ Actions []string }
		if b.language != "json" {
			continue
		}
		if err := json.Unmarshal([]byte(b.text), &role); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		for _, action := range role.Actions {
			actions[strings.ToLower(action)] = true
		}
	}
	if len(actions) == 0 {
		t.Fatal("no role in the document")
	}
	return actions
}

// azureActions are the actions that operations need
// (learn.microsoft.com/azure/role-based-access-control/permissions/storage).
var azureActions = map[string]string{
	"FileShares_List":                                 "Microsoft.Storage/storageAccounts/fileServices/shares/read",
	"Queue_List":                                      "Microsoft.Storage/storageAccounts/queueServices/queues/read",
	"Table_List":                                      "Microsoft.Storage/storageAccounts/tableServices/tables/read",
	"ResourceGroups_Get":                              "Microsoft.Resources/subscriptions/resourceGroups/read",
	"ResourceGroups_CreateOrUpdate":                   "Microsoft.Resources/subscriptions/resourceGroups/write",
	"ResourceGroups_Delete":                           "Microsoft.Resources/subscriptions/resourceGroups/delete",
	"Resources_ListByResourceGroup":                   "Microsoft.Resources/subscriptions/resourceGroups/resources/read",
	"StorageAccounts_GetProperties":                   "Microsoft.Storage/storageAccounts/read",
	"StorageAccounts_Create":                          "Microsoft.Storage/storageAccounts/write",
	"StorageAccounts_Update":                          "Microsoft.Storage/storageAccounts/write",
	"StorageAccounts_Delete":                          "Microsoft.Storage/storageAccounts/delete",
	"StorageAccounts_ListKeys":                        "Microsoft.Storage/storageAccounts/listkeys/action",
	"StorageAccounts_RegenerateKey":                   "Microsoft.Storage/storageAccounts/regeneratekey/action",
	"BlobContainers_Get":                              "Microsoft.Storage/storageAccounts/blobServices/containers/read",
	"BlobContainers_List":                             "Microsoft.Storage/storageAccounts/blobServices/containers/read",
	"BlobContainers_Create":                           "Microsoft.Storage/storageAccounts/blobServices/containers/write",
	"BlobContainers_Delete":                           "Microsoft.Storage/storageAccounts/blobServices/containers/delete",
	"BlobContainers_CreateOrUpdateImmutabilityPolicy": "Microsoft.Storage/storageAccounts/blobServices/containers/immutabilityPolicies/write",
	"BlobContainers_DeleteImmutabilityPolicy":         "Microsoft.Storage/storageAccounts/blobServices/containers/immutabilityPolicies/delete",
	"BlobContainers_LockImmutabilityPolicy":           "Microsoft.Storage/storageAccounts/blobServices/containers/immutabilityPolicies/lock/action",
	"BlobContainers_ExtendImmutabilityPolicy":         "Microsoft.Storage/storageAccounts/blobServices/containers/immutabilityPolicies/extend/action",
	// Without this one the creation of the account tells.
	"StorageAccounts_CheckNameAvailability": "",
	// The result of an operation belongs to whoever began it.
	"Operations_Get": "",
}

func TestAzureDocumentedPermissionsSuffice(t *testing.T) {
	t.Parallel()
	namespace, generated := newName("own"), newName("generated")
	createNamespace(t, namespace, nil)
	createNamespace(t, generated, nil)
	d := startAzureDaemon(t, "--kubeconfig="+documentedAccount(t, namespace), "--namespace="+namespace)
	bucket, entry := azureName(), newName("shoot--p--s")
	d.createAzureBucket(t, bucket, days(4, false))
	for _, immutability := range []map[string]any{nil, days(1, true), days(2, true)} {
		reconcile(t, buckets, bucket, immutable(immutability))
		waitHealthy(t, buckets, bucket)
	}
	must(t, azure.SetAccountProperty(azureAccountName(bucket), "properties.minimumTlsVersion", "TLS1_0"))
	reconcile(t, buckets, bucket, func(o *unstructured.Unstructured) { annotate(o, annotationGeneratedSecretNamespace, generated) })
	waitHealthy(t, buckets, bucket)
	reconcile(t, buckets, bucket, func(o *unstructured.Unstructured) { annotate(o, annotationGeneratedSecretNamespace, gardenNamespace) })
	waitHealthy(t, buckets, bucket)
	rotateRequested(t, bucket)
	awaitRotateRemoved(t, bucket)
	createNamespace(t, entry, nil)
	d.createAzureEntry(t, entry+"--uid", bucket)
	remove(t, entries, entry+"--uid")
	waitGone(t, entries, entry+"--uid")
	remove(t, buckets, bucket)
	d.awaitAzureGone(t, bucket)
	awaitEvent(t, "BucketDeleted", bucket)
	checkNothingForbidden(t, d)

	documented := documentedActions(t)
	missing := map[string]bool{}
	for _, r := range azure.Requests(bucket, "checkNameAvailability") {
		action, known := azureActions[r.Operation]
		switch {
		case r.Plane != env.PlaneARM:
		case !known:
			t.Errorf("nobody knows which action %s needs", r.Operation)
		case action != "" && !documented[strings.ToLower(action)]:
			missing[action] = true
		}
	}
	for action := range missing {
		t.Errorf("docs/security.md lacks the action %s", action)
	}
}
