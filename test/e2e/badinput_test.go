package e2e

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apitypes "k8s.io/apimachinery/pkg/types"

	"bucketwarden/test/env"
)

// badBucket is a BackupBucket that cannot be reconciled, and what has to become of it.
type badBucket struct {
	what string
	name string
	// spoil changes the BackupBucket that would be fine.
	spoil func(*unstructured.Unstructured)
	// secret is the data of its secret; nil means that there is none.
	secret map[string][]byte
	// codes are those that are right; several where it depends on the machine.
	codes []string
	parts []string
	// store is where no bucket may appear, minio's unless set.
	store *s3.Client
	// heal removes the cause; nil means that only deletion helps.
	heal func(t *testing.T, name string)
}

func (b badBucket) failed(o *unstructured.Unstructured) error {
	var errs []error
	for _, code := range b.codes {
		err := failed(code, b.parts...)(o)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// with is a copy of the data of a good secret with some keys replaced, or removed where
// the value is nil.
func with(data map[string][]byte, replace map[string][]byte) map[string][]byte {
	data = maps.Clone(data)
	maps.Copy(data, replace)
	maps.DeleteFunc(data, func(_ string, value []byte) bool { return value == nil })
	return data
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	secure, remote := tlsMinIO(t), startMinIO(t, env.MinIOOptions{Region: "eu-north-1"})
	stranger := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(stranger.Close)
	strangerCA := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: stranger.Certificate().Raw})

	good, goodTLS := minio.SecretData(minio.Endpoint), secure.SecretData(secure.Endpoint)
	goodConfig := func() map[string]any { return providerConfig(d.kind, immutability("compliance", "96h")) }
	configure := func(config map[string]any) func(*unstructured.Unstructured) {
		return func(o *unstructured.Unstructured) { set(o, config, "spec", "providerConfig") }
	}
	rewrite := func(data map[string][]byte) func(*testing.T, string) {
		// Nobody asks for a reconcile: it has to come by itself.
		return func(t *testing.T, name string) { writeSecret(t, secretName(buckets, name), data) }
	}
	respec := func(change func(*unstructured.Unstructured)) func(*testing.T, string) {
		return func(t *testing.T, name string) { reconcile(t, buckets, name, change) }
	}

	var cases []badBucket
	badConfig := func(what string, config map[string]any, parts ...string) {
		cases = append(cases, badBucket{
			what: what, name: newName("bad"), spoil: configure(config), secret: good,
			codes: []string{codeConfiguration}, parts: parts, heal: respec(configure(goodConfig())),
		})
	}
	badImmutability := func(what string, change map[string]any, parts ...string) {
		i := immutability("compliance", "96h")
		maps.Copy(i, change)
		badConfig(what, providerConfig(d.kind, i), parts...)
	}
	badConfig("empty config", map[string]any{}, "spec.providerConfig.kind")
	badConfig("wrong apiVersion", map[string]any{"apiVersion": "aws.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketConfig"},
		"spec.providerConfig.apiVersion", d.kind+".provider.extensions.gardener.cloud/v1alpha1")
	badConfig("wrong kind", map[string]any{"apiVersion": d.kind + ".provider.extensions.gardener.cloud/v1alpha1", "kind": "BucketConfig"}, "spec.providerConfig.kind", "BackupBucketConfig")
	badConfig("unknown field", map[string]any{"apiVersion": d.kind + ".provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketConfig", "imutability": map[string]any{}}, "imutability")
	badImmutability("unknown field below", map[string]any{"retentionPerod": "96h"}, "retentionPerod")
	badImmutability("not whole days", map[string]any{"retentionPeriod": "25h"}, "retentionPeriod", "25h", "multiple of 24h")
	badImmutability("too short", map[string]any{"retentionPeriod": "1h"}, "retentionPeriod", "1h", "at least 24h")
	badImmutability("negative", map[string]any{"retentionPeriod": "-24h"}, "retentionPeriod", "-24h", "at least 24h")
	badImmutability("in days", map[string]any{"retentionPeriod": "4d"}, "retentionPeriod", "4d", "96h")
	badImmutability("longer than a lifetime", map[string]any{"retentionPeriod": "1000000000h"}, "retentionPeriod", "1000000000h", "876000h")
	badImmutability("a number", map[string]any{"retentionPeriod": int64(96)}, "retentionPeriod")
	badImmutability("no period", map[string]any{"retentionPeriod": ""}, "retentionPeriod")
	badImmutability("unknown mode", map[string]any{"mode": "strict"}, "mode", "strict", "compliance", "governance")
	badImmutability("unknown retention type", map[string]any{"retentionType": "object"}, "retentionType", "object", "bucket")
	badImmutability("compliance and not locked", map[string]any{"locked": false}, "mode", "compliance", "locked: false")
	badImmutability("governance and locked", map[string]any{"mode": "governance", "locked": true}, "mode", "governance", "locked: true")

	badSecret := func(what string, secret map[string][]byte, heal map[string][]byte, codes []string, parts ...string) {
		cases = append(cases, badBucket{
			what: what, name: newName("bad"), secret: secret, codes: codes, parts: parts, heal: rewrite(heal)})
	}
	configuration, retryable := []string{codeConfiguration}, []string{codeRetryableConfiguration}
	badSecret("no secret", nil, good, []string{""}, "does not exist", gardenNamespace+"/bucket-")
	badSecret("empty secret", map[string][]byte{}, good, configuration, "accessKeyID", "secretAccessKey")
	badSecret("no key ID", with(good, map[string][]byte{"accessKeyID": nil}), good, configuration, "lacks accessKeyID")
	badSecret("no secret key", with(good, map[string][]byte{"secretAccessKey": nil}), good, configuration, "lacks secretAccessKey")
	badSecret("unknown key ID", with(good, map[string][]byte{"accessKeyID": []byte("AKIANOBODYKNOWSTHISK")}), good, []string{codeUnauthenticated}, "InvalidAccessKeyId")
	badSecret("wrong secret key", with(good, map[string][]byte{"secretAccessKey": []byte("not-the-secret-key-that-is-right")}), good, []string{codeUnauthorized}, "SignatureDoesNotMatch")
	badSecret("boolean that is none", with(good, map[string][]byte{"s3ForcePathStyle": []byte("maybe")}), good, configuration, "s3ForcePathStyle")
	badSecret("endpoint that is none", with(good, map[string][]byte{"endpoint": []byte("ftp://files")}), good, configuration, "endpoint")
	badSecret("endpoint that does not resolve", with(good, map[string][]byte{"endpoint": []byte("https://name.invalid")}), good,
		[]string{codeRetryableConfiguration, codeRetryableDependencies}, "name.invalid")
	badSecret("endpoint that refuses connections", with(good, map[string][]byte{"endpoint": []byte("http://127.0.0.1:1")}), good, []string{codeRetryableDependencies}, "127.0.0.1:1")
	badSecret("endpoint without TLS", with(good, map[string][]byte{"endpoint": []byte(strings.Replace(minio.Endpoint, "http:", "https:", 1))}), good, retryable, "does not speak TLS")
	badSecret("CA that does not parse", with(goodTLS, map[string][]byte{"trustedCaCert": []byte("-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")}), goodTLS, configuration, "trustedCaCert")
	badSecret("CA of somebody else", with(goodTLS, map[string][]byte{"trustedCaCert": strangerCA}), goodTLS, retryable, "unknown authority", "trustedCaCert")
	badSecret("CA missing", with(goodTLS, map[string][]byte{"trustedCaCert": nil}), goodTLS, retryable, "unknown authority", "trustedCaCert")
	for i := range cases {
		if strings.HasPrefix(cases[i].what, "CA") {
			cases[i].store = secure.S3(secure.Endpoint)
		}
	}

	for _, name := range []string{"ab", "b" + strings.Repeat("x", 63), "192.0.2.7", "xn--bucket", "bucket-s3alias"} {
		cases = append(cases, badBucket{what: "bucket name " + name, name: name, secret: good, codes: configuration, parts: []string{name, "not allowed"}})
	}
	cases = append(cases,
		badBucket{
			what: "region of another store", name: newName("bad"), secret: with(remote.SecretData(remote.Endpoint), nil), store: remote.S3(remote.Endpoint),
			codes: configuration, parts: []string{"region", minio.Region},
			heal: respec(func(o *unstructured.Unstructured) { set(o, remote.Region, "spec", "region") }),
		},
		badBucket{
			what: "empty region", name: newName("bad"), secret: good, codes: configuration, parts: []string{"spec.region"},
			spoil: func(o *unstructured.Unstructured) { set(o, "", "spec", "region") },
			heal:  respec(func(o *unstructured.Unstructured) { set(o, minio.Region, "spec", "region") }),
		},
		badBucket{
			what: "secretRef without namespace", name: newName("bad"), secret: good, codes: configuration, parts: []string{"spec.secretRef"},
			spoil: func(o *unstructured.Unstructured) {
				unstructured.RemoveNestedField(o.Object, "spec", "secretRef", "namespace")
			},
			heal: respec(func(o *unstructured.Unstructured) { set(o, gardenNamespace, "spec", "secretRef", "namespace") }),
		},
		badBucket{
			what: "secretRef to a namespace that is missing", name: newName("bad"), secret: good, codes: []string{""}, parts: []string{"nowhere/bucket-", "does not exist"},
			spoil: func(o *unstructured.Unstructured) { set(o, "nowhere", "spec", "secretRef", "namespace") },
			heal:  respec(func(o *unstructured.Unstructured) { set(o, gardenNamespace, "spec", "secretRef", "namespace") }),
		},
	)
	untouched := func(t *testing.T, c badBucket) {
		t.Helper()
		client := store.Client
		if c.store != nil {
			client = c.store
		}
		if bucketExists(t, client, c.name) {
			t.Errorf("bucket %s was created", c.name)
		}
	}

	for _, c := range cases {
		if c.secret != nil {
			writeSecret(t, secretName(buckets, c.name), c.secret)
		}
		o := bucketObject(c.name, d.kind, goodConfig())
		if c.spoil != nil {
			c.spoil(o)
		}
		create(t, buckets, o)
	}
	failedAll := true
	for _, c := range cases {
		failedAll = t.Run(c.what+" is an error", func(t *testing.T) {
			waitFor(t, buckets, c.name, c.failed)
			untouched(t, c)
		}) && failedAll
	}
	if !failedAll {
		t.Fatal("nothing else makes sense")
	}

	t.Run("no hot loop", func(t *testing.T) {
		// While everything stays broken, retries cost little and write nothing.
		revisions := map[string]string{}
		for _, c := range cases {
			revisions[c.what] = get(t, buckets, c.name).GetResourceVersion()
		}
		passes, requests, written, stored := d.passes(t, "backupbuckets"), d.requests(t), d.requests(t, writes...), d.value(t, "bucketwarden_store_request_duration_seconds")
		d.awaitPasses(t, "backupbuckets", float64(3*len(cases)))
		written = d.requests(t, writes...) - written
		requests, stored, passes = d.requests(t)-requests, d.value(t, "bucketwarden_store_request_duration_seconds")-stored, d.passes(t, "backupbuckets")-passes
		if written != 0 {
			t.Errorf("%v writes while nothing changed", written)
		}
		if requests > 2*passes || stored > 4*passes {
			t.Errorf("%v passes made %v requests to the API server and %v to stores", passes, requests, stored)
		}
		for _, c := range cases {
			untouched(t, c)
			if o := get(t, buckets, c.name); o.GetResourceVersion() != revisions[c.what] {
				t.Errorf("%s: the BackupBucket was written again: %v", c.what, o.Object["status"])
			}
		}
	})

	for _, c := range cases {
		if c.heal == nil {
			remove(t, buckets, c.name)
		} else {
			c.heal(t, c.name)
		}
	}
	for _, c := range cases {
		t.Run(c.what+" heals", func(t *testing.T) {
			if c.heal == nil {
				waitGone(t, buckets, c.name)
				return
			}
			waitHealthy(t, buckets, c.name)
		})
	}
}

