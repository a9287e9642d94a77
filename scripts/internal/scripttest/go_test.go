package scripttest

import (
	"archive/zip"
	"encoding/json"
	"go/version"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const toolchain = "golang.org/toolchain@v0.0.1-go1.99.1.linux-"

// goTree is a checkout with scripts/internal/tools/go.sh that wants Go 1.99.0 and pins Go 1.99.1, which the module
// proxy in its directory proxy has.
type goTree struct {
	dir  string
	real string // the Go of this test
	arch string
}

func makeGoTree(t *testing.T) goTree {
	t.Helper()
	real, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	tree := goTree{dir: t.TempDir(), real: real, arch: "amd64"}
	if out, _ := exec.Command("uname", "-m").Output(); strings.TrimSpace(string(out)) == "aarch64" {
		tree.arch = "arm64"
	}
	text := readFile(t, "../tools/go.sh")
	tree.write(t, "scripts/internal/tools/go.sh", text, 0o644)
	tree.write(t, "go.mod", "module x\n\ngo 1.99.0\n", 0o644)
	tree.write(t, "fetch/go.mod", "module fetch\n", 0o644)

	pinned := strings.TrimPrefix(toolchain, "golang.org/toolchain@") + tree.arch
	path := "proxy/golang.org/toolchain/@v/" + pinned
	tree.write(t, path+".mod", "module golang.org/toolchain\n", 0o644)
	tree.write(t, path+".info", `{"Version":"`+pinned+`"}`, 0o644)
	archive, err := os.Create(filepath.Join(tree.dir, path+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	w := zip.NewWriter(archive)
	for name, text := range map[string]string{
		"bin/go":                               "#!/bin/sh\necho pinned Go, GOROOT=$GOROOT, GOTOOLCHAIN=$GOTOOLCHAIN\n",
		"pkg/tool/linux_" + tree.arch + "/vet": "#!/bin/sh\n",
		"src/_go.mod":                          "module std\n",
		"src/cmd/_go.mod":                      "module cmd\n",
	} {
		f, err := w.Create(toolchain + tree.arch + "/" + name)
		if err == nil {
			_, err = f.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	cmd := exec.Command(real, "mod", "download", "-json", "golang.org/toolchain@"+pinned)
	cmd.Dir = filepath.Join(tree.dir, "fetch")
	cmd.Env = append(os.Environ(), "GOPROXY=file://"+tree.dir+"/proxy", "GONOSUMDB=*", "GOTOOLCHAIN=local",
		"GOFLAGS=-modcacherw", "GOMODCACHE="+t.TempDir())
	out, err := cmd.Output()
	var module struct{ Error, Sum, GoModSum string }
	if err == nil {
		err = json.Unmarshal(out, &module)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	line := "golang.org/toolchain " + pinned
	tree.write(t, "scripts/internal/tools/go.sum",
		line+" "+module.Sum+"\n"+line+"/go.mod "+module.GoModSum+"\n", 0o644)
	return tree
}

func (g goTree) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(g.dir, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// goOf puts a go of a version in PATH, that otherwise does what the real one does.
func (g goTree) goOf(t *testing.T, version string) {
	t.Helper()
	g.write(t, "path/go", "#!/bin/sh\n"+`[ "$*" != "env GOVERSION" ] || { echo '`+version+`'; exit; }`+"\n"+
		"echo ran >>"+g.dir+"/go.log\nexec "+g.real+" \"$@\"\n", 0o755)
}

// run has a script call use_go with the programs of $dir/path, and of Debian but for its Go, and then run go.
func (g goTree) run(t *testing.T, env ...string) (out string, ok bool) {
	t.Helper()
	for _, name := range []string{"bash", "cp", "chmod", "dirname", "flock", "mkdir", "mv", "realpath", "rm", "sed",
		"sort", "uname"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(g.dir, "debian"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(g.dir, "debian", name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	g.write(t, "script", "set -euo pipefail\n. "+g.dir+"/scripts/internal/tools/go.sh\nuse_go\ngo version\n", 0o644)
	cmd := exec.Command("bash", filepath.Join(g.dir, "script"))
	cmd.Env = append([]string{"PATH=" + g.dir + "/path:" + g.dir + "/debian", "HOME=" + g.dir,
		"GOPROXY=file://" + g.dir + "/proxy", "GOROOT=/nowhere"}, env...)
	text, err := cmd.CombinedOutput()
	return string(text), err == nil
}

const (
	pinnedGo = "pinned Go, GOROOT=, GOTOOLCHAIN=local\n" // what it says
	advice   = ": install Go 1.99.0 or later and put it in PATH\n"
)

// TestGoThatIsNewEnoughIsUsed: the Go in PATH is taken as it is, in each form that its version may have.
func TestGoThatIsNewEnoughIsUsed(t *testing.T) {
	for _, version := range []string{"go1.99.0", "go1.99.10", "go1.99.2 X:nodwarf5", "go1.100rc1", "go2.0.0",
		"devel go1.100-8c3a42f Mon Jan 1"} {
		g := goTree{dir: t.TempDir(), real: "/bin/echo"}
		g.write(t, "scripts/internal/tools/go.sh", readFile(t, "../tools/go.sh"), 0o644)
		g.write(t, "go.mod", "module x\n\ngo 1.99.0\n", 0o644)
		g.goOf(t, version)
		if out, ok := g.run(t); !ok || out != "version\n" {
			t.Errorf("%s: %v, %q", version, ok, out)
		}
	}
}

// TestOlderGoFetchesThePinnedOne: it comes once, with programs that can be executed, and is used from then on, also
// where there is no other any more. The system has no part of it.
func TestOlderGoFetchesThePinnedOne(t *testing.T) {
	for _, version := range []string{"go1.19.8", "go1.99rc2", "go1.9.7"} {
		g := makeGoTree(t)
		g.goOf(t, version)
		out, ok := g.run(t)
		if !ok || !strings.HasSuffix(out, pinnedGo) || !strings.Contains(out, "fetching Go: golang.org/toolchain v0") {
			t.Fatalf("%s: %v, %q", version, ok, out)
		}
		home := filepath.Join(g.dir, ".cache/phx/go1.99.1.linux-"+g.arch)
		for _, name := range []string{"bin/go", "pkg/tool/linux_" + g.arch + "/vet"} {
			if fi, err := os.Stat(filepath.Join(home, name)); err != nil || fi.Mode()&0o100 == 0 {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range []string{"src/go.mod", "src/cmd/go.mod"} {
			if readFile(t, filepath.Join(home, name)) == "" {
				t.Errorf("no %s", name)
			}
		}
		if names, err := filepath.Glob(filepath.Join(g.dir, ".cache/phx/*")); err != nil || len(names) != 2 {
			t.Errorf("in the cache: %q, %v", names, err) // with go.lock
		}
		if err := os.Remove(filepath.Join(g.dir, "path/go")); err != nil {
			t.Fatal(err)
		}
		if out, ok := g.run(t); !ok || out != pinnedGo {
			t.Errorf("the second time: %v, %q", ok, out)
		}
	}
}

// TestOtherGoThanPinnedIsRefused: what the module proxy has counts for nothing where it has another hash, also where
// the environment switches the checksum database off.
func TestOtherGoThanPinnedIsRefused(t *testing.T) {
	g := makeGoTree(t)
	g.goOf(t, "go1.19.8")
	sum := filepath.Join(g.dir, "scripts/internal/tools/go.sum")
	text := readFile(t, sum)
	at := strings.Index(text, " h1:") + len(" h1:")
	other := "A"
	if text[at] == 'A' {
		other = "B"
	}
	g.write(t, "scripts/internal/tools/go.sum", text[:at]+other+text[at+1:], 0o644)
	out, ok := g.run(t, "GONOSUMDB=*", "GOFLAGS=-insecure", "GOSUMDB=off")
	if ok || !strings.Contains(out, "checksum mismatch") ||
		!strings.HasSuffix(out, "could not be fetched by Go 1.19.8"+advice) {
		t.Errorf("%v, %q", ok, out)
	}
	if _, err := os.Stat(filepath.Join(g.dir, ".cache/phx/go1.99.1.linux-"+g.arch)); err == nil {
		t.Error("it is in the cache")
	}
}

// TestNoGoAtAll: root gets that of Debian first, and another user is told what to do.
func TestNoGoAtAll(t *testing.T) {
	g := makeGoTree(t)
	if os.Geteuid() != 0 {
		out, ok := g.run(t)
		if ok || out != "script: go: not found, and only root can install it"+advice {
			t.Errorf("%v, %q", ok, out)
		}
		return
	}
	g.write(t, "path/apt-get", "#!/bin/bash\necho apt-get: \"$@\"\n", 0o755)
	out, ok := g.run(t)
	if ok || !strings.Contains(out, "could not be fetched by Go : install Go") {
		t.Errorf("with an apt-get that installs nothing: %v, %q", ok, out)
	}
	g.goOf(t, "go1.19.8")
	if err := os.Rename(filepath.Join(g.dir, "path/go"), filepath.Join(g.dir, "package")); err != nil {
		t.Fatal(err)
	}
	g.write(t, "path/apt-get", "#!/bin/bash\necho apt-get: \"$@\"\n[[ $* != *\\ golang-go ]] || cp "+g.dir+"/package "+
		g.dir+"/path/go\n", 0o755)
	out, ok = g.run(t)
	if !ok || !strings.HasSuffix(out, pinnedGo) || !strings.Contains(out,
		"apt-get: -q -y --no-install-recommends --no-remove install ca-certificates golang-go\n") {
		t.Errorf("%v, %q", ok, out)
	}
	g.write(t, "path/apt-get", "#!/bin/bash\nexit 100\n", 0o755)
	for _, name := range []string{"path/go", ".cache/phx"} {
		if err := os.RemoveAll(filepath.Join(g.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	out, ok = g.run(t)
	if ok || !strings.HasSuffix(out, "Debian's golang-go could not be installed"+advice) {
		t.Errorf("%v, %q", ok, out)
	}
}

// TestPinnedGo: go.sum pins one Go, which is new enough, for each architecture that phx is built for.
func TestPinnedGo(t *testing.T) {
	wanted := regexp.MustCompile(`(?m)^go (.*)$`).FindStringSubmatch(readFile(t, "../../../go.mod"))
	text := readFile(t, "../tools/go.sum")
	line := regexp.MustCompile(`(?m)^golang.org/toolchain v0\.0\.1-(go.*)\.linux-([^/]*) h1:`)
	pinned := line.FindAllStringSubmatch(text, -1)
	if len(pinned) != 2 || pinned[0][2] != "amd64" || pinned[1][2] != "arm64" || pinned[0][1] != pinned[1][1] {
		t.Fatalf("%q", pinned)
	}
	if version.Compare(pinned[0][1], "go"+wanted[1]) < 0 {
		t.Errorf("%s is pinned, and go.mod wants %s", pinned[0][1], wanted[1])
	}
}
