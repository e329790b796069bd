package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// queueTestSeries is the value of one series, or the count of a histogram's; -1 if it
// does not exist. Labels are pairs of name and value.
func queueTestSeries(t *testing.T, m *metrics, name string, labels ...string) float64 {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			var have []string
			for _, pair := range metric.GetLabel() {
				have = append(have, pair.GetName(), pair.GetValue())
			}
			if slices.Equal(have, labels) {
				return metric.GetGauge().GetValue() + metric.GetCounter().GetValue() + float64(metric.GetHistogram().GetSampleCount())
			}
		}
	}
	return -1
}

// queueTestRun runs a controller on the fake clock of a bubble.
type queueTestRun struct {
	*controller
	t     *testing.T
	start time.Time
	log   ktesting.Buffer
	stop  context.CancelFunc
	ended chan struct{}
	// passes are when they began, in seconds since the start.
	passes []string
}

// queueTestPass is a reconcileFunc that knows the number of its pass, from 0.
type queueTestPass func(ctx context.Context, pass int, wanted bool) (time.Duration, error)

var queueTestKey = cache.ObjectName{Name: "a"}

func startQueueTest(t *testing.T, workers int, pass queueTestPass) *queueTestRun {
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
	ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
	r := &queueTestRun{controller: newController(resourceBackupBuckets, newMetrics()), t: t, start: time.Now(), stop: stop, ended: make(chan struct{}),
		log: logger.GetSink().(ktesting.Underlier).GetBuffer()}
	r.reconcile = func(ctx context.Context, _ cache.ObjectName, wanted bool) (time.Duration, error) {
		n := len(r.passes)
		r.passes = append(r.passes, time.Since(r.start).Truncate(time.Millisecond).String())
		return pass(ctx, n, wanted)
	}
	go func() {
		defer close(r.ended)
		r.run(ctx, context.WithoutCancel(ctx), workers)
	}()
	return r
}

func (r *queueTestRun) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// end stops the controller and checks when passes began.
func (r *queueTestRun) end(want ...string) {
	r.t.Helper()
	synctest.Wait()
	r.stop()
	<-r.ended
	if !slices.Equal(r.passes, want) {
		r.t.Errorf("passes began at %q, want %q", r.passes, want)
	}
}

func (r *queueTestRun) expectOutcomes(want map[string]float64) {
	r.t.Helper()
	for _, outcome := range []string{outcomeSuccess, outcomeAgain, outcomeError, outcomePanic} {
		if got := queueTestSeries(r.t, r.metrics, "bucketwarden_reconcile_duration_seconds", "outcome", outcome, "resource", resourceBackupBuckets); got != want[outcome] {
			r.t.Errorf("outcome %s: got %v, want %v", outcome, got, want[outcome])
		}
	}
}

