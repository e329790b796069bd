// Command bucketwarden guards the etcd backup buckets of a Gardener seed: it owns the
// BackupBuckets and BackupEntries of extensions.gardener.cloud/v1alpha1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
)

const (
	programName = "bucketwarden"

	// maxVerbosity: client-go logs the bodies of requests and answers from 8 on.
	maxVerbosity = 7

	// Heartbeat lease that gardenlet reads (gardener/gardener
	// extensions/pkg/controller/heartbeat); it is taken for dead after 5 minutes.
	heartbeatLease    = "gardener-extension-heartbeat"
	heartbeatInterval = 30 * time.Second

	serviceAccountNamespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
)

// config is what the flags say.
type config struct {
	kubeconfig                string
	types                     typeFlag
	class                     string
	ignoreOperationAnnotation bool
	concurrentSyncs           int
	verifyInterval            time.Duration
	metricsAddress            string
	healthAddress             string
	namespace                 string
	azureCloudConfig          string
	verbosity                 int
}

func (c *config) register(fs *flag.FlagSet) {
	fs.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig `file`; default: in-cluster, else $KUBECONFIG")
	fs.Var(&c.types, "type", "`NAME=STORE`: serve objects with spec.type NAME on STORE (s3 or azure); repeatable, replaces the defaults aws=s3, s3=s3, S3=s3 and azure=azure")
	fs.StringVar(&c.class, "class", defaultClass, "extension `classes` that this instance serves, comma separated")
	fs.BoolVar(&c.ignoreOperationAnnotation, "ignore-operation-annotation", false, "react to generation, secret and namespace changes instead of the annotation gardener.cloud/operation")
	fs.IntVar(&c.concurrentSyncs, "concurrent-syncs", 5, "workers per resource")
	fs.DurationVar(&c.verifyInterval, "verify-interval", 10*time.Minute, "how often every bucket is checked against the cloud")
	fs.StringVar(&c.metricsAddress, "metrics-address", ":8080", "`address` of /metrics")
	fs.StringVar(&c.healthAddress, "health-address", ":8081", "`address` of /livez and /readyz")
	fs.IntVar(&c.verbosity, "v", 0, "log `verbosity`: 0 what an operator should see, 2 each decision, 4 to 7 for debugging")
	fs.StringVar(&c.azureCloudConfig, "azure-cloud-config", "", "`file` with custom Azure clouds by name, in JSON; docs/azure.md describes it")
	fs.StringVar(&c.namespace, "namespace", "", "the daemon's own namespace, where it keeps its heartbeat lease; default: in the cluster that of its service account, else no heartbeat")
}

// complete fills in defaults and checks the rest.
func (c *config) complete() error {
	if len(c.types) == 0 {
		c.types = typeFlag{"aws": storeS3, "s3": storeS3, "S3": storeS3, "azure": storeAzure}
	}
	if c.concurrentSyncs < 1 {
		return fmt.Errorf("--concurrent-syncs is %d, must be at least 1", c.concurrentSyncs)
	}
	if c.verifyInterval < time.Second {
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
	return nil
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

// typeFlag is --type NAME=STORE.
type typeFlag map[string]storeKind

func (t *typeFlag) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(*t)) {
		parts = append(parts, name+"="+string((*t)[name]))
	}
	return strings.Join(parts, ",")
}

// Set implements flag.Value.
func (t *typeFlag) Set(value string) error {
	name, store, ok := strings.Cut(value, "=")
	if !ok || name == "" {
		return fmt.Errorf("%q is not NAME=STORE", value)
	}
	if kind := storeKind(store); kind != storeS3 && kind != storeAzure {
		return fmt.Errorf("unknown store %q, must be %s or %s", store, storeS3, storeAzure)
	}
	if *t == nil {
		*t = typeFlag{}
	}
	(*t)[name] = storeKind(store)
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stderr)
	klog.Flush()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", programName, err)
		os.Exit(1)
	}
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
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	klogFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(klogFlags)
	return c, klogFlags.Set("v", strconv.Itoa(c.verbosity))
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

