package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"bucketwarden/test/env"
)

const codeRateLimits = "ERR_INFRA_RATE_LIMITS_EXCEEDED"

// badAzureBucket is a BackupBucket that cannot be reconciled, and what has to become of it.
type badAzureBucket struct {
	what string
	// spoil changes the BackupBucket that would be fine, secret the data of its secret,
	// and prepare the cloud.
	spoil   func(*unstructured.Unstructured)
	secret  map[string][]byte
	prepare func(t *testing.T, name string)
	code    string
	parts   []string
	// late says that only the first write shows it: each retry begins with Processing.
	late bool
	// groupMayStay says that a resource group without anything in it is no half-made change.
	groupMayStay bool
	// heal removes the cause.
	heal func(t *testing.T, name string)
}

func TestAzureBadInput(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	good := azure.SecretData()
	const nobody = "00000000-0000-4000-8000-000000000000"
	secretFixed := func(t *testing.T, name string) { writeSecret(t, secretName(buckets, name), good) }
	respec := func(change func(*unstructured.Unstructured)) func(*testing.T, string) {
		return func(t *testing.T, name string) { reconcile(t, buckets, name, change) }
	}
	configFixed := respec(func(o *unstructured.Unstructured) {
		set(o, d.azureBucket("x", days(4, true)).Object["spec"].(map[string]any)["providerConfig"], "spec", "providerConfig")
	})

	var cases []badAzureBucket
	badSecret := func(what, code string, replace map[string][]byte, parts ...string) {
		cases = append(cases, badAzureBucket{what: what, secret: with(good, replace), code: code, parts: parts, heal: secretFixed})
	}
	badSecret("wrong tenant", codeUnauthenticated, map[string][]byte{"tenantID": []byte(nobody)}, "check tenantID in the credentials secret")
	badSecret("wrong client", codeUnauthenticated, map[string][]byte{"clientID": []byte(nobody)}, "check clientID in the credentials secret")
	badSecret("wrong client secret", codeUnauthenticated, map[string][]byte{"clientSecret": []byte("not-the-secret")}, "check clientSecret in the credentials secret")
	badSecret("wrong subscription", codeUnauthenticated, map[string][]byte{"subscriptionID": []byte(nobody)}, "check subscriptionID in the credentials secret")
	badSecret("wrong token", codeUnauthenticated, map[string][]byte{"clientSecret": nil, "token": []byte("not-the-token")}, "check token in the credentials secret")
	for _, key := range []string{"tenantID", "clientID", "clientSecret", "subscriptionID"} {
		badSecret("no "+key, codeConfiguration, map[string][]byte{key: nil}, "lacks "+key, gardenNamespace+"/bucket-")
	}
	badSecret("subscription that is a path", codeConfiguration, map[string][]byte{"subscriptionID": []byte("../" + azure.SubscriptionID)}, "subscriptionID", "is not an ID")
	badSecret("secret and token", codeConfiguration, map[string][]byte{"token": []byte(azure.Token)}, "clientSecret and token")
	cases = append(cases, badAzureBucket{what: "no secret", code: "", parts: []string{"does not exist"}, heal: secretFixed})

	badConfig := func(what string, change func(config map[string]any), parts ...string) {
		cases = append(cases, badAzureBucket{what: what, secret: good, code: codeConfiguration, parts: parts, heal: configFixed, spoil: func(o *unstructured.Unstructured) {
			config, _, _ := unstructured.NestedMap(o.Object, "spec", "providerConfig")
			change(config)
			set(o, config, "spec", "providerConfig")
		}})
	}
	badImmutability := func(what string, change map[string]any, parts ...string) {
		badConfig(what, func(config map[string]any) { maps.Copy(config["immutability"].(map[string]any), change) }, parts...)
	}
	badRotation := func(what string, rotation map[string]any, parts ...string) {
		badConfig(what, func(config map[string]any) { config["rotationConfig"] = rotation }, parts...)
	}
	badConfig("unknown cloud", func(config map[string]any) { config["cloudConfiguration"] = map[string]any{"name": "AzureMoon"} }, "cloudConfiguration.name", "AzureMoon", "AzurePublic", azure.CloudName)
	badConfig("empty cloud", func(config map[string]any) { config["cloudConfiguration"] = map[string]any{"name": ""} }, "cloudConfiguration.name is empty")
	badConfig("unknown field", func(config map[string]any) { config["imutability"] = map[string]any{} }, "imutability")
	badConfig("wrong kind", func(config map[string]any) { config["kind"] = "ContainerConfig" }, "spec.providerConfig.kind", "BackupBucketConfig")
	badConfig("wrong apiVersion", func(config map[string]any) { config["apiVersion"] = "azure.provider.extensions.gardener.cloud/v1" }, "spec.providerConfig.apiVersion", d.kind+".provider.extensions.gardener.cloud/v1alpha1")
	badImmutability("unknown field below", map[string]any{"retentionPerod": "96h"}, "retentionPerod")
	badImmutability("a mode", map[string]any{"mode": "compliance"}, "mode")
	badImmutability("not whole days", map[string]any{"retentionPeriod": "25h"}, "retentionPeriod", "25h", "multiple of 24h")
	badImmutability("too short", map[string]any{"retentionPeriod": "1h"}, "retentionPeriod", "at least 24h")
	badImmutability("a day too long", map[string]any{"retentionPeriod": "3504024h"}, "retentionPeriod", "3504000h")
	badImmutability("longer than a duration", map[string]any{"retentionPeriod": "1000000000h"}, "retentionPeriod", "3504000h")
	badImmutability("locked as a text", map[string]any{"locked": "true"}, "locked")
	badImmutability("unknown retention type", map[string]any{"retentionType": "object"}, "retentionType", "object", "bucket")
	badRotation("rotation every day", map[string]any{"rotationPeriodDays": int64(1)}, "rotationConfig.rotationPeriodDays is 1", "at least 2")
	badRotation("rotation without a period", map[string]any{"expirationPeriodDays": int64(7)}, "rotationConfig.rotationPeriodDays is 0", "at least 2")
	badRotation("expiration at the rotation", map[string]any{"rotationPeriodDays": int64(30), "expirationPeriodDays": int64(30)}, "expirationPeriodDays is 30", "above rotationPeriodDays, which is 30")
	badRotation("expiration below the rotation", map[string]any{"rotationPeriodDays": int64(30), "expirationPeriodDays": int64(2)}, "expirationPeriodDays is 2")

	cases = append(cases,
		badAzureBucket{
			what: "region that does not exist", secret: good, late: true, code: codeConfiguration, parts: []string{"region", "atlantis"},
			spoil: func(o *unstructured.Unstructured) { set(o, "atlantis", "spec", "region") },
			heal:  respec(func(o *unstructured.Unstructured) { set(o, azureRegion, "spec", "region") }),
		},
		badAzureBucket{
			what: "account that is somebody else's", secret: good, late: true, code: codeConfiguration, parts: []string{"storage account", "is taken"},
			prepare: func(_ *testing.T, name string) { azure.TakeAccountName(azureAccountName(name)) },
			heal:    func(_ *testing.T, name string) { azure.ReleaseAccountName(azureAccountName(name)) },
		},
		badAzureBucket{
			what: "account in another group", secret: good, late: true, code: codeConfiguration, parts: []string{"storage account", "is taken"},
			prepare: func(t *testing.T, name string) {
				makeGroup(t, azure, "other-"+name, nil)
				makeAccount(t, azure, "other-"+name, azureAccountName(name))
			},
			heal: func(t *testing.T, name string) { deleteGroup(t, azure, "other-"+name) },
		},
	)
	for operation, action := range map[string]string{
		"BlobContainers_Get":            "Microsoft.Storage/storageAccounts/blobServices/containers/read",
		"ResourceGroups_Get":            "Microsoft.Resources/subscriptions/resourceGroups/read",
		"ResourceGroups_CreateOrUpdate": "Microsoft.Resources/subscriptions/resourceGroups/write",
		"StorageAccounts_Create":        "Microsoft.Storage/storageAccounts/write",
	} {
		var clear func()
		cases = append(cases, badAzureBucket{
			what: "role without " + action, secret: good, code: codeUnauthorized, parts: []string{"access denied", action},
			late: operation != "BlobContainers_Get", groupMayStay: operation == "StorageAccounts_Create",
			prepare: func(t *testing.T, name string) {
				clear = azure.Fail(env.AzureFault{Plane: env.PlaneARM, Operation: operation, PathContains: name, Status: http.StatusForbidden})
				t.Cleanup(clear)
			},
			heal: func(*testing.T, string) { clear() },
		})
	}

	names := map[string]string{}
	untouched := func(t *testing.T, c badAzureBucket) {
		t.Helper()
		group, err := azure.Group(names[c.what])
		switch {
		case errors.Is(err, env.ErrAzureNotFound):
		case err != nil:
			t.Error(err)
		case !c.groupMayStay || len(group.Resources) > 0:
			t.Errorf("something was created: %v", group)
		}
		noGeneratedSecret(t, names[c.what])
		if has(get(t, buckets, names[c.what]), "status", "generatedSecretRef") {
			t.Error("the status refers to a generated secret")
		}
	}
	for _, c := range cases {
		name := azureName()
		names[c.what] = name
		if c.secret != nil {
			writeSecret(t, secretName(buckets, name), c.secret)
		}
		o := d.azureBucket(name, days(4, true))
		if c.spoil != nil {
			c.spoil(o)
		}
		if c.prepare != nil {
			c.prepare(t, name)
		}
		create(t, buckets, o)
	}
	failedAll := true
	for _, c := range cases {
		failedAll = t.Run(c.what+" is an error", func(t *testing.T) {
			o := waitFailed(t, buckets, names[c.what], c.code, c.parts...)
			t.Log(str(o, "status", "lastError", "description"))
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
			revisions[c.what] = get(t, buckets, names[c.what]).GetResourceVersion()
		}
		passes, stored := d.passes(t, "backupbuckets"), d.value(t, "bucketwarden_store_request_duration_seconds")
		d.awaitPasses(t, "backupbuckets", float64(2*len(cases)))
		stored, passes = d.value(t, "bucketwarden_store_request_duration_seconds")-stored, d.passes(t, "backupbuckets")-passes
		if stored > 4*passes {
			t.Errorf("%v passes made %v requests to Azure", passes, stored)
		}
		for _, c := range cases {
			untouched(t, c)
			if o := get(t, buckets, names[c.what]); !c.late && o.GetResourceVersion() != revisions[c.what] {
				t.Errorf("%s: the BackupBucket was written again: %v", c.what, o.Object["status"])
			}
		}
	})

	for _, c := range cases {
		c.heal(t, names[c.what])
		// What was fixed in the cloud is found by a retry, which gardenlet may ask for.
		if o := get(t, buckets, names[c.what]); o.GetAnnotations()[annotationOperation] == "" {
			reconcile(t, buckets, names[c.what], nil)
		}
	}
	for _, c := range cases {
		t.Run(c.what+" heals", func(t *testing.T) {
			waitHealthy(t, buckets, names[c.what])
			d.checkPolicy(t, names[c.what], "Locked 4")
		})
	}
}

