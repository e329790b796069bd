package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// The world of the simulation: two clusters with an API server and a daemon each, the stores
// that they share, and a clock; and what a run does in a step. Rules: every choice comes from
// one seeded generator and from sorted lists; a violation ends the run with the seed, the
// step and the end of the trace.

type simDaemon struct {
	w           *simWorld
	name        string
	api         *simAPI
	up          bool
	life        *simLife
	buckets     *simInformer
	entries     *simInformer
	controllers []*simController
	passes      []*simPass
}

type simController struct {
	c    *controller
	q    *simQueue
	life *simLife
}

// simCounts counts what happened, by kind and name; shared by all seeds.
type simCounts map[string]map[string]int

func (c simCounts) String() string {
	var out strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&out, "\n%s:", kind)
		for _, name := range slices.Sorted(maps.Keys(c[kind])) {
			fmt.Fprintf(&out, "\n  %8d  %s", c[kind][name], name)
		}
	}
	return out.String()
}

func (c simCounts) add(kind, name string, n int) {
	if c[kind] == nil {
		c[kind] = map[string]int{}
	}
	c[kind][name] += n
}

type simWorld struct {
	rng     *rand.Rand
	seed    uint64
	store   *simStore
	truth   *simTruth
	daemons []*simDaemon
	counts  simCounts

	parkedMu    sync.Mutex
	parked      []*simCallState
	current     *simPass
	seq         int
	passes      int
	step, steps int
	depth       int
	// faults says that something may go wrong; rates are in percent, of crashes per mille.
	faults                                 bool
	faultRate, interferenceRate, crashRate int

	traceMu sync.Mutex
	trace   []string
	// failed is the first violation.
	failed string

	env simEnv
}

func (w *simWorld) note(format string, args ...any) {
	w.traceMu.Lock()
	defer w.traceMu.Unlock()
	w.trace = append(w.trace, fmt.Sprintf("%5d %s %s", w.seq, time.Now().UTC().Format("01-02T15:04:05.000"), fmt.Sprintf(format, args...)))
}

func (w *simWorld) count(kind, name string) {
	w.counts.add(kind, name, 1)
}

// simKnown are kinds of violations that do not end a run, for looking at what comes after:
// those of SIM_KNOWN, or all but the one of SIM_ONLY.
func simKnown(kind string) bool {
	if only := os.Getenv("SIM_ONLY"); only != "" {
		return kind != only
	}
	return slices.Contains(strings.Split(os.Getenv("SIM_KNOWN"), ","), kind)
}

// violation is remembered, since it may be found inside a pass; the scheduler ends the run.
func (w *simWorld) violation(kind, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.note("VIOLATION (%s): %s", kind, text)
	w.count("violation", kind)
	if w.failed == "" && !simKnown(kind) {
		w.failed = kind + ": " + text
	}
}

func newSimWorld(seed uint64, counts simCounts) *simWorld {
	w := &simWorld{seed: seed, rng: rand.New(rand.NewPCG(seed, 17)), counts: counts}
	w.store, w.truth = newSimStore(w), newSimTruth(w)
	w.store.skew = time.Duration(w.rng.IntN(41)-20) * time.Second
	for _, name := range []string{"A", "B"} {
		d := &simDaemon{w: w, name: name, api: newSimAPI(name)}
		d.api.pages = map[string][]simObject{}
		w.truth.watch(d.api)
		w.daemons = append(w.daemons, d)
	}
	w.env.init(w)
	for _, d := range w.daemons {
		w.up(d)
	}
	return w
}

// up starts a daemon that is not running.
func (w *simWorld) up(d *simDaemon) {
	if d.up {
		return
	}
	w.note("%s starts", d.name)
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	d.life = &simLife{w: w, daemon: d, ctx: ctx, cancel: cancel}
	d.up = true
	d.wire(d.life)
	d.buckets.relist(true)
	d.entries.relist(true)
}

// ready are the keys that a worker could take, sorted.
type simReady struct {
	ctl *simController
	key cache.ObjectName
}

func (w *simWorld) ready(of ...*simDaemon) []simReady {
	var found []simReady
	for _, d := range of {
		if !d.up {
			continue
		}
		for _, ctl := range d.controllers {
			ctl.q.mu.Lock()
			for _, key := range ctl.q.ready {
				found = append(found, simReady{ctl, key})
			}
			ctl.q.mu.Unlock()
		}
	}
	return found
}

func pick[T any](w *simWorld, from []T) T { return from[w.rng.IntN(len(from))] }

// doPass makes a pass over one of the keys that are ready; false if none is.
func (w *simWorld) doPass(of ...*simDaemon) bool {
	ready := w.ready(of...)
	if len(ready) == 0 {
		return false
	}
	r := pick(w, ready)
	w.count("step", "pass over "+r.ctl.c.resource)
	w.start(r.ctl, r.key)
	return true
}

