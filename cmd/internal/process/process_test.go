package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func shell(script string) Command {
	return Command{Argv: []string{"/bin/sh", "-c", script}, Env: os.Environ(), Timeout: time.Minute}
}

// TestMain runs a program as phx does when the tests call themselves, on a
// terminal of their own or to be killed.
func TestMain(m *testing.M) {
	if task := os.Getenv("TASK"); task != "" {
		c := shell(task)
		c.Survive, c.NoKill = true, true
		_, _, err := Run(context.Background(), c)
		fmt.Println(err)
		return
	}
	if probe := os.Getenv("PROBE"); probe != "" {
		out, _, err := Run(context.Background(), shell(probe))
		fmt.Printf("%s%v\n", out, err)
		return
	}
	if os.Getenv("PASS_TERMINAL") != "" {
		c := shell("cat")
		c.Stdin = os.Stdin
		_, _, err := Run(context.Background(), c)
		fmt.Printf("%v\n", err)
		return
	}
	os.Exit(m.Run())
}

// onTerminal runs this test program with a controlling terminal, as root's
// shell does, and returns what it printed there.
func onTerminal(t *testing.T, variable string) string {
	t.Helper()
	cmd := exec.Command("script", "-qec", os.Args[0], "/dev/null")
	cmd.Env = append(os.Environ(), variable)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.ReplaceAll(string(out), "\r", "")
}

// A process in a container could push input into the terminal of the shell
// that phx was started from (TIOCSTI), or write to it.
func TestNoTerminal(t *testing.T) {
	const probe = `
		if (: >/dev/tty) 2>/dev/null; then echo tty; else echo no tty; fi
		for fd in 0 1 2; do if [ -t $fd ]; then echo terminal $fd; fi; done`
	control := exec.Command("script", "-qec", probe, "/dev/null")
	if out, err := control.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "tty\r\nterminal 0") {
		t.Fatalf("without phx there is no terminal either: %q, %v", out, err)
	}
	if out := onTerminal(t, "PROBE="+probe); out != "no tty\n<nil>\n" {
		t.Errorf("the program sees %q", out)
	}
	if out := onTerminal(t, "PASS_TERMINAL=1"); !strings.Contains(out,
		"is a terminal, which a program is never given") {
		t.Errorf("a terminal as stdin: %q", out)
	}
}

// Output without end costs neither the memory nor the end of the run.
func TestFlood(t *testing.T) {
	sum := 0
	count := writerFunc(func(p []byte) (int, error) { sum += len(p); return len(p), nil })
	endless := "exec yes 0123456789" // more than any limit
	for name, tt := range map[string]struct {
		script string
		change func(*Command)
		want   string
	}{
		"captured": {"exec head -c 300000000 /dev/zero", func(c *Command) {},
			"it printed more than 64 KiB on stdout, and was ended"},
		"captured, endless": {endless, func(c *Command) { c.MaxStdout = MaxList },
			"it printed more than 1 MiB on stdout, and was ended"},
		"stderr": {endless + " >&2", func(c *Command) {},
			"it printed more than 16 MiB on stdout and stderr, and was ended"},
		"passed on": {endless, func(c *Command) { c.Stdout, c.Stderr = count, count },
			"it printed more than 16 MiB on stdout and stderr, and was ended"},
		"passed on, to 1234": {endless, func(c *Command) { c.Stdout, c.MaxStdout = count, 1234 },
			"it printed more than 1234 bytes on stdout, and was ended"},
		"one that may not be hurt": {
			"trap 'echo ended >&2; exit 0' TERM; yes | head -c 2000000; while :; do sleep 0.02; done",
			func(c *Command) { c.Survive, c.NoKill, c.Patience = true, true, time.Minute },
			"it printed more than 64 KiB on stdout, and was ended"},
		"to files, endless": {endless, func(c *Command) { c.Survive = true },
			"it printed more than 64 KiB on stdout, and was ended"},
		"to files, stderr": {endless + " >&2", func(c *Command) { c.Survive = true },
			"it printed more than 16 MiB on stderr, and was ended"},
		"one that does not stop": {"trap '' TERM; while :; do echo 0123456789; done",
			func(c *Command) { c.Patience = 100 * time.Millisecond },
			"it printed more than 64 KiB on stdout, and was ended"},
	} {
		t.Run(name, func(t *testing.T) {
			sum = 0
			c := shell(tt.script)
			tt.change(&c)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			out, said, err := Run(context.Background(), c)
			runtime.ReadMemStats(&after)
			var tooMuch *TooMuch
			if !errors.As(err, &tooMuch) || err.Error() != tt.want {
				t.Errorf("error %v", err)
			}
			if len(out) > MaxList || len(said) > keep || sum > MaxStream {
				t.Errorf("%d bytes of stdout, %d of stderr, %d passed on", len(out), len(said), sum)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
				t.Errorf("%d bytes of memory", grown)
			}
			if c.NoKill && !strings.HasSuffix(string(said), "ended\n") {
				t.Errorf("it died before it could end by itself: stderr %q", said)
			}
		})
	}
}

