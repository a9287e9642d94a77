package pipetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kind is something that goes wrong at a call of pct.
type kind struct {
	name  string
	hangs bool // the call does not end by itself
	deaf  bool // nor by SIGTERM
	// status of the driver, beside 0 for a fault after which all is as it
	// should be, and 1.
	status int
	long   bool // tried with PHX_TEST_LONG=1
}

// kinds are all of them: faultyPCT says what they are.
var kinds = []kind{
	{name: "hangs-deaf", hangs: true, deaf: true},
	{name: "works-hangs-deaf", hangs: true, deaf: true, long: true},
	{name: "hangs", hangs: true, long: true},
	{name: "works-hangs", hangs: true, long: true},
	{name: "fails"},
	{name: "works-fails"},
	{name: "caller-killed", status: 137, long: true},
	{name: "works-caller-killed", status: 137, long: true},
	{name: "program-killed", status: 137},
	{name: "works-program-killed", status: 137},
	{name: "terminated", status: 143},
	{name: "works-terminated", status: 143, long: true},
}

// killedAt is the kind for which the call is a program and the number of its
// system call at which it is killed.
var killedAt = kind{name: "killed-at", status: 137}

// faultyPCT is a pct with the fault $PHX_FAULT at the call $PHX_FAULT_AT, and
// which notes all calls in $PHX_FAULT_CALLS. Calls are named by what they do,
// because those of several containers come in any order, and are numbered.
const faultyPCT = `#!/bin/sh
name() {
	case $1 in
	exec)
		while [ "$1" != -- ]; do ctid=$1 && shift; done
		case $2 in
		/bin/sh) echo "exec $ctid ${6:-$5}" ;;
		*) echo "exec $ctid ${2##*/} $3" ;;
		esac ;;
	clone) echo "$1 $2 $3" ;;
	*) echo "$1${2:+ $2}" ;;
	esac
}
work() { "$PHX_REAL_PCT" "$@"; }
fault() { echo "$$" >"$PHX_FAULT_CALLS/../faulty"; }
# Its process stays what it is, a pct, while it hangs.
hang() { while :; do sleep 60; done; }
# The program of phx for which this call is.
program() {
	pid=$PPID
	until read -r comm <"/proc/$pid/comm" && case $comm in phx-*) true ;; *) false ;; esac; do
		read -r _ _ _ pid _ <"/proc/$pid/stat"
	done
	echo "$pid"
}

call=$(name "$@")
n=1
while ! mkdir "$PHX_FAULT_CALLS/$call $n" 2>/dev/null; do
	[ -d "$PHX_FAULT_CALLS" ] || exit 98
	n=$((n + 1))
done
[ "$call $n" = "$PHX_FAULT_AT" ] || exec "$PHX_REAL_PCT" "$@"
fault
case $PHX_FAULT in
works-*) work "$@"; status=$? ;;
esac
case $PHX_FAULT in
*-deaf) trap '' TERM INT HUP ;;
esac
case $PHX_FAULT in
*fails) echo "the fault that was asked for" >&2; exit 255 ;;
*hangs*) hang ;;
*caller-killed) kill -KILL "$PPID" ;;
*program-killed) kill -KILL "$(program)" ;;
*terminated) kill -TERM "$(cat "$PHX_FAULT_CALLS/../driver")" ;;
esac
[ -n "${status-}" ] || exec "$PHX_REAL_PCT" "$@"
exit "$status"
`

