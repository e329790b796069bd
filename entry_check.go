// The backups of each live BackupEntry are looked at: what would a restore take, how old, how long locked, what does not belong.
//
// Rules:
//   - Once an hour, at a time of its own; after a start once more, within minutes. It has a queue, workers and places of its
//     own, behind all other work. A prefix is never listed twice at a time.
//   - Nothing is written, neither to the store nor to the API server, but events about what looks like an attack.
//   - One list of the prefix. On S3, where lists do not tell retention, that of a link of a chain that should be locked is asked
//     for once, a few in a pass, and remembered: it can only grow.
//   - Entries that are new, deleted or moved, and those of the source of a move, are left alone.

package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	checkInterval = time.Hour
	// After a start, or after an entry came, there is more urgent work for checkCalm; within checkFirst after that its backups are
	// looked at.
	checkCalm  = 20 * time.Second
	checkFirst = 30 * time.Second
	// checkRetry is how soon a look that failed is tried again, checkBusy one whose prefix is just being listed.
	checkRetry = 10 * time.Minute
	checkBusy  = time.Minute
	// checkSoon is how soon a look that is urgent is tried again.
	checkSoon = time.Second
	// checkStale is how long what was found counts.
	checkStale = 3 * checkInterval
	// concurrentChecks is how many passes may look at backups at one endpoint.
	concurrentChecks = 2
	// maxLockLookups bounds the requests for retention of one pass. A cluster makes twelve deltas in an hour.
	maxLockLookups = 50
	// freshBackup is how old the newest backup of a cluster may be that is not asked whether it is awake.
	freshBackup = time.Hour
)

// entryChecker looks at the backups of BackupEntries.
type entryChecker struct {
	reconciler
	checks   *controller
	clusters dynamic.ResourceInterface
	states   *entryStates
	// keeper extends the retention of what is found; nil if nobody should.
	keeper *retentionKeeper
	// observed tells of buckets with --observe, where the status of the entry does not; else it is nil.
	observed observedEntries
	// cannotRead tells once that Clusters cannot be read.
	cannotRead sync.Once

	mu sync.Mutex
	// listed are the prefixes that are being listed, with their buckets.
	listed map[string]bool
}

// entryMemory is what a look at the backups of an entry leaves to the next.
type entryMemory struct {
	// kept is what is known of the retention of the chains that are kept, the newest first.
	kept [keptChains]linkMemory
	// exclusion and suspicion are what events were told about last.
	exclusion int64
	suspicion string
}

func newEntryChecker(r reconciler, checks *controller, clusters dynamic.ResourceInterface, states *entryStates) *entryChecker {
	return &entryChecker{reconciler: r, checks: checks, clusters: clusters, states: states, listed: map[string]bool{}}
}

// checkSlot is a number that each entry has of its own.
func checkSlot(entry string) time.Duration {
	h := fnv.New64a()
	_, _ = h.Write([]byte(entry))
	return time.Duration(h.Sum64() >> 1)
}

// firstCheck is when the backups of an entry that has come are looked at.
func firstCheck(entry string) time.Duration { return checkCalm + checkSlot(entry)%checkFirst }

// nextCheck is when the backups of an entry are looked at again: at its own time of the hour, at least half an hour ahead.
func nextCheck(entry string, now time.Time) time.Duration {
	at := now.Truncate(checkInterval).Add(checkSlot(entry) % checkInterval)
	for at.Sub(now) <= checkInterval/2 {
		at = at.Add(checkInterval)
	}
	return at.Sub(now)
}

// watch has the backups of entries looked at, as they come, and ends their series as they go.
func (c *entryChecker) watch(entries cache.SharedIndexInformer) error {
	enqueue := func(e *backupEntry) {
		if c.checkable(e) {
			c.states.watch(e)
			c.checks.queue.AddAfter(cache.MetaObjectToName(e), firstCheck(e.Name))
		}
	}
	_, err := entries.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if e, ok := obj.(*backupEntry); ok {
				enqueue(e)
			}
		},
		UpdateFunc: func(oldObj, newObj any) {
			before, ok1 := oldObj.(*backupEntry)
			e, ok2 := newObj.(*backupEntry)
			switch {
			case !ok1 || !ok2:
			case !c.checkable(e):
				c.states.forget(e.Name)
			case !c.checkable(before) || before.UID != e.UID || before.BucketName != e.BucketName:
				enqueue(e)
			}
		},
		DeleteFunc: func(obj any) {
			if name, err := cache.DeletionHandlingObjectToName(obj); err == nil {
				c.checks.gone(name)
			}
		},
	})
	return err
}

