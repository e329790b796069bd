// The one worker loop. A controller has a queue of keys, workers, and what it remembers of an object between passes: that
// an event asked for a full pass, our own last write until the cache shows it, and when a waiting deletion is due. A pass
// that has done what needs only the API server goes on in a second queue, whose workers may wait for a store. No two
// workers ever have the same key. A pass ends as done, again after a time, parked, or failed; only a failure without a
// time is retried with backoff. A panic ends the pass and not the worker.

package main

import (
	"context"
	"errors"
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

	// storeWorkers is how many times more workers there are that may wait for a store than passes of a kind may be at one
	// endpoint: so many endpoints can begin to hang at once before all workers wait for them, until they are known to be down.
	storeWorkers = 8

	// throttleGrace is how long being throttled is no failure of an object.
	throttleGrace = 10 * time.Minute
)

// reconcileFunc makes one pass over an object. Its outcomes: done (0, nil), again
// after a time (d, nil), failed and retried with backoff (0, err), failed and retried
// after a time (d, err). wanted says that an event asked for the pass which the object
// itself does not show.
type reconcileFunc func(ctx context.Context, key cache.ObjectName, wanted bool) (time.Duration, error)

// storePart is the rest of a pass, which needs a store.
type storePart struct {
	then func(context.Context) (time.Duration, error)
	// interruptible says that news about the object end it, since they make it pointless.
	interruptible bool
	start         time.Time
}

func (*storePart) Error() string { return "the pass goes on in the queue of stores" }

// running is a pass that a worker makes just now.
type running struct {
	atStore, interruptible, interrupted bool
	cancel                              context.CancelFunc
	// again says that the key came up meanwhile, gone that its object went.
	again, gone bool
}

// interrupt ends a pass that news about its object make pointless.
func (r *running) interrupt() {
	if r.interruptible && !r.interrupted {
		r.interrupted = true
		r.cancel()
	}
}

// controller is the worker loop of one resource, and what it remembers of objects
// between passes. No two workers ever work on one key at a time.
type controller struct {
	resource  string
	reconcile reconcileFunc
	// onGone is called when an object was deleted or is no longer ours.
	onGone  func(name string)
	metrics *metrics
	queue   workqueue.TypedRateLimitingInterface[cache.ObjectName]
	limiter workqueue.TypedRateLimiter[cache.ObjectName]
	// stores is the queue of passes that need a store; nil if the one queue serves both.
	stores workqueue.TypedDelayingInterface[cache.ObjectName]
	// endpoints is where passes find places; nil if there is no limit.
	endpoints *endpoints
	// leading says why this replica must not work any more; nil if it always may.
	leading func() error

	mu sync.Mutex
	// wanted are keys that an event asked a full pass for which the object itself
	// does not show (a changed secret, a changed namespace).
	wanted map[cache.ObjectName]struct{}
	// written is the resourceVersion of our last write, until the cache shows it.
	written map[cache.ObjectName]string
	// due is when a waiting deletion is tried next.
	due map[cache.ObjectName]time.Time
	// throttled is since when the store of an object asks for fewer requests.
	throttled map[cache.ObjectName]time.Time
	// parts are what the queue of stores has to do, running what workers do.
	parts   map[cache.ObjectName]*storePart
	running map[cache.ObjectName]*running
	// retries are when keys that wait for a place, or for an endpoint, come up by themselves, if nobody wakes them before.
	retries map[cache.ObjectName]*time.Timer
	// outcomes is how passes end.
	outcomes *outcomes
}

func newController(resource string, m *metrics) *controller {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[cache.ObjectName](backoffBase, backoffMax)
	return &controller{
		resource: resource,
		metrics:  m,
		limiter:  limiter,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(limiter,
			workqueue.TypedRateLimitingQueueConfig[cache.ObjectName]{Name: resource, MetricsProvider: m.queue}),
		wanted:    map[cache.ObjectName]struct{}{},
		written:   map[cache.ObjectName]string{},
		due:       map[cache.ObjectName]time.Time{},
		throttled: map[cache.ObjectName]time.Time{},
		parts:     map[cache.ObjectName]*storePart{},
		running:   map[cache.ObjectName]*running{},
		retries:   map[cache.ObjectName]*time.Timer{},
		outcomes:  newOutcomes(resource, m),
	}
}

// splitStores gives what needs a store a queue and workers of its own.
func (c *controller) splitStores() {
	c.stores = workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[cache.ObjectName]{
		Name: c.resource + "-stores", MetricsProvider: c.metrics.queue})
}

