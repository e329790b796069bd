package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bucketwarden/test/env"
)

// reportPictureFile names the file that make report-picture wants the picture of a report in.
const reportPictureFile = "BUCKETWARDEN_REPORT_PICTURE"

// reportScene is the evidence of three buckets for four weeks, written as docs/evidence.md says, without any code of ours.
type reportScene struct {
	begin     time.Time
	key       ed25519.PrivateKey
	directory string
	// files are those of each bucket by their number, from 1 on.
	files map[string][]string
}

// at is a time in the scene.
func (s *reportScene) at(day int, hour float64) time.Time {
	return s.begin.AddDate(0, 0, day).Add(time.Duration(hour * float64(time.Hour)))
}

// statement is what is said of a bucket on a day when all is fine.
func (s *reportScene) statement(bucket string, number, day int) map[string]any {
	at := s.at(day, 0.1)
	locked := map[string]any{"days": 14, "locked": true}
	var entries, attacks []any
	for n := range 9 + 7*number {
		entries = append(entries, map[string]any{"name": fmt.Sprintf("shoot--%s--%s-%d", []string{"payments", "logistics", "research"}[number],
			[]string{"prod", "canary", "dev", "test"}[n%4], n), "checked": at.Add(-20 * time.Minute), "full": at.Add(-time.Duration(n+1) * time.Hour),
			"delta": at.Add(-time.Duration(3+n%5) * time.Minute), "revision": 1000*n + 17*day, "snapshots": 290 + n, "bytes": 123 << 20,
			"lockedUntil": at.Add(time.Duration(180+n*29%151+number*11) * time.Hour)})
	}
	for _, attack := range [][2]string{{"delete", "bucket"}, {"shorten", "bucket"}, {"delete", "entry"}, {"shorten", "entry"}} {
		attacks = append(attacks, map[string]any{"time": at.Add(-time.Hour), "attack": attack[0], "credentials": attack[1], "outcome": "refused by the lock"})
	}
	return map[string]any{"reason": "daily", "time": at, "clockOffsetSeconds": 0, "writer": "v1.0.0",
		"bucket":   map[string]any{"name": bucket, "store": "s3", "endpoint": "s3.eu-central-1.amazonaws.com", "region": "eu-central-1", "type": "aws"},
		"observed": at, "policy": locked, "spec": locked, "record": locked, "verifiedSince": s.begin, "verifyIntervalSeconds": 60, "hardened": true,
		"unprotectedVersions": 0, "probe": attacks, "entries": entries, "notClaimed": []string{"It is not proven that a backup can be restored.",
			"It is not proven that the store tells the truth: the statement says what the store has answered.", "This is no certification."}}
}

// newReportScene writes it. change may change each statement.
func newReportScene(t *testing.T, change func(s *reportScene, said map[string]any, bucket string, day int)) *reportScene {
	t.Helper()
	s := &reportScene{begin: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), directory: t.TempDir(), files: map[string][]string{},
		key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))}
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	must(t, err)
	must(t, os.WriteFile(s.keyFile(), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	for number, bucket := range []string{"seed-eu1-backups", "seed-eu2-backups", "seed-us1-backups"} {
		must(t, os.MkdirAll(filepath.Join(s.directory, "evidence", bucket), 0o755))
		previous := ""
		for day := range 28 {
			said := s.statement(bucket, number, day)
			said["sequence"], said["previous"] = day+1, previous
			if change != nil {
				change(s, said, bucket, day)
			}
			var file string
			file, previous = s.write(t, bucket, said)
			s.files[bucket] = append(s.files[bucket], file)
		}
	}
	return s
}

func (s *reportScene) keyFile() string { return filepath.Join(s.directory, "evidence.pub") }

// write signs a statement and returns its file and digest.
func (s *reportScene) write(t *testing.T, bucket string, said map[string]any) (file, digest string) {
	t.Helper()
	at, ok := said["time"].(time.Time)
	sequence, isNumber := said["sequence"].(int)
	if !ok || !isNumber {
		t.Fatal("a statement without a time or a number")
	}
	signed, err := env.SignStatement(s.key, bucket, sequence, at, said)
	must(t, err)
	file = filepath.Join(s.directory, "evidence", bucket, signed.Name)
	must(t, os.WriteFile(file, signed.Envelope, 0o600))
	return file, signed.Digest
}

// report runs the command, and returns the page and what it says to people.
func (s *reportScene) report(t *testing.T, exit int, args ...string) (page, said string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binaries.Daemon, append([]string{"evidence", "report", "-f", filepath.Join(s.directory, "evidence"),
		"--key", s.keyFile()}, args...)...)
	// Neither an API server nor a store is asked.
	cmd.Env = []string{"KUBECONFIG=/nowhere", "HOME=" + s.directory}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) || cmd.ProcessState.ExitCode() != exit {
		t.Fatalf("it ended with %v, not %d: %s", err, exit, errOut.String())
	}
	return out.String(), errOut.String()
}

