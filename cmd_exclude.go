// bucketwarden exclude and include: which snapshots a restore leaves out. Both show what a restore takes afterwards before they
// change anything, and read back what they have done.
//
// Rules:
//   - A full snapshot goes with the deltas behind it, a delta with all later ones up to the next full: less breaks the restore.
//   - Never half done: the newest goes first and comes back last, so that whenever it stops, what is left is a chain. On S3 the
//     tag is set before the delete marker, without which it does nothing, and taken away before it.
//   - The tags of others stay as they are, and nothing is ever deleted but delete markers.
//   - Who has done it and why becomes an event on the BackupEntry, and what is meant to be excluded is announced there, since the
//     daemon takes every other exclusion for an attack.

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var excludeCommand = command{
	name: "exclude", args: "ENTRY SNAPSHOT...", short: "Makes a restore leave snapshots out",
	long: `A snapshot is excluded together with what cannot be restored without it: a full one with the deltas behind it, a delta
with all later ones up to the next full. What a restore takes afterwards is shown first, with the revision that is lost.
Nothing is deleted, and bucketwarden include undoes it.

On S3 the object gets a tag and a delete marker, on Azure a blob index tag; the tags of others are kept. The credentials
are those that the BackupEntry names, or those of --credentials. On S3 they need s3:ListBucketVersions,
s3:GetObjectVersionTagging, s3:PutObjectVersionTagging, s3:GetBucketVersioning and s3:DeleteObject.

An event on the BackupEntry says who has done it and why. An annotation announces it to the daemon, which raises an alert
about every exclusion that is not announced.

A running etcd-backup-restore does not notice: restart it, or start the restore, afterwards.`,
	examples: []string{
		"exclude shoot--dev--one--2a1b Full-00000000-09999998-1764230400.gz --reason 'forged, see incident 17'",
		"exclude shoot--dev--one--2a1b Incr-00000101-00000140-1764230400.gz --yes",
	},
	make: func(c *cli, fs *flag.FlagSet) func(context.Context, []string) error {
		return newExclusionRun(c, fs, true)
	},
}

var includeCommand = command{
	name: "include", args: "ENTRY SNAPSHOT...", short: "Lets a restore take excluded snapshots again",
	long: `It undoes bucketwarden exclude, also what was excluded by hand: a full snapshot comes back with the deltas behind it, a
delta with the full before it and the deltas between. What a restore takes afterwards is shown first. On S3 the
credentials need s3:ListBucketVersions, s3:GetObjectVersionTagging, s3:PutObjectVersionTagging and s3:DeleteObjectVersion.

A running etcd-backup-restore does not notice: restart it, or start the restore, afterwards.`,
	examples: []string{"include shoot--dev--one--2a1b Full-00000000-00000150-1764230400.gz"},
	make: func(c *cli, fs *flag.FlagSet) func(context.Context, []string) error {
		return newExclusionRun(c, fs, false)
	},
}

type exclusionRun struct {
	*cli
	exclude             bool
	yes, force          bool
	reason, credentials string
}

func newExclusionRun(c *cli, fs *flag.FlagSet, exclude bool) func(context.Context, []string) error {
	r := &exclusionRun{cli: c, exclude: exclude}
	fs.BoolVar(&r.yes, "yes", false, "do not ask")
	fs.StringVar(&r.reason, "reason", "", "`why`, for the event on the BackupEntry")
	fs.StringVar(&r.credentials, "credentials", "", "`NAMESPACE/NAME` of a Secret with other credentials for the bucket, that may write tags")
	if exclude {
		fs.BoolVar(&r.force, "force", false, "also if no complete chain is left, so that a restore fails or etcd starts empty")
	}
	return r.run
}

func (r *exclusionRun) run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return usageErrorf("name a BackupEntry and its snapshots")
	}
	return r.eachBackups(ctx, args[:1], false, func(b *backups) error { return r.change(ctx, b, args[1:]) })
}

