// Object versions on S3: listed, deleted, written.
//
// Rules:
//   - Lists are URL-encoded: XML 1.0 cannot carry every key. What XML cannot name is deleted
//     by itself.
//   - A refusal to delete can mean retention or a missing permission; until finds out which.
//   - For a store without versions there are plain lists, for one without batches single deletes.

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// traits implements versions.
func (b *s3Bucket) traits() traits {
	return traits{batch: s3PageSize, verify: true, locksAtOnce: true, backoff: func(attempt int) time.Duration {
		delay, _ := b.backoff.BackoffDelay(attempt, nil) // it has no error
		return delay
	}}
}

// pages implements versions.
func (b *s3Bucket) pages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	return b.listed(ctx, from, func(from cursor) (page, error) {
		if !b.plainLists.Load() {
			p, err := b.versionsPage(ctx, prefix, from)
			if !s3Unsupported(err) || !b.Recorded.None() {
				return p, err
			}
			// A store without versions has no list of them, and no policy either.
			b.plainLists.Store(true)
		}
		return b.plainPage(ctx, prefix, from)
	})
}

// uploads implements uploader. MinIO lists only those of one key.
func (b *s3Bucket) uploads(ctx context.Context, prefix string) iter.Seq2[page, error] {
	return b.listed(ctx, cursor{}, func(from cursor) (page, error) {
		p, err := b.uploadsPage(ctx, prefix, from)
		if s3Unsupported(err) {
			return page{}, nil
		}
		return p, err
	})
}

// listed reads a list page by page. A bucket that does not exist is an empty one.
func (b *s3Bucket) listed(ctx context.Context, from cursor, next func(cursor) (page, error)) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		for {
			p, err := next(from)
			switch {
			case s3ErrorCode(err) == "NoSuchBucket":
				return
			case err == nil && p.next == from && from != (cursor{}):
				err = b.errorf("", nil, "listing bucket %q failed: the store continues the list where it was", b.Name)
			}
			if err != nil {
				yield(page{}, b.fail(err))
				return
			}
			if !yield(p, nil) || p.next == (cursor{}) {
				return
			}
			from = p.next
		}
	}
}

// versionsPage asks for a page of the list of versions.
func (b *s3Bucket) versionsPage(ctx context.Context, prefix string, from cursor) (page, error) {
	out, err := b.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{
		Bucket: &b.Name, MaxKeys: aws.Int32(s3PageSize), EncodingType: types.EncodingTypeUrl,
		Prefix: notEmpty(prefix), KeyMarker: notEmpty(from.key), VersionIdMarker: notEmpty(from.id),
	})
	if err != nil {
		return page{}, err
	}
	decode := s3Decoder(out.EncodingType)
	p := page{now: s3Now(out.ResultMetadata), versions: make([]version, 0, len(out.Versions)+len(out.DeleteMarkers))}
	for _, v := range out.Versions {
		p.versions = append(p.versions, version{key: decode(v.Key), id: aws.ToString(v.VersionId), size: aws.ToInt64(v.Size),
			created: aws.ToTime(v.LastModified)})
	}
	for _, v := range out.DeleteMarkers {
		p.versions = append(p.versions, version{key: decode(v.Key), id: aws.ToString(v.VersionId), created: aws.ToTime(v.LastModified),
			marker: true})
	}
	if !aws.ToBool(out.IsTruncated) {
		return p, nil
	}
	p.next = cursor{key: decode(out.NextKeyMarker), id: aws.ToString(out.NextVersionIdMarker)}
	return p, b.checkCursor("ListObjectVersions", p.next.key)
}

// plainPage asks for a page of the list of objects.
func (b *s3Bucket) plainPage(ctx context.Context, prefix string, from cursor) (page, error) {
	out, err := b.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: &b.Name, MaxKeys: aws.Int32(s3PageSize), EncodingType: types.EncodingTypeUrl,
		Prefix: notEmpty(prefix), ContinuationToken: notEmpty(from.key),
	})
	if err != nil {
		return page{}, err
	}
	decode := s3Decoder(out.EncodingType)
	p := page{now: s3Now(out.ResultMetadata)}
	for _, o := range out.Contents {
		p.versions = append(p.versions, version{key: decode(o.Key), size: aws.ToInt64(o.Size), created: aws.ToTime(o.LastModified)})
	}
	if !aws.ToBool(out.IsTruncated) {
		return p, nil
	}
	p.next.key = aws.ToString(out.NextContinuationToken)
	return p, b.checkCursor("ListObjectsV2", p.next.key)
}

