package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

var (
	gardenBucketsGVR = gardenGV.WithResource(resourceBackupBuckets)
	gardenSeedsGVR   = gardenGV.WithResource(resourceSeeds)
	locked400d       = Policy{Days: 400, Locked: true}
	unlocked400d     = Policy{Days: 400}
	unlocked10d      = Policy{Days: 10}
)

// newTestWebhook serves types on both stores and two classes.
func newTestWebhook(entries dynamic.ResourceInterface) *webhook {
	return &webhook{
		scope:   &scope{providers: testProviders("aws", "s3", "azure"), classes: []string{"shoot", "garden"}},
		buckets: liveBucket{uid: testObject(kindBackupBucket, "b", "secret").GetUID()},
		entries: entries,
		metrics: newMetrics(),
		lookups: make(chan struct{}, 1),
	}
}

// held is how many bytes requests have taken.
func held(w *webhook) int64 { return w.small.used.Load() + w.large.used.Load() }

// liveBucket is a client that has one BackupBucket, whatever its name, or an error.
type liveBucket struct {
	dynamic.ResourceInterface
	uid types.UID
	err error
}

func (b liveBucket) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	u.SetName(name)
	u.SetUID(b.uid)
	return u, b.err
}

// listStub is a client that can do nothing but list.
type listStub struct {
	dynamic.ResourceInterface
	list func(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error)
}

func (s listStub) List(ctx context.Context, options metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	return s.list(ctx, options)
}

var noEntries = listStub{list: func(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	return &unstructured.UnstructuredList{}, nil
}}

// guardedShape says where a resource has what is judged.
type guardedShape struct {
	gvr                             schema.GroupVersionResource
	kind                            string
	provider, region, config, class []string
	// recorded says that it has a status.providerStatus.
	recorded bool
}

func (s guardedShape) resource() string { return s.gvr.GroupResource().String() }

var guardedShapes = []guardedShape{
	{gvr: bucketsGVR, kind: "BackupBucket", provider: []string{"spec", "type"}, region: []string{"spec", "region"},
		config: []string{"spec", "providerConfig"}, class: []string{"spec", "class"}, recorded: true},
	{gvr: gardenBucketsGVR, kind: "BackupBucket", provider: []string{"spec", "provider", "type"}, region: []string{"spec", "provider", "region"},
		config: []string{"spec", "providerConfig"}, recorded: true},
	{gvr: gardenSeedsGVR, kind: "Seed", provider: []string{"spec", "backup", "provider"}, region: []string{"spec", "backup", "region"},
		config: []string{"spec", "backup", "providerConfig"}},
}

// object is one of this shape in region eu-1; a config of nil is left out.
func (s guardedShape) object(provider string, config any, edits ...editObject) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(s.gvr.GroupVersion().WithKind(s.kind))
	u.SetName("b")
	set(provider, s.provider...)(u)
	set("eu-1", s.region...)(u)
	if config != nil {
		set(config, s.config...)(u)
	}
	for _, edit := range edits {
		edit(u)
	}
	return u
}

// guardedConfig is a providerConfig of a type that asks for p.
func guardedConfig(provider string, p Policy) map[string]any {
	config := testConfig(p)
	config["apiVersion"] = provider + providerGroupSuffix + "/v1alpha1"
	return config
}

func reviewRequest(gvr schema.GroupVersionResource, operation admissionv1.Operation, old, new any) *admissionv1.AdmissionRequest {
	raw := func(object any) runtime.RawExtension {
		switch o := object.(type) {
		case *unstructured.Unstructured:
			if o == nil {
				return runtime.RawExtension{}
			}
			data, err := json.Marshal(o.Object)
			if err != nil {
				panic(err)
			}
			return runtime.RawExtension{Raw: data}
		case string:
			return runtime.RawExtension{Raw: []byte(o)}
		default:
			return runtime.RawExtension{}
		}
	}
	return &admissionv1.AdmissionRequest{UID: "uid-1", Resource: metav1.GroupVersionResource(gvr), Name: "b", Operation: operation, OldObject: raw(old), Object: raw(new)}
}

func reviewBody(t testing.TB, request *admissionv1.AdmissionRequest) []byte {
	t.Helper()
	data, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: request})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func postedReview(body []byte) *http.Request {
	r := httptest.NewRequest(http.MethodPost, webhookPath+"?timeout=10s", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return r.WithContext(klog.NewContext(r.Context(), logr.Discard()))
}

// reviewed sends a request through the handler and checks what holds for every answer.
func reviewed(t testing.TB, w *webhook, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	t.Helper()
	recorder := httptest.NewRecorder()
	w.ServeHTTP(recorder, postedReview(reviewBody(t, request)))
	if recorder.Code != http.StatusOK {
		t.Fatalf("status %d: %s", recorder.Code, recorder.Body)
	}
	return checkedAnswer(t, recorder, request.UID)
}

func checkedAnswer(t testing.TB, recorder *httptest.ResponseRecorder, uid types.UID) *admissionv1.AdmissionResponse {
	t.Helper()
	if got := recorder.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type is %q", got)
	}
	var answer admissionv1.AdmissionReview
	decoder := json.NewDecoder(recorder.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&answer); err != nil {
		t.Fatalf("the answer is no AdmissionReview: %v", err)
	}
	response := answer.Response
	if answer.APIVersion != "admission.k8s.io/v1" || answer.Kind != "AdmissionReview" || answer.Request != nil || response == nil || response.UID != uid || response.Patch != nil {
		t.Fatalf("the answer is %+v", answer)
	}
	for _, warning := range response.Warnings {
		// What is no header is dropped, and what is too long may be cut.
		if _, err := utilnet.NewWarningHeader(299, "", warning); err != nil || len(warning) > 256 || warning == "" {
			t.Errorf("an API server does not send the warning %q (%d bytes): %v", warning, len(warning), err)
		}
	}
	if status := response.Result; response.Allowed {
		if status != nil {
			t.Errorf("allowed with %+v", status)
		}
	} else if status.Status != metav1.StatusFailure || status.Code < 400 || status.Reason == "" || status.Message == "" || len(status.Message) > maxDescription || !utf8.ValidString(status.Message) ||
		strings.ContainsFunc(status.Message, unicode.IsControl) {
		t.Errorf("denied with %+v", status)
	}
	return response
}

// counted is the reason of the one denial of a resource, and the reasons of all warnings.
func counted(t *testing.T, w *webhook, resource string) (denial string, warnings []string) {
	t.Helper()
	for series, n := range metricsTestOf(t, w.metrics, "resource", resource) {
		name, labels, _ := strings.Cut(series, ",")
		_, reason, _ := strings.Cut(labels, "reason=")
		reason, _, _ = strings.Cut(reason, ",")
		switch {
		case n == 0:
		case name == "admission_denials_total":
			if n != 1 || denial != "" {
				t.Errorf("%s is %v", series, n)
			}
			denial = reason
		case name == "admission_warnings_total":
			if n != 1 {
				t.Errorf("%s is %v", series, n)
			}
			warnings = append(warnings, reason)
		}
	}
	slices.Sort(warnings)
	return denial, warnings
}

// guardedCase is one request; denial is the reason, empty if it is allowed.
type guardedCase struct {
	name               string
	old, recorded, new Policy
	denial             string
	s3, azure          []string
}

var guardedUpdates = []guardedCase{
	{name: "disable", old: locked4d, denial: "disable"},
	{name: "unlock", old: locked4d, new: unlocked4d, denial: "unlock"},
	{name: "unlock and extend", old: locked4d, new: unlocked10d, denial: "unlock"},
	{name: "unlock and shorten", old: locked4d, new: unlocked1d, denial: "unlock"},
	{name: "shorten", old: locked10d, new: locked4d, denial: "shorten"},
	{name: "longer", old: locked4d, new: locked10d, azure: []string{"extend"}},
	{name: "much longer", old: locked4d, new: locked400d, s3: []string{"long"}, azure: []string{"extend", "long"}},
	{name: "first lock", new: locked4d, s3: []string{"lock"}, azure: []string{"lock"}},
	{name: "first lock of what is unlocked", old: unlocked4d, new: locked4d, s3: []string{"lock"}, azure: []string{"lock"}},
	{name: "first lock shortens what is unlocked", old: unlocked10d, new: locked4d, s3: []string{"lock"}, azure: []string{"lock"}},
	{name: "first lock, short", new: locked1d, s3: []string{"lock", "short"}, azure: []string{"lock", "short"}},
	{name: "first lock, long", new: locked400d, s3: []string{"lock", "long"}, azure: []string{"lock", "long"}},
	{name: "governance", new: unlocked4d, s3: []string{"governance"}},
	{name: "governance, short", new: unlocked1d, s3: []string{"governance"}},
	{name: "governance, long", new: unlocked400d, s3: []string{"governance", "long"}, azure: []string{"long"}},
	{name: "unlocked is shortened", old: unlocked10d, new: unlocked4d, s3: []string{"governance"}},
	{name: "unlocked is removed", old: unlocked10d},

	{name: "recorded only, disable", recorded: locked4d, denial: "disable"},
	{name: "recorded only, unlock", recorded: locked4d, new: unlocked4d, denial: "unlock"},
	{name: "recorded only, shorten", recorded: locked10d, new: locked4d, denial: "shorten"},
	{name: "recorded only, asked for again", recorded: locked4d, new: locked4d},
	{name: "recorded only, longer", recorded: locked4d, new: locked10d, azure: []string{"extend"}},
	{name: "recorded is locked, the old spec is not", old: unlocked10d, recorded: locked4d, new: unlocked4d, denial: "unlock"},
	{name: "recorded is longer, below both", old: locked4d, recorded: locked10d, new: locked1d, denial: "shorten"},
	{name: "recorded is longer, between both", old: locked1d, recorded: locked10d, new: locked4d, denial: "shorten"},
	{name: "the old spec is longer, between both", old: locked10d, recorded: locked1d, new: locked4d, denial: "shorten"},
	{name: "the old spec is longer, above both", old: locked4d, recorded: locked1d, new: locked10d, azure: []string{"extend"}},
	{name: "recorded unlocked is no floor", recorded: unlocked10d, new: unlocked4d, s3: []string{"governance"}},
}

