// Gardener's status contract: lastOperation, lastError, conditions, finalizers and the operation annotation, and live reads
// of a resource. Patches are small merge patches that leave alone what others write; a write that would change nothing
// but a time is left out. A status is written even if its pass has run out of time.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
)

type operationState string

const (
	stateProcessing operationState = "Processing"
	stateSucceeded  operationState = "Succeeded"
	stateError      operationState = "Error"
)

type operationType string

const (
	operationTypeCreate    operationType = "Create"
	operationTypeReconcile operationType = "Reconcile"
	operationTypeDelete    operationType = "Delete"
	operationTypeMigrate   operationType = "Migrate"
	operationTypeRestore   operationType = "Restore"
)

// lastOperation is status.lastOperation; its progress is only written.
type lastOperation struct {
	Description    string
	LastUpdateTime time.Time
	State          operationState
	Type           operationType
}

// lastError is status.lastError; its codes are only written.
type lastError struct {
	Description string
}

// condition is one of status.conditions
// (gardener/gardener pkg/apis/core/v1beta1/types_common.go).
type condition struct {
	Type               string      `json:"type"`
	Status             string      `json:"status"`
	LastTransitionTime metav1.Time `json:"lastTransitionTime"`
	LastUpdateTime     metav1.Time `json:"lastUpdateTime"`
	Reason             string      `json:"reason"`
	Message            string      `json:"message"`
	Codes              []string    `json:"codes,omitempty"`
}

// neverReady says that the creation of an object has never succeeded.
func (o *object) neverReady() bool {
	return o.LastOperation == nil || o.LastOperation.Type == operationTypeCreate && !o.succeeded()
}

// computeOperationType follows gardener/gardener pkg/api/core/v1beta1/helper/common.go.
func computeOperationType(o *object) operationType {
	last := o.LastOperation
	unfinished := func(t operationType) bool {
		return last != nil && last.Type == t && last.State != stateSucceeded
	}
	switch {
	case o.operation() == operationMigrate:
		return operationTypeMigrate
	case o.DeletionTimestamp != nil:
		return operationTypeDelete
	case o.operation() == operationRestore:
		return operationTypeRestore
	case last == nil, unfinished(operationTypeCreate):
		return operationTypeCreate
	case unfinished(operationTypeMigrate):
		return operationTypeMigrate
	case unfinished(operationTypeRestore):
		return operationTypeRestore
	default:
		return operationTypeReconcile
	}
}

// resourceClient reads and writes the objects of one resource. It keeps to the status
// contract of gardener/gardener extensions/pkg/controller/status.go, and tells the
// controller of each write.
type resourceClient struct {
	client     dynamic.ResourceInterface
	kind       string
	finalizer  string
	controller *controller
}

const fieldManager = "bucketwarden"

// writeTimeout bounds a status write; it must happen even if the pass ran out of time.
const writeTimeout = 15 * time.Second

// patch makes a merge patch. o is the pass's own copy: its resourceVersion and annotations
// follow, so that what the client asks for meanwhile is seen. The patch never goes to another
// object of that name, which is as if there were none: the API server knows no other
// precondition for it than the resourceVersion. What others change meanwhile is a conflict only
// for a patch that brings a resourceVersion itself; any other costs a read and a second try then.
func (c *resourceClient) patch(ctx context.Context, o *object, patch map[string]any,
	subresources ...string) (*unstructured.Unstructured, error) {
	meta, _ := patch["metadata"].(map[string]any)
	if meta["resourceVersion"] != nil || o.ResourceVersion == "" {
		return c.patchOnce(ctx, o, patch, subresources...)
	}
	locked, version := maps.Clone(patch), o.ResourceVersion
	var u *unstructured.Unstructured
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() (err error) {
		lock := map[string]any{"resourceVersion": version}
		maps.Copy(lock, meta)
		locked["metadata"] = lock
		if u, err = c.patchOnce(ctx, o, locked, subresources...); !apierrors.IsConflict(err) {
			return err
		}
		now, liveErr := c.live(ctx, o)
		switch {
		case liveErr != nil:
			return liveErr
		case now == nil:
			return fmt.Errorf("patching %s %s: %w", c.kind, o.Name, apierrors.NewNotFound(schema.GroupResource{Resource: c.kind}, o.Name))
		}
		version = now.GetResourceVersion()
		return err
	})
	return u, err
}

// patchOnce is one attempt of a patch.
func (c *resourceClient) patchOnce(ctx context.Context, o *object, patch map[string]any,
	subresources ...string) (*unstructured.Unstructured, error) {
	data, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("encoding a patch of %s %s: %w", c.kind, o.Name, err)
	}
	u, err := c.client.Patch(ctx, o.Name, types.MergePatchType, data, metav1.PatchOptions{FieldManager: fieldManager}, subresources...)
	if err != nil {
		return nil, fmt.Errorf("patching %s %s: %w", c.kind, o.Name, err)
	}
	o.ResourceVersion, o.Annotations = u.GetResourceVersion(), keptAnnotations(u)
	// One that this write let go may be forgotten already.
	if u.GetDeletionTimestamp() == nil || len(u.GetFinalizers()) > 0 {
		c.controller.wrote(cache.MetaObjectToName(o), u.GetResourceVersion())
	}
	return u, nil
}

