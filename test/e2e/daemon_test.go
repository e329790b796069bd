package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"bucketwarden/test/env"
)

// stop stops a daemon as Kubernetes does.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if err := d.Terminate(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRestartWritesNothing(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	bucket := newName("bucket")
	store.createBucket(t, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	waitHealthy(t, buckets, bucket)
	var names []string
	for range 5 {
		name, _ := newShoot(t)
		names = append(names, name)
		store.createEntry(t, entryObject(name, d.kind, bucket))
	}
	for _, name := range names {
		waitHealthy(t, entries, name)
	}
	// The last that is written: it is known once the entries were looked at.
	waitFor(t, buckets, bucket, conditionIs("BackupsRetained", "True"))
	d.stop(t)
	before := map[string]string{bucket: get(t, buckets, bucket).GetResourceVersion()}
	for _, name := range names {
		before[name] = get(t, entries, name).GetResourceVersion()
	}

	d.start(t)
	d.awaitPassesSince(t, "backupbuckets", 0, 3)
	mustEqual(t, "writes after the restart", d.requests(t, writes...), 0.0)
	mustEqual(t, "reconciles of entries after the restart", d.passes(t, "backupentries"), 0.0)
	mustEqual(t, "version of the bucket", get(t, buckets, bucket).GetResourceVersion(), before[bucket])
	for _, name := range names {
		mustEqual(t, "version of entry "+name, get(t, entries, name).GetResourceVersion(), before[name])
	}
	// It is verified at once all the same.
	d.awaitValue(t, 1, "bucketwarden_backupbucket_locked", "bucket="+bucket)
}

func TestRestartRetriesErrors(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	bucket := newName("bucket")
	entry, _ := newShoot(t)
	create(t, buckets, bucketObject(bucket, d.kind, nil))
	create(t, entries, entryObject(entry, d.kind, bucket))
	waitFailed(t, buckets, bucket, "", "does not exist")
	waitFailed(t, entries, entry, "", "does not exist")
	d.stop(t)
	writeSecret(t, secretName(buckets, bucket), minio.SecretData(minio.Endpoint))
	writeSecret(t, secretName(entries, entry), minio.SecretData(minio.Endpoint))
	d.start(t)
	waitHealthy(t, buckets, bucket)
	waitHealthy(t, entries, entry)
}