// change excludes or includes snapshots.
func (r *exclusionRun) change(ctx context.Context, b *backups, names []string) error {
	if err := r.otherCredentials(ctx, b); err != nil {
		return err
	}
	store, ok := b.objects.(tagger)
	if !ok {
		return errors.New("the store has no tags, and etcd-backup-restore no exclusion there")
	}
	before, err := readChain(ctx, b.objects, b.base)
	if err != nil {
		return err
	}
	if before.numbers[problemExclusionUnknown] > 0 {
		return errors.New("which snapshots are excluded cannot be told, since their tags cannot be read: give --credentials that may")
	}
	chosen, err := r.choose(before, names)
	if err != nil {
		return err
	}
	if _, hides := b.objects.(hider); hides {
		for _, s := range chosen {
			if s.id == "" {
				return fmt.Errorf("bucket %q has no versions, and etcd-backup-restore no exclusion there", b.bucket)
			}
		}
	}
	after := r.after(before, chosen)
	if err := r.agree(before, after, chosen); err != nil || len(chosen) == 0 {
		return err
	}
	for i, s := range chosen {
		if err := r.changeOne(ctx, b, store, s); err != nil {
			return fmt.Errorf("%s: %w (%d of %d are done, and a restore works with what is left)", s.name, err, i, len(chosen))
		}
		r.say("%s %s", map[bool]string{true: "excluded", false: "included"}[r.exclude], oneLine(s.name))
	}
	r.event(ctx, b, chosen)
	now, err := r.readBack(ctx, b, chosen)
	if err != nil {
		return err
	}
	r.announce(ctx, b, now, chosen)
	r.say("A running etcd-backup-restore does not notice: restart it, or start the restore.")
	if r.exclude {
		r.say("If the etcd is not restored but goes on, let it take a full snapshot (/snapshot/full): its next delta does not fit " +
			"behind what a restore takes now.")
	}
	if after.complete && !now.complete {
		return errFound
	}
	return nil
}

// otherCredentials opens the bucket with the Secret of --credentials.
func (r *exclusionRun) otherCredentials(ctx context.Context, b *backups) error {
	if r.credentials == "" {
		return nil
	}
	namespace, name, ok := strings.Cut(r.credentials, "/")
	if !ok {
		return usageErrorf("--credentials is %q, must be NAMESPACE/NAME", r.credentials)
	}
	if b.resource == nil {
		return usageErrorf("--credentials names a Secret of the API server, which --bucket-secret does without")
	}
	stores, err := r.stores()
	if err != nil {
		return err
	}
	e := *b.resource
	e.SecretRef = types.NamespacedName{Namespace: namespace, Name: name}
	other, err := r.open(ctx, stores, &e)
	if err != nil {
		return err
	}
	b.objects = other.objects
	return nil
}

