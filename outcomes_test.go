package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
)

// What a pass ends with, as its label, and what the object counts as then.
func TestFailingObjects(t *testing.T) {
	failed := errors.New("failed")
	conflict := apierrors.NewConflict(bucketsGVR.GroupResource(), "a", errors.New("changed"))
	throttled := &storeError{code: codeRateLimitsExceeded, err: errors.New("slow down")}
	type pass struct {
		again   time.Duration
		err     error
		panics  bool
		outcome string
		failing float64
	}
	synctest.Test(t, func(t *testing.T) {
		var script []pass
		r := startQueueTest(t, 1, func(context.Context, int, bool) (time.Duration, error) {
			if script[0].panics {
				panic("at the disco")
			}
			return script[0].again, script[0].err
		})
		if got := queueTestSeries(t, r.metrics, "bucketwarden_failing_objects", "resource", resourceBackupBuckets); got != 0 {
			t.Errorf("at the start: %v", got)
		}
		outcomes := map[string]float64{}
		for i, p := range []pass{
			{err: failed, outcome: outcomeError},
			{err: failed, outcome: outcomeError},
			{outcome: outcomeSuccess},
			{err: failed, outcome: outcomeError},
			{panics: true, outcome: outcomePanic},
			{again: time.Hour, outcome: outcomeAgain},
			{err: failed, outcome: outcomeError},
			{err: fmt.Errorf("writing: %w", conflict), outcome: outcomeAgain},
			{err: failed, outcome: outcomeError},
			{err: throttled, outcome: outcomeAgain},
			{err: failed, again: time.Hour, outcome: outcomeError, failing: 1},
			{err: conflict, outcome: outcomeAgain, failing: 1},
			{err: errors.Join(conflict, failed), outcome: outcomeError, failing: 1},
			{panics: true, outcome: outcomePanic, failing: 1},
			{again: time.Minute, outcome: outcomeAgain},
			{panics: true, outcome: outcomePanic},
			{panics: true, outcome: outcomePanic},
			{panics: true, outcome: outcomePanic, failing: 1},
			{outcome: outcomeSuccess},
		} {
			script = []pass{p}
			r.enqueue(queueTestKey)
			synctest.Wait()
			outcomes[p.outcome]++
			r.expectOutcomes(outcomes)
			if got := queueTestSeries(t, r.metrics, "bucketwarden_failing_objects", "resource", resourceBackupBuckets); got != p.failing {
				t.Errorf("after pass %d: %v objects fail, want %v", i, got, p.failing)
			}
		}

		// Being throttled is a failure once it has lasted.
		script = []pass{{err: throttled}}
		r.enqueue(queueTestKey)
		failing := func() float64 {
			synctest.Wait()
			return queueTestSeries(t, r.metrics, "bucketwarden_failing_objects", "resource", resourceBackupBuckets)
		}
		time.Sleep(throttleGrace - time.Second)
		if failing() != 0 {
			t.Error("within its grace")
		}
		time.Sleep(4 * backoffMax)
		if failing() != 1 {
			t.Error("after its grace")
		}

		// An object that goes away counts no more, also if its last pass ends later; others do.
		script = []pass{{err: failed}}
		other := cache.ObjectName{Name: "b"}
		for range failingAfter {
			r.enqueue(other)
			synctest.Wait()
		}
		if failing() != 2 {
			t.Errorf("%v objects fail", failing())
		}
		r.gone(queueTestKey)
		if failing() != 1 {
			t.Errorf("%v objects fail", failing())
		}
		r.stop()
		<-r.ended
	})
}

func TestAnObjectThatGoesDuringItsPassDoesNotFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *queueTestRun
		r = startQueueTest(t, 1, func(_ context.Context, n int, _ bool) (time.Duration, error) {
			if n == failingAfter {
				r.gone(queueTestKey)
			}
			return 0, errors.New("failed")
		})
		for range failingAfter + 1 {
			r.enqueue(queueTestKey)
			synctest.Wait()
		}
		if got := queueTestSeries(t, r.metrics, "bucketwarden_failing_objects", "resource", resourceBackupBuckets); got != 0 {
			t.Errorf("%v objects fail", got)
		}
		r.stop()
		<-r.ended
	})
}

// An API server that refuses what every pass asks is trouble of the daemon; a store, or one object, is not.
func TestRefusedPasses(t *testing.T) {
	forbidden := apierrors.NewForbidden(bucketsGVR.GroupResource(), "a", errors.New("no"))
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"forbidden":           {fmt.Errorf("writing the status: %w", forbidden), true},
		"cannot be reached":   {fmt.Errorf("reading: %w", feedTestRefused), true},
		"internal error":      {apierrors.NewInternalError(errors.New("no")), true},
		"too many requests":   {apierrors.NewTooManyRequests("no", 1), true},
		"conflict":            {apierrors.NewConflict(bucketsGVR.GroupResource(), "a", errors.New("no")), false},
		"invalid":             {apierrors.NewInvalid(schema.GroupKind{}, "a", nil), false},
		"not found":           {fmt.Errorf("secret: %w", apierrors.NewNotFound(secretsGVR.GroupResource(), "a")), false},
		"a store":             {&storeError{code: codeUnauthorized, err: errors.New("no")}, false},
		"a store, by network": {&storeError{code: codeRetryableDependencies, err: feedTestRefused}, false},
		"the resource":        {configErrorf("no"), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				healthy := false
				r := startQueueTest(t, 1, nil)
				r.reconcile = func(_ context.Context, key cache.ObjectName, _ bool) (time.Duration, error) {
					if healthy && key != queueTestKey {
						return 0, nil
					}
					return 0, test.err
				}
				refused := func(after time.Duration) bool {
					time.Sleep(after)
					synctest.Wait()
					err := r.outcomes.refused(time.Now())
					if err != nil && !errors.Is(err, test.err) {
						t.Errorf("got %v", err)
					}
					return err != nil
				}
				r.enqueue(queueTestKey)
				if refused(refusedAfter - time.Second) {
					t.Error("too early")
				}
				if got := refused(time.Second); got != test.want {
					t.Errorf("refused: %t", got)
				}
				// One pass that gets through is enough.
				healthy = true
				r.enqueue(cache.ObjectName{Name: "b"})
				if refused(0) {
					t.Error("though one got through")
				}
				// Without objects nothing is refused.
				r.enqueue(queueTestKey)
				refused(10 * time.Minute)
				r.gone(queueTestKey)
				if refused(0) {
					t.Error("without objects")
				}
				r.stop()
				<-r.ended
			})
		})
	}
}

// Workers hang if keys wait and none is taken; neither an empty queue nor a slow one does.
func TestStall(t *testing.T) {
	start := time.Unix(0, 0)
	s := &stall{}
	for _, step := range []struct {
		at      time.Duration
		waiting int
		taken   uint64
		want    bool
	}{
		{0, 0, 0, false},
		{10 * time.Hour, 1, 0, false},
		{20 * time.Hour, 1, 1, false},
		{20*time.Hour + stuckAfter - 1, 3, 1, false},
		{20*time.Hour + stuckAfter, 3, 1, true},
		{30 * time.Hour, 3, 2, false},
		{30*time.Hour + stuckAfter - 1, 3, 2, false},
		{30*time.Hour + stuckAfter, 0, 2, false},
		{30*time.Hour + 2*stuckAfter - 1, 1, 2, false},
	} {
		if err := s.look("x", step.waiting, step.taken, start.Add(step.at)); (err != nil) != step.want {
			t.Errorf("at %s: %v", step.at, err)
		}
	}
}
