package pve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/flock"
)

// bench is a container 101 of a host of its own, whose pct writes down its calls
// and does little else.
type bench struct {
	*Container
	t    *testing.T
	dir  string
	logs []string
}

// newBench returns a container with this configuration file, as looked at.
// record is written into it and signed, if there is one; a status that is not
// "" is what pct says.
func newBench(t *testing.T, conf string, record Record, status string) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir()}
	script := `#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >>calls
case $1 in
status) echo "status: $(cat state)" ;;
start) echo running >state ;;
shutdown) echo stopped >state ;;
reboot) echo stopped >state; echo 'no start' >&2; exit 1 ;;
esac
`
	b.file("pct", script)
	if err := os.Chmod(filepath.Join(b.dir, "pct"), 0o755); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	h.PCT = filepath.Join(b.dir, "pct")
	records := h.open(t)
	if record != nil {
		conf = string(records.rewrite(101, []byte(conf), func(r Record) { maps.Copy(r, record) }))
	}
	h.write(t, 101, conf)
	b.Container = h.Container(101, func() (*Records, error) { return records, nil }, time.Minute,
		func(format string, args ...any) { b.logs = append(b.logs, fmt.Sprintf(format, args...)) })
	b.file("state", status)
	if err := b.Look(map[int]string{101: status}); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) file(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// text is the container's configuration file.
func (b *bench) text() string {
	b.t.Helper()
	text, _ := b.host.conf(b.t, 101)
	return text
}

// wantCalls checks which commands of pct have been run.
func (b *bench) wantCalls(want ...string) {
	b.t.Helper()
	calls, _ := os.ReadFile(filepath.Join(b.dir, "calls"))
	if have := strings.FieldsFunc(string(calls), func(r rune) bool { return r == '\n' }); !slices.Equal(have, want) {
		b.t.Errorf("calls %q, want %q", have, want)
	}
}

// change lets others change the configuration file.
func (b *bench) change(old, new string) {
	b.t.Helper()
	b.host.write(b.t, 101, strings.ReplaceAll(b.text(), old, new))
}

func TestWriteUnsettable(t *testing.T) {
	const before = "#by hand\ncores: 1\nlxc.tty.max: 1\nlxc.environment: A=1\n\n[snap]\ncores: 2\n"
	wanted := []RawLine{{"lxc.tty.max", "1"}, {"lxc.autodev", "1"}}
	for _, status := range []string{"running", "stopped"} {
		// lxc.environment: A=1 is known as phx's own, and not wanted any more.
		record := Record{"x": "0123456789ab", RawWord: HashList([]string{"lxc.environment: A=1"})}
		b := newBench(t, before, record, status)
		after := b.Record.without()
		after[RawWord] = RawHashes(wanted)
		changed, _, err := b.WriteUnsettable(t.Context(), Unsettable{Raw: wanted, Record: after})
		if !changed || err != nil || !b.Noted {
			t.Fatalf("%t, %v, noted %t", changed, err, b.Noted)
		}
		_, conf := b.host.conf(t, 101)
		if record, err := b.host.open(t).readConf(101, conf); err != nil || !maps.Equal(record, after) {
			t.Errorf("record %v, %v; want %v", record, err, after)
		}
		lines := conf.Raw[:len(conf.Raw)-1] // but for marks
		if conf.mark(restartMark) != "" {
			lines = lines[:len(lines)-1]
		}
		if !slices.Equal(lines, wanted) || !strings.HasSuffix(b.text(), "\n\n[snap]\ncores: 2\n") {
			t.Errorf("written:\n%s", b.text())
		}
		if running := status == "running"; (conf.mark(restartMark) != "") != running ||
			slices.Contains(b.RestartRequired(), "lxc") != running {
			t.Errorf("%s: a restart is needed: %q in\n%s", status, b.RestartRequired(), b.text())
		}
		text := b.text()
		changed, _, err = b.WriteUnsettable(t.Context(), Unsettable{Raw: wanted, Record: after})
		if changed || err != nil || b.text() != text {
			t.Errorf("again: %t, %v:\n%s", changed, err, b.text())
		}
	}
}

// The record and the lines are written in one replace, or not at all.
func TestWriteRawUnderTheLock(t *testing.T) {
	b := newBench(t, "cores: 1\n", nil, "stopped")
	text := b.text()
	release, err := flock.Acquire(t.Context(), filepath.Join(b.host.PVELock, "pve-config-101.lock"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	wanted := []RawLine{{"lxc.autodev", "1"}}
	changed, _, err := b.WriteUnsettable(ctx, Unsettable{Raw: wanted, Record: Record{RawWord: RawHashes(wanted)}})
	if changed || !errors.Is(err, context.DeadlineExceeded) || b.text() != text || len(b.Record) > 0 || b.Noted {
		t.Errorf("%t, %v, record %v:\n%s", changed, err, b.Record, b.text())
	}
}

// A record of the time when hashes in lists were shorter is brought up to date, and
// nothing else is changed because of it: no line, and no restart is needed.
func TestRecordWithShorterHashes(t *testing.T) {
	const before = "cores: 1\nrootfs: lab:101/disk,size=8G\nlxc.tty.max: 1\nlxc.autodev: 1\nlxc.init.cmd: /x\n"
	wanted := []RawLine{{"lxc.tty.max", "1"}, {"lxc.autodev", "1"}}
	old := Record{RawWord: "48d58d,5d424d", VolumesWord: "bd4741", snapshotsWord: "456375"}
	b := newBench(t, before, old, "running")
	if !maps.Equal(b.Record, old) {
		t.Fatalf("record %v", b.Record)
	}
	after := b.Record.without()
	after[RawWord] = RawHashes(wanted)
	after.Unite(VolumesWord, HashList([]string{"/data"}))
	changed, _, err := b.WriteUnsettable(t.Context(), Unsettable{Raw: wanted, Record: after})
	if changed || err != nil || !b.Noted {
		t.Errorf("%t, %v, noted %t", changed, err, b.Noted)
	}
	if want := "bd4741," + HashList([]string{"/data"}); b.Record[VolumesWord] != want {
		t.Errorf("volumes %s, want %s", b.Record[VolumesWord], want)
	}
	if _, conf := b.host.conf(t, 101); !strings.HasSuffix(b.text(), "\n"+before) || conf.mark(restartMark) != "" {
		t.Errorf("written:\n%s", b.text())
	}
	// Proxmox is not asked again for a snapshot that it does not make.
	if taken, err := b.Snapshot(t.Context(), "x"); taken || err != nil {
		t.Errorf("snapshot: %t, %v", taken, err)
	}
	if err := b.ForgetNoSnapshots(t.Context()); err != nil || b.Record[snapshotsWord] != old[snapshotsWord] {
		t.Errorf("%v, record %v", err, b.Record)
	}
	b.wantCalls()
}

// What this run knows of the container must still be there when it writes.
func TestRolledBackMeanwhile(t *testing.T) {
	b := newBench(t, "cores: 1\n", Record{"x": "0123456789ab"}, "stopped")
	b.change("lxc.group: phx-applied x=0123456789ab\n", "")
	text := b.text()
	const want = "others have rolled the container back meanwhile"
	err := b.WriteRecord(t.Context(), Record{"y": "0123456789ab"})
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("record: %v", err)
	}
	err = b.Pct(t.Context(), "set", "101", "--cores", "2")
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("pct: %v", err)
	}
	if b.text() != text {
		t.Errorf("written:\n%s", b.text())
	}
	b.wantCalls()
}

// What others have done while they were waited for counts.
func TestStartedMeanwhile(t *testing.T) {
	b := newBench(t, "cores: 1\nlock: backup\n", nil, "stopped")
	start := time.Now()
	go func() {
		time.Sleep(300 * time.Millisecond)
		b.file("state", "running")
		b.change("cores: 1\nlock: backup\n", "cores: 2\n")
	}()
	started, err := b.Start(t.Context())
	if started || err != nil || !b.Running || b.Conf.Values["cores"] != "2" {
		t.Errorf("started %t, %v, running %t, %v", started, err, b.Running, b.Conf.Values)
	}
	if waited := b.Since(start).Sub(start); waited < 300*time.Millisecond {
		t.Errorf("the wait ended after %v", waited)
	}
	if now := time.Now(); b.Since(now) != now {
		t.Error("a wait that is over counts for a later change")
	}
	if want := "waiting for container 101, which is locked (backup)"; !slices.Equal(b.logs, []string{want}) {
		t.Errorf("logs %q", b.logs)
	}
	b.wantCalls("status 101")
}

func TestLockThatStays(t *testing.T) {
	b := newBench(t, "cores: 1\nlock: backup\n", nil, "stopped")
	b.patience = 0
	if _, err := b.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "run: pct unlock 101") {
		t.Errorf("error %v", err)
	}
	b.wantCalls()
}

