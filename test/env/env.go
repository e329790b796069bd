// Package env runs what bucketwarden needs around it, for the end-to-end
// tests, the demo and the benchmark: a real kube-apiserver, a real MinIO, a
// counting proxy in front of MinIO, and the daemon itself. Linux only.
//
//	bin, err := env.EnsureBinaries(ctx, os.Stderr)
//	kube, err := env.StartKube(ctx, bin.Testkube)
//	defer kube.Stop()
//	minio, err := env.StartMinIO(ctx, env.MinIOOptions{Binary: bin.MinIO})
//	defer minio.Stop()
//	daemon, err := env.StartDaemon(ctx, env.DaemonOptions{Binary: bin.Daemon, Kubeconfig: kube.Kubeconfig})
//	defer daemon.Kill()
//
// The context given to a Start function bounds the start only. Nothing that
// was started outlives this process.
package env

import (
	"context"
	"fmt"
	"time"
)

// Everything polled is on this machine, so it is asked again soon; but what takes long is asked less often, since on a busy
// machine the questions of many tests delay the answers.
const (
	pollInterval = 50 * time.Millisecond
	maxInterval  = 250 * time.Millisecond
)

// Eventually calls condition until it returns nil. A condition that does not
// hold yet returns an error that says what it saw; the last one is in the
// error that Eventually returns after timeout.
func Eventually(ctx context.Context, timeout time.Duration, what string, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %v", timeout))
	defer cancel()
	var last error
	begun := time.Now()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		// A call that was cut off by the deadline says less than the one before.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w, last seen: %w", what, context.Cause(ctx), last)
		case <-time.After(min(max(pollInterval, time.Since(begun)/8), maxInterval)):
		}
	}
}