// checkable says that an entry is live, and ours: it was ready once and is neither being deleted nor moved.
func (r *reconciler) checkable(e *backupEntry) bool {
	if !r.scope.responsible(&e.object) || e.decodeErr != nil || e.DeletionTimestamp != nil || e.neverReady() || !hasNamespace(e) ||
		e.BucketName == "" || strings.HasPrefix(e.Name, sourcePrefix) {
		return false
	}
	switch e.operation() {
	case operationMigrate, operationRestore, operationWaitForState:
		return false
	}
	return e.LastOperation.Type != operationTypeMigrate
}

// reconcile makes one look at the backups of an entry.
func (c *entryChecker) reconcile(ctx context.Context, key cache.ObjectName, _ bool) (time.Duration, error) {
	obj, exists, err := c.cached.GetByKey(key.String())
	if err != nil {
		return 0, err
	}
	e, ok := obj.(*backupEntry)
	if !exists || !ok || !c.checkable(e) {
		// If it becomes checkable, that is an event.
		c.states.forget(key.Name)
		return 0, nil
	}
	c.states.watch(e)
	begun := time.Now()
	if c.keeper.behind(e) {
		return checkSoon, nil
	}
	if !c.takePrefix(e) {
		if c.keeper.urgent(e) {
			return checkSoon, nil
		}
		return checkBusy, nil
	}
	defer c.releasePrefix(e)
	again, err := c.look(ctx, e)
	if err != nil {
		c.keys.noteRejection(e.BucketName, err, time.Now())
		if goesOn(err) {
			return 0, err
		}
		again := checkRetry
		if c.keeper.urgent(e) {
			again = 0 // as soon as the store lets
		}
		return again, fmt.Errorf("looking at the backups of BackupEntry %s in bucket %s: %w", e.Name, e.BucketName, err)
	}
	if again > 0 {
		return again, nil
	}
	return nextCheck(e.Name, begun), nil
}

// takePrefix keeps two passes from listing the same prefix at a time.
func (c *entryChecker) takePrefix(e *backupEntry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	prefix := e.BucketName + "/" + entryBase(e.Name)
	if c.listed[prefix] {
		return false
	}
	c.listed[prefix] = true
	return true
}

func (c *entryChecker) releasePrefix(e *backupEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.listed, e.BucketName+"/"+entryBase(e.Name))
}

// look reads what is under the prefix and notes what it is: one API request, one for each page of the list, one for the tags of
// each snapshot with a delete marker, and at most maxLockLookups for retention, maybe twice. What is not retained as long as it
// should be is extended, which tells more than look-ups; again is when to go on with that, zero if it is done.
func (c *entryChecker) look(ctx context.Context, e *backupEntry) (again time.Duration, err error) {
	objects, err := c.open(ctx, e)
	if err != nil {
		return 0, err
	}
	if err := c.endpoints().enter(ctx, objects.endpoint(), classCheck); err != nil {
		return 0, err
	}
	if plan := c.keeper.leftOver(e); plan != nil {
		return c.keeper.goOn(ctx, e, objects, plan)
	}
	found, err := readChain(ctx, objects, entryBase(e.Name))
	if err != nil {
		return 0, err
	}
	state := entryState{checked: time.Now(), memory: c.states.get(e).memory}
	state.describe(found, parseSpans(e.Annotations[annotationExcluded]))
	again, tells, err := c.keeper.keep(ctx, e, objects, found, &state.memory)
	lookups := maxLockLookups
	if tells {
		lookups = 0
	}
	state.lock = readLock(ctx, objects, c.mayBeLocked(e, objects), found, &state.memory.kept[0], lookups)
	if !state.complete || found.now.Sub(laterOf(state.full, state.delta)) > freshBackup {
		state.cluster = c.wakefulness(ctx, e)
	}
	c.tell(ctx, e, found, &state)
	c.states.set(e, state)
	return again, err
}

