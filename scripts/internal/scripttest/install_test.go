package scripttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestInstallDoesNoHarm runs what docs/takeover.md gives for a host without the
// package as it is printed there, twice, on one that has an installation of the
// old scripts with a configuration, storage and commands of its own: all stays.
func TestInstallDoesNoHarm(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a mount namespace")
	}
	repo, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(repo, "docs/takeover.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?ms)^```sh host\n(.*?)^```$").FindSubmatch(page)
	if m == nil {
		t.Fatal("docs/takeover.md has no block fenced as ```sh host")
	}
	overlay := t.TempDir()
	// What happens below /usr/local stays in this namespace and in the temporary directory.
	const script = `set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/usr/local,upperdir=$1/upper,workdir=$1/work" none /usr/local
prefix=/usr/local/phoenix_hypervisor
mkdir -p $prefix/etc $prefix/bin/managers $prefix/persistent-storage/ssl
echo '{"lxc_configs": {"of": "the user"}}' >$prefix/etc/phoenix_lxc_configs.json
echo 'the old command' >$prefix/bin/phoenix-cli
echo 'the old manager' >$prefix/bin/managers/lxc-manager.sh
echo 'the old root' >$prefix/persistent-storage/ssl/phoenix_ca.crt
before=$(cd $prefix && find . -type f -exec sha256sum {} + | sort)
cd "$2"
for time in first second; do bash -euo pipefail -c "$3"; done
after=$(cd $prefix && find . -type f -exec sha256sum {} + | sort)
lost=$(comm -23 <(echo "$before") <(echo "$after"))
[ -z "$lost" ] || { echo "changed or gone: $lost" >&2; exit 1; }
$prefix/bin/phx-plan --config "$2/scripts/phoenix_lxc_configs.json" --format table`
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "bash", "-c", script, "bash",
		overlay, repo, string(m[1]))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Step-CA") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestInstall: only what an earlier call has written is replaced, unless told.
func TestInstall(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "with blank")
	// After the first call, what go build would make is there.
	path := t.TempDir()
	const built = `#!/bin/sh
[ "$1" = build ] || exit 0
while [ "$1" != -o ]; do shift; done
exec cp "$PHX_TEST_BUILT"/* "$2"
`
	if err := os.WriteFile(filepath.Join(path, "go"), []byte(built), 0o755); err != nil {
		t.Fatal(err)
	}
	install := func(args ...string) (string, error) {
		cmd := exec.Command("../../install", append(args, prefix)...)
		if _, err := os.Stat(filepath.Join(prefix, "bin")); err == nil {
			cmd.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"),
				"PHX_TEST_BUILT="+filepath.Join(prefix, "bin"))
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	driver := filepath.Join(prefix, "scripts/phoenix")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(driver, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := install(); err != nil || !strings.Contains(out, "wrote "+driver) {
		t.Fatalf("%v\n%s", err, out)
	}
	shipped, err := os.ReadFile(driver)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := install(); err != nil || strings.Contains(out, "wrote") {
		t.Errorf("a second call: %v\n%s", err, out)
	}
	put("somebody's\n")
	if out, err := install(); err == nil || !strings.Contains(out, driver) || !strings.Contains(out, "--replace") {
		t.Errorf("an edited file: %v\n%s", err, out)
	}
	if have, _ := os.ReadFile(driver); string(have) != "somebody's\n" {
		t.Errorf("an edited file was replaced by %q", have)
	}
	if out, err := install("--replace"); err != nil {
		t.Errorf("--replace: %v\n%s", err, out)
	}
	if have, _ := os.ReadFile(driver + ".~1~"); string(have) != "somebody's\n" {
		t.Errorf("what was replaced is not kept: %q", have)
	}
	if have, _ := os.ReadFile(driver); string(have) != string(shipped) {
		t.Error("--replace did not replace")
	}
	// What a call that was cut short has left is nobody's own.
	put("old\n")
	if out, err := exec.Command("sh", "-c", `cd "$1" && sha256sum scripts/phoenix >>scripts/.installed`, "sh",
		prefix).CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	if out, err := install(); err != nil || !strings.Contains(out, "wrote "+driver) {
		t.Errorf("an older version of phx's own: %v\n%s", err, out)
	}
}

// TestInstalledVersion: what is installed from a git checkout says which commit it was built from. A checkout that git
// refuses, as that of another user, can be installed too.
func TestInstalledVersion(t *testing.T) {
	if os.Getenv("PHX_TEST_FULL") == "" {
		t.Skip("it builds all programs twice: PHX_TEST_FULL=1 runs it")
	}
	clone, prefix := filepath.Join(t.TempDir(), "phx"), t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		// A configuration of the user's own may have git take every checkout.
		cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=auto", "GIT_CONFIG_GLOBAL=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := exec.Command("git", "clone", "-q", "../../..", clone).Run(); err != nil {
		t.Skipf("this is no checkout of git: %v", err)
	}
	run("cp", "../../install", filepath.Join(clone, "scripts/install"))
	install, plan := filepath.Join(clone, "scripts/install"), filepath.Join(prefix, "bin/phx-plan")
	run(install, prefix)
	commit := run("git", "-C", clone, "rev-parse", "HEAD")[:12]
	if version := run(plan, "--version"); !strings.Contains(version, commit) {
		t.Errorf("%s, built from %s", version, commit)
	}
	if os.Geteuid() != 0 {
		return
	}
	run("chown", "-R", "990:990", clone)
	run(install, prefix)
	if version := run(plan, "--version"); !strings.Contains(version, "(devel)") {
		t.Errorf("%s, from a checkout that git refuses", version)
	}
}
