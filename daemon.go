// The daemon: everything wired up, started, and stopped in order. newDaemon connects clients, informers, controllers and
// reconcilers; run serves metrics, health and admission before, during and after the work; lead works only while holding
// a lease, and releases it after the work has ended. When the context ends, the daemon stops gracefully: running passes may
// finish, and the webhook answers until API servers know that it goes. One line of knownStores adds a kind of store.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

const (
	// Heartbeat lease that gardenlet reads (gardener/gardener
	// extensions/pkg/controller/heartbeat); it is taken for dead after 5 minutes.
	heartbeatLease    = "gardener-extension-heartbeat"
	heartbeatInterval = 30 * time.Second

	// drainTime is how long the webhook answers after the daemon was told to stop.
	drainTime = 5 * time.Second

	// maxWebhookConnections bounds their memory; an API server needs one or two.
	maxWebhookConnections = 256

	// serveGrace is how long requests may take to finish when the daemon stops.
	serveGrace = 2 * time.Second

	// The lease of --leader-elect. A replica that cannot renew it for renewDeadline stops
	// working; nobody else can have it before leaseDuration has passed. A replica that waits
	// may see the last renewal 2.2 retryPeriods late, and look again as late as that, which
	// must stay below 20 s.
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = time.Second
)

// knownStores are the kinds of store that --type can name. One line adds a store.
var knownStores = []knownStore{
	{storeS3, newS3Provider, []string{"aws", "s3", "S3"}},
	{storeAzure, newAzureProvider, []string{"azure"}},
}

type knownStore struct {
	name string
	open func(*config, *metrics) (provider, error)
	// types are those of spec.type that lie on it without --type.
	types []string
}

func storeNames() string {
	var names []string
	for _, known := range knownStores {
		names = append(names, known.name)
	}
	return strings.Join(names, " or ")
}

// defaultTypesText is defaultTypes as --help tells them.
func defaultTypesText() string {
	var text []string
	for _, known := range knownStores {
		for _, name := range known.types {
			text = append(text, name+"="+known.name)
		}
	}
	last := len(text) - 1
	return strings.Join(text[:last], ", ") + " and " + text[last]
}

func defaultTypes() typeFlag {
	types := typeFlag{}
	for _, known := range knownStores {
		for _, name := range known.types {
			types[name] = known.name
		}
	}
	return types
}

// newProviders returns all stores by name.
func newProviders(c *config, m *metrics) (map[string]provider, error) {
	providers := map[string]provider{}
	for _, known := range knownStores {
		p, err := known.open(c, m)
		if err != nil {
			return nil, err
		}
		providers[known.name] = p
	}
	return providers, nil
}

// daemon is everything wired up.
type daemon struct {
	config  *config
	core    kubernetes.Interface
	metrics *metrics
	// leases is a client of its own: a lease must be renewed however busy core is.
	leases      kubernetes.Interface
	broadcaster events.EventBroadcaster
	informers   []cache.SharedIndexInformer
	synced      []cache.InformerSynced
	controllers []*controller
	sweeps      *controller
	// webhook is nil if admission is off; certificate is what it serves with.
	webhook     *webhook
	certificate certificate
	// working says that this replica has begun to work on objects, ready that it knows them.
	working, ready, stopping atomic.Bool
}

