// bucketwarden evidence report: a page for people of what the statements about buckets say.
//
// Rules:
//   - The page goes to standard output, the answer of it in one sentence also to standard error.
//   - Statements behind the last day that is asked for count for what they say of that day. What is wrong with them does not.

package main

import (
	"bufio"
	"context"
	"time"
)

// report writes the page of a report.
func (e *evidenceRun) report(ctx context.Context, names []string) error {
	if !e.tabular() {
		return usageErrorf("a report is an HTML page: leave out -o; evidence show -o %s has all of it", e.output)
	}
	query, err := e.query()
	if err != nil {
		return err
	}
	source, live, err := e.source(ctx, names)
	if err != nil {
		return err
	}
	if live && query.to.IsZero() {
		query.through = evidenceDue(time.Now())
	}
	in := reportInput{from: query.from, made: time.Now(), program: buildVersion()}
	if !query.to.IsZero() {
		in.to = query.to.AddDate(0, 0, 1)
		query.through, query.to = query.to, time.Time{}
	}
	if in.verified, in.findings, err = readEvidence(source, query); err != nil {
		return err
	}
	in.cutBehind()
	r := newReport(in)
	out := bufio.NewWriter(e.out)
	if err := r.write(out); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	e.say("%s", oneLine(r.Sentence))
	if r.Verdict != verdictLockedAll {
		return errFound
	}
	return nil
}

// cutBehind leaves of each bucket one statement behind the end of what was asked for: the first of the chain, which tells how it
// ended. What was found of those that are left out is left out too.
func (in *reportInput) cutBehind() {
	if in.to.IsZero() {
		return
	}
	type statement struct {
		bucket   string
		sequence int64
	}
	first, left := map[string]int64{}, map[statement]bool{}
	for i := range in.verified {
		v := &in.verified[i]
		at, known := first[v.bucket()]
		if !v.Statement.Time.Before(in.to) && v.Statement.Sequence > 0 && (!known || v.Statement.Sequence < at) {
			first[v.bucket()] = v.Statement.Sequence
		}
	}
	kept := in.verified[:0:0]
	for _, v := range in.verified {
		last, known := first[v.bucket()]
		if behind := !v.Statement.Time.Before(in.to); behind && (v.Statement.Sequence == 0 || known && v.Statement.Sequence > last) {
			left[statement{v.Statement.Bucket.Name, v.Statement.Sequence}] = true
			continue
		}
		kept = append(kept, v)
	}
	in.verified = kept
	findings := in.findings[:0:0]
	for _, f := range in.findings {
		if !left[statement{f.Bucket, f.Sequence}] {
			findings = append(findings, f)
		}
	}
	in.findings = findings
}
