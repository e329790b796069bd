package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apitypes "k8s.io/apimachinery/pkg/types"

	"bucketwarden/test/env"
)

const tombstones = ".bucketwarden/tombstones/"

// inTime runs a test that looks at objects while they are retained. It calls late between
// looking and judging; when the retention has ended by then, the machine was too slow, and
// the test runs anew with a longer one, and with new names.
func inTime(t *testing.T, retention time.Duration, test func(t *testing.T, retention time.Duration, late func(until time.Time))) {
	t.Helper()
	for range 4 {
		again := false
		t.Run(retention.String(), func(t *testing.T) {
			test(t, retention, func(until time.Time) {
				t.Helper()
				if !time.Now().Before(until) {
					again = true
					t.Skip("the retention has ended too early")
				}
			})
		})
		if !again {
			return
		}
		retention *= 3
	}
	t.Error("the machine is too slow")
}

// awaitEnd waits until a retention has ended.
func awaitEnd(t *testing.T, until time.Time) {
	t.Helper()
	select {
	case <-time.After(time.Until(until)):
	case <-t.Context().Done():
		t.Fatal(context.Cause(t.Context()))
	}
}

// awaitNoVersions waits until nothing is left under a prefix but marks that are revoked.
func (store *s3Store) awaitNoVersions(t *testing.T, bucket, prefix string) {
	t.Helper()
	eventually(t, "nothing is left under "+prefix+" in bucket "+bucket, func(ctx context.Context) error {
		left, err := store.versions(ctx, bucket, prefix)
		if left = withoutRevoked(left); err == nil && len(left) > 0 {
			err = fmt.Errorf("left are %v", left)
		}
		return err
	})
}

// A deleted entry is released at once; what is retained goes when its retention ends, and
// nothing else does.
func TestRetainedObjectsAreSwept(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		inTime(t, 15*time.Second, func(t *testing.T, retention time.Duration, late func(time.Time)) {
			d := startDaemon(t)
			name, _ := newShoot(t)
			sibling := name + "0"
			bucket := newName("bucket")
			store.makeBucket(t, bucket, true)
			store.createBucket(t, bucketObject(bucket, d.kind, nil))
			store.createEntry(t, entryObject(name, d.kind, bucket))
			store.createEntry(t, entryObject(sibling, d.kind, bucket))
			for _, entry := range []string{name, sibling} {
				waitHealthy(t, entries, entry)
			}
			waitHealthy(t, buckets, bucket)
			until := retainFor(retention)
			retained, other, foreign := name+"/etcd-main/v2/Full", sibling+"/etcd-main/v2/Full", "foreign/object"
			store.putObject(t, bucket, retained, until)
			store.putObject(t, bucket, retained+"-free", noRetention)
			store.putObject(t, bucket, other, noRetention)
			store.putObject(t, bucket, foreign, noRetention)

			remove(t, entries, name)
			waitGone(t, entries, name)
			left, err := store.versions(t.Context(), bucket, name+"/")
			must(t, err)
			marks, err := store.versions(t.Context(), bucket, tombstones)
			must(t, err)
			late(until)
			mustEqual(t, "what is left", left, []string{retained})
			if len(marks) != 1 || !strings.HasPrefix(marks[0], tombstones+name+"/deleted-"+until.UTC().Format("20060102T150405Z")+"-1-") {
				t.Errorf("tombstones are %v", marks)
			}
			awaitEvent(t, "ObjectsRetained", name, "1 objects", until.UTC().Format(time.RFC3339))
			label := "bucket=" + bucket
			eventually(t, "the metrics tell of it", func(ctx context.Context) error {
				var got []float64
				for _, metric := range []string{"tombstones", "retained_objects", "next_sweep_timestamp_seconds"} {
					got = append(got, d.value(t, "bucketwarden_backupbucket_"+metric, label))
				}
				late(until)
				if want := []float64{1, 1, float64(until.Unix())}; !slices.Equal(got, want) {
					return fmt.Errorf("they are %v, want %v", got, want)
				}
				return nil
			})

			awaitEnd(t, until)
			store.awaitNoVersions(t, bucket, name+"/")
			store.awaitNoVersions(t, bucket, tombstones)
			store.checkVersions(t, bucket, "", foreign, other)
			awaitEvent(t, "ObjectsDeleted", bucket, name)
			d.awaitValue(t, 0, "bucketwarden_backupbucket_tombstones", label)
		})
	})
}

