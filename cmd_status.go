// bucketwarden status: each bucket as the cloud answers now, with what its spec asks for and what was recorded beside it, the gaps
// of its hardening, the clusters' backups in it, and what is still kept of deleted ones.
//
// Rules:
//   - A bucket that does not answer is Unknown, and keeps no other from being shown.
//   - A request for each BackupBucket's secret and state, one list for the backups of an entry, one for the tombstones of a bucket.
//   - Drift is what the daemon's own pass calls so. Hardening is what the daemon has found last: looking again would change things.

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// statusWorkers is how many buckets, and how many entries, are looked at at a time.
	statusWorkers = 8
	// watchInterval is how often status --watch looks again.
	watchInterval = 30 * time.Second
)

var statusCommand = command{
	name: "status", args: "[BUCKET…]", short: "Shows buckets as the cloud answers now, with the backups in them",
	long: `Three tables: the buckets, the BackupEntries in them, and what is still kept of deleted ones. STATE of a bucket is

  Locked, Unlocked, Open  as its spec asks for: locked, with a retention that is not locked, or without any
  Drift      the cloud has less than what was recorded, or than what by the status was done: somebody has weakened it, or
             the owner of the bucket did not do it
  Foreign    the cloud has more than what was asked for: somebody else has set it
  Refused    the spec asks for less than what is locked, or for what cannot be had; the bucket is defended
  Pending    the spec was not carried out yet
  Missing    there is no such bucket
  Unknown    the cloud gave no answer, or the credentials may not be read

With --watch it looks again every 30 seconds, and prints when something is different, until it is interrupted. With
--bucket-secret one bucket is shown without an API server.`,
	examples: []string{
		"status",
		"status 5f3a7c1e-9d2b-4c1f-8e57-2b6a90d1c4e3 -o wide",
		"status -o json --watch",
	},
	make: func(c *cli, fs *flag.FlagSet) func(context.Context, []string) error {
		watch := fs.Bool("watch", false, "look again every 30 seconds, and print when something is different")
		return func(ctx context.Context, names []string) error {
			if !*watch {
				return c.status(ctx, names)
			}
			return c.watchStatus(ctx, names)
		}
	},
}

// statusBucket is a bucket as scripts get it.
type statusBucket struct {
	Name   string `json:"name"`
	Type   string `json:"type,omitempty"`
	Region string `json:"region,omitempty"`
	State  string `json:"state"`
	// Problem says what is wrong, empty if nothing is; Unknown says why the cloud gave no answer.
	Problem string `json:"problem,omitempty"`
	Unknown string `json:"unknown,omitempty"`
	// Live is what the cloud says, Desired what the spec asks for, Recorded what was set; absent if there is no immutability, Live
	// also where State is Unknown, the others without SpecKnown.
	Live           *shownPolicy `json:"live,omitempty"`
	Desired        *shownPolicy `json:"desired,omitempty"`
	Recorded       *shownPolicy `json:"recorded,omitempty"`
	SpecKnown      bool         `json:"specKnown"`
	ExtensionsLeft *int32       `json:"extensionsLeft,omitempty"`
	Origin         bucketOrigin `json:"origin,omitempty"`
	Deleting       bool         `json:"deleting,omitempty"`
	// Hardened is the status of the condition, with its message if it is not True.
	Hardened string `json:"hardened"`
	Gaps     string `json:"gaps,omitempty"`
	// Retained is the status of the condition BackupsRetained, empty if there is none, and RetainedMessage what it says.
	Retained        string `json:"retained,omitempty"`
	RetainedMessage string `json:"retainedMessage,omitempty"`
	// Probe is what the daemon's last probe of the lock has shown; absent if there was none.
	Probe      *statusProbe      `json:"probe,omitempty"`
	Entries    []statusEntry     `json:"entries"`
	Tombstones []statusTombstone `json:"tombstones"`
	// Closed says why what lies in the bucket could not be read.
	Closed string `json:"closed,omitempty"`
}

