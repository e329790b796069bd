package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"bucketwarden/test/env"
)

const probePrefix = ".bucketwarden/probe/"

// probeLog is what a proxy has seen, with faults for some operations.
type probeLog struct {
	mu       sync.Mutex
	requests []env.Request
	denied   map[string]bool
}

func watchProbe(proxy *env.Proxy) *probeLog {
	log := &probeLog{denied: map[string]bool{}}
	proxy.SetFault(func(r env.Request) *env.Fault {
		log.mu.Lock()
		defer log.mu.Unlock()
		log.requests = append(log.requests, r)
		if log.denied[r.Operation] {
			return &env.Fault{Status: http.StatusForbidden, Code: "AccessDenied"}
		}
		return nil
	})
	return log
}

// deny has requests for these operations denied from now on, and no others.
func (l *probeLog) deny(operations ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.denied)
	for _, operation := range operations {
		l.denied[operation] = true
	}
}

// take returns the requests so far, and forgets them.
func (l *probeLog) take() []env.Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	requests := l.requests
	l.requests = nil
	return requests
}

// operations are those of the requests so far about keys with a prefix. All are forgotten.
func (l *probeLog) operations(prefix string) (operations []string) {
	for _, r := range l.take() {
		if strings.HasPrefix(r.Key+r.Prefix, prefix) {
			operations = append(operations, r.Operation)
		}
	}
	return operations
}

// checkInside checks that no request has named anything but canaries.
func checkInside(t *testing.T, requests []env.Request) {
	t.Helper()
	for _, r := range requests {
		if !strings.HasPrefix(r.Key+r.Prefix, probePrefix) || r.Operation == "DeleteObjects" {
			t.Errorf("the probe names something else: %+v", r)
		}
	}
	if len(requests) < 3 {
		t.Errorf("the proxy has seen only %v", requests)
	}
}

// runProbe runs the command and returns the outcomes by attack.
func runProbe(t *testing.T, environment []string, code int, args ...string) (outcomes map[string]string, errOut string) {
	t.Helper()
	out, errOut := runCommand(t, environment, code, append([]string{"probe", "--yes", "-o", "json"}, args...)...)
	var shown struct {
		Rounds []struct {
			Credentials string
			Proven      bool
			Attacks     []struct{ Name, Outcome, Detail string }
		}
	}
	must(t, json.Unmarshal([]byte(out), &shown))
	outcomes = map[string]string{}
	for _, round := range shown.Rounds {
		for _, a := range round.Attacks {
			outcomes[a.Name] = a.Outcome
		}
	}
	t.Logf("%s%s", out, errOut)
	return outcomes, errOut
}

const byLock, otherwise, done = "refused_by_lock", "refused_otherwise", "succeeded"

// What the probe says of buckets of all kinds, on real stores; nothing but its own objects is named, and all others stay.
func TestProbeOnS3(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		proxy := store.proxy(t)
		log := watchProbe(proxy)
		secret := secretFile(t, store.SecretData(proxy.URL))
		held := map[string]string{"delete": byLock, "shorten": byLock, "shorten-bypass": byLock, "delete-bypass": byLock}
		none := map[string]string{"delete": otherwise, "shorten": otherwise, "shorten-bypass": otherwise, "delete-bypass": otherwise}
		for _, test := range []struct {
			name     string
			make     func(bucket string)
			denied   []string
			code     int
			want     map[string]string
			canaries int // with delete markers
		}{
			{name: "locked", want: held, canaries: 1, make: func(bucket string) {
				store.makeBucket(t, bucket, true)
				store.putRetention(t, bucket, "COMPLIANCE", 1)
			}},
			{name: "governance", code: 2, want: map[string]string{"delete": byLock, "shorten": byLock, "shorten-bypass": done, "delete-bypass": done},
				make: func(bucket string) {
					store.makeBucket(t, bucket, true)
					store.putRetention(t, bucket, "GOVERNANCE", 1)
				}},
			{name: "without retention", code: 2, want: map[string]string{"delete": done}, make: func(bucket string) { store.makeBucket(t, bucket, true) }},
			{name: "without versions", code: 2, want: map[string]string{"delete": done}, make: func(bucket string) { store.makeBucket(t, bucket, false) }},
			{name: "may not delete", code: 2, want: none, denied: []string{"DeleteObject"}, canaries: 1, make: func(bucket string) {
				store.makeBucket(t, bucket, true)
				store.putRetention(t, bucket, "COMPLIANCE", 1)
			}},
			{name: "may not change retention", denied: []string{"PutObjectRetention"}, canaries: 1,
				want: map[string]string{"delete": byLock, "shorten": otherwise, "shorten-bypass": otherwise, "delete-bypass": byLock},
				make: func(bucket string) {
					store.makeBucket(t, bucket, true)
					store.putRetention(t, bucket, "COMPLIANCE", 1)
				}},
			{name: "a policy denies it", code: 2, want: none, canaries: 2, make: func(bucket string) {
				if store.name == "minio" {
					return // its root may do all
				}
				store.makeBucket(t, bucket, true)
				store.putRetention(t, bucket, "COMPLIANCE", 1)
				_, err := store.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &bucket, Policy: aws.String(fmt.Sprintf(
					`{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"s3:DeleteObjectVersion","Resource":"arn:aws:s3:::%s/*"}]}`,
					bucket))})
				must(t, err)
			}},
		} {
			t.Run(test.name, func(t *testing.T) {
				bucket := newName("probe")
				test.make(bucket)
				if !bucketExists(t, store, bucket) {
					t.Skip("not on this store")
				}
				backup := "shoot--a--b/etcd-main/v2/Full-00000000-00000100-1764230400"
				store.putObject(t, bucket, backup, noRetention)
				before, err := store.versions(t.Context(), bucket, "shoot--")
				must(t, err)
				log.take()
				log.deny(test.denied...)
				var counts []int
				for range 2 {
					got, _ := runProbe(t, nil, test.code, "--bucket-secret", secret, "--bucket", bucket)
					mustEqual(t, "outcomes", got, test.want)
					requests := log.take()
					checkInside(t, requests)
					counts = append(counts, len(requests))
				}
				t.Logf("the rounds took %v requests", counts)
				if test.canaries > 0 && counts[1] > 9 {
					t.Errorf("the second round took %d requests, one of them to list", counts[1])
				}
				canaries, err := store.versions(t.Context(), bucket, probePrefix)
				must(t, err)
				if len(canaries) > test.canaries {
					t.Errorf("there are %q, want %d canaries", canaries, test.canaries)
				}
				after, err := store.versions(t.Context(), bucket, "shoot--")
				must(t, err)
				mustEqual(t, "backups", after, before)
			})
		}
	})
}

