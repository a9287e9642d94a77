package pipetest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The container's notes, which whoever has VM.Config.Options can edit, and its
// configuration, which only root can.
const (
	fw500  = "host/pve/firewall/500.fw"
	byHand = "lxc.environment: ADMIN=1\n"
	drop   = "IN DROP -source 192.0.2.0/24\n"
)

// hashOf returns what a record of phx has for a line, as anybody can work out.
func (h *host) hashOf(line string) string {
	sum := sha256.Sum256([]byte(strings.TrimSpace(line)))
	return fmt.Sprintf("%x", sha256.Sum256(sum[:]))[:12]
}

// guarded returns a converged host on which an administrator has added a raw
// line and a rule by hand.
func guarded(t *testing.T) *host {
	h := converged(t, map[string]any{"firewall": map[string]any{"enabled": true,
		"rules": []any{map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "22"}}}})
	h.write(conf500, strings.Replace(h.read(conf500), "unprivileged: 1\n", "unprivileged: 1\n"+byHand, 1))
	h.write(fw500, h.read(fw500)+drop)
	h.wantUnchanged()
	return h
}

// recordLine is the line of the conf that has the record.
func (h *host) recordLine() string {
	for line := range strings.Lines(h.read(conf500)) {
		if strings.HasPrefix(line, "#phx%3A") {
			return line
		}
	}
	h.t.Fatalf("no record in\n%s", h.read(conf500))
	return ""
}

// wantKept checks that a run says why the record is none of phx's, and removes
// nothing that the administrator has written.
func (h *host) wantKept(said string) {
	h.t.Helper()
	for range 2 { // the record that the first has written is no way in either
		_, _, status, stderr := h.run()
		if status != 0 || said != "" && strings.Count(stderr,
			"the record in the notes of container 500 is not phx's own: "+said) != 1 {
			h.t.Errorf("status %d\n%s", status, stderr)
		}
		said = ""
		if text := h.read(conf500); !strings.Contains(text, byHand) {
			h.t.Errorf("the raw line of the administrator is gone:\n%s", text)
		}
		if text := h.read(fw500); !strings.Contains(text, drop) || !strings.Contains(text, "enable: 1") {
			h.t.Errorf("the rule of the administrator is gone:\n%s", text)
		}
	}
	h.wantUnchanged()
}

// Whoever may edit notes gets nothing removed by them.
func TestRecordCannotBeForged(t *testing.T) {
	forged := func(h *host) string {
		return " +firewall=" + h.hashOf(drop) + " +lxc=" + h.hashOf(byHand)
	}
	t.Run("words added", func(t *testing.T) {
		h := guarded(t)
		line := h.recordLine()
		h.write(conf500, strings.Replace(h.read(conf500), line, strings.Replace(line, " ", forged(h)+" ", 1), 1))
		h.wantKept("its signature is not that of this host's key for this container")
	})
	t.Run("without a signature, after there is a key", func(t *testing.T) {
		h := guarded(t)
		h.write(conf500, strings.Replace(h.read(conf500), h.recordLine(), "#phx%3A"+forged(h)+"\n", 1))
		h.wantKept("it has no signature")
	})
	t.Run("beside the right one", func(t *testing.T) {
		h := guarded(t)
		h.write(conf500, "#phx%3A"+forged(h)+"\n"+h.read(conf500))
		h.wantKept("there are several")
	})
	t.Run("of another container", func(t *testing.T) {
		h := guarded(t)
		// One that phx has signed for 501, and with the very words.
		h.write("host/pve/lxc/501.conf", h.read(conf500))
		other := guardedOther(h, "501", forged(h))
		h.write(conf500, strings.Replace(h.read(conf500), h.recordLine(), other, 1))
		h.wantKept("its signature is not that of this host's key for this container")
	})
	t.Run("of another host", func(t *testing.T) {
		h := guarded(t)
		key := h.path("host/pve/priv/phx/record.json")
		if err := os.Remove(key); err != nil {
			t.Fatal(err)
		}
		h.wantKept("its signature is not that of this host's key for this container")
	})
}

