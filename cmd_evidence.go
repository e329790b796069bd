// bucketwarden evidence: what the daemon has signed about buckets, collected, shown and verified, from buckets or from files. This
// file has the command, its flags and where statements come from; evidence_chain.go judges them.
//
// Rules:
//   - Whatever is shown was verified with the keys of --key. Nothing is taken from a statement of which the signature is not good.
//   - Nothing is written but the files of collect. From files, nothing is asked of anybody.
//   - 0: all is as it should be. 2: something is wrong with the evidence, or there is none.

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// evidenceAction is what evidence can be asked for.
type evidenceAction struct {
	name, short string
	run         func(*evidenceRun, context.Context, []string) error
}

// evidenceActions are all of them, in the order in which help lists them.
var evidenceActions = []evidenceAction{
	{"verify", "says whether the statements are genuine, complete and consistent", (*evidenceRun).verify},
	{"show", "shows what they say; with -o json all of it", (*evidenceRun).show},
	{"report", "writes one HTML page for people, without any script, to standard output", (*evidenceRun).report},
	{"collect", "copies them into --directory, as they are", (*evidenceRun).collect},
}

// evidenceFlags registers flags of actions in other files.
var evidenceFlags []func(*evidenceRun, *flag.FlagSet)

var evidenceCommand = command{
	name: "evidence", args: evidenceArgs(), short: "Verifies, shows and collects what was signed about buckets",
	long: `With --evidence the daemon signs a statement about each bucket once a day and on every change, and keeps it in the
bucket. It is an in-toto Statement in a DSSE envelope, signed with Ed25519. An action is one of

` + evidenceActionsText() + `
The statements are read from the named BackupBuckets, with -f from files and directories, without asking anybody, or with
--bucket-secret from one bucket. The public keys of --key are all that is trusted; they are in the ConfigMap
bucketwarden-evidence of the daemon's namespace, and should come to you on another way than the statements:

  kubectl -n NAMESPACE get configmap bucketwarden-evidence -o jsonpath='{.data.evidence\.pub}' > evidence.pub

Exit code 2 says that a statement is missing, changed, not signed with one of the keys, or contradicts another, that the
bucket was not locked at a time, or that there is no statement. docs/evidence.md says how to verify without bucketwarden.`,
	examples: []string{
		"evidence verify 5f3a7c1e-9d2b-4c1f-8e57-2b6a90d1c4e3 --key evidence.pub",
		"evidence collect 5f3a7c1e-9d2b-4c1f-8e57-2b6a90d1c4e3 --directory evidence",
		"evidence verify -f evidence --key evidence.pub --from 2026-01-01 --to 2026-03-31",
		"evidence show -f evidence --key evidence.pub -o json",
		"evidence report -f evidence --key evidence.pub --from 2026-01-01 --to 2026-03-31 > report.html",
	},
	make: func(c *cli, fs *flag.FlagSet) func(context.Context, []string) error {
		e := &evidenceRun{cli: c}
		fs.Var(&e.files, "f", "`path` of a file with a statement, or of a directory with such files; can be given more than once")
		fs.Var(&e.keyFiles, "key", "`file` with the public keys that are trusted, in PEM; can be given more than once")
		fs.StringVar(&e.from, "from", "", "first `day` that counts, as 2026-01-31, at UTC")
		fs.StringVar(&e.to, "to", "", "last `day` that counts, for which there must be a statement; default: from a bucket that of yesterday "+
			"must be there, from files the newest is the last")
		fs.StringVar(&e.directory, "directory", "", "`directory` into which collect writes, one directory in it for each bucket")
		for _, register := range evidenceFlags {
			register(e, fs)
		}
		return e.run
	},
}

func evidenceArgs() string {
	var names []string
	for _, action := range evidenceActions {
		names = append(names, action.name)
	}
	return strings.Join(names, "|") + " [BUCKET...]"
}

func evidenceActionsText() string {
	var text strings.Builder
	for _, action := range evidenceActions {
		fmt.Fprintf(&text, "  %-8s %s\n", action.name, action.short)
	}
	return text.String()
}

// listFlag is a flag that can be given more than once.
type listFlag []string

func (l *listFlag) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *listFlag) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// evidenceRun is one run of the command.
type evidenceRun struct {
	*cli
	files, keyFiles     listFlag
	from, to, directory string
}

func (e *evidenceRun) run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usageErrorf("say what to do with the evidence: %s", evidenceArgs())
	}
	at := slices.IndexFunc(evidenceActions, func(a evidenceAction) bool { return a.name == args[0] })
	if at < 0 {
		return usageErrorf("evidence cannot %q: %s", args[0], evidenceArgs())
	}
	return evidenceActions[at].run(e, ctx, args[1:])
}

