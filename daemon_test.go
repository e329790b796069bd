package main

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// mainTestStore is a bucket that is as it should be.
type mainTestStore struct {
	Store
	pureS3
}

func (mainTestStore) Observe(context.Context) (BucketState, error) {
	return BucketState{Exists: true}, nil
}

func (s mainTestStore) openStore(bucketRef, map[string][]byte) (Store, error) { return s, nil }

func (s mainTestStore) endpoint() endpointRef { return endpointRef{"store", "seed"} }

func (s mainTestStore) openObjects(bucketRef, map[string][]byte) (Objects, error) { return s, nil }

func (mainTestStore) traits() traits { return traits{} }

func (mainTestStore) Harden(context.Context) ([]string, error) { return nil, nil }

func (mainTestStore) Put(context.Context, string) error { return nil }

func (mainTestStore) pages(context.Context, string, cursor) iter.Seq2[page, error] {
	return func(func(page, error) bool) {}
}

func TestDaemon(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		name := "annotation mode"
		if ignore {
			name = "ignoring annotations"
		}
		t.Run(name, func(t *testing.T) {
			// The bucket was reconciled before; the entry is new.
			bucket := informersTestObject(t, `
apiVersion: extensions.gardener.cloud/v1alpha1
kind: BackupBucket
metadata: {name: seed, uid: uid-1, generation: 1, finalizers: [extensions.gardener.cloud/backupbucket]}
spec: {type: s3, region: eu-1, secretRef: {name: credentials, namespace: garden}}
status: {observedGeneration: 1, lastOperation: {type: Create, state: Succeeded, progress: 100, description: x, lastUpdateTime: "2026-01-02T03:04:05Z"}}
`)
			entry := informersTestObject(t, `
apiVersion: extensions.gardener.cloud/v1alpha1
kind: BackupEntry
metadata: {name: shoot--a--b--1, uid: uid-2, generation: 1, annotations: {gardener.cloud/operation: reconcile}}
spec: {type: s3, region: eu-1, bucketName: seed, secretRef: {name: credentials, namespace: garden}}
`)
			core := fake.NewClientset(
				&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shoot--a--b"}},
				&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "garden", Name: "credentials"},
					Data: map[string][]byte{"accessKeyID": []byte("id"), "secretAccessKey": []byte("key"), "region": []byte("eu-1")}})
			dyn := informersTestDynamic(bucket, entry)
			scheme := metadatafake.NewTestScheme()
			if err := metav1.AddMetaToScheme(scheme); err != nil {
				t.Fatal(err)
			}
			c := mainTestConfig(t, fmt.Sprintf("--ignore-operation-annotation=%t", ignore), "--concurrent-syncs=2")
			d := &daemon{config: c, core: core, leases: core, metrics: newMetrics(), broadcaster: newBroadcaster(core)}
			if err := d.wire(dyn, metadatafake.NewSimpleMetadataClient(scheme), c.scope(map[string]provider{storeS3: mainTestStore{}}), newRecorder(d.broadcaster)); err != nil {
				t.Fatal(err)
			}

			logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
			log := logger.GetSink().(ktesting.Underlier).GetBuffer()
			ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- d.run(ctx) }()
			informersTestAwait(t, "ready", d.ready.Load)

			address := func(server string) string {
				match := regexp.MustCompile(`Serving ` + server + ` address="([^"]+)"`).FindStringSubmatch(log.String())
				if match == nil {
					t.Fatalf("the address of %s is not logged:\n%s", server, log.String())
				}
				return match[1]
			}
			health, metrics := address("health"), address("metrics")
			if status, body := mainTestGet(t, "http://"+health+"/readyz"); status != http.StatusOK || body != "ok\n" {
				t.Errorf("/readyz: %d %s", status, body)
			}
			informersTestAwait(t, "the entry has its secret and Succeeded", func() bool {
				u, err := dyn.Resource(entriesGVR).Get(ctx, "shoot--a--b--1", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				e := decodeEntry(u)
				secret, err := core.CoreV1().Secrets("shoot--a--b").Get(ctx, "etcd-backup", metav1.GetOptions{})
				return err == nil && string(secret.Data["bucketName"]) == "seed" && e.succeeded() && e.operation() == "" && e.hasFinalizer(finalizerBackupEntry)
			})
			informersTestAwait(t, "the bucket is verified", func() bool {
				return queueTestSeries(t, d.metrics, "bucketwarden_backupbucket_last_verified_timestamp_seconds", "bucket", "seed") > 0
			})
			informersTestAwait(t, "heartbeat", func() bool {
				_, err := core.CoordinationV1().Leases("own").Get(ctx, heartbeatLease, metav1.GetOptions{})
				return err == nil
			})
			if _, body := mainTestGet(t, "http://"+metrics+"/metrics"); !strings.Contains(body, `bucketwarden_info{class="shoot",role="controllers"} 1`) {
				t.Error("bucketwarden_info does not say what this daemon is for")
			}
			if status, body := mainTestGet(t, "http://"+metrics+"/metrics"); status != http.StatusOK || !strings.Contains(body, `bucketwarden_backupbucket_info{bucket="seed",region="eu-1",type="s3"} 1`) {
				t.Errorf("/metrics: %d %s", status, body)
			}

			stop()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Minute):
				t.Fatal("does not stop")
			}
			if d.ready.Load() {
				t.Error("ready after the end")
			}
			for _, server := range []string{health, metrics} {
				if response, err := http.Get("http://" + server + "/livez"); err == nil {
					_ = response.Body.Close()
					t.Errorf("%s still answers", server)
				}
			}
			for _, controller := range d.controllers {
				if !controller.queue.ShuttingDown() {
					t.Errorf("the queue of %s still runs", controller.resource)
				}
			}
		})
	}
}

// mainTestConfig is the configuration of a daemon without admission.
func mainTestConfig(t *testing.T, args ...string) *config {
	t.Helper()
	c, err := parseFlags(append([]string{"--verify-interval=1h", "--metrics-address=127.0.0.1:0", "--health-address=127.0.0.1:0", "--webhook-address=", "--namespace=own"}, args...), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mainTestGet(t *testing.T, url string) (int, string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestDaemonStopsBeforeItIsReady(t *testing.T) {
	d := mainTestBareDaemon(t, "127.0.0.1:0")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := d.run(ctx); err != nil {
		t.Error(err)
	}
	if d.ready.Load() {
		t.Error("ready")
	}
}

func TestDaemonNeedsItsAddresses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	address := taken.Addr().String()
	if err := mainTestBareDaemon(t, address).run(t.Context()); err == nil || !strings.Contains(err.Error(), "listening for health on "+address) {
		t.Errorf("got %v", err)
	}
}

// mainTestBareDaemon has nothing to work on.
func mainTestBareDaemon(t *testing.T, healthAddress string) *daemon {
	t.Helper()
	core := fake.NewClientset()
	c := mainTestConfig(t, "--health-address="+healthAddress)
	d := &daemon{config: c, core: core, leases: core, metrics: newMetrics(), broadcaster: newBroadcaster(core)}
	if err := d.wire(informersTestDynamic(), nil, c.scope(nil), events.NewFakeRecorder(1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, controller := range d.controllers {
			controller.shutDown()
		}
	})
	return d
}
