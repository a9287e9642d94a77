package flock

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestHeldByAnotherProcess(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "pve-config-101.lock")
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
	_, err = Acquire(t.Context(), lock, 50*time.Millisecond)
	if !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), "fuser -v "+lock) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Acquire(ctx, lock, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		stdin.Close()
	}()
	release, err := Acquire(t.Context(), lock, time.Minute)
	if err != nil {
		t.Fatalf("after the lock was released: %v", err)
	}
	release()
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	release, err := AcquireDirectory(t.Context(), dir, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AcquireDirectory(t.Context(), dir, 50*time.Millisecond); !errors.Is(err, ErrHeld) {
		t.Errorf("held: %v", err)
	}
	release()
	again, err := AcquireDirectory(t.Context(), dir, time.Second)
	if err != nil {
		t.Fatalf("after the lock was released: %v", err)
	}
	again()
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("the lock has made %v", entries)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := AcquireDirectory(t.Context(), link, time.Second); err == nil {
		t.Error("a symbolic link was followed")
	}
}

// Only root may hold the lock of a file that phx has made.
func TestModeOfANewFile(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	lock := filepath.Join(t.TempDir(), "dir", "lock")
	release, err := Acquire(t.Context(), lock, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if info, err := os.Stat(lock); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// Links that another user made first in a directory that is writable for
// everybody are not followed.
func TestNothingOfSomebodyElseIsFollowed(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	link := filepath.Join(dir, "link")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("made", filepath.Join(target, "lock")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, want string }{
		{filepath.Join(link, "lock"), link + " is not a directory but a symbolic link: remove it"},
		{filepath.Join(target, "lock"), "it is a symbolic link: remove it"},
	} {
		_, err := Acquire(t.Context(), tt.path, time.Second)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(target, "made")); !os.IsNotExist(err) {
		t.Errorf("a link was followed: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root may give a directory away")
	}
	if err := os.Chown(target, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err := Acquire(t.Context(), filepath.Join(target, "other"), time.Second)
	if err == nil || !strings.Contains(err.Error(), "belongs to user 65534 and not to root") {
		t.Errorf("a directory of another user: %v", err)
	}
}
