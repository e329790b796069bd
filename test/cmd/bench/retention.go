package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bucketwarden/test/env"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
)

// retention measures how versions are extended that are not retained as long as they should be. It has an API server of its
// own, so that there are no other entries.
func (b *bench) retention(ctx context.Context, writers, grown, listed int) error {
	b.kube.Stop()
	if err := b.startKube(ctx); err != nil {
		return err
	}
	for _, measure := range []func(context.Context) error{
		func(ctx context.Context) error { return b.gap(ctx, writers) },
		func(ctx context.Context) error { return b.growth(ctx, grown, writers) },
		func(ctx context.Context) error { return b.listMemory(ctx, listed) },
	} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// retentionBucket creates a locked bucket; the daemon runs.
func (b *bench) retentionBucket(ctx context.Context, name, endpoint, period string) error {
	if err := b.gardenlet.Secret(ctx, "bucket-"+name, b.minio.SecretData(endpoint)); err != nil {
		return err
	}
	if err := b.gardenlet.Bucket(ctx, name, providerType, b.minio.Region, compliance(period)); err != nil {
		return err
	}
	_, err := b.kube.WaitFor(ctx, patience, env.BackupBuckets, "", name, env.Healthy)
	return err
}

func compliance(period string) map[string]any {
	return env.BucketConfig(providerType, map[string]any{"retentionType": "bucket", "retentionPeriod": period, "mode": "compliance"})
}

// retentionEntries creates entries in a bucket.
func (b *bench) retentionEntries(ctx context.Context, bucket, endpoint string, names []string) error {
	if err := parallel(ctx, len(names), func(ctx context.Context, i int) error {
		return b.newEntry(ctx, names[i], bucket, providerType, b.minio.Region, b.minio.SecretData(endpoint))
	}); err != nil {
		return err
	}
	for _, name := range names {
		if _, err := b.kube.WaitFor(ctx, patience, env.BackupEntries, "", name, env.Healthy); err != nil {
			return err
		}
	}
	return nil
}

// allLooked waits until each of the entries was looked at.
func (b *bench) allLooked(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := env.Eventually(ctx, patience, "the backups of "+name+" were looked at", func(ctx context.Context) error {
			at, err := b.daemon.Value(ctx, "bucketwarden_backupentry_last_checked_timestamp_seconds", "entry="+name)
			if err == nil && at == 0 {
				err = errors.New("not yet")
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func entryNames(kind string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("shoot--%s--%d--uid", kind, i)
	}
	return names
}

// noDefault removes the default retention of a bucket.
func noDefault(ctx context.Context, client *s3.Client, bucket string) error {
	_, err := client.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{Bucket: &bucket,
		ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled}})
	if err != nil {
		return fmt.Errorf("removing the default retention: %w", err)
	}
	return nil
}

// awaitDefault waits until the default retention is there again.
func awaitDefault(ctx context.Context, client *s3.Client, bucket string) error {
	return env.Eventually(ctx, patience, "the default retention is restored", func(ctx context.Context) error {
		out, err := client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &bucket})
		if err == nil && out.ObjectLockConfiguration.Rule == nil {
			err = errors.New("it is not")
		}
		return err
	})
}

// unretained are the versions that nothing retains.
func unretained(ctx context.Context, client *s3.Client, bucket string, versions []types.ObjectIdentifier) (free []types.ObjectIdentifier, err error) {
	var mu sync.Mutex
	err = parallel(ctx, len(versions), func(ctx context.Context, i int) error {
		v := versions[i]
		out, err := client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: v.Key, VersionId: v.VersionId})
		if err != nil {
			return fmt.Errorf("reading the retention of %s: %w", *v.Key, err)
		}
		if out.ObjectLockMode != types.ObjectLockModeCompliance {
			mu.Lock()
			defer mu.Unlock()
			free = append(free, v)
		}
		return nil
	})
	return free, err
}

