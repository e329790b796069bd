// When evidence is written, and how: one statement of each bucket and day (UTC), and one on every change, but not within a minute of
// the last. It goes into the bucket itself, where it is retained as the backups are, and stays.
//
// Rules:
//   - One request to the store: the write, whose answer proves what was stored (writer). All else is in memory, also the store's time,
//     which the looks at the bucket tell.
//   - The newest statement that is signed with a key of ours is where the chain goes on. It is looked for by the first pass of a process
//     over a bucket, and by the one that follows a failed one: what was written without being noticed is found then. What somebody
//     else has put there does not count. Two processes that write at the same time make a fork, which verification finds.
//   - Nothing is written of a bucket that was never ready or is being deleted: it would be retained, and the end would wait for it.

package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	// evidenceSpread is the part of the day in which the statements of a day are written, each bucket at a time of its own.
	evidenceSpread = time.Hour
	// evidencePause is the least time between two statements of a bucket.
	evidencePause = time.Minute
	// evidencePatience is how long the first statement waits for the entries of the bucket to have been looked at.
	evidencePatience = 15 * time.Minute
	// maxEvidenceTries bounds the statements of others that are read in one pass.
	maxEvidenceTries = 20
	// maxEvidenceListed bounds what is remembered of a list, the newest. It is 27 years of days.
	maxEvidenceListed = 10000
	// concurrentEvidence is how many passes write evidence at one endpoint.
	concurrentEvidence = 2
)

// evidenceWriter writes the evidence of all buckets.
type evidenceWriter struct {
	*bucketReconciler
	controller *controller
	core       kubernetes.Interface
	namespace  string
	keyFile    string
	states     *entryStates
	// place opens the place of the evidence of a bucket.
	place func(context.Context, *backupBucket) (evidencePlace, error)
	// observes says that the bucket belongs to another controller: what its spec asks for is what is verified.
	observes bool

	mu   sync.Mutex
	keys evidenceKeys
	// earlier are the looks of the process before.
	earlier looks
	heads   map[string]*evidenceHead
}

// evidenceHead is the newest statement of a bucket. Only the pass over the bucket changes it.
type evidenceHead struct {
	// sequence is 0 if there is none yet.
	sequence int64
	digest   string
	evidence evidence
	key      int // which of our keys has signed it
	// endpoint is where the bucket lies.
	endpoint string
	// sure says that it is the newest that there is: since it was found or written, no pass has failed or is writing.
	sure bool
	// tried is when the last attempt to write a statement began.
	tried time.Time
	// strangers are objects that are none of our statements, or a copy of one.
	strangers map[string]bool
}

func newEvidenceWriter(r *bucketReconciler, c *controller, core kubernetes.Interface, config *config, states *entryStates) *evidenceWriter {
	w := &evidenceWriter{bucketReconciler: r, controller: c, core: core, namespace: config.namespace, keyFile: config.evidenceKey,
		states: states, heads: map[string]*evidenceHead{}}
	w.place = w.placeInBucket
	c.reconcile, c.onGone = w.reconcile, w.forget
	return w
}

// run writes evidence until ctx ends, once the key can be read.
func (w *evidenceWriter) run(ctx, passes context.Context) {
	for wait := backoffBase; ; wait = min(2*wait, backoffMax) {
		keys, earlier, err := loadEvidenceKeys(ctx, w.core, w.namespace, w.keyFile)
		if err == nil {
			w.mu.Lock()
			w.keys, w.earlier = keys, earlier
			w.mu.Unlock()
			break
		}
		if ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "No evidence is written")
		}
		if sleep(ctx, wait) != nil {
			return
		}
	}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { w.keepLooks(ctx, passes) })
	w.controller.run(ctx, passes, concurrentEvidence)
}

