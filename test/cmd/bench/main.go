// Command bench measures bucketwarden as released against a real API server, a real S3
// server and Azurite with a management plane, and prints the numbers with the request counts behind them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bucketwarden/test/env"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	dto "github.com/prometheus/client_model/go"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
)

const (
	providerType = "s3"
	bucket       = "bench-backups"

	// clients is how many requests the set-up has in flight.
	clients  = 16
	patience = 10 * time.Minute
)

func main() {
	entries := flag.Int("entries", 2000, "BackupEntries of the throughput measurements")
	many := flag.Int("many", 10000, "BackupEntries of the last memory measurement")
	versions := flag.Int("versions", 10000, "object versions of the deleted BackupEntries on S3")
	blobs := flag.Int("blobs", 10000, "blobs of the deleted BackupEntries on Azure")
	purge := flag.Int("purge", 100000, "object versions of the purge whose memory is measured")
	reviews := flag.Int("reviews", 6000, "admission reviews")
	checked := flag.Int("checked", 1000, "BackupEntries whose backups are looked at, each with 500 object versions")
	writers := flag.Int("writers", 20, "clusters that write during a tampering")
	grown := flag.Int("grown", 10000, "object versions whose retention grows")
	listedVersions := flag.Int("listed", 1000000, "object versions that are listed while retention is extended")
	only := flag.String("only", "", "measure only these `PARTS`, comma separated: "+strings.Join(partNames(sizes{}), ", "))
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *only, sizes{entries: *entries, many: *many, versions: *versions, blobs: *blobs, purge: *purge, reviews: *reviews, checked: *checked,
		writers: *writers, grown: *grown, listed: *listedVersions})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	bin       env.Binaries
	kube      *env.Kube
	gardenlet env.Gardenlet
	minio     *env.MinIO
	proxy     *env.Proxy
	azure     *env.Azure
	daemon    *env.Daemon
	// startup is how long the daemon took from start to ready.
	startup time.Duration
	// hasBucket: the bucket of that name is there.
	hasBucket bool
	rows      []string
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

func (b *bench) row(what, target, measured string) {
	b.rows = append(b.rows, fmt.Sprintf("| %s | %s | %s |", what, target, measured))
}

// sizes are how much there is of each.
type sizes struct{ entries, many, versions, blobs, purge, reviews, checked, writers, grown, listed int }

// part is a measurement.
type part struct {
	name    string
	measure func(*bench, context.Context) error
}

// parts are all measurements in their order.
func parts(n sizes) []part {
	return []part{
		{"idle", (*bench).idle},
		{"verify", (*bench).verify},
		{"admission", func(b *bench, ctx context.Context) error { return b.admission(ctx, n.reviews, 200) }},
		{"hand-over", (*bench).handOver},
		{"trouble", (*bench).trouble},
		{"delete", func(b *bench, ctx context.Context) error { return b.deleteEntries(ctx, n.versions) }},
		{"azure", func(b *bench, ctx context.Context) error { return b.azureRequests(ctx, n.blobs) }},
		{"purge", func(b *bench, ctx context.Context) error { return b.purgeMemory(ctx, n.purge) }},
		{"entries", func(b *bench, ctx context.Context) error { return b.entries(ctx, n.entries, n.many) }},
		{"backups", func(b *bench, ctx context.Context) error { return b.backups(ctx, n.checked) }},
		{"retention", func(b *bench, ctx context.Context) error { return b.retention(ctx, n.writers, n.grown, n.listed) }},
		{"evidence", func(b *bench, ctx context.Context) error { return b.evidence(ctx, 400, 1000) }},
		{"observe", (*bench).observe},
	}
}

func partNames(n sizes) (names []string) {
	for _, p := range parts(n) {
		names = append(names, p.name)
	}
	return names
}

// chosen are the parts that are named, or all.
func chosen(only string, n sizes) ([]part, error) {
	all := parts(n)
	if only == "" {
		return all, nil
	}
	names := strings.Split(only, ",")
	for _, name := range names {
		if !slices.Contains(partNames(n), name) {
			return nil, fmt.Errorf("--only: there is no part %q", name)
		}
	}
	return slices.DeleteFunc(all, func(p part) bool { return !slices.Contains(names, p.name) }), nil
}

