// The independent reader of layouts: its rules in a table; and with snapshots of a real etcd on
// MinIO, what it says is what a restore does.

package env

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const layoutPrefix = "shoot--p--s--uid/etcd-main"

// layout reads a table: a line is a name, then words: version N (time of the version, default 1),
// marker, tag=VALUE.
func layout(versioned bool, lines ...string) Layout {
	l := Layout{Versioned: versioned}
	for _, line := range lines {
		words := strings.Fields(line)
		v := LayoutVersion{Key: layoutPrefix + "/" + words[0], ID: "v1", Modified: time.Unix(1, 0)}
		for _, word := range words[1:] {
			tag, tagged := strings.CutPrefix(word, "tag=")
			switch {
			case tagged:
				v.ExcludeTag = tag
			case word == "marker":
				v.DeleteMarker, v.ID, v.Modified = true, "marker", time.Unix(9, 0)
			default:
				v.ID, v.Modified = word, time.Unix(int64(word[1]-'0'), 0)
			}
		}
		l.Versions = append(l.Versions, v)
	}
	return l
}

func TestLayout(t *testing.T) {
	t.Parallel()
	full, incr1, incr2, incr3 := "v2/Full-00000000-00000010-1000.gz", "v2/Incr-00000011-00000020-1100.gz",
		"v2/Incr-00000021-00000030-1200.gz", "v2/Incr-00000031-00000040-1300.gz"
	full2 := "v2/Full-00000000-00000030-1250"
	for _, test := range []struct {
		name    string
		layout  Layout
		keys    string
		reaches int64
		broken  string
	}{
		{"nothing", layout(true), "", 0, ""},
		{"chain, listed in any order", layout(true, incr2, full, incr1), full + " " + incr1 + " " + incr2, 30, ""},
		{"the last full", layout(true, full, incr1, incr2, full2, incr3), full2 + " " + incr3, 40, ""},
		{"equal revisions by the time in the name", layout(true, full, "v2/Full-00000000-00000010-1001.gz"), "v2/Full-00000000-00000010-1001.gz", 10, ""},
		{"a delta made after a full of its revision", layout(true, full, incr1, "v2/Full-00000000-00000020-1050"), "v2/Full-00000000-00000020-1050 " + incr1, 20, incr1},
		{"gap behind the full", layout(true, full, incr2), full + " " + incr2, 10, incr2},
		{"gap", layout(true, full, incr1, incr3), full + " " + incr1 + " " + incr3, 20, incr3},
		{"overlap", layout(true, full, incr1, "v2/Incr-00000020-00000030-1200.gz"), full + " " + incr1 + " v2/Incr-00000020-00000030-1200.gz", 20, "v2/Incr-00000020-00000030-1200.gz"},
		{"the first delta begins before the full", layout(true, full, "v2/Incr-00000005-00000020-1100"), full + " v2/Incr-00000005-00000020-1100", 20, ""},
		{"deltas without a full", layout(true, incr1, incr2), "", 0, ""},
		{"final", layout(true, full+".final"), full + ".final", 10, ""},
		{"names that are none", layout(true, full, "v2/Full-1-2", "v2/Incr-00000030-00000020-1100", "v2/Full-x-00000050-1", "v2/Other-00000000-00000090-1",
			"v2/Full-00000000-00000090-x", "v2/Full-00000000-00000090-1-2", "v3/Full-00000000-00000090-1"), full, 10, ""},
		{"many digits", layout(true, full, "v2/Incr-00000011-123456789012-1100.zlib"), full + " v2/Incr-00000011-123456789012-1100.zlib", 123456789012, ""},
		{"chunks", layout(true, full, "v2/Full-00000000-00000090-1/0000000001"), full, 10, ""},
		{"layout v1", layout(true, "v1/Backup-1000/Full-00000000-00000010-1000", "v1/Backup-1000/Incr-00000011-00000020-1100"),
			"v1/Backup-1000/Full-00000000-00000010-1000 v1/Backup-1000/Incr-00000011-00000020-1100", 20, ""},
		{"a newer version changes nothing", layout(true, full+" v1", full+" v2 tag=true", incr1), full + " " + incr1, 20, ""},
		{"tag alone", layout(true, full, incr1+" tag=true"), full + " " + incr1, 20, ""},
		{"marker alone", layout(true, full, incr1, incr1+" marker"), full + " " + incr1, 20, ""},
		{"tag and marker", layout(true, full, incr1+" tag=true", incr1+" marker"), full, 10, ""},
		{"any marker", layout(true, full, incr1+" v1 tag=true", incr1+" marker", incr1+" v9"), full, 10, ""},
		{"True", layout(true, full, incr1+" tag=True", incr1+" marker"), full + " " + incr1, 20, ""},
		{"tag of a newer version", layout(true, full, incr1+" v1", incr1+" v2 tag=true", incr1+" marker"), full + " " + incr1, 20, ""},
		{"only a marker is left", layout(true, full, incr1+" marker"), full, 10, ""},
		{"tag on Azure", layout(false, full, incr1+" tag=true"), full, 10, ""},
		{"a full excluded alone", layout(true, full, incr1, full2+" tag=true", full2+" marker", incr3), full + " " + incr1 + " " + incr3, 20, incr3},
		{"everything excluded", layout(false, full+" tag=true", incr1+" tag=true"), "", 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.layout.Restoration(layoutPrefix)
			keys := strings.ReplaceAll(strings.Join(got.Keys(), " "), layoutPrefix+"/", "")
			if broken := strings.TrimPrefix(got.Broken, layoutPrefix+"/"); keys != test.keys || got.Reaches != test.reaches || broken != test.broken {
				t.Errorf("it is %q to %d, broken at %q,\nwant  %q to %d, broken at %q", keys, got.Reaches, broken, test.keys, test.reaches, test.broken)
			}
		})
	}
}

