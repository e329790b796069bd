package e2e

import (
	"bucketwarden/test/env"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	arv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"os"
	"slices"
	"strings"
	"text/template"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"
)

func policyManifests(kind string) (out []*unstructured.Unstructured, err error) {
	data, err := os.ReadFile("../../deploy/chart/templates/validatingadmissionpolicy.yaml")
	if err != nil {
		return nil, err
	}
	tpl, err := template.New("x").Funcs(template.FuncMap{
		"toJson":    func(v any) string { b, _ := json.Marshal(v); return string(b) },
		"splitList": func(sep, s string) []string { return strings.Split(s, sep) },
		"trim":      strings.TrimSpace,
		"list":      func(v ...any) []any { return append([]any{}, v...) },
		"append":    func(l []any, v any) []any { return append(l, v) },
		"has":       func(v any, l []any) bool { return slices.Contains(l, v) },
		"concat":    func(l ...[]any) []any { return slices.Concat(l...) },
		"uniq": func(l []any) []any {
			o := []any{}
			for _, v := range l {
				if !slices.Contains(o, v) {
					o = append(o, v)
				}
			}
			return o
		},
		"include": func(string, any) string { return "{}" },
		"nindent": func(int, string) string { return "{}" },
	}).Parse(string(data))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := tpl.Execute(&b, map[string]any{"Values": map[string]any{"class": "shoot", "types": map[string]any{"aws": "s3", "s3": "s3", "S3": "s3", "azure": "azure"}}, "Release": map[string]any{"Name": "bucketwarden"}}); err != nil {
		return nil, err
	}
	_ = os.WriteFile("/tmp/vap.yaml", b.Bytes(), 0o644)
	d := k8syaml.NewYAMLOrJSONDecoder(&b, 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := d.Decode(&o.Object); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		if o.GetKind() == kind {
			out = append(out, o)
		}
	}
}

func installWebhook(k *env.Kube) func(context.Context, string) error {
	return func(ctx context.Context, address string) error {
		url := "https://" + address + "/validate"
		none, ignore := arv1.SideEffectClassNone, arv1.Ignore
		_, err := k.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx, &arv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "bucketwarden"},
			Webhooks: []arv1.ValidatingWebhook{{Name: "backupbuckets.bucketwarden.gardener.cloud", ClientConfig: arv1.WebhookClientConfig{URL: &url}, SideEffects: &none, FailurePolicy: &ignore, AdmissionReviewVersions: []string{"v1"},
				MatchConditions: []arv1.MatchCondition{{Name: "changed", Expression: "request.operation != 'UPDATE' || object.spec != oldObject.spec"}},
				Rules:           []arv1.RuleWithOperations{{Operations: []arv1.OperationType{"CREATE", "UPDATE", "DELETE"}, Rule: arv1.Rule{APIGroups: []string{"extensions.gardener.cloud"}, APIVersions: []string{"v1alpha1"}, Resources: []string{"backupbuckets"}}}}}},
		}, metav1.CreateOptions{})
		return err
	}
}