func run(ctx context.Context, only string, n sizes) error {
	measurements, err := chosen(only, n)
	if err != nil {
		return err
	}
	b := &bench{}
	if b.bin, err = env.EnsureBinaries(ctx, os.Stderr); err != nil {
		return err
	}
	if err := b.startKube(ctx); err != nil {
		return err
	}
	defer func() { b.kube.Stop() }()
	if b.minio, err = env.StartMinIO(ctx, env.MinIOOptions{Binary: b.bin.MinIO}); err != nil {
		return err
	}
	defer b.minio.Stop()
	if b.proxy, err = env.StartProxy(&b.minio.S3Server); err != nil {
		return err
	}
	defer b.proxy.Stop()
	if b.azure, err = env.StartAzure(ctx, env.AzureOptions{Azurite: b.bin.Azurite}); err != nil {
		return err
	}
	defer b.azure.Stop()
	defer func() {
		if b.daemon != nil {
			b.daemon.Kill()
		}
	}()
	for _, p := range measurements {
		if err := p.measure(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	fmt.Printf("| what | target | measured |\n|---|---|---|\n%s\n", strings.Join(b.rows, "\n"))
	return nil
}

// startKube starts an API server with nothing in it.
func (b *bench) startKube(ctx context.Context) error {
	kube, err := env.StartKube(ctx, b.bin.Testkube)
	if err != nil {
		return err
	}
	b.kube, b.gardenlet, b.hasBucket = kube, env.Gardenlet{Kube: kube}, false
	return b.gardenlet.Namespace(ctx, env.GardenNamespace)
}

// start starts the daemon; stop ends it.
func (b *bench) start(ctx context.Context, args ...string) (err error) {
	start := time.Now()
	b.daemon, err = env.StartDaemon(ctx, env.DaemonOptions{Binary: b.bin.Daemon, Kubeconfig: b.kube.Kubeconfig, OnWebhook: b.kube.InstallWebhook,
		// No verification comes in between, unless it is what is measured.
		Args: append([]string{"--verify-interval=1h", "--azure-cloud-config=" + b.azure.CloudConfig}, args...), Env: []string{"SSL_CERT_FILE=" + b.azure.CAFile}})
	b.startup = time.Since(start)
	return err
}

// startWithAdmission is start with the webhook, as the chart has it.
func (b *bench) startWithAdmission(ctx context.Context) error {
	return b.start(ctx, "--webhook-address=127.0.0.1:0", "--namespace="+env.GardenNamespace)
}

// stopWithAdmission also removes the webhook's configuration, which names a port.
func (b *bench) stopWithAdmission(ctx context.Context) error {
	if err := b.kube.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("deleting the ValidatingWebhookConfiguration: %w", err)
	}
	return b.stop(ctx)
}

func (b *bench) stop(ctx context.Context) error {
	daemon := b.daemon
	b.daemon = nil
	return daemon.Terminate(ctx)
}

// settledRSS is the resident memory once it has stopped to change much.
func (b *bench) settledRSS(ctx context.Context) (int64, error) {
	var last int64
	for range 10 {
		select {
		case <-time.After(3 * time.Second):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		rss, err := b.daemon.RSS()
		if err != nil {
			return 0, err
		}
		if last != 0 && rss > last-last/50 && rss < last+last/50 {
			return rss, nil
		}
		last = rss
	}
	return last, nil
}

// peak is the most resident memory while f works.
func (b *bench) peak(ctx context.Context, f func() error) (most int64, err error) {
	watch, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for watch.Err() == nil {
			if rss, err := b.daemon.RSS(); err == nil {
				most = max(most, rss)
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-watch.Done():
			}
		}
	})
	err = f()
	stop()
	watching.Wait()
	return most, err
}

