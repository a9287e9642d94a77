package hostdir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

func owner(t *testing.T, path string) [2]int {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return [2]int{int(stat.Uid), int(stat.Gid)}
}

func TestChownTree(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may give files away")
	}
	dir := t.TempDir()
	outside, top := filepath.Join(dir, "outside"), filepath.Join(dir, "top")
	for _, d := range []string{outside, filepath.Join(top, "a", "b")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	inside := []string{"", "a", "a/b", "a/b/file", "link", "dangling"}
	for _, f := range []string{filepath.Join(outside, "file"), filepath.Join(top, "a/b/file")} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"link": outside, "dangling": "/none/at/all"} {
		if err := os.Symlink(target, filepath.Join(top, name)); err != nil {
			t.Fatal(err)
		}
	}

	check := func(want [2]int) {
		t.Helper()
		for _, name := range inside {
			if got := owner(t, filepath.Join(top, name)); got != want {
				t.Errorf("%q belongs to %v", name, got)
			}
		}
		for _, path := range []string{outside, filepath.Join(outside, "file")} {
			if got := owner(t, path); got != [2]int{0, 0} {
				t.Errorf("%s belongs to %v: a symbolic link was followed", path, got)
			}
		}
	}
	if differs, err := OwnerDiffers(top, 100033, 100034); err != nil || !differs {
		t.Errorf("differs: %t, %v", differs, err)
	}
	if err := ChownTree(top, 100033, 100034); err != nil {
		t.Fatal(err)
	}
	check([2]int{100033, 100034})
	if differs, err := OwnerDiffers(top, 100033, 100034); err != nil || differs {
		t.Errorf("differs: %t, %v", differs, err)
	}
	if differs, err := OwnerDiffers(top, -1, 7); err != nil || !differs {
		t.Errorf("differs: %t, %v", differs, err)
	}
	if err := ChownTree(top, -1, 7); err != nil {
		t.Fatal(err)
	}
	check([2]int{100033, 7})

	// What is right already keeps its set-user-id bit, which chown would clear.
	program := filepath.Join(top, "a", "b", "file")
	if err := os.Chmod(program, 0o755|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := ChownTree(top, 100033, 7); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(program); err != nil || info.Mode()&fs.ModeSetuid == 0 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	want := "is a symbolic link to " + outside + ", and is not followed: write " + outside + " as host_path"
	if err := ChownTree(filepath.Join(top, "link"), 1, 1); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a symbolic link: %v", err)
	}
	if err := ChownTree(program, 1, 1); err == nil || !strings.Contains(err.Error(), "is not a directory") {
		t.Errorf("a file: %v", err)
	}
	if err := ChownTree(filepath.Join(top, "none"), 1, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := OwnerDiffers(filepath.Join(top, "none"), 1, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	check([2]int{100033, 7})
}

// A container to which a directory above the path belongs could put a link
// there.
func TestNoLinkInTheMiddleOfAPathIsFollowed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may give files away")
	}
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	if err := os.MkdirAll(filepath.Join(outside, "data", "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(dir, "link") + " is a symbolic link to " + outside + ", and is not followed: write " +
		filepath.Join(outside, "data") + " as host_path"
	path := filepath.Join(dir, "link", "data")
	if err := ChownTree(path, 7, 7); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("chown: %v", err)
	}
	if _, err := CountOwners(path, 7, 7); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("count: %v", err)
	}
	if got := owner(t, filepath.Join(outside, "data")); got != [2]int{0, 0} {
		t.Errorf("a link was followed: %v", got)
	}
	if n, err := CountOwners(outside, 7, -1); n != 3 || err != nil {
		t.Errorf("%d would change their owner, %v", n, err)
	}
	want = "link is a symbolic link to " + outside
	if err := Make(filepath.Join(dir, "link", "new")); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("mkdir: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(outside, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link was followed: %v", err)
	}
}

func TestMakeDirectories(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b c")
	for range 2 {
		if err := Make(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{path, filepath.Dir(path)} {
		if info, err := os.Stat(d); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", d, info.Mode(), err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := Make(filepath.Join(dir, "file", "x"))
	if err == nil || !strings.Contains(err.Error(), "file is not a directory") {
		t.Errorf("below a file: %v", err)
	}
}

func TestChownTreeStaysOnItsFileSystem(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may give files away")
	}
	top := t.TempDir()
	mounted := filepath.Join(top, "mounted")
	if err := os.Mkdir(mounted, 0o755); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its mounts
		err := func() error {
			if err := syscall.Unshare(syscall.CLONE_FS | syscall.CLONE_NEWNS); err != nil {
				return err
			}
			if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
				return err
			}
			return syscall.Mount("none", mounted, "tmpfs", 0, "")
		}()
		errs <- err
		if err != nil {
			return
		}
		err = ChownTree(top, 7, 7)
		info, statErr := os.Lstat(mounted)
		if statErr == nil && differs(info, 0, 0) {
			statErr = errors.New("what is mounted below has changed its owner")
		}
		errs <- errors.Join(err, statErr)
	}()
	if err := <-errs; err != nil {
		t.Skip(err)
	}
	if err := <-errs; err != nil {
		t.Error(err)
	}
	if got := owner(t, top); got != [2]int{7, 7} {
		t.Errorf("the top belongs to %v", got)
	}
}
