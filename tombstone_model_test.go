package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
)

// tombstoneModel lives through random deletions and restores of the two entries that share a
// prefix, and knows what must hold after each step.
type tombstoneModel struct {
	*harness
	t   *testing.T
	rng *rand.Rand
	// away: the entry has migrated to another cluster, where it is alive.
	away    bool
	written int
	log     []string
}

var modelEntries = []string{testEntry, "source-" + testEntry}

func (m *tombstoneModel) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

func (m *tombstoneModel) fatal(format string, args ...any) {
	m.t.Helper()
	for _, k := range m.marks(testEntry) {
		m.note("has %s of %s", k.key, k.created)
	}
	m.t.Fatalf("%s\nafter %d steps, the last ones:\n\t%s", fmt.Sprintf(format, args...), len(m.log), strings.Join(m.log[max(0, len(m.log)-40):], "\n\t"))
}

// alive names who owns the objects; empty if nobody does.
func (m *tombstoneModel) alive() string {
	if m.away {
		return "another cluster"
	}
	for _, name := range modelEntries {
		if u := m.get(entriesGVR, name); u != nil && u.GetDeletionTimestamp() == nil {
			return name
		}
	}
	return ""
}

// serving says that an entry is alive and has been told to the cluster.
func (m *tombstoneModel) serving() bool {
	return slices.ContainsFunc(modelEntries, func(name string) bool {
		return m.get(entriesGVR, name) != nil && m.get(entriesGVR, name).GetDeletionTimestamp() == nil && m.status(entriesGVR, name).State == string(stateSucceeded)
	})
}

func (m *tombstoneModel) present() []string {
	return slices.DeleteFunc(slices.Clone(modelEntries), func(name string) bool { return m.get(entriesGVR, name) == nil })
}

func (m *tombstoneModel) create(name string, edits ...editObject) {
	if m.get(entriesGVR, name) != nil {
		return
	}
	if u := m.get(entriesGVR, modelEntries[0]); u != nil && u.GetAnnotations()[annotationOperation] == operationMigrate {
		return
	}
	m.note("create %s", name)
	m.putEntry(name, false, edits...)
}

func (m *tombstoneModel) delete(name string) {
	u := m.get(entriesGVR, name)
	// One without a finalizer would be gone before anybody could do anything.
	if u == nil || u.GetDeletionTimestamp() != nil || len(u.GetFinalizers()) == 0 {
		return
	}
	m.note("delete %s", name)
	m.edit(entriesGVR, name, apiDeleting)
}

// reconcile makes a pass over an entry, as the client asks for or on its own.
func (m *tombstoneModel) reconcile(name string) {
	u := m.get(entriesGVR, name)
	if u == nil {
		return
	}
	if m.rng.IntN(2) == 0 && u.GetAnnotations()[annotationOperation] == "" {
		m.edit(entriesGVR, name, withOperation(operationReconcile))
	}
	_, err := m.passEntry(name)
	m.note("pass over %s: %v", name, err)
}

// migrate hands the entry over to another cluster.
func (m *tombstoneModel) migrate() {
	name := modelEntries[0]
	if len(m.present()) != 1 || m.present()[0] != name || m.alive() != name || m.status(entriesGVR, name).State != string(stateSucceeded) {
		return
	}
	m.edit(entriesGVR, name, withOperation(operationMigrate))
	if _, err := m.passSweep(); err != nil {
		m.note("sweep: %v", err)
	}
	_, err := m.passEntry(name)
	m.note("migrate: %v", err)
	if err != nil {
		return
	}
	if err := m.dyn.Tracker().Delete(entriesGVR, "", name); err != nil && !apierrors.IsNotFound(err) {
		m.fatal("%v", err)
	}
	m.away = true
}

func (m *tombstoneModel) write() {
	if !m.serving() {
		return
	}
	m.written++
	now := m.cloud.now()
	o := memObject{size: 1024, created: now, until: m.cloud.buckets["b"].state.Policy.until(now)}
	switch m.rng.IntN(4) {
	case 0:
		o.until = now.Add(time.Duration(m.rng.IntN(72)) * time.Hour)
	case 1:
		o.until = now.Add(time.Duration(m.rng.IntN(5000)) * time.Millisecond)
	case 2:
		o.held = m.rng.IntN(3) == 0
	}
	m.cloud.buckets["b"].objects[fmt.Sprintf("%s/%d", testEntry, m.written)] = o
}

func (m *tombstoneModel) unhold() {
	objects := m.cloud.buckets["b"].objects
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		o := objects[key]
		o.held = false
		objects[key] = o
	}
}

// inject makes the next step fail somewhere.
func (m *tombstoneModel) inject() {
	method := []string{"List", "Put", "Purge", "batch", "open"}[m.rng.IntN(5)]
	err := []error{unavailable, denied}[m.rng.IntN(2)]
	switch m.rng.IntN(4) {
	case 0:
		verb := []string{"get", "patch"}[m.rng.IntN(2)]
		m.note("the API server fails to %s", verb)
		skip := m.rng.IntN(3)
		m.on(verb, resourceBackupEntries, 1+skip, func() error {
			if skip--; skip >= 0 {
				return nil
			}
			return apierrors.NewServiceUnavailable("etcd is slow")
		})
	case 1:
		m.note("%s fails late", method)
		m.cloud.listed = func() { m.cloud.fail[method] = err }
	default:
		m.note("%s fails: %v", method, err)
		m.cloud.fail[method] = err
	}
}