// choose finds what has to go or come back with the named snapshots, in the order in which it is done.
func (r *exclusionRun) choose(c *chain, names []string) ([]*snapshot, error) {
	wanted := exclusion(included)
	if r.exclude {
		wanted = excluded
	}
	var chosen []*snapshot
	for i, s := range c.all {
		if !slices.ContainsFunc(names, s.called) || s.chunk {
			continue
		}
		from, to := i, i+1
		if !r.exclude && !s.full {
			for from > 0 && !c.all[from].full {
				from--
			}
		}
		// Up to the next full that a restore would take.
		for (r.exclude || s.full) && to < len(c.all) && !(c.all[to].full && (c.all[to].excluded != excluded || !r.exclude)) {
			to++
		}
		for _, t := range c.all[from:to] {
			if t.excluded != wanted && !slices.Contains(chosen, t) {
				chosen = append(chosen, t)
			}
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(c.all, func(s *snapshot) bool { return s.called(name) }) {
			return nil, fmt.Errorf("there is no snapshot %s (%s snapshots lists them)", name, r.program)
		}
	}
	slices.SortFunc(chosen, (*snapshot).compare)
	if r.exclude {
		slices.Reverse(chosen)
	}
	return chosen, nil
}

// called says that somebody means a snapshot by a name.
func (s *snapshot) called(name string) bool {
	return name == s.name || name == s.key || strings.Contains(name, "/") && path.Base(name) == s.name && strings.HasSuffix(s.key, name)
}

// after is what a restore would take if the chosen snapshots were excluded, or included.
func (r *exclusionRun) after(before *chain, chosen []*snapshot) *chain {
	all := make([]*snapshot, len(before.all))
	for i, s := range before.all {
		t := *s
		if slices.Contains(chosen, s) {
			t.excluded = included
			if r.exclude {
				t.excluded = excluded
			}
		}
		all[i] = &t
	}
	return newChain(all, before.now, time.Time{})
}

// agree shows what would be, refuses what must not be, and asks.
func (r *exclusionRun) agree(before, after *chain, chosen []*snapshot) error {
	verb := map[bool]string{true: "exclude", false: "include"}[r.exclude]
	if len(chosen) == 0 {
		r.say("Nothing to %s: it is so already.", verb)
		return nil
	}
	r.say("Now: %s", chainSentence(before))
	r.say("%s:", map[bool]string{true: "Exclude, the newest first", false: "Include, the oldest first"}[r.exclude])
	for _, s := range chosen {
		r.say("  %s", oneLine(s.name))
	}
	r.say("Then: %s", chainSentence(after))
	if lost := before.revision - after.revision; lost > 0 && after.reached != nil {
		r.say("Revisions %d to %d are lost to a restore, what was written behind %s.", after.revision+1, before.revision,
			formatTime(after.reached.taken()))
	}
	switch {
	case r.exclude && !after.complete && !r.force:
		return fmt.Errorf("no complete chain would be left: a restore would fail, or etcd start empty; --force does it all the same")
	}
	return r.confirmed(r.yes)
}

// changeOne excludes or includes one snapshot.
func (r *exclusionRun) changeOne(ctx context.Context, b *backups, store tagger, s *snapshot) error {
	tags, err := store.tags(ctx, s.version())
	if err != nil {
		return err
	}
	tags = maps.Clone(tags)
	if tags == nil {
		tags = map[string]string{}
	}
	if r.exclude {
		if tags[excludeTag] != excludeValue {
			tags[excludeTag] = excludeValue
			if err := store.setTags(ctx, s.version(), tags); err != nil {
				return err
			}
		}
		if h, hides := b.objects.(hider); hides && !s.marked {
			if _, err := h.hide(ctx, s.key); err != nil {
				return err
			}
		}
		return nil
	}
	if _, tagged := tags[excludeTag]; tagged {
		delete(tags, excludeTag)
		if err := store.setTags(ctx, s.version(), tags); err != nil {
			return err
		}
	}
	if s.marked {
		return removeMarkers(ctx, b.objects, s.key)
	}
	return nil
}

// removeMarkers removes all delete markers of a key, and nothing else.
func removeMarkers(ctx context.Context, store versions, key string) error {
	var markers []version
	for page, err := range store.pages(ctx, key, cursor{}) {
		if err != nil {
			return err
		}
		for _, v := range page.versions {
			if v.marker && v.key == key {
				markers = append(markers, v)
			}
		}
	}
	for _, marker := range markers {
		if err := removeMarker(ctx, store, marker); err != nil {
			return err
		}
	}
	return nil
}

// markerAttempts is how often it is tried: a store may have to be asked in another way first.
const markerAttempts = 5

// removeMarker removes one delete marker, and nothing else: whatever is not one, by its own version, is refused.
func removeMarker(ctx context.Context, store versions, marker version) error {
	if !marker.marker || marker.id == "" {
		return fmt.Errorf("version %q of %q is no delete marker, it is left alone", marker.id, marker.key)
	}
	var last error
	for attempt := range markerAttempts {
		answers, err := store.remove(ctx, []version{marker})
		switch {
		case err != nil && !isTransient(err):
			return err
		case err != nil:
			last = err
		case len(answers) != 1:
			return errors.New("the store does not say what became of a delete marker")
		case answers[0].outcome == removalGone:
			return nil
		case answers[0].outcome == removalUntried:
			continue
		case answers[0].outcome == removalAgain:
			last = answers[0].err
		default:
			return cmp.Or(answers[0].err, errors.New("the store keeps the delete marker"))
		}
		if err := sleep(ctx, store.traits().backoff(attempt)); err != nil {
			return err
		}
	}
	return cmp.Or(last, errors.New("the store does not remove the delete marker"))
}

// readBack makes sure that what was done is so, and shows what a restore takes now.
func (r *exclusionRun) readBack(ctx context.Context, b *backups, chosen []*snapshot) (*chain, error) {
	now, err := readChain(ctx, b.objects, b.base)
	if err != nil {
		return nil, fmt.Errorf("reading back: %w", err)
	}
	for _, s := range chosen {
		at := slices.IndexFunc(now.all, func(t *snapshot) bool { return t.key == s.key })
		if at < 0 || (now.all[at].excluded == excluded) != r.exclude {
			return nil, fmt.Errorf("reading back: %s is not as it should be; %s snapshots shows how it is", s.name, r.program)
		}
	}
	r.say("Read back: %s", chainSentence(now))
	return now, nil
}

// announce writes on the BackupEntry which exclusions are meant, so that the daemon does not take them for an attack. What was not
// announced before and is not chosen stays so.
func (r *exclusionRun) announce(ctx context.Context, b *backups, now *chain, chosen []*snapshot) {
	var announced revisionSpans
	if b.resource != nil {
		announced = parseSpans(b.resource.Annotations[annotationExcluded])
	}
	var revisions []string
	for _, s := range now.all {
		meant := r.exclude && slices.ContainsFunc(chosen, func(t *snapshot) bool { return t.key == s.key })
		if s.excluded == excluded && (meant || announced.has(s.last)) {
			revisions = append(revisions, strconv.FormatInt(s.last, 10))
		}
	}
	value := strings.Join(slices.Compact(revisions), ",")
	by := fmt.Sprintf("kubectl annotate --overwrite backupentry %s %s=%s", b.entry, annotationExcluded, value)
	if value == "" {
		by = fmt.Sprintf("kubectl annotate backupentry %s %s-", b.entry, annotationExcluded)
	}
	if b.resource == nil {
		if r.exclude {
			r.say("If the BackupEntry is on a seed, announce it there, or it counts as an attack:\n  %s", by)
		}
		return
	}
	if value == b.resource.Annotations[annotationExcluded] {
		return
	}
	api, err := r.api()
	if err == nil {
		var annotation any
		if value != "" {
			annotation = value
		}
		var patch []byte
		patch, err = json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{annotationExcluded: annotation}}})
		if err == nil {
			_, err = api.dynamic.Resource(entriesGVR).Patch(ctx, b.resource.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		}
	}
	if err != nil {
		r.say("%s: it could not be announced on the BackupEntry, without which it counts as an attack: %v\n  %s", programName, err, by)
	}
}

