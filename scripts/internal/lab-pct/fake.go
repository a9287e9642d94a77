package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// fakeBackend has no containers: one "runs" while proc/net/unix has its line.
type fakeBackend struct{ *lab }

func (b *fakeBackend) dir(vmid int) string {
	return filepath.Join(b.lab.dir, "lxc", strconv.Itoa(vmid))
}

// sockets is the file that shows the sockets at which LXC's monitors take commands, one for each
// container that runs.
func (b *fakeBackend) sockets() string { return filepath.Join(b.lab.dir, "proc/net/unix") }

func (b *fakeBackend) socket(vmid int) string { return "@" + b.dir(vmid) + "/command" }

func (b *fakeBackend) running(vmid int) bool {
	data, err := os.ReadFile(b.sockets())
	return err == nil && bytes.Contains(data, []byte(" "+b.socket(vmid)+"\n"))
}

// setRunning adds a container's socket, or removes it.
func (b *fakeBackend) setRunning(vmid int, on bool) error {
	if err := os.MkdirAll(filepath.Dir(b.sockets()), 0o755); err != nil {
		return err
	}
	lock, err := os.Open(filepath.Dir(b.sockets()))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	data, err := os.ReadFile(b.sockets())
	if errors.Is(err, fs.ErrNotExist) {
		data, err = []byte("Num       RefCount Protocol Flags    Type St Inode Path\n"), nil
	}
	if err != nil {
		return err
	}
	lines := slices.DeleteFunc(slices.Collect(strings.Lines(string(data))),
		func(line string) bool { return strings.HasSuffix(line, " "+b.socket(vmid)+"\n") })
	if on {
		lines = append(lines,
			fmt.Sprintf("%016x: 00000002 00000000 00010000 0001 01 %d %s\n", vmid, vmid, b.socket(vmid)))
	}
	slices.Sort(lines[1:]) // for tests that compare the states of two hosts
	return renameio.WriteFile(b.sockets(), []byte(strings.Join(lines, "")), 0o444)
}

func (b *fakeBackend) pid(vmid int) int {
	if b.running(vmid) {
		return 1
	}
	return 0
}

func (b *fakeBackend) uptime(vmid int) time.Duration {
	info, err := os.Stat(b.proc(vmid))
	if err != nil {
		return 0
	}
	return time.Since(info.ModTime())
}

func (b *fakeBackend) writeConfig(*config) error             { return nil }
func (b *fakeBackend) freeze(int, bool) error                { return nil }
func (b *fakeBackend) hotplug(*config, string, string) error { return nil }
func (b *fakeBackend) extract(string, string) error          { return nil }
func (b *fakeBackend) filter(string) error                   { return nil }

func (b *fakeBackend) credentials(rootfs, _, keysFile string) error {
	return authorizeKeys(rootfs, keysFile)
}
func (b *fakeBackend) bridgeMTU(string) (int, error) { return 9000, nil }

// checkCapabilities refuses what LXC refuses. A privileged container drops some by default.
func checkCapabilities(conf *config) error {
	drop, keep := conf.values["unprivileged"] != "1", false
	for _, r := range conf.raw {
		switch r.key {
		case "lxc.cap.drop":
			drop = r.value != ""
		case "lxc.cap.keep":
			keep = r.value != ""
		}
		if drop && keep {
			return errors.New("confile.c: Keeping and dropping capabilities are mutually exclusive")
		}
	}
	return nil
}

// checkScripts refuses what the script refuses that Proxmox has LXC run for every netN: it knows no
// other type than veth.
func checkScripts(conf *config) error {
	for _, n := range conf.nets() {
		kind, runs := "veth", true
		for _, r := range conf.raw {
			switch r.key {
			case fmt.Sprintf("lxc.net.%d.type", n.index):
				kind = r.value
			case fmt.Sprintf("lxc.net.%d.script.up", n.index):
				runs = false
			}
		}
		if kind != "veth" && runs {
			return fmt.Errorf("got unexpected argument (%s != veth)", kind)
		}
	}
	return nil
}

func (b *fakeBackend) start(conf *config) error {
	if err := checkCapabilities(conf); err != nil {
		return err
	}
	if err := checkScripts(conf); err != nil {
		return err
	}
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
	if err := b.process(conf.vmid); err != nil {
		return err
	}
	return b.setRunning(conf.vmid, true)
}

// proc is where the fake's processes are seen, as in /proc.
func (b *fakeBackend) proc(vmid int) string {
	return filepath.Join(b.lab.dir, "proc", strconv.Itoa(vmid))
}

// process shows the process with which LXC holds a container that has been started.
func (b *fakeBackend) process(vmid int) error {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return err
	}
	dir, self := b.proc(vmid), filepath.Join(b.lab.dir, "proc/self/ns")
	for _, ns := range []string{filepath.Join(dir, "ns"), self} {
		if err := os.MkdirAll(ns, 0o755); err != nil {
			return err
		}
		if err := os.Symlink("pid:[1]", filepath.Join(ns, "pid")); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	stat := fmt.Sprintf("%d (lxc-start) S%s %d\n", vmid, strings.Repeat(" 0", 18), boot.Nano()/1e7)
	if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644); err != nil {
		return err
	}
	line := fmt.Sprintf("/usr/bin/lxc-start\x00-F\x00-n\x00%d\x00", vmid)
	return os.WriteFile(filepath.Join(dir, "cmdline"), []byte(line), 0o644)
}

func (b *fakeBackend) stop(vmid int) error {
	os.RemoveAll(b.proc(vmid))
	return b.setRunning(vmid, false)
}

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
	err := b.child(cmd)
	var inner innerStatus
	if errors.As(err, &inner) && b.ctx.Err() == nil {
		return innerStatus{code: inner.code} // by a signal from inside, which ends lxc-attach with a status
	}
	return err
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
