// Package scripttest tests the feature and application scripts as the driver
// runs them, with a pct and a curl of its own: nothing is downloaded, and there
// are no containers.
package scripttest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pct": pct, "lxc-attach": attach, "curl": curl, "phx-ca-export": export})
}

// TestScripts runs testdata/*.txtar. $SCRIPTS is the directory of the scripts under test.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("SCRIPTS", scripts)
			env.Setenv("FEATURE", scripts+"/phoenix_hypervisor_feature_install_")
			env.Setenv("PHX_CACHE", env.WorkDir+"/cache")
			env.Setenv("PHX_TEST_WORK", env.WorkDir)  // passed on to pct, as WORK is not
			env.Setenv("GORACE", "atexit_sleep_ms=0") // else each pct takes a second under -race
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "root" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return os.Geteuid() == 0, nil
		},
	})
}

// pct records its arguments, one call a line, in $WORK/pct.log, the script for the container in $WORK/inner.sh and
// what it reads in $WORK/stdin, and exits with PHX_TEST_STATUS. PHX_TEST_STDIN=none leaves stdin unread,
// PHX_TEST_STDIN=short passes on half of it. With PHX_TEST_ROOT it runs the script for real, with the container's
// places moved below that directory.
func pct() {
	record("pct.log")
	if len(os.Args) < 10 || strings.Join(os.Args[1:4], " ") != "exec --keep-env 0" ||
		strings.Join(os.Args[5:8], " ") != "-- /bin/sh -c" {
		check(fmt.Errorf("pct: not the one call that is expected: %q", os.Args[1:]))
	}
	inside(os.Args[8], os.Args[9:])
}

// attach is lxc-attach: it does the same, and records its arguments in $WORK/attach.log.
func attach() {
	record("attach.log")
	args := os.Args[1:]
	if len(args) > 2 && args[0] == "-P" {
		args = args[2:]
	}
	if len(args) < 8 || args[0] != "-n" || strings.Join(args[2:6], " ") != "--clear-env -- /bin/sh -c" {
		check(fmt.Errorf("lxc-attach: not the one call that is expected: %q", os.Args[1:]))
	}
	inside(args[6], args[7:])
}

// record adds the arguments of this program to a log.
func record(name string) {
	var line []string
	for _, arg := range os.Args[1:] {
		line = append(line, strconv.Quote(arg))
	}
	log, err := os.OpenFile(os.Getenv("PHX_TEST_WORK")+"/"+name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(err)
	_, err = fmt.Fprintln(log, strings.Join(line, " "))
	check(err)
}

// inside is what happens in the container.
func inside(script string, args []string) {
	work := os.Getenv("PHX_TEST_WORK")
	check(os.WriteFile(work+"/inner.sh", []byte(script), 0o600))

	var stdin []byte
	if os.Getenv("PHX_TEST_STDIN") != "none" {
		var err error
		stdin, err = io.ReadAll(os.Stdin)
		check(err)
		check(os.WriteFile(work+"/stdin", stdin, 0o600))
	}
	if os.Getenv("PHX_TEST_STDIN") == "short" {
		stdin = stdin[:len(stdin)/2]
	}
	if root := os.Getenv("PHX_TEST_ROOT"); root != "" {
		moved := strings.NewReplacer("/usr/local/bin", root+"/bin", "/run/", root+"/run/", "/home/", root+"/home/",
			"/usr/local/share/", root+"/share/", "/etc/", root+"/etc/").Replace(script)
		if !strings.Contains(moved, root+"/run/phx.lock") {
			check(errors.New("pct: this is not a script whose places are known: not running it on this machine"))
		}
		cmd := exec.Command("/bin/sh", append([]string{"-c", moved}, args...)...)
		cmd.Env = []string{"PATH=" + work + "/stubs:/usr/bin:/bin", "WORK=" + work}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), os.Stdout, os.Stderr
		_ = cmd.Run()
		exit(cmd.ProcessState.ExitCode())
	}
	status, _ := strconv.Atoi(os.Getenv("PHX_TEST_STATUS"))
	exit(status)
}

