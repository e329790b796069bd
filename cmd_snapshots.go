// bucketwarden snapshots: the snapshots of an entry, newest first, which of them a restore takes, and what is wrong, with the
// one command that cures it.
//
// Rules:
//   - The newest is the one with the highest revision, since that is how a restore sees it.
//   - A cure is shown only where a command of ours is one.

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"
)

var snapshotsCommand = command{
	name: "snapshots", args: "ENTRY", short: "Lists the snapshots of an entry and marks the chain that a restore takes",
	long: `The snapshots come newest first: the one with the highest revision in its name, since that is how a restore sees
it. * marks the chain that a restore takes, x what is excluded from a restore and ? what may be, because its tags cannot
be read. With -o wide also the version of the object that a restore reads, when it was stored and the whole key.

Sentences on standard error say where a restore would end and what is wrong, each with the command that cures it. They
are told from names and from what the store lists; bucketwarden verify --deep also reads what is in the snapshots.`,
	examples: []string{
		"snapshots shoot--dev--one--2a1b",
		"snapshots --bucket-secret etcd-backup.yaml shoot--dev--one--2a1b -o json",
	},
	make: func(c *cli, _ *flag.FlagSet) func(context.Context, []string) error {
		return func(ctx context.Context, names []string) error {
			if len(names) != 1 {
				return usageErrorf("name one BackupEntry")
			}
			return c.eachBackups(ctx, names, false, func(b *backups) error { return c.snapshots(ctx, b) })
		}
	},
}

// listedSnapshot is a snapshot as scripts get it.
type listedSnapshot struct {
	Name          string    `json:"name"`
	Key           string    `json:"key"`
	Kind          string    `json:"kind"`
	FirstRevision int64     `json:"firstRevision"`
	LastRevision  int64     `json:"lastRevision"`
	Taken         time.Time `json:"taken"`
	Stored        time.Time `json:"stored"`
	Bytes         int64     `json:"bytes"`
	InChain       bool      `json:"inChain"`
	// Excluded is yes, no or unknown.
	Excluded string `json:"excluded"`
	// LockedUntil is absent if it is not known or not locked, as Locked says: yes, no or unknown.
	LockedUntil *time.Time `json:"lockedUntil,omitempty"`
	Locked      string     `json:"locked"`
	Version     string     `json:"version,omitempty"`
	Versions    int        `json:"versions"`
}

// listedProblem is what is wrong, with its cure.
type listedProblem struct {
	Kind    problemKind `json:"kind"`
	Problem string      `json:"problem"`
	Cure    string      `json:"cure,omitempty"`
}

// listing is the output of snapshots.
type listing struct {
	Entry     string           `json:"entry"`
	Bucket    string           `json:"bucket"`
	Complete  bool             `json:"complete"`
	Known     bool             `json:"known"`
	Revision  int64            `json:"revision"`
	Snapshots []listedSnapshot `json:"snapshots"`
	Problems  []listedProblem  `json:"problems"`
}

func (c *cli) snapshots(ctx context.Context, b *backups) error {
	of, err := readChain(ctx, b.objects, b.base)
	if err != nil {
		return err
	}
	if err := readLocks(ctx, b.objects, of); err != nil {
		return err
	}
	l := listing{Entry: b.entry, Bucket: b.bucket, Complete: of.complete, Known: of.known, Revision: of.revision,
		Snapshots: []listedSnapshot{}, Problems: []listedProblem{}}
	for _, s := range slices.Backward(of.all) {
		l.Snapshots = append(l.Snapshots, listSnapshot(of, s))
	}
	for _, p := range of.problems {
		l.Problems = append(l.Problems, c.listProblem(b.entry, p))
	}
	if err := c.showSnapshots(l); err != nil {
		return err
	}
	c.say("%s: %s", b.entry, chainSentence(of))
	for _, p := range l.Problems {
		c.sayProblem(b.entry, p)
	}
	if !of.complete || of.suspicious() > 0 {
		return errFound
	}
	return nil
}

// lockWorkers is how many locks are asked for at a time, maxLocks how many at all: a day of deltas is 288.
const lockWorkers, maxLocks = 8, 500

