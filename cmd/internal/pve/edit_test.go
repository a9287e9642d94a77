package pve

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/flock"
)

func appendLine(line string) func([]byte) []byte {
	return func(text []byte) []byte { return append(bytes.Clone(text), line+"\n"...) }
}

// newHost returns a host of its own without any container.
func newHost(t *testing.T) *Host {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "lxc"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Host{PVERoot: dir, PVELock: filepath.Join(dir, "lock")}
}

func (h *Host) write(t *testing.T, ctid int, text string) {
	t.Helper()
	if err := os.WriteFile(h.confPath(ctid), []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestEditConf(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	h := newHost(t)
	ctx := t.Context()
	if changed, err := h.editConf(ctx, 101, appendLine("x")); changed || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a conf file was made out of nothing: %t, %v", changed, err)
	}
	if changed, err := h.editFirewall(ctx, 101, bytes.Clone); changed || err != nil {
		t.Errorf("an empty file: %t, %v", changed, err)
	}
	if changed, err := h.editFirewall(ctx, 101, appendLine("[RULES]")); !changed || err != nil {
		t.Fatal(changed, err)
	}
	// The cluster file system takes no other mode than 0640.
	h.write(t, 101, "cores: 1\n")
	if err := os.Chmod(h.confPath(101), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := h.editConf(ctx, 101, appendLine("memory: 512")); !changed || err != nil {
		t.Fatal(changed, err)
	}
	info, err := os.Stat(h.confPath(101))
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if text, _ := os.ReadFile(h.confPath(101)); string(text) != "cores: 1\nmemory: 512\n" {
		t.Errorf("text %q", text)
	}
	if left, _ := filepath.Glob(filepath.Join(h.PVERoot, "lxc", "*")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(h.PVERoot, "priv/lock", "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A task of Proxmox may hold the lock for minutes: an unchanged run does not
// wait for it.
func TestNothingIsLockedWhereNothingDiffers(t *testing.T) {
	h := newHost(t)
	h.write(t, 101, "cores: 1\n")
	release, err := flock.Acquire(t.Context(), filepath.Join(h.PVELock, "pve-config-101.lock"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if changed, err := h.editConf(ctx, 101, bytes.Clone); changed || err != nil {
		t.Errorf("%t, %v", changed, err)
	}
	if changed, err := h.editConf(ctx, 101, appendLine("x")); changed || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without the lock: %t, %v", changed, err)
	}
}

// What a killed run has left beside the files of containers is removed also where a
// run has nothing to write.
func TestLeftoversOfKilledRuns(t *testing.T) {
	h := newHost(t)
	h.write(t, 101, "cores: 1\n")
	if err := os.Mkdir(filepath.Join(h.PVERoot, "firewall"), 0o755); err != nil {
		t.Fatal(err)
	}
	leftovers := []string{"lxc/.101.conf12", "lxc/.102.conf34", "firewall/.101.fw56"}
	others := []string{"lxc/101.conf", "lxc/101.conf12", "lxc/.101.conf", "lxc/.101.conf.12", "firewall/.101.fwx7"}
	for _, name := range append(leftovers, others...) {
		if err := os.WriteFile(filepath.Join(h.PVERoot, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	preview := *h
	preview.Preview = &Preview{}
	for _, step := range []struct {
		host *Host
		want []string
	}{{&preview, append(leftovers, others...)}, {h, others}} {
		if _, err := step.host.Records(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, name := range append(leftovers, others...) {
			_, err := os.Lstat(filepath.Join(h.PVERoot, name))
			if is, want := err == nil, slices.Contains(step.want, name); is != want {
				t.Errorf("%s is there: %t, want %t", name, is, want)
			}
		}
	}
}

// Nothing that others write meanwhile is lost, as the file is read under the
// lock; a reader sees whole files only.
func TestEditConfAtOnce(t *testing.T) {
	h := newHost(t)
	line := strings.Repeat("x", 5000)
	h.write(t, 101, "start\n")
	const writers, each = 4, 10
	var work sync.WaitGroup
	for range writers {
		work.Go(func() {
			for range each {
				if changed, err := h.editConf(t.Context(), 101, appendLine(line)); !changed || err != nil {
					t.Error(changed, err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		text, err := os.ReadFile(h.confPath(101))
		if err != nil || !bytes.HasPrefix(text, []byte("start\n")) || (len(text)-len("start\n"))%(len(line)+1) != 0 {
			t.Fatalf("a reader saw %d bytes, %v", len(text), err)
		}
	}
	if info, err := os.Stat(h.confPath(101)); err != nil ||
		info.Size() != int64(len("start\n")+writers*each*(len(line)+1)) {
		t.Errorf("an edit was lost: %v, %v", info, err)
	}
}

// The next edit takes the lock of one that was killed, on a file system too
// that frees none, and leaves nothing of it.
func TestLockOfOneThatWasKilled(t *testing.T) {
	defer func(d time.Duration) { staleAfter = d }(staleAfter)
	staleAfter = 300 * time.Millisecond
	h := newHost(t)
	lock := filepath.Join(h.PVERoot, "priv/lock/firewall-vm-101")
	if err := os.MkdirAll(lock, 0o755); err != nil {
		t.Fatal(err)
	}
	if changed, err := h.editFirewall(t.Context(), 101, appendLine("[RULES]")); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if _, err := os.Stat(lock); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock stays: %v", err)
	}
	// Somebody who is alive is waited for.
	if err := os.Mkdir(lock, 0o755); err != nil {
		t.Fatal(err)
	}
	staleAfter = time.Hour
	time.AfterFunc(300*time.Millisecond, func() { os.Remove(lock) })
	if changed, err := h.editFirewall(t.Context(), 101, appendLine("x")); !changed || err != nil {
		t.Fatal(changed, err)
	}
}