// ask has a statement written if one is due.
func (w *evidenceWriter) ask(b *backupBucket) {
	w.mu.Lock()
	ready := len(w.keys) > 0
	w.mu.Unlock()
	if !w.writes(b) {
		w.metrics.bucketEvidence.DeleteLabelValues(b.Name)
		return
	}
	w.metrics.showEvidence(b.Name, time.Time{})
	if ready && w.due(b, time.Now()) {
		w.controller.queue.Add(cache.MetaObjectToName(b))
	}
}

// writes says that there is to be evidence of a bucket.
func (w *evidenceWriter) writes(b *backupBucket) bool {
	return b.DeletionTimestamp == nil && !b.neverReady() && b.hasFinalizer(finalizerBackupBucket) && b.decodeErr == nil
}

func (w *evidenceWriter) forget(bucket string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.heads, bucket)
}

// head is what is known of the newest statement of a bucket.
func (w *evidenceWriter) head(bucket string) evidenceHead {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h := w.heads[bucket]; h != nil {
		return *h
	}
	return evidenceHead{}
}

func (w *evidenceWriter) setHead(bucket string, h evidenceHead) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heads[bucket] = &h
}

func (w *evidenceWriter) signers() evidenceKeys {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keys
}

// due says that a statement is to be written now.
func (w *evidenceWriter) due(b *backupBucket, now time.Time) bool {
	notes, ok := w.evidence.get(b.Name)
	h := w.head(b.Name)
	if !ok || now.Sub(h.tried) < evidencePause {
		return false
	}
	if h.sequence == 0 {
		return now.Sub(notes.begun) >= evidencePatience || w.looked(b)
	}
	if w.changed(b, &h, notes, now) {
		return true
	}
	store := now.Add(-notes.offset)
	slot := evidenceDay(store).Add(checkSlot(b.Name) % evidenceSpread)
	return !evidenceDay(store).Equal(evidenceDay(h.evidence.Time)) && !store.Before(slot) &&
		(now.Sub(notes.begun) >= evidencePatience || w.looked(b))
}

// looked says that the backups of all entries in a bucket have been looked at.
func (w *evidenceWriter) looked(b *backupBucket) bool {
	states := w.states.in(b.Name)
	for _, state := range states {
		if state.checked.IsZero() {
			return false
		}
	}
	return true
}

// changed says that something is not any more as the newest statement says.
func (w *evidenceWriter) changed(b *backupBucket, h *evidenceHead, notes evidenceNotes, now time.Time) bool {
	if len(notes.events) > 0 || h.key != 0 {
		return true
	}
	return w.describe(b, h, notes, now).fingerprint() != h.evidence.fingerprint()
}

// fingerprint is what a change of makes another statement: all but times and the backups, which change all the time.
func (e *evidence) fingerprint() string {
	unprotected := e.UnprotectedVersions != nil && *e.UnprotectedVersions > 0
	var attacks []string
	for _, a := range e.Probe {
		attacks = append(attacks, a.Credentials+" "+a.Attack+" "+a.Outcome)
	}
	text, err := json.Marshal([]any{e.Bucket, e.Policy, e.VerifiedSince != nil, e.Spec, e.Record, e.Foreign, len(e.History), e.Hardened,
		e.Gaps, unprotected, attacks})
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// reconcile writes a statement of a bucket, if one is due.
func (w *evidenceWriter) reconcile(ctx context.Context, key cache.ObjectName, _ bool) (time.Duration, error) {
	obj, exists, err := w.cached.GetByKey(key.String())
	if err != nil {
		return 0, err
	}
	b, ok := obj.(*backupBucket)
	if !exists || !ok || !w.scope.responsible(&b.object) {
		w.controller.gone(key)
		return 0, nil
	}
	if !w.writes(b) || !w.due(b, time.Now()) {
		return 0, nil
	}
	if err := w.write(ctx, b); err != nil {
		if goesOn(err) {
			return 0, err
		}
		return 0, fmt.Errorf("writing the evidence of bucket %s: %w", b.Name, err)
	}
	return 0, nil
}

// evidencePlace is where the evidence of a bucket lies, as part of what Objects, reader and writer say: the bucket itself, or files.
type evidencePlace interface {
	pages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error]
	endpoint() endpointRef
	reader
	writer
}