// exit ends the program without the race detector's pause: GORACE is not among what is passed on to pct.
func exit(status int) { syscall.Exit(status) }

// export records its arguments and what the environment tells it in export.log. As its roots it prints the file
// $WORK/roots.
func export() {
	work := os.Getenv("PHX_TEST_WORK")
	if work == "" {
		work = os.Getenv("WORK")
	}
	log, err := os.OpenFile(work+"/export.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(err)
	_, err = fmt.Fprintln(log, strings.Join(os.Args[1:], " "), os.Getenv("PHX_IP"))
	check(err)
	if os.Args[1] == "roots" {
		roots, err := os.ReadFile(work + "/roots")
		check(err)
		os.Stdout.Write(roots)
	}
}

// curl copies $WORK/release to the file after --output and records the address in $WORK/curl.log; without that file
// it fails.
func curl() {
	work := os.Getenv("WORK")
	log, err := os.OpenFile(work+"/curl.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(err)
	_, err = fmt.Fprintln(log, os.Args[len(os.Args)-1])
	check(err)
	release, err := os.ReadFile(work + "/release")
	check(err)
	for i, arg := range os.Args {
		if arg == "--output" {
			check(os.WriteFile(os.Args[i+1], release, 0o600))
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(22)
	}
}

// TestWaitsFit: what a cancelled run has left in a container ends before the next run gives up waiting for it, and a
// run that has waited has the time that it needs itself.
func TestWaitsFit(t *testing.T) {
	number := func(file, pattern string) time.Duration {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(pattern).FindSubmatch(text)
		if m == nil {
			t.Fatalf("%s: no %s", file, pattern)
		}
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(n) * time.Second
	}
	const assets, ca, flock = "../../phoenix_assets.sh", "../../phoenix_hypervisor_lxc_103.sh", `flock -w (\d+) 9`
	work := number(assets, `until=\$\(\(\$\(date \+%s\) \+ (\d+)\)\)`) + number(assets, `timeout -k (\d+) "\$left"`)
	limit := number(assets, `PHX_SCRIPT_TIMEOUT:-(\d+)`)
	for _, file := range []string{assets, ca} {
		if wait := number(file, flock); wait < work {
			t.Errorf("%s: waits for %s, and what it waits for may take %s", file, wait, work)
		} else if wait+work > limit {
			t.Errorf("%s: has waited for %s, and may take %s: more than the %s that it has", file, wait, work, limit)
		}
	}
	outer := 60 * number("../../../cmd/internal/pve/host.go", `GuestTimeout = (\d+) \* time\.Minute`)
	if limit > outer {
		t.Errorf("a feature's script has %s, and phx-lxc gives it %s", limit, outer)
	}
}

// TestTable guards the one place of pins: a slip there would be found on a Proxmox host only.
func TestTable(t *testing.T) {
	text, err := os.ReadFile("../../phoenix_assets.tsv")
	if err != nil {
		t.Fatal(err)
	}
	columns := []*regexp.Regexp{
		regexp.MustCompile(`^(step|step-ca|traefik)$`),
		regexp.MustCompile(`^\d+\.\d+\.\d+$`),
		regexp.MustCompile(`^(amd64|arm64)$`),
		regexp.MustCompile(`^https://github\.com/[\w./-]+\.tar\.gz$`),
		regexp.MustCompile(`^[0-9a-f]{64}$`),
		regexp.MustCompile(`^[\w.-]+(/[\w.-]+)*$`),
	}
	seen := map[string]int{}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) != len(columns) {
			t.Errorf("line %d: %d columns, want %d", i+1, len(fields), len(columns))
			continue
		}
		for j, field := range fields {
			if !columns[j].MatchString(field) {
				t.Errorf("line %d: column %d: %q does not match %s", i+1, j+1, field, columns[j])
			}
		}
		name, version, arch, url, sum, member := fields[0], fields[1], fields[2], fields[3], fields[4], fields[5]
		if !strings.Contains(url, "/v"+version+"/") ||
			!strings.HasSuffix(url, version+"_linux_"+arch+".tar.gz") && !strings.HasSuffix(url,
				"_linux_"+version+"_"+arch+".tar.gz") {
			t.Errorf("line %d: the address is not that of %s %s %s: %s", i+1, name, version, arch, url)
		}
		if filepath.Base(member) != name {
			t.Errorf("line %d: the program in the archive is %s, want %s", i+1, member, name)
		}
		for _, key := range []string{name + " " + arch, sum, url} {
			if before := seen[key]; before != 0 {
				t.Errorf("line %d: %s stands in line %d too", i+1, key, before)
			}
			seen[key] = i + 1
		}
	}
	for _, name := range []string{"step", "step-ca", "traefik"} {
		for _, arch := range []string{"amd64", "arm64"} {
			if seen[name+" "+arch] == 0 {
				t.Errorf("no pin for %s on %s", name, arch)
			}
		}
	}
}

// TestProvenVersions: lab and tests run the versions that hosts get. Where they cannot, table and docs say so.
func TestProvenVersions(t *testing.T) {
	read := func(file string) string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	table, page := read("../../phoenix_assets.tsv"), strings.Join(strings.Fields(read("../../../docs/offline.md")), " ")
	for name, module := range map[string]string{"step": "github.com/smallstep/cli",
		"step-ca": "github.com/smallstep/certificates", "traefik": "github.com/traefik/traefik/v3"} {
		m := regexp.MustCompile(regexp.QuoteMeta(module) +
			` v(\S+)`).FindStringSubmatch(read("../tools/" + name + "/go.mod"))
		if m == nil {
			t.Errorf("scripts/internal/tools/%s/go.mod: no %s", name, module)
			continue
		}
		pins := regexp.MustCompile(`(?m)^`+name+`\t(\S+)\t`).FindAllStringSubmatch(table, -1)
		for _, pin := range pins {
			said := fmt.Sprintf("%s %s: lab and tests run %s", name, pin[1], m[1])
			if pin[1] != m[1] && (!strings.Contains(table, "# "+said) || !strings.Contains(page, said)) {
				t.Errorf("hosts get %s %s, and phoenix_assets.tsv and docs/offline.md do not say %q",
					name, pin[1], said)
			} else if pin[1] == m[1] && strings.Contains(table+page, name+" "+pin[1]+": lab and tests run") {
				t.Errorf("%s %s is said to be another than that of the lab, and is the same", name, pin[1])
			}
		}
		if len(pins) == 0 {
			t.Errorf("no pin for %s", name)
		}
	}
}

// TestInnerScripts has shellcheck read what runs in the containers: in the files it is a string that shellcheck skips.
func TestInnerScripts(t *testing.T) {
	shellcheck, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Skip("shellcheck is not installed")
	}
	assets := t.TempDir()
	for _, name := range []string{"step", "step-ca", "traefik"} {
		if err := os.WriteFile(filepath.Join(assets, name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sums := exec.Command("sh", "-c", "sha256sum * >SHA256SUMS")
	sums.Dir = assets
	if out, err := sums.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, feature := range []string{"base_setup", "step_ca", "step_cli", "traefik", "trusted_ca"} {
		t.Run(feature, func(t *testing.T) {
			work := t.TempDir()
			cmd := exec.Command("../../phoenix_hypervisor_feature_install_"+feature+".sh", "103")
			cmd.Env = append(os.Environ(), "PHX_TEST_WORK="+work, "PHX_PCT=pct", "PHX_ASSETS="+assets, "PHX_TEST_ROOT=",
				"PHX_TEST_STDIN=", "PHX_TEST_STATUS=0")
			if err := os.WriteFile(filepath.Join(work, "roots"), []byte("a root\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			// SC2317: unreachable; each script uses its part of the common functions.
			if out, err := exec.Command(shellcheck, "--shell=sh", "--exclude=SC2317",
				work+"/inner.sh").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