// What answers every request with a page must not pass for a locked bucket.
func TestBucketOnAWebsite(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	website := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html><body>It works!</body></html>") }))
	t.Cleanup(website.Close)
	name := newName("bad")
	writeSecret(t, secretName(buckets, name), with(minio.SecretData(website.URL), nil))
	create(t, buckets, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	waitFor(t, buckets, name, inState("Error"))
	mustEqual(t, "locked", d.value(t, "bucketwarden_backupbucket_locked", "bucket="+name), 0.0)
	writeSecret(t, secretName(buckets, name), minio.SecretData(minio.Endpoint))
	waitHealthy(t, buckets, name)
	store.checkRetention(t, name, "COMPLIANCE 4")
}

// MinIO can enable object lock only when it creates a bucket.
func TestBucketWithoutObjectLockIsLeftAsItIs(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	for _, status := range []types.BucketVersioningStatus{"", types.BucketVersioningStatusEnabled, types.BucketVersioningStatusSuspended} {
		name := newName("plain")
		store.makeBucket(t, name, false)
		if status != "" {
			store.putVersioning(t, name, status)
		}
		store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		waitFailed(t, buckets, name, codeConfiguration, name, "recreated")
		d.awaitPasses(t, "backupbuckets", 2)
		if got, err := store.GetBucketVersioning(t.Context(), &s3.GetBucketVersioningInput{Bucket: &name}); err != nil || got.Status != status {
			t.Errorf("versioning is %q (%v), was %q", got.Status, err, status)
		}
		reconcile(t, buckets, name, setImmutability(nil))
		waitHealthy(t, buckets, name)
	}
}

func TestBadEntries(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	good := minio.SecretData(minio.Endpoint)
	shoot := func() string { return newName("shoot--bad") }
	cases := []struct {
		what, name string
		spoil      func(*unstructured.Unstructured)
		secret     map[string][]byte
		code       string
		parts      []string
		heal       func(t *testing.T, name string)
	}{
		{
			what: "name without two hyphens", name: newName("entry"), secret: good, code: codeConfiguration, parts: []string{"--"},
		},
		{
			what: "no secret", name: shoot() + "--uid", code: "", parts: []string{"does not exist"},
			heal: func(t *testing.T, name string) { writeSecret(t, secretName(entries, name), good) },
		},
		{
			what: "secret lacks a key", name: shoot() + "--uid", secret: with(good, map[string][]byte{"secretAccessKey": nil}), code: codeConfiguration, parts: []string{"secretAccessKey"},
			heal: func(t *testing.T, name string) { writeSecret(t, secretName(entries, name), good) },
		},
		{
			what: "secretRef without namespace", name: shoot() + "--uid", secret: good, code: codeConfiguration, parts: []string{"spec.secretRef"},
			spoil: func(o *unstructured.Unstructured) {
				unstructured.RemoveNestedField(o.Object, "spec", "secretRef", "namespace")
			},
			heal: func(t *testing.T, name string) {
				reconcile(t, entries, name, func(o *unstructured.Unstructured) { set(o, gardenNamespace, "spec", "secretRef", "namespace") })
			},
		},
		{
			what: "no bucket", name: shoot() + "--uid", secret: good, code: codeConfiguration, parts: []string{"spec.bucketName"},
			spoil: func(o *unstructured.Unstructured) { set(o, "", "spec", "bucketName") },
			heal: func(t *testing.T, name string) {
				reconcile(t, entries, name, func(o *unstructured.Unstructured) { set(o, "some-bucket", "spec", "bucketName") })
			},
		},
	}
	for _, c := range cases {
		namespace := strings.TrimSuffix(c.name, "--uid")
		createNamespace(t, namespace, nil)
		if c.secret != nil {
			writeSecret(t, secretName(entries, c.name), c.secret)
		}
		o := entryObject(c.name, d.kind, "some-bucket")
		if c.spoil != nil {
			c.spoil(o)
		}
		create(t, entries, o)
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			waitFailed(t, entries, c.name, c.code, c.parts...)
			namespace := strings.TrimSuffix(c.name, "--uid")
			if _, err := kube.Client.CoreV1().Secrets(namespace).Get(t.Context(), "etcd-backup", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("reading the etcd-backup secret: got %v, want that there is none", err)
			}
			if c.heal == nil {
				remove(t, entries, c.name)
				waitGone(t, entries, c.name)
				return
			}
			c.heal(t, c.name)
			waitHealthy(t, entries, c.name)
			getSecret(t, namespace, "etcd-backup")
		})
	}
}

