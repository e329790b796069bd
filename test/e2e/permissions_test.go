package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
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
	roles := documentedRulesOf(t, "docs/operations.md")
	if len(roles) != 2 {
		t.Fatalf("the document has %d roles", len(roles))
	}
	return roles[0], roles[1]
}

// documentedRulesOf are the roles of a page.
func documentedRulesOf(t *testing.T, page string) (roles [][]rbacv1.PolicyRule) {
	t.Helper()
	blocks, _ := splitPage(t, page)
	for _, b := range blocks {
		var role struct{ Rules []rbacv1.PolicyRule }
		if err := yaml.UnmarshalStrict([]byte(b.text), &role); b.language == "yaml" && err == nil && len(role.Rules) > 0 {
			roles = append(roles, role.Rules)
		}
	}
	return roles
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
	// They tell which credentials were used for what.
	bucketStore, entryStore := startProxy(t, minio), startProxy(t, minio)
	bucket := newName("backups")
	writeSecret(t, secretName(buckets, bucket), minio.SecretData(bucketStore.URL))
	create(t, buckets, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("governance", "24h"))))
	waitHealthy(t, buckets, bucket)
	awaitEvent(t, "BucketCreated", bucket)
	reconcile(t, buckets, bucket, setImmutability(nil))
	waitHealthy(t, buckets, bucket)
	entry, _ := newShoot(t)
	writeSecret(t, secretName(entries, entry), minio.SecretData(entryStore.URL))
	create(t, entries, entryObject(entry, d.kind, bucket))
	waitHealthy(t, entries, entry)
	reconcile(t, entries, entry, nil)
	waitHealthy(t, entries, entry)
	for range 2 {
		writeSecret(t, secretName(entries, entry), map[string][]byte{
			"accessKeyID": []byte(minio.AccessKeyID), "secretAccessKey": []byte(minio.SecretAccessKey), "endpoint": []byte(entryStore.URL), "s3ForcePathStyle": []byte("true")})
		reconcile(t, entries, entry, nil)
		waitHealthy(t, entries, entry)
	}
	// What is under legal hold stays, and is asked about when the entry and the bucket are deleted.
	key := entry + "/etcd-main/v2/Full"
	store.putObject(t, bucket, key, noRetention)
	hold := func(status types.ObjectLockLegalHoldStatus) {
		t.Helper()
		_, err := store.PutObjectLegalHold(t.Context(), &s3.PutObjectLegalHoldInput{Bucket: &bucket, Key: &key, LegalHold: &types.ObjectLockLegalHold{Status: status}})
		must(t, err)
	}
	hold(types.ObjectLockLegalHoldStatusOn)
	remove(t, entries, entry)
	waitGone(t, entries, entry)
	remove(t, buckets, bucket)
	eventually(t, "the bucket waits for the end of the legal hold", func(context.Context) error {
		if bucketStore.Counts()["GetObjectLegalHold"] == 0 {
			return errors.New("nobody has asked for it")
		}
		return nil
	})
	hold(types.ObjectLockLegalHoldStatusOff)
	reconcile(t, buckets, bucket, nil)
	waitGone(t, buckets, bucket)
	awaitEvent(t, "BucketDeleted", bucket)
	checkNothingForbidden(t, d)

	roles := documentedRoles(t)
	checkActions(t, "the policy of a BackupBucket on AWS", roles[0].allowed(), append(neededOnS3(t, bucketStore),
		// Of a bucket without object lock.
		"s3:ListBucket", "s3:GetBucketVersioning",
		// MinIO has no public access block; bucket policies are for HTTPS.
		"s3:PutBucketPublicAccessBlock", "s3:GetBucketPolicy", "s3:PutBucketPolicy",
		// A sweep that finds a tombstone against a live entry revokes it.
		"s3:PutObject",
		// What was written while the lock was weakened is retained for longer, and so is the chain of a cluster that sleeps.
		"s3:PutObjectRetention",
		// MinIO lists the uploads of a single key only.
		"s3:AbortMultipartUpload"))
	checkActions(t, "the policy of a BackupEntry on AWS", roles[1].allowed(), append(neededOnS3(t, entryStore),
		"s3:AbortMultipartUpload",
		// For etcd-backup-restore, in part such versions of it as make use of object lock
		// (gardener/etcd-backup-restore pkg/snapstore/s3_snapstore.go).
		"s3:ListBucket", "s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration", "s3:GetObject", "s3:GetObjectVersion",
		"s3:GetObjectTagging", "s3:GetObjectVersionTagging", "s3:ListMultipartUploadParts"))
}

