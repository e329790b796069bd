package main

import (
	stdjson "encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
)

// The simulation's API server, one of each cluster: a plain model without locks, goroutines
// or time of its own. Rules: one resourceVersion for all resources; a write that changes
// nothing makes none; spec changes and the beginning of a deletion are generations; the
// status is written through its subresource alone; an object that is being deleted takes no
// new finalizers and goes with its last one. Who calls it, when, and with which fault is not
// decided here but in sim_sched_test.go.

type simObject = map[string]any

// simEvent is a change as a watch tells it; object is nil when it is gone.
type simEvent struct {
	resource, name string
	object         simObject
}

type simAPI struct {
	name    string
	version int
	objects map[string]simObject
	events  []simEvent
	// changed is told of every change: old or new is nil for one that was made or is gone.
	changed func(resource string, old, new simObject)
	// pages are the lists that were begun, by their token.
	pages map[string][]simObject
}

func newSimAPI(name string) *simAPI {
	return &simAPI{name: name, objects: map[string]simObject{}, pages: map[string][]simObject{}}
}

func simKey(resource, namespace, name string) string { return resource + " " + namespace + "/" + name }

func simMeta(o simObject) *unstructured.Unstructured { return &unstructured.Unstructured{Object: o} }

func simCopy(o simObject) simObject {
	if o == nil {
		return nil
	}
	return runtime.DeepCopyJSON(o)
}

func simResource(resource string) schema.GroupResource {
	if resource == resourceBackupBuckets || resource == resourceBackupEntries {
		return extensionsGV.WithResource(resource).GroupResource()
	}
	return schema.GroupResource{Resource: resource}
}

// read is an object as it is; nil if there is none. It must not be changed.
func (a *simAPI) read(resource, namespace, name string) simObject {
	return a.objects[simKey(resource, namespace, name)]
}

// names of the objects of a resource, sorted.
func (a *simAPI) names(resource string) []string {
	var names []string
	for _, key := range slices.Sorted(maps.Keys(a.objects)) {
		if rest, ok := strings.CutPrefix(key, resource+" "); ok {
			names = append(names, strings.TrimPrefix(rest, "/"))
		}
	}
	return names
}

func (a *simAPI) get(resource, namespace, name string) (simObject, error) {
	o := a.read(resource, namespace, name)
	if o == nil {
		return nil, apierrors.NewNotFound(simResource(resource), name)
	}
	return simCopy(o), nil
}

func (a *simAPI) create(resource string, o simObject) (simObject, error) {
	o = simCopy(o)
	m := simMeta(o)
	if namespace := m.GetNamespace(); namespace != "" {
		ns := a.read("namespaces", "", namespace)
		if ns == nil {
			return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, namespace)
		}
		if simMeta(ns).GetDeletionTimestamp() != nil {
			err := apierrors.NewForbidden(simResource(resource), m.GetName(), fmt.Errorf("unable to create new content in namespace %s because it is being terminated", namespace))
			err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
			return nil, err
		}
	}
	if a.read(resource, m.GetNamespace(), m.GetName()) != nil {
		return nil, apierrors.NewAlreadyExists(simResource(resource), m.GetName())
	}
	if resource == resourceBackupBuckets || resource == resourceBackupEntries {
		delete(o, "status")
	}
	m.SetGeneration(1)
	a.version++
	m.SetUID(types.UID(fmt.Sprintf("%s-%d", a.name, a.version)))
	m.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
	a.commit(resource, nil, o)
	return simCopy(o), nil
}

// commit stores new in place of old, or removes old.
func (a *simAPI) commit(resource string, old, new simObject) {
	m := simMeta(new)
	if new == nil {
		m = simMeta(old)
	}
	key := simKey(resource, m.GetNamespace(), m.GetName())
	if new != nil && old != nil && m.GetDeletionTimestamp() != nil && len(m.GetFinalizers()) == 0 {
		new = nil
	}
	if old == nil || new == nil {
		a.version++
	} else {
		if simJSON(old) == simJSON(new) {
			return
		}
		a.version++
	}
	if new == nil {
		delete(a.objects, key)
	} else {
		m.SetResourceVersion(strconv.Itoa(a.version))
		a.objects[key] = new
	}
	a.events = append(a.events, simEvent{resource: resource, name: m.GetName(), object: new})
	if a.changed != nil {
		a.changed(resource, old, new)
	}
}

