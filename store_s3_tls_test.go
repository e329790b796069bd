package main

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// On a store that is not AWS the TLS-only statements are tried on keys of ours before they are set.
func TestS3TLSIsTried(t *testing.T) {
	const (
		get, put, undo = "GetBucketPolicy", "PutBucketPolicy", "DeleteBucketPolicy"
		// no is an attempt to write that is denied, may one that is not.
		no, may = "CreateMultipartUpload", "CreateMultipartUpload AbortMultipartUpload"
		theirs  = `{"Version":"2012-10-17","Statement":[{"Sid":"Theirs",  "Effect":"Deny","Principal":"*","Action":"s3:GetObject","Resource":["arn:aws:s3:::backups/secret"]}]}`
	)
	tried := []string{get, may, put, no, may, put, get}
	for name, test := range map[string]struct {
		prepare func(*fakeS3)
		gap     string
		// statements are how many of ours there are in the end.
		statements int
		calls      []string
		// again are the requests of the next pass of the same life.
		again []string
	}{
		"enforced":                {statements: 2, calls: tried, again: []string{get}},
		"enforced, plain as well": {prepare: (*fakeS3).alsoPlain, statements: 2, calls: []string{get, may, put, no, may, no, put, get}, again: []string{get}},
		"in force after a while":  {prepare: func(f *fakeS3) { f.lag = 2 }, statements: 2, calls: []string{get, may, put, may, may, no, may, put, get}, again: []string{get}},
		"does not bind the owner": {prepare: func(f *fakeS3) { f.unbound = true }, gap: gapNotBinding, calls: []string{get, may, put, may, may, may, may, "restored"}, again: []string{get}},
		"a proxy ends TLS":        {prepare: func(f *fakeS3) { f.endsTLS = true }, gap: gapTLSEnds, calls: []string{get, may, put, no, no, put, no, no, "restored"}, again: []string{get}},
		"takes an unknown version of TLS for an old one": {prepare: func(f *fakeS3) { f.oddVersion = true }, gap: gapNoTLSVersion, statements: 1,
			calls: []string{get, may, put, no, no, put, no, may, put, get}, again: []string{get}},
		"plain HTTP works": {prepare: func(f *fakeS3) {
			f.ignoresTransport = true
			f.alsoPlain()
		}, gap: gapNotEnforced, statements: 2, calls: []string{get, may, put, no, may, may, put, get}, again: []string{get}},
		"may not write": {prepare: func(f *fakeS3) { f.refuse(no, -1, 403, "AccessDenied", "") }, gap: gapUntried, calls: []string{get, no}, again: []string{get, no}},
		"no policies":   {prepare: func(f *fakeS3) { f.refuse(put, -1, 501, "NotImplemented", "") }, gap: gapNoPolicies, calls: []string{get, may, put}, again: []string{get, may, put}},
		"no statement":  {prepare: func(f *fakeS3) { f.refuse(put, -1, 400, "MalformedPolicy", "") }, gap: gapMalformed, calls: []string{get, may, put, put}, again: []string{get, may, put, put}},
		"locks out after all": {prepare: func(f *fakeS3) {
			gets := 0
			f.on[get] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
				if gets++; gets == 2 {
					answerS3Error(w, http.StatusForbidden, "AccessDenied", "locked out")
				}
				return gets == 2
			}
		}, gap: gapLockedOut, calls: append(slices.Clone(tried), "restored"), again: []string{get}},
	} {
		for _, document := range []string{"", theirs} {
			t.Run(name+map[bool]string{true: ", no policy", false: ", a policy of others"}[document == ""], func(t *testing.T) {
				f := newFakeS3(t, true)
				f.policy = document
				if test.prepare != nil {
					test.prepare(f)
				}
				b := f.custom("eu-west-1")
				restored := map[bool]string{true: undo, false: put}[document == ""]
				for i, calls := range [][]string{test.calls, test.again} {
					gap, err := b.ensureTLS(t.Context())
					if err != nil || gap != test.gap {
						t.Errorf("round %d: got %q, %v", i, gap, err)
					}
					calls = strings.Fields(strings.Join(calls, " "))
					if at := slices.Index(calls, "restored"); at >= 0 {
						calls[at] = restored
					}
					wantCalls(t, f, calls...)
				}
				if n := strings.Count(f.policy, `"BucketwardenDeny`); n != test.statements || strings.Contains(f.policy, s3SidCheck) {
					t.Errorf("%d of our statements are in %s", n, f.policy)
				}
				if test.statements == 0 && f.policy != document || document != "" && !strings.Contains(f.policy, `{"Sid":"Theirs",  "Effect":"Deny"`) {
					t.Errorf("the policy of others is now %s", f.policy)
				}
				// Another life comes to the same.
				if gap, err := f.custom("eu-west-1").ensureTLS(t.Context()); (err != nil || gap != test.gap) && test.gap != gapLockedOut {
					t.Errorf("another life: got %q, %v", gap, err)
				}
				n := strings.Count(f.policy, `"BucketwardenDeny`)
				if n != test.statements && test.gap != gapLockedOut || strings.Contains(f.policy, s3SidCheck) {
					t.Errorf("another life: %d of our statements are in %s", n, f.policy)
				}
			})
		}
	}
}

// Whatever breaks while something is tried, the policy of others is there again.
func TestS3TLSTrialBreaks(t *testing.T) {
	const theirs = `{"Version":"2012-10-17","Statement":[{"Sid":"Theirs","Effect":"Deny","Principal":"*","Action":"s3:GetObject","Resource":["arn:aws:s3:::backups/secret"]}]}`
	for at := range 4 {
		f := newFakeS3(t, true)
		f.policy = theirs
		reads := 0
		f.on["CreateMultipartUpload"] = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			if reads++; reads > at {
				answerS3Error(w, http.StatusInternalServerError, "InternalError", "broken")
				return true
			}
			return false
		}
		b := f.custom("eu-west-1")
		if _, err := b.ensureTLS(t.Context()); (err == nil) != (at == 3) {
			t.Errorf("broken at attempt %d: %v", at, err)
		}
		if at < 3 && f.policy != theirs {
			t.Errorf("broken at attempt %d: the policy is %s", at, f.policy)
		}
	}
	// What a crash has left goes with the next change, and is not restored.
	f := newFakeS3(t, true)
	b := f.custom("eu-west-1")
	left, _, err := mergeS3Policy(theirs, append(b.tlsStatements(s3TLSCheck), b.denial()))
	if err != nil {
		t.Fatal(err)
	}
	f.policy, f.unbound = left, true
	if gap, err := b.ensureTLS(t.Context()); err != nil || gap != gapNotBinding || f.policy != theirs {
		t.Errorf("got %q, %v, the policy is %s", gap, err, f.policy)
	}
}

func TestS3PlainURL(t *testing.T) {
	for endpoint, want := range map[string]string{
		"https://s3.example.com": "http://s3.example.com", "https://s3.example.com:443/x": "http://s3.example.com/x",
		"https://10.0.0.1:9000": "http://10.0.0.1:9000", "https://[::1]:443": "http://[::1]",
	} {
		u, err := url.Parse(endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if got := s3PlainURL(u); got != want {
			t.Errorf("%s: got %s, want %s", endpoint, got, want)
		}
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
