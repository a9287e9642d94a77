package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/cert"
)

func newRoot(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// Where there is no room for the new file, the old one stays as it is.
func TestNoRoomForTheRoots(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for a mount namespace")
	}
	dir := t.TempDir()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	for _, err := range []error{
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "ssl/phoenix_ca.crt")
	old, other := newRoot(t), newRoot(t)
	if changed, err := writeRoots(path, true, []*x509.Certificate{old}); err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("the file system is not full")
	}
	changed, err := writeRoots(path, true, []*x509.Certificate{other})
	if changed || err == nil || !strings.HasPrefix(err.Error(), path+": ") ||
		!strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("changed %v, error %v", changed, err)
	}
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, cert.Encode(old)) {
		t.Errorf("the old file is gone: %q, %v", have, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if changed, err := writeRoots(path, true, []*x509.Certificate{old}); err != nil || changed {
		t.Errorf("an unchanged file needs room: %v, %v", changed, err)
	}
	os.Remove(fill)
	if changed, err := writeRoots(path, true, []*x509.Certificate{other}); err != nil || !changed {
		t.Errorf("changed %v, %v", changed, err)
	}
}

// What is no file of roots is replaced if it is a file, and else refused.
func TestTargetOfAnotherKind(t *testing.T) {
	root := newRoot(t)
	text := cert.Encode(root)
	for name, tt := range map[string]struct {
		make    func(path string) error
		refused bool
	}{
		"16 MiB of comments": {func(path string) error {
			return os.WriteFile(path, append(bytes.Repeat([]byte("# a comment\n"), 16<<20/12), text...), 0o644)
		}, false},
		"the same length": {func(path string) error {
			return os.WriteFile(path, bytes.Repeat([]byte("x"), len(text)),
				0o644)
		}, false},
		"another mode": {func(path string) error { return os.WriteFile(path, text, 0o600) }, false},
		"a FIFO":       {func(path string) error { return unix.Mkfifo(path, 0o644) }, true},
		"a directory":  {func(path string) error { return os.Mkdir(path, 0o755) }, true},
		"a link":       {func(path string) error { return os.Symlink("elsewhere", path) }, true},
	} {
		path := filepath.Join(t.TempDir(), "phoenix_ca.crt")
		if err := tt.make(path); err != nil {
			t.Fatal(err)
		}
		changed, err := writeRoots(path, false, []*x509.Certificate{root})
		if tt.refused {
			if changed || err == nil || !strings.Contains(err.Error(), "not a regular file: remove it") {
				t.Errorf("%s: changed %v, %v", name, changed, err)
			}
			continue
		}
		have, readErr := os.ReadFile(path)
		info, statErr := os.Stat(path)
		if !changed || err != nil || readErr != nil || !bytes.Equal(have, text) || statErr != nil ||
			info.Mode().Perm() != 0o644 {
			t.Errorf("%s: changed %v, %v; %d bytes", name, changed, err, len(have))
		}
	}
}
