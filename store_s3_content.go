// What is in object versions on S3, and what keeps them out of a restore: read, tagged, hidden.
//
// Rules:
//   - Always by version id where there is one: the newest version of a key is not the one that a restore takes.
//   - An object is streamed, never held; the time limit of other requests is not for it, since it takes as long as it is large.
//   - Nothing is hidden in a bucket that would lose it.

package main

import (
	"context"
	"io"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

var _ interface {
	reader
	writer
	tagger
	hider
} = &s3Bucket{}

// open implements reader.
func (b *s3Bucket) open(ctx context.Context, v version) (io.ReadCloser, error) {
	out, err := b.GetObject(context.WithValue(ctx, streamSize{}, v.size), &s3.GetObjectInput{Bucket: &b.Name, Key: &v.key,
		VersionId: notEmpty(v.id)}, b.streaming)
	if err != nil {
		return nil, b.failVersion(err, v)
	}
	return &objectBody{ReadCloser: out.Body, left: v.size, fail: func(err error) error {
		code, text := readCause(err)
		return b.errorf(code, err, "reading object %q of bucket %q failed: %s", v.key, b.Name, b.clean(err, text))
	}}, nil
}

// streaming is for an answer that takes as long as it is large. That one has no checksum is nothing to log.
func (b *s3Bucket) streaming(o *s3.Options) {
	o.HTTPClient = &http.Client{Transport: b.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	o.DisableLogOutputChecksumValidationSkipped = true
}

// failVersion makes the *storeError of an SDK error about one version.
func (b *s3Bucket) failVersion(err error, v version) error {
	if s3Gone(err) {
		return b.errorf("", errNoVersion, "object %q of bucket %q does not exist any more", v.key, b.Name)
	}
	return b.fail(err)
}

// tags implements tagger.
func (b *s3Bucket) tags(ctx context.Context, v version) (map[string]string, error) {
	out, err := b.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id)})
	if err != nil {
		return nil, b.failVersion(err, v)
	}
	tags := make(map[string]string, len(out.TagSet))
	for _, tag := range out.TagSet {
		tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
	}
	return tags, nil
}

// setTags implements tagger.
func (b *s3Bucket) setTags(ctx context.Context, v version, tags map[string]string) error {
	set := make([]types.Tag, 0, len(tags))
	for key, value := range tags {
		set = append(set, types.Tag{Key: &key, Value: &value})
	}
	_, err := b.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id),
		Tagging: &types.Tagging{TagSet: set}})
	if err != nil {
		return b.failVersion(err, v)
	}
	return nil
}

// hide implements hider.
func (b *s3Bucket) hide(ctx context.Context, key string) (version, error) {
	versioning, err := b.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &b.Name})
	switch {
	case err != nil:
		return version{}, b.fail(err)
	case versioning.Status != types.BucketVersioningStatusEnabled:
		return version{}, b.errorf(codeConfigurationProblem, nil, "object %q of bucket %q was not hidden: the bucket has no versioning, so "+
			"it would be deleted", key, b.Name)
	}
	out, err := b.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.Name, Key: &key})
	if err != nil {
		return version{}, b.fail(err)
	}
	return version{key: key, id: aws.ToString(out.VersionId), marker: true}, nil
}
