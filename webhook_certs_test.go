package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
	corefake "k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

const (
	certificateTestNamespace     = "own"
	certificateTestConfiguration = "guard"
	certificateTestName          = "bucketwarden.own.svc"
	certificateTestLifetime      = 90 * 24 * time.Hour
)

var certificateTestStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// certificateTestServer is an API server with the two objects. Its clients are its own
// so that requests of several instances may overlap.
type certificateTestServer struct {
	t *testing.T

	mu      sync.Mutex
	version int
	secret  *corev1.Secret
	config  *admissionregistrationv1.ValidatingWebhookConfiguration
	// mutating is nil if there is none; of the same name.
	mutating *admissionregistrationv1.MutatingWebhookConfiguration
	// trace is what was requested.
	trace []string
	// before runs before a request is served; its error is the answer.
	before func(request string) error
	// bundles are the states of the first webhook's caBundle.
	bundles []certificateTestBundle
	// keys are all private keys that were ever stored.
	keys [][]byte
}

type certificateTestBundle struct {
	since time.Time
	pem   []byte
}

func newCertificateTestServer(t *testing.T) *certificateTestServer {
	s := &certificateTestServer{t: t}
	s.setConfiguration(certificateTestService("a", "bucketwarden"), certificateTestService("b", "bucketwarden"))
	return s
}

// configurations are those that an instance is told of.
func (s *certificateTestServer) configurations() []webhookConfiguration {
	all := []webhookConfiguration{{name: certificateTestConfiguration}}
	if s.mutating != nil {
		all = append(all, webhookConfiguration{mutating: true, name: certificateTestConfiguration})
	}
	return all
}

// setMutating is what an operator does to the MutatingWebhookConfiguration.
func (s *certificateTestServer) setMutating(webhooks ...admissionregistrationv1.MutatingWebhook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mutating = &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: certificateTestConfiguration, ResourceVersion: s.nextVersion()}, Webhooks: webhooks}
}

func certificateTestService(webhook, service string) admissionregistrationv1.ValidatingWebhook {
	return admissionregistrationv1.ValidatingWebhook{Name: webhook, ClientConfig: admissionregistrationv1.WebhookClientConfig{
		Service: &admissionregistrationv1.ServiceReference{Namespace: certificateTestNamespace, Name: service}}}
}

func certificateTestURL(webhook, url string) admissionregistrationv1.ValidatingWebhook {
	return admissionregistrationv1.ValidatingWebhook{Name: webhook, ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url}}
}

func (s *certificateTestServer) nextVersion() string {
	s.version++
	return strconv.Itoa(s.version)
}

// setConfiguration is what an operator does; none deletes it.
func (s *certificateTestServer) setConfiguration(webhooks ...admissionregistrationv1.ValidatingWebhook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = nil
	if len(webhooks) > 0 {
		s.config = &admissionregistrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: certificateTestConfiguration, ResourceVersion: s.nextVersion()}, Webhooks: webhooks}
	}
}

// bundle is the caBundle that all webhooks have.
func (s *certificateTestServer) bundle() []byte {
	s.t.Helper()
	first := s.config.Webhooks[0].ClientConfig.CABundle
	for _, webhook := range s.config.Webhooks {
		if !bytes.Equal(webhook.ClientConfig.CABundle, first) {
			s.t.Errorf("the webhooks have different bundles")
		}
	}
	return first
}

func (s *certificateTestServer) setBundle(bundle []byte) {
	webhooks := slices.Clone(s.config.Webhooks)
	for i := range webhooks {
		webhooks[i].ClientConfig.CABundle = bundle
	}
	s.setConfiguration(webhooks...)
}

// client makes requests that take as long as delay does, on their way there and back.
func (s *certificateTestServer) client(delay func()) kubernetes.Interface {
	client := &corefake.Clientset{}
	client.AddReactor("*", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		delay()
		defer delay()
		s.mu.Lock()
		defer s.mu.Unlock()
		obj, err := s.serve(action)
		return true, obj, err
	})
	return client
}

func (s *certificateTestServer) serve(action clienttesting.Action) (runtime.Object, error) {
	request := action.GetVerb() + " " + action.GetResource().Resource
	s.trace = append(s.trace, request)
	if s.before != nil {
		if err := s.before(request); err != nil {
			return nil, err
		}
	}
	resource := action.GetResource().GroupResource()
	conflict := func(have, want string) error {
		if have == want {
			return nil
		}
		return apierrors.NewConflict(resource, "x", fmt.Errorf("it is %s, not %q", have, want))
	}
	store := func(secret *corev1.Secret) (runtime.Object, error) {
		s.secret = secret.DeepCopy()
		s.secret.ResourceVersion = s.nextVersion()
		s.keys = append(s.keys, secret.Data[corev1.TLSPrivateKeyKey])
		return s.secret.DeepCopy(), nil
	}
	switch request {
	case "get secrets":
		if s.secret == nil || action.GetNamespace() != certificateTestNamespace || action.(clienttesting.GetAction).GetName() != "bucketwarden-webhook" {
			return nil, apierrors.NewNotFound(resource, "x")
		}
		return s.secret.DeepCopy(), nil
	case "create secrets":
		if s.secret != nil {
			return nil, apierrors.NewAlreadyExists(resource, "x")
		}
		return store(action.(clienttesting.CreateAction).GetObject().(*corev1.Secret))
	case "update secrets":
		secret := action.(clienttesting.UpdateAction).GetObject().(*corev1.Secret)
		if s.secret == nil {
			return nil, apierrors.NewNotFound(resource, "x")
		}
		if err := conflict(s.secret.ResourceVersion, secret.ResourceVersion); err != nil {
			return nil, err
		}
		return store(secret)
	case "get validatingwebhookconfigurations":
		if s.config == nil || action.(clienttesting.GetAction).GetName() != certificateTestConfiguration {
			return nil, apierrors.NewNotFound(resource, "x")
		}
		return s.config.DeepCopy(), nil
	case "get mutatingwebhookconfigurations":
		if s.mutating == nil || action.(clienttesting.GetAction).GetName() != certificateTestConfiguration {
			return nil, apierrors.NewNotFound(resource, "x")
		}
		return s.mutating.DeepCopy(), nil
	case "patch mutatingwebhookconfigurations":
		var patch admissionregistrationv1.MutatingWebhookConfiguration
		if err := json.Unmarshal(action.(clienttesting.PatchAction).GetPatch(), &patch); err != nil {
			s.t.Error(err)
		}
		if err := conflict(s.mutating.ResourceVersion, patch.ResourceVersion); err != nil {
			return nil, err
		}
		if len(patch.Webhooks) != len(s.mutating.Webhooks) {
			s.t.Errorf("the patch has %d webhooks of %d", len(patch.Webhooks), len(s.mutating.Webhooks))
		}
		for i := range s.mutating.Webhooks {
			s.mutating.Webhooks[i].ClientConfig.CABundle = patch.Webhooks[i].ClientConfig.CABundle
		}
		s.mutating.ResourceVersion = s.nextVersion()
		return s.mutating.DeepCopy(), nil
	case "patch validatingwebhookconfigurations":
		patch := action.(clienttesting.PatchAction)
		if patch.GetPatchType() != types.StrategicMergePatchType {
			s.t.Errorf("a %s", patch.GetPatchType())
		}
		var lock metav1.PartialObjectMetadata
		if err := json.Unmarshal(patch.GetPatch(), &lock); err != nil {
			s.t.Error(err)
		}
		if err := conflict(s.config.ResourceVersion, lock.ResourceVersion); err != nil {
			return nil, err
		}
		before, err := json.Marshal(s.config)
		if err != nil {
			s.t.Error(err)
		}
		after, err := strategicpatch.StrategicMergePatch(before, patch.GetPatch(), admissionregistrationv1.ValidatingWebhookConfiguration{})
		if err != nil {
			s.t.Error(err)
		}
		patched := &admissionregistrationv1.ValidatingWebhookConfiguration{}
		if err := json.Unmarshal(after, patched); err != nil {
			s.t.Error(err)
		}
		if len(patched.Webhooks) != len(s.config.Webhooks) {
			s.t.Errorf("the patch made %d webhooks of %d", len(patched.Webhooks), len(s.config.Webhooks))
		}
		patched.ResourceVersion = s.nextVersion()
		s.config = patched
		s.bundles = append(s.bundles, certificateTestBundle{since: time.Now(), pem: patched.Webhooks[0].ClientConfig.CABundle})
		return patched.DeepCopy(), nil
	}
	s.t.Errorf("unexpected request: %s", request)
	return nil, apierrors.NewForbidden(resource, "x", errors.New("not in the role"))
}

