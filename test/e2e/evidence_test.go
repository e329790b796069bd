package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bucketwarden/test/env"
)

const evidencePlace = ".bucketwarden/evidence/"

// dsseKey is an Ed25519 key for the independent implementation of DSSE.
type dsseKey struct {
	private ed25519.PrivateKey
	public  ed25519.PublicKey
}

func (k dsseKey) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(k.private, data), nil
}

func (k dsseKey) KeyID() (string, error) {
	der, err := x509.MarshalPKIXPublicKey(k.public)
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), err
}

func (k dsseKey) Public() crypto.PublicKey { return k.public }

func (k dsseKey) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(k.public, data, sig) {
		return errors.New("the signature is wrong")
	}
	return nil
}

func newDSSEKey(t *testing.T) dsseKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	return dsseKey{private, public}
}

// files writes the key as openssl does, private and public.
func (k dsseKey) files(t *testing.T) (private, public string) {
	t.Helper()
	write := func(name, kind string, der []byte, err error) string {
		must(t, err)
		file := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	der, err := x509.MarshalPKIXPublicKey(k.public)
	public = write("evidence.pub", "PUBLIC KEY", der, err)
	if k.private != nil {
		der, err = x509.MarshalPKCS8PrivateKey(k.private)
		private = write("evidence.key", "PRIVATE KEY", der, err)
	}
	return private, public
}

// signedEvidence is what a test reads of a statement, without any code of ours.
type signedEvidence struct {
	Type      string `json:"_type"`
	Predicate struct {
		Sequence int64
		Previous string
		Reason   string
		Policy   struct {
			Days, Extensions int32
			Locked           bool
		}
		VerifiedSince *time.Time
		Events        []struct{ Kind string }
		History       []struct{ Update, ObjectIdentifier, TenantID string }
		Unknown       []string
	}
}

// readSigned verifies the files of a directory with go-securesystemslib, in their order.
func readSigned(t *testing.T, directory string, key dsseKey) (names []string, all []signedEvidence) {
	t.Helper()
	verifier, err := dsse.NewEnvelopeVerifier(key)
	must(t, err)
	files, err := os.ReadDir(directory)
	must(t, err)
	previous := ""
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(directory, file.Name()))
		must(t, err)
		var envelope dsse.Envelope
		must(t, json.Unmarshal(content, &envelope))
		if accepted, err := verifier.Verify(t.Context(), &envelope); err != nil || len(accepted) != 1 {
			t.Fatalf("%s: %v, %v", file.Name(), accepted, err)
		}
		payload, err := envelope.DecodeB64Payload()
		must(t, err)
		var statement signedEvidence
		must(t, json.Unmarshal(payload, &statement))
		if statement.Type != "https://in-toto.io/Statement/v1" || envelope.PayloadType != "application/vnd.in-toto+json" {
			t.Errorf("%s is a %s in a %s", file.Name(), statement.Type, envelope.PayloadType)
		}
		if statement.Predicate.Previous != previous {
			t.Errorf("%s follows from %q, the one before is %q", file.Name(), statement.Predicate.Previous, previous)
		}
		sum := sha256.Sum256(content)
		previous = hex.EncodeToString(sum[:])
		names, all = append(names, file.Name()), append(all, statement)
	}
	return names, all
}

func (e signedEvidence) has(kind string) bool {
	return slices.ContainsFunc(e.Predicate.Events, func(event struct{ Kind string }) bool { return event.Kind == kind })
}

// awaitEvidence waits until n statements can be collected from a bucket, and returns the directory.
func awaitEvidence(t *testing.T, environment, args []string, bucket string, n int) string {
	t.Helper()
	directory := t.TempDir()
	eventually(t, fmt.Sprintf("there are %d statements about bucket %s", n, bucket), func(context.Context) error {
		runCommand(t, environment, 0, append([]string{"evidence", "collect", "--directory", directory}, args...)...)
		files, err := os.ReadDir(filepath.Join(directory, bucket))
		if err == nil && len(files) < n {
			err = fmt.Errorf("there are %d", len(files))
		}
		return err
	})
	return filepath.Join(directory, bucket)
}

