package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	clientv3 "go.etcd.io/etcd/client/v3"
	"sigs.k8s.io/yaml"

	"bucketwarden/test/env"
)

// backupStore is a bucket with backups of a real etcd in it.
type backupStore struct {
	// put writes an object, get reads that version of it that a restore reads.
	put func(t *testing.T, key string, data []byte)
	get func(t *testing.T, key, version string) []byte
	// layout lists it without any code of ours.
	layout func(ctx context.Context, prefix string) (env.Layout, error)
	// args reach the bucket without an API server.
	args []string
	env  []string
	// locked: it tells until when a version is locked.
	locked bool
}

// The commands on real stores, with snapshots of a real etcd, and restores of what they call the chain into another one.
func TestCommandsOnS3(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		bucket := newName("commands")
		store.makeBucket(t, bucket, true)
		store.putRetention(t, bucket, "COMPLIANCE", 1)
		testCommands(t, backupStore{
			args: []string{"--bucket-secret", secretFile(t, store.secret()), "--bucket", bucket}, locked: true,
			layout: func(ctx context.Context, prefix string) (env.Layout, error) {
				return env.ReadS3Layout(ctx, store.Client, bucket, prefix)
			},
			put: func(t *testing.T, key string, data []byte) {
				t.Helper()
				_, err := store.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(data)})
				must(t, err)
			},
			get: func(t *testing.T, key, version string) []byte {
				t.Helper()
				out, err := store.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key, VersionId: &version})
				must(t, err)
				var data bytes.Buffer
				_, err = data.ReadFrom(out.Body)
				must(t, err)
				return data.Bytes()
			},
		})
	})
}

func TestCommandsOnAzure(t *testing.T) {
	t.Parallel()
	d := startAzureDaemon(t)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	secret := getSecret(t, gardenNamespace, generatedName(bucket)).Data
	testCommands(t, backupStore{
		args: []string{"--bucket-secret", secretFile(t, secret), "--bucket", bucket, "--azure-cloud-config", azure.CloudConfig,
			"--cloud", azure.CloudName},
		env: d.env,
		layout: func(ctx context.Context, prefix string) (env.Layout, error) {
			client, err := azure.Blobs(azureAccountName(bucket))
			if err != nil {
				return env.Layout{}, err
			}
			return env.ReadAzureLayout(ctx, client.ServiceClient().NewContainerClient(bucket), prefix)
		},
		put: func(t *testing.T, key string, data []byte) {
			t.Helper()
			must(t, azure.PutBlob(t.Context(), bucket, key, data))
		},
		get: func(t *testing.T, key, _ string) []byte {
			t.Helper()
			client, err := azure.Blobs(azureAccountName(bucket))
			must(t, err)
			out, err := client.DownloadStream(t.Context(), bucket, key, nil)
			must(t, err)
			var data bytes.Buffer
			_, err = data.ReadFrom(out.Body)
			must(t, err)
			return data.Bytes()
		},
	})
}

// secretFile writes a Secret as kubectl get -o yaml shows it.
func secretFile(t *testing.T, data map[string][]byte) string {
	t.Helper()
	encoded := map[string]string{}
	for key, value := range data {
		encoded[key] = base64.StdEncoding.EncodeToString(value)
	}
	text, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "Secret", "data": encoded})
	must(t, err)
	file := filepath.Join(t.TempDir(), "secret.yaml")
	must(t, os.WriteFile(file, text, 0o600))
	return file
}

// runCommand runs a command of the binary and checks its exit code.
func runCommand(t *testing.T, environment []string, code int, args ...string) (out, errOut string) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), timeout, errors.New("the command does not end"))
	defer cancel()
	cmd := exec.CommandContext(ctx, binaries.Daemon, args...)
	cmd.Env = append(os.Environ(), environment...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%q: exit code %d, want %d\n%s%s", args, got, code, stdout.String(), stderr.String())
	}
	if strings.Contains(stderr.String(), "DATA RACE") {
		t.Errorf("%q: %s", args, stderr.String())
	}
	return stdout.String(), stderr.String()
}

// shownChain is what snapshots -o json tells.
type shownChain struct {
	Complete  bool
	Revision  int64
	Snapshots []struct {
		Name, Key, Kind, Excluded, Locked, Version string
		FirstRevision, LastRevision                int64
		InChain                                    bool
		LockedUntil                                time.Time
	}
	Problems []struct{ Kind, Problem, Cure string }
}

func (b *backupStore) show(t *testing.T, entry string, code int) (c shownChain) {
	t.Helper()
	out, _ := runCommand(t, b.env, code, append([]string{"snapshots", entry, "-o", "json"}, b.args...)...)
	must(t, json.Unmarshal([]byte(out), &c))
	return c
}