// insideFaults stands for the inside of the containers. What is done there is
// kept on the container's disk, of which clones get a copy, and what has been
// done to its end in $PHX_WORK/ran.
const insideFaults = `#!/bin/sh
set -eu
ctid=$1
shift
volume=$(sed -n 's/^rootfs: lab:\([^,]*\)\.raw.*/\1/p;/^\[/q' "$PHX_LAB_DIR/pve/lxc/$ctid.conf")
disk=$PHX_LAB_DIR/storage/lab/images/$volume
ran() { echo "$ctid $*" >>"$PHX_WORK/ran"; }
base64_of() { if [ -e "$1" ]; then echo "ok $(base64 -w0 <"$1")"; else echo "ok -"; fi; }
case "$*" in
*" phx-ca-export")
	while read -r command path rest; do
		case $command:$path in
		look:|peek:) echo "ok own /home/step /home/step/config/ca.json no no" ;;
		health:*) echo ok ;;
		read:*/ca.json)
			if [ -e "$disk/ca.json" ]; then base64_of "$disk/ca.json"; else base64_of "$PHX_WORK/ca/ca.json"; fi ;;
		put:*/ca.json) # which counts when the last of a change is done
			echo "$rest" | base64 -d >"$disk/ca.json.new"
			ran "$command $path"
			echo ok ;;
		put:*/root_ca.crt)
			ran "$command $path"
			[ ! -e "$disk/ca.json.new" ] || mv "$disk/ca.json.new" "$disk/ca.json"
			echo ok ;;
		read:*/root_ca.crt) base64_of "$PHX_WORK/ca/root.crt" ;;
		read:/etc/hosts) base64_of "$disk/hosts" ;;
		read:*/phx-neighbours.service) base64_of "$disk/neighbours" ;;
		*) ran "unexpected: $command $path"; echo ok ;;
		esac
	done ;;
*"/step ca health "*) ;;
feature\ *)
	[ ! -e "$disk/feature.$2" ] || [ "$(cat "$disk/feature.$2")" = "$3" ] || echo "replaces another"
	echo "$3" >"$disk/feature.$2"
	ran "$1 $2 $3" ;;
*" phoenix_hypervisor_lxc_103.sh 103 "*)
	cat >"$disk/application.new"
	mv "$disk/application.new" "$disk/application"
	ran application ;;
*"BEGIN PHX"*)
	text=$(cat)
	echo "$text" | sed '1,/END PHX/d' >"$disk/neighbours.new"
	mv "$disk/neighbours.new" "$disk/neighbours"
	echo "$text" | sed '/END PHX/q' >"$disk/hosts.new"
	mv "$disk/hosts.new" "$disk/hosts"
	ran hosts ;;
*" phx-nginx "*|*" phx-traefik "*)
	echo '{"need":"request"}'
	IFS= read -r request
	changed=false changes=
	if [ "$request" != "$(cat "$disk/request" 2>/dev/null)" ]; then
		printf '%s\n' "$request" >"$disk/request.new"
		mv "$disk/request.new" "$disk/request"
		changed=true changes='"service"'
	fi
	echo '{"answer":{"names":["a.example"],"changed":'$changed',"changes":['$changes']}}' ;;
*) echo "inside: unexpected in $ctid: $*" >&2; exit 99 ;;
esac
`

// scenario is a run that is disturbed: phoenix with these arguments on a host
// on which the scenario before has succeeded.
type scenario struct {
	name   string
	sample int    // with PHX_TEST_FULL=1, one in so many faults is tried; 0 for none
	kills  bool   // programs are also killed at their system calls
	after  string // the scenario before, "" for a new host
	args   []string
	env    []string
	change func(*place) // of what the run is to apply
}

var scenarios = []scenario{
	{name: "first run", sample: 3, kills: true},
	{name: "converged", change: func(p *place) { p.configure(withMore) }},
	{name: "changes", sample: 3, kills: true, after: "converged", env: []string{
		"PHX_RESTART=1"}, change: func(p *place) {
		p.configure(withChanges)
		for _, name := range []string{"step_cli", "step_ca"} {
			p.feature(name, "2")
		}
		p.write("scripts/phoenix_hypervisor_lxc_103.sh", "#!/bin/sh\n# changed\n", 0o644)
		p.write("apparmor/lxc-phoenix", "profile lxc-phoenix { changed }\n", 0o644)
	}},
	{name: "templates", sample: 12, change: func(p *place) {
		p.configure(func(_ string, containers map[string]object) { containers["900"]["is_template"] = true })
	}},
	{name: "recreate", sample: 12, after: "first run", args: []string{"--action", "recreate", "102", "103"}},
	{name: "restart", after: "first run", args: []string{"--action", "restart"}},
	{name: "stop", after: "first run", args: []string{"--action", "stop"}},
	{name: "start", after: "stop", args: []string{"--action", "start"}},
	{name: "delete", after: "first run", args: []string{"--action", "delete", "101", "102", "103", "900"}},
}

