package e2e

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"bucketwarden/test/env"
)

// pendingMetrics are metrics that the rules use and the daemon does not have yet, by queries that stand in for them.
var pendingMetrics = map[string]string{
	"bucketwarden_info":                                    `label_replace(bucketwarden_build_info, "role", "controllers", "", "")`,
	"bucketwarden_backupbucket_expected_locked":            "bucketwarden_backupbucket_desired_locked",
	"bucketwarden_backupbucket_expected_retention_seconds": "bucketwarden_backupbucket_desired_retention_seconds",
	"bucketwarden_backupbucket_policy_repairs_total":       "bucketwarden_backupbucket_policy_drift_total + 0",
	"bucketwarden_backupbucket_foreign_policy":             "0 * bucketwarden_backupbucket_locked",
	"bucketwarden_backupbucket_hardening_gaps":             "1 - bucketwarden_backupbucket_hardened",
	"bucketwarden_failing_objects": `sum by (job, instance, resource) (increase(bucketwarden_reconcile_duration_seconds_count{` +
		`outcome="error"}[1m])) > bool 0`,
}

// pendingRules makes the stand-ins. They go as soon as the daemon has the metrics.
func pendingRules(t *testing.T, d *daemon) []byte {
	t.Helper()
	var rules strings.Builder
	rules.WriteString("- name: pending\n  rules:\n")
	for _, name := range slices.Sorted(maps.Keys(pendingMetrics)) {
		if _, err := d.Value(t.Context(), name); !errors.Is(err, env.ErrNoSeries) {
			t.Errorf("the daemon has %s now: take it out of pendingMetrics", name)
			continue
		}
		fmt.Fprintf(&rules, "  - record: %s\n    expr: %s\n", name, pendingMetrics[name])
	}
	return []byte(rules.String())
}
