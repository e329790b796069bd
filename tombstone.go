// Tombstones: what the deletion of an entry leaves behind because it is retained is remembered
// in the bucket itself, which survives the loss of the seed and may belong to another seed.
//
// Rules:
//   - The newest mark of an entry decides, by the store's own creation time: a tombstone says
//     that the prefix <entry>/ is to be purged once it is due, a revocation that it is in use.
//   - Marks are never overwritten and never deleted before they say nothing any more:
//     .bucketwarden/tombstones/<entry>/deleted-<due>-<objects>-<bytes>-<random>
//     .bucketwarden/tombstones/<entry>/revoked-<random>
//   - They are read as a stream: whoever can write to a bucket must not fill our memory.

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// tombstonesRoot is where everything of ours lies that is no backup.
	tombstonesRoot  = ".bucketwarden/"
	tombstonePrefix = tombstonesRoot + "tombstones/"
	markDeleted     = "deleted"
	markRevoked     = "revoked"
	markTime        = "20060102T150405Z"
	markNonce       = 8

	// sweepRetry is how soon the sweep of a prefix that is still retained is tried again:
	// individual retention and legal holds are not announced.
	sweepRetry = time.Hour

	// concurrentSweeps keeps a sweep of many prefixes from starving anything else.
	concurrentSweeps = 2

	// markTick is the resolution of a store's creation times.
	markTick = time.Second
)

// mark is a tombstone or the revocation of one.
type mark struct {
	key     string
	entry   string // without source-
	revoked bool
	created time.Time // by the store's clock
	// Of a tombstone: when the retention of what was left ends, and how much that was.
	due            time.Time
	objects, bytes int64
}

func tombstoneKey(entry string, due time.Time, result PurgeResult) string {
	return fmt.Sprintf("%s%s/%s-%s-%d-%d-%s", tombstonePrefix, entry, markDeleted, due.UTC().Format(markTime), result.Retained,
		result.RetainedBytes, rand.Text()[:markNonce])
}

// revocationKey names a revocation so that the entry that wrote it can be told from others.
func revocationKey(entry string, owner types.UID) string {
	return tombstonePrefix + entry + "/" + markRevoked + "-" + (markOwner(owner) + rand.Text())[:markNonce]
}

// markOwner is the beginning of the random part of the revocations that an object writes.
func markOwner(uid types.UID) string {
	if uid == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(uid))
	return base32.StdEncoding.EncodeToString(sum[:])[:markNonce/2]
}

// by says that a revocation was written by an object, as far as its name tells.
func (m mark) by(uid types.UID) bool {
	return m.revoked && strings.HasPrefix(m.key, tombstonePrefix+m.entry+"/"+markRevoked+"-"+markOwner(uid))
}

// parseMark reads a mark from its name; false for whatever else lies there.
func parseMark(key string, created time.Time) (mark, bool) {
	rest, ok := strings.CutPrefix(key, tombstonePrefix)
	entry, name, slash := strings.Cut(rest, "/")
	if !ok || !slash || !isEntryBase(entry) {
		return mark{}, false
	}
	m := mark{key: key, entry: entry, created: created}
	parts := strings.Split(name, "-")
	switch {
	case len(parts[len(parts)-1]) != markNonce:
		return mark{}, false
	case parts[0] == markRevoked && len(parts) == 2:
		m.revoked = true
		return m, true
	case parts[0] != markDeleted || len(parts) != 5:
		return mark{}, false
	}
	var errs [3]error
	m.due, errs[0] = time.Parse(markTime, parts[1])
	m.objects, errs[1] = strconv.ParseInt(parts[2], 10, 64)
	m.bytes, errs[2] = strconv.ParseInt(parts[3], 10, 64)
	return m, errors.Join(errs[:]...) == nil
}

// isEntryBase says that a BackupEntry can have its objects under the name. Whatever else may
// be another part of the bucket, such as .bucketwarden itself.
func isEntryBase(name string) bool {
	return len(validation.IsDNS1123Subdomain(name)) == 0 || len(validation.IsDNS1123Subdomain(sourcePrefix+name)) == 0
}

