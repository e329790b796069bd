// The validating admission webhook: the rules of the reconciler, applied before an object is stored. It refuses what would
// weaken a lock and a deletion while the bucket is in use, and warns of what is legal but dangerous. It changes nothing
// and remembers nothing. Whoever can reach it may send reviews, so their size, number and time are bounded.

package main

import (
	"bytes"
	"context"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/dynamic"
	"k8s.io/klog/v2"
	"sigs.k8s.io/json"
)

const (
	// webhookPath is where the API server sends its reviews.
	webhookPath = "/validate"
	// weakeningPath is where it sends those of its MutatingWebhookConfiguration. It asks that one before its
	// ValidatingAdmissionPolicies, which end a request that they deny, so that only here every weakening is seen: by whom, of
	// what. Nothing is mutated, and only weakenings are denied; all else comes again to webhookPath, and counts there.
	weakeningPath = "/weakening"

	// maxReviewBytes: etcd takes at most 1.5 MiB for an object, and a review has the old and
	// the new one.
	maxReviewBytes = 7 << 19
	// Anybody in the cluster may send reviews, and decoded they may take thirty times the
	// memory. So all that are being worked on share these: the large ones, which hardly
	// exist, one budget, and the others one that they cannot take away.
	largeReviewBytes = 64 << 10
	maxLargeBytes    = maxReviewBytes
	maxSmallBytes    = 2 << 20

	// maxWarningBytes: an API server cuts the warnings of a request to 256 characters each
	// once they are too many (kubernetes/kubernetes
	// staging/src/k8s.io/apiserver/pkg/endpoints/filters/warning.go).
	maxWarningBytes = 256

	// readTimeout is how long a review may take to come in, as long as the API server waits.
	readTimeout = 10 * time.Second
	// reviewTimeout is shorter than that of the API server, which then hears the reason.
	reviewTimeout = 5 * time.Second
)

// Outcomes of a review, as metric labels.
const (
	outcomeAllowed = "allowed"
	outcomeDenied  = "denied"
	// outcomeRefused: a request that is not understood, so that it is not allowed.
	outcomeRefused = "refused"
)

// Reasons of a denial, as metric labels, beside those of a Refusal.
const (
	reasonInvalid = "invalid"
	reasonInUse   = "in-use"
	// reasonLookup: what the answer depends on could not be read.
	reasonLookup = "lookup"
)

// weakeningReasons are those that the ValidatingAdmissionPolicy denies for, too.
var weakeningReasons = []string{reasonDisable, reasonUnlock, reasonShorten}

// warnMoved is a reason of a warning, beside those of policyWarnings.
const warnMoved = "moved"

// gardenGV is Gardener's API in the garden cluster.
var gardenGV = schema.GroupVersion{Group: "core.gardener.cloud", Version: "v1beta1"}

// webhook is a validating admission webhook. It applies the rules of the reconciler
// before an object is stored; it changes nothing and keeps nothing, so that a dry run
// needs no treatment of its own. It is safe for concurrent use.
type webhook struct {
	*scope
	// entries reads BackupEntries from the API server.
	entries dynamic.ResourceInterface
	metrics *metrics
	// evidence is where denied weakenings are noted; nil without --evidence.
	evidence *evidenceLog
	// buckets reads BackupBuckets from the API server.
	buckets dynamic.ResourceInterface
	// small and large are how many bytes all requests being worked on have.
	small, large budget
	// lookups lets one lookup of BackupEntries run at a time, which is enough for deletions
	// and no more than that for anybody who makes reviews up.
	lookups chan struct{}
}

// budget is a number of bytes that requests share.
type budget struct{ used atomic.Int64 }

// take says whether there are that many left below a limit; if so they have to be given back.
func (b *budget) take(size, limit int64) bool {
	if b.used.Add(size) <= limit {
		return true
	}
	b.used.Add(-size)
	return false
}

func (b *budget) giveBack(size int64) { b.used.Add(-size) }

// verdict is the answer to a review. The zero value allows.
type verdict struct {
	// code is the HTTP status of a denial, 0 for none, with its reason and message.
	code            int32
	reason, message string
	// warnings by reason.
	warnings map[string]string
}

