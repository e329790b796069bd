// The versions of each live BackupEntry are retained as long as they should be: what planRetention (retention.go) finds at a look at
// the backups is carried out here.
//
// Rules:
//   - A retention can't be taken back. Every extension goes through extend, whose permit (guard.go) reads live that the entry still
//     lives and what its bucket should have.
//   - Behind everything else: a rate for each bucket, a time for each pass. What is left is done by the next pass.
//   - What is refused of some is refused of all, so few are tried. It is told once, is no failure, and is tried again at the next look.
//     Only GOVERNANCE is of single versions, mostly of those from before the lock: then what was written last is tried too.
//   - On a store whose policy covers every object (it is no extender) nothing is asked.

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	// extensionRate is how many versions of a bucket are looked up or extended in a second, extensionBurst how many at once after a
	// pause: what twenty clusters write between a change of the bucket and its repair should not wait.
	extensionRate  = 50
	extensionBurst = 1000
	// keepTime is how long a pass extends versions, keepPause how soon the next one goes on.
	keepTime  = 20 * time.Second
	keepPause = 100 * time.Millisecond
	// maxRefusals is how many versions in a row are refused before the rest is not tried.
	maxRefusals = 3
	// maxPlanned is how many versions of all entries together are remembered for the next pass, for how long; the entries beyond
	// that are listed again.
	maxPlanned  = 20000
	plannedTime = 5 * time.Minute
)

// retentionKeeper keeps the versions of live entries retained. A nil one does nothing (--extend-retention=false). It is safe for
// concurrent use.
type retentionKeeper struct {
	*bucketReconciler
	// checks is the queue of entries to look at, states what is known of them.
	checks *controller
	states *entryStates

	mu      sync.Mutex
	buckets map[string]*bucketRetention
	// plans are those of entries that go on, planned how many steps they have.
	plans   map[types.UID]*retentionPlan
	planned int
}

func newRetentionKeeper(buckets *bucketReconciler, checks *controller, states *entryStates) *retentionKeeper {
	return &retentionKeeper{bucketReconciler: buckets, checks: checks, states: states, buckets: map[string]*bucketRetention{},
		plans: map[types.UID]*retentionPlan{}}
}

// retainedState is what is known of the retention of an entry's versions. The zero value: nothing yet.
type retainedState struct {
	// policy is what it is about, none if nothing has to be retained.
	policy Policy
	// looked: a look has come to an end. at is when there was the last one.
	looked bool
	at     time.Time
	// through: what was stored until then, by the store's clock, is retained for the period.
	through time.Time
	// round is that of the bucket that was done last.
	round uint64
	// eligible are the versions that have to be retained, unprotected those that are known not to be. more: others are not known.
	eligible, unprotected int64
	more                  bool
	trouble               retentionTrouble
	// told is when an event told of extensions last.
	told time.Time
}

// retentionTrouble is why versions are not retained as they should be; its reason is empty if they are.
type retentionTrouble struct{ reason, message string }

// Reasons of the condition BackupsRetained.
const (
	retainedPermission   = "PermissionMissing"
	retainedGovernance   = "Governance"
	retainedNotSupported = "NotSupported"
	retainedRefused      = "Refused"
)

// planProgress is how far a plan is.
type planProgress struct {
	// round is that of the bucket that the plan is for, at when it was made, by our clock.
	round uint64
	at    time.Time
	// done are its first steps, refused those of them that the store has refused, unprotected how many of these are not retained.
	done        int
	refused     []time.Time
	unprotected int64
	// touched are the chains that a step is for, open those of them where one was refused.
	touched, open [keptChains]bool
	// turned: since versions in GOVERNANCE are refused, the rest is done from its end on.
	turned   bool
	trouble  retentionTrouble
	extended map[string]int64
}

// owed is what the versions of an entry should have, none if nobody has promised that; b is its bucket, nil if that is not ours.
// What a stranger has set is not recorded, so it makes nothing longer.
func (k *retentionKeeper) owed(e *backupEntry) (b *backupBucket, policy Policy) {
	obj, exists, err := k.cached.GetByKey(e.BucketName)
	b, ok := obj.(*backupBucket)
	if err != nil || !exists || !ok || !k.scope.responsible(&b.object) {
		return nil, e.promised()
	}
	return b, k.scope.promised(b)
}

// promised is the lock in what an entry knows of its bucket, none if there is none.
func (e *backupEntry) promised() Policy { return lockedFloor(e.Recorded) }

// promised is the lock that is recorded of a bucket, none if there is none or the spec asks for none any more.
func (s *scope) promised(b *backupBucket) Policy {
	if s.asksLess(b) {
		return Policy{}
	}
	return lockedFloor(readRecord(b.ProviderStatus).Policy)
}

