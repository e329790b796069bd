// What a restart must not lose: when each bucket was looked at last, so that "verified without a gap" goes on over a rollout. It is
// kept in the ConfigMap with the public keys, signed with the key of evidence, since who can write a ConfigMap must not be able to
// close a gap.
//
// Rules:
//   - One request every five minutes for all buckets, and one at the end. None if nothing was looked at.
//   - An old one that is put back only makes a gap.

package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

const (
	looksInterval = 5 * time.Minute
	// looksKey and looksSignature are in the ConfigMap.
	looksKey       = "looks"
	looksSignature = "looks.sig"
	// looksContext is ahead of what is signed, so that it can be taken for nothing else.
	looksContext = "bucketwarden looks v1\n"
)

// looks are the times, by our clock, at which stores have answered last about buckets that are verified.
type looks map[string]time.Time

// sign encodes them for the ConfigMap.
func (l looks) sign(key ed25519.PrivateKey) (map[string]string, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encoding the times of the last looks: %w", err)
	}
	signature := ed25519.Sign(key, append([]byte(looksContext), text...))
	return map[string]string{looksKey: string(text), looksSignature: base64.StdEncoding.EncodeToString(signature)}, nil
}

// readLooks decodes them; nothing if they are not signed with a key of ours.
func readLooks(data map[string]string, keys evidenceKeys) looks {
	signature, err := base64.StdEncoding.DecodeString(data[looksSignature])
	if err != nil {
		return nil
	}
	for _, key := range keys.public() {
		var l looks
		if ed25519.Verify(key, []byte(looksContext+data[looksKey]), signature) && json.Unmarshal([]byte(data[looksKey]), &l) == nil {
			return l
		}
	}
	return nil
}

// verified are the buckets that are verified, with the times of the last looks at them.
func (l *evidenceLog) verified() looks {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := looks{}
	for bucket, n := range l.buckets {
		if !n.since.IsZero() {
			all[bucket] = n.observed.UTC().Truncate(time.Second)
		}
	}
	return all
}

// keepLooks writes the looks from time to time, and once more when ctx ends.
func (w *evidenceWriter) keepLooks(ctx, passes context.Context) {
	if w.namespace == "" {
		return
	}
	ticker := time.NewTicker(looksInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			if passes.Err() == nil {
				w.writeLooks(passes)
			}
			return
		case <-ticker.C:
			w.writeLooks(ctx)
		}
	}
}

func (w *evidenceWriter) writeLooks(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	all := w.evidence.verified()
	if len(all) == 0 {
		return
	}
	data, err := all.sign(w.signers().signer())
	if err == nil {
		var patch []byte
		if patch, err = json.Marshal(map[string]any{"data": data}); err == nil {
			_, err = w.core.CoreV1().ConfigMaps(w.namespace).Patch(ctx, evidenceObject, types.MergePatchType, patch,
				metav1.PatchOptions{FieldManager: fieldManager})
		}
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not keep when buckets were looked at, so that a restart makes a gap in their evidence")
	}
}
