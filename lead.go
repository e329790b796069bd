// The Leases: leadership with --leader-elect, and the heartbeat that Gardener reads.
//
// Rules:
//   - A replica takes the lease only once its informers have all that they need. So one that could not work does not take it,
//     and replicas none of which can work do not hand it around. One that waits while another works asks for the lease only.
//   - It works only while holding the lease, and releases it after the work has ended.
//   - If it hears nothing for deafAfter, it gives the lease up and the process ends: what it remembers is not true any more.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

const (
	// Heartbeat lease that gardenlet reads (gardener/gardener
	// extensions/pkg/controller/heartbeat); it is taken for dead after 5 minutes.
	heartbeatLease    = "gardener-extension-heartbeat"
	heartbeatInterval = 30 * time.Second

	// The lease of --leader-elect. A replica that cannot renew it for renewDeadline stops
	// working; nobody else can have it before leaseDuration has passed. A replica that waits
	// may see the last renewal 2.2 retryPeriods late, and look again as late as that, which
	// must stay below 20 s.
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = time.Second

	// hearInterval is how often a replica that could have the lease looks whether its informers are in sync.
	hearInterval = 250 * time.Millisecond
)

// errLeaseLost ends the daemon: whatever it still did could meet the new leader.
var errLeaseLost = errors.New("the lease was lost: another replica may be working now")

// lead waits for the lease and works while holding it. The lease is released only after
// the work has ended.
func (d *daemon) lead(ctx context.Context) error {
	hostname, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("finding an identity for the lease: %w", err)
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: d.config.namespace, Name: d.config.leaseName()},
		Client:     d.leases.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: hostname + "_" + string(uuid.NewUUID())},
	}
	holding, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	working, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	takes := &hearingLock{Interface: lock, hear: func(asked context.Context) error { return d.hear(ctx, asked) }}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          takes,
		Name:          d.config.leaseName(),
		LeaseDuration: leaseDuration,
		RenewDeadline: renewDeadline,
		RetryPeriod:   retryPeriod,
		// Not ReleaseOnCancel: it releases a lease that could not be renewed in time before
		// it ends the context of the work.
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				defer stop()
				d.work(working, leading, giveUp)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("preparing the leader election: %w", err)
	}
	takes.leads = elector.IsLeader
	// A process that was frozen wakes up as the leader that it no longer is, and may need
	// the whole renewDeadline to give up.
	leading := func() error {
		if !elector.IsLeader() || elector.Check(renewDeadline-leaseDuration) != nil {
			return errLeaseLost
		}
		return nil
	}
	for _, c := range d.allControllers() {
		c.leading = leading
	}
	d.metrics.facts.showWhile(leading)
	// Whoever waits has nothing to finish.
	defer context.AfterFunc(ctx, func() {
		if !elector.IsLeader() {
			stop()
		}
	})()
	elector.Run(holding)
	if holding.Err() == nil {
		return errLeaseLost
	}
	if err := releaseLease(context.WithoutCancel(ctx), lock); err != nil {
		klog.FromContext(ctx).Error(err, "Could not release the lease, another replica has to wait until it expires")
	}
	if ctx.Err() == nil && working.Err() != nil {
		return fmt.Errorf("gave the lease up, so that another replica may try: %w", context.Cause(working))
	}
	return nil
}

// hearingLock is a lease that is taken only by who hears from the API server. Renewing it takes no more than that.
type hearingLock struct {
	resourcelock.Interface
	leads func() bool
	hear  func(ctx context.Context) error
}

// Create takes a lease that does not exist.
func (l *hearingLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if err := l.hear(ctx); err != nil {
		return err
	}
	return l.Interface.Create(ctx, record)
}

// Update takes the lease as it was read, or renews it. If another replica takes it first, that is a conflict.
func (l *hearingLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if !l.leads() {
		if err := l.hear(ctx); err != nil {
			return err
		}
	}
	return l.Interface.Update(ctx, record)
}

// hear starts the informers, with all the time that ctx has, and waits until they hear from the API server; asked ends the wait.
func (d *daemon) hear(ctx, asked context.Context) error {
	d.listen(ctx)
	return wait.PollUntilContextCancel(asked, hearInterval, true, func(context.Context) (bool, error) {
		for i, feed := range d.feeds {
			if !d.synced[i]() || !feed.since().IsZero() {
				return false, nil
			}
		}
		return true, nil
	})
}

// releaseLease gives the lease back if this replica holds it.
func releaseLease(ctx context.Context, lock resourcelock.Interface) error {
	record, _, err := lock.Get(ctx)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading lease %s: %w", lock.Describe(), err)
	}
	if record.HolderIdentity != lock.Identity() {
		return nil
	}
	record.HolderIdentity, record.LeaseDurationSeconds = "", 1
	return wrapf(lock.Update(ctx, *record), "releasing lease %s", lock.Describe())
}

// beat renews the heartbeat until ctx ends, but not while the daemon cannot work.
func (d *daemon) beat(ctx context.Context) {
	wait.JitterUntilWithContext(ctx, func(ctx context.Context) {
		now := time.Now()
		if d.trouble(now) != nil {
			return
		}
		if err := renewHeartbeat(ctx, d.leases, d.config.namespace, now); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Could not renew the heartbeat")
		}
	}, heartbeatInterval*9/10, 0.1, true)
}

// renewHeartbeat tells gardenlet that this extension is alive.
func renewHeartbeat(ctx context.Context, client kubernetes.Interface, namespace string, now time.Time) error {
	leases := client.CoordinationV1().Leases(namespace)
	holder, seconds, renewed := programName, int32(heartbeatInterval.Seconds()), metav1.NewMicroTime(now)
	spec := coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &renewed}
	lease, err := leases.Get(ctx, heartbeatLease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: heartbeatLease, Namespace: namespace}, Spec: spec,
		}, metav1.CreateOptions{FieldManager: fieldManager})
		return wrapf(err, "creating lease %s/%s", namespace, heartbeatLease)
	}
	if err != nil {
		return fmt.Errorf("reading lease %s/%s: %w", namespace, heartbeatLease, err)
	}
	lease.Spec = spec
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{FieldManager: fieldManager})
	return wrapf(err, "renewing lease %s/%s", namespace, heartbeatLease)
}