type object = map[string]any

// withMore adds to the shipped configuration what withChanges takes away.
func withMore(dir string, containers map[string]object) {
	containers["101"]["lxc_options"] = []string{"lxc.environment=OLD=1"}
	containers["101"]["apparmor_profile"] = "lxc-phoenix"
	rules := containers["102"]["firewall"].(object)
	rules["rules"] = append(rules["rules"].([]any),
		object{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "8443"})
	containers["103"]["volumes"] = []any{object{"name": "data", "pool": "lab", "size_gb": 2, "mount_point": "/data"}}
}

// withChanges changes something of each kind that is written, and something
// in each container.
func withChanges(dir string, containers map[string]object) {
	containers["900"]["memory_mb"] = 3072
	containers["101"]["storage_size_gb"] = 17
	delete(containers["101"], "lxc_options")
	containers["102"]["lxc_options"] = []string{"lxc.environment=NEW=1"}
	containers["102"]["cores"] = 3
	gone := containers["102"]["firewall"].(object)
	gone["rules"] = gone["rules"].([]any)[:len(gone["rules"].([]any))-1]
	containers["102"]["mount_points"] = append(containers["102"]["mount_points"].([]any),
		object{"host_path": dir + "/data", "container_path": "/mnt/data", "owner_uid": 33})
	containers["103"]["volumes"] = []any{object{"name": "data", "pool": "lab", "size_gb": 3, "mount_point": "/data"}}
	rules := containers["103"]["firewall"].(object)
	rules["rules"] = append(rules["rules"].([]any)[1:],
		object{"type": "in", "action": "ACCEPT", "source": "10.0.0.0/24", "proto": "tcp", "port": "9000"})
	containers["103"]["traefik_service"].(object)["name"] = "authority"
}

// place is a directory in which one host after the other is disturbed. All of
// them have the same paths, and with them the same hashes.
type place struct {
	t        *testing.T
	dir      string // of the host
	aside    string
	programs string
	mark     string // in the environment of all that a run has started
	runs     int
	ends     map[string]*end
}

// end is what a scenario's run leaves, undisturbed.
type end struct {
	state  state
	ran    map[string]int
	events []string
	calls  []string
	backup string // of the host
}

func newPlace(t *testing.T, dir, programs string) *place {
	p := &place{t: t, dir: filepath.Join(dir, "host"), aside: filepath.Join(dir, "aside"), programs: programs,
		ends: map[string]*end{}}
	for _, dir := range []string{p.dir, p.aside} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := makeHost(p.dir); err != nil {
		t.Fatal(err)
	}
	for dir, mode := range map[string]fs.FileMode{"apparmor": 0o755, "apparmor.d": 0o755, "bin": 0o755,
		"host/pve/priv/lock": 0o700} {
		if err := os.MkdirAll(filepath.Join(p.dir, dir), mode); err != nil {
			t.Fatal(err)
		}
	}
	p.write("bin/apparmor_parser", "#!/bin/sh\n", 0o755)
	p.write("apparmor/lxc-phoenix", "profile lxc-phoenix {}\n", 0o644)
	p.write("inside", insideFaults, 0o755)
	p.write("../aside/pct", faultyPCT, 0o755)
	for _, name := range []string{"base_setup", "step_cli", "step_ca", "traefik"} {
		p.feature(name, "1")
	}
	p.copy(p.dir, p.backup(""))
	return p
}

func (p *place) backup(scenario string) string {
	return filepath.Join(p.aside, "backup of "+scenario)
}

func (p *place) write(name, text string, mode fs.FileMode) {
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), mode); err != nil {
		p.t.Error(err)
	}
}

func (p *place) read(name string) string {
	text, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.t.Error(err)
	}
	return string(text)
}

func (p *place) feature(name, version string) {
	p.write("scripts/phoenix_hypervisor_feature_install_"+name+".sh",
		"#!/bin/sh\n$PHX_PCT exec --keep-env 0 $1 -- feature "+name+" "+version+" </dev/null\n", 0o755)
}

