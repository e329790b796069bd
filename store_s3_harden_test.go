package main

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestS3Harden(t *testing.T) {
	f := newFakeS3(t, true)
	b := f.custom("eu-west-1")
	if gaps, err := b.Harden(t.Context()); err != nil || len(gaps) != 0 {
		t.Fatal(gaps, err)
	}
	wantCalls(t, f, "GetBucketEncryption", "PutBucketEncryption", "GetPublicAccessBlock", "PutPublicAccessBlock", "GetBucketPolicy", "PutBucketPolicy")
	if !strings.Contains(f.encryption, "AES256") || strings.Count(f.block, ">true<") != 4 {
		t.Errorf("got %s and %s", f.encryption, f.block)
	}
	var policy struct {
		Version   string
		Statement []struct {
			Sid, Effect, Principal, Action string
			Resource                       []string
			Condition                      map[string]map[string]string
		}
	}
	if err := json.Unmarshal([]byte(f.policy), &policy); err != nil || policy.Version != "2012-10-17" || len(policy.Statement) != 2 {
		t.Fatalf("got %s, %v", f.policy, err)
	}
	conditions := []map[string]map[string]string{{"Bool": {"aws:SecureTransport": "false"}}, {"NumericLessThan": {"s3:TlsVersion": "1.2"}}}
	for i, s := range policy.Statement {
		if s.Effect != "Deny" || s.Principal != "*" || s.Action != "s3:*" || !slices.Equal(s.Resource, []string{"arn:aws:s3:::backups", "arn:aws:s3:::backups/*"}) || !reflect.DeepEqual(s.Condition, conditions[i]) {
			t.Errorf("got statement %+v", s)
		}
	}

	if gaps, err := b.Harden(t.Context()); err != nil || len(gaps) != 0 {
		t.Fatal(gaps, err)
	}
	wantCalls(t, f, "GetBucketEncryption", "GetPublicAccessBlock", "GetBucketPolicy")

	f.encryption = "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"
	f.block = "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>false</IgnorePublicAcls><BlockPublicPolicy>true</BlockPublicPolicy><RestrictPublicBuckets>false</RestrictPublicBuckets></PublicAccessBlockConfiguration>"
	gaps, err := b.Harden(t.Context())
	if err != nil || len(gaps) != 1 || !strings.Contains(gaps[0], "IgnorePublicAcls, RestrictPublicBuckets off") {
		t.Errorf("got %q, %v", gaps, err)
	}
	wantCalls(t, f, "GetBucketEncryption", "GetPublicAccessBlock", "GetBucketPolicy")
}

func TestS3HardenPlainHTTPHasNoPolicy(t *testing.T) {
	f := newFakeS3(t, false)
	if gaps, err := f.custom("eu-west-1").Harden(t.Context()); err != nil || len(gaps) != 1 || !strings.Contains(gaps[0], "plain http") {
		t.Fatal(gaps, err)
	}
	wantCalls(t, f, "GetBucketEncryption", "PutBucketEncryption", "GetPublicAccessBlock", "PutPublicAccessBlock")
}

func TestS3HardenGaps(t *testing.T) {
	for name, test := range map[string]struct {
		refuse map[string]int // operation to status
		want   int
	}{
		"nothing can be read":    {map[string]int{"GetBucketEncryption": 501, "GetPublicAccessBlock": 405, "GetBucketPolicy": 501}, 3},
		"nothing can be written": {map[string]int{"PutBucketEncryption": 501, "PutPublicAccessBlock": 501, "PutBucketPolicy": 405}, 3},
		"no KMS":                 {map[string]int{"PutBucketEncryption": 501}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, true)
			for operation, status := range test.refuse {
				f.refuse(operation, -1, status, "NotImplemented", "")
			}
			b := f.custom("eu-west-1")
			first, err := b.Harden(t.Context())
			if err != nil || len(first) != test.want {
				t.Fatalf("got %q, %v", first, err)
			}
			if second, err := b.Harden(t.Context()); err != nil || !slices.Equal(first, second) {
				t.Errorf("gaps change from %q to %q, %v", first, second, err)
			}
		})
	}

	t.Run("no TlsVersion", func(t *testing.T) {
		f := newFakeS3(t, true)
		f.on["PutBucketPolicy"] = func(w http.ResponseWriter, _ *http.Request, body string) bool {
			if strings.Contains(body, "TlsVersion") {
				answerS3Error(w, http.StatusBadRequest, "MalformedPolicy", "invalid condition key")
				return true
			}
			return false
		}
		b := f.custom("eu-west-1")
		for i, want := range [][]string{{"GetBucketPolicy", "PutBucketPolicy", "PutBucketPolicy"}, {"GetBucketPolicy"}} {
			gap, err := b.ensureTLS(t.Context())
			if err != nil || !strings.Contains(gap, "s3:TlsVersion") || !strings.Contains(f.policy, "aws:SecureTransport") {
				t.Fatalf("round %d: got %q, %v with %s", i, gap, err, f.policy)
			}
			wantCalls(t, f, want...)
		}
	})
	t.Run("denied", func(t *testing.T) {
		f := newFakeS3(t, true)
		f.refuse("PutBucketPolicy", -1, 403, "AccessDenied", "")
		gaps, err := f.custom("eu-west-1").Harden(t.Context())
		if err != nil || len(gaps) != 1 || !strings.Contains(gaps[0], "s3:PutBucketPolicy") || !strings.HasPrefix(gaps[0], "S3 PutBucketPolicy") {
			t.Errorf("got %q, %v", gaps, err)
		}
	})
	for name, policy := range map[string]string{"not JSON": "hello", "no object": `["a"]`, "null": "null", "odd statement": `{"Statement":"x"}`, "odd member": `{"Statement":[1]}`} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, true)
			f.policy = policy
			gap, err := f.custom("eu-west-1").ensureTLS(t.Context())
			if err != nil || !strings.Contains(gap, "left as it is") || f.policy != policy {
				t.Errorf("got %q, %v, and policy %s", gap, err, f.policy)
			}
		})
	}
}

