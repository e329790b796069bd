package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestS3Harden(t *testing.T) {
	f := newFakeS3(t, true)
	b := f.custom("eu-west-1")
	if gaps, err := b.Harden(t.Context()); err != nil || len(gaps) != 0 {
		t.Fatal(gaps, err)
	}
	// What was set is looked at again, once.
	wantCalls(t, f, "GetBucketEncryption", "PutBucketEncryption", "GetBucketEncryption", "PutObject",
		"GetPublicAccessBlock", "PutPublicAccessBlock", "GetPublicAccessBlock", "PutObject",
		"GetBucketPolicy", "CreateMultipartUpload", "AbortMultipartUpload", "PutBucketPolicy", "CreateMultipartUpload",
		"CreateMultipartUpload", "AbortMultipartUpload", "PutBucketPolicy", "GetBucketPolicy")
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
	wantCalls(t, f, "GetBucketEncryption", "PutBucketEncryption", "GetBucketEncryption", "PutObject",
		"GetPublicAccessBlock", "PutPublicAccessBlock", "GetPublicAccessBlock", "PutObject")
}

// AWS is known to keep what it takes: nothing is tried there.
func TestS3HardenAWS(t *testing.T) {
	f := newFakeS3(t, false)
	b := f.aws("eu-west-1")
	if gaps, err := b.Harden(t.Context()); err != nil || len(gaps) != 0 {
		t.Fatal(gaps, err)
	}
	wantCalls(t, f, "STS.GetCallerIdentity", "GetBucketEncryption", "PutBucketEncryption", "GetPublicAccessBlock", "PutPublicAccessBlock",
		"GetBucketPolicy", "PutBucketPolicy")
	if gaps, err := b.Harden(t.Context()); err != nil || len(gaps) != 0 {
		t.Fatal(gaps, err)
	}
	wantCalls(t, f, "GetBucketEncryption", "GetPublicAccessBlock", "GetBucketPolicy")
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
		for i, want := range [][]string{{"GetBucketPolicy", "CreateMultipartUpload", "AbortMultipartUpload", "PutBucketPolicy", "PutBucketPolicy",
			"CreateMultipartUpload", "CreateMultipartUpload", "AbortMultipartUpload", "PutBucketPolicy", "GetBucketPolicy"}, {"GetBucketPolicy"}} {
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

// Ceph RGW 16 answers sub-resources that it does not know as if the bucket had been asked for, and refuses others with
// 400 or 404. None of that is anything but a gap.
func TestS3HardenUnforeseenAnswers(t *testing.T) {
	t.Parallel()
	const bucketList = `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>backups</Name><Prefix></Prefix><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>`
	reads, writes := []string{"GetBucketEncryption", "GetPublicAccessBlock", "GetBucketPolicy"}, []string{"PutBucketEncryption", "PutPublicAccessBlock", "PutBucketPolicy"}
	list := func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		_, _ = io.WriteString(w, bucketList)
		return true
	}
	type store struct {
		name    string
		prepare func(*fakeS3)
		gaps    int
	}
	stores := []store{{"Ceph RGW 16", func(f *fakeS3) {
		f.on["GetBucketEncryption"] = list
		f.refuse("PutBucketEncryption", -1, 400, "InvalidRequest", "")
	}, 1}, {"a list for everything", func(f *fakeS3) {
		for _, operation := range reads {
			f.on[operation] = list
		}
	}, 3}, {"nothing for everything", func(f *fakeS3) {
		for _, operation := range reads {
			f.on[operation] = func(http.ResponseWriter, *http.Request, string) bool { return true }
		}
		f.lock = lockDocument("")
	}, 2}, {"a page for everything", func(f *fakeS3) {
		for _, operation := range reads[:2] {
			f.on[operation] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				_, _ = io.WriteString(w, "<html><body>Welcome</body></html>")
				return true
			}
		}
	}, 2}}
	for _, status := range []int{400, 403, 404, 405, 409, 411, 418, 500, 501} {
		for _, code := range []string{"", "NeverHeardOf", "InvalidArgument", "InternalError"} {
			for what, operations := range map[string][]string{"read": reads, "written": writes} {
				stores = append(stores, store{fmt.Sprintf("%d %s, %s", status, code, what), func(f *fakeS3) {
					for _, operation := range operations {
						f.refuse(operation, -1, status, code, "no")
					}
				}, 3})
			}
		}
	}
	for _, test := range stores {
		t.Run(test.name, func(t *testing.T) {
			f := newFakeS3(t, true)
			test.prepare(f)
			b := f.custom("eu-west-1")
			first, err := b.Harden(t.Context())
			if err != nil || len(first) > test.gaps || len(first) == 0 {
				t.Fatalf("got %q, %v", first, err)
			}
			for _, gap := range first {
				if !strings.HasSuffix(gap, ".") || strings.ContainsAny(gap, "\n") || strings.Contains(gap, testSecretKey) {
					t.Errorf("the gap %q is not one sentence", gap)
				}
			}
			if second, err := b.Harden(t.Context()); err != nil || !slices.Equal(first, second) {
				t.Errorf("the gaps change from %q to %q, %v", first, second, err)
			}
		})
	}
}