// statusEntry is a BackupEntry, or without an API server what lies under a name.
type statusEntry struct {
	Name     string `json:"name"`
	Deleting bool   `json:"deleting,omitempty"`
	// Chain is Complete, Broken, Unknown or None.
	Chain    string     `json:"chain"`
	Revision int64      `json:"revision,omitempty"`
	Full     *time.Time `json:"lastFull,omitempty"`
	Delta    *time.Time `json:"lastDelta,omitempty"`
	// FullLockedUntil is until when the full snapshot of the chain is locked; FullLocked is yes, no or unknown, empty if there is
	// none.
	FullLocked      string     `json:"fullLocked,omitempty"`
	FullLockedUntil *time.Time `json:"fullLockedUntil,omitempty"`
	Fulls           int64      `json:"fullSnapshots"`
	Deltas          int64      `json:"deltaSnapshots"`
	Bytes           int64      `json:"bytes"`
	Excluded        int        `json:"excluded"`
	Suspicious      int        `json:"suspicious"`
	// Problem is what breaks the chain, or the error.
	Problem string `json:"problem,omitempty"`
}

// statusProbe is what a probe has shown.
type statusProbe struct {
	// Proven is True, False or Unknown; Told says when it was and what became of each attack.
	Proven string `json:"proven"`
	Told   string `json:"told"`
}

// statusTombstone is what is still kept of a deleted entry.
type statusTombstone struct {
	Entry   string    `json:"entry"`
	Deleted time.Time `json:"deleted"`
	Due     time.Time `json:"due"`
	Objects int64     `json:"objects"`
	Bytes   int64     `json:"bytes"`
}

// States of a bucket.
const (
	stateLocked   = "Locked"
	stateUnlocked = "Unlocked"
	stateOpen     = "Open"
	stateDrift    = "Drift"
	stateForeign  = "Foreign"
	stateRefused  = "Refused"
	statePending  = "Pending"
	stateMissing  = "Missing"
	stateUnknown  = "Unknown"
)

// Values of statusEntry.Chain.
const (
	chainComplete = "Complete"
	chainBroken   = "Broken"
	chainUnknown  = "Unknown"
	chainNone     = "None"
)

// wrong says that somebody should look at the bucket.
func (b *statusBucket) wrong() bool {
	switch b.State {
	case stateDrift, stateForeign, stateRefused, stateMissing, stateUnknown:
		return true
	}
	locked := b.Desired != nil && b.Desired.Locked || b.Recorded != nil && b.Recorded.Locked
	return b.Closed != "" || locked && b.Probe != nil && b.Probe.Proven == "False" || slices.ContainsFunc(b.Entries, statusEntry.wrong)
}

// wrong says that the backups of an entry that stays are not fine.
func (e statusEntry) wrong() bool {
	return !e.Deleting && (e.Chain != chainComplete || e.Suspicious > 0)
}

func (c *cli) status(ctx context.Context, names []string) error {
	buckets, err := c.readStatus(ctx, names)
	if err != nil {
		return err
	}
	if err := c.showStatus(buckets); err != nil {
		return err
	}
	if slices.ContainsFunc(buckets, (*statusBucket).wrong) {
		return errFound
	}
	return nil
}

// watchStatus prints the status whenever it is another one than before.
func (c *cli) watchStatus(ctx context.Context, names []string) error {
	out, errOut := c.out, c.errOut
	var last string
	for {
		var text, remarks bytes.Buffer
		c.out, c.errOut = &text, &remarks
		if c.clients != nil {
			clear(c.clients.secrets) // they may have changed
		}
		err := c.status(ctx, names)
		c.out, c.errOut = out, errOut
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, errFound) {
			remarks.WriteString(fmt.Sprintf("%s: %v\n", programName, err))
		}
		if now := text.String() + remarks.String(); now != last {
			if last != "" && c.tabular() {
				c.say("\n%s", formatTime(time.Now()))
			}
			last = now
			if _, err := out.Write(text.Bytes()); err != nil {
				return err
			}
			if _, err := errOut.Write(remarks.Bytes()); err != nil {
				return err
			}
		}
		if sleep(ctx, watchInterval) != nil {
			return nil
		}
	}
}

