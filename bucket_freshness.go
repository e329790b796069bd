// Until when a store's answer about a bucket counts: what no answer has confirmed for three verify intervals, and at least 15
// minutes, is unknown.
//   - Gauges of what is unknown are left out at each scrape, by the time of the scrape: no pass has to run for that.
//   - Conditions become Unknown by a pass of a queue of its own, which never waits for a store. It writes once.
//   - After a start, or after becoming the leader, nothing is older than that moment.
//   - A fact is confirmed before its gauges are set, so that a scrape in between takes none of them away.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	// unknownAfterIntervals and unknownAfterAtLeast say when a fact is too old.
	unknownAfterIntervals = 3
	unknownAfterAtLeast   = 15 * time.Minute

	// hardeningInterval is how often the hardening of a bucket is looked at.
	hardeningInterval = time.Hour

	// deletionLookInterval is how often a bucket is looked at, at most, while its deletion waits for something that is not due.
	deletionLookInterval = 5 * time.Minute

	// maxCause keeps the last error short in a condition, in bytes.
	maxCause = 500
)

// fact is what a store has told of a bucket.
type fact int

const (
	// factState is the bucket's policy.
	factState fact = iota
	// factHardening is what Store.Harden has found.
	factHardening
	// factSweep is what the last sweep, or the purge of a bucket that is deleted, has found.
	factSweep
	factCount
)

// freshness remembers when stores have confirmed the facts of buckets, and collects the gauges of those that are not too old. It is
// safe for concurrent use.
type freshness struct {
	gauges [factCount][]*prometheus.GaugeVec

	mu      sync.Mutex
	buckets map[string]*bucketFacts
	// leading says why nothing is to be shown: another replica may be working. Nil if this one always may.
	leading func() error
}

// bucketFacts is what is remembered of one bucket.
type bucketFacts struct {
	// since is when this process began to look at it.
	since time.Time
	// limit is how old a fact may become beyond the time at which it is to be confirmed again.
	limit time.Duration
	// confirmed is when the facts were confirmed last, zero if never, and until is how long they count.
	confirmed, until [factCount]time.Time
	// cause is the last error of a pass since the state was confirmed.
	cause string
	// looked is when a look was taken last while the deletion waits.
	looked time.Time
	// hardenAgain: what was known of the hardening was lost.
	hardenAgain bool
}

func newFreshness() *freshness { return &freshness{buckets: map[string]*bucketFacts{}} }

// begin notes that a bucket is ours from now on; first says that it is new.
func (f *freshness) begin(bucket string, limit time.Duration, now time.Time) (first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.buckets[bucket] != nil {
		return false
	}
	s := &bucketFacts{since: now, limit: limit}
	for what := range factCount {
		s.until[what] = now.Add(limit)
	}
	s.until[factHardening] = now.Add(hardeningInterval + limit)
	f.buckets[bucket] = s
	return true
}

// forget drops what is known of a bucket that is gone.
func (f *freshness) forget(bucket string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.buckets, bucket)
}

// confirm notes that the store has just told a fact, which is to be confirmed again after a time.
func (f *freshness) confirm(bucket string, what fact, again time.Duration, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.buckets[bucket]
	if s == nil {
		return
	}
	if what == factState {
		s.hardenAgain = s.hardenAgain || s.unknown(factState, now)
		s.cause, s.looked = "", now
	}
	if what == factHardening {
		s.hardenAgain = false
	}
	s.confirmed[what], s.until[what] = now, now.Add(again+s.limit)
}

// failed remembers why a pass over a bucket did not get to the end.
func (f *freshness) failed(bucket string, err error) {
	if err == nil || errors.Is(err, context.Canceled) || apierrors.IsConflict(err) || errors.As(err, new(*storePart)) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.buckets[bucket]; s != nil && (s.cause == "" || !errors.As(err, new(*parkedError))) {
		s.cause = cut(err.Error(), maxCause)
	}
}

func (s *bucketFacts) unknown(what fact, now time.Time) bool { return !now.Before(s.until[what]) }

