package labtest

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKills ends programs of phx at random moments of runs that make, change and heal everything, for as long as
// PHX_TEST_KILLS says: "30m". After each kill one run must do, and must leave what is left when nobody is killed.
// PHX_TEST_SEED repeats the choices of a test, as far as the machine does the same again.
func TestKills(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("PHX_TEST_KILLS"))
	if err != nil {
		t.Skip("takes long and needs root: run scripts/test --long, or set PHX_TEST_KILLS to a duration")
	}
	repo, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	k := &killer{lab: lab{repo: repo, dir: os.Getenv("PHX_TEST_LAB_DIR")}, runs: map[int]int{}}
	if k.dir == "" {
		k.dir = "/var/lib/phx-lab-test"
	}
	seed, err := strconv.ParseUint(os.Getenv("PHX_TEST_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("PHX_TEST_SEED=%d", seed)
	k.random = rand.New(rand.NewPCG(seed, 0))
	if os.Getenv("PHX_TEST_LAB_KEEP") != "1" {
		k.do(t, "scripts/lab", "down") // what a killed test left
		t.Cleanup(func() { k.try(t, "scripts/lab", "down") })
	}
	k.do(t, "scripts/lab", "up")
	k.prepare(t)

	// What each work leaves when nobody is killed, and how long it takes.
	for i := range works {
		w := &works[i]
		w.begin(k, t)
		start := time.Now()
		if r := k.phoenix(t, nil); r.status != 0 {
			t.Fatalf("%s, undisturbed: status %d\n%s", w.name, r.status, r.stderr)
		}
		w.takes = time.Since(start)
		w.leaves = k.inventory(t)
	}
	for start, n := time.Now(), 1; time.Since(start) < limit && !t.Failed(); n++ {
		w := &works[k.random.IntN(len(works))]
		t.Run(fmt.Sprintf("%d %s", n, w.name), func(t *testing.T) { k.round(t, w) })
	}
	t.Logf("PHX_TEST_SEED=%d: %d kills (%v), %d too late; runs needed after each: %v", seed, k.kills,
		k.victims, k.late, k.runs)
}

// killer kills in a lab.
type killer struct {
	lab
	random      *rand.Rand
	number      int // of the last run
	kills, late int
	victims     map[string]int
	runs        map[int]int // how often so many runs were needed
}

// A work is what a run has to do.
type work struct {
	name   string
	begin  func(*killer, *testing.T)
	takes  time.Duration
	leaves map[string]string
}

var works = []work{
	{name: "all is to be changed", begin: func(k *killer, t *testing.T) {
		k.settle(t)
		k.configure(t, true)
	}},
	{name: "all is to be changed back", begin: func(k *killer, t *testing.T) {
		k.configure(t, true)
		k.complete(t)
		k.configure(t, false)
	}},
	{name: "all is to be made", begin: func(k *killer, t *testing.T) {
		k.configure(t, false)
		k.inside(t, "phoenix", "--action", "delete", base, gateway, proxy, ca)
	}},
	{name: "all is to be healed", begin: func(k *killer, t *testing.T) {
		k.settle(t)
		k.in(t, gateway, "sh", "-euc", "systemctl stop nginx.socket nginx; rm /etc/nginx/conf.d/phoenix.conf")
		k.in(t, proxy, "sh", "-euc", "systemctl disable --now -q traefik; rm /etc/systemd/system/traefik*")
		k.in(t, ca, "systemctl", "stop", "step-ca")
		k.inside(t, "pct", "stop", gateway)
		if err := os.Remove(k.path("persistent-storage", "ssl", "phoenix_ca.crt")); err != nil {
			t.Fatal(err)
		}
	}},
}

// prepare makes copies of the scripts and of the configuration that are changed.
func (k *killer) prepare(t *testing.T) {
	k.victims = map[string]int{}
	k.do(t, "bash", "-c", `mkdir -p "$1" "$2" && cp scripts/phoenix_* "$1" && cp -n "$3" "$3.before"`, "bash",
		k.path("kill-scripts"), k.path("kill-shared"), k.path("etc", "phoenix_lxc_configs.json"))
}

// configure has the next run change something of each kind in all containers, or change it back.
func (k *killer) configure(t *testing.T, changed bool) {
	text := k.read(t, "etc", "phoenix_lxc_configs.json.before")
	comment := ""
	if changed {
		comment = "# changed\n"
		filter := exec.Command("jq", `.lxc_configs |= (map_values(.memory_mb += 64)
			| .["101"].lxc_options = ["lxc.environment=CHANGED=1"]
			| .["101"].firewall.rules += [{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "8443"}]
			| .["102"].mount_points += [{"host_path": "`+k.path("kill-shared")+`", "container_path": "/mnt/shared"}]
			| .["102"].firewall.rules |= .[1:] + .[:1]
			| .["103"].cores = 1)`)
		filter.Stdin = strings.NewReader(text)
		out, err := filter.Output()
		if err != nil {
			t.Fatal(err)
		}
		text = string(out)
	}
	write(t, k.path("etc", "phoenix_lxc_configs.json"), text, 0o644)
	for _, name := range []string{"phoenix_hypervisor_feature_install_base_setup.sh", "phoenix_hypervisor_lxc_103.sh"} {
		script, err := os.ReadFile(filepath.Join(k.repo, "scripts", name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, k.path("kill-scripts", name), string(script)+comment, 0o755)
	}
}

// phoenix runs phoenix; disturb is called while it runs.
func (k *killer) phoenix(t *testing.T, disturb func()) result {
	t.Helper()
	k.number++
	cmd := k.command("scripts/lab", "run", "env", k.mark(), "PHX_RESTART=1",
		"PHX_SCRIPTS="+k.path("kill-scripts"), "phoenix")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	if disturb != nil {
		disturb()
	}
	select {
	case <-ended:
	case <-time.After(15 * time.Minute):
		t.Errorf("no end after 15 minutes: there are\n%v", k.processes())
		cmd.Process.Kill()
		<-ended
	}
	status := cmd.ProcessState.ExitCode()
	return result{stdout.String(), stderr.String(), status}
}

// mark is in the environment of what the last run has started.
func (k *killer) mark() string { return fmt.Sprintf("PHX_KILL=%d.%d", os.Getpid(), k.number) }

// processes returns those of the last run, by their ids.
func (k *killer) processes() map[int]string {
	found := map[int]string{}
	for _, pid := range pids() {
		env, err := os.ReadFile("/proc/" + pid + "/environ")
		if err != nil || !bytes.Contains(env, []byte("\x00"+k.mark()+"\x00")) {
			continue
		}
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		n, _ := strconv.Atoi(pid)
		if len(line) > 0 {
			found[n] = strings.TrimSpace(string(name)) + " " + string(bytes.ReplaceAll(line[:min(len(line), 200)],
				[]byte{0}, []byte{' '}))
		}
	}
	return found
}

// kill kills one of the last run: a program of phx, the driver, a script, or a command in a container. Proxmox's own
// tasks are left out: what of them is left half done, only Proxmox's own commands can mend.
func (k *killer) kill() (victim string) {
	processes := k.processes()
	var ids []int
	for pid, line := range processes {
		name, args, _ := strings.Cut(line, " ")
		if strings.HasPrefix(name, "phx-") || strings.HasPrefix(name, "phoenix") ||
			name == "pct" && strings.Contains(args, "pct exec ") {
			ids = append(ids, pid)
		}
	}
	if len(ids) == 0 {
		return ""
	}
	slices.Sort(ids)
	pid := ids[k.random.IntN(len(ids))]
	signal := syscall.SIGKILL
	if k.random.IntN(4) == 0 {
		signal = syscall.SIGTERM
	}
	if syscall.Kill(pid, signal) != nil {
		return ""
	}
	name, _, _ := strings.Cut(processes[pid], " ")
	return name + " " + signal.String()
}

func (k *killer) round(t *testing.T, w *work) {
	w.begin(k, t)
	delay := time.Duration(k.random.Float64() * float64(w.takes))
	victim, start := "", time.Now()
	killed := k.phoenix(t, func() {
		time.Sleep(delay)
		victim = k.kill()
	})
	if victim == "" {
		k.late++
		w.takes = min(w.takes, time.Since(start)) // the machine has less to do than before
	} else {
		k.kills++
		k.victims[victim]++
	}
	t.Logf("%s after %.1f s of %.1f s: status %d", victim, delay.Seconds(), w.takes.Seconds(), killed.status)
	if victim != "" && killed.status == 0 {
		t.Logf("its end was that of all others\n%s", killed.stderr)
	}
	// A driver that was killed cannot wait for its programs: the next one ends with 75 as long as they are at work.
	if !within(15*time.Minute, func() bool {
		for _, line := range k.processes() {
			if strings.HasPrefix(line, "phx-") {
				return false
			}
		}
		return true
	}) {
		t.Fatalf("left at work: %v", k.processes())
	}
	runs := 0
	for {
		runs++
		r := k.phoenix(t, nil)
		if r.status == 0 {
			break
		}
		t.Errorf("run %d after it: status %d\n%s\nthe run before had said\n%s", runs, r.status, r.stderr, killed.stderr)
		if runs == 3 {
			t.FailNow()
		}
		killed = r
	}
	k.runs[runs]++
	k.answers(t, append([]string{caClient}, others...)...)
	left := k.inventory(t)
	for _, what := range slices.Sorted(maps.Keys(w.leaves)) {
		if have := left[what]; have != w.leaves[what] {
			t.Errorf("%s:\n%s", what, lineDiff(w.leaves[what], have))
		}
	}
	for what := range left {
		if _, ok := w.leaves[what]; !ok {
			t.Errorf("too much: %s:\n%s", what, left[what])
		}
	}
	checkUnchanged(t, k.complete(t))
	if processes := k.processes(); len(processes) > 0 {
		t.Errorf("left: %v", processes)
	}
}

// lineDiff returns the lines that one text lacks and another has, and both where they differ in order alone.
func lineDiff(want, have string) string {
	var b strings.Builder
	for _, side := range []struct{ sign, text, other string }{{"-", want, have}, {"+", have, want}} {
		other := strings.Split(side.other, "\n")
		for _, line := range strings.Split(side.text, "\n") {
			if !slices.Contains(other, line) {
				fmt.Fprintf(&b, "%s %s\n", side.sign, line)
			}
		}
	}
	if b.Len() == 0 {
		fmt.Fprintf(&b, "in another order: want\n%s\nhave\n%s", want, have)
	}
	return b.String()
}

// settle has everything be as the configuration says that is not changed.
func (k *killer) settle(t *testing.T) {
	t.Helper()
	k.configure(t, false)
	k.complete(t)
}

// complete runs phoenix, which must end with 0, and returns its events.
func (k *killer) complete(t *testing.T) string {
	t.Helper()
	r := k.phoenix(t, nil)
	if r.status != 0 {
		t.Fatalf("status %d\n%s", r.status, r.stderr)
	}
	return r.stdout
}

// drawn are the parts of names and files that differ from one making to the next.
var drawn = regexp.MustCompile(` \+mac=[0-9a-f]{32}|pair\.\d+|\d{10,}|[0-9a-f]{32,}`)

// inventory is what there is on the host and in the containers: the files that phx and Proxmox keep, with their
// contents where these do not differ from one making to the next, and the states of services.
func (k *killer) inventory(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, pattern := range []string{"pve/lxc/*.conf", "pve/firewall/*.fw"} {
		paths, err := filepath.Glob(k.path(pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found[path] = drawn.ReplaceAllString(string(text), "…")
		}
	}
	tree := func(text string) string {
		lines := strings.Split(drawn.ReplaceAllString(text, "…"), "\n")
		slices.Sort(lines)
		return strings.Join(slices.Compact(lines), "\n")
	}
	found["host"] = tree(k.do(t, "find", k.path("pve"), k.path("persistent-storage"), k.path("storage"), "-maxdepth",
		"5", "-not", "-path", "*/images/*/*/*",
		"-not", "-path", "*/snapshots/*/*/*/*", "-printf", "%p %y %m %U:%G\n"))
	for _, ctid := range []string{gateway, proxy, ca} {
		found["files of "+ctid] = tree(k.in(t, ctid, "sh", "-c",
			`find /etc /usr/local /opt /home /root /var/lib/traefik -xdev \
			-not -path '/home/step/db/*' -not -path '/etc/ssl/certs/*' -not -path '/opt/phx-lab/*' \
			-printf '%p %y %m %u\n' 2>/dev/null || true`))
		found["services of "+ctid] = k.in(t, ctid, "sh", "-c", `
			systemctl list-units --no-legend --plain --state=failed
			for unit in nginx nginx.socket traefik step-ca phx-neighbours phx-nginx-renew.timer; do
				echo "$unit $(systemctl is-active $unit) $(systemctl is-enabled $unit 2>&1)"
			done
			ls -d /run/phx.* /tmp/* 2>/dev/null | grep -vF -e /tmp/systemd-private- -e /run/phx.lock || true`)
	}
	return found
}
