// Versions on S3 that are not retained as long as they should be: what is in a locked bucket and can be deleted, or soon, for
// one of four reasons, and what becomes of it with --extend-retention and without. The attacker has the daemon's own credentials.
//
// Rules: a store refuses a deletion, or does not, and nothing else counts as protected; where a retention has to run out, it is
// that of the version itself, seconds long; only the age of a version is pretended, by a proxy in front of the store.

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"bucketwarden/test/env"
)

// objectVersion is one that was written, and when.
type objectVersion struct {
	key, id string
	written time.Time
}

// retentionScene is a bucket with an entry, behind a proxy.
type retentionScene struct {
	store         *s3Store
	daemon        *daemon
	proxy         *env.Proxy
	bucket, entry string
}

// newRetentionScene creates the bucket. The entry comes with addEntry.
func newRetentionScene(t *testing.T, store *s3Store, d *daemon, mode, period string) *retentionScene {
	t.Helper()
	s := &retentionScene{store: store, daemon: d, proxy: store.proxy(t), bucket: newName("retained")}
	s.entry, _ = newShoot(t)
	writeSecret(t, secretName(buckets, s.bucket), store.SecretData(s.proxy.URL))
	create(t, buckets, bucketObject(s.bucket, d.kind, providerConfig(d.kind, immutability(mode, period))))
	waitHealthy(t, buckets, s.bucket)
	return s
}

// withStatus gives an entry what gardenlet copies from the bucket.
func (s *retentionScene) withStatus(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	status, found, err := unstructured.NestedMap(get(t, buckets, s.bucket).Object, "status", "providerStatus")
	if err != nil || !found {
		t.Fatalf("the bucket has no providerStatus: %v", err)
	}
	set(o, status, "spec", "backupBucketProviderStatus")
}

func (s *retentionScene) addEntry(t *testing.T, name string) {
	t.Helper()
	o := entryObject(name, s.daemon.kind, s.bucket)
	s.withStatus(t, o)
	writeSecret(t, secretName(entries, name), s.store.SecretData(s.proxy.URL))
	create(t, entries, o)
	waitHealthy(t, entries, name)
}

// put writes an object; without a mode it has the default retention of the bucket.
func (s *retentionScene) put(t *testing.T, key string, mode types.ObjectLockMode, until time.Time) objectVersion {
	t.Helper()
	in := &s3.PutObjectInput{Bucket: &s.bucket, Key: &key, Body: strings.NewReader("snapshot")}
	if mode != "" {
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = mode, &until
	}
	out, err := s.store.PutObject(t.Context(), in)
	must(t, err)
	return objectVersion{key: key, id: aws.ToString(out.VersionId), written: time.Now()}
}

// putChain writes a full snapshot and two deltas, the newest some minutes ago.
func (s *retentionScene) putChain(t *testing.T, entry string, ago int, mode types.ObjectLockMode, until time.Time) []objectVersion {
	t.Helper()
	return []objectVersion{
		s.put(t, snapshotKey(entry, "Full", 0, 100, ago+20), mode, until),
		s.put(t, snapshotKey(entry, "Incr", 101, 120, ago+15), mode, until),
		s.put(t, snapshotKey(entry, "Incr", 121, 130, ago+10), mode, until),
	}
}

// steal deletes a version as somebody would who has the credentials, and may bypass governance.
func (s *retentionScene) steal(t *testing.T, v objectVersion) error {
	t.Helper()
	_, err := s.store.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket, Key: &v.key, VersionId: &v.id, BypassGovernanceRetention: aws.Bool(true)})
	return err
}

func (s *retentionScene) wantStolen(t *testing.T, versions ...objectVersion) {
	t.Helper()
	for _, v := range versions {
		if err := s.steal(t, v); err != nil {
			t.Errorf("%s cannot be deleted: %v", v.key, err)
		}
	}
}

