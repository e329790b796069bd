package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
)

const testGenerated = "generated-bucket-b"

func azureCredentials() map[string][]byte {
	data := map[string][]byte{}
	for _, key := range []string{"subscriptionID", "tenantID", "clientID", "clientSecret"} {
		data[key] = []byte(secretMarker + "-" + key)
	}
	return data
}

// generatedData is a generated secret that publishes a key.
func generatedData(account, key string) map[string][]byte {
	return map[string][]byte{dataKeyStorageAccount: []byte(account), dataKeyStorageKey: []byte(key), dataKeyDomain: []byte("blob.example.com")}
}

// withAzureConfig is a providerConfig of an Azure bucket that asks for p and has further
// fields.
func withAzureConfig(p Policy, fields map[string]any) editObject {
	config := testConfig(p)
	config["apiVersion"] = "azure.provider.extensions.gardener.cloud/v1alpha1"
	maps.Copy(config, fields)
	return set(config, "spec", "providerConfig")
}

func rotationEvery(days int64) map[string]any {
	return map[string]any{"rotationConfig": map[string]any{"rotationPeriodDays": days}}
}

func withGeneratedRef(namespace, name string) editObject {
	return set(map[string]any{"namespace": namespace, "name": name}, "status", "generatedSecretRef")
}

// putAzure stores BackupBucket b on Azure with its secret; with a policy in the cloud if it
// is settled, which then has its account and its generated secret as well.
func (h *harness) putAzure(settled bool, p Policy, edits ...editObject) *memAccount {
	h.t.Helper()
	for _, namespace := range []string{"garden", "other"} {
		h.putNamespace(namespace, false)
	}
	edits = append([]editObject{set("azure", "spec", "type"), withAzureConfig(p, nil)}, edits...)
	if settled {
		recorded := func(u *unstructured.Unstructured) {
			set("azure.provider.extensions.gardener.cloud/v1alpha1", "status", "providerStatus", "apiVersion")(u)
			set(bucketStatusKind, "status", "providerStatus", "kind")(u)
			set("derived", "status", "providerStatus", "storageAccount")(u)
		}
		edits = append([]editObject{withGeneratedRef("garden", testGenerated), withRecord(p), recorded}, edits...)
	}
	h.putBucket(settled, edits...)
	h.editSecret("garden", "bucket-b", func(s *corev1.Secret) { s.Data = azureCredentials() })
	if !settled {
		return nil
	}
	h.cloud.putContainer("b", p, 5)
	h.putGenerated("garden", generatedData("derived", memKey1))
	return h.cloud.putAccount("b")
}

// putGenerated stores the generated secret of a key of testStart.
func (h *harness) putGenerated(namespace string, data map[string][]byte) {
	h.t.Helper()
	h.putSecret(namespace, testGenerated, data)
	h.editSecret(namespace, testGenerated, func(s *corev1.Secret) {
		s.Annotations = map[string]string{annotationKeyCreated: testStart.Format(time.RFC3339)}
	})
}

// putContainer makes a bucket whose lock can be extended a number of times.
func (s *memStore) putContainer(name string, p Policy, extensions int32) *memBucket {
	b := s.put(name, p)
	b.state.Extensions = &extensions
	return b
}

// wantGenerated checks the generated secret of b, that there is no other one, and that the
// status refers to it.
func (h *harness) wantGenerated(namespace, account, key string) {
	h.t.Helper()
	secret := h.secret(namespace, testGenerated)
	if secret == nil {
		h.t.Fatalf("no generated secret in namespace %s", namespace)
	}
	if want := generatedData(account, key); !sameData(secret.Data, want) || secret.Type != corev1.SecretTypeOpaque {
		h.t.Errorf("the generated secret has %q, want %q, type %s", secret.Data, want, secret.Type)
	}
	for _, other := range []string{"garden", "other"} {
		if other != namespace && h.secret(other, testGenerated) != nil {
			h.t.Errorf("there is a generated secret in namespace %s", other)
		}
	}
	if got, want := decodeBucket(h.get(bucketsGVR, "b")).GeneratedSecretRef.String(), namespace+"/"+testGenerated; got != want {
		h.t.Errorf("status.generatedSecretRef is %s, want %s", got, want)
	}
}

func (h *harness) rotationIsRequested() bool {
	_, ok := h.get(bucketsGVR, "b").GetAnnotations()[annotationRotate]
	return ok
}

var (
	azureReconciled = []string{"patch backupbuckets b annotations", "get secrets garden/bucket-b", "get secrets garden/generated-bucket-b",
		"store b Observe", "store b Harden", "store b Keys", "status backupbuckets b Reconcile Succeeded"}
	azureVerified = []string{"get secrets garden/bucket-b", "get secrets garden/generated-bucket-b", "store b Observe"}
)

func TestAzureBucketCreate(t *testing.T) {
	for _, namespace := range []string{"garden", "other"} {
		t.Run("generated secret in "+namespace, func(t *testing.T) {
			h := newHarness(t)
			edits := []editObject{withOperation(operationReconcile)}
			if namespace != "garden" {
				edits = append(edits, withAnnotation(annotationGeneratedSecretNamespace, namespace))
			}
			h.putAzure(false, locked4d, edits...)
			wait, err := h.passBucket("b")
			if err != nil || wait != testVerifyInterval {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantTrace(
				"patch backupbuckets b annotations,finalizers",
				"get secrets garden/bucket-b",
				"status backupbuckets b Create Processing",
				"patch secrets garden/bucket-b finalizers",
				"get secrets "+namespace+"/generated-bucket-b",
				"store b Observe",
				"store b Create immutable",
				"store b Observe",
				"store b SetPolicy unlocked retention of 96h",
				"store b Observe",
				"store b LockPolicy locked retention of 96h",
				"store b Observe",
				"store b Harden",
				"store b Keys",
				"create secrets "+namespace+"/generated-bucket-b",
				"status backupbuckets b Create Succeeded +conditions +generatedSecretRef +providerStatus",
			)
			h.wantEvents("BucketCreated", "PolicySet", "PolicyLocked")
			h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateSucceeded)
			h.wantGenerated(namespace, "derived", memKey1)
			if got := h.secret(namespace, testGenerated).Annotations; !maps.Equal(got, map[string]string{annotationKeyCreated: testStart.Format(time.RFC3339)}) {
				t.Errorf("annotations %v", got)
			}
			if got := h.record(); got != locked4d {
				t.Errorf("recorded %v", got)
			}
			h.wantMetric(float64(testStart.Unix()), "bucketwarden_backupbucket_key_created_timestamp_seconds", "b")
			h.wantMetric(0, "bucketwarden_backupbucket_key_rotations_total", "b")
			if got := h.cloud.opened; got != (bucketRef{Name: "b", Region: "eu-1"}) {
				t.Errorf("opened %+v", got)
			}
			status, _, _ := unstructured.NestedMap(h.get(bucketsGVR, "b").Object, "status", "providerStatus", "immutability")
			if _, found := status["mode"]; found || status["locked"] != true {
				t.Errorf("providerStatus has %v", status)
			}
		})
	}
}

func TestAzureBucketUnchanged(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d, withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	h.edit(bucketsGVR, "b", withOperation(operationReconcile))
	before := h.secret("garden", testGenerated).ResourceVersion
	wait, err := h.passBucket("b")
	if err != nil || wait != testVerifyInterval {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(azureReconciled...)
	h.wantEvents()
	if h.secret("garden", testGenerated).ResourceVersion != before {
		t.Error("the generated secret was written")
	}
}

func TestAzureBucketVerifyHealthy(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d, withAzureConfig(locked4d, rotationEvery(100000)))
	wait, err := h.passBucket("b")
	if err != nil || wait != testVerifyInterval {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(azureVerified...)
	if n := h.requests(); n != 2 {
		t.Errorf("%d API requests, want 2", n)
	}
	h.wantEvents()
	h.wantMetric(5, "bucketwarden_backupbucket_policy_extensions_remaining", "b")
	// After a restart the metric comes from the secret.
	h.wantMetric(float64(testStart.Unix()), "bucketwarden_backupbucket_key_created_timestamp_seconds", "b")
}

// What the spec and the status say about the store goes to it.
func TestAzureBucketRef(t *testing.T) {
	fields := map[string]any{"cloudConfiguration": map[string]any{"name": "AzureChina"},
		"rotationConfig": map[string]any{"rotationPeriodDays": int64(30000), "expirationPeriodDays": int64(30001)}}
	want := bucketRef{Name: "b", Region: "eu-1", Recorded: locked4d, Cloud: "AzureChina", KeyExpirationDays: 30001, Account: "bkpadopted"}
	for name, edits := range map[string][]editObject{
		"verification": nil,
		"reconcile":    {withOperation(operationReconcile)},
		"deletion":     {withFinalizers("other"), deleting},
		"defence":      {set(int64(7), "metadata", "generation")},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, locked4d, append([]editObject{withAzureConfig(locked4d, fields)}, edits...)...)
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Data = generatedData("bkpadopted", memKey1) })
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			if got := h.cloud.opened; got != want {
				t.Errorf("opened %+v, want %+v", got, want)
			}
			if name != "deletion" {
				h.wantGenerated("garden", "bkpadopted", memKey1)
			}
		})
	}
	t.Run("on S3", func(t *testing.T) {
		h := newHarness(t)
		h.cloud.put("b", locked4d)
		h.putBucket(true, withPolicy(locked4d), withRecord(locked4d), withGeneratedRef("garden", testGenerated))
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		if got := h.cloud.opened; got != (bucketRef{Name: "b", Region: "eu-1", Recorded: locked4d}) {
			t.Errorf("opened %+v", got)
		}
		h.wantTrace("get secrets garden/bucket-b", "store b Observe")
	})
}

