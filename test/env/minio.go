// MinIO, an S3 server in one process, built from source. It is started in a fraction of a
// second, so a test may have one of its own.
//
// Rules: its data is in a directory that Stop removes; it gets only the environment that is
// written here; its port was free a moment ago, and another one is tried if it no longer is.

package env

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const minioStartTimeout = 10 * time.Minute

// MinIOOptions says how MinIO is started.
type MinIOOptions struct {
	// Binary is Binaries.MinIO.
	Binary string
	// TLS makes MinIO serve HTTPS with a certificate of a CA of its own.
	TLS bool
	// Region is us-east-1 when empty.
	Region string
	// PolicyURL, if not empty, is asked about every action, also of the root user (MinIO's access management plugin).
	PolicyURL string
}

// MinIO is a running MinIO with one drive and its root user.
type MinIO struct {
	S3Server
	binary, dir, address string
	policyURL            string
	process              *Process
}

// StartMinIO starts MinIO with an empty drive.
func StartMinIO(ctx context.Context, options MinIOOptions) (_ *MinIO, err error) {
	dir, err := os.MkdirTemp("", "bucketwarden-minio-")
	if err != nil {
		return nil, fmt.Errorf("making the data directory of MinIO: %w", err)
	}
	m := &MinIO{
		S3Server: newS3Server(options.Region),
		binary:   options.Binary,
		dir:      dir,

		policyURL: options.PolicyURL,
	}
	defer func() {
		if err != nil {
			m.Stop()
		}
	}()
	for _, name := range []string{m.certsDir(), m.dataDir()} {
		if err := os.Mkdir(name, 0o700); err != nil {
			return nil, fmt.Errorf("making a directory of MinIO: %w", err)
		}
	}
	scheme := "http"
	if options.TLS {
		scheme = "https"
		if m.CAPEM, err = writeCertificate(m.certsDir()); err != nil {
			return nil, err
		}
	}
	// MinIO cannot choose a port itself, and between finding a free one and
	// MinIO listening on it, another process may take it.
	const attempts = 5
	for range attempts {
		if m.address, err = freeAddress(ctx); err != nil {
			return nil, err
		}
		m.Endpoint = scheme + "://" + m.address
		if err = m.Up(ctx); err == nil || !errors.Is(err, errEnded) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Stop ends MinIO and removes its data.
func (m *MinIO) Stop() {
	m.Down()
	_ = os.RemoveAll(m.dir)
}

// Down ends MinIO, so that connections to it are refused, and keeps its data.
func (m *MinIO) Down() {
	if m.process != nil {
		m.process.Kill()
	}
}

// Up starts MinIO after Down, with the same data on the same port.
func (m *MinIO) Up(ctx context.Context) error {
	cmd := exec.Command(m.binary, "server", "--quiet", "--address", m.address, "--certs-dir", m.certsDir(), m.dataDir())
	// Only what is needed: a MINIO_* variable of the caller must not change a test.
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + m.dir,
		"MINIO_ROOT_USER=" + m.AccessKeyID,
		"MINIO_ROOT_PASSWORD=" + m.SecretAccessKey,
		"MINIO_SITE_REGION=" + m.Region,
		"MINIO_BROWSER=off",
		"MINIO_UPDATE=off",
		"MINIO_CALLHOME_ENABLE=off",
	}
	if m.policyURL != "" {
		cmd.Env = append(cmd.Env, "MINIO_POLICY_PLUGIN_URL="+m.policyURL)
	}
	process, err := startProcess("MinIO", cmd, nil)
	if err != nil {
		return err
	}
	m.process = process
	client := m.S3(m.Endpoint)
	err = process.waitStarted(ctx, minioStartTimeout, func(ctx context.Context) error {
		_, err := client.ListBuckets(ctx, &s3.ListBucketsInput{}, func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
		return err
	})
	if err != nil {
		process.Kill()
	}
	return err
}

// Pause makes MinIO accept connections and answer nothing until Resume.
func (m *MinIO) Pause() error { return m.process.Pause() }

// Resume ends Pause.
func (m *MinIO) Resume() error { return m.process.Resume() }

// RSS returns the resident memory of MinIO in bytes.
func (m *MinIO) RSS() (int64, error) { return m.process.RSS() }

// Log returns what MinIO has written to stderr since it was last started.
func (m *MinIO) Log() string { return m.process.Log() }

func (m *MinIO) certsDir() string { return filepath.Join(m.dir, "certs") }
func (m *MinIO) dataDir() string  { return filepath.Join(m.dir, "data") }
