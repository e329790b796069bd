package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The truth of the simulation: who owns which prefix of which bucket, as the API servers say,
// and what was promised; it watches every change and every removal and knows what must never
// happen. Rules: it judges by what could have been known. A pass looks at its own API server
// before it deletes, so what came after it had last listed or deleted is a race that nobody
// can win. Of another cluster only a mark in the bucket can tell, written before its entry is
// told to be ready; it protects from deletions that had begun before. See docs/security.md, "What
// is deleted".

// simOwner is a BackupEntry in one of its lives: one UID.
type simOwner struct {
	api                     *simAPI
	name, uid, bucket, base string
	// live is since when it owns its prefix, by the scheduler's count; 0 if it does not. One
	// that is handed over owns it until another takes it.
	live      int
	liveAt    time.Time
	ready     int // told to be ready in this life
	readyAt   time.Time
	lookedAt  time.Time // told to be ready last: it has looked at its marks before
	everReady bool
	migrates  bool
	held      bool // its deletion is held by wait-for-state: it owns nothing, but waits
	deleting  bool
	gone      bool
	beganAt   time.Time // its deletion
	madeAt    time.Time
}

func (o *simOwner) String() string { return o.api.name + "/" + o.name }

// simPrefix is what is known of one prefix of one bucket.
type simPrefix struct {
	// condemned: an entry that was once ready was deleted, and none was ready since; acquitted
	// is when one was, by the scheduler's count.
	condemned bool
	acquitted int
	beganAt   time.Time
	// owed: the last that owned it was once ready, and was deleted. What is left then is ours
	// to see to, until somebody owns it again; what a stranger puts there after owedAt is not.
	owed   bool
	owedAt time.Time
	// kept: a warning told that what is left is left, for want of a record (kept).
	kept bool
	// excused: somebody took from us what is needed to see to the rest. unmarked: it was a mark, so that another counts.
	excused  string
	unmarked bool
}

// simPromise is what is known of one bucket.
type simPromise struct {
	// deletingAt is when its deletion began.
	deletingAt time.Time
	asked      map[Policy]bool // what specs have asked for
	// recorded is what the status says; none if it says nothing or there is no BackupBucket.
	recorded  Policy
	ours      bool // it says that everything in the bucket is ours
	deleting  bool
	exists    bool
	everReady bool
	// takenOver: another controller of Gardener had made it.
	takenOver bool
}

type simTruth struct {
	w        *simWorld
	owners   []*simOwner
	prefixes map[string]*simPrefix
	promises map[string]*simPromise
	// excusedSecrets were held by an object whose finalizer somebody removed.
	excusedSecrets map[string]string
}

func newSimTruth(w *simWorld) *simTruth {
	return &simTruth{w: w, prefixes: map[string]*simPrefix{}, promises: map[string]*simPromise{}, excusedSecrets: map[string]string{}}
}

func (t *simTruth) prefix(bucket, base string) *simPrefix {
	key := bucket + "/" + base
	if t.prefixes[key] == nil {
		t.prefixes[key] = &simPrefix{}
	}
	return t.prefixes[key]
}

func (t *simTruth) promise(bucket string) *simPromise {
	if t.promises[bucket] == nil {
		t.promises[bucket] = &simPromise{asked: map[Policy]bool{}}
	}
	return t.promises[bucket]
}

func (t *simTruth) excuseSecret(a *simAPI, o *object) {
	for _, ref := range append(o.heldSecrets(), o.SecretRef) {
		t.excusedSecrets[a.name+" "+ref.String()] = o.Name
	}
}

// watch follows an API server.
func (t *simTruth) watch(a *simAPI) {
	a.changed = func(resource string, old, new simObject) {
		switch resource {
		case resourceBackupEntries:
			t.entryChanged(a, old, new)
		case resourceBackupBuckets:
			t.bucketChanged(old, new)
		}
	}
}

