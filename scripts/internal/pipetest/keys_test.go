package pipetest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// host is a Proxmox host with one container, 500, in its configuration.
type host struct {
	t   *testing.T
	dir string
	env []string
}

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKbO7b6Oe0T1Qh5l1D0gYQ9cQ0sFbVfQ0pR2w2m3n4oK"

const plainContainer = `{
	"name": "Box", "template": "local:vztmpl/debian-12-standard_12.12-1_amd64.tar.zst",
	"memory_mb": 512, "cores": 1, "storage_pool": "lab", "storage_size_gb": 4, "unprivileged": true,
	"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.50/24", "gw": "10.0.0.1"},
	"mac_address": "BC:24:11:00:05:00"
}`

func newHost(t *testing.T) *host {
	h := &host{t: t, dir: t.TempDir()}
	if err := makeHost(h.dir); err != nil {
		t.Fatal(err)
	}
	h.env = os.Environ()
	for name, value := range environment(h.dir) {
		h.env = append(h.env, name+"="+value)
	}
	if err := os.MkdirAll(h.path("apparmor"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"apparmor.d", "bin", "scripts/health_checks", "host/pve/nodes/pve1"} {
		if err := os.MkdirAll(h.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.write("bin/apparmor_parser", "#!/bin/sh\necho \"$*\" >>$PHX_WORK/parser\n")
	h.write("apparmor/lxc-phoenix", "profile lxc-phoenix flags=(attach_disconnected) {}\n")
	h.write("scripts/health_checks/web.sh", "#!/bin/sh\necho \"$*\" >>$PHX_WORK/checked\n")
	if err := os.MkdirAll(h.path("host/storage/local/snippets"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.write("host/storage/local/snippets/hook.sh", "#!/bin/sh\n")
	h.write("keys.pub", publicKey+" in a file\n")
	if err := os.Symlink("nodes/pve1", h.path("host/pve/local")); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"bin/apparmor_parser", "scripts/health_checks/web.sh",
		"host/storage/local/snippets/hook.sh"} {
		if err := os.Chmod(h.path(program), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.env = append(h.env, "PHX_APPARMOR="+h.path("apparmor"), "PHX_APPARMOR_D="+h.path("apparmor.d"),
		"PATH="+h.path("bin")+":"+environment(h.dir)["PATH"])
	return h
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) read(name string) string {
	h.t.Helper()
	data, err := os.ReadFile(h.path(name))
	if err != nil && !os.IsNotExist(err) {
		h.t.Fatal(err)
	}
	return string(data)
}

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(h.path(name), []byte(text), 0o640); err != nil {
		h.t.Fatal(err)
	}
}

// configure writes the configuration: the plain container, with these keys
// set; nil removes one.
func (h *host) configure(keys map[string]any) {
	h.t.Helper()
	var c map[string]any
	if err := json.Unmarshal([]byte(plainContainer), &c); err != nil {
		h.t.Fatal(err)
	}
	for key, value := range keys {
		if value == nil {
			delete(c, key)
		} else {
			c[key] = value
		}
	}
	text, err := json.Marshal(map[string]any{"lxc_configs": map[string]any{"500": c}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.write("phoenix_lxc_configs.json", strings.ReplaceAll(string(text), "$WORK", h.dir))
}

// run runs phx-plan | phx-lxc and returns the events, the changing calls of
// pct as words, and the exit status.
func (h *host) run(args ...string) (events []map[string]any, calls [][]string, status int, stderr string) {
	h.t.Helper()
	os.Remove(h.path("host/log/pct.log"))
	cmd := exec.Command("bash", "-c", `set -o pipefail; phx-plan | phx-lxc "$@"`, "bash")
	cmd.Args = append(cmd.Args, args...)
	cmd.Env = h.env
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	if _, isExit := err.(*exec.ExitError); err != nil && !isExit {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		var ev map[string]any
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			h.t.Fatalf("not an event: %q", line)
		}
		events = append(events, ev)
	}
	for line := range strings.Lines(h.read("host/log/pct.log")) {
		fields := strings.SplitN(strings.TrimSpace(line), "\t", 4)
		words, err := exec.Command("bash", "-c", "printf '%s\\0' "+fields[3]).Output()
		if err != nil {
			h.t.Fatal(err)
		}
		call := strings.Split(strings.TrimSuffix(string(words), "\x00"), "\x00")
		if call[0] != "list" && call[0] != "status" {
			calls = append(calls, call)
		}
	}
	return events, calls, cmd.ProcessState.ExitCode(), said.String()
}

// previewed returns what a dry run would do: calls of pct, other commands, and
// diffs by file.
func previewed(events []map[string]any, pct string) (calls [][]string, others []string, diffs map[string]string) {
	diffs = map[string]string{}
	for _, ev := range events {
		if ev["event"] != "ct.preview" {
			continue
		}
		for _, c := range ev["commands"].([]any) {
			var words []string
			for _, w := range c.([]any) {
				words = append(words, w.(string))
			}
			if words[0] == pct {
				calls = append(calls, words[1:])
			} else {
				others = append(others, strings.Join(words, " "))
			}
		}
		for _, f := range ev["files"].([]any) {
			file := f.(map[string]any)
			diffs[file["path"].(string)] = file["diff"].(string)
		}
	}
	return calls, others, diffs
}

func join(calls [][]string) string {
	var lines []string
	for _, c := range calls {
		lines = append(lines, strings.Join(c, " "))
	}
	return strings.Join(lines, "\n")
}

// A keyCase changes one key of a container that is there and converged.
type keyCase struct {
	name    string
	before  map[string]any    // keys of the first configuration
	keys    map[string]any    // keys of the second one
	byHand  [2]string         // text of the conf to replace before the change
	calls   string            // the exact calls of pct, a line each
	env     string            // a variable of the environment
	nothing bool              // nothing is to be done
	root    bool              // only root may do it
	record  string            // the words of the record then, without its signature
	conf    []string          // lines that the conf then has
	without []string          // and lines that it has not
	files   map[string]string // lines that files then have
	restart string            // what then waits for a restart
	check   string            // a shell command that then succeeds on the host
}

var keyCases = []keyCase{
	{name: "name", keys: map[string]any{"name": "Copy-Cuda12.8"}, calls: "set 500 --hostname Copy-Cuda12.8",
		conf: []string{"hostname: Copy-Cuda12.8"}},
	{name: "memory_mb", keys: map[string]any{"memory_mb": 1024}, calls: "set 500 --memory 1024",
		conf: []string{"memory: 1024"}},
	{name: "swap_mb", keys: map[string]any{"swap_mb": 0}, calls: "set 500 --swap 0", conf: []string{"swap: 0"}},
	{name: "cores", keys: map[string]any{"cores": 4}, calls: "set 500 --cores 4", conf: []string{"cores: 4"}},
	{name: "several at once", keys: map[string]any{"cores": 4, "memory_mb": 2048, "start_at_boot": true},
		calls: "set 500 --memory 2048 --cores 4 --onboot 1", conf: []string{"cores: 4", "memory: 2048", "onboot: 1"}},
	{name: "storage_size_gb", keys: map[string]any{"storage_size_gb": 6}, calls: "resize 500 rootfs 6G",
		conf: []string{"rootfs: lab:500/vm-500-disk-0.raw,size=6G"}},
	{name: "network ip", keys: map[string]any{"network_config": map[string]any{"name": "eth0", "bridge": "vmbr0",
		"ip": "10.0.0.51/24", "gw": "10.0.0.1"}},
		calls: "set 500 --net0 name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=BC:24:11:00:05:00,ip=10.0.0.51/24,type=veth",
		conf:  []string{"net0: name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=BC:24:11:00:05:00,ip=10.0.0.51/24,type=veth"}},
	{name: "network dhcp", keys: map[string]any{"network_config": map[string]any{"name": "eth0",
		"bridge": "vmbr0", "ip": "dhcp"}},
		calls:   "set 500 --net0 name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:05:00,ip=dhcp,type=veth",
		restart: "net0"},
	{name: "nameservers", keys: map[string]any{"network_config": map[string]any{"name": "eth0", "bridge": "vmbr0",
		"ip": "10.0.0.50/24", "gw": "10.0.0.1", "nameservers": "10.0.0.153 1.1.1.1"}},
		calls: "set 500 --nameserver 10.0.0.153 1.1.1.1", restart: "nameserver"},
	{name: "mac_address", keys: map[string]any{"mac_address": "52:54:00:00:00:01"},
		calls: "set 500 --net0 name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=52:54:00:00:00:01,ip=10.0.0.50/24,type=veth"},
	{name: "start_at_boot", before: map[string]any{"start_at_boot": true}, keys: map[string]any{"start_at_boot": false},
		calls: "set 500 --onboot 0", conf: []string{"onboot: 0"}},
	{name: "boot_order and boot_delay", keys: map[string]any{"boot_order": 3, "boot_delay": 7},
		calls: "set 500 --startup order=3,up=7,down=7", conf: []string{"startup: order=3,up=7,down=7"}},
	{name: "boot_order without delay", keys: map[string]any{"boot_order": 3}, calls: "set 500 --startup order=3",
		conf: []string{"startup: order=3"}},
	{name: "pct_options", keys: map[string]any{"pct_options": []string{"nesting=1", "keyctl=1"}},
		calls: "set 500 --features nesting=1,keyctl=1", restart: "features"},
	{name: "pct_options keep what was added by hand", byHand: [2]string{"hostname:", "features: fuse=1\nhostname:"},
		keys:  map[string]any{"pct_options": []string{"nesting=1"}},
		calls: "set 500 --features fuse=1,nesting=1", restart: "features"},
	{name: "zfs_volumes are allocated once",
		keys: map[string]any{"zfs_volumes": []any{map[string]any{"name": "data", "pool": "lab", "size_gb": 2,
			"mount_point": "/data"}}},
		calls: "set 500 --mp0 lab:2,mp=/data", record: " +volumes=HASHES",
		conf: []string{"mp0: lab:500/vm-500-disk-1.raw,mp=/data,size=2G"}},
	{name: "volumes grow", before: map[string]any{"volumes": []any{map[string]any{"name": "data", "pool": "lab",
		"size_gb": 2, "mount_point": "/data"}}},
		keys: map[string]any{"volumes": []any{map[string]any{"name": "data", "pool": "lab", "size_gb": 3,
			"mount_point": "/data"}}},
		calls: "resize 500 mp0 3G", record: " +volumes=HASHES",
		conf: []string{"mp0: lab:500/vm-500-disk-0.raw,mp=/data,size=3G"}},
	{name: "mount_points", keys: map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/shared dir",
		"container_path": "/mnt/shared", "read_only": true}}},
		calls: "set 500 --mp0 $WORK/shared dir,mp=/mnt/shared,ro=1", record: " +mounts=HASHES",
		conf: []string{"mp0: $WORK/shared dir,mp=/mnt/shared,ro=1"}},
	{name: "mount_points known by their path and not by their number",
		byHand: [2]string{"net0:", "mp5: $WORK/ssl,mp=/mnt/shared\nnet0:"},
		keys: map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/ssl",
			"container_path": "/mnt/shared"}}},
		record: " +mounts=HASHES", conf: []string{"mp5: $WORK/ssl,mp=/mnt/shared"}},
	{name: "mount point added again by every run of the old scripts",
		byHand: [2]string{"net0:", "mp0: $WORK/ssl,mp=/mnt/shared\n" +
			"mp1: $WORK/ssl,mp=/mnt/shared\nmp2: $WORK/ssl,mp=/mnt/shared\nnet0:"},
		keys: map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/ssl",
			"container_path": "/mnt/shared"}}},
		calls: "set 500 --delete mp1,mp2", record: " +mounts=HASHES",
		conf: []string{"mp0: $WORK/ssl,mp=/mnt/shared", "delete: mp1,mp2"}, restart: "mp1 mp2"},
	{name: "mount point taken out of the configuration",
		before: map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/ssl",
			"container_path": "/mnt/shared"}}},
		keys: map[string]any{}, calls: "set 500 --delete mp0", conf: []string{"delete: mp0"},
		without: []string{"#"}, restart: "mp0"},
	{name: "lxc_options", keys: map[string]any{"lxc_options": []string{"lxc.cap.keep=chown,kill",
		"lxc.mount.entry: /dev/kmsg dev/kmsg none bind,optional,create=file"}},
		record: " +lxc=HASHES",
		conf: []string{"lxc.cap.keep: chown", "lxc.cap.keep: kill",
			"lxc.mount.entry: /dev/kmsg dev/kmsg none bind,optional,create=file"}, restart: "lxc"},
	{name: "lxc_options appended by the old scripts on every run",
		byHand: [2]string{"unprivileged: 1\n",
			"unprivileged: 1\nlxc.prlimit.nofile = 1024\nlxc.prlimit.nofile = 1024\nlxc.environment: BY=hand\n"},
		keys: map[string]any{"lxc_options": []string{"lxc.prlimit.nofile=1024"}}, record: " +lxc=HASHES",
		conf: []string{"lxc.environment: BY=hand", "lxc.prlimit.nofile = 1024"}, restart: "lxc"},
	{name: "lxc_options taken out of the configuration",
		before: map[string]any{"lxc_options": []string{"lxc.environment=A=1", "lxc.environment=B=2"}},
		keys:   map[string]any{"lxc_options": []string{"lxc.environment=B=2"}}, record: " +lxc=HASHES",
		conf: []string{"lxc.environment: B=2"}, without: []string{"lxc.environment: A=1"}, restart: "lxc"},
	{name: "apparmor_profile unconfined keeps Proxmox's own profile", keys: map[string]any{
		"apparmor_profile": "unconfined"}, record: " +lxc=HASHES", without: []string{"lxc.apparmor.profile"}},
	{name: "apparmor_profile unconfined written by an earlier phx",
		byHand: [2]string{"unprivileged: 1\n", "unprivileged: 1\nlxc.apparmor.profile: unconfined\n"},
		keys:   map[string]any{"apparmor_profile": "unconfined"}, record: " +lxc=HASHES",
		without: []string{"lxc.apparmor.profile"}, restart: "lxc"},
	{name: "apparmor_profile unconfined, and lxc_options say so too", keys: map[string]any{
		"apparmor_profile": "unconfined", "lxc_options": []string{"lxc.apparmor.profile=unconfined"}},
		record: " +lxc=HASHES", conf: []string{"lxc.apparmor.profile: unconfined"}, restart: "lxc"},
	{name: "apparmor_profile with its file",
		keys:   map[string]any{"apparmor_profile": "lxc-phoenix", "apparmor_manages_nesting": true},
		record: " +apparmor=HASHES +lxc=HASHES",
		conf: []string{"lxc.apparmor.profile: lxc-phoenix", "lxc.apparmor.allow_nesting: 1",
			"lxc.include: /usr/share/lxc/config/nesting.conf"},
		files:   map[string]string{"apparmor.d/lxc-phoenix": "profile lxc-phoenix flags=(attach_disconnected) {}"},
		restart: "lxc",
		check:   `test "$(cat parser)" = "--replace $WORK/apparmor/lxc-phoenix"`},
	{name: "mount_points with an owner in an unprivileged container", root: true,
		keys: map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/www",
			"container_path": "/var/www", "owner_uid": 33, "owner_gid": 33}}},
		calls: "set 500 --mp0 $WORK/www,mp=/var/www", record: " +mounts=HASHES",
		check: `test "$(stat -c %u:%g www)" = 100033:100033`},
	{name: "health_checks", nothing: true,
		keys: map[string]any{"health_checks": []any{map[string]any{"name": "web", "script": "web.sh",
			"args": "10.0.0.50 80"}}}, check: `grep -qx "10.0.0.50 80" checked`},
	{name: "gpu_assignment", keys: map[string]any{"gpu_assignment": "0,1"}, record: " +lxc=HASHES",
		conf: []string{"lxc.cgroup2.devices.allow: c 195:* rwm",
			"lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file"}, restart: "lxc"},
	{name: "id_maps as they are written",
		keys: map[string]any{"id_maps": []string{"u 0 100000 1000", "g 0 100000 1000"}}, record: " +lxc=HASHES",
		conf: []string{"lxc.idmap: u 0 100000 1000", "lxc.idmap: g 0 100000 1000"}, restart: "lxc"},
	{name: "firewall", env: "PHX_ENFORCE_FIREWALL=1",
		keys: map[string]any{"firewall": map[string]any{"enabled": true, "rules": []any{
			map[string]any{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "22,80:85",
				"source":  "10.0.0.0/24",
				"comment": "ssh, web"},
			map[string]any{"type": "in", "action": "DROP"}}}},
		calls: "set 500 --net0 name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=BC:24:11:00:05:00," +
			"ip=10.0.0.50/24,type=veth,firewall=1",
		record: " +firewall=HASHES",
		conf: []string{"net0: name=eth0,bridge=vmbr0,firewall=1,gw=10.0.0.1,hwaddr=BC:24:11:00:05:00," +
			"ip=10.0.0.50/24,type=veth"},
		files: map[string]string{"host/pve/firewall/500.fw": "[RULES]\n\n" +
			"IN ACCEPT -source 10.0.0.0/24 -p tcp -dport 22,80:85 # ssh, web\nIN DROP\n"}},
	{name: "filters and policies of the firewall", before: map[string]any{"firewall": map[string]any{"enabled": true}},
		keys: map[string]any{"firewall": map[string]any{"enabled": true, "macfilter": true, "ipfilter": true,
			"policy_in": "REJECT", "policy_out": "DROP"}},
		record: " +firewall=HASHES",
		files: map[string]string{"host/pve/firewall/500.fw": "ipfilter: 1\nmacfilter: 1\n" +
			"policy_in: REJECT\npolicy_out: DROP\n"}},
	{name: "features", keys: map[string]any{"features": []string{"base_setup"}},
		calls: "exec --keep-env 0 500 -- feature base_setup", record: " base_setup=HASHES"},
	{name: "features with bootstrap_ca_url", before: map[string]any{"features": []string{"base_setup"}},
		keys:  map[string]any{"features": []string{"base_setup"}, "bootstrap_ca_url": "https://10.0.0.10:9000"},
		calls: "exec --keep-env 0 500 -- feature base_setup", record: " base_setup=HASHES"},
	{name: "enable_lifecycle_snapshots", keys: map[string]any{"enable_lifecycle_snapshots": true},
		calls: "snapshot 500 final-form", conf: []string{"[final-form]"}},
	{name: "capabilities of a privileged container", before: map[string]any{"unprivileged": false},
		keys:   map[string]any{"unprivileged": false, "lxc_options": []string{"lxc.cap.keep=chown"}},
		record: " +lxc=HASHES", conf: []string{"lxc.cap.drop: ", "lxc.cap.keep: chown"}, restart: "lxc",
		check: "grep -A1 '^lxc.cap.drop: $' host/pve/lxc/500.conf | grep -q '^lxc.cap.keep: chown$'"},
	{name: "capabilities that are kept no more",
		before:  map[string]any{"unprivileged": false, "lxc_options": []string{"lxc.cap.keep=chown"}},
		keys:    map[string]any{"unprivileged": false},
		without: []string{"lxc.cap"}, restart: "lxc"},
	{name: "template_snapshot_name", keys: map[string]any{"template_snapshot_name": "golden"},
		calls: "snapshot 500 golden", conf: []string{"[golden]"}},
	{name: "is_template", keys: map[string]any{"is_template": true, "memory_mb": 600},
		calls: "set 500 --memory 600\nshutdown 500 --timeout 60 --forceStop 1\ntemplate 500",
		conf:  []string{"memory: 600", "template: 1", "rootfs: lab:500/base-500-disk-0.raw,size=4G"}},
	{name: "is_template with scripts", before: map[string]any{"is_template": false},
		keys: map[string]any{"is_template": true, "features": []string{"base_setup"},
			"enable_lifecycle_snapshots": true, "template_snapshot_name": "golden"},
		calls: "exec --keep-env 0 500 -- feature base_setup\nshutdown 500 --timeout 60 --forceStop 1\ntemplate 500",
		conf:  []string{"template: 1"}, without: []string{"["}, record: " base_setup=HASHES"},
	{name: "memory_mb of a template is not changed", nothing: true, before: map[string]any{"is_template": true},
		keys: map[string]any{"is_template": true, "memory_mb": 600}, conf: []string{"memory: 512"}},
	{name: "cpulimit", keys: map[string]any{"cpulimit": 1.5}, calls: "set 500 --cpulimit 1.5",
		conf: []string{"cpulimit: 1.5"}},
	{name: "cpulimit that Proxmox writes otherwise", byHand: [2]string{"cores:", "cpulimit: 2.0\ncores:"},
		keys: map[string]any{"cpulimit": 2}, nothing: true},
	{name: "no cpulimit", nothing: true, keys: map[string]any{"cpulimit": 0}},
	{name: "cpuunits", keys: map[string]any{"cpuunits": 50}, calls: "set 500 --cpuunits 50",
		conf: []string{"cpuunits: 50"}},
	{name: "ostype", keys: map[string]any{"ostype": "unmanaged"}, calls: "set 500 --ostype unmanaged",
		restart: "ostype"},
	{name: "ostype and arch at creation", before: map[string]any{"ostype": "debian", "arch": "i386"},
		keys: map[string]any{"ostype": "debian", "arch": "i386"}, nothing: true,
		conf: []string{"ostype: debian", "arch: i386"}},
	{name: "arch that it has", keys: map[string]any{"arch": "amd64"}, nothing: true},
	{name: "timezone", keys: map[string]any{"timezone": "Europe/Vienna"}, calls: "set 500 --timezone Europe/Vienna",
		restart: "timezone"},
	{name: "timezone at creation", before: map[string]any{"timezone": "host"}, keys: map[string]any{"timezone": "host"},
		nothing: true, conf: []string{"timezone: host"}},
	{name: "tags", byHand: [2]string{"unprivileged:", "tags: by-hand\nunprivileged:"},
		keys: map[string]any{"tags": []string{"Web", "a.b"}}, calls: "set 500 --tags web;a.b",
		conf: []string{"tags: a.b;web"}},
	{name: "tags in another order and case", byHand: [2]string{"unprivileged:", "tags: Web,b a\nunprivileged:"},
		keys: map[string]any{"tags": []string{"a", "B", "web"}}, nothing: true},
	{name: "no tags", byHand: [2]string{"unprivileged:", "tags: by-hand\nunprivileged:"},
		keys: map[string]any{"tags": []string{}}, calls: "set 500 --delete tags", without: []string{"tags:"}},
	{name: "description_text",
		keys: map[string]any{"description_text": "# Wiki\n\n100 % größer: a\n [s1]\nlxc.group: x\n"},
		conf: []string{"## Wiki", "#", "#100 %25 gr%C3%B6%C3%9Fer%3A a", "# [s1]", "#lxc.group%3A x"}},
	{name: "description_text beside a record",
		before: map[string]any{"lxc_options": []string{"lxc.environment=A=1"}},
		keys:   map[string]any{"lxc_options": []string{"lxc.environment=A=1"}, "description_text": "mine"},
		record: " +lxc=HASHES", conf: []string{"#mine"}},
	{name: "description_text in place of notes by hand", byHand: [2]string{"arch:", "#old%3A\n#older\narch:"},
		keys: map[string]any{"description_text": "new"}, conf: []string{"#new"}, without: []string{"#old"}},
	{name: "empty description_text", byHand: [2]string{"arch:", "#old\narch:"},
		keys: map[string]any{"description_text": ""}, without: []string{"#"}},
	{name: "description_text at creation",
		before:  map[string]any{"description_text": "a\nb", "features": []string{"base_setup"}},
		keys:    map[string]any{"description_text": "a\nb", "features": []string{"base_setup"}},
		nothing: true, record: " base_setup=HASHES", conf: []string{"#a", "#b"}},
	{name: "protection", keys: map[string]any{"protection": true}, calls: "set 500 --protection 1",
		conf: []string{"protection: 1"}},
	{name: "protection with a mount point in the same run",
		keys: map[string]any{"protection": true, "mount_points": []any{map[string]any{"host_path": "$WORK/ssl",
			"container_path": "/mnt/shared"}}},
		calls:  "set 500 --protection 1 --mp0 $WORK/ssl,mp=/mnt/shared",
		record: " +mounts=HASHES", conf: []string{"protection: 1", "mp0: $WORK/ssl,mp=/mnt/shared"}},
	{name: "protection at creation",
		before: map[string]any{"protection": true, "zfs_volumes": []any{map[string]any{"pool": "lab", "size_gb": 2,
			"mount_point": "/data"}}},
		keys: map[string]any{"protection": false, "zfs_volumes": []any{map[string]any{"pool": "lab", "size_gb": 3,
			"mount_point": "/data"}}},
		calls: "resize 500 mp0 3G\nset 500 --protection 0", record: " +volumes=HASHES",
		conf: []string{"protection: 0"}},
	{name: "hookscript", keys: map[string]any{"hookscript": "local:snippets/hook.sh"},
		calls: "set 500 --hookscript local:snippets/hook.sh", conf: []string{"hookscript: local:snippets/hook.sh"}},
	{name: "hookscript at creation", before: map[string]any{"hookscript": "local:snippets/hook.sh"},
		keys: map[string]any{"hookscript": "local:snippets/hook.sh"}, nothing: true,
		conf: []string{"hookscript: local:snippets/hook.sh"}},
	{name: "devices", byHand: [2]string{"hostname:", "dev0: /dev/full\nhostname:"},
		keys: map[string]any{"devices": []any{map[string]any{"path": "/dev/null", "mode": "0666", "gid": 104},
			map[string]any{"path": "/dev/zero", "deny_write": true}}},
		calls:  "set 500 --dev1 /dev/null,mode=0666,gid=104 --dev2 /dev/zero,deny-write=1",
		record: " +devices=HASHES",
		conf: []string{"dev0: /dev/full", "dev1: /dev/null,mode=0666,gid=104",
			"dev2: /dev/zero,deny-write=1"}},
	{name: "devices known by their path and not by their number",
		byHand: [2]string{"hostname:", "dev3: mode=0660,path=/dev/null,deny-write=0\ndev5: /dev/zero\nhostname:"},
		keys: map[string]any{"devices": []any{map[string]any{"path": "/dev/zero"},
			map[string]any{"path": "/dev/null", "mode": "0660"}}},
		record: " +devices=HASHES", conf: []string{"dev5: /dev/zero"}},
	{name: "devices that change",
		before: map[string]any{"devices": []any{map[string]any{"path": "/dev/null", "mode": "0666", "uid": 1,
			"gid": 2}}},
		keys:  map[string]any{"devices": []any{map[string]any{"path": "/dev/null", "gid": 3, "deny_write": true}}},
		calls: "set 500 --dev0 /dev/null,gid=3,deny-write=1", record: " +devices=HASHES", restart: "dev0"},
	{name: "devices taken out of the configuration",
		before: map[string]any{"devices": []any{map[string]any{"path": "/dev/null"},
			map[string]any{"path": "/dev/zero"}}},
		byHand: [2]string{"hostname:", "dev7: /dev/full\nhostname:"},
		keys:   map[string]any{"devices": []any{map[string]any{"path": "/dev/zero"}}},
		calls:  "set 500 --delete dev0", record: " +devices=HASHES", restart: "dev0",
		conf: []string{"dev1: /dev/zero", "dev7: /dev/full", "delete: dev0"}},
	{name: "rootfs_options", keys: map[string]any{"rootfs_options": map[string]any{"acl": true, "quota": false,
		"replicate": false, "mountoptions": []string{"noatime", "discard"}}},
		calls:   "set 500 --rootfs lab:500/vm-500-disk-0.raw,size=4G,acl=1,replicate=0,mountoptions=noatime;discard",
		restart: "rootfs"},
	{name: "rootfs_options and a disk that grows",
		keys:  map[string]any{"storage_size_gb": 6, "rootfs_options": map[string]any{"acl": true}},
		calls: "resize 500 rootfs 6G\nset 500 --rootfs lab:500/vm-500-disk-0.raw,size=6G,acl=1", restart: "rootfs",
		conf: []string{"rootfs: lab:500/vm-500-disk-0.raw,size=6G"}},
	{name: "a disk that grows while its options wait", byHand: [2]string{"unprivileged: 1\n",
		"unprivileged: 1\n\n[pve:pending]\nrootfs: lab:500/vm-500-disk-0.raw,acl=1,size=4G\n"},
		keys:  map[string]any{"storage_size_gb": 6, "rootfs_options": map[string]any{"acl": true}},
		calls: "resize 500 rootfs 6G\nset 500 --rootfs lab:500/vm-500-disk-0.raw,acl=1,size=6G", restart: "rootfs",
		conf: []string{"rootfs: lab:500/vm-500-disk-0.raw,size=6G"}},
	{name: "rootfs_options at creation",
		before:  map[string]any{"rootfs_options": map[string]any{"acl": true, "mountoptions": []string{"noatime"}}},
		keys:    map[string]any{"rootfs_options": map[string]any{"acl": true, "mountoptions": []string{"noatime"}}},
		nothing: true, conf: []string{"rootfs: lab:500/vm-500-disk-0.raw,acl=1,mountoptions=noatime,size=4G"}},
	{name: "options of a new volume",
		keys: map[string]any{"volumes": []any{map[string]any{"pool": "lab", "size_gb": 2, "mount_point": "/data",
			"read_only": true, "backup": true, "replicate": false, "quota": true, "acl": false, "keepattrs": true,
			"mountoptions": []string{"nodev", "noexec"}}}},
		calls: "set 500 --mp0 lab:2,mp=/data,ro=1,acl=0,backup=1,keepattrs=1,quota=1,replicate=0," +
			"mountoptions=nodev;noexec", record: " +volumes=HASHES",
		conf: []string{"mp0: lab:500/vm-500-disk-1.raw,mp=/data,acl=0,backup=1,keepattrs=1," +
			"mountoptions=nodev;noexec,quota=1,replicate=0,ro=1,size=2G"}},
	{name: "options of a volume that is there",
		before: map[string]any{"volumes": []any{map[string]any{"pool": "lab", "size_gb": 2, "mount_point": "/data",
			"mountoptions": []string{"nodev"}, "acl": true}}},
		keys: map[string]any{"volumes": []any{map[string]any{"pool": "lab", "size_gb": 2, "mount_point": "/data",
			"backup": true, "mountoptions": []string{}, "replicate": true}}},
		calls:  "set 500 --mp0 lab:500/vm-500-disk-0.raw,mp=/data,acl=1,size=2G,backup=1",
		record: " +volumes=HASHES", restart: "mp0"},
	{name: "options of a mount point",
		keys: map[string]any{"mount_points": []any{map[string]any{"host_path": "$WORK/ssl",
			"container_path": "/mnt/shared", "replicate": false, "shared": true}}},
		calls: "set 500 --mp0 $WORK/ssl,mp=/mnt/shared,replicate=0,shared=1", record: " +mounts=HASHES",
		conf: []string{"mp0: $WORK/ssl,mp=/mnt/shared,replicate=0,shared=1"}},
	{name: "id_maps as objects", root: true,
		keys: map[string]any{"id_maps": []any{map[string]any{"type": "gid", "host_id": 33, "container_id": 33,
			"size": 2}},
			"mount_points": []any{map[string]any{"host_path": "$WORK/www", "container_path": "/var/www",
				"owner_uid": 33, "owner_gid": 34}}},
		calls: "set 500 --mp0 $WORK/www,mp=/var/www", record: " +lxc=HASHES +mounts=HASHES",
		conf: []string{"lxc.idmap: u 0 100000 65536", "lxc.idmap: g 0 100000 33", "lxc.idmap: g 33 33 2",
			"lxc.idmap: g 35 100035 65501"}, restart: "lxc",
		check: `test "$(stat -c %u:%g www)" = 100033:34`},
	{name: "ssh_public_keys",
		before: map[string]any{"ssh_public_keys": []string{publicKey + " one", publicKey + " two"}},
		keys:   map[string]any{"ssh_public_keys": []string{publicKey + " another"}}, nothing: true,
		check: `test "$(cut -d' ' -f3 host/storage/lab/images/500/*/root/.ssh/authorized_keys | xargs)" = "one two" &&
			! ls host/lock | grep phx`},
	{name: "ssh_public_keys in a file", before: map[string]any{"ssh_public_keys": "$WORK/keys.pub"},
		keys: map[string]any{}, nothing: true,
		check: `cmp keys.pub host/storage/lab/images/500/*/root/.ssh/authorized_keys`},
	{name: "nodename", keys: map[string]any{"nodename": "PVE1"}, nothing: true},
	{name: "keys of others", nothing: true,
		keys: map[string]any{"vllm_engine_config": map[string]any{"x": 1}, "ports": []string{"80:80"},
			"portainer_role": "agent", "tests": map[string]any{}}},
}