// What is about the store, the credentials or the network says nothing about a feature: it is an error, to be asked again.
func TestS3HardenIsAskedAgain(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		code   string
		want   errorCode
	}{
		"slow down": {503, "SlowDown", codeRetryableDependencies}, "too many": {429, "", codeRateLimitsExceeded}, "bad gateway": {502, "", codeRetryableDependencies},
		"key": {403, "InvalidAccessKeyId", codeUnauthenticated}, "signature": {403, "SignatureDoesNotMatch", codeUnauthorized},
	} {
		for _, operation := range []string{"GetBucketEncryption", "PutPublicAccessBlock", "GetBucketPolicy"} {
			t.Run(name+" "+operation, func(t *testing.T) {
				f := newFakeS3(t, true)
				f.refuse(operation, -1, test.status, test.code, "")
				_, err := f.custom("eu-west-1").Harden(t.Context())
				wantS3Error(t, err, test.want)
			})
		}
	}
}

const (
	aes256 = "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"
	notSet = "ServerSideEncryptionConfigurationNotFoundError"
)

// A default encryption is kept only if an object could be written with it.
func TestS3EncryptionIsTried(t *testing.T) {
	const get, put, object, head, undo = "GetBucketEncryption", "PutBucketEncryption", "PutObject", "HeadObject", "DeleteBucketEncryption"
	thrice := []string{object, object, object}
	type round struct {
		gap   string
		calls []string
	}
	for name, test := range map[string]struct {
		prepare func(*fakeS3)
		created bool
		locked  bool
		rounds  []round
		// kept: there is a default encryption in the end.
		kept bool
		// retained: the object has a retention of its own.
		retained bool
	}{
		"works":           {rounds: []round{{"", []string{get, put, get, object}}, {"", []string{get}}}, kept: true},
		"under a policy":  {locked: true, rounds: []round{{"", []string{get, put, get, object}}, {"", []string{get}}}, kept: true, retained: true},
		"no retention":    {locked: true, prepare: func(f *fakeS3) { f.refusesRetention = true }, rounds: []round{{"", []string{get, put, get, object, object}}}, kept: true},
		"no key":          {prepare: func(f *fakeS3) { f.keyless = 500 }, rounds: []round{{gapNoKey, slices.Concat([]string{get, put, get, object}, thrice, []string{undo})}, {gapNoKey, []string{get}}}},
		"refuses objects": {prepare: func(f *fakeS3) { f.keyless = 400 }, rounds: []round{{gapNoKey, []string{get, put, get, object, undo}}, {gapNoKey, []string{get}}}},
		"is not kept": {prepare: func(f *fakeS3) {
			f.on[put] = func(http.ResponseWriter, *http.Request, string) bool { return true } // taken for the creation of the bucket
		}, rounds: []round{{gapEncryptionLost, []string{get, put, get}}}},
		"cannot be undone": {prepare: func(f *fakeS3) {
			f.keyless = 400
			f.refuse(undo, -1, 501, "NotImplemented", "")
		}, rounds: []round{{gapNotUndone, []string{get, put, get, object, undo}}}, kept: true},
		"of an earlier version, works": {prepare: func(f *fakeS3) { f.encryption = aes256 }, created: true,
			rounds: []round{{"", []string{get, head, object}}, {"", []string{get}}}, kept: true},
		"of an earlier version, no key": {prepare: func(f *fakeS3) { f.encryption, f.keyless = aes256, 500 }, created: true,
			rounds: []round{{gapNoKey, slices.Concat([]string{get, head, object}, thrice, []string{undo})}, {gapNoKey, []string{get}}}},
		"of somebody, no key": {prepare: func(f *fakeS3) { f.encryption, f.keyless = aes256, 500 },
			rounds: []round{{gapKeyless, slices.Concat([]string{get, head, object}, thrice)}}, kept: true},
		"was tried by an earlier life": {prepare: func(f *fakeS3) {
			f.encryption, f.puts[s3EncryptionCheck] = aes256, http.Header{}
		}, created: true, rounds: []round{{"", []string{get, head}}, {"", []string{get}}}, kept: true},
		"with a key of somebody's": {prepare: func(f *fakeS3) {
			f.encryption, f.keyless = strings.Replace(aes256, "AES256", "aws:kms", 1), 500
		}, created: true, rounds: []round{{"", []string{get}}}, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, false)
			if test.prepare != nil {
				test.prepare(f)
			}
			b := f.custom("eu-west-1")
			b.Created = test.created
			if test.locked {
				f.lock = lockDocument(lockRule("COMPLIANCE", "<Days>36500</Days>"))
				if _, err := b.Observe(t.Context()); err != nil {
					t.Fatal(err)
				}
				f.takeCalls()
			}
			for i, round := range test.rounds {
				gap, err := b.ensureEncryption(t.Context())
				if err != nil || gap != round.gap {
					t.Errorf("round %d: got %q, %v, want %q", i, gap, err, round.gap)
				}
				wantCalls(t, f, round.calls...)
			}
			if kept := f.encryption != notSet; kept != test.kept && name != "is not kept" {
				t.Errorf("the default encryption is %s", f.encryption)
			}
			until := f.puts[s3EncryptionCheck].Get("X-Amz-Object-Lock-Retain-Until-Date")
			end, _ := time.Parse(time.RFC3339, until)
			if (until != "") != test.retained || test.retained && (time.Until(end) > time.Hour || time.Until(end) < s3ClockSkew) {
				t.Errorf("the object is retained until %q", until)
			}
		})
	}
	t.Run("the network breaks", func(t *testing.T) {
		f := newFakeS3(t, false)
		f.refuse(object, s3MaxAttempts, 503, "SlowDown", "")
		b := f.custom("eu-west-1")
		if _, err := b.ensureEncryption(t.Context()); !isTransient(err) || f.encryption != notSet {
			t.Errorf("got %v with %s", err, f.encryption)
		}
		if gap, err := b.ensureEncryption(t.Context()); gap != "" || err != nil || f.encryption == notSet {
			t.Errorf("got %q, %v with %s", gap, err, f.encryption)
		}
	})
}

