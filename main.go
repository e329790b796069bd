// Command bucketwarden guards the etcd backup buckets of a Gardener seed: it owns the
// BackupBuckets and BackupEntries of extensions.gardener.cloud/v1alpha1.
//
// This file has the flags with their checks, and run, which is the daemon from its arguments to its end. All mistakes in
// flags are found here, before anything is connected. Commands are in cmd.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	// CA certificates for the image, which is made from scratch. Where the system has any
	// (SSL_CERT_FILE and SSL_CERT_DIR included), these are not used.
	_ "golang.org/x/crypto/x509roots/fallback"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

const (
	programName = "bucketwarden"

	// maxVerbosity: client-go logs the bodies of requests and answers from 8 on.
	maxVerbosity = 7

	// minWebhookCertLifetime leaves time for the checks that a renewal takes.
	minWebhookCertLifetime = 10 * time.Second

	// heapGrowth is by how many percent of what lives the heap of the daemon may grow before it is collected, unless the
	// environment variable GOGC says something else. Go's default is 100. The daemon does little, and memory is what it costs.
	heapGrowth = 50

	serviceAccountNamespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
)

// config is what the flags say.
type config struct {
	kubeconfig                   string
	types                        typeFlag
	class                        string
	ignoreOperationAnnotation    bool
	concurrentSyncs              int
	verifyInterval               time.Duration
	deepCheck                    bool
	extendRetention              bool
	probe                        bool
	evidence                     bool
	evidenceKey                  string
	evidenceDirectory            string
	metricsAddress               string
	healthAddress                string
	namespace                    string
	azureCloudConfig             string
	controllers                  bool
	observe                      bool
	observeCredentials           string
	webhookAddress               string
	webhookConfiguration         string
	mutatingWebhookConfiguration string
	webhookCertDir               string
	webhookCertLifetime          time.Duration
	leaderElect                  bool
	loggingFormat                string
	profiling                    bool
	version                      bool
	verbosity                    int
}

