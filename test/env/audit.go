package env

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// auditLog is relative to the data directory of the API server.
const auditLog = "audit.log"

// APIRequest is what the API server's audit log says of a request that it has answered
// (k8s.io/apiserver/pkg/apis/audit/v1).
type APIRequest struct {
	Verb string
	User struct{ Username string }
	// ObjectRef is empty for what is no resource.
	ObjectRef struct{ APIGroup, Resource, Subresource, Namespace, Name string }
	// RequestReceivedTimestamp and StageTimestamp are when it came and was answered.
	RequestReceivedTimestamp time.Time
	StageTimestamp           time.Time
	ResponseStatus           struct{ Code int }
	// Annotations are what admission wrote.
	Annotations map[string]string
	// Stage is ResponseStarted, for a watch, ResponseComplete or Panic.
	Stage string
}

// Requests returns the requests of a user since the API server was started by
// StartAuditedKube, in the order in which they were answered.
func (k *Kube) Requests(username string) ([]APIRequest, error) {
	file, err := os.Open(filepath.Join(k.dir, auditLog))
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	defer func() { _ = file.Close() }()
	var requests []APIRequest
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var r APIRequest
		// The last line may be in the making.
		if json.Unmarshal(scanner.Bytes(), &r) == nil && r.User.Username == username {
			requests = append(requests, r)
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	return requests, nil
}