// A mistake in the spec of a bucket that has a lock changes nothing, and its message is that
// of the mistake.
func TestAzureBadInputLater(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	for _, test := range []struct {
		what  string
		spoil func(*unstructured.Unstructured)
		code  string
		parts []string
	}{
		{"unknown field", func(o *unstructured.Unstructured) { set(o, true, "spec", "providerConfig", "forever") }, codeConfiguration, []string{"forever"}},
		{"unknown field below", func(o *unstructured.Unstructured) {
			set(o, true, "spec", "providerConfig", "immutability", "forever")
		}, codeConfiguration, []string{"forever"}},
		{"bad rotation", rotation(1, 7), codeConfiguration, []string{"rotationPeriodDays"}},
		{"bad period", immutable(map[string]any{"retentionType": "bucket", "retentionPeriod": "4d", "locked": true}), codeConfiguration, []string{"retentionPeriod"}},
		{"unknown cloud", func(o *unstructured.Unstructured) {
			set(o, "AzureMoon", "spec", "providerConfig", "cloudConfiguration", "name")
		}, codeConfiguration, []string{"AzureMoon"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			name := azureName()
			o := d.createAzureBucket(t, name, days(4, false))
			good := o.Object["spec"].(map[string]any)["providerConfig"]
			was := getSecret(t, gardenNamespace, generatedName(name)).Data
			azure.ResetRequests(name)
			reconcile(t, buckets, name, test.spoil)
			waitFailed(t, buckets, name, test.code, test.parts...)
			d.idle(t)
			if got := azureWrites(azure.Requests(name)); len(got) > 0 {
				t.Errorf("the mistake made the writes %v", operations(got))
			}
			d.checkPolicy(t, name, "Unlocked 4")
			if test.what != "unknown cloud" {
				// What was recorded is still defended.
				must(t, azure.RemovePolicy(name))
				d.awaitPolicy(t, name, "Unlocked 4")
			}
			reconcile(t, buckets, name, func(o *unstructured.Unstructured) { set(o, good, "spec", "providerConfig") })
			waitHealthy(t, buckets, name)
			mustEqual(t, "generated secret", getSecret(t, gardenNamespace, generatedName(name)).Data, was)
		})
	}
}

