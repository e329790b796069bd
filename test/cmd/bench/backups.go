package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"bucketwarden/test/env"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// snapshotBucket has the backups that are looked at.
	snapshotBucket = "bench-snapshots"
	// perEntry is how many snapshots a cluster has, fullEvery how often one of them is a full one.
	perEntry, fullEvery = 500, 250
	// listed is how many snapshots the entry has that is listed by command.
	listed = 5000
)

// backups measures the looks of the daemon at the backups of n entries, and the commands. It has an API server of its own, so that
// there are no other entries.
func (b *bench) backups(ctx context.Context, n int) error {
	b.kube.Stop()
	if err := b.startKube(ctx); err != nil {
		return err
	}
	for _, measure := range []func(context.Context) error{
		func(ctx context.Context) error { return b.checks(ctx, n) },
		b.checkOnAzure,
		b.listSnapshots,
		b.verifyDeep,
	} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// snapshotKeys are the keys of n snapshots of an entry, the oldest first: fulls, and deltas without a gap.
func snapshotKeys(entry string, n int) []string {
	return snapshotKeysFrom(entry, n, time.Now().Add(-30*time.Minute).Unix())
}

func snapshotKeysFrom(entry string, n int, begin int64) []string {
	keys := make([]string, n)
	for i := range keys {
		taken := begin + int64(i)*1500/int64(n)
		kind, first, last := "Incr", 10*i+1, 10*i+10
		if i%fullEvery == 0 {
			kind, first = "Full", 0
		}
		keys[i] = fmt.Sprintf("%s/etcd-main/v2/%s-%08d-%08d-%d.gz", entry, kind, first, last, taken)
	}
	return keys
}

// putSnapshots writes snapshots whose content is not read.
func (b *bench) putSnapshots(ctx context.Context, entries []string, each int) error {
	progress("writing %d snapshots of each of %d entries", each, len(entries))
	client := b.minio.S3(b.minio.Endpoint)
	keys := make([][]string, len(entries))
	for i, entry := range entries {
		keys[i] = snapshotKeys(entry, each)
	}
	return parallel(ctx, len(entries)*each, func(ctx context.Context, i int) error {
		_, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(snapshotBucket), Key: &keys[i/each][i%each], Body: strings.NewReader("snapshot")})
		if err != nil {
			return fmt.Errorf("writing a snapshot: %w", err)
		}
		return nil
	})
}

// newEntry creates a BackupEntry with its namespace and secret.
func (b *bench) newEntry(ctx context.Context, name, bucket, kind, region string, secret map[string][]byte) error {
	namespace, _, _ := strings.Cut(name, "--uid")
	if err := b.gardenlet.Namespace(ctx, namespace); err != nil {
		return err
	}
	if err := b.gardenlet.Secret(ctx, "entry-"+name, secret); err != nil {
		return err
	}
	return b.gardenlet.Entry(ctx, name, bucket, kind, region)
}

// lookedAt waits until the chains of n entries are known to be complete.
func (b *bench) lookedAt(ctx context.Context, bucket string, n int) error {
	return env.Eventually(ctx, patience, "the backups of all entries were looked at", func(ctx context.Context) error {
		complete, err := b.daemon.Value(ctx, "bucketwarden_backupentry_chain_complete", "bucket="+bucket)
		if err == nil && int(complete) != n {
			err = fmt.Errorf("%.0f of %d are complete", complete, n)
		}
		return err
	})
}

