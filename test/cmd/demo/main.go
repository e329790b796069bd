// Command demo tells what bucketwarden does, on a real API server and a real S3
// server: each line says what was done and what was then observed.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"bucketwarden/test/env"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	bucket       = "seed-eu1-backups"
	providerType = "s3"
	namespace    = "shoot--demo--web"
	entry        = namespace + "--5f0d7b1c-3a52-4d0e-9a3e-0a4f6f1c2b11"
	snapshot     = entry + "/etcd-main/v2/Full-00000000-00004711-1762500000.gz"

	patience = time.Minute
)

func main() {
	once := flag.Bool("once", false, "end after the story")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *once)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	kube      *env.Kube
	gardenlet env.Gardenlet
	minio     *env.MinIO
	s3        *s3.Client
	daemon    *env.Daemon
}

func run(ctx context.Context, once bool) error {
	fmt.Println("Building what is missing (a first run takes about 10 minutes, later ones seconds)")
	bin, err := env.EnsureBinaries(ctx, os.Stdout)
	if err != nil {
		return err
	}
	fmt.Println("Starting kube-apiserver, MinIO and bucketwarden")
	kube, err := env.StartKube(ctx, bin.Testkube)
	if err != nil {
		return err
	}
	defer kube.Stop()
	minio, err := env.StartMinIO(ctx, env.MinIOOptions{Binary: bin.MinIO})
	if err != nil {
		return err
	}
	defer minio.Stop()
	daemon, err := env.StartDaemon(ctx, env.DaemonOptions{Binary: bin.Daemon, Kubeconfig: kube.Kubeconfig, Args: []string{"--verify-interval=2s"}})
	if err != nil {
		return err
	}
	defer daemon.Kill()

	d := &demo{kube: kube, gardenlet: env.Gardenlet{Kube: kube}, minio: minio, s3: minio.S3(minio.Endpoint), daemon: daemon}
	for i, step := range []struct {
		title string
		tell  func(context.Context) error
	}{
		{"A BackupBucket asks for locked immutability", d.create},
		{"A snapshot cannot be deleted", d.writeSnapshot},
		{"Weakening is refused", d.weaken},
		{"Tampering is repaired", d.tamper},
		{"A BackupEntry gets its secret", d.createEntry},
		{"Prometheus sees it all", d.showMetrics},
	} {
		fmt.Printf("\n%d. %s\n", i+1, step.title)
		if err := step.tell(ctx); err != nil {
			return fmt.Errorf("step %d, %s: %w\nlog of the daemon:\n%s", i+1, step.title, err, daemon.Log())
		}
	}
	fmt.Println("\nEvery step was observed.")
	if once {
		return daemon.Terminate(ctx)
	}
	fmt.Printf(`
Look around; Ctrl-C ends it all:
  export KUBECONFIG=%s
  kubectl get backupbuckets,backupentries
  kubectl describe backupbucket %s
  kubectl get secret -n %s etcd-backup -o yaml
  curl -s %s | grep bucketwarden_
  S3: %s, access key %s, secret key %s
`, kube.Kubeconfig, bucket, namespace, daemon.MetricsURL, minio.Endpoint, minio.AccessKeyID, minio.SecretAccessKey)
	<-ctx.Done()
	fmt.Println("\nStopping")
	return nil
}

func did(format string, args ...any) { fmt.Printf("   did  "+format+"\n", args...) }
func saw(format string, args ...any) { fmt.Printf("   saw  "+format+"\n", args...) }

func immutability(period string) map[string]any {
	return env.BucketConfig(providerType, map[string]any{"retentionType": "bucket", "retentionPeriod": period, "mode": "compliance"})
}