// A mistake elsewhere in the spec must not lead to another cloud than the spec names, which
// would get the credentials.
func TestAzureBrokenSpecKeepsItsCloud(t *testing.T) {
	for name, field := range map[string]map[string]any{
		"unknown field":       {"bogus": "x"},
		"wrong period":        {"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "25h"}},
		"wrong rotation":      rotationEvery(1),
		"unknown sub-field":   {"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "96h", "mode": modeCompliance}},
		"number for a string": {"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": int64(96)}},
	} {
		for _, operation := range []string{"", operationReconcile} {
			t.Run(name+" "+operation, func(t *testing.T) {
				fields := map[string]any{"cloudConfiguration": map[string]any{"name": "MyCloud"}}
				maps.Copy(fields, field)
				h := newHarness(t)
				h.putAzure(true, locked4d, withAzureConfig(locked4d, fields), withOperation(operation))
				if _, err := h.passBucket("b"); err == nil {
					t.Error("no error")
				}
				if got := h.cloud.opened; got.Name != "" && got.Cloud != "MyCloud" {
					t.Errorf("opened %+v", got)
				}
			})
		}
	}
}

func TestAzureGeneratedSecretHeals(t *testing.T) {
	moved := []string{"store b Keys", "create secrets other/generated-bucket-b", "delete secrets garden/generated-bucket-b"}
	patched := []string{"store b Keys", "patch secrets garden/generated-bucket-b annotations,labels,data"}
	for _, test := range []struct {
		name    string
		prepare func(h *harness)
		// changes are what heals it, besides the status.
		changes []string
		// reconcile: a verification does not see it.
		reconcile bool
		namespace string
	}{
		{name: "missing", prepare: func(h *harness) { h.deleteSecret("garden", testGenerated) },
			changes: []string{"store b Keys", "create secrets garden/generated-bucket-b"}},
		{name: "never published", prepare: func(h *harness) {
			h.deleteSecret("garden", testGenerated)
			h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
				unstructured.RemoveNestedField(u.Object, "status", "generatedSecretRef")
			})
		}, changes: []string{"store b Keys", "create secrets garden/generated-bucket-b"}},
		{name: "without a key", prepare: func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { delete(s.Data, dataKeyStorageKey) })
		}, changes: patched},
		{name: "empty", prepare: func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Data, s.Annotations = nil, nil })
		},
			changes: patched},
		{name: "unknown to the status", prepare: func(h *harness) {
			h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
				unstructured.RemoveNestedField(u.Object, "status", "generatedSecretRef")
			})
		}, changes: []string{"store b Keys"}},
		{name: "status refers to something else", prepare: func(h *harness) { h.edit(bucketsGVR, "b", withGeneratedRef("garden", "bucket-b")) }},
		{name: "another key", reconcile: true, prepare: func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Data = generatedData("derived", secretMarker+"-unknown") })
		}, changes: patched},
		{name: "without a domain", reconcile: true, prepare: func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { delete(s.Data, dataKeyDomain) })
		}, changes: patched},
		{name: "with more", reconcile: true, prepare: func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Data["more.json"] = []byte(secretMarker) })
		}, changes: patched},
		{name: "without the time of its key", reconcile: true, prepare: func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Annotations = nil })
		}, changes: patched},
		{name: "in another namespace", reconcile: true, namespace: "other",
			prepare: func(h *harness) { h.edit(bucketsGVR, "b", withAnnotation(annotationGeneratedSecretNamespace, "other")) },
			changes: moved},
	} {
		operations := []string{operationReconcile}
		if !test.reconcile {
			operations = append(operations, "")
		}
		for _, operation := range operations {
			t.Run(test.name+" "+operation, func(t *testing.T) {
				h := newHarness(t)
				h.putAzure(true, locked4d)
				test.prepare(h)
				if operation != "" {
					h.edit(bucketsGVR, "b", withOperation(operation))
				}
				if _, err := h.passBucket("b"); err != nil {
					t.Error(err)
				}
				namespace := test.namespace
				if namespace == "" {
					namespace = "garden"
				}
				h.wantGenerated(namespace, "derived", memKey1)
				changes := slices.DeleteFunc(slices.Clone(h.trace), func(line string) bool {
					return strings.HasPrefix(line, "get ") || strings.HasPrefix(line, "status ") || strings.HasPrefix(line, "patch backupbuckets") ||
						strings.HasSuffix(line, " Observe") || strings.HasSuffix(line, " Harden")
				})
				want := test.changes
				if operation != "" && want == nil {
					want = []string{"store b Keys"}
				}
				if !slices.Equal(changes, want) {
					t.Errorf("changes %q, want %q", changes, want)
				}
				h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
				h.wantMetric(float64(testStart.Unix()), "bucketwarden_backupbucket_key_created_timestamp_seconds", "b")

				if _, err := h.passBucket("b"); err != nil {
					t.Error(err)
				}
				h.wantTrace("get secrets garden/bucket-b", "get secrets "+namespace+"/generated-bucket-b", "store b Observe")
			})
		}
	}
}

// Work on it is announced, as all work is.
func TestAzureGeneratedSecretIsWrittenInProcessing(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		write   string
	}{
		"missing": {func(h *harness) { h.deleteSecret("garden", testGenerated) }, "create secrets garden/generated-bucket-b"},
		"another key": {func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Data = generatedData("derived", memKey2+"x") })
		}, "patch secrets garden/generated-bucket-b annotations,labels,data"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, locked4d, withOperation(operationReconcile))
			test.prepare(h)
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantTrace("patch backupbuckets b annotations", "get secrets garden/bucket-b", "get secrets garden/generated-bucket-b",
				"store b Observe", "store b Harden", "store b Keys", "status backupbuckets b Reconcile Processing", test.write,
				"status backupbuckets b Reconcile Succeeded +conditions")
		})
	}
}

// What others wrote beside the data is theirs.
func TestAzureGeneratedSecretKeepsMetadata(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d, withOperation(operationReconcile))
	h.editSecret("garden", testGenerated, func(s *corev1.Secret) {
		s.Data = nil
		s.Labels, s.Annotations, s.Finalizers = map[string]string{"a": "b"}, map[string]string{"c": "d"}, []string{"e"}
	})
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	h.wantGenerated("garden", "derived", memKey1)
	s := h.secret("garden", testGenerated)
	if s.Labels["a"] != "b" || s.Annotations["c"] != "d" || s.Annotations[annotationKeyCreated] == "" || !slices.Equal(s.Finalizers, []string{"e"}) {
		t.Errorf("metadata %v", s.ObjectMeta)
	}
}

// A generated secret that moves must neither be lost, with the name of its account, nor
// stay behind.
func TestAzureGeneratedSecretMoveSurvivesFaults(t *testing.T) {
	unavailable := apierrors.NewServiceUnavailable("etcd is slow")
	for name, fault := range map[string]func(h *harness){
		"the new one cannot be created": func(h *harness) { h.answer("create", "secrets", 1, unavailable) },
		"the old one cannot be deleted": func(h *harness) { h.answer("delete", "secrets", 1, unavailable) },
		"the old one is gone": func(h *harness) {
			h.on("delete", "secrets", 1, func() error { h.deleteSecret("garden", testGenerated); return nil })
		},
		"the status cannot be written":      func(h *harness) { h.answer("patch", "backupbuckets/status", 9, unavailable) },
		"killed before the old one deleted": func(h *harness) { h.on("delete", "secrets", 1, func() error { panic("killed") }) },
		"killed before the status":          func(h *harness) { h.on("patch", "backupbuckets/status", 1, func() error { panic("killed") }) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, locked4d, withAnnotation(annotationGeneratedSecretNamespace, "other"), withOperation(operationReconcile))
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Data = generatedData("bkpadopted", memKey1) })
			fault(h)
			_ = h.passOrKill()
			h.hooks = nil
			for range 2 {
				h.edit(bucketsGVR, "b", withOperation(operationReconcile))
				if err := h.passOrKill(); err != nil {
					t.Error(err)
				}
				if got := h.cloud.opened.Account; got != "bkpadopted" {
					t.Errorf("opened the account %q", got)
				}
			}
			h.wantGenerated("other", "bkpadopted", memKey1)
		})
	}
}

