package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// chainOf makes snapshots of lines of a scene: kind, first, last, minute taken, and words that change it.
//
//	F 0 100 0           a full up to revision 100
//	I 101 120 5 out     a delta that is excluded
func chainOf(t *testing.T, lines string) *chain {
	t.Helper()
	l := newSnapshotList(listedEntry)
	var versions []version
	changes := map[string]func(*snapshot){}
	minute := func(n int) time.Time { return listedTime.Add(time.Duration(n) * time.Minute) }
	for line := range strings.Lines(lines) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		var first, last int64
		var at int
		if _, err := fmt.Sscan(strings.Join(words[1:4], " "), &first, &last, &at); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		kind := map[string]string{"F": snapshotFull, "I": snapshotDelta}[words[0]]
		dir, ending, id, stored, size := "/v2/", ".gz", "a", minute(at), int64(100)
		var change []func(*snapshot)
		for _, word := range words[4:] {
			name, value, _ := strings.Cut(word, "=")
			n := 0
			_, _ = fmt.Sscan(value, &n)
			switch name {
			case "stored":
				stored = minute(n)
			case "ending":
				ending = value
			case "empty":
				size = 0
			case "dir":
				dir = value
			case "out":
				change = append(change, func(s *snapshot) { s.excluded = excluded })
			case "maybe":
				change = append(change, func(s *snapshot) { s.excluded = exclusionUnknown })
			case "lost":
				change = append(change, func(s *snapshot) { s.lost = true })
			case "until":
				change = append(change, func(s *snapshot) { s.until, s.lockKnown = minute(n), true })
			case "free":
				change = append(change, func(s *snapshot) { s.lockKnown = true })
			case "held":
				change = append(change, func(s *snapshot) { s.held, s.lockKnown = true, true })
			default:
				t.Fatalf("%q: what is %s", line, word)
			}
		}
		key := fmt.Sprintf("%s/%s%s%s-%08d-%08d-%d%s", listedEntry, etcdName, dir, kind, first, last, minute(at).Unix(), ending)
		versions = append(versions, version{key: key, id: id, size: size, created: stored})
		changes[key] = func(s *snapshot) {
			for _, f := range change {
				f(s)
			}
		}
	}
	slices.SortFunc(versions, func(v, w version) int { return strings.Compare(v.key, w.key) })
	l.add(page{versions: versions, now: minute(1000)})
	l.end()
	for _, s := range l.all {
		changes[s.key](s)
	}
	return l.chain()
}

// described is what is looked at of a chain: whether it is complete, its revision, its links and its problems.
func (c *chain) described() string {
	text := fmt.Sprintf("%d", c.revision)
	switch {
	case !c.known:
		text = "unknown " + text
	case !c.complete:
		text = "broken " + text
	default:
		text = "complete " + text
	}
	for _, s := range c.links {
		text += fmt.Sprintf(" %s%d-%d", s.kind()[:1], s.first, s.last)
	}
	var problems []string
	for kind, n := range c.numbers {
		problems = append(problems, fmt.Sprintf("%s:%d", kind, n))
	}
	slices.Sort(problems)
	return strings.TrimSpace(text + "; " + strings.Join(problems, " "))
}

