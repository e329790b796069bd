package dashboard

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// Width is that of the page; a cell of the dashboard's grid of 24 columns is unit high.
const (
	Width  = 1600
	unit   = 30
	margin = 16
)

// Height is that of the page with these views.
func Height(views []View) int {
	bottom := 0
	for _, v := range views {
		bottom = max(bottom, v.GridPos.Y+v.GridPos.H)
	}
	return bottom*unit + margin + 40
}

var colors = map[string]string{"green": "#37872d", "red": "#c4162a", "orange": "#d9730d", "blue": "#1f60c4", "gray": "#8e8e8e", "": "#24292e"}

// palette are the colors of lines.
var palette = []string{"#37872d", "#c4162a", "#1f60c4", "#d9730d", "#8f3bb8", "#2b8a8a", "#806600", "#a3526b", "#5a6b7b", "#3d2b8a"}

// Page draws the views.
func Page(title string, views []View, r Range) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<!doctype html><html lang="en"><meta charset="utf-8"><title>%s</title><style>
body{margin:0;background:#f4f5f5;font:12px "DejaVu Sans",sans-serif;color:#24292e}
h1{font-size:18px;margin:0;position:absolute;left:%dpx;top:14px}
h1 small{font-weight:normal;color:#6e7781;font-size:12px;margin-left:12px}
section{position:absolute;background:#fff;border:1px solid #dfe1e4;border-radius:3px;box-sizing:border-box;overflow:hidden}
section.row{background:none;border:none}
h2{font-size:12px;margin:6px 8px 0}section.row h2{font-size:14px;margin:5px 0 0}
.stat{font-size:30px;text-align:center;margin-top:16px;white-space:nowrap}.stat.long{font-size:14px;margin-top:26px}
table{border-collapse:collapse;width:100%%;margin-top:6px}
th,td{text-align:left;padding:5px 6px;border-bottom:1px solid #ebedf0;font-size:11px;vertical-align:bottom}
td{white-space:nowrap}th{color:#57606a;font-weight:normal}
ul{list-style:none;margin:2px 8px;padding:0;font-size:10px;line-height:14px;overflow:hidden}li{display:inline-block;margin-right:10px;white-space:nowrap}
li i{display:inline-block;width:12px;height:3px;margin-right:4px;vertical-align:middle}
svg text{font-size:10px;fill:#6e7781}.none{color:#8e8e8e;text-align:center;margin-top:60px}
</style><h1>%s<small>%s to %s UTC</small></h1>`, html.EscapeString(title), margin, html.EscapeString(title),
		r.From.UTC().Format("2006-01-02 15:04:05"), r.To.UTC().Format("15:04:05"))
	column := float64(Width-2*margin) / 24
	for _, v := range views {
		g := v.GridPos
		class := ""
		if v.Type == "row" {
			class = "row"
		}
		width, height := column*float64(g.W)-6, g.H*unit-6
		fmt.Fprintf(&b, `<section class="%s" id="panel-%d" style="left:%.0fpx;top:%dpx;width:%.0fpx;height:%dpx"><h2>%s</h2>`,
			class, v.ID, margin+column*float64(g.X), 40+margin+g.Y*unit, width, height, html.EscapeString(v.Title))
		switch v.Type {
		case "stat":
			for _, cell := range v.Stats() {
				long := ""
				if len(cell.Text) > 10 {
					long = " long"
				}
				fmt.Fprintf(&b, `<div class="stat%s" style="color:%s">%s</div>`, long, colors[cell.Color], html.EscapeString(cell.Text))
			}
		case "table":
			writeTable(&b, v)
		case "graph":
			writeGraph(&b, v, r, width, height)
		}
		b.WriteString("</section>")
	}
	b.WriteString("</html>\n")
	return b.String()
}

func writeTable(b *strings.Builder, v View) {
	header, rows := v.Table()
	b.WriteString("<table><tr>")
	for _, name := range header {
		fmt.Fprintf(b, "<th>%s</th>", html.EscapeString(name))
	}
	b.WriteString("</tr>")
	for _, row := range rows {
		b.WriteString("<tr>")
		for _, cell := range row {
			fmt.Fprintf(b, `<td style="color:%s">%s</td>`, colors[cell.Color], html.EscapeString(cell.Text))
		}
		b.WriteString("</tr>")
	}
	b.WriteString("</table>")
}

// writeGraph draws lines over time, with a gap where there is no value.
func writeGraph(b *strings.Builder, v View, r Range, width float64, height int) {
	var all []Series
	for _, data := range v.Data {
		all = append(all, data...)
	}
	if len(all) == 0 {
		b.WriteString(`<div class="none">No data</div>`)
		return
	}
	low, high := 0.0, 0.0
	for _, s := range all {
		for _, value := range s.Values {
			if !math.IsNaN(value) && !math.IsInf(value, 0) {
				low, high = min(low, value), max(high, value)
			}
		}
	}
	if high == low {
		high = low + 1
	}
	const left, right, top = 62.0, 10.0, 6.0
	legendLines := min(3, 1+(len(all)-1)/2)
	plot := float64(height) - 26 - 22 - float64(14*legendLines) - top
	x := func(t float64) float64 {
		return left + (width-left-right)*(t-float64(r.From.Unix()))/r.To.Sub(r.From).Seconds()
	}
	y := func(value float64) float64 { return top + plot*(1-(value-low)/(high-low)) }
	format := ""
	if len(v.YAxes) > 0 {
		format = v.YAxes[0].Format
	}
	fmt.Fprintf(b, `<svg width="%.0f" height="%.0f">`, width, plot+top+18)
	for _, value := range []float64{low, (low + high) / 2, high} {
		fmt.Fprintf(b, `<line x1="%.0f" x2="%.0f" y1="%.1f" y2="%.1f" stroke="#ebedf0"/><text x="%.0f" y="%.1f" text-anchor="end">%s</text>`,
			left, width-right, y(value), y(value), left-5, y(value)+4, html.EscapeString(Format(format, value)))
	}
	for i := range 4 {
		at := r.From.Add(r.To.Sub(r.From) * time.Duration(2*i+1) / 8)
		fmt.Fprintf(b, `<text x="%.0f" y="%.0f" text-anchor="middle">%s</text>`, x(float64(at.Unix())), plot+top+15, at.UTC().Format("15:04:05"))
	}
	gap := 3 * max(1, r.To.Sub(r.From).Seconds()/200)
	for i, s := range all {
		path, last := "", math.Inf(-1)
		for j, value := range s.Values {
			if math.IsNaN(value) || math.IsInf(value, 0) {
				continue
			}
			command := "L"
			if s.Times[j]-last > gap {
				command = "M"
			}
			path += fmt.Sprintf("%s%.1f %.1f", command, x(s.Times[j]), y(value))
			last = s.Times[j]
		}
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.6"/>`, path, palette[i%len(palette)])
	}
	fmt.Fprintf(b, `</svg><ul style="height:%dpx">`, 14*legendLines)
	for i, s := range all {
		fmt.Fprintf(b, `<li><i style="background:%s"></i>%s</li>`, palette[i%len(palette)], html.EscapeString(s.Legend))
	}
	b.WriteString("</ul>")
}
