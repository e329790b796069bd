// The servers of the daemon, and what one client can take of them. Whoever reaches a port may open connections and leave
// them alone, so their number, the size of a header and the time of each step are bounded.
//
// Rules:
//   - A new connection always comes in. If there are too many then, one of the source with the most goes: what has been idle
//     for longest, else the oldest that has not sent a request, else the oldest request.
//   - So a limit per source is a fair share and no number: API servers may all come through one address.
//   - HTTP/1.1 only. API servers speak nothing else to webhooks (kubernetes/kubernetes
//     staging/src/k8s.io/apiserver/pkg/util/webhook/client.go), and a connection cannot carry more than one request then.

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

const (
	// Names of the servers, as metric labels.
	serverMetrics = "metrics"
	serverHealth  = "health"
	serverWebhook = "webhook"

	// maxWebhookConnections and maxConnections bound their memory. API servers keep up to 25 idle ones each
	// (kubernetes/kubernetes staging/src/k8s.io/client-go/transport/cache.go); all else needs one or two.
	maxWebhookConnections = 256
	maxConnections        = 64

	// maxHeaderBytes: those of API servers, kubelets and Prometheus are below 1 KiB.
	maxHeaderBytes = 16 << 10

	// serveGrace is how long requests may take to finish when the daemon stops.
	serveGrace = 2 * time.Second
)

// serve listens at once and serves until ctx ends, with TLS if config is not nil; requests being answered then may finish.
// There are never more connections than the limit.
func serve(ctx context.Context, wg *sync.WaitGroup, name, address string, handler http.Handler, config *tls.Config, limit int,
	m *metrics) error {
	plain, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listening for %s on %s: %w", name, address, err)
	}
	listener := newFairListener(plain, limit, m.connectionsEvicted.WithLabelValues(name).Inc)
	logger := klog.FromContext(ctx)
	logger.Info("Serving "+name, "address", listener.Addr().String())
	// Every port scan ends a TLS handshake.
	server := listener.server(handler, config, slog.NewLogLogger(logr.ToSlogHandler(logger.V(2).WithValues("server", name)), slog.LevelInfo))
	wg.Go(func() {
		serve := server.Serve
		if config != nil {
			serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
		}
		if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
			logger.Error(err, "Server failed", "server", name)
		}
	})
	wg.Go(func() {
		<-ctx.Done()
		finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveGrace)
		defer cancel()
		if server.Shutdown(finish) != nil {
			_ = server.Close()
		}
	})
	return nil
}

// server serves the connections of the listener.
func (l *fairListener) server(handler http.Handler, config *tls.Config, errorLog *log.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: handler, TLSConfig: config, Protocols: &protocols, ConnState: l.setState, MaxHeaderBytes: maxHeaderBytes,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 60 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: errorLog,
	}
}

// fairListener has at most limit connections and gives each source its fair share of them. It is safe for concurrent use.
type fairListener struct {
	net.Listener
	limit int
	// onEvict is called for each connection that had to make room.
	onEvict func()

	mu sync.Mutex
	// open are all connections, sources how many of them each address has.
	open    map[*fairConn]struct{}
	sources map[string]int
	// tick orders what happens to connections.
	tick uint64
}

// fairConn is a connection of a fairListener, whose mu guards it.
type fairConn struct {
	net.Conn
	listener *fairListener
	source   string
	// worth says what is lost if it is closed, since when it is so.
	worth worth
	since uint64
}

// worth is what a connection is doing, from what goes first to what goes last.
type worth int

const (
	worthIdle worth = iota
	worthNew        // it shakes hands, or sends the header of its first request
	worthActive
)

func newFairListener(l net.Listener, limit int, onEvict func()) *fairListener {
	return &fairListener{Listener: l, limit: limit, onEvict: onEvict, open: map[*fairConn]struct{}{}, sources: map[string]int{}}
}

// Accept returns the next connection and makes room for it.
func (l *fairListener) Accept() (net.Conn, error) {
	plain, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &fairConn{Conn: plain, listener: l, source: sourceOf(plain.RemoteAddr()), worth: worthNew}
	if victim := l.add(c); victim != nil {
		l.onEvict()
		_ = victim.Close()
	}
	return c, nil
}

// sourceOf is the address of a client without its port.
func sourceOf(address net.Addr) string {
	host, _, err := net.SplitHostPort(address.String())
	if err != nil {
		return address.String()
	}
	return host
}

// add notes a connection and returns the one that has to make room for it and is to be closed, nil if none has.
func (l *fairListener) add(c *fairConn) (victim *fairConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tick++
	c.since = l.tick
	l.open[c] = struct{}{}
	l.sources[c.source]++
	if len(l.open) <= l.limit {
		return nil
	}
	for other := range l.open {
		if other != c && (victim == nil || l.before(other, victim) < 0) {
			victim = other
		}
	}
	l.drop(victim)
	return victim
}

// drop forgets a connection; mu is held.
func (l *fairListener) drop(c *fairConn) {
	if _, ok := l.open[c]; !ok {
		return
	}
	delete(l.open, c)
	if l.sources[c.source]--; l.sources[c.source] == 0 {
		delete(l.sources, c.source)
	}
}

// before is negative if a has to go before b.
func (l *fairListener) before(a, b *fairConn) int {
	return cmp.Or(cmp.Compare(l.sources[b.source], l.sources[a.source]), cmp.Compare(a.worth, b.worth), cmp.Compare(a.since, b.since))
}

// setState is an http.Server's ConnState.
func (l *fairListener) setState(conn net.Conn, state http.ConnState) {
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	c, ok := conn.(*fairConn)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch state {
	case http.StateActive:
		c.worth = worthActive
	case http.StateIdle:
		c.worth = worthIdle
	default:
		return
	}
	l.tick++
	c.since = l.tick
}

// Close closes the connection and forgets it.
func (c *fairConn) Close() error {
	c.listener.mu.Lock()
	c.listener.drop(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