// passOrKill makes a pass over b as the controller does. A panic is the end of the daemon;
// the next pass is the first one after its restart.
func (h *harness) passOrKill() (err error) {
	h.t.Helper()
	c, key := h.buckets.resource.controller, cache.ObjectName{Name: "b"}
	defer func() {
		if r := recover(); r != nil {
			if r != "killed" {
				panic(r)
			}
			clear(c.wanted)
			clear(c.written)
			clear(c.due)
			err = nil
		}
	}()
	wanted := c.takeWanted(key)
	if _, err = h.pass(h.t.Context(), h.buckets.reconcile, "b", wanted); err != nil && wanted {
		c.want(key)
	}
	return err
}

func TestAzurePolicyIsLockedBeforeKeys(t *testing.T) {
	h := newHarness(t)
	h.putAzure(false, locked4d)
	h.cloud.fail["Keys"] = denied
	for range 2 {
		if wait, err := h.passBucket("b"); !errors.Is(err, denied) || wait != 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateError, codeUnauthorized)
		if got := h.cloud.buckets["b"].state.Policy; got != locked4d || h.record() != locked4d {
			t.Errorf("the bucket has %v, recorded %v", got, h.record())
		}
		if h.secret("garden", testGenerated) != nil {
			t.Error("there is a generated secret")
		}
	}
	delete(h.cloud.fail, "Keys")
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantGenerated("garden", "derived", memKey1)
	h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateSucceeded)
}

func TestAzureKeysArePublishedWhateverTheWish(t *testing.T) {
	for name, edit := range map[string]editObject{
		"a refused wish":  withAzureConfig(locked1d, nil),
		"a broken spec":   withAzureConfig(locked4d, map[string]any{"bogus": "x"}),
		"a broken policy": withAzureConfig(Policy{}, map[string]any{"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "25h"}}),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, locked4d, edit, withOperation(operationReconcile))
			h.deleteSecret("garden", testGenerated)
			if wait, err := h.passBucket("b"); err == nil || wait != testVerifyInterval {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeConfigurationProblem)
			h.wantGenerated("garden", "derived", memKey1)
			if got := h.storeChanges(); !slices.Equal(got, []string{"store b Harden", "store b Keys"}) {
				t.Errorf("changes %q", got)
			}
		})
	}
}

// A pass that only defends a lock leaves the keys as they are.
func TestAzureDefenceLeavesKeysAlone(t *testing.T) {
	for name, edits := range map[string][]editObject{
		"unseen spec":     {withAzureConfig(locked4d, rotationEvery(2)), set(int64(2), "metadata", "generation")},
		"waiting to go":   {withAzureConfig(locked4d, rotationEvery(2)), withFinalizers("other"), deleting},
		"waiting, asked":  {withAnnotation(annotationRotate, "true"), withFinalizers("other"), deleting},
		"without changes": {withAzureConfig(locked4d, nil), set(int64(2), "metadata", "generation")},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, locked4d, edits...)
			h.cloud.buckets["b"].state.Policy = Policy{}
			h.putEntry(testEntry, false)
			h.deleteSecret("garden", testGenerated)
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			if got := h.storeChanges(); !slices.Equal(got, []string{"store b LockPolicy locked retention of 96h"}) {
				t.Errorf("changes %q", got)
			}
			if h.secret("garden", testGenerated) != nil {
				t.Error("there is a generated secret")
			}
		})
	}
}

func TestAzureLostContainerIsMadeAnew(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d)
	delete(h.cloud.buckets, "b")
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	want := []string{"store b Create immutable", "store b LockPolicy locked retention of 96h", "store b Harden", "store b Keys"}
	if got := h.storeChanges(); !slices.Equal(got, want) {
		t.Errorf("changes %q, want %q", got, want)
	}
	h.wantEvents("BucketCreated", "BucketLost", "PolicyLocked")

	// The account is gone as well, and with it the key.
	delete(h.cloud.buckets, "b")
	h.cloud.accounts["b"].keys[0].Value = secretMarker + "-of-a-new-account"
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantGenerated("garden", "derived", secretMarker+"-of-a-new-account")
}

// publishedKey is the name of the account's key that the generated secret publishes.
func (h *harness) publishedKey() string {
	h.t.Helper()
	if secret := h.secret("garden", testGenerated); secret != nil {
		for _, key := range h.cloud.accounts["b"].keys {
			if key.Value == string(secret.Data[dataKeyStorageKey]) {
				return key.Name
			}
		}
	}
	return ""
}

func TestAzureRotationByAge(t *testing.T) {
	h := newHarness(t)
	account := h.putAzure(true, locked4d, withAzureConfig(locked4d, rotationEvery(30)))
	wait, err := h.passBucket("b")
	if err != nil || wait != testVerifyInterval {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(slices.Clone(azureVerified), "store b Keys", "get backupbuckets b", "store b RegenerateKey key2", "patch secrets garden/generated-bucket-b annotations,labels,data")...)
	h.wantEvents("KeyRotated")
	h.wantGenerated("garden", "derived", account.keys[1].Value)
	if account.keys[0].Value != memKey1 {
		t.Error("the key that entries still use was regenerated")
	}
	created := account.keys[1].Created
	if got := h.secret("garden", testGenerated).Annotations[annotationKeyCreated]; got != created.UTC().Format(time.RFC3339) {
		t.Errorf("the annotation says %s, want %s", got, created)
	}
	h.wantMetric(1, "bucketwarden_backupbucket_key_rotations_total", "b")
	h.wantMetric(float64(created.Unix()), "bucketwarden_backupbucket_key_created_timestamp_seconds", "b")
	h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)

	// It is young now.
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantTrace(azureVerified...)

	// The next time it is the other key's turn.
	for i := range account.keys {
		account.keys[i].Created = account.keys[i].Created.Add(-31 * 24 * time.Hour)
	}
	h.editSecret("garden", testGenerated, func(s *corev1.Secret) {
		s.Annotations[annotationKeyCreated] = account.keys[1].Created.UTC().Format(time.RFC3339)
	})
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	if got := h.publishedKey(); got != "key1" || h.cloud.generation != 2 {
		t.Errorf("%s is published after %d rotations", got, h.cloud.generation)
	}
}

func TestAzureRotationIsNotDue(t *testing.T) {
	day := 24 * time.Hour
	for name, test := range map[string]struct {
		config map[string]any
		age    time.Duration
		calls  []string
	}{
		"just not due":     {rotationEvery(30), 30*day - time.Hour, []string{"store b Observe"}},
		"without rotation": {nil, 900 * day, []string{"store b Observe"}},
		"due":              {rotationEvery(30), 30*day + time.Second, []string{"store b Observe", "store b Keys", "store b RegenerateKey key2"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			account := h.putAzure(true, locked4d, withAzureConfig(locked4d, test.config))
			created := time.Now().Add(-test.age)
			account.keys[0].Created, account.keys[1].Created = created, created
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Annotations[annotationKeyCreated] = created.UTC().Format(time.RFC3339) })
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			if got := h.storeCalls(); !slices.Equal(got, test.calls) {
				t.Errorf("calls %q, want %q", got, test.calls)
			}
		})
	}
}

// A broken spec says nothing about rotation.
func TestAzureNoRotationWithABrokenRotationConfig(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d, withAzureConfig(locked4d, rotationEvery(1)), withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err == nil {
		t.Error("no error")
	}
	h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeConfigurationProblem)
	if h.cloud.generation != 0 {
		t.Error("a key was regenerated")
	}
}

