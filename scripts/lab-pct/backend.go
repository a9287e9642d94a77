package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// backend is what holds the containers: LXC, or nothing but files for tests.
type backend interface {
	running(vmid int) bool
	pid(vmid int) int    // of the container's init, 0 if it does not run
	dir(vmid int) string // what belongs to the container beside its volumes
	writeConfig(conf *config) error
	start(conf *config) error
	stop(vmid int) error
	shutdown(vmid, timeout int) error // timeout in seconds
	freeze(vmid int, on bool) error
	exec(vmid int, keepEnv bool, argv []string) error
	push(vmid int, in io.Reader, dest string, o ownership) error
	pull(vmid int, path string, out io.Writer) error
	hotplug(conf *config, key, value string) error // value "": remove
	extract(archive, rootfs string) error
	credentials(rootfs, password, keysFile string) error
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
		return workerDie("command '%s' failed: exit code %d", strings.Join(append([]string{name}, args...), " "), exit.ExitCode())
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
	runtime.LockOSThread() // Pdeathsig is sent when the starting thread ends
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return die(255, "%v", err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, handled...)
	defer close(signals)
	defer signal.Stop(signals)
	go func() {
		for s := range signals {
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

// fakeBackend has no containers: one "runs" while a file says so.
type fakeBackend struct{ *lab }

func (b *fakeBackend) dir(vmid int) string {
	return filepath.Join(b.lab.dir, "lxc", strconv.Itoa(vmid))
}

func (b *fakeBackend) state(vmid int) string { return filepath.Join(b.dir(vmid), "running") }

func (b *fakeBackend) running(vmid int) bool {
	_, err := os.Stat(b.state(vmid))
	return err == nil
}

func (b *fakeBackend) pid(vmid int) int {
	if b.running(vmid) {
		return 1
	}
	return 0
}

func (b *fakeBackend) writeConfig(*config) error                { return nil }
func (b *fakeBackend) freeze(int, bool) error                   { return nil }
func (b *fakeBackend) hotplug(*config, string, string) error    { return nil }
func (b *fakeBackend) extract(string, string) error             { return nil }
func (b *fakeBackend) credentials(string, string, string) error { return nil }

func (b *fakeBackend) start(conf *config) error {
	for _, m := range conf.mounts() {
		if m.kind() == "bind" {
			if _, err := os.Stat(m.volume()); err != nil {
				return fmt.Errorf("mount: %s: special device %s does not exist", m.target(), m.volume())
			}
		}
	}
	root, err := b.rootfs(conf)
	if err != nil {
		return err
	}
	if err := configureGuest(root, conf); err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir(conf.vmid), 0o755); err != nil {
		return err
	}
	return os.WriteFile(b.state(conf.vmid), nil, 0o644)
}

func (b *fakeBackend) stop(vmid int) error { return os.Remove(b.state(vmid)) }

func (b *fakeBackend) shutdown(vmid, _ int) error { return b.stop(vmid) }

func (b *fakeBackend) exec(vmid int, keepEnv bool, argv []string) error {
	program := os.Getenv("PHX_LAB_EXEC")
	if program == "" {
		return nil
	}
	cmd := exec.Command(program, append([]string{strconv.Itoa(vmid)}, argv...)...)
	keep := "0"
	if keepEnv {
		keep = "1"
	}
	cmd.Env = append(os.Environ(), "PHX_LAB_KEEP_ENV="+keep)
	return b.child(cmd)
}

// inside opens a container's disk.
func (b *fakeBackend) inside(vmid int) (*os.Root, error) {
	conf, err := b.load(vmid)
	if err != nil {
		return nil, err
	}
	dir, err := b.rootfs(conf)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, workerDie("%v", err)
	}
	return root, nil
}

// relative is a path inside a container relative to its root.
func relative(path string) string {
	if p := strings.TrimLeft(path, "/"); p != "" {
		return p
	}
	return "."
}

func (b *fakeBackend) push(vmid int, in io.Reader, dest string, o ownership) error {
	root, err := b.inside(vmid)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.OpenFile(relative(dest), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return workerDie("failed to create file: %s: %s", dest, reason(err))
	}
	defer f.Close()
	if o.perms != "" {
		n, _ := strconv.ParseUint(o.perms, 8, 32)
		f.Chmod(fs.FileMode(n))
	}
	io.Copy(f, in) // pct does not look whether it worked
	return nil
}

func (b *fakeBackend) pull(vmid int, path string, out io.Writer) error {
	root, err := b.inside(vmid)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.Open(relative(path))
	if err != nil {
		return workerDie("failed to open %s: %s", path, reason(err))
	}
	defer f.Close()
	io.Copy(out, f)
	return nil
}
