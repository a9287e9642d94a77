// Package atomicfile reads and replaces files whole.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Write gives the file at path this content and mode, whatever the umask and
// the mode of a file that is there. Readers see the old file or the new one,
// never a part; a file that is not for others is so from the start. Once Write
// has returned without an error, the new file survives a power failure, where
// the file system can sync; before, it may be either.
//
// What a writer that was killed has left behind beside the file is removed.
//
// It needs no more of a file system than that of Proxmox VE's cluster has: no
// links, and no other owners and modes than its own.
func Write(path string, content []byte, mode fs.FileMode) error {
	return write(path, content, mode, func(*os.File) error { return nil })
}

// WriteOwned is [Write] for a file that belongs to another user and group from
// the start.
func WriteOwned(path string, content []byte, mode fs.FileMode, uid, gid int) error {
	return write(path, content, mode, func(f *os.File) error { return f.Chown(uid, gid) })
}

func write(path string, content []byte, mode fs.FileMode, prepare func(*os.File) error) error {
	RemoveLeftovers(path)
	f, lock, err := pending(path, mode)
	if err != nil {
		return err
	}
	defer unix.Close(lock)
	defer f.Cleanup()
	if err := prepare(f.File); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return SyncDirectory(filepath.Dir(path))
}

// pending makes the temporary file, and locks it for as long as the returned
// descriptor is open: the lock of one whose writer was killed is free. Another
// writer may have taken a file that was not locked yet for such a one, and
// removed it.
//
// [renameio.WriteFile] would keep the mode of the old file.
func pending(path string, mode fs.FileMode) (f *renameio.PendingFile, lock int, err error) {
	for try := 1; ; try++ {
		f, err := renameio.NewPendingFile(path,
			renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(mode), renameio.IgnoreUmask())
		if err != nil {
			return nil, 0, err
		}
		// renameio closes its own descriptor before it renames the file.
		lock, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			f.Cleanup()
			return nil, 0, os.NewSyscallError("dup", err)
		}
		err = flock(lock)
		// Whoever may read the directory can keep it from being locked, a
		// container that sees it, too: the file is written all the same.
		if isLinked(lock) && (!errors.Is(err, unix.EWOULDBLOCK) || try == 10) {
			return f, lock, nil
		}
		unix.Close(lock)
		f.Cleanup()
	}
}

// RemoveLeftovers removes the temporary files that killed writers of path have
// left, as [Write] does: for where there is nothing to write. What cannot be
// removed stays.
func RemoveLeftovers(path string) {
	dir, prefix := filepath.Dir(path), "."+filepath.Base(path)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		// renameio's form: a number behind the name.
		number, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || number == "" || strings.Trim(number, "0123456789") != "" || !e.Type().IsRegular() {
			continue
		}
		name := filepath.Join(dir, e.Name())
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if flock(fd) == nil {
			os.Remove(name)
		}
		unix.Close(fd)
	}
}

func flock(fd int) error {
	for {
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func isLinked(fd int) bool {
	var stat unix.Stat_t
	return unix.Fstat(fd, &stat) == nil && stat.Nlink > 0
}

// SyncDirectory brings the entries of a directory to the disk, where the file
// system can.
func SyncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	return nil
}
