package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// monitoringTestForeign are series that are not the daemon's, with their labels.
var monitoringTestForeign = map[string][]string{
	"ALERTS": {"alertname", "alertstate", "bucket", "service"},
	"apiserver_validating_admission_policy_check_total": {"policy", "policy_binding", "error_type", "enforcement_action"},
}

// monitoringTestMetrics are the labels of every series that the daemon can have, by name.
func monitoringTestMetrics(t *testing.T) map[string][]string {
	t.Helper()
	families, err := metricsTestFull().registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string][]string{}
	for _, family := range families {
		labels := []string{"job", "instance"}
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, label.GetName())
		}
		if family.GetMetric()[0].GetHistogram() == nil {
			series[family.GetName()] = labels
			continue
		}
		series[family.GetName()+"_count"], series[family.GetName()+"_sum"] = labels, labels
		series[family.GetName()+"_bucket"] = append(slices.Clone(labels), "le")
	}
	for name, labels := range monitoringTestForeign {
		series[name] = append([]string{"job", "instance"}, labels...)
	}
	for _, rule := range monitoringTestRules(t) {
		if rule.Record != "" {
			_, grouped := monitoringTestQuery(series, rule.Expr)
			series[rule.Record] = grouped
		}
	}
	// Prometheus gives them to all series of a target; cluster only where it is set up so.
	for name := range series {
		series[name] = append(series[name], "cluster", "namespace")
	}
	return series
}

var (
	// monitoringTestSelector is a metric's name with its matchers.
	monitoringTestSelector = regexp.MustCompile(`\b([a-zA-Z][a-zA-Z0-9]*[_:][a-zA-Z0-9_:]*|ALERTS)\b(\{[^}]*\})?`)
	monitoringTestMatcher  = regexp.MustCompile(`([a-z_]+)\s*(=~|!~|!=|=)\s*"`)
	monitoringTestGrouping = regexp.MustCompile(`\b(by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	monitoringTestLegend   = regexp.MustCompile(`\{\{\s*([a-z_]+)\s*\}\}`)
	monitoringTestLabel    = regexp.MustCompile(`\$labels\.([a-z_]+)`)
)

var monitoringTestFunctions = []string{"histogram_quantile", "min_over_time", "max_over_time", "present_over_time", "last_over_time", "sum_over_time"}

// monitoringTestQuery says what a query names that does not exist, and which labels its result has:
// nil if it does not group.
func monitoringTestQuery(series map[string][]string, query string) (problems, grouped []string) {
	known := map[string]bool{}
	rest := monitoringTestGrouping.ReplaceAllString(query, "")
	rest = regexp.MustCompile(`\$__[a-z_]+`).ReplaceAllString(rest, "1m")
	for _, match := range monitoringTestSelector.FindAllStringSubmatch(rest, -1) {
		name, matchers := match[1], match[2]
		if slices.Contains(monitoringTestFunctions, name) {
			continue
		}
		labels, ok := series[name]
		if !ok {
			problems = append(problems, "no metric "+name)
			continue
		}
		for _, label := range labels {
			known[label] = true
		}
		for _, matcher := range monitoringTestMatcher.FindAllStringSubmatch(matchers, -1) {
			if !slices.Contains(labels, matcher[1]) {
				problems = append(problems, fmt.Sprintf("%s has no label %s", name, matcher[1]))
			}
		}
	}
	if len(known) == 0 {
		problems = append(problems, "no metric at all")
	}
	for _, match := range monitoringTestGrouping.FindAllStringSubmatch(query, -1) {
		for label := range strings.SplitSeq(match[2], ",") {
			if label = strings.TrimSpace(label); label == "" {
				continue
			}
			if !known[label] {
				problems = append(problems, "no metric of it has the label "+label)
			}
			if match[1] == "by" {
				grouped = append(grouped, label)
			}
		}
	}
	return problems, grouped
}

func TestMonitoringQueryCheck(t *testing.T) {
	series := map[string][]string{"a_total": {"x", "job"}, "b_seconds_bucket": {"le", "y"}}
	for query, want := range map[string]int{
		`sum by (x) (rate(a_total{x=~"1|2"}[5m])) > 0`:                         0,
		`histogram_quantile(0.9, sum by (y, le) (b_seconds_bucket[$__range]))`: 0,
		`a_total unless on (job) b_seconds_bucket{y!="a_b"}`:                   0,
		`sum by (z) (a_total)`:                  1,
		`a_total{y="1"}`:                        1,
		`sum(rate(c_total[5m])) / sum(a_total)`: 1,
		`a_total * on (x) group_left (q) b_seconds_bucket{x="1", le=~"1", y="2"}`: 2,
		`vector(1)`: 1,
	} {
		if problems, _ := monitoringTestQuery(series, query); len(problems) != want {
			t.Errorf("%s: got %q, want %d problems", query, problems, want)
		}
	}
}

// monitoringTestRule is an alerting rule or a recording one.
type monitoringTestRule struct {
	Alert, Record, Expr string
	Labels, Annotations map[string]string
}

func monitoringTestRules(t *testing.T) []monitoringTestRule {
	t.Helper()
	data, err := os.ReadFile("deploy/chart/files/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct{ Rules []monitoringTestRule }
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	var rules []monitoringTestRule
	for _, group := range file.Groups {
		rules = append(rules, group.Rules...)
	}
	if len(rules) == 0 {
		t.Fatal("there are no rules")
	}
	return rules
}

func TestMonitoringAlerts(t *testing.T) {
	series := monitoringTestMetrics(t)
	runbooks, err := os.ReadFile("docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("deploy/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	backups, err := os.ReadFile("deploy/alerts_backups_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, more, found := strings.Cut(string(backups), "\ntests:\n")
	if !found {
		t.Fatal("deploy/alerts_backups_test.yaml has no tests")
	}
	data = append(data, more...)
	var tests struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal(data, &tests); err != nil {
		t.Fatal(err)
	}
	firing := map[string]bool{}
	for _, test := range tests.Tests {
		for _, c := range test.AlertRuleTest {
			if len(c.ExpAlerts) > 0 {
				firing[c.Alertname] = true
			}
		}
	}
	sections := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^## (Bucketwarden.*)$`).FindAllStringSubmatch(string(runbooks), -1) {
		sections[match[1]] = true
	}

	seen := map[string]bool{}
	for _, alert := range monitoringTestRules(t) {
		problems, grouped := monitoringTestQuery(series, alert.Expr)
		if alert.Record != "" {
			for _, problem := range problems {
				t.Errorf("%s: %s", alert.Record, problem)
			}
			continue
		}
		if series[alert.Expr[:strings.IndexAny(alert.Expr+" ", " ")]] != nil {
			grouped = append(grouped, series[alert.Expr[:strings.Index(alert.Expr, " ")]]...)
		}
		for _, problem := range problems {
			t.Errorf("%s: %s", alert.Alert, problem)
		}
		for _, text := range alert.Annotations {
			for _, match := range monitoringTestLabel.FindAllStringSubmatch(text, -1) {
				if !slices.Contains(grouped, match[1]) {
					t.Errorf("%s: the text names the label %s, which is not grouped by", alert.Alert, match[1])
				}
			}
		}
		if severity := alert.Labels["severity"]; severity != "critical" && severity != "warning" {
			t.Errorf("%s: severity %q", alert.Alert, severity)
		}
		for _, name := range []string{"summary", "description"} {
			if alert.Annotations[name] == "" {
				t.Errorf("%s: no %s", alert.Alert, name)
			}
		}
		if got, want := alert.Annotations["runbook"], "docs/alerts.md#"+strings.ToLower(alert.Alert); got != want {
			t.Errorf("%s: runbook %s, want %s", alert.Alert, got, want)
		}
		if !sections[alert.Alert] {
			t.Errorf("docs/alerts.md has no section %s", alert.Alert)
		}
		seen[alert.Alert] = true
		if !firing[alert.Alert] {
			t.Errorf("deploy/alerts_test.yaml does not test what %s says", alert.Alert)
		}
	}
	maps.DeleteFunc(sections, func(name string, _ bool) bool { return seen[name] })
	for name := range sections {
		t.Errorf("docs/alerts.md has a section for %s, which does not exist", name)
	}
}

