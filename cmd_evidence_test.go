package main

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// evidenceCommands is a world with a chain of evidence, in the bucket and in files.
type evidenceCommands struct {
	*scriptWorld
	chain *evidenceChain
}

func withEvidenceCommands(t *testing.T, run func(w *evidenceCommands)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &evidenceCommands{scriptWorld: newScriptWorld(t), chain: newEvidenceChain(t)}
		w.chain.days(5)
		time.Sleep(time.Until(w.chain.last.Time.Add(20 * time.Hour)))
		w.save("evidence.pub", []byte(publicPEM(publicOf(testEvidenceKey(1)))))
		w.save("other.pub", []byte(publicPEM(publicOf(testEvidenceKey(9)))))
		for _, s := range w.chain.stored {
			w.save("evidence/b/"+path.Base(s.name), s.content)
			w.put(s.name, s.content)
		}
		run(w)
	})
}

func (w *evidenceCommands) save(name string, content []byte) {
	w.t.Helper()
	file := filepath.Join(w.directory, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *evidenceCommands) put(key string, content []byte) {
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	bucket := w.server.buckets["backups"]
	w.server.write(bucket, version{key: key, size: int64(len(content))})
	var newest version
	for _, v := range bucket.versions {
		if v.key == key && !v.created.Before(newest.created) {
			newest = v
		}
	}
	w.server.content[newest.id] = bytes.Clone(content)
}

// want runs a command and checks that what it prints has some parts, and its exit code.
func (w *evidenceCommands) want(code string, line string, parts ...string) {
	w.t.Helper()
	text := w.command(strings.Fields("bucketwarden evidence " + line))
	got := "0"
	if i := strings.LastIndex(text, "exit "); i >= 0 {
		got = strings.TrimSpace(text[i+len("exit "):])
	}
	if got != code {
		w.t.Errorf("%s: exit code %s, want %s\n%s", line, got, code, text)
	}
	for _, part := range parts {
		if !strings.Contains(text, part) {
			w.t.Errorf("%s: there is no %q in\n%s", line, part, text)
		}
	}
}

func TestEvidenceCommand(t *testing.T) {
	withEvidenceCommands(t, func(w *evidenceCommands) {
		const fine = "bucket  5           2026-03-01T00:05:00Z  2026-03-05T00:05:00Z  locked retention of 720h  2026-02-28T23:05:00Z  0"
		w.want("0", "verify -f @/evidence --key @/evidence.pub", fine)
		w.want("0", "verify --bucket-secret @secret --key @/evidence.pub", fine)
		w.want("0", "verify -f @/evidence --key @/evidence.pub -o json", `"findings": []`, `"statements": 5`, evidenceKeyID(publicOf(w.chain.key)))
		w.want("0", "verify -f @/evidence --key @/evidence.pub --key @/other.pub --from 2026-03-02 --to 2026-03-03", "bucket  2 ")
		w.want("0", "show -f @/evidence --key @/evidence.pub", "bucket  5       2026-03-05T00:05:00Z  daily")
		w.want("0", "show --bucket-secret @secret --key @/evidence.pub -o json", `"notClaimed"`, `"sequence": 5`)
		w.want("2", "verify -f @/evidence --key @/other.pub", "by none of the keys", "no statement that counts", "(signature)")
		w.want("2", "verify -f @/evidence --key @/evidence.pub --to 2026-03-07", "no statement for the days from 2026-03-06 to 2026-03-07 (missing)")
		w.want("0", "collect --bucket-secret @secret --directory @/copy", "5 statements are new")
		w.want("0", "collect --bucket-secret @secret --directory @/copy", "0 statements are new")
		w.want("0", "verify -f @/copy --key @/evidence.pub", fine)
		// A day later that of yesterday is missing.
		time.Sleep(48 * time.Hour)
		w.want("2", "verify --bucket-secret @secret --key @/evidence.pub", "no statement for 2026-03-06 (missing)")
		for line, part := range map[string]string{
			"":                                   "say what to do",
			"forget":                             `evidence cannot "forget"`,
			"verify":                             "give --key",
			"verify --key @/evidence.pub":        "name a BackupBucket",
			"verify --key @/evidence.pub b -f x": "exclude each other",
			"verify --key @/evidence.pub b --bucket-secret @secret":                       "there is one bucket",
			"verify --key @/evidence.pub b --region x":                                    "go with --bucket-secret",
			"verify --key @/nothing -f @/evidence":                                        "no such file",
			"verify --key @/secret.yaml -f @/evidence":                                    "no PUBLIC KEY in PEM",
			"verify --key @/evidence.pub -f @/nothing":                                    "no such file",
			"verify --key @/evidence.pub -f @/evidence --from yesterday":                  "is no day",
			"verify --key @/evidence.pub -f @/evidence --from 2026-03-02 --to 2026-03-01": "--to is before --from",
			"collect b":                             "give --directory",
			"collect -f @/evidence --directory @/x": "not from files",
			"verify --key @/evidence.pub nobody":    "there is no BackupBucket nobody",
		} {
			w.want("1", line, part)
		}
	})
}

// Whatever is done to the objects in a bucket is found, offline from what was collected, or from the bucket itself.
func TestEvidenceTampered(t *testing.T) {
	for name, test := range map[string]struct {
		tamper func(*evidenceCommands)
		finds  string
	}{
		"written over": {func(w *evidenceCommands) { w.put(w.chain.stored[1].name, []byte("{}")) }, "something else was written over it"},
		"hidden": {func(w *evidenceCommands) {
			w.server.mu.Lock()
			defer w.server.mu.Unlock()
			w.server.write(w.server.buckets["backups"], version{key: w.chain.stored[1].name, marker: true})
		}, "in a way that leaves it there"},
		"a stranger": {func(w *evidenceCommands) { w.put(evidencePrefix+"note.txt", []byte("x")) }, "somebody else has put it there"},
		"a stranger of that name": {func(w *evidenceCommands) {
			w.put(strings.Replace(w.chain.stored[4].name, "05-", "06-", 1), []byte("x"))
		}, "not a DSSE envelope"},
	} {
		t.Run(name, func(t *testing.T) {
			withEvidenceCommands(t, func(w *evidenceCommands) {
				time.Sleep(time.Minute)
				test.tamper(w)
				// The statements count all the same.
				w.want("2", "verify --bucket-secret @secret --key @/evidence.pub", "bucket  5 ", test.finds)
			})
		})
	}
	withEvidenceCommands(t, func(w *evidenceCommands) {
		content := bytes.Clone(w.chain.stored[2].content)
		content[len(content)/2] ^= 1
		w.save("evidence/b/"+path.Base(w.chain.stored[2].name), content)
		w.want("2", "verify -f @/evidence --key @/evidence.pub", "bucket  4 ", "1 missing")
		w.save("evidence/b/big", make([]byte, 10<<20))
		w.want("2", "verify -f @/evidence --key @/evidence.pub", "larger than")
	})
}
