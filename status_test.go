package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
)

func TestComputeOperationType(t *testing.T) {
	const none = ""
	last := func(opType operationType, state operationState) *lastOperation {
		return &lastOperation{Type: opType, State: state}
	}
	tests := []struct {
		name      string
		operation string
		deleting  bool
		last      *lastOperation
		want      operationType
	}{
		{"first", operationReconcile, false, nil, operationTypeCreate},
		{"first without annotation", none, false, nil, operationTypeCreate},
		{"create in progress", none, false, last(operationTypeCreate, stateProcessing), operationTypeCreate},
		{"create failed", operationReconcile, false, last(operationTypeCreate, stateError), operationTypeCreate},
		{"created", operationReconcile, false, last(operationTypeCreate, stateSucceeded), operationTypeReconcile},
		{"reconciled", none, false, last(operationTypeReconcile, stateSucceeded), operationTypeReconcile},
		{"reconcile failed", none, false, last(operationTypeReconcile, stateError), operationTypeReconcile},
		{"delete of a former life", none, false, last(operationTypeDelete, stateError), operationTypeReconcile},
		{"deleting", none, true, last(operationTypeReconcile, stateSucceeded), operationTypeDelete},
		{"deleting before the first pass", operationReconcile, true, nil, operationTypeDelete},
		{"deleting beats restore", operationRestore, true, nil, operationTypeDelete},
		{"migrate", operationMigrate, false, last(operationTypeReconcile, stateSucceeded), operationTypeMigrate},
		{"migrate beats deleting", operationMigrate, true, last(operationTypeReconcile, stateSucceeded), operationTypeMigrate},
		{"migrate failed", none, false, last(operationTypeMigrate, stateError), operationTypeMigrate},
		{"deleting beats a failed migrate", none, true, last(operationTypeMigrate, stateError), operationTypeDelete},
		{"migrated", none, false, last(operationTypeMigrate, stateSucceeded), operationTypeReconcile},
		{"restore", operationRestore, false, nil, operationTypeRestore},
		{"restore after migrate", operationRestore, false, last(operationTypeMigrate, stateSucceeded), operationTypeRestore},
		{"restore failed", none, false, last(operationTypeRestore, stateError), operationTypeRestore},
		{"restored", none, false, last(operationTypeRestore, stateSucceeded), operationTypeReconcile},
		{"create failed, restore asked for", operationRestore, false, last(operationTypeCreate, stateError), operationTypeRestore},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := &object{LastOperation: test.last}
			if test.operation != none {
				o.Annotations = map[string]string{annotationOperation: test.operation}
			}
			if test.deleting {
				now := metav1.Now()
				o.DeletionTimestamp = &now
			}
			if got := computeOperationType(o); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// statusTestNow is when the clock of a synctest bubble starts.
const statusTestNow = "2000-01-01T00:00:00Z"

// statusTestClient is a client of BackupBuckets on a fake API server that holds the
// BackupBucket of the text, if any.
func statusTestClient(t *testing.T, text string) (*resourceClient, *dynamicfake.FakeDynamicClient) {
	t.Helper()
	var objects []runtime.Object
	if text != "" {
		u := informersTestObject(t, text)
		u.SetAPIVersion(extensionsGV.String())
		u.SetKind(kindBackupBucket)
		objects = append(objects, u)
	}
	client := informersTestDynamic(objects...)
	c := newController(resourceBackupBuckets, newMetrics())
	t.Cleanup(c.queue.ShutDown)
	return &resourceClient{client: client.Resource(bucketsGVR), kind: kindBackupBucket, finalizer: finalizerBackupBucket, controller: c}, client
}

// statusTestPatches are the patches that the fake API server got, with their
// subresource in front.
func statusTestPatches(client *dynamicfake.FakeDynamicClient) []string {
	patches := []string{}
	for _, action := range client.Actions() {
		if patch, ok := action.(clienttesting.PatchAction); ok {
			patches = append(patches, patch.GetSubresource()+string(patch.GetPatch()))
		}
	}
	return patches
}

const statusTestBucket = `
metadata: {name: seed, uid: uid-1, generation: 3, resourceVersion: "7"}
spec: {type: s3}
status: {observedGeneration: 2, lastError: {description: before, codes: [ERR_INFRA_UNAUTHORIZED], taskID: x}}
`

func TestStatusPatches(t *testing.T) {
	storage := &storeError{code: codeUnauthorized, err: errors.New("access denied")}
	tests := []struct {
		name  string
		write func(context.Context, *resourceClient, *object) error
		patch string
		// status is what the whole status is afterwards.
		status string
	}{
		{
			"processing leaves lastError and observedGeneration",
			func(ctx context.Context, c *resourceClient, o *object) error {
				return c.processing(ctx, o, operationTypeCreate, "Working")
			},
			`{"status":{"lastOperation":{"description":"Working","lastUpdateTime":"2000-01-01T00:00:00Z","progress":1,"state":"Processing","type":"Create"}}}`,
			`{"lastError":{"codes":["ERR_INFRA_UNAUTHORIZED"],"description":"before","taskID":"x"},"lastOperation":{"description":"Working","lastUpdateTime":"2000-01-01T00:00:00Z","progress":1,"state":"Processing","type":"Create"},"observedGeneration":2}`,
		},
		{
			"waiting clears lastError",
			func(ctx context.Context, c *resourceClient, o *object) error {
				return c.waiting(ctx, o, operationTypeDelete, "Waiting", nil)
			},
			`{"status":{"lastError":null,"lastOperation":{"description":"Waiting","lastUpdateTime":"2000-01-01T00:00:00Z","progress":1,"state":"Processing","type":"Delete"}}}`,
			`{"lastOperation":{"description":"Waiting","lastUpdateTime":"2000-01-01T00:00:00Z","progress":1,"state":"Processing","type":"Delete"},"observedGeneration":2}`,
		},
		{
			"failure with a code",
			func(ctx context.Context, c *resourceClient, o *object) error {
				err := c.failure(ctx, o, operationTypeReconcile, fmt.Errorf("observing: %w", storage), nil)
				if !errors.Is(err, storage) {
					return fmt.Errorf("lost the cause: %w", err)
				}
				return nil
			},
			`{"status":{"lastError":{"codes":["ERR_INFRA_UNAUTHORIZED"],"description":"Could not reconcile BackupBucket seed: observing: access denied","lastUpdateTime":"2000-01-01T00:00:00Z","taskID":null},` +
				`"lastOperation":{"description":"Could not reconcile BackupBucket seed: observing: access denied","lastUpdateTime":"2000-01-01T00:00:00Z","progress":50,"state":"Error","type":"Reconcile"},"observedGeneration":3}}`,
			`{"lastError":{"codes":["ERR_INFRA_UNAUTHORIZED"],"description":"Could not reconcile BackupBucket seed: observing: access denied","lastUpdateTime":"2000-01-01T00:00:00Z"},` +
				`"lastOperation":{"description":"Could not reconcile BackupBucket seed: observing: access denied","lastUpdateTime":"2000-01-01T00:00:00Z","progress":50,"state":"Error","type":"Reconcile"},"observedGeneration":3}`,
		},
		{
			"failure without a code removes the codes",
			func(ctx context.Context, c *resourceClient, o *object) error {
				_ = c.failure(ctx, o, operationTypeDelete, errors.New("no"), nil)
				return nil
			},
			`{"status":{"lastError":{"codes":null,"description":"Could not delete BackupBucket seed: no","lastUpdateTime":"2000-01-01T00:00:00Z","taskID":null},` +
				`"lastOperation":{"description":"Could not delete BackupBucket seed: no","lastUpdateTime":"2000-01-01T00:00:00Z","progress":50,"state":"Error","type":"Delete"},"observedGeneration":3}}`,
			`{"lastError":{"description":"Could not delete BackupBucket seed: no","lastUpdateTime":"2000-01-01T00:00:00Z"},` +
				`"lastOperation":{"description":"Could not delete BackupBucket seed: no","lastUpdateTime":"2000-01-01T00:00:00Z","progress":50,"state":"Error","type":"Delete"},"observedGeneration":3}`,
		},
		{
			"failure with more fields",
			func(ctx context.Context, c *resourceClient, o *object) error {
				_ = c.failure(ctx, o, operationTypeCreate, errors.New("no"), map[string]any{"providerStatus": map[string]any{"a": 1}})
				return nil
			},
			`{"status":{"lastError":{"codes":null,"description":"Could not create BackupBucket seed: no","lastUpdateTime":"2000-01-01T00:00:00Z","taskID":null},` +
				`"lastOperation":{"description":"Could not create BackupBucket seed: no","lastUpdateTime":"2000-01-01T00:00:00Z","progress":50,"state":"Error","type":"Create"},"observedGeneration":3,"providerStatus":{"a":1}}}`,
			`{"lastError":{"description":"Could not create BackupBucket seed: no","lastUpdateTime":"2000-01-01T00:00:00Z"},` +
				`"lastOperation":{"description":"Could not create BackupBucket seed: no","lastUpdateTime":"2000-01-01T00:00:00Z","progress":50,"state":"Error","type":"Create"},"observedGeneration":3,"providerStatus":{"a":1}}`,
		},
		{
			"success clears lastError",
			func(ctx context.Context, c *resourceClient, o *object) error {
				return c.success(ctx, o, operationTypeRestore, "Done", map[string]any{"providerStatus": nil})
			},
			`{"status":{"lastError":null,"lastOperation":{"description":"Done","lastUpdateTime":"2000-01-01T00:00:00Z","progress":100,"state":"Succeeded","type":"Restore"},"observedGeneration":3,"providerStatus":null}}`,
			`{"lastOperation":{"description":"Done","lastUpdateTime":"2000-01-01T00:00:00Z","progress":100,"state":"Succeeded","type":"Restore"},"observedGeneration":3}`,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, client := statusTestClient(t, statusTestBucket)
				// The clock is between two seconds.
				time.Sleep(700 * time.Millisecond)
				if err := test.write(t.Context(), c, &decodeBucket(informersTestObject(t, statusTestBucket)).object); err != nil {
					t.Fatal(err)
				}
				want := []string{`status{"metadata":{"resourceVersion":"7"},` + strings.TrimPrefix(test.patch, "{")}
				if got := statusTestPatches(client); !slices.Equal(got, want) {
					t.Errorf("patches:\ngot  %s\nwant %s", got, want)
				}
				u, err := c.client.Get(t.Context(), "seed", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if status, _ := json.Marshal(u.Object["status"]); string(status) != test.status {
					t.Errorf("status:\ngot  %s\nwant %s", status, test.status)
				}
				if last := decodeBucket(u); last.LastError != nil && last.LastOperation.State == stateError && last.LastError.Description != last.LastOperation.Description {
					t.Errorf("lastError says %q, lastOperation %q", last.LastError.Description, last.LastOperation.Description)
				}
			})
		})
	}
}

