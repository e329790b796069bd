package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/tools/cache"
)

// keepHarness is a harness with bucket b on a store in memory, the looks at backups, and what keeps versions retained.
type keepHarness struct {
	*harness
	server  *memoryServer
	checker *entryChecker
	keeper  *retentionKeeper
	// asked counts requests to the store by operation, refuse is the answer to one, unless it is zero.
	asked  map[string]int
	refuse func(operation string) int
	made   int
}

// keepProvider takes the credentials of the harness.
type keepProvider struct{ *memoryProvider }

func (p keepProvider) openStore(ref bucketRef, _ map[string][]byte) (Store, error) {
	return p.open(ref, map[string][]byte{memoryKey: []byte(p.server.key)})
}

func (p keepProvider) openObjects(ref bucketRef, _ map[string][]byte) (Objects, error) {
	return p.open(ref, map[string][]byte{memoryKey: []byte(p.server.key)})
}

// keepBucketName is one that the store in memory takes.
const keepBucketName = "bucket"

func newKeepHarness(t *testing.T, days int32) *keepHarness {
	t.Helper()
	h := &keepHarness{harness: newHarness(t), server: newMemoryServer(), asked: map[string]int{}}
	store := keepProvider{&memoryProvider{h.server, h.metrics}}
	h.scope.providers = map[string]provider{"aws": store}
	h.server.refuse = func(operation string) int {
		h.asked[operation]++
		if h.refuse != nil {
			if status := h.refuse(operation); status != 0 {
				return status
			}
		}
		return http.StatusOK
	}
	clusters := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{clustersGVR: "ClusterList"})
	checks := newCalmController(t, resourceChecks, h.metrics)
	h.checker = newEntryChecker(h.entries.reconciler, checks, clusters.Resource(clustersGVR), h.metrics.entries)
	h.buckets.verifyInterval = time.Minute
	h.restart()
	h.put(bucketsGVR, testObject(kindBackupBucket, keepBucketName, "bucket-b", withPolicy(Policy{Days: days, Locked: days > 0}), func(u *unstructured.Unstructured) {
		u.SetCreationTimestamp(metav1.NewTime(time.Now()))
	}))
	h.putSecret("garden", "bucket-b", staticCredentials())
	return h
}

// restart forgets what a process knows.
func (h *keepHarness) restart() {
	h.keeper = newRetentionKeeper(h.buckets, h.checker.checks, h.metrics.entries)
	h.checker.keeper, h.buckets.retention = h.keeper, h.keeper
	for name := range h.metrics.entries.states {
		h.metrics.entries.forget(name)
	}
	h.metrics.facts.forget(keepBucketName)
}

// verify makes a pass over the bucket.
func (h *keepHarness) verify() {
	h.t.Helper()
	if _, err := h.passBucket(keepBucketName); err != nil {
		h.t.Fatal(err)
	}
	if h.metadata().GetAnnotations()[annotationOperation] != "" {
		h.t.Fatal("the bucket was not reconciled")
	}
}

func (h *keepHarness) metadata() *unstructured.Unstructured { return h.get(bucketsGVR, keepBucketName) }

// ask changes the spec and has it carried out.
func (h *keepHarness) ask(p Policy) {
	h.t.Helper()
	h.edit(bucketsGVR, keepBucketName, func(u *unstructured.Unstructured) {
		withPolicy(p)(u)
		withOperation(operationReconcile)(u)
	})
}

// add makes an entry that is live.
func (h *keepHarness) add(name string) {
	h.t.Helper()
	h.putEntry(name, true, set(keepBucketName, "spec", "bucketName"), func(u *unstructured.Unstructured) {
		u.SetCreationTimestamp(metav1.NewTime(time.Now()))
	})
	h.sync()
	obj, _, _ := h.entries.cached.GetByKey(name)
	h.metrics.entries.watch(obj.(*backupEntry))
}

// look looks at the backups of an entry until nothing is left to do.
func (h *keepHarness) look(entry string) (events []harnessEvent) {
	h.t.Helper()
	for range 1000 {
		again, err := h.pass(h.t.Context(), h.checker.reconcile, entry, false)
		events = append(events, h.recorder.events...)
		if err != nil {
			h.t.Fatal(err)
		}
		if again != keepPause && again != checkSoon {
			return events
		}
		time.Sleep(again)
	}
	h.t.Fatal("the look comes to no end")
	return nil
}

