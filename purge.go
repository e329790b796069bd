// Listing and purging, once for all stores, above the seam versions of store.go.
//
// Rules:
//   - The permit is asked ahead of every attempt to delete; its error ends the purge.
//   - The store is never asked to delete what its list says is retained. Of what is only presumed to be retained, it is
//     asked to delete a sample: if any of that goes, the next round presumes nothing.
//   - Delete markers go last, and only where no version of their key is left: one on a retained version is half of a
//     snapshot's exclusion (the other half is a tag).
//   - A lease on what is to be deleted is broken once a pass; what is leased again counts as retained.
//   - Memory is constant; the work of a pass is bounded, and the next one goes on where it stopped.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	purgeInFlight = 3
	purgeAttempts = 4
	// purgeRounds bounds how often a list is read anew because something went.
	purgeRounds = 10
	// purgeWork is how many versions one pass looks at, so that others get their turn.
	purgeWork = 100000
	// purgeSplits bounds the requests that find the free ones in batches that the store refuses as a whole.
	purgeSplits = 32
)

// purgeName names the purge of what belongs to an object.
func purgeName(o *object) string { return o.Kind + "/" + o.Name + "/" + string(o.UID) }

// purges remembers, from pass to pass, how far unfinished purges are. A restart forgets it:
// then a purge begins anew, which costs only time. It is safe for concurrent use.
type purges struct {
	mu     sync.Mutex
	states map[string]purgeState
}

// purgeOrder says what to purge.
type purgeOrder struct {
	bucket string
	// name identifies the purge from pass to pass.
	name   string
	prefix string
	// policy is what the bucket is known to have; what was created under it is presumed to
	// be retained.
	policy Policy
	permit permit
	// uploads says that incomplete multipart uploads under the prefix are aborted as well.
	uploads bool
}

// run deletes every version under the order's prefix (all if it is empty) that is not retained. On an error the result
// says what was done until then. A bucket that does not exist is an empty one.
func (all *purges) run(ctx context.Context, store versions, order purgeOrder) (PurgeResult, error) {
	all.mu.Lock()
	state := all.states[order.name]
	all.mu.Unlock()
	state.result.Deleted, state.result.DeletedBytes, state.result.Unfinished = 0, 0, false
	// A pass that fails leaves the state as it was.
	state.sample.kept = slices.Clone(state.sample.kept)
	p := &purge{purgeOrder: order, versions: store, traits: store.traits(), purgeState: state,
		stop: softDeadline(ctx), slots: make(chan struct{}, purgeInFlight)}
	err := p.run(ctx)
	all.mu.Lock()
	defer all.mu.Unlock()
	switch {
	case p.result.Unfinished:
		if all.states == nil {
			all.states = map[string]purgeState{}
		}
		all.states[order.name] = p.purgeState
	case err == nil:
		delete(all.states, order.name)
	}
	return p.result, err
}

// forget drops what is remembered of the purges of an object that is gone.
func (all *purges) forget(kind, name string) {
	all.mu.Lock()
	defer all.mu.Unlock()
	maps.DeleteFunc(all.states, func(purge string, _ purgeState) bool { return strings.HasPrefix(purge, kind+"/"+name+"/") })
}

// softDeadline leaves a sixth of the time of a pass for what comes after the list.
func softDeadline(ctx context.Context) time.Time {
	deadline, ok := ctx.Deadline()
	if !ok {
		return time.Time{}
	}
	return time.Now().Add(time.Until(deadline) * 5 / 6)
}

// purgeState is what a purge knows between two passes.
type purgeState struct {
	// from is where the list goes on.
	from cursor
	// round counts the lists. deleted is what went in this one, again says that something that
	// went has left another version behind.
	round   int
	deleted int64
	again   bool
	// exact: nothing is presumed. marked: delete markers were seen that this round leaves;
	// markers: it is for those whose key has no version, with the one that the list has come to.
	exact, marked, markers bool
	key                    markedKey
	// refusedSince is the creation time of the oldest version that was refused for the
	// policy of the bucket: what was created later is presumed to be retained as well.
	refusedSince time.Time
	// held says that a legal hold keeps everything in the bucket.
	held bool
	// sample is of those that are presumed to be retained, newest the youngest of them.
	sample sample
	newest *version
	// undated is the youngest version that is retained, the list does not tell until when.
	undated *version
	result  PurgeResult
}

// markedKey is what a list has shown of a key with delete markers.
type markedKey struct {
	name    string
	version bool // it has one
	markers []version
	more    bool // than maxMarkers
}

// maxMarkers bounds the delete markers of one key that are kept in memory; those beyond go in the next round.
const maxMarkers = 10000