// asksLess says that the spec of a bucket asks for no lock.
func (s *scope) asksLess(b *backupBucket) bool {
	desired, _ := s.readBucket(b)
	return desired.err == nil && !desired.Policy.Locked
}

// keep extends what is not retained of the versions that were found: no request if nothing has to be. again is when the rest is to
// be done, zero if all is; tells says that this will tell until when the newest chain is locked.
func (k *retentionKeeper) keep(ctx context.Context, e *backupEntry, objects Objects, found *chain, memory *entryMemory,
) (again time.Duration, tells bool, err error) {
	if k == nil {
		return 0, false, nil
	}
	b, policy := k.owed(e)
	if policy.None() {
		k.states.setRetained(e, retainedState{})
		return 0, false, nil
	}
	known, round := k.known(e, b, policy, found.now)
	plan := planRetention(found, known, memory)
	plan.round, plan.at, plan.extended = round, time.Now(), map[string]int64{}
	if _, ok := objects.(extender); !ok {
		plan.steps = nil
	}
	tells = plan.touched[0]
	again, err = k.carryOut(ctx, e, b, objects, plan, memory)
	return again, tells && (again > 0 || err != nil), err
}

// leftOver is the plan of an entry that goes on, nil if there is none.
func (k *retentionKeeper) leftOver(e *backupEntry) *retentionPlan {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	plan := k.plans[e.UID]
	k.drop(e.UID)
	if plan == nil || time.Since(plan.at) > plannedTime {
		return nil
	}
	return plan
}

// drop forgets the plan of an entry. The caller has the lock.
func (k *retentionKeeper) drop(uid types.UID) {
	if plan := k.plans[uid]; plan != nil {
		k.planned -= len(plan.steps)
		delete(k.plans, uid)
	}
}

// leave leaves a plan to the next pass, if there is room for it.
func (k *retentionKeeper) leave(e *backupEntry, plan *retentionPlan) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for uid, old := range k.plans {
		if time.Since(old.at) > 2*plannedTime {
			k.drop(uid)
		}
	}
	plan.steps, plan.done = slices.Clone(plan.steps[plan.done:]), 0
	if plan.at = time.Now(); k.planned+len(plan.steps) <= maxPlanned {
		k.plans[e.UID] = plan
		k.planned += len(plan.steps)
	}
}

// goOn carries out the rest of a plan.
func (k *retentionKeeper) goOn(ctx context.Context, e *backupEntry, objects Objects, plan *retentionPlan) (time.Duration, error) {
	b, policy := k.owed(e)
	if policy != plan.policy {
		return keepPause, nil
	}
	memory := k.states.get(e).memory
	again, err := k.carryOut(ctx, e, b, objects, plan, &memory)
	k.states.change(e, func(state *entryState) {
		state.memory.kept = memory.kept
		if lock := plan.lock(); lock.known {
			state.lock = lock
		}
	})
	return again, err
}

// carryOut takes the steps of a plan, as far as the time of a pass reaches, and notes what is known then.
func (k *retentionKeeper) carryOut(ctx context.Context, e *backupEntry, b *backupBucket, objects Objects, plan *retentionPlan,
	memory *entryMemory) (again time.Duration, err error) {
	before := k.states.get(e).retained
	k.states.setRetained(e, plan.state(before, false))
	if plan.done < len(plan.steps) {
		k.show(e.BucketName)
		again, err = k.takeSteps(ctx, e, b, objects, plan)
	}
	var ended *extensionEndedError
	if errors.As(err, &ended) {
		klog.FromContext(ctx).V(2).Info("No version is extended", "reason", ended.Error())
		return 0, nil
	}
	after := plan.state(before, again == 0 && err == nil)
	for i, chain := range plan.chains {
		if plan.touched[i] && !plan.open[i] && plan.complete() {
			memory.kept[i] = chain
		}
	}
	k.tell(ctx, e, plan, before.round, &after)
	k.states.setRetained(e, after)
	k.changed(e.BucketName)
	if again > 0 || err != nil {
		k.leave(e, plan)
	}
	return again, err
}

// lock is until when what a restore would take is locked, as its steps have shown.
func (p *retentionPlan) lock() chainLock {
	chain := p.chains[0]
	if !p.complete() || !p.touched[0] || p.open[0] || p.restored == 0 || chain.links < p.restored || !chain.until.After(p.now) {
		return chainLock{}
	}
	return chainLock{known: true, locked: true, until: chain.until}
}

// complete says that all steps were taken.
func (p *retentionPlan) complete() bool { return p.done == len(p.steps) }

