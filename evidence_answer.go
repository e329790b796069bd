// The sentence at the top of a report: were the buckets locked all the time, and if not, which, when and for how long.
//
// Rules:
//   - Evidence that is not whole comes first, then what was not locked, then what is not known.
//   - A gap is told as long as it can have been: for up to 3 h.
//   - Days are those of UTC.

package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// answer is the verdict and the sentence.
func (r *report) answer() (reportVerdict, string) {
	verdict, sentence := r.lockAnswer()
	// What is missing ahead of a statement may be told twice: as a number and as a day.
	altered, missing := map[string]bool{}, map[string]bool{}
	for _, f := range r.Findings {
		of := altered
		if f.Kind == findingMissing {
			of = missing
		}
		of[cmp.Or(f.Name, fmt.Sprintf("%s %d", f.Bucket, f.Sequence))] = true
	}
	var parts []string
	if n := len(altered); n > 0 {
		parts = append(parts, countText(n, "statement is not genuine or does not fit the others",
			"statements are not genuine or do not fit the others"))
	}
	if n := len(missing); n > 0 {
		parts = append(parts, "statements are missing in "+countText(n, "place", "places"))
	}
	if len(parts) == 0 {
		return verdict, sentence
	}
	return verdictNotWhole, "This evidence has faults: " + strings.Join(parts, ", and ") + ". What could be verified says: " + sentence
}

func (r *report) lockAnswer() (reportVerdict, string) {
	if len(r.Buckets) == 0 {
		return verdictNotKnown, "Nothing is proven: no statement could be verified."
	}
	var open, unknown, late, fine []*reportBucket
	for _, b := range r.Buckets {
		switch {
		case b.open():
			open = append(open, b)
		case b.Unknown > 0 || b.Locked == 0:
			unknown = append(unknown, b)
		default:
			fine = append(fine, b)
			if !b.Begins.IsZero() {
				late = append(late, b)
			}
		}
	}
	all := len(r.Buckets)
	var clauses []string
	verdict := verdictLockedAll
	switch {
	case len(fine) == all && all == 1:
		clauses = append(clauses, fmt.Sprintf("the bucket %s was locked without a gap", fine[0].Name))
	case len(fine) == all:
		clauses = append(clauses, fmt.Sprintf("all %d buckets were locked without a gap", all))
	case len(fine) == 0 && all > 1:
		clauses = append(clauses, fmt.Sprintf("none of the %d buckets is proven to have been locked without a gap", all))
	case len(fine) == 1:
		clauses = append(clauses, fmt.Sprintf("1 of %d buckets was locked without a gap", all))
	case len(fine) > 1:
		clauses = append(clauses, fmt.Sprintf("%d of %d buckets were locked without a gap", len(fine), all))
	}
	if len(late) > 0 && len(fine) == all {
		clauses[0] += ", " + beginText(late)
	}
	if len(unknown) > 0 {
		verdict = verdictNotKnown
	}
	if len(open) > 0 {
		verdict = verdictGaps
		clauses = append(clauses, r.openText(open, all == 1))
	}
	switch of := unknown; {
	case len(of) == 1 && of[0].Locked == 0:
		clauses = append(clauses, fmt.Sprintf("of %s it is not known at any time", of[0].Name))
	case len(of) == 1 && all == 1:
		clauses = append(clauses, fmt.Sprintf("the bucket %s was locked as far as it is known, and for %s it is not known", of[0].Name,
			durationText(of[0].Unknown)))
	case len(of) == 1:
		clauses = append(clauses, fmt.Sprintf("of 1 it is not known for %s (%s)", durationText(of[0].Unknown), of[0].Name))
	case len(of) > 1:
		clauses = append(clauses, fmt.Sprintf("of %d it is not known all the time (%s)", len(of), namesText(of)))
	}
	return verdict, periodText(r.From, r.LastDay()) + ": " + strings.Join(clauses, "; ") + "."
}

// openText says of buckets that they were not locked.
func (r *report) openText(open []*reportBucket, only bool) string {
	if len(open) > 1 {
		var sum time.Duration
		for _, b := range open {
			sum += b.Open
		}
		return fmt.Sprintf("%d were not, for up to %s together (%s)", len(open), durationText(sum), namesText(open))
	}
	b := open[0]
	subject, more := "1 was not", ""
	if only {
		subject = "the bucket " + b.Name + " was not locked"
	}
	switch {
	case b.Locked == 0 && b.Unknown == 0:
		subject += " at any time"
	case b.Opens == 1 && b.Open < 24*time.Hour:
		subject += fmt.Sprintf(" for up to %s on %s", durationText(b.Open), dateText(b.OpenAt))
	case b.Opens == 1:
		subject += fmt.Sprintf(" for up to %s from %s on", durationText(b.Open), dateText(b.OpenAt))
	default:
		subject += fmt.Sprintf(" %d times, for up to %s together, first on %s", b.Opens, durationText(b.Open), dateText(b.OpenAt))
	}
	if b.NoLock {
		more = ", and nobody asked for a lock there"
	}
	if b.Unknown > 0 {
		more += fmt.Sprintf(", and for %s it is not known", durationText(b.Unknown))
	}
	if !only {
		more += " (" + b.Name + ")"
	}
	return subject + more
}

func beginText(late []*reportBucket) string {
	if len(late) == 1 {
		return fmt.Sprintf("%s since %s, when its evidence begins", late[0].Name, dateText(late[0].Begins))
	}
	return fmt.Sprintf("%d of them since their evidence begins (%s)", len(late), namesText(late))
}

// namesText lists a few names.
func namesText(of []*reportBucket) string {
	const most = 3
	var names []string
	for _, b := range of[:min(most, len(of))] {
		names = append(names, b.Name)
	}
	if more := len(of) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

func periodText(from, to time.Time) string {
	if dateText(from) == dateText(to) {
		return "On " + dateText(from)
	}
	return "From " + dateText(from) + " to " + dateText(to)
}

func dateText(t time.Time) string { return t.UTC().Format("2 January 2006") }

// reportTime is a time in a table.
func reportTime(t time.Time) string { return t.UTC().Format("2 Jan 2006 15:04") }

// durationText is a length of time in its two largest units.
func durationText(d time.Duration) string {
	if d < time.Minute {
		return "less than a minute"
	}
	days, hours, minutes := int(d/(24*time.Hour)), int(d/time.Hour)%24, int(d/time.Minute)%60
	var parts []string
	for _, of := range []struct {
		n    int
		unit string
	}{{days, "d"}, {hours, "h"}, {minutes, "min"}} {
		if of.n > 0 && len(parts) < 2 {
			parts = append(parts, fmt.Sprintf("%d %s", of.n, of.unit))
		} else if len(parts) == 1 {
			break
		}
	}
	return strings.Join(parts, " ")
}
