package env

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Local are what EnsureLocal built, and a directory for a running environment.
type Local struct {
	Testkube string
	MinIO    string
	// Kubectl lies in a directory with nothing else, for PATH.
	Kubectl string
	// Dir is in the cache directory. It may not exist.
	Dir string
}

// EnsureLocal is EnsureBinaries for a seed with S3 only, which needs no Node.js, and with
// kubectl.
func EnsureLocal(ctx context.Context, progress io.Writer) (Local, error) {
	b, err := newBuilder(ctx, progress)
	if err != nil {
		return Local{}, err
	}
	defer b.unlock()
	l := Local{Dir: filepath.Join(b.cache, "local")}
	if l.Testkube, err = b.testkube(ctx); err != nil {
		return Local{}, err
	}
	if l.MinIO, err = b.minio(ctx); err != nil {
		return Local{}, err
	}
	if l.Kubectl, err = b.kubectl(ctx); err != nil {
		return Local{}, err
	}
	return l, nil
}

// kubernetesVersion is the version that testkube and kubectl are built from, and call
// themselves: without the linker's flags it would be v0.0.0-master. Stripping saves a third
// of a binary.
func (b *builder) kubernetesVersion(ctx context.Context) (version, linkerFlags string, err error) {
	version, err = b.moduleVersion(ctx, "k8s.io/kubernetes")
	return version, "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=" + version, err
}

// moduleVersion is the version of a module in go.mod.
func (b *builder) moduleVersion(ctx context.Context, module string) (string, error) {
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", module)
	list.Dir = b.module
	// A Go workspace of the caller must not leak in.
	list.Env = append(os.Environ(), "GOWORK=off")
	output, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("asking for the version of %s: %w", module, err)
	}
	return strings.TrimSpace(string(output)), nil
}

// kubectl builds the kubectl of the API server's version.
func (b *builder) kubectl(ctx context.Context) (string, error) {
	version, linkerFlags, err := b.kubernetesVersion(ctx)
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.cache, "kubectl-"+version, "kubectl")
	if exists(path) {
		return path, nil
	}
	return path, b.report(ctx, "building kubectl", func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		temporary := filepath.Dir(path) + ".tmp"
		if err := b.build(ctx, b.module, temporary, linkerFlags, "k8s.io/kubernetes/cmd/kubectl"); err != nil {
			return err
		}
		return os.Rename(temporary, path)
	})
}
