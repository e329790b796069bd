// What the status of a BackupBucket says of a pass: providerStatus, the generated secret and the conditions, which are
// written only where they differ from what is there, and the refusals of a spec. A condition says what the store
// answered; what it did not answer is Unknown.

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// Condition types of a BackupBucket.
const (
	conditionImmutable = "BucketImmutable"
	conditionHardened  = "BucketHardened"
	// conditionForeign is there once a policy was stronger than it should be, and True while it is. An event has the same name.
	conditionForeign = "ForeignPolicy"
	// conditionWaiting is there, and True, only while a deletion waits.
	conditionWaiting = "DeletionWaiting"
)

// reportRefusal says whether err is a refusal, and tells of a new one.
func (r *bucketReconciler) reportRefusal(ctx context.Context, b *backupBucket, err error, opType operationType) bool {
	var refused *Refusal
	if !errors.As(err, &refused) {
		return false
	}
	if r.refusalIsNew(b, err, opType) {
		r.metrics.refusals.WithLabelValues(b.Name, refused.Reason).Inc()
		r.evidence.note(b.Name, evidenceRefusal, "%s", refused.Message)
		klog.FromContext(ctx).Info("Refused to weaken the bucket", "reason", refused.Reason, "message", refused.Message)
		r.warn(b, "WeakeningRefused", "Reconcile", "%s", refused.Message)
	}
	return true
}

// refusalIsNew says that this is not just the same refused spec looked at again.
func (r *bucketReconciler) refusalIsNew(b *backupBucket, err error, opType operationType) bool {
	last := b.LastOperation
	return last == nil || last.State != stateError || b.ObservedGeneration != b.Generation ||
		last.Description != failureDescription(r.resource.kind, b.Name, opType, err)
}

// statusFields are the status fields that follow from what was seen.
func (p *bucketPass) statusFields() map[string]any {
	fields := map[string]any{}
	if p.observed {
		p.next.Cloud = p.desired.Cloud
		if p.generated != nil && (p.next.Account == "" || p.republished) {
			p.next.Account, _ = p.published(p.b, p.generated)
		}
	}
	if p.next != p.saved {
		fields["providerStatus"] = p.provider(&p.b.object).record(p.b.Type, p.next)
	}
	if p.generated != nil {
		if ref := (types.NamespacedName{Namespace: p.generated.Namespace, Name: p.generated.Name}); ref != p.b.GeneratedSecretRef {
			fields["generatedSecretRef"] = map[string]any{"namespace": ref.Namespace, "name": ref.Name}
		}
	}
	if !p.observed {
		return fields
	}
	wanted := []condition{p.immutableCondition()}
	if c, ok := p.foreignCondition(); ok {
		wanted = append(wanted, c)
	}
	if p.hardened {
		wanted = append(wanted, hardenedCondition(p.gaps, p.unhardened))
	}
	if c, ok := p.retention.condition(p.b); ok {
		wanted = append(wanted, c)
	}
	if conditions, changed := mergeConditions(p.b.Conditions, time.Now(), wanted...); changed {
		fields["conditions"] = conditions
	}
	return fields
}

// writeConditions writes what a pass that leaves the rest of the status alone has seen, if that is something new.
func (p *bucketPass) writeConditions(ctx context.Context) error {
	conditions, ok := p.statusFields()["conditions"].([]condition)
	if !ok || len(p.b.Conditions) == 0 {
		return nil
	}
	_, err := p.resource.patch(ctx, &p.b.object, map[string]any{"status": map[string]any{"conditions": conditions}}, "status")
	if err == nil {
		p.b.Conditions = conditions
	}
	return ignoreNotFound(err)
}

func (p *bucketPass) immutableCondition() condition {
	// True only if it can't be undone.
	c := condition{Type: conditionImmutable, Status: "True", Reason: "Locked"}
	switch {
	case !p.live.Exists:
		return noBucket
	case p.live.Policy.None():
		c.Status, c.Reason = "False", "NoPolicy"
	case !p.live.Policy.Locked:
		c.Status, c.Reason = "False", "Unlocked"
	}
	c.Message = fmt.Sprintf("The store says: %s.", p.live.Policy)
	if !p.live.Default.None() {
		c.Reason = "DefaultOnly"
		c.Message = fmt.Sprintf("The store says: %s, but only as a default, which an object may be written without; nothing is locked "+
			"for sure.", p.live.Default)
		return c
	}
	if p.foreign() {
		c.Message += " It was not set by bucketwarden and is left alone."
	}
	return c
}

func hardenedCondition(gaps []string, unknown error) condition {
	if unknown != nil {
		told := append(slices.Clone(gaps), "It is not known whether the rest is in place, and is tried again: "+sentence(unknown))
		return condition{Type: conditionHardened, Status: "Unknown", Reason: "NoAnswer", Message: strings.Join(told, " ")}
	}
	if len(gaps) == 0 {
		return condition{Type: conditionHardened, Status: "True", Reason: "Hardened", Message: "Encryption, public access " +
			"block and TLS-only access are in place."}
	}
	return condition{Type: conditionHardened, Status: "False", Reason: "Gaps", Message: strings.Join(gaps, " ")}
}
