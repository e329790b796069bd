package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bucketwarden/test/env"
)

const deployDir = "../../deploy"

func prometheusBinaries(t *testing.T) env.PrometheusBinaries {
	t.Helper()
	bin, err := env.EnsurePrometheus(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestMonitoringRules(t *testing.T) {
	t.Parallel()
	bin := prometheusBinaries(t)
	for _, args := range [][]string{
		{"check", "rules", filepath.Join(deployDir, "chart", "files", "alerts.yaml")},
		{"test", "rules", filepath.Join(deployDir, "alerts_test.yaml")},
		{"test", "rules", filepath.Join(deployDir, "alerts_backups_test.yaml")},
	} {
		if output, err := exec.CommandContext(t.Context(), bin.Promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, output)
		}
	}
}

// noSeries are metrics that a daemon has no series of until something happens that does
// not happen here, or ever with S3.
var noSeries = []string{
	"bucketwarden_backupbucket_not_served",
	"bucketwarden_backupbucket_policy_extensions_remaining",
	"bucketwarden_backupbucket_next_sweep_timestamp_seconds",
	"bucketwarden_backupbucket_evidence_timestamp_seconds",
	"bucketwarden_backupbucket_key_created_timestamp_seconds",
	"bucketwarden_backupbucket_key_age_known",
	"bucketwarden_backupbucket_key_rotations_total",
	"bucketwarden_backupbucket_probe_timestamp_seconds",
	"bucketwarden_backupbucket_probe_attacks",
	"bucketwarden_backupentry_last_checked_timestamp_seconds",
	"bucketwarden_backupentry_last_full_snapshot_timestamp_seconds",
	"bucketwarden_backupentry_last_delta_snapshot_timestamp_seconds",
	"bucketwarden_backupentry_chain_complete",
	"bucketwarden_backupentry_chain_locked_until_timestamp_seconds",
	"bucketwarden_backupentry_restorable_revision",
	"bucketwarden_backupentry_excluded_snapshots",
	"bucketwarden_backupentry_unannounced_exclusions",
	"bucketwarden_backupentry_suspicious_snapshots",
	"bucketwarden_backupentry_snapshots",
	"bucketwarden_backupentry_snapshot_bytes",
	"bucketwarden_backupentry_content_intact",
	"bucketwarden_backupentry_content_checked_timestamp_seconds",
	"bucketwarden_backupentry_cluster_awake",
	"bucketwarden_purged_objects_total",
	"bucketwarden_purged_bytes_total",
	"bucketwarden_admission_reviews_total",
	"bucketwarden_admission_warnings_total",
	"bucketwarden_admission_review_duration_seconds",
	"bucketwarden_webhook_certificate_expiry_timestamp_seconds",
}

// documentedSeries are the names under which Prometheus has the metrics of docs/metrics.md.
func documentedSeries(t *testing.T) []string {
	t.Helper()
	content, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) \\|").FindAllStringSubmatch(string(content), -1) {
		name := row[1]
		if slices.Contains(noSeries, name) {
			continue
		}
		if row[2] == "histogram" {
			name += "_bucket"
		}
		names = append(names, name)
	}
	if len(names) < 20 {
		t.Fatalf("docs/metrics.md names only %q", names)
	}
	return names
}

// alert is one of Prometheus' /api/v1/alerts.
type alert struct {
	Labels map[string]string
	State  string
}

// evaluated returns the alerts of an evaluation of all rules that began after now.
func evaluated(t *testing.T, p *env.Prometheus) []alert {
	t.Helper()
	since := time.Now()
	var alerts []alert
	eventually(t, "Prometheus has evaluated the rules", func(ctx context.Context) error {
		var rules struct {
			Groups []struct {
				LastEvaluation time.Time
				Rules          []struct {
					Name, Health, LastError string
					Alerts                  []alert
				}
			}
		}
		if err := p.Get(ctx, "/api/v1/rules", &rules); err != nil {
			return err
		}
		if len(rules.Groups) == 0 {
			return errors.New("there are no rules")
		}
		alerts = nil
		for _, group := range rules.Groups {
			if !group.LastEvaluation.After(since) {
				return fmt.Errorf("the last evaluation was at %v", group.LastEvaluation)
			}
			for _, rule := range group.Rules {
				if rule.Health != "ok" {
					return fmt.Errorf("rule %s is %s: %s", rule.Name, rule.Health, rule.LastError)
				}
				alerts = append(alerts, rule.Alerts...)
			}
		}
		return nil
	})
	return alerts
}

