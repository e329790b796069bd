// bucketwarden verify: is there a chain of snapshots that a restore could take, and with --deep, is what is in them complete
// and intact?
//
// Rules:
//   - One list for an entry; with --deep each snapshot that a restore takes is read once, and nothing is kept.
//   - What cannot be told is not fine. A snapshot that could not be read is a failure of the command, not of the backup.

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"time"
)

var verifyCommand = command{
	name: "verify", args: "[ENTRY...]", short: "Checks the chain of snapshots that a restore takes",
	long: `For each BackupEntry it reads the list of its snapshots and follows the chain that a restore takes: the last full
snapshot and the deltas behind it. With --deep it also reads them: each is unpacked and compared with the hash at its
end; the events of a delta must be those that its name says, and the database of a full snapshot must be at the revision
of its name. Memory stays the same however large they are; the database needs as much room in $TMPDIR.

The verdict is complete, or with --deep complete and intact. That a restore will work cannot be told from outside.
Any other verdict ends with exit code 2; sentences on standard error say why, and bucketwarden snapshots shows the cure.
What could not be looked at ends with exit code 1.`,
	examples: []string{
		"verify --all",
		"verify --deep shoot--dev--one--2a1b",
		"verify --all --deep --bucket-secret etcd-backup.yaml",
		"verify --all -o json",
	},
	make: func(c *cli, fs *flag.FlagSet) func(context.Context, []string) error {
		v := &verifyRun{cli: c}
		fs.BoolVar(&v.all, "all", false, "all BackupEntries, or with --bucket-secret all that lie in the bucket")
		fs.BoolVar(&v.deep, "deep", false, "read and check the content of the snapshots too")
		return v.run
	},
}

// problemContent: what is in a snapshot is not what it should be. Only a deep check tells.
const problemContent problemKind = "Content"

// Verdicts about the snapshots of an entry.
const (
	verdictComplete = "complete"
	verdictIntact   = "complete and intact"
	verdictBroken   = "broken"
	verdictUnknown  = "unknown"
)

type verifyRun struct {
	*cli
	all, deep bool
}

// verified is the result for one entry, as scripts get it.
type verified struct {
	Entry    string `json:"entry"`
	Bucket   string `json:"bucket"`
	Verdict  string `json:"verdict"`
	Revision int64  `json:"revision"`
	// Taken is when the snapshot was taken that the chain ends with.
	Taken      *time.Time `json:"taken,omitempty"`
	Links      int        `json:"links"`
	Snapshots  int64      `json:"snapshots"`
	Bytes      int64      `json:"bytes"`
	Excluded   int        `json:"excluded"`
	Suspicious int        `json:"suspicious"`
	// Read is how many snapshots were read, ReadBytes what was in them.
	Read      int             `json:"read"`
	ReadBytes int64           `json:"readBytes"`
	Problems  []listedProblem `json:"problems"`
}

func (v *verifyRun) run(ctx context.Context, names []string) error {
	results := []verified{}
	err := v.eachBackups(ctx, names, v.all, func(b *backups) error {
		r, err := v.verify(ctx, b)
		if err != nil {
			return err
		}
		results = append(results, r)
		for _, p := range r.Problems {
			v.sayProblem(b.entry, p)
		}
		if r.Verdict != verdictComplete && r.Verdict != verdictIntact || r.Suspicious > 0 {
			return errFound
		}
		return nil
	})
	if printErr := v.show(results); printErr != nil {
		return printErr
	}
	return err
}

// verify checks one entry.
func (v *verifyRun) verify(ctx context.Context, b *backups) (verified, error) {
	c, err := readChain(ctx, b.objects, b.base)
	if err != nil {
		return verified{}, err
	}
	r := verified{Entry: b.entry, Bucket: b.bucket, Verdict: verdictComplete, Revision: c.revision, Links: len(c.links),
		Snapshots: c.counts.fulls + c.counts.deltas, Bytes: c.counts.bytes, Excluded: c.excluded(), Suspicious: c.suspicious(),
		Problems: []listedProblem{}}
	for _, p := range c.problems {
		r.Problems = append(r.Problems, v.listProblem(b.entry, p))
	}
	reached := c.reached
	switch {
	case !c.known:
		r.Verdict = verdictUnknown
	case !c.complete:
		r.Verdict = verdictBroken
	case v.deep:
		r.Verdict = verdictIntact
	}
	if v.deep {
		at, err := v.readLinks(ctx, b, c, &r)
		switch {
		case err != nil:
			return verified{}, err
		case at == 0:
			r.Verdict, r.Revision, reached = verdictBroken, 0, nil
		case at > 0 && c.links[at-1].last < r.Revision:
			r.Revision, reached = c.links[at-1].last, c.links[at-1]
			fallthrough
		case at > 0:
			r.Verdict = verdictBroken
		}
	}
	if reached != nil {
		taken := reached.taken().UTC()
		r.Taken = &taken
	}
	return r, nil
}