// certificate is where the webhook's TLS server has its certificate from.
type certificate interface {
	// get is a tls.Config's GetCertificate.
	get(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// ready says why there is none to serve with.
	ready() error
}

func newDaemon(c *config, rc *rest.Config, m *metrics) (*daemon, error) {
	rc = rest.CopyConfig(rc)
	rc.Wrap(func(next http.RoundTripper) http.RoundTripper { return leaderTransport{next} })
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
	providers, err := newProviders(c, m)
	if err != nil {
		return nil, err
	}
	scope := c.scope(providers)
	leases := rest.CopyConfig(protobuf)
	leases.Timeout = renewDeadline / 2
	broadcaster := newBroadcaster(core)
	d := &daemon{config: c, core: core, metrics: m, broadcaster: broadcaster}
	if d.leases, err = kubernetes.NewForConfig(leases); err != nil {
		return nil, fmt.Errorf("making the client for leases: %w", err)
	}
	if err := d.wireWebhook(dyn, meta, scope); err != nil {
		return nil, err
	}
	return d, d.wire(dyn, meta, scope, newRecorder(broadcaster))
}

// wireWebhook makes the webhook and what keeps its certificate.
func (d *daemon) wireWebhook(dyn dynamic.Interface, meta metadata.Interface, scope *scope) error {
	if d.config.webhookAddress == "" {
		return nil
	}
	d.webhook = &webhook{scope: scope, buckets: dyn.Resource(bucketsGVR), entries: dyn.Resource(entriesGVR),
		metrics: d.metrics, lookups: make(chan struct{}, 1)}
	if directory := d.config.webhookCertDir; directory != "" {
		files, err := newFileCertificate(directory, d.metrics)
		if err != nil {
			return fmt.Errorf("--webhook-cert-dir: %w", err)
		}
		d.certificate = files
		return nil
	}
	certificate, err := newSelfManagedCertificate(d.core, meta, d.config.namespace, d.config.webhookConfiguration,
		d.config.webhookCertLifetime, d.metrics)
	if err != nil {
		return fmt.Errorf("preparing the webhook's certificate: %w", err)
	}
	d.certificate = certificate
	return nil
}

// wire makes informers, controllers and reconcilers and connects them.
func (d *daemon) wire(dyn dynamic.Interface, meta metadata.Interface, scope *scope, recorder events.EventRecorder) error {
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
	entryClient := &resourceClient{client: dyn.Resource(entriesGVR), kind: kindBackupEntry, finalizer: finalizerBackupEntry,
		controller: entryController}

	places := newEndpoints(d.config.concurrentSyncs, d.metrics)
	for _, c := range []*controller{bucketController, entryController, d.sweeps} {
		c.endpoints = places
	}
	entryController.splitStores()

	purges, keys := &purges{}, newKeyWatch(bucketController.queue.Add)
	bucketReconciler := &bucketReconciler{
		reconciler: reconciler{
			resource: &resourceClient{client: dyn.Resource(bucketsGVR), kind: kindBackupBucket,
				finalizer: finalizerBackupBucket, controller: bucketController},
			secrets: &secrets{client: d.core, finalizer: finalizerBackupBucket},
			cached:  buckets.GetIndexer(),
			scope:   scope, recorder: recorder, metrics: d.metrics, purges: purges, keys: keys,
		},
		verifyInterval: d.config.verifyInterval,
		sweeps:         d.sweeps,
		entries:        entries.GetIndexer(),
		entriesClient:  entryClient,
	}
	bucketController.reconcile = bucketReconciler.reconcile
	bucketController.onGone = func(name string) {
		d.metrics.forgetBucket(name)
		purges.forget(kindBackupBucket, name)
		keys.forget(name)
		bucketReconciler.tellings.forget(name)
	}
	d.sweeps.onGone = d.metrics.forgetBucket
	d.sweeps.reconcile = newSweeper(bucketReconciler).reconcile
	staleBuckets := newController(resourceStaleness, d.metrics)
	staleBuckets.reconcile = (&staleness{bucketReconciler: bucketReconciler, controller: staleBuckets}).reconcile
	staleBuckets.onGone = d.metrics.facts.forget
	entryReconciler := &entryReconciler{reconciler{
		resource: entryClient,
		secrets:  &secrets{client: d.core, finalizer: finalizerBackupEntry},
		cached:   entries.GetIndexer(),
		scope:    scope, recorder: recorder, metrics: d.metrics, purges: purges, keys: keys,
	}}
	entryController.reconcile = entryReconciler.reconcile
	entryController.onGone = func(name string) { purges.forget(kindBackupEntry, name) }

	// A healthy bucket needs no reconcile after a restart, but a look at the cloud.
	bucketEvents, err := watchObjects(buckets, scope, bucketController, bucketController.queue.Add)
	if err != nil {
		return fmt.Errorf("watching BackupBuckets: %w", err)
	}
	entryEvents, err := watchObjects(entries, scope, entryController, nil)
	if err != nil {
		return fmt.Errorf("watching BackupEntries: %w", err)
	}
	if _, err := watchObjects(buckets, scope, staleBuckets, staleBuckets.queue.Add); err != nil {
		return fmt.Errorf("watching BackupBuckets: %w", err)
	}
	d.controllers = []*controller{bucketController, entryController, staleBuckets}
	d.informers = []cache.SharedIndexInformer{buckets, entries}
	d.synced = []cache.InformerSynced{bucketEvents.HasSynced, entryEvents.HasSynced}
	if !scope.ignoreOperationAnnotation {
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
		watchSecrets(secrets, buckets, scope, bucketController),
		watchSecrets(secrets, entries, scope, entryController),
		watchNamespaces(namespaces, entries, scope, entryController)); err != nil {
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
	var servers sync.WaitGroup
	defer servers.Wait()
	defer stopServing()
	drained := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		d.stopping.Store(true)
		time.AfterFunc(drainTime, func() { close(drained) })
	})()
	metricsMux := http.NewServeMux()
	metricsMux.Handle("/metrics", promhttp.HandlerFor(d.metrics.registry, promhttp.HandlerOpts{}))
	if err := serve(serveCtx, &servers, "metrics", d.config.metricsAddress, metricsMux, nil); err != nil {
		return err
	}
	if err := serve(serveCtx, &servers, "health", d.config.healthAddress, d.healthHandler(), nil); err != nil {
		return err
	}
	if d.webhook != nil {
		mux := http.NewServeMux()
		mux.Handle(webhookPath, d.webhook)
		config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: d.certificate.get}
		if err := serve(serveCtx, &servers, "webhook", d.config.webhookAddress, mux, config); err != nil {
			return err
		}
		if selfManaged, ok := d.certificate.(*selfManagedCertificate); ok {
			servers.Go(func() { selfManaged.run(serveCtx) })
		}
	}
	if err := d.broadcaster.StartRecordingToSinkWithContext(serveCtx); err != nil {
		return fmt.Errorf("starting to record events: %w", err)
	}
	defer d.broadcaster.Shutdown()

	var err error
	switch {
	case !d.config.controllers:
		d.metrics.registry.Unregister(d.metrics.leader)
		logger.Info("Serving admission only", "types", d.config.types.String())
		<-ctx.Done()
	case d.config.leaderElect:
		err = d.lead(ctx)
	default:
		d.work(ctx, context.WithoutCancel(ctx))
	}
	if d.webhook != nil && ctx.Err() != nil {
		// API servers ask until they have heard that this replica is not ready any more.
		<-drained
	}
	return err
}