// On Azure the codes tell a policy from a missing permission.
func TestProbeOnAzure(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket, open := azureName(), azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	d.createAzureBucket(t, open, nil)
	args := func(bucket string) []string {
		secret := getSecret(t, gardenNamespace, generatedName(bucket)).Data
		return []string{"--bucket-secret", secretFile(t, secret), "--bucket", bucket, "--azure-cloud-config", azure.CloudConfig, "--cloud", azure.CloudName}
	}
	must(t, azure.PutBlobs(t.Context(), bucket, "shoot--a--b/etcd-main/v2/Full-00000000-00000100-1764230400"))
	for range 2 {
		azure.ResetRequests(bucket)
		got, _ := runProbe(t, d.env, 0, args(bucket)...)
		mustEqual(t, "outcomes in a locked container", got, map[string]string{"overwrite": byLock, "delete": byLock})
		named := 0
		for _, r := range azure.Requests(bucket) {
			// The daemon lists tombstones meanwhile.
			if r.Plane == env.PlaneBlob && strings.Contains(r.Path, "/"+bucket+"/") {
				named++
				if !strings.Contains(r.Path, "/"+bucket+"/"+probePrefix+"canary-") {
					t.Errorf("the probe names something else: %+v", r)
				}
			}
		}
		if named < 3 {
			t.Errorf("only %d requests were seen", named)
		}
	}
	checkBlobs(t, azure, bucket, "shoot--", "shoot--a--b/etcd-main/v2/Full-00000000-00000100-1764230400")
	// Without the BackupBucket it is not known until when a canary is retained, so that each round makes one.
	if canaries := blobs(t, azure, bucket, probePrefix); len(canaries) != 2 {
		t.Errorf("there are %q", canaries)
	}
	clear := azure.Fail(env.AzureFault{Plane: env.PlaneBlob, Operation: "DeleteBlob", PathContains: bucket, Status: http.StatusForbidden,
		Code: "AuthorizationPermissionMismatch"})
	got, _ := runProbe(t, d.env, 2, args(bucket)...)
	clear()
	mustEqual(t, "outcomes without permission", got, map[string]string{"overwrite": byLock, "delete": otherwise})
	got, _ = runProbe(t, d.env, 2, args(open)...)
	mustEqual(t, "outcomes in an open container", got, map[string]string{"overwrite": done, "delete": done})
	checkBlobs(t, azure, open, probePrefix)
}

// probedSoon is a name whose time of the day comes soon, but not before a bucket of that name can be ready.
func probedSoon(t *testing.T) (name string) {
	t.Helper()
	const day = 24 * time.Hour
	for {
		name = newName("probe")
		h := fnv.New64a()
		_, _ = h.Write([]byte(name))
		now := time.Now()
		if ahead := (time.Duration(h.Sum64()>>1)%day - now.Sub(now.Truncate(day)) + day) % day; ahead > 100*time.Second && ahead < 2*time.Minute {
			return name
		}
	}
}

