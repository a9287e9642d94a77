package pve

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestStartedAt: only a process of the host's own, of LXC, and of this container says
// when the container was started.
func TestStartedAt(t *testing.T) {
	const monitor = "/usr/bin/lxc-start\x00-F\x00-n\x00103\x00"
	now := time.Now()
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		t.Fatal(err)
	}
	hundredths := boot.Nano() / 1e7
	for _, tt := range []struct {
		name      string
		processes []string // command lines
		ago       int64    // hundredths of a second
		namespace string
		want      bool
	}{
		{"Proxmox's", []string{monitor}, 500, "pid:[1]", true},
		{"in the background", []string{"[lxc monitor] /var/lib/lxc 103\x00"}, 500, "pid:[1]", true},
		{"younger", []string{monitor}, 0, "pid:[1]", false},
		{"of a container", []string{monitor}, 500, "pid:[2]", false},
		{"none", nil, 500, "pid:[1]", false},
		{"another container's", []string{"lxc-start\x00-n\x001030\x00", "[lxc monitor] /var/lib/lxc 1103\x00"}, 500,
			"pid:[1]", false},
		{"other programs", []string{"sleep\x00-n\x00103\x00", "\x00", "", "lxc-start\x00-n\x00"}, 500,
			"pid:[1]", false},
	} {
		proc := t.TempDir()
		add := func(name, cmdline, namespace string) {
			if err := os.MkdirAll(filepath.Join(proc, name, "ns"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(namespace, filepath.Join(proc, name, "ns/pid")); err != nil {
				t.Fatal(err)
			}
			stat := fmt.Sprintf("1 (a (b) S)c) S%s %d 0", strings.Repeat(" 0", 18), hundredths-tt.ago)
			for file, text := range map[string]string{"cmdline": cmdline, "stat": stat} {
				if err := os.WriteFile(filepath.Join(proc, name, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		add("self", "phx-lxc", "pid:[1]")
		for i, p := range tt.processes {
			add(fmt.Sprint(i+7), p, tt.namespace)
		}
		h := &Host{Proc: proc}
		at, found := h.startedAt(103)
		if got := found && at.Before(now.Add(-2*time.Second)); got != tt.want {
			t.Errorf("%s: %v, %t", tt.name, at, found)
		}
	}
	if at, found := (&Host{}).startedAt(999999999); found {
		t.Errorf("a container that is not there: %v", at)
	}
}
