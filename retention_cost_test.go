package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// costCluster is a cluster with Gardener's schedules in a locked bucket, through the days: a full snapshot a day, a delta every five
// minutes, a look each hour, and etcd-backup-restore's garbage collection every twelve hours while it is awake.
type costCluster struct {
	t      *testing.T
	policy Policy
	now    time.Time
	begun  time.Time
	all    []*snapshot
	until  map[*snapshot]time.Time
	memory entryMemory
	// revision is that of the etcd; ticks are of five minutes.
	revision int64
	ticks    int
	// extended are all extensions, refused the deletions that the store has refused.
	extended, refused int
	reasons           map[string]int
}

func newCostCluster(t *testing.T, days int32) *costCluster {
	begun := time.Date(2026, 3, 4, 0, 0, 0, 0, time.UTC)
	return &costCluster{t: t, policy: Policy{Days: days, Locked: true}, now: begun, begun: begun, until: map[*snapshot]time.Time{}, reasons: map[string]int{}}
}

// write stores a snapshot, which the bucket retains for the period.
func (c *costCluster) write(full bool) {
	first := c.revision + 1
	c.revision += 10
	if full {
		first = 0
	}
	s := &snapshot{key: fmt.Sprint(len(c.until)), id: "1", full: full, first: first, last: c.revision, size: 10, versions: 1, stored: c.now, named: c.now}
	s.name = s.key
	c.all = append(c.all, s)
	c.until[s] = c.policy.until(c.now)
}

// look does what a look of the daemon does, with a store that extends all that is asked for.
func (c *costCluster) look() {
	sorted := slices.Clone(c.all)
	slices.SortFunc(sorted, (*snapshot).compare)
	found := newChain(sorted, c.now, time.Time{})
	known := retentionKnown{policy: c.policy, goodSince: c.begun.Add(-time.Hour), goodUntil: c.now}
	plan := planRetention(found, known, &c.memory)
	for _, x := range plan.steps {
		s := c.all[slices.IndexFunc(c.all, func(s *snapshot) bool { return s.key == x.version.key })]
		if x.until.After(c.policy.until(c.now)) || !x.until.After(c.until[s]) {
			c.t.Fatalf("%v: what is retained until %v is extended until %v", c.now, c.until[s], x.until)
		}
		c.until[s] = x.until
		c.extended++
		c.reasons[x.reason]++
		for i, at := range x.at {
			if at >= 0 && at < plan.chains[i].links {
				plan.chains[i].until = earlier(plan.chains[i].until, x.until)
			}
		}
	}
	c.memory.kept = plan.chains
	// What a restore would take now is never free for longer than to the next look, and half of the period ahead after one.
	for _, s := range found.links {
		if half := c.policy.halfFrom(c.now); c.until[s].Before(half.Add(-uploadTime)) {
			c.t.Fatalf("%v: snapshot of %v is retained until %v only", c.now, s.stored, c.until[s])
		}
	}
}

// collect deletes what garbage collection takes for free: it is not of the newest chain, of an old full's deltas or an old full,
// and by the time in its name and the period of the bucket it is not retained.
func (c *costCluster) collect() {
	newest := int64(0)
	for _, s := range c.all {
		if s.full {
			newest = s.last
		}
	}
	c.all = slices.DeleteFunc(c.all, func(s *snapshot) bool {
		if s.last >= newest || c.policy.until(s.named).After(c.now) {
			return false
		}
		if c.until[s].After(c.now) {
			c.refused++
			return false
		}
		return true
	})
}

func (c *costCluster) run(d time.Duration, awake bool) {
	for end := c.now.Add(d); c.now.Before(end); c.now = c.now.Add(5 * time.Minute) {
		if awake {
			c.write(c.ticks%(24*12) == 0)
		}
		if awake && c.ticks%(12*12) == 7 {
			c.collect()
		}
		if c.ticks%12 == 3 {
			c.look()
		}
		c.ticks++
	}
}

// docs/immutability.md tells these numbers.
func TestRetentionCosts(t *testing.T) {
	for days, most := range map[int32]int{3: 0, 4: 0, 14: 0, 2: 0, 1: 147} {
		c := newCostCluster(t, days)
		c.run(3*24*time.Hour, true)
		before := c.extended
		c.run(5*24*time.Hour, true)
		if a := (c.extended - before + 4) / 5; a > most {
			t.Errorf("%d days, awake: %d extensions a day, want at most %d", days, a, most)
		}
		if c.refused > 0 && most == 0 {
			t.Errorf("%d days, awake: %d deletions are refused", days, c.refused)
		}
		t.Logf("%d days, awake: %d extensions in 5 days, %d refused deletions", days, c.extended-before, c.refused)
	}
}

