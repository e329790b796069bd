// The two resources as we read them, and the events that count. Informers keep only the fields of backupBucket and
// backupEntry. Decoding never fails: what has a wrong shape is remembered in decodeErr and told by a pass. scope says
// which objects are ours and which of their events count, by the rules of Gardener's own extensions; an event that counts
// becomes a key in the queue of a controller. What an informer holds is shared and never changed.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"time"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	resourceBackupBuckets = "backupbuckets"
	resourceBackupEntries = "backupentries"
	// resourceSweeps names the queue of BackupBuckets to sweep, resourceStaleness that of BackupBuckets whose state may be too old.
	resourceSweeps    = "sweeps"
	resourceStaleness = "staleness"
	// resourceChecks names the queue of BackupEntries whose backups are looked at.
	resourceChecks = "checks"
	// resourceProbes names the queue of BackupBuckets whose lock is attacked.
	resourceProbes = "probes"
	// resourceEvidence names the queue of BackupBuckets whose evidence is to be written.
	resourceEvidence = "evidence"
	// resourceCertificates names the queue of the webhook's certificates, resourceReviews
	// its reviews.
	resourceCertificates = "certificates"
	resourceReviews      = "reviews"
	resourceSeeds        = "seeds"
	// labelOther stands for values that must not become labels.
	labelOther       = "other"
	kindBackupBucket = "BackupBucket"
	kindBackupEntry  = "BackupEntry"

	// defaultClass is the extension class of an object without one
	// (gardener/gardener pkg/api/extensions/v1alpha1/helper/extension.go).
	defaultClass = "shoot"

	// Annotations and operations of gardener/gardener
	// pkg/apis/core/v1beta1/constants/types_constants.go.
	annotationOperation = "gardener.cloud/operation"
	annotationTimestamp = "gardener.cloud/timestamp"
	annotationShootUID  = "shoot.gardener.cloud/uid"
	// annotationSecret names the secrets that we may hold for an object, as namespace/name, comma separated.
	annotationSecret = "bucketwarden/secret"
	// annotationExcluded announces which revisions of a BackupEntry are excluded from a restore, see revisionSpans.
	annotationExcluded = "bucketwarden/excluded-revisions"
	// annotationGeneratedSecretNamespace says where a BackupBucket's generated secret goes.
	annotationGeneratedSecretNamespace = "backupbucket.extensions.gardener.cloud/generated-secret-namespace"
	// annotationRotateSuffix ends the annotation that asks for new keys of a bucket's account, after the name of the provider.
	annotationRotateSuffix = providerGroupSuffix + "/rotate"
	operationReconcile     = "reconcile"
	operationMigrate       = "migrate"
	operationRestore       = "restore"
	operationWaitForState  = "wait-for-state"
)

var (
	extensionsGV = schema.GroupVersion{Group: "extensions.gardener.cloud", Version: "v1alpha1"}
	bucketsGVR   = extensionsGV.WithResource(resourceBackupBuckets)
	entriesGVR   = extensionsGV.WithResource(resourceBackupEntries)
	// clustersGVR are what gardenlet writes of each cluster on the seed, under the name of its namespace.
	clustersGVR  = extensionsGV.WithResource("clusters")
	secretsGVR   = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	namespaceGVR = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
)

// object is what this daemon reads of a BackupBucket or a BackupEntry. The informers
// keep only this: a tenth of the memory of the unstructured object. It is shared and
// never changed.
type object struct {
	metav1.TypeMeta
	metav1.ObjectMeta

	Type      string
	Class     string
	Region    string
	SecretRef types.NamespacedName

	LastOperation      *lastOperation
	LastError          *lastError
	ObservedGeneration int64

	// statusHash stands for the whole status, the parts not read here included.
	statusHash uint64
	// statusWritten says that the pass at work has written the status, so that the one
	// read here is older. Only a pass sets it, on a copy of its own.
	statusWritten bool
	// decodeErr says what in the object has a shape that its CRD should forbid.
	decodeErr error
}

// backupBucket is a BackupBucket of extensions.gardener.cloud/v1alpha1.
type backupBucket struct {
	object
	ProviderConfig []byte
	ProviderStatus []byte
	Conditions     []condition
	// GeneratedSecretRef is status.generatedSecretRef; empty if there is none.
	GeneratedSecretRef types.NamespacedName
}