func TestWebhookPolicy(t *testing.T) {
	for _, shape := range guardedShapes {
		for provider, kind := range map[string]string{"aws": storeS3, "azure": storeAzure} {
			for _, test := range guardedUpdates {
				if !test.recorded.None() && !shape.recorded {
					continue
				}
				want := test.s3
				if kind == storeAzure {
					want = test.azure
				}
				old, new := shape.object(provider, guardedConfig(provider, test.old), withRecord(test.recorded)), shape.object(provider, guardedConfig(provider, test.new))
				// Without a policy there are several ways to write that; all differ from old.
				variants := map[string]*unstructured.Unstructured{"": new}
				if test.new.None() {
					variants[", no providerConfig"] = shape.object(provider, nil)
					variants[", null"] = shape.object(provider, nil, set(nil, shape.config...))
				}
				if reflect.DeepEqual(old.Object["spec"], new.Object["spec"]) {
					// Only a difference makes it our business.
					delete(variants, "")
				}
				for variant, new := range variants {
					t.Run(fmt.Sprintf("%s %s %s%s", shape.resource(), provider, test.name, variant), func(t *testing.T) {
						w := newTestWebhook(noEntries)
						response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, old, new))
						denial, warnings := counted(t, w, shape.resource())
						if denial != test.denial || response.Allowed != (denial == "") || !slices.Equal(warnings, want) || len(response.Warnings) != len(want) {
							t.Fatalf("denied for %q with warnings for %q (%q); want %q, %q", denial, warnings, response.Warnings, test.denial, want)
						}
						path := strings.Join(shape.config, ".") + ".immutability"
						for _, warning := range response.Warnings {
							if !strings.HasPrefix(warning, path+".") {
								t.Errorf("the warning %q does not name its field", warning)
							}
						}
						if denial == "" {
							return
						}
						floor := lockedFloor(test.old, test.recorded)
						want := fmt.Sprintf("%s: the bucket has a locked retention of %dh, %s asks for %s: ", path, floor.Days*24, strings.Join(shape.config, "."), test.new)
						if status := response.Result; status.Code != http.StatusForbidden || status.Reason != metav1.StatusReasonForbidden || !strings.HasPrefix(status.Message, want) ||
							!strings.HasSuffix(status.Message, fmt.Sprintf("with retentionPeriod: %dh or longer", floor.Days*24)) {
							t.Errorf("got  %d %s\nwant 403 %s...", status.Code, status.Message, want)
						}
						if want := 1.0; queueTestSeries(t, w.metrics, "bucketwarden_admission_reviews_total", "operation", "UPDATE", "outcome", "denied", "resource", shape.resource()) != want {
							t.Error("the denial is not counted")
						}
					})
				}
				if test.denial != "" || !test.old.None() || !test.recorded.None() {
					continue
				}
				t.Run(fmt.Sprintf("%s %s %s, created", shape.resource(), provider, test.name), func(t *testing.T) {
					w := newTestWebhook(noEntries)
					response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Create, nil, new))
					if denial, warnings := counted(t, w, shape.resource()); !response.Allowed || denial != "" || !slices.Equal(warnings, want) {
						t.Errorf("denied for %q with warnings for %q; want %q", denial, warnings, want)
					}
				})
			}
		}
	}
}

// The same policy in other words is no change of it.
// What comes ahead of the ValidatingAdmissionPolicy is denied only where that would deny it too, and then it counts as any
// denial. All else comes again, and is neither judged nor counted twice.
func TestWebhookWeakenings(t *testing.T) {
	locked, shorter := guardedConfig("aws", Policy{Days: 4, Locked: true}), guardedConfig("aws", Policy{Days: 1, Locked: true})
	longer := guardedConfig("aws", Policy{Days: 400, Locked: true})
	shape := guardedShapes[0]
	if shape.gvr != bucketsGVR {
		t.Fatalf("%v", shape.gvr)
	}
	for _, test := range []struct {
		name     string
		request  *admissionv1.AdmissionRequest
		denied   bool
		reviews  float64
		contains string
	}{
		{name: "weakening", request: reviewRequest(bucketsGVR, admissionv1.Update, shape.object("aws", locked), shape.object("aws", shorter)), denied: true, reviews: 1,
			contains: "a locked policy cannot be shortened"},
		{name: "unlocked", request: reviewRequest(bucketsGVR, admissionv1.Update, shape.object("aws", locked), shape.object("aws", guardedConfig("aws", Policy{Days: 4}))), denied: true, reviews: 1,
			contains: "a locked policy cannot be unlocked"},
		{name: "disabled", request: reviewRequest(bucketsGVR, admissionv1.Update, shape.object("aws", locked), shape.object("aws", nil)), denied: true, reviews: 1,
			contains: "a locked policy cannot be disabled"},
		{name: "left to others", request: reviewRequest(bucketsGVR, admissionv1.Update, shape.object("aws", locked), shape.object("gcp", locked)), denied: true, reviews: 1,
			contains: "must not be left to somebody else"},
		{name: "invalid", request: reviewRequest(bucketsGVR, admissionv1.Update, shape.object("aws", nil), shape.object("aws", map[string]any{"kind": "None"}))},
		{name: "with a warning", request: reviewRequest(bucketsGVR, admissionv1.Update, shape.object("aws", locked), shape.object("aws", longer))},
		{name: "not what it is made for", request: reviewRequest(bucketsGVR, admissionv1.Connect, nil, shape.object("aws", nil)), denied: true, reviews: 1, contains: "cannot judge"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newTestWebhook(nil)
			logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
			r := postedReview(reviewBody(t, test.request))
			r.URL.Path = weakeningPath
			recorder := httptest.NewRecorder()
			w.ServeHTTP(recorder, r.WithContext(klog.NewContext(r.Context(), logger)))
			response := checkedAnswer(t, recorder, test.request.UID)
			if response.Allowed == test.denied || len(response.Warnings) > 0 {
				t.Errorf("got %+v", response)
			}
			if test.denied && !strings.Contains(response.Result.Message, test.contains) {
				t.Errorf("got %+v", response.Result)
			}
			if log := logger.GetSink().(ktesting.Underlier).GetBuffer().String(); strings.Contains(log, "Denied") != test.denied {
				t.Errorf("log: %s", log)
			}
			var reviews float64
			for _, outcome := range []string{outcomeAllowed, outcomeDenied, outcomeRefused} {
				for series, n := range metricsTestOf(t, w.metrics, "outcome", outcome) {
					if strings.HasPrefix(series, "admission_reviews_total") {
						reviews += n
					}
				}
			}
			if reviews != test.reviews {
				t.Errorf("%v reviews were counted, want %v", reviews, test.reviews)
			}
		})
	}
}

func TestWebhookEqualPolicies(t *testing.T) {
	words := map[string][]string{
		"aws": {`"retentionPeriod": "96h", "locked": true`, `"retentionPeriod": "5760m", "locked": true`, `"retentionPeriod": "96h0m0s", "mode": "compliance"`,
			`"retentionPeriod": "345600s", "mode": "compliance", "locked": true`},
		"azure": {`"retentionPeriod": "96h", "locked": true`, `"retentionPeriod": "5760m", "locked": true`, `"retentionPeriod": "345600s", "locked": true`},
	}
	for _, shape := range guardedShapes {
		for provider, forms := range words {
			object := func(form string) *unstructured.Unstructured {
				var immutability map[string]any
				if err := json.Unmarshal([]byte(`{"retentionType": "bucket", `+form+"}"), &immutability); err != nil {
					t.Fatal(err)
				}
				config := guardedConfig(provider, Policy{})
				config["immutability"] = immutability
				return shape.object(provider, config)
			}
			for _, old := range forms {
				for _, new := range forms {
					response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, object(old), object(new)))
					if !response.Allowed || len(response.Warnings) > 0 {
						t.Errorf("%s: from %s to %s: %+v", shape.resource(), old, new, response)
					}
				}
				for _, weaker := range []string{`"retentionPeriod": "72h", "locked": true`, `"retentionPeriod": "4320m", "locked": true`, `"retentionPeriod": "96h", "locked": false`, `"retentionPeriod": "96h"`} {
					if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, object(old), object(weaker))); response.Allowed {
						t.Errorf("%s: from %s to %s is allowed", shape.resource(), old, weaker)
					}
				}
			}
		}
	}
}

// Whoever denies what the reconciler would do, or allows what it would refuse, is wrong.
func TestWebhookAgreesWithReconciler(t *testing.T) {
	random := mathrand.New(mathrand.NewPCG(1, 2))
	policy := func() Policy {
		days := random.Int32N(6)
		return Policy{Days: days, Locked: days > 0 && random.IntN(2) == 0}
	}
	w, shape, denials := newTestWebhook(noEntries), guardedShapes[0], map[string]int{}
	for range 3000 {
		old, recorded, new := policy(), policy(), policy()
		provider := []string{"aws", "azure"}[random.IntN(2)]
		floor := lockedFloor(old, recorded)
		want := ""
		if refusal := planPolicy(new, floor, floor, false).Refusal; refusal != nil {
			want = refusal.Reason
		}
		// What a stranger made stronger changes nothing: the webhook does not know it, and the reconciler refuses nothing for it.
		foreign := Policy{Days: 6 + random.Int32N(6), Locked: true}
		if refusal := planPolicy(new, foreign, floor, false).Refusal; (refusal != nil) != (want != "") {
			t.Fatalf("from %s, recorded %s, to %s under a %s of a stranger: the reconciler refuses %v", old, recorded, new, foreign, refusal)
		}
		if old == new {
			// Not our business, see TestWebhookLeavesAlone.
			continue
		}
		v, understood := w.judge(t.Context(), reviewRequest(shape.gvr, admissionv1.Update, shape.object(provider, guardedConfig(provider, old), withRecord(recorded)), shape.object(provider, guardedConfig(provider, new))))
		if !understood || v.reason != want || (v.code != 0) != (want != "") {
			t.Fatalf("%s: from %s, recorded %s, to %s: the webhook says %d %q, the reconciler %q", provider, old, recorded, new, v.code, v.reason, want)
		}
		denials[v.reason]++
	}
	for _, reason := range []string{"", reasonDisable, reasonUnlock, reasonShorten} {
		if denials[reason] < 100 {
			t.Errorf("only %d with reason %q", denials[reason], reason)
		}
	}
}

// What is locked must not be handed to somebody else, or to nobody.
func TestWebhookLeavingOurCare(t *testing.T) {
	for _, shape := range guardedShapes {
		changes := map[string]editObject{
			"type that is not served":    set("gcp", shape.provider...),
			"type in other letters":      set("AWS", shape.provider...),
			"empty type":                 set("", shape.provider...),
			"no type":                    func(u *unstructured.Unstructured) { unstructured.RemoveNestedField(u.Object, shape.provider...) },
			"another type of this store": set("s3", shape.provider...),
			"type of another store":      set("azure", shape.provider...),
			"type is a number":           set(int64(5), shape.provider...),
			"spec is null":               set(nil, "spec"),
			"no spec":                    func(u *unstructured.Unstructured) { delete(u.Object, "spec") },
			"spec is a number":           set(int64(5), "spec"),
			"spec is a list":             set([]any{}, "spec"),
			"spec is a string":           set("x", "spec"),
			"Spec":                       func(u *unstructured.Unstructured) { u.Object["Spec"] = u.Object["spec"]; delete(u.Object, "spec") },
			"SPEC": func(u *unstructured.Unstructured) {
				u.Object["SPEC"] = u.Object["spec"]
				delete(u.Object, "spec")
			},
		}
		if shape.class != nil {
			changes["class that is not served"] = set("other", shape.class...)
			changes["class in other letters"] = set("Shoot", shape.class...)
		}
		if shape.kind == "Seed" {
			changes["no backup"] = func(u *unstructured.Unstructured) { unstructured.RemoveNestedField(u.Object, "spec", "backup") }
			changes["backup is null"] = set(nil, "spec", "backup")
			changes["backup is a list"] = set([]any{"x"}, "spec", "backup")
		}
		for name, change := range changes {
			t.Run(shape.resource()+" "+name, func(t *testing.T) {
				floors := map[string]*unstructured.Unstructured{"the spec": shape.object("aws", guardedConfig("aws", locked4d))}
				if shape.recorded {
					floors["the status"] = shape.object("aws", guardedConfig("aws", Policy{}), withRecord(locked4d))
				}
				for where, old := range floors {
					w := newTestWebhook(noEntries)
					new := old.DeepCopy()
					change(new)
					response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, old, new))
					if denial, _ := counted(t, w, shape.resource()); response.Allowed || denial != "disable" || response.Result.Code != http.StatusForbidden {
						t.Fatalf("locked in %s: %+v, counted %q", where, response, denial)
					}
					path := strings.Join(shape.provider, ".")
					if strings.HasPrefix(name, "class") {
						path = "spec.class"
					}
					if !strings.HasPrefix(response.Result.Message, path+": the bucket has a locked retention of 96h, ") {
						t.Errorf("locked in %s: %s", where, response.Result.Message)
					}
				}
				old := shape.object("aws", guardedConfig("aws", unlocked4d))
				new := old.DeepCopy()
				change(new)
				if _, served := newTestWebhook(noEntries).providers[guardedType(shape, new)]; served {
					// It is ours still, so its config must fit.
					set(guardedConfig(guardedType(shape, new), unlocked4d), shape.config...)(new)
				}
				if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, old, new)); !response.Allowed {
					t.Errorf("without a lock: %s", response.Result.Message)
				}
			})
		}
	}
	// Between the classes that are served it stays with us.
	shape := guardedShapes[0]
	old := shape.object("aws", guardedConfig("aws", locked4d))
	for _, class := range []string{"shoot", "garden"} {
		if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, old, shape.object("aws", guardedConfig("aws", locked4d), set(class, shape.class...)))); !response.Allowed || len(response.Warnings) > 0 {
			t.Errorf("class %s: %+v", class, response)
		}
	}
}

