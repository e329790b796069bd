package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"
)

// testEvidenceKey is a key that is always the same.
func testEvidenceKey(n byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	return ed25519.NewKeyFromSeed(seed)
}

// evidenceStart is when chains of tests begin.
var evidenceStart = time.Date(2026, 3, 1, 0, 5, 0, 0, time.UTC)

// evidenceChain makes the evidence of a bucket that is locked all the time, one statement a day.
type evidenceChain struct {
	t        testing.TB
	key      ed25519.PrivateKey
	stored   []storedEvidence
	last     evidence
	previous string
}

func newEvidenceChain(t testing.TB) *evidenceChain {
	return &evidenceChain{t: t, key: testEvidenceKey(1)}
}

// add signs a statement of the next day, as change made it.
func (c *evidenceChain) add(change func(*evidence)) *evidenceChain {
	locked, since := evidencePolicy{Days: 30, Locked: true}, evidenceStart.Add(-time.Hour)
	full, until := evidenceStart.Add(-2*time.Hour), evidenceStart.AddDate(0, 0, 30)
	e := evidence{Sequence: c.last.Sequence + 1, Previous: c.previous, Reason: evidenceDaily,
		Time:   evidenceStart.AddDate(0, 0, int(c.last.Sequence)),
		Bucket: evidenceBucket{Name: "bucket", Store: "s3", Endpoint: "https://store.example"}, Policy: &locked, Record: &locked,
		VerifiedSince: &since, NotClaimed: evidenceNotClaimed,
		Entries: []evidenceEntry{{Name: "shoot--dev--one--1", Full: &full, LockedUntil: &until}}}
	if !c.last.Time.IsZero() {
		e.Time = c.last.Time.AddDate(0, 0, 1)
	}
	if change != nil {
		change(&e)
	}
	content, err := signEvidence(e.statement(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	c.last, c.previous = e, evidenceDigest(content)
	c.stored = append(c.stored, storedEvidence{name: evidencePrefix + evidenceName(&e, c.previous), content: content})
	return c
}

// days adds ordinary days.
func (c *evidenceChain) days(n int) *evidenceChain {
	for range n {
		c.add(nil)
	}
	return c
}

func eachStored(stored []storedEvidence) iter.Seq2[storedEvidence, error] {
	return func(yield func(storedEvidence, error) bool) {
		for _, s := range stored {
			if !yield(s, nil) {
				return
			}
		}
	}
}

func (c *evidenceChain) read(query evidenceQuery) ([]verifiedEvidence, []evidenceFinding) {
	c.t.Helper()
	if query.keys == nil {
		query.keys = []ed25519.PublicKey{publicOf(testEvidenceKey(1))}
	}
	verified, findings, err := readEvidence(eachStored(c.stored), query)
	if err != nil {
		c.t.Fatal(err)
	}
	return verified, findings
}

// kinds are the kinds of findings, each with its number.
func kinds(findings []evidenceFinding) (kinds []string) {
	for _, f := range findings {
		kinds = append(kinds, fmt.Sprintf("%s %d", f.Kind, f.Sequence))
	}
	return kinds
}

func TestEvidenceChain(t *testing.T) {
	reenvelope := func(c *evidenceChain, i int, change func(*evidenceEnvelope)) {
		var e evidenceEnvelope
		if err := json.Unmarshal(c.stored[i].content, &e); err != nil {
			t.Fatal(err)
		}
		change(&e)
		content, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		c.stored[i].content = content
	}
	other := testEvidenceKey(9)
	unlocked := evidencePolicy{Days: 30}
	for name, test := range map[string]struct {
		make func(*evidenceChain)
		want []string
		// verified is how many statements count, 4 if it is 0, none if it is below.
		verified int
	}{
		"fine":                {make: func(c *evidenceChain) { c.days(4) }},
		"another order":       {make: func(c *evidenceChain) { c.days(4); slices.Reverse(c.stored) }},
		"the same file twice": {make: func(c *evidenceChain) { c.days(4); c.stored = append(c.stored, c.stored[2]) }},
		"a change on the same day": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { e.Time, e.Reason = c.last.Time.Add(time.Minute), evidenceChange })
		}},
		"a changed byte in the payload": {make: func(c *evidenceChain) {
			c.days(5)
			reenvelope(c, 2, func(e *evidenceEnvelope) {
				payload, _ := base64.StdEncoding.DecodeString(e.Payload)
				e.Payload = base64.StdEncoding.EncodeToString([]byte(strings.Replace(string(payload), `"days":30`, `"days":31`, 1)))
			})
		}, want: []string{"signature 0", "missing 4", "missing 4"}},
		"a changed byte in the envelope": {make: func(c *evidenceChain) {
			c.days(4)
			c.stored[1].content = append(c.stored[1].content, ' ')
		}, want: []string{"name 2", "fork 3"}},
		"another key": {make: func(c *evidenceChain) { c.key = other; c.days(4) },
			want: []string{"signature 0", "signature 0", "signature 0", "signature 0"}, verified: -1},
		"no signature": {make: func(c *evidenceChain) {
			c.days(5)
			reenvelope(c, 4, func(e *evidenceEnvelope) { e.Signatures = nil })
		}, want: []string{"signature 0"}},
		"two signatures": {make: func(c *evidenceChain) {
			c.days(5)
			reenvelope(c, 4, func(e *evidenceEnvelope) { e.Signatures = append(e.Signatures, e.Signatures[0]) })
		}, want: []string{"signature 0"}},
		"another payload type": {make: func(c *evidenceChain) {
			c.days(5)
			reenvelope(c, 4, func(e *evidenceEnvelope) { e.PayloadType = "application/json" })
		}, want: []string{"unreadable 0"}},
		"truncated": {make: func(c *evidenceChain) {
			c.days(5)
			c.stored[4].content = c.stored[4].content[:100]
		}, want: []string{"unreadable 0"}},
		"empty": {make: func(c *evidenceChain) {
			c.days(5)
			c.stored[4].content = nil
		}, want: []string{"unreadable 0"}},
		"duplicate keys": {make: func(c *evidenceChain) {
			c.days(5)
			c.stored[4].content = append([]byte(`{"payloadType":"x",`), c.stored[4].content[1:]...)
		}, want: []string{"unreadable 0"}},
		"10 MB of JSON": {make: func(c *evidenceChain) {
			c.days(4)
			c.stored = append(c.stored, storedEvidence{name: "big.json", content: []byte(`{"payload":"` + strings.Repeat("A", 10<<20) + `"}`)})
		}, want: []string{"unreadable 0"}},
		"larger than what is read": {make: func(c *evidenceChain) {
			c.days(5)
			c.stored[4].content = append(c.stored[4].content, strings.Repeat(" ", maxEvidence)...)
		}, want: []string{"unreadable 0"}},
		"verified since a time to come": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) {
				since := e.Time.Add(time.Hour)
				e.VerifiedSince, e.Interruption = &since, "it was not known"
			})
		}, want: []string{"contradiction 4"}},
		"a missing statement": {make: func(c *evidenceChain) { c.days(5); c.stored = slices.Delete(c.stored, 2, 3) },
			want: []string{"missing 4", "missing 4"}},
		"the first are missing": {make: func(c *evidenceChain) { c.days(6); c.stored = c.stored[2:] }, want: []string{"missing 3"}},
		"a missing day": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { e.Time = e.Time.AddDate(0, 0, 1) })
		}, want: []string{"missing 4"}},
		"a repeated day": {make: func(c *evidenceChain) { c.days(3).add(func(e *evidence) { e.Time = c.last.Time.Add(time.Hour) }) },
			want: []string{"repeated 4"}},
		"a clock that goes back": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { e.Time, e.Reason = c.last.Time.Add(-time.Hour), evidenceChange })
		}, want: []string{"clock 4"}},
		"a fork": {make: func(c *evidenceChain) {
			c.days(3)
			before := *c
			before.stored = slices.Clone(c.stored[:2])
			before.last, before.previous = evidence{Sequence: 2, Time: evidenceStart.AddDate(0, 0, 1)}, evidenceDigest(c.stored[1].content)
			before.add(func(e *evidence) { e.Writer = "another" })
			c.days(1)
			c.stored = append(c.stored, before.stored[2])
		}, want: []string{"fork"}, verified: 5},
		"a digest that is not that of the one before": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { e.Previous = strings.Repeat("0", 64) })
		}, want: []string{"fork 4"}},
		"a first that names one before": {make: func(c *evidenceChain) {
			c.add(func(e *evidence) { e.Previous = strings.Repeat("0", 64) }).days(3)
		}, want: []string{"fork 1"}},
		"a record that shrinks": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { e.Record = &evidencePolicy{Days: 20, Locked: true} })
		}, want: []string{"contradiction 4"}},
		"a record that goes": {make: func(c *evidenceChain) { c.days(3).add(func(e *evidence) { e.Record = nil }) },
			want: []string{"contradiction 4"}},
		"a lock that vanishes without drift": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { e.Policy, e.VerifiedSince = &unlocked, nil })
		}, want: []string{"contradiction 4", "unlocked 4"}},
		"a lock that vanishes with drift": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) {
				e.Policy, e.VerifiedSince, e.Events = &unlocked, nil, []evidenceEvent{{Kind: evidenceDrift, Time: e.Time}}
			})
		}, want: []string{"unlocked 4"}},
		"verified what is weaker than the record": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { e.Policy, e.Events = &unlocked, []evidenceEvent{{Kind: evidenceDrift}} })
		}, want: []string{"contradiction 4", "unlocked 4"}},
		"verified without an answer": {make: func(c *evidenceChain) { c.days(3).add(func(e *evidence) { e.Policy = nil }) },
			want: []string{"contradiction 4", "unlocked 4"}},
		"verified since earlier": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { earlier := evidenceStart.AddDate(-1, 0, 0); e.VerifiedSince = &earlier })
		}, want: []string{"contradiction 4"}},
		"verified since later without a word": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { later := evidenceStart.AddDate(0, 0, 1); e.VerifiedSince = &later })
		}, want: []string{"contradiction 4"}},
		"verified since later, told": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) {
				later := evidenceStart.AddDate(0, 0, 1)
				e.VerifiedSince, e.Interruption = &later, "the daemon did not run"
			})
		}},
		"another endpoint": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { e.Bucket.Endpoint = "https://evil.example" })
		},
			want: []string{"contradiction 4"}},
		"a backup whose lock became shorter": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { earlier := evidenceStart.AddDate(0, 0, 9); e.Entries[0].LockedUntil = &earlier })
		}, want: []string{"contradiction 4"}},
		"a history that became shorter": {make: func(c *evidenceChain) {
			c.days(2).add(func(e *evidence) { e.History = []evidenceUpdate{{Update: "put"}, {Update: "lock"}} }).
				add(func(e *evidence) { e.History = []evidenceUpdate{{Update: "put"}} })
		}, want: []string{"contradiction 4"}},
		"never locked, told once": {make: func(c *evidenceChain) {
			for range 4 {
				c.add(func(e *evidence) { e.Policy, e.Record, e.VerifiedSince = &unlocked, &unlocked, nil })
			}
		}, want: []string{"unlocked 1"}},
		"two times not locked": {make: func(c *evidenceChain) {
			for i := range 4 {
				c.add(func(e *evidence) {
					if i%2 == 0 {
						e.Policy, e.VerifiedSince, e.Events = &unlocked, nil, []evidenceEvent{{Kind: evidenceDrift}}
					} else if i > 0 {
						e.Interruption = "it was not locked"
					}
				})
			}
		}, want: []string{"unlocked 1", "unlocked 3"}},
		"another name": {make: func(c *evidenceChain) {
			c.days(4)
			c.stored[1].name = strings.Replace(c.stored[1].name, "0000000002", "0000000003", 1)
		}, want: []string{"name 2"}},
		"a name of somebody's own": {make: func(c *evidenceChain) { c.days(4); c.stored[1].name = "download (1)" }},
		"a rotation": {make: func(c *evidenceChain) {
			c.days(2).rotate(testEvidenceKey(2)).days(1)
		}},
		"two rotations": {make: func(c *evidenceChain) {
			c.days(1).rotate(testEvidenceKey(2)).rotate(testEvidenceKey(3)).days(1)
		}},
		"two rotations in another order": {make: func(c *evidenceChain) {
			c.days(1).rotate(testEvidenceKey(2)).rotate(testEvidenceKey(3)).days(1)
			slices.Reverse(c.stored)
		}},
		"signed with the old key after a rotation": {make: func(c *evidenceChain) {
			c.days(2).rotate(testEvidenceKey(2))
			c.key = testEvidenceKey(1)
			c.days(1)
		}, want: []string{"signature 4"}, verified: 3},
		"a new key ahead of its rotation": {make: func(c *evidenceChain) {
			c.key = testEvidenceKey(2)
			c.days(1)
			c.key = testEvidenceKey(1)
			c.days(2).rotate(testEvidenceKey(2)).days(1)
		}, want: []string{"signature 0", "missing 2"}},
		"a rotation to a key in another bucket": {make: func(c *evidenceChain) {
			c.days(2).rotate(testEvidenceKey(2)).add(func(e *evidence) { e.Bucket.Name = "other" })
		}, want: []string{"signature 0"}, verified: 3},
		"a rotation signed by nobody we know": {make: func(c *evidenceChain) {
			c.days(4)
			c.key = other
			c.rotate(testEvidenceKey(2)).days(1)
		}, want: []string{"signature 0", "signature 0"}},
		"a rotation without a key": {make: func(c *evidenceChain) { c.days(3).add(func(e *evidence) { e.Reason = evidenceRotation }) },
			want: []string{"contradiction 4"}},
		"a new key on an ordinary day counts for nothing": {make: func(c *evidenceChain) {
			c.days(3).add(func(e *evidence) { e.NextKey, e.NextKeyID = publicPEM(publicOf(other)), evidenceKeyID(publicOf(other)) })
			c.key = other
			c.days(1)
		}, want: []string{"signature 0"}},
		"stored in a way that is wrong": {make: func(c *evidenceChain) {
			c.days(4)
			c.stored = append(c.stored, storedEvidence{name: "x", problem: "it was written again"})
		}, want: []string{"name 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newEvidenceChain(t)
			test.make(c)
			verified, findings := c.read(evidenceQuery{})
			got := kinds(findings)
			if name == "a fork" {
				if !slices.ContainsFunc(got, func(k string) bool { return k == "fork 3" }) {
					t.Errorf("found %q", got)
				}
			} else if !slices.Equal(got, test.want) {
				t.Errorf("found %v, want %q", findings, test.want)
			}
			if want := max(0, test.verified); (test.verified == 0 && len(verified) != 4) || test.verified != 0 && len(verified) != want {
				t.Errorf("%d statements count", len(verified))
			}
		})
	}
}