// backupEntry is a BackupEntry of extensions.gardener.cloud/v1alpha1.
type backupEntry struct {
	object
	BucketName string
	// Recorded and Account are the policy and the account in spec.backupBucketProviderStatus, which the client copies
	// from the BackupBucket's status.
	Recorded Policy
	Account  string
}

// record is what the entry knows of its bucket.
func (e *backupEntry) record() record { return record{Policy: e.Recorded, Account: e.Account} }

// DeepCopyObject implements runtime.Object for events and client-go's cache mutation
// detector. What pointers and slices hold is never changed, so it is shared.
func (b *backupBucket) DeepCopyObject() runtime.Object {
	c := *b
	c.ObjectMeta = *b.ObjectMeta.DeepCopy()
	return &c
}

// DeepCopyObject implements runtime.Object, as that of backupBucket.
func (e *backupEntry) DeepCopyObject() runtime.Object {
	c := *e
	c.ObjectMeta = *e.ObjectMeta.DeepCopy()
	return &c
}

func (o *object) common() *object { return o }

// commonObject is a backupBucket or a backupEntry.
type commonObject interface {
	runtime.Object
	common() *object
}

func (o *object) operation() string { return o.Annotations[annotationOperation] }

func (o *object) hasFinalizer(finalizer string) bool {
	return slices.Contains(o.Finalizers, finalizer)
}

func (o *object) succeeded() bool {
	return o.LastOperation != nil && o.LastOperation.State == stateSucceeded
}

// specObserved says that the spec is the one that was carried out last. The API server counts a deletion as a generation
// (kubernetes/kubernetes staging/src/k8s.io/apiserver/pkg/registry/rest/delete.go).
func (o *object) specObserved() bool {
	observed := o.ObservedGeneration
	if o.DeletionTimestamp != nil {
		observed++
	}
	return o.Generation <= observed
}

// interrupted says that the client asked for an operation after the last one ended; its
// annotation is gone, but no status was written.
func (o *object) interrupted() bool {
	return o.LastOperation != nil && clientTime(o).After(o.LastOperation.LastUpdateTime)
}

// decoder reads fields of an unstructured object and keeps the first surprise.
type decoder struct {
	content map[string]any
	err     error
}

func (d *decoder) note(err error) {
	if d.err == nil && err != nil {
		d.err = err
	}
}

func (d *decoder) str(path ...string) string {
	s, _, err := unstructured.NestedString(d.content, path...)
	d.note(err)
	return s
}

// shared is for values that many objects have in common.
func (d *decoder) shared(path ...string) string {
	return unique.Make(d.str(path...)).Value()
}

func (d *decoder) int64(path ...string) int64 {
	n, _, err := unstructured.NestedInt64(d.content, path...)
	d.note(err)
	return n
}

func (d *decoder) time(path ...string) time.Time {
	s := d.str(path...)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	d.note(err)
	return t
}

// raw is the JSON of a field, nil if it is absent. Map keys come out sorted.
func (d *decoder) raw(path ...string) []byte {
	v, found, err := unstructured.NestedFieldNoCopy(d.content, path...)
	d.note(err)
	if !found || v == nil {
		return nil
	}
	data, err := json.Marshal(v)
	d.note(err)
	return data
}

func (d *decoder) has(path ...string) bool {
	v, found, err := unstructured.NestedFieldNoCopy(d.content, path...)
	d.note(err)
	return found && v != nil
}

var hashSeed = maphash.MakeSeed()

// keptAnnotations are the only annotations that are read.
func keptAnnotations(u *unstructured.Unstructured) map[string]string {
	var kept map[string]string
	for key, value := range u.GetAnnotations() {
		switch {
		case key == annotationOperation, key == annotationTimestamp, key == annotationGeneratedSecretNamespace, key == annotationSecret,
			key == annotationExcluded, strings.HasSuffix(key, annotationRotateSuffix):
			if kept == nil {
				kept = map[string]string{}
			}
			kept[key] = unique.Make(value).Value()
		}
	}
	return kept
}