func deny(code int32, reason, format string, args ...any) verdict {
	return verdict{code: code, reason: reason, message: fmt.Sprintf(format, args...)}
}

// ServeHTTP answers an AdmissionReview of admission.k8s.io/v1. What is none gets an HTTP
// error, which for the API server is a webhook that failed.
func (w *webhook) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			w.metrics.panics.WithLabelValues(resourceReviews).Inc()
			klog.FromContext(r.Context()).Error(fmt.Errorf("panic: %v", p), "Review panicked", "stack", string(debug.Stack()))
			http.Error(rw, "the review panicked", http.StatusInternalServerError)
		}
	}()
	shared, size, limit := w.share(r)
	full := !shared.take(size, limit)
	if !full {
		defer shared.giveBack(size)
	}
	review, code, err := w.read(rw, r, full)
	if err != nil {
		w.metrics.admissionReviews.WithLabelValues(labelOther, labelOther, outcomeRefused).Inc()
		if code == http.StatusServiceUnavailable {
			rw.Header().Set("Retry-After", "1")
			// Else the server reads the body that there is no place for.
			rw.Header().Set("Connection", "close")
		}
		http.Error(rw, err.Error(), code)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), reviewTimeout)
	defer cancel()
	response := admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: w.review(ctx, review.Request, r.URL.Path == weakeningPath)}
	data, err := stdjson.Marshal(response)
	if err != nil {
		http.Error(rw, fmt.Sprintf("encoding the answer: %v", err), http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	if _, err := rw.Write(data); err != nil {
		klog.FromContext(r.Context()).V(2).Info("Could not send the answer to a review", "err", err)
	}
}

// share is what a request takes of which budget.
func (w *webhook) share(r *http.Request) (shared *budget, size, limit int64) {
	switch size := r.ContentLength; {
	case size < 0:
		return &w.large, maxReviewBytes, maxLargeBytes
	case size > maxReviewBytes:
		// It is not read.
		return &w.small, 0, maxSmallBytes
	case size > largeReviewBytes:
		return &w.large, size, maxLargeBytes
	default:
		return &w.small, size, maxSmallBytes
	}
}

// read returns the review that a request holds, or an HTTP status and what is wrong; full
// says that there is no place for it.
func (w *webhook) read(rw http.ResponseWriter, r *http.Request, full bool) (*admissionv1.AdmissionReview, int, error) {
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", http.MethodPost)
		return nil, http.StatusMethodNotAllowed, errors.New("only POST is understood here")
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return nil, http.StatusUnsupportedMediaType, errors.New("only application/json is understood here")
	}
	tooLarge := fmt.Errorf("the review is larger than %d bytes", maxReviewBytes)
	if r.ContentLength > maxReviewBytes {
		return nil, http.StatusRequestEntityTooLarge, tooLarge
	}
	if full {
		return nil, http.StatusServiceUnavailable, errors.New("too many reviews at the same time, try again")
	}
	// It ends with the body, so that the review has all its time.
	_ = http.NewResponseController(rw).SetReadDeadline(time.Now().Add(readTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxReviewBytes))
	if tooMany := (*http.MaxBytesError)(nil); errors.As(err, &tooMany) {
		return nil, http.StatusRequestEntityTooLarge, tooLarge
	}
	if err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("reading the review: %w", err)
	}
	review := &admissionv1.AdmissionReview{}
	if err := json.UnmarshalCaseSensitivePreserveInts(body, review); err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("decoding the review: %w", err)
	}
	if review.APIVersion != admissionv1.SchemeGroupVersion.String() || review.Kind != "AdmissionReview" {
		return nil, http.StatusBadRequest, fmt.Errorf("this is no AdmissionReview of %s", admissionv1.SchemeGroupVersion)
	}
	if review.Request == nil || review.Request.UID == "" {
		return nil, http.StatusBadRequest, errors.New("the AdmissionReview has no request with a uid")
	}
	return review, 0, nil
}

