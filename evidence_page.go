// A report as one HTML page: no script, nothing from elsewhere, pictures as SVG in it. It says the same in print, in grey and to a
// screen reader: what is not locked has a pattern and a number, and each picture has its table.
//
// Rules:
//   - What the page consists of is in evidence_html.go, which escapes all that comes from evidence.
//   - A picture is as wide as the page and has no more shapes than that has dots, however long the evidence is.
//   - A gap is never too short to be seen.

package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// Sizes in the pictures, in dots. Where they begin is in evidence_html.go.
const (
	lineWidth  = 640
	lineHeight = 30
	barWidth   = 470
	barHeight  = 22
	minGap     = 4
	// maxBarLabel is how many letters have room beside a bar, maxLineLabel beside a time line.
	maxBarLabel, maxLineLabel = 44, 32
)

// reportPage is what the page shows.
type reportPage struct {
	*report
	Mark, Headline string
	Clusters       int
	Lines          pageLines
	Bars           pageBars
	ManyBuckets    bool
	ShortNames     bool // of buckets, so that no table has to break them
	LockersKnown   bool // the store tells who locked a bucket
	NotFine        int
}

// tick is a label of an axis.
type tick struct {
	X    int
	Text string
}

// pageLines is the picture of the time lines.
type pageLines struct {
	Height, More int
	Ticks        []tick
	Rows         []pageLine
	Width        int
}

// pageLine is the time line of a bucket: paths of what has the same state, and the numbers of gaps in the table.
type pageLine struct {
	Y                             int
	Name, Says                    string
	Locked, Open, Unknown, Before string
	Numbers                       []tick
}

// pageBars is the picture of when backups become free.
type pageBars struct {
	Height, More int
	Ticks        []tick
	Rows         []pageBar
	Now          time.Time
}

// pageBar is the bar of one cluster. Class is now, unknown, at or never.
type pageBar struct {
	Y, Width                         int
	Class, Name, Label, Says, Bucket string
}

