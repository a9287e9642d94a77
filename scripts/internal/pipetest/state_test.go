package pipetest

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

var withVolume = map[string]any{"volumes": []any{map[string]any{"name": "data", "pool": "lab", "size_gb": 2,
	"mount_point": "/data"}}}

// pctInAdvice is a command that a message tells one to run.
var pctInAdvice = regexp.MustCompile(`pct set 500 --(?:mp\d+ [^ ;]+|revert mp\d+)`)

// wantRefusal checks that neither a dry run nor a run changes anything, and
// returns the commands of pct that the reason names.
func (h *host) wantRefusal(said string) (advice []string) {
	h.t.Helper()
	for _, args := range [][]string{{"--dry-run"}, {}} {
		before := h.read(conf500)
		_, calls, status, stderr := h.run(args...)
		if status != 1 || len(calls) > 0 || h.read(conf500) != before || !strings.Contains(stderr, said) ||
			!strings.Contains(stderr, "nothing was changed") {
			h.t.Errorf("%v: status %d, calls\n%s\n%s\nwant %q", args, status, join(calls), stderr, said)
		}
		advice = pctInAdvice.FindAllString(stderr, -1)
	}
	return advice
}

// follow runs a command of pct that phx has named.
func (h *host) follow(advice string) {
	h.t.Helper()
	if out, status := h.bash("$PHX_PCT" + strings.TrimPrefix(advice, "pct")); status != 0 {
		h.t.Fatalf("%s: status %d\n%s", advice, status, out)
	}
}

// A volume is allocated once: where it is gone, an empty one does not take its
// place. Each way out that is named is one.
func TestVolumeIsNotReplacedByAnEmptyOne(t *testing.T) {
	const mounted = "mp0: lab:500/vm-500-disk-0.raw,mp=/data"
	h := converged(t, withVolume)
	if !strings.Contains(h.read(conf500), mounted) {
		t.Fatalf("%s", h.read(conf500))
	}
	back := func(advice string) {
		t.Helper()
		h.follow(advice)
		h.bash("$PHX_PCT start 500")
		if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 ||
			!strings.Contains(h.read(conf500), mounted) {
			t.Errorf("after %s: status %d, calls\n%s\n%s\n%s", advice, status, join(calls), stderr, h.read(conf500))
		}
		h.wantUnchanged()
	}
	// Of a running container: its removal waits.
	h.bash("$PHX_PCT set 500 --delete mp0")
	advice := h.wantRefusal("the volume at /data (mp0) is removed at the next start")
	back(advice[0])
	// It is removed, and kept as unused0.
	h.bash("$PHX_PCT stop 500; $PHX_PCT set 500 --delete mp0")
	if _, _, _, stderr := h.run(); !strings.Contains(stderr,
		"the container is stopped, and stays so until that is settled") {
		t.Errorf("not said that it is stopped:\n%s", stderr)
	}
	advice = h.wantRefusal("the volume at /data is not mounted any more")
	back(advice[0])
	// Nothing tells that phx has allocated it, but for the unused volume.
	h.bash("$PHX_PCT stop 500; $PHX_PCT set 500 --delete mp0 --description none")
	advice = h.wantRefusal("unused0")
	back(advice[0])
	// It is destroyed: a new one is made by hand alone.
	h.bash("$PHX_PCT stop 500; $PHX_PCT set 500 --delete mp0; $PHX_PCT set 500 --delete unused0")
	advice = h.wantRefusal("pvesm list lab --vmid 500")
	h.follow(advice[len(advice)-1])
	h.bash("$PHX_PCT start 500")
	if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	h.wantUnchanged()
}

// A rollback to before a volume keeps the notes, and the volume as an unused
// one.
func TestVolumeOfAfterARollback(t *testing.T) {
	h := converged(t, nil)
	h.bash("$PHX_PCT snapshot 500 before")
	h.configure(withVolume)
	if _, _, status, stderr := h.run(); status != 0 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	h.wantUnchanged()
	h.bash("$PHX_PCT rollback 500 before --start 1")
	advice := h.wantRefusal("the volume at /data is not mounted any more")
	h.follow(advice[0])
	if _, _, status, stderr := h.run(); status != 0 {
		t.Errorf("status %d\n%s", status, stderr)
	}
	h.wantUnchanged()
}

