// Command setup builds or fetches what the end-to-end tests run: kube-apiserver with etcd,
// MinIO, Azurite, Ceph, kubectl, Helm, Prometheus, and bucketwarden with the race detector. They
// would do it by themselves, but go test does not show the progress of a long build.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"bucketwarden/test/env"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := setup(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func setup(ctx context.Context) error {
	bin, err := env.EnsureBinaries(ctx, os.Stderr, "-race")
	if err != nil {
		return err
	}
	local, err := env.EnsureLocal(ctx, os.Stderr)
	if err != nil {
		return err
	}
	helm, err := env.EnsureHelm(ctx, os.Stderr)
	if err != nil {
		return err
	}
	prometheus, err := env.EnsurePrometheus(ctx, os.Stderr)
	if err != nil {
		return err
	}
	where := ""
	ceph, err := env.EnsureCeph(ctx, os.Stderr)
	switch {
	case errors.Is(err, env.ErrUnavailable):
		where = "tests that need it are skipped: " + err.Error()
	case err != nil:
		return err
	default:
		where = ceph.Where()
	}
	for _, built := range [][2]string{{"testkube", bin.Testkube}, {"MinIO", bin.MinIO}, {"Azurite", bin.Azurite}, {"kubectl", local.Kubectl},
		{"Helm", helm.Binary()}, {"Prometheus", prometheus.Prometheus}, {"Ceph", where},
		{"bucketwarden with -race", bin.Daemon}} {
		fmt.Printf("%s: %s\n", built[0], built[1])
	}
	return nil
}