// compare orders marks of one entry. Of two of the same time the revocation counts: what is
// alive must not be purged.
func (m mark) compare(n mark) int {
	revoked := func(m mark) int {
		if m.revoked {
			return 1
		}
		return 0
	}
	return cmp.Or(m.created.Compare(n.created), cmp.Compare(revoked(m), revoked(n)), cmp.Compare(m.key, n.key))
}

// marks are those of one entry; the zero value: there are none.
type marks struct {
	entry  string
	newest mark
	count  int
	// tombstones and revocations are their keys, in the order of the list. more says that
	// there are further ones.
	tombstones, revocations []string
	more                    bool
}

// maxMarks bounds the keys of one entry that are kept in memory.
const maxMarks = 1000

// buried says that the prefix is to be purged.
func (m marks) buried() bool { return m.count > 0 && !m.newest.revoked }

func (m *marks) add(n mark) {
	if m.count == 0 || m.newest.compare(n) < 0 {
		m.entry, m.newest = n.entry, n
	}
	m.count++
	keys := &m.tombstones
	if n.revoked {
		keys = &m.revocations
	}
	if len(*keys) == maxMarks {
		m.more = true
		return
	}
	*keys = append(*keys, n.key)
}

// markReader reads marks.
type markReader struct {
	// now is the store's time; strangers is how much was listed that is no mark.
	now       time.Time
	strangers int64
}

// each lists what is under prefix and calls f for each entry that has marks. A store that
// lists an entry in two places would hide its newest mark, which is an error.
func (r *markReader) each(ctx context.Context, objects Objects, prefix string, f func(marks) error) error {
	var last version
	var current marks
	r.now = time.Now()
	done := map[string]bool{}
	entry := func() error {
		if current.count == 0 {
			return nil
		}
		if done[current.entry] {
			return &storeError{err: fmt.Errorf("the store lists the marks of %s in two places", current.entry)}
		}
		if len(done) < maxPlans {
			done[current.entry] = true
		}
		of := current
		current = marks{}
		return f(of)
	}
	// The versions of a key follow each other; the oldest is the mark.
	key := func() error {
		m, ok := parseMark(last.key, last.created)
		switch {
		case last.key == "":
		case !ok:
			r.strangers++
		default:
			if m.entry != current.entry {
				if err := entry(); err != nil {
					return err
				}
			}
			current.add(m)
		}
		return nil
	}
	for page, err := range objects.pages(ctx, prefix, cursor{}) {
		if err != nil {
			return err
		}
		r.now = page.now
		for _, v := range page.versions {
			switch {
			case v.marker:
				// It hides an object, which is there all the same.
			case v.key != last.key:
				if err := key(); err != nil {
					return err
				}
				last = v
			case v.created.Before(last.created):
				last = v
			}
		}
	}
	if err := key(); err != nil {
		return err
	}
	return entry()
}

// readMarks reads the marks of one entry, and the store's time.
func readMarks(ctx context.Context, objects Objects, entry string) (of marks, now time.Time, err error) {
	var reader markReader
	err = reader.each(ctx, objects, tombstonePrefix+entry+"/", func(m marks) error {
		of = m
		return nil
	})
	return of, reader.now, err
}

// putMark writes a mark and sees to it that it counts: that done says so of the marks that
// there are then. existing are those that there were before.
func putMark(ctx context.Context, objects Objects, entry string, existing marks, key func() string, done func(marks) bool) error {
	for {
		if err := objects.Put(ctx, key()); err != nil || existing.count == 0 {
			return err
		}
		of, _, err := readMarks(ctx, objects, entry)
		if err != nil {
			return err
		}
		if done(of) {
			return nil
		}
		// Written within one tick of the store's clock.
		if err := sleep(ctx, markTick); err != nil {
			return fmt.Errorf("writing a mark of %s: %w", entry, err)
		}
	}
}

