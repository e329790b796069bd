// What etcd-backup-restore takes from a bucket, worked out from a listing: an independent reader of
// its layout, with which the verdicts of bucketwarden are compared. It was written from the
// documented behaviour alone (names, order, oldest versions, exclusion), and shares no code with
// bucketwarden.
//
// Rules: slow and plain; one function per rule; nothing is guessed that a restore would not do.

package env

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Layout is a listing. On an S3 bucket with versions each key may be there several times.
type Layout struct {
	Versions []LayoutVersion
	// Versioned says that the store keeps versions, and that it takes a delete marker and a tag to
	// exclude a snapshot. Azure takes the tag; S3 without versions has no exclusion, so no tags here.
	Versioned bool
}

// LayoutVersion is one object version or delete marker.
type LayoutVersion struct {
	Key, ID      string
	DeleteMarker bool
	Modified     time.Time
	// ExcludeTag is the value of x-etcd-snapshot-exclude, empty where there is none or where the tags
	// cannot be read.
	ExcludeTag string
}

// excludeTag is the tag of a snapshot that a restore shall leave out.
const excludeTag = "x-etcd-snapshot-exclude"

// LayoutSnapshot is an object whose name is that of a snapshot.
type LayoutSnapshot struct {
	Key, VersionID string
	Full           bool
	First, Last    int64
	Created        time.Time
	Compression    Compression
	Final          bool
	Excluded       bool
}

// Restoration is what a restore would do.
type Restoration struct {
	// Full is nil if there is no full snapshot: etcd would start empty.
	Full   *LayoutSnapshot
	Deltas []LayoutSnapshot
	// Reaches is the revision after the last delta, by the names.
	Reaches int64
	// Broken is the key of the delta at which the restore fails, by the names; empty if it does not.
	Broken string
}

// Keys are the keys of what is restored, in order.
func (r Restoration) Keys() []string {
	var keys []string
	if r.Full != nil {
		keys = append(keys, r.Full.Key)
	}
	for _, delta := range r.Deltas {
		keys = append(keys, delta.Key)
	}
	return keys
}

// Restoration works out what a restore would take of the snapshots below prefix, which is
// <entry>/<etcd>.
func (l Layout) Restoration(prefix string) Restoration {
	snapshots := slices.DeleteFunc(l.Snapshots(prefix), func(s LayoutSnapshot) bool { return s.Excluded })
	var r Restoration
	for i := len(snapshots) - 1; i >= 0; i-- {
		if snapshots[i].Full {
			r.Full, r.Deltas = &snapshots[i], snapshots[i+1:]
			break
		}
	}
	if r.Full == nil {
		return r
	}
	r.Reaches = r.Full.Last
	for i, delta := range r.Deltas {
		follows := delta.First == r.Reaches+1
		if i == 0 {
			// Events that the full already has are skipped, but not if it has all of them.
			follows = delta.First <= r.Reaches+1 && delta.Last > r.Reaches
		}
		if !follows {
			r.Broken = delta.Key
			return r
		}
		r.Reaches = delta.Last
	}
	return r
}

// Snapshots returns all snapshots below prefix, by last revision and then by the creation time in
// the name.
func (l Layout) Snapshots(prefix string) []LayoutSnapshot {
	var snapshots []LayoutSnapshot
	for _, key := range l.keys(prefix) {
		version, excluded, ok := l.read(key)
		if !ok {
			continue
		}
		snapshot, ok := parseLayoutKey(key)
		if !ok {
			continue
		}
		snapshot.VersionID, snapshot.Excluded = version.ID, excluded
		snapshots = append(snapshots, snapshot)
	}
	slices.SortStableFunc(snapshots, func(a, b LayoutSnapshot) int {
		return cmp.Or(cmp.Compare(a.Last, b.Last), a.Created.Compare(b.Created))
	})
	return snapshots
}

