// Command manifests renders deploy/manifests.yaml from the Helm chart.
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
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	helm, err := env.EnsureHelm(ctx, os.Stderr)
	if err != nil {
		return err
	}
	manifests, err := helm.Manifests(ctx)
	if err != nil {
		return err
	}
	file, err := env.ManifestsFile()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, manifests, 0o644); err != nil {
		return fmt.Errorf("writing the manifests: %w", err)
	}
	return nil
}