func TestChain(t *testing.T) {
	for name, c := range map[string]struct{ lines, want string }{
		"nothing": {"", "broken 0; NoFull:1"},
		"a full":  {"F 0 100 0", "complete 100 f0-100;"},
		"an idle cluster": {`
			F 0 100 0
			F 0 100 1440 ending=.gz.final`, "complete 100 f0-100; SameRevision:1"},
		"deltas": {`
			F 0 100 0
			I 101 120 5
			I 121 121 10`, "complete 121 f0-100 d101-120 d121-121;"},
		"the last full counts": {`
			F 0 100 0
			I 101 120 5
			F 0 120 6
			I 121 130 10`, "complete 130 f0-120 d121-130;"},
		"the old layout": {`
			F 0 100 0 dir=/v1/Backup-1/ ending=
			I 101 120 5 dir=/v1/Backup-1/ ending=
			I 121 130 10`, "complete 130 f0-100 d101-120 d121-130;"},
		"the first delta begins before the full's revision": {`
			F 0 100 0
			I 90 120 5`, "complete 120 f0-100 d90-120;"},
		"the first delta has nothing new": {`
			F 0 100 0
			I 90 100 5
			I 101 120 10`, "broken 100 f0-100 d90-100 d101-120; NothingNew:1"},
		"a delta of the same second as a full of the same revision": {`
			F 0 100 0
			I 90 100 0`, "broken 100 f0-100 d90-100; NothingNew:1"},
		"a gap behind the full": {`
			F 0 100 0
			I 102 120 5`, "broken 100 f0-100 d102-120; Gap:1"},
		"a gap": {`
			F 0 100 0
			I 101 120 5
			I 130 140 15
			I 141 150 20`, "broken 120 f0-100 d101-120 d130-140 d141-150; Gap:1"},
		"a gap, healed by a full": {`
			F 0 100 0
			I 130 140 15
			F 0 140 20`, "complete 140 f0-140;"},
		"an overlap after a change of leader": {`
			F 0 100 0
			I 101 120 5
			I 119 130 10`, "broken 120 f0-100 d101-120 d119-130; Overlap:1"},
		"the same delta twice": {`
			F 0 100 0
			I 101 110 5
			I 111 120 10
			I 111 120 11`, "broken 120 f0-100 d101-110 d111-120 d111-120; Overlap:1"},
		"two fulls of the same revision": {`
			F 0 100 0
			F 0 100 5
			I 101 120 10`, "complete 120 f0-100 d101-120; SameRevision:1"},
		"an excluded delta": {`
			F 0 100 0
			I 101 120 5
			I 121 130 10 out
			I 131 140 15 out`, "complete 120 f0-100 d101-120; Excluded:2"},
		"an excluded delta alone": {`
			F 0 100 0
			I 101 120 5 out
			I 121 130 10`, "broken 100 f0-100 d121-130; Excluded:1 Gap:1"},
		// "mismatched event revision, expected 166 but applied 164"
		"an excluded full alone": {`
			F 0 100 0
			I 101 120 5
			F 0 122 6 out
			I 123 130 10`, "broken 120 f0-100 d101-120 d123-130; Excluded:1 Gap:1"},
		"all are excluded": {`
			F 0 100 0 out
			I 101 120 5 out`, "broken 0; Excluded:2 NoFull:1"},
		"only deltas": {"I 1 100 0", "broken 0; NoFull:1"},
		"not known whether the last delta is excluded": {`
			F 0 100 0
			I 101 120 5 maybe`, "unknown 120 f0-100 d101-120; ExclusionUnknown:1"},
		"not known whether the last full is excluded": {`
			F 0 100 0
			F 0 120 5 maybe`, "unknown 120 f0-120; ExclusionUnknown:1"},
		"not known of one that does not matter": {`
			F 0 100 0 maybe
			I 101 120 5 maybe
			F 0 120 6`, "complete 120 f0-120; ExclusionUnknown:2"},
		"an empty full": {`
			F 0 100 0
			F 0 120 6 empty
			I 121 130 10`, "broken 0 f0-120 d121-130; Empty:1"},
		"an empty delta": {`
			F 0 100 0
			I 101 120 5 empty`, "broken 100 f0-100 d101-120; Empty:1"},
		"a compression that nobody knows": {`
			F 0 100 0
			I 101 120 5 ending=.zst`, "broken 100 f0-100 d101-120; Compression:1"},
		"a name in a path that is not clean": {`
			F 0 100 0
			F 0 120 5 dir=//v2/`, "broken 0 f0-120; Elsewhere:1"},
		"another directory": {`
			F 0 100 0
			F 0 120 5 dir=-x/v2/`, "complete 120 f0-120;"},
		"a blob that is gone": {`
			F 0 100 0
			I 101 120 5 lost`, "broken 100 f0-100 d101-120; Lost:1"},
		"chunks do not count": {`
			F 0 100 0
			F 0 900 5 ending=.gz/0000001`, "complete 100 f0-100;"},

		// What does not fit.
		"a leap": {`
			F 0 500 0
			I 501 527 5
			F 0 9999998 10`, "complete 9999998 f0-9999998; Leap:1"},
		"a leap, excluded": {`
			F 0 500 0
			I 501 527 5
			F 0 9999998 10 out`, "complete 527 f0-500 d501-527; Excluded:1"},
		"a delta that leaps": {`
			F 0 500 0
			I 501 9999998 5`, "complete 9999998 f0-500 d501-9999998; Leap:1"},
		"the highest revision that there is": {`
			F 0 500 0
			F 0 9223372036854775807 5
			I 9223372036854775807 9223372036854775807 10`,
			"broken 9223372036854775807 f0-9223372036854775807 d9223372036854775807-9223372036854775807; Leap:1 NothingNew:1"},
		"a busy cluster": {`
			F 0 1000000 0
			I 1000001 1150000 5
			I 1150001 1300000 10
			F 0 1301000 11
			I 1301001 2400000 20`, "complete 2400000 f0-1301000 d1301001-2400000;"},
		"a cluster that was restarted busy": {`
			F 0 1000 0
			F 0 90000 1`, "complete 90000 f0-90000;"},
		"no backup for a day": {`
			F 0 100000 0
			I 100001 100300 5
			F 0 400000 900`, "complete 400000 f0-400000;"},
		"a small leap, seen once there are deltas again": {`
			F 0 500 0
			F 0 5000 5
			I 501 520 10
			I 521 540 20
			I 541 560 30`, "complete 5000 f0-5000; Ahead:1"},
		"a full that was compacted from older ones": {`
			F 0 500 0
			I 501 520 10
			F 0 520 200
			I 521 540 20
			I 541 560 30`, "complete 560 f0-520 d521-540 d541-560;"},
		"deltas of two leaders within minutes": {`
			F 0 500 0
			I 501 530 10
			I 501 520 14`, "broken 520 f0-500 d501-520 d501-530; Overlap:1"},
		"a time that was not yet": {`
			F 0 500 0
			F 0 510 30 stored=15`, "complete 510 f0-510; Future:1"},
		"clocks differ a little": {`
			F 0 500 0 stored=-3
			F 0 510 30 stored=21`, "complete 510 f0-510;"},
		"an old time": {`
			F 0 500 0
			F 0 510 30 stored=2000`, "complete 510 f0-510; Late:1"},
		"a long upload": {`
			F 0 500 0
			F 0 510 3000 stored=3050`, "complete 510 f0-510;"},
		"a copy of all backups, the newest first": {`
			F 0 50000000 -40000 stored=10
			I 50000001 70000000 -20000 stored=8
			F 0 70000000 -19999 stored=6
			I 70000001 90000000 -50 stored=2
			I 90000001 90000500 20`, "complete 90000500 f0-70000000 d70000001-90000000 d90000001-90000500;"},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := chainOf(t, c.lines)
			if got := c2.described(); got != c.want {
				t.Errorf("got  %s\nwant %s\n%v", got, c.want, c2.problems)
			}
			for _, p := range c2.problems {
				if text := p.String(); len(text) < 30 || strings.HasSuffix(text, ".") {
					t.Errorf("%s is told as %q", p.kind, text)
				}
			}
			if slices.ContainsFunc(c2.all, func(s *snapshot) bool { return c2.has(s) != slices.Contains(c2.links, s) }) {
				t.Error("has does not fit the links")
			}
			if c2.complete != (c2.known && !slices.ContainsFunc(c2.problems, func(p problem) bool { return p.kind.breaks() })) {
				t.Error("complete does not fit the problems")
			}
		})
	}
}

