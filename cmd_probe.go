// bucketwarden probe: the lock of a bucket attacked now, as the daemon does it once a day with --probe.
//
// Rules:
//   - It asks first, since it sets off security monitoring and writes an object that stays until its retention ends.
//   - With the credentials of the bucket, and with each that its live BackupEntries have beside them.
//   - Nothing but canaries is named (probe.go). What is not proven is not said to hold.

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// maxProbes bounds the credentials that a command probes a bucket with.
const maxProbes = 20

var probeCommand = command{
	name: "probe", args: "BUCKET", short: "Attacks the lock of a bucket, with an object that is made for that",
	long: `An empty object under .bucketwarden/probe/ is attacked: deleted by version, its retention shortened, both with bypass of
governance retention (S3), or deleted and overwritten (Azure). Nothing else is touched. It is done with the credentials of
the bucket, and with those of its BackupEntries if they are others. An attack is

  refused by the lock         the store refuses it, and the credentials may do that to what is not locked
  refused for another reason  proves nothing: a permission is missing, or the lock can be taken away by who may bypass it
  succeeded                   the lock does not hold

Security monitoring sees denied deletions and changes of retention. The object stays until its retention ends; a later probe
uses it again, or deletes it. The exit code is 2 if an attack succeeded on a bucket that should be locked, or if nothing is proven
of it. With --bucket-secret, without an API server, every bucket should be locked.`,
	examples: []string{
		"probe 5f3a7c1e-9d2b-4c1f-8e57-2b6a90d1c4e3",
		"probe 5f3a7c1e-9d2b-4c1f-8e57-2b6a90d1c4e3 --yes -o json",
	},
	make: func(c *cli, fs *flag.FlagSet) func(context.Context, []string) error {
		yes := fs.Bool("yes", false, "do not ask")
		return func(ctx context.Context, args []string) error { return c.probe(ctx, args, *yes) }
	},
}

// probeTarget is a bucket with the credentials to attack it with; the first are those of the bucket.
type probeTarget struct {
	bucket      string
	policy      Policy
	locked      bool // should be
	credentials []probeCredentials
}

// probeCredentials are one set of credentials.
type probeCredentials struct {
	of      string
	entries []string
	secret  *corev1.Secret
	store   attacker
}

// shownProbe is a bucket as scripts get it.
type shownProbe struct {
	Bucket string       `json:"bucket"`
	Rounds []shownRound `json:"rounds"`
}

type shownRound struct {
	Credentials string    `json:"credentials"`
	Entries     []string  `json:"entries,omitempty"`
	At          time.Time `json:"at"`
	// Proven: the lock holds against these credentials.
	Proven  bool          `json:"proven"`
	Attacks []shownAttack `json:"attacks"`
}

type shownAttack struct {
	Name    string       `json:"name"`
	Outcome probeOutcome `json:"outcome"`
	Detail  string       `json:"detail"`
}

func (c *cli) probe(ctx context.Context, args []string, yes bool) error {
	find := c.probeTarget
	if c.bucketSecret != "" {
		find = c.probeTargetOfSecret
	}
	target, err := find(ctx, args)
	if err != nil {
		return err
	}
	c.say("This attacks the lock of bucket %s, with an object of its own under %s. Security monitoring may raise an alarm, and the "+
		"object stays until its retention ends.", target.bucket, probePrefix)
	if err := c.confirmed(yes); err != nil {
		return err
	}
	shown := shownProbe{Bucket: target.bucket}
	proven, succeeded := false, false
	known := &canaries{}
	for _, with := range target.credentials {
		r := &probeRound{keeper: target.credentials[0].store, attacker: with.store, policy: target.policy, canaries: known}
		result, err := r.run(ctx)
		if err != nil {
			return err
		}
		proven, succeeded = proven || result.proven(), succeeded || result.count(attackSucceeded) > 0
		round := shownRound{Credentials: with.of, Entries: with.entries, At: result.at.UTC().Truncate(time.Second), Proven: result.proven()}
		for _, a := range result.attacks {
			round.Attacks = append(round.Attacks, shownAttack{a.name, a.outcome, a.detail})
		}
		shown.Rounds = append(shown.Rounds, round)
	}
	if err := c.showProbe(shown); err != nil {
		return err
	}
	switch {
	case succeeded && target.locked:
		c.say("The lock of bucket %s does not hold.", target.bucket)
		return errFound
	case succeeded:
		c.say("Bucket %s is not locked, and should not be.", target.bucket)
	case proven:
		c.say("The lock of bucket %s holds.", target.bucket)
	case target.locked:
		c.say("Nothing is proven of bucket %s: no credentials could be used to show that it is the lock that refuses.", target.bucket)
		return errFound
	default:
		c.say("Bucket %s is not locked, and should not be; nothing was destroyed.", target.bucket)
	}
	return nil
}

