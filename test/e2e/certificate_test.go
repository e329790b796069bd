package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"iter"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/utils/ptr"

	"bucketwarden/test/env"
)

// balancer stands for the webhook's Service: connections go to the addresses in turn.
func balancer(t *testing.T, addresses func() []string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	var turn atomic.Int64
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			all := addresses()
			server, err := net.Dial("tcp", all[int(turn.Add(1))%len(all)])
			if err != nil {
				_ = client.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
				go func() {
					_, _ = io.Copy(way[0], way[1])
					_ = way[0].Close()
				}()
			}
		}
	}()
	return listener.Addr().String()
}

// requireWebhook makes the API server fail every request that it cannot ask the webhook about, for
// which it has as much time as there can be.
func requireWebhook(t *testing.T, k *env.Kube) {
	t.Helper()
	client := k.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	eventually(t, "the webhook is required", func(ctx context.Context) error {
		c, err := client.Get(ctx, "bucketwarden", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for i := range c.Webhooks {
			fail := admissionregistrationv1.Fail
			c.Webhooks[i].FailurePolicy = &fail
			c.Webhooks[i].TimeoutSeconds = ptr.To[int32](30)
		}
		_, err = client.Update(ctx, c, metav1.UpdateOptions{})
		return err
	})
}

// testLifetime is of certificates that are renewed again and again.
const testLifetime = 2 * time.Minute

// ticks goes on until ctx ends.
func ticks(ctx context.Context, interval time.Duration) iter.Seq[struct{}] {
	return func(yield func(struct{}) bool) {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for ctx.Err() == nil && yield(struct{}{}) {
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
	}
}

// load asks the API server for changes that the webhook has to deny, and shakes hands with it
// as an API server would whose caBundle is almost as old as is allowed; stop ends both.
//
// How late the API server itself is on a slow machine cannot be seen. So a request may fail for a CA
// that it does not know yet, if it then comes to know it. That the webhook gave it the time is what
// the handshakes prove.
func load(t *testing.T, k *env.Kube, address string) (stop func()) {
	t.Helper()
	bucket := newObject("BackupBucket", "loaded", map[string]any{"type": "aws", "region": "r", "secretRef": map[string]any{"namespace": "n", "name": "n"}})
	bucket, err := k.Dynamic.Resource(buckets).Create(t.Context(), bucket, metav1.CreateOptions{})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var loads sync.WaitGroup
	var requests, late, handshakes atomic.Int64
	for range 2 {
		loads.Go(func() {
			o := bucket.DeepCopy()
			must(t, unstructured.SetNestedField(o.Object, map[string]any{"kind": "None"}, "spec", "providerConfig"))
			// Steady, without taking all of the machine.
			for range ticks(ctx, 20*time.Millisecond) {
				var err error
				awaited := env.Eventually(ctx, timeout, "the API server knows the CA", func(ctx context.Context) error {
					_, err = k.Dynamic.Resource(buckets).Update(ctx, o, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
					if outOfTime(err) || apierrors.IsInternalError(err) && strings.Contains(err.Error(), "unknown authority") {
						late.Add(1)
						return err
					}
					return nil
				})
				if ctx.Err() == nil && (awaited != nil || !apierrors.IsInvalid(err)) {
					t.Errorf("request %d was not denied: %v", requests.Load(), err)
					return
				}
				requests.Add(1)
			}
		})
	}
	loads.Go(func() {
		for ctx.Err() == nil {
			looked := time.Now()
			c, err := k.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "bucketwarden", metav1.GetOptions{})
			if ctx.Err() != nil {
				return
			}
			must(t, err)
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(c.Webhooks[0].ClientConfig.CABundle)
			// What is published after the look is served a twentieth of the lifetime later.
			for range ticks(ctx, 20*time.Millisecond) {
				dialer := &tls.Dialer{Config: &tls.Config{RootCAs: roots}}
				connection, err := dialer.DialContext(ctx, "tcp", address)
				if ctx.Err() != nil {
					return
				}
				young := time.Since(looked) < testLifetime/20
				if err == nil {
					_ = connection.Close()
					handshakes.Add(1)
				} else if young {
					t.Errorf("handshake %d: %v", handshakes.Load(), err)
					return
				}
				if !young {
					break
				}
			}
		}
	})
	return func() {
		cancel()
		loads.Wait()
		t.Logf("%d requests, %d of them before the API server could, and %d handshakes", requests.Load(), late.Load(), handshakes.Load())
		if requests.Load() == 0 || handshakes.Load() == 0 {
			t.Error("there was no load")
		}
	}
}

// Two replicas renew their certificate again and again while requests keep coming: not one
// fails.
func TestCertificateRotation(t *testing.T) {
	t.Parallel()
	cluster, err := env.StartKube(t.Context(), binaries.Testkube)
	must(t, err)
	t.Cleanup(cluster.Stop)
	must(t, (env.Gardenlet{Kube: cluster}).Namespace(t.Context(), gardenNamespace))
	var mu sync.Mutex
	var addresses []string
	address := balancer(t, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return addresses
	})
	install := sync.OnceValue(func() error { return cluster.InstallWebhook(t.Context(), address) })
	var daemons []*env.Daemon
	for range 2 {
		d, err := env.StartDaemon(t.Context(), env.DaemonOptions{Binary: binaries.Daemon, Kubeconfig: cluster.Kubeconfig,
			Args: []string{"--controllers=false", "--webhook-address=127.0.0.1:0", "--namespace=" + gardenNamespace,
				"--webhook-cert-lifetime=" + testLifetime.String()},
			OnWebhook: func(_ context.Context, address string) error {
				mu.Lock()
				addresses = append(addresses, address)
				mu.Unlock()
				return install()
			}})
		must(t, err)
		t.Cleanup(func() {
			d.Kill()
			if t.Failed() {
				t.Logf("log of a daemon:\n%s", d.Log())
			}
		})
		daemons = append(daemons, d)
	}
	requireWebhook(t, cluster)
	must(t, cluster.AwaitWebhook(t.Context(), timeout, "aws"))

	stop := load(t, cluster, address)
	secret := func(ctx context.Context) *corev1.Secret {
		s, err := cluster.Client.CoreV1().Secrets(gardenNamespace).Get(ctx, "bucketwarden-webhook", metav1.GetOptions{})
		must(t, err)
		return s
	}
	last := secret(t.Context()).Data[corev1.TLSCertKey]
	for i := range 2 {
		eventually(t, "the certificate is renewed", func(ctx context.Context) error {
			now := secret(ctx).Data[corev1.TLSCertKey]
			if bytes.Equal(now, last) {
				return fmt.Errorf("it was renewed %d times", i)
			}
			last = now
			return nil
		})
	}
	// Until the last one is served by both.
	block, _ := pem.Decode(last)
	certificate, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	for _, d := range daemons {
		(&daemon{Daemon: d}).awaitValue(t, float64(certificate.NotAfter.Unix()), "bucketwarden_webhook_certificate_expiry_timestamp_seconds")
	}
	stop()
}

// Certificates from files are read again when they change, as Kubernetes changes a volume.
func TestCertificateFromFiles(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	write := func(name string, serial int64) {
		t.Helper()
		version := filepath.Join(directory, fmt.Sprintf("version-%d", serial))
		must(t, os.Mkdir(version, 0o755))
		crt, key := selfSigned(t, serial)
		must(t, os.WriteFile(filepath.Join(version, "tls.crt"), crt, 0o600))
		must(t, os.WriteFile(filepath.Join(version, "tls.key"), key, 0o600))
		must(t, os.Symlink(version, filepath.Join(directory, name+".new")))
		must(t, os.Rename(filepath.Join(directory, name+".new"), filepath.Join(directory, name)))
	}
	write("tls", 1)
	d := startDaemon(t, "--webhook-address=127.0.0.1:0", "--webhook-cert-dir="+filepath.Join(directory, "tls"))
	served := func() int64 {
		t.Helper()
		connection, err := tls.Dial("tcp", d.WebhookAddress, &tls.Config{InsecureSkipVerify: true})
		must(t, err)
		defer func() { _ = connection.Close() }()
		return connection.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	mustEqual(t, "certificate at the start", served(), int64(1))
	write("tls", 2)
	mustEqual(t, "certificate after the change", served(), int64(2))
	if _, err := tls.Dial("tcp", d.WebhookAddress, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is accepted")
	}
	if _, err := kube.Client.CoreV1().Secrets(gardenNamespace).Get(t.Context(), "bucketwarden-webhook", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a self-managed certificate was made too: %v", err)
	}
}

func selfSigned(t *testing.T, serial int64) (crt, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"localhost"}, NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}
