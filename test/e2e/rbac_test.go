package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"bucketwarden/test/env"
)

const chartNamespace = "bucketwarden"

// chartSeed is an API server of a test's own that logs every request, with what the chart
// installs but for the pod.
type chartSeed struct {
	t *testing.T
	*env.Kube
	env.Gardenlet
	clusterRole *rbacv1.ClusterRole
	role        *rbacv1.Role
}

func startChartSeed(t *testing.T, values ...string) *chartSeed {
	t.Helper()
	cluster, err := env.StartAuditedKube(t.Context(), binaries.Testkube)
	must(t, err)
	t.Cleanup(cluster.Stop)
	s := &chartSeed{t: t, Kube: cluster, Gardenlet: env.Gardenlet{Kube: cluster}, clusterRole: &rbacv1.ClusterRole{}, role: &rbacv1.Role{}}
	must(t, s.Namespace(t.Context(), env.GardenNamespace))
	must(t, s.Namespace(t.Context(), chartNamespace))
	rendered, err := ensureHelm(t).Template(t.Context(), chartNamespace, values...)
	must(t, err)
	client := cluster.Client.RbacV1()
	for _, o := range decodeYAML(t, rendered) {
		decode := func(into any) {
			t.Helper()
			must(t, runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, into, true))
		}
		switch o.GetKind() {
		case "ClusterRole":
			decode(s.clusterRole)
			_, err = client.ClusterRoles().Create(t.Context(), s.clusterRole, metav1.CreateOptions{})
		case "ClusterRoleBinding":
			binding := &rbacv1.ClusterRoleBinding{}
			decode(binding)
			_, err = client.ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{})
		case "Role":
			decode(s.role)
			_, err = client.Roles(o.GetNamespace()).Create(t.Context(), s.role, metav1.CreateOptions{})
		case "RoleBinding":
			binding := &rbacv1.RoleBinding{}
			decode(binding)
			_, err = client.RoleBindings(o.GetNamespace()).Create(t.Context(), binding, metav1.CreateOptions{})
		}
		must(t, err)
	}
	return s
}

// start starts a daemon as a service account; the chart's is bucketwarden.
func (s *chartSeed) start(account string, args ...string) *env.Daemon {
	s.t.Helper()
	kubeconfig, err := s.ServiceAccountKubeconfig(s.t.Context(), chartNamespace, account)
	must(s.t, err)
	install := func(ctx context.Context, address string) error {
		for _, install := range []func(context.Context, string) error{s.InstallWebhook, s.InstallMutatingWebhook} {
			if err := install(ctx, address); err != nil && !apierrors.IsAlreadyExists(err) {
				return err
			}
		}
		return nil
	}
	d, err := env.StartDaemon(s.t.Context(), env.DaemonOptions{Binary: binaries.Daemon, Kubeconfig: kubeconfig, OnWebhook: install,
		Args: append([]string{"--type=s3=s3", "--verify-interval=1s", "--namespace=" + chartNamespace, "--mutating-webhook-configuration=bucketwarden"}, args...),
		// As with an API server that cannot stream lists.
		Env: []string{"KUBE_FEATURE_WatchListClient=false"}})
	must(s.t, err)
	s.t.Cleanup(func() {
		d.Kill()
		if log := d.Log(); s.t.Failed() || strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
			s.t.Errorf("log of the daemon of %s:\n%s", account, log)
		}
	})
	return d
}

// requests are those of a service account.
func (s *chartSeed) requests(account string) []env.APIRequest {
	s.t.Helper()
	requests, err := s.Requests("system:serviceaccount:" + chartNamespace + ":" + account)
	must(s.t, err)
	return requests
}

func (s *chartSeed) await(resource schema.GroupVersionResource, name string, condition func(*unstructured.Unstructured) error) {
	s.t.Helper()
	_, err := s.WaitFor(s.t.Context(), timeout, resource, "", name, condition)
	must(s.t, err)
}

func (s *chartSeed) awaitGone(resource schema.GroupVersionResource, name string) {
	s.t.Helper()
	s.await(resource, name, func(o *unstructured.Unstructured) error {
		if o != nil {
			return errors.New("it is still there")
		}
		return nil
	})
}

// bucket makes a BackupBucket with a lock and waits until it is there.
func (s *chartSeed) bucket(name string) {
	s.t.Helper()
	must(s.t, s.Secret(s.t.Context(), "bucket-"+name, minio.SecretData(minio.Endpoint)))
	must(s.t, s.Bucket(s.t.Context(), name, "s3", minio.Region, env.BucketConfig("s3", immutability("governance", "24h"))))
	s.await(buckets, name, env.Healthy)
}

