package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apitypes "k8s.io/apimachinery/pkg/types"

	"bucketwarden/test/env"
)

// providerExtension is a stand-in for provider-aws, provider-azure and provider-gcp: it owns BackupBuckets and BackupEntries as
// Gardener's library for extensions does (gardener/gardener extensions/pkg/controller/backup{bucket,entry}/reconciler.go): a
// finalizer on them and on their secrets, the operation annotation taken away, lastOperation. It makes buckets as their actuators
// do, and like them writes no providerStatus, and on Azure a generated secret.
type providerExtension struct {
	t     *testing.T
	seed  *chartSeed
	store *s3Store
	azure *env.Azure
	// stop ends it.
	stop func()
}

// run carries out what is asked for until the test ends.
func (p *providerExtension) run() {
	ctx, stop := context.WithCancel(context.WithoutCancel(p.t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for _, resource := range []schema.GroupVersionResource{buckets, entries} {
				p.look(ctx, resource)
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	p.stop = func() {
		stop()
		<-done
	}
	p.t.Cleanup(p.stop)
}

func (p *providerExtension) look(ctx context.Context, resource schema.GroupVersionResource) {
	list, err := p.seed.Dynamic.Resource(resource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for i := range list.Items {
		o := &list.Items[i]
		if o.GetAnnotations()["gardener.cloud/operation"] != "reconcile" {
			continue
		}
		if err := p.reconcile(ctx, resource, o); err != nil && ctx.Err() == nil {
			p.t.Errorf("the stand-in for a provider extension: %s %s: %v", resource.Resource, o.GetName(), err)
			return
		}
	}
}

func (p *providerExtension) reconcile(ctx context.Context, resource schema.GroupVersionResource, o *unstructured.Unstructured) error {
	finalizer := "extensions.gardener.cloud/backupbucket"
	if resource == entries {
		finalizer = "extensions.gardener.cloud/backupentry"
	}
	if err := p.patch(ctx, resource, o.GetName(), map[string]any{"metadata": map[string]any{"finalizers": []string{finalizer}}}); err != nil {
		return err
	}
	name, _, _ := unstructured.NestedString(o.Object, "spec", "secretRef", "name")
	namespace, _, _ := unstructured.NestedString(o.Object, "spec", "secretRef", "namespace")
	secrets := p.seed.Client.CoreV1().Secrets(namespace)
	if _, err := secrets.Patch(ctx, name, apitypes.StrategicMergePatchType, encode(p.t, map[string]any{"metadata": map[string]any{
		"finalizers": []string{finalizer}}}), metav1.PatchOptions{}); err != nil {
		return err
	}
	if err := p.patch(ctx, resource, o.GetName(), map[string]any{"metadata": map[string]any{
		"annotations": map[string]any{"gardener.cloud/operation": nil}}}); err != nil {
		return err
	}
	status := func(state string, more map[string]any) error {
		fields := map[string]any{"observedGeneration": o.GetGeneration(), "lastOperation": map[string]any{"type": "Create", "state": state,
			"description": "by the provider extension", "progress": 100, "lastUpdateTime": time.Now().UTC().Format(time.RFC3339)}}
		for key, value := range more {
			fields[key] = value
		}
		return p.patch(ctx, resource, o.GetName(), map[string]any{"status": fields}, "status")
	}
	if err := status("Processing", nil); err != nil {
		return err
	}
	var more map[string]any
	if kind, _, _ := unstructured.NestedString(o.Object, "spec", "type"); resource == buckets && kind != "gcp" {
		var err error
		if more, err = p.makeBucket(ctx, kind, o); err != nil {
			return err
		}
	}
	return status("Succeeded", more)
}

// makeBucket makes a bucket as it is asked for, and returns fields of its status.
func (p *providerExtension) makeBucket(ctx context.Context, kind string, o *unstructured.Unstructured) (map[string]any, error) {
	name := o.GetName()
	period, _, _ := unstructured.NestedString(o.Object, "spec", "providerConfig", "immutability", "retentionPeriod")
	hours, err := strconv.Atoi(strings.TrimSuffix(period, "h"))
	if err != nil {
		return nil, err
	}
	days := int32(hours / 24)
	if kind == "azure" {
		locked, _, _ := unstructured.NestedBool(o.Object, "spec", "providerConfig", "immutability", "locked")
		account := azureAccountName(name)
		if p.azure.Container(name).Exists {
			return nil, nil
		}
		makeGroup(p.t, p.azure, name, nil)
		makeAccount(p.t, p.azure, name, account)
		makeContainer(p.t, p.azure, name, account, name)
		if err := p.azure.SetPolicy(name, days, locked); err != nil {
			return nil, err
		}
		made, err := p.azure.Account(account)
		if err != nil {
			return nil, err
		}
		_, domain, _ := strings.Cut(p.azure.BlobEndpoint, "://")
		domain, _, _ = strings.Cut(domain, "/")
		// gardener/gardener-extension-provider-azure pkg/controller/backupbucket/secret.go
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: gardenNamespace, Name: generatedName(name)},
			Data: map[string][]byte{"storageAccount": []byte(account), "storageKey": []byte(made.Keys[0].Value), "domain": []byte(domain)}}
		_, err = p.seed.Client.CoreV1().Secrets(gardenNamespace).Create(ctx, secret, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
		return map[string]any{"generatedSecretRef": map[string]any{"namespace": gardenNamespace, "name": secret.Name}}, err
	}
	// gardener/gardener-extension-provider-aws pkg/controller/backupbucket/actuator_reconcile.go
	lock := true
	if _, err := p.store.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: &lock}); err != nil &&
		s3Code(err) != "BucketAlreadyOwnedByYou" {
		return nil, err
	}
	mode, _, _ := unstructured.NestedString(o.Object, "spec", "providerConfig", "immutability", "mode")
	_, err = p.store.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{Bucket: &name, ObjectLockConfiguration: &types.ObjectLockConfiguration{
		ObjectLockEnabled: types.ObjectLockEnabledEnabled, Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{
			Mode: types.ObjectLockRetentionMode(strings.ToUpper(mode)), Days: &days}}}})
	return nil, err
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Error(err)
	}
	return data
}