// The daemon probes a bucket once a day with both credentials, tells it in metrics, status and command, and names nothing else.
func TestDaemonProbes(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, "--probe")
	proxy := startProxy(t, minio)
	log := watchProbe(proxy)
	bucket := probedSoon(t)
	// The sweeper, the verification and the looks at backups go through this proxy as well.
	writeSecret(t, secretName(buckets, bucket), minio.SecretData(proxy.URL))
	create(t, buckets, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("compliance", "24h"))))
	waitHealthy(t, buckets, bucket)
	entry, _ := newShoot(t)
	writeSecret(t, secretName(entries, entry), minio.SecretData(proxy.URL))
	create(t, entries, entryObject(entry, d.kind, bucket))
	waitHealthy(t, entries, entry)
	version := get(t, entries, entry).GetResourceVersion()
	for _, credentials := range []string{"bucket", "entry"} {
		eventually(t, "the bucket is probed with the credentials of the "+credentials, func(ctx context.Context) error {
			at, err := d.Value(ctx, "bucketwarden_backupbucket_probe_timestamp_seconds", "bucket="+bucket, "credentials="+credentials)
			if err == nil && at == 0 {
				err = errors.New("not yet")
			}
			return err
		})
		d.awaitValue(t, 4, "bucketwarden_backupbucket_probe_attacks", "bucket="+bucket, "credentials="+credentials, "outcome="+byLock)
	}
	eventually(t, "the condition LockProven is True", func(context.Context) error {
		if c := conditionOf(get(t, buckets, bucket), "LockProven"); c["status"] != "True" {
			return fmt.Errorf("it is %v", c)
		}
		return nil
	})
	attacks, inside := map[string]int{}, 0
	for _, r := range log.take() {
		if strings.HasPrefix(r.Key+r.Prefix, probePrefix) {
			inside++
		}
		if r.Operation == "DeleteObject" || r.Operation == "PutObjectRetention" {
			attacks[r.Operation]++
			if !strings.HasPrefix(r.Key, probePrefix+"canary-") {
				t.Errorf("%+v", r)
			}
		}
	}
	if want := map[string]int{"DeleteObject": 4, "PutObjectRetention": 3}; !maps.Equal(attacks, want) || inside != 10 {
		t.Errorf("%d requests, with %v, want %v", inside, attacks, want)
	}
	mustEqual(t, "version of the BackupEntry", get(t, entries, entry).GetResourceVersion(), version)
	out, _ := runCommand(t, d.env, 2, "status", bucket, "-o", "wide", "--kubeconfig", kube.Kubeconfig, "--type", d.kind+"=s3") // there is no snapshot
	if !strings.Contains(out, "PROVEN") || !slices.Contains(strings.Fields(out), "True") {
		t.Error(out)
	}
}

// The additions to the observer's policy in docs/security.md are all that the probe needs on AWS, as MinIO enforces them, and it uses
// each of them. That it may not bypass governance is part of the attack.
func TestProbePermissions(t *testing.T) {
	t.Parallel()
	policy := newS3Policy(t, documentedRoles(t)[6].allowed())
	own := startMinIO(t, env.MinIOOptions{PolicyURL: policy.URL})
	store := newS3Store("minio", &own.S3Server)
	bucket := newName("probe")
	store.makeBucket(t, bucket, true)
	store.putRetention(t, bucket, "COMPLIANCE", 1)
	policy.enforced.Store(true)
	got, _ := runProbe(t, nil, 0, "--bucket-secret", secretFile(t, store.secret()), "--bucket", bucket)
	mustEqual(t, "outcomes", got, map[string]string{"delete": byLock, "shorten": byLock, "shorten-bypass": byLock, "delete-bypass": byLock})
	policy.mu.Lock()
	defer policy.mu.Unlock()
	// With each PutObject MinIO asks whether there might be a legal hold, with each bypass whether it is permitted.
	for _, unneeded := range []string{"s3:PutObjectLegalHold", "s3:BypassGovernanceRetention"} {
		delete(policy.asked, unneeded)
		delete(policy.denied, unneeded)
	}
	if len(policy.denied) > 0 {
		t.Errorf("denied: %q", slices.Collect(maps.Keys(policy.denied)))
	}
	// MinIO asks for one action where AWS has another one if a version is named.
	policy.asked["s3:DeleteObjectVersion"] = policy.asked["s3:DeleteObject"]
	checkActions(t, "the policy of a probe on AWS", policy.allowed, slices.Collect(maps.Keys(policy.asked)))
}