func TestFailureDescription(t *testing.T) {
	for opType, want := range map[operationType]string{
		operationTypeCreate:    "Could not create BackupEntry a: x",
		operationTypeReconcile: "Could not reconcile BackupEntry a: x",
		operationTypeDelete:    "Could not delete BackupEntry a: x",
		operationTypeMigrate:   "Could not migrate BackupEntry a: x",
		operationTypeRestore:   "Could not restore BackupEntry a: x",
	} {
		if got := failureDescription(kindBackupEntry, "a", opType, errors.New("x")); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Waiters compare lastUpdateTime with the timestamp that the client wrote by its own
// clock, cut to seconds.
func TestLastUpdateTime(t *testing.T) {
	tests := []struct{ name, annotation, want string }{
		{"no annotation", "", statusTestNow},
		{"client behind", "1999-12-31T23:59:59.999Z", statusTestNow},
		{"client as fast", "2000-01-01T00:00:00.6Z", statusTestNow},
		{"client ahead", "2000-01-01T00:00:03.999999999Z", "2000-01-01T00:00:03Z"},
		{"client in another zone", "2000-01-01T02:00:03.5+02:00", "2000-01-01T00:00:03Z"},
		{"client far ahead", "2001-01-01T00:00:00Z", "2001-01-01T00:00:00Z"},
		{"no time", "now", statusTestNow},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := statusTestClient(t, statusTestBucket)
				o := &object{ObjectMeta: metav1.ObjectMeta{Name: "seed"}}
				if test.annotation != "" {
					o.Annotations = map[string]string{annotationTimestamp: test.annotation}
				}
				time.Sleep(500 * time.Millisecond)
				if err := c.success(t.Context(), o, operationTypeCreate, "Done", nil); err != nil {
					t.Fatal(err)
				}
				u, err := c.client.Get(t.Context(), "seed", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if got, _, _ := unstructured.NestedString(u.Object, "status", "lastOperation", "lastUpdateTime"); got != test.want {
					t.Errorf("got %s, want %s", got, test.want)
				}
			})
		})
	}
}

