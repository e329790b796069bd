package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// stateGauges are the gauges of the state of a bucket that lies on a store with extensions.
var stateGauges = []string{"bucketwarden_backupbucket_locked", "bucketwarden_backupbucket_retention_seconds",
	"bucketwarden_backupbucket_policy_extensions_remaining", "bucketwarden_backupbucket_hardened", "bucketwarden_backupbucket_hardening_gaps"}

func (h *harness) wantStateGauges(there bool) {
	h.t.Helper()
	for _, name := range stateGauges {
		if h.has(name, "b") != there {
			h.t.Errorf("after %s: %s is there: %t", time.Since(testStart), name, !there)
		}
	}
	if !h.has("bucketwarden_backupbucket_last_verified_timestamp_seconds", "b") || !h.has("bucketwarden_backupbucket_info", "b", "eu-1", "aws") {
		h.t.Error("when it was verified last is not shown any more")
	}
}

// putVerified stores BackupBucket b, which has a lock and conditions and was just reconciled.
func (h *harness) putVerified() {
	h.t.Helper()
	h.cloud.putContainer("b", locked4d, 5)
	h.putBucket(true, withPolicy(locked4d), withRecord(locked4d), withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil {
		h.t.Fatal(err)
	}
}

// inVirtualTime makes a harness in a bubble, at testStart.
func inVirtualTime(t *testing.T, run func(h *harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(testStart))
		run(newHarness(t))
	})
}

// statusWrites are the lines of a trace that write a status.
func statusWrites(trace []string) (writes []string) {
	for _, line := range trace {
		if strings.HasPrefix(line, "status ") {
			writes = append(writes, line)
		}
	}
	return writes
}

// live makes the passes of an hour or so: verifications at their interval, and those that look for what is too old when they
// are due. It returns the status writes with the time since the start.
func (h *harness) live(d time.Duration) (writes []string) {
	h.t.Helper()
	start := time.Now()
	next := start
	for end := start.Add(d); time.Now().Before(end); time.Sleep(time.Minute) {
		if now := time.Now(); now.Sub(start)%testVerifyInterval == 0 {
			_, _ = h.passBucket("b")
			for _, line := range statusWrites(h.trace) {
				writes = append(writes, now.Sub(start).String()+" "+line)
			}
		}
		if now := time.Now(); !now.Before(next) {
			wait, err := h.passStale()
			if err != nil || wait <= 0 {
				h.t.Fatalf("wait %s, error %v", wait, err)
			}
			next = now.Add(wait)
			for _, line := range statusWrites(h.trace) {
				writes = append(writes, now.Sub(start).String()+" "+line)
			}
		}
	}
	return writes
}

