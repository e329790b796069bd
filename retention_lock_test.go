package main

import (
	"net/http"
	"slices"
	"testing"
	"time"
)

// A link that is left to the next verification is not known: what is remembered of the chain ends before it.
func TestPlanRetentionLeavesALink(t *testing.T) {
	ago := func(d time.Duration) time.Time { return retentionNow.Add(-d) }
	found := retentionChain(t, "F 0-100 49h", "I 101-110 50m", "I 111-120 30m", "I 121-130 20m")
	p := planRetention(found, retentionKnown{policy: Policy{Days: 4, Locked: true}, goodSince: ago(60 * time.Hour), goodUntil: ago(40 * time.Minute), waits: true}, &entryMemory{})
	if got := p.described(); got != "0 chain +96h0m0s ask" || !p.touched[0] || p.restored != 4 {
		t.Errorf("steps %s, restored %d", got, p.restored)
	}
	if got := p.chains[0]; got.links != 2 || got.hash != hashLinks(found.links[:2]) || !got.until.Equal(ago(50*time.Minute).AddDate(0, 0, 4)) {
		t.Errorf("after it %d links are known, until %s", got.links, got.until)
	}
	if p.done = len(p.steps); p.lock().known {
		t.Error("it is told until when the chain is locked, though that is not known of each link")
	}
}

// Until when the chain is locked is told once all links of it were extended, and only if they were.
func TestKeepTellsTheLock(t *testing.T) {
	const many, lockedUntil = 2100, "bucketwarden_backupentry_chain_locked_until_timestamp_seconds"
	for name, c := range map[string]struct {
		at    int // the extension at which something happens
		also  func(h *keepHarness, newest *version)
		deny  int
		known bool
	}{
		"all are extended": {known: true},
		"one is refused":   {at: many - 5, deny: http.StatusForbidden},
		"one is gone": {at: many - 5, also: func(h *keepHarness, newest *version) {
			memoryBackend{h.server}.with(keepBucketName, func(b *memoryBucket) {
				b.versions = slices.DeleteFunc(b.versions, func(v version) bool { return v.same(*newest) })
			})
		}},
		"the store is down for a while": {at: many - 5, deny: http.StatusServiceUnavailable, known: true},
	} {
		t.Run(name, func(t *testing.T) {
			keepTest(t, 4, func(t *testing.T, h *keepHarness) {
				first, newest := h.grow(many)
				extensions, down := 0, c.deny == http.StatusServiceUnavailable
				h.refuse = func(operation string) int {
					if operation != "ExtendVersion" {
						return 0
					}
					if extensions++; extensions != c.at && (!down || extensions < c.at) {
						return 0
					}
					if c.also != nil {
						c.also(h, newest)
					}
					return c.deny
				}
				clear(h.asked)
				passes, failed := 0, 0
				for {
					again, err := h.pass(t.Context(), h.checker.reconcile, keepEntry, false)
					if passes++; err != nil {
						failed, down = failed+1, false
						time.Sleep(time.Minute)
						continue
					}
					if again != keepPause {
						break
					}
					if h.has(lockedUntil, keepBucketName, keepEntry) {
						t.Fatal("it is told until when the chain is locked, though that is not known")
					}
					time.Sleep(again)
				}
				if passes < 2 || (failed > 0) != (c.deny == http.StatusServiceUnavailable) {
					t.Errorf("%d passes, %d of them failed", passes, failed)
				}
				if got := h.has(lockedUntil, keepBucketName, keepEntry); got != c.known {
					t.Errorf("it is told until when the chain is locked: %t, want %t", got, c.known)
				}
				if got := h.metrics.entries.states[keepEntry].memory.kept[0].links; (got == many) != c.known || got > 0 && !c.known {
					t.Errorf("remembered are %d links", got)
				}
				if want := float64(first.AddDate(0, 0, 14).Unix()); c.known && h.metric(lockedUntil, keepBucketName, keepEntry) != want {
					t.Errorf("it is locked until %v, want %v", h.metric(lockedUntil, keepBucketName, keepEntry), want)
				}
			})
		})
	}
}