func TestS3PublicAccessBlock(t *testing.T) {
	block := func(settings ...bool) string {
		text := "<PublicAccessBlockConfiguration>"
		for i, name := range []string{"BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"} {
			text += fmt.Sprintf("<%s>%t</%s>", name, settings[i], name)
		}
		return text + "</PublicAccessBlockConfiguration>"
	}
	const get, put, object = "GetPublicAccessBlock", "PutPublicAccessBlock", "PutObject"
	off := block(false, false, false, false)
	for name, test := range map[string]struct {
		block string
		aws   bool
		lost  bool
		gap   string
		calls []string
	}{
		"none":                        {block: "NoSuchPublicAccessBlockConfiguration", calls: []string{get, put, get, object}},
		"another word for none":       {block: "NoSuchConfiguration", calls: []string{get, put, get, object}},
		"all off, by default":         {block: off, calls: []string{get, put, get, object}},
		"no settings":                 {block: "<PublicAccessBlockConfiguration/>", calls: []string{get, put, get, object}},
		"all on":                      {block: block(true, true, true, true), calls: []string{get, "HeadObject", object}},
		"all on, on AWS":              {block: block(true, true, true, true), aws: true, calls: []string{get}},
		"without ACLs":                {block: block(false, true, true, true), gap: gapBlockACLs, calls: []string{get}},
		"without ACLs, on AWS":        {block: block(false, true, true, true), aws: true, gap: "Somebody configured the public access block with BlockPublicAcls off", calls: []string{get}},
		"one off":                     {block: block(true, true, false, true), gap: "BlockPublicPolicy off", calls: []string{get}},
		"all off, on AWS":             {block: off, aws: true, gap: "BlockPublicAcls, IgnorePublicAcls, BlockPublicPolicy, RestrictPublicBuckets off", calls: []string{get}},
		"none, on AWS":                {block: "NoSuchPublicAccessBlockConfiguration", aws: true, calls: []string{get, put}},
		"all off, and it is not kept": {block: off, lost: true, gap: gapBlockLost, calls: []string{get, put, get}},
		"none, and it is not kept":    {block: "NoSuchPublicAccessBlockConfiguration", lost: true, gap: gapBlockLost, calls: []string{get, put, get}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeS3(t, false)
			f.block = test.block
			if test.lost {
				f.on[put] = func(http.ResponseWriter, *http.Request, string) bool { return true }
			}
			b := f.custom("eu-west-1")
			if test.aws {
				b = f.aws("eu-west-1")
			}
			gap, err := b.ensurePrivate(t.Context())
			if err != nil || !strings.Contains(gap, test.gap) || (gap == "") != (test.gap == "") {
				t.Errorf("got %q, %v", gap, err)
			}
			calls := slices.DeleteFunc(f.takeCalls(), func(call string) bool { return strings.HasPrefix(call, "STS.") })
			if !slices.Equal(calls, test.calls) {
				t.Errorf("got requests %q, want %q", calls, test.calls)
			}
		})
	}
}