// Missing permissions after the creation, each named.
func TestAzureMissingRoles(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	const containers = "Microsoft.Storage/storageAccounts/blobServices/containers/"
	for operation, test := range map[string]struct {
		action string
		before map[string]any // the policy before; nil means that there is no bucket
		after  string
	}{
		"BlobContainers_Create":                           {containers + "write", nil, "no container"},
		"BlobContainers_CreateOrUpdateImmutabilityPolicy": {containers + "immutabilityPolicies/write", nil, "none"},
		"BlobContainers_LockImmutabilityPolicy":           {containers + "immutabilityPolicies/lock/action", nil, "Unlocked 4"},
		"BlobContainers_ExtendImmutabilityPolicy":         {containers + "immutabilityPolicies/extend/action", days(2, true), "Locked 2"},
		"StorageAccounts_ListKeys":                        {"Microsoft.Storage/storageAccounts/listKeys/action", nil, "Locked 4"},
	} {
		t.Run(operation, func(t *testing.T) {
			t.Parallel()
			name := azureName()
			if test.before != nil {
				d.createAzureBucket(t, name, test.before)
			}
			clear := azure.Fail(env.AzureFault{Plane: env.PlaneARM, Operation: operation, PathContains: name, Status: http.StatusForbidden})
			t.Cleanup(clear)
			if test.before == nil {
				writeSecret(t, secretName(buckets, name), azure.SecretData())
				create(t, buckets, d.azureBucket(name, days(4, true)))
			} else {
				reconcile(t, buckets, name, immutable(days(4, true)))
			}
			waitFailed(t, buckets, name, codeUnauthorized, test.action)
			d.checkPolicy(t, name, test.after)
			clear()
			// Nobody asks for it.
			waitHealthy(t, buckets, name)
			d.checkPolicy(t, name, "Locked 4")
		})
	}
	t.Run("reading the account", func(t *testing.T) {
		t.Parallel()
		name := azureName()
		d.createAzureBucket(t, name, days(2, true))
		clear := azure.Fail(env.AzureFault{Plane: env.PlaneARM, Operation: "StorageAccounts_GetProperties", PathContains: name, Status: http.StatusForbidden})
		t.Cleanup(clear)
		reconcile(t, buckets, name, immutable(days(4, true)))
		o := waitHealthy(t, buckets, name)
		d.checkPolicy(t, name, "Locked 4")
		hardened := conditionOf(o, "BucketHardened")
		if message, _ := hardened["message"].(string); hardened["status"] != "False" || !strings.Contains(message, "Microsoft.Storage/storageAccounts/read") {
			t.Errorf("condition BucketHardened is %v", hardened)
		}
	})
	t.Run("rotating", func(t *testing.T) {
		t.Parallel()
		name := azureName()
		d.createAzureBucket(t, name, nil)
		was := published(t, name)
		clear := azure.Fail(env.AzureFault{Plane: env.PlaneARM, Operation: regenerateKey, PathContains: azureAccountName(name), Status: http.StatusForbidden})
		t.Cleanup(clear)
		rotateRequested(t, name)
		waitFailed(t, buckets, name, codeUnauthorized, "regenerateKey/action")
		mustEqual(t, "published key", published(t, name), was)
		clear()
		awaitRotateRemoved(t, name)
		awaitPublished(t, name, was)
	})
}

