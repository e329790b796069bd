// The HTML of a report. It is written by put, which escapes every string that it is given, and not by html/template: as long as
// that is in the program, the linker keeps every method of every type, and the daemon would need half as much memory again.
//
// Rules:
//   - What comes from evidence is an argument of put, never a part of its format. Only numbers and words of ours go into attributes.
//   - The head of the page, with its styles, is evidence_page.html.

package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"html"
	"slices"
	"strings"
	"time"
)

//go:embed evidence_page.html
var evidencePageHead string

// markup is HTML of ours, which put leaves as it is.
type markup string

// pageWriter writes HTML.
type pageWriter struct{ strings.Builder }

// put writes like fmt.Fprintf, with every string escaped.
func (w *pageWriter) put(format string, args ...any) {
	for i, arg := range args {
		if text, ok := arg.(string); ok {
			args[i] = escaped(text)
		}
	}
	fmt.Fprintf(w, format, args...)
}

// escaped is text in HTML, also in an attribute with quotes.
func escaped(text string) string {
	return html.EscapeString(strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD"))
}

// badText marks text as a fault.
func badText(is bool, text string) markup {
	if is {
		return markup(`<span class="bad">` + escaped(text) + `</span>`)
	}
	return markup(escaped(text))
}

// ifMarkup is the markup, if that is so.
func ifMarkup(is bool, m markup) markup {
	if is {
		return m
	}
	return ""
}

// table begins a table with these columns; a column that begins with # has numbers.
func (w *pageWriter) table(caption string, columns ...string) {
	w.put("<table>")
	if caption != "" {
		w.put("<caption>%s</caption>", caption)
	}
	w.put("<thead><tr>")
	for _, column := range columns {
		if number, ok := strings.CutPrefix(column, "#"); ok {
			w.put(`<th class="n">%s</th>`, number)
		} else {
			w.put("<th>%s</th>", column)
		}
	}
	w.put("</tr></thead><tbody>\n")
}

func (w *pageWriter) endTable() { w.put("</tbody></table>\n") }

// more says how many of a list are left out.
func (w *pageWriter) more(n int, singular, plural, rest string) {
	if n > 0 {
		w.put(`<p class="note">and %s%s</p>`+"\n", countText(n, singular, plural), rest)
	}
}

// answerMarks are the pictures beside the answer.
var answerMarks = map[string]markup{
	"fine": `<circle cx="26" cy="26" r="24" fill="none" stroke="#2c7a4b" stroke-width="3"/>` +
		`<path d="M15 27l8 8 15-17" fill="none" stroke="#2c7a4b" stroke-width="4.5"/>`,
	"unknown": `<circle cx="26" cy="26" r="24" fill="none" stroke="#59636e" stroke-width="3" stroke-dasharray="6 4"/>` +
		`<path d="M19 20a7 7 0 1 1 10 6q-3 2-3 6" fill="none" stroke="#59636e" stroke-width="4"/>` +
		`<circle cx="26" cy="38.500" r="2.600" fill="#59636e"/>`,
	"open": `<path d="M26 4L50 47H2z" fill="none" stroke="#b3221b" stroke-width="3.500" stroke-linejoin="round"/>` +
		`<path d="M26 19v14" stroke="#b3221b" stroke-width="4.500"/><circle cx="26" cy="40" r="2.700" fill="#b3221b"/>`,
	"broken": `<circle cx="26" cy="26" r="24" fill="#b3221b"/><path d="M17 17l18 18M35 17l-18 18" stroke="#fff" stroke-width="5"/>`,
}

// html is the whole page.
func (p *reportPage) html() string {
	w := &pageWriter{}
	title := escaped(p.Headline + ": " + dateText(p.From) + " to " + dateText(p.LastDay()))
	w.WriteString(strings.Replace(evidencePageHead, "{{title}}", title, 1))
	w.put("<header><span><b>bucketwarden</b> evidence report</span><span>%s to %s UTC</span></header>\n", reportTime(p.From), reportTime(p.To))
	w.put(`<main%s>`+"\n", ifMarkup(p.ShortNames, ` class="short"`))
	w.put(`<section class="answer %s"><svg viewBox="0 0 52 52" aria-hidden="true">%s</svg>`+"\n", p.Mark, answerMarks[p.Mark])
	w.put("<div><h1>%s</h1><p>%s</p></div>\n</section>\n<dl class=\"tiles\">\n", p.Headline, p.Sentence)
	for _, tile := range []struct {
		name  string
		count int
	}{{"Buckets", len(p.Buckets)}, {"Clusters with backups", p.Clusters}, {"Clusters not locked or not known", p.NotFine},
		{"Statements verified", p.Statements}, {"Faults in the evidence", len(p.Findings) + p.FindingsMore}} {
		w.put("<div><dt>%s</dt><dd>%d</dd></div>\n", tile.name, tile.count)
	}
	w.put("</dl>\n")
	p.findings(w)
	p.locks(w)
	p.free(w)
	p.attacks(w)
	p.happened(w)
	p.checks(w)
	p.clusters(w)
	w.put("</main>\n<footer>Made on %s UTC", reportTime(p.Made))
	if p.Program != "" {
		w.put(" by bucketwarden %s", p.Program)
	}
	w.put(", from %s. Nothing in this page is loaded from elsewhere, and it runs no script.</footer>\n</body>\n</html>\n",
		countText(p.Statements, "verified statement", "verified statements"))
	return w.String()
}

func (p *reportPage) findings(w *pageWriter) {
	if len(p.Findings) == 0 {
		return
	}
	w.put("<h2>What is wrong with the evidence</h2>\n<p>What these statements would say is not proven. Those who keep the bucket and " +
		"the key have to explain each of them.</p>\n")
	w.table("", "Kind", "Bucket", "Statement", "What was found")
	for _, f := range p.Findings {
		w.put(`<tr><td class="t">%s</td><td class="b">%s</td><td>`, badText(true, findingLabel(f.Kind)), f.Bucket)
		if f.Name != "" {
			w.put("<code>%s</code>", f.Name)
		} else if f.Sequence != 0 {
			w.put("number %d", f.Sequence)
		}
		w.put("</td><td>%s</td></tr>\n", f.Message)
	}
	w.endTable()
	w.more(p.FindingsMore, "more", "more", ".")
}

// anchor is where a label of an axis stands to its place.
func anchor(x, right int) string {
	switch {
	case x < 30:
		return "start"
	case x > right:
		return "end"
	}
	return "middle"
}

// ticks draws the labels of an axis that begins at left.
func (w *pageWriter) ticks(ticks []tick, left, right, height int) {
	for _, t := range ticks {
		w.put(`<path class="grid" d="M%d 16V%d"/><text class="dim" text-anchor="%s" x="%d" y="12">%s</text>`+"\n", t.X+left, height,
			anchor(t.X, right), t.X+left, t.Text)
	}
}

func (p *reportPage) locks(w *pageWriter) {
	if len(p.Buckets) == 0 {
		return
	}
	w.put(`<section class="whole">
<h2>Was each bucket locked?</h2>
<p class="note">Locked means: nobody, the owner of the cloud account included, could delete or overwrite a backup that was written, ` +
		`before its retention ended. A gap is shown as long as it can have been. Times are UTC, by the clock of the store.</p>
`)
	w.put(`<svg class="picture" role="img" aria-label="Time lines of the locks of the buckets; the table below has the gaps" `+
		`viewBox="0 0 1120 %d">`+"\n", p.Lines.Height)
	w.ticks(p.Lines.Ticks, 240, 600, p.Lines.Height)
	for _, row := range p.Lines.Rows {
		w.put(`<svg x="0" y="%d" width="1120" height="36" overflow="visible"><svg width="232" height="30"><text x="0" y="20">%s</text></svg>`+
			`<g transform="translate(240 0)">`, row.Y+24, row.Name)
		for _, path := range []struct{ class, d string }{{"before", row.Before}, {"locked", row.Locked}, {"nk", row.Unknown}, {"gap", row.Open}} {
			if path.d != "" {
				w.put(`<path class="%s" d="%s"/>`, path.class, path.d)
			}
		}
		for _, number := range row.Numbers {
			w.put(`<text class="num" text-anchor="middle" x="%d" y="2">%s</text>`, number.X, number.Text)
		}
		w.put(`</g><text x="892" y="20">%s</text></svg>`+"\n", row.Says)
	}
	w.put(`</svg>
<ul class="legend">
<li><svg aria-hidden="true"><rect class="locked" y="1" width="34" height="14"/></svg>locked</li>
<li><svg aria-hidden="true"><rect class="gap" x="1" y="1" width="32" height="14"/></svg>not locked, or for less than promised</li>
<li><svg aria-hidden="true"><rect class="nk" y="4" width="34" height="8"/></svg>not known</li>
<li><svg aria-hidden="true"><rect class="before" x="1" y="4" width="32" height="8"/></svg>before the evidence begins</li>
</ul>
`)
	w.more(p.Lines.More, "more bucket", "more buckets", ", in the table below.")
	w.put("</section>\n")
	if len(p.Gaps) == 0 {
		w.put("<p>There was no time at which a bucket was not locked, and none at which it was not known.</p>\n")
		return
	}
	w.table("Every time at which a bucket was not locked, or not known to be. The numbers are those in the picture.", "#No.", "Bucket",
		"State", "From", "Until", "Up to", "Why")
	for i, g := range p.Gaps {
		state := badText(true, "not locked")
		if g.state != lineOpen {
			state = "not known"
		}
		w.put(`<tr><td class="n">%d</td><td class="b">%s</td><td class="t">%s</td><td class="t">%s</td><td class="t">%s</td>`+
			`<td class="t">%s</td><td>%s</td></tr>`+"\n", i+1, g.Bucket, state, reportTime(g.from),
			reportTime(g.to), durationText(g.length()), g.why)
	}
	w.endTable()
	w.more(p.GapsMore, "shorter one", "shorter ones", ".")
}

func (p *reportPage) free(w *pageWriter) {
	if len(p.Bars.Rows) == 0 {
		return
	}
	w.put(`<section class="whole">`+"\n"+`<h2>When does the newest backup of each cluster become free?</h2>`+"\n"+
		`<p class="note">As of the last statement. Until then nobody can delete any file of the newest chain that a restore would take. `+
		"%s such a time, %s kept without an end, %s not locked, of %d it is not known.</p>\n",
		countText(p.Free[freeAt], "cluster has", "clusters have"),
		countText(p.Free[freeNever], "is", "are"), countText(p.Free[freeNow], "is", "are"), p.Free[freeUnknown])
	w.put(`<svg class="picture" role="img" aria-label="Until when the backups of clusters are locked, the soonest first; the list of `+
		`clusters at the end has the times" viewBox="0 0 1120 %d">`+"\n", p.Bars.Height)
	w.ticks(p.Bars.Ticks, 330, 430, p.Bars.Height)
	for _, row := range p.Bars.Rows {
		w.put(`<svg x="0" y="%d" width="1120" height="22"><svg width="322" height="22"><text x="0" y="15">%s<title>%s in %s</title></text></svg>`,
			row.Y+22, row.Label, row.Name, row.Bucket)
		switch row.Class {
		case "now":
			w.put(`<rect class="gap" x="331" y="3" width="60" height="15"/>`)
		case "unknown":
			w.put(`<rect class="nk" x="330" y="6" width="60" height="9"/>`)
		default:
			w.put(`<rect class="%s" x="330" y="4" width="%d" height="13"/>`, row.Class, row.Width)
		}
		w.put(`<text x="812" y="15">%s</text></svg>`+"\n", row.Says)
	}
	w.put("</svg>\n")
	if p.Bars.More > 0 {
		w.put("<p>and %s free later.</p>\n", countText(p.Bars.More, "more cluster, which becomes", "more clusters, which become"))
	}
	w.put("</section>\n")
}

func (p *reportPage) attacks(w *pageWriter) {
	if len(p.Attacks) == 0 {
		return
	}
	w.put("<section>\n<h2>Does the lock hold?</h2>\n" + `<p class="note">Attacks on a file of bucketwarden's own in the bucket. ` +
		"Only what the lock itself refused proves something.</p>\n")
	w.table("", "Bucket", "Attack", "With the credentials of", "#Refused by the lock", "#Refused for another reason", "#Succeeded", "Last")
	for _, a := range p.Attacks {
		w.put(`<tr><td class="b">%s</td><td>%s</td><td>%s</td><td class="n">%d</td><td class="n">%d</td><td class="n">%s</td>`+
			`<td class="t">%s</td></tr>`+"\n", a.Bucket, a.Attack, a.Credentials, a.Lock, a.Other,
			badText(a.Succeeded > 0, fmt.Sprint(a.Succeeded)), reportTime(a.Last))
	}
	w.endTable()
	w.put("</section>\n")
}

func (p *reportPage) happened(w *pageWriter) {
	if len(p.Buckets) == 0 {
		return
	}
	w.put("<h2>What has happened</h2>\n")
	if len(p.Events) > 0 {
		w.table("", "Time", "Bucket", "What", "Details", "#Times that day")
		for _, e := range p.Events {
			w.put(`<tr><td class="t">%s</td><td class="b">%s</td><td>%s</td><td>%s</td><td class="n">%d</td></tr>`+"\n", reportTime(e.Time),
				e.Bucket, badText(e.Bad(), eventLabel(e.Kind)), e.Text, e.Times)
		}
		w.endTable()
		w.more(p.EventsMore, "more", "more", " of lesser weight.")
		if p.EventsLeftOut > 0 {
			w.put(`<p class="note">The statements themselves left out %d more.</p>`+"\n", p.EventsLeftOut)
		}
	} else {
		w.put("<p>The statements name no event in this time.</p>\n")
	}
	w.put("<h2>The buckets</h2>\n")
	columns := []string{"Bucket", "Retention, says the store", "Promised", "Verified since", "Hardened", "Versions left without retention",
		"Locked by", "Statements"}
	if !p.LockersKnown {
		columns = append(columns[:6], columns[7])
	}
	w.table("As of the last statement of each.", columns...)
	for _, b := range p.Buckets {
		place := shortText(b.Last.Bucket.Store) + ", " + shortText(b.Last.Bucket.Endpoint)
		if region := b.Last.Bucket.Region; region != "" {
			place += ", " + shortText(region)
		}
		since, unprotected := "not known", "not known"
		if at := b.Last.VerifiedSince; at != nil {
			since = reportTime(*at)
		}
		if n := b.Last.UnprotectedVersions; n != nil {
			unprotected = fmt.Sprint(*n)
		}
		w.put(`<tr><th scope="row">%s<br><small>%s</small></th><td>%s</td><td>%s</td><td>%s</td><td>%s</td><td>%s</td>`, b.Name, place,
			retentionText(b.Last.Policy), retentionText(b.Last.Record), since, yesNo(b.Last.Hardened), unprotected)
		if p.LockersKnown {
			w.put("<td>%s</td>", cmp.Or(b.LockedBy, "not told"))
		}
		w.put("<td>%d, %s to %s</td></tr>\n", b.Statements, dateText(b.First), dateText(b.Last.Time))
	}
	w.endTable()
}

func (p *reportPage) checks(w *pageWriter) {
	w.put("<section>\n<h2>What is not proven</h2>\n" + `<ul class="plain">` + "\n")
	for _, text := range p.NotClaimed {
		w.put("<li>%s</li>\n", text)
	}
	w.put(`<li>This page is a summary and is not signed. The statements are: check them, and compare.</li>
<li>Somebody who keeps back the newest statements, and shows only older ones, is found only by the day on which they end.</li>
</ul>
</section>
<section class="whole">
<h2>How to check it yourself</h2>
<p>No access to the cloud or to bucketwarden is needed. Take the public key from its owner by another way than this page, ` +
		`and compare it:</p>
`)
	if len(p.Keys) > 0 {
		w.table("", "Id of the key: the SHA-256 of its public part", "#Statements it has signed")
		for _, key := range p.Keys {
			w.put(`<tr><td><code>%s</code></td><td class="n">%d</td></tr>`+"\n", key.ID, key.Statements)
		}
		w.endTable()
	}
	days := fmt.Sprintf("--from %s --to %s", p.From.Format(time.DateOnly), p.LastDay().Format(time.DateOnly))
	w.put(`<pre># the id of the public key that you were given
openssl pkey -pubin -in evidence.pub -outform DER | openssl dgst -sha256
# the statements, from a directory with the files that bucketwarden evidence collect has copied
bucketwarden evidence verify -f DIRECTORY --key evidence.pub %s
# this page anew
bucketwarden evidence report -f DIRECTORY --key evidence.pub %s &gt; report.html</pre>
<p class="note">Each statement is an in-toto Statement in a DSSE envelope with an Ed25519 signature, so other programs can verify it as `+
		`well. The documentation of bucketwarden shows it with openssl alone (docs/audit.md), says who guarantees what, and which questions of `+
		`standards the evidence answers. It is no certification.</p>
</section>
`, days, days)
}

func (p *reportPage) clusters(w *pageWriter) {
	if len(p.Entries) == 0 {
		return
	}
	all := countText(p.Clusters, "cluster", "clusters")
	w.put("<h2>All clusters</h2>\n"+`<p class="onpaper note">%s; the list is in the page on a screen.</p>`+"\n"+
		"<details><summary>%s, the soonest free first</summary>\n", all, all)
	columns := []string{"Cluster", "Newest backup", "Chain", "Locked until", "#Files"}
	if p.ManyBuckets {
		columns = slices.Insert(columns, 1, "Bucket")
	}
	w.table("", columns...)
	for _, e := range p.Entries {
		w.put("<tr><td>%s</td>", e.Name)
		if p.ManyBuckets {
			w.put(`<td class="b">%s</td>`, e.Bucket)
		}
		w.put(`<td>%s</td><td>%s</td><td>%s</td><td class="n">%d</td></tr>`+"\n", e.takenText(), e.chainText(), e.freeText(), e.Snapshots)
	}
	w.endTable()
	w.more(p.EntriesMore, "more", "more", ", which become free later.")
	w.put("</details>\n")
}
