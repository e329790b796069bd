// The access keys of a bucket's account, where the store has accounts. The youngest key is published in the generated
// secret; the oldest of the others is regenerated when that is due or asked for, and published then, so that the key in
// use stays valid until the next rotation. Every step can be cut off: a secret that lags behind the youngest key means
// that publishing is all that is left to do.

package main

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
)

// keyDue says, without a request to the store, that the access keys need a look.
func (p *bucketPass) keyDue() bool {
	if _, key := p.published(p.b, p.generated); key == "" || p.b.GeneratedSecretRef.Name == "" {
		return true
	}
	p.showKeyAge()
	return p.desired.Rotation.due(keyCreated(p.generated), time.Now()) || p.keys.due(p.b.Name, p.generated.Data, time.Now())
}

// keyCreated is when the key that a generated secret publishes was created; zero if that
// is not known.
func keyCreated(generated *corev1.Secret) time.Time {
	return annotatedTime(generated, annotationKeyCreated)
}

// keySince is since when a key whose creation is not known is published at least.
func keySince(generated *corev1.Secret) time.Time {
	return annotatedTime(generated, annotationKeySince)
}

// annotatedTime is the time in an annotation of a secret, zero if there is none.
func annotatedTime(secret *corev1.Secret, annotation string) time.Time {
	at, err := time.Parse(time.RFC3339, secret.Annotations[annotation])
	if err != nil {
		return time.Time{}
	}
	return at
}

// showKeyAge shows since when there is the key that the generated secret publishes.
func (p *bucketPass) showKeyAge() {
	p.metrics.bucketKeyRotations.WithLabelValues(p.b.Name)
	known, at := 1.0, keyCreated(p.generated)
	if at.IsZero() {
		known, at = 0, keySince(p.generated)
	}
	p.metrics.bucketKeyAgeKnown.WithLabelValues(p.b.Name).Set(known)
	if at.IsZero() {
		p.metrics.bucketKeyCreated.DeleteLabelValues(p.b.Name)
		return
	}
	p.metrics.bucketKeyCreated.WithLabelValues(p.b.Name).Set(float64(at.Unix()))
}

// ensureKeys publishes the youngest access key of the account in the generated secret, and
// rotates the keys if that is due. The request for a rotation is taken back after the
// rotation and before the key is published: whenever the daemon stops in between, the next
// pass sees a secret that lags and only publishes.
func (p *bucketPass) ensureKeys(ctx context.Context, store accountStore) error {
	keys, err := store.Keys(ctx)
	if err != nil {
		return err
	}
	_, published := p.published(p.b, p.generated)
	for i := range keys {
		// Of a key that we have regenerated ourselves we know what the store does not tell.
		if p.generated != nil && keys[i].Value == published && keys[i].Created.IsZero() {
			keys[i].Created = keyCreated(p.generated)
		}
	}
	requested := p.scope.rotationRequested(&p.b.object)
	publish, regenerate := planKeys(keys, published, p.desired.Rotation, requested, time.Now())
	if regenerate != "" {
		if err := p.announce(); err != nil {
			return err
		}
		// A cache that lags shows requests that were carried out already; the key that
		// would go now is the one that every cluster uses.
		if requested, err = p.rotationStillRequested(ctx); err != nil {
			return err
		}
		publish, regenerate = planKeys(keys, published, p.desired.Rotation, requested, time.Now())
	}
	if regenerate != "" {
		if publish, err = p.regenerateKey(ctx, store, regenerate); err != nil {
			return err
		}
	}
	if publish.Value == "" {
		return configErrorf("the storage account of bucket %s has no access key that could be published", p.b.Name)
	}
	if accounts, ok := p.provider(&p.b.object).(accountProvider); ok && requested {
		// With an optimistic lock: the client may ask for the next rotation meanwhile.
		_, err := p.resource.patch(ctx, &p.b.object, map[string]any{"metadata": map[string]any{
			"annotations": map[string]any{accounts.rotateAnnotation(): nil}, "resourceVersion": p.b.ResourceVersion}})
		if err != nil {
			return err
		}
	}
	data := store.EntryCredentials(publish)
	old := p.generated
	changes := old == nil || hashData(old.Data) != hashData(data) || old.Namespace != generatedSecretRef(p.b).Namespace
	if changes {
		if err := p.announce(); err != nil {
			return err
		}
	}
	generated, err := p.secrets.publish(ctx, p.b, old, data, publish.Created)
	if err != nil {
		return err
	}
	p.generated, p.republished = generated, changes
	p.keys.published(p.b.Name, data)
	p.showKeyAge()
	p.reportRepublished(ctx, old, keys, publish, published)
	return nil
}

