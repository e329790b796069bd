// The certificate that the webhook serves with: from files, read again when they change, or self-managed in a Secret that
// all replicas share. The CA bundle in the webhook configurations always has the authorities of every certificate
// that a replica may still serve, so that a renewal never makes a review fail. Conflicts of replicas are retried.

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	"k8s.io/klog/v2"
)

const (
	// certificateSecret keeps the self-managed certificates, under these keys and
	// tls.crt and tls.key.
	certificateSecret  = "bucketwarden-webhook"
	dataKeyCA          = "ca.crt"
	dataKeyPreviousCrt = "previous.crt"
	dataKeyPreviousKey = "previous.key"

	// maxServingCAs bounds the bundle if new certificates are needed again and again; a
	// renewal every two thirds of a lifetime leaves two or three.
	maxServingCAs = 16

	// Limits of what otherwise is a twentieth of the lifetime.
	maxCertificateGrace    = 10 * time.Minute
	maxCertificateBackdate = time.Hour

	// certificateFilesInterval is how often files are looked at while nobody connects.
	certificateFilesInterval = time.Minute
	// certificateInterval is how often the certificate is looked at without any event.
	certificateInterval = time.Hour
	// publishInterval keeps two installations that were given the same
	// configuration from overwriting each other as fast as they can.
	publishInterval = time.Second
)

// fileCertificate is a certificate that others keep in files, such as cert-manager.
type fileCertificate struct {
	crt, key string
	metrics  *metrics

	mu      sync.Mutex
	current *tls.Certificate
	// seen are the files as they were when they were read last.
	seen [2]os.FileInfo
}

// newFileCertificate reads tls.crt and tls.key of a directory.
func newFileCertificate(dir string, m *metrics) (*fileCertificate, error) {
	f := &fileCertificate{crt: filepath.Join(dir, corev1.TLSCertKey), key: filepath.Join(dir, corev1.TLSPrivateKeyKey), metrics: m}
	f.seen = f.stat()
	return f, f.load()
}

// stat follows symlinks, which is what Kubernetes swaps in a volume. A file that cannot be
// found is nil; reading it tells why.
func (f *fileCertificate) stat() (infos [2]os.FileInfo) {
	for i, path := range []string{f.crt, f.key} {
		if info, err := os.Stat(path); err == nil {
			infos[i] = info
		}
	}
	return infos
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func (f *fileCertificate) load() error {
	pair, err := tls.LoadX509KeyPair(f.crt, f.key)
	if err != nil {
		return fmt.Errorf("reading the certificate %s and its key %s: %w", f.crt, f.key, err)
	}
	f.current = &pair
	f.metrics.webhookCertificateExpiry.WithLabelValues().Set(float64(pair.Leaf.NotAfter.Unix()))
	klog.Background().Info("Serving with a certificate from files", "file", f.crt, "names", certificateNames(pair.Leaf),
		"notAfter", pair.Leaf.NotAfter)
	return nil
}

// run reads files that changed also while nobody connects, until ctx ends: what is shown of the certificate stays true.
func (f *fileCertificate) run(ctx context.Context) {
	wait.UntilWithContext(ctx, func(context.Context) { f.reload() }, certificateFilesInterval)
}

// get is a tls.Config's GetCertificate.
func (f *fileCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.reload(), nil }

// reload returns the certificate to serve with. Files that changed are read again; while they do not fit together, being
// half-written, the last certificate stays.
func (f *fileCertificate) reload() *tls.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	// The files are looked at before they are read: what changes in between is read again
	// next time.
	if now := f.stat(); !sameFile(now[0], f.seen[0]) || !sameFile(now[1], f.seen[1]) {
		f.seen = now
		if err := f.load(); err != nil {
			klog.Background().Error(err, "Could not load the changed certificate, serving with the last one",
				"notAfter", f.current.Leaf.NotAfter)
		}
	}
	return f.current
}

// ready returns nil: there is a certificate from the start.
func (f *fileCertificate) ready() error { return nil }

// servingPair is a serving certificate with its key, and the CA that signed it.
type servingPair struct {
	tls.Certificate
	ca       *x509.Certificate
	crt, key []byte
}

// servingGenerations is the contents of the Secret. Each certificate has a CA of its own
// whose key is gone, so that the Secret holds nothing that could sign another one.
type servingGenerations struct {
	// cas are newest first.
	cas []*x509.Certificate
	// newest and previous are nil if there is no usable one.
	newest, previous *servingPair
}

// certificateNames are the DNS names and IP addresses of a certificate, sorted.
func certificateNames(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	slices.Sort(names)
	return names
}

// validity includes what the certificate is backdated by.
func (p *servingPair) validity() time.Duration { return p.Leaf.NotAfter.Sub(p.Leaf.NotBefore) }