func (p *place) configure(change func(dir string, containers map[string]object)) {
	var file struct {
		Containers map[string]object `json:"lxc_configs"`
	}
	if err := json.Unmarshal([]byte(p.read("phoenix_lxc_configs.json")), &file); err != nil {
		p.t.Error(err)
	}
	change(p.dir, file.Containers)
	text, err := json.Marshal(file)
	if err != nil {
		p.t.Error(err)
	}
	p.write("phoenix_lxc_configs.json", string(text), 0o644)
}

func (p *place) copy(from, to string) {
	if err := os.RemoveAll(to); err != nil {
		p.t.Error(err)
	}
	if out, err := exec.Command("cp", "-a", "-T", from, to).CombinedOutput(); err != nil {
		p.t.Errorf("%v\n%s", err, out)
	}
}

// begin makes the host as it is before a scenario's run.
func (p *place) begin(s *scenario) error {
	if s.after != "" {
		if _, err := p.undisturbed(s.after); err != nil {
			return err
		}
	}
	p.copy(p.backup(s.after), p.dir)
	if s.change != nil {
		s.change(p)
	}
	return nil
}

// undisturbed returns what the run of a scenario leaves.
func (p *place) undisturbed(name string) (*end, error) {
	if p.ends[name] != nil {
		return p.ends[name], nil
	}
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
	s := &scenarios[i]
	if err := p.begin(s); err != nil {
		return nil, err
	}
	r, err := p.run(s, "", "")
	if err != nil || r.status != 0 {
		return nil, fmt.Errorf("%s, undisturbed: status %d: %v\n%s", name, r.status, err, r.stderr)
	}
	e := &end{state: p.state(), ran: p.ran(), events: r.events, calls: r.calls, backup: p.backup(name)}
	p.ends[name] = e
	p.copy(p.dir, e.backup)
	if len(s.args) > 0 {
		return e, nil
	}
	// Another run changes nothing. What is left equally is so, too.
	again, err := p.run(s, "", "")
	if err != nil || again.status != 0 || len(again.calls) > 5 {
		return nil, fmt.Errorf("%s, another run: status %d: %v: %d calls %q\n%s", name, again.status, err,
			len(again.calls), again.calls, again.stderr)
	}
	if diff := e.state.diff(p.state()); diff != "" || len(maps.Collect(maps.All(p.ran()))) != len(e.ran) {
		return nil, fmt.Errorf("%s, another run changes something: %s%v, before %v", name, diff, p.ran(), e.ran)
	}
	return e, nil
}

// result is that of a run of phoenix.
type result struct {
	status int
	stderr string
	events []string // their names and containers, sorted, without those of the work meanwhile
	calls  []string
	left   processes
	took   time.Duration
}

// patience is how long a run may take: what hangs is ended much earlier.
const patience = 2 * time.Minute

