package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// metricsTestFull is metrics with a series of every metric.
func metricsTestFull() *metrics {
	m := newMetrics()
	m.initBucket(&backupBucket{object: object{Type: "s3", Region: "eu-1"}})
	setPolicyGauges(m.bucketLocked, m.bucketRetention, "", Policy{})
	setPolicyGauges(m.bucketDesiredLocked, m.bucketDesiredRetention, "", Policy{})
	setPolicyGauges(m.bucketExpectedLocked, m.bucketExpectedRetention, "", Policy{})
	m.bucketForeign.WithLabelValues("")
	m.bucketNotServed.WithLabelValues("")
	m.bucketLastVerified.WithLabelValues("")
	m.setTombstones("", 1, 1, 1, time.Unix(1, 0))
	m.bucketStrangers.WithLabelValues("").Set(1)
	m.showEvidence("", time.Unix(1, 0))
	m.bucketExtensions.WithLabelValues("")
	m.showHardening("", "True", 0)
	m.bucketUnprotected.WithLabelValues("")
	m.bucketKeyAgeKnown.WithLabelValues("")
	m.bucketKeyCreated.WithLabelValues("")
	m.bucketKeyRotations.WithLabelValues("")
	m.showProbe("", metricsTestProbe)
	m.entries.watch(&backupEntry{})
	m.entries.set(&backupEntry{}, entryState{checked: time.Now(), full: time.Now(), delta: time.Now(), known: true, complete: true,
		lock: chainLock{known: true}, exclusionsKnown: true, cluster: awake})
	m.entries.setDeep(&backupEntry{}, deepState{at: time.Now(), intact: true})
	m.purgedObjects.WithLabelValues("")
	m.purgedBytes.WithLabelValues("")
	m.observeStoreRequest(storeS3, "", outcomeSuccess, 0)
	m.endpointOpen.WithLabelValues("")
	m.info.WithLabelValues("", "")
	m.endpointWaiting.WithLabelValues("")
	m.Increment(context.Background(), "200", "GET", "")
	m.admissionReviews.WithLabelValues("", "", outcomeAllowed)
	m.admissionWarnings.WithLabelValues("", "")
	m.admissionDuration.WithLabelValues("")
	m.webhookCertificateExpiry.WithLabelValues()
	for _, use := range []func(string){
		func(n string) { m.queue.NewDepthMetric(n) }, func(n string) { m.queue.NewAddsMetric(n) },
		func(n string) { m.queue.NewLatencyMetric(n) }, func(n string) { m.queue.NewWorkDurationMetric(n) },
		func(n string) { m.queue.NewUnfinishedWorkSecondsMetric(n) }, func(n string) { m.queue.NewLongestRunningProcessorSecondsMetric(n) },
		func(n string) { m.queue.NewRetriesMetric(n) },
	} {
		use("")
	}
	return m
}

// metricsTestProbe is a probe that has proven a lock: four series.
var metricsTestProbe = probeResult{at: time.Now(), attacks: []probeAttack{{name: attackDelete, outcome: refusedByLock}}}

// metricsTestGroup says that a metric is one of client_golang's collectors, which are
// documented as a group.
func metricsTestGroup(name string) bool {
	return strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_")
}

// metricsTestUnit is the unit in a metric's name.
func metricsTestUnit(name string) string {
	switch name = strings.TrimSuffix(name, "_total"); {
	case strings.HasSuffix(name, "_seconds"):
		return "seconds"
	case strings.HasSuffix(name, "_bytes"):
		return "bytes"
	default:
		return "-"
	}
}

