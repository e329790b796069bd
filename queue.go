// The one worker loop. A controller has a queue of keys, workers, and what it remembers of an object between passes: that
// an event asked for a full pass, our own last write until the cache shows it, and when a waiting deletion is due. No two
// workers ever have the same key. A pass ends as done, again after a time, or failed; only a failure without a time is
// retried with backoff. A panic ends the pass and not the worker.

package main

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

const (
	// Backoff of a failing item. Clouds throttle and recover in seconds to minutes;
	// client-go's default starts at 5 ms and would only add to the load.
	backoffBase = time.Second
	backoffMax  = 5 * time.Minute

	// reconcileTimeout bounds one pass, as the default of Gardener's own extensions
	// (gardener/gardener pkg/controllerutils/miscellaneous.go).
	reconcileTimeout = 3 * time.Minute

	// stopGrace is how long running passes may go on after SIGTERM; a pod has 30 s, of
	// which a last status write may need writeTimeout.
	stopGrace = 12 * time.Second

	// staleRetry is how soon an item whose cached object lags behind our own last
	// write is looked at again; watches lag by milliseconds.
	staleRetry = 50 * time.Millisecond
)

// reconcileFunc makes one pass over an object. Its outcomes: done (0, nil), again
// after a time (d, nil), failed and retried with backoff (0, err), failed and retried
// after a time (d, err). wanted says that an event asked for the pass which the object
// itself does not show.
type reconcileFunc func(ctx context.Context, key cache.ObjectName, wanted bool) (time.Duration, error)

// controller is the worker loop of one resource, and what it remembers of objects
// between passes. No two workers ever work on one key at a time.
type controller struct {
	resource  string
	reconcile reconcileFunc
	// onGone is called when an object was deleted or is no longer ours.
	onGone  func(name string)
	metrics *metrics
	queue   workqueue.TypedRateLimitingInterface[cache.ObjectName]

	mu sync.Mutex
	// wanted are keys that an event asked a full pass for which the object itself
	// does not show (a changed secret, a changed namespace).
	wanted map[cache.ObjectName]struct{}
	// written is the resourceVersion of our last write, until the cache shows it.
	written map[cache.ObjectName]string
	// due is when a waiting deletion is tried next.
	due map[cache.ObjectName]time.Time
}

func newController(resource string, m *metrics) *controller {
	return &controller{
		resource: resource,
		metrics:  m,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[cache.ObjectName](backoffBase, backoffMax),
			workqueue.TypedRateLimitingQueueConfig[cache.ObjectName]{Name: resource, MetricsProvider: m.queue}),
		wanted:  map[cache.ObjectName]struct{}{},
		written: map[cache.ObjectName]string{},
		due:     map[cache.ObjectName]time.Time{},
	}
}

// enqueue adds a key because of an event; its backoff starts anew.
func (c *controller) enqueue(key cache.ObjectName) {
	c.queue.Forget(key)
	c.queue.Add(key)
}

// want marks a key for a full pass.
func (c *controller) want(key cache.ObjectName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted[key] = struct{}{}
}

// takeWanted removes the mark; a pass that fails sets it again.
func (c *controller) takeWanted(key cache.ObjectName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.wanted[key]
	delete(c.wanted, key)
	return ok
}

// wrote remembers the resourceVersion that one of our own writes produced.
func (c *controller) wrote(key cache.ObjectName, resourceVersion string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written[key] = resourceVersion
}

// stale says that the cached object is older than our own last write, which it forgets
// once the cache shows it. Working on a stale object would repeat what was just done.
func (c *controller) stale(o *object) bool {
	key := cache.MetaObjectToName(o)
	c.mu.Lock()
	defer c.mu.Unlock()
	written, ok := c.written[key]
	if !ok {
		return false
	}
	if order, err := resourceversion.CompareResourceVersion(o.ResourceVersion, written); err == nil && order < 0 {
		return true
	}
	delete(c.written, key)
	return false
}

// waitUntil makes passes over a waiting deletion free of requests until t.
func (c *controller) waitUntil(key cache.ObjectName, t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due[key] = t
}

// notDue returns how long a waiting deletion still has to wait, 0 if it is due.
func (c *controller) notDue(key cache.ObjectName, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.due[key].Sub(now))
}

// gone forgets everything about a key. A pass calls it too when it finds no object: it
// may have been deleted during the pass before, which then left traces.
func (c *controller) gone(key cache.ObjectName) {
	c.mu.Lock()
	delete(c.wanted, key)
	delete(c.written, key)
	delete(c.due, key)
	c.mu.Unlock()
	c.queue.Forget(key)
	if c.onGone != nil {
		c.onGone(key.Name)
	}
}

// run works until ctx ends, then lets running passes finish within stopGrace. The end of
// passes cuts them off at once.
func (c *controller) run(ctx, passes context.Context, workers int) {
	workCtx, cancel := context.WithCancel(passes)
	defer cancel()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil && c.processNext(workCtx) {
			}
		})
	}
	<-ctx.Done()
	defer time.AfterFunc(stopGrace, cancel).Stop()
	c.queue.ShutDown()
	wg.Wait()
}

// processNext takes one key through one pass; false when the queue has shut down.
func (c *controller) processNext(ctx context.Context) bool {
	key, shutdown := c.queue.Get()
	if shutdown {
		return false
	}
	defer c.queue.Done(key)

	logger := klog.FromContext(ctx).WithValues("resource", c.resource, "name", key.Name)
	ctx, cancel := context.WithTimeout(klog.NewContext(ctx, logger), reconcileTimeout)
	defer cancel()

	start := time.Now()
	again, err, panicked := c.safely(ctx, key)
	outcome := outcomeSuccess
	switch {
	case panicked:
		outcome = outcomePanic
		c.queue.AddRateLimited(key)
	case err != nil:
		outcome = outcomeError
		if again > 0 {
			c.queue.Forget(key)
			c.queue.AddAfter(key, again)
		} else {
			c.queue.AddRateLimited(key)
		}
		if ctx.Err() == nil || context.Cause(ctx) == context.DeadlineExceeded {
			logger.Error(err, "Reconcile failed", "failures", c.queue.NumRequeues(key))
		}
	case again > 0:
		outcome = outcomeAgain
		c.queue.Forget(key)
		c.queue.AddAfter(key, again)
	default:
		c.queue.Forget(key)
	}
	c.metrics.reconcileDuration.WithLabelValues(c.resource, outcome).Observe(time.Since(start).Seconds())
	return true
}

// safely keeps a panic of one pass from ending the worker.
func (c *controller) safely(ctx context.Context, key cache.ObjectName) (again time.Duration, err error, panicked bool) {
	defer func() {
		if r := recover(); r != nil {
			panicked = true
			c.metrics.panics.WithLabelValues(c.resource).Inc()
			klog.FromContext(ctx).Error(fmt.Errorf("panic: %v", r), "Reconcile panicked", "stack", string(debug.Stack()))
		}
	}()
	wanted := c.takeWanted(key)
	done := false
	defer func() {
		if wanted && (!done || err != nil || again == staleRetry) {
			c.want(key)
		}
	}()
	again, err = c.reconcile(ctx, key, wanted)
	done = true
	return again, err, false
}