// deepWorkers is how many snapshots are read at a time.
func deepWorkers() int { return max(2, min(4, runtime.NumCPU())) }

// readLinks reads the links of a chain, several at a time. It returns the first that is not intact, -1 if all are.
func (v *verifyRun) readLinks(ctx context.Context, b *backups, c *chain, r *verified) (first int, err error) {
	store, ok := b.objects.(reader)
	if !ok {
		return 0, errors.New("the store cannot be read")
	}
	var total int64
	for _, s := range c.links {
		total += s.size
	}
	bar := v.newProgress(b.entry, total)
	defer bar.end()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found, failures := make([]content, len(c.links)), make([]error, len(c.links))
	next := make(chan int)
	var group sync.WaitGroup
	for range min(v.workers, len(c.links)) {
		group.Go(func() {
			for i := range next {
				if found[i], failures[i] = readLink(ctx, store, c.links[i], bar, true); failures[i] != nil {
					cancel()
				}
			}
		})
	}
	for i := range c.links {
		next <- i
	}
	close(next)
	group.Wait()
	first = -1
	for i, s := range c.links {
		switch {
		case failures[i] != nil && !errors.Is(failures[i], context.Canceled):
			return 0, fmt.Errorf("%s: %w", s.name, failures[i])
		case failures[i] != nil:
			err = failures[i]
			continue
		}
		r.Read++
		r.ReadBytes += found[i].bytes
		if found[i].problem != "" {
			r.Problems = append(r.Problems, listedProblem{Kind: problemContent, Cure: v.excludeCommand(b.entry, s),
				Problem: fmt.Sprintf("%s is not intact: %s", s.name, found[i].problem)})
			if first < 0 {
				first = i
			}
		}
	}
	return first, err
}

// readAttempts is how often a snapshot is read from its start if the store fails.
const readAttempts = 3

// readLink reads one snapshot, and with database opens that of a full one.
func readLink(ctx context.Context, store reader, s *snapshot, bar *readProgress, database bool) (c content, err error) {
	for range readAttempts {
		var body *countedBody
		if body, err = bar.open(ctx, store, s); err == nil {
			c, err = checkContent(ctx, s.claim(), body, database && s.full)
			_ = body.Close()
		}
		if err == nil {
			bar.checked(s, c)
			return c, nil
		}
		body.undo()
		if errors.Is(err, errNoVersion) {
			c = content{problem: "it was deleted while it was to be read", gone: true}
			bar.checked(s, c)
			return c, nil
		}
		if ctx.Err() != nil || !isTransient(err) {
			break
		}
	}
	return c, err
}

// claim is what the name of a snapshot and the list say about its content.
func (s *snapshot) claim() contentClaim {
	return contentClaim{full: s.full, first: s.first, last: s.last, compression: s.compression, size: s.size}
}

// show prints the results.
func (v *verifyRun) show(results []verified) error {
	if !v.tabular() {
		return v.object(results)
	}
	if len(results) == 0 {
		return nil
	}
	var rows [][]string
	for _, r := range results {
		taken := ""
		if r.Taken != nil {
			taken = formatTime(*r.Taken)
		}
		rows = append(rows, []string{r.Entry, r.Verdict, strconv.FormatInt(r.Revision, 10), taken, strconv.Itoa(r.Links),
			strconv.Itoa(r.Excluded), strconv.Itoa(len(r.Problems)), r.Bucket, strconv.FormatInt(r.Snapshots, 10), formatBytes(r.Bytes),
			strconv.Itoa(r.Read), formatBytes(r.ReadBytes)})
	}
	return v.table([]string{"ENTRY", "VERDICT", "REVISION", "TAKEN", "LINKS", "EXCLUDED", "PROBLEMS", "BUCKET", "SNAPSHOTS", "BYTES", "READ",
		"READ-BYTES"}, 7, rows)
}
