// What is in blobs on Azure, and what keeps them out of a restore: read, tagged.
//
// Rules:
//   - Tags are blob index tags. A list tells them too, if it is asked to.
//   - A blob is streamed, never held; the time limit of other requests is not for it, since it takes as long as it is large.

package main

import (
	"context"
	"io"
	"iter"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

var _ interface {
	reader
	writer
	tagger
	tagLister
} = &azureEntry{}

// blob is the client of a version.
func (b *azureBlobs) blob(v version) (*blob.Client, error) {
	client := b.blobs.NewBlobClient(v.key)
	if v.id == "" {
		return client, nil
	}
	client, err := client.WithVersionID(v.id)
	if err != nil {
		return nil, b.fail(err)
	}
	return client, nil
}

// failVersion makes the *storeError of an SDK error about one version.
func (b *azureBlobs) failVersion(err error, v version) error {
	if azureErrorCode(err) == "BlobNotFound" && azureStatus(err) == http.StatusNotFound {
		return b.errorf("", errNoVersion, "blob %q of bucket %q does not exist any more", v.key, b.Name)
	}
	return b.fail(err)
}

// open implements reader.
func (b *azureBlobs) open(ctx context.Context, v version) (io.ReadCloser, error) {
	client, err := b.blob(v)
	if err != nil {
		return nil, err
	}
	ctx = context.WithValue(policy.WithRetryOptions(ctx, b.clients.streaming()), streamSize{}, v.size)
	out, err := azureCall(ctx, "Blobs.Get", func(ctx context.Context) (blob.DownloadStreamResponse, error) {
		return client.DownloadStream(ctx, nil)
	})
	if err != nil {
		return nil, b.failVersion(err, v)
	}
	return &objectBody{ReadCloser: out.Body, left: v.size, fail: func(err error) error {
		code, text := readCause(err)
		return b.errorf(code, err, "reading blob %q of bucket %q failed: %s", v.key, b.Name, b.clean(text))
	}}, nil
}

// streaming are the retries of an answer that takes as long as it is large.
func (c *azureClients) streaming() policy.RetryOptions {
	options := c.options().Retry
	options.TryTimeout = 0
	return options
}

// tags implements tagger.
func (b *azureBlobs) tags(ctx context.Context, v version) (map[string]string, error) {
	client, err := b.blob(v)
	if err != nil {
		return nil, err
	}
	out, err := azureCall(ctx, "Blobs.GetTags", func(ctx context.Context) (blob.GetTagsResponse, error) {
		return client.GetTags(ctx, nil)
	})
	if err != nil {
		return nil, b.failVersion(err, v)
	}
	return azureTags(&out.BlobTags), nil
}

func azureTags(set *container.BlobTags) map[string]string {
	tags := map[string]string{}
	if set != nil {
		for _, tag := range set.BlobTagSet {
			if tag != nil {
				tags[deref(tag.Key)] = deref(tag.Value)
			}
		}
	}
	return tags
}

// setTags implements tagger.
func (b *azureBlobs) setTags(ctx context.Context, v version, tags map[string]string) error {
	client, err := b.blob(v)
	if err != nil {
		return err
	}
	if _, err = azureCall(ctx, "Blobs.SetTags", func(ctx context.Context) (blob.SetTagsResponse, error) {
		return client.SetTags(ctx, tags, nil)
	}); err != nil {
		return b.failVersion(err, v)
	}
	return nil
}

// taggedPages implements tagLister.
func (b *azureBlobs) taggedPages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	include := b.cloud.include()
	include.Tags = azureHas(b.cloud.versions.Blob, azureBlobVersions)
	return b.listed(ctx, prefix, from, include)
}