// write stores the next snapshot of an entry, as its etcd does.
func (h *keepHarness) write(entry string, full bool) *version {
	h.t.Helper()
	kind, first, last := snapshotDelta, 10*h.made+1, 10*h.made+10
	if full {
		kind, first = snapshotFull, 0
	}
	h.made++
	key := fmt.Sprintf("%s/%s/v2/%s-%08d-%08d-%d.gz", entryBase(entry), etcdName, kind, first, last, time.Now().Unix())
	h.server.mu.Lock()
	defer h.server.mu.Unlock()
	b := h.server.buckets[keepBucketName]
	v := h.server.write(b, version{key: key, size: 10})
	return &v
}

// of is a version as it is in the store, and whether it can be taken away.
func (h *keepHarness) of(v *version) (stored version, governed bool) {
	h.server.mu.Lock()
	defer h.server.mu.Unlock()
	for _, w := range h.server.buckets[keepBucketName].versions {
		if w.same(*v) {
			return w, h.server.governed[w.id]
		}
	}
	return version{}, false
}

// wantUntil says until when a version has to be retained, give or take a minute; zero is not at all.
func (h *keepHarness) wantUntil(want time.Time, versions ...*version) {
	h.t.Helper()
	for _, v := range versions {
		stored, governed := h.of(v)
		if off := stored.until.Sub(want).Abs(); governed || off > time.Minute {
			h.t.Errorf("%s is retained until %s (to be taken away: %t), want %s", v.key, stored.until, governed, want)
		}
	}
}

// tamper changes the default retention.
func (h *keepHarness) tamper(p Policy) {
	h.server.mu.Lock()
	defer h.server.mu.Unlock()
	h.server.buckets[keepBucketName].policy = p
}

// requests are those since the last call, other than what each pass makes.
func (h *keepHarness) wantAsked(want map[string]int) {
	h.t.Helper()
	got := maps.Clone(h.asked)
	clear(h.asked)
	for _, usual := range []string{"GetBucket", "ListVersions"} {
		delete(got, usual)
	}
	if !maps.Equal(got, want) {
		h.t.Errorf("requests %v, want %v", got, want)
	}
}

func (h *keepHarness) wantCondition(status, reason string) string {
	h.t.Helper()
	c, _ := findCondition(decodeBucket(h.metadata()).Conditions, conditionRetained)
	if c.Status != status || c.Reason != reason {
		h.t.Errorf("the condition is %s %s, want %s %s: %s", c.Status, c.Reason, status, reason, c.Message)
	}
	return c.Message
}

func (h *keepHarness) wantUnprotected(want int) {
	h.t.Helper()
	const name = "bucketwarden_backupbucket_unprotected_versions"
	if got := h.metric(name, keepBucketName); got != float64(want) || !h.has(name, keepBucketName) {
		h.t.Errorf("%v versions are unprotected (known: %t), want %d", got, h.has(name, keepBucketName), want)
	}
}

// queued says that an entry or the bucket is to be looked at at once, and takes it from the queue.
func queued(c *controller) (names []string) {
	for c.queue.Len() > 0 {
		key, _ := c.queue.Get()
		c.queue.Done(key)
		names = append(names, key.Name)
	}
	slices.Sort(names)
	return names
}

func (h *keepHarness) wantQueued(buckets bool, entries ...string) {
	h.t.Helper()
	if got := queued(h.checker.checks); !slices.Equal(got, entries) {
		h.t.Errorf("looks that are to be made at once: %q, want %q", got, entries)
	}
	if got := queued(h.buckets.resource.controller); buckets != (len(got) > 0) {
		h.t.Errorf("buckets to be verified: %q, want it: %t", got, buckets)
	}
}

func eventReasons(events []harnessEvent) (reasons []string) {
	for _, e := range events {
		reasons = append(reasons, e.reason)
	}
	return reasons
}

func keepTest(t *testing.T, days int32, f func(t *testing.T, h *keepHarness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newKeepHarness(t, days)
		h.verify()
		f(t, h)
	})
}

const keepEntry = "shoot--a--b--1"

func daysFrom(n int, t time.Time) time.Time { return t.AddDate(0, 0, n) }

// That nothing is unprotected is not known any more once the backups could not be looked at for long, though the bucket is verified.
func TestKeepUnlooked(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		h.write(keepEntry, true)
		h.verify()
		h.look(keepEntry)
		h.verify()
		h.wantUnprotected(0)
		time.Sleep(checkStale)
		h.verify()
		h.wantUnprotected(0)
		time.Sleep(time.Minute)
		h.verify()
		if h.has("bucketwarden_backupbucket_unprotected_versions", keepBucketName) {
			t.Error("without a look for hours it is shown that nothing is unprotected")
		}
		h.wantCondition("Unknown", "NotChecked")
		h.look(keepEntry)
		h.wantUnprotected(0)
	})
}