// The store need not know how old a key is.
func TestAzureKeyOfUnknownAge(t *testing.T) {
	h := newHarness(t)
	account := h.putAzure(true, locked4d, withOperation(operationReconcile))
	account.keys[0].Created, account.keys[1].Created = time.Time{}, time.Time{}
	h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Annotations = nil })
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantGenerated("garden", "derived", memKey1)
	if got := h.secret("garden", testGenerated).Annotations; len(got) > 0 {
		t.Errorf("annotations %v", got)
	}
	if series := metricsTestOf(t, h.metrics, "bucket", "b"); slices.ContainsFunc(slices.Collect(maps.Keys(series)), func(name string) bool { return strings.Contains(name, "key_created") }) {
		t.Errorf("the metric has a value: %v", series)
	}
	// With a rotation it is replaced, and then it is known.
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
		withAzureConfig(locked4d, rotationEvery(30))(u)
		withOperation(operationReconcile)(u)
	})
	for range 3 {
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
	}
	if h.cloud.generation != 1 || h.publishedKey() != "key2" {
		t.Errorf("%d rotations, %s is published", h.cloud.generation, h.publishedKey())
	}
}

// Azure Stack Hub tells no creation times (its API is older than they are): the keys must
// not be rotated at every look, which would end the access of all entries.
func TestAzureKeysThatStayOfUnknownAge(t *testing.T) {
	h := newHarness(t)
	account := h.putAzure(true, locked4d, withAzureConfig(locked4d, rotationEvery(30)))
	account.keys[0].Created, account.keys[1].Created, h.cloud.undated = time.Time{}, time.Time{}, true
	for range 5 {
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
	}
	if h.cloud.generation > 1 {
		t.Errorf("%d rotations in 5 verifications", h.cloud.generation)
	}
}

func TestAzureRotationByAnnotation(t *testing.T) {
	for name, config := range map[string]map[string]any{"without rotationConfig": nil, "with rotationConfig": rotationEvery(30000)} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			account := h.putAzure(true, locked4d, withAzureConfig(locked4d, config), withOperation(operationReconcile))
			if _, err := h.passBucket("b"); err != nil {
				t.Fatal(err)
			}
			h.edit(bucketsGVR, "b", withAnnotation(annotationRotate, "true"))
			wait, err := h.passBucket("b")
			if err != nil || wait != testVerifyInterval {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantTrace(append(slices.Clone(azureVerified),
				"store b Harden", "store b Keys",
				"status backupbuckets b Reconcile Processing",
				"get backupbuckets b",
				"store b RegenerateKey key2",
				"patch backupbuckets b annotations",
				"patch secrets garden/generated-bucket-b annotations,labels,data",
				"status backupbuckets b Reconcile Succeeded")...)
			h.wantEvents("KeyRotated")
			h.wantGenerated("garden", "derived", account.keys[1].Value)
			if h.rotationIsRequested() {
				t.Error("the annotation is still there")
			}
			h.wantMetric(1, "bucketwarden_backupbucket_key_rotations_total", "b")
			for _, event := range h.recorder.events {
				if !strings.Contains(event.note, "key2") || event.eventType != corev1.EventTypeNormal {
					t.Errorf("event %+v", event)
				}
			}
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantTrace(azureVerified...)

			h.edit(bucketsGVR, "b", withAnnotation(annotationRotate, "true"))
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			if h.cloud.generation != 2 || h.publishedKey() != "key1" || h.rotationIsRequested() {
				t.Errorf("%d rotations, %s is published", h.cloud.generation, h.publishedKey())
			}
		})
	}
}

// Whatever a request leads to, it does not stay.
func TestAzureRotationRequestIsAlwaysTakenBack(t *testing.T) {
	for name, test := range map[string]struct {
		edits     []editObject
		prepare   func(h *harness)
		rotations int
		fails     bool
	}{
		"before the first reconcile": {prepare: func(h *harness) { h.deleteSecret("garden", testGenerated) }},
		"one key alone":              {prepare: func(h *harness) { a := h.cloud.accounts["b"]; a.keys = a.keys[:1] }},
		"another key published": {prepare: func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Data[dataKeyStorageKey] = []byte(secretMarker) })
		}},
		"a refused wish":      {edits: []editObject{withAzureConfig(locked1d, nil)}, rotations: 1, fails: true},
		"a broken spec":       {edits: []editObject{withAzureConfig(locked4d, map[string]any{"bogus": "x"})}, rotations: 1, fails: true},
		"after a failed pass": {edits: []editObject{withLast(operationTypeReconcile, stateError, "no")}, rotations: 1},
		"with a reconcile":    {edits: []editObject{withOperation(operationReconcile)}, rotations: 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, locked4d, append([]editObject{withAnnotation(annotationRotate, "true")}, test.edits...)...)
			if test.prepare != nil {
				test.prepare(h)
			}
			if _, err := h.passBucket("b"); (err != nil) != test.fails {
				t.Error(err)
			}
			if h.rotationIsRequested() || h.cloud.generation != test.rotations || h.publishedKey() == "" {
				t.Errorf("requested: %t, %d rotations, %q is published", h.rotationIsRequested(), h.cloud.generation, h.publishedKey())
			}
		})
	}
}

func TestAzureRotationIsNotRequested(t *testing.T) {
	for name, test := range map[string]struct {
		edits []editObject
		value string
	}{
		"by another value":   {value: "false"},
		"by an odd value":    {value: "True"},
		"of an S3 bucket":    {edits: []editObject{set("aws", "spec", "type"), withPolicy(locked4d)}, value: "true"},
		"in wait-for-state":  {edits: []editObject{withOperation(operationWaitForState)}, value: "true"},
		"of another type":    {edits: []editObject{set("gcp", "spec", "type")}, value: "true"},
		"of another's class": {edits: []editObject{set("garden", "spec", "class")}, value: "true"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, locked4d, append([]editObject{withAnnotation(annotationRotate, test.value)}, test.edits...)...)
			if name == "of an S3 bucket" {
				h.editSecret("garden", "bucket-b", func(s *corev1.Secret) { s.Data = staticCredentials() })
			}
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			if changes := h.storeChanges(); len(changes) > 0 || !h.rotationIsRequested() {
				t.Errorf("changes %q, the annotation is there: %t", changes, h.rotationIsRequested())
			}
		})
	}
}

// The client may ask again while the rotation is under way.
func TestAzureRotationConflict(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d, withAnnotation(annotationRotate, "true"))
	h.on("patch", "backupbuckets", 1, func() error {
		h.edit(bucketsGVR, "b", withAnnotation("x", "y"))
		return nil
	})
	if err := h.passOrKill(); !apierrors.IsConflict(err) {
		t.Errorf("error %v", err)
	}
	if h.publishedKey() != "key1" || !h.rotationIsRequested() {
		t.Errorf("%s is published, requested: %t", h.publishedKey(), h.rotationIsRequested())
	}
	if err := h.passOrKill(); err != nil {
		t.Error(err)
	}
	if h.publishedKey() != "key2" || h.rotationIsRequested() || h.cloud.generation != 1 {
		t.Errorf("%s is published, requested: %t, %d rotations", h.publishedKey(), h.rotationIsRequested(), h.cloud.generation)
	}
}

// A key that could not be regenerated is not the end of the one that is published.
func TestAzureRotationFails(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d, withAnnotation(annotationRotate, "true"))
	h.cloud.fail["RegenerateKey"] = denied
	for range 2 {
		if wait, err := h.passBucket("b"); !errors.Is(err, denied) || wait != 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeUnauthorized)
		if h.publishedKey() != "key1" || !h.rotationIsRequested() {
			t.Errorf("%s is published, requested: %t", h.publishedKey(), h.rotationIsRequested())
		}
	}
	h.wantEvents()
	h.wantMetric(0, "bucketwarden_backupbucket_key_rotations_total", "b")
	delete(h.cloud.fail, "RegenerateKey")
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	if h.publishedKey() != "key2" || h.rotationIsRequested() {
		t.Errorf("%s is published, requested: %t", h.publishedKey(), h.rotationIsRequested())
	}
}