// gap has clusters write while somebody removes the default retention, each a version a second.
func (b *bench) gap(ctx context.Context, writers int) error {
	const name = "bench-gap"
	if err := b.start(ctx, "--verify-interval=10s"); err != nil {
		return err
	}
	if err := b.retentionBucket(ctx, name, b.proxy.URL, "96h"); err != nil {
		return err
	}
	names := gapEntries(writers)
	if err := b.retentionEntries(ctx, name, b.proxy.URL, names); err != nil {
		return err
	}
	client := b.minio.S3(b.minio.Endpoint)
	var mu sync.Mutex
	var writtenVersions []types.ObjectIdentifier
	put := func(ctx context.Context, entry string, i int) error {
		kind, first := "Incr", 10*i+1
		if i == 0 {
			kind, first = "Full", 0
		}
		key := fmt.Sprintf("%s/etcd-main/v2/%s-%08d-%08d-%d.gz", entry, kind, first, 10*i+10, time.Now().Unix())
		out, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(name), Key: &key, Body: strings.NewReader("snapshot")})
		if err != nil {
			return fmt.Errorf("writing a snapshot: %w", err)
		}
		mu.Lock()
		defer mu.Unlock()
		writtenVersions = append(writtenVersions, types.ObjectIdentifier{Key: &key, VersionId: out.VersionId})
		return nil
	}
	progress("%d writers, and a tampering", writers)
	writing, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	failed := make(chan error, writers)
	for _, entry := range names {
		group.Go(func() {
			ticker := time.NewTicker(time.Second)
			defer ticker.Stop()
			for i := 0; writing.Err() == nil; i++ {
				if err := put(ctx, entry, i); err != nil {
					failed <- err
					return
				}
				select {
				case <-ticker.C:
				case <-writing.Done():
				}
			}
		})
	}
	if err := b.allLooked(ctx, names); err != nil {
		return err
	}
	b.proxy.Reset()
	if err := noDefault(ctx, client, name); err != nil {
		return err
	}
	begun := time.Now()
	if err := awaitDefault(ctx, client, name); err != nil {
		return err
	}
	repaired := time.Now()
	mu.Lock()
	all := slices.Clone(writtenVersions)
	mu.Unlock()
	free, err := unretained(ctx, client, name, all)
	if err != nil {
		return err
	}
	n := len(free)
	for len(free) > 0 {
		if time.Since(repaired) > patience {
			return fmt.Errorf("%d versions stay unprotected", len(free))
		}
		if free, err = unretained(ctx, client, name, free); err != nil {
			return err
		}
	}
	took := time.Since(repaired)
	stop()
	group.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	b.row(fmt.Sprintf("a tampering with %d writers going on, each a version a second: none written in the gap is unprotected", writers), "10 s after the repair",
		fmt.Sprintf("%.1f s, %d versions seen free after the repair of a gap of %.1f s, %v", took.Seconds(), n, repaired.Sub(begun).Seconds(), b.proxy.Counts()))
	return b.stop(ctx)
}

// gapEntries are those of the writers in gap. They stay.
func gapEntries(writers int) []string { return entryNames("gap", writers) }

