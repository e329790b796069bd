// What is known of the retention of a bucket's versions: since when the bucket gives new ones what they should have, whether that
// was interrupted or has grown, and what of it the condition BackupsRetained, the metrics and an event tell.
//
// Rules:
//   - Only a verification that has found the policy as it should be vouches for what was stored before it; a long time without
//     one ends what the one before has vouched for.
//   - A repair, and a growth of the period, begin a round: all live entries are looked at, at once. The condition is not True before
//     the last of them was.
//   - What has to survive a restart is in the condition's message alone, which is written at most hourly while nothing else is new.

package main

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// conditionRetained says that the versions of a bucket are retained as long as they should be.
const conditionRetained = "BackupsRetained"

// retainedRefresh is how often the condition says anew until when all that was stored is retained.
const retainedRefresh = time.Hour

// bucketRetention is what is known of a bucket. All times are ours, but for remembered.
type bucketRetention struct {
	uid types.UID
	// policy is what versions should have, as the last pass has left it; good says that the bucket gives it to them. Both mean
	// nothing unless known.
	policy      Policy
	known, good bool
	// covers says that the policy is not of each version, but of the bucket.
	covers bool
	// What was stored from goodSince to lastGood got what it should have. limit is how long that may be without a verification.
	goodSince, lastGood time.Time
	limit               time.Duration
	// remembered is what the condition told at the begin of this process of the policy rememberedPolicy: what was stored until
	// then is retained for the period.
	remembered       time.Time
	rememberedPolicy Policy
	// round counts repairs and growths, settled is the last one after which all entries were looked at. gapFrom to gapTo are those
	// of the gaps in it (gapFrom is zero if it is not known, or everything), grown when the period has grown.
	round, settled  uint64
	gapFrom, gapTo  time.Time
	everything      bool
	grown           time.Time
	extended        int64
	extendedEntries int64
	// tokens are how many requests may be made at once, at was when they were counted.
	tokens float64
	at     time.Time
	// told is the trouble that an event told of last.
	told retentionTrouble
}

const retainedMessage = "Every backup stored until %s is retained for %s from when it was stored, and what a restore would take for at " +
	"least half of that from now on."

// rememberedRetention reads what the condition of a bucket has told.
func rememberedRetention(b *backupBucket) (through time.Time, policy Policy) {
	c, _ := findCondition(b.Conditions, conditionRetained)
	record := readRecord(b.ProviderStatus).Policy
	var at, period string
	if c.Status != "True" || !record.Locked {
		return time.Time{}, Policy{}
	}
	n, err := fmt.Sscanf(c.Message, "Every backup stored until %s is retained for %s from", &at, &period)
	if n != 2 || err != nil || period != record.Hours() {
		return time.Time{}, Policy{}
	}
	through, err = time.Parse(time.RFC3339, at)
	if err != nil || c.Message != fmt.Sprintf(retainedMessage, at, period) {
		return time.Time{}, Policy{}
	}
	return through, record
}

// bucket is what is known of a bucket. The caller has the lock.
func (k *retentionKeeper) bucket(b *backupBucket) *bucketRetention {
	s := k.buckets[b.Name]
	if s == nil || s.uid != b.UID {
		s = &bucketRetention{uid: b.UID, limit: k.unknownAfter(b), tokens: extensionBurst}
		s.remembered, s.rememberedPolicy = rememberedRetention(b)
		k.buckets[b.Name] = s
	}
	return s
}

// forget forgets a bucket that is gone.
func (k *retentionKeeper) forget(bucket string) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.buckets, bucket)
	k.metrics.bucketUnprotected.DeleteLabelValues(bucket)
}

// broken notes that a bucket's policy is not as it should be.
func (k *retentionKeeper) broken(b *backupBucket) {
	if k == nil {
		return
	}
	k.mu.Lock()
	s := k.bucket(b)
	s.known, s.good, s.policy = true, false, k.scope.promised(b)
	k.mu.Unlock()
	k.show(b.Name)
}