func TestUnchangedStatusIsNotWritten(t *testing.T) {
	const description = "Could not reconcile BackupBucket seed: no"
	processing := func(ctx context.Context, c *resourceClient, o *object) {
		_ = c.processing(ctx, o, operationTypeReconcile, "Working")
	}
	waiting := func(ctx context.Context, c *resourceClient, o *object) {
		_ = c.waiting(ctx, o, operationTypeReconcile, "Working", nil)
	}
	failing := func(ctx context.Context, c *resourceClient, o *object) {
		_ = c.failure(ctx, o, operationTypeReconcile, errors.New("no"), nil)
	}
	at := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	working := lastOperation{Description: "Working", LastUpdateTime: at, State: stateProcessing, Type: operationTypeReconcile}
	failed := lastOperation{Description: description, LastUpdateTime: at, State: stateError, Type: operationTypeReconcile}
	meta := metav1.ObjectMeta{Name: "seed", Generation: 3}
	since := func(timestamp string) metav1.ObjectMeta {
		m := meta
		m.Annotations = map[string]string{annotationTimestamp: timestamp}
		return m
	}
	with := func(last lastOperation, change func(*lastOperation)) *lastOperation {
		change(&last)
		return &last
	}
	tests := []struct {
		name  string
		o     object
		write func(context.Context, *resourceClient, *object)
		want  bool
	}{
		{"still working", object{ObjectMeta: meta, LastOperation: &working}, processing, false},
		{"still working after an error", object{ObjectMeta: meta, LastOperation: &working, LastError: &lastError{Description: "x"}}, processing, false},
		{"first", object{ObjectMeta: meta}, processing, true},
		{"another state", object{ObjectMeta: meta, LastOperation: with(working, func(l *lastOperation) { l.State = stateSucceeded })}, processing, true},
		{"another type", object{ObjectMeta: meta, LastOperation: with(working, func(l *lastOperation) { l.Type = operationTypeCreate })}, processing, true},
		{"another description", object{ObjectMeta: meta, LastOperation: with(working, func(l *lastOperation) { l.Description = "x" })}, processing, true},
		{"the client waits for a newer time", object{ObjectMeta: since("1999-01-01T00:00:01Z"), LastOperation: &working}, processing, true},
		{"the client waits for this time", object{ObjectMeta: since("1999-01-01T00:00:00.9Z"), LastOperation: &working}, processing, false},

		{"still waiting", object{ObjectMeta: meta, LastOperation: &working}, waiting, false},
		{"waiting after an error", object{ObjectMeta: meta, LastOperation: &working, LastError: &lastError{Description: "x"}}, waiting, true},

		{"the same failure", object{ObjectMeta: meta, ObservedGeneration: 3, LastOperation: &failed, LastError: &lastError{Description: description}}, failing, false},
		{"the same failure of a new spec", object{ObjectMeta: meta, ObservedGeneration: 2, LastOperation: &failed, LastError: &lastError{Description: description}}, failing, true},
		{"a failure without lastError", object{ObjectMeta: meta, ObservedGeneration: 3, LastOperation: &failed}, failing, true},
		{"a failure with another lastError", object{ObjectMeta: meta, ObservedGeneration: 3, LastOperation: &failed, LastError: &lastError{Description: "x"}}, failing, true},
		{"a failure with more fields", object{ObjectMeta: meta, ObservedGeneration: 3, LastOperation: &failed, LastError: &lastError{Description: description}},
			func(ctx context.Context, c *resourceClient, o *object) {
				_ = c.failure(ctx, o, operationTypeReconcile, errors.New("no"), map[string]any{"providerStatus": nil})
			}, true},

		{"success again", object{ObjectMeta: meta, ObservedGeneration: 3, LastOperation: &lastOperation{Description: "Done", LastUpdateTime: at, State: stateSucceeded, Type: operationTypeReconcile}},
			func(ctx context.Context, c *resourceClient, o *object) {
				_ = c.success(ctx, o, operationTypeReconcile, "Done", nil)
			}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, client := statusTestClient(t, statusTestBucket)
			test.write(t.Context(), c, &test.o)
			if got := len(client.Actions()) > 0; got != test.want {
				t.Errorf("written: got %t, want %t: %s", got, test.want, statusTestPatches(client))
			}
		})
	}
}