// guardedOther returns the record's line that phx itself signs for another
// container which really has what it says.
func guardedOther(h *host, ctid, words string) string {
	h.t.Helper()
	text := h.read("phoenix_lxc_configs.json")
	other := strings.NewReplacer(`"500"`, `"`+ctid+`"`, "10.0.0.50/", "10.0.0.51/",
		"BC:24:11:00:05:00", "BC:24:11:00:05:01",
		`"port":"22"`, `"port":"23"`).Replace(text)
	other = strings.Replace(other, `"firewall":{`, `"lxc_options":["`+strings.TrimSpace(byHand)+`"],"firewall":{`, 1)
	h.write("phoenix_lxc_configs.json", other)
	if out, status := h.bash("rm host/pve/lxc/" + ctid + ".conf; phx-plan | phx-lxc"); status != 0 {
		h.t.Fatalf("%s", out)
	}
	h.write("phoenix_lxc_configs.json", text)
	for line := range strings.Lines(h.read("host/pve/lxc/" + ctid + ".conf")) {
		if strings.HasPrefix(line, "#phx%3A") && strings.Contains(line, "+lxc="+h.hashOf(byHand)) {
			return line
		}
	}
	h.t.Fatalf("%s", h.read("host/pve/lxc/"+ctid+".conf"))
	return ""
}

