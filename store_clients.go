// Clients of stores, kept between passes: once for all stores.
//
// Rules:
//   - A client is known by the content of its secret, of which only a hash is kept.
//   - At most maxClients are kept; the one that was not used for the longest time goes first.

package main

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
)

// maxClients bounds the clients of a kind of store.
const maxClients = 32

// clientKey identifies a client without keeping its secrets in one more place.
type clientKey [sha256.Size]byte

// newClientKey hashes what makes a client.
func newClientKey(parts ...string) clientKey {
	h := sha256.New()
	for _, part := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write([]byte(part))
	}
	return clientKey(h.Sum(nil))
}

// clientCache keeps clients. It is safe for concurrent use.
type clientCache[C any] struct {
	mu      sync.Mutex
	clients map[clientKey]*cachedClient[C]
	uses    uint64
	// evicted is called with a client that goes; it may be nil.
	evicted func(C)
}

type cachedClient[C any] struct {
	client  C
	lastUse uint64
}

// get returns the client of a key, which create makes if there is none.
func (c *clientCache[C]) get(key clientKey, create func() (C, error)) (C, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cached := c.clients[key]
	if cached == nil {
		client, err := create()
		if err != nil {
			return client, err
		}
		if len(c.clients) >= maxClients {
			c.evict()
		}
		if c.clients == nil {
			c.clients = map[clientKey]*cachedClient[C]{}
		}
		cached = &cachedClient[C]{client: client}
		c.clients[key] = cached
	}
	c.uses++
	cached.lastUse = c.uses
	return cached.client, nil
}

func (c *clientCache[C]) evict() {
	var oldest clientKey
	for key, cached := range c.clients {
		if c.clients[oldest] == nil || cached.lastUse < c.clients[oldest].lastUse {
			oldest = key
		}
	}
	if c.evicted != nil {
		c.evicted(c.clients[oldest].client)
	}
	delete(c.clients, oldest)
}