// run is the daemon from its arguments to its end; ctx ends it gracefully.
func run(ctx context.Context, args []string, output io.Writer) error {
	c, err := parseFlags(args, output)
	if err != nil {
		return err
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

// daemon is everything wired up.
type daemon struct {
	config      *config
	core        kubernetes.Interface
	metrics     *metrics
	broadcaster events.EventBroadcaster
	informers   []cache.SharedIndexInformer
	synced      []cache.InformerSynced
	controllers []*controller
	sweeps      *controller
	ready       atomic.Bool
}

func newDaemon(c *config, rc *rest.Config, m *metrics) (*daemon, error) {
	dyn, err := dynamic.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("making the dynamic client: %w", err)
	}
	meta, err := metadata.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("making the metadata client: %w", err)
	}
	// Custom resources speak JSON only, all else is cheaper in protobuf.
	protobuf := rest.CopyConfig(rc)
	protobuf.ContentType = runtime.ContentTypeProtobuf
	protobuf.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	core, err := kubernetes.NewForConfig(protobuf)
	if err != nil {
		return nil, fmt.Errorf("making the client: %w", err)
	}
	clouds, err := loadAzureClouds(c.azureCloudConfig)
	if err != nil {
		return nil, fmt.Errorf("--azure-cloud-config: %w", err)
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: core.EventsV1()})
	d := &daemon{config: c, core: core, metrics: m, broadcaster: broadcaster}
	return d, d.wire(dyn, meta, newStores(m, clouds), broadcaster.NewRecorder(runtime.NewScheme(), programName))
}

// wire makes informers, controllers and reconcilers and connects them.
func (d *daemon) wire(dyn dynamic.Interface, meta metadata.Interface, stores stores, recorder events.EventRecorder) error {
	a := &admission{stores: d.config.types, classes: d.config.classes(), ignoreOperationAnnotation: d.config.ignoreOperationAnnotation}
	buckets, err := newBucketInformer(dyn)
	if err != nil {
		return fmt.Errorf("making the BackupBucket informer: %w", err)
	}
	entries, err := newEntryInformer(dyn)
	if err != nil {
		return fmt.Errorf("making the BackupEntry informer: %w", err)
	}
	bucketController := newController(resourceBackupBuckets, d.metrics)
	entryController := newController(resourceBackupEntries, d.metrics)
	d.sweeps = newController(resourceSweeps, d.metrics)
	entryClient := &resourceClient{client: dyn.Resource(entriesGVR), kind: kindBackupEntry, finalizer: finalizerBackupEntry, controller: entryController}

	bucketReconciler := &bucketReconciler{
		reconciler: reconciler{
			resource:  &resourceClient{client: dyn.Resource(bucketsGVR), kind: kindBackupBucket, finalizer: finalizerBackupBucket, controller: bucketController},
			secrets:   &secrets{client: d.core, finalizer: finalizerBackupBucket},
			objects:   buckets.GetIndexer(),
			admission: a, stores: stores, recorder: recorder, metrics: d.metrics,
		},
		verifyInterval: d.config.verifyInterval,
		sweeps:         d.sweeps,
		entries:        entries.GetIndexer(),
		entriesClient:  entryClient,
	}
	bucketController.reconcile, bucketController.onGone = bucketReconciler.reconcile, d.metrics.forgetBucket
	d.sweeps.onGone = d.metrics.forgetBucket
	d.sweeps.reconcile = (&sweeper{bucketReconciler: bucketReconciler, plans: map[string]map[string]plan{}}).reconcile
	entryReconciler := &entryReconciler{reconciler{
		resource:  entryClient,
		secrets:   &secrets{client: d.core, finalizer: finalizerBackupEntry},
		objects:   entries.GetIndexer(),
		admission: a, stores: stores, recorder: recorder, metrics: d.metrics,
	}}
	entryController.reconcile = entryReconciler.reconcile

	// A healthy bucket needs no reconcile after a restart, but a look at the cloud.
	bucketEvents, err := watchObjects(buckets, a, bucketController, bucketController.queue.Add)
	if err != nil {
		return fmt.Errorf("watching BackupBuckets: %w", err)
	}
	entryEvents, err := watchObjects(entries, a, entryController, nil)
	if err != nil {
		return fmt.Errorf("watching BackupEntries: %w", err)
	}
	d.controllers = []*controller{bucketController, entryController}
	d.informers = []cache.SharedIndexInformer{buckets, entries}
	d.synced = []cache.InformerSynced{bucketEvents.HasSynced, entryEvents.HasSynced}
	if !a.ignoreOperationAnnotation {
		return nil
	}
	secrets, err := newMetadataInformer(meta, secretsGVR)
	if err != nil {
		return fmt.Errorf("making the Secret informer: %w", err)
	}
	namespaces, err := newMetadataInformer(meta, namespaceGVR)
	if err != nil {
		return fmt.Errorf("making the Namespace informer: %w", err)
	}
	if err := errors.Join(
		watchSecrets(secrets, buckets, a, bucketController),
		watchSecrets(secrets, entries, a, entryController),
		watchNamespaces(namespaces, entries, a, entryController)); err != nil {
		return fmt.Errorf("watching Secrets and Namespaces: %w", err)
	}
	d.informers = append(d.informers, secrets, namespaces)
	d.synced = append(d.synced, secrets.HasSynced, namespaces.HasSynced)
	return nil
}

