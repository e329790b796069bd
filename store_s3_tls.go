// TLS-only access to a bucket on S3: two statements in its policy.
//
// Rules:
//   - The policy of others is kept byte for byte beside our statements.
//   - A store that is not AWS is tried first, with statements about two keys of ours. Behind a proxy that ends TLS it takes
//     every request for plain HTTP, and the statements would lock everybody out; of some stores the owner is not bound by
//     policies at all, which is no TLS-only access.
//   - What was tried out is put back, whatever happens in between. What was left by a crash goes with the next change.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Sids of our statements in bucket policies.
const (
	s3SidTLS        = "BucketwardenDenyPlainHTTP"
	s3SidTLSVersion = "BucketwardenDenyOldTLS"
	// s3SidCheck begins those of statements that are there only while something is tried out.
	s3SidCheck = "BucketwardenCheck"
)

// Keys that the statements are tried on. There are no such objects.
const (
	s3CheckDenied = s3CheckPrefix + "denied"
	s3CheckTLS    = s3CheckPrefix + "tls"
)

// Gaps of TLS-only access.
const (
	gapPlainEndpoint = "The endpoint is plain http, so that TLS is not required."
	gapNoPolicies    = "The store has no bucket policies, so that plain HTTP is not denied."
	gapNoTLSVersion  = "The store does not know the policy condition s3:TlsVersion, so that TLS below 1.2 is not denied by it."
	gapUnreadable    = "The bucket policy is not a JSON object with statements, so that plain HTTP is not denied; it is left as it is."
	gapMalformed     = "The store refuses our statements in the bucket policy as malformed, so that plain HTTP is not denied."
	gapUntried       = "It cannot be tried whether plain HTTP could be denied without denying everything, since the credentials may not " +
		"write objects under " + s3CheckPrefix + " (s3:PutObject), so that plain HTTP is not denied."
	gapNotBinding = "Bucket policies do not bind these credentials on this store, so that plain HTTP is not denied to them."
	gapTLSEnds    = "The store takes HTTPS for plain HTTP, as it does behind a proxy that ends TLS: to deny plain HTTP would deny " +
		"everything, so that it is not denied."
	gapNotEnforced = "The store answers over plain HTTP in spite of the bucket policy, so that TLS is not enforced."
	gapLockedOut   = "The store denied everything once plain HTTP was denied, so that this was undone."
)

// ensureTLS denies plain HTTP and TLS below 1.2, in two statements: the conditions of
// one statement must all hold, which would deny neither alone.
func (b *s3Bucket) ensureTLS(ctx context.Context) (gap string, err error) {
	if b.plainHTTP {
		return gapPlainEndpoint, nil
	}
	var document string
	current, err := b.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: &b.Name})
	switch {
	case err == nil:
		document = aws.ToString(current.Policy)
	case s3Unsupported(err):
		return gapNoPolicies, nil
	case !s3NotSet(err):
		return "", err
	}
	if !b.aws {
		return b.ensureTriedTLS(ctx, document)
	}
	statements := b.tlsStatements(s3Whole)
	if b.noTLSVersion.Load() {
		statements, gap = statements[:1], gapNoTLSVersion
	}
	err = b.mergePolicy(ctx, document, statements)
	if s3ErrorCode(err) == "MalformedPolicy" && gap == "" {
		if err = b.mergePolicy(ctx, document, statements[:1]); err == nil {
			b.noTLSVersion.Store(true)
			gap = gapNoTLSVersion
		}
	}
	return s3PolicyGap(gap, err)
}

// s3PolicyGap is the gap of a change of the policy.
func s3PolicyGap(gap string, err error) (string, error) {
	switch {
	case errors.Is(err, errS3Policy):
		return gapUnreadable, nil
	case s3Unsupported(err):
		return gapNoPolicies, nil
	case s3ErrorCode(err) == "MalformedPolicy":
		return gapMalformed, nil
	}
	return gap, err
}