// What phx has recorded before it signed records is taken over once: nothing
// is installed again, and what it has written it also removes.
func TestRecordsOfBeforeAreTakenOver(t *testing.T) {
	h := converged(t, map[string]any{"features": []string{"base_setup"},
		"lxc_options": []string{"lxc.environment=OLD=1"}, "template_snapshot_name": "golden"})
	for line := range strings.Lines(h.read(conf500)) {
		if words, mac, ok := strings.Cut(line, " +mac="); ok && mac != "" {
			h.write(conf500, strings.Replace(h.read(conf500), line, words+"\n", 1))
		}
	}
	if err := os.RemoveAll(h.path("host/pve/priv/phx")); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(h.read(conf500), "+mac=") {
		t.Fatalf("signed still:\n%s", h.read(conf500))
	}
	h.configure(map[string]any{"features": []string{"base_setup"}, "template_snapshot_name": "golden"})
	_, calls, status, stderr := h.run()
	if status != 0 || len(calls) > 0 || !strings.Contains(stderr, "500 Box: its record is taken over, and signed") ||
		strings.Contains(stderr, "not phx's own") {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	if text := h.read(conf500); strings.Contains(text, "OLD=1\n\n[golden") || strings.Count(text, "+mac=") != 2 {
		t.Errorf("%s", text)
	}
	_, _, _, stderr = h.run()
	if strings.Contains(stderr, "record") {
		t.Errorf("%s", stderr)
	}
	h.wantUnchanged()
}

// A backup that is restored under its own number brings a record that counts.
func TestRecordTravels(t *testing.T) {
	h := converged(t, map[string]any{"features": []string{"base_setup"}})
	backup := h.read(conf500)
	h.bash("$PHX_PCT stop 500; $PHX_PCT destroy 500")
	h.write(conf500, backup)
	h.bash("mkdir -p host/storage/lab/images/500/vm-500-disk-0; $PHX_PCT start 500")
	h.wantUnchanged()
}

// A run that ends between what it writes and what it records forgets nothing.
func TestWhatIsWrittenIsRecorded(t *testing.T) {
	rules := func(ports ...string) map[string]any {
		var all []any
		for _, port := range ports {
			all = append(all, map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": port})
		}
		return map[string]any{"firewall": map[string]any{"enabled": true, "rules": all}, "memory_mb": 600 + len(ports),
			"lxc_options": []string{"lxc.environment=P=" + strings.Join(ports, "_")}}
	}
	h := converged(t, rules("443"))
	h.configure(rules("22", "443"))
	if _, _, status, _ := h.with("PHX_LAB_FAIL=set 500").run(); status != 1 ||
		!strings.Contains(h.read(fw500), "-dport 22\n") {
		t.Fatalf("status %d\n%s", status, h.read(fw500))
	}
	h.configure(rules("443"))
	events, _, status, stderr := h.run()
	if status != 0 || strings.Contains(h.read(fw500), "-dport 22\n") || strings.Contains(h.read(conf500), "P=22_443") {
		t.Errorf("what a run that failed has written stays: status %d\n%s\n%s\n%s", status, stderr,
			h.read(fw500), h.read(conf500))
	}
	for _, ev := range events {
		if ev["event"] == "ct.ready" {
			if waiting := ev["restart_required"].([]any); len(waiting) != 1 || waiting[0] != "lxc" {
				t.Errorf("restart_required %v", waiting)
			}
		}
	}
	if _, calls, _, _ := h.run("--restart"); !strings.HasPrefix(join(calls), "reboot 500") {
		t.Errorf("calls\n%s", join(calls))
	}
	h.wantUnchanged()
	// One that ends before it has removed a rule.
	h.configure(rules("22", "443"))
	h.run()
	h.configure(rules("443"))
	h.bash("mv " + fw500 + " saved; mkdir " + fw500)
	if _, _, status, stderr := h.run(); status != 1 || !strings.Contains(stderr, "500 Box: firewall: ") {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	h.bash("rmdir " + fw500 + "; mv saved " + fw500)
	h.run()
	if text := h.read(fw500); strings.Contains(text, "-dport 22\n") || !strings.Contains(text, "-dport 443\n") {
		t.Errorf("a rule of a run that failed stays:\n%s", text)
	}
	h.wantUnchanged()
	if strings.Contains(h.record(h.read(conf500)), ",") {
		t.Errorf("the record has more than what is there: %s", h.read(conf500))
	}
}

// A container whose making has broken off is phx's own: what its source has
// installed is not installed again, and its firewall is put in force.
func TestContainerWhoseMakingHasBrokenOff(t *testing.T) {
	t.Parallel()
	h := newHost(t) // with the shipped configuration
	if out, status := h.bash("mkdir host/pve/firewall/103.fw; phx-plan 103 | phx-lxc"); status != 1 ||
		!strings.Contains(out, "103 Step-CA: cloned from 900@final-form") ||
		!strings.Contains(out, "103 Step-CA: firewall: ") {
		t.Fatalf("status %d\n%s", status, out)
	}
	out, status := h.bash("rmdir host/pve/firewall/103.fw; phx-plan 103 | phx-lxc >events")
	if status != 0 || strings.Contains(out, "not phx's own") || strings.Contains(out, "103 Step-CA: base_setup") ||
		!strings.Contains(h.read("host/pve/firewall/103.fw"), "enable: 1") {
		t.Errorf("status %d\n%s\n%s", status, out, h.read("host/pve/firewall/103.fw"))
	}
}

// A stream that phx-plan did not write is refused before anything is made.
func TestPlanWithALie(t *testing.T) {
	for _, lie := range []string{
		`s/"proxy":{"ctid":102,"ip":"10.0.0.12"/"proxy":{"ctid":102,"ip":"fe80::1%eth0 -dport 22"/`,
		`s/"url":"http:..10.0.0.153:8080"/"url":"http:\/\/10.0.0.153:8080\/{{ x }}"/`,
		`s/"domain":"internal.thinkheads.ai"/"domain":"a b"/`,
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			out, status := h.bash(`phx-plan >plan; sed '` + lie +
				`' plan >lie; ! cmp -s plan lie || echo no lie; phx-lxc <lie >events`)
			if status != 1 || !strings.Contains(out, "event stream: line 1: plan.started: ") ||
				strings.Contains(out, "no lie") || h.read("host/pve/lxc/900.conf") != "" {
				t.Errorf("%s: status %d\n%s", lie, status, out)
			}
		})
	}
}

// A firewall that was never in force on a container that was there before
// stays so, its file and its interface untouched, until phx is told.
func TestFirewallThatWasNotInForce(t *testing.T) {
	h := converged(t, nil)
	// As the old scripts left it: rules, but nothing that switches them on.
	const old = "[RULES]\n\nOUT ACCEPT -dest 10.0.0.12 -p tcp -dport 443 # old\n"
	h.write(fw500, old)
	keys := map[string]any{"application_script": "phoenix_hypervisor_lxc_101.sh",
		"firewall": map[string]any{"enabled": true, "rules": []any{
			map[string]any{"type": "out", "action": "ACCEPT", "dest": "10.0.0.12", "proto": "tcp", "port": "443"}}}}
	h.configure(keys)
	for _, args := range [][]string{{"--dry-run"}, {}, {}} {
		before := h.read(conf500)
		events, calls, status, stderr := h.run(args...)
		if status != 0 || len(calls) > 0 || h.read(fw500) != old || h.read(conf500) != before {
			t.Errorf("%v: status %d, calls\n%s\n%s\n%s", args, status, join(calls), h.read(fw500), stderr)
		}
		for _, want := range []string{
			"500 Box: its firewall is not in force, and stays so, because the container was there before: " +
				"--enforce-firewall (PHX_ENFORCE_FIREWALL=1) puts it in force, " +
				"with policy_in DROP, policy_out ACCEPT and the rules:",
			"phx-lxc:   OUT ACCEPT -dest 10.0.0.12 -p tcp -dport 443 # old",
			`clients -> gateway (10.0.0.50 port 443): cut by policy_in DROP; missing before it: ` +
				`{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "443"}`,
		} {
			if strings.Count(stderr, want) != 1 {
				t.Errorf("%v: want once %q in\n%s", args, want, stderr)
			}
		}
		for _, ev := range events {
			if ev["event"] == "ct.ready" && ev["firewall_not_in_force"] != true {
				t.Errorf("event %v", ev)
			}
		}
	}
	events, _, status, stderr := h.run("--enforce-firewall")
	if status != 0 || !strings.Contains(h.read(fw500), "enable: 1") ||
		!strings.Contains(h.read(conf500), "firewall=1") ||
		!strings.Contains(stderr,
			"500 Box: the firewall: clients -> gateway (10.0.0.50 port 443): cut by policy_in DROP") {
		t.Errorf("told to: status %d\n%s\n%s\n%v", status, h.read(fw500), stderr, events)
	}
	// From now on it is phx's.
	h.wantUnchanged()
	h.write(fw500, strings.Replace(h.read(fw500), "enable: 1", "enable: 0", 1))
	if h.run(); !strings.Contains(h.read(fw500), "enable: 1") {
		t.Errorf("what phx has put in force does not stay:\n%s", h.read(fw500))
	}
}

// A firewall that somebody else has put in force stays in force, and gets the
// rules of the configuration.
func TestFirewallOfSomebodyElseThatIsInForce(t *testing.T) {
	h := converged(t, nil)
	h.bash("$PHX_PCT set 500 " +
		"--net0 name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=BC:24:11:00:05:00,ip=10.0.0.50/24,firewall=1")
	h.write(fw500, "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\n"+drop)
	h.configure(map[string]any{"firewall": map[string]any{"enabled": true,
		"rules": []any{map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "22"}}}})
	if _, _, status, stderr := h.run(); status != 0 || strings.Contains(stderr, "not in force, and stays so") {
		t.Errorf("status %d\n%s", status, stderr)
	}
	if text := h.read(fw500); !strings.Contains(text, drop) || !strings.Contains(text, "IN ACCEPT -p tcp -dport 22\n") {
		t.Errorf("%s", text)
	}
	h.wantUnchanged()
}

