package main

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
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
	h.buckets.keys.published("b", generatedData("derived", memKey1)) // by an earlier pass
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
				"status backupbuckets b <nil> <nil> +providerStatus",
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
	want := bucketRef{Name: "b", Region: "eu-1", Recorded: locked4d, Created: true, Cloud: "AzureChina", KeyExpirationDays: 30001, Account: "bkpadopted"}
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
			h.edit(bucketsGVR, "b", set("bkpadopted", "status", "providerStatus", "storageAccount"))
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
		if got := h.cloud.opened; got != (bucketRef{Name: "b", Region: "eu-1", Recorded: locked4d, Created: true}) {
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
			h.buckets.keys.forget("b")
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
		{name: "a lock that others extended is left", desired: locked1d, live: locked4d, recorded: locked1d},
		{name: "a lock that others extended is as long as asked for by now", desired: locked4d, live: locked10d, recorded: locked1d},
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
			if test.refusal != "" && h.record() != test.recorded {
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

var (
	azureDeleteLooks = []string{"get backupbuckets b", "list backupentries", "get secrets garden/bucket-b", "get secrets garden/generated-bucket-b", "store b Observe"}
	azureReleased    = []string{"get secrets garden/generated-bucket-b", "get backupbuckets b", "list backupentries", "delete secrets garden/generated-bucket-b", "status backupbuckets b Delete Succeeded",
		"get secrets garden/bucket-b", "patch secrets garden/bucket-b finalizers", "get backupbuckets b", "patch backupbuckets b finalizers"}
)

// A spec that lost its providerConfig names no cloud any more; the credentials of a custom
// cloud must not go to the public one, and its lock is still defended.
func TestAzureCloudIsRecorded(t *testing.T) {
	inCloud := func(name string) map[string]any {
		return map[string]any{"cloudConfiguration": map[string]any{"name": name}}
	}
	recorded := func(h *harness) string {
		return readRecord(decodeBucket(h.get(bucketsGVR, "b")).ProviderStatus).Cloud
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

// A policy that is only a default locks nothing, and is not shown as if it did.
func TestAzureDefaultPolicyIsNoLock(t *testing.T) {
	versionLevel := &storeError{code: codeConfigurationProblem, err: errors.New("storage account x has version-level immutability")}
	for name, operation := range map[string]string{"reconcile": operationReconcile, "verification": ""} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, locked4d, withOperation(operation))
			h.cloud.buckets["b"].state.Policy, h.cloud.buckets["b"].state.Default = Policy{}, locked4d
			h.cloud.fail["SetPolicy"], h.cloud.fail["LockPolicy"] = versionLevel, versionLevel
			if _, err := h.passBucket("b"); !errors.Is(err, versionLevel) {
				t.Error(err)
			}
			h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeConfigurationProblem)
			c := h.conditionOf(conditionImmutable)
			if message, _ := c["message"].(string); c["status"] != "False" || c["reason"] != "DefaultOnly" || !strings.Contains(message, "only as a default") {
				t.Errorf("condition %v", c)
			}
			h.wantMetric(0, "bucketwarden_backupbucket_locked", "b")
		})
	}
}