// run runs phoenix, with a fault or without. The error says what is wrong with
// its end.
func (p *place) run(s *scenario, fault, at string) (r result, err error) {
	p.runs++
	p.mark = fmt.Sprintf("PHX_MARK=%s.%d", p.dir, p.runs)
	calls := p.called() // not where what the last run has left may note calls
	os.Remove(filepath.Join(p.aside, "faulty"))
	if err := os.Mkdir(calls, 0o755); err != nil {
		return r, err
	}
	path := p.dir + "/bin:" + p.programs + ":" + repo + "/scripts:" + os.Getenv("PATH")
	if program, n, ok := strings.Cut(at, " "); ok && fault == killedAt.name {
		shim := fmt.Sprintf("#!/bin/sh\nexec killat %s %q %q \"$@\"\n", n, p.aside+"/faulty", p.programs+"/"+program)
		if err := os.WriteFile(filepath.Join(p.aside, program), []byte(shim), 0o755); err != nil {
			return r, err
		}
		defer os.Remove(filepath.Join(p.aside, program))
		path = p.aside + ":" + path
	}
	stop := p.freeStaleLocks()
	defer func() { stop(fault == "") }()
	cmd := exec.Command("bash", append([]string{"-c", `echo $$ >"$0"; exec phoenix "$@"`,
		filepath.Join(p.aside, "driver")}, s.args...)...)
	cmd.Dir = p.dir
	cmd.Env = os.Environ()
	for name, value := range environment(p.dir) {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, p.mark, "PATH="+path,
		"PHX_APPARMOR="+p.dir+"/apparmor", "PHX_APPARMOR_D="+p.dir+"/apparmor.d",
		"PHX_PCT="+p.aside+"/pct", "PHX_REAL_PCT="+p.programs+"/pct",
		"PHX_FAULT_CALLS="+calls, "PHX_FAULT="+fault, "PHX_FAULT_AT="+at, "PHX_LOCK_WAIT=10s")
	if strings.Contains(fault, "hangs") {
		cmd.Env = append(cmd.Env, "PHX_TIMEOUT=3s")
	}
	cmd.Env = append(cmd.Env, s.env...)
	var stdout, stderr *os.File
	for name, f := range map[string]**os.File{"stdout": &stdout, "stderr": &stderr} {
		if *f, err = os.Create(filepath.Join(p.aside, name)); err != nil {
			return r, err
		}
		defer (*f).Close()
	}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return r, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var exit *exec.ExitError
	select {
	case err = <-ended:
		if errors.As(err, &exit) {
			err = nil
		}
	case <-time.After(patience):
		err = fmt.Errorf("no end after %v: it waits for\n%s", patience, p.processes())
	}
	r.took = time.Since(start)
	still := p.processes()
	if err != nil {
		still.kill()
		<-ended
	}
	r.status = cmd.ProcessState.ExitCode()
	if exit != nil && r.status < 0 {
		r.status = 128 + int(exit.Sys().(syscall.WaitStatus).Signal())
	}
	text, readErr := os.ReadFile(stderr.Name())
	r.stderr = string(text)
	r.events, r.calls = p.events(), p.calls()
	if err == nil {
		err = readErr
	}
	// What one that was killed was about to start has its name for a moment.
	for try := 0; try < 20 && still.ours() && strings.Contains(fault, "killed"); try++ {
		time.Sleep(50 * time.Millisecond)
		still = p.processes()
	}
	if err == nil && still.ours() {
		err = fmt.Errorf("the driver has ended, and this goes on:\n%s", still)
	}
	r.left = still
	return r, err
}

// freeStaleLocks does, until stop is called, what the cluster file system does
// with a lock whose holder has died: it frees it for whoever asks, by setting
// its time to 0, when it is two minutes old. Here it is a second. If told
// to, stop asks for those that are left: one that is given nobody holds.
func (p *place) freeStaleLocks() (stop func(ask bool)) {
	stopping := make(chan bool)
	var work sync.WaitGroup
	work.Go(func() {
		ended := stopping
		since := map[string]time.Time{}
		for stopped := false; ; {
			locks, _ := filepath.Glob(filepath.Join(p.dir, "host/pve/priv/lock/*"))
			if stopped && len(locks) == 0 {
				return
			}
			select {
			case ask := <-ended:
				if !ask {
					return
				}
				stopped, ended = true, nil
				continue
			case <-time.After(50 * time.Millisecond):
			}
			for _, lock := range locks {
				if stopped {
					os.Chtimes(lock, time.Unix(0, 0), time.Unix(0, 0))
				}
				info, err := os.Stat(lock)
				if err != nil {
					continue
				}
				made := info.Sys().(*syscall.Stat_t)
				id := fmt.Sprint(lock, made.Ino)
				switch {
				case since[id].IsZero():
					since[id] = time.Now()
				case info.ModTime().Unix() == 0 && time.Since(since[id]) > time.Second:
					os.Remove(lock)
				}
			}
		}
	})
	return func(ask bool) {
		stopping <- ask
		work.Wait()
	}
}

// called is where the calls of the last run are noted.
func (p *place) called() string { return filepath.Join(p.aside, fmt.Sprintf("calls.%d", p.runs)) }

func (p *place) calls() (calls []string) {
	entries, err := os.ReadDir(p.called())
	if err != nil {
		p.t.Error(err)
	}
	for _, e := range entries {
		calls = append(calls, e.Name())
	}
	return calls
}

