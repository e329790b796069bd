// The probe of each bucket, once a day: when, with whose credentials, and what is told of it.
//
// Rules:
//   - Only with --probe, and only the bucket of a BackupBucket of ours that is ready and stays. Once a day at a time of its own, so that
//     restarts attack nothing. A queue and places of its own, behind all other work.
//   - With the credentials of the bucket and with those of its BackupEntries, which a stolen cluster has. If they are the same, one
//     round counts for both; else they take turns, and so do the entries.
//   - What was found is a metric, a condition, and in memory for evidence. It goes with the bucket. With --observe there is no
//     condition.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	probeInterval = 24 * time.Hour
	// probeRetry is how soon a round that failed is made again.
	probeRetry = time.Hour
	// concurrentProbes is how many rounds may be made at one endpoint at a time.
	concurrentProbes = 1
)

// conditionProven is there once a bucket was probed: the lock holds, or does not, or that is not known.
const conditionProven = "LockProven"

// probes are what is known of the probes of all buckets. It is safe for concurrent use.
type probes struct {
	mu      sync.Mutex
	buckets map[string]*probeMemory
}

// probeMemory is what is known of one bucket.
type probeMemory struct {
	uid types.UID
	// due is when the next round is to be made.
	due time.Time
	// canaries is for the pass that has the bucket alone.
	canaries *canaries
	results  map[string]probeResult
}

// last is what the last rounds with each of the credentials came to, those of the bucket first.
func (p *probes) last(bucket string) (all []probeResult) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.buckets[bucket]; m != nil {
		for _, of := range []string{probeWithBucket, probeWithEntry} {
			if result, ok := m.results[of]; ok {
				all = append(all, result)
			}
		}
	}
	return all
}

// of is what is known of a bucket; it begins when the bucket comes.
func (p *probes) of(b *backupBucket, now time.Time) probeMemory {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.buckets[b.Name]
	if m == nil || m.uid != b.UID {
		m = &probeMemory{uid: b.UID, due: now.Add(nextProbe(b.Name, now, 0)), canaries: &canaries{}, results: map[string]probeResult{}}
		if p.buckets == nil {
			p.buckets = map[string]*probeMemory{}
		}
		p.buckets[b.Name] = m
	}
	return *m
}

// note remembers what a round came to, and when the next is due.
func (p *probes) note(bucket string, due time.Time, results ...probeResult) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.buckets[bucket]
	if m == nil {
		return
	}
	m.due = due
	for _, result := range results {
		m.results[result.credentials] = result
	}
}

// drop forgets what the rounds with some credentials came to, which do not exist any more.
func (p *probes) drop(bucket, credentials string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.buckets[bucket]; m != nil {
		delete(m.results, credentials)
	}
}

func (p *probes) forget(bucket string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.buckets, bucket)
}

// nextProbe is when a bucket is probed next: at its own time of the day, at least some time ahead.
func nextProbe(bucket string, now time.Time, ahead time.Duration) time.Duration {
	at := now.Truncate(probeInterval).Add(checkSlot(bucket) % probeInterval)
	for at.Sub(now) < ahead {
		at = at.Add(probeInterval)
	}
	return max(at.Sub(now), 0)
}

// prober probes buckets.
type prober struct {
	*bucketReconciler
	queue   *controller
	entries *entryChecker
	probes  *probes
	// observed tells the policy of a bucket that is only observed; nil if it is ours. Nothing is written to its object then.
	observed observedEntries
}

// record is what is known of a bucket.
func (p *prober) record(b *backupBucket) record {
	known := readRecord(b.ProviderStatus)
	if p.observed != nil {
		known.Policy, _ = p.observed.policies(b.Name)
	}
	return known
}

// gone forgets a bucket that is not ours any more.
func (p *prober) gone(bucket string) {
	p.probes.forget(bucket)
	p.metrics.forgetProbe(bucket)
}

// probeable says that a bucket is ready, and not about to come from another seed.
func (p *prober) probeable(b *backupBucket) bool {
	return b.decodeErr == nil && b.hasFinalizer(finalizerBackupBucket) && !b.neverReady() && b.specObserved() &&
		b.operation() != operationWaitForState
}

