// What others did to the policy of a bucket behind our back: drift, which is what is less than it should be, and foreign
// strengthening, which is more than anybody asked us for.
//
// Rules:
//   - What is expected is the stronger of spec and record. It is shown before anything is tried, whatever becomes of the pass.
//   - A change is counted and told when it is seen, once, however often its repair is tried; the repair is counted separately.
//   - What is foreign is shown and left alone. It is never recorded, never put back, and no failure.

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
)

// drift is a change of a bucket behind our back that has to be repaired.
type drift struct {
	// gone: the bucket itself. It had been there.
	gone            bool
	expected, found Policy
}

// tellings remember, in memory, which changes of buckets were told. The zero value is ready for use.
type tellings struct {
	mu   sync.Mutex
	told map[string]telling
}

// telling is what was told of a bucket.
type telling struct {
	// drift is what was counted and is not repaired yet, nil if there is none; unrepaired says that it was told that the
	// repair has failed.
	drift      *drift
	unrepaired bool
	// foreign is the message about a foreign policy, empty if there is none.
	foreign string
}

// update changes what was told of a bucket, and returns what was told before.
func (t *tellings) update(bucket string, change func(*telling)) (before telling) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before = t.told[bucket]
	after := before
	if change(&after); after == (telling{}) {
		delete(t.told, bucket)
		return before
	}
	if t.told == nil {
		t.told = map[string]telling{}
	}
	t.told[bucket] = after
	return before
}

// forget forgets a bucket.
func (t *tellings) forget(bucket string) {
	t.update(bucket, func(of *telling) { *of = telling{} })
}

// showExpected shows what a bucket should have: the stronger of what its spec asks for and what is recorded.
func (r *bucketReconciler) showExpected(b *backupBucket) {
	desired, old := r.scope.readBucket(b)
	setPolicyGauges(r.metrics.bucketExpectedLocked, r.metrics.bucketExpectedRetention, b.Name, stronger(desired.Policy, old.Policy))
}

// wanted is what the bucket should have once this pass is over, whatever the pass may do.
func (p *bucketPass) wanted() Policy { return stronger(p.asked, p.next.Policy) }

// foreign says that somebody else made the policy stronger than it should be.
func (p *bucketPass) foreign() bool { return p.live.Policy.strongerThan(p.wanted()) }

// findDrift says what was changed behind our back; nil if nothing was. plan is for the bucket as it was found.
func (p *bucketPass) findDrift(plan policyPlan) *drift {
	d := &drift{gone: !p.live.Exists, expected: p.expected(), found: p.live.Policy}
	switch {
	case d.gone:
		// After a creation that failed no status tells that there had been a bucket before.
		told := p.tellings.update(p.b.Name, func(*telling) {}).drift
		if !p.b.succeeded() && p.old.Policy.None() && (told == nil || !told.gone) {
			return nil
		}
	// It is weaker than recorded, or not what the last reconcile had left.
	case !plan.Drift && !(p.kind.settled() && len(plan.Steps) > 0):
		return nil
	}
	return d
}

// noteDrift counts drift that was not seen before; nil if there is none any more.
func (p *bucketPass) noteDrift(ctx context.Context, d *drift) {
	known := p.tellings.update(p.b.Name, func(of *telling) {
		if !same(of.drift, d) {
			of.drift, of.unrepaired = d, false
		}
	}).drift
	if d == nil || same(known, d) {
		return
	}
	p.metrics.bucketDrift.WithLabelValues(p.b.Name).Inc()
	p.evidence.note(p.b.Name, evidenceDrift, "%s", d)
	if d.gone {
		klog.FromContext(ctx).Info("The bucket is gone", "expected", d.expected.String())
		return
	}
	klog.FromContext(ctx).Info("The bucket's policy was changed behind our back", "expected", d.expected.String(), "found", d.found.String())
}

// String says what was found, as a sentence.
func (d *drift) String() string {
	if d.gone {
		return "The bucket is gone."
	}
	return fmt.Sprintf("The bucket should have a %s, the store said %s.", d.expected, d.found)
}

func same(d, e *drift) bool { return d == e || d != nil && e != nil && *d == *e }