func guardedType(shape guardedShape, u *unstructured.Unstructured) string {
	value, _, _ := unstructured.NestedString(u.Object, shape.provider...)
	return value
}

// What comes into our care has to fit, and is locked already if its status or spec say so.
func TestWebhookComingIntoOurCare(t *testing.T) {
	for _, shape := range guardedShapes {
		old := shape.object("gcp", map[string]any{"anything": "goes"})
		if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, old, shape.object("aws", guardedConfig("aws", locked4d)))); !response.Allowed || len(response.Warnings) != 1 {
			t.Errorf("%s: %+v", shape.resource(), response)
		}
		if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, old, shape.object("aws", map[string]any{"anything": "goes"}))); response.Allowed || response.Result.Code != http.StatusUnprocessableEntity {
			t.Errorf("%s: %+v", shape.resource(), response)
		}
		if !shape.recorded {
			continue
		}
		old = shape.object("gcp", map[string]any{"anything": "goes"}, withRecord(locked4d))
		if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, old, shape.object("aws", guardedConfig("aws", locked1d)))); response.Allowed {
			t.Errorf("%s: weaker than recorded is allowed", shape.resource())
		}
	}
	// The class alone changes, the config stays what it was and does not fit.
	shape := guardedShapes[0]
	invalid := map[string]any{"anything": "goes"}
	if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, shape.object("aws", invalid, set("other", shape.class...)), shape.object("aws", invalid))); response.Allowed {
		t.Error("an invalid config comes into our care")
	}
}

func TestWebhookNotOurs(t *testing.T) {
	for _, shape := range guardedShapes {
		w := newTestWebhook(noEntries)
		// Each of these would be denied or warned about if it were ours.
		objects := []*unstructured.Unstructured{shape.object("gcp", guardedConfig("aws", locked400d)), shape.object("", guardedConfig("aws", Policy{})), shape.object("gcp", "x"),
			shape.object("gcp", guardedConfig("gcp", locked1d), set("eu-2", shape.region...)), shape.object("gcp", nil, set(int64(5), "spec"))}
		if shape.class != nil {
			objects = append(objects, shape.object("aws", guardedConfig("aws", locked400d), set("other", shape.class...)), shape.object("aws", "x", set("other", shape.class...)))
		}
		for i, old := range objects {
			if response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Create, nil, old)); !response.Allowed || len(response.Warnings) > 0 {
				t.Errorf("%s %d, created: %+v", shape.resource(), i, response)
			}
			for j, new := range objects {
				if response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, old, new)); !response.Allowed || len(response.Warnings) > 0 {
					t.Errorf("%s from %d to %d: %+v", shape.resource(), i, j, response)
				}
			}
		}
	}
}

// What became invalid or weak before admission was there must not keep an object from
// changing otherwise, least of all from losing its finalizer.
func TestWebhookLeavesAlone(t *testing.T) {
	for _, shape := range guardedShapes {
		for name, config := range map[string]any{
			"invalid": map[string]any{"anything": "goes"}, "a string": "x", "a number": int64(5), "a list": []any{}, "a bool": false,
			"weaker than recorded": guardedConfig("aws", unlocked1d), "nothing": nil, "another format": guardedConfig("azure", locked4d),
			"a period that is none": map[string]any{"apiVersion": "aws.provider.extensions.gardener.cloud/v1alpha1", "kind": "BackupBucketConfig",
				"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "soon", "locked": true}},
		} {
			old := shape.object("aws", config, withFinalizers("x/y"), withRecord(locked4d))
			for change, edit := range map[string]editObject{
				"nothing":    func(*unstructured.Unstructured) {},
				"finalizer":  func(u *unstructured.Unstructured) { u.SetFinalizers(nil) },
				"deletion":   deleting,
				"annotation": withOperation("reconcile"),
				"credentials": func(u *unstructured.Unstructured) {
					set(map[string]any{"namespace": "garden", "name": "other"}, append(slices.Clone(shape.config[:len(shape.config)-1]), "secretRef")...)(u)
				},
				"status": set("x", "status", "foo"),
				// The old status counts, nobody can say that there was none.
				"no status": func(u *unstructured.Unstructured) { delete(u.Object, "status") },
			} {
				new := old.DeepCopy()
				edit(new)
				w := newTestWebhook(noEntries)
				if response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, old, new)); !response.Allowed || len(response.Warnings) > 0 {
					t.Errorf("%s with %s, %s changes: %+v", shape.resource(), name, change, response.Result)
				}
			}
		}
		// A deleted object keeps its lock.
		old := shape.object("aws", guardedConfig("aws", locked4d), deleting)
		if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, old, shape.object("aws", guardedConfig("aws", unlocked4d), deleting))); response.Allowed {
			t.Errorf("%s: unlocked while it is deleted", shape.resource())
		}
		if shape.recorded {
			// A status that comes with the request counts for nothing.
			old := shape.object("aws", guardedConfig("aws", Policy{}), withRecord(locked4d))
			if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, old, shape.object("aws", guardedConfig("aws", unlocked4d)))); response.Allowed {
				t.Errorf("%s: unlocked without its status", shape.resource())
			}
		}
	}
}

func TestWebhookRegion(t *testing.T) {
	for _, shape := range guardedShapes {
		old := shape.object("aws", guardedConfig("aws", locked4d))
		moved := shape.object("aws", guardedConfig("aws", locked4d), set("eu-2", shape.region...))
		w := newTestWebhook(noEntries)
		response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, old, moved))
		if _, warnings := counted(t, w, shape.resource()); !response.Allowed || !slices.Equal(warnings, []string{warnMoved}) || !strings.Contains(response.Warnings[0], `from "eu-1" to "eu-2"`) {
			t.Errorf("%s: %+v", shape.resource(), response)
		}
		w = newTestWebhook(noEntries)
		response = reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, old, shape.object("aws", guardedConfig("aws", locked400d), set("eu-2", shape.region...))))
		if _, warnings := counted(t, w, shape.resource()); !response.Allowed || !slices.Equal(warnings, []string{warnLong, warnMoved}) {
			t.Errorf("%s, with a longer period: %+v", shape.resource(), response)
		}
		if response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, old, shape.object("aws", guardedConfig("aws", locked1d), set("eu-2", shape.region...)))); response.Allowed {
			t.Errorf("%s: a move shortens", shape.resource())
		}
		// Nothing of ours was there.
		before := shape.object("gcp", nil, set("eu-2", shape.region...))
		if response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, before, shape.object("aws", guardedConfig("aws", Policy{})))); !response.Allowed || len(response.Warnings) > 0 {
			t.Errorf("%s comes into our care: %+v", shape.resource(), response)
		}
		if response := reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, old, shape.object("aws", guardedConfig("aws", locked4d), set(strings.Repeat("\x01\U000e0001", 9999), shape.region...)))); len(response.Warnings) != 1 {
			t.Errorf("%s: %+v", shape.resource(), response)
		}
	}
	// Without a region of its own, the backup is in that of the Seed.
	shape := guardedShapes[2]
	seed := func(region any, provider string) *unstructured.Unstructured {
		return shape.object("aws", guardedConfig("aws", locked4d), set(region, shape.region...), set(provider, "spec", "provider", "region"))
	}
	for name, test := range map[string]struct {
		old, new *unstructured.Unstructured
		warnings int
	}{
		"it is written out":     {seed(nil, "eu-1"), seed("eu-1", "eu-1"), 0},
		"it is left out":        {seed("eu-1", "eu-1"), seed(nil, "eu-1"), 0},
		"another one":           {seed(nil, "eu-1"), seed("eu-2", "eu-1"), 1},
		"that of the Seed":      {seed(nil, "eu-1"), seed(nil, "eu-2"), 1},
		"only that of the Seed": {seed("eu-1", "eu-1"), seed("eu-1", "eu-2"), 0},
	} {
		if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, test.old, test.new)); !response.Allowed || len(response.Warnings) != test.warnings {
			t.Errorf("%s: %+v", name, response)
		}
	}
	backup := seed(nil, "eu-1")
	none := backup.DeepCopy()
	unstructured.RemoveNestedField(none.Object, "spec", "backup")
	if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, none, backup)); !response.Allowed || len(response.Warnings) != 1 || !strings.Contains(response.Warnings[0], "irreversible") {
		t.Errorf("a Seed gets its backup: %+v", response)
	}
}