// growth has the retention grow of a bucket with n versions, and looks at it again when there is nothing to do. The writers are those
// of gap, whose entries are looked at after the start as well: what that asks for must not count.
func (b *bench) growth(ctx context.Context, n, writers int) error {
	const name, entry = "bench-growth", "shoot--growth--0--uid"
	// What is younger than an upload may take is asked about once more.
	b.proxy.Age(entry+"/", time.Hour)
	if err := b.start(ctx); err != nil {
		return err
	}
	if err := b.retentionBucket(ctx, name, b.proxy.URL, "24h"); err != nil {
		return err
	}
	if err := b.retentionEntries(ctx, name, b.proxy.URL, []string{entry}); err != nil {
		return err
	}
	if err := b.allLooked(ctx, append(gapEntries(writers), entry)); err != nil {
		return err
	}
	client := b.minio.S3(b.minio.Endpoint)
	progress("writing %d versions", n)
	keys := snapshotKeys(entry, n)
	if err := parallel(ctx, n, func(ctx context.Context, i int) error {
		if _, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(name), Key: &keys[i], Body: strings.NewReader("snapshot")}); err != nil {
			return fmt.Errorf("writing a snapshot: %w", err)
		}
		return nil
	}); err != nil {
		return err
	}
	progress("the retention of %d versions grows", n)
	before, err := b.settledRSS(ctx)
	if err != nil {
		return err
	}
	b.proxy.Reset()
	begun := time.Now()
	most, err := b.peak(ctx, func() error {
		if err := b.gardenlet.Reconcile(ctx, env.BackupBuckets, name, map[string]any{"providerConfig": compliance("96h")}); err != nil {
			return err
		}
		return env.Eventually(ctx, 3*patience, "all are extended", func(ctx context.Context) error {
			extended, err := b.daemon.Value(ctx, "bucketwarden_backupbucket_extended_versions_total", "bucket="+name)
			if err != nil {
				return err
			}
			unprotected, err := b.daemon.Value(ctx, "bucketwarden_backupbucket_unprotected_versions", "bucket="+name)
			if err == nil && (int(extended) < n || unprotected != 0) {
				err = fmt.Errorf("%.0f of %d, %.0f unprotected", extended, n, unprotected)
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("growth of the retention with %d versions", n), fmt.Sprintf("%d extensions, at most 10 other requests", n),
		fmt.Sprintf("%v, %.0f s; the daemon grows by %s (from %s)", b.proxy.Counts(), time.Since(begun).Seconds(), mb(most-before), mb(before)))

	// A repair has all entries of the bucket looked at. Nothing was written meanwhile.
	progress("a look at %d versions when there is nothing to do", n)
	looks, err := b.daemon.Value(ctx, "bucketwarden_reconcile_duration_seconds", "resource=checks")
	if err != nil {
		return err
	}
	if err := noDefault(ctx, client, name); err != nil {
		return err
	}
	b.proxy.Reset()
	if err := b.gardenlet.Reconcile(ctx, env.BackupBuckets, name, nil); err != nil {
		return err
	}
	if err := env.Eventually(ctx, patience, "the entry was looked at again", func(ctx context.Context) error {
		now, err := b.daemon.Value(ctx, "bucketwarden_reconcile_duration_seconds", "resource=checks")
		if err == nil && now <= looks {
			err = errors.New("not yet")
		}
		return err
	}); err != nil {
		return err
	}
	b.row(fmt.Sprintf("a tampering, its repair, and the look at %d versions after it, with nothing new", n), "no request beyond the list, for retention", fmt.Sprint(b.proxy.Counts()))
	return b.stop(ctx)
}

// listMemory measures how the daemon grows by looking at n versions, which no server here could hold: lists are made up.
func (b *bench) listMemory(ctx context.Context, n int) error {
	const name, each = "bench-listed", 5000
	server, err := b.madeUpLists(each)
	if err != nil {
		return err
	}
	defer server.stop()
	if err := b.start(ctx, "--verify-interval=10s"); err != nil {
		return err
	}
	if err := b.retentionBucket(ctx, name, server.address, "96h"); err != nil {
		return err
	}
	// What is listed was stored between two verifications, with margins: it is known to be retained, and nothing has to be asked.
	progress("waiting until what will be listed is old enough")
	select {
	case <-time.After(2 * listedAhead):
	case <-ctx.Done():
		return ctx.Err()
	}
	bare, err := b.settledRSS(ctx)
	if err != nil {
		return err
	}
	names := entryNames("listed", max(1, n/each))
	progress("%d new entries, without any version", len(names))
	if err := b.retentionEntries(ctx, name, server.address, names); err != nil {
		return err
	}
	if err := b.allLooked(ctx, names); err != nil {
		return err
	}
	before, err := b.settledRSS(ctx)
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("growth of the daemon by %d new entries without versions", len(names)), "", fmt.Sprintf("%s (from %s)", mb(before-bare), mb(bare)))
	progress("listing %d versions of %d entries", len(names)*each, len(names))
	server.shown.Store(true)
	// The backups of an entry whose state has come are looked at soon.
	for _, operation := range []any{"wait-for-state", nil} {
		if err := parallel(ctx, len(names), func(ctx context.Context, i int) error { return b.annotate(ctx, names[i], operation) }); err != nil {
			return err
		}
	}
	begun := time.Now()
	most, err := b.peak(ctx, func() error {
		if err := env.Eventually(ctx, patience, "all versions are listed", func(context.Context) error {
			if n := server.listed.Load(); n < int64(len(names)*each) {
				return fmt.Errorf("%d are", n)
			}
			return nil
		}); err != nil {
			return err
		}
		return b.allLooked(ctx, names)
	})
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("growth of the daemon by the list of %d versions of these entries, all retained", len(names)*each), "at most 10 MB",
		fmt.Sprintf("%s (from %s), %.0f s", mb(most-before), mb(before), time.Since(begun).Seconds()))
	return b.stop(ctx)
}

// annotate sets the annotation of an entry that says what is to be done, or removes it.
func (b *bench) annotate(ctx context.Context, entry string, operation any) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{"gardener.cloud/operation": operation}}})
	if err == nil {
		_, err = b.kube.Dynamic.Resource(env.BackupEntries).Patch(ctx, entry, apitypes.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		return fmt.Errorf("annotating BackupEntry %s: %w", entry, err)
	}
	return nil
}