// A plan that was left for too long is made anew, and what it has not come to is extended then.
func TestKeepAfterAnOldPlan(t *testing.T) {
	const many = 2100
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		var all []*version
		for i := range many {
			all = append(all, h.write(keepEntry, i == 0))
			time.Sleep(time.Second)
		}
		time.Sleep(uploadTime)
		h.verify()
		h.look(keepEntry)
		h.ask(Policy{Days: 14, Locked: true})
		h.verify()
		clear(h.asked)
		if again, err := h.pass(t.Context(), h.checker.reconcile, keepEntry, false); again != keepPause || err != nil {
			t.Fatalf("again after %s, %v", again, err)
		}
		if n := h.asked["ExtendVersion"]; n >= many {
			t.Fatalf("%d versions were extended in one pass", n)
		}
		time.Sleep(plannedTime + time.Minute)
		h.look(keepEntry)
		for _, v := range all {
			h.wantUntil(daysFrom(14, v.created), v)
		}
		if n := h.asked["ExtendVersion"]; n != many {
			t.Errorf("%d extensions of %d versions", n, many)
		}
	})
}

// What the condition has told before a restart is not believed of a period that has grown since, or of an entry that came later.
func TestKeepRemembersNoMore(t *testing.T) {
	const late = "shoot--a--c--2"
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		time.Sleep(time.Hour)
		h.verify()
		v := h.write(keepEntry, true)
		h.tamper(Policy{})
		brought := h.write(late, true)
		h.tamper(Policy{Days: 4, Locked: true})
		time.Sleep(time.Hour)
		h.verify()
		h.look(keepEntry)
		h.verify()
		if told, _ := rememberedRetention(decodeBucket(h.metadata())); !told.After(brought.created) {
			t.Fatalf("the condition tells %s", told)
		}
		h.add(late)
		h.restart()
		h.add2(keepEntry)
		h.add2(late)
		h.verify()
		h.look(late)
		h.wantUntil(daysFrom(4, brought.created), brought)

		h.ask(Policy{Days: 7, Locked: true})
		h.verify()
		h.look(keepEntry)
		h.wantUntil(daysFrom(7, v.created), v)
	})
}

// Versions in GOVERNANCE from before, which the store lets nobody change, do not keep what was written in a later gap from being
// extended.
func TestKeepGapBehindGovernance(t *testing.T) {
	keepTest(t, 0, func(t *testing.T, h *keepHarness) {
		h.ask(Policy{Days: 4})
		h.verify()
		h.add(keepEntry)
		for i := range 3 * maxRefusals {
			h.write(keepEntry, i == 0)
		}
		h.ask(Policy{Days: 4, Locked: true})
		h.verify()
		h.look(keepEntry)
		time.Sleep(time.Hour)
		h.verify()
		h.tamper(Policy{})
		time.Sleep(time.Second)
		var gap []*version
		for i := range 2 * maxRefusals {
			gap = append(gap, h.write(keepEntry, i == 0))
		}
		time.Sleep(time.Minute)
		h.verify()
		clear(h.asked)
		h.look(keepEntry)
		h.wantUntil(daysFrom(4, gap[0].created), gap...)
		if n := h.asked["ExtendVersion"]; n > len(gap)+4*maxRefusals {
			t.Errorf("%d extensions are tried", n)
		}
		h.verify()
		h.wantCondition("False", retainedGovernance)
	})
}

// A retention that is too short is not enough, however it came there.
func TestKeepTooShort(t *testing.T) {
	keepTest(t, 4, func(t *testing.T, h *keepHarness) {
		h.add(keepEntry)
		short, longer := h.write(keepEntry, true), h.write(keepEntry, false)
		memoryBackend{h.server}.each(keepBucketName, []string{short.key}, func(v *version) { v.until = short.created.Add(24 * time.Hour) })
		memoryBackend{h.server}.each(keepBucketName, []string{longer.key}, func(v *version) { v.until = daysFrom(5, longer.created) })
		time.Sleep(time.Minute)
		h.restart()
		h.add2(keepEntry)
		h.verify()
		clear(h.asked)
		h.look(keepEntry)
		h.wantAsked(map[string]int{"GetVersion": 2, "ExtendVersion": 1})
		h.wantUntil(daysFrom(4, short.created), short)
		h.wantUntil(daysFrom(5, longer.created), longer)
	})
}
