package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"bucketwarden/test/env"
)

// TestRandomizedDeletion lets clusters come, go and move between two seeds that share an
// Azure, and looks after each step whether anything that lives was deleted, or anything
// that is retained was forgotten. BUCKETWARDEN_TEST_SEED repeats the choices of a run.
func TestRandomizedDeletion(t *testing.T) {
	t.Parallel()
	const steps = 500
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("BUCKETWARDEN_TEST_SEED"); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		must(t, err)
	}
	t.Logf("BUCKETWARDEN_TEST_SEED=%d", seed)
	a := startAzure(t)
	w := &world{t: t, azure: a, random: rand.New(rand.NewPCG(seed, 0)), counts: map[string]int{}}
	kube2, err := env.StartKube(t.Context(), binaries.Testkube)
	must(t, err)
	t.Cleanup(kube2.Stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the steps were:\n%s", strings.Join(w.history, "\n"))
		}
	})
	for i, k := range []*env.Kube{kube, kube2} {
		w.seeds[i] = w.startSeed(k, azureName())
	}
	for i := range 5 {
		// Some are prefixes of others.
		name := newName("shoot--r--s") + "--1"
		if i%2 == 1 {
			name = w.shoots[i-1].name + "0"
		}
		s := &shoot{name: name, home: -1}
		w.shoots = append(w.shoots, s)
		for _, seed := range w.seeds {
			foreign := []string{"foreign/" + name, name + "-x", "source-" + name + "/x"}
			must(t, a.PutBlobs(t.Context(), seed.bucket, foreign...))
			for _, blob := range foreign {
				seed.kept[blob] = true
			}
		}
	}
	for i := range steps {
		begun := time.Now()
		what := w.step()
		w.counts[strings.Fields(what)[0]]++
		w.history = append(w.history, fmt.Sprintf("%d, %s, %v: %s", i, begun.Format(time.RFC3339Nano), time.Since(begun), what))
		w.check()
		if t.Failed() {
			t.FailNow()
		}
	}
	w.finish()
	log := w.seeds[0].daemon.allLogs() + w.seeds[1].daemon.allLogs()
	for _, line := range []string{"Left a tombstone", "Revoked the tombstone", "Deleted objects whose retention has ended"} {
		w.counts[line] = strings.Count(log, line)
		if w.counts[line] == 0 {
			t.Errorf("%q did not happen: the test shows nothing", line)
		}
	}
	t.Logf("%d steps: %v", steps, w.counts)
}

// world is what a randomized test plays with.
type world struct {
	t      *testing.T
	azure  *env.Azure
	random *rand.Rand
	seeds  [2]*seed
	shoots []*shoot
	counts map[string]int
	blobs  int
	// history is for the log of a failure.
	history []string
}

// seed is an API server with a daemon and a bucket of its own.
type seed struct {
	env.Gardenlet
	daemon *daemon
	bucket string
	held   bool
	// kept are the blobs that must be there: those of living entries and of others.
	kept map[string]bool
	// going are the entries whose deletion was begun and not seen to end.
	going map[string]bool
}

// shoot is a cluster.
type shoot struct {
	name string
	// home is the seed of its BackupEntry, -1 if there is none.
	home int
	// source says that there is a BackupEntry source-<name> on home, for the bucket of the
	// other seed.
	source bool
}

func (w *world) startSeed(k *env.Kube, bucket string) *seed {
	w.t.Helper()
	ctx := w.t.Context()
	s := &seed{Gardenlet: env.Gardenlet{Kube: k}, bucket: bucket, kept: map[string]bool{}, going: map[string]bool{}}
	must(w.t, s.Namespace(ctx, gardenNamespace))
	s.daemon = startDaemonOn(w.t, w.azure, "--kubeconfig="+k.Kubeconfig)
	must(w.t, s.Secret(ctx, "bucket-"+bucket, w.azure.SecretData()))
	config := env.BucketConfig(s.daemon.kind, days(2, true))
	config["cloudConfiguration"] = map[string]any{"name": w.azure.CloudName}
	must(w.t, s.Bucket(ctx, bucket, s.daemon.kind, azureRegion, config))
	_, err := k.WaitFor(ctx, timeout, buckets, "", bucket, env.Healthy)
	must(w.t, err)
	return s
}