func (p *place) events() (events []string) {
	text, err := os.ReadFile(filepath.Join(p.aside, "stdout"))
	if err != nil {
		p.t.Error(err)
	}
	for line := range bytes.Lines(text) {
		var ev struct {
			Event string
			CTID  int
		}
		if json.Unmarshal(line, &ev) != nil {
			ev.Event = "not an event: " + string(line)
		}
		// Of what is still to be done, and of what is waited for.
		if ev.Event == "ct.stage" || ev.Event == "ct.running" || ev.Event == "warning" {
			continue
		}
		events = append(events, fmt.Sprintf("%s %d", ev.Event, ev.CTID))
	}
	slices.Sort(events)
	return events
}

// ran counts what has been done to its end in the containers.
func (p *place) ran() map[string]int {
	counts := map[string]int{}
	for line := range strings.Lines(p.read("ran")) {
		counts[strings.TrimSpace(line)]++
	}
	return counts
}

// process is one that a run has started.
type process struct {
	pid        int
	name, line string
}

type processes []process

func (ps processes) String() string {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintf(&b, "%d %s\n", p.pid, p.line)
	}
	return b.String()
}

// ours reports whether there is a program of phx among them.
func (ps processes) ours() bool {
	return slices.ContainsFunc(ps, func(p process) bool { return strings.HasPrefix(p.name, "phx-") })
}

func (ps processes) kill() {
	for _, p := range ps {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// processes returns those of this place's last run that are there still. The
// environment of one that has ended and has not been waited for is empty.
func (p *place) processes() (found processes) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		p.t.Error(err)
	}
	for _, dir := range dirs {
		env, err := os.ReadFile(dir + "/environ")
		if err != nil || !bytes.Contains(append([]byte{0}, env...), []byte("\x00"+p.mark+"\x00")) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		line, _ := os.ReadFile(dir + "/cmdline")
		name, _ := os.ReadFile(dir + "/comm")
		if line := strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))); line != "" {
			found = append(found, process{pid, strings.TrimSpace(string(name)), line[:min(len(line), 300)]})
		}
	}
	return found
}

// state is all that there is below a host's directory: by path the mode, the
// owner and the content of files.
type state map[string]string

// varying are the parts of files that are drawn anew on every host.
var varying = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(` \+mac=[0-9a-f]{32}`), " +mac"},
	{regexp.MustCompile(`(?m)^snaptime: \d+$`), "snaptime"},
	{regexp.MustCompile(`^\{"key":"[0-9a-f]{64}"`), `{"key"`},
	{regexp.MustCompile(`^(\d+ \(lxc-start\) S.*) \d+\n`), "$1"}, // when a container has been started
}

func (p *place) state() state {
	s := state{}
	err := filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(p.dir, path)
		if err != nil {
			return err
		}
		switch name {
		case "host/log": // of the calls
			return filepath.SkipDir
		case "ran":
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		text := fmt.Sprintf("%v %d:%d\n", info.Mode(), owner.Uid, owner.Gid)
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, v := range varying {
				content = v.re.ReplaceAll(content, []byte(v.by))
			}
			text += string(content)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += target
		}
		s[name] = text
		return nil
	})
	if err != nil {
		p.t.Error(err)
	}
	return s
}

// diff says how another state differs from this one.
func (s state) diff(other state) string {
	var b strings.Builder
	paths := maps.Clone(s)
	maps.Copy(paths, other)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		want, has := s[path]
		have, hasNow := other[path]
		switch {
		case !hasNow:
			fmt.Fprintf(&b, "%s is missing: %s\n", path, want)
		case !has:
			fmt.Fprintf(&b, "%s is too much: %s\n", path, have)
		case want != have:
			fmt.Fprintf(&b, "%s differs: want\n%s\nhave\n%s\n", path, want, have)
		}
	}
	return b.String()
}

// heldLocks returns those below the host's directory that somebody holds.
func (p *place) heldLocks() (held []string) {
	paths, err := filepath.Glob(filepath.Join(p.dir, "host/lock/*"))
	if err != nil {
		p.t.Error(err)
	}
	for _, path := range append(paths, filepath.Join(p.dir, "phx.lock")) {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			held = append(held, path)
		}
		f.Close()
	}
	return held
}

// fault is one that is tried.
type fault struct {
	scenario *scenario
	call     string
	kind     kind
}