// Whatever a config looks like, it is an error of its field, and nothing locked goes with it.
func TestWebhookInvalidConfigs(t *testing.T) {
	t.Parallel()
	immutability := func(provider string, value any) map[string]any {
		config := guardedConfig(provider, Policy{})
		config["immutability"] = value
		return config
	}
	period := func(provider string, value any) map[string]any {
		return immutability(provider, map[string]any{"retentionType": "bucket", "retentionPeriod": value, "locked": true})
	}
	with := func(config map[string]any, key string, value any) map[string]any {
		config[key] = value
		return config
	}
	nested := any("x")
	for range 1000 {
		nested = []any{nested}
	}
	for _, shape := range guardedShapes {
		for _, provider := range []string{"aws", "azure"} {
			tests := map[string]struct {
				config any
				// field is below providerConfig.
				field string
			}{
				"string":                      {"x", ""},
				"empty string":                {"", ""},
				"number":                      {int64(5), ""},
				"bool":                        {false, ""},
				"list":                        {[]any{}, ""},
				"deep list":                   {nested, ""},
				"empty":                       {map[string]any{}, ".kind"},
				"other kind":                  {with(guardedConfig(provider, locked10d), "kind", "Other"), ".kind"},
				"other apiVersion":            {guardedConfig("gcp", locked10d), ".apiVersion"},
				"apiVersion is a number":      {with(guardedConfig(provider, locked10d), "apiVersion", int64(1)), ".apiVersion"},
				"unknown field":               {with(guardedConfig(provider, locked10d), "foo", "bar"), ""},
				"unknown deep field":          {with(guardedConfig(provider, locked10d), "foo", nested), ""},
				"control characters":          {with(guardedConfig(provider, locked10d), "a\nb\x1b[31m\u0085", "bar"), ""},
				"Immutability":                {with(guardedConfig(provider, Policy{}), "Immutability", immutability(provider, nil)), ""},
				"immutability is a list":      {immutability(provider, []any{}), ".immutability"},
				"immutability is a string":    {immutability(provider, "locked"), ".immutability"},
				"immutability is empty":       {immutability(provider, map[string]any{}), ".immutability.retentionType"},
				"retentionType":               {immutability(provider, map[string]any{"retentionType": "object", "retentionPeriod": "96h", "locked": true}), ".immutability.retentionType"},
				"unknown nested field":        {immutability(provider, map[string]any{"retentionType": "bucket", "retentionPeriod": "240h", "locked": true, "Locked": false}), ""},
				"locked is a string":          {immutability(provider, map[string]any{"retentionType": "bucket", "retentionPeriod": "240h", "locked": "true"}), ".immutability.locked"},
				"locked is a number":          {immutability(provider, map[string]any{"retentionType": "bucket", "retentionPeriod": "240h", "locked": int64(1)}), ".immutability.locked"},
				"retentionPeriod is a number": {period(provider, int64(240)), ".immutability.retentionPeriod"},
				"retentionPeriod is null":     {period(provider, nil), ".immutability.retentionPeriod"},
				"retentionPeriod is empty":    {period(provider, ""), ".immutability.retentionPeriod"},
				"retentionPeriod in days":     {period(provider, "10d"), ".immutability.retentionPeriod"},
				"negative retentionPeriod":    {period(provider, "-240h"), ".immutability.retentionPeriod"},
				"retentionPeriod below a day": {period(provider, "23h"), ".immutability.retentionPeriod"},
				"no whole days":               {period(provider, "100h"), ".immutability.retentionPeriod"},
				"overflow":                    {period(provider, "9999999999999999999999h"), ".immutability.retentionPeriod"},
				"overflow of 64 bits":         {period(provider, "18446744073709551712h"), ".immutability.retentionPeriod"},
				"overflow of 32 bits":         {period(provider, fmt.Sprintf("%dh", (int64(1)<<32+10)*24)), ".immutability.retentionPeriod"},
				"above the limit":             {period(provider, "3504024h"), ".immutability.retentionPeriod"},
				"a huge retentionPeriod":      {period(provider, strings.Repeat("\U0001f4a3", 2000)), ".immutability.retentionPeriod"},
				"a huge kind":                 {with(guardedConfig(provider, locked10d), "kind", strings.Repeat("x\n", 5000)), ".kind"},
				"a huge field":                {with(guardedConfig(provider, locked10d), strings.Repeat("x\n", 5000), int64(1)), ""},
			}
			if provider == "aws" {
				tests["mode"] = struct {
					config any
					field  string
				}{immutability(provider, map[string]any{"retentionType": "bucket", "retentionPeriod": "240h", "mode": "COMPLIANCE"}), ".immutability.mode"}
				tests["mode contradicts locked"] = struct {
					config any
					field  string
				}{immutability(provider, map[string]any{"retentionType": "bucket", "retentionPeriod": "240h", "mode": "governance", "locked": true}), ".immutability.mode"}
			}
			for name, test := range tests {
				t.Run(fmt.Sprintf("%s %s %s", shape.resource(), provider, name), func(t *testing.T) {
					// DeepCopy does not know all shapes of a test, JSON does.
					object := shape.object(provider, nil)
					parent, _, _ := unstructured.NestedFieldNoCopy(object.Object, shape.config[:len(shape.config)-1]...)
					parent.(map[string]any)["providerConfig"] = test.config
					requests := map[string]*admissionv1.AdmissionRequest{
						"created":  reviewRequest(shape.gvr, admissionv1.Create, nil, object),
						"locked":   reviewRequest(shape.gvr, admissionv1.Update, shape.object(provider, guardedConfig(provider, locked4d)), object),
						"unlocked": reviewRequest(shape.gvr, admissionv1.Update, shape.object(provider, guardedConfig(provider, unlocked4d)), object),
						"nothing":  reviewRequest(shape.gvr, admissionv1.Update, shape.object(provider, nil), object),
					}
					if shape.recorded {
						requests["recorded"] = reviewRequest(shape.gvr, admissionv1.Update, shape.object(provider, nil, withRecord(locked4d)), object)
					}
					for before, request := range requests {
						w := newTestWebhook(noEntries)
						response := reviewed(t, w, request)
						if denial, _ := counted(t, w, shape.resource()); response.Allowed || denial != reasonInvalid || response.Result.Code != http.StatusUnprocessableEntity || response.Result.Reason != metav1.StatusReasonInvalid {
							t.Fatalf("%s: %+v, counted %q", before, response, denial)
						}
						if want := strings.Join(shape.config, ".") + test.field; !strings.HasPrefix(response.Result.Message, want+" ") {
							t.Errorf("%s: got %s, want %s ...", before, response.Result.Message, want)
						}
					}
				})
			}
		}
	}
}

// The schemas of the objects forbid these; a webhook is asked before nobody knows what.
func TestWebhookMalformedObjects(t *testing.T) {
	shape := guardedShapes[0]
	old := shape.object("aws", guardedConfig("aws", locked4d))
	for name, edit := range map[string]editObject{
		"region is a number":    set(int64(1), "spec", "region"),
		"secretRef is a string": set("x", "spec", "secretRef"),
		"class is a list":       set([]any{}, "spec", "class"),
	} {
		new := shape.object("aws", guardedConfig("aws", locked10d))
		edit(new)
		if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, old, new)); response.Allowed || response.Result.Code != http.StatusUnprocessableEntity {
			t.Errorf("%s: %+v", name, response)
		}
	}
	// An old object that cannot be read had nothing of ours but what is recorded.
	for name, spec := range map[string]any{"number": int64(5), "list": []any{}, "null": nil, "string": "x"} {
		before := shape.object("aws", nil, set(spec, "spec"), withRecord(locked4d))
		if response := reviewed(t, newTestWebhook(noEntries), reviewRequest(shape.gvr, admissionv1.Update, before, shape.object("aws", guardedConfig("aws", unlocked4d)))); response.Allowed {
			t.Errorf("the old spec is a %s: unlocked", name)
		}
	}
}

// The request says what an object is; an object that is something else is none.
func TestWebhookMisunderstood(t *testing.T) {
	bucket := guardedShapes[0].object("aws", guardedConfig("aws", locked4d))
	seed := guardedShapes[2].object("aws", guardedConfig("aws", locked4d))
	entry := testObject(kindBackupEntry, "e", "secret")
	v1beta1 := bucket.DeepCopy()
	v1beta1.SetAPIVersion("extensions.gardener.cloud/v1beta1")
	create, update, remove := admissionv1.Create, admissionv1.Update, admissionv1.Delete
	resource := func(group, version, resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
	}
	tests := map[string]*admissionv1.AdmissionRequest{
		"another resource":         reviewRequest(resource("", "v1", "pods"), create, nil, `{"apiVersion":"v1","kind":"Pod"}`),
		"another resource of it":   reviewRequest(extensionsGV.WithResource("infrastructures"), create, nil, bucket),
		"another version":          reviewRequest(resource("extensions.gardener.cloud", "v1beta1", "backupbuckets"), create, nil, v1beta1),
		"another group":            reviewRequest(resource("extensions.example.com", "v1alpha1", "backupbuckets"), create, nil, bucket),
		"upper case":               reviewRequest(resource("extensions.gardener.cloud", "v1alpha1", "BackupBuckets"), create, nil, bucket),
		"internal version":         reviewRequest(resource("core.gardener.cloud", "v1", "seeds"), create, nil, seed),
		"entries of the garden":    reviewRequest(gardenGV.WithResource(resourceBackupEntries), update, entry, entry),
		"no resource":              reviewRequest(schema.GroupVersionResource{}, create, nil, bucket),
		"CONNECT":                  reviewRequest(bucketsGVR, admissionv1.Connect, bucket, bucket),
		"no operation":             reviewRequest(bucketsGVR, "", bucket, bucket),
		"lower case":               reviewRequest(bucketsGVR, "update", bucket, bucket),
		"endless operation":        reviewRequest(bucketsGVR, admissionv1.Operation(strings.Repeat("X", 100000)), bucket, bucket),
		"CONNECT to a Seed":        reviewRequest(gardenSeedsGVR, admissionv1.Connect, seed, seed),
		"CONNECT to an entry":      reviewRequest(entriesGVR, admissionv1.Connect, entry, entry),
		"created without object":   reviewRequest(bucketsGVR, create, nil, nil),
		"created with an old":      reviewRequest(bucketsGVR, create, bucket, nil),
		"no new object":            reviewRequest(bucketsGVR, update, bucket, nil),
		"no old object":            reviewRequest(bucketsGVR, update, nil, bucket),
		"deleted without object":   reviewRequest(bucketsGVR, remove, nil, nil),
		"deleted with a new":       reviewRequest(bucketsGVR, remove, nil, bucket),
		"entry without old":        reviewRequest(entriesGVR, update, nil, entry),
		"deleted Seed":             reviewRequest(gardenSeedsGVR, remove, nil, nil),
		"new of another kind":      reviewRequest(bucketsGVR, update, bucket, entry),
		"old of another kind":      reviewRequest(bucketsGVR, update, entry, bucket),
		"of the garden":            reviewRequest(gardenBucketsGVR, update, bucket, bucket),
		"a Seed as bucket":         reviewRequest(gardenBucketsGVR, create, nil, seed),
		"another version of it":    reviewRequest(bucketsGVR, update, bucket, v1beta1),
		"no kind":                  reviewRequest(bucketsGVR, create, nil, `{"apiVersion":"extensions.gardener.cloud/v1alpha1","spec":{"type":"gcp"}}`),
		"no apiVersion":            reviewRequest(bucketsGVR, create, nil, `{"kind":"BackupBucket","spec":{"type":"gcp"}}`),
		"Kind":                     reviewRequest(bucketsGVR, create, nil, `{"APIVersion":"extensions.gardener.cloud/v1alpha1","Kind":"BackupBucket","spec":{"type":"gcp"}}`),
		"kind is a number":         reviewRequest(bucketsGVR, create, nil, `{"apiVersion":"extensions.gardener.cloud/v1alpha1","kind":5}`),
		"empty object":             reviewRequest(bucketsGVR, create, nil, `{}`),
		"control characters":       reviewRequest(bucketsGVR, create, nil, `{"apiVersion":"a\u0001b","kind":"\u0085\u001b[31m"}`),
		"control characters of it": reviewRequest(resource("\x01", "\u0085", "\n"), "\x1b[31m", nil, nil),
		"list":                     reviewRequest(bucketsGVR, create, nil, `[]`),
		"string":                   reviewRequest(bucketsGVR, create, nil, `"x"`),
		"number":                   reviewRequest(bucketsGVR, create, nil, `5`),
		"true":                     reviewRequest(bucketsGVR, create, nil, `true`),
		"null":                     reviewRequest(bucketsGVR, create, nil, `null`),
		"old is null":              reviewRequest(bucketsGVR, update, `null`, bucket),
		"old is a list":            reviewRequest(bucketsGVR, update, `[]`, bucket),
	}
	w := newTestWebhook(noEntries)
	for name, request := range tests {
		response := reviewed(t, w, request)
		if response.Allowed || len(response.Warnings) > 0 || response.Result.Code != http.StatusBadRequest {
			t.Errorf("%s: %+v", name, response)
		}
		if !strings.HasPrefix(response.Result.Message, "bucketwarden cannot judge the ") {
			t.Errorf("%s: %s", name, response.Result.Message)
		}
	}
	if got := queueTestSeries(t, w.metrics, "bucketwarden_admission_reviews_total", "operation", "other", "outcome", "refused", "resource", "other"); got != float64(len(tests)) {
		t.Errorf("counted %v refused reviews of %d", got, len(tests))
	}
	wantNoOtherLabels(t, w)
}

