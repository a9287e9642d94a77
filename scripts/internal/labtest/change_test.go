package labtest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A change is a change of the configuration of the gateway's container, and how the container shows it.
type change struct {
	name  string
	jq    string                    // of the container's object
	call  string                    // what the calls of pct that change something begin with, joined by "; "
	sees  func(t *testing.T) string // what the container shows
	after string                    // a part of that after the change, and not before
}

// testChanges changes one key at a time: a dry run says exactly what the run then does, the container shows the change,
// and another run does nothing.
func (l lab) testChanges(t *testing.T) {
	scripts, shared := l.path("test-scripts"), l.path("test-shared")
	for _, dir := range []string{scripts, shared} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(shared, "greeting"), "hello from the host\n", 0o644)
	l.do(t, "bash", "-c", `cp scripts/phoenix_* "$1"`, "bash", scripts)
	write(t, filepath.Join(scripts, "phoenix_hypervisor_feature_install_motd.sh"),
		"#!/bin/sh\nset -eu\n\"$PHX_PCT\" exec --keep-env 0 \"$1\" -- /bin/sh -c 'echo phx >/etc/motd' </dev/null\n",
		0o755)
	env := []string{"env", "PHX_RESTART=1", "PHX_SCRIPTS=" + scripts}

	config := l.path("etc", "phoenix_lxc_configs.json")
	original := l.read(t, "etc", "phoenix_lxc_configs.json")
	conf := func(t *testing.T) string { return l.read(t, "pve", "lxc", gateway+".conf") }
	for _, c := range []change{
		{name: "memory", jq: `.memory_mb = 1280`, call: "set 101 --memory 1280", sees: conf, after: "\nmemory: 1280\n"},
		{name: "cores", jq: `.cores = 3`, call: "set 101 --cores 3", sees: conf, after: "\ncores: 3\n"},
		{name: "nameserver", jq: `.network_config.nameservers = "10.0.0.1"`,
			call:  "set 101 --nameserver 10.0.0.1; reboot 101",
			sees:  func(t *testing.T) string { return l.in(t, gateway, "cat", "/etc/resolv.conf") },
			after: "nameserver 10.0.0.1\n"},
		{name: "mount point", jq: `.mount_points += [{"host_path": "` + shared +
			`", "container_path": "/mnt/shared", "read_only": true}]`,
			call: "set 101 --mp1 " + shared + ",mp=/mnt/shared,ro=1",
			sees: func(t *testing.T) string {
				return l.in(t, gateway, "sh", "-c",
					"cat /mnt/shared/greeting || true")
			},
			after: "hello from the host"},
		{name: "firewall rule",
			jq: `.firewall.rules += [{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "8443"}]`,
			sees: func(t *testing.T) string {
				text, _ := os.ReadFile(l.path("pve", "firewall", gateway+".fw"))
				return string(text)
			}, after: "IN ACCEPT -p tcp -dport 8443\n"},
		{name: "lxc option", jq: `.lxc_options = ["lxc.environment=PHX_TEST=seen"]`, call: "reboot 101",
			sees:  func(t *testing.T) string { return l.in(t, gateway, "sh", "-c", "tr '\\0' '\\n' </proc/1/environ") },
			after: "PHX_TEST=seen\n"},
		{name: "feature", jq: `.features += ["motd"]`,
			sees: func(t *testing.T) string { return l.in(t, gateway, "cat", "/etc/motd") }, after: "phx\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, err := exec.Command("jq", `.lxc_configs["101"] |= (`+c.jq+`)`, config).Output()
			if err != nil {
				t.Fatal(err)
			}
			write(t, config, string(text), 0o644)
			if strings.Contains(c.sees(t), c.after) {
				t.Fatal("the container shows the change before it is made")
			}

			r := l.try(t, "scripts/lab", append([]string{"run"}, append(env, "phoenix", "--dry-run")...)...)
			if r.status != 3 {
				t.Fatalf("dry run: status %d, want 3\n%s", r.status, r.stderr)
			}
			if strings.Contains(c.sees(t), c.after) {
				t.Error("the dry run has made the change")
			}
			var previewed []string
			for line := range strings.Lines(r.stdout) {
				var ev struct {
					Event    string
					Commands [][]string
				}
				if err := json.Unmarshal([]byte(line), &ev); err != nil {
					t.Fatal(err)
				}
				for _, argv := range ev.Commands {
					if argv[0] == l.path("bin", "pct") {
						previewed = append(previewed, strings.Join(argv[1:], " "))
					}
				}
			}

			logged := len(l.pctCalls(t))
			l.do(t, "scripts/lab", append([]string{"run"}, append(env, "phoenix")...)...)
			var made []string
			for _, call := range l.pctCalls(t)[logged:] {
				if !slices.Contains([]string{"list", "exec", "status"}, strings.Fields(call)[0]) {
					made = append(made, call)
				}
			}
			if got, want := strings.Join(made, "; "), strings.Join(previewed, "; "); got != want {
				t.Errorf("the run called\n%s\nand the dry run had told\n%s", got, want)
			}
			if (c.call == "") != (len(made) == 0) {
				t.Errorf("the run called %q", made)
			}
			for i, want := range strings.FieldsFunc(c.call, func(r rune) bool { return r == ';' }) {
				want = strings.TrimSpace(want)
				if i >= len(made) || !strings.HasPrefix(made[i], want) {
					t.Errorf("the run called %q, want call %d to begin with %q", made, i, want)
				}
			}
			if got := c.sees(t); !strings.Contains(got, c.after) {
				t.Errorf("the container shows\n%s\nwithout %q", got, c.after)
			}

			logged = len(l.pctCalls(t))
			again := l.do(t, "scripts/lab", append([]string{"run"}, append(env, "phoenix")...)...)
			if strings.Contains(again, `"changed":true`) {
				t.Errorf("another run changes something:\n%s", again)
			}
			if n := len(l.pctCalls(t)) - logged; n > secondBudget {
				t.Errorf("another run needs %d calls of pct", n)
			}
		})
	}
	// The configuration as it was: what phx has set is taken back, what Proxmox keeps is overwritten.
	write(t, config, original, 0o644)
	l.do(t, "scripts/lab", "run", "env", "PHX_RESTART=1", "phoenix")
}

// pctCalls returns the arguments of all calls of pct, in the order of their ends.
func (l lab) pctCalls(t *testing.T) []string {
	t.Helper()
	var calls []string
	for line := range strings.Lines(l.read(t, "log", "pct.log")) {
		fields := strings.SplitN(strings.TrimSpace(line), "\t", 4)
		words, err := exec.Command("bash", "-c", "w=("+fields[3]+"); echo -n \"${w[*]}\"").Output()
		if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, string(words))
	}
	return calls
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