// reconcile makes a round of attacks on a bucket if it is due: at most 3 requests to the API server beside those to the store.
func (p *prober) reconcile(ctx context.Context, key cache.ObjectName, _ bool) (time.Duration, error) {
	obj, exists, err := p.cached.GetByKey(key.String())
	b, ok := obj.(*backupBucket)
	if err != nil || !exists || !ok || !p.scope.responsible(&b.object) || b.DeletionTimestamp != nil {
		p.queue.gone(key)
		return 0, err
	}
	now := time.Now()
	memory := p.probes.of(b, now)
	p.metrics.bucketProbed.WithLabelValues(b.Name, probeWithBucket)
	if wait := memory.due.Sub(now); wait > 0 {
		return wait, nil
	}
	if !p.probeable(b) {
		p.probes.note(b.Name, now.Add(probeRetry))
		return probeRetry, nil
	}
	results, err := p.probe(ctx, b, memory.canaries, now)
	p.keys.noteRejection(b.Name, err, time.Now())
	if err != nil {
		if goesOn(err) {
			return 0, err
		}
		p.probes.note(b.Name, now.Add(probeRetry))
		return probeRetry, fmt.Errorf("probing the lock of bucket %s: %w", b.Name, err)
	}
	wait := nextProbe(b.Name, now, probeInterval/2)
	// A canary that would have to be replaced a moment too early lets the round wait until its retention has ended.
	if left := memory.canaries.current.until.Sub(now); left > wait-canaryMargin && left < wait+canaryMargin {
		wait = max(wait, left+time.Minute)
	}
	p.probes.note(b.Name, now.Add(wait), results...)
	p.tell(ctx, b)
	return wait, nil
}

// probe makes a round with the credentials whose turn it is.
func (p *prober) probe(ctx context.Context, b *backupBucket, known *canaries, now time.Time) ([]probeResult, error) {
	secret, err := p.contentsSecret(ctx, b)
	if err != nil {
		return nil, err
	}
	if secret == nil {
		return nil, errors.New("there is no generated secret yet")
	}
	keeper, err := p.openCanaries(ctx, &b.object, b.Name, p.record(b), secret)
	if err != nil || keeper == nil {
		return nil, err
	}
	round := &probeRound{keeper: keeper, attacker: keeper, policy: p.record(b).Policy, canaries: known}
	credentials := []string{probeWithBucket}
	day := now.UnixNano() / int64(probeInterval)
	if e, of := p.chooseEntry(ctx, b.Name, day/2); e != nil {
		switch {
		case maps.EqualFunc(of.Data, secret.Data, bytes.Equal):
			credentials = append(credentials, probeWithEntry)
		case day%2 == 1:
			credentials = []string{probeWithEntry}
			if round.attacker, err = p.openCanaries(ctx, &e.object, b.Name, p.entries.record(e), of); err != nil {
				return nil, err
			}
		}
	}
	result, err := round.run(ctx)
	if err != nil {
		return nil, err
	}
	var results []probeResult
	for _, of := range credentials {
		result.credentials = of
		results = append(results, result)
	}
	return results, nil
}

// openCanaries opens a bucket for attacks; nil if its store has none.
func (p *prober) openCanaries(ctx context.Context, o *object, bucket string, of record, secret *corev1.Secret) (attacker, error) {
	objects, err := p.openObjects(o, bucket, of, secret)
	if err != nil {
		return nil, err
	}
	store, ok := objects.(attacker)
	if !ok {
		return nil, errNoAttack
	}
	return store, p.endpoints().enter(ctx, store.endpoint(), classCheck)
}

