// A BackupBucket as the commands see it: what its spec asks for, what its status remembers, and what the cloud answers now,
// with the credentials that the spec names.
//
// Rules:
//   - The cloud is asked once for each bucket, with what the user may read, and nothing is changed.
//   - What is to be done is asked of the pass of the daemon (bucketPass.nextSteps), never worked out here.
//   - A store that does not answer makes the state unknown, with the reason; it does not end the command.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// bucketView is a bucket and what is known of it.
type bucketView struct {
	b       *backupBucket
	scope   *scope
	desired desired
	record  record
	// store and secret are nil if the bucket could not be opened.
	store  Store
	secret *corev1.Secret
	// objects is what lies in the bucket; nil if that cannot be read, for the reason closed.
	objects Objects
	closed  error
	// live is the answer of the cloud, nothing if err says why there is none.
	live BucketState
	err  error
}

// scopeFor is a scope in which a bucket of a class is served.
func (c *cli) scopeFor(stores map[string]provider, class string) *scope {
	types := c.types
	if len(types) == 0 {
		types = c.defaultTypes
	}
	return (&config{types: types, class: class}).scope(stores)
}

// viewBucket reads what a BackupBucket asks for and remembers, and asks the cloud.
func (c *cli) viewBucket(ctx context.Context, stores map[string]provider, b *backupBucket) *bucketView {
	v := &bucketView{b: b, scope: c.scopeFor(stores, b.Class)}
	if v.provider() == nil {
		v.err = fmt.Errorf("its spec.type is %q, of which the store is not known: give --type %s=STORE", b.Type, b.Type)
		v.closed = v.err
		return v
	}
	v.desired, v.record = v.scope.readBucket(b)
	if v.err = c.openView(ctx, v); v.err != nil {
		v.closed = v.err
		return v
	}
	v.live, v.err = v.store.Observe(ctx)
	return v
}

func (v *bucketView) provider() provider { return v.scope.providers[v.b.Type] }

// openView opens the bucket with its own credentials. In an account the generated secret tells which, if the record does not.
func (c *cli) openView(ctx context.Context, v *bucketView) (err error) {
	if v.secret, err = c.secret(ctx, v.b.SecretRef); err != nil {
		return err
	}
	accounts, _ := v.provider().(accountProvider)
	account := ""
	if accounts != nil && v.record.Account == "" {
		generated, err := c.generatedSecret(ctx, v.b)
		if err != nil {
			return err
		}
		if generated != nil {
			account, _ = accounts.published(generated)
		}
	}
	return credentialsError(v.open(account), v.secret)
}

// open opens the bucket with its secret.
func (v *bucketView) open(account string) error {
	ref, err := storeRef(v.b, v.desired, v.record, account)
	if err == nil {
		v.store, err = v.provider().openStore(ref, v.secret.Data)
	}
	return err
}

// openContents opens what lies in the bucket: with the generated secret, where there are accounts and the user may read it, else
// with the credentials of the bucket.
func (c *cli) openContents(ctx context.Context, v *bucketView) {
	if v.store == nil {
		return
	}
	known := v.record.Policy
	if known.None() && v.err == nil && v.live.Policy.Locked {
		known = v.live.Policy // another owner records none
	}
	ref, secret := bucketRef{Name: v.b.Name, Region: v.b.Region, Recorded: known, Account: v.record.Account}, v.secret
	if _, ok := v.provider().(accountProvider); ok {
		var denied apierrors.APIStatus
		generated, err := c.generatedSecret(ctx, v.b)
		switch {
		case err == nil && generated != nil:
			secret = generated
		case err == nil, errors.As(err, &denied):
			v.objects, v.closed = openWithKey(ctx, v.provider(), v.store, ref)
			return
		default:
			v.closed = err
			return
		}
	}
	objects, err := v.provider().openObjects(ref, secret.Data)
	if v.closed = credentialsError(err, secret); err == nil {
		v.objects = objects
	}
}

// generatedSecret reads the generated secret of a bucket; nil if there is none.
func (c *cli) generatedSecret(ctx context.Context, b *backupBucket) (*corev1.Secret, error) {
	for _, ref := range generatedSecretRefs(b) {
		secret, err := c.secret(ctx, ref)
		if !apierrors.IsNotFound(err) {
			return secret, err
		}
	}
	return nil, nil
}

// nextSteps is what the daemon would do to the policy of the bucket if the cloud were in a state.
func (v *bucketView) nextSteps(live BucketState) policyPlan {
	p := &bucketPass{bucketReconciler: &bucketReconciler{reconciler: reconciler{scope: v.scope}}, b: v.b,
		desired: v.desired, old: v.record, live: live}
	p.next = p.old
	// A store that nobody can open does not tell whether it needs an unlocked step before the lock.
	p.lockAtOnce = v.store == nil || v.store.traits().locksAtOnce
	return p.nextSteps()
}

// drift says that the cloud has less than what was recorded.
func (v *bucketView) drift() bool { return v.err == nil && v.live.Policy.weakerThan(v.record.Policy) }

// claimed says that by its status the spec was carried out. Another owner than bucketwarden records no policy.
func (v *bucketView) claimed() bool { return v.b.succeeded() && v.b.specObserved() }

// foreign says that the cloud has more than was asked for or recorded: somebody else has set it.
func (v *bucketView) foreign() bool {
	more := func(p Policy) bool { return v.live.Policy != p && !v.live.Policy.weakerThan(p) }
	return v.err == nil && more(v.desired.Policy) && more(v.record.Policy)
}

// shownPolicy is a policy as scripts get it, in the words of providerConfig.
type shownPolicy struct {
	RetentionPeriod string `json:"retentionPeriod"`
	Locked          bool   `json:"locked"`
}

func showPolicy(p Policy) *shownPolicy {
	if p.None() {
		return nil
	}
	return &shownPolicy{p.Hours(), p.Locked}
}

// getBucket reads a BackupBucket.
func (c *cli) getBucket(ctx context.Context, name string) (*backupBucket, map[string]any, error) {
	api, err := c.api()
	if err != nil {
		return nil, nil, err
	}
	u, err := api.dynamic.Resource(bucketsGVR).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, wrapf(err, "reading BackupBucket %s", name)
	}
	return decodeBucket(u), u.Object, nil
}

// listBuckets reads all BackupBuckets; f is called for each.
func (c *cli) listBuckets(ctx context.Context, f func(*backupBucket, map[string]any)) error {
	api, err := c.api()
	if err != nil {
		return err
	}
	options := metav1.ListOptions{Limit: listPage}
	for {
		list, err := api.dynamic.Resource(bucketsGVR).List(ctx, options)
		if err != nil {
			return fmt.Errorf("listing BackupBuckets: %w", err)
		}
		for i := range list.Items {
			f(decodeBucket(&list.Items[i]), list.Items[i].Object)
		}
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return nil
		}
	}
}

// bucketIn is the bucket of --bucket-secret, empty if neither a flag nor the secret names it.
func (c *cli) bucketIn(secret *corev1.Secret) string {
	return cmp.Or(c.bucket, strings.TrimSpace(string(secret.Data[dataKeyBucketName])))
}

// regionIn is the region in a secret.
func regionIn(secret *corev1.Secret) string {
	return strings.TrimSpace(string(secret.Data[dataKeyRegion]))
}