// uploadsPage asks for a page of the incomplete multipart uploads.
func (b *s3Bucket) uploadsPage(ctx context.Context, prefix string, from cursor) (page, error) {
	out, err := b.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{
		Bucket: &b.Name, EncodingType: types.EncodingTypeUrl,
		Prefix: notEmpty(prefix), KeyMarker: notEmpty(from.key), UploadIdMarker: notEmpty(from.id),
	})
	if err != nil {
		return page{}, err
	}
	decode := s3Decoder(out.EncodingType)
	p := page{now: s3Now(out.ResultMetadata)}
	for _, u := range out.Uploads {
		p.versions = append(p.versions, version{key: decode(u.Key), id: aws.ToString(u.UploadId), created: aws.ToTime(u.Initiated), upload: true})
	}
	if aws.ToBool(out.IsTruncated) {
		p.next = cursor{key: decode(out.NextKeyMarker), id: aws.ToString(out.NextUploadIdMarker)}
	}
	return p, nil
}

func (b *s3Bucket) checkCursor(operation, key string) error {
	if key == "" {
		return b.errorf("", nil, "S3 %s for bucket %q failed: the store truncates the list without saying where it continues", operation, b.Name)
	}
	return nil
}

func notEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// s3Decoder decodes the keys of a list, unless the store does not encode them
// (docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html, encoding-type).
func s3Decoder(encoding types.EncodingType) func(*string) string {
	return func(key *string) string {
		if encoding == types.EncodingTypeUrl {
			if decoded, err := url.QueryUnescape(aws.ToString(key)); err == nil {
				return decoded
			}
		}
		return aws.ToString(key)
	}
}

// s3Nameable says that XML 1.0 can carry a key (www.w3.org/TR/xml, production 2).
func s3Nameable(key string) bool {
	if !utf8.ValidString(key) {
		return false
	}
	for _, r := range key {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			return false
		}
	}
	return true
}

// s3Once makes a request without repeating it.
func s3Once(o *s3.Options) { o.Retryer = aws.NopRetryer{} }

// remove implements versions.
func (b *s3Bucket) remove(ctx context.Context, batch []version) ([]removal, error) {
	answers := make([]removal, len(batch))
	for i := range answers {
		answers[i].outcome = removalUntried
	}
	if first := batch[0]; first.upload || b.singleDeletes.Load() || !s3Nameable(first.key) {
		answers[0] = b.removeOne(ctx, first)
		return answers, nil
	}
	named := slices.DeleteFunc(slices.Clone(batch), func(v version) bool { return v.upload || !s3Nameable(v.key) })
	answered, err := b.removeMany(ctx, named)
	if err != nil || answered == nil {
		return answers, err
	}
	for i, v := range batch {
		if len(named) > 0 && v.same(named[0]) {
			answers[i], answered, named = answered[0], answered[1:], named[1:]
		}
	}
	return answers, nil
}

// removeOne deletes one version, or aborts one upload.
func (b *s3Bucket) removeOne(ctx context.Context, v version) removal {
	var err error
	if v.upload {
		_, err = b.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.Name, Key: &v.key, UploadId: &v.id}, s3Once)
		if err != nil && s3ErrorCode(err) != "NoSuchUpload" {
			return b.notRemoved("", b.fail(err))
		}
		return removal{outcome: removalGone}
	}
	_, err = b.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id)}, s3Once)
	if err == nil || s3ErrorCode(err) == "NoSuchBucket" {
		return removal{outcome: removalGone}
	}
	code := s3ErrorCode(err)
	if s3Denied(err) { // also without a code
		code = "AccessDenied"
	}
	return b.notRemoved(code, b.fail(err))
}

// notRemoved reads the error code about one version.
func (b *s3Bucket) notRemoved(code string, err error) removal {
	switch {
	case code == "NoSuchKey", code == "NoSuchVersion":
		return removal{outcome: removalGone}
	case s3RetainedCodes[code]:
		return removal{outcome: removalRetained}
	case isTransient(err):
		return removal{outcome: removalAgain, err: err}
	}
	return removal{err: err}
}

// States of an s3Client's contentMD5.
const (
	md5Off int32 = iota
	md5Try
	md5On
)

// removeMany deletes up to 1000 versions. Errors come per key within a success. No answer
// at all says that the store has to be asked in another way.
func (b *s3Bucket) removeMany(ctx context.Context, batch []version) ([]removal, error) {
	objects := make([]types.ObjectIdentifier, len(batch))
	for i, v := range batch {
		objects[i] = types.ObjectIdentifier{Key: &v.key, VersionId: notEmpty(v.id)}
	}
	withMD5 := b.contentMD5.Load()
	out, err := b.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &b.Name, Delete: &types.Delete{Objects: objects, Quiet: aws.Bool(true)}},
		s3Once, func(o *s3.Options) {
			if withMD5 != md5Off {
				o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
				o.APIOptions = append(slices.Clone(o.APIOptions), smithyhttp.AddContentChecksumMiddleware)
			}
		})
	switch {
	case err == nil:
		b.contentMD5.CompareAndSwap(md5Try, md5On)
		return b.answers(batch, out.Errors)
	case s3ErrorCode(err) == "NoSuchBucket":
		return nil, errNoBucket
	case s3Unsupported(err):
		b.singleDeletes.Store(true)
		return nil, nil
	case s3Status(err) == http.StatusBadRequest && withMD5 == md5Off:
		// Some stores want this header, and call its absence by several names.
		b.contentMD5.CompareAndSwap(md5Off, md5Try)
		return nil, nil
	case s3Denied(err):
		// Some stores say so if only one of the batch is retained.
		return slices.Repeat([]removal{{outcome: removalRefused}}, len(batch)), nil
	}
	b.contentMD5.CompareAndSwap(md5Try, md5Off)
	return nil, b.fail(err)
}

