package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// lineBegin is minute 0 of the time lines here.
var lineBegin = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func lineAt(minute float64) time.Time {
	return lineBegin.Add(time.Duration(minute * float64(time.Minute)))
}

// lineStatement makes a statement of a bucket that should be locked for 4 days and is looked at every minute. since is a
// minute, or below 0 if nothing is claimed; state is locked, short, open, none (without an answer) or unasked. An event is a minute
// and a kind, or verified and two minutes.
func lineStatement(sequence int64, at, since float64, state string, events ...string) *evidence {
	e := &evidence{Sequence: sequence, Time: lineAt(at), VerifyInterval: 60, Bucket: evidenceBucket{Name: "seed-eu1", Store: "s3", Endpoint: "https://s3.example.com"},
		Spec: &evidencePolicy{Days: 4, Locked: true}, Record: &evidencePolicy{Days: 4, Locked: true}}
	observed, verified := lineAt(at), lineAt(since)
	e.Observed = &observed
	if since >= 0 {
		e.VerifiedSince = &verified
	}
	switch state {
	case "locked":
		e.Policy = &evidencePolicy{Days: 4, Locked: true}
	case "short":
		e.Policy = &evidencePolicy{Days: 1, Locked: true}
	case "open":
		e.Policy = &evidencePolicy{Days: 4}
	case "unasked":
		e.Policy, e.Spec, e.Record = &evidencePolicy{}, nil, nil
	case "none":
		e.Observed, e.Unknown = nil, []string{"the store gave no answer for an hour"}
	default:
		panic(state)
	}
	for _, text := range events {
		var minute, until float64
		var kind string
		if _, err := fmt.Sscanf(text, "verified %g %g", &minute, &until); err == nil {
			e.Earlier = append(e.Earlier, evidenceStretch{lineAt(minute), lineAt(until)})
			continue
		}
		if _, err := fmt.Sscanf(text, "%g %s", &minute, &kind); err != nil {
			panic(err)
		}
		e.Events = append(e.Events, evidenceEvent{Time: lineAt(minute), Kind: kind, Message: "message of " + kind})
	}
	return e
}

// lineText writes a time line as minutes and states.
func lineText(line []lineSpan) string {
	var parts []string
	for _, s := range line {
		minute := func(t time.Time) string { return fmt.Sprintf("%g", t.Sub(lineBegin).Minutes()) }
		parts = append(parts, minute(s.from)+"-"+minute(s.to)+" "+[]string{"unknown", "before", "locked", "open"}[s.state])
	}
	return strings.Join(parts, ", ")
}