// awaitAlert waits until an alert about a bucket fires, or does not any more.
func awaitAlert(t *testing.T, p *env.Prometheus, name, bucket string, fires bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("the alert %s of bucket %s fires: %v", name, bucket, fires), func(ctx context.Context) error {
		var answer struct{ Alerts []alert }
		if err := p.Get(ctx, "/api/v1/alerts", &answer); err != nil {
			return err
		}
		firing := slices.ContainsFunc(answer.Alerts, func(a alert) bool {
			return a.State == "firing" && a.Labels["alertname"] == name && a.Labels["bucket"] == bucket
		})
		if firing != fires {
			return fmt.Errorf("there are %v", answer.Alerts)
		}
		return nil
	})
}

// quickInterval is the interval of the audit's rule, which is a second here.
const quickInterval = 15 * time.Minute

// quickRules are the rules that are delivered: what is pending for long in a seed fires at once, and samples for the
// auditor are taken each second.
func quickRules(t *testing.T) []byte {
	t.Helper()
	rules, err := os.ReadFile(filepath.Join(deployDir, "chart", "files", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	rules = regexp.MustCompile(`(?m)^    for: .*$`).ReplaceAll(rules, []byte("    for: 1s"))
	rules = regexp.MustCompile(`(?m)^  interval: 15m$`).ReplaceAll(rules, []byte("  interval: 1s"))
	return rules
}

// A real Prometheus scrapes the daemon and evaluates the rules that are delivered.
func TestMonitoringAlerts(t *testing.T) {
	t.Parallel()
	bin := prometheusBinaries(t)
	d := startDaemon(t)
	rules := quickRules(t)
	proxy := startProxy(t, minio)
	name := newName("bucket")
	writeSecret(t, secretName(buckets, name), minio.SecretData(proxy.URL))
	create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	waitHealthy(t, buckets, name)

	p, err := env.StartPrometheus(t.Context(), env.PrometheusOptions{Binary: bin.Prometheus, MetricsURL: d.MetricsURL, Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)

	want := documentedSeries(t)
	eventually(t, "Prometheus has scraped every documented metric", func(ctx context.Context) error {
		var have []string
		if err := p.Get(ctx, "/api/v1/label/__name__/values", &have); err != nil {
			return err
		}
		if missing := slices.DeleteFunc(slices.Clone(want), func(name string) bool { return slices.Contains(have, name) }); len(missing) > 0 {
			return fmt.Errorf("missing: %q", missing)
		}
		return nil
	})
	// The first evaluation may have come before the first scrape.
	if alerts := evaluated(t, p); len(alerts) > 0 {
		t.Errorf("alerts while all is well: %v", alerts)
	}

	// Somebody takes the lock off, and the daemon may not put it back.
	proxy.SetFault(func(r env.Request) *env.Fault {
		if r.Operation != "PutObjectLockConfiguration" {
			return nil
		}
		return &env.Fault{Status: http.StatusForbidden, Code: "AccessDenied"}
	})
	store.putRetention(t, name, "", 0)
	awaitAlert(t, p, "BucketwardenBucketNotLocked", name, true)
	awaitAlert(t, p, "BucketwardenRetentionTooShort", name, true)

	// As soon as it may, it does. What remains is that it had to.
	proxy.SetFault(nil)
	reconcile(t, buckets, name, nil)
	store.awaitRetention(t, name, "COMPLIANCE 4")
	awaitAlert(t, p, "BucketwardenPolicyDrift", name, true)
	awaitAlert(t, p, "BucketwardenBucketNotLocked", name, false)
	awaitAlert(t, p, "BucketwardenRetentionTooShort", name, false)
}