// chooseEntry is the live BackupEntry of a bucket whose turn it is, with its secret; nil if there is none, or if it cannot be read.
func (p *prober) chooseEntry(ctx context.Context, bucket string, turn int64) (*backupEntry, *corev1.Secret) {
	var all []*backupEntry
	for _, obj := range p.entries.cached.List() {
		if e, ok := obj.(*backupEntry); ok && e.BucketName == bucket && p.entries.checkable(e) {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		p.probes.drop(bucket, probeWithEntry)
		p.metrics.dropProbe(bucket, probeWithEntry)
		return nil, nil
	}
	slices.SortFunc(all, func(e, f *backupEntry) int { return strings.Compare(e.Name, f.Name) })
	e := all[turn%int64(len(all))]
	secret, err := p.entries.secretOf(ctx, e)
	if err != nil {
		klog.FromContext(ctx).Info("The bucket is not probed with the credentials of a BackupEntry", "entry", e.Name, "reason", err.Error())
		return nil, nil
	}
	return e, secret
}

// tell shows what the last rounds came to.
func (p *prober) tell(ctx context.Context, b *backupBucket) {
	last := p.probes.last(b.Name)
	for _, result := range last {
		p.metrics.showProbe(b.Name, result)
		p.evidence.probed(b.Name, result.credentials, result.stated())
	}
	c := provenCondition(last)
	klog.FromContext(ctx).Info("Probed the lock of the bucket", "proven", c.Status, "outcome", c.Message)
	desired, old := p.scope.readBucket(b)
	if c.Reason == reasonProbeSucceeded && stronger(desired.Policy, old.Policy).Locked {
		p.warn(b, "ProbeSucceeded", "Probe", "The lock of bucket %s does not hold: %s", b.Name, c.Message)
	}
	if p.observed != nil {
		return
	}
	if err := p.writeCondition(ctx, b, c); err != nil {
		klog.FromContext(ctx).Error(err, "Could not write what the probe has found")
	}
}

// writeCondition writes a condition on what the object is now: two requests.
func (p *prober) writeCondition(ctx context.Context, b *backupBucket, c condition) error {
	u, err := p.resource.live(ctx, &b.object)
	if err != nil || u == nil {
		return err
	}
	live := decodeBucket(u)
	if live.DeletionTimestamp != nil || live.decodeErr != nil {
		return nil
	}
	conditions, _ := mergeConditions(live.Conditions, time.Now(), c) // its message has the time of the round
	_, err = p.resource.patch(ctx, &live.object, map[string]any{"metadata": map[string]any{"resourceVersion": live.ResourceVersion},
		"status": map[string]any{"conditions": conditions}}, "status")
	return ignoreNotFound(err)
}

// Reasons of conditionProven.
const (
	reasonProbeRefused   = "AttacksRefused"
	reasonProbeSucceeded = "AttackSucceeded"
	reasonProbeNothing   = "NothingProven"
	reasonProbeUnlocked  = "NotLocked"
)

// provenCondition is what the last rounds came to: the worst of them counts, but a proof is not undone by credentials that may not
// even try.
func provenCondition(last []probeResult) condition {
	c := condition{Type: conditionProven, Status: "Unknown", Reason: reasonProbeNothing}
	var told []string
	for _, result := range last {
		switch {
		case result.count(attackSucceeded) > 0:
			c.Status, c.Reason = "False", reasonProbeSucceeded
		case c.Reason == reasonProbeSucceeded:
		case result.proven():
			c.Status, c.Reason = "True", reasonProbeRefused
		case c.Status != "True" && (!result.retained || result.removable):
			c.Status, c.Reason = "False", reasonProbeUnlocked
		}
	}
	for i, result := range last {
		whose := "the bucket"
		switch {
		case i > 0 && result.at.Equal(last[0].at):
			continue // one round for both
		case i == 0 && len(last) > 1 && last[1].at.Equal(result.at):
			whose = "the bucket, which are those of a BackupEntry too"
		case result.credentials == probeWithEntry:
			whose = "a BackupEntry"
		}
		told = append(told, fmt.Sprintf("At %s, with the credentials of %s: %s.", result.at.UTC().Format(time.RFC3339), whose,
			describeAttacks(result.attacks)))
	}
	c.Message = strings.Join(told, " ")
	return c
}

// describeAttacks groups attacks by how they ended, the worst first.
func describeAttacks(attacks []probeAttack) string {
	var parts []string
	for _, outcome := range []probeOutcome{attackSucceeded, refusedOtherwise, refusedByLock} {
		var names, details []string
		for _, a := range attacks {
			if a.outcome != outcome {
				continue
			}
			names = append(names, a.name)
			if !slices.Contains(details, a.detail) {
				details = append(details, a.detail)
			}
		}
		if len(names) == 0 {
			continue
		}
		text := strings.Join(names, ", ") + " " + outcome.text()
		if outcome != refusedByLock {
			text += " (" + strings.Join(details, "; ") + ")"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}