// sample is an even selection out of any number of versions. It is the same for the same list.
type sample struct {
	kept         []version
	stride, seen int // every stride-th of those seen is kept
}

func (s *sample) add(v version, size int) {
	s.seen++
	if s.stride > 1 && s.seen%s.stride != 0 {
		return
	}
	if len(s.kept) < size {
		s.kept = append(s.kept, v)
		return
	}
	half := s.kept[:0]
	for i := 1; i < len(s.kept); i += 2 {
		half = append(half, s.kept[i])
	}
	s.kept, s.stride = half, max(1, s.stride)*2
}

// purge is a pass of a purge.
type purge struct {
	purgeOrder
	versions versions
	traits   traits
	stop     time.Time
	deletes  sync.WaitGroup
	slots    chan struct{}

	mu sync.Mutex // guards what follows while batches are under way
	purgeState
	// unleased are the keys whose lease was broken in this pass, at most maxUnleased.
	unleased map[string]bool
	splits   int
	// failedKey orders failures, so that the same one is reported every time.
	failedKey string
	err       error
}

func (p *purge) run(ctx context.Context) error {
	for {
		if err := p.list(ctx); err != nil || p.result.Unfinished {
			return err
		}
		if err := p.probe(ctx); err != nil {
			return err
		}
		if !p.nextRound() {
			break
		}
		if p.round == purgeRounds {
			return p.errorf("deleting what is under %q in bucket %q failed: the store still lists object versions that it said it deleted, or "+
				"somebody keeps writing them",
				p.prefix, p.bucket)
		}
	}
	if p.result.Retained > 0 {
		if err := p.date(ctx); err != nil {
			return err
		}
	}
	return p.abortUploads(ctx)
}

func (p *purge) errorf(format string, args ...any) error {
	return &storeError{err: fmt.Errorf(format, args...)}
}

// nextRound says whether the list has to be read anew, and prepares for that.
func (p *purge) nextRound() bool {
	markers := p.marked
	switch {
	case p.again, p.deleted > 0 && p.result.Retained == 0 && p.traits.verify && !markers:
		p.markers, p.marked, p.deleted, p.held = false, false, 0, false
		p.sample, p.newest, p.undated = sample{}, nil, nil
		p.result.Retained, p.result.RetainedBytes, p.result.RetainedUntil = 0, 0, time.Time{}
	case markers:
		p.markers, p.marked, p.sample, p.newest = true, false, sample{}, nil
	default:
		return false
	}
	p.round++
	p.from, p.again = cursor{}, false
	return true
}

// list reads the list and deletes what can go while it reads on.
func (p *purge) list(ctx context.Context) error {
	p.splits = purgeSplits
	looked := 0
	var batch []version
	var err error
	for page, pageErr := range p.versions.pages(ctx, p.prefix, p.from) {
		if err = cmp.Or(pageErr, p.checkKeys(page)); err != nil {
			break
		}
		looked += len(page.versions)
		for _, v := range p.deletable(page) {
			if batch = append(batch, v); len(batch) >= p.traits.batch {
				p.submit(ctx, batch)
				batch = nil
			}
		}
		if err = p.failed(); err != nil {
			break
		}
		if p.from = page.next; page.next == (cursor{}) {
			break
		}
		if looked >= purgeWork || !p.stop.IsZero() && time.Now().After(p.stop) {
			p.result.Unfinished = true
			break
		}
	}
	if err == nil && !p.result.Unfinished {
		batch = append(batch, p.orphans("")...)
	}
	if err == nil {
		for rest := range slices.Chunk(batch, p.traits.batch) {
			p.submit(ctx, rest)
		}
	}
	p.deletes.Wait()
	if err = cmp.Or(p.err, err); err != nil {
		p.result.Unfinished = false
	}
	return plain(err)
}

// plain is the error of a permit as the caller knows it.
func plain(err error) error {
	var refused *permitError
	if errors.As(err, &refused) {
		return refused.err
	}
	return err
}

// permitError is the error of a permit. It is neither the store's nor to be described as such.
type permitError struct{ err error }

func (e *permitError) Error() string { return e.err.Error() }
func (e *permitError) Unwrap() error { return e.err }

// checkKeys keeps a store that lists other keys than those asked for from having them deleted.
func (p *purge) checkKeys(page page) error {
	for _, v := range page.versions {
		if v.key == "" || !strings.HasPrefix(v.key, p.prefix) {
			return p.errorf("listing what is under %q in bucket %q failed: the store lists key %q, which is not; nothing of that page was deleted",
				p.prefix, p.bucket, v.key)
		}
	}
	return nil
}