// rotate signs, with the old key, that a new one follows.
func (c *evidenceChain) rotate(to ed25519.PrivateKey) *evidenceChain {
	c.add(func(e *evidence) {
		e.Reason, e.NextKey, e.NextKeyID = evidenceRotation, publicPEM(publicOf(to)), evidenceKeyID(publicOf(to))
	})
	c.key = to
	return c
}

// What is signed with a good key and is no statement of ours does not count.
func TestEvidenceOfOtherKinds(t *testing.T) {
	c := newEvidenceChain(t).days(1)
	for name, change := range map[string]func(*evidenceStatement){
		"another type":      func(s *evidenceStatement) { s.Type = "https://in-toto.io/Statement/v0.1" },
		"another predicate": func(s *evidenceStatement) { s.PredicateType = "https://slsa.dev/provenance/v1" },
		"another subject":   func(s *evidenceStatement) { s.Subject[0].Name += "x" },
		"another digest":    func(s *evidenceStatement) { s.Subject[0].Digest["sha256"] = strings.Repeat("0", 64) },
		"two subjects":      func(s *evidenceStatement) { s.Subject = append(s.Subject, s.Subject[0]) },
		"no subject":        func(s *evidenceStatement) { s.Subject = nil },
		"no number":         func(s *evidenceStatement) { s.Predicate.Sequence = 0 },
		"a number below 0":  func(s *evidenceStatement) { s.Predicate.Sequence = -1 },
		"no time":           func(s *evidenceStatement) { s.Predicate.Time = time.Time{} },
	} {
		statement := c.last.statement()
		change(&statement)
		content, err := signEvidence(statement, c.key)
		if err != nil {
			t.Fatal(err)
		}
		var wrong *envelopeError
		if _, _, err := openEnvelope(content, []ed25519.PublicKey{publicOf(c.key)}); !errors.As(err, &wrong) || wrong.kind != findingUnreadable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEvidenceDays(t *testing.T) {
	day := func(n int) time.Time { return evidenceDay(evidenceStart).AddDate(0, 0, n) }
	for name, test := range map[string]struct {
		from, to time.Time
		want     []string
		verified int
	}{
		"all":                     {verified: 5},
		"exactly":                 {from: day(0), to: day(4), verified: 5},
		"a part":                  {from: day(1), to: day(2), verified: 2},
		"from before the first":   {from: day(-3), to: day(4), verified: 5},
		"to after the last":       {to: day(6), want: []string{"missing 5"}, verified: 5},
		"from the middle":         {from: day(3), verified: 2},
		"a day that is not there": {from: day(7), to: day(8), verified: 0},
	} {
		t.Run(name, func(t *testing.T) {
			verified, findings := newEvidenceChain(t).days(5).read(evidenceQuery{from: test.from, to: test.to})
			if got := kinds(findings); !slices.Equal(got, test.want) || len(verified) != test.verified {
				t.Errorf("%d statements, found %v, want %q", len(verified), findings, test.want)
			}
		})
	}
	c := newEvidenceChain(t).days(5)
	c.stored = slices.Delete(c.stored, 1, 2)
	if _, findings := c.read(evidenceQuery{from: day(1)}); !slices.Equal(kinds(findings), []string{"missing 3"}) {
		t.Errorf("found %v", findings)
	}
}

// A source that fails is an error, with what was read.
func TestEvidenceSourceFails(t *testing.T) {
	broken := errors.New("broken")
	c := newEvidenceChain(t).days(3)
	verified, _, err := readEvidence(func(yield func(storedEvidence, error) bool) {
		if yield(c.stored[0], nil) {
			yield(storedEvidence{}, broken)
		}
	}, evidenceQuery{keys: []ed25519.PublicKey{publicOf(c.key)}})
	if !errors.Is(err, broken) || len(verified) != 1 {
		t.Errorf("%d statements, %v", len(verified), err)
	}
}

func TestEvidenceNames(t *testing.T) {
	c := newEvidenceChain(t).days(1)
	if sequence, ok := parseEvidenceName(c.stored[0].name); !ok || sequence != 1 {
		t.Errorf("%s: %d, %v", c.stored[0].name, sequence, ok)
	}
	digest := strings.Repeat("a", 32)
	for _, name := range []string{"", "x", "0000000001.json", "0000000001-2026-03-01-" + digest, "0000000000-2026-03-01-" + digest + ".json",
		"000000000x-2026-03-01-" + digest + ".json", "-000000001-2026-03-01-" + digest + ".json",
		"0000000001-2026-13-01-" + digest + ".json", "0000000001-2026-03-01-" + strings.Repeat("g", 32) + ".json"} {
		if sequence, ok := parseEvidenceName(name); ok {
			t.Errorf("%q is number %d", name, sequence)
		}
	}
}

func TestEvidenceKeys(t *testing.T) {
	key, err := newEvidenceKey()
	if err != nil {
		t.Fatal(err)
	}
	second, err := newEvidenceKey()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := parsePrivateKeys(append(slices.Clone(key), second...))
	if err != nil || len(keys) != 2 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	public, err := parsePublicKeys([]byte(keys.publicPEM()))
	if err != nil || len(public) != 2 || !public[0].Equal(publicOf(keys.signer())) || keys.of(public[1]) == nil {
		t.Errorf("%v, %v", public, err)
	}
	rsa := "-----BEGIN PRIVATE KEY-----\nMFQCAQAwDQYJKoZIhvcNAQEBBQAEQDA+AgEAAgkA\n-----END PRIVATE KEY-----\n"
	for name, text := range map[string]string{"empty": "", "no PEM": "secret", "rest": string(key) + "secret", "public": keys.publicPEM(),
		"another kind": rsa} {
		if _, err := parsePrivateKeys([]byte(text)); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parsePublicKeys(key); err == nil {
		t.Error("a private key is taken for a public one")
	}
}
