// Where the commands find backups: through the BackupEntries of a seed and the secrets that the user may read, or straight in
// a bucket with the secret of its credentials, when there is no seed any more.
//
// Rules:
//   - One request for an entry and one for its secret, which those that share it need once.
//   - Entries that cannot be opened do not keep others from being looked at.
//   - No value of a secret is ever shown.

package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

const (
	// maxSecretFile is the size of a Secret (kubernetes MaxSecretSize, in base64, with room).
	maxSecretFile = 4 << 20
	listPage      = 500
)

// backups are those of one entry, where they lie.
type backups struct {
	// entry is what it is called, base that without source-, by which its objects are called.
	entry, base, bucket string
	// resource is nil without an API server.
	resource *backupEntry
	objects  Objects
}

// cliClients are the clients of the API server and what was read with them.
type cliClients struct {
	dynamic dynamic.Interface
	core    kubernetes.Interface
	// mu guards secrets: each is read once, also by those that ask at the same time.
	mu      sync.Mutex
	secrets map[types.NamespacedName]*corev1.Secret
}

// connectKubeconfig connects as kubectl would.
func (c *cli) connectKubeconfig() (dynamic.Interface, kubernetes.Interface, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: c.context}
	rc, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("no API server (give --kubeconfig, or --bucket-secret to work without one): %w", err)
	}
	rc.UserAgent, rc.QPS = programName, -1
	dyn, err := dynamic.NewForConfig(rc)
	if err != nil {
		return nil, nil, err
	}
	core, err := kubernetes.NewForConfig(rc)
	return dyn, core, err
}

// api connects to the API server once.
func (c *cli) api() (*cliClients, error) {
	if c.clients == nil {
		dyn, core, err := c.connect()
		if err != nil {
			return nil, err
		}
		c.clients = &cliClients{dynamic: dyn, core: core, secrets: map[types.NamespacedName]*corev1.Secret{}}
	}
	return c.clients, nil
}

// kubernetesUser is the user as the API server calls them; empty if it does not say.
func (c *cli) kubernetesUser(ctx context.Context) string {
	api, err := c.api()
	if err != nil {
		return ""
	}
	review, err := api.core.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return ""
	}
	return review.Status.UserInfo.Username
}

// stores are all kinds of store, by name.
func (c *cli) stores() (map[string]provider, error) {
	return c.newProviders(&config{azureCloudConfig: c.azureCloudConfig}, c.metrics)
}

// eachBackups calls f for the backups of the named entries, or of all. An error of one is told and does not keep f from the others.
func (c *cli) eachBackups(ctx context.Context, names []string, all bool, f func(*backups) error) error {
	switch {
	case all && len(names) > 0:
		return usageErrorf("--all and the names of entries exclude each other")
	case !all && len(names) == 0:
		return usageErrorf("name a BackupEntry, or give --all")
	case c.bucketSecret == "" && cmp.Or(c.bucket, c.region, c.store, c.cloud) != "":
		return usageErrorf("--bucket, --region, --store and --cloud go with --bucket-secret")
	}
	each := c.eachEntry
	if c.bucketSecret != "" {
		each = c.eachInBucket
	}
	failed, found := false, false
	err := each(ctx, names, func(name string, b *backups, err error) error {
		if err == nil {
			err = f(b)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errFound):
			found = true
		case err != nil && len(names) == 1:
			return err
		case err != nil:
			c.say("%s: %s: %v", programName, name, err)
			failed = true
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case failed:
		return errors.New("not all entries could be looked at")
	case found:
		return errFound
	}
	return nil
}

// eachEntry goes through BackupEntries.
func (c *cli) eachEntry(ctx context.Context, names []string, f func(string, *backups, error) error) error {
	api, err := c.api()
	if err != nil {
		return err
	}
	stores, err := c.stores()
	if err != nil {
		return err
	}
	entries := api.dynamic.Resource(entriesGVR)
	one := func(u *unstructured.Unstructured) error {
		e := decodeEntry(u)
		b, err := c.open(ctx, stores, e)
		return f(e.Name, b, err)
	}
	for _, name := range names {
		u, err := entries.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			err = fmt.Errorf("there is no BackupEntry %s (kubectl get backupentries lists them)", name)
		}
		if err != nil {
			err = f(name, nil, err)
		} else {
			err = one(u)
		}
		if err != nil {
			return err
		}
	}
	if len(names) > 0 {
		return nil
	}
	options := metav1.ListOptions{Limit: listPage}
	for {
		list, err := entries.List(ctx, options)
		if err != nil {
			return fmt.Errorf("listing BackupEntries: %w", err)
		}
		for i := range list.Items {
			if err := one(&list.Items[i]); err != nil {
				return err
			}
		}
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return nil
		}
	}
}

