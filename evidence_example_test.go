package main

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// exampleDirectory has statements of a made-up bucket, on which docs/audit.md shows how to verify. Everybody knows their key.
const exampleDirectory = "docs/audit-example"

// The example is evidence as it is written today, and all of it is fine. With UPDATE_EXAMPLE=1 it is written anew.
func TestAuditExample(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte("key"), 11)[:ed25519.SeedSize])
	public, _ := key.Public().(ed25519.PublicKey)
	begin := time.Date(2026, 11, 1, 0, 12, 0, 0, time.UTC)
	want := map[string][]byte{"evidence.pub": []byte(publicPEM(public))}
	const bucket = "example-backups"
	previous := ""
	hardened, unprotected := true, int64(0)
	for day := range 3 {
		at, since := begin.AddDate(0, 0, day), begin.AddDate(0, 0, -40)
		observed, until, revision := at.Add(-30*time.Second), at.AddDate(0, 0, 13), int64(412345+day*9876)
		full, delta := at.Add(-100*time.Minute), at.Add(-3*time.Minute)
		policy := &evidencePolicy{Days: 14, Locked: true}
		e := evidence{Sequence: int64(day + 1), Previous: previous, Reason: evidenceDaily, Time: at, Writer: "v1.0.0", Observed: &observed, Policy: policy,
			VerifiedSince: &since, VerifyInterval: 60, Spec: policy, Record: policy, Hardened: &hardened, UnprotectedVersions: &unprotected,
			Bucket: evidenceBucket{Name: bucket, Type: "aws", Store: "s3", Endpoint: "s3.eu-central-1.amazonaws.com", Region: "eu-central-1"},
			Entries: []evidenceEntry{{Name: "shoot--example--production", Checked: &delta, Full: &full, Delta: &delta, Revision: &revision, LockedUntil: &until,
				Snapshots: 287, Bytes: 3 << 30}}, NotClaimed: evidenceNotClaimed}
		content, err := signEvidence(e.statement(), key)
		if err != nil {
			t.Fatal(err)
		}
		previous = evidenceDigest(content)
		want[filepath.Join(bucket, evidenceName(&e, previous))] = content
	}
	if os.Getenv("UPDATE_EXAMPLE") != "" {
		if err := os.RemoveAll(exampleDirectory); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(exampleDirectory, bucket), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range want {
			if err := os.WriteFile(filepath.Join(exampleDirectory, name), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(exampleDirectory, "*", "*"))
	if err != nil || len(files) != len(want)-1 {
		t.Fatalf("%q, %v", files, err)
	}
	for name, content := range want {
		if got, err := os.ReadFile(filepath.Join(exampleDirectory, name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s is not as statements are written now: %v; UPDATE_EXAMPLE=1 writes it anew", name, err)
		}
	}
	verified, findings, err := readEvidence(evidenceFiles([]string{filepath.Join(exampleDirectory, bucket)}),
		evidenceQuery{keys: []ed25519.PublicKey{public}})
	if len(verified) != 3 || len(findings) > 0 || err != nil {
		t.Errorf("%d statements, %+v, %v", len(verified), findings, err)
	}
}
