package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
)

// fakeS3Ways is how a store treats the settings of its buckets.
type fakeS3Ways struct {
	// keyless: with a default encryption no object can be written. refusesRetention: no object with a retention of its own.
	keyless          int
	refusesRetention bool
	// cephACLs: with BlockPublicAcls no object can be written, as on Ceph RGW 16.2. blockRefuses: nor with any setting of the block.
	cephACLs, blockRefuses bool
	// unbound: its policies do not bind these credentials. endsTLS: a proxy in front of it does. ignoresTransport: it does not
	// know the condition aws:SecureTransport; oddVersion: it takes a TLS version that it does not know for an old one.
	unbound, endsTLS, ignoresTransport, oddVersion bool
	// lag is how many reads a changed policy is not yet in force for.
	lag int
}

// object serves one object, with whatever the settings do to that.
func (f *fakeS3) object(w http.ResponseWriter, r *http.Request) {
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if f.denies(key, r.TLS != nil && !f.endsTLS) {
		answerS3Error(w, http.StatusForbidden, "AccessDenied", "a policy")
		return
	}
	switch {
	case r.Method == http.MethodPost:
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><Key>%s</Key><UploadId>u</UploadId></InitiateMultipartUploadResult>", key)
	case r.Method == http.MethodPut && f.keyless != 0 && strings.HasPrefix(f.encryption, "<"):
		answerS3Error(w, f.keyless, "InternalError", "no key")
	case r.Method == http.MethodPut && (f.cephACLs && strings.Contains(f.block, "<BlockPublicAcls>true<") ||
		f.blockRefuses && strings.Contains(f.block, ">true<")):
		answerS3Error(w, http.StatusForbidden, "AccessDenied", "")
	case r.Method == http.MethodPut && f.refusesRetention && r.Header.Get("X-Amz-Object-Lock-Mode") != "":
		answerS3Error(w, http.StatusForbidden, "AccessDenied", "no retention")
	case r.Method == http.MethodPut:
		f.puts[key] = r.Header.Clone()
	case f.puts[key] == nil:
		answerS3Error(w, http.StatusNotFound, "NoSuchKey", "none")
	}
}

// denies evaluates the bucket policy for s3:PutObject.
func (f *fakeS3) denies(key string, secure bool) bool {
	if f.policy == "" || f.unbound {
		return false
	}
	if f.lag > 0 && strings.Contains(f.policy, s3SidCheck) {
		f.lag--
		return false
	}
	var policy struct {
		Statement []struct {
			Effect    string
			Resource  []string
			Condition map[string]map[string]string
		}
	}
	if json.Unmarshal([]byte(f.policy), &policy) != nil {
		return false
	}
	for _, s := range policy.Statement {
		matches := true
		if v, ok := s.Condition["Bool"]; ok {
			matches = v["aws:SecureTransport"] == "false" && !secure && !f.ignoresTransport
		}
		if _, ok := s.Condition["NumericLessThan"]; ok {
			matches = f.oddVersion
		}
		arn := "arn:aws:s3:::backups/"
		if s.Effect == "Deny" && matches && (slices.Contains(s.Resource, arn+key) || slices.Contains(s.Resource, arn+"*")) {
			return true
		}
	}
	return false
}

// alsoPlain puts the fake behind a port on which it speaks plain HTTP as well as TLS.
func (f *fakeS3) alsoPlain() {
	plain := httptest.NewServer(f)
	f.t.Cleanup(plain.Close)
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = front.Close() })
	secure := f.Listener.Addr().String()
	f.URL = "https://" + front.Addr().String()
	go func() {
		for {
			conn, err := front.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				first, err := in.Peek(1)
				if err != nil {
					return
				}
				to := plain.Listener.Addr().String()
				if first[0] == 0x16 { // a TLS handshake
					to = secure
				}
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(out, in)
					_ = out.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(conn, out)
			}()
		}
	}()
}