func (t *simTruth) entryChanged(a *simAPI, old, new simObject) {
	o := new
	if o == nil {
		o = old
	}
	u := simMeta(o)
	i := slices.IndexFunc(t.owners, func(o *simOwner) bool { return o.api == a && o.uid == string(u.GetUID()) })
	if i < 0 {
		t.owners = append(t.owners, &simOwner{api: a, name: u.GetName(), uid: string(u.GetUID()), base: entryBase(u.GetName()), madeAt: time.Now()})
		i = len(t.owners) - 1
		t.w.count("life", "entry")
	}
	owner := t.owners[i]
	e := decodeEntry(u)
	owner.bucket = e.BucketName
	p := t.prefix(owner.bucket, owner.base)
	if new == nil {
		owner.gone = true
		// Gardener hands over only what is no source.
		if !owner.migrates || owner.ready == 0 || owner.name != owner.base {
			owner.live = 0
		}
		t.w.count("life", map[bool]string{true: "entry handed over", false: "entry gone"}[owner.migrates])
		return
	}
	last := e.LastOperation
	owner.migrates = e.operation() == operationMigrate || last != nil && last.Type == operationTypeMigrate
	live := e.DeletionTimestamp == nil || owner.migrates || e.operation() == operationWaitForState
	owner.held = live && e.DeletionTimestamp != nil && !owner.migrates
	if live && owner.live == 0 {
		owner.live = t.w.seq
		// One that migrates after all is no newer user of the prefix, and writes no mark.
		if e.DeletionTimestamp == nil || owner.liveAt.IsZero() {
			owner.liveAt = time.Now()
		}
		p.owed, p.kept = false, false
		// Whoever was handed over before is here now.
		for _, other := range t.owners {
			if other != owner && other.gone && other.bucket == owner.bucket && other.base == owner.base {
				other.live = 0
			}
		}
	}
	if last != nil && last.State == stateSucceeded && last.Type != operationTypeDelete && last.Type != operationTypeMigrate {
		owner.everReady = true
		told := old == nil || decodeEntry(simMeta(old)).LastOperation == nil || *decodeEntry(simMeta(old)).LastOperation != *last
		if told {
			owner.lookedAt = time.Now()
		}
		if owner.ready == 0 && live {
			owner.ready, owner.readyAt = t.w.seq, time.Now()
			t.w.count("life", "entry ready")
		}
		// One whose deletion turns into a migration writes no mark either, and nobody sees a change that says nothing new.
		if live && e.DeletionTimestamp == nil && p.condemned && told {
			p.condemned, p.acquitted = false, t.w.seq
		}
	}
	// What is restored was ready where it comes from.
	owner.everReady = owner.everReady || last != nil && last.Type == operationTypeRestore
	if !live {
		owner.live, owner.ready = 0, 0
		if !owner.deleting {
			owner.deleting, owner.beganAt = true, time.Now()
		}
		if owner.everReady {
			p.condemned, p.beganAt = true, owner.beganAt
			if !p.owed && !t.lives(owner) {
				p.owed = true
			}
			if p.owed {
				p.owedAt = t.w.store.now()
			}
		}
	}
}

func (t *simTruth) bucketChanged(old, new simObject) {
	o := new
	if o == nil {
		o = old
	}
	b := decodeBucket(simMeta(o))
	p := t.promise(b.Name)
	if new == nil {
		if !b.hasFinalizer(finalizerBackupBucket) {
			// Somebody had removed the finalizer: nobody could see to the bucket.
			p.everReady = false
		}
		p.exists, p.recorded, p.deleting = false, Policy{}, false
		return
	}
	if old == nil {
		p.takenOver, p.everReady, p.deleting = false, false, false
	}
	p.everReady = p.everReady || b.succeeded() && b.LastOperation.Type != operationTypeDelete
	if p.exists = true; b.DeletionTimestamp != nil && !p.deleting {
		p.deleting, p.deletingAt = true, time.Now()
	}
	kind := storeS3
	if b.Type == "azure" {
		kind = storeAzure
	}
	if config, err := simProviders[kind].parseConfig(providerConfigPath, b.Type, b.ProviderConfig); err == nil {
		p.asked[config.Policy] = true
	}
	recorded := readRecord(b.ProviderStatus).Policy
	// What a stranger has set is not ours to defend.
	onTheWay := kind == storeAzure && p.asked[Policy{Days: recorded.Days, Locked: true}]
	if !recorded.None() && !p.asked[recorded] && !onTheWay {
		t.w.violation("record unasked", "the record of bucket %s says %s, which no spec has asked for", b.Name, recorded)
	}
	if p.recorded.Locked && recorded.weakerThan(p.recorded) {
		t.w.violation("record weaker", "the record of bucket %s says %s, it said %s", b.Name, recorded, p.recorded)
	}
	p.recorded, p.ours = recorded, readRecord(b.ProviderStatus).ours()
	t.refused(kind, b)
}

