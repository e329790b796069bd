// Endpoints: what a trouble of one store may cost the passes of all others.
//
// Rules:
//   - A pass has a place at the host that its bucket lies on and at its part of it (a bucket, a subscription). One that has
//     not answered yet has a single place, one that answers has as many as the flag gives workers, for each kind of work.
//     A pass that finds no place is parked: it keeps no worker.
//   - One that gave no answer three times in a row is down. It is asked by one pass at a time then, not more often than
//     every ten seconds, and less often the longer it lasts. All other passes end at once, with the reason.
//   - An answer of any status is an answer. A certificate or a name that is wrong is somebody's configuration.
//   - What a store says of when to come back (Retry-After) counts for the part that was asked.

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/tools/cache"
)

const (
	// downAfter is how many requests in a row have to end without an answer.
	downAfter = 3

	// probeFirst and probeMax are how long an endpoint that is down is left alone between two requests.
	probeFirst, probeMax = 10 * time.Second, time.Minute

	// probeTime is how long others wait for the pass that asks an endpoint that is down.
	probeTime = 30 * time.Second

	// parkedRetry is how soon a parked pass looks for a place by itself; most often it is woken before.
	parkedRetry = 5 * time.Second

	// maxRetryAfter keeps an absurd date from ending the verification of a bucket for ever.
	maxRetryAfter = 24 * time.Hour

	// maxEndpoints bounds the hosts and parts that are remembered; they are bounded by what objects name anyway.
	maxEndpoints = 2000
)

// endpointRef names what the requests for a bucket go to.
type endpointRef struct {
	// host is a label of metrics; it has a port if that is not the usual one.
	host string
	// part is what may fail or be throttled while the rest of the host is well: a bucket, a subscription.
	part string
}

// passClass is a kind of work. What may take long has places of its own.
type passClass string

const (
	classLook  passClass = "look"  // verification, and the marks of entries
	classPurge passClass = "purge" // deletions and sweeps
	classCheck passClass = "check" // the checks of backups, and the probes
)

// passKey is an object that passes are made over.
type passKey struct {
	resource string
	key      cache.ObjectName
}

// placeKind is what places are counted by.
type placeKind struct {
	resource string
	class    passClass
}

// endpoints are the hosts, and the parts of them, that stores were reached at. It is safe for concurrent use.
type endpoints struct {
	// limit is how many passes of a kind may be at one endpoint, sweeps and checks aside.
	limit   int
	metrics *metrics

	mu sync.Mutex
	// all has the host under its name with an empty part.
	all map[endpointRef]*endpoint
	// unproven counts the passes at hosts that do not answer, by resource: together they get at most half of the workers.
	unproven map[string]int
	// asleep is what passes that found no place are waiting for, waiting how many there are by host.
	asleep  map[passKey]sleepingPass
	waiting map[string]int
	tick    uint64
}

// sleepingPass is a pass that found no place.
type sleepingPass struct {
	ref   endpointRef
	class passClass
	// down says that it ended with an error; else it merely waits for others to leave.
	down bool
	turn uint64
	wake func()
}

// endpoint is a host or a part of one; endpoints.mu guards it.
type endpoint struct {
	answered bool
	failures int
	// opened is how often it was found down since its last answer. downUntil is when it may be asked again.
	opened    int
	downUntil time.Time
	// reason is the last failure, as one clause.
	reason string
	// probe is the pass that may ask it while it is down, until probeEnd.
	probe    passKey
	probeEnd time.Time
	// notBefore is when the store wants to be asked again.
	notBefore time.Time
	inside    map[placeKind]int
	used      uint64
}

func (x *endpoint) down() bool { return x.failures >= downAfter }

func newEndpoints(limit int, m *metrics) *endpoints {
	return &endpoints{limit: limit, metrics: m, all: map[endpointRef]*endpoint{}, unproven: map[string]int{},
		asleep: map[passKey]sleepingPass{}, waiting: map[string]int{}}
}

// visit is a place that a pass has.
type visit struct {
	ref        endpointRef
	host, part *endpoint
	kind       placeKind
	// unproven says that the host had not answered when the pass came.
	unproven bool
}

// endpointDownError says that an endpoint was not asked, since it does not answer.
type endpointDownError struct {
	reason string
	after  time.Duration
}

func (e *endpointDownError) Error() string {
	return e.reason + "; it is asked again from time to time"
}

// NonRetriable keeps the SDK for Azure from trying again.
func (*endpointDownError) NonRetriable() {}

// throttledError says that an endpoint was not asked, since it said when to come back.
type throttledError struct{ after time.Duration }

func (*throttledError) Error() string { return "the store asks for a pause between requests" }

// NonRetriable keeps the SDK for Azure from trying again.
func (*throttledError) NonRetriable() {}

// parkedError ends a pass that found no place; it is woken when there is one.
type parkedError struct{ host string }

func (e *parkedError) Error() string {
	return fmt.Sprintf("as many passes as allowed are at %s already", e.host)
}