// wantNoOtherLabels checks that nobody can make up label values.
func wantNoOtherLabels(t *testing.T, w *webhook) {
	t.Helper()
	known := map[string][]string{
		"resource":  {"backupbuckets.extensions.gardener.cloud", "backupbuckets.core.gardener.cloud", "seeds.core.gardener.cloud", "backupentries.extensions.gardener.cloud", labelOther},
		"operation": {"CREATE", "UPDATE", "DELETE", labelOther},
		"outcome":   {outcomeAllowed, outcomeDenied, outcomeRefused},
		"reason":    {reasonDisable, reasonUnlock, reasonShorten, reasonInvalid, reasonInUse, reasonLookup, warnMoved, warnLock, warnExtend, warnLong, warnShort, warnGovernance},
	}
	families, err := w.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "bucketwarden_admission_") {
			continue
		}
		for _, metric := range family.GetMetric() {
			for _, pair := range metric.GetLabel() {
				if !slices.Contains(known[pair.GetName()], pair.GetValue()) {
					t.Errorf("%s has %s=%q", family.GetName(), pair.GetName(), pair.GetValue())
				}
			}
		}
	}
}

// Keys that come twice count as for everybody after us: the last one does.
func TestWebhookAmbiguousKeys(t *testing.T) {
	const (
		header  = `"apiVersion":"extensions.gardener.cloud/v1alpha1","kind":"BackupBucket","metadata":{"name":"b"}`
		config  = `"apiVersion":"aws.provider.extensions.gardener.cloud/v1alpha1","kind":"BackupBucketConfig"`
		strong  = `"immutability":{"retentionType":"bucket","retentionPeriod":"240h","locked":true}`
		weak    = `"immutability":{"retentionType":"bucket","retentionPeriod":"24h","locked":true}`
		ours    = `"type":"aws","region":"eu-1"`
		locking = `{` + header + `,"spec":{` + ours + `,"providerConfig":{` + config + `,"immutability":{"retentionType":"bucket","retentionPeriod":"96h","locked":true}}}}`
	)
	spec := func(configs ...string) string {
		text := `"spec":{` + ours
		for _, c := range configs {
			text += `,"providerConfig":{` + config + `,` + c + `}`
		}
		return text + "}"
	}
	for name, test := range map[string]struct {
		new     string
		allowed bool
	}{
		"strong":                        {spec(strong), true},
		"weak":                          {spec(weak), false},
		"spec, the last is weak":        {spec(strong) + "," + spec(weak), false},
		"spec, the last is strong":      {spec(weak) + "," + spec(strong), true},
		"spec, the last is empty":       {spec(strong) + `,"spec":{}`, false},
		"spec, the last is null":        {spec(strong) + `,"spec":null`, false},
		"spec, the first is null":       {`"spec":null,` + spec(strong), true},
		"config, the last is weak":      {spec(strong, weak), false},
		"config, the last is strong":    {spec(weak, strong), true},
		"config, the last is null":      {`"spec":{` + ours + `,"providerConfig":{` + config + `,` + strong + `},"providerConfig":null}`, false},
		"immutability, the last weak":   {spec(strong + "," + weak), false},
		"immutability, the last null":   {spec(strong + `,"immutability":null`), false},
		"immutability, the last empty":  {spec(strong + `,"immutability":{}`), false},
		"locked, the last is false":     {spec(`"immutability":{"retentionType":"bucket","retentionPeriod":"240h","locked":true,"locked":false}`), false},
		"locked, the last is null":      {spec(`"immutability":{"retentionType":"bucket","retentionPeriod":"240h","locked":true,"locked":null}`), false},
		"period, the last is short":     {spec(`"immutability":{"retentionType":"bucket","retentionPeriod":"240h","retentionPeriod":"24h","locked":true}`), false},
		"an escaped key comes last":     {spec(strong) + `,"\u0073pec":{` + ours + `}`, false},
		"Spec is strong":                {spec(weak) + `,"Spec":{` + ours + `,"providerConfig":{` + config + `,` + strong + `}}`, false},
		"SPEC alone":                    {strings.Replace(spec(strong), "spec", "SPEC", 1), false},
		"providerconfig":                {strings.Replace(spec(strong), "providerConfig", "providerconfig", 1), false},
		"Immutability":                  {strings.Replace(spec(strong), "immutability", "Immutability", 1), false},
		"weak and Immutability":         {spec(weak + "," + strings.Replace(strong, "immutability", "Immutability", 1)), false},
		"Locked":                        {strings.Replace(spec(strong), "locked", "Locked", 1), false},
		"TYPE of somebody else":         {strings.Replace(spec(strong), `"type"`, `"TYPE":"gcp","type"`, 1), true},
		"type of somebody else is last": {strings.Replace(spec(strong), `"region"`, `"type":"gcp","region"`, 1), false},
	} {
		response := reviewed(t, newTestWebhook(noEntries), reviewRequest(bucketsGVR, admissionv1.Update, locking, "{"+header+","+test.new+"}"))
		if response.Allowed != test.allowed {
			t.Errorf("%s: %+v", name, response.Result)
		}
	}
}

func TestWebhookEntries(t *testing.T) {
	entry := func(edits ...editObject) *unstructured.Unstructured {
		return testObject(kindBackupEntry, "e", "secret", append([]editObject{set("one", "spec", "bucketName")}, edits...)...)
	}
	const resource = "backupentries.extensions.gardener.cloud"
	tests := []struct {
		name     string
		old, new *unstructured.Unstructured
		warning  string
	}{
		{"bucket", entry(), entry(set("two", "spec", "bucketName")), `it moves from bucket "one" in "eu-1" to "two" in "eu-1"`},
		{"region", entry(), entry(set("eu-2", "spec", "region")), `it moves from bucket "one" in "eu-1" to "one" in "eu-2"`},
		{"no bucket", entry(), entry(set(nil, "spec", "bucketName")), `it moves from bucket "one" in "eu-1" to "" in "eu-1"`},
		{"nothing", entry(), entry(), ""},
		{"secret", entry(), entry(set("x", "spec", "secretRef", "name")), ""},
		{"class leaves", entry(), entry(set("other", "spec", "class")), ""},
		{"malformed", entry(), entry(set(int64(5), "spec")), `to "" in ""`},
		{"not ours", entry(set("gcp", "spec", "type")), entry(set("gcp", "spec", "type"), set("two", "spec", "bucketName")), ""},
		{"not our class", entry(set("other", "spec", "class")), entry(set("other", "spec", "class"), set("two", "spec", "bucketName")), ""},
		{"an endless name", entry(), entry(set(strings.Repeat("é\n", 9999), "spec", "bucketName")), "the entry's backups in the old bucket are orphaned"},
	}
	for _, test := range tests {
		w := newTestWebhook(noEntries)
		response := reviewed(t, w, reviewRequest(entriesGVR, admissionv1.Update, test.old, test.new))
		_, warnings := counted(t, w, resource)
		switch {
		case !response.Allowed || (len(response.Warnings) == 1) != (test.warning != "") || len(warnings) != len(response.Warnings):
			t.Errorf("%s: %+v, counted %q", test.name, response, warnings)
		case test.warning != "" && (!strings.Contains(response.Warnings[0], test.warning) || !strings.HasPrefix(response.Warnings[0], "the entry's backups in the old bucket are orphaned") || warnings[0] != warnMoved):
			t.Errorf("%s: %q", test.name, response.Warnings)
		}
		for operation, request := range map[admissionv1.Operation]*admissionv1.AdmissionRequest{
			"CREATE": reviewRequest(entriesGVR, admissionv1.Create, nil, test.new), "DELETE": reviewRequest(entriesGVR, admissionv1.Delete, test.old, nil),
		} {
			if response := reviewed(t, w, request); !response.Allowed || len(response.Warnings) > 0 {
				t.Errorf("%s, %s: %+v", test.name, operation, response)
			}
		}
	}
}

func TestWebhookDeletion(t *testing.T) {
	entry := func(name, bucket string) *unstructured.Unstructured {
		return testObject(kindBackupEntry, name, "secret", set(bucket, "spec", "bucketName"))
	}
	bucket := func(edits ...editObject) *unstructured.Unstructured {
		return testObject(kindBackupBucket, "b", "secret", edits...)
	}
	tests := []struct {
		name    string
		bucket  *unstructured.Unstructured
		entries []runtime.Object
		denial  string
		code    int32
		message string
		lists   int
	}{
		{name: "no entries", bucket: bucket(), lists: 1},
		{name: "of another bucket", bucket: bucket(), entries: []runtime.Object{entry("e", "b2"), entry("f", "")}, lists: 1},
		{name: "in use", bucket: bucket(), entries: []runtime.Object{entry("e", "a"), entry("f", "b")}, denial: reasonInUse, code: http.StatusConflict,
			message: "BackupBucket b cannot be deleted while BackupEntry f refers to it: delete that first", lists: 1},
		{name: "in use by one that is being deleted", bucket: bucket(), entries: []runtime.Object{testObject(kindBackupEntry, "e", "secret", set("b", "spec", "bucketName"), deleting)},
			denial: reasonInUse, code: http.StatusConflict, message: "BackupBucket b cannot be deleted while BackupEntry e refers to it: delete that first", lists: 1},
		{name: "in use, locked", bucket: bucket(withPolicy(locked4d)), entries: []runtime.Object{entry("e", "b")}, denial: reasonInUse, code: http.StatusConflict,
			message: "BackupBucket b cannot be deleted while BackupEntry e refers to it: delete that first", lists: 1},
		// The retention is waited for by the daemon.
		{name: "locked", bucket: bucket(withPolicy(locked4d)), lists: 1},
		{name: "again", bucket: bucket(deleting), entries: []runtime.Object{entry("e", "b")}},
		{name: "type of somebody else", bucket: bucket(set("gcp", "spec", "type")), entries: []runtime.Object{entry("e", "b")}},
		{name: "class of somebody else", bucket: bucket(set("other", "spec", "class")), entries: []runtime.Object{entry("e", "b")}},
	}
	for _, test := range tests {
		for _, dryRun := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, dry run %t", test.name, dryRun), func(t *testing.T) {
				dyn := informersTestDynamic(test.entries...)
				w := newTestWebhook(dyn.Resource(entriesGVR))
				request := reviewRequest(bucketsGVR, admissionv1.Delete, test.bucket, nil)
				request.DryRun = &dryRun
				response := reviewed(t, w, request)
				denial, warnings := counted(t, w, "backupbuckets.extensions.gardener.cloud")
				if response.Allowed != (test.denial == "") || denial != test.denial || len(warnings) > 0 {
					t.Fatalf("%+v, counted %q", response, denial)
				}
				if test.denial != "" && (response.Result.Code != test.code || response.Result.Message != test.message || response.Result.Reason != metav1.StatusReasonConflict) {
					t.Errorf("denied with %+v", response.Result)
				}
				if len(dyn.Actions()) != test.lists {
					t.Errorf("requests: %v", dyn.Actions())
				}
				for _, action := range dyn.Actions() {
					if action.GetVerb() != "list" || action.GetResource() != entriesGVR {
						t.Errorf("%s %s", action.GetVerb(), action.GetResource())
					}
				}
			})
		}
	}
	for _, shape := range guardedShapes[1:] {
		if response := reviewed(t, newTestWebhook(listStub{}), reviewRequest(shape.gvr, admissionv1.Delete, shape.object("aws", guardedConfig("aws", locked4d)), nil)); !response.Allowed {
			t.Errorf("%s: %s", shape.resource(), response.Result.Message)
		}
	}
}

