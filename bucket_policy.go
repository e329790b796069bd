// The policy of a BackupBucket within a pass: what it should be, whether somebody changed it, and the steps to it. After
// each step the cloud is asked again, so that a policy is locked only after it was read back. What planPolicy (policy.go)
// decides is carried out here and nowhere else. Only what the spec asked for and the cloud has confirmed is remembered.

package main

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"
)

// maxConvergeSteps bounds the changes of a policy in one pass: at most two are ever
// needed, so a store that does not do what it says is found out.
const maxConvergeSteps = 3

func (p *bucketPass) observe(ctx context.Context, store Store) error {
	state, err := store.Observe(ctx)
	if err != nil {
		return err
	}
	p.live = state
	if !state.Exists && !p.kind.creates() && !p.b.specObserved() {
		// Where a spec that was not carried out says is no such bucket, which says nothing of ours.
		return nil
	}
	p.observed = true
	p.evidence.saw(p.b.Name, state, p.next.Policy, p.unknownAfter(p.b), passOf(ctx).clock())
	p.showState(p.b, state)
	return nil
}

// confirmed notes that the store has just told the state of a bucket.
func (r *bucketReconciler) confirmed(b *backupBucket) {
	r.metrics.facts.confirm(b.Name, factState, 0, time.Now())
	r.metrics.bucketLastVerified.WithLabelValues(b.Name).SetToCurrentTime()
}

// showState shows what the store has just told.
func (r *bucketReconciler) showState(b *backupBucket, state BucketState) {
	r.confirmed(b)
	if state.Extensions != nil {
		r.metrics.bucketExtensions.WithLabelValues(b.Name).Set(float64(*state.Extensions))
	} else {
		r.metrics.bucketExtensions.DeleteLabelValues(b.Name)
	}
	setPolicyGauges(r.metrics.bucketLocked, r.metrics.bucketRetention, b.Name, state.Policy)
}

// expected is the policy that the bucket should have had before this pass.
func (p *bucketPass) expected() Policy {
	if p.kind.settled() && p.old.Policy.None() {
		return p.desired.Policy
	}
	return p.old.Policy
}

// nextSteps is what the policy needs now.
func (p *bucketPass) nextSteps() policyPlan {
	plan := planPolicy(p.desired.Policy, p.live.Policy, p.old.Policy, p.lockAtOnce)
	if limit, ok := p.provider(&p.b.object).(extensionLimit); ok && p.extends(plan) && p.live.Extensions != nil && *p.live.Extensions == 0 {
		return policyPlan{Refusal: limit.refuseExtension(plan.Steps[0].Policy, p.live.Policy)}
	}
	if live := p.live; !live.Policy.None() && live.Policy == p.desired.Policy && (live.Appends && !live.Policy.Locked || live.Years) {
		// Setting it anew switches protected append writes off, which we never allow, and writes the period in days.
		plan.Steps = []Step{{Lock: live.Policy.Locked, Policy: p.desired.Policy}}
	}
	return plan
}

// extends says that the next step extends a locked policy.
func (p *bucketPass) extends(plan policyPlan) bool {
	return len(plan.Steps) > 0 && plan.Steps[0].Lock && p.live.Policy.Locked
}

// converge changes the policy one step at a time. After each step the cloud is asked
// again, so a policy is locked only after it was read back, and on its current state.
func (p *bucketPass) converge(ctx context.Context, store Store) error {
	for range maxConvergeSteps {
		plan := p.nextSteps()
		if len(plan.Steps) == 0 {
			if plan.Refusal == nil {
				// The store has what is asked for, or more. What is more is not ours.
				p.next.Policy = p.desired.Policy
			}
			return nil
		}
		if err := p.start(); err != nil {
			return err
		}
		step := plan.Steps[0]
		if err := p.apply(ctx, store, step); err != nil {
			return err
		}
		before := p.next.Policy
		if plan.Refusal == nil {
			p.next.Policy = step.Policy
		}
		err := p.readBack(ctx, store)
		if err == nil && p.live.Policy != step.Policy {
			p.next.Policy = before
		}
		p.saveLock(ctx)
		if err != nil {
			return err
		}
	}
	return configErrorf("the store does not keep the policy it was given: it answers %s, wanted is %s", p.live.Policy, p.desired.Policy)
}

// readBackDelays are the pauses between reads of a changed policy: S3 may answer with the
// old one for a while ("bucket configurations have an eventual consistency model",
// docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html#ConsistencyModel).
var readBackDelays = []time.Duration{250 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}

// readBack observes the bucket until its policy is another one than before.
func (p *bucketPass) readBack(ctx context.Context, store Store) error {
	before := p.live
	for i := 0; ; i++ {
		if err := p.observe(ctx, store); err != nil || p.live.Policy != before.Policy || p.live.Appends != before.Appends ||
			p.live.Years != before.Years || i == len(readBackDelays) {
			return err
		}
		select {
		case <-time.After(readBackDelays[i]):
		case <-ctx.Done():
			return fmt.Errorf("reading back the policy of bucket %s: %w", p.b.Name, ctx.Err())
		}
	}
}

func (p *bucketPass) apply(ctx context.Context, store Store, step Step) error {
	logger := klog.FromContext(ctx)
	if !step.Lock {
		if err := store.SetPolicy(ctx, step.Policy); err != nil {
			return err
		}
		p.evidence.note(p.b.Name, evidenceLock, "bucketwarden set the policy: it was %s, now it is %s.", p.live.Policy, step.Policy)
		logger.Info("Set the bucket's policy", "was", p.live.Policy.String(), "policy", step.Policy.String())
		p.normal(p.b, "PolicySet", "Reconcile", "The policy of bucket %s was: %s; now: %s", p.b.Name, p.live.Policy, step.Policy)
		return nil
	}
	if err := store.LockPolicy(ctx, step.Policy); err != nil {
		return err
	}
	p.metrics.bucketLocks.WithLabelValues(p.b.Name).Inc()
	p.evidence.note(p.b.Name, evidenceLock, "bucketwarden locked the policy: it was %s, now it is %s.", p.live.Policy, step.Policy)
	logger.Info("Locked the bucket's policy", "was", p.live.Policy.String(), "policy", step.Policy.String())
	p.normal(p.b, "PolicyLocked", "Reconcile", "The policy of bucket %s was: %s; now: %s", p.b.Name, p.live.Policy, step.Policy)
	if p.live.Policy.Locked && p.live.Extensions != nil && *p.live.Extensions == 1 {
		p.warn(p.b, "LastExtension", "Reconcile", "The policy of bucket %s was extended to %s; that was the last "+
			"extension that the store allows", p.b.Name, step.Policy.Hours())
	}
	return nil
}

// saveLock records a new lock at once: whatever becomes of this pass and of this process, it is known to be ours and
// defended. If that fails, the status at the end of the pass tries again, and the next pass finds the lock as desired.
func (p *bucketPass) saveLock(ctx context.Context) {
	if !p.next.Policy.Locked || p.next.Policy == p.saved.Policy {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	p.next.Cloud = p.desired.Cloud
	status := map[string]any{"providerStatus": p.provider(&p.b.object).record(p.b.Type, p.next)}
	if _, err := p.resource.patch(ctx, &p.b.object, map[string]any{"status": status}, "status"); err != nil {
		klog.FromContext(ctx).Error(err, "Could not record the lock at once")
		return
	}
	p.saved = p.next
}
