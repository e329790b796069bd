// What an informer hears from the API server. A feed stands between an informer and its client, and notes whether lists and
// watches get through. A quiet watch is healthy, and one that ends is begun anew; only what fails counts, and a list that has
// no answer. What fails is told once in the log with what to do about it, and once when it works again. The reflector of
// the informer goes on trying, at the latest every minute.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// deafAfter is how long lists or watches have to fail until the daemon cannot work. API servers restart within a minute.
const deafAfter = 2 * time.Minute

// feed notes how the list and the watch of one informer fare. It is safe for concurrent use.
type feed struct {
	resource schema.GroupResource

	mu sync.Mutex
	// listing is since when no list has got through, watching since when no watch; zero while they do.
	listing, watching time.Time
	// err is the last failure.
	err error
	// told is what the log says of it, empty if it says nothing.
	told string
}

// listFunc and watchFunc are requests of a client.
type (
	listFunc  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watchFunc func(context.Context, metav1.ListOptions) (watch.Interface, error)
)

// newFeed makes the informer of a resource, which lists and watches with a client, and the feed that notes how it fares.
func newFeed(resource schema.GroupResource, client any, list listFunc, begin watchFunc, example runtime.Object,
	indexers cache.Indexers) (cache.SharedIndexInformer, *feed, error) {
	f := &feed{resource: resource}
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return f.list(ctx, options, list)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return f.watch(ctx, options, begin)
		},
	}, client), example, 0, indexers)
	// The feed has told it already.
	return informer, f, informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		klog.FromContext(ctx).V(4).Info("List or watch ended", "resource", resource.String(), "err", err)
	})
}

func (f *feed) list(ctx context.Context, options metav1.ListOptions, list listFunc) (runtime.Object, error) {
	f.begin()
	o, err := list(ctx, options)
	if err != nil {
		f.failed(ctx, &f.listing, err)
		return nil, err
	}
	f.worked(ctx, &f.listing)
	return o, nil
}

// watch also serves a list that comes as the beginning of a watch, which is done once a bookmark says so. If that fails, the
// reflector lists.
func (f *feed) watch(ctx context.Context, options metav1.ListOptions, begin watchFunc) (watch.Interface, error) {
	if options.SendInitialEvents == nil || !*options.SendInitialEvents {
		w, err := begin(ctx, options)
		if err != nil {
			f.failed(ctx, &f.watching, err)
			return nil, err
		}
		f.worked(ctx, &f.watching)
		return w, nil
	}
	f.begin()
	w, err := begin(ctx, options)
	if err != nil {
		// It is invalid where an API server does not know it.
		if !apierrors.IsInvalid(err) {
			f.failed(ctx, &f.watching, err)
		}
		return nil, err
	}
	return watch.Filter(w, func(event watch.Event) (watch.Event, bool) {
		if event.Type == watch.Bookmark {
			if o, err := meta.Accessor(event.Object); err == nil && o.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
				f.worked(ctx, &f.listing, &f.watching)
			}
		}
		return event, true
	}), nil
}

// begin notes that a list is being made.
func (f *feed) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.listing.IsZero() {
		f.listing = time.Now()
	}
}

func (f *feed) failed(ctx context.Context, since *time.Time, err error) {
	if ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if since.IsZero() {
		*since = time.Now()
	}
	f.err = err
	if advice := f.advice(err); advice != f.told {
		f.told = advice
		klog.FromContext(ctx).Error(err, "Lists or watches do not get through", "resource", f.resource.String(), "do", advice)
	}
}

func (f *feed) worked(ctx context.Context, since ...*time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, at := range since {
		*at = time.Time{}
	}
	if f.told != "" && f.listing.IsZero() && f.watching.IsZero() {
		f.told, f.err = "", nil
		klog.FromContext(ctx).Info("Lists and watches get through again", "resource", f.resource.String())
	}
}

// advice is what to do about a failure.
func (f *feed) advice(err error) string {
	switch {
	case apierrors.IsNotFound(err) && f.resource.Group != "":
		return fmt.Sprintf("create the CustomResourceDefinition %s, which Gardener installs on every seed; no restart is needed",
			f.resource)
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("allow the ServiceAccount to list and watch %s, as the ClusterRole of the Helm chart does; no restart is needed",
			f.resource)
	case apierrors.IsUnauthorized(err):
		return "the API server does not accept the credentials: correct the kubeconfig or the ServiceAccount"
	default:
		return "it is tried again by itself"
	}
}

// since is since when lists or watches do not get through, zero if they do.
func (f *feed) since() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.listing.IsZero() || !f.watching.IsZero() && f.watching.Before(f.listing) {
		return f.watching
	}
	return f.listing
}

// deaf says that lists or watches have failed for too long, nil if not.
func (f *feed) deaf(now time.Time) error {
	since := f.since()
	if since.IsZero() || now.Sub(since) < deafAfter {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Errorf("%s cannot be listed or watched since %s: %w", f.resource, since.UTC().Format(time.RFC3339),
		cmp.Or(f.err, errors.New("the API server does not answer")))
}
