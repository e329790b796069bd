package main

import (
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestEvidenceReportCommand(t *testing.T) {
	withEvidenceCommands(t, func(w *evidenceCommands) {
		const all = "From 28 February 2026 to 5 March 2026: the bucket bucket was locked without a gap."
		w.want("0", "report -f @/evidence --key @/evidence.pub", "<!DOCTYPE html>", "<p>"+all+"</p>", "! "+all, "</html>", evidenceKeyID(publicOf(w.chain.key)))
		w.want("0", "report --bucket-secret @secret --key @/evidence.pub", all)
		w.want("2", "report -f @/evidence --key @/other.pub", "This evidence has faults: 5 statements are not genuine", "Nothing is proven", "What is wrong with the evidence")
		w.want("1", "report -f @/evidence --key @/evidence.pub -o json", "a report is an HTML page")
		w.want("1", "report -f @/evidence", "give --key")
		// The days that were asked for, with the first statement behind them, which tells how they ended.
		w.want("0", "report -f @/evidence --key @/evidence.pub --from 2026-03-02 --to 2026-03-03",
			"! From 2 March 2026 to 3 March 2026: the bucket bucket was locked without a gap.")
		w.want("0", "report -f @/evidence --key @/evidence.pub --from 2026-03-02 --to 2026-03-02",
			"! On 2 March 2026: the bucket bucket was locked without a gap.")
		w.want("0", "verify -f @/evidence --key @/evidence.pub --from 2026-03-02 --to 2026-03-02", "bucket  1 ")
		w.want("2", "report -f @/evidence --key @/evidence.pub --from 2026-03-02 --to 2026-03-07", "statements are missing in 1 place",
			"for 20 h it is not known")
		// What is wrong further behind them does not count.
		if err := os.Remove(filepath.Join(w.directory, "evidence", "b", path.Base(w.chain.stored[3].name))); err != nil {
			t.Fatal(err)
		}
		w.want("2", "report -f @/evidence --key @/evidence.pub", "statements are missing in 1 place")
		w.want("0", "report -f @/evidence --key @/evidence.pub --to 2026-03-02", "From 28 February 2026 to 2 March 2026: the bucket bucket was locked without a gap.")
		// From a bucket that of yesterday has to be there.
		time.Sleep(48 * time.Hour)
		w.want("2", "report --bucket-secret @secret --key @/evidence.pub", "statements are missing in 1 place")
		if page := w.command(strings.Fields("bucketwarden evidence report -f @/evidence --key @/other.pub")); strings.Contains(page, "<h2>The buckets</h2>") {
			t.Error("a page without evidence has buckets")
		}
	})
}
