// Until when the versions of an entry's backups have to be retained, and which of them are not, or may not be. Pure, as
// snapshot_chain.go. On S3 the lock is on each version, and the bucket has only a default for new ones.
//
// Rules:
//   - What a restore could use is retained for the period from when it was stored; what a restore would take now, for half a
//     period from now on at least. What is excluded, gone, or of which that is not known, is left alone.
//   - Nothing is asked to be retained beyond a period from now on, by the store's clock. A retention can't be taken back.
//   - What is known is not asked. Where it is known that something is missing, it is extended without a look-up.
//   - A retention counts from the start of an upload: a difference of uploadTime is none.

package main

import (
	"cmp"
	"hash/fnv"
	"slices"
	"time"
)

const (
	// uploadTime is how long an upload may take.
	uploadTime = 15 * time.Minute
	// clockMargin is for what is compared with the store's clock, and for how long an answer may be under way.
	clockMargin = time.Minute
	// suspicionKept is how long a chain is kept that has ended before suspicious snapshots: the time to look at an alert.
	suspicionKept = 30 * 24 * time.Hour
)

// Why a version is extended: the label reason of a metric.
const (
	// extensionGap: it was stored without the retention that the bucket should have given it.
	extensionGap = "gap"
	// extensionGrowth: it was stored when the period was shorter.
	extensionGrowth = "growth"
	// extensionChain: it is part of what a restore would take, and old.
	extensionChain = "chain"
	// extensionGovernance: somebody could have taken its retention away.
	extensionGovernance = "governance"
)

var extensionReasons = []string{extensionGap, extensionGrowth, extensionChain, extensionGovernance}

// extension is a version that is to be retained for longer, or may have to be.
type extension struct {
	version version
	// until is what is asked for; need is what is enough, since it was stored or from now on.
	until, need time.Time
	reason      string
	// ask: it is not known whether it is retained, which a look-up costs less than an extension in vain.
	ask bool
	// at is its place in the chains that are kept.
	at [keptChains]int
}

// keptChains is how many chains of an entry are kept: the newest, and the newest ones without suspicious snapshots, if these are
// others.
const keptChains = 3

// linkMemory is what is known of the retention of a chain between looks: its first links are locked until then at least.
type linkMemory struct {
	links int
	// hash is what these links were.
	hash  uint64
	until time.Time
}

// hashLinks tells links apart from others, after those that are in hash.
func hashLinks(links []*snapshot) uint64 {
	h := fnv.New64a()
	for _, s := range links {
		_, _ = h.Write([]byte(s.key + "\x00" + s.id + "\x00"))
	}
	return h.Sum64()
}

// of is what is known of the first links of a chain; none if they are others by now.
func (m linkMemory) of(links []*snapshot) (n int, until time.Time) {
	if m.links == 0 || m.until.IsZero() || m.links > len(links) || hashLinks(links[:m.links]) != m.hash {
		return 0, time.Time{}
	}
	return m.links, m.until
}

// retentionKnown is what is known ahead of a look. All times are the store's.
type retentionKnown struct {
	policy Policy
	// through: what was stored until then is retained for the period.
	through time.Time
	// What was stored from goodSince to goodUntil has got its retention from the bucket. waits says that what is newer may have
	// too, which the next verification will tell.
	goodSince, goodUntil time.Time
	waits                bool
	// What was stored from gapFrom to gapTo, or before grown, has not. gapTo is zero if there was no gap since the last look,
	// gapFrom if it is not known when it began; everything says that it began before the bucket.
	gapFrom, gapTo time.Time
	everything     bool
	grown          time.Time
}

// protected says that what was stored then is known to be retained for the period.
func (k retentionKnown) protected(stored time.Time) bool {
	return !stored.After(k.through) || !stored.Before(k.goodSince) && !stored.After(k.goodUntil)
}

