// Packages of the distribution (Debian and the like), unpacked into the cache directory instead
// of installed: that needs no root, runs no script of a package and changes nothing on the
// machine.
//
// Rules: only apt-get and dpkg-deb, with the mirrors that the machine is set up for; no call may
// wait long for a mirror that does not answer; what cannot be had is an error that says what to
// install by hand.

package env

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ErrUnavailable is in the error of something that this machine cannot have: it is not Debian or
// the like, or no mirror of it can be reached.
var ErrUnavailable = errors.New("not to be had on this machine")

// packagesTimeout is for all downloads together. They are 50 MB at most.
const packagesTimeout = 10 * time.Minute

// aptOptions keep apt-get from waiting for minutes where there is no network.
var aptOptions = []string{"-qq", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30"}

// unpack makes root of packages; with the missing packages that they depend on, if needed.
// Packages whose names begin with one of the prefixes are left out.
func (b *builder) unpack(ctx context.Context, root string, dependencies bool, without []string, packages ...string) error {
	for _, name := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	dir, err := os.MkdirTemp(b.cache, "packages-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithTimeoutCause(ctx, packagesTimeout, fmt.Errorf("not within %v", packagesTimeout))
	defer cancel()
	err = downloadPackages(ctx, dir, dependencies, without, packages)
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	unpacked := filepath.Join(dir, "unpacked")
	for _, file := range files {
		if err := command(ctx, dir, "dpkg-deb", "-x", file, unpacked); err != nil {
			return err
		}
	}
	return os.Rename(unpacked, root)
}

// downloadPackages downloads packages, which needs no root; but the lists of packages may be
// missing or out of date.
func downloadPackages(ctx context.Context, dir string, dependencies bool, without, packages []string) error {
	download := func() error {
		names := slices.Clone(packages)
		if dependencies {
			missing, err := missingPackages(ctx, dir, packages)
			if err != nil {
				return err
			}
			for _, name := range missing {
				if !slices.ContainsFunc(without, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
					names = append(names, name)
				}
			}
			slices.Sort(names)
			names = slices.Compact(names)
		}
		_, err := apt(ctx, dir, append([]string{"download"}, names...)...)
		return err
	}
	err := download()
	if err == nil {
		return nil
	}
	if _, updateErr := apt(ctx, dir, "update"); updateErr != nil {
		return fmt.Errorf("please install %s, or run apt-get update as root: %w", strings.Join(packages, ", "), errors.Join(err, updateErr))
	}
	return download()
}

// missingPackages returns what would have to be installed for the packages.
func missingPackages(ctx context.Context, dir string, packages []string) (names []string, err error) {
	output, err := apt(ctx, dir, append([]string{"--simulate", "--no-install-recommends", "install"}, packages...)...)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(output) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Inst" {
			names = append(names, fields[1])
		}
	}
	return names, nil
}

// apt runs apt-get and returns what it prints. Of what it complains about, the error has the
// beginning: it says the same of every package.
func apt(ctx context.Context, dir string, args ...string) (string, error) {
	words := slices.Concat([]string{"apt-get"}, aptOptions, args)
	if args[0] == "update" && os.Geteuid() != 0 {
		words = append([]string{"sudo", "-n"}, words...)
	}
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	output, err := cmd.Output()
	if err == nil {
		return string(output), nil
	}
	const limit = 300
	complaint := bytes.TrimSpace(complaints.Bytes())
	if i := bytes.Index(complaint, []byte("E: ")); i > 0 {
		complaint = complaint[i:]
	}
	return "", fmt.Errorf("apt-get %s: %w: %s", args[0], errors.Join(err, context.Cause(ctx)), complaint[:min(limit, len(complaint))])
}

// command runs a command and returns its output with the error.
func command(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, bytes.TrimSpace(output))
	}
	return nil
}
