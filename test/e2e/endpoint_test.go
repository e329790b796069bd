package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"bucketwarden/test/env"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Stores that hang, close or answer one byte a second delay nobody on another one: a new entry gets its secret and becomes
// ready, a weakened bucket is repaired. What lies on them is done once they answer again.
func TestStoresInTrouble(t *testing.T) {
	t.Parallel()
	const before, after = 5, 20
	d := startDaemon(t)
	healthyBucket := newName("bucket")
	store.createBucket(t, bucketObject(healthyBucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
	waitHealthy(t, buckets, healthyBucket)

	type trouble struct {
		proxy      *env.Proxy
		bucket     string
		old, young []string
	}
	newEntryOn := func(on *trouble) (name, namespace string) {
		name, namespace = newShoot(t)
		writeSecret(t, secretName(entries, name), minio.SecretData(on.proxy.URL))
		create(t, entries, entryObject(name, d.kind, on.bucket))
		return name, namespace
	}
	var all []*trouble
	for range 3 {
		on := &trouble{proxy: startProxy(t, minio), bucket: newName("bucket")}
		all = append(all, on)
		writeSecret(t, secretName(buckets, on.bucket), minio.SecretData(on.proxy.URL))
		create(t, buckets, bucketObject(on.bucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		waitHealthy(t, buckets, on.bucket)
		for range before {
			name, _ := newEntryOn(on)
			on.old = append(on.old, name)
		}
		for _, name := range on.old {
			waitHealthy(t, entries, name)
		}
	}
	for i, fault := range []*env.Fault{{Hang: true}, {Close: true}, {Drip: true}} {
		all[i].proxy.SetFault(func(env.Request) *env.Fault { return fault })
	}
	namespaces := map[string]string{}
	for _, on := range all {
		for _, name := range on.old {
			remove(t, entries, name)
		}
		for range after {
			name, namespace := newEntryOn(on)
			on.young, namespaces[name] = append(on.young, name), namespace
		}
	}
	for _, on := range all {
		eventually(t, "the endpoint is known to be down", func(ctx context.Context) error {
			value, err := d.Value(ctx, "bucketwarden_endpoint_breaker_open", "endpoint="+on.proxy.URL[len("http://"):])
			if err == nil && value != 1 {
				err = fmt.Errorf("the metric is %v", value)
			}
			return err
		})
	}
	name, namespace := newShoot(t)
	store.createEntry(t, entryObject(name, d.kind, healthyBucket))
	waitHealthy(t, entries, name)
	getSecret(t, namespace, "etcd-backup")
	store.putRetention(t, healthyBucket, types.ObjectLockRetentionModeGovernance, 1)
	store.awaitRetention(t, healthyBucket, "COMPLIANCE 4")
	for _, on := range all {
		for _, name := range on.young {
			// Their clusters have what they need.
			getSecret(t, namespaces[name], "etcd-backup")
			if o := get(t, entries, name); str(o, "status", "lastOperation", "state") == "Succeeded" {
				t.Errorf("BackupEntry %s is Succeeded though its store has told nothing", name)
			}
		}
		waitFor(t, entries, on.young[0], func(o *unstructured.Unstructured) error {
			if str(o, "status", "lastError", "description") == "" {
				return errors.New("its status does not say what is wrong")
			}
			return nil
		})
	}
	for _, on := range all {
		on.proxy.SetFault(nil)
	}
	for _, on := range all {
		for _, name := range on.young {
			waitHealthy(t, entries, name)
		}
		for _, name := range on.old {
			waitGone(t, entries, name)
		}
		waitHealthy(t, buckets, on.bucket)
	}
}