// tellLoss tells that a bucket that was just created had been there before.
func (p *bucketPass) tellLoss(ctx context.Context) {
	klog.FromContext(ctx).Info("The bucket was created anew")
	p.warn(p.b, "BucketLost", "Verify", "The bucket was gone from the store with all backups in it; it was created anew")
}

// tellRepair tells that drift was repaired; refusal is why it was not, nil if it was.
func (p *bucketPass) tellRepair(ctx context.Context, d *drift, refusal *Refusal) {
	if refusal != nil && p.live.Policy.weakerThan(p.old.Policy) {
		p.tellUnrepaired(ctx, d, refusal)
		return
	}
	p.tellings.update(p.b.Name, func(of *telling) { of.drift, of.unrepaired = nil, false })
	p.metrics.bucketRepairs.WithLabelValues(p.b.Name).Inc()
	p.evidence.note(p.b.Name, evidenceRepair, "It was put right. %s", d)
	if d.gone {
		return
	}
	klog.FromContext(ctx).Info("The bucket's policy was restored", "expected", d.expected.String(), "found", d.found.String())
	p.warn(p.b, "PolicyDrift", "Verify", "The bucket should have a %s, the store said %s; it was restored", d.expected, d.found)
}

// tellUnrepaired tells, once, that drift is still there and why. A pass that was cut off tells nothing, and is made again.
func (p *bucketPass) tellUnrepaired(ctx context.Context, d *drift, err error) {
	if errors.Is(err, context.Canceled) || apierrors.IsConflict(err) {
		return
	}
	// What this pass did on the way is no further change.
	left := &drift{gone: !p.live.Exists, expected: d.expected, found: p.live.Policy}
	if p.tellings.update(p.b.Name, func(of *telling) { of.drift, of.unrepaired = left, true }).unrepaired {
		return
	}
	klog.FromContext(ctx).Info("The bucket was not restored", "expected", left.expected.String(), "found", left.found.String(), "err", err)
	if left.gone {
		p.warn(p.b, "BucketLost", "Verify", "The bucket is gone from the store with all backups in it, and was not created anew: %v", err)
		return
	}
	p.warn(p.b, "PolicyNotRestored", "Verify", "The bucket should have a %s, the store says %s; it was not restored: %v", left.expected,
		left.found, err)
}

// showChanges shows what is expected after the pass, and whether what was seen last is foreign.
func (p *bucketPass) showChanges(ctx context.Context) {
	setPolicyGauges(p.metrics.bucketExpectedLocked, p.metrics.bucketExpectedRetention, p.b.Name, p.wanted())
	message, value := "", 0.0
	if p.foreign() {
		message, value = p.foreignMessage(), 1
	}
	p.metrics.bucketForeign.WithLabelValues(p.b.Name).Set(value)
	before := p.tellings.update(p.b.Name, func(of *telling) { of.foreign = message })
	shown, _ := findCondition(p.b.Conditions, conditionForeign)
	if message == "" || message == before.foreign || shown.Status == "True" && shown.Message == message {
		return
	}
	p.evidence.note(p.b.Name, evidenceForeign, "%s", message)
	klog.FromContext(ctx).Info("Somebody made the bucket's policy stronger", "expected", p.wanted().String(), "found", p.live.Policy.String())
	p.warn(p.b, conditionForeign, "Verify", "%s", message)
}

func (p *bucketPass) foreignMessage() string {
	return fmt.Sprintf("The store says: %s. Expected is: %s. It is stronger, was not set by bucketwarden, and is left alone.", p.live.Policy,
		p.wanted())
}

// foreignCondition is the condition about a foreign policy; ok is false if there is none and never was.
func (p *bucketPass) foreignCondition() (c condition, ok bool) {
	if p.foreign() {
		return condition{Type: conditionForeign, Status: "True", Reason: "Stronger", Message: p.foreignMessage()}, true
	}
	_, ok = findCondition(p.b.Conditions, conditionForeign)
	return condition{Type: conditionForeign, Status: "False", Reason: "AsExpected", Message: "The policy is not stronger than expected."}, ok
}
