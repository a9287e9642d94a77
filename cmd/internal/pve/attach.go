package pve

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// A call of pct costs half a second of Perl, and for two of its commands that is
// nearly all that it does. pct exec looks whether the container is on this host and
// runs, and becomes lxc-attach; pct list and pct status read the files in /etc/pve/lxc
// and /proc/net/unix (pve-container 6.1.10, src/PVE/CLI/pct.pm and src/PVE/LXC.pm).
// Where [Host.Direct] is set, that is done here. What can be seen of it is the same, but
// that pct, in a locale other than UTF-8 such as cron's, spoils arguments that are not
// ASCII, and warns of each line of a conf file that it cannot read.

// DefaultLXCPath is where LXC has its containers under Proxmox VE.
const DefaultLXCPath = "/var/lib/lxc"

func (h *Host) proc() string { return cmp.Or(h.Proc, "/proc") }

func (h *Host) lxcPath() string { return cmp.Or(h.LXCPath, DefaultLXCPath) }

// running returns the CTIDs of the containers that run: those on whose socket for
// commands LXC's own process listens.
func (h *Host) running() (map[int]bool, error) {
	text, err := os.ReadFile(filepath.Join(h.proc(), "net/unix"))
	if err != nil {
		return nil, fmt.Errorf("see which containers run: %w", err)
	}
	all := map[int]bool{}
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "@") {
			continue // most have another path, or none
		}
		fields := strings.Fields(line)
		if len(fields) != 8 {
			continue
		}
		name, isCommand := strings.CutSuffix(fields[7], "/command")
		name, isOurs := strings.CutPrefix(name, "@"+h.lxcPath()+"/")
		if ctid, isCTID := parseCTID(name); isCTID && isCommand && isOurs {
			all[ctid] = true
		}
	}
	return all, nil
}

// parseCTID returns the CTID that a name is. As for pmxcfs, 0101 is none.
func parseCTID(name string) (ctid int, ok bool) {
	ctid, err := strconv.Atoi(name)
	return ctid, err == nil && ctid > 0 && strconv.Itoa(ctid) == name
}

// lookAtAll is [Host.List] without pct.
func (h *Host) lookAtAll() (map[int]string, error) {
	running, err := h.running() // first: a container that is made meanwhile is stopped, not missing
	if err != nil {
		return nil, remedy.Errorf("have pct asked, with PHX_ATTACH=pct", "%w", err)
	}
	entries, err := os.ReadDir(filepath.Join(h.PVERoot, "lxc"))
	if err != nil {
		return nil, remedy.Errorf("see why Proxmox VE's files are not there, with: systemctl status pve-cluster",
			"list the containers: %w", err)
	}
	states := map[int]string{}
	for _, e := range entries {
		name, isConf := strings.CutSuffix(e.Name(), ".conf")
		if ctid, isCTID := parseCTID(name); isCTID && isConf && !e.IsDir() {
			states[ctid] = stateWord(running[ctid])
		}
	}
	return states, nil
}

func stateWord(running bool) string {
	if running {
		return "running"
	}
	return "stopped"
}

// lookAt returns the state of a container, "running" or "stopped", or why pct would
// not tell it.
func (h *Host) lookAt(ctid int) (string, error) {
	if _, err := os.Stat(h.confPath(ctid)); errors.Is(err, fs.ErrNotExist) {
		return "", &refusal{2, fmt.Sprintf("Configuration file 'nodes/%s/lxc/%d.conf' does not exist", h.Node(), ctid)}
	} else if err != nil {
		return "", err
	}
	running, err := h.running()
	return stateWord(running[ctid]), err
}

// A refusal is what pct would say, and end with.
type refusal struct {
	status int
	said   string
}

func (r *refusal) Error() string { return fmt.Sprintf("exit status %d", r.status) }

// attach returns the command line that brings the command of an Exec into its
// container, or why pct exec would not run it.
func (h *Host) attach(c Command) ([]string, error) {
	state, err := h.lookAt(c.ctid)
	if err != nil {
		return nil, err
	}
	if state != "running" {
		return nil, &refusal{255, fmt.Sprintf("container '%d' not running!", c.ctid)}
	}
	program, err := exec.LookPath("lxc-attach") // env's status would be that of a program missing in the container
	if err != nil {
		return nil, err
	}
	// Whatever pct becomes ignores SIGPIPE: IO::Multiplex sets that where it is loaded,
	// and pct loads it with the classes of virtual machines. What runs in the container
	// inherits it: the status of dpkg -l in "dpkg -l | head -n 1" depends on that.
	argv := []string{"env", "--ignore-signal=PIPE", program}
	if h.lxcPath() != DefaultLXCPath {
		argv = append(argv, "-P", h.lxcPath())
	}
	argv = append(argv, "-n", strconv.Itoa(c.ctid), "--clear-env", "--")
	return append(argv, c.inner...), nil
}

// isProxmox reports whether pct, a path or a name, is that of Proxmox VE, and
// lxc-attach is there. root is where the host's files are, for tests.
func isProxmox(root, pct string) bool {
	path, err := exec.LookPath(pct)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil || path != filepath.Join(root, "/usr/sbin/pct") {
		return false
	}
	for _, file := range []string{"/usr/share/perl5/PVE/CLI/pct.pm", "/usr/bin/lxc-attach"} {
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			return false
		}
	}
	return true
}