// read verifies what the arguments and flags name.
func (e *evidenceRun) read(ctx context.Context, names []string) (verified []verifiedEvidence, findings []evidenceFinding, err error) {
	query, err := e.query()
	if err != nil {
		return nil, nil, err
	}
	source, live, err := e.source(ctx, names)
	if err != nil {
		return nil, nil, err
	}
	if live && query.to.IsZero() {
		query.through = evidenceDue(time.Now())
	}
	verified, findings, err = readEvidence(source, query)
	return verified, findings, err
}

// evidenceDue is the last day of which there must be a statement in a bucket: that of today may be still to come.
func evidenceDue(now time.Time) time.Time {
	return now.Add(-24*time.Hour - evidenceSpread - evidencePatience)
}

// query reads the keys and days.
func (e *evidenceRun) query() (query evidenceQuery, err error) {
	if len(e.keyFiles) == 0 {
		return query, usageErrorf("give --key: a file with the public keys that are trusted")
	}
	for _, file := range e.keyFiles {
		text, err := readSmallFile(file, maxKeyFile)
		if err != nil {
			return query, fmt.Errorf("--key: %w", err)
		}
		keys, err := parsePublicKeys(text)
		if err != nil {
			return query, fmt.Errorf("--key: %s: %w", file, err)
		}
		query.keys = append(query.keys, keys...)
	}
	for _, of := range []struct {
		text string
		day  *time.Time
	}{{e.from, &query.from}, {e.to, &query.to}} {
		if of.text == "" {
			continue
		}
		if *of.day, err = time.Parse(time.DateOnly, of.text); err != nil {
			return query, usageErrorf("%q is no day as 2026-01-31", of.text)
		}
	}
	if !query.to.IsZero() && query.to.Before(query.from) {
		return query, usageErrorf("--to is before --from")
	}
	return query, nil
}

