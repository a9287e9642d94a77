// Package process runs other programs. It is the only place of phx that does,
// but for the command of phx-traefik that becomes Traefik below systemd, so
// that all of them have the same border: a session of their own, and with it no
// terminal to write to or type into; the environment that they are given and no
// other; and a limit on what they may print.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Limits on what a program may print. What it prints may come out of a
// container that was taken over: beyond a limit the program is ended, and that
// is an error.
const (
	MaxCapture = 64 << 10 // of stdout that is returned: a certificate, a token
	MaxList    = 1 << 20  // of stdout that is returned, where the program is Proxmox's own: pct list of 17 000 containers
	MaxStream  = 16 << 20 // of what is passed on line by line, stdout and stderr together
	keep       = 16 << 10 // of the end of stderr, for an error
)

// Command is a program and what it is given.
type Command struct {
	Argv   []string
	Env    []string  // the whole environment
	Stdin  io.Reader // nil: /dev/null, never the caller's
	Stdout io.Writer // nil: returned by Run
	Stderr io.Writer // gets a copy of stderr as it comes; may be nil

	// MaxStdout is how much stdout may be. 0 means [MaxCapture] for what is
	// returned, and [MaxStream], together with stderr, for what is passed on.
	MaxStdout int

	// Drain lets a program that has said too much, and was told to end for it,
	// write on into the void: one that must not die by SIGPIPE.
	Drain bool

	// Patience is how long a program that was told to end may go on, and how
	// long others that it has started may hold its streams. 0 means no limit.
	Patience time.Duration
}

// TooMuch is the error of a program that has printed more than it may.
type TooMuch struct {
	Stream string // "stdout", or "stdout and stderr"
	Limit  int    // in bytes
}

func (e *TooMuch) Error() string {
	limit := fmt.Sprintf("%d bytes", e.Limit)
	switch {
	case e.Limit >= 1<<20 && e.Limit%(1<<20) == 0:
		limit = fmt.Sprintf("%d MiB", e.Limit>>20)
	case e.Limit >= 1<<10 && e.Limit%(1<<10) == 0:
		limit = fmt.Sprintf("%d KiB", e.Limit>>10)
	}
	return fmt.Sprintf("it printed more than %s on %s, and was ended", limit, e.Stream)
}

// Run runs a program to its end and returns its stdout, unless c.Stdout takes
// that, and the end of its stderr. When ctx is cancelled, or the program says
// too much, it gets SIGTERM, with all of its process group, and is waited for;
// the error is then the cause.
func Run(ctx context.Context, c Command) (stdout, stderr []byte, err error) {
	for _, stream := range []any{c.Stdin, c.Stdout, c.Stderr} {
		if f, ok := stream.(*os.File); ok && isTerminal(f) {
			return nil, nil, fmt.Errorf("%s is a terminal, which a program is never given", f.Name())
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = c.Patience
	cmd.Env = append([]string{}, c.Env...) // nil would be that of this process
	cmd.Stdin = c.Stdin

	streamed := &budget{left: MaxStream, drain: c.Drain, over: func() { cancel(&TooMuch{"stdout and stderr", MaxStream}) }}
	captured := streamed
	if c.Stdout == nil || c.MaxStdout > 0 {
		limit := c.MaxStdout
		if limit == 0 {
			limit = MaxCapture
		}
		captured = &budget{left: limit, drain: c.Drain, over: func() { cancel(&TooMuch{"stdout", limit}) }}
	}
	var out bytes.Buffer
	var said tail
	switch to := c.Stdout.(type) {
	case nil:
		cmd.Stdout = &limited{&out, captured}
	case *os.File:
		cmd.Stdout = to // whoever reads the other end has limits of his own
	default:
		cmd.Stdout = &limited{to, captured}
	}
	cmd.Stderr = &limited{&said, streamed}
	if c.Stderr != nil {
		cmd.Stderr = &limited{io.MultiWriter(&said, c.Stderr), streamed}
	}

	err = cmd.Run()
	var tooMuch *TooMuch
	if errors.As(context.Cause(ctx), &tooMuch) || err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.Bytes(), said.b[max(0, len(said.b)-keep):], err
}

func isTerminal(f *os.File) bool {
	conn, err := f.SyscallConn() // Fd would make it block
	if err != nil {
		return false
	}
	terminal := false
	conn.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		terminal = err == nil
	})
	return terminal
}

// budget is how many bytes may still come.
type budget struct {
	mu    sync.Mutex
	left  int
	drain bool
	over  func()
}

var errOver = errors.New("more than may come")

// limited passes on to w what a budget allows.
type limited struct {
	w io.Writer
	*budget
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	fits := min(len(p), l.left)
	l.left -= fits
	l.mu.Unlock()
	if n, err := l.w.Write(p[:fits]); err != nil {
		return n, err
	}
	if fits == len(p) {
		return len(p), nil
	}
	l.over()
	if l.drain {
		return len(p), nil
	}
	return fits, errOver
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-keep):]...)
	if len(t.b) > 2*keep {
		t.b = append(t.b[:0], t.b[len(t.b)-keep:]...)
	}
	return len(p), nil
}