func (p *providerExtension) patch(ctx context.Context, resource schema.GroupVersionResource, name string, patch map[string]any, sub ...string) error {
	_, err := p.seed.Dynamic.Resource(resource).Patch(ctx, name, apitypes.MergePatchType, encode(p.t, patch), metav1.PatchOptions{}, sub...)
	return err
}

// observedSeed is a seed whose buckets a stand-in owns, with an observer beside it.
type observedSeed struct {
	*chartSeed
	*providerExtension
	proxy    *env.Proxy
	observer *daemon
	// entry has a backup in the bucket onS3, bare none, and ofAzure has one in onAzure. onGCS is not served.
	onS3, entry, bare, onAzure, ofAzure, onGCS string
}

// startObserved makes buckets and entries and waits until their owner is through. What the proxy counts is the observer's.
func startObserved(t *testing.T, values ...string) *observedSeed {
	t.Helper()
	s := startChartSeed(t, append([]string{"observe=true", "leaderElection.enabled=true"}, values...)...)
	o := &observedSeed{chartSeed: s, providerExtension: &providerExtension{t: t, seed: s, store: store, azure: azure}, proxy: startProxy(t, minio),
		onS3: probedSoon(t), onAzure: azureName(), onGCS: newName("gcs"), entry: newName("shoot--o--s") + "--uid", bare: newName("shoot--o--n") + "--uid",
		ofAzure: newName("shoot--o--z") + "--uid"}
	ctx := t.Context()
	for name, data := range map[string]map[string][]byte{"bucket-" + o.onS3: minio.SecretData(o.proxy.URL), "bucket-" + o.onAzure: azure.SecretData(),
		"bucket-" + o.onGCS: {"serviceaccount.json": []byte("{}")}, "entry-" + o.entry: minio.SecretData(o.proxy.URL), "entry-" + o.bare: minio.SecretData(o.proxy.URL)} {
		must(t, s.Secret(ctx, name, data))
	}
	o.run()
	must(t, s.Bucket(ctx, o.onS3, "aws", minio.Region, env.BucketConfig("aws", immutability("compliance", "96h"))))
	config := env.BucketConfig("azure", days(4, true))
	config["cloudConfiguration"] = map[string]any{"name": azure.CloudName}
	must(t, s.Bucket(ctx, o.onAzure, "azure", azureRegion, config))
	must(t, s.Bucket(ctx, o.onGCS, "gcp", "europe-west1", env.BucketConfig("gcp", days(4, true))))
	for _, name := range []string{o.onS3, o.onAzure, o.onGCS} {
		s.await(buckets, name, env.Healthy)
	}
	store.putObject(t, o.onS3, snapshotKey(o.entry, "Full", 0, 100, 5), noRetention)
	must(t, azure.PutBlob(ctx, o.onAzure, snapshotKey(o.ofAzure, "Full", 0, 100, 5), []byte("snapshot")))
	// gardenlet copies the generated secret for entries.
	generated, err := s.Client.CoreV1().Secrets(gardenNamespace).Get(ctx, generatedName(o.onAzure), metav1.GetOptions{})
	must(t, err)
	must(t, s.Secret(ctx, "entry-"+o.ofAzure, generated.Data))
	must(t, s.Entry(ctx, o.entry, o.onS3, "aws", minio.Region))
	must(t, s.Entry(ctx, o.bare, o.onS3, "aws", minio.Region))
	must(t, s.Entry(ctx, o.ofAzure, o.onAzure, "azure", azureRegion))
	for _, name := range []string{o.entry, o.bare, o.ofAzure} {
		s.await(entries, name, env.Healthy)
	}
	o.proxy.Reset()
	azure.ResetRequests(o.onAzure)
	azure.ResetRequests(azureAccountName(o.onAzure))
	return o
}