// write writes the page.
func (r *report) write(to io.Writer) error {
	p := reportPage{report: r, Clusters: len(r.Entries) + r.EntriesMore, ManyBuckets: len(r.Buckets) > 1,
		NotFine: r.Free[freeNow] + r.Free[freeUnknown]}
	p.Mark, p.Headline = [...]string{"fine", "unknown", "open", "broken"}[r.Verdict], [...]string{"Locked without a gap",
		"Not known all the time", "Not locked all the time", "The evidence is not whole"}[r.Verdict]
	p.Lines, p.Bars = r.lines(), r.bars()
	p.ShortNames = !slices.ContainsFunc(r.Buckets, func(b *reportBucket) bool { return len(b.Name) > 24 })
	p.LockersKnown = slices.ContainsFunc(r.Buckets, func(b *reportBucket) bool { return b.LockedBy != "" })
	if _, err := io.WriteString(to, p.html()); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

// lines draws the time lines, at most so many, those with gaps first if there are more.
func (r *report) lines() pageLines {
	l := pageLines{Width: lineWidth, Ticks: axis(r.From, r.To, lineWidth, 100)}
	rank := func(b *reportBucket) int {
		switch {
		case b.open():
			return 0
		case b.Unknown > 0 || b.Locked == 0:
			return 1
		}
		return 2
	}
	shown := map[*reportBucket]bool{}
	for worst := range 3 {
		for _, b := range r.Buckets {
			if rank(b) == worst && len(shown) < maxReportLines {
				shown[b] = true
			}
		}
	}
	for _, b := range r.Buckets {
		if shown[b] {
			row := r.line(b)
			row.Y = len(l.Rows) * lineHeight
			l.Rows = append(l.Rows, row)
		}
	}
	l.More, l.Height = len(r.Buckets)-len(l.Rows), len(l.Rows)*lineHeight+34
	return l
}

// line draws one: each column of dots has the worst state within it.
func (r *report) line(b *reportBucket) pageLine {
	row := pageLine{Name: cutText(b.Name, maxLineLabel)}
	switch {
	case b.Open > 0 && b.Unknown > 0:
		row.Says = fmt.Sprintf("up to %s open, %s ?", durationText(b.Open), durationText(b.Unknown))
	case b.Open > 0:
		row.Says = fmt.Sprintf("up to %s not locked", durationText(b.Open))
	case b.open():
		row.Says = "not locked"
	case b.Unknown > 0:
		row.Says = durationText(b.Unknown) + " not known"
	case b.Locked == 0:
		row.Says = "not known"
	default:
		row.Says = "locked without a gap"
	}
	// The worst is last; what is not known is worse than what is fine.
	order := map[lineState]int{lineBefore: 1, lineLocked: 2, lineUnknown: 3, lineOpen: 4}
	var columns [lineWidth]lineState
	var painted [lineWidth]bool
	for _, s := range b.Line {
		from, to := dots(r.From, r.To, s.from, lineWidth), dots(r.From, r.To, s.to, lineWidth)
		first, last := int(from), int(math.Ceil(to))-1
		if wide := last - first + 1; s.state == lineOpen && wide < minGap {
			first -= (minGap - wide) / 2
			last = first + minGap - 1
		}
		for x := max(0, first); x <= min(lineWidth-1, max(last, first)); x++ {
			if !painted[x] || order[s.state] > order[columns[x]] {
				columns[x], painted[x] = s.state, true
			}
		}
	}
	paths := map[lineState]*strings.Builder{lineBefore: {}, lineLocked: {}, lineUnknown: {}, lineOpen: {}}
	for x := 0; x < lineWidth; {
		end := x + 1
		for end < lineWidth && columns[end] == columns[x] {
			end++
		}
		top, height := 8, 16
		switch columns[x] {
		case lineOpen:
			top, height = 5, 22
		case lineUnknown, lineBefore:
			top, height = 12, 8
		}
		fmt.Fprintf(paths[columns[x]], "M%d %dh%dv%dh-%dz", x, top, end-x, height, end-x)
		x = end
	}
	row.Locked, row.Open = paths[lineLocked].String(), paths[lineOpen].String()
	row.Unknown, row.Before = paths[lineUnknown].String(), paths[lineBefore].String()
	free := -20
	for i, g := range r.Gaps {
		if x := int(dots(r.From, r.To, g.from.Add(g.length()/2), lineWidth)); g.Bucket == b.Name && x-free >= 16 {
			row.Numbers = append(row.Numbers, tick{x, fmt.Sprint(i + 1)})
			free = x
		}
	}
	return row
}

// bars draws until when the backups of the clusters are locked that become free first.
func (r *report) bars() pageBars {
	var b pageBars
	shown := r.Entries[:min(maxReportBars, len(r.Entries))]
	b.More, b.Height = len(r.Entries)+r.EntriesMore-len(shown), len(shown)*barHeight+34
	for i := range shown {
		b.Now = laterOf(b.Now, shown[i].At)
	}
	end := b.Now.Add(24 * time.Hour)
	for i := range shown {
		end = laterOf(end, shown[i].until())
	}
	b.Ticks = axis(b.Now, end, barWidth, 100)
	for i := range shown {
		e := shown[i]
		bar := pageBar{Y: i * barHeight, Name: e.Name, Label: cutText(e.Name, maxBarLabel), Says: e.freeText(),
			Bucket: e.Bucket, Class: [...]string{"now", "unknown", "at", "never"}[e.Free]}
		switch e.Free {
		case freeNow, freeUnknown:
			bar.Width = 60
		case freeNever:
			bar.Width = barWidth
		case freeAt:
			bar.Width = max(2, int(dots(b.Now, end, e.until(), barWidth)))
		}
		b.Rows = append(b.Rows, bar)
	}
	return b
}

// dots is where a time is on an axis.
func dots(from, to, t time.Time, width float64) float64 {
	length := to.Sub(from)
	if length <= 0 {
		return 0
	}
	return min(1, max(0, float64(t.Sub(from))/float64(length))) * width
}

// axis are round times, at most as many as have room.
func axis(from, to time.Time, width, room int) []tick {
	const day = 24 * time.Hour
	steps := []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour,
		day, 2 * day, 7 * day, 14 * day, 28 * day, 56 * day, 182 * day, 364 * day, 1820 * day, 18200 * day}
	length := to.Sub(from)
	step := steps[len(steps)-1]
	for _, s := range steps {
		if int(length/s) <= width/room {
			step = s
			break
		}
	}
	var ticks []tick
	for t := from.UTC().Truncate(min(step, day)); !t.After(to) && len(ticks) <= width/room+1; t = t.Add(step) {
		if t.Before(from) {
			continue
		}
		layout := "2 Jan"
		switch {
		case step < day && length < day:
			layout = "15:04"
		case step < day:
			layout = "2 Jan 15:04"
		case length > 300*day:
			layout = "2 Jan 2006"
		}
		ticks = append(ticks, tick{int(dots(from, to, t, float64(width))), t.Format(layout)})
	}
	return ticks
}

