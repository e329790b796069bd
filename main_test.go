package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFlagDefaults(t *testing.T) {
	c, err := parseFlags([]string{"--namespace=own"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		types: typeFlag{"aws": storeS3, "s3": storeS3, "S3": storeS3, "azure": storeAzure}, class: "shoot", concurrentSyncs: 5,
		metricsAddress: ":8080", healthAddress: ":8081", namespace: "own", controllers: true, extendRetention: true,
		webhookAddress: ":10250", webhookConfiguration: "bucketwarden", webhookCertLifetime: 90 * 24 * time.Hour, loggingFormat: "text",
	}
	if !maps.Equal(c.types, want.types) {
		t.Errorf("types: got %v, want %v", c.types, want.types)
	}
	c.types, want.types = nil, nil
	if !reflect.DeepEqual(*c, want) {
		t.Errorf("got %+v, want %+v", *c, want)
	}
}

func TestFlags(t *testing.T) {
	c, err := parseFlags([]string{"--kubeconfig=k", "--type=s3=s3", "--type", "minio=s3", "--type=stack=azure", "--azure-cloud-config=clouds.json", "--class=garden", "--ignore-operation-annotation", "--concurrent-syncs=1",
		"--verify-interval=1s", "--metrics-address=127.0.0.1:1", "--health-address=127.0.0.1:2", "--namespace=n", "-v=0"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(c.types, typeFlag{"s3": storeS3, "minio": storeS3, "stack": storeAzure}) {
		t.Errorf("types: got %v, want the given ones alone", c.types)
	}
	if c.kubeconfig != "k" || c.class != "garden" || !c.ignoreOperationAnnotation || c.concurrentSyncs != 1 || c.verifyInterval != time.Second ||
		c.metricsAddress != "127.0.0.1:1" || c.healthAddress != "127.0.0.1:2" || c.namespace != "n" || c.azureCloudConfig != "clouds.json" {
		t.Errorf("got %+v", c)
	}
}

func TestFlagMistakes(t *testing.T) {
	tests := []struct{ arg, want string }{
		{"--concurrent-syncs=0", "--concurrent-syncs is 0, must be at least 1"},
		{"--concurrent-syncs=-1", "--concurrent-syncs is -1, must be at least 1"},
		{"--concurrent-syncs=many", "invalid value"},
		{"-v=8", "-v is 8, must be 0 to 7"},
		{"--evidence-key=k", "--evidence-key goes with --evidence"},
		{"--verify-interval=999ms", "--verify-interval is 999ms, must be at least 1s"},
		{"--verify-interval=-1m", "--verify-interval is -1m0s, must be at least 1s"},
		{"--verify-interval=1", "invalid value"},
		{"--type=aws", `"aws" is not NAME=STORE`},
		{"--type==s3", `"=s3" is not NAME=STORE`},
		{"--type=", `"" is not NAME=STORE`},
		{"--type=gcp=gcs", `unknown store "gcs", must be s3 or azure`},
		{"--type=s3=", `unknown store "", must be s3 or azure`},
		{"--type=azure=Azure", `unknown store "Azure", must be s3 or azure`},
		{"--unknown", "not defined"},
		{"argument", `unexpected argument "argument"`},
		{"-v=high", "invalid value"},
		{"--namespace=", "--webhook-address="},
		{"--logging-format=xml", `--logging-format is "xml", must be text or json`},
		{"--webhook-cert-lifetime=9s", "--webhook-cert-lifetime is 9s, must be at least 10s"},
	}
	for _, test := range tests {
		t.Run(test.arg, func(t *testing.T) {
			// The kubeconfig ends the run if the mistake is not found.
			err := run(t.Context(), []string{"--kubeconfig=/nonexistent/kubeconfig", "--namespace=own", test.arg}, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	var output bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, &output); !errors.Is(err, flag.ErrHelp) {
		t.Fatalf("got %v", err)
	}
	want := []string{"azure-cloud-config", "class", "concurrent-syncs", "controllers", "deep-check", "evidence", "evidence-directory", "evidence-key", "extend-retention", "health-address", "ignore-operation-annotation", "kubeconfig", "leader-elect", "logging-format", "metrics-address",
		"mutating-webhook-configuration", "namespace", "observe", "observe-credentials", "probe", "profiling", "type", "v", "verify-interval", "version", "webhook-address", "webhook-cert-dir", "webhook-cert-lifetime", "webhook-configuration"}
	var got []string
	for _, match := range regexp.MustCompile(`(?m)^  -(\S+).*\n    \t[A-Za-z/]`).FindAllStringSubmatch(output.String(), -1) {
		got = append(got, match[1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("documented: got %q, want %q in\n%s", got, want, output.String())
	}
	for _, value := range []string{"(default 5)", `(default ":8080")`, `(default ":8081")`, `(default "shoot")`, `(default ":10250")`, `(default "bucketwarden")`, `(default "text")`, "(default 2160h0m0s)", "(default true)", "aws=s3, s3=s3, S3=s3 and azure=azure"} {
		if !strings.Contains(output.String(), value) {
			t.Errorf("%s is missing in\n%s", value, output.String())
		}
	}
}

// A file that cannot be read ends the start, before anything is served.
func TestAzureCloudConfigMistakes(t *testing.T) {
	directory := t.TempDir()
	kubeconfig := filepath.Join(directory, "kubeconfig")
	text := `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}], "users": [{"name": "u", "user": {}}]}`
	broken := filepath.Join(directory, "broken")
	for file, text := range map[string]string{kubeconfig: text, broken: `{"MyCloud": {"blobEndpoint": `} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	missing := filepath.Join(directory, "missing")
	for _, file := range []string{missing, broken, directory} {
		// The addresses end the run if the mistake is not found.
		err := run(t.Context(), []string{"--kubeconfig", kubeconfig, "--azure-cloud-config", file, "--metrics-address=:-1", "--webhook-address="}, io.Discard)
		if err == nil || !strings.HasPrefix(err.Error(), "--azure-cloud-config: ") || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
		if errors.Is(err, os.ErrNotExist) != (file == missing) {
			t.Errorf("%s: %v is of another kind", file, err)
		}
	}
}

func TestTypeFlag(t *testing.T) {
	var types typeFlag
	if got := types.String(); got != "" {
		t.Errorf("empty: got %q", got)
	}
	for _, value := range []string{"s3=s3", "aws=s3", "azure=azure", "s3=s3"} {
		if err := types.Set(value); err != nil {
			t.Fatal(err)
		}
	}
	if got := types.String(); got != "aws=s3,azure=azure,s3=s3" {
		t.Errorf("got %q", got)
	}
}

func TestClasses(t *testing.T) {
	for value, want := range map[string][]string{
		"":               {"shoot"},
		" , ":            {"shoot"},
		"shoot":          {"shoot"},
		"garden":         {"garden"},
		"garden, shoot,": {"garden", "shoot"},
	} {
		if got := (&config{class: value}).classes(); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
}

func TestRESTConfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBECONFIG", "")
	if _, err := restConfig(""); err == nil || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("nothing given: got %v, want what to do", err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": "https://api.example.com"}}], "users": [{"name": "u", "user": {}}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if rc, err := restConfig(file); err != nil || rc.Host != "https://api.example.com" {
		t.Errorf("given: got %v, %v", rc, err)
	}
	t.Setenv("KUBECONFIG", file)
	if rc, err := restConfig(""); err != nil || rc.Host != "https://api.example.com" {
		t.Errorf("$KUBECONFIG: got %v, %v", rc, err)
	}
	if _, err := restConfig(file + "x"); err == nil {
		t.Error("a missing file: no error")
	}
}

func TestVersion(t *testing.T) {
	defer func(before string) { release = before }(release)
	release = "v1.2.3"
	var output bytes.Buffer
	// A version needs no namespace, no API server and no free ports.
	if err := run(t.Context(), []string{"--version"}, &output); err != nil || output.String() != "bucketwarden v1.2.3\n" {
		t.Errorf("%q, %v", output.String(), err)
	}
	release = ""
	if got := buildVersion(); got == "" {
		t.Error("nothing is known of the source")
	}
}