// observe starts the observer as a service account of the chart.
func (o *observedSeed) observe(args ...string) {
	t := o.chartSeed.t
	t.Helper()
	kubeconfig, err := o.ServiceAccountKubeconfig(t.Context(), chartNamespace, "bucketwarden")
	must(t, err)
	o.observer = o.startBeside(kubeconfig, append([]string{"--observe", "--leader-elect", "--namespace=" + chartNamespace}, args...)...)
}

// startBeside starts a daemon for the buckets of this seed.
func (o *observedSeed) startBeside(kubeconfig string, args ...string) *daemon {
	t := o.chartSeed.t
	t.Helper()
	started, err := env.StartDaemon(t.Context(), env.DaemonOptions{Binary: binaries.Daemon, Kubeconfig: kubeconfig,
		Args: append([]string{"--type=aws=s3", "--type=azure=azure", "--verify-interval=1s", "--azure-cloud-config=" + azure.CloudConfig}, args...),
		// As with an API server that cannot stream lists.
		Env: []string{"SSL_CERT_FILE=" + azure.CAFile, "KUBE_FEATURE_WatchListClient=false", "KUBE_CACHE_MUTATION_DETECTOR=true"}})
	must(t, err)
	t.Cleanup(func() {
		started.Kill()
		if log := started.Log(); t.Failed() || strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
			t.Errorf("log of the daemon with %q:\n%s", args, log)
		}
	})
	return &daemon{Daemon: started}
}

// versions are the resourceVersions of everything that the observer looks at.
func (o *observedSeed) versions() map[string]string {
	t := o.chartSeed.t
	t.Helper()
	all := map[string]string{}
	for _, resource := range []schema.GroupVersionResource{buckets, entries} {
		list, err := o.Dynamic.Resource(resource).List(t.Context(), metav1.ListOptions{})
		must(t, err)
		for _, item := range list.Items {
			all[resource.Resource+" "+item.GetName()] = item.GetResourceVersion()
		}
	}
	list, err := o.Client.CoreV1().Secrets(gardenNamespace).List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for _, item := range list.Items {
		all["secret "+item.Name] = item.ResourceVersion
	}
	return all
}

// checkAPI reads what the API server says that the observer has asked for.
func (o *observedSeed) checkAPI() {
	t := o.chartSeed.t
	t.Helper()
	for _, r := range o.requests("bucketwarden") {
		about := r.ObjectRef
		switch {
		case slices.Contains([]string{"get", "list", "watch"}, r.Verb):
		case about.Resource == "events" && about.APIGroup == "events.k8s.io" && (r.Verb == "create" || r.Verb == "patch"):
		case about.Resource == "leases" && about.Namespace == chartNamespace && (about.Name == "bucketwarden-observer" || r.Verb == "create"):
		default:
			t.Errorf("the observer has written: %s %+v", r.Verb, about)
		}
	}
}