// Whatever fails and whenever the daemon is killed: one request or one period is one
// rotation, and it ends with the youngest key published.
func TestAzureRotationSurvivesEverything(t *testing.T) {
	// A fault of an API request, at the point of a pass that it is made.
	type fault struct {
		// late: the request was carried out, but its answer was lost.
		late, kill bool
	}
	run := func(t *testing.T, byAge bool, next func(request int) *fault, regenerate func(h *harness), passes int) {
		h := newHarness(t)
		config := map[string]any{}
		if byAge {
			config = rotationEvery(30)
		}
		h.putAzure(true, locked4d, withAzureConfig(locked4d, config))
		if !byAge {
			h.edit(bucketsGVR, "b", withAnnotation(annotationRotate, "true"))
		}
		request := 0
		h.interfere = func(action clienttesting.Action, serve func() (bool, runtime.Object, error)) (bool, runtime.Object, error) {
			request++
			f := next(request)
			if f == nil {
				return serve()
			}
			if f.late {
				if _, _, err := serve(); err != nil {
					return true, nil, err
				}
			}
			if f.kill {
				panic("killed")
			}
			return true, nil, apierrors.NewServiceUnavailable("etcd is slow")
		}
		for range passes {
			delete(h.cloud.fail, "RegenerateKey")
			regenerate(h)
			_ = h.passOrKill()
			if h.cloud.generation > 1 {
				t.Fatalf("%d rotations; the pass did %q", h.cloud.generation, h.trace)
			}
		}
		h.interfere, h.cloud.fail = nil, map[string]error{}
		for range 2 {
			if err := h.passOrKill(); err != nil {
				t.Error(err)
			}
		}
		if h.cloud.generation != 1 || h.publishedKey() != "key2" || h.rotationIsRequested() {
			t.Errorf("%d rotations, %s is published, requested: %t", h.cloud.generation, h.publishedKey(), h.rotationIsRequested())
		}
		h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
		h.wantGenerated("garden", "derived", h.cloud.accounts["b"].keys[1].Value)
	}
	none := func(*harness) {}
	late := func(h *harness) {
		if h.cloud.generation == 0 {
			h.cloud.fail["RegenerateKey"], h.cloud.failLate = unavailable, true
		}
	}
	early := func(h *harness) { h.cloud.fail["RegenerateKey"], h.cloud.failLate = unavailable, false }
	for _, byAge := range []bool{false, true} {
		t.Run(fmt.Sprintf("by age %t", byAge), func(t *testing.T) {
			t.Run("regenerated, but the answer is lost", func(t *testing.T) {
				run(t, byAge, func(int) *fault { return nil }, late, 1)
			})
			// One fault at each request, which is more than a pass makes.
			for _, f := range []fault{{}, {late: true}, {kill: true}, {late: true, kill: true}} {
				for at := 1; at <= 12; at++ {
					t.Run(fmt.Sprintf("%+v at request %d", f, at), func(t *testing.T) {
						run(t, byAge, func(request int) *fault {
							if request == at {
								return &f
							}
							return nil
						}, none, 2)
					})
				}
			}
			for seed := range uint64(300) {
				t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
					random := rand.New(rand.NewPCG(seed, 1))
					run(t, byAge, func(int) *fault {
						if random.IntN(4) > 0 {
							return nil
						}
						return &fault{late: random.IntN(2) == 0, kill: random.IntN(2) == 0}
					}, func(h *harness) { []func(*harness){none, none, early, late}[random.IntN(4)](h) }, 6)
				})
			}
		})
	}
}

func TestAzureExtensions(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked1d)
	policy := locked1d
	for left := 4; left >= 0; left-- {
		policy.Days++
		h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
			withAzureConfig(policy, nil)(u)
			withOperation(operationReconcile)(u)
		})
		if _, err := h.passBucket("b"); err != nil {
			t.Fatal(err)
		}
		if got := h.storeChanges(); got[0] != "store b LockPolicy "+policy.String() {
			t.Errorf("changes %q", got)
		}
		h.wantMetric(float64(left), "bucketwarden_backupbucket_policy_extensions_remaining", "b")
		if left > 0 {
			h.wantEvents("PolicyLocked")
			continue
		}
		h.wantEvents("PolicyLocked", "LastExtension")
		if e := h.recorder.events[1]; e.eventType != corev1.EventTypeWarning || !strings.Contains(e.note, policy.Hours()) {
			t.Errorf("event %+v", e)
		}
	}
	h.wantMetric(5, "bucketwarden_backupbucket_policy_locks_total", "b")

	// A sixth is refused; the rest is done. The store fails the test if it is asked.
	h.deleteSecret("garden", testGenerated)
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
		withAzureConfig(locked10d, nil)(u)
		withOperation(operationReconcile)(u)
	})
	refusal := new(Refusal)
	wait, err := h.passBucket("b")
	if !errors.As(err, &refusal) || refusal.Reason != reasonExtend || wait != testVerifyInterval {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if got := h.storeChanges(); !slices.Equal(got, []string{"store b Harden", "store b Keys"}) {
		t.Errorf("changes %q", got)
	}
	h.wantEvents("WeakeningRefused")
	h.wantGenerated("garden", "derived", memKey1)
	s := h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeConfigurationProblem)
	for _, part := range []string{policy.String(), locked10d.String(), "five times", "write retentionPeriod: " + policy.Hours()} {
		if !strings.Contains(s.Error, part) {
			t.Errorf("the message %q does not say %q", s.Error, part)
		}
	}
	if got := h.record(); got != policy {
		t.Errorf("recorded %v", got)
	}
	h.wantMetric(0, "bucketwarden_backupbucket_policy_extensions_remaining", "b")

	// It is told and counted once, and looked at no more often than anything else.
	for range 3 {
		if wait, err := h.passBucket("b"); err == nil || wait != testVerifyInterval {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantEvents()
		if n := h.requests(); n != 2 {
			t.Errorf("the pass did %q", h.trace)
		}
	}
	h.wantMetric(1, "bucketwarden_policy_refusals_total", "b", reasonExtend)
	h.wantMetric(0, "bucketwarden_policy_refusals_total", "b", reasonShorten)

	// What the message says is the way out.
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
		withAzureConfig(policy, nil)(u)
		withOperation(operationReconcile)(u)
	})
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
	h.wantEvents()
}

// What the last reconcile has left cannot be restored: it is told once, not again and again.
func TestAzureVerifyFindsNoExtensionLeft(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked10d)
	h.cloud.putContainer("b", locked4d, 0)
	for i := range 4 {
		wait, err := h.passBucket("b")
		if refusal := new(Refusal); !errors.As(err, &refusal) || refusal.Reason != reasonExtend {
			t.Errorf("wait %s, error %v", wait, err)
		}
		if i > 0 && wait != testVerifyInterval {
			t.Errorf("wait %s", wait)
		}
	}
	h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeConfigurationProblem)
	h.wantMetric(1, "bucketwarden_policy_refusals_total", "b", reasonExtend)
	if got := h.record(); got != locked10d {
		t.Errorf("recorded %v", got)
	}
}

// Extensions count for nothing but the extension of a lock.
func TestAzureWithoutExtensionsLeft(t *testing.T) {
	for _, test := range []struct {
		name                    string
		desired, live, recorded Policy
		changes                 []string
		refusal                 string
	}{
		{name: "as desired", desired: locked4d, live: locked4d, recorded: locked4d},
		{name: "to be locked", desired: locked4d, live: unlocked4d, recorded: unlocked4d, changes: []string{"store b LockPolicy locked retention of 96h"}},
		{name: "to be set and locked", desired: locked4d, live: unlocked1d, recorded: unlocked1d,
			changes: []string{"store b SetPolicy unlocked retention of 96h", "store b LockPolicy locked retention of 96h"}},
		{name: "shortened", desired: locked1d, live: locked4d, recorded: locked4d, refusal: reasonShorten},
		{name: "disabled", desired: Policy{}, live: locked4d, recorded: locked4d, refusal: reasonDisable},
		{name: "unlocked and extended", desired: Policy{Days: 9}, live: locked4d, recorded: locked4d, refusal: reasonUnlock},
		{name: "extended", desired: locked10d, live: locked4d, recorded: locked4d, refusal: reasonExtend},
		{name: "a lock of others is extended", desired: locked10d, live: locked4d, refusal: reasonExtend},
		{name: "a lock of others is left", desired: Policy{}, live: locked4d},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, test.live, withAzureConfig(test.desired, nil), withOperation(operationReconcile))
			h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
				unstructured.RemoveNestedField(u.Object, "status", "providerStatus")
				withRecord(test.recorded)(u)
			})
			h.cloud.putContainer("b", test.live, 0)
			_, err := h.passBucket("b")
			reason := ""
			if refusal := new(Refusal); errors.As(err, &refusal) {
				reason = refusal.Reason
			} else if err != nil {
				t.Error(err)
			}
			if want := append(slices.Clone(test.changes), "store b Harden", "store b Keys"); reason != test.refusal || !slices.Equal(h.storeChanges(), want) {
				t.Errorf("refused %q, changes %q; want %q, %q", reason, h.storeChanges(), test.refusal, want)
			}
			if test.refusal != "" && h.record() != test.live {
				t.Errorf("recorded %v", h.record())
			}
			if slices.ContainsFunc(h.recorder.events, func(e harnessEvent) bool { return e.reason == "LastExtension" }) {
				t.Error("the last extension is told without one")
			}
		})
	}
}

