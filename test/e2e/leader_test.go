package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bucketwarden/test/env"
)

// Replicas take over from one that stops, is killed, or was frozen, and no two of them ever
// write to the same objects.
func TestLeaderElection(t *testing.T) {
	t.Parallel()
	s := startChartSeed(t)
	bucket := newName("leader")
	store.makeBucket(t, bucket, true)
	namespace := newName("shoot--foo--l")
	must(t, s.Namespace(t.Context(), namespace))

	var accounts []string
	start := func() *env.Daemon {
		account := fmt.Sprintf("replica-%d", len(accounts))
		accounts = append(accounts, account)
		_, err := s.Client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: account},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: chartNamespace, Name: account}},
		}, metav1.CreateOptions{})
		must(t, err)
		return s.start(account, "--leader-elect")
	}
	leads := func(d *env.Daemon) func(context.Context) error {
		return func(ctx context.Context) error {
			value, err := d.Value(ctx, "bucketwarden_leader")
			if err == nil && value != 1 {
				err = errors.New("it does not")
			}
			return err
		}
	}
	var entry string
	work := func() {
		t.Helper()
		if entry == "" {
			s.bucket(bucket)
			entry = namespace + "--0a4f6f1c"
			s.entry(entry, bucket)
		}
		for range 3 {
			must(t, s.Reconcile(t.Context(), buckets, bucket, nil))
			must(t, s.Reconcile(t.Context(), entries, entry, nil))
			s.await(buckets, bucket, env.Healthy)
			s.await(entries, entry, env.Healthy)
		}
	}
	takeOver := func(d *env.Daemon, from string, since time.Time) {
		t.Helper()
		eventually(t, "the other replica leads", leads(d))
		t.Logf("took over from one that %s after %.1f s", from, time.Since(since).Seconds())
		work()
	}

	first := start()
	eventually(t, "the first replica leads", leads(first))
	second := start()
	work()
	if err := leads(second)(t.Context()); err == nil {
		t.Fatal("both replicas lead")
	}

	since := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	must(t, first.Terminate(ctx))
	takeOver(second, "stopped", since)

	third := start()
	since = time.Now()
	second.Kill()
	takeOver(third, "was killed", since)

	fourth := start()
	// What it is at work on would be written when it wakes up.
	eventually(t, "the replica rests", func(ctx context.Context) error {
		busy, err := third.Value(ctx, "workqueue_unfinished_work_seconds")
		if err == nil && busy != 0 {
			err = errors.New("it works")
		}
		return err
	})
	since = time.Now()
	must(t, third.Pause())
	takeOver(fourth, "was frozen", since)
	must(t, third.Resume())
	ctx, cancel = context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if err := third.Wait(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the replica that woke up without its lease ended with %v", err)
	}
	work()

	// The lease is not what it protects, and events are nobody's state.
	var ended time.Time
	for i, account := range accounts {
		writes := slices.DeleteFunc(s.requests(account), func(r env.APIRequest) bool {
			return !slices.Contains([]string{"create", "update", "patch", "delete"}, r.Verb) || r.ResponseStatus.Code >= 300 ||
				r.ObjectRef.Resource == "leases" || r.ObjectRef.Resource == "events"
		})
		if len(writes) == 0 {
			t.Fatalf("%s has written nothing", account)
		}
		slices.SortFunc(writes, func(a, b env.APIRequest) int { return a.RequestReceivedTimestamp.Compare(b.RequestReceivedTimestamp) })
		if first := writes[0]; first.RequestReceivedTimestamp.Before(ended) {
			t.Errorf("%s wrote %s %+v at %s, before the last write of %s at %s", account, first.Verb, first.ObjectRef, first.RequestReceivedTimestamp, accounts[i-1], ended)
		}
		ended = writes[len(writes)-1].RequestReceivedTimestamp
	}
	s.await(entries, entry, env.Healthy)
}
