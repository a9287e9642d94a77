package pipetest

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// killAt is a variable with which this program is not a test, but runs another
// one and kills it before its N-th system call that changes a file.
const killAt = "PIPETEST_KILL_AT"

func init() {
	n, err := strconv.Atoi(os.Getenv(killAt))
	if err != nil {
		return
	}
	os.Unsetenv(killAt)
	status, err := runUntil(n, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 99
	}
	os.Exit(status)
}

// runUntil runs a program, and kills it before its n-th system call that
// changes a file of Proxmox VE's or a lock. It returns its status.
func runUntil(n int, argv []string) (status int, err error) {
	runtime.LockOSThread()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		return 0, err
	}
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(pid, options); err != nil {
		return 0, err
	}
	if err := unix.PtraceSyscall(pid, 0); err != nil {
		return 0, err
	}
	for {
		thread, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case thread == pid && ws.Exited():
			return ws.ExitStatus(), nil
		case thread == pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		case !ws.Stopped():
			continue
		}
		deliver := 0
		switch signal := ws.StopSignal(); {
		case signal == unix.SIGTRAP|0x80:
			if changesFile(thread) {
				if n--; n == 0 {
					unix.Kill(pid, unix.SIGKILL)
					continue
				}
			}
		case signal != unix.SIGTRAP && signal != unix.SIGSTOP:
			deliver = int(signal)
		}
		unix.PtraceSyscall(thread, deliver) // fails if it has been killed meanwhile
	}
}

// changesFile reports whether a thread is about to make a system call that
// changes a file below pve/ or lock/, or waits for one to be changed.
func changesFile(thread int) bool {
	var info struct { // struct ptrace_syscall_info
		op      uint8
		_       [3]uint8
		_       uint32
		_, _    uint64
		nr      uint64
		args    [6]uint64
		_, _, _ uint64
	}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(thread), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || info.op != unix.PTRACE_SYSCALL_INFO_ENTRY {
		return false
	}
	switch info.nr {
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_UTIMENSAT, unix.SYS_SYMLINKAT, unix.SYS_LINKAT:
		return true
	case unix.SYS_OPENAT:
		return info.args[2]&unix.O_CREAT != 0
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FSYNC, unix.SYS_FTRUNCATE, unix.SYS_FCHMOD, unix.SYS_FCHOWN, unix.SYS_FLOCK:
		path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", thread, info.args[0]))
		return strings.Contains(path, "/host/pve/") || strings.Contains(path, "/host/lock/")
	}
	return false
}

var restartMark = regexp.MustCompile(`lxc\.group: phx-restart \d+\n`)

// state is what a run leaves: the configuration, without the times in it, the
// firewall, and what lies about.
func (h *host) state() string {
	out, _ := h.bash("cd host; cat pve/lxc/500.conf pve/firewall/500.fw; find pve -mindepth 1 | sort")
	return restartMark.ReplaceAllString(out, "lxc.group: phx-restart\n")
}

// A run that is killed between any two of its system calls leaves what the next
// one understands: the same configuration leads to where an undisturbed run
// does, and the one of before to where that was, with nothing forgotten.
func TestKilledBetweenSystemCalls(t *testing.T) {
	firewall := func(ports ...string) map[string]any {
		var rules []any
		for _, port := range ports {
			rules = append(rules, map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": port})
		}
		return map[string]any{"enabled": true, "rules": rules}
	}
	mount := func(path string) []any {
		return []any{map[string]any{"host_path": "$WORK/" + path, "container_path": "/mnt/" + path}}
	}
	for _, tt := range []struct {
		name          string
		before, after map[string]any
		waits         string // for a restart
		points        int    // at least
		back          bool   // the configuration of before undoes all
	}{
		{"rules and raw lines", map[string]any{"firewall": firewall("443", "80"), "lxc_options": []string{"lxc.environment=A=1"}},
			map[string]any{"firewall": firewall("22", "443"), "lxc_options": []string{"lxc.environment=B=2"}, "memory_mb": 600}, "[lxc]", 20, true},
		{"volumes and scripts", map[string]any{"mount_points": mount("a"), "features": []string{"base_setup"}},
			map[string]any{"mount_points": mount("b"), "features": []string{"base_setup", "step_cli"}, "volumes": withVolume["volumes"]}, "[mp0]", 16, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testKills(t, tt.before, tt.after, tt.waits, tt.points, tt.back)
		})
	}
}

func testKills(t *testing.T, before, after map[string]any, wantWaits string, wantPoints int, back bool) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := converged(t, before)
	waits := func(events []map[string]any) string {
		i := slices.IndexFunc(events, func(ev map[string]any) bool { return ev["event"] == "ct.ready" })
		if i < 0 {
			return "no ct.ready"
		}
		return fmt.Sprint(events[i]["restart_required"])
	}
	old := h.state()
	h.configure(after)
	h.bash("cp -a host saved")
	events, _, status, stderr := h.run()
	want := h.state()
	if status != 0 || want == old || waits(events) != wantWaits {
		t.Fatalf("status %d, %s\n%s %s", status, stderr, waits(events), want)
	}

	h.write("bin/phx-lxc", "#!/bin/sh\nexec env "+killAt+"=$N "+program+" "+bin+"/phx-lxc \"$@\"\n")
	if err := os.Chmod(h.path("bin/phx-lxc"), 0o755); err != nil {
		t.Fatal(err)
	}
	killed := h.with("PATH=" + h.path("bin") + ":" + environment(h.dir)["PATH"])
	h = h.with("PATH=" + environment(h.dir)["PATH"])
	points := 0
	for {
		h.bash("rm -rf host; cp -a saved host")
		_, _, status, stderr := killed.with(fmt.Sprint("N=", points+1)).run()
		if status == 0 {
			break
		}
		if status != 137 {
			t.Fatalf("killed at %d: status %d\n%s", points+1, status, stderr)
		}
		points++
		// As Proxmox's own file system frees the lock of one that was killed.
		h.bash("rmdir host/pve/priv/lock/*; rm -rf left; cp -a host left")
		events, _, status, stderr := h.run()
		if got := h.state(); status != 0 || got != want || waits(events) != wantWaits {
			t.Errorf("killed at %d, the same again: status %d, %s waits, %s\n%s\n%s", points, status, waits(events), stderr, got, h.read("left/pve/lxc/500.conf"))
		}
		if !back {
			continue
		}
		h.bash("rm -rf host; mv left host")
		h.configure(before)
		_, _, status, stderr = h.run()
		if got := h.state(); status != 0 || strings.Replace(got, "lxc.group: phx-restart\n", "", 1) != old {
			t.Errorf("killed at %d, and back again: status %d, %s\n%s", points, status, stderr, got)
		}
		h.configure(after)
	}
	t.Logf("killed at %d points", points)
	if points < wantPoints {
		t.Errorf("there must be more than %d points", points)
	}
}