func certificateTestForbid(requests ...string) func(string) error {
	return func(request string) error {
		if slices.Contains(requests, request) {
			return apierrors.NewForbidden(secretsGVR.GroupResource(), "x", errors.New("RBAC says no"))
		}
		return nil
	}
}

// certificateTest is one instance on a clock of its own.
type certificateTest struct {
	*certificateTestServer
	*selfManagedCertificate
	clock time.Time
	ctx   context.Context
	log   ktesting.Buffer
}

// certificateTestMetadata knows no objects.
func certificateTestMetadata() *metadatafake.FakeMetadataClient {
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		panic(err)
	}
	return metadatafake.NewSimpleMetadataClient(scheme)
}

// instance starts another instance at a time. Whatever it logs must not show a key.
func (s *certificateTestServer) instance(at time.Time, lifetime time.Duration, delay func()) *certificateTest {
	s.t.Helper()
	certificates, err := newSelfManagedCertificate(s.client(delay), certificateTestMetadata(), certificateTestNamespace, s.configurations(), lifetime, newMetrics())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(certificates.controller.queue.ShutDown)
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(10)))
	c := &certificateTest{certificateTestServer: s, selfManagedCertificate: certificates, clock: at,
		ctx: klog.NewContext(s.t.Context(), logger), log: logger.GetSink().(ktesting.Underlier).GetBuffer()}
	certificates.now = func() time.Time { return c.clock }
	s.t.Cleanup(func() { c.wantNoKeys(c.log.String()) })
	return c
}

func newCertificateTest(t *testing.T) *certificateTest {
	t.Helper()
	return newCertificateTestServer(t).instance(certificateTestStart, certificateTestLifetime, func() {})
}

func (s *certificateTestServer) wantNoKeys(text string) {
	s.t.Helper()
	for _, key := range s.keys {
		lines := strings.Split(string(key), "\n")
		for _, line := range lines[min(1, len(lines)):] {
			if len(line) > 20 && !strings.HasPrefix(line, "-----") && strings.Contains(text, line) {
				s.t.Errorf("a private key is shown:\n%s", text)
			}
		}
	}
}

// pass makes one pass after some time, and returns what it requested.
func (c *certificateTest) pass(after time.Duration) (next time.Duration, requests []string, err error) {
	c.t.Helper()
	c.clock = c.clock.Add(after)
	c.trace = nil
	next, err = c.reconcile(c.ctx, cache.ObjectName{Name: certificateTestConfiguration}, false)
	if err != nil {
		c.wantNoKeys(err.Error())
	}
	return next, c.trace, err
}

var (
	certificateTestReads  = []string{"get validatingwebhookconfigurations", "get secrets"}
	certificateTestCreate = slices.Concat(certificateTestReads, []string{"create secrets", "patch validatingwebhookconfigurations"})
	certificateTestUpdate = slices.Concat(certificateTestReads, []string{"update secrets", "patch validatingwebhookconfigurations"})
	certificateTestRepair = slices.Concat(certificateTestReads, []string{"patch validatingwebhookconfigurations"})
)

// mustPass makes a pass that succeeds with exactly these requests.
func (c *certificateTest) mustPass(after time.Duration, want []string) time.Duration {
	c.t.Helper()
	next, requests, err := c.pass(after)
	if err != nil {
		c.t.Fatalf("the pass failed: %v", err)
	}
	if !slices.Equal(requests, want) {
		c.t.Fatalf("requests: got %q, want %q\n%s", requests, want, c.log.String())
	}
	if next <= 0 || next > certificateInterval {
		c.t.Errorf("next pass after %s", next)
	}
	return next
}

func (c *certificateTest) serving(serverName string) *x509.Certificate {
	c.t.Helper()
	certificate, err := c.get(&tls.ClientHelloInfo{ServerName: serverName})
	if err != nil {
		c.t.Fatal(err)
	}
	return certificate.Leaf
}

func (c *certificateTest) stored(key string) *x509.Certificate {
	c.t.Helper()
	pair, err := tls.X509KeyPair(c.secret.Data[key+".crt"], c.secret.Data[key+".key"])
	if err != nil {
		c.t.Fatalf("%s in the secret: %v", key, err)
	}
	return pair.Leaf
}

func (c *certificateTest) wantServing(want *x509.Certificate) {
	c.t.Helper()
	if got := c.serving(""); !got.Equal(want) {
		c.t.Errorf("serving with the certificate until %s, want that until %s", got.NotAfter, want.NotAfter)
	}
	if got := queueTestSeries(c.t, c.metrics, "bucketwarden_webhook_certificate_expiry_timestamp_seconds"); got != float64(want.NotAfter.Unix()) {
		c.t.Errorf("the metric says that it expires at %v, want %d", got, want.NotAfter.Unix())
	}
}

// connect is an API server that trusts a bundle; host is a name or an IP address.
func (c *certificateTest) connect(bundle []byte, host string) error {
	c.t.Helper()
	return certificateTestConnect(c.get, bundle, host, c.clock)
}

func certificateTestConnect(get func(*tls.ClientHelloInfo) (*tls.Certificate, error), bundle []byte, host string, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if conn, err := listener.Accept(); err == nil {
			_ = tls.Server(conn, &tls.Config{GetCertificate: get, MinVersion: tls.VersionTLS12}).Handshake()
			_ = conn.Close()
		}
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: host, Time: func() time.Time { return at }})
	if err == nil {
		err = conn.Close()
	}
	_ = listener.Close()
	<-served
	return err
}

func (c *certificateTest) mustConnect(bundle []byte, host string) {
	c.t.Helper()
	if err := c.connect(bundle, host); err != nil {
		c.t.Errorf("connecting to %s failed: %v", host, err)
	}
}

