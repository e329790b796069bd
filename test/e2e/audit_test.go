package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bucketwarden/test/env"
)

// proof is what Prometheus has recorded of a bucket, a sample each quarter of an hour (deploy/alerts_test.yaml tests which), and whether
// the auditor's query of docs/metrics.md names it.
type proof struct {
	bucket, recorded string
	proven           bool
}

// perDay is how many samples of a bucket are recorded in a day.
const perDay = 24 * 4

// recorded are values as promtool reads them, each for a number of samples; "_" is no sample.
func recorded(parts ...any) string {
	var text []string
	for i := 0; i+1 < len(parts); i += 2 {
		text = append(text, fmt.Sprintf("%vx%d", parts[i], parts[i+1].(int)-1))
	}
	return strings.ReplaceAll(strings.Join(text, " "), "_x0", "_")
}

var proofs = []proof{
	{"locked-all-the-time", recorded("1", 91*perDay), true},
	{"seen-for-an-hour", recorded("_", 90*perDay-4, "1", 5), false},
	{"seen-for-an-hour-long-ago", recorded("_", perDay, "1", 4, "_", perDay), false},
	{"gap-of-a-day", recorded("1", 40*perDay, "_", perDay, "1", 50*perDay), false},
	{"stale-for-60-days", recorded("1", 30*perDay, "_", 61*perDay), false},
	{"stale-for-60-days-before", recorded("_", 60*perDay, "1", 31*perDay), false},
	{"unlocked-for-a-minute", recorded("1", 40*perDay, "0", 1, "1", 51*perDay), false},
	{"never-locked", recorded("0", 91*perDay), false},
	{"unknown-for-an-hour-twice", recorded("1", 40*perDay, "_", 4, "1", 40*perDay, "_", 4, "1", 11*perDay), true},
	{"unknown-for-three-hours", recorded("1", 40*perDay, "_", 12, "1", 51*perDay), false},
	{"made-89-days-ago", recorded("_", perDay, "1", 90*perDay), false},
	{"unlocked-before-that", recorded("0", perDay/2-1, "1", 91*perDay), true},
}

// auditorsQueries are those of docs/metrics.md that read the recorded series: what is proven, and what is not.
func auditorsQueries(t *testing.T) (proven, unproven string) {
	t.Helper()
	content, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, block := range regexp.MustCompile("(?s)```promql\n(.*?)```").FindAllStringSubmatch(string(content), -1) {
		if strings.Contains(block[1], "bucketwarden:backupbucket_proven") {
			found = append(found, block[1])
		}
	}
	if len(found) != 2 {
		t.Fatalf("docs/metrics.md has %d queries for the auditor", len(found))
	}
	return found[0], found[1]
}

func TestMonitoringAuditorsQuery(t *testing.T) {
	t.Parallel()
	bin := prometheusBinaries(t)
	proven, unproven := auditorsQueries(t)
	// Of one bucket nothing was ever recorded.
	input := map[string]string{`bucketwarden_backupbucket_info{instance="a",bucket="only-seen",type="aws",region="r"}`: recorded("1", 9*perDay, "_", 82*perDay)}
	sample := func(bucket string) any {
		return map[string]any{"labels": fmt.Sprintf("{bucket=%q}", bucket), "value": 1}
	}
	expected, others := []any{}, []any{sample("only-seen")}
	for _, proof := range proofs {
		input[fmt.Sprintf("bucketwarden:backupbucket_proven{bucket=%q}", proof.bucket)] = proof.recorded
		if proof.proven {
			expected = append(expected, sample(proof.bucket))
		} else {
			others = append(others, sample(proof.bucket))
		}
	}
	at := fmt.Sprintf("%dm", 15*(90*perDay+perDay/2))
	err := promtoolTest(t.Context(), bin, t.TempDir(), nil, "12h", map[string]any{"interval": "15m", "input_series": promtoolSeries(input),
		"promql_expr_test": []any{
			map[string]any{"eval_time": at, "expr": "count by (bucket) (" + proven + ")", "exp_samples": expected},
			map[string]any{"eval_time": at, "expr": "count by (bucket) (" + unproven + ")", "exp_samples": others},
		}})
	if err != nil {
		t.Error(err)
	}
}

// auditor runs commands of docs/audit.md on a copy of the example.
type auditor struct {
	t         *testing.T
	directory string
}

func newAuditor(t *testing.T) *auditor {
	a := &auditor{t, t.TempDir()}
	must(t, os.CopyFS(a.path(), os.DirFS("../../docs/audit-example")))
	return a
}

func (a *auditor) path(parts ...string) string {
	return filepath.Join(append([]string{a.directory, "docs", "audit-example"}, parts...)...)
}

// run returns what the last command has printed, and whether it has succeeded. cosign is where that is.
func (a *auditor) run(cosign string, commands ...string) (string, bool) {
	a.t.Helper()
	cmd := exec.CommandContext(a.t.Context(), "sh", "-c", strings.Join(commands, "\n"))
	cmd.Dir = a.directory
	cmd.Env = append(os.Environ(), "HOME="+a.directory, "PATH="+filepath.Dir(cosign)+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		a.t.Fatal(err)
	}
	return string(out), err == nil
}

// With the commands of docs/audit.md cosign accepts what is signed, with the public key alone, and nothing that was changed.
func TestAuditWithCosign(t *testing.T) {
	t.Parallel()
	cosign, err := env.Cosign()
	if errors.Is(err, env.ErrUnavailable) {
		t.Skip(err)
	}
	must(t, err)
	var byHand, withCosign string
	blocks, _ := splitPage(t, "docs/audit.md")
	for _, b := range blocks {
		switch {
		case strings.Contains(b.text, "openssl pkeyutl"):
			byHand = b.text
		case strings.Contains(b.text, "cosign verify-blob-attestation"):
			withCosign = b.text
		}
	}
	f, rest, _ := strings.Cut(byHand, "\n")
	name := filepath.Base(f)
	payload, _, _ := strings.Cut(rest, "\n")
	change := func(a *auditor, from, to string) {
		content, err := os.ReadFile(a.path("example-backups", name))
		must(t, err)
		changed := bytes.Replace(content, []byte(from), []byte(to), 1)
		if bytes.Equal(changed, content) {
			t.Fatalf("there is no %s in %s", from, name)
		}
		must(t, os.WriteFile(a.path("example-backups", name), changed, 0o600))
	}
	another := func(a *auditor) {
		_, public := newDSSEKey(t).files(t)
		key, err := os.ReadFile(public)
		must(t, err)
		must(t, os.WriteFile(a.path("evidence.pub"), key, 0o600))
	}
	// The payload begins with {"_type":
	tampered := func(a *auditor) { change(a, `"payload":"eyJfdHlwZSI6`, `"payload":"IHsidHlwZSI6`) }

	for _, test := range []struct {
		name   string
		change func(*auditor)
		// with replaces the last command.
		with string
		good bool
	}{
		{"as it is", func(*auditor) {}, withCosign, true},
		{"changed", tampered, withCosign, false},
		{"another key", another, withCosign, false},
		{"another bucket", func(*auditor) {}, strings.Replace(withCosign, "cosign", "printf x >> subject\ncosign", 1), false},
		{"another type", func(*auditor) {}, strings.Replace(withCosign, "evidence:v1", "evidence:v2", 1), false},
	} {
		a := newAuditor(t)
		test.change(a)
		if out, ok := a.run(cosign, f, payload, test.with); ok != test.good || ok && !strings.Contains(out, "Verified OK") {
			t.Errorf("%s: %t, %s", test.name, ok, out)
		}
	}
}