// enter gives the pass of a context a place at an endpoint, which it has until it ends. The error is a *parkedError or a
// *storeError. Without a pass there is nothing to limit.
func (e *endpoints) enter(ctx context.Context, ref endpointRef, class passClass) error {
	p := passOf(ctx)
	if e == nil || p == nil {
		return nil
	}
	for _, v := range p.visits {
		if v.ref == ref {
			return nil
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	kind := placeKind{p.id.resource, class}
	host, part := e.get(endpointRef{host: ref.host}), e.get(ref)
	wait, err := e.refuse(p.id, kind, host, part, ref, now)
	if err != nil {
		e.setAsleep(p.id, &sleepingPass{ref: ref, class: class, down: wait > 0, wake: p.wake})
		return err
	}
	e.setAsleep(p.id, nil)
	v := visit{ref: ref, host: host, part: part, kind: kind, unproven: !host.answered || host.down()}
	for _, x := range []*endpoint{host, part} {
		if x.down() {
			x.probe, x.probeEnd = p.id, now.Add(probeTime)
		}
		x.inside[kind]++
	}
	if v.unproven {
		e.unproven[kind.resource]++
	}
	p.visits = append(p.visits, v)
	return nil
}

// setAsleep notes what a pass waits for, or with nil that it does not.
func (e *endpoints) setAsleep(id passKey, s *sleepingPass) {
	if old, ok := e.asleep[id]; ok {
		delete(e.asleep, id)
		e.waiting[old.ref.host]--
		e.report(old.ref.host)
	}
	if s == nil {
		return
	}
	e.tick++
	s.turn = e.tick
	e.asleep[id] = *s
	e.waiting[s.ref.host]++
	e.report(s.ref.host)
}

// refuse says why a pass gets no place now. wait is how long that holds, zero if others have to leave.
func (e *endpoints) refuse(id passKey, kind placeKind, host, part *endpoint, ref endpointRef, now time.Time) (time.Duration, error) {
	for _, x := range []*endpoint{host, part} {
		if wait := x.notBefore.Sub(now); wait > 0 {
			return wait, &storeError{code: codeRateLimitsExceeded, err: &throttledError{after: wait}}
		}
		if wait := x.closedFor(id, now); wait > 0 {
			return wait, &storeError{code: codeRetryableDependencies, err: &endpointDownError{reason: x.reason, after: wait}}
		}
	}
	for _, x := range []*endpoint{host, part} {
		if x.inside[kind] >= e.places(x, kind) {
			return 0, &parkedError{host: ref.host}
		}
	}
	if (!host.answered || host.down()) && e.unproven[kind.resource] >= e.most(kind)*storeWorkers/2 {
		return 0, &parkedError{host: ref.host}
	}
	return 0, nil
}

// closedFor is how long an endpoint is not to be asked by a pass.
func (x *endpoint) closedFor(id passKey, now time.Time) time.Duration {
	switch {
	case !x.down():
		return 0
	case x.downUntil.After(now):
		return x.downUntil.Sub(now)
	case x.probe != id && x.probeEnd.After(now):
		return x.probeEnd.Sub(now)
	}
	return 0
}

// places is how many passes of a kind may be at an endpoint.
func (e *endpoints) places(x *endpoint, kind placeKind) int {
	if !x.answered {
		return 1
	}
	return e.most(kind)
}

// most is how many passes of a kind may be at any endpoint.
func (e *endpoints) most(kind placeKind) int {
	switch kind.resource {
	case resourceSweeps:
		return concurrentSweeps
	case resourceChecks:
		return concurrentChecks
	case resourceProbes:
		return concurrentProbes
	case resourceEvidence:
		return concurrentEvidence
	}
	return e.limit
}

func (e *endpoints) get(ref endpointRef) *endpoint {
	x := e.all[ref]
	if x == nil {
		if len(e.all) >= maxEndpoints {
			e.evict()
		}
		x = &endpoint{inside: map[placeKind]int{}}
		e.all[ref] = x
	}
	e.tick++
	x.used = e.tick
	return x
}

// evict forgets the endpoint that was not used for the longest time.
func (e *endpoints) evict() {
	var oldest endpointRef
	found := false
	for ref, x := range e.all {
		if len(x.inside) == 0 && e.waiting[ref.host] == 0 && (!found || x.used < e.all[oldest].used) {
			oldest, found = ref, true
		}
	}
	if !found {
		return
	}
	delete(e.all, oldest)
	if oldest.part == "" {
		delete(e.waiting, oldest.host)
		if e.metrics != nil {
			e.metrics.forgetEndpoint(oldest.host)
		}
	}
}

// leave gives the places of a pass that has ended to others.
func (e *endpoints) leave(p *pass) {
	if e == nil || len(p.visits) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range p.visits {
		if v.host.down() || v.part.down() {
			// It comes again as soon as there is an answer, however often it has failed.
			e.setAsleep(p.id, &sleepingPass{ref: v.ref, class: v.kind.class, down: true, wake: p.wake})
		}
		for _, x := range []*endpoint{v.host, v.part} {
			if x.inside[v.kind]--; x.inside[v.kind] == 0 {
				delete(x.inside, v.kind)
			}
			if x.probe == p.id {
				x.probe, x.probeEnd = passKey{}, time.Time{}
			}
		}
		if v.unproven {
			e.unproven[v.kind.resource]--
		}
		e.wakeNext(func(s sleepingPass, id passKey) bool {
			return !s.down && (placeKind{id.resource, s.class}) == v.kind && (s.ref.host == v.ref.host || v.unproven)
		})
	}
	p.visits = nil
}

// wakeNext wakes the pass that waits for the longest time.
func (e *endpoints) wakeNext(fits func(sleepingPass, passKey) bool) {
	var next passKey
	found := false
	for id, s := range e.asleep {
		if fits(s, id) && (!found || s.turn < e.asleep[next].turn) {
			next, found = id, true
		}
	}
	if found {
		e.asleep[next].wake()
	}
}

// sleep is how long a pass over an object need not begin, since the place that it found taken or closed still is; zero if
// it may. It makes no request and keeps no worker.
func (e *endpoints) sleep(id passKey) time.Duration {
	if e == nil {
		return 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.asleep[id]
	if !ok {
		return 0
	}
	host, part, now := e.get(endpointRef{host: s.ref.host}), e.get(s.ref), time.Now()
	wait, err := e.refuse(id, placeKind{id.resource, s.class}, host, part, s.ref, now)
	switch {
	case err == nil:
		for _, x := range []*endpoint{host, part} {
			if x.down() {
				x.probe, x.probeEnd = id, now.Add(probeTime)
			}
		}
		return 0
	case wait > 0:
		return spread(wait)
	}
	return spread(parkedRetry)
}

// awake forgets what an object's pass waits for: it has changed, and may name another endpoint now.
func (e *endpoints) awake(id passKey) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.setAsleep(id, nil)
}

// spread makes a time up to a tenth longer, so that not all come at once.
func spread(d time.Duration) time.Duration {
	return d + rand.N(d/10+1)
}

// asked are the endpoints of a pass that a request to a host concerns. What credentials are fetched from, such as STS,
// is not the store's host: its trouble is that of the part alone.
func (p *pass) asked(host string) []*endpoint {
	var all []*endpoint
	for _, v := range p.visits {
		if host == v.ref.host || strings.HasSuffix(host, "."+v.ref.host) {
			return []*endpoint{v.host, v.part}
		}
		all = append(all, v.part)
	}
	return all
}

// refuseRequest says why a request of a pass is not to be made now. A short pause is waited for by the caller.
func (e *endpoints) refuseRequest(p *pass, host string) (pause time.Duration, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	for _, x := range p.asked(host) {
		if wait := x.notBefore.Sub(now); wait > 0 {
			return wait, &throttledError{after: wait}
		}
		if wait := x.closedFor(p.id, now); wait > 0 {
			return wait, &endpointDownError{reason: x.reason, after: wait}
		}
	}
	return 0, nil
}

// answered records that a host has answered a request of a pass.
func (e *endpoints) answered(p *pass, host string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	news := map[*endpoint]bool{}
	for _, x := range p.asked(host) {
		if x.down() || !x.answered {
			news[x] = true
		}
		x.answered, x.failures, x.opened, x.probe, x.probeEnd = true, 0, 0, passKey{}, time.Time{}
	}
	if len(news) == 0 {
		return
	}
	for _, s := range e.asleep {
		if news[e.all[s.ref]] || news[e.all[endpointRef{host: s.ref.host}]] {
			s.wake()
		}
	}
	e.reportAll(p)
}

// failed records that a host gave no answer to a request of a pass. reason is one clause without anything that changes.
func (e *endpoints) failed(p *pass, host, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	for _, x := range p.asked(host) {
		if x.failures++; !x.down() {
			continue
		}
		x.reason = reason
		if x.downUntil.After(now) {
			continue // of a request that was under way
		}
		x.downUntil = now.Add(spread(min(probeFirst<<min(x.opened, 3), probeMax)))
		x.opened++
		e.reportAll(p)
	}
}

// throttled records when the part that a pass has asked wants to be asked again.
func (e *endpoints) throttled(p *pass, host string, after time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	at := time.Now().Add(min(after, maxRetryAfter))
	asked := p.asked(host)
	if len(asked) == 0 {
		return
	}
	if part := asked[len(asked)-1]; at.After(part.notBefore) {
		part.notBefore = at
	}
}

func (e *endpoints) reportAll(p *pass) {
	for _, v := range p.visits {
		e.report(v.ref.host)
	}
}

// report sets the metrics of a host.
func (e *endpoints) report(host string) {
	if e.metrics == nil {
		return
	}
	open := 0.0
	if x := e.all[endpointRef{host: host}]; x != nil && x.down() {
		open = 1
	}
	e.metrics.endpointOpen.WithLabelValues(host).Set(open)
	e.metrics.endpointWaiting.WithLabelValues(host).Set(float64(e.waiting[host]))
}