// reportRepublished tells of a generated secret that had not what we published: a key that the account does not have, or
// something else beside the key.
func (p *bucketPass) reportRepublished(ctx context.Context, old *corev1.Secret, keys []accessKey, publish accessKey, published string) {
	dead := published != "" && !slices.ContainsFunc(keys, func(key accessKey) bool { return key.Value == published })
	switch {
	case !p.republished || old == nil:
	case dead && publish.Value != published:
		klog.FromContext(ctx).Info("The generated secret had a key that the storage account does not have", "published", publish.Name)
		p.warn(p.b, "KeyRepublished", "Verify", "The generated secret of bucket %s had a key that its storage account does not have: somebody "+
			"regenerated it, or altered the secret; it has access key %s now", p.b.Name, publish.Name)
	case publish.Value == published && hashData(old.Data) != hashData(p.generated.Data):
		p.normal(p.b, "GeneratedSecretWritten", "Verify", "The generated secret of bucket %s was not as bucketwarden writes it; it was "+
			"written anew with the same access key", p.b.Name)
	}
}

// rotationStillRequested reads the request for a rotation from the API server.
func (p *bucketPass) rotationStillRequested(ctx context.Context) (bool, error) {
	u, err := p.resource.live(ctx, &p.b.object)
	if err != nil {
		return false, err
	}
	if u == nil || u.GetDeletionTimestamp() != nil {
		return false, apierrors.NewConflict(bucketsGVR.GroupResource(), p.b.Name, errors.New("it is gone or going"))
	}
	live := decodeBucket(u)
	p.b.ResourceVersion, p.b.Annotations = live.ResourceVersion, live.Annotations
	return p.scope.rotationRequested(&live.object), nil
}

// regenerateKey replaces a key that was read just before and returns the new one.
func (p *bucketPass) regenerateKey(ctx context.Context, store accountStore, name string) (accessKey, error) {
	keys, err := store.RegenerateKey(ctx, name)
	if err != nil {
		return accessKey{}, err
	}
	p.metrics.bucketKeyRotations.WithLabelValues(p.b.Name).Inc()
	klog.FromContext(ctx).Info("Regenerated an access key of the storage account", "key", name)
	p.normal(p.b, "KeyRotated", "Rotate", "Regenerated access key %s of the storage account of bucket %s; it is published "+
		"instead of the other one, which stays valid", name, p.b.Name)
	i := slices.IndexFunc(keys, func(key accessKey) bool { return key.Name == name })
	if i < 0 {
		return accessKey{}, nil
	}
	if keys[i].Created.IsZero() {
		keys[i].Created = time.Now()
	}
	return keys[i], nil
}

// planKeys says which access key the generated secret is to publish, and which one has to
// be regenerated before and published instead; empty if none. published is the value that
// the secret has, empty if there is no secret. It is pure.
//
// A secret that does not publish the youngest key means that a rotation was cut off after
// the key had been regenerated: publishing ends it, rotating again would cut off everybody
// who uses the key published so far.
func planKeys(keys []accessKey, published string, rotation keyRotation, requested bool, now time.Time,
) (publish accessKey, regenerate string) {
	for _, key := range keys {
		younger := key.Created.After(publish.Created)
		if publish.Name == "" || younger || key.Created.Equal(publish.Created) && key.Value == published {
			publish = key
		}
	}
	if publish.Value != published || !requested && !rotation.due(publish.Created, now) {
		return publish, ""
	}
	oldest := accessKey{}
	for _, key := range keys {
		if key.Name != publish.Name && (oldest.Name == "" || key.Created.Before(oldest.Created)) {
			oldest = key
		}
	}
	return publish, oldest.Name
}