// A state that nobody confirms any more is unknown after three intervals: one write, and one when it is known again.
func TestUnconfirmedStateIsUnknown(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fail  func(h *harness, err error)
		cause string
	}{
		"the store does not answer": {func(h *harness, err error) {
			if delete(h.cloud.fail, "Observe"); err != nil {
				h.cloud.fail["Observe"] = err
			}
		}, "out of order"},
		"its endpoint is not asked": {func(h *harness, err error) {
			if delete(h.cloud.fail, "open"); err != nil {
				h.cloud.fail["open"] = &storeError{code: codeRetryableDependencies, err: &endpointDownError{reason: "mem did not answer in time"}}
			}
		}, "mem did not answer in time; it is asked again from time to time"},
		"the API server does not answer": {func(h *harness, err error) {
			if h.hooks = nil; err != nil {
				h.answer("get", "secrets", 1e6, err)
			}
		}, "out of order"},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(h *harness) {
				h.putVerified()
				if writes := h.live(3 * time.Hour); len(writes) > 0 {
					t.Errorf("at rest the status is written: %q", writes)
				}
				h.wantStateGauges(true)
				verified := time.Now().Add(-testVerifyInterval)
				test.fail(h, unavailable)
				limit := unknownAfterIntervals * testVerifyInterval
				if writes := h.live(limit - 2*testVerifyInterval); len(writes) > 0 {
					t.Errorf("too early the status is written: %q", writes)
				}
				h.wantStateGauges(true)
				time.Sleep(time.Until(verified.Add(limit)) - time.Nanosecond)
				h.wantStateGauges(true)
				time.Sleep(time.Nanosecond)
				h.wantStateGauges(false)
				if writes := h.live(24 * time.Hour); len(writes) != 1 {
					t.Errorf("the status is written %q", writes)
				}
				h.wantStateGauges(false)
				h.wantMetric(1, "bucketwarden_backupbucket_desired_locked", "b")
				c := h.conditionOf(conditionImmutable)
				want := fmt.Sprintf("The store has not confirmed this since %s: ", verified.UTC().Format(time.RFC3339))
				if message, _ := c["message"].(string); c["status"] != "Unknown" || c["reason"] != "NotVerified" ||
					!strings.HasPrefix(message, want) || !strings.HasSuffix(message, test.cause+".") {
					t.Errorf("condition %v, want %q", c, want)
				}
				if c := h.conditionOf(conditionHardened); c["status"] != "Unknown" || c["reason"] != "NotVerified" {
					t.Errorf("condition %v", c)
				}
				h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateSucceeded)
				test.fail(h, nil)
				if writes := h.live(3 * time.Hour); len(writes) != 1 {
					t.Errorf("the status is written %q", writes)
				}
				h.wantStateGauges(true)
				for _, of := range []string{conditionImmutable, conditionHardened} {
					if c := h.conditionOf(of); c["status"] != "True" {
						t.Errorf("condition %v", c)
					}
				}
			})
		})
	}
}

// A verification that is denied is an Error, and unknown after a while.
func TestDeniedVerificationIsUnknown(t *testing.T) {
	inVirtualTime(t, func(h *harness) {
		h.putVerified()
		h.cloud.fail["Observe"] = denied
		if writes := h.live(24 * time.Hour); len(writes) != 2 || !strings.HasSuffix(writes[0], "Error") {
			t.Errorf("the status is written %q", writes)
		}
		h.wantStateGauges(false)
		if c := h.conditionOf(conditionImmutable); c["status"] != "Unknown" || !strings.Contains(fmt.Sprint(c["message"]), "access denied") {
			t.Errorf("condition %v", c)
		}
		h.wantStatus(bucketsGVR, "b", operationTypeReconcile, stateError, codeUnauthorized)
	})
}

// The limit is never less than 15 minutes, however often a bucket is verified.
func TestUnknownIsNotTooEarly(t *testing.T) {
	inVirtualTime(t, func(h *harness) {
		for interval, want := range map[time.Duration]time.Duration{time.Second: 15 * time.Minute, 0: 15 * time.Minute, time.Hour: 3 * time.Hour} {
			h.buckets.verifyInterval = interval
			if got := h.buckets.unknownAfter(&backupBucket{object: object{Type: "aws"}}); got != want {
				t.Errorf("interval %s: got %s, want %s", interval, got, want)
			}
		}
		h.buckets.verifyInterval = 0
		if got := h.buckets.unknownAfter(&backupBucket{object: object{Type: "azure"}}); got != 30*time.Minute {
			t.Errorf("got %s", got)
		}
		h.buckets.verifyInterval = time.Second
		h.putVerified()
		time.Sleep(unknownAfterAtLeast - time.Nanosecond)
		h.wantStateGauges(true)
		time.Sleep(time.Nanosecond)
		h.wantStateGauges(false)
	})
}

