// Ceph as the tests use it: it starts, serves S3 over HTTP and HTTPS with object lock, knows its
// user and nobody else, stays small, and leaves nothing behind.
//
// Rules: without Ceph these tests are skipped, and say why.

package env

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

func TestCeph(t *testing.T) {
	t.Parallel()
	bin, err := EnsureCeph(t.Context(), os.Stderr)
	if errors.Is(err, ErrUnavailable) {
		t.Skipf("needs Ceph: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ceph, err := StartCeph(t.Context(), bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ceph.Stop)
	if version, err := ceph.Version(); err != nil || !strings.Contains(version, "ceph version ") {
		t.Errorf("the version is %q, %v", version, err)
	}
	bucket, key := "the-bucket", "the-key"
	plain, secure := ceph.S3(ceph.Endpoint), ceph.TLS.S3(ceph.TLS.Endpoint)
	if _, err := plain.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket, ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	if _, err := secure.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("content")}); err != nil {
		t.Fatal(err)
	}
	lock, err := plain.GetObjectLockConfiguration(t.Context(), &s3.GetObjectLockConfigurationInput{Bucket: &bucket})
	if err != nil || lock.ObjectLockConfiguration.ObjectLockEnabled != types.ObjectLockEnabledEnabled {
		t.Errorf("object lock is %+v, %v", lock, err)
	}
	stranger := ceph.S3Server
	stranger.SecretAccessKey = "another"
	if _, err := stranger.S3(ceph.Endpoint).ListBuckets(t.Context(), &s3.ListBucketsInput{}); err == nil {
		t.Error("a stranger may list buckets")
	}
	const limit = 512 << 20
	if rss, err := ceph.RSS(); err != nil || rss > limit {
		t.Errorf("it has %d MiB of memory, %v, want at most %d", rss>>20, err, limit>>20)
	} else {
		t.Logf("it has %d MiB of memory", rss>>20)
	}
	ceph.Stop()
	if _, err := os.Stat(ceph.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory is left: %v", err)
	}
	for _, p := range ceph.processes {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID())); err == nil {
			t.Errorf("%s is left", p.name)
		}
	}
}

// Where a package cannot be had, the error says so.
func TestUnavailable(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("BUCKETWARDEN_CACHE", t.TempDir())
	if _, err := EnsureCeph(t.Context(), os.Stderr); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "apt-get") {
		t.Errorf("without apt-get: %v", err)
	}
}
