// What is in a snapshot: read once from the store, in constant memory, and compared with its own hash and with its name.
//
// Rules:
//   - Complete and intact is all that can be said of a content; that a restore will work is not.
//   - What is wrong with a content is a sentence; that it could not be read is an error, and says nothing about it.
//   - Nobody who can write to a bucket fills our memory or our disk: what comes out of an object is bounded by what goes in,
//     and what is kept of an event is bounded.
//   - A database is opened from a file that has no name any more: it holds all secrets of a cluster.

package main

import (
	"bytes"
	"compress/gzip"
	"compress/lzw"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/binary"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
)

const (
	// contentRatio and contentSlack bound what is unpacked: so many times what is stored, and so much more.
	contentRatio = 100
	contentSlack = 64 << 20
	// maxEvent is the size of an event in a delta. etcd takes requests of 1.5 MiB by default, which are a third longer in base64.
	maxEvent = 32 << 20
	// databaseBlock: the size of a database is a multiple of it, by which etcd finds out that a hash follows
	// (gardener/etcd-backup-restore pkg/snapshot/restorer/restorer.go).
	databaseBlock = 512
	// databaseTime is how long the database may take to be looked at.
	databaseTime = 5 * time.Minute
)

// contentClaim is what the name of a snapshot and the list say about its content.
type contentClaim struct {
	full        bool
	first, last int64
	compression string
	size        int64 // as it is stored
}

// content is what was found in a snapshot.
type content struct {
	// bytes are those of the content, unpacked and without the hash.
	bytes int64
	// events are those of a delta.
	events int64
	// revision is that of the database if it was opened, or that of the last event; zero if it is not known.
	revision int64
	// problem is what is wrong, as a sentence; empty if it is complete and intact.
	problem string
	// gone: there is nothing to be read any more.
	gone bool
}

// checkContent reads the content of a snapshot to its end. With database it opens that of a full one. The error is that it
// could not be read.
func checkContent(ctx context.Context, claim contentClaim, body io.Reader, database bool) (content, error) {
	source := &sourceReader{ctx: ctx, reader: body}
	var c content
	problem, err := c.check(ctx, claim, source, database)
	if source.err != nil {
		return content{}, source.err
	}
	c.problem = problem
	return c, err
}

// check returns what is wrong. Its error is one of this machine.
func (c *content) check(ctx context.Context, claim contentClaim, source *sourceReader, database bool) (problem string, err error) {
	if claim.size == 0 {
		return "it is empty", nil
	}
	unpacked, err := unpack(source, claim.compression)
	if err != nil {
		return unpackProblem(err), nil
	}
	bounded := &boundedReader{reader: unpacked, left: contentSlack + contentRatio*claim.size}
	data := newHashedReader(bounded)
	defer func() { c.bytes = data.size }()
	if claim.full {
		return c.checkFull(ctx, claim, data, database)
	}
	problem, err = c.checkDelta(claim, data)
	if problem != "" && data.err == nil && err == nil {
		// A wrong hash says more than what is wrong behind it.
		_, copyErr := io.Copy(io.Discard, data)
		if hashProblem := data.problem(); copyErr == nil && hashProblem != "" {
			problem = hashProblem
		}
	}
	return problem, err
}

// sourceReader remembers that the object could not be read, which whatever unpacks it may hide.
type sourceReader struct {
	ctx    context.Context
	reader io.Reader
	err    error
}

func (r *sourceReader) Read(buffer []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		r.err = context.Cause(r.ctx)
		return 0, err
	}
	n, err := r.reader.Read(buffer)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// unpack is the reverse of pkg/compressor of etcd-backup-restore.
func unpack(source io.Reader, compression string) (io.Reader, error) {
	switch compression {
	case "":
		return source, nil
	case ".gz":
		return gzip.NewReader(source)
	case ".zlib":
		return zlib.NewReader(source)
	case ".Z":
		return lzw.NewReader(source, lzw.LSB, 8), nil
	}
	return nil, fmt.Errorf("%q is no compression that etcd-backup-restore knows", compression)
}

func unpackProblem(err error) string {
	var limit *contentLimitError
	switch {
	case errors.As(err, &limit):
		return limit.Error()
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "it is cut off: it ends in the middle of the compressed data"
	}
	return fmt.Sprintf("it cannot be unpacked: %v", err)
}