func TestCertificateFirstInstall(t *testing.T) {
	c := newCertificateTest(t)
	c.setConfiguration(certificateTestService("a", "bucketwarden"), certificateTestURL("b", "https://Admission.example.com.:8443/validate"),
		certificateTestURL("c", "https://[2001:DB8::1]/validate"), certificateTestURL("d", "https://192.0.2.7:10250"), certificateTestService("e", "bucketwarden"))
	if c.ready() == nil {
		t.Error("ready without a certificate")
	}
	if _, err := c.get(&tls.ClientHelloInfo{}); err == nil {
		t.Error("there is a certificate before the first pass")
	}
	if got := queueTestSeries(t, c.metrics, "bucketwarden_webhook_certificate_expiry_timestamp_seconds"); got != -1 {
		t.Errorf("the metric is there without a certificate: %v", got)
	}
	if next := c.mustPass(0, certificateTestCreate); next != certificateInterval {
		t.Errorf("next pass after %s", next)
	}
	if err := c.ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	if got := slices.Sorted(maps.Keys(c.secret.Data)); !slices.Equal(got, []string{"ca.crt", "tls.crt", "tls.key"}) || c.secret.Type != corev1.SecretTypeTLS {
		t.Errorf("secret of type %s with %q", c.secret.Type, got)
	}
	leaf := c.stored("tls")
	c.wantServing(leaf)
	for _, host := range []string{certificateTestName, "admission.example.com", "2001:db8::1", "192.0.2.7"} {
		c.mustConnect(c.bundle(), host)
	}
	if c.connect(c.bundle(), "other.own.svc") == nil {
		t.Error("the certificate is good for any name")
	}
	if !leaf.NotAfter.Equal(certificateTestStart.Add(certificateTestLifetime)) || !leaf.NotBefore.Equal(certificateTestStart.Add(-time.Hour)) {
		t.Errorf("valid from %s to %s", leaf.NotBefore, leaf.NotAfter)
	}
	if leaf.IsCA || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || leaf.SerialNumber.BitLen() < 64 {
		t.Errorf("CA %t, usage %v, serial number %s", leaf.IsCA, leaf.ExtKeyUsage, leaf.SerialNumber)
	}
	cas := parseCAs(c.bundle())
	if len(cas) != 1 || !cas[0].MaxPathLenZero || cas[0].KeyUsage != x509.KeyUsageCertSign || cas[0].PublicKey.(*ecdsa.PublicKey).Equal(leaf.PublicKey) {
		t.Errorf("bundle: %s", c.bundle())
	}

	c.mustPass(time.Minute, certificateTestReads)
	c.wantServing(leaf)
	if log := c.log.String(); strings.Count(log, "Made a new certificate") != 1 || strings.Count(log, "Serving with a certificate") != 1 || !strings.Contains(log, certificateTestName) {
		t.Errorf("log:\n%s", log)
	}
}

func TestCertificateRestart(t *testing.T) {
	c := newCertificateTest(t)
	c.mustPass(0, certificateTestCreate)
	leaf := c.stored("tls")
	again := c.instance(c.clock.Add(time.Hour), certificateTestLifetime, func() {})
	again.mustPass(0, certificateTestReads)
	again.wantServing(leaf)

	// Another lifetime only counts for the next certificate, or instances with different
	// flags would replace each other's.
	other := c.instance(c.clock.Add(time.Hour), 24*time.Hour, func() {})
	other.mustPass(0, certificateTestReads)
	other.wantServing(leaf)
}

func TestCertificateRenewal(t *testing.T) {
	c := newCertificateTest(t)
	c.mustPass(0, certificateTestCreate)
	first, old := c.stored("tls"), c.bundle()
	if next := c.mustPass(certificateTestLifetime*2/3-time.Hour, certificateTestReads); next != 40*time.Minute {
		// A third of 90 days and the hour it is backdated is 30 days and 20 minutes.
		t.Errorf("next pass after %s", next)
	}
	if next := c.mustPass(40*time.Minute, certificateTestUpdate); next != maxCertificateGrace {
		t.Errorf("next pass after %s", next)
	}
	second, both := c.stored("tls"), c.bundle()
	if second.Equal(first) || !c.stored("previous").Equal(first) || len(parseCAs(both)) != 2 || !bytes.HasSuffix(both, old) || !bytes.Equal(both, c.secret.Data["ca.crt"]) {
		t.Errorf("secret: %q", slices.Collect(maps.Keys(c.secret.Data)))
	}
	c.wantServing(first)
	c.mustConnect(old, certificateTestName)
	c.mustConnect(both, certificateTestName)
	// The certificate does not wait for the next pass, its metric does.
	c.clock = c.clock.Add(maxCertificateGrace - time.Second)
	c.wantServing(first)
	c.clock = c.clock.Add(time.Second)
	if !c.serving("").Equal(second) || !c.serving(certificateTestName).Equal(second) {
		t.Error("not switched after the grace period")
	}
	c.mustPass(0, certificateTestReads)
	c.wantServing(second)
	c.mustConnect(both, certificateTestName)

	// Shortly after a restart the previous one is as good, unless it is about to expire.
	again := c.instance(c.clock.Add(time.Hour), certificateTestLifetime, func() {})
	if next := again.mustPass(0, certificateTestReads); next != maxCertificateGrace {
		t.Errorf("next pass after %s", next)
	}
	again.wantServing(first)
	late := c.instance(first.NotAfter.Add(-maxCertificateGrace), certificateTestLifetime, func() {})
	late.mustPass(0, certificateTestReads)
	late.wantServing(second)

	// By the next renewal the first has expired.
	c.mustPass(certificateTestLifetime*2/3, certificateTestUpdate)
	if !c.stored("previous").Equal(second) || len(parseCAs(c.bundle())) != 2 || bytes.Contains(c.bundle(), old) {
		t.Errorf("the CA of an expired certificate stays in the bundle: %s", c.bundle())
	}
	c.wantServing(second)
}

// The new certificate is not used before its CA is published.
func TestCertificateNotPublished(t *testing.T) {
	c := newCertificateTest(t)
	c.mustPass(0, certificateTestCreate)
	first, old := c.stored("tls"), c.bundle()
	c.before = certificateTestForbid("patch validatingwebhookconfigurations")
	c.clock = first.NotAfter.Add(-certificateTestLifetime / 3)
	for i, want := range [][]string{certificateTestUpdate, certificateTestRepair, certificateTestRepair} {
		_, requests, err := c.pass(time.Minute)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), certificateTestConfiguration) {
			t.Fatalf("pass %d: %v", i, err)
		}
		if !slices.Equal(requests, want) {
			t.Errorf("pass %d: requests %q, want %q", i, requests, want)
		}
		c.wantServing(first)
		c.mustConnect(old, certificateTestName)
	}
	c.clock = first.NotAfter.Add(-time.Second)
	c.wantServing(first)
	second := c.stored("tls")

	// The grace period begins when it is published, however long it had been made before.
	c.before = nil
	c.clock = first.NotAfter.Add(-time.Hour)
	if next := c.mustPass(0, certificateTestRepair); next != maxCertificateGrace {
		t.Errorf("next pass after %s", next)
	}
	c.wantServing(first)
	c.mustPass(maxCertificateGrace, certificateTestReads)
	c.wantServing(second)
	c.mustConnect(c.bundle(), certificateTestName)

	t.Run("for ever", func(t *testing.T) {
		c := newCertificateTest(t)
		c.mustPass(0, certificateTestCreate)
		first := c.stored("tls")
		c.before = certificateTestForbid("patch validatingwebhookconfigurations")
		if _, _, err := c.pass(certificateTestLifetime * 3 / 4); !apierrors.IsForbidden(err) {
			t.Fatal(err)
		}
		c.clock = first.NotAfter
		if !c.serving("").Equal(c.stored("tls")) {
			t.Error("serving with an expired certificate though there is another one")
		}
	})
	t.Run("by hand", func(t *testing.T) {
		c := newCertificateTest(t)
		c.mustPass(0, certificateTestCreate)
		c.before = certificateTestForbid("patch validatingwebhookconfigurations")
		if _, _, err := c.pass(certificateTestLifetime * 3 / 4); !apierrors.IsForbidden(err) {
			t.Fatal(err)
		}
		// In another order, which alone is worth a patch.
		bundle := c.secret.Data["ca.crt"]
		cas := parseCAs(bundle)
		slices.Reverse(cas)
		c.setBundle(encodeCAs(cas))
		if _, _, err := c.pass(time.Minute); !apierrors.IsForbidden(err) {
			t.Fatal(err)
		}
		c.clock = c.clock.Add(maxCertificateGrace)
		if !c.serving("").Equal(c.stored("tls")) {
			t.Error("the published certificate is not served")
		}
	})
}

