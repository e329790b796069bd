package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The demo tells its story, every step of which it checks itself, and ends.
func TestDemo(t *testing.T) {
	t.Parallel()
	w := &workspace{root: t.TempDir()}
	tmp, binary := filepath.Join(w.root, "tmp"), filepath.Join(w.root, "demo")
	must(t, os.Mkdir(tmp, 0o755))
	ctx, cancel := context.WithTimeoutCause(t.Context(), documentTimeout, errors.New("it takes too long"))
	defer cancel()
	module, err := filepath.Abs("..")
	must(t, err)
	// As make demo does.
	linkerFlags := "-ldflags=-X 'bucketwarden/test/env.directory=" + module + "'"
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", linkerFlags, "-o", binary, "./cmd/demo")
	build.Dir, build.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the demo: %v\n%s", err, output)
	}
	demo := exec.CommandContext(ctx, binary, "--once")
	demo.Env = append(os.Environ(), "TMPDIR="+tmp)
	output, err := demo.CombinedOutput()
	if err != nil {
		t.Fatalf("the demo: %v, context: %v\n%s", err, context.Cause(ctx), output)
	}
	// Its columns break lines between words.
	for _, want := range []string{"denied the request", "irreversible:", "intact: it is cut", "complete and intact: 2 snapshots", "VersionsExtended:", "Every step was observed."} {
		if !strings.Contains(string(output), want) {
			t.Errorf("the demo does not say %q:\n%s", want, output)
		}
	}
	w.checkNothingLeft(t)
}
