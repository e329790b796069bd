package main

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/wait"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/yaml"
)

func informersTestObject(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	// As client-go's own decoder, and unlike encoding/json, it makes integers int64.
	if err := utiljson.Unmarshal(data, &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

const informersTestBucket = `
apiVersion: extensions.gardener.cloud/v1alpha1
kind: BackupBucket
metadata:
  name: seed
  uid: uid-1
  resourceVersion: "7"
  generation: 3
  deletionTimestamp: "2026-01-02T03:04:05Z"
  finalizers: [extensions.gardener.cloud/backupbucket, other]
  labels: {a: b}
  annotations:
    gardener.cloud/operation: reconcile
    gardener.cloud/timestamp: "2026-01-02T03:04:05.678Z"
    confirmation.gardener.cloud/deletion: "true"
  managedFields: [{manager: gardenlet, operation: Update}]
spec:
  type: s3
  class: garden
  region: eu-1
  secretRef: {name: bucket-seed, namespace: garden}
  providerConfig: {kind: BackupBucketConfig, apiVersion: s3.provider.extensions.gardener.cloud/v1alpha1}
status:
  observedGeneration: 2
  lastOperation: {type: Reconcile, state: Error, progress: 50, description: "no", lastUpdateTime: "2026-01-02T03:04:06Z"}
  lastError: {description: why, codes: [ERR_CONFIGURATION_PROBLEM]}
  providerStatus: {b: 1, a: 2}
  conditions:
  - {type: T, status: "True", reason: R, message: M, lastTransitionTime: "2026-01-02T03:04:05Z", lastUpdateTime: "2026-01-02T03:04:06Z", codes: [C]}
`

func TestDecodeBucket(t *testing.T) {
	u := informersTestObject(t, informersTestBucket)
	before := u.DeepCopy()
	got := decodeBucket(u)
	if !reflect.DeepEqual(u, before) {
		t.Error("decoding changed the object")
	}
	if got.statusHash == 0 || got.DeletionTimestamp == nil {
		t.Errorf("statusHash %d, deletionTimestamp %v", got.statusHash, got.DeletionTimestamp)
	}
	deleted := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	updated := metav1.NewTime(deleted.Add(time.Second))
	want := &backupBucket{
		object: object{
			TypeMeta: metav1.TypeMeta{APIVersion: "extensions.gardener.cloud/v1alpha1", Kind: "BackupBucket"},
			ObjectMeta: metav1.ObjectMeta{
				Name: "seed", UID: "uid-1", ResourceVersion: "7", Generation: 3, DeletionTimestamp: got.DeletionTimestamp,
				Finalizers:  []string{"extensions.gardener.cloud/backupbucket", "other"},
				Annotations: map[string]string{"gardener.cloud/operation": "reconcile", "gardener.cloud/timestamp": "2026-01-02T03:04:05.678Z"},
			},
			Type: "s3", Class: "garden", Region: "eu-1",
			SecretRef:          types.NamespacedName{Namespace: "garden", Name: "bucket-seed"},
			LastOperation:      &lastOperation{Description: "no", LastUpdateTime: updated.Time, State: stateError, Type: operationTypeReconcile},
			LastError:          &lastError{Description: "why"},
			ObservedGeneration: 2,
			statusHash:         got.statusHash,
		},
		ProviderConfig: []byte(`{"apiVersion":"s3.provider.extensions.gardener.cloud/v1alpha1","kind":"BackupBucketConfig"}`),
		ProviderStatus: []byte(`{"a":2,"b":1}`),
		Conditions:     got.Conditions,
	}
	if !got.DeletionTimestamp.Time.Equal(deleted.Time) {
		t.Errorf("deletionTimestamp: got %s", got.DeletionTimestamp)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if len(got.Conditions) != 1 {
		t.Fatalf("conditions: got %+v", got.Conditions)
	}
	c := got.Conditions[0]
	if c.Type != "T" || c.Status != "True" || c.Reason != "R" || c.Message != "M" || !slices.Equal(c.Codes, []string{"C"}) ||
		!c.LastTransitionTime.Equal(&deleted) || !c.LastUpdateTime.Equal(&updated) {
		t.Errorf("conditions: got %+v", got.Conditions)
	}
}

func TestDecodeEntry(t *testing.T) {
	got := decodeEntry(informersTestObject(t, `
metadata: {name: shoot--a--b--uid}
spec: {type: s3, region: eu-1, bucketName: seed, secretRef: {name: entry, namespace: garden}}
`))
	if got.decodeErr != nil || got.Kind != "BackupEntry" || got.BucketName != "seed" || got.Class != "shoot" || got.LastOperation != nil || got.LastError != nil {
		t.Errorf("got %+v", got)
	}
}

func TestDecodeAzure(t *testing.T) {
	b := decodeBucket(informersTestObject(t, `
metadata:
  name: seed
  annotations:
    azure.provider.extensions.gardener.cloud/rotate: "true"
    backupbucket.extensions.gardener.cloud/generated-secret-namespace: shoot--a--b
    other: x
status: {generatedSecretRef: {name: generated-bucket-seed, namespace: garden}}
`))
	want := map[string]string{annotationRotate: "true", annotationGeneratedSecretNamespace: "shoot--a--b"}
	if b.decodeErr != nil || !maps.Equal(b.Annotations, want) || b.GeneratedSecretRef != (types.NamespacedName{Namespace: "garden", Name: "generated-bucket-seed"}) {
		t.Errorf("got %+v", b)
	}
	for text, want := range map[string]Policy{
		`{}`: {},
		`{spec: {backupBucketProviderStatus: null}}`: {},
		`{spec: {backupBucketProviderStatus: {kind: BackupBucketStatus, immutability: {retentionType: bucket, retentionPeriod: 96h, locked: true}}}}`: {Days: 4, Locked: true},
		`{spec: {backupBucketProviderStatus: {kind: BackupBucketStatus, immutability: {retentionType: bucket, retentionPeriod: 2400000h}}}}`:          {Days: 100000},
		`{spec: {backupBucketProviderStatus: {kind: SomebodyElses, immutability: {retentionType: bucket, retentionPeriod: 96h, locked: true}}}}`:      {},
		`{spec: {backupBucketProviderStatus: x}}`: {},
		`{status: {providerStatus: {kind: BackupBucketStatus, immutability: {retentionType: bucket, retentionPeriod: 96h, locked: true}}}}`: {},
	} {
		if e := decodeEntry(informersTestObject(t, text)); e.decodeErr != nil || e.Recorded != want {
			t.Errorf("%s: recorded %s, %v; want %s", text, e.Recorded, e.decodeErr, want)
		}
	}
}

// The CRDs preserve unknown fields and may be older or newer than this daemon.
func TestDecodeSurprisingShapes(t *testing.T) {
	odd := []any{nil, "x", int64(-1), 1.5, true, []any{}, []any{map[string]any{"a": nil}}, map[string]any{}, map[string]any{"a": []any{"b"}}}
	paths := [][]string{
		{"metadata"}, {"metadata", "annotations"}, {"metadata", "finalizers"}, {"metadata", "deletionTimestamp"},
		{"metadata", "generation"}, {"metadata", "name"}, {"metadata", "uid"}, {"metadata", "resourceVersion"},
		{"spec"}, {"spec", "type"}, {"spec", "class"}, {"spec", "region"}, {"spec", "bucketName"}, {"spec", "secretRef"},
		{"spec", "secretRef", "name"}, {"spec", "secretRef", "namespace"}, {"spec", "providerConfig"},
		{"status"}, {"status", "observedGeneration"}, {"status", "lastOperation"}, {"status", "lastOperation", "state"},
		{"status", "lastOperation", "type"}, {"status", "lastOperation", "description"}, {"status", "lastOperation", "lastUpdateTime"},
		{"status", "lastError"}, {"status", "lastError", "description"}, {"status", "providerStatus"}, {"status", "conditions"},
		{"status", "generatedSecretRef"}, {"spec", "backupBucketProviderStatus"},
	}
	for _, path := range paths {
		for _, value := range odd {
			t.Run(fmt.Sprintf("%v is %v", path, value), func(t *testing.T) {
				u := informersTestObject(t, informersTestBucket)
				parent := u.Object
				for _, key := range path[:len(path)-1] {
					parent = parent[key].(map[string]any)
				}
				parent[path[len(path)-1]] = value
				b, e := decodeBucket(u), decodeEntry(u)
				// Neither may they stop what is done with every object of the cache.
				for _, index := range []cache.IndexFunc{indexBySecret, indexByNamespace} {
					if _, err := index(b); err != nil {
						t.Error(err)
					}
					if _, err := index(e); err != nil {
						t.Error(err)
					}
				}
				computeOperationType(&b.object)
			})
		}
	}

	errors := map[string]string{
		"spec is a string":                     `{spec: x}`,
		"type is a number":                     `{spec: {type: 1}}`,
		"secretRef is a list":                  `{spec: {secretRef: []}}`,
		"secret name is an object":             `{spec: {secretRef: {name: {}}}}`,
		"status is a number":                   `{status: 1}`,
		"observedGeneration is a string":       `{status: {observedGeneration: "1"}}`,
		"observedGeneration is a fraction":     `{status: {observedGeneration: 1.5}}`,
		"lastOperation is a list":              `{status: {lastOperation: [1]}}`,
		"state is a boolean":                   `{status: {lastOperation: {state: true}}}`,
		"lastUpdateTime is no time":            `{status: {lastOperation: {lastUpdateTime: yesterday}}}`,
		"lastError is a string":                `{status: {lastError: x}}`,
		"description of lastError is a number": `{status: {lastError: {description: 1}}}`,
	}
	for name, text := range errors {
		t.Run(name, func(t *testing.T) {
			if b := decodeBucket(informersTestObject(t, text)); b.decodeErr == nil {
				t.Error("BackupBucket: no decodeErr")
			}
			if e := decodeEntry(informersTestObject(t, text)); e.decodeErr == nil {
				t.Error("BackupEntry: no decodeErr")
			}
		})
	}
	for name, text := range map[string]string{
		"conditions are an object":   `{status: {conditions: {}}}`,
		"a condition is a string":    `{status: {conditions: [x]}}`,
		"generated is a string":      `{status: {generatedSecretRef: x}}`,
		"generated name is a number": `{status: {generatedSecretRef: {name: 1}}}`,
		"a condition's time is none": `{status: {conditions: [{lastUpdateTime: x}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if b := decodeBucket(informersTestObject(t, text)); b.decodeErr == nil {
				t.Error("no decodeErr")
			}
		})
	}
	if e := decodeEntry(informersTestObject(t, `{spec: {bucketName: 1}}`)); e.decodeErr == nil {
		t.Error("bucketName is a number: no decodeErr")
	}
	for name, text := range map[string]string{
		"empty":       `{}`,
		"null status": `{status: null}`,
		"null fields": `{spec: {type: s3, providerConfig: null}, status: {lastOperation: null, lastError: null, conditions: null}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if b := decodeBucket(informersTestObject(t, text)); b.decodeErr != nil || b.LastOperation != nil || b.LastError != nil || b.ProviderConfig != nil {
				t.Errorf("got %+v", b)
			}
		})
	}
}

// Only equal statuses may have equal hashes, of whatever part of it differs.
func TestStatusHash(t *testing.T) {
	hash := func(text string) uint64 { return decodeBucket(informersTestObject(t, text)).statusHash }
	base := hash(`{status: {state: {a: 1, b: 2}}}`)
	if got := hash(`{metadata: {resourceVersion: "9"}, spec: {type: s3}, status: {state: {b: 2, a: 1}}}`); got != base {
		t.Error("an equal status has another hash")
	}
	for _, text := range []string{`{}`, `{status: {}}`, `{status: {state: {a: 1}}}`, `{status: {state: {a: 1, b: 3}}}`} {
		if hash(text) == base {
			t.Errorf("%s has the hash of another status", text)
		}
	}
}

func TestTransform(t *testing.T) {
	transform := transformWith(decodeBucket)
	once, err := transform(informersTestObject(t, informersTestBucket))
	if err != nil {
		t.Fatal(err)
	}
	b, ok := once.(*backupBucket)
	if !ok {
		t.Fatalf("got %T", once)
	}
	if b.ManagedFields != nil || b.Labels != nil {
		t.Errorf("kept managedFields %v, labels %v", b.ManagedFields, b.Labels)
	}
	if _, kept := b.Annotations["confirmation.gardener.cloud/deletion"]; kept {
		t.Error("kept an annotation that nobody reads")
	}
	if twice, err := transform(once); err != nil || twice != once {
		t.Errorf("transformed twice: got %v, %v", twice, err)
	}
	for _, obj := range []any{"x", nil, &backupEntry{}} {
		if _, err := transform(obj); err == nil {
			t.Errorf("%T: no error", obj)
		}
	}
}

func TestDeepCopyObject(t *testing.T) {
	b := decodeBucket(informersTestObject(t, informersTestBucket))
	c := b.DeepCopyObject().(*backupBucket)
	if c == b || !reflect.DeepEqual(b, c) {
		t.Errorf("got %+v, want a copy of %+v", c, b)
	}
	e := decodeEntry(informersTestObject(t, informersTestBucket))
	if d := e.DeepCopyObject().(*backupEntry); d == e || !reflect.DeepEqual(e, d) {
		t.Errorf("got %+v, want a copy of %+v", d, e)
	}
}

func TestResponsible(t *testing.T) {
	tests := []struct {
		name, objectType, class string
		classes                 []string
		want                    bool
	}{
		{"our type, no class", "s3", "", []string{"shoot"}, true},
		{"our type, our class", "s3", "shoot", []string{"shoot"}, true},
		{"one of our classes", "s3", "garden", []string{"shoot", "garden"}, true},
		{"another type", "gcp", "", []string{"shoot"}, false},
		{"the type in another case", "AWS", "", []string{"shoot"}, false},
		{"no type", "", "", []string{"shoot"}, false},
		{"another class", "s3", "garden", []string{"shoot"}, false},
		{"no class is not every class", "s3", "", []string{"garden"}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := &scope{providers: testProviders("aws", "s3"), classes: test.classes}
			spec := map[string]any{"type": test.objectType}
			if test.class != "" {
				spec["class"] = test.class
			}
			b := decodeBucket(&unstructured.Unstructured{Object: map[string]any{"spec": spec}})
			if got := a.responsible(&b.object); got != test.want {
				t.Errorf("got %t, want %t", got, test.want)
			}
		})
	}
}

func TestAdmitAdd(t *testing.T) {
	now := metav1.Now()
	succeeded := &lastOperation{State: stateSucceeded}
	at := &lastOperation{State: stateSucceeded, LastUpdateTime: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	operation := func(value string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Annotations: map[string]string{annotationOperation: value}}
	}
	timestamp := func(value string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Annotations: map[string]string{annotationTimestamp: value}}
	}
	tests := []struct {
		name string
		o    object
		want bool
	}{
		{"succeeded after a restart", object{LastOperation: succeeded}, false},
		{"failed before a restart", object{LastOperation: &lastOperation{State: stateError}}, true},
		{"interrupted by a restart", object{LastOperation: &lastOperation{State: stateProcessing}}, true},
		{"never seen", object{}, true},
		{"succeeded with a changed spec", object{ObjectMeta: metav1.ObjectMeta{Generation: 2}, ObservedGeneration: 1, LastOperation: succeeded}, false},
		{"annotated reconcile", object{ObjectMeta: operation(operationReconcile), LastOperation: succeeded}, true},
		{"annotated restore", object{ObjectMeta: operation(operationRestore), LastOperation: succeeded}, true},
		{"annotated migrate", object{ObjectMeta: operation(operationMigrate), LastOperation: succeeded}, true},
		{"annotated wait-for-state", object{ObjectMeta: operation(operationWaitForState), LastOperation: succeeded}, false},
		{"annotated with something else", object{ObjectMeta: operation("rotate"), LastOperation: succeeded}, false},
		{"deleting", object{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}, LastOperation: succeeded}, true},
		{"cut off after the annotation was removed", object{ObjectMeta: timestamp("2026-01-02T03:04:06.1Z"), LastOperation: at}, true},
		{"succeeded in the second of the timestamp", object{ObjectMeta: timestamp("2026-01-02T03:04:05.9Z"), LastOperation: at}, false},
		{"succeeded after the timestamp", object{ObjectMeta: timestamp("2026-01-02T03:04:04Z"), LastOperation: at}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := (&scope{}).onAdd(&test.o); got != test.want {
				t.Errorf("got %t, want %t", got, test.want)
			}
			if !(&scope{ignoreOperationAnnotation: true}).onAdd(&test.o) {
				t.Error("not admitted without the annotation mode")
			}
		})
	}
}