// After a start, nothing is older than the start; and what an earlier process has told is not told anew.
func TestUnknownAfterARestart(t *testing.T) {
	inVirtualTime(t, func(h *harness) {
		h.putVerified()
		h.cloud.fail["Observe"] = unavailable
		restart := func() { // with a store that does not answer
			h.metrics.forgetBucket("b")
			clear(h.buckets.resource.controller.written)
		}
		restart()
		start := time.Now()
		writes := h.live(unknownAfterIntervals*testVerifyInterval - time.Minute)
		if len(writes) > 0 || !h.has("bucketwarden_backupbucket_hardened", "b") || h.has("bucketwarden_backupbucket_locked", "b") {
			t.Errorf("too early: %q, what the status says of hardening is shown: %t", writes, h.has("bucketwarden_backupbucket_hardened", "b"))
		}
		if writes = h.live(3 * time.Hour); len(writes) != 1 || h.has("bucketwarden_backupbucket_hardened", "b") {
			t.Errorf("the status is written %q", writes)
		}
		want := "The store has not confirmed this since bucketwarden began to look at it at " + start.UTC().Format(time.RFC3339) + ": out of order."
		if c := h.conditionOf(conditionImmutable); c["message"] != want {
			t.Errorf("condition %v, want %q", c, want)
		}
		restart()
		if writes := h.live(3 * time.Hour); len(writes) > 0 || h.has("bucketwarden_backupbucket_hardened", "b") {
			t.Errorf("once more the status is written %q", writes)
		}
		delete(h.cloud.fail, "Observe")
		if writes := h.live(3 * time.Hour); len(writes) != 1 {
			t.Errorf("the status is written %q", writes)
		}
	})
}

// What a spec that was not carried out names says nothing of the bucket that we know.
func TestUndefendedBucketIsUnknown(t *testing.T) {
	for name, prepare := range map[string]func(h *harness){
		"another secret": func(h *harness) { h.editSecret("garden", "bucket-b", func(s *corev1.Secret) { s.Finalizers = nil }) },
		"no bucket":      func(h *harness) { delete(h.cloud.buckets, "b") },
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(h *harness) {
				h.putVerified()
				h.edit(bucketsGVR, "b", set(int64(2), "metadata", "generation"))
				prepare(h)
				if _, err := h.passBucket("b"); !errors.Is(err, errNotDefended) {
					t.Errorf("error %v", err)
				}
				h.wantMetric(1, "bucketwarden_backupbucket_locked", "b")
				if c := h.conditionOf(conditionImmutable); c["status"] != "True" {
					t.Errorf("condition %v", c)
				}
				if writes := h.live(3 * time.Hour); len(writes) != 1 {
					t.Errorf("the status is written %q", writes)
				}
				h.wantStateGauges(false)
				if c := h.conditionOf(conditionImmutable); c["status"] != "Unknown" || !strings.Contains(fmt.Sprint(c["message"]), errNotDefended.Error()) {
					t.Errorf("condition %v", c)
				}
			})
		})
	}
	t.Run("a bucket that is being deleted with the spec that was carried out", func(t *testing.T) {
		inVirtualTime(t, func(h *harness) {
			h.putVerified()
			h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) { deleting(u); withFinalizers("other")(u); u.SetGeneration(2) })
			h.putEntry("shoot--p--s--u", false)
			delete(h.cloud.buckets, "b")
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			h.wantMetric(0, "bucketwarden_backupbucket_locked", "b")
			if c := h.conditionOf(conditionImmutable); c["reason"] != "NoBucket" {
				t.Errorf("condition %v", c)
			}
		})
	})
}