// why says, as a part of a condition's message, since when a fact is not confirmed and what is the cause.
func (s *bucketFacts) why(what fact) string {
	since := "bucketwarden began to look at it at " + s.since.UTC().Format(time.RFC3339)
	if at := s.confirmed[what]; !at.IsZero() {
		since = at.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("since %s: %s.", since, cmp.Or(s.cause, "no look at it has come to an end"))
}

// overdue says why facts of a bucket are unknown, empty for those that are known, and after which time to ask again.
func (f *freshness) overdue(bucket string, now time.Time) (why [factCount]string, again time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.buckets[bucket]
	if s == nil {
		return why, 0
	}
	again = s.limit
	for what := range factCount {
		if s.unknown(what, now) {
			why[what] = s.why(what)
			continue
		}
		again = min(again, s.until[what].Sub(now))
	}
	return why, again
}

// hardeningDue says that the hardening of a bucket is to be looked at: once in an hour, in a minute of the hour that its name
// gives, so that not all buckets are looked at in the same one, not even after a start.
func (f *freshness) hardeningDue(bucket string, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.buckets[bucket]
	if s == nil {
		return false
	}
	last := s.confirmed[factHardening]
	if s.hardenAgain {
		return true
	}
	if last.IsZero() {
		last = s.since
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(bucket))
	offset := time.Duration(h.Sum32()) * time.Second % hardeningInterval
	hour := func(t time.Time) time.Time { return t.Add(offset).Truncate(hardeningInterval) }
	return hour(now).After(hour(last))
}

// nextLook is how long a bucket whose deletion waits need not be looked at.
func (f *freshness) nextLook(bucket string, every time.Duration, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.buckets[bucket]
	if s == nil {
		return every
	}
	return max(0, s.looked.Add(every).Sub(now))
}

// triedLook notes that a look at a bucket whose deletion waits was tried.
func (f *freshness) triedLook(bucket string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.buckets[bucket]; s != nil {
		s.looked = now
	}
}

// showWhile makes the gauges of facts be shown only while leading returns no error.
func (f *freshness) showWhile(leading func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leading = leading
}

// clear removes the gauges of a bucket's facts.
func (f *freshness) clear(bucket string, of ...fact) {
	for _, what := range of {
		for _, gauge := range f.gauges[what] {
			gauge.DeleteLabelValues(bucket)
		}
	}
}

// Describe implements prometheus.Collector.
func (f *freshness) Describe(out chan<- *prometheus.Desc) {
	for _, gauges := range f.gauges {
		for _, gauge := range gauges {
			gauge.Describe(out)
		}
	}
}

// Collect implements prometheus.Collector: the gauges of what is not too old.
func (f *freshness) Collect(out chan<- prometheus.Metric) {
	if !f.expire(time.Now()) {
		return
	}
	for _, gauges := range f.gauges {
		for _, gauge := range gauges {
			gauge.Collect(out)
		}
	}
}

// expire removes the gauges of what is unknown; false if none is to be shown.
func (f *freshness) expire(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leading != nil && f.leading() != nil {
		return false
	}
	for bucket, s := range f.buckets {
		for what := range factCount {
			switch {
			case !s.unknown(what, now):
			case what == factState:
				// What else was told of it depends on what it is.
				f.clear(bucket, factState, factHardening)
			default:
				f.clear(bucket, what)
			}
		}
	}
	return true
}

// unknownAfter is how long after the moment at which a fact of a bucket should be confirmed again it becomes unknown.
func (r *bucketReconciler) unknownAfter(b *backupBucket) time.Duration {
	return max(unknownAfterIntervals*r.interval(b), unknownAfterAtLeast)
}

// begin shows a bucket that is ours; what an earlier process has told of its hardening is shown once.
func (r *bucketReconciler) begin(b *backupBucket) {
	if r.metrics.facts.begin(b.Name, r.unknownAfter(b), time.Now()) {
		r.metrics.showHardening(b.Name, conditionStatus(b.Conditions, conditionHardened), 0)
	}
}

// staleness makes conditions Unknown once nothing confirms what they say. It has a controller of its own, with the same keys as
// that of BackupBuckets, and asks no store.
type staleness struct {
	*bucketReconciler
	controller *controller
}

// factsOf are the conditions that become Unknown with a fact, if they are there.
var factsOf = map[fact][]string{
	factState:     {conditionImmutable, conditionHardened, conditionForeign},
	factHardening: {conditionHardened},
}

// reconcile looks whether what is known of a bucket is too old: no request if it is not, or if that was told already.
func (s *staleness) reconcile(ctx context.Context, key cache.ObjectName, _ bool) (time.Duration, error) {
	obj, exists, err := s.cached.GetByKey(key.String())
	b, ok := obj.(*backupBucket)
	if err != nil || !exists || !ok || !s.scope.responsible(&b.object) {
		s.controller.gone(key)
		return 0, err
	}
	s.begin(b)
	now := time.Now()
	why, again := s.metrics.facts.overdue(b.Name, now)
	if again == 0 || !b.hasFinalizer(finalizerBackupBucket) || b.operation() == operationWaitForState {
		return max(again, unknownAfterAtLeast), nil
	}
	var wanted []condition
	for _, what := range []fact{factHardening, factState} {
		if why[what] == "" {
			continue
		}
		for _, of := range factsOf[what] {
			// That it is unknown is told once, with the cause of that time.
			if status := conditionStatus(b.Conditions, of); status != "Unknown" && (status != "" || of == conditionImmutable) {
				wanted = append(wanted, condition{Type: of, Status: "Unknown", Reason: "NotVerified",
					Message: "The store has not confirmed this " + why[what]})
			}
		}
	}
	conditions, changed := mergeConditions(b.Conditions, now, wanted...)
	if !changed {
		return again, nil
	}
	if s.resource.controller.stale(&b.object) {
		return staleRetry, nil
	}
	// With an optimistic lock: a pass may write at the same time that the store has answered.
	own := *b
	_, err = s.resource.patch(ctx, &own.object, map[string]any{
		"metadata": map[string]any{"resourceVersion": b.ResourceVersion}, "status": map[string]any{"conditions": conditions}}, "status")
	if apierrors.IsConflict(err) {
		return time.Second, nil
	}
	if err == nil {
		klog.FromContext(ctx).Info("The bucket's state is not known any more", "why", cmp.Or(why[factState], why[factHardening]))
	}
	return again, ignoreNotFound(err)
}