func (f fault) String() string {
	return fmt.Sprintf("%s/%s/%s", f.scenario.name, f.call, f.kind.name)
}

// survive disturbs a run, lets another complete it, and returns what is not as
// if nothing had happened.
func (p *place) survive(f fault) (took time.Duration, err error) {
	want, err := p.undisturbed(f.scenario.name)
	if err != nil {
		return 0, err
	}
	if err := p.begin(f.scenario); err != nil {
		return 0, err
	}
	r, err := p.run(f.scenario, f.kind.name, f.call)
	defer r.left.kill()
	say := func(format string, args ...any) (time.Duration, error) {
		return r.took, fmt.Errorf("%s: the run with the fault ended with %d after %.1f s and said\n%s",
			fmt.Sprintf(format, args...), r.status, r.took.Seconds(), r.stderr)
	}
	if err != nil {
		return say("%v", err)
	}
	text, err := os.ReadFile(filepath.Join(p.aside, "faulty"))
	if err != nil && f.kind != killedAt { // of which there are not always as many
		return say("the call was not made: %v", err)
	}
	faulty, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if f.kind == killedAt {
		faulty = -1
		r.stderr += string(text)
	}
	// Proxmox's own tasks are not killed, but named; all else is, and may take a moment to end.
	isTask := !strings.HasPrefix(f.call, "exec ") && !strings.HasPrefix(f.call, "list ") &&
		!strings.HasPrefix(f.call, "status ")
	hung := func(process process) bool { return process.pid == faulty }
	for try := 0; try < 40 && f.kind.hangs && !isTask && slices.ContainsFunc(r.left, hung); try++ {
		time.Sleep(50 * time.Millisecond)
		r.left = p.processes()
	}
	for _, process := range r.left {
		if f.kind.hangs && process.pid == faulty &&
			!(f.kind.deaf && isTask && strings.Contains(r.stderr, strconv.Itoa(faulty))) {
			return say("what hung was left:\n%s", r.left)
		}
	}
	if f.kind.deaf {
		syscall.Kill(-faulty, syscall.SIGKILL) // until its end no run works on the container
	}
	if !slices.Contains([]int{0, 1, f.kind.status}, r.status) || r.status != 0 && strings.TrimSpace(r.stderr) == "" {
		return say("a wrong status, or no word")
	}
	if r.status == 0 && f.kind.status == 0 {
		if diff := want.state.diff(p.state()); diff != "" {
			return say("its status is 0, but\n%s", diff)
		}
	}
	again, err := p.run(f.scenario, "", "")
	switch {
	case err != nil:
	case again.status != 0:
		err = fmt.Errorf("status %d", again.status)
	case strings.Contains(again.stderr, "not phx's own"):
		err = errors.New("a record is not believed")
	default:
		err = p.compare(want, again, slices.Concat(r.left, again.left))
	}
	if err != nil {
		return say("the next run: %v\n%s\n", err, again.stderr)
	}
	return r.took, nil
}

// compare compares what two runs, the first one disturbed, have left with what
// an undisturbed one leaves.
func (p *place) compare(want *end, last result, started processes) error {
	var all []error
	if diff := want.state.diff(p.state()); diff != "" {
		all = append(all, errors.New(diff))
	}
	if !slices.Equal(last.events, want.events) {
		all = append(all, fmt.Errorf("its events are %q, want %q", last.events, want.events))
	}
	ran := p.ran()
	for _, what := range slices.Sorted(maps.Keys(ran)) {
		if n := ran[what]; n > want.ran[what]+1 {
			all = append(all, fmt.Errorf("%d times done: %s", n, what))
		}
	}
	for what := range want.ran {
		if ran[what] == 0 {
			all = append(all, fmt.Errorf("never done: %s", what))
		}
	}
	if held := p.heldLocks(); len(held) > 0 {
		all = append(all, fmt.Errorf("held: %q", held))
	}
	for _, process := range started {
		for range 100 { // what has been orphaned ends by itself
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/exe", process.pid)); err != nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", process.pid)); bytes.Contains(env,
			[]byte("PHX_MARK="+p.dir)) {
			all = append(all, fmt.Errorf("left: %d %s", process.pid, process.line))
		}
	}
	return errors.Join(all...)
}