// restingCPU is how much of a core the daemon needs while nothing happens.
func (b *bench) restingCPU(ctx context.Context) (string, error) {
	const span = 30 * time.Second
	before, err := b.daemon.Value(ctx, "process_cpu_seconds_total")
	if err != nil {
		return "", err
	}
	select {
	case <-time.After(span):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	after, err := b.daemon.Value(ctx, "process_cpu_seconds_total")
	return fmt.Sprintf("%.1fm", (after-before)/span.Seconds()*1000), err
}

func mb(bytes int64) string { return fmt.Sprintf("%.0f MB", float64(bytes)/1e6) }

// reconciled is how many passes over BackupEntries have succeeded.
func (b *bench) reconciled(ctx context.Context) (float64, error) {
	return b.daemon.Value(ctx, "bucketwarden_reconcile_duration_seconds", "resource="+string(env.BackupEntries.Resource), "outcome=success")
}

// apiRequests counts the daemon's requests to the API server by kind.
func (b *bench) apiRequests(ctx context.Context) (all, writes float64, err error) {
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		n, err := b.daemon.Value(ctx, "rest_client_requests_total", "method="+method)
		if err != nil && !errors.Is(err, env.ErrNoSeries) {
			return 0, 0, err
		}
		all += n
		if method != "GET" {
			writes += n
		}
	}
	return all, writes, nil
}

func (b *bench) idle(ctx context.Context) error {
	progress("idle memory")
	if err := b.startWithAdmission(ctx); err != nil {
		return err
	}
	rss, err := b.settledRSS(ctx)
	if err != nil {
		return err
	}
	b.row("resident memory, idle", "at most 40 MB", mb(rss))
	cpu, err := b.restingCPU(ctx)
	if err != nil {
		return err
	}
	b.row("CPU, idle", "", cpu)
	return b.stopWithAdmission(ctx)
}

// anyBucket makes the bucket that several parts use, if it is not there.
func (b *bench) anyBucket(ctx context.Context) error {
	if b.hasBucket {
		return nil
	}
	if err := b.gardenlet.Secret(ctx, "bucket-"+bucket, b.minio.SecretData(b.proxy.URL)); err != nil {
		return err
	}
	config := env.BucketConfig(providerType, map[string]any{"retentionType": "bucket", "retentionPeriod": "24h", "mode": "governance"})
	if err := b.gardenlet.Bucket(ctx, bucket, providerType, b.minio.Region, config); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	if _, err := b.kube.WaitFor(ctx, patience, env.BackupBuckets, "", bucket, env.Healthy); err != nil {
		return err
	}
	b.hasBucket = true
	return b.stop(ctx)
}

func (b *bench) verify(ctx context.Context) error {
	progress("verifying a healthy bucket")
	if err := b.anyBucket(ctx); err != nil {
		return err
	}
	// After a restart a healthy bucket is verified once, then not for an hour.
	b.proxy.Reset()
	if err := b.start(ctx); err != nil {
		return err
	}
	if err := env.Eventually(ctx, patience, "the bucket was verified", func(ctx context.Context) error {
		return b.verified(ctx, bucket)
	}); err != nil {
		return err
	}
	b.row("verifying a healthy bucket and looking for tombstones", "at most 3 S3 requests, 1 list", fmt.Sprintf("%d %v", b.s3Requests(), b.proxy.Counts()))
	return b.stop(ctx)
}

// verified says that a bucket was verified since the start, and swept.
func (b *bench) verified(ctx context.Context, bucket string) error {
	if _, err := b.daemon.Value(ctx, "bucketwarden_backupbucket_last_verified_timestamp_seconds", "bucket="+bucket); err != nil {
		return err
	}
	_, err := b.daemon.Value(ctx, "bucketwarden_backupbucket_tombstones", "bucket="+bucket)
	return err
}

func (b *bench) s3Requests() int {
	sum := 0
	for _, n := range b.proxy.Counts() {
		sum += n
	}
	return sum
}

// writeVersions writes n object versions of an entry, retained until then unless that is zero.
func (b *bench) writeVersions(ctx context.Context, client *s3.Client, bucket, entry string, n int, until time.Time) error {
	progress("writing %d object versions of %s", n, entry)
	return parallel(ctx, n, func(ctx context.Context, i int) error {
		in := &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String(fmt.Sprintf("%s/etcd-main/v2/Incr-%08d", entry, i)), Body: strings.NewReader("snapshot")}
		if !until.IsZero() {
			in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockModeCompliance, &until
		}
		if _, err := client.PutObject(ctx, in); err != nil {
			return fmt.Errorf("writing an object: %w", err)
		}
		return nil
	})
}