// readLocks asks until when the links of a chain are locked, where the list does not tell: a request for each, of the full one
// and the newest deltas. What must not be read stays unknown.
func readLocks(ctx context.Context, store versions, c *chain) error {
	locks, ok := store.(lockReader)
	if !ok {
		return nil
	}
	links := c.links
	if len(links) > maxLocks {
		links = append(slices.Clone(links[:1]), links[len(links)-maxLocks+1:]...)
	}
	failures := make([]error, len(links))
	next := make(chan int)
	var group sync.WaitGroup
	for range min(lockWorkers, len(links)) {
		group.Go(func() {
			for i := range next {
				s := links[i]
				lock, err := locks.lock(ctx, s.version())
				var failed *storeError
				switch {
				case err == nil:
					s.until, s.held, s.lockKnown = lock.until, lock.held, true
				case errors.As(err, &failed) && failed.code == codeUnauthorized, errors.Is(err, errNoVersion):
				default:
					failures[i] = err
				}
			}
		})
	}
	for i := range links {
		next <- i
	}
	close(next)
	group.Wait()
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	return nil
}

func listSnapshot(of *chain, s *snapshot) listedSnapshot {
	l := listedSnapshot{Name: s.name, Key: s.key, Kind: s.kind(), FirstRevision: s.first, LastRevision: s.last, Taken: s.taken().UTC(),
		Stored: s.stored.UTC(), Bytes: s.size, InChain: of.has(s), Version: s.id, Versions: int(s.versions), Excluded: "no", Locked: "unknown"}
	switch s.excluded {
	case excluded:
		l.Excluded = "yes"
	case exclusionUnknown:
		l.Excluded = "unknown"
	}
	switch {
	case !s.lockKnown:
	case s.held:
		l.Locked = "yes"
	case s.until.After(of.now):
		until := s.until.UTC()
		l.Locked, l.LockedUntil = "yes", &until
	default:
		l.Locked = "no"
	}
	return l
}

// chainSentence says where a restore would end.
func chainSentence(c *chain) string {
	links := fmt.Sprintf("1 full and %d delta snapshots", max(0, len(c.links)-1))
	switch {
	case !c.known:
		return "Unknown: it cannot be told which snapshots a restore takes."
	case len(c.links) == 0:
		return "Broken: a restore finds nothing, and etcd would start empty."
	case c.complete:
		return fmt.Sprintf("Complete: a restore takes %s and ends at revision %d, of %s.", links, c.revision, formatTime(c.reached.taken()))
	case c.reached == nil:
		return fmt.Sprintf("Broken: a restore takes %s and fails at the full one.", links)
	}
	return fmt.Sprintf("Broken: a restore takes %s and fails behind revision %d, of %s.", links, c.revision, formatTime(c.reached.taken()))
}

// listProblem is a problem with the command that cures it, if one of ours does.
func (c *cli) listProblem(entry string, p problem) listedProblem {
	l := listedProblem{Kind: p.kind, Problem: p.String()}
	switch {
	case p.snapshot == nil:
	case p.kind == problemExcluded:
		l.Cure = fmt.Sprintf("%s include %s %s", c.program, entry, oneLine(p.snapshot.name))
	case p.kind.breaks(), p.kind.suspicious():
		l.Cure = c.excludeCommand(entry, p.snapshot)
	}
	return l
}

func (c *cli) excludeCommand(entry string, s *snapshot) string {
	return fmt.Sprintf("%s exclude %s %s", c.program, entry, oneLine(s.name))
}

// sayProblem tells a person.
func (c *cli) sayProblem(entry string, p listedProblem) {
	c.say("%s: %s: %s.", entry, p.Kind, oneLine(p.Problem))
	if p.Cure != "" {
		c.say("  %s", p.Cure)
	}
}

func (c *cli) showSnapshots(l listing) error {
	if !c.tabular() {
		return c.object(l)
	}
	var rows [][]string
	for _, s := range l.Snapshots {
		mark := map[string]string{"yes": "x", "unknown": "?"}[s.Excluded]
		if s.InChain {
			mark += "*"
		}
		locked := s.Locked
		if s.LockedUntil != nil {
			locked = formatTime(*s.LockedUntil)
		}
		rows = append(rows, []string{mark, s.Kind, strconv.FormatInt(s.FirstRevision, 10), strconv.FormatInt(s.LastRevision, 10),
			formatTime(s.Taken), formatBytes(s.Bytes), locked, s.Name, s.Version, formatTime(s.Stored), strconv.Itoa(s.Versions), s.Key})
	}
	return c.table([]string{"CHAIN", "KIND", "FIRST", "LAST", "TAKEN", "SIZE", "LOCKED-UNTIL", "NAME", "VERSION", "STORED", "VERSIONS",
		"KEY"}, 8, rows)
}