func (p *servingPair) renewAt() time.Time { return p.Leaf.NotAfter.Add(-p.validity() / 3) }

// grace is how long API servers may take to see a new bundle.
func (p *servingPair) grace() time.Duration { return min(p.validity()/20, maxCertificateGrace) }

// covers says that the pair will do for the server name that a client asks for, or for all
// of names if it asks for none, which it cannot for an IP address.
func (p *servingPair) covers(serverName string, names []string) bool {
	if serverName == "" {
		return slices.Equal(certificateNames(p.Leaf), names)
	}
	return p.Leaf.VerifyHostname(serverName) == nil
}

// issueServingPair makes a new CA, lets it sign one certificate and forgets its key.
func issueServingPair(names []string, now time.Time, lifetime time.Duration) (*servingPair, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating the key of a CA: %w", err)
	}
	// Backdated, as clocks differ. Serial numbers are generated.
	notBefore, notAfter := now.Add(-min(lifetime/20, maxCertificateBackdate)), now.Add(lifetime)
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: fmt.Sprintf("%s CA %s", certificateSecret, now.UTC().Format(time.RFC3339))},
		NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("signing a CA certificate: %w", err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading a new CA certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating the key of a certificate: %w", err)
	}
	template = &x509.Certificate{
		Subject:   pkix.Name{CommonName: certificateSecret},
		NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err = x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %q: %w", names, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of a certificate: %w", err)
	}
	// What would not be accepted when it is read again must not be stored: it would be
	// replaced at once, for ever.
	pair, err := parseServingPair(encodePEM("CERTIFICATE", der), encodePEM("PRIVATE KEY", keyDER), []*x509.Certificate{ca}, now)
	if err != nil {
		return nil, fmt.Errorf("checking a new certificate for %q: %w", names, err)
	}
	if !pair.covers("", names) {
		return nil, fmt.Errorf("a new certificate for %q has the names %q", names, certificateNames(pair.Leaf))
	}
	return pair, nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// encodeCAs is the caBundle of CA certificates.
func encodeCAs(cas []*x509.Certificate) []byte {
	var bundle []byte
	for _, ca := range cas {
		bundle = append(bundle, encodePEM("CERTIFICATE", ca.Raw)...)
	}
	return bundle
}

// parseCAs returns the CA certificates of a bundle and skips everything else.
func parseCAs(bundle []byte) []*x509.Certificate {
	var cas []*x509.Certificate
	for len(cas) < maxServingCAs {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			break
		}
		if ca, err := x509.ParseCertificate(block.Bytes); err == nil && ca.IsCA {
			cas = append(cas, ca)
		}
	}
	return cas
}

// parseServingPair returns the pair if a client that trusts cas would accept it now.
func parseServingPair(crt, key []byte, cas []*x509.Certificate, now time.Time) (*servingPair, error) {
	pair, err := tls.X509KeyPair(crt, key)
	if err != nil {
		return nil, err
	}
	if len(pair.Certificate) != 1 {
		return nil, fmt.Errorf("it is %d certificates instead of one", len(pair.Certificate))
	}
	if public, ok := pair.Leaf.PublicKey.(*ecdsa.PublicKey); !ok || public.Curve != elliptic.P256() {
		return nil, fmt.Errorf("its key is no ECDSA P-256 key but %s", pair.Leaf.PublicKeyAlgorithm)
	}
	roots := x509.NewCertPool()
	for _, ca := range cas {
		roots.AddCert(ca)
	}
	chains, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now})
	if err != nil {
		return nil, err
	}
	chain := chains[0]
	return &servingPair{Certificate: pair, ca: chain[len(chain)-1], crt: crt, key: key}, nil
}

// parseServingGenerations reads the contents of the Secret; the error is why there is no
// newest pair. A previous one that cannot be used is ignored.
func parseServingGenerations(data map[string][]byte, now time.Time) (servingGenerations, error) {
	g := servingGenerations{cas: parseCAs(data[dataKeyCA])}
	var err error
	if g.newest, err = parseServingPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey], g.cas, now); err != nil {
		g.newest = nil
	}
	if previous, err := parseServingPair(data[dataKeyPreviousCrt], data[dataKeyPreviousKey], g.cas, now); err == nil {
		g.previous = previous
	}
	return g, err
}

func (g *servingGenerations) data() map[string][]byte {
	data := map[string][]byte{dataKeyCA: encodeCAs(g.cas), corev1.TLSCertKey: g.newest.crt, corev1.TLSPrivateKeyKey: g.newest.key}
	if g.previous != nil {
		data[dataKeyPreviousCrt], data[dataKeyPreviousKey] = g.previous.crt, g.previous.key
	}
	return data
}

// servingState is what an instance knows. It is never changed.
type servingState struct {
	servingGenerations
	// names are those that the configuration has.
	names []string
	// published is since when this instance has seen the CA of the newest pair in every
	// caBundle, zero if it is not in all of them.
	published time.Time
}