// deleteAndWait deletes an entry and returns how long it took until it was gone.
func (b *bench) deleteAndWait(ctx context.Context, name string) (time.Duration, error) {
	start := time.Now()
	if err := b.gardenlet.Delete(ctx, env.BackupEntries, name); err != nil {
		return 0, err
	}
	err := env.Eventually(ctx, patience, "the entry is gone", func(ctx context.Context) error {
		_, err := b.kube.Dynamic.Resource(env.BackupEntries).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("it is still there"))
	})
	return time.Since(start), err
}

// deleteEntries measures the deletion of an entry with n object versions on S3, free ones
// and retained ones, beside the way of one request after the other.
func (b *bench) deleteEntries(ctx context.Context, n int) error {
	const lockable = "bench-deletion"
	client := b.minio.S3(b.minio.Endpoint)
	if _, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(lockable), ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		return fmt.Errorf("creating bucket %s: %w", lockable, err)
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	newEntry := func(name string, until time.Time, n int) error {
		if err := b.writeVersions(ctx, client, lockable, name, n, until); err != nil {
			return err
		}
		if err := b.gardenlet.Secret(ctx, "entry-"+name, b.minio.SecretData(b.proxy.URL)); err != nil {
			return err
		}
		if err := b.gardenlet.Entry(ctx, name, lockable, providerType, b.minio.Region); err != nil {
			return err
		}
		_, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", name, env.Healthy)
		return err
	}

	free := "shoot--bench--free--0001"
	if err := newEntry(free, time.Time{}, n); err != nil {
		return err
	}
	b.proxy.Reset()
	took, err := b.deleteAndWait(ctx, free)
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("deleting an entry with %d free versions on S3", n), "at most 25 requests", fmt.Sprintf("%d %v, %.1f s", b.s3Requests(), b.proxy.Counts(), took.Seconds()))
	if err := b.writeVersions(ctx, client, lockable, "sequential", n, time.Time{}); err != nil {
		return err
	}
	b.proxy.Reset()
	sequential, err := deleteOneBatchAfterAnother(ctx, b.minio.S3(b.proxy.URL), lockable, "sequential/")
	if err != nil {
		return err
	}
	b.row("the same, one batch after another", "not faster", fmt.Sprintf("%d %v, %.1f s", b.s3Requests(), b.proxy.Counts(), sequential.Seconds()))

	retained := "shoot--bench--retained-s3--0001"
	until := time.Now().Add(time.Hour)
	if err := newEntry(retained, until, n); err != nil {
		return err
	}
	// As gardenlet hands it over from a BackupBucket whose policy is recorded.
	if err := b.gardenlet.Reconcile(ctx, env.BackupEntries, retained, map[string]any{"backupBucketProviderStatus": map[string]any{
		"apiVersion": providerType + ".provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketStatus",
		"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "24h", "locked": true, "mode": "compliance"}}}); err != nil {
		return err
	}
	if _, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", retained, env.Healthy); err != nil {
		return err
	}
	b.proxy.Reset()
	if took, err = b.deleteAndWait(ctx, retained); err != nil {
		return err
	}
	b.row(fmt.Sprintf("releasing an entry with %d retained versions on S3", n), "at most 15 requests", fmt.Sprintf("%d %v, %.1f s", b.s3Requests(), b.proxy.Counts(), took.Seconds()))
	progress("tagging %d object versions one after the other", n)
	tagger := b.minio.S3(b.proxy.URL)
	start := time.Now()
	for i := range n {
		_, err := tagger.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{Bucket: aws.String(lockable), Key: aws.String(fmt.Sprintf("%s/etcd-main/v2/Incr-%08d", retained, i)),
			Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("gc-marked-for-deletion"), Value: aws.String("true")}}}})
		if err != nil {
			return fmt.Errorf("tagging an object: %w", err)
		}
	}
	b.row("one tagging call for each of them instead", "at least 10 times slower", fmt.Sprintf("%.1f s", time.Since(start).Seconds()))
	return b.stop(ctx)
}