// patchStatus writes a status as another client could.
func patchStatus(t *testing.T, o *unstructured.Unstructured, status map[string]any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		t.Fatal(err)
	}
	resource := buckets
	if o.GetKind() == "BackupEntry" {
		resource = entries
	}
	if _, err := kube.Dynamic.Resource(resource).Patch(t.Context(), o.GetName(), apitypes.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

// Whatever the CRD allows must neither stop the daemon nor keep an object from healing.
func TestOddShapes(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	nonsense := map[string]any{"state": "Sideways", "type": "Juggle", "description": "", "progress": int64(-7), "lastUpdateTime": "2026-01-02T03:04:05Z"}
	for what, status := range map[string]map[string]any{
		"lastOperation":      {"lastOperation": nonsense},
		"providerStatus":     {"providerStatus": map[string]any{"kind": "BackupBucketStatus", "immutability": "yes"}},
		"foreign status":     {"providerStatus": map[string]any{"kind": "ContainerStatus", "immutability": map[string]any{"retentionPeriod": "never"}}},
		"observedGeneration": {"observedGeneration": int64(-3), "lastError": map[string]any{"description": ""}},
		"condition":          {"conditions": []any{map[string]any{"type": "BucketImmutable", "status": "Perhaps", "reason": "", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z", "lastUpdateTime": "2026-01-02T03:04:05Z"}}},
	} {
		t.Run(what, func(t *testing.T) {
			name := newName("odd")
			store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
			patchStatus(t, waitHealthy(t, buckets, name), status)
			reconcile(t, buckets, name, nil)
			o := waitHealthy(t, buckets, name)
			store.checkRetention(t, name, "COMPLIANCE 4")
			if immutable := conditionOf(o, "BucketImmutable"); immutable["status"] != "True" {
				t.Errorf("condition BucketImmutable is %v", immutable)
			}
			if got := str(o, "status", "providerStatus", "immutability", "retentionPeriod"); got != "96h" {
				t.Errorf("providerStatus records %q", got)
			}
			entry := newName("shoot--odd") + "--uid"
			store.createEntry(t, entryObject(entry, d.kind, name))
			patchStatus(t, waitHealthy(t, entries, entry), status)
			reconcile(t, entries, entry, nil)
			waitHealthy(t, entries, entry)
		})
	}
	t.Run("conditions of others are kept", func(t *testing.T) {
		name := newName("odd")
		store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("governance", "96h"))))
		foreign := map[string]any{"type": "Foreign", "status": "True", "reason": "R", "message": "M", "lastTransitionTime": "2026-01-02T03:04:05Z", "lastUpdateTime": "2026-01-02T03:04:05Z"}
		patchStatus(t, waitHealthy(t, buckets, name), map[string]any{"conditions": []any{foreign}})
		reconcile(t, buckets, name, setImmutability(immutability("compliance", "96h")))
		o := waitHealthy(t, buckets, name)
		if conditionOf(o, "Foreign") == nil || conditionOf(o, "BucketImmutable") == nil {
			t.Errorf("conditions are %v", o.Object["status"])
		}
	})
	t.Run("class that leaves", func(t *testing.T) {
		name := newName("odd")
		store.createBucket(t, bucketObject(name, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		waitHealthy(t, buckets, name)
		update(t, buckets, name, func(o *unstructured.Unstructured) { set(o, "garden", "spec", "class") })
		eventually(t, "the BackupBucket has no metrics any more", func(context.Context) error {
			if got := d.value(t, "bucketwarden_backupbucket_info", "bucket="+name); got != 0 {
				return fmt.Errorf("info is %v", got)
			}
			return nil
		})
	})
	t.Run("deletion of what was never claimed", func(t *testing.T) {
		bucket, entry := newName("odd"), newName("shoot--odd")+"--uid"
		store.makeVersioned(t, bucket)
		store.putObject(t, bucket, entry+"/x", noRetention)
		writeSecret(t, secretName(buckets, bucket), minio.SecretData(minio.Endpoint))
		writeSecret(t, secretName(entries, entry), minio.SecretData(minio.Endpoint))
		objects := map[schema.GroupVersionResource]*unstructured.Unstructured{
			buckets: bucketObject(bucket, d.kind, nil), entries: entryObject(entry, d.kind, "none-"+bucket),
		}
		for resource, o := range objects {
			o.SetFinalizers([]string{"example.com/foreign"})
			annotate(o, annotationOperation, "wait-for-state")
			createAsIs(t, resource, o)
			remove(t, resource, o.GetName())
			before := d.passes(t, resource.Resource)
			operate(t, resource, o.GetName(), "reconcile", nil)
			d.awaitPassesSince(t, resource.Resource, before, 1)
			if o := get(t, resource, o.GetName()); has(o, "status") {
				t.Errorf("the deletion of what is not ours was worked on: %v", o.Object)
			}
			update(t, resource, o.GetName(), func(o *unstructured.Unstructured) { o.SetFinalizers(nil) })
			waitGone(t, resource, o.GetName())
		}
		store.checkVersions(t, bucket, "", entry+"/x")
	})
}