// What the reader says of the versions on MinIO is what a restore into a real etcd does.
func TestLayoutIsRestored(t *testing.T) {
	t.Parallel()
	bin, err := EnsureBinaries(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	minio, err := StartMinIO(t.Context(), MinIOOptions{Binary: bin.MinIO})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(minio.Stop)
	client, bucket := minio.S3(minio.Endpoint), aws.String("backups")
	if _, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: bucket, ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	write := func(name string, content []byte) (version *string) {
		t.Helper()
		output, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucket, Key: aws.String(layoutPrefix + "/v2/" + name), Body: bytes.NewReader(content)})
		if err != nil {
			t.Fatal(err)
		}
		return output.VersionId
	}
	tools, etcd := startedEtcd(t)
	full, deltas := backup(t, etcd, Gzip, Zlib, LZW, Uncompressed)
	later, err := etcd.FullSnapshot(t.Context(), Gzip, time.Unix(1700001000, 0))
	if err != nil {
		t.Fatal(err)
	}
	last := write(full.Name, full.Content)
	for _, delta := range deltas {
		last = write(delta.Name, delta.Content)
	}

	// restore takes what the reader says, by version, and must end as it says.
	restore := func(reaches int64, broken string) {
		t.Helper()
		listing, err := ReadS3Layout(t.Context(), client, *bucket, layoutPrefix)
		if err != nil {
			t.Fatal(err)
		}
		plan := listing.Restoration(layoutPrefix)
		if name := strings.TrimPrefix(plan.Broken, layoutPrefix+"/v2/"); plan.Full == nil || plan.Reaches != reaches || name != broken {
			t.Fatalf("it says %v to revision %d, broken at %q, want %d and %q", plan.Keys(), plan.Reaches, name, reaches, broken)
		}
		var snapshots []EtcdSnapshot
		for _, s := range slices.Concat([]LayoutSnapshot{*plan.Full}, plan.Deltas) {
			output, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucket, Key: &s.Key, VersionId: &s.VersionID})
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(output.Body)
			_ = output.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			snapshots = append(snapshots, s.Snapshot(content))
		}
		restored, err := tools.Restore(t.Context(), snapshots[0], snapshots[1:]...)
		if broken != "" {
			var mismatch *RevisionError
			if !errors.As(err, &mismatch) || mismatch.Snapshot != plan.Broken {
				t.Errorf("%v, want a mismatch at %s", err, broken)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer restored.Stop()
		if revision, err := restored.Revision(t.Context()); err != nil || revision != reaches {
			t.Errorf("restored to revision %d, %v, want %d", revision, err, reaches)
		}
	}
	restore(21, "")

	// Garbage as a newer version is not read.
	write(deltas[0].Name, []byte("garbage"))
	restore(21, "")

	// Excluded: the last delta; then the one before it too, but with the last one included again.
	hide := func(name string, version *string, how string) {
		t.Helper()
		key := aws.String(layoutPrefix + "/v2/" + name)
		if how == "true" {
			if _, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: bucket, Key: key}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := client.PutObjectTagging(t.Context(), &s3.PutObjectTaggingInput{Bucket: bucket, Key: key, VersionId: version,
			Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String(excludeTag), Value: &how}}}}); err != nil {
			t.Fatal(err)
		}
	}
	hide(deltas[2].Name, last, "true")
	restore(16, "")
	hide(deltas[2].Name, last, "false")
	restore(21, "")

	// A full whose deltas went on meanwhile, excluded alone: what is behind it does not fit.
	version := write(later.Name, later.Content)
	change(t, etcd, 4)
	next, err := etcd.DeltaSnapshot(t.Context(), later.Last+1, Gzip, time.Unix(1700001300, 0))
	if err != nil {
		t.Fatal(err)
	}
	write(next.Name, next.Content)
	restore(26, "")
	hide(later.Name, version, "true")
	restore(26, "")
	hide(deltas[2].Name, last, "true")
	restore(16, next.Name)
}