// What was written while the default retention was gone gets what it should have had, right after the repair, one request each.
func TestKeepAfterGap(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		h.add("shoot--a--c--2")
		time.Sleep(time.Hour)
		h.verify()
		before := h.write(keepEntry, true)
		time.Sleep(time.Minute)
		h.verify()
		h.look(keepEntry)
		h.look("shoot--a--c--2")
		h.verify()
		h.wantCondition("True", "Retained")
		h.wantUnprotected(0)
		clear(h.asked)
		queued(h.checker.checks)
		queued(h.buckets.resource.controller)

		h.tamper(Policy{})
		time.Sleep(2 * time.Second)
		at := time.Now()
		in := h.write(keepEntry, false)
		time.Sleep(time.Minute)
		h.wantUntil(time.Time{}, in)
		h.verify()
		h.wantEvents("PolicyLocked", "PolicyDrift")
		h.wantQueued(false, keepEntry, "shoot--a--c--2")
		h.wantCondition("Unknown", "Pending")
		time.Sleep(time.Second)
		after := h.write(keepEntry, false)
		h.wantUntil(daysFrom(4, time.Now()), after)
		clear(h.asked)

		h.wantNoEvents(h.look(keepEntry))
		h.wantUntil(daysFrom(4, at), in)
		h.wantUntil(daysFrom(4, at.Add(-2*time.Minute)), before)
		h.wantAsked(map[string]int{"ExtendVersion": 1, "GetVersion": 1}) // one was written just behind the repair
		h.wantTrace("get secrets garden/entry", "get secrets garden/bucket-b", "get backupentries "+keepEntry, "get backupbuckets bucket")
		h.wantMetric(1, "bucketwarden_backupbucket_extended_versions_total", keepBucketName, extensionGap)
		h.wantQueued(false)
		events := h.look("shoot--a--c--2")
		if len(events) != 1 || events[0].reason != "VersionsExtended" || !strings.Contains(events[0].note, "of 1 object versions of 1 BackupEntries") {
			t.Errorf("events %v", events)
		}
		h.wantQueued(true)
		h.verify()
		h.wantCondition("True", "Retained")
		h.wantUnprotected(0)

		// Nothing more is to be done.
		clear(h.asked)
		for range 30 {
			time.Sleep(time.Hour)
			h.verify()
			h.look(keepEntry)
		}
		h.wantAsked(map[string]int{"GetVersion": 2}) // what was written in the last minutes before the first look
	})
}

func (h *keepHarness) wantNoEvents(events []harnessEvent) {
	h.t.Helper()
	if len(events) > 0 {
		h.t.Errorf("events %v", events)
	}
}

// At rest nothing is asked but the list, and nothing is written but the condition, hourly.
func TestKeepAtRest(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		h.write(keepEntry, true)
		for range 12 {
			time.Sleep(5 * time.Minute)
			h.verify()
			h.write(keepEntry, false)
		}
		h.look(keepEntry)
		clear(h.asked)
		writes := 0
		for minute := 0; minute < 12*60; minute += 5 {
			time.Sleep(5 * time.Minute)
			h.write(keepEntry, minute == 6*60)
			h.verify()
			writes += len(slices.DeleteFunc(slices.Clone(h.trace), func(line string) bool { return !strings.HasPrefix(line, "status") }))
			if minute%60 == 0 {
				h.look(keepEntry)
				h.wantNoEvents(h.recorder.events)
			}
		}
		if h.asked["ListVersions"] != 12 {
			t.Errorf("%d lists", h.asked["ListVersions"])
		}
		// The locks of the newest chain are read, as ever.
		if n := h.asked["GetVersion"]; n > 12*12+maxLockLookups {
			t.Errorf("%d look-ups", n)
		}
		delete(h.asked, "GetVersion")
		h.wantAsked(map[string]int{})
		if writes > 13 {
			t.Errorf("%d writes of the status in 12 hours", writes)
		}
		h.wantCondition("True", "Retained")
		h.wantUnprotected(0)
	})
}

// When the period grows, all that is younger is extended, one request each, and the chain that a restore takes.
func TestKeepAfterGrowth(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		old := h.write(keepEntry, true)
		time.Sleep(5 * 24 * time.Hour)
		h.verify()
		young := h.write(keepEntry, true)
		at := time.Now()
		time.Sleep(3 * 24 * time.Hour)
		h.verify()
		h.write(keepEntry, true)
		time.Sleep(time.Hour)
		h.verify()
		h.look(keepEntry)
		queued(h.checker.checks)
		h.ask(Policy{Days: 7, Locked: true})
		clear(h.asked)
		h.verify()
		h.wantQueued(false, keepEntry)
		if h.wantCondition("Unknown", "Pending"); h.has("bucketwarden_backupbucket_unprotected_versions", keepBucketName) {
			t.Error("it is told how many versions are unprotected, though that is not known")
		}
		clear(h.asked)
		h.wantUntil(daysFrom(4, at), young)
		events := h.look(keepEntry)
		if len(events) != 1 || !strings.Contains(events[0].note, "while the period was shorter") {
			t.Errorf("events %v", events)
		}
		h.wantUntil(daysFrom(7, at), young)
		h.wantUntil(daysFrom(4, at.AddDate(0, 0, -5)), old)
		if n := h.asked["ExtendVersion"]; n != 2 {
			t.Errorf("%d extensions", n)
		}
		h.verify()
		h.wantCondition("True", "Retained")
	})
}