// Throttling and outages pass by themselves, and a mere verification does not tell of them.
func TestAzureThrottlingAndOutage(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	for _, test := range []struct {
		what  string
		fault env.AzureFault
	}{
		{"throttled", env.AzureFault{Plane: env.PlaneARM, Status: http.StatusTooManyRequests, RetryAfter: time.Second, Times: 2}},
		{"busy", env.AzureFault{Plane: env.PlaneARM, Status: http.StatusServiceUnavailable, Times: 2}},
		{"dropped", env.AzureFault{Plane: env.PlaneARM, Drop: true, Times: 2}},
		{"lost answers", env.AzureFault{Plane: env.PlaneARM, DropAnswer: true, Times: 3}},
		{"a conflict with another operation", env.AzureFault{Plane: env.PlaneARM, Operation: "BlobContainers_Create", Status: http.StatusConflict, Times: 1}},
		{"lost answer of the account's creation", env.AzureFault{Plane: env.PlaneARM, Operation: "StorageAccounts_Create", DropAnswer: true, Times: 1}},
		{"lost answer of the policy", env.AzureFault{Plane: env.PlaneARM, Operation: "BlobContainers_CreateOrUpdateImmutabilityPolicy", DropAnswer: true, Times: 1}},
		{"lost answer of the lock", env.AzureFault{Plane: env.PlaneARM, Operation: "BlobContainers_LockImmutabilityPolicy", DropAnswer: true, Times: 1}},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			name := azureName()
			fault := test.fault
			fault.PathContains = name
			azure.Fail(fault)
			d.createAzureBucket(t, name, days(4, true))
			d.checkPolicy(t, name, "Locked 4")
			mustEqual(t, "drift", d.value(t, "bucketwarden_backupbucket_policy_drift_total", "bucket="+name), 0.0)
		})
	}
	for _, test := range []struct {
		what, code, part string
		fault            env.AzureFault
	}{
		{"throttled at once", codeRateLimits, "TooManyRequests", env.AzureFault{Status: http.StatusTooManyRequests}},
		{"an outage", codeRetryableDependencies, "ServiceUnavailable", env.AzureFault{Status: http.StatusServiceUnavailable}},
		{"no connection", codeRetryableDependencies, "without an answer", env.AzureFault{Drop: true}},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			// What does not answer is left alone by the whole daemon.
			d := startAzureDaemon(t)
			name := azureName()
			d.createAzureBucket(t, name, days(4, true))
			before := get(t, buckets, name)
			fault := test.fault
			fault.Plane, fault.PathContains = env.PlaneARM, name
			clear := azure.Fail(fault)
			t.Cleanup(clear)
			azure.ResetRequests(name)
			eventually(t, "a verification has failed", func(context.Context) error {
				// The SDK tries four times, if it is not told to wait for too long.
				if n := len(azure.Requests(name)); n < 5 {
					return fmt.Errorf("there were %d requests", n)
				}
				return nil
			})
			mustEqual(t, "status", get(t, buckets, name).Object["status"], before.Object["status"])
			reconcile(t, buckets, name, immutable(days(5, true)))
			if test.code == codeRateLimits {
				waitThrottled(t, buckets, name)
			} else {
				waitFailed(t, buckets, name, test.code, test.part)
			}
			d.checkPolicy(t, name, "Locked 4")
			clear()
			waitHealthy(t, buckets, name)
			d.checkPolicy(t, name, "Locked 5")
		})
	}
	t.Run("told when to come back", func(t *testing.T) {
		t.Parallel()
		d := startAzureDaemon(t)
		name := azureName()
		d.createAzureBucket(t, name, days(4, true))
		clear := azure.Fail(env.AzureFault{Status: http.StatusTooManyRequests, RetryAfter: 10 * time.Minute, Plane: env.PlaneARM, PathContains: name})
		t.Cleanup(clear)
		azure.ResetRequests(name)
		asked := func() int {
			return len(slices.DeleteFunc(azure.Requests(name), func(r env.AzureRequest) bool { return r.Plane != env.PlaneARM }))
		}
		eventually(t, "a verification was told when to come back", func(context.Context) error {
			if asked() == 0 {
				return errors.New("there was no request")
			}
			return nil
		})
		reconcile(t, buckets, name, immutable(days(5, true)))
		waitThrottled(t, buckets, name)
		mustEqual(t, "requests", asked(), 1)
		clear()
		must(t, d.Terminate(t.Context()))
		d.start(t)
		waitHealthy(t, buckets, name)
		d.checkPolicy(t, name, "Locked 5")
	})
	t.Run("Entra is down", func(t *testing.T) {
		t.Parallel()
		// The clock is that of others too, and so are the tokens: this one gets its own.
		a := startAzure(t)
		own := startDaemonOn(t, a)
		name := azureName()
		clear := a.Fail(env.AzureFault{Plane: env.PlaneEntra, Operation: "Token", Status: http.StatusServiceUnavailable})
		writeSecret(t, secretName(buckets, name), a.SecretData())
		create(t, buckets, own.azureBucket(name, days(4, true)))
		waitFailed(t, buckets, name, codeRetryableDependencies, "Microsoft Entra ID")
		clear()
		waitHealthy(t, buckets, name)
	})
}

