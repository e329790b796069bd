package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bucketwarden/test/env"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// trouble measures what endpoints that hang, close or answer one byte a second cost a healthy one.
func (b *bench) trouble(ctx context.Context) (err error) {
	const buckets, deletions, entries, probes, healthy = 20, 50, 200, 20, "bench-healthy"
	progress("endpoints in trouble: %d buckets, %d deletions, %d new entries", buckets, deletions, entries)
	// With the intervals that each store has by itself.
	if err := b.start(ctx, "--verify-interval=0"); err != nil {
		return err
	}
	var proxies []*env.Proxy
	for range 3 {
		proxy, err := env.StartProxy(&b.minio.S3Server)
		if err != nil {
			return err
		}
		defer proxy.Stop()
		proxies = append(proxies, proxy)
	}
	create := func(endpoint, bucket string) error {
		if err := b.gardenlet.Secret(ctx, "bucket-"+bucket, b.minio.SecretData(endpoint)); err != nil {
			return err
		}
		config := env.BucketConfig(providerType, map[string]any{"retentionType": "bucket", "retentionPeriod": "24h", "mode": "compliance"})
		return b.gardenlet.Bucket(ctx, bucket, providerType, b.minio.Region, config)
	}
	bucketName := func(i int) string { return fmt.Sprintf("bench-trouble-%d", i) }
	entry := func(endpoint, bucket, name, namespace string) error {
		if err := b.gardenlet.Namespace(ctx, namespace); err != nil {
			return err
		}
		if err := b.gardenlet.Secret(ctx, "entry-"+name, b.minio.SecretData(endpoint)); err != nil {
			return err
		}
		return b.gardenlet.Entry(ctx, name, bucket, providerType, b.minio.Region)
	}
	entryName := func(what string, i int) (string, string) {
		namespace := fmt.Sprintf("shoot--bench--%s%d", what, i)
		return namespace + "--uid", namespace
	}
	if err := create(b.minio.Endpoint, healthy); err != nil {
		return err
	}
	for i := range buckets {
		if err := create(proxies[i%3].URL, bucketName(i)); err != nil {
			return err
		}
	}
	for _, bucket := range append([]string{healthy}, func() (all []string) {
		for i := range buckets {
			all = append(all, bucketName(i))
		}
		return all
	}()...) {
		if _, err := b.kube.WaitFor(ctx, patience, env.BackupBuckets, "", bucket, env.Healthy); err != nil {
			return err
		}
	}
	for i := range deletions {
		name, namespace := entryName("old", i)
		if err := entry(proxies[i%3].URL, bucketName(i%buckets), name, namespace); err != nil {
			return err
		}
		if _, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", name, env.Healthy); err != nil {
			return err
		}
	}
	before, err := b.settledRSS(ctx)
	if err != nil {
		return err
	}
	for i, fault := range []*env.Fault{{Hang: true}, {Close: true}, {Drip: true}} {
		proxies[i].SetFault(func(env.Request) *env.Fault { return fault })
	}
	for i := range deletions {
		name, _ := entryName("old", i)
		if err := b.gardenlet.Delete(ctx, env.BackupEntries, name); err != nil {
			return err
		}
	}
	for i := range entries {
		name, namespace := entryName("new", i)
		if err := entry(proxies[i%3].URL, bucketName(i%buckets), name, namespace); err != nil {
			return err
		}
	}
	var secret, ready []time.Duration
	for i := range probes {
		name, namespace := entryName("well", i)
		if err := b.gardenlet.Namespace(ctx, namespace); err != nil {
			return err
		}
		start := time.Now()
		if err := entry(b.minio.Endpoint, healthy, name, namespace); err != nil {
			return err
		}
		if err := env.Eventually(ctx, patience, "the entry has its secret", func(ctx context.Context) error {
			_, err := b.kube.Client.CoreV1().Secrets(namespace).Get(ctx, "etcd-backup", metav1.GetOptions{})
			return err
		}); err != nil {
			return err
		}
		secret = append(secret, time.Since(start))
		if _, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", name, env.Healthy); err != nil {
			return err
		}
		ready = append(ready, time.Since(start))
	}
	b.row("a new entry on a healthy store, beside 200 new ones and 50 deletions on stores that hang, close or drip: its secret",
		"within 1 s", fmt.Sprintf("%.2f s at most of %d", slices.Max(secret).Seconds(), probes))
	b.row("the same, Succeeded", "within 2 s", fmt.Sprintf("%.2f s at most", slices.Max(ready).Seconds()))

	repaired, err := b.repair(ctx, healthy)
	if err != nil {
		return err
	}
	b.row("a weakened bucket on a healthy store beside them is repaired", "within 65 s", fmt.Sprintf("%.1f s", repaired.Seconds()))
	for _, proxy := range proxies {
		proxy.Reset()
	}
	const span = 2 * time.Minute
	select {
	case <-time.After(span):
	case <-ctx.Done():
		return ctx.Err()
	}
	most := 0.0
	for _, proxy := range proxies {
		sum := 0
		for _, n := range proxy.Counts() {
			sum += n
		}
		most = max(most, float64(sum)/span.Minutes())
	}
	b.row("requests to an endpoint that is down", "at most 6 a minute", fmt.Sprintf("%.1f a minute", most))
	after, err := b.settledRSS(ctx)
	if err != nil {
		return err
	}
	b.row("growth of the daemon by all of that", "at most 10 MB", mb(after-before))

	// Leave nothing behind that the next measurement would meet.
	for _, proxy := range proxies {
		proxy.SetFault(nil)
	}
	start := time.Now()
	for i := range entries {
		name, _ := entryName("new", i)
		if _, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", name, env.Healthy); err != nil {
			return err
		}
	}
	b.row("all of them Succeeded once the endpoints answer again", "", fmt.Sprintf("%.0f s", time.Since(start).Seconds()))
	if err := b.kube.Dynamic.Resource(env.BackupEntries).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("deleting the entries: %w", err)
	}
	return errors.Join(env.Eventually(ctx, patience, "no entry is left", func(ctx context.Context) error {
		list, err := b.kube.Dynamic.Resource(env.BackupEntries).List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are", len(list.Items))
		}
		return err
	}), b.removeBuckets(ctx, healthy), b.stop(ctx))
}

