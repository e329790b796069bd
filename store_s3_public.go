// The public access block of a bucket on S3.
//
// Rules:
//   - What others configured is left as it is.
//   - Except on AWS, a block is kept only once an object could be written with it: Ceph RGW (seen with 16.2) refuses every
//     object of the owner's, too, while BlockPublicAcls is on.
//   - A block that must go is taken away step by step, so that as much of it stays as the store bears.

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Gaps of the public access block.
const (
	gapNoBlock   = "The store cannot block public access."
	gapBlockLost = "The store takes a public access block and does not keep it."
	gapBlockACLs = "The public access block is without BlockPublicAcls, with which some stores write no object, such as Ceph; public ACLs " +
		"are ignored all the same."
	gapBlockRefuses   = "The store takes a public access block, but writes no object with it, so that it was removed again."
	gapBlockNotUndone = "The bucket has a public access block with which the store writes no object, and it could not be removed: remove it."
)

// s3BlockACLs is the setting that Ceph cannot bear.
const s3BlockACLs = "BlockPublicAcls"

// ensurePrivate sets the public access block where there is none. Where nothing was ever set AWS answers with an error, and
// other stores with all of it off: there that is no choice of somebody's, and as it protects nothing, nothing is weakened.
func (b *s3Bucket) ensurePrivate(ctx context.Context) (gap string, err error) {
	off, err := b.publicAccess(ctx)
	switch {
	case s3Unsupported(err):
		return gapNoBlock, nil
	case err != nil:
		return "", err
	case len(off) == 0 && b.aws:
		return "", nil
	case len(off) == 0:
		return b.checkBlock(ctx)
	case !b.aws && slices.Equal(off, []string{s3BlockACLs}):
		return gapBlockACLs, nil
	case len(off) < len(s3BlockSettings), b.aws && off[0] != "":
		return fmt.Sprintf("Somebody configured the public access block with %s off; it is left as it is.", strings.Join(off, ", ")), nil
	}
	// Each attempt is a moment in which no backup could be written.
	if gap, tried := b.blockTried.Load(b.Name); tried && gap != "" {
		return gap.(string), nil
	}
	err = b.putBlock(ctx, true)
	switch {
	case s3Unsupported(err):
		return gapNoBlock, nil
	case err != nil || b.aws:
		return "", err
	}
	if off, err = b.publicAccess(ctx); len(off) > 0 || s3Unsupported(err) {
		return gapBlockLost, nil
	}
	if err != nil {
		return "", err
	}
	return b.tryBlock(ctx, true)
}

// putBlock sets the whole public access block, or all but one setting of it.
func (b *s3Bucket) putBlock(ctx context.Context, acls bool) error {
	on := aws.Bool(true)
	_, err := b.PutPublicAccessBlock(ctx, &s3.PutPublicAccessBlockInput{
		Bucket: &b.Name,
		PublicAccessBlockConfiguration: &types.PublicAccessBlockConfiguration{
			BlockPublicAcls: &acls, IgnorePublicAcls: on, BlockPublicPolicy: on, RestrictPublicBuckets: on,
		},
	})
	return err
}

// checkBlock looks, once in the life of a client, whether an object could be written with a block that may be ours. If that
// was never tried, it is tried now. It is taken away only from a bucket that we made.
func (b *s3Bucket) checkBlock(ctx context.Context) (gap string, err error) {
	if gap, tried := b.blockTried.Load(b.Name); tried && gap == "" {
		return "", nil
	}
	_, err = b.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.Name, Key: aws.String(s3BlockCheck)})
	switch {
	case err == nil:
		b.blockTried.Store(b.Name, "")
		return "", nil
	case s3Status(err) != http.StatusNotFound && s3Status(err) != http.StatusForbidden:
		return "", err
	}
	return b.tryBlock(ctx, b.Created)
}

// tryBlock writes an object with the whole block. If the store refuses that because of the block, ours is taken away.
func (b *s3Bucket) tryBlock(ctx context.Context, ours bool) (gap string, err error) {
	err = b.putCheck(ctx, s3BlockCheck)
	switch {
	case err == nil:
		b.blockTried.Store(b.Name, "")
		return "", nil
	case !ours:
		return "", err // it need not be the block
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), s3RequestTimeout)
	defer cancel()
	about := s3AboutFeature(err, b.fail(err))
	if about && b.putBlock(undo, false) == nil && b.putCheck(undo, s3BlockCheck) == nil {
		return gapBlockACLs, nil
	}
	_, undoErr := b.DeletePublicAccessBlock(undo, &s3.DeletePublicAccessBlockInput{Bucket: &b.Name})
	switch {
	case !about:
		return "", err // it is tried again later
	case undoErr != nil:
		return gapBlockNotUndone, nil
	}
	gap = gapBlockRefuses
	if err := b.putCheck(undo, s3BlockCheck); err != nil {
		// It is something else, and nobody knows how the store would do with the block.
		gap = sentence(b.fail(err))
	}
	b.blockTried.Store(b.Name, gap)
	return gap, nil
}

// s3BlockSettings are the settings of a public access block.
var s3BlockSettings = []struct {
	name string
	of   func(*types.PublicAccessBlockConfiguration) *bool
}{
	{"BlockPublicAcls", func(c *types.PublicAccessBlockConfiguration) *bool { return c.BlockPublicAcls }},
	{"IgnorePublicAcls", func(c *types.PublicAccessBlockConfiguration) *bool { return c.IgnorePublicAcls }},
	{"BlockPublicPolicy", func(c *types.PublicAccessBlockConfiguration) *bool { return c.BlockPublicPolicy }},
	{"RestrictPublicBuckets", func(c *types.PublicAccessBlockConfiguration) *bool { return c.RestrictPublicBuckets }},
}

// publicAccess is which settings of the public access block are off; all of them without names if there is none.
func (b *s3Bucket) publicAccess(ctx context.Context) (off []string, err error) {
	block, err := b.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: &b.Name})
	switch {
	case s3NotSet(err):
		return make([]string, len(s3BlockSettings)), nil
	case err != nil:
		return nil, err
	}
	config := block.PublicAccessBlockConfiguration
	if config == nil || *config == (types.PublicAccessBlockConfiguration{}) {
		return make([]string, len(s3BlockSettings)), nil
	}
	for _, setting := range s3BlockSettings {
		if !aws.ToBool(setting.of(config)) {
			off = append(off, setting.name)
		}
	}
	return off, nil
}
