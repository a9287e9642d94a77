package main

import (
	"fmt"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// containerWith returns a container whose object has these keys, too.
func containerWith(t *testing.T, keys string) *config.Container {
	t.Helper()
	c, err := config.ParseContainer(101, []byte(`{
		"name": "x", "template": "local:vztmpl/x.tar.zst", "memory_mb": 512, "cores": 1,
		"storage_pool": "lab", "storage_size_gb": 8,
		"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.2/24"}, `+keys+`}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func rawTexts(lines []pve.RawLine) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintln(&b, l)
	}
	return b.String()
}

func TestRawLines(t *testing.T) {
	for _, tt := range []struct{ name, keys, want string }{
		{"nothing is wanted where nothing is said", `"start_at_boot": true`, ""},
		{"lxc_options with blanks are one line each, not one for each word",
			`"lxc_options": ["lxc.cgroup2.devices.allow=c 10:200 rwm",
				"lxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file"]`,
			"lxc.cgroup2.devices.allow: c 10:200 rwm\nlxc.mount.entry: /dev/net/tun dev/net/tun none " +
				"bind,create=file\n"},
		{"capabilities are a line each", `"lxc_options": ["lxc.cap.keep=net_admin, net_raw"]`,
			"lxc.cap.keep: net_admin\nlxc.cap.keep: net_raw\n"},
		{"an option given twice is one line", `"lxc_options": ["lxc.autodev=1", "lxc.autodev: 1", "lxc.cap.drop=a,a"]`,
			"lxc.autodev: 1\nlxc.cap.drop: a\n"},
		{"the later value of a key that can have one counts", `"lxc_options": ["lxc.tty.max=1", "lxc.tty.max=2"]`,
			"lxc.tty.max: 2\n"},
		{"lxc_options win over apparmor_profile",
			`"apparmor_profile": "phx", "lxc_options": ["lxc.apparmor.profile=other"]`,
			"lxc.apparmor.profile: other\n"},
		{"unconfined leaves Proxmox's own profile, as with the old scripts", `"apparmor_profile": "unconfined"`,
			"lxc.apparmor.profile: generated\n"},
		{"lxc_options switch AppArmor off",
			`"apparmor_profile": "unconfined", "lxc_options": ["lxc.apparmor.profile=unconfined"]`,
			"lxc.apparmor.profile: unconfined\n"},
		{"a profile that manages nesting", `"apparmor_profile": "phx", "apparmor_manages_nesting": true`,
			"lxc.apparmor.profile: phx\nlxc.apparmor.allow_nesting: 1\nlxc.include: " +
				"/usr/share/lxc/config/nesting.conf\n"},
		{"only a profile of its own manages nesting",
			`"apparmor_profile": "unconfined", "apparmor_manages_nesting": true`, "lxc.apparmor.profile: generated\n"},
		{"no profile manages no nesting", `"apparmor_manages_nesting": true`, ""},
		{"GPUs", `"gpu_assignment": "0,2"`, `lxc.cgroup2.devices.allow: c 195:* rwm
lxc.cgroup2.devices.allow: c 243:* rwm
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry: /dev/nvidia2 dev/nvidia2 none bind,optional,create=file
`},
		{"no GPUs", `"gpu_assignment": "none"`, ""},
		{"id_maps are written as they are, not 0 100000 65536 whatever they say",
			`"id_maps": ["u 0 200000 1000", "g 0 300000 1000"]`,
			"lxc.idmap: u 0 200000 1000\nlxc.idmap: g 0 300000 1000\n"},
		{"the order is profile, options, GPUs, maps",
			`"id_maps": ["u 0 1 2"], "gpu_assignment": "none", "lxc_options": ["lxc.kmsg=0"],
				"apparmor_profile": "phx"`,
			"lxc.apparmor.profile: phx\nlxc.kmsg: 0\nlxc.idmap: u 0 1 2\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := rawTexts(rawLines(containerWith(t, tt.keys))); got != tt.want {
				t.Errorf("lines\n%swant\n%s", got, tt.want)
			}
		})
	}
}

func TestCustomProfile(t *testing.T) {
	for profile, want := range map[string]string{"": "", "unconfined": "", "generated": "", "phx": "phx"} {
		if got := customProfile(&config.Container{AppArmorProfile: profile}); got != want {
			t.Errorf("%q: %q", profile, got)
		}
	}
}

// What the old scripts appended on every run, and a clone's or a snapshot's
// record of it, ends as each line once.
func TestEditRawAdoptsWhatTheOldScriptsMade(t *testing.T) {
	c := containerWith(t,
		`"apparmor_profile": "phx", "apparmor_manages_nesting": true, "gpu_assignment": "0",
			"lxc_options": ["lxc.cap.keep=net_admin,net_raw"]`)
	wanted := rawLines(c)
	one := rawTexts(wanted)
	nesting := "lxc.apparmor.allow_nesting: 1\nlxc.include: /usr/share/lxc/config/nesting.conf\n"
	before := "cores: 1\nlxc.apparmor.profile: unconfined\n" + one + nesting + nesting
	if got, want := string(pve.RewriteRaw([]byte(before), wanted, nil)), "cores: 1\n"+one; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