// wantKept says that nobody can delete the versions.
func (s *retentionScene) wantKept(t *testing.T, versions ...objectVersion) {
	t.Helper()
	for _, v := range versions {
		if err := s.steal(t, v); err == nil {
			t.Errorf("%s was deleted", v.key)
		}
		_, err := s.store.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &s.bucket, Key: &v.key, VersionId: &v.id})
		if err != nil {
			t.Errorf("%s: %v", v.key, err)
		}
	}
}

// lock is how a version is retained, and until when.
func (s *retentionScene) lock(ctx context.Context, v objectVersion) (types.ObjectLockRetentionMode, time.Time, error) {
	out, err := s.store.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &s.bucket, Key: &v.key, VersionId: &v.id})
	switch {
	case s3Code(err) == "NoSuchObjectLockConfiguration" || s3Code(err) == "ObjectLockConfigurationNotFoundError":
		return "", time.Time{}, nil
	case err != nil || out.Retention == nil:
		return "", time.Time{}, err
	}
	return out.Retention.Mode, aws.ToTime(out.Retention.RetainUntilDate), nil
}

// uploading is how much a retention may be off: a date has seconds, and retention counts from the begin of an upload.
const uploading = time.Minute

// awaitRetained waits until versions are retained for the period from some time on, and not for longer.
func (s *retentionScene) awaitRetained(t *testing.T, from func(objectVersion) time.Time, period time.Duration, versions ...objectVersion) {
	t.Helper()
	eventually(t, "the versions in bucket "+s.bucket+" are retained", func(ctx context.Context) error {
		for _, v := range versions {
			mode, until, err := s.lock(ctx, v)
			if err != nil {
				return err
			}
			if want := from(v).Add(period); mode != types.ObjectLockRetentionModeCompliance || until.Before(want.Add(-uploading)) {
				return fmt.Errorf("%s: %s until %v, want %v", v.key, mode, until, want)
			}
			if until.After(time.Now().Add(period + uploading)) {
				t.Fatalf("%s is retained until %v", v.key, until)
			}
		}
		return nil
	})
}

func written(v objectVersion) time.Time { return v.written }

// looked waits until the backups of the entry were looked at once.
func (s *retentionScene) looked(t *testing.T) { s.daemon.wantBackups(t, s.entry, nil) }

// openGap takes the default retention away, and keeps the daemon from putting it back until it is closed.
func (s *retentionScene) openGap(t *testing.T) (closeGap func()) {
	t.Helper()
	s.proxy.SetFault(func(r env.Request) *env.Fault {
		if r.Operation != "PutObjectLockConfiguration" {
			return nil
		}
		return &env.Fault{Status: http.StatusServiceUnavailable, Code: "ServiceUnavailable"}
	})
	s.store.putRetention(t, s.bucket, "", 0)
	return func() {
		t.Helper()
		s.proxy.SetFault(nil)
		s.store.awaitRetention(t, s.bucket, "COMPLIANCE 4")
	}
}

// brief is for how long versions are retained whose retention has to run out.
const brief = 30 * time.Second

// unprotectedCase has the policy of the bucket when its entry comes in period and mode.
type unprotectedCase struct {
	name, reason string
	prepare      func(t *testing.T, s *retentionScene) (chain []objectVersion, free time.Time)
	period       string
}

func (c unprotectedCase) mode() string {
	if c.reason == "governance" {
		return "governance"
	}
	return "compliance"
}