// missed says that what was stored then is known not to be retained for the period, and why.
func (k retentionKnown) missed(stored time.Time) (reason string, ok bool) {
	switch {
	case k.gapTo.IsZero() || stored.After(k.gapTo):
	case k.everything, !k.gapFrom.IsZero() && !stored.Before(k.gapFrom):
		return extensionGap, true
	}
	return extensionGrowth, !stored.After(k.grown)
}

// left says that what was stored then is left to the next verification. None can tell of what was stored before the first one.
func (k retentionKnown) left(stored time.Time) bool {
	return k.waits && stored.After(k.goodUntil) && !stored.Before(k.goodSince) &&
		(k.gapTo.IsZero() || stored.After(k.gapTo.Add(clockMargin))) && (k.grown.IsZero() || stored.After(k.grown.Add(clockMargin)))
}

// retentionPlan is what has to be done about the versions of an entry.
type retentionPlan struct {
	policy Policy
	// now is the store's time at which it was made, before what was known to be retained for the period until then.
	now, before time.Time
	// steps are in the order in which they were stored.
	steps []extension
	// eligible are all versions that have to be retained.
	eligible int64
	// through: once all steps are done, what was stored until then is known to be retained.
	through time.Time
	// chains are what will be known of them then. The first is what a restore would take if it has restored links, which is zero if
	// that is not known.
	chains   [keptChains]linkMemory
	restored int
	planProgress
}

// halfFrom is half of the period from a time on.
func (p Policy) halfFrom(t time.Time) time.Time {
	return t.UTC().AddDate(0, 0, int(p.Days/2)).Add(time.Duration(p.Days%2) * 12 * time.Hour)
}

// earlier is the earlier of two times, where zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// keptLink is a link of chains that are kept: its place in each of them, -1 if it is none of it.
type keptLink struct {
	at [keptChains]int
	// answered is until when the store has said that it is retained; zero if it was not asked.
	answered time.Time
}

// planRetention compares what was listed with what is known.
func planRetention(found *chain, known retentionKnown, memory *entryMemory) *retentionPlan {
	policy, now := known.policy, found.now
	// A store keeps whole seconds, and rounding must not exceed the period.
	end, half := policy.until(now).Truncate(time.Second), policy.halfFrom(now)
	p := &retentionPlan{policy: policy, now: now, before: known.through, through: now.Add(-uploadTime)}
	if known.waits {
		p.through = earlier(p.through, known.goodUntil)
	}
	kept := found.kept()
	links := p.links(kept, memory)
	if found.known {
		p.restored = len(found.links)
	}
	due := known.due(links, half)
	for _, s := range found.all {
		wanted := earlier(policy.until(s.stored), end)
		link, young := links[s], wanted.After(now.Add(uploadTime))
		if s.lost || s.excluded != included || s.stored.IsZero() || !young && link == nil {
			p.settle(link, time.Time{})
			continue
		}
		p.eligible++
		x := extension{version: s.version(), until: wanted, need: wanted, ask: true, at: noLink}
		floor := time.Time{}
		if known.protected(s.stored) {
			floor = wanted
		}
		reason, missed := known.missed(s.stored)
		if x.reason = extensionGap; missed {
			x.reason, x.ask = reason, false
		}
		if link != nil {
			x.at, floor = link.at, laterOf(floor, link.answered)
			old, due := wanted.Before(half), link.in(due)
			switch {
			case old:
				x.until, x.need = end, half
				x.ask = x.ask && link.answered.IsZero()
			case due:
				x.until, x.need, x.ask = end, end, false
			}
			if (old || due) && !(missed && young) {
				x.reason = extensionChain
			}
		}
		switch {
		case !floor.Before(x.need):
			p.settle(link, floor)
		case known.left(s.stored):
			p.settle(link, time.Time{})
		default:
			p.steps = append(p.steps, x)
			for i, at := range x.at {
				p.touched[i] = p.touched[i] || link != nil && at >= 0
			}
		}
	}
	for i := range p.chains {
		p.chains[i].hash = hashLinks(kept[i][:p.chains[i].links])
	}
	slices.SortStableFunc(p.steps, func(a, b extension) int { return a.version.created.Compare(b.version.created) })
	return p
}

