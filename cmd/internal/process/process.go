// Package process runs other programs. No other package of phx does, except
// that phx-traefik replaces itself by Traefik under systemd. So the same limits
// hold for all programs: each has a session of its own, and therefore no
// terminal; it gets only the environment that it is given; and there is a limit
// on what it may print and on how long it may take.
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

// Limits on what a program may print, in bytes. Its output may come from a
// compromised container: a program that exceeds a limit is ended, and Run
// returns [TooMuch].
const (
	MaxCapture = 64 << 10 // of stdout that is returned: a certificate, a token
	MaxList    = 1 << 20  // of the same, where the program is Proxmox's own: pct list of 17 000 containers
	MaxStream  = 16 << 20 // of what is passed on line by line, stdout and stderr together
	keep       = 16 << 10 // of the end of stderr, for an error
)

// Command is a program with its arguments, environment, streams and limits.
type Command struct {
	Argv   []string
	Env    []string  // the whole environment
	Stdin  io.Reader // nil: /dev/null, never the caller's
	Stdout io.Writer // nil: returned by Run
	Stderr io.Writer // gets a copy of stderr as it comes; may be nil

	// MaxStdout limits stdout, in bytes. 0 means [MaxCapture] for output that
	// Run returns, and [MaxStream], stderr included, for output to Stdout.
	MaxStdout int

	// Survive lets the program go on when this process is killed: its output
	// goes to files in memory, because pipes would break. It excludes Stdin,
	// Stdout and Stderr.
	Survive bool

	// NoKill means that the program gets SIGTERM only, never SIGKILL: for
	// programs that leave their work half done, and locked, when killed.
	NoKill bool

	// Timeout is how long the program may take. It must be positive.
	Timeout time.Duration

	// Patience is how long the program may go on after SIGTERM, and how long
	// its descendants may hold its streams after its end. It is at most
	// Timeout. 0 means the constant [Patience].
	Patience time.Duration
}

// Patience is how long a program may go on after SIGTERM, unless its [Command]
// says otherwise.
const Patience = 5 * time.Second

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

// TimedOut is the error of a program that has not ended in time.
type TimedOut struct{ Limit time.Duration }

func (e *TimedOut) Error() string { return fmt.Sprintf("not done after %s", e.Limit) }

// StillRuns is the error of a program that has not ended although it was to.
type StillRuns struct {
	Cause  error // why it was to end
	PID    int   // also its session and its process group
	NoKill bool  // it got no SIGKILL, because of [Command.NoKill]
}

func (e *StillRuns) Error() string {
	why := "is left alone, because it leaves its work half done, and locked, when it is killed"
	if !e.NoKill {
		why = "cannot be killed while it waits in the kernel, mostly for a storage that does not answer"
	}
	return fmt.Sprintf("%v, and process %d goes on: it %s: run phx again when it has ended; "+
		"see what it waits for with: ps -o pid,stat,wchan:20,args -s %[2]d --ppid %[2]d", e.Cause, e.PID, why)
}

func (e *StillRuns) Unwrap() error { return e.Cause }

// killPatience is how long a program may take to end after SIGKILL.
const killPatience = 5 * time.Second

// Run runs a program to its end and returns its stdout, unless that goes to
// c.Stdout, and the end of its stderr. When ctx is cancelled or the program
// exceeds a limit, its process group gets SIGTERM, and SIGKILL after c.Patience;
// the error is then the context's cause, [TooMuch], [TimedOut], or [StillRuns]
// when the program has not ended even so. A program that fails by itself is an
// [exec.ExitError], as with [exec.Cmd.Run].
func Run(ctx context.Context, c Command) (stdout, stderr []byte, err error) {
	if c.Timeout <= 0 {
		return nil, nil, fmt.Errorf("%s: a program without a time limit", c.Argv[0])
	}
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	if c.Patience == 0 {
		c.Patience = Patience
	}
	c.Patience = min(c.Patience, c.Timeout)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = append([]string{}, c.Env...) // nil would be that of this process
	s := &streams{}
	defer s.close()
	if err := s.connect(cmd, c, cancel); err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	defer time.AfterFunc(c.Timeout, func() { cancel(&TimedOut{c.Timeout}) }).Stop()
	copied := s.begin()

	// Not reaped before the last signal is sent: until then no other process or
	// group can get its id.
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() {
		for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		close(ended)
	}()

	var tick, patience <-chan time.Time
	if s.files != nil {
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		tick = ticker.C
	}
	isKilled := false
	for running, open, told := ended, copied, ctx.Done(); running != nil || open != nil; {
		select {
		case <-running:
			running = nil
			if patience == nil { // with others that hold its streams
				patience = time.After(c.Patience)
			}
		case <-open:
			open = nil
		case <-told:
			told = nil
			syscall.Kill(-pid, syscall.SIGTERM)
			syscall.Kill(-pid, syscall.SIGCONT) // it may have been stopped
			patience = time.After(c.Patience)
		case <-tick:
			s.measure()
		case <-patience:
			switch {
			case running == nil && (told != nil || c.NoKill || isKilled):
				s.cut()
			case !c.NoKill && !isKilled:
				isKilled = true
				syscall.Kill(-pid, syscall.SIGKILL)
				s.cut()
				patience = time.After(killPatience)
			default:
				go func() { <-ended; cmd.Wait() }()
				s.cut()
				<-copied
				stdout, stderr = s.printed()
				return stdout, stderr, &StillRuns{Cause: context.Cause(ctx), PID: pid, NoKill: c.NoKill}
			}
		}
	}

	s.measure()
	s.seal()
	err = cmd.Wait()
	var tooMuch *TooMuch
	if errors.As(context.Cause(ctx), &tooMuch) || err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	stdout, stderr = s.printed()
	return stdout, stderr, err
}