func decodeObject(u *unstructured.Unstructured, kind string) (object, *decoder) {
	d := &decoder{content: u.Object}
	o := object{
		TypeMeta: metav1.TypeMeta{APIVersion: extensionsGV.String(), Kind: kind},
		ObjectMeta: metav1.ObjectMeta{
			Name:              u.GetName(),
			UID:               u.GetUID(),
			ResourceVersion:   u.GetResourceVersion(),
			Generation:        u.GetGeneration(),
			CreationTimestamp: u.GetCreationTimestamp(),
			DeletionTimestamp: u.GetDeletionTimestamp(),
		},
		Type:      d.shared("spec", "type"),
		Class:     d.shared("spec", "class"),
		Region:    d.shared("spec", "region"),
		SecretRef: types.NamespacedName{Namespace: d.shared("spec", "secretRef", "namespace"), Name: d.str("spec", "secretRef", "name")},
	}
	if o.Class == "" {
		o.Class = defaultClass
	}
	for _, f := range u.GetFinalizers() {
		o.Finalizers = append(o.Finalizers, unique.Make(f).Value())
	}
	o.Annotations = keptAnnotations(u)
	o.ObservedGeneration = d.int64("status", "observedGeneration")
	if d.has("status", "lastOperation") {
		o.LastOperation = &lastOperation{
			Description:    d.shared("status", "lastOperation", "description"),
			LastUpdateTime: d.time("status", "lastOperation", "lastUpdateTime"),
			State:          operationState(d.shared("status", "lastOperation", "state")),
			Type:           operationType(d.shared("status", "lastOperation", "type")),
		}
	}
	if d.has("status", "lastError") {
		o.LastError = &lastError{Description: d.str("status", "lastError", "description")}
	}
	o.statusHash = maphash.Bytes(hashSeed, d.raw("status"))
	return o, d
}

func decodeBucket(u *unstructured.Unstructured) *backupBucket {
	o, d := decodeObject(u, kindBackupBucket)
	b := &backupBucket{object: o, ProviderConfig: d.raw("spec", "providerConfig"), ProviderStatus: d.raw("status", "providerStatus"),
		GeneratedSecretRef: types.NamespacedName{Namespace: d.str("status", "generatedSecretRef", "namespace"),
			Name: d.str("status", "generatedSecretRef", "name")}}
	if raw := d.raw("status", "conditions"); raw != nil {
		d.note(json.Unmarshal(raw, &b.Conditions))
	}
	b.decodeErr = d.err
	return b
}

func decodeEntry(u *unstructured.Unstructured) *backupEntry {
	o, d := decodeObject(u, kindBackupEntry)
	of := readRecord(d.raw("spec", "backupBucketProviderStatus"))
	e := &backupEntry{object: o, BucketName: d.shared("spec", "bucketName"), Recorded: of.Policy, Account: of.Account}
	e.decodeErr = d.err
	return e
}

// transformWith keeps only what we read. client-go may pass an object twice.
func transformWith[T any](decode func(*unstructured.Unstructured) T) cache.TransformFunc {
	return func(obj any) (any, error) {
		switch o := obj.(type) {
		case *unstructured.Unstructured:
			return decode(o), nil
		case T:
			return o, nil
		default:
			return nil, fmt.Errorf("unexpected object of type %T", obj)
		}
	}
}

// Indexes of the informers.
const (
	indexSecret    = "secret"
	indexNamespace = "namespace"
)

func indexBySecret(obj any) ([]string, error) {
	o, ok := obj.(commonObject)
	if !ok {
		return nil, fmt.Errorf("unexpected object of type %T", obj)
	}
	return []string{o.common().SecretRef.String()}, nil
}

func indexByNamespace(obj any) ([]string, error) {
	o, ok := obj.(commonObject)
	if !ok {
		return nil, fmt.Errorf("unexpected object of type %T", obj)
	}
	namespace, _ := splitEntryName(o.common().Name)
	return []string{namespace}, nil
}

func newBucketInformer(client dynamic.Interface) (cache.SharedIndexInformer, *feed, error) {
	return newObjectInformer(client, bucketsGVR, transformWith(decodeBucket), cache.Indexers{indexSecret: indexBySecret})
}

