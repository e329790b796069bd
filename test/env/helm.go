package env

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// Helm runs Helm on the chart in deploy/.
type Helm struct {
	binary string
	// Chart is the directory of the chart.
	Chart string
}

// EnsureHelm builds Helm if it is missing, as EnsureBinaries does with the rest.
func EnsureHelm(ctx context.Context, progress io.Writer) (Helm, error) {
	b, err := newBuilder(ctx, progress)
	if err != nil {
		return Helm{}, err
	}
	defer b.unlock()
	binary, err := b.helm(ctx)
	return Helm{binary: binary, Chart: filepath.Join(filepath.Dir(b.module), "deploy", "chart")}, err
}

// helm builds the Helm of go.mod, with the dependencies that kube-apiserver has too.
func (b *builder) helm(ctx context.Context) (string, error) {
	version, err := b.moduleVersion(ctx, "helm.sh/helm/v4")
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.cache, "helm-"+version)
	if exists(path) {
		return path, nil
	}
	return path, b.report(ctx, "building Helm", func() error {
		temporary := path + ".tmp"
		if err := b.build(ctx, b.module, temporary, "-ldflags=-s -w", "helm.sh/helm/v4/cmd/helm"); err != nil {
			return err
		}
		return os.Rename(temporary, path)
	})
}

// Binary is the path of Helm.
func (h Helm) Binary() string { return h.binary }

// Run returns what Helm prints; what it complains of is in the error.
func (h Helm) Run(ctx context.Context, args ...string) ([]byte, error) {
	home, err := os.MkdirTemp("", "bucketwarden-helm-")
	if err != nil {
		return nil, fmt.Errorf("making a directory for Helm: %w", err)
	}
	defer func() { _ = os.RemoveAll(home) }()
	cmd := exec.CommandContext(ctx, h.binary, args...)
	// Nothing of the user's own Helm.
	cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+home, "HELM_CACHE_HOME="+home, "HELM_DATA_HOME="+home)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("helm %s: %w\n%s%s", args[0], err, stdout.String(), stderr.String())
	}
	return stdout.Bytes(), nil
}

// Lint is helm lint; values are those of --set.
func (h Helm) Lint(ctx context.Context, values ...string) error {
	_, err := h.Run(ctx, append([]string{"lint", "--strict", h.Chart}, setFlags(values)...)...)
	return err
}

// Template renders the chart as release bucketwarden in the namespace; values are those of
// --set.
func (h Helm) Template(ctx context.Context, namespace string, values ...string) ([]byte, error) {
	return h.TemplateRelease(ctx, "bucketwarden", namespace, values...)
}

// TemplateRelease is Template for a release of any name.
func (h Helm) TemplateRelease(ctx context.Context, release, namespace string, values ...string) ([]byte, error) {
	return h.Run(ctx, append([]string{"template", release, h.Chart, "--namespace=" + namespace}, setFlags(values)...)...)
}

func setFlags(values []string) []string {
	var args []string
	for _, value := range values {
		args = append(args, "--set="+value)
	}
	return args
}

// manifestsNamespace is where deploy/manifests.yaml puts the daemon.
const manifestsNamespace = "bucketwarden"

// Manifests renders deploy/manifests.yaml.
func (h Helm) Manifests(ctx context.Context) ([]byte, error) {
	rendered, err := h.Template(ctx, manifestsNamespace)
	if err != nil {
		return nil, err
	}
	const header = `# The chart in deploy/chart with its default values, for kubectl apply. Made by
# make manifests; do not edit.
---
apiVersion: v1
kind: Namespace
metadata:
  name: ` + manifestsNamespace + `
  labels:
    pod-security.kubernetes.io/enforce: restricted
`
	return append([]byte(header), rendered...), nil
}