// deletable counts a page and leaves out what is retained, the oldest first.
func (p *purge) deletable(page page) []version {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.result.Now = page.now
	p.result.Seen += int64(len(page.versions))
	if p.markers {
		return p.orphaned(page)
	}
	slices.SortStableFunc(page.versions, func(v, w version) int { return v.created.Compare(w.created) })
	out := page.versions[:0]
	for _, v := range page.versions {
		if v.marker {
			p.marked = true
		} else if !p.passOver(v) {
			out = append(out, v)
		}
	}
	return out
}

// orphaned returns the delete markers of a page, and of the key before, whose key has no version. The list is in the
// order of keys.
func (p *purge) orphaned(page page) (out []version) {
	slices.SortStableFunc(page.versions, func(v, w version) int { return cmp.Compare(v.key, w.key) })
	for _, v := range page.versions {
		if v.key != p.key.name {
			out = append(out, p.orphans(v.key)...)
		}
		switch {
		case !v.marker:
			p.key.version = true
		case len(p.key.markers) < maxMarkers:
			p.key.markers = append(p.key.markers, v)
		default:
			p.key.more = true
		}
	}
	return out
}

// orphans returns the delete markers of the key that the list has come to the end of, and goes on to the next.
func (p *purge) orphans(next string) []version {
	ended := p.key
	p.key = markedKey{name: next}
	if ended.version {
		return nil
	}
	p.marked = p.marked || ended.more
	return ended.markers
}

// presumed says that a version is most likely retained.
func (p *purge) presumed(v version) bool {
	covered := !p.policy.None() && p.policy.until(v.created).After(p.result.Now)
	return covered || !p.refusedSince.IsZero() && !v.created.Before(p.refusedSince)
}

// retain counts a version of which it is known that it is retained.
func (p *purge) retain(v version) {
	p.result.Retained++
	p.result.RetainedBytes += v.size
	p.note(v)
}

// note keeps until when a retained version is.
func (p *purge) note(v version) {
	switch {
	case v.until.After(p.result.Now) && !v.held && !p.held:
		if v.until.After(p.result.RetainedUntil) {
			p.result.RetainedUntil = v.until
		}
	case p.undated == nil, p.undated.marker && !v.marker, p.undated.marker == v.marker && v.created.After(p.undated.created):
		p.undated = &v // a marker only if there is nothing else
	}
}

func (p *purge) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// submit deletes a batch while the list goes on.
func (p *purge) submit(ctx context.Context, batch []version) {
	if p.traits.serial {
		p.delete(ctx, batch, false)
		return
	}
	p.slots <- struct{}{}
	// What went before may have taught that some of it is retained.
	if batch = p.triable(batch); len(batch) == 0 {
		<-p.slots
		return
	}
	p.deletes.Go(func() {
		defer func() { <-p.slots }()
		p.delete(ctx, batch, false)
	})
}

// triable leaves out what is presumed to be retained by now.
func (p *purge) triable(batch []version) []version {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil
	}
	return slices.DeleteFunc(batch, func(v version) bool { return !v.marker && p.passOver(v) })
}

// passOver says that a version is not to be asked for, and counts it.
func (p *purge) passOver(v version) bool {
	switch {
	case p.held || v.held || v.until.After(p.result.Now):
		p.retain(v)
	case !p.exact && p.presumed(v):
		p.result.Retained++
		p.result.RetainedBytes += v.size
		p.sample.add(v, p.traits.batch)
		if p.newest == nil || v.created.After(p.newest.created) {
			p.newest = &v
		}
	default:
		return false
	}
	return true
}

// probe asks for the sample of what was presumed to be retained. If some of that is free, so may be what was not tried.
func (p *purge) probe(ctx context.Context) error {
	batch := p.sample.kept
	whole := p.sample.seen == len(batch)
	if p.newest != nil && !whole && !slices.ContainsFunc(batch, p.newest.same) {
		// Its end is going to be told, so it has to be one that was refused.
		batch = append(batch[:max(0, len(batch)-1)], *p.newest)
	}
	if len(batch) == 0 {
		return nil
	}
	before := p.deleted
	p.delete(ctx, batch, true)
	if p.deleted > before && !whole {
		p.exact, p.again = true, true
	}
	return plain(p.err)
}

// delete deletes a batch; presumed says that it was counted as retained already.
func (p *purge) delete(ctx context.Context, batch []version, presumed bool) {
	attempt := 1
	for parts := [][]version{batch}; len(parts) > 0; {
		part := parts[len(parts)-1]
		parts = parts[:len(parts)-1]
		next, err := p.attempt(ctx, part, presumed)
		switch {
		case err == nil && len(next.again) > 0:
			after := retryAfter(next.err)
			if err = next.err; attempt < purgeAttempts && after <= maxWait {
				err = sleep(ctx, max(after, p.traits.backoff(attempt)))
			}
			attempt++
		case err == nil:
			attempt = 1
		}
		if err == nil && len(next.leased) > 0 {
			err = p.breakLeases(ctx, next.leased)
		}
		if err != nil {
			p.setError(part[0].key, err)
			return
		}
		half := len(next.refused) / 2
		// The older ones are the likelier to be free.
		for _, rest := range [][]version{next.untried, next.again, next.leased, next.refused[half:], next.refused[:half]} {
			if len(rest) > 0 {
				parts = append(parts, rest)
			}
		}
	}
}

