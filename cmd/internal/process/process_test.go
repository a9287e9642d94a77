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
	"strings"
	"syscall"
	"testing"
	"time"
)

func shell(script string) Command {
	return Command{Argv: []string{"/bin/sh", "-c", script}, Env: os.Environ(), Patience: 5 * time.Second}
}

// TestMain runs a program as phx does when the tests call themselves on a
// terminal of their own.
func TestMain(m *testing.M) {
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
	const probe = `if (: >/dev/tty) 2>/dev/null; then echo tty; else echo no tty; fi; for fd in 0 1 2; do if [ -t $fd ]; then echo terminal $fd; fi; done`
	control := exec.Command("script", "-qec", probe, "/dev/null")
	if out, err := control.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "tty\r\nterminal 0") {
		t.Fatalf("without phx there is no terminal either: %q, %v", out, err)
	}
	if out := onTerminal(t, "PROBE="+probe); out != "no tty\n<nil>\n" {
		t.Errorf("the program sees %q", out)
	}
	if out := onTerminal(t, "PASS_TERMINAL=1"); !strings.Contains(out, "is a terminal, which a program is never given") {
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
		"captured":           {"exec head -c 300000000 /dev/zero", func(c *Command) {}, "it printed more than 64 KiB on stdout, and was ended"},
		"captured, endless":  {endless, func(c *Command) { c.MaxStdout = MaxList }, "it printed more than 1 MiB on stdout, and was ended"},
		"stderr":             {endless + " >&2", func(c *Command) {}, "it printed more than 16 MiB on stdout and stderr, and was ended"},
		"passed on":          {endless, func(c *Command) { c.Stdout, c.Stderr = count, count }, "it printed more than 16 MiB on stdout and stderr, and was ended"},
		"passed on, to 1234": {endless, func(c *Command) { c.Stdout, c.MaxStdout = count, 1234 }, "it printed more than 1234 bytes on stdout, and was ended"},
		"one that may not be hurt": {"trap 'echo ended >&2; exit 0' TERM; yes | head -c 2000000; while :; do sleep 0.02; done",
			func(c *Command) { c.Drain, c.Patience = true, 0 }, "it printed more than 64 KiB on stdout, and was ended"},
		"one that does not stop": {"trap '' TERM; while :; do echo 0123456789; done", func(c *Command) { c.Patience = 100 * time.Millisecond }, "it printed more than 64 KiB on stdout, and was ended"},
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
			if c.Drain && !strings.HasSuffix(string(said), "ended\n") {
				t.Errorf("it died before it could end by itself: stderr %q", said)
			}
		})
	}
}

// A program that ends well has still not done what it was to do when a part
// of what it said is lost.
func TestTooMuchIsAnErrorOfASuccess(t *testing.T) {
	c := shell("head -c 70000 /dev/zero; exit 0")
	c.Drain = true
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
		case filepath.Base(path) == "gate.go": // it becomes Traefik, and starts itself once more, below systemd
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
	out, _, err := Run(context.Background(), Command{Argv: []string{"/usr/bin/env"}})
	if err != nil || len(out) > 0 {
		t.Errorf("environment %q, %v", out, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