// deleteOneBatchAfterAnother lists and deletes page by page without any overlap.
func deleteOneBatchAfterAnother(ctx context.Context, client *s3.Client, bucket, prefix string) (time.Duration, error) {
	start := time.Now()
	pager := s3.NewListObjectVersionsPaginator(client, &s3.ListObjectVersionsInput{Bucket: &bucket, Prefix: &prefix})
	for pager.HasMorePages() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return 0, fmt.Errorf("listing versions: %w", err)
		}
		var objects []types.ObjectIdentifier
		for _, v := range page.Versions {
			objects = append(objects, types.ObjectIdentifier{Key: v.Key, VersionId: v.VersionId})
		}
		if len(objects) == 0 {
			break
		}
		if _, err := client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{Objects: objects, Quiet: aws.Bool(true)}}); err != nil {
			return 0, fmt.Errorf("deleting a batch: %w", err)
		}
	}
	return time.Since(start), nil
}

// purgeMemory measures how much the daemon grows while it purges n object versions.
func (b *bench) purgeMemory(ctx context.Context, n int) error {
	const name, many = "shoot--bench--many--0001", "bench-many"
	client := b.minio.S3(b.minio.Endpoint)
	if _, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(many), ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		return fmt.Errorf("creating bucket %s: %w", many, err)
	}
	if err := b.writeVersions(ctx, client, many, name, n, time.Time{}); err != nil {
		return err
	}
	if err := b.gardenlet.Secret(ctx, "entry-"+name, b.minio.SecretData(b.minio.Endpoint)); err != nil {
		return err
	}
	if err := b.gardenlet.Entry(ctx, name, many, providerType, b.minio.Region); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	if _, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", name, env.Healthy); err != nil {
		return err
	}
	before, err := b.settledRSS(ctx)
	if err != nil {
		return err
	}
	progress("purging %d object versions", n)
	var took time.Duration
	most, err := b.peak(ctx, func() (err error) {
		took, err = b.deleteAndWait(ctx, name)
		return err
	})
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("growth of the daemon while it purges %d versions", n), "at most 20 MB", fmt.Sprintf("%s (from %s), %.1f s", mb(most-before), mb(before), took.Seconds()))
	return b.stop(ctx)
}

// azureRequests measures a bucket on Azure and the deletion of entries in it, one with
// blobs under retention and one without.
func (b *bench) azureRequests(ctx context.Context, blobs int) error {
	const (
		name = "bench-azure"
		kind = "azure"
	)
	progress("a bucket on Azure")
	if err := b.gardenlet.Secret(ctx, "bucket-"+name, b.azure.SecretData()); err != nil {
		return err
	}
	config := env.BucketConfig(kind, map[string]any{"retentionType": "bucket", "retentionPeriod": "24h", "locked": true})
	config["cloudConfiguration"] = map[string]any{"name": b.azure.CloudName}
	if err := b.gardenlet.Bucket(ctx, name, kind, "westeurope", config); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	if _, err := b.kube.WaitFor(ctx, patience, env.BackupBuckets, "", name, env.Healthy); err != nil {
		return err
	}
	b.row("creating a bucket with a locked policy on Azure", "", b.azureCount(name))
	if err := b.stop(ctx); err != nil {
		return err
	}
	b.azure.ResetRequests(name)
	if err := b.start(ctx); err != nil {
		return err
	}
	if err := env.Eventually(ctx, patience, "the bucket was verified", func(ctx context.Context) error {
		return b.verified(ctx, name)
	}); err != nil {
		return err
	}
	b.row("verifying a healthy bucket on Azure and looking for tombstones", "at most 3 requests, 1 list", b.azureCount(name))
	b.azure.ResetRequests(name)
	if err := b.gardenlet.Reconcile(ctx, env.BackupBuckets, name, nil); err != nil {
		return err
	}
	if _, err := b.kube.WaitFor(ctx, patience, env.BackupBuckets, "", name, env.Healthy); err != nil {
		return err
	}
	b.row("reconciling it without a change", "no write", b.azureCount(name))

	generated, err := b.kube.Client.CoreV1().Secrets(env.GardenNamespace).Get(ctx, "generated-bucket-"+name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the generated secret: %w", err)
	}
	for _, measurement := range []struct {
		what, target, entry string
		retained            bool
	}{
		{"releasing an entry with %d retained blobs on Azure", "at most 6 requests", "shoot--bench--azure-retained--0001", true},
		{"deleting an entry with %d free blobs on Azure", "at most 45 requests", "shoot--bench--azure-free--0001", false},
	} {
		progress("writing %d blobs", blobs)
		names := make([]string, blobs)
		for i := range names {
			names[i] = fmt.Sprintf("%s/etcd-main/v2/Incr-%08d", measurement.entry, i)
		}
		if err := b.azure.PutBlobs(ctx, name, names...); err != nil {
			return err
		}
		if !measurement.retained {
			b.azure.Advance(25 * time.Hour)
		}
		if err := b.gardenlet.Secret(ctx, "entry-"+measurement.entry, generated.Data); err != nil {
			return err
		}
		if err := b.gardenlet.Entry(ctx, measurement.entry, name, kind, "westeurope"); err != nil {
			return err
		}
		if _, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", measurement.entry, env.Healthy); err != nil {
			return err
		}
		progress("deleting the entry of %d blobs", blobs)
		b.azure.ResetRequests(name)
		took, err := b.deleteAndWait(ctx, measurement.entry)
		if err != nil {
			return err
		}
		b.row(fmt.Sprintf(measurement.what, blobs), measurement.target, fmt.Sprintf("%s, %.1f s", b.azureCount(name), took.Seconds()))
	}
	return b.stop(ctx)
}

