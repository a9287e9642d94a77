package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const sample = `#line one
#line%3A two %25 %C3%BC #x
arch: amd64
hostname: Copy-Cuda12.8
memory: 1024
mp0: /srv/hostdir,mp=/mnt/shared,ro=1
net0: name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=BC:24:11:aa:bb:cc,ip=10.0.0.102/24,type=veth
parent: s1
rootfs: lab:710/vm-710-disk-0.raw,size=3G
swap: 0
tags: base;phx
unprivileged: 1
lxc.cgroup2.devices.allow: c 195:* rwm
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.cap.drop: 

[pve:pending]
delete: searchdomain
features: nesting=1

[s1]
#first snap
arch: amd64
hostname: Copy-Cuda12.8
snaptime: 1795424699
lxc.apparmor.profile: unconfined
`

func TestRoundTrip(t *testing.T) {
	var warnings bytes.Buffer
	c := parseConfig(710, []byte(sample), &warnings)
	if got := string(c.print()); got != sample {
		t.Errorf("printed:\n%s", got)
	}
	if warnings.Len() > 0 {
		t.Errorf("warnings: %s", &warnings)
	}
	if got, want := c.values["description"], "line one\nline: two % ü #x\n"; got != want {
		t.Errorf("description %q, want %q", got, want)
	}
	if s := c.snapshots["s1"]; s == nil || s.values["description"] != "first snap\n" || len(s.raw) != 1 {
		t.Errorf("snapshot %+v", s)
	}
}

func TestEncodeText(t *testing.T) {
	var all []byte
	for b := range 256 {
		all = append(all, byte(b))
	}
	enc := encodeText(string(all))
	if decodeText(enc) != string(all) {
		t.Errorf("decoding %q does not give back what was encoded", enc)
	}
	for _, want := range []string{"%00", "%0A", "%1F !\"#$%25&'", "9%3A;", "~%7F%80", "%FF"} {
		if !strings.Contains(enc, want) {
			t.Errorf("%q is not in %q", want, enc)
		}
	}
}