// A restart that has only shut the container down is completed.
func TestRestartThatOnlyStops(t *testing.T) {
	b := newBench(t, "cores: 1\nlxc.group: phx-restart 1\n\n[pve:pending]\nnameserver: 1.1.1.1\n", nil, "running")
	if want := []string{"lxc", "nameserver"}; !slices.Equal(b.RestartRequired(), want) {
		t.Errorf("waiting %q", b.RestartRequired())
	}
	done, err := b.Restart(t.Context())
	if done != "started" || err != nil || !b.Running || strings.Contains(b.text(), "phx-restart") {
		t.Errorf("%q, %v, running %t:\n%s", done, err, b.Running, b.text())
	}
	b.wantCalls("reboot 101 --timeout 60", "status 101", "start 101")
}

// pct resize exits 0 whatever happens.
func TestResizeThatDoesNothing(t *testing.T) {
	b := newBench(t, "rootfs: lab:101/disk,size=8G\n", nil, "stopped")
	err := b.Resize(t.Context(), "rootfs", 9)
	if err == nil || !strings.Contains(err.Error(), "pct resize 101 rootfs 9G exited 0, but the size is still 8G") {
		t.Errorf("error %v", err)
	}
	b.wantCalls("resize 101 rootfs 9G")
}

// A container that is made, and gone at once, was made: what has changed is
// reported.
func TestMadeAndGone(t *testing.T) {
	b := newBench(t, "", nil, "stopped")
	if err := os.Remove(b.host.confPath(101)); err != nil {
		t.Fatal(err)
	}
	b.Conf = nil
	made, err := b.Make(t.Context(), Record{}, nil, "create", "101", "x")
	if !made || err == nil || !strings.Contains(err.Error(), "the container is gone") {
		t.Errorf("made %t, %v", made, err)
	}
}