// Neither a worker that is stuck nor an endpoint that is down keeps a state from becoming unknown.
func TestUnknownNeedsNoPass(t *testing.T) {
	stuck := func(h *harness, end chan struct{}) {
		h.core.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			<-end
			return true, nil, errTesting
		})
	}
	down := func(h *harness, _ chan struct{}) {
		places := newEndpoints(1, h.metrics)
		h.buckets.resource.controller.endpoints = places
		host := places.get(endpointRef{host: "mem"})
		host.failures, host.downUntil, host.reason = downAfter, time.Now().Add(100*time.Hour), "mem did not answer in time"
	}
	for name, test := range map[string]struct {
		hinder func(h *harness, end chan struct{})
		cause  string
	}{
		"stuck": {stuck, "no look at it has come to an end."}, "down": {down, "mem did not answer in time; it is asked again from time to time."},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(h *harness) {
				h.putVerified()
				h.sync()
				end := make(chan struct{})
				test.hinder(h, end)
				ctx, stop := context.WithCancel(klog.NewContext(h.t.Context(), logr.Discard()))
				var workers sync.WaitGroup
				b, s := h.buckets.resource.controller, h.stale.controller
				b.reconcile, s.reconcile = h.buckets.reconcile, h.stale.reconcile
				h.trace = nil
				for _, c := range []*controller{b, s} {
					c.enqueue(cache.ObjectName{Name: "b"})
					workers.Go(func() { c.run(ctx, ctx, 1) })
				}
				time.Sleep(unknownAfterIntervals*testVerifyInterval + time.Second)
				synctest.Wait()
				h.wantStateGauges(false)
				h.mu.Lock()
				writes := statusWrites(h.trace)
				h.mu.Unlock()
				if len(writes) != 1 {
					t.Errorf("the status is written %q", writes)
				}
				if c := h.conditionOf(conditionImmutable); c["status"] != "Unknown" || !strings.HasSuffix(fmt.Sprint(c["message"]), test.cause) {
					t.Errorf("condition %v", c)
				}
				stop()
				close(end)
				workers.Wait()
			})
		})
	}
}

// A pass may write what the store has just told while another is about to write that it is unknown.
func TestUnknownOverwritesNothing(t *testing.T) {
	inVirtualTime(t, func(h *harness) {
		h.putVerified()
		h.sync()
		h.frozen = true // a cache that lags
		time.Sleep(time.Hour)
		h.edit(bucketsGVR, "b", set([]any{map[string]any{"type": "Other", "status": "True"}}, "status", "conditions"))
		clear(h.buckets.resource.controller.written)
		if wait, err := h.passStale(); err != nil || wait != time.Second {
			t.Errorf("wait %s, error %v", wait, err)
		}
		if c := h.conditionOf("Other"); c["status"] != "True" {
			t.Error("what another had written is lost")
		}
		h.frozen = false
		if _, err := h.passStale(); err != nil {
			t.Error(err)
		}
		if c := h.conditionOf("Other"); c["status"] != "True" || h.conditionOf(conditionImmutable)["status"] != "Unknown" {
			t.Errorf("conditions %v, %v", c, h.conditionOf(conditionImmutable))
		}
	})
}

// Of what is not ours, or waits for another seed, nothing is written, and what is gone leaves nothing.
func TestUnknownIsOnlyToldOfOurs(t *testing.T) {
	inVirtualTime(t, func(h *harness) {
		h.putVerified()
		h.edit(bucketsGVR, "b", withOperation(operationWaitForState))
		if writes := h.live(3 * time.Hour); len(writes) > 0 {
			t.Errorf("waiting for a state, the status is written %q", writes)
		}
		h.wantStateGauges(false)
		h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) { u.SetAnnotations(nil); u.SetFinalizers(nil) })
		h.cloud.fail["Observe"] = unavailable
		if writes := h.live(3 * time.Hour); len(writes) > 0 {
			t.Errorf("without our finalizer the status is written %q", writes)
		}
		h.buckets.resource.controller.onGone = h.metrics.forgetBucket
		h.stale.controller.onGone = h.metrics.facts.forget
		if err := h.dyn.Tracker().Delete(bucketsGVR, "", "b"); err != nil {
			t.Fatal(err)
		}
		for _, pass := range []func() (time.Duration, error){func() (time.Duration, error) { return h.passBucket("b") }, h.passStale} {
			if wait, err := pass(); err != nil || wait != 0 {
				t.Errorf("wait %s, error %v", wait, err)
			}
		}
		h.metrics.facts.confirm("b", factState, 0, time.Now()) // of a pass that was under way
		h.metrics.facts.failed("b", errTesting)
		h.metrics.facts.triedLook("b", time.Now())
		if len(h.metrics.facts.buckets) > 0 || len(metricsTestOf(t, h.metrics, "bucket", "b")) > 0 {
			t.Errorf("left: %v, %v", h.metrics.facts.buckets, metricsTestOf(t, h.metrics, "bucket", "b"))
		}
	})
}