// links are those of the chains that are kept.
func (p *retentionPlan) links(kept [keptChains][]*snapshot, memory *entryMemory) map[*snapshot]*keptLink {
	links := map[*snapshot]*keptLink{}
	for i, chain := range kept {
		n, until := memory.kept[i].of(chain)
		for at, s := range chain {
			link := links[s]
			if link == nil {
				link = &keptLink{at: noLink}
				links[s] = link
			}
			if link.at[i] = at; at < n {
				link.answered = laterOf(link.answered, until)
			}
		}
		p.chains[i].links = len(chain)
	}
	return links
}

// due are the chains that have a link that is known not to be retained until half of the period from now on. All links of them are
// extended, so that the next time they are due together: of a chain it is only known until when all of it is retained, so each
// link that is due by itself would have those before it extended again.
func (k retentionKnown) due(links map[*snapshot]*keptLink, half time.Time) (due [keptChains]bool) {
	for s, link := range links {
		if wanted := k.policy.until(s.stored); link.answered.IsZero() || !wanted.Before(half) || !link.answered.Before(half) {
			continue
		}
		for i, at := range link.at {
			due[i] = due[i] || at >= 0
		}
	}
	return due
}

// in says that a link is one of the chains.
func (l *keptLink) in(chains [keptChains]bool) bool {
	for i, at := range l.at {
		if at >= 0 && chains[i] {
			return true
		}
	}
	return false
}

// noLink is the place of what is a link of no chain.
var noLink = [keptChains]int{-1, -1, -1}

// settle notes until when a link that has no step is retained; zero if that is left open, and then what is known of its chains
// ends before it.
func (p *retentionPlan) settle(link *keptLink, until time.Time) {
	if link == nil {
		return
	}
	for i, at := range link.at {
		c := &p.chains[i]
		switch {
		case at < 0:
		case until.IsZero():
			c.links = min(c.links, at)
		default:
			c.until = earlier(c.until, until)
		}
	}
}

// kept are the chains that are kept: the links of each that a restore gets to. A chain that is empty, or the same as one before,
// is left out.
func (c *chain) kept() (kept [keptChains][]*snapshot) {
	kept[0] = c.sound()
	if c.suspicious() == 0 {
		return kept
	}
	for i, ahead := range []bool{false, true} {
		links := c.genuine(ahead)
		if len(links) > 0 && c.now.Sub(links[len(links)-1].stored) < suspicionKept &&
			!slices.ContainsFunc(kept[:i+1], func(other []*snapshot) bool { return slices.Equal(other, links) }) {
			kept[i+1] = links
		}
	}
	return kept
}

// sound are the links that a restore gets to: all of them, or those before the first that has a fault.
func (c *chain) sound() []*snapshot {
	return c.links[:slices.Index(c.links, c.reached)+1]
}

// genuine are the sound links of the newest chain without what looks forged. A snapshot can claim any revision, but not when it
// was stored: in that order, what is too far beyond the others has leapt, and so has what builds on it. ahead says that what
// is ahead of later snapshots is taken for forged too, and not the later ones.
func (c *chain) genuine(ahead bool) []*snapshot {
	stored := slices.DeleteFunc(slices.Clone(c.all), func(s *snapshot) bool {
		forged, ok := c.suspects[s]
		return s.excluded != included || s.chunk || ok && forged != problemLeap && (ahead || forged != problemAhead)
	})
	slices.SortStableFunc(stored, func(s, t *snapshot) int { return cmp.Or(s.stored.Compare(t.stored), s.compare(t)) })
	rate := usualRate(stored)
	var highest *snapshot
	var genuine []*snapshot
	for _, s := range stored {
		if highest != nil && leaps(highest, s, rate) {
			continue
		}
		if genuine = append(genuine, s); highest == nil || s.last > highest.last {
			highest = s
		}
	}
	slices.SortFunc(genuine, (*snapshot).compare)
	return newChain(genuine, c.now, time.Time{}).sound()
}