func TestCertificateRaces(t *testing.T) {
	// other runs another instance's pass right before a request of the first.
	race := func(t *testing.T, at time.Duration, request string, want []string) (*certificateTest, *certificateTest) {
		c := newCertificateTest(t)
		other := c.instance(c.clock, certificateTestLifetime, func() {})
		if at > 0 {
			c.mustPass(0, certificateTestCreate)
			other.mustPass(0, certificateTestReads)
			c.clock, other.clock = c.clock.Add(at), c.clock.Add(at)
		}
		c.before = func(got string) error {
			if got != request {
				return nil
			}
			c.before = nil
			trace := c.trace
			c.mu.Unlock()
			defer c.mu.Lock()
			if _, _, err := other.pass(0); err != nil {
				t.Errorf("the other instance: %v", err)
			}
			c.trace = trace
			return nil
		}
		c.mustPass(0, want)
		for _, instance := range []*certificateTest{c, other} {
			instance.mustPass(maxCertificateGrace, certificateTestReads)
			instance.wantServing(c.stored("tls"))
			instance.mustConnect(c.bundle(), certificateTestName)
		}
		return c, other
	}
	t.Run("create", func(t *testing.T) {
		c, _ := race(t, 0, "create secrets", slices.Concat(certificateTestReads, []string{"create secrets"}, certificateTestReads))
		if len(c.keys) != 1 {
			t.Errorf("%d certificates were stored", len(c.keys))
		}
	})
	t.Run("update", func(t *testing.T) {
		c, _ := race(t, certificateTestLifetime*2/3, "update secrets", slices.Concat(certificateTestReads, []string{"update secrets"}, certificateTestReads))
		if len(c.keys) != 2 || len(parseCAs(c.bundle())) != 2 {
			t.Errorf("%d certificates were stored", len(c.keys))
		}
	})
	t.Run("patch", func(t *testing.T) {
		race(t, certificateTestLifetime*2/3, "patch validatingwebhookconfigurations", slices.Concat(certificateTestUpdate, certificateTestReads))
	})
	// Having read the configuration before somebody else's renewal, this one publishes
	// nothing older.
	t.Run("between the reads", func(t *testing.T) {
		c, _ := race(t, certificateTestLifetime*2/3, "get secrets", slices.Concat(certificateTestRepair, certificateTestReads))
		if len(c.keys) != 2 || len(parseCAs(c.bundle())) != 2 {
			t.Errorf("%d certificates were stored", len(c.keys))
		}
	})
	t.Run("always lost", func(t *testing.T) {
		c := newCertificateTest(t)
		c.before = func(request string) error {
			if request == "create secrets" {
				return apierrors.NewAlreadyExists(secretsGVR.GroupResource(), "x")
			}
			return nil
		}
		if _, _, err := c.pass(0); !apierrors.IsAlreadyExists(err) {
			t.Errorf("got %v", err)
		}
	})
}

func TestCertificateNames(t *testing.T) {
	c := newCertificateTest(t)
	c.mustPass(0, certificateTestCreate)
	first, old := c.stored("tls"), c.bundle()

	// A webhook joins under another name, without a caBundle.
	webhooks := append(slices.Clone(c.config.Webhooks), certificateTestURL("c", "https://admission.example.com/validate"))
	c.setConfiguration(webhooks...)
	c.mustPass(time.Hour, certificateTestUpdate)
	second := c.stored("tls")
	c.mustConnect(old, certificateTestName)
	c.mustConnect(c.bundle(), certificateTestName)
	c.mustConnect(c.bundle(), "admission.example.com")
	if !c.serving(certificateTestName).Equal(first) || !c.serving("").Equal(second) {
		t.Error("the old name needs the old certificate, no name the one with all of them")
	}
	c.mustPass(maxCertificateGrace, certificateTestReads)
	c.wantServing(second)
	if !c.serving(certificateTestName).Equal(second) {
		t.Error("not switched after the grace period")
	}

	// All have another name; some API servers do not know yet. While that certificate is
	// new, the one before stays for them, not the one between.
	both := c.bundle()
	c.setConfiguration(certificateTestService("a", "one"))
	c.mustPass(time.Hour, certificateTestUpdate)
	c.setConfiguration(certificateTestService("a", "two"))
	c.mustPass(time.Minute, certificateTestUpdate)
	c.mustConnect(c.bundle(), "two.own.svc")
	c.setBundle(nil)
	c.mustPass(time.Minute, certificateTestRepair)
	c.mustConnect(c.bundle(), "two.own.svc")
	if len(parseCAs(both)) != 2 || len(parseCAs(c.bundle())) != 4 {
		t.Errorf("%d CAs, then %d", len(parseCAs(both)), len(parseCAs(c.bundle())))
	}

	// A renewal is new when the name changes: API servers with the old name know only the
	// certificate before.
	d := newCertificateTest(t)
	d.mustPass(0, certificateTestCreate)
	old = d.bundle()
	d.mustPass(certificateTestLifetime*2/3, certificateTestUpdate)
	d.setConfiguration(certificateTestService("a", "two"))
	d.mustPass(time.Minute, certificateTestUpdate)
	d.mustConnect(old, certificateTestName)
	d.mustConnect(d.bundle(), "two.own.svc")
	d.clock = d.clock.Add(time.Hour)
	d.mustConnect(old, certificateTestName)
	d.mustConnect(d.bundle(), "two.own.svc")
}

// Names that change all the time do not let the objects grow.
func TestCertificateBundleIsBounded(t *testing.T) {
	c := newCertificateTest(t)
	for i := range 3 * maxServingCAs {
		c.setConfiguration(certificateTestService("a", fmt.Sprintf("s%d", i)))
		if _, _, err := c.pass(time.Minute); err != nil {
			t.Fatal(err)
		}
		c.mustConnect(c.bundle(), fmt.Sprintf("s%d.own.svc", i))
	}
	if n := len(parseCAs(c.bundle())); n != maxServingCAs {
		t.Errorf("the bundle has %d CAs", n)
	}
}