// azureCount is how many requests were made about a bucket, by operation.
func (b *bench) azureCount(bucket string) string {
	requests := b.azure.Requests(bucket)
	counts := map[string]int{}
	for _, r := range requests {
		counts[r.Operation]++
	}
	return fmt.Sprintf("%d %v", len(requests), counts)
}

// entries measures the throughput with n entries, and the memory with many more.
func (b *bench) entries(ctx context.Context, n, many int) error {
	if err := b.anyBucket(ctx); err != nil {
		return err
	}
	for _, measure := range []func(context.Context) error{
		func(ctx context.Context) error { return b.newEntries(ctx, n) },
		func(ctx context.Context) error { return b.reconcileAgain(ctx, n) },
		func(ctx context.Context) error { return b.restart(ctx, n) },
		func(ctx context.Context) error { return b.manyEntries(ctx, n, many) },
	} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

func entryName(i int) string { return fmt.Sprintf("shoot--bench--%05d--0001", i) }

// prepare creates entries from..to with their namespaces and secrets.
func (b *bench) prepare(ctx context.Context, from, to int) error {
	progress("creating BackupEntries %d to %d", from, to-1)
	data := b.minio.SecretData(b.minio.Endpoint)
	return parallel(ctx, to-from, func(ctx context.Context, i int) error {
		name := entryName(from + i)
		if err := b.gardenlet.Namespace(ctx, strings.TrimSuffix(name, "--0001")); err != nil {
			return err
		}
		if err := b.gardenlet.Secret(ctx, "entry-"+name, data); err != nil {
			return err
		}
		return b.gardenlet.Entry(ctx, name, bucket, providerType, b.minio.Region)
	})
}

// work starts the daemon on n entries that wait to be reconciled and measures until
// they are.
func (b *bench) work(ctx context.Context, n int) (rate, requests float64, err error) {
	if err := b.start(ctx); err != nil {
		return 0, 0, err
	}
	start := time.Now()
	// Scraping costs the daemon time: not too often.
	for done := 0.0; int(done) < n; {
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
		if done, err = b.reconciled(ctx); err != nil {
			return 0, 0, err
		}
		if time.Since(start) > patience {
			return 0, 0, fmt.Errorf("only %.0f of %d entries were reconciled", done, n)
		}
	}
	seconds := time.Since(start).Seconds()
	all, _, err := b.apiRequests(ctx)
	// Two lists and two watches of the informers, the secret of the bucket.
	return float64(n) / seconds, (all - 5) / float64(n), err
}

func (b *bench) newEntries(ctx context.Context, n int) error {
	if err := b.prepare(ctx, 0, n); err != nil {
		return err
	}
	progress("new entries")
	rate, requests, err := b.work(ctx, n)
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("%d new entries", n), "at least 150/s", fmt.Sprintf("%.0f/s", rate))
	b.row("API requests per new entry", "at most 6", fmt.Sprintf("%.2f", requests))
	cpu, err := b.daemon.Value(ctx, "process_cpu_seconds_total")
	if err != nil {
		return err
	}
	b.row("CPU time of the daemon per new entry", "", fmt.Sprintf("%.1f ms", cpu*1000/float64(n)))
	if err := b.checkHealthy(ctx, n); err != nil {
		return err
	}
	return b.stop(ctx)
}

