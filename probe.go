// The probe attacks the lock of a bucket with an object of its own, the canary, and says how each attack ended.
//
// Rules:
//   - Nothing outside of probePrefix is ever named in a request. Only the canary that was made here is attacked; permitCanary
//     looks at its name ahead of each attack and each deletion.
//   - There is one canary at a time. It is attacked only while it is retained: whoever deletes it later shows nothing. The next
//     one is made once its retention has ended, and takes its place; the old one is deleted then.
//   - A refusal that may have two reasons counts as the lock's only if a control shows that these credentials have the permission.
//   - What an interrupted round has left is found by a list before the next. A success is looked at before it is told.

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	probePrefix  = tombstonesRoot + "probe/"
	canaryPrefix = probePrefix + "canary-"
	// canaryNonce is the length of the random end of its name.
	canaryNonce = 12
	// canaryMargin is how long a canary has to be retained still when it is attacked: clocks differ, and a round takes its time.
	canaryMargin = 30 * time.Minute
	// canaryLonger is by how much the control of a retention makes it longer.
	canaryLonger = time.Second
	// maxLeftovers bounds what is remembered of earlier canaries; a list finds the rest.
	maxLeftovers = 100
	// maxDetail keeps the answer of a store short, in bytes.
	maxDetail = 300
)

// Attacks, by the names that probeAttack and commands show.
const (
	attackDelete        = "delete"
	attackShorten       = "shorten"
	attackShortenBypass = "shorten-bypass"
	attackDeleteBypass  = "delete-bypass"
	attackOverwrite     = "overwrite"
)

// probeOutcome is how an attack ended. It is a label of metrics and part of evidence.
type probeOutcome string

const (
	// refusedByLock: the store refused it, and it is shown that no missing permission is the reason.
	refusedByLock probeOutcome = "refused_by_lock"
	// refusedOtherwise: it was refused, or not carried out, for another reason or for one that is not known. It proves nothing.
	refusedOtherwise probeOutcome = "refused_otherwise"
	// attackSucceeded: the lock does not hold against these credentials.
	attackSucceeded probeOutcome = "succeeded"
)

var probeOutcomes = []probeOutcome{refusedByLock, refusedOtherwise, attackSucceeded}

// text is an outcome in words.
func (o probeOutcome) text() string {
	switch o {
	case refusedByLock:
		return "refused by the lock"
	case attackSucceeded:
		return "succeeded"
	}
	return "refused for another reason"
}

// Credentials that a stolen cluster or seed has, as values of the label credentials.
const (
	probeWithBucket = "bucket"
	probeWithEntry  = "entry"
)

// probeAttack is one attack and how it ended. detail is one clause, without anything that changes between two of the same.
type probeAttack struct {
	name    string
	outcome probeOutcome
	detail  string
}

// probeResult is what the attacks with one set of credentials came to.
type probeResult struct {
	at          time.Time
	credentials string
	attacks     []probeAttack
	// retained says that the canary had a retention, removable that whoever may do so can take that away.
	retained, removable bool
}

func (r *probeResult) count(outcome probeOutcome) (n int) {
	for _, a := range r.attacks {
		if a.outcome == outcome {
			n++
		}
	}
	return n
}

// proven says that the lock holds against these credentials: the canary could not be destroyed, which it is not a missing permission
// that prevents, and nobody can take the lock away.
func (r *probeResult) proven() bool {
	if r.removable || len(r.attacks) == 0 || r.count(attackSucceeded) > 0 {
		return false
	}
	return !slices.ContainsFunc(r.attacks, func(a probeAttack) bool { return !shortens(a.name) && a.outcome != refusedByLock })
}

func shortens(attack string) bool { return attack == attackShorten || attack == attackShortenBypass }

func bypasses(attack string) bool {
	return attack == attackShortenBypass || attack == attackDeleteBypass
}

