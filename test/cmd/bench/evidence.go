package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"bucketwarden/test/env"
)

// evidence measures what it takes to verify the statements of a bucket offline, and to make a report of them.
func (b *bench) evidence(ctx context.Context, days, entries int) error {
	progress("evidence of %d days, %d BackupEntries", days, entries)
	directory, err := os.MkdirTemp("", "bucketwarden-bench-")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(directory)
	size, err := writeEvidence(directory, days, entries)
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("a statement about a bucket with %d entries", entries), "at most 400 KB", fmt.Sprintf("%d KB", size/1000))
	for _, action := range []string{"verify", "report"} {
		cmd := exec.CommandContext(ctx, b.bin.Daemon, "evidence", action, "-f", filepath.Join(directory, "evidence"),
			"--key", filepath.Join(directory, "key.pub"))
		var out, failure strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &failure
		start := time.Now()
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("evidence %s: %w: %s", action, err, failure.String())
		}
		took := time.Since(start).Round(10 * time.Millisecond)
		cpu := (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Round(10 * time.Millisecond)
		target := map[string]string{"verify": "at most 5 s", "report": "below 2 MB"}[action]
		b.row(fmt.Sprintf("evidence %s, %d days of %d entries", action, days, entries), target,
			fmt.Sprintf("%s, CPU %s, prints %d KB", took, cpu, out.Len()/1000))
	}
	return nil
}

// writeEvidence writes a statement for each day, and returns the size of the last.
func writeEvidence(directory string, days, entries int) (size int, err error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return 0, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return 0, fmt.Errorf("writing the key: %w", err)
	}
	err = errors.Join(os.MkdirAll(filepath.Join(directory, "evidence", bucket), 0o755),
		os.WriteFile(filepath.Join(directory, "key.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	if err != nil {
		return 0, fmt.Errorf("writing the key: %w", err)
	}
	begin, previous := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -days), ""
	for day := range days {
		at := begin.AddDate(0, 0, day).Add(6 * time.Minute)
		var lines []any
		for n := range entries {
			name := fmt.Sprintf("shoot--project%d--cluster%d--e0ad1e0c-55d6-4b0a-9a53-1f1b1c3a%04d", n%40, n, n)
			lines = append(lines, map[string]any{"name": name, "checked": at.Add(-time.Minute),
				"full": at.Add(-5 * time.Hour), "delta": at.Add(-4 * time.Minute), "revision": 1000*n + day, "snapshots": 290, "bytes": 123 << 20,
				"lockedUntil": at.Add(time.Duration(100+n%100) * time.Hour)})
		}
		locked := map[string]any{"days": 14, "locked": true}
		signed, err := env.SignStatement(key, bucket, day+1, at, map[string]any{"sequence": day + 1, "previous": previous, "reason": "daily",
			"time": at, "clockOffsetSeconds": 0, "writer": "bench", "observed": at, "policy": locked, "spec": locked, "record": locked,
			"verifiedSince": begin, "verifyIntervalSeconds": 60, "hardened": true, "entries": lines, "notClaimed": []string{},
			"bucket": map[string]any{"name": bucket, "store": "s3", "endpoint": "s3.eu-central-1.amazonaws.com"}})
		if err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(directory, "evidence", bucket, signed.Name), signed.Envelope, 0o600); err != nil {
			return 0, fmt.Errorf("writing a statement: %w", err)
		}
		previous, size = signed.Digest, len(signed.Envelope)
	}
	return size, nil
}

// observe measures the daemon at rest while it only looks at what others own, beside the daemon that owns it.
func (b *bench) observe(ctx context.Context) error {
	progress("memory with --observe")
	if err := b.anyBucket(ctx); err != nil {
		return err
	}
	for _, of := range []struct{ flag, target string }{{"--observe=false", ""}, {"--observe", "as the daemon's"}} {
		if err := b.start(ctx, of.flag); err != nil {
			return err
		}
		rss, err := b.settledRSS(ctx)
		if err != nil {
			return err
		}
		b.row("resident memory with one bucket, "+of.flag, of.target, mb(rss))
		if err := b.stop(ctx); err != nil {
			return err
		}
	}
	return nil
}
