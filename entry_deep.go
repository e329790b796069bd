// With --deep-check the daemon also reads backups: of one entry of each bucket a day, what is in the snapshots that a restore takes.
//
// Rules:
//   - Each bucket has a time of the day of its own. A start reads nothing, so that restarts cost no traffic.
//   - The entries of a bucket take turns in the order of their names. One that was not intact is read again every second day, and
//     the others have their turns on the days between.
//   - One snapshot of a bucket at a time, once, in constant memory; databases are not opened, commands do that.
//   - A bucket does not wait for another. Nothing is written but an event. What could not be read, or was deleted meanwhile, says
//     nothing about a backup.

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	deepInterval = 24 * time.Hour
	// deepTick is how often it is looked for buckets whose time has come.
	deepTick = 10 * time.Minute
	// deepTime is how long the backups of an entry may take to be read.
	deepTime = 6 * time.Hour
)

// deepState is what was found when the backups of an entry were read last; zero if they were not.
type deepState struct {
	at     time.Time
	intact bool
}

// deepChecker reads the backups of one entry of each bucket a day.
type deepChecker struct {
	*entryChecker
	// days are the last days of the buckets, counted from their own times of the day. Only run uses it.
	days map[string]int64
	mu   sync.Mutex
	// reading are the buckets in which backups are being read.
	reading map[string]bool
	readers sync.WaitGroup
}

func newDeepChecker(c *entryChecker) *deepChecker {
	return &deepChecker{entryChecker: c, days: map[string]int64{}, reading: map[string]bool{}}
}

// run reads until ctx ends.
func (d *deepChecker) run(ctx context.Context) {
	defer d.readers.Wait()
	ticker := time.NewTicker(deepTick)
	defer ticker.Stop()
	for {
		d.begin(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// begin begins to read in the buckets whose day has begun.
func (d *deepChecker) begin(ctx context.Context, now time.Time) {
	buckets := map[string][]*backupEntry{}
	for _, obj := range d.cached.List() {
		if e, ok := obj.(*backupEntry); ok && d.checkable(e) {
			buckets[e.BucketName] = append(buckets[e.BucketName], e)
		}
	}
	for bucket, entries := range buckets {
		day := int64(time.Duration(now.UnixNano())+checkSlot(bucket)%deepInterval) / int64(deepInterval)
		last, known := d.days[bucket]
		d.days[bucket] = day
		if !known || last == day || !d.take(bucket) {
			continue
		}
		e := d.choose(entries, day)
		d.readers.Go(func() {
			defer d.release(bucket)
			ctx, cancel := context.WithTimeout(klog.NewContext(ctx, klog.FromContext(ctx).WithValues("entry", e.Name, "bucket", bucket)), deepTime)
			defer cancel()
			_, err, _ := d.checks.safely(ctx, func(ctx context.Context) (time.Duration, error) { return 0, d.check(ctx, e) })
			if err != nil && ctx.Err() == nil {
				klog.FromContext(ctx).Error(err, "The backups could not be read")
			}
		})
	}
}

func (d *deepChecker) take(bucket string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.reading[bucket]
	d.reading[bucket] = true
	return !was
}

func (d *deepChecker) release(bucket string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.reading, bucket)
}

// choose is the entry whose turn it is.
func (d *deepChecker) choose(entries []*backupEntry, day int64) *backupEntry {
	slices.SortFunc(entries, func(a, b *backupEntry) int { return strings.Compare(a.Name, b.Name) })
	for _, e := range entries {
		if deep := d.states.get(e).deep; deep.at.IsZero() || deep.intact {
			continue
		}
		if day%2 == 0 {
			return e
		}
		day /= 2
		break
	}
	return entries[int(day%int64(len(entries)))]
}

// check reads the snapshots of an entry that a restore takes.
func (d *deepChecker) check(ctx context.Context, e *backupEntry) error {
	objects, err := d.open(ctx, e)
	if err != nil {
		return err
	}
	found, err := readChain(ctx, objects, entryBase(e.Name))
	if err != nil {
		return err
	}
	if !found.known || len(found.links) == 0 {
		return nil // the look at the list tells
	}
	store, ok := objects.(reader)
	if !ok {
		return errors.New("the store cannot be read")
	}
	deep, size := deepState{intact: true}, int64(0)
	for _, s := range found.links {
		c, err := readLink(ctx, store, s, &readProgress{}, false)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if c.gone {
			return nil // the chain is another one by now
		}
		size += c.bytes
		if c.problem == "" {
			continue
		}
		if deep.intact {
			d.warn(e, "SnapshotNotIntact", "Check", "%s under %s/ in bucket %s is not intact, so a restore fails there: %s. The command "+
				"bucketwarden verify --deep %s tells of all", s.name, entryBase(e.Name), e.BucketName, c.problem, e.Name)
		}
		deep.intact = false
	}
	deep.at = time.Now()
	d.states.setDeep(e, deep)
	klog.FromContext(ctx).Info("Read the backups", "snapshots", len(found.links), "bytes", size, "intact", deep.intact)
	return nil
}
