package pve

import (
	"slices"
	"strings"
	"testing"
)

func TestSingleKeys(t *testing.T) {
	single := `
		lxc.apparmor.profile lxc.apparmor.allow_nesting lxc.apparmor.allow_incomplete lxc.autodev lxc.tty.max
		lxc.pty.max lxc.init.cmd lxc.arch lxc.signal.halt lxc.prlimit.nofile lxc.sysctl.kernel.sem
		lxc.hook.version lxc.mount.fstab lxc.cgroup2.memory.max lxc.cgroup2.cpuset.cpus lxc.seccomp.profile
		lxc.log.level lxc.start.auto lxc.uts.name lxc.kmsg`
	repeatable := `
		lxc.mount.entry lxc.mount.auto lxc.cgroup2.devices.allow lxc.cgroup2.devices.deny
		lxc.cgroup.devices.allow lxc.cgroup2.io.max lxc.cap.keep lxc.cap.drop lxc.idmap lxc.environment
		lxc.environment.hooks lxc.include lxc.net.0.type lxc.net.1.ipv4.address lxc.hook.start lxc.hook.pre-start
		lxc.group lxc.apparmor.raw`
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
func rawLines(t *testing.T, text string) []RawLine {
	t.Helper()
	var lines []RawLine
	for l := range strings.Lines(text) {
		raw, ok := parseRaw(l)
		if !ok {
			t.Fatalf("%q is no raw line", l)
		}
		lines = append(lines, raw)
	}
	return lines
}

func TestRewriteRaw(t *testing.T) {
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
		{"another notation counts as there", head +
			"lxc.cgroup2.devices.allow = c 1:1 rwm  \nlxc.tty.max=4\nlxc.arch:amd64\n",
			allowA + "lxc.tty.max: 4\nlxc.arch: amd64\n", "", head +
				"lxc.cgroup2.devices.allow = c 1:1 rwm  \nlxc.tty.max=4\nlxc.arch:amd64\n"},
		{"one line in two notations becomes one", head + "lxc.tty.max=4\nlxc.tty.max: 4\n", "lxc.tty.max: 4\n", "",
			head + "lxc.tty.max=4\n"},
		{"written earlier and not wanted any more", head + allowA + allowB + handX, allowB, allowA + allowB, head +
			allowB + handX},
		{"written earlier, in another notation since", head + "lxc.tty.max = 3\n" + handX, "", "lxc.tty.max: 3\n",
			head + handX},
		{"made by hand and never wanted", head + allowA + handX, "", "", head + allowA + handX},
		{"another value of a key that can have one is replaced in its place",
			head + "lxc.apparmor.profile: unconfined\n" + handX, "lxc.apparmor.profile: phx\n", "", head +
				"lxc.apparmor.profile: phx\n" + handX},
		{"several values of such a key become the wanted one",
			head + "lxc.tty.max: 1\n" + handX + "lxc.tty.max: 2\nlxc.tty.max: 3\n", "lxc.tty.max: 2\n", "", head +
				"lxc.tty.max: 2\n" + handX},
		{"another value of a key that may repeat stays", head + allowA + handX, allowB +
			"lxc.mount.entry: /y y none bind\n", "",
			head + allowA + handX + allowB + "lxc.mount.entry: /y y none bind\n"},
		{"other limits and settings of the kernel stay", head + "lxc.prlimit.nofile: 1\nlxc.sysctl.kernel.sem: 1\n",
			"lxc.prlimit.nofile: 2\n", "", head + "lxc.prlimit.nofile: 2\nlxc.sysctl.kernel.sem: 1\n"},
		{"generated is the absence of a profile", head + "lxc.apparmor.profile: unconfined\n" + handX +
			"lxc.apparmor.profile=x\n",
			"lxc.apparmor.profile: generated\n", "", head + handX},
		{"generated is not written", head + handX, "lxc.apparmor.profile: generated\n", "", head + handX},
		{"generated, written by hand, goes as well", head + "lxc.apparmor.profile: generated\n",
			"lxc.apparmor.profile: generated\n", "", head},
		{"id_maps replace all maps, as a mixture cannot start",
			head + "lxc.idmap: u 0 100000 65536\n" + handX + "lxc.idmap = g 0 100000 65536\nlxc.idmap: g 0 5 6\n",
			"lxc.idmap: u 0 5 6\nlxc.idmap: g 0 5 6\n", "", head + handX + "lxc.idmap: u 0 5 6\nlxc.idmap: g 0 5 6\n"},
		{"maps made by hand stay when none are configured", head + "lxc.idmap: u 0 1 2\n", allowA, "", head +
			"lxc.idmap: u 0 1 2\n" + allowA},
		{"a missing line goes behind the one before it", head + allowA + handX + allowC + handY, allowA + allowB +
			allowC, "",
			head + allowA + allowB + handX + allowC + handY},
		{"the first goes before the others", head + handX + allowB + handY, allowA + allowB, "", head + handX + allowA +
			allowB + handY},
		{"the last goes behind the others", head + handX + allowA + handY, allowA + allowB, "", head + handX + allowA +
			allowB + handY},
		{"lines in the wrong order become a group", head + handX + allowC + handY + allowA, allowA + allowB + allowC,
			"",
			head + handX + allowA + allowB + allowC + handY},
		{"comments, unknown lines and blank lines stay", head + "foo bar\n\n# x\n" + allowA + "\n\n" + snap, allowA +
			allowB, "",
			head + "foo bar\n\n# x\n" + allowA + allowB + "\n\n" + snap},
		{"the last line lacks its end", strings.TrimSuffix(head, "\n"), allowA, "", head + allowA},
		{"and keeps lacking it when nothing differs", head + strings.TrimSuffix(allowA, "\n"), allowA, "", head +
			strings.TrimSuffix(allowA, "\n")},
		{"line ends of another system", "cores: 2\r\nlxc.tty.max: 1\r\n", "lxc.tty.max: 1\n", "",
			"cores: 2\r\nlxc.tty.max: 1\r\n"},
		{"nothing but sections", "[a1]\nmemory: 1\n", allowA, "", allowA + "[a1]\nmemory: 1\n"},
		{"a bracket inside a line begins no section", "#x [y]\ncores: 2\n", allowA, "", "#x [y]\ncores: 2\n" + allowA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wanted := rawLines(t, tt.wanted)
			written := Record{RawWord: RawHashes(rawLines(t, tt.written))}.Hashes(RawWord)
			got := string(RewriteRaw([]byte(tt.before), wanted, written))
			if got != tt.want {
				t.Fatalf("%s", unifiedDiff("conf", []byte(tt.want), []byte(got)))
			}
			written = Record{RawWord: RawHashes(wanted)}.Hashes(RawWord)
			if again := string(RewriteRaw([]byte(got), wanted, written)); again != got {
				t.Errorf("a second run changes it again:\n%s", unifiedDiff("conf", []byte(got), []byte(again)))
			}
		})
	}
}

