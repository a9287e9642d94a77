package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/cmdline"
)

// A snapshot is what files are, by path: a hash of the content, or in words why
// there is none. Two are equal exactly when no run could tell them apart.
type snapshot map[string]string

// changedSince returns the sorted paths that are other than they were. One that is
// only in one of the snapshots is not among them: the configuration, which has that
// path in one of them only, is.
func (s snapshot) changedSince(before snapshot) []string {
	var paths []string
	for path, is := range s {
		if was, known := before[path]; known && was != is {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// watchedFiles tells when files may have changed, of whatever way they are
// replaced in: it watches the directory of every component of their paths, and of
// every symbolic link on the way.
type watchedFiles struct {
	paths func() []string // the files, as they are known now

	hints chan struct{} // of capacity 1: something may have changed
	said  map[string]bool

	notify *fsnotify.Watcher // nil where the system has none left

	mu      sync.Mutex
	watched map[string]inode // by path without symbolic links
	names   map[string]bool  // paths that are of interest, in these directories
}

type inode struct{ dev, ino uint64 }

// watchFiles returns the watch of the files that paths names, which is called for
// every look.
func watchFiles(paths func() []string) *watchedFiles {
	f := &watchedFiles{
		paths: paths, hints: make(chan struct{}, 1), said: map[string]bool{}, watched: map[string]inode{},
	}
	var err error
	if f.notify, err = fsnotify.NewWatcher(); err != nil {
		f.notify = nil
		f.fallBack(err)
		return f
	}
	go f.read()
	return f
}

// close ends the watch.
func (f *watchedFiles) close() {
	if f.notify != nil {
		f.notify.Close()
	}
}

// read turns the events of what is watched into hints.
func (f *watchedFiles) read() {
	for {
		select {
		case ev, ok := <-f.notify.Events:
			if !ok {
				return
			}
			f.mu.Lock()
			of := f.names[filepath.Clean(ev.Name)] // in / it begins with two slashes
			f.mu.Unlock()
			if !of {
				continue
			}
		case _, ok := <-f.notify.Errors: // events are lost
			if !ok {
				return
			}
		}
		select {
		case f.hints <- struct{}{}:
		default:
		}
	}
}

// look returns what the files are now. A later change gives a hint, unless poll is
// true: then some of them are where no change is told, and have to be looked at
// again and again.
func (f *watchedFiles) look() (now snapshot, poll bool) {
	paths := f.paths()
	// What changes while this goes on gives a hint, or is found the next time around.
	for range 10 {
		var same bool
		if same, poll = f.follow(paths); same {
			break
		}
	}
	now = make(snapshot, len(paths))
	for _, path := range paths {
		now[path] = contentOf(path)
	}
	return now, poll
}

// follow watches what the paths lead through now. same reports that it has been
// watched already.
func (f *watchedFiles) follow(paths []string) (same, poll bool) {
	names, dirs := map[string]bool{}, map[string]inode{}
	for _, path := range paths {
		trail(path, names, dirs)
	}
	if f.notify == nil {
		return true, true
	}
	f.mu.Lock()
	f.names = names
	f.mu.Unlock()
	same = true
	still := map[string]bool{} // a watch ends by itself with what it is of, and when that is moved
	for _, dir := range f.notify.WatchList() {
		still[dir] = true
	}
	for dir, was := range f.watched {
		if dirs[dir] != was {
			f.notify.Remove(dir) // an error: it is watched no more
			delete(f.watched, dir)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		silent, err := isSilent(dir)
		if silent {
			poll = true
			f.say(fmt.Sprint(dirs[dir].dev), fmt.Sprintf("changes in %s are seen by looking every %v: its file system "+
				"tells of none that other machines make", dir, pollEvery))
		}
		if _, already := f.watched[dir]; already && still[dir] {
			continue
		}
		if err == nil {
			err = f.notify.Add(dir)
		}
		switch {
		case err == nil:
			f.watched[dir] = dirs[dir]
		case !errors.Is(err, fs.ErrNotExist):
			poll = true
			f.fallBack(err)
			continue
		}
		same = false
	}
	return same, poll
}

// fallBack says that the files are looked at because they cannot be watched.
func (f *watchedFiles) fallBack(err error) {
	advice := ""
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EMFILE) {
		advice = ": sysctl fs.inotify.max_user_watches and fs.inotify.max_user_instances set how many there may be"
	}
	f.say("", fmt.Sprintf("changes are seen by looking every %v: watch: %v%s", pollEvery, err, advice))
}

// say says something once.
func (f *watchedFiles) say(about, text string) {
	if !f.said[about] {
		f.said[about] = true
		cmdline.Logf("%s", text)
	}
}

// trail adds to names every path without symbolic links that is a step on the way
// to path, and to dirs the directories in which these are, and the file itself,
// which may have other names.
func trail(path string, names map[string]bool, dirs map[string]inode) {
	path, err := filepath.Abs(path)
	if err != nil {
		return
	}
	at, rest := "/", strings.Split(path[1:], "/")
	for links := 0; len(rest) > 0; {
		step := rest[0]
		rest = rest[1:]
		if step == "" || step == "." {
			continue
		}
		if step == ".." {
			at = filepath.Dir(at)
			continue
		}
		if _, known := dirs[at]; !known {
			info, err := os.Lstat(at)
			if err != nil {
				return
			}
			dirs[at] = inodeOf(info)
		}
		next := filepath.Join(at, step)
		names[next] = true
		info, err := os.Lstat(next)
		switch {
		case err != nil:
			return
		case info.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(next)
			if links++; err != nil || links > maxLinks {
				return
			}
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case info.IsDir():
			at = next
		default:
			if info.Mode().IsRegular() && len(rest) == 0 {
				dirs[next] = inodeOf(info)
			}
			return
		}
	}
}

// maxLinks is how many symbolic links Linux follows.
const maxLinks = 40

func inodeOf(info fs.FileInfo) inode {
	stat := info.Sys().(*syscall.Stat_t)
	return inode{stat.Dev, stat.Ino}
}

// localFileSystems tell of every change: all are made on this machine.
var localFileSystems = []int64{
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC,
	unix.RAMFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, unix.SQUASHFS_MAGIC, 0x2fc12fc1, // ZFS
	0xca451a4e, // bcachefs
}

// isSilent reports whether the file system of path does not tell of every change.
func isSilent(path string) (bool, error) {
	var of unix.Statfs_t
	if err := unix.Statfs(path, &of); err != nil {
		return false, err
	}
	return !slices.Contains(localFileSystems, int64(of.Type)), nil
}

// contentOf returns a hash of what is at path and of whether it may be executed.
// When it was written does not count.
func contentOf(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a named pipe has no writer
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	if !info.Mode().IsRegular() {
		return "not a file"
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%t %s", info.Mode()&0o111 != 0, hex.EncodeToString(hash.Sum(nil)))
}