// grow has a bucket grow to 14 days in which an entry has a chain of so many snapshots: the first was stored then.
func (h *keepHarness) grow(many int) (first time.Time, newest *version) {
	h.t.Helper()
	h.add(keepEntry)
	h.edit(entriesGVR, keepEntry, lockedEntry)
	h.verify()
	h.look(keepEntry)
	first = h.write(keepEntry, true).created
	for range many - 1 {
		newest = h.write(keepEntry, false)
		time.Sleep(time.Second)
	}
	// What is younger than an upload may take is asked about once more.
	time.Sleep(uploadTime)
	h.verify()
	h.ask(Policy{Days: 14, Locked: true})
	h.verify()
	return first, newest
}

// A growth with many versions: one request for each, in passes that keep nobody waiting, and few others.
func TestKeepAfterGrowthMany(t *testing.T) {
	const many, lockedUntil = 4000, "bucketwarden_backupentry_chain_locked_until_timestamp_seconds"
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		first, _ := h.grow(many)
		clear(h.asked)
		begun, passes := time.Now(), 0
		for {
			at := time.Now()
			again, err := h.pass(t.Context(), h.checker.reconcile, keepEntry, false)
			if err != nil {
				t.Fatal(err)
			}
			if passes++; time.Since(at) > keepTime+time.Second {
				t.Errorf("a pass took %s", time.Since(at))
			}
			if again != keepPause {
				break
			}
			if h.asked["ListVersions"] > many/memoryPage+1 {
				t.Fatal("it is listed again")
			}
			if h.has(lockedUntil, keepBucketName, keepEntry) {
				t.Fatal("it is told until when the chain is locked, though that is not known")
			}
			time.Sleep(again)
		}
		if took, least := time.Since(begun), (many-extensionBurst)/extensionRate*time.Second; took < least || took > 2*least {
			t.Errorf("it took %s, at %d in a second", took, extensionRate)
		}
		others := 0
		for operation, n := range h.asked {
			if operation != "ExtendVersion" && operation != "ListVersions" {
				others += n
			}
		}
		if h.asked["ExtendVersion"] != many || others > 0 {
			t.Errorf("requests %v in %d passes", h.asked, passes)
		}
		// Until when the chain is locked is known by what was asked for, and not before.
		h.wantMetric(float64(first.Add(14*24*time.Hour).Unix()), lockedUntil, keepBucketName, keepEntry)
		h.verify()
		h.wantCondition("True", "Retained")
		h.wantUnprotected(0)
		h.wantMetric(many, "bucketwarden_backupbucket_extended_versions_total", keepBucketName, extensionGrowth)
	})
}

// What was retained so that somebody could take it away, before the bucket was locked.
func TestKeepGovernance(t *testing.T) {
	for name, bypass := range map[string]bool{"with leave to bypass": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			keepTest(t, 0, func(t *testing.T, h *keepHarness) {
				h.server.mayBypass = bypass
				h.ask(Policy{Days: 4})
				h.verify()
				h.add(keepEntry)
				v := h.write(keepEntry, true)
				at := time.Now()
				time.Sleep(time.Hour)
				h.look(keepEntry)
				if h.asked["ExtendVersion"] > 0 || h.has("bucketwarden_backupbucket_unprotected_versions", keepBucketName) {
					t.Error("a bucket that need not be locked")
				}
				h.ask(Policy{Days: 4, Locked: true})
				h.verify()
				events := h.look(keepEntry)
				h.verify()
				if !bypass {
					if message := h.wantCondition("False", retainedGovernance); !strings.Contains(message, "GOVERNANCE") {
						t.Errorf("the condition says: %s", message)
					}
					if got := eventReasons(events); !slices.Equal(got, []string{"VersionsNotExtended"}) {
						t.Errorf("events %q", got)
					}
					h.wantUnprotected(1)
					h.wantMetric(1, "bucketwarden_backupbucket_extension_failures_total", keepBucketName)
					return
				}
				h.wantUntil(daysFrom(4, at), v)
				h.wantCondition("True", "Retained")
				h.wantUnprotected(0)
				h.wantMetric(1, "bucketwarden_backupbucket_extended_versions_total", keepBucketName, extensionGovernance)
			})
		})
	}
}

