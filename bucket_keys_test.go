package main

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
)

func TestPlanKeys(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	key := func(name string, age time.Duration) accessKey {
		return accessKey{Name: name, Value: name + "-value", Created: now.Add(-age)}
	}
	undated := func(name string) accessKey { return accessKey{Name: name, Value: name + "-value"} }
	both := func(first, second accessKey) []accessKey { return []accessKey{first, second} }
	const (
		month     = 30 * testDay
		no, asked = false, true
	)
	never, monthly := keyRotation{}, keyRotation{Days: 30}
	tests := []struct {
		name      string
		keys      []accessKey
		published string
		rotation  keyRotation
		requested bool
		publish   string
		// regenerate is published instead, if it is not empty.
		regenerate string
	}{
		{"no keys", nil, "", monthly, asked, "", ""},
		{"no keys, something published", nil, "old", monthly, asked, "", ""},

		{"one key", []accessKey{key("a", 0)}, "", never, no, "a", ""},
		{"one key, published", []accessKey{key("a", 0)}, "a-value", never, no, "a", ""},
		{"one key, nothing to rotate to", []accessKey{key("a", month)}, "a-value", monthly, asked, "a", ""},

		{"nothing published", both(key("a", 2), key("b", 1)), "", never, no, "b", ""},
		{"nothing published, rotation is due and asked for", both(key("a", 2*month), key("b", month)), "", monthly, asked, "b", ""},
		{"the youngest is the first", both(key("a", 1), key("b", 2)), "a-value", never, no, "a", ""},
		{"the youngest is the second", both(key("a", 2), key("b", 1)), "b-value", never, no, "b", ""},

		{"both of one age, nothing published", both(key("a", 1), key("b", 1)), "", never, no, "a", ""},
		{"both of one age, the first published", both(key("a", 1), key("b", 1)), "a-value", never, no, "a", ""},
		{"both of one age, the second published", both(key("a", 1), key("b", 1)), "b-value", never, no, "b", ""},
		{"both of one age, something else published", both(key("a", 1), key("b", 1)), "x", never, no, "a", ""},
		{"both of one age, the second published, asked for", both(key("a", 1), key("b", 1)), "b-value", never, asked, "b", "a"},

		{"unknown ages, nothing published", both(undated("a"), undated("b")), "", monthly, no, "a", ""},
		{"unknown ages without rotation", both(undated("a"), undated("b")), "b-value", never, no, "b", ""},
		{"unknown ages are due", both(undated("a"), undated("b")), "b-value", monthly, no, "b", "a"},
		{"unknown ages are due, however long the period", both(undated("a"), undated("b")), "b-value", keyRotation{Days: math.MaxInt32}, no, "b", "a"},
		{"of unknown age is older, first", both(undated("a"), key("b", 10*month)), "b-value", never, no, "b", ""},
		{"of unknown age is older, second", both(key("a", 10*month), undated("b")), "a-value", never, asked, "a", "b"},
		{"of unknown age is published, the other is younger", both(undated("a"), key("b", 1)), "a-value", monthly, asked, "b", ""},

		{"just not due", both(key("a", month-1), key("b", 2*month)), "a-value", monthly, no, "a", ""},
		{"just due", both(key("a", month), key("b", 2*month)), "a-value", monthly, no, "a", "b"},
		{"long due", both(key("a", 9*month), key("b", 8*month)), "b-value", monthly, no, "b", "a"},
		{"due without rotation", both(key("a", 9*month), key("b", 8*month)), "b-value", never, no, "b", ""},
		{"created in the future", both(key("a", -testDay), key("b", 9*month)), "a-value", monthly, no, "a", ""},

		{"asked for without rotation", both(key("a", 1), key("b", 2)), "a-value", never, asked, "a", "b"},
		{"asked for, not due", both(key("a", 1), key("b", 2)), "a-value", monthly, asked, "a", "b"},

		{"cut off", both(key("a", 1), key("b", month)), "b-value", never, no, "a", ""},
		{"cut off, asked for", both(key("a", 1), key("b", month)), "b-value", never, asked, "a", ""},
		{"cut off long ago, due again", both(key("a", month), key("b", 2*month)), "b-value", monthly, asked, "a", ""},
		{"a value of neither", both(key("a", 2), key("b", 1)), "x", monthly, asked, "b", ""},

		{"the oldest of three goes", []accessKey{key("a", 2), key("b", 3), key("c", 1)}, "c-value", never, asked, "c", "b"},
		{"the oldest of three comes first", []accessKey{key("a", 3), key("b", 1), key("c", 2)}, "b-value", never, asked, "b", "a"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			publish, regenerate := planKeys(test.keys, test.published, test.rotation, test.requested, now)
			if publish.Name != test.publish || regenerate != test.regenerate {
				t.Errorf("publishes %q, regenerates %q; want %q, %q", publish.Name, regenerate, test.publish, test.regenerate)
			}
			if test.publish != "" && publish.Value != test.publish+"-value" {
				t.Errorf("publishes %q of key %q", publish.Value, publish.Name)
			}
			if regenerate != "" && regenerate == publish.Name {
				t.Error("regenerates the key that is in use")
			}
		})
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
		{name: "another key", prepare: func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Data = generatedData("derived", secretMarker+"-unknown") })
		}, changes: patched},
		{name: "without a domain", prepare: func(h *harness) {
			h.editSecret("garden", testGenerated, func(s *corev1.Secret) { delete(s.Data, dataKeyDomain) })
		}, changes: patched},
		{name: "with more", prepare: func(h *harness) {
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
			h.edit(bucketsGVR, "b", set("bkpadopted", "status", "providerStatus", "storageAccount"))
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
	// gardenlet reads the secret only when lastOperation changes.
	h.wantTrace(append(slices.Clone(azureVerified), "store b Keys", "status backupbuckets b Reconcile Processing", "get backupbuckets b",
		"store b RegenerateKey key2", "patch secrets garden/generated-bucket-b annotations,labels,data", "status backupbuckets b Reconcile Succeeded")...)
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
	// It is at least as old as we know it.
	since := keySince(h.secret("garden", testGenerated))
	if age := time.Since(since); age < 0 || age > time.Minute || !keyCreated(h.secret("garden", testGenerated)).IsZero() {
		t.Errorf("annotations %v", h.secret("garden", testGenerated).Annotations)
	}
	h.wantMetric(0, "bucketwarden_backupbucket_key_age_known", "b")
	h.wantMetric(float64(since.Unix()), "bucketwarden_backupbucket_key_created_timestamp_seconds", "b")
	// A later look does not make it younger, and writes nothing.
	long := time.Now().AddDate(-1, 0, 0).UTC().Truncate(time.Second)
	h.editSecret("garden", testGenerated, func(s *corev1.Secret) { s.Annotations[annotationKeySince] = long.Format(time.RFC3339) })
	h.edit(bucketsGVR, "b", withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil || !keySince(h.secret("garden", testGenerated)).Equal(long) {
		t.Errorf("error %v, annotations %v", err, h.secret("garden", testGenerated).Annotations)
	}
	h.wantTrace(azureReconciled...)
	h.wantMetric(float64(long.Unix()), "bucketwarden_backupbucket_key_created_timestamp_seconds", "b")
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
	h.wantMetric(1, "bucketwarden_backupbucket_key_age_known", "b")
	if s := h.secret("garden", testGenerated); keyCreated(s).IsZero() || !keySince(s).IsZero() {
		t.Errorf("annotations %v", s.Annotations)
	}
}

// Another key of unknown age is published since then, not for as long as the one before.
func TestAzureAnotherKeyOfUnknownAge(t *testing.T) {
	h := newHarness(t)
	account := h.putAzure(true, locked4d, withOperation(operationReconcile))
	account.keys = []accessKey{{Name: "key1", Value: secretMarker + "-new"}}
	h.editSecret("garden", testGenerated, func(s *corev1.Secret) {
		s.Annotations = map[string]string{annotationKeySince: testStart.Format(time.RFC3339), "other": "stays"}
	})
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	s := h.secret("garden", testGenerated)
	if since := keySince(s); time.Since(since) > time.Minute || s.Annotations["other"] != "stays" {
		t.Errorf("annotations %v", s.Annotations)
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
	t.Parallel()
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

// setKey regenerates a key of the account as the portal does.
func (a *memAccount) setKey(i int, value string) {
	a.keys[i].Value, a.keys[i].Created = value, time.Now()
}

// A key that was regenerated by somebody else is noticed by whoever uses it: the next pass publishes the new one.
func TestAzureRejectedKeyIsReplaced(t *testing.T) {
	rejected := &storeError{code: codeRetryableConfiguration, err: fmt.Errorf("the key: %w", errKeyRejected)}
	for name, meet := range map[string]func(h *harness) error{
		"by the sweep": func(h *harness) error {
			_, err := h.pass(h.t.Context(), h.sweeper.reconcile, "b", false)
			return err
		},
		"by an entry": func(h *harness) error { _, err := h.passEntry(testEntry); return err },
		"by the deletion of an entry": func(h *harness) error {
			h.edit(entriesGVR, testEntry, deleting)
			_, err := h.passEntry(testEntry)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			account := h.putAzure(true, locked4d)
			h.putNamespace(testNamespace, false)
			h.putAzureEntry(testEntry, true, withOperation(operationReconcile))
			for _, method := range []string{"List", "Purge"} {
				h.cloud.fail[method] = rejected
			}
			account.setKey(0, secretMarker+"-new")
			if err := meet(h); !errors.Is(err, errKeyRejected) {
				t.Fatal(err)
			}
			if n := h.buckets.resource.controller.queue.Len(); n != 1 {
				t.Fatalf("%d passes over the bucket were asked for", n)
			}
			if name != "by the sweep" {
				s := h.status(entriesGVR, testEntry)
				if slices.Contains(s.Codes, string(codeUnauthenticated)) {
					t.Errorf("codes %v", s.Codes)
				}
			}
			h.trace = nil
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantTrace(append(slices.Clone(azureVerified), "store b Keys", "status backupbuckets b Reconcile Processing",
				"patch secrets garden/generated-bucket-b annotations,labels,data", "status backupbuckets b Reconcile Succeeded")...)
			h.wantGenerated("garden", "derived", secretMarker+"-new")
			if h.cloud.generation != 0 {
				t.Error("a key was regenerated")
			}
			// What is still rejected storms nobody.
			for range 5 {
				if name == "by an entry" {
					h.edit(entriesGVR, testEntry, withOperation(operationReconcile))
				}
				_ = meet(h)
				h.trace = nil
				if _, err := h.passBucket("b"); err != nil {
					t.Error(err)
				}
				h.wantTrace(azureVerified...)
			}
			h.buckets.keys.age("b")
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantTrace(append(slices.Clone(azureVerified), "store b Keys")...)
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantTrace(azureVerified...)
		})
	}
}

// An altered generated secret is noticed by the next verification, once, and put back, with a new lastOperation.
func TestAzureAlteredSecretIsRestored(t *testing.T) {
	for name, test := range map[string]struct {
		alter func(s *corev1.Secret)
		event string
	}{
		"the key":            {func(s *corev1.Secret) { s.Data[dataKeyStorageKey] = []byte(secretMarker + "-other") }, "KeyRepublished"},
		"the domain":         {func(s *corev1.Secret) { s.Data[dataKeyDomain] = []byte("evil.example.com") }, "GeneratedSecretWritten"},
		"the account":        {func(s *corev1.Secret) { s.Data[dataKeyStorageAccount] = []byte("evil") }, "GeneratedSecretWritten"},
		"something is added": {func(s *corev1.Secret) { s.Data["emulatorEnabled"] = []byte("true") }, "GeneratedSecretWritten"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.putAzure(true, locked4d, set("2026-01-02T03:04:05Z", "status", "lastOperation", "lastUpdateTime"))
			h.buckets.verifyInterval = 0
			h.editSecret("garden", testGenerated, test.alter)
			// The next look comes when the store's own interval says.
			if again, err := h.passBucket("b"); err != nil || again != h.buckets.provider(&object{Type: "azure"}).verifyInterval() {
				t.Errorf("again after %s: %v", again, err)
			}
			h.wantGenerated("garden", "derived", memKey1)
			h.wantEvents(test.event)
			if got := decodeBucket(h.get(bucketsGVR, "b")); time.Since(got.LastOperation.LastUpdateTime) > time.Minute ||
				readRecord(got.ProviderStatus).Account != "derived" {
				t.Errorf("lastOperation %+v, record %+v", got.LastOperation, readRecord(got.ProviderStatus))
			}
			if got := h.cloud.opened.Account; got != "derived" {
				t.Errorf("opened the account %q", got)
			}
			h.trace = nil
			for range 2 {
				if _, err := h.passBucket("b"); err != nil {
					t.Error(err)
				}
				h.wantTrace(azureVerified...)
			}
			// Not more often than every few minutes, whoever alters it.
			h.editSecret("garden", testGenerated, test.alter)
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantTrace(azureVerified...)
			if got := readRecord(decodeBucket(h.get(bucketsGVR, "b")).ProviderStatus).Account; got != "derived" {
				t.Errorf("the record has account %q", got)
			}
		})
	}
}

// A restart forgets what was known: the first pass looks, and writes nothing if all is right.
func TestAzureKeysAreLookedAtAfterARestart(t *testing.T) {
	h := newHarness(t)
	account := h.putAzure(true, locked4d)
	h.buckets.keys.forget("b")
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantTrace(append(slices.Clone(azureVerified), "store b Keys")...)
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantTrace(azureVerified...)
	h.wantEvents()

	h.buckets.keys.forget("b")
	account.setKey(0, secretMarker+"-new")
	h.cloud.fail["Keys"] = unavailable
	n := 0
	for range 3 { // which is not asked for each time
		_, _ = h.passBucket("b")
		n += strings.Count(strings.Join(h.trace, "\n"), "store b Keys")
	}
	if n != 1 {
		t.Errorf("the keys were asked for %d times", n)
	}
	delete(h.cloud.fail, "Keys")
	h.buckets.keys.age("b")
	if _, err := h.passBucket("b"); err != nil {
		t.Error(err)
	}
	h.wantGenerated("garden", "derived", secretMarker+"-new")
	h.wantEvents("KeyRepublished")
}

// A verification that is killed between the secret and the status is told as well.
func TestAzureRepublishedKeyIsToldAfterAKill(t *testing.T) {
	for _, times := range []int{1, 2} {
		h := newHarness(t)
		account := h.putAzure(true, locked4d)
		h.buckets.keys.forget("b")
		account.setKey(0, secretMarker+"-new")
		n := 0
		h.on("patch", "backupbuckets/status", 2, func() error {
			if n++; n == times {
				panic("killed")
			}
			return nil
		})
		_ = h.passOrKill()
		h.hooks = nil
		if err := h.passOrKill(); err != nil {
			t.Error(err)
		}
		if s := h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded); s.Error != "" {
			t.Error(s.Error)
		}
		h.wantGenerated("garden", "derived", secretMarker+"-new")
		if last := decodeBucket(h.get(bucketsGVR, "b")).LastOperation; time.Since(last.LastUpdateTime) > time.Minute {
			t.Errorf("lastOperation is of %s", last.LastUpdateTime)
		}
	}
}

// age makes the last look at the keys of a bucket one of long ago.
func (w *keyWatch) age(bucket string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.buckets[bucket]
	s.looked = time.Now().Add(-keyLookInterval)
	w.buckets[bucket] = s
}
