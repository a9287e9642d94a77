// Pct is the lab's stand-in for the pct of Proxmox VE: the same sub-commands, options, messages,
// exit statuses and configuration files (pve-container 6.1), traps included, over plain LXC.
//
// Called as pvesm, it stands in for that, too, and is not in the log. Called as lxc-attach, it is
// that of the fake's containers. Called as pve-daemons, it stays, and does what Proxmox's daemons do.
//
// It lives in the directory $PHX_LAB_DIR (default /var/lib/phx-lab):
//
//	pve/lxc/ID.conf          configuration of container ID, as in /etc/pve/lxc
//	pve/firewall/ID.fw       its firewall file: copied by clone, removed by destroy; every call enforces all of them,
//	                         and so does pve-daemons
//	pve/firewall/cluster.fw  the firewall file of the datacenter: without "enable: 1" none is enforced
//	pve/nodes/NODE/qemu-server/ID.conf  virtual machines, whose IDs are taken
//	pve/priv/lock/NAME/      locks of the cluster: every call, and pve-daemons, removes those that are older than 120 s
//	pve/local                a link to nodes/NODE, where the node has another name than the host
//	pve/storage.cfg          storages "lab" (volumes) and "local" (templates)
//	pve/ha/resources.cfg     containers that are started and stopped by the stand-in for Proxmox's HA manager
//	pve/replication.cfg      jobs of replication: what they replicate is not destroyed
//	storage/lab/images/ID/   volumes, plain directories
//	storage/lab/snapshots/ID/SNAPSHOT/  their copies
//	lxc/ID/                  LXC's own directory of the container
//	lock/pve-config-ID.lock  held while a configuration is changed
//	lock/firewall.nft        the rules that are in force
//	log/pct.log              one line per call: time, exit status, milliseconds, arguments
//	log/attach.log           the same of the calls of lxc-attach (fake only)
//	proc/net/unix            fake only: a line for each container that runs, as in /proc/net/unix
//
// Further environment variables:
//
//	PHX_LAB_BACKEND   lxc (default: real containers; run it inside the lab's network namespace)
//	                  or fake (no containers at all, for tests)
//	PHX_LAB_EXEC      fake only: the program that stands for the inside of every container; exec
//	                  runs it as PROGRAM CTID COMMAND ARG…, with PHX_LAB_KEEP_ENV=0 or 1 added
//	PHX_LAB_DELAY     seconds that every call sleeps first, but for those of lxc-attach
//	PHX_LAB_FAIL      "start 103;exec 101 hang;clone 102 kill": these calls fail in the middle of their
//	                  work as if a tool had failed, hang there until a signal comes, or are killed there;
//	                  exec is lxc-attach, too
//	PHX_LAB_HA        which pct status or list, or look of pve-daemons, that finds an HA-managed container
//	                  in another state than it should have changes it first: 2 if unset, 0 for none
//	PHX_LAB_READONLY  1: every call that would change something ends with status 99
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// lab is what every sub-command works on.
type lab struct {
	dir     string
	node    string
	backend backend
	ctx     context.Context  // cancelled by a signal, which is its cause
	signals <-chan os.Signal // all that came
	stdout  io.Writer
	stderr  io.Writer
	warned  map[int][]byte // configurations whose bad lines were reported

	warnings int // that the task has given
}

// call is one run of a sub-command.
type call struct {
	*lab
	cmd   *command
	p     params
	extra []string
	vmid  int
}

// failure is an error with an exit status.
type failure struct {
	status int
	msg    string
}

func (e *failure) Error() string { return e.msg }

// die is an error found by pct itself. The statuses of the real one are Perl's: errno or 255.
func die(status int, format string, a ...any) error {
	return &failure{status, fmt.Sprintf(format, a...)}
}

// workerError is an error of the forked worker: status 255, or 0 for push, pull, resize and
// template, which do not report it.
type workerError struct{ msg string }

func (e *workerError) Error() string { return e.msg }

func workerDie(format string, a ...any) error { return &workerError{fmt.Sprintf(format, a...)} }

// inWorker turns an error into one of the worker.
func inWorker(err error) error {
	var f *failure
	if errors.As(err, &f) {
		return &workerError{f.msg}
	}
	return err
}

// outside turns an error of a worker into one of a call that has none.
func outside(err error) error {
	var w *workerError
	if errors.As(err, &w) {
		return die(255, "%s", w.msg)
	}
	return err
}