// A profile that somebody else has put beside the host's, or edited, stays.
func TestProfileOfSomebodyElse(t *testing.T) {
	const profile = "apparmor.d/lxc-phoenix"
	keys := map[string]any{"apparmor_profile": "lxc-phoenix"}
	h := converged(t, nil)
	h.write(profile, "profile of somebody else\n")
	h.configure(keys)
	refused := func() {
		t.Helper()
		before := h.read(profile)
		if _, calls, status, stderr := h.run(); status != 1 || len(calls) > 0 ||
			!strings.Contains(stderr, "500 Box: apparmor: "+h.path(profile)+
				" is not as phx has written it, and is not overwritten: ") {
			t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
		}
		if h.read(profile) != before {
			t.Errorf("it was overwritten:\n%s", h.read(profile))
		}
	}
	refused()
	// The ways out: it is moved away, or taken for the configuration's own.
	if err := os.Remove(h.path(profile)); err != nil {
		t.Fatal(err)
	}
	if _, _, status, stderr := h.run(); status != 0 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	// What phx has written it replaces by a newer one, and not what was edited.
	h.write("apparmor/lxc-phoenix", "profile lxc-phoenix { newer }\n")
	if _, _, status, stderr := h.run(); status != 0 || h.read(profile) != "profile lxc-phoenix { newer }\n" {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	h.write(profile, h.read(profile)+"# mine\n")
	refused()
	h.write("apparmor/lxc-phoenix", h.read(profile))
	if _, _, status, stderr := h.run(); status != 0 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	h.wantUnchanged()
}

// What an application script has started and has ended since is started again.
func TestUnhealthyServiceIsStartedAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.write("scripts/app.sh", "#!/bin/sh\n")
	h.write("inside", `#!/bin/sh
case "$*" in
*" app.sh 500 "*) cat >/dev/null; [ -e "$PHX_WORK/broken" ] || echo up >"$PHX_WORK/service" ;;
*is-up*) test -e "$PHX_WORK/service" ;;
esac
`)
	h.configure(map[string]any{"application_script": "app.sh",
		"health_check": map[string]any{"command": "is-up", "retries": 2, "interval": 0}})
	if _, _, status, stderr := h.run(); status != 0 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	if err := os.Remove(h.path("service")); err != nil {
		t.Fatal(err)
	}
	_, calls, status, stderr := h.run()
	if status != 0 || strings.Count(join(calls), " app.sh 500 ") != 1 ||
		!strings.Contains(stderr, "500 Box: app.sh again") {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	// Once, and then it is a failure.
	h.bash("rm service; touch broken")
	_, calls, status, stderr = h.run()
	if status != 1 || strings.Count(join(calls), " app.sh 500 ") != 1 || strings.Count(join(calls), "is-up") != 4 ||
		!strings.Contains(stderr, "500 Box: health check: not healthy after 2 tries") {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
}

// A link in the middle of a mount point's path, as a container could put there
// to which the directory above belongs, leads nowhere.
func TestLinkInTheMiddleOfAMountPoint(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give files away")
	}
	h := converged(t, nil)
	for _, dir := range []string{"shared", "precious/logs"} {
		if err := os.MkdirAll(h.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(h.path("precious"), h.path("shared/web")); err != nil {
		t.Fatal(err)
	}
	mount := func(path string, keys map[string]any) map[string]any {
		m := map[string]any{"host_path": path, "container_path": "/mnt/x"}
		for k, v := range keys {
			m[k] = v
		}
		return map[string]any{"mount_points": []any{m}}
	}
	want := h.path("shared/web") + " is a symbolic link to " + h.path("precious") + ", and is not followed: write " +
		h.path("precious/logs") + " as host_path"
	h.configure(mount("$WORK/shared/web/logs", map[string]any{"owner_uid": 33}))
	for _, args := range [][]string{{"--dry-run"}, {}} {
		if _, _, status, stderr := h.run(args...); status != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%v: status %d\n%s", args, status, stderr)
		}
	}
	if out, _ := h.bash("stat -c %u precious/logs"); out != "0\n" {
		t.Errorf("the link was followed: %s", out)
	}
	// Made is nothing through it either.
	h.configure(mount("$WORK/shared/web/new", nil))
	if _, _, status, stderr := h.run(); status != 1 ||
		!strings.Contains(stderr, "web is a symbolic link to "+h.path("precious")) {
		t.Errorf("status %d\n%s", status, stderr)
	}
	if _, err := os.Stat(h.path("precious/new")); !os.IsNotExist(err) {
		t.Errorf("the link was followed: %v", err)
	}
	// What needs no change of owner is mounted by Proxmox, as before.
	h.configure(mount("$WORK/shared/web/logs", nil))
	if _, _, status, stderr := h.run(); status != 0 {
		t.Errorf("status %d\n%s", status, stderr)
	}
}

// The dry run says how much would be given away.
func TestDryRunCountsWhatWouldChangeItsOwner(t *testing.T) {
	h := converged(t, nil)
	if err := os.MkdirAll(h.path("data/a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.write("data/a/file", "")
	h.configure(map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/data",
		"container_path": "/mnt/x", "owner_uid": 33}}})
	if _, _, status, stderr := h.run("--dry-run"); status != 3 ||
		!strings.Contains(stderr, "500 Box: 4 files and directories of "+h.path("data")+" would change their owner") {
		t.Errorf("status %d\n%s", status, stderr)
	}
}

// An owner is who he is in the container, also by maps of ids that somebody has
// given it by hand.
func TestOwnerByMapsMadeByHand(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give files away")
	}
	h := converged(t, nil)
	h.bash(`mkdir data
		printf 'lxc.idmap: %s\n' 'u 0 100000 33' 'u 33 33 1' 'u 34 100034 65502' 'g 0 100000 65536' >>` + conf500)
	mount := []any{map[string]any{
		"host_path": "$WORK/data", "container_path": "/mnt/x", "owner_uid": 33, "owner_gid": 33}}
	h.configure(map[string]any{"mount_points": mount})
	for _, want := range []string{"33:100033\n", "33:100033\n"} {
		if _, _, status, stderr := h.run(); status != 0 {
			t.Errorf("status %d\n%s", status, stderr)
		}
		if out, _ := h.bash("stat -c %u:%g data"); out != want {
			t.Errorf("owner %s, want %s", out, want)
		}
	}
	// Those of the configuration take their place, and those that phx has written
	// go with it.
	h.bash(`printf 'root:34:1\n' >>subuid`)
	h.configure(map[string]any{"mount_points": mount, "id_maps": []any{
		map[string]any{"type": "uid", "host_id": 34, "container_id": 33}}})
	if _, _, status, stderr := h.run(); status != 0 {
		t.Errorf("status %d\n%s", status, stderr)
	}
	if out, _ := h.bash("stat -c %u:%g data"); out != "34:100033\n" {
		t.Errorf("owner %s", out)
	}
	h.configure(map[string]any{"mount_points": mount})
	if _, _, status, stderr := h.run(); status != 0 {
		t.Errorf("status %d\n%s", status, stderr)
	}
	if out, _ := h.bash("stat -c %u:%g data"); out != "100033:100033\n" {
		t.Errorf("owner %s", out)
	}
}

