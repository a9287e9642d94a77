package labtest

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// checkPoint is what a check.point says.
type checkPoint struct {
	CTID                        int
	Point, Result, Text, Remedy string
}

// check runs phoenix check, with a variable in its environment, and returns its points but for those
// that are well, and its exit status.
func (l lab) check(t *testing.T, env string, ctids ...string) (points []checkPoint, status int) {
	t.Helper()
	args := append([]string{"run", "env", env, "phoenix", "check"}, ctids...)
	r := l.try(t, "scripts/lab", args...)
	looked := 0
	for _, ev := range parseEvents(t, r.stdout) {
		if ev.Event != "check.point" {
			continue
		}
		looked++
		var p checkPoint
		if err := json.Unmarshal([]byte(ev.line), &p); err != nil {
			t.Fatal(err)
		}
		// The lab is no Proxmox VE.
		if p.Result != "ok" && p.Point != "pve-container" {
			points = append(points, p)
		}
	}
	if looked < 15 {
		t.Errorf("%d points only:\n%s", looked, r.stderr)
	}
	return points, r.status
}

// wantPoint: the check ends with a status, and among its points is one of a name and a result whose
// text has all of these words.
func (l lab) wantPoint(t *testing.T, points []checkPoint, have, want int, name, result string, words ...string) {
	t.Helper()
	if have != want {
		t.Errorf("status %d, want %d: %+v", have, want, points)
	}
	for _, p := range points {
		found := p.Point == name && p.Result == result && p.Remedy != ""
		for _, w := range words {
			found = found && strings.Contains(p.Text, w)
		}
		if found {
			return
		}
	}
	t.Errorf("no point %s: %s: %q among %+v", name, result, words, points)
}

// testCheck: the action check finds all well, changes nothing, and finds each fault that the lab can
// have.
func (l lab) testCheck(t *testing.T) {
	before := l.calls(t)
	points, status := l.check(t, "A=B")
	if status != 0 || len(points) > 0 {
		t.Errorf("status %d, %+v", status, points)
	}
	if n := l.calls(t) - before; n != 1 { // pct list, which is to say the same as the lab's sockets
		t.Errorf("%d calls of pct, want 1", n)
	}

	t.Run("storage", func(t *testing.T) {
		l.inside(t, "pvesm", "set", "lab", "--disable", "1")
		points, status := l.check(t, "A=B", base)
		l.wantPoint(t, points, status, 1, "storage lab", "failed", "is disabled")
		l.inside(t, "pvesm", "set", "lab", "--disable", "0")
	})
	t.Run("bridge", func(t *testing.T) {
		config := l.path("etc", "check.json")
		text := strings.ReplaceAll(l.read(t, "etc", "phoenix_lxc_configs.json"), "vmbr0", "vmbr9")
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(config)
		points, status := l.check(t, "PHX_CONFIG="+config, base)
		l.wantPoint(t, points, status, 1, "bridge vmbr9", "failed", "no interface vmbr9")
	})
	t.Run("address", func(t *testing.T) {
		l.inside(t, "pct", "stop", gateway)
		l.inside(t, "pct", "start", base)
		// Where the address is taken before systemd-networkd sets up the interface, it goes again.
		l.in(t, base, "sh", "-c",
			"systemctl is-system-running --wait >/dev/null; ip addr add "+gatewayIP+"/24 dev eth0")
		points, status := l.check(t, "A=B", gateway)
		l.wantPoint(t, points, status, 1, "address "+gatewayIP, "failed", "somebody answers", "container "+base)
		l.inside(t, "pct", "stop", base)
		l.inside(t, "ip", "addr", "add", gatewayIP+"/32", "dev", "vmbr0")
		points, status = l.check(t, "A=B", gateway)
		l.wantPoint(t, points, status, 1, "address "+gatewayIP, "failed", "this host")
		l.inside(t, "ip", "addr", "del", gatewayIP+"/32", "dev", "vmbr0")
		l.inside(t, "ip", "neigh", "flush", "to", gatewayIP) // who else had it, the host would go on trying for seconds
		l.inside(t, "pct", "start", gateway)
	})
	t.Run("firewall", func(t *testing.T) {
		file := l.path("pve", "firewall", proxy+".fw")
		rules := l.read(t, "pve", "firewall", proxy+".fw")
		var kept []string
		for line := range strings.Lines(rules) {
			if !strings.Contains(line, "-dport 443") {
				kept = append(kept, line)
			}
		}
		if err := os.WriteFile(file, []byte(strings.Join(kept, "")), 0o640); err != nil {
			t.Fatal(err)
		}
		points, status := l.check(t, "A=B") // its call of pct list puts the file in force
		l.wantPoint(t, points, status, 1, "CA to proxy", "failed", "cannot be reached: no answer")
		l.wantPoint(t, points, status, 1, "gateway to proxy", "failed", "cannot be reached: no answer")
		if err := os.WriteFile(file, []byte(rules), 0o640); err != nil {
			t.Fatal(err)
		}
		l.inside(t, "pct", "list")
	})
	t.Run("service", func(t *testing.T) {
		l.in(t, proxy, "systemctl", "stop", "traefik-websecure.socket", "traefik-web.socket", "traefik")
		points, status := l.check(t, "A=B")
		l.wantPoint(t, points, status, 0, "CA to proxy", "warning", "nothing listens there")
		l.inside(t, "phoenix", proxy) // as the remedy says
	})
	if points, status := l.check(t, "A=B"); status != 0 || len(points) > 0 {
		t.Errorf("at the end: status %d, %+v", status, points)
	}
	checkUnchanged(t, l.inside(t, "phoenix"))
}
