package main

import (
	"fmt"
	"testing"
	"time"
)

// bucketsWith makes statements of several buckets, each of two: at the begin, and 10 days later with what the bucket is given.
func bucketsWith(second ...*evidence) (in reportInput) {
	in.made = lineAt(20 * 24 * 60)
	for i, e := range second {
		name := fmt.Sprintf("bucket-%d", i+1)
		statements := []*evidence{lineStatement(5, 0, 0, "locked"), e}
		if e.Sequence == 1 {
			statements = statements[1:]
		}
		for _, e := range statements {
			e.Bucket.Name = name
			in.verified = append(in.verified, verifiedEvidence{Name: fmt.Sprintf("%s/%d", name, e.Sequence), Statement: *e})
		}
	}
	return in
}

func TestReportSentence(t *testing.T) {
	const day = 24 * 60
	fine := func() *evidence { return lineStatement(6, 10*day, 0, "locked") }
	// late begins on the third day.
	late := func() *evidence { return lineStatement(1, 10*day, 2*day, "locked") }
	drift := func(from, to int) *evidence {
		return lineStatement(6, 10*day, float64(to), "locked", fmt.Sprintf("verified 0 %d", from), fmt.Sprintf("%d drift", from), fmt.Sprintf("%d repair", to))
	}
	silent := func(from, to int) *evidence {
		return lineStatement(6, 10*day, float64(to), "locked", fmt.Sprintf("verified 0 %d", from))
	}
	open := func() *evidence { return lineStatement(6, 10*day, -1, "open") }
	const period = "From 1 November 2026 to 10 November 2026: "
	for name, c := range map[string]struct {
		in      reportInput
		verdict reportVerdict
		want    string
	}{
		"nothing": {reportInput{made: lineBegin}, verdictNotKnown, "Nothing is proven: no statement could be verified."},
		"one":     {bucketsWith(fine()), verdictLockedAll, period + "the bucket bucket-1 was locked without a gap."},
		"all":     {bucketsWith(fine(), fine(), fine()), verdictLockedAll, period + "all 3 buckets were locked without a gap."},
		"one began later": {bucketsWith(fine(), late()), verdictLockedAll,
			period + "all 2 buckets were locked without a gap, bucket-2 since 3 November 2026, when its evidence begins."},
		"a gap": {bucketsWith(fine(), drift(3*day, 3*day+180), fine()), verdictGaps,
			period + "2 of 3 buckets were locked without a gap; 1 was not for up to 3 h on 4 November 2026 (bucket-2)."},
		"a gap of the only one": {bucketsWith(drift(3*day, 3*day+180)), verdictGaps,
			period + "the bucket bucket-1 was not locked for up to 3 h on 4 November 2026."},
		"a long gap": {bucketsWith(fine(), drift(3*day, 5*day)), verdictGaps,
			period + "1 of 2 buckets was locked without a gap; 1 was not for up to 2 d from 4 November 2026 on (bucket-2)."},
		"a gap of less than a minute": {bucketsWith(fine(), lineStatement(6, 10*day, 100.5, "locked", "verified 0 100", "100 drift", "100.5 repair")), verdictGaps,
			period + "1 of 2 buckets was locked without a gap; 1 was not for up to less than a minute on 1 November 2026 (bucket-2)."},
		"several gaps": {bucketsWith(fine(), lineStatement(6, 10*day, 300, "locked", "verified 0 100", "100 drift", "160 repair", "verified 160 240", "240 drift",
			"300 repair")), verdictGaps,
			period + "1 of 2 buckets was locked without a gap; 1 was not 2 times, for up to 2 h together, first on 1 November 2026 (bucket-2)."},
		"gaps of several": {bucketsWith(drift(day, day+60), drift(2*day, 2*day+60), drift(3*day, 3*day+60), drift(day, day+30), fine()), verdictGaps,
			period + "1 of 5 buckets was locked without a gap; 4 were not, for up to 3 h 30 min together (bucket-1, bucket-2, bucket-3, 1 more)."},
		"never locked": {bucketsWith(fine(), func() *evidence { e := open(); e.Sequence = 1; e.Spec, e.Record = nil, nil; return e }()), verdictGaps,
			period + "1 of 2 buckets was locked without a gap; 1 was not at any time, and nobody asked for a lock there (bucket-2)."},
		"never looked at": {bucketsWith(fine(), func() *evidence { e := lineStatement(1, 10*day, -1, "none"); return e }()), verdictNotKnown,
			period + "1 of 2 buckets was locked without a gap; of bucket-2 it is not known at any time."},
		"one statement alone tells what was before": {bucketsWith(lineStatement(1, 10*day, 0, "locked")), verdictLockedAll,
			period + "the bucket bucket-1 was locked without a gap."},
		"not known": {bucketsWith(fine(), silent(3*day, 5*day)), verdictNotKnown,
			period + "1 of 2 buckets was locked without a gap; of 1 it is not known for 2 d (bucket-2)."},
		"the only one is not known": {bucketsWith(silent(3*day, 5*day)), verdictNotKnown,
			period + "the bucket bucket-1 was locked as far as it is known, and for 2 d it is not known."},
		"several are not known": {bucketsWith(silent(1, day), silent(1, 2*day)), verdictNotKnown,
			period + "none of the 2 buckets is proven to have been locked without a gap; of 2 it is not known all the time (bucket-1, bucket-2)."},
		"both": {bucketsWith(fine(), drift(3*day, 3*day+180), silent(1, day+1)), verdictGaps, period +
			"1 of 3 buckets was locked without a gap; 1 was not for up to 3 h on 4 November 2026 (bucket-2); of 1 it is not known for 1 d (bucket-3)."},
		"both in one": {bucketsWith(lineStatement(6, 10*day, 400, "locked", "verified 0 100", "200 drift", "400 repair")), verdictGaps, period +
			"the bucket bucket-1 was not locked for up to 3 h 20 min on 1 November 2026, and for 1 h 40 min it is not known."},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReport(c.in)
			if r.Sentence != c.want || r.Verdict != c.verdict {
				t.Errorf("got  %d %s\nwant %d %s", r.Verdict, r.Sentence, c.verdict, c.want)
			}
		})
	}
}