func (s *chartSeed) entry(name, bucket string) {
	s.t.Helper()
	must(s.t, s.Secret(s.t.Context(), "entry-"+name, minio.SecretData(minio.Endpoint)))
	must(s.t, s.Entry(s.t.Context(), name, bucket, "s3", minio.Region))
	s.await(entries, name, env.Healthy)
}

// permission is one verb of a rule on one resource.
type permission struct{ group, resource, name, namespace, verb string }

func (p permission) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s %s.%s %s", p.verb, p.resource, p.group, p.name), " ")
}

// permissions are those of rules, in one namespace if it is not empty.
func permissions(rules []rbacv1.PolicyRule, namespace string) (all []permission) {
	for _, rule := range rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, name := range names {
					for _, verb := range rule.Verbs {
						all = append(all, permission{group, resource, name, namespace, verb})
					}
				}
			}
		}
	}
	return all
}

// covers says that the permission allows the request.
func (p permission) covers(r env.APIRequest) bool {
	resource := r.ObjectRef.Resource
	if r.ObjectRef.Subresource != "" {
		resource += "/" + r.ObjectRef.Subresource
	}
	return p.verb == r.Verb && p.group == r.ObjectRef.APIGroup && p.resource == resource &&
		(p.name == "" || p.name == r.ObjectRef.Name) && (p.namespace == "" || p.namespace == r.ObjectRef.Namespace)
}

// The daemon has every permission that it uses, and uses every permission that it has.
func TestChartPermissions(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		values, args []string
		ignore       bool
	}{
		"default": {},
		"all": {values: []string{"leaderElection.enabled=true", "ignoreOperationAnnotation=true"},
			args: []string{"--leader-elect", "--ignore-operation-annotation"}, ignore: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startChartSeed(t, test.values...)
			// The lifetime lets the certificate be renewed while the test runs.
			d := s.start("bucketwarden", append(test.args, "--webhook-address=127.0.0.1:0", "--webhook-cert-lifetime=10s")...)
			bucket := newName("permissions")
			s.bucket(bucket)
			shoot, namespace := newName("shoot--foo--p"), ""
			namespace, shoot = shoot, shoot+"--0a4f6f1c"
			must(t, s.Namespace(t.Context(), namespace))
			// An entry without its namespace succeeds too, so that this one surely has its secret.
			s.entry(shoot, bucket)
			if !test.ignore {
				must(t, s.Reconcile(t.Context(), entries, shoot, nil))
				s.await(entries, shoot, env.Healthy)
			}
			secret, err := s.Client.CoreV1().Secrets(env.GardenNamespace).Get(t.Context(), "entry-"+shoot, metav1.GetOptions{})
			must(t, err)
			secret.Data["endpoint"] = []byte(minio.Endpoint + "/")
			_, err = s.Client.CoreV1().Secrets(env.GardenNamespace).Update(t.Context(), secret, metav1.UpdateOptions{})
			must(t, err)
			if !test.ignore {
				must(t, s.Reconcile(t.Context(), entries, shoot, nil))
			}
			eventually(t, "the etcd-backup secret has the new endpoint", func(ctx context.Context) error {
				secret, err := s.Client.CoreV1().Secrets(namespace).Get(ctx, "etcd-backup", metav1.GetOptions{})
				if err == nil && string(secret.Data["endpoint"]) != minio.Endpoint+"/" {
					err = fmt.Errorf("it has %s", secret.Data["endpoint"])
				}
				return err
			})
			// A second event of the same kind is counted in the first.
			for drifts := range 2 {
				_, err := store.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{Bucket: &bucket,
					ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled}})
				must(t, err)
				eventually(t, "the policy is restored", func(ctx context.Context) error {
					got, err := d.Value(ctx, "bucketwarden_backupbucket_policy_drift_total", "bucket="+bucket)
					if err == nil && got != float64(drifts+1) {
						err = fmt.Errorf("restored %v times", got)
					}
					return err
				})
			}
			// An entry without backups has its Cluster looked at.
			eventually(t, "the backups were looked at", func(ctx context.Context) error {
				at, err := d.Value(ctx, "bucketwarden_backupentry_last_checked_timestamp_seconds", "entry="+shoot)
				if err == nil && at == 0 {
					err = errors.New("not yet")
				}
				return err
			})
			must(t, s.Delete(t.Context(), entries, shoot))
			s.awaitGone(entries, shoot)
			must(t, s.Delete(t.Context(), buckets, bucket))
			s.awaitGone(buckets, bucket)
			s.checkPermissions()
		})
	}
}

