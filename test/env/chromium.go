// Chromium, to look at a page as a browser draws it: from PATH, or the distribution's packages
// (Debian and the like).
//
// Rules: no window, no network, a profile of its own that is removed; without it, what needs it is
// skipped (ErrUnavailable).

package env

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const chromiumTimeout = 2 * time.Minute

// Chromium says where the browser is.
type Chromium struct {
	binary string
	// root has the unpacked packages. It is empty if Chromium is installed.
	root string
}

// EnsureChromium finds chromium in PATH, or unpacks the distribution's packages into the cache
// directory, see EnsureBinaries. The error has ErrUnavailable where this machine cannot have it.
func EnsureChromium(ctx context.Context, progress io.Writer) (Chromium, error) {
	if path, err := exec.LookPath("chromium"); err == nil {
		return Chromium{binary: path}, nil
	}
	b, err := newBuilder(ctx, progress)
	if err != nil {
		return Chromium{}, err
	}
	defer b.unlock()
	root := filepath.Join(b.cache, "chromium-packages")
	bin := Chromium{root: root, binary: filepath.Join(root, "usr", "lib", "chromium", "chromium")}
	if exists(root) {
		return bin, nil
	}
	return bin, b.report(ctx, "unpacking the distribution's packages of Chromium (about 100 MB)", func() error {
		return b.unpack(ctx, root, true, nil, "chromium", "fonts-dejavu-core")
	})
}

// Where returns where the browser is.
func (c Chromium) Where() string { return c.binary }

// Picture draws the page in a file as a PNG of this size.
func (c Chromium) Picture(ctx context.Context, page, png string, width, height int) error {
	_, err := c.run(ctx, page, "--screenshot="+png, fmt.Sprintf("--window-size=%d,%d", width, height))
	if err == nil {
		_, err = os.Stat(png)
	}
	return err
}

// Text returns the page in a file as the browser has read it, as HTML.
func (c Chromium) Text(ctx context.Context, page string) (string, error) {
	return c.run(ctx, page, "--dump-dom")
}

func (c Chromium) run(ctx context.Context, page string, args ...string) (string, error) {
	page, err := filepath.Abs(page)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "bucketwarden-chromium-")
	if err != nil {
		return "", fmt.Errorf("making the directory of Chromium: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithTimeoutCause(ctx, chromiumTimeout, fmt.Errorf("not within %v", chromiumTimeout))
	defer cancel()
	// Without its sandbox it runs as root, and in containers; the page is our own.
	args = append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
		"--hide-scrollbars", "--user-data-dir=" + filepath.Join(dir, "profile")}, args...)
	cmd := exec.CommandContext(ctx, c.binary, append(args, (&url.URL{Scheme: "file", Path: page}).String())...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}
	if c.root != "" {
		config := filepath.Join(dir, "fonts.conf")
		if err := os.WriteFile(config, []byte("<fontconfig><dir>/usr/share/fonts</dir><dir>"+filepath.Join(c.root, "usr", "share", "fonts")+
			"</dir><cachedir>"+filepath.Join(dir, "fonts")+"</cachedir></fontconfig>"), 0o600); err != nil {
			return "", err
		}
		var libraries []string
		for _, pattern := range []string{"usr/lib/chromium", "usr/lib/*-linux-gnu*", "lib/*-linux-gnu*", "usr/lib/*-linux-gnu*/pulseaudio"} {
			found, _ := filepath.Glob(filepath.Join(c.root, pattern)) // the pattern is well-formed
			libraries = append(libraries, found...)
		}
		cmd.Env = append(cmd.Env, "FONTCONFIG_FILE="+config, "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("running Chromium: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