// To lock is not to extend.
func TestAzureLockIsNoLastExtension(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, unlocked4d, withAzureConfig(locked4d, nil), withOperation(operationReconcile))
	h.cloud.putContainer("b", unlocked4d, 1)
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantEvents("PolicyLocked")
	h.wantMetric(1, "bucketwarden_backupbucket_policy_extensions_remaining", "b")
}

func TestExtensionsMetricIsNotOfS3(t *testing.T) {
	h := newHarness(t)
	h.putBucket(false, withPolicy(locked4d))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	for name := range metricsTestOf(t, h.metrics, "bucket", "b") {
		if strings.Contains(name, "extensions") || strings.Contains(name, "key_") {
			t.Errorf("there is %s", name)
		}
	}
}

// putDeletingAzure stores BackupBucket b being deleted, with all that belongs to it.
func (h *harness) putDeletingAzure(edits ...editObject) *memAccount {
	h.t.Helper()
	return h.putAzure(true, Policy{}, append([]editObject{withFinalizers("other"), deleting}, edits...)...)
}

// groupGone ends the deletion of the resource group, and the time until the next look.
func (h *harness) groupGone() {
	if a := h.cloud.accounts["b"]; a != nil && a.group == groupDeleting {
		delete(h.cloud.accounts, "b")
	}
	clear(h.buckets.resource.controller.due)
}

func (h *harness) wantReleased() {
	h.t.Helper()
	if got := h.get(bucketsGVR, "b").GetFinalizers(); !slices.Equal(got, []string{"other"}) {
		h.t.Errorf("finalizers %v", got)
	}
	if got := h.secret("garden", "bucket-b").Finalizers; len(got) > 0 {
		h.t.Errorf("the secret has finalizers %v", got)
	}
}

var (
	azureDeleteLooks = []string{"get backupbuckets b", "list backupentries", "get secrets garden/bucket-b", "get secrets garden/generated-bucket-b", "store b Observe"}
	azureReleased    = []string{"get secrets garden/generated-bucket-b", "delete secrets garden/generated-bucket-b", "status backupbuckets b Delete Succeeded",
		"get secrets garden/bucket-b", "patch secrets garden/bucket-b finalizers", "get backupbuckets b", "patch backupbuckets b finalizers"}
)

func TestAzureDelete(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure()
	if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(slices.Insert(slices.Clone(azureDeleteLooks), 2, "status backupbuckets b Delete Processing"),
		"store b Delete", "store b DeleteAccount", "status backupbuckets b Delete Processing +conditions")...)
	h.wantEvents("BucketDeleted", "ResourceGroupDeleted")
	s := h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing)
	if s.Description != "The bucket is deleted, its resource group is being deleted" || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	h.wantMetric(1, "bucketwarden_deleted_buckets_total")
	h.wantMetric(1, "bucketwarden_deleted_accounts_total")
	if h.secret("garden", testGenerated) == nil || !slices.Contains(h.get(bucketsGVR, "b").GetFinalizers(), finalizerBackupBucket) {
		t.Error("the generated secret or the finalizer is gone")
	}

	// Not due, though gardenlet patches the object every few seconds.
	h.edit(bucketsGVR, "b", withAnnotation("x", "y"))
	if wait, err := h.passBucket("b"); err != nil || wait <= 0 || wait > accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantNothing()

	// Due, and still under way: there is nothing new to tell.
	clear(h.buckets.resource.controller.due)
	if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(slices.Clone(azureDeleteLooks), "store b DeleteAccount")...)
	h.wantEvents()

	h.groupGone()
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(slices.Clone(azureDeleteLooks), azureReleased...)...)
	h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
	h.wantReleased()
	h.wantMetric(1, "bucketwarden_deleted_accounts_total")
	if h.secret("garden", testGenerated) != nil {
		t.Error("the generated secret is still there")
	}
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantNothing()
}

// A deletion that comes while a reconcile is under way is announced as one.
func TestAzureDeleteAfterACutOffReconcile(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure(withLast(operationTypeReconcile, stateProcessing, "Reconciling the bucket"))
	h.cloud.fail["Observe"] = context.Canceled
	if _, err := h.passBucket("b"); err == nil {
		t.Error("no error")
	}
	h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing)
}

func TestAzureDeletePurgesFirst(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure()
	bucket := h.cloud.buckets["b"]
	bucket.objects["x/1"] = memObject{size: 1}
	bucket.objects["x/2"] = memObject{size: 1, until: time.Now().Add(time.Hour)}
	if wait, err := h.passBucket("b"); err != nil || wait <= 0 || wait > time.Hour+time.Second {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if got, want := h.storeChanges(), []string{"store b Delete", `store b Purge ""`}; !slices.Equal(got, want) {
		t.Errorf("changes %q, want %q", got, want)
	}
	clear(bucket.objects)
	clear(h.buckets.resource.controller.due)
	if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if got, want := h.storeChanges(), []string{"store b Delete", "store b DeleteAccount"}; !slices.Equal(got, want) {
		t.Errorf("changes %q, want %q", got, want)
	}
}

// Whatever is gone already, and whatever is not there any more when it is to go.
func TestAzureDeleteOfWhatIsGone(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		changes []string
	}{
		"everything": {prepare: func(h *harness) {
			clear(h.cloud.buckets)
			clear(h.cloud.accounts)
			h.deleteSecret("garden", testGenerated)
		}},
		"the container": {prepare: func(h *harness) { clear(h.cloud.buckets) }, changes: []string{"store b DeleteAccount"}},
		"container and account": {prepare: func(h *harness) {
			clear(h.cloud.buckets)
			clear(h.cloud.accounts)
		}},
		"the generated secret": {prepare: func(h *harness) { h.deleteSecret("garden", testGenerated) }, changes: []string{"store b Delete", "store b DeleteAccount"}},
		"the generated secret meanwhile": {prepare: func(h *harness) {
			h.on("delete", "secrets", 1, func() error { h.deleteSecret("garden", testGenerated); return nil })
		}, changes: []string{"store b Delete", "store b DeleteAccount"}},
		"the reference in the status": {prepare: func(h *harness) {
			h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
				unstructured.RemoveNestedField(u.Object, "status", "generatedSecretRef")
			})
		}, changes: []string{"store b Delete", "store b DeleteAccount"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingAzure()
			test.prepare(h)
			var changes []string
			for range 2 {
				if _, err := h.passBucket("b"); err != nil {
					t.Error(err)
				}
				changes = append(changes, h.storeChanges()...)
				h.groupGone()
			}
			if !slices.Equal(changes, test.changes) {
				t.Errorf("changes %q, want %q", changes, test.changes)
			}
			h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
			h.wantReleased()
			if h.secret("garden", testGenerated) != nil || len(h.cloud.buckets)+len(h.cloud.accounts) > 0 {
				t.Error("something is left")
			}
		})
	}
}

// Only the resource group is left, of a creation that was cut off for instance.
func TestAzureDeleteRemains(t *testing.T) {
	for name, edits := range map[string][]editObject{"of a bucket": nil, "of one that never got ready": {withLast(operationTypeCreate, stateError, "no")}} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingAzure(edits...)
			clear(h.cloud.buckets)
			if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if got := h.storeChanges(); !slices.Equal(got, []string{"store b DeleteAccount"}) {
				t.Errorf("changes %q", got)
			}
			h.wantEvents("ResourceGroupDeleted")
			h.groupGone()
			if wait, err := h.passBucket("b"); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
			h.wantReleased()
			h.wantMetric(0, "bucketwarden_deleted_buckets_total")
		})
	}
}

func TestAzureDeleteKeepsTheGroup(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure().group = groupKept
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantEvents("BucketDeleted", "ResourceGroupKept")
	if e := h.recorder.events[1]; e.eventType != corev1.EventTypeWarning || !strings.Contains(e.note, "holds something else") {
		t.Errorf("event %+v", e)
	}
	h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
	h.wantReleased()
	h.wantMetric(0, "bucketwarden_deleted_accounts_total")
	if h.cloud.accounts["b"] == nil || h.secret("garden", testGenerated) != nil {
		t.Error("the account is gone, or the generated secret is not")
	}
}