// nested runs another task from within one. Its output is this task's; its failure is only
// printed, and this task goes on.
func (c *call) nested(task func(*call) error) error {
	inner := *c
	inner.lab = &lab{dir: c.dir, node: c.node, backend: c.backend, ctx: c.ctx, stdout: c.stdout,
		stderr: c.stdout, warned: c.warned}
	err := task(&inner)
	if err == nil {
		inner.finish()
	}
	var w *workerError
	if errors.As(err, &w) {
		fmt.Fprintln(c.stdout, w.msg)
		return nil
	}
	return inWorker(err)
}

// innerStatus is the status of a command run inside the container. By signal, it is that of the
// signal's victim.
type innerStatus struct {
	code   int
	signal syscall.Signal
}

func (e innerStatus) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// errInterrupted is the end of a call by a signal. A worker reports it as its failure.
var errInterrupted = errors.New("received interrupt")

// calm lets cleaning up go on after an interrupt.
func (l *lab) calm() { l.ctx = context.WithoutCancel(l.ctx) }

// handled are the signals that end a call in an orderly way.
var handled = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT}

// signalled is the cause of a cancelled context.
type signalled struct{ syscall.Signal }

func (s signalled) Error() string { return s.String() }

// caught is the signal that cancelled the context.
func (l *lab) caught() syscall.Signal {
	var s signalled
	if errors.As(context.Cause(l.ctx), &s) {
		return s.Signal
	}
	return syscall.SIGTERM
}

// sleep waits unless the call is interrupted.
func (l *lab) sleep(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-l.ctx.Done():
		return errInterrupted
	}
}

func main() {
	start := time.Now()
	dir := os.Getenv("PHX_LAB_DIR")
	if dir == "" {
		dir = "/var/lib/phx-lab"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "pct:", err)
		os.Exit(255)
	}
	node, _ := os.Hostname()
	node, _, _ = strings.Cut(node, ".")
	if own, err := os.Readlink(filepath.Join(dir, "pve/local")); err == nil {
		node = filepath.Base(own)
	}

	ctx, cancel := context.WithCancelCause(context.Background())
	signals, passed := make(chan os.Signal, 1), make(chan os.Signal, 4)
	signal.Notify(signals, slices.DeleteFunc(slices.Clone(handled), signal.Ignored)...) // as below nohup
	go func() {
		for range 4 { // then pct loses its patience with its worker
			s := <-signals
			cancel(signalled{s.(syscall.Signal)})
			passed <- s
		}
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}()

	l := &lab{dir: dir, node: node, ctx: ctx, signals: passed, stdout: os.Stdout, stderr: os.Stderr,
		warned: make(map[int][]byte)}
	status := 255
	var inner innerStatus
	switch err := l.run(os.Args[1:]); {
	case err == nil:
		status = 0
	case errors.Is(err, errInterrupted):
		inner.signal = l.caught()
		status = 128 + int(inner.signal)
	case errors.As(err, &inner):
		status = inner.code
	default:
		var f *failure
		if errors.As(err, &f) {
			status = f.status
		}
		if msg := strings.TrimSuffix(err.Error(), "\n"); msg != "" {
			fmt.Fprintln(os.Stderr, msg)
		}
	}
	if err := l.log(start, status, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pct: writing the lab's log:", err)
	}
	switch inner.signal {
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGKILL: // the others would print a Go trace
		signal.Reset(inner.signal)
		syscall.Kill(os.Getpid(), inner.signal)
		time.Sleep(time.Second)
	}
	os.Exit(status)
}

// calledAs is the program that this one stands in for: pct, pvesm, lxc-attach or pve-daemons.
func calledAs() string {
	switch name := filepath.Base(os.Args[0]); name {
	case "pvesm", "lxc-attach", "pve-daemons":
		return name
	}
	return "pct"
}

