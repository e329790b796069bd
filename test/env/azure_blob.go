package env

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// blobTarget is what a request of the data plane is about.
type blobTarget struct {
	operation                string
	account, container, blob string // unescaped
	// path is escaped, relative to the account, and begins with a slash.
	path  string
	query url.Values
}

// blobOperations are the names in learn.microsoft.com/rest/api/storageservices by what
// the request is about, its method and its parameter comp.
var blobOperations = map[string]string{
	"service GET list": "ListContainers", "service POST batch": "BlobBatch",
	"service GET properties": "GetBlobServiceProperties", "service PUT properties": "SetBlobServiceProperties",
	"container PUT ": "CreateContainer", "container GET ": "GetContainerProperties", "container HEAD ": "GetContainerProperties",
	"container DELETE ": "DeleteContainer", "container GET list": "ListBlobs", "container POST batch": "BlobBatch",
	"container PUT metadata": "SetContainerMetadata", "container GET acl": "GetContainerACL", "container PUT acl": "SetContainerACL",
	"blob PUT ": "PutBlob", "blob GET ": "GetBlob", "blob HEAD ": "GetBlobProperties", "blob DELETE ": "DeleteBlob",
	"blob PUT block": "PutBlock", "blob PUT blocklist": "PutBlockList", "blob GET blocklist": "GetBlockList",
	"blob PUT page": "PutPage", "blob PUT appendblock": "AppendBlock", "blob PUT metadata": "SetBlobMetadata",
	"blob PUT properties": "SetBlobProperties", "blob PUT snapshot": "SnapshotBlob", "blob PUT tier": "SetBlobTier",
	"blob PUT lease": "LeaseBlob", "blob GET tags": "GetBlobTags", "blob PUT tags": "SetBlobTags", "blob HEAD metadata": "GetBlobMetadata",
	"blob GET metadata": "GetBlobMetadata", "blob PUT incrementalcopy": "IncrementalCopyBlob", "blob PUT seal": "SealBlob",
}

// targetOf parses the escaped path and the query of a request.
func targetOf(method, path, rawQuery string, header http.Header) (blobTarget, error) {
	account, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	decoded, err := url.PathUnescape(rest)
	if err != nil {
		return blobTarget{}, err
	}
	t := blobTarget{account: account, path: "/" + rest}
	if t.query, err = url.ParseQuery(rawQuery); err != nil {
		return blobTarget{}, err
	}
	t.container, t.blob, _ = strings.Cut(decoded, "/")
	about := "blob"
	switch {
	case t.container == "":
		about = "service"
	case t.blob == "":
		about = "container"
	}
	t.operation = cmp.Or(blobOperations[about+" "+method+" "+t.query.Get("comp")], "Unknown")
	if t.operation == "PutBlob" && header.Get("X-Ms-Copy-Source") != "" {
		t.operation = "CopyBlob"
	}
	return t, nil
}

// blobError is an error of the data plane
// (learn.microsoft.com/rest/api/storageservices/status-and-error-codes2).
func (a *Azure) blobError(status int, code, message string) *azureAnswer {
	id := newUUID()
	body, err := xml.Marshal(struct {
		XMLName       xml.Name `xml:"Error"`
		Code, Message string
	}{Code: code, Message: fmt.Sprintf("%s\nRequestId:%s\nTime:%s", message, id, a.Now().Format("2006-01-02T15:04:05.0000000Z"))})
	if err != nil {
		panic(err) // only strings
	}
	return &azureAnswer{status: status, body: append([]byte(`<?xml version="1.0" encoding="utf-8"?>`), body...), header: http.Header{
		"Content-Type": {"application/xml"}, "X-Ms-Error-Code": {code}, "X-Ms-Request-Id": {id},
	}}
}

// blobCodes are the codes of errors without another one
// (learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes).
var blobCodes = map[int]string{
	http.StatusBadRequest:          "InvalidInput",
	http.StatusUnauthorized:        "NoAuthenticationInformation",
	http.StatusForbidden:           "AuthenticationFailed",
	http.StatusNotFound:            "ResourceNotFound",
	http.StatusConflict:            "BlobImmutableDueToPolicy",
	http.StatusPreconditionFailed:  "ConditionNotMet",
	http.StatusTooManyRequests:     "TooManyRequests",
	http.StatusInternalServerError: "InternalError",
	http.StatusServiceUnavailable:  "ServerBusy",
}