// checkNothingWritten reads what the API server, the proxy and Azure say that the observer has asked for.
func (o *observedSeed) checkNothingWritten() {
	t := o.chartSeed.t
	t.Helper()
	o.checkAPI()
	for operation, n := range o.proxy.Counts() {
		if !strings.HasPrefix(operation, "Get") && !strings.HasPrefix(operation, "List") && operation != "HeadBucket" {
			t.Errorf("the observer has asked the store for %d %s", n, operation)
		}
	}
	for _, of := range []string{o.onAzure, azureAccountName(o.onAzure)} {
		for _, r := range azure.Requests(of) {
			if r.Method != "GET" && r.Method != "HEAD" {
				t.Errorf("the observer has asked Azure for %s (%s)", r.Operation, r.Method)
			}
		}
	}
}

// awaitEvent waits for an event on this seed.
func (o *observedSeed) awaitEvent(reason, name string, parts ...string) {
	o.chartSeed.t.Helper()
	eventually(o.chartSeed.t, "there is an event "+reason+" about "+name, func(ctx context.Context) error {
		list, err := o.Client.EventsV1().Events(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Regarding.Name == name && e.Reason == reason && !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(e.Note, part) }) {
				return nil
			}
		}
		return errors.New("there is none")
	})
}

// Beside the owner of the buckets everything is seen, and nothing is written: neither to the API server, as its audit log says,
// nor to a store, as the proxy and Azure say. Its permissions suffice, it uses each of them, and they are to read.
// Then the daemon takes over.
func TestObserver(t *testing.T) {
	t.Parallel()
	o := startObserved(t)
	before := o.versions()
	o.observe()
	d := o.observer
	const bucket, entry = "bucketwarden_backupbucket_", "bucketwarden_backupentry_"
	for _, name := range []string{o.onS3, o.onAzure} {
		d.awaitValue(t, 1, bucket+"locked", "bucket="+name)
		d.awaitValue(t, 4*24*3600, bucket+"retention_seconds", "bucket="+name)
		d.awaitValue(t, 1, bucket+"expected_locked", "bucket="+name)
		d.awaitValue(t, 0, bucket+"foreign_policy", "bucket="+name)
	}
	d.awaitValue(t, 5, bucket+"policy_extensions_remaining", "bucket="+o.onAzure)
	d.awaitValue(t, 1, bucket+"not_served", "bucket="+o.onGCS)
	o.awaitEvent("NotServed", o.onGCS, `"gcp"`)
	d.awaitValue(t, 1, "bucketwarden_info", "role=observer")
	d.awaitValue(t, 1, "bucketwarden_leader")
	for _, name := range []string{o.entry, o.ofAzure} {
		d.wantBackups(t, name, map[string]float64{"chain_complete": 1, "restorable_revision": 100, "snapshots": 1, "unannounced_exclusions": 0})
		eventually(t, "it is known until when the backup of "+name+" is locked", func(ctx context.Context) error {
			until, err := d.Value(ctx, entry+"chain_locked_until_timestamp_seconds", "entry="+name)
			if want := time.Now().AddDate(0, 0, 4); err == nil && (until < float64(want.Add(-time.Hour).Unix()) || until > float64(want.Unix())) {
				err = fmt.Errorf("until %v", until)
			}
			return err
		})
	}
	d.wantBackups(t, o.bare, map[string]float64{"snapshots": 0})
	needed := azureNeeded(t, o.onAzure)

	// At rest it asks for no more than the daemon does: the secret and the policy of each bucket, and on Azure the generated secret.
	passes, requests, written := d.passes(t, "backupbuckets"), d.requests(t), d.requests(t, "POST", "PATCH", "DELETE")
	o.proxy.Reset()
	azure.ResetRequests(o.onAzure)
	d.awaitPassesSince(t, "backupbuckets", passes, 10)
	counts, ofAzure := o.proxy.Counts(), azure.Requests(o.onAzure)
	requests, written = d.requests(t)-requests, d.requests(t, "POST", "PATCH", "DELETE")-written
	leases := d.value(t, "rest_client_requests_total", "method=PUT")
	passes = d.passes(t, "backupbuckets") - passes
	sum := 0.0
	for _, n := range counts {
		sum += float64(n)
	}
	if got := sum + float64(len(ofAzure)); got > passes+2 || counts["GetObjectLockConfiguration"] == 0 || written != 0 {
		t.Errorf("%v looks took %v store requests %v %v, and %v writes", passes, got, counts, operations(ofAzure), written)
	}
	t.Logf("%v looks took %v store requests %v %v, %v API requests; %v of the lease in all", passes, sum+float64(len(ofAzure)), counts, operations(ofAzure), requests, leases)

	// Its owner has to put back what is taken away. A second event of the same kind about the same object is counted in the first.
	for times := range 2 {
		store.putRetention(t, o.onS3, "", 0)
		d.awaitValue(t, float64(times+1), bucket+"policy_drift_total", "bucket="+o.onS3)
		d.awaitValue(t, 0, bucket+"locked", "bucket="+o.onS3)
		d.awaitPasses(t, "backupbuckets", 5)
		store.checkRetention(t, o.onS3, "none")
		store.putRetention(t, o.onS3, types.ObjectLockRetentionModeCompliance, 4)
		d.awaitValue(t, 1, bucket+"locked", "bucket="+o.onS3)
	}
	o.awaitEvent("PolicyNotRestored", o.onS3, "locked retention of 96h", "no immutability", "only observes")
	// On Azure nobody can weaken a lock.
	must(t, azure.SetPolicy(o.onAzure, 6, true))
	d.awaitValue(t, 1, bucket+"foreign_policy", "bucket="+o.onAzure)
	d.awaitValue(t, 4, bucket+"policy_extensions_remaining", "bucket="+o.onAzure)
	o.awaitEvent("ForeignPolicy", o.onAzure, "locked retention of 144h")
	checkActions(t, "the role of an observer on Azure", documentedRoles(t)[5].allowed(), append(needed, azureNeeded(t, o.onAzure)...))

	o.checkPermissions()
	for _, p := range permissions(o.clusterRole.Rules, "") {
		if !slices.Contains([]string{"get", "list", "watch"}, p.verb) && p.resource != "events" {
			t.Errorf("the chart lets an observer %s", p)
		}
	}
	mustEqual(t, "permissions in docs/observer.md", fmt.Sprint(permissions(documentedRulesOf(t, "docs/observer.md")[0], "")),
		fmt.Sprint(permissions(o.clusterRole.Rules, "")))
	o.checkNothingWritten()
	mustEqual(t, "versions of all objects", o.versions(), before)

	o.takeOver()
}

