// Command setup builds what the end-to-end tests run: kube-apiserver with etcd,
// MinIO, kubectl, and bucketwarden with the race detector. They would do it by
// themselves, but go test does not show the progress of a long build.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"bucketwarden/test/env"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	bin, err := env.EnsureBinaries(ctx, os.Stderr, "-race")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	local, err := env.EnsureLocal(ctx, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("testkube: %s\nminio: %s\nkubectl: %s\nbucketwarden with -race: %s\n", bin.Testkube, bin.MinIO, local.Kubectl, bin.Daemon)
}