// refused judges that a spec is refused: only if it asks for less than was promised, or for an unlocked policy that
// somebody's shorter lock stands against. What was made stronger behind our back is no reason.
func (t *simTruth) refused(kind string, b *backupBucket) {
	if b.LastError == nil || b.ObservedGeneration != b.Generation || !strings.Contains(b.LastError.Description, "a locked policy cannot be") {
		return
	}
	config, err := simProviders[kind].parseConfig(providerConfigPath, b.Type, b.ProviderConfig)
	recorded := t.promise(b.Name).recorded
	shorter := !config.Policy.Locked && config.Policy.Days > 1
	if err == nil && !(recorded.Locked && config.Policy.weakerThan(recorded)) && !shorter {
		t.w.violation("refused", "BackupBucket %s asks for %s, recorded is %s, and it is refused: %s", b.Name, config.Policy, recorded, b.LastError.Description)
	}
	t.w.count("note", "refused")
}

// lives says that somebody owns the prefix of an owner.
func (t *simTruth) lives(owner *simOwner) bool {
	return slices.ContainsFunc(t.owners, func(o *simOwner) bool {
		return o.live > 0 && !o.held && o.bucket == owner.bucket && o.base == owner.base
	})
}

// told takes the warning that the objects of an entry stay. It excuses only where one had to
// think that another one owns them: somebody does, or a revocation of another object says so.
// "Without a record the careful answer counts."
func (t *simTruth) told(a *simAPI, regarding any, reason string) {
	e, ok := regarding.(*backupEntry)
	if !ok || reason != "ObjectsKept" {
		return
	}
	for _, o := range t.owners {
		if b := t.w.store.buckets[o.bucket]; o.api == a && o.uid == string(e.UID) && b != nil {
			newest := t.newest(b, o.base)
			if t.lives(o) || newest != nil && newest.revoked && !newest.by(e.UID) {
				t.prefix(o.bucket, o.base).kept = true
				t.w.count("note", "kept for want of a record")
			}
		}
	}
}

// setting judges a policy that a daemon sets.
func (t *simTruth) setting(b *simBucket, p Policy) {
	promise := t.promise(b.name)
	// What a stranger sets between a look and a change can't be seen.
	if b.policy.Locked && p.weakerThan(b.policy) && b.policySince < t.w.current.looked {
		t.w.violation("set weaker", "bucket %s has a %s, set is %s", b.name, b.policy, p)
	}
	if promise.recorded.Locked && p.weakerThan(promise.recorded) {
		t.w.violation("set weaker", "bucket %s is recorded with a %s, set is %s", b.name, promise.recorded, p)
	}
	// Azure locks in two steps; on S3 the first of them could come late, over the lock.
	onTheWay := b.kind == storeAzure && promise.asked[Policy{Days: p.Days, Locked: true}]
	if !promise.asked[p] && !p.None() && !onTheWay {
		t.w.violation("set unasked", "bucket %s gets a %s that no spec has asked for", b.name, p)
	}
}

// owner of a version by its key; false if it lies under no prefix of an entry.
func (t *simTruth) under(o *simOwner, b *simBucket, key string) bool {
	return o.bucket == b.name && strings.HasPrefix(key, o.base+"/")
}

// margin is how far clocks may be apart.
func (t *simTruth) margin() time.Duration { return t.w.store.skew.Abs() + 3*time.Second }

// removing judges the removal of a version by a daemon; others may remove what is free.
func (t *simTruth) removing(b *simBucket, v *simVersion) {
	pass := t.w.current
	if pass == nil {
		return
	}
	d := pass.life.daemon
	what := fmt.Sprintf("%s of %s deletes %s/%s", pass.label(), d.name, b.name, v.key)
	t.w.note("deletes %s/%s #%d", b.name, v.key, v.id)
	t.w.count("deleted", pass.ctl.c.resource)
	pass.deletes++
	if strings.HasPrefix(v.key, ".bucketwarden/") {
		t.w.count("deleted", "mark")
		t.removingMark(b, v, what)
		return
	}
	own := t.purging(pass)
	// Its own entry is what a purge goes by, whoever else was ready since: that is looked at below.
	condemned := own != nil && own.everReady
	for _, o := range t.owners {
		if !t.under(o, b, v.key) {
			continue
		}
		p := t.prefix(o.bucket, o.base)
		// What was acquitted after the look at the prefix is a race that nobody can win.
		condemned = condemned || p.condemned || p.unmarked || p.acquitted > 0 && p.acquitted >= pass.work
		// One whose deletion waits owns nothing, but must not be purged by its own passes.
		if o.live == 0 || p.excused != "" || o.held && (o.name != pass.key || o.api != d.api) {
			continue
		}
		if o.api == d.api && !o.gone {
			if o.live < pass.work {
				t.w.violation("live owner", "%s, which belongs to the live %s (since %d, looked at %d)", what, o, o.live, pass.work)
			}
			continue
		}
		if t.tookOver(o, own, pass) {
			t.w.violation("other cluster", "%s, which %s took into use at %s, after this deletion began", what, o, o.liveAt.Format(time.TimeOnly))
		}
		if o.ready > 0 && o.ready < pass.work {
			t.w.count("note", "deleted what another cluster had in use before")
			condemned = true
		}
	}
	if condemned {
		return
	}
	if pass.ctl.c.resource == resourceBackupBuckets {
		switch promise := t.promise(b.name); {
		case !promise.deleting:
			t.w.violation("nobody", "%s, whose BackupBucket is not being deleted", what)
		case b.foreign && !promise.takenOver:
			t.w.violation("adopted", "%s, which was there before the BackupBucket", what)
		}
		return
	}
	t.w.violation("nobody", "%s, which is nobody's of ours", what)
}

