// The keys of evidence: one private key that signs, and those before it, which have signed what there is. They come from a file
// (--evidence-key) or from the Secret bucketwarden-evidence, which the daemon makes. Public keys are for everybody, in a ConfigMap of
// the same name.
//
// Rules:
//   - The first private key signs. To replace it, put a new one in front: each bucket gets a statement, signed with the old key, that
//     names the new one.
//   - A key is never replaced, shown or logged; only its id is.

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

const (
	// evidenceObject is the name of the Secret with the private keys and of the ConfigMap with the public ones.
	evidenceObject = programName + "-evidence"
	// evidencePrivateKeys and evidencePublicKeys are what they hold, in PEM.
	evidencePrivateKeys = "evidence.key"
	evidencePublicKeys  = "evidence.pub"
	// maxEvidenceKeys bounds what is read.
	maxEvidenceKeys = 32
	maxKeyFile      = 64 << 10
)

// evidenceKeys are the private keys, the one that signs first.
type evidenceKeys []ed25519.PrivateKey

// signer is the key that signs.
func (k evidenceKeys) signer() ed25519.PrivateKey { return k[0] }

// public are the public keys, in the same order.
func (k evidenceKeys) public() (keys []ed25519.PublicKey) {
	for _, private := range k {
		keys = append(keys, publicOf(private))
	}
	return keys
}

// of is the private key of a public one, nil if it is none of ours.
func (k evidenceKeys) of(public ed25519.PublicKey) ed25519.PrivateKey {
	for _, private := range k {
		if publicOf(private).Equal(public) {
			return private
		}
	}
	return nil
}

func publicOf(private ed25519.PrivateKey) ed25519.PublicKey {
	public, _ := private.Public().(ed25519.PublicKey)
	return public
}

// publicPEM are the public keys as others read them.
func (k evidenceKeys) publicPEM() string {
	var text strings.Builder
	for _, key := range k.public() {
		text.WriteString(publicPEM(key))
	}
	return text.String()
}

// parsePrivateKeys reads private keys in PEM (PKCS #8), as openssl genpkey -algorithm ed25519 writes them. An error does not show
// what was read.
func parsePrivateKeys(text []byte) (evidenceKeys, error) {
	var keys evidenceKeys
	err := eachPEM(text, "PRIVATE KEY", func(der []byte) error {
		key, err := x509.ParsePKCS8PrivateKey(der)
		private, ok := key.(ed25519.PrivateKey)
		if err != nil || !ok {
			return errors.New("a key is no Ed25519 key in PKCS #8")
		}
		keys = append(keys, private)
		return nil
	})
	return keys, err
}

// parsePublicKeys reads public keys in PEM.
func parsePublicKeys(text []byte) (keys []ed25519.PublicKey, err error) {
	err = eachPEM(text, "PUBLIC KEY", func(der []byte) error {
		key, err := x509.ParsePKIXPublicKey(der)
		public, ok := key.(ed25519.PublicKey)
		if err != nil || !ok {
			return errors.New("a key is no Ed25519 key")
		}
		keys = append(keys, public)
		return nil
	})
	return keys, err
}

// eachPEM calls f for the blocks of a type, of which there must be one, and no others.
func eachPEM(text []byte, kind string, f func(der []byte) error) error {
	for n := 0; ; n++ {
		block, rest := pem.Decode(text)
		switch {
		case block == nil && n > 0 && strings.TrimSpace(string(text)) == "":
			return nil
		case block == nil:
			return fmt.Errorf("there is something that is no %s in PEM", kind)
		case block.Type != kind:
			return fmt.Errorf("there is a %q, not a %s in PEM", cut(block.Type, 50), kind)
		case n == maxEvidenceKeys:
			return fmt.Errorf("there are more than %d keys", maxEvidenceKeys)
		}
		if err := f(block.Bytes); err != nil {
			return err
		}
		text = rest
	}
}