func (a *Azure) blobFailure(fault *AzureFault) *azureAnswer {
	answer := a.blobError(fault.Status, cmp.Or(fault.Code, blobCodes[fault.Status], "Unknown"), "This error was injected.")
	fault.retryAfter(answer.header)
	return answer
}

func (a *Azure) serveBlob(w http.ResponseWriter, r *http.Request) {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	target, err := targetOf(r.Method, path, r.URL.RawQuery, r.Header)
	if err != nil {
		target.operation = "Unknown"
	}
	request := AzureRequest{Plane: PlaneBlob, Method: r.Method, Operation: target.operation, Path: r.URL.Path}
	a.exchange(w, r, request, a.blobFailure, func(request *AzureRequest) *azureAnswer {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil
		}
		own := r.Header.Get(ownHeader) != ""
		return a.handleBlob(r.Context(), r.Method, path, r.URL.RawQuery, r.Header, body, target, request, own)
	})
}

// blobAccount is what the data plane needs of an account: a copy, so that no lock is
// held while Azurite works.
type blobAccount struct {
	keys      [2]AzureKey
	pool      int
	sharedKey bool
	container azureContainer
	found     bool // the container
}

// blobAccount returns false if there is no such account.
func (a *Azure) blobAccount(name, container string) (blobAccount, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	account := a.accounts[name]
	if account == nil {
		return blobAccount{}, false
	}
	result := blobAccount{keys: account.keys, pool: account.pool, sharedKey: account.resource["properties"].(map[string]any)["allowSharedKeyAccess"] != false}
	if c := account.containers[container]; c != nil {
		// The policy is changed in place, but replaced by a copy here.
		result.container, result.found = *c, true
		if c.policy != nil {
			policy := *c.policy
			result.container.policy = &policy
		}
	}
	return result, true
}

// authenticate returns nil if the request is signed with a key of the account
// (learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key).
func (a *Azure) authenticate(account blobAccount, name, method, path, rawQuery string, header http.Header, length int) *azureAnswer {
	authorization := header.Get("Authorization")
	scheme, credential, _ := strings.Cut(authorization, " ")
	failed := a.blobError(http.StatusForbidden, "AuthenticationFailed",
		"Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly including the signature.")
	switch {
	case authorization == "":
		return a.blobError(http.StatusUnauthorized, "NoAuthenticationInformation",
			"Server failed to authenticate the request. Please refer to the information in the www-authenticate header.")
	case strings.EqualFold(scheme, "Bearer"):
		// A role for the data is a role of its own, which our principal does not have
		// (learn.microsoft.com/azure/storage/blobs/authorize-access-azure-active-directory).
		return a.blobError(http.StatusForbidden, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this permission.")
	case !account.sharedKey:
		return a.blobError(http.StatusForbidden, "KeyBasedAuthenticationNotPermitted", "Key based authentication is not permitted on this storage account.")
	case scheme != "SharedKey":
		return failed
	}
	who, given, _ := strings.Cut(credential, ":")
	text := stringToSign(name, method, path, rawQuery, header, length)
	for _, key := range account.keys {
		secret, err := base64.StdEncoding.DecodeString(key.Value)
		if err == nil && who == name && hmac.Equal([]byte(given), []byte(signature(secret, text))) {
			return nil
		}
	}
	return failed
}

// stringToSign: learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
func stringToSign(account, method, path, rawQuery string, header http.Header, length int) string {
	contentLength := ""
	if length > 0 {
		contentLength = strconv.Itoa(length)
	}
	date := header.Get("Date")
	if header.Get("X-Ms-Date") != "" {
		date = ""
	}
	lines := []string{
		method, header.Get("Content-Encoding"), header.Get("Content-Language"), contentLength, header.Get("Content-Md5"), header.Get("Content-Type"), date,
		header.Get("If-Modified-Since"), header.Get("If-Match"), header.Get("If-None-Match"), header.Get("If-Unmodified-Since"), header.Get("Range"),
	}
	for _, name := range slices.SortedFunc(maps.Keys(header), func(x, y string) int { return strings.Compare(strings.ToLower(x), strings.ToLower(y)) }) {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-ms-") {
			lines = append(lines, lower+":"+strings.Join(header[name], ","))
		}
	}
	lines = append(lines, "/"+account+path)
	query, _ := url.ParseQuery(rawQuery) // was parsed before
	for _, name := range slices.Sorted(maps.Keys(query)) {
		lines = append(lines, strings.ToLower(name)+":"+strings.Join(slices.Sorted(slices.Values(query[name])), ","))
	}
	return strings.Join(lines, "\n")
}

