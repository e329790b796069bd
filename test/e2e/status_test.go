package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// shownPolicy is a policy as status and plan show it.
type shownPolicy struct {
	RetentionPeriod string
	Locked          bool
}

// shownStatus is what status -o json tells of one bucket.
type shownStatus struct {
	State, Problem, Unknown string
	Live, Desired, Recorded *shownPolicy
	ExtensionsLeft          *int32
	Hardened                string
	Entries                 []struct {
		Name, Chain, FullLocked string
		Revision                int64
		FullLockedUntil         time.Time
	}
}

// shownPlan is what plan -o json tells.
type shownPlan struct {
	Steps []struct {
		Action       string
		Irreversible bool
	}
	Refused        bool
	Admission      struct{ Message string }
	Daemon         string
	ExtensionsLeft *int32
}

// runBucketwarden runs a command of the binary as an administrator of the seed, decodes what it prints and checks its exit code.
func (d *daemon) runBucketwarden(t *testing.T, code int, shown any, args ...string) {
	t.Helper()
	args = append(args, "-o", "json", "--kubeconfig", kube.Kubeconfig, d.args[0])
	if d.azure != nil {
		args = append(args, "--azure-cloud-config", d.azure.CloudConfig)
	}
	out, _ := runCommand(t, d.env, code, args...)
	must(t, json.Unmarshal([]byte(out), shown))
}

func (d *daemon) showStatus(t *testing.T, code int, bucket string, args ...string) shownStatus {
	t.Helper()
	var shown struct{ Buckets []shownStatus }
	d.runBucketwarden(t, code, &shown, append([]string{"status", bucket}, args...)...)
	if len(shown.Buckets) != 1 {
		t.Fatalf("it shows %d buckets", len(shown.Buckets))
	}
	return shown.Buckets[0]
}

// showPlan plans for a BackupBucket as it would be after a change.
func (d *daemon) showPlan(t *testing.T, code int, bucket string, change func(*unstructured.Unstructured)) (shown shownPlan) {
	t.Helper()
	o := get(t, buckets, bucket)
	change(o)
	text, err := json.Marshal(o)
	must(t, err)
	file := filepath.Join(t.TempDir(), "bucket.json")
	must(t, os.WriteFile(file, text, 0o600))
	d.runBucketwarden(t, code, &shown, "plan", "-f", file)
	return shown
}

func (p shownPlan) actions() string {
	var actions []string
	for _, s := range p.Steps {
		actions = append(actions, s.Action)
	}
	return strings.Join(actions, " ")
}

