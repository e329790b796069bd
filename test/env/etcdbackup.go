// Backups of a real etcd in the format of etcd-backup-restore, and their restoration into another
// one, as its restorer does it. This is the judge of what bucketwarden says of a backup, so it
// shares no code with bucketwarden.
//
// Sources, in gardener/etcd-backup-restore: names pkg/types/snapstore.go; a full
// pkg/etcdutil/etcdutil.go (TakeAndSaveFullSnapshot), a delta pkg/snapshot/snapshotter/snapshotter.go
// (handleDeltaWatchEvents, TakeDeltaSnapshot); compression pkg/compressor; restoration
// pkg/snapshot/restorer/restorer.go (makeDB, applyFirstDeltaSnapshot, applyEventsToEtcd,
// verifySnapshotRevision).

package env

import (
	"bytes"
	"compress/gzip"
	"compress/lzw"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Compression is the suffix that the name of a snapshot has for it.
type Compression string

// What etcd-backup-restore knows. Gardener uses gzip.
const (
	Uncompressed Compression = ""
	Gzip         Compression = ".gz"
	Zlib         Compression = ".zlib"
	LZW          Compression = ".Z"
)

// lzwLiteralWidth is etcd-backup-restore's.
const lzwLiteralWidth = 8

// EtcdSnapshot is a snapshot as it is stored: Name is behind <entry>/<etcd>/v2/, First and Last are
// the revisions in it, and Content is compressed.
type EtcdSnapshot struct {
	Name        string
	First, Last int64
	Compression Compression
	Content     []byte
}

// FullName is the name of a full snapshot.
func FullName(last int64, created time.Time, compression Compression, final bool) string {
	name := snapshotName("Full", 0, last, created, compression)
	if final {
		name += ".final"
	}
	return name
}

// DeltaName is the name of a delta snapshot.
func DeltaName(first, last int64, created time.Time, compression Compression) string {
	return snapshotName("Incr", first, last, created, compression)
}

func snapshotName(kind string, first, last int64, created time.Time, compression Compression) string {
	return fmt.Sprintf("%s-%08d-%08d-%d%s", kind, first, last, created.Unix(), compression)
}

// FullSnapshot is the database as etcd hands it out, with its hash behind it.
func (e *EtcdServer) FullSnapshot(ctx context.Context, compression Compression, created time.Time) (EtcdSnapshot, error) {
	last, err := e.Revision(ctx)
	if err != nil {
		return EtcdSnapshot{}, err
	}
	reader, err := e.Client.Snapshot(ctx)
	if err != nil {
		return EtcdSnapshot{}, fmt.Errorf("taking a snapshot of etcd: %w", err)
	}
	defer func() { _ = reader.Close() }()
	database, err := io.ReadAll(reader)
	if err != nil {
		return EtcdSnapshot{}, fmt.Errorf("reading a snapshot of etcd: %w", err)
	}
	content, err := Compress(database, compression)
	return EtcdSnapshot{FullName(last, created, compression, false), 0, last, compression, content}, err
}

// ErrNoEvents is the error of a delta snapshot in which nothing would be.
var ErrNoEvents = errors.New("no events")

// snapshotEvent is an event as etcd-backup-restore writes it: etcd's own type with its JSON names,
// which etcd itself never writes.
type snapshotEvent struct {
	EtcdEvent etcdEvent `json:"etcdEvent"`
	Time      time.Time `json:"time"`
}

type etcdEvent struct {
	Type int32    `json:"type,omitempty"`
	KV   *etcdKey `json:"kv,omitempty"`
}

type etcdKey struct {
	Key            []byte `json:"key,omitempty"`
	CreateRevision int64  `json:"create_revision,omitempty"`
	ModRevision    int64  `json:"mod_revision,omitempty"`
	Version        int64  `json:"version,omitempty"`
	Value          []byte `json:"value,omitempty"`
	Lease          int64  `json:"lease,omitempty"`
}

// The types of events.
const (
	eventPut    = 0
	eventDelete = 1
)

// DeltaSnapshot is what happened from revision first on.
func (e *EtcdServer) DeltaSnapshot(ctx context.Context, first int64, compression Compression, created time.Time) (EtcdSnapshot, error) {
	last, err := e.Revision(ctx)
	if err != nil {
		return EtcdSnapshot{}, err
	}
	if last < first {
		return EtcdSnapshot{}, fmt.Errorf("taking a delta snapshot from revision %d on at revision %d: %w", first, last, ErrNoEvents)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var events []snapshotEvent
	reached := int64(0)
	for response := range e.Client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(first)) {
		if err := response.Err(); err != nil {
			return EtcdSnapshot{}, fmt.Errorf("watching etcd from revision %d on: %w", first, err)
		}
		for _, event := range response.Events {
			kv := event.Kv
			events = append(events, snapshotEvent{etcdEvent{int32(event.Type), &etcdKey{
				kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Value, kv.Lease,
			}}, created.UTC()})
			reached = kv.ModRevision
		}
		if reached >= last {
			break
		}
	}
	if reached < last {
		return EtcdSnapshot{}, fmt.Errorf("watching etcd from revision %d to %d: it ended at %d: %w", first, last, reached, context.Cause(ctx))
	}
	data, err := json.Marshal(events)
	if err != nil {
		return EtcdSnapshot{}, fmt.Errorf("encoding events: %w", err)
	}
	hash := sha256.Sum256(data)
	content, err := Compress(append(data, hash[:]...), compression)
	return EtcdSnapshot{DeltaName(first, reached, created, compression), first, reached, compression, content}, err
}

// Compress compresses as etcd-backup-restore does.
func Compress(data []byte, compression Compression) ([]byte, error) {
	var buffer bytes.Buffer
	var writer io.WriteCloser
	switch compression {
	case Uncompressed:
		return data, nil
	case Gzip:
		writer = gzip.NewWriter(&buffer)
	case Zlib:
		writer = zlib.NewWriter(&buffer)
	case LZW:
		writer = lzw.NewWriter(&buffer, lzw.LSB, lzwLiteralWidth)
	default:
		return nil, fmt.Errorf("unknown compression %q", compression)
	}
	if _, err := writer.Write(data); err != nil {
		return nil, fmt.Errorf("compressing: %w", err)
	}
	if err := writer.Close(); err != nil {
		return nil, fmt.Errorf("compressing: %w", err)
	}
	return buffer.Bytes(), nil
}

// Decompress is the reverse of Compress.
func Decompress(content []byte, compression Compression) ([]byte, error) {
	var reader io.Reader
	var err error
	switch compression {
	case Uncompressed:
		return content, nil
	case Gzip:
		reader, err = gzip.NewReader(bytes.NewReader(content))
	case Zlib:
		reader, err = zlib.NewReader(bytes.NewReader(content))
	case LZW:
		reader = lzw.NewReader(bytes.NewReader(content), lzw.LSB, lzwLiteralWidth)
	default:
		err = fmt.Errorf("unknown compression %q", compression)
	}
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	data, err := io.ReadAll(reader)
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	return data, nil
}

// RevisionError is the error of a restoration that is not where a delta snapshot says that it is
// after it: one is missing, or two overlap.
type RevisionError struct {
	Snapshot          string
	Expected, Applied int64
}

func (e *RevisionError) Error() string {
	return fmt.Sprintf("mismatched event revision while applying delta snapshot %s, expected %d but applied %d", e.Snapshot, e.Expected,
		e.Applied)
}

// Restore starts an etcd with the content of a full snapshot and of the deltas behind it, in the
// order given.
func (t EtcdTools) Restore(ctx context.Context, full EtcdSnapshot, deltas ...EtcdSnapshot) (_ *EtcdServer, err error) {
	e, err := t.start(ctx, func(dataDir string) error { return t.restoreFull(ctx, full, dataDir) })
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.Stop()
		}
	}()
	for i, delta := range deltas {
		if err := e.applyDelta(ctx, delta, i == 0); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// restoreFull makes a data directory. etcdutl compares the hash, and fails where there is none.
func (t EtcdTools) restoreFull(ctx context.Context, full EtcdSnapshot, dataDir string) error {
	database, err := Decompress(full.Content, full.Compression)
	if err != nil {
		return fmt.Errorf("restoring %s: %w", full.Name, err)
	}
	// Not in the data directory, which etcdutl makes.
	path := filepath.Join(filepath.Dir(dataDir), "full.db")
	if err := os.WriteFile(path, database, 0o600); err != nil {
		return fmt.Errorf("restoring %s: %w", full.Name, err)
	}
	cmd := exec.CommandContext(ctx, t.Etcdutl, "snapshot", "restore", path, "--data-dir="+dataDir,
		"--initial-cluster="+etcdCluster, "--initial-advertise-peer-urls="+etcdPeer)
	cmd.Dir = filepath.Dir(dataDir)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("restoring %s: %w\n%s", full.Name, err, bytes.TrimSpace(output))
	}
	return os.Remove(path)
}