// open opens the bucket with the secret of an entry: one API request.
func (c *entryChecker) open(ctx context.Context, e *backupEntry) (Objects, error) {
	secret, err := c.secretOf(ctx, e)
	if err != nil {
		return nil, err
	}
	return c.openObjects(&e.object, e.BucketName, c.record(e), secret)
}

// secretOf reads the secret of an entry: one API request.
func (c *entryChecker) secretOf(ctx context.Context, e *backupEntry) (*corev1.Secret, error) {
	ref := c.credentials(e)
	secret, err := c.secrets.get(ctx, ref)
	if err == nil && isWorkloadIdentity(secret) && len(secret.Data[dataKeyToken]) == 0 {
		return nil, fmt.Errorf("the workload identity secret %s has no %s yet", ref, dataKeyToken)
	}
	return secret, err
}

func laterOf(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// describe notes what a chain is.
func (s *entryState) describe(found *chain, announced revisionSpans) {
	if found.full != nil {
		s.full = found.full.taken()
	}
	if found.delta != nil {
		s.delta = found.delta.taken()
	}
	s.known, s.complete, s.revision = found.known, found.complete, found.revision
	s.exclusionsKnown = found.numbers[problemExclusionUnknown] == 0
	s.excluded, s.suspicious = int64(found.excluded()), int64(found.suspicious())
	for _, snapshot := range found.all {
		if snapshot.excluded == excluded && !announced.has(snapshot.last) {
			s.unannounced++
		}
	}
	s.snapshots, s.sizeSum = found.counts.fulls+found.counts.deltas, found.counts.bytes
}

// readLock tells until when the chain is locked. Where the list does not tell, it asks for the retention of the links of which
// that is not known yet, the oldest first, not more than lookups, and not at all in a bucket that was never locked.
func readLock(ctx context.Context, store versions, recorded bool, found *chain, memory *linkMemory, lookups int) chainLock {
	if !recorded {
		return chainLock{} // what the list tells can be taken away
	}
	locks, ok := store.(lockReader)
	if !ok {
		return found.lock()
	}
	if !found.known || len(found.links) == 0 {
		return chainLock{}
	}
	hash := fnv.New64a()
	links := func(part []*snapshot) uint64 {
		for _, s := range part {
			_, _ = hash.Write([]byte(s.key + "\x00" + s.id + "\x00"))
		}
		return hash.Sum64()
	}
	// Retention can be extended, but what is known does not last any longer.
	if memory.links > len(found.links) || links(found.links[:memory.links]) != memory.hash ||
		!memory.until.IsZero() && memory.until.Sub(found.now) < checkInterval {
		hash.Reset()
		memory.links, memory.until, memory.hash = 0, time.Time{}, hash.Sum64()
	}
	for asked := 0; memory.links < len(found.links); asked++ {
		if asked == lookups {
			return chainLock{}
		}
		s := found.links[memory.links]
		lock, err := locks.lock(ctx, s.version())
		switch {
		case err != nil:
			klog.FromContext(ctx).V(2).Info("Could not read the retention of a snapshot", "snapshot", s.key, "reason", err.Error())
			return chainLock{}
		case lock.held:
		case !lock.until.After(found.now):
			return chainLock{known: true}
		case memory.until.IsZero() || lock.until.Before(memory.until):
			memory.until = lock.until
		}
		memory.links++
		memory.hash = links([]*snapshot{s})
	}
	return chainLock{known: true, locked: true, until: memory.until}
}

// wakefulness reads whether the cluster of an entry should make backups: one API request.
func (c *entryChecker) wakefulness(ctx context.Context, e *backupEntry) wakefulness {
	namespace, uid := splitEntryName(e.Name)
	u, err := c.clusters.Get(ctx, namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse):
		return asleep
	case apierrors.IsForbidden(err):
		c.cannotRead.Do(func() {
			klog.FromContext(ctx).Info("Clusters cannot be read, so nobody is told if an awake cluster makes no backups", "reason", err.Error())
		})
		return wakefulnessUnknown
	case err != nil:
		klog.FromContext(ctx).V(2).Info("Could not read the Cluster", "cluster", namespace, "reason", err.Error())
		return wakefulnessUnknown
	}
	return clusterWakefulness(u, uid)
}

