// What is known of the backups of each BackupEntry, as metrics. A collector of its own keeps one small struct for each entry
// instead of a dozen series, and drops what was not confirmed for long. Series begin and go with the entry. What is not known
// has no series; only the time of the last look is there from the beginning, as zero.

package main

import (
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
)

// wakefulness is whether the cluster of an entry should make backups.
type wakefulness int

const (
	wakefulnessUnknown wakefulness = iota
	// asleep: it is hibernated, or being created, deleted or moved.
	asleep
	awake
)

// entryState is what is known of the backups of an entry.
type entryState struct {
	uid    types.UID
	bucket string
	// checked is when they were looked at last; zero means never, and nothing else counts.
	checked time.Time
	// full and delta are when the newest snapshots were taken, zero if there are none.
	full, delta time.Time
	// known and complete are those of a chain.
	known, complete bool
	revision        int64
	lock            chainLock
	// exclusionsKnown is false if it is not known of each snapshot whether it is excluded.
	exclusionsKnown                                       bool
	excluded, unannounced, suspicious, snapshots, sizeSum int64
	cluster                                               wakefulness

	// deep is what was found when the snapshots were read, by others than who looks.
	deep deepState
	// retained is what is known of the retention of all its versions.
	retained retainedState
	// memory is what the next look can build on.
	memory entryMemory
}

// entryStates are those of all live entries, and their metrics. It is safe for concurrent use.
type entryStates struct {
	mu     sync.Mutex
	states map[string]entryState
	descs  map[string]*prometheus.Desc
}

const entryMetricPrefix = "bucketwarden_backupentry_"

// entryMetricHelp are the metrics by the end of their names.
var entryMetricHelp = map[string]string{
	"last_checked_timestamp_seconds": "Unix time at which the entry's backups in the store were looked at last; 0 until that was done " +
		"once.",
	"last_full_snapshot_timestamp_seconds": "Unix time at which the newest full snapshot was taken that is not excluded, not later than " +
		"it was stored; missing if there is none.",
	"last_delta_snapshot_timestamp_seconds": "Unix time at which the newest delta snapshot was taken that is not excluded, not later than " +
		"it was stored; missing if there is none.",
	"chain_complete": "1 if what a restore would take is complete, by names and sizes: a full snapshot and every delta behind it " +
		"without a gap; else 0; missing while that is not known.",
	"chain_locked_until_timestamp_seconds": "Unix time until which nobody can delete any snapshot of the chain; 0 if one of them is not " +
		"locked; missing while that is not known.",
	"restorable_revision": "Revision that a restore would reach; missing if the chain is not complete.",
	"excluded_snapshots":  "Snapshots that a restore leaves out; missing while that is not known.",
	"unannounced_exclusions": "Excluded snapshots that the annotation bucketwarden/excluded-revisions of the BackupEntry does not announce; " +
		"missing if none is known and not all are.",
	"suspicious_snapshots": "Signs that a snapshot is forged: its revision or time fits neither the store's time nor its neighbours.",
	"snapshots":            "Full and delta snapshots in the store, excluded ones too.",
	"snapshot_bytes":       "Bytes of the full and delta snapshots in the store.",
	"content_intact": "1 if all snapshots that a restore takes were read last with --deep-check and had the hash that is at their end " +
		"and what their names say; 0 if one had not; missing if they were not read.",
	"content_checked_timestamp_seconds": "Unix time at which the entry's snapshots were read last; missing if they were not.",
	"cluster_awake": "1 if the cluster should make backups now, 0 if it is hibernated, being created, deleted or moved, or gone; looked at " +
		"only if there is no fresh backup or no complete chain; missing while that is not known.",
}

func newEntryStates() *entryStates {
	s := &entryStates{states: map[string]entryState{}, descs: map[string]*prometheus.Desc{}}
	for name, help := range entryMetricHelp {
		s.descs[name] = prometheus.NewDesc(entryMetricPrefix+name, help, []string{"bucket", "entry"}, nil)
	}
	return s
}

