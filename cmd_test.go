package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

// TestCommands runs the scripts in testdata/cmd_*.txt. Of a script, lines that begin with
//
//	#  are comments
//	+  prepare something, see scriptWorld.prepare
//	$  are command lines
//
// and behind a command line come its standard output, its standard error with ! before each line, and its exit code if it is
// not 0. An empty line of output is |. With UPDATE_SCRIPTS=1 the scripts are written as the commands behave.
func TestCommands(t *testing.T) {
	scripts, err := filepath.Glob("testdata/cmd_*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts, %v", err)
	}
	for _, script := range scripts {
		t.Run(filepath.Base(script), func(t *testing.T) {
			text, err := os.ReadFile(script)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = newScriptWorld(t).run(string(text)) })
			if got == string(text) {
				return
			}
			if os.Getenv("UPDATE_SCRIPTS") != "" {
				if err := os.WriteFile(script, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, lines := strings.Split(string(text), "\n"), strings.Split(got, "\n")
			for i := range lines {
				if i >= len(want) || lines[i] != want[i] {
					t.Fatalf("line %d is\n%s\nwant\n%s\nin\n%s", i+1, lines[i], want[min(i, len(want)-1)], got)
				}
			}
			t.Fatalf("the output is shorter:\n%s", got)
		})
	}
}

// scriptWorld is what the commands of a script see: the time is virtual, the store is in memory.
type scriptWorld struct {
	t         *testing.T
	server    *memoryServer
	dyn       *dynamicfake.FakeDynamicClient
	core      *fake.Clientset
	directory string
	names     map[string]string // of snapshots, by what the script calls them
	asks      string            // what the user answers
	metrics   *metrics          // of the next command; nil: its own
}

func newScriptWorld(t *testing.T) *scriptWorld {
	w := &scriptWorld{t: t, server: newMemoryServer(), directory: t.TempDir(), names: map[string]string{}, core: fake.NewClientset(),
		dyn: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
			entriesGVR: "BackupEntryList", bucketsGVR: "BackupBucketList"})}
	w.server.buckets["backups"] = &memoryBucket{region: memoryRegion}
	secret := fmt.Sprintf("kind: Secret\ndata: {%s: %s, bucketName: %s, region: %s}\n", memoryKey, base64.StdEncoding.EncodeToString([]byte(w.server.key)),
		base64.StdEncoding.EncodeToString([]byte("backups")), base64.StdEncoding.EncodeToString([]byte(memoryRegion)))
	if err := os.WriteFile(filepath.Join(w.directory, "secret.yaml"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *scriptWorld) run(script string) string {
	var out strings.Builder
	for line := range strings.Lines(script) {
		text := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"), text == "":
			out.WriteString(line)
		case strings.HasPrefix(line, "+ "):
			out.WriteString(line)
			w.prepare(strings.Fields(line)[1:])
		case strings.HasPrefix(line, "$ "):
			out.WriteString(line)
			out.WriteString(w.command(strings.Fields(line)[1:]))
		}
	}
	return out.String()
}

// command runs a command line.
func (w *scriptWorld) command(line []string) string {
	if len(line) == 0 || line[0] != programName {
		w.t.Fatalf("%q is not a command of ours", line)
	}
	time.Sleep(time.Second)
	args := slices.Clone(line[1:])
	for i, arg := range args {
		arg = strings.ReplaceAll(arg, "@secret", filepath.Join(w.directory, "secret.yaml"))
		arg = strings.ReplaceAll(arg, "@/", w.directory+"/")
		if name, ok := w.names[arg]; ok {
			arg = name
		}
		args[i] = arg
	}
	var out, errOut bytes.Buffer
	code := w.cli(&out, &errOut).main(w.t.Context(), args)
	text := strings.ReplaceAll(out.String(), "\n\n", "\n|\n")
	for line := range strings.Lines(errOut.String()) {
		text += "! " + line
	}
	if code != 0 {
		text += fmt.Sprintf("exit %d\n", code)
	}
	return strings.ReplaceAll(text, w.directory, "@")
}

// cli is a run of a command in this world.
func (w *scriptWorld) cli(out, errOut io.Writer) *cli {
	c := newCLI(programName)
	c.out, c.errOut, c.in, c.terminal, c.asks = out, errOut, strings.NewReader(w.asks), false, w.asks != ""
	if w.metrics != nil {
		c.metrics = w.metrics
	}
	c.newProviders = func(_ *config, m *metrics) (map[string]provider, error) {
		return map[string]provider{storeMemory: &memoryProvider{w.server, m}}, nil
	}
	c.connect = func() (dynamic.Interface, kubernetes.Interface, error) { return w.dyn, w.core, nil }
	c.whoami = func(context.Context) string { return "jane" }
	c.defaultTypes, c.workers = typeFlag{"mem": storeMemory}, 1
	return c
}