// s3Actions are the actions that operations need
// (docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html, and each
// operation's page in docs.aws.amazon.com/AmazonS3/latest/API).
var s3Actions = map[string][]string{
	"AbortMultipartUpload": {"s3:AbortMultipartUpload"},
	// With object lock.
	"CreateBucket":               {"s3:CreateBucket", "s3:PutBucketObjectLockConfiguration", "s3:PutBucketVersioning"},
	"DeleteBucket":               {"s3:DeleteBucket"},
	"DeleteObjects":              {"s3:DeleteObject", "s3:DeleteObjectVersion"},
	"GetBucketEncryption":        {"s3:GetEncryptionConfiguration"},
	"GetBucketVersioning":        {"s3:GetBucketVersioning"},
	"GetObjectLegalHold":         {"s3:GetObjectLegalHold"},
	"GetObjectLockConfiguration": {"s3:GetBucketObjectLockConfiguration"},
	"GetObjectRetention":         {"s3:GetObjectRetention"},
	"GetPublicAccessBlock":       {"s3:GetBucketPublicAccessBlock"},
	"HeadBucket":                 {"s3:ListBucket"},
	"ListMultipartUploads":       {"s3:ListBucketMultipartUploads"},
	"ListObjectVersions":         {"s3:ListBucketVersions"},
	"PutBucketEncryption":        {"s3:PutEncryptionConfiguration"},
	"PutObject":                  {"s3:PutObject"},
	"PutObjectLockConfiguration": {"s3:PutBucketObjectLockConfiguration"},
	"PutObjectRetention":         {"s3:PutObjectRetention"},
}

// neededOnS3 are the actions that the requests of a proxy need.
func neededOnS3(t *testing.T, proxy *env.Proxy) (needed []string) {
	t.Helper()
	for operation := range proxy.Counts() {
		if s3Actions[operation] == nil {
			t.Errorf("nobody knows which action %s needs", operation)
		}
		needed = append(needed, s3Actions[operation]...)
	}
	return needed
}

func checkNothingForbidden(t *testing.T, d *daemon) {
	t.Helper()
	if strings.Contains(d.allLogs(), "forbidden") {
		t.Errorf("the daemon lacks a permission:\n%s", d.allLogs())
	}
}

// documentedRole is a policy of AWS or a role of Azure.
type documentedRole struct {
	Statement []struct {
		Effect string
		Action []string
	}
	Actions []string
}

func (r documentedRole) allowed() []string {
	allowed := r.Actions
	for _, statement := range r.Statement {
		if statement.Effect == "Allow" {
			allowed = append(allowed, statement.Action...)
		}
	}
	return allowed
}

// documentedRoles are those that docs/security.md tells operators to grant: on AWS of a
// BackupBucket, of a BackupEntry and for everybody else, then of a BackupBucket on Azure, and of an observer on AWS and Azure.
func documentedRoles(t *testing.T) (roles []documentedRole) {
	t.Helper()
	blocks, _ := splitPage(t, "docs/security.md")
	for _, b := range blocks {
		if b.language != "json" {
			continue
		}
		var role documentedRole
		if err := json.Unmarshal([]byte(b.text), &role); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		roles = append(roles, role)
	}
	if len(roles) != 7 {
		t.Fatalf("docs/security.md has %d roles", len(roles))
	}
	return roles
}

// checkActions checks that a documented role allows what is needed and nothing else.
func checkActions(t *testing.T, role string, allowed, needed []string) {
	t.Helper()
	missing := func(of, from []string) []string {
		of = slices.DeleteFunc(slices.Clone(of), func(a string) bool {
			return slices.ContainsFunc(from, func(b string) bool { return strings.EqualFold(a, b) })
		})
		slices.Sort(of)
		return slices.Compact(of)
	}
	if lacking := missing(needed, allowed); len(lacking) > 0 {
		t.Errorf("docs/security.md: %s lacks %q", role, lacking)
	}
	if idle := missing(allowed, needed); len(idle) > 0 {
		t.Errorf("docs/security.md: %s allows %q, which nothing needs", role, idle)
	}
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
	"StorageAccounts_CheckNameAvailability":           "Microsoft.Storage/checknameavailability/read",
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

	var needed []string
	for _, r := range azure.Requests(bucket, "checkNameAvailability") {
		action, known := azureActions[r.Operation]
		switch {
		case r.Plane != env.PlaneARM:
		case !known:
			t.Errorf("nobody knows which action %s needs", r.Operation)
		case action != "":
			needed = append(needed, action)
		}
	}
	checkActions(t, "the role on Azure", documentedRoles(t)[3].allowed(), append(needed,
		// Where the resource group holds something else too.
		"Microsoft.Storage/storageAccounts/delete"))
}