// review answers one request; with weakenings it leaves all else to a later one.
func (w *webhook) review(ctx context.Context, request *admissionv1.AdmissionRequest, weakenings bool) *admissionv1.AdmissionResponse {
	start := time.Now()
	resource := schema.GroupResource{Group: request.Resource.Group, Resource: request.Resource.Resource}.String()
	v, understood := w.judge(ctx, request)
	if weakenings && understood && !slices.Contains(weakeningReasons, v.reason) {
		return &admissionv1.AdmissionResponse{UID: request.UID, Allowed: true}
	}
	operation, outcome := string(request.Operation), outcomeAllowed
	switch {
	case !understood:
		// What nobody knows must not become label values.
		resource, operation, outcome = labelOther, labelOther, outcomeRefused
	case v.code != 0:
		outcome = outcomeDenied
		w.metrics.admissionDenials.WithLabelValues(resource, v.reason).Inc()
	}
	response := &admissionv1.AdmissionResponse{UID: request.UID, Allowed: v.code == 0}
	if !response.Allowed {
		response.Result = &metav1.Status{Status: metav1.StatusFailure, Code: v.code, Reason: statusReasons[v.code],
			Message: shortened(v.message)}
		dryRun := request.DryRun != nil && *request.DryRun
		klog.FromContext(ctx).Info("Denied", "resource", resource, "name", shortened(request.Name),
			"operation", shortened(string(request.Operation)), "user", shortened(request.UserInfo.Username),
			"reason", v.reason, "dryRun", dryRun, "message", response.Result.Message)
		if !dryRun && request.Resource.Resource == resourceBackupBuckets && slices.Contains(weakeningReasons, v.reason) {
			w.evidence.note(request.Name, evidenceDenial, "%s", response.Result.Message)
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(v.warnings)) {
		w.metrics.admissionWarnings.WithLabelValues(resource, reason).Inc()
		response.Warnings = append(response.Warnings, cut(v.warnings[reason], maxWarningBytes))
	}
	w.metrics.admissionReviews.WithLabelValues(resource, operation, outcome).Inc()
	w.metrics.admissionDuration.WithLabelValues(resource).Observe(time.Since(start).Seconds())
	return response
}

var statusReasons = map[int32]metav1.StatusReason{
	http.StatusBadRequest:          metav1.StatusReasonBadRequest,
	http.StatusForbidden:           metav1.StatusReasonForbidden,
	http.StatusConflict:            metav1.StatusReasonConflict,
	http.StatusUnprocessableEntity: metav1.StatusReasonInvalid,
	http.StatusInternalServerError: metav1.StatusReasonInternalError,
}

// judge decides on a request; understood is false, with a denial, if it is none of those
// that this webhook is made for.
func (w *webhook) judge(ctx context.Context, request *admissionv1.AdmissionRequest) (v verdict, understood bool) {
	misunderstood := func(format string, args ...any) (verdict, bool) {
		return deny(http.StatusBadRequest, reasonInvalid, "bucketwarden cannot judge the %q of %q of %q: %s",
			request.Operation, request.Resource.Resource,
			schema.GroupVersion{Group: request.Resource.Group, Version: request.Resource.Version}.String(), fmt.Sprintf(format, args...)), false
	}
	gvr := schema.GroupVersionResource(request.Resource)
	var kind string
	var decode func(*unstructured.Unstructured) guarded
	switch gvr {
	case bucketsGVR:
		kind, decode = kindBackupBucket, w.guardedBucket
	case gardenGV.WithResource(resourceBackupBuckets):
		kind, decode = kindBackupBucket, w.guardedGardenBucket
	case gardenGV.WithResource(resourceSeeds):
		kind, decode = "Seed", w.guardedSeed
	case entriesGVR:
		kind = kindBackupEntry
	default:
		return misunderstood("it is not made for them; correct the rules of the ValidatingWebhookConfiguration")
	}

	var old, new *unstructured.Unstructured
	var err error
	switch request.Operation {
	case admissionv1.Create, admissionv1.Update:
		if new, err = decodeReviewed(request.Object.Raw, gvr.GroupVersion(), kind); err != nil {
			return misunderstood("object: %v", err)
		}
	case admissionv1.Delete:
	default:
		return misunderstood("it knows CREATE, UPDATE and DELETE only")
	}
	if request.Operation != admissionv1.Create {
		if old, err = decodeReviewed(request.OldObject.Raw, gvr.GroupVersion(), kind); err != nil {
			return misunderstood("oldObject: %v", err)
		}
	}

	switch {
	case gvr == entriesGVR && old != nil && new != nil:
		return w.judgeEntry(decodeEntry(old), decodeEntry(new)), true
	case gvr == bucketsGVR && new == nil:
		return w.judgeDeletion(ctx, decodeBucket(old)), true
	case gvr == entriesGVR, new == nil:
		return verdict{}, true
	case old == nil:
		return judgePolicy(nil, decode(new)), true
	default:
		before := decode(old)
		return judgePolicy(&before, decode(new)), true
	}
}

// decodeReviewed decodes an object, which must be of the kind.
func decodeReviewed(raw []byte, gv schema.GroupVersion, kind string) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	if err := json.UnmarshalCaseSensitivePreserveInts(raw, &u.Object); err != nil {
		return nil, fmt.Errorf("decoding it: %w", err)
	}
	if got := u.GroupVersionKind(); got != gv.WithKind(kind) {
		return nil, fmt.Errorf("it is a %q and no %s", got.String(), kind)
	}
	return u, nil
}