// state is what is known of an entry by now; ended says that the plan will not go on.
func (p *retentionPlan) state(before retainedState, ended bool) retainedState {
	s := retainedState{policy: p.policy, looked: before.looked && before.policy == p.policy || ended, round: before.round, told: before.told,
		at:       time.Now(),
		eligible: p.eligible, unprotected: p.unprotected, trouble: p.trouble}
	if before.policy == p.policy {
		s.through = before.through
	}
	s.through = laterOf(s.through, p.before)
	if ended {
		s.round = p.round
	}
	// What is not known of each that is stored later.
	through := p.through
	undone := func(stored time.Time) {
		if stored.After(s.through) {
			through = earlier(through, stored.Add(-time.Second))
		}
	}
	for _, stored := range p.refused {
		undone(stored)
	}
	for _, x := range p.steps[p.done:] {
		undone(x.version.created)
		switch {
		case x.ask:
			s.more = true
		case x.reason != extensionChain:
			s.unprotected++
		}
	}
	s.through = laterOf(s.through, through)
	return s
}

// takeSteps takes the steps of a plan until all are done, the time is over, or the store refuses them.
func (k *retentionKeeper) takeSteps(ctx context.Context, e *backupEntry, b *backupBucket, objects Objects, plan *retentionPlan,
) (again time.Duration, err error) {
	o := extensionOrder{entry: e, bucket: b, policy: plan.policy, base: entryBase(e.Name) + "/", now: plan.now.Add(time.Since(plan.at)),
		permit: k.permitExtension(e, b, plan.policy)}
	o.end = plan.policy.until(o.now)
	if b != nil {
		// Nobody else may need the permission.
		if objects, err = k.openContents(ctx, b, classCheck); err != nil {
			return 0, err
		}
	}
	store, ok := objects.(extender)
	if !ok {
		return 0, fmt.Errorf("bucket %s cannot be opened to extend the retention of versions", e.BucketName)
	}
	until, row := time.Now().Add(keepTime), 0
	for ; plan.done < len(plan.steps); plan.done++ {
		if time.Now().After(until) {
			return keepPause, nil
		}
		x := plan.steps[plan.done]
		retained, refusal, err := k.settle(ctx, &o, store, x, plan)
		if err != nil {
			return 0, err
		}
		if refusal == nil {
			row = 0
			for i, at := range x.at {
				switch {
				case at < 0:
				case retained.IsZero():
					plan.open[i] = true // a link is gone
				case at < plan.chains[i].links:
					plan.chains[i].until = earlier(plan.chains[i].until, retained)
				}
			}
			continue
		}
		plan.refused = append(plan.refused, x.version.created)
		for i, at := range x.at {
			plan.open[i] = plan.open[i] || at >= 0
		}
		switch row++; {
		case row == maxRefusals && plan.trouble.reason == retainedGovernance && !plan.turned:
			// Those of before are refused, and what was written since may not be.
			plan.turned, row = true, 0
			slices.Reverse(plan.steps[plan.done+1:])
		case row == maxRefusals, errors.Is(refusal, errNoRetention):
			plan.done++
			return 0, nil
		}
	}
	return 0, nil
}

// extensionOrder is what holds for all extensions of a pass.
type extensionOrder struct {
	entry  *backupEntry
	bucket *backupBucket
	policy Policy
	// base begins every key. now is the store's time, and end a period from then.
	base     string
	now, end time.Time
	permit   permit
}

// extend asks the store to retain one version for longer. Irreversible; nothing else does it.
func (k *retentionKeeper) extend(ctx context.Context, o *extensionOrder, store extender, v version, until time.Time, bypass bool) error {
	if !strings.HasPrefix(v.key, o.base) || v.marker || v.upload || until.After(o.end) || !until.After(o.now) {
		return fmt.Errorf("%q must not be retained until %s", v.key, formatTime(until))
	}
	if err := o.permit.ask(ctx); err != nil {
		return err
	}
	if err := k.pace(ctx, o.entry.BucketName); err != nil {
		return err
	}
	return store.extend(ctx, v, until, bypass)
}

// lookUp asks how a version is retained. It is zero if that must not be read.
func (k *retentionKeeper) lookUp(ctx context.Context, o *extensionOrder, store extender, v version) (versionLock, error) {
	if err := k.pace(ctx, o.entry.BucketName); err != nil {
		return versionLock{}, err
	}
	lock, err := store.lock(ctx, v)
	if err != nil && (codeOf(err) == codeUnauthorized || errors.Is(err, errNoRetention)) {
		return versionLock{}, nil
	}
	return lock, err
}

// enough says that what is retained until then is retained as long as it should be.
func enough(until, need time.Time) bool { return !until.Add(uploadTime).Before(need) }