// A restart forgets nothing: the bucket is the ledger.
func TestSweepAfterRestart(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		inTime(t, 8*time.Second, func(t *testing.T, retention time.Duration, late func(time.Time)) {
			d := startDaemon(t)
			name, _ := newShoot(t)
			bucket := newName("bucket")
			store.makeBucket(t, bucket, true)
			store.createBucket(t, bucketObject(bucket, d.kind, nil))
			store.createEntry(t, entryObject(name, d.kind, bucket))
			waitHealthy(t, entries, name)
			waitHealthy(t, buckets, bucket)
			until := retainFor(retention)
			store.putObject(t, bucket, name+"/etcd-main/v2/Full", until)
			remove(t, entries, name)
			waitGone(t, entries, name)
			late(until)
			d.Kill()
			d.start(t)
			awaitEnd(t, until)
			store.awaitNoVersions(t, bucket, "")
		})
	})
}

// x-etcd-snapshot-exclude keeps etcd-backup-restore from a snapshot; nothing that
// bucketwarden does may replace a tag.
func TestTagsSurvive(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		d := startDaemon(t)
		proxy := store.proxy(t)
		name, _ := newShoot(t)
		bucket := newName("bucket")
		store.makeBucket(t, bucket, true)
		store.createBucket(t, bucketObject(bucket, d.kind, nil))
		waitHealthy(t, buckets, bucket)
		key := name + "/etcd-main/v2/Full"
		// Of a MinIO that is thrown away, nothing has to go.
		store.putObject(t, bucket, key, retainFor(day))
		tags := []types.Tag{{Key: aws.String("other"), Value: aws.String("kept")}, {Key: aws.String("x-etcd-snapshot-exclude"), Value: aws.String("true")}}
		if _, err := store.PutObjectTagging(t.Context(), &s3.PutObjectTaggingInput{Bucket: &bucket, Key: &key, Tagging: &types.Tagging{TagSet: tags}}); err != nil {
			t.Fatal(err)
		}
		check := func() {
			t.Helper()
			got, err := store.GetObjectTagging(t.Context(), &s3.GetObjectTaggingInput{Bucket: &bucket, Key: &key})
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(got.TagSet, func(x, y types.Tag) int { return strings.Compare(*x.Key, *y.Key) })
			mustEqual(t, "tags", got.TagSet, tags)
		}
		for range 2 {
			writeSecret(t, secretName(entries, name), store.SecretData(proxy.URL))
			create(t, entries, entryObject(name, d.kind, bucket))
			waitHealthy(t, entries, name)
			check()
			remove(t, entries, name)
			waitGone(t, entries, name)
			d.awaitPasses(t, "sweeps", 2)
			check()
		}
		for operation := range proxy.Counts() {
			if strings.Contains(operation, "Tagging") {
				t.Errorf("a request %s", operation)
			}
		}
	})
}

// cluster is an API server with a daemon of its own, as a seed.
type cluster struct {
	t    *testing.T
	kube *env.Kube
	env.Gardenlet
	daemon *env.Daemon
	store  *s3Store
	bucket string
}

func startCluster(t *testing.T, store *s3Store, bucket string, namespaces ...string) *cluster {
	t.Helper()
	k, err := env.StartKube(t.Context(), binaries.Testkube)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	c := &cluster{t: t, kube: k, Gardenlet: env.Gardenlet{Kube: k}, store: store, bucket: bucket}
	for _, namespace := range append(namespaces, gardenNamespace) {
		c.must(c.Namespace(t.Context(), namespace))
	}
	if c.daemon, err = env.StartDaemon(t.Context(), env.DaemonOptions{Binary: binaries.Daemon, Kubeconfig: k.Kubeconfig, Args: []string{"--verify-interval=1s"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.daemon.Kill()
		if log := c.daemon.Log(); t.Failed() || strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
			t.Errorf("log of the daemon of bucket %s:\n%s", bucket, log)
		}
	})
	c.must(c.Secret(t.Context(), "bucket-"+bucket, c.store.secret()))
	c.must(c.Bucket(t.Context(), bucket, "s3", c.store.Region, nil))
	c.await(buckets, bucket, env.Healthy)
	return c
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) await(resource schema.GroupVersionResource, name string, condition func(*unstructured.Unstructured) error) {
	c.t.Helper()
	_, err := c.kube.WaitFor(c.t.Context(), timeout, resource, "", name, condition)
	c.must(err)
}

// entry creates an entry, as gardenlet does when a control plane is created or restored.
func (c *cluster) entry(name, bucket string) {
	c.t.Helper()
	c.must(c.Secret(c.t.Context(), "entry-"+name, c.store.secret()))
	c.must(c.Entry(c.t.Context(), name, bucket, "s3", c.store.Region))
	c.await(entries, name, env.Healthy)
}