func signature(key []byte, text string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// signShared signs a request to Azurite.
func signShared(r *http.Request, account poolAccount) {
	text := stringToSign(account.name, r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Header, int(r.ContentLength))
	r.Header.Set("Authorization", "SharedKey "+account.name+":"+signature(account.key, text))
}

// handleBlob checks a request and has it answered.
func (a *Azure) handleBlob(ctx context.Context, method, path, rawQuery string, header http.Header, body []byte,
	target blobTarget, request *AzureRequest, own bool,
) *azureAnswer {
	account, ok := a.blobAccount(target.account, target.container)
	if !ok {
		return a.blobError(http.StatusNotFound, "ResourceNotFound", "The specified resource does not exist.")
	}
	if failed := a.authenticate(account, target.account, method, path, rawQuery, header, len(body)); failed != nil {
		return failed
	}
	if target.container != "" && !account.found && target.operation != "CreateContainer" {
		return a.blobError(http.StatusNotFound, "ContainerNotFound", "The specified container does not exist.")
	}
	switch target.operation {
	case "Unknown":
		return a.blobError(http.StatusBadRequest, "InvalidQueryParameterValue", method+" "+path+" is not known to this test environment.")
	case "BlobBatch":
		return a.batch(ctx, header, body, target, request, own)
	}
	if refused := a.refusal(ctx, account, target, header); refused != nil {
		return refused
	}
	answer := a.forward(ctx, account, method, target, rawQuery, header, body)
	a.noteContainer(target, answer.status)
	if target.operation == "GetContainerProperties" && answer.status < 300 {
		answer.header.Set("X-Ms-Has-Immutability-Policy", strconv.FormatBool(account.container.policy != nil))
		answer.header.Set("X-Ms-Has-Legal-Hold", strconv.FormatBool(len(account.container.holds) > 0))
	}
	return answer
}

// forward lets Azurite answer a request. What a list should include and Azurite does not
// know, such as versions and legal holds, it ignores.
func (a *Azure) forward(ctx context.Context, account blobAccount, method string, target blobTarget, rawQuery string, header http.Header, body []byte) *azureAnswer {
	header = header.Clone()
	for _, name := range []string{"Authorization", "Connection", "Content-Length", "Expect", ownHeader} {
		header.Del(name)
	}
	// A request is not left half done because its client has gone.
	answer, err := a.azuriteSend(context.WithoutCancel(ctx), method, account.pool, target.path, rawQuery, header, body)
	if err != nil {
		return a.blobError(http.StatusInternalServerError, "InternalError", err.Error())
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Transfer-Encoding", "Date"} {
		answer.header.Del(name)
	}
	if method != http.MethodHead {
		answer.header.Del("Content-Length")
	}
	return answer
}

// noteContainer tells Resource Manager of containers that the data plane made or deleted.
func (a *Azure) noteContainer(target blobTarget, status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	account := a.accounts[target.account]
	switch {
	case account == nil || status >= 300:
	case target.operation == "CreateContainer":
		account.containers[target.container] = a.newContainer(target.container)
	case target.operation == "DeleteContainer":
		delete(account.containers, target.container)
	}
}

// overwriting are the operations that change a blob that is there. An immutable container
// refuses them also when the retention of the blob has ended: "Delete operations are
// allowed. Overwrite operations aren't allowed"
// (learn.microsoft.com/azure/storage/blobs/immutable-container-level-worm-policies).
var overwriting = []string{
	"PutBlob", "CopyBlob", "PutBlockList", "PutPage", "AppendBlock", "SetBlobMetadata", "SetBlobProperties", "SnapshotBlob", "IncrementalCopyBlob",
}

// refusal returns the error that a policy or a legal hold causes, or nil. Its codes:
// learn.microsoft.com/rest/api/storageservices/blob-service-error-codes.
func (a *Azure) refusal(ctx context.Context, account blobAccount, target blobTarget, header http.Header) *azureAnswer {
	policy, held := account.container.policy, len(account.container.holds) > 0
	if policy == nil && !held {
		return nil
	}
	// "You can delete a container that has a container-level WORM policy only by using
	// control plane operations" (the same page as above). There is no other code for a
	// policy that is not locked.
	if target.operation == "DeleteContainer" {
		if held {
			return a.blobError(http.StatusConflict, "ContainerHasLegalHold", "The requested operation is not allowed as the container has one or more legal holds.")
		}
		return a.blobError(http.StatusConflict, "ContainerImmutabilityPolicyLocked",
			"The requested operation is not allowed as the container has a locked immutability policy.")
	}
	overwrites := slices.Contains(overwriting, target.operation)
	if target.operation == "AppendBlock" && policy != nil && (policy.append || policy.appendAll) && !held {
		return nil
	}
	if !overwrites && target.operation != "DeleteBlob" {
		return nil
	}
	query := ""
	if target.query.Has("snapshot") {
		query = "snapshot=" + url.QueryEscape(target.query.Get("snapshot"))
	}
	blob, err := a.azuriteSend(ctx, http.MethodHead, account.pool, target.path, query, http.Header{"X-Ms-Version": header["X-Ms-Version"]}, nil)
	switch {
	case err != nil:
		return a.blobError(http.StatusInternalServerError, "InternalError", err.Error())
	case blob.status == http.StatusNotFound:
		return nil // a new blob may be put; for the rest Azurite answers
	case held:
		return a.blobError(http.StatusConflict, "BlobImmutableDueToLegalHold", "This operation is not permitted as the blob is immutable due to one or more legal holds.")
	}
	// "The effective retention period for objects is equal to the difference between the
	// blob's creation time and the user-specified retention interval"
	// (learn.microsoft.com/azure/storage/blobs/immutable-storage-overview).
	created, err := time.Parse(http.TimeFormat, blob.header.Get("X-Ms-Creation-Time"))
	if err != nil {
		return a.blobError(http.StatusInternalServerError, "InternalError", "Azurite gave no creation time: "+err.Error())
	}
	if overwrites || created.AddDate(0, 0, int(policy.days)).After(a.Now()) {
		return a.blobError(http.StatusConflict, "BlobImmutableDueToPolicy", "This operation is not permitted as the blob is immutable due to a policy.")
	}
	return nil
}

// batchLimit: "Each batch request supports a maximum of 256 subrequests"
// (learn.microsoft.com/rest/api/storageservices/blob-batch).
const batchLimit = 256

// batch handles each part as a request of its own. Azurite's own batches are of no use
// here, because some parts are refused.
func (a *Azure) batch(ctx context.Context, header http.Header, body []byte, target blobTarget, request *AzureRequest, own bool) *azureAnswer {
	_, parameters, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		return a.blobError(http.StatusBadRequest, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format.")
	}
	var parts []*multipart.Part
	var contents [][]byte
	reader := multipart.NewReader(bytes.NewReader(body), parameters["boundary"])
	for {
		part, err := reader.NextPart()
		if err == io.EOF {
			break
		}
		var content []byte
		if err == nil {
			content, err = io.ReadAll(part)
		}
		if err != nil {
			return a.blobError(http.StatusBadRequest, "InvalidInput", "One of the request inputs is not valid.")
		}
		parts, contents = append(parts, part), append(contents, content)
	}
	request.SubRequests = len(parts)
	answers := make([]*azureAnswer, len(parts))
	if len(parts) > batchLimit || len(parts) == 0 {
		// The answer is a batch too, with one part without a Content-ID: so expects it the
		// SDK. The page names no code.
		parts = []*multipart.Part{{}}
		answers = []*azureAnswer{a.blobError(http.StatusBadRequest, "ExceedsMaxBatchRequestCount",
			fmt.Sprintf("The batch operation has %d subrequests; 1 to %d are allowed.", len(contents), batchLimit))}
		contents = nil
	}
	var group sync.WaitGroup
	const workers = 8
	for worker := range workers {
		group.Go(func() {
			for i := worker; i < len(contents); i += workers {
				answers[i] = a.batchPart(ctx, contents[i], header.Get("X-Ms-Version"), target, own)
			}
		})
	}
	group.Wait()

	var result bytes.Buffer
	writer := multipart.NewWriter(&result)
	_ = writer.SetBoundary("batchresponse_" + newUUID())
	for i, part := range parts {
		if answers[i] == nil {
			return nil // the connection is dropped
		}
		partHeader := textproto.MIMEHeader{"Content-Type": {"application/http"}}
		if id := part.Header.Get("Content-ID"); id != "" {
			partHeader.Set("Content-ID", id)
		}
		w, _ := writer.CreatePart(partHeader) // a bytes.Buffer takes all
		fmt.Fprintf(w, "HTTP/1.1 %d %s\r\n", answers[i].status, http.StatusText(answers[i].status))
		if len(answers[i].body) > 0 {
			answers[i].header.Set("Content-Length", strconv.Itoa(len(answers[i].body)))
		}
		_ = answers[i].header.Write(w)
		fmt.Fprint(w, "\r\n")
		_, _ = w.Write(answers[i].body)
	}
	_ = writer.Close()
	return &azureAnswer{status: http.StatusAccepted, body: result.Bytes(), header: http.Header{
		"Content-Type": {"multipart/mixed; boundary=" + writer.Boundary()}, "X-Ms-Request-Id": {newUUID()}, "X-Ms-Version": {header.Get("X-Ms-Version")},
	}}
}

// batchPart handles a part, which is authorized by itself; the version is the batch's. It
// returns nil to drop the connection.
func (a *Azure) batchPart(ctx context.Context, content []byte, version string, batch blobTarget, own bool) *azureAnswer {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(append(bytes.TrimLeft(content, "\r\n"), "\r\n"...))))
	if err != nil {
		return a.blobError(http.StatusBadRequest, "InvalidInput", "One of the request inputs is not valid.")
	}
	path, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	target, err := targetOf(r.Method, path, rawQuery, r.Header)
	switch {
	case err != nil || target.operation != "DeleteBlob" && target.operation != "SetBlobTier":
		return a.blobError(http.StatusBadRequest, "InvalidInput", "A batch holds Delete Blob and Set Blob Tier only.")
	case target.account != batch.account || batch.container != "" && target.container != batch.container:
		return a.blobError(http.StatusBadRequest, "InvalidInput", "The subrequests of a batch are scoped to its account and container.")
	}
	fault := &AzureFault{}
	if !own {
		fault = a.faultOf(AzureRequest{Plane: PlaneBlob, Method: r.Method, Operation: target.operation, Path: r.URL.Path})
	}
	if fault.Do != nil {
		fault.Do()
	}
	switch {
	case fault.Drop:
		return nil
	case fault.Status != 0:
		return a.blobFailure(fault)
	}
	account, ok := a.blobAccount(target.account, target.container)
	if !ok {
		return a.blobError(http.StatusNotFound, "ResourceNotFound", "The specified resource does not exist.")
	}
	// It is signed without the version, which comes from the batch.
	if failed := a.authenticate(account, target.account, r.Method, path, rawQuery, r.Header, 0); failed != nil {
		return failed
	}
	if !account.found {
		return a.blobError(http.StatusNotFound, "ContainerNotFound", "The specified container does not exist.")
	}
	r.Header.Set("X-Ms-Version", version)
	if refused := a.refusal(ctx, account, target, r.Header); refused != nil {
		return refused
	}
	answer := a.forward(ctx, account, r.Method, target, rawQuery, r.Header, nil)
	if fault.DropAnswer {
		return nil
	}
	return answer
}
