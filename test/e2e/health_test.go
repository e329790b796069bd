package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"bucketwarden/test/env"
)

// A thousand connections that are left alone, from the very address that the API server has, take no port from others.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	k, err := env.StartKube(t.Context(), binaries.Testkube)
	must(t, err)
	t.Cleanup(k.Stop)
	must(t, (env.Gardenlet{Kube: k}).Namespace(t.Context(), gardenNamespace))
	d := startAdmission(t, k, gardenNamespace)
	const idle = 1000
	host := func(address string) string {
		u, err := url.Parse(address)
		must(t, err)
		return u.Host
	}
	// Half of those of the webhook shake hands and ask something; the rest is silent.
	for i := range idle {
		for _, address := range []string{d.WebhookAddress, host(d.MetricsURL), host(d.HealthURL)} {
			conn, err := net.Dial("tcp", address)
			must(t, err)
			t.Cleanup(func() { _ = conn.Close() })
			if address != d.WebhookAddress || i%2 == 0 {
				continue
			}
			encrypted := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
			must(t, encrypted.Handshake())
			_, err = fmt.Fprintf(encrypted, "GET /validate HTTP/1.1\r\nHost: x\r\n\r\n")
			must(t, err)
			answer := make([]byte, 12)
			_, err = encrypted.Read(answer)
			must(t, err)
			mustEqual(t, "answer", string(answer), "HTTP/1.1 405")
		}
	}

	// An API server that has no connection yet. One that is left alone is closed by itself only after two minutes.
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for i := range 10 {
		response, err := client.Post("https://"+d.WebhookAddress+"/validate", "application/json",
			strings.NewReader(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1"}}`))
		must(t, err)
		mustEqual(t, fmt.Sprintf("status of review %d", i), response.StatusCode, http.StatusOK)
		must(t, response.Body.Close())
		for _, probed := range []string{d.HealthURL + "/livez", d.HealthURL + "/readyz", d.MetricsURL} {
			response, err := client.Get(probed)
			must(t, err)
			mustEqual(t, probed, response.StatusCode, http.StatusOK)
			must(t, response.Body.Close())
		}
	}
	must(t, k.AwaitWebhook(t.Context(), timeout, "aws"))
	// The metric is there beforehand, so each of them proves that connections had to go.
	for server, limit := range map[string]float64{"webhook": 256, "metrics": 64, "health": 64} {
		evicted, err := d.Value(t.Context(), "bucketwarden_connections_evicted_total", "server="+server)
		must(t, err)
		if evicted == 0 || evicted < idle/2-limit {
			t.Errorf("%s: %v connections made room", server, evicted)
		}
	}
}

var crdsGVR = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// A daemon without the CRDs says so and waits; it leads once they are there, and gives the lease up when they go.
func TestMissingCRDs(t *testing.T) {
	t.Parallel()
	k, err := env.StartKube(t.Context(), binaries.Testkube)
	must(t, err)
	t.Cleanup(k.Stop)
	must(t, (env.Gardenlet{Kube: k}).Namespace(t.Context(), gardenNamespace))
	client := k.Dynamic.Resource(crdsGVR)
	name := buckets.GroupResource().String()
	crd, err := client.Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	remove := func() {
		t.Helper()
		must(t, client.Delete(t.Context(), name, metav1.DeleteOptions{}))
		eventually(t, "the CRD is gone", func(ctx context.Context) error {
			if _, err := k.Dynamic.Resource(buckets).List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("listing: %v", err)
			}
			return nil
		})
	}
	remove()
	start := func() *env.Daemon {
		d, err := env.StartDaemon(t.Context(), env.DaemonOptions{Binary: binaries.Daemon, Kubeconfig: k.Kubeconfig,
			Args: []string{"--leader-elect", "--namespace=" + gardenNamespace}})
		must(t, err)
		t.Cleanup(func() {
			d.Kill()
			if t.Failed() {
				t.Logf("log of the daemon:\n%s", d.Log())
			}
		})
		return d
	}
	holder := func(ctx context.Context) (string, error) {
		lease, err := k.Client.CoordinationV1().Leases(gardenNamespace).Get(ctx, "bucketwarden", metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && lease.Spec.HolderIdentity == nil {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		return *lease.Spec.HolderIdentity, nil
	}
	told := func(d *env.Daemon) int { return strings.Count(d.Log(), "create the CustomResourceDefinition "+name) }
	waits := func(d *env.Daemon) {
		t.Helper()
		eventually(t, "it says what is missing", func(context.Context) error {
			if told(d) == 0 {
				return errors.New("it does not")
			}
			return nil
		})
		leader, err := d.Value(t.Context(), "bucketwarden_leader")
		must(t, err)
		mustEqual(t, "bucketwarden_leader", leader, 0.0)
		held, err := holder(t.Context())
		must(t, err)
		mustEqual(t, "holder of the lease", held, "")
	}
	d := start()
	waits(d)
	info, err := d.Value(t.Context(), "bucketwarden_info", "role=controllers", "class=shoot")
	must(t, err)
	mustEqual(t, "bucketwarden_info", info, 1.0)

	fresh := &unstructured.Unstructured{Object: map[string]any{"apiVersion": crd.GetAPIVersion(), "kind": crd.GetKind(), "spec": crd.Object["spec"]}}
	fresh.SetName(name)
	fresh.SetAnnotations(crd.GetAnnotations())
	_, err = client.Create(t.Context(), fresh, metav1.CreateOptions{})
	must(t, err)
	eventually(t, "it leads", func(ctx context.Context) error {
		leader, err := d.Value(ctx, "bucketwarden_leader")
		if err == nil && leader != 1 {
			err = errors.New("it does not")
		}
		return err
	})
	mustEqual(t, "how often it said what is missing", told(d), 1)
	heartbeat, err := k.Client.CoordinationV1().Leases(gardenNamespace).Get(t.Context(), "gardener-extension-heartbeat", metav1.GetOptions{})
	must(t, err)
	if heartbeat.Spec.RenewTime == nil {
		t.Error("no heartbeat")
	}

	remove()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if err := d.Wait(ctx); err == nil || ctx.Err() != nil || !strings.Contains(d.Log(), "gave the lease up, so that another replica may try") {
		t.Errorf("it ended with %v", err)
	}
	// The next one waits, as the first.
	waits(start())
}