// Every key of a container's configuration: a dry run tells exactly what the
// run then does, the run stores it, and a second run does nothing.
func TestKeys(t *testing.T) {
	for _, tt := range keyCases {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root && os.Geteuid() != 0 {
				t.Skip("only root may give files away")
			}
			t.Parallel()
			h := newHost(t)
			if tt.env != "" {
				h = h.with(tt.env)
			}
			h.configure(tt.before)
			if _, _, status, stderr := h.run(); status != 0 {
				t.Fatalf("status %d\n%s", status, stderr)
			}
			const path = "host/pve/lxc/500.conf"
			if tt.byHand[0] != "" {
				text := strings.Replace(h.read(path), tt.byHand[0], strings.ReplaceAll(tt.byHand[1], "$WORK", h.dir), 1)
				if text == h.read(path) {
					t.Fatalf("the conf lacks %q", tt.byHand[0])
				}
				h.write(path, text)
			}
			h.configure(tt.keys)
			before := h.read(path)

			wantStatus := 3
			if tt.nothing {
				wantStatus = 0
			}
			h.env = append(h.env, "PHX_LAB_READONLY=1")
			events, calls, status, stderr := h.run("--dry-run")
			h.env = h.env[:len(h.env)-1]
			if status != wantStatus || len(calls) > 0 || h.read(path) != before {
				t.Fatalf("dry run: status %d, changing calls %v\n%s", status, calls, stderr)
			}
			wouldCall, wouldRun, diffs := previewed(events, bin+"/pct")

			// Where a change waits for a restart, a dry run with --restart tells it.
			if tt.restart != "" {
				h.env = append(h.env, "PHX_LAB_READONLY=1")
				events, _, _, stderr = h.run("--dry-run", "--restart")
				h.env = h.env[:len(h.env)-1]
				withRestart, _, _ := previewed(events, bin+"/pct")
				if !strings.Contains(join(withRestart), "reboot 500") {
					t.Errorf("a dry run with --restart would call\n%s\n%s", join(withRestart), stderr)
				}
			}

			events, calls, status, stderr = h.run()
			if status != 0 {
				t.Fatalf("status %d\n%s", status, stderr)
			}
			if got := h.normalise(join(calls)); got != tt.calls {
				t.Errorf("calls\n%s\nwant\n%s", got, tt.calls)
			}
			// A feature's script calls pct itself: its preview is the script.
			direct := slices.DeleteFunc(slices.Clone(calls), func(c []string) bool { return c[0] == "exec" })
			if got, want := join(wouldCall), join(direct); got != want {
				t.Errorf("the dry run told\n%s\nand the run called\n%s", got, want)
			}
			for _, command := range wouldRun {
				if !strings.HasPrefix(command, "mkdir -p ") && !strings.HasPrefix(command, "chown -R ") &&
					!strings.HasPrefix(command, "apparmor_parser ") && !strings.Contains(command, "_feature_install_") {
					t.Errorf("the dry run told: %s", command)
				}
			}
			after := h.read(path)
			if got := h.normalise(h.record(after)); got != tt.record {
				t.Errorf("the record is %q, want %q", got, tt.record)
			}
			for _, line := range tt.conf {
				if !slices.Contains(strings.Split(after, "\n"), strings.ReplaceAll(line, "$WORK", h.dir)) {
					t.Errorf("the conf lacks %q:\n%s", line, after)
				}
			}
			for _, line := range tt.without {
				if strings.Contains(after, "\n"+line) {
					t.Errorf("the conf has %q:\n%s", line, after)
				}
			}
			if tt.check != "" {
				if out, status := h.bash(tt.check); status != 0 {
					t.Errorf("%s: status %d\n%s", tt.check, status, out)
				}
			}
			for name, text := range tt.files {
				if got := h.read(name); !strings.Contains(got, text) {
					t.Errorf("%s:\n%s\nlacks\n%s", name, got, text)
				}
				if !strings.Contains(diffs[h.path(name)], "\n+"+strings.Split(strings.TrimSpace(text), "\n")[0]) {
					t.Errorf("the dry run's diff of %s:\n%s", name, diffs[h.path(name)])
				}
			}
			for _, ev := range events {
				if ev["event"] == "ct.ready" {
					if got := strings.Trim(fmt.Sprint(ev["restart_required"]), "[]"); got != tt.restart {
						t.Errorf("restart_required: %q, want %q", got, tt.restart)
					}
					if ev["changed"] == tt.nothing {
						t.Errorf("the dry run ended with %d, and the run reports changed %v", wantStatus, ev["changed"])
					}
				}
			}

			for _, mode := range []string{"", "--dry-run"} {
				args := []string{}
				if mode != "" {
					args = append(args, mode)
				}
				events, calls, status, stderr := h.run(args...)
				if status != 0 || len(calls) > 0 || h.read(path) != after ||
					slices.ContainsFunc(events, func(ev map[string]any) bool { return ev["changed"] == true }) {
					t.Errorf("second run %s: status %d, calls\n%s\n%s", mode, status, join(calls), stderr)
				}
			}
		})
	}
}