func TestMergeS3Policy(t *testing.T) {
	b := &s3Bucket{s3Client: &s3Client{partition: "aws"}, bucketRef: bucketRef{Name: "backups"}}
	ours := b.tlsStatements(s3Whole)
	fresh, changed, err := mergeS3Policy("", ours)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	_, statements, _ := strings.Cut(strings.TrimSuffix(fresh, "]}"), "[")
	const foreign = `{"Sid":"Theirs",  "Effect":"Allow","Principal":{"AWS":"arn:aws:iam::1:root"},"Action":"s3:Get<x>&","Resource":"*", "Condition":{"NumericLessThan":{"n":1.50}}}`
	minio := strings.NewReplacer(`"Principal":"*"`, `"Principal":{"AWS":["*"]}`, `"s3:*"`, `["s3:*"]`, `"false"`, `["false"]`,
		`["arn:aws:s3:::backups","arn:aws:s3:::backups/*"]`, `["arn:aws:s3:::backups/*","arn:aws:s3:::backups"]`).Replace(fresh)
	for name, test := range map[string]struct{ current, want string }{
		"equal":                {fresh, ""},
		"spelled by MinIO":     {minio, ""},
		"boolean":              {strings.Replace(fresh, `"false"`, `false`, 1), ""},
		"number":               {strings.Replace(fresh, `"1.2"`, `1.2`, 1), ""},
		"foreign is kept":      {`{"Id":"x","Version":"2008-10-17","Statement":[` + foreign + `]}`, `{"Version":"2008-10-17","Id":"x","Statement":[` + foreign + `,` + statements + `]}`},
		"single statement":     {`{"Statement":` + foreign + `}`, `{"Statement":[` + foreign + `,` + statements + `]}`},
		"no statement":         {`{"Version":"2012-10-17"}`, fresh},
		"ours between theirs":  {`{"Version":"2012-10-17","Statement":[` + statements + `,` + foreign + `]}`, ""},
		"allowed":              {strings.Replace(fresh, `"Deny"`, `"Allow"`, 1), fresh},
		"less resources":       {strings.Replace(fresh, `,"arn:aws:s3:::backups/*"`, "", 1), fresh},
		"weaker principal":     {strings.Replace(fresh, `"Principal":"*"`, `"Principal":{"AWS":"arn:aws:iam::1:root"}`, 1), fresh},
		"further condition":    {strings.Replace(fresh, `{"Bool":`, `{"StringEquals":{"a":"b"},"Bool":`, 1), fresh},
		"lower version":        {strings.Replace(fresh, `"1.2"`, `"1.0"`, 1), fresh},
		"ours changed, theirs": {`{"Version":"2012-10-17","Statement":[` + foreign + `,` + strings.ReplaceAll(statements, "Deny\"", "Allow\"") + `]}`, `{"Version":"2012-10-17","Statement":[` + foreign + `,` + statements + `]}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, changed, err := mergeS3Policy(test.current, ours)
			if err != nil || changed != (test.want != "") || changed && got != test.want {
				t.Errorf("got changed %t, %v:\n%s\nwant\n%s", changed, err, got, test.want)
			}
		})
	}
}