// putRevocation revokes whatever the marks of a prefix say.
func putRevocation(ctx context.Context, objects Objects, entry string, existing marks, owner types.UID) error {
	return putMark(ctx, objects, entry, existing, func() string { return revocationKey(entry, owner) },
		func(of marks) bool { return of.newest.by(owner) })
}

// latestTry is when a prefix is tried again at the latest: a single object with a longer
// retention of its own must not keep all others.
func latestTry(longest Policy, now time.Time) time.Time {
	if longest.None() {
		longest.Days = 30
	}
	return longest.until(now)
}

// bury writes the tombstone of an entry whose purge has left something retained, unless
// there is one already: one request, 2 more if the entry was buried before.
func bury(ctx context.Context, guard *prefixGuard, result PurgeResult) error {
	objects, entry := guard.objects, guard.base
	// The last batch was refused right before.
	if err := guard.readMarks(ctx); err != nil {
		return err
	}
	if err := guard.checkMarks(); err != nil {
		return err
	}
	of, now := guard.marks, guard.now.Add(time.Since(guard.at))
	due, enough := result.RetainedUntil, result.RetainedUntil
	if latest := latestTry(guard.entry.Recorded, now); due.After(latest) {
		due, enough = latest, latest.Add(-sweepRetry)
	}
	if due.IsZero() {
		// Any tombstone that was not swept yet does.
		due, enough = now.Add(sweepRetry), now.Add(markTick)
	}
	switch {
	case of.count > 0 && of.newest.revoked && !of.newest.by(guard.entry.UID) && !result.Now.IsZero() && of.newest.created.After(result.Now):
		// Another cluster took the prefix into use while it was purged.
		return &prefixInUseError{entry: entry}
	case of.buried() && !of.newest.due.Before(enough):
		return nil
	}
	// Names have seconds: rounded down, the sweep would come too early.
	due = due.Add(time.Second - 1).Truncate(time.Second)
	return putMark(ctx, objects, entry, of, func() string { return tombstoneKey(entry, due, result) },
		// Whoever has written a later one is right.
		func(now marks) bool { return now.newest.key != of.newest.key })
}

// revoke says that the prefix of an entry is in use: one request, 3 if there is a tombstone.
func revoke(ctx context.Context, objects Objects, entry string, owner types.UID) (revoked bool, err error) {
	of, _, err := readMarks(ctx, objects, entry)
	if err != nil || !of.buried() {
		return false, err
	}
	return true, putRevocation(ctx, objects, entry, of, owner)
}

// takeOver is a revoke for an entry that comes from another cluster: it says so even if there
// is no tombstone, since that cluster may be deleting its own entry just now.
func takeOver(ctx context.Context, objects Objects, entry string, owner types.UID) (revoked bool, err error) {
	of, _, err := readMarks(ctx, objects, entry)
	if err != nil || of.newest.by(owner) {
		return false, err
	}
	return of.buried(), putRevocation(ctx, objects, entry, of, owner)
}

// leaveTo says that a prefix is in use by another entry, if its marks say anything else.
func leaveTo(ctx context.Context, objects Objects, entry string, owner types.UID) error {
	of, _, err := readMarks(ctx, objects, entry)
	if err != nil || of.count == 0 || of.newest.by(owner) || of.newest.revoked && owner == "" {
		return err
	}
	return putRevocation(ctx, objects, entry, of, owner)
}

// checkStands makes sure that a tombstone is still the newest mark of its entry.
func checkStands(ctx context.Context, objects Objects, tombstone mark) error {
	of, _, err := readMarks(ctx, objects, tombstone.entry)
	if err != nil {
		return err
	}
	if of.newest.key != tombstone.key {
		return &markChangedError{entry: tombstone.entry}
	}
	return nil
}

// markChangedError says that another cluster has written a newer mark meanwhile.
type markChangedError struct{ entry string }

func (e *markChangedError) Error() string {
	return fmt.Sprintf("another cluster has written a newer mark of %s", e.entry)
}