func FuzzRewriteRaw(f *testing.F) {
	f.Add("cores: 1\nlxc.tty.max = 2\n\n[s1]\nlxc.tty.max: 3\n", "lxc.tty.max: 4\nlxc.cap.drop: a\n")
	f.Add("lxc.idmap: u 0 1 2\nx", "lxc.idmap: u 0 3 4\n")
	f.Fuzz(func(t *testing.T, text, wanted string) {
		var lines []RawLine
		for l := range strings.Lines(wanted) {
			if raw, ok := parseRaw(l); ok &&
				!slices.ContainsFunc(lines, func(o RawLine) bool { return o.Key == raw.Key }) {
				lines = append(lines, raw)
			}
		}
		got := RewriteRaw([]byte(text), lines, nil)
		if again := RewriteRaw(got, lines, nil); string(again) != string(got) {
			t.Errorf("not settled: %q, then %q", got, again)
		}
		_, before := firstSection([]byte(text))
		if _, after := firstSection(got); string(before) != string(after) {
			t.Errorf("sections changed from %q to %q", before, after)
		}
		if len(lines) == 0 && string(got) != text {
			t.Errorf("nothing is wanted, and %q became %q", text, got)
		}
		have := ParseConf(got).Raw
		for _, l := range lines {
			if l != GeneratedProfile && !slices.Contains(have, l) {
				t.Errorf("%v is missing in %q", l, got)
			}
		}
	})
}

func TestEffectiveRaw(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "",
		"lxc.autodev: 1\nlxc.autodev=1\n": "lxc.autodev: 1\n",
		"lxc.tty.max: 1\nlxc.kmsg: 0\nlxc.tty.max: 2\n":     "lxc.kmsg: 0\nlxc.tty.max: 2\n",
		"lxc.cap.drop: a\nlxc.cap.drop: b\nlxc.cap.drop: a": "lxc.cap.drop: a\nlxc.cap.drop: b\n",
	} {
		var got strings.Builder
		for _, l := range EffectiveRaw(rawLines(t, text)) {
			got.WriteString(l.String() + "\n")
		}
		if got.String() != want {
			t.Errorf("%q: %q, want %q", text, got.String(), want)
		}
	}
}
