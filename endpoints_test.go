package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/tools/cache"
)

// endpointsTest makes passes at endpoints.
type endpointsTest struct {
	*endpoints
	t     *testing.T
	woken []string
}

func newEndpointsTest(t *testing.T, limit int) *endpointsTest {
	return &endpointsTest{endpoints: newEndpoints(limit, newMetrics()), t: t}
}

func (e *endpointsTest) pass(name string) *pass {
	return &pass{id: passKey{"tests", cache.ObjectName{Name: name}}, endpoints: e.endpoints, wake: func() { e.woken = append(e.woken, name) }}
}

func (e *endpointsTest) at(p *pass, ref endpointRef, class passClass) error {
	return e.enter(context.WithValue(e.t.Context(), passContext{}, p), ref, class)
}

func isParked(err error) bool { return errors.As(err, new(*parkedError)) }

func (e *endpointsTest) expectWoken(want ...string) {
	e.t.Helper()
	slices.Sort(e.woken)
	if !slices.Equal(e.woken, want) {
		e.t.Errorf("woken are %q, want %q", e.woken, want)
	}
	e.woken = nil
}

func TestEndpointPlaces(t *testing.T) {
	e := newEndpointsTest(t, 2)
	bucket := endpointRef{"host", "bucket"}
	a, b, c, d := e.pass("a"), e.pass("b"), e.pass("c"), e.pass("d")
	if err := e.at(a, bucket, classLook); err != nil {
		t.Fatal(err)
	}
	if err := e.at(a, bucket, classLook); err != nil || len(a.visits) != 1 {
		t.Errorf("the same pass again: %v, %d places", err, len(a.visits))
	}
	if err := e.at(b, bucket, classLook); !isParked(err) {
		t.Errorf("a second pass at a host that has not answered yet: %v", err)
	}
	if wait := e.sleep(b.id); wait <= 0 {
		t.Error("a parked pass may begin though there is no place")
	}
	e.answered(a, "host")
	e.expectWoken("b")
	if wait := e.sleep(b.id); wait != 0 {
		t.Errorf("a pass with a place has to wait for %s", wait)
	}
	if err := e.at(b, bucket, classLook); err != nil {
		t.Error(err)
	}
	for _, p := range []*pass{c, d} {
		if err := e.at(p, endpointRef{"host", "other"}, classLook); !isParked(err) {
			t.Errorf("more passes than allowed at a host: %v", err)
		}
	}
	if err := e.at(e.pass("purge"), bucket, classPurge); err != nil {
		t.Errorf("another kind of work: %v", err)
	}
	if err := e.at(e.pass("elsewhere"), endpointRef{"another", "bucket"}, classLook); err != nil {
		t.Errorf("another host: %v", err)
	}
	if waiting := queueTestSeries(t, e.metrics, "bucketwarden_endpoint_waiting_passes", "endpoint", "host"); waiting != 2 {
		t.Errorf("%v passes wait", waiting)
	}
	e.leave(a)
	e.expectWoken("c") // it came first
	if err := e.at(c, endpointRef{"host", "other"}, classLook); err != nil {
		t.Error(err)
	}
	e.awake(d.id)
	if e.sleep(d.id) != 0 {
		t.Error("what has changed still sleeps")
	}
	if waiting := queueTestSeries(t, e.metrics, "bucketwarden_endpoint_waiting_passes", "endpoint", "host"); waiting != 0 {
		t.Errorf("%v passes wait", waiting)
	}
	for _, p := range []*pass{b, c} {
		e.leave(p)
	}
}

func TestEndpointDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEndpointsTest(t, 5)
		bucket := endpointRef{"host", "bucket"}
		a := e.pass("a")
		if err := e.at(a, bucket, classLook); err != nil {
			t.Fatal(err)
		}
		for range downAfter - 1 {
			e.failed(a, "host", "host did not answer in time")
		}
		if _, err := e.refuseRequest(a, "host"); err != nil {
			t.Errorf("too early: %v", err)
		}
		e.failed(a, "host", "host did not answer in time")
		if _, err := e.refuseRequest(a, "host"); err == nil || retryAfter(err) < probeFirst || retryAfter(err) > probeFirst*11/10+1 {
			t.Errorf("got %v, to be asked again after %s", err, retryAfter(err))
		}
		e.leave(a)
		for _, name := range []string{"b", "c"} {
			err := e.at(e.pass(name), endpointRef{"host", "of " + name}, classLook)
			if want := "host did not answer in time; it is asked again from time to time"; err == nil || err.Error() != want ||
				codeOf(err) != codeRetryableDependencies || !isTransient(err) {
				t.Errorf("got %v, %s", err, codeOf(err))
			}
		}
		time.Sleep(probeFirst * 12 / 10)
		// The first that comes asks it, all others wait.
		b, c := e.pass("b"), e.pass("c")
		if wait := e.sleep(b.id); wait != 0 {
			t.Errorf("nobody asks it for %s", wait)
		}
		if wait := e.sleep(c.id); wait <= 0 {
			t.Error("two passes ask it")
		}
		if err := e.at(b, endpointRef{"host", "of b"}, classLook); err != nil {
			t.Fatal(err)
		}
		if err := e.at(c, endpointRef{"host", "of c"}, classLook); err == nil || isParked(err) {
			t.Errorf("got %v", err)
		}
		// It still does not answer: it is left alone for longer.
		e.failed(b, "host", "host did not answer in time")
		if _, err := e.refuseRequest(b, "host"); retryAfter(err) < 2*probeFirst {
			t.Errorf("asked again after %s", retryAfter(err))
		}
		e.leave(b)
		for range 10 {
			time.Sleep(2 * probeMax)
			if err := e.at(b, endpointRef{"host", "of b"}, classLook); err != nil {
				t.Fatal(err)
			}
			e.failed(b, "host", "host did not answer in time")
			_, err := e.refuseRequest(b, "host")
			if after := retryAfter(err); after > probeMax*11/10+1 {
				t.Errorf("asked again after %s", after)
			}
			e.leave(b)
		}
		time.Sleep(2 * probeMax)
		if err := e.at(b, endpointRef{"host", "of b"}, classLook); err != nil {
			t.Fatal(err)
		}
		e.woken = nil
		e.answered(b, "host")
		e.expectWoken("a", "c") // also the one that found out that it is down
		if err := e.at(c, endpointRef{"host", "of c"}, classLook); err != nil {
			t.Error(err)
		}
		if open := queueTestSeries(t, e.metrics, "bucketwarden_endpoint_breaker_open", "endpoint", "host"); open != 0 {
			t.Errorf("the metric is %v", open)
		}
	})
}

// One bucket that hangs, while others on its host answer, is the only one that is left alone.
func TestEndpointPartDown(t *testing.T) {
	e := newEndpointsTest(t, 5)
	bad, good := e.pass("bad"), e.pass("good")
	if err := e.at(good, endpointRef{"host", "good"}, classLook); err != nil {
		t.Fatal(err)
	}
	e.answered(good, "host")
	if err := e.at(bad, endpointRef{"host", "bad"}, classLook); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		e.failed(bad, "bad.host", "it hangs")
		e.answered(good, "good.host")
	}
	if _, err := e.refuseRequest(good, "good.host"); err != nil {
		t.Errorf("a bucket that answers: %v", err)
	}
	if _, err := e.refuseRequest(bad, "bad.host"); err == nil {
		t.Error("a bucket that hangs is asked again and again")
	}
}

// The trouble of what credentials come from is not the store's, nor that of other credentials.
func TestEndpointOfCredentials(t *testing.T) {
	e := newEndpointsTest(t, 5)
	a, b := e.pass("a"), e.pass("b")
	if err := e.at(a, endpointRef{"s3.example.com", "a"}, classLook); err != nil {
		t.Fatal(err)
	}
	for range 2 * downAfter {
		e.failed(a, "sts.example.com", "sts.example.com did not answer in time")
	}
	e.leave(a)
	if err := e.at(b, endpointRef{"s3.example.com", "b"}, classLook); err != nil {
		t.Error(err)
	}
	if err := e.at(a, endpointRef{"s3.example.com", "a"}, classLook); err == nil {
		t.Error("its own bucket is asked again and again")
	}
}

