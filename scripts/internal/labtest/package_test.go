package labtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// debs are the files of two versions of the Debian package for this machine; the configuration that the second one
// brings differs from that of the first.
type debs struct {
	first, second string
	version       string // of the first, as dpkg has it
}

// testPackage builds the Debian package, and installs, uses, upgrades, removes and purges it in a fresh Debian 12 and a
// fresh Debian 13 container, where systemd runs, and pct is the one of the lab without containers.
func (l lab) testPackage(t *testing.T) {
	start := time.Now()
	debs := l.buildPackages(t)
	t.Logf("built: %.1f s", time.Since(start).Seconds())
	t.Run("unpacked", func(t *testing.T) { l.testUnpackedPackage(t, debs.first) })
	start = time.Now()
	ours := l.do(t, "sh", "-euc", `ls "$1"/debian-12-phx-lab_*.tar.zst`, "sh", l.path("storage/local/template/cache"))
	templates := strings.Fields(l.do(t, "scripts/internal/labtest/template", "trixie", strings.TrimSpace(ours)))
	t.Logf("templates: %.1f s", time.Since(start).Seconds())
	for i, suite := range []string{"trixie", "bookworm"} {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			l.testInstalledPackage(t, fmt.Sprint(990+i), templates[i], debs)
		})
	}
}

// buildPackages builds from commits of the files of this checkout, whether these are committed or not.
func (l lab) buildPackages(t *testing.T) debs {
	arch := strings.TrimSpace(l.do(t, "dpkg", "--print-architecture"))
	trees := []string{filepath.Join(t.TempDir(), "phx"), filepath.Join(t.TempDir(), "else where")}
	commit := func(tree, date string) {
		t.Helper()
		l.do(t, "sh", "-euc", `cd "$1"
			export GIT_AUTHOR_DATE="$2" GIT_COMMITTER_DATE="$2" GIT_CONFIG_GLOBAL=/dev/null
			git add --all
			git -c user.name=phx -c user.email=phx@example.invalid commit --quiet --message test`, "sh", tree, date)
	}
	var files [2][]string
	for i, tree := range trees {
		l.do(t, "sh", "-euc", `mkdir -p "$1"
			git ls-files --cached --others --exclude-standard -z | xargs -0 ls -d 2>/dev/null |
				tar --no-recursion --files-from - -c | tar -C "$1" -x
			git -C "$1" init --quiet`, "sh", tree)
		commit(tree, "2026-01-02T15:04:05Z")
		which := []string{"all", arch}[i]
		built := l.do(t, tree+"/scripts/package", "--arch", which, filepath.Join(tree, "dist"))
		files[i] = strings.Split(strings.TrimSpace(built), "\n")
	}
	if len(files[0]) != 2 || len(files[1]) != 1 {
		t.Fatalf("built %q", files)
	}
	for _, other := range files[0] {
		got := strings.TrimSpace(l.do(t, "dpkg-deb", "--field", other, "Architecture"))
		if !strings.HasSuffix(other, "_"+got+".deb") {
			t.Errorf("%s is for %s", other, got)
		}
	}
	l.do(t, "sh", "-euc", `cd "$1" && sha256sum --check --strict SHA256SUMS`, "sh", filepath.Dir(files[0][0]))
	first := files[1][0]
	same := filepath.Join(filepath.Dir(files[0][0]), filepath.Base(first))
	for _, ext := range []string{".deb", ".cdx.json"} {
		stem := func(file string) string { return strings.TrimSuffix(file, ".deb") + ext }
		if r := l.try(t, "cmp", stem(first), stem(same)); r.status != 0 {
			t.Errorf("two builds of a commit in two directories differ: %s%s", r.stdout, r.stderr)
		}
	}
	checkSBOM(t, strings.TrimSuffix(first, ".deb")+".cdx.json")
	if _, err := exec.LookPath("lintian"); err != nil {
		t.Log("left out: lintian, because it is not installed")
	} else if r := l.try(t, "lintian", "--allow-root", "--fail-on", "error,warning", first); r.status != 0 {
		t.Errorf("lintian: %s%s", r.stdout, r.stderr)
	}

	l.do(t, "sed", "-i", `s/"memory_mb": 2048/"memory_mb": 3072/`, trees[1]+"/scripts/phoenix_lxc_configs.json")
	commit(trees[1], "2026-01-02T16:04:05Z")
	second := strings.TrimSpace(l.do(t, trees[1]+"/scripts/package", "--arch", arch, filepath.Join(trees[1], "dist")))
	version := strings.TrimSpace(l.do(t, "dpkg-deb", "--field", first, "Version"))
	newer := strings.TrimSpace(l.do(t, "dpkg-deb", "--field", second, "Version"))
	l.do(t, "dpkg", "--compare-versions", newer, "gt", version)
	l.do(t, "dpkg", "--compare-versions", newer, "lt", "0.1.0-1")
	return debs{first, second, version}
}

