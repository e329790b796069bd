// How evidence is signed and opened: an in-toto Statement in a DSSE envelope with one Ed25519 signature, with nothing but the standard
// library (github.com/secure-systems-lab/dsse/blob/master/protocol.md and envelope.md).
//
// Rules:
//   - What is signed is the PAE of payload type and payload, so that no reader has to bring JSON into one form.
//   - The signature is checked before the payload is decoded. A key never comes from the envelope; the keyid is only a hint.
//   - Whoever can write to a bucket can put anything there: sizes are bounded, and a name that occurs twice is an error.

package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	kjson "sigs.k8s.io/json"
)

// maxEvidence is how large an envelope may be; one of a bucket with 1000 entries has 400 kB.
const maxEvidence = 8 << 20

// evidenceEnvelope is a DSSE envelope.
type evidenceEnvelope struct {
	PayloadType string              `json:"payloadType"`
	Payload     string              `json:"payload"`
	Signatures  []evidenceSignature `json:"signatures"`
}

// evidenceSignature is one signature of an envelope, in base64.
type evidenceSignature struct {
	KeyID string `json:"keyid,omitempty"`
	Sig   string `json:"sig"`
}

// evidencePAE is what is signed: DSSE's pre-authentication encoding.
func evidencePAE(payloadType string, payload []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload)), payload...)
}

// evidenceKeyID is the SHA-256, in hex, of a public key in the form of X.509 (SubjectPublicKeyInfo, DER).
func evidenceKeyID(key ed25519.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "" // of a key of another length only
	}
	return evidenceDigest(der)
}

// publicPEM is a public key as openssl and cosign read it.
func publicPEM(key ed25519.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return ""
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// evidenceDigest is how a statement names the one before.
func evidenceDigest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// signEvidence makes the envelope of a statement.
func signEvidence(statement evidenceStatement, key ed25519.PrivateKey) ([]byte, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok || len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("the key for evidence is no Ed25519 key")
	}
	payload, err := json.Marshal(statement)
	if err != nil {
		return nil, fmt.Errorf("encoding evidence: %w", err)
	}
	envelope, err := json.Marshal(evidenceEnvelope{PayloadType: evidencePayloadType, Payload: base64.StdEncoding.EncodeToString(payload),
		Signatures: []evidenceSignature{{KeyID: evidenceKeyID(public),
			Sig: base64.StdEncoding.EncodeToString(ed25519.Sign(key, evidencePAE(evidencePayloadType, payload)))}}})
	if err != nil {
		return nil, fmt.Errorf("encoding evidence: %w", err)
	}
	if len(envelope) > maxEvidence {
		return nil, fmt.Errorf("the evidence has %d bytes, more than the %d that are read", len(envelope), maxEvidence)
	}
	return envelope, nil
}

// envelopeError is something that is wrong with an envelope. kind is that of the finding.
type envelopeError struct {
	kind, text string
	// keyID is the hint to the key that is missing, for findingSignature.
	keyID string
}

func (e *envelopeError) Error() string { return e.text }

// sealed is an envelope of which nothing was verified yet.
type sealed struct {
	payload, signature []byte
	keyID              string
}

// parseEnvelope reads an envelope without believing anything in it. Its errors are *envelopeErrors.
func parseEnvelope(content []byte) (*sealed, error) {
	var envelope evidenceEnvelope
	wrong := func(kind, format string, args ...any) (*sealed, error) {
		return nil, &envelopeError{kind: kind, text: fmt.Sprintf(format, args...)}
	}
	if len(content) > maxEvidence {
		return wrong(findingUnreadable, "it is larger than the %d bytes that are read", maxEvidence)
	}
	strict, err := kjson.UnmarshalStrict(content, &envelope, kjson.DisallowDuplicateFields)
	switch {
	case err != nil:
		return wrong(findingUnreadable, "it is not a DSSE envelope in JSON: %v", err)
	case len(strict) > 0:
		return wrong(findingUnreadable, "it is ambiguous: %v", errors.Join(strict...))
	case envelope.PayloadType != evidencePayloadType:
		return wrong(findingUnreadable, "its payload type is %q, not %q", cut(envelope.PayloadType, 100), evidencePayloadType)
	case len(envelope.Signatures) == 0:
		return wrong(findingSignature, "it has no signature")
	case len(envelope.Signatures) > 1:
		return wrong(findingSignature, "it has %d signatures, where there is one", len(envelope.Signatures))
	}
	s := &sealed{keyID: cut(envelope.Signatures[0].KeyID, 100)}
	if s.payload, err = decodeBase64(envelope.Payload); err != nil {
		return wrong(findingUnreadable, "its payload is not in base64: %v", err)
	}
	if s.signature, err = decodeBase64(envelope.Signatures[0].Sig); err != nil {
		return wrong(findingSignature, "its signature is not in base64: %v", err)
	}
	return s, nil
}

// decodeBase64 decodes both forms of base64 that DSSE allows.
func decodeBase64(text string) ([]byte, error) {
	data, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		var other error
		if data, other = base64.URLEncoding.Strict().DecodeString(text); other != nil {
			return nil, err
		}
	}
	return data, nil
}

// signedBy is the key that has signed it, nil if none of these has.
func (s *sealed) signedBy(keys []ed25519.PublicKey) ed25519.PublicKey {
	signed := evidencePAE(evidencePayloadType, s.payload)
	for _, key := range keys {
		if len(key) == ed25519.PublicKeySize && ed25519.Verify(key, signed, s.signature) {
			return key
		}
	}
	return nil
}

// statement decodes the payload. Its signature was verified before.
func (s *sealed) statement() (*evidenceStatement, error) {
	var of evidenceStatement
	wrong := func(format string, args ...any) (*evidenceStatement, error) {
		return nil, &envelopeError{kind: findingUnreadable, text: fmt.Sprintf(format, args...)}
	}
	if err := json.Unmarshal(s.payload, &of); err != nil {
		return wrong("its payload is no statement: %v", err)
	}
	want := of.Predicate.statement().Subject[0]
	switch {
	case of.Type != evidenceStatementType:
		return wrong("its payload is a %q, not an in-toto Statement v1", cut(of.Type, 100))
	case of.PredicateType != evidencePredicateType:
		return wrong("its predicate is a %q, not evidence of bucketwarden", cut(of.PredicateType, 100))
	case len(of.Subject) != 1 || of.Subject[0].Name != want.Name || of.Subject[0].Digest["sha256"] != want.Digest["sha256"]:
		return wrong("its subject is not the bucket that it tells of")
	case of.Predicate.Sequence < 1 || of.Predicate.Time.IsZero():
		return wrong("it has no sequence or no time")
	}
	return &of, nil
}

// openEnvelope verifies an envelope and returns what it says and who has signed it. Its errors are *envelopeErrors.
func openEnvelope(content []byte, keys []ed25519.PublicKey) (*evidenceStatement, ed25519.PublicKey, error) {
	s, err := parseEnvelope(content)
	if err != nil {
		return nil, nil, err
	}
	key := s.signedBy(keys)
	if key == nil {
		return nil, nil, s.unsigned()
	}
	statement, err := s.statement()
	return statement, key, err
}

// unsigned is the error about a signature of none of the keys.
func (s *sealed) unsigned() error {
	return &envelopeError{kind: findingSignature, keyID: s.keyID, text: fmt.Sprintf("its signature is by none of the keys that were "+
		"given (it names the key %q), or it was changed since", s.keyID)}
}