// readStatus looks at the named buckets, or at all.
func (c *cli) readStatus(ctx context.Context, names []string) ([]*statusBucket, error) {
	stores, err := c.stores()
	if err != nil {
		return nil, err
	}
	if c.bucketSecret != "" {
		return c.readStatusWithSecret(ctx, stores, names)
	}
	if cmp.Or(c.bucket, c.region, c.store, c.cloud) != "" {
		return nil, usageErrorf("--bucket, --region, --store and --cloud go with --bucket-secret")
	}
	var buckets []*backupBucket
	if len(names) == 0 {
		err = c.listBuckets(ctx, func(b *backupBucket, _ map[string]any) { buckets = append(buckets, b) })
	}
	for _, name := range names {
		b, _, failed := c.getBucket(ctx, name)
		if apierrors.IsNotFound(failed) {
			failed = fmt.Errorf("there is no BackupBucket %s (kubectl get backupbuckets lists them)", name)
		}
		if err == nil {
			err = failed
		}
		buckets = append(buckets, b)
	}
	if err != nil {
		return nil, err
	}
	entries := map[string][]*backupEntry{}
	if err := c.listEntries(ctx, func(e *backupEntry) { entries[e.BucketName] = append(entries[e.BucketName], e) }); err != nil {
		return nil, err
	}
	shown := make([]*statusBucket, len(buckets))
	each(len(buckets), func(i int) {
		v := c.viewBucket(ctx, stores, buckets[i])
		c.openContents(ctx, v)
		shown[i] = showBucket(v)
		shown[i].Entries = make([]statusEntry, 0, len(entries[v.b.Name]))
		for _, e := range entries[v.b.Name] {
			shown[i].Entries = append(shown[i].Entries, statusEntry{Name: e.Name, Deleting: e.DeletionTimestamp != nil})
		}
		shown[i].look(ctx, v)
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return shown, nil
}

// readStatusWithSecret looks at one bucket, whatever there is of it without an API server.
func (c *cli) readStatusWithSecret(ctx context.Context, stores map[string]provider, names []string) ([]*statusBucket, error) {
	secret, err := readSecretFile(c.bucketSecret)
	if err != nil {
		return nil, err
	}
	if len(names) > 1 {
		return nil, usageErrorf("status: with --bucket-secret name one bucket")
	}
	bucket := c.bucketIn(secret)
	if len(names) > 0 {
		bucket = names[0]
	}
	if bucket == "" {
		return nil, usageErrorf("give --bucket: the secret has no %s", dataKeyBucketName)
	}
	b := &backupBucket{}
	b.Name, b.Region = bucket, cmp.Or(c.region, regionIn(secret))
	v := &bucketView{b: b, secret: secret, err: errors.New("the secret does not open the bucket itself, only what lies in it")}
	if v.objects, v.closed = c.openBucket(ctx, bucket, secret); v.closed != nil {
		return nil, v.closed
	}
	for _, kind := range slices.Sorted(maps.Keys(stores)) {
		if c.store != "" && c.store != kind {
			continue
		}
		if store, err := stores[kind].openStore(bucketRef{Name: bucket, Region: b.Region, Cloud: c.cloud}, secret.Data); err == nil {
			v.store = store
			v.live, v.err = store.Observe(ctx)
			break
		}
	}
	shown := showBucket(v)
	found, err := entriesIn(ctx, v.objects)
	if err != nil {
		return nil, err
	}
	shown.Entries = make([]statusEntry, 0, len(found))
	for _, name := range found {
		shown.Entries = append(shown.Entries, statusEntry{Name: name})
	}
	shown.look(ctx, v)
	return []*statusBucket{shown}, nil
}

// each calls f for 0 to n-1, some at a time.
func each(n int, f func(int)) {
	var group sync.WaitGroup
	next := make(chan int)
	for range min(n, statusWorkers) {
		group.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	group.Wait()
}

// listEntries reads all BackupEntries.
func (c *cli) listEntries(ctx context.Context, f func(*backupEntry)) error {
	api, err := c.api()
	if err != nil {
		return err
	}
	options := metav1.ListOptions{Limit: listPage}
	for {
		list, err := api.dynamic.Resource(entriesGVR).List(ctx, options)
		if err != nil {
			return fmt.Errorf("listing BackupEntries: %w", err)
		}
		for i := range list.Items {
			f(decodeEntry(&list.Items[i]))
		}
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return nil
		}
	}
}

// showBucket is a bucket without what lies in it.
func showBucket(v *bucketView) *statusBucket {
	b := &statusBucket{Name: v.b.Name, Type: v.b.Type, Region: v.b.Region, SpecKnown: v.b.Type != "", Desired: showPolicy(v.desired.Policy),
		Recorded: showPolicy(v.record.Policy), Origin: v.record.Origin, Deleting: v.b.DeletionTimestamp != nil,
		Entries: []statusEntry{}, Tombstones: []statusTombstone{}}
	b.Hardened = cmp.Or(conditionStatus(v.b.Conditions, conditionHardened), "Unknown")
	for _, c := range v.b.Conditions {
		if c.Type == conditionHardened && c.Status != "True" {
			b.Gaps = c.Message
		}
		if c.Type == conditionProven {
			b.Probe = &statusProbe{Proven: c.Status, Told: c.Message}
		}
	}
	if c, ok := findCondition(v.b.Conditions, conditionRetained); ok {
		b.Retained, b.RetainedMessage = c.Status, c.Message
	}
	if v.closed != nil {
		b.Closed = v.closed.Error()
	}
	if v.err != nil {
		b.State, b.Unknown = stateUnknown, v.err.Error()
		return b
	}
	b.Live, b.ExtensionsLeft = showPolicy(v.live.Policy), v.live.Extensions
	b.State, b.Problem = v.judge()
	return b
}

// judge says how a bucket is that the cloud has answered for.
func (v *bucketView) judge() (state, problem string) {
	plain := stateOpen
	switch live := v.live; {
	case live.Policy.Locked:
		plain = stateLocked
	case !live.Policy.None():
		plain = stateUnlocked
	}
	if v.b.Type == "" {
		// Without a spec there is nothing to compare with.
		if !v.live.Exists {
			return stateMissing, "there is no such bucket"
		}
		return plain, ""
	}
	plan := v.nextSteps(v.live)
	switch {
	case !v.live.Exists:
		return stateMissing, "there is no such bucket"
	case plan.Drift || v.drift():
		return stateDrift, fmt.Sprintf("the store says %s, recorded is %s", v.live.Policy, v.record.Policy)
	case v.desired.err != nil:
		return stateRefused, v.desired.err.Error()
	case plan.Refusal != nil:
		return stateRefused, plan.Refusal.Message
	case v.foreign():
		return stateForeign, fmt.Sprintf("the store says %s, asked for is %s: somebody else has set it", v.live.Policy, v.desired.Policy)
	case !v.live.Default.None():
		return statePending, fmt.Sprintf("the store says %s, but only as a default that an object may be written without", v.live.Default)
	case v.claimed() && v.live.Policy.weakerThan(v.desired.Policy):
		return stateDrift, fmt.Sprintf("the store says %s, asked for is %s, which by the status is done", v.live.Policy, v.desired.Policy)
	case len(plan.Steps) > 0:
		return statePending, fmt.Sprintf("the store says %s, asked for is %s", v.live.Policy, v.desired.Policy)
	}
	return plain, ""
}

// look reads what lies in the bucket.
func (b *statusBucket) look(ctx context.Context, v *bucketView) {
	if v.objects == nil || v.err == nil && !v.live.Exists {
		for i := range b.Entries {
			b.Entries[i].Chain, b.Entries[i].FullLocked = chainUnknown, "unknown"
		}
		return
	}
	each(len(b.Entries), func(i int) { b.Entries[i].look(ctx, v.objects) })
	var reader markReader
	if err := reader.each(ctx, v.objects, tombstonePrefix, func(of marks) error {
		if m := of.newest; of.buried() {
			b.Tombstones = append(b.Tombstones, statusTombstone{Entry: of.entry, Deleted: m.created.UTC(), Due: m.due.UTC(),
				Objects: m.objects, Bytes: m.bytes})
		}
		return nil
	}); err != nil {
		b.Closed = fmt.Sprintf("the tombstones could not be read: %v", err)
	}
}

// look reads the chain of an entry.
func (e *statusEntry) look(ctx context.Context, objects Objects) {
	e.Chain, e.FullLocked = chainUnknown, "unknown"
	of, err := readChain(ctx, objects, entryBase(e.Name))
	if err != nil {
		e.Problem = err.Error()
		return
	}
	e.Fulls, e.Deltas, e.Bytes = of.counts.fulls, of.counts.deltas, of.counts.bytes
	e.Excluded, e.Suspicious, e.Revision = of.excluded(), of.suspicious(), of.revision
	switch {
	case e.Fulls+e.Deltas == 0:
		e.Chain, e.FullLocked, e.Problem = chainNone, "", "there are no backups of it"
		return
	case of.complete:
		e.Chain = chainComplete
	case of.known:
		e.Chain = chainBroken
	}
	if of.full != nil {
		taken := of.full.taken().UTC()
		e.Full = &taken
	}
	if of.delta != nil {
		taken := of.delta.taken().UTC()
		e.Delta = &taken
	}
	for _, p := range of.problems {
		if e.Problem == "" && (p.kind.breaks() || p.kind.suspicious() || p.kind == problemTooMany) {
			e.Problem = p.String()
		}
	}
	if len(of.links) > 0 && of.links[0].full {
		e.lookLock(ctx, objects, of, of.links[0])
	}
}

// lookLock finds out until when the full snapshot of the chain is locked: a request where the list does not tell.
func (e *statusEntry) lookLock(ctx context.Context, objects Objects, of *chain, full *snapshot) {
	until, held := full.until, full.held
	if locks, ok := objects.(lockReader); ok && !full.lockKnown {
		lock, err := locks.lock(ctx, full.version())
		if err != nil {
			return
		}
		until, held = lock.until, lock.held
	} else if !full.lockKnown {
		return
	}
	switch {
	case held:
		e.FullLocked = "yes"
	case until.After(of.now):
		until = until.UTC()
		e.FullLocked, e.FullLockedUntil = "yes", &until
	default:
		e.FullLocked = "no"
	}
}

// showStatus prints all.
func (c *cli) showStatus(buckets []*statusBucket) error {
	if !c.tabular() {
		return c.object(struct {
			Buckets []*statusBucket `json:"buckets"`
		}{buckets})
	}
	var rows, entries, tombstones [][]string
	for _, b := range buckets {
		broken, objects := 0, int64(0)
		for _, e := range b.Entries {
			if e.wrong() {
				broken++
			}
			entries = append(entries, e.row(b.Name))
		}
		for _, t := range b.Tombstones {
			objects += t.Objects
			tombstones = append(tombstones, []string{b.Name, t.Entry, formatTime(t.Deleted), formatTime(t.Due), strconv.FormatInt(t.Objects, 10),
				formatBytes(t.Bytes)})
		}
		const unknown = "unknown"
		live, desired, recorded, extensions := unknown, unknown, unknown, ""
		if b.Unknown == "" {
			live = shortShown(b.Live)
		}
		if b.SpecKnown {
			desired, recorded = shortShown(b.Desired), shortShown(b.Recorded)
		}
		proven := ""
		if b.Probe != nil {
			proven = b.Probe.Proven
		}
		if b.ExtensionsLeft != nil {
			extensions = strconv.Itoa(int(*b.ExtensionsLeft))
		}
		rows = append(rows, []string{b.Name, b.State, live, desired, recorded, b.Hardened,
			strconv.Itoa(len(b.Entries)), strconv.Itoa(broken), strconv.Itoa(len(b.Tombstones)),
			b.Type, b.Region, extensions, string(b.Origin), strconv.FormatInt(objects, 10), proven})
	}
	if len(buckets) == 0 {
		c.say("There are no BackupBuckets.")
		return nil
	}
	for i, t := range []struct {
		heading []string
		short   int
		rows    [][]string
	}{
		{strings.Fields("BUCKET STATE LIVE ASKED-FOR RECORDED HARDENED ENTRIES NOT-FINE TOMBSTONES " +
			"TYPE REGION EXTENSIONS ORIGIN KEPT-OBJECTS PROVEN"), 9, rows},
		{strings.Fields("ENTRY CHAIN REVISION LAST-FULL LAST-DELTA FULL-LOCKED-UNTIL EXCLUDED BUCKET FULLS DELTAS SIZE SUSPICIOUS"), 7, entries},
		{strings.Fields("BUCKET DELETED-ENTRY DELETED DUE OBJECTS SIZE"), 6, tombstones},
	} {
		if len(t.rows) == 0 {
			continue
		}
		if i > 0 {
			if err := c.print("\n"); err != nil {
				return err
			}
		}
		if err := c.table(t.heading, t.short, t.rows); err != nil {
			return err
		}
	}
	for _, b := range buckets {
		c.remark(b)
	}
	return nil
}

// row is an entry in a table.
func (e *statusEntry) row(bucket string) []string {
	at := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return formatTime(*t)
	}
	locked, revision := e.FullLocked, ""
	if e.Revision > 0 {
		revision = strconv.FormatInt(e.Revision, 10)
	}
	if e.FullLockedUntil != nil {
		locked = formatTime(*e.FullLockedUntil)
	}
	return []string{e.Name, e.Chain, revision, at(e.Full), at(e.Delta), locked, strconv.Itoa(e.Excluded), bucket,
		strconv.FormatInt(e.Fulls, 10), strconv.FormatInt(e.Deltas, 10), formatBytes(e.Bytes), strconv.Itoa(e.Suspicious)}
}

// remark says in sentences what is wrong with a bucket and what lies in it.
func (c *cli) remark(b *statusBucket) {
	tell := func(what, name, text string) {
		if text != "" {
			c.say("%s %s: %s", what, name, oneLine(strings.TrimSuffix(text, "."))+".")
		}
	}
	tell(b.State, b.Name, cmp.Or(b.Problem, b.Unknown))
	if b.Deleting {
		tell("Deleting", b.Name, "its BackupBucket is being deleted")
	}
	tell("Gaps", b.Name, b.Gaps)
	if b.Probe != nil && b.Probe.Proven != "True" {
		tell("Probe", b.Name, b.Probe.Told)
	}
	if b.Closed != b.Unknown {
		tell("Closed", b.Name, b.Closed)
	}
	for _, e := range b.Entries {
		if !e.Deleting {
			tell(e.Chain, e.Name, e.Problem)
		}
	}
}

// shortShown is a policy in a table.
func shortShown(p *shownPolicy) string {
	switch {
	case p == nil:
		return "none"
	case p.Locked:
		return p.RetentionPeriod + " locked"
	}
	return p.RetentionPeriod + " unlocked"
}