func TestAdmitUpdate(t *testing.T) {
	now := metav1.Now()
	meta := func(generation int64, operation string, deleting bool) metav1.ObjectMeta {
		m := metav1.ObjectMeta{Generation: generation}
		if operation != "" {
			m.Annotations = map[string]string{annotationOperation: operation}
		}
		if deleting {
			m.DeletionTimestamp = &now
		}
		return m
	}
	tests := []struct {
		name               string
		old, new           object
		annotated, ignored bool
	}{
		{"nothing", object{ObjectMeta: meta(1, "", false)}, object{ObjectMeta: meta(1, "", false)}, false, false},
		{"spec changed without annotation", object{ObjectMeta: meta(1, "", false)}, object{ObjectMeta: meta(2, "", false)}, false, true},
		{"annotated reconcile", object{ObjectMeta: meta(1, "", false)}, object{ObjectMeta: meta(1, operationReconcile, false)}, true, false},
		{"annotated restore", object{ObjectMeta: meta(1, operationWaitForState, false)}, object{ObjectMeta: meta(1, operationRestore, false)}, true, false},
		{"annotated migrate", object{ObjectMeta: meta(1, "", false)}, object{ObjectMeta: meta(1, operationMigrate, false)}, true, false},
		{"annotated wait-for-state", object{ObjectMeta: meta(1, "", false)}, object{ObjectMeta: meta(1, operationWaitForState, false)}, false, false},
		{"status changed while annotated", object{ObjectMeta: meta(1, operationMigrate, false), statusHash: 1}, object{ObjectMeta: meta(1, operationMigrate, false), statusHash: 2}, false, false},
		{"annotated again while annotated", object{ObjectMeta: meta(1, operationMigrate, false), statusHash: 1}, object{ObjectMeta: meta(1, operationMigrate, false), statusHash: 1}, true, false},
		{"annotated and status changed at once", object{ObjectMeta: meta(1, "", false), statusHash: 1}, object{ObjectMeta: meta(1, operationReconcile, false), statusHash: 2}, true, false},
		{"annotation removed", object{ObjectMeta: meta(1, operationReconcile, false)}, object{ObjectMeta: meta(1, "", false)}, false, false},
		{"status changed", object{statusHash: 1}, object{statusHash: 2}, false, false},
		{"deletion asked for", object{ObjectMeta: meta(1, "", false)}, object{ObjectMeta: meta(2, "", true)}, true, true},
		{"deletion confirmed again", object{ObjectMeta: meta(2, "", true)}, object{ObjectMeta: meta(2, "", true)}, true, false},
		{"deletion and our own status in one relist", object{ObjectMeta: meta(1, "", false), statusHash: 1}, object{ObjectMeta: meta(2, "", true), statusHash: 2}, true, true},
		{"our own status while deleting", object{ObjectMeta: meta(2, "", true), statusHash: 1}, object{ObjectMeta: meta(2, "", true), statusHash: 2}, false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := (&scope{}).onUpdate(&test.old, &test.new); got != test.annotated {
				t.Errorf("annotation mode: got %t, want %t", got, test.annotated)
			}
			if got := (&scope{ignoreOperationAnnotation: true}).onUpdate(&test.old, &test.new); got != test.ignored {
				t.Errorf("ignoring annotations: got %t, want %t", got, test.ignored)
			}
		})
	}
}

