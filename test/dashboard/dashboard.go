// Package dashboard draws deploy/chart/files/dashboard.json with the data of a Prometheus, as one page of HTML and SVG: what an
// operator sees in Grafana or Plutono, without either. It knows the panels that the dashboard has (stat, table and graph, in
// rows), with the settings they use.
//
// Rules: every query is the dashboard's own, only its variables are replaced; what a query does not return is shown as missing;
// the page needs no network and no script.
package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Dashboard is what is read of dashboard.json.
type Dashboard struct {
	Title  string
	Panels []Panel
}

// Panel is a panel of it.
type Panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Targets                  []struct{ RefID, Expr, LegendFormat string }
	FieldConfig              struct {
		Defaults  settings
		Overrides []struct {
			Matcher    struct{ Options string }
			Properties []struct {
				ID    string
				Value json.RawMessage
			}
		}
	}
	Transformations []struct {
		ID      string
		Options struct {
			ExcludeByName map[string]bool
			IndexByName   map[string]int
			RenameByName  map[string]string
		}
	}
	Options struct{ TextMode string }
	YAxes   []struct{ Format string }
}

type settings struct {
	Unit, NoValue string
	Decimals      *int
	Thresholds    struct{ Steps []step }
	Mappings      []struct{ Value, Text string }
}

type step struct {
	Color string
	Value *float64
}

// Source answers queries; path is one of Prometheus' HTTP API.
type Source func(ctx context.Context, path string, data any) error

// Range is what the dashboard shows. Quick is how many times faster than the clock time passes in the rules of this
// Prometheus, for $__range_s.
type Range struct {
	From, To time.Time
	Quick    float64
}

// Series is one series of an answer, with its legend.
type Series struct {
	Labels map[string]string
	Legend string
	// Times are Unix seconds. There is one value if the panel shows the last one only.
	Times, Values []float64
}

// View is a panel with its data: Series for each target.
type View struct {
	Panel
	Data [][]Series
}

// Load reads dashboard.json.
func Load(content []byte) (Dashboard, error) {
	var d Dashboard
	if err := json.Unmarshal(content, &d); err != nil {
		return Dashboard{}, fmt.Errorf("reading the dashboard: %w", err)
	}
	return d, nil
}

// Query asks for the data of all panels.
func (d Dashboard) Query(ctx context.Context, source Source, r Range) ([]View, error) {
	var views []View
	for _, panel := range d.Panels {
		view := View{Panel: panel}
		for _, target := range panel.Targets {
			series, err := query(ctx, source, r, target.Expr, panel.Type == "graph")
			if err != nil {
				return nil, fmt.Errorf("panel %q: %w", panel.Title, err)
			}
			for i, s := range series {
				series[i].Legend = legend(target.LegendFormat, s.Labels)
			}
			view.Data = append(view.Data, series)
		}
		views = append(views, view)
	}
	return views, nil
}

func query(ctx context.Context, source Source, r Range, expr string, graph bool) ([]Series, error) {
	seconds := int(r.To.Sub(r.From).Seconds())
	expr = strings.NewReplacer("$__range_s", strconv.Itoa(int(float64(seconds)*r.Quick)), "$__range", fmt.Sprintf("%ds", seconds),
		"$__rate_interval", "15s").Replace(expr)
	values := url.Values{"query": {expr}}
	path := "/api/v1/query"
	if graph {
		path += "_range"
		values.Set("start", unix(r.From))
		values.Set("end", unix(r.To))
		values.Set("step", strconv.Itoa(max(1, seconds/200)))
	} else {
		values.Set("time", unix(r.To))
	}
	var answer struct {
		Result []struct {
			Metric map[string]string
			Value  *point
			Values []point
		}
	}
	if err := source(ctx, path+"?"+values.Encode(), &answer); err != nil {
		return nil, err
	}
	var series []Series
	for _, result := range answer.Result {
		s := Series{Labels: result.Metric}
		if result.Value != nil {
			result.Values = []point{*result.Value}
		}
		for _, p := range result.Values {
			s.Times, s.Values = append(s.Times, p.time), append(s.Values, p.value)
		}
		series = append(series, s)
	}
	return series, nil
}

func unix(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }

// point is [time, "value"] in Prometheus' answers.
type point struct{ time, value float64 }

func (p *point) UnmarshalJSON(data []byte) error {
	var value string
	if err := json.Unmarshal(data, &[]any{&p.time, &value}); err != nil {
		return err
	}
	var err error
	p.value, err = strconv.ParseFloat(value, 64)
	return err
}

var placeholder = regexp.MustCompile(`\{\{\s*([a-z_]+)\s*\}\}`)

func legend(format string, labels map[string]string) string {
	text := placeholder.ReplaceAllStringFunc(format, func(match string) string { return labels[placeholder.FindStringSubmatch(match)[1]] })
	return strings.Join(strings.Fields(text), " ")
}

// Cell is a value as it is shown.
type Cell struct{ Text, Color string }