func TestStopLetsAPassFinish(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	proxy := startProxy(t, minio)
	name := newName("bucket")
	arrived := make(chan struct{})
	var once sync.Once
	running := d.Daemon
	proxy.SetFault(func(r env.Request) *env.Fault {
		if r.Operation != "CreateBucket" {
			return nil
		}
		once.Do(func() { close(arrived) })
		if err := env.Eventually(t.Context(), timeout, "the daemon is stopping", func(context.Context) error {
			if !strings.Contains(running.Log(), "Stopping") {
				return errors.New("it is not")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		return nil
	})
	writeSecret(t, secretName(buckets, name), minio.SecretData(proxy.URL))
	create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	awaitSignal(t, "CreateBucket", arrived)
	d.stop(t)
	if err := healthy(get(t, buckets, name)); err != nil {
		t.Errorf("the running pass was not finished: %v", err)
	}
	store.checkRetention(t, name, "COMPLIANCE 4")
	d.start(t)
}

func TestStopDoesNotWaitForAStoreThatHangs(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	proxy := startProxy(t, minio)
	name := newName("bucket")
	arrived := make(chan struct{})
	var once sync.Once
	proxy.SetFault(func(env.Request) *env.Fault {
		once.Do(func() { close(arrived) })
		return &env.Fault{Latency: time.Hour}
	})
	writeSecret(t, secretName(buckets, name), minio.SecretData(proxy.URL))
	create(t, buckets, bucketObject(name, d.kind, nil))
	awaitSignal(t, "the first request", arrived)
	d.stop(t)
	proxy.SetFault(nil)
	d.start(t)
	waitHealthy(t, buckets, name)
}

func awaitSignal(t *testing.T, what string, signal <-chan struct{}) {
	t.Helper()
	eventually(t, what+" arrives at the store", func(ctx context.Context) error {
		select {
		case <-signal:
			return nil
		default:
			return errors.New("not yet")
		}
	})
}

func TestHeartbeat(t *testing.T) {
	t.Parallel()
	namespace := newName("extension")
	createNamespace(t, namespace, nil)
	d := startDaemon(t, "--namespace="+namespace)
	renewedAfter := func(before time.Time) (renewed time.Time) {
		t.Helper()
		eventually(t, "the heartbeat lease is renewed", func(ctx context.Context) error {
			lease, err := kube.Client.CoordinationV1().Leases(namespace).Get(ctx, "gardener-extension-heartbeat", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if lease.Spec.HolderIdentity == nil || lease.Spec.RenewTime == nil || lease.Spec.LeaseDurationSeconds == nil || *lease.Spec.LeaseDurationSeconds != 30 {
				return fmt.Errorf("it is %v", lease.Spec)
			}
			if renewed = lease.Spec.RenewTime.Time; !renewed.After(before) {
				return fmt.Errorf("it is from %v", renewed)
			}
			return nil
		})
		return renewed
	}
	first := renewedAfter(time.Time{})
	d.stop(t)
	d.start(t)
	renewedAfter(first)
}

func TestResponsibility(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, "--class=garden,seed")
	shoot := startDaemon(t)
	for _, test := range []struct {
		kind, class string
		d           *daemon
		handled     bool
	}{
		{shoot.kind, "", shoot, true},
		{shoot.kind, "shoot", shoot, true},
		{shoot.kind, "garden", shoot, false},
		{newName("foreign"), "", shoot, false},
		{d.kind, "", d, false},
		{d.kind, "shoot", d, false},
		{d.kind, "garden", d, true},
		{d.kind, "seed", d, true},
		{newName("foreign"), "garden", d, false},
	} {
		t.Run(fmt.Sprintf("type %s, class %q", test.kind, test.class), func(t *testing.T) {
			bucket := newName("bucket")
			entry, namespace := newShoot(t)
			bucketOf, entryOf := bucketObject(bucket, test.kind, nil), entryObject(entry, test.kind, bucket)
			witnessBucket, witnessEntry := newName("bucket"), namespace+"--witness"
			witnessB, witnessE := bucketObject(witnessBucket, test.d.kind, nil), entryObject(witnessEntry, test.d.kind, witnessBucket)
			if test.class != "" {
				set(bucketOf, test.class, "spec", "class")
				set(entryOf, test.class, "spec", "class")
			}
			if test.d == d {
				set(witnessB, "garden", "spec", "class")
				set(witnessE, "garden", "spec", "class")
			}
			store.createBucket(t, bucketOf)
			store.createEntry(t, entryOf)
			if test.handled {
				waitHealthy(t, buckets, bucket)
				waitHealthy(t, entries, entry)
				return
			}
			// Events come in order: the daemon has seen these when it has dealt with later ones.
			store.createBucket(t, witnessB)
			store.createEntry(t, witnessE)
			waitHealthy(t, buckets, witnessBucket)
			waitHealthy(t, entries, witnessEntry)
			for resource, name := range map[schema.GroupVersionResource]string{buckets: bucket, entries: entry} {
				if o := get(t, resource, name); has(o, "status") || len(o.GetFinalizers()) > 0 || o.GetAnnotations()[annotationOperation] != "reconcile" {
					t.Errorf("%s was touched: %v", name, o.Object)
				}
			}
			if bucketExists(t, store, bucket) {
				t.Error("the bucket was created")
			}
		})
	}
}

// gardenlet takes an object for unhealthy while its lastUpdateTime lies before the
// timestamp that gardenlet set, by its own clock.
func TestClientClockMayBeAhead(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	bucket := newName("bucket")
	entry, _ := newShoot(t)
	ahead := time.Now().UTC().Add(5 * time.Minute).Format(time.RFC3339Nano)
	for resource, o := range map[schema.GroupVersionResource]*unstructured.Unstructured{
		buckets: bucketObject(bucket, d.kind, nil), entries: entryObject(entry, d.kind, bucket),
	} {
		writeSecret(t, secretName(resource, o.GetName()), minio.SecretData(minio.Endpoint))
		annotate(o, annotationOperation, "reconcile")
		annotate(o, annotationTimestamp, ahead)
		createAsIs(t, resource, o)
		waitHealthy(t, resource, o.GetName())
	}
}

func TestIgnoreOperationAnnotation(t *testing.T) {
	t.Parallel()
	// What is retained is told when it is known, and that is not asked for by anybody.
	d := startDaemon(t, "--ignore-operation-annotation", "--verify-interval=1h", "--extend-retention=false")
	bucket := newName("bucket")
	namespace := newName("shoot--p--s")
	entry := namespace + "--uid"
	writeSecret(t, secretName(buckets, bucket), minio.SecretData(minio.Endpoint))
	createAsIs(t, buckets, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	waitHealthy(t, buckets, bucket)
	store.checkRetention(t, bucket, "COMPLIANCE 4")
	createAsIs(t, entries, entryObject(entry, d.kind, bucket))
	// The secret comes later; nobody asks for anything.
	waitFailed(t, entries, entry, "", "does not exist")
	writeSecret(t, secretName(entries, entry), minio.SecretData(minio.Endpoint))
	waitHealthy(t, entries, entry)

	// Its finalizer on the secret makes one more pass. After a change of the spec that one
	// is over.
	update(t, entries, entry, func(o *unstructured.Unstructured) { set(o, "first-bucket", "spec", "bucketName") })
	waitHealthy(t, entries, entry)
	update(t, entries, entry, func(o *unstructured.Unstructured) { set(o, bucket, "spec", "bucketName") })
	waitHealthy(t, entries, entry)

	// A namespace of the same name for another shoot is not it.
	createNamespace(t, namespace, map[string]string{annotationShootUID: "other"})
	quiet := func() {
		t.Helper()
		// Events come in order: once a later one was dealt with, the ones before were too.
		for _, witness := range []struct {
			resource schema.GroupVersionResource
			o        *unstructured.Unstructured
		}{{buckets, bucketObject(newName("bucket"), d.kind, nil)}, {entries, entryObject(newName("shoot--w")+"--uid", d.kind, bucket)}} {
			writeSecret(t, secretName(witness.resource, witness.o.GetName()), minio.SecretData(minio.Endpoint))
			createAsIs(t, witness.resource, witness.o)
			waitHealthy(t, witness.resource, witness.o.GetName())
		}
	}
	quiet()
	noSecret(t, namespace, "etcd-backup")
	ns, err := kube.Client.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ns.Annotations[annotationShootUID] = "uid"
	if _, err := kube.Client.CoreV1().Namespaces().Update(t.Context(), ns, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	etcdBackup := func(key, want string) {
		t.Helper()
		eventually(t, fmt.Sprintf("the etcd-backup secret says %s: %s", key, want), func(ctx context.Context) error {
			secret, err := kube.Client.CoreV1().Secrets(namespace).Get(ctx, "etcd-backup", metav1.GetOptions{})
			if err == nil && string(secret.Data[key]) != want {
				err = fmt.Errorf("it says %q", secret.Data[key])
			}
			return err
		})
	}
	etcdBackup("bucketName", bucket)

	// Changed credentials.
	writeSecret(t, secretName(entries, entry), with(minio.SecretData(minio.Endpoint), map[string][]byte{"accessKeyID": []byte("another")}))
	etcdBackup("accessKeyID", "another")
	waitFailed(t, entries, entry, codeUnauthenticated)
	writeSecret(t, secretName(entries, entry), minio.SecretData(minio.Endpoint))
	waitHealthy(t, entries, entry)
	changeSecret(t, gardenNamespace, secretName(buckets, bucket), func(s *corev1.Secret) { s.Data["secretAccessKey"] = []byte("wrong") })
	waitFailed(t, buckets, bucket, codeUnauthorized)
	writeSecret(t, secretName(buckets, bucket), minio.SecretData(minio.Endpoint))
	waitHealthy(t, buckets, bucket)

	// A changed generation.
	update(t, buckets, bucket, setImmutability(immutability("compliance", "120h")))
	waitHealthy(t, buckets, bucket)
	store.checkRetention(t, bucket, "COMPLIANCE 5")
	update(t, entries, entry, func(o *unstructured.Unstructured) { set(o, "other-bucket", "spec", "bucketName") })
	waitHealthy(t, entries, entry)
	etcdBackup("bucketName", "other-bucket")

	// Annotations alone are nothing.
	for resource, name := range map[schema.GroupVersionResource]string{buckets: bucket, entries: entry} {
		changed := update(t, resource, name, func(o *unstructured.Unstructured) { annotate(o, "example.com/foreign", "changed") })
		quiet()
		mustEqual(t, "version of "+name, get(t, resource, name).GetResourceVersion(), changed.GetResourceVersion())
	}
}

func TestStoreOutage(t *testing.T) {
	t.Parallel()
	own := startMinIO(t, env.MinIOOptions{})
	d := startDaemon(t)
	name := newName("bucket")
	writeSecret(t, secretName(buckets, name), own.SecretData(own.Endpoint))
	create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	before := waitHealthy(t, buckets, name)

	// Verifying a bucket on a store that is down changes nothing.
	own.Down()
	failures := func() float64 {
		return d.value(t, "bucketwarden_reconcile_duration_seconds", "resource=backupbuckets", "outcome=error")
	}
	eventually(t, "a verification has failed", func(context.Context) error {
		if failures() == 0 {
			return errors.New("none has")
		}
		return nil
	})
	mustEqual(t, "version of the BackupBucket", get(t, buckets, name).GetResourceVersion(), before.GetResourceVersion())
	// What was known counts for a while.
	mustEqual(t, "bucketwarden_backupbucket_locked", d.value(t, "bucketwarden_backupbucket_locked", "bucket="+name), 1.0)
	// A reconcile says what is wrong, and succeeds by itself later.
	reconcile(t, buckets, name, setImmutability(immutability("compliance", "120h")))
	waitFailed(t, buckets, name, codeRetryableDependencies)
	if err := own.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, buckets, name)

	// A store that hangs and comes back.
	if err := own.Pause(); err != nil {
		t.Fatal(err)
	}
	reconcile(t, buckets, name, nil)
	eventually(t, "a pass hangs", func(context.Context) error {
		if d.value(t, "workqueue_longest_running_processor_seconds", "name=backupbuckets") == 0 {
			return errors.New("none is running")
		}
		return nil
	})
	if err := own.Resume(); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, buckets, name)
}

func TestStoreErrorsAreTheStores(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	for _, test := range []struct {
		status       int
		s3Code, code string
	}{
		{http.StatusForbidden, "AccessDenied", codeUnauthorized},
		{http.StatusInternalServerError, "InternalError", codeRetryableDependencies},
		{http.StatusServiceUnavailable, "SlowDown", codeRetryableDependencies},
		{http.StatusTooManyRequests, "TooManyRequests", codeRateLimits},
		{http.StatusConflict, "BucketAlreadyExists", codeConfiguration},
	} {
		t.Run(test.s3Code, func(t *testing.T) {
			proxy := startProxy(t, minio)
			name := newName("bucket")
			proxy.SetFault(func(r env.Request) *env.Fault {
				if r.Operation == "CreateBucket" {
					return &env.Fault{Status: test.status, Code: test.s3Code}
				}
				return nil
			})
			writeSecret(t, secretName(buckets, name), minio.SecretData(proxy.URL))
			create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
			if test.code == codeRateLimits {
				waitThrottled(t, buckets, name)
			} else {
				waitFailed(t, buckets, name, test.code)
			}
			if bucketExists(t, store, name) {
				t.Error("the bucket exists")
			}
			proxy.SetFault(nil)
			waitHealthy(t, buckets, name)
			store.checkRetention(t, name, "COMPLIANCE 4")
		})
	}
}

// However the daemon ends, what it left is finished by the next one.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	const kills = 25
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	d := startDaemon(t)
	bucket := newName("backups")
	store.makeVersioned(t, bucket)
	wantSecret := minio.SecretData(minio.Endpoint)
	wantSecret["bucketName"] = []byte(bucket)

	type entry struct {
		name, namespace string
		deleted         bool
	}
	var all []*entry
	var locked, want []string
	deleted := 0
	for round := range kills {
		for range 2 {
			e := &entry{}
			e.name, e.namespace = newShoot(t)
			all = append(all, e)
			for _, key := range []string{e.name + "/etcd-main/v2/Full", e.name + "/etcd-main/v2/Incr", e.name + "0/x"} {
				store.putObject(t, bucket, key, noRetention)
			}
			store.hideObject(t, bucket, e.name+"/etcd-main/v2/Incr")
			store.createEntry(t, entryObject(e.name, d.kind, bucket))
		}
		// The objects of an entry that was never ready are left alone.
		for _, i := range random.Perm(len(all)) {
			if e := all[i]; !e.deleted && str(get(t, entries, e.name), "status", "lastOperation", "state") == "Succeeded" {
				e.deleted = true
				deleted++
				remove(t, entries, e.name)
				break
			}
		}
		if round%5 == 0 {
			name := newName("bucket")
			locked = append(locked, name)
			store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		}
		// This is no wait for anything: any moment will do.
		moment := time.NewTimer(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
		select {
		case <-moment.C:
		case <-t.Context().Done():
			t.Fatal(context.Cause(t.Context()))
		}
		d.Kill()
		d.start(t)
	}

	for _, e := range all {
		want = append(want, e.name+"0/x")
		if e.deleted {
			waitGone(t, entries, e.name)
			noSecret(t, e.namespace, "etcd-backup")
			mustEqual(t, "finalizers of the credentials of "+e.name, len(getSecret(t, gardenNamespace, secretName(entries, e.name)).Finalizers), 0)
			continue
		}
		waitHealthy(t, entries, e.name)
		mustEqual(t, "data of the etcd-backup secret of "+e.name, getSecret(t, e.namespace, "etcd-backup").Data, wantSecret)
		want = append(want, e.name+"/etcd-main/v2/Full", e.name+"/etcd-main/v2/Incr", e.name+"/etcd-main/v2/Incr")
	}
	t.Logf("%d entries, %d of them deleted, %d kills", len(all), deleted, kills)
	slices.Sort(want)
	store.checkVersions(t, bucket, "", want...)
	for _, name := range locked {
		waitHealthy(t, buckets, name)
		store.checkRetention(t, name, "COMPLIANCE 4")
	}
}

// Values of secrets must not appear anywhere but in secrets.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, "-v=4")
	good := minio.SecretData(minio.Endpoint)
	marker := func(what string) []byte { return []byte("Marker" + what + "Marker") }
	markers := map[string]map[string][]byte{
		"wrong-secret-key": with(good, map[string][]byte{"secretAccessKey": marker("SecretKey")}),
		"unknown-key-id":   with(good, map[string][]byte{"accessKeyID": marker("KeyID")}),
		"token-and-keys":   with(good, map[string][]byte{"token": marker("Token")}),
		"token-of-nobody":  {"token": marker("OtherToken"), "roleARN": marker("Role"), "region": good["region"], "endpoint": good["endpoint"]},
		"config-of-nobody": {"token": marker("ThirdToken"), "config": marker("Config"), "region": good["region"], "endpoint": good["endpoint"]},
		"bad-ca":           with(good, map[string][]byte{"trustedCaCert": marker("CA")}),
		"bad-boolean":      with(good, map[string][]byte{"s3ForcePathStyle": marker("Boolean")}),
		"bad-checksum":     with(good, map[string][]byte{"requestChecksumCalculation": marker("Checksum")}),
		"bad-endpoint":     with(good, map[string][]byte{"endpoint": []byte("http://user:" + string(marker("Password")) + "@127.0.0.1:1")}),
		"unused-key":       with(good, map[string][]byte{"unused": marker("Unused")}),
		"good":             good,
	}
	// A store may tell in its errors what it was given.
	telltale := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, "<Error><Code>Strange</Code><Message>no %s with %s here</Message></Error>", marker("ToldKeyID"), marker("ToldSecretKey"))
	}))
	t.Cleanup(telltale.Close)
	markers["told"] = with(good, map[string][]byte{"accessKeyID": marker("ToldKeyID"), "secretAccessKey": marker("ToldSecretKey"), "endpoint": []byte(telltale.URL)})
	for what, data := range markers {
		name := what + "-" + newName("bucket")
		writeSecret(t, secretName(buckets, name), data)
		create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		entry, _ := newShoot(t)
		writeSecret(t, secretName(entries, entry), data)
		create(t, entries, entryObject(entry, d.kind, name))
		either := func(o *unstructured.Unstructured) error {
			if err := inState("Error")(o); err != nil {
				return inState("Succeeded")(o)
			}
			return nil
		}
		waitFor(t, buckets, name, either)
		waitFor(t, entries, entry, either)
		remove(t, entries, entry)
		waitFor(t, entries, entry, func(o *unstructured.Unstructured) error {
			if o == nil {
				return nil
			}
			if str(o, "status", "lastOperation", "type") != "Delete" {
				return errors.New("deletion has not begun")
			}
			return inState("Error")(o)
		})
		reconcile(t, buckets, name, nil)
		waitFor(t, buckets, name, func(o *unstructured.Unstructured) error { return errors.Join(settled(o), either(o)) })
	}

	response, err := http.Get(d.MetricsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	metrics, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	places := map[string]string{"the metrics": string(metrics), "the log": d.allLogs()}
	events, err := kube.Client.EventsV1().Events(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range events.Items {
		places["events"] += event.Note + "\n"
	}
	for _, resource := range []schema.GroupVersionResource{buckets, entries} {
		list, err := kube.Dynamic.Resource(resource).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		text, err := list.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		places[resource.Resource] = string(text)
	}
	for place, text := range places {
		if text == "" {
			t.Errorf("nothing to look at in %s", place)
		}
		for _, secret := range []string{"Marker", minio.SecretAccessKey, minio.AccessKeyID} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s show a secret value: ...%s...", place, text[max(0, i-200):min(len(text), i+100)])
			}
		}
	}
}