// disturb lets something happen between a list and a batch, or between two batches.
func (m *tombstoneModel) disturb() {
	name := modelEntries[m.rng.IntN(2)]
	happen := func() {
		m.cloud.listed, m.cloud.beforePut = nil, nil
		if m.away {
			return
		}
		switch m.rng.IntN(3) {
		case 0:
			m.create(name)
			// With its first pass or before it.
			if m.rng.IntN(2) == 0 {
				_, err := m.entries.reconcile(context.Background(), cache.ObjectName{Name: name}, false)
				m.note("%s: %v", name, err)
			}
		case 1:
			m.delete(name)
		default:
			m.create(name)
		}
	}
	m.cloud.batch = 1 + m.rng.IntN(3)
	if m.rng.IntN(2) == 0 {
		m.cloud.beforePut = happen
		return
	}
	after := m.rng.IntN(3)
	m.cloud.listed = func() {
		if after--; after < 0 {
			happen()
		}
	}
}

// check is what holds after each step.
func (m *tombstoneModel) check() {
	for _, key := range []string{testEntry + "0/1", "other"} {
		if _, ok := m.cloud.buckets["b"].objects[key]; !ok {
			m.fatal("%s is gone", key)
		}
	}
	marks := m.marks(testEntry)
	stands := len(marks) > 0 && !marks[len(marks)-1].revoked
	if (m.away || m.serving() && len(m.present()) == 1) && stands {
		m.fatal("a tombstone stands against a live entry")
	}
	// A source whose prefix has the revocation of another object leaves it, and tells.
	if m.away || len(m.present()) > 0 || stands || m.kept() {
		return
	}
	for key := range m.cloud.buckets["b"].objects {
		if strings.HasPrefix(key, testEntry+"/") {
			m.fatal("%s is forgotten", key)
		}
	}
}

// kept says that the last that was told of objects is that they stay, for a revocation.
func (m *tombstoneModel) kept() bool {
	told := slices.DeleteFunc(slices.Clone(m.recorder.events), func(e harnessEvent) bool { return !strings.HasPrefix(e.reason, "Objects") })
	marks := m.marks(testEntry)
	return len(marks) > 0 && marks[len(marks)-1].revoked && len(told) > 0 && told[len(told)-1].reason == "ObjectsKept"
}

func (m *tombstoneModel) step() {
	name := modelEntries[m.rng.IntN(2)]
	switch n := m.rng.IntN(100); {
	case n < 10:
		if !m.away {
			m.create(name)
		}
	case n < 14:
		if m.away {
			m.away = false
			m.create(modelEntries[0], withOperation(operationRestore))
		} else {
			m.migrate()
		}
	case n < 26:
		m.delete(name)
	case n < 50:
		m.reconcile(name)
	case n < 70:
		m.write()
	case n < 73:
		m.unhold()
	case n < 80:
		// Half of the time less than the store's clock resolves.
		m.cloud.offset += time.Duration(m.rng.IntN(2500)) * time.Millisecond
	case n < 85:
		m.cloud.offset += time.Duration(m.rng.IntN(48*60)) * time.Minute
	case n < 88:
		m.note("restart")
		m.sweeper.plans = map[string]map[string]sweepPlan{}
	default:
		_, err := m.passSweep()
		m.note("sweep: %v", err)
	}
}

func TestTombstonesModel(t *testing.T) {
	for seed := range uint64(6) {
		policy := []Policy{{}, {Days: 1, Locked: true}}[seed%2]
		t.Run(fmt.Sprintf("seed %d, %s", seed, policy), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				// A status of testStart is an old one.
				time.Sleep(time.Until(testStart.AddDate(1, 0, 0)))
				m := &tombstoneModel{harness: newHarness(t), t: t, rng: rand.New(rand.NewPCG(seed, 4))}
				m.recorder.t = t
				m.cloud.offset = time.Duration(m.rng.IntN(200)-100) * time.Hour
				m.putNamespace(testNamespace, false)
				m.putBucket(true, withPolicy(policy), withRecord(policy))
				bucket := m.cloud.put("b", policy)
				bucket.objects[testEntry+"0/1"], bucket.objects["other"] = memObject{}, memObject{}
				m.cloud.deleting = func(key string) {
					owner := m.alive()
					if strings.HasPrefix(key, testEntry+"/") && owner != "" {
						m.fatal("%s was deleted, and belongs to %s", key, owner)
					}
					if o := bucket.objects[key]; o.held || o.until.After(m.cloud.now()) {
						m.fatal("%s was deleted, and is retained", key)
					}
				}
				for range 2000 {
					switch m.rng.IntN(12) {
					case 0:
						m.inject()
					case 1, 2:
						m.disturb()
					}
					m.step()
					m.cloud.listed, m.cloud.beforePut, m.cloud.batch, m.hooks = nil, nil, 0, nil
					clear(m.cloud.fail)
					m.check()
				}
				purged := m.metric("bucketwarden_purged_objects_total", "b")
				if m.written < 50 || purged < 30 {
					m.fatal("%d objects were written, %v purged", m.written, purged)
				}

				// In the end everything is gone.
				m.note("the end")
				if m.away {
					m.away = false
					m.create(modelEntries[0], withOperation(operationRestore))
					m.reconcile(modelEntries[0])
				}
				m.unhold()
				for range 4 {
					for _, name := range modelEntries {
						m.delete(name)
						if _, err := m.passEntry(name); err != nil {
							m.fatal("%s: %v", name, err)
						}
					}
				}
				m.check()
				if len(m.present()) > 0 {
					m.fatal("%v is not released", m.present())
				}
				for range 10 {
					m.cloud.offset += revocationKept / 5
					if _, err := m.passSweep(); err != nil {
						m.fatal("%v", err)
					}
				}
				if len(bucket.objects) != 2 {
					m.fatal("left is %q", slices.Sorted(maps.Keys(bucket.objects)))
				}
				m.wantMetric(0, "bucketwarden_backupbucket_tombstones", "b")
			})
		})
	}
}