// The chain of a cluster that sleeps is extended every half a period, as long as its entry lives, and an event tells of it once a
// period.
func TestKeepIdleChain(t *testing.T) {
	keepTest(t, 1, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		chain := []*version{h.write(keepEntry, true), h.write(keepEntry, false), h.write(keepEntry, false)}
		var told int
		for hour := range 24 * 4 {
			if h.verify(); hour == 24*2 {
				h.restart()
				h.verify()
				h.add2(keepEntry)
			}
			told += len(h.look(keepEntry))
			for _, v := range chain {
				if stored, _ := h.of(v); stored.until.Before(time.Now().Add(11*time.Hour)) || stored.until.After(time.Now().AddDate(0, 0, 1)) {
					t.Fatalf("after %d hours it is retained for %s", hour, time.Until(stored.until))
				}
			}
			time.Sleep(time.Hour)
		}
		if n := h.asked["ExtendVersion"]; n > 3*9 || n < 3*6 || told < 3 || told > 5 {
			t.Errorf("%d extensions and %d events in 4 days", n, told)
		}
		// Once the entry is deleted, nobody extends any more.
		clear(h.asked)
		h.edit(entriesGVR, keepEntry, deleting)
		for range 26 {
			h.look(keepEntry)
			time.Sleep(time.Hour)
		}
		h.wantAsked(map[string]int{})
		if stored, _ := h.of(chain[0]); stored.until.After(time.Now()) {
			t.Error("it is still retained")
		}
	})
}

// add2 has an entry watched anew.
func (h *keepHarness) add2(name string) {
	h.sync()
	obj, _, _ := h.entries.cached.GetByKey(name)
	h.metrics.entries.watch(obj.(*backupEntry))
}

// A restart asks only what it cannot know.
func TestKeepRestart(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		time.Sleep(time.Hour)
		h.verify()
		h.write(keepEntry, true)
		for range 50 {
			time.Sleep(5 * time.Minute)
			h.verify()
			h.write(keepEntry, false)
		}
		time.Sleep(time.Hour)
		h.verify()
		h.look(keepEntry)
		h.verify()
		told, of := rememberedRetention(decodeBucket(h.metadata()))
		if of != (Policy{Days: 4, Locked: true}) || time.Since(told) > 20*time.Minute {
			t.Fatalf("the condition tells %s, %s", told, of)
		}
		h.restart()
		h.add2(keepEntry)
		time.Sleep(time.Minute)
		late := h.write(keepEntry, false)
		h.verify()
		clear(h.asked)
		h.look(keepEntry)
		// The locks of the newest chain are read, as ever.
		if n := h.asked["GetVersion"] - maxLockLookups; n > 1 || h.asked["ExtendVersion"] > 0 {
			t.Errorf("requests %v", h.asked)
		}
		h.wantUntil(daysFrom(4, late.created), late)

		// It was tampered with while nobody looked.
		h.verify()
		h.tamper(Policy{})
		lost := h.write(keepEntry, false)
		time.Sleep(time.Minute)
		h.tamper(Policy{Days: 4, Locked: true})
		time.Sleep(time.Minute)
		h.restart()
		h.add2(keepEntry)
		h.verify()
		h.look(keepEntry)
		h.wantUntil(daysFrom(4, lost.created), lost)
	})
}

// What a condition that is not ours, or not True, or of another period says, is not believed.
func TestRememberedRetention(t *testing.T) {
	good := fmt.Sprintf(retainedMessage, "2026-03-04T12:00:00Z", "96h")
	for name, c := range map[string]struct {
		status, message string
		period          int32
		want            bool
	}{
		"ours":                {"True", good, 4, true},
		"not true":            {"False", good, 4, false},
		"of another period":   {"True", good, 5, false},
		"of another text":     {"True", good + " Really.", 4, false},
		"of no time":          {"True", fmt.Sprintf(retainedMessage, "today", "96h"), 4, false},
		"of no period at all": {"True", "Every backup stored until 2026-03-04T12:00:00Z", 4, false},
		"nothing":             {"True", "", 4, false},
	} {
		t.Run(name, func(t *testing.T) {
			u := testObject(kindBackupBucket, "b", "s", withRecord(Policy{Days: c.period, Locked: true}))
			b := decodeBucket(u)
			b.Conditions = []condition{{Type: conditionRetained, Status: c.status, Message: c.message}}
			if _, of := rememberedRetention(b); (of != Policy{}) != c.want {
				t.Errorf("it is believed: %t", of != Policy{})
			}
		})
	}
}