// statusTestContext records whether the contexts of patches had ended; fakes ignore them.
type statusTestContext struct {
	dynamic.ResourceInterface
	patches []error
}

func (c *statusTestContext) Patch(ctx context.Context, name string, patchType types.PatchType, data []byte, options metav1.PatchOptions, subresources ...string) (*unstructured.Unstructured, error) {
	c.patches = append(c.patches, ctx.Err())
	return c.ResourceInterface.Patch(ctx, name, patchType, data, options, subresources...)
}

func TestStatusWriteIsRobust(t *testing.T) {
	o := &decodeBucket(informersTestObject(t, statusTestBucket)).object
	t.Run("the pass ran out of time", func(t *testing.T) {
		c, _ := statusTestClient(t, statusTestBucket)
		recorder := &statusTestContext{ResourceInterface: c.client}
		c.client = recorder
		ctx, cancel := context.WithTimeout(t.Context(), 0)
		defer cancel()
		if err := c.failure(ctx, o, operationTypeCreate, ctx.Err(), nil); !errors.Is(err, context.DeadlineExceeded) || !slices.Equal(recorder.patches, []error{nil}) {
			t.Errorf("got %v, contexts of patches %v", err, recorder.patches)
		}
	})
	t.Run("the object is gone", func(t *testing.T) {
		c, _ := statusTestClient(t, "")
		if err := c.success(t.Context(), o, operationTypeDelete, "Done", nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("the write fails", func(t *testing.T) {
		c, client := statusTestClient(t, statusTestBucket)
		refused := apierrors.NewForbidden(bucketsGVR.GroupResource(), "seed", nil)
		client.PrependReactor("patch", "*", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, refused })
		cause := configErrorf("x")
		if err := c.failure(t.Context(), o, operationTypeCreate, cause, nil); !errors.Is(err, cause) || !errors.Is(err, refused) {
			t.Errorf("got %v, want both errors", err)
		}
	})
	t.Run("it is remembered", func(t *testing.T) {
		c, client := statusTestClient(t, `{metadata: {name: seed, resourceVersion: "7"}}`)
		client.PrependReactor("patch", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, informersTestObject(t, `{metadata: {name: seed, resourceVersion: "12"}}`), nil
		})
		if err := c.success(t.Context(), o, operationTypeCreate, "Done", nil); err != nil {
			t.Fatal(err)
		}
		if got := c.controller.written[cache.ObjectName{Name: "seed"}]; got != "12" {
			t.Errorf("remembered resourceVersion %q, want that of the answer", got)
		}
	})
	for name, cause := range map[string]error{
		"a conflict is no failure": fmt.Errorf("x: %w", apierrors.NewConflict(bucketsGVR.GroupResource(), "seed", errors.New("x"))),
		"a stop is no failure":     fmt.Errorf("x: %w", context.Canceled),
	} {
		t.Run(name, func(t *testing.T) {
			c, client := statusTestClient(t, statusTestBucket)
			if err := c.failure(t.Context(), o, operationTypeCreate, cause, nil); !errors.Is(err, cause) || len(client.Actions()) > 0 {
				t.Errorf("got %v, patches %s", err, statusTestPatches(client))
			}
		})
	}
}

func TestClaim(t *testing.T) {
	tests := []struct {
		name            string
		finalizers      []string
		operation       string
		removeOperation bool
		want            []string
	}{
		{"finalizer and annotation in one patch", nil, operationReconcile, true,
			[]string{`{"metadata":{"annotations":{"gardener.cloud/operation":null},"finalizers":["extensions.gardener.cloud/backupbucket"],"resourceVersion":"7"}}`}},
		{"finalizers of others are kept", []string{"other"}, "", true,
			[]string{`{"metadata":{"finalizers":["other","extensions.gardener.cloud/backupbucket"],"resourceVersion":"7"}}`}},
		{"annotation alone", []string{finalizerBackupBucket}, operationReconcile, true,
			[]string{`{"metadata":{"annotations":{"gardener.cloud/operation":null},"resourceVersion":"7"}}`}},
		{"the annotation is still needed", nil, operationRestore, false,
			[]string{`{"metadata":{"finalizers":["extensions.gardener.cloud/backupbucket"],"resourceVersion":"7"}}`}},
		{"nothing to do", []string{finalizerBackupBucket, "other"}, "", true, []string{}},
		{"nothing to do yet", []string{finalizerBackupBucket}, operationRestore, false, []string{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, client := statusTestClient(t, statusTestBucket)
			o := &object{ObjectMeta: metav1.ObjectMeta{Name: "seed", ResourceVersion: "7", Finalizers: test.finalizers}}
			if test.operation != "" {
				o.Annotations = map[string]string{annotationOperation: test.operation}
			}
			before := slices.Clone(test.finalizers)
			if err := c.claim(t.Context(), o, test.removeOperation); err != nil {
				t.Fatal(err)
			}
			if got := statusTestPatches(client); !slices.Equal(got, test.want) {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if len(client.Actions()) != len(test.want) {
				t.Errorf("requests: %v", client.Actions())
			}
			if !slices.Equal(o.Finalizers, before) {
				t.Error("changed the shared object")
			}
		})
	}
	t.Run("fails", func(t *testing.T) {
		c, _ := statusTestClient(t, "")
		if err := c.claim(t.Context(), &object{ObjectMeta: metav1.ObjectMeta{Name: "seed"}}, true); !apierrors.IsNotFound(err) {
			t.Errorf("got %v, want not found", err)
		}
	})
}

func TestRelease(t *testing.T) {
	// The cached object is older than what the API server holds.
	o := &object{ObjectMeta: metav1.ObjectMeta{Name: "seed", UID: "uid-1", ResourceVersion: "7", Finalizers: []string{finalizerBackupBucket}}}
	tests := []struct {
		name, live string
		want       []string
	}{
		{"after a fresh read", `{metadata: {name: seed, uid: uid-1, resourceVersion: "9", finalizers: [a, extensions.gardener.cloud/backupbucket, b]}}`,
			[]string{`{"metadata":{"finalizers":["a","b"],"resourceVersion":"9"}}`}},
		{"the last finalizer", `{metadata: {name: seed, uid: uid-1, resourceVersion: "9", finalizers: [extensions.gardener.cloud/backupbucket]}}`,
			[]string{`{"metadata":{"finalizers":[],"resourceVersion":"9"}}`}},
		{"released already", `{metadata: {name: seed, uid: uid-1, resourceVersion: "9", finalizers: [a]}}`, []string{}},
		{"another object of that name", `{metadata: {name: seed, uid: uid-2, resourceVersion: "9", finalizers: [extensions.gardener.cloud/backupbucket]}}`, []string{}},
		{"gone", "", []string{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, client := statusTestClient(t, test.live)
			if err := c.release(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			if got := statusTestPatches(client); !slices.Equal(got, test.want) {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}

	live := `{metadata: {name: seed, uid: uid-1, resourceVersion: "9", finalizers: [extensions.gardener.cloud/backupbucket]}}`
	react := func(client *dynamicfake.FakeDynamicClient, verb string, times int, err error) {
		client.PrependReactor(verb, "*", func(clienttesting.Action) (bool, runtime.Object, error) {
			times--
			return times >= 0, nil, err
		})
	}
	t.Run("conflicts are tried again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, client := statusTestClient(t, live)
			react(client, "patch", 2, apierrors.NewConflict(bucketsGVR.GroupResource(), "seed", errors.New("x")))
			if err := c.release(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			var verbs []string
			for _, action := range client.Actions() {
				verbs = append(verbs, action.GetVerb())
			}
			if want := []string{"get", "patch", "get", "patch", "get", "patch"}; !slices.Equal(verbs, want) {
				t.Errorf("got %q, want a fresh read before each try", verbs)
			}
		})
	})
	t.Run("gone meanwhile", func(t *testing.T) {
		c, client := statusTestClient(t, live)
		react(client, "patch", 1, apierrors.NewNotFound(bucketsGVR.GroupResource(), "seed"))
		if err := c.release(t.Context(), o); err != nil {
			t.Error(err)
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		c, client := statusTestClient(t, live)
		react(client, "get", 1, apierrors.NewInternalError(errors.New("x")))
		if err := c.release(t.Context(), o); !apierrors.IsInternalError(err) || len(statusTestPatches(client)) > 0 {
			t.Errorf("got %v, patches %s", err, statusTestPatches(client))
		}
	})
}

func TestMergeConditions(t *testing.T) {
	before, now := metav1.NewTime(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)), time.Date(2026, 1, 2, 3, 4, 5, 678, time.FixedZone("", 3600))
	at := metav1.NewTime(time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC))
	cond := func(conditionType, status, message string, transition, update metav1.Time) condition {
		return condition{Type: conditionType, Status: status, Reason: "R", Message: message, LastTransitionTime: transition, LastUpdateTime: update}
	}
	want := func(conditionType, status, message string) condition {
		return condition{Type: conditionType, Status: status, Reason: "R", Message: message}
	}
	other := condition{Type: "Other", Status: "Unknown", Codes: []string{"C"}, LastTransitionTime: before, LastUpdateTime: before}
	tests := []struct {
		name             string
		existing, wanted []condition
		merged           []condition
		changed          bool
	}{
		{"none", nil, nil, nil, false},
		{"the first", nil, []condition{want("A", "True", "m")}, []condition{cond("A", "True", "m", at, at)}, true},
		{"one more", []condition{other}, []condition{want("A", "True", "m")}, []condition{other, cond("A", "True", "m", at, at)}, true},
		{"the same", []condition{cond("A", "True", "m", before, before), other}, []condition{want("A", "True", "m")}, []condition{cond("A", "True", "m", before, before), other}, false},
		{"another message is no transition", []condition{cond("A", "True", "m", before, before), other}, []condition{want("A", "True", "n")}, []condition{cond("A", "True", "n", before, at), other}, true},
		{"another status is a transition", []condition{other, cond("A", "True", "m", before, before)}, []condition{want("A", "False", "m")}, []condition{other, cond("A", "False", "m", at, at)}, true},
		{"one of two", []condition{cond("A", "True", "m", before, before), cond("B", "True", "m", before, before)}, []condition{want("A", "True", "m"), want("B", "False", "m")},
			[]condition{cond("A", "True", "m", before, before), cond("B", "False", "m", at, at)}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			existing := slices.Clone(test.existing)
			merged, changed := mergeConditions(test.existing, now, test.wanted...)
			if !reflect.DeepEqual(merged, test.merged) || changed != test.changed {
				t.Errorf("got  %+v, %t\nwant %+v, %t", merged, changed, test.merged, test.changed)
			}
			if !reflect.DeepEqual(test.existing, existing) {
				t.Error("changed the shared conditions")
			}
		})
	}
	t.Run("another reason", func(t *testing.T) {
		wanted := want("A", "True", "m")
		wanted.Reason = "Q"
		if merged, changed := mergeConditions([]condition{cond("A", "True", "m", before, before)}, now, wanted); !changed || merged[0].Reason != "Q" {
			t.Errorf("got %+v, %t", merged, changed)
		}
	})
	t.Run("as the API writes it", func(t *testing.T) {
		data, err := json.Marshal(cond("A", "True", "", at, at))
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(data, &fields); err != nil {
			t.Fatal(err)
		}
		// The CRD requires all six, an empty message too.
		if got, want := slices.Sorted(maps.Keys(fields)), []string{"lastTransitionTime", "lastUpdateTime", "message", "reason", "status", "type"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// The delete event of an object may overtake the answer to the write that let it go.
func TestReleaseIsNotRemembered(t *testing.T) {
	c, _ := statusTestClient(t, `{metadata: {name: seed, uid: uid-1, resourceVersion: "9", deletionTimestamp: "2026-01-02T03:04:05Z", finalizers: [extensions.gardener.cloud/backupbucket]}}`)
	if err := c.release(t.Context(), &object{ObjectMeta: metav1.ObjectMeta{Name: "seed", UID: "uid-1"}}); err != nil {
		t.Fatal(err)
	}
	if len(c.controller.written) > 0 {
		t.Errorf("remembers %v", c.controller.written)
	}
}

func TestFailureDescriptionIsBounded(t *testing.T) {
	_, err := policyTestParse("s3", []byte(policyTestConfig(`"retentionPeriod": "`+strings.Repeat("x", 1<<20)+`"`)))
	if got := failureDescription(kindBackupBucket, "seed", operationTypeCreate, err); len(got) > 4096 {
		t.Errorf("%d bytes", len(got))
	}
}
