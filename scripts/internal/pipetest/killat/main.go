// Killat runs a program and kills it at one of its system calls.
//
//	killat N FILE PROGRAM [ARG…]
//
// kills PROGRAM as it begins the Nth of those system calls that change a file,
// take a lock, write to stdout or start a program: the call is not carried out.
// What the call was is written to FILE, which is not made when there are fewer.
// With an N of 0 nothing is killed, and FILE gets all of these calls. Programs
// that PROGRAM starts are left alone. The end of killat is that of PROGRAM.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: killat N FILE PROGRAM [ARG…]")
		os.Exit(2)
	}
	n, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "killat:", err)
		os.Exit(2)
	}
	status, err := run(n, os.Args[2], os.Args[3:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "killat:", err)
		os.Exit(99)
	}
	if status.Signaled() {
		syscall.Kill(os.Getpid(), status.Signal())
	}
	os.Exit(status.ExitStatus())
}

// run runs the program and returns how it ended.
func run(n int, file string, argv []string) (unix.WaitStatus, error) {
	runtime.LockOSThread() // who traces is a thread
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	var calls []byte
	all := n == 0
	var status unix.WaitStatus
	if _, err := wait4(pid, &status); err != nil {
		return 0, err
	}
	// Its threads, and not what it starts with vfork.
	if err := unix.PtraceSetOptions(pid,
		unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL); err != nil {
		return 0, err
	}
	unix.PtraceSyscall(pid, 0)
	for {
		thread, err := wait4(-1, &status)
		if err != nil {
			return 0, err
		}
		if status.Exited() || status.Signaled() {
			if thread != pid {
				continue
			}
			if all {
				err = os.WriteFile(file, calls, 0o644)
			}
			return status, err
		}
		signal := 0
		switch stop := status.StopSignal(); {
		case stop == unix.SIGTRAP|0x80:
			call := entered(thread)
			if call == "" {
				break
			}
			calls = append(calls, call+"\n"...)
			if n--; n == 0 {
				if err := os.WriteFile(file, []byte(call+"\n"), 0o644); err != nil {
					return 0, err
				}
				syscall.Kill(pid, syscall.SIGKILL)
			}
		case stop == unix.SIGTRAP: // a new thread
		case stop == unix.SIGSTOP && thread != pid: // which begins
		default:
			signal = int(stop)
		}
		unix.PtraceSyscall(thread, signal)
	}
}

func wait4(pid int, status *unix.WaitStatus) (int, error) {
	for {
		thread, err := unix.Wait4(pid, status, unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return thread, err
		}
	}
}

// names are the system calls that count.
var names = map[uint64]string{
	unix.SYS_OPENAT: "open", unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "write", unix.SYS_FTRUNCATE: "truncate",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_FLOCK: "flock",
	unix.SYS_RENAMEAT: "rename", unix.SYS_RENAMEAT2: "rename", unix.SYS_UNLINKAT: "unlink", unix.SYS_MKDIRAT: "mkdir",
	unix.SYS_LINKAT: "link", unix.SYS_SYMLINKAT: "symlink", unix.SYS_FCHMOD: "chmod", unix.SYS_FCHMODAT: "chmod",
	unix.SYS_FCHOWN: "chown", unix.SYS_FCHOWNAT: "chown", unix.SYS_UTIMENSAT: "utime", unix.SYS_CLONE: "clone",
}

// syscallInfo is struct ptrace_syscall_info of <linux/ptrace.h>, for a call
// that is entered.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	_    [2]uint64
	nr   uint64
	args [6]uint64
	_    uint64
}

// entered returns the call that a thread is entering, "" when it does not
// count.
func entered(thread int) string {
	var info syscallInfo
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(thread), unsafe.Sizeof(info),
		uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || info.op != unix.PTRACE_SYSCALL_INFO_ENTRY {
		return ""
	}
	name := names[info.nr]
	switch name {
	case "":
		return ""
	case "open":
		if info.args[2]&(unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_RDWR) == 0 {
			return ""
		}
	case "clone":
		if info.args[0]&unix.CLONE_THREAD != 0 {
			return ""
		}
		return "start a program"
	case "mkdir", "unlink", "rename", "chown", "utime", "chmod":
	default: // what has a descriptor
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", thread, info.args[0]))
		switch {
		case name == "write" && info.args[0] == 1:
			return "write to stdout"
		case info.args[0] <= 2 || !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "/dev/"):
			return ""
		}
		return name + " " + target
	}
	if path := text(thread, info.args[1]); path != "" {
		name += " " + path
	}
	return name
}

// text is the string at an address of a thread.
func text(thread int, address uint64) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", thread))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 256)
	n, _ := f.ReadAt(b, int64(address))
	s, _, _ := strings.Cut(string(b[:n]), "\x00")
	return s
}