// contentLimitError is that a content is larger than any that can be right.
type contentLimitError struct{ text string }

func (e *contentLimitError) Error() string { return e.text }

// boundedReader ends with an error beyond a size.
type boundedReader struct {
	reader io.Reader
	left   int64
}

func (r *boundedReader) Read(buffer []byte) (int, error) {
	n, err := r.reader.Read(buffer)
	if r.left -= int64(n); r.left < 0 {
		return n, &contentLimitError{fmt.Sprintf("it unpacks to more than %d times its size, which no snapshot does", contentRatio)}
	}
	return n, err
}

// hashedReader reads all but the last 32 bytes, which are the hash of the others.
type hashedReader struct {
	reader io.Reader
	hash   hash.Hash
	size   int64 // without the hash
	// buffer[from:to] was read and not yet given out; the last sha256.Size bytes of it are held back.
	buffer   []byte
	from, to int
	ended    bool
	err      error // other than io.EOF
}

func newHashedReader(reader io.Reader) *hashedReader {
	return &hashedReader{reader: reader, hash: sha256.New(), buffer: make([]byte, 256<<10)}
}

// Read implements io.Reader.
func (r *hashedReader) Read(target []byte) (int, error) {
	for r.to-r.from <= sha256.Size {
		switch {
		case r.err != nil:
			return 0, r.err
		case r.ended:
			return 0, io.EOF
		}
		copy(r.buffer, r.buffer[r.from:r.to])
		r.from, r.to = 0, r.to-r.from
		n, err := r.reader.Read(r.buffer[r.to:])
		r.to += n
		switch {
		case err == io.EOF:
			r.ended = true
		case err != nil:
			r.err = err
		}
	}
	n := copy(target, r.buffer[r.from:r.to-sha256.Size])
	r.hash.Write(target[:n])
	r.from += n
	r.size += int64(n)
	return n, nil
}

// problem is called behind the end.
func (r *hashedReader) problem() string {
	held := r.buffer[r.from:r.to]
	switch {
	case r.err != nil:
		return unpackProblem(r.err)
	case r.size == 0 || len(held) < sha256.Size:
		return fmt.Sprintf("it is cut off: %d bytes are too few", r.size+int64(len(held)))
	case !bytes.Equal(held, r.hash.Sum(nil)):
		return "its content does not have the hash that is at its end: it was cut off or changed"
	}
	return ""
}

// checkFull checks the database of a full snapshot.
func (c *content) checkFull(ctx context.Context, claim contentClaim, data *hashedReader, database bool) (problem string, err error) {
	target := io.Writer(io.Discard)
	var file *os.File
	if database {
		if file, err = nameless(); err != nil {
			return "", err
		}
		defer func() { _ = file.Close() }()
		target = file
	}
	if _, err := io.Copy(target, data); err != nil && data.err == nil {
		return "", fmt.Errorf("writing the database to a file in %s failed: %w", os.TempDir(), err)
	}
	switch total := data.size + int64(data.to-data.from); {
	case data.err != nil:
		return unpackProblem(data.err), nil
	case total%databaseBlock == 0 && total > 0:
		return "it has no hash at its end: a restore fails unless it is told not to check", nil
	case total%databaseBlock != sha256.Size:
		return fmt.Sprintf("its size, %d bytes, is not that of a database with a hash: it was cut off or changed", total), nil
	}
	if problem := data.problem(); problem != "" || !database {
		return problem, nil
	}
	ctx, cancel := context.WithTimeout(ctx, databaseTime)
	defer cancel()
	c.revision, err = databaseRevision(ctx, file)
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("the database could not be looked at in time: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Sprintf("its database cannot be opened, although its hash is right: %v", err), nil
	case c.revision < claim.last:
		return fmt.Sprintf("its database is at revision %d and not at %d as its name says: it may be forged, and a restore would "+
			"go back to revision %d", c.revision, claim.last, c.revision), nil
	}
	return "", nil
}

