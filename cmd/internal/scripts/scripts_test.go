package scripts

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// tree writes files below a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFirstDirectoryCounts(t *testing.T) {
	const former = "source " + Helpers + "\n"
	root := tree(t, map[string]string{
		"own/phoenix_assets.sh": "",
		"own/copied.sh":         former,
		"own/phoenix_hypervisor_feature_install_base_setup.sh":           "own",
		"own/phoenix_hypervisor_feature_install_mine.sh":                 "own",
		"old/lxc_setup/phoenix_hypervisor_feature_install_base_setup.sh": former,
		"old/lxc_setup/phoenix_hypervisor_feature_install_gpu.sh":        former,
		"old/app.sh":                 former,
		"old/lxc_setup/app.sh":       "not this one",
		"old/health_checks/check.sh": "",
		"old/check.sh":               "not this one",
		"mine/check2.sh":             "",
		"mine/phoenix_hypervisor_feature_install_mine.sh": "mine",
	})
	own, old, mine := filepath.Join(root, "own"), filepath.Join(root, "old"), filepath.Join(root, "mine")
	feature := func(name string) func(Dirs) (*Script, error) {
		return func(d Dirs) (*Script, error) { return d.Feature(name) }
	}
	application := func(name string) func(Dirs) (*Script, error) {
		return func(d Dirs) (*Script, error) { return d.Application(name) }
	}
	health := func(name string) func(Dirs) (*Script, error) {
		return func(d Dirs) (*Script, error) { return d.Health(name) }
	}
	const prefix = "phoenix_hypervisor_feature_install_"
	for _, tt := range []struct {
		dirs   Dirs
		find   func(Dirs) (*Script, error)
		path   string // below root
		passed string
		own    bool
		former bool
	}{
		{dirs: Dirs{own, old}, find: feature("base_setup"), path: "own/" + prefix + "base_setup.sh", own: true},
		{dirs: Dirs{old, own}, find: feature("base_setup"), path: "own/" + prefix + "base_setup.sh", own: true,
			passed: "old/lxc_setup/" + prefix + "base_setup.sh"},
		{dirs: Dirs{old}, find: feature("base_setup"), path: "old/lxc_setup/" + prefix + "base_setup.sh", former: true},
		{dirs: Dirs{own, old}, find: feature("gpu"), path: "old/lxc_setup/" + prefix + "gpu.sh", former: true},
		{dirs: Dirs{old, own}, find: feature("gpu"), path: "old/lxc_setup/" + prefix + "gpu.sh", former: true},
		{dirs: Dirs{own}, find: application("copied.sh"), path: "own/copied.sh", former: true},
		{dirs: Dirs{mine, own}, find: feature("mine"), path: "mine/" + prefix + "mine.sh"},
		{dirs: Dirs{own, old}, find: application("app.sh"), path: "old/app.sh", former: true},
		{dirs: Dirs{own, old, mine}, find: health("check.sh"), path: "old/health_checks/check.sh"},
		{dirs: Dirs{own, old, mine}, find: health("check2.sh"), path: "mine/check2.sh"},
	} {
		s, err := tt.find(tt.dirs)
		if err != nil {
			t.Errorf("%v: %v", tt.dirs, err)
			continue
		}
		passed := strings.TrimPrefix(s.Passed, root+"/")
		if path := strings.TrimPrefix(s.Path, root+"/"); path != tt.path || passed != tt.passed || s.Own != tt.own ||
			s.Former != tt.former {
			t.Errorf("%v: %s (passed %q, own %t, former %t), want %+v", tt.dirs, path, passed, s.Own, s.Former, tt)
		}
	}
	if _, err := (Dirs{own, old}).Feature("none"); err == nil ||
		!strings.Contains(err.Error(), own+", "+own+"/lxc_setup, "+old+", "+old+"/lxc_setup: put it there") {
		t.Errorf("a feature that is nowhere: %v", err)
	}
	if err := os.Chmod(filepath.Join(old, "app.sh"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err := (Dirs{old}).Application("app.sh"); err != nil || s.Executable() == nil {
		t.Errorf("a file that is not executable: %v, %v", s, err)
	}
	// What is to be run may be copied into a shell.
	evil := &Script{Path: filepath.Join(t.TempDir(), "$(touch it)")}
	if err := os.WriteFile(evil.Path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, run := remedy.Split(evil.Executable()); !strings.HasSuffix(run, "/$(touch it)'") {
		t.Errorf("the remedy is %s", run)
	}
}

// Each form in which a script finds its own place.
func TestWhatIsSourced(t *testing.T) {
	for name, line := range map[string]string{
		"dirname of BASH_SOURCE": `source "$(dirname "${BASH_SOURCE[0]}")/../helpers.sh"`,
		"dirname of $0":          `. "$(dirname -- "$0")/../helpers.sh"`,
		"readlink":               `source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../helpers.sh"`,
		"realpath":               `source "$(dirname $(realpath $0))/../helpers.sh"`,
		"parameter expansion":    `source "${BASH_SOURCE%/*}/../helpers.sh"`,
		"cd and pwd":             `source "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/helpers.sh"`,
		"cd and pwd -P": `source "$(cd -- "$(dirname -- "${BASH_SOURCE}")/.." ` +
			`&>/dev/null && pwd -P)/helpers.sh"`,
		"variables": "HERE=$(cd -- \"$(dirname -- \"${BASH_SOURCE[0]}\")\" &> /dev/null && pwd)\n" +
			"export BASE=$(cd \"${HERE}/..\" &> /dev/null && pwd)\nUTILS=\"$BASE/helpers.sh\"\nsource \"${UTILS}\"",
		"or exit": `source "$(dirname "$0")/../helpers.sh" || exit 1`,
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, map[string]string{"bin/setup/x.sh": "# " + Helpers + "\n" + line + "\n"})
			s, err := Dirs{filepath.Join(root, "bin/setup")}.Application("x.sh")
			if err != nil {
				t.Fatal(err)
			}
			want := filepath.Join(root, "bin/helpers.sh")
			if got := s.OnHost().Missing; !slices.Equal(got, []string{want}) {
				t.Errorf("missing %q, want %q", got, want)
			}
			if err := os.WriteFile(want, []byte("X=1\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := s.OnHost().Missing; len(got) > 0 {
				t.Errorf("missing %q, and it is there", got)
			}
		})
	}
}

