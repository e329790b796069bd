package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bucketwarden/test/env"

	"sigs.k8s.io/yaml"
)

// The table of situations: what Prometheus has, and exactly which alerts fire then. promtool evaluates the rules that are
// delivered, minute by minute.
//
// A situation is a healthy seed and what is different. Series are written without the labels that those of a seed have in
// common (namespace, job, instance), unless they differ; values as promtool reads them, one a minute: "1x119 0x660" is 1
// for the minutes 0 to 119, and 0 from minute 120 on; "stale" ends a series. What happens, happens after two hours.
//
// Alerts are written "severity Name{labels}", without the namespace of the seed. What is not listed must not fire.
type situation struct {
	name string
	// seeds are healthy daemons, by cluster; one without the label if there are none.
	seeds []scraped
	// series are added, or instead of those of a healthy seed.
	series map[string]string
	// gone ends every series of the seeds with these labels, after two hours.
	gone map[string]string
	// fires says what fires at a time; nothing else does.
	fires map[string][]string
}

// scraped is a healthy daemon with two replicas. absent is no seed at all.
type scraped struct {
	labels  string
	buckets []string
	absent  bool
}

var (
	nothing      []string
	oneBucket    = []scraped{{buckets: []string{"x", "y"}}}
	noSeed       = []scraped{{absent: true}}
	admissionPod = map[string]string{
		`bucketwarden_build_info{instance="w"}`:                                   "1x1800",
		`bucketwarden_info{instance="w",role="admission",class="garden"}`:         "1x1800",
		`bucketwarden_webhook_certificate_expiry_timestamp_seconds{instance="w"}`: "7776000x1800",
		`process_start_time_seconds{instance="w"}`:                                "0x1800",
	}
)

// observing is a daemon with --observe, and a bucket x that is as its owner was asked to make it.
var observing = map[string]string{
	`bucketwarden_build_info{}`:                                             "1x1800",
	`bucketwarden_info{role="observer",class="shoot"}`:                      "1x1800",
	`bucketwarden_leader{}`:                                                 "1x1800",
	`process_start_time_seconds{}`:                                          "0x1800",
	`bucketwarden_backupbucket_info{bucket="x",type="aws",region="r"}`:      "1x1800",
	`bucketwarden_backupbucket_expected_locked{bucket="x"}`:                 "1x1800",
	`bucketwarden_backupbucket_expected_retention_seconds{bucket="x"}`:      "345600x1800",
	`bucketwarden_backupbucket_locked{bucket="x"}`:                          "1x1800",
	`bucketwarden_backupbucket_retention_seconds{bucket="x"}`:               "345600x1800",
	`bucketwarden_backupbucket_last_verified_timestamp_seconds{bucket="x"}`: "0+60x1800",
	`bucketwarden_backupbucket_policy_drift_total{bucket="x"}`:              "0x1800",
	`bucketwarden_backupbucket_foreign_policy{bucket="x"}`:                  "0x1800",
}

// unlocked is a bucket x whose policy was removed after two hours.
var unlocked = map[string]string{
	`bucketwarden_backupbucket_locked{bucket="x"}`:             "1x119 0x1680",
	`bucketwarden_backupbucket_retention_seconds{bucket="x"}`:  "345600x119 0x1680",
	`bucketwarden_backupbucket_policy_drift_total{bucket="x"}`: "0x119 1x1680",
	`bucketwarden_failing_objects{resource="backupbuckets"}`:   "0x122 1x1680",
}

// unknown is a bucket x that has not been verified since two hours, so that its state is not known 15 minutes later.
var unknown = map[string]string{
	`bucketwarden_backupbucket_last_verified_timestamp_seconds{bucket="x"}`: "0+60x119 7140x1680",
	`bucketwarden_backupbucket_locked{bucket="x"}`:                          "1x134 stale",
	`bucketwarden_backupbucket_retention_seconds{bucket="x"}`:               "345600x134 stale",
	`bucketwarden_backupbucket_hardened{bucket="x"}`:                        "1x134 stale",
	`bucketwarden_backupbucket_hardening_gaps{bucket="x"}`:                  "0x134 stale",
	`bucketwarden_backupbucket_foreign_policy{bucket="x"}`:                  "0x134 stale",
	`bucketwarden_failing_objects{resource="backupbuckets"}`:                "0x122 1x1680",
}

// together is the first of several sets of series, with what is different in the others.
func together(sets ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, set := range sets {
		maps.Copy(all, set)
	}
	return all
}

func manyBuckets() (names []string) {
	for i := range 50 {
		names = append(names, fmt.Sprintf("bucket-%d", i))
	}
	return names
}

