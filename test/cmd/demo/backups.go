package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"bucketwarden/test/env"
)

// takeBackups takes the snapshots of a real etcd that both stores get: a full one and three deltas behind it.
func takeBackups(ctx context.Context) (snapshots []env.EtcdSnapshot, err error) {
	tools, err := env.EnsureEtcd(ctx, os.Stdout)
	if err != nil {
		return nil, err
	}
	etcd, err := tools.Start(ctx)
	if err != nil {
		return nil, err
	}
	defer etcd.Stop()
	taken := time.Now().Add(-20 * time.Minute)
	write := func() error {
		for i := range 20 {
			if _, err := etcd.Put(ctx, fmt.Sprintf("/registry/%d", i), fmt.Sprintf("all of etcd, %s", time.Now())); err != nil {
				return fmt.Errorf("writing to etcd: %w", err)
			}
		}
		return nil
	}
	if err := write(); err != nil {
		return nil, err
	}
	last, err := etcd.FullSnapshot(ctx, env.Gzip, taken)
	if err != nil {
		return nil, err
	}
	snapshots = append(snapshots, last)
	for range 3 {
		if err := write(); err != nil {
			return nil, err
		}
		taken = taken.Add(5 * time.Minute)
		if last, err = etcd.DeltaSnapshot(ctx, last.Last+1, env.Gzip, taken); err != nil {
			return nil, err
		}
		snapshots = append(snapshots, last)
	}
	return snapshots, nil
}

// command runs a command of the binary as an operator would, and expects how it ends. Of the sentences for people the name of the
// entry is left out.
func (d *demo) command(ctx context.Context, s *side, code int, arguments ...string) (did row, output, sentences string, err error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, d.binary, append(arguments, s.flags...)...)
	cmd.Env = append(append(os.Environ(), "KUBECONFIG="+d.kube.Kubeconfig), s.environment...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	did = row{"did", "bucketwarden " + strings.Join(arguments, " ")}
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return did, "", "", fmt.Errorf("%s: %w", did.text, err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		return did, "", "", fmt.Errorf("%s: exit code %d, not %d: %s%s", did.text, got, code, stdout.String(), stderr.String())
	}
	return did, stdout.String(), strings.ReplaceAll(stderr.String(), s.entry()+": ", ""), nil
}

// snapshots shows what a restore would take, marked with *, and what it leaves out, marked with x.
func (d *demo) snapshots(ctx context.Context, s *side, revision int64) ([]row, error) {
	did, output, sentences, err := d.command(ctx, s, 0, "snapshots", s.entry(), "-o", "json")
	if err != nil {
		return nil, err
	}
	var listing struct {
		Complete  bool
		Revision  int64
		Snapshots []struct {
			Name, Kind, Excluded, Locked string
			LastRevision                 int64
			InChain                      bool
			LockedUntil                  time.Time
		}
	}
	if err := json.Unmarshal([]byte(output), &listing); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", did.text, err, output)
	}
	if !listing.Complete || listing.Revision != revision {
		return nil, fmt.Errorf("%s: the chain does not reach revision %d: %s", did.text, revision, output)
	}
	rows := []row{did}
	for _, of := range listing.Snapshots {
		mark := "-"
		switch {
		case of.InChain:
			mark = "*"
		case of.Excluded == "yes":
			mark = "x"
		}
		saw := fmt.Sprintf("%s %s to %d", mark, of.Kind, of.LastRevision)
		if !of.LockedUntil.IsZero() {
			saw += ", locked until " + of.LockedUntil.Format(time.RFC3339)
		}
		rows = append(rows, row{"saw", saw})
	}
	sentence, _, _ := strings.Cut(sentences, "\n")
	return append(rows, row{"saw", sentence}), nil
}

// verifyDeep runs the command and expects its verdict and the revision that a restore would reach.
func (d *demo) verifyDeep(ctx context.Context, s *side, code int, verdict string, revision int64) ([]row, error) {
	did, output, _, err := d.command(ctx, s, code, "verify", "--deep", s.entry(), "-o", "json")
	if err != nil {
		return nil, err
	}
	var results []struct {
		Verdict  string
		Revision int64
		Read     int
		Problems []struct{ Kind, Problem string }
	}
	if err := json.Unmarshal([]byte(output), &results); err != nil || len(results) != 1 {
		return nil, fmt.Errorf("%s: %w: %s", did.text, err, output)
	}
	r := results[0]
	if r.Verdict != verdict || r.Revision != revision {
		return nil, fmt.Errorf("%s: it is %s to revision %d, not %s to %d: %s", did.text, r.Verdict, r.Revision, verdict, revision, output)
	}
	rows := []row{did, {"saw", fmt.Sprintf("%s: %d snapshots read, good to revision %d", r.Verdict, r.Read, r.Revision)}}
	for _, p := range r.Problems {
		if p.Kind == "Content" {
			rows = append(rows, row{"saw", p.Problem})
		}
	}
	return rows, nil
}

// checkBackups finds a broken snapshot and has a restore leave it out.
func (d *demo) checkBackups(ctx context.Context, s *side) (rows []row, err error) {
	full, first, broken, last := d.backups[0], d.backups[1], d.backups[2], d.backups[3]
	// The upload ended too early.
	broken.Content = broken.Content[:len(broken.Content)*2/3]
	for _, delta := range []env.EtcdSnapshot{first, broken, last} {
		if err := s.put(ctx, s.key(delta), delta.Content); err != nil {
			return nil, fmt.Errorf("writing a snapshot: %w", err)
		}
	}
	rows = append(rows, row{"did", fmt.Sprintf("wrote 3 deltas of a real etcd behind the full snapshot of revision %d, the second of them cut off", full.Last)})
	add := func(more []row, err error) error {
		rows = append(rows, more...)
		return err
	}
	if err := add(d.snapshots(ctx, s, last.Last)); err != nil {
		return nil, err
	}
	if err := add(d.verifyDeep(ctx, s, 2, "broken", first.Last)); err != nil {
		return nil, err
	}
	did, _, sentences, err := d.command(ctx, s, 0, "exclude", s.entry(), broken.Name, "--yes", "--reason=cut off")
	if err != nil {
		return nil, err
	}
	rows = append(rows, did)
	for _, sentence := range strings.Split(sentences, "\n") {
		if strings.HasPrefix(sentence, "excluded ") || strings.HasPrefix(sentence, "Revisions ") {
			rows = append(rows, row{"saw", sentence})
		}
	}
	if err := add(d.verifyDeep(ctx, s, 0, "complete and intact", first.Last)); err != nil {
		return nil, err
	}
	if err := add(d.snapshots(ctx, s, first.Last)); err != nil {
		return nil, err
	}
	note, err := d.eventNote(ctx, "SnapshotsExcluded", s.entry())
	return append(rows, row{"event", note}), err
}
