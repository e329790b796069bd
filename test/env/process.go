package env

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// starter runs functions on one OS thread that never ends. Linux delivers
// Pdeathsig when the thread that forked the child ends, not the process, and
// the Go runtime ends idle threads.
var starter = sync.OnceValue(func() chan<- func() {
	calls := make(chan func())
	go func() {
		runtime.LockOSThread()
		for call := range calls {
			call()
		}
	}()
	return calls
})

// Process is a child process that the kernel kills when this process ends,
// however it ends.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  logBuffer
	// done is closed when the process has ended; err is set before that.
	done chan struct{}
	err  error
}

// startProcess starts cmd and keeps what it writes to stderr; logTo gets a
// copy and may be nil.
func startProcess(name string, cmd *exec.Cmd, logTo io.Writer) (*Process, error) {
	p := &Process{name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stderr = &p.log
	if logTo != nil {
		cmd.Stderr = io.MultiWriter(&p.log, logTo)
	}
	// A process group of its own keeps Ctrl-C in a terminal from the children:
	// whoever started them stops them in order.
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig, cmd.SysProcAttr.Setpgid = syscall.SIGKILL, true
	started := make(chan error)
	starter() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log returns what the process has written to stderr so far.
func (p *Process) Log() string { return p.log.String() }

// Pause stops the process with SIGSTOP: it keeps its connections and answers
// nothing until Resume.
func (p *Process) Pause() error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	// The signal only asks: threads run on until the kernel has stopped them all.
	for {
		err := unix.Waitid(unix.P_PID, p.PID(), nil, unix.WSTOPPED, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("pausing %s: %w", p.name, err)
		}
		return nil
	}
}

// Resume ends Pause.
func (p *Process) Resume() error { return p.signal(syscall.SIGCONT) }

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	_ = p.signal(syscall.SIGKILL)
	<-p.done
}

// Terminate sends SIGTERM and waits until the process has ended; it returns
// nil if the process exited with status 0.
func (p *Process) Terminate(ctx context.Context) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// Wait waits until the process has ended by itself; it returns nil if it
// exited with status 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to end: %w\n%s", p.name, context.Cause(ctx), p.logTail())
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", p.name, p.err, p.logTail())
	}
	return nil
}

// RSS returns the resident memory of the process in bytes.
func (p *Process) RSS() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of %s: %w", p.name, err)
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, "VmRSS:"); found {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("parsing the memory of %s: %w", p.name, err)
			}
			return kib * 1024, nil
		}
	}
	return 0, fmt.Errorf("reading the memory of %s: process %d has ended", p.name, p.PID())
}

func (p *Process) signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %v to %s: %w", sig, p.name, err)
	}
	return nil
}

// logTail returns the end of the log, for an error message.
func (p *Process) logTail() string {
	const limit = 4096
	log := p.Log()
	return log[max(0, len(log)-limit):]
}

// waitStarted polls ready until it returns nil. It gives up when the process
// ends, when timeout has passed and when ctx is done.
func (p *Process) waitStarted(ctx context.Context, timeout time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.done:
			cancel(errEnded)
		case <-ctx.Done():
		}
	}()
	if err := Eventually(ctx, timeout, p.name+" is ready", ready); err != nil {
		return fmt.Errorf("%w\n%s", err, p.logTail())
	}
	return nil
}

// errEnded is the cause of a start that failed because the process ended.
var errEnded = errors.New("the process ended")

// logBuffer is a bytes.Buffer that can be read while it is written.
type logBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