// s3TLS is what was found out about a store: how many of our statements it takes, and what is not denied.
type s3TLS struct {
	statements int
	gap        string
}

// ensureTriedTLS sets the statements that the store was found to take. It is tried once in the life of a client, and again if
// the statements are not as they were left.
func (b *s3Bucket) ensureTriedTLS(ctx context.Context, document string) (gap string, err error) {
	if known, ok := b.tlsTried.Load(b.Name); ok {
		found := known.(s3TLS)
		if _, changed, err := mergeS3Policy(document, b.tlsStatements(s3Whole)[:found.statements]); err != nil || !changed {
			return s3PolicyGap(found.gap, err)
		}
	}
	found, err := b.tryTLS(ctx, document)
	if err != nil {
		return s3PolicyGap("", err)
	}
	if found.gap != gapUntried { // a permission may come
		b.tlsTried.Store(b.Name, found)
	}
	return found.gap, nil
}

// tryTLS finds out which statements the store can have, and leaves it with them.
func (b *s3Bucket) tryTLS(ctx context.Context, document string) (found s3TLS, err error) {
	switch may, err := b.mayWrite(ctx, s3CheckTLS); {
	case err != nil:
		return found, err
	case !may:
		return s3TLS{gap: gapUntried}, nil
	}
	touched := false
	defer func() {
		if touched {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), s3RequestTimeout)
			defer cancel()
			err = errors.Join(err, b.restorePolicy(undo, document))
		}
	}()
	for n := 2; n > 0; n-- {
		gap := map[bool]string{true: gapNoTLSVersion}[n < 2]
		err := b.mergePolicy(ctx, document, append(b.tlsStatements(s3TLSCheck)[:n:n], b.denial()))
		if s3ErrorCode(err) == "MalformedPolicy" && n > 1 {
			continue
		}
		if err != nil {
			return found, err
		}
		touched = true
		switch binds, err := b.binds(ctx); {
		case err != nil:
			return found, err
		case !binds:
			return s3TLS{gap: gapNotBinding}, nil
		}
		switch may, err := b.mayWrite(ctx, s3CheckTLS); {
		case err != nil:
			return found, err
		case !may && n > 1:
			continue
		case !may:
			return s3TLS{gap: gapTLSEnds}, nil
		}
		if b.answersPlainHTTP(ctx) {
			gap = gapNotEnforced
		}
		// Always, also if our statements were there already: those that were tried have to go.
		merged, _, err := mergeS3Policy(document, b.tlsStatements(s3Whole)[:n])
		if err != nil {
			return found, err
		}
		if _, err := b.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: &b.Name, Policy: &merged}); err != nil {
			return found, err
		}
		if _, err := b.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: &b.Name}); s3Denied(err) {
			return s3TLS{gap: gapLockedOut}, nil
		}
		touched = false
		return s3TLS{statements: n, gap: gap}, nil
	}
	return found, nil
}

// binds says that a policy is in force for these credentials. It may take a moment.
func (b *s3Bucket) binds(ctx context.Context) (bool, error) {
	for attempt := 1; ; attempt++ {
		may, err := b.mayWrite(ctx, s3CheckDenied)
		if err != nil || !may || attempt == s3MaxAttempts {
			return err == nil && !may, err
		}
		if err := sleep(ctx, b.traits().backoff(attempt)); err != nil {
			return false, err
		}
	}
}

// mayWrite says whether the store would let us write a key: whether a multipart upload can be begun, which is aborted at once.
// Unlike an object it is retained nowhere, and unlike reads of what is not there it is judged by the policy everywhere: Ceph
// RGW tells the owner first that there is no such object.
func (b *s3Bucket) mayWrite(ctx context.Context, key string, options ...func(*s3.Options)) (bool, error) {
	begun, err := b.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.Name, Key: &key}, options...)
	switch {
	case s3Denied(err):
		return false, nil
	case err != nil:
		return false, err
	}
	_, err = b.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.Name, Key: &key, UploadId: begun.UploadId})
	if err != nil && !s3Denied(err) && s3ErrorCode(err) != "NoSuchUpload" {
		return false, err
	}
	return true, nil
}

