package pipetest

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// atATerminal starts phoenix at a terminal, on a host in the directory w; log is the
// file of its events.
func atATerminal(t *testing.T, w, log string) (*exec.Cmd, *os.File) {
	t.Helper()
	if err := makeHost(w); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(repo, "scripts", "phoenix"))
	cmd.Dir = w
	cmd.Env = []string{"TERM=xterm", "NO_COLOR=1", "PHX_LOG=" + log, "PHX_LAB_DELAY=0.3"}
	for name, value := range environment(w) {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 80, Rows: 24})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return cmd, terminal
}

// awaitCreation waits until the run of cmd, on a host in the directory w, creates a
// container; shown returns what is on its terminal.
func awaitCreation(t *testing.T, cmd *exec.Cmd, w string, shown func() string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !bytes.Contains(readAll(t, w+"/host/log/pct.log"), []byte("create")); {
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			t.Fatalf("nothing is created:\n%s", shown())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Ctrl-C at a terminal ends the programs, and not phoenix-view: it tells how the run
// has ended, and the log has it.
func TestInterruptAtATerminal(t *testing.T) {
	w := t.TempDir()
	log := filepath.Join(w, "log", "events.jsonl")
	cmd, terminal := atATerminal(t, w, log)
	var shown syncBuffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(&shown, terminal) // until the terminal is gone
	}()
	awaitCreation(t, cmd, w, shown.String)
	if _, err := terminal.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	<-read
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGINT {
		t.Errorf("phoenix has ended with %v", cmd.ProcessState)
	}
	for _, want := range []string{
		"create: 4 containers of ", "Failed:\r\n  900 Copy-Base: ", "create: stopped", " by signal 2: 1 failed, ",
	} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("%q is not on the terminal:\n%s", want, shown.String())
		}
	}
	if have := string(readAll(t, log)); !strings.HasSuffix(have, `,"status":130}`+"\n") {
		t.Errorf("the log does not end with the status:\n%s", have)
	}
}

// A terminal that is gone, as when a connection breaks, ends the run in order: the log
// has how it has ended, and the next run can begin.
func TestTerminalThatIsGone(t *testing.T) {
	w := t.TempDir()
	log := filepath.Join(w, "log", "events.jsonl")
	cmd, terminal := atATerminal(t, w, log)
	awaitCreation(t, cmd, w, func() string { return "" })
	terminal.Close()
	cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGHUP {
		t.Errorf("phoenix has ended with %v", cmd.ProcessState)
	}
	if have := string(readAll(t, log)); !strings.HasSuffix(have, `,"status":129}`+"\n") {
		t.Errorf("the log does not end with the status:\n%s", have)
	}
	again := exec.Command(cmd.Path)
	again.Dir, again.Env = w, cmd.Env
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("the next run: %v\n%s", err, out)
	}
}

// syncBuffer is a buffer that is read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// readAll returns the contents of a file, nothing where it is not there yet.
func readAll(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return text
}