func TestMonitoringDashboard(t *testing.T) {
	series := monitoringTestMetrics(t)
	data, err := os.ReadFile("deploy/chart/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID          int
			Type, Title string
			Datasource  string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	shown := map[string]bool{}
	taken := map[[2]int]string{}
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] {
			t.Errorf("panel %q: its id is another one's too", panel.Title)
		}
		ids[panel.ID] = true
		for x := range panel.GridPos.W {
			for y := range panel.GridPos.H {
				at := [2]int{panel.GridPos.X + x, panel.GridPos.Y + y}
				if other, ok := taken[at]; ok {
					t.Fatalf("panels %q and %q overlap", panel.Title, other)
				}
				taken[at] = panel.Title
			}
		}
		if panel.Type == "row" {
			continue
		}
		if panel.Datasource != "$datasource" || len(panel.Targets) == 0 {
			t.Errorf("panel %q: data source %q, %d queries", panel.Title, panel.Datasource, len(panel.Targets))
		}
		for _, target := range panel.Targets {
			problems, grouped := monitoringTestQuery(series, target.Expr)
			for _, problem := range problems {
				t.Errorf("panel %q: %s", panel.Title, problem)
			}
			for _, match := range monitoringTestLegend.FindAllStringSubmatch(target.LegendFormat, -1) {
				if grouped != nil && !slices.Contains(grouped, match[1]) || grouped == nil && match[1] != "instance" {
					t.Errorf("panel %q: the legend names the label %s, which is not grouped by", panel.Title, match[1])
				}
			}
			for name := range series {
				if regexp.MustCompile(`\b` + name + `\b`).MatchString(target.Expr) {
					shown[strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")] = true
				}
			}
		}
	}
	for _, name := range []string{
		"bucketwarden_backupbucket_locked", "bucketwarden_backupbucket_expected_locked", "bucketwarden_backupbucket_last_verified_timestamp_seconds",
		"bucketwarden_backupbucket_policy_drift_total", "bucketwarden_store_request_duration_seconds", "bucketwarden_reconcile_duration_seconds",
	} {
		if !shown[name] {
			t.Errorf("no panel shows %s", name)
		}
	}
}