// What need not be there, or cannot be known, does not keep a script from being
// run.
func TestWhatIsNotSourced(t *testing.T) {
	for name, line := range map[string]string{
		"if it is there":     `[ -f /none/a.sh ] && source /none/a.sh`,
		"which may fail":     "source /none/a.sh 2>/dev/null || true\n. /none/b.sh || :",
		"in if":              "if [ -f /none/a.sh ]; then\n\t. /none/a.sh\nfi",
		"in a function":      "f() { source /none/a.sh; }",
		"in another shell":   "pct exec 1 -- bash -c \"\nsource /none/a.sh\n\"",
		"in a here-document": "cat <<EOF\nsource /none/a.sh\nEOF",
		"an unknown place":   `source "$UNKNOWN/a.sh"`,
		"what is printed":    `source "$(find / -name a.sh)"`,
		"in PATH":            `source a.sh`,
		"another language":   "import os\nif x in (1, 2):\n  print('source /none/a.sh')",
		"a changed variable": "D=/none\nD=$(other)\nsource $D/a.sh",
		"a changed list":     "D=/none\nD+=/x$Y\nsource $D/a.sh",
	} {
		root := tree(t, map[string]string{"x.sh": "# " + Helpers + "\n" + line + "\n"})
		s, err := Dirs{root}.Application("x.sh")
		if err != nil {
			t.Fatal(err)
		}
		if got := s.OnHost().Missing; len(got) > 0 {
			t.Errorf("%s: missing %q", name, got)
		}
	}
}