// errLeaseLost ends the daemon: whatever it still did could meet the new leader.
var errLeaseLost = errors.New("the lease was lost: another replica may be working now")

// lead waits for the lease and works while holding it. The lease is released only after
// the work has ended.
func (d *daemon) lead(ctx context.Context) error {
	hostname, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("finding an identity for the lease: %w", err)
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: d.config.namespace, Name: programName},
		Client:     d.leases.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: hostname + "_" + string(uuid.NewUUID())},
	}
	holding, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          lock,
		Name:          programName,
		LeaseDuration: leaseDuration,
		RenewDeadline: renewDeadline,
		RetryPeriod:   retryPeriod,
		// Not ReleaseOnCancel: it releases a lease that could not be renewed in time before
		// it ends the context of the work.
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				defer stop()
				d.work(ctx, leading)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("preparing the leader election: %w", err)
	}
	// A process that was frozen wakes up as the leader that it no longer is, and may need
	// the whole renewDeadline to give up.
	leading := func() error {
		if !elector.IsLeader() || elector.Check(renewDeadline-leaseDuration) != nil {
			return errLeaseLost
		}
		return nil
	}
	for _, c := range append(slices.Clone(d.controllers), d.sweeps) {
		c.leading = leading
	}
	d.metrics.facts.showWhile(leading)
	// Whoever waits has nothing to finish.
	defer context.AfterFunc(ctx, func() {
		if !elector.IsLeader() {
			stop()
		}
	})()
	elector.Run(holding)
	if holding.Err() == nil {
		return errLeaseLost
	}
	if err := releaseLease(context.WithoutCancel(ctx), lock); err != nil {
		klog.FromContext(ctx).Error(err, "Could not release the lease, another replica has to wait until it expires")
	}
	return nil
}