// A cluster that sleeps keeps its backup, for few requests; after it has woken up the old one is collected within a period.
func TestRetentionOfASleepingCluster(t *testing.T) {
	const days, asleep = 4, 30
	for _, test := range []struct {
		name  string
		final bool
		chain int
	}{
		{"with a last full snapshot", true, 1}, {"with a day of deltas", false, 288},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCostCluster(t, days)
			c.run(5*24*time.Hour, true)
			if test.final {
				c.write(true)
			}
			last := c.now
			c.run(asleep*24*time.Hour, false)
			if most := test.chain * asleep / (days / 2); c.extended > most || c.extended < most-test.chain*2 || c.reasons[extensionChain] != c.extended {
				t.Errorf("%d extensions while it sleeps, want about %d: %v", c.extended, most, c.reasons)
			}
			slept := c.extended
			woken := c.now
			c.ticks = 0
			c.run(days*24*time.Hour+12*time.Hour+time.Minute, true)
			for _, s := range c.all {
				if !s.stored.After(last) {
					t.Errorf("%v after it has woken up the snapshot of %v is still there, retained until %v", c.now.Sub(woken), s.stored, c.until[s])
					break
				}
			}
			if c.extended > slept {
				t.Errorf("%d extensions after it has woken up", c.extended-slept)
			}
			if c.refused > 2*days*test.chain {
				t.Errorf("%d deletions are refused, of a chain of %d", c.refused, test.chain)
			}
			t.Logf("%d extensions in %d days, %d refused deletions after it has woken up", c.extended, asleep, c.refused)
		})
	}
}

// After a start the first verification tells nothing of what was stored right before it, and no later one will: it is asked about.
func TestRetentionBeforeTheFirstVerification(t *testing.T) {
	c := newCostCluster(t, 4)
	c.write(true)
	c.now = c.now.Add(30 * time.Second)
	for since, want := range map[time.Duration]int{-time.Hour: 0, 20 * time.Second: 1} {
		known := retentionKnown{policy: c.policy, goodSince: c.begun.Add(since), goodUntil: c.now.Add(-clockMargin), waits: true}
		plan := planRetention(newChain(slices.Clone(c.all), c.now, time.Time{}), known, &entryMemory{})
		if len(plan.steps) != want {
			t.Errorf("verified since %v: %d steps, want %d", since, len(plan.steps), want)
		}
	}
}

// thousands is a number as the documentation writes it.
func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// What docs/immutability.md says of costs on AWS is what comes out here.
func TestRetentionCostsInTheDocumentation(t *testing.T) {
	const clusters, daily, put, get = 500, 289, 5e-6, 0.4e-6 // dollars for a request
	doc, err := os.ReadFile("docs/immutability.md")
	if err != nil {
		t.Fatal(err)
	}
	awake := newCostCluster(t, 1)
	awake.run(3*24*time.Hour, true)
	before := awake.extended
	awake.run(5*24*time.Hour, true)
	oneDay := (awake.extended - before) / 5
	sleeping := func(final bool) (extensions, refused int) {
		c := newCostCluster(t, 4)
		c.run(5*24*time.Hour, true)
		if final {
			c.write(true)
		}
		c.run(30*24*time.Hour, false)
		extensions = c.extended
		c.ticks = 0
		c.run(5*24*time.Hour, true)
		return extensions, c.refused
	}
	full, refused := sleeping(true)
	full = (full + 1) / 15 // the first is due after two days
	chain, _ := sleeping(false)
	chain /= 15
	start, grown := clusters*daily*4, clusters*daily*14
	lists := clusters * 24 * 5
	for _, want := range []string{
		fmt.Sprintf("so %d versions a day", daily),
		fmt.Sprintf("%d a day for each: the newest chain when it is 12 hours old | %s a day, $%.2f |", oneDay, thousands(clusters*oneDay), float64(clusters*oneDay)*put),
		fmt.Sprintf("one each 2 days for each | %s a day, $%.5f |", thousands(clusters*full/2), float64(clusters*full/2)*put),
		fmt.Sprintf("%d each 2 days for each: when one of a chain is due, all of it is extended | %s a day, $%.2f |", chain, thousands(clusters*chain/2),
			float64(clusters*chain/2)*put),
		fmt.Sprintf("is looked up: %s `GET` | $%.2f, once; %d hours at %d a second |", thousands(start), float64(start)*get, start/extensionRate/3600, extensionRate),
		fmt.Sprintf("all versions of the last 14 days, %s for each | %s, $%.2f; %d hours at %d a second |", thousands(daily*14), thousands(grown), float64(grown)*put,
			grown/extensionRate/3600, extensionRate),
		fmt.Sprintf("500 clusters with 4,350 versions each are %s\nlists a day, $%.2f.", thousands(lists), float64(lists)*put),
	} {
		if !strings.Contains(string(doc), want) {
			t.Errorf("docs/immutability.md does not say %q", want)
		}
	}
	if most := "that is at most 8 deletions that are refused"; refused > 8 || !strings.Contains(string(doc), most) {
		t.Errorf("%d deletions are refused, docs/immutability.md says %q", refused, most)
	}
}
