// Every metric of the daemon, on one registry. docs/metrics.md describes each, and a test compares the two. The state of
// a bucket has the label bucket and is forgotten with it; counters exist from the start, so that their first increase
// is seen. Label values come from us, never from what somebody sends.

package main

import (
	"context"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	restmetrics "k8s.io/client-go/tools/metrics"
	"k8s.io/client-go/util/workqueue"
)

// Outcomes of store requests and reconciles, as metric labels.
const (
	outcomeSuccess = "success"
	outcomeError   = "error"
	// outcomeExpected: the store said no and that is an answer, such as "not found".
	outcomeExpected = "expected"
	// outcomeThrottled: the store asked to slow down.
	outcomeThrottled = "throttled"
	// outcomeAgain: a reconcile that comes back by itself at a known time.
	outcomeAgain = "again"
	outcomePanic = "panic"
)

// metrics is every metric of the daemon, on one registry. docs/metrics.md describes
// each; a test compares the two.
type metrics struct {
	registry *prometheus.Registry
	// facts collects the gauges of what stores have told of buckets, as long as that counts.
	facts *freshness

	bucketInfo             *prometheus.GaugeVec
	bucketLocked           *prometheus.GaugeVec
	bucketRetention        *prometheus.GaugeVec
	bucketDesiredLocked    *prometheus.GaugeVec
	bucketDesiredRetention *prometheus.GaugeVec
	bucketLastVerified     *prometheus.GaugeVec
	bucketDrift            *prometheus.CounterVec
	bucketLocks            *prometheus.CounterVec
	bucketRetained         *prometheus.GaugeVec
	bucketExtensions       *prometheus.GaugeVec
	bucketHardened         *prometheus.GaugeVec
	bucketHardeningGaps    *prometheus.GaugeVec
	bucketKeyCreated       *prometheus.GaugeVec
	bucketKeyAgeKnown      *prometheus.GaugeVec
	bucketKeyRotations     *prometheus.CounterVec
	bucketsDeleted         prometheus.Counter
	accountsDeleted        prometheus.Counter
	refusals               *prometheus.CounterVec
	purgedObjects          *prometheus.CounterVec
	purgedBytes            *prometheus.CounterVec
	bucketRetainedBytes    *prometheus.GaugeVec
	bucketTombstones       *prometheus.GaugeVec
	bucketNextSweep        *prometheus.GaugeVec
	bucketStrangers        *prometheus.GaugeVec
	purgeFailures          *prometheus.CounterVec
	storeDuration          *prometheus.HistogramVec
	endpointOpen           *prometheus.GaugeVec
	endpointWaiting        *prometheus.GaugeVec
	reconcileDuration      *prometheus.HistogramVec
	failingObjects         *prometheus.GaugeVec
	connectionsEvicted     *prometheus.CounterVec
	info                   *prometheus.GaugeVec
	panics                 *prometheus.CounterVec
	apiRequests            *prometheus.CounterVec
	admissionReviews       *prometheus.CounterVec
	admissionDenials       *prometheus.CounterVec
	admissionWarnings      *prometheus.CounterVec
	admissionDuration      *prometheus.HistogramVec
	// webhookCertificateExpiry is missing until a certificate is served.
	webhookCertificateExpiry *prometheus.GaugeVec
	leader                   prometheus.Gauge
	queue                    queueMetrics
	// entries are what is known of the backups of each BackupEntry.
	entries                                                      *entryStates
	bucketExpectedLocked, bucketExpectedRetention, bucketForeign *prometheus.GaugeVec
	bucketRepairs                                                *prometheus.CounterVec
	bucketUnprotected                                            *prometheus.GaugeVec
	bucketExtended, bucketExtensionFailures                      *prometheus.CounterVec
	bucketProbed, bucketProbeAttacks                             *prometheus.GaugeVec
	bucketEvidence                                               *prometheus.GaugeVec
	// bucketNotServed is for --observe.
	bucketNotServed *prometheus.GaugeVec
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), facts: newFreshness()}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	told := func(what fact, name, help string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"bucket"})
		m.facts.gauges[what] = append(m.facts.gauges[what], v)
		return v
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(v)
		return v
	}

	m.bucketInfo = gauge("bucketwarden_backupbucket_info", "A BackupBucket that this daemon serves; always 1.", "bucket", "type", "region")
	m.bucketLocked = told(factState, "bucketwarden_backupbucket_locked", "1 if the bucket's immutability is locked, as the cloud "+
		"answered last, else 0; missing while that is not known.")
	m.bucketRetention = told(factState, "bucketwarden_backupbucket_retention_seconds", "Retention of new objects in seconds, as the "+
		"cloud answered last, 0 without a policy; missing while that is not known.")
	m.bucketDesiredLocked = gauge("bucketwarden_backupbucket_desired_locked", "1 if spec.providerConfig asks for locked "+
		"immutability, else 0.", "bucket")
	m.bucketDesiredRetention = gauge("bucketwarden_backupbucket_desired_retention_seconds",
		"Retention that spec.providerConfig asks for in seconds; 0 without immutability.", "bucket")
	m.bucketLastVerified = gauge("bucketwarden_backupbucket_last_verified_timestamp_seconds",
		"Unix time of the cloud's last answer about the bucket.", "bucket")
	m.bucketExpectedLocked = gauge("bucketwarden_backupbucket_expected_locked", "1 if the bucket's immutability should be locked, "+
		"else 0: the stronger of what spec.providerConfig asks for and what status.providerStatus records.", "bucket")
	m.bucketExpectedRetention = gauge("bucketwarden_backupbucket_expected_retention_seconds", "Retention that the bucket should have "+
		"in seconds: the stronger of what spec.providerConfig asks for and what status.providerStatus records.", "bucket")
	m.bucketEvidence = gauge("bucketwarden_backupbucket_evidence_timestamp_seconds", "With --evidence: Unix time at which the newest "+
		"statement about the bucket was signed and stored; 0 until that is known.", "bucket")
	m.bucketForeign = told(factState, "bucketwarden_backupbucket_foreign_policy", "1 if the bucket's policy is stronger than it "+
		"should be and was not set by us, else 0; missing while that is not known.")
	m.bucketNotServed = gauge("bucketwarden_backupbucket_not_served", "1 for a BackupBucket that is not looked at, since no store is known "+
		"for its spec.type; only with --observe.", "bucket")
	m.bucketDrift = counter("bucketwarden_backupbucket_policy_drift_total", "Times the cloud's policy was seen changed behind our "+
		"back, or the bucket gone, repaired or not.", "bucket")
	m.bucketRepairs = counter("bucketwarden_backupbucket_policy_repairs_total", "Times such a change was undone: the policy "+
		"restored, or the bucket created anew.", "bucket")
	m.bucketLocks = counter("bucketwarden_backupbucket_policy_locks_total", "Times the bucket's policy was locked, "+
		"extended or restored locked.", "bucket")
	m.bucketProbed = gauge("bucketwarden_backupbucket_probe_timestamp_seconds", "Unix time at which the probe has shown last that the "+
		"bucket's lock holds against these credentials; 0 if it has not since the daemon began; missing without --probe.", "bucket",
		"credentials")
	m.bucketProbeAttacks = gauge("bucketwarden_backupbucket_probe_attacks", "Attacks of the last probe of the bucket's lock with these "+
		"credentials, by how they ended; missing until there was one.", "bucket", "credentials", "outcome")
	m.bucketRetained = told(factSweep, "bucketwarden_backupbucket_retained_objects", "Object versions under retention that were to "+
		"be deleted, with their BackupEntry or with the bucket; missing while that is not known.")
	m.bucketExtensions = told(factState, "bucketwarden_backupbucket_policy_extensions_remaining", "How often a locked policy can "+
		"still be extended, as the cloud answered last; only where the cloud has a limit (Azure), and missing while that is not known.")
	m.bucketHardened = told(factHardening, "bucketwarden_backupbucket_hardened", "1 if encryption, public access block and TLS-only "+
		"access are in place, else 0, as the condition BucketHardened tells; missing while that is not known.")
	m.bucketHardeningGaps = told(factHardening, "bucketwarden_backupbucket_hardening_gaps", "How many things the condition "+
		"BucketHardened tells that are not as they should be; missing while that is not known.")
	m.bucketUnprotected = told(factState, "bucketwarden_backupbucket_unprotected_versions", "Object versions of live BackupEntries that "+
		"a restore could use and that are known not to be retained as long as they should be; missing while that is not known.")
	m.bucketExtended = counter("bucketwarden_backupbucket_extended_versions_total", "Times the retention of an object version was "+
		"extended.", "bucket", "reason")
	m.bucketExtensionFailures = counter("bucketwarden_backupbucket_extension_failures_total", "Times the store refused to extend the "+
		"retention of an object version.", "bucket")
	m.bucketKeyCreated = gauge("bucketwarden_backupbucket_key_created_timestamp_seconds",
		"Unix time at which the access key that the generated secret publishes was created or, if that is not known, since when it "+
			"is published at least (Azure).", "bucket")
	m.bucketKeyAgeKnown = gauge("bucketwarden_backupbucket_key_age_known", "1 if it is known when the access key that the generated "+
		"secret publishes was created, else 0 (Azure).", "bucket")
	m.bucketKeyRotations = counter("bucketwarden_backupbucket_key_rotations_total", "Access keys regenerated (Azure).", "bucket")
	m.bucketsDeleted = prometheus.NewCounter(prometheus.CounterOpts{Name: "bucketwarden_deleted_buckets_total",
		Help: "Buckets deleted from a store."})
	m.accountsDeleted = prometheus.NewCounter(prometheus.CounterOpts{Name: "bucketwarden_deleted_accounts_total",
		Help: "Resource groups deleted with the storage account of a deleted bucket in them (Azure)."})
	m.registry.MustRegister(m.bucketsDeleted, m.accountsDeleted)
	m.refusals = counter("bucketwarden_policy_refusals_total", "Changes of spec.providerConfig refused because they would "+
		"weaken a locked policy, or extend it once more than the cloud allows.", "bucket", "reason")
	m.purgedObjects = counter("bucketwarden_purged_objects_total", "Object versions and delete markers deleted from the bucket.", "bucket")
	m.purgedBytes = counter("bucketwarden_purged_bytes_total", "Bytes of the object versions deleted from the bucket.", "bucket")
	m.bucketRetainedBytes = told(factSweep, "bucketwarden_backupbucket_retained_bytes", "Bytes of the object versions counted in "+
		"bucketwarden_backupbucket_retained_objects.")
	m.bucketTombstones = told(factSweep, "bucketwarden_backupbucket_tombstones", "Deleted BackupEntries whose objects in the bucket "+
		"are still retained; missing while that is not known.")
	m.bucketNextSweep = told(factSweep, "bucketwarden_backupbucket_next_sweep_timestamp_seconds", "Unix time by the store's clock "+
		"at which the next of the retained objects are tried to be deleted; missing if there are none.")
	m.bucketStrangers = told(factSweep, "bucketwarden_backupbucket_foreign_marks", "Names among the tombstones in the bucket that are "+
		"none of ours; they are left alone; missing while they are not known.")
	m.purgeFailures = counter("bucketwarden_purge_failures_total", "Purges that ended with an error.", "bucket")
	m.storeDuration = histogram("bucketwarden_store_request_duration_seconds", "Duration of one HTTP request to an object store.",
		[]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}, "store", "operation", "outcome")
	m.endpointOpen = gauge("bucketwarden_endpoint_breaker_open", "1 if the endpoint of a store gave no answer three times in a row "+
		"and is asked by one pass at a time now, else 0.", "endpoint")
	m.endpointWaiting = gauge("bucketwarden_endpoint_waiting_passes", "Passes that wait for a place at the endpoint, or for it to "+
		"answer again.", "endpoint")
	m.reconcileDuration = histogram("bucketwarden_reconcile_duration_seconds", "Duration of one reconcile.",
		[]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 180}, "resource", "outcome")
	m.failingObjects = gauge("bucketwarden_failing_objects", "Objects whose last three passes or more have failed.", "resource")
	m.panics = counter("bucketwarden_reconcile_panics_total", "Reconciles that ended in a panic.", "resource")
	m.apiRequests = counter("rest_client_requests_total", "Requests to the Kubernetes API server.", "code", "method")
	m.admissionReviews = counter("bucketwarden_admission_reviews_total", "Admission reviews answered; refused are those "+
		"that the webhook is not made for.", "resource", "operation", "outcome")
	m.admissionDenials = counter("bucketwarden_admission_denials_total", "Requests denied at admission, dry runs included.",
		"resource", "reason")
	m.admissionWarnings = counter("bucketwarden_admission_warnings_total", "Warnings given at admission, dry runs included.",
		"resource", "reason")
	m.admissionDuration = histogram("bucketwarden_admission_review_duration_seconds", "Duration of one admission review, "+
		"without the transport.",
		[]float64{.0001, .00025, .0005, .001, .002, .005, .01, .025, .1, .5, 1, 5}, "resource")
	m.webhookCertificateExpiry = gauge("bucketwarden_webhook_certificate_expiry_timestamp_seconds",
		"Unix time at which the certificate that the webhook serves expires; missing until there is one.")
	m.connectionsEvicted = counter("bucketwarden_connections_evicted_total", "Connections closed to make room for new ones.", "server")
	m.leader = prometheus.NewGauge(prometheus.GaugeOpts{Name: "bucketwarden_leader", Help: "1 if this replica works on " +
		"BackupBuckets and BackupEntries, 0 if another one does or if it cannot; missing if it is for admission only."})
	m.registry.MustRegister(m.leader)
	gauge("bucketwarden_build_info", "The version of this daemon; always 1.", "version", "goversion").
		WithLabelValues(buildVersion(), runtime.Version()).Set(1)
	m.info = gauge("bucketwarden_info", "What this daemon is for; always 1.", "role", "class")
	m.queue = queueMetrics{
		depth: gauge("workqueue_depth", "Items waiting in the workqueue.", "name"),
		adds:  counter("workqueue_adds_total", "Items added to the workqueue.", "name"),
		latency: histogram("workqueue_queue_duration_seconds", "How long an item stays in the workqueue before it "+
			"is worked on.", prometheus.ExponentialBuckets(1e-4, 10, 8), "name"),
		work: histogram("workqueue_work_duration_seconds", "How long working on an item takes.",
			prometheus.ExponentialBuckets(1e-4, 10, 8), "name"),
		unfinished: gauge("workqueue_unfinished_work_seconds", "Seconds of work in progress, summed over the workers; "+
			"rising means stuck.", "name"),
		longestRunning: gauge("workqueue_longest_running_processor_seconds", "Seconds that the longest running worker has "+
			"worked on its item.", "name"),
		retries: counter("workqueue_retries_total", "Items put back after a failure.", "name"),
	}
	m.entries = newEntryStates()
	m.registry.MustRegister(m.facts, m.entries, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	for _, resource := range []string{resourceBackupBuckets, resourceBackupEntries, resourceSweeps, resourceStaleness, resourceChecks,
		resourceProbes, resourceEvidence, resourceCertificates} {
		m.panics.WithLabelValues(resource)
		m.failingObjects.WithLabelValues(resource)
		for _, outcome := range []string{outcomeSuccess, outcomeAgain, outcomeError, outcomePanic} {
			m.reconcileDuration.WithLabelValues(resource, outcome)
		}
	}
	m.panics.WithLabelValues(resourceReviews)
	for _, server := range []string{serverMetrics, serverHealth, serverWebhook} {
		m.connectionsEvicted.WithLabelValues(server)
	}
	m.initAdmission()
	return m
}