// However many endpoints do not answer, they never have all workers.
func TestEndpointsWithoutAnswersLeaveWorkers(t *testing.T) {
	e := newEndpointsTest(t, 5)
	good := endpointRef{"good", "bucket"}
	first := e.pass("first")
	if err := e.at(first, good, classLook); err != nil {
		t.Fatal(err)
	}
	e.answered(first, "good")
	e.leave(first)
	inside := 0
	for i := range 100 {
		if err := e.at(e.pass(fmt.Sprint(i)), endpointRef{fmt.Sprintf("bad-%d", i), "bucket"}, classLook); err == nil {
			inside++
		} else if !isParked(err) {
			t.Error(err)
		}
	}
	if want := 5 * storeWorkers / 2; inside != want {
		t.Errorf("%d passes are at hosts that have not answered, want %d", inside, want)
	}
	if err := e.at(e.pass("good"), good, classLook); err != nil {
		t.Errorf("a host that answers: %v", err)
	}
}

func TestEndpointsAreForgotten(t *testing.T) {
	e := newEndpointsTest(t, 5)
	for i := range maxEndpoints {
		p := e.pass(fmt.Sprint(i))
		if err := e.at(p, endpointRef{fmt.Sprintf("host-%d", i), "bucket"}, classLook); err != nil {
			t.Fatal(err)
		}
		e.answered(p, fmt.Sprintf("host-%d", i))
		e.leave(p)
	}
	if len(e.all) > maxEndpoints {
		t.Errorf("%d are remembered", len(e.all))
	}
}

// What needs only the API server goes on while a store hangs, and news about an object end its wait.
func TestQueueOfStores(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController("tests", newMetrics())
		c.endpoints = newEndpoints(1, c.metrics)
		c.splitStores()
		var mu sync.Mutex
		secrets, ready, ended, concurrent := map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
		add := func(to map[string]int, name string, n int) int {
			mu.Lock()
			defer mu.Unlock()
			to[name] += n
			return to[name]
		}
		hanging, atStore := endpointRef{"hanging", "bucket"}, ""
		c.reconcile = func(ctx context.Context, key cache.ObjectName, _ bool) (time.Duration, error) {
			if add(concurrent, key.Name, 1) > 1 {
				t.Errorf("two workers have %s", key.Name)
			}
			defer add(concurrent, key.Name, -1)
			add(secrets, key.Name, 1)
			return c.atStore(ctx, true, func(ctx context.Context) (time.Duration, error) {
				if add(concurrent, key.Name, 1) > 1 {
					t.Errorf("two workers have %s", key.Name)
				}
				defer add(concurrent, key.Name, -1)
				ref := endpointRef{"healthy", "bucket"}
				if key.Name[0] == 'h' {
					ref = hanging
				}
				if err := c.endpoints.enter(ctx, ref, classLook); err != nil {
					return 0, err
				}
				if ref == hanging {
					mu.Lock()
					atStore = key.Name
					mu.Unlock()
					<-ctx.Done()
					add(ended, key.Name, 1)
					return 0, ctx.Err()
				}
				c.endpoints.answered(passOf(ctx), "healthy")
				add(ready, key.Name, 1)
				return 0, nil
			})
		}
		ctx, stop := context.WithCancel(t.Context())
		finished := make(chan struct{})
		go func() { c.run(ctx, context.WithoutCancel(ctx), 1); close(finished) }()
		for i := range 50 {
			c.enqueue(cache.ObjectName{Name: fmt.Sprintf("h%d", i)})
		}
		synctest.Wait()
		if len(secrets) != 50 {
			t.Errorf("%d objects have what needs no store", len(secrets))
		}
		c.enqueue(cache.ObjectName{Name: "a"})
		synctest.Wait()
		if secrets["a"] != 1 || ready["a"] != 1 {
			t.Errorf("behind objects whose store hangs: %d, %d", secrets["a"], ready["a"])
		}
		// The one that hangs in the store changes.
		mu.Lock()
		news := atStore
		mu.Unlock()
		c.enqueue(cache.ObjectName{Name: news})
		synctest.Wait()
		if ended[news] != 1 || secrets[news] != 2 {
			t.Errorf("news: the pass of %s has ended %d times, and begun %d times", news, ended[news], secrets[news])
		}
		stop()
		<-finished
		if len(ready) != 1 {
			t.Errorf("ready are %v", ready)
		}
	})
}