// event tells on the BackupEntry who has done it and why.
func (r *exclusionRun) event(ctx context.Context, b *backups, chosen []*snapshot) {
	if b.resource == nil {
		return
	}
	api, err := r.api()
	if err != nil {
		return
	}
	reason, verb := "SnapshotsIncluded", "included"
	if r.exclude {
		reason, verb = "SnapshotsExcluded", "excluded"
	}
	note := fmt.Sprintf("%s %s %d snapshots, the oldest with revision %d: %s", cmp.Or(r.whoami(ctx), "somebody"), verb, len(chosen),
		slices.MinFunc(chosen, (*snapshot).compare).last, cmp.Or(r.reason, "no reason given"))
	if len(note) > maxEventNote {
		note = strings.ToValidUTF8(note[:maxEventNote-3], "") + "..."
	}
	host, _ := os.Hostname() // it may have none
	now := time.Now()
	_, err = api.core.EventsV1().Events(metav1.NamespaceDefault).Create(ctx, &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", b.entry, now.UnixNano()), Namespace: metav1.NamespaceDefault},
		EventTime:  metav1.NewMicroTime(now), ReportingController: programName, ReportingInstance: cmp.Or(host, "command"),
		Action: "Exclude", Reason: reason, Type: corev1.EventTypeNormal, Note: note,
		Regarding: corev1.ObjectReference{APIVersion: b.resource.APIVersion, Kind: b.resource.Kind, Name: b.resource.Name, UID: b.resource.UID},
	}, metav1.CreateOptions{})
	if err != nil {
		r.say("%s: the event on the BackupEntry could not be written: %v", programName, err)
	}
}
