package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// Who has to make room: the source with the most connections pays, with what is worth least.
func TestFairListenerVictim(t *testing.T) {
	for name, test := range map[string]struct {
		// open are the connections as source and worth, in the order in which they became so.
		open []string
		came string
		want int
	}{
		"room":                                {open: []string{"a idle", "a idle"}, came: "a", want: -1},
		"the oldest idle one":                 {open: []string{"a idle", "a idle", "a active"}, came: "a", want: 0},
		"idle before handshakes":              {open: []string{"a new", "a active", "a idle"}, came: "a", want: 2},
		"handshakes before requests":          {open: []string{"a active", "a new", "a new"}, came: "a", want: 1},
		"the oldest request":                  {open: []string{"a active", "a active", "a active"}, came: "a", want: 0},
		"the source with the most":            {open: []string{"b idle", "a idle", "a idle"}, came: "c", want: 1},
		"its requests before others' idle":    {open: []string{"b idle", "a active", "a active"}, came: "b", want: 0},
		"a flood does not hurt another one":   {open: []string{"b idle", "a active", "a active"}, came: "a", want: 1},
		"nor does it hurt one that comes":     {open: []string{"a active", "a active", "a active"}, came: "b", want: 0},
		"many sources with one each":          {open: []string{"a active", "b new", "c idle"}, came: "d", want: 2},
		"one that was used again is not idle": {open: []string{"a active", "a idle", "b idle"}, came: "b", want: 1},
	} {
		l := newFairListener(nil, 3, nil)
		var open []*fairConn
		for _, text := range test.open {
			source, state, _ := strings.Cut(text, " ")
			c := &fairConn{Conn: &net.TCPConn{}, listener: l, source: source}
			if l.add(c) != nil {
				t.Fatalf("%s: no room for %s", name, text)
			}
			c.worth = map[string]worth{"idle": worthIdle, "new": worthNew, "active": worthActive}[state]
			open = append(open, c)
		}
		got := -1
		victim := l.add(&fairConn{Conn: &net.TCPConn{}, listener: l, source: test.came, worth: worthNew})
		for i, c := range open {
			if c == victim {
				got = i
			}
		}
		if got != test.want {
			t.Errorf("%s: connection %d has to go, want %d", name, got, test.want)
		}
	}
}

// listenerTestClient is a connection from an address of this machine.
type listenerTestClient struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func listenerTestDial(t *testing.T, from, to string) *listenerTestClient {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &listenerTestClient{Conn: conn, t: t, r: bufio.NewReader(conn)}
}

// get makes a request and keeps the connection.
func (c *listenerTestClient) get(path string) error {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return errors.Join(err, response.Body.Close())
}

// awaitEnd waits until the server has closed the connection.
func (c *listenerTestClient) awaitEnd() {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c.r); err != nil && !strings.Contains(err.Error(), "reset") {
		c.t.Error(err)
	}
}

// A server with limits, and how many of its connections are worth what.
func listenerTestServer(t *testing.T, limit int, handler http.Handler) (address string, has func(worth) int, evicted *atomic.Int64) {
	t.Helper()
	plain, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	evicted = &atomic.Int64{}
	l := newFairListener(plain, limit, func() { evicted.Add(1) })
	server := l.server(handler, nil, nil)
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { _ = server.Close(); served.Wait() })
	return fmt.Sprintf("127.0.0.1:%d", plain.Addr().(*net.TCPAddr).Port), func(of worth) int {
		l.mu.Lock()
		defer l.mu.Unlock()
		n := 0
		for c := range l.open {
			if c.worth == of {
				n++
			}
		}
		return n
	}, evicted
}

