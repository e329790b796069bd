package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// retentionNow is the store's time of plans in tests.
var retentionNow = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// retentionChain reads lines such as "F 0-100 50h excluded": kind, revisions, how long ago it was stored, and what is odd.
func retentionChain(t *testing.T, lines ...string) *chain {
	t.Helper()
	var all []*snapshot
	for i, line := range lines {
		fields := strings.Fields(line)
		ago, err := time.ParseDuration(fields[2])
		if err != nil {
			t.Fatal(err)
		}
		s := &snapshot{key: fmt.Sprint(i), id: "1", name: fmt.Sprint(i), full: fields[0] == "F", size: 10, versions: 1, stored: retentionNow.Add(-ago)}
		s.named = s.stored
		first, last, _ := strings.Cut(fields[1], "-")
		s.first, _ = strconv.ParseInt(first, 10, 64)
		s.last, _ = strconv.ParseInt(last, 10, 64)
		for _, odd := range fields[3:] {
			switch odd {
			case "excluded":
				s.excluded = excluded
			case "unknown":
				s.excluded = exclusionUnknown
			case "lost":
				s.lost = true
			case "early":
				s.named = s.stored.Add(time.Hour)
			}
		}
		all = append(all, s)
	}
	slices.SortFunc(all, (*snapshot).compare)
	return newChain(all, retentionNow, time.Time{})
}