func (b *bench) checkHealthy(ctx context.Context, n int) error {
	list, err := b.kube.Dynamic.Resource(env.BackupEntries).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing BackupEntries: %w", err)
	}
	found := 0
	for i := range list.Items {
		found++
		if err := env.Healthy(&list.Items[i]); err != nil {
			return fmt.Errorf("BackupEntry %s: %w", list.Items[i].GetName(), err)
		}
	}
	if found != n {
		return fmt.Errorf("there are %d BackupEntries, not %d", found, n)
	}
	return nil
}

func (b *bench) reconcileAgain(ctx context.Context, n int) error {
	progress("triggering %d entries again", n)
	if err := parallel(ctx, n, func(ctx context.Context, i int) error {
		return b.gardenlet.Reconcile(ctx, env.BackupEntries, entryName(i), nil)
	}); err != nil {
		return err
	}
	rate, requests, err := b.work(ctx, n)
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("%d entries reconciled again", n), "", fmt.Sprintf("%.0f/s", rate))
	b.row("API requests per entry reconciled again", "at most 4", fmt.Sprintf("%.2f", requests))
	if err := b.checkHealthy(ctx, n); err != nil {
		return err
	}
	return b.stop(ctx)
}

func (b *bench) restart(ctx context.Context, n int) error {
	progress("restart with %d entries", n)
	if err := b.start(ctx); err != nil {
		return err
	}
	rss, err := b.settledRSS(ctx)
	if err != nil {
		return err
	}
	_, writes, err := b.apiRequests(ctx)
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("restart with %d Succeeded entries, until ready", n), "under 3 s", fmt.Sprintf("%.2f s", b.startup.Seconds()))
	b.row(fmt.Sprintf("restart with %d Succeeded entries, writes", n), "none", fmt.Sprintf("%.0f", writes))
	b.row(fmt.Sprintf("resident memory with %d entries", n), "at most 60 MB", mb(rss))
	return b.stop(ctx)
}

func (b *bench) manyEntries(ctx context.Context, had, n int) error {
	if n <= had {
		return nil
	}
	if err := b.prepare(ctx, had, n); err != nil {
		return err
	}
	progress("%d entries", n)
	if _, _, err := b.work(ctx, n-had); err != nil {
		return err
	}
	rss, err := b.settledRSS(ctx)
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("resident memory with %d entries, right after reconciling %d of them", n, n-had), "at most 120 MB", mb(rss))
	if err := b.stop(ctx); err != nil {
		return err
	}
	if err := b.startWithAdmission(ctx); err != nil {
		return err
	}
	if rss, err = b.settledRSS(ctx); err != nil {
		return err
	}
	b.row(fmt.Sprintf("resident memory with %d entries, after a restart", n), "at most 120 MB", mb(rss))
	cpu, err := b.restingCPU(ctx)
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("CPU with %d entries and one bucket, at rest", n), "", cpu)
	return b.stopWithAdmission(ctx)
}

