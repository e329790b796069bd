// What is known of the keys that generated secrets publish, between passes. A key can die at any time: somebody regenerates it,
// or alters the secret. Neither is seen by a verification, which does not ask for the keys. So the content that was found valid
// is remembered, as a hash, and a store that does not accept a published key is noted. Either makes the next pass look at
// the keys, as does a restart, which forgets everything. A look costs one request, and is made at most once in keyLookInterval.

package main

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/tools/cache"
)

// keyLookInterval is the shortest time between two looks at the keys of a bucket that were not due by themselves.
const keyLookInterval = 5 * time.Minute

// keyWatch is safe for concurrent use.
type keyWatch struct {
	// ask makes a pass over a BackupBucket come soon.
	ask func(cache.ObjectName)

	mu      sync.Mutex
	buckets map[string]keyState
}

// keyState is what is known of one bucket's published key.
type keyState struct {
	// valid is the hash of the content that was found to be right; zero if that is not known.
	valid clientKey
	// rejected says that a store did not accept the key since.
	rejected bool
	// looked is when such a look was taken last.
	looked time.Time
}

func newKeyWatch(ask func(cache.ObjectName)) *keyWatch {
	return &keyWatch{ask: ask, buckets: map[string]keyState{}}
}

// hashData identifies the content of a secret without keeping it in one more place.
func hashData(data map[string][]byte) clientKey {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(data)) {
		parts = append(parts, key, string(data[key]))
	}
	return newClientKey(parts...)
}

// due says that the keys of a bucket need a look, which the caller takes now: the content of its generated secret is not what was
// found to be right, or a store does not accept it.
func (w *keyWatch) due(bucket string, data map[string][]byte, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.buckets[bucket]
	if !s.rejected && s.valid == hashData(data) || s.recent(now) {
		return false
	}
	s.looked = now
	w.buckets[bucket] = s
	return true
}

func (s keyState) recent(now time.Time) bool {
	return !s.looked.IsZero() && now.Sub(s.looked) < keyLookInterval
}

// published notes that this content publishes a key that the account has.
func (w *keyWatch) published(bucket string, data map[string][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.buckets[bucket]
	s.valid, s.rejected = hashData(data), false
	w.buckets[bucket] = s
}

// noteRejection asks for a look at the keys if err says that a store does not accept a published one. Buckets that no pass has
// looked at are another seed's, or will be looked at anyway.
func (w *keyWatch) noteRejection(bucket string, err error, now time.Time) {
	if !errors.Is(err, errKeyRejected) {
		return
	}
	w.mu.Lock()
	s, ours := w.buckets[bucket]
	if ours {
		s.rejected = true
		w.buckets[bucket] = s
	}
	w.mu.Unlock()
	if ours && !s.recent(now) {
		w.ask(cache.ObjectName{Name: bucket})
	}
}

// forget drops what is known of a bucket that is gone.
func (w *keyWatch) forget(bucket string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.buckets, bucket)
}
