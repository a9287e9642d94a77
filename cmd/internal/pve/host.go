// Package pve is for what belongs to Proxmox VE: it runs pct and all other
// programs, and it alone reads and changes the files below Proxmox's root:
// containers' configuration with what phx records in it, firewalls, HA, locks.
//
// Every call of the real pct costs about half a second of Perl start-up, so
// whatever a file can tell is read from the file.
//
// It must not know phx's configuration, nor what a container should be: it is
// given settings, lines, rules and scripts.
package pve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/process"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// Host is a Proxmox VE host.
type Host struct {
	PCT     string // the pct program: a path, or a name to look up
	PVERoot string // usually /etc/pve
	PVEAM   string // the pveam program, which downloads archives; "" for pveam
	PVESM   string // the pvesm program, which knows how storages are; "" for pvesm
	PVELock string // where Proxmox VE locks its files; "" for /run/lock/lxc
	Proc    string // the host's processes; "" for /proc

	// Direct says that ways into containers go through lxc-attach, and that states
	// come from files: without pct, which does the same and takes half a second.
	Direct  bool
	LXCPath string // where LXC has its containers; "" for [DefaultLXCPath]

	// Preview, if set, gets each command instead of its being run, but for those
	// that only read, and each change of a file instead of its being made.
	Preview *Preview

	// Timeout is how long any command may take, the longest included. 0 means
	// [DefaultTimeout].
	Timeout time.Duration

	// Warn, if set, is told of what people should know and what is no failure: of
	// each line in which a command of Proxmox's own that changes something warns of
	// something, although it ended with status 0, and of what phx finds.
	Warn func(text string)

	// Begins, if set, is told that something begins that takes time: of a wait in
	// words, "waiting for …", and by "" of a command that does more than read, and of
	// the end of a wait. In a preview there is none of that.
	Begins func(wait string)
}

// DefaultTimeout is how long a command may take: a clone of a large disk, over
// a slow line.
const DefaultTimeout = time.Hour

// stateDir is the directory in which phx keeps what only root may read: the
// cluster file system gives nobody else access to what is below priv, and
// takes only plain files there.
func (h *Host) stateDir() string { return filepath.Join(h.PVERoot, "priv/phx") }

func (h *Host) lockDir() string { return cmp.Or(h.PVELock, "/run/lock/lxc") }

// ScratchFile is the place of a file for one command on a container, which only
// root may write.
func (h *Host) ScratchFile(ctid int, name string) string {
	return filepath.Join(h.lockDir(), fmt.Sprintf("phx-%d-%s", ctid, name))
}

// Command is one external command. Everything that phx runs on the host goes
// through [Host.Run].
type Command struct {
	Argv   []string
	Stdin  io.Reader // nil: /dev/null, never the caller's event stream; only for a guest, as the next two
	Stdout io.Writer // nil: returned by Run
	Stderr io.Writer // gets a copy of stderr as it comes; may be nil
	Env    []string  // added to the environment
	Label  string    // what to call the command in an error; "": its arguments
	Reads  bool      // it changes nothing

	// ctid and inner are the container and the command of an [Host.Exec].
	ctid  int
	inner []string

	// Guest says that what it prints may be the words of a container, or of
	// whoever wrote a script: they are quoted, and no hint is made of them.
	Guest bool

	// MaxStdout is how much stdout may be; 0: see [process.Command], but
	// [process.MaxList] for a command of Proxmox's own.
	MaxStdout int

	// Timeout is how long the command may take, where that differs from what
	// others of its kind may.
	Timeout time.Duration

	// Patience is how long a command that was told to end may go on. What runs
	// inside a container outlives its pct exec, and holds its pipes. 0 means
	// what others of its kind have.
	Patience time.Duration
}

// GuestTimeout is how long a command inside a container, or a feature's
// script, may take: it may have to install packages over a slow line, behind
// an update of the system that holds dpkg's lock.
const GuestTimeout = 30 * time.Minute

const (
	// readTimeout is for what only reads.
	readTimeout = 30 * time.Second

	// taskPatience is how long a task of Proxmox may take to end when it was
	// told to.
	taskPatience = 30 * time.Second
)

// taskTimeouts are limits of tasks that Proxmox itself limits. A lock is waited
// for 10 s. A shutdown gets 60 s from phx, lxc-stop 5 s more, and as long again
// for the container's monitor; systemd starts a container in 90 s or not at all,
// when its volumes are there. A change may have to allocate a volume.
var taskTimeouts = map[string]time.Duration{
	"reboot":   6 * time.Minute,
	"set":      5 * time.Minute,
	"shutdown": 3 * time.Minute,
	"start":    3 * time.Minute,
	"stop":     3 * time.Minute,
	"unlock":   time.Minute,
}