// probeTarget opens the bucket of a BackupBucket.
func (c *cli) probeTarget(ctx context.Context, args []string) (*probeTarget, error) {
	if len(args) != 1 {
		return nil, usageErrorf("name one BackupBucket")
	}
	stores, err := c.stores()
	if err != nil {
		return nil, err
	}
	b, _, err := c.getBucket(ctx, args[0])
	if apierrors.IsNotFound(err) {
		err = fmt.Errorf("there is no BackupBucket %s (kubectl get backupbuckets lists them)", args[0])
	}
	if err != nil {
		return nil, err
	}
	v := c.viewBucket(ctx, stores, b)
	if v.err != nil {
		return nil, v.err
	}
	if !v.live.Exists {
		return nil, fmt.Errorf("there is no bucket %s", b.Name)
	}
	c.openContents(ctx, v)
	if v.closed != nil {
		return nil, v.closed
	}
	store, ok := v.objects.(attacker)
	if !ok {
		return nil, errNoAttack
	}
	target := &probeTarget{bucket: b.Name, policy: v.record.Policy, locked: stronger(v.desired.Policy, v.record.Policy).Locked}
	secret := v.secret
	if _, ok := v.provider().(accountProvider); ok {
		if generated, err := c.generatedSecret(ctx, b); err == nil && generated != nil {
			secret = generated
		}
	}
	target.credentials = []probeCredentials{{of: probeWithBucket, secret: secret, store: store}}
	return target, c.addEntries(ctx, stores, target)
}

var errNoAttack = errors.New("the store knows no attack")

// addEntries adds the credentials of live BackupEntries that are others than those that are there.
func (c *cli) addEntries(ctx context.Context, stores map[string]provider, target *probeTarget) error {
	return c.listEntries(ctx, func(e *backupEntry) {
		if e.BucketName != target.bucket || e.DeletionTimestamp != nil || strings.HasPrefix(e.Name, sourcePrefix) {
			return
		}
		b, err := c.open(ctx, stores, e)
		var secret *corev1.Secret
		if err == nil {
			secret, err = c.secret(ctx, e.SecretRef)
		}
		if err != nil {
			c.say("%s: not probed with the credentials of BackupEntry %s: %v", programName, e.Name, err)
			return
		}
		at := slices.IndexFunc(target.credentials, func(known probeCredentials) bool {
			return maps.EqualFunc(known.secret.Data, secret.Data, bytes.Equal)
		})
		store, ok := b.objects.(attacker)
		switch {
		case at >= 0:
			target.credentials[at].entries = append(target.credentials[at].entries, e.Name)
		case ok && len(target.credentials) < maxProbes:
			target.credentials = append(target.credentials, probeCredentials{of: probeWithEntry, entries: []string{e.Name}, secret: secret,
				store: store})
		default:
			c.say("%s: not probed with the credentials of BackupEntry %s: there are too many others", programName, e.Name)
		}
	})
}

// probeTargetOfSecret opens the bucket of --bucket-secret.
func (c *cli) probeTargetOfSecret(ctx context.Context, args []string) (*probeTarget, error) {
	if len(args) > 1 {
		return nil, usageErrorf("with --bucket-secret name one bucket")
	}
	secret, err := readSecretFile(c.bucketSecret)
	if err != nil {
		return nil, err
	}
	bucket := c.bucketIn(secret)
	if len(args) > 0 {
		bucket = args[0]
	}
	if bucket == "" {
		return nil, usageErrorf("give --bucket: the secret has no %s", dataKeyBucketName)
	}
	objects, err := c.openBucket(ctx, bucket, secret)
	if err != nil {
		return nil, err
	}
	store, ok := objects.(attacker)
	if !ok {
		return nil, errNoAttack
	}
	return &probeTarget{bucket: bucket, locked: true, credentials: []probeCredentials{{of: probeWithBucket, store: store}}}, nil
}

func (c *cli) showProbe(shown shownProbe) error {
	if !c.tabular() {
		return c.object(shown)
	}
	var rows [][]string
	for _, round := range shown.Rounds {
		with := round.Credentials
		if n := len(round.Entries); n > 0 && with == probeWithBucket {
			with = "bucket, entries"
		}
		for _, a := range round.Attacks {
			rows = append(rows, []string{with, a.Name, a.Outcome.text(), a.Detail, strings.Join(round.Entries, ",")})
		}
	}
	return c.table(strings.Fields("CREDENTIALS ATTACK OUTCOME WHY ENTRIES"), 3, rows)
}
