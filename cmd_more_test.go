package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

// The binary is the daemon, a command, or the plugin of kubectl.
func TestCommandOf(t *testing.T) {
	for line, want := range map[string]string{
		"bucketwarden":                                 "",
		"bucketwarden --kubeconfig=x":                  "",
		"bucketwarden frobnicate":                      "",
		"/usr/bin/bucketwarden verify --all":           "bucketwarden: verify --all",
		"bucketwarden help":                            "bucketwarden: help",
		"/usr/bin/kubectl-bucketwarden":                "kubectl bucketwarden: ",
		"kubectl-bucketwarden verify":                  "kubectl bucketwarden: verify",
		"kubectl-bucketwarden --version":               "kubectl bucketwarden: --version",
		"C/kubectl-bucketwarden.exe snapshots -o json": "kubectl bucketwarden: snapshots -o json",
	} {
		got := ""
		if c, args := commandOf(strings.Fields(line)); c != nil {
			got = c.program + ": " + strings.Join(args, " ")
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}

// Help names every flag of every command and says what it is.
func TestCommandHelp(t *testing.T) {
	help := func(args ...string) string {
		c := newCLI(programName)
		var out, errOut bytes.Buffer
		c.out, c.errOut = &out, &errOut
		if code := c.main(t.Context(), args); code != 0 || errOut.Len() > 0 {
			t.Errorf("%q: exit code %d, %s", args, code, errOut.String())
		}
		return out.String()
	}
	all := help()
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}} {
		if help(args...) != all {
			t.Errorf("%q is another help", args)
		}
	}
	for _, cmd := range commands {
		if !strings.Contains(all, "  "+cmd.name+" ") || !strings.Contains(all, cmd.short) {
			t.Errorf("help does not list %s:\n%s", cmd.name, all)
		}
		text := help("help", cmd.name)
		if text != help(cmd.name, "--help") {
			t.Errorf("%s --help is another help", cmd.name)
		}
		for _, want := range []string{cmd.long, cmd.args, "-bucket-secret", "Examples:\n  " + programName + " " + cmd.name, "Flags:"} {
			if !strings.Contains(text, want) {
				t.Errorf("help of %s lacks %q", cmd.name, want)
			}
		}
		for line := range strings.Lines(text) {
			if len(line) > 200 {
				t.Errorf("a line of %d characters: %s", len(line), line)
			}
		}
	}
	if version := help("--version"); !strings.HasPrefix(version, programName+" ") {
		t.Errorf("the version is %q", version)
	}
}