func TestEvidenceOnS3(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store *s3Store) {
		key := newDSSEKey(t)
		private, public := key.files(t)
		d := startDaemon(t, "--evidence", "--evidence-key="+private)
		bucket := newName("evidence")
		proxy := store.proxy(t)
		log := watchProbe(proxy)
		writeSecret(t, secretName(buckets, bucket), store.SecretData(proxy.URL))
		create(t, buckets, bucketObject(bucket, d.kind, providerConfig(d.kind, immutability("compliance", "96h"))))
		waitHealthy(t, buckets, bucket)
		// Not through the proxy.
		args := []string{"--bucket-secret", secretFile(t, store.secret()), "--bucket", bucket}
		awaitEvidence(t, nil, args, bucket, 1)
		mustEqual(t, "requests for the first statement", log.operations(evidencePlace), []string{"ListObjectVersions", "PutObject"})
		// What is weakened while a daemon that was killed is down, the next one finds; the chain goes on.
		d.Kill()
		store.putRetention(t, bucket, "COMPLIANCE", 1)
		d.start(t)
		awaitEvidence(t, nil, args, bucket, 2)
		mustEqual(t, "requests after a restart", log.operations(evidencePlace), []string{"ListObjectVersions", "GetObject", "PutObject"})
		store.putRetention(t, bucket, "COMPLIANCE", 9)
		directory := awaitEvidence(t, nil, args, bucket, 3)
		mustEqual(t, "requests for another statement", log.operations(evidencePlace), []string{"PutObject"})
		_, all := readSigned(t, directory, key)
		if !all[2].has("foreign") || all[2].Predicate.Policy.Days != 9 {
			t.Errorf("the third says %+v", all[2])
		}
		last := all[1].Predicate
		if !all[1].has("drift") || !all[1].has("repair") || last.Policy.Days != 4 || !last.Policy.Locked || last.VerifiedSince == nil {
			t.Errorf("after drift it says %+v", last)
		}
		runCommand(t, nil, 0, append([]string{"evidence", "verify", "--key", public}, args...)...)
		checkTampering(t, directory, key, public)
		// It is as locked as the backups are.
		versions, err := store.versions(t.Context(), bucket, evidencePlace)
		must(t, err)
		if len(versions) != 3 {
			t.Errorf("there are the versions %q", versions)
		}
		name := evidencePlace + firstFile(t, directory)
		list, err := store.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &bucket, Prefix: &name})
		must(t, err)
		if _, err := store.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &name, VersionId: list.Versions[0].VersionId}); err == nil {
			t.Error("evidence can be deleted")
		}
		noSecretIn(t, directory, store.secret())
	})
}

func firstFile(t *testing.T, directory string) string {
	t.Helper()
	files, err := os.ReadDir(directory)
	must(t, err)
	return files[0].Name()
}

// noSecretIn looks for the values of credentials in evidence.
func noSecretIn(t *testing.T, directory string, credentials map[string][]byte) {
	t.Helper()
	files, err := os.ReadDir(directory)
	must(t, err)
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(directory, file.Name()))
		must(t, err)
		var envelope dsse.Envelope
		must(t, json.Unmarshal(content, &envelope))
		payload, err := envelope.DecodeB64Payload()
		must(t, err)
		for name, value := range credentials {
			switch name {
			case "endpoint", "region", "bucketName", "storageAccount", "storageDomain", "domain", "s3ForcePathStyle", "insecureSkipVerify",
				"trustedCaCert":
			case "tenantID", "clientID", "subscriptionID": // no secrets: the history tells who has set the policy
			default:
				if len(value) > 3 && bytes.Contains(payload, value) {
					t.Errorf("%s has the %s of the credentials", file.Name(), name)
				}
			}
		}
	}
}