// systemCalls counts the system calls of a program at which killat can kill it.
func (p *place) systemCalls(s *scenario, program string) (int, error) {
	if err := p.begin(s); err != nil {
		return 0, err
	}
	r, err := p.run(s, killedAt.name, program+" 0")
	if err != nil || r.status != 0 {
		return 0, fmt.Errorf("%s, with %s traced: status %d: %v\n%s", s.name, program, r.status, err, r.stderr)
	}
	text, err := os.ReadFile(filepath.Join(p.aside, "faulty"))
	return bytes.Count(text, []byte("\n")), err
}

// Whatever goes wrong at a call of pct: the run ends, and the next one leaves
// what a run leaves in which nothing went wrong. PHX_TEST_FAULT is a regular
// expression that chooses which ones to try, as SCENARIO/CALL/KIND.
func TestFaults(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give files away")
	}
	only, err := regexp.Compile(os.Getenv("PHX_TEST_FAULT"))
	if err != nil {
		t.Fatal(err)
	}
	all := os.Getenv("PHX_TEST_LONG") == "1" || only.String() != ""
	quick := !all && !full()
	dir := t.TempDir()
	if unix.Mount("tmpfs", dir, "tmpfs", 0, "") == nil { // where nothing waits for a disk
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}
	programs := bin
	if raceEnabled { // which thousands of runs cannot afford
		programs = filepath.Join(dir, "bin")
		if out, err := build(programs); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	first := newPlace(t, filepath.Join(dir, "first"), programs)
	var brief, slow []fault
	for i := range scenarios {
		s := &scenarios[i]
		if s.name == "converged" || s.sample == 0 && !all || s.name != "first run" && quick {
			continue
		}
		sample, stride := s.sample, 9*s.sample // one in so many calls, and system calls, is tried
		switch {
		case quick:
			sample, stride = 5, 150
		case all:
			sample, stride = 1, 1
		}
		end, err := first.undisturbed(s.name)
		if err != nil {
			t.Fatal(err)
		}
		if s.name == "first run" && len(end.calls) > 30 {
			t.Errorf("%d calls of pct: %q", len(end.calls), end.calls)
		}
		t.Logf("%s: %d calls: %q", s.name, len(end.calls), end.calls)
		for k, kind := range kinds {
			for i, call := range end.calls {
				f := fault{s, call, kind}
				switch {
				case kind.long && !all || kind.hangs && quick || (i+k)%sample != 0 || !only.MatchString(f.String()):
				case kind.hangs:
					slow = append(slow, f)
				default:
					brief = append(brief, f)
				}
			}
		}
		if !s.kills {
			continue
		}
		for _, program := range []string{"phx-lxc", "phx-ca-export", "phx-nginx", "phx-traefik"} {
			n, err := first.systemCalls(s, program)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d system calls of %s", s.name, n, program)
			for at := 1; at <= n; at += stride {
				if f := (fault{s, fmt.Sprintf("%s %d", program, at), killedAt}); only.MatchString(f.String()) {
					brief = append(brief, f)
				}
			}
		}
	}
	var mu sync.Mutex
	var injected, survived, hangs int
	var longest time.Duration
	var work sync.WaitGroup
	at := 0
	for _, pool := range []struct {
		faults  []fault
		workers int
	}{{slow, 16}, {brief, 4}} {
		queue := make(chan fault)
		work.Go(func() {
			for _, f := range pool.faults {
				queue <- f
			}
			close(queue)
		})
		for range min(pool.workers, len(pool.faults)) {
			at++
			p := newPlace(t, filepath.Join(dir, strconv.Itoa(at)), programs)
			work.Go(func() {
				for f := range queue {
					took, err := p.survive(f)
					mu.Lock()
					injected++
					longest = max(longest, took)
					if f.kind.hangs {
						hangs++
					}
					if err == nil {
						survived++
					} else {
						t.Errorf("%s: %v", f, err)
					}
					mu.Unlock()
				}
			})
		}
	}
	work.Wait()
	t.Logf("%d faults injected, %d survived; %d of them hangs; at most %.1f s to the end", injected, survived,
		hangs, longest.Seconds())
}
