package env

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
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
}

// MinIO is a running MinIO with one drive and its root user.
type MinIO struct {
	// Endpoint is the URL of the S3 API.
	Endpoint        string
	Region          string
	AccessKeyID     string
	SecretAccessKey string
	// CAPEM is the certificate of the CA, nil without TLS.
	CAPEM []byte

	binary, dir, address string
	process              *Process
}

// StartMinIO starts MinIO with an empty drive.
func StartMinIO(ctx context.Context, options MinIOOptions) (_ *MinIO, err error) {
	dir, err := os.MkdirTemp("", "bucketwarden-minio-")
	if err != nil {
		return nil, fmt.Errorf("making the data directory of MinIO: %w", err)
	}
	m := &MinIO{
		Region: options.Region,
		// Credentials nobody else has also tell this MinIO from whatever else
		// may answer on its port.
		AccessKeyID:     rand.Text(),
		SecretAccessKey: rand.Text(),
		binary:          options.Binary,
		dir:             dir,
	}
	if m.Region == "" {
		m.Region = "us-east-1"
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

// S3 returns a client with MinIO's root credentials for MinIO's own endpoint
// or that of a proxy in front of it.
func (m *MinIO) S3(endpoint string) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(endpoint),
		Region:       m.Region,
		UsePathStyle: true,
		Credentials:  credentials.NewStaticCredentialsProvider(m.AccessKeyID, m.SecretAccessKey, ""),
		HTTPClient:   &http.Client{Transport: m.transport()},
	})
}

// SecretData returns the data of a secret with which bucketwarden reaches
// MinIO at its own endpoint or that of a proxy in front of it.
func (m *MinIO) SecretData(endpoint string) map[string][]byte {
	data := map[string][]byte{
		"accessKeyID":      []byte(m.AccessKeyID),
		"secretAccessKey":  []byte(m.SecretAccessKey),
		"region":           []byte(m.Region),
		"endpoint":         []byte(endpoint),
		"s3ForcePathStyle": []byte("true"),
	}
	if m.CAPEM != nil {
		data["trustedCaCert"] = m.CAPEM
	}
	return data
}

// transport returns a transport that trusts MinIO's CA. It does not decompress
// by itself, because a proxy must pass on what it got.
func (m *MinIO) transport() *http.Transport {
	t := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100, IdleConnTimeout: time.Minute}
	if m.CAPEM != nil {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(m.CAPEM)
		t.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return t
}

func (m *MinIO) certsDir() string { return filepath.Join(m.dir, "certs") }
func (m *MinIO) dataDir() string  { return filepath.Join(m.dir, "data") }

// freeAddress returns an address of 127.0.0.1 on which nothing listened a
// moment ago.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	if err := listener.Close(); err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	return listener.Addr().String(), nil
}

// writeCertificate writes a certificate for 127.0.0.1 and its key under the
// names MinIO expects, and returns the certificate of the CA that signed it.
func writeCertificate(dir string) (caPEM []byte, err error) {
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "bucketwarden test CA"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "minio"},
		NotBefore:    ca.NotBefore,
		NotAfter:     ca.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating the CA's key: %w", err)
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("signing the CA's certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating MinIO's key: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding MinIO's key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, server, ca, key.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("signing MinIO's certificate: %w", err)
	}
	for name, block := range map[string]*pem.Block{
		"public.crt":  {Type: "CERTIFICATE", Bytes: der},
		"private.key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, fmt.Errorf("writing MinIO's certificate: %w", err)
		}
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}
