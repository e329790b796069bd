package env

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// minioVersion is built from source: MinIO publishes no binaries of its community
// edition any more.
const minioVersion = "v0.0.0-20260212201848-7aac2a2c5b7c"

// Binaries are the paths of what EnsureBinaries built.
type Binaries struct {
	Testkube string
	MinIO    string
	// Azurite is a script for node.
	Azurite string
	// Daemon is bucketwarden, built with the flags given to EnsureBinaries.
	Daemon string
}

// directory is that of this Go module. The linker sets it in builds with -trimpath.
var directory string

// moduleDirectory finds the sources to build.
func moduleDirectory() (string, error) {
	if directory != "" {
		return directory, nil
	}
	_, file, _, _ := runtime.Caller(0)
	if !filepath.IsAbs(file) {
		return "", errors.New("finding the sources to build: the linker must set bucketwarden/test/env.directory, see the Makefile")
	}
	return filepath.Dir(filepath.Dir(file)), nil
}

// What runs without the race detector is built as the image is, so that packages are
// compiled once for all of it.
var (
	releaseFlags = []string{"-trimpath"}
	releaseEnv   = []string{"CGO_ENABLED=0"}
)

// EnsureBinaries builds what is missing or out of date into
// $BUCKETWARDEN_CACHE, by default bucketwarden in the user's cache directory.
// It reports long steps on progress; flags are go build's for the daemon, which without any is built
// as for the image. Processes that call it at the same time wait for each other.
func EnsureBinaries(ctx context.Context, progress io.Writer, flags ...string) (Binaries, error) {
	b, err := newBuilder(ctx, progress)
	if err != nil {
		return Binaries{}, err
	}
	defer b.unlock()

	var bin Binaries
	if bin.Testkube, err = b.testkube(ctx); err != nil {
		return Binaries{}, err
	}
	if bin.MinIO, err = b.minio(ctx); err != nil {
		return Binaries{}, err
	}
	if bin.Azurite, err = b.azurite(ctx); err != nil {
		return Binaries{}, err
	}
	if bin.Daemon, err = b.daemon(ctx, strings.Join(append([]string{"bucketwarden"}, flags...), ""), flags...); err != nil {
		return Binaries{}, err
	}
	return bin, nil
}

// builder holds the lock of the cache directory.
type builder struct {
	cache    string
	module   string // the root of this Go module
	progress io.Writer
	lock     *os.File
}

// cacheDirectory is $BUCKETWARDEN_CACHE, by default bucketwarden in the user's cache directory.
func cacheDirectory() (string, error) {
	cache := os.Getenv("BUCKETWARDEN_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding the cache directory, which BUCKETWARDEN_CACHE can set: %w", err)
		}
		cache = filepath.Join(user, "bucketwarden")
	}
	absolute, err := filepath.Abs(cache)
	if err != nil {
		return "", fmt.Errorf("finding the cache directory: %w", err)
	}
	return absolute, nil
}

func newBuilder(ctx context.Context, progress io.Writer) (*builder, error) {
	module, err := moduleDirectory()
	if err != nil {
		return nil, err
	}
	cache, err := cacheDirectory()
	if err != nil {
		return nil, err
	}
	b := &builder{module: module, progress: progress, cache: cache}
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return nil, fmt.Errorf("making the cache directory: %w", err)
	}
	if b.lock, err = os.OpenFile(filepath.Join(b.cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return nil, fmt.Errorf("opening the lock of the cache directory: %w", err)
	}
	err = b.report(ctx, "waiting for another process that builds into "+b.cache, func() error {
		for {
			err := syscall.Flock(int(b.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
			if !errors.Is(err, syscall.EWOULDBLOCK) {
				return err
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(pollInterval):
			}
		}
	})
	if err != nil {
		b.unlock()
		return nil, fmt.Errorf("locking the cache directory: %w", err)
	}
	return b, nil
}

// unlock releases the lock, as the end of the process would.
func (b *builder) unlock() { _ = b.lock.Close() }

// testkube builds the API server unless its sources, its dependencies and the
// compiler are those of an earlier build.
func (b *builder) testkube(ctx context.Context) (string, error) {
	goVersion, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("asking for the Go version: %w", err)
	}
	sources, err := filepath.Glob(filepath.Join(b.module, "cmd", "testkube", "*.go"))
	if err != nil {
		return "", fmt.Errorf("listing the sources of testkube: %w", err)
	}
	hash := sha256.New()
	hash.Write(goVersion)
	for _, name := range append(sources, filepath.Join(b.module, "go.mod"), filepath.Join(b.module, "go.sum")) {
		content, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("hashing the sources of testkube: %w", err)
		}
		fmt.Fprintf(hash, "%s %d\n", filepath.Base(name), len(content))
		hash.Write(content)
	}
	path := filepath.Join(b.cache, fmt.Sprintf("testkube-%x", hash.Sum(nil)[:8]))
	if exists(path) {
		return path, nil
	}
	what := "building testkube (kube-apiserver with etcd, about 2000 packages: minutes when Go's build cache is cold)"
	return path, b.report(ctx, what, func() error {
		_, linkerFlags, err := b.kubernetesVersion(ctx)
		if err != nil {
			return err
		}
		temporary := path + ".tmp"
		if err := b.build(ctx, b.module, temporary, linkerFlags, "./cmd/testkube"); err != nil {
			return err
		}
		return os.Rename(temporary, path)
	})
}