// record returns the words of the record in a conf, without its signature.
func (h *host) record(conf string) string {
	h.t.Helper()
	for line := range strings.Lines(conf) {
		words, ok := strings.CutPrefix(strings.TrimSpace(line), "#phx%3A")
		if !ok {
			continue
		}
		words, mac, _ := strings.Cut(words, " +mac=")
		if len(mac) != 32 {
			h.t.Errorf("the record has no signature: %s", line)
		}
		return strings.NewReplacer(" +applied=1", "", " +known=1", "").Replace(words)
	}
	return ""
}

// knownOnly is a record that only says that phx has worked on the container.
var knownOnly = regexp.MustCompile(` --description '?phx: \+known=1 \+mac=[0-9a-f]{32}'?`)

// normalise replaces what differs from test to test, or would be the code
// under test written again: the directory, and hashes.
func (h *host) normalise(s string) string {
	var lines []string
	s = knownOnly.ReplaceAllString(s, "")
	for _, line := range strings.Split(strings.ReplaceAll(s, h.dir, "$WORK"), "\n") {
		for _, name := range []string{"+apparmor=", "+lxc=", "+firewall=", "base_setup=", "+mounts=", "+volumes=",
			"+devices="} {
			if before, after, ok := strings.Cut(line, " "+name); ok {
				_, rest, more := strings.Cut(after, " ")
				line = before + " " + name + "HASHES"
				if more {
					line += " " + rest
				}
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}