// restore restores what the command calls the chain into a real etcd, which has to end at the revision that the command says.
func (b *backupStore) restore(t *testing.T, entry string, want int64) {
	t.Helper()
	c := b.show(t, entry, 0)
	if !c.Complete || c.Revision != want {
		t.Fatalf("the chain is %+v, want revision %d", c, want)
	}
	var chain []env.EtcdSnapshot
	var keys []string
	for i := len(c.Snapshots) - 1; i >= 0; i-- { // the oldest first
		if s := c.Snapshots[i]; s.InChain {
			keys = append(keys, s.Key)
			chain = append(chain, env.EtcdSnapshot{Name: s.Name, First: s.FirstRevision, Last: s.LastRevision, Compression: ending(s.Name),
				Content: b.get(t, s.Key, s.Version)})
		}
	}
	// Somebody who has never seen our code says the same.
	layout, err := b.layout(t.Context(), entry+"/")
	must(t, err)
	independent := layout.Restoration(entry + "/etcd-main")
	if independent.Reaches != want || independent.Broken != "" || !slices.Equal(independent.Keys(), keys) {
		t.Errorf("an independent reader says %v to revision %d, broken at %q, want %v to %d", independent.Keys(), independent.Reaches,
			independent.Broken, keys, want)
	}
	tools, err := env.EnsureEtcd(t.Context(), os.Stderr)
	must(t, err)
	restored, err := tools.Restore(t.Context(), chain[0], chain[1:]...)
	must(t, err)
	defer restored.Stop()
	revision, err := restored.Revision(t.Context())
	must(t, err)
	mustEqual(t, "revision of the restored etcd", revision, want)
}

// ending is the compression in a name.
func ending(name string) env.Compression {
	_, rest, _ := strings.Cut(name, ".")
	if rest = strings.TrimSuffix("."+rest, ".final"); rest == "." {
		return env.Uncompressed
	}
	return env.Compression(rest)
}

// testCommands makes the backups of a day in the life of an etcd and works on them.
func testCommands(t *testing.T, b backupStore) {
	ctx := t.Context()
	tools, err := env.EnsureEtcd(ctx, os.Stderr)
	must(t, err)
	etcd, err := tools.Start(ctx)
	must(t, err)
	defer etcd.Stop()
	entry := newName("shoot--p--commands") + "--uid"
	taken := time.Now().Add(-time.Hour)
	tick := func() time.Time {
		taken = taken.Add(5 * time.Minute)
		return taken
	}
	store := func(entry, name string, content []byte) {
		t.Helper()
		b.put(t, entry+"/etcd-main/v2/"+name, content)
	}
	full := func(compression env.Compression) env.EtcdSnapshot {
		t.Helper()
		of, err := etcd.FullSnapshot(ctx, compression, tick())
		must(t, err)
		store(entry, of.Name, of.Content)
		return of
	}
	last := int64(1)
	delta := func(compression env.Compression) string {
		t.Helper()
		first := last + 1
		for i := range 20 {
			ops := []clientv3.Op{clientv3.OpPut(fmt.Sprintf("/registry/%d", i%7), strings.Repeat(string(rune(i)), 2000))}
			if i%5 == 4 {
				ops = append(ops, clientv3.OpDelete(fmt.Sprintf("/registry/%d", (i+1)%7)), clientv3.OpPut("/empty", ""))
			}
			response, err := etcd.Client.Txn(ctx).Then(ops...).Commit()
			must(t, err)
			last = response.Header.Revision
		}
		of, err := etcd.DeltaSnapshot(ctx, first, compression, tick())
		must(t, err)
		store(entry, of.Name, of.Content)
		return of.Name
	}
	delta(env.Uncompressed) // before any full snapshot: not in the chain
	old := full(env.Gzip)
	delta(env.Gzip)
	delta(env.Zlib)
	beforeSecond := last
	secondFull := full(env.LZW).Name
	delta(env.Uncompressed)
	afterFirst := last
	dropped := delta(env.Gzip)
	delta(env.LZW)
	now, err := etcd.Revision(ctx)
	must(t, err)

	verify := func(code int, want string, flags ...string) (out, errOut string) {
		t.Helper()
		out, errOut = runCommand(t, b.env, code, append(append([]string{"verify", entry}, flags...), b.args...)...)
		if !strings.Contains(out, want) {
			t.Fatalf("got\n%s%s\nwant %q", out, errOut, want)
		}
		return out, errOut
	}
	verify(0, "complete  ")
	out, errOut := verify(0, "complete and intact", "--deep")
	if !strings.Contains(out, fmt.Sprintf("  %d  ", now)) || strings.Count(errOut, ": intact, ") != 4 {
		t.Errorf("%s%s", out, errOut)
	}
	b.restore(t, entry, now)
	for _, s := range b.show(t, entry, 0).Snapshots {
		if b.locked && s.InChain && (s.Locked != "yes" || s.LockedUntil.Before(time.Now().Add(20*time.Hour))) {
			t.Errorf("%s is locked: %s, until %s", s.Name, s.Locked, s.LockedUntil)
		}
	}
	exclude := func(command, snapshot string) string {
		t.Helper()
		_, errOut := runCommand(t, b.env, 0, append([]string{command, entry, snapshot, "--yes"}, b.args...)...)
		return errOut
	}
	// A delta goes with the one behind it.
	if text := exclude("exclude", dropped); !strings.Contains(text, fmt.Sprintf("Read back: Complete: a restore takes 1 full and 1 delta snapshots and ends at revision %d", afterFirst)) {
		t.Error(text)
	}
	b.restore(t, entry, afterFirst)
	// A full goes with those behind it, and the chain before it is taken.
	exclude("exclude", secondFull)
	b.restore(t, entry, beforeSecond)
	verify(0, "complete and intact", "--deep")
	// And all comes back.
	exclude("include", secondFull)
	b.restore(t, entry, now)
	verify(0, "complete and intact", "--deep")

	// A forged full snapshot: old content under a high revision.
	forged := env.FullName(9999998, tick(), env.Gzip, false)
	store(entry, forged, old.Content)
	_, errOut = verify(2, "broken", "--deep")
	if !strings.Contains(errOut, fmt.Sprintf("%s is not intact: its database is at revision %d and not at 9999998", forged, old.Last)) {
		t.Error(errOut)
	}
	if c := b.show(t, entry, 2); len(c.Problems) != 1 || !strings.Contains(c.Problems[0].Cure, "exclude "+entry+" "+forged) {
		t.Errorf("%+v", c)
	}
	exclude("exclude", forged)
	verify(0, "complete and intact", "--deep")
	b.restore(t, entry, now)

	// Damage in what is stored.
	database, err := env.Decompress(old.Content, old.Compression)
	must(t, err)
	for _, damage := range []struct {
		what        string
		compression env.Compression
		do          func([]byte) []byte
		want        string
	}{
		{"cut off", env.Gzip, func(data []byte) []byte { return data[:len(data)-len(data)/3] }, "cut off"},
		{"flipped", env.Zlib, func(data []byte) []byte { data[len(data)/2] ^= 8; return data }, "not intact"},
		{"empty", env.Uncompressed, func([]byte) []byte { return nil }, "is empty"},
	} {
		other := newName("shoot--p--damaged") + "--uid"
		content, err := env.Compress(database, damage.compression)
		must(t, err)
		store(other, env.FullName(old.Last, tick(), damage.compression, false), damage.do(content))
		out, errOut := runCommand(t, b.env, 2, append([]string{"verify", other, "--deep"}, b.args...)...)
		if !strings.Contains(out, "broken") || !strings.Contains(errOut, damage.want) {
			t.Errorf("%s: %s%s", damage.what, out, errOut)
		}
	}
	// All of the bucket, where some are damaged.
	out, _ = runCommand(t, b.env, 2, append([]string{"verify", "--all"}, b.args...)...)
	if strings.Count(out, "\n") != 5 {
		t.Error(out)
	}
}