// parallel calls do for 0..n-1 with a fixed number of workers and returns the first
// error.
func parallel(ctx context.Context, n int, do func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// admission sends dry-run changes of a BackupBucket through the API server, half of them
// invalid, and reads what the webhook itself and the API server measured.
func (b *bench) admission(ctx context.Context, reviews, rate int) error {
	progress("admission: %d reviews, %d/s", reviews, rate)
	if err := b.anyBucket(ctx); err != nil {
		return err
	}
	if err := b.startWithAdmission(ctx); err != nil {
		return err
	}
	if err := b.kube.AwaitWebhook(ctx, patience, providerType); err != nil {
		return err
	}
	config := env.BucketConfig(providerType, map[string]any{"retentionType": "bucket", "mode": "governance"})
	patch := func(i int) error {
		c := maps.Clone(config)
		c["immutability"] = map[string]any{"retentionType": "bucket", "mode": "governance", "retentionPeriod": fmt.Sprintf("%dh", 48+12*(i%2))}
		data, err := json.Marshal(map[string]any{"spec": map[string]any{"providerConfig": c}})
		if err != nil {
			return fmt.Errorf("encoding a patch: %w", err)
		}
		_, err = b.kube.Dynamic.Resource(env.BackupBuckets).Patch(ctx, bucket, apitypes.MergePatchType, data, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		if denied := i%2 == 1; denied != apierrors.IsInvalid(err) {
			return fmt.Errorf("review %d: %w", i, err)
		}
		return nil
	}
	const name = "bucketwarden_admission_review_duration_seconds"
	before, err := b.daemon.Metrics(ctx)
	if err != nil {
		return err
	}
	trips := make([]time.Duration, reviews)
	errs := make([]error, reviews)
	var wg sync.WaitGroup
	start := time.Now()
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	defer ticker.Stop()
	for i := range reviews {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		wg.Go(func() {
			sent := time.Now()
			errs[i] = patch(i)
			trips[i] = time.Since(sent)
		})
	}
	wg.Wait()
	took := time.Since(start)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	after, err := b.daemon.Metrics(ctx)
	if err != nil {
		return err
	}
	count, median, tail := quantiles(after[name], before[name])
	if count < uint64(reviews) {
		return fmt.Errorf("the webhook saw %d of %d reviews", count, reviews)
	}
	slices.Sort(trips)
	b.row(fmt.Sprintf("admission, %.0f reviews/s, half of them denied: median", float64(reviews)/took.Seconds()), "under 2 ms", fmt.Sprintf("%.2f ms", median*1000))
	b.row("the same, 99th percentile", "under 10 ms", fmt.Sprintf("%.2f ms", tail*1000))
	b.row("the same, median and 99th percentile of the client's whole dry-run PATCH", "", fmt.Sprintf("%.1f ms, %.1f ms",
		float64(trips[reviews/2].Microseconds())/1000, float64(trips[reviews*99/100].Microseconds())/1000))
	return b.stopWithAdmission(ctx)
}

// handOver kills the one of two replicas that leads.
func (b *bench) handOver(ctx context.Context) error {
	progress("hand-over between two replicas")
	if err := b.start(ctx, "--leader-elect", "--namespace="+env.GardenNamespace); err != nil {
		return err
	}
	first := b.daemon
	defer first.Kill()
	leads := func(ctx context.Context) error {
		value, err := b.daemon.Value(ctx, "bucketwarden_leader")
		if err == nil && value != 1 {
			err = errors.New("it does not")
		}
		return err
	}
	if err := env.Eventually(ctx, patience, "the first replica leads", leads); err != nil {
		return err
	}
	if err := b.start(ctx, "--leader-elect", "--namespace="+env.GardenNamespace); err != nil {
		return err
	}
	start := time.Now()
	first.Kill()
	if err := env.Eventually(ctx, patience, "the second replica leads", leads); err != nil {
		return err
	}
	b.row("hand-over to another replica after SIGKILL", "under 20 s", fmt.Sprintf("%.1f s", time.Since(start).Seconds()))
	return b.stop(ctx)
}

// quantiles are the median and the 99th percentile of what a histogram counted since
// before, interpolated as Prometheus does.
func quantiles(after, before *dto.MetricFamily) (count uint64, median, tail float64) {
	counts := map[float64]uint64{}
	add := func(family *dto.MetricFamily, sign uint64) {
		for _, m := range family.GetMetric() {
			count += sign * m.GetHistogram().GetSampleCount()
			for _, bucket := range m.GetHistogram().GetBucket() {
				counts[bucket.GetUpperBound()] += sign * bucket.GetCumulativeCount()
			}
		}
	}
	add(after, 1)
	add(before, ^uint64(0))
	quantile := func(q float64) float64 {
		rank, lower, below := q*float64(count), 0.0, uint64(0)
		for _, upper := range slices.Sorted(maps.Keys(counts)) {
			if float64(counts[upper]) >= rank {
				if math.IsInf(upper, 1) {
					return lower
				}
				return lower + (upper-lower)*(rank-float64(below))/float64(counts[upper]-below)
			}
			lower, below = upper, counts[upper]
		}
		return lower
	}
	return count, quantile(.5), quantile(.99)
}