// In a container, what a script sources from its own directory is put there, and
// the files that it does not read are not.
func TestWhatIsPutIntoTheContainer(t *testing.T) {
	const helpers = "LXC_CONFIG_FILE=/etc/x.json\n" +
		"inner() { jq . \"$HYPERVISOR_CONFIG_FILE\"; }\nsettings() { inner \"$1\"; }\nother() { :; }\n"
	root := tree(t, map[string]string{
		"bin/" + Helpers:    helpers,
		"bin/setup/more.sh": "other\n",
		"bin/setup/a.sh": "source \"$(dirname \"$0\")/" + Helpers + "\"\nsource /tmp/phoenix_run/more.sh\n" +
			"X=$(settings .x)\n",
		"bin/setup/b.sh": "source /tmp/phoenix_run/" + Helpers + "\nother\n",
		"bin/setup/c.sh": "source /tmp/phoenix_run/lib/c.sh\nsource /tmp/phoenix_run/none.sh\n" +
			"source /etc/os-release\n",
	})
	for name, want := range map[string]struct {
		files, missing []string
		settings       bool
	}{
		"a.sh": {files: []string{Helpers, "more.sh"}, settings: true},
		"b.sh": {files: []string{Helpers}},
		"c.sh": {missing: []string{"/tmp/phoenix_run/lib/c.sh", filepath.Join(root, "bin/setup/none.sh")}},
	} {
		s, err := Dirs{filepath.Join(root, "bin/setup")}.Application(name)
		if err != nil {
			t.Fatal(err)
		}
		n := s.InContainer()
		var files []string
		for _, f := range n.Files {
			files = append(files, f.Name)
		}
		if !slices.Equal(files, want.files) || !slices.Equal(n.Missing, want.missing) || len(n.Configs) > 0 {
			t.Errorf("%s: files %q, missing %q, configs %q", name, files, n.Missing, n.Configs)
		}
		if got := n.Reads("HYPERVISOR_CONFIG_FILE"); got != want.settings {
			t.Errorf("%s: reads the settings: %t", name, got)
		}
	}
	a, err := Dirs{filepath.Join(root, "bin/setup")}.Application("a.sh")
	if err != nil {
		t.Fatal(err)
	}
	if got := a.OnHost().Missing; !slices.Equal(got, []string{
		filepath.Join(root, "bin/setup", Helpers), "/tmp/phoenix_run/more.sh"}) {
		t.Errorf("on the host: missing %q", got)
	}
}

// What a script says of its places is followed within bounds: without an end to
// wait for, and whatever is written there.
func TestWhatCannotBeFollowed(t *testing.T) {
	root := tree(t, map[string]string{"x.sh": ""})
	pipe := filepath.Join(root, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	lines := map[string]string{
		"a process":      "source <(kubectl completion bash)",
		"of two":         "X=$(dirname <(a))/b\nsource $X",
		"a named pipe":   "source " + pipe,
		"a device":       "source /dev/zero",
		"doubled values": "A=0123456789\n" + strings.Repeat("A=$A$A\n", 100) + "source /$A",
		"arithmetic":     "A=$((1 << -1))$((1 / 0))\nsource /$A",
	}
	for _, opened := range []string{"(", "{ ", "! ", "a|", "`", "A=$(", "A=$((1+"} {
		n := maxParsed/len(opened) - 100
		if inner := strings.Count(opened, "("); inner > 0 {
			n = min(n, maxParentheses/inner-10)
		}
		lines[opened] = strings.Repeat(opened, n)
		lines["more of "+opened] = strings.Repeat(opened, maxParsed)
		lines[opened+" in arithmetic"] = "A=$((" + lines[opened]
	}
	for name, line := range lines {
		text := "# " + Helpers + "\n" + line + "\n"
		if err := os.WriteFile(filepath.Join(root, "x.sh"), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		s, err := Dirs{root}.Application("x.sh")
		if err != nil {
			t.Fatal(err)
		}
		if n := s.OnHost(); len(n.Missing) > 0 {
			t.Errorf("%s: missing %.100q", name, n.Missing)
		}
		if n := s.InContainer(); len(n.Missing) > 0 || len(n.Files) > 0 {
			t.Errorf("%s: in the container: missing %.100q", name, n.Missing)
		}
	}
}

// Anybody may make something of the name of RunDir on the host: where a script of
// a container finds what lies beside it does not depend on that.
func TestLinksOfTheHostAreNotTheContainers(t *testing.T) {
	if err := os.Mkdir(RunDir, 0o700); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(RunDir) })
	root := tree(t, map[string]string{
		Helpers: "", "x.sh": "source \"$(dirname \"$(readlink -f \"$0\")\")/" + Helpers + "\"\n",
	})
	if err := os.Symlink(filepath.Join(root, "x.sh"), RunDir+"/x.sh"); err != nil {
		t.Fatal(err)
	}
	s, err := Dirs{root}.Application("x.sh")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.InContainer(); len(n.Files) != 1 || n.Files[0].Name != Helpers {
		t.Errorf("beside it: %v", n.Files)
	}
}

func TestFlag(t *testing.T) {
	t.Setenv("PHX_SCRIPTS", "/a:/b")
	var f Flag
	f.Set("/a:/b") // as cli does with the variable
	if got := f.String(); got != "/a:/b" {
		t.Error(got)
	}
	f.Set("/c:")
	f.Set("/d:/e")
	if got := f.String(); got != "/c:/d:/e" {
		t.Errorf("the flag in place of the variable, twice: %s", got)
	}
}