// switchAt is when the newest pair replaces the previous one if it is published. A
// previous one about to expire does not wait for it, as clocks differ.
func (s *servingState) switchAt() time.Time {
	at := s.published.Add(s.newest.grace())
	if end := s.previous.Leaf.NotAfter.Add(-s.newest.grace()); end.Before(at) {
		return end
	}
	return at
}

// choose returns the pair to serve with: the newest one once every API server knows its
// CA, the previous one till then and for names that only that one has.
func (s *servingState) choose(now time.Time, serverName string) *servingPair {
	if p := s.previous; p != nil && now.Before(p.Leaf.NotAfter) && p.covers(serverName, s.names) {
		if s.published.IsZero() || now.Before(s.switchAt()) || !s.newest.covers(serverName, s.names) {
			return p
		}
	}
	return s.newest
}

// selfManagedCertificate keeps certificates in a Secret and their CAs in the caBundle of
// every webhook of its configurations. Any number of instances may do so at the same time.
type selfManagedCertificate struct {
	client         kubernetes.Interface
	namespace      string
	configurations []webhookConfiguration
	lifetime       time.Duration
	metrics        *metrics
	now            func() time.Time
	controller     *controller
	informers      []cache.SharedIndexInformer

	// state is nil until there is a certificate.
	state atomic.Pointer[servingState]

	// Of the controller's only worker: the certificate reported last, and when it last
	// wrote the configuration.
	reported    *x509.Certificate
	publishedAt time.Time
}

// newSelfManagedCertificate prepares certificates with a lifetime for webhook configurations,
// kept in a namespace.
func newSelfManagedCertificate(core kubernetes.Interface, meta metadata.Interface, namespace string,
	configurations []webhookConfiguration, lifetime time.Duration, m *metrics) (*selfManagedCertificate, error) {
	c := &selfManagedCertificate{client: core, namespace: namespace, configurations: configurations, lifetime: lifetime,
		metrics: m, now: time.Now,
		controller: newController(resourceCertificates, m)}
	c.controller.reconcile = c.reconcile
	// The key stands for all objects, which may not exist yet.
	key := cache.ObjectName{Name: certificateSecret}
	c.controller.enqueue(key)
	type watched struct {
		gvr             schema.GroupVersionResource
		namespace, name string
	}
	objects := []watched{{secretsGVR, namespace, certificateSecret}}
	for _, configuration := range configurations {
		objects = append(objects, watched{configuration.gvr(), metav1.NamespaceNone, configuration.name})
	}
	for _, object := range objects {
		// Only metadata, and only of this object, which is all that RBAC needs to allow.
		informer := metadatainformer.NewFilteredMetadataInformer(meta, object.gvr, object.namespace, 0, cache.Indexers{},
			func(options *metav1.ListOptions) {
				options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, object.name).String()
			}).Informer()
		if _, err := informer.AddEventHandler(onAnyEvent(func(*metav1.PartialObjectMetadata) { c.controller.enqueue(key) })); err != nil {
			return nil, fmt.Errorf("watching %s %s: %w", object.gvr.Resource, object.name, err)
		}
		c.informers = append(c.informers, informer)
	}
	return c, nil
}

// run keeps the certificate until ctx ends.
func (c *selfManagedCertificate) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, informer := range c.informers {
		wg.Go(func() { informer.RunWithContext(ctx) })
	}
	c.controller.run(ctx, ctx, 1)
}

// get is a tls.Config's GetCertificate.
func (c *selfManagedCertificate) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	state := c.state.Load()
	if state == nil {
		return nil, c.ready()
	}
	return &state.choose(c.now(), hello.ServerName).Certificate, nil
}

// ready says why there is no certificate to serve with.
func (c *selfManagedCertificate) ready() error {
	if c.state.Load() == nil {
		return errors.New("the webhook has no certificate yet")
	}
	return nil
}

// reconcile makes one pass, and another one if somebody else was faster.
func (c *selfManagedCertificate) reconcile(ctx context.Context, _ cache.ObjectName, _ bool) (time.Duration, error) {
	var next time.Duration
	err := retry.OnError(retry.DefaultRetry, func(err error) bool {
		return ctx.Err() == nil && (apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err))
	}, func() (err error) {
		next, err = c.pass(ctx)
		return err
	})
	return next, err
}