// newEvidenceKey makes a key, in PEM.
func newEvidenceKey() ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key for evidence: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("making a key for evidence: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// readEvidenceKeyFile reads the private keys in a file.
func readEvidenceKeyFile(file string) (evidenceKeys, error) {
	text, err := readSmallFile(file, maxKeyFile)
	if err != nil {
		return nil, err
	}
	keys, err := parsePrivateKeys(text)
	return keys, wrapf(err, "reading %s", file)
}

// readSmallFile reads a file that is not larger than a limit.
func readSmallFile(file string, limit int64) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", file, limit)
	}
	return os.ReadFile(file)
}

// loadEvidenceKeys reads the keys, from a file if one is given, else from the Secret, which is made if it is not there; shows the
// public ones in the ConfigMap, and reads the looks of an earlier process from there. It takes two requests, at most four.
func loadEvidenceKeys(ctx context.Context, core kubernetes.Interface, namespace, file string) (keys evidenceKeys, earlier looks,
	err error) {
	if file != "" {
		keys, err = readEvidenceKeyFile(file)
	} else {
		keys, err = secretEvidenceKeys(ctx, core, namespace)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading the key that signs evidence: %w", err)
	}
	klog.FromContext(ctx).Info("Evidence is signed", "keyid", evidenceKeyID(publicOf(keys.signer())))
	if namespace != "" {
		earlier, err = showPublicKeys(ctx, core, namespace, keys)
	}
	return keys, earlier, err
}

// secretEvidenceKeys reads the keys from the Secret. One that is there is never changed: with another key nobody could tell whether
// what was signed before is ours.
func secretEvidenceKeys(ctx context.Context, core kubernetes.Interface, namespace string) (evidenceKeys, error) {
	secrets := core.CoreV1().Secrets(namespace)
	secret, err := secrets.Get(ctx, evidenceObject, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		var key []byte
		if key, err = newEvidenceKey(); err != nil {
			return nil, err
		}
		secret, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: evidenceObject, Namespace: namespace},
			Type: corev1.SecretTypeOpaque, Data: map[string][]byte{evidencePrivateKeys: key}}, metav1.CreateOptions{FieldManager: fieldManager})
		if apierrors.IsAlreadyExists(err) {
			secret, err = secrets.Get(ctx, evidenceObject, metav1.GetOptions{})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", namespace, evidenceObject, err)
	}
	keys, err := parsePrivateKeys(secret.Data[evidencePrivateKeys])
	return keys, wrapf(err, "secret %s/%s, %s", namespace, evidenceObject, evidencePrivateKeys)
}

// showPublicKeys writes the public keys into the ConfigMap. Others that are there go: they are not ours.
func showPublicKeys(ctx context.Context, core kubernetes.Interface, namespace string, keys evidenceKeys) (looks, error) {
	maps := core.CoreV1().ConfigMaps(namespace)
	wanted := map[string]string{evidencePublicKeys: keys.publicPEM()}
	shown, err := maps.Get(ctx, evidenceObject, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: evidenceObject, Namespace: namespace}, Data: wanted},
			metav1.CreateOptions{FieldManager: fieldManager})
		return nil, wrapf(err, "creating configmap %s/%s", namespace, evidenceObject)
	}
	if err != nil {
		return nil, fmt.Errorf("reading configmap %s/%s: %w", namespace, evidenceObject, err)
	}
	earlier := readLooks(shown.Data, keys)
	if shown.Data[evidencePublicKeys] == wanted[evidencePublicKeys] {
		return earlier, nil
	}
	patch, err := json.Marshal(map[string]any{"data": wanted})
	if err != nil {
		return nil, fmt.Errorf("encoding the public keys of evidence: %w", err)
	}
	_, err = maps.Patch(ctx, evidenceObject, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	return earlier, wrapf(err, "writing configmap %s/%s", namespace, evidenceObject)
}
