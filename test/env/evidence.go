// Evidence as docs/evidence.md describes it, written without any code of bucketwarden: an independent writer for tests and benchmarks
// of those who read it.

package env

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// Statement is a signed statement as it is stored.
type Statement struct {
	// Name is that of the file, Digest what the next statement names.
	Name, Digest string
	Envelope     []byte
}

// SignStatement signs what is said of a bucket: an in-toto Statement in a DSSE envelope.
func SignStatement(key ed25519.PrivateKey, bucket string, sequence int, at time.Time, said map[string]any) (Statement, error) {
	subject := "s3://s3.eu-central-1.amazonaws.com/" + bucket
	sum := sha256.Sum256([]byte(subject))
	payload, err := json.Marshal(map[string]any{"_type": "https://in-toto.io/Statement/v1", "predicateType": "urn:bucketwarden:evidence:v1",
		"predicate": said, "subject": []any{map[string]any{"name": subject, "digest": map[string]string{"sha256": hex.EncodeToString(sum[:])}}}})
	if err != nil {
		return Statement{}, fmt.Errorf("writing a statement: %w", err)
	}
	const kind = "application/vnd.in-toto+json"
	signed := append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(kind), kind, len(payload)), payload...)
	envelope, err := json.Marshal(map[string]any{"payloadType": kind, "payload": base64.StdEncoding.EncodeToString(payload),
		"signatures": []any{map[string]string{"sig": base64.StdEncoding.EncodeToString(ed25519.Sign(key, signed))}}})
	if err != nil {
		return Statement{}, fmt.Errorf("writing an envelope: %w", err)
	}
	sum = sha256.Sum256(envelope)
	digest := hex.EncodeToString(sum[:])
	name := fmt.Sprintf("%010d-%s-%s.json", sequence, at.Format(time.DateOnly), digest[:32])
	return Statement{Name: name, Digest: digest, Envelope: envelope}, nil
}
