// The webhook configurations that tell API servers of the webhook: a ValidatingWebhookConfiguration, and where the
// ValidatingAdmissionPolicy is installed a MutatingWebhookConfiguration, which an API server asks before the policy. What the
// certificate needs of them is the same: the names that the webhook is called by, and a caBundle to keep. Each is written only
// as it was read.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

// webhookConfiguration is a configuration by name.
type webhookConfiguration struct {
	// mutating says that it is a MutatingWebhookConfiguration.
	mutating bool
	name     string
}

// readConfiguration is a configuration as it was read.
type readConfiguration struct {
	webhookConfiguration
	resourceVersion string
	webhooks        []configuredWebhook
}

// configuredWebhook is what both kinds of webhooks have.
type configuredWebhook struct {
	name   string
	client admissionregistrationv1.WebhookClientConfig
}

func (c webhookConfiguration) kind() string {
	if c.mutating {
		return "MutatingWebhookConfiguration"
	}
	return "ValidatingWebhookConfiguration"
}

func (c webhookConfiguration) String() string { return c.kind() + " " + c.name }

func (c webhookConfiguration) gvr() schema.GroupVersionResource {
	return admissionregistrationv1.SchemeGroupVersion.WithResource(strings.ToLower(c.kind()) + "s")
}

// read is one request.
func (c webhookConfiguration) read(ctx context.Context, client kubernetes.Interface) (readConfiguration, error) {
	r := readConfiguration{webhookConfiguration: c}
	var err error
	if c.mutating {
		var object *admissionregistrationv1.MutatingWebhookConfiguration
		if object, err = client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, c.name, metav1.GetOptions{}); err == nil {
			r.resourceVersion = object.ResourceVersion
			for _, w := range object.Webhooks {
				r.webhooks = append(r.webhooks, configuredWebhook{w.Name, w.ClientConfig})
			}
		}
	} else {
		var object *admissionregistrationv1.ValidatingWebhookConfiguration
		if object, err = client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, c.name, metav1.GetOptions{}); err == nil {
			r.resourceVersion = object.ResourceVersion
			for _, w := range object.Webhooks {
				r.webhooks = append(r.webhooks, configuredWebhook{w.Name, w.ClientConfig})
			}
		}
	}
	if apierrors.IsNotFound(err) {
		flag := "--webhook-configuration"
		if c.mutating {
			flag = "--mutating-webhook-configuration"
		}
		return r, fmt.Errorf("the %s does not exist: create it (the Helm chart has it), set %s, or switch admission off "+
			"with --webhook-address=", c, flag)
	}
	return r, wrapf(err, "reading the %s", c)
}

// has says whether every webhook has the bundle.
func (r readConfiguration) has(bundle []byte) bool {
	return !slices.ContainsFunc(r.webhooks, func(w configuredWebhook) bool { return !bytes.Equal(w.client.CABundle, bundle) })
}

// publish writes the bundle to all webhooks of the configuration as it was read. In a
// strategic merge patch webhooks are known by name, and fields that this version of the
// API does not know stay.
func (r readConfiguration) publish(ctx context.Context, client kubernetes.Interface, bundle []byte) error {
	var webhooks []any
	for _, webhook := range r.webhooks {
		webhooks = append(webhooks, map[string]any{"name": webhook.name, "clientConfig": map[string]any{"caBundle": bundle}})
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": r.resourceVersion}, "webhooks": webhooks})
	if err != nil {
		return fmt.Errorf("encoding a patch of the %s: %w", r, err)
	}
	options, api := metav1.PatchOptions{FieldManager: fieldManager}, client.AdmissionregistrationV1()
	if r.mutating {
		_, err = api.MutatingWebhookConfigurations().Patch(ctx, r.name, types.StrategicMergePatchType, patch, options)
	} else {
		_, err = api.ValidatingWebhookConfigurations().Patch(ctx, r.name, types.StrategicMergePatchType, patch, options)
	}
	if err != nil {
		return fmt.Errorf("writing caBundle to the %s: %w", r, err)
	}
	klog.FromContext(ctx).Info("Published the CA certificates", "configuration", r.String(), "count", len(parseCAs(bundle)))
	return nil
}

// webhookNames are the names that API servers verify: for a service NAME.NAMESPACE.svc,
// else the host of the URL (kubernetes/kubernetes
// staging/src/k8s.io/apiserver/pkg/util/webhook/client.go). Sorted.
func webhookNames(webhooks []configuredWebhook) ([]string, error) {
	var names []string
	for _, webhook := range webhooks {
		if service := webhook.client.Service; service != nil {
			names = append(names, service.Name+"."+service.Namespace+".svc")
			continue
		}
		if webhook.client.URL == nil {
			return nil, fmt.Errorf("the webhook %s has neither clientConfig.service nor clientConfig.url", webhook.name)
		}
		u, err := url.Parse(*webhook.client.URL)
		if err != nil {
			return nil, fmt.Errorf("clientConfig.url of the webhook %s: %w", webhook.name, err)
		}
		host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
		if ip := net.ParseIP(host); ip != nil {
			host = ip.String()
		}
		if host == "" {
			return nil, fmt.Errorf("clientConfig.url of the webhook %s has no host", webhook.name)
		}
		names = append(names, host)
	}
	if len(names) == 0 {
		return nil, errors.New("it has no webhooks, so that nothing says which names the certificate must have")
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
