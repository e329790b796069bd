// Leases on what a purge is to delete, where the store has them (leaser of store.go). A lease keeps an object as long as its
// holder wants, and whoever can write to a bucket can take one. So it is broken, once a pass for each key and after the permit was
// asked, and the deletion is tried again. Who takes another lease at once, or whose lease cannot be broken, has until the next
// pass: the object counts as retained without a date, so that an entry's deletion ends and a tombstone sees to the rest.

package main

import "context"

// maxUnleased bounds the leases that a pass breaks, one request each; what is beyond counts as retained.
const maxUnleased = 1000

// unleasable says that the lease on a version is to be broken, and notes that. Who takes another one at once wins this pass.
func (p *purge) unleasable(v version) bool {
	if p.unleased[v.key] || len(p.unleased) == maxUnleased {
		return false
	}
	if p.unleased == nil {
		p.unleased = map[string]bool{}
	}
	p.unleased[v.key] = true
	return true
}

// breakLeases ends the leases on versions whose deletion is to be tried again. What cannot be broken for another reason than
// that the store does not answer is refused again then, and counts as retained.
func (p *purge) breakLeases(ctx context.Context, leased []version) error {
	store, ok := p.versions.(leaser)
	if !ok {
		return nil
	}
	if err := p.permit.ask(ctx); err != nil {
		return &permitError{err}
	}
	for _, v := range leased {
		if err := store.breakLease(ctx, v); err != nil && (ctx.Err() != nil || isTransient(err)) {
			return err
		}
	}
	return nil
}