// With --evidence it signs into files, which verify offline, and still writes nothing anywhere else.
func TestObserverEvidence(t *testing.T) {
	t.Parallel()
	o := startObserved(t)
	before := o.versions()
	private, public := newDSSEKey(t).files(t)
	directory := t.TempDir()
	o.observe("--evidence", "--evidence-directory="+directory, "--evidence-key="+private)
	for _, name := range []string{o.onS3, o.onAzure} {
		o.observer.awaitValue(t, 1, "bucketwarden_backupbucket_locked", "bucket="+name)
		eventually(t, "there is evidence of "+name, func(context.Context) error {
			files, err := filepath.Glob(filepath.Join(directory, name, "*.json"))
			if err == nil && len(files) == 0 {
				err = errors.New("there is none")
			}
			return err
		})
	}
	out, _ := runCommand(t, []string{"KUBECONFIG=/nonexistent"}, 0, "evidence", "show", "-f", directory, "--key", public, "-o", "json")
	for _, want := range []string{o.onS3, o.onAzure, `"observer": true`, "verifiedSince", o.entry, o.ofAzure} {
		if !strings.Contains(out, want) {
			t.Errorf("the evidence has no %s:\n%s", want, out)
		}
	}
	o.checkNothingWritten()
	mustEqual(t, "versions of all objects", o.versions(), before)
}

