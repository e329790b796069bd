// Command local is the environment of docs/quickstart.md: a real API server with the CRDs
// of a seed, a real S3 server, and a file that a shell reads to use them. It runs until
// Ctrl-C.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"bucketwarden/test/env"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "local:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	fmt.Println("Building what is missing (a first run takes about 10 minutes, later ones seconds)")
	bin, err := env.EnsureLocal(ctx, os.Stdout)
	if err != nil {
		return err
	}
	fmt.Println("Starting kube-apiserver and MinIO")
	kube, err := env.StartKube(ctx, bin.Testkube)
	if err != nil {
		return err
	}
	defer kube.Stop()
	minio, err := env.StartMinIO(ctx, env.MinIOOptions{Binary: bin.MinIO})
	if err != nil {
		return err
	}
	defer minio.Stop()
	addresses, err := freeAddresses(3)
	if err != nil {
		return err
	}
	path, err := writeEnvironment(bin, []variable{
		{"KUBECONFIG", kube.Kubeconfig},
		{"S3_ENDPOINT", minio.Endpoint},
		{"S3_ACCESS_KEY_ID", minio.AccessKeyID},
		{"S3_SECRET_ACCESS_KEY", minio.SecretAccessKey},
		{"METRICS_ADDRESS", addresses[0]},
		{"HEALTH_ADDRESS", addresses[1]},
		{"WEBHOOK_ADDRESS", addresses[2]},
	})
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(path) }()
	fmt.Printf("Ready; Ctrl-C ends it all. In other terminals:\n  . %s\n", path)
	<-ctx.Done()
	fmt.Println("Stopping")
	return nil
}

// freeAddresses returns addresses on which nothing listened a moment ago, for the daemon.
func freeAddresses(n int) ([]string, error) {
	var addresses []string
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("finding a free port: %w", err)
		}
		// Only when all are found, so that they differ.
		defer func() { _ = listener.Close() }()
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses, nil
}

type variable struct{ name, value string }

// writeEnvironment writes the file for shells; when it is there it is complete.
func writeEnvironment(bin env.Local, variables []variable) (path string, err error) {
	quote := func(value string) string { return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'" }
	text := fmt.Sprintf("export PATH=%s:\"$PATH\"\n", quote(filepath.Dir(bin.Kubectl)))
	for _, v := range variables {
		text += fmt.Sprintf("export %s=%s\n", v.name, quote(v.value))
	}
	path = filepath.Join(bin.Dir, "env")
	if err := os.MkdirAll(bin.Dir, 0o700); err != nil {
		return "", fmt.Errorf("making a directory for the environment file: %w", err)
	}
	if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("writing the environment file: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return "", fmt.Errorf("writing the environment file: %w", err)
	}
	return path, nil
}
