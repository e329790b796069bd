// The daemon: everything wired up, started, and stopped in order. newDaemon connects clients, informers, controllers and
// reconcilers; run serves metrics, health and admission before, during and after the work. When the context ends, the
// daemon stops gracefully: running passes may finish, and the webhook answers until API servers know that it goes. One line
// of knownStores adds a kind of store.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
)

const (
	// drainTime is how long the webhook answers after the daemon was told to stop.
	drainTime = 5 * time.Second
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
	// synced and feeds are of the informers, in the same order: whether their events have all come, what they hear.
	synced []cache.InformerSynced
	feeds  []*feed
	// listening are the informers that run, which they begin to do only once.
	listening   sync.WaitGroup
	listens     sync.Once
	controllers []*controller
	// sweeps is nil with --observe.
	sweeps *controller
	checks *controller
	// deep is nil without --deep-check, probes without --probe, evidence without --evidence.
	deep     *deepChecker
	probes   *controller
	evidence *evidenceWriter
	// webhook is nil if admission is off; certificate is what it serves with.
	webhook     *webhook
	certificate certificate
	// working says that this replica has begun to work on objects, ready that it knows them.
	working, ready, stopping atomic.Bool
	// hung says that workers hang.
	hung atomic.Pointer[error]
}

// certificate is where the webhook's TLS server has its certificate from.
type certificate interface {
	// get is a tls.Config's GetCertificate.
	get(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// ready says why there is none to serve with.
	ready() error
	// run keeps it until ctx ends.
	run(ctx context.Context)
}

func newDaemon(c *config, rc *rest.Config, m *metrics) (*daemon, error) {
	rc = rest.CopyConfig(rc)
	rc.Wrap(func(next http.RoundTripper) http.RoundTripper { return leaderTransport{next} })
	if c.observe {
		if err := guardAPI(rc, c.namespace); err != nil {
			return nil, err
		}
	}
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
	if c.observe {
		return d, d.wireObserver(dyn, scope, newRecorder(broadcaster))
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
	configurations := []webhookConfiguration{{name: d.config.webhookConfiguration}}
	if name := d.config.mutatingWebhookConfiguration; name != "" {
		configurations = append(configurations, webhookConfiguration{mutating: true, name: name})
	}
	certificate, err := newSelfManagedCertificate(d.core, meta, d.config.namespace, configurations,
		d.config.webhookCertLifetime, d.metrics)
	if err != nil {
		return fmt.Errorf("preparing the webhook's certificate: %w", err)
	}
	d.certificate = certificate
	return nil
}

// wire makes informers, controllers and reconcilers and connects them.
func (d *daemon) wire(dyn dynamic.Interface, meta metadata.Interface, scope *scope, recorder events.EventRecorder) error {
	buckets, bucketFeed, err := newBucketInformer(dyn)
	if err != nil {
		return fmt.Errorf("making the BackupBucket informer: %w", err)
	}
	entries, entryFeed, err := newEntryInformer(dyn)
	if err != nil {
		return fmt.Errorf("making the BackupEntry informer: %w", err)
	}
	bucketController := newController(resourceBackupBuckets, d.metrics)
	entryController := newController(resourceBackupEntries, d.metrics)
	d.sweeps, d.checks = newController(resourceSweeps, d.metrics), newController(resourceChecks, d.metrics)
	entryClient := &resourceClient{client: dyn.Resource(entriesGVR), kind: kindBackupEntry, finalizer: finalizerBackupEntry,
		controller: entryController}

	places := newEndpoints(d.config.concurrentSyncs, d.metrics)
	for _, c := range []*controller{bucketController, entryController, d.sweeps, d.checks} {
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
		bucketReconciler.retention.forget(name)
		bucketReconciler.evidence.forget(name)
		if d.evidence != nil {
			d.evidence.forget(name)
		}
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
	checker := newEntryChecker(entryReconciler.reconciler, d.checks, dyn.Resource(clustersGVR), d.metrics.entries)
	if d.config.extendRetention {
		checker.keeper = newRetentionKeeper(bucketReconciler, d.checks, d.metrics.entries)
		bucketReconciler.retention = checker.keeper
	}
	d.checks.reconcile, d.checks.onGone = checker.reconcile, d.metrics.entries.forget
	if d.config.deepCheck {
		d.deep = newDeepChecker(checker)
	}

	if d.config.probe {
		d.probes = newController(resourceProbes, d.metrics)
		d.probes.endpoints = places
		p := &prober{bucketReconciler: bucketReconciler, queue: d.probes, entries: checker, probes: &probes{}}
		d.probes.reconcile, d.probes.onGone = p.reconcile, p.gone
		if _, err := watchObjects(buckets, scope, d.probes, d.probes.queue.Add); err != nil {
			return fmt.Errorf("watching BackupBuckets: %w", err)
		}
	}
	if d.config.evidence {
		c := newController(resourceEvidence, d.metrics)
		c.endpoints = places
		bucketReconciler.evidence = newEvidenceLog()
		d.evidence = newEvidenceWriter(bucketReconciler, c, d.core, d.config, d.metrics.entries)
		bucketReconciler.askEvidence = d.evidence.ask
		if d.webhook != nil {
			d.webhook.evidence = bucketReconciler.evidence
		}
	}

	// A healthy bucket needs no reconcile after a restart, but a look at the cloud.
	bucketEvents, err := watchObjects(buckets, scope, bucketController, bucketController.queue.Add)
	if err != nil {
		return fmt.Errorf("watching BackupBuckets: %w", err)
	}
	entryEvents, err := watchObjects(entries, scope, entryController, nil)
	if err != nil {
		return fmt.Errorf("watching BackupEntries: %w", err)
	}
	if err := checker.watch(entries); err != nil {
		return fmt.Errorf("watching BackupEntries: %w", err)
	}
	if _, err := watchObjects(buckets, scope, staleBuckets, staleBuckets.queue.Add); err != nil {
		return fmt.Errorf("watching BackupBuckets: %w", err)
	}
	d.controllers = []*controller{bucketController, entryController, staleBuckets}
	d.informers = []cache.SharedIndexInformer{buckets, entries}
	d.synced = []cache.InformerSynced{bucketEvents.HasSynced, entryEvents.HasSynced}
	d.feeds = []*feed{bucketFeed, entryFeed}
	if !scope.ignoreOperationAnnotation {
		return nil
	}
	secrets, secretFeed, err := newMetadataInformer(meta, secretsGVR)
	if err != nil {
		return fmt.Errorf("making the Secret informer: %w", err)
	}
	namespaces, namespaceFeed, err := newMetadataInformer(meta, namespaceGVR)
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
	d.feeds = append(d.feeds, secretFeed, namespaceFeed)
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
	if err := serve(serveCtx, &servers, serverMetrics, d.config.metricsAddress, metricsMux, nil, maxConnections, d.metrics); err != nil {
		return err
	}
	if err := serve(serveCtx, &servers, serverHealth, d.config.healthAddress, d.healthHandler(), nil, maxConnections, d.metrics); err != nil {
		return err
	}
	if d.webhook != nil {
		mux := http.NewServeMux()
		mux.Handle(webhookPath, d.webhook)
		mux.Handle(weakeningPath, d.webhook)
		config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: d.certificate.get}
		if err := serve(serveCtx, &servers, serverWebhook, d.config.webhookAddress, mux, config, maxWebhookConnections, d.metrics); err != nil {
			return err
		}
		servers.Go(func() { d.certificate.run(serveCtx) })
	}
	if err := d.broadcaster.StartRecordingToSinkWithContext(serveCtx); err != nil {
		return fmt.Errorf("starting to record events: %w", err)
	}
	defer d.broadcaster.Shutdown()

	var err error
	listening, stopListening := context.WithCancel(ctx)
	defer d.listening.Wait()
	defer stopListening()
	d.metrics.info.WithLabelValues(d.config.role(), strings.Join(d.config.classes(), ",")).Set(1)
	switch {
	case !d.config.controllers:
		d.metrics.registry.Unregister(d.metrics.leader)
		logger.Info("Serving admission only", "types", d.config.types.String())
		<-ctx.Done()
	case d.config.leaderElect:
		err = d.lead(listening)
	default:
		d.work(listening, context.WithoutCancel(ctx), nil)
	}
	if d.webhook != nil && ctx.Err() != nil {
		// API servers ask until they have heard that this replica is not ready any more.
		<-drained
	}
	return err
}

// listen starts the informers, once; they end with ctx.
func (d *daemon) listen(ctx context.Context) {
	d.listens.Do(func() {
		for _, informer := range d.informers {
			d.listening.Go(func() { informer.RunWithContext(ctx) })
		}
	})
}

// allControllers are those whose passes are the daemon's work.
func (d *daemon) allControllers() []*controller {
	all := append(slices.Clone(d.controllers), d.checks)
	for _, c := range []*controller{d.sweeps, d.probes} {
		if c != nil {
			all = append(all, c)
		}
	}
	if d.evidence != nil {
		all = append(all, d.evidence.controller)
	}
	return all
}

// work works until ctx ends, then lets running passes finish; the end of passes cuts them off. giveUp is called when another
// replica should try; it is nil if there is none.
func (d *daemon) work(ctx, passes context.Context, giveUp func(error)) {
	logger := klog.FromContext(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	d.working.Store(true)
	defer d.metrics.leader.Set(0)
	// Another replica may look at the buckets from now on.
	defer d.metrics.facts.showWhile(func() error { return context.Canceled })
	d.listen(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), d.synced...) {
		return
	}
	for _, c := range d.controllers {
		work.Go(func() { c.run(ctx, passes, d.config.concurrentSyncs) })
	}
	if d.sweeps != nil {
		work.Go(func() { d.sweeps.run(ctx, passes, concurrentSweeps) })
	}
	work.Go(func() { d.checks.run(ctx, passes, concurrentChecks) })
	if d.probes != nil {
		work.Go(func() { d.probes.run(ctx, passes, concurrentProbes) })
	}
	if d.deep != nil {
		work.Go(func() { d.deep.run(ctx) })
	}
	if d.evidence != nil {
		work.Go(func() { d.evidence.run(ctx, passes) })
	}
	work.Go(d.oversee(ctx, giveUp))
	// gardenlet asks for a heartbeat only of who owns objects.
	if d.config.namespace != "" && !d.config.observe {
		work.Go(func() { d.beat(ctx) })
	}
	d.ready.Store(true)
	logger.Info("Ready", "types", d.config.types.String(), "classes", d.config.classes())
	<-ctx.Done()
	d.ready.Store(false)
	logger.Info("Stopping")
}