// nameless is a file that nobody else can open and that is gone with us, however we end.
func nameless() (*os.File, error) {
	file, err := os.CreateTemp("", programName+"-*.db")
	if err != nil {
		return nil, fmt.Errorf("making a file for a database: %w", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("making a file for a database: %w", err)
	}
	return file, nil
}

// databaseRevision is the revision of an etcd database: that of its last key, or that of its last compaction, which may have
// taken the last key away (etcd server/storage/mvcc/kvstore.go, restore). What is in the file may be made to harm us.
func databaseRevision(ctx context.Context, file *os.File) (int64, error) {
	type answer struct {
		revision int64
		err      error
	}
	answered := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			if r := recover(); r != nil {
				a = answer{err: errors.New("it is damaged")}
			}
			answered <- a
		}()
		debug.SetPanicOnFault(true)
		a.revision, a.err = readDatabaseRevision(file)
	}()
	select {
	case a := <-answered:
		return a.revision, a.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func readDatabaseRevision(file *os.File) (revision int64, err error) {
	db, err := bbolt.Open(file.Name(), 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second,
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return file, nil }})
	if err != nil {
		return 0, err
	}
	defer func() { _ = db.Close() }()
	err = db.View(func(tx *bbolt.Tx) error {
		keys := tx.Bucket([]byte("key"))
		if keys == nil {
			return errors.New("it is none of etcd: it has no bucket of keys")
		}
		revision = 1 // that of an empty etcd
		if last, _ := keys.Cursor().Last(); last != nil {
			revision = max(revision, mainRevision(last))
		}
		if meta := tx.Bucket([]byte("meta")); meta != nil {
			for _, name := range []string{"scheduledCompactRev", "finishedCompactRev"} {
				revision = max(revision, mainRevision(meta.Get([]byte(name))))
			}
		}
		return nil
	})
	return revision, err
}

// mainRevision reads the first half of a revision as etcd writes it: 8 bytes, _, 8 bytes.
func mainRevision(b []byte) int64 {
	if len(b) < 17 || b[8] != '_' {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b))
}

// snapshotEvent is what we read of an event in a delta (gardener/etcd-backup-restore pkg/snapshot/snapshotter, event).
type snapshotEvent struct {
	EtcdEvent *struct {
		Kv *struct {
			ModRevision int64 `json:"mod_revision"`
		} `json:"kv"`
	} `json:"etcdEvent"`
}

// eventReader bounds what is read for one event.
type eventReader struct {
	reader io.Reader
	read   int64 // since the last event
}

func (r *eventReader) Read(buffer []byte) (int, error) {
	if r.read > maxEvent {
		return 0, &contentLimitError{fmt.Sprintf("it has an event of more than %s, which etcd does not", formatBytes(maxEvent))}
	}
	n, err := r.reader.Read(buffer[:min(len(buffer), 64<<10)])
	r.read += int64(n)
	return n, err
}

// checkDelta checks the events of a delta.
func (c *content) checkDelta(claim contentClaim, data *hashedReader) (problem string, err error) {
	events := &eventReader{reader: data}
	decoder := stdjson.NewDecoder(events)
	wrong := func(err error) (string, error) {
		switch {
		case data.err != nil:
			return unpackProblem(data.err), nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return "it is cut off: it ends in the middle of an event", nil
		case errors.As(err, new(*contentLimitError)):
			return err.Error(), nil
		}
		return fmt.Sprintf("it is not a list of events: %v", err), nil
	}
	switch start, err := decoder.Token(); {
	case err != nil:
		return wrong(err)
	case start != stdjson.Delim('['):
		return "it is not a list of events", nil
	}
	for decoder.More() {
		events.read = 0
		var event snapshotEvent
		if err := decoder.Decode(&event); err != nil {
			return wrong(err)
		}
		if event.EtcdEvent == nil || event.EtcdEvent.Kv == nil {
			return fmt.Sprintf("event %d has no key", c.events+1), nil
		}
		revision := event.EtcdEvent.Kv.ModRevision
		switch c.events++; {
		case c.events == 1 && revision != claim.first:
			return fmt.Sprintf("its first event has revision %d and not %d as its name says", revision, claim.first), nil
		case c.events > 1 && revision != c.revision && revision != c.revision+1:
			return fmt.Sprintf("behind revision %d comes revision %d", c.revision, revision), nil
		}
		c.revision = revision
	}
	if _, err := decoder.Token(); err != nil {
		return wrong(err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		if err != nil {
			return wrong(err)
		}
		return "there is more behind the list of events", nil
	}
	switch {
	case c.events == 0:
		return "it has no events", nil
	case c.revision != claim.last:
		return fmt.Sprintf("its last event has revision %d and not %d as its name says", c.revision, claim.last), nil
	}
	return data.problem(), nil
}
