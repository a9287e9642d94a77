// Package pct drives the containers of a Proxmox VE host: it runs pct and the
// scripts that call it, and reads the files in which Proxmox keeps its
// containers' configuration.
//
// Every call of the real pct costs about half a second of Perl start-up, so
// whatever a file can tell is read from the file.
package pct

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Host is a Proxmox VE host.
type Host struct {
	PCT     string // the pct program: a path, or a name to look up
	PVERoot string // usually /etc/pve

	// Preview, if set, is told of each command instead of its being run, but
	// for those that only read.
	Preview func(Command)
}

// StateDir is the directory in which phx keeps what only root may read: the
// cluster file system gives nobody else access to what is below priv, and
// takes only plain files there.
func (h *Host) StateDir() string { return filepath.Join(h.PVERoot, "priv/phx") }

// Command is one external command. Everything that phx runs on the host goes
// through [Host.Run].
type Command struct {
	Argv   []string
	Stdin  io.Reader // nil: /dev/null, never the caller's event stream
	Stdout io.Writer // nil: returned by Run
	Stderr io.Writer // gets a copy of stderr as it comes; may be nil
	Env    []string  // added to the environment
	Label  string    // what to call the command in an error; "": its arguments
	Reads  bool      // it changes nothing

	// Patience is how long a command that was told to end may go on. What runs
	// inside a container outlives its pct exec, and holds its pipes. 0 stands
	// for ever, as pct's own tasks need it: they must not be killed.
	Patience time.Duration
}

// CommandError is a command that could not be run or did not end with status 0.
type CommandError struct {
	Label  string // the command as a person would type it
	Output string // what it printed: stdout, if captured, then stderr
	Err    error
}

// Error is one line, "command: last line of stderr", then the rest of what
// the command printed, and a hint where a way out is known.
func (e *CommandError) Error() string {
	lines := strings.Split(strings.TrimSpace(e.Output), "\n")
	last := lines[len(lines)-1]
	if last == "" {
		last = e.Err.Error()
	}
	text := append([]string{e.Label + ": " + last}, lines[:len(lines)-1]...)
	if hint := hint(e.Output); hint != "" {
		text = append(text, "hint: "+hint)
	}
	return strings.Join(text, "\n")
}

func (e *CommandError) Unwrap() error { return e.Err }

// keep is how much of a command's output an error can carry.
const keep = 16 << 10

// Run runs a command to its end and returns its stdout, unless c.Stdout takes
// that. When ctx is cancelled the command gets SIGTERM and is waited for: a
// pct that is killed leaves its worker running and the container locked.
// The command runs in a process group of its own, so that an interrupt from
// the terminal reaches it only that way.
//
// Every external command goes through here, so that a preview cannot lie.
func (h *Host) Run(ctx context.Context, c Command) ([]byte, error) {
	if h.Preview != nil && !c.Reads {
		h.Preview(c)
		return nil, nil
	}
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = c.Patience
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdin = c.Stdin
	var stdout bytes.Buffer
	var stderr tail
	cmd.Stdout = c.Stdout
	if c.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(&stderr, c.Stderr)
	}
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: run this on the Proxmox VE host", err)
		if c.Argv[0] == h.PCT {
			err = fmt.Errorf("%w, or name pct's place in PHX_PCT", err)
		}
	}
	label := c.Label
	if label == "" {
		label = Quote(append([]string{filepath.Base(c.Argv[0])}, c.Argv[1:]...))
	}
	output := stdout.Bytes()
	if len(output) > keep {
		output = output[len(output)-keep:]
	}
	return nil, &CommandError{label, string(output) + stderr.String(), err}
}

// Pct runs pct with these arguments and returns its stdout.
func (h *Host) Pct(ctx context.Context, args ...string) ([]byte, error) {
	return h.Run(ctx, Command{Argv: append([]string{h.PCT}, args...)})
}

// Exec returns the command that runs argv inside a container: as root, with
// an environment of PATH, TERM and container only, its exit status that of
// argv. Its stdin is /dev/null until the caller sets another.
func (h *Host) Exec(ctid int, argv ...string) Command {
	return Command{
		Argv:     append([]string{h.PCT, "exec", "--keep-env", "0", strconv.Itoa(ctid), "--"}, argv...),
		Patience: 5 * time.Second,
	}
}

// List returns the state ("running", "stopped") of every container of the
// host, by CTID.
func (h *Host) List(ctx context.Context) (map[int]string, error) {
	out, err := h.Run(ctx, Command{Argv: []string{h.PCT, "list"}, Reads: true})
	if err != nil {
		return nil, err
	}
	states := map[int]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] == "VMID" {
			continue
		}
		ctid, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, fmt.Errorf("pct list: unexpected line %q", strings.TrimSpace(line))
		}
		states[ctid] = fields[1]
	}
	return states, nil
}

// Quote joins the words of a command as a shell would read them.
func Quote(argv []string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:,./@%") != "" {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*keep {
		t.b = append(t.b[:0], t.b[len(t.b)-keep:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }
