package pve

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/flock"
)

// State is a directory of phx's own, below PVE-ROOT/priv/phx: what only root may
// read.
//
// It lies in Proxmox VE's cluster file system, pmxcfs, which knows plain files,
// directories, rename and flock. There everything below priv is root's, with mode
// 0600 or 0700: chmod and chown to anything else fail, and so do links.
type State struct{ dir string }

// State returns the directory with this name below that of phx, or that of phx
// itself for "". It need not be there.
func (h *Host) State(name string) State { return State{filepath.Join(h.stateDir(), name)} }

const (
	maxState  = 64 << 10    // bytes of a file that is read
	stateWait = time.Minute // for the lock
)

// Path returns the path of a file, for messages.
func (s State) Path(name string) string { return filepath.Join(s.dir, name) }

// Lock makes the directory if it is missing, and waits until nobody else holds its
// lock, for a minute at most. Others wait until release is called.
func (s State) Lock(ctx context.Context) (release func(), err error) {
	if err := s.make(); err != nil {
		return nil, err
	}
	return flock.AcquireDirectory(ctx, s.dir, stateWait)
}

func (s State) make() error { return os.MkdirAll(s.dir, 0o700) }

// Read returns the content of a file. The error is an [io/fs.ErrNotExist] when
// there is none.
func (s State) Read(name string) ([]byte, error) { return atomicfile.Read(s.Path(name), maxState) }

// Write replaces a file, or makes it, and the directory if that is missing.
func (s State) Write(name string, content []byte) error {
	if err := s.make(); err != nil {
		return err
	}
	return atomicfile.Write(s.Path(name), content, 0o600)
}

// List returns the names of the files, sorted.
func (s State) List() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Remove removes files, in this order. One that is missing is no error.
func (s State) Remove(names ...string) error {
	for _, name := range names {
		if err := os.Remove(s.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return atomicfile.SyncDirectory(s.dir)
}