var situations = []situation{
	{
		name:  "a healthy large seed",
		seeds: []scraped{{buckets: manyBuckets()}},
		fires: map[string][]string{"1m": nothing, "6m": nothing, "1h": nothing, "6h10m": nothing},
	},
	{
		name: "a new install: the first bucket takes ten minutes",
		series: map[string]string{
			`bucketwarden_backupbucket_info{bucket="new",type="aws",region="r"}`:      "_x119 1x1680",
			`bucketwarden_backupbucket_expected_locked{bucket="new"}`:                 "_x119 1x1680",
			`bucketwarden_backupbucket_expected_retention_seconds{bucket="new"}`:      "_x119 345600x1680",
			`bucketwarden_backupbucket_locked{bucket="new"}`:                          "_x124 0x4 1x1680",
			`bucketwarden_backupbucket_retention_seconds{bucket="new"}`:               "_x124 0x4 345600x1680",
			`bucketwarden_backupbucket_last_verified_timestamp_seconds{bucket="new"}`: "_x124 7500+60x1680",
			`bucketwarden_backupbucket_policy_drift_total{bucket="new"}`:              "_x119 0x1680",
			`bucketwarden_backupbucket_policy_repairs_total{bucket="new"}`:            "_x119 0x1680",
			`bucketwarden_policy_refusals_total{bucket="new",reason="shorten"}`:       "_x119 0x1680",
			`bucketwarden_backupbucket_policy_locks_total{bucket="new"}`:              "_x124 0x4 1x1680",
			`bucketwarden_backupbucket_hardening_gaps{bucket="new"}`:                  "_x130 2x1680",
			`bucketwarden_backupbucket_foreign_policy{bucket="new"}`:                  "_x130 0x1680",
			`bucketwarden_backupbucket_policy_extensions_remaining{bucket="new"}`:     "_x130 5x1680",
			`bucketwarden_backupbucket_key_age_known{bucket="new"}`:                   "_x130 1x1680",
			`bucketwarden_backupbucket_key_created_timestamp_seconds{bucket="new"}`:   "_x130 7500x1680",
		},
		fires: map[string][]string{"2h5m": nothing, "2h14m": nothing, "3h": nothing},
	},
	{
		name:  "nothing was ever scraped",
		seeds: noSeed,
		fires: map[string][]string{"4m": nothing, "6m": {`critical BucketwardenDown{namespace=""}`}, "2h": {`critical BucketwardenDown{namespace=""}`}},
	},
	{
		name:  "the daemon is gone",
		gone:  map[string]string{},
		fires: map[string][]string{"2h4m": nothing, "2h10m": {`critical BucketwardenDown{}`, `critical BucketwardenDown{namespace=""}`}, "3h": {`critical BucketwardenDown{}`, `critical BucketwardenDown{namespace=""}`}},
	},
	{
		name: "the daemon is gone, admission only is left",
		gone: map[string]string{"instance": "a|b"}, series: admissionPod,
		fires: map[string][]string{"2h4m": nothing, "2h10m": {`critical BucketwardenDown{}`}, "26h": {`critical BucketwardenDown{}`}},
	},
	{
		name:  "a daemon is gone, another cluster's daemon is left",
		seeds: []scraped{{labels: `cluster="eu"`, buckets: []string{"x"}}, {labels: `cluster="us"`, buckets: []string{"x"}}},
		gone:  map[string]string{"cluster": "eu"},
		fires: map[string][]string{"2h4m": nothing, "2h10m": {`critical BucketwardenDown{cluster="eu"}`}, "3h": {`critical BucketwardenDown{cluster="eu"}`}},
	},
	{
		name:  "a daemon is gone, one in another namespace is left",
		seeds: []scraped{{labels: `namespace="one"`, buckets: []string{"x"}}, {labels: `namespace="two"`, buckets: []string{"y"}}},
		gone:  map[string]string{"namespace": "one"},
		fires: map[string][]string{"2h4m": nothing, "2h10m": {`critical BucketwardenDown{namespace="one"}`}},
	},
	{
		name:   "the lease is lost, and nobody takes it",
		series: map[string]string{`bucketwarden_leader{}`: "1x119 0x1680"},
		fires:  map[string][]string{"2h4m": nothing, "2h6m": {`critical BucketwardenDown{}`}},
	},
	{
		name:   "a replica hands over to the other",
		series: map[string]string{`bucketwarden_leader{}`: "1x119 0x1680", `bucketwarden_leader{instance="b"}`: "0x121 1x1680"},
		fires:  map[string][]string{"2h2m": nothing, "2h10m": nothing},
	},
	{
		name:   "replicas run and tell nothing of leadership",
		series: map[string]string{`bucketwarden_leader{}`: "1x119 stale", `bucketwarden_leader{instance="b"}`: "0x119 stale"},
		fires:  map[string][]string{"2h4m": nothing, "2h10m": {`critical BucketwardenDown{}`}},
	},
	{
		name:   "the CRDs are gone: lists fail, nothing is verified",
		series: together(unknown, map[string]string{`bucketwarden_leader{}`: "1x119 0x1680", `bucketwarden_failing_objects{resource="backupbuckets"}`: "0x1800"}),
		fires: map[string][]string{"2h4m": nothing, "2h10m": {`critical BucketwardenDown{}`},
			"3h": {`critical BucketwardenDown{}`, `critical BucketwardenBucketNotVerified{bucket="x"}`}},
	},
	{
		name: "an admission-only replica alone", seeds: noSeed, series: admissionPod,
		fires: map[string][]string{"6m": nothing, "2h": nothing},
	},
	{
		name: "the admission-only replica is gone", series: admissionPod, gone: map[string]string{"instance": "w"},
		fires: map[string][]string{"2h4m": nothing, "2h10m": {`warning BucketwardenAdmissionDown{}`}},
	},
	{
		name: "a restart of the container: counters from zero, the state is known again three minutes later",
		series: map[string]string{
			`process_start_time_seconds{}`:                                          "0x119 7200x1680",
			`bucketwarden_leader{}`:                                                 "1x119 0x2 1x1680",
			`bucketwarden_backupbucket_locked{bucket="x"}`:                          "1x119 stale _x2 1x1680",
			`bucketwarden_backupbucket_retention_seconds{bucket="x"}`:               "345600x119 stale _x2 345600x1680",
			`bucketwarden_backupbucket_last_verified_timestamp_seconds{bucket="x"}`: "0+60x119 stale _x2 7380+60x1680",
			`bucketwarden_backupbucket_policy_drift_total{bucket="x"}`:              "3x119 0x1680",
			`bucketwarden_backupbucket_policy_repairs_total{bucket="x"}`:            "3x119 0x1680",
		},
		fires: map[string][]string{"2h2m": nothing, "2h10m": nothing, "4h": nothing},
	},
	{
		name: "a short loss of leadership does not tell of drift of long ago again",
		series: map[string]string{
			`bucketwarden_leader{}`: "1x599 0x2 1x1200",
			`bucketwarden_backupbucket_policy_drift_total{bucket="x"}`:                "0x119 1x1680",
			`bucketwarden_backupbucket_policy_repairs_total{bucket="x"}`:              "0x119 1x1680",
			`bucketwarden_policy_refusals_total{bucket="x",reason="shorten"}`:         "0x119 1x1680",
			`bucketwarden_admission_denials_total{resource="seeds",reason="shorten"}`: "0x1800",
			`bucketwarden_reconcile_duration_seconds_count{resource="r",outcome="e"}`: "0x1800",
		},
		fires: map[string][]string{"2h10m": {`critical BucketwardenPolicyDrift{bucket="x"}`, `warning BucketwardenWeakeningRefused{bucket="x",reason="shorten"}`},
			"9h": nothing, "10h1m": nothing, "10h5m": nothing},
	},
	{
		name: "one bucket is tampered with, and repaired at once",
		series: map[string]string{
			`bucketwarden_backupbucket_policy_drift_total{bucket="x"}`:   "0x119 1x1680",
			`bucketwarden_backupbucket_policy_repairs_total{bucket="x"}`: "0x119 1x1680",
			`bucketwarden_backupbucket_policy_locks_total{bucket="x"}`:   "1x119 2x1680",
		},
		fires: map[string][]string{"2h1m": {`critical BucketwardenPolicyDrift{bucket="x"}`}, "3h": {`critical BucketwardenPolicyDrift{bucket="x"}`}, "8h5m": nothing},
	},
	{
		name:   "one bucket is tampered with, and the repair is denied",
		series: unlocked,
		fires: map[string][]string{"2h1m": {`critical BucketwardenPolicyDrift{bucket="x"}`},
			"2h10m": {`critical BucketwardenPolicyDrift{bucket="x"}`, `critical BucketwardenRepairFailing{bucket="x"}`},
			"2h40m": {`critical BucketwardenBucketNotLocked{bucket="x"}`, `critical BucketwardenPolicyDrift{bucket="x"}`, `critical BucketwardenRepairFailing{bucket="x"}`,
				`critical BucketwardenRetentionTooShort{bucket="x"}`, `warning BucketwardenReconcileFailing{resource="backupbuckets"}`},
			"8h10m": {`critical BucketwardenBucketNotLocked{bucket="x"}`, `critical BucketwardenRepairFailing{bucket="x"}`,
				`critical BucketwardenRetentionTooShort{bucket="x"}`, `warning BucketwardenReconcileFailing{resource="backupbuckets"}`}},
	},
	{
		name:   "an observer sees a bucket tampered with, and repairs nothing",
		seeds:  noSeed,
		series: together(observing, unlocked, map[string]string{`bucketwarden_failing_objects{resource="backupbuckets"}`: "0x1800"}),
		fires: map[string][]string{"1h": nothing, "2h1m": {`critical BucketwardenPolicyDrift{bucket="x"}`},
			"2h40m": {`critical BucketwardenBucketNotLocked{bucket="x"}`, `critical BucketwardenPolicyDrift{bucket="x"}`, `critical BucketwardenRetentionTooShort{bucket="x"}`},
			"8h10m": {`critical BucketwardenBucketNotLocked{bucket="x"}`, `critical BucketwardenRetentionTooShort{bucket="x"}`}},
	},
	{
		name:   "an observer does not get through any more",
		seeds:  noSeed,
		series: together(observing, map[string]string{`bucketwarden_leader{}`: "1x119 0x1680"}),
		fires:  map[string][]string{"1h": nothing, "2h4m": nothing, "2h10m": {`critical BucketwardenDown{}`}},
	},
	{
		name: "the same, and the spec is broken or asks for nothing",
		series: together(unlocked, map[string]string{
			`bucketwarden_backupbucket_desired_locked{bucket="x"}`:            "1x119 0x1680",
			`bucketwarden_backupbucket_desired_retention_seconds{bucket="x"}`: "345600x119 0x1680",
		}),
		fires: map[string][]string{"3h": {`critical BucketwardenPolicyDrift{bucket="x"}`, `critical BucketwardenBucketNotLocked{bucket="x"}`, `critical BucketwardenRepairFailing{bucket="x"}`,
			`critical BucketwardenRetentionTooShort{bucket="x"}`, `warning BucketwardenReconcileFailing{resource="backupbuckets"}`}},
	},
	{
		name: "the same, and nothing can be read of the bucket any more",
		series: together(unlocked, map[string]string{
			`bucketwarden_backupbucket_locked{bucket="x"}`:                          "1x119 0x14 stale",
			`bucketwarden_backupbucket_retention_seconds{bucket="x"}`:               "345600x119 0x14 stale",
			`bucketwarden_backupbucket_last_verified_timestamp_seconds{bucket="x"}`: "0+60x119 7200x1680",
		}),
		fires: map[string][]string{
			"2h30m": {`critical BucketwardenPolicyDrift{bucket="x"}`, `critical BucketwardenRepairFailing{bucket="x"}`},
			"3h10m": {`critical BucketwardenPolicyDrift{bucket="x"}`, `critical BucketwardenBucketNotVerified{bucket="x"}`, `critical BucketwardenRepairFailing{bucket="x"}`,
				`warning BucketwardenReconcileFailing{resource="backupbuckets"}`}},
	},
	{
		name: "what is expected of an unlocked bucket is not known",
		series: map[string]string{
			`bucketwarden_backupbucket_locked{bucket="x"}`:                     "1x119 0x1680",
			`bucketwarden_backupbucket_retention_seconds{bucket="x"}`:          "345600x119 0x1680",
			`bucketwarden_backupbucket_expected_locked{bucket="x"}`:            "1x119 stale",
			`bucketwarden_backupbucket_expected_retention_seconds{bucket="x"}`: "345600x119 stale",
		},
		fires: map[string][]string{"2h40m": {`critical BucketwardenBucketNotLocked{bucket="x"}`, `critical BucketwardenRetentionTooShort{bucket="x"}`}},
	},
	{
		name: "a tampered policy is put right by hand",
		series: map[string]string{
			`bucketwarden_backupbucket_locked{bucket="x"}`:             "1x119 0x9 1x1680",
			`bucketwarden_backupbucket_retention_seconds{bucket="x"}`:  "345600x119 0x9 345600x1680",
			`bucketwarden_backupbucket_policy_drift_total{bucket="x"}`: "0x119 1x1680",
		},
		fires: map[string][]string{"2h8m": {`critical BucketwardenPolicyDrift{bucket="x"}`, `critical BucketwardenRepairFailing{bucket="x"}`},
			"2h40m": {`critical BucketwardenPolicyDrift{bucket="x"}`}},
	},
	{
		name: "a spec is broken",
		series: map[string]string{
			`bucketwarden_backupbucket_desired_locked{bucket="x"}`:            "1x119 0x1680",
			`bucketwarden_backupbucket_desired_retention_seconds{bucket="x"}`: "345600x119 0x1680",
			`bucketwarden_failing_objects{resource="backupbuckets"}`:          "0x122 1x1680",
		},
		fires: map[string][]string{"2h20m": nothing, "2h40m": {`warning BucketwardenReconcileFailing{resource="backupbuckets"}`}},
	},
	{
		name: "a spec that would weaken the lock is stored",
		series: map[string]string{
			`bucketwarden_policy_refusals_total{bucket="x",reason="shorten"}`: "0x119 1x1680",
			`bucketwarden_failing_objects{resource="backupbuckets"}`:          "0x122 1x1680",
		},
		fires: map[string][]string{"2h1m": {`warning BucketwardenWeakeningRefused{bucket="x",reason="shorten"}`},
			"2h40m": {`warning BucketwardenReconcileFailing{resource="backupbuckets"}`, `warning BucketwardenWeakeningRefused{bucket="x",reason="shorten"}`}},
	},
	{
		name: "weakening is denied at admission, by the webhook and by the policy",
		series: map[string]string{
			`bucketwarden_admission_denials_total{resource="seeds",reason="shorten"}`:                                      "0x119 1x1680",
			`apiserver_validating_admission_policy_check_total{job="k",policy="bucketwarden",enforcement_action="deny"}`:   "_x119 1x1680",
			`apiserver_validating_admission_policy_check_total{job="k",policy="bucketwarden",enforcement_action="allow"}`:  "0+1x1800",
			`apiserver_validating_admission_policy_check_total{job="k",policy="somebody-elses",enforcement_action="deny"}`: "0+1x1800",
			`bucketwarden_admission_denials_total{resource="backupbuckets.extensions.gardener.cloud",reason="invalid"}`:    "0x119 1x1680",
		},
		fires: map[string][]string{"2h1m": {`warning BucketwardenWeakeningDenied{resource="seeds",reason="shorten"}`, `warning BucketwardenWeakeningDenied{namespace="",policy="bucketwarden"}`}, "3h": {`warning BucketwardenWeakeningDenied{resource="seeds",reason="shorten"}`, `warning BucketwardenWeakeningDenied{namespace="",policy="bucketwarden"}`}},
	},
	{
		name: "verification is denied", series: unknown,
		fires: map[string][]string{"2h30m": nothing,
			"2h40m": {`warning BucketwardenReconcileFailing{resource="backupbuckets"}`},
			"2h50m": {`critical BucketwardenBucketNotVerified{bucket="x"}`, `warning BucketwardenReconcileFailing{resource="backupbuckets"}`},
			"4h":    {`critical BucketwardenBucketNotVerified{bucket="x"}`, `warning BucketwardenReconcileFailing{resource="backupbuckets"}`}},
	},
	{
		name:   "a bucket that was never verified",
		series: map[string]string{`bucketwarden_backupbucket_info{bucket="never",type="aws",region="r"}`: "_x119 1x1680"},
		fires:  map[string][]string{"2h25m": nothing, "2h40m": {`critical BucketwardenBucketNotVerified{bucket="never"}`}},
	},
	{
		name: "the store is down",
		series: together(unknown, map[string]string{
			`bucketwarden_endpoint_breaker_open{endpoint="s3.example.com"}`: "0x119 1x1680",
		}),
		fires: map[string][]string{"2h10m": nothing, "2h20m": {`warning BucketwardenEndpointDown{endpoint="s3.example.com"}`},
			"3h": {`critical BucketwardenBucketNotVerified{bucket="x"}`, `warning BucketwardenEndpointDown{endpoint="s3.example.com"}`,
				`warning BucketwardenReconcileFailing{resource="backupbuckets"}`}},
	},
	{
		name: "a deletion waits, held by a legal hold: the bucket is looked at",
		series: map[string]string{
			`bucketwarden_backupbucket_tombstones{bucket="x"}`:       "0x1800",
			`bucketwarden_backupbucket_retained_objects{bucket="x"}`: "7x1800",
		},
		fires: map[string][]string{"4h": nothing},
	},
	{
		name:   "a deletion waits, and the bucket is not looked at",
		series: together(unknown, map[string]string{`bucketwarden_backupbucket_tombstones{bucket="x"}`: "0x1800", `bucketwarden_backupbucket_retained_objects{bucket="x"}`: "7x1800"}),
		fires:  map[string][]string{"3h": {`critical BucketwardenBucketNotVerified{bucket="x"}`, `warning BucketwardenReconcileFailing{resource="backupbuckets"}`}},
	},
	{
		name: "somebody gives a bucket a longer lock: a week, a century",
		series: map[string]string{
			`bucketwarden_backupbucket_foreign_policy{bucket="x"}`:    "0x119 1x1680",
			`bucketwarden_backupbucket_retention_seconds{bucket="x"}`: "345600x119 604800x1680",
			`bucketwarden_backupbucket_foreign_policy{bucket="y"}`:    "0x119 1x1680",
			`bucketwarden_backupbucket_retention_seconds{bucket="y"}`: "345600x119 3153600000x1680",
		},
		fires: map[string][]string{"2h10m": nothing, "2h20m": {`critical BucketwardenForeignPolicy{bucket="y"}`, `warning BucketwardenForeignPolicy{bucket="x"}`}},
	},
	{
		name: "a bucket loses a part of its hardening; another never had it; one was not looked at for a while",
		series: map[string]string{
			`bucketwarden_backupbucket_hardening_gaps{bucket="x"}`:     "0x119 1x1680",
			`bucketwarden_backupbucket_hardening_gaps{bucket="y"}`:     "2x119 stale _x60 2x1680",
			`bucketwarden_backupbucket_hardening_gaps{bucket="minio"}`: "3x1800",
		},
		fires: map[string][]string{"2h10m": nothing, "2h20m": {`warning BucketwardenHardeningLost{bucket="x"}`}, "3h": {`warning BucketwardenHardeningLost{bucket="x"}`}},
	},
	{
		name: "six single errors and conflicts, 25 minutes apart among 500 successes a minute",
		series: map[string]string{
			`bucketwarden_reconcile_duration_seconds_count{resource="backupbuckets",outcome="success"}`: "0+500x1800",
			`bucketwarden_reconcile_duration_seconds_count{resource="backupbuckets",outcome="error"}`:   "0x119 1x24 2x24 3x24 4x24 5x24 6x1600",
		},
		fires: map[string][]string{"2h30m": nothing, "3h30m": nothing, "4h30m": nothing, "5h": nothing},
	},
	{
		name:   "one BackupEntry of many fails again and again; others recover",
		series: map[string]string{`bucketwarden_failing_objects{resource="backupentries"}`: "0x119 1x1680", `bucketwarden_failing_objects{resource="sweeps"}`: "0x119 4x20 0x1680"},
		fires:  map[string][]string{"2h25m": nothing, "2h40m": {`warning BucketwardenReconcileFailing{resource="backupentries"}`}},
	},
	{
		name: "a worker hangs, another controller's too",
		series: map[string]string{
			`workqueue_longest_running_processor_seconds{name="sweeps"}`:                    "0x119 0+60x1680",
			`workqueue_longest_running_processor_seconds{job="other",name="backupentries"}`: "0+60x1800",
		},
		fires: map[string][]string{"2h10m": nothing, "2h20m": {`warning BucketwardenReconcileStuck{name="sweeps"}`}},
	},
	{
		name:   "a panic",
		series: map[string]string{`bucketwarden_reconcile_panics_total{resource="backupentries"}`: "0x119 1x1680"},
		fires:  map[string][]string{"2h1m": {`warning BucketwardenPanicked{resource="backupentries"}`}},
	},
	{
		name:   "deleted backups are not purged",
		series: map[string]string{`bucketwarden_backupbucket_next_sweep_timestamp_seconds{bucket="x"}`: "7200x1800"},
		fires:  map[string][]string{"4h50m": nothing, "5h10m": {`warning BucketwardenPurgeOverdue{bucket="x"}`}},
	},
	{
		name:   "a chain of snapshots breaks",
		series: map[string]string{`bucketwarden_backupentry_chain_complete{bucket="x",entry="e"}`: "1x119 0x1680"},
		fires: map[string][]string{"2h4m": nothing, "2h10m": {`critical BucketwardenChainBroken{bucket="x",entry="e"}`},
			"4h":  {`critical BucketwardenChainBroken{bucket="x",entry="e"}`, `critical BucketwardenNoCompleteChain{bucket="x",entry="e"}`},
			"27h": {`critical BucketwardenNoCompleteChain{bucket="x",entry="e"}`}},
	},
	{
		name: "snapshots are excluded that nobody announced, one may be forged, one is damaged",
		series: map[string]string{
			`bucketwarden_backupentry_unannounced_exclusions{bucket="x",entry="e"}`: "0x119 2x1680",
			`bucketwarden_backupentry_suspicious_snapshots{bucket="y",entry="e"}`:   "0x119 1x1680",
			`bucketwarden_backupentry_content_intact{bucket="y",entry="e"}`:         "1x119 0x1680",
		},
		fires: map[string][]string{"1h59m": nothing, "2h1m": {`critical BucketwardenSnapshotsExcluded{bucket="x",entry="e"}`,
			`critical BucketwardenSnapshotSuspicious{bucket="y",entry="e"}`, `critical BucketwardenSnapshotNotIntact{bucket="y",entry="e"}`}},
	},
	{
		name: "attacks of the probe succeed on a bucket, and on one that shall not be locked; of another nothing is proven any more",
		series: map[string]string{
			`bucketwarden_backupbucket_expected_locked{bucket="open"}`:                                                 "0x1800",
			`bucketwarden_backupbucket_probe_attacks{bucket="open",credentials="bucket",outcome="succeeded"}`:          "1x1800",
			`bucketwarden_backupbucket_probe_timestamp_seconds{bucket="open",credentials="bucket"}`:                    "-864000x1800",
			`bucketwarden_backupbucket_probe_attacks{bucket="x",credentials="bucket",outcome="succeeded"}`:             "0x1800",
			`bucketwarden_backupbucket_probe_attacks{bucket="x",credentials="entry",outcome="succeeded"}`:              "0x119 2x300 stale",
			`bucketwarden_backupbucket_probe_attacks{instance="b",bucket="x",credentials="entry",outcome="succeeded"}`: "_x600 0x1200",
			`bucketwarden_backupbucket_probe_timestamp_seconds{bucket="x",credentials="bucket"}`:                       "-864000x600 36000x1200",
			`bucketwarden_backupbucket_probe_timestamp_seconds{bucket="x",credentials="entry"}`:                        "-864000x1800",
			`bucketwarden_backupbucket_probe_attacks{bucket="y",credentials="bucket",outcome="refused_otherwise"}`:     "4x1800",
			`bucketwarden_backupbucket_probe_attacks{bucket="y",credentials="bucket",outcome="succeeded"}`:             "0x1800",
			`bucketwarden_backupbucket_probe_timestamp_seconds{bucket="y",credentials="bucket"}`:                       "-864000x1800",
		},
		fires: map[string][]string{"1h59m": nothing, "2h1m": {`critical BucketwardenProbeSucceeded{bucket="x",credentials="entry"}`},
			"9h": {`critical BucketwardenProbeSucceeded{bucket="x",credentials="entry"}`}, "11h": nothing, "25h": nothing,
			"27h": {`warning BucketwardenProbeStale{bucket="y"}`}},
	},
	{
		name: "a cluster that is awake makes no backups; one sleeps, one is new",
		series: map[string]string{
			`bucketwarden_backupentry_last_full_snapshot_timestamp_seconds{bucket="x",entry="e"}`:      "0+60x119 7140x1680",
			`bucketwarden_backupentry_last_delta_snapshot_timestamp_seconds{bucket="x",entry="e"}`:     "0+60x119 7140x1680",
			`bucketwarden_backupentry_cluster_awake{bucket="x",entry="e"}`:                             "_x179 1x1620",
			`bucketwarden_backupentry_last_checked_timestamp_seconds{bucket="x",entry="sleeps"}`:       "0+60x1800",
			`bucketwarden_backupentry_chain_complete{bucket="x",entry="sleeps"}`:                       "1x1800",
			`bucketwarden_backupentry_last_full_snapshot_timestamp_seconds{bucket="x",entry="sleeps"}`: "-864000x1800",
			`bucketwarden_backupentry_cluster_awake{bucket="x",entry="sleeps"}`:                        "0x1800",
			`bucketwarden_backupentry_last_checked_timestamp_seconds{bucket="x",entry="new"}`:          "0+60x1800",
			`bucketwarden_backupentry_chain_complete{bucket="x",entry="new"}`:                          "0x1800",
			`bucketwarden_backupentry_snapshots{bucket="x",entry="new"}`:                               "0x1800",
		},
		fires: map[string][]string{"6h30m": nothing, "7h": {`warning BucketwardenNoNewBackup{bucket="x",entry="e"}`}},
	},
	{
		name: "backups are not looked at any more; of others it cannot be told what is excluded",
		series: map[string]string{
			`bucketwarden_backupentry_last_checked_timestamp_seconds{bucket="x",entry="e"}`: "0+60x119 7140x1680",
			`bucketwarden_backupentry_chain_complete{bucket="x",entry="e"}`:                 "1x299 stale",
			`bucketwarden_backupentry_chain_complete{bucket="y",entry="e"}`:                 "1x119 stale",
		},
		fires: map[string][]string{"3h30m": nothing, "3h50m": {`warning BucketwardenBackupsNotChecked{bucket="y",entry="e"}`},
			"7h10m": {`warning BucketwardenBackupsNotChecked{bucket="x",entry="e"}`, `warning BucketwardenBackupsNotChecked{bucket="y",entry="e"}`}},
	},
	{
		name:  "versions stay unprotected; others are repaired soon, or become fewer; nobody asks for a lock",
		seeds: []scraped{{buckets: []string{"x", "y", "many", "open"}}},
		series: map[string]string{
			`bucketwarden_backupbucket_unprotected_versions{bucket="x"}`:    "0x119 34x1680",
			`bucketwarden_backupbucket_unprotected_versions{bucket="y"}`:    "0x119 34x20 0x1659",
			`bucketwarden_backupbucket_unprotected_versions{bucket="many"}`: "0x119 1980000-3000x660 0x1019",
			`bucketwarden_backupbucket_unprotected_versions{bucket="open"}`: "9x1800",
			`bucketwarden_backupbucket_expected_locked{bucket="open"}`:      "0x1800",
			`bucketwarden_backupbucket_locked{bucket="open"}`:               "0x1800",
		},
		fires: map[string][]string{"2h50m": nothing, "3h5m": {`critical BucketwardenUnprotectedVersions{bucket="x"}`},
			"9h": {`critical BucketwardenUnprotectedVersions{bucket="x"}`}},
	},
	{
		name: "on Azure the policy covers all, until it is gone; then everything is unprotected",
		series: together(unlocked, map[string]string{
			`bucketwarden_backupbucket_unprotected_versions{bucket="x"}`: "0x119 5000x1680",
		}),
		fires: map[string][]string{"1h59m": nothing, "3h10m": {`critical BucketwardenBucketNotLocked{bucket="x"}`, `critical BucketwardenPolicyDrift{bucket="x"}`,
			`critical BucketwardenRepairFailing{bucket="x"}`, `critical BucketwardenRetentionTooShort{bucket="x"}`, `critical BucketwardenUnprotectedVersions{bucket="x"}`,
			`warning BucketwardenReconcileFailing{resource="backupbuckets"}`}},
	},
	{
		name:  "clusters sleep: where nothing is extended their backups become free; where it is, and of a day's period, nobody is told",
		seeds: []scraped{{buckets: []string{"x", "day", "open"}}},
		series: map[string]string{
			// On Azure, with four days.
			`bucketwarden_backupentry_chain_locked_until_timestamp_seconds{bucket="x",entry="sleeps"}`: "108000x1800",
			`bucketwarden_backupentry_last_full_snapshot_timestamp_seconds{bucket="x",entry="sleeps"}`: "-237600x1800",
			`bucketwarden_backupentry_cluster_awake{bucket="x",entry="sleeps"}`:                        "0x1800",
			// Extended at half of the period, each two days.
			`bucketwarden_backupentry_chain_locked_until_timestamp_seconds{bucket="x",entry="extended"}`: "180000x119 352800x1680",
			`bucketwarden_backupentry_last_full_snapshot_timestamp_seconds{bucket="x",entry="extended"}`: "-864000x1800",
			// A day's period: awake on Azure, with a full a day; and sleeping on S3.
			`bucketwarden_backupbucket_retention_seconds{bucket="day"}`:                                 "86400x1800",
			`bucketwarden_backupbucket_expected_retention_seconds{bucket="day"}`:                        "86400x1800",
			`bucketwarden_backupbucket_desired_retention_seconds{bucket="day"}`:                         "86400x1800",
			`bucketwarden_backupentry_chain_locked_until_timestamp_seconds{bucket="day",entry="e"}`:     "86400x1439 172800x360",
			`bucketwarden_backupentry_last_full_snapshot_timestamp_seconds{bucket="day",entry="e"}`:     "0x1439 86400x360",
			`bucketwarden_backupentry_chain_locked_until_timestamp_seconds{bucket="day",entry="zzz"}`:   "43200+60x1800",
			`bucketwarden_backupentry_last_full_snapshot_timestamp_seconds{bucket="day",entry="zzz"}`:   "-864000x1800",
			`bucketwarden_backupbucket_expected_locked{bucket="open"}`:                                  "0x1800",
			`bucketwarden_backupbucket_locked{bucket="open"}`:                                           "0x1800",
			`bucketwarden_backupentry_chain_locked_until_timestamp_seconds{bucket="open",entry="free"}`: "0x1800",
			`bucketwarden_backupentry_last_full_snapshot_timestamp_seconds{bucket="open",entry="free"}`: "-864000x1800",
		},
		fires: map[string][]string{"5h": nothing, "8h": nothing, "9h5m": {`warning BucketwardenChainUnlocksSoon{bucket="x"}`},
			"29h": {`warning BucketwardenChainUnlocksSoon{bucket="x"}`}},
	},
	{
		name: "evidence is not written any more; of others it never was; one is written each day",
		series: map[string]string{
			`bucketwarden_backupbucket_evidence_timestamp_seconds{bucket="x"}`: "0x119 7200x1680",
			`bucketwarden_backupbucket_evidence_timestamp_seconds{bucket="y"}`: "0x1799",
			`bucketwarden_backupbucket_evidence_timestamp_seconds{bucket="z"}`: "0x119 7200x1380 90000x300",
		},
		fires: map[string][]string{"27h30m": nothing, "28h30m": {`warning BucketwardenEvidenceStale{bucket="y"}`}},
	},
	{
		name: "a certificate is not renewed; one is; a replica for admission has none",
		series: map[string]string{
			`bucketwarden_webhook_certificate_expiry_timestamp_seconds{}`:                   "614400x1800",
			`bucketwarden_webhook_certificate_expiry_timestamp_seconds{namespace="renews"}`: "614400x119 8640000x1680",
			`bucketwarden_info{namespace="none",role="admission",class="garden"}`:           "_x119 1x1680",
		},
		fires: map[string][]string{"3h30m": {`warning BucketwardenWebhookCertificateExpiring{namespace="none"}`},
			"5h": {`warning BucketwardenWebhookCertificateExpiring{}`, `warning BucketwardenWebhookCertificateExpiring{namespace="none"}`}},
	},
	{
		name: "keys: one is too old, of one the age is not known, one is rotated in time; extensions are used up",
		series: map[string]string{
			`bucketwarden_backupbucket_key_created_timestamp_seconds{bucket="x"}`: "-7772400x1800",
			`bucketwarden_backupbucket_key_age_known{bucket="x"}`:                 "1x1800",
			`bucketwarden_backupbucket_key_age_known{bucket="y"}`:                 "0x1800",
			`bucketwarden_backupbucket_key_created_timestamp_seconds{bucket="z"}`: "-7772400x119 7200x1680",
			`bucketwarden_backupbucket_policy_extensions_remaining{bucket="x"}`:   "2x119 1x1680",
		},
		fires: map[string][]string{"2h10m": nothing, "3h": {`warning BucketwardenExtensionsNearlyUsedUp{bucket="x"}`},
			"29h": {`warning BucketwardenExtensionsNearlyUsedUp{bucket="x"}`, `warning BucketwardenKeyAgeUnknown{bucket="y"}`, `warning BucketwardenKeyTooOld{bucket="x"}`}},
	},
	{
		name:  "two clusters in one Prometheus, with the same names and addresses: each has its own trouble",
		seeds: []scraped{{labels: `cluster="eu"`, buckets: []string{"x", "y"}}, {labels: `cluster="us"`, buckets: []string{"x", "y"}}},
		series: map[string]string{
			`bucketwarden_backupbucket_locked{cluster="eu",bucket="x"}`:                          "1x119 0x1680",
			`bucketwarden_backupbucket_expected_locked{cluster="us",bucket="x"}`:                 "0x1800",
			`bucketwarden_backupbucket_last_verified_timestamp_seconds{cluster="us",bucket="y"}`: "0x1800",
			`bucketwarden_backupbucket_locked{cluster="us",bucket="y"}`:                          "1x15 stale",
			`bucketwarden_leader{cluster="eu"}`:                                                  "1x119 0x1680",
			`process_start_time_seconds{cluster="eu"}`:                                           "0x119 7200x1680",
			`bucketwarden_backupbucket_policy_drift_total{cluster="us",bucket="x"}`:              "1x1800",
			`bucketwarden_backupbucket_policy_repairs_total{cluster="us",bucket="x"}`:            "1x1800",
			`bucketwarden_failing_objects{cluster="us",resource="backupentries"}`:                "0x119 1x1680",
		},
		fires: map[string][]string{"3h": {`critical BucketwardenBucketNotLocked{cluster="eu",bucket="x"}`, `critical BucketwardenBucketNotVerified{cluster="us",bucket="y"}`,
			`critical BucketwardenDown{cluster="eu"}`, `warning BucketwardenReconcileFailing{cluster="us",resource="backupentries"}`}},
	},
}

