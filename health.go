// What the daemon tells of itself: bucketwarden_leader, /livez and /readyz. A daemon that cannot work says so: informers that
// hear nothing, an API server that refuses all passes, workers that hang. It goes on by itself when that is over. A store
// that is down, or an API server that restarts, is no such trouble.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
)

// healthInterval is how often the daemon looks whether it can work.
const healthInterval = 5 * time.Second

// deaf says that informers have heard nothing for too long, nil if not.
func (d *daemon) deaf(now time.Time) error {
	for _, feed := range d.feeds {
		if err := feed.deaf(now); err != nil {
			return err
		}
	}
	return nil
}

// hanging says that workers hang, which only a restart ends; nil if not.
func (d *daemon) hanging() error {
	if err := d.hung.Load(); err != nil {
		return *err
	}
	return nil
}

// trouble says why this daemon cannot work, nil if it can.
func (d *daemon) trouble(now time.Time) error {
	if err := cmp.Or(d.deaf(now), d.hanging()); err != nil {
		return err
	}
	for _, c := range d.allControllers() {
		if err := c.outcomes.refused(now); err != nil {
			return err
		}
	}
	return nil
}

// oversee looks after the work until ctx ends, for the first time before it returns what goes on with that. giveUp is called
// when another replica should try; it is nil if there is none.
func (d *daemon) oversee(ctx context.Context, giveUp func(error)) (goOn func()) {
	logger := klog.FromContext(ctx)
	var stalls [2]map[*controller]*stall
	for i := range stalls {
		stalls[i] = map[*controller]*stall{}
		for _, c := range d.allControllers() {
			stalls[i][c] = &stall{}
		}
	}
	var told string
	look := func(context.Context) {
		now := time.Now()
		var hung error // of the first that hangs
		for _, c := range d.allControllers() {
			hung = cmp.Or(hung, stalls[0][c].look(c.resource, c.queue.Len(), c.outcomes.taken.Load(), now))
			if c.stores != nil {
				hung = cmp.Or(hung, stalls[1][c].look(c.resource, c.stores.Len(), c.outcomes.storesTaken.Load(), now))
			}
		}
		if hung == nil {
			d.hung.Store(nil)
		} else {
			d.hung.Store(&hung)
		}
		trouble := d.trouble(now)
		switch {
		case trouble == nil && told != "":
			logger.Info("Works again")
			told = ""
		case trouble != nil && told == "":
			logger.Error(trouble, "Cannot work")
			told = trouble.Error()
		}
		d.metrics.leader.Set(1)
		if trouble != nil {
			d.metrics.leader.Set(0)
		}
		if deaf := d.deaf(now); deaf != nil && giveUp != nil {
			giveUp(deaf)
		}
	}
	look(ctx)
	return func() { wait.UntilWithContext(ctx, look, healthInterval) }
}

// notReady says why no traffic should come yet; a replica that waits for the lease is ready.
func (d *daemon) notReady() error {
	if d.certificate != nil {
		if err := d.certificate.ready(); err != nil {
			return err
		}
	}
	works := d.config.controllers && (!d.config.leaderElect || d.working.Load())
	switch {
	case d.stopping.Load():
		return errors.New("stopping")
	case works && !d.ready.Load():
		return errors.New("caches are not synced")
	default:
		return nil
	}
}

// healthHandler serves /livez, which fails only where a restart helps, and /readyz, which decides whether admission reviews come
// here: so a daemon that cannot work stays ready if it serves admission, and says in the answer what is wrong.
func (d *daemon) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		if err := d.hanging(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		err := d.notReady()
		var trouble error
		if d.ready.Load() {
			trouble = d.trouble(time.Now())
		}
		if d.webhook == nil {
			err = cmp.Or(err, trouble)
		}
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case trouble != nil:
			fmt.Fprintln(w, "ok for admission, but:", trouble)
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	if d.config.profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}