// run runs one command line.
func (l *lab) run(args []string) error {
	if calledAs() == "lxc-attach" {
		return l.attach(args)
	}
	if s := os.Getenv("PHX_LAB_DELAY"); s != "" {
		seconds, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return die(255, "pct: PHX_LAB_DELAY=%s: want a number of seconds", s)
		}
		if err := l.sleep(time.Duration(seconds * float64(time.Second))); err != nil {
			return err
		}
	}
	if calledAs() == "pvesm" {
		return l.pvesm(args)
	}
	if err := l.setBackend(); err != nil {
		return err
	}
	if calledAs() == "pve-daemons" {
		return l.daemons()
	}
	if len(args) == 0 {
		return die(255, "%s", usageAll("no command specified"))
	}
	cmd := table().Commands[args[0]]
	if cmd == nil {
		if slices.Contains(absent, args[0]) {
			return die(255, "ERROR: 'pct %s' is not part of the lab", args[0])
		}
		return die(255, "%s", usageAll(fmt.Sprintf("unknown command 'pct %s'", args[0])))
	}
	p, extra, err := cmd.parse(args[1:])
	if err != nil {
		return err
	}
	c := &call{lab: l, cmd: cmd, p: p, extra: extra}
	c.vmid, _ = strconv.Atoi(p["vmid"])
	if os.Getenv("PHX_LAB_READONLY") == "1" && !slices.Contains(readOnly, cmd.name) {
		return die(99, "pct: refused by PHX_LAB_READONLY: pct %s", quote(args))
	}
	l.freeClusterLocks(staleAfter)
	if err := l.applyFirewall(); err != nil {
		return err
	}
	err = handlers[cmd.name](c)
	if cmd.name != "exec" && !slices.Contains(readOnly, cmd.name) {
		if loadErr := l.applyFirewall(); err == nil {
			err = loadErr
		}
	}
	if err == nil {
		l.finish()
	}
	var w *workerError
	switch {
	case errors.Is(err, errInterrupted) && cmd.Task:
		return workerDie("%v", err)
	case errors.As(err, &w) && !cmd.Task:
		return die(0, "%s", w.msg)
	}
	return err
}

func (l *lab) setBackend() error {
	switch b := os.Getenv("PHX_LAB_BACKEND"); b {
	case "", "lxc":
		l.backend = &lxcBackend{l}
	case "fake":
		l.backend = &fakeBackend{l}
	default:
		return die(255, "pct: PHX_LAB_BACKEND=%s: want lxc or fake", b)
	}
	return nil
}

// absent are the sub-commands of the real pct that the lab has no use for.
var absent = []string{
	"console", "cpusets", "df", "enter", "fsck", "fstrim", "help", "migrate", "mount", "move-volume", "move_volume",
	"pending", "remote-migrate", "rescan", "restore", "resume", "suspend", "unmount",
}

// readOnly are the sub-commands that change nothing.
var readOnly = []string{"config", "list", "listsnapshot", "status"}

var handlers = map[string]func(*call) error{
	"clone":        (*call).clone,
	"config":       (*call).config,
	"create":       (*call).create,
	"delsnapshot":  (*call).delsnapshot,
	"destroy":      (*call).destroy,
	"exec":         (*call).exec,
	"list":         (*call).list,
	"listsnapshot": (*call).listsnapshot,
	"pull":         (*call).pull,
	"push":         (*call).push,
	"reboot":       (*call).reboot,
	"resize":       (*call).resize,
	"rollback":     (*call).rollback,
	"set":          (*call).set,
	"shutdown":     (*call).shutdown,
	"snapshot":     (*call).snapshot,
	"start":        (*call).start,
	"status":       (*call).status,
	"stop":         (*call).stop,
	"template":     (*call).template,
	"unlock":       (*call).unlock,
}

// fault is the failure that PHX_LAB_FAIL asks for, if it names this call. A clone is named by
// its source or its target.
func (c *call) fault() error {
	for entry := range strings.SplitSeq(os.Getenv("PHX_LAB_FAIL"), ";") {
		f := strings.Fields(entry)
		if len(f) < 2 || f[0] != c.cmd.name || f[1] != c.p["vmid"] && f[1] != c.p["newid"] {
			continue
		}
		switch strings.Join(f[2:], " ") {
		case "":
			return workerDie("PHX_LAB_FAIL asks for this failure")
		case "kill":
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case "hang":
			<-c.ctx.Done()
			return errInterrupted
		default:
			return workerDie("pct: PHX_LAB_FAIL=%s: want COMMAND CTID [kill|hang]", entry)
		}
	}
	return nil
}

// log appends the line of a finished call.
func (l *lab) log(start time.Time, status int, args []string) error {
	name := map[string]string{"pct": "pct.log", "lxc-attach": "attach.log"}[calledAs()]
	if name == "" {
		return nil
	}
	path := filepath.Join(l.dir, "log", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "%s\t%d\t%d\t%s\n", start.Format(time.RFC3339), status,
		time.Since(start).Milliseconds(), quote(args))
	return err
}

// quote writes arguments so that a shell reads them back; a newline does not break the line.
func quote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		switch {
		case strings.ContainsAny(a, "\n\t\r"):
			r := strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\t", `\t`, "\r", `\r`)
			quoted[i] = "$'" + r.Replace(a) + "'"
		case compiled(`^[A-Za-z0-9_@%+=:,./-]+$`).MatchString(a):
			quoted[i] = a
		default:
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