// verified notes that a pass that began then has left the policy as recorded, which was another one before, and that the bucket had
// less when the pass came if repaired says so. each says that versions have a retention of their own.
func (k *retentionKeeper) verified(b *backupBucket, before, recorded, live Policy, repaired, each bool, begun time.Time) {
	if k == nil {
		return
	}
	k.mu.Lock()
	s, now := k.bucket(b), time.Now()
	if s.policy, s.covers = lockedFloor(recorded), !each; k.scope.asksLess(b) {
		s.policy = Policy{}
	}
	// Somebody else may have put it back.
	repaired = repaired || s.known && !s.good && !s.lastGood.IsZero()
	grows := lockedFloor(before) != s.policy
	s.known, s.good = true, !s.policy.None() && !live.weakerThan(s.policy)
	urgent := s.good && (repaired || grows)
	if s.good {
		s.vouch(before.Locked, repaired, grows, begun, now)
	}
	k.mu.Unlock()
	if urgent {
		k.urge(b.Name)
	}
	k.show(b.Name)
}

// vouch notes that the bucket gives new versions what they should have, by an answer that was asked for then, and begins a round if
// it did not before.
func (s *bucketRetention) vouch(locked, repaired, grows bool, begun, now time.Time) {
	if s.round == s.settled {
		s.gapFrom, s.gapTo, s.grown, s.everything = time.Time{}, time.Time{}, time.Time{}, false
	}
	switch {
	case grows && locked:
		s.grown = now
	case grows:
		s.gapFrom, s.gapTo, s.everything = time.Time{}, now, true
	case repaired && s.gapTo.IsZero():
		s.gapFrom, s.gapTo = s.lastGood, now
	case repaired:
		s.gapTo = now
	}
	if repaired || grows {
		s.round++
	}
	if repaired || grows || s.goodSince.IsZero() || begun.Sub(s.lastGood) > s.limit {
		s.goodSince = now
	}
	s.lastGood = begun
}

