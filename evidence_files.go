// With --observe evidence goes into files, since nothing is written to a store: DIRECTORY/BUCKET/NAME, with the names that the
// objects would have, so that evidence verify -f DIRECTORY reads them.
//
// Rules:
//   - A file is whole or not there: it is written under another name, synced and renamed. Files that are there are never changed.
//   - No path leads out of the directory, whatever a bucket is called.
//   - The store is asked for nothing: the looks at the bucket tell its time.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
)

// evidenceTemporary is the name of a file that is not whole yet. Those who verify do not read it.
const evidenceTemporary = ".part"

// evidenceDirectory is the place of evidence of one bucket in a directory.
type evidenceDirectory struct {
	root, bucket string
	// store is what lies in the bucket. Only its endpoint is used.
	store Objects
}

var _ evidencePlace = &evidenceDirectory{}

// openEvidenceDirectory checks the name of a bucket; nothing is opened yet.
func openEvidenceDirectory(root, bucket string, store Objects) (*evidenceDirectory, error) {
	if !isFileName(bucket) {
		return nil, fmt.Errorf("%q cannot be the name of a directory", bucket)
	}
	return &evidenceDirectory{root, bucket, store}, nil
}

// isFileName says that a name is that of a file that is not hidden, in no other directory.
func isFileName(name string) bool {
	return name != "" && !strings.HasPrefix(name, ".") && !strings.ContainsAny(name, "/\\\x00")
}

// endpoint implements evidencePlace.
func (d *evidenceDirectory) endpoint() endpointRef { return d.store.endpoint() }

// in opens the directory of the bucket, which is made if it is not there.
func (d *evidenceDirectory) in(f func(*os.Root) error) error {
	root, err := os.OpenRoot(d.root)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if err := root.Mkdir(d.bucket, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	bucket, err := root.OpenRoot(d.bucket)
	if err != nil {
		return err
	}
	defer func() { _ = bucket.Close() }()
	return f(bucket)
}

// pages implements evidencePlace.
func (d *evidenceDirectory) pages(_ context.Context, prefix string, _ cursor) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		var found page
		err := d.in(func(bucket *os.Root) error {
			entries, err := fs.ReadDir(bucket.FS(), ".")
			for _, entry := range entries {
				key := evidencePrefix + entry.Name()
				info, err := entry.Info()
				if err == nil && info.Mode().IsRegular() && strings.HasPrefix(key, prefix) {
					found.versions = append(found.versions, version{key: key, size: info.Size(), created: info.ModTime()})
				}
			}
			return err
		})
		if err != nil {
			yield(page{}, fmt.Errorf("--evidence-directory: %w", err))
			return
		}
		slices.SortFunc(found.versions, func(v, w version) int { return cmp.Compare(v.key, w.key) })
		yield(found, nil)
	}
}

// open implements evidencePlace.
func (d *evidenceDirectory) open(_ context.Context, v version) (content io.ReadCloser, err error) {
	err = d.in(func(bucket *os.Root) error {
		content, err = bucket.Open(path.Base(v.key))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errNoVersion, err)
	}
	return content, wrapf(err, "--evidence-directory")
}

// write implements evidencePlace.
func (d *evidenceDirectory) write(_ context.Context, key string, content []byte) error {
	name := path.Base(key)
	if !isFileName(name) || key != evidencePrefix+name {
		return fmt.Errorf("%q cannot be the name of a file", key)
	}
	err := d.in(func(bucket *os.Root) error {
		if _, err := bucket.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return cmp.Or(err, error(fs.ErrExist))
		}
		// What an interrupted write has left goes.
		if err := bucket.Remove(evidenceTemporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := writeSynced(bucket, evidenceTemporary, content); err != nil {
			return err
		}
		if err := bucket.Rename(evidenceTemporary, name); err != nil {
			return err
		}
		return syncDirectory(bucket)
	})
	return wrapf(err, "--evidence-directory")
}

// writeSynced writes a new file so that it outlives a loss of power.
func writeSynced(in *os.Root, name string, content []byte) error {
	file, err := in.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Sync(), file.Close())
}

func syncDirectory(directory *os.Root) error {
	opened, err := directory.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(opened.Sync(), opened.Close())
}

// placeInDirectory opens the directory of the evidence of a bucket.
func (o *bucketObserver) placeInDirectory(root string) func(context.Context, *backupBucket) (evidencePlace, error) {
	return func(ctx context.Context, b *backupBucket) (evidencePlace, error) {
		secret, err := o.generated(ctx, b)
		if _, account := o.provider(&b.object).(accountProvider); !account {
			secret, err = o.secrets.get(ctx, cmp.Or(o.own, b.SecretRef))
		}
		switch {
		case err != nil:
			return nil, err
		case secret == nil:
			return nil, errNoContents
		}
		store, err := o.openContentsWith(ctx, b, secret, classCheck)
		if err != nil {
			return nil, err
		}
		return openEvidenceDirectory(root, b.Name, store)
	}
}
