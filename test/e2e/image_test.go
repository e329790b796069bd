package e2e

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bucketwarden/test/env"
)

// maxImageSize is for the unpacked image.
const maxImageSize = 60_000_000

// imageConfig is what the tests read of an image's configuration
// (github.com/opencontainers/image-spec config.md).
type imageConfig struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Config       struct {
		User         string
		Entrypoint   []string
		Cmd          []string
		ExposedPorts map[string]struct{}
		Labels       map[string]string
	} `json:"config"`
}

// descriptor points to a blob of an image.
type descriptor struct {
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
}

// ociArchive is an unpacked image archive.
type ociArchive struct{ dir string }

func (a ociArchive) readJSON(t *testing.T, name string, into any) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(a.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func (a ociArchive) blob(d descriptor) string {
	return filepath.Join("blobs", strings.ReplaceAll(d.Digest, ":", "/"))
}

// untar unpacks the regular files of an archive and returns the headers of all of it.
func untar(t *testing.T, r io.Reader, dir string) []*tar.Header {
	t.Helper()
	var headers []*tar.Header
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers = append(headers, header)
		if header.Typeflag != tar.TypeReg {
			continue
		}
		name := filepath.Join(dir, path.Join("/", header.Name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(header.Mode).Perm())
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(file, archive)
		if err = errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, name string) *os.File {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

// buildImage runs make image and returns the image's configuration, its name and a
// directory with the content of its only layer.
func buildImage(t *testing.T, arguments ...string) (config imageConfig, name, root string) {
	t.Helper()
	output := filepath.Join(t.TempDir(), "image.tar")
	command := exec.CommandContext(t.Context(), "make", append([]string{"-C", "../..", "image", "OUTPUT=" + output}, arguments...)...)
	if log, err := command.CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, log)
	}
	archive := ociArchive{t.TempDir()}
	untar(t, open(t, output), archive.dir)
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	archive.readJSON(t, "index.json", &index)
	if len(index.Manifests) != 1 {
		t.Fatalf("the archive has %d images, want 1", len(index.Manifests))
	}
	var manifest struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	archive.readJSON(t, archive.blob(index.Manifests[0]), &manifest)
	archive.readJSON(t, archive.blob(manifest.Config), &config)
	if len(manifest.Layers) != 1 {
		t.Fatalf("the image has %d layers, want 1", len(manifest.Layers))
	}
	layer, err := gzip.NewReader(open(t, filepath.Join(archive.dir, archive.blob(manifest.Layers[0]))))
	if err != nil {
		t.Fatal(err)
	}
	root = t.TempDir()
	headers := untar(t, layer, root)
	if len(headers) != 1 || headers[0].Name != "bucketwarden" || headers[0].Typeflag != tar.TypeReg {
		t.Fatalf("the image contains %v, want the file bucketwarden alone", headers)
	}
	binary := headers[0]
	mustEqual(t, "mode of the binary", binary.Mode&0o7777, int64(0o755))
	mustEqual(t, "owner of the binary", []int{binary.Uid, binary.Gid}, []int{0, 0})
	mustEqual(t, "modification time of the binary", binary.ModTime.Unix(), config.Created.Unix())
	if binary.Size > maxImageSize {
		t.Errorf("the image has %d bytes, want at most %d", binary.Size, maxImageSize)
	}
	info, err := os.Stat(output)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("size of the image: %.1f MB, packed %.1f MB", float64(binary.Size)/1e6, float64(info.Size())/1e6)
	return config, index.Manifests[0].Annotations["org.opencontainers.image.ref.name"], root
}

// TestImage looks into the image that make image builds, and runs what is in it as
// Kubernetes would with readOnlyRootFilesystem and runAsNonRoot.
func TestImage(t *testing.T) {
	t.Parallel()
	const version = "v1.2.3-test"
	config, name, root := buildImage(t, "VERSION="+version, "IMAGE=registry.example/bucketwarden")

	mustEqual(t, "name of the image", name, "registry.example/bucketwarden:"+version)
	mustEqual(t, "platform", config.OS+"/"+config.Architecture, "linux/"+runtime.GOARCH)
	mustEqual(t, "User", config.Config.User, "65532:65532")
	mustEqual(t, "Entrypoint", config.Config.Entrypoint, []string{"/bucketwarden"})
	mustEqual(t, "Cmd", len(config.Config.Cmd), 0)
	mustEqual(t, "ExposedPorts", slices.Sorted(maps.Keys(config.Config.ExposedPorts)), []string{"10250/tcp", "8080/tcp", "8081/tcp"})
	labels := map[string]string{
		"title":       "bucketwarden",
		"description": ".+",
		"licenses":    `Apache-2\.0`,
		"version":     regexp.QuoteMeta(version),
		"created":     regexp.QuoteMeta(config.Created.UTC().Format(time.RFC3339)),
		"revision":    "([0-9a-f]{40,64})?", // none outside a git repository
	}
	for label, pattern := range labels {
		value := config.Config.Labels["org.opencontainers.image."+label]
		if !regexp.MustCompile("^" + pattern + "$").MatchString(value) {
			t.Errorf("label %s is %q, want a match of %s", label, value, pattern)
		}
	}
	mustEqual(t, "number of labels", len(config.Config.Labels), len(labels))

	binary := filepath.Join(root, "bucketwarden")
	executable, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = executable.Close() }()
	for _, program := range executable.Progs {
		if program.Type == elf.PT_INTERP || program.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary is not static: it has a segment %v", program.Type)
		}
	}
	output, err := exec.CommandContext(t.Context(), binary, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	mustEqual(t, "--version", string(output), "bucketwarden "+version+"\n")

	runConfined(t, root)
}

// runConfined runs the binary in root with nothing but a kubeconfig beside it.
func runConfined(t *testing.T, root string) {
	t.Helper()
	kubeconfig, err := os.ReadFile(kube.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "kubeconfig"), kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	// The umask must not keep the daemon's user from reading.
	if err := errors.Join(os.Chmod(filepath.Join(root, "kubeconfig"), 0o444), os.Chmod(root, 0o555)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(root, 0o755) })

	kind := newName("t")
	d, err := env.StartDaemon(t.Context(), env.DaemonOptions{
		Root: root, Binary: "/bucketwarden", Kubeconfig: "/kubeconfig", Args: []string{"--type=" + kind + "=s3"},
	})
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("running the image's binary with a root directory of its own: this machine allows it neither to this user nor in a user namespace; run the test as root: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Kill)
	bucket := newName("bucket")
	store.createBucket(t, bucketObject(bucket, kind, providerConfig(kind, immutability("compliance", "96h"))))
	waitHealthy(t, buckets, bucket)

	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if err := d.Terminate(ctx); err != nil {
		t.Errorf("the daemon did not stop gracefully: %v", err)
	}
	files, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 2 {
		t.Errorf("the daemon left files behind: %v", files)
	}
}
