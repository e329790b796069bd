package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
)

// The scheduler of the simulation. Every call of a daemon to its API server or to a store
// parks until it is let go, one at a time, by the seeded random generator: so any two passes
// interleave at any call, whatever goroutines the product has, and the same seed gives the
// same run. Rules: nothing but the scheduler and the one call that it let go touches a model;
// the scheduler waits until the whole bubble sleeps before it chooses; what may be chosen is
// sorted first. A daemon that crashes is one whose calls have no effect any more, from the
// middle of a pass on; then it is thrown away and made anew.

type simTarget int

const (
	simToAPI simTarget = iota
	simToStore
)

// simVerdict is what becomes of a call.
type simVerdict int

const (
	simServe simVerdict = iota
	simFailBefore
	simThrottle
	simFailAfter // a lost answer
	simDead
)

var simVerdictNames = map[simVerdict]string{simFailBefore: "fails", simThrottle: "throttled", simFailAfter: "answer lost", simDead: "dead"}

// simPass is one pass of a worker.
type simPass struct {
	id     int
	life   *simLife
	name   string // controller and key
	key    string
	ctl    *simController
	done   bool
	budget int // calls until it is put aside; negative: none
	calls  int
	// work is when the pass listed or deleted data last: what it looks at before it deletes
	// was looked at after that.
	work   int
	workAt time.Time
	// marks is when it read marks last.
	marks int
	// looked is when it asked for the state of the bucket last.
	looked int
	// deletes counts what it deleted.
	deletes int
}

type simPassKey struct{}

type simCallState struct {
	pass   *simPass
	life   *simLife
	op     string
	target simTarget
	ctx    context.Context
	settle chan simVerdict
}

// simLife is one life of a daemon, from its start to its crash.
type simLife struct {
	w      *simWorld
	daemon *simDaemon
	dead   bool
	ctx    context.Context
	cancel context.CancelFunc
	// metrics are those of this life.
	metrics *metrics
}

var errSimCrashed = errors.New("the daemon has crashed")

// simCall parks until the scheduler lets the call go.
func simCall[T any](ctx context.Context, life *simLife, target simTarget, op string, serve func() (T, error)) (T, error) {
	var none T
	w := life.w
	pass, _ := ctx.Value(simPassKey{}).(*simPass)
	call := &simCallState{pass: pass, life: life, op: op, target: target, ctx: ctx, settle: make(chan simVerdict)}
	w.parkedMu.Lock()
	w.parked = append(w.parked, call)
	w.parkedMu.Unlock()
	verdict := <-call.settle
	say := func(outcome string) {
		w.note("%s %s: %s -> %s", life.daemon.name, pass.label(), op, outcome)
	}
	switch {
	case verdict == simDead:
		return none, simError(target, errSimCrashed)
	case ctx.Err() != nil:
		say(ctx.Err().Error())
		return none, simError(target, ctx.Err())
	}
	if pass != nil {
		pass.calls++
	}
	switch verdict {
	case simFailBefore, simThrottle:
		say(simVerdictNames[verdict])
		return none, simFault(target, verdict)
	}
	w.current = pass
	value, err := serve()
	w.current = nil
	switch {
	case verdict == simFailAfter:
		say(fmt.Sprintf("answer lost (%v)", err))
		return none, simFault(target, verdict)
	case err != nil:
		say(err.Error())
	default:
		say("ok")
	}
	return value, err
}

func (p *simPass) label() string {
	if p == nil {
		return "-"
	}
	return fmt.Sprintf("#%d %s", p.id, p.name)
}

// simError is an error as the client of a target wraps it.
func simError(target simTarget, err error) error {
	if target == simToStore {
		return &storeError{code: codeRetryableDependencies, err: fmt.Errorf("the store: %w", err)}
	}
	return fmt.Errorf("the API server: %w", err)
}

func simFault(target simTarget, verdict simVerdict) error {
	reset := &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	switch {
	case target == simToStore && verdict == simThrottle:
		return &storeError{code: codeRateLimitsExceeded, err: errors.New("SlowDown: reduce your request rate")}
	case target == simToStore:
		return &storeError{code: codeRetryableDependencies, err: fmt.Errorf("the store closes the connection: %w", reset)}
	case verdict == simThrottle:
		return apierrors.NewTooManyRequests("too many requests", 1)
	case verdict == simFailAfter:
		return reset
	}
	return apierrors.NewServiceUnavailable("etcd is slow")
}