// clusterWakefulness reads a Cluster (gardener/gardener pkg/apis/extensions/v1alpha1/types_cluster.go). uid is that of the shoot
// in the name of the entry: another cluster may have its name by now.
func clusterWakefulness(u *unstructured.Unstructured, uid string) wakefulness {
	d := &decoder{content: u.Object}
	flag := func(path ...string) bool {
		b, _, err := unstructured.NestedBool(u.Object, path...)
		d.note(err)
		return b
	}
	present := d.has("spec", "shoot")
	found := d.str("spec", "shoot", "status", "uid")
	last := operationType(d.str("spec", "shoot", "status", "lastOperation", "type"))
	state := operationState(d.str("spec", "shoot", "status", "lastOperation", "state"))
	going := u.GetDeletionTimestamp() != nil || d.has("spec", "shoot", "metadata", "deletionTimestamp") || last == operationTypeDelete ||
		last == operationTypeMigrate
	coming := last == "" || (last == operationTypeCreate || last == operationTypeRestore) && state != stateSucceeded
	sleeps := flag("spec", "shoot", "spec", "hibernation", "enabled")
	sleeps = flag("spec", "shoot", "status", "isHibernated") || sleeps
	switch {
	case d.err != nil || !present:
		return wakefulnessUnknown
	case going, coming, sleeps, found != "" && found != uid:
		return asleep
	}
	return awake
}

// tell says once what looks like an attack.
func (c *entryChecker) tell(ctx context.Context, e *backupEntry, found *chain, state *entryState) {
	newest := int64(-1)
	announced := parseSpans(e.Annotations[annotationExcluded])
	for _, s := range found.all {
		if s.excluded == excluded && !announced.has(s.last) {
			newest = s.last
		}
	}
	if newest >= 0 && newest+1 != state.memory.exclusion {
		c.warn(e, "SnapshotsExcluded", "Check", "%d snapshots under %s/ in bucket %s, the newest of revision %d, are excluded from a restore, "+
			"and the annotation %s does not announce it: if nobody knows why, somebody wants the cluster to lose data", state.unannounced,
			entryBase(e.Name), e.BucketName, newest, annotationExcluded)
	}
	state.memory.exclusion = newest + 1
	suspicion := ""
	for _, p := range slices.Backward(found.problems) {
		if p.kind.suspicious() {
			suspicion = string(p.kind) + " " + p.snapshot.name
			if suspicion != state.memory.suspicion {
				c.warn(e, "SuspiciousSnapshot", "Check", "Possible forgery under %s/ in bucket %s: %s", entryBase(e.Name), e.BucketName, p)
			}
			break
		}
	}
	state.memory.suspicion = suspicion
	if !found.complete && found.known {
		klog.FromContext(ctx).Info("The chain of backups is not complete", "entry", e.Name, "bucket", e.BucketName, "problems",
			fmt.Sprint(found.problems[:min(len(found.problems), 5)]))
	}
}

// revisionSpans are revisions of snapshots whose exclusion was announced, as first-last, comma separated.
type revisionSpans [][2]int64

// parseSpans reads them from an annotation. What cannot be read announces nothing.
func parseSpans(text string) (spans revisionSpans) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, dash := strings.Cut(strings.TrimSpace(part), "-")
		if !dash {
			last = first
		}
		from, err1 := strconv.ParseInt(first, 10, 64)
		to, err2 := strconv.ParseInt(last, 10, 64)
		if errors.Join(err1, err2) == nil {
			spans = append(spans, [2]int64{from, to})
		}
	}
	return spans
}

func (spans revisionSpans) has(revision int64) bool {
	return slices.ContainsFunc(spans, func(span [2]int64) bool { return span[0] <= revision && revision <= span[1] })
}