func TestAzureDeleteWaitsForWhatTheStoreKeeps(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure()
	h.cloud.fail["Delete"] = fmt.Errorf("deleting container b: %w", &waitError{reason: "container b is under a legal hold", after: time.Hour})
	if wait, err := h.passBucket("b"); err != nil || wait != time.Hour {
		t.Errorf("wait %s, error %v", wait, err)
	}
	s := h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing)
	if s.Description != "The deletion waits: container b is under a legal hold" || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	if h.cloud.accounts["b"].group != groupExists || h.secret("garden", testGenerated) == nil {
		t.Error("the account or the generated secret goes")
	}
	if wait, err := h.passBucket("b"); err != nil || wait <= 0 || wait > time.Hour {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantNothing()
	clear(h.buckets.resource.controller.due)
	if wait, err := h.passBucket("b"); err != nil || wait != time.Hour {
		t.Errorf("wait %s, error %v", wait, err)
	}
	h.wantTrace(append(slices.Clone(azureDeleteLooks), "store b Delete")...)

	delete(h.cloud.fail, "Delete")
	clear(h.buckets.resource.controller.due)
	if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
		t.Errorf("wait %s, error %v", wait, err)
	}
}

func TestAzureDeleteErrors(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		codes   []errorCode
	}{
		"the account":   {func(h *harness) { h.cloud.fail["DeleteAccount"] = denied }, []errorCode{codeUnauthorized}},
		"the container": {func(h *harness) { h.cloud.fail["Delete"] = denied }, []errorCode{codeUnauthorized}},
		"the generated secret cannot be read": {func(h *harness) {
			h.hooks = append(h.hooks, &harnessHook{verb: "get", resource: "secrets", times: 99, run: func() error {
				if strings.HasSuffix(h.trace[len(h.trace)-1], testGenerated) {
					return apierrors.NewServiceUnavailable("etcd is slow")
				}
				return nil
			}})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingAzure()
			test.prepare(h)
			for range 2 {
				if wait, err := h.passBucket("b"); err == nil || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
				h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateError, test.codes...)
				if h.cloud.accounts["b"] == nil || h.secret("garden", testGenerated) == nil || len(h.get(bucketsGVR, "b").GetFinalizers()) != 2 {
					t.Error("more is gone than there should be")
				}
			}
			h.hooks, h.cloud.fail = nil, map[string]error{}
			for range 2 {
				if _, err := h.passBucket("b"); err != nil {
					t.Error(err)
				}
				h.groupGone()
			}
			h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
			h.wantReleased()
		})
	}
}

// Killed or failed at any request, before or after it took effect, a deletion is taken up
// where it was.
func TestAzureDeleteSurvivesEverything(t *testing.T) {
	for _, never := range []bool{false, true} {
		for _, late := range []bool{false, true} {
			for _, kill := range []bool{false, true} {
				done := false
				for at := 1; !done; at++ {
					t.Run(fmt.Sprintf("never ready %t, late %t, killed %t, request %d", never, late, kill, at), func(t *testing.T) {
						h := newHarness(t)
						var edits []editObject
						if never {
							edits = append(edits, withLast(operationTypeCreate, stateError, "no"))
						}
						h.putDeletingAzure(edits...)
						request := 0
						h.interfere = func(_ clienttesting.Action, serve func() (bool, runtime.Object, error)) (bool, runtime.Object, error) {
							request++
							if request != at {
								return serve()
							}
							if late {
								if _, _, err := serve(); err != nil {
									return true, nil, err
								}
							}
							if kill {
								panic("killed")
							}
							return true, nil, apierrors.NewServiceUnavailable("etcd is slow")
						}
						for range 6 {
							_ = h.passOrKill()
							h.groupGone()
						}
						done = request < at
						h.interfere = nil
						if h.secret("garden", testGenerated) != nil || len(h.cloud.buckets)+len(h.cloud.accounts) > 0 {
							t.Error("something is left")
						}
						h.wantReleased()
						if err := h.passOrKill(); err != nil {
							t.Error(err)
						}
						h.wantNothing()
					})
				}
			}
		}
	}
}

// A BackupBucket that never got ready has nothing of ours but what is empty.
func TestAzureDeleteNeverReady(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(h *harness)
		kept    bool
	}{
		"empty":  {prepare: func(*harness) {}},
		"in use": {prepare: func(h *harness) { h.cloud.buckets["b"].objects["x/1"] = memObject{size: 1} }, kept: true},
		"withheld": {prepare: func(h *harness) {
			h.cloud.fail["Delete"] = &waitError{reason: "container b is under a legal hold", after: time.Hour}
		}, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putDeletingAzure(withLast(operationTypeCreate, stateError, "no"))
			test.prepare(h)
			wait, err := h.passBucket("b")
			if err != nil || (wait == 0) != test.kept {
				t.Errorf("wait %s, error %v", wait, err)
			}
			if test.kept {
				h.wantEvents("BucketLeft")
				if h.cloud.buckets["b"] == nil || h.cloud.accounts["b"].group != groupExists {
					t.Error("the bucket or its account goes")
				}
			} else {
				h.wantStatus(bucketsGVR, "b", operationTypeCreate, stateProcessing)
				h.wantEvents("BucketDeleted", "ResourceGroupDeleted")
				h.groupGone()
				if wait, err := h.passBucket("b"); err != nil || wait != 0 {
					t.Errorf("wait %s, error %v", wait, err)
				}
			}
			h.wantReleased()
			if s := h.status(bucketsGVR, "b"); s.Type != string(operationTypeCreate) {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// No secret but the generated one goes, whatever the status says.
func TestAzureDeleteOnlyTheGeneratedSecret(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure(withGeneratedRef("garden", "precious"))
	h.putSecret("garden", "precious", azureCredentials())
	for range 2 {
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.groupGone()
	}
	h.wantReleased()
	if h.secret("garden", "precious") == nil || h.secret("garden", testGenerated) != nil {
		t.Error("the wrong secret was deleted")
	}

	// A new one of the same name is not the one that was read.
	h = newHarness(t)
	h.putDeletingAzure()
	clear(h.cloud.buckets)
	clear(h.cloud.accounts)
	h.on("delete", "secrets", 1, func() error {
		h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.UID = "new" })
		return nil
	})
	if _, err := h.passBucket("b"); !apierrors.IsConflict(err) || h.secret("garden", testGenerated) == nil {
		t.Errorf("error %v", err)
	}
}

// A generated secret that was moved is found by the status, not by today's annotation.
func TestAzureDeleteTheGeneratedSecretOfTheStatus(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure(withAnnotation(annotationGeneratedSecretNamespace, "other"))
	for range 2 {
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.groupGone()
	}
	h.wantReleased()
	if h.secret("garden", testGenerated) != nil {
		t.Error("the generated secret is still there")
	}
}

// A move of the generated secret was cut off, so there are two.
func TestAzureDeleteAfterACutOffMove(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure(withAnnotation(annotationGeneratedSecretNamespace, "other"))
	h.putGenerated("other", generatedData("derived", memKey1))
	for range 2 {
		if _, err := h.passBucket("b"); err != nil {
			t.Error(err)
		}
		h.groupGone()
	}
	h.wantReleased()
	for _, namespace := range []string{"garden", "other"} {
		if h.secret(namespace, testGenerated) != nil {
			t.Errorf("the generated secret in namespace %s is still there", namespace)
		}
	}
}

func TestS3DeleteKnowsNoAccount(t *testing.T) {
	h := newHarness(t)
	h.putDeletingBucket(withGeneratedRef("garden", testGenerated))
	h.putSecret("garden", testGenerated, staticCredentials())
	if wait, err := h.passBucket("b"); err != nil || wait != 0 {
		t.Errorf("wait %s, error %v", wait, err)
	}
	if h.secret("garden", testGenerated) == nil {
		t.Error("a secret that is not ours was deleted")
	}
	h.wantReleased()
}

// An S3 bucket and an Azure bucket with a rotation request, as the informers show them.
func TestAdmitRotation(t *testing.T) {
	a := &scope{stores: map[string]storeKind{"azure": storeAzure, "my": storeAzure, "s3": storeS3}, classes: []string{defaultClass}}
	decoded := func(kind, providerType, value string, hash uint64) *object {
		u := testObject(kind, "b", "bucket-b", set(providerType, "spec", "type"), withLast(operationTypeReconcile, stateSucceeded, "done"))
		if value != "" {
			withAnnotation(annotationRotate, value)(u)
		}
		o := &decodeBucket(u).object
		if kind == kindBackupEntry {
			o = &decodeEntry(u).object
		}
		o.statusHash = hash
		return o
	}
	for _, test := range []struct {
		name, kind, providerType, value string
		want                            bool
	}{
		{"asked for", kindBackupBucket, "azure", "true", true},
		{"of a type of its own", kindBackupBucket, "my", "true", true},
		{"not asked for", kindBackupBucket, "azure", "", false},
		{"another value", kindBackupBucket, "azure", "yes", false},
		{"an S3 bucket", kindBackupBucket, "s3", "true", false},
		{"an unknown type", kindBackupBucket, "gcp", "true", false},
		{"an entry", kindBackupEntry, "azure", "true", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := decoded(test.kind, test.providerType, test.value, 1)
			if got := a.rotationRequested(o); got != test.want {
				t.Errorf("requested: %t", got)
			}
			if got := a.onAdd(o); got != test.want {
				t.Errorf("an ADD is admitted: %t", got)
			}
			before := decoded(test.kind, test.providerType, "", 1)
			for _, ignore := range []bool{false, true} {
				a := *a
				a.ignoreOperationAnnotation = ignore
				if got := a.onUpdate(before, o); got != test.want {
					t.Errorf("the annotation is admitted: %t, ignoring operations: %t", got, ignore)
				}
				// With a status write, as after a relist.
				if got := a.onUpdate(decoded(test.kind, test.providerType, "", 9), o); got != test.want {
					t.Errorf("the annotation with a status write is admitted: %t, ignoring operations: %t", got, ignore)
				}
				for what, update := range map[string][2]*object{
					"our own status":     {o, decoded(test.kind, test.providerType, test.value, 2)},
					"nothing new":        {o, o},
					"it is taken back":   {o, before},
					"an unrelated write": {before, decoded(test.kind, test.providerType, "", 2)},
				} {
					if a.onUpdate(update[0], update[1]) {
						t.Errorf("%s is admitted, ignoring operations: %t", what, ignore)
					}
				}
			}
		})
	}
}