// waiting are the calls that are parked, sorted.
func (w *simWorld) waiting(of func(*simCallState) bool) []*simCallState {
	synctest.Wait()
	w.parkedMu.Lock()
	defer w.parkedMu.Unlock()
	id := func(c *simCallState) int {
		if c.pass == nil {
			return 0
		}
		return c.pass.id
	}
	slices.SortStableFunc(w.parked, func(a, b *simCallState) int { return cmp.Or(cmp.Compare(id(a), id(b)), cmp.Compare(a.op, b.op)) })
	var found []*simCallState
	for _, c := range w.parked {
		if of == nil || of(c) {
			found = append(found, c)
		}
	}
	return found
}

// release lets one call go and waits until everything sleeps again.
func (w *simWorld) release(c *simCallState, verdict simVerdict) {
	w.parkedMu.Lock()
	w.parked = slices.DeleteFunc(w.parked, func(other *simCallState) bool { return other == c })
	w.parkedMu.Unlock()
	w.seq++
	if verdict != simServe && verdict != simDead {
		name := "API: "
		if c.target == simToStore {
			name = "store: "
		}
		w.count("fault", name+simVerdictNames[verdict])
	}
	c.settle <- verdict
	synctest.Wait()
}

// verdict chooses what becomes of a call.
func (w *simWorld) verdict(c *simCallState) simVerdict {
	if c.life.dead {
		return simDead
	}
	if !w.faults || w.rng.IntN(100) >= w.faultRate {
		return simServe
	}
	return []simVerdict{simFailBefore, simFailBefore, simThrottle, simFailAfter, simFailAfter}[w.rng.IntN(5)]
}

// start begins a pass over a key that a queue has ready.
func (w *simWorld) start(ctl *simController, key cache.ObjectName) *simPass {
	life := ctl.life
	w.passes++
	pass := &simPass{id: w.passes, life: life, name: ctl.c.resource + " " + key.Name, key: key.Name, ctl: ctl, budget: -1, work: w.seq, workAt: time.Now()}
	if w.faults && w.rng.IntN(4) == 0 {
		pass.budget = 1 + w.rng.IntN(14)
	}
	life.daemon.passes = append(life.daemon.passes, pass)
	w.note("%s #%d begins %s", life.daemon.name, pass.id, pass.name)
	ctl.q.choose(key)
	go func() {
		ctl.c.processNext(context.WithValue(life.ctx, simPassKey{}, pass))
		pass.done = true
	}()
	w.drive(pass)
	return pass
}

// drive lets the calls of a pass go until it has ended or its budget has. Now and then
// something else happens in between.
func (w *simWorld) drive(pass *simPass) {
	for idle := 0; idle < 400; {
		calls := w.waiting(func(c *simCallState) bool { return c.pass == pass })
		if pass.done {
			w.finish(pass)
			return
		}
		if len(calls) == 0 {
			// It waits for time to pass.
			idle++
			w.sleep(250 * time.Millisecond)
			continue
		}
		if pass.budget == 0 {
			w.count("step", "pass put aside")
			w.note("%s #%d is put aside before %s", pass.life.daemon.name, pass.id, calls[0].op)
			return
		}
		if w.faults && w.depth < 2 && w.rng.IntN(100) < w.interferenceRate {
			w.depth++
			w.interfere(pass)
			w.depth--
			if pass.done || pass.life.dead {
				return
			}
			continue
		}
		c := calls[w.rng.IntN(len(calls))]
		if w.faults && w.crashRate > 0 && w.rng.IntN(1000) < w.crashRate {
			w.crash(pass.life.daemon, c)
			return
		}
		pass.budget--
		w.release(c, w.verdict(c))
	}
	w.violation("endless", "the pass %s does not end", pass.label())
}

func (w *simWorld) finish(pass *simPass) {
	d := pass.life.daemon
	d.passes = slices.DeleteFunc(d.passes, func(p *simPass) bool { return p == pass })
	w.note("%s #%d ends", d.name, pass.id)
}

// crash ends a life of a daemon, before or after the effect of a call.
func (w *simWorld) crash(d *simDaemon, at *simCallState) {
	w.count("fault", "crash")
	if at != nil {
		w.note("%s crashes at %s", d.name, at.op)
		if w.rng.IntN(2) == 0 {
			w.release(at, simFailAfter)
		}
	} else {
		w.note("%s crashes", d.name)
	}
	w.kill(d)
}

