package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// lxcBackend runs real containers. It has to run inside the network namespace of the lab, with
// the machine's cgroups and a sysfs of that namespace.
type lxcBackend struct{ *lab }

func (b *lxcBackend) path() string { return filepath.Join(b.lab.dir, "lxc") }

func (b *lxcBackend) dir(vmid int) string { return filepath.Join(b.path(), strconv.Itoa(vmid)) }

// lxc is the command line of one of LXC's programs.
func (b *lxcBackend) lxc(program string, vmid int, args ...string) []string {
	return append([]string{program, "-P", b.path(), "-n", strconv.Itoa(vmid)}, args...)
}

// running is what Proxmox has for it: a monitor that takes commands.
func (b *lxcBackend) running(vmid int) bool {
	sockets, err := os.ReadFile("/proc/net/unix")
	return err == nil && bytes.Contains(sockets, []byte(" @"+b.dir(vmid)+"/command\n"))
}

func (b *lxcBackend) pid(vmid int) int {
	if _, err := os.Stat(filepath.Join(b.dir(vmid), "config")); err != nil {
		return 0
	}
	argv := b.lxc("lxc-info", vmid, "-p", "-H")
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(out)))
	return max(pid, 0)
}

// uptime is how long the container's init has been running. The times of /proc/PID are those of
// the first look at it.
func (b *lxcBackend) uptime(vmid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.pid(vmid)))
	if err != nil {
		return 0
	}
	now, _ := os.ReadFile("/proc/uptime")
	// The name, which may hold blanks, ends with the last ")".
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	start, _ := strconv.ParseFloat(fields[19], 64) // in ticks, of which a second has 100
	total, _ := strconv.ParseFloat(strings.Fields(string(now) + " 0")[0], 64)
	return time.Duration((total - start/100) * float64(time.Second))
}

const idBase = 100000 // of unprivileged containers, as on Proxmox

// cgroupKey is the name under which LXC sets a limit here: in a hybrid hierarchy a controller
// belongs to one of the two versions, or is missing.
func cgroupKey(controller, v1, v2 string) string {
	if _, err := os.Stat("/sys/fs/cgroup/" + controller + "/cgroup.procs"); err == nil {
		return "lxc.cgroup." + v1
	}
	if data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil &&
		strings.Contains(" "+strings.TrimSpace(string(data))+" ", " "+controller+" ") {
		return "lxc.cgroup2." + v2
	}
	return ""
}