// minio builds MinIO with its own dependencies: go install ignores the module of the working
// directory when it is given a version.
func (b *builder) minio(ctx context.Context) (string, error) {
	path := filepath.Join(b.cache, "minio-"+minioVersion)
	if exists(path) {
		return path, nil
	}
	return path, b.report(ctx, "building MinIO (it ships no binaries any more: minutes when Go's build cache is cold)", func() error {
		dir, err := os.MkdirTemp(b.cache, "minio-build-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		args := append(append([]string{"install"}, releaseFlags...), "github.com/minio/minio@"+minioVersion)
		if err := b.run(ctx, dir, append([]string{"GOBIN=" + dir}, releaseEnv...), args...); err != nil {
			return err
		}
		return os.Rename(filepath.Join(dir, "minio"), path)
	})
}

// azurite installs the packages of the lock file in azurite/.
func (b *builder) azurite(ctx context.Context) (string, error) {
	for _, name := range []string{"node", "npm"} {
		if _, err := exec.LookPath(name); err != nil {
			return "", fmt.Errorf("installing Azurite, which takes the place of Azure Blob Storage in tests: Node.js with npm is needed, please install it: %w", err)
		}
	}
	hash := sha256.New()
	contents := map[string][]byte{}
	for _, name := range []string{"package.json", "package-lock.json"} {
		content, err := os.ReadFile(filepath.Join(b.module, "azurite", name))
		if err != nil {
			return "", fmt.Errorf("reading what Azurite is installed from: %w", err)
		}
		hash.Write(content)
		contents[name] = content
	}
	root := filepath.Join(b.cache, fmt.Sprintf("azurite-%x", hash.Sum(nil)[:8]))
	path := filepath.Join(root, "node_modules", "azurite", "dist", "src", "blob", "main.js")
	if exists(path) {
		return path, nil
	}
	return path, b.report(ctx, "installing Azurite with npm", func() error {
		dir, err := os.MkdirTemp(b.cache, "azurite-build-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		for name, content := range contents {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				return err
			}
		}
		// Azurite asks for a newer Node.js than it needs. Nothing of it has to be built
		// by a script.
		cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--engine-strict=false", "--loglevel=error")
		cmd.Dir = dir
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("npm ci: %w\n%s", err, output)
		}
		return os.Rename(dir, root)
	})
}

// daemon always runs go build: Go's build cache knows best whether anything
// has changed.
func (b *builder) daemon(ctx context.Context, name string, flags ...string) (string, error) {
	root := filepath.Dir(b.module)
	// Checkouts that share the cache directory must not replace each other's daemon.
	dir := filepath.Join(b.cache, fmt.Sprintf("checkout-%x", sha256.Sum256([]byte(root)))[:32])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making a cache directory: %w", err)
	}
	path := filepath.Join(dir, name)
	return path, b.report(ctx, "building "+name, func() error {
		// go build does not link again what is up to date, and otherwise makes
		// a new file: the one under path stays whole until it is replaced.
		built := path + ".build"
		if len(flags) == 0 {
			if err := b.build(ctx, root, built, "."); err != nil {
				return err
			}
		} else if err := b.run(ctx, root, nil, append(append([]string{"build", "-o", built}, flags...), ".")...); err != nil {
			return err
		}
		if sameFile(built, path) {
			return nil
		}
		temporary := path + ".tmp"
		if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Link(built, temporary); err != nil {
			return err
		}
		return os.Rename(temporary, path)
	})
}

// build builds a command as the image is built.
func (b *builder) build(ctx context.Context, dir, output string, args ...string) error {
	return b.run(ctx, dir, releaseEnv, append(append([]string{"build", "-o", output}, releaseFlags...), args...)...)
}

// run runs the go command and returns its output with the error.
func (b *builder) run(ctx context.Context, dir string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	// A Go workspace or a build mode of the caller must not leak in.
	cmd.Env = append(append(os.Environ(), "GOWORK=off"), env...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, output.String())
	}
	return nil
}

// report says what is going on as soon as it takes longer than a moment, and
// then regularly, because CI systems end jobs that are silent.
func (b *builder) report(ctx context.Context, what string, step func() error) error {
	begin := time.Now()
	finished := make(chan struct{})
	reported := make(chan bool)
	go func() {
		said := false
		wait := time.Second
		for {
			select {
			case <-finished:
				reported <- said
				return
			case <-ctx.Done():
				<-finished
				reported <- said
				return
			case <-time.After(wait):
				said = true
				fmt.Fprintf(b.progress, "%s: %ds\n", what, int(time.Since(begin).Seconds()))
				wait = 10 * time.Second
			}
		}
	}()
	err := step()
	close(finished)
	said := <-reported
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if said {
		fmt.Fprintf(b.progress, "%s: done after %ds\n", what, int(time.Since(begin).Seconds()))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}