// atStore goes on with a pass on a worker that may wait for a store. What it returns ends this part of the pass.
func (c *controller) atStore(ctx context.Context, interruptible bool, then func(context.Context) (time.Duration, error),
) (time.Duration, error) {
	p := passOf(ctx)
	if c.stores == nil || p == nil || p.atStore {
		return then(ctx)
	}
	return 0, &storePart{then: then, interruptible: interruptible}
}

// goesOn says that a pass has not ended with err, but goes on elsewhere or later.
func goesOn(err error) bool {
	return errors.As(err, new(*storePart)) || errors.As(err, new(*parkedError))
}

func (c *controller) id(key cache.ObjectName) passKey { return passKey{c.resource, key} }

// patient says that an object whose store asks for fewer requests has not failed yet.
func (c *controller) patient(key cache.ObjectName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	since, ok := c.throttled[key]
	if !ok {
		since = time.Now()
		c.throttled[key] = since
	}
	return time.Since(since) < throttleGrace
}

// enqueue adds a key because of an event; its backoff starts anew.
func (c *controller) enqueue(key cache.ObjectName) {
	c.endpoints.awake(c.id(key))
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
	delete(c.throttled, key)
	delete(c.parts, key)
	c.stopRetry(key)
	if at := c.running[key]; at != nil {
		at.gone = true
		at.interrupt()
	}
	c.mu.Unlock()
	c.outcomes.forget(key)
	c.endpoints.awake(c.id(key))
	c.queue.Forget(key)
	if c.onGone != nil {
		c.onGone(key.Name)
	}
}

// run works until ctx ends, then lets running passes finish within stopGrace. The end of
// passes cuts them off at once. There are more workers where they may wait for a store.
func (c *controller) run(ctx, passes context.Context, workers int) {
	workCtx, cancel := context.WithCancel(passes)
	defer cancel()
	var wg sync.WaitGroup
	work := func(workers int, process func(context.Context) bool) {
		for range workers {
			wg.Go(func() {
				for ctx.Err() == nil && process(workCtx) {
				}
			})
		}
	}
	if c.stores != nil {
		// Of two kinds: marks, and deletions.
		work(2*storeWorkers*workers, c.processStore)
	} else if c.endpoints != nil {
		workers *= storeWorkers
	}
	work(workers, c.processNext)
	<-ctx.Done()
	defer time.AfterFunc(stopGrace, cancel).Stop()
	c.shutDown()
	wg.Wait()
}

// shutDown ends the workers once their passes have ended.
func (c *controller) shutDown() {
	c.queue.ShutDown()
	if c.stores != nil {
		c.stores.ShutDown()
	}
}

// processNext takes one key through one pass; false when the queue has shut down.
func (c *controller) processNext(ctx context.Context) bool {
	key, shutdown := c.queue.Get()
	if shutdown {
		return false
	}
	defer c.queue.Done(key)
	c.outcomes.taken.Add(1)
	if wait := c.endpoints.sleep(c.id(key)); wait > 0 {
		c.retryIn(key, wait)
		return true
	}
	c.process(ctx, key, &storePart{start: time.Now(), then: func(ctx context.Context) (again time.Duration, err error) {
		wanted := c.takeWanted(key)
		done := false
		defer func() {
			if wanted && (!done || err != nil && !errors.As(err, new(*storePart)) || again == staleRetry) {
				c.want(key)
			}
		}()
		again, err = c.reconcile(ctx, key, wanted)
		done = true
		return again, err
	}}, false)
	return true
}

// processStore takes one key through the rest of a pass that needs a store; false when the queue has shut down.
func (c *controller) processStore(ctx context.Context) bool {
	key, shutdown := c.stores.Get()
	if shutdown {
		return false
	}
	defer c.stores.Done(key)
	c.outcomes.storesTaken.Add(1)
	if wait := c.endpoints.sleep(c.id(key)); wait > 0 {
		c.stores.AddAfter(key, wait)
		return true
	}
	c.mu.Lock()
	part := c.parts[key]
	c.mu.Unlock()
	if part != nil {
		c.process(ctx, key, part, true)
	}
	return true
}

// begin claims a key for a worker. What the queue of stores has for it is taken by that, and dropped by a pass from the
// start. While another worker has the key, it comes up again after that has ended, which news may hasten.
func (c *controller) begin(key cache.ObjectName, now *running) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := c.running[key]; at != nil {
		if !now.atStore {
			at.again = true
			at.interrupt()
		}
		return false
	}
	if part := c.parts[key]; part != nil {
		delete(c.parts, key)
		if !now.atStore && part.interruptible {
			c.wanted[key] = struct{}{}
		}
	}
	c.running[key] = now
	c.stopRetry(key)
	return true
}