// Faults of the evidence come first, whatever it says; not locked is no fault of the evidence.
func TestReportSentenceOfFaults(t *testing.T) {
	in := bucketsWith(lineStatement(6, 10*24*60, 0, "locked"))
	in.findings = []evidenceFinding{{Bucket: "bucket-1", Sequence: 5, Name: "5.json", Kind: findingUnlocked}}
	if r := newReport(in); r.Verdict != verdictLockedAll || len(r.Findings) != 0 {
		t.Errorf("%+v", r)
	}
	for _, c := range []struct {
		findings []evidenceFinding
		want     string
	}{
		{[]evidenceFinding{{Name: "7.json", Kind: findingSignature}}, "1 statement is not genuine or does not fit the others."},
		{[]evidenceFinding{{Name: "7.json", Kind: findingUnreadable}, {Name: "7.json", Kind: findingName}}, "1 statement is not genuine or does not fit the others."},
		{[]evidenceFinding{{Bucket: "bucket-1", Sequence: 7, Kind: findingMissing}}, "statements are missing in 1 place."},
		{[]evidenceFinding{{Name: "7.json", Kind: findingFork}, {Name: "8.json", Kind: findingClock}, {Kind: findingMissing, Name: "9.json"},
			{Kind: findingMissing, Name: "9.json"}, {Kind: findingMissing, Bucket: "b"}},
			"2 statements are not genuine or do not fit the others, and statements are missing in 2 places."},
	} {
		in.findings = c.findings
		r := newReport(in)
		want := "This evidence has faults: " + c.want + " What could be verified says: From 1 November 2026 to 10 November 2026: the bucket bucket-1 was locked without a gap."
		if r.Verdict != verdictNotWhole || r.Sentence != want {
			t.Errorf("got  %s\nwant %s", r.Sentence, want)
		}
	}
}

func TestDurationText(t *testing.T) {
	for d, want := range map[time.Duration]string{time.Second: "less than a minute", time.Minute: "1 min", 90 * time.Minute: "1 h 30 min", 24 * time.Hour: "1 d",
		26*time.Hour + 5*time.Minute: "1 d 2 h", 24*time.Hour + 5*time.Minute: "1 d", 3 * time.Hour: "3 h", 800 * time.Hour: "33 d 8 h"} {
		if got := durationText(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
