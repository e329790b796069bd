package env

import (
	"bufio"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

//go:embed crds/*.yaml deploycrds/*.yaml gardencrds/*.yaml
var crdFiles embed.FS

// The resources that StartKube installs and bucketwarden reconciles.
var (
	BackupBuckets = schema.GroupVersionResource{Group: "extensions.gardener.cloud", Version: "v1alpha1", Resource: "backupbuckets"}
	BackupEntries = schema.GroupVersionResource{Group: "extensions.gardener.cloud", Version: "v1alpha1", Resource: "backupentries"}
)

var crds = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// kubeStartTimeout is generous: several environments may start at once on a
// small machine.
const kubeStartTimeout = 10 * time.Minute

// Kube is a running kube-apiserver with etcd. There is no controller manager:
// nothing removes the content of a deleted namespace (it stays Terminating),
// collects objects by owner reference or runs pods.
type Kube struct {
	*Process
	// Config, Client and Dynamic act as cluster admin, without client-side
	// throttling. Kubeconfig is the path of the same.
	Config     *rest.Config
	Client     kubernetes.Interface
	Dynamic    dynamic.Interface
	Kubeconfig string

	dir string
}

// StartKube starts the API server (Binaries.Testkube) and installs the CRDs of
// BackupBucket and BackupEntry.
func StartKube(ctx context.Context, binary string) (*Kube, error) {
	return startKube(ctx, binary)
}

// StartAuditedKube is StartKube with Kube.Requests.
func StartAuditedKube(ctx context.Context, binary string) (*Kube, error) {
	return startKube(ctx, binary, "-audit-log", auditLog)
}

func startKube(ctx context.Context, binary string, flags ...string) (_ *Kube, err error) {
	dir, err := os.MkdirTemp("", "bucketwarden-kube-")
	if err != nil {
		return nil, fmt.Errorf("making the data directory of kube-apiserver: %w", err)
	}
	k := &Kube{dir: dir, Kubeconfig: filepath.Join(dir, "admin.kubeconfig")}
	defer func() {
		if err != nil {
			k.Stop()
		}
	}()

	cmd := exec.Command(binary, append([]string{"-data-dir", dir, "-kubeconfig", k.Kubeconfig}, flags...)...)
	// Memory is cheaper here than the CPU time of garbage collection.
	cmd.Env = append(os.Environ(), "GOGC=400")
	// testkube exits when its stdin is closed.
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("starting kube-apiserver: %w", err)
	}
	stdout, stdoutWriter, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting kube-apiserver: %w", err)
	}
	defer func() { _ = stdout.Close() }()
	cmd.Stdout = stdoutWriter
	k.Process, err = startProcess("kube-apiserver", cmd, nil)
	_ = stdoutWriter.Close()
	if err != nil {
		return nil, err
	}
	if err := k.waitReady(ctx, stdout); err != nil {
		return nil, err
	}

	if k.Config, err = clientcmd.BuildConfigFromFlags("", k.Kubeconfig); err != nil {
		return nil, fmt.Errorf("reading the admin kubeconfig: %w", err)
	}
	k.Config.QPS = -1
	if k.Client, err = kubernetes.NewForConfig(k.Config); err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	if k.Dynamic, err = dynamic.NewForConfig(k.Config); err != nil {
		return nil, fmt.Errorf("making a dynamic client: %w", err)
	}
	if err := k.installCRDs(ctx, "crds/*.yaml"); err != nil {
		return nil, err
	}
	return k, nil
}

// waitReady waits for the line that testkube prints when it is ready.
func (k *Kube) waitReady(ctx context.Context, stdout io.Reader) error {
	ready := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(stdout).ReadString('\n')
		ready <- err
	}()
	timeout := time.NewTimer(kubeStartTimeout)
	defer timeout.Stop()
	select {
	case err := <-ready:
		if errors.Is(err, io.EOF) {
			<-k.done
			err = errEnded
		}
		if err != nil {
			return fmt.Errorf("starting kube-apiserver: %w\n%s", err, k.logTail())
		}
		return nil
	case <-timeout.C:
		return fmt.Errorf("starting kube-apiserver: not ready after %v\n%s", kubeStartTimeout, k.logTail())
	case <-ctx.Done():
		return fmt.Errorf("starting kube-apiserver: %w", context.Cause(ctx))
	}
}

// Stop ends the API server and removes its data.
func (k *Kube) Stop() {
	if k.Process != nil {
		k.Kill()
	}
	_ = os.RemoveAll(k.dir)
}

// InstallCRDs creates the CRDs of what deploy/ uses beside Kubernetes' own resources, and
// waits until the API server serves them.
func (k *Kube) InstallCRDs(ctx context.Context) error { return k.installCRDs(ctx, "deploycrds/*.yaml") }

