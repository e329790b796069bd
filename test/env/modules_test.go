package env

import (
	"encoding/json"
	"os/exec"
	"testing"
)

// requirements are the versions in a go.mod; where they are replaced, of what replaces them.
func requirements(t *testing.T, dir string) map[string]string {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json")
	command.Dir = dir
	output, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	var module struct {
		Require []struct{ Path, Version string }
		Replace []struct {
			Old, New struct{ Path, Version string }
		}
	}
	if err := json.Unmarshal(output, &module); err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, r := range module.Require {
		versions[r.Path] = r.Version
	}
	for _, r := range module.Replace {
		if versions[r.Old.Path] != "" {
			versions[r.Old.Path] = r.New.Version
		}
	}
	return versions
}

// Where the versions of the two modules differ, packages are compiled twice, and the end-to-end
// tests are not of the clients that the daemon has.
func TestModulesAgree(t *testing.T) {
	tests := requirements(t, "..")
	shared := 0
	for path, version := range requirements(t, "../..") {
		other, ok := tests[path]
		if !ok {
			continue
		}
		shared++
		if version != other {
			t.Errorf("%s is %s in go.mod and %s in test/go.mod: go get the newer one in both", path, version, other)
		}
	}
	if shared < 50 {
		t.Errorf("only %d modules are in both", shared)
	}
}
