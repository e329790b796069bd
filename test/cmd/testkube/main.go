// Command testkube is a real kube-apiserver with an embedded etcd in one
// process, for tests. It serves on a free port of 127.0.0.1, writes a
// kubeconfig with cluster-admin rights, prints one line on stdout when it is
// ready, logs to stderr, and exits on SIGTERM, on SIGINT and when its stdin is
// closed, so that it never outlives the process that started it.
//
// There is no controller manager: namespaces stay Terminating, owner
// references are not collected, and service account tokens come only from
// TokenRequest.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

const (
	// serviceCIDR is never routed: the API server only insists on having one.
	serviceCIDR = "10.0.0.0/24"

	issuer = "https://kubernetes.default.svc"

	startTimeout = 10 * time.Minute
)

func main() {
	dataDir := flag.String("data-dir", "", "existing directory for etcd, keys and certificates (required)")
	kubeconfig := flag.String("kubeconfig", "", "where to write the admin kubeconfig (required)")
	auditLog := flag.String("audit-log", "", "where to log every request, without bodies; not at all if empty")
	flag.Parse()
	if *dataDir == "" || *kubeconfig == "" {
		fmt.Fprintln(os.Stderr, "testkube: -data-dir and -kubeconfig are required")
		os.Exit(2)
	}

	// Nothing here is worth a graceful shutdown, which would take seconds.
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
		<-signals
		os.Exit(0)
	}()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()

	if err := run(*dataDir, *kubeconfig, *auditLog); err != nil {
		fmt.Fprintf(os.Stderr, "testkube: %v\n", err)
		os.Exit(1)
	}
}

// run serves until it fails.
func run(dataDir, kubeconfig, auditLog string) error {
	kubeconfig, err := filepath.Abs(kubeconfig)
	if err != nil {
		return fmt.Errorf("finding the absolute path of the kubeconfig: %w", err)
	}
	// The path of a unix socket is limited to about 100 bytes, so that etcd's
	// sockets are named relative to the working directory.
	if err := os.Chdir(dataDir); err != nil {
		return fmt.Errorf("entering the data directory: %w", err)
	}

	etcd, err := startEtcd()
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- fmt.Errorf("etcd failed: %w", <-etcd.Err()) }()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening for the API server: %w", err)
	}
	token := rand.Text()
	completed, err := apiserverOptions(listener, token, auditLog)
	if err != nil {
		return err
	}
	go func() {
		err := app.Run(context.Background(), completed)
		failed <- fmt.Errorf("API server ended: %w", errors.Join(err, http.ErrServerClosed))
	}()

	ca, err := os.ReadFile(filepath.Join("certs", "apiserver.crt"))
	if err != nil {
		return fmt.Errorf("reading the API server's certificate: %w", err)
	}
	host := "https://" + listener.Addr().String()
	if err := waitReady(&rest.Config{Host: host, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: ca}}, failed); err != nil {
		return err
	}
	if err := writeKubeconfig(kubeconfig, host, token, ca); err != nil {
		return err
	}
	fmt.Printf("ready %s\n", host)
	return <-failed
}

// startEtcd starts a single-member etcd on a unix socket, with durability
// switched off: the data does not outlive the test.
func startEtcd() (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Dir = "etcd"
	cfg.UnsafeNoFsync = true
	cfg.LogLevel = "error"
	cfg.LogOutputs = []string{"stderr"}
	client, peer := url.URL{Scheme: "unix", Host: "etcd.sock"}, url.URL{Scheme: "unix", Host: "peer.sock"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("starting etcd: %w", err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err := <-etcd.Err():
		return nil, fmt.Errorf("starting etcd: %w", err)
	case <-time.After(startTimeout):
		return nil, fmt.Errorf("starting etcd: not ready after %v", startTimeout)
	}
}

// apiserverOptions returns the API server's options as its command line would
// give them. API priority and fairness and the in-flight limits stay at their
// defaults, as on a seed.
func apiserverOptions(listener net.Listener, token, auditLog string) (options.CompletedOptions, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return options.CompletedOptions{}, fmt.Errorf("generating the service account key: %w", err)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return options.CompletedOptions{}, fmt.Errorf("encoding the service account key: %w", err)
	}
	if err := os.WriteFile("service-account.key", keyPEM, 0o600); err != nil {
		return options.CompletedOptions{}, fmt.Errorf("writing the service account key: %w", err)
	}
	if err := os.WriteFile("tokens.csv", []byte(token+",admin,admin,system:masters\n"), 0o600); err != nil {
		return options.CompletedOptions{}, fmt.Errorf("writing the admin token: %w", err)
	}

	var audit []string
	if auditLog != "" {
		policy := `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}`
		if err := os.WriteFile("audit.json", []byte(policy), 0o600); err != nil {
			return options.CompletedOptions{}, fmt.Errorf("writing the audit policy: %w", err)
		}
		audit = []string{"--audit-policy-file=audit.json", "--audit-log-path=" + auditLog}
	}

	s := options.NewServerRunOptions()
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, f := range s.Flags().FlagSets {
		flags.AddFlagSet(f)
	}
	if err := flags.Parse(append([]string{
		"--etcd-servers=unix://etcd.sock",
		"--authorization-mode=RBAC",
		"--token-auth-file=tokens.csv",
		"--anonymous-auth=false",
		"--cert-dir=certs",
		"--advertise-address=127.0.0.1",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=service-account.key",
		"--service-account-signing-key-file=service-account.key",
		"--service-cluster-ip-range=" + serviceCIDR,
		"--endpoint-reconciler-type=none",
		"--profiling=false",
	}, audit...)); err != nil {
		return options.CompletedOptions{}, fmt.Errorf("parsing the API server's flags: %w", err)
	}
	// Listening before the server starts leaves no moment in which another
	// process could take the port.
	s.SecureServing.Listener = listener
	s.SecureServing.BindAddress = net.IPv4(127, 0, 0, 1)
	s.SecureServing.BindPort = listener.Addr().(*net.TCPAddr).Port

	if err := s.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return options.CompletedOptions{}, fmt.Errorf("setting the API server's feature gates: %w", err)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	completed, err := s.Complete(context.Background())
	if err != nil {
		return options.CompletedOptions{}, fmt.Errorf("completing the API server's options: %w", err)
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return options.CompletedOptions{}, fmt.Errorf("validating the API server's options: %w", utilerrors.NewAggregate(errs))
	}
	return completed, nil
}

// waitReady polls /readyz, which turns ok only after the RBAC bootstrap.
func waitReady(cfg *rest.Config, failed <-chan error) error {
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return fmt.Errorf("making a client for the API server: %w", err)
	}
	deadline := time.After(startTimeout)
	last := "no answer"
	for {
		response, err := client.Get(cfg.Host + "/readyz")
		if err != nil {
			last = err.Error()
		} else {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			last = string(body)
		}
		select {
		case err := <-failed:
			return err
		case <-deadline:
			return fmt.Errorf("API server not ready after %v, last answer: %s", startTimeout, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// writeKubeconfig writes the admin kubeconfig.
func writeKubeconfig(path, host, token string, ca []byte) error {
	const name = "testkube"
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: host, CertificateAuthorityData: ca}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	cfg.CurrentContext = name
	if err := clientcmd.WriteToFile(*cfg, path); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	return nil
}
