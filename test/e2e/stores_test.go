// The real S3 servers that the tests run on. Most tests need only one, MinIO, which is the global
// store; those about what stores do differently run on each: onEachStore. A further server is a
// line in s3Stores.
//
// Rules: what a test does to a store, it does with the methods of s3Store, and in a test for each
// store the parameter hides the global; Ceph is started by the first test that needs it and
// shared by all; where it cannot be had, its tests are skipped and say why.

package e2e

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"bucketwarden/test/env"
)

// s3Store is a real S3 server, with a client that has all permissions.
type s3Store struct {
	name string
	*s3.Client
	*env.S3Server
}

func newS3Store(name string, server *env.S3Server) *s3Store {
	return &s3Store{name: name, Client: server.S3(server.Endpoint), S3Server: server}
}

// s3Stores has for each server how to get it, and how to get one that serves HTTPS.
var s3Stores = []struct {
	name          string
	plain, secure func(*testing.T) *env.S3Server
}{
	{"minio", func(*testing.T) *env.S3Server { return &minio.S3Server }, func(t *testing.T) *env.S3Server { return &tlsMinIO(t).S3Server }},
	{"ceph", func(t *testing.T) *env.S3Server { return &ceph(t).S3Server }, func(t *testing.T) *env.S3Server { return &ceph(t).TLS }},
}

// onEachStore runs a test on each server.
func onEachStore(t *testing.T, test func(t *testing.T, store *s3Store)) {
	for _, s := range s3Stores {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, newS3Store(s.name, s.plain(t)))
		})
	}
}

// onEachSecureStore runs a test on each server over HTTPS.
func onEachSecureStore(t *testing.T, test func(t *testing.T, store *s3Store)) {
	for _, s := range s3Stores {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, newS3Store(s.name, s.secure(t)))
		})
	}
}

// secret is the data of a credentials secret.
func (store *s3Store) secret() map[string][]byte { return store.SecretData(store.Endpoint) }

// proxy starts a proxy in front of the server.
func (store *s3Store) proxy(t *testing.T) *env.Proxy {
	t.Helper()
	proxy, err := env.StartProxy(store.S3Server)
	must(t, err)
	t.Cleanup(proxy.Stop)
	return proxy
}

var sharedCeph = sync.OnceValues(func() (*env.Ceph, error) {
	bin, err := env.EnsureCeph(context.Background(), os.Stderr)
	if err != nil {
		return nil, err
	}
	cephStarted = true
	return env.StartCeph(context.Background(), bin)
})

// cephStarted is written once by sharedCeph.
var cephStarted bool

// ceph returns the Ceph of all tests.
func ceph(t *testing.T) *env.Ceph {
	t.Helper()
	c, err := sharedCeph()
	if errors.Is(err, env.ErrUnavailable) {
		t.Skipf("needs Ceph: %v", err)
	}
	must(t, err)
	return c
}

// stopCeph ends Ceph if a test has started it.
func stopCeph() {
	if !cephStarted {
		return
	}
	if c, err := sharedCeph(); err == nil {
		c.Stop()
	}
}
