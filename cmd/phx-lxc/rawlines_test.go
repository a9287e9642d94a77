package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// containerWith returns a container whose object has these keys, too.
func containerWith(t *testing.T, keys string) *config.Container {
	t.Helper()
	c, err := config.ParseContainer(101, []byte(`{"name": "x", "template": "local:vztmpl/x.tar.zst", "memory_mb": 512, "cores": 1,
		"storage_pool": "lab", "storage_size_gb": 8, "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.2/24"}, `+keys+`}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func rawTexts(lines []pve.RawLine) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintln(&b, rawText(l))
	}
	return b.String()
}

func TestWantedRaw(t *testing.T) {
	for _, tt := range []struct{ name, keys, want string }{
		{"nothing is wanted where nothing is said", `"start_at_boot": true`, ""},
		{"lxc_options with blanks are one line each, not one for each word",
			`"lxc_options": ["lxc.cgroup2.devices.allow=c 10:200 rwm", "lxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file"]`,
			"lxc.cgroup2.devices.allow: c 10:200 rwm\nlxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file\n"},
		{"capabilities are a line each", `"lxc_options": ["lxc.cap.keep=net_admin, net_raw"]`, "lxc.cap.keep: net_admin\nlxc.cap.keep: net_raw\n"},
		{"an option given twice is one line", `"lxc_options": ["lxc.autodev=1", "lxc.autodev: 1", "lxc.cap.drop=a,a"]`, "lxc.autodev: 1\nlxc.cap.drop: a\n"},
		{"the later value of a key that can have one counts", `"lxc_options": ["lxc.tty.max=1", "lxc.tty.max=2"]`, "lxc.tty.max: 2\n"},
		{"lxc_options win over apparmor_profile", `"apparmor_profile": "phx", "lxc_options": ["lxc.apparmor.profile=other"]`, "lxc.apparmor.profile: other\n"},
		{"unconfined is written as it is", `"apparmor_profile": "unconfined"`, "lxc.apparmor.profile: unconfined\n"},
		{"a profile that manages nesting", `"apparmor_profile": "phx", "apparmor_manages_nesting": true`,
			"lxc.apparmor.profile: phx\nlxc.apparmor.allow_nesting: 1\nlxc.include: /usr/share/lxc/config/nesting.conf\n"},
		{"only a profile of its own manages nesting", `"apparmor_profile": "unconfined", "apparmor_manages_nesting": true`, "lxc.apparmor.profile: unconfined\n"},
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
			`"id_maps": ["u 0 200000 1000", "g 0 300000 1000"]`, "lxc.idmap: u 0 200000 1000\nlxc.idmap: g 0 300000 1000\n"},
		{"the order is profile, options, GPUs, maps",
			`"id_maps": ["u 0 1 2"], "gpu_assignment": "none", "lxc_options": ["lxc.kmsg=0"], "apparmor_profile": "phx"`,
			"lxc.apparmor.profile: phx\nlxc.kmsg: 0\nlxc.idmap: u 0 1 2\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := rawTexts(wantedRaw(containerWith(t, tt.keys))); got != tt.want {
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

func TestSingleKeys(t *testing.T) {
	single := `lxc.apparmor.profile lxc.apparmor.allow_nesting lxc.apparmor.allow_incomplete lxc.autodev lxc.tty.max lxc.pty.max
		lxc.init.cmd lxc.arch lxc.signal.halt lxc.prlimit.nofile lxc.sysctl.kernel.sem lxc.hook.version lxc.mount.fstab
		lxc.cgroup2.memory.max lxc.cgroup2.cpuset.cpus lxc.seccomp.profile lxc.log.level lxc.start.auto lxc.uts.name lxc.kmsg`
	repeatable := `lxc.mount.entry lxc.mount.auto lxc.cgroup2.devices.allow lxc.cgroup2.devices.deny lxc.cgroup.devices.allow
		lxc.cgroup2.io.max lxc.cap.keep lxc.cap.drop lxc.idmap lxc.environment lxc.environment.hooks lxc.include lxc.net.0.type
		lxc.net.1.ipv4.address lxc.hook.start lxc.hook.pre-start lxc.group lxc.apparmor.raw`
	for key := range strings.FieldsSeq(single) {
		if !isSingle(key) {
			t.Errorf("%s is taken for repeatable", key)
		}
	}
	for key := range strings.FieldsSeq(repeatable) {
		if isSingle(key) {
			t.Errorf("%s is taken for single", key)
		}
	}
}

// rawLines reads raw lines, one a line.
func rawLines(t *testing.T, text string) []pve.RawLine {
	t.Helper()
	var lines []pve.RawLine
	for l := range strings.Lines(text) {
		raw, ok := parseRaw(l)
		if !ok {
			t.Fatalf("%q is no raw line", l)
		}
		lines = append(lines, raw)
	}
	return lines
}

func TestEditRaw(t *testing.T) {
	const (
		head   = "#by hand%3A 100%25\narch: amd64\ncores: 2\n"
		allowA = "lxc.cgroup2.devices.allow: c 1:1 rwm\n"
		allowB = "lxc.cgroup2.devices.allow: c 2:2 rwm\n"
		allowC = "lxc.cgroup2.devices.allow: c 3:3 rwm\n"
		handX  = "lxc.mount.entry: /x x none bind\n"
		handY  = "lxc.environment: Y=1\n"
		snap   = "\n[pve:pending]\nmemory: 256\n\n[final-form]\n#of the snapshot\nmemory: 512\n"
	)
	for _, tt := range []struct{ name, before, wanted, written, want string }{
		{"appended to the first section", head, allowA + allowB, "", head + allowA + allowB},
		{"not into the last snapshot's section", head + snap, allowA, "", head + allowA + snap},
		{"a line that was put into the last snapshot's section stays there and counts for nothing",
			head + snap + allowA, allowA, "", head + allowA + snap + allowA},
		{"lines of sections are never touched, wanted or not", head + snap + "lxc.tty.max: 1\n" + allowA + allowA,
			"lxc.tty.max: 2\n", allowA, head + "lxc.tty.max: 2\n" + snap + "lxc.tty.max: 1\n" + allowA + allowA},
		{"not appended again on every run", head + allowA + allowA + allowA + snap, allowA, "", head + allowA + snap},
		{"equal lines made by hand become one", head + handX + handY + handX, "", "", head + handX + handY},
		{"another notation counts as there", head + "lxc.cgroup2.devices.allow = c 1:1 rwm  \nlxc.tty.max=4\nlxc.arch:amd64\n",
			allowA + "lxc.tty.max: 4\nlxc.arch: amd64\n", "", head + "lxc.cgroup2.devices.allow = c 1:1 rwm  \nlxc.tty.max=4\nlxc.arch:amd64\n"},
		{"one line in two notations becomes one", head + "lxc.tty.max=4\nlxc.tty.max: 4\n", "lxc.tty.max: 4\n", "", head + "lxc.tty.max=4\n"},
		{"written earlier and not wanted any more", head + allowA + allowB + handX, allowB, allowA + allowB, head + allowB + handX},
		{"written earlier, in another notation since", head + "lxc.tty.max = 3\n" + handX, "", "lxc.tty.max: 3\n", head + handX},
		{"made by hand and never wanted", head + allowA + handX, "", "", head + allowA + handX},
		{"another value of a key that can have one is replaced in its place",
			head + "lxc.apparmor.profile: unconfined\n" + handX, "lxc.apparmor.profile: phx\n", "", head + "lxc.apparmor.profile: phx\n" + handX},
		{"several values of such a key become the wanted one",
			head + "lxc.tty.max: 1\n" + handX + "lxc.tty.max: 2\nlxc.tty.max: 3\n", "lxc.tty.max: 2\n", "", head + "lxc.tty.max: 2\n" + handX},
		{"another value of a key that may repeat stays", head + allowA + handX, allowB + "lxc.mount.entry: /y y none bind\n", "",
			head + allowA + handX + allowB + "lxc.mount.entry: /y y none bind\n"},
		{"other limits and settings of the kernel stay", head + "lxc.prlimit.nofile: 1\nlxc.sysctl.kernel.sem: 1\n",
			"lxc.prlimit.nofile: 2\n", "", head + "lxc.prlimit.nofile: 2\nlxc.sysctl.kernel.sem: 1\n"},
		{"generated is the absence of a profile", head + "lxc.apparmor.profile: unconfined\n" + handX + "lxc.apparmor.profile=x\n",
			"lxc.apparmor.profile: generated\n", "", head + handX},
		{"generated is not written", head + handX, "lxc.apparmor.profile: generated\n", "", head + handX},
		{"generated, written by hand, goes as well", head + "lxc.apparmor.profile: generated\n", "lxc.apparmor.profile: generated\n", "", head},
		{"id_maps replace all maps, as a mixture cannot start",
			head + "lxc.idmap: u 0 100000 65536\n" + handX + "lxc.idmap = g 0 100000 65536\nlxc.idmap: g 0 5 6\n",
			"lxc.idmap: u 0 5 6\nlxc.idmap: g 0 5 6\n", "", head + handX + "lxc.idmap: u 0 5 6\nlxc.idmap: g 0 5 6\n"},
		{"maps made by hand stay when none are configured", head + "lxc.idmap: u 0 1 2\n", allowA, "", head + "lxc.idmap: u 0 1 2\n" + allowA},
		{"a missing line goes behind the one before it", head + allowA + handX + allowC + handY, allowA + allowB + allowC, "",
			head + allowA + allowB + handX + allowC + handY},
		{"the first goes before the others", head + handX + allowB + handY, allowA + allowB, "", head + handX + allowA + allowB + handY},
		{"the last goes behind the others", head + handX + allowA + handY, allowA + allowB, "", head + handX + allowA + allowB + handY},
		{"lines in the wrong order become a group", head + handX + allowC + handY + allowA, allowA + allowB + allowC, "",
			head + handX + allowA + allowB + allowC + handY},
		{"comments, unknown lines and blank lines stay", head + "foo bar\n\n# x\n" + allowA + "\n\n" + snap, allowA + allowB, "",
			head + "foo bar\n\n# x\n" + allowA + allowB + "\n\n" + snap},
		{"the last line lacks its end", strings.TrimSuffix(head, "\n"), allowA, "", head + allowA},
		{"and keeps lacking it when nothing differs", head + strings.TrimSuffix(allowA, "\n"), allowA, "", head + strings.TrimSuffix(allowA, "\n")},
		{"line ends of another system", "cores: 2\r\nlxc.tty.max: 1\r\n", "lxc.tty.max: 1\n", "", "cores: 2\r\nlxc.tty.max: 1\r\n"},
		{"nothing but sections", "[a1]\nmemory: 1\n", allowA, "", allowA + "[a1]\nmemory: 1\n"},
		{"a bracket inside a line begins no section", "#x [y]\ncores: 2\n", allowA, "", "#x [y]\ncores: 2\n" + allowA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wanted := rawLines(t, tt.wanted)
			written := parseHashes(rawHashes(rawLines(t, tt.written)))
			got := string(editRaw([]byte(tt.before), wanted, written))
			if got != tt.want {
				t.Fatalf("%s", unifiedDiff("conf", []byte(tt.want), []byte(got)))
			}
			written = parseHashes(rawHashes(wanted))
			if again := string(editRaw([]byte(got), wanted, written)); again != got {
				t.Errorf("a second run changes it again:\n%s", unifiedDiff("conf", []byte(got), []byte(again)))
			}
		})
	}
}

// What the old scripts appended on every run, and a clone's or a snapshot's
// record of it, ends as each line once.
func TestEditRawAdoptsWhatTheOldScriptsMade(t *testing.T) {
	c := containerWith(t, `"apparmor_profile": "phx", "apparmor_manages_nesting": true, "gpu_assignment": "0", "lxc_options": ["lxc.cap.keep=net_admin,net_raw"]`)
	wanted := wantedRaw(c)
	one := rawTexts(wanted)
	nesting := "lxc.apparmor.allow_nesting: 1\nlxc.include: /usr/share/lxc/config/nesting.conf\n"
	before := "cores: 1\nlxc.apparmor.profile: unconfined\n" + one + nesting + nesting
	if got, want := string(editRaw([]byte(before), wanted, nil)), "cores: 1\n"+one; got != want {
		t.Error(unifiedDiff("conf", []byte(want), []byte(got)))
	}
}

func TestHashes(t *testing.T) {
	list := rawHashes(rawLines(t, "lxc.tty.max: 1\nlxc.autodev: 1\n"))
	if want := "48d58d,5d424d"; list != want { // as records hold them
		t.Errorf("hashes %q, want %q", list, want)
	}
	hashes := parseHashes(list)
	if len(hashes) != 2 || !hashes[shortHash("lxc.tty.max: 1")] || !hashes[shortHash("lxc.autodev: 1")] {
		t.Errorf("hashes %v", hashes)
	}
	if rawHashes(nil) != "" || len(parseHashes("")) != 0 {
		t.Error("nothing has hashes")
	}
}

func FuzzEditRaw(f *testing.F) {
	f.Add("cores: 1\nlxc.tty.max = 2\n\n[s1]\nlxc.tty.max: 3\n", "lxc.tty.max: 4\nlxc.cap.drop: a\n")
	f.Add("lxc.idmap: u 0 1 2\nx", "lxc.idmap: u 0 3 4\n")
	f.Fuzz(func(t *testing.T, text, wanted string) {
		var lines []pve.RawLine
		for l := range strings.Lines(wanted) {
			if raw, ok := parseRaw(l); ok && !slices.ContainsFunc(lines, func(o pve.RawLine) bool { return o.Key == raw.Key }) {
				lines = append(lines, raw)
			}
		}
		got := editRaw([]byte(text), lines, nil)
		if again := editRaw(got, lines, nil); string(again) != string(got) {
			t.Errorf("not settled: %q, then %q", got, again)
		}
		_, before := pve.FirstSection([]byte(text))
		if _, after := pve.FirstSection(got); string(before) != string(after) {
			t.Errorf("sections changed from %q to %q", before, after)
		}
		if len(lines) == 0 && string(got) != text {
			t.Errorf("nothing is wanted, and %q became %q", text, got)
		}
		have := pve.ParseConf(got).Raw
		for _, l := range lines {
			if l != generated && !slices.Contains(have, l) {
				t.Errorf("%v is missing in %q", l, got)
			}
		}
	})
}