// tookOver says that an entry of another cluster took a prefix into use after a deletion had
// begun, and that the pass could know: from a mark that it has read, or should have, since it
// must not rely on what it has read for longer than marksFresh.
func (t *simTruth) tookOver(o, own *simOwner, pass *simPass) bool {
	license := t.prefix(o.bucket, o.base).beganAt
	if own != nil {
		license = own.beganAt
	}
	if o.ready == 0 || !license.Add(t.margin()).Before(o.liveAt) {
		return false
	}
	// A sweep reads the marks ahead of every attempt.
	return o.ready < pass.marks || o.ready < pass.work && (own == nil || o.readyAt.Add(marksFresh).Before(pass.workAt))
}

// burying judges a tombstone that a daemon writes: it is the order to delete, and is given
// for no other prefix than could be deleted now.
func (t *simTruth) burying(b *simBucket, key string) {
	m, ok := parseMark(key, time.Time{})
	pass := t.w.current
	if !ok || m.revoked {
		return
	}
	t.w.count("life", "tombstone")
	own := t.purging(pass)
	if own == nil || !own.everReady || own.base != m.entry {
		t.w.violation("nobody", "%s writes the tombstone %s of what is nobody's of ours", pass.label(), key)
	}
	for _, o := range t.owners {
		if o.live > 0 && o.bucket == b.name && o.base == m.entry && !o.held && o.api != pass.life.daemon.api &&
			t.prefix(o.bucket, o.base).excused == "" && t.tookOver(o, own, pass) {
			t.w.violation("tombstone against live", "%s writes the tombstone %s against %s, which took the prefix into use at %s", pass.label(), key, o, o.liveAt.Format(time.TimeOnly))
		}
	}
}

// removingMark sees to it that no older tombstone counts again.
func (t *simTruth) removingMark(b *simBucket, v *simVersion, what string) {
	gone, ok := parseMark(v.key, v.created)
	if !ok {
		return
	}
	var newest *mark
	for _, other := range b.versions {
		m, ok := parseMark(other.key, other.created)
		if other != v && ok && m.entry == gone.entry && (newest == nil || newest.compare(m) < 0) {
			newest = &m
		}
	}
	if gone.revoked && newest != nil && !newest.revoked && newest.compare(gone) < 0 && !t.endsWith(b, gone.entry) {
		t.w.violation("mark order", "%s, whereby the tombstone %s counts again", what, newest.key)
	}
}

// endsWith says that a bucket is being emptied, since it is ours and its BackupBucket goes, and that nobody owns a prefix: marks
// go with all else then, in any order, since no mark decides what is deleted. Whoever takes the prefix into use after that finds
// the tombstone and revokes it.
func (t *simTruth) endsWith(b *simBucket, base string) bool {
	promise := t.promise(b.name)
	return t.w.current.ctl.c.resource == resourceBackupBuckets && promise.deleting && promise.ours &&
		!slices.ContainsFunc(t.owners, func(o *simOwner) bool { return o.live > 0 && o.bucket == b.name && o.base == base })
}

func (t *simTruth) removingBucket(b *simBucket) {
	if t.w.current == nil {
		return
	}
	promise := t.promise(b.name)
	if !promise.deleting {
		t.w.violation("bucket of live", "bucket %s is deleted, its BackupBucket is not", b.name)
	}
	t.w.count("deleted", "bucket")
	for _, o := range t.owners {
		if o.bucket == b.name && !o.gone && o.live > 0 && o.live < t.w.current.work && o.api == t.w.current.life.daemon.api {
			t.w.violation("bucket of live", "bucket %s is deleted, and %s refers to it", b.name, o)
		}
	}
}