// prepare does one of
//
//	wait 5m                         lets time pass
//	full NAME ENTRY LAST [HOW]      stores a full snapshot at a revision, which the script calls NAME
//	delta NAME ENTRY FIRST LAST [HOW]
//	damage NAME cut|flip|empty      changes what is stored, or what is in it
//	delete NAME                     deletes it for good
//	object KEY                      stores something else
//	mark NAME, tag NAME             one of the two steps of an exclusion
//	lock DAYS                       locks the bucket
//	entry NAME                      makes a BackupEntry
//	answer TEXT                     is what the user answers from here on
//
// HOW is gz (the default), zlib, Z or none, and final, at=REVISION (of the content) or name=NAME.
func (w *scriptWorld) prepare(args []string) {
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	bucket := w.server.buckets["backups"]
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		return n
	}
	stored := func(name string) version {
		for _, v := range bucket.versions {
			if path.Base(v.key) == w.names[name] && !v.marker {
				return v
			}
		}
		w.t.Fatalf("there is no %s", name)
		return version{}
	}
	switch args[0] {
	case "wait":
		d, err := time.ParseDuration(args[1])
		if err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(d)
	case "full":
		last := number(args[3])
		w.store(bucket, args[1], args[2], true, 0, last, args[4:])
	case "delta":
		w.store(bucket, args[1], args[2], false, number(args[3]), number(args[4]), args[5:])
	case "damage":
		v := stored(args[1])
		data := bytes.Clone(w.server.content[v.id])
		switch args[2] {
		case "cut":
			data = data[:len(data)/2]
		case "flip":
			data[len(data)/2] ^= 1
		case "empty":
			data = nil
		}
		w.server.content[v.id] = data
		bucket.versions[slices.IndexFunc(bucket.versions, v.same)].size = int64(len(data))
	case "delete":
		v := stored(args[1])
		bucket.versions = slices.DeleteFunc(bucket.versions, v.same)
	case "object":
		w.server.write(bucket, version{key: args[1], size: 10})
	case "mark":
		w.server.write(bucket, version{key: stored(args[1]).key, marker: true})
	case "tag":
		w.server.tagged[stored(args[1]).id] = map[string]string{excludeTag: excludeValue, "team": "blue"}
	case "lock":
		bucket.policy = lockedPolicy(int32(number(args[1])))
	case "answer":
		w.asks = strings.Join(args[1:], " ") + "\n"
	case "entry":
		u := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": extensionsGV.String(), "kind": kindBackupEntry, "metadata": map[string]any{"name": args[1], "uid": "uid-" + args[1]},
			"spec": map[string]any{"type": "mem", "region": memoryRegion, "bucketName": "backups",
				"secretRef": map[string]any{"name": "credentials", "namespace": "garden"}},
		}}
		if _, err := w.dyn.Resource(entriesGVR).Create(w.t.Context(), u, metav1.CreateOptions{}); err != nil {
			w.t.Fatal(err)
		}
		_ = w.core.Tracker().Add(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "credentials", Namespace: "garden"},
			Data: map[string][]byte{memoryKey: []byte(w.server.key)}})
	default:
		if !w.prepareBucket(bucket, args) {
			w.t.Fatalf("cannot prepare %q", args)
		}
	}
}

func (w *scriptWorld) store(bucket *memoryBucket, name, entry string, full bool, first, last int64, how []string) {
	compression, ending, at, kind := ".gz", "", last, snapshotDelta
	for _, h := range how {
		switch option, value, _ := strings.Cut(h, "="); option {
		case "none":
			compression = ""
		case "gz", "zlib", "Z":
			compression = "." + option
		case "final":
			ending = snapshotFinal
		case "at":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				w.t.Fatal(err)
			}
			at = n
		default:
			w.t.Fatalf("%q is no way to store a snapshot", h)
		}
	}
	var plain []byte
	if full {
		kind = snapshotFull
		plain = testDatabase(w.t, at, false)
	} else {
		plain = testEvents(first, at)
	}
	object := fmt.Sprintf("%s-%08d-%08d-%d%s%s", kind, first, last, time.Now().Unix(), compression, ending)
	data := packed(w.t, hashed(plain), compression)
	v := w.server.write(bucket, version{key: entry + "/" + etcdName + "/v2/" + object, size: int64(len(data))})
	w.server.content[v.id] = data
	w.names[name] = object
}