// remainder is what of a batch has to be asked for again.
type remainder struct {
	// refused are those of a batch that the store refused as a whole.
	untried, again, leased, refused []version
	err                             error // of again
}

// attempt makes one attempt to delete a batch.
func (p *purge) attempt(ctx context.Context, batch []version, presumed bool) (remainder, error) {
	if err := p.permit.ask(ctx); err != nil {
		return remainder{}, &permitError{err}
	}
	answers, err := p.versions.remove(ctx, batch)
	switch {
	case errors.Is(err, errNoBucket):
		return remainder{}, nil
	case err != nil && ctx.Err() == nil && isTransient(err):
		return remainder{again: batch, err: err}, nil
	case err != nil:
		return remainder{}, err
	case len(answers) != len(batch):
		return remainder{}, p.errorf("the store gives %d answers to %d deletions", len(answers), len(batch))
	}
	return p.count(batch, answers, presumed)
}

// count adds the answer about a batch to the result.
func (p *purge) count(batch []version, answers []removal, presumed bool) (next remainder, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	split := len(batch) > 1 && p.splits > 0
	for i, v := range batch {
		answer := answers[i]
		switch {
		case answer.outcome == removalGone:
			p.gone(v, presumed)
		case answer.outcome == removalRefused && split:
			next.refused = append(next.refused, v)
		case answer.outcome == removalLeased && p.unleasable(v):
			next.leased = append(next.leased, v)
		case answer.outcome == removalLeased:
			v.own = true // it teaches nothing about others
			p.kept(v, answer, presumed)
		case answer.outcome == removalRetained, answer.outcome == removalRefused:
			p.kept(v, answer, presumed)
		case answer.outcome == removalAgain:
			next.again, next.err = append(next.again, v), answer.err
		case answer.outcome == removalUntried:
			next.untried = append(next.untried, v)
		case err == nil:
			err = answer.err
		}
	}
	if len(next.refused) > 0 {
		p.splits--
	}
	return next, err
}

// gone counts a deleted version.
func (p *purge) gone(v version, presumed bool) {
	if v.upload {
		return
	}
	p.deleted++
	p.result.Deleted++
	p.result.DeletedBytes += v.size
	p.again = p.again || v.leaves
	if presumed {
		p.result.Retained--
		p.result.RetainedBytes -= v.size
	}
}

// kept counts a version that the store refused to delete.
func (p *purge) kept(v version, answer removal, presumed bool) {
	switch {
	case answer.held && !v.held:
		// It is the bucket's, which holds everything.
		p.held = true
	case !v.marker && !v.held && !v.own && (p.refusedSince.IsZero() || v.created.Before(p.refusedSince)):
		p.refusedSince = v.created
	}
	if !presumed {
		p.result.Retained++
		p.result.RetainedBytes += v.size
	}
	p.note(v)
}

func (p *purge) setError(key string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil || key < p.failedKey {
		p.failedKey, p.err = key, err
	}
}

// date finds out until when the rest is retained: the list told it, or the store is asked about the youngest refused one.
func (p *purge) date(ctx context.Context) error {
	if p.undated == nil {
		return nil
	}
	until, err := p.versions.until(ctx, *p.undated)
	if err != nil {
		return err
	}
	if until.IsZero() || until.After(p.result.RetainedUntil) {
		p.result.RetainedUntil = until
	}
	return nil
}

// abortUploads aborts incomplete multipart uploads, where the store has them.
func (p *purge) abortUploads(ctx context.Context) error {
	store, ok := p.versions.(uploader)
	if !ok || !p.uploads {
		return nil
	}
	for page, err := range store.uploads(ctx, p.prefix) {
		if err != nil {
			return err
		}
		// Some stores list what was not asked for.
		uploads := slices.DeleteFunc(page.versions, func(v version) bool { return !strings.HasPrefix(v.key, p.prefix) })
		if len(uploads) == 0 {
			continue
		}
		p.delete(ctx, uploads, false)
		if p.err != nil {
			return plain(p.err)
		}
	}
	return nil
}

// sleep waits before another attempt.
func sleep(ctx context.Context, delay time.Duration) error {
	select {
	case <-time.After(delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