// Through the API server: the entry says where its backups are and which policy they have, and hears who has excluded them.
func TestCommandsThroughTheAPIServer(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, d *daemon, entry, bucket string) {
		t.Helper()
		snapshot := fmt.Sprintf("Full-00000000-00000100-%d.gz", time.Now().Unix())
		put := func(key string) {
			t.Helper()
			if d.azure != nil {
				must(t, d.azure.PutBlob(t.Context(), bucket, key, []byte("no snapshot")))
				return
			}
			store.putObject(t, bucket, key, time.Time{})
		}
		put(entry + "/etcd-main/v2/" + snapshot)
		b := backupStore{args: append([]string{"--kubeconfig", kube.Kubeconfig, "--type", d.args[0][len("--type="):]}, d.args[2:]...), env: d.env}
		if c := b.show(t, entry, 0); !c.Complete || c.Snapshots[0].Locked != "yes" {
			t.Errorf("%+v", c)
		}
		runCommand(t, b.env, 2, append([]string{"verify", "--deep", entry}, b.args...)...)
		_, errOut := runCommand(t, b.env, 1, append([]string{"exclude", entry, snapshot, "--yes"}, b.args...)...)
		if !strings.Contains(errOut, "no complete chain would be left") {
			t.Error(errOut)
		}
		runCommand(t, b.env, 0, append([]string{"exclude", entry, snapshot, "--yes", "--force", "--reason", "tried out"}, b.args...)...)
		if c := b.show(t, entry, 2); c.Complete || c.Snapshots[0].Excluded != "yes" {
			t.Errorf("%+v", c)
		}
		mustEqual(t, "announced", get(t, entries, entry).GetAnnotations()["bucketwarden/excluded-revisions"], "100")
		awaitEvent(t, "SnapshotsExcluded", entry, "admin excluded 1 snapshots, the oldest with revision 100: tried out")
	}
	t.Run("s3", func(t *testing.T) {
		t.Parallel()
		d := startDaemon(t)
		bucket, entry := newName("commands"), ""
		store.createBucket(t, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		waitHealthy(t, buckets, bucket)
		entry, _ = newShoot(t)
		store.createEntry(t, entryObject(entry, d.kind, bucket))
		waitHealthy(t, entries, entry)
		check(t, d, entry, bucket)
	})
	t.Run("azure", func(t *testing.T) {
		t.Parallel()
		d := startAzureDaemon(t)
		bucket := azureName()
		d.createAzureBucket(t, bucket, days(4, true))
		entry, _ := newShoot(t)
		d.createAzureEntry(t, entry, bucket)
		check(t, d, entry, bucket)
	})
}