// unprotected are the ways in which versions in a locked bucket are free, or will be too early. Each leaves a chain that is
// unprotected, says what can be deleted of it when, and has it looked at.
var unprotected = []unprotectedCase{
	{"written in a gap", "gap", func(t *testing.T, s *retentionScene) ([]objectVersion, time.Time) {
		s.addEntry(t, s.entry)
		s.looked(t)
		closeGap := s.openGap(t)
		chain := s.putChain(t, s.entry, 0, "", noRetention)
		s.wantStolen(t, s.put(t, snapshotKey(s.entry, "Incr", 131, 140, 5), "", noRetention))
		closeGap()
		return chain, noRetention
	}, "96h"},
	{"written under a shorter default", "growth", func(t *testing.T, s *retentionScene) ([]objectVersion, time.Time) {
		s.addEntry(t, s.entry)
		s.looked(t)
		free := retainFor(brief)
		chain := s.putChain(t, s.entry, 0, types.ObjectLockModeCompliance, free)
		// Of what is as new as the growth, by a store's clock with seconds only, the reason would be another.
		awaitEnd(t, time.Now().Add(5*time.Second))
		reconcile(t, buckets, s.bucket, setImmutability(immutability("compliance", "96h")))
		waitHealthy(t, buckets, s.bucket)
		reconcile(t, entries, s.entry, func(o *unstructured.Unstructured) { s.withStatus(t, o) })
		return chain, free
	}, "24h"},
	{"in governance mode", "governance", func(t *testing.T, s *retentionScene) ([]objectVersion, time.Time) {
		// From when the bucket was tried out.
		chain := s.putChain(t, s.entry, 0, "", noRetention)
		s.wantStolen(t, s.put(t, snapshotKey(s.entry, "Incr", 131, 140, 5), "", noRetention))
		s.addEntry(t, s.entry)
		reconcile(t, buckets, s.bucket, setImmutability(immutability("compliance", "96h")))
		waitHealthy(t, buckets, s.bucket)
		reconcile(t, entries, s.entry, func(o *unstructured.Unstructured) { s.withStatus(t, o) })
		return chain, noRetention
	}, "96h"},
	{"of a cluster that sleeps", "chain", func(t *testing.T, s *retentionScene) ([]objectVersion, time.Time) {
		// Written five days ago, retained for four and a little more.
		s.proxy.Age(s.entry+"/", 5*day)
		free := retainFor(brief)
		chain := s.putChain(t, s.entry, 5*24*60, types.ObjectLockModeCompliance, free)
		s.addEntry(t, s.entry)
		return chain, free
	}, "96h"},
}

// What should be locked and is not can be deleted, unless its retention is extended.
func TestUnprotectedVersionsAreRetained(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		on, off := startDaemon(t), startDaemon(t, "--extend-retention=false")
		for _, c := range unprotected {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := newRetentionScene(t, store, on, c.mode(), c.period)
				chain, free := c.prepare(t, s)
				from := written
				if c.reason == "chain" {
					// As long as the period from now on.
					from = func(objectVersion) time.Time { return time.Now().Add(-time.Minute) }
				}
				s.awaitRetained(t, from, 4*day, chain...)
				waitFor(t, buckets, s.bucket, conditionIs("BackupsRetained", "True"))
				on.awaitValue(t, 0, "bucketwarden_backupbucket_unprotected_versions", "bucket="+s.bucket)
				if c.reason != "governance" { // some stores let it be extended like any other, so nobody asks what it was
					on.awaitValue(t, float64(len(chain)), "bucketwarden_backupbucket_extended_versions_total", "bucket="+s.bucket, "reason="+c.reason)
				}
				mustEqual(t, "all extensions", on.value(t, "bucketwarden_backupbucket_extended_versions_total", "bucket="+s.bucket), float64(len(chain)))
				mustEqual(t, "failures", on.value(t, "bucketwarden_backupbucket_extension_failures_total", "bucket="+s.bucket), 0.)
				about := s.bucket
				if c.reason == "chain" {
					about = s.entry
				}
				awaitEvent(t, "VersionsExtended", about, fmt.Sprint(len(chain)))
				awaitEnd(t, free.Add(time.Second))
				s.wantKept(t, chain...)
			})
			t.Run(c.name+", not extended", func(t *testing.T) {
				t.Parallel()
				s := newRetentionScene(t, store, off, c.mode(), c.period)
				chain, free := c.prepare(t, s)
				s.looked(t)
				awaitEnd(t, free.Add(time.Second))
				s.wantStolen(t, chain...)
				if n := s.proxy.Counts()["PutObjectRetention"]; n != 0 {
					t.Errorf("%d requests to extend", n)
				}
			})
		}
	})
}