// open opens the backups of an entry with the secret that its spec names.
func (c *cli) open(ctx context.Context, stores map[string]provider, e *backupEntry) (*backups, error) {
	if err := validateEntry(e); err != nil {
		return nil, fmt.Errorf("the BackupEntry cannot be understood: %w", err)
	}
	known := c.types
	if len(known) == 0 {
		known = c.defaultTypes
	}
	store := stores[known[e.Type]]
	if store == nil {
		return nil, fmt.Errorf("its spec.type is %q, of which the store is not known: give --type %s=STORE", e.Type, e.Type)
	}
	secret, err := c.secret(ctx, e.SecretRef)
	if err != nil {
		return nil, err
	}
	objects, err := store.openObjects(bucketRef{Name: e.BucketName, Region: e.Region, Recorded: e.Recorded, Account: e.Account}, secret.Data)
	if err != nil {
		return nil, credentialsError(err, secret)
	}
	return &backups{entry: e.Name, base: entryBase(e.Name), bucket: e.BucketName, resource: e, objects: objects}, nil
}

func (c *cli) secret(ctx context.Context, ref types.NamespacedName) (*corev1.Secret, error) {
	api, err := c.api()
	if err != nil {
		return nil, err
	}
	if err := checkSecretRef(ref); err != nil {
		return nil, err
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	if secret := api.secrets[ref]; secret != nil {
		return secret, nil
	}
	secret, err := api.core.CoreV1().Secrets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the secret %s: %w", ref, err)
	}
	api.secrets[ref] = secret
	return secret, nil
}

// eachInBucket goes through what lies in the bucket of --bucket-secret.
func (c *cli) eachInBucket(ctx context.Context, names []string, f func(string, *backups, error) error) error {
	secret, err := readSecretFile(c.bucketSecret)
	if err != nil {
		return err
	}
	bucket := cmp.Or(c.bucket, strings.TrimSpace(string(secret.Data[dataKeyBucketName])))
	if bucket == "" {
		return usageErrorf("give --bucket: the secret has no %s", dataKeyBucketName)
	}
	objects, err := c.openBucket(ctx, bucket, secret)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		if names, err = entriesIn(ctx, objects); err != nil {
			return err
		}
		if len(names) == 0 {
			return fmt.Errorf("there are no backups in bucket %q", bucket)
		}
	}
	for _, name := range names {
		if err := f(name, &backups{entry: name, base: entryBase(name), bucket: bucket, objects: objects}, nil); err != nil {
			return err
		}
	}
	return nil
}

