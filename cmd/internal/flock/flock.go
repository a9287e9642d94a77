// Package flock takes the locks of files and directories, as flock(1) does: they
// end with the process that holds them.
package flock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld is the error of a lock that another holder did not release in time.
var ErrHeld = errors.New("held by somebody else")

// Acquire takes the lock of the file at path and waits for it at most for
// timeout; then the error is [ErrHeld]. The lock excludes other processes and
// other calls in this one, until release is called or the process ends.
//
// A missing file and its directory are made. The directory must belong to root
// or to the caller, and neither it nor the file may be a symbolic link:
// /run/lock is writable for everybody, so another user may have made them.
func Acquire(ctx context.Context, path string, timeout time.Duration) (release func(), err error) {
	fd, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return wait(ctx, fd, path, timeout)
}

// AcquireDirectory is [Acquire] for the lock of an existing directory itself,
// which gets no lock file.
func AcquireDirectory(ctx context.Context, path string, timeout time.Duration) (release func(), err error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return wait(ctx, fd, path, timeout)
}

// Try takes the lock of an open file without waiting for it. The error is
// [unix.EWOULDBLOCK] when another open file has it.
func Try(fd int) error {
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	return err
}

// wait waits for the lock of fd, and closes fd when it does not get it.
func wait(ctx context.Context, fd int, path string, timeout time.Duration) (release func(), err error) {
	for deadline := time.Now().Add(timeout); ; {
		err := Try(fd)
		switch {
		case err == nil:
			return sync.OnceFunc(func() { unix.Close(fd) }), nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			unix.Close(fd)
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case time.Now().After(deadline):
			unix.Close(fd)
			return nil, fmt.Errorf("lock %s: %w for %v: find out by whom with: fuser -v %[1]s", path, ErrHeld, timeout)
		}
		select {
		case <-ctx.Done():
			unix.Close(fd)
			return nil, fmt.Errorf("lock %s: %w", path, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// open opens the lock file at path. It returns a bare descriptor, because the
// finalizer of an [os.File] would close it and release the lock.
func open(path string) (int, error) {
	name := filepath.Dir(path)
	if err := os.MkdirAll(name, 0o755); err != nil {
		return 0, err
	}
	dir, err := ignoringEINTR(func() (int, error) {
		return unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		if info, statErr := os.Lstat(name); statErr == nil && !info.IsDir() {
			return 0, fmt.Errorf("%s is not a directory but %s: remove it", name, kind(info))
		}
		return 0, err
	}
	defer unix.Close(dir)
	var stat unix.Stat_t
	if err := unix.Fstat(dir, &stat); err != nil {
		return 0, err
	}
	if stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("the directory %s belongs to user %d and not to root: "+
			"whoever made it could lead the lock elsewhere: remove it", name, stat.Uid)
	}
	fd, err := ignoringEINTR(func() (int, error) {
		const flags = unix.O_RDWR | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
		return unix.Openat(dir, filepath.Base(path), flags, 0o600)
	})
	if errors.Is(err, unix.ELOOP) {
		return 0, errors.New("it is a symbolic link: remove it")
	}
	return fd, err
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func kind(info os.FileInfo) string {
	if info.Mode()&os.ModeSymlink != 0 {
		return "a symbolic link"
	}
	return "a file"
}
