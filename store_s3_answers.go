// Is it S3 that answers, and did it answer what was asked?
//
// Rules:
//   - A success is believed only with the document that belongs to the request: some stores answer a sub-resource that they
//     do not know as if the bucket itself had been asked for, which would read as "nothing is set" or "nothing is there".
//   - What is not S3 at all, such as a portal's page, is an error and no missing feature.
//   - A store that says when to come back is not asked sooner; what is longer than a pass should wait ends the request.

package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// s3Documents are the root elements of the answers that are believed, by operation.
var s3Documents = map[string]string{
	"DeleteObjects":              "DeleteResult",
	"GetBucketEncryption":        "ServerSideEncryptionConfiguration",
	"GetBucketVersioning":        "VersioningConfiguration",
	"GetObjectLegalHold":         "LegalHold",
	"GetObjectLockConfiguration": "ObjectLockConfiguration",
	"GetObjectRetention":         "Retention",
	"GetPublicAccessBlock":       "PublicAccessBlockConfiguration",
	"ListBuckets":                "ListAllMyBucketsResult",
	"ListMultipartUploads":       "ListMultipartUploadsResult",
	"ListObjectVersions":         "ListVersionsResult",
	"ListObjectsV2":              "ListBucketResult",
}

// s3OtherDocuments are what other stores call them, by operation: here Ceph.
var s3OtherDocuments = map[string]string{"GetPublicAccessBlock": "BlockPublicAccessBlockConfiguration"}

// s3MayBeEmpty are operations whose answer may be no document at all: nothing failed, nothing is set.
var s3MayBeEmpty = map[string]bool{
	"DeleteObjects": true, "GetBucketVersioning": true, "GetObjectLegalHold": true, "GetObjectRetention": true,
}

var (
	// errS3OtherAnswer is an answer to another question: the store does not know the sub-resource.
	errS3OtherAnswer = errors.New("the store answers another question")
	// errS3NoAnswer is a success that is nothing of S3's.
	errS3NoAnswer = errors.New("the answer is no document of S3")
)

// s3CheckDocument refuses answers that are not of the document that was asked for.
var s3CheckDocument = middleware.DeserializeMiddlewareFunc("CheckDocument", func(ctx context.Context, in middleware.DeserializeInput,
	next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
	out, metadata, err := next.HandleDeserialize(ctx, in)
	operation := awsmiddleware.GetOperationName(ctx)
	want := s3Documents[operation]
	response, ok := out.RawResponse.(*smithyhttp.Response)
	if err != nil || !ok || want == "" || response.StatusCode < 200 || response.StatusCode > 299 {
		return out, metadata, err
	}
	var root string
	root, response.Body = s3Root(response.Body)
	switch {
	case root == want, root == "" && response.Body != http.NoBody, root != "" && root == s3OtherDocuments[operation]:
		return out, metadata, nil
	case root == "" && s3MayBeEmpty[operation]:
		return out, metadata, nil
	case root == "", s3KnownRoot(root):
		err = errS3OtherAnswer
	default:
		err = errS3NoAnswer
	}
	// That the connection broke within it comes first: it is no answer then.
	if _, broken := io.Copy(io.Discard, io.LimitReader(response.Body, s3DrainLimit)); broken != nil {
		err = broken
	}
	return out, metadata, err
})

// s3DrainLimit is how much is read of an answer that is not believed.
const s3DrainLimit = 1 << 20

// s3KnownRoot says that S3 has answers with this root element.
func s3KnownRoot(root string) bool {
	for _, known := range s3Documents {
		if root == known {
			return true
		}
	}
	// Of versions of S3, and of stores, that call the two lists otherwise.
	return root == "ListBucketResultV2" || root == "CreateBucketConfiguration" || root == "LocationConstraint" || root == "AccessControlPolicy"
}

// s3RootLimit is how much of an answer is looked at for its root element.
const s3RootLimit = 4096

// s3Root reads the name of the root element of a document, and returns the body as if it had not been read: NoBody if it
// is empty. The name is empty of what is no XML, which is left to who reads it.
func s3Root(body io.ReadCloser) (string, io.ReadCloser) {
	var read bytes.Buffer
	source := &rememberedReader{from: body}
	decoder := xml.NewDecoder(io.TeeReader(io.LimitReader(source, s3RootLimit), &read))
	root := ""
	for root == "" {
		token, err := decoder.Token()
		if err != nil {
			break
		}
		if start, ok := token.(xml.StartElement); ok {
			root = start.Name.Local
		}
	}
	if source.err == io.EOF && len(bytes.TrimSpace(read.Bytes())) == 0 {
		_ = body.Close()
		return "", http.NoBody
	}
	return root, struct {
		io.Reader
		io.Closer
	}{io.MultiReader(&read, source), body}
}

// rememberedReader gives an error of its source again.
type rememberedReader struct {
	from io.Reader
	err  error
}

func (r *rememberedReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.from.Read(p)
	r.err = err
	return n, err
}

// s3RetryAfter is how long the answer that an error is about said to wait; zero if it did not say.
func s3RetryAfter(err error) time.Duration {
	response := s3Response(err)
	if response == nil {
		return 0
	}
	return retryDelay(response.Header, time.Now())
}

// s3Backoff waits as long as the store says, and at least as long as it would without.
func s3Backoff(without retry.BackoffDelayer) retry.BackoffDelayer {
	return retry.BackoffDelayerFunc(func(attempt int, err error) (time.Duration, error) {
		delay, backoffErr := without.BackoffDelay(attempt, err)
		return max(delay, s3RetryAfter(err)), backoffErr
	})
}

// s3Patient says that a request is not to be repeated, since the store wants more time than a request has.
func s3Patient(err error) aws.Ternary {
	if s3RetryAfter(err) > maxWait {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}