// keys are the keys that begin with prefix, each once: etcd-backup-restore lists without a slash behind it.
func (l Layout) keys(prefix string) []string {
	var keys []string
	for _, version := range l.Versions {
		if strings.HasPrefix(version.Key, prefix) {
			keys = append(keys, version.Key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// read returns the version of a key that is the snapshot: the oldest one.
func (l Layout) read(key string) (oldest LayoutVersion, excluded, ok bool) {
	marked := false
	for _, version := range l.Versions {
		switch {
		case version.Key != key:
		case version.DeleteMarker:
			marked = true
		case !ok || version.Modified.Before(oldest.Modified):
			oldest, ok = version, true
		}
	}
	tagged := oldest.ExcludeTag == "true"
	return oldest, tagged && (marked || !l.Versioned), ok
}

// parseLayoutKey reads a key in the layout v2, or v1 with its directory for each backup. Chunks are
// no snapshots.
func parseLayoutKey(key string) (s LayoutSnapshot, ok bool) {
	parts := strings.Split(key, "/")
	name, parent := parts[len(parts)-1], ""
	if len(parts) > 1 {
		parent = parts[len(parts)-2]
	}
	if len(parts) > 2 && strings.HasPrefix(parent, "Backup-") {
		parent = parts[len(parts)-3]
		if !strings.HasSuffix(parent, "v1") {
			return s, false
		}
	} else if !strings.HasSuffix(parent, "v2") {
		return s, false
	}
	fields := strings.Split(name, "-")
	if len(fields) != 4 || fields[0] != "Full" && fields[0] != "Incr" {
		return s, false
	}
	first, errFirst := strconv.ParseInt(fields[1], 10, 64)
	last, errLast := strconv.ParseInt(fields[2], 10, 64)
	suffixes := strings.Split(fields[3], ".")
	created, errCreated := strconv.ParseInt(suffixes[0], 10, 64)
	if errFirst != nil || errLast != nil || errCreated != nil || first > last {
		return s, false
	}
	s = LayoutSnapshot{Key: key, Full: fields[0] == "Full", First: first, Last: last, Created: time.Unix(created, 0)}
	suffixes = suffixes[1:]
	if n := len(suffixes); n > 0 && suffixes[n-1] == "final" {
		s.Final, suffixes = true, suffixes[:n-1]
	}
	if len(suffixes) > 0 {
		s.Compression = Compression("." + suffixes[0])
	}
	return s, true
}

// ReadS3Layout lists the versions below prefix of a bucket with versions, and reads the tags of all
// of them.
func ReadS3Layout(ctx context.Context, client *s3.Client, bucket, prefix string) (Layout, error) {
	l := Layout{Versioned: true}
	pages := s3.NewListObjectVersionsPaginator(client, &s3.ListObjectVersionsInput{Bucket: &bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return Layout{}, fmt.Errorf("listing the versions of bucket %s: %w", bucket, err)
		}
		for _, marker := range page.DeleteMarkers {
			l.Versions = append(l.Versions, LayoutVersion{
				Key: aws.ToString(marker.Key), ID: aws.ToString(marker.VersionId), DeleteMarker: true, Modified: aws.ToTime(marker.LastModified),
			})
		}
		for _, version := range page.Versions {
			v := LayoutVersion{Key: aws.ToString(version.Key), ID: aws.ToString(version.VersionId), Modified: aws.ToTime(version.LastModified)}
			tags, err := client.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: &bucket, Key: version.Key, VersionId: version.VersionId})
			if err != nil {
				return Layout{}, fmt.Errorf("reading the tags of %s: %w", v.Key, err)
			}
			for _, tag := range tags.TagSet {
				if aws.ToString(tag.Key) == excludeTag {
					v.ExcludeTag = aws.ToString(tag.Value)
				}
			}
			l.Versions = append(l.Versions, v)
		}
	}
	return l, nil
}

// ReadAzureLayout lists the blobs below prefix of a container, with their tags.
func ReadAzureLayout(ctx context.Context, client *container.Client, prefix string) (Layout, error) {
	var l Layout
	pages := client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, Include: container.ListBlobsInclude{Tags: true}})
	for pages.More() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return Layout{}, fmt.Errorf("listing the blobs of a container: %w", err)
		}
		for _, blob := range page.Segment.BlobItems {
			v := LayoutVersion{Key: *blob.Name}
			if blob.Properties != nil && blob.Properties.LastModified != nil {
				v.Modified = *blob.Properties.LastModified
			}
			if blob.BlobTags != nil {
				for _, tag := range blob.BlobTags.BlobTagSet {
					if tag.Key != nil && *tag.Key == excludeTag && tag.Value != nil {
						v.ExcludeTag = *tag.Value
					}
				}
			}
			l.Versions = append(l.Versions, v)
		}
	}
	return l, nil
}

// Snapshot returns what is needed to restore a snapshot whose content was read from the store.
func (s LayoutSnapshot) Snapshot(content []byte) EtcdSnapshot {
	return EtcdSnapshot{s.Key, s.First, s.Last, s.Compression, content}
}