func TestCertificateBrokenSecret(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	// signed is a pair that an own CA signs, of what key it likes.
	signed := func(data map[string][]byte, public, private any) {
		caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{DNSNames: []string{certificateTestName}, NotBefore: certificateTestStart, NotAfter: certificateTestStart.Add(certificateTestLifetime), IsCA: true, BasicConstraintsValid: true}
		ca, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseCertificate(ca)
		if err != nil {
			t.Fatal(err)
		}
		template.IsCA = false
		leaf, err := x509.CreateCertificate(rand.Reader, template, parsed, public, caKey)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		data["ca.crt"] = append(encodePEM("CERTIFICATE", ca), data["ca.crt"]...)
		data["tls.crt"], data["tls.key"] = encodePEM("CERTIFICATE", leaf), encodePEM("PRIVATE KEY", der)
	}
	tests := []struct {
		name  string
		spoil func(data map[string][]byte)
		// cas is how many are in the bundle then.
		cas int
		// previous: the one before stays.
		previous bool
		// reason is a part of the log.
		reason string
	}{
		{"empty", func(data map[string][]byte) { clear(data) }, 1, false, "failed to find any PEM data"},
		{"garbage", func(data map[string][]byte) {
			for key := range data {
				data[key] = []byte("-----BEGIN GARBAGE-----")
			}
		}, 1, false, "failed to find any PEM data"},
		{"no certificate", func(data map[string][]byte) { delete(data, "tls.crt") }, 3, true, "failed to find any PEM data"},
		{"garbage as certificate", func(data map[string][]byte) { data["tls.crt"] = encodePEM("CERTIFICATE", []byte("garbage")) }, 3, true, "x509: malformed certificate"},
		{"a key as certificate", func(data map[string][]byte) { data["tls.crt"] = data["tls.key"] }, 3, true, "did find a private key"},
		{"garbage as key", func(data map[string][]byte) { data["tls.key"] = encodePEM("PRIVATE KEY", []byte("garbage")) }, 3, true, "failed to parse private key"},
		{"another key", func(data map[string][]byte) { data["tls.key"] = encodePEM("PRIVATE KEY", otherKey) }, 3, true, "does not match"},
		{"cut off", func(data map[string][]byte) { data["tls.key"] = data["tls.key"][:100] }, 3, true, "failed to find any PEM data in key"},
		{"a chain", func(data map[string][]byte) { data["tls.crt"] = append(data["tls.crt"], data["ca.crt"]...) }, 3, true, "it is 3 certificates instead of one"},
		{"huge", func(data map[string][]byte) {
			data["tls.crt"] = append(data["tls.crt"], bytes.Repeat(data["tls.crt"], 500)...)
			data["ca.crt"] = append(data["ca.crt"], bytes.Repeat(data["ca.crt"], 300)...)
		}, maxServingCAs, true, "it is 501 certificates instead of one"},
		{"no CA", func(data map[string][]byte) { delete(data, "ca.crt") }, 1, false, "unknown authority"},
		{"garbage as CA", func(data map[string][]byte) {
			data["ca.crt"] = append([]byte("garbage\n"), encodePEM("CERTIFICATE", []byte("garbage"))...)
		}, 1, false, "unknown authority"},
		{"another CA", func(data map[string][]byte) {
			copied := maps.Clone(data)
			signed(copied, key.Public(), key)
			data["ca.crt"] = copied["ca.crt"][:bytes.Index(copied["ca.crt"], data["ca.crt"])]
		}, 2, false, "unknown authority"},
		{"a serving certificate as CA", func(data map[string][]byte) { data["ca.crt"] = data["tls.crt"] }, 1, false, "unknown authority"},
		{"another kind of key", func(data map[string][]byte) {
			public, private, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			signed(data, public, private)
		}, 4, true, "its key is no ECDSA P-256 key but Ed25519"},
		{"another curve", func(data map[string][]byte) {
			key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			signed(data, key.Public(), key)
		}, 4, true, "its key is no ECDSA P-256 key but ECDSA"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCertificateTest(t)
			c.mustPass(0, certificateTestCreate)
			first := c.stored("tls")
			c.mustPass(certificateTestLifetime*2/3, certificateTestUpdate)
			test.spoil(c.secret.Data)
			for _, key := range c.secret.Data {
				c.keys = append(c.keys, key)
			}
			// The one kept as previous serves on as before, in this and another instance.
			c.mustPass(time.Minute, certificateTestUpdate)
			if !strings.Contains(c.log.String(), test.reason) {
				t.Errorf("want the reason %q:\n%s", test.reason, c.log.String())
			}
			if got := len(parseCAs(c.bundle())); got != test.cas {
				t.Errorf("%d CAs are published, want %d", got, test.cas)
			}
			if _, ok := c.secret.Data["previous.crt"]; ok != test.previous {
				t.Errorf("previous: %t, want %t", ok, test.previous)
			} else if ok && !c.stored("previous").Equal(first) {
				t.Error("the previous certificate was replaced")
			}
			c.mustConnect(c.bundle(), certificateTestName)
			c.mustPass(maxCertificateGrace, certificateTestReads)
			c.wantServing(c.stored("tls"))
			c.mustConnect(c.bundle(), certificateTestName)
		})
	}
	// What this version could make is taken from whoever made it.
	t.Run("a good one of somebody else", func(t *testing.T) {
		c := newCertificateTest(t)
		c.mustPass(0, certificateTestCreate)
		signed(c.secret.Data, key.Public(), key)
		c.mustPass(time.Minute, certificateTestRepair)
		c.mustPass(time.Minute, certificateTestReads)
		c.mustConnect(c.bundle(), certificateTestName)
	})
	t.Run("a broken previous one", func(t *testing.T) {
		c := newCertificateTest(t)
		c.mustPass(0, certificateTestCreate)
		c.mustPass(certificateTestLifetime*2/3, certificateTestUpdate)
		c.secret.Data["previous.key"] = []byte("garbage")
		c.mustPass(time.Minute, certificateTestReads)
		c.wantServing(c.stored("tls"))
	})
	t.Run("expired", func(t *testing.T) {
		c := newCertificateTest(t)
		c.mustPass(0, certificateTestCreate)
		c.mustPass(certificateTestLifetime, certificateTestUpdate)
		c.wantServing(c.stored("tls"))
		c.mustConnect(c.bundle(), certificateTestName)
		if len(parseCAs(c.bundle())) != 1 {
			t.Error("an expired CA is published")
		}
	})
	// Whoever deletes the secret wants nothing of it to be trusted any more.
	t.Run("deleted", func(t *testing.T) {
		c := newCertificateTest(t)
		c.mustPass(0, certificateTestCreate)
		first := c.stored("tls")
		c.secret = nil
		c.mustPass(time.Minute, certificateTestCreate)
		c.mustConnect(c.bundle(), certificateTestName)
		if c.stored("tls").Equal(first) || len(parseCAs(c.bundle())) != 1 {
			t.Error("the deleted certificate is still trusted")
		}
	})
}

func TestCertificateBundleRepaired(t *testing.T) {
	c := newCertificateTest(t)
	c.mustPass(0, certificateTestCreate)
	leaf, good := c.stored("tls"), c.bundle()
	webhooks := slices.Clone(c.config.Webhooks)
	webhooks[1].ClientConfig.CABundle = nil
	for _, spoil := range []func(){
		func() { c.setBundle(nil) },
		func() { c.setBundle([]byte("garbage")) },
		func() { c.setBundle(append(good, good...)) },
		func() { c.setConfiguration(webhooks...) },
	} {
		spoil()
		c.mustPass(time.Minute, certificateTestRepair)
		if !bytes.Equal(c.bundle(), good) {
			t.Errorf("bundle: %s", c.bundle())
		}
		c.wantServing(leaf)
	}
	// Somebody else who writes it as soon as we do is answered once a second.
	c.setBundle(nil)
	if next := c.mustPass(300*time.Millisecond, certificateTestReads); next != 700*time.Millisecond {
		t.Errorf("next pass after %s", next)
	}
	c.mustPass(700*time.Millisecond, certificateTestRepair)
	// A clock that goes back does not stop it.
	c.setBundle(nil)
	c.mustPass(-time.Hour, certificateTestRepair)

	// An older bundle comes back during a renewal: its certificate is still there.
	c.mustPass(certificateTestLifetime*3/4, certificateTestUpdate)
	c.mustPass(maxCertificateGrace, certificateTestReads)
	c.wantServing(c.stored("tls"))
	c.setBundle(good)
	c.before = certificateTestForbid("patch validatingwebhookconfigurations")
	if _, _, err := c.pass(time.Minute); !apierrors.IsForbidden(err) {
		t.Error(err)
	}
	c.wantServing(leaf)
	c.mustConnect(good, certificateTestName)
}