// placeInBucket opens the bucket as the place of its evidence.
func (w *evidenceWriter) placeInBucket(ctx context.Context, b *backupBucket) (evidencePlace, error) {
	opened, err := w.openContents(ctx, b, classCheck)
	if err != nil {
		return nil, err
	}
	place, ok := opened.(evidencePlace)
	switch {
	case opened == nil:
		return nil, errNoContents
	case !ok:
		return nil, errors.New("the store cannot be written to")
	}
	return place, nil
}

// errNoContents says that what lies in a bucket cannot be opened yet.
var errNoContents = errors.New("there are no credentials for what lies in the bucket yet")

// write writes a statement, and goes on from the newest that there is.
func (w *evidenceWriter) write(ctx context.Context, b *backupBucket) error {
	objects, err := w.place(ctx, b)
	if err != nil {
		return err
	}
	keys, h := w.signers(), w.head(b.Name)
	h.endpoint = objects.endpoint().host
	known := h.sure
	if !known {
		if err := w.find(ctx, objects, keys, &h, b.Name); err != nil {
			return err
		}
	}
	h.tried, h.sure = time.Now(), false // until it is written
	w.setHead(b.Name, h)
	if !known && h.sequence > 0 {
		w.resume(b.Name, &h)
		// It may be that the newest statement, which was not known before, says it all.
		if due := w.due(b, h.tried.Add(evidencePause)); !due {
			h.sure = true
			w.setHead(b.Name, h)
			notes, _ := w.evidence.get(b.Name)
			w.metrics.showEvidence(b.Name, h.evidence.Time.Add(notes.offset))
			return nil
		}
	}
	now := time.Now()
	notes, ok := w.evidence.get(b.Name)
	if !ok {
		return nil
	}
	e := w.describe(b, &h, notes, now)
	e.describeEntries(w.states.in(b.Name), now, notes.offset)
	if w.observes {
		e.tellWeaker(&h.evidence)
	}
	e.Sequence, e.Previous, e.Reason = h.sequence+1, h.digest, evidenceChange
	if h.sequence == 0 || !evidenceDay(e.Time).Equal(evidenceDay(h.evidence.Time)) {
		e.Reason = evidenceDaily
	}
	if h.key != 0 {
		public := publicOf(keys.signer())
		e.Reason, e.NextKey, e.NextKeyID = evidenceRotation, publicPEM(public), evidenceKeyID(public)
	}
	content, err := signEvidence(e.statement(), keys[h.key])
	if err != nil {
		return err
	}
	digest := evidenceDigest(content)
	if err := objects.write(ctx, evidencePrefix+evidenceName(e, digest), content); err != nil {
		return err
	}
	h.sequence, h.digest, h.evidence, h.key, h.sure = e.Sequence, digest, e.forget(), 0, true
	w.setHead(b.Name, h)
	w.evidence.told(b.Name, now, notes.leftOut)
	if _, still := w.evidence.get(b.Name); still {
		w.metrics.showEvidence(b.Name, now)
	}
	klog.FromContext(ctx).Info("Signed evidence", "bucket", b.Name, "sequence", e.Sequence, "reason", e.Reason, "digest", h.digest,
		"bytes", len(content))
	return nil
}

// forget is what has to be remembered of a statement.
func (e evidence) forget() evidence {
	e.Entries, e.Events, e.NotClaimed, e.Unknown = nil, nil, nil, nil
	return e
}

// nextEvidence is the beginning of the names behind a number.
func nextEvidence(sequence int64) string { return fmt.Sprintf("%s%010d-", evidencePrefix, sequence+1) }

// readObject reads a small object.
func readObject(ctx context.Context, from reader, v version) ([]byte, error) {
	body, err := from.open(ctx, v)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	return io.ReadAll(io.LimitReader(body, maxEvidence+1))
}

