// The lock of a container on Azure, tried with a blob of our own.
//
// Rules:
//   - Azure's codes tell a policy from a missing permission, so there is no control.
//   - An account that keeps versions lets a blob be overwritten and deleted, and keeps what was there: only the deletion of the
//     version itself counts then.
//   - Nothing is repeated: one attack is one entry in Azure's log.

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
)

var _ attacker = &azureEntry{}

// errAzureKept says that an attack succeeded and that the blob is kept all the same.
var errAzureKept = errors.New("the account keeps versions of blobs, so that this harms nothing")

// attacks implements attacker.
func (e *azureEntry) attacks() []string { return []string{attackOverwrite, attackDelete} }

// plant implements attacker.
func (e *azureEntry) plant(ctx context.Context, key string) (version, error) {
	out, err := e.upload(ctx, key)
	if err != nil {
		return version{}, e.fail(err)
	}
	return version{key: key, created: cmp.Or(deref(out.LastModified), time.Now()), leaves: deref(out.VersionID) != ""}, nil
}

func (e *azureEntry) upload(ctx context.Context, key string) (blockblob.UploadResponse, error) {
	return azureCall(ctx, "Blobs.Put", func(ctx context.Context) (blockblob.UploadResponse, error) {
		return e.blobs.NewBlockBlobClient(key).Upload(ctx, streaming.NopCloser(bytes.NewReader(nil)), nil)
	})
}

// retention implements attacker, from the policy that is recorded of the container: the credentials of an entry cannot read it.
func (e *azureEntry) retention(ctx context.Context, v version) (time.Time, bool, error) {
	out, err := azureCall(ctx, "Blobs.GetProperties", func(ctx context.Context) (blob.GetPropertiesResponse, error) {
		return e.blobs.NewBlobClient(v.key).GetProperties(ctx, nil)
	})
	switch {
	case azureStatus(err) == http.StatusNotFound && !azureGone(err):
		// An answer to HEAD has its code in a header only, or none.
		return time.Time{}, false, e.errorf("", errNoVersion, "blob %q of bucket %q does not exist any more", v.key, e.Name)
	case err != nil:
		return time.Time{}, false, e.fail(err)
	case e.Recorded.None():
		return time.Time{}, false, nil
	}
	return e.Recorded.until(cmp.Or(deref(out.CreationTime), v.created)), !e.Recorded.Locked, nil
}

// azureOnce makes requests without repeating them.
func azureOnce(ctx context.Context) context.Context {
	return policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1, TryTimeout: azureTryTimeout})
}

// attack implements attacker.
func (e *azureEntry) attack(ctx context.Context, name string, v version, _ time.Time, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	var err error
	switch name {
	case attackDelete:
		err = e.deleteBlob(ctx, v)
	case attackOverwrite:
		_, err = e.upload(azureOnce(ctx), v.key)
	default:
		return fmt.Errorf("there is no attack %q on Azure", name)
	}
	if err == nil && v.leaves {
		return &storeError{err: errAzureKept}
	}
	return e.failAttack(err, v)
}

func (e *azureEntry) deleteBlob(ctx context.Context, v version) error {
	_, err := azureCall(azureOnce(ctx), "Blobs.Delete", func(ctx context.Context) (blob.DeleteResponse, error) {
		return e.blobs.NewBlobClient(v.key).Delete(ctx, &blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)})
	})
	return err
}

// failAttack makes the *storeError of an SDK error about an attack, with errLocked if the policy or a hold is the reason.
func (e *azureEntry) failAttack(err error, v version) error {
	if err == nil {
		return nil
	}
	failed := e.failVersion(err, v)
	switch azureErrorCode(err) {
	case "BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold":
		return &refusedError{errLocked, failed}
	}
	return failed
}

// discard implements attacker.
func (e *azureEntry) discard(ctx context.Context, v version, leave permit) error {
	if err := leave.ask(ctx); err != nil {
		return err
	}
	if err := e.failAttack(e.deleteBlob(ctx, v), v); !errors.Is(err, errNoVersion) {
		return err
	}
	return nil
}