// refusedError is a refusal of a store, with the reason that it has or may have: errLocked or errRefused.
type refusedError struct{ reason, err error }

func (e *refusedError) Error() string { return e.err.Error() }

func (e *refusedError) Unwrap() []error { return []error{e.reason, e.err} }

// newCanaryKey is a key that nobody uses.
func newCanaryKey() string { return canaryPrefix + rand.Text()[:canaryNonce] }

// isCanary says that a key is one of newCanaryKey.
func isCanary(key string) bool {
	nonce, ok := strings.CutPrefix(key, canaryPrefix)
	return ok && len(nonce) == canaryNonce && !strings.ContainsFunc(nonce, func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < '2' || r > '7')
	})
}

// canaries are what is known of the canary of a bucket, and of what earlier ones have left. The zero value: nothing yet.
type canaries struct {
	// listed says that the rest is all that there is.
	listed bool
	// current is the canary, with the end of its retention as it was told last; its key is empty if there is none.
	current version
	left    []leftover
}

// leftover is an old canary, or a delete marker on one, and when it can be deleted.
type leftover struct {
	version
	free time.Time
}

// retire makes room for another canary.
func (c *canaries) retire(free time.Time) {
	c.left = append(c.left, leftover{c.current, free})
	c.current = version{}
}

// probeRound is one round of attacks on a bucket. keeper has the credentials that make and delete canaries, attacker those that attack;
// they may be the same. policy is what is recorded of the bucket.
type probeRound struct {
	keeper, attacker attacker
	policy           Policy
	canaries         *canaries
	result           probeResult
}

// run makes the round: at most 8 requests while canaries come and go as they should, 1 more to list what is there, and 1 for each attack
// that succeeds. An error says that the round has to be made again; it has told nothing then.
func (r *probeRound) run(ctx context.Context) (probeResult, error) {
	listed := r.canaries.listed
	r.canaries.listed = false // until this round has ended
	if !listed {
		if err := r.list(ctx); err != nil {
			return probeResult{}, fmt.Errorf("looking for canaries: %w", err)
		}
	}
	until, err := r.prepare(ctx)
	if err != nil {
		return probeResult{}, fmt.Errorf("making a canary: %w", err)
	}
	refused, err := r.attackAll(ctx, until)
	if err != nil {
		return probeResult{}, err
	}
	if err := r.judge(ctx, refused); err != nil {
		return probeResult{}, err
	}
	r.result.at = time.Now()
	if r.canaries.current.key != "" && r.result.count(attackSucceeded) > 0 {
		r.canaries.retire(until)
	}
	r.tidy(ctx)
	r.canaries.listed = true
	return r.result, nil
}

// list finds what is there: one request, as strangers may have written any number of objects.
func (r *probeRound) list(ctx context.Context) error {
	*r.canaries = canaries{}
	var found []version
	for page, err := range r.keeper.pages(ctx, probePrefix, cursor{}) {
		if err != nil {
			return err
		}
		for _, v := range page.versions {
			switch {
			case !isCanary(v.key):
			case v.marker && len(r.canaries.left) < maxLeftovers:
				r.canaries.left = append(r.canaries.left, leftover{version: v})
			case !v.marker:
				found = append(found, v)
			}
		}
		break
	}
	slices.SortStableFunc(found, func(v, w version) int { return w.created.Compare(v.created) })
	for i, v := range found[:min(len(found), maxLeftovers)] {
		if i == 0 {
			v.until = time.Time{} // it is asked for
			r.canaries.current = v
			continue
		}
		r.canaries.left = append(r.canaries.left, leftover{v, r.policy.until(v.created).Add(canaryMargin)})
	}
	return nil
}