// A program that ends well has still not done what it was to do when a part
// of what it said is lost.
func TestTooMuchIsAnErrorOfASuccess(t *testing.T) {
	c := shell("head -c 70000 /dev/zero; exit 0")
	c.Survive = true
	var tooMuch *TooMuch
	if _, _, err := Run(context.Background(), c); !errors.As(err, &tooMuch) {
		t.Errorf("error %v", err)
	}
}

// The whole group is ended, not the shell alone.
func TestGroupIsEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := shell("sleep 300 & echo $!; wait")
	var child int
	c.Stdout = writerFunc(func(p []byte) (int, error) {
		fmt.Sscan(string(p), &child)
		cancel()
		return len(p), nil
	})
	if _, _, err := Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for syscall.Kill(child, 0) == nil && !isZombie(child) {
		if time.Now().After(deadline) {
			syscall.Kill(child, syscall.SIGKILL)
			t.Fatal("a child goes on")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// What is started elsewhere has no border.
func TestOnlyPlace(t *testing.T) {
	starts := regexp.MustCompile(`exec\.Command|os\.StartProcess|syscall\.(Exec|ForkExec)\b|\bexec\.Cmd\b`)
	found := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		switch {
		case err != nil || !starts.Match(text):
		case filepath.Base(path) == "process.go":
			found++
		case filepath.Base(path) == "guest_gate.go": // it becomes Traefik, and starts itself once more, below systemd
		default:
			t.Errorf("%s starts a program by itself: use this package", path)
		}
		return err
	})
	if err != nil || found != 1 {
		t.Errorf("looked in the wrong place: %v", err)
	}
}