// A failing pass with the request still there is retried with backoff alone.
func TestAzureRotationRequestIsNoHotLoop(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d, withAnnotation(annotationRotate, "true"))
	h.cloud.fail["Keys"] = denied
	for range 3 {
		before := decodeBucket(h.get(bucketsGVR, "b"))
		if _, err := h.passBucket("b"); err == nil {
			t.Error("no error")
		}
		if after := decodeBucket(h.get(bucketsGVR, "b")); h.scope.onUpdate(&before.object, &after.object) {
			t.Error("our own write is an event")
		}
	}
}

// The metadata of the object that is being deleted, its generated secret included, comes
// from the API server.
func TestAzureDeleteReadsLive(t *testing.T) {
	h := newHarness(t)
	h.putDeletingAzure()
	h.sync()
	h.frozen = true
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) { u.SetUID("new"); u.SetCreationTimestamp(metav1.Now()) })
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantTrace("get backupbuckets b")
}

// A spec that lost its providerConfig names no cloud any more; the credentials of a custom
// cloud must not go to the public one, and its lock is still defended.
func TestAzureCloudIsRecorded(t *testing.T) {
	inCloud := func(name string) map[string]any {
		return map[string]any{"cloudConfiguration": map[string]any{"name": name}}
	}
	recorded := func(h *harness) string {
		status := recordedStatus(decodeBucket(h.get(bucketsGVR, "b")).ProviderStatus)
		return status.cloud()
	}
	edit := func(h *harness, change editObject) {
		h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
			change(u)
			withOperation(operationReconcile)(u)
		})
	}
	h := newHarness(t)
	h.putAzure(true, locked4d, withAzureConfig(locked4d, inCloud("MyCloud")))
	if _, err := h.passBucket("b"); err != nil || recorded(h) != "MyCloud" || h.record() != locked4d {
		t.Fatalf("recorded is %q, %s: %v", recorded(h), h.record(), err)
	}
	edit(h, set(nil, "spec", "providerConfig"))
	if _, err := h.passBucket("b"); err == nil {
		t.Error("no refusal")
	}
	h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeConfigurationProblem)
	h.wantMetric(1, "bucketwarden_policy_refusals_total", "b", reasonDisable)
	if h.cloud.opened.Cloud != "MyCloud" || recorded(h) != "MyCloud" {
		t.Errorf("opened %+v, recorded is %q", h.cloud.opened, recorded(h))
	}
	// The operator may name another one.
	edit(h, withAzureConfig(locked4d, inCloud("Other")))
	if _, err := h.passBucket("b"); err != nil || h.cloud.opened.Cloud != "Other" || recorded(h) != "Other" || h.record() != locked4d {
		t.Errorf("opened %+v, recorded is %q, %s: %v", h.cloud.opened, recorded(h), h.record(), err)
	}
	// A cloud is recorded without a policy, and stays when the policy goes.
	h = newHarness(t)
	unlocked := Policy{Days: 4}
	h.putAzure(true, unlocked, withAzureConfig(unlocked, inCloud("MyCloud")))
	if _, err := h.passBucket("b"); err != nil || recorded(h) != "MyCloud" || h.record() != unlocked {
		t.Errorf("recorded is %q, %s: %v", recorded(h), h.record(), err)
	}
	edit(h, withAzureConfig(Policy{}, inCloud("MyCloud")))
	if _, err := h.passBucket("b"); err != nil || recorded(h) != "MyCloud" || !h.record().None() || !h.cloud.buckets["b"].state.Policy.None() {
		t.Errorf("recorded is %q, %s: %v", recorded(h), h.record(), err)
	}
	h = newHarness(t)
	h.putAzure(true, Policy{}, withAzureConfig(Policy{}, inCloud("MyCloud")))
	if _, err := h.passBucket("b"); err != nil || recorded(h) != "MyCloud" || !h.record().None() {
		t.Errorf("recorded is %q, %s: %v", recorded(h), h.record(), err)
	}
}

// After a restart the first list may come from a watch cache that lags: a request that was
// carried out must not cost the clusters the key that they use.
func TestAzureRotationReadsTheRequestLive(t *testing.T) {
	h := newHarness(t)
	account := h.putAzure(true, locked4d, withAnnotation(annotationRotate, "true"))
	h.sync()
	stale := h.buckets.cached.List()
	if _, err := h.passBucket("b"); err != nil || h.cloud.generation != 1 {
		t.Fatalf("%d rotations: %v", h.cloud.generation, err)
	}
	h.buckets.resource.controller.written = map[cache.ObjectName]string{}
	if err := h.buckets.cached.Replace(stale, ""); err != nil {
		t.Fatal(err)
	}
	h.frozen = true
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	if h.cloud.generation != 1 || account.keys[0].Value != memKey1 || h.publishedKey() != "key2" {
		t.Errorf("%d rotations, %s is published", h.cloud.generation, h.publishedKey())
	}
}

// What may name a custom cloud but cannot be read must not send its credentials to another.
func TestAzureUnreadableCloudIsNotGuessed(t *testing.T) {
	h := newHarness(t)
	h.putAzure(false, locked4d, withAzureConfig(locked4d, map[string]any{"cloudConfiguration": map[string]any{"nam": "MyCloud"}}), withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err == nil {
		t.Error("no error")
	}
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) { deleting(u) })
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	if h.cloud.opened.Name != "" {
		t.Errorf("opened %+v", h.cloud.opened)
	}
	if h.get(bucketsGVR, "b") != nil {
		t.Error("the BackupBucket is still there")
	}
	h.wantEvents("BucketLeft")
	// One that was found before lies where its region says.
	h = newHarness(t)
	h.putAzure(true, locked4d, withAzureConfig(locked4d, map[string]any{"cloudConfiguration": map[string]any{"nam": "MyCloud"}}))
	if _, err := h.passBucket("b"); err == nil || h.cloud.opened.Name != "b" {
		t.Errorf("opened %+v: %v", h.cloud.opened, err)
	}
}

// An account whose name only the generated secret told is found again without it.
func TestAzureLostSecretKeepsTheAccount(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d, set("bkpadopted", "status", "providerStatus", "storageAccount"))
	h.deleteSecret("garden", testGenerated)
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	if h.cloud.opened.Account != "bkpadopted" {
		t.Errorf("opened %+v", h.cloud.opened)
	}
	h.wantGenerated("garden", "bkpadopted", memKey1)
}

// Protected append writes stay off in a policy that is as wished otherwise; in those of
// others they are left.
func TestAzureAppendWritesAreSwitchedOff(t *testing.T) {
	for name, test := range map[string]struct {
		live, wish Policy
		set        int
	}{
		"ours":    {Policy{Days: 4}, Policy{Days: 4}, 1},
		"locked":  {locked4d, locked4d, 0},
		"foreign": {Policy{Days: 4}, Policy{}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, test.wish, withOperation(operationReconcile))
			b := h.cloud.putContainer("b", test.live, 5)
			b.state.Appends = true
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			got := 0
			for _, call := range h.storeCalls() {
				if strings.Contains(call, "SetPolicy") {
					got++
				}
			}
			if got != test.set || b.state.Appends != (test.set == 0) || b.state.Policy != test.live {
				t.Errorf("%d SetPolicy, state %+v", got, b.state)
			}
		})
	}
}