// initAdmission makes the series that alerts look at, so that a first denial counts as an increase.
func (m *metrics) initAdmission() {
	for _, resource := range []string{
		resourceBackupBuckets + "." + extensionsGV.Group, resourceBackupBuckets + "." + gardenGV.Group, resourceSeeds + "." + gardenGV.Group,
	} {
		for _, reason := range []string{reasonDisable, reasonUnlock, reasonShorten, reasonInvalid} {
			m.admissionDenials.WithLabelValues(resource, reason)
		}
	}
}

// observeStoreRequest records one HTTP request to a store.
func (m *metrics) observeStoreRequest(store, operation, outcome string, duration time.Duration) {
	m.storeDuration.WithLabelValues(store, operation, outcome).Observe(duration.Seconds())
}

// forgetEndpoint removes the series of an endpoint that is not used any more.
func (m *metrics) forgetEndpoint(host string) {
	m.endpointOpen.DeleteLabelValues(host)
	m.endpointWaiting.DeleteLabelValues(host)
}

// forgetBucket removes the object state of a BackupBucket that is gone or no
// longer ours.
func (m *metrics) forgetBucket(bucket string) {
	labels := prometheus.Labels{"bucket": bucket}
	for _, v := range []interface {
		DeletePartialMatch(prometheus.Labels) int
	}{m.bucketInfo, m.bucketLocked, m.bucketRetention, m.bucketDesiredLocked, m.bucketDesiredRetention,
		m.bucketLastVerified, m.bucketDrift, m.bucketLocks, m.bucketRetained, m.bucketRetainedBytes, m.bucketTombstones,
		m.bucketNextSweep, m.bucketStrangers, m.bucketExtensions, m.bucketHardened, m.bucketHardeningGaps,
		m.bucketKeyCreated, m.bucketKeyAgeKnown, m.bucketKeyRotations, m.purgeFailures, m.refusals,
		m.bucketExpectedLocked, m.bucketExpectedRetention, m.bucketForeign, m.bucketRepairs, m.bucketUnprotected, m.bucketExtended,
		m.bucketExtensionFailures, m.bucketProbed, m.bucketProbeAttacks, m.bucketNotServed, m.bucketEvidence} {
		v.DeletePartialMatch(labels)
	}
	m.facts.forget(bucket)
}