// s3PlainTimeout is how long an answer over plain HTTP is waited for.
const s3PlainTimeout = 5 * time.Second

// answersPlainHTTP says that the store takes requests over plain HTTP. The request is about a key that nothing has; its
// signature tells nobody the secret key, and can be repeated only as it is.
func (b *s3Bucket) answersPlainHTTP(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, s3PlainTimeout)
	defer cancel()
	may, err := b.mayWrite(ctx, s3CheckTLS, s3Once, func(o *s3.Options) { o.BaseEndpoint = &b.plainURL })
	return may && err == nil
}

// s3PlainURL is where a store would serve plain HTTP that is known by an https endpoint: on the port of its own, if it has
// one, else on that of http.
func s3PlainURL(endpoint *url.URL) string {
	plain := *endpoint
	plain.Scheme = "http"
	if port := endpoint.Port(); port == "443" {
		plain.Host = strings.TrimSuffix(plain.Host, ":443")
	}
	return plain.String()
}

// mergePolicy puts our statements into the policy of others, if they are not there.
func (b *s3Bucket) mergePolicy(ctx context.Context, document string, statements []s3Statement) error {
	merged, changed, err := mergeS3Policy(document, statements)
	if err != nil || !changed {
		return err
	}
	_, err = b.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: &b.Name, Policy: &merged})
	return err
}

// restorePolicy puts back the policy of others after something was tried out.
func (b *s3Bucket) restorePolicy(ctx context.Context, document string) error {
	if merged, changed, err := mergeS3Policy(document, nil); err == nil && changed {
		document = merged // what an earlier attempt has left is not to be put back
	}
	if strings.TrimSpace(document) == "" || strings.HasSuffix(document, `"Statement":[]}`) {
		_, err := b.DeleteBucketPolicy(ctx, &s3.DeleteBucketPolicyInput{Bucket: &b.Name})
		return err
	}
	_, err := b.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: &b.Name, Policy: &document})
	return err
}

// s3Statement is a statement of ours in a bucket policy.
type s3Statement struct {
	Sid       string
	Effect    string
	Principal string
	Action    string
	Resource  []string
	Condition map[string]map[string]string `json:",omitempty"`
}

// s3Scope is what a statement is about.
type s3Scope int

const (
	// s3Whole is the bucket and everything in it.
	s3Whole s3Scope = iota
	// s3TLSCheck is the key that the statements are tried on.
	s3TLSCheck
)

func (b *s3Bucket) arn() string { return "arn:" + b.partition + ":s3:::" + b.Name }

func (b *s3Bucket) tlsStatements(scope s3Scope) []s3Statement {
	arn, prefix, action := b.arn(), "", "s3:*"
	resources := []string{arn, arn + "/*"}
	if scope == s3TLSCheck {
		prefix, action, resources = s3SidCheck, "s3:PutObject", []string{arn + "/" + s3CheckTLS}
	}
	deny := func(sid, operator, key, value string) s3Statement {
		return s3Statement{
			Sid: prefix + sid, Effect: "Deny", Principal: "*", Action: action, Resource: resources,
			Condition: map[string]map[string]string{operator: {key: value}},
		}
	}
	return []s3Statement{
		deny(s3SidTLS, "Bool", "aws:SecureTransport", "false"),
		deny(s3SidTLSVersion, "NumericLessThan", "s3:TlsVersion", "1.2"),
	}
}

// denial denies a key to everybody: while it does not, the policy is not in force.
func (b *s3Bucket) denial() s3Statement {
	return s3Statement{Sid: s3SidCheck + "Denied", Effect: "Deny", Principal: "*", Action: "s3:PutObject",
		Resource: []string{b.arn() + "/" + s3CheckDenied}}
}