func (c *selfManagedCertificate) pass(ctx context.Context) (time.Duration, error) {
	// The configurations are read before the Secret and written only as they were read. So a
	// bundle never replaces one that was made of a newer Secret.
	var read []readConfiguration
	var names []string
	for _, configuration := range c.configurations {
		r, err := configuration.read(ctx, c.client)
		if err != nil {
			return 0, err
		}
		own, err := webhookNames(r.webhooks)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", configuration, err)
		}
		read, names = append(read, r), append(names, own...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	secret, err := c.client.CoreV1().Secrets(c.namespace).Get(ctx, certificateSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		secret = nil
	} else if err != nil {
		return 0, fmt.Errorf("reading secret %s/%s: %w", c.namespace, certificateSecret, err)
	}

	now := c.now()
	state := &servingState{names: names}
	var reason string
	if secret == nil {
		reason = "there is none"
	} else if state.servingGenerations, err = parseServingGenerations(secret.Data, now); err != nil {
		reason = fmt.Sprintf("the one in the secret cannot be used: %v", err)
	} else if c.seePublished(state, read, now); !state.newest.covers("", names) {
		reason = "the webhooks have other names"
	} else if !now.Before(state.newest.renewAt()) {
		reason = "less than a third of its lifetime is left"
	}
	if reason != "" {
		if state, err = c.renew(ctx, secret, state, now); err != nil {
			return 0, err
		}
		klog.FromContext(ctx).Info("Made a new certificate", "reason", reason, "names", names, "notAfter", state.newest.Leaf.NotAfter)
	}
	c.state.Store(state)
	defer c.report(ctx)

	bundle := encodeCAs(state.cas)
	outdated := slices.DeleteFunc(read, func(r readConfiguration) bool { return r.has(bundle) })
	if len(outdated) > 0 {
		if wait := publishInterval - now.Sub(c.publishedAt); wait > 0 && wait <= publishInterval {
			return wait, nil
		}
		for _, r := range outdated {
			if err := r.publish(ctx, c.client, bundle); err != nil {
				return 0, err
			}
		}
		c.publishedAt = c.now()
		if state.published.IsZero() {
			published := *state
			published.published = c.publishedAt
			state = &published
			c.state.Store(state)
		}
	}
	next := min(certificateInterval, state.newest.renewAt().Sub(now))
	if state.previous != nil && now.Before(state.switchAt()) {
		next = min(next, state.switchAt().Sub(now))
	}
	return next, nil
}

// seePublished records that every caBundle has the CA of the newest pair. The time counts
// from when this instance saw it first, which no clock but its own tells: a bundle may be
// published long after the certificate was made.
func (c *selfManagedCertificate) seePublished(state *servingState, configurations []readConfiguration, now time.Time) {
	for _, configuration := range configurations {
		for _, webhook := range configuration.webhooks {
			if !slices.ContainsFunc(parseCAs(webhook.client.CABundle), state.newest.ca.Equal) {
				return
			}
		}
	}
	state.published = now
	if before := c.state.Load(); before != nil && !before.published.IsZero() && before.newest.Leaf.Equal(state.newest.Leaf) {
		state.published = before.published
	}
}

// renew writes a new pair to the Secret as it was read, nil if there is none. The pair
// being served stays until API servers know the new one.
func (c *selfManagedCertificate) renew(ctx context.Context, secret *corev1.Secret, state *servingState,
	now time.Time) (*servingState, error) {
	pair, err := issueServingPair(state.names, now, c.lifetime)
	if err != nil {
		return nil, err
	}
	next := &servingState{names: state.names, servingGenerations: servingGenerations{newest: pair, previous: state.previous,
		cas: []*x509.Certificate{pair.ca}}}
	if state.newest != nil {
		// The webhooks may have other names now.
		serving := *state
		serving.names = certificateNames(state.newest.Leaf)
		next.previous = serving.choose(now, "")
	}
	for _, ca := range state.cas {
		if now.Before(ca.NotAfter) && len(next.cas) < maxServingCAs {
			next.cas = append(next.cas, ca)
		}
	}
	secrets := c.client.CoreV1().Secrets(c.namespace)
	if secret == nil {
		_, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: certificateSecret},
			Type: corev1.SecretTypeTLS, Data: next.data()}, metav1.CreateOptions{FieldManager: fieldManager})
		return next, wrapf(err, "creating secret %s/%s", c.namespace, certificateSecret)
	}
	secret = secret.DeepCopy()
	secret.Data = next.data()
	_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{FieldManager: fieldManager})
	return next, wrapf(err, "updating secret %s/%s", c.namespace, certificateSecret)
}

// report tells of the certificate being served if it is another one than before.
func (c *selfManagedCertificate) report(ctx context.Context) {
	leaf := c.state.Load().choose(c.now(), "").Leaf
	if c.reported != nil && c.reported.Equal(leaf) {
		return
	}
	c.reported = leaf
	c.metrics.webhookCertificateExpiry.WithLabelValues().Set(float64(leaf.NotAfter.Unix()))
	klog.FromContext(ctx).Info("Serving with a certificate", "names", certificateNames(leaf), "notAfter", leaf.NotAfter)
}
