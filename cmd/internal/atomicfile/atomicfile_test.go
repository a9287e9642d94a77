package atomicfile

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
)

func TestModeIsThatAskedFor(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := filepath.Join(t.TempDir(), "f")
	for _, mode := range []fs.FileMode{0o644, 0o600, 0o644} {
		if err := Write(path, []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != mode {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, mode)
		}
	}
}

// A reader must never see a part of the file, nor none.
func TestReadersSeeWholeFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	contents := [][]byte{bytes.Repeat([]byte("a"), 100_000), bytes.Repeat([]byte("b"), 50_000)}
	if err := Write(path, contents[0], 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		defer close(done)
		for i := range 200 {
			if err := Write(path, contents[i%2], 0o644); err != nil {
				done <- err
				return
			}
		}
	}()
	for reading := true; reading; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			reading = false
		default:
		}
		got, err := os.ReadFile(path)
		if err != nil || (!bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1])) {
			t.Fatalf("a reader saw %d bytes, %v", len(got), err)
		}
	}
}

func TestFailureLeavesTheOldFileAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.Mkdir(path, 0o755); err != nil { // cannot be replaced by a file
		t.Fatal(err)
	}
	if err := Write(path, []byte("x"), 0o644); err == nil {
		t.Error("a directory was replaced")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 || !entries[0].IsDir() {
		t.Errorf("left behind: %v", entries)
	}
	if err := Write(filepath.Join(dir, "none", "f"), nil, 0o644); err == nil {
		t.Error("wrote into a directory that is not there")
	}
}

// What a writer that was killed has left beside a file goes with the next
// write of that file: nothing that belongs to anybody else does.
func TestLeftoversOfKilledWriters(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "101.conf")
	keep := []string{".101.conf", ".101.confx12", ".101.conf12x", ".1101.conf12", "101.conf12", ".102.conf34"}
	for _, name := range append(keep, ".101.conf12", ".101.conf9223372036854775807") {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, ".101.conf5"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("101.conf12", filepath.Join(dir, ".101.conf6")); err != nil {
		t.Fatal(err)
	}
	keep = append(keep, ".101.conf5", ".101.conf6", "101.conf")
	if err := Write(path, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(dir)
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
	}
	slices.Sort(keep)
	if !slices.Equal(have, keep) {
		t.Errorf("%q, want %q", have, keep)
	}
}

// Writers of one file do not take each other's temporary files for leftovers.
func TestWritersSideBySide(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for range 50 {
				if err := Write(path, []byte("x"), 0o644); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%v", entries)
	}
}

// /etc/pve/lxc is a link to a directory of the node's own.
func TestDirectoryBehindALink(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "nodes/a/lxc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nodes/a/lxc", filepath.Join(dir, "lxc")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nodes/a/lxc/.101.conf7"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "lxc/101.conf"), []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(filepath.Join(dir, "nodes/a/lxc"))
	if len(entries) != 1 || entries[0].Name() != "101.conf" {
		t.Errorf("%v", entries)
	}
}

func TestOwnerIsThatAskedFor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give files away")
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := WriteOwned(path, nil, 0o600, 1234, 567); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 1234 || stat.Gid != 567 || info.Mode() != 0o600 {
		t.Errorf("%d:%d %v", stat.Uid, stat.Gid, info.Mode())
	}
}