// The numbers of requests are what the daemon promises; they do not vary.
func TestRequestsOfAnEntry(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, "--verify-interval=1h")
	proxy := startProxy(t, minio)
	bucket := newName("backups")
	store.makeVersioned(t, bucket)
	for _, what := range []string{"the first", "another"} {
		name, _ := newShoot(t)
		writeSecret(t, secretName(entries, name), minio.SecretData(proxy.URL))
		before := d.requests(t)
		create(t, entries, entryObject(name, d.kind, bucket))
		waitHealthy(t, entries, name)
		// The first look at its backups comes within half a minute, maybe now.
		const look = 3
		if got := d.requests(t) - before; got > 5+look {
			t.Errorf("%s new entry took %v API requests, want at most 5 and those of a look at its backups", what, got)
		}
		before = d.requests(t)
		reconcile(t, entries, name, nil)
		waitHealthy(t, entries, name)
		if got := d.requests(t) - before; got > 4+look {
			t.Errorf("reconciling %s entry again took %v API requests, want at most 4 and those of a look at its backups", what, got)
		}
	}
	// Each looks for a tombstone. A look at the backups of each makes at most two lists.
	if counts := proxy.Counts(); len(counts) != 1 || counts["ListObjectVersions"] < 4 || counts["ListObjectVersions"] > 8 {
		t.Errorf("2 new entries that are reconciled again made the store requests %v", counts)
	}

	const objects, each = 1000, 3
	name, _ := newShoot(t)
	keys := make(chan string)
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for key := range keys {
				for range each {
					if _, err := store.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for i := range objects {
		keys <- fmt.Sprintf("%s/etcd-main/v2/Incr-%08d", name, i)
	}
	close(keys)
	writers.Wait()
	writeSecret(t, secretName(entries, name), minio.SecretData(proxy.URL))
	create(t, entries, entryObject(name, d.kind, bucket))
	waitHealthy(t, entries, name)
	proxy.Reset()
	remove(t, entries, name)
	waitGone(t, entries, name)
	store.checkVersions(t, bucket, name+"/")
	mustEqual(t, "deleted versions", d.value(t, "bucketwarden_purged_objects_total", "bucket="+bucket), float64(objects*each))
	sum := 0
	for _, n := range proxy.Counts() {
		sum += n
	}
	// A look at its backups, which comes within half a minute, makes five lists.
	if sum > 10+5 {
		t.Errorf("deleting %d versions took %d store requests, want at most 10 and those of a look: %v", objects*each, sum, proxy.Counts())
	}
}

func TestRequestsOfAVerification(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	proxy := startProxy(t, minio)
	name := newName("bucket")
	writeSecret(t, secretName(buckets, name), minio.SecretData(proxy.URL))
	create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	waitHealthy(t, buckets, name)
	d.awaitPassesSince(t, "backupbuckets", 0, 1)
	// The last thing that there is to tell; the log comes through a pipe.
	eventually(t, "the lock is in the log", func(context.Context) error {
		if !strings.Contains(d.Log(), "Locked the bucket's policy") {
			return errors.New("it is not")
		}
		return nil
	})
	log := d.Log()
	// First the passes, and last in the end: those in between count for more requests.
	passes := d.passes(t, "backupbuckets")
	written, requests := d.requests(t, writes...), d.requests(t)
	proxy.Reset()
	d.awaitPassesSince(t, "backupbuckets", passes, 5)
	counts := proxy.Counts()
	written, requests = d.requests(t, writes...)-written, d.requests(t)-requests
	passes = d.passes(t, "backupbuckets") - passes
	sum := 0.0
	for _, n := range counts {
		sum += float64(n)
	}
	// One more may just be at work. The sweep after it lists tombstones and reads the secret.
	if sum > 4*(passes+1) || float64(counts["ListObjectVersions"]) > passes+1 || requests > 2*(passes+1) || written != 0 {
		t.Errorf("%v verifications took %v store requests %v, %v API requests, %v of them writes", passes, sum, counts, requests, written)
	}
	if said := strings.TrimPrefix(d.Log(), log); said != "" {
		t.Errorf("%v verifications of a healthy bucket are not silent:\n%s", passes, said)
	}
}

// In JSON every line of the log is an object with a time, a level and a message.
func TestLoggingFormatJSON(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, "--logging-format=json", "-v=2")
	bucket := newName("bucket")
	store.createBucket(t, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("governance", "24h"))))
	waitHealthy(t, buckets, bucket)
	reconcile(t, buckets, bucket, setImmutability(immutability("governance", "1h")))
	waitFailed(t, buckets, bucket, codeConfiguration)
	var created bool
	for line := range strings.Lines(d.Log()) {
		var entry struct {
			Time              time.Time
			Level, Msg        string
			Resource, Name    string
			Region, Immutable any
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("%v in the line %s", err, line)
			continue
		}
		if entry.Time.IsZero() || entry.Level == "" || entry.Msg == "" {
			t.Errorf("incomplete: %s", line)
		}
		created = created || entry.Msg == "Created the bucket" && entry.Level == "INFO" && entry.Resource == "backupbuckets" && entry.Name == bucket
	}
	if !created {
		t.Errorf("no line says that the bucket was created:\n%s", d.Log())
	}
}
