package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"bucketwarden/test/env"
)

// TestStoreSeam runs the acceptance suite of the stores, which is in the package of the
// daemon, against each real S3 server, and an Azure of its own: the suite moves its clock.
func TestStoreSeam(t *testing.T) {
	// Not in parallel: the suite loads the stores by itself, and a batch of deletions on Ceph has to end in time.
	azure, err := env.StartAzure(t.Context(), env.AzureOptions{Azurite: binaries.Azurite})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(azure.Stop)
	servers, missing := map[string]map[string][]byte{}, map[string]bool{"azure": true}
	// Not onEachStore: its parallel subtests would begin when this one has ended.
	for _, s := range s3Stores {
		t.Run(s.name, func(t *testing.T) {
			store := newS3Store(s.name, s.plain(t))
			servers[store.name], missing[store.name] = store.secret(), true
		})
	}
	secrets, err := json.Marshal(servers)
	must(t, err)
	cmd := exec.CommandContext(t.Context(), "go", "test", "-race", "-vet=off", "-count=1", "-parallel=8", "-timeout=60m",
		"-run=^TestStoreAcceptance$", "-v", ".")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GOWORK=off", "BUCKETWARDEN_TEST_S3="+string(secrets), "BUCKETWARDEN_TEST_AZURE="+azure.ControlURL)
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(output); lines.Scan(); {
		line := lines.Text()
		if name, passed := strings.CutPrefix(strings.TrimSpace(line), "--- PASS: TestStoreAcceptance/"); passed {
			name, _, _ = strings.Cut(name, " ")
			delete(missing, name)
		}
		if !strings.HasPrefix(line, "=== ") {
			t.Log(line)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the acceptance suite failed: %v", err)
	}
	for name := range missing {
		t.Errorf("store %s did not pass the acceptance suite", name)
	}
}