// A volume counts as allocated once it is there: what a run that broke off has
// not allocated, the next one does.
func TestVolumeOfAnUnfinishedRun(t *testing.T) {
	h := converged(t, nil)
	h.configure(withVolume)
	// pct set is killed with its caller, before it has done anything.
	h.write("bin/killer", "#!/bin/sh\ncase \" $* \" in *\" set 500 \"*) kill -KILL $PPID; exit 1 ;; esac\nexec "+bin+
		"/pct \"$@\"\n")
	os.Chmod(h.path("bin/killer"), 0o755)
	killed := h.with("PHX_PCT=" + h.path("bin/killer"))
	if _, _, status, stderr := killed.run(); status != 137 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	if _, calls, status, stderr := h.run(); status != 0 ||
		!strings.Contains(join(calls), "set 500 --mp0 lab:2,mp=/data") {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	h.wantUnchanged()
	// It is killed once it has: the volume is known, and not forgotten.
	h.write("bin/killer", "#!/bin/sh\n"+bin+
		"/pct \"$@\" || exit\ncase \" $* \" in *\" set 500 \"*) kill -KILL $PPID ;; esac\n")
	h.configure(map[string]any{"volumes": []any{withVolume["volumes"].([]any)[0],
		map[string]any{"name": "more", "pool": "lab", "size_gb": 1, "mount_point": "/more"}}})
	if _, _, status, stderr := killed.run(); status != 137 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	h.bash("$PHX_PCT stop 500; $PHX_PCT set 500 --delete mp1; $PHX_PCT set 500 --delete unused0")
	h.wantRefusal("the volume at /more is not mounted any more")
}

// features is a container with these features, and the snapshots of its life.
func features(names ...string) map[string]any {
	return map[string]any{"features": names, "enable_lifecycle_snapshots": true}
}

// wantApplied checks which features a run installs, and says that it does so
// because of a rollback.
func (h *host) wantApplied(rolledBack bool, names ...string) {
	h.t.Helper()
	_, _, status, stderr := h.run("--dry-run")
	if status != 3 || strings.Contains(stderr, "has been rolled back") != rolledBack {
		h.t.Errorf("dry run: status %d\n%s", status, stderr)
	}
	_, calls, status, stderr := h.run()
	var applied []string
	for _, c := range calls {
		if name, ok := strings.CutPrefix(strings.Join(c, " "), "exec --keep-env 0 500 -- feature "); ok {
			applied = append(applied, name)
		}
	}
	if status != 0 || strings.Join(applied, " ") != strings.Join(names, " ") ||
		strings.Contains(stderr, "has been rolled back") != rolledBack {
		h.t.Errorf("status %d, applied %q, want %q\n%s", status, applied, names, stderr)
	}
	h.wantUnchanged()
}

// What a rollback has taken away is applied again, and nothing else.
func TestRollback(t *testing.T) {
	rollback := func(h *host, to string) {
		t.Helper()
		if out, status := h.bash("$PHX_PCT rollback 500 " + to + " --start 1"); status != 0 {
			t.Fatalf("status %d\n%s", status, out)
		}
	}
	t.Run("to the snapshot that is the last", func(t *testing.T) {
		h := converged(t, features("base_setup"))
		h.configure(features("base_setup", "step_cli"))
		h.wantApplied(false, "step_cli")
		rollback(h, "final-form")
		h.wantApplied(true, "step_cli")
		rollback(h, "pre-configured")
		h.wantApplied(true, "base_setup", "step_cli")
		// And to what is newer than the record.
		h.configure(features("base_setup", "step_cli", "traefik"))
		h.bash("$PHX_PCT snapshot 500 two")
		h.wantApplied(false, "traefik")
		h.bash("$PHX_PCT snapshot 500 three")
		rollback(h, "two")
		h.wantApplied(true, "traefik")
		rollback(h, "three")
		h.wantUnchanged()
	})
	t.Run("to a snapshot that was made by hand", func(t *testing.T) {
		h := converged(t, map[string]any{"features": []string{"base_setup"}})
		h.bash("$PHX_PCT snapshot 500 mine --description mine")
		h.wantUnchanged() // that is no rollback
		h.configure(map[string]any{"features": []string{"base_setup", "step_cli"}})
		h.wantApplied(false, "step_cli")
		h.bash("$PHX_PCT snapshot 500 later; $PHX_PCT delsnapshot 500 later")
		h.wantUnchanged() // nor is that
		rollback(h, "mine")
		// What is done to snapshots before phx comes does not matter.
		h.bash("$PHX_PCT snapshot 500 after; $PHX_PCT delsnapshot 500 mine")
		h.wantApplied(true, "step_cli")
	})
	t.Run("raw lines", func(t *testing.T) {
		keys := features("base_setup")
		keys["lxc_options"] = []string{"lxc.environment=A=1"}
		h := converged(t, keys)
		h.configure(features("base_setup", "step_cli"))
		h.wantApplied(false, "step_cli")
		if head, _, _ := strings.Cut(h.read(conf500), "\n["); strings.Contains(head, "A=1") {
			t.Fatalf("%s", head)
		}
		rollback(h, "final-form")
		h.wantApplied(true, "step_cli")
		if head, _, _ := strings.Cut(h.read(conf500), "\n["); strings.Contains(head, "A=1") {
			t.Errorf("a line that phx had written, and has removed, is back:\n%s", head)
		}
	})
	t.Run("by somebody who takes old notes again", func(t *testing.T) {
		h := converged(t, features("base_setup"))
		old := h.recordLine()
		h.configure(features("base_setup", "step_cli"))
		h.wantApplied(false, "step_cli")
		h.write(conf500, strings.Replace(h.read(conf500), h.recordLine(), old, 1))
		if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 {
			t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
		}
	})
}

// A needed restart is due until the container has been restarted, by whomever,
// and whatever is written into its notes or its configuration meanwhile.
func TestRestartThatIsDue(t *testing.T) {
	due := func(h *host, want string) {
		t.Helper()
		events, _, status, stderr := h.run()
		for _, ev := range events {
			if ev["event"] == "ct.ready" {
				if got := strings.Trim(fmt.Sprint(ev["restart_required"]), "[]"); status != 0 || got != want {
					t.Errorf("status %d, restart_required %q, want %q\n%s", status, got, want, stderr)
				}
			}
		}
	}
	h := converged(t, nil)
	h.configure(map[string]any{"lxc_options": []string{"lxc.environment=A=1"}})
	due(h, "lxc")
	// It costs no call: whether it has been restarted is seen by its process.
	due(h, "lxc")
	if calls := h.read("host/log/pct.log"); strings.Count(calls, "\n") != 1 {
		t.Errorf("calls while a restart is due:\n%s", calls)
	}
	h.bash("$PHX_PCT set 500 --description mine")
	due(h, "lxc")
	h.configure(map[string]any{"lxc_options": []string{"lxc.environment=A=1"}, "memory_mb": 600})
	due(h, "lxc")
	time.Sleep(2100 * time.Millisecond) // Proxmox tells when it was started to the second
	h.bash("$PHX_PCT reboot 500")
	h.bash("$PHX_PCT set 500 --memory 512")
	time.Sleep(time.Second)
	_, calls, status, stderr := h.run("--restart")
	if status != 0 || join(calls) != "set 500 --memory 600" {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	due(h, "")
	if strings.Contains(h.read(conf500), "phx-restart") {
		t.Errorf("%s", h.read(conf500))
	}
	// One that was stopped has seen all when it starts, and so has a clone.
	h.configure(map[string]any{"lxc_options": []string{"lxc.environment=A=2"}, "memory_mb": 600})
	due(h, "lxc")
	h.bash("$PHX_PCT stop 500")
	if _, calls, _, _ := h.run("--restart"); join(calls) != "start 500" {
		t.Errorf("calls\n%s", join(calls))
	}
	due(h, "")
	h.wantUnchanged()
}

// Whether a mount point that is not there is a file or a directory is not
// guessed by halves.
func TestHostPathWithADot(t *testing.T) {
	h := converged(t, nil)
	mount := func(path string) {
		h.configure(map[string]any{"memory_mb": 600,
			"mount_points": []any{map[string]any{"host_path": "$WORK/" + path, "container_path": "/mnt/x"}}})
	}
	mount("etc/conf.d")
	for _, args := range [][]string{{"--dry-run"}, {}} {
		before := h.read(conf500)
		_, calls, status, stderr := h.run(args...)
		if status != 1 || len(calls) > 0 || h.read(conf500) != before ||
			!strings.Contains(stderr, "with a slash at its end: "+h.path("etc/conf.d")+"/") {
			t.Errorf("%v: status %d, calls\n%s\n%s", args, status, join(calls), stderr)
		}
	}
	if _, err := os.Stat(h.path("etc")); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
	// The ways out.
	mount("etc/conf.d/")
	if _, _, status, stderr := h.run(); status != 0 {
		t.Errorf("status %d\n%s", status, stderr)
	}
	if info, err := os.Stat(h.path("etc/conf.d")); err != nil || !info.IsDir() {
		t.Errorf("%v", err)
	}
	h.wantUnchanged()
	mount("a.file")
	h.write("a.file", "")
	if _, _, status, stderr := h.run(); status != 0 {
		t.Errorf("status %d\n%s", status, stderr)
	}
	h.wantUnchanged()
}

// A file system that takes no write is an error that says so: the files stay
// as they were, nothing is left beside them, and the next run does it all.
func TestFileSystemThatTakesNoWrite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	h := converged(t, map[string]any{"firewall": map[string]any{"enabled": true, "rules": []any{}}})
	h.configure(map[string]any{"lxc_options": []string{"lxc.environment=A=1"},
		"firewall": map[string]any{"enabled": true, "rules": []any{
			map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "22"}}}})
	out, _ := h.bash(`unshare -m bash -c '
		for dir in lxc firewall; do
			at=host/pve/$dir
			mkdir kept; cp $at/500.* kept/
			mount -t tmpfs -o size=32k tmpfs $at || exit
			cp kept/500.* $at/
			for why in full readonly; do
				if [ $why = full ]; then cat /dev/zero >$at/fill 2>/dev/null; else mount -o remount,ro $at; fi
				phx-plan | phx-lxc >events; echo "$dir $why: ${PIPESTATUS[1]}"
				cmp kept/500.* $at/500.* && echo "$dir $why: as it was"
				[ "$(ls -A $at | grep -vc -e "^500" -e fill)" = 0 ] || ls -A $at
				if [ $why = full ]; then rm $at/fill; else mount -o remount,rw $at; fi
			done
			cp $at/500.* kept/; umount $at; cp kept/500.* $at/; rm -r kept
		done
		phx-plan | phx-lxc >events; echo "then: ${PIPESTATUS[1]}"
		grep -o -e "-dport 22" host/pve/firewall/500.fw
		grep -o A=1 host/pve/lxc/500.conf'`)
	want := []string{
		"500 Box: raw lines: replace " + h.path(conf500) + ": ", "no space left on device", "lxc full: 1",
		"lxc full: as it was",
		"500 Box: raw lines: replace " + h.path(conf500) + ": ", "read-only file system", "lxc readonly: 1",
		"lxc readonly: as it was",
		"500 Box: firewall: replace " + h.path(fw500) + ": ", "no space left on device", "firewall full: 1",
		"firewall full: as it was",
		"500 Box: firewall: replace " + h.path(fw500) + ": ", "read-only file system", "firewall readonly: 1",
		"firewall readonly: as it was",
		"then: 0\n-dport 22\nA=1\n",
	}
	rest := out
	for _, w := range want {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Fatalf("no %q, in its place, in\n%s", w, out)
		}
		rest = after
	}
	h.wantUnchanged()
}