func TestSecretFiles(t *testing.T) {
	directory := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	// As kubelet mounts one.
	write("mounted/..2026/accessKeyID", "id")
	write("mounted/..2026/secretAccessKey", "geheim")
	for link, target := range map[string]string{"..data": "..2026", "accessKeyID": "..data/accessKeyID", "secretAccessKey": "..data/secretAccessKey"} {
		if err := os.Symlink(target, filepath.Join(directory, "mounted", link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(directory, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"accessKeyID": []byte("id"), "secretAccessKey": []byte("geheim")}
	for name, file := range map[string]string{
		"yaml":    write("a.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata:\n  accessKeyID: aWQ=\n  secretAccessKey: Z2Vo\n    ZWlt\n"),
		"json":    write("a.json", `{"kind": "Secret", "data": {"accessKeyID": "aWQ=", "secretAccessKey": "Z2VoZWlt"}}`),
		"strings": write("b.yaml", "kind: Secret\nstringData: {accessKeyID: id, secretAccessKey: geheim}\n"),
		"mounted": filepath.Join(directory, "mounted"),
	} {
		secret, err := readSecretFile(file)
		if err != nil || !maps.EqualFunc(secret.Data, want, bytes.Equal) {
			t.Errorf("%s: %v, %v", name, secret, err)
		}
	}
	for file, want := range map[string]string{
		filepath.Join(directory, "missing"):                                     "no such file",
		filepath.Join(directory, "empty"):                                       "there are no files",
		write("c", "kind: ConfigMap\ndata: {accessKeyID: geheim}"):              "neither a Secret",
		write("d", "geheim: [geheim"):                                           "neither a Secret",
		write("e", "kind: Secret\ndata: {secretAccessKey: geheim!}"):            "secretAccessKey in",
		write("f", "kind: Secret\ndata: {secretAccessKey: [geheim]}"):           "neither a Secret",
		write("g", "kind: Secret\n#"+strings.Repeat("geheim", maxSecretFile/5)): "larger than a Secret",
	} {
		_, err := readSecretFile(file)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}

// A bucket is opened as the kind of store that the secret fits.
func TestBucketSecretFits(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	for name, c := range map[string]struct{ secret, want string }{
		"s3":      {"{accessKeyID: a, secretAccessKey: geheim, region: eu-1, endpoint: http://127.0.0.1:1}", "connection refused"},
		"azure":   {"{storageAccount: abc, storageKey: Z2VoZWlt, domain: '127.0.0.1:1'}", "127.0.0.1"},
		"neither": {"{storageKey: Z2VoZWlt}", "as a secret of azure: the credentials secret lacks storageAccount"},
		"both":    {"{user: geheim}", "as a secret of s3: the credentials secret has no credentials"},
	} {
		if err := os.WriteFile(file, []byte("kind: Secret\nstringData: "+c.secret), 0o600); err != nil {
			t.Fatal(err)
		}
		cli := newCLI(programName)
		var out, errOut bytes.Buffer
		cli.out, cli.errOut = &out, &errOut
		ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errors.New("connection refused to 127.0.0.1"))
		code := cli.main(ctx, []string{"verify", "--bucket-secret", file, "--bucket", "backups", "a"})
		cancel()
		if code != exitFailed || !strings.Contains(errOut.String(), c.want) || strings.Contains(errOut.String(), "geheim") || strings.Contains(errOut.String(), "Z2VoZWlt") {
			t.Errorf("%s: exit code %d, %s", name, code, errOut.String())
		}
	}
}

// commandWorld runs commands against a store in memory, outside of scripts.
func commandWorld(t *testing.T, lines ...string) (*scriptWorld, func(line string) (text string, requests map[string]int)) {
	w := newScriptWorld(t)
	for _, line := range lines {
		w.prepare(strings.Fields(line))
	}
	return w, func(line string) (string, map[string]int) {
		w.metrics = newMetrics()
		text := w.command(strings.Fields(line))
		b := &suiteBucket{t: t, metrics: w.metrics, backend: memoryBackend{w.server}}
		return text, b.requests()
	}
}

var oneChain = []string{"entry shoot--a--b--1", "full f1 shoot--a--b--1 100", "wait 5m", "delta d1 shoot--a--b--1 101 110", "wait 5m",
	"delta d2 shoot--a--b--1 111 120", "wait 5m", "delta d3 shoot--a--b--1 121 130", "wait 5m"}

// What each command asks the store and the API server.
func TestCommandRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, run := commandWorld(t, append(slices.Clone(oneChain), "entry shoot--a--c--1")...)
		for _, c := range []struct {
			line  string
			store map[string]int
			api   int
		}{
			{"bucketwarden verify shoot--a--b--1", map[string]int{"ListVersions": 1}, 2},
			{"bucketwarden verify --all", map[string]int{"ListVersions": 2}, 2},
			{"bucketwarden verify --deep shoot--a--b--1", map[string]int{"ListVersions": 1, "GetObject": 4}, 2},
			{"bucketwarden snapshots shoot--a--b--1", map[string]int{"ListVersions": 1, "GetVersion": 4}, 2},
			{"bucketwarden snapshots shoot--a--b--1 --bucket-secret @secret", map[string]int{"ListVersions": 1, "GetVersion": 4}, 0},
			{"bucketwarden exclude shoot--a--b--1 d2 --yes", map[string]int{"ListVersions": 2, "GetTags": 4, "PutTags": 2, "DeleteObject": 2}, 4},
			{"bucketwarden exclude shoot--a--b--1 d2 --yes", map[string]int{"ListVersions": 1, "GetTags": 2}, 2},
			{"bucketwarden verify --deep shoot--a--b--1", map[string]int{"ListVersions": 1, "GetTags": 2, "GetObject": 2}, 2},
			{"bucketwarden include shoot--a--b--1 d3 --yes", map[string]int{"ListVersions": 4, "GetTags": 4, "PutTags": 2, "DeleteVersions": 2}, 4},
		} {
			w.dyn.ClearActions()
			w.core.ClearActions()
			text, requests := run(c.line)
			if api := len(w.dyn.Actions()) + len(w.core.Actions()); !maps.Equal(requests, c.store) || api != c.api {
				t.Errorf("%s: asked the store %v and the API server %d times, want %v and %d\n%s", c.line, requests, api, c.store, c.api, text)
			}
		}
	})
}