// No is only believed after the last page.
func TestWebhookDeletionReadsAllPages(t *testing.T) {
	request := reviewRequest(bucketsGVR, admissionv1.Delete, testObject(kindBackupBucket, "b", "secret"), nil)
	for name, test := range map[string]struct {
		// at is the page that has the entry, fails the one that cannot be read; from 1.
		at, fails int
		want      string
		pages     int
	}{
		"none":                       {pages: 3},
		"first":                      {at: 1, want: reasonInUse, pages: 1},
		"last":                       {at: 3, want: reasonInUse, pages: 3},
		"the first fails":            {fails: 1, want: reasonLookup, pages: 1},
		"the last fails":             {fails: 3, want: reasonLookup, pages: 3},
		"found before it fails":      {at: 2, fails: 3, want: reasonInUse, pages: 2},
		"it fails before it's found": {at: 3, fails: 2, want: reasonLookup, pages: 2},
	} {
		t.Run(name, func(t *testing.T) {
			pages := 0
			w := newTestWebhook(listStub{list: func(_ context.Context, options metav1.ListOptions) (*unstructured.UnstructuredList, error) {
				pages++
				if options.Limit < 1 || options.Limit > 1000 || options.LabelSelector != "" || options.FieldSelector != "" || options.ResourceVersion != "" {
					t.Errorf("asks for %+v", options)
				}
				if want := []string{"", "after 1", "after 2"}[pages-1]; options.Continue != want {
					t.Errorf("page %d is asked for with %q", pages, options.Continue)
				}
				if pages == test.fails {
					return nil, errors.New("etcd is on holiday")
				}
				list := &unstructured.UnstructuredList{Items: []unstructured.Unstructured{*testObject(kindBackupEntry, "x", "secret", set("other", "spec", "bucketName"))}}
				if pages == test.at {
					list.Items = append(list.Items, *testObject(kindBackupEntry, "e", "secret", set("b", "spec", "bucketName")))
				}
				if pages < 3 {
					list.SetContinue(fmt.Sprintf("after %d", pages))
				}
				return list, nil
			}})
			response := reviewed(t, w, request)
			denial, _ := counted(t, w, "backupbuckets.extensions.gardener.cloud")
			if response.Allowed != (test.want == "") || denial != test.want || pages != test.pages {
				t.Errorf("%+v, counted %q after %d pages", response, denial, pages)
			}
			if test.want == reasonLookup && (response.Result.Code != http.StatusInternalServerError || !strings.Contains(response.Result.Message, "etcd is on holiday")) {
				t.Errorf("denied with %+v", response.Result)
			}
		})
	}
}

// Only for a bucket that exists are all entries read, and for one request at a time.
func TestWebhookLooksUpOnlyWhatExists(t *testing.T) {
	request := reviewRequest(bucketsGVR, admissionv1.Delete, testObject(kindBackupBucket, "b", "secret"), nil)
	for name, test := range map[string]struct {
		live liveBucket
		want string
	}{
		"gone":            {live: liveBucket{err: apierrors.NewNotFound(bucketsGVR.GroupResource(), "b")}},
		"another one now": {live: liveBucket{uid: "another"}},
		"cannot be read":  {live: liveBucket{err: errors.New("etcd is on holiday")}, want: reasonLookup},
	} {
		w := newTestWebhook(listStub{})
		w.buckets = test.live
		response := reviewed(t, w, request)
		if denial, _ := counted(t, w, "backupbuckets.extensions.gardener.cloud"); response.Allowed != (test.want == "") || denial != test.want {
			t.Errorf("%s: %+v, counted %q", name, response, denial)
		}
	}

	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int64
		w := newTestWebhook(listStub{list: func(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error) {
			if now := running.Add(1); now > most.Load() {
				most.Store(now)
			}
			time.Sleep(time.Second)
			running.Add(-1)
			return &unstructured.UnstructuredList{}, nil
		}})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if response := reviewed(t, w, request); !response.Allowed {
					t.Error(response.Result)
				}
			})
		}
		all.Wait()
		if most.Load() != 1 {
			t.Errorf("%d lookups at the same time", most.Load())
		}
	})
}

// A lookup that hangs ends before the API server stops waiting, and denies.
func TestWebhookDeletionTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTestWebhook(listStub{list: func(ctx context.Context, _ metav1.ListOptions) (*unstructured.UnstructuredList, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		start := time.Now()
		response := reviewed(t, w, reviewRequest(bucketsGVR, admissionv1.Delete, testObject(kindBackupBucket, "b", "secret"), nil))
		if response.Allowed || response.Result.Code != http.StatusInternalServerError || time.Since(start) != reviewTimeout {
			t.Errorf("after %s: %+v", time.Since(start), response)
		}
	})
}

