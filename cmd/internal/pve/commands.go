package pve

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// runningCommand is a command of Proxmox that is at work on a container.
type runningCommand struct {
	pid   int
	text  string // "pct start 900", or the name of a task
	start string // when the process has begun
}

// passive are the sub-commands of pct that change nothing in the container's
// state or configuration. Some of them last until a person ends them.
var passive = []string{
	"exec", "enter", "console", "push", "pull", "df", "status", "list", "config", "listsnapshot", "pending",
}

// taskRE matches the name that a task of Proxmox gives its process.
var taskRE = regexp.MustCompile(`^task UPID:[^:]+:[0-9A-F:]+:(?:vz[a-z]+|resize|move_volume):([0-9]+):`)

// mark is in the environment of every pct that phx has started for this host.
func (h *Host) mark() string { return "PHX_PVE_ROOT=" + h.PVERoot }

// commands returns the commands that are at work on container ctid: pct itself,
// where phx has started it, and all tasks of Proxmox.
func (h *Host) commands(ctid int) ([]runningCommand, error) {
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var commands []runningCommand
	for _, dir := range paths {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		text, isTask := h.commandOn(dir, strconv.Itoa(ctid))
		if text == "" || !ofThisHost("/proc", dir) || !h.isMarked(dir, isTask) {
			continue
		}
		c := runningCommand{pid: pid, text: text}
		if c.start = c.begun(); c.start != "" {
			commands = append(commands, c)
		}
	}
	return commands, nil
}

// commandOn returns the command of the process in dir if that is one on a
// container, "" otherwise, and whether it is a task.
func (h *Host) commandOn(dir, ctid string) (text string, isTask bool) {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "", false // it has ended
	}
	words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	if m := taskRE.FindStringSubmatch(words[0]); m != nil && m[1] == ctid {
		return words[0], true
	}
	for i, w := range words { // the first may be an interpreter
		if i > 2 || filepath.Base(w) != filepath.Base(h.PCT) || len(words) < i+3 {
			continue
		}
		args := words[i+1:]
		isOn := args[1] == ctid || args[0] == "clone" && len(args) > 2 && args[2] == ctid
		if isOn && !slices.Contains(passive, args[0]) {
			return remedy.Quote(append([]string{filepath.Base(w)}, args...)), false
		}
	}
	return "", false
}

// ofThisHost reports whether the process in dir, which is below proc, is one of
// the host's own. A container's processes are seen in /proc as well, and call
// themselves what they like.
func ofThisHost(proc, dir string) bool {
	info, err := os.Stat(dir)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) != os.Geteuid() {
		return false
	}
	theirs, err := os.Readlink(filepath.Join(dir, "ns/pid"))
	if err != nil {
		return false
	}
	ours, err := os.Readlink(filepath.Join(proc, "self/ns/pid"))
	return err == nil && theirs == ours
}

// isMarked reports whether the process in dir has the mark of this host in its
// environment. That of a task is mostly gone: Perl writes a process's new name
// over it.
func (h *Host) isMarked(dir string, isTask bool) bool {
	text, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return false
	}
	variables := strings.Split(string(text), "\x00")
	isRoot := func(v string) bool { return strings.HasPrefix(v, "PHX_PVE_ROOT=") }
	return slices.Contains(variables, h.mark()) || isTask && !slices.ContainsFunc(variables, isRoot)
}

// runs reports whether the command is still at work.
func (c *runningCommand) runs() bool { return c.start != "" && c.begun() == c.start }

// begun is when the process with the command's id has begun, "" when it has
// ended.
func (c *runningCommand) begun() string { return begun(fmt.Sprintf("/proc/%d", c.pid)) }

// begun is when the process in dir has begun, in hundredths of a second since the
// host was booted, "" when it has ended.
func begun(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return ""
	}
	// The name, in parentheses, may have blanks and parentheses itself.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}