// timeout returns how long a command may take.
func (h *Host) timeout(c Command) time.Duration {
	kind := c.Timeout
	switch {
	case kind > 0:
	case c.Reads:
		kind = readTimeout
	case c.Guest:
		kind = GuestTimeout
	case c.Argv[0] == h.PCT && len(c.Argv) > 1:
		kind = taskTimeouts[c.Argv[1]]
	}
	if kind <= 0 {
		return h.limit()
	}
	return min(kind, h.limit())
}

// limit returns how long any command may take.
func (h *Host) limit() time.Duration {
	if h.Timeout <= 0 {
		return DefaultTimeout
	}
	return h.Timeout
}

// CommandError is a command that could not be run or did not end with status 0.
type CommandError struct {
	Label  string // the command as a person would type it
	Output string // what it printed: stdout, if captured, then stderr
	Guest  bool   // that are not Proxmox's words
	Err    error
}

// Error is one line, "command: reason", then the rest of what the command
// printed, and a hint where a way out is known. For the words of a guest,
// which may say anything, the reason is phx's own and they are quoted.
func (e *CommandError) Error() string {
	output := strings.TrimSpace(e.Output)
	if e.Guest {
		text := e.Label + ": " + e.Err.Error()
		if output != "" {
			text += "\n" + cmdline.Quoted(output)
		}
		return text
	}
	reason, rest := blame(output)
	var exit *exec.ExitError
	var refused *refusal
	if reason == "" || !errors.As(e.Err, &exit) && !errors.As(e.Err, &refused) {
		reason, rest = e.Err.Error(), nonEmpty(output)
	}
	text := append([]string{e.Label + ": " + reason}, rest...)
	if hint := hint(e.Label, output); hint != "" {
		text = append(text, "hint: "+hint)
	}
	return strings.Join(text, "\n")
}

func nonEmpty(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func (e *CommandError) Unwrap() error { return e.Err }

// How much of a command's output an error can carry.
const (
	keep        = 16 << 10
	keepOfGuest = 4 << 10
)

// Run runs a command to its end and returns its stdout, unless c.Stdout takes
// that. When ctx is cancelled, or the command goes beyond a limit, it gets
// SIGTERM. A command that changes something on the host is never killed, since a
// pct that is killed leaves its worker running and the container locked: when it
// does not end, Run leaves it alone, and the error says so. It does not end with
// phx either. The command runs in a session of its own: an interrupt from the
// terminal reaches it only that way, and what runs in a container has no
// terminal of the host to type into.
//
// Every external command goes through here, so that a preview cannot lie.
func (h *Host) Run(ctx context.Context, c Command) ([]byte, error) {
	stdout, _, err := h.run(ctx, c)
	return stdout, err
}

// run is [Host.Run], and returns stderr, too, of a command that ended with
// status 0.
func (h *Host) run(ctx context.Context, c Command) (_, _ []byte, err error) {
	if h.Preview != nil && !c.Reads {
		h.Preview.Commands = append(h.Preview.Commands, c.Argv)
		return nil, nil, nil
	}
	if !c.Reads {
		h.begins("")
	}
	argv := c.Argv
	if h.Direct && c.ctid != 0 {
		if argv, err = h.attach(c); err != nil {
			return nil, nil, h.commandError(c, nil, nil, err)
		}
	}
	limit := c.MaxStdout
	if limit == 0 && c.Stdout == nil && !c.Guest {
		limit = process.MaxList
	}
	task := !c.Guest && !c.Reads
	patience := c.Patience
	if patience == 0 && task {
		patience = taskPatience
	}
	stdout, stderr, err := process.Run(ctx, process.Command{
		Argv: argv, Env: append(environment(), c.Env...),
		Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr,
		MaxStdout: limit, Survive: !c.Guest, NoKill: task,
		Timeout: h.timeout(c), Patience: patience,
	})
	if err == nil {
		if h.Warn != nil && task {
			for _, line := range warnings(stdout, stderr) {
				h.Warn(line)
			}
		}
		return stdout, stderr, nil
	}
	return nil, nil, h.commandError(c, stdout, stderr, err)
}

// commandError returns the error of a command that has failed with err.
func (h *Host) commandError(c Command, stdout, stderr []byte, err error) error {
	if timedOut := (*process.TimedOut)(nil); errors.As(err, &timedOut) && timedOut.Limit == h.limit() {
		cause := fmt.Errorf("%w (--timeout or PHX_TIMEOUT gives it more)", timedOut)
		if still := (*process.StillRuns)(nil); errors.As(err, &still) {
			still.Cause = cause
		} else {
			err = cause
		}
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		wayOut := "run this on the Proxmox VE host"
		switch {
		case h.Direct && c.ctid != 0:
			wayOut += ", or have pct exec used: PHX_ATTACH=pct"
		case c.Argv[0] == h.PCT:
			wayOut += ", or name pct's place in PHX_PCT"
		}
		err = remedy.Errorf(wayOut, "%w", err)
	}
	label := c.Label
	if label == "" {
		label = remedy.Quote(append([]string{filepath.Base(c.Argv[0])}, c.Argv[1:]...))
	}
	room := keep
	if c.Guest {
		room = keepOfGuest
		if tooMuch := (*process.TooMuch)(nil); errors.As(err, &tooMuch) {
			stdout = nil // a flood explains nothing
		}
	}
	if refused := (*refusal)(nil); errors.As(err, &refused) {
		stderr = []byte(refused.said + "\n")
	}
	stderr = stderr[max(0, len(stderr)-room):]
	stdout = stdout[max(0, len(stdout)-(room-len(stderr))):]
	return &CommandError{Label: label, Output: string(stdout) + string(stderr), Guest: c.Guest, Err: err}
}

// maxWarnings is how many lines of warnings a command may have.
const maxWarnings = 20

// No name of a file in a container can make such a line: tar and rsync escape
// newlines in it.
var warningRE = regexp.MustCompile(`^(WARN: .+|Task finished with [0-9]+ warning\(s\)!|` +
	`explicitly configured lxc\.[a-z.]+ overrides the following settings: .+)$`)

// warnings returns the lines in which Proxmox warns of something, each once.
func warnings(outputs ...[]byte) []string {
	var found []string
	for _, output := range outputs {
		for line := range strings.Lines(string(output)) {
			line = strings.TrimSpace(line)
			if len(line) <= cmdline.MaxLogLine && warningRE.MatchString(line) && !slices.Contains(found, line) &&
				len(found) < maxWarnings {
				found = append(found, line)
			}
		}
	}
	return found
}

// environment returns the environment of every command: what a login as root
// on the host has, proxies, and phx's own variables. Anything else could
// change what pct, step, curl, Perl or a shell does.
func environment() []string {
	var env []string
	path := ""
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		switch name {
		case "PATH":
			path = value
			continue
		case "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR":
		default:
			if !environmentRE.MatchString(name) {
				continue
			}
		}
		env = append(env, variable)
	}
	dirs := nonEmpty(strings.ReplaceAll(path, ":", "\n"))
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if !slices.Contains(dirs, dir) { // cron's may lack pct's place
			dirs = append(dirs, dir)
		}
	}
	return append(env, "PATH="+strings.Join(dirs, ":"))
}