// What needs a store ends with its object, and is not done for the next one of its name.
func TestQueueOfStoresForgetsWhatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController("tests", newMetrics())
		c.endpoints = newEndpoints(1, c.metrics)
		c.splitStores()
		ended, finished := 0, 0
		c.reconcile = func(ctx context.Context, _ cache.ObjectName, _ bool) (time.Duration, error) {
			return c.atStore(ctx, true, func(ctx context.Context) (time.Duration, error) {
				if err := c.endpoints.enter(ctx, endpointRef{"host", "bucket"}, classLook); err != nil {
					return 0, err
				}
				select {
				case <-time.After(time.Minute):
					finished++
					return 0, nil
				case <-ctx.Done():
					ended++
					return 0, ctx.Err()
				}
			})
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.run(ctx, context.WithoutCancel(ctx), 1); close(done) }()
		parked := cache.ObjectName{Name: "parked"}
		c.enqueue(queueTestKey)
		synctest.Wait()
		c.enqueue(parked)
		synctest.Wait()
		// In this order: the end of the first lets the second in.
		c.gone(parked)
		c.gone(queueTestKey)
		time.Sleep(time.Hour)
		stop()
		<-done
		if ended != 1 || finished != 0 {
			t.Errorf("ended %d, finished %d", ended, finished)
		}
		if len(c.parts)+len(c.running)+len(c.wanted)+len(c.endpoints.asleep) > 0 {
			t.Errorf("left are %v, %v, %v, %v", c.parts, c.running, c.wanted, c.endpoints.asleep)
		}
	})
}

// A deletion is not ended by news about its object, which come every few seconds; they are looked at after it.
func TestQueueOfStoresKeepsDeletions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController("tests", newMetrics())
		c.endpoints = newEndpoints(1, c.metrics)
		c.splitStores()
		var log []string
		c.reconcile = func(ctx context.Context, _ cache.ObjectName, _ bool) (time.Duration, error) {
			return c.atStore(ctx, false, func(ctx context.Context) (time.Duration, error) {
				log = append(log, "begun")
				select {
				case <-time.After(time.Minute):
					log = append(log, "done")
				case <-ctx.Done():
					log = append(log, "ended")
				}
				return 0, nil
			})
		}
		ctx, stop := context.WithCancel(t.Context())
		finished := make(chan struct{})
		go func() { c.run(ctx, context.WithoutCancel(ctx), 1); close(finished) }()
		for range 6 {
			c.enqueue(queueTestKey)
			time.Sleep(5 * time.Second)
		}
		time.Sleep(5 * time.Minute)
		stop()
		<-finished
		if want := []string{"begun", "done", "begun", "done"}; !slices.Equal(log, want) {
			t.Errorf("got %q, want %q", log, want)
		}
	})
}

// That a store that is down was not asked again is no news about an object.
func TestDownEndpointWritesOnce(t *testing.T) {
	h := newHarness(t)
	h.putBucket(false)
	asked := &storeError{code: codeRetryableDependencies, err: errors.New("S3 HeadBucket failed: host did not answer in time")}
	notAsked := &storeError{code: codeRetryableDependencies, err: &endpointDownError{reason: "host did not answer in time", after: time.Minute}}
	other := &storeError{code: codeRetryableDependencies, err: &endpointDownError{reason: "host cannot be reached", after: time.Minute}}
	for i, test := range []struct {
		err   error
		write bool
	}{{asked, true}, {notAsked, false}, {asked, false}, {other, true}, {other, false}} {
		before := h.status(bucketsGVR, "b").Description
		h.cloud.fail["Observe"] = test.err
		if _, err := h.passBucket("b"); err == nil {
			t.Fatal("no error")
		}
		if wrote := h.status(bucketsGVR, "b").Description != before; wrote != test.write {
			t.Errorf("%d: after %q the status is %q", i, before, h.status(bucketsGVR, "b").Description)
		}
	}
}

// Being throttled is no failure before it has lasted.
func TestThrottledIsNoFailureAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		h.cloud.put("b", Policy{})
		h.putNamespace(testNamespace, false)
		h.putEntry(testEntry, false)
		h.cloud.fail["List"] = &storeError{code: codeRateLimitsExceeded, err: errors.New("slow down"), after: 2 * time.Minute}
		states := []operationState{}
		for range 3 {
			if _, err := h.passEntry(testEntry); retryAfter(err) != 2*time.Minute {
				t.Fatalf("got %v", err)
			}
			states = append(states, operationState(h.status(entriesGVR, testEntry).State))
			time.Sleep(throttleGrace / 2)
		}
		if want := []operationState{stateProcessing, stateProcessing, stateError}; !slices.Equal(states, want) {
			t.Errorf("the states are %v, want %v", states, want)
		}
	})
}
