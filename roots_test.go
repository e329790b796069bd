package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// TestEmbeddedRoots checks which certificates are trusted with and without those of a
// system. A process decides that once, so each case is a process.
func TestEmbeddedRoots(t *testing.T) {
	const file = "BUCKETWARDEN_TEST_CERTIFICATE"
	if name := os.Getenv(file); name != "" {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(data)
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		// Embedded roots expire, the test must not.
		_, err = certificate.Verify(x509.VerifyOptions{CurrentTime: certificate.NotBefore.Add(time.Hour)})
		fmt.Println("trusted:", err == nil)
		return
	}

	dir := t.TempDir()
	write := func(name string, certificate []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	private, public := write("private.pem", server.Certificate().Raw), ""
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			public = write("public.pem", root.Certificate)
			break
		}
	}
	missing := filepath.Join(dir, "missing")
	for name, test := range map[string]struct {
		system, certificate string
		trusted             bool
	}{
		"a public CA without a system's":    {missing, public, true},
		"a private CA without a system's":   {missing, private, false},
		"a public CA that the system lacks": {private, public, false},
		"a private CA that is the system's": {private, private, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestEmbeddedRoots$")
			command.Env = append(os.Environ(), file+"="+test.certificate, "SSL_CERT_FILE="+test.system, "SSL_CERT_DIR="+missing)
			output, err := command.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, output)
			}
			if want := fmt.Sprintf("trusted: %v\n", test.trusted); !strings.HasPrefix(string(output), want) {
				t.Errorf("got %q, want %q", output, want)
			}
		})
	}
}
