package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// record appends the events of a stream to the log at path, and returns what was said
// of it.
func record(t *testing.T, path, stream string) (said []error) {
	t.Helper()
	l := &runLog{path: path, bad: func(err error) { said = append(said, err) }}
	if err := readEvents(strings.NewReader(stream), l, func([]byte, *event, error) {}); err != nil {
		t.Fatal(err)
	}
	l.close()
	return said
}

func contents(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text)
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "events.jsonl")
	early := at(0, "warning", `"program":"phx-plan","text":"before the plan"`)
	run := func(action, more string) string {
		return strings.Join(append(append([]string{early}, plan(action, more, 900)...), "{ not JSON",
			at(1, "ct.ready", `"ctid":900`), at(2, "plan.done", ""), at(3, "run.ended", `"status":0`), ""), "\n")
	}
	for _, none := range []string{run("status", ""), run("check", ""), run("create", `,"dry_run":true`), early + "\n"} {
		if said := record(t, path, none); said != nil || contents(t, path) != "" {
			t.Errorf("%v: in the log is %q, and %v", none, contents(t, path), said)
		}
	}
	want := run("create", "")
	// The last line is not whole: a program has died.
	if said := record(t, path, want+`{"event":"ct.re`); said != nil || contents(t, path) != want {
		t.Errorf("in the log is\n%s, and %v", contents(t, path), said)
	}
	for name, mode := range map[string]os.FileMode{path: 0o640, filepath.Dir(path): os.ModeDir | 0o750} {
		if info, err := os.Stat(name); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	// A line that the end of a machine has cut short stays alone.
	if err := os.WriteFile(path, []byte(want+`{"event":`), 0o640); err != nil {
		t.Fatal(err)
	}
	record(t, path, run("stop", ""))
	if have := contents(t, path); have != want+`{"event":`+"\n"+run("stop", "") {
		t.Errorf("in the log is\n%s", have)
	}
	r, err := readLast(path)
	if err != nil || r == nil || r.action() != "stop" || len(r.warnings) != 1 {
		t.Errorf("the last run is %+v, %v", r, err)
	}
}

// What cannot be written is said once.
func TestLogThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/dev/full", dir, dir + "/file/log"} {
		if said := record(t, path, strings.Join(plan("create", "", 900, 901), "\n")); len(said) != 1 {
			t.Errorf("%s: %v", path, said)
		}
	}
}

// Who may write into the directory of the log can neither lead it elsewhere, nor have
// it in a file of his own, nor have whoever reads the last run wait.
func TestLogOfSomebodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const user = 65534
	dir := t.TempDir()
	path, target := filepath.Join(dir, "log"), filepath.Join(dir, "target")
	events := strings.Join(plan("create", "", 900, 901), "\n")
	for name, test := range map[string]struct {
		plant  func() error
		refuse bool
	}{
		"link": {func() error { return errors.Join(os.Symlink(target, path), os.Lchown(path, user, user)) }, true},
		"file": {func() error {
			return errors.Join(os.WriteFile(path, nil, 0o666), os.Chown(path, user, user))
		}, true},
		"pipe":         {func() error { return unix.Mkfifo(path, 0o666) }, true},
		"link of ours": {func() error { return os.Symlink(target, path) }, false},
	} {
		os.Remove(path)
		if err := test.plant(); err != nil {
			t.Fatal(err)
		}
		if last, _ := readLast(path); last != nil {
			t.Errorf("%s: a last run", name)
		}
		said := record(t, path, events)
		if (len(said) == 1) != test.refuse {
			t.Errorf("%s: %v", name, said)
		}
		if text, _ := os.ReadFile(target); (len(text) == 0) != test.refuse {
			t.Errorf("%s: %q is where the link leads", name, text)
		}
		os.Remove(target)
	}
}

// The last run is found wherever it lies in the file.
func TestLastRun(t *testing.T) {
	line := func(n int) string { return `{"event":"ct.ready","x":"` + strings.Repeat("x", n) + `"}` + "\n" }
	begin := string(start) + `,"round":"%s"}` + "\n"
	for _, before := range []int{0, 10, 1<<20 - 40, 1 << 20, 1<<20 + 7} {
		for _, after := range []int{0, 10, 1<<20 - 60, 1<<20 - 50, 1 << 20, 3 << 20} {
			text := ""
			if before > 0 {
				text = fmt.Sprintf(begin, "first") + line(before)
			}
			want := int64(len(text))
			if after%2 == 0 {
				text += strings.Repeat(`{"event":"warning","text":"early"}`+"\n", 3)
			}
			text += fmt.Sprintf(begin, "last") + line(after)
			text += `{"event":"warning","text":"` + strings.ReplaceAll(string(start), `"`, `\"`) + `"}` + "\n"
			have, err := lastRun(strings.NewReader(text), int64(len(text)))
			if err != nil || have != want {
				t.Errorf("%d before, %d after: %d, want %d, %v", before, after, have, want, err)
			}
		}
	}
	if have, err := lastRun(bytes.NewReader(nil), 0); have != 0 || err != nil {
		t.Error(have, err)
	}
}

// What is passed on is what was read, byte for byte, and each line at once.
func TestPass(t *testing.T) {
	inRead, inWrite := io.Pipe()
	outRead, outWrite := io.Pipe()
	path := filepath.Join(t.TempDir(), "log")
	var runs []string
	ended := make(chan error, 1)
	go func() {
		log := &runLog{path: path, bad: func(err error) { t.Error(err) }}
		err := pass(inRead, outWrite, log, func(r *run) error {
			runs = append(runs, r.action())
			return nil
		})
		outWrite.Close()
		ended <- err
	}()
	lines := append(plan("create", "", 900),
		"no JSON", strings.Repeat("x", 3<<20), at(1, "plan.done", ""), `{"event":"cut`)
	for i, l := range lines {
		if i < len(lines)-1 {
			l += "\n"
		}
		go io.WriteString(inWrite, l)
		have := make([]byte, len(l))
		if i == len(lines)-1 {
			break // it comes when the stream ends
		}
		if _, err := io.ReadFull(outRead, have); err != nil || string(have) != l {
			t.Fatalf("%.100q, %v, want %.100q", have, err, l)
		}
	}
	inWrite.Close()
	io.Copy(io.Discard, outRead)
	if err := <-ended; err != nil || fmt.Sprint(runs) != "[create]" {
		t.Errorf("%v, the runs are %v", err, runs)
	}
}