// showProbe shows what a probe has found.
func (m *metrics) showProbe(bucket string, of probeResult) {
	for _, outcome := range probeOutcomes {
		m.bucketProbeAttacks.WithLabelValues(bucket, of.credentials, string(outcome)).Set(float64(of.count(outcome)))
	}
	if of.proven() {
		m.bucketProbed.WithLabelValues(bucket, of.credentials).Set(float64(of.at.Unix()))
	}
}

// dropProbe removes what probes with some credentials have found.
func (m *metrics) dropProbe(bucket, credentials string) {
	labels := prometheus.Labels{"bucket": bucket, "credentials": credentials}
	m.bucketProbed.DeletePartialMatch(labels)
	m.bucketProbeAttacks.DeletePartialMatch(labels)
}

// forgetProbe removes what probes of a bucket have found.
func (m *metrics) forgetProbe(bucket string) {
	m.bucketProbed.DeletePartialMatch(prometheus.Labels{"bucket": bucket})
	m.bucketProbeAttacks.DeletePartialMatch(prometheus.Labels{"bucket": bucket})
}

// showEvidence shows when the newest statement about a bucket was stored, zero if that is not known by who asks.
func (m *metrics) showEvidence(bucket string, at time.Time) {
	if gauge := m.bucketEvidence.WithLabelValues(bucket); !at.IsZero() {
		gauge.Set(float64(at.Unix()))
	}
}

