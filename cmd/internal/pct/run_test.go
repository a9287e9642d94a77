package pct

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func shell(script string) Command { return Command{Argv: []string{"/bin/sh", "-c", script}} }

func TestErrorShowsCommandAndOutput(t *testing.T) {
	h := &Host{}
	_, err := h.Run(context.Background(), Command{
		Argv:  []string{"/bin/sh", "-c", "echo 'lxc: no such bridge'; echo \"startup for container '103' failed\" >&2; exit 255"},
		Label: "pct start 103",
	})
	if want := "pct start 103: startup for container '103' failed\nlxc: no such bridge\nhint: see LXC's own log with: pct start 103 --debug 1"; err == nil || err.Error() != want {
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
	_, err := (&Host{PCT: "no-such-pct"}).Pct(context.Background(), "list")
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
	started := &startedWriter{started: make(chan struct{})}
	go func() {
		<-started.started
		cancel(cause)
	}()
	c := shell("trap 'echo cleaned up >&2; exit 1' TERM; echo; while :; do sleep 0.05; done")
	c.Stdout = started
	var said strings.Builder
	c.Stderr = &said
	_, err := (&Host{}).Run(ctx, c)
	if !errors.Is(err, cause) || !strings.HasSuffix(said.String(), "cleaned up\n") {
		t.Errorf("error %v, stderr %q", err, said.String())
	}
}

type startedWriter struct {
	started chan struct{}
	once    bool
}

func (w *startedWriter) Write(p []byte) (int, error) {
	if !w.once {
		w.once = true
		close(w.started)
	}
	return len(p), nil
}

func TestLongOutputIsCut(t *testing.T) {
	_, err := (&Host{}).Run(context.Background(), shell("yes 0123456789 | head -c 1000000 >&2; echo >&2; echo the end >&2; exit 1"))
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
	script := "#!/bin/sh\nprintf '%-10s %-10s %-12s %-20s\\n' VMID Status Lock Name 101 running '' Nginx-Phoenix 710 stopped backup x\n"
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
		"CT is locked (backup)": "pct unlock",
		"unable to create CT 701 - volume 'local:vztmpl/debian-12.tar.zst' does not exist": "pveam download local debian-12.tar.zst",
		"storage 'nosto' does not exist":                "pvesm status",
		"snapshot feature is not available":             "bind mount",
		"startup for container '741' failed":            "pct start 741 --debug 1",
		"can't remove CT 710 - protection mode enabled": "--protection 0",
	} {
		err := &CommandError{"pct x", "lxc: first\n" + said + "\n", errors.New("exit status 255")}
		text := err.Error()
		if !strings.HasPrefix(text, "pct x: "+said+"\nlxc: first\nhint: ") || !strings.Contains(text, want) {
			t.Errorf("%s", text)
		}
	}
}

func TestPreviewRunsOnlyWhatReads(t *testing.T) {
	var told []string
	h := &Host{Preview: func(c Command) { told = append(told, Quote(c.Argv)) }}
	file := t.TempDir() + "/changed"
	if _, err := h.Run(context.Background(), Command{Argv: []string{"touch", file}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err == nil || len(told) != 1 || told[0] != "touch "+file {
		t.Errorf("told %q, and the command ran", told)
	}
	c := shell("echo read")
	c.Reads = true
	if out, err := h.Run(context.Background(), c); err != nil || string(out) != "read\n" || len(told) != 1 {
		t.Errorf("read %q, %v, told %q", out, err, told)
	}
}