// gapsInScene changes statements: a lock was taken away for three hours, a store was silent for ten, backups are not locked.
func gapsInScene(s *reportScene, said map[string]any, bucket string, day int) {
	earlier := func(from, until time.Time) []any { return []any{map[string]any{"from": from, "until": until}} }
	event := func(at time.Time, kind, message string) any {
		return map[string]any{"time": at, "kind": kind, "message": message}
	}
	switch {
	case bucket == "seed-eu1-backups" && day >= 12:
		said["verifiedSince"] = s.at(11, 15.2)
		if day == 12 {
			said["interruption"], said["verifiedEarlier"], said["unprotectedVersions"] = "the store said none", earlier(s.begin, s.at(11, 12.08)), 3
			said["events"] = []any{
				event(s.at(11, 12.1), "drift", "The store had no retention in place of locked retention of 336h."),
				event(s.at(11, 12.3), "refusal", "spec.providerConfig asks for locked retention of 24h: a locked policy cannot be shortened"),
				event(s.at(11, 15.2), "repair", "Restored locked retention of 336h.")}
		}
	case bucket == "seed-us1-backups" && day >= 20:
		said["verifiedSince"] = s.at(19, 18)
		if day == 20 {
			said["interruption"], said["verifiedEarlier"] = "nobody heard from the store about the bucket until 2026-11-20T18:00:00Z", earlier(s.begin, s.at(19, 8))
			said["events"] = []any{event(s.at(19, 18), "gap", "Nobody has heard from the store about the bucket for 10h0m0s.")}
		}
	}
	if entries, ok := said["entries"].([]any); ok && bucket == "seed-eu1-backups" && day == 27 {
		for i, change := range []map[string]any{{"unlocked": true}, {}, {"held": true}} {
			if entry, ok := entries[i+2].(map[string]any); ok {
				delete(entry, "lockedUntil")
				for key, value := range change {
					entry[key] = value
				}
			}
		}
	}
}