// A replica that may not lead any more shows no state, and the counters of its own work.
func TestStateIsShownWhileLeading(t *testing.T) {
	inVirtualTime(t, func(h *harness) {
		h.putVerified()
		var lost error
		h.metrics.facts.showWhile(func() error { return lost })
		h.wantStateGauges(true)
		lost = errLeaseLost
		h.wantStateGauges(false)
		lost = nil
		h.wantStateGauges(true)
	})
}

// What a sweep has found counts as long as sweeps get through.
func TestUnsweptIsUnknown(t *testing.T) {
	swept := []string{"bucketwarden_backupbucket_tombstones", "bucketwarden_backupbucket_retained_objects",
		"bucketwarden_backupbucket_retained_bytes", "bucketwarden_backupbucket_foreign_marks"}
	inVirtualTime(t, func(h *harness) {
		h.putVerified()
		want := func(there bool) {
			t.Helper()
			for _, name := range swept {
				if h.has(name, "b") != there {
					t.Errorf("%s is there: %t", name, !there)
				}
			}
		}
		if _, err := h.passSweep(); err != nil {
			t.Fatal(err)
		}
		want(true)
		h.cloud.fail["List"] = unavailable
		time.Sleep(20 * time.Minute)
		_, _ = h.passSweep()
		want(true)
		time.Sleep(20 * time.Minute)
		_, _ = h.passSweep()
		want(false)
		delete(h.cloud.fail, "List")
		if _, err := h.passSweep(); err != nil {
			t.Fatal(err)
		}
		want(true)
	})
}

// The hardening of a bucket is looked at once in an hour, for a few requests, and what others took away is put back.
func TestHardeningIsLookedAtHourly(t *testing.T) {
	inVirtualTime(t, func(h *harness) {
		h.putVerified()
		hardened := func(d time.Duration) (looks int, requests []string) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Minute) {
				if _, err := h.passBucket("b"); err != nil {
					t.Fatal(err)
				}
				for _, line := range h.trace {
					if line == "store b Harden" {
						looks++
					} else if line != "get secrets garden/bucket-b" && line != "store b Observe" {
						requests = append(requests, line)
					}
				}
			}
			return looks, requests
		}
		h.buckets.verifyInterval = time.Minute
		if looks, others := hardened(10 * time.Hour); looks != 10 || len(others) > 0 {
			t.Errorf("%d looks in 10 hours, and requests %q", looks, others)
		}
		h.cloud.gaps = []string{"No TLS.", "No encryption."}
		if looks, others := hardened(time.Hour); looks != 1 || len(others) != 1 {
			t.Errorf("%d looks, and requests %q", looks, others)
		}
		h.wantMetric(2, "bucketwarden_backupbucket_hardening_gaps", "b")
		h.wantMetric(0, "bucketwarden_backupbucket_hardened", "b")
		if c := h.conditionOf(conditionHardened); c["message"] != "No TLS. No encryption." {
			t.Errorf("condition %v", c)
		}
		// A store that does not answer to that for a while changes nothing; after a while it is not known.
		for looks := 0; looks == 0; {
			looks, _ = hardened(time.Minute)
		}
		h.cloud.fail["Harden"] = unavailable
		if looks, others := hardened(time.Hour + 20*time.Minute); looks < 20 || len(others) > 0 {
			t.Errorf("%d looks, and requests %q", looks, others)
		}
		h.wantMetric(2, "bucketwarden_backupbucket_hardening_gaps", "b")
		hardened(10 * time.Minute)
		if h.has("bucketwarden_backupbucket_hardening_gaps", "b") || h.has("bucketwarden_backupbucket_hardened", "b") {
			t.Error("old gaps are shown")
		}
		h.wantMetric(1, "bucketwarden_backupbucket_locked", "b")
		if _, err := h.passStale(); err != nil || len(statusWrites(h.trace)) != 1 {
			t.Errorf("error %v, requests %q", err, h.trace)
		}
		if c := h.conditionOf(conditionHardened); c["status"] != "Unknown" || h.conditionOf(conditionImmutable)["status"] != "True" {
			t.Errorf("conditions %v, %v", c, h.conditionOf(conditionImmutable))
		}
		delete(h.cloud.fail, "Harden")
		h.cloud.gaps = nil
		if looks, others := hardened(time.Minute); looks != 1 || len(others) != 1 {
			t.Errorf("%d looks, and requests %q", looks, others)
		}
		h.wantMetric(0, "bucketwarden_backupbucket_hardening_gaps", "b")
		h.wantMetric(1, "bucketwarden_backupbucket_hardened", "b")
	})
}