// conditionIs says whether a condition has a status.
func conditionIs(kind, status string) func(*unstructured.Unstructured) error {
	return func(o *unstructured.Unstructured) error {
		if o == nil {
			return errors.New("it is gone")
		}
		if c := conditionOf(o, kind); c["status"] != status {
			return fmt.Errorf("the condition %s is %v", kind, c)
		}
		return nil
	}
}

// A missing permission is told once and is no failure; nothing is asked again and again.
func TestExtensionIsDenied(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		s := newRetentionScene(t, store, d, "compliance", "24h")
		s.addEntry(t, s.entry)
		chain := s.putChain(t, s.entry, 0, "", noRetention)
		s.looked(t)
		allow := s.deny(t)
		reconcile(t, buckets, s.bucket, setImmutability(immutability("compliance", "96h")))
		// It is False before the first attempt, too.
		waitFor(t, buckets, s.bucket, func(o *unstructured.Unstructured) error {
			if err := conditionIs("BackupsRetained", "False")(o); err != nil {
				return err
			}
			if c := conditionOf(o, "BackupsRetained"); !strings.Contains(fmt.Sprint(c["message"]), "PutObjectRetention") {
				return fmt.Errorf("the condition does not name the permission: %v", c)
			}
			return nil
		})
		label := "bucket=" + s.bucket
		d.awaitValue(t, float64(len(chain)), "bucketwarden_backupbucket_unprotected_versions", label)
		before := s.proxy.Counts()["PutObjectRetention"]
		d.awaitPasses(t, "backupbuckets", 5)
		if n := s.proxy.Counts()["PutObjectRetention"]; n != before || n > 2*len(chain) {
			t.Errorf("%d requests to extend %d versions, and %d later", before, len(chain), n-before)
		}
		waitHealthy(t, buckets, s.bucket)
		waitHealthy(t, entries, s.entry)
		mustEqual(t, "failing objects", d.value(t, "bucketwarden_failing_objects"), 0.)
		mustEqual(t, "extensions", d.value(t, "bucketwarden_backupbucket_extended_versions_total", label), 0.)

		// Once it is granted, the next look extends.
		allow()
		d.Kill()
		d.start(t)
		s.awaitRetained(t, written, 4*day, chain...)
		waitFor(t, buckets, s.bucket, conditionIs("BackupsRetained", "True"))
		s.wantKept(t, chain...)
	})
}