// prepare sees to it that there is a canary to attack, and tells until when it is retained.
func (r *probeRound) prepare(ctx context.Context) (time.Time, error) {
	c := r.canaries
	if known := c.current.until; c.current.key != "" && !known.IsZero() && time.Until(known) < canaryMargin {
		c.retire(known)
	}
	for fresh := false; ; fresh = true {
		if c.current.key == "" {
			v, err := r.keeper.plant(ctx, newCanaryKey())
			if err != nil {
				return time.Time{}, err
			}
			c.current, fresh = v, true
		}
		until, removable, err := r.keeper.retention(ctx, c.current)
		switch {
		case errors.Is(err, errNoVersion) && !fresh:
			c.current = version{} // somebody has deleted it
			continue
		case err != nil:
			return time.Time{}, err
		case time.Until(until) < canaryMargin && !fresh:
			c.retire(until)
			continue
		case until.Before(time.Now()):
			until = time.Time{}
		}
		c.current.until = until
		r.result.retained, r.result.removable = !until.IsZero(), !until.IsZero() && removable
		return until, nil
	}
}

// attackAll makes the attacks. It returns those that were refused for a reason that is not known yet, by their places in the result.
func (r *probeRound) attackAll(ctx context.Context, until time.Time) (refused []int, err error) {
	canary := r.canaries.current
	for _, name := range r.attacker.attacks() {
		if shortens(name) && until.IsZero() {
			continue // there is nothing to shorten
		}
		a := probeAttack{name: name, outcome: refusedOtherwise}
		err := r.attacker.attack(ctx, name, canary, until, permitCanary(canary))
		switch {
		case err == nil:
			if a.outcome, a.detail, err = r.confirm(ctx, name, until); err != nil {
				return nil, err
			}
		case passing(ctx, err):
			return nil, fmt.Errorf("the attack %s: %w", name, err)
		case errors.Is(err, errLocked):
			a.outcome, a.detail = refusedByLock, "the store names the lock as the reason"
		case errors.Is(err, errRefused):
			refused = append(refused, len(r.result.attacks))
			a.detail = attackDetail(err)
		default:
			a.detail = attackDetail(err)
		}
		r.result.attacks = append(r.result.attacks, a)
		if r.canaries.current.key == "" {
			break // it is gone
		}
	}
	return refused, nil
}

// passing says that an error is of a trouble that passes, and no refusal: Azure's code of a lock is that of a conflict too.
func passing(ctx context.Context, err error) bool {
	return ctx.Err() != nil || isTransient(err) && !errors.Is(err, errLocked) && !errors.Is(err, errRefused)
}

func attackDetail(err error) string { return strings.TrimSuffix(cut(err.Error(), maxDetail), ".") }

// confirm looks whether what the store says to have done is done: one request. What cannot be looked at counts as done.
func (r *probeRound) confirm(ctx context.Context, name string, until time.Time) (outcome probeOutcome, detail string, err error) {
	outcome, canary := attackSucceeded, r.canaries.current
	switch {
	case name == attackOverwrite:
		detail = "it was written anew"
	case shortens(name):
		var now time.Time
		var removable bool
		now, removable, err = r.keeper.retention(ctx, canary)
		if detail = "its retention is shorter now, or can be taken away"; err == nil && !now.Before(until.Truncate(time.Second)) &&
			(!removable || r.result.removable) {
			outcome, detail = refusedOtherwise, "the store says that the retention is shorter now, and it is as it was"
		}
	default:
		var there bool
		there, err = r.isThere(ctx, canary)
		if detail = "it is gone"; there {
			outcome, detail = refusedOtherwise, "the store says that it is deleted, and it is still there"
		} else {
			r.canaries.current = version{}
		}
	}
	switch {
	case err != nil && passing(ctx, err):
		return "", "", fmt.Errorf("looking at what the attack %s has done: %w", name, err)
	case err != nil:
		return attackSucceeded, "the store says so; it could not be looked at", nil
	}
	return outcome, detail, nil
}

