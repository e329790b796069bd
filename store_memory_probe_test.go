package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// What the store in memory can be asked for the probe: as AWS it answers a lock and a missing permission alike. A version that was
// written under an unlocked policy can be freed by whoever may bypass.

var _ attackControl = &memoryStore{}

func (s *memoryStore) attacks() []string {
	return []string{attackDelete, attackShorten, attackShortenBypass, attackDeleteBypass}
}

func (s *memoryStore) plant(ctx context.Context, key string) (v version, err error) {
	_, err = s.request(ctx, "PutObject", there(func(b *memoryBucket) { v = s.server.write(b, version{key: key}) }))
	v.until = time.Time{}
	return v, err
}

func (s *memoryStore) retention(ctx context.Context, v version) (until time.Time, removable bool, err error) {
	err = s.version(ctx, "GetRetention", v, func(stored version) { until, removable = stored.until, s.server.governed[stored.id] })
	return until, removable, err
}

// refusal makes an error of an answer that may be a lock's or a missing permission's.
func (s *memoryStore) refusal(status int, err error) error {
	if status == http.StatusForbidden {
		return &refusedError{errRefused, err}
	}
	return err
}

// attempt makes a request that changes a version, unless its lock forbids that.
func (s *memoryStore) attempt(ctx context.Context, operation string, v version, bypass bool, locked func(version) bool,
	f func(*memoryBucket, int)) error {
	status, err := s.once(ctx, operation, func(b *memoryBucket) int {
		at := slices.IndexFunc(b.versions, v.same)
		if at < 0 {
			return http.StatusOK
		}
		stored := b.versions[at]
		bypassed := bypass && s.server.governed[stored.id] && (s.server.refuse == nil || s.server.refuse("Bypass") == http.StatusOK)
		if locked(stored) && (!bypassed || stored.held) {
			return http.StatusForbidden
		}
		f(b, at)
		return http.StatusOK
	})
	return s.refusal(status, err)
}

func (s *memoryStore) attack(ctx context.Context, name string, v version, until time.Time, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	switch name {
	case attackDelete, attackDeleteBypass:
		return s.delete(ctx, v, bypasses(name))
	case attackShorten, attackShortenBypass:
		sooner := time.Now().Add(time.Until(until) / 2)
		return s.attempt(ctx, "PutRetention", v, bypasses(name), func(stored version) bool { return sooner.Before(stored.until) },
			func(b *memoryBucket, at int) { b.versions[at].until = sooner })
	}
	return fmt.Errorf("there is no attack %q", name)
}

func (s *memoryStore) delete(ctx context.Context, v version, bypass bool) error {
	return s.attempt(ctx, "DeleteVersion", v, bypass, func(stored version) bool { return stored.held || stored.until.After(time.Now()) },
		func(b *memoryBucket, at int) {
			if !s.server.lies {
				b.versions = slices.Delete(b.versions, at, at+1)
			}
		})
}

func (s *memoryStore) discard(ctx context.Context, v version, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	return s.delete(ctx, v, false)
}

func (s *memoryStore) mark(ctx context.Context, key string) (marker version, err error) {
	status, err := s.once(ctx, "DeleteObject", there(func(b *memoryBucket) { marker = s.server.write(b, version{key: key, marker: true}) }))
	return marker, s.refusal(status, err)
}

func (s *memoryStore) lengthen(ctx context.Context, v version, until time.Time, _ bool) error {
	return s.attempt(ctx, "PutRetention", v, false, func(stored version) bool { return until.Before(stored.until) },
		func(b *memoryBucket, at int) { b.versions[at].until = until })
}