func (d *daemon) run(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	// The servers outlive the work, so that its end can be watched.
	serveCtx, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	var servers, work sync.WaitGroup
	defer servers.Wait()
	defer stopServing()
	metricsMux := http.NewServeMux()
	metricsMux.Handle("/metrics", promhttp.HandlerFor(d.metrics.registry, promhttp.HandlerOpts{}))
	if err := serve(serveCtx, &servers, "metrics", d.config.metricsAddress, metricsMux); err != nil {
		return err
	}
	if err := serve(serveCtx, &servers, "health", d.config.healthAddress, d.healthHandler()); err != nil {
		return err
	}

	if err := d.broadcaster.StartRecordingToSinkWithContext(serveCtx); err != nil {
		return fmt.Errorf("starting to record events: %w", err)
	}
	defer d.broadcaster.Shutdown()
	defer work.Wait()
	for _, informer := range d.informers {
		work.Go(func() { informer.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), d.synced...) {
		return nil
	}
	for _, c := range d.controllers {
		work.Go(func() { c.run(ctx, d.config.concurrentSyncs) })
	}
	work.Go(func() { d.sweeps.run(ctx, concurrentSweeps) })
	if d.config.namespace != "" {
		work.Go(func() {
			wait.JitterUntilWithContext(ctx, func(ctx context.Context) {
				if err := renewHeartbeat(ctx, d.core, d.config.namespace, time.Now()); err != nil && ctx.Err() == nil {
					logger.Error(err, "Could not renew the heartbeat")
				}
			}, heartbeatInterval*9/10, 0.1, true)
		})
	}
	d.ready.Store(true)
	logger.Info("Ready", "types", d.config.types.String(), "classes", d.config.classes())
	<-ctx.Done()
	d.ready.Store(false)
	logger.Info("Stopping")
	return nil
}

func (d *daemon) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !d.ready.Load() {
			http.Error(w, "caches are not synced", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// serve listens at once and serves until ctx ends.
func serve(ctx context.Context, wg *sync.WaitGroup, name, address string, handler http.Handler) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listening for %s on %s: %w", name, address, err)
	}
	klog.FromContext(ctx).Info("Serving "+name, "address", listener.Addr().String())
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 60 * time.Second, IdleTimeout: 2 * time.Minute}
	wg.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			klog.FromContext(ctx).Error(err, "Server failed", "server", name)
		}
	})
	wg.Go(func() {
		<-ctx.Done()
		_ = server.Close()
	})
	return nil
}

// renewHeartbeat tells gardenlet that this extension is alive.
func renewHeartbeat(ctx context.Context, client kubernetes.Interface, namespace string, now time.Time) error {
	leases := client.CoordinationV1().Leases(namespace)
	holder, seconds, renewed := programName, int32(heartbeatInterval.Seconds()), metav1.NewMicroTime(now)
	spec := coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &renewed}
	lease, err := leases.Get(ctx, heartbeatLease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: heartbeatLease, Namespace: namespace}, Spec: spec}, metav1.CreateOptions{FieldManager: fieldManager})
		return wrapf(err, "creating lease %s/%s", namespace, heartbeatLease)
	}
	if err != nil {
		return fmt.Errorf("reading lease %s/%s: %w", namespace, heartbeatLease, err)
	}
	lease.Spec = spec
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{FieldManager: fieldManager})
	return wrapf(err, "renewing lease %s/%s", namespace, heartbeatLease)
}