func (t *simTruth) removingGroup(name string, g *simGroup) {
	if t.w.current == nil {
		return
	}
	t.w.count("deleted", "resource group")
	if g.foreign {
		t.w.violation("group", "the resource group %s is deleted, and was there before", name)
	}
	if b := t.w.store.buckets[name]; b != nil {
		t.w.violation("group", "the resource group %s is deleted with the container in it", name)
	}
}

// purging is the entry whose deletion a pass carries out; nil for a pass over anything else.
func (t *simTruth) purging(pass *simPass) (own *simOwner) {
	if pass.ctl.c.resource != resourceBackupEntries {
		return nil
	}
	for _, o := range t.owners {
		if o.api == pass.life.daemon.api && o.name == pass.key && o.deleting && (own == nil || o.beganAt.After(own.beganAt)) {
			own = o
		}
	}
	return own
}

// settled is what holds once nothing disturbs the daemons any more.
func (t *simTruth) settled() {
	t.retained()
	for name, p := range t.promises {
		b := t.w.store.buckets[name]
		// Nothing is written any more to one that only waits for its retention to end.
		waits := p.deleting && !slices.ContainsFunc(t.owners, func(o *simOwner) bool {
			return o.bucket == name && !o.gone && o.api == t.w.env.owner[name].api && o.madeAt.Before(p.deletingAt)
		})
		if b != nil && p.exists && !waits && p.recorded.Locked && b.policy.weakerThan(p.recorded) {
			t.w.violation("lock weaker", "bucket %s has a %s for longer than an interval, recorded is a %s", name, b.policy, p.recorded)
		}
	}
	for _, o := range t.owners {
		if o.live == 0 || o.ready == 0 || o.gone || o.migrates || o.held {
			continue
		}
		b := t.w.store.buckets[o.bucket]
		if b == nil || t.prefix(o.bucket, o.base).excused != "" {
			continue
		}
		newest := t.newest(b, o.base)
		if newest == nil || newest.revoked {
			continue
		}
		// The sweeper knows the entries of its own cluster. Any other finds a tombstone of a
		// deletion that began after its own life (burying) when it is reconciled next.
		seen := o.lookedAt.After(newest.created.Add(-t.w.store.skew).Add(t.margin()))
		if t.w.env.owner[b.name].api == o.api || seen {
			t.w.violation("tombstone against live", "the tombstone %s stands against the live %s", newest.key, o)
		}
	}
}

// newest mark of an entry in a bucket; nil if there is none.
func (t *simTruth) newest(b *simBucket, base string) *mark {
	var newest *mark
	for _, v := range b.versions {
		if m, ok := parseMark(v.key, v.created); ok && m.entry == base && (newest == nil || newest.compare(m) < 0) {
			newest = &m
		}
	}
	return newest
}

// ended is what holds once everything was deleted and no retention is left.
func (t *simTruth) ended() {
	for _, d := range t.w.daemons {
		for _, name := range d.api.names(resourceBackupEntries) {
			t.w.violation("entry stuck", "the BackupEntry %s of %s is still there: %s", name, d.name, simJSON(d.api.read(resourceBackupEntries, "", name)["status"]))
		}
		for _, name := range d.api.names("secrets") {
			namespace, rest, _ := strings.Cut(name, "/")
			s := simMeta(d.api.read("secrets", namespace, rest))
			if f := s.GetFinalizers(); slices.Contains(f, finalizerBackupEntry) && t.excusedSecrets[d.name+" "+name] == "" {
				t.w.violation("secret held", "the secret %s of %s is still held: %v", name, d.name, f)
			}
		}
	}
	for _, name := range t.w.env.buckets {
		b := t.w.store.buckets[name]
		if b == nil || !t.promise(name).exists {
			// Nobody is there to sweep it.
			continue
		}
		for _, o := range t.owners {
			if p := t.prefix(o.bucket, o.base); o.bucket != b.name || !p.owed || p.kept || p.excused != "" {
				continue
			}
			for _, v := range b.versions {
				if t.under(o, b, v.key) && !v.created.After(t.prefix(o.bucket, o.base).owedAt) {
					t.w.violation("forgotten", "%s/%s was forgotten: %s is gone, no mark tells of it", b.name, v.key, o)
				}
			}
			if m := t.newest(b, o.base); m != nil && !(m.revoked && t.w.store.now().Before(m.created.Add(revocationKept))) {
				t.w.violation("mark left", "the mark %s is left", m.key)
			}
		}
	}
}

var simProviders = map[string]provider{storeS3: &s3Clients{}, storeAzure: &azureClients{}}