// testUnpackedPackage: from where the package is unpacked, its programs do the job of the lab as those of the checkout
// do, and find all as it should be.
func (l lab) testUnpackedPackage(t *testing.T, deb string) {
	root := t.TempDir()
	l.do(t, "dpkg", "-x", deb, root)
	out := l.inside(t, "env", "-u", "PHX_SCRIPTS", "bash", "-euc", `PATH=$1/usr/bin:$PATH
		[[ $(type -P phoenix phx-lxc) == "$1/usr/bin/phoenix"$'\n'"$1/usr/bin/phx-lxc" ]]
		for verb in status check; do phoenix $verb >/dev/null; done
		phoenix`, "bash", root)
	checkUnchanged(t, out)
}

// checkSBOM: the bill of materials names each program, and for each the modules that Go has linked into it.
func checkSBOM(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(f, cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, c := range *bom.Components {
		known[c.BOMRef] = true
		if c.Type == cdx.ComponentTypeLibrary && (c.Licenses == nil || len(*c.Licenses) == 0) {
			t.Errorf("%s has no licence", c.Name)
		}
	}
	linked := map[string][]string{}
	for _, d := range *bom.Dependencies {
		linked[d.Ref] = *d.Dependencies
		for _, ref := range *d.Dependencies {
			if !known[ref] {
				t.Errorf("%s depends on %s, which is no component", d.Ref, ref)
			}
		}
	}
	has := func(program, module string) {
		t.Helper()
		if !slices.ContainsFunc(linked[program], func(ref string) bool {
			return strings.HasPrefix(ref, "pkg:golang/"+module+"@")
		}) {
			t.Errorf("%s is made of %q, without %s", program, linked[program], module)
		}
	}
	for _, program := range []string{"phoenix-view", "phx-plan", "phx-lxc", "phx-ca-export", "phx-fingerprint",
		"phx-nginx", "phx-traefik"} {
		has(program, "std")
	}
	has("phx-plan", "github.com/tidwall/gjson")
}

// guest is a container in which the package is tried.
type guest struct {
	l    lab
	ctid string
}

func (g guest) try(t *testing.T, script string, stdin []byte) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := g.l.command("scripts/lab", "run", "pct", "exec", "--keep-env", "0", g.ctid, "--", "env", "HOME=/root",
		"LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "bash", "-euo", "pipefail", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("%s: %v", script, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// do runs a script of bash in the container, which must end with 0, and returns its standard output.
func (g guest) do(t *testing.T, script string) string {
	t.Helper()
	r := g.try(t, script, nil)
	if r.status != 0 {
		t.Fatalf("%s\nstatus %d\nstdout: %s\nstderr: %s", script, r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

func (g guest) put(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if r := g.try(t, "cat >"+to, data); r.status != 0 {
		t.Fatalf("%s: %s", to, r.stderr)
	}
}

// until waits until a script ends with 0.
func (g guest) until(t *testing.T, script string) {
	t.Helper()
	g.do(t, `for i in {1..600}; do
		if (`+script+`) >/dev/null 2>&1; then exit; fi
		read -rt 0.1 <> <(:) || true
	done
	echo "in vain: $(journalctl --no-pager --lines 40)" >&2
	exit 1`)
}

// of the log, of dpkg's own database and of what systemd and man note when they like
var volatile = regexp.MustCompile(`^/(dev|proc|run|sys|tmp|root|etc/(machine-id|mtab)|` +
	`var/(tmp|cache/(apt|debconf|ldconfig|man)|lib/(apt|dpkg|logrotate|systemd)|` +
	`log/(alternatives\.log|apt|[bw]tmp.*|dpkg\.log|journal|lastlog)))(/|$)`)

// files returns the paths of what is installed in the container.
func (g guest) files(t *testing.T) []string {
	t.Helper()
	paths := strings.Split(g.do(t, "find / -xdev | LC_ALL=C sort"), "\n")
	return slices.DeleteFunc(paths, func(path string) bool { return path == "" || volatile.MatchString(path) })
}

func compareFiles(t *testing.T, when string, before, after []string) {
	t.Helper()
	for _, path := range after {
		if _, found := slices.BinarySearch(before, path); !found {
			t.Errorf("%s, %s is left", when, path)
		}
	}
	for _, path := range before {
		if _, found := slices.BinarySearch(after, path); !found {
			t.Errorf("%s, %s is gone, which is not the package's", when, path)
		}
	}
}

const (
	apt   = "apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-confold "
	local = "/usr/local/phoenix_hypervisor"
)

func (l lab) testInstalledPackage(t *testing.T, ctid, template string, debs debs) {
	start := time.Now()
	g := guest{l, ctid}
	l.do(t, "ln", "-f", template, l.path("storage/local/template/cache", filepath.Base(template)))
	l.inside(t, "pct", "create", ctid, "local:vztmpl/"+filepath.Base(template), "--rootfs", "lab:4", "--hostname",
		"host", "--unprivileged", "1", "--features", "nesting=1", "--memory", "512", "--cores", "2")
	t.Cleanup(func() { l.try(t, "scripts/lab", "run", "pct", "destroy", ctid, "--force", "1") })
	// systemd 257 starts in a hybrid hierarchy of cgroups, as some machines have it, only when it is told to.
	conf := l.path("pve", "lxc", ctid+".conf")
	write(t, conf, l.read(t, "pve", "lxc", ctid+".conf")+
		"lxc.init.cmd: /sbin/init systemd.legacy_force=1 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1\n", 0o640)
	l.inside(t, "pct", "start", ctid)
	g.until(t, `[[ $(systemctl is-system-running) =~ running|degraded ]]`)
	t.Logf("up: %.1f s", time.Since(start).Seconds())

	g.do(t, "mkdir /root/debs")
	g.put(t, debs.first, "/root/debs/first.deb")
	g.put(t, debs.second, "/root/debs/second.deb")
	before := g.files(t)
	g.do(t, apt+"install /root/debs/first.deb")
	g.checkPrograms(t, debs)
	g.checkPages(t)
	g.checkConfiguration(t)
	g.checkLink(t)
	g.makeHost(t)
	g.checkCheck(t)
	g.checkUnits(t)
	g.checkTerminal(t)
	g.checkUpgrade(t, debs)

	g.do(t, "systemctl is-active phoenix.timer && "+apt+"remove phx")
	if r := g.try(t, "systemctl is-active phoenix.timer", nil); r.status == 0 {
		t.Error("the timer is at work after the package was removed")
	}
	g.do(t, "test -e /etc/phx/phoenix_lxc_configs.json; test -e /var/log/phoenix/events.jsonl; ! ls /usr/bin/phx-*")
	g.do(t, apt+"purge phx; rm -r /usr/local/bin/{pct,pvesm} /usr/local/sbin/sendmail /etc/default/phoenix "+
		"/etc/systemd/system/phoenix.timer.d; systemctl daemon-reload")
	compareFiles(t, "after purge", before, g.files(t))
	if left := g.do(t, "systemctl list-unit-files --no-legend 'phoenix*' || true"); left != "" {
		t.Errorf("systemd still knows:\n%s", left)
	}
	t.Logf("all: %.1f s", time.Since(start).Seconds())
}

func (g guest) checkPrograms(t *testing.T, debs debs) {
	t.Helper()
	_, version, _ := strings.Cut(g.do(t, "phx-plan --version"), " ")
	deb := strings.NewReplacer("-", ".").Replace(strings.Replace(strings.Fields(version)[0][1:], "-", "~", 1)) + "-1"
	if deb != debs.version {
		t.Errorf("phx-plan of the package %s has version %q", debs.version, version)
	}
	if out := g.do(t, "phoenix --version"); out != "phoenix "+version {
		t.Errorf("phoenix --version: %q, phx-plan %q", out, version)
	}
	// What a program alone finds the scripts by is not the driver's.
	if out := g.do(t, "phoenix --help | grep -A3 PHX_SCRIPTS"); !strings.Contains(out, local) {
		t.Error(out)
	}
	g.do(t, `test "$(dpkg --verify phx)" = ""`)
	g.do(t, `test "$(stat -c '%U:%G %a' /var/log/phoenix)" = 'root:adm 2750'`)
	shipped, err := os.ReadFile(strings.TrimSuffix(debs.first, ".deb") + ".cdx.json")
	if err != nil || g.do(t, "cat /usr/share/doc/phx/sbom.cdx.json") != string(shipped) {
		t.Errorf("the bill of materials in the package is not that beside it, or %v", err)
	}
}

// checkPages: each page renders without a warning, and whatis knows it; what completes lines is loaded.
func (g guest) checkPages(t *testing.T) {
	t.Helper()
	pages := g.do(t, "dpkg -L phx | grep -E '^/usr/share/man/.*\\.gz$'")
	for _, page := range []string{"phx-events.5", "phoenix_lxc_configs.json.5"} {
		if !strings.Contains(pages, "/"+page+".gz\n") {
			t.Errorf("no page %s: %s", page, pages)
		}
	}
	written, err := filepath.Glob(g.l.repo + "/docs/man/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range written {
		if name := strings.TrimSuffix(filepath.Base(page), ".md"); !strings.Contains(pages, "/"+name+".gz\n") {
			t.Errorf("no page %s: %s", name, pages)
		}
	}
	if warnings := g.do(t, `for page in $(dpkg -L phx | grep -E '^/usr/share/man/.*\.gz$'); do
		name=${page##*/} name=${name%.gz}
		[[ $(man -w "${name##*.}" "${name%.*}") == "$page" ]] || echo "man -w $name: $(man -w "${name%.*}" 2>&1)"
		MANROFFSEQ= MANWIDTH=80 man --warnings -E UTF-8 -l "$page" 2>&1 >/dev/null
		whatis "${name%.*}" >/dev/null || echo "whatis does not know $name"
	done`); warnings != "" {
		t.Errorf("pages: %s", warnings)
	}
	g.do(t, `set +u
		. /usr/share/bash-completion/bash_completion
		for program in phoenix phx-lxc phoenix-view; do
			complete -p $program 2>/dev/null || _comp_load $program || _completion_loader $program || [[ $? == 124 ]]
			complete -p $program
		done
		COMP_WORDS=(phoenix 10) COMP_CWORD=1 COMP_LINE='phoenix 10' COMP_POINT=10
		_phx phoenix 10 phoenix
		[[ " ${COMPREPLY[*]}" == *" 103"* ]]
		COMP_WORDS=(phoenix sta) COMP_LINE='phoenix sta' COMP_POINT=11
		_phx phoenix sta phoenix
		[[ " ${COMPREPLY[*]} " == *" start "* && " ${COMPREPLY[*]} " == *" status "* ]]`)
	g.do(t, `zsh -fc 'autoload -U compinit && compinit -u -D && [[ $_comps[phoenix] == _phoenix ]]'`)
}

// checkConfiguration: the configuration of an installation before the package counts where it exists, and so do its
// scripts and profiles.
func (g guest) checkConfiguration(t *testing.T) {
	t.Helper()
	const plan = "phoenix --format table 2>&1 | head -n 20; "
	if out := g.do(t, plan); !strings.Contains(out, "Step-CA") {
		t.Errorf("the configuration of the package: %s", out)
	}
	r := g.try(t, `mkdir -p `+local+`/etc; echo '{"lxc_configs": {"950": {}}}' >`+local+`/etc/phoenix_lxc_configs.json
		phoenix --format table`, nil)
	if r.status != 2 || !strings.Contains(r.stderr, "phoenix_lxc_configs.json:1:") {
		t.Errorf("the local configuration: %s%s", r.stdout, r.stderr)
	}
	if out := g.do(t, apt+"reinstall /root/debs/first.deb"); !strings.Contains(out, "the configuration is "+local) {
		t.Errorf("an installation does not say that it has another configuration: %s", out)
	}
	g.do(t, "rm -r "+local)
}

// checkLink: links take the place of nothing but links, and go as they came.
func (g guest) checkLink(t *testing.T) {
	t.Helper()
	before := g.files(t)
	r := g.try(t, `mkdir -p `+local+`/bin `+local+`/scripts
		echo mine >`+local+`/bin/phx-plan; echo mine >`+local+`/scripts/phoenix; /usr/share/phx/link`, nil)
	if r.status != 1 || strings.Count(r.stderr, " is there and is not") != 2 ||
		g.do(t, "ls "+local+"/*") != local+"/bin:\nphx-plan\n\n"+local+"/scripts:\nphoenix\n" {
		t.Errorf("link over files of somebody: status %d: %s", r.status, r.stderr)
	}
	g.do(t, "rm "+local+"/*/*")
	first, second := g.do(t, "/usr/share/phx/link"), g.do(t, "/usr/share/phx/link")
	if !strings.Contains(first, "wrote "+local+"/scripts/phoenix\n") || strings.Contains(second, "wrote") {
		t.Errorf("first call of link: %s\nsecond: %s", first, second)
	}
	if out := g.do(t, local+"/scripts/phoenix --format table"); !strings.Contains(out, "Step-CA") {
		t.Errorf("through links: %s", out)
	}
	g.do(t, "/usr/share/phx/link --replace; /usr/share/phx/link --undo")
	compareFiles(t, "after link --undo", before, g.files(t))
	// What scripts/install has put there is replaced, but not what was edited since.
	r = g.try(t, `mkdir -p `+local+`/scripts; cd `+local+`
		echo shipped >scripts/phoenix; echo shipped >scripts/phoenix-cli
		sha256sum scripts/* >scripts/.installed
		echo edited >>scripts/phoenix-cli
		! /usr/share/phx/link || exit 99
		/usr/share/phx/link --replace
		readlink scripts/phoenix; cat scripts/phoenix-cli.~1~; ls -A scripts
		rm scripts/phoenix-cli.~1~; /usr/share/phx/link --undo`, nil)
	if r.status != 0 || !strings.Contains(r.stdout, "/usr/share/phx/phoenix\nshipped\nedited\n") ||
		strings.Contains(r.stdout, ".installed") || strings.Contains(r.stderr, "/scripts/phoenix is there") {
		t.Errorf("link over an installation: status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	compareFiles(t, "after link --undo", before, g.files(t))
}

// makeHost makes of the container a host with the lab's pct, and with a feature of an installation of before the
// package.
func (g guest) makeHost(t *testing.T) {
	t.Helper()
	g.put(t, g.l.path("bin", "pct"), "/usr/local/bin/pct")
	g.do(t, `chmod 755 /usr/local/bin/pct
		ln -s pct /usr/local/bin/pvesm
		mkdir -p `+local+`/bin
		printf '%s\n' '#!/bin/sh' 'echo "$1" >>/root/host/mine' \
			>`+local+`/bin/phoenix_hypervisor_feature_install_mine.sh
		chmod 755 `+local+`/bin/phoenix_hypervisor_feature_install_mine.sh
		mkdir -p /root/host/{pve/lxc,pve/firewall,storage/local/template/cache,storage/lab,lock,proc}
		printf '%s\n' 'dir: local' '	path /root/host/storage/local' '	content vztmpl' '' 'btrfs: lab' \
			'	path /root/host/storage/lab' '	content rootdir' >/root/host/pve/storage.cfg
		: >/root/host/storage/local/template/cache/small.tar.zst
		printf '%s\n' root:100000:65536 >/root/host/subid
		printf '%s\n' PHX_LAB_DIR=/root/host PHX_LAB_BACKEND=fake PHX_PVE_ROOT=/root/host/pve PHX_PROC=/root/host/proc \
			PHX_PVE_LOCK=/root/host/lock PHX_SUBUID=/root/host/subid PHX_SUBGID=/root/host/subid >/etc/default/phoenix
		cat >/etc/phx/phoenix_lxc_configs.json <<-EOF
			{"lxc_configs": {"950": {"name": "small", "template": "local:vztmpl/small.tar.zst", "memory_mb": 64,
				"cores": 1, "storage_pool": "lab", "storage_size_gb": 1, "unprivileged": true,
				"features": ["mine"],
				"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.50/24", "gw": "10.0.0.1"}}}}
		EOF`)
}

// hand begins a script that runs phoenix by hand as the units do; atTerminal runs a command at a terminal.
const hand = `set -a; . /etc/default/phoenix; set +a
	atTerminal() { TERM=xterm NO_COLOR=1 script -qec "stty cols 80; $*" /dev/null </dev/null; }
`

// checkCheck: phoenix check tells what this host lacks and how to mend that, and then that all is well.
func (g guest) checkCheck(t *testing.T) {
	t.Helper()
	r := g.try(t, hand+"atTerminal phoenix check", nil)
	if r.status != 1 || !strings.Contains(r.stdout, "bridge vmbr0: there is no interface vmbr0") ||
		!strings.Contains(r.stdout, "pvesh create /nodes/host/network --iface vmbr0") ||
		!strings.Contains(r.stdout, "check: failed after ") || !strings.Contains(r.stdout, " 1 failed, ") {
		t.Errorf("phoenix check without a bridge: status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	r = g.try(t, hand+"ip link add vmbr0 type bridge; ip link set vmbr0 up; atTerminal phoenix check", nil)
	if r.status != 0 || strings.Contains(r.stdout, " failed") {
		t.Errorf("phoenix check: status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	g.do(t, "ip link delete vmbr0; test ! -e /root/host/pve/lxc/950.conf")
}

// checkTerminal: at a terminal phoenix is for people, the log has the events, with --quiet it says nothing when nothing
// has changed, and a pipe gets the events; the log is rotated, goes on after that, and is no more readable then.
func (g guest) checkTerminal(t *testing.T) {
	t.Helper()
	see := func(command string, status int, want ...string) {
		t.Helper()
		r := g.try(t, hand+command, nil)
		if r.status != status {
			t.Errorf("%s: status %d, want %d: %s%s", command, r.status, status, r.stdout, r.stderr)
		}
		for _, text := range want {
			if !strings.Contains(r.stdout, text) {
				t.Errorf("%s: no %q in: %s%s", command, text, r.stdout, r.stderr)
			}
		}
		if len(want) == 0 && r.stdout+r.stderr != "" || strings.Contains(r.stdout, `{"event"`) {
			t.Errorf("%s shows: %s%s", command, r.stdout, r.stderr)
		}
	}
	see("atTerminal phoenix", 0, "Unchanged: 950 small", "create: all well after ", "1 unchanged")
	see("atTerminal phoenix status", 0, "running", "Last run", "status: all well after ")
	see("phoenix --quiet", 0)
	g.do(t, "sed -i 's/\"memory_mb\": 64/\"memory_mb\": 96/' /etc/phx/phoenix_lxc_configs.json")
	see("atTerminal phoenix status", 3, "a run would change: memory 96", "differs from the configuration")
	see("phoenix --quiet", 0, "950 small", "memory")
	see("phoenix 2>/dev/null | jq -r .event", 0, "ct.ready\n", "plan.done\n")
	see("phoenix-view --html /root/page.html /var/log/phoenix/events.jsonl; cat /root/page.html", 0, "<!doctype html>",
		"950 small", "</html>")
	g.do(t, hand+`cd /var/log/phoenix
		logrotate --force /etc/logrotate.d/phx
		test ! -e events.jsonl
		phoenix --quiet
		for log in events.jsonl events.jsonl.1; do
			test "$(stat -c '%U:%G %a' $log)" = 'root:adm 640'
			tail -n 1 $log | grep -q '"event":"run.ended"'
		done`)
}

// checkUnits: systemd finds nothing wrong with the units; none is enabled before somebody says so; the timer runs
// phoenix, a run that meets another one is no failure, and root gets a mail about one that fails.
func (g guest) checkUnits(t *testing.T) {
	t.Helper()
	if out := g.do(t, `systemd-analyze verify phoenix.service phoenix.timer phoenix-watch.service `+
		`phoenix-failed@phoenix.service.service 2>&1`); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	for _, unit := range []string{"phoenix.timer", "phoenix-watch.service"} {
		if out := g.do(t, "systemctl is-enabled "+unit+" || true; systemctl is-active "+unit+" || true"); out !=
			"disabled\ninactive\n" {
			t.Errorf("%s, which nobody has enabled: %s", unit, out)
		}
	}
	g.do(t, `mkdir /etc/systemd/system/phoenix.timer.d
		printf '%s\n' '[Timer]' OnBootSec= OnActiveSec=1s AccuracySec=1ms RandomizedDelaySec=0 \
			>/etc/systemd/system/phoenix.timer.d/test.conf
		cat >/usr/local/sbin/sendmail <<-'EOF'
			#!/bin/sh
			cat >/root/mail.new
			mv /root/mail.new /root/mail
		EOF
		chmod 755 /usr/local/sbin/sendmail`)
	g.do(t, "systemctl enable --now phoenix.timer")
	g.until(t, `[[ $(systemctl show --property=ExecMainExitTimestamp --value phoenix.service) ]]`)
	g.do(t, `[[ $(systemctl show --property=Result --value phoenix.service) == success ]] ||
			{ journalctl --no-pager --unit phoenix.service >&2; exit 1; }
		grep -q 'hostname: small' /root/host/pve/lxc/950.conf
		[[ $(cat /root/host/mine) == 950 ]]
		grep -q plan.done /var/log/phoenix/events.jsonl
		test "$(stat -c '%U:%G %a' /var/log/phoenix/events.jsonl)" = 'root:adm 640'`)

	g.do(t, `exec 9>>/run/phx.lock; flock 9; systemctl start phoenix.service; test ! -e /root/mail`)
	g.do(t, `sed -i 's/"memory_mb": 64/"memory_mb": "much"/' /etc/phx/phoenix_lxc_configs.json
		! systemctl start phoenix.service 2>/dev/null`)
	g.until(t, "test -e /root/mail")
	if mail := g.do(t, "cat /root/mail"); !strings.Contains(mail, "Subject: phoenix.service on host has failed") ||
		!strings.Contains(mail, "memory_mb: must be a number, not a string") {
		t.Errorf("the mail about a failure: %s", mail)
	}
	g.do(t, `sed -i 's/"much"/64/' /etc/phx/phoenix_lxc_configs.json`)
}

// checkUpgrade: an upgrade keeps the configuration, its mode, and that the timer is enabled, and asks nothing.
func (g guest) checkUpgrade(t *testing.T, debs debs) {
	t.Helper()
	g.do(t, `sed -i 's/"memory_mb": 96/"memory_mb": 128/' /etc/phx/phoenix_lxc_configs.json
		chmod 640 /etc/phx/phoenix_lxc_configs.json
		cp /etc/phx/phoenix_lxc_configs.json /root/kept`)
	old := g.do(t, "phx-plan --version")
	// The watcher takes over at once what has changed, and is another one after the upgrade.
	g.do(t, "systemctl enable --now phoenix-watch.service")
	g.until(t, "grep -q 'memory: 128' /root/host/pve/lxc/950.conf")
	g.do(t, "systemctl show --property=MainPID phoenix-watch.service >/root/host/watcher")
	g.do(t, apt+"install /root/debs/second.deb </dev/null")
	g.do(t, `cmp /root/kept /etc/phx/phoenix_lxc_configs.json
		test "$(stat -c %a /etc/phx/phoenix_lxc_configs.json)" = 640
		grep -q '"memory_mb": 3072' /etc/phx/phoenix_lxc_configs.json.dpkg-dist
		systemctl is-enabled phoenix.timer; systemctl is-active phoenix.timer
		systemctl is-active phoenix-watch.service
		! cmp -s /root/host/watcher <(systemctl show --property=MainPID phoenix-watch.service)
		sed -i 's/128/256/' /etc/phx/phoenix_lxc_configs.json`)
	g.until(t, "grep -q 'memory: 256' /root/host/pve/lxc/950.conf")
	if version := g.do(t, "phx-plan --version"); version == old {
		t.Errorf("after an upgrade still %s", version)
	}
	g.do(t, `rm /etc/phx/phoenix_lxc_configs.json.dpkg-dist; rm -r /root/host /root/mail `+local)
}
