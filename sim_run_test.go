package main

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

// The simulation: the whole daemon, twice, in one process and in virtual time, with an API
// server each and stores that they share, everything that can go wrong, and somebody who
// tampers. Rules: the same seed is the same run; what must hold is checked at every call
// that destroys something (sim_truth_test.go), whenever the daemons were left alone for an
// interval, and in the end, when nothing deletable may be left.
//
//	SIM_STEPS=100000 SIM_SEEDS=200 go test -run TestSimulation -v -timeout 0 .
//	SIM_SEED=17 SIM_TRACE=500 go test -run TestSimulation .

// simNumber is a number from the environment.
func simNumber(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

func simTraceLines() int { return simNumber("SIM_TRACE", 60) }

func TestSimulation(t *testing.T) {
	steps, seeds, first := simNumber("SIM_STEPS", 2000), simNumber("SIM_SEEDS", 40), 0
	each := max(1, (steps+seeds-1)/seeds)
	if seed := simNumber("SIM_SEED", -1); seed >= 0 {
		first, seeds = seed, simNumber("SIM_SEEDS", 1)
		each = simNumber("SIM_STEPS", each)
	}
	counts := simCounts{}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", first+seed), func(t *testing.T) {
			if w := simulate(t, uint64(first+seed), each, counts); w.failed != "" {
				w.report(t)
			}
		})
	}
	counts["total"] = map[string]int{"steps": each * seeds, "seeds": seeds}
	t.Log(counts)
	if missing := counts.missingReasons(); first == 0 && each*seeds >= 2000 && !t.Failed() && len(missing) > 0 {
		t.Errorf("no version was extended for the reasons %q: the simulation does not come to that any more", missing)
	}
}

// The same seed is the same run, to the last line of the trace.
func TestSimulationIsDeterministic(t *testing.T) {
	for seed := range uint64(3) {
		var traces [2][]string
		for i := range traces {
			t.Run(fmt.Sprintf("seed %d, %d", seed, i), func(t *testing.T) {
				traces[i] = simulate(t, seed, 100, simCounts{}).trace
			})
		}
		if len(traces[0]) < 100 {
			t.Errorf("seed %d has a trace of %d lines", seed, len(traces[0]))
		}
		for i, line := range traces[0] {
			if i >= len(traces[1]) || traces[1][i] != line {
				t.Fatalf("seed %d is another run from line %d on: %s", seed, i, line)
			}
		}
	}
}

// simulate is one run, until its end or a violation.
func simulate(t *testing.T, seed uint64, steps int, counts simCounts) (w *simWorld) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, seed)
	synctest.Test(t, func(t *testing.T) {
		// A clock that begins at zero hides mistakes.
		time.Sleep(time.Until(testStart.AddDate(1, 0, 0)))
		w = newSimWorld(seed, counts)
		w.faults, w.steps = true, steps
		w.faultRate, w.interferenceRate, w.crashRate = w.rng.IntN(16), w.rng.IntN(24), w.rng.IntN(8)
		for range steps {
			if w.doStep(); w.step%100 == 0 && w.failed == "" {
				clear(w.store.broken)
				w.settle(simVerifyInterval + time.Minute)
				w.truth.settled()
			}
			if w.failed != "" {
				break
			}
		}
		if w.failed == "" {
			w.env.finish()
		}
		w.shut()
	})
	return w
}

// shut ends the lives, so that no goroutine is left.
func (w *simWorld) shut() {
	for _, d := range w.daemons {
		if d.up {
			w.kill(d)
		}
	}
	time.Sleep(time.Minute)
}