// Not all buckets are looked at in the same minute of the hour, whenever the daemon was started.
func TestHardeningIsSpread(t *testing.T) {
	f, now := newFreshness(), testStart
	perMinute := map[time.Duration]int{}
	total := map[string]int{}
	for i := range 600 {
		name := fmt.Sprintf("seed-%d-backups", i)
		f.begin(name, time.Hour, now)
		for minute := range 3 * 60 {
			at := time.Duration(minute) * time.Minute
			if f.hardeningDue(name, now.Add(at)) {
				f.confirm(name, factHardening, hardeningInterval, now.Add(at))
				perMinute[at%hardeningInterval]++
				total[name]++
			}
		}
	}
	if most := slices.Max(slices.Collect(maps.Values(perMinute))); most > 3*3*10 {
		t.Errorf("%d looks in a minute of the hour, in three hours, of 600 buckets", most)
	}
	for name, n := range total {
		if n != 3 && n != 2 {
			t.Errorf("%d looks at %s", n, name)
		}
	}
	if len(total) != 600 {
		t.Errorf("%d buckets were looked at", len(total))
	}
}

// The number of gaps is not in the status: after a start it is known with the first look, which comes in its turn.
func TestHardeningGapsAfterARestart(t *testing.T) {
	inVirtualTime(t, func(h *harness) {
		h.cloud.gaps = []string{"No TLS."}
		h.putVerified()
		h.metrics.forgetBucket("b")
		if _, err := h.passStale(); err != nil || h.has("bucketwarden_backupbucket_hardening_gaps", "b") || !h.has("bucketwarden_backupbucket_hardened", "b") {
			t.Errorf("error %v", err)
		}
		looks := 0
		for range 6 {
			if h.has("bucketwarden_backupbucket_hardening_gaps", "b") != (looks > 0) || !h.has("bucketwarden_backupbucket_hardened", "b") {
				t.Errorf("after %d looks: the gaps are shown: %t", looks, looks == 0)
			}
			h.wantMetric(0, "bucketwarden_backupbucket_hardened", "b")
			time.Sleep(testVerifyInterval)
			if _, err := h.passBucket("b"); err != nil {
				t.Error(err)
			}
			looks += len(h.storeChanges())
		}
		if h.wantMetric(1, "bucketwarden_backupbucket_hardening_gaps", "b"); looks != 1 {
			t.Errorf("%d looks in the first hour", looks)
		}
	})
}

// putWaiting stores BackupBucket b, whose deletion waits for an object that is retained for ten days.
func (h *harness) putWaiting() *memBucket {
	h.t.Helper()
	h.putVerified()
	b := h.cloud.buckets["b"]
	b.objects["x/1"] = memObject{size: 1, until: time.Now().Add(240 * time.Hour)}
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) {
		deleting(u)
		withFinalizers("other")(u)
		u.SetGeneration(u.GetGeneration() + 1)
	})
	if _, err := h.passBucket("b"); err != nil {
		h.t.Fatal(err)
	}
	return b
}