func TestSplitEntryName(t *testing.T) {
	tests := []struct{ name, technicalID, uid string }{
		{"shoot--dev--x--1234", "shoot--dev--x", "1234"},
		{"source-shoot--dev--x--1234", "shoot--dev--x", "1234"},
		{"garden--1234", "garden", "1234"},
		{"shoot--dev--x--12-34", "shoot--dev--x", "12-34"},
		{"a---b", "a-", "b"},
		{"plain", "plain", "plain"},
		{"source-plain", "plain", "plain"},
		{"source-source-a--b", "source-a", "b"},
		{"--b", "", "b"},
		{"a--", "a", ""},
		{"", "", ""},
	}
	for _, test := range tests {
		if technicalID, uid := splitEntryName(test.name); technicalID != test.technicalID || uid != test.uid {
			t.Errorf("%q: got %q, %q; want %q, %q", test.name, technicalID, uid, test.technicalID, test.uid)
		}
	}
}

// informersTestStub captures what is registered on an informer.
type informersTestStub struct {
	cache.SharedIndexInformer
	handler cache.ResourceEventHandler
	indexer cache.Indexer
}

func (i *informersTestStub) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	i.handler = handler
	return nil, nil
}

func (i *informersTestStub) GetIndexer() cache.Indexer { return i.indexer }