// checkPermissions waits until every permission of the chart was used, and checks that
// nothing else was asked for.
func (s *chartSeed) checkPermissions() {
	s.t.Helper()
	all := slices.Concat(permissions(s.clusterRole.Rules, ""), permissions(s.role.Rules, chartNamespace))
	eventually(s.t, "every permission was used", func(context.Context) error {
		unused := slices.Clone(all)
		for _, r := range s.requests("bucketwarden") {
			unused = slices.DeleteFunc(unused, func(p permission) bool { return p.covers(r) })
		}
		if len(unused) > 0 {
			return fmt.Errorf("not used: %v", unused)
		}
		return nil
	})
	for _, r := range s.requests("bucketwarden") {
		if r.ResponseStatus.Code == 403 {
			s.t.Errorf("forbidden: %s %+v", r.Verb, r.ObjectRef)
		}
		if r.ObjectRef.Resource != "" && !slices.ContainsFunc(all, func(p permission) bool { return p.covers(r) }) {
			s.t.Errorf("no rule for: %s %+v", r.Verb, r.ObjectRef)
		}
	}
}

// Without controllers it only asks what uses a bucket, and for what its certificate needs.
func TestChartPermissionsOfAdmissionAlone(t *testing.T) {
	t.Parallel()
	s := startChartSeed(t, "controllers=false")
	s.start("bucketwarden", "--controllers=false", "--webhook-address=127.0.0.1:0", "--webhook-cert-lifetime=10s")
	must(t, s.AwaitWebhook(t.Context(), timeout, "s3"))
	bucket := newName("permissions")
	must(t, s.Bucket(t.Context(), bucket, "s3", minio.Region, nil))
	must(t, s.Entry(t.Context(), "shoot--foo--p--0a4f6f1c", bucket, "s3", minio.Region))
	// Each a dry run, because where no webhook answers in time the write is let through.
	eventually(t, "the deletion of a bucket that is in use is denied", func(ctx context.Context) error {
		err := s.Dynamic.Resource(buckets).Delete(ctx, bucket, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
		if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "refers to it") {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	s.checkPermissions()
	var used []string
	for _, r := range s.requests("bucketwarden") {
		used = append(used, r.ObjectRef.Resource)
	}
	slices.Sort(used)
	mustEqual(t, "what the daemon asks for", slices.Compact(used), []string{"backupbuckets", "backupentries", "mutatingwebhookconfigurations", "secrets", "validatingwebhookconfigurations"})
}

// With evidence it may do what that needs, and no more.
func TestChartPermissionsOfEvidence(t *testing.T) {
	t.Parallel()
	s := startChartSeed(t, "evidence=true", "webhook.enabled=false", "admissionPolicy.enabled=false")
	d := s.start("bucketwarden", "--evidence", "--webhook-address=")
	bucket := newName("permissions")
	s.bucket(bucket)
	eventually(t, "there is evidence", func(ctx context.Context) error {
		at, err := d.Value(ctx, "bucketwarden_backupbucket_evidence_timestamp_seconds", "bucket="+bucket)
		if err == nil && at == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	must(t, d.Terminate(t.Context()))
	// What others did to the public keys is put right by the next one.
	maps := s.Client.CoreV1().ConfigMaps(chartNamespace)
	shown, err := maps.Get(t.Context(), "bucketwarden-evidence", metav1.GetOptions{})
	must(t, err)
	wanted := shown.Data["evidence.pub"]
	shown.Data["evidence.pub"] = "x"
	_, err = maps.Update(t.Context(), shown, metav1.UpdateOptions{})
	must(t, err)
	s.start("bucketwarden", "--evidence", "--webhook-address=")
	eventually(t, "the public key is shown again", func(ctx context.Context) error {
		shown, err := maps.Get(ctx, "bucketwarden-evidence", metav1.GetOptions{})
		if err == nil && shown.Data["evidence.pub"] != wanted {
			err = fmt.Errorf("there is %q", shown.Data["evidence.pub"])
		}
		return err
	})
	unused := slices.DeleteFunc(permissions(s.role.Rules, chartNamespace), func(p permission) bool {
		return slices.ContainsFunc(s.requests("bucketwarden"), p.covers)
	})
	for _, p := range unused {
		if text := fmt.Sprint(p); strings.Contains(text, "evidence") || strings.Contains(text, "configmaps") || strings.Contains(text, "secrets") {
			t.Errorf("not used: %s", text)
		}
	}
	for _, r := range s.requests("bucketwarden") {
		if r.ResponseStatus.Code == 403 {
			t.Errorf("forbidden: %s %+v", r.Verb, r.ObjectRef)
		}
	}
}
