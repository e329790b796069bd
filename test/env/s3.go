// What all real S3 servers of the tests have in common: where they are, with which credentials,
// and how a client, a secret of bucketwarden and a proxy in front of them are made from that.
//
// Rules: the credentials of a server are random, so that they also tell it from whatever else
// may answer on its port; a server with TLS has a CA of its own, which only its clients trust;
// everything listens on 127.0.0.1.

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
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// S3Server says where an S3 server is.
type S3Server struct {
	// Endpoint is the URL of the S3 API.
	Endpoint        string
	Region          string
	AccessKeyID     string
	SecretAccessKey string
	// CAPEM is the certificate of the CA, nil without TLS.
	CAPEM []byte
	// NoTrailers says that the server cannot read checksums behind the content of an object, where
	// the AWS SDK writes them over HTTPS.
	NoTrailers bool
}

// newS3Server returns new credentials; an empty region is us-east-1.
func newS3Server(region string) S3Server {
	if region == "" {
		region = "us-east-1"
	}
	return S3Server{Region: region, AccessKeyID: rand.Text(), SecretAccessKey: rand.Text()}
}

// S3 returns a client for the server's own endpoint or that of a proxy in front of it.
func (s *S3Server) S3(endpoint string) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(endpoint),
		Region:       s.Region,
		UsePathStyle: true,
		Credentials:  credentials.NewStaticCredentialsProvider(s.AccessKeyID, s.SecretAccessKey, ""),
		HTTPClient:   &http.Client{Transport: s.transport()},
	})
}

// SecretData returns the data of a secret with which bucketwarden reaches the server at its own
// endpoint or that of a proxy in front of it.
func (s *S3Server) SecretData(endpoint string) map[string][]byte {
	data := map[string][]byte{
		"accessKeyID":      []byte(s.AccessKeyID),
		"secretAccessKey":  []byte(s.SecretAccessKey),
		"region":           []byte(s.Region),
		"endpoint":         []byte(endpoint),
		"s3ForcePathStyle": []byte("true"),
	}
	if s.CAPEM != nil {
		data["trustedCaCert"] = s.CAPEM
	}
	if s.NoTrailers {
		data["requestChecksumCalculation"] = []byte("when_required")
	}
	return data
}

// transport returns a transport that trusts the server's CA. It does not decompress by itself,
// because a proxy must pass on what it got.
func (s *S3Server) transport() *http.Transport {
	t := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100, IdleConnTimeout: time.Minute}
	if s.CAPEM != nil {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(s.CAPEM)
		t.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return t
}

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
		Subject:      pkix.Name{CommonName: "bucketwarden-test"},
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
		return nil, fmt.Errorf("generating the server's key: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the server's key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, server, ca, key.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("signing the server's certificate: %w", err)
	}
	for name, block := range map[string]*pem.Block{
		"public.crt":  {Type: "CERTIFICATE", Bytes: der},
		"private.key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, fmt.Errorf("writing the server's certificate: %w", err)
		}
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}
