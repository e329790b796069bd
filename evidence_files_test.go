package main

import (
	"crypto/ed25519"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fileHarness is an observer that signs evidence into a directory.
type fileHarness struct {
	*observerHarness
	root   string
	writer *evidenceWriter
}

// withEvidenceFiles runs a test in virtual time, on bucket b of another owner, whose spec asks for a lock of 4 days.
func withEvidenceFiles(t *testing.T, run func(h *fileHarness)) {
	t.Helper()
	root := t.TempDir()
	inVirtualTime(t, func(inner *harness) {
		h := &fileHarness{observerHarness: &observerHarness{harness: inner}, root: root}
		h.owned(locked4d)
		h.cloud.put("b", locked4d)
		h.restart()
		run(h)
	})
}

// restart is a new process.
func (h *fileHarness) restart() {
	h.observer = newBucketObserver(h.buckets)
	h.observer.evidence = newEvidenceLog()
	c := newCalmController(h.t, resourceEvidence, h.metrics)
	h.writer = newEvidenceWriter(h.observer.bucketReconciler, c, h.core, &config{}, h.metrics.entries)
	h.writer.keys, h.writer.observes = evidenceKeys{testEvidenceKey(1)}, true
	h.writer.place = h.observer.placeInDirectory(h.root)
	h.observer.askEvidence, h.observer.forgetEvidence = h.writer.ask, h.writer.forget
}

// live looks at the bucket for a time, and makes the passes over its evidence that the looks ask for.
func (h *fileHarness) live(d time.Duration) (errs []error) {
	h.t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(min(testVerifyInterval, time.Until(end))) {
		_, _ = h.look()
		if h.writer.controller.queue.Len() > 0 {
			key, _ := h.writer.controller.queue.Get()
			if _, err := h.pass(h.t.Context(), h.writer.reconcile, key.Name, false); err != nil {
				errs = append(errs, err)
			}
			h.writer.controller.queue.Done(key)
		}
		if !time.Now().Before(end) {
			return errs
		}
	}
}

// statements are what lies in the directory, of which nothing may be wrong but what is named.
func (h *fileHarness) statements(findings ...string) (all []evidence) {
	h.t.Helper()
	verified, found, err := readEvidence(evidenceFiles([]string{h.root}), evidenceQuery{keys: []ed25519.PublicKey{publicOf(testEvidenceKey(1))}})
	if err != nil {
		h.t.Fatal(err)
	}
	if got := kinds(found); !slices.Equal(got, findings) {
		h.t.Errorf("found %v, want %q", found, findings)
	}
	for _, v := range verified {
		all = append(all, v.Statement)
	}
	return all
}

func TestObserverEvidence(t *testing.T) {
	withEvidenceFiles(t, func(h *fileHarness) {
		h.cloud.offset = 90 * time.Second
		if errs := h.live(0); len(errs) > 0 {
			t.Fatal(errs)
		}
		// The secret, which tells where the bucket lies. The store is asked for nothing.
		h.wantTrace("get secrets garden/bucket-b")
		for key := range h.cloud.buckets["b"].objects {
			t.Errorf("%s is in the bucket", key)
		}
		e := h.statements()[0]
		if !e.Observer || e.Record != nil || e.Spec.policy() != locked4d || e.Policy.policy() != locked4d || e.VerifiedSince == nil ||
			!e.Time.Equal(time.Now().Add(90*time.Second)) || e.ClockOffset != -90 || !slices.Contains(e.NotClaimed, evidenceObserved) ||
			e.Hardened != nil || e.promisedDays() != 4 {
			t.Errorf("the first is %+v", e)
		}
		h.live(72 * time.Hour)
		all := h.statements()
		if len(all) != 4 || all[3].VerifiedSince == nil || !all[3].VerifiedSince.Equal(*e.VerifiedSince) {
			t.Errorf("in three days there are %q, verified since %v", reasonsOf(all), all[len(all)-1].VerifiedSince)
		}
		// A restart goes on where it was, whatever an interrupted write has left.
		if err := os.WriteFile(filepath.Join(h.root, "b", evidenceTemporary), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.restart()
		h.live(24 * time.Hour)
		if all = h.statements(); len(all) != 5 || all[4].Sequence != 5 {
			t.Errorf("after a restart there are %q", reasonsOf(all))
		}
		entries, err := os.ReadDir(filepath.Join(h.root, "b"))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if info, err := entry.Info(); err != nil || info.Mode().Perm() != 0o600 || entry.Name() == evidenceTemporary {
				t.Errorf("%s has mode %v, %v", entry.Name(), info.Mode(), err)
			}
		}
	})
}

// What becomes weaker is told, whether the owner was asked to or nobody knows why, and while nobody looked.
func TestObserverEvidenceOfWeakerPolicies(t *testing.T) {
	for name, test := range map[string]struct {
		change   func(*fileHarness)
		findings []string
	}{
		"drift":     {func(h *fileHarness) { h.cloud.buckets["b"].state.Policy = Policy{} }, []string{findingUnlocked + " 2"}},
		"shortened": {func(h *fileHarness) { h.cloud.buckets["b"].state.Policy = locked1d }, []string{findingUnlocked + " 2"}},
		"as the spec asks": {func(h *fileHarness) {
			h.edit(bucketsGVR, "b", withPolicy(locked1d))
			h.cloud.buckets["b"].state.Policy = locked1d
		}, nil},
		"over a restart": {func(h *fileHarness) {
			h.cloud.buckets["b"].state.Policy = Policy{}
			h.restart()
		}, []string{findingUnlocked + " 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			withEvidenceFiles(t, func(h *fileHarness) {
				h.live(2 * time.Hour)
				before := len(h.statements())
				test.change(h)
				h.live(time.Hour)
				all := h.statements(test.findings...)
				if len(all) <= before || !all[before].has(evidenceDrift) {
					t.Errorf("nothing is told: %+v", all[len(all)-1])
				}
			})
		})
	}
}

