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
var aptOptions = []string{"-q", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30"}

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
			missing, err := missingPackages(ctx, packages)
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
		return command(ctx, dir, slices.Concat([]string{"apt-get"}, aptOptions, []string{"download"}, names)...)
	}
	err := download()
	if err == nil {
		return nil
	}
	update := slices.Concat([]string{"apt-get"}, aptOptions, []string{"update"})
	if os.Geteuid() != 0 {
		update = append([]string{"sudo", "-n"}, update...)
	}
	if updateErr := command(ctx, dir, update...); updateErr != nil {
		return fmt.Errorf("please install %s, or run apt-get update as root: %w", strings.Join(packages, ", "), errors.Join(err, updateErr))
	}
	return download()
}

// missingPackages returns what would have to be installed for the packages.
func missingPackages(ctx context.Context, packages []string) (names []string, err error) {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"--simulate", "--no-install-recommends", "install"}, packages...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var problems bytes.Buffer
	cmd.Stderr = &problems
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd, err, bytes.TrimSpace(problems.Bytes()))
	}
	for line := range strings.Lines(string(output)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Inst" {
			names = append(names, fields[1])
		}
	}
	return names, nil
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
