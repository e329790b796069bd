// Ceph with its object gateway (RGW), a second real S3 server: one monitor, one OSD that keeps
// its objects in memory, and one gateway, from the distribution's packages. It is started from
// nothing in about ten seconds, without root, systemd, Python or a manager daemon: the first maps
// of the cluster are written to the monitor before it starts.
//
// Rules: one for all tests of a binary, and only if a test needs it; no authentication inside the
// cluster, which listens on 127.0.0.1; what there is on disk, Stop removes; nothing is written
// outside of that directory.

package env

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const cephStartTimeout = 10 * time.Minute

// CephBinaries says where the programs of Ceph are.
type CephBinaries struct {
	// root has the unpacked packages. It is empty if Ceph is installed.
	root string
}

var cephPrograms = []string{"monmaptool", "osdmaptool", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin"}

// EnsureCeph finds Ceph in PATH, or unpacks the distribution's packages (Debian and the like)
// into the cache directory, see EnsureBinaries. The error has ErrUnavailable where this machine
// cannot have it.
func EnsureCeph(ctx context.Context, progress io.Writer) (CephBinaries, error) {
	installed := true
	for _, name := range cephPrograms {
		_, err := exec.LookPath(name)
		installed = installed && err == nil
	}
	if installed {
		return CephBinaries{}, nil
	}
	b, err := newBuilder(ctx, progress)
	if err != nil {
		return CephBinaries{}, err
	}
	defer b.unlock()
	bin := CephBinaries{root: filepath.Join(b.cache, "ceph-packages")}
	if exists(bin.root) {
		return bin, nil
	}
	what := "unpacking the distribution's packages of Ceph (ceph-mon, ceph-osd and radosgw, about 50 MB)"
	return bin, b.report(ctx, what, func() error {
		// Nothing that is run here is written in Python.
		return b.unpack(ctx, bin.root, true, []string{"python3-"}, "ceph-base", "ceph-mon", "ceph-osd", "radosgw")
	})
}

// Where returns the directory of the programs.
func (c CephBinaries) Where() string {
	if c.root == "" {
		return "installed"
	}
	return c.root
}

func (c CephBinaries) path(program string) string {
	if c.root == "" {
		return program
	}
	return filepath.Join(c.root, "usr", "bin", program)
}

// libraries returns the directories of shared libraries in the unpacked packages that hold sub.
func (c CephBinaries) libraries(sub string) (found []string) {
	for _, lib := range []string{"usr/lib", "lib"} {
		dirs, _ := filepath.Glob(filepath.Join(c.root, lib, "*-linux-gnu*", sub)) // the pattern is well-formed
		found = append(found, dirs...)
	}
	return found
}

// Ceph is a running Ceph.
type Ceph struct {
	S3Server
	// TLS is the same server over HTTPS, with a certificate of a CA of its own. This version cannot
	// read checksums in trailers.
	TLS S3Server

	bin       CephBinaries
	dir       string
	processes []*Process
}

// StartCeph starts an empty Ceph with one user. Its endpoint serves plain HTTP.
func StartCeph(ctx context.Context, bin CephBinaries) (_ *Ceph, err error) {
	// Nobody else takes so many ports at once.
	const attempts = 5
	for range attempts {
		var c *Ceph
		if c, err = startCeph(ctx, bin); err == nil || !errors.Is(err, errEnded) {
			return c, err
		}
	}
	return nil, err
}

func startCeph(ctx context.Context, bin CephBinaries) (_ *Ceph, err error) {
	dir, err := os.MkdirTemp("", "bucketwarden-ceph-")
	if err != nil {
		return nil, fmt.Errorf("making the directory of Ceph: %w", err)
	}
	c := &Ceph{S3Server: newS3Server(""), bin: bin, dir: dir}
	defer func() {
		if err != nil {
			c.Stop()
		}
	}()
	for _, name := range []string{"mon", "osd", "rgw", "certs"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return nil, fmt.Errorf("making a directory of Ceph: %w", err)
		}
	}
	var addresses [3]string // of the monitor, of the gateway, of the gateway with TLS
	for i := range addresses {
		if addresses[i], err = freeAddress(ctx); err != nil {
			return nil, err
		}
	}
	c.TLS = c.S3Server
	c.TLS.NoTrailers = true
	c.Endpoint, c.TLS.Endpoint = "http://"+addresses[1], "https://"+addresses[2]
	if c.TLS.CAPEM, err = writeCertificate(filepath.Join(dir, "certs")); err != nil {
		return nil, err
	}
	fsid := uuid()
	if err := os.WriteFile(c.config(), []byte(c.configuration(fsid, addresses)), 0o600); err != nil {
		return nil, fmt.Errorf("configuring Ceph: %w", err)
	}
	// The first maps: one monitor, and one OSD in one host.
	monmap, osdmap := filepath.Join(dir, "monmap"), filepath.Join(dir, "osdmap")
	for _, args := range [][]string{
		{"monmaptool", "--create", "--add", "a", "v1:" + addresses[0], "--fsid", fsid, monmap},
		{"osdmaptool", "--createsimple", "1", "--clobber", "--pg-bits", "0", osdmap},
		{"ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--osdmap", osdmap},
	} {
		if err := c.run(ctx, args...); err != nil {
			return nil, err
		}
	}
	if err := c.start("ceph-mon", "-i", "a", "-f"); err != nil {
		return nil, err
	}
	if err := c.run(ctx, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", uuid()); err != nil {
		return nil, err
	}
	if err := c.start("ceph-osd", "-i", "0", "-f"); err != nil {
		return nil, err
	}
	// This waits for the two, and makes the pools.
	if err := c.run(ctx, "radosgw-admin", "user", "create", "--uid=bucketwarden", "--display-name=bucketwarden",
		"--max-buckets=100000", "--access-key="+c.AccessKeyID, "--secret-key="+c.SecretAccessKey); err != nil {
		return nil, err
	}
	if err := c.start("radosgw", "-n", "client.rgw", "-f"); err != nil {
		return nil, err
	}
	for _, server := range []*S3Server{&c.S3Server, &c.TLS} {
		client := server.S3(server.Endpoint)
		err := c.processes[len(c.processes)-1].waitStarted(ctx, cephStartTimeout, func(ctx context.Context) error {
			_, err := client.ListBuckets(ctx, &s3.ListBucketsInput{}, func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// configuration returns ceph.conf.
func (c *Ceph) configuration(fsid string, addresses [3]string) string {
	var text strings.Builder
	set := func(name, value string) { fmt.Fprintf(&text, "%s = %s\n", name, value) }
	text.WriteString("[global]\n")
	set("fsid", fsid)
	set("public addr", "127.0.0.1")
	set("cluster addr", "127.0.0.1")
	set("mon host", "v1:"+addresses[0])
	set("ms bind msgr2", "false")
	for _, who := range []string{"cluster", "service", "client"} {
		set("auth "+who+" required", "none")
	}
	// Nothing outside of the directory.
	set("run dir", c.dir)
	set("admin socket", "")
	set("crash dir", c.dir)
	set("keyring", filepath.Join(c.dir, "keyring"))
	set("mon data", filepath.Join(c.dir, "mon"))
	set("osd data", filepath.Join(c.dir, "osd"))
	set("rgw data", filepath.Join(c.dir, "rgw"))
	set("log file", "")
	set("mon cluster log file", "")
	set("log to stderr", "true")
	set("err to stderr", "true")
	for _, what := range []string{"rocksdb", "rgw", "civetweb", "osd", "mon", "paxos", "ms"} {
		set("debug "+what, "0")
	}
	// One OSD, one copy, few placement groups, little memory.
	set("osd objectstore", "memstore")
	set("memstore device bytes", "1073741824")
	set("osd pool default size", "1")
	set("osd pool default min size", "1")
	set("osd pool default pg num", "1")
	set("osd pool default pgp num", "1")
	set("osd crush chooseleaf type", "0")
	set("osd crush update on start", "false")
	// The monitor keeps next to nothing: a disk that is nearly full is no reason to end, as it is by default with 5 % left.
	set("mon data avail crit", "0")
	set("mon data avail warn", "0")
	set("mon allow pool size one", "true")
	set("mon max pg per osd", "1000")
	if c.bin.root != "" {
		for name, sub := range map[string]string{"osd class dir": "rados-classes", "plugin dir": "ceph", "erasure code dir": "ceph/erasure-code"} {
			for _, dir := range c.bin.libraries(sub) {
				set(name, dir)
			}
		}
	}
	certificates := filepath.Join(c.dir, "certs")
	set("rgw frontends", "beast endpoint="+addresses[1]+" ssl_endpoint="+addresses[2]+
		" ssl_certificate="+filepath.Join(certificates, "public.crt")+" ssl_private_key="+filepath.Join(certificates, "private.key"))
	set("rgw thread pool size", "64")
	return text.String()
}

// command makes a command of a program of Ceph.
func (c *Ceph) command(args ...string) *exec.Cmd {
	cmd := exec.Command(c.bin.path(args[0]), append([]string{"-c", c.config()}, args[1:]...)...)
	cmd.Dir = c.dir
	// Only what is needed: a CEPH_* variable of the caller must not change a test.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "TMPDIR=" + c.dir}
	if c.bin.root != "" {
		libraries := append(c.bin.libraries(""), c.bin.libraries("ceph")...)
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
	}
	return cmd
}

// run runs a command, which ends by itself, and with errEnded when one of the daemons has ended.
func (c *Ceph) run(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cephStartTimeout, fmt.Errorf("not within %v", cephStartTimeout))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for _, daemon := range c.processes {
		go func() {
			select {
			case <-daemon.done:
				stop(fmt.Errorf("%s: %w\n%s", daemon.name, errEnded, daemon.logTail()))
			case <-ctx.Done():
			}
		}()
	}
	p, err := startProcess(args[0], c.command(args...), nil)
	if err != nil {
		return err
	}
	defer p.Kill()
	return p.Wait(ctx)
}

// start starts a daemon.
func (c *Ceph) start(args ...string) error {
	p, err := startProcess(args[0], c.command(args...), nil)
	if err == nil {
		c.processes = append(c.processes, p)
	}
	return err
}

// Stop ends Ceph and removes its data.
func (c *Ceph) Stop() {
	for i := len(c.processes) - 1; i >= 0; i-- {
		c.processes[i].Kill()
	}
	_ = os.RemoveAll(c.dir)
}

// RSS returns the resident memory of all its processes in bytes.
func (c *Ceph) RSS() (sum int64, err error) {
	for _, p := range c.processes {
		rss, err := p.RSS()
		if err != nil {
			return 0, err
		}
		sum += rss
	}
	return sum, nil
}

// Version is what the gateway says of itself.
func (c *Ceph) Version() (string, error) {
	output, err := c.command("radosgw", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("asking for the version of Ceph: %w", err)
	}
	return strings.TrimSpace(string(output)), nil
}

func (c *Ceph) config() string { return filepath.Join(c.dir, "ceph.conf") }

// uuid returns a random UUID.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
