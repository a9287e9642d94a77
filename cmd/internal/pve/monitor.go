package pve

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// startedAt returns when a container was started, where LXC's own process for it is
// found. Looking for it takes milliseconds; a call of pct takes half a second.
func (h *Host) startedAt(ctid int) (at time.Time, found bool) {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return at, false
	}
	booted := time.Now().Add(-time.Duration(boot.Nano()))
	dirs, _ := filepath.Glob(filepath.Join(h.proc(), "[0-9]*"))
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !isMonitor(string(line), strconv.Itoa(ctid)) || !ofThisHost(h.proc(), dir) {
			continue
		}
		hundredths, err := strconv.ParseInt(begun(dir), 10, 64)
		if err != nil {
			return at, false
		}
		if start := booted.Add(time.Duration(hundredths) * 10 * time.Millisecond); start.After(at) {
			at, found = start, true
		}
	}
	return at, found
}

// isMonitor reports whether a command line is that of LXC's process for a
// container: "lxc-start -F -n 103" under Proxmox VE, "[lxc monitor] DIR 103" for
// one that has gone to the background.
func isMonitor(line, ctid string) bool {
	words := strings.Split(strings.TrimRight(line, "\x00"), "\x00")
	if title, ok := strings.CutPrefix(words[0], "[lxc monitor] "); ok {
		return strings.HasSuffix(title, " "+ctid)
	}
	i := slices.Index(words, "-n")
	return filepath.Base(words[0]) == "lxc-start" && i > 0 && i+1 < len(words) && words[i+1] == ctid
}