// deny takes the permission to extend away: on Ceph with the bucket's policy, which binds its owner too. MinIO's root user is
// bound by nothing, so the proxy answers as MinIO does.
func (s *retentionScene) deny(t *testing.T) (allow func()) {
	t.Helper()
	if s.store.name == "ceph" {
		policy := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"s3:PutObjectRetention","Resource":"arn:aws:s3:::%s/*"}]}`, s.bucket)
		_, err := s.store.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &s.bucket, Policy: &policy})
		must(t, err)
		return func() {
			t.Helper()
			_, err := s.store.DeleteBucketPolicy(t.Context(), &s3.DeleteBucketPolicyInput{Bucket: &s.bucket})
			must(t, err)
		}
	}
	s.proxy.SetFault(func(r env.Request) *env.Fault {
		if r.Operation != "PutObjectRetention" {
			return nil
		}
		return &env.Fault{Status: http.StatusForbidden, Code: "AccessDenied"}
	})
	return func() { s.proxy.SetFault(nil) }
}

// What nobody would restore, what was deleted, what is none of ours, and what is in a bucket that nobody wants to be locked, is
// left as it is.
func TestRetentionIsLeftAlone(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		s := newRetentionScene(t, store, d, "compliance", "96h")
		open := newRetentionScene(t, store, d, "governance", "96h")
		deleted, _ := newShoot(t)
		s.addEntry(t, s.entry)
		s.addEntry(t, deleted)
		free := retainFor(2 * brief)
		retained := s.put(t, snapshotKey(deleted, "Full", 0, 100, 20), types.ObjectLockModeCompliance, free)
		remove(t, entries, deleted)
		waitGone(t, entries, deleted)
		s.looked(t)

		closeGap := s.openGap(t)
		chain := s.putChain(t, s.entry, 0, "", noRetention)
		excluded := s.put(t, snapshotKey(s.entry, "Incr", 131, 140, 5), "", noRetention)
		store.exclude(t, s.bucket, excluded.key, excluded.id)
		store.hideObject(t, s.bucket, excluded.key)
		foreign := s.put(t, "foreign/etcd-main/v2/Full-00000000-00000100-1762500000.gz", "", noRetention)
		ours := s.put(t, s.entry+"0/etcd-main/v2/Full-00000000-00000100-1762500000.gz", "", noRetention)
		closeGap()
		s.awaitRetained(t, written, 4*day, chain...)
		s.wantStolen(t, excluded, foreign, ours)

		unlocked := open.putChain(t, open.entry, 0, types.ObjectLockModeGovernance, time.Now().Add(time.Hour))
		open.addEntry(t, open.entry)
		open.looked(t)
		open.wantStolen(t, unlocked...)
		if n := open.proxy.Counts()["PutObjectRetention"]; n != 0 {
			t.Errorf("%d requests to extend in an unlocked bucket", n)
		}

		awaitEnd(t, free)
		store.awaitNoVersions(t, s.bucket, deleted+"/")
		_ = retained
	})
}

// A daemon that is killed while it extends goes on after its next start; one that has nothing to do asks for nothing twice.
func TestExtensionGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		const versions = 300
		d := startDaemon(t)
		s := newRetentionScene(t, store, d, "compliance", "24h")
		// What is younger than an upload may take is asked about once more.
		s.proxy.Age(s.entry+"/", time.Hour)
		anHourAgo := func(v objectVersion) time.Time { return v.written.Add(-time.Hour) }
		s.addEntry(t, s.entry)
		s.looked(t)
		all := make([]objectVersion, versions)
		for i := range all {
			kind, first := "Incr", 10*i+1
			if i == 0 {
				kind, first = "Full", 0
			}
			all[i] = s.put(t, snapshotKey(s.entry, kind, first, 10*i+10, 80), "", noRetention)
		}
		reconcile(t, buckets, s.bucket, setImmutability(immutability("compliance", "96h")))
		eventually(t, "a part of them is extended", func(context.Context) error {
			if n := s.proxy.Counts()["PutObjectRetention"]; n < 50 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		d.Kill()
		if n := s.proxy.Counts()["PutObjectRetention"]; n >= versions {
			t.Logf("all %d were extended before the kill", n)
		}
		d.start(t)
		waitHealthy(t, buckets, s.bucket)
		s.awaitRetained(t, anHourAgo, 4*day, all...)
		waitFor(t, buckets, s.bucket, conditionIs("BackupsRetained", "True"))
		d.awaitValue(t, 0, "bucketwarden_backupbucket_unprotected_versions", "bucket="+s.bucket)

		// After a start it asks, once, what it cannot know, and extends nothing. If that takes longer than a pass, the look asks for
		// the retention of links as well.
		const linkLookups = 50
		d.Kill()
		s.proxy.Reset()
		d.start(t)
		waitHealthy(t, buckets, s.bucket)
		d.awaitValue(t, 0, "bucketwarden_backupbucket_unprotected_versions", "bucket="+s.bucket)
		counts := s.proxy.Counts()
		if counts["PutObjectRetention"] != 0 || counts["GetObjectRetention"] > versions+linkLookups {
			t.Errorf("the requests after a start are %v", counts)
		}

		// Nothing new: the next look, which a repair brings about, lists and asks for nothing else.
		s.proxy.Reset()
		s.openGap(t)()
		d.awaitPassesSince(t, "checks", d.passes(t, "checks"), 1)
		d.awaitIdle(t, "checks")
		counts = s.proxy.Counts()
		if counts["ListObjectVersions"] == 0 || counts["PutObjectRetention"]+counts["GetObjectRetention"]+counts["GetObjectLegalHold"] != 0 {
			t.Errorf("the requests are %v", counts)
		}
	})
}
