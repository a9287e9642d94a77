package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/pve"
)

// awaitUnlocked waits until nobody else is at work on the container: Proxmox
// has no lock on it, and no command of a run that was killed is left. Before
// something is changed it is called, and what others may have changed
// meanwhile is read again.
func (j *job) awaitUnlocked(ctx context.Context) error {
	if j.conf == nil || j.dryRun {
		return nil
	}
	conf, waited, err := j.unlocked(ctx, j.ctid)
	if err == nil && !j.alone {
		var waitedToo bool
		waitedToo, err = j.awaitCommands(ctx)
		if waited = waited || waitedToo; waitedToo && err == nil {
			conf, _, err = j.unlocked(ctx, j.ctid)
		}
		j.alone = err == nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("others have destroyed the container meanwhile: %w", err)
	}
	if err != nil {
		return err
	}
	if err := j.checkMark(conf); err != nil {
		return err
	}
	j.conf = conf
	if waited { // whoever was at work may have started or stopped it
		return j.askState(ctx)
	}
	return nil
}

// checkMark checks that the container still has what this run knows of: a
// rollback takes away what scripts have left on its disks.
func (j *job) checkMark(conf *pve.Conf) error {
	if conf.Mark(pve.AppliedMark) != j.mark {
		return errors.New("others have rolled the container back meanwhile, or edited its configuration: run phoenix again")
	}
	return nil
}

// unlocked returns the configuration of a container once Proxmox has no lock
// on it, and whether that had to be waited for.
func (j *job) unlocked(ctx context.Context, ctid int) (conf *pve.Conf, waited bool, err error) {
	deadline := time.Now().Add(j.lockWait)
	for ; ; waited = true {
		if conf, err = j.host.ReadConf(ctid); err != nil {
			return nil, waited, err
		}
		lock := conf.Values["lock"]
		switch {
		case lock == "":
			return conf, waited, nil
		case time.Now().After(deadline):
			return nil, waited, fmt.Errorf("container %d is locked (%s): wait for the task that holds the lock, or, if there is none any more, run: %s", ctid, lock, releaseLock(ctid, conf))
		case !waited:
			j.logf("waiting for container %d, which is locked (%s)", ctid, lock)
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return nil, waited, err
		}
	}
}

// awaitCommands waits for commands that were at work on the container before
// this job: a start, say, of a run that was killed.
func (j *job) awaitCommands(ctx context.Context) (waited bool, err error) {
	commands, err := j.host.Commands(j.ctid)
	if err != nil {
		return false, err
	}
	deadline := time.Now().Add(j.lockWait)
	for _, c := range commands {
		for said := false; c.Runs(); said = true {
			switch {
			case time.Now().After(deadline):
				return true, fmt.Errorf("%s still runs (process %d): wait for its end, or end it, by kill -KILL where it ignores SIGTERM, with: kill %d", c.Text, c.PID, c.PID)
			case !said:
				j.logf("waiting for the end of: %s (process %d)", c.Text, c.PID)
			}
			waited = true
			if err := sleep(ctx, 200*time.Millisecond); err != nil {
				return true, err
			}
		}
	}
	return waited, nil
}

// awaitEdit is awaitUnlocked where edit would change the file at path.
func (j *job) awaitEdit(ctx context.Context, path string, edit func([]byte) []byte) error {
	if j.dryRun {
		return nil
	}
	text, err := os.ReadFile(path)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case bytes.Equal(edit(text), text):
		return nil
	}
	return j.awaitUnlocked(ctx)
}

// replaces reports whether a lock is of a task after which the container is
// another one, or gone.
func replaces(lock string) bool {
	return lock == "create" || lock == "destroyed" || lock == "rollback"
}

// releaseLock returns the command that releases the lock of a task that was
// killed, and puts right what such a task leaves behind.
func releaseLock(ctid int, conf *pve.Conf) string {
	unlock := fmt.Sprintf("pct unlock %d", ctid)
	switch conf.Values["lock"] {
	case "create", "destroyed": // it was never finished, or is half gone
		return fmt.Sprintf("%s && pct destroy %d --destroy-unreferenced-disks 1", unlock, ctid)
	case "mounted":
		return fmt.Sprintf("pct unmount %d", ctid)
	case "rollback": // its disks may be rolled back in part
		var names []string
		for _, s := range conf.Snapshots {
			if !s.Unfinished() {
				names = append(names, s.Name)
			}
		}
		rollback := fmt.Sprintf("%s && pct rollback %d ", unlock, ctid)
		if len(names) == 1 {
			return rollback + names[0]
		}
		return rollback + "SNAPSHOT, with the one that it was to become again: " + strings.Join(names, ", ")
	}
	for _, s := range conf.Snapshots {
		if s.Unfinished() {
			unlock += " && " + removeSnapshot(ctid, s.Name)
		}
	}
	return unlock
}

// removeSnapshot returns the command that removes an unfinished snapshot.
func removeSnapshot(ctid int, name string) string {
	return fmt.Sprintf("pct delsnapshot %d %s --force 1", ctid, name)
}