// A bucket whose deletion waits is looked at, for two requests in an interval, whatever it waits for.
func TestWaitingDeletionIsVerified(t *testing.T) {
	t.Parallel()
	inVirtualTime(t, func(h *harness) {
		h.putWaiting()
		requests := map[string]int{}
		for range 10 * 60 * 12 { // gardenlet patches the object every five seconds
			time.Sleep(5 * time.Second)
			wait, err := h.passBucket("b")
			if err != nil || wait <= 0 || wait > testVerifyInterval {
				t.Fatalf("wait %s, error %v", wait, err)
			}
			for _, line := range h.trace {
				requests[line]++
			}
		}
		if want := map[string]int{"get secrets garden/bucket-b": 60, "store b Observe": 60}; !maps.Equal(requests, want) {
			t.Errorf("in 10 hours: %v, want %v", requests, want)
		}
		if at := h.metric("bucketwarden_backupbucket_last_verified_timestamp_seconds", "b"); time.Since(time.Unix(int64(at), 0)) > testVerifyInterval {
			t.Errorf("last verified %s ago", time.Since(time.Unix(int64(at), 0)))
		}
		h.wantMetric(1, "bucketwarden_backupbucket_locked", "b")
		h.wantMetric(1, "bucketwarden_backupbucket_retained_objects", "b")
		if c := h.conditionOf(conditionImmutable); c["status"] != "True" {
			t.Errorf("condition %v", c)
		}
	})
}

// What the looks find is shown, also that they do not get through.
func TestWaitingDeletionShowsWhatItSees(t *testing.T) {
	inVirtualTime(t, func(h *harness) {
		b := h.putWaiting()
		b.state.Policy = Policy{}
		if writes := h.live(time.Hour); len(writes) != 1 || h.conditionOf(conditionImmutable)["reason"] != "NoPolicy" {
			t.Errorf("the status is written %q, %v", writes, h.conditionOf(conditionImmutable))
		}
		h.wantMetric(0, "bucketwarden_backupbucket_locked", "b")
		h.cloud.fail["Observe"] = denied
		writes := h.live(2 * time.Hour)
		// The hardening is not looked at any more, which becomes unknown later.
		if len(writes) == 0 || len(writes) > 2 || h.conditionOf(conditionImmutable)["status"] != "Unknown" {
			t.Errorf("the status is written %q, %v", writes, h.conditionOf(conditionImmutable))
		}
		h.wantStateGauges(false)
		h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateProcessing)
		delete(h.cloud.fail, "Observe")
		b.state.Policy = locked4d
		if writes := h.live(time.Hour); len(writes) != 1 || h.conditionOf(conditionImmutable)["status"] != "True" {
			t.Errorf("the status is written %q, %v", writes, h.conditionOf(conditionImmutable))
		}
		// Nobody waits for what is in a bucket that is gone.
		if delete(h.cloud.buckets, "b"); h.deletionDue() == 0 {
			t.Fatal("due")
		}
		time.Sleep(testVerifyInterval)
		if wait, err := h.passBucket("b"); err != nil || wait != 0 {
			t.Errorf("wait %s, error %v", wait, err)
		}
		h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateSucceeded)
		if h.has("bucketwarden_backupbucket_locked", "b") {
			t.Error("the policy of a bucket that is gone is shown")
		}
	})
}

// While the resource group of a bucket is being deleted, there is no bucket any more, and nothing is shown of its policy.
func TestDeletedBucketHasNoState(t *testing.T) {
	h := newHarness(t)
	h.putAzure(true, locked4d, withOperation(operationReconcile))
	if _, err := h.passBucket("b"); err != nil {
		t.Fatal(err)
	}
	h.edit(bucketsGVR, "b", func(u *unstructured.Unstructured) { deleting(u); withFinalizers("other")(u); u.SetGeneration(2) })
	for range 3 {
		if wait, err := h.passBucket("b"); err != nil || wait != accountRetry {
			t.Errorf("wait %s, error %v", wait, err)
		}
		if c := h.conditionOf(conditionImmutable); c["status"] != "False" || c["reason"] != "NoBucket" {
			t.Errorf("condition %v", c)
		}
		for _, name := range stateGauges {
			if h.has(name, "b") {
				t.Errorf("%s is there", name)
			}
		}
		if !h.has("bucketwarden_backupbucket_last_verified_timestamp_seconds", "b") {
			t.Error("not verified")
		}
		clear(h.buckets.resource.controller.due)
	}
	if writes := statusWrites(h.trace); len(writes) > 0 {
		t.Errorf("the status is written %q", writes)
	}
}