func (c *config) register(fs *flag.FlagSet) {
	fs.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig `file`; default: in-cluster, else $KUBECONFIG")
	fs.Var(&c.types, "type", "`NAME=STORE`: serve objects with spec.type NAME on STORE ("+storeNames()+"); repeatable, "+
		"replaces the defaults "+defaultTypesText())
	fs.StringVar(&c.class, "class", defaultClass, "extension `classes` that this instance serves, comma separated")
	fs.BoolVar(&c.ignoreOperationAnnotation, "ignore-operation-annotation", false, "react to generation, secret and "+
		"namespace changes instead of the annotation gardener.cloud/operation")
	fs.IntVar(&c.concurrentSyncs, "concurrent-syncs", 5, "workers per resource")
	fs.DurationVar(&c.verifyInterval, "verify-interval", 0, "how often every bucket is checked against the cloud, and its "+
		"tombstones are looked at (default: checked every minute where a lock can be taken away (S3), else every 10 minutes (Azure); "+
		"tombstones every 10 minutes)")
	fs.BoolVar(&c.deepCheck, "deep-check", false, "read the backups of one BackupEntry of each bucket a day and check what is in them, "+
		"which costs traffic")
	fs.BoolVar(&c.extendRetention, "extend-retention", true, "extend the retention of the backups of live BackupEntries that are not "+
		"retained as long as they should be, where each object has one of its own (S3)")
	fs.BoolVar(&c.probe, "probe", false, "attack the lock of each bucket once a day, with an object that is made for that; docs/probe.md "+
		"says what security monitoring will see")
	fs.BoolVar(&c.evidence, "evidence", false, "sign a statement about each bucket once a day and on every change, and keep it in the bucket")
	fs.StringVar(&c.evidenceKey, "evidence-key", "", "`file` with the Ed25519 private keys that sign evidence, in PEM, the newest first; "+
		"default: those in the Secret bucketwarden-evidence of --namespace, which is made if it is not there")
	fs.StringVar(&c.evidenceDirectory, "evidence-directory", "", "`directory` for the evidence with --observe, since nothing is written to "+
		"buckets then: one directory in it for each bucket")
	fs.StringVar(&c.metricsAddress, "metrics-address", ":8080", "`address` of /metrics")
	fs.StringVar(&c.healthAddress, "health-address", ":8081", "`address` of /livez and /readyz")
	fs.BoolVar(&c.profiling, "profiling", false, "serve /debug/pprof/ on --health-address")
	fs.BoolVar(&c.controllers, "controllers", true, "work on BackupBuckets and BackupEntries; false: admission only, as "+
		"in the garden cluster")
	fs.BoolVar(&c.observe, "observe", false, "only look at BackupBuckets and BackupEntries that another controller owns, such as "+
		"a provider extension, and at their buckets: nothing is written but events and a lease, and there is no admission")
	fs.StringVar(&c.observeCredentials, "observe-credentials", "", "`NAMESPACE/NAME` of a secret with credentials to read, used with "+
		"--observe instead of those that BackupBuckets and, but on Azure, BackupEntries name")
	fs.StringVar(&c.webhookAddress, "webhook-address", ":10250", "`address` of the admission webhook; empty switches admission off")
	fs.StringVar(&c.webhookConfiguration, "webhook-configuration", programName,
		"`name` of the ValidatingWebhookConfiguration that says under which names the webhook is called, and whose caBundle is kept")
	fs.StringVar(&c.mutatingWebhookConfiguration, "mutating-webhook-configuration", "",
		"`name` of the MutatingWebhookConfiguration, which lets the webhook deny weakenings before the ValidatingAdmissionPolicy does; "+
			"its caBundle is kept as well (default: there is none)")
	fs.StringVar(&c.webhookCertDir, "webhook-cert-dir", "", "`directory` with tls.crt and tls.key of the webhook, read "+
		"again when they change; default: a self-managed certificate in a Secret of --namespace")
	fs.DurationVar(&c.webhookCertLifetime, "webhook-cert-lifetime", 90*24*time.Hour, "how long a self-managed certificate "+
		"is valid; it is renewed after two thirds")
	fs.BoolVar(&c.leaderElect, "leader-elect", false, "work only while holding the Lease bucketwarden (with --observe "+
		"bucketwarden-observer) in --namespace, so that several replicas can run; each of them serves admission")
	fs.StringVar(&c.loggingFormat, "logging-format", loggingText, "`format` of the log: text or json")
	fs.BoolVar(&c.version, "version", false, "print the version and exit")
	fs.IntVar(&c.verbosity, "v", 0, "log `verbosity`: 0 what an operator should see, 2 each decision, 4 to 7 for debugging")
	fs.StringVar(&c.azureCloudConfig, "azure-cloud-config", "", "`file` with custom Azure clouds by name, in JSON; "+
		"docs/azure.md describes it")
	fs.StringVar(&c.namespace, "namespace", "", "the daemon's own namespace, where it keeps its leases and the "+
		"certificate of its webhook; default: in the cluster that of its service account, else none and no heartbeat")
}

