package env

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

// roleVariable makes the test binary play another program.
const roleVariable = "ENV_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "daemon":
		fakeDaemon()
	case "broken-daemon":
		fmt.Fprintln(os.Stderr, "invalid configuration")
		os.Exit(3)
	case "parent":
		fakeParent()
	default:
		os.Exit(m.Run())
	}
}

// fakeDaemon serves what StartDaemon expects of bucketwarden.
func fakeDaemon() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	serve := func(what string, handler http.HandlerFunc) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(os.Stderr, "I0102 03:04:05.678901       1 main.go:1] \"Serving %s\" address=%q\n", what, listener.Addr())
		go func() { panic(http.Serve(listener, handler)) }()
	}
	serve("metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `# TYPE drift_total counter
drift_total{bucket="a",kind="x"} 1
drift_total{bucket="a",kind="y"} 2
drift_total{bucket="b",kind="x"} 4
# TYPE locked gauge
locked{bucket="a"} 1
# TYPE duration_seconds histogram
duration_seconds_bucket{le="+Inf"} 5
duration_seconds_sum 1.5
duration_seconds_count 5
`)
	})
	serve("health", func(http.ResponseWriter, *http.Request) {})
	<-ctx.Done()
}

// fakeParent starts a child, prints its process id and waits to be killed.
func fakeParent() {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"=daemon")
	child, err := startProcess("child", cmd, nil)
	if err != nil {
		panic(err)
	}
	fmt.Println(child.PID())
	_ = child.Wait(context.Background())
}

// binaries are those that do not need the daemon's sources to compile.
var binaries = sync.OnceValues(func() (bin Binaries, err error) {
	ctx := context.Background()
	b, err := newBuilder(ctx, os.Stderr)
	if err != nil {
		return bin, err
	}
	defer b.unlock()
	if bin.Testkube, err = b.testkube(ctx); err != nil {
		return bin, err
	}
	bin.MinIO, err = b.minio(ctx)
	return bin, err
})

func newBucket(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "extensions.gardener.cloud/v1alpha1",
		"kind":       "BackupBucket",
		"metadata":   map[string]any{"name": name},
		"spec": map[string]any{
			"type":           "s3",
			"region":         "local",
			"secretRef":      map[string]any{"name": "bucket-" + name, "namespace": "garden"},
			"providerConfig": map[string]any{"immutability": map[string]any{"mode": "compliance"}},
		},
	}}
}

func newEntry(name string) *unstructured.Unstructured {
	entry := newBucket(name)
	entry.SetKind("BackupEntry")
	set(entry, "bucket", "spec", "bucketName")
	set(entry, map[string]any{"locked": true}, "spec", "backupBucketProviderStatus")
	return entry
}

func set(object *unstructured.Unstructured, value any, path ...string) {
	if err := unstructured.SetNestedField(object.Object, value, path...); err != nil {
		panic(err)
	}
}

func TestKube(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	kube, err := StartKube(ctx, bin.Testkube)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kube.Stop)

	for _, kind := range []struct {
		resource schema.GroupVersionResource
		make     func(string) *unstructured.Unstructured
		required []string
	}{
		{BackupBuckets, newBucket, []string{"type", "region", "secretRef"}},
		{BackupEntries, newEntry, []string{"type", "region", "secretRef", "bucketName"}},
	} {
		t.Run(kind.resource.Resource, func(t *testing.T) {
			t.Parallel()
			client := kube.Dynamic.Resource(kind.resource)
			testSchema(t, client, kind.make, kind.required)
			testWaitFor(t, kube, kind.resource, kind.make("watched"))
		})
	}
	t.Run("service account", func(t *testing.T) {
		t.Parallel()
		testServiceAccount(t, kube)
	})
	t.Run("version", func(t *testing.T) {
		t.Parallel()
		version, err := kube.Client.Discovery().ServerVersion()
		if err != nil {
			t.Fatal(err)
		}
		if version.Major != "1" || version.Minor == "" || !strings.HasPrefix(version.GitVersion, "v1.") {
			t.Errorf("server version is %+v, want a released one", version)
		}
	})
}

func testSchema(t *testing.T, client dynamic.ResourceInterface, make func(string) *unstructured.Unstructured, required []string) {
	ctx := t.Context()
	for _, field := range required {
		incomplete := make("incomplete")
		unstructured.RemoveNestedField(incomplete.Object, "spec", field)
		if _, err := client.Create(ctx, incomplete, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("creating without spec.%s: got %v, want Invalid", field, err)
		}
	}

	object := make("schema")
	set(object, "Succeeded", "status", "lastOperation", "state")
	object, err := client.Create(ctx, object, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, found := object.Object["status"]; found {
		t.Error("create wrote the status, want it to need the subresource")
	}
	if mode, _, _ := unstructured.NestedString(object.Object, "spec", "providerConfig", "immutability", "mode"); mode != "compliance" {
		t.Errorf("providerConfig was pruned: %v", object.Object["spec"])
	}

	set(object, "other", "spec", "region")
	set(object, map[string]any{
		"lastOperation": map[string]any{
			"description": "done", "lastUpdateTime": "2026-01-02T03:04:05Z", "progress": int64(100), "state": "Succeeded", "type": "Create",
		},
		"providerStatus":     map[string]any{"anything": "goes"},
		"observedGeneration": int64(1),
	}, "status")
	object, err = client.UpdateStatus(ctx, object, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if region, _, _ := unstructured.NestedString(object.Object, "spec", "region"); region != "local" || object.GetGeneration() != 1 {
		t.Errorf("status update changed the spec: region %q, generation %d", region, object.GetGeneration())
	}
	if value, _, _ := unstructured.NestedString(object.Object, "status", "providerStatus", "anything"); value != "goes" {
		t.Errorf("providerStatus was pruned: %v", object.Object["status"])
	}
	unstructured.RemoveNestedField(object.Object, "status", "lastOperation", "progress")
	if _, err := client.UpdateStatus(ctx, object, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("lastOperation without progress: got %v, want Invalid", err)
	}

	// A transition rule does not apply while the old object lacks the field.
	set(object, "garden", "spec", "class")
	object, err = client.Update(ctx, object, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	set(object, "seed", "spec", "class")
	if _, err := client.Update(ctx, object, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("changing the class: got %v, want Invalid", err)
	}
}

func testWaitFor(t *testing.T, kube *Kube, resource schema.GroupVersionResource, object *unstructured.Unstructured) {
	ctx := t.Context()
	client := kube.Dynamic.Resource(resource)
	exists := func(o *unstructured.Unstructured) error {
		if o == nil {
			return errors.New("does not exist")
		}
		return nil
	}
	gone := func(o *unstructured.Unstructured) error {
		if o != nil {
			return errors.New("still exists")
		}
		return nil
	}

	created := make(chan error, 1)
	go func() {
		_, err := client.Create(ctx, object, metav1.CreateOptions{})
		created <- err
	}()
	got, err := kube.WaitFor(ctx, time.Minute, resource, "", object.GetName(), exists)
	if err := errors.Join(err, <-created); err != nil {
		t.Fatal(err)
	}
	if got.GetName() != object.GetName() || got.GetUID() == "" {
		t.Errorf("got %v, want the object", got)
	}

	inVain, cancel := context.WithCancel(ctx)
	defer cancel()
	_, err = kube.WaitFor(inVain, time.Minute, resource, "", object.GetName(), func(o *unstructured.Unstructured) error {
		defer cancel()
		return gone(o)
	})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "still exists") || !strings.Contains(err.Error(), string(got.GetUID())) {
		t.Errorf("waiting in vain: got %v, want the last state", err)
	}

	if err := client.Delete(ctx, object.GetName(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := kube.WaitFor(ctx, time.Minute, resource, "", object.GetName(), gone); err != nil {
		t.Error(err)
	}
}

func testServiceAccount(t *testing.T, kube *Kube) {
	ctx := t.Context()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "garden"}}
	if _, err := kube.Client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	path, err := kube.ServiceAccountKubeconfig(ctx, "garden", "reader")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	list := func(ctx context.Context) error {
		_, err := client.Resource(BackupBuckets).List(ctx, metav1.ListOptions{})
		return err
	}
	if err := list(ctx); !apierrors.IsForbidden(err) {
		t.Fatalf("listing without rights: got %v, want Forbidden", err)
	}
	_, err = kube.Client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{BackupBuckets.Group}, Resources: []string{BackupBuckets.Resource}, Verbs: []string{"list"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = kube.Client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "reader"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "garden", Name: "reader"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The authorizer learns of new roles through a watch.
	if err := Eventually(ctx, time.Minute, "the service account may list", list); err != nil {
		t.Error(err)
	}
}

func TestMinIO(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]MinIOOptions{
		"plain": {Region: "eu-north-1"},
		"TLS":   {TLS: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bin, err := binaries()
			if err != nil {
				t.Fatal(err)
			}
			options.Binary = bin.MinIO
			minio, err := StartMinIO(t.Context(), options)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(minio.Stop)
			testMinIO(t, minio)
		})
	}
}

func testMinIO(t *testing.T, minio *MinIO) {
	ctx := t.Context()
	proxy, err := StartProxy(&minio.S3Server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	client := minio.S3(proxy.URL)
	bucket := aws.String("backups")

	if _, err := client.CreateBucket(ctx, &s3.CreateBucketInput{
		Bucket:                     bucket,
		ObjectLockEnabledForBucket: aws.Bool(true),
		CreateBucketConfiguration:  &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(minio.Region)},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{
		Bucket: bucket,
		ObjectLockConfiguration: &types.ObjectLockConfiguration{
			ObjectLockEnabled: types.ObjectLockEnabledEnabled,
			Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{
				Mode: types.ObjectLockRetentionModeCompliance, Days: aws.Int32(1),
			}},
		},
	}); err != nil {
		t.Fatal(err)
	}
	put, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: aws.String("a/b c+d"), Body: strings.NewReader("snapshot")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: aws.String("a/b c+d"), VersionId: put.VersionId})
	if err == nil {
		t.Error("deleting a retained version succeeded, want an error")
	}
	versions, err := client.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: bucket})
	if err != nil || len(versions.Versions) != 1 {
		t.Errorf("listing: got %v, %v; want one version", versions, err)
	}

	want := map[string]int{"CreateBucket": 1, "PutObjectLockConfiguration": 1, "PutObject": 1, "DeleteObject": 1, "ListObjectVersions": 1}
	if got := proxy.Counts(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counts are %v, want %v", got, want)
	}
	proxy.Reset()

	head := func(ctx context.Context) error {
		_, err := client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: bucket}, func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
		return err
	}
	proxy.SetFault(func(r Request) *Fault {
		if r.Operation == "GetBucketPolicy" && r.Bucket == *bucket {
			return &Fault{Status: http.StatusForbidden, Code: "AccessDenied"}
		}
		return &Fault{Latency: time.Millisecond}
	})
	_, err = client.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: bucket})
	var apiError smithy.APIError
	if !errors.As(err, &apiError) || apiError.ErrorCode() != "AccessDenied" {
		t.Errorf("faulted request: got %v, want AccessDenied", err)
	}
	if err := head(ctx); err != nil {
		t.Errorf("delayed request: %v", err)
	}
	proxy.SetFault(nil)
	if got := proxy.Counts()["GetBucketPolicy"]; got != 1 {
		t.Errorf("counted %d faulted requests, want 1", got)
	}

	if err := minio.Pause(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := head(short); err == nil {
		t.Error("a paused MinIO answered")
	}
	if err := minio.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := head(ctx); err != nil {
		t.Errorf("after Resume: %v", err)
	}

	minio.Down()
	if err := head(ctx); err == nil {
		t.Error("MinIO answered while it was down")
	}
	if err := minio.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if err := head(ctx); err != nil {
		t.Errorf("after Up: %v", err)
	}

	data := minio.SecretData(proxy.URL)
	if string(data["endpoint"]) != proxy.URL || string(data["region"]) != minio.Region || (data["trustedCaCert"] == nil) != (minio.CAPEM == nil) {
		t.Errorf("secret has endpoint %q, region %q, %d bytes of CA", data["endpoint"], data["region"], len(data["trustedCaCert"]))
	}
}

func TestDaemon(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var log logBuffer
	daemon, err := StartDaemon(ctx, DaemonOptions{Binary: os.Args[0], Env: []string{roleVariable + "=daemon"}, LogTo: &log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(daemon.Kill)
	for _, test := range []struct {
		name   string
		labels []string
		want   float64
		err    error
	}{
		{"drift_total", nil, 7, nil},
		{"drift_total", []string{"bucket=a"}, 3, nil},
		{"drift_total", []string{"bucket=a", "kind=y"}, 2, nil},
		{"drift_total", []string{"bucket=c"}, 0, ErrNoSeries},
		{"locked", []string{"bucket=a"}, 1, nil},
		{"duration_seconds", nil, 5, nil},
		{"missing", nil, 0, ErrNoSeries},
	} {
		got, err := daemon.Value(ctx, test.name, test.labels...)
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("Value(%s, %v) = %v, %v; want %v, %v", test.name, test.labels, got, err, test.want, test.err)
		}
	}
	if rss, err := daemon.RSS(); err != nil || rss < 1<<20 {
		t.Errorf("RSS() = %d, %v; want some megabytes", rss, err)
	}
	if err := daemon.Terminate(ctx); err != nil {
		t.Error(err)
	}
	if log.String() != daemon.Log() || !strings.Contains(daemon.Log(), "Serving health") {
		t.Errorf("log is %q, its copy %q", daemon.Log(), log.String())
	}

	_, err = StartDaemon(ctx, DaemonOptions{Binary: os.Args[0], Env: []string{roleVariable + "=broken-daemon"}})
	if !errors.Is(err, errEnded) || !strings.Contains(err.Error(), "invalid configuration") {
		t.Errorf("a daemon that ends at once: got %v, want its log", err)
	}
}

func TestChildrenEndWithTheirParent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	parent := exec.CommandContext(ctx, os.Args[0])
	parent.Env = append(os.Environ(), roleVariable+"=parent")
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	err = Eventually(ctx, time.Minute, "the child is gone", func(context.Context) error {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		// In a container nobody may reap it.
		if _, after, _ := strings.Cut(string(status), ") "); strings.HasPrefix(after, "Z") {
			return nil
		}
		return fmt.Errorf("it runs: %s, %v", status, err)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRequestOf(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		method, target, copySource string
		want                       Request
	}{
		{"GET", "/", "", Request{"ListBuckets", "", "", ""}},
		{"HEAD", "/b", "", Request{"HeadBucket", "b", "", ""}},
		{"PUT", "/b/", "", Request{"CreateBucket", "b", "", ""}},
		{"DELETE", "/b", "", Request{"DeleteBucket", "b", "", ""}},
		{"GET", "/b?list-type=2&prefix=x", "", Request{"ListObjectsV2", "b", "", "x"}},
		{"GET", "/b?prefix=x", "", Request{"ListObjects", "b", "", "x"}},
		{"GET", "/b?versions&prefix=x", "", Request{"ListObjectVersions", "b", "", "x"}},
		{"GET", "/b?uploads", "", Request{"ListMultipartUploads", "b", "", ""}},
		{"POST", "/b?delete", "", Request{"DeleteObjects", "b", "", ""}},
		{"GET", "/b?object-lock", "", Request{"GetObjectLockConfiguration", "b", "", ""}},
		{"PUT", "/b?object-lock", "", Request{"PutObjectLockConfiguration", "b", "", ""}},
		{"GET", "/b?lifecycle", "", Request{"GetBucketLifecycleConfiguration", "b", "", ""}},
		{"DELETE", "/b?lifecycle", "", Request{"DeleteBucketLifecycle", "b", "", ""}},
		{"PUT", "/b?versioning", "", Request{"PutBucketVersioning", "b", "", ""}},
		{"GET", "/b?location", "", Request{"GetBucketLocation", "b", "", ""}},
		{"PUT", "/b?publicAccessBlock", "", Request{"PutPublicAccessBlock", "b", "", ""}},
		{"PUT", "/b?encryption", "", Request{"PutBucketEncryption", "b", "", ""}},
		{"DELETE", "/b?policy", "", Request{"DeleteBucketPolicy", "b", "", ""}},
		{"GET", "/b/k/l?x-id=GetObject", "", Request{"GetObject", "b", "k/l", ""}},
		{"HEAD", "/b/k", "", Request{"HeadObject", "b", "k", ""}},
		{"PUT", "/b/k", "", Request{"PutObject", "b", "k", ""}},
		{"PUT", "/b/k", "/b/j", Request{"CopyObject", "b", "k", ""}},
		{"DELETE", "/b/k?versionId=1", "", Request{"DeleteObject", "b", "k", ""}},
		{"PUT", "/b/k?tagging&versionId=1", "", Request{"PutObjectTagging", "b", "k", ""}},
		{"GET", "/b/k?retention", "", Request{"GetObjectRetention", "b", "k", ""}},
		{"PUT", "/b/k?legal-hold", "", Request{"PutObjectLegalHold", "b", "k", ""}},
		{"POST", "/b/k?uploads", "", Request{"CreateMultipartUpload", "b", "k", ""}},
		{"PUT", "/b/k?partNumber=1&uploadId=u", "", Request{"UploadPart", "b", "k", ""}},
		{"PUT", "/b/k?partNumber=1&uploadId=u", "/b/j", Request{"UploadPartCopy", "b", "k", ""}},
		{"POST", "/b/k?uploadId=u", "", Request{"CompleteMultipartUpload", "b", "k", ""}},
		{"DELETE", "/b/k?uploadId=u", "", Request{"AbortMultipartUpload", "b", "k", ""}},
		{"GET", "/b/k?uploadId=u", "", Request{"ListParts", "b", "k", ""}},
		{"PATCH", "/b/k", "", Request{"Unknown", "b", "k", ""}},
	} {
		r := httptest.NewRequest(test.method, test.target, nil)
		if test.copySource != "" {
			r.Header.Set("X-Amz-Copy-Source", test.copySource)
		}
		if got := requestOf(r); got != test.want {
			t.Errorf("%s %s: got %v, want %v", test.method, test.target, got, test.want)
		}
	}
}

func TestEventually(t *testing.T) {
	t.Parallel()
	calls, notYet := 0, errors.New("not yet")
	condition := func(context.Context) error {
		if calls++; calls < 3 {
			return notYet
		}
		return nil
	}
	if err := Eventually(t.Context(), time.Minute, "it holds", condition); err != nil || calls != 3 {
		t.Errorf("got %v after %d calls, want success after 3", err, calls)
	}
	err := Eventually(t.Context(), time.Millisecond, "it holds", func(context.Context) error { return notYet })
	if !errors.Is(err, notYet) {
		t.Errorf("got %v, want what was seen last", err)
	}
}