// defaultRetention is what S3 itself says about the bucket.
func (d *demo) defaultRetention(ctx context.Context) (string, error) {
	out, err := d.s3.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: aws.String(bucket)})
	if err != nil {
		return "", fmt.Errorf("reading the object lock of bucket %s: %w", bucket, err)
	}
	rule := out.ObjectLockConfiguration.Rule
	if rule == nil || rule.DefaultRetention == nil {
		return "no retention", nil
	}
	return fmt.Sprintf("%s for %d days", rule.DefaultRetention.Mode, aws.ToInt32(rule.DefaultRetention.Days)), nil
}

const locked = "COMPLIANCE for 4 days"

func (d *demo) expectLocked(ctx context.Context) error {
	retention, err := d.defaultRetention(ctx)
	if err != nil {
		return err
	}
	if retention != locked {
		return fmt.Errorf("S3 says %s, not %s", retention, locked)
	}
	return nil
}

func (d *demo) create(ctx context.Context) error {
	for _, name := range []string{env.GardenNamespace, namespace} {
		if err := d.gardenlet.Namespace(ctx, name); err != nil {
			return err
		}
	}
	if err := d.gardenlet.Secret(ctx, "bucket-"+bucket, d.minio.SecretData(d.minio.Endpoint)); err != nil {
		return err
	}
	if err := d.gardenlet.Bucket(ctx, bucket, providerType, d.minio.Region, immutability("96h")); err != nil {
		return err
	}
	did("created BackupBucket %s with retentionPeriod: 96h, mode: compliance", bucket)
	o, err := d.kube.WaitFor(ctx, patience, env.BackupBuckets, "", bucket, env.Healthy)
	if err != nil {
		return err
	}
	description, _, _ := unstructured.NestedString(o.Object, "status", "lastOperation", "description")
	saw("status: Succeeded, %q", description)
	if err := d.expectLocked(ctx); err != nil {
		return err
	}
	saw("S3 says: %s", locked)
	return nil
}

func (d *demo) writeSnapshot(ctx context.Context) error {
	put, err := d.s3.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String(snapshot), Body: strings.NewReader("all of etcd")})
	if err != nil {
		return fmt.Errorf("writing a snapshot: %w", err)
	}
	did("wrote %s", snapshot)
	_, err = d.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: aws.String(snapshot), VersionId: put.VersionId})
	did("asked the store to delete that version, with its root credentials")
	// AWS says AccessDenied, MinIO InvalidRequest.
	var refused smithy.APIError
	if !errors.As(err, &refused) || refused.ErrorCode() != "AccessDenied" && refused.ErrorCode() != "InvalidRequest" {
		return fmt.Errorf("the store did not refuse to delete the snapshot: %w", err)
	}
	saw("the store refuses: %s: %s", refused.ErrorCode(), refused.ErrorMessage())
	if _, err := d.s3.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String(snapshot), VersionId: put.VersionId}); err != nil {
		return fmt.Errorf("looking for the snapshot: %w", err)
	}
	saw("the snapshot is still there")
	return nil
}

func (d *demo) weaken(ctx context.Context) error {
	if err := d.gardenlet.Reconcile(ctx, env.BackupBuckets, bucket, map[string]any{"providerConfig": immutability("24h")}); err != nil {
		return err
	}
	did("changed retentionPeriod to 24h")
	o, err := d.kube.WaitFor(ctx, patience, env.BackupBuckets, "", bucket, env.InState("Error"))
	if err != nil {
		return err
	}
	description, _, _ := unstructured.NestedString(o.Object, "status", "lastError", "description")
	codes, _, _ := unstructured.NestedStringSlice(o.Object, "status", "lastError", "codes")
	if !slices.Contains(codes, "ERR_CONFIGURATION_PROBLEM") {
		return fmt.Errorf("the codes of the error are %q", codes)
	}
	saw("status: Error %s, %q", codes, description)
	if err := d.expectLocked(ctx); err != nil {
		return err
	}
	saw("S3 says still: %s", locked)
	if err := d.gardenlet.Reconcile(ctx, env.BackupBuckets, bucket, map[string]any{"providerConfig": immutability("96h")}); err != nil {
		return err
	}
	did("changed retentionPeriod back to 96h")
	if _, err := d.kube.WaitFor(ctx, patience, env.BackupBuckets, "", bucket, env.Healthy); err != nil {
		return err
	}
	saw("status: Succeeded")
	return nil
}

