package main

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"time"
)

// The simulation's object stores: buckets of versions with retention, by the store's own
// clock, and on Azure the accounts and resource groups that they lie in. A plain model
// without locks, faults and waiting (sim_sched_test.go) and without the product's interfaces
// (sim_adapter_test.go). Rules: what is retained cannot be deleted by anybody; on S3 the
// default retention is a setting that anybody may change and counts for new versions only;
// on Azure a locked policy can only grow, five times, and covers all blobs. Every removal
// and every change of a lock is told to the truth (sim_truth_test.go), with who did it.

type simVersion struct {
	key     string
	id      int
	size    int64
	created time.Time
	until   time.Time // S3; on Azure the container's policy counts
	// governance: its retention can be taken away, so it may change its mode.
	governance bool
	hold       bool
	marker     bool
	// weak: the bucket's policy was less than recorded when it was written. odd: so that the daemon cannot know it.
	weak, odd bool
}

type simBucket struct {
	name, region string
	kind         string
	// foreign says that it was there before anything of ours.
	foreign bool
	policy  Policy
	// policySince is when it was set, by the scheduler's count.
	policySince int
	extensions  int32
	versions    []*simVersion // by key, then id
}

type simGroup struct {
	// foreign says that it was there before anything of ours, tagged that we made it.
	foreign, tagged bool
	// other is whether something else is in it.
	other   bool
	account bool
	keys    []accessKey
	deleted time.Time // when its deletion ends, if that was begun
}

type simStore struct {
	w       *simWorld
	buckets map[string]*simBucket
	groups  map[string]*simGroup
	skew    time.Duration
	ids     int
	keys    int
	// broken are credentials that the store refuses.
	broken map[string]bool
	// noRetention are buckets whose credentials may not extend the retention of a version, mayBypass whether all may that of one
	// in GOVERNANCE.
	noRetention map[string]bool
	mayBypass   bool
	// retentionSince is when that changed last.
	retentionSince map[string]time.Time
}

func newSimStore(w *simWorld) *simStore {
	return &simStore{w: w, buckets: map[string]*simBucket{}, groups: map[string]*simGroup{}, broken: map[string]bool{},
		noRetention: map[string]bool{}, retentionSince: map[string]time.Time{}}
}

func (s *simStore) now() time.Time { return time.Now().Add(s.skew) }

func (s *simStore) makeBucket(name, region string, kind string, foreign bool) *simBucket {
	b := &simBucket{name: name, region: region, kind: kind, foreign: foreign}
	s.buckets[name] = b
	return b
}

func (s *simStore) makeGroup(name string, foreign bool) *simGroup {
	g := &simGroup{foreign: foreign, tagged: !foreign}
	s.groups[name] = g
	return g
}

func (s *simStore) newKey(name string) accessKey {
	s.keys++
	return accessKey{Name: name, Value: secretMarker + "-" + name + "-" + time.Duration(s.keys).String(), Created: s.now().Truncate(time.Second)}
}

// put writes a version.
func (s *simStore) put(b *simBucket, key string, size int64) *simVersion {
	s.ids++
	v := &simVersion{key: key, id: s.ids, size: size, created: s.now().Truncate(time.Second)}
	v.weak = b.policy.weakerThan(s.w.truth.promise(b.name).recorded)
	if b.kind == storeAzure {
		// One blob of a key; it cannot be overwritten while it is retained.
		for _, old := range b.versions {
			if old.key == key {
				if !s.free(b, old) {
					return nil
				}
				b.drop(old)
				break
			}
		}
	} else if !b.policy.None() {
		v.until, v.governance = b.policy.until(v.created), !b.policy.Locked
	}
	b.versions = append(b.versions, v)
	slices.SortStableFunc(b.versions, func(a, c *simVersion) int { return cmp.Or(cmp.Compare(a.key, c.key), cmp.Compare(a.id, c.id)) })
	return v
}

func (b *simBucket) drop(v *simVersion) {
	b.versions = slices.DeleteFunc(b.versions, func(o *simVersion) bool { return o == v })
}

// ends is when the retention of a version ends; zero if it has none or there is no end.
func (s *simStore) ends(b *simBucket, v *simVersion) time.Time {
	if b.kind == storeAzure && !b.policy.None() {
		return b.policy.until(v.created)
	}
	return v.until
}

func (s *simStore) free(b *simBucket, v *simVersion) bool {
	return !v.hold && !s.ends(b, v).After(s.now())
}

// list is a page of the versions under a prefix, after one that was listed before.
func (s *simStore) list(bucket, prefix string, after *simVersion, limit int) (page []*simVersion, more bool) {
	b := s.buckets[bucket]
	if b == nil {
		return nil, false
	}
	for _, v := range b.versions {
		if !strings.HasPrefix(v.key, prefix) || after != nil && cmp.Or(cmp.Compare(v.key, after.key), cmp.Compare(v.id, after.id)) <= 0 {
			continue
		}
		if len(page) == limit {
			return page, true
		}
		page = append(page, v)
	}
	return page, false
}

// remove deletes one version; false if it is retained.
func (s *simStore) remove(bucket string, v *simVersion) bool {
	b := s.buckets[bucket]
	if b == nil || !slices.Contains(b.versions, v) {
		return true
	}
	if !s.free(b, v) {
		return false
	}
	s.w.truth.removing(b, v)
	b.drop(v)
	return true
}

// extend retains a version in COMPLIANCE, as whoever has the permission may; else it is one of the errors of an extender.
func (s *simStore) extend(b *simBucket, v *simVersion, until time.Time, bypass bool) error {
	governed := v.governance && v.until.After(s.now())
	switch {
	case s.noRetention[b.name]:
		return &storeError{code: codeUnauthorized, err: errNotExtended}
	case !until.After(s.now()):
		return &storeError{code: codeConfigurationProblem, err: errors.New("the retain until date must be in the future")}
	case governed && !(bypass && s.mayBypass):
		return &storeError{code: codeUnauthorized, err: errNotExtended}
	case !governed && v.until.After(until):
		return &storeError{err: errRetainedLonger}
	}
	v.until, v.governance = until, false
	return nil
}

// setPolicy changes the policy as somebody with the credentials may; false if the store refuses.
func (s *simStore) setPolicy(b *simBucket, p Policy) bool {
	if b.kind == storeAzure && b.policy.Locked {
		if p.weakerThan(b.policy) || p.Days > b.policy.Days && b.extensions == 0 {
			return false
		}
		if p.Days > b.policy.Days {
			b.extensions--
		}
	} else if p.Locked {
		b.extensions = 5
	}
	b.policy, b.policySince = p, s.w.seq
	return true
}

func (s *simStore) deleteBucket(name string) error {
	b := s.buckets[name]
	if b == nil {
		return nil
	}
	if len(b.versions) > 0 {
		return errBucketNotEmpty
	}
	s.w.truth.removingBucket(b)
	delete(s.buckets, name)
	return nil
}

func (s *simStore) deleteGroup(name string) {
	g := s.groups[name]
	s.w.truth.removingGroup(name, g)
	g.deleted = s.now().Add(30 * time.Second)
}

// group is a resource group that is not gone.
func (s *simStore) group(name string) *simGroup {
	g := s.groups[name]
	if g != nil && !g.deleted.IsZero() && !g.deleted.After(s.now()) {
		delete(s.groups, name)
		delete(s.buckets, name)
		return nil
	}
	return g
}