// openBucket opens a bucket with the secret of a BackupEntry, or of the BackupBucket.
func (c *cli) openBucket(ctx context.Context, bucket string, secret *corev1.Secret) (Objects, error) {
	if err := c.checkCloud(); err != nil {
		return nil, err
	}
	stores, err := c.stores()
	if err != nil {
		return nil, err
	}
	kinds := slices.Sorted(maps.Keys(stores))
	if c.store != "" {
		if stores[c.store] == nil {
			return nil, usageErrorf("--store is %q, must be one of %s", c.store, strings.Join(kinds, ", "))
		}
		kinds = []string{c.store}
	}
	ref := bucketRef{Name: bucket, Region: cmp.Or(c.region, strings.TrimSpace(string(secret.Data[dataKeyRegion]))), Cloud: c.cloud}
	var failures []error
	for _, kind := range kinds {
		objects, err := stores[kind].openObjects(ref, secret.Data)
		if err == nil {
			return objects, nil
		}
		failures = append(failures, fmt.Errorf("as a secret of %s: %w", kind, err))
		if _, ok := stores[kind].(accountProvider); !ok {
			continue
		}
		// The secret of the BackupBucket itself can read the keys of its account.
		if store, err := stores[kind].openStore(ref, secret.Data); err == nil {
			return openWithKey(ctx, stores[kind], store, ref)
		}
	}
	return nil, fmt.Errorf("%s does not open bucket %q: %w", c.bucketSecret, bucket, errors.Join(failures...))
}

// checkCloud refuses to send credentials that may be another cloud's to the public one.
func (c *cli) checkCloud() error {
	if c.azureCloudConfig != "" && c.cloud == "" {
		return usageErrorf("with --azure-cloud-config and --bucket-secret, say with --cloud whose credentials they are")
	}
	return nil
}

// openWithKey opens a bucket with a key of its account.
func openWithKey(ctx context.Context, of provider, store Store, ref bucketRef) (Objects, error) {
	account, ok := store.(accountStore)
	if !ok {
		return nil, errors.New("the store has no accounts")
	}
	keys, err := account.Keys(ctx)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("the account of the bucket has no keys")
	}
	return of.openObjects(ref, account.EntryCredentials(keys[0]))
}

// entriesIn are the names under which backups lie in a bucket.
func entriesIn(ctx context.Context, objects Objects) (names []string, err error) {
	last := ""
	for page, err := range objects.pages(ctx, "", cursor{}) {
		if err != nil {
			return nil, err
		}
		for _, v := range page.versions {
			name, rest, ok := strings.Cut(v.key, "/")
			if ok && name != last && strings.HasPrefix(rest, etcdName) {
				names = append(names, name)
				last = name
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// readSecretFile reads a Secret in YAML or JSON, or a directory with one file for each key, as a Secret is mounted.
func readSecretFile(path string) (*corev1.Secret, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("--bucket-secret: %w", err)
	}
	if info.IsDir() {
		return readSecretDirectory(path)
	}
	if info.Size() > maxSecretFile {
		return nil, fmt.Errorf("--bucket-secret: %s is larger than a Secret can be", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--bucket-secret: %w", err)
	}
	// Errors of the decoders would show what is in it.
	var manifest struct {
		Kind             string
		Data, StringData map[string]string
	}
	if err := yaml.Unmarshal(text, &manifest); err != nil || manifest.Kind != "Secret" {
		return nil, fmt.Errorf("--bucket-secret: %s is neither a Secret in YAML or JSON nor a directory with one file for each key", path)
	}
	secret := &corev1.Secret{Data: map[string][]byte{}}
	for key, value := range manifest.Data {
		if secret.Data[key], err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(value), "")); err != nil {
			return nil, fmt.Errorf("--bucket-secret: %s in %s is not in base64", key, path)
		}
	}
	for key, value := range manifest.StringData {
		secret.Data[key] = []byte(value)
	}
	return secret, nil
}

func readSecretDirectory(path string) (*corev1.Secret, error) {
	files, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("--bucket-secret: %w", err)
	}
	secret := &corev1.Secret{Data: map[string][]byte{}}
	for _, file := range files {
		name := filepath.Join(path, file.Name())
		// A mounted Secret is links to files in a directory whose name begins so.
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() || strings.HasPrefix(file.Name(), "..") || info.Size() > maxSecretFile {
			continue
		}
		if secret.Data[file.Name()], err = os.ReadFile(name); err != nil {
			return nil, fmt.Errorf("--bucket-secret: %w", err)
		}
	}
	if len(secret.Data) == 0 {
		return nil, fmt.Errorf("--bucket-secret: there are no files in %s", path)
	}
	return secret, nil
}
