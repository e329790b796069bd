package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// The script does in bash what it should.
func TestCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash")
	}
	run := func(args ...string) (string, string, int) {
		c := newCLI(programName)
		var out, errOut bytes.Buffer
		c.out, c.errOut = &out, &errOut
		code := c.main(t.Context(), args)
		return out.String(), errOut.String(), code
	}
	script, _, code := run("completion", "bash")
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for line, want := range map[string]string{
		"bucketwarden ver":                         "verify",
		"bucketwarden ":                            "status plan snapshots verify exclude include probe evidence completion help",
		"bucketwarden help ex":                     "exclude",
		"bucketwarden verify --de":                 "--deep",
		"bucketwarden verify -o js":                "json",
		"bucketwarden exclude entry --re":          "--reason --region",
		"bucketwarden snapshots --dee":             "",
		"bucketwarden verify entry":                "",
		"bucketwarden verify --bucket-secret go.s": "go.sum",
	} {
		words := strings.Split(line, " ")
		quoted := make([]string, len(words))
		for i, word := range words {
			quoted[i] = fmt.Sprintf("%q", word)
		}
		program := fmt.Sprintf("%s\nCOMP_WORDS=(%s)\nCOMP_CWORD=%d\n_bucketwarden\necho \"${COMPREPLY[@]}\"", script, strings.Join(quoted, " "), len(words)-1)
		out, err := exec.CommandContext(t.Context(), bash, "-u", "-c", program).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%q completes to %q, %v; want %q", line, out, err, want)
		}
	}
	for _, shell := range []string{"zsh", "fish"} {
		script, _, code := run("completion", shell)
		if code != 0 || !strings.Contains(script, "verify") || !strings.Contains(script, "deep") {
			t.Errorf("%s: exit code %d\n%s", shell, code, script)
		}
	}
	for _, args := range [][]string{{"completion"}, {"completion", "cmd"}, {"completion", "bash", "zsh"}} {
		if _, errOut, code := run(args...); code != exitFailed || !strings.Contains(errOut, "fish") {
			t.Errorf("%q: exit code %d, %s", args, code, errOut)
		}
	}
}