// What the command says of evidence on three occasions, and what a browser makes of its page.
func TestEvidenceReport(t *testing.T) {
	t.Parallel()
	picture := os.Getenv(reportPictureFile)
	browser, err := env.EnsureChromium(t.Context(), os.Stderr)
	drawn := true
	if errors.Is(err, env.ErrUnavailable) && picture == "" {
		t.Logf("nothing draws the pages here: %v", err)
		drawn, err = false, nil
	}
	must(t, err)
	fine := newReportScene(t, nil)
	gaps := newReportScene(t, gapsInScene)
	tampered := newReportScene(t, gapsInScene)
	changed := tampered.files["seed-eu1-backups"][12]
	content, err := os.ReadFile(changed)
	must(t, err)
	must(t, os.WriteFile(changed, bytes.Replace(content, []byte(`"payload":"ey`), []byte(`"payload":"ez`), 1), 0o600))
	must(t, os.Remove(tampered.files["seed-eu2-backups"][17]))
	const period = "From 1 November 2026 to 28 November 2026: "
	for _, c := range []struct {
		name  string
		scene *reportScene
		args  []string
		exit  int
		// sentence is at the top, shows anywhere.
		sentence string
		shows    []string
	}{
		{"fine", fine, nil, 0, period + "all 3 buckets were locked without a gap.", []string{"There was no time at which a bucket was not locked"}},
		{"fine days", fine, []string{"--from", "2026-11-05", "--to", "2026-11-07"}, 0,
			"From 5 November 2026 to 7 November 2026: all 3 buckets were locked without a gap.", nil},
		{"gaps", gaps, nil, 2, period + "1 of 3 buckets was locked without a gap; 1 was not for up to 3 h 7 min on 12 November 2026 (seed-eu1-backups); " +
			"of 1 it is not known for 10 h (seed-us1-backups).", []string{"Restored locked retention of 336h.", "Left without retention", "no end (legal hold)"}},
		{"days before the gaps", gaps, []string{"--to", "2026-11-10"}, 0, "From 1 November 2026 to 10 November 2026: all 3 buckets were locked without a gap.", nil},
		{"days with a gap", gaps, []string{"--from", "2026-11-12", "--to", "2026-11-12"}, 2,
			"On 12 November 2026: 2 of 3 buckets were locked without a gap; 1 was not for up to 3 h 7 min on 12 November 2026 (seed-eu1-backups).", nil},
		{"tampered", tampered, nil, 2, "This evidence has faults: ", []string{filepath.Base(changed), "What is wrong with the evidence", "not genuine",
			"between number 17 and number 19 there are 1 missing"}},
	} {
		page, said := c.scene.report(t, c.exit, c.args...)
		if !strings.Contains(said, c.sentence) {
			t.Errorf("%s: it says %q, not %q", c.name, said, c.sentence)
		}
		file := filepath.Join(t.TempDir(), "report.html")
		must(t, os.WriteFile(file, []byte(page), 0o600))
		if drawn {
			page, err = browser.Text(t.Context(), file) // as the browser has understood it
			must(t, err)
		}
		for _, text := range append(c.shows, c.sentence) {
			if !strings.Contains(html.UnescapeString(page), text) {
				t.Errorf("%s: the page does not show %q", c.name, text)
			}
		}
		if !drawn || len(c.args) > 0 {
			continue
		}
		png := filepath.Join(t.TempDir(), "report.png")
		must(t, browser.Picture(t.Context(), file, png, 1200, reportPictureHeight))
		image, err := os.ReadFile(png)
		must(t, err)
		const blank = 30 << 10
		if !bytes.HasPrefix(image, []byte("\x89PNG")) || len(image) < blank {
			t.Errorf("%s: the picture has %d bytes", c.name, len(image))
		}
		if picture != "" && c.name == "gaps" {
			must(t, os.WriteFile(picture, image, 0o644))
		}
	}
}

// reportPictureHeight is as much of the page as a first look needs.
const reportPictureHeight = 1180

// What docs/audit.md tells to do by hand: the steps find the signature good, and no other.
func TestAuditByHand(t *testing.T) {
	t.Parallel()
	version, err := exec.CommandContext(t.Context(), "openssl", "version").Output()
	if err != nil || !strings.HasPrefix(string(version), "OpenSSL ") || strings.HasPrefix(string(version), "OpenSSL 1.0") {
		t.Skipf("no OpenSSL that knows Ed25519: %s, %v", version, err)
	}
	blocks, _ := splitPage(t, "docs/audit.md")
	at := slices.IndexFunc(blocks, func(b block) bool { return b.language == "text" && strings.Contains(b.text, "openssl pkeyutl") })
	if at < 0 {
		t.Fatal("the page does not tell how")
	}
	directory := t.TempDir()
	must(t, os.CopyFS(filepath.Join(directory, "docs", "audit-example"), os.DirFS("../../docs/audit-example")))
	run := func(ctx context.Context) (string, error) {
		cmd := exec.CommandContext(ctx, "sh", "-euc", blocks[at].text)
		cmd.Dir = directory
		output, err := cmd.CombinedOutput()
		return string(output), err
	}
	output, err := run(t.Context())
	if err != nil || !strings.Contains(output, "Signature Verified Successfully") {
		t.Fatalf("%v: %s", err, output)
	}
	files, err := filepath.Glob(filepath.Join(directory, "docs", "audit-example", "*", "*.json"))
	must(t, err)
	for _, file := range files {
		content, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(file, bytes.Replace(content, []byte(`"payload":"ey`), []byte(`"payload":"ez`), 1), 0o600))
	}
	if output, err := run(t.Context()); err == nil {
		t.Errorf("changed statements are found good: %s", output)
	}
}
