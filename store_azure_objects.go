// Blobs on Azure: listed, deleted, written.
//
// Rules:
//   - The list and the container's policy tell until when a blob is retained.
//   - The answer to a batch is checked here: the SDK panics over parts that answer no request.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
)

// readAzureBatch reads the answer to a batch, which the SDK neither closes nor checks: it
// panics over parts that answer no request. A batch that is refused as a whole is answered
// with one part without Content-ID (learn.microsoft.com/rest/api/storageservices/blob-batch).
func readAzureBatch(ctx context.Context, response *http.Response) (*http.Response, error) {
	body, err := runtime.Payload(response)
	if err != nil {
		return nil, fmt.Errorf("reading the answer to a batch: %w", err)
	}
	if response.StatusCode != http.StatusAccepted {
		return response, nil
	}
	size, _ := ctx.Value(azureBatchParts{}).(int)
	_, params, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil {
		return nil, errAzureBatch
	}
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for answered := 0; ; answered++ {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) && answered == size {
			return response, nil
		}
		if err != nil {
			return nil, errAzureBatch
		}
		if id, err := strconv.Atoi(strings.TrimSpace(part.Header.Get("Content-ID"))); err == nil && id >= 0 && id < size {
			continue
		}
		// Azure ends a part without the newline that HTTP needs.
		whole, err := http.ReadResponse(bufio.NewReader(io.MultiReader(part, strings.NewReader("\n"))), response.Request)
		if err != nil || whole.StatusCode < http.StatusBadRequest {
			return nil, errAzureBatch
		}
		if _, err := runtime.Payload(whole); err != nil {
			return nil, errAzureBatch
		}
		return whole, nil
	}
}

const errAzureBatch azureNonRetriable = "the answer to a batch is not one of Blob Batch"

// azureBlobs lists and deletes blobs with an access key of their storage account.
type azureBlobs struct {
	*azureSubject
	clients *azureClients
	cloud   *azureCloud
	blobs   *container.Client
	// days are those of the container's policy, zero if it is not known; held says that
	// the container is under a legal hold.
	days int
	held bool
}

// include is what a list of blobs tells beside their names.
func (c *azureCloud) include() container.ListBlobsInclude {
	worm := azureHas(c.versions.Blob, azureBlobWorm)
	return container.ListBlobsInclude{Versions: azureHas(c.versions.Blob, azureBlobVersions), ImmutabilityPolicy: worm, LegalHold: worm}
}

// traits returns what the purge has to know of Azure.
func (c *azureClients) traits(cloud *azureCloud) traits {
	batch := azureBatchSize
	if !azureHas(cloud.versions.Blob, azureBlobWorm) {
		batch = azurePlainBatch
	}
	return traits{batch: batch, backoff: func(attempt int) time.Duration {
		return time.Duration(float64(c.retryDelay<<attempt) * (0.5 + rand.Float64()/2))
	}}
}

func (b *azureBlobs) pages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	return b.listed(ctx, prefix, from, b.cloud.include())
}

// listed reads a list page by page.
func (b *azureBlobs) listed(ctx context.Context, prefix string, from cursor, include container.ListBlobsInclude) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		pager := b.blobs.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
			Prefix: notEmpty(prefix), Marker: notEmpty(from.key), MaxResults: to.Ptr[int32](azurePageSize), Include: include,
		})
		for pager.More() {
			response, err := azureCall(ctx, "Blobs.List", pager.NextPage)
			switch {
			case azureGone(err):
				return
			case err == nil && response.Segment == nil:
				// Nothing is no sign that there are no blobs.
				err = &azureCallError{operation: "Blobs.List", err: errAzureAnswer}
				fallthrough
			case err != nil:
				yield(page{}, b.fail(err))
				return
			case !yield(b.page(response), nil):
				return
			}
		}
	}
}

// page reads a page of a list.
func (b *azureBlobs) page(response container.ListBlobsFlatResponse) page {
	p := page{now: cmp.Or(deref(response.Date), time.Now()), next: cursor{key: deref(response.NextMarker)}}
	p.versions = make([]version, 0, len(response.Segment.BlobItems))
	for _, item := range response.Segment.BlobItems {
		v := version{key: deref(item.Name), held: b.held, excluded: azureTags(item.BlobTags)[excludeTag] == excludeValue}
		if id := deref(item.VersionID); id != "" {
			// Deleting the current version of a blob leaves it behind as a previous one
			// (learn.microsoft.com/azure/storage/blobs/versioning-overview).
			if v.leaves = true; !isTrue(item.IsCurrentVersion) {
				v.id = id
			}
		}
		if properties := item.Properties; properties != nil {
			b.retention(&v, properties)
		}
		p.versions = append(p.versions, v)
	}
	return p
}