// informersTestController is a controller whose keys are taken out of its queue.
type informersTestController struct {
	*controller
	forgotten []string
}

func newInformersTestController(t *testing.T) *informersTestController {
	c := &informersTestController{controller: newController(resourceBackupBuckets, newMetrics())}
	c.onGone = func(name string) { c.forgotten = append(c.forgotten, name) }
	t.Cleanup(c.queue.ShutDown)
	return c
}

// drain returns what is queued; a key that is wanted has a plus.
func (c *informersTestController) drain() []string {
	keys := []string{}
	for c.queue.Len() > 0 {
		key, _ := c.queue.Get()
		c.queue.Done(key)
		name := key.String()
		if c.takeWanted(key) {
			name += "+"
		}
		keys = append(keys, name)
	}
	slices.Sort(keys)
	return keys
}

func (c *informersTestController) expect(t *testing.T, what string, want ...string) {
	t.Helper()
	if got := c.drain(); !slices.Equal(got, want) {
		t.Errorf("%s: queued %q, want %q", what, got, want)
	}
}

func informersTestAdmission(ignore bool) *scope {
	return &scope{providers: testProviders("s3"), classes: []string{"shoot"}, ignoreOperationAnnotation: ignore}
}

func TestWatchObjects(t *testing.T) {
	bucket := func(name, class, operation string, generation int64) *backupBucket {
		b := &backupBucket{object: object{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: generation}, Type: "s3", Class: class,
			LastOperation: &lastOperation{State: stateSucceeded}}}
		if operation != "" {
			b.Annotations = map[string]string{annotationOperation: operation}
		}
		return b
	}
	setup := func(t *testing.T, ignore bool) (cache.ResourceEventHandler, *informersTestController, *[]string) {
		c, informer, seen := newInformersTestController(t), &informersTestStub{}, &[]string{}
		if _, err := watchObjects(informer, informersTestAdmission(ignore), c.controller, func(key cache.ObjectName) { *seen = append(*seen, key.String()) }); err != nil {
			t.Fatal(err)
		}
		return informer.handler, c, seen
	}

	t.Run("annotation mode", func(t *testing.T) {
		handler, c, seen := setup(t, false)
		handler.OnAdd(bucket("a", "shoot", "", 1), true)
		c.expect(t, "succeeded is added")
		handler.OnAdd(bucket("b", "garden", operationReconcile, 1), true)
		c.expect(t, "another class is added")
		handler.OnAdd(bucket("c", "shoot", operationReconcile, 1), true)
		c.expect(t, "annotated is added", "c")
		if !slices.Equal(*seen, []string{"a"}) {
			t.Errorf("seen: got %q, want a alone", *seen)
		}
		handler.OnUpdate(bucket("a", "shoot", "", 1), bucket("a", "shoot", "", 2))
		c.expect(t, "the spec changed")
		handler.OnUpdate(bucket("a", "shoot", "", 1), bucket("a", "shoot", operationReconcile, 2))
		c.expect(t, "annotated", "a")
		handler.OnAdd("x", true)
		handler.OnUpdate("x", bucket("a", "shoot", operationReconcile, 1))
		handler.OnUpdate(bucket("a", "shoot", "", 1), "x")
		handler.OnDelete("x")
		c.expect(t, "no objects")
	})

	t.Run("ignoring annotations", func(t *testing.T) {
		handler, c, seen := setup(t, true)
		handler.OnAdd(bucket("a", "shoot", "", 1), true)
		c.expect(t, "added", "a+")
		handler.OnUpdate(bucket("a", "shoot", "", 1), bucket("a", "shoot", operationReconcile, 1))
		c.expect(t, "only annotated")
		handler.OnUpdate(bucket("a", "shoot", "", 1), bucket("a", "shoot", "", 2))
		c.expect(t, "the spec changed", "a+")
		if len(*seen) > 0 {
			t.Errorf("seen: %q", *seen)
		}
	})

	t.Run("without seen", func(t *testing.T) {
		c, informer := newInformersTestController(t), &informersTestStub{}
		if _, err := watchObjects(informer, informersTestAdmission(false), c.controller, nil); err != nil {
			t.Fatal(err)
		}
		informer.handler.OnAdd(bucket("a", "shoot", "", 1), true)
		c.expect(t, "succeeded is added")
	})

	t.Run("gone", func(t *testing.T) {
		handler, c, _ := setup(t, false)
		key := cache.ObjectName{Name: "a"}
		tests := []struct {
			name  string
			event func()
			gone  bool
		}{
			{"deleted", func() { handler.OnDelete(bucket("a", "shoot", "", 1)) }, true},
			{"deleted while the watch was down", func() {
				handler.OnDelete(cache.DeletedFinalStateUnknown{Key: "a", Obj: bucket("a", "shoot", "", 1)})
			}, true},
			{"deleted unseen while the watch was down", func() { handler.OnDelete(cache.DeletedFinalStateUnknown{Key: "a"}) }, true},
			{"no longer ours", func() { handler.OnUpdate(bucket("a", "shoot", "", 1), bucket("a", "garden", "", 1)) }, true},
			{"no longer ours though annotated", func() {
				handler.OnUpdate(bucket("a", "shoot", "", 1), bucket("a", "garden", operationReconcile, 1))
			}, true},
			{"never ours", func() { handler.OnUpdate(bucket("a", "garden", "", 1), bucket("a", "garden", "", 2)) }, false},
			{"ours from now on", func() { handler.OnUpdate(bucket("a", "garden", "", 1), bucket("a", "shoot", "", 2)) }, false},
		}
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				c.want(key)
				c.forgotten = nil
				test.event()
				c.expect(t, test.name)
				if got := len(c.forgotten) == 1 && c.forgotten[0] == "a"; got != test.gone {
					t.Errorf("onGone was called for %q", c.forgotten)
				}
				if c.takeWanted(key) == test.gone {
					t.Errorf("the key is still wanted: %t", test.gone)
				}
			})
		}
	})

	t.Run("our own write arrives", func(t *testing.T) {
		handler, c, _ := setup(t, false)
		key := cache.ObjectName{Name: "a"}
		c.wrote(key, "5")
		old, new := bucket("a", "shoot", "", 1), bucket("a", "shoot", "", 1)
		old.ResourceVersion, new.ResourceVersion = "4", "5"
		handler.OnUpdate(old, new)
		if _, waiting := c.written[key]; waiting {
			t.Error("the write is still waited for")
		}
	})
}

