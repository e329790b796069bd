package main

import (
	"context"
	stdjson "encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// The clients through which a daemon of the simulation reaches its API server. Each method
// is one call of the scheduler (sim_sched_test.go), which decides when it is served and
// whether it fails. What the product does not use is not there: it panics.

// simDynamic is the client of one resource.
type simDynamic struct {
	dynamic.ResourceInterface
	life     *simLife
	resource string
}

func (c *simDynamic) api() *simAPI { return c.life.daemon.api }

func (c *simDynamic) Get(ctx context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	return simCall(ctx, c.life, simToAPI, "get "+c.resource+" "+name, func() (*unstructured.Unstructured, error) {
		o, err := c.api().get(c.resource, "", name)
		if err != nil {
			return nil, err
		}
		return simMeta(o), nil
	})
}

func (c *simDynamic) List(ctx context.Context, options metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	return simCall(ctx, c.life, simToAPI, "list "+c.resource, func() (*unstructured.UnstructuredList, error) {
		objects, token, err := c.api().list(c.resource, options)
		if err != nil {
			return nil, err
		}
		list := &unstructured.UnstructuredList{}
		list.SetContinue(token)
		for _, o := range objects {
			list.Items = append(list.Items, *simMeta(o))
		}
		return list, nil
	})
}

func (c *simDynamic) Patch(ctx context.Context, name string, kind types.PatchType, data []byte, _ metav1.PatchOptions, subresources ...string) (*unstructured.Unstructured, error) {
	op := "patch " + c.resource + " " + name
	for _, s := range subresources {
		op += " " + s
	}
	return simCall(ctx, c.life, simToAPI, op+" "+simBrief(data), func() (*unstructured.Unstructured, error) {
		o, err := c.api().patch(c.resource, "", name, kind, data, subresources...)
		if err != nil {
			return nil, err
		}
		return simMeta(o), nil
	})
}

// simBrief is what of a patch a trace shows.
func simBrief(data []byte) string {
	var patch struct {
		Metadata map[string]any `json:"metadata"`
		Status   struct {
			LastOperation  struct{ Type, State, Description string } `json:"lastOperation"`
			ProviderStatus any                                       `json:"providerStatus"`
		} `json:"status"`
	}
	if err := stdjson.Unmarshal(data, &patch); err != nil {
		return err.Error()
	}
	delete(patch.Metadata, "resourceVersion")
	if len(patch.Metadata) > 0 {
		return simJSON(patch.Metadata)
	}
	last := patch.Status.LastOperation
	brief := last.Type + " " + last.State + " " + cut(last.Description, 160)
	if patch.Status.ProviderStatus != nil {
		brief += " " + simJSON(patch.Status.ProviderStatus)
	}
	return brief
}

// simCore is the client of Secrets and Namespaces.
type simCore struct {
	kubernetes.Interface
	life *simLife
}

type simCoreV1 struct {
	typedcorev1.CoreV1Interface
	life *simLife
}

func (c simCore) CoreV1() typedcorev1.CoreV1Interface { return simCoreV1{life: c.life} }

func (c simCoreV1) Secrets(namespace string) typedcorev1.SecretInterface {
	return simSecrets{life: c.life, namespace: namespace}
}

func (c simCoreV1) Namespaces() typedcorev1.NamespaceInterface { return simNamespaces{life: c.life} }

type simNamespaces struct {
	typedcorev1.NamespaceInterface
	life *simLife
}

func (c simNamespaces) Get(ctx context.Context, name string, _ metav1.GetOptions) (*corev1.Namespace, error) {
	return simCall(ctx, c.life, simToAPI, "get namespace "+name, func() (*corev1.Namespace, error) {
		o, err := c.life.daemon.api.get("namespaces", "", name)
		if err != nil {
			return nil, err
		}
		return simTyped[corev1.Namespace](o), nil
	})
}

type simSecrets struct {
	typedcorev1.SecretInterface
	life      *simLife
	namespace string
}

// simTyped is an object as one of client-go's types.
func simTyped[T any](o simObject) *T {
	t := new(T)
	if err := stdjson.Unmarshal([]byte(simJSON(o)), t); err != nil {
		panic(err)
	}
	return t
}

// simUntyped is the other direction.
func simUntyped(v any) simObject {
	u := &unstructured.Unstructured{}
	u.Object = simObject{}
	if err := json.Unmarshal([]byte(simJSON(v)), &u.Object); err != nil {
		panic(err)
	}
	return u.Object
}

func (c simSecrets) secret(o simObject, err error) (*corev1.Secret, error) {
	if err != nil {
		return nil, err
	}
	return simTyped[corev1.Secret](o), nil
}

func (c simSecrets) Get(ctx context.Context, name string, _ metav1.GetOptions) (*corev1.Secret, error) {
	return simCall(ctx, c.life, simToAPI, "get secret "+name, func() (*corev1.Secret, error) {
		return c.secret(c.life.daemon.api.get("secrets", c.namespace, name))
	})
}

func (c simSecrets) Create(ctx context.Context, secret *corev1.Secret, _ metav1.CreateOptions) (*corev1.Secret, error) {
	return simCall(ctx, c.life, simToAPI, "create secret "+c.namespace+"/"+secret.Name, func() (*corev1.Secret, error) {
		o := secret.DeepCopy()
		o.Namespace = c.namespace
		return c.secret(c.life.daemon.api.create("secrets", simUntyped(o)))
	})
}

func (c simSecrets) Delete(ctx context.Context, name string, options metav1.DeleteOptions) error {
	_, err := simCall(ctx, c.life, simToAPI, "delete secret "+name, func() (struct{}, error) {
		return struct{}{}, c.life.daemon.api.delete("secrets", c.namespace, name, options.Preconditions)
	})
	return err
}

func (c simSecrets) Patch(ctx context.Context, name string, kind types.PatchType, data []byte, _ metav1.PatchOptions, _ ...string) (*corev1.Secret, error) {
	return simCall(ctx, c.life, simToAPI, "patch secret "+name+" "+simBrief(data), func() (*corev1.Secret, error) {
		return c.secret(c.life.daemon.api.patch("secrets", c.namespace, name, kind, data))
	})
}