// showHardening shows the status of the condition BucketHardened, empty if there is none, and the number of gaps, zero if that is
// not known.
func (m *metrics) showHardening(bucket, status string, gaps int) {
	switch {
	case status == "True":
		m.bucketHardened.WithLabelValues(bucket).Set(1)
		m.bucketHardeningGaps.WithLabelValues(bucket).Set(0)
	case status == "False" && gaps > 0:
		m.bucketHardened.WithLabelValues(bucket).Set(0)
		m.bucketHardeningGaps.WithLabelValues(bucket).Set(float64(gaps))
	case status == "False":
		m.bucketHardened.WithLabelValues(bucket).Set(0)
		m.bucketHardeningGaps.DeleteLabelValues(bucket)
	default:
		m.facts.clear(bucket, factHardening)
	}
}

// initBucket makes every series of a BackupBucket's counters exist, so that their
// first increase is seen by rate() and increase().
func (m *metrics) initBucket(b *backupBucket) {
	m.initObserved(b)
	m.bucketRepairs.WithLabelValues(b.Name)
	m.bucketLocks.WithLabelValues(b.Name)
	m.purgeFailures.WithLabelValues(b.Name)
	m.bucketExtensionFailures.WithLabelValues(b.Name)
	for _, reason := range extensionReasons {
		m.bucketExtended.WithLabelValues(b.Name, reason)
	}
	for _, reason := range refusalReasons {
		m.refusals.WithLabelValues(b.Name, reason)
	}
}