// checkTampering changes copies of evidence in each way, and has each found offline, with the public key alone.
func checkTampering(t *testing.T, directory string, key dsseKey, public string) {
	t.Helper()
	verify := func(code int, path string, finding string) {
		t.Helper()
		_, errOut := runCommand(t, []string{"KUBECONFIG=/nonexistent"}, code, "evidence", "verify", "-f", path, "--key", public)
		if !strings.Contains(errOut, finding) {
			t.Errorf("%s: there is no %q in %s", path, finding, errOut)
		}
	}
	verify(0, directory, "")
	// What another implementation has signed verifies too.
	first := filepath.Join(directory, firstFile(t, directory))
	content, err := os.ReadFile(first)
	must(t, err)
	var envelope dsse.Envelope
	must(t, json.Unmarshal(content, &envelope))
	payload, err := envelope.DecodeB64Payload()
	must(t, err)
	resign := func(by dsseKey, payloadType string, payload []byte) []byte {
		signer, err := dsse.NewEnvelopeSigner(by)
		must(t, err)
		signed, err := signer.SignPayload(t.Context(), payloadType, payload)
		must(t, err)
		text, err := json.Marshal(signed)
		must(t, err)
		return text
	}
	names, _ := readSigned(t, directory, key)
	other := newDSSEKey(t)
	two := func() []byte {
		e := envelope
		e.Signatures = append(slices.Clone(e.Signatures), e.Signatures[0])
		text, err := json.Marshal(e)
		must(t, err)
		return text
	}()
	if key.private != nil {
		file := filepath.Join(t.TempDir(), "theirs.json")
		must(t, os.WriteFile(file, resign(key, envelope.PayloadType, payload), 0o600))
		verify(0, file, "")
	}
	for name, test := range map[string]struct {
		change  func(of string)
		finding string
	}{
		"a byte": {func(of string) { rewrite(t, of, names[0], flip(content)) }, "("},
		"the payload": {func(of string) {
			rewrite(t, of, names[0], repacked(t, envelope, bytes.Replace(payload, []byte(`"locked":true`), []byte(`"locked":false`), 1)))
		}, "(signature)"},
		"another key":       {func(of string) { rewrite(t, of, names[0], resign(other, envelope.PayloadType, payload)) }, "(signature)"},
		"two signatures":    {func(of string) { rewrite(t, of, names[0], two) }, "(signature)"},
		"the payload type":  {func(of string) { rewrite(t, of, names[0], resign(other, "text/plain", payload)) }, "(unreadable)"},
		"cut off":           {func(of string) { rewrite(t, of, names[0], content[:len(content)-9]) }, "(unreadable)"},
		"white space":       {func(of string) { rewrite(t, of, names[0], append(slices.Clone(content), '\n')) }, "(name)"},
		"the first is gone": {func(of string) { must(t, os.Remove(filepath.Join(of, names[0]))) }, "(missing)"},
		"renamed": {func(of string) {
			must(t, os.Rename(filepath.Join(of, names[1]), filepath.Join(of, "0000000009"+names[1][10:])))
		}, "(name)"},
	} {
		of := t.TempDir()
		must(t, os.CopyFS(of, os.DirFS(directory)))
		test.change(of)
		_, errOut := runCommand(t, []string{"KUBECONFIG=/nonexistent"}, 2, "evidence", "verify", "-f", of, "--key", public)
		if !strings.Contains(errOut, test.finding) {
			t.Errorf("%s: there is no %q in %s", name, test.finding, errOut)
		}
	}
	checkOpenSSL(t, envelope, payload, public)
}

// checkOpenSSL verifies as docs/evidence.md says.
func checkOpenSSL(t *testing.T, envelope dsse.Envelope, payload []byte, public string) {
	t.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Log("there is no openssl")
		return
	}
	directory := t.TempDir()
	signature, err := base64.StdEncoding.DecodeString(envelope.Signatures[0].Sig)
	must(t, err)
	signed, sig := filepath.Join(directory, "signed"), filepath.Join(directory, "signature")
	must(t, os.WriteFile(signed, dsse.PAE(envelope.PayloadType, payload), 0o600))
	must(t, os.WriteFile(sig, signature, 0o600))
	out, err := exec.CommandContext(t.Context(), openssl, "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", signed, "-sigfile",
		sig).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Signature Verified Successfully") {
		t.Errorf("openssl: %v, %s", err, out)
	}
}

func rewrite(t *testing.T, directory, name string, content []byte) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(directory, name), content, 0o600))
}

func flip(content []byte) []byte {
	changed := slices.Clone(content)
	changed[len(changed)/2] ^= 1
	return changed
}

func repacked(t *testing.T, envelope dsse.Envelope, payload []byte) []byte {
	t.Helper()
	envelope.Payload = base64.StdEncoding.EncodeToString(payload)
	text, err := json.Marshal(envelope)
	must(t, err)
	return text
}