// checks measures the looks at n entries on S3 in a locked bucket, and what new entries feel of them.
func (b *bench) checks(ctx context.Context, n int) error {
	secret := b.minio.SecretData(b.proxy.URL)
	if err := b.gardenlet.Secret(ctx, "bucket-"+snapshotBucket, secret); err != nil {
		return err
	}
	config := env.BucketConfig(providerType, map[string]any{"retentionType": "bucket", "retentionPeriod": "24h", "mode": "compliance"})
	if err := b.gardenlet.Bucket(ctx, snapshotBucket, providerType, b.minio.Region, config); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	if _, err := b.kube.WaitFor(ctx, patience, env.BackupBuckets, "", snapshotBucket, env.Healthy); err != nil {
		return err
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("shoot--snaps--%d--uid", i)
	}
	if err := parallel(ctx, n, func(ctx context.Context, i int) error {
		return b.newEntry(ctx, names[i], snapshotBucket, providerType, b.minio.Region, secret)
	}); err != nil {
		return err
	}
	for _, name := range names {
		if _, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", name, env.Healthy); err != nil {
			return err
		}
	}
	if err := b.stop(ctx); err != nil {
		return err
	}
	if err := b.putSnapshots(ctx, names, perEntry); err != nil {
		return err
	}

	// New entries come in another bucket on the same endpoint.
	const other = "bench-others"
	if _, err := b.minio.S3(b.minio.Endpoint).CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(other)}); err != nil {
		return fmt.Errorf("creating bucket %s: %w", other, err)
	}
	probes := 0
	probe := func() (time.Duration, error) {
		name := fmt.Sprintf("shoot--probe--%d--uid", probes)
		probes++
		begun := time.Now()
		if err := b.newEntry(ctx, name, other, providerType, b.minio.Region, secret); err != nil {
			return 0, err
		}
		_, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", name, env.Healthy)
		return time.Since(begun), err
	}
	var mu sync.Mutex
	counts := map[string]int{}
	b.proxy.SetFault(func(r env.Request) *env.Fault {
		if r.Bucket == snapshotBucket && strings.HasPrefix(r.Key, "shoot--") || r.Operation == "ListObjectVersions" && r.Bucket == snapshotBucket {
			mu.Lock()
			defer mu.Unlock()
			counts[r.Operation]++
		}
		return nil
	})
	defer b.proxy.SetFault(nil)

	progress("looking at the backups of %d entries", n)
	if err := b.start(ctx); err != nil {
		return err
	}
	before, err := b.daemon.RSS()
	if err != nil {
		return err
	}
	begun := time.Now()
	var took time.Duration
	done := make(chan error, 1)
	var during []time.Duration
	most, err := b.peak(ctx, func() error {
		go func() {
			err := b.lookedAt(ctx, snapshotBucket, n)
			took = time.Since(begun)
			done <- err
		}()
		for {
			select {
			case err := <-done:
				return err
			case <-time.After(250 * time.Millisecond):
			}
			d, err := probe()
			if err != nil {
				return err
			}
			during = append(during, d)
		}
	})
	if err != nil {
		return err
	}
	mu.Lock()
	requests := fmt.Sprint(counts)
	mu.Unlock()
	b.row(fmt.Sprintf("looking at the backups of %d entries with %d versions each in a locked bucket, after a start", n, perEntry), "5 minutes for 1000 entries", fmt.Sprintf("%.0f s", took.Seconds()))
	b.row("requests for it", "one list for each, and for retention", requests)
	b.row("growth of the daemon while it does", "", fmt.Sprintf("%s (from %s)", mb(most-before), mb(before)))
	progress("new entries while it rests")
	var after []time.Duration
	for range max(len(during), 20) {
		d, err := probe()
		if err != nil {
			return err
		}
		after = append(after, d)
	}
	slices.Sort(during)
	slices.Sort(after)
	b.row(fmt.Sprintf("a new entry on the same endpoint beside it, Succeeded: median and longest of %d", len(during)), "no longer than without",
		fmt.Sprintf("%.2f s, %.2f s", during[len(during)/2].Seconds(), during[len(during)-1].Seconds()))
	b.row("the same while nothing is looked at", "", fmt.Sprintf("%.2f s, %.2f s", after[len(after)/2].Seconds(), after[len(after)-1].Seconds()))

	// What one entry costs, by the size of the list.
	const many = "shoot--many--0--uid"
	if err := b.putSnapshots(ctx, []string{many}, listed); err != nil {
		return err
	}
	mu.Lock()
	clear(counts)
	mu.Unlock()
	if err := b.newEntry(ctx, many, snapshotBucket, providerType, b.minio.Region, secret); err != nil {
		return err
	}
	if err := b.lookedAt(ctx, snapshotBucket, n+1); err != nil {
		return err
	}
	mu.Lock()
	b.row(fmt.Sprintf("a new entry and the first look at its %d versions", listed), "one list for 1000, 50 times retention", fmt.Sprint(counts))
	mu.Unlock()
	return b.stop(ctx)
}