// A missing permission is a gap that is told once, no failure, and not tried more often than at each look.
func TestKeepWithoutPermission(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		time.Sleep(time.Hour)
		h.verify()
		h.tamper(Policy{})
		time.Sleep(time.Second)
		for range 20 {
			h.write(keepEntry, false)
			time.Sleep(time.Second)
		}
		denied := true
		h.refuse = func(operation string) int {
			if denied && operation == "ExtendVersion" {
				return http.StatusForbidden
			}
			return 0
		}
		h.verify()
		clear(h.asked)
		events := h.look(keepEntry)
		h.wantAsked(map[string]int{"ExtendVersion": maxRefusals, "GetVersion": maxRefusals})
		h.wantUnprotected(20)
		if got := eventReasons(events); !slices.Equal(got, []string{"VersionsNotExtended"}) {
			t.Errorf("events %q", got)
		}
		h.wantQueued(true, keepEntry)
		h.verify()
		if message := h.wantCondition("False", retainedPermission); !strings.Contains(message, "s3:PutObjectRetention") || !strings.Contains(message, "20 backups") {
			t.Errorf("the condition says: %s", message)
		}
		for range 3 {
			clear(h.asked)
			time.Sleep(time.Hour)
			h.verify()
			h.wantNoEvents(h.look(keepEntry))
			if n := h.asked["ExtendVersion"]; n > maxRefusals {
				t.Errorf("%d extensions that are refused", n)
			}
		}
		denied = false
		time.Sleep(time.Hour)
		h.verify()
		h.look(keepEntry)
		h.verify()
		h.wantUnprotected(0)
		h.wantCondition("True", "Retained")
	})
}

// One version that is refused does not keep the others from what they should have.
func TestKeepOneOfMany(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		time.Sleep(time.Hour)
		h.verify()
		h.tamper(Policy{})
		time.Sleep(time.Second)
		var all []*version
		for range 10 {
			all = append(all, h.write(keepEntry, false))
			time.Sleep(time.Second)
		}
		// What was stored until an upload's time before a look is known after it, but for what was refused.
		time.Sleep(2 * uploadTime)
		n := 0
		h.refuse = func(operation string) int {
			if operation == "ExtendVersion" {
				if n++; n == 4 {
					return http.StatusForbidden
				}
			}
			return 0
		}
		h.verify()
		h.look(keepEntry)
		for i, v := range all {
			if i != 3 {
				h.wantUntil(daysFrom(4, v.created), v)
			}
		}
		h.wantUntil(time.Time{}, all[3])
		h.wantUnprotected(1)
		time.Sleep(time.Hour)
		h.verify()
		h.look(keepEntry)
		h.wantUntil(daysFrom(4, all[3].created), all[3])
		h.wantUnprotected(0)
	})
}

// What is odd about a single version.
func TestKeepOddVersions(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		time.Sleep(time.Hour)
		h.verify()
		h.tamper(Policy{})
		time.Sleep(time.Second)
		held, century, gone, hidden := h.write(keepEntry, true), h.write(keepEntry, false), h.write(keepEntry, false), h.write(keepEntry, false)
		plain := h.write(keepEntry, false)
		at := time.Now()
		backend := memoryBackend{h.server}
		backend.each(keepBucketName, []string{held.key}, func(v *version) { v.held = true })
		backend.each(keepBucketName, []string{century.key}, func(v *version) { v.until = daysFrom(36500, time.Now()) })
		backend.hide(h.t, keepBucketName, hidden.key)
		time.Sleep(time.Minute)
		h.verify()
		h.refuse = func(operation string) int {
			if operation == "ExtendVersion" && gone != nil {
				backend.with(keepBucketName, func(b *memoryBucket) {
					b.versions = slices.DeleteFunc(b.versions, func(v version) bool { return v.same(*gone) })
				})
				gone = nil
			}
			return 0
		}
		h.look(keepEntry)
		h.wantUntil(daysFrom(4, at), held, hidden, plain)
		h.wantUntil(daysFrom(36500, at), century)
		h.verify()
		h.wantCondition("True", "Retained")
		h.wantUnprotected(0)
		h.wantMetric(0, "bucketwarden_backupbucket_extension_failures_total", keepBucketName)
	})
}