// A directory of the system is never given away: not by a file, and not by a
// stream that phx-plan did not write. Where phx-lxc would do it, it would hit
// a copy that only this test sees.
func TestDirectoryOfTheSystemIsNotGivenAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	h := converged(t, nil)
	h.configure(map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/data",
		"container_path": "/mnt/x", "owner_uid": 1}}})
	for _, path := range []string{"/etc", "/etc/ssl", "/srv", h.dir, h.path("host/pve/priv"), h.path("scripts"),
		h.path("host/storage/lab")} {
		script := `set -e
			for dir in /etc /srv; do mkdir -p copy$dir; cp -a $dir/. copy$dir/; mount --bind copy$dir $dir; done
			sed "s|$WORK/data|$1|" phoenix_lxc_configs.json >given.json
			set +e
			phx-plan --config given.json; echo "plan $?"
			phx-plan | sed "s|\"host_path\":\"$WORK/data\"|\"host_path\":\"$1\"|" | phx-lxc >events; echo "lxc $?"
			grep -o '"event":"ct.ready"' events
			test -z "$(find copy/etc copy/srv host scripts -uid 100001 -print -quit)" || echo GIVEN AWAY`
		out, _ := h.bash("unshare -m bash -c '" + strings.ReplaceAll(script, "'", `'\''`) + "' bash '" + path + "'")
		if strings.Contains(out, "unshare failed") {
			t.Skip(out)
		}
		for _, want := range []string{"plan 2", "lxc 1", "mount_points.0.host_path: " + filepath.Clean(path),
			"all in it would change its owner"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: want %q in\n%s", path, want, out)
			}
		}
		if strings.Contains(out, "GIVEN AWAY") || strings.Contains(out, "ct.ready") {
			t.Errorf("%s:\n%s", path, out)
		}
	}
}