// guarded is what of an object says how a bucket is to be protected.
type guarded struct {
	// path is where the object has its providerConfig, typePath its provider type.
	path, typePath *field.Path
	provider       string
	class          string
	region         string
	config         []byte
	// recorded is the policy that the daemon has set, none if that is unknown.
	recorded Policy
	// served says that the daemon is responsible, for a bucket on store.
	served bool
	store  provider
	// err says what has a shape that the object's schema should forbid.
	err error
}

func (w *webhook) guardedBucket(u *unstructured.Unstructured) guarded {
	b := decodeBucket(u)
	return guarded{
		path: providerConfigPath, typePath: field.NewPath("spec", "type"),
		provider: b.Type, class: b.Class, region: b.Region, config: b.ProviderConfig,
		recorded: readRecord(b.ProviderStatus).Policy, served: w.responsible(&b.object), store: w.providers[b.Type], err: b.decodeErr,
	}
}

// guardedGarden reads the resources of the garden cluster
// (gardener/gardener pkg/apis/core/v1beta1/types_{seed,backupbucket}.go); they have no class.
func (w *webhook) guardedGarden(u *unstructured.Unstructured, path, typePath *field.Path, provider, region, config []string) guarded {
	d := &decoder{content: u.Object}
	g := guarded{path: path, typePath: typePath, provider: d.str(provider...), region: d.str(region...), config: d.raw(config...)}
	// gardenlet copies it from the BackupBucket on the seed; a Seed has none.
	g.recorded = readRecord(d.raw("status", "providerStatus")).Policy
	g.store, g.served = w.providers[g.provider]
	g.err = d.err
	return g
}

func (w *webhook) guardedGardenBucket(u *unstructured.Unstructured) guarded {
	return w.guardedGarden(u, providerConfigPath, field.NewPath("spec", "provider", "type"),
		[]string{"spec", "provider", "type"}, []string{"spec", "provider", "region"}, []string{"spec", "providerConfig"})
}

func (w *webhook) guardedSeed(u *unstructured.Unstructured) guarded {
	region := []string{"spec", "backup", "region"}
	if d := (&decoder{content: u.Object}); d.str(region...) == "" {
		// gardener/gardener pkg/gardenlet/controller/seed does the same.
		region = []string{"spec", "provider", "region"}
	}
	return w.guardedGarden(u, field.NewPath("spec", "backup", "providerConfig"), field.NewPath("spec", "backup", "provider"),
		[]string{"spec", "backup", "provider"}, region, []string{"spec", "backup", "providerConfig"})
}