// The MutatingWebhookConfiguration is looked after as the ValidatingWebhookConfiguration is, and a new certificate is not
// served before both have its CA.
func TestCertificateOfBothConfigurations(t *testing.T) {
	s := newCertificateTestServer(t)
	s.setMutating(admissionregistrationv1.MutatingWebhook{Name: "m", ClientConfig: certificateTestURL("", "https://m.example.com/x").ClientConfig})
	c := s.instance(certificateTestStart, certificateTestLifetime, func() {})
	reads := []string{"get validatingwebhookconfigurations", "get mutatingwebhookconfigurations", "get secrets"}
	with := func(more ...string) []string { return slices.Concat(reads, more) }
	const patchValidating, patchMutating = "patch validatingwebhookconfigurations", "patch mutatingwebhookconfigurations"
	bundle := func() []byte { return s.mutating.Webhooks[0].ClientConfig.CABundle }
	c.mustPass(0, with("create secrets", patchValidating, patchMutating))
	first := c.stored("tls")
	if !bytes.Equal(bundle(), c.bundle()) || len(bundle()) == 0 {
		t.Errorf("bundles: %s and %s", bundle(), c.bundle())
	}
	if want := []string{certificateTestName, "m.example.com"}; !slices.Equal(certificateNames(first), want) {
		t.Errorf("names: %q", certificateNames(first))
	}
	c.mustConnect(bundle(), "m.example.com")
	c.mustPass(time.Hour, reads)
	// Only what is wrong is written.
	s.setMutating(admissionregistrationv1.MutatingWebhook{Name: "m", ClientConfig: certificateTestURL("", "https://m.example.com/x").ClientConfig})
	c.mustPass(time.Minute, with(patchMutating))
	c.setBundle(nil)
	c.mustPass(time.Minute, with(patchValidating))

	c.before = certificateTestForbid(patchMutating)
	if _, requests, err := c.pass(certificateTestLifetime * 3 / 4); !apierrors.IsForbidden(err) || !slices.Equal(requests, with("update secrets", patchValidating, patchMutating)) {
		t.Errorf("%v, %q", err, requests)
	}
	for range 2 {
		if _, _, err := c.pass(2 * maxCertificateGrace); !apierrors.IsForbidden(err) {
			t.Error(err)
		}
		c.wantServing(first)
	}
	c.before = nil
	c.mustPass(time.Minute, with(patchMutating))
	c.wantServing(first)
	c.mustPass(maxCertificateGrace, reads)
	c.wantServing(c.stored("tls"))

	s.mutating = nil
	if _, _, err := c.pass(time.Minute); err == nil || !strings.Contains(err.Error(), "the MutatingWebhookConfiguration guard does not exist: create it") ||
		!strings.Contains(err.Error(), "set --mutating-webhook-configuration") {
		t.Error(err)
	}
}

func TestCertificateErrors(t *testing.T) {
	tests := []struct {
		name string
		// webhooks replace those of the configuration; forbidden is a request.
		webhooks  []admissionregistrationv1.ValidatingWebhook
		forbidden string
		want      string
	}{
		{name: "no configuration", want: "the ValidatingWebhookConfiguration guard does not exist: create it (the Helm chart has it), set --webhook-configuration, or switch admission off with --webhook-address="},
		{name: "no webhook", webhooks: []admissionregistrationv1.ValidatingWebhook{}, want: "ValidatingWebhookConfiguration guard: it has no webhooks, so that nothing says which names the certificate must have"},
		{name: "no address", webhooks: []admissionregistrationv1.ValidatingWebhook{{Name: "a"}}, want: "ValidatingWebhookConfiguration guard: the webhook a has neither clientConfig.service nor clientConfig.url"},
		{name: "no URL", webhooks: []admissionregistrationv1.ValidatingWebhook{certificateTestURL("a", "https://[::1")}, want: `ValidatingWebhookConfiguration guard: clientConfig.url of the webhook a: parse "https://[::1": missing ']' in host`},
		{name: "no host", webhooks: []admissionregistrationv1.ValidatingWebhook{certificateTestURL("a", "https://:443/x")}, want: "ValidatingWebhookConfiguration guard: clientConfig.url of the webhook a has no host"},
		{name: "no DNS name", webhooks: []admissionregistrationv1.ValidatingWebhook{certificateTestURL("a", "https://bücket.example.com")}, want: `signing a certificate for ["bücket.example.com"]: x509: "bücket.example.com" cannot be encoded as an IA5String`},
		{name: "configuration forbidden", forbidden: "get validatingwebhookconfigurations", want: `reading the ValidatingWebhookConfiguration guard: secrets "x" is forbidden: RBAC says no`},
		{name: "secret forbidden", forbidden: "get secrets", want: `reading secret own/bucketwarden-webhook: secrets "x" is forbidden: RBAC says no`},
		{name: "create forbidden", forbidden: "create secrets", want: `creating secret own/bucketwarden-webhook: secrets "x" is forbidden: RBAC says no`},
		{name: "update forbidden", forbidden: "update secrets", want: `updating secret own/bucketwarden-webhook: secrets "x" is forbidden: RBAC says no`},
		{name: "patch forbidden", forbidden: "patch validatingwebhookconfigurations", want: `writing caBundle to the ValidatingWebhookConfiguration guard: secrets "x" is forbidden: RBAC says no`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCertificateTest(t)
			spoil := func() {
				if test.forbidden != "" {
					c.before = certificateTestForbid(test.forbidden)
					return
				}
				c.setConfiguration(test.webhooks...)
				if test.webhooks != nil && len(test.webhooks) == 0 {
					c.setConfiguration(certificateTestService("a", "x"))
					c.config.Webhooks = nil
				}
			}
			if test.forbidden != "update secrets" {
				spoil()
				if _, _, err := c.pass(0); err == nil || err.Error() != test.want {
					t.Errorf("first pass:\ngot  %v\nwant %s", err, test.want)
				}
				if test.forbidden != "patch validatingwebhookconfigurations" && c.ready() == nil {
					t.Error("ready without a certificate")
				}
			}
			c = newCertificateTest(t)
			c.mustPass(0, certificateTestCreate)
			leaf := c.stored("tls")
			if test.forbidden == "create secrets" {
				c.secret = nil
			}
			spoil()
			if _, _, err := c.pass(certificateTestLifetime * 3 / 4); err == nil || err.Error() != test.want {
				t.Errorf("later:\ngot  %v\nwant %s", err, test.want)
			}
			c.wantServing(leaf)
		})
	}
}

func TestCertificateWebhookNames(t *testing.T) {
	var configured []configuredWebhook
	for _, w := range []admissionregistrationv1.ValidatingWebhook{
		certificateTestService("a", "z"), certificateTestService("b", "bucketwarden"), certificateTestService("c", "z"),
		certificateTestURL("d", "https://EXAMPLE.com.:8443/validate"), certificateTestURL("e", "https://example.com"),
		certificateTestURL("f", "https://[2001:DB8:0::1]:10250/validate"), certificateTestURL("g", "https://[::ffff:192.0.2.1]/"), certificateTestURL("h", "https://192.0.2.1/"),
	} {
		configured = append(configured, configuredWebhook{w.Name, w.ClientConfig})
	}
	got, err := webhookNames(configured)
	if want := []string{"192.0.2.1", "2001:db8::1", certificateTestName, "example.com", "z.own.svc"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	pair, err := issueServingPair(got, certificateTestStart, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if !pair.covers("", got) || pair.covers("", got[1:]) || !pair.covers("Z.own.svc", nil) || pair.covers("y.own.svc", got) {
		t.Errorf("it has the names %q", certificateNames(pair.Leaf))
	}
	// Names that no certificate can have are no reason to make one after the other.
	if _, err := issueServingPair([]string{"b", "a"}, certificateTestStart, time.Hour); err == nil {
		t.Error("a certificate that is not as asked for")
	}
}

// Every certificate is accepted when it is read again, whatever its lifetime.
func TestCertificateLifetimes(t *testing.T) {
	for _, lifetime := range []time.Duration{5 * time.Second, 20 * time.Second, time.Minute, time.Hour, 24 * time.Hour, 10 * 365 * 24 * time.Hour} {
		t.Run(lifetime.String(), func(t *testing.T) {
			c := newCertificateTestServer(t).instance(certificateTestStart.Add(987*time.Millisecond), lifetime, func() {})
			next := c.mustPass(0, certificateTestCreate)
			for range 3 {
				first := c.stored("tls")
				for c.stored("tls").Equal(first) {
					if next > lifetime/2 && next != certificateInterval {
						next = lifetime / 2
					}
					var err error
					if left := first.NotAfter.Sub(c.clock); left > lifetime/3+2*certificateInterval {
						next = left - lifetime/3 - 2*certificateInterval
					}
					if next, _, err = c.pass(next); err != nil {
						t.Fatal(err)
					}
					c.mustConnect(c.bundle(), certificateTestName)
				}
				if left := first.NotAfter.Sub(c.clock); left < lifetime/5 {
					t.Errorf("renewed %s before its end", left)
				}
				c.wantServing(first)
			}
		})
	}
}

// Two instances that are slow, late and restarted at any time never show a certificate
// that an API server does not accept whose bundle is older by nearly the grace period.
func TestCertificateModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { certificateTestModel(t, seed) })
		})
	}
}