// complete fills in defaults and checks the rest.
func (c *config) complete() error {
	if len(c.types) == 0 {
		c.types = defaultTypes()
	}
	if c.concurrentSyncs < 1 {
		return fmt.Errorf("--concurrent-syncs is %d, must be at least 1", c.concurrentSyncs)
	}
	if c.verifyInterval != 0 && c.verifyInterval < time.Second {
		return fmt.Errorf("--verify-interval is %s, must be at least 1s", c.verifyInterval)
	}
	if c.verbosity < 0 || c.verbosity > maxVerbosity {
		return fmt.Errorf("-v is %d, must be 0 to %d: beyond, the log would show the contents of secrets", c.verbosity, maxVerbosity)
	}
	if c.namespace == "" {
		data, err := os.ReadFile(serviceAccountNamespaceFile)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("reading the own namespace: %w", err)
		}
		c.namespace = strings.TrimSpace(string(data))
	}
	switch {
	case c.loggingFormat != loggingText && c.loggingFormat != loggingJSON:
		return fmt.Errorf("--logging-format is %q, must be %s or %s", c.loggingFormat, loggingText, loggingJSON)
	case c.observeCredentials != "" && !c.observe:
		return errors.New("--observe-credentials needs --observe")
	case c.observeCredentials != "" && c.ownCredentials() == types.NamespacedName{}:
		return fmt.Errorf("--observe-credentials is %q, must be NAMESPACE/NAME of a secret", c.observeCredentials)
	case c.observe && !c.controllers:
		return errors.New("--observe and --controllers=false leave nothing to do")
	case c.observe && c.webhookAddress != "":
		return errors.New("--observe and --webhook-address exclude each other: who owns the BackupBuckets decides what is admitted")
	case c.observe && c.ignoreOperationAnnotation:
		return errors.New("--observe and --ignore-operation-annotation exclude each other: nothing is reconciled")
	case !c.controllers && c.webhookAddress == "":
		return errors.New("--controllers=false and --webhook-address= leave nothing to do")
	case c.webhookCertLifetime < minWebhookCertLifetime:
		return fmt.Errorf("--webhook-cert-lifetime is %s, must be at least %s", c.webhookCertLifetime, minWebhookCertLifetime)
	case c.namespace == "" && c.webhookAddress != "" && c.webhookCertDir == "":
		return errors.New("the admission webhook keeps its certificate in a namespace: give --namespace, or " +
			"--webhook-cert-dir, or switch admission off with --webhook-address=")
	case c.evidenceKey != "" && !c.evidence:
		return errors.New("--evidence-key goes with --evidence")
	case c.evidenceDirectory != "" && (!c.evidence || !c.observe):
		return errors.New("--evidence-directory goes with --observe and --evidence: else evidence lies in the buckets")
	case c.observe && c.evidence && (c.evidenceDirectory == "" || c.evidenceKey == ""):
		return errors.New("--observe with --evidence needs --evidence-directory and --evidence-key: nothing is written to buckets and no " +
			"Secret is made")
	case c.observe && c.probe && c.observeCredentials != "":
		return errors.New("--probe and --observe-credentials exclude each other: the lock is tried with the credentials that " +
			"BackupBuckets and BackupEntries name")
	case c.namespace == "" && c.evidence && c.evidenceKey == "":
		return errors.New("--evidence keeps its key in a namespace: give --namespace, or --evidence-key")
	case c.namespace == "" && c.leaderElect && c.controllers:
		return errors.New("--leader-elect keeps its lease in a namespace: give --namespace")
	}
	return nil
}

// Values of --logging-format.
const (
	loggingText = "text"
	loggingJSON = "json"
)

// release is set by the linker for a release.
var release string

// buildVersion is the version of this binary; without one of a release, what Go knows of
// the source it was built from.
func buildVersion() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// classes are those of --class; an empty list means shoot
// (gardener/gardener pkg/controllerutils/predicate/predicate.go).
func (c *config) classes() []string {
	var classes []string
	for class := range strings.SplitSeq(c.class, ",") {
		if class = strings.TrimSpace(class); class != "" {
			classes = append(classes, class)
		}
	}
	if len(classes) == 0 {
		return []string{defaultClass}
	}
	return classes
}

// role is what this instance is for, as a metric label.
func (c *config) role() string {
	switch {
	case c.observe:
		return "observer"
	case c.controllers:
		return "controllers"
	}
	return "admission"
}

// ownCredentials is the secret of --observe-credentials; empty if there is none.
func (c *config) ownCredentials() types.NamespacedName {
	namespace, name, ok := strings.Cut(c.observeCredentials, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return types.NamespacedName{}
	}
	return types.NamespacedName{Namespace: namespace, Name: name}
}

// leaseName is that of the lease of --leader-elect.
func (c *config) leaseName() string {
	if c.observe {
		return observerLease
	}
	return programName
}

// scope says which objects and events are this instance's business; providers are all stores by name.
func (c *config) scope(providers map[string]provider) *scope {
	s := &scope{providers: map[string]provider{}, classes: c.classes(), ignoreOperationAnnotation: c.ignoreOperationAnnotation}
	for name, store := range c.types {
		s.providers[name] = providers[store]
	}
	return s
}