// Stats are what a stat panel shows.
func (v View) Stats() []Cell {
	var cells []Cell
	for _, s := range v.Data[0] {
		cell := v.FieldConfig.Defaults.show(s.Values[len(s.Values)-1])
		if v.Options.TextMode == "name" {
			cell.Text = s.Legend
		}
		cells = append(cells, cell)
	}
	if len(cells) == 0 {
		cells = []Cell{{Text: v.FieldConfig.Defaults.NoValue, Color: "gray"}}
	}
	return cells
}

// Table is what a table panel shows: its queries, merged by what labels they have in common.
func (v View) Table() (header []string, rows [][]Cell) {
	type line struct {
		labels map[string]string
		values map[string]float64
	}
	var lines []*line
	for i, data := range v.Data {
		for _, s := range data {
			at := slices.IndexFunc(lines, func(l *line) bool {
				for name, value := range s.Labels {
					if l.labels[name] != value {
						return false
					}
				}
				return true
			})
			if at < 0 {
				lines = append(lines, &line{s.Labels, map[string]float64{}})
				at = len(lines) - 1
			}
			lines[at].values["Value #"+v.Targets[i].RefID] = s.Values[len(s.Values)-1]
		}
	}
	slices.SortFunc(lines, func(a, b *line) int { return strings.Compare(a.labels["bucket"], b.labels["bucket"]) })
	var fields []string
	organize := v.Transformations[len(v.Transformations)-1].Options
	for name := range organize.RenameByName {
		if !strings.HasPrefix(name, "Value #") && !slices.ContainsFunc(lines, func(l *line) bool { return l.labels[name] != "" }) {
			continue
		}
		fields = append(fields, name)
	}
	slices.SortFunc(fields, func(a, b string) int { return organize.IndexByName[a] - organize.IndexByName[b] })
	for _, field := range fields {
		header = append(header, organize.RenameByName[field])
	}
	for _, l := range lines {
		var row []Cell
		for i, field := range fields {
			value, ok := l.values[field]
			switch {
			case ok:
				row = append(row, v.column(header[i]).show(value))
			default:
				row = append(row, Cell{Text: l.labels[field]})
			}
		}
		rows = append(rows, row)
	}
	return header, rows
}

// column are the settings of a column of a table.
func (v View) column(name string) settings {
	var s settings
	colored := false
	for _, override := range v.FieldConfig.Overrides {
		if override.Matcher.Options != name {
			continue
		}
		for _, property := range override.Properties {
			var into any
			switch property.ID {
			case "unit":
				into = &s.Unit
			case "decimals":
				into = &s.Decimals
			case "thresholds":
				into = &s.Thresholds
			case "mappings":
				into = &s.Mappings
			case "custom.displayMode":
				colored = true
			}
			if into != nil {
				_ = json.Unmarshal(property.Value, into) // what it cannot read, it does not show
			}
		}
	}
	if !colored {
		s.Thresholds.Steps = nil
	}
	return s
}

func (s settings) show(value float64) Cell {
	if s.Decimals != nil && s.Unit == "short" {
		value = math.Round(value*math.Pow10(*s.Decimals)) / math.Pow10(*s.Decimals)
	}
	cell := Cell{Text: Format(s.Unit, value)}
	for _, mapping := range s.Mappings {
		if mapping.Value == strconv.FormatFloat(value, 'f', -1, 64) {
			cell.Text = mapping.Text
		}
	}
	for _, step := range s.Thresholds.Steps {
		if step.Value == nil || value >= *step.Value {
			cell.Color = step.Color
		}
	}
	if cell.Color == "text" {
		cell.Color = ""
	}
	return cell
}

// Format shows a value in one of Grafana's units.
func Format(unit string, value float64) string {
	scaled := func(value float64, by float64, units ...string) string {
		i := 0
		for value >= by && i < len(units)-1 {
			value /= by
			i++
		}
		return strings.TrimSpace(strconv.FormatFloat(value, 'f', -1, 64)[:min(4, len(strconv.FormatFloat(value, 'f', -1, 64)))] + " " + units[i])
	}
	switch unit {
	case "bool_yes_no":
		if value == 0 {
			return "No"
		}
		return "Yes"
	case "dateTimeAsIso":
		return time.UnixMilli(int64(value)).UTC().Format("2006-01-02 15:04")
	case "bytes", "Bps":
		return scaled(value, 1024, "B", "KiB", "MiB", "GiB", "TiB") + map[string]string{"Bps": "/s"}[unit]
	case "s":
		if value == 0 {
			return "0 s"
		}
		sign, value := "", value
		if value < 0 {
			sign, value = "-", -value
		}
		for _, u := range []struct {
			seconds float64
			name    string
		}{{365 * 86400, "years"}, {86400, "days"}, {3600, "hours"}, {60, "min"}, {1, "s"}} {
			if value >= u.seconds {
				return sign + strconv.FormatFloat(float64(int(value/u.seconds*10))/10, 'f', -1, 64) + " " + u.name
			}
		}
		return sign + strconv.FormatFloat(float64(int(value*1000)), 'f', -1, 64) + " ms"
	}
	if value == float64(int64(value)) || value >= 1000 {
		return strconv.FormatFloat(value, 'f', 0, 64)
	}
	return strconv.FormatFloat(value, 'g', 3, 64)
}