func TestEnvironmentIsWhatIsGiven(t *testing.T) {
	t.Setenv("INHERITED", "1")
	out, _, err := Run(context.Background(), Command{Argv: []string{"/usr/bin/env"}, Timeout: time.Minute})
	if err != nil || len(out) > 0 {
		t.Errorf("environment %q, %v", out, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// No program can be started that may go on for ever.
func TestNoProgramWithoutLimit(t *testing.T) {
	file := t.TempDir() + "/ran"
	c := shell(": >" + file)
	c.Timeout = 0
	_, _, err := Run(context.Background(), c)
	if _, statErr := os.Stat(file); err == nil || !strings.Contains(err.Error(), "without a time limit") ||
		statErr == nil {
		t.Errorf("error %v, and it ran: %v", err, statErr == nil)
	}
}

// left ends what a test has left behind.
func left(t *testing.T, file string) {
	t.Helper()
	t.Cleanup(func() {
		text, _ := os.ReadFile(file)
		for _, pid := range strings.Fields(string(text)) {
			if n, _ := strconv.Atoi(pid); n > 1 {
				syscall.Kill(n, syscall.SIGKILL)
			}
		}
	})
}

// Whatever a program and those that it has started do with SIGTERM and with
// its streams, Run returns, when it is cancelled as when the time is over.
func TestRunReturns(t *testing.T) {
	const hour = "sleep 3600"
	for name, tt := range map[string]struct {
		script string // which writes its processes to $PIDS when it is ready
		change func(*Command)
		runs   bool // the error says that it goes on
	}{
		"one that ends": {"echo $$ >$PIDS; exec " + hour, nil, false},
		"one that ignores SIGTERM": {"trap '' TERM; echo $$ >$PIDS; while :; do sleep 0.1; done", nil,
			false},
		"a child that ignores it": {"(trap '' TERM; exec " + hour + ") & echo $$ $! >$PIDS; wait", nil,
			false},
		"a child in a session of its own": {"setsid sh -c 'trap \"\" TERM; echo $$ >$PIDS; exec " + hour +
			"' & wait", nil, false},
		"one that is stopped": {"trap 'exit 3' TERM; echo $$ >$PIDS; kill -STOP $$; " + hour, nil,
			false},
		"one that is stopped and ignores it": {"trap '' TERM; echo $$ >$PIDS; while :; do kill -STOP $$; done", nil,
			false},
		"one that does not read its stdin": {"trap '' TERM; echo $$ >$PIDS; " + hour,
			func(c *Command) { c.Stdin = strings.NewReader(strings.Repeat("x", 1<<20)) }, false},
		"a task that ends": {"echo $$ >$PIDS; exec " + hour,
			func(c *Command) { c.Survive, c.NoKill = true, true }, false},
		"a task that is stopped": {"trap 'exit 3' TERM; echo $$ >$PIDS; kill -STOP $$; " + hour,
			func(c *Command) { c.Survive, c.NoKill, c.Patience = true, true, time.Minute }, false},
		"a task that ignores SIGTERM": {"trap '' TERM; echo here >&2; echo $$ >$PIDS; while :; do sleep 0.1; done",
			func(c *Command) { c.Survive, c.NoKill = true, true }, true},
		"a task whose child goes on": {"(trap '' TERM; exec " + hour + ") & echo $$ $! >$PIDS; wait",
			func(c *Command) { c.Survive, c.NoKill = true, true }, false},
		"a task on pipes, whose child goes on": {"(trap '' TERM; exec " + hour + ") & echo $$ $! >$PIDS; wait",
			func(c *Command) { c.NoKill = true }, false},
	} {
		for _, way := range []string{"cancelled", "out of time"} {
			t.Run(name+", "+way, func(t *testing.T) {
				t.Parallel()
				pids := t.TempDir() + "/pids"
				left(t, pids)
				c := shell(tt.script)
				c.Env = append(c.Env, "PIDS="+pids)
				c.Patience = 200 * time.Millisecond
				if tt.change != nil {
					tt.change(&c)
				}
				ready := func() bool { text, _ := os.ReadFile(pids); return len(text) > 0 }
				ctx, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				cause := errors.New("stopped")
				if way == "cancelled" {
					go func() {
						for !ready() {
							time.Sleep(10 * time.Millisecond)
						}
						time.Sleep(50 * time.Millisecond)
						cancel(cause)
					}()
				} else {
					c.Timeout = time.Second
				}
				type result struct {
					said []byte
					err  error
				}
				done := make(chan result, 1)
				go func() {
					_, said, err := Run(ctx, c)
					for !ready() { // on a machine that is busy
						c.Timeout *= 2
						_, said, err = Run(ctx, c)
					}
					done <- result{said, err}
				}()
				var r result
				select {
				case r = <-done:
				case <-time.After(5 * time.Minute):
					t.Fatal("it does not return")
				}
				var timedOut *TimedOut
				if way == "cancelled" && !errors.Is(r.err, cause) ||
					way != "cancelled" && !errors.As(r.err, &timedOut) {
					t.Errorf("error %v", r.err)
				}
				var still *StillRuns
				if errors.As(r.err, &still) != tt.runs {
					t.Fatalf("error %v", r.err)
				}
				if !tt.runs {
					return
				}
				if string(r.said) != "here\n" || syscall.Kill(still.PID, 0) != nil {
					t.Errorf("stderr %q, and process %d does not go on", r.said, still.PID)
				}
				_, advice, _ := strings.Cut(r.err.Error(), "with: ")
				if out, err := exec.Command("/bin/sh", "-c", advice).CombinedOutput(); err != nil ||
					!strings.Contains(string(out), "trap") {
					t.Errorf("%s: %s, %v", advice, out, err)
				}
			})
		}
	}
}

// What survives does not need this process: it prints on when that was killed,
// and ends by itself.
func TestTaskSurvivesTheCaller(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DIR="+dir, `TASK=echo begun; readlink /proc/self/fd/0 >$DIR/stdin; : >$DIR/begun
while [ ! -e $DIR/killed ]; do echo going on; echo going on >&2; sleep 0.02; done
echo done && echo done >&2 && cat && : >$DIR/done`)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, dir+"/begun")
	cmd.Process.Kill()
	cmd.Wait()
	if err := os.WriteFile(dir+"/killed", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	await(t, dir+"/done")
	if stdin, err := os.ReadFile(dir + "/stdin"); err != nil || string(stdin) != "/dev/null\n" {
		t.Errorf("stdin is %q, %v", stdin, err)
	}
}

func await(t *testing.T, file string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(file); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come", file)
		}
	}
}

// What a surviving program prints is returned as with pipes, and what opens
// its streams once more goes on.
func TestFilesAreAsPipes(t *testing.T) {
	c := shell("echo one; (echo two); sh -c 'echo three'; echo four >&2; echo five >&2; exit 3")
	c.Survive = true
	out, said, err := Run(context.Background(), c)
	var exit *exec.ExitError
	if string(out) != "one\ntwo\nthree\n" || string(said) != "four\nfive\n" || !errors.As(err, &exit) ||
		exit.ExitCode() != 3 {
		t.Errorf("stdout %q, stderr %q, %v", out, said, err)
	}
	c = shell("set -e; echo one; echo two >/dev/stdout; echo three >/dev/stderr; " +
		"yes | head -c 100000 >&2; echo last >&2")
	c.Survive = true
	if _, said, err := Run(context.Background(), c); err != nil || len(said) != keep ||
		!strings.HasSuffix(string(said), "y\nlast\n") {
		t.Errorf("stderr %d bytes, %v", len(said), err)
	}
	c = shell("cat")
	c.Survive, c.Stdin = true, strings.NewReader("x")
	if _, _, err := Run(context.Background(), c); err == nil {
		t.Error("it survives with a stdin that does not")
	}
}

// A program that exited 0 has succeeded, whatever it has left behind.
func TestSuccessThatLeavesSomethingBehind(t *testing.T) {
	pids := t.TempDir() + "/pids"
	left(t, pids)
	c := shell("setsid sh -c 'echo $$ >$PIDS; exec sleep 3600' & until [ -s $PIDS ]; do sleep 0.01; done; echo done")
	c.Env, c.Patience = append(c.Env, "PIDS="+pids), 100*time.Millisecond
	if out, _, err := Run(context.Background(), c); err != nil || string(out) != "done\n" {
		t.Errorf("stdout %q, %v", out, err)
	}
}

// Nothing is left of hundreds of programs, whichever way they have ended, and
// no program gets anything but its three streams.
func TestNothingLeaks(t *testing.T) {
	entries, err := os.ReadDir("/proc/self/fd") // as programs of phx do when they start
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	count := func() (fds, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	run := func(i int) {
		c := shell("cd /proc/self/fd && echo *; cat")
		switch i % 5 {
		case 0:
			c.Survive = true
		case 1:
			c.Stdin = strings.NewReader("x")
		case 2:
			c.Argv = []string{"/nonexistent"}
		case 3:
			c.Argv[2], c.Timeout = "exec sleep 3600", 5*time.Millisecond
		}
		out, _, err := Run(context.Background(), c)
		// 3 is that of the directory.
		if ended := i%5 != 2 && i%5 != 3; ended != (err == nil) ||
			ended && !strings.HasPrefix(string(out), "0 1 2 3\n") {
			t.Fatalf("%d: %q, %v", i, out, err)
		}
	}
	for i := range 10 {
		run(i)
	}
	fds, goroutines := count()
	for i := range 500 {
		run(i)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		fdsAfter, goroutinesAfter := count()
		if fdsAfter <= fds && goroutinesAfter <= goroutines {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d file descriptors and %d goroutines have become %d and %d", fds, goroutines,
				fdsAfter, goroutinesAfter)
		}
	}
}

// A program that waits in the kernel cannot even be killed: Run returns, and
// the program is reaped when it has ended.
func TestNotEvenKilled(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can freeze a file system")
	}
	dir := t.TempDir()
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec", `cd "$1"
truncate -s 8M image
mkfs.ext4 -q image
mkdir frozen
mount -o loop image frozen
fsfreeze --freeze frozen
echo frozen
read -r line || :
fsfreeze --unfreeze frozen`, "sh", dir)
	holder.Stderr = os.Stderr
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if n, _ := out.Read(make([]byte, 7)); n != 7 {
		t.Skipf("no file system can be frozen here: %v", holder.Wait())
	}
	thaw := sync.OnceFunc(func() {
		in.Close()
		if err := holder.Wait(); err != nil {
			t.Error(err)
		}
	})
	defer thaw()
	c := shell(`exec nsenter --mount="/proc/$HOLDER/ns/mnt" touch "$DIR/frozen/file"`)
	c.Env = append(c.Env, fmt.Sprintf("HOLDER=%d", holder.Process.Pid), "DIR="+dir)
	c.Timeout, c.Patience = 2*time.Second, 100*time.Millisecond
	_, _, err = Run(context.Background(), c)
	var still *StillRuns
	if !errors.As(err, &still) || !strings.Contains(err.Error(), "cannot be killed") || still.PID < 2 ||
		syscall.Kill(still.PID, 0) != nil {
		t.Fatalf("error %v", err)
	}
	thaw()
	for deadline := time.Now().Add(time.Minute); syscall.Kill(still.PID, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is not reaped")
		}
	}
}
