package main

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"
)

// The simulation's model of an informer: a cache that follows one resource of an API server
// as the scheduler wants. Rules: the changes of one object arrive in their order, those of
// different objects in any; a relist shows only what is there now, so that a deletion and a
// creation under one name arrive as one update; handlers run at once, after the cache has
// changed. Its lists are sorted, since those of client-go's cache come in random order.

type simInformer struct {
	cache.SharedIndexInformer
	api      *simAPI
	resource string
	decode   func(*unstructured.Unstructured) any
	indexer  simIndexer
	handlers []cache.ResourceEventHandler
	seen     int // events of the API server
	pending  []simEvent
}

// simIndexer is a cache.Indexer whose lists are sorted.
type simIndexer struct{ cache.Indexer }

func sortCached(objects []any) []any {
	slices.SortFunc(objects, func(a, b any) int {
		return cmp.Compare(a.(commonObject).common().Name, b.(commonObject).common().Name)
	})
	return objects
}

func (i simIndexer) List() []any { return sortCached(i.Indexer.List()) }

func (i simIndexer) ByIndex(name, value string) ([]any, error) {
	objects, err := i.Indexer.ByIndex(name, value)
	return sortCached(objects), err
}

func newSimInformer[T any](api *simAPI, resource string, decode func(*unstructured.Unstructured) T, indexers cache.Indexers) *simInformer {
	return &simInformer{api: api, resource: resource, decode: func(u *unstructured.Unstructured) any { return decode(u) },
		indexer: simIndexer{cache.NewIndexer(cache.MetaNamespaceKeyFunc, indexers)}}
}

// GetIndexer implements cache.SharedIndexInformer.
func (i *simInformer) GetIndexer() cache.Indexer { return i.indexer }

// AddEventHandler implements cache.SharedIndexInformer.
func (i *simInformer) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	i.handlers = append(i.handlers, handler)
	return nil, nil
}

func (i *simInformer) object(o simObject) any { return i.decode(simMeta(simCopy(o))) }

// relist shows what is there now.
func (i *simInformer) relist(initial bool) {
	i.seen, i.pending = len(i.api.events), nil
	names := i.api.names(i.resource)
	for _, old := range i.indexer.List() {
		if name := old.(commonObject).common().Name; !slices.Contains(names, name) {
			_ = i.indexer.Delete(old)
			for _, h := range i.handlers {
				h.OnDelete(cache.DeletedFinalStateUnknown{Key: name, Obj: old})
			}
		}
	}
	for _, name := range names {
		i.show(i.api.read(i.resource, "", name), initial)
	}
}

func (i *simInformer) show(o simObject, initial bool) {
	new := i.object(o)
	old, exists, _ := i.indexer.GetByKey(simMeta(o).GetName())
	_ = i.indexer.Update(new)
	for _, h := range i.handlers {
		if exists {
			h.OnUpdate(old, new)
		} else {
			h.OnAdd(new, initial)
		}
	}
}

// fetch takes over what has happened since.
func (i *simInformer) fetch() {
	for _, e := range i.api.events[i.seen:] {
		if e.resource == i.resource {
			i.pending = append(i.pending, e)
		}
	}
	i.seen = len(i.api.events)
}

// deliver shows the earliest event of the object of the nth pending one.
func (i *simInformer) deliver(n int) {
	first := slices.IndexFunc(i.pending, func(e simEvent) bool { return e.name == i.pending[n].name })
	e := i.pending[first]
	i.pending = slices.Delete(i.pending, first, first+1)
	if e.object != nil {
		i.show(e.object, false)
		return
	}
	if old, exists, _ := i.indexer.GetByKey(e.name); exists {
		_ = i.indexer.Delete(old)
		for _, h := range i.handlers {
			h.OnDelete(old)
		}
	}
}

// deliverAll brings the cache up to date, event by event.
func (i *simInformer) deliverAll() {
	for i.fetch(); len(i.pending) > 0; i.fetch() {
		i.deliver(0)
	}
}