// streams are what a program reads and prints.
type streams struct {
	ours, theirs []*os.File // the ends of pipes
	copies       []func()
	out          bytes.Buffer
	said         tail
	files        []file // stdout and stderr, where they are files
}

// connect makes the streams of cmd. It calls cancel when a limit is exceeded.
func (s *streams) connect(cmd *exec.Cmd, c Command, cancel func(error)) error {
	for _, stream := range []any{c.Stdin, c.Stdout, c.Stderr} {
		if f, ok := stream.(*os.File); ok && isTerminal(f) {
			return fmt.Errorf("%s is a terminal, which a program is never given", f.Name())
		}
	}
	limit := c.MaxStdout
	if limit == 0 {
		limit = MaxCapture
	}
	if c.Survive {
		if c.Stdin != nil || c.Stdout != nil || c.Stderr != nil {
			return fmt.Errorf("%s: the streams of a program that is to survive end with this process", c.Argv[0])
		}
		for _, over := range []*TooMuch{{"stdout", limit}, {"stderr", MaxStream}} {
			f, err := newFile(over, cancel)
			if err != nil {
				return err
			}
			s.files = append(s.files, f)
		}
		cmd.Stdout, cmd.Stderr = s.files[0].File, s.files[1].File
		return nil
	}

	streamed := &budget{left: MaxStream, over: func() { cancel(&TooMuch{"stdout and stderr", MaxStream}) }}
	captured := streamed
	if c.Stdout == nil || c.MaxStdout > 0 {
		captured = &budget{left: limit, over: func() { cancel(&TooMuch{"stdout", limit}) }}
	}
	var err error
	switch to := c.Stdout.(type) {
	case nil:
		cmd.Stdout, err = s.reader(&limited{&s.out, captured})
	case *os.File:
		cmd.Stdout = to // its reader has limits of its own
	default:
		cmd.Stdout, err = s.reader(&limited{to, captured})
	}
	if err != nil {
		return err
	}
	var said io.Writer = &s.said
	if c.Stderr != nil {
		said = io.MultiWriter(said, c.Stderr)
	}
	if cmd.Stderr, err = s.reader(&limited{said, streamed}); err != nil {
		return err
	}
	switch from := c.Stdin.(type) {
	case nil, *os.File:
		cmd.Stdin = from
	default:
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		cmd.Stdin = r
		s.theirs, s.ours = append(s.theirs, r), append(s.ours, w)
		s.copies = append(s.copies, func() { io.Copy(w, from); w.Close() })
	}
	return nil
}

// reader returns the end of a pipe of which the other is copied to w.
func (s *streams) reader(w io.Writer) (*os.File, error) {
	r, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.theirs, s.ours = append(s.theirs, theirs), append(s.ours, r)
	s.copies = append(s.copies, func() { io.Copy(w, r); r.Close() })
	return theirs, nil
}

// begin starts copying from and to a started program. The channel is closed
// when all copying has ended.
func (s *streams) begin() <-chan struct{} {
	for _, f := range s.theirs {
		f.Close()
	}
	var work sync.WaitGroup
	for _, c := range s.copies {
		work.Go(c)
	}
	copied := make(chan struct{})
	go func() { work.Wait(); close(copied) }()
	return copied
}

// cut ends the copying, also when other processes hold the other ends.
func (s *streams) cut() {
	for _, f := range s.ours {
		f.SetDeadline(time.Unix(1, 0))
	}
}

func (s *streams) measure() {
	for _, f := range s.files {
		f.measure()
	}
}

func (s *streams) seal() {
	for _, f := range s.files {
		f.seal()
	}
}

// printed returns stdout, and the end of stderr.
func (s *streams) printed() (stdout, stderr []byte) {
	if s.files != nil {
		return s.files[0].head(), s.files[1].tail()
	}
	return s.out.Bytes(), s.said.b[max(0, len(s.said.b)-keep):]
}

func (s *streams) close() {
	for _, f := range append(s.ours, s.theirs...) {
		f.Close()
	}
	for _, f := range s.files {
		f.Close()
	}
}

// file is a file in memory, which a program prints to.
type file struct {
	*os.File
	limit  *TooMuch
	cancel func(error)
}

func newFile(limit *TooMuch, cancel func(error)) (file, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("phx", flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("phx", flags)
	}
	if err != nil {
		return file{}, os.NewSyscallError("memfd_create", err)
	}
	// A program that opens it again through /dev/stdout truncates it.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND); err != nil {
		unix.Close(fd)
		return file{}, os.NewSyscallError("fcntl", err)
	}
	return file{os.NewFile(uintptr(fd), limit.Stream), limit, cancel}, nil
}

// measure cancels the program when it has printed too much, and makes further
// writes fail.
func (f file) measure() {
	if f.size() > int64(f.limit.Limit) {
		f.seal()
		f.cancel(f.limit)
	}
}

// seal makes further writes fail.
func (f file) seal() { unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW) }

func (f file) size() int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

func (f file) head() []byte { return f.read(0, min(f.size(), int64(f.limit.Limit))) }

func (f file) tail() []byte {
	size := f.size()
	return f.read(max(0, size-keep), size)
}

func (f file) read(from, to int64) []byte {
	b := make([]byte, to-from)
	n, _ := f.ReadAt(b, from)
	return b[:n]
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

// budget is a number of bytes that one or more writers may still take.
type budget struct {
	mu   sync.Mutex
	left int
	over func()
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