// retention reads until when a blob is retained: from its creation on, as long as the policy
// of its container says (learn.microsoft.com/azure/storage/blobs/immutable-storage-overview),
// and it may have a policy and a hold of its own.
func (b *azureBlobs) retention(v *version, properties *container.BlobProperties) {
	v.size, v.created = deref(properties.ContentLength), deref(properties.CreationTime)
	v.until = deref(properties.ImmutabilityPolicyExpiresOn)
	v.own = !v.until.IsZero()
	v.held = v.held || isTrue(properties.LegalHold)
	since := v.created
	// That of an append blob counts from its last modification
	// (learn.microsoft.com/azure/storage/blobs/immutable-container-level-worm-policies).
	if deref(properties.BlobType) == container.BlobTypeAppendBlob {
		v.own = true
		if modified := deref(properties.LastModified); modified.After(since) {
			since = modified
		}
	}
	// All that Azure allows as days is more than a time.Duration can hold.
	if end := since.AddDate(0, 0, b.days); b.days > 0 && end.After(v.until) {
		v.until = end
	}
}

// remove sends a batch, which Azure answers blob by blob.
func (b *azureBlobs) remove(ctx context.Context, batch []version) ([]removal, error) {
	if !azureHas(b.cloud.versions.Blob, azureBlobWorm) {
		return b.removeEach(ctx, batch)
	}
	builder, err := b.blobs.NewBatchBuilder()
	if err != nil {
		return nil, b.fail(err)
	}
	for _, v := range batch {
		options := &container.BatchDeleteOptions{}
		if v.id == "" {
			options.DeleteSnapshots = to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)
		} else {
			options.VersionID = &v.id
		}
		if err := builder.Delete(v.key, options); err != nil {
			return nil, b.fail(err)
		}
	}
	ctx = policy.WithRetryOptions(context.WithValue(ctx, azureBatchParts{}, len(batch)), policy.RetryOptions{MaxRetries: -1,
		TryTimeout: azureTryTimeout})
	response, err := azureCall(ctx, azureBatchOperation, func(ctx context.Context) (container.SubmitBatchResponse, error) {
		return b.blobs.SubmitBatch(ctx, builder, nil)
	})
	switch {
	case azureGone(err):
		return nil, errNoBucket
	case errors.As(err, new(azureNonRetriable)):
		return slices.Repeat([]removal{{err: b.fail(err)}}, len(batch)), nil
	case err != nil:
		return nil, b.fail(err)
	}
	answers := make([]removal, len(batch))
	answered := make([]bool, len(batch))
	for _, part := range response.Responses {
		i := *part.ContentID
		answers[i], answered[i] = b.removal(azureBatchOperation, batch[i], part.Error), true
	}
	if slices.Contains(answered, false) {
		return slices.Repeat([]removal{{err: b.fail(&azureCallError{operation: azureBatchOperation, err: errAzureBatch})}}, len(batch)), nil
	}
	return answers, nil
}

// removal reads the answer about one blob.
func (b *azureBlobs) removal(operation string, v version, err error) removal {
	code, status := azureErrorCode(err), azureStatus(err)
	switch {
	case err == nil, code == "BlobNotFound", azureGone(err):
		return removal{outcome: removalGone}
	case code == azureLeased:
		return removal{outcome: removalLeased}
	case code == "BlobImmutableDueToPolicy", code == "BlobImmutableDueToLegalHold":
		return removal{outcome: removalRetained, held: code == "BlobImmutableDueToLegalHold"}
	}
	err = b.fail(&azureCallError{operation: operation, blob: v.key, err: err})
	if status >= http.StatusInternalServerError || status == http.StatusTooManyRequests {
		return removal{outcome: removalAgain, err: err}
	}
	return removal{err: err}
}

// azurePlainBatch is how many blobs are deleted at the leave of one permit where the API has no batches.
const azurePlainBatch = 25

// removeEach deletes blob by blob, for clouds whose API has no batches of one container.
func (b *azureBlobs) removeEach(ctx context.Context, batch []version) ([]removal, error) {
	ctx = policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1, TryTimeout: azureTryTimeout})
	answers := make([]removal, len(batch))
	for i, v := range batch {
		client, options := b.blobs.NewBlobClient(v.key), &blob.DeleteOptions{}
		if v.id == "" {
			options.DeleteSnapshots = to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)
		} else if versioned, err := client.WithVersionID(v.id); err != nil {
			return nil, b.fail(err)
		} else {
			client = versioned
		}
		_, err := azureCall(ctx, "Blobs.Delete", func(ctx context.Context) (blob.DeleteResponse, error) {
			return client.Delete(ctx, options)
		})
		if err != nil && (azureStatus(err) == 0 || ctx.Err() != nil) {
			// The network, so the others need not be tried.
			if failure := b.fail(err); i == 0 || !isTransient(failure) {
				return nil, failure
			}
			for j := i; j < len(batch); j++ {
				answers[j] = removal{outcome: removalAgain, err: b.fail(err)}
			}
			return answers, nil
		}
		answers[i] = b.removal("Blobs.Delete", v, err)
	}
	return answers, nil
}