func TestWatchSecretsAndNamespaces(t *testing.T) {
	entry := func(name, class, secret string) *backupEntry {
		return &backupEntry{object: object{ObjectMeta: metav1.ObjectMeta{Name: name}, Type: "s3", Class: class,
			SecretRef: types.NamespacedName{Namespace: "garden", Name: secret}}}
	}
	entries := &informersTestStub{indexer: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{indexSecret: indexBySecret, indexNamespace: indexByNamespace})}
	for _, e := range []*backupEntry{
		entry("shoot--a--b--1", "shoot", "one"),
		entry("source-shoot--a--b--1", "shoot", "one"),
		entry("shoot--a--b--2", "shoot", "two"),
		entry("shoot--a--c--1", "garden", "one"),
		entry("shoot--a--d--1", "shoot", "two"),
	} {
		if err := entries.indexer.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	c, secrets, namespaces := newInformersTestController(t), &informersTestStub{}, &informersTestStub{}
	a := informersTestAdmission(true)
	if err := watchSecrets(secrets, entries, a, c.controller); err != nil {
		t.Fatal(err)
	}
	if err := watchNamespaces(namespaces, entries, a, c.controller); err != nil {
		t.Fatal(err)
	}
	meta := func(namespace, name, uid string) *metav1.PartialObjectMetadata {
		m := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		if uid != "" {
			m.Annotations = map[string]string{annotationShootUID: uid}
		}
		return m
	}
	tests := []struct {
		name    string
		handler cache.ResourceEventHandler
		m       *metav1.PartialObjectMetadata
		want    []string
	}{
		{"a secret that entries refer to", secrets.handler, meta("garden", "one", ""), []string{"shoot--a--b--1+", "source-shoot--a--b--1+"}},
		{"the secret of that name elsewhere", secrets.handler, meta("default", "one", ""), []string{}},
		{"a secret of nobody", secrets.handler, meta("garden", "three", ""), []string{}},
		{"the namespace of a cluster", namespaces.handler, meta("", "shoot--a--b", "1"), []string{"shoot--a--b--1+", "source-shoot--a--b--1+"}},
		{"the namespace of another cluster of that name", namespaces.handler, meta("", "shoot--a--b", "3"), []string{}},
		{"a namespace without UID", namespaces.handler, meta("", "shoot--a--b", ""), []string{}},
		{"the namespace of another class", namespaces.handler, meta("", "shoot--a--c", "1"), []string{}},
		{"any other namespace", namespaces.handler, meta("", "default", "1"), []string{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.handler.OnAdd(test.m, false)
			c.expect(t, "added", test.want...)
			test.handler.OnUpdate(meta("", "old", ""), test.m)
			c.expect(t, "updated", test.want...)
			test.handler.OnDelete(test.m)
			c.expect(t, "deleted", test.want...)
			test.handler.OnDelete(cache.DeletedFinalStateUnknown{Obj: test.m})
			c.expect(t, "deleted while the watch was down", test.want...)
			test.handler.OnDelete("x")
			test.handler.OnDelete(cache.DeletedFinalStateUnknown{Key: "a"})
			c.expect(t, "not an object")
		})
	}
}