// Where the store does not answer, statements go on, by our clock, and say so.
func TestObserverEvidenceWithoutTheStore(t *testing.T) {
	withEvidenceFiles(t, func(h *fileHarness) {
		h.cloud.offset = 90 * time.Second
		h.live(2 * time.Hour)
		h.cloud.fail["Observe"] = unavailable
		h.live(26 * time.Hour)
		all := h.statements(findingUnlocked + " 2")
		last := all[len(all)-1]
		if last.Policy != nil || !strings.Contains(strings.Join(last.Unknown, " "), "The store's time is not known") || last.ClockOffset != -90 {
			t.Errorf("the last of %d is %+v", len(all), last)
		}
	})
}

func TestEvidenceDirectory(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "a/b", `a\b`, ".hidden", "a\x00"} {
		if _, err := openEvidenceDirectory(t.TempDir(), name, nil); err == nil {
			t.Errorf("%q can be the name of a bucket", name)
		}
	}
	root, outside := t.TempDir(), t.TempDir()
	d, err := openEvidenceDirectory(root, "b", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"x", evidencePrefix, evidencePrefix + "..", evidencePrefix + "a/b", evidencePrefix + ".part", "../" + evidencePrefix + "x"} {
		if err := d.write(t.Context(), key, nil); err == nil {
			t.Errorf("%q is written", key)
		}
	}
	key := evidencePrefix + "x"
	if err := d.write(t.Context(), key, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := d.write(t.Context(), key, []byte("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file is written over: %v", err)
	}
	if content, err := readObject(t.Context(), d, version{key: key}); err != nil || string(content) != "one" {
		t.Errorf("%q, %v", content, err)
	}
	if _, err := d.open(t.Context(), version{key: evidencePrefix + "y"}); !errors.Is(err, errNoVersion) {
		t.Errorf("a file that is not there: %v", err)
	}
	// A link leads nowhere.
	if err := os.Symlink(outside, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	linked, err := openEvidenceDirectory(root, "link", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := linked.write(t.Context(), key, nil); err == nil {
		t.Error("a link leads out of the directory")
	}
	missing, err := openEvidenceDirectory(filepath.Join(root, "missing"), "b", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := missing.write(t.Context(), key, nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "--evidence-directory") {
		t.Errorf("without the directory: %v", err)
	}
}

func TestEvidenceDirectoryFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--observe --evidence":                                                                   "needs --evidence-directory and --evidence-key",
		"--observe --evidence --evidence-key=k":                                                  "needs --evidence-directory and --evidence-key",
		"--observe --evidence --evidence-directory=d":                                            "needs --evidence-directory and --evidence-key",
		"--observe --evidence-directory=d":                                                       "--evidence-directory goes with",
		"--evidence --evidence-directory=d --namespace=n":                                        "--evidence-directory goes with",
		"--observe --probe --observe-credentials=a/b":                                            "--probe and --observe-credentials exclude",
		"--observe --probe --evidence --evidence-directory=d --evidence-key=k":                   "",
		"--observe --observe-credentials=a/b --evidence --evidence-directory=d --evidence-key=k": "",
	} {
		if _, err := parseFlags(strings.Fields(args), io.Discard); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
}