// TestMetricsDocument compares every row of docs/metrics.md with the code.
func TestMetricsDocument(t *testing.T) {
	families, err := metricsTestFull().registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	code := map[string]string{}
	groups := map[string]bool{}
	for _, family := range families {
		name := family.GetName()
		if metricsTestGroup(name) {
			prefix, _, _ := strings.Cut(name, "_")
			groups["`"+prefix+"_*`"] = true
			continue
		}
		labels := []string{}
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+label.GetName()+"`")
		}
		kind := strings.ToLower(family.GetType().String())
		code[name] = fmt.Sprintf("| `%s` | %s | %s | %s | %s |", name, kind, metricsTestUnit(name), strings.Join(labels, ", "), family.GetHelp())
	}

	data, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	document := map[string]string{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		cells := strings.Split(line, "|")
		if len(cells) != 7 || !strings.HasPrefix(line, "| `") {
			continue
		}
		name := strings.Trim(cells[1], " `")
		if strings.HasSuffix(name, "*") {
			continue
		}
		if _, twice := document[name]; twice {
			t.Errorf("%s is documented twice", name)
		}
		document[name] = line
	}
	// Labels are compared in the order of their names.
	for name, want := range code {
		got, ok := document[name]
		switch {
		case !ok:
			t.Errorf("not documented: %s", want)
		case metricsTestSortLabels(got) != want:
			t.Errorf("%s\ndocumented as %s\nis in truth    %s", name, got, want)
		}
	}
	for name := range document {
		if _, ok := code[name]; !ok {
			t.Errorf("documented, but not in the code: %s", name)
		}
	}
	for group := range groups {
		if !strings.Contains(string(data), "| "+group+" |") {
			t.Errorf("the group %s is not documented", group)
		}
	}
	if len(groups) != 2 {
		t.Errorf("collectors of the process: got %v, want both", slices.Sorted(maps.Keys(groups)))
	}

	// Queries name only metrics that exist.
	exists := func(word string) bool {
		for _, suffix := range []string{"", "_bucket", "_count", "_sum"} {
			if base, ok := strings.CutSuffix(word, suffix); ok && (code[base] != "" || metricsTestGroup(base)) {
				return true
			}
		}
		return false
	}
	for _, word := range strings.FieldsFunc(string(data), func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') }) {
		if strings.HasPrefix(word, "bucketwarden_") && !strings.HasSuffix(word, "_") && !exists(word) {
			t.Errorf("docs/metrics.md names %s, which does not exist", word)
		}
	}
}

func metricsTestSortLabels(row string) string {
	cells := strings.Split(row, "|")
	labels := strings.Split(strings.TrimSpace(cells[4]), ", ")
	slices.Sort(labels)
	cells[4] = " " + strings.Join(labels, ", ") + " "
	return strings.Join(cells, "|")
}

// A metric that metricsTestFull does not know would escape the comparison.
func TestMetricsAreAllTouched(t *testing.T) {
	m := metricsTestFull()
	described := make(chan *prometheus.Desc, 1000)
	m.registry.Describe(described)
	close(described)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	gathered := map[string]bool{}
	for _, family := range families {
		gathered[family.GetName()] = true
	}
	for desc := range described {
		_, name, _ := strings.Cut(desc.String(), `fqName: "`)
		name, _, _ = strings.Cut(name, `"`)
		if !gathered[name] && !metricsTestGroup(name) {
			t.Errorf("%s has no series", name)
		}
	}
}

func TestMetricsLint(t *testing.T) {
	families, err := metricsTestFull().registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
}

// metricsTestOf lists the series that have a label with a value, with their values.
func metricsTestOf(t *testing.T, m *metrics, label, value string) map[string]float64 {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name, found := family.GetName(), false
			for _, pair := range metric.GetLabel() {
				name += "," + pair.GetName() + "=" + pair.GetValue()
				found = found || pair.GetName() == label && pair.GetValue() == value
			}
			if found {
				series[strings.TrimPrefix(name, "bucketwarden_")] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
			}
		}
	}
	return series
}

