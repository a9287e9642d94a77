package pipetest

import (
	"bufio"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// bash runs a script on the host and returns what it printed and its status.
func (h *host) bash(script string) (output string, status int) {
	h.t.Helper()
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir, cmd.Env = h.dir, h.env
	out, err := cmd.CombinedOutput()
	if _, isExit := err.(*exec.ExitError); err != nil && !isExit {
		h.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// with returns the host with a variable set in its environment.
func (h *host) with(variable string) *host {
	changed := *h
	changed.env = append(h.env[:len(h.env):len(h.env)], variable)
	return &changed
}

// converged returns a host on which the container is what these keys say.
func converged(t *testing.T, keys map[string]any) *host {
	t.Helper()
	t.Parallel()
	h := newHost(t)
	h.configure(keys)
	if _, _, status, stderr := h.run(); status != 0 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	return h
}

func (h *host) wantState(state string) {
	h.t.Helper()
	if out, _ := h.bash("$PHX_PCT list"); !strings.Contains(out, "500        "+state) {
		h.t.Errorf("want 500 %s:\n%s", state, out)
	}
}

func (h *host) wantUnchanged() {
	h.t.Helper()
	if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 {
		h.t.Errorf("another run: status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
}

const conf500 = "host/pve/lxc/500.conf"

// What the bash scripts that phx replaces got wrong.
func TestDefectsOfTheOldScripts(t *testing.T) {
	t.Run("a failure leaves a running container running", func(t *testing.T) {
		h := converged(t, nil)
		h.configure(map[string]any{"memory_mb": 1024, "cores": 2})
		if _, _, status, stderr := h.with("PHX_LAB_FAIL=set 500").run(); status != 1 ||
			!strings.Contains(stderr, "500 Box: configure: pct set 500") {
			t.Errorf("status %d\n%s", status, stderr)
		}
		h.wantState("running")
	})
	t.Run("a container whose feature failed is not done", func(t *testing.T) {
		h := converged(t, nil)
		h.configure(map[string]any{"features": []string{"base_setup"}})
		for range 2 {
			if _, _, status, _ := h.with("PHX_LAB_FAIL=exec 500").run(); status != 1 {
				t.Errorf("status %d", status)
			}
		}
		if _, calls, status, _ := h.run(); status != 0 || !strings.Contains(join(calls), "feature base_setup") {
			t.Errorf("status %d, calls\n%s", status, join(calls))
		}
		h.wantUnchanged()
	})
	t.Run("a stopped container is started", func(t *testing.T) {
		h := converged(t, nil)
		h.bash("$PHX_PCT stop 500")
		if _, calls, _, _ := h.run(); join(calls) != "start 500" {
			t.Errorf("calls\n%s", join(calls))
		}
		h.wantState("running")
	})
	t.Run("a running container is not stopped to be changed", func(t *testing.T) {
		h := converged(t, nil)
		h.configure(map[string]any{"memory_mb": 2048, "pct_options": []string{"nesting=1"},
			"lxc_options": []string{"lxc.environment=A=1"}})
		if _, calls, _, _ := h.run(); strings.Contains(join(calls), "stop") ||
			strings.Contains(join(calls), "shutdown") || strings.Contains(join(calls), "reboot") {
			t.Errorf("calls\n%s", join(calls))
		}
	})
	t.Run("an interrupt ends the run with a message and the next one completes it", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.configure(map[string]any{"features": []string{"base_setup"}})
		slow := h.with("PHX_LAB_DELAY=0.3")
		cmd := exec.Command("bash", "-c", "phx-plan | exec phx-lxc")
		cmd.Env = slow.env
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "created from") {
				syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
			}
		}
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 ||
			!strings.Contains(said.String(), "stopped by signal: interrupt") {
			t.Errorf("status %d\n%s", code, said.String())
		}
		if _, _, status, stderr := h.run(); status != 0 {
			t.Errorf("the next run: status %d\n%s", status, stderr)
		}
		h.wantState("running")
		h.wantUnchanged()
	})
	t.Run("two runs at once do not meet", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.configure(nil)
		out, _ := h.with("PHX_LAB_DELAY=0.2").bash(`
			phoenix >/dev/null 2>&1 &
			sleep 0.3
			phoenix
			echo "second $?"
			wait $!
			echo "first $?"`)
		if !strings.Contains(out, "second 75") || !strings.Contains(out, "first 0") {
			t.Errorf("%s", out)
		}
	})
	t.Run("lxc_options with blanks are one line", func(t *testing.T) {
		h := converged(t, map[string]any{"lxc_options": []string{"lxc.cgroup2.devices.allow: c 10:200 rwm"}})
		if !strings.Contains(h.read(conf500), "\nlxc.cgroup2.devices.allow: c 10:200 rwm\n") {
			t.Errorf("%s", h.read(conf500))
		}
		h.wantUnchanged()
	})
	t.Run("a host path with a blank is one path", func(t *testing.T) {
		h := converged(t, map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/a b",
			"container_path": "/mnt/a b"}}})
		if !strings.Contains(h.read(conf500), "\nmp0: "+h.dir+"/a b,mp=/mnt/a b\n") {
			t.Errorf("%s", h.read(conf500))
		}
		h.wantUnchanged()
	})
	t.Run("a missing boot_order leaves no empty value", func(t *testing.T) {
		h := converged(t, map[string]any{"boot_delay": 5})
		if !strings.Contains(h.read(conf500), "\nstartup: up=5,down=5\n") {
			t.Errorf("%s", h.read(conf500))
		}
	})
	t.Run("mount points are not added on every run", func(t *testing.T) {
		h := converged(t, map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/ssl",
			"container_path": "/mnt/ssl"}}})
		h.wantUnchanged()
		if n := strings.Count(h.read(conf500), "mp=/mnt/ssl"); n != 1 {
			t.Errorf("%d mount points", n)
		}
	})
	t.Run("raw lines do not land in a snapshot", func(t *testing.T) {
		h := converged(t, map[string]any{"template_snapshot_name": "golden", "start_at_boot": true})
		h.configure(map[string]any{"template_snapshot_name": "golden", "start_at_boot": true,
			"lxc_options": []string{"lxc.environment=A=1"}})
		h.run()
		current, _, ok := strings.Cut(h.read(conf500), "[golden]")
		if !ok || !strings.Contains(current, "\nlxc.environment: A=1\n") ||
			strings.Count(h.read(conf500), "lxc.environment") != 1 {
			t.Errorf("%s", h.read(conf500))
		}
		h.wantUnchanged()
	})
	firewall := map[string]any{"firewall": map[string]any{"enabled": true, "rules": []any{
		map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "22"},
		map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "443"},
		map[string]any{"type": "in", "action": "DROP"}}}}
	const rules = "[RULES]\n\nIN ACCEPT -p tcp -dport 22\nIN ACCEPT -p tcp -dport 443\nIN DROP\n"
	t.Run("firewall rules keep their order and are enabled", func(t *testing.T) {
		h := converged(t, firewall)
		if text := h.read("host/pve/firewall/500.fw"); !strings.Contains(text, rules) ||
			!strings.Contains(text, "enable: 1") {
			t.Errorf("%s", text)
		}
	})
	t.Run("firewall rules are not added on every run", func(t *testing.T) {
		h := converged(t, firewall)
		h.wantUnchanged()
		h.write("host/pve/firewall/500.fw",
			strings.ReplaceAll(h.read("host/pve/firewall/500.fw"), rules, rules+rules[len("[RULES]\n\n"):]))
		h.run()
		if text := h.read("host/pve/firewall/500.fw"); strings.Count(text, "-dport 22") != 1 {
			t.Errorf("%s", text)
		}
		h.wantUnchanged()
	})
	t.Run("a snapshot is not taken for another whose name begins like it", func(t *testing.T) {
		h := converged(t, nil)
		h.bash("$PHX_PCT snapshot 500 golden-old")
		h.configure(map[string]any{"template_snapshot_name": "golden"})
		h.run()
		if !strings.Contains(h.read(conf500), "\n[golden]\n") {
			t.Errorf("%s", h.read(conf500))
		}
	})
	t.Run("snapshots are not deleted and made again on every run", func(t *testing.T) {
		h := converged(t, map[string]any{"enable_lifecycle_snapshots": true})
		if text := h.read(conf500); !strings.Contains(text, "[pre-configured]") ||
			!strings.Contains(text, "[final-form]") {
			t.Errorf("%s", text)
		}
		h.wantUnchanged()
	})
	t.Run("a snapshot that a bind mount forbids is said and is no error", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.configure(map[string]any{"enable_lifecycle_snapshots": true,
			"mount_points": []any{map[string]any{"host_path": "$WORK/ssl", "container_path": "/mnt/ssl"}}})
		if _, _, status, stderr := h.run(); status != 0 ||
			!strings.Contains(stderr,
				"it gets no snapshots: Proxmox makes no snapshot of a container with a bind mount (mp0)") {
			t.Errorf("status %d\n%s", status, stderr)
		}
	})
	t.Run("a template does not stay running", func(t *testing.T) {
		h := converged(t, map[string]any{"template_snapshot_name": "golden", "features": []string{"base_setup"}})
		h.wantState("stopped")
		h.wantUnchanged()
	})
	t.Run("a key that is missing is not looked up at the root of the file", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.configure(map[string]any{"memory_mb": nil})
		h.write("phoenix_lxc_configs.json",
			strings.Replace(h.read("phoenix_lxc_configs.json"), "{", `{"memory_mb": 512,`, 1))
		if out, status := h.bash("phx-plan"); status != 2 || !strings.Contains(out, "lxc_configs.500") ||
			!strings.Contains(out, "memory_mb") {
			t.Errorf("status %d\n%s", status, out)
		}
	})
	for name, script := range map[string]string{
		"an unknown container is an error":     "phoenix 501",
		"a filter for a container is an error": "phoenix '(.vmid)'",
		"invalid JSON is an error":             "echo '{' >phoenix_lxc_configs.json; phoenix",
		"a missing configuration is an error":  "PHX_CONFIG=/none phoenix",
		"an unknown action is an error":        "phoenix --action dance 500",
		"a dependency on itself is an error": `
			jq '.lxc_configs["500"].dependencies = ["500"]' phoenix_lxc_configs.json >x
			mv x phoenix_lxc_configs.json
			phoenix`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.configure(nil)
			if out, status := h.bash(script); status != 2 || strings.Contains(out, `"event"`) ||
				len(strings.TrimSpace(out)) == 0 {
				t.Errorf("status %d\n%s", status, out)
			}
			if h.read(conf500) != "" {
				t.Error("the container was made")
			}
		})
	}
	t.Run("a dependency is ready before its dependent is started", func(t *testing.T) {
		t.Parallel()
		h := newHost(t) // with the shipped configuration
		if out, status := h.bash("phx-plan | phx-lxc"); status != 0 {
			t.Fatalf("status %d\n%s", status, out)
		}
		log := h.read("host/log/pct.log")
		last, first := strings.LastIndex(log, " 103 -- /usr/local/bin/step ca health "), strings.Index(log, "start 102")
		if last < 0 || first < last {
			t.Errorf("102 is started before 103 is ready:\n%s", log)
		}
		if strings.Index(log, "snapshot 900 final-form") > strings.Index(log, "clone 900 103 ") {
			t.Errorf("103 is cloned before 900 is ready:\n%s", log)
		}
	})
	t.Run("a dependent of a failed container is not started and does not count as done", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		out, status := h.with("PHX_LAB_FAIL=start 103").bash("set -o pipefail; phx-plan | phx-lxc")
		states, _ := h.bash("$PHX_PCT list")
		if status != 1 || !strings.Contains(out, "102 Traefik-Internal: skipped: container 103 is not ready") ||
			!regexp.MustCompile(`(?m)^102 +stopped`).MatchString(states) {
			t.Errorf("status %d\n%s\n%s", status, out, states)
		}
	})
	t.Run("clones of one source are made one after the other", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		// A second clone of a locked source would fail.
		out, status := h.with("PHX_LAB_DELAY=0.1").bash("set -o pipefail; phx-plan | phx-lxc --jobs 8")
		if status != 0 {
			t.Errorf("status %d\n%s", status, out)
		}
	})
	t.Run("a missing qm, pct or script is an error with a way out", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.configure(map[string]any{"features": []string{"none"}})
		if _, _, status, stderr := h.run(); status != 1 || !strings.Contains(stderr, "PHX_SCRIPTS") ||
			h.read(conf500) != "" {
			t.Errorf("status %d\n%s", status, stderr)
		}
		if _, _, status, stderr := h.with("PHX_PCT=no-such-pct").run(); status != 1 ||
			!strings.Contains(stderr, "run this on the Proxmox VE host") {
			t.Errorf("status %d\n%s", status, stderr)
		}
	})
}