func (c *cluster) annotate(name, operation string) {
	c.t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{annotationOperation: operation, annotationTimestamp: timestamp()}}})
	c.must(err)
	_, err = c.kube.Dynamic.Resource(entries).Patch(c.t.Context(), name, apitypes.MergePatchType, patch, metav1.PatchOptions{})
	c.must(err)
}

// gone deletes an entry and waits until it is gone.
func (c *cluster) gone(name string) {
	c.t.Helper()
	c.must(c.Delete(c.t.Context(), entries, name))
	c.await(entries, name, func(o *unstructured.Unstructured) error {
		if o != nil {
			return errors.New("it is still there")
		}
		return nil
	})
	c.must(c.kube.Client.CoreV1().Secrets(gardenNamespace).Delete(c.t.Context(), "entry-"+name, metav1.DeleteOptions{}))
}

// migrate hands an entry over, as gardenlet does on the source seed.
func (c *cluster) migrate(name string) {
	c.t.Helper()
	c.annotate(name, "migrate")
	c.await(entries, name, func(o *unstructured.Unstructured) error {
		if o == nil || str(o, "status", "lastOperation", "type") != "Migrate" || str(o, "status", "lastOperation", "state") != "Succeeded" || len(o.GetFinalizers()) > 0 {
			return errors.New("it is not migrated")
		}
		return nil
	})
	c.gone(name)
}

// sweeps waits until n more sweeps have ended.
func (c *cluster) sweeps(n float64) {
	c.t.Helper()
	count := func(ctx context.Context) (float64, error) {
		return c.daemon.Value(ctx, "bucketwarden_reconcile_duration_seconds", "resource=sweeps")
	}
	before, err := count(c.t.Context())
	c.must(err)
	eventually(c.t, "sweeps have ended", func(ctx context.Context) error {
		now, err := count(ctx)
		if err == nil && now < before+n {
			err = fmt.Errorf("%v of %v", now-before, n)
		}
		return err
	})
}

// A shoot moves from seed A to seed B and back again: the tombstone that B leaves in the
// bucket of A must not cost the cluster its backups once it lives on A again.
func TestMigrationThereAndBack(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		inTime(t, 15*time.Second, func(t *testing.T, retention time.Duration, late func(time.Time)) {
			name, namespace := newShoot(t)
			bucketA, bucketB := newName("seed-a"), newName("seed-b")
			store.makeBucket(t, bucketA, true)
			store.makeBucket(t, bucketB, true)
			a, b := startCluster(t, store, bucketA, namespace), startCluster(t, store, bucketB, namespace)
			old, free := name+"/etcd-main/v2/Full-1", name+"/etcd-main/v2/Full-0"

			a.entry(name, bucketA)
			until := retainFor(retention)
			store.putObject(t, bucketA, old, until)
			store.putObject(t, bucketA, free, noRetention)

			// A to B: the backups are copied out of the bucket of A, then deleted there.
			a.migrate(name)
			b.entry(name, bucketB)
			store.putObject(t, bucketB, name+"/etcd-main/v2/Full-2", noRetention)
			b.entry("source-"+name, bucketA)
			b.gone("source-" + name)
			left, err := store.versions(t.Context(), bucketA, name+"/")
			must(t, err)
			marks, err := store.versions(t.Context(), bucketA, tombstones)
			must(t, err)
			late(until)
			mustEqual(t, "what is left in the bucket of A", left, []string{old})
			if marks = slices.DeleteFunc(marks, isRevocation); len(marks) != 1 {
				t.Fatalf("tombstones in the bucket of A: %v", marks)
			}

			// B to A: the cluster lives under the same prefix again, while the old tombstone becomes due.
			b.migrate(name)
			a.entry(name, bucketA)
			marks, err = store.versions(t.Context(), bucketA, tombstones)
			must(t, err)
			late(until)
			if !slices.ContainsFunc(marks, isRevocation) {
				t.Errorf("the tombstone was not revoked: %v", marks)
			}
			live := name + "/etcd-main/v2/Full-3"
			store.putObject(t, bucketA, live, noRetention)
			awaitEnd(t, until.Add(2*time.Second))
			a.sweeps(3)
			store.checkVersions(t, bucketA, name+"/", old, live)

			// The copy in the bucket of B goes, then the cluster itself.
			a.entry("source-"+name, bucketB)
			a.gone("source-" + name)
			store.awaitNoVersions(t, bucketB, "")
			store.checkVersions(t, bucketA, name+"/", old, live)
			a.gone(name)
			store.awaitNoVersions(t, bucketA, "")
		})
	})
}