// Idle connections, and those that send their header slowly, make room for new ones; requests and other clients do not suffer.
func TestConnectionsMakeRoom(t *testing.T) {
	const limit = 8
	arrived, leave := make(chan struct{}, limit), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-leave
	})
	address, has, evicted := listenerTestServer(t, limit, mux)
	const attacker, other = "127.0.0.2", "127.0.0.3"

	// One request at work, one idle connection of another client, and all others taken.
	working := listenerTestDial(t, attacker, address)
	worked := make(chan error, 1)
	go func() { worked <- working.get("/slow") }()
	<-arrived
	kept := listenerTestDial(t, other, address)
	if err := kept.get("/"); err != nil {
		t.Fatal(err)
	}
	var idle []*listenerTestClient
	for i := range limit - 2 {
		c := listenerTestDial(t, attacker, address)
		if err := c.get("/"); err != nil {
			t.Fatal(err)
		}
		informersTestAwait(t, "idle", func() bool { return has(worthIdle) == i+2 })
		idle = append(idle, c)
	}

	// Each new one takes the place of the oldest.
	for _, c := range idle[:3] {
		if err := listenerTestDial(t, other, address).get("/"); err != nil {
			t.Fatal(err)
		}
		c.awaitEnd()
	}
	if err := kept.get("/"); err != nil {
		t.Errorf("the idle connection of a client that has fewer: %v", err)
	}
	close(leave)
	if err := <-worked; err != nil {
		t.Errorf("the request at work: %v", err)
	}
	if evicted.Load() != 3 {
		t.Errorf("%d connections were evicted", evicted.Load())
	}

	// Slow headers take no place from others either: they have to go before what has asked something.
	for range 3 * limit {
		c := listenerTestDial(t, attacker, address)
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost:")
	}
	informersTestAwait(t, "slow headers", func() bool { return evicted.Load() > 2*limit })
	if got := has(worthIdle) + has(worthNew) + has(worthActive); got > limit {
		t.Errorf("%d connections", got)
	}
	if err := listenerTestDial(t, other, address).get("/"); err != nil {
		t.Errorf("beside slow headers: %v", err)
	}
}

// All requests hang: a client that has few of them gets its turn, at the cost of who has the most.
func TestRequestsMakeRoomForOthers(t *testing.T) {
	const limit = 4
	arrived := make(chan struct{}, limit)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	address, _, _ := listenerTestServer(t, limit, mux)
	var slow []*listenerTestClient
	for range limit {
		c := listenerTestDial(t, "127.0.0.2", address)
		if _, err := io.WriteString(c, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-arrived
		slow = append(slow, c)
	}
	if err := listenerTestDial(t, "127.0.0.3", address).get("/"); err != nil {
		t.Error(err)
	}
	slow[0].awaitEnd()
}

// What serve gives each of the daemon's servers: limits of connections, of headers, and no HTTP/2.
func TestServe(t *testing.T) {
	crt, err := issueServingPair([]string{"localhost"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]*tls.Config{
		serverMetrics: nil,
		serverWebhook: {GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &crt.Certificate, nil }},
	} {
		t.Run(name, func(t *testing.T) {
			logger := ktesting.NewLogger(ktesting.NopTL{}, ktesting.NewConfig(ktesting.BufferLogs(true)))
			ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
			var servers sync.WaitGroup
			defer servers.Wait()
			defer stop()
			const limit = 16
			m := newMetrics()
			if err := serve(ctx, &servers, name, "127.0.0.1:0", http.NotFoundHandler(), config, limit, m); err != nil {
				t.Fatal(err)
			}
			match := regexp.MustCompile(`address="([^"]+)"`).FindStringSubmatch(logger.GetSink().(ktesting.Underlier).GetBuffer().String())
			dial := func() net.Conn {
				conn, err := net.Dial("tcp", match[1])
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
				if config == nil {
					return conn
				}
				encrypted := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
				if err := encrypted.Handshake(); err != nil {
					t.Fatal(err)
				}
				if protocol := encrypted.ConnectionState().NegotiatedProtocol; protocol != "http/1.1" {
					t.Errorf("speaks %q", protocol)
				}
				return encrypted
			}
			ask := func(conn net.Conn, header string) (int, error) {
				// The server answers before it has read a header that is too large.
				go func() { _, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nX: "+header+"\r\n\r\n") }()
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					return 0, err
				}
				return response.StatusCode, response.Body.Close()
			}
			for i := range 4 * limit {
				if status, err := ask(dial(), "x"); status != http.StatusNotFound || err != nil {
					t.Fatalf("connection %d: %d, %v", i, status, err)
				}
			}
			if evicted := queueTestSeries(t, m, "bucketwarden_connections_evicted_total", "server", name); evicted != 3*limit {
				t.Errorf("%v connections were evicted", evicted)
			}
			if status, err := ask(dial(), strings.Repeat("x", 2*maxHeaderBytes)); status != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("a large header: %d, %v", status, err)
			}
		})
	}
}