// An unchanged run waits for nobody: neither for a task of Proxmox that holds
// the lock of the configuration, nor for whoever edits the firewall.
func TestUnchangedRunTakesNoLock(t *testing.T) {
	h := converged(t, map[string]any{"features": []string{"base_setup"}, "lxc_options": []string{"lxc.environment=A=1"},
		"firewall": map[string]any{"enabled": true,
			"rules": []any{map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "22"}}}})
	out, status := h.bash(`mkdir -p host/pve/priv/lock/firewall-vm-500 host/pve/priv/lock/phx-record
		flock --exclusive host/lock/pve-config-500.lock sh -c '
			phx-plan | timeout 60 phx-lxc >events
			grep -o "\"changed\":[a-z]*" events'`)
	if status != 0 || !strings.Contains(out, "500 Box: unchanged") || strings.Contains(out, "waiting") ||
		!strings.Contains(out, `"changed":false`) {
		t.Errorf("status %d\n%s", status, out)
	}
}

// An AppArmor profile that a run has written is phx's own, also when the run
// then fails: a newer one takes its place.
func TestProfileOfARunThatFailed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	for _, place := range []string{"host/pve/lxc", "apparmor.d"} {
		t.Run(place, func(t *testing.T) {
			h := converged(t, map[string]any{"apparmor_profile": "lxc-phoenix"})
			h.write("apparmor/lxc-phoenix", "profile lxc-phoenix { 2 }\n")
			out, _ := h.bash("unshare -m bash -c 'mount --bind " + place + " " + place +
				" && mount -o remount,bind,ro " + place + " && phx-plan | phx-lxc >events; echo ${PIPESTATUS[1]}'")
			if !strings.Contains(out, "read-only file system") || !strings.HasSuffix(out, "\n1\n") {
				t.Fatalf("%s", out)
			}
			h.write("apparmor/lxc-phoenix", "profile lxc-phoenix { 3 }\n")
			if _, _, status, stderr := h.run(); status != 0 ||
				h.read("apparmor.d/lxc-phoenix") != "profile lxc-phoenix { 3 }\n" {
				t.Errorf("status %d\n%s\n%s", status, stderr, h.read("apparmor.d/lxc-phoenix"))
			}
			h.wantUnchanged()
			if strings.Contains(h.record(h.read(conf500)), ",") {
				t.Errorf("the record has more than what is there: %s", h.read(conf500))
			}
		})
	}
}