// isThere says that a list shows a version.
func (r *probeRound) isThere(ctx context.Context, v version) (bool, error) {
	for page, err := range r.keeper.pages(ctx, v.key, cursor{}) {
		if err != nil {
			return false, err
		}
		for _, w := range page.versions {
			if w.key == v.key && !w.marker && (w.id == v.id || v.id == "") {
				return true, nil
			}
		}
	}
	return false, nil
}

// judge finds out why attacks were refused: at most 3 requests. Of credentials that may not delete nothing can be proven, so what they
// may do to a retention is not tried.
func (r *probeRound) judge(ctx context.Context, refused []int) error {
	denied := ""
	for _, shorten := range []bool{false, true} {
		var of []*probeAttack
		for _, i := range refused {
			if a := &r.result.attacks[i]; shortens(a.name) == shorten {
				of = append(of, a)
			}
		}
		shown := slices.ContainsFunc(r.result.attacks, func(a probeAttack) bool {
			return a.outcome == attackSucceeded && shortens(a.name) == shorten
		})
		if len(of) > 0 && !shown && denied == "" {
			var err error
			if denied, err = r.control(ctx, shorten); err != nil {
				return err
			}
		}
		for _, a := range of {
			switch {
			case denied != "":
				a.detail = denied
			case bypasses(a.name) && r.result.removable:
				a.detail = "the retention can be taken away by whoever may bypass it, which these credentials may not"
			default:
				a.outcome, a.detail = refusedByLock, "these credentials may do that to what is not locked"
			}
		}
	}
	return nil
}

// control does what needs the permission of an attack, and is forbidden by no lock. It says why the refusal proves nothing, empty if it is
// the lock's.
func (r *probeRound) control(ctx context.Context, shorten bool) (why string, err error) {
	store, ok := r.attacker.(attackControl)
	if !ok {
		return "the store does not tell why, and there is no control", nil
	}
	if shorten {
		until := r.canaries.current.until.Add(canaryLonger)
		err = store.lengthen(ctx, r.canaries.current, until, r.result.removable)
		if err == nil {
			r.canaries.current.until = until
		}
		return r.controlled(ctx, err, "these credentials may not change any retention")
	}
	v, err := r.controlDeletion(ctx, store)
	if err == nil {
		err = store.discard(ctx, v, permitCanary(v))
	}
	if err == nil {
		r.canaries.left = slices.DeleteFunc(r.canaries.left, func(l leftover) bool { return l.same(v) })
	}
	return r.controlled(ctx, err, "these credentials may not delete anything")
}

// controlDeletion is what can be deleted: something that an earlier round has left, or else a delete marker on the canary.
func (r *probeRound) controlDeletion(ctx context.Context, store attackControl) (version, error) {
	for _, l := range r.canaries.left {
		if l.free.Before(time.Now()) {
			return l.version, nil
		}
	}
	v, err := store.mark(ctx, r.canaries.current.key)
	if err != nil {
		return v, err
	}
	if v.id == "" {
		return v, errors.New("the bucket has no versions")
	}
	r.canaries.left = append(r.canaries.left, leftover{version: v})
	return v, nil
}

func (r *probeRound) controlled(ctx context.Context, err error, denied string) (string, error) {
	switch {
	case err == nil:
		return "", nil
	case passing(ctx, err):
		return "", fmt.Errorf("the control: %w", err)
	case errors.Is(err, errRefused):
		return denied, nil
	}
	return "the control does not work: " + attackDetail(err), nil
}

// tidy deletes one of what earlier rounds have left: one request. What stays is found by a list.
func (r *probeRound) tidy(ctx context.Context) {
	at := slices.IndexFunc(r.canaries.left, func(l leftover) bool { return l.free.Before(time.Now()) })
	if at < 0 {
		return
	}
	v := r.canaries.left[at].version
	if err := r.keeper.discard(ctx, v, permitCanary(v)); err == nil || !passing(ctx, err) {
		r.canaries.left = slices.Delete(r.canaries.left, at, at+1)
	}
}
