package main

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cert"
)

// writeRoots brings the file of trusted roots up to date, and reports whether
// it has changed. What it holds is made of the parsed certificates alone.
// shared says that containers see its directory, which must let them.
func writeRoots(path string, shared bool, roots []*x509.Certificate) (changed bool, err error) {
	dir, err := enter(filepath.Dir(path))
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	defer dir.Close()
	if shared {
		if err := openDir(dir, path); err != nil {
			return false, err
		}
	}
	place := filepath.Join(procPath(dir), filepath.Base(path))
	text := cert.Encode(roots...)
	info, err := os.Lstat(place)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, fmt.Errorf("%s: %w", path, err)
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s: not a regular file: remove it, or name another one with --output", path)
	case info.Mode().Perm() == 0o644 && info.Size() == int64(len(text)):
		if have, err := cert.ReadFile(place); err == nil && bytes.Equal(have, text) {
			return false, nil
		}
	}
	if err := atomicfile.Write(place, text, 0o644); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return true, nil
}

// procPath is the path of an open directory, whatever its name leads to by now.
func procPath(dir *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", dir.Fd()) }

// enter opens a directory, and makes what is missing of it, so that others can
// enter it, whatever the umask. It follows no symbolic links but root's and
// the caller's own: a container to which a part of the path belongs could lead
// it anywhere.
func enter(path string) (*os.File, error) {
	defer syscall.Umask(syscall.Umask(0o022))
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	root, err := os.OpenFile("/", flags, 0)
	if err != nil {
		return nil, err
	}
	at, names, links := root, strings.Split(path, "/"), 0
	for len(names) > 0 {
		name := names[0]
		if names = names[1:]; name == "" {
			continue
		}
		place := filepath.Join(at.Name(), name)
		fd, err := unix.Openat(int(at.Fd()), name, flags, 0)
		if errors.Is(err, unix.ENOENT) {
			if err = unix.Mkdirat(int(at.Fd()), name, 0o755); err == nil || errors.Is(err, unix.EEXIST) {
				fd, err = unix.Openat(int(at.Fd()), name, flags, 0)
			}
		}
		if errors.Is(err, unix.EINTR) {
			names = append([]string{name}, names...)
			continue
		}
		if err != nil {
			at.Close()
			return nil, &fs.PathError{Op: "open", Path: place, Err: err}
		}
		next := os.NewFile(uintptr(fd), place)
		info, err := next.Stat()
		if err == nil && info.Mode()&fs.ModeSymlink != 0 {
			var target string
			if target, err = readLink(next, info); err == nil {
				if links++; links > 40 {
					err = &fs.PathError{Op: "open", Path: place, Err: unix.ELOOP}
				}
				names = append(strings.Split(target, "/"), names...)
			}
			next.Close()
			if next = at; err == nil && strings.HasPrefix(target, "/") {
				next, err = os.OpenFile("/", flags, 0)
			}
		} else if err == nil && !info.IsDir() {
			err = &fs.PathError{Op: "open", Path: place, Err: unix.ENOTDIR}
		}
		if next != at {
			at.Close()
		}
		if at = next; err != nil {
			at.Close()
			return nil, err
		}
	}
	return at, nil
}

// readLink returns where an open symbolic link leads, if root or the caller has
// made it.
func readLink(link *os.File, info fs.FileInfo) (string, error) {
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 && int(uid) != os.Geteuid() {
		return "", fmt.Errorf("%s is a symbolic link of user %d, and not followed: remove it", link.Name(), uid)
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(link.Fd()), "", target)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: link.Name(), Err: err}
	}
	return string(target[:n]), nil
}

// openDir lets others enter the directory of path, if path is all that it
// holds: a directory of anything else is not opened because of a certificate.
func openDir(dir *os.File, path string) error {
	info, err := dir.Stat()
	if err != nil || info.Mode().Perm()&0o055 == 0o055 {
		return err
	}
	entries, err := os.ReadDir(procPath(dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			return fmt.Errorf("%[1]s: mode %[2]o: containers cannot enter it: "+
				"chmod 755 %[1]s, or let PHX_CA_FILE lie in another directory", filepath.Dir(path), info.Mode().Perm())
		}
	}
	return os.Chmod(procPath(dir), info.Mode().Perm()|0o755)
}
