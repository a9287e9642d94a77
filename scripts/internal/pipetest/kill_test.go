package pipetest

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

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
		back          bool   // the configuration of before undoes all
	}{
		{"rules and raw lines", map[string]any{"firewall": firewall("443", "80"),
			"lxc_options": []string{"lxc.environment=A=1"}},
			map[string]any{"firewall": firewall("22", "443"), "lxc_options": []string{"lxc.environment=B=2"},
				"memory_mb": 600}, "[lxc]", true},
		{"volumes and scripts", map[string]any{"mount_points": mount("a"), "features": []string{"base_setup"}},
			map[string]any{"mount_points": mount("b"), "features": []string{"base_setup", "step_cli"},
				"volumes": withVolume["volumes"]}, "[mp0]", false},
		{"a template", map[string]any{"features": []string{"base_setup"}},
			map[string]any{"features": []string{"base_setup", "step_cli"}, "is_template": true, "memory_mb": 600,
				"lxc_options": []string{"lxc.environment=A=1"}, "firewall": firewall("22")},
			"[]", false},
	} {
		t.Run(tt.name, func(t *testing.T) { testKills(t, tt.before, tt.after, tt.waits, tt.back) })
	}
}

func testKills(t *testing.T, before, after map[string]any, wantWaits string, back bool) {
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

	h.write("bin/phx-lxc", "#!/bin/sh\nexec killat $N $PHX_WORK/calls "+bin+"/phx-lxc \"$@\"\n")
	if err := os.Chmod(h.path("bin/phx-lxc"), 0o755); err != nil {
		t.Fatal(err)
	}
	killed := h.with("PATH=" + h.path("bin") + ":" + environment(h.dir)["PATH"])
	h = h.with("PATH=" + environment(h.dir)["PATH"])
	h.bash("rm -rf host; cp -a saved host")
	if _, _, status, stderr := killed.with("N=0").run(); status != 0 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	points, stride := 0, 1
	if !full() {
		stride = 8
	}
	for i, call := range strings.Split(h.read("calls"), "\n") {
		if !strings.Contains(call, h.path("host")) { // and not its own pipes and the like
			continue
		}
		if points++; points%stride != 0 {
			continue
		}
		h.bash("rm -rf host; cp -a saved host")
		_, _, status, stderr := killed.with(fmt.Sprint("N=", i+1)).run()
		if status != 137 {
			t.Fatalf("killed at %s: status %d\n%s", call, status, stderr)
		}
		// As Proxmox's own file system frees the lock of one that was killed.
		h.bash("rmdir host/pve/priv/lock/*; rm -rf left; cp -a host left")
		events, _, status, stderr := h.run()
		if got := h.state(); status != 0 || got != want || waits(events) != wantWaits {
			t.Errorf("killed at %s, the same again: status %d, %s waits, %s\n%s\n%s", call, status, waits(events),
				stderr, got, h.read("left/pve/lxc/500.conf"))
		}
		if !back {
			continue
		}
		h.bash("rm -rf host; mv left host")
		h.configure(before)
		_, _, status, stderr = h.run()
		if got := h.state(); status != 0 || strings.Replace(got, "lxc.group: phx-restart\n", "", 1) != old {
			t.Errorf("killed at %s, and back again: status %d, %s\n%s", call, status, stderr, got)
		}
		h.configure(after)
	}
	t.Logf("killed at %d points", points/stride)
	if points < 20 {
		t.Errorf("there must be more than %d points", points)
	}
}