// resume goes on with a pass that was put aside; false if there is none.
func (w *simWorld) resume(whole bool) bool {
	var aside []*simPass
	for _, d := range w.daemons {
		aside = append(aside, d.passes...)
	}
	aside = slices.DeleteFunc(aside, func(p *simPass) bool { return p.budget != 0 })
	if len(aside) == 0 {
		return false
	}
	pass := pick(w, aside)
	pass.budget = -1
	if !whole && w.rng.IntN(2) == 0 {
		pass.budget = 1 + w.rng.IntN(8)
	}
	w.drive(pass)
	return true
}

// deliver lets events through to a cache.
func (w *simWorld) deliver(d *simDaemon) {
	if !d.up {
		return
	}
	i := pick(w, []*simInformer{d.buckets, d.entries, d.entries})
	switch w.rng.IntN(10) {
	case 0:
		w.count("step", "relist")
		i.relist(false)
	case 1, 2, 3:
		w.count("step", "cache catches up")
		i.deliverAll()
	default:
		w.count("step", "events delivered")
		i.fetch()
		for range 1 + w.rng.IntN(4) {
			if len(i.pending) > 0 {
				i.deliver(w.rng.IntN(len(i.pending)))
			}
		}
	}
}

// advance lets time pass.
func (w *simWorld) advance() {
	if w.rng.IntN(5) > 0 {
		for w.resume(true) {
		}
	}
	var d time.Duration
	switch n := w.rng.IntN(20); {
	case n < 10:
		d = time.Duration(1+w.rng.IntN(20)) * time.Second
	case n < 16:
		d = time.Duration(1+w.rng.IntN(15)) * time.Minute
	case n < 19:
		d = time.Duration(1+w.rng.IntN(30)) * time.Hour
	default:
		d = time.Duration(1+w.rng.IntN(4)) * 24 * time.Hour
	}
	w.count("step", "time passes")
	w.note("%s pass", d)
	w.sleep(d)
}

// interfere lets something happen in the middle of a pass.
func (w *simWorld) interfere(pass *simPass) {
	w.count("step", "in the middle of a pass")
	if w.env.focus(pass) {
		return
	}
	switch w.rng.IntN(10) {
	case 0, 1:
		w.deliver(pick(w, w.daemons))
	case 2, 3, 4:
		w.doPass(w.daemons...)
	case 5:
		w.resume(false)
	default:
		w.env.act(pass)
	}
}

// doStep is one step.
func (w *simWorld) doStep() {
	w.step++
	switch n := w.rng.IntN(100); {
	case n < 30:
		if !w.resume(false) && !w.doPass(w.daemons...) {
			w.advance()
		}
	case n < 42:
		if !w.doPass(w.daemons...) {
			w.deliver(pick(w, w.daemons))
		}
	case n < 62:
		w.deliver(pick(w, w.daemons))
	case n < 90:
		w.env.act(nil)
	case n < 97:
		w.advance()
	case n < 98:
		if d := pick(w, w.daemons); d.up {
			w.crash(d, nil)
		}
	default:
		w.count("step", "restart")
		for _, d := range w.daemons {
			w.up(d)
		}
	}
	if w.rng.IntN(4) == 0 {
		for _, d := range w.daemons {
			w.up(d)
		}
	}
	synctest.Wait()
}

// tick is called whenever time has passed.
func (w *simWorld) tick() {}

// settle lets the daemons work undisturbed.
func (w *simWorld) settle(d time.Duration) {
	w.note("settling for %s", d)
	faults := w.faults
	w.faults = false
	defer func() { w.faults = faults }()
	for _, d := range w.daemons {
		w.up(d)
	}
	until := time.Now().Add(d)
	for same, last := 0, time.Now(); w.failed == ""; {
		for w.resume(true) {
		}
		for _, d := range w.daemons {
			d.buckets.deliverAll()
			d.entries.deliverAll()
		}
		if ready := w.ready(w.daemons...); len(ready) > 0 {
			if same++; same > 500 {
				w.violation("endless", "500 passes without an end over %s %s", ready[0].ctl.c.resource, ready[0].key.Name)
			}
			w.start(ready[0].ctl, ready[0].key)
			continue
		}
		now := time.Now()
		if now.After(last) {
			same, last = 0, now
		}
		if !now.Before(until) {
			return
		}
		next := until
		for _, d := range w.daemons {
			for _, ctl := range d.controllers {
				if at, ok := ctl.q.due(); ok && at.Before(next) {
					next = at
				}
			}
		}
		w.sleep(max(next.Sub(now), 250*time.Millisecond))
	}
}

// report ends the run at a violation.
func (w *simWorld) report(t *testing.T) {
	t.Helper()
	w.traceMu.Lock()
	defer w.traceMu.Unlock()
	t.Fatalf("seed %d, step %d: %s\nagain with SIM_SEED=%d SIM_STEPS=%d go test -run TestSimulation .\n\t%s",
		w.seed, w.step, w.failed, w.seed, w.steps, strings.Join(w.trace[max(0, len(w.trace)-simTraceLines()):], "\n\t"))
}
