package main

import (
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// reportScene is evidence of three buckets for 27 days, a statement a day. change may change each statement.
func reportScene(change func(e *evidence, bucket, day int)) reportInput {
	in := reportInput{made: lineAt(28 * 24 * 60), program: "v1.2.3"}
	yes, none := true, int64(0)
	for bucket, name := range []string{"seed-eu1-backups", "seed-eu2-backups", "seed-us1-backups"} {
		for day := range 27 {
			at := lineAt(float64(day*24*60) + 5)
			since, checked := lineAt(-30*24*60), at.Add(-20*time.Minute)
			e := evidence{Sequence: int64(day + 10), Reason: evidenceDaily, Time: at, Observed: &at, VerifiedSince: &since, VerifyInterval: 60, Writer: "v1.2.3",
				Bucket: evidenceBucket{Name: name, Store: "s3", Endpoint: "s3.eu-central-1.amazonaws.com", Region: "eu-central-1"}, Hardened: &yes,
				Policy: &evidencePolicy{Days: 4, Locked: true}, Spec: &evidencePolicy{Days: 4, Locked: true}, Record: &evidencePolicy{Days: 4, Locked: true},
				UnprotectedVersions: &none, NotClaimed: evidenceNotClaimed}
			for _, attack := range [][2]string{{"delete", "bucket"}, {"shorten", "bucket"}, {"delete", "entry"}} {
				e.Probe = append(e.Probe, evidenceAttack{Time: at.Add(-time.Hour), Attack: attack[0], Credentials: attack[1], Outcome: "refused by the lock"})
			}
			for n := range 12 + bucket*7 {
				full, delta, until := at.Add(-time.Duration(n+1)*time.Hour), at.Add(-time.Duration(n*7)*time.Minute), at.Add(time.Duration(60+n*11%37)*time.Hour)
				revision := int64(1000*n + day)
				e.Entries = append(e.Entries, evidenceEntry{Name: fmt.Sprintf("shoot--project-%d--cluster-%d--0d4ac9a3-55be-4f53-8a8e-0ab9a6bb%02d%02d", bucket, n, bucket, n),
					Checked: &checked, Full: &full, Delta: &delta, Revision: &revision, LockedUntil: &until, Snapshots: 290, Bytes: 123 << 20})
			}
			if change != nil {
				change(&e, bucket, day)
			}
			in.verified = append(in.verified, verifiedEvidence{Name: fmt.Sprintf("%s/%d.json", name, day), Statement: e,
				KeyID: strings.Repeat("1f9c", 16)})
		}
	}
	return in
}

// gapScene has a drift, a day without looks, a cluster without a lock and one that is not known.
func gapScene() reportInput {
	return reportScene(func(e *evidence, bucket, day int) {
		at := func(day int, hour float64) time.Time { return lineAt(float64(day)*24*60 + hour*60) }
		switch {
		case bucket == 0 && day >= 12:
			since := at(11, 15.2)
			e.VerifiedSince = &since
			if day == 12 {
				n := int64(3)
				e.UnprotectedVersions = &n
				e.Events = []evidenceEvent{
					{at(11, 12.1), evidenceDrift, "the bucket's default retention was removed: none instead of locked retention of 96h"},
					{at(11, 12.2), evidenceRefusal, "spec.providerConfig asks for locked retention of 24h: a locked policy cannot be shortened"},
					{at(11, 15.2), evidenceRepair, "restored locked retention of 96h"}}
				e.Interruption = "the policy was found weaker"
				e.Earlier = []evidenceStretch{{at(-30, 0), at(11, 12.08)}}
			}
			if day == 26 {
				e.Entries[4].Unlocked, e.Entries[4].LockedUntil = true, nil
				e.Entries[5] = evidenceEntry{Name: e.Entries[5].Name}
				e.Entries[6].Held, e.Entries[6].LockedUntil = true, nil
			}
		case bucket == 2 && day >= 20:
			since := at(19, 8)
			e.VerifiedSince = &since
			if day == 20 {
				e.Events = []evidenceEvent{{at(19, 8), evidenceGap, "Nobody has heard from the store about the bucket for 10h0m0s."}}
				e.Interruption = "nobody heard from the store about the bucket until 20 Nov 08:00"
				e.Earlier = []evidenceStretch{{at(-30, 0), at(18, 22)}}
				e.Probe[2].Outcome, e.Probe[2].Message = "refused for another reason", "the credentials may not delete at all"
			}
		}
	})
}

// tamperedScene lacks statements, and has findings that say so.
func tamperedScene() reportInput {
	in := gapScene()
	var kept []verifiedEvidence
	for _, v := range in.verified {
		if v.Name != "seed-eu1-backups/12.json" && v.Name != "seed-eu2-backups/17.json" {
			kept = append(kept, v)
		}
	}
	in.verified = kept
	in.findings = []evidenceFinding{
		{Bucket: "seed-eu1-backups", Name: ".bucketwarden/evidence/2026/11/13/000022.json", Kind: findingSignature, Message: "the signature does not fit: the content was changed after it was signed"},
		{Bucket: "seed-eu2-backups", Sequence: 27, Kind: findingMissing, Message: "statement 27 is missing: 28 names its digest as the one before"},
		{Bucket: "seed-eu1-backups", Sequence: 23, Kind: findingUnlocked, Message: "not locked"},
	}
	return in
}

func renderReport(t *testing.T, in reportInput) string {
	t.Helper()
	var page strings.Builder
	if err := newReport(in).write(&page); err != nil {
		t.Fatal(err)
	}
	return page.String()
}

// With REPORT_PAGES=directory the pages are left there, to be looked at.
func TestReportPages(t *testing.T) {
	for name, c := range map[string]struct {
		in       reportInput
		headline string
		shows    []string
		not      []string
	}{
		"fine": {reportScene(nil), "Locked without a gap", []string{"all 3 buckets were locked without a gap", "There was no time at which a bucket was not locked",
			"The statements name no event in this time", "57 clusters have such a time"}, []string{`class="gap" d=`, `class="nk" d=`, "What is wrong with the evidence"}},
		"gaps": {gapScene(), "Not locked all the time", []string{"1 was not for up to 3 h 7 min on 12 November 2026 (seed-eu1-backups)", "restored locked retention of 96h",
			"nobody heard from the store about the bucket until 20 Nov 08:00", "Left without retention", "no end (legal hold)", "and 27 more clusters"},
			[]string{"What is wrong with the evidence"}},
		"tampered": {tamperedScene(), "The evidence is not whole", []string{"This evidence has faults: 1 statement is not genuine", "000022.json", "statement 27 is missing"}, nil},
		"nothing":  {reportInput{made: lineBegin}, "Not known all the time", []string{"Nothing is proven"}, []string{"<h2>The buckets</h2>", "<h2>All clusters</h2>"}},
	} {
		page := renderReport(t, c.in)
		if directory := os.Getenv("REPORT_PAGES"); directory != "" {
			if err := os.WriteFile(filepath.Join(directory, name+".html"), []byte(page), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		answer, _, _ := strings.Cut(page, "</section>")
		if !strings.Contains(answer, "<h1>"+c.headline+"</h1>") || !strings.Contains(page, "<title>"+c.headline+":") {
			t.Errorf("%s has not the headline %q: %s", name, c.headline, answer)
		}
		for _, text := range c.shows {
			if !strings.Contains(html.UnescapeString(page), text) {
				t.Errorf("%s does not show %q", name, text)
			}
		}
		for _, text := range c.not {
			if strings.Contains(page, text) {
				t.Errorf("%s shows %q", name, text)
			}
		}
		checkSelfContained(t, page)
	}
}

// checkSelfContained looks for anything in a page that loads or runs something.
func checkSelfContained(t *testing.T, page string) {
	t.Helper()
	if found := regexp.MustCompile(`(?i)<(script|link|iframe|img|object|embed|form|a|base|image|use|foreignobject)\b|\b(src|href|srcset|action)=|@import|url\([^#]|\bon[a-z]+=|javascript:`).
		FindString(page); found != "" {
		t.Errorf("the page has %q", found)
	}
	for _, once := range []string{"<!DOCTYPE html>", `<html lang="en">`, "<title>", `content="default-src 'none'; style-src 'unsafe-inline'"`, "<h1>"} {
		if !strings.Contains(page, once) {
			t.Errorf("the page lacks %s", once)
		}
	}
}

var tags = regexp.MustCompile(`<[^>]*>`)

// Names and messages in evidence are chosen by others: they change no tag of the page, and none of its letters that turn others around.
func TestReportOfHostileEvidence(t *testing.T) {
	for _, evil := range []string{`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `</title></svg></style><script>`, `]]><!--`,
		`{{.Sentence}}`, "line\nbreak\ttab\x00\x1b[31m", "\u202eevil\u2066\u200b", "\xff\xfe", `javascript:alert(1)`, `&lt;b&gt;`, strings.Repeat("<b>", 5000)} {
		page := func(text string) string {
			in := tamperedScene()
			for i := range in.verified {
				e := &in.verified[i].Statement
				e.Bucket.Name, e.Bucket.Region = e.Bucket.Name+"-of-a-long-name-"+text, text
				e.Interruption += text
				for k := range e.Probe {
					e.Probe[k].Attack, e.Probe[k].Credentials = e.Probe[k].Attack+text, e.Probe[k].Credentials+text
				}
				e.Entries = slices.Clone(e.Entries)
				for k := range e.Entries {
					e.Entries[k].Name += text
				}
				e.Events = append(slices.Clone(e.Events), evidenceEvent{Time: e.Time, Kind: "kind" + text, Message: text})
				e.History = append(e.History, evidenceUpdate{Update: "lock", Time: e.Time, User: "user" + text})
				e.NotClaimed = append(slices.Clone(e.NotClaimed), text)
			}
			for i := range in.findings {
				in.findings[i].Name, in.findings[i].Message, in.findings[i].Kind = "name"+text, text, in.findings[i].Kind+text
			}
			in.program = text
			return renderReport(t, in)
		}
		got, want := page(evil), page("x")
		gotTags, wantTags := tags.FindAllString(got, -1), tags.FindAllString(want, -1)
		if !slices.Equal(gotTags, wantTags) {
			for i := range gotTags {
				if i >= len(wantTags) || gotTags[i] != wantTags[i] {
					t.Errorf("%.30q: tag %d is %s", evil, i, gotTags[i])
					break
				}
			}
		}
		if at := strings.IndexFunc(got, func(r rune) bool {
			return r < ' ' && r != '\n' || r == 0xfffd || r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202e || r >= 0x2060 && r <= 0x206f
		}); at >= 0 {
			t.Errorf("%.30q: a control character is in the page: %q", evil, got[max(0, at-20):at+10])
		}
	}
}

// 400 days of 1,000 clusters, and of many buckets in which something happens all the time: the report stays small, nothing is left
// out without being counted.
func TestReportSize(t *testing.T) {
	const most = 2 << 20
	entries := func(n int) (all []evidenceEntry) {
		for i := range n {
			full, until, revision := lineAt(400*24*60-float64(i)), lineAt(402*24*60+float64(i)), int64(i)
			all = append(all, evidenceEntry{Name: fmt.Sprintf("shoot--some-project--some-cluster-%06d--0d4ac9a3-55be-4f53-8a8e-0ab9a6bb1d9f", i), Checked: &full, Full: &full,
				Delta: &full, Revision: &revision, LockedUntil: &until, Snapshots: 300})
		}
		return all
	}
	one := reportInput{made: lineAt(400 * 24 * 60)}
	shared := entries(1000)
	for day := range 400 {
		e := lineStatement(int64(day+1), float64(day*24*60), 0, "locked")
		e.Entries = shared
		one.verified = append(one.verified, verifiedEvidence{Statement: *e})
	}
	many := reportInput{made: lineAt(400 * 24 * 60)}
	few := entries(50)
	for bucket := range 100 {
		for day := range 400 {
			at := float64(day * 24 * 60)
			e := lineStatement(int64(day+1), at, at-60, "locked", fmt.Sprintf("%g drift", at-300), fmt.Sprintf("%g repair", at-60), fmt.Sprintf("%g gap", at-800))
			e.Bucket.Name, e.Entries = fmt.Sprintf("a-seed-with-a-long-name-%d", bucket), few
			many.verified = append(many.verified, verifiedEvidence{Statement: *e})
		}
		many.findings = append(many.findings, evidenceFinding{Kind: findingMissing, Message: strings.Repeat("m", 1000)})
	}
	for name, in := range map[string]reportInput{"one bucket": one, "many buckets": many} {
		page := renderReport(t, in)
		t.Logf("%s: %d bytes", name, len(page))
		if len(page) > most {
			t.Errorf("%s: the page has %d bytes", name, len(page))
		}
		r := newReport(in)
		if len(r.Entries)+r.EntriesMore != map[string]int{"one bucket": 1000, "many buckets": 5000}[name] || name == "many buckets" &&
			(r.EventsMore == 0 || r.GapsMore == 0 || r.FindingsMore != 50) {
			t.Errorf("%s: %d and %d clusters, %d events, %d gaps and %d findings more", name, len(r.Entries), r.EntriesMore, r.EventsMore, r.GapsMore, r.FindingsMore)
		}
	}
}

// A gap can be seen however short it is, and nothing hides it.
func TestReportShowsShortGaps(t *testing.T) {
	in := reportInput{made: lineAt(400 * 24 * 60)}
	for day := range 400 {
		e := lineStatement(int64(day+1), float64(day*24*60), 0, "locked")
		if day > 200 {
			*e = *lineStatement(int64(day+1), float64(day*24*60), 200*24*60+11, "locked")
		}
		if day == 201 {
			e.Earlier = []evidenceStretch{{lineAt(0), lineAt(200*24*60 + 9)}}
			e.Events = []evidenceEvent{{lineAt(200*24*60 + 10), evidenceDrift, "weakened"}}
		}
		in.verified = append(in.verified, verifiedEvidence{Statement: *e})
	}
	r := newReport(in)
	if len(r.Gaps) != 1 || r.Gaps[0].length() != 2*time.Minute {
		t.Fatalf("%+v", r.Gaps)
	}
	if line := r.line(r.Buckets[0]); !strings.Contains(line.Open, fmt.Sprintf("h%dv", minGap)) || len(line.Numbers) != 1 || line.Unknown != "" {
		t.Errorf("%+v", line)
	}
}

// Statements that are asked for by hand repeat what those of the chain say: events and attacks count once.
func TestReportCountsOnce(t *testing.T) {
	in := reportInput{made: lineAt(2 * 24 * 60)}
	for i, sequence := range []int64{1, 2, 0, 0, 3} {
		e := lineStatement(sequence, float64(i*100), 0, "locked")
		if i > 0 {
			e.Events = []evidenceEvent{{lineAt(50), evidenceRefusal, "refused"}, {lineAt(50), evidenceDenial, "denied"}, {lineAt(60), evidenceDenial, "denied"}}
			e.Probe = []evidenceAttack{{Time: lineAt(40), Attack: "delete", Credentials: "bucket", Outcome: "refused by the lock"}}
		}
		in.verified = append(in.verified, verifiedEvidence{Statement: *e})
	}
	r := newReport(in)
	if len(r.Events) != 2 || r.Events[0].Times+r.Events[1].Times != 3 || len(r.Attacks) != 1 || r.Attacks[0].Lock != 1 {
		t.Errorf("%+v, %+v", r.Events, r.Attacks)
	}
}