// Wherever an exclusion or its reverse stops, a restore works with what is left, and doing it again completes it.
func TestExclusionIsNeverHalfDone(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"exclude shoot--a--b--1 d1 --yes", "exclude shoot--a--b--1 f2 --yes", "include shoot--a--b--1 f2 --yes", "include shoot--a--b--1 d5 --yes"} {
		done := false
		for at := 1; !done && at < 100; at++ {
			synctest.Test(t, func(t *testing.T) {
				w, run := commandWorld(t, append(slices.Clone(oneChain), "full f2 shoot--a--b--1 130", "wait 5m", "delta d4 shoot--a--b--1 131 140",
					"wait 5m", "delta d5 shoot--a--b--1 141 150", "wait 5m")...)
				if strings.HasPrefix(line, "include") {
					run("bucketwarden exclude shoot--a--b--1 f2 --yes")
				}
				// The at-th request that changes something is refused, and all that follow.
				changes, refused := 0, false
				w.server.refuse = func(operation string) int {
					if operation == "PutTags" || operation == "DeleteObject" || operation == "DeleteVersions" {
						if changes++; changes >= at {
							refused = true
							return http.StatusForbidden
						}
					}
					return http.StatusOK
				}
				text, _ := run("bucketwarden " + line)
				w.server.refuse = nil
				check := func(what string) *chain {
					c, err := readChain(t.Context(), w.objects(), "shoot--a--b--1")
					if err != nil || !c.complete {
						t.Fatalf("%s, stopped at change %d: %+v, %v\n%s", line, at, c, err, text)
					}
					return c
				}
				check("stopped")
				if refused != strings.Contains(text, "exit 1") {
					t.Errorf("refused %t, but\n%s", refused, text)
				}
				if done = !refused; done {
					return
				}
				text, _ = run("bucketwarden " + line)
				if strings.Contains(text, "exit") {
					t.Errorf("%s again: %s", line, text)
				}
				check("again")
			})
		}
		if !done {
			t.Errorf("%s does not end", line)
		}
	}
}

// Who excludes what and why stands in an event on the entry.
func TestExclusionEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, run := commandWorld(t, oneChain...)
		run("bucketwarden exclude shoot--a--b--1 d2 --yes --reason incident-17")
		list, err := w.core.EventsV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		e := list.Items[0]
		if e.Note != "jane excluded 2 snapshots, the oldest with revision 120: incident-17" || e.Reason != "SnapshotsExcluded" ||
			e.Regarding.Name != "shoot--a--b--1" || e.Regarding.Kind != kindBackupEntry || e.Regarding.UID != "uid-shoot--a--b--1" {
			t.Errorf("the event is %+v", e)
		}
	})
}

// What is excluded by command is announced to the daemon, and nothing else is.
func TestExclusionIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, run := commandWorld(t, append(slices.Clone(oneChain), "full f2 shoot--a--b--1 140", "wait 5m", "tag f2", "mark f2")...)
		want := func(want string) {
			t.Helper()
			u, err := w.dyn.Resource(entriesGVR).Get(t.Context(), "shoot--a--b--1", metav1.GetOptions{})
			if err != nil || u.GetAnnotations()[annotationExcluded] != want {
				t.Errorf("announced is %q, want %q, %v", u.GetAnnotations()[annotationExcluded], want, err)
			}
		}
		run("bucketwarden exclude shoot--a--b--1 d2 --yes")
		want("120,130")
		run("bucketwarden include shoot--a--b--1 d2 --yes")
		want("130")
		run("bucketwarden include shoot--a--b--1 d3 --yes")
		want("")
		w.dyn.PrependReactor("patch", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("not allowed")
		})
		if text, _ := run("bucketwarden exclude shoot--a--b--1 d3 --yes"); !strings.Contains(text, "not allowed") ||
			!strings.Contains(text, "kubectl annotate --overwrite backupentry shoot--a--b--1 bucketwarden/excluded-revisions=130") || strings.Contains(text, "exit") {
			t.Error(text)
		}
	})
}

// The tags of others stay, and an exclusion does not depend on how often it was done.
func TestExclusionKeepsTags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, run := commandWorld(t, append(slices.Clone(oneChain), "tag d3", "mark d3", "mark d3")...)
		tags := func() map[string]string {
			for _, v := range w.server.buckets["backups"].versions {
				if strings.HasSuffix(v.key, w.names["d3"]) && !v.marker {
					return w.server.tagged[v.id]
				}
			}
			return nil
		}
		run("bucketwarden include shoot--a--b--1 d3 --yes")
		if got := tags(); !maps.Equal(got, map[string]string{"team": "blue"}) {
			t.Errorf("included with the tags %v", got)
		}
		for _, v := range w.server.buckets["backups"].versions {
			if v.marker {
				t.Errorf("a delete marker is left: %+v", v)
			}
		}
		if got := len(w.server.buckets["backups"].versions); got != 4 {
			t.Errorf("%d versions are left", got)
		}
		run("bucketwarden exclude shoot--a--b--1 d3 --yes")
		if got := tags(); !maps.Equal(got, map[string]string{"team": "blue", excludeTag: excludeValue}) {
			t.Errorf("excluded with the tags %v", got)
		}
	})
}

