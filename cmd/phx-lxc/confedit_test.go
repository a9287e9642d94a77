package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func appendLine(line string) func([]byte) []byte {
	return func(text []byte) []byte { return append(bytes.Clone(text), line+"\n"...) }
}

func TestEditConf(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	path, lock := filepath.Join(dir, "101.conf"), filepath.Join(dir, "lock", "lxc", "pve-config-101.lock")
	ctx := t.Context()

	if changed, err := editConf(ctx, path, lock, appendLine("x")); changed || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a conf file was made out of nothing: %t, %v", changed, err)
	}
	if changed, err := editClusterFile(ctx, filepath.Join(dir, "none", "1.fw"), lock+".d", bytes.Clone); changed || err != nil {
		t.Errorf("an empty file: %t, %v", changed, err)
	}
	if changed, err := editClusterFile(ctx, path, lock+".d", appendLine("cores: 1")); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if changed, err := editClusterFile(ctx, filepath.Join(dir, "firewall", "1.fw"), lock+".d", appendLine("[RULES]")); !changed || err != nil {
		t.Fatal(changed, err)
	}
	// An unchanged text is not written again.
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := editConf(ctx, path, lock, bytes.Clone); changed || err != nil {
		t.Fatal(changed, err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("an unchanged file was replaced: %v", err)
	}
	// The cluster file system takes no other mode than 0640.
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := editConf(ctx, path, lock, appendLine("memory: 512")); !changed || err != nil {
		t.Fatal(changed, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if text, _ := os.ReadFile(path); string(text) != "cores: 1\nmemory: 512\n" {
		t.Errorf("text %q", text)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 3 {
		t.Errorf("left behind: %v", left)
	}
}

// Nothing that others write meanwhile is lost, as the file is read under the
// lock; a reader sees whole files only.
func TestEditConfAtOnce(t *testing.T) {
	dir := t.TempDir()
	path, lock := filepath.Join(dir, "101.conf"), filepath.Join(dir, "lock")
	line := strings.Repeat("x", 5000)
	if err := os.WriteFile(path, []byte("start\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	const writers, each = 4, 10
	var work sync.WaitGroup
	for range writers {
		work.Go(func() {
			for range each {
				if changed, err := editConf(t.Context(), path, lock, appendLine(line)); !changed || err != nil {
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
		text, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(text, []byte("start\n")) || (len(text)-len("start\n"))%(len(line)+1) != 0 {
			t.Fatalf("a reader saw %d bytes, %v", len(text), err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() != int64(len("start\n")+writers*each*(len(line)+1)) {
		t.Errorf("an edit was lost: %v, %v", info, err)
	}
}

func TestLockHeldByAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	path, lock := filepath.Join(dir, "101.conf"), filepath.Join(dir, "pve-config-101.lock")
	if err := os.WriteFile(path, nil, 0o640); err != nil {
		t.Fatal(err)
	}
	// As pct does: flock(2) on the file.
	holder := exec.Command("flock", lock, "sh", "-c", "echo held; read x")
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Skip(err)
	}
	defer holder.Wait()
	defer stdin.Close()
	if _, err := stdout.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}

	_, err = acquire(t.Context(), lock, 50*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), lock+": still held after 50ms by another pct") || !strings.Contains(err.Error(), "fuser -v "+lock) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if changed, err := editConf(ctx, path, lock, appendLine("x")); changed || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %t, %v", changed, err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		stdin.Close()
	}()
	if changed, err := editConf(t.Context(), path, lock, appendLine("x")); !changed || err != nil {
		t.Errorf("after the lock was released: %t, %v", changed, err)
	}
}

func TestUnifiedDiff(t *testing.T) {
	if d := unifiedDiff("/etc/pve/lxc/1.conf", []byte("a\n"), []byte("a\n")); d != "" {
		t.Errorf("%q", d)
	}
	want := "diff f f\n--- f\n+++ f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
	if d := unifiedDiff("f", []byte("a\nb\n"), []byte("a\nc\n")); d != want {
		t.Errorf("%q", d)
	}
	if d := unifiedDiff("f", nil, []byte("a\n")); !strings.Contains(d, "--- /dev/null\n+++ f\n") || !strings.Contains(d, "+a\n") {
		t.Errorf("%q", d)
	}
}