// writeConfig writes LXC's own configuration of a container.
func (b *lxcBackend) writeConfig(conf *config) error {
	var out bytes.Buffer
	line := func(key, format string, a ...any) {
		fmt.Fprintf(&out, "%s = "+format+"\n", append([]any{key}, a...)...)
	}
	line("lxc.include", "/usr/share/lxc/config/common.conf")
	mapped := slices.ContainsFunc(conf.raw, func(r rawLine) bool { return r.key == "lxc.idmap" })
	unprivileged := conf.values["unprivileged"] == "1" || mapped
	if unprivileged {
		line("lxc.include", "/usr/share/lxc/config/userns.conf")
		if !mapped {
			line("lxc.idmap", "u 0 %d 65536", idBase)
			line("lxc.idmap", "g 0 %d 65536", idBase)
		}
		line("lxc.rootfs.options", "idmap=container")
	}
	root, err := b.rootfs(conf)
	if err != nil {
		return err
	}
	line("lxc.rootfs.path", "dir:%s", root)
	line("lxc.apparmor.profile", "unconfined")
	line("lxc.mount.auto", "proc:mixed sys:mixed cgroup:mixed")
	short, _ := conf.hostname()
	line("lxc.uts.name", "%s", short)
	if n := conf.values["tty"]; n != "" {
		line("lxc.tty.max", "%s", n)
	}
	if init := conf.values["entrypoint"]; init != "" {
		line("lxc.init.cmd", "%s", init)
	}
	line("lxc.environment", "TERM=linux")
	for env := range strings.SplitSeq(conf.values["env"], "\x00") {
		if env != "" {
			line("lxc.environment", "%s", env)
		}
	}
	for _, n := range conf.nets() {
		if err := b.netLines(conf.vmid, n, line); err != nil {
			return err
		}
	}
	for _, m := range conf.mounts() {
		if m.key == "rootfs" {
			continue
		}
		source, options, err := b.mountSource(m, unprivileged)
		if err != nil {
			return err
		}
		kind := "dir"
		if fi, err := os.Stat(source); err == nil && !fi.IsDir() {
			kind = "file"
		}
		escape := strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`)
		line("lxc.mount.entry", "%s %s none %s,create=%s 0 0", escape.Replace(source),
			escape.Replace(relative(m.target())), options, kind)
	}
	b.limitLines(conf, line)
	for _, r := range conf.raw {
		line(r.key, "%s", r.value)
	}
	if err := os.MkdirAll(b.dir(conf.vmid), 0o755); err != nil {
		return die(255, "%v", err)
	}
	if err := renameio.WriteFile(filepath.Join(b.dir(conf.vmid), "config"), out.Bytes(), 0o644); err != nil {
		return die(255, "%v", err)
	}
	return nil
}

type lineFunc func(key, format string, a ...any)

func (b *lxcBackend) netLines(vmid int, n nic, line lineFunc) error {
	if err := checkVLANs(n.values); err != nil {
		return err
	}
	prefix := fmt.Sprintf("lxc.net.%d.", n.index)
	line(prefix+"type", "veth")
	line(prefix+"veth.pair", "veth%di%d", vmid, n.index)
	if bridge := n.values["bridge"]; bridge != "" {
		if err := checkBridge(bridge); err != nil {
			return err
		}
		line(prefix+"link", "%s", bridge)
	}
	if n.values["link_down"] != "1" {
		line(prefix+"flags", "up")
	}
	for _, f := range []struct{ key, lxc string }{{"name", "name"}, {"hwaddr", "hwaddr"}, {"mtu", "mtu"}} {
		if v := n.values[f.key]; v != "" {
			line(prefix+f.lxc, "%s", v)
		}
	}
	for _, f := range []struct{ ip, gw, lxc string }{{"ip", "gw", "ipv4"}, {"ip6", "gw6", "ipv6"}} {
		if v := n.values[f.ip]; strings.Contains(v, "/") {
			line(prefix+f.lxc+".address", "%s", v)
			if gw := n.values[f.gw]; gw != "" {
				line(prefix+f.lxc+".gateway", "%s", gw)
			}
		}
	}
	return nil
}

func (b *lxcBackend) bridgeMTU(name string) (int, error) {
	bridge, err := net.InterfaceByName(name)
	if err != nil {
		return 0, die(2, "bridge '%s' does not exist", name)
	}
	return bridge.MTU, nil
}

// checkVLANs refuses what the bridges of the lab cannot do: without it, an interface would be in
// another network than was meant.
func checkVLANs(net map[string]string) error {
	if net["tag"] != "" || net["trunks"] != "" {
		return die(255, "lab: tag and trunks of an interface are not part of the lab")
	}
	return nil
}

func checkBridge(name string) error {
	if _, err := net.InterfaceByName(name); err != nil {
		return die(2, "bridge '%s' does not exist", name)
	}
	return nil
}

// mountSource is what to mount for a mount point, and how.
func (b *lxcBackend) mountSource(m mount, unprivileged bool) (source, options string, err error) {
	source, options = m.volume(), "rbind"
	if m.kind() == "volume" {
		v, err := b.volume(m.volume())
		if err != nil {
			return "", "", err
		}
		source, options = v.dir(), "bind"
		if unprivileged {
			options += ",idmap=container"
		}
	}
	if m.values["ro"] == "1" {
		options += ",ro"
	}
	for o := range strings.SplitSeq(m.values["mountoptions"], ";") {
		if o != "" && o != "discard" {
			options += "," + o
		}
	}
	return source, options, nil
}

func (b *lxcBackend) limitLines(conf *config, line lineFunc) {
	mib := func(key string) int64 {
		n, _ := strconv.ParseInt(conf.values[key], 10, 64)
		return n << 20
	}
	if n := mib("memory"); n > 0 {
		if key := cgroupKey("memory", "memory.limit_in_bytes", "memory.max"); key != "" {
			line(key, "%d", n)
		}
	}
	if n, _ := strconv.Atoi(conf.values["cores"]); n > 0 && n < runtime.NumCPU() {
		if key := cgroupKey("cpuset", "cpuset.cpus", "cpuset.cpus"); key != "" {
			line(key, "0-%d", n-1)
		}
	}
	if f, _ := strconv.ParseFloat(conf.values["cpulimit"], 64); f > 0 {
		switch key := cgroupKey("cpu", "cpu.cfs_quota_us", "cpu.max"); key {
		case "":
		case "lxc.cgroup2.cpu.max":
			line(key, "%.0f 100000", f*100000)
		default:
			line(key, "%.0f", f*100000)
		}
	}
	if v := conf.values["cpuunits"]; v != "" {
		if key := cgroupKey("cpu", "cpu.shares", "cpu.weight"); key != "" {
			line(key, "%s", v)
		}
	}
}

func (b *lxcBackend) start(conf *config) error {
	if err := checkScripts(conf); err != nil {
		return err
	}
	root, err := b.rootfs(conf)
	if err != nil {
		return err
	}
	if err := configureGuest(root, conf); err != nil {
		return err
	}
	for _, m := range conf.mounts() {
		if m.kind() == "volume" {
			continue
		}
		if _, err := os.Stat(m.volume()); err != nil {
			return fmt.Errorf("mount: %s: special device %s does not exist", m.target(), m.volume())
		}
	}
	logfile := filepath.Join(b.dir(conf.vmid), "start.log")
	if err := os.WriteFile(logfile, nil, 0o644); err != nil {
		return err
	}
	level := "ERROR"
	if conf.values["debug"] == "1" {
		level = "DEBUG"
	}
	// The container's monitor lives on as a daemon: it gets none of the caller's streams, and -C
	// closes whatever else was open. PATH hides newuidmap: without it LXC, being root, writes
	// the ID map itself and needs no entry for it in /etc/subuid.
	argv := b.lxc("lxc-start", conf.vmid, "-d", "-C", "-o", logfile, "-l", level)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	started := make(chan error, 1)
	go func() { started <- cmd.Wait() }()
	select {
	case err = <-started:
	case <-b.ctx.Done(): // as with Proxmox, where systemd starts it, it goes on
		return errInterrupted
	}
	if err == nil {
		return b.awaitInit(conf.vmid)
	}
	if text, err := os.ReadFile(logfile); err == nil {
		b.stdout.Write(text)
	}
	return err
}

// awaitInit waits until a container's init is at work. To LXC a container runs as soon as its
// init is executed, which systemd may end at once: without a free inotify instance, say.
func (b *lxcBackend) awaitInit(vmid int) error {
	pid := b.pid(vmid)
	for deadline := time.Now().Add(lockTimeout); time.Now().Before(deadline); {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || !b.running(vmid) {
			if fd, err := unix.InotifyInit(); err != nil {
				return errors.New("its init ended: no inotify instance is left: " +
					"raise the sysctl fs.inotify.max_user_instances")
			} else {
				unix.Close(fd)
			}
			return errors.New("its init ended")
		}
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		switch {
		case string(comm) == "lxc-start\n": // not yet executed
		case filepath.Base(exe) != "systemd", bytes.Contains(cgroup, []byte("/init.scope\n")):
			return nil // systemd moves itself there when it has all that it cannot do without
		}
		if err := b.sleep(10 * time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func (b *lxcBackend) stop(vmid int) error {
	argv := b.lxc("lxc-stop", vmid, "--kill")
	if err := b.tool(argv[0], argv[1:]...); err != nil {
		return err
	}
	return b.waitStopped(vmid)
}

// waitStopped waits, as Proxmox does, for the end of the monitor.
func (b *lxcBackend) waitStopped(vmid int) error {
	for deadline := time.Now().Add(lockTimeout); b.running(vmid); {
		if time.Now().After(deadline) {
			return workerDie("container did not stop")
		}
		if err := b.sleep(10 * time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func (b *lxcBackend) shutdown(vmid, timeout int) error {
	argv := b.lxc("lxc-stop", vmid, "--nokill", "--timeout", strconv.Itoa(timeout))
	if err := b.tool(argv[0], argv[1:]...); err != nil {
		if errors.Is(err, errInterrupted) {
			return err
		}
		return fmt.Errorf("command 'lxc-stop -n %d --nokill --timeout %d' failed: exit code 1", vmid, timeout)
	}
	return b.waitStopped(vmid)
}

func (b *lxcBackend) freeze(vmid int, on bool) error {
	program := "lxc-unfreeze"
	if on {
		program = "lxc-freeze"
	}
	argv := b.lxc(program, vmid)
	return b.tool(argv[0], argv[1:]...)
}

func (b *lxcBackend) exec(vmid int, keepEnv bool, command []string) error {
	env := "--clear-env"
	if keepEnv {
		env = "--keep-env"
	}
	argv := b.lxc("lxc-attach", vmid, append([]string{env, "--"}, command...)...)
	cmd := exec.Command(argv[0], argv[1:]...)
	// pct runs with a PATH of its own, which is what a kept environment hands on.
	cmd.Env = []string{"PATH=/sbin:/bin:/usr/sbin:/usr/bin"}
	for _, e := range os.Environ() {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "PATH", "SSL_CERT_FILE", "SSL_CERT_DIR":
		default:
			cmd.Env = append(cmd.Env, e)
		}
	}
	return b.child(cmd)
}

// inside runs a shell script in the container: its streams are the given ones, its messages
// come back as the error.
func (b *lxcBackend) inside(vmid int, in io.Reader, out io.Writer, script string, args ...string) error {
	argv := b.lxc("lxc-attach", vmid, append([]string{"--clear-env", "--", "/bin/sh", "-c", "cd /; " + script, "sh"},
		args...)...)
	cmd := exec.CommandContext(b.ctx, argv[0], argv[1:]...)
	var msg bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &msg
	if err := cmd.Run(); err != nil {
		if b.ctx.Err() != nil {
			return errInterrupted
		}
		return workerDie("%s", strings.TrimSpace(msg.String()))
	}
	return nil
}

// pushScript writes its input to a file. Whether writing worked is not looked at, as in pct.
const pushScript = `
f=$1
fail() { echo "failed to create file: $f: $1" >&2; exit 1; }
[ ! -d "$f" ] || fail 'Is a directory'
[ -d "$(dirname "$f")" ] || fail 'No such file or directory'
umask "$5"
{ : >"$f"; } 2>/dev/null || fail 'Permission denied'
[ -z "$2" ] || chmod "$2" "$f"
[ -z "$3" ] || chown "$3" "$f" || exit 1
[ -z "$4" ] || chgrp "$4" "$f" || exit 1
cat >"$f" 2>/dev/null || :
`

func (b *lxcBackend) push(vmid int, in io.Reader, dest string, o ownership) error {
	if f, ok := in.(*os.File); ok {
		if fi, err := f.Stat(); err == nil && fi.IsDir() {
			in = strings.NewReader("")
		}
	}
	umask := unix.Umask(0)
	unix.Umask(umask)
	return b.inside(vmid, in, io.Discard, pushScript, dest, o.perms, o.uid, o.gid, fmt.Sprintf("%04o", umask))
}

const pullScript = `
fail() { echo "failed to open $1: $2" >&2; exit 1; }
[ -e "$1" ] || fail "$1" 'No such file or directory'
[ -r "$1" ] || fail "$1" 'Permission denied'
cat <"$1" 2>/dev/null || :
`

func (b *lxcBackend) pull(vmid int, path string, out io.Writer) error {
	return b.inside(vmid, nil, out, pullScript, path)
}

func (b *lxcBackend) extract(archive, rootfs string) error {
	return b.tool("tar", "--numeric-owner", "--totals", "-C", rootfs, "-xpf", archive)
}

func (b *lxcBackend) credentials(rootfs, password, keysFile string) error {
	if password != "" {
		cmd := exec.CommandContext(b.ctx, "chpasswd", "-R", rootfs)
		cmd.Stdin = strings.NewReader("root:" + password + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return workerDie("setting the password: %s", bytes.TrimSpace(out))
		}
	}
	return authorizeKeys(rootfs, keysFile)
}

func (b *lxcBackend) filter(ruleset string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(ruleset)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

// hotplug changes a running container.
func (b *lxcBackend) hotplug(conf *config, key, value string) error {
	switch {
	case strings.HasPrefix(key, "net"):
		return b.hotplugNet(conf, key, value)
	case strings.HasPrefix(key, "mp"):
		return b.hotplugMount(conf, key, value)
	}
	var name string
	switch key {
	case "memory":
		name = cgroupKey("memory", "memory.limit_in_bytes", "memory.max")
		n, _ := strconv.ParseInt(value, 10, 64)
		value = strconv.FormatInt(n<<20, 10)
	case "cpulimit":
		name = cgroupKey("cpu", "cpu.cfs_quota_us", "cpu.max")
		f, _ := strconv.ParseFloat(value, 64)
		switch n := int64(f * 100000); {
		case n > 0:
			value = strconv.FormatInt(n, 10)
		case strings.HasSuffix(name, "cpu.max"):
			value = "max"
		default:
			value = "-1"
		}
	case "cpuunits":
		name = cgroupKey("cpu", "cpu.shares", "cpu.weight")
		if value == "" {
			value = map[bool]string{true: "100", false: "1024"}[strings.HasPrefix(name, "lxc.cgroup2.")]
		}
	}
	name = strings.TrimPrefix(strings.TrimPrefix(name, "lxc.cgroup2."), "lxc.cgroup.")
	if name == "" {
		return nil
	}
	argv := b.lxc("lxc-cgroup", conf.vmid, name, value)
	return b.tool(argv[0], argv[1:]...)
}

func (b *lxcBackend) hotplugNet(conf *config, key, value string) error {
	pid := strconv.Itoa(b.pid(conf.vmid))
	pair := fmt.Sprintf("veth%di%s", conf.vmid, strings.TrimPrefix(key, "net"))
	if value == "" {
		return b.tool("ip", "link", "del", pair)
	}
	n, err := parseProperties("net", key, value)
	if err != nil {
		return err
	}
	if err := checkVLANs(n); err != nil {
		return err
	}
	if err := checkBridge(n["bridge"]); err != nil {
		return err
	}
	inside := func(args ...string) error {
		return b.tool("nsenter", append([]string{"--net=/proc/" + pid + "/ns/net", "ip"}, args...)...)
	}
	old, err := parseProperties("net", key, conf.values[key])
	if err != nil || old["hwaddr"] != n["hwaddr"] || old["name"] != n["name"] {
		if _, err := net.InterfaceByName(pair); err == nil {
			if err := b.tool("ip", "link", "del", pair); err != nil {
				return err
			}
		}
		if err := b.tool("ip", "link", "add", pair, "type", "veth", "peer", "name", n["name"], "address", n["hwaddr"],
			"netns", pid); err != nil {
			return err
		}
	}
	if err := b.tool("ip", "link", "set", pair, "master", n["bridge"], "up"); err != nil {
		return err
	}
	updown := "up"
	if n["link_down"] == "1" {
		updown = "down"
	}
	steps := [][]string{{"link", "set", n["name"], updown}, {"addr", "flush", "dev", n["name"], "scope", "global"}}
	for _, f := range []struct{ family, ip, gw string }{{"-4", n["ip"], n["gw"]}, {"-6", n["ip6"], n["gw6"]}} {
		if strings.Contains(f.ip, "/") {
			steps = append(steps, []string{"addr", "add", f.ip, "dev", n["name"]})
			if f.gw != "" {
				steps = append(steps, []string{f.family, "route", "replace", "default", "via", f.gw, "dev", n["name"]})
			}
		}
	}
	for _, s := range steps {
		if err := inside(s...); err != nil {
			return err
		}
	}
	return nil
}

// hotplugMount mounts a new mount point into a running container.
func (b *lxcBackend) hotplugMount(conf *config, key, value string) error {
	m, err := parseMount(key, value)
	if err != nil {
		return err
	}
	source := m.volume()
	if m.kind() == "volume" {
		v, err := b.volume(source)
		if err != nil {
			return err
		}
		source = v.dir()
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("open_tree() on %s failed: %s", source, reason(err))
	}
	defer unix.Close(tree)
	proc := fmt.Sprintf("/proc/%d/ns/", b.pid(conf.vmid))
	var attr unix.MountAttr
	if m.values["ro"] == "1" {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if m.kind() == "volume" && conf.values["unprivileged"] == "1" {
		userns, err := os.Open(proc + "user")
		if err != nil {
			return err
		}
		defer userns.Close()
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(userns.Fd())
	}
	if attr.Attr_set != 0 {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("mount_setattr() on %s failed: %s", source, reason(err))
		}
	}
	// The mount point is made by the container's root: the host's has no place in an idmapped
	// file system.
	script := `mkdir -p -- "$1"`
	if fi, err := os.Stat(source); err == nil && !fi.IsDir() {
		script = `mkdir -p -- "$(dirname -- "$1")" && : >>"$1"`
	}
	if err := b.inside(conf.vmid, nil, io.Discard, script, m.target()); err != nil {
		return err
	}
	mntns, err := os.Open(proc + "mnt")
	if err != nil {
		return err
	}
	defer mntns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(int(mntns.Fd()), unix.CLONE_NEWNS); err != nil {
				return err
			}
			return unix.MoveMount(tree, "", unix.AT_FDCWD, m.target(), unix.MOVE_MOUNT_F_EMPTY_PATH)
		}()
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("move_mount() to %s failed: %s", m.target(), reason(err))
	}
	return nil
}
