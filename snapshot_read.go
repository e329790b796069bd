// How the snapshots of an entry are read from a store: one list of its prefix, and tags only where they can decide.
//
// Rules:
//   - Where lists do not tell tags, those of a snapshot are asked for only if there is a delete marker on its key, since without
//     one they exclude nothing (S3). The newest are asked for first, and not more than a bound.
//   - What could not be read is not known: neither in nor out.
//   - A store that lists other keys than those asked for is not believed.

package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// maxTagLookups bounds the requests for tags of one reading. What is beyond matters only if the chain has it.
const maxTagLookups = 1000

// readChain reads what lies under the prefix of an entry: one request for each page, and one for the tags of each snapshot with
// a delete marker on its key. base is the entry's name without source-. A bucket that does not exist is an empty one.
func readChain(ctx context.Context, store versions, base string) (*chain, error) {
	list := newSnapshotList(base)
	if err := list.read(ctx, store); err != nil {
		return nil, err
	}
	if err := list.readTags(ctx, store); err != nil {
		return nil, err
	}
	return list.chain(), nil
}

// read reads the list, with tags if it can tell them.
func (l *snapshotList) read(ctx context.Context, store versions) error {
	tagged, ok := store.(tagLister)
	if !ok {
		return l.readPages(store.pages(ctx, l.base+"/", cursor{}))
	}
	err := l.readPages(tagged.taggedPages(ctx, l.base+"/", cursor{}))
	var denied *storeError
	if errors.As(err, &denied) && denied.code == codeUnauthorized && l.now.IsZero() {
		// It may be that only the tags must not be read.
		l.untagged = true
		return l.readPages(store.pages(ctx, l.base+"/", cursor{}))
	}
	return err
}

func (l *snapshotList) readPages(pages iter.Seq2[page, error]) error {
	for p, err := range pages {
		if err == nil {
			err = l.addChecked(p)
		}
		if err != nil {
			return err
		}
	}
	l.end()
	if l.now.IsZero() {
		l.now = time.Now()
	}
	return nil
}

func (l *snapshotList) addChecked(p page) error {
	prefix := l.base + "/"
	for _, v := range p.versions {
		if !strings.HasPrefix(v.key, prefix) {
			return &storeError{err: fmt.Errorf("listing what is under %q failed: the store lists key %q, which is not", prefix, v.key)}
		}
	}
	l.add(p)
	return nil
}

// readTags asks for the tags of snapshots that have a delete marker on their key, the newest first.
func (l *snapshotList) readTags(ctx context.Context, store versions) error {
	tagger, ok := store.(tagger)
	asked := 0
	for _, s := range slices.Backward(l.all) {
		switch {
		case s.excluded != exclusionUnknown, l.untagged:
			continue
		case !ok:
			s.excluded = included // there are no tags
			continue
		case asked == maxTagLookups:
			return nil
		}
		asked++
		tags, err := tagger.tags(ctx, s.version())
		switch {
		case err == nil && tags[excludeTag] == excludeValue:
			s.excluded = excluded
		case err == nil:
			s.excluded = included
		case errors.Is(err, errNoVersion):
			s.excluded, s.lost = included, true
		case ctx.Err() != nil || isTransient(err):
			return err
		default:
			return nil // what is refused of one is refused of all
		}
	}
	return nil
}