// settle sees to one version: at most four requests, one if it is known that it has to be extended and that is not refused.
// retained is until when it is known to be retained then, zero if it is gone, refusal why the store does not do it.
func (k *retentionKeeper) settle(ctx context.Context, o *extensionOrder, store extender, x extension, plan *retentionPlan) (
	retained time.Time, refusal, err error) {
	if !x.until.After(o.now) {
		return x.until, nil, nil // it has ended meanwhile
	}
	lock, asked := versionLock{}, x.ask
	if asked {
		if lock, err = k.lookUp(ctx, o, store, x.version); err == nil && enough(lock.until, x.need) {
			return lock.until, nil, nil
		}
	}
	if err == nil {
		err = k.extend(ctx, o, store, x.version, x.until, false)
	}
	if refused(err) && !asked {
		denied := err
		if lock, err = k.lookUp(ctx, o, store, x.version); err == nil && enough(lock.until, x.need) {
			return lock.until, nil, nil
		}
		if err == nil {
			err = denied
		}
	}
	if refused(err) && lock.governance {
		err = k.extend(ctx, o, store, x.version, x.until, true)
	}
	switch {
	case err == nil:
		reason := x.reason
		if lock.governance {
			reason = extensionGovernance
		}
		plan.extended[reason]++
		k.metrics.bucketExtended.WithLabelValues(o.entry.BucketName, reason).Inc()
		return x.until, nil, nil
	case errors.Is(err, errRetainedLonger):
		return x.until, nil, nil
	case errors.Is(err, errNoVersion):
		return time.Time{}, nil, nil
	case !final(err):
		return time.Time{}, nil, err
	}
	k.metrics.bucketExtensionFailures.WithLabelValues(o.entry.BucketName).Inc()
	klog.FromContext(ctx).V(2).Info("A version could not be extended", "key", x.version.key, "reason", err.Error())
	plan.trouble = troubleOf(err, lock)
	if !lock.held && (x.reason != extensionChain || !lock.until.After(o.now.Add(uploadTime))) {
		plan.unprotected++
	}
	return time.Time{}, err, nil
}

// refused says that a store refuses to extend one version, for whatever reason.
func refused(err error) bool {
	return errors.Is(err, errNotExtended) || codeOf(err) == codeUnauthorized
}

// final says that it is the version that is refused, and not that the store does not work just now, or not with the credentials.
func final(err error) bool {
	return errors.As(err, new(*storeError)) && !isTransient(err) && retryAfter(err) == 0 && codeOf(err) != codeUnauthenticated &&
		codeOf(err) != codeRetryableConfiguration
}

// troubleOf says why a version is not extended, always the same of the same cause.
func troubleOf(err error, lock versionLock) retentionTrouble {
	switch {
	case errors.Is(err, errNoRetention):
		return retentionTrouble{retainedNotSupported, "the store cannot retain single versions for longer."}
	case lock.governance:
		return retentionTrouble{retainedGovernance, "they are retained in GOVERNANCE mode, which can be taken away, and the store does not let " +
			"bucketwarden change that: it needs the permission s3:BypassGovernanceRetention."}
	case refused(err):
		return retentionTrouble{retainedPermission, "the store does not let bucketwarden extend their retention: it needs the permission " +
			"s3:PutObjectRetention."}
	}
	return retentionTrouble{retainedRefused, "the store refuses to extend the retention of versions."}
}

// tell logs what was extended, and tells it by events where the bucket's round does not.
func (k *retentionKeeper) tell(ctx context.Context, e *backupEntry, plan *retentionPlan, before uint64, state *retainedState) {
	count := int64(0)
	for _, n := range plan.extended {
		count += n
	}
	if count == 0 {
		return
	}
	defer clear(plan.extended)
	klog.FromContext(ctx).Info("Extended the retention of versions", "entry", e.Name, "bucket", e.BucketName, "versions", count, "reasons",
		strings.Join(slices.Sorted(maps.Keys(plan.extended)), ","))
	if k.extendedInRound(e.BucketName, plan.round, before, count) {
		return
	}
	// A chain is extended twice in a period.
	if now := time.Now(); plan.policy.until(state.told).Before(now) {
		state.told = now
		k.normal(e, "VersionsExtended", "Extend", "The retention of %d object versions under %s/ in bucket %s was extended (%s), so that what a "+
			"restore needs stays retained", count, entryBase(e.Name), e.BucketName, strings.Join(slices.Sorted(maps.Keys(plan.extended)), ", "))
	}
}

// urge has the backups of all live entries of a bucket looked at, at once.
func (k *retentionKeeper) urge(bucket string) {
	for _, e := range k.liveEntries(bucket) {
		k.checks.enqueue(cache.MetaObjectToName(e))
	}
}

// liveEntries are the entries of a bucket whose backups are looked at.
func (k *retentionKeeper) liveEntries(bucket string) (live []*backupEntry) {
	for _, obj := range k.entries.List() {
		if e, ok := obj.(*backupEntry); ok && e.BucketName == bucket && k.checkable(e) {
			live = append(live, e)
		}
	}
	return live
}