// A store that is throttled or down is tried again, goes on where it was, and is a failure of the look.
func TestKeepTransient(t *testing.T) {
	for name, status := range map[string]int{"throttled": http.StatusTooManyRequests, "down": http.StatusServiceUnavailable} {
		t.Run(name, func(t *testing.T) {
			keepTest(t, 4, func(t *testing.T, h *keepHarness) {
				h.add(keepEntry)
				time.Sleep(time.Hour)
				h.verify()
				h.tamper(Policy{})
				time.Sleep(time.Second)
				var all []*version
				for range 10 {
					all = append(all, h.write(keepEntry, false))
					time.Sleep(time.Second)
				}
				h.verify()
				answered := 4
				h.refuse = func(operation string) int {
					if operation == "ExtendVersion" {
						if answered--; answered < 0 {
							return status
						}
					}
					return 0
				}
				clear(h.asked)
				if again, err := h.pass(t.Context(), h.checker.reconcile, keepEntry, false); err == nil || again != 0 {
					t.Fatalf("again after %s, %v", again, err)
				}
				h.verify()
				h.wantCondition("False", "Pending")
				h.wantUnprotected(6)
				clear(h.asked)
				h.refuse = nil
				h.look(keepEntry)
				h.wantAsked(map[string]int{"ExtendVersion": 6})
				h.wantUntil(daysFrom(4, all[9].created), all[9])
				h.wantUnprotected(0)
			})
		})
	}
}

// Right before the first extension the entry and the bucket are read: what is not live any more, or should have less, is not
// extended.
func TestKeepAsksForLeave(t *testing.T) {
	for name, change := range map[string]func(h *keepHarness){
		"deleted":     func(h *keepHarness) { h.edit(entriesGVR, keepEntry, deleting) },
		"to be moved": func(h *keepHarness) { h.edit(entriesGVR, keepEntry, withOperation(operationMigrate)) },
		"another entry": func(h *keepHarness) {
			h.edit(entriesGVR, keepEntry, func(u *unstructured.Unstructured) { u.SetUID("other") })
		},
		"in another bucket": func(h *keepHarness) {
			h.edit(entriesGVR, keepEntry, set("other", "spec", "bucketName"))
		},
		"another bucket": func(h *keepHarness) {
			h.edit(bucketsGVR, keepBucketName, func(u *unstructured.Unstructured) { u.SetUID("other") })
		},
		"a shorter period":     func(h *keepHarness) { h.edit(bucketsGVR, keepBucketName, withRecord(Policy{Days: 3, Locked: true})) },
		"not locked any more":  func(h *keepHarness) { h.edit(bucketsGVR, keepBucketName, withRecord(Policy{Days: 4})) },
		"not to be locked":     func(h *keepHarness) { h.edit(bucketsGVR, keepBucketName, withPolicy(Policy{Days: 4})) },
		"nothing to be locked": func(h *keepHarness) { h.edit(bucketsGVR, keepBucketName, withPolicy(Policy{})) },
	} {
		t.Run(name, func(t *testing.T) {
			keepTest(t, 4, func(t *testing.T, h *keepHarness) {
				h.add(keepEntry)
				time.Sleep(time.Hour)
				h.verify()
				h.tamper(Policy{})
				time.Sleep(time.Second)
				v := h.write(keepEntry, true)
				time.Sleep(time.Minute)
				h.verify()
				h.sync()
				h.frozen = true
				change(h)
				clear(h.asked)
				if _, err := h.pass(t.Context(), h.checker.reconcile, keepEntry, false); err != nil {
					t.Fatal(err)
				}
				h.wantAsked(map[string]int{})
				h.wantUntil(time.Time{}, v)
			})
		})
	}
}

// An API server that does not answer keeps anything from being extended.
func TestKeepWithoutAPIServer(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		time.Sleep(time.Hour)
		h.verify()
		h.tamper(Policy{})
		time.Sleep(time.Second)
		h.write(keepEntry, true)
		time.Sleep(time.Minute)
		h.verify()
		clear(h.asked)
		h.answer("get", "backupentries", 1, errAPI)
		if _, err := h.pass(t.Context(), h.checker.reconcile, keepEntry, false); err == nil {
			t.Error("no error")
		}
		h.wantAsked(map[string]int{})
	})
}

var errAPI = fmt.Errorf("the API server does not answer")

// A lock that is stronger than anybody asked for makes nothing longer; nor does one that is not recorded, or not asked for.
func TestKeepForeign(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		v := h.write(keepEntry, true)
		time.Sleep(time.Hour)
		h.verify()
		h.tamper(Policy{Days: 100, Locked: true})
		time.Sleep(time.Minute)
		h.verify()
		h.look(keepEntry)
		delete(h.asked, "GetVersion")
		if h.asked["ExtendVersion"] > 0 {
			t.Errorf("requests %v", h.asked)
		}
		h.wantUntil(daysFrom(4, v.created), v)
		h.verify()
		h.wantCondition("True", "Retained")
	})
	keepTest(t, 0, func(t *testing.T, h *keepHarness) {
		h.tamper(Policy{Days: 100, Locked: true})
		h.add(keepEntry)
		h.write(keepEntry, true)
		time.Sleep(3 * 24 * time.Hour)
		h.verify()
		h.look(keepEntry)
		if h.asked["ExtendVersion"] > 0 {
			t.Errorf("requests %v", h.asked)
		}
		h.wantCondition("", "")
	})
}