// known is what is known of an entry's versions ahead of a look; now is the store's time. round is that of the bucket.
func (k *retentionKeeper) known(e *backupEntry, b *backupBucket, policy Policy, now time.Time) (known retentionKnown, round uint64) {
	known = retentionKnown{policy: policy}
	state := k.states.get(e).retained
	if state.policy == policy {
		known.through = state.through
	}
	if b == nil {
		return known, 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.bucket(b)
	// An entry that came later may have brought backups.
	if s.rememberedPolicy == policy && e.CreationTimestamp.Add(unknownAfterAtLeast).Before(s.remembered) {
		known.through = laterOf(known.through, s.remembered)
	}
	if s.policy != policy {
		return known, s.round
	}
	store := func(t time.Time) time.Time {
		if t.IsZero() {
			return t
		}
		return t.Add(time.Until(now))
	}
	if !s.goodSince.IsZero() {
		known.goodSince, known.goodUntil = store(s.goodSince).Add(clockMargin), store(s.lastGood).Add(-clockMargin)
		known.waits = s.good && time.Since(s.lastGood) < s.limit
	}
	if state.round < s.round {
		known.gapFrom, known.gapTo, known.everything, known.grown = store(s.gapFrom), store(s.gapTo), s.everything, store(s.grown)
	}
	return known, s.round
}

// behind says that a look would come too early: the cache does not show yet what the bucket has got.
func (k *retentionKeeper) behind(e *backupEntry) bool {
	if k == nil {
		return false
	}
	b, policy := k.owed(e)
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.buckets[e.BucketName]
	return b != nil && s != nil && s.uid == b.UID && s.inRound() && s.policy != policy
}

// urgent says that a look at an entry must not wait: its bucket is in a round.
func (k *retentionKeeper) urgent(e *backupEntry) bool {
	if k == nil {
		return false
	}
	round := k.states.get(e).retained.round
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.buckets[e.BucketName]
	return s != nil && s.inRound() && round < s.round
}

// pace waits until a bucket may be asked about a version.
func (k *retentionKeeper) pace(ctx context.Context, bucket string) error {
	k.mu.Lock()
	s := k.buckets[bucket]
	if s == nil {
		s = &bucketRetention{tokens: extensionBurst}
		k.buckets[bucket] = s
	}
	now := time.Now()
	if s.at.IsZero() {
		s.at = now
	}
	s.tokens = min(extensionBurst, s.tokens+now.Sub(s.at).Seconds()*extensionRate) - 1
	s.at = now
	wait := time.Duration(-s.tokens / extensionRate * float64(time.Second))
	k.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// extendedInRound counts what was extended in a round of the bucket; false if it was outside of one.
func (k *retentionKeeper) extendedInRound(bucket string, round uint64, before uint64, n int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.buckets[bucket]
	if s == nil || round != s.round || before >= round || !s.inRound() {
		return false
	}
	s.extended += n
	s.extendedEntries++
	return true
}

// bucketSummary is what is known of all entries of a bucket.
type bucketSummary struct {
	// through: what was stored until then is retained for the period.
	through               time.Time
	eligible, unprotected int64
	entries               int
	// unlooked are entries that were not looked at yet, behind those that were not since the last round began.
	// stale are those of which the last look is too long ago to count.
	unlooked, behind, more, stale int
	trouble                       retentionTrouble
}

// summary reads what is known of the entries of a bucket.
func (k *retentionKeeper) summary(bucket string, policy Policy, round uint64) (sum bucketSummary) {
	for _, e := range k.liveEntries(bucket) {
		state := k.states.get(e).retained
		if sum.entries++; !state.looked || state.policy != policy {
			sum.unlooked++
		}
		if !state.at.IsZero() && time.Since(state.at) > checkStale {
			sum.stale++
		}
		if state.round < round {
			sum.behind++
		}
		if state.more {
			sum.more++
		}
		sum.eligible += state.eligible
		sum.unprotected += state.unprotected
		sum.through = earlier(sum.through, state.through)
		if state.trouble.reason != "" && (sum.trouble.reason == "" || state.trouble.reason < sum.trouble.reason) {
			sum.trouble = state.trouble
		}
	}
	return sum
}

// show shows the metric of a bucket.
func (k *retentionKeeper) show(bucket string) {
	k.mu.Lock()
	s := k.buckets[bucket]
	if s == nil || !s.known {
		k.mu.Unlock()
		return
	}
	policy, round := s.policy, s.round
	k.mu.Unlock()
	sum := k.summary(bucket, policy, round)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.buckets[bucket] != s || s.round != round {
		return
	}
	if sum.entries == 0 {
		s.endRound() // there is nothing to look at
	}
	k.showSummary(bucket, s, sum)
}

// inRound says that entries are being looked at since a repair or a growth.
func (s *bucketRetention) inRound() bool { return s.round > s.settled }

// showSummary shows the metric of a bucket. The caller has the lock.
func (k *retentionKeeper) showSummary(bucket string, s *bucketRetention, sum bucketSummary) {
	value, known := sum.unprotected, sum.unlooked+sum.more+sum.stale == 0 && !(s.inRound() && sum.behind > 0)
	switch {
	case s.covers && s.good:
		value, known = 0, true
	case s.covers:
		value, known = sum.eligible, sum.unlooked+sum.stale == 0
	}
	if s.policy.None() || !known && value == 0 {
		k.metrics.bucketUnprotected.DeleteLabelValues(bucket)
		k.evidence.countUnprotected(bucket, nil)
		return
	}
	k.metrics.bucketUnprotected.WithLabelValues(bucket).Set(float64(value))
	count := int64(value)
	k.evidence.countUnprotected(bucket, &count)
}

// changed shows what a look has changed, tells of a round that has ended, and has the bucket's status written if that says
// something else by now.
func (k *retentionKeeper) changed(bucket string) {
	obj, exists, err := k.cached.GetByKey(bucket)
	b, ok := obj.(*backupBucket)
	if err != nil || !exists || !ok {
		return
	}
	k.mu.Lock()
	s := k.buckets[bucket]
	if s == nil || s.uid != b.UID || !s.known {
		k.mu.Unlock()
		return
	}
	policy, round := s.policy, s.round
	k.mu.Unlock()
	sum := k.summary(bucket, policy, round)
	k.mu.Lock()
	if k.buckets[bucket] != s || s.round != round {
		k.mu.Unlock()
		return
	}
	k.showSummary(bucket, s, sum)
	note := ""
	if sum.behind == 0 && s.inRound() {
		note = s.endRound()
	}
	news := sum.trouble != s.told && sum.trouble.reason != ""
	s.told = sum.trouble
	c, ok := s.condition(b, sum)
	k.mu.Unlock()
	if note != "" {
		k.normal(b, "VersionsExtended", "Extend", "%s", note)
	}
	shown, _ := findCondition(b.Conditions, conditionRetained)
	if news && shown.Reason != sum.trouble.reason {
		k.warn(b, "VersionsNotExtended", "Extend", "%s", c.Message)
	}
	if ok && (shown.Status != c.Status || shown.Reason != c.Reason) {
		k.resource.controller.queue.Add(cache.MetaObjectToName(b))
	}
}

// endRound notes that all entries were looked at since the last repair or growth. It returns what was extended, as a sentence,
// empty if nothing was.
func (s *bucketRetention) endRound() string {
	n, entries := s.extended, s.extendedEntries
	s.settled, s.extended, s.extendedEntries = s.round, 0, 0
	if n == 0 {
		return ""
	}
	why := "while the bucket's policy was not as it should be, it is not known since when"
	switch {
	case s.everything:
		why = "before the bucket had its policy"
	case !s.grown.IsZero() && !s.gapTo.IsZero():
		why = "while the bucket's policy was not as it should be, or the period was shorter"
	case !s.grown.IsZero():
		why = "while the period was shorter"
	case !s.gapFrom.IsZero():
		why = "after " + s.gapFrom.UTC().Format(time.RFC3339) + ", while the bucket's policy was not as it should be"
	}
	return fmt.Sprintf("The retention of %d object versions of %d BackupEntries was extended: they were stored %s", n, entries, why)
}

// condition is the condition of a bucket; ok is false if there is nothing to say.
func (k *retentionKeeper) condition(b *backupBucket) (c condition, ok bool) {
	if k == nil {
		_, ok = findCondition(b.Conditions, conditionRetained)
		return condition{Type: conditionRetained, Status: "Unknown", Reason: "SwitchedOff",
			Message: "Versions are not extended (--extend-retention=false)."}, ok
	}
	k.mu.Lock()
	s := k.bucket(b)
	policy, round := s.policy, s.round
	k.mu.Unlock()
	sum := k.summary(b.Name, policy, round)
	k.mu.Lock()
	defer k.mu.Unlock()
	return s.condition(b, sum)
}

func (s *bucketRetention) condition(b *backupBucket, sum bucketSummary) (c condition, ok bool) {
	shown, has := findCondition(b.Conditions, conditionRetained)
	c = condition{Type: conditionRetained, Status: "False"}
	switch {
	case !s.known:
		return c, false
	case s.policy.None():
		c.Reason, c.Message = "NotLocked", "The bucket should not be locked, so no version is extended."
		return c, has
	case !s.good:
		c.Reason, c.Message = "NoPolicy", "The bucket's policy is not as it should be, so new backups are not retained."
	case s.covers:
		c.Status, c.Reason = "True", "Covered"
		c.Message = fmt.Sprintf("The policy covers every backup for %s from when it was stored.", s.policy.Hours())
	case sum.trouble.reason != "":
		c.Reason, c.Message = sum.trouble.reason, fmt.Sprintf("%d backups are known not to be retained as long as they should be: %s",
			sum.unprotected, sum.trouble.message)
		if sum.unprotected == 0 {
			c.Message = "The retention of backups that a restore would take ends, though it should not: " + sum.trouble.message
		}
	case sum.unprotected > 0:
		c.Reason, c.Message = "Pending", "Backups are not retained as long as they should be yet. They are being extended."
	case s.inRound() && sum.behind > 0:
		c.Status, c.Reason = "Unknown", "Pending"
		c.Message = "Backups may not be retained as long as they should be, since the bucket's policy was changed. They are being looked at."
	case sum.stale > 0:
		c.Status, c.Reason = "Unknown", "NotChecked"
		c.Message = "The backups of some BackupEntries could not be looked at for three hours."
	case sum.unlooked > 0 || sum.more > 0:
		return c, false
	default:
		through := sum.through
		if through.IsZero() {
			through = s.lastGood.Add(-clockMargin)
		}
		told, of := rememberedRetention(b)
		if of == s.policy && !through.Before(told) && through.Sub(told) < retainedRefresh {
			return shown, true
		}
		c.Status, c.Reason = "True", "Retained"
		c.Message = fmt.Sprintf(retainedMessage, through.UTC().Format(time.RFC3339), s.policy.Hours())
	}
	return c, true
}