// applyDelta applies a delta. Of the first one, events that the full already has are left out. Where
// the full has all of them, the restorer applies them all, which fails afterwards.
func (e *EtcdServer) applyDelta(ctx context.Context, delta EtcdSnapshot, first bool) error {
	events, err := deltaEvents(delta)
	if err != nil {
		return fmt.Errorf("reading %s: %w", delta.Name, err)
	}
	if first {
		revision, err := e.Revision(ctx)
		if err != nil {
			return err
		}
		for i, event := range events {
			if event.EtcdEvent.KV.ModRevision > revision {
				events = events[i:]
				break
			}
		}
	}
	if err := e.applyEvents(ctx, events); err != nil {
		return fmt.Errorf("applying %s: %w", delta.Name, err)
	}
	revision, err := e.Revision(ctx)
	if err != nil {
		return err
	}
	if revision != delta.Last {
		return &RevisionError{delta.Name, delta.Last, revision}
	}
	return nil
}

// deltaEvents reads a delta: decompressed, hash compared, decoded.
func deltaEvents(delta EtcdSnapshot) (events []snapshotEvent, err error) {
	data, err := Decompress(delta.Content, delta.Compression)
	if err != nil {
		return nil, err
	}
	if len(data) <= sha256.Size {
		return nil, errors.New("the hash is missing")
	}
	data, stored := data[:len(data)-sha256.Size], data[len(data)-sha256.Size:]
	if hash := sha256.Sum256(data); !bytes.Equal(hash[:], stored) {
		return nil, fmt.Errorf("expected SHA-256 %x, got %x", stored, hash)
	}
	if err := json.Unmarshal(data, &events); err != nil {
		return nil, fmt.Errorf("decoding events: %w", err)
	}
	for _, event := range events {
		if event.EtcdEvent.KV == nil {
			return nil, errors.New("an event without a key")
		}
	}
	return events, nil
}

// applyEvents makes one transaction of all events of one revision. Leases are left out.
func (e *EtcdServer) applyEvents(ctx context.Context, events []snapshotEvent) error {
	var ops []clientv3.Op
	last := int64(0)
	commit := func() error {
		_, err := e.Client.Txn(ctx).Then(ops...).Commit()
		ops = nil
		return err
	}
	for _, event := range events {
		kv := event.EtcdEvent.KV
		if last != 0 && kv.ModRevision > last {
			if err := commit(); err != nil {
				return err
			}
		}
		last = kv.ModRevision
		switch event.EtcdEvent.Type {
		case eventPut:
			ops = append(ops, clientv3.OpPut(string(kv.Key), string(kv.Value)))
		case eventDelete:
			ops = append(ops, clientv3.OpDelete(string(kv.Key)))
		default:
			return fmt.Errorf("unexpected type %d of an event", event.EtcdEvent.Type)
		}
	}
	return commit()
}