// checkOnAzure counts the requests of a look.
func (b *bench) checkOnAzure(ctx context.Context) error {
	const name, kind, entry, blobs = "bench-snapshots-az", "azure", "shoot--az--0--uid", 6000
	progress("looking at %d blobs on Azure", blobs)
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
	generated, err := b.kube.Client.CoreV1().Secrets(env.GardenNamespace).Get(ctx, "generated-bucket-"+name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the generated secret: %w", err)
	}
	if err := b.newEntry(ctx, entry, name, kind, "westeurope", generated.Data); err != nil {
		return err
	}
	if _, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", entry, env.Healthy); err != nil {
		return err
	}
	if err := b.stop(ctx); err != nil {
		return err
	}
	if err := b.azure.PutBlobs(ctx, name, snapshotKeys(entry, blobs)...); err != nil {
		return err
	}
	b.azure.ResetRequests(name)
	if err := b.start(ctx); err != nil {
		return err
	}
	if err := b.lookedAt(ctx, name, 1); err != nil {
		return err
	}
	b.row(fmt.Sprintf("verifying the bucket on Azure and looking at %d blobs of an entry, after a start", blobs), "one list for 5000, beside 4 for the bucket", b.azureCount(name))
	return b.stop(ctx)
}

// credentials writes the secret of the bucket for --bucket-secret.
func (b *bench) credentials() (flags []string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "bucketwarden-bench-")
	if err != nil {
		return nil, nil, fmt.Errorf("making a directory: %w", err)
	}
	remove = func() { _ = os.RemoveAll(dir) }
	for key, value := range b.minio.SecretData(b.minio.Endpoint) {
		if err := os.WriteFile(filepath.Join(dir, key), value, 0o600); err != nil {
			remove()
			return nil, nil, fmt.Errorf("writing the credentials: %w", err)
		}
	}
	return []string{"--bucket-secret=" + dir, "--bucket=" + snapshotBucket, "--region=" + b.minio.Region}, remove, nil
}

// firstLine remembers when the first line ended.
type firstLine struct {
	begun time.Time
	took  time.Duration
}

func (w *firstLine) Write(data []byte) (int, error) {
	if w.took == 0 && bytes.ContainsRune(data, '\n') {
		w.took = time.Since(w.begun)
	}
	return len(data), nil
}

// listSnapshots measures the command, straight on the bucket.
func (b *bench) listSnapshots(ctx context.Context) error {
	const entry = "shoot--listed--0--uid"
	flags, remove, err := b.credentials()
	if err != nil {
		return err
	}
	defer remove()
	if err := b.putSnapshots(ctx, []string{entry}, listed); err != nil {
		return err
	}
	progress("listing %d snapshots", listed)
	cmd := exec.CommandContext(ctx, b.bin.Daemon, append([]string{"snapshots", entry}, flags...)...)
	line := &firstLine{begun: time.Now()}
	var sentences bytes.Buffer
	cmd.Stdout, cmd.Stderr = line, &sentences
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("snapshots: %w: %s", err, sentences.String())
	}
	b.row(fmt.Sprintf("snapshots of an entry with %d versions: first line, all", listed), "first line within 2 s", fmt.Sprintf("%.2f s, %.2f s", line.took.Seconds(), time.Since(line.begun).Seconds()))
	return nil
}

// object is like a resource of Kubernetes: a good part of it repeats.
func object(random *rand.ChaCha8) string {
	data := make([]byte, 700)
	_, _ = random.Read(data)
	return `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"of-a-cluster","namespace":"kube-system","managedFields":[` +
		strings.Repeat(`{"manager":"kube-controller-manager","operation":"Update","apiVersion":"v1"},`, 30) + fmt.Sprintf(`]},"data":"%x"}`, data)
}

