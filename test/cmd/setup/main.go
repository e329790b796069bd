// Command setup builds or fetches what the end-to-end tests run: kube-apiserver with etcd, etcd alone,
// MinIO, Azurite, Ceph, kubectl, Helm, Prometheus, Chromium, and bucketwarden with the race detector. They
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
	etcd, err := env.EnsureEtcd(ctx, os.Stderr)
	if err != nil {
		return err
	}
	prometheus, err := env.EnsurePrometheus(ctx, os.Stderr)
	if err != nil {
		return err
	}
	// found says where something is that not every machine can have.
	found := func(where string, err error) (string, error) {
		if errors.Is(err, env.ErrUnavailable) {
			return "tests that need it are skipped: " + err.Error(), nil
		}
		return where, err
	}
	ceph, err := env.EnsureCeph(ctx, os.Stderr)
	whereCeph, err := found(ceph.Where(), err)
	if err != nil {
		return err
	}
	chromium, err := env.EnsureChromium(ctx, os.Stderr)
	whereChromium, err := found(chromium.Where(), err)
	if err != nil {
		return err
	}
	for _, built := range [][2]string{{"testkube", bin.Testkube}, {"MinIO", bin.MinIO}, {"Azurite", bin.Azurite}, {"kubectl", local.Kubectl},
		{"Helm", helm.Binary()}, {"etcd", etcd.Etcd}, {"etcdutl", etcd.Etcdutl}, {"Prometheus", prometheus.Prometheus},
		{"Ceph", whereCeph}, {"Chromium", whereChromium},
		{"bucketwarden with -race", bin.Daemon}} {
		fmt.Printf("%s: %s\n", built[0], built[1])
	}
	return nil
}