func (p *retentionPlan) described() string {
	var lines []string
	for _, x := range p.steps {
		line := fmt.Sprintf("%s %s +%s", x.version.key, x.reason, x.until.Sub(p.now))
		if x.ask {
			line += " ask"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, ", ")
}

func TestPlanRetention(t *testing.T) {
	days := func(n int32) Policy { return Policy{Days: n, Locked: true} }
	ago := func(d time.Duration) time.Time { return retentionNow.Add(-d) }
	all := func(t time.Time) retentionKnown { return retentionKnown{policy: days(4), through: t} }
	full := []string{"F 0-100 10h", "I 101-110 9h", "I 111-120 1h"}
	idle := []string{"F 0-100 240h", "I 101-110 239h"}
	for name, c := range map[string]struct {
		lines    []string
		known    retentionKnown
		memory   func(*chain) linkMemory
		want     string
		eligible int64
	}{
		"nothing":          {known: all(time.Time{})},
		"all is known":     {lines: full, known: all(ago(0)), eligible: 3},
		"nothing is known": {lines: full, known: all(time.Time{}), want: "0 gap +86h0m0s ask, 1 gap +87h0m0s ask, 2 gap +95h0m0s ask", eligible: 3},
		"known until":      {lines: full, known: all(ago(9 * time.Hour)), want: "2 gap +95h0m0s ask", eligible: 3},
		"the bucket's default has covered some": {lines: full, eligible: 3, want: "0 gap +86h0m0s ask",
			known: retentionKnown{policy: days(4), goodSince: ago(9 * time.Hour), goodUntil: ago(time.Minute)}},
		"what is newer than the last verification waits": {lines: full, eligible: 3,
			known: retentionKnown{policy: days(4), through: ago(8 * time.Hour), goodSince: ago(9 * time.Hour), goodUntil: ago(2 * time.Hour), waits: true}},
		"unless it does not come": {lines: full, eligible: 3, want: "2 gap +95h0m0s ask",
			known: retentionKnown{policy: days(4), through: ago(8 * time.Hour), goodSince: ago(9 * time.Hour), goodUntil: ago(2 * time.Hour)}},
		"a gap": {lines: full, eligible: 3, want: "1 gap +87h0m0s",
			known: retentionKnown{policy: days(4), through: ago(10 * time.Hour), goodSince: ago(2 * time.Hour), goodUntil: ago(time.Minute), waits: true,
				gapFrom: ago(9*time.Hour + time.Second), gapTo: ago(2 * time.Hour)}},
		"written just behind the gap": {lines: full, eligible: 3, want: "2 gap +95h0m0s ask",
			known: retentionKnown{policy: days(4), through: ago(9 * time.Hour), goodSince: ago(time.Hour), goodUntil: ago(2 * time.Hour), waits: true,
				gapFrom: ago(8 * time.Hour), gapTo: ago(time.Hour + time.Second)}},
		"a gap since nobody knows when": {lines: full, eligible: 3, want: "1 gap +87h0m0s ask, 2 gap +95h0m0s ask",
			known: retentionKnown{policy: days(4), through: ago(10 * time.Hour), gapTo: ago(time.Minute)}},
		"from before the bucket was locked": {lines: full, eligible: 3, want: "0 gap +86h0m0s, 1 gap +87h0m0s, 2 gap +95h0m0s",
			known: retentionKnown{policy: days(4), everything: true, gapTo: ago(time.Minute)}},
		"a growth": {lines: full, eligible: 3, want: "0 growth +86h0m0s, 1 growth +87h0m0s, 2 growth +95h0m0s",
			known: retentionKnown{policy: days(4), grown: ago(time.Minute)}},
		"over the period":                           {lines: append(idle, "F 0-110 10h"), known: all(time.Time{}), want: "2 gap +86h0m0s ask", eligible: 1},
		"what a restore takes, over the period":     {lines: idle, known: all(ago(0)), want: "0 chain +96h0m0s ask, 1 chain +96h0m0s ask", eligible: 2},
		"over half of the period":                   {lines: []string{"F 0-100 49h"}, known: all(ago(0)), want: "0 chain +96h0m0s ask", eligible: 1},
		"under half of the period":                  {lines: []string{"F 0-100 47h"}, known: all(ago(0)), eligible: 1},
		"an odd number of days":                     {lines: []string{"F 0-100 11h"}, known: retentionKnown{policy: days(1), through: ago(0)}, eligible: 1},
		"over half of an odd number of days":        {lines: []string{"F 0-100 13h"}, known: retentionKnown{policy: days(1), through: ago(0)}, want: "0 chain +24h0m0s ask", eligible: 1},
		"more days than a duration holds":           {lines: full, known: retentionKnown{policy: days(36500), through: ago(0)}, eligible: 3},
		"what the store has said of it lasts":       {lines: idle, known: all(ago(0)), memory: linksUntil(2, 49*time.Hour), eligible: 2},
		"what the store has said of it ends":        {lines: idle, known: all(ago(0)), memory: linksUntil(2, 47*time.Hour), want: "0 chain +96h0m0s, 1 chain +96h0m0s", eligible: 2},
		"the store has said it of the first":        {lines: idle, known: all(ago(0)), memory: linksUntil(1, 49*time.Hour), want: "1 chain +96h0m0s ask", eligible: 2},
		"of another chain":                          {lines: idle, known: all(ago(0)), memory: func(*chain) linkMemory { return linkMemory{2, 7, ago(-80 * time.Hour)} }, want: "0 chain +96h0m0s ask, 1 chain +96h0m0s ask", eligible: 2},
		"excluded":                                  {lines: []string{"F 0-100 10h", "I 101-110 9h excluded"}, known: all(time.Time{}), want: "0 gap +86h0m0s ask", eligible: 1},
		"maybe excluded":                            {lines: []string{"F 0-100 10h", "I 101-110 9h unknown"}, known: all(time.Time{}), want: "0 gap +86h0m0s ask", eligible: 1},
		"lost":                                      {lines: []string{"F 0-100 10h", "I 101-110 9h lost"}, known: all(time.Time{}), want: "0 gap +86h0m0s ask", eligible: 1},
		"a broken chain is kept to where it breaks": {lines: []string{"F 0-100 240h", "I 101-110 240h", "I 121-130 240h"}, known: all(ago(0)), want: "0 chain +96h0m0s ask, 1 chain +96h0m0s ask", eligible: 2},
		"an older chain is not": {lines: []string{"F 0-100 240h", "I 101-110 240h", "F 110-110 200h"}, known: all(ago(0)),
			want: "2 chain +96h0m0s ask", eligible: 1},
		"a forged full does not hide the chain": {lines: append(idle, "F 0-9000000000 1h", "I 9000000001-9000000005 30m"), known: all(ago(0)),
			want: "0 chain +96h0m0s ask, 1 chain +96h0m0s ask", eligible: 4},
		"nor one with a time in the future": {lines: append(idle, "F 0-120 1h early"), known: all(ago(0)),
			want: "0 chain +96h0m0s ask, 1 chain +96h0m0s ask", eligible: 3},
		"a forged full of long ago and a low revision makes nothing else forged": {eligible: 4, known: all(ago(0)),
			lines: []string{"F 0-9000000000 240h", "I 9000000001-9000000005 239h", "F 0-1 2h", "F 0-99000000000 1h"},
			want:  "0 chain +96h0m0s ask, 1 chain +96h0m0s ask"},
		"one that is ahead of later deltas": {lines: append(idle, "F 0-300000 2h", "I 111-120 1h"), known: all(ago(0)),
			want: "0 chain +96h0m0s ask, 1 chain +96h0m0s ask", eligible: 4},
		"after a month of suspicion it ends": {lines: []string{"F 0-100 721h", "F 0-9000000000 1h"}, known: all(ago(0)), eligible: 1},
		"the store's clock was ahead once":   {lines: []string{"F 0-100 -300h"}, known: all(time.Time{}), want: "0 gap +96h0m0s ask", eligible: 1},
	} {
		t.Run(name, func(t *testing.T) {
			found := retentionChain(t, c.lines...)
			var memory entryMemory
			if c.memory != nil {
				memory.kept[0] = c.memory(found)
			}
			p := planRetention(found, c.known, &memory)
			if got := p.described(); got != c.want || p.eligible != c.eligible {
				t.Errorf("%d eligible, steps: %s\nwant %d: %s", p.eligible, got, c.eligible, c.want)
			}
			for _, x := range p.steps {
				if x.until.After(c.known.policy.until(retentionNow)) || x.until.Before(x.need) || !x.until.After(retentionNow) {
					t.Errorf("%s is to be retained until %s, needed is %s", x.version.key, x.until, x.need)
				}
			}
			if p.through.After(retentionNow.Add(-uploadTime)) || c.known.waits && p.through.After(c.known.goodUntil) {
				t.Errorf("after it all is known through %s", p.through)
			}
		})
	}
}

// linksUntil is what is known of the first links of a chain.
func linksUntil(n int, left time.Duration) func(*chain) linkMemory {
	return func(c *chain) linkMemory {
		return linkMemory{links: n, hash: hashLinks(c.links[:n]), until: retentionNow.Add(left)}
	}
}
