package pve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cmdline"
)

// lockTimeout is how long pct, too, waits for the lock of a conf file.
const lockTimeout = 10 * time.Second

// staleAfter is the age at which a lock of the cluster file system was left by
// a process that was killed: that file system frees one after two minutes, and
// Proxmox VE's commands give up theirs after one.
var staleAfter = 130 * time.Second

// lockCluster takes a lock of the cluster file system: a directory that only
// one can make (PVE::Cluster's cfs_lock of Proxmox VE 9). It waits until a lock
// that is not released is stale.
func (h *Host) lockCluster(ctx context.Context, name string) (release func(), err error) {
	path := filepath.Join(h.PVERoot, "priv/lock", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	start := time.Now()
	var holder fs.FileInfo // the lock that is in the way, and since when
	var since time.Time
	for said := false; ; {
		err := os.Mkdir(path, 0o755)
		if err == nil {
			if said {
				h.begins("")
			}
			return func() { os.Remove(path) }, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// The cluster file system takes this for the wish to have the lock, and
		// frees one that has timed out. Another file system does not.
		os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0))
		if now, err := os.Lstat(path); err == nil && (holder == nil || !os.SameFile(holder, now)) {
			holder, since = now, time.Now()
		}
		switch {
		case holder != nil && time.Since(since) > staleAfter:
			os.Remove(path)
			holder = nil
		case time.Since(start) > staleAfter+lockTimeout:
			return nil, fmt.Errorf("lock %s: held by others for %v, one after the other: wait until they have finished",
				path, staleAfter+lockTimeout)
		case !said && time.Since(start) > 2*time.Second:
			h.waits(cmdline.Logf, "waiting for "+path, ": the web interface or another phx holds it; "+
				"the lock of one that was killed is free after two minutes")
			said = true
		}
		if err := Sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// waits tells people, and whoever follows the work, what is waited for. more is for
// people alone.
func (h *Host) waits(logf Logf, wait, more string) {
	logf("%s%s", wait, more)
	h.begins(wait)
}

// begins tells whoever follows the work what begins: see [Host.Begins].
func (h *Host) begins(wait string) {
	if h.Begins != nil && h.Preview == nil {
		h.Begins(wait)
	}
}

// Sleep waits for d, or for the end of ctx, whose cause it then returns.
func Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// lockInterval is how often a lock, or a command, that is waited for is looked
// at.
const lockInterval = 200 * time.Millisecond

// AwaitLock returns the configuration of a container once Proxmox has no lock
// on it, and whether that had to be waited for. It waits at most for patience,
// and logs what it waits for.
func (h *Host) AwaitLock(ctx context.Context, ctid int, patience time.Duration,
	logf Logf) (conf *Conf, waited bool, err error) {
	deadline := time.Now().Add(patience)
	for ; ; waited = true {
		if conf, err = h.ReadConf(ctid); err != nil {
			return nil, waited, err
		}
		lock := conf.lock()
		switch {
		case lock == "":
			if waited {
				h.begins("")
			}
			return conf, waited, nil
		case time.Now().After(deadline):
			return nil, waited, fmt.Errorf("container %d is locked (%s): "+
				"wait for the task that holds the lock, or, if there is none any more, run: %s",
				ctid, lock, conf.releaseLock(ctid))
		case !waited:
			h.waits(logf, fmt.Sprintf("waiting for container %d, which is locked (%s)", ctid, lock), "")
		}
		if err := Sleep(ctx, lockInterval); err != nil {
			return nil, waited, err
		}
	}
}

// awaitCommands waits, at most for patience, for the end of the commands that
// are at work on a container: a start, say, of a run that was killed. It says
// through logf what it waits for.
func (h *Host) awaitCommands(ctx context.Context, ctid int, patience time.Duration,
	logf Logf) (waited bool, err error) {
	commands, err := h.commands(ctid)
	if err != nil {
		return false, err
	}
	deadline := time.Now().Add(patience)
	for _, c := range commands {
		for said := false; c.runs(); said = true {
			switch {
			case time.Now().After(deadline):
				return true, fmt.Errorf("%s still runs (process %d): wait for its end, or end it, "+
					"by kill -KILL where it ignores SIGTERM, with: kill %d", c.text, c.pid, c.pid)
			case !said:
				h.waits(logf, "waiting for the end of: "+c.text, fmt.Sprintf(" (process %d)", c.pid))
			}
			waited = true
			if err := Sleep(ctx, lockInterval); err != nil {
				return true, err
			}
		}
	}
	if waited {
		h.begins("")
	}
	return waited, nil
}

// lock returns what Proxmox has locked the container for, "" when it has not.
func (s *Section) lock() string { return s.Values["lock"] }

// isReplaced reports whether Proxmox has locked the container for a task after
// which it is another one, or gone.
func (s *Section) isReplaced() bool {
	lock := s.lock()
	return lock == "create" || lock == "destroyed" || lock == "rollback"
}

// releaseLock returns the command that releases the lock of a task that was
// killed, and puts right what such a task leaves behind.
func (c *Conf) releaseLock(ctid int) string {
	unlock := fmt.Sprintf("pct unlock %d", ctid)
	switch c.lock() {
	case "create", "destroyed": // it was never finished, or is half gone
		return fmt.Sprintf("%s && pct destroy %d --destroy-unreferenced-disks 1", unlock, ctid)
	case "mounted":
		return fmt.Sprintf("pct unmount %d", ctid)
	case "rollback": // its disks may be rolled back in part
		var names []string
		for _, s := range c.Snapshots {
			if !s.unfinished() {
				names = append(names, s.Name)
			}
		}
		rollback := fmt.Sprintf("%s && pct rollback %d ", unlock, ctid)
		if len(names) == 1 {
			return rollback + names[0]
		}
		return rollback + "SNAPSHOT, with the one that it was to become again: " + strings.Join(names, ", ")
	}
	for _, s := range c.Snapshots {
		if s.unfinished() {
			unlock += " && " + removeSnapshot(ctid, s.Name)
		}
	}
	return unlock
}

// removeSnapshot returns the command that removes an unfinished snapshot.
func removeSnapshot(ctid int, name string) string {
	return fmt.Sprintf("pct delsnapshot %d %s --force 1", ctid, name)
}
