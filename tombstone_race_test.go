package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// hookObjects calls afterPut once something was written.
type hookObjects struct {
	Objects
	afterPut func()
}

func (o *hookObjects) Put(ctx context.Context, key string) error {
	err := o.Objects.Put(ctx, key)
	if f := o.afterPut; f != nil && err == nil {
		o.afterPut = nil
		f()
	}
	return err
}

func TestBuryYieldsToALaterRevocation(t *testing.T) {
	h := newHarness(t)
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		c := h.markClient()
		// earlier migration left marks
		until := h.cloud.now().Add(24 * time.Hour)
		if err := testBury(ctx, c, "a", Policy{}, PurgeResult{Retained: 1, RetainedUntil: until}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := revoke(ctx, c, "a", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		o := &hookObjects{Objects: c}
		o.afterPut = func() { // another cluster restores the entry: its revoke completes, Succeeded
			time.Sleep(2 * time.Second)
			if revoked, err := revoke(ctx, c, "a", ""); !revoked || err != nil {
				t.Errorf("revoked: %t, %v", revoked, err)
			}
			time.Sleep(2 * time.Second)
		}
		if err := testBury(ctx, o, "a", Policy{}, PurgeResult{Retained: 1, RetainedUntil: until.Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
		m := h.marks("a")
		if !m[len(m)-1].revoked {
			t.Error("the revocation of a live entry was overridden by the tombstone writer")
		}
	})
}

func TestSweepFailureDoesNotStarveOthers(t *testing.T) {
	h := newHarness(t)
	bucket := h.putSwept(Policy{})
	for _, e := range []string{"a", "b", "c"} {
		h.putTombstone(e, -time.Second)
		bucket.objects[e+"/1"] = memObject{}
	}
	for range 20 {
		first := true
		h.cloud.listed = func() {
			first = strings.HasSuffix(h.trace[len(h.trace)-1], `Purge "a/"`)
			if first { // prefix a always times out
				h.cloud.fail["batch"] = unavailable
			} else {
				delete(h.cloud.fail, "batch")
			}
		}
		h.passSweep()
		delete(h.cloud.fail, "batch")
	}
	if _, ok := bucket.objects["c/1"]; ok {
		t.Error("c is due and free, never even tried in 20 sweeps")
	}
}

func TestSweepLongRetentionOfOneObject(t *testing.T) {
	h := newHarness(t)
	p := Policy{Days: 1, Locked: true}
	bucket := h.putSwept(p)
	for k, o := range bucket.objects {
		if len(k) > len(testEntry) && k[:len(testEntry)+1] == testEntry+"/" {
			o.until = p.until(o.created)
			bucket.objects[k] = o
		}
	}
	bucket.objects[testEntry+"/2"] = memObject{size: 1, created: h.cloud.now(), until: h.cloud.now().AddDate(50, 0, 0)}
	c, _ := h.cloud.client(bucketRef{Name: "b"})
	r, _ := testPurge(t.Context(), c, testEntry+"/", nil)
	if err := testBury(t.Context(), c, testEntry, p, r); err != nil {
		t.Fatal(err)
	}
	for range 400 {
		h.cloud.offset += 24 * time.Hour
		h.passSweep()
	}
	if _, ok := bucket.objects[testEntry+"/1"]; ok {
		t.Error("free since 399 days, 400 sweeps, still there")
	}
}

func TestBuryInTheYear10000(t *testing.T) {
	h := newHarness(t)
	c := h.markClient()
	until := time.Date(9999, 12, 31, 23, 59, 59, 1e6, time.UTC)
	if err := testBury(t.Context(), c, "a", Policy{}, PurgeResult{Retained: 1, RetainedUntil: until}); err != nil {
		t.Fatal(err)
	}
	if len(h.marks("a")) == 0 {
		for k := range h.cloud.buckets["b"].objects {
			t.Error("released, and the tombstone cannot be read:", k)
		}
	}
}

func TestBucketDeleteRetainedForCenturies(t *testing.T) {
	h := newHarness(t)
	p := Policy{Days: azureMaxRetentionDays, Locked: true}
	h.putSwept(p, withFinalizers(finalizerBackupBucket), deleting)
	b := h.cloud.buckets["b"]
	for k, o := range b.objects {
		o.until = p.until(h.cloud.now())
		b.objects[k] = o
	}
	if wait, err := h.passBucket("b"); err != nil || wait != testVerifyInterval || h.deletionDue() < 24*time.Hour {
		t.Errorf("retained for 400 years, looked at again in %s, tried in %s: %v", wait, h.deletionDue(), err)
	}
}

func TestEntryRestoredWithoutATokenDoesNotSucceed(t *testing.T) {
	h := newHarness(t)
	h.putNamespace(testNamespace, false)
	h.cloud.put("b", Policy{})
	h.putTombstone(testEntry, -time.Hour)
	h.putEntry(testEntry, false, withOperation(operationRestore))
	h.editSecret("garden", "entry", func(s *corev1.Secret) {
		w := workloadIdentitySource()
		s.Labels, s.Annotations, s.Data = w.Labels, w.Annotations, w.Data
		delete(s.Data, dataKeyToken)
	})
	if _, err := h.passEntry(testEntry); err == nil {
		t.Error("no error")
	}
	h.wantStatus(entriesGVR, testEntry, operationTypeRestore, stateError)
	if h.secret(testNamespace, "etcd-backup") == nil {
		t.Error("the cluster has no etcd-backup secret")
	}
}

func TestS3PurgeAsksBeforeEachAttempt(t *testing.T) {
	f := newFakeS3(t, false)
	f.objects = nil
	for i := range 3 {
		f.objects = append(f.objects, fakeS3Object{key: fmt.Sprintf("a/%d", i), id: "v"})
	}
	var live atomic.Bool
	var requests, asked atomic.Int32
	f.on["DeleteObjects"] = func(w http.ResponseWriter, r *http.Request, _ string) bool {
		if requests.Add(1) == 1 {
			live.Store(true) // an entry is created (or revokes) during the SDK's backoff
			w.WriteHeader(503)
			_, _ = w.Write([]byte(`<Error><Code>SlowDown</Code><Message>x</Message></Error>`))
			return true
		}
		return false
	}
	r, err := testPurge(t.Context(), f.custom("eu-west-1"), "a/", func(context.Context) error {
		asked.Add(1)
		if live.Load() {
			return &prefixInUseError{entry: "a"}
		}
		return nil
	})
	var inUse *prefixInUseError
	if r.Deleted > 0 || !errors.As(err, &inUse) || asked.Load() != 2 {
		t.Errorf("%+v, %v after %d requests, asked %d times", r, err, requests.Load(), asked.Load())
	}
}

// The sweep of a prefix is tried again when everything that only the bucket retains is free,
// whatever a single object in it says.
func TestSweepIsNotPostponedForever(t *testing.T) {
	h := newHarness(t)
	bucket := h.putSwept(Policy{Days: 1, Locked: true})
	h.putTombstone("x", -time.Second)
	now := h.cloud.now()
	bucket.objects["x/soon"] = memObject{created: now, until: now.Add(36 * time.Hour)}
	bucket.objects["x/late"] = memObject{created: now, until: now.AddDate(50, 0, 0)}
	for range 5 {
		h.passSweep()
		h.cloud.offset += 25 * time.Hour
	}
	if _, soon := bucket.objects["x/soon"]; soon {
		t.Error("free for days, and still there")
	}
	if _, late := bucket.objects["x/late"]; !late {
		t.Error("a retained object is gone")
	}
}

// A BackupEntry that comes while the bucket is being emptied keeps the rest.
func TestBucketDeleteMeetsANewEntry(t *testing.T) {
	for _, lags := range []bool{false, true} {
		h := newHarness(t)
		bucket := h.putDeletingBucket()
		bucket.objects[testEntry+"/1"] = memObject{}
		h.cloud.listed = func() {
			h.cloud.listed = nil
			h.putEntry(testEntry, true)
			if h.frozen = lags; !lags {
				h.sync()
			}
		}
		if _, err := h.passBucket("b"); err == nil {
			t.Errorf("the cache lags %t: no error", lags)
		}
		if _, ok := bucket.objects[testEntry+"/1"]; !ok || h.cloud.buckets["b"] == nil {
			t.Errorf("the cache lags %t: the object or the bucket is gone", lags)
		}
		h.wantStatus(bucketsGVR, "b", operationTypeDelete, stateError)
	}
}

// The SDK repeats a request for minutes; a batch is not sent again unasked.
func TestAzurePurgeAsksBeforeEachAttempt(t *testing.T) {
	f := newFakeAzure(t)
	f.addBlobs(3, "a/", func(int) time.Duration { return 0 })
	asked := 0
	f.script("Batch", answerAzure(http.StatusServiceUnavailable, "ServerBusy"))
	result, err := testPurge(t.Context(), f.entry(Policy{}), "a/", func(context.Context) error {
		if asked++; asked > 1 {
			return &prefixInUseError{entry: "a"}
		}
		return nil
	})
	var inUse *prefixInUseError
	if !errors.As(err, &inUse) || result.Deleted != 0 || asked != 2 {
		t.Errorf("%+v, %v, asked %d times", result, err, asked)
	}
}