// A store that fails for a moment is asked again, from the start of the snapshot.
func TestDeepCheckReadsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, run := commandWorld(t, oneChain...)
		failures := 2
		w.server.broken = func(v version) io.Reader {
			if failures--; failures >= 0 {
				return &brokenBody{}
			}
			return nil
		}
		if text, requests := run("bucketwarden verify --deep shoot--a--b--1"); !strings.Contains(text, verdictIntact) || requests["GetObject"] != 6 {
			t.Errorf("asked %v\n%s", requests, text)
		}
		failures = 1000
		text, _ := run("bucketwarden verify --deep shoot--a--b--1")
		if !strings.Contains(text, "exit 1") || !strings.Contains(text, "the connection breaks off") || strings.Contains(text, verdictBroken) {
			t.Error(text)
		}
	})
}

// brokenBody breaks off.
type brokenBody struct{ n int }

func (b *brokenBody) Read(p []byte) (int, error) {
	if b.n++; b.n > 2 {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, "abc"), nil
}

// A snapshot that is deleted while it is to be read is a finding.
func TestDeepCheckOfADeletedSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, run := commandWorld(t, oneChain...)
		w.server.refuse = func(operation string) int {
			if operation == "GetObject" {
				return http.StatusNotFound
			}
			return http.StatusOK
		}
		if text, _ := run("bucketwarden verify --deep shoot--a--b--1"); !strings.Contains(text, "exit 2") || !strings.Contains(text, "it was deleted while it was to be read") {
			t.Error(text)
		}
	})
}

// lockedObjects is a store whose list does not tell locks.
type lockedObjects struct {
	Objects
	mu     sync.Mutex
	asked  []string
	denied bool
}

func (s *lockedObjects) lock(_ context.Context, v version) (versionLock, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, v.key)
	if s.denied {
		return versionLock{}, &storeError{code: codeUnauthorized, err: errors.New("not allowed")}
	}
	return versionLock{until: time.Unix(100, 0)}, nil
}

// Locks are asked for where the list does not tell them, of the links alone, and of not too many.
func TestLocksAreBounded(t *testing.T) {
	c := &chain{}
	for i := range 2000 {
		c.links = append(c.links, &snapshot{key: fmt.Sprint(i), full: i == 0})
	}
	store := &lockedObjects{}
	if err := readLocks(t.Context(), store, c); err != nil || len(store.asked) != maxLocks || !slices.Contains(store.asked, "0") ||
		!slices.Contains(store.asked, "1999") || !c.links[0].lockKnown || !c.links[1999].lockKnown || c.links[1].lockKnown {
		t.Errorf("asked for %d, %v", len(store.asked), err)
	}
	c = &chain{links: []*snapshot{{key: "a"}}}
	if err := readLocks(t.Context(), &lockedObjects{denied: true}, c); err != nil || c.links[0].lockKnown {
		t.Errorf("a lock that must not be read: %v, %+v", err, c.links[0])
	}
}

// On a terminal there is a bar, which is gone in the end.
func TestProgressBar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCLI(programName)
		var errOut bytes.Buffer
		c.errOut, c.terminal = &errOut, true
		p := c.newProgress("shoot--a\x1b[2J", 200)
		p.done.Add(50)
		time.Sleep(progressInterval + time.Millisecond)
		p.checked(&snapshot{name: "Full"}, content{})
		p.end()
		want := "\r\x1b[K[#######                       ]  25%  50 B of 200 B  shoot--a?[2J\r\x1b[K"
		if got := errOut.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// What somebody has written into a bucket does not reach the terminal as it is.
func TestNamesAreHarmless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, run := commandWorld(t, oneChain...)
		w.prepare([]string{"object", "shoot--a--b--1/etcd-main/v2/\x1b]0;evil\x07\n"})
		w.prepare([]string{"object", "shoot--a--b--1/etcd-main/v2/Full-00000000-00000200-1.\x1b[2J"})
		for _, line := range []string{"snapshots shoot--a--b--1 -o wide", "verify shoot--a--b--1", "snapshots shoot--a--b--1 -o json"} {
			text, _ := run("bucketwarden " + line)
			if strings.ContainsAny(text, "\x1b\x07") {
				t.Errorf("%s: %q", line, text)
			}
		}
	})
}

// objects opens the bucket of the scripts.
func (w *scriptWorld) objects() Objects {
	objects, err := (&memoryProvider{w.server, newMetrics()}).openObjects(bucketRef{Name: "backups", Region: memoryRegion},
		map[string][]byte{memoryKey: []byte(w.server.key)})
	if err != nil {
		w.t.Fatal(fmt.Errorf("opening: %w", err))
	}
	return objects
}