func retentionText(p *evidencePolicy) string {
	switch {
	case p == nil:
		return "not known"
	case p.Days == 0:
		return "none"
	case p.Locked:
		return dayCount(p.Days) + ", locked"
	}
	return dayCount(p.Days) + ", can be taken away"
}

// freeText says until when backups are locked.
func (e *reportEntry) freeText() string {
	switch e.Free {
	case freeNow:
		return "not locked"
	case freeUnknown:
		return "not known"
	case freeNever:
		return "no end (legal hold)"
	}
	return reportTime(*e.LockedUntil) + " (" + durationText(e.LockedUntil.Sub(e.At)) + ")"
}

func (e *reportEntry) takenText() string {
	if t := e.newest(); !t.IsZero() {
		return reportTime(t)
	}
	return "not known"
}

// chainText says what is known of the chain.
func (e *reportEntry) chainText() string {
	var parts []string
	switch {
	case e.Incomplete:
		parts = append(parts, "not complete")
	case e.Revision == nil:
		parts = append(parts, "not known")
	case e.Read != nil && !e.Damaged:
		parts = append(parts, "complete and intact")
	default:
		parts = append(parts, "complete")
	}
	if e.Damaged {
		parts = append(parts, "damaged")
	}
	if e.Suspicious > 0 {
		parts = append(parts, "signs of a forgery")
	}
	if e.Unannounced > 0 {
		parts = append(parts, fmt.Sprintf("%d excluded, not announced", e.Unannounced))
	}
	return strings.Join(parts, ", ")
}

func yesNo(b *bool) string {
	switch {
	case b == nil:
		return "not known"
	case *b:
		return "yes"
	}
	return "no"
}

// findingLabels are what kinds of findings are called.
var findingLabels = map[string]string{
	findingUnreadable:    "not readable",
	findingSignature:     "not genuine",
	findingMissing:       "missing",
	findingRepeated:      "twice for a day",
	findingFork:          "does not follow",
	findingClock:         "clock went back",
	findingContradiction: "contradiction",
	findingName:          "wrong name",
}

func findingLabel(kind string) string { return cmp.Or(findingLabels[kind], shortText(kind)) }

// eventLabels are what kinds of events are called.
var eventLabels = map[string]string{
	evidenceDrift:     "Found weakened",
	evidenceRepair:    "Restored",
	evidenceRefusal:   "Refused",
	evidenceDenial:    "Denied",
	evidenceForeign:   "Made stronger by others",
	evidenceLock:      "Locked",
	evidenceCreated:   "Created",
	evidenceGap:       "Not looked at",
	reportHistory:     "Changed, says the cloud",
	reportAttacked:    "Attack succeeded",
	reportUnproven:    "Attack proved nothing",
	reportUnprotected: "Left without retention",
	reportBackups:     "Backups",
	reportHardening:   "Hardening",
	reportRotation:    "New key",
}

func eventLabel(kind string) string { return cmp.Or(eventLabels[kind], shortText(kind)) }