// InstallGardenCRDs is InstallCRDs for what the garden cluster has.
func (k *Kube) InstallGardenCRDs(ctx context.Context) error {
	return k.installCRDs(ctx, "gardencrds/*.yaml")
}

func (k *Kube) installCRDs(ctx context.Context, pattern string) error {
	files, err := fs.Glob(crdFiles, pattern)
	if err != nil {
		return fmt.Errorf("listing the CRDs: %w", err)
	}
	var resources []schema.GroupVersionResource
	for _, file := range files {
		content, err := crdFiles.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading a CRD: %w", err)
		}
		crd := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict(content, &crd.Object); err != nil {
			return fmt.Errorf("decoding %s: %w", file, err)
		}
		if _, err := k.Dynamic.Resource(crds).Create(ctx, crd, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
			return fmt.Errorf("creating %s: %w", file, err)
		}
		group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
		plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
		versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
		version, _, _ := unstructured.NestedString(versions[0].(map[string]any), "name")
		resources = append(resources, schema.GroupVersionResource{Group: group, Version: version, Resource: plural})
	}
	// Established alone is not enough: the handler of a new resource answers
	// 404 for some time after that.
	for _, resource := range resources {
		_, err := k.WaitFor(ctx, kubeStartTimeout, crds, "", resource.GroupResource().String(), func(crd *unstructured.Unstructured) error {
			conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
			if err != nil {
				return err
			}
			for _, c := range conditions {
				if condition, ok := c.(map[string]any); ok && condition["type"] == "Established" && condition["status"] == "True" {
					return nil
				}
			}
			return errors.New("not established")
		})
		if err != nil {
			return err
		}
		err = Eventually(ctx, kubeStartTimeout, resource.Resource+" are served", func(ctx context.Context) error {
			_, err := k.Dynamic.Resource(resource).List(ctx, metav1.ListOptions{})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// WaitFor watches one object until condition returns nil, and returns the
// object it accepted. A condition that does not hold yet returns an error that
// says why; the last one, with the object, is in the error after timeout. The
// condition gets nil while the object does not exist. The namespace of a
// cluster-scoped object is empty.
func (k *Kube) WaitFor(ctx context.Context, timeout time.Duration, resource schema.GroupVersionResource, namespace, name string,
	condition func(*unstructured.Unstructured) error,
) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %v", timeout))
	defer cancel()

	var object *unstructured.Unstructured
	last := errors.New("nothing")
	check := func(o *unstructured.Unstructured) bool {
		object = o
		last = condition(o)
		return last == nil
	}
	client := k.Dynamic.Resource(resource).Namespace(namespace)
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return client.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return client.Watch(ctx, options)
		},
	}
	_, err := watchtools.UntilWithSync(ctx, cache.ToListWatcherWithWatchListSemantics(lw, k.Dynamic), &unstructured.Unstructured{},
		func(store cache.Store) (bool, error) {
			// Existing objects come as events.
			return len(store.ListKeys()) == 0 && check(nil), nil
		},
		func(event watch.Event) (bool, error) {
			if event.Type == watch.Deleted {
				return check(nil), nil
			}
			o, ok := event.Object.(*unstructured.Unstructured)
			return ok && check(o), nil
		})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("waiting for %s %s: %w, last seen: %w\n%s", resource.Resource, cache.NewObjectName(namespace, name), err, last, describe(object))
	}
	return object, nil
}

// describe returns an object for an error message.
func describe(object *unstructured.Unstructured) string {
	if object == nil {
		return "the object does not exist"
	}
	object = object.DeepCopy()
	object.SetManagedFields(nil)
	if object.GetKind() == "Secret" {
		delete(object.Object, "data")
	}
	text, err := json.MarshalIndent(object, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// ServiceAccountKubeconfig creates the service account if it does not exist
// and returns the path of a kubeconfig that acts as it, without any rights but
// those that were granted to it.
func (k *Kube) ServiceAccountKubeconfig(ctx context.Context, namespace, name string) (string, error) {
	accounts := k.Client.CoreV1().ServiceAccounts(namespace)
	_, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("creating service account %s/%s: %w", namespace, name, err)
	}
	token, err := accounts.CreateToken(ctx, name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(24 * time.Hour / time.Second))},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("requesting a token for service account %s/%s: %w", namespace, name, err)
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: k.Config.Host, CertificateAuthorityData: k.Config.CAData}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: namespace}
	cfg.CurrentContext = name
	path := filepath.Join(k.dir, fmt.Sprintf("%s.%s.kubeconfig", namespace, name))
	if err := clientcmd.WriteToFile(*cfg, path); err != nil {
		return "", fmt.Errorf("writing the kubeconfig of service account %s/%s: %w", namespace, name, err)
	}
	return path, nil
}