// deepBackups takes a full snapshot and two deltas of a real etcd, of about 150 MB, and returns also what is in them.
func deepBackups(ctx context.Context) (snapshots []env.EtcdSnapshot, files [][]byte, err error) {
	tools, err := env.EnsureEtcd(ctx, os.Stderr)
	if err != nil {
		return nil, nil, err
	}
	etcd, err := tools.Start(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer etcd.Stop()
	random := rand.NewChaCha8([32]byte{})
	write := func(n int) error {
		for i := 0; i < n; {
			var ops []clientv3.Op
			for ; i < n && len(ops) < 100; i++ {
				ops = append(ops, clientv3.OpPut(fmt.Sprintf("/registry/configmaps/%d", i), object(random)))
			}
			if _, err := etcd.Txn(ctx).Then(ops...).Commit(); err != nil {
				return fmt.Errorf("writing to etcd: %w", err)
			}
		}
		return nil
	}
	taken := time.Now().Add(-20 * time.Minute)
	for i, n := range []int{20000, 5000, 5000} {
		if err := write(n); err != nil {
			return nil, nil, err
		}
		var next env.EtcdSnapshot
		if i == 0 {
			next, err = etcd.FullSnapshot(ctx, env.Gzip, taken)
		} else {
			next, err = etcd.DeltaSnapshot(ctx, snapshots[i-1].Last+1, env.Gzip, taken.Add(time.Duration(i)*5*time.Minute))
		}
		if err != nil {
			return nil, nil, err
		}
		file, err := env.Decompress(next.Content, next.Compression)
		if err != nil {
			return nil, nil, err
		}
		snapshots, files = append(snapshots, next), append(files, file)
	}
	return snapshots, files, nil
}

// verifyDeep compares the command with the hash of what is in the snapshots.
func (b *bench) verifyDeep(ctx context.Context) error {
	const entry = "shoot--deep--0--uid"
	progress("reading the backups of a real etcd")
	snapshots, files, err := deepBackups(ctx)
	if err != nil {
		return err
	}
	flags, remove, err := b.credentials()
	if err != nil {
		return err
	}
	defer remove()
	client := b.minio.S3(b.minio.Endpoint)
	dir, err := os.MkdirTemp("", "bucketwarden-bench-")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var paths []string
	stored, unpacked := int64(0), int64(0)
	for i, of := range snapshots {
		_, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(snapshotBucket), Key: aws.String(entry + "/etcd-main/v2/" + of.Name), Body: bytes.NewReader(of.Content)})
		if err != nil {
			return fmt.Errorf("writing a snapshot: %w", err)
		}
		stored, unpacked = stored+int64(len(of.Content)), unpacked+int64(len(files[i]))
		paths = append(paths, filepath.Join(dir, of.Name))
		if err := os.WriteFile(paths[i], files[i], 0o600); err != nil {
			return fmt.Errorf("writing what is in a snapshot: %w", err)
		}
	}
	// The best of a few, as other work disturbs both.
	best := func(f func() error) (shortest time.Duration, err error) {
		for range 5 {
			begun := time.Now()
			if err := f(); err != nil {
				return 0, err
			}
			if took := time.Since(begun); shortest == 0 || took < shortest {
				shortest = took
			}
		}
		return shortest, nil
	}
	verify, err := best(func() error {
		out, err := exec.CommandContext(ctx, b.bin.Daemon, append([]string{"verify", "--deep", entry}, flags...)...).CombinedOutput()
		if err == nil && !bytes.Contains(out, []byte("complete and intact")) {
			err = errors.New("it is not")
		}
		if err != nil {
			return fmt.Errorf("verify --deep: %w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	sum, err := best(func() error {
		for _, path := range paths {
			file, err := os.Open(path)
			if err != nil {
				return fmt.Errorf("reading what is in a snapshot: %w", err)
			}
			_, err = io.Copy(sha256.New(), file)
			if err = errors.Join(err, file.Close()); err != nil {
				return fmt.Errorf("reading what is in a snapshot: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	tool, err := best(func() error { return exec.CommandContext(ctx, "sha256sum", paths...).Run() })
	if err != nil {
		return fmt.Errorf("sha256sum: %w", err)
	}
	b.row(fmt.Sprintf("verify --deep of %s, %s unpacked", mb(stored), mb(unpacked)), "at most twice sha256sum of the files, unpacked",
		fmt.Sprintf("%.2f s; sha256sum %.2f s, the same in Go %.2f s", verify.Seconds(), tool.Seconds(), sum.Seconds()))
	return nil
}