func certificateTestModel(t *testing.T, seed uint64) {
	const (
		lifetime = 12 * time.Hour
		lag      = maxCertificateGrace - time.Second
		end      = 12 * lifetime
	)
	s := newCertificateTestServer(t)
	ctx, stop := context.WithTimeout(t.Context(), end)
	defer stop()
	var wg sync.WaitGroup
	var mu sync.Mutex
	instances := make([]*certificateTest, 2)
	for i := range instances {
		random := mathrand.New(mathrand.NewPCG(seed, uint64(i)))
		// slowly is mostly short, but may be as long as the grace period.
		slowly := func() {
			d := time.Duration(random.Int64N(int64(time.Second)))
			if random.IntN(4) == 0 {
				d = time.Duration(random.Int64N(int64(lag)))
			}
			time.Sleep(d)
		}
		wg.Go(func() {
			var c *certificateTest
			for ctx.Err() == nil {
				if c == nil || random.IntN(30) == 0 {
					c = s.instance(time.Time{}, lifetime, slowly)
					c.selfManagedCertificate.now = time.Now
					// Its tickers would be most of the work.
					c.controller.queue.ShutDown()
					mu.Lock()
					instances[i] = c
					mu.Unlock()
				}
				next, err := c.reconcile(c.ctx, cache.ObjectName{}, false)
				if err != nil {
					if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
						t.Errorf("pass: %v", err)
					}
					next = time.Second
				}
				// Another object's event may come sooner.
				time.Sleep(min(next, time.Duration(random.Int64N(int64(2*time.Hour)))))
				slowly()
			}
		})
	}
	random := mathrand.New(mathrand.NewPCG(seed, 99))
	// verified remembers which certificates a bundle is good for, time aside.
	verified := map[string]bool{}
	checks, served := 0, map[string]bool{}
	for ctx.Err() == nil {
		time.Sleep(time.Duration(random.Int64N(int64(time.Minute))))
		s.mu.Lock()
		bundles := s.bundles
		s.mu.Unlock()
		seen := time.Now().Add(-time.Duration(random.Int64N(int64(lag))))
		n := 0
		for n < len(bundles) && !bundles[n].since.After(seen) {
			n++
		}
		if n == 0 {
			continue
		}
		for i := range instances {
			mu.Lock()
			c := instances[i]
			mu.Unlock()
			if c.ready() != nil {
				continue
			}
			leaf := c.serving(certificateTestName)
			key := fmt.Sprintf("%d %s", n, leaf.SerialNumber)
			ok, known := verified[key]
			if !known {
				roots := x509.NewCertPool()
				roots.AppendCertsFromPEM(bundles[n-1].pem)
				_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: certificateTestName, CurrentTime: leaf.NotBefore})
				ok = err == nil
				verified[key] = ok
			}
			if now := time.Now(); !ok || now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
				t.Fatalf("after %s instance %d serves the certificate from %s to %s, good for the bundle of %s: %t", now.Sub(bundles[0].since), i, leaf.NotBefore, leaf.NotAfter, bundles[n-1].since, ok)
			}
			checks++
			served[leaf.SerialNumber.String()] = true
		}
	}
	wg.Wait()
	if len(served) < 15 || len(s.keys) > len(served)+2 || checks < 1000 {
		t.Errorf("%d checks saw %d certificates of %d", checks, len(served), len(s.keys))
	}
}

// With real informers: what happens to the objects is seen, and only to these.
func TestCertificateRun(t *testing.T) {
	s := newCertificateTestServer(t)
	s.setMutating()
	s.mutating.Webhooks = []admissionregistrationv1.MutatingWebhook{{Name: "m", ClientConfig: certificateTestService("", "bucketwarden").ClientConfig}}
	meta := certificateTestMetadata()
	object := func(gvr, kind, namespace, name, version string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: gvr, Kind: kind}, ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, ResourceVersion: version}}
	}
	configuration := func(version string) *metav1.PartialObjectMetadata {
		return object("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "", certificateTestConfiguration, version)
	}
	if err := meta.Tracker().Create((webhookConfiguration{}).gvr(), configuration("1"), ""); err != nil {
		t.Fatal(err)
	}
	c, err := newSelfManagedCertificate(s.client(func() {}), meta, certificateTestNamespace, s.configurations(), certificateTestLifetime, newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(klog.NewContext(t.Context(), klog.New(harnessLogs{t})))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.run(ctx)
	}()
	published := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.secret != nil && bytes.Equal(s.config.Webhooks[1].ClientConfig.CABundle, s.secret.Data["ca.crt"])
	}
	informersTestAwait(t, "published", published)
	for _, informer := range c.informers {
		informersTestAwait(t, "synced", informer.HasSynced)
	}

	s.setBundle(nil)
	if err := meta.Tracker().Update((webhookConfiguration{}).gvr(), configuration("2"), ""); err != nil {
		t.Fatal(err)
	}
	informersTestAwait(t, "repaired", published)

	s.mu.Lock()
	s.secret = nil
	s.mu.Unlock()
	if err := meta.Tracker().Create(secretsGVR, object("v1", "Secret", certificateTestNamespace, certificateSecret, "3"), certificateTestNamespace); err != nil {
		t.Fatal(err)
	}
	informersTestAwait(t, "made again", published)
	stop()
	<-ended

	var lists []string
	for _, action := range meta.Actions() {
		switch a := action.(type) {
		case clienttesting.ListActionImpl:
			lists = append(lists, fmt.Sprintf("list %s in %q with %s", a.Resource.Resource, a.Namespace, a.ListRestrictions.Fields))
		case clienttesting.WatchActionImpl:
			lists = append(lists, fmt.Sprintf("watch %s in %q with %s", a.Resource.Resource, a.Namespace, a.WatchRestrictions.Fields))
		}
	}
	slices.Sort(lists)
	want := []string{
		`list mutatingwebhookconfigurations in "" with metadata.name=guard`, `list secrets in "own" with metadata.name=bucketwarden-webhook`, `list validatingwebhookconfigurations in "" with metadata.name=guard`,
		`watch mutatingwebhookconfigurations in "" with metadata.name=guard`, `watch secrets in "own" with metadata.name=bucketwarden-webhook`, `watch validatingwebhookconfigurations in "" with metadata.name=guard`}
	if lists = slices.Compact(lists); !reflect.DeepEqual(lists, want) {
		t.Errorf("got %q\nwant %q", lists, want)
	}
}

// certificateTestFiles is a certificate in files, with the global log.
type certificateTestFiles struct {
	*fileCertificate
	t   *testing.T
	dir string
	log ktesting.Buffer
}

func certificateTestGlobalLog(t *testing.T) ktesting.Buffer {
	t.Cleanup(klog.CaptureState().Restore)
	logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(10)))
	klog.SetLoggerWithOptions(logger, klog.ContextualLogger(true))
	return logger.GetSink().(ktesting.Underlier).GetBuffer()
}