// initObserved is initBucket for a bucket that is only looked at. It has no counters of what only its owner does: an alert that
// a repair fails needs them.
func (m *metrics) initObserved(b *backupBucket) {
	m.bucketInfo.DeletePartialMatch(prometheus.Labels{"bucket": b.Name})
	m.bucketInfo.WithLabelValues(b.Name, b.Type, b.Region).Set(1)
	m.bucketDrift.WithLabelValues(b.Name)
}

func setPolicyGauges(locked, retention *prometheus.GaugeVec, bucket string, p Policy) {
	value := 0.0
	if p.Locked {
		value = 1
	}
	locked.WithLabelValues(bucket).Set(value)
	retention.WithLabelValues(bucket).Set(float64(p.Days) * 24 * 60 * 60)
}

// queueMetrics provides client-go's workqueue metrics on our registry.
type queueMetrics struct {
	depth, unfinished, longestRunning *prometheus.GaugeVec
	adds, retries                     *prometheus.CounterVec
	latency, work                     *prometheus.HistogramVec
}

var _ workqueue.MetricsProvider = queueMetrics{}

func (q queueMetrics) NewDepthMetric(name string) workqueue.GaugeMetric {
	return q.depth.WithLabelValues(name)
}
func (q queueMetrics) NewAddsMetric(name string) workqueue.CounterMetric {
	return q.adds.WithLabelValues(name)
}
func (q queueMetrics) NewLatencyMetric(name string) workqueue.HistogramMetric {
	return q.latency.WithLabelValues(name)
}
func (q queueMetrics) NewWorkDurationMetric(name string) workqueue.HistogramMetric {
	return q.work.WithLabelValues(name)
}
func (q queueMetrics) NewUnfinishedWorkSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return q.unfinished.WithLabelValues(name)
}
func (q queueMetrics) NewLongestRunningProcessorSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return q.longestRunning.WithLabelValues(name)
}
func (q queueMetrics) NewRetriesMetric(name string) workqueue.CounterMetric {
	return q.retries.WithLabelValues(name)
}

// registerRESTClientMetrics counts the process's API requests on m. client-go keeps
// this globally and takes only the first registration of a process.
func (m *metrics) registerRESTClientMetrics() {
	restmetrics.Register(restmetrics.RegisterOpts{RequestResult: m})
}

// Increment implements client-go's metrics.ResultMetric.
func (m *metrics) Increment(_ context.Context, code, method, _ string) {
	m.apiRequests.WithLabelValues(code, method).Inc()
}

var (
	_ restmetrics.ResultMetric = &metrics{}
)

// setTombstones records what the tombstones in a bucket say; next is zero if there are none.
func (m *metrics) setTombstones(bucket string, pending int, objects, bytes int64, next time.Time) {
	m.bucketTombstones.WithLabelValues(bucket).Set(float64(pending))
	m.bucketRetained.WithLabelValues(bucket).Set(float64(objects))
	m.bucketRetainedBytes.WithLabelValues(bucket).Set(float64(bytes))
	if next.IsZero() {
		m.bucketNextSweep.DeleteLabelValues(bucket)
		return
	}
	m.bucketNextSweep.WithLabelValues(bucket).Set(float64(next.Unix()))
}