// kill ends a life: whatever it still calls has no effect.
func (w *simWorld) kill(d *simDaemon) {
	life := d.life
	life.dead = true
	life.cancel()
	for range 400 {
		calls := w.waiting(func(c *simCallState) bool { return c.life == life })
		for _, c := range calls {
			w.release(c, simDead)
		}
		if !slices.ContainsFunc(d.passes, func(p *simPass) bool { return !p.done }) {
			break
		}
		if len(calls) == 0 {
			time.Sleep(250 * time.Millisecond)
		}
	}
	life.countExtended()
	d.passes = nil
	d.up = false
}

// sleep lets time pass, in steps that keep the clock on a grid: what the product sleeps with
// jitter is rounded up.
func (w *simWorld) sleep(d time.Duration) {
	until := time.Now().Add(d).Truncate(250 * time.Millisecond)
	if !until.After(time.Now()) {
		until = until.Add(250 * time.Millisecond)
	}
	time.Sleep(time.Until(until))
	synctest.Wait()
	for _, d := range w.daemons {
		for _, ctl := range d.controllers {
			ctl.q.tick(time.Now())
		}
	}
	w.tick()
}

// simQueue is a controller's queue, with the meaning of client-go's and without goroutines;
// the scheduler chooses which of the keys that are ready is next.
type simQueue struct {
	mu         sync.Mutex
	ready      []cache.ObjectName
	dirty      map[cache.ObjectName]bool
	processing map[cache.ObjectName]bool
	delayed    map[cache.ObjectName]time.Time
	failures   map[cache.ObjectName]int
	next       *cache.ObjectName
}

func newSimQueue() *simQueue {
	return &simQueue{dirty: map[cache.ObjectName]bool{}, processing: map[cache.ObjectName]bool{}, delayed: map[cache.ObjectName]time.Time{}, failures: map[cache.ObjectName]int{}}
}

func (q *simQueue) Add(key cache.ObjectName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(key)
}

func (q *simQueue) add(key cache.ObjectName) {
	if q.dirty[key] {
		return
	}
	q.dirty[key] = true
	if !q.processing[key] {
		q.ready = append(q.ready, key)
	}
}

func (q *simQueue) AddAfter(key cache.ObjectName, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d <= 0 {
		q.add(key)
		return
	}
	at := time.Now().Add(d)
	if have, ok := q.delayed[key]; !ok || at.Before(have) {
		q.delayed[key] = at
	}
}

func (q *simQueue) AddRateLimited(key cache.ObjectName) {
	q.mu.Lock()
	n := q.failures[key]
	q.failures[key]++
	q.mu.Unlock()
	q.AddAfter(key, min(backoffBase<<min(n, 20), backoffMax))
}

func (q *simQueue) Forget(key cache.ObjectName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.failures, key)
}

func (q *simQueue) NumRequeues(key cache.ObjectName) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.failures[key]
}

func (q *simQueue) Len() int { q.mu.Lock(); defer q.mu.Unlock(); return len(q.ready) }

func (q *simQueue) Get() (cache.ObjectName, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.next == nil {
		return cache.ObjectName{}, true
	}
	key := *q.next
	q.next = nil
	q.ready = slices.DeleteFunc(q.ready, func(k cache.ObjectName) bool { return k == key })
	q.processing[key] = true
	delete(q.dirty, key)
	return key, false
}

func (q *simQueue) Done(key cache.ObjectName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.processing, key)
	if q.dirty[key] {
		q.ready = append(q.ready, key)
	}
}

func (q *simQueue) ShutDown()          {}
func (q *simQueue) ShutDownWithDrain() {}
func (q *simQueue) ShuttingDown() bool { return false }

func (q *simQueue) choose(key cache.ObjectName) { q.next = &key }

// tick makes ready what was delayed until now.
func (q *simQueue) tick(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var due []cache.ObjectName
	for key, at := range q.delayed {
		if !at.After(now) {
			due = append(due, key)
		}
	}
	slices.SortFunc(due, func(a, b cache.ObjectName) int { return cmp.Compare(a.Name, b.Name) })
	for _, key := range due {
		delete(q.delayed, key)
		q.add(key)
	}
}

// due is when the next key becomes ready; false if none is delayed.
func (q *simQueue) due() (next time.Time, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, at := range q.delayed {
		if !ok || at.Before(next) {
			next, ok = at, true
		}
	}
	return next, ok
}