// chance is true in so many of a hundred cases.
func (w *world) chance(percent int) bool { return w.random.IntN(100) < percent }

func (w *world) step() string {
	s := w.shoots[w.random.IntN(len(w.shoots))]
	switch n := w.random.IntN(100); {
	case n < 42 && s.home >= 0:
		return w.write(s)
	case n < 54:
		d := time.Duration(1+w.random.IntN(30)) * time.Hour
		w.azure.Advance(d)
		return "advance " + d.String()
	case n < 57:
		i := w.random.IntN(2)
		w.restart(w.seeds[i])
		return fmt.Sprintf("kill seed %d", i)
	case n < 60:
		seed := w.seeds[w.random.IntN(2)]
		if seed.held {
			must(w.t, w.azure.ClearLegalHold(seed.bucket, "case1"))
		} else {
			must(w.t, w.azure.SetLegalHold(seed.bucket, "case1"))
		}
		seed.held = !seed.held
		return fmt.Sprintf("hold %s %v", seed.bucket, seed.held)
	case n < 65:
		return w.fail()
	case s.home < 0:
		s.home = w.random.IntN(2)
		w.create(w.seeds[s.home], s.name, w.seeds[s.home], "reconcile")
		return fmt.Sprintf("create %s on seed %d", s.name, s.home)
	case n < 70:
		must(w.t, w.seeds[s.home].Reconcile(w.t.Context(), entries, s.name, nil))
		w.awaitEntry(w.seeds[s.home], s.name, env.Healthy)
		return "reconcile " + s.name
	case n < 79 && !s.source:
		w.delete(w.seeds[s.home], s.name, w.seeds[s.home])
		s.home = -1
		return "delete " + s.name
	default:
		return w.move(s)
	}
}

// write writes snapshots of a cluster that lives.
func (w *world) write(s *shoot) string {
	seed := w.seeds[s.home]
	for range 1 + w.random.IntN(3) {
		w.blobs++
		blob := fmt.Sprintf("%s/etcd-main/v2/Full-%06d", s.name, w.blobs)
		must(w.t, w.azure.PutBlob(w.t.Context(), seed.bucket, blob, []byte("x")))
		seed.kept[blob] = true
	}
	return "write " + s.name
}

// fail makes Azure fail some requests to a bucket from now on, instead of others before:
// several together outlast the retries.
func (w *world) fail() string {
	w.azure.ClearFaults()
	faults := []env.AzureFault{{Status: http.StatusInternalServerError}, {Status: http.StatusServiceUnavailable}, {Drop: true}, {DropAnswer: true}}
	fault := faults[w.random.IntN(len(faults))]
	fault.Plane = env.PlaneBlob
	fault.Operation = []string{"ListBlobs", "BlobBatch", "PutBlob", "DeleteBlob"}[w.random.IntN(4)]
	fault.PathContains = w.seeds[w.random.IntN(2)].bucket
	fault.Times = 1 + w.random.IntN(3)
	w.azure.Fail(fault)
	return fmt.Sprintf("fail %s of %s %d times (%d, %v, %v)", fault.Operation, fault.PathContains, fault.Times, fault.Status, fault.Drop, fault.DropAnswer)
}

func (w *world) restart(s *seed) {
	w.t.Helper()
	s.daemon.Kill()
	s.daemon.start(w.t)
}