// repair weakens a bucket and returns how long it stays so.
func (b *bench) repair(ctx context.Context, bucket string) (time.Duration, error) {
	client := b.minio.S3(b.minio.Endpoint)
	_, err := client.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{Bucket: aws.String(bucket),
		ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled}})
	if err != nil {
		return 0, fmt.Errorf("weakening bucket %s: %w", bucket, err)
	}
	start := time.Now()
	err = env.Eventually(ctx, patience, "the bucket is locked again", func(ctx context.Context) error {
		out, err := client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: aws.String(bucket)})
		if err == nil && out.ObjectLockConfiguration.Rule == nil {
			err = errors.New("it is not")
		}
		return err
	})
	return time.Since(start), err
}

// removeBuckets deletes the BackupBuckets of the measurement; all entries are gone.
func (b *bench) removeBuckets(ctx context.Context, healthy string) error {
	ours := func(name string) bool { return name == healthy || strings.HasPrefix(name, "bench-trouble-") }
	list, err := b.kube.Dynamic.Resource(env.BackupBuckets).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing the BackupBuckets: %w", err)
	}
	for _, o := range list.Items {
		if ours(o.GetName()) {
			if err := b.gardenlet.Delete(ctx, env.BackupBuckets, o.GetName()); err != nil {
				return err
			}
		}
	}
	return env.Eventually(ctx, patience, "no bucket of the measurement is left", func(ctx context.Context) error {
		list, err := b.kube.Dynamic.Resource(env.BackupBuckets).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, o := range list.Items {
			if ours(o.GetName()) {
				return fmt.Errorf("%s is", o.GetName())
			}
		}
		return nil
	})
}