// claim adds the finalizer and removes the operation annotation if asked to, in one
// patch with optimistic lock; no request if neither is needed. The same patch notes which
// secret is going to be held.
func (c *resourceClient) claim(ctx context.Context, o *object, removeOperation bool) error {
	meta := map[string]any{}
	if !o.hasFinalizer(c.finalizer) {
		meta["finalizers"] = append(slices.Clone(o.Finalizers), c.finalizer)
	}
	if removeOperation && o.operation() != "" {
		meta["annotations"] = map[string]any{annotationOperation: nil}
	}
	if len(meta) == 0 {
		return nil
	}
	if o.Annotations[annotationSecret] == "" && checkSecretRef(o.SecretRef) == nil {
		annotations, _ := meta["annotations"].(map[string]any)
		if annotations == nil {
			annotations = map[string]any{}
		}
		annotations[annotationSecret] = o.SecretRef.String()
		meta["annotations"] = annotations
	}
	meta["resourceVersion"] = o.ResourceVersion
	_, err := c.patch(ctx, o, map[string]any{"metadata": meta})
	return err
}

// live reads the object from the API server; nil if it is gone or another one by now.
func (c *resourceClient) live(ctx context.Context, o *object) (*unstructured.Unstructured, error) {
	u, err := c.client.Get(ctx, o.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s %s: %w", c.kind, o.Name, err)
	}
	if u.GetUID() != o.UID {
		return nil, nil
	}
	return u, nil
}

// release removes our finalizer after a fresh read.
func (c *resourceClient) release(ctx context.Context, o *object) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		u, err := c.live(ctx, o)
		if err != nil || u == nil {
			return err
		}
		finalizers := u.GetFinalizers()
		kept := slices.DeleteFunc(slices.Clone(finalizers), func(f string) bool { return f == c.finalizer })
		if len(kept) == len(finalizers) {
			return nil
		}
		_, err = c.patch(ctx, o, map[string]any{"metadata": map[string]any{
			"finalizers": kept, "resourceVersion": u.GetResourceVersion()}})
		return ignoreNotFound(err)
	})
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// statusUpdate is one write of the status. The zero values of optional fields leave
// what is there.
type statusUpdate struct {
	state       operationState
	opType      operationType
	description string
	// err makes it an Error.
	err error
	// clearError removes lastError without success, for work that merely waits.
	clearError bool
	// extra are further fields of the status.
	extra map[string]any
}

// progress is what Gardener's own extensions report for a state.
var progress = map[operationState]int64{stateProcessing: 1, stateError: 50, stateSucceeded: 100}

// writeStatus writes the status with a merge patch, whatever others change meanwhile. A write that
// would change nothing but a time that nobody waits for is left out.
func (c *resourceClient) writeStatus(ctx context.Context, o *object, u statusUpdate) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	now := operationTime(o, time.Now())
	if u.state != stateSucceeded && len(u.extra) == 0 && c.unchanged(o, u) {
		return nil
	}
	status := map[string]any{
		"lastOperation": map[string]any{
			"type":           u.opType,
			"state":          u.state,
			"progress":       progress[u.state],
			"description":    u.description,
			"lastUpdateTime": now.Format(time.RFC3339),
		},
	}
	switch {
	case u.err != nil:
		last := map[string]any{"description": u.description, "lastUpdateTime": now.Format(time.RFC3339), "codes": nil, "taskID": nil}
		if code := codeOf(u.err); code != "" {
			last["codes"] = []errorCode{code}
		}
		status["lastError"] = last
		status["observedGeneration"] = o.Generation
	case u.state == stateSucceeded:
		status["lastError"] = nil
		status["observedGeneration"] = o.Generation
	case u.clearError:
		status["lastError"] = nil
	}
	maps.Copy(status, u.extra)
	o.statusWritten = true
	_, err := c.patch(ctx, o, map[string]any{"status": status}, "status")
	// An object that is gone has no status to keep.
	return ignoreNotFound(err)
}

func (c *resourceClient) unchanged(o *object, u statusUpdate) bool {
	last := o.LastOperation
	if o.statusWritten || last == nil || last.State != u.state || last.Type != u.opType {
		return false
	}
	description := u.description
	var down *endpointDownError
	if errors.As(u.err, &down) && strings.Contains(last.Description, down.reason) {
		// That it was not asked again for the same reason is nothing new.
		description = last.Description
	}
	if last.Description != description {
		return false
	}
	if u.err != nil && (o.ObservedGeneration != o.Generation || o.LastError == nil || o.LastError.Description != description) {
		return false
	}
	if u.clearError && o.LastError != nil {
		return false
	}
	return !last.LastUpdateTime.Before(clientTime(o))
}

// clientTime is the client's timestamp annotation in second precision; zero if there
// is none.
func clientTime(o *object) time.Time {
	t, err := time.Parse(time.RFC3339Nano, o.Annotations[annotationTimestamp])
	if err != nil {
		return time.Time{}
	}
	return t.Truncate(time.Second)
}