// source is where the statements are: files, or buckets that are live.
func (e *evidenceRun) source(ctx context.Context, names []string) (source iter.Seq2[storedEvidence, error], live bool, err error) {
	switch {
	case len(e.files) > 0 && (len(names) > 0 || e.bucketSecret != ""):
		return nil, false, usageErrorf("-f and buckets exclude each other")
	case len(e.files) > 0:
		return evidenceFiles(e.files), false, nil
	case e.bucketSecret == "" && len(names) == 0:
		return nil, false, usageErrorf("name a BackupBucket, or give -f or --bucket-secret")
	case e.bucketSecret != "" && len(names) > 0:
		return nil, false, usageErrorf("with --bucket-secret there is one bucket: that of --bucket")
	case e.bucketSecret == "" && cmp.Or(e.bucket, e.region, e.store, e.cloud) != "":
		return nil, false, usageErrorf("--bucket, --region, --store and --cloud go with --bucket-secret")
	}
	return func(yield func(storedEvidence, error) bool) {
		err := e.eachContents(ctx, names, func(bucket string, objects Objects) error {
			for stored, err := range evidenceIn(ctx, objects) {
				stored.bucket = bucket
				if err != nil {
					return err
				}
				if !yield(stored, nil) {
					return errStopped
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(storedEvidence{}, err)
		}
	}, true, nil
}

// errStopped ends a walk.
var errStopped = errors.New("stopped")

// eachContents opens what lies in the named buckets, or in that of --bucket-secret.
func (e *evidenceRun) eachContents(ctx context.Context, names []string, f func(bucket string, objects Objects) error) error {
	if e.bucketSecret != "" {
		secret, err := readSecretFile(e.bucketSecret)
		if err != nil {
			return err
		}
		bucket := e.bucketIn(secret)
		if bucket == "" {
			return usageErrorf("give --bucket: the secret has no %s", dataKeyBucketName)
		}
		objects, err := e.openBucket(ctx, bucket, secret)
		if err != nil {
			return err
		}
		return f(bucket, objects)
	}
	stores, err := e.stores()
	if err != nil {
		return err
	}
	for _, name := range names {
		b, _, err := e.getBucket(ctx, name)
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("there is no BackupBucket %s (kubectl get backupbuckets lists them)", name)
		}
		if err != nil {
			return err
		}
		v := &bucketView{b: b, scope: e.scopeFor(stores, b.Class)}
		if v.provider() == nil {
			return fmt.Errorf("spec.type of BackupBucket %s is %q, of which the store is not known: give --type %s=STORE", name, b.Type, b.Type)
		}
		v.desired, v.record = v.scope.readBucket(b)
		if err := e.openView(ctx, v); err != nil {
			return fmt.Errorf("bucket %s: %w", name, err)
		}
		if e.openContents(ctx, v); v.objects == nil {
			return fmt.Errorf("bucket %s: %w", name, cmp.Or(v.closed, errors.New("what lies in it cannot be read")))
		}
		if err := f(name, v.objects); err != nil {
			return err
		}
	}
	return nil
}

// evidenceIn are the statements in a bucket. Of the versions of an object the oldest with the content that its name says counts.
func evidenceIn(ctx context.Context, objects Objects) iter.Seq2[storedEvidence, error] {
	return func(yield func(storedEvidence, error) bool) {
		from, ok := objects.(reader)
		if !ok {
			yield(storedEvidence{}, errors.New("the store cannot be read"))
			return
		}
		var of []version // of one key
		flush := func() bool {
			for stored, err := range evidenceVersions(ctx, from, of) {
				if !yield(stored, err) || err != nil {
					return false
				}
			}
			of = nil
			return true
		}
		for page, err := range objects.pages(ctx, evidencePrefix, cursor{}) {
			if err != nil {
				yield(storedEvidence{}, err)
				return
			}
			for _, v := range page.versions {
				if len(of) > 0 && of[0].key != v.key && !flush() {
					return
				}
				of = append(of, v)
			}
		}
		flush()
	}
}

// maxEvidenceVersions bounds the versions of an object that are read.
const maxEvidenceVersions = 10

// evidenceVersions is the statement among the versions of one key, and what else is wrong with them.
func evidenceVersions(ctx context.Context, from reader, of []version) iter.Seq2[storedEvidence, error] {
	return func(yield func(storedEvidence, error) bool) {
		if len(of) == 0 {
			return
		}
		key := of[0].key
		problem := func(format string, args ...any) bool {
			return yield(storedEvidence{name: key, problem: fmt.Sprintf(format, args...)}, nil)
		}
		if _, ours := parseEvidenceName(key); !ours {
			problem("it is no statement; somebody else has put it there")
			return
		}
		slices.SortStableFunc(of, func(v, w version) int { return v.created.Compare(w.created) })
		var found *storedEvidence
		for i, v := range of {
			switch {
			case v.marker:
				if !problem("it was deleted at %s, in a way that leaves it there", formatTime(v.created)) {
					return
				}
			case found != nil && strings.HasSuffix(key, "-"+evidenceDigest(found.content)[:32]+".json"), i >= maxEvidenceVersions:
				if !problem("something else was written over it at %s", formatTime(v.created)) {
					return
				}
			default:
				content, err := readObject(ctx, from, v)
				if errors.Is(err, errNoVersion) {
					continue
				}
				if err != nil {
					yield(storedEvidence{}, err)
					return
				}
				if found == nil || strings.HasSuffix(key, "-"+evidenceDigest(content)[:32]+".json") {
					found = &storedEvidence{name: key, content: content}
				}
			}
		}
		if found != nil {
			yield(*found, nil)
		}
	}
}

// evidenceFiles are the statements in files, and in directories at any depth.
func evidenceFiles(paths []string) iter.Seq2[storedEvidence, error] {
	return func(yield func(storedEvidence, error) bool) {
		for _, root := range paths {
			err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				info, err := os.Stat(name)
				if err != nil || !info.Mode().IsRegular() || entry.Name() == evidenceTemporary {
					return err
				}
				if info.Size() > maxEvidence {
					if !yield(storedEvidence{name: name, problem: fmt.Sprintf("it is larger than the %d bytes that are read", maxEvidence)}, nil) {
						return errStopped
					}
					return nil
				}
				content, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				if !yield(storedEvidence{name: name, content: content}, nil) {
					return errStopped
				}
				return nil
			})
			if errors.Is(err, errStopped) {
				return
			}
			if err != nil {
				yield(storedEvidence{}, err)
				return
			}
		}
	}
}

// collect copies statements into a directory. A file that is there is not written again, unless it is another one.
func (e *evidenceRun) collect(ctx context.Context, names []string) error {
	if e.directory == "" {
		return usageErrorf("give --directory: where to write the statements")
	}
	if len(e.files) > 0 {
		return usageErrorf("collect copies from buckets, not from files")
	}
	source, _, err := e.source(ctx, names)
	if err != nil {
		return err
	}
	written, wrong := 0, false
	for stored, err := range source {
		if err != nil {
			return err
		}
		if stored.problem != "" {
			e.say("%s: %s", oneLine(stored.name), stored.problem)
			wrong = true
			continue
		}
		file := filepath.Join(e.directory, stored.bucket, path.Base(stored.name))
		if before, err := os.ReadFile(file); err == nil && bytes.Equal(before, stored.content) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, stored.content, 0o644); err != nil {
			return err
		}
		written++
	}
	e.say("%d statements are new in %s", written, e.directory)
	if wrong {
		return errFound
	}
	return nil
}

