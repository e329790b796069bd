// A real etcd of its own, in a process: what the backups of the tests are made from, and what they
// are restored into. etcd and etcdutl are built from the Go modules that the API server has too.
//
// Rules: one member, on a free port of 127.0.0.1, without TLS; durability is switched off, since
// the data does not outlive the test; a transaction may be as large as etcd-backup-restore lets
// it be in the etcd that it restores with.

package env

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	etcdStartTimeout = 10 * time.Minute
	// etcdPeer is a socket in the working directory of the process: nothing else uses it.
	etcdPeer    = "unix://peer.sock"
	etcdCluster = "default=" + etcdPeer
)

// EtcdTools are the paths of etcd and etcdutl.
type EtcdTools struct{ Etcd, Etcdutl string }

// EnsureEtcd builds etcd and etcdutl if they are missing, as EnsureBinaries does with the rest.
func EnsureEtcd(ctx context.Context, progress io.Writer) (EtcdTools, error) {
	b, err := newBuilder(ctx, progress)
	if err != nil {
		return EtcdTools{}, err
	}
	defer b.unlock()
	var tools EtcdTools
	for _, tool := range []struct {
		name, module string
		path         *string
	}{
		{"etcd", "go.etcd.io/etcd/server/v3", &tools.Etcd},
		{"etcdutl", "go.etcd.io/etcd/etcdutl/v3", &tools.Etcdutl},
	} {
		version, err := b.moduleVersion(ctx, tool.module)
		if err != nil {
			return EtcdTools{}, err
		}
		*tool.path = filepath.Join(b.cache, tool.name+"-"+version)
		if exists(*tool.path) {
			continue
		}
		if err := b.report(ctx, "building "+tool.name, func() error {
			temporary := *tool.path + ".tmp"
			if err := b.build(ctx, b.module, temporary, "-ldflags=-s -w", tool.module); err != nil {
				return err
			}
			return os.Rename(temporary, *tool.path)
		}); err != nil {
			return EtcdTools{}, err
		}
	}
	return tools, nil
}

// EtcdServer is a running etcd and a client of it.
type EtcdServer struct {
	*clientv3.Client
	dir     string
	process *Process
}

// Start starts an etcd without data.
func (t EtcdTools) Start(ctx context.Context) (*EtcdServer, error) {
	return t.start(ctx, func(string) error { return nil })
}

// start starts etcd on the data that prepare has put into the directory.
func (t EtcdTools) start(ctx context.Context, prepare func(dataDir string) error) (_ *EtcdServer, err error) {
	dir, err := os.MkdirTemp("", "bucketwarden-etcd-")
	if err != nil {
		return nil, fmt.Errorf("making the data directory of etcd: %w", err)
	}
	e := &EtcdServer{dir: dir}
	defer func() {
		if err != nil {
			e.Stop()
		}
	}()
	dataDir := filepath.Join(dir, "data")
	if err := prepare(dataDir); err != nil {
		return nil, err
	}
	// The port may be taken between finding it and listening on it, see StartMinIO.
	const attempts = 5
	for range attempts {
		if err = e.run(ctx, t.Etcd, dataDir); err == nil || !errors.Is(err, errEnded) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// run starts the process and waits until it answers.
func (e *EtcdServer) run(ctx context.Context, binary, dataDir string) error {
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	url := "http://" + address
	cmd := exec.Command(binary, "--data-dir="+dataDir, "--listen-client-urls="+url, "--advertise-client-urls="+url,
		"--listen-peer-urls="+etcdPeer, "--initial-advertise-peer-urls="+etcdPeer, "--initial-cluster="+etcdCluster,
		"--unsafe-no-fsync", "--max-txn-ops=10240", "--max-request-bytes=10485760", "--log-level=warn", "--log-outputs=stderr")
	cmd.Dir = e.dir
	// Only what is needed: an ETCD_* variable of the caller must not change a test.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + e.dir}
	if e.process, err = startProcess("etcd", cmd, nil); err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop(), MaxCallSendMsgSize: 16 << 20, MaxCallRecvMsgSize: 1 << 30})
	if err != nil {
		e.process.Kill()
		return fmt.Errorf("making a client for etcd: %w", err)
	}
	err = e.process.waitStarted(ctx, etcdStartTimeout, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := client.Get(ctx, "foo")
		return err
	})
	if err != nil {
		_ = client.Close()
		e.process.Kill()
		return err
	}
	e.Client = client
	return nil
}

// Stop ends etcd and removes its data.
func (e *EtcdServer) Stop() {
	if e.Client != nil {
		_ = e.Client.Close()
	}
	if e.process != nil {
		e.process.Kill()
	}
	_ = os.RemoveAll(e.dir)
}

// Revision is the revision of the last change.
func (e *EtcdServer) Revision(ctx context.Context) (int64, error) {
	response, err := e.Client.Get(ctx, "foo")
	if err != nil {
		return 0, fmt.Errorf("asking etcd for its revision: %w", err)
	}
	return response.Header.Revision, nil
}

// Content is all keys with their values.
func (e *EtcdServer) Content(ctx context.Context) (map[string]string, error) {
	response, err := e.Client.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("reading all of etcd: %w", err)
	}
	content := make(map[string]string, len(response.Kvs))
	for _, kv := range response.Kvs {
		content[string(kv.Key)] = string(kv.Value)
	}
	return content, nil
}