func newEntryInformer(client dynamic.Interface) (cache.SharedIndexInformer, *feed, error) {
	return newObjectInformer(client, entriesGVR, transformWith(decodeEntry),
		cache.Indexers{indexSecret: indexBySecret, indexNamespace: indexByNamespace})
}

func newObjectInformer(client dynamic.Interface, gvr schema.GroupVersionResource, transform cache.TransformFunc,
	indexers cache.Indexers) (cache.SharedIndexInformer, *feed, error) {
	resource := client.Resource(gvr)
	informer, f, err := newFeed(gvr.GroupResource(), client, func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		return resource.List(ctx, o)
	}, resource.Watch, &unstructured.Unstructured{}, indexers)
	return informer, f, errors.Join(err, informer.SetTransform(transform))
}

// newMetadataInformer watches a core resource without its contents.
func newMetadataInformer(client metadata.Interface, gvr schema.GroupVersionResource) (cache.SharedIndexInformer, *feed, error) {
	resource := client.Resource(gvr)
	informer, f, err := newFeed(gvr.GroupResource(), client, func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		return resource.List(ctx, o)
	}, resource.Watch, &metav1.PartialObjectMetadata{}, cache.Indexers{})
	return informer, f, errors.Join(err, informer.SetTransform(func(obj any) (any, error) {
		m, ok := obj.(*metav1.PartialObjectMetadata)
		if !ok {
			return nil, fmt.Errorf("unexpected object of type %T", obj)
		}
		kept := &metav1.PartialObjectMetadata{TypeMeta: m.TypeMeta, ObjectMeta: metav1.ObjectMeta{
			Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}}
		if uid, ok := m.Annotations[annotationShootUID]; ok {
			kept.Annotations = map[string]string{annotationShootUID: uid}
		}
		return kept, nil
	}))
}

// scope decides which objects are ours and which of their events count.
type scope struct {
	// providers maps spec.type to the store that serves it (--type).
	providers map[string]provider
	// classes are the extension classes served (--class).
	classes []string
	// ignoreOperationAnnotation is the flag of the same name.
	ignoreOperationAnnotation bool
}

func (s *scope) responsible(o *object) bool {
	_, ok := s.providers[o.Type]
	return ok && slices.Contains(s.classes, o.Class)
}

// rotationRequested says that the client asks for new access keys.
func (s *scope) rotationRequested(o *object) bool {
	p, ok := s.providers[o.Type].(accountProvider)
	return ok && o.Kind == kindBackupBucket && o.Annotations[p.rotateAnnotation()] == "true"
}

// onAdd and onUpdate follow gardener/gardener extensions/pkg/predicate/default.go and, for
// the rotation of keys, gardener/gardener-extension-provider-azure
// pkg/controller/backupbucket/add.go, with two exceptions. An operation that was cut off right after its annotation had been
// removed is taken up again at the next start. And our own status writes while migrate
// or restore is still annotated are no events, or a failing one would be retried at once
// instead of with backoff.
func (s *scope) onAdd(o *object) bool {
	return s.ignoreOperationAnnotation || isOperation(o.operation()) || s.rotationRequested(o) ||
		o.DeletionTimestamp != nil || !o.succeeded() || o.interrupted()
}

func (s *scope) onUpdate(old, new *object) bool {
	if s.rotationRequested(new) && !s.rotationRequested(old) {
		return true
	}
	if s.ignoreOperationAnnotation {
		return old.Generation != new.Generation
	}
	statusWrite := old.statusHash != new.statusHash
	if isOperation(new.operation()) {
		return !statusWrite || !maps.Equal(old.Annotations, new.Annotations)
	}
	// A relist after a broken watch may bring the deletion and a status write at once.
	return new.DeletionTimestamp != nil && (old.DeletionTimestamp == nil || !statusWrite)
}

func isOperation(value string) bool {
	return value == operationReconcile || value == operationMigrate || value == operationRestore
}

