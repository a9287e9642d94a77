// Package hostdir is for the directories of the host that containers see
// through their mount points: which of them a container may own, and how they
// are made and given to their owners while a container may be at work in them.
//
// It must not know what a configuration looks like, nor where Proxmox VE keeps
// what: callers name the paths and the places to guard.
package hostdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// An id of -1 leaves an owner or a group as it is, as in chown(2).

// OwnerDiffers reports whether the directory at path, the top of a mount point,
// has another owner or group than these.
func OwnerDiffers(path string, uid, gid int) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return false, fmt.Errorf("owner of a mount point: %w", err)
	}
	return differs(info, uid, gid), nil
}

func differs(info fs.FileInfo, uid, gid int) bool {
	stat := info.Sys().(*syscall.Stat_t)
	return uid != -1 && int(stat.Uid) != uid || gid != -1 && int(stat.Gid) != gid
}

// ChownTree gives the directory at path and all below it this owner and
// group. Symbolic links change their own owner and are not followed, nor does
// it leave the file system of path. A container may be at work in the tree, or
// above path: whatever it replaces meanwhile, nothing outside is reached. What
// has the owner already is not touched. The top comes last, so that
// [OwnerDiffers] holds until all is done.
func ChownTree(path string, uid, gid int) error {
	err := walkOwners(path, uid, gid, func(root *os.Root, name string) error {
		if name == "." {
			return root.Chown(name, uid, gid)
		}
		return root.Lchown(name, uid, gid)
	})
	if err != nil {
		return fmt.Errorf("chown the mount point %s: %w", path, err)
	}
	return nil
}

// CountOwners returns how many files ChownTree would give away.
func CountOwners(path string, uid, gid int) (n int, err error) {
	err = walkOwners(path, uid, gid, func(*os.Root, string) error { n++; return nil })
	if err != nil {
		return 0, fmt.Errorf("chown the mount point %s: %w", path, err)
	}
	return n, nil
}

// walkOwners calls each for what has another owner or group than these.
func walkOwners(path string, uid, gid int, each func(root *os.Root, name string) error) error {
	root, err := openPlain(path)
	if err != nil {
		return err
	}
	defer root.Close()
	top, err := root.Stat(".")
	if err != nil {
		return err
	}
	device := top.Sys().(*syscall.Stat_t).Dev
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if name == "." {
			return err
		}
		var info fs.FileInfo
		if err == nil {
			info, err = root.Lstat(name)
		}
		if err == nil && info.Sys().(*syscall.Stat_t).Dev != device {
			if info.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if err == nil && differs(info, uid, gid) {
			err = each(root, name)
		}
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil
		}
		return err
	})
	if err == nil && differs(top, uid, gid) {
		err = each(root, ".")
	}
	return err
}

// openPlain opens a directory, and refuses a path with a symbolic link in it: a
// container that owns a part of the path could make it lead anywhere.
func openPlain(path string) (*os.Root, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ELOOP):
			return nil, linkError(path)
		case errors.Is(err, unix.ENOTDIR):
			if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
				return nil, linkError(path)
			}
			return nil, fmt.Errorf("%s is not a directory: name the directory itself", path)
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
	}
}

// linkError names the first symbolic link of a path, and what to write instead.
func linkError(path string) error {
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		target, err := os.Readlink(path[:i])
		if err != nil {
			continue
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			real = "the path without it"
		}
		return fmt.Errorf("%s is a symbolic link to %s, and is not followed: write %s as host_path",
			path[:i], target, real)
	}
	return fmt.Errorf("a symbolic link in %s is not followed", path)
}

// Make makes the directory at an absolute path, and those above it,
// with the mode 0755. It follows no symbolic link.
func Make(path string) error {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	defer func() { unix.Close(fd) }()
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		made := false
		var next int
		for {
			next, err = unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if !errors.Is(err, unix.ENOENT) {
				break
			}
			if err = unix.Mkdirat(fd, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
				break
			}
			made = err == nil
		}
		switch {
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return fmt.Errorf("make %s: %w", path, notADirectory(path))
		case err != nil:
			return fmt.Errorf("make %s: %w", path, err)
		}
		unix.Close(fd)
		fd = next
		if made {
			if err := unix.Fchmod(fd, 0o755); err != nil { // whatever the umask
				return fmt.Errorf("make %s: %w", path, err)
			}
		}
	}
	return nil
}

func notADirectory(path string) error {
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		info, err := os.Lstat(path[:i])
		switch {
		case err != nil:
		case info.Mode()&fs.ModeSymlink != 0:
			return linkError(path)
		case !info.IsDir():
			return fmt.Errorf("%s is not a directory", path[:i])
		}
	}
	return fmt.Errorf("a part of the path is not a directory")
}