// answers matches the errors in the answer about a batch with its versions.
func (b *s3Bucket) answers(batch []version, errs []types.Error) ([]removal, error) {
	type name struct{ key, id string }
	failed := make(map[name]types.Error, len(errs))
	for _, e := range errs {
		failed[name{aws.ToString(e.Key), aws.ToString(e.VersionId)}] = e
	}
	answers := make([]removal, len(batch))
	matched := map[name]bool{}
	for i, v := range batch {
		n := name{v.key, v.id}
		e, ok := failed[n]
		if !ok { // some stores leave the version out
			n.id = ""
			e, ok = failed[n]
		}
		if !ok {
			answers[i].outcome = removalGone
			continue
		}
		matched[n] = true
		answers[i] = b.notRemoved(aws.ToString(e.Code), b.fail(s3KeyError(e)))
	}
	for _, e := range errs {
		if !matched[name{aws.ToString(e.Key), aws.ToString(e.VersionId)}] {
			return nil, b.fail(s3KeyError(e))
		}
	}
	return answers, nil
}

// until implements versions.
func (b *s3Bucket) until(ctx context.Context, v version) (time.Time, error) {
	retention, err := b.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id)})
	switch {
	case err == nil:
		// The store's clock decides, and ours may be ahead of it; a pass takes its time.
		if r := retention.Retention; r != nil && aws.ToTime(r.RetainUntilDate).After(time.Now().Add(-s3ClockSkew-reconcileTimeout)) {
			return *r.RetainUntilDate, nil
		}
	case s3Gone(err):
		return time.Time{}, nil
	case !s3NoLock(err):
		return time.Time{}, b.fail(err)
	}
	hold, err := b.GetObjectLegalHold(ctx, &s3.GetObjectLegalHoldInput{Bucket: &b.Name, Key: &v.key, VersionId: notEmpty(v.id)})
	switch {
	case err == nil && hold.LegalHold != nil && hold.LegalHold.Status == types.ObjectLockLegalHoldStatusOn, s3Gone(err):
		return time.Time{}, nil
	case err != nil && !s3NoLock(err):
		return time.Time{}, b.fail(err)
	}
	// Some stores keep retention by bucket and have no date per object.
	if until := b.Recorded.until(v.created); !b.aws && !b.Recorded.None() && until.After(time.Now()) {
		return until, nil
	}
	return time.Time{}, b.errorf(codeUnauthorized, nil, "S3 DeleteObjects for bucket %q failed: the store denies the deletion of object "+
		"versions "+
		"that are not under retention: the credentials need the permission s3:DeleteObjectVersion, and no policy may deny it", b.Name)
}

func s3Now(metadata middleware.Metadata) time.Time {
	if now, ok := awsmiddleware.GetServerTime(metadata); ok {
		return now
	}
	return time.Now()
}

// Put implements Objects.
func (b *s3Bucket) Put(ctx context.Context, key string) error { return b.write(ctx, key, nil) }

// write implements writer. AWS wants a checksum of everything that falls under object lock,
// whichever the client is configured to send.
func (b *s3Bucket) write(ctx context.Context, key string, content []byte) error {
	sum := md5.Sum(content)
	_, err := b.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.Name, Key: &key, Body: bytes.NewReader(content),
		ContentMD5: aws.String(base64.StdEncoding.EncodeToString(sum[:]))})
	if err != nil {
		return b.fail(err)
	}
	return nil
}

// s3RetainedCodes: AWS says AccessDenied, MinIO InvalidRequest. Both also mean other things,
// see until.
var s3RetainedCodes = map[string]bool{"AccessDenied": true, "InvalidRequest": true, "ObjectLocked": true}

func s3KeyError(e types.Error) error {
	return &smithy.OperationError{ServiceID: s3.ServiceID, OperationName: "DeleteObjects", Err: &smithy.GenericAPIError{
		Code: aws.ToString(e.Code), Message: fmt.Sprintf("%s (key %q)", strings.TrimSuffix(aws.ToString(e.Message), "."), aws.ToString(e.Key)),
	}}
}

func s3Gone(err error) bool {
	code := s3ErrorCode(err)
	return code == "NoSuchKey" || code == "NoSuchVersion"
}

// s3NoLock says that an object version or its bucket has no retention or legal hold.
func s3NoLock(err error) bool {
	switch s3ErrorCode(err) {
	case "NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest":
		return true
	}
	return s3Unsupported(err)
}