func informersTestDynamic(objects ...runtime.Object) *dynamicfake.FakeDynamicClient {
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		bucketsGVR: "BackupBucketList", entriesGVR: "BackupEntryList"}, objects...)
}

func informersTestAwait(t *testing.T, what string, condition func() bool) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), time.Millisecond, 10*time.Minute, true,
		func(context.Context) (bool, error) { return condition(), nil }); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func TestInformers(t *testing.T) {
	entryObject := informersTestObject(t, `
apiVersion: extensions.gardener.cloud/v1alpha1
kind: BackupEntry
metadata: {name: shoot--a--b--1, managedFields: [{manager: x}]}
spec: {type: s3, region: eu-1, bucketName: seed, secretRef: {name: one, namespace: garden}}
status: {lastOperation: {type: Create, state: Succeeded, progress: 100, description: "", lastUpdateTime: "2026-01-02T03:04:06Z"}}
`)
	dyn := informersTestDynamic(informersTestObject(t, informersTestBucket), entryObject)
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	secret := &metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "one", Labels: map[string]string{"a": "b"},
			Annotations: map[string]string{"a": "b", annotationShootUID: "1"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "x"}}},
	}
	meta := metadatafake.NewSimpleMetadataClient(scheme, secret)

	buckets, _, err1 := newBucketInformer(dyn)
	entries, _, err2 := newEntryInformer(dyn)
	secrets, _, err3 := newMetadataInformer(meta, secretsGVR)
	namespaces, _, err4 := newMetadataInformer(meta, namespaceGVR)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c, a := newInformersTestController(t), informersTestAdmission(true)
	if err := watchSecrets(secrets, entries, a, c.controller); err != nil {
		t.Fatal(err)
	}
	if err := watchNamespaces(namespaces, entries, a, c.controller); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var stopped wait.Group
	// Entries come first: the others look them up.
	stopped.StartWithContext(ctx, entries.RunWithContext)
	informersTestAwait(t, "entries", entries.HasSynced)
	for _, informer := range []cache.SharedIndexInformer{buckets, secrets, namespaces} {
		stopped.StartWithContext(ctx, informer.RunWithContext)
		informersTestAwait(t, "sync", informer.HasSynced)
	}
	defer stopped.Wait()
	defer cancel()

	if obj, exists, err := buckets.GetIndexer().GetByKey("seed"); err != nil || !exists || obj.(*backupBucket).Region != "eu-1" {
		t.Errorf("bucket: got %v, %t, %v", obj, exists, err)
	}
	if found, err := buckets.GetIndexer().ByIndex(indexSecret, "garden/bucket-seed"); err != nil || len(found) != 1 {
		t.Errorf("bucket by its secret: got %v, %v", found, err)
	}
	if found, err := entries.GetIndexer().ByIndex(indexNamespace, "shoot--a--b"); err != nil || len(found) != 1 || found[0].(*backupEntry).BucketName != "seed" {
		t.Errorf("entry by its namespace: got %v, %v", found, err)
	}
	obj, exists, err := secrets.GetIndexer().GetByKey("garden/one")
	if err != nil || !exists {
		t.Fatalf("secret: got %t, %v", exists, err)
	}
	if m := obj.(*metav1.PartialObjectMetadata); m.Labels != nil || m.ManagedFields != nil || len(m.Annotations) != 1 || m.Annotations[annotationShootUID] != "1" {
		t.Errorf("secret: kept %+v", m.ObjectMeta)
	}
	informersTestAwait(t, "the entry of the secret is queued", func() bool { return c.queue.Len() == 1 })
	c.expect(t, "secret", "shoot--a--b--1+")

	namespace := &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: "shoot--a--b", Annotations: map[string]string{annotationShootUID: "1"}},
	}
	if _, err := meta.Resource(namespaceGVR).(metadatafake.MetadataClient).CreateFake(namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	informersTestAwait(t, "the entry of the namespace is queued", func() bool { return c.queue.Len() == 1 })
	c.expect(t, "namespace", "shoot--a--b--1+")

	if err := meta.Resource(secretsGVR).Namespace("garden").Delete(ctx, "one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	informersTestAwait(t, "the entry of the deleted secret is queued", func() bool { return c.queue.Len() == 1 })
	c.expect(t, "deleted secret", "shoot--a--b--1+")
}

// An S3 bucket and an Azure bucket with a rotation request, as the informers show them.
func TestAdmitRotation(t *testing.T) {
	a := &scope{providers: map[string]provider{"azure": &azureClients{}, "my": &azureClients{}, "s3": &s3Clients{}}, classes: []string{defaultClass}}
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