// retryIn makes a key that was not worked on come up by itself, if nothing makes it come up before. A queue cannot take back
// what it was told to add later, so that a key which was woken would come up once more for nothing. The caller has the key.
func (c *controller) retryIn(key cache.ObjectName, after time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopRetry(key)
	c.retries[key] = time.AfterFunc(after, func() { c.queue.Add(key) })
}

// stopRetry takes back what retryIn has begun. The caller has the lock.
func (c *controller) stopRetry(key cache.ObjectName) {
	if retry := c.retries[key]; retry != nil {
		retry.Stop()
		delete(c.retries, key)
	}
}

// end lets go of a key, and puts a part back if there is one and nothing new.
func (c *controller) end(key cache.ObjectName, was *running, part *storePart) {
	c.mu.Lock()
	delete(c.running, key)
	again := was.again
	switch {
	case was.gone:
	case part != nil && !again:
		c.parts[key] = part
	case part != nil || was.interrupted:
		c.wanted[key] = struct{}{}
	}
	c.mu.Unlock()
	if again {
		c.queue.Add(key)
	}
}

// wakeUp makes a parked pass again.
func (c *controller) wakeUp(key cache.ObjectName) {
	c.mu.Lock()
	part := c.parts[key]
	c.mu.Unlock()
	if part != nil {
		c.stores.Add(key)
		return
	}
	c.queue.Add(key)
}

// process makes a part of a pass and sees to what follows.
func (c *controller) process(ctx context.Context, key cache.ObjectName, part *storePart, atStore bool) {
	logger := klog.FromContext(ctx).WithValues("resource", c.resource, "name", key.Name)
	ctx, cancel := context.WithTimeout(klog.NewContext(ctx, logger), reconcileTimeout)
	defer cancel()
	now := &running{atStore: atStore, interruptible: part.interruptible && atStore, cancel: cancel}
	if !c.begin(key, now) {
		return
	}
	p := &pass{id: c.id(key), endpoints: c.endpoints, atStore: atStore, leading: c.leading, wake: func() { c.wakeUp(key) }}
	again, err, panicked := c.safely(context.WithValue(ctx, passContext{}, p), part.then)
	c.endpoints.leave(p)

	var next *storePart
	var parked *parkedError
	switch {
	case panicked:
	case errors.As(err, &next):
		next.start = part.start
		c.end(key, now, next)
		c.stores.Add(key)
		return
	case errors.As(err, &parked):
		logger.V(2).Info("Parked", "reason", err.Error())
		if !atStore {
			c.retryIn(key, parkedRetry)
			c.end(key, now, nil)
			return
		}
		c.end(key, now, part)
		c.stores.AddAfter(key, parkedRetry)
		return
	}
	c.end(key, now, nil)
	if now.interrupted && err != nil {
		return
	}
	outcome := c.outcomeOf(key, again, err, panicked)
	switch {
	case panicked:
		c.queue.AddRateLimited(key)
	case err != nil:
		after := retryAfter(err)
		switch {
		case again > 0:
			c.queue.Forget(key)
			c.queue.AddAfter(key, max(again, after))
		case after > 0:
			c.queue.AddAfter(key, max(spread(after), c.limiter.When(key)))
		default:
			c.queue.AddRateLimited(key)
		}
		switch {
		case ctx.Err() != nil && context.Cause(ctx) != context.DeadlineExceeded:
		case outcome == outcomeError:
			logger.Error(err, "Reconcile failed", "failures", c.queue.NumRequeues(key))
		default:
			logger.V(2).Info("Reconcile comes again", "reason", err.Error())
		}
	case again > 0:
		c.queue.Forget(key)
		c.queue.AddAfter(key, again)
	default:
		c.queue.Forget(key)
	}
	if !isThrottled(err) {
		c.mu.Lock()
		delete(c.throttled, key)
		c.mu.Unlock()
	}
	if err == nil {
		c.endpoints.awake(p.id)
	}
	c.outcomes.note(key, outcome, err)
	c.metrics.reconcileDuration.WithLabelValues(c.resource, outcome).Observe(time.Since(part.start).Seconds())
}

// safely keeps a panic of one pass from ending the worker.
func (c *controller) safely(ctx context.Context, then func(context.Context) (time.Duration, error)) (
	again time.Duration, err error, panicked bool) {
	defer func() {
		if r := recover(); r != nil {
			panicked = true
			c.metrics.panics.WithLabelValues(c.resource).Inc()
			klog.FromContext(ctx).Error(fmt.Errorf("panic: %v", r), "Reconcile panicked", "stack", string(debug.Stack()))
		}
	}()
	if c.leading != nil {
		if err := c.leading(); err != nil {
			return 0, err, false
		}
	}
	again, err = then(ctx)
	return again, err, false
}