func TestQueueOutcomes(t *testing.T) {
	t.Run("done", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := startQueueTest(t, 1, func(context.Context, int, bool) (time.Duration, error) { return 0, nil })
			r.enqueue(queueTestKey)
			r.sleep(2 * time.Hour)
			r.end("0s")
			r.expectOutcomes(map[string]float64{outcomeSuccess: 1})
		})
	})
	t.Run("again after", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := startQueueTest(t, 1, func(_ context.Context, pass int, _ bool) (time.Duration, error) {
				if pass == 2 {
					return 0, nil
				}
				return 10 * time.Minute, nil
			})
			r.enqueue(queueTestKey)
			r.sleep(2 * time.Hour)
			r.end("0s", "10m0s", "20m0s")
			r.expectOutcomes(map[string]float64{outcomeAgain: 2, outcomeSuccess: 1})
		})
	})
	t.Run("told when to come back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := startQueueTest(t, 1, func(_ context.Context, pass int, _ bool) (time.Duration, error) {
				if pass == 1 {
					return 0, nil
				}
				return 0, &storeError{code: codeRateLimitsExceeded, err: errors.New("slow down"), after: 10 * time.Minute}
			})
			r.enqueue(queueTestKey)
			r.sleep(15 * time.Minute)
			r.stop()
			<-r.ended
			if len(r.passes) != 2 {
				t.Fatalf("passes began at %q", r.passes)
			}
			if second, err := time.ParseDuration(r.passes[1]); err != nil || second < 10*time.Minute || second > 11*time.Minute {
				t.Errorf("passes began at %q", r.passes)
			}
		})
	})
	t.Run("failed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := startQueueTest(t, 1, func(_ context.Context, pass int, _ bool) (time.Duration, error) {
				if pass == 11 {
					return 0, nil
				}
				return 0, errors.New("the cloud is down")
			})
			r.enqueue(queueTestKey)
			r.sleep(2 * time.Hour)
			// It doubles from a second up to five minutes.
			r.end("0s", "1s", "3s", "7s", "15s", "31s", "1m3s", "2m7s", "4m15s", "8m31s", "13m31s", "18m31s")
			r.expectOutcomes(map[string]float64{outcomeError: 11, outcomeSuccess: 1})
			if n := r.queue.NumRequeues(queueTestKey); n != 0 {
				t.Errorf("the success left %d failures", n)
			}
			if log := r.log.String(); strings.Count(log, "the cloud is down") != 11 || !strings.Contains(log, `name="a"`) || !strings.Contains(log, `resource="backupbuckets"`) {
				t.Errorf("the failures were not logged with their object:\n%s", log)
			}
		})
	})
	t.Run("failed, again after", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := startQueueTest(t, 1, func(_ context.Context, pass int, _ bool) (time.Duration, error) {
				switch pass {
				case 0, 2, 3:
					return 0, errors.New("no")
				case 1:
					return time.Minute, errors.New("no")
				}
				return 0, nil
			})
			r.enqueue(queueTestKey)
			r.sleep(2 * time.Hour)
			// The backoff starts anew after the minute.
			r.end("0s", "1s", "1m1s", "1m2s", "1m4s")
			r.expectOutcomes(map[string]float64{outcomeError: 4, outcomeSuccess: 1})
		})
	})
}

func TestQueueEventResetsBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startQueueTest(t, 1, func(_ context.Context, pass int, _ bool) (time.Duration, error) {
			if pass == 5 {
				return 0, nil
			}
			return 0, errors.New("no")
		})
		r.enqueue(queueTestKey)
		r.sleep(5 * time.Second)
		r.enqueue(queueTestKey)
		r.sleep(2 * time.Hour)
		// The event at 5s comes before the retry planned for 7s and replaces it.
		r.end("0s", "1s", "3s", "5s", "6s", "8s")
	})
}

// An event during a pass leads to another one after it, never to one beside it.
func TestQueueNeverRunsAKeyTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running := 0
		r := startQueueTest(t, 3, func(context.Context, int, bool) (time.Duration, error) {
			running++
			if running > 1 {
				t.Error("two passes at a time")
			}
			time.Sleep(time.Minute)
			running--
			return 0, nil
		})
		r.enqueue(queueTestKey)
		r.sleep(time.Second)
		r.enqueue(queueTestKey)
		r.enqueue(queueTestKey)
		r.sleep(time.Hour)
		r.end("0s", "1m0s")
	})
}

func TestQueuePanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marks []bool
		r := startQueueTest(t, 1, func(_ context.Context, pass int, wanted bool) (time.Duration, error) {
			marks = append(marks, wanted)
			if pass < 2 {
				panic(fmt.Sprintf("nil map %d", pass))
			}
			return 0, nil
		})
		r.want(queueTestKey)
		r.enqueue(queueTestKey)
		r.sleep(time.Hour)
		r.end("0s", "1s", "3s")
		r.expectOutcomes(map[string]float64{outcomePanic: 2, outcomeSuccess: 1})
		if got := queueTestSeries(t, r.metrics, "bucketwarden_reconcile_panics_total", "resource", resourceBackupBuckets); got != 2 {
			t.Errorf("counted %v panics, want 2", got)
		}
		if log := r.log.String(); !strings.Contains(log, "panic: nil map 0") || !strings.Contains(log, "queue_test.go") {
			t.Errorf("the panic was not logged with its stack:\n%s", log)
		}
		if !slices.Equal(marks, []bool{true, true, true}) {
			t.Errorf("wanted: got %t, want it until the success", marks)
		}
	})
}

func TestQueueWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marks []bool
		r := startQueueTest(t, 1, func(_ context.Context, pass int, wanted bool) (time.Duration, error) {
			marks = append(marks, wanted)
			switch pass {
			case 0:
				return 0, errors.New("no")
			case 1:
				return time.Second, errors.New("no")
			case 2:
				return time.Second, nil
			}
			return 0, nil
		})
		r.want(queueTestKey)
		r.enqueue(queueTestKey)
		r.sleep(time.Hour)
		r.end("0s", "1s", "2s", "3s")
		if !slices.Equal(marks, []bool{true, true, true, false}) {
			t.Errorf("got %t, want it until a pass did not fail", marks)
		}
	})
}

func TestQueueTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startQueueTest(t, 1, func(ctx context.Context, pass int, _ bool) (time.Duration, error) {
			if pass > 0 {
				return 0, nil
			}
			<-ctx.Done()
			return 0, ctx.Err()
		})
		r.enqueue(queueTestKey)
		r.sleep(time.Hour)
		r.end("0s", "3m1s")
		r.expectOutcomes(map[string]float64{outcomeError: 1, outcomeSuccess: 1})
		if !strings.Contains(r.log.String(), context.DeadlineExceeded.Error()) {
			t.Errorf("the timeout was not logged:\n%s", r.log.String())
		}
	})
}

func TestQueueStop(t *testing.T) {
	t.Run("waits for running passes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var done atomic.Int32
			r := startQueueTest(t, 2, func(ctx context.Context, _ int, _ bool) (time.Duration, error) {
				select {
				case <-ctx.Done():
					t.Error("a running pass was cancelled")
				case <-time.After(stopGrace / 2):
				}
				done.Add(1)
				return time.Hour, nil
			})
			r.enqueue(queueTestKey)
			synctest.Wait()
			r.end("0s")
			if took := time.Since(r.start); done.Load() != 1 || took != stopGrace/2 {
				t.Errorf("%d passes ended, stopped after %s", done.Load(), took)
			}
		})
	})
	t.Run("is bounded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := startQueueTest(t, 2, func(ctx context.Context, _ int, _ bool) (time.Duration, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			})
			r.enqueue(queueTestKey)
			synctest.Wait()
			r.end("0s")
			if took := time.Since(r.start); took != stopGrace {
				t.Errorf("stopped after %s, want %s", took, stopGrace)
			}
			if log := r.log.String(); strings.Contains(log, "Reconcile failed") {
				t.Errorf("being stopped was logged as a failure:\n%s", log)
			}
		})
	})
	t.Run("is immediate when nothing runs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := startQueueTest(t, 2, func(context.Context, int, bool) (time.Duration, error) { return time.Hour, nil })
			r.enqueue(queueTestKey)
			r.end("0s")
			if took := time.Since(r.start); took != 0 {
				t.Errorf("stopped after %s", took)
			}
		})
	})
}

func TestQueueStale(t *testing.T) {
	tests := []struct {
		name, written, cached string
		want, remembered      bool
	}{
		{"nothing written", "", "5", false, false},
		{"older than our write", "10", "9", true, true},
		{"our write", "10", "10", false, false},
		{"newer than our write", "10", "11", false, false},
		{"newer though longer to read", "99", "100", false, false},
		{"beyond 64 bits", "18446744073709551617", "18446744073709551616", true, true},
		{"not comparable", "10", "abc", false, false},
		{"a write without resourceVersion", "-", "10", false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newController(resourceBackupBuckets, newMetrics())
			defer c.queue.ShutDown()
			if test.written != "" {
				c.wrote(queueTestKey, strings.TrimPrefix(test.written, "-"))
			}
			o := &object{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: test.cached}}
			other := &object{ObjectMeta: metav1.ObjectMeta{Name: "b", ResourceVersion: "1"}}
			if c.stale(other) {
				t.Error("another object is stale")
			}
			if got := c.stale(o); got != test.want {
				t.Errorf("stale: got %t, want %t", got, test.want)
			}
			if _, remembered := c.written[queueTestKey]; remembered != test.remembered {
				t.Errorf("remembered: got %t, want %t", remembered, test.remembered)
			}
			if got := c.stale(o); got != test.want {
				t.Errorf("stale the second time: got %t, want %t", got, test.want)
			}
		})
	}
}

