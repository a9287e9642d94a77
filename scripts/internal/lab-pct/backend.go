package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// backend is what holds the containers: LXC, or nothing but files for tests.
type backend interface {
	running(vmid int) bool
	pid(vmid int) int // of the container's init, 0 if it does not run
	uptime(vmid int) time.Duration
	dir(vmid int) string // what belongs to the container beside its volumes
	writeConfig(conf *config) error
	start(conf *config) error
	stop(vmid int) error
	shutdown(vmid, timeout int) error // timeout in seconds
	freeze(vmid int, on bool) error
	exec(vmid int, keepEnv bool, argv []string) error
	push(vmid int, in io.Reader, dest string, o ownership) error
	pull(vmid int, path string, out io.Writer) error
	bridgeMTU(name string) (int, error)
	hotplug(conf *config, key, value string) error // value "": remove
	extract(archive, rootfs string) error
	credentials(rootfs, password, keysFile string) error
	filter(ruleset string) error // of nftables, for all containers
}

// tool runs a program of the host for a worker: its output is the worker's, and an interrupt
// ends it.
func (l *lab) tool(name string, args ...string) error {
	cmd := exec.CommandContext(l.ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdout, cmd.Stderr = l.stdout, l.stdout
	err := cmd.Run()
	if l.ctx.Err() != nil {
		return errInterrupted
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return workerDie("command '%s' failed: exit code %d",
			strings.Join(append([]string{name}, args...), " "), exit.ExitCode())
	}
	if err != nil {
		return workerDie("%v", err)
	}
	return nil
}

// child runs a command that stands in this program's place: it has its standard streams, gets
// its signals, and its end is this program's end. The real pct replaces itself; here a parent
// stays behind to write the log, and takes the child with it when it is killed.
func (l *lab) child(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// The real pct loads a Perl module that has SIGPIPE ignored, which outlives its exec. For the fake, lxc-attach
	// does the same: a program in Go cannot tell what was ignored when it was started.
	signal.Ignore(syscall.SIGPIPE)
	runtime.LockOSThread() // Pdeathsig is sent when the starting thread ends
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return die(255, "%v", err)
	}
	go func() { // those that came before the command was there, too
		for s := range l.signals {
			cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			return innerStatus{128 + int(ws.Signal()), ws.Signal()}
		}
		return innerStatus{code: exit.ExitCode()}
	}
	if err != nil {
		return die(255, "%v", err)
	}
	return nil
}
