package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"bucketwarden/test/env"
)

// state is an object after one change; its object is the last one if it is gone.
type state struct {
	*unstructured.Unstructured
	gone bool
	// revision orders the changes of all objects of the API server.
	revision int64
	// seen is when the change was seen.
	seen time.Time
}

func (s state) String() string {
	if s.gone {
		return fmt.Sprintf("%d: gone", s.revision)
	}
	operation, ok := s.GetAnnotations()[annotationOperation]
	if !ok {
		operation = "none"
	}
	return fmt.Sprintf("%d: finalizers %v, operation annotation %s, %s/%s/%d, lastError %t, observed generation %d of %d", s.revision, s.GetFinalizers(), operation,
		s.opType(), s.state(), num(s.Unstructured, "status", "lastOperation", "progress"), has(s.Unstructured, "status", "lastError"),
		num(s.Unstructured, "status", "observedGeneration"), s.GetGeneration())
}

func (s state) state() string  { return str(s.Unstructured, "status", "lastOperation", "state") }
func (s state) opType() string { return str(s.Unstructured, "status", "lastOperation", "type") }

func (s state) holds(finalizer string) bool { return slices.Contains(s.GetFinalizers(), finalizer) }

// recorder keeps every state of an object from when it was made.
type recorder struct {
	what   string
	mu     sync.Mutex
	states []state
}

// record starts to watch one object, which need not exist yet.
func record(t *testing.T, resource schema.GroupVersionResource, namespace, name string) *recorder {
	t.Helper()
	r := &recorder{what: resource.Resource + " " + name}
	client := kube.Dynamic.Resource(resource).Namespace(namespace)
	selector := metav1.SingleObject(metav1.ObjectMeta{Name: name}).FieldSelector
	list, err := client.List(t.Context(), metav1.ListOptions{FieldSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	watcher, err := client.Watch(t.Context(), metav1.ListOptions{FieldSelector: selector, ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for event := range watcher.ResultChan() {
			if o, ok := event.Object.(*unstructured.Unstructured); ok {
				r.add(o, event.Type == watch.Deleted)
			}
		}
	})
	t.Cleanup(func() {
		watcher.Stop()
		wg.Wait()
		if t.Failed() {
			t.Log(r)
		}
	})
	return r
}

func (r *recorder) add(o *unstructured.Unstructured, gone bool) {
	revision, err := strconv.ParseInt(o.GetResourceVersion(), 10, 64)
	if err != nil {
		revision = -1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states = append(r.states, state{Unstructured: o, gone: gone, revision: revision, seen: time.Now()})
}

func (r *recorder) String() string {
	text := "states of " + r.what + ":"
	for _, s := range r.seen() {
		text += "\n\t" + s.String()
	}
	return text
}

// seen returns the states so far.
func (r *recorder) seen() []state {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.states)
}

// await waits until a state was seen that satisfies the predicate, and returns the
// first one.
func (r *recorder) await(t *testing.T, what string, is func(state) bool) state {
	t.Helper()
	var found state
	err := env.Eventually(t.Context(), timeout, r.what+" "+what, func(context.Context) error {
		states := r.seen()
		i := slices.IndexFunc(states, is)
		if i < 0 {
			return fmt.Errorf("%d states, none of them so", len(states))
		}
		found = states[i]
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// awaitAfter is await for what must come after another state.
func (r *recorder) awaitAfter(t *testing.T, after int64, what string, is func(state) bool) state {
	t.Helper()
	return r.await(t, what, func(s state) bool { return s.revision > after && is(s) })
}