// typeFlag is --type NAME=STORE.
type typeFlag map[string]string

func (t *typeFlag) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(*t)) {
		parts = append(parts, name+"="+(*t)[name])
	}
	return strings.Join(parts, ",")
}

// Set implements flag.Value.
func (t *typeFlag) Set(value string) error {
	name, store, ok := strings.Cut(value, "=")
	if !ok || name == "" {
		return fmt.Errorf("%q is not NAME=STORE", value)
	}
	if !slices.ContainsFunc(knownStores, func(known knownStore) bool { return known.name == store }) {
		return fmt.Errorf("unknown store %q, must be %s", store, storeNames())
	}
	if *t == nil {
		*t = typeFlag{}
	}
	(*t)[name] = store
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if c, args := commandOf(os.Args); c != nil {
		os.Exit(c.main(ctx, args))
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapGrowth)
	}
	err := run(ctx, os.Args[1:], os.Stdout)
	klog.Flush()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		if ended := (*endedError)(nil); !errors.As(err, &ended) {
			fmt.Fprintf(os.Stderr, "%s: %v\n", programName, err)
		}
		os.Exit(1)
	}
}

// isSet says that a flag was given.
func isSet(fs *flag.FlagSet, name string) (set bool) {
	fs.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

func parseFlags(args []string, output io.Writer) (*config, error) {
	c := &config{}
	fs := flag.NewFlagSet(programName, flag.ContinueOnError)
	// run's caller reports errors; only help is printed here.
	fs.SetOutput(io.Discard)
	c.register(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(output)
			fs.Usage()
			_, _ = fmt.Fprintf(output, "\n%s help lists the commands for operators.\n", programName)
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if c.version {
		return c, nil
	}
	if c.observe && !isSet(fs, "webhook-address") {
		c.webhookAddress = ""
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	if c.loggingFormat == loggingJSON {
		klog.SetSlogLogger(slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.Level(-c.verbosity),
			ReplaceAttr: knownLevel})))
	}
	klogFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(klogFlags)
	return c, klogFlags.Set("v", strconv.Itoa(c.verbosity))
}

// knownLevel is a slog.HandlerOptions' ReplaceAttr: -v 1 to 7 lie between the levels that
// log pipelines know.
func knownLevel(groups []string, a slog.Attr) slog.Attr {
	if level, ok := a.Value.Any().(slog.Level); ok && len(groups) == 0 && a.Key == slog.LevelKey && level < slog.LevelInfo {
		a.Value = slog.StringValue(slog.LevelDebug.String())
	}
	return a
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err == nil || !errors.Is(err, rest.ErrNotInCluster) {
			return config, err
		}
		kubeconfig = os.Getenv(clientcmd.RecommendedConfigPathEnvVar)
	}
	if kubeconfig == "" {
		return nil, errors.New("no API server: give --kubeconfig, set $KUBECONFIG, or run in a cluster")
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

// endedError is an error that has been logged.
type endedError struct{ error }

func (e *endedError) Unwrap() error { return e.error }

// run is the daemon from its arguments to its end; ctx ends it gracefully.
func run(ctx context.Context, args []string, output io.Writer) (err error) {
	c, err := parseFlags(args, output)
	if err != nil {
		return err
	}
	if c.version {
		_, err := fmt.Fprintln(output, programName, buildVersion())
		return err
	}
	if c.loggingFormat == loggingJSON {
		defer func() {
			if err != nil {
				klog.FromContext(ctx).Error(err, "Ended")
				err = &endedError{err}
			}
		}()
	}
	rc, err := restConfig(c.kubeconfig)
	if err != nil {
		return err
	}
	rc.UserAgent = programName
	// The API server's priority and fairness protects it better than a limit here.
	rc.QPS = -1

	metrics := newMetrics()
	metrics.registerRESTClientMetrics()
	d, err := newDaemon(c, rc, metrics)
	if err != nil {
		return err
	}
	return d.run(ctx)
}
