package main

import (
	"testing"
	"testing/synctest"
	"time"
)

// The daemon's log remembers until when a bucket was verified before a drift, a silence or a restart, and until it is told.
func TestEvidenceLogRemembersEarlierTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newEvidenceLog()
		begin := time.Now()
		promised, limit := Policy{Days: 4, Locked: true}, 15*time.Minute
		look := func(after time.Duration, live Policy) {
			time.Sleep(after)
			l.saw("bucket", BucketState{Exists: true, Policy: live}, promised, limit, nil)
		}
		want := func(from, until time.Duration) {
			t.Helper()
			notes, _ := l.get("bucket")
			if n := len(notes.earlier); n == 0 || !notes.earlier[n-1].From.Equal(begin.Add(from)) || !notes.earlier[n-1].Until.Equal(begin.Add(until)) {
				t.Errorf("%+v, want the last to be %v to %v", notes.earlier, from, until)
			}
		}
		look(0, promised)
		look(time.Minute, promised)
		look(time.Minute, Policy{}) // drift
		want(0, time.Minute)
		look(time.Minute, Policy{}) // still
		want(0, time.Minute)
		look(time.Minute, promised) // repaired
		look(time.Minute, promised)
		look(time.Hour, promised) // silence
		want(4*time.Minute, 5*time.Minute)
		l.told("bucket", time.Now(), 0)
		if notes, _ := l.get("bucket"); len(notes.earlier) != 0 || !notes.since.Equal(time.Now()) {
			t.Errorf("after it was told: %+v", notes)
		}

		// A restart: an earlier process had verified the bucket until some time before.
		begin = time.Now()
		l = newEvidenceLog()
		look(time.Hour, promised)
		for range 2 {
			l.goOn("bucket", begin.Add(-time.Hour), begin.Add(time.Minute))
		}
		want(-time.Hour, time.Minute)
		if notes, _ := l.get("bucket"); len(notes.earlier) != 1 || !notes.since.Equal(time.Now()) {
			t.Errorf("after a restart: %+v", notes)
		}

		// While the store does not answer, what was verified before is told.
		time.Sleep(time.Hour)
		notes, _ := l.get("bucket")
		notes.since = notes.since.Add(-time.Minute)
		var e evidence
		notes.offset = time.Second
		e.describeAnswer(notes, time.Now(), promised, func(string, ...any) {})
		if n := len(e.Earlier); n != 2 || !e.Earlier[1].Until.Equal(begin.Add(time.Hour-time.Second).Truncate(time.Second)) {
			t.Errorf("%+v", e.Earlier)
		}
	})
}