// find looks for the newest statement that is signed with a key of ours, behind the one in the head if there is one, and puts it
// there: one request for each page of a list, and one for each statement that has to be read, most often one.
func (w *evidenceWriter) find(ctx context.Context, objects evidencePlace, keys evidenceKeys, h *evidenceHead, bucket string) error {
	if h.strangers == nil {
		h.strangers = map[string]bool{}
		w.setHead(bucket, *h) // also those that a pass sees that fails
	}
	first := h.sequence == 0
	prefix := evidencePrefix
	if !first {
		prefix = nextEvidence(h.sequence)
	}
	listed, err := listEvidence(ctx, objects, prefix)
	if err != nil {
		return err
	}
	tries := 0
	for _, candidate := range slices.Backward(listed) {
		name := candidate.key + "\x00" + candidate.id
		if h.strangers[name] {
			continue
		}
		if tries++; tries > maxEvidenceTries {
			return errors.New("there are more objects in the place of evidence that are none than can be looked at at once")
		}
		content, err := readObject(ctx, objects, candidate)
		if errors.Is(err, errNoVersion) {
			continue
		}
		if err != nil {
			return err
		}
		digest := evidenceDigest(content)
		statement, key, err := openEnvelope(content, keys.public())
		switch {
		case err != nil:
		// Whoever may write here can copy what is said of another bucket, since one key signs for all, or an old statement to a later
		// name, from where the chain would go on a second time.
		case statement.Predicate.Bucket.Name != bucket:
			err = fmt.Errorf("it tells of bucket %q", statement.Predicate.Bucket.Name)
		case candidate.key != evidencePrefix+evidenceName(&statement.Predicate, digest):
			err = fmt.Errorf("it is a copy of number %d", statement.Predicate.Sequence)
		}
		if err != nil {
			h.strangers[name] = true
			klog.FromContext(ctx).Info("There is something in the place of evidence that is none of ours", "object",
				shortened(oneLine(candidate.key)), "reason", err.Error())
			continue
		}
		h.sequence, h.digest, h.evidence = statement.Predicate.Sequence, digest, statement.Predicate.forget()
		h.key = slices.IndexFunc(keys, func(k ed25519.PrivateKey) bool { return publicOf(k).Equal(key) })
		if first {
			return nil
		}
		// Another process may have gone on from there.
		return w.find(ctx, objects, keys, h, bucket)
	}
	if len(listed) == maxEvidenceListed && h.sequence == 0 {
		return errors.New("there are so many objects in the place of evidence that those of ours cannot be found")
	}
	return nil
}

// listEvidence lists the versions of objects that may be statements, by number.
func listEvidence(ctx context.Context, objects evidencePlace, prefix string) (listed []version, err error) {
	for page, err := range objects.pages(ctx, prefix, cursor{}) {
		if err != nil {
			return nil, err
		}
		for _, v := range page.versions {
			if _, ok := parseEvidenceName(v.key); ok && !v.marker && v.size <= maxEvidence {
				listed = append(listed, v)
			}
			if len(listed) > maxEvidenceListed {
				listed = listed[1:]
			}
		}
	}
	slices.SortStableFunc(listed, func(v, u version) int { return cmp.Compare(v.key, u.key) })
	return listed, nil
}

// resume lets what is noted go on from the newest statement of an earlier process, or of a write that was not noticed.
func (w *evidenceWriter) resume(bucket string, h *evidenceHead) {
	notes, _ := w.evidence.get(bucket)
	w.evidence.told(bucket, h.evidence.Time.Add(notes.offset), 0)
	if e := &h.evidence; e.VerifiedSince != nil && e.Observed != nil {
		w.mu.Lock()
		looked := laterOf(e.Observed.Add(notes.offset), w.earlier[bucket])
		w.mu.Unlock()
		w.evidence.goOn(bucket, *e.VerifiedSince, looked)
	}
}
