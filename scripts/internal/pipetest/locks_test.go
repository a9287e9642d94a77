package pipetest

import (
	"cmp"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// phx runs an action on container 500 and returns what was printed, the events
// left out, the changing calls of pct, and the exit status.
func (h *host) phx(action string, args ...string) (said, calls string, status int) {
	h.t.Helper()
	return h.phxAwaiting("true", action, args...)
}

// phxAwaiting is phx with a command of the host that runs when phx says that it
// waits for something.
func (h *host) phxAwaiting(release, action string, args ...string) (said, calls string, status int) {
	h.t.Helper()
	os.Remove(h.path("host/log/pct.log"))
	said, status = h.bash(`rm -f done; : >said
		(until grep -q ": waiting for " said; do [ ! -e done ] || exit; sleep 0.05; done; ` +
		release + `) >/dev/null 2>&1 &
		set -o pipefail; phx-plan --action ` + action + ` 500 | phx-lxc ` + strings.Join(args,
		" ") + ` 2>said >events; status=$?
		touch done; wait; cat said; exit $status`)
	for line := range strings.Lines(h.read("host/log/pct.log")) {
		if call := strings.SplitN(strings.TrimSpace(line), "\t", 4)[3]; call != "list" && !strings.HasPrefix(call,
			"status ") {
			calls += call + "\n"
		}
	}
	return said, calls, status
}

// wayOut takes the command that the last line with one advises, and runs it.
func (h *host) wayOut(said string) (command string) {
	h.t.Helper()
	for line := range strings.Lines(said) {
		for _, before := range []string{"run: ", "with: ", "hint: shut the source down first: "} {
			if _, advised, ok := strings.Cut(line, before); ok {
				command = strings.TrimSpace(advised)
			}
		}
	}
	if out, status := h.bash("set -e; pct() { $PHX_PCT \"$@\"; }\n" + command); status != 0 || command == "" {
		h.t.Fatalf("the way out %q: status %d\n%s\n%s", command, status, out, said)
	}
	return command
}

// stub puts a pct before the real one, which is $PHX_REAL.
func (h *host) stub(script string) *host {
	h.write("bin/pct", "#!/bin/bash\n"+script+"\nexec $PHX_REAL \"$@\"\n")
	h.bash("chmod +x bin/pct")
	return h.with("PHX_REAL=" + bin + "/pct").with("PHX_PCT=" + h.path("bin/pct"))
}

// setHead adds lines to the current configuration, as a task that was killed
// leaves them; tail goes to the end.
func (h *host) setHead(lines, tail string) {
	h.t.Helper()
	h.write(conf500, strings.Replace(h.read(conf500), "memory: ", lines+"memory: ", 1)+tail)
}

// A container that somebody has locked, and in which nothing has to be
// changed, is ready.
func TestLockedAndUnchanged(t *testing.T) {
	for _, lock := range []string{"backup", "snapshot", "snapshot-delete", "disk", "migrate", "fstrim", "mounted"} {
		t.Run(lock, func(t *testing.T) {
			h := converged(t, map[string]any{"features": []string{"base_setup"}})
			h.bash("$PHX_PCT set 500 --lock " + lock)
			said, calls, status := h.with("PHX_LOCK_WAIT=300ms").phx("create")
			if status != 0 || calls != "" || !strings.Contains(said, "500 Box: unchanged") ||
				strings.Contains(said, "waiting") {
				t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
			}
		})
	}
}

// Whatever has to be changed waits for the lock: nothing is written and
// nothing run before. With the advice that is given the next run does it.
func TestChangesWaitForTheLock(t *testing.T) {
	rule := func(port string) any {
		return map[string]any{"enabled": true,
			"rules": []any{map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": port}}}
	}
	for name, tt := range map[string]struct {
		before, keys map[string]any
		byHand       string
		action       string
		args         string
	}{
		"a setting":  {keys: map[string]any{"memory_mb": 640}},
		"a raw line": {keys: map[string]any{"lxc_options": []string{"lxc.environment=A=1"}}},
		"a firewall rule": {before: map[string]any{"firewall": rule("22")},
			keys: map[string]any{"firewall": rule("443")}},
		"a disk":     {keys: map[string]any{"storage_size_gb": 6}},
		"a start":    {byHand: "$PHX_PCT stop 500"},
		"a script":   {keys: map[string]any{"features": []string{"base_setup"}}},
		"a snapshot": {keys: map[string]any{"enable_lifecycle_snapshots": true}},
		"a template's start": {before: map[string]any{"template_snapshot_name": "golden"},
			keys: map[string]any{"template_snapshot_name": "golden", "features": []string{"base_setup"}}},
		"a needed restart": {keys: map[string]any{"pct_options": []string{"nesting=1"}},
			byHand: "$PHX_PCT set 500 --features nesting=1", args: "--restart"},
		"stop":             {action: "stop"},
		"start":            {byHand: "$PHX_PCT stop 500", action: "start"},
		"restart":          {action: "restart"},
		"restart, stopped": {byHand: "$PHX_PCT stop 500", action: "restart"},
		"delete":           {action: "delete"},
		"delete, stopped":  {byHand: "$PHX_PCT stop 500", action: "delete"},
	} {
		action := cmp.Or(tt.action, "create")
		t.Run(name, func(t *testing.T) {
			if !strings.HasPrefix(name, "a ") {
				needsFull(t)
			}
			h := converged(t, tt.before)
			if tt.keys != nil {
				h.configure(tt.keys)
			}
			h.bash(tt.byHand + "\n$PHX_PCT set 500 --lock backup; cp -r host/pve before; ls host/lxc/500 >state")
			said, calls, status := h.with("PHX_LOCK_WAIT=300ms").phx(action, tt.args)
			if status != 1 || calls != "" || !strings.Contains(said, "container 500 is locked (backup): ") {
				t.Fatalf("status %d, calls\n%s\n%s", status, calls, said)
			}
			out, status := h.bash(
				"diff -r --no-dereference -I '^#phx%3A' before host/pve && ls host/lxc/500 | diff state -")
			if status != 0 {
				t.Errorf("changed in spite of the lock:\n%s", out)
			}
			if command := h.wayOut(said); command != "pct unlock 500" {
				t.Errorf("advised: %s", command)
			}
			if said, calls, status := h.phx(action, tt.args); status != 0 ||
				calls == "" && h.read(conf500) == h.read("before/lxc/500.conf") && !strings.Contains(said, "firewall") {
				t.Errorf("without the lock: status %d, calls\n%s\n%s", status, calls, said)
			}
		})
		t.Run(name+", released meanwhile", func(t *testing.T) {
			h := converged(t, tt.before)
			if tt.keys != nil {
				h.configure(tt.keys)
			}
			h.bash(tt.byHand + "\n$PHX_PCT set 500 --lock backup")
			said, _, status := h.phxAwaiting("$PHX_PCT unlock 500", action, tt.args)
			if status != 0 || strings.Count(said, "waiting for container 500, which is locked (backup)") != 1 {
				t.Errorf("status %d\n%s", status, said)
			}
			// Whoever follows the events sees the wait, and that it is over.
			told := regexp.MustCompile(`(?m)"ct.stage".*"stage":"(.*)"}$`).FindAllStringSubmatch(h.read("events"), -1)
			waits := func(m []string) bool { return m[1] == "waiting for container 500, which is locked (backup)" }
			if i := slices.IndexFunc(told, waits); i < 0 || i == len(told)-1 || slices.ContainsFunc(told[i+1:], waits) {
				t.Errorf("told %q", told)
			}
		})
	}
}

// What somebody has changed while phx waited for him counts.
func TestChangedWhileWaiting(t *testing.T) {
	h := converged(t, nil)
	h.configure(map[string]any{"memory_mb": 640})
	h.bash("$PHX_PCT set 500 --lock backup")
	release := "sed -i '/500.command/d' host/proc/net/unix; sed -i 's/^memory: .*/memory: 640/; /^lock: /d' " + conf500
	if said, calls, status := h.phxAwaiting(release, "create"); status != 0 || calls != "start 500\n" {
		t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
	}
}

// A template in a backup holds nobody up; a clone of it waits.
func TestLockedTemplate(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if out, status := h.bash("phx-plan | phx-lxc 2>&1 >events"); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	h.bash("$PHX_PCT stop 101; $PHX_PCT destroy 101; $PHX_PCT set 900 --lock backup")
	out, status := h.with("PHX_LOCK_WAIT=300ms").bash("set -o pipefail; phx-plan | phx-lxc 2>&1 >events")
	if status != 1 || !strings.Contains(out,
		"101 Nginx-Phoenix: define: clone source 900: container 900 is locked (backup): ") {
		t.Errorf("status %d\n%s", status, out)
	}
	for _, ctid := range []string{"900", "102", "103"} {
		if !regexp.MustCompile(`"event":"ct.ready",[^\n]*"ctid":` + ctid + `,`).MatchString(h.read("events")) {
			t.Errorf("%s is not ready:\n%s", ctid, h.read("events"))
		}
	}
	h.wayOut(out)
	if out, status := h.bash("phx-plan | phx-lxc 2>&1 >events"); status != 0 {
		t.Errorf("status %d\n%s", status, out)
	}
}

// The lock of each task that was killed has its own way out, after which the
// next run is well and the container complete.
func TestLockOfATaskThatWasKilled(t *testing.T) {
	const unfinished = "\n[golden]\narch: amd64\nmemory: 512\nsnapstate: %STATE\nsnaptime: 1700000000\n"
	for name, tt := range map[string]struct {
		keys    map[string]any
		byHand  string
		head    string
		tail    string
		advised string
	}{
		"create": {head: "lock: create\n",
			byHand:  "mkdir -p host/storage/lab/images/500/vm-500-disk-7; $PHX_PCT stop 500",
			advised: "pct unlock 500 && pct destroy 500 --destroy-unreferenced-disks 1"},
		"destroyed": {byHand: "$PHX_PCT stop 500; echo 'lock: destroyed' >" + conf500,
			advised: "pct unlock 500 && pct destroy 500 --destroy-unreferenced-disks 1"},
		"snapshot": {keys: map[string]any{"template_snapshot_name": "golden"}, head: "lock: snapshot\n",
			tail:    strings.Replace(unfinished, "%STATE", "prepare", 1),
			advised: "pct unlock 500 && pct delsnapshot 500 golden --force 1"},
		"snapshot-delete": {keys: map[string]any{"template_snapshot_name": "golden"}, head: "lock: snapshot-delete\n",
			tail:    strings.Replace(unfinished, "%STATE", "delete", 1),
			advised: "pct unlock 500 && pct delsnapshot 500 golden --force 1"},
		"snapshot, unlocked by hand": {keys: map[string]any{"template_snapshot_name": "golden"},
			tail:    strings.Replace(unfinished, "%STATE", "prepare", 1),
			advised: "pct delsnapshot 500 golden --force 1"},
		"rollback": {byHand: "$PHX_PCT snapshot 500 before; $PHX_PCT stop 500; $PHX_PCT set 500 --lock rollback",
			advised: "pct unlock 500 && pct rollback 500 before"},
	} {
		t.Run(name, func(t *testing.T) {
			h := converged(t, nil)
			if tt.keys != nil {
				h.configure(tt.keys)
			}
			h.bash(tt.byHand)
			h.setHead(tt.head, tt.tail)
			said, calls, status := h.with("PHX_LOCK_WAIT=300ms").phx("create")
			if status != 1 || strings.Contains(calls, "snapshot") {
				t.Fatalf("status %d, calls\n%s\n%s", status, calls, said)
			}
			if command := h.wayOut(said); command != tt.advised {
				t.Errorf("advised: %s, want: %s", command, tt.advised)
			}
			if said, _, status := h.phx("create"); status != 0 {
				t.Errorf("after %s: status %d\n%s", tt.advised, status, said)
			}
			h.wantUnchanged()
			if disks := h.read("host/storage/lab/images/500/vm-500-disk-7/x"); disks != "" ||
				strings.Contains(h.read(conf500), "snapstate") {
				t.Errorf("%s", h.read(conf500))
			}
			if _, err := os.Stat(h.path("host/storage/lab/images/500/vm-500-disk-7")); err == nil {
				t.Error("the disk of the half container is left")
			}
		})
	}
}

// An unfinished snapshot is not cloned, and is none of the snapshots that a
// complete container has.
func TestUnfinishedSnapshotIsNone(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if out, status := h.bash("phx-plan 900 | phx-lxc 2>&1 >events"); status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	const conf = "host/pve/lxc/900.conf"
	h.write(conf, strings.Replace(h.read(conf), "\nsnaptime: ", "\nsnapstate: prepare\nsnaptime: ", 1))
	if !strings.Contains(h.read(conf), "snapstate: prepare") {
		t.Fatalf("%s", h.read(conf))
	}
	out, status := h.bash("set -o pipefail; phx-plan 103 | phx-lxc 2>&1 >events")
	if status != 1 || !strings.Contains(out, "900 Copy-Base: snapshot: the snapshot final-form is unfinished") ||
		h.read("host/pve/lxc/103.conf") != "" {
		t.Fatalf("status %d\n%s", status, out)
	}
	h.wayOut(out)
	if out, status := h.bash("set -o pipefail; phx-plan 103 | phx-lxc 2>&1 >events"); status != 0 ||
		!strings.Contains(out, "cloned from 900@final-form") {
		t.Errorf("status %d\n%s", status, out)
	}
}

// A container whose making breaks off while phx waits for it is made.
func TestContainerThatVanishesWhileItIsAwaited(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure(nil)
	h.write(conf500, "hostname: Box\nlock: create\nmemory: 512\n")
	if said, calls, status := h.phxAwaiting("rm "+conf500, "create"); status != 0 ||
		!strings.HasPrefix(calls, "create 500") {
		t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
	}
	h.wantUnchanged()
}

// The same for one that is made to its end meanwhile.
func TestContainerThatIsFinishedWhileItIsAwaited(t *testing.T) {
	h := converged(t, nil)
	h.setHead("lock: create\n", "")
	if said, calls, status := h.phxAwaiting("sed -i '/^lock: /d' "+conf500, "create"); status != 0 || calls != "" ||
		!strings.Contains(said, "waiting") {
		t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
	}
}

// status says what a container is locked for.
func TestStatusHasTheLock(t *testing.T) {
	h := converged(t, nil)
	h.bash("$PHX_PCT set 500 --lock backup")
	said, _, status := h.phx("status")
	if status != 0 || !strings.Contains(said, "500 Box: running, locked (backup)\n") ||
		!strings.Contains(h.read("events"), `"state":"running","lock":"backup"`) {
		t.Errorf("status %d\n%s\n%s", status, said, h.read("events"))
	}
	h.bash("$PHX_PCT unlock 500")
	if said, _, _ := h.phx("status"); !strings.Contains(said, "500 Box: running\n") ||
		strings.Contains(h.read("events"), `"lock"`) {
		t.Errorf("%s\n%s", said, h.read("events"))
	}
}

// A restart that has gone wrong does not leave the container down, or says so.
func TestRestartThatFails(t *testing.T) {
	const down = `
if [ "$1" = reboot ]; then
	$PHX_REAL stop 500
	echo "startup for container '500' failed" >&2
	exit 255
fi`
	h := converged(t, nil).stub(down)
	if said, calls, status := h.phx("restart"); status != 0 || !strings.Contains(calls, "start 500") ||
		!strings.Contains(said, "and it is down now: it is started again") {
		t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
	}
	h.wantState("running")
	h = h.with("PHX_LAB_FAIL=start 500")
	if said, _, status := h.phx("restart"); status != 1 ||
		!strings.Contains(said, "500 Box: restart: it was shut down for the restart and is down now: pct start 500: ") {
		t.Errorf("status %d\n%s", status, said)
	}
	h.wantState("stopped")
}

// A storage that takes no snapshots is no failure: that is tried and said
// once, and once more when the volumes are others.
func TestStorageWithoutSnapshots(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.plainStorage()
	keys := map[string]any{"storage_pool": "plain", "enable_lifecycle_snapshots": true,
		"features": []string{"base_setup"}}
	h.configure(keys)
	_, calls, status, stderr := h.run()
	if status != 0 || strings.Count(join(calls), "snapshot 500") != 1 ||
		strings.Count(stderr, "500 Box: it gets no snapshots: pct snapshot 500 pre-configured: "+
			"snapshot feature is not available: its storage takes none") != 1 {
		t.Fatalf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	for _, args := range [][]string{{}, {"--dry-run"}, {}} {
		before := h.read(conf500)
		if _, calls, status, stderr := h.run(args...); status != 0 || len(calls) > 0 ||
			strings.Contains(stderr, "snapshot") || h.read(conf500) != before {
			t.Errorf("%v: status %d, calls\n%s\n%s", args, status, join(calls), stderr)
		}
	}
	// With its volumes on another storage it gets them.
	h.bash(`
		$PHX_PCT stop 500
		mkdir -p host/storage/lab/images
		mv host/storage/plain/images/500 host/storage/lab/images/
		sed -i 's/plain:/lab:/' ` + conf500 + `
		$PHX_PCT start 500`)
	keys["storage_pool"] = "lab"
	h.configure(keys)
	if _, calls, status, stderr := h.run(); status != 0 || !strings.HasPrefix(join(calls), "snapshot 500 final-form") ||
		strings.Contains(h.read(conf500), "+snapshots=") {
		t.Errorf("status %d, calls\n%s\n%s\n%s", status, join(calls), stderr, h.read(conf500))
	}
	h.wantUnchanged()
}

// plainStorage adds a storage that takes no snapshots.
func (h *host) plainStorage() {
	h.t.Helper()
	h.bash("mkdir -p host/storage/plain")
	h.write("host/pve/storage.cfg", h.read("host/pve/storage.cfg")+"\ndir: plain\n\tpath "+h.path("host/storage/plain")+
		"\n\tcontent rootdir\n")
}

// What is cloned from a template without snapshots is cloned from the template
// itself.
func TestCloneOfATemplateWithoutSnapshots(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.plainStorage()
	h.write("phoenix_lxc_configs.json", strings.ReplaceAll(h.read("phoenix_lxc_configs.json"), `"lab"`, `"plain"`))
	out, status := h.bash("set -o pipefail; phx-plan | phx-lxc 2>&1 >events")
	if status != 0 || strings.Contains(out, "103 Step-CA: base_setup") ||
		!strings.Contains(out, "103 Step-CA: container 900 has no snapshot final-form, "+
			"because its storage takes none: the container itself is cloned") {
		t.Fatalf("status %d\n%s", status, out)
	}
	if text := h.read("host/pve/lxc/103.conf"); !strings.Contains(text, "#phx%3A") ||
		strings.Contains(text, "+snapshots=") {
		t.Errorf("%s", text)
	}
	out, status = h.bash(`
		set -o pipefail
		rm host/log/pct.log
		cp -r host/pve before
		phx-plan | phx-lxc 2>&1 >events
		diff -r before host/pve
		cut -f4 host/log/pct.log`)
	if status != 0 || strings.Contains(out, "snapshot") || strings.Contains(h.read("events"), `"changed":true`) {
		t.Errorf("again: status %d\n%s", status, out)
	}
	// One that runs cannot be cloned so: the way out.
	h.bash("$PHX_PCT stop 103; $PHX_PCT destroy 103; $PHX_PCT start 900")
	out, status = h.bash("set -o pipefail; phx-plan 103 | phx-lxc 2>&1 >events")
	if status != 1 || !strings.Contains(out, "900 Copy-Base: it is only cloned from, and runs: ") ||
		!strings.Contains(out, "hint: shut the source down first: pct shutdown 900") {
		t.Errorf("status %d\n%s", status, out)
	}
	h.wayOut(out)
	if out, status = h.bash("set -o pipefail; phx-plan 103 | phx-lxc 2>&1 >events"); status != 0 {
		t.Errorf("status %d\n%s", status, out)
	}
}

// Of several bind mounts the same is named, and in no unchanged run.
func TestBindMountForbidsSnapshots(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var mounts []any
	for _, path := range []string{"/mnt/a", "/mnt/b", "/mnt/c", "/mnt/d", "/mnt/e"} {
		mounts = append(mounts, map[string]any{"host_path": "$WORK/ssl", "container_path": path})
	}
	h.configure(map[string]any{"enable_lifecycle_snapshots": true, "mount_points": mounts})
	if _, calls, status, stderr := h.run(); status != 0 || strings.Contains(join(calls), "snapshot") ||
		strings.Count(stderr,
			"it gets no snapshots: Proxmox makes no snapshot of a container with a bind mount (mp0)") != 1 {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	for _, args := range [][]string{{}, {"--dry-run"}} {
		if _, calls, status, stderr := h.run(args...); status != 0 || len(calls) > 0 ||
			strings.Contains(stderr, "snapshot") {
			t.Errorf("%v: status %d, calls\n%s\n%s", args, status, join(calls), stderr)
		}
	}
}

// A command that a run left behind when it was killed is awaited: a template
// that is started late does not stay running.
func TestCommandLeftBehind(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	keys := map[string]any{"template_snapshot_name": "golden", "features": []string{"base_setup"}}
	h.configure(keys)
	if _, _, status, stderr := h.with("PHX_LAB_FAIL=start 500").run(); status != 1 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	h = h.stub(`if [ -n "$LATE" ]; then until [ -e $PHX_WORK/go ]; do sleep 0.05; done; fi`)
	h.bash("LATE=1 bin/pct start 500 >/dev/null 2>&1 & echo $! >late")
	said, _, status := h.phxAwaiting("touch go", "create")
	if status != 0 || !strings.Contains(said,
		"500 Box: waiting for the end of: pct start 500 (process "+strings.TrimSpace(h.read("late"))+")") {
		t.Errorf("status %d\n%s", status, said)
	}
	h.bash("touch go; while kill -0 $(cat late); do sleep 0.1; done")
	h.wantState("stopped")
	h.wantUnchanged()
	// One that does not end is named, with the way out.
	keys["memory_mb"] = 640
	h.configure(keys)
	h.bash("rm go; LATE=1 bin/pct set 500 --cores 1 >/dev/null 2>&1 & echo $! >late")
	said, calls, status := h.with("PHX_LOCK_WAIT=300ms").phx("create")
	if status != 1 || calls != "" || !strings.Contains(said,
		"configure: pct set 500 --cores 1 still runs (process "+strings.TrimSpace(h.read("late"))+")") {
		t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
	}
	h.wayOut(said)
	if said, _, status := h.phx("create"); status != 0 {
		t.Errorf("status %d\n%s", status, said)
	}
}

// The number of a virtual machine is no container's, whatever is to be done.
func TestVirtualMachine(t *testing.T) {
	for _, place := range []string{"qemu-server", "nodes/pve2/qemu-server"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.configure(nil)
			h.bash("mkdir -p host/pve/" + place + "; touch host/pve/" + place + "/500.conf")
			for _, action := range []string{"create", "create --dry-run", "delete", "status", "start"} {
				said, calls, status := h.phx(action)
				if status != 1 || calls != "" ||
					!strings.Contains(said,
						"500 is a virtual machine ("+h.path("host/pve/"+place+"/500.conf")+
							"), and phx manages containers: ") {
					t.Errorf("%s: status %d, calls\n%s\n%s", action, status, calls, said)
				}
			}
		})
	}
}

// What protects a container from being deleted is said with its number.
func TestProtectedContainer(t *testing.T) {
	h := converged(t, nil)
	h.bash("$PHX_PCT set 500 --protection 1")
	said, calls, status := h.phx("delete")
	if status != 1 || calls != "" {
		t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
	}
	h.wayOut(said)
	if said, _, status := h.phx("delete"); status != 0 {
		t.Errorf("status %d\n%s", status, said)
	}
	// The same for one that is not there.
	said, _, status = h.phx("start")
	if command := h.wayOut(said); status != 1 || command != "phoenix 500" {
		t.Errorf("status %d\n%s", status, said)
	}
	if said, _, status := h.phx("start"); status != 0 {
		t.Errorf("status %d\n%s", status, said)
	}
}

// What a lock of a task that changes no configuration leaves is released.
func TestLockThatIsOnlyReleased(t *testing.T) {
	for lock, advised := range map[string]string{
		"backup": "pct unlock 500", "disk": "pct unlock 500", "migrate": "pct unlock 500", "fstrim": "pct unlock 500",
		"mounted": "pct unmount 500",
	} {
		t.Run(lock, func(t *testing.T) {
			h := converged(t, nil).stub(`if [ "$1" = unmount ]; then shift; exec $PHX_REAL unlock "$@"; fi`)
			h.bash("$PHX_PCT set 500 --lock " + lock)
			h.configure(map[string]any{"memory_mb": 640})
			said, calls, status := h.with("PHX_LOCK_WAIT=300ms").phx("create")
			if status != 1 || calls != "" {
				t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
			}
			if command := h.wayOut(said); command != advised {
				t.Errorf("advised: %s, want: %s", command, advised)
			}
			if said, calls, status := h.phx("create"); status != 0 || calls != "set 500 --memory 640\n" {
				t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
			}
		})
	}
}

// A container that could not be destroyed is down, which is said.
func TestDeleteThatFails(t *testing.T) {
	h := converged(t, nil)
	said, _, status := h.with("PHX_LAB_FAIL=destroy 500").phx("delete")
	if status != 1 || !strings.Contains(said, "500 Box: delete: pct destroy 500: PHX_LAB_FAIL") {
		t.Errorf("status %d\n%s", status, said)
	}
	h.wantState("stopped")
	if command := h.wayOut(said); command != "phoenix --action start 500" {
		t.Errorf("advised: %s", command)
	}
	h.wantState("running")
	h.wantUnchanged()
}

// The ways out that need programs of Proxmox beside pct.
func TestWaysOutWithOtherPrograms(t *testing.T) {
	t.Run("a template that is missing", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.write("bin/pveam", `#!/bin/sh
case $1 in
update) ;;
download) [ "$2" = local ] && : >$PHX_WORK/host/storage/local/template/cache/$3 ;;
esac
`)
		h.bash("chmod +x bin/pveam")
		h.configure(map[string]any{"template": "local:vztmpl/debian-13-standard_13.1-2_amd64.tar.zst"})
		_, _, status, stderr := h.run()
		if command := h.wayOut(stderr); status != 1 ||
			command != "pveam update && pveam download local debian-13-standard_13.1-2_amd64.tar.zst" {
			t.Errorf("status %d, advised: %s\n%s", status, command, stderr)
		}
		if _, _, status, stderr := h.run(); status != 0 {
			t.Errorf("status %d\n%s", status, stderr)
		}
	})
	t.Run("a container on another node", func(t *testing.T) {
		h := converged(t, nil)
		// pct migrate stops and starts a running container only when it is told to.
		h.write("bin/ssh", `#!/bin/sh
[ "$1 $2 $3 $4 $6 $7" = 'pve2 pct migrate 500 --restart 1' ] && [ "$5" = pve1 ] &&
	mv $PHX_PVE_ROOT/nodes/pve2/lxc/500.conf $PHX_PVE_ROOT/lxc/
`)
		h.bash("chmod +x bin/ssh; mkdir -p host/pve/nodes/pve2/lxc; mv " + conf500 + " host/pve/nodes/pve2/lxc/")
		said, calls, status := h.phx("create")
		if status != 1 || calls != "" ||
			!strings.Contains(said, "500 Box: define: the container is on the node pve2: ") {
			t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
		}
		h.wayOut(said)
		h.wantUnchanged()
	})
	t.Run("a lock file that somebody holds", func(t *testing.T) {
		needsFull(t)
		h := converged(t, map[string]any{"memory_mb": 640})
		h.configure(nil)
		h.bash(`
			(exec 9>>host/lock/pve-config-500.lock; flock 9; exec sleep 60) >/dev/null 2>&1 &
			echo $! >holder
			while flock -n host/lock/pve-config-500.lock true; do sleep 0.05; done`)
		said, _, status := h.phx("create")
		if status != 1 || !strings.Contains(said,
			"hint: another command holds "+h.path("host/lock/pve-config-500.lock")+": see which with: fuser -v ") {
			t.Errorf("status %d\n%s", status, said)
		}
		h.wayOut(said)
		h.bash("kill $(cat holder)")
		if said, _, status := h.phx("create"); status != 0 {
			t.Errorf("status %d\n%s", status, said)
		}
	})
}

// Warnings of Proxmox's commands that ended well are passed on, once.
func TestWarningsArePassedOn(t *testing.T) {
	h := converged(t, nil).stub(`
case "$1" in
start|reboot)
	echo "WARN: Systemd 252 detected. You may need to enable nesting."
	echo "Task finished with 1 warning(s)!" >&2
	;;
esac`)
	h.bash("$PHX_PCT stop 500")
	said, _, status := h.phx("create")
	if status != 0 || strings.Count(said,
		"500 Box: WARN: Systemd 252 detected. You may need to enable nesting.\n") != 1 {
		t.Errorf("status %d\n%s", status, said)
	}
	for line := range strings.Lines(h.read("events")) {
		if !json.Valid([]byte(line)) {
			t.Errorf("%q", line)
		}
	}
}

// A dry run changes nothing, and so waits for no lock but that of a container
// which is still being made.
func TestDryRunOfALockedContainer(t *testing.T) {
	h := converged(t, nil)
	h.configure(map[string]any{"memory_mb": 640})
	h.bash("$PHX_PCT set 500 --lock backup")
	h = h.with("PHX_LOCK_WAIT=300ms")
	if said, calls, status := h.phx("create", "--dry-run"); status != 3 || calls != "" ||
		strings.Contains(said, "waiting") || !strings.Contains(said, "would run: "+bin+"/pct set 500 --memory 640") {
		t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
	}
	h.bash("$PHX_PCT unlock 500")
	h.setHead("lock: create\n", "")
	if said, calls, status := h.phx("create", "--dry-run"); status != 1 || calls != "" ||
		!strings.Contains(said, "500 Box: define: container 500 is locked (create): ") {
		t.Errorf("status %d, calls\n%s\n%s", status, calls, said)
	}
}
