package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bucketwarden/test/env"
)

// The webhook of a daemon without controllers, and without the ValidatingAdmissionPolicy.
func TestAdmissionWebhook(t *testing.T) {
	t.Parallel()
	r := prepareAdmission(t)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: gardenNamespace}}
	if _, err := r.kube.Client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	startAdmission(t, r.kube, gardenNamespace)
	r.run(t, func(c *admissionCase) (string, []string) { return c.denied, c.warned })
	r.patch(t)
}

// startAdmission starts a daemon without controllers and waits until the API server asks it.
func startAdmission(t *testing.T, k *env.Kube, namespace string) *env.Daemon {
	t.Helper()
	d, err := env.StartDaemon(t.Context(), env.DaemonOptions{
		Binary: binaries.Daemon, Kubeconfig: k.Kubeconfig, OnWebhook: k.InstallWebhook,
		Args: []string{"--controllers=false", "--webhook-address=127.0.0.1:0", "--namespace=" + namespace},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, errors.New("the daemon does not stop"))
		defer cancel()
		if err := d.Terminate(ctx); err != nil {
			t.Errorf("the daemon did not stop gracefully: %v", err)
		}
		for _, bad := range []string{"WARNING: DATA RACE", "panic"} {
			if strings.Contains(d.Log(), bad) {
				t.Errorf("the daemon's log has %q", bad)
			}
		}
	})
	requireWebhook(t, k)
	if err := k.AwaitWebhook(t.Context(), timeout, "aws"); err != nil {
		t.Fatal(err)
	}
	return d
}

// answered makes a request again as long as nobody had the time to judge it.
func answered(t *testing.T, request func(context.Context) error) error {
	t.Helper()
	var err error
	eventually(t, "the request is judged", func(ctx context.Context) error {
		if err = request(ctx); outOfTime(err) {
			return err
		}
		return nil
	})
	return err
}

// outOfTime says that the API server, which was to ask a required webhook, or the webhook, which was
// to look something up, gave up waiting. Neither is an answer.
func outOfTime(err error) bool {
	if err == nil || !apierrors.IsInternalError(err) {
		return apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
	}
	message := err.Error()
	late := strings.Contains(message, "context deadline") || strings.Contains(message, "Timeout exceeded") ||
		strings.Contains(message, "TLS handshake timeout")
	return late && (strings.Contains(message, "failed calling webhook") || strings.Contains(message, "could not be found out, try again"))
}