// watchObjects feeds the admitted events of an informer into the controller. Objects
// that are not admitted when they are first seen are given to seen, if that is set.
func watchObjects(informer cache.SharedIndexInformer, s *scope, c *controller,
	seen func(key cache.ObjectName)) (cache.ResourceEventHandlerRegistration, error) {
	admit := func(o *object) {
		key := cache.MetaObjectToName(o)
		if s.ignoreOperationAnnotation {
			c.want(key)
		}
		c.enqueue(key)
	}
	add := func(obj any) {
		co, ok := obj.(commonObject)
		if !ok || !s.responsible(co.common()) {
			return
		}
		if o := co.common(); s.onAdd(o) {
			admit(o)
		} else if seen != nil {
			seen(cache.MetaObjectToName(o))
		}
	}
	return informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add,
		UpdateFunc: func(oldObj, newObj any) {
			old, ok1 := oldObj.(commonObject)
			new, ok2 := newObj.(commonObject)
			if !ok1 || !ok2 {
				return
			}
			if old.common().UID != new.common().UID {
				// A relist brings the deletion of an object and its successor at once.
				c.gone(cache.MetaObjectToName(old.common()))
				add(newObj)
				return
			}
			c.stale(new.common())
			switch {
			case s.responsible(new.common()):
				if s.onUpdate(old.common(), new.common()) {
					admit(new.common())
				} else if seen != nil && !s.responsible(old.common()) {
					seen(cache.MetaObjectToName(new.common()))
				}
			case s.responsible(old.common()):
				klog.Background().Info("No longer responsible", "resource", c.resource, "name", new.common().Name,
					"type", new.common().Type, "class", new.common().Class)
				c.gone(cache.MetaObjectToName(new.common()))
			}
		},
		DeleteFunc: func(obj any) {
			if name, err := cache.DeletionHandlingObjectToName(obj); err == nil {
				c.gone(name)
			}
		},
	})
}

// watchSecrets enqueues the objects that refer to a secret on each of its events
// (gardener/gardener extensions/pkg/controller/backupbucket/mapper.go).
func watchSecrets(secrets, objects cache.SharedIndexInformer, s *scope, c *controller) error {
	_, err := secrets.AddEventHandler(onAnyEvent(func(m *metav1.PartialObjectMetadata) {
		enqueueIndexed(objects, indexSecret, types.NamespacedName{Namespace: m.Namespace, Name: m.Name}.String(), s, c, nil)
	}))
	return err
}

// watchNamespaces enqueues the BackupEntries whose cluster lives in a namespace, on
// each of its events (gardener/gardener extensions/pkg/controller/backupentry/mapper.go).
func watchNamespaces(namespaces, entries cache.SharedIndexInformer, s *scope, c *controller) error {
	_, err := namespaces.AddEventHandler(onAnyEvent(func(m *metav1.PartialObjectMetadata) {
		enqueueIndexed(entries, indexNamespace, m.Name, s, c, func(o *object) bool {
			_, uid := splitEntryName(o.Name)
			return uid == m.Annotations[annotationShootUID]
		})
	}))
	return err
}

func onAnyEvent(handle func(*metav1.PartialObjectMetadata)) cache.ResourceEventHandler {
	handleAny := func(obj any) {
		if deleted, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = deleted.Obj
		}
		if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
			handle(m)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    handleAny,
		UpdateFunc: func(_, obj any) { handleAny(obj) },
		DeleteFunc: handleAny,
	}
}

func enqueueIndexed(objects cache.SharedIndexInformer, index, value string, s *scope, c *controller, filter func(*object) bool) {
	found, err := objects.GetIndexer().ByIndex(index, value)
	if err != nil {
		return
	}
	for _, obj := range found {
		co, ok := obj.(commonObject)
		if !ok || !s.responsible(co.common()) || filter != nil && !filter(co.common()) {
			continue
		}
		key := cache.MetaObjectToName(co.common())
		c.want(key)
		c.enqueue(key)
	}
}

const sourcePrefix = "source-"

// splitEntryName derives the technical ID, which is the namespace of the cluster's
// control plane, and the UID of its shoot from the name of a BackupEntry
// (gardener/gardener extensions/pkg/controller/backupentry/util.go). Without "--"
// both are the whole name.
func splitEntryName(name string) (technicalID, uid string) {
	name = strings.TrimPrefix(name, sourcePrefix)
	i := strings.LastIndex(name, "--")
	if i < 0 {
		return name, name
	}
	return name[:i], name[i+2:]
}