// What reviews and use have found in phx itself.
func TestOwnDefects(t *testing.T) {
	t.Run("a needed restart is remembered until it is made", func(t *testing.T) {
		h := converged(t, nil)
		h.configure(map[string]any{"lxc_options": []string{"lxc.environment=A=1"}})
		for range 2 {
			events, _, _, _ := h.run()
			if got := fmt.Sprint(events[len(events)-2]["restart_required"]); got != "[lxc]" {
				t.Errorf("restart_required %s", got)
			}
		}
		if _, calls, _, _ := h.run("--restart"); !strings.HasPrefix(join(calls), "reboot 500") {
			t.Errorf("calls\n%s", join(calls))
		}
		events, calls, _, _ := h.run("--restart")
		if got := fmt.Sprint(events[len(events)-2]["restart_required"]); got != "[]" || len(calls) > 0 {
			t.Errorf("restart_required %s, calls\n%s", got, join(calls))
		}
	})
	t.Run("a firewall that is not configured any more does not cut the container off", func(t *testing.T) {
		h := converged(t, map[string]any{"firewall": map[string]any{"enabled": true,
			"rules": []any{map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "22"}}}})
		h.configure(nil)
		h.run()
		if text := h.read("host/pve/firewall/500.fw"); !strings.Contains(text, "enable: 0") ||
			strings.Contains(text, "ACCEPT") {
			t.Errorf("%s", text)
		}
		if strings.Contains(h.read(conf500), "firewall=1") {
			t.Errorf("%s", h.read(conf500))
		}
		h.wantUnchanged()
	})
	t.Run("of two volumes at one path none is taken away", func(t *testing.T) {
		h := converged(t, nil)
		h.bash("$PHX_PCT set 500 --mp0 lab:1,mp=/data --mp1 lab:2,mp=/data")
		before := h.read(conf500)
		if _, calls, status, stderr := h.run(); status != 1 || len(calls) > 0 ||
			!strings.Contains(stderr, "mp0 and mp1 are both mounted at /data") {
			t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
		}
		if h.read(conf500) != before {
			t.Error("the container was changed")
		}
	})
	t.Run("after a plan that broke off nothing new is begun", func(t *testing.T) {
		t.Parallel()
		h := newHost(t) // with the shipped configuration
		out, status := h.with("PHX_LAB_DELAY=0.1").bash(`phx-plan 103 | head -n 3 >broken; phx-lxc <broken`)
		// Whether 900 has begun when the end is seen is a matter of chance.
		if status != 1 || !strings.Contains(out, "103 Step-CA: skipped: ") {
			t.Errorf("status %d\n%s", status, out)
		}
		if h.read("host/pve/lxc/103.conf") != "" {
			t.Error("the container was made")
		}
	})
	t.Run("a template does not stay running after a run that failed", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.configure(map[string]any{"template_snapshot_name": "golden", "features": []string{"base_setup"}})
		h.with("PHX_LAB_FAIL=exec 500").run()
		h.wantState("running")
		h.run()
		h.wantState("stopped")
		h.wantUnchanged()
	})
	t.Run("a disk of 1024 GiB is stored as 1T", func(t *testing.T) {
		h := converged(t, nil)
		h.write(conf500, strings.Replace(h.read(conf500), "size=4G", "size=1T", 1))
		h.configure(map[string]any{"storage_size_gb": 1024})
		h.wantUnchanged()
	})
	t.Run("a feature may be called like a word of the record", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.write("scripts/phoenix_hypervisor_feature_install_firewall.sh", "#!/bin/sh\n")
		h.bash("chmod +x scripts/*.sh")
		h.configure(map[string]any{"features": []string{"firewall"}, "firewall": map[string]any{"enabled": true}})
		h.run()
		h.wantUnchanged()
	})
	t.Run("an application script runs again when its part of the configuration changes", func(t *testing.T) {
		keys := func(model string) map[string]any {
			return map[string]any{"application_script": "app.sh", "vllm_engine_config": map[string]any{"model": model}}
		}
		t.Parallel()
		h := newHost(t)
		h.write("scripts/app.sh", "#!/bin/sh\n")
		h.write("inside", "#!/bin/sh\ncat >/dev/null\n")
		h.configure(keys("a"))
		h.run()
		h.wantUnchanged()
		h.configure(keys("b"))
		if _, calls, _, _ := h.run(); !strings.Contains(join(calls), " app.sh 500 ") {
			t.Errorf("calls\n%s", join(calls))
		}
		h.wantUnchanged()
	})
	t.Run("a container that others have started meanwhile is started", func(t *testing.T) {
		h := converged(t, nil)
		h.bash("$PHX_PCT stop 500")
		// pct list tells of a time before.
		h.write("pct", `#!/bin/sh
if [ "$1" = list ]; then
	$PHX_REAL list
	$PHX_REAL start 500
else
	exec $PHX_REAL "$@"
fi
`)
		h.bash("chmod +x pct")
		if _, _, status, stderr := h.with("PHX_REAL=" + bin + "/pct").with("PHX_PCT=" +
			h.path("pct")).run(); status != 0 {
			t.Errorf("status %d\n%s", status, stderr)
		}
	})
	t.Run("cron's PATH does", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.configure(nil)
		h.bash("mkdir -p prefix/bin && ln -s " + bin + "/phx-* prefix/bin && cp -r " + repo + "/scripts prefix/")
		if out, status := h.bash("env PATH=/usr/bin:/bin prefix/scripts/phoenix >out"); status != 0 {
			t.Errorf("status %d\n%s", status, out)
		}
	})
	t.Run("programs that phx starts die of a broken pipe as usual", func(t *testing.T) {
		t.Parallel()
		h := newHost(t)
		h.write("scripts/phoenix_hypervisor_feature_install_pipe.sh",
			"#!/bin/bash\nset -o pipefail\nyes | head -n 1 >/dev/null\n[ $? -eq 141 ]\n")
		h.bash("chmod +x scripts/*.sh")
		h.configure(map[string]any{"features": []string{"pipe"}})
		if _, _, status, stderr := h.run(); status != 0 {
			t.Errorf("status %d\n%s", status, stderr)
		}
	})
	t.Run("after a rollback the record is removed by hand", func(t *testing.T) {
		h := converged(t, map[string]any{"features": []string{"base_setup"}})
		h.bash("$PHX_PCT set 500 --description ''")
		if _, calls, _, _ := h.run(); !strings.Contains(join(calls), "feature base_setup") {
			t.Errorf("calls\n%s", join(calls))
		}
	})
}