func (d *demo) tamper(ctx context.Context) error {
	_, err := d.s3.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{Bucket: aws.String(bucket),
		ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled}})
	if err != nil {
		return fmt.Errorf("removing the default retention: %w", err)
	}
	did("removed the bucket's default retention in S3, behind the daemon's back")
	start := time.Now()
	if err := env.Eventually(ctx, patience, "S3 shows the retention again", d.expectLocked); err != nil {
		return err
	}
	saw("S3 says: %s, restored after %.1f s (--verify-interval=2s here)", locked, time.Since(start).Seconds())
	var note string
	if err := env.Eventually(ctx, patience, "an event tells", func(ctx context.Context) error {
		events, err := d.kube.Client.EventsV1().Events("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("listing events: %w", err)
		}
		for _, e := range events.Items {
			if e.Reason == "PolicyDrift" {
				note = e.Note
				return nil
			}
		}
		return errors.New("no event PolicyDrift")
	}); err != nil {
		return err
	}
	saw("event PolicyDrift: %s", note)
	return nil
}

func (d *demo) createEntry(ctx context.Context) error {
	if err := d.gardenlet.Secret(ctx, "entry-"+entry, d.minio.SecretData(d.minio.Endpoint)); err != nil {
		return err
	}
	if err := d.gardenlet.Entry(ctx, entry, bucket, providerType, d.minio.Region); err != nil {
		return err
	}
	did("created BackupEntry %s", entry)
	if _, err := d.kube.WaitFor(ctx, patience, env.BackupEntries, "", entry, env.Healthy); err != nil {
		return err
	}
	secret, err := d.kube.Client.CoreV1().Secrets(namespace).Get(ctx, "etcd-backup", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the etcd-backup secret: %w", err)
	}
	var keys []string
	for key := range secret.Data {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	if string(secret.Data["bucketName"]) != bucket {
		return fmt.Errorf("the etcd-backup secret has the keys %q and the bucket %q", keys, secret.Data["bucketName"])
	}
	saw("status: Succeeded; secret %s/etcd-backup for etcd-backup-restore with %s", namespace, strings.Join(keys, ", "))
	return nil
}

func (d *demo) showMetrics(ctx context.Context) error {
	expected := []string{
		"bucketwarden_backupbucket_locked{bucket=%q} 1",
		"bucketwarden_backupbucket_retention_seconds{bucket=%q} 345600",
		"bucketwarden_backupbucket_desired_retention_seconds{bucket=%q} 345600",
		"bucketwarden_backupbucket_policy_drift_total{bucket=%q} 1",
		"bucketwarden_policy_refusals_total{bucket=%q,reason=\"shorten\"} 1",
	}
	did("scraped %s", d.daemon.MetricsURL)
	var lines []string
	err := env.Eventually(ctx, patience, "the metrics tell the story", func(ctx context.Context) (err error) {
		if lines, err = scrape(ctx, d.daemon.MetricsURL); err != nil {
			return err
		}
		for _, line := range expected {
			if line := fmt.Sprintf(line, bucket); !slices.Contains(lines, line) {
				return fmt.Errorf("no line %s", line)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, line := range lines {
		if strings.HasPrefix(line, "bucketwarden_backupbucket_") || strings.HasPrefix(line, "bucketwarden_policy_") {
			saw("%s", line)
		}
	}
	return nil
}

func scrape(ctx context.Context, url string) ([]string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("scraping %s: %w", url, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("scraping %s: %w", url, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("scraping %s: %w", url, err)
	}
	var lines []string
	for scanner := bufio.NewScanner(bytes.NewReader(body)); scanner.Scan(); {
		lines = append(lines, scanner.Text())
	}
	return lines, nil
}
