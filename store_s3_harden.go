// What makes a bucket on S3 safer beside its policy: encryption, no public access, TLS.
//
// Rules:
//   - What others configured is left as it is.
//   - What cannot be done is a gap, one sentence, always the same for the same bucket.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Harden implements Store.
func (b *s3Bucket) Harden(ctx context.Context) ([]string, error) {
	var gaps []string
	for _, ensure := range []func(context.Context) (string, error){b.ensureEncryption, b.ensurePrivate, b.ensureTLS} {
		gap, err := ensure(ctx)
		switch {
		case s3Denied(err):
			// A missing permission for hardening must not keep the bucket from being locked.
			gap = b.fail(err).Error() + "."
		case err != nil:
			return gaps, b.fail(err)
		}
		if gap != "" {
			gaps = append(gaps, gap)
		}
	}
	return gaps, nil
}

func (b *s3Bucket) ensureEncryption(ctx context.Context) (gap string, err error) {
	const unsupported = "The store cannot encrypt objects by default."
	encryption, err := b.GetBucketEncryption(ctx, &s3.GetBucketEncryptionInput{Bucket: &b.Name})
	switch {
	case err == nil:
		if c := encryption.ServerSideEncryptionConfiguration; c != nil && len(c.Rules) > 0 {
			return "", nil
		}
	case s3Unsupported(err):
		return unsupported, nil
	case s3ErrorCode(err) != "ServerSideEncryptionConfigurationNotFoundError":
		return "", err
	}
	_, err = b.PutBucketEncryption(ctx, &s3.PutBucketEncryptionInput{
		Bucket: &b.Name,
		ServerSideEncryptionConfiguration: &types.ServerSideEncryptionConfiguration{Rules: []types.ServerSideEncryptionRule{{
			ApplyServerSideEncryptionByDefault: &types.ServerSideEncryptionByDefault{SSEAlgorithm: types.ServerSideEncryptionAes256},
		}}},
	})
	if s3Unsupported(err) {
		return unsupported, nil
	}
	return "", err
}

func (b *s3Bucket) ensurePrivate(ctx context.Context) (gap string, err error) {
	const unsupported = "The store cannot block public access."
	block, err := b.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: &b.Name})
	switch {
	case err == nil:
		c := block.PublicAccessBlockConfiguration
		if c == nil || *c == (types.PublicAccessBlockConfiguration{}) {
			return unsupported, nil // it answered another question
		}
		var off []string
		for _, setting := range []struct {
			name string
			on   *bool
		}{
			{"BlockPublicAcls", c.BlockPublicAcls}, {"IgnorePublicAcls", c.IgnorePublicAcls},
			{"BlockPublicPolicy", c.BlockPublicPolicy}, {"RestrictPublicBuckets", c.RestrictPublicBuckets},
		} {
			if !aws.ToBool(setting.on) {
				off = append(off, setting.name)
			}
		}
		if len(off) > 0 {
			return fmt.Sprintf("Somebody configured the public access block with %s off; it is left as it is.", strings.Join(off, ", ")), nil
		}
		return "", nil
	case s3Unsupported(err):
		return unsupported, nil
	case s3ErrorCode(err) != "NoSuchPublicAccessBlockConfiguration":
		return "", err
	}
	on := aws.Bool(true)
	_, err = b.PutPublicAccessBlock(ctx, &s3.PutPublicAccessBlockInput{
		Bucket: &b.Name,
		PublicAccessBlockConfiguration: &types.PublicAccessBlockConfiguration{
			BlockPublicAcls: on, IgnorePublicAcls: on, BlockPublicPolicy: on, RestrictPublicBuckets: on,
		},
	})
	if s3Unsupported(err) {
		return unsupported, nil
	}
	return "", err
}

// Sids of our statements in bucket policies.
const (
	s3SidTLS        = "BucketwardenDenyPlainHTTP"
	s3SidTLSVersion = "BucketwardenDenyOldTLS"
)

// ensureTLS denies plain HTTP and TLS below 1.2, in two statements: the conditions of
// one statement must all hold, which would deny neither alone.
func (b *s3Bucket) ensureTLS(ctx context.Context) (gap string, err error) {
	const (
		noPolicies = "The store has no bucket policies, so that plain HTTP is not denied."
		noVersion  = "The store does not know the policy condition s3:TlsVersion, so that TLS below 1.2 is not denied by it."
		unreadable = "The bucket policy is not a JSON object with statements, so that plain HTTP is not denied; it is left as it is."
		refused    = "The store refuses our statements in the bucket policy as malformed, so that plain HTTP is not denied."
	)
	if b.plainHTTP {
		return "The endpoint is plain http, so that TLS is not required.", nil
	}
	var document string
	current, err := b.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: &b.Name})
	switch {
	case err == nil:
		document = aws.ToString(current.Policy)
	case s3Unsupported(err):
		return noPolicies, nil
	case s3ErrorCode(err) != "NoSuchBucketPolicy":
		return "", err
	}
	put := func(statements []s3Statement) error {
		merged, changed, err := mergeS3Policy(document, statements)
		if err != nil || !changed {
			return err
		}
		_, err = b.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: &b.Name, Policy: &merged})
		return err
	}
	statements := b.tlsStatements()
	if b.noTLSVersion.Load() {
		statements, gap = statements[:1], noVersion
	}
	err = put(statements)
	if s3ErrorCode(err) == "MalformedPolicy" && gap == "" {
		if err = put(statements[:1]); err == nil {
			b.noTLSVersion.Store(true)
			gap = noVersion
		}
	}
	switch {
	case errors.Is(err, errS3Policy):
		return unreadable, nil
	case s3Unsupported(err):
		return noPolicies, nil
	case s3ErrorCode(err) == "MalformedPolicy":
		return refused, nil
	}
	return gap, err
}

// s3Statement is a statement of ours in a bucket policy.
type s3Statement struct {
	Sid       string
	Effect    string
	Principal string
	Action    string
	Resource  []string
	Condition map[string]map[string]string
}

func (b *s3Bucket) tlsStatements() []s3Statement {
	arn := "arn:" + b.partition + ":s3:::" + b.Name
	deny := func(sid, operator, key, value string) s3Statement {
		return s3Statement{
			Sid: sid, Effect: "Deny", Principal: "*", Action: "s3:*", Resource: []string{arn, arn + "/*"},
			Condition: map[string]map[string]string{operator: {key: value}},
		}
	}
	return []s3Statement{
		deny(s3SidTLS, "Bool", "aws:SecureTransport", "false"),
		deny(s3SidTLSVersion, "NumericLessThan", "s3:TlsVersion", "1.2"),
	}
}

var errS3Policy = errors.New("not a policy document")

// mergeS3Policy puts our statements into a policy document (empty if there is none)
// and says whether that changes anything. All else is kept byte for byte.
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