var environmentRE = regexp.MustCompile(`^(LC_[A-Z]+|(http|https|ftp|all|no)_proxy|` +
	`(HTTP|HTTPS|FTP|ALL|NO)_PROXY|(PHX|PHOENIX)_[A-Za-z0-9_]*)$`)

// pct runs pct with these arguments and returns its stdout. A later run
// knows it by its environment, also when phx has been killed.
func (h *Host) pct(ctx context.Context, args ...string) ([]byte, error) {
	return h.Run(ctx, h.pctCommand(args...))
}

func (h *Host) pctCommand(args ...string) Command {
	return Command{Argv: append([]string{h.PCT}, args...), Env: []string{h.mark()}}
}

// Exec returns the command that runs argv inside a container: as root, with
// an environment of PATH, TERM and container only, its exit status that of
// argv. Its stdin is /dev/null until the caller sets another.
//
// Its Argv, which errors and previews show, is that of pct exec, also where
// lxc-attach is run.
func (h *Host) Exec(ctid int, argv ...string) Command {
	return Command{
		Argv:  append([]string{h.PCT, "exec", "--keep-env", "0", strconv.Itoa(ctid), "--"}, argv...),
		Guest: true,
		ctid:  ctid, inner: argv,
	}
}

// List returns the state ("running", "stopped") of every container of the
// host, by CTID.
func (h *Host) List(ctx context.Context) (map[int]string, error) {
	if h.Direct {
		return h.lookAtAll()
	}
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

// GuestState returns the state of a guest of the host by the states of
// [Host.List], or by qm for one that is no container.
func (h *Host) GuestState(ctx context.Context, qm string, id int, states map[int]string) (string, error) {
	if state, isContainer := states[id]; isContainer {
		return state, nil
	}
	out, err := h.Run(ctx, Command{Argv: []string{qm, "status", strconv.Itoa(id)}, Reads: true})
	return parseStatus(out), err
}

// parseStatus reads what pct status and qm status print.
func parseStatus(out []byte) string {
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "status: ")
}