// A name may claim a time that is beyond all years, and what is behind it is looked at all the same.
func TestChainEndlessTime(t *testing.T) {
	for _, seconds := range []int64{math.MaxInt64, math.MaxInt64 - 62135596800, 253402300800} {
		l := newSnapshotList(listedEntry)
		name := func(last, seconds int64) string {
			return fmt.Sprintf("%s/%s/v2/Full-0-%d-%d", listedEntry, etcdName, last, seconds)
		}
		l.add(page{now: listedTime, versions: []version{listedVersion(name(5, 0), "a", 0), listedVersion(name(7, seconds), "a", 5),
			listedVersion(name(9999999, listedTime.Unix()+600), "a", 10)}})
		l.end()
		c := l.chain()
		if c.numbers[problemFuture] != 1 || c.numbers[problemLeap] != 1 || !c.complete {
			t.Errorf("%d: %v", seconds, c.problems)
		}
		if text := c.problems[0].String(); !strings.Contains(text, fmt.Sprintf("of second %d,", seconds)) {
			t.Errorf("told as %s", text)
		}
	}
}

func TestProblemSentences(t *testing.T) {
	c := chainOf(t, `
		F 0 500 0
		I 501 510 5
		I 520 530 10
		F 0 9999998 11`)
	var got []string
	for _, p := range c.problems {
		got = append(got, p.String())
	}
	want := []string{
		"Full-00000000-09999998-1793491860.gz claims revision 9999998, far beyond the 530 before it: a restore takes it for the newest, " +
			"whatever is in it, and no newer snapshot counts until the etcd has got there",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	c.links[0].excluded = excluded
	c = newChain(c.all, c.now, listedTime)
	if got := c.problems[1].String(); got != "revisions 511 to 519 are in no snapshot between Incr-00000501-00000510-1793491500.gz and "+
		"Incr-00000520-00000530-1793491800.gz, where a restore fails" {
		t.Errorf("got %q", got)
	}
}

// The chain is locked as long as the first of its links, and not known unless each is.
func TestChainLock(t *testing.T) {
	until := func(minutes int) chainLock {
		return chainLock{known: true, locked: true, until: listedTime.Add(time.Duration(minutes) * time.Minute)}
	}
	for lines, want := range map[string]chainLock{
		"":                     {},
		"F 0 100 0 until=2000": until(2000),
		"F 0 100 0 until=2000\nI 101 110 5 until=1900\nI 111 120 10 until=2100": until(1900),
		"F 0 100 0 until=2000\nI 101 110 5":                                     {},
		"F 0 100 0 until=2000\nI 101 110 5 free":                                {known: true},
		"F 0 100 0 until=900\nI 101 110 5 until=1900":                           {known: true}, // it is minute 1000
		"F 0 100 0 until=1000\nI 101 110 5 until=1900":                          {known: true},
		"F 0 100 0 free\nI 101 110 5":                                           {},
		"F 0 100 0 held":                                                        {known: true, locked: true},
		"F 0 100 0 held\nI 101 110 5 until=1900":                                until(1900),
		"F 0 100 0 free\nF 0 110 5 until=1900":                                  until(1900),
		"F 0 100 0 until=2000\nI 101 110 5 until=2000 maybe":                    {},
		"F 0 100 0 until=2000\nI 101 110 5 free\nI 111 120 6 until=2000":        {known: true},
	} {
		if got := chainOf(t, lines).lock(); got != want {
			t.Errorf("%q: got %+v, want %+v", lines, got, want)
		}
	}
}

// Of any number of problems a few are kept and all are counted.
func TestChainProblemsBounded(t *testing.T) {
	var lines strings.Builder
	for i := range 3 * maxProblems {
		fmt.Fprintf(&lines, "I %d %d %d\n", 2*i+2, 2*i+2, i)
	}
	c := chainOf(t, "F 0 0 0\n"+lines.String())
	if len(c.problems) != maxProblems || c.numbers[problemGap] != 3*maxProblems {
		t.Errorf("%d problems are kept, %d gaps counted", len(c.problems), c.numbers[problemGap])
	}
}