// judgePolicy decides whether an object may be stored; old is nil when it is created.
//
// What the object asked for so far counts as much as what the daemon has recorded: it may
// be locked in the cloud already. An update that does not touch any of it is no business of
// ours, or what became wrong otherwise could not even lose its finalizer.
func judgePolicy(old *guarded, new guarded) verdict {
	floor, unchanged := Policy{}, false
	if old != nil {
		// A config that cannot be read was never applied.
		before := Policy{}
		if old.store != nil {
			if parsed, err := old.store.parseConfig(old.path, old.provider, old.config); err == nil {
				before = parsed.Policy
			}
		}
		floor = lockedFloor(old.recorded, before)
		if leaves := old.served && (!new.served || new.provider != old.provider); leaves && floor.Locked {
			path, have, asked := new.typePath, old.provider, new.provider
			if have == asked {
				path, have, asked = field.NewPath("spec", "class"), old.class, new.class
			}
			return deny(http.StatusForbidden, reasonDisable, "%s: the bucket has a %s, which must not be left to somebody "+
				"else: it is %q and cannot become %q", path, floor, have, asked)
		}
		unchanged = old.served && old.provider == new.provider && bytes.Equal(old.config, new.config)
	}
	if !new.served || unchanged && old.region == new.region {
		return verdict{}
	}
	if new.err != nil {
		return deny(http.StatusUnprocessableEntity, reasonInvalid, "the object cannot be read: %v", new.err)
	}
	v := verdict{warnings: map[string]string{}}
	if old != nil && old.served && old.region != new.region {
		v.warnings[warnMoved] = fmt.Sprintf("the bucket in the old region is not looked after any more: the region "+
			"changes from %q to %q", old.region, new.region)
	}
	if unchanged {
		return v
	}
	config, err := new.store.parseConfig(new.path, new.provider, new.config)
	if err != nil {
		return deny(http.StatusUnprocessableEntity, reasonInvalid, "%v", err)
	}
	if floor.Locked && config.Policy.weakerThan(floor) {
		refusal := refuse(new.path, config.Policy, floor)
		return deny(http.StatusForbidden, refusal.Reason, "%s: %s", new.path.Child("immutability"), refusal.Message)
	}
	maps.Copy(v.warnings, policyWarnings(new.path, config.Policy, floor))
	maps.Copy(v.warnings, new.store.warnings(new.path, config.Policy, floor))
	return v
}

// judgeEntry warns when an entry is moved: Gardener allows it
// (gardener/gardener pkg/api/extensions/validation/backupentry.go).
func (w *webhook) judgeEntry(old, new *backupEntry) verdict {
	if !w.responsible(&old.object) {
		return verdict{}
	}
	warnings := map[string]string{}
	if old.BucketName != new.BucketName || old.Region != new.Region {
		warnings[warnMoved] = fmt.Sprintf("the entry's backups in the old bucket are orphaned, nobody will delete them: "+
			"it moves from bucket %q in %q to %q in %q",
			old.BucketName, old.Region, new.BucketName, new.Region)
	}
	return verdict{warnings: warnings}
}

// judgeDeletion keeps a bucket that is in use. The daemon would wait, but the deletion of
// an object cannot be taken back.
func (w *webhook) judgeDeletion(ctx context.Context, b *backupBucket) verdict {
	if !w.responsible(&b.object) || b.DeletionTimestamp != nil {
		return verdict{}
	}
	entry, err := w.user(ctx, b)
	switch {
	case err != nil:
		klog.FromContext(ctx).Error(err, "Could not judge the deletion of a BackupBucket", "name", shortened(b.Name))
		return deny(http.StatusInternalServerError, reasonLookup, "whether a BackupEntry still refers to BackupBucket %s "+
			"could not be found out, try again: %v", b.Name, err)
	case entry != "":
		return deny(http.StatusConflict, reasonInUse, "BackupBucket %s cannot be deleted while BackupEntry %s refers to "+
			"it: delete that first", b.Name, entry)
	default:
		return verdict{}
	}
}

// user is the BackupEntry that refers to a bucket, empty if there is none. Only for a bucket
// that exists are all BackupEntries read.
func (w *webhook) user(ctx context.Context, b *backupBucket) (string, error) {
	select {
	case w.lookups <- struct{}{}:
		defer func() { <-w.lookups }()
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for other lookups: %w", ctx.Err())
	}
	live, err := w.buckets.Get(ctx, b.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && live.GetUID() != b.UID {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the BackupBucket: %w", err)
	}
	return referringEntry(ctx, w.entries, b.Name)
}