func simJSON(v any) string {
	data, err := stdjson.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// simPreconditions is the optimistic lock.
func simPreconditions(resource string, o simObject, uid, version string) error {
	m := simMeta(o)
	if uid != "" && uid != string(m.GetUID()) || version != "" && version != m.GetResourceVersion() {
		return apierrors.NewConflict(simResource(resource), m.GetName(), fmt.Errorf("is %s at %s, not %s at %s", m.GetUID(), m.GetResourceVersion(), uid, version))
	}
	return nil
}

func (a *simAPI) delete(resource, namespace, name string, p *metav1.Preconditions) error {
	o := a.read(resource, namespace, name)
	if o == nil {
		return apierrors.NewNotFound(simResource(resource), name)
	}
	if p != nil {
		var uid, version string
		if p.UID != nil {
			uid = string(*p.UID)
		}
		if p.ResourceVersion != nil {
			version = *p.ResourceVersion
		}
		if err := simPreconditions(resource, o, uid, version); err != nil {
			return err
		}
	}
	if len(simMeta(o).GetFinalizers()) == 0 {
		a.commit(resource, o, nil)
		return nil
	}
	if simMeta(o).GetDeletionTimestamp() != nil {
		return nil
	}
	marked := simCopy(o)
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	simMeta(marked).SetDeletionTimestamp(&now)
	simMeta(marked).SetGeneration(simMeta(o).GetGeneration() + 1)
	a.commit(resource, o, marked)
	return nil
}

// edit changes an object as another client would, through every validation but the lock.
func (a *simAPI) edit(resource, namespace, name string, change func(*unstructured.Unstructured)) bool {
	o := a.read(resource, namespace, name)
	if o == nil {
		return false
	}
	changed := simCopy(o)
	change(simMeta(changed))
	return a.store(resource, o, changed, "") == nil
}

// store validates a change of an object and carries it out.
func (a *simAPI) store(resource string, old, new simObject, subresource string) error {
	custom := resource == resourceBackupBuckets || resource == resourceBackupEntries
	om, nm := simMeta(old), simMeta(new)
	if subresource == "status" {
		status := new["status"]
		new = simCopy(old)
		if new["status"] = status; status == nil {
			delete(new, "status")
		}
		a.commit(resource, old, new)
		return nil
	}
	if custom {
		if old["status"] == nil {
			delete(new, "status")
		} else {
			new["status"] = runtime.DeepCopyJSONValue(old["status"])
		}
	}
	nm.SetUID(om.GetUID())
	nm.SetCreationTimestamp(om.GetCreationTimestamp())
	nm.SetDeletionTimestamp(om.GetDeletionTimestamp())
	nm.SetGeneration(om.GetGeneration())
	nm.SetResourceVersion(om.GetResourceVersion())
	if om.GetDeletionTimestamp() != nil {
		for _, f := range nm.GetFinalizers() {
			if !slices.Contains(om.GetFinalizers(), f) {
				return apierrors.NewInvalid(schema.GroupKind{Kind: resource}, om.GetName(), nil)
			}
		}
	}
	if custom && simJSON(old["spec"]) != simJSON(new["spec"]) {
		nm.SetGeneration(om.GetGeneration() + 1)
	}
	a.commit(resource, old, new)
	return nil
}

func (a *simAPI) patch(resource, namespace, name string, kind types.PatchType, data []byte, subresources ...string) (simObject, error) {
	o := a.read(resource, namespace, name)
	if o == nil {
		return nil, apierrors.NewNotFound(simResource(resource), name)
	}
	var patch simObject
	if err := json.Unmarshal(data, &patch); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	pm := simMeta(patch)
	if err := simPreconditions(resource, o, string(pm.GetUID()), pm.GetResourceVersion()); err != nil {
		return nil, err
	}
	if kind == types.StrategicMergePatchType {
		finalizers := simMeta(o).GetFinalizers()
		for _, f := range pm.GetFinalizers() {
			if !slices.Contains(finalizers, f) {
				finalizers = append(finalizers, f)
			}
		}
		pm.SetFinalizers(finalizers)
	}
	changed := simMerge(simCopy(o), patch).(simObject)
	if err := a.store(resource, o, changed, strings.Join(subresources, "/")); err != nil {
		return nil, err
	}
	if now := a.read(resource, namespace, name); now != nil {
		return simCopy(now), nil
	}
	return changed, nil
}

// simMerge is RFC 7386.
func simMerge(target, patch any) any {
	p, ok := patch.(simObject)
	if !ok {
		return patch
	}
	t, ok := target.(simObject)
	if !ok {
		t = simObject{}
	}
	for key, value := range p {
		if value == nil {
			delete(t, key)
		} else if merged := simMerge(t[key], value); merged != nil {
			t[key] = merged
		}
	}
	return t
}

// simPage is the most that a page of a list has, so that there are more than one.
const simPage = 2

func (a *simAPI) list(resource string, options metav1.ListOptions) ([]simObject, string, error) {
	var rest []simObject
	if options.Continue != "" {
		var ok bool
		if rest, ok = a.pages[options.Continue]; !ok {
			return nil, "", apierrors.NewResourceExpired("the provided continue parameter is too old")
		}
	} else {
		for _, name := range a.names(resource) {
			rest = append(rest, simCopy(a.read(resource, "", name)))
		}
	}
	if options.Limit == 0 || len(rest) <= simPage {
		return rest, "", nil
	}
	token := fmt.Sprintf("%d-%d", a.version, len(a.pages))
	a.pages[token] = rest[simPage:]
	return rest[:simPage], token, nil
}