func certificateTestPair(t *testing.T, lifetime time.Duration) *servingPair {
	t.Helper()
	pair, err := issueServingPair([]string{certificateTestName}, time.Now(), lifetime)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func certificateTestWrite(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f *certificateTestFiles) write(name string, data []byte) {
	f.t.Helper()
	certificateTestWrite(f.t, filepath.Join(f.dir, name), data)
}

func (f *certificateTestFiles) want(pair *servingPair) {
	f.t.Helper()
	for range 3 {
		got, err := f.get(&tls.ClientHelloInfo{})
		if err != nil {
			f.t.Fatal(err)
		}
		if !got.Leaf.Equal(pair.Leaf) {
			f.t.Errorf("serving with the certificate until %s, want that until %s", got.Leaf.NotAfter, pair.Leaf.NotAfter)
		}
	}
	if err := certificateTestConnect(f.get, encodeCAs([]*x509.Certificate{pair.ca}), certificateTestName, time.Now()); err != nil {
		f.t.Error(err)
	}
	if got := queueTestSeries(f.t, f.metrics, "bucketwarden_webhook_certificate_expiry_timestamp_seconds"); got != float64(pair.Leaf.NotAfter.Unix()) {
		f.t.Errorf("the metric says that it expires at %v, want %d", got, pair.Leaf.NotAfter.Unix())
	}
}

func (f *certificateTestFiles) wantErrors(n int) {
	f.t.Helper()
	if log := f.log.String(); strings.Count(log, "Could not load the changed certificate") != n {
		f.t.Errorf("want %d errors:\n%s", n, log)
	}
}

func TestCertificateFiles(t *testing.T) {
	log := certificateTestGlobalLog(t)
	first, second, third := certificateTestPair(t, time.Hour), certificateTestPair(t, 2*time.Hour), certificateTestPair(t, 3*time.Hour)
	dir := t.TempDir()
	certificateTestWrite(t, filepath.Join(dir, "tls.crt"), first.crt)
	certificateTestWrite(t, filepath.Join(dir, "tls.key"), first.key)
	files, err := newFileCertificate(dir, newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	f := &certificateTestFiles{fileCertificate: files, t: t, dir: dir, log: log}
	if err := f.ready(); err != nil {
		t.Error(err)
	}
	f.want(first)

	// One file after the other.
	f.write("tls.crt", second.crt)
	f.want(first)
	f.wantErrors(1)
	f.write("tls.key", second.key)
	f.want(second)
	f.wantErrors(1)
	if strings.Count(log.String(), "Serving with a certificate") != 2 {
		t.Errorf("log:\n%s", log)
	}

	// Half of one, garbage, and none.
	f.write("tls.key", third.key[:80])
	f.want(second)
	f.wantErrors(2)
	f.write("tls.key", []byte("garbage"))
	f.want(second)
	f.wantErrors(3)
	if err := os.Remove(filepath.Join(dir, "tls.crt")); err != nil {
		t.Fatal(err)
	}
	f.want(second)
	f.wantErrors(4)
	f.write("tls.key", third.key)
	f.write("tls.crt", third.crt)
	f.want(third)
	f.wantErrors(4)

	// The same size and time, but another file.
	info, err := os.Stat(filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	f.write("new", bytes.Repeat([]byte("x"), int(info.Size())))
	if err := errors.Join(os.Chtimes(filepath.Join(dir, "new"), info.ModTime(), info.ModTime()),
		os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "tls.key"))); err != nil {
		t.Fatal(err)
	}
	f.want(third)
	f.wantErrors(5)
	for _, key := range [][]byte{first.key, second.key, third.key} {
		(&certificateTestServer{t: t, keys: [][]byte{key}}).wantNoKeys(log.String())
	}
}

// A volume of a Secret: ..data is a symlink that is replaced.
func TestCertificateFilesSymlink(t *testing.T) {
	log := certificateTestGlobalLog(t)
	dir := t.TempDir()
	link := func(target, name string) {
		t.Helper()
		temporary := filepath.Join(dir, "temporary")
		if err := errors.Join(os.Symlink(target, temporary), os.Rename(temporary, filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(version string, pair *servingPair) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		certificateTestWrite(t, filepath.Join(dir, version, "tls.crt"), pair.crt)
		certificateTestWrite(t, filepath.Join(dir, version, "tls.key"), pair.key)
		link(version, "..data")
	}
	first, second := certificateTestPair(t, time.Hour), certificateTestPair(t, 2*time.Hour)
	mount("..1", first)
	link("..data/tls.crt", "tls.crt")
	link("..data/tls.key", "tls.key")
	files, err := newFileCertificate(dir, newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	f := &certificateTestFiles{fileCertificate: files, t: t, dir: dir, log: log}
	f.want(first)
	mount("..2", second)
	f.want(second)
	f.wantErrors(0)
}

func TestCertificateFilesMissing(t *testing.T) {
	certificateTestGlobalLog(t)
	pair, other := certificateTestPair(t, time.Hour), certificateTestPair(t, time.Hour)
	tests := []struct {
		name  string
		files map[string][]byte
		want  string
	}{
		{"nothing", nil, "no such file or directory"},
		{"no key", map[string][]byte{"tls.crt": pair.crt}, "no such file or directory"},
		{"no certificate", map[string][]byte{"tls.key": pair.key}, "no such file or directory"},
		{"swapped", map[string][]byte{"tls.crt": pair.key, "tls.key": pair.crt}, "failed to find certificate PEM data"},
		{"no pair", map[string][]byte{"tls.crt": pair.crt, "tls.key": other.key}, "does not match"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, data := range test.files {
				certificateTestWrite(t, filepath.Join(dir, name), data)
			}
			_, err := newFileCertificate(dir, newMetrics())
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), filepath.Join(dir, "tls.crt")) {
				t.Fatalf("got %v", err)
			}
			(&certificateTestServer{t: t, keys: [][]byte{pair.key, other.key}}).wantNoKeys(err.Error())
		})
	}
}

func TestCertificateFilesConcurrently(t *testing.T) {
	certificateTestGlobalLog(t)
	dir := t.TempDir()
	pairs := []*servingPair{certificateTestPair(t, time.Hour), certificateTestPair(t, 2*time.Hour)}
	write := func(pair *servingPair) {
		certificateTestWrite(t, filepath.Join(dir, "tls.crt"), pair.crt)
		certificateTestWrite(t, filepath.Join(dir, "tls.key"), pair.key)
	}
	write(pairs[0])
	f, err := newFileCertificate(dir, newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				if certificate, err := f.get(nil); err != nil || certificate == nil {
					t.Errorf("got %v, %v", certificate, err)
				}
			}
		})
	}
	for i := range 20 {
		write(pairs[i%2])
	}
	wg.Wait()
	if got, err := f.get(nil); err != nil || !got.Leaf.Equal(pairs[1].Leaf) {
		t.Errorf("the last one is not served: %v", err)
	}
}

// Files that change are read also while nobody connects: what is shown of the certificate is what would be served.
func TestCertificateFilesWithoutConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		write := func(pair *servingPair) {
			certificateTestWrite(t, filepath.Join(dir, "tls.crt"), pair.crt)
			certificateTestWrite(t, filepath.Join(dir, "tls.key"), pair.key)
		}
		old, renewed := certificateTestPair(t, time.Hour), certificateTestPair(t, 1000*time.Hour)
		write(old)
		f, err := newFileCertificate(dir, newMetrics())
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { f.run(ctx) })
		expect := func(pair *servingPair) {
			t.Helper()
			if got := queueTestSeries(t, f.metrics, "bucketwarden_webhook_certificate_expiry_timestamp_seconds"); got != float64(pair.Leaf.NotAfter.Unix()) {
				t.Errorf("the metric says that it expires at %v, want %d", got, pair.Leaf.NotAfter.Unix())
			}
		}
		time.Sleep(certificateFilesInterval / 2)
		write(renewed)
		expect(old)
		time.Sleep(certificateFilesInterval)
		synctest.Wait()
		expect(renewed)
		stop()
		running.Wait()
	})
}