func TestTimeline(t *testing.T) {
	const day = 24 * 60
	interrupted := func(e *evidence) *evidence { e.Interruption = "the daemon was away"; return e }
	all := func(e ...*evidence) []*evidence { return e }
	for name, c := range map[string]struct {
		statements []*evidence
		from, to   float64
		want       string
	}{
		"without evidence nothing is known": {nil, 0, day, "0-1440 unknown"},
		"without a gap": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, day, 0, "locked"), lineStatement(3, 2*day, 0, "locked")), 0, 2 * day,
			"0-2880 locked"},
		"in any order, and cut": {all(lineStatement(3, 2*day, 0, "locked"), lineStatement(1, 0, 0, "locked"), lineStatement(2, day, 0, "locked")), 100, 200,
			"100-200 locked"},
		"behind the last and before the first statement": {all(lineStatement(5, 100, 40, "locked")), 0, 200,
			"0-40 unknown, 40-100 locked, 100-200 unknown"},
		"before the first of all": {all(lineStatement(1, 100, 40, "locked")), 0, 100, "0-40 before, 40-100 locked"},
		"the first claims nothing about earlier": {all(lineStatement(1, 100, -1, "locked"), lineStatement(2, 200, 100, "locked")), 0, 200,
			"0-100 before, 100-200 locked"},
		"nobody looked for 3 hours": {all(lineStatement(1, 0, 0, "locked"), interrupted(lineStatement(2, day, 180, "locked", "180 gap"))), 0, day,
			"0-180 unknown, 180-1440 locked"},
		"less than a look apart": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, day, 1, "locked")), 0, day, "0-1440 locked"},
		"a missing statement is bridged by what the next claims": {all(lineStatement(1, 0, 0, "locked"), lineStatement(3, 2*day, 0, "locked")), 0, 2 * day,
			"0-2880 locked"},
		"a missing statement that is not bridged": {all(lineStatement(1, 0, 0, "locked"), lineStatement(3, 2*day, day, "locked")), 0, 2 * day,
			"0-1440 unknown, 1440-2880 locked"},
		"drift and repair in one statement": {all(lineStatement(1, 0, 0, "locked"),
			lineStatement(2, day, 280, "locked", "verified 0 99", "100 drift", "280 repair")), 0, day, "0-99 locked, 99-280 open, 280-1440 locked"},
		"two drifts": {all(lineStatement(1, 0, 0, "locked"),
			lineStatement(2, day, 300, "locked", "verified 0 99", "100 drift", "120 repair", "verified 120 198", "200 drift", "300 repair")), 0, day,
			"0-99 locked, 99-120 open, 120-198 locked, 198-300 open, 300-1440 locked"},
		"drift without a word of the repair": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, day, 500, "locked", "100 drift")), 0, day,
			"0-100 unknown, 100-500 open, 500-1440 locked"},
		"drift, long after the last look": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, day, 280, "locked", "verified 0 50", "100 drift", "280 repair")), 0, day,
			"0-50 locked, 50-100 unknown, 100-280 open, 280-1440 locked"},
		"drift in its own statement, the repair in the next": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, 100, -1, "open", "verified 0 99", "100 drift"),
			lineStatement(3, 280, 280, "locked", "280 repair"), lineStatement(4, day, 280, "locked")), 0, day,
			"0-99 locked, 99-280 open, 280-1440 locked"},
		"a claim does not count against a drift within it": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, day, 0, "locked", "100 drift", "280 repair")), 0, day,
			"0-100 locked, 100-280 open, 280-1440 locked"},
		"found weakened, then no answer": {all(lineStatement(1, 0, -1, "open"), lineStatement(2, 100, -1, "none"), lineStatement(3, 200, -1, "none")), 0, 200,
			"0-100 open, 100-200 unknown"},
		"an earlier time of what is not known now": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, 200, -1, "none", "verified 0 150")), 0, 200,
			"0-150 locked, 150-200 unknown"},
		"a shorter retention is a gap": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, 100, -1, "short", "verified 0 99", "100 drift"), lineStatement(3, day, -1, "short")), 0, day,
			"0-99 locked, 99-1440 open"},
		"open at the end, without a drift": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, 100, -1, "open")), 0, 100, "0-100 open"},
		"the store gives no answer": {all(lineStatement(1, 0, 0, "locked"), lineStatement(2, 100, -1, "none"), lineStatement(3, 200, 160, "locked")), 0, 200,
			"0-160 unknown, 160-200 locked"},
		"no lock was asked for, then it was": {all(lineStatement(1, 0, -1, "unasked"), lineStatement(2, 200, 150, "locked", "150 lock")), 0, 200,
			"0-150 open, 150-200 locked"},
		"a claim against the look before": {all(lineStatement(1, 0, -1, "unasked"), lineStatement(2, 200, 0, "locked", "150 lock")), 0, 200,
			"0-150 open, 150-200 locked"},
		"no lock was asked for, and nothing tells when it came": {all(lineStatement(1, 0, 0, "unasked"), lineStatement(2, 200, 0, "locked"), lineStatement(3, 300, 0, "locked")), 0, 300,
			"0-200 open, 200-300 locked"},
		"unknown for less than a look beside what is not known": {all(lineStatement(1, 0, -1, "none"), lineStatement(2, 1, 0.5, "locked"), lineStatement(3, 100, 0, "locked")), 0, 100,
			"0-0.5 unknown, 0.5-100 locked"},
		"a claim beyond the look is none": {all(lineStatement(2, 10, 20, "locked")), 0, 10, "0-10 unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := lineText(timeline(c.statements, lineAt(c.from), lineAt(c.to))); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// Whatever statements there are: the time line has no holes and no overlaps, and is green only where a statement claims it.
func TestTimelineIsNeverGreenWithoutAClaim(t *testing.T) {
	states := []string{"locked", "short", "open", "none", "unasked"}
	kinds := []string{"drift", "repair", "gap", "lock"}
	for seed := range 3000 {
		random := func() func(n int) int {
			x := uint64(seed)*2862933555777941757 + 3037000493
			return func(n int) int { x = x*6364136223846793005 + 1442695040888963407; return int(x >> 33 % uint64(n)) }
		}()
		var statements []*evidence
		at := 0.0
		for i := range 1 + random(6) {
			at += float64(random(200))
			var events []string
			for range random(3) {
				events = append(events, fmt.Sprintf("%d %s", max(0, int(at)-random(200)), kinds[random(len(kinds))]))
			}
			if random(2) == 0 {
				from := max(0, int(at)-random(250))
				events = append(events, fmt.Sprintf("verified %d %d", from, from+random(60)))
			}
			statements = append(statements, lineStatement(int64(i+1), at, at-float64(random(250)), states[random(len(states))], events...))
		}
		from, to := lineAt(float64(random(100))), lineAt(at+float64(random(50))+101)
		line := timeline(statements, from, to)
		end := from
		for _, s := range line {
			if !s.from.Equal(end) || !s.to.After(s.from) {
				t.Fatalf("seed %d: %s", seed, lineText(line))
			}
			end = s.to
			if s.state != lineLocked {
				continue
			}
			for probe := s.from; probe.Before(s.to); probe = probe.Add(time.Minute) {
				if !claimed(statements, probe) {
					for _, e := range statements {
						t.Logf("at %v: %+v since %v, %+v", e.Time.Sub(lineBegin).Minutes(), e.Policy, e.VerifiedSince, e.Events)
					}
					t.Fatalf("seed %d: %v is green: %s", seed, probe.Sub(lineBegin).Minutes(), lineText(line))
				}
			}
		}
		if !end.Equal(to) {
			t.Fatalf("seed %d: it ends early: %s", seed, lineText(line))
		}
	}
}

// lineHole is how far apart two looks may be.
const lineHole = 2 * time.Minute

// claimed says that a statement claims the lock at a time, within what may lie between two looks.
func claimed(statements []*evidence, at time.Time) bool {
	for i, e := range statements {
		state, _ := lockStateOf(e)
		if state == lineLocked && e.VerifiedSince != nil && !e.VerifiedSince.After(at.Add(lineHole)) && !e.Observed.Before(at) {
			return true
		}
		for _, earlier := range e.Earlier {
			if !earlier.From.After(at.Add(lineHole)) && !earlier.Until.Before(at.Add(-lineHole)) {
				return true
			}
		}
		if i == 0 {
			continue
		}
		before, _ := lockStateOf(statements[i-1])
		if before == lineLocked && state == lineLocked && !at.Before(*statements[i-1].Observed) && !at.After(*e.Observed) &&
			e.Observed.Sub(*statements[i-1].Observed) <= lineHole {
			return true // as close to each other as looks are
		}
	}
	return false
}