// releaseLease gives the lease back if this replica holds it.
func releaseLease(ctx context.Context, lock resourcelock.Interface) error {
	record, _, err := lock.Get(ctx)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading lease %s: %w", lock.Describe(), err)
	}
	if record.HolderIdentity != lock.Identity() {
		return nil
	}
	record.HolderIdentity, record.LeaseDurationSeconds = "", 1
	return wrapf(lock.Update(ctx, *record), "releasing lease %s", lock.Describe())
}

// work works until ctx ends, then lets running passes finish; the end of passes cuts them off.
func (d *daemon) work(ctx, passes context.Context) {
	logger := klog.FromContext(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	d.working.Store(true)
	d.metrics.leader.Set(1)
	defer d.metrics.leader.Set(0)
	// Another replica may look at the buckets from now on.
	defer d.metrics.facts.showWhile(func() error { return context.Canceled })
	for _, informer := range d.informers {
		work.Go(func() { informer.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), d.synced...) {
		return
	}
	for _, c := range d.controllers {
		work.Go(func() { c.run(ctx, passes, d.config.concurrentSyncs) })
	}
	work.Go(func() { d.sweeps.run(ctx, passes, concurrentSweeps) })
	if d.config.namespace != "" {
		work.Go(func() {
			wait.JitterUntilWithContext(ctx, func(ctx context.Context) {
				if err := renewHeartbeat(ctx, d.leases, d.config.namespace, time.Now()); err != nil && ctx.Err() == nil {
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
}

// notReady says why no traffic should come yet; a replica that waits for the lease is ready.
func (d *daemon) notReady() error {
	if d.certificate != nil {
		if err := d.certificate.ready(); err != nil {
			return err
		}
	}
	works := d.config.controllers && (!d.config.leaderElect || d.working.Load())
	switch {
	case d.stopping.Load():
		return errors.New("stopping")
	case works && !d.ready.Load():
		return errors.New("caches are not synced")
	default:
		return nil
	}
}

func (d *daemon) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := d.notReady(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	if d.config.profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// serve listens at once and serves until ctx ends, with TLS if config is not nil; requests
// being answered then may finish.
func serve(ctx context.Context, wg *sync.WaitGroup, name, address string, handler http.Handler, config *tls.Config) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listening for %s on %s: %w", name, address, err)
	}
	if config != nil {
		listener = netutil.LimitListener(listener, maxWebhookConnections)
	}
	logger := klog.FromContext(ctx)
	logger.Info("Serving "+name, "address", listener.Addr().String())
	server := &http.Server{
		Handler: handler, TLSConfig: config,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 60 * time.Second, IdleTimeout: 2 * time.Minute,
		// Every port scan ends a TLS handshake.
		ErrorLog: slog.NewLogLogger(logr.ToSlogHandler(logger.V(2).WithValues("server", name)), slog.LevelInfo),
	}
	wg.Go(func() {
		serve := server.Serve
		if config != nil {
			serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
		}
		if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
			logger.Error(err, "Server failed", "server", name)
		}
	})
	wg.Go(func() {
		<-ctx.Done()
		finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveGrace)
		defer cancel()
		if server.Shutdown(finish) != nil {
			_ = server.Close()
		}
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
			ObjectMeta: metav1.ObjectMeta{Name: heartbeatLease, Namespace: namespace}, Spec: spec,
		}, metav1.CreateOptions{FieldManager: fieldManager})
		return wrapf(err, "creating lease %s/%s", namespace, heartbeatLease)
	}
	if err != nil {
		return fmt.Errorf("reading lease %s/%s: %w", namespace, heartbeatLease, err)
	}
	lease.Spec = spec
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{FieldManager: fieldManager})
	return wrapf(err, "renewing lease %s/%s", namespace, heartbeatLease)
}
