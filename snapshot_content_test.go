package main

import (
	"bytes"
	"compress/gzip"
	"compress/lzw"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"go.etcd.io/bbolt"
)

// testEvents is a delta of the revisions from first to last, two events in each.
func testEvents(first, last int64) []byte {
	var b strings.Builder
	b.WriteString("[")
	for revision := first; revision <= last; revision++ {
		for i, kind := range []string{"", `"type":1,`} {
			if revision > first || i > 0 {
				b.WriteString(",")
			}
			fmt.Fprintf(&b, `{"etcdEvent":{%s"kv":{"key":"L2E=","create_revision":1,"mod_revision":%d,"value":"%s"}},"time":"2026-01-01T00:00:00Z"}`,
				kind, revision, strings.Repeat("YWJj", 50))
		}
	}
	return []byte(b.String() + "]")
}

// testDatabase is an etcd database at a revision; with compacted its last key is gone.
func testDatabase(t testing.TB, revision int64, compacted bool) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	stored := func(main int64) []byte {
		b := make([]byte, 17)
		binary.BigEndian.PutUint64(b, uint64(main))
		b[8] = '_'
		return b
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		keys, err := tx.CreateBucket([]byte("key"))
		if err != nil {
			return err
		}
		meta, err := tx.CreateBucket([]byte("meta"))
		if err != nil {
			return err
		}
		last := revision
		if compacted {
			if err := meta.Put([]byte("finishedCompactRev"), stored(revision)); err != nil {
				return err
			}
			last -= 2
		}
		for i := int64(2); i <= last; i++ {
			if err := keys.Put(stored(i), []byte(strings.Repeat("v", 100))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// hashed puts the hash of data behind it.
func hashed(data []byte) []byte {
	sum := sha256.Sum256(data)
	return append(bytes.Clone(data), sum[:]...)
}

// packed compresses as the ending of a name says.
func packed(t testing.TB, data []byte, compression string) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch compression {
	case "":
		return data
	case ".gz":
		w = gzip.NewWriter(&b)
	case ".zlib":
		w = zlib.NewWriter(&b)
	case ".Z":
		w = lzw.NewWriter(&b, lzw.LSB, 8)
	default:
		t.Fatalf("compression %q", compression)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestContent(t *testing.T) {
	delta, database := testEvents(101, 140), testDatabase(t, 100, false)
	of := func(full bool, first, last int64) contentClaim {
		return contentClaim{full: full, first: first, last: last}
	}
	flip := func(data []byte, at int) []byte {
		data = bytes.Clone(data)
		data[at] ^= 4
		return data
	}
	for name, c := range map[string]struct {
		claim contentClaim
		plain []byte // with its hash
		want  string // part of the problem
	}{
		"delta":                          {of(false, 101, 140), hashed(delta), ""},
		"delta of one revision":          {of(false, 7, 7), hashed(testEvents(7, 7)), ""},
		"delta with spaces":              {of(false, 101, 140), hashed(append(delta, " \n"...)), ""},
		"delta, name begins earlier":     {of(false, 100, 140), hashed(delta), "its first event has revision 101 and not 100"},
		"delta, name begins later":       {of(false, 102, 140), hashed(delta), "its first event has revision 101 and not 102"},
		"delta, name ends later":         {of(false, 101, 141), hashed(delta), "its last event has revision 140 and not 141"},
		"delta, name ends earlier":       {of(false, 101, 139), hashed(delta), "its last event has revision 140 and not 139"},
		"delta, gap":                     {of(false, 1, 9), hashed(append(append(testEvents(1, 4)[:len(testEvents(1, 4))-1], ','), testEvents(6, 9)[1:]...)), "behind revision 4 comes revision 6"},
		"delta, backwards":               {of(false, 5, 2), hashed(append(append(testEvents(5, 6)[:len(testEvents(5, 6))-1], ','), testEvents(2, 2)[1:]...)), "behind revision 6 comes revision 2"},
		"delta, hash wrong":              {of(false, 101, 140), flip(hashed(delta), len(delta)+3), "does not have the hash"},
		"delta, no hash":                 {of(false, 101, 140), delta, "does not have the hash"},
		"delta, bit flipped in value":    {of(false, 101, 140), flip(hashed(delta), 200), "does not have the hash"},
		"delta, cut off":                 {of(false, 101, 140), hashed(delta)[:1000], "cut off or changed"},
		"delta, cut off with a new hash": {of(false, 101, 140), hashed(delta[:1000]), "it ends in the middle of an event"},
		"delta, no events":               {of(false, 101, 140), hashed([]byte("[]")), "it has no events"},
		"delta, no list":                 {of(false, 101, 140), hashed([]byte(`{"a": 1}`)), "it is not a list of events"},
		"delta, list of numbers":         {of(false, 101, 140), hashed([]byte(`[1, 2]`)), "it is not a list of events"},
		"delta, event without key":       {of(false, 101, 140), hashed([]byte(`[{"time": "now"}]`)), "event 1 has no key"},
		"delta, two lists":               {of(false, 101, 140), hashed(append(bytes.Clone(delta), delta...)), "there is more behind"},
		"delta, null":                    {of(false, 101, 140), hashed([]byte("null")), "it is not a list of events"},
		"delta, 31 bytes":                {of(false, 101, 140), make([]byte, 31), "cut off"},
		"delta, only a hash":             {of(false, 101, 140), hashed(nil), "cut off"},

		"full":                            {of(true, 0, 100), hashed(database), ""},
		"full, more than its name":        {of(true, 0, 98), hashed(database), ""},
		"full, less than its name":        {of(true, 0, 9999998), hashed(database), "its database is at revision 100 and not at 9999998 as its name says: it may be forged"},
		"full, compacted":                 {of(true, 0, 50), hashed(testDatabase(t, 50, true)), ""},
		"full, one less than compacted":   {of(true, 0, 51), hashed(testDatabase(t, 50, true)), "at revision 50 and not at 51"},
		"full, empty etcd":                {of(true, 0, 1), hashed(testDatabase(t, 1, false)), ""},
		"full, no hash":                   {of(true, 0, 100), database, "it has no hash at its end"},
		"full, hash wrong":                {of(true, 0, 100), flip(hashed(database), len(database)), "does not have the hash"},
		"full, bit flipped":               {of(true, 0, 100), flip(hashed(database), 5000), "does not have the hash"},
		"full, cut off":                   {of(true, 0, 100), hashed(database)[:len(database)-100], "is not that of a database with a hash"},
		"full, cut off at a block":        {of(true, 0, 100), hashed(database)[:1024+32], "does not have the hash"},
		"full, no database":               {of(true, 0, 100), hashed(make([]byte, 8192)), "its database cannot be opened, although its hash is right"},
		"full, database without its half": {of(true, 0, 100), hashed(database[:8192]), "its database cannot be opened"},
		"full, 32 bytes":                  {of(true, 0, 100), hashed(nil), "cut off"},
	} {
		for _, compression := range []string{"", ".gz", ".Z", ".zlib"} {
			t.Run(name+compression, func(t *testing.T) {
				stored := packed(t, c.plain, compression)
				claim := c.claim
				claim.compression, claim.size = compression, int64(len(stored))
				for _, body := range []io.Reader{bytes.NewReader(stored), iotest.HalfReader(bytes.NewReader(stored))} {
					got, err := checkContent(t.Context(), claim, body, true)
					if err != nil || (got.problem == "") != (c.want == "") || !strings.Contains(got.problem, c.want) {
						t.Fatalf("%+v, %v; want %q", got, err, c.want)
					}
					if c.want == "" && (got.bytes != int64(len(c.plain)-sha256.Size) || got.revision < claim.last) {
						t.Errorf("%+v", got)
					}
				}
			})
		}
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), programName+"-*.db")); err != nil || len(left) > 0 {
		t.Errorf("databases are left: %v, %v", left, err)
	}
}

// What is stored is damaged, not what is in it.
func TestStoredContent(t *testing.T) {
	plain := hashed(testEvents(1, 2000))
	claim := contentClaim{first: 1, last: 2000}
	for _, compression := range []string{".gz", ".zlib", ".Z"} {
		stored := packed(t, plain, compression)
		for name, broken := range map[string][]byte{
			"cut off": stored[:len(stored)/2], "garbage": bytes.Repeat([]byte("x"), 1000), "one byte": stored[:1],
			"flipped": append(append(bytes.Clone(stored[:len(stored)/2]), stored[len(stored)/2]^16), stored[len(stored)/2+1:]...),
		} {
			t.Run(name+compression, func(t *testing.T) {
				claim.compression, claim.size = compression, int64(len(broken))
				got, err := checkContent(t.Context(), claim, bytes.NewReader(broken), true)
				if err != nil || got.problem == "" {
					t.Errorf("%+v, %v", got, err)
				}
			})
		}
	}
	got, err := checkContent(t.Context(), contentClaim{full: true}, bytes.NewReader(nil), true)
	if err != nil || got.problem != "it is empty" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := checkContent(t.Context(), contentClaim{compression: ".xz", size: 10}, strings.NewReader("0123456789"), true); err != nil ||
		!strings.Contains(got.problem, "no compression") {
		t.Errorf("%+v, %v", got, err)
	}
}

// That the store fails says nothing about the content.
func TestContentThatCannotBeRead(t *testing.T) {
	failure := errors.New("the store is down")
	plain := hashed(testEvents(1, 2000))
	for _, compression := range []string{"", ".gz", ".zlib", ".Z"} {
		stored := packed(t, plain, compression)
		for _, after := range []int{0, 1, len(stored) / 2, len(stored)} {
			for _, full := range []bool{false, true} {
				claim := contentClaim{full: full, first: 1, last: 2000, compression: compression, size: int64(len(stored))}
				body := io.MultiReader(bytes.NewReader(stored[:after]), iotest.ErrReader(failure))
				if after == len(stored) && (compression == ".zlib" || compression == ".Z") {
					continue // they know where they end
				}
				if got, err := checkContent(t.Context(), claim, body, false); !errors.Is(err, failure) || got != (content{}) {
					t.Errorf("%q after %d bytes: %+v, %v", compression, after, got, err)
				}
			}
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(failure)
	if _, err := checkContent(ctx, contentClaim{size: 100}, bytes.NewReader(plain), false); !errors.Is(err, failure) {
		t.Error(err)
	}
}

// Neither a bomb nor a huge event takes memory or disk.
func TestContentIsBounded(t *testing.T) {
	// Packing a block once is enough: it stands for itself behind what ends in such a block, and each is read up to a limit only.
	bomb := func(begin, of string, size int) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		block, start := strings.Repeat(of, 1<<20), 0
		for _, text := range []string{begin + block, block} {
			start = b.Len()
			if _, err := io.WriteString(w, text); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		return append(b.Bytes(), bytes.Repeat(b.Bytes()[start:], size>>20)...)
	}
	for name, c := range map[string]struct {
		full bool
		data []byte
		want string
	}{
		"full":            {true, bomb("", "\x00", 120<<20), "it unpacks to more than 100 times its size"},
		"delta of spaces": {false, bomb("[", "\x00", 100<<20), "it is not a list of events"},
		"huge event":      {false, bomb(`[{"etcdEvent":{"kv":{"value":"`, "a", 60<<20), "it has an event of more than 32.0 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			got, err := checkContent(t.Context(), contentClaim{full: c.full, first: 1, last: 2, compression: ".gz", size: int64(len(c.data))},
				bytes.NewReader(c.data), c.full)
			if err != nil || !strings.Contains(got.problem, c.want) {
				t.Errorf("%+v, %v", got, err)
			}
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 200<<20 {
				t.Errorf("%s were allocated", formatBytes(int64(grown)))
			}
		})
	}
}

// A database that was made to harm whoever opens it, with a right hash, is a sentence and not a crash.
func TestHostileDatabase(t *testing.T) {
	t.Parallel()
	database := testDatabase(t, 3000, false)
	seen := map[string]bool{}
	pages := len(database) / os.Getpagesize()
	for page := range pages {
		if page > 6 && page < pages-6 {
			continue
		}
		for at := 8; at < 64; at += 3 {
			broken := bytes.Clone(database)
			for i := range 4 {
				broken[page*os.Getpagesize()+at+i] = byte(at + i*37)
			}
			plain := hashed(broken)
			got, err := checkContent(t.Context(), contentClaim{full: true, last: 3000, size: int64(len(plain))}, bytes.NewReader(plain), true)
			if err != nil {
				t.Fatalf("page %d at %d: %v", page, at, err)
			}
			seen[got.problem] = true
		}
	}
	if len(seen) < 2 {
		t.Errorf("nothing was found: %v", seen)
	}
}

// BenchmarkContent reads snapshots of about 60 MB; sha256 is what reading cannot be faster than.
func BenchmarkContent(b *testing.B) {
	delta, database := hashed(testEvents(1, 100000)), hashed(testDatabase(b, 300000, false))
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(int64(len(database)))
		for b.Loop() {
			sha256.Sum256(database)
		}
	})
	for name, c := range map[string]struct {
		claim contentClaim
		plain []byte
	}{"delta": {contentClaim{first: 1, last: 100000}, delta}, "full": {contentClaim{full: true, last: 300000}, database}} {
		for _, compression := range []string{"", ".gz"} {
			stored := packed(b, c.plain, compression)
			claim := c.claim
			claim.compression, claim.size = compression, int64(len(stored))
			b.Run(name+compression, func(b *testing.B) {
				b.SetBytes(int64(len(c.plain)))
				b.ReportAllocs()
				for b.Loop() {
					if got, err := checkContent(b.Context(), claim, bytes.NewReader(stored), true); err != nil || got.problem != "" {
						b.Fatal(got, err)
					}
				}
			})
		}
	}
}
