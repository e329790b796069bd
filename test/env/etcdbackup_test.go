// Backups of a real etcd, restored into another one: what must come back does, and what breaks a
// chain breaks the restore.

package env

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// startedEtcd is an etcd for a test.
func startedEtcd(t *testing.T) (EtcdTools, *EtcdServer) {
	t.Helper()
	tools, err := EnsureEtcd(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	etcd, err := tools.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Stop)
	return tools, etcd
}

// change makes changes of every kind: three puts, one of them of a key that was there; a deletion;
// and a transaction, which is one revision: five revisions.
func change(t *testing.T, etcd *EtcdServer, round int) {
	t.Helper()
	for i := range 3 {
		if _, err := etcd.Put(t.Context(), fmt.Sprintf("/registry/%d", round*2+i), fmt.Sprintf("round %d \x00\xff%s", round, strings.Repeat("x", 100*i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := etcd.Delete(t.Context(), fmt.Sprintf("/registry/%d", round*2)); err != nil {
		t.Fatal(err)
	}
	ops := []clientv3.Op{clientv3.OpDelete(fmt.Sprintf("/registry/%d", round*2+1))}
	for i := range 10 {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("/together/%d", i), fmt.Sprint(round)))
	}
	if _, err := etcd.Txn(t.Context()).Then(ops...).Commit(); err != nil {
		t.Fatal(err)
	}
}

// backup is a full snapshot and three deltas behind it.
func backup(t *testing.T, etcd *EtcdServer, compressions ...Compression) (full EtcdSnapshot, deltas []EtcdSnapshot) {
	t.Helper()
	change(t, etcd, 0)
	full, err := etcd.FullSnapshot(t.Context(), compressions[0], time.Unix(1700000000, 0))
	if err != nil {
		t.Fatal(err)
	}
	last := full.Last
	for i := 1; i <= 3; i++ {
		change(t, etcd, i)
		delta, err := etcd.DeltaSnapshot(t.Context(), last+1, compressions[i%len(compressions)], time.Unix(1700000000+int64(i)*300, 0))
		if err != nil {
			t.Fatal(err)
		}
		last = delta.Last
		deltas = append(deltas, delta)
	}
	return full, deltas
}

func TestEtcdBackup(t *testing.T) {
	t.Parallel()
	tools, etcd := startedEtcd(t)
	full, deltas := backup(t, etcd, Gzip, Zlib, LZW, Uncompressed)
	if _, err := etcd.DeltaSnapshot(t.Context(), deltas[2].Last+1, Gzip, time.Now()); !errors.Is(err, ErrNoEvents) {
		t.Errorf("a delta of an idle etcd: %v", err)
	}
	want, err := etcd.Content(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	restored := func(t *testing.T, full EtcdSnapshot, deltas ...EtcdSnapshot) (int64, map[string]string, error) {
		t.Helper()
		etcd, err := tools.Restore(t.Context(), full, deltas...)
		if err != nil {
			return 0, nil, err
		}
		defer etcd.Stop()
		revision, err := etcd.Revision(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		content, err := etcd.Content(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return revision, content, nil
	}

	t.Run("names", func(t *testing.T) {
		// etcd begins at revision 1, and each round is five.
		for i, name := range []string{
			"Full-00000000-00000006-1700000000.gz", "Incr-00000007-00000011-1700000300.zlib",
			"Incr-00000012-00000016-1700000600.Z", "Incr-00000017-00000021-1700000900",
		} {
			if got := append([]EtcdSnapshot{full}, deltas...)[i].Name; got != name {
				t.Errorf("it is %s, want %s", got, name)
			}
		}
	})
	t.Run("whole", func(t *testing.T) {
		t.Parallel()
		revision, content, err := restored(t, full, deltas...)
		if err != nil {
			t.Fatal(err)
		}
		if revision != 21 || !maps.Equal(content, want) {
			t.Errorf("at revision %d with %d keys, want 21 with %d, all the same", revision, len(content), len(want))
		}
	})
	t.Run("full alone", func(t *testing.T) {
		t.Parallel()
		if revision, _, err := restored(t, full); err != nil || revision != 6 {
			t.Errorf("revision %d, %v, want 6", revision, err)
		}
	})
	t.Run("first delta begins before the full", func(t *testing.T) {
		t.Parallel()
		early, err := etcd.DeltaSnapshot(t.Context(), 4, Gzip, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if revision, content, err := restored(t, full, early); err != nil || revision != 21 || !maps.Equal(content, want) {
			t.Errorf("revision %d, %v, want 21 with all keys", revision, err)
		}
	})

	// What breaks a chain.
	overlapping, err := etcd.DeltaSnapshot(t.Context(), 16, Gzip, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	inFull := deltas[0]
	later, err := etcd.FullSnapshot(t.Context(), Gzip, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		full    EtcdSnapshot
		deltas  []EtcdSnapshot
		at      string
		applied int64
	}{
		{"first delta missing", full, deltas[1:], deltas[1].Name, 11},
		{"delta in the middle missing", full, []EtcdSnapshot{deltas[0], deltas[2]}, deltas[2].Name, 16},
		{"deltas overlap", full, []EtcdSnapshot{deltas[0], deltas[1], overlapping}, overlapping.Name, 22},
		{"first delta has nothing that the full has not", later, []EtcdSnapshot{inFull}, inFull.Name, 26},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := restored(t, test.full, test.deltas...)
			var mismatch *RevisionError
			if !errors.As(err, &mismatch) || mismatch.Snapshot != test.at || mismatch.Applied != test.applied {
				t.Errorf("%v, want a mismatch at %s with %d applied", err, test.at, test.applied)
			}
		})
	}

	damaged := func(s EtcdSnapshot, damage func(data []byte) []byte) EtcdSnapshot {
		data, err := Decompress(s.Content, s.Compression)
		if err != nil {
			t.Fatal(err)
		}
		if s.Content, err = Compress(damage(bytes.Clone(data)), s.Compression); err != nil {
			t.Fatal(err)
		}
		return s
	}
	flip := func(data []byte) []byte { data[len(data)/2] ^= 1; return data }
	unhashed := func(data []byte) []byte { return data[:len(data)-32] }
	truncated := full
	truncated.Content = full.Content[:len(full.Content)/2]
	for _, test := range []struct {
		name   string
		full   EtcdSnapshot
		deltas []EtcdSnapshot
	}{
		{"full with a bit flipped", damaged(full, flip), nil},
		{"full without its hash", damaged(full, unhashed), nil},
		{"full cut off", truncated, nil},
		{"delta with a bit flipped", full, []EtcdSnapshot{damaged(deltas[0], flip)}},
		{"delta without its hash", full, []EtcdSnapshot{damaged(deltas[0], unhashed)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := restored(t, test.full, test.deltas...)
			if mismatch := (*RevisionError)(nil); err == nil || errors.As(err, &mismatch) {
				t.Errorf("restored: %v", err)
			}
		})
	}
}