// Describe implements prometheus.Collector.
func (s *entryStates) Describe(descs chan<- *prometheus.Desc) {
	for _, name := range slices.Sorted(maps.Keys(s.descs)) {
		descs <- s.descs[name]
	}
}

// Collect implements prometheus.Collector.
func (s *entryStates) Collect(metrics chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for entry, state := range s.states {
		state.each(time.Now(), func(name string, value float64) {
			metrics <- prometheus.MustNewConstMetric(s.descs[name], prometheus.GaugeValue, value, state.bucket, entry)
		})
	}
}

// each gives the metrics that have a value now.
func (s entryState) each(now time.Time, give func(name string, value float64)) {
	seconds := func(name string, t time.Time) {
		if !t.IsZero() {
			give(name, float64(t.Unix()))
		}
	}
	flag := func(name string, b bool) {
		value := 0.0
		if b {
			value = 1
		}
		give(name, value)
	}
	if s.checked.IsZero() {
		give("last_checked_timestamp_seconds", 0)
		return
	}
	seconds("last_checked_timestamp_seconds", s.checked)
	if now.Sub(s.checked) > checkStale {
		return
	}
	seconds("last_full_snapshot_timestamp_seconds", s.full)
	seconds("last_delta_snapshot_timestamp_seconds", s.delta)
	if s.known {
		flag("chain_complete", s.complete)
	}
	if s.complete {
		give("restorable_revision", float64(s.revision))
	}
	switch {
	case !s.lock.known:
	case !s.lock.locked:
		give("chain_locked_until_timestamp_seconds", 0)
	case s.lock.until.IsZero():
		give("chain_locked_until_timestamp_seconds", math.Inf(1)) // legal holds have no end
	default:
		seconds("chain_locked_until_timestamp_seconds", s.lock.until)
	}
	if s.exclusionsKnown {
		give("excluded_snapshots", float64(s.excluded))
	}
	if s.exclusionsKnown || s.unannounced > 0 {
		give("unannounced_exclusions", float64(s.unannounced))
	}
	give("suspicious_snapshots", float64(s.suspicious))
	give("snapshots", float64(s.snapshots))
	give("snapshot_bytes", float64(s.sizeSum))
	if s.cluster != wakefulnessUnknown {
		flag("cluster_awake", s.cluster == awake)
	}
	if !s.deep.at.IsZero() {
		flag("content_intact", s.deep.intact)
		seconds("content_checked_timestamp_seconds", s.deep.at)
	}
}

// watch begins the series of an entry, unless they are there already.
func (s *entryStates) watch(e *backupEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.states[e.Name]; !ok || old.uid != e.UID || old.bucket != e.BucketName {
		s.states[e.Name] = entryState{uid: e.UID, bucket: e.BucketName}
	}
}

// get is what is known of an entry.
func (s *entryStates) get(e *backupEntry) entryState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.states[e.Name]
}

// set notes what a look has found, unless the entry is not watched any more.
func (s *entryStates) set(e *backupEntry, state entryState) {
	s.change(e, func(old *entryState) {
		state.uid, state.bucket, state.deep, state.retained = e.UID, e.BucketName, old.deep, old.retained
		*old = state
	})
}

// setDeep notes what was found when the snapshots were read.
func (s *entryStates) setDeep(e *backupEntry, deep deepState) {
	s.change(e, func(state *entryState) { state.deep = deep })
}

// setRetained notes what is known of the retention of the versions.
func (s *entryStates) setRetained(e *backupEntry, retained retainedState) {
	s.change(e, func(state *entryState) { state.retained = retained })
}

// change changes what is noted, unless the entry is not watched any more.
func (s *entryStates) change(e *backupEntry, f func(*entryState)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state, ok := s.states[e.Name]; ok && state.uid == e.UID && state.bucket == e.BucketName {
		f(&state)
		s.states[e.Name] = state
	}
}

// forget ends the series of an entry.
func (s *entryStates) forget(entry string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.states, entry)
}