var situationLabel = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)

// situationLabels reads `name="value",...`, with defaults for what is missing; an empty value is no label.
func situationLabels(text string, defaults map[string]string) map[string]string {
	labels := map[string]string{}
	maps.Copy(labels, defaults)
	for _, match := range situationLabel.FindAllStringSubmatch(text, -1) {
		labels[match[1]] = match[2]
	}
	maps.DeleteFunc(labels, func(_, value string) bool { return value == "" })
	return labels
}

func situationSeries(name string, labels map[string]string) string {
	var pairs []string
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, fmt.Sprintf("%s=%q", label, labels[label]))
	}
	return name + "{" + strings.Join(pairs, ",") + "}"
}

// situationCommon are the labels that Gardener's Prometheus gives the series of an extension.
var situationCommon = map[string]string{"namespace": "bucketwarden", "job": "bucketwarden", "instance": "a"}

// healthy returns the series of a seed, as `name{labels}` to values.
func (s scraped) healthy() map[string]string {
	if s.absent {
		return nil
	}
	series := map[string]string{}
	add := func(name, labels, values string) {
		series[name+"{"+strings.Trim(s.labels+","+labels, ",")+"}"] = values
	}
	for instance, leader := range map[string]string{"a": "1x1800", "b": "0x1800"} {
		label := fmt.Sprintf("instance=%q", instance)
		add("bucketwarden_build_info", label, "1x1800")
		add("bucketwarden_info", label+`,role="controllers",class="shoot"`, "1x1800")
		add("bucketwarden_leader", label, leader)
		add("process_start_time_seconds", label, "-864000x1800")
		add("bucketwarden_webhook_certificate_expiry_timestamp_seconds", label, "7776000x1800")
		add("bucketwarden_admission_denials_total", label+`,resource="seeds",reason="shorten"`, "0x1800")
		for _, resource := range []string{"backupbuckets", "backupentries", "sweeps", "certificates"} {
			add("bucketwarden_reconcile_panics_total", fmt.Sprintf(`%s,resource=%q`, label, resource), "0x1800")
			add("bucketwarden_failing_objects", fmt.Sprintf(`%s,resource=%q`, label, resource), "0x1800")
			add("workqueue_longest_running_processor_seconds", fmt.Sprintf(`%s,name=%q`, label, resource), "30x1800")
		}
	}
	add("bucketwarden_endpoint_breaker_open", `instance="a",endpoint="s3.example.com"`, "0x1800")
	for _, bucket := range s.buckets {
		label := fmt.Sprintf(`instance="a",bucket=%q`, bucket)
		for name, values := range map[string]string{
			"info": "1x1800", "locked": "1x1800", "retention_seconds": "345600x1800", "desired_locked": "1x1800", "desired_retention_seconds": "345600x1800",
			"expected_locked": "1x1800", "expected_retention_seconds": "345600x1800", "last_verified_timestamp_seconds": "0+60x1800",
			"policy_drift_total": "0x1800", "policy_repairs_total": "0x1800", "policy_locks_total": "1x1800", "foreign_policy": "0x1800",
			"hardened": "1x1800", "hardening_gaps": "0x1800", "tombstones": "1x1800", "retained_objects": "9x1800",
			"next_sweep_timestamp_seconds": "86400+60x1800", "key_age_known": "1x1800", "key_created_timestamp_seconds": "-86400+60x1800",
			"policy_extensions_remaining": "4x1800", "unprotected_versions": "0x1800",
		} {
			extra := ""
			if name == "info" {
				extra = `,type="aws",region="r"`
			}
			add("bucketwarden_backupbucket_"+name, label+extra, values)
		}
		for name, values := range map[string]string{
			"last_checked_timestamp_seconds": "0+60x1800", "chain_complete": "1x1800", "snapshots": "9x1800", "unannounced_exclusions": "0x1800",
			"suspicious_snapshots": "0x1800", "last_full_snapshot_timestamp_seconds": "0+60x1800",
			"last_delta_snapshot_timestamp_seconds": "0+60x1800", "content_intact": "1x1800",
			"chain_locked_until_timestamp_seconds": "259200+60x1800",
		} {
			add("bucketwarden_backupentry_"+name, label+`,entry="e"`, values)
		}
		add("bucketwarden_policy_refusals_total", label+`,reason="shorten"`, "0x1800")
		add("bucketwarden_purge_failures_total", label, "0x1800")
	}
	return series
}