func TestAzureBadEntries(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket := azureName()
	d.createAzureBucket(t, bucket, nil)
	good := getSecret(t, gardenNamespace, generatedName(bucket)).Data
	for _, test := range []struct {
		what   string
		secret map[string][]byte
		code   string
		parts  []string
	}{
		{"no secret", nil, "", []string{"does not exist"}},
		{"no account", with(good, map[string][]byte{"storageAccount": nil}), codeConfiguration, []string{"lacks storageAccount"}},
		{"no key", with(good, map[string][]byte{"storageKey": nil}), codeConfiguration, []string{"lacks storageKey"}},
		{"a key that is none", with(good, map[string][]byte{"storageKey": []byte("not base64!")}), codeConfiguration, []string{"storageKey", "base64"}},
		{"an account that is none", with(good, map[string][]byte{"storageAccount": []byte("../x")}), codeConfiguration, []string{"storageAccount"}},
		{"a domain that is none", with(good, map[string][]byte{"domain": []byte("x/y")}), codeConfiguration, []string{"domain"}},
		{"the credentials of the bucket", azure.SecretData(), codeConfiguration, []string{"lacks storageAccount, storageKey"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			name, namespace := newShoot(t)
			if test.secret != nil {
				writeSecret(t, secretName(entries, name), test.secret)
			}
			create(t, entries, d.azureEntry(name, bucket))
			waitFailed(t, entries, name, test.code, test.parts...)
			noSecret(t, namespace, "etcd-backup")
			writeSecret(t, secretName(entries, name), good)
			waitHealthy(t, entries, name)
			mustEqual(t, "bucketName", string(getSecret(t, namespace, "etcd-backup").Data["bucketName"]), bucket)
			remove(t, entries, name)
			waitGone(t, entries, name)
		})
	}
}

// Names that no container can have are no bucket of ours.
func TestAzureBadBucketNames(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	for _, name := range []string{"az", "az--" + newName("x"), newName("az.dot"), "az" + strings.Repeat("x", 62)} {
		t.Run(name, func(t *testing.T) {
			writeSecret(t, secretName(buckets, name), azure.SecretData())
			create(t, buckets, d.azureBucket(name, days(4, true)))
			waitFailed(t, buckets, name, codeConfiguration, fmt.Sprintf("%q", name), "not allowed on Azure")
			mustEqual(t, "requests", len(azure.Requests("/"+name+"/")), 0)
			remove(t, buckets, name)
			waitGone(t, buckets, name)
		})
	}
}