// A policy that cannot be put back: what is written meanwhile is extended at each look.
func TestKeepWhileNotRepaired(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		time.Sleep(time.Hour)
		h.verify()
		h.look(keepEntry)
		h.tamper(Policy{})
		h.refuse = func(operation string) int {
			if operation == "PutPolicy" || operation == "LockPolicy" || operation == "PutBucketPolicy" {
				return http.StatusForbidden
			}
			return 0
		}
		time.Sleep(time.Minute)
		v := h.write(keepEntry, true)
		time.Sleep(time.Minute)
		if _, err := h.passBucket(keepBucketName); err == nil {
			t.Fatal("it was repaired")
		}
		h.wantCondition("False", "NoPolicy")
		h.look(keepEntry)
		h.wantUntil(daysFrom(4, v.created), v)
	})
}

// Switched off, nothing is asked and nothing is told, but that it is.
func TestKeepSwitchedOff(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		h.verify()
		h.look(keepEntry)
		h.verify()
		h.wantCondition("True", "Retained")
		h.checker.keeper, h.buckets.retention = nil, nil
		h.tamper(Policy{})
		time.Sleep(time.Minute)
		v := h.write(keepEntry, true)
		h.verify()
		h.look(keepEntry)
		h.wantUntil(time.Time{}, v)
		h.wantCondition("Unknown", "SwitchedOff")
	})
}

// An extension that nobody has given leave for, or of what is not the entry's, or for too long, is not made.
func TestExtendGuards(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		v := h.write(keepEntry, true)
		store, err := h.scope.providers["aws"].openObjects(bucketRef{Name: keepBucketName, Region: "eu-1"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		leave := permit{func(context.Context) error { return nil }}
		e := &backupEntry{BucketName: keepBucketName}
		for name, c := range map[string]struct {
			permit permit
			key    string
			until  time.Time
			marker bool
			made   bool
		}{
			"as it should be":  {leave, v.key, daysFrom(4, now), false, true},
			"without leave":    {permit{}, v.key, daysFrom(4, now), false, false},
			"too long":         {leave, v.key, daysFrom(4, now).Add(time.Second), false, false},
			"over":             {leave, v.key, now, false, false},
			"of another entry": {leave, "other/x", daysFrom(4, now), false, false},
			"a delete marker":  {leave, v.key, daysFrom(4, now), true, false},
		} {
			clear(h.asked)
			o := extensionOrder{entry: e, base: keepEntry + "/", now: now, end: daysFrom(4, now), permit: c.permit}
			err := h.keeper.extend(t.Context(), &o, store.(extender), version{key: c.key, id: v.id, marker: c.marker}, c.until, false)
			if (err == nil) != c.made || (h.asked["ExtendVersion"] > 0) != c.made {
				t.Errorf("%s: %v, requests %v", name, err, h.asked)
			}
		}
	})
}

// A look that is urgent does not wait for one that is being made, nor does it come before the cache knows the new period.
func TestKeepUrgent(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		time.Sleep(time.Hour)
		h.verify()
		h.look(keepEntry)
		h.sync()
		obj, _, _ := h.entries.cached.GetByKey(keepEntry)
		h.checker.takePrefix(obj.(*backupEntry))
		wait := func() time.Duration {
			again, err := h.checker.reconcile(t.Context(), cache.ObjectName{Name: keepEntry}, false)
			if err != nil {
				t.Fatal(err)
			}
			return again
		}
		if got := wait(); got != checkBusy {
			t.Errorf("again after %s", got)
		}
		h.ask(Policy{Days: 5, Locked: true})
		h.sync()
		h.frozen = true
		clear(h.asked)
		h.verify()
		if got := wait(); got != checkSoon || h.asked["ListVersions"] > 0 {
			t.Errorf("with an old cache again after %s", got)
		}
		h.frozen = false
		h.sync()
		if got := wait(); got != checkSoon {
			t.Errorf("again after %s", got)
		}
		h.checker.releasePrefix(obj.(*backupEntry))
		h.look(keepEntry)
		h.checker.takePrefix(obj.(*backupEntry))
		if got := wait(); got != checkBusy {
			t.Errorf("again after %s", got)
		}
	})
}