// input returns what promtool gets: every series with all labels, and its values.
func (s situation) input() map[string]string {
	input := map[string]string{}
	put := func(set map[string]string) {
		for written, values := range set {
			name, labels, _ := strings.Cut(written, "{")
			input[situationSeries(name, situationLabels(labels, situationCommon))] = values
		}
	}
	seeds := s.seeds
	if seeds == nil {
		seeds = oneBucket
	}
	for _, seed := range seeds {
		put(seed.healthy())
	}
	put(s.series)
	if s.gone == nil {
		return input
	}
	for written, values := range input {
		labels := situationLabels(written, nil)
		goes := true
		for label, pattern := range s.gone {
			goes = goes && regexp.MustCompile("^("+pattern+")$").MatchString(labels[label])
		}
		if goes {
			input[written] = regexp.MustCompile(`x1800$`).ReplaceAllString(values, "x119") + " stale"
		}
	}
	return input
}

// alertNames are those of the rules that are delivered.
func alertNames(t *testing.T) (names []string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(deployDir, "chart", "files", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct{ Rules []struct{ Alert string } }
	}
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			if rule.Alert != "" {
				names = append(names, rule.Alert)
			}
		}
	}
	return names
}

// promtoolTest lets promtool run a unit test of rules, or of queries alone.
func promtoolTest(ctx context.Context, bin env.PrometheusBinaries, dir string, rules []string, interval string, test map[string]any) error {
	content, err := json.Marshal(map[string]any{"rule_files": rules, "evaluation_interval": interval, "tests": []any{test}}) // YAML reads JSON
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "tests.yaml")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return err
	}
	if output, err := exec.CommandContext(ctx, bin.Promtool, "test", "rules", file).CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, output)
	}
	return nil
}