var errS3Policy = errors.New("not a policy document")

// mergeS3Policy puts our statements into a policy document (empty if there is none)
// and says whether that changes anything. All else is kept byte for byte, but for what an
// earlier attempt to try something out has left.
func mergeS3Policy(document string, ours []s3Statement) (merged string, changed bool, err error) {
	fields := map[string]json.RawMessage{"Version": json.RawMessage(`"2012-10-17"`)}
	var statements []json.RawMessage
	if strings.TrimSpace(document) != "" {
		fields = nil
		if err := json.Unmarshal([]byte(document), &fields); err != nil || fields == nil {
			return "", false, errS3Policy
		}
		if raw := bytes.TrimSpace(fields["Statement"]); bytes.HasPrefix(raw, []byte("{")) {
			statements = []json.RawMessage{raw}
		} else if len(raw) > 0 {
			if err := json.Unmarshal(raw, &statements); err != nil {
				return "", false, errS3Policy
			}
		}
	}
	sids := make([]string, len(statements))
	for i, raw := range statements {
		var statement struct{ Sid string }
		if err := json.Unmarshal(raw, &statement); err != nil {
			return "", false, errS3Policy
		}
		sids[i] = statement.Sid
	}
	for i := len(sids) - 1; i >= 0; i-- {
		stale := func(ours s3Statement) bool { return ours.Sid == sids[i] }
		if strings.HasPrefix(sids[i], s3SidCheck) && !slices.ContainsFunc(ours, stale) {
			statements, sids, changed = slices.Delete(statements, i, i+1), slices.Delete(sids, i, i+1), true
		}
	}
	for _, statement := range ours {
		raw, err := json.Marshal(statement)
		if err != nil {
			return "", false, fmt.Errorf("encoding a policy statement: %w", err)
		}
		switch i := slices.Index(sids, statement.Sid); {
		case i < 0:
			statements, sids, changed = append(statements, raw), append(sids, statement.Sid), true
		case !sameS3Statement(statements[i], raw):
			statements[i], changed = raw, true
		}
	}
	// Not json.Marshal, which compacts and escapes what others wrote.
	fields["Statement"] = slices.Concat([]byte("["), bytes.Join(rawBytes(statements), []byte(",")), []byte("]"))
	var members [][]byte
	for _, name := range []string{"Version", "Id", "Statement"} {
		if raw, ok := fields[name]; ok {
			members = append(members, slices.Concat([]byte(`"`+name+`":`), raw))
			delete(fields, name)
		}
	}
	if len(fields) > 0 { // nothing that a policy document has
		return "", false, errS3Policy
	}
	return "{" + string(bytes.Join(members, []byte(","))) + "}", changed, nil
}

func rawBytes(raw []json.RawMessage) [][]byte {
	out := make([][]byte, len(raw))
	for i := range raw {
		out[i] = raw[i]
	}
	return out
}

// sameS3Statement compares the meaning of two statements: stores turn single values
// into lists, sort them and write the principal in another way.
func sameS3Statement(a, b []byte) bool {
	x, okX := normalS3Statement(a)
	y, okY := normalS3Statement(b)
	return okX && okY && reflect.DeepEqual(x, y)
}

func normalS3Statement(raw []byte) (map[string]any, bool) {
	var statement map[string]any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if decoder.Decode(&statement) != nil {
		return nil, false
	}
	if statement["Principal"] == "*" {
		statement["Principal"] = map[string]any{"AWS": "*"}
	}
	normal, _ := normalS3Value(statement).(map[string]any)
	return normal, true
}

func normalS3Value(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key := range v {
			v[key] = normalS3Value(v[key])
		}
		return v
	case []any:
		list := make([]string, len(v))
		for i := range v {
			list[i] = fmt.Sprint(v[i])
		}
		slices.Sort(list)
		return list
	}
	return []string{fmt.Sprint(v)}
}