// With --probe the only objects that it writes, and attacks, are canaries of its own, as the log of a proxy says; what the audit log of
// the API server says is as without. What the attacks came to is in metrics and evidence.
func TestObserverProbes(t *testing.T) {
	t.Parallel()
	o := startObserved(t, "probe=true")
	before := o.versions()
	backups, err := store.versions(t.Context(), o.onS3, "shoot--")
	must(t, err)
	log := watchProbe(o.proxy)
	private, public := newDSSEKey(t).files(t)
	directory := t.TempDir()
	o.observe("--probe", "--evidence", "--evidence-directory="+directory, "--evidence-key="+private)
	// The credentials of the bucket and of its entries are the same: one round counts for both.
	for _, credentials := range []string{"bucket", "entry"} {
		o.observer.awaitValue(t, 4, "bucketwarden_backupbucket_probe_attacks", "bucket="+o.onS3, "credentials="+credentials, "outcome="+byLock)
		o.observer.awaitValue(t, 0, "bucketwarden_backupbucket_probe_attacks", "bucket="+o.onS3, "credentials="+credentials, "outcome="+done)
		if at := o.observer.value(t, "bucketwarden_backupbucket_probe_timestamp_seconds", "bucket="+o.onS3, "credentials="+credentials); at == 0 {
			t.Errorf("the lock is not proven with the credentials of the %s", credentials)
		}
	}
	eventually(t, "the evidence tells of the attacks", func(context.Context) error {
		out, _ := runCommand(t, []string{"KUBECONFIG=/nonexistent"}, 0, "evidence", "show", "-f", filepath.Join(directory, o.onS3), "--key", public, "-o",
			"json")
		if n := strings.Count(out, `"refused by the lock"`); n < 8 {
			return fmt.Errorf("it tells of %d", n)
		}
		return nil
	})
	changes := map[string]int{}
	for _, r := range log.take() {
		if strings.HasPrefix(r.Operation, "Get") || strings.HasPrefix(r.Operation, "List") || r.Operation == "HeadBucket" {
			continue
		}
		if changes[r.Operation]++; r.Bucket != o.onS3 || !strings.HasPrefix(r.Key, probePrefix+"canary-") {
			t.Errorf("the observer names something else in a request that changes: %+v", r)
		}
	}
	if want := map[string]int{"PutObject": 1, "DeleteObject": 4, "PutObjectRetention": 3}; !maps.Equal(changes, want) {
		t.Errorf("the requests that change something are %v, want %v", changes, want)
	}
	after, err := store.versions(t.Context(), o.onS3, "")
	must(t, err)
	if len(after) != len(backups)+1 {
		t.Errorf("there are %q, before there were %q", after, backups)
	}
	o.checkAPI()
	mustEqual(t, "versions of all objects", o.versions(), before)
}

// takeOver ends the observer and its owner's work on the buckets, and starts the daemon in their place.
func (o *observedSeed) takeOver() {
	t := o.chartSeed.t
	t.Helper()
	must(t, o.observer.Terminate(t.Context()))
	o.stop()
	d := o.startBeside(o.Kubeconfig)
	for _, name := range []string{o.onS3, o.onAzure} {
		must(t, o.Reconcile(t.Context(), buckets, name, nil))
		o.await(buckets, name, func(b *unstructured.Unstructured) error {
			origin, _, _ := unstructured.NestedString(b.Object, "status", "providerStatus", "origin")
			locked, _, _ := unstructured.NestedBool(b.Object, "status", "providerStatus", "immutability", "locked")
			if origin != "TakenOver" || !locked {
				return fmt.Errorf("the origin is %q, locked %t", origin, locked)
			}
			return env.Healthy(b)
		})
	}
	// What was only seen before is put back from now on.
	store.putRetention(t, o.onS3, "", 0)
	d.awaitValue(t, 1, "bucketwarden_backupbucket_policy_repairs_total", "bucket="+o.onS3)
	store.checkRetention(t, o.onS3, "COMPLIANCE 4")
	for _, name := range []string{o.entry, o.ofAzure} {
		must(t, o.Reconcile(t.Context(), entries, name, nil))
		o.await(entries, name, env.Healthy)
	}
}

// azureNeeded are the actions that the management plane's requests about a bucket need.
func azureNeeded(t *testing.T, bucket string) (needed []string) {
	t.Helper()
	for _, r := range azure.Requests(bucket) {
		action, known := azureActions[r.Operation]
		switch {
		case r.Plane != env.PlaneARM:
		case !known:
			t.Errorf("nobody knows which action %s needs", r.Operation)
		default:
			needed = append(needed, action)
		}
	}
	return needed
}

// s3Policy is a policy that MinIO asks about every action. Before it is enforced all is allowed.
type s3Policy struct {
	*httptest.Server
	allowed  []string
	enforced atomic.Bool

	mu sync.Mutex
	// asked are the actions since it is enforced, denied those that it does not allow.
	asked, denied map[string]bool
}