func promtoolSeries(input map[string]string) (series []any) {
	for _, written := range slices.Sorted(maps.Keys(input)) {
		series = append(series, map[string]string{"series": written, "values": input[written]})
	}
	return series
}

func TestMonitoringSituations(t *testing.T) {
	t.Parallel()
	bin := prometheusBinaries(t)
	rules, err := filepath.Abs(filepath.Join(deployDir, "chart", "files", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	fired := map[string]bool{}
	for _, s := range situations {
		var tests []any
		for at, fires := range s.fires {
			samples := []any{}
			for _, written := range fires {
				severity, rest, _ := strings.Cut(written, " ")
				name, labels, _ := strings.Cut(rest, "{")
				fired[name] = true
				all := situationLabels(labels, map[string]string{"namespace": situationCommon["namespace"]})
				all["alertname"], all["severity"] = name, severity
				samples = append(samples, map[string]any{"labels": situationSeries("", all), "value": 1})
			}
			tests = append(tests, map[string]any{"eval_time": at, "exp_samples": samples,
				"expr": `count by (alertname, severity, cluster, namespace, bucket, entry, credentials, resource, reason, endpoint, policy, name) (ALERTS{alertstate="firing"})`})
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			err := promtoolTest(t.Context(), bin, t.TempDir(), []string{rules}, "1m",
				map[string]any{"name": s.name, "interval": "1m", "input_series": promtoolSeries(s.input()), "promql_expr_test": tests})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for _, name := range alertNames(t) {
		if !fired[name] {
			t.Errorf("%s fires in no situation", name)
		}
	}
}