// azureLeased is the answer about what somebody holds a lease on
// (learn.microsoft.com/rest/api/storageservices/lease-blob).
const azureLeased = "LeaseIdMissing"

var _, _ leaser = &azureEntry{}, &azureBucket{}

// breakLease implements leaser. Without a period the lease would last as long as its holder asked for.
func (b *azureBlobs) breakLease(ctx context.Context, v version) error {
	client, err := lease.NewBlobClient(b.blobs.NewBlobClient(v.key), nil)
	if err != nil {
		return b.fail(err)
	}
	_, err = azureCall(ctx, "Blobs.BreakLease", func(ctx context.Context) (lease.BlobBreakResponse, error) {
		return client.BreakLease(ctx, &lease.BlobBreakOptions{BreakPeriod: to.Ptr[int32](0)})
	})
	switch status := azureStatus(err); {
	case err == nil, status == http.StatusNotFound, status == http.StatusConflict, status == http.StatusPreconditionFailed:
		return nil // gone, or broken by somebody else: it shows when the blob is deleted again
	}
	return b.fail(err)
}

// azureEntry implements Objects with the credentials of a BackupEntry.
type azureEntry struct{ azureBlobs }

func (e *azureEntry) traits() traits { return e.clients.traits(e.cloud) }

// until implements versions: what the list does not tell, nobody knows.
func (*azureEntry) until(context.Context, version) (time.Time, error) { return time.Time{}, nil }

// Put implements Objects.
func (e *azureEntry) Put(ctx context.Context, key string) error { return e.write(ctx, key, nil) }

// write implements writer.
func (e *azureEntry) write(ctx context.Context, key string, content []byte) error {
	sum := md5.Sum(content)
	options := &blockblob.UploadOptions{TransactionalValidation: blob.TransferValidationTypeMD5(sum[:])}
	_, err := azureCall(ctx, "Blobs.Put", func(ctx context.Context) (blockblob.UploadResponse, error) {
		return e.blobs.NewBlockBlobClient(key).Upload(ctx, streaming.NopCloser(bytes.NewReader(content)), options)
	})
	if err != nil {
		return e.fail(err)
	}
	return nil
}

// blobs returns a client for the data plane and the subject of its errors.
func (b *azureBucket) blobs(ctx context.Context) (*container.Client, *azureSubject, error) {
	b.mu.Lock()
	key := b.key
	b.mu.Unlock()
	if key == "" {
		if _, err := b.Keys(ctx); err != nil {
			return nil, nil, err
		}
		b.mu.Lock()
		key = b.key
		b.mu.Unlock()
	}
	if key == "" {
		return nil, nil, b.errorf(codeRetryableDependencies, nil, "storage account %s of bucket %q has no access key", b.Account, b.Name)
	}
	client, err := b.clients.blobs(b.cloud, b.bucketRef, key)
	if err != nil {
		return nil, nil, b.errorf("", err, "%s", err)
	}
	subject := b.azureSubject
	subject.secrets = append(slices.Clone(b.secrets), key)
	return client, &subject, nil
}

// objects returns what the container holds; nil if it does not exist.
func (b *azureBucket) objects(ctx context.Context) (*azureBlobs, error) {
	known, err := b.known(ctx)
	if err != nil || !known.exists {
		return nil, err
	}
	blobs, subject, err := b.blobs(ctx)
	switch {
	case azureGone(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &azureBlobs{azureSubject: subject, clients: b.clients, cloud: b.cloud, blobs: blobs, days: known.retention(),
		held: known.legalHold}, nil
}

// pages implements versions.
func (b *azureBucket) pages(ctx context.Context, prefix string, from cursor) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		objects, err := b.objects(ctx)
		switch {
		case err != nil:
			yield(page{}, err)
		case objects != nil:
			objects.pages(ctx, prefix, from)(yield)
		}
	}
}

// remove implements versions.
func (b *azureBucket) remove(ctx context.Context, batch []version) ([]removal, error) {
	objects, err := b.objects(ctx)
	if err != nil {
		return nil, err
	}
	if objects == nil {
		return nil, errNoBucket
	}
	return objects.remove(ctx, batch)
}

// breakLease implements leaser.
func (b *azureBucket) breakLease(ctx context.Context, v version) error {
	objects, err := b.objects(ctx)
	if err != nil || objects == nil {
		return err
	}
	return objects.breakLease(ctx, v)
}

// until implements versions.
func (*azureBucket) until(context.Context, version) (time.Time, error) { return time.Time{}, nil }

// traits implements versions.
func (b *azureBucket) traits() traits { return b.clients.traits(b.cloud) }