func newS3Policy(t *testing.T, allowed []string) *s3Policy {
	t.Helper()
	p := &s3Policy{allowed: allowed, asked: map[string]bool{}, denied: map[string]bool{}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

// ServeHTTP answers as MinIO's access management plugin has to
// (minio/minio internal/config/policy/plugin/config.go).
func (p *s3Policy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var question struct {
		Input struct {
			Action   string `json:"action"`
			DenyOnly bool   `json:"denyOnly"`
		} `json:"input"`
	}
	_ = json.NewDecoder(r.Body).Decode(&question) // at its start MinIO sends nothing
	action, allow := question.Input.Action, true
	switch action {
	case "s3:GetObjectTagging":
		action = "s3:GetObjectVersionTagging" // AWS has an action of its own where a version is named
	case "s3:HeadBucket":
		action = "s3:ListBucket" // AWS has no such action
	}
	if p.enforced.Load() && !question.Input.DenyOnly {
		allow = slices.Contains(p.allowed, action)
		p.mu.Lock()
		p.asked[action] = true
		if !allow {
			p.denied[action] = true
		}
		p.mu.Unlock()
	}
	_ = json.NewEncoder(w).Encode(map[string]bool{"result": allow})
}

// The read-only policy in docs/security.md is all that credentials of an observer's own need on AWS, as MinIO enforces it, and has
// nothing more.
func TestObserverCloudPermissions(t *testing.T) {
	t.Parallel()
	policy := newS3Policy(t, documentedRoles(t)[4].allowed())
	own := startMinIO(t, env.MinIOOptions{PolicyURL: policy.URL})
	store := newS3Store("minio", &own.S3Server)
	locked, plain := newName("observed"), newName("observed")
	store.makeBucket(t, plain, false)
	store.makeBucket(t, locked, true)
	entry, _ := newShoot(t)
	free, _ := newShoot(t)
	// Without a retention of its own, since there was none for the bucket yet.
	store.putObject(t, locked, snapshotKey(free, "Full", 0, 100, 20), noRetention)
	store.putRetention(t, locked, types.ObjectLockRetentionModeCompliance, 4)
	store.putObject(t, locked, snapshotKey(entry, "Full", 0, 100, 20), noRetention)
	out := snapshotKey(entry, "Full", 0, 120, 10)
	store.exclude(t, locked, out, store.putObject(t, locked, out, noRetention))
	store.hideObject(t, locked, out)
	policy.enforced.Store(true)

	// The secrets that the objects name are not there: it has credentials of its own.
	reader := newName("reader")
	writeSecret(t, reader, store.secret())
	d := startDaemon(t, "--observe", "--observe-credentials="+gardenNamespace+"/"+reader)
	owned := func(resource schema.GroupVersionResource, o *unstructured.Unstructured) {
		t.Helper()
		createAsIs(t, resource, o)
		_, err := kube.Dynamic.Resource(resource).Patch(t.Context(), o.GetName(), apitypes.MergePatchType, encode(t, map[string]any{"status": map[string]any{
			"observedGeneration": 1, "lastOperation": map[string]any{"type": "Create", "state": "Succeeded", "description": "by its owner", "progress": 100,
				"lastUpdateTime": time.Now().UTC().Format(time.RFC3339)}}}), metav1.PatchOptions{}, "status")
		must(t, err)
	}
	owned(buckets, bucketObject(locked, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	owned(buckets, bucketObject(plain, d.kind, nil))
	d.awaitValue(t, 1, "bucketwarden_backupbucket_locked", "bucket="+locked)
	d.awaitValue(t, 0, "bucketwarden_backupbucket_retention_seconds", "bucket="+plain)
	for _, name := range []string{entry, free} {
		owned(entries, entryObject(name, d.kind, locked))
	}
	d.wantBackups(t, entry, map[string]float64{"chain_complete": 1, "restorable_revision": 100, "excluded_snapshots": 1})
	d.wantBackups(t, free, map[string]float64{"chain_complete": 1, "chain_locked_until_timestamp_seconds": 0})

	policy.mu.Lock()
	defer policy.mu.Unlock()
	if len(policy.denied) > 0 {
		t.Errorf("denied: %v", slices.Sorted(maps.Keys(policy.denied)))
	}
	checkActions(t, "the policy of an observer on AWS", policy.allowed, slices.Collect(maps.Keys(policy.asked)))
}