func TestWebhookHTTP(t *testing.T) {
	allowed := string(reviewBody(t, reviewRequest(bucketsGVR, admissionv1.Create, nil, guardedShapes[0].object("gcp", nil))))
	// padded makes a review of exactly size bytes.
	padded := func(size int) string { return allowed + strings.Repeat(" ", size-len(allowed)) }
	edited := func(old, new string) string {
		if strings.Count(allowed, old) != 1 {
			t.Fatalf("%q is not once in %s", old, allowed)
		}
		return strings.Replace(allowed, old, new, 1)
	}
	const jsonType = "application/json"
	tests := []struct {
		name, method, contentType, body string
		// chunked sends it without a Content-Length.
		chunked bool
		want    int
		message string
	}{
		{name: "fine", body: allowed, want: 200},
		{name: "fine, chunked", body: allowed, chunked: true, want: 200},
		{name: "white space around", body: " \n" + allowed + "\r\n\t ", want: 200},
		{name: "charset", contentType: "application/json; charset=utf-8", body: allowed, want: 200},
		{name: "upper case type", contentType: "Application/JSON", body: allowed, want: 200},
		{name: "unknown field", body: edited(`"operation"`, `"foo":{"bar":[1]},"operation"`), want: 200},
		{name: "at the limit", body: padded(maxReviewBytes), want: 200},
		{name: "at the limit, chunked", body: padded(maxReviewBytes), chunked: true, want: 200},
		{name: "above the limit", body: padded(maxReviewBytes + 1), want: 413, message: "the review is larger than 3670016 bytes"},
		{name: "above the limit, chunked", body: padded(maxReviewBytes + 1), chunked: true, want: 413, message: "the review is larger than 3670016 bytes"},
		{name: "10 MB", body: padded(10 << 20), want: 413, message: "the review is larger than 3670016 bytes"},
		{name: "10 MB, chunked", body: padded(10 << 20), chunked: true, want: 413, message: "the review is larger than 3670016 bytes"},

		{name: "GET", method: "GET", body: allowed, want: 405, message: "only POST is understood here"},
		{name: "PUT", method: "PUT", body: allowed, want: 405, message: "only POST is understood here"},
		{name: "OPTIONS", method: "OPTIONS", want: 405, message: "only POST is understood here"},
		{name: "no type", contentType: "-", body: allowed, want: 415, message: "only application/json is understood here"},
		{name: "text", contentType: "text/plain", body: allowed, want: 415, message: "only application/json is understood here"},
		{name: "YAML", contentType: "application/yaml", body: allowed, want: 415, message: "only application/json is understood here"},
		{name: "protobuf", contentType: "application/vnd.kubernetes.protobuf", body: allowed, want: 415, message: "only application/json is understood here"},
		{name: "something like JSON", contentType: "application/json-patch+json", body: allowed, want: 415, message: "only application/json is understood here"},
		{name: "broken type", contentType: "application/json; charset", body: allowed, want: 415, message: "only application/json is understood here"},
		{name: "two types", contentType: "application/json, text/plain", body: allowed, want: 415, message: "only application/json is understood here"},

		{name: "empty", want: 400, message: "decoding the review: "},
		{name: "empty, chunked", chunked: true, want: 400, message: "decoding the review: "},
		{name: "cut", body: allowed[:len(allowed)-1], want: 400, message: "decoding the review: "},
		{name: "garbage", body: "\x1f\x8b\x08\x00\xff", want: 400, message: "decoding the review: "},
		{name: "trailing garbage", body: allowed + "x", want: 400, message: "decoding the review: "},
		{name: "two reviews", body: allowed + allowed, want: 400, message: "decoding the review: "},
		{name: "trailing zero", body: allowed + "\x00", want: 400, message: "decoding the review: "},
		{name: "byte order mark", body: "\ufeff" + allowed, want: 400, message: "decoding the review: "},
		{name: "comment", body: "// x\n" + allowed, want: 400, message: "decoding the review: "},
		{name: "list", body: "[" + allowed + "]", want: 400, message: "decoding the review: "},
		{name: "string", body: `"x"`, want: 400, message: "decoding the review: "},
		{name: "null", body: "null", want: 400, message: "this is no AdmissionReview of admission.k8s.io/v1"},
		{name: "empty object", body: "{}", want: 400, message: "this is no AdmissionReview of admission.k8s.io/v1"},
		{name: "v1beta1", body: edited("admission.k8s.io/v1", "admission.k8s.io/v1beta1"), want: 400, message: "this is no AdmissionReview of admission.k8s.io/v1"},
		{name: "another kind", body: edited("AdmissionReview", "ConversionReview"), want: 400, message: "this is no AdmissionReview of admission.k8s.io/v1"},
		{name: "no kind", body: edited(`"kind":"AdmissionReview"`, `"Kind":"AdmissionReview"`), want: 400, message: "this is no AdmissionReview of admission.k8s.io/v1"},
		{name: "no request", body: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, want: 400, message: "the AdmissionReview has no request with a uid"},
		{name: "request is null", body: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":null}`, want: 400, message: "the AdmissionReview has no request with a uid"},
		{name: "request is a list", body: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":[]}`, want: 400, message: "decoding the review: "},
		{name: "only a response", body: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"uid-1","allowed":true}}`, want: 400, message: "the AdmissionReview has no request with a uid"},
		{name: "no uid", body: edited(`"uid":"uid-1",`, ""), want: 400, message: "the AdmissionReview has no request with a uid"},
		{name: "empty uid", body: edited(`"uid-1"`, `""`), want: 400, message: "the AdmissionReview has no request with a uid"},
		{name: "UID", body: edited(`"uid"`, `"UID"`), want: 400, message: "the AdmissionReview has no request with a uid"},
		{name: "Request", body: edited(`"request"`, `"Request"`), want: 400, message: "the AdmissionReview has no request with a uid"},
		{name: "uid is a number", body: edited(`"uid-1"`, `1`), want: 400, message: "decoding the review: "},
		{name: "operation is a list", body: edited(`"CREATE"`, `["CREATE"]`), want: 400, message: "decoding the review: "},
		{name: "deep", body: strings.Repeat("[", 100000), want: 400, message: "decoding the review: "},
		{name: "deep and closed", body: strings.Repeat("[", 100000) + strings.Repeat("]", 100000), want: 400, message: "decoding the review: "},
		{name: "deep objects", body: strings.Repeat(`{"request":`, 100000) + "1" + strings.Repeat("}", 100000), want: 400, message: "decoding the review: "},
		{name: "a deep object", body: edited(`"spec":{`, `"spec":{"x":`+strings.Repeat(`{"a":`, 100000)+"1"+strings.Repeat("}", 100000)+","), want: 400, message: "decoding the review: "},
	}
	w := newTestWebhook(noEntries)
	refused := 0.0
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(cmp.Or(test.method, http.MethodPost), webhookPath, strings.NewReader(test.body))
			r = r.WithContext(klog.NewContext(r.Context(), logr.Discard()))
			if test.contentType != "-" {
				r.Header.Set("Content-Type", cmp.Or(test.contentType, jsonType))
			}
			if test.chunked {
				r.ContentLength = -1
			}
			recorder := httptest.NewRecorder()
			w.ServeHTTP(recorder, r)
			if recorder.Code != test.want {
				t.Fatalf("%d: %s", recorder.Code, recorder.Body)
			}
			if got := held(w); got != 0 {
				t.Errorf("%d bytes are still held", got)
			}
			if test.want == http.StatusOK {
				if response := checkedAnswer(t, recorder, "uid-1"); !response.Allowed {
					t.Errorf("denied: %+v", response.Result)
				}
				return
			}
			refused++
			if body := recorder.Body.String(); !strings.HasPrefix(body, test.message) || len(body) > 1000 || strings.Contains(body, "allowed") {
				t.Errorf("got %q, want %q", body, test.message)
			}
			if got := recorder.Header().Get("Allow"); (got == "POST") != (test.want == 405) {
				t.Errorf("Allow is %q", got)
			}
		})
	}
	if got := queueTestSeries(t, w.metrics, "bucketwarden_admission_reviews_total", "operation", "other", "outcome", "refused", "resource", "other"); got != refused || refused == 0 {
		t.Errorf("counted %v of %v refused", got, refused)
	}
	wantNoOtherLabels(t, w)
}

// Anybody can make the daemon write a log, but not an endless one.
func TestWebhookLogsAreCut(t *testing.T) {
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
	endless := strings.Repeat("x", 1<<18)
	request := reviewRequest(schema.GroupVersionResource{Group: endless, Version: endless, Resource: endless}, admissionv1.Operation(endless), nil, nil)
	request.Name, request.UserInfo.Username = endless, endless
	r := postedReview(reviewBody(t, request))
	recorder := httptest.NewRecorder()
	newTestWebhook(noEntries).ServeHTTP(recorder, r.WithContext(klog.NewContext(r.Context(), logger)))
	if response := checkedAnswer(t, recorder, "uid-1"); response.Allowed {
		t.Error("allowed")
	}
	if log := logger.GetSink().(ktesting.Underlier).GetBuffer().String(); !strings.Contains(log, "Denied") || len(log) > 5*maxDescription {
		t.Errorf("the log has %d bytes", len(log))
	}
}

func TestWebhookPanic(t *testing.T) {
	w := newTestWebhook(listStub{list: func(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error) { panic("boom") }})
	recorder := httptest.NewRecorder()
	// It has a large body, which must not be held afterwards.
	request := reviewRequest(bucketsGVR, admissionv1.Delete, testObject(kindBackupBucket, "b", "secret", withAnnotation("x", strings.Repeat("x", 2*largeReviewBytes))), nil)
	w.ServeHTTP(recorder, postedReview(reviewBody(t, request)))
	if recorder.Code != http.StatusInternalServerError || strings.Contains(recorder.Body.String(), "boom") {
		t.Errorf("%d: %s", recorder.Code, recorder.Body)
	}
	if got := queueTestSeries(t, w.metrics, "bucketwarden_reconcile_panics_total", "resource", "reviews"); got != 1 {
		t.Errorf("counted %v panics", got)
	}
	if got := held(w); got != 0 {
		t.Errorf("%d bytes are still held", got)
	}
}

func TestWebhookMetrics(t *testing.T) {
	w := newTestWebhook(noEntries)
	shape := guardedShapes[0]
	locked, unlocked := shape.object("aws", guardedConfig("aws", locked4d)), shape.object("aws", guardedConfig("aws", unlocked4d))
	for range 3 {
		reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, locked, unlocked))
	}
	for range 2 {
		reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Update, unlocked, locked))
	}
	reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Create, nil, unlocked))
	reviewed(t, w, reviewRequest(shape.gvr, admissionv1.Delete, unlocked, nil))
	reviewed(t, w, reviewRequest(gardenSeedsGVR, admissionv1.Delete, guardedShapes[2].object("aws", nil), nil))
	reviewed(t, w, reviewRequest(bucketsGVR, admissionv1.Connect, nil, nil))
	const bucket, seed = "resource=backupbuckets.extensions.gardener.cloud", "resource=seeds.core.gardener.cloud"
	want := map[string]float64{
		"reviews_total,operation=UPDATE,outcome=denied," + bucket:      3,
		"reviews_total,operation=UPDATE,outcome=allowed," + bucket:     2,
		"reviews_total,operation=CREATE,outcome=allowed," + bucket:     1,
		"reviews_total,operation=DELETE,outcome=allowed," + bucket:     1,
		"reviews_total,operation=DELETE,outcome=allowed," + seed:       1,
		"reviews_total,operation=other,outcome=refused,resource=other": 1,
		"denials_total,reason=unlock," + bucket:                        3,
		"warnings_total,reason=lock," + bucket:                         2,
		"warnings_total,reason=governance," + bucket:                   1,
		"review_duration_seconds," + bucket:                            7,
		"review_duration_seconds," + seed:                              1,
		"review_duration_seconds,resource=other":                       1,
	}
	got := map[string]float64{}
	families, err := w.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		name, ok := strings.CutPrefix(family.GetName(), "bucketwarden_admission_")
		for _, metric := range family.GetMetric() {
			if value := metric.GetCounter().GetValue() + float64(metric.GetHistogram().GetSampleCount()); ok && value > 0 {
				series := name
				for _, pair := range metric.GetLabel() {
					series += "," + pair.GetName() + "=" + pair.GetValue()
				}
				got[series] = value
			}
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestWebhookParallel(t *testing.T) {
	w := newTestWebhook(informersTestDynamic(testObject(kindBackupEntry, "e", "secret", set("b", "spec", "bucketName"))).Resource(entriesGVR))
	type round struct {
		request *admissionv1.AdmissionRequest
		allowed bool
	}
	var rounds []round
	for _, shape := range guardedShapes {
		locked, unlocked := shape.object("aws", guardedConfig("aws", locked4d)), shape.object("aws", guardedConfig("aws", unlocked4d))
		rounds = append(rounds, round{reviewRequest(shape.gvr, admissionv1.Update, locked, unlocked), false}, round{reviewRequest(shape.gvr, admissionv1.Update, unlocked, locked), true})
	}
	rounds = append(rounds, round{reviewRequest(bucketsGVR, admissionv1.Delete, testObject(kindBackupBucket, "b", "secret"), nil), false})
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := range 50 {
				round := rounds[(worker+i)%len(rounds)]
				request := *round.request
				request.UID = types.UID(fmt.Sprintf("uid-%d-%d", worker, i))
				recorder := httptest.NewRecorder()
				w.ServeHTTP(recorder, postedReview(reviewBody(t, &request)))
				if recorder.Code != http.StatusOK {
					t.Errorf("status %d", recorder.Code)
					continue
				}
				var answer admissionv1.AdmissionReview
				if err := json.Unmarshal(recorder.Body.Bytes(), &answer); err != nil || answer.Response.UID != request.UID || answer.Response.Allowed != round.allowed {
					t.Errorf("%v: %+v", err, answer.Response)
				}
			}
		})
	}
	all.Wait()
}

// pipeListener hands the server one end of each pipe.
type pipeListener struct {
	connections chan net.Conn
	closed      chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.connections:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) dial() net.Conn {
	client, server := net.Pipe()
	l.connections <- server
	return client
}

// serveOnPipes serves the webhook in a bubble of synctest.
func serveOnPipes(t *testing.T, w *webhook) *pipeListener {
	listener := &pipeListener{connections: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: w, BaseContext: func(net.Listener) context.Context { return klog.NewContext(context.Background(), logr.Discard()) }}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		// net/http lingers half a second, of the bubble's time, after an answer to what it has not read.
		time.Sleep(time.Second)
	})
	return listener
}

// send writes the head of a POST and the body as far as it is given.
func send(t *testing.T, c net.Conn, length int, body string) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", webhookPath, length, body); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn) (*http.Response, string) {
	t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

// Clients that send nothing more must not keep the API server waiting.
func TestWebhookSlowClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTestWebhook(noEntries)
		listener := serveOnPipes(t, w)
		body := string(reviewBody(t, reviewRequest(bucketsGVR, admissionv1.Create, nil, guardedShapes[0].object("gcp", nil))))
		large := body + strings.Repeat(" ", largeReviewBytes)
		ask := func(body string) (*http.Response, string) {
			c := listener.dial()
			defer func() { _ = c.Close() }()
			send(t, c, len(body), "")
			// The answer may come before the body is read.
			go func() { _, _ = io.WriteString(c, body) }()
			return receive(t, c)
		}

		var stalled []net.Conn
		for range maxLargeBytes / maxReviewBytes {
			c := listener.dial()
			send(t, c, maxReviewBytes, "{")
			stalled = append(stalled, c)
		}
		const small = maxSmallBytes/largeReviewBytes - 1
		for range small {
			c := listener.dial()
			send(t, c, largeReviewBytes, "{")
			stalled = append(stalled, c)
		}
		synctest.Wait()
		if got := held(w); got != maxLargeBytes+small*largeReviewBytes {
			t.Errorf("%d bytes are held", got)
		}
		if response, text := ask(large); response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") != "1" || !strings.Contains(text, "try again") {
			t.Errorf("a large one: %d %s", response.StatusCode, text)
		}
		if response, text := ask(body); response.StatusCode != http.StatusOK || !strings.Contains(text, `"allowed":true`) {
			t.Errorf("a small one: %d %s", response.StatusCode, text)
		}
		if got := held(w); got != maxLargeBytes+small*largeReviewBytes {
			t.Errorf("%d bytes are held after a refusal", got)
		}
		for range 2 {
			c := listener.dial()
			send(t, c, largeReviewBytes-1, "{")
			synctest.Wait()
			stalled = append(stalled, c)
		}
		// Not the stalled ones that had a place, but the last, which had none.
		if response, _ := receive(t, stalled[len(stalled)-1]); response.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("beyond what small ones may have: %d", response.StatusCode)
		}
		stalled = stalled[:len(stalled)-1]
		start := time.Now()
		for _, c := range stalled {
			response, text := receive(t, c)
			if response.StatusCode != http.StatusBadRequest || !strings.HasPrefix(text, "reading the review: ") {
				t.Errorf("stalled: %d %s", response.StatusCode, text)
			}
			_ = c.Close()
		}
		if waited := time.Since(start); waited != readTimeout {
			t.Errorf("stalled clients are kept for %s", waited)
		}
		synctest.Wait()
		if got := held(w); got != 0 {
			t.Errorf("%d bytes are held after all have gone", got)
		}
		if response, text := ask(large); response.StatusCode != http.StatusOK {
			t.Errorf("a large one then: %d %s", response.StatusCode, text)
		}
	})
}

// A body that comes slowly leaves its review all its time.
func TestWebhookSlowBodyThenSlowReview(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTestWebhook(listStub{list: func(ctx context.Context, _ metav1.ListOptions) (*unstructured.UnstructuredList, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(reviewTimeout - time.Second):
				return &unstructured.UnstructuredList{}, nil
			}
		}})
		c := serveOnPipes(t, w).dial()
		defer func() { _ = c.Close() }()
		body := string(reviewBody(t, reviewRequest(bucketsGVR, admissionv1.Delete, testObject(kindBackupBucket, "b", "secret"), nil)))
		send(t, c, len(body), body[:10])
		time.Sleep(readTimeout - time.Second)
		if _, err := io.WriteString(c, body[10:]); err != nil {
			t.Fatal(err)
		}
		if response, text := receive(t, c); response.StatusCode != http.StatusOK || !strings.Contains(text, `"allowed":true`) {
			t.Errorf("%d %s", response.StatusCode, text)
		}
		// The connection can be used again, however long after.
		time.Sleep(2 * readTimeout)
		send(t, c, len(body), body)
		if response, text := receive(t, c); response.StatusCode != http.StatusOK || !strings.Contains(text, `"allowed":true`) {
			t.Errorf("the second: %d %s", response.StatusCode, text)
		}
	})
}

// A client that goes away leaves nothing behind.
func TestWebhookClientGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looking, ended := make(chan struct{}), make(chan time.Time, 1)
		w := newTestWebhook(listStub{list: func(ctx context.Context, _ metav1.ListOptions) (*unstructured.UnstructuredList, error) {
			close(looking)
			<-ctx.Done()
			ended <- time.Now()
			return nil, ctx.Err()
		}})
		listener := serveOnPipes(t, w)
		c := listener.dial()
		send(t, c, maxReviewBytes, "{")
		synctest.Wait()
		if got := held(w); got != maxReviewBytes {
			t.Errorf("%d bytes are held", got)
		}
		_ = c.Close()
		synctest.Wait()
		if got := held(w); got != 0 {
			t.Errorf("%d bytes are held of a client that is gone", got)
		}

		c = listener.dial()
		body := string(reviewBody(t, reviewRequest(bucketsGVR, admissionv1.Delete, testObject(kindBackupBucket, "b", "secret"), nil)))
		send(t, c, len(body), body)
		<-looking
		start := time.Now()
		_ = c.Close()
		if waited := (<-ended).Sub(start); waited != 0 {
			t.Errorf("the lookup went on for %s", waited)
		}
	})
}

// testCertificate is a self-signed certificate.
type testCertificate struct{ tls.Certificate }

func newTestCertificate(t *testing.T) *testCertificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"bucketwarden.own.svc"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCertificate{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}}
}

func (c *testCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &c.Certificate, nil
}
func (c *testCertificate) ready() error { return nil }

func (*testCertificate) run(context.Context) {}

// TestWebhookTLS talks to the daemon as the API server does.
func TestWebhookTLS(t *testing.T) {
	core := fake.NewClientset()
	certificate := newTestCertificate(t)
	d := &daemon{config: mainTestConfig(t, "--controllers=false", "--webhook-address=127.0.0.1:0"), core: core, leases: core, metrics: newMetrics(),
		broadcaster: events.NewBroadcaster(&events.EventSinkImpl{Interface: core.EventsV1()}), webhook: newTestWebhook(noEntries), certificate: certificate}
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
	ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	serving := regexp.MustCompile(`Serving webhook address="([^"]+)"`)
	var address string
	informersTestAwait(t, "the webhook is served", func() bool {
		if match := serving.FindStringSubmatch(logger.GetSink().(ktesting.Underlier).GetBuffer().String()); match != nil {
			address = match[1]
		}
		return address != ""
	})

	roots := x509.NewCertPool()
	roots.AddCert(certificate.Leaf)
	body := reviewBody(t, reviewRequest(bucketsGVR, admissionv1.Update, guardedShapes[0].object("aws", guardedConfig("aws", locked4d)), guardedShapes[0].object("aws", guardedConfig("aws", unlocked4d))))
	for version, want := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		for _, http2 := range []bool{false, true} {
			name := fmt.Sprintf("%s, asked for HTTP/2 %t", tls.VersionName(version), http2)
			transport := &http.Transport{ForceAttemptHTTP2: http2, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "bucketwarden.own.svc", MinVersion: version, MaxVersion: version}}
			response, err := (&http.Client{Transport: transport}).Post("https://"+address+webhookPath+"?timeout=10s", "application/json", bytes.NewReader(body))
			if !want {
				if err == nil {
					_ = response.Body.Close()
					t.Errorf("%s is served", name)
				} else if !strings.Contains(err.Error(), "protocol version") {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			text, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			var answer admissionv1.AdmissionReview
			if err = errors.Join(err, json.Unmarshal(text, &answer)); err != nil || response.StatusCode != http.StatusOK || response.ProtoMajor != 1 || answer.Response.UID != "uid-1" || answer.Response.Allowed {
				t.Errorf("%s: %v, %s %s: %s", name, err, response.Proto, response.Status, text)
			}
			response, err = (&http.Client{Transport: transport}).Post("https://"+address+"/", "application/json", bytes.NewReader(body))
			if err != nil || response.StatusCode != http.StatusNotFound {
				t.Errorf("%s, another path: %v, %v", name, response, err)
			}
			if err == nil {
				_ = response.Body.Close()
			}
			transport.CloseIdleConnections()
		}
	}
	// Plain HTTP is none of its languages.
	if response, err := http.Post("http://"+address+webhookPath, "application/json", bytes.NewReader(body)); err == nil {
		_ = response.Body.Close()
		if response.StatusCode != http.StatusBadRequest {
			t.Errorf("plain HTTP: %s", response.Status)
		}
	}
}

// fuzzReview is what FuzzReview's own judge reads of a review, all of it as plain JSON.
type fuzzReview struct{ request, old, new map[string]any }

// fuzzUpdate reads an update of a BackupBucket of type aws or azure, without a class.
func fuzzUpdate(body []byte) (fuzzReview, bool) {
	var review map[string]any
	if json.Unmarshal(body, &review) != nil {
		return fuzzReview{}, false
	}
	r := fuzzReview{}
	r.request, _ = review["request"].(map[string]any)
	r.old, _ = r.request["oldObject"].(map[string]any)
	r.new, _ = r.request["object"].(map[string]any)
	want := map[string]any{"group": "extensions.gardener.cloud", "version": "v1alpha1", "resource": "backupbuckets"}
	spec, _ := r.old["spec"].(map[string]any)
	_, classed := spec["class"]
	return r, r.request["operation"] == "UPDATE" && reflect.DeepEqual(r.request["resource"], want) && r.new != nil && !classed && (spec["type"] == "aws" || spec["type"] == "azure")
}

// fuzzPolicy reads days and lock of an immutability with no more than its usual fields; it
// does not know those that are not all right.
func fuzzPolicy(value any, s3 bool) (days int64, locked, known bool) {
	if value == nil {
		return 0, false, true
	}
	fields, ok := value.(map[string]any)
	if !ok || fields["retentionType"] != "bucket" {
		return 0, false, false
	}
	for key, value := range fields {
		switch {
		case key == "retentionType", key == "retentionPeriod":
		case key == "locked":
			if locked, ok = value.(bool); !ok {
				return 0, false, false
			}
		default:
			mode, lock := fields["mode"], fields["locked"]
			if key != "mode" || !s3 || mode != "compliance" && mode != "governance" || lock != nil && lock != (mode == "compliance") {
				return 0, false, false
			}
		}
	}
	period, _ := fields["retentionPeriod"].(string)
	duration, err := time.ParseDuration(period)
	if hours := duration.Hours(); err == nil && duration >= 24*time.Hour && duration%(24*time.Hour) == 0 && hours <= 36500*24 {
		return int64(hours) / 24, locked || fields["mode"] == "compliance", true
	}
	return 0, false, false
}

// fuzzConfig is fuzzPolicy of the providerConfig in a spec.
func fuzzConfig(spec map[string]any) (days int64, locked, known bool) {
	provider, _ := spec["type"].(string)
	if spec["providerConfig"] == nil {
		return 0, false, true
	}
	config, ok := spec["providerConfig"].(map[string]any)
	if !ok || config["apiVersion"] != provider+".provider.extensions.gardener.cloud/v1alpha1" || config["kind"] != "BackupBucketConfig" {
		return 0, false, false
	}
	for key := range config {
		if key != "apiVersion" && key != "kind" && key != "immutability" {
			return 0, false, false
		}
	}
	return fuzzPolicy(config["immutability"], provider == "aws")
}

// weakens says that an update certainly weakens a lock.
func (r fuzzReview) weakens() bool {
	old, _ := r.old["spec"].(map[string]any)
	new, _ := r.new["spec"].(map[string]any)
	var floor int64
	if days, locked, known := fuzzConfig(old); known && locked {
		floor = days
	}
	status, _ := r.old["status"].(map[string]any)
	record, _ := status["providerStatus"].(map[string]any)
	delete(record, "origin")
	if record["kind"] == "BackupBucketStatus" && len(record) == 2 && record["immutability"] != nil {
		if days, locked, known := fuzzPolicy(record["immutability"], true); known && locked {
			floor = max(floor, days)
		}
	}
	if floor == 0 {
		return false
	}
	if new["type"] != old["type"] {
		return true
	}
	days, locked, known := fuzzConfig(new)
	return known && (days < floor || !locked) && !reflect.DeepEqual(old["providerConfig"], new["providerConfig"])
}

// reviewSeeds are those of FuzzReview.
func reviewSeeds(t testing.TB) []string {
	var seeds []string
	add := func(body []byte) { seeds = append(seeds, string(body)) }
	for i, shape := range guardedShapes {
		for _, provider := range []string{"aws", "azure"} {
			tests := guardedUpdates
			if i > 0 {
				// Each seed costs time before fuzzing begins.
				tests = tests[:5]
			}
			for _, test := range tests {
				old, new := shape.object(provider, guardedConfig(provider, test.old), withRecord(test.recorded)), shape.object(provider, guardedConfig(provider, test.new))
				// The judge of this test does not read what a record has besides.
				unstructured.RemoveNestedField(old.Object, "status", "providerStatus", "apiVersion")
				request := reviewRequest(shape.gvr, admissionv1.Update, old, new)
				body := reviewBody(t, request)
				if r, ok := fuzzUpdate(body); ok && r.weakens() != (test.denial != "") && !reflect.DeepEqual(old.Object["spec"], new.Object["spec"]) {
					t.Fatalf("the judge of this test says %t of %s", r.weakens(), body)
				}
				add(body)
			}
			add(reviewBody(t, reviewRequest(shape.gvr, admissionv1.Create, nil, shape.object(provider, guardedConfig(provider, locked4d)))))
			add(reviewBody(t, reviewRequest(shape.gvr, admissionv1.Delete, shape.object(provider, guardedConfig(provider, locked4d)), nil)))
		}
	}
	entry := testObject(kindBackupEntry, "e", "secret", set("b", "spec", "bucketName"))
	add(reviewBody(t, reviewRequest(entriesGVR, admissionv1.Update, entry, testObject(kindBackupEntry, "e", "secret", set("c", "spec", "bucketName")))))
	add(reviewBody(t, reviewRequest(bucketsGVR, admissionv1.Connect, `{"spec":5}`, `null`)))
	for _, seed := range []string{"", "{}", "null", "[]", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"\u0000"}}`,
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"UPDATE","resource":{"group":"extensions.gardener.cloud","version":"v1alpha1","resource":"backupbuckets"},"object":{"spec":5},"oldObject":[]}}`} {
		add([]byte(seed))
	}
	return seeds
}

// checkReview is what must hold for every body.
func checkReview(t testing.TB, w *webhook, body []byte) {
	recorder := httptest.NewRecorder()
	w.ServeHTTP(recorder, postedReview(body))
	if held := held(w); held != 0 {
		t.Fatalf("%d bytes are held", held)
	}
	if recorder.Code != http.StatusOK {
		// A panic would be a 500.
		if recorder.Code != http.StatusBadRequest {
			t.Errorf("status %d", recorder.Code)
		}
		return
	}
	var sent admissionv1.AdmissionReview
	// With names in other letters, encoding/json reads something else.
	if json.Unmarshal(body, &sent) != nil || sent.Request == nil {
		return
	}
	var answer struct{ Response struct{ UID types.UID } }
	if err := json.Unmarshal(recorder.Body.Bytes(), &answer); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(bytes.ToLower(body), []byte(`\u`)) && bytes.Count(bytes.ToLower(body), []byte(`"uid"`)) == 1 && answer.Response.UID != sent.Request.UID {
		t.Errorf("answers %q with %q", sent.Request.UID, answer.Response.UID)
	}
	response := checkedAnswer(t, recorder, answer.Response.UID)
	if r, ok := fuzzUpdate(body); ok && response.Allowed && r.weakens() {
		t.Errorf("allowed: %s", body)
	}
}
