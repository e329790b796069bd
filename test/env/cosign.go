// cosign, which some tests of evidence run if it is there: in PATH, or in the cache, where make cosign builds it. No test builds
// it: that takes 2 GB of sources.

package env

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Cosign returns where cosign is. The error has ErrUnavailable if it is nowhere.
func Cosign() (string, error) {
	if path, err := exec.LookPath("cosign"); err == nil {
		return path, nil
	}
	cache, err := cacheDirectory()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "cosign")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: cosign is neither in PATH nor in %s, where make cosign builds it", ErrUnavailable, cache)
	}
	return path, nil
}