// move finishes a migration, or begins one: the backups are copied to the bucket of the
// other seed, and deleted from the old one with the source entry.
func (w *world) move(s *shoot) string {
	ctx := w.t.Context()
	home, other := w.seeds[s.home], w.seeds[1-s.home]
	if s.source {
		w.delete(home, "source-"+s.name, other)
		s.source = false
		return "copied " + s.name
	}
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"migrate",%q:%q}}}`, annotationOperation, annotationTimestamp, timestamp())
	_, err := home.Kube.Dynamic.Resource(entries).Patch(ctx, s.name, "application/merge-patch+json", patch, metav1.PatchOptions{})
	must(w.t, err)
	w.killSometimes(home)
	w.awaitEntry(home, s.name, func(o *unstructured.Unstructured) error {
		if o == nil || str(o, "status", "lastOperation", "type") != "Migrate" || str(o, "status", "lastOperation", "state") != "Succeeded" || len(o.GetFinalizers()) > 0 {
			return errors.New("it is not migrated")
		}
		return nil
	})
	must(w.t, home.Delete(ctx, entries, s.name))
	w.awaitGone(home, s.name)
	s.home = 1 - s.home
	w.create(other, s.name, other, "restore")
	w.create(other, "source-"+s.name, home, "reconcile")
	s.source = true
	return fmt.Sprintf("migrate %s to seed %d", s.name, s.home)
}

func (w *world) killSometimes(s *seed) {
	if w.chance(6) {
		w.restart(s)
	}
}

// create creates an entry for a bucket. What lies under its prefix then belongs to it.
func (w *world) create(on *seed, name string, of *seed, operation string) {
	w.t.Helper()
	w.settle(on, name)
	// A deletion that is still going on elsewhere is one of the prefix as well.
	base := strings.TrimPrefix(name, "source-")
	for _, s := range w.seeds {
		w.settle(s, base)
		w.settle(s, "source-"+base)
	}
	ctx := w.t.Context()
	generated, err := of.Kube.Client.CoreV1().Secrets(gardenNamespace).Get(ctx, generatedName(of.bucket), metav1.GetOptions{})
	must(w.t, err)
	if err := on.Secret(ctx, "entry-"+name, generated.Data); !apierrors.IsAlreadyExists(err) {
		must(w.t, err)
	}
	o := newObject("BackupEntry", name, map[string]any{
		"type": on.daemon.kind, "region": azureRegion, "bucketName": of.bucket,
		"secretRef": map[string]any{"name": "entry-" + name, "namespace": gardenNamespace},
	})
	// Some know of the policy, some find out.
	if w.chance(50) {
		set(o, map[string]any{"immutability": map[string]any{"retentionType": "bucket", "retentionPeriod": "48h", "locked": true}}, "spec", "backupBucketProviderStatus")
	}
	annotate(o, annotationOperation, operation)
	annotate(o, annotationTimestamp, timestamp())
	_, err = on.Kube.Dynamic.Resource(entries).Create(ctx, o, metav1.CreateOptions{})
	must(w.t, err)
	w.killSometimes(on)
	w.awaitEntry(on, name, env.Healthy)
	list := w.list(of, "")
	if mark := newestMark(list, base); strings.HasPrefix(mark, tombstones+base+"/deleted-") {
		w.t.Errorf("%s is ready while its newest mark is a tombstone: %s", name, mark)
	}
	for _, blob := range list {
		if strings.HasPrefix(blob.Name, base+"/") {
			of.kept[blob.Name] = true
		}
	}
}

// delete deletes an entry, and most often does not wait for the end.
func (w *world) delete(on *seed, name string, of *seed) {
	w.t.Helper()
	base := strings.TrimPrefix(name, "source-")
	maps.DeleteFunc(of.kept, func(blob string, _ bool) bool { return strings.HasPrefix(blob, base+"/") })
	must(w.t, on.Delete(w.t.Context(), entries, name))
	on.going[name] = true
	w.killSometimes(on)
	if w.chance(30) {
		w.settle(on, name)
	}
}

func (w *world) awaitEntry(s *seed, name string, condition func(*unstructured.Unstructured) error) {
	w.t.Helper()
	_, err := s.Kube.WaitFor(w.t.Context(), timeout, entries, "", name, condition)
	must(w.t, err)
}

func (w *world) awaitGone(s *seed, name string) {
	w.t.Helper()
	w.awaitEntry(s, name, func(o *unstructured.Unstructured) error {
		if o != nil {
			return errors.New("it still exists")
		}
		return nil
	})
}

// settle waits until a deletion that was begun has ended.
func (w *world) settle(s *seed, name string) {
	w.t.Helper()
	if s.going[name] {
		w.awaitGone(s, name)
		delete(s.going, name)
	}
}

func (w *world) list(s *seed, prefix string) []env.AzureBlob {
	w.t.Helper()
	list, err := w.azure.ListBlobs(w.t.Context(), s.bucket, prefix)
	must(w.t, err)
	return list
}

// newestMark is the newest of an entry's marks among the blobs, empty if there is none.
func newestMark(list []env.AzureBlob, entry string) string {
	var newest env.AzureBlob
	for _, blob := range list {
		// Of two of the same time the revocation counts.
		if strings.HasPrefix(blob.Name, tombstones+entry+"/") && cmp.Or(blob.Created.Compare(newest.Created), cmp.Compare(blob.Name, newest.Name)) > 0 {
			newest = blob
		}
	}
	return newest.Name
}

// forgotten are how many blobs of an entry are left that no tombstone stands for.
func forgotten(list []env.AzureBlob, entry string) int {
	left := 0
	for _, blob := range list {
		if strings.HasPrefix(blob.Name, entry+"/") {
			left++
		}
	}
	if strings.HasPrefix(newestMark(list, entry), tombstones+entry+"/deleted-") {
		return 0
	}
	return left
}

// check checks what must hold at any time.
func (w *world) check() {
	w.t.Helper()
	for _, s := range w.seeds {
		for name := range s.going {
			_, err := s.Kube.Dynamic.Resource(entries).Get(w.t.Context(), name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				delete(s.going, name)
			} else {
				must(w.t, err)
			}
		}
	}
	for i, s := range w.seeds {
		list := w.list(s, "")
		have := map[string]bool{}
		for _, blob := range list {
			have[blob.Name] = true
		}
		for blob := range s.kept {
			if !have[blob] {
				w.t.Errorf("%s is gone from the bucket of seed %d", blob, i)
			}
		}
		// What is left of an entry that is gone must be remembered.
		for _, shoot := range w.shoots {
			used := shoot.home == i || shoot.home == 1-i && shoot.source
			for _, other := range w.seeds {
				used = used || other.going[shoot.name] || other.going["source-"+shoot.name]
			}
			if n := forgotten(list, shoot.name); n > 0 && !used {
				w.t.Errorf("%d blobs of %s in the bucket of seed %d are forgotten, its newest mark is %q", n, shoot.name, i, newestMark(list, shoot.name))
			}
		}
	}
}

// finish deletes everything and lets it become deletable: nothing of ours may stay.
func (w *world) finish() {
	w.t.Helper()
	w.azure.ClearFaults()
	for _, s := range w.seeds {
		if s.held {
			must(w.t, w.azure.ClearLegalHold(s.bucket, "case1"))
		}
	}
	for _, s := range w.shoots {
		if s.source {
			w.delete(w.seeds[s.home], "source-"+s.name, w.seeds[1-s.home])
		}
		if s.home >= 0 {
			w.delete(w.seeds[s.home], s.name, w.seeds[s.home])
		}
		s.home, s.source = -1, false
	}
	for _, s := range w.seeds {
		for name := range maps.Clone(s.going) {
			w.settle(s, name)
		}
	}
	w.check()
	// Revocations stay for 30 days.
	w.azure.Advance(31 * day)
	for i, s := range w.seeds {
		eventually(w.t, fmt.Sprintf("nothing is left in the bucket of seed %d but what others wrote", i), func(ctx context.Context) error {
			list, err := w.azure.ListBlobs(ctx, s.bucket, "")
			if err != nil {
				return err
			}
			var left []string
			for _, blob := range list {
				if !s.kept[blob.Name] {
					left = append(left, blob.Name)
				}
			}
			if len(left) > 0 || len(list) != len(s.kept) {
				return fmt.Errorf("%d blobs, want %d; ours are %v", len(list), len(s.kept), left)
			}
			return nil
		})
		s.daemon.awaitValue(w.t, 0, "bucketwarden_backupbucket_tombstones", "bucket="+s.bucket)
		must(w.t, s.Delete(w.t.Context(), buckets, s.bucket))
		_, err := s.Kube.WaitFor(w.t.Context(), timeout, buckets, "", s.bucket, func(o *unstructured.Unstructured) error {
			if o != nil {
				return errors.New("it still exists")
			}
			return nil
		})
		must(w.t, err)
	}
}
