package pct

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// RunningCommand is a command of Proxmox that is at work on a container.
type RunningCommand struct {
	PID  int
	Text string // "pct start 900", or the name of a task

	start string // when the process has begun
}

// passive are the sub-commands of pct that change nothing in the container's
// state or configuration. Some of them last until a person ends them.
var passive = []string{"exec", "enter", "console", "push", "pull", "df", "status", "list", "config", "listsnapshot", "pending"}

// taskRE matches the name that a task of Proxmox gives its process.
var taskRE = regexp.MustCompile(`^task UPID:[^:]+:[0-9A-F:]+:(vz[a-z]+):([0-9]+):`)

// mark is in the environment of pct and of its tasks when phx has started it
// for this host.
func (h *Host) mark() string { return "PHX_PVE_ROOT=" + h.PVERoot }

// Commands returns the commands that phx has started and that are at work on
// container ctid: pct itself, and its tasks.
func (h *Host) Commands(ctid int) ([]RunningCommand, error) {
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var commands []RunningCommand
	for _, dir := range paths {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		text := h.commandOn(dir, strconv.Itoa(ctid))
		if text == "" || !h.started(dir) {
			continue
		}
		c := RunningCommand{PID: pid, Text: text}
		if c.start = c.begun(); c.start != "" {
			commands = append(commands, c)
		}
	}
	return commands, nil
}

// commandOn returns the command of the process in dir if that is one on a
// container, "" otherwise.
func (h *Host) commandOn(dir, ctid string) string {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "" // it has ended
	}
	words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	if m := taskRE.FindStringSubmatch(words[0]); m != nil && m[2] == ctid {
		return words[0]
	}
	for i, w := range words { // before it stands an interpreter, maybe
		if i > 2 || filepath.Base(w) != filepath.Base(h.PCT) || len(words) < i+3 {
			continue
		}
		if args := words[i+1:]; !slices.Contains(passive, args[0]) && (args[1] == ctid || args[0] == "clone" && len(args) > 2 && args[2] == ctid) {
			return Quote(append([]string{filepath.Base(w)}, args...))
		}
	}
	return ""
}

// started reports whether phx has started the process in dir, for this host. A
// container's processes are seen in /proc as well, and call themselves what
// they like.
func (h *Host) started(dir string) bool {
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
	if ours, err := os.Readlink("/proc/self/ns/pid"); err != nil || theirs != ours {
		return false
	}
	environ, err := os.ReadFile(filepath.Join(dir, "environ"))
	return err == nil && slices.Contains(strings.Split(string(environ), "\x00"), h.mark())
}

// Runs reports whether the command is still at work.
func (c *RunningCommand) Runs() bool { return c.start != "" && c.begun() == c.start }

// begun is when the process with the command's id has begun, "" when it has
// ended.
func (c *RunningCommand) begun() string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.PID))
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
