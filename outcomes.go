// How passes end, and what follows from it for what the daemon tells of itself: the objects that keep failing, whether the API
// server refuses all that passes ask of it, and whether workers take keys at all. A conflict with another writer, and
// a store that asks for fewer requests, are no failures: the pass is made again. A store that is down is a failure of the
// objects that need it, and never one of the daemon.

package main

import (
	"errors"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
)

const (
	// failingAfter is how many passes in a row over an object have to fail until it counts as failing.
	failingAfter = 3

	// refusedAfter is how long the API server has to refuse all passes of a kind until the daemon cannot work.
	refusedAfter = 2 * time.Minute

	// stuckAfter is how long workers may take no key though keys wait. A pass has reconcileTimeout, so they hang for good.
	stuckAfter = 10 * time.Minute
)

// outcomes is how the passes of one controller end. It is safe for concurrent use.
type outcomes struct {
	resource string
	metrics  *metrics
	// taken and storesTaken count the keys that workers took from the two queues.
	taken, storesTaken atomic.Uint64

	mu sync.Mutex
	// failures is how many passes in a row over an object have failed; objects without are missing.
	failures map[cache.ObjectName]int
	failing  int
	// refusedSince is since when the API server has refused what each pass asked; zero if the last one got through.
	refusedSince time.Time
	refusal      error
}

func newOutcomes(resource string, m *metrics) *outcomes {
	return &outcomes{resource: resource, metrics: m, failures: map[cache.ObjectName]int{}}
}

// outcomeOf is the label of a pass that has ended.
func (c *controller) outcomeOf(key cache.ObjectName, again time.Duration, err error, panicked bool) string {
	switch {
	case panicked:
		return outcomePanic
	case err != nil && !isConflict(err) && !(isThrottled(err) && c.patient(key)):
		return outcomeError
	case err != nil, again > 0:
		return outcomeAgain
	default:
		return outcomeSuccess
	}
}

// isConflict says that all that went wrong is that another writer was faster.
func isConflict(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			if !isConflict(err) {
				return false
			}
		}
		return true
	}
	return apierrors.IsConflict(err)
}

// note counts a pass that has ended.
func (o *outcomes) note(key cache.ObjectName, outcome string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err == nil && outcome != outcomePanic:
		o.set(key, 0)
	case outcome == outcomeError, outcome == outcomePanic:
		o.set(key, o.failures[key]+1)
	}
	if !isRefused(err) {
		o.refusedSince = time.Time{}
		return
	}
	if o.refusal = err; o.refusedSince.IsZero() {
		o.refusedSince = time.Now()
	}
}

// isRefused says that a pass ended because the API server did not do what it was asked. What it says of a single object,
// that it is gone or was changed meanwhile, is an answer.
func isRefused(err error) bool {
	var store *storeError
	var status apierrors.APIStatus
	var request *url.Error
	switch {
	case errors.As(err, &store):
		return false
	case errors.As(err, &status):
		return !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsInvalid(err)
	default:
		return errors.As(err, &request)
	}
}

// forget drops an object that is gone.
func (o *outcomes) forget(key cache.ObjectName) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.set(key, 0)
}

// set notes how many passes in a row have failed; mu is held.
func (o *outcomes) set(key cache.ObjectName, failures int) {
	if o.failures[key] >= failingAfter {
		o.failing--
	}
	if failures >= failingAfter {
		o.failing++
	}
	if o.failures[key] = failures; failures == 0 {
		delete(o.failures, key)
	}
	o.metrics.failingObjects.WithLabelValues(o.resource).Set(float64(o.failing))
}

// refused says that no pass gets through to the API server for too long, nil if some do or there is nothing to do.
func (o *outcomes) refused(now time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failing == 0 || o.refusedSince.IsZero() || now.Sub(o.refusedSince) < refusedAfter {
		return nil
	}
	return fmt.Errorf("the API server has refused all passes over %s since %s: %w", o.resource,
		o.refusedSince.UTC().Format(time.RFC3339), o.refusal)
}

// stall is what was last seen of a queue whose workers may hang.
type stall struct {
	taken uint64
	since time.Time
}

// look says that keys wait in a queue and no worker has taken one for too long, nil if not.
func (s *stall) look(resource string, waiting int, taken uint64, now time.Time) error {
	if waiting == 0 {
		s.since = time.Time{}
		return nil
	}
	if taken != s.taken || s.since.IsZero() {
		s.taken, s.since = taken, now
	}
	if now.Sub(s.since) < stuckAfter {
		return nil
	}
	return fmt.Errorf("the workers of %s hang: %d keys wait and none has been taken since %s", resource, waiting,
		s.since.UTC().Format(time.RFC3339))
}