// What status shows is what the store has, and what plan says is what the daemon then does.
func TestStatusAndPlan(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, d *daemon, bucket, entry string, put func(key string), period func(hours int) func(*unstructured.Unstructured)) {
		t.Helper()
		put(fmt.Sprintf("%s/etcd-main/v2/Full-00000000-00000100-%d.gz", entry, time.Now().Unix()-60))
		put(fmt.Sprintf("%s/etcd-main/v2/Incr-00000101-00000110-%d.gz", entry, time.Now().Unix()))
		status := d.showStatus(t, 0, bucket)
		for _, p := range []*shownPolicy{status.Live, status.Desired, status.Recorded} {
			if p == nil || *p != (shownPolicy{"96h", true}) {
				t.Fatalf("the status is %+v", status)
			}
		}
		if status.State != "Locked" || status.Hardened != hardenedStatus(get(t, buckets, bucket)) || len(status.Entries) != 1 {
			t.Errorf("the status is %+v", status)
		}
		e := status.Entries[0]
		if e.Name != entry || e.Chain != "Complete" || e.Revision != 110 || e.FullLocked != "yes" || e.FullLockedUntil.Before(time.Now().Add(95*time.Hour)) {
			t.Errorf("the entry is %+v", e)
		}

		// Longer: it becomes what was planned.
		plan := d.showPlan(t, 0, bucket, period(120))
		if plan.actions() != "extend" || !plan.Steps[0].Irreversible || plan.Refused {
			t.Errorf("the plan is %+v", plan)
		}
		reconcile(t, buckets, bucket, period(120))
		waitHealthy(t, buckets, bucket)
		status = d.showStatus(t, 0, bucket)
		if status.Live == nil || status.Live.RetentionPeriod != "120h" || (plan.ExtensionsLeft == nil) != (status.ExtensionsLeft == nil) ||
			plan.ExtensionsLeft != nil && *plan.ExtensionsLeft != *status.ExtensionsLeft {
			t.Errorf("the status is %+v, planned was %+v", status, plan)
		}
		if again := d.showPlan(t, 0, bucket, period(120)); len(again.Steps) > 0 {
			t.Errorf("there is something left to do: %+v", again)
		}

		// Shorter: refused in the words that were planned.
		plan = d.showPlan(t, 2, bucket, period(24))
		if !plan.Refused || len(plan.Steps) > 0 || !strings.Contains(plan.Admission.Message, "retentionPeriod: 120h or longer") {
			t.Errorf("the plan is %+v", plan)
		}
		reconcile(t, buckets, bucket, period(24))
		waitFailed(t, buckets, bucket, codeConfiguration, plan.Daemon)
		if status := d.showStatus(t, 2, bucket); status.State != "Refused" || status.Problem != plan.Daemon {
			t.Errorf("the status is %+v", status)
		}
		reconcile(t, buckets, bucket, period(120))
		waitHealthy(t, buckets, bucket)
	}
	t.Run("s3", func(t *testing.T) {
		t.Parallel()
		d := startDaemon(t)
		bucket := newName("status")
		store.createBucket(t, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		waitHealthy(t, buckets, bucket)
		entry, _ := newShoot(t)
		store.createEntry(t, entryObject(entry, d.kind, bucket))
		waitHealthy(t, entries, entry)
		period := func(hours int) func(*unstructured.Unstructured) {
			return setImmutability(immutability("compliance", fmt.Sprintf("%dh", hours)))
		}
		check(t, d, bucket, entry, func(key string) { store.putObject(t, bucket, key, time.Time{}) }, period)

		// While nobody repairs it, somebody removes the default retention.
		d.stop(t)
		store.putRetention(t, bucket, "", 0)
		status := d.showStatus(t, 2, bucket)
		if status.State != "Drift" || status.Live != nil || status.Recorded == nil {
			t.Errorf("the status is %+v", status)
		}
		if plan := d.showPlan(t, 0, bucket, period(120)); plan.actions() != "restore" {
			t.Errorf("the plan is %+v", plan)
		}
		d.start(t)
		store.awaitRetention(t, bucket, "COMPLIANCE 5")
		if status := d.showStatus(t, 0, bucket); status.State != "Locked" {
			t.Errorf("the status is %+v", status)
		}
	})
	t.Run("azure", func(t *testing.T) {
		t.Parallel()
		d := startAzureDaemon(t)
		bucket := azureName()
		d.createAzureBucket(t, bucket, days(4, true))
		entry, _ := newShoot(t)
		d.createAzureEntry(t, entry, bucket)
		check(t, d, bucket, entry, func(key string) { must(t, azure.PutBlob(t.Context(), bucket, key, []byte("a snapshot"))) },
			func(hours int) func(*unstructured.Unstructured) { return immutable(days(hours/24, true)) })
		if status := d.showStatus(t, 0, bucket); status.ExtensionsLeft == nil || *status.ExtensionsLeft != 4 {
			t.Errorf("the status is %+v", status)
		}
	})
}

// hardenedStatus is the status of the condition BucketHardened.
func hardenedStatus(o *unstructured.Unstructured) string {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == "BucketHardened" {
			status, _ := c["status"].(string)
			return status
		}
	}
	return ""
}
