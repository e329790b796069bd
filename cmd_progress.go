// How far a deep check is: a bar on a terminal, plain lines elsewhere, both on standard error.
//
// Rules:
//   - What was read and has to be read again is taken back.
//   - Nothing is drawn more often than a person can see.

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	progressInterval = 200 * time.Millisecond
	progressWidth    = 30
)

// readProgress is how much of the snapshots of an entry was read. Without cli it tells nobody.
type readProgress struct {
	cli   *cli
	what  string
	total int64
	done  atomic.Int64
	mu    sync.Mutex // of what is written
	stop  chan struct{}
	ended sync.WaitGroup
}

func (c *cli) newProgress(what string, total int64) *readProgress {
	p := &readProgress{cli: c, what: what, total: total, stop: make(chan struct{})}
	if c.terminal {
		p.ended.Go(p.draw)
	}
	return p
}

// draw draws the bar until the end, and then takes it away.
func (p *readProgress) draw() {
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	for {
		select {
		case <-p.stop:
			p.write("\r\x1b[K")
			return
		case <-ticker.C:
			p.write("\r\x1b[K" + p.bar())
		}
	}
}

func (p *readProgress) bar() string {
	done, share := p.done.Load(), 1.0
	if p.total > 0 {
		share = min(1, float64(done)/float64(p.total))
	}
	full := int(share * progressWidth)
	return fmt.Sprintf("[%s%s] %3.0f%%  %s of %s  %s", strings.Repeat("#", full), strings.Repeat(" ", progressWidth-full), 100*share,
		formatBytes(done), formatBytes(p.total), oneLine(p.what))
}

func (p *readProgress) write(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = io.WriteString(p.cli.errOut, text)
}

// checked tells of a snapshot that was read to its end.
func (p *readProgress) checked(s *snapshot, c content) {
	if p.cli == nil || p.cli.terminal {
		return
	}
	verdict := "intact"
	if c.problem != "" {
		verdict = "not intact"
	}
	p.write(fmt.Sprintf("%s: %s: %s, %s\n", p.what, oneLine(s.name), verdict, formatBytes(c.bytes)))
}

func (p *readProgress) end() {
	close(p.stop)
	p.ended.Wait()
}

// countedBody is the body of an object that counts what is read of it.
type countedBody struct {
	io.ReadCloser
	progress *readProgress
	read     int64
}

func (p *readProgress) open(ctx context.Context, store reader, s *snapshot) (*countedBody, error) {
	body, err := store.open(ctx, s.version())
	if err != nil {
		return nil, err
	}
	return &countedBody{ReadCloser: body, progress: p}, nil
}

// Read implements io.Reader.
func (b *countedBody) Read(buffer []byte) (int, error) {
	n, err := b.ReadCloser.Read(buffer)
	b.read += int64(n)
	b.progress.done.Add(int64(n))
	return n, err
}

// undo takes back what was read in vain.
func (b *countedBody) undo() {
	if b != nil {
		b.progress.done.Add(-b.read)
	}
}