func TestInitBucket(t *testing.T) {
	m := newMetrics()
	b := &backupBucket{object: object{Type: "s3", Region: "eu-1"}}
	b.Name = "a"
	m.initBucket(b)
	want := map[string]float64{
		"backupbucket_info,bucket=a,region=eu-1,type=s3": 1,
		"backupbucket_policy_drift_total,bucket=a":       0,
		"backupbucket_policy_repairs_total,bucket=a":     0,
		"backupbucket_policy_locks_total,bucket=a":       0,
		"purge_failures_total,bucket=a":                  0,

		"backupbucket_extension_failures_total,bucket=a":                  0,
		"backupbucket_extended_versions_total,bucket=a,reason=chain":      0,
		"backupbucket_extended_versions_total,bucket=a,reason=gap":        0,
		"backupbucket_extended_versions_total,bucket=a,reason=governance": 0,
		"backupbucket_extended_versions_total,bucket=a,reason=growth":     0,
		"policy_refusals_total,bucket=a,reason=disable":                   0,
		"policy_refusals_total,bucket=a,reason=unlock":                    0,
		"policy_refusals_total,bucket=a,reason=shorten":                   0,
		"policy_refusals_total,bucket=a,reason=extend":                    0,
	}
	if got := metricsTestOf(t, m, "bucket", "a"); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	// Again, with another region: counters stay, and there is one info.
	m.bucketDrift.WithLabelValues("a").Inc()
	b.Region = "eu-2"
	m.initBucket(b)
	delete(want, "backupbucket_info,bucket=a,region=eu-1,type=s3")
	want["backupbucket_info,bucket=a,region=eu-2,type=s3"] = 1
	want["backupbucket_policy_drift_total,bucket=a"] = 1
	if got := metricsTestOf(t, m, "bucket", "a"); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestForgetBucket(t *testing.T) {
	m := newMetrics()
	for _, name := range []string{"a", "b"} {
		b := &backupBucket{}
		b.Name = name
		m.initBucket(b)
		setPolicyGauges(m.bucketLocked, m.bucketRetention, name, Policy{Days: 1, Locked: true})
		setPolicyGauges(m.bucketDesiredLocked, m.bucketDesiredRetention, name, Policy{Days: 1, Locked: true})
		setPolicyGauges(m.bucketExpectedLocked, m.bucketExpectedRetention, name, Policy{Days: 1, Locked: true})
		m.bucketForeign.WithLabelValues(name)
		m.bucketLastVerified.WithLabelValues(name)
		m.setTombstones(name, 1, 2, 3, time.Unix(4, 0))
		m.bucketStrangers.WithLabelValues(name).Set(1)
		m.bucketExtensions.WithLabelValues(name)
		m.showHardening(name, "False", 2)
		m.bucketKeyAgeKnown.WithLabelValues(name)
		m.bucketKeyCreated.WithLabelValues(name)
		m.bucketKeyRotations.WithLabelValues(name)
		m.showProbe(name, metricsTestProbe)
	}
	others := metricsTestOf(t, m, "bucket", "b")
	if len(others) != 37 {
		t.Fatalf("got %v", others)
	}
	m.forgetBucket("a")
	if left := metricsTestOf(t, m, "bucket", "a"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if got := metricsTestOf(t, m, "bucket", "b"); !maps.Equal(got, others) {
		t.Errorf("another bucket has %v, had %v", got, others)
	}
}

func TestSetPolicyGauges(t *testing.T) {
	m := newMetrics()
	tests := []struct {
		policy          Policy
		locked, seconds float64
	}{
		{Policy{Days: 4, Locked: true}, 1, 345600},
		{Policy{Days: 4}, 0, 345600},
		{Policy{}, 0, 0},
		{Policy{Days: s3MaxRetentionDays, Locked: true}, 1, 36500 * 86400},
		{Policy{Days: azureMaxRetentionDays, Locked: true}, 1, 146000 * 86400},
	}
	for _, test := range tests {
		setPolicyGauges(m.bucketLocked, m.bucketRetention, "a", test.policy)
		want := map[string]float64{"backupbucket_locked,bucket=a": test.locked, "backupbucket_retention_seconds,bucket=a": test.seconds}
		if got := metricsTestOf(t, m, "bucket", "a"); !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", test.policy, got, want)
		}
	}
}

func TestMetricsOfRequests(t *testing.T) {
	m := newMetrics()
	m.observeStoreRequest(storeS3, "GetObjectLockConfiguration", outcomeExpected, 20*time.Millisecond)
	if got := queueTestSeries(t, m, "bucketwarden_store_request_duration_seconds", "operation", "GetObjectLockConfiguration", "outcome", "expected", "store", "s3"); got != 1 {
		t.Errorf("store requests: got %v, want 1", got)
	}
	m.Increment(t.Context(), "409", "PATCH", "api.example.com")
	if got := queueTestSeries(t, m, "rest_client_requests_total", "code", "409", "method", "PATCH"); got != 1 {
		t.Errorf("API requests: got %v, want 1", got)
	}
	for _, resource := range []string{resourceBackupBuckets, resourceBackupEntries, resourceSweeps} {
		for _, outcome := range []string{outcomeSuccess, outcomeAgain, outcomeError, outcomePanic} {
			if got := queueTestSeries(t, m, "bucketwarden_reconcile_duration_seconds", "outcome", outcome, "resource", resource); got != 0 {
				t.Errorf("reconciles of %s, %s: got %v, want 0", resource, outcome, got)
			}
		}
		if got := queueTestSeries(t, m, "bucketwarden_reconcile_panics_total", "resource", resource); got != 0 {
			t.Errorf("panics of %s: got %v, want 0", resource, got)
		}
	}
}