// operationTime is the lastUpdateTime of a write at now. gardenlet takes an object for
// unhealthy, and triggers it again and again, while its lastUpdateTime lies before the
// timestamp annotation, which a client with a faster clock has set
// (gardener/gardener pkg/utils/kubernetes/health/extensions.go).
func operationTime(o *object, now time.Time) time.Time {
	now = now.UTC().Truncate(time.Second)
	if t := clientTime(o); t.After(now) {
		return t.UTC()
	}
	return now
}

func (c *resourceClient) processing(ctx context.Context, o *object, t operationType, description string) error {
	return c.writeStatus(ctx, o, statusUpdate{state: stateProcessing, opType: t, description: description})
}

// waiting is Processing for a known reason that is no error.
func (c *resourceClient) waiting(ctx context.Context, o *object, t operationType, description string, extra map[string]any) error {
	return c.writeStatus(ctx, o, statusUpdate{state: stateProcessing, opType: t, description: description, clearError: true, extra: extra})
}

func (c *resourceClient) success(ctx context.Context, o *object, t operationType, description string, extra map[string]any) error {
	return c.writeStatus(ctx, o, statusUpdate{state: stateSucceeded, opType: t, description: description, extra: extra})
}

var failedVerb = map[operationType]string{
	operationTypeCreate:    "Could not create",
	operationTypeReconcile: "Could not reconcile",
	operationTypeDelete:    "Could not delete",
	operationTypeMigrate:   "Could not migrate",
	operationTypeRestore:   "Could not restore",
}

func failureDescription(kind, name string, t operationType, err error) string {
	return shortened(fmt.Sprintf("%s %s %s: %v", failedVerb[t], kind, name, err))
}

// failure writes the Error status and returns err for the queue, as it is if that worked.
// A conflict with another writer is none: the pass is simply made again on fresh data. Being
// throttled is none before it has lasted for throttleGrace.
func (c *resourceClient) failure(ctx context.Context, o *object, t operationType, err error, extra map[string]any) error {
	if apierrors.IsConflict(err) || errors.Is(err, context.Canceled) || goesOn(err) {
		return err
	}
	if isThrottled(err) && c.controller.patient(cache.MetaObjectToName(o)) {
		u := statusUpdate{state: stateProcessing, opType: t, description: "The store asks for fewer requests, it is asked again later",
			extra: extra}
		if writeErr := c.writeStatus(ctx, o, u); writeErr != nil {
			return errors.Join(err, writeErr)
		}
		return err
	}
	description := failureDescription(c.kind, o.Name, t, err)
	if writeErr := c.writeStatus(ctx, o, statusUpdate{state: stateError, opType: t, description: description, err: err,
		extra: extra}); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	return err
}

// findCondition returns the condition of a type.
func findCondition(conditions []condition, of string) (condition, bool) {
	if i := slices.IndexFunc(conditions, func(c condition) bool { return c.Type == of }); i >= 0 {
		return conditions[i], true
	}
	return condition{}, false
}

// conditionStatus is the status of the condition of a type, empty if there is none.
func conditionStatus(conditions []condition, of string) string {
	c, _ := findCondition(conditions, of)
	return c.Status
}

// mergeConditions replaces the conditions of the same type and keeps all others.
// Times change only with content; changed is false if nothing did.
func mergeConditions(existing []condition, now time.Time, wanted ...condition) (merged []condition, changed bool) {
	merged = slices.Clone(existing)
	at := metav1.NewTime(now.UTC().Truncate(time.Second))
	for _, want := range wanted {
		want.LastTransitionTime, want.LastUpdateTime = at, at
		i := slices.IndexFunc(merged, func(c condition) bool { return c.Type == want.Type })
		if i < 0 {
			merged, changed = append(merged, want), true
			continue
		}
		have := &merged[i]
		if have.Status == want.Status && have.Reason == want.Reason && have.Message == want.Message {
			continue
		}
		if have.Status == want.Status {
			want.LastTransitionTime = have.LastTransitionTime
		}
		*have, changed = want, true
	}
	return merged, changed
}

// checkUnused makes sure, by a live read, that no BackupEntry but the one that is left out
// owns the prefix of entry in a bucket: both "x" and "source-x" may
// (control-plane migration, gardener/gardener docs/operations/control_plane_migration.md).
func (c *resourceClient) checkUnused(ctx context.Context, bucket, entry, except string) error {
	for _, name := range []string{entry, sourcePrefix + entry} {
		if name == except {
			continue
		}
		u, err := c.client.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading BackupEntry %s: %w", name, err)
		}
		e := decodeEntry(u)
		if e.BucketName != bucket {
			continue
		}
		// One that migrates goes, but leaves its objects to another seed.
		migrates := e.operation() == operationMigrate || e.LastOperation != nil && e.LastOperation.Type == operationTypeMigrate
		if e.DeletionTimestamp == nil || migrates {
			return &prefixInUseError{entry: name, uid: e.UID}
		}
	}
	return nil
}