// On Azure the container's own history is in it, and the key is made by the daemon.
func TestEvidenceOnAzure(t *testing.T) {
	t.Parallel()
	namespace := newName("evidence")
	createNamespace(t, namespace, nil)
	d := startAzureDaemon(t, "--evidence", "--namespace="+namespace)
	bucket := azureName()
	d.createAzureBucket(t, bucket, days(4, true))
	shown := &corev1.ConfigMap{}
	eventually(t, "the public key is shown", func(ctx context.Context) (err error) {
		shown, err = kube.Client.CoreV1().ConfigMaps(namespace).Get(ctx, "bucketwarden-evidence", metav1.GetOptions{})
		return err
	})
	block, _ := pem.Decode([]byte(shown.Data["evidence.pub"]))
	if block == nil {
		t.Fatalf("the ConfigMap has %q", shown.Data)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	must(t, err)
	key := dsseKey{public: parsed.(ed25519.PublicKey)}
	_, public := key.files(t)
	secret := getSecret(t, gardenNamespace, generatedName(bucket)).Data
	args := []string{"--bucket-secret", secretFile(t, secret), "--bucket", bucket, "--azure-cloud-config", azure.CloudConfig, "--cloud", azure.CloudName}
	awaitEvidence(t, d.env, args, bucket, 1)
	d.Kill()
	must(t, azure.SetPolicy(bucket, 9, true))
	d.start(t)
	directory := awaitEvidence(t, d.env, args, bucket, 2)
	_, all := readSigned(t, directory, key)
	last := all[1].Predicate
	if len(all[0].Predicate.History) < 2 || all[0].Predicate.History[1].Update != "lock" || all[0].Predicate.History[1].ObjectIdentifier == "" ||
		last.Policy.Days != 9 || !all[1].has("foreign") {
		t.Errorf("the first says %+v, the last %+v", all[0].Predicate, last)
	}
	runCommand(t, d.env, 0, append([]string{"evidence", "verify", "--key", public}, args...)...)
	checkTampering(t, directory, key, public)
	noSecretIn(t, directory, secret)
	noSecretIn(t, directory, azure.SecretData())
	if _, err := kube.Client.CoreV1().Secrets(namespace).Get(t.Context(), "bucketwarden-evidence", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if log := d.allLogs(); strings.Contains(log, "PRIVATE KEY") {
		t.Error("the log shows a key")
	}
}

// Evidence that is not retained does not keep a bucket from being deleted, whether we made it or not; nobody's else is deleted.
func TestEvidenceGoesWithTheBucket(t *testing.T) {
	t.Parallel()
	private, _ := newDSSEKey(t).files(t)
	d := startDaemon(t, "--evidence", "--evidence-key="+private)
	store := newS3Store("MinIO", &minio.S3Server)
	for _, adopted := range []bool{false, true} {
		bucket := newName("evidence")
		if adopted {
			store.makeBucket(t, bucket, false)
		}
		store.createBucket(t, bucketObject(bucket, d.kind, providerConfig(d.kind, nil)))
		waitHealthy(t, buckets, bucket)
		args := []string{"--bucket-secret", secretFile(t, store.secret()), "--bucket", bucket}
		awaitEvidence(t, nil, args, bucket, 1)
		remove(t, buckets, bucket)
		waitGone(t, buckets, bucket)
		if bucketExists(t, store.Client, bucket) {
			t.Errorf("adopted: %t: the bucket is still there", adopted)
		}
		eventually(t, "its evidence is not shown any more", func(ctx context.Context) error {
			_, err := d.Value(ctx, "bucketwarden_backupbucket_evidence_timestamp_seconds", "bucket="+bucket)
			if errors.Is(err, env.ErrNoSeries) {
				return nil
			}
			return cmp.Or(err, errors.New("it is"))
		})
	}
}

// Nobody reads back what was written: the stores refuse what has another checksum than the request says.
func TestStoresCheckWhatIsWritten(t *testing.T) {
	t.Parallel()
	wrong := md5.Sum([]byte("something else"))
	sum := base64.StdEncoding.EncodeToString(wrong[:])
	onEachStore(t, func(t *testing.T, store *s3Store) {
		bucket := newName("checksum")
		store.makeBucket(t, bucket, true)
		_, err := store.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &bucket, Body: strings.NewReader("content"), ContentMD5: &sum})
		if s3Code(err) != "BadDigest" {
			t.Errorf("a wrong checksum: %v", err)
		}
	})
	t.Run("azurite", func(t *testing.T) {
		d := startAzureDaemon(t)
		bucket := azureName()
		d.createAzureBucket(t, bucket, nil)
		if err := azure.PutChecked(t.Context(), bucket, "a", []byte("content"), sum); err == nil {
			t.Error("a wrong checksum is accepted")
		}
		right := md5.Sum([]byte("content"))
		must(t, azure.PutChecked(t.Context(), bucket, "b", []byte("content"), base64.StdEncoding.EncodeToString(right[:])))
		checkBlobs(t, azure, bucket, "", "b")
	})
}