// TestRawLines is what becomes of lines that people append to a configuration.
func TestRawLines(t *testing.T) {
	const gone = ""
	unparsed := func(line string) string { return "vm 710 - unable to parse config: " + line }
	tests := []struct{ line, kept, warning string }{
		{"lxc.apparmor.profile=unconfined", "lxc.apparmor.profile: unconfined", ""},
		{"lxc.apparmor.profile = unconfined", "lxc.apparmor.profile: unconfined", ""},
		{"lxc.apparmor.profile: unconfined  ", "lxc.apparmor.profile: unconfined", ""},
		{"lxc.apparmor.profile:unconfined", "lxc.apparmor.profile: unconfined", ""},
		{"lxc.mount.auto:sys:rw", "lxc.mount.auto: sys:rw", ""},
		{"lxc.cap.drop:", "lxc.cap.drop: ", ""},
		{"lxc.cgroup2.devices.allow: c 195:* rwm", "lxc.cgroup2.devices.allow: c 195:* rwm", ""},
		{"lxc.net.1.type: veth", "lxc.net.1.type: veth", ""},
		{"lxc.prlimit.nofile: 1024", "lxc.prlimit.nofile: 1024", ""},
		{"lxc.sysctl.kernel.shmmax: 1", "lxc.sysctl.kernel.shmmax: 1", ""},
		{"lxc.init.uid: 0", "lxc.init.uid: 0", ""},
		{"lxc.hook.start: /x", "lxc.hook.start: /x", ""},
		{"lxc.environment: A=b", "lxc.environment: A=b", ""},
		{"lxc.environment.runtime: A=b", "env: A=b", ""},
		{"lxc.cgroup.memory.limit_in_bytes: 1", "lxc.cgroup.memory.limit_in_bytes: 1",
			"vm 710 - lxc.cgroup.memory.limit_in_bytes: lxc.cgroup.* is deprecated, " +
				"this will be a hard error in the future!"},
		{"lxc.limit.nofile: 1", "lxc.limit.nofile: 1",
			"vm 710 - lxc.limit.nofile: lxc.limit.* was renamed to lxc.prlimit.*"},
		{"lxc.aa_profile: x", "lxc.aa_profile: x",
			"vm 710 - lxc.aa_profile is deprecated and was renamed to lxc.apparmor.profile"},
		{"lxc.id_map: u 0 1 2", "lxc.id_map: u 0 1 2",
			"vm 710 - lxc.id_map is deprecated and was renamed to lxc.idmap"},
		{"lxc.rootfs.path: /x", gone, "vm 710 - lxc.rootfs.path: lxc.rootfs.path is auto generated from rootfs"},
		{"lxc.rootfs.options: ro", gone,
			`vm 710 - lxc.rootfs.options: lxc.rootfs.options is not supported, ` +
				`please use mount point options in the "rootfs" key`},
		{"foo: bar", "foo: bar", "vm 710 - unable to parse value of 'foo' - unknown setting 'foo'"},
		{"memory: lots", "memory: lots",
			"vm 710 - unable to parse value of 'memory' - type check ('integer') failed - got 'lots'"},
		{"cores: 0", "cores: 0", ""},
		{"onboot: yes", "onboot: 1", ""},
		{"delete: memory", gone, "vm 710 - property 'delete' is only allowed in [pve:pending]"},
		{"#note", "#note", ""},
	}
	for _, line := range []string{
		"lxc.apparmor.profile : unconfined", "lxc.apparmor.profile unconfined", " lxc.apparmor.profile: unconfined",
		"LXC.cap.drop: x", "lxc.Cap.drop: x",
		"lxc.tty.dir: lxc", "lxc.rootfs: /x", "lxc.sysctl.net.ipv4.ip_forward: 1", "lxc.namespace.keep: net",
		"lxc.namespace.share.net: 1",
		"lxc.hook.start-host: /x", "lxc.no_new_privs: 1", "lxc.proc.oom_score_adj: 1", "lxc.seccomp.allow_nesting: 1",
		"lxc.monitor.unshare: 1",
		"lxc.ephemeral: 1", "lxc.keyring.session: 0", "lxc.cgroup3.x: 1", "swap 512",
		"hostname=x", "; x", " # indented",
	} {
		tests = append(tests, struct{ line, kept, warning string }{line, gone, unparsed(line)})
	}
	for _, tt := range tests {
		var warnings bytes.Buffer
		got := string(parseConfig(710, []byte(tt.line+"\n"), &warnings).print())
		want := tt.kept
		if want != gone {
			want += "\n"
		}
		if got != want {
			t.Errorf("%q is rewritten as %q, want %q", tt.line, got, want)
		}
		if w := strings.TrimSuffix(warnings.String(), "\n"); w != tt.warning {
			t.Errorf("%q warns %q, want %q", tt.line, w, tt.warning)
		}
	}
}

// TestRawLineAfterSections guards the trap of appending with >>: the line is the last section's.
func TestRawLineAfterSections(t *testing.T) {
	c := parseConfig(710, []byte(sample+"lxc.kmsg: 1\n"), new(bytes.Buffer))
	if n := len(c.raw); n != 3 {
		t.Errorf("the head has %d raw lines, want its own 3", n)
	}
	if n := len(c.snapshots["s1"].raw); n != 2 {
		t.Errorf("the snapshot has %d raw lines, want 2", n)
	}
}

func TestGuestBlock(t *testing.T) {
	const block = "# --- BEGIN PVE ---\n10.0.0.2 a\n# --- END PVE ---\n"
	for in, want := range map[string]string{
		"":            block,
		"127.0.0.1 x": "127.0.0.1 x\n" + block,
		"a\n# --- BEGIN PVE ---\nold\n# --- END PVE ---\nb\n": "a\n" + block + "b\n",
	} {
		if got := string(withBlock([]byte(in), "10.0.0.2 a\n")); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

// A waiting program sets a lock's times to 1970: that must not make it old.
func TestClusterLocks(t *testing.T) {
	l := &lab{dir: t.TempDir()}
	lock := filepath.Join(l.dir, "pve", "priv", "lock", "file-x")
	if err := os.MkdirAll(lock, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(lock, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	l.freeClusterLocks(time.Hour)
	if _, err := os.Stat(lock); err != nil {
		t.Errorf("a new lock is gone: %v", err)
	}
	time.Sleep(2 * time.Millisecond)
	l.freeClusterLocks(time.Millisecond)
	if _, err := os.Stat(lock); err == nil {
		t.Error("an old lock is still there")
	}
}