// evidenceVerdict is what verify says of a bucket, as scripts get it.
type evidenceVerdict struct {
	Bucket     string `json:"bucket"`
	Statements int    `json:"statements"`
	// From and To are the times of the first and the last statement.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Policy is that of the last one, VerifiedSince since when it says that it is verified without a gap.
	Policy        string     `json:"policy"`
	VerifiedSince *time.Time `json:"verifiedSince,omitempty"`
	// Keys are the ids of the keys that have signed.
	Keys     []string `json:"keys"`
	Findings int      `json:"findings"`
}

// verify tells of each bucket what its statements prove, and what is wrong.
func (e *evidenceRun) verify(ctx context.Context, names []string) error {
	verified, findings, err := e.read(ctx, names)
	if err != nil {
		return err
	}
	verdicts := judgeEvidence(verified, findings)
	if e.tabular() {
		err = e.showVerdicts(verdicts)
	} else {
		if findings == nil {
			findings = []evidenceFinding{}
		}
		err = e.object(map[string]any{"buckets": verdicts, "findings": findings})
	}
	if err != nil {
		return err
	}
	return e.tellFindings(verified, findings)
}

// tellFindings says what is wrong for people, and is errFound if anything is.
func (e *evidenceRun) tellFindings(verified []verifiedEvidence, findings []evidenceFinding) error {
	for _, f := range findings {
		e.say("%s: %s (%s)", oneLine(cmp.Or(f.Name, f.Bucket)), oneLine(f.Message), f.Kind)
	}
	if len(verified) == 0 {
		e.say("There is no statement that counts.")
	}
	if len(findings) > 0 || len(verified) == 0 {
		return errFound
	}
	return nil
}

// judgeEvidence sums up what there is of each bucket.
func judgeEvidence(verified []verifiedEvidence, findings []evidenceFinding) []evidenceVerdict {
	verdicts := []evidenceVerdict{}
	for i := range verified {
		v := &verified[i]
		last := len(verdicts) - 1
		if last < 0 || verified[i-1].bucket() != v.bucket() {
			verdicts = append(verdicts, evidenceVerdict{Bucket: v.Statement.Bucket.Name, From: v.Statement.Time})
			last++
		}
		of := &verdicts[last]
		of.Statements++
		of.To, of.VerifiedSince, of.Policy = v.Statement.Time, v.Statement.VerifiedSince, "unknown"
		if v.Statement.Policy != nil {
			of.Policy = v.Statement.Policy.policy().String()
		}
		if !slices.Contains(of.Keys, v.KeyID) {
			of.Keys = append(of.Keys, v.KeyID)
		}
	}
	for _, f := range findings {
		for i := range verdicts {
			if verdicts[i].Bucket == f.Bucket {
				verdicts[i].Findings++
			}
		}
	}
	return verdicts
}

func (e *evidenceRun) showVerdicts(verdicts []evidenceVerdict) error {
	if len(verdicts) == 0 {
		return nil
	}
	var rows [][]string
	for _, v := range verdicts {
		rows = append(rows, []string{v.Bucket, strconv.Itoa(v.Statements), formatTime(v.From), formatTime(v.To), v.Policy,
			formatTimeIf(v.VerifiedSince), strconv.Itoa(v.Findings), strings.Join(v.Keys, " ")})
	}
	return e.table([]string{"BUCKET", "STATEMENTS", "FROM", "TO", "POLICY", "VERIFIED-SINCE", "FINDINGS", "KEYS"}, 7, rows)
}

func formatTimeIf(t *time.Time) string {
	if t == nil {
		return ""
	}
	return formatTime(*t)
}

// show shows the statements that count; what is wrong is told too.
func (e *evidenceRun) show(ctx context.Context, names []string) error {
	verified, findings, err := e.read(ctx, names)
	if err != nil {
		return err
	}
	if !e.tabular() {
		if verified == nil {
			verified = []verifiedEvidence{}
		}
		err = e.object(verified)
	} else {
		var rows [][]string
		for i := range verified {
			s := &verified[i].Statement
			policy := "unknown"
			if s.Policy != nil {
				policy = s.Policy.policy().String()
			}
			var kinds []string
			for _, event := range s.Events {
				if !slices.Contains(kinds, event.Kind) {
					kinds = append(kinds, event.Kind)
				}
			}
			rows = append(rows, []string{s.Bucket.Name, strconv.FormatInt(s.Sequence, 10), formatTime(s.Time), s.Reason, policy,
				formatTimeIf(s.VerifiedSince), strconv.Itoa(len(s.Entries)), strings.Join(kinds, ","), verified[i].Digest, verified[i].KeyID})
		}
		if len(rows) > 0 {
			err = e.table([]string{"BUCKET", "NUMBER", "TIME", "REASON", "POLICY", "VERIFIED-SINCE", "ENTRIES", "EVENTS", "DIGEST", "KEY"}, 8, rows)
		}
	}
	if err != nil {
		return err
	}
	return e.tellFindings(verified, findings)
}