func TestQueueNotDue(t *testing.T) {
	c := newController(resourceBackupBuckets, newMetrics())
	defer c.queue.ShutDown()
	now := time.Now()
	if got := c.notDue(queueTestKey, now); got != 0 {
		t.Errorf("nothing to wait for: got %s", got)
	}
	c.waitUntil(queueTestKey, now.Add(time.Minute))
	for after, want := range map[time.Duration]time.Duration{0: time.Minute, 59 * time.Second: time.Second, time.Minute: 0, time.Hour: 0} {
		if got := c.notDue(queueTestKey, now.Add(after)); got != want {
			t.Errorf("after %s: got %s, want %s", after, got, want)
		}
	}
	if got := c.notDue(cache.ObjectName{Name: "b"}, now); got != 0 {
		t.Errorf("another key waits for %s", got)
	}
}

// What was parked comes up by itself. Once it was woken, it does not come up once more for nothing.
func TestQueueParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startQueueTest(t, 1, func(_ context.Context, pass int, _ bool) (time.Duration, error) {
			if pass < 2 {
				return 0, &parkedError{host: "store.example.com"}
			}
			return time.Minute, nil
		})
		r.enqueue(queueTestKey)
		r.sleep(parkedRetry + time.Second)
		r.wakeUp(queueTestKey)
		r.sleep(time.Minute + 10*time.Second)
		r.end("0s", "5s", "6s", "1m6s")
		if len(r.retries) > 0 {
			t.Errorf("left: %v", r.retries)
		}
	})
}

func TestQueueGone(t *testing.T) {
	c := newController(resourceBackupBuckets, newMetrics())
	defer c.queue.ShutDown()
	for range 2 {
		// Without onGone first.
		c.want(queueTestKey)
		c.wrote(queueTestKey, "5")
		c.waitUntil(queueTestKey, time.Now().Add(time.Hour))
		c.queue.AddRateLimited(queueTestKey)
		c.retryIn(queueTestKey, time.Hour)
		c.gone(queueTestKey)
		if len(c.wanted)+len(c.written)+len(c.due)+len(c.retries) > 0 || c.queue.NumRequeues(queueTestKey) > 0 {
			t.Errorf("left: wanted %v, written %v, due %v, failures %d", c.wanted, c.written, c.due, c.queue.NumRequeues(queueTestKey))
		}
		if c.onGone != nil {
			return
		}
		c.onGone = func(name string) { c.metrics.bucketInfo.WithLabelValues(name, "", "") }
	}
}

func TestQueueMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startQueueTest(t, 1, func(_ context.Context, pass int, _ bool) (time.Duration, error) {
			if pass == 0 {
				time.Sleep(10 * time.Second)
				return 0, errors.New("no")
			}
			return 0, nil
		})
		r.enqueue(queueTestKey)
		r.sleep(time.Second)
		r.enqueue(cache.ObjectName{Name: "b"})
		synctest.Wait()
		expect := func(want map[string]float64) {
			t.Helper()
			for name, value := range want {
				if got := queueTestSeries(t, r.metrics, name, "name", resourceBackupBuckets); got != value {
					t.Errorf("%s: got %v, want %v", name, got, value)
				}
			}
		}
		expect(map[string]float64{"workqueue_depth": 1, "workqueue_adds_total": 2, "workqueue_retries_total": 0})
		r.sleep(4 * time.Second)
		for _, name := range []string{"workqueue_unfinished_work_seconds", "workqueue_longest_running_processor_seconds"} {
			if got := queueTestSeries(t, r.metrics, name, "name", resourceBackupBuckets); got <= 0 || got > 10 {
				t.Errorf("%s: got %v", name, got)
			}
		}
		r.sleep(time.Hour)
		expect(map[string]float64{"workqueue_depth": 0, "workqueue_adds_total": 3, "workqueue_retries_total": 1,
			"workqueue_queue_duration_seconds": 3, "workqueue_work_duration_seconds": 3})
		r.end("0s", "10s", "11s")
	})
}

func TestQueueStopLeavesTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startQueueTest(t, 1, func(context.Context, int, bool) (time.Duration, error) {
			time.Sleep(time.Second)
			return 0, nil
		})
		for _, name := range []string{"a", "b", "c"} {
			r.enqueue(cache.ObjectName{Name: name})
		}
		r.end("0s")
	})
}
