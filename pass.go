// What a pass over an object carries with it, in its context: who it is, its places at endpoints, and whether this replica may
// still change anything. The queue makes one for each pass, and what is asked on the way to a store or to the API server finds it.
// A request without a pass, such as that of an event or of the lease, is nobody's to limit. Only the pass itself changes it.

package main

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"
)

// pass is one pass over an object, which its context knows.
type pass struct {
	id        passKey
	endpoints *endpoints
	// visits are the places that it has at endpoints. Only the pass itself changes them.
	visits []visit
	// wake makes the pass again.
	wake func()
	// atStore says that it may wait for a store.
	atStore bool
	// leading says why this replica must not change anything any more; nil if it always may.
	leading func() error
	// ahead is how far our clock was ahead of a store's, as its last answer with a time has told; nil if none has.
	ahead atomic.Pointer[time.Duration]
}

type passContext struct{}

// passOf is the pass of a context, nil if it has none.
func passOf(ctx context.Context) *pass {
	p, _ := ctx.Value(passContext{}).(*pass)
	return p
}

// hear notes when, by its own clock, a store has just answered: the Date of the answer, in whole seconds.
func (p *pass) hear(date string) {
	if p == nil {
		return
	}
	if at, err := http.ParseTime(date); err == nil {
		ahead := time.Since(at)
		p.ahead.Store(&ahead)
	}
}

// clock is how far our clock is ahead of the store's; nil if no answer has told its time.
func (p *pass) clock() *time.Duration {
	if p == nil {
		return nil
	}
	return p.ahead.Load()
}

// mayChange says why a request with a method must not be made by this replica.
func (p *pass) mayChange(method string) error {
	if p == nil || p.leading == nil || !isChange(method) {
		return nil
	}
	return p.leading()
}

// isChange says that a request may change something.
func isChange(method string) bool { return method != http.MethodGet && method != http.MethodHead }