// listedAhead is how long after the start of a server of lists what is listed was stored.
const listedAhead = 2 * time.Minute

// listServer is a server in front of MinIO with lists of its own.
type listServer struct {
	address string
	stop    func()
	// shown says that there are versions in the lists, listed counts them.
	shown  atomic.Bool
	listed atomic.Int64
}

// madeUpLists is a server in whose lists each entry has so many snapshots, once they are shown, and that retains them all.
func (b *bench) madeUpLists(each int) (*listServer, error) {
	target, err := url.Parse(b.minio.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("starting a server of lists: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting a server of lists: %w", err)
	}
	type listedVersion struct {
		Key, VersionId, LastModified string //nolint:revive // as S3 spells it
		IsLatest                     bool
		Size                         int
	}
	type list struct {
		XMLName                            xml.Name `xml:"ListVersionsResult"`
		Name, Prefix                       string
		IsTruncated                        bool
		NextKeyMarker, NextVersionIdMarker string `xml:",omitempty"`
		MaxKeys                            int
		Version                            []listedVersion
	}
	const page = 1000
	at := time.Now().Add(listedAhead)
	stored := at.UTC().Format("2006-01-02T15:04:05.000Z")
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
	}}
	lists := &listServer{address: "http://" + listener.Addr().String()}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		prefix := query.Get("prefix")
		switch {
		case query.Has("retention") && r.Method == http.MethodPut:
			w.WriteHeader(http.StatusOK)
		case query.Has("retention"), query.Has("legal-hold"):
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`<Error><Code>NoSuchObjectLockConfiguration</Code></Error>`))
		case !query.Has("versions") || !strings.HasPrefix(prefix, "shoot--"):
			pass.ServeHTTP(w, r)
		default:
			var keys []string
			if lists.shown.Load() {
				keys = snapshotKeysFrom(strings.TrimSuffix(prefix, "/"), each, at.Add(-30*time.Minute).Unix())
				slices.Sort(keys)
			}
			from := 0
			if marker := query.Get("key-marker"); marker != "" {
				from, _ = slices.BinarySearch(keys, marker)
				from++
			}
			part := keys[min(from, len(keys)):min(from+page, len(keys))]
			answer := list{Prefix: prefix, MaxKeys: page, IsTruncated: from+page < len(keys)}
			for i, key := range part {
				answer.Version = append(answer.Version, listedVersion{Key: key, VersionId: "v" + strconv.Itoa(from+i), LastModified: stored, IsLatest: true, Size: 1000})
			}
			if answer.IsTruncated {
				last := answer.Version[len(part)-1]
				answer.NextKeyMarker, answer.NextVersionIdMarker = last.Key, last.VersionId
			}
			lists.listed.Add(int64(len(part)))
			w.Header().Set("Content-Type", "application/xml")
			_ = xml.NewEncoder(w).Encode(answer)
		}
	})}
	lists.stop = func() { _ = server.Close() }
	go func() { _ = server.Serve(listener) }()
	return lists, nil
}
