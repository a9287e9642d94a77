// Package atomicfile reads files up to a limit and replaces files atomically:
// whoever reads a file sees its old content or its new content, never a part.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"thinkheads.ai/phx/cmd/internal/flock"
)

// Write gives the file at path this content and mode, whatever the umask and
// the mode of an existing file. The new file has its mode before it has any
// content. After Write has returned nil, the new file survives a power failure
// if the file system can sync; after an error or a crash, path holds either the
// old file or the new one.
//
// Temporary files that killed writers of path have left are removed.
//
// It works on Proxmox VE's cluster file system, which has no links and where
// owners and modes cannot be set.
func Write(path string, content []byte, mode fs.FileMode) error {
	return write(path, content, mode, func(*os.File) error { return nil })
}

// WriteOwned is [Write] for a file that belongs to another user and group: it
// does before it has any content.
func WriteOwned(path string, content []byte, mode fs.FileMode, uid, gid int) error {
	return write(path, content, mode, func(f *os.File) error { return f.Chown(uid, gid) })
}

func write(path string, content []byte, mode fs.FileMode, prepare func(*os.File) error) error {
	base := "." + filepath.Base(path)
	removeLeftovers(filepath.Dir(path), func(name string) bool {
		number, ok := strings.CutPrefix(name, base)
		return ok && number != "" && strings.Trim(number, digits) == ""
	})
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
// descriptor is open: removeLeftovers removes only files that are not locked.
// Between making and locking, another writer may have removed it: then pending
// tries again.
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
		err = flock.Try(lock)
		// A process that may read the directory, also one in a container that
		// has it mounted, can hold the lock: the file is written all the same.
		if isLinked(lock) && (!errors.Is(err, unix.EWOULDBLOCK) || try == 10) {
			return f, lock, nil
		}
		unix.Close(lock)
		f.Cleanup()
	}
}

// RemoveLeftovers removes the temporary files that killed writers have left in a
// directory, of files whose names end in suffix, as [Write] does of its own file.
// It is for callers that may have nothing to write. Files that cannot be removed
// stay.
func RemoveLeftovers(dir, suffix string) {
	removeLeftovers(dir, func(name string) bool {
		return strings.HasSuffix(strings.TrimRight(name, digits), suffix) && !strings.HasSuffix(name, suffix)
	})
}

const digits = "0123456789"

// removeLeftovers removes the temporary files in dir whose names isOne is true of:
// renameio's form is a dot, the file's name, and a number.
func removeLeftovers(dir string, isOne func(name string) bool) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") || !isOne(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		name := filepath.Join(dir, e.Name())
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if flock.Try(fd) == nil {
			os.Remove(name)
		}
		unix.Close(fd)
	}
}

func isLinked(fd int) bool {
	var stat unix.Stat_t
	return unix.Fstat(fd, &stat) == nil && stat.Nlink > 0
}

// SyncDirectory flushes the entries of a directory to the disk. A file system
// that cannot do so is no error.
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
