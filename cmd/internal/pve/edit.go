package pve

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/flock"
)

// pveMode is the only mode that Proxmox VE's cluster file system takes for a
// configuration file.
const pveMode = 0o640

// lockTimeout is how long pct, too, waits for the lock of a conf file.
const lockTimeout = 10 * time.Second

// FirewallPath is the place of a container's firewall file.
func (h *Host) FirewallPath(ctid int) string {
	return filepath.Join(h.PVERoot, "firewall", strconv.Itoa(ctid)+".fw")
}

// EditConf replaces a container's configuration file by what edit makes of
// it, if that differs, while it holds the lock with which Proxmox VE keeps its
// own commands from changing the same container. Readers see the old file or
// the new one. A file that is not there is an [fs.ErrNotExist].
//
// The lock is not taken where nothing differs: a task of Proxmox may hold it
// for minutes. edit may be called twice.
func (h *Host) EditConf(ctx context.Context, ctid int, edit func([]byte) []byte) (changed bool, err error) {
	path := h.ConfPath(ctid)
	lock := filepath.Join(cmp.Or(h.PVELock, "/run/lock/lxc"), fmt.Sprintf("pve-config-%d.lock", ctid))
	return editFile(path, edit, os.ReadFile, func() (func(), error) { return flock.Acquire(ctx, lock, lockTimeout) })
}

// EditFirewall is [Host.EditConf] for a container's firewall file, which need
// not be there: edit gets nil then, and nothing is made of an empty result.
func (h *Host) EditFirewall(ctx context.Context, ctid int, edit func([]byte) []byte) (changed bool, err error) {
	path := h.FirewallPath(ctid)
	lock := fmt.Sprintf("firewall-vm-%d", ctid)
	return editFile(path, edit, readIfThere, func() (func(), error) { return h.lockCluster(ctx, lock) })
}

func editFile(path string, edit func([]byte) []byte, read func(string) ([]byte, error), acquire func() (func(), error)) (changed bool, err error) {
	old, err := read(path)
	if err != nil {
		return false, fmt.Errorf("edit a configuration file: %w", err)
	}
	if bytes.Equal(edit(old), old) {
		atomicfile.RemoveLeftovers(path)
		return false, nil
	}
	release, err := acquire()
	if err != nil {
		return false, fmt.Errorf("edit %s: %w", path, err)
	}
	defer release()
	if old, err = read(path); err != nil {
		return false, fmt.Errorf("edit a configuration file: %w", err)
	}
	text := edit(old)
	if bytes.Equal(text, old) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("edit %s: %w", path, err)
	}
	if err := atomicfile.Write(path, text, pveMode); err != nil {
		return false, fmt.Errorf("replace %s: %w", path, err)
	}
	return true, nil
}

// readIfThere returns nil for a file that is not there.
func readIfThere(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

// staleAfter is the age at which a lock of the cluster file system was left by
// somebody who was killed: that file system frees one after two minutes, and
// Proxmox VE's commands give up theirs after one.
var staleAfter = 130 * time.Second

// lockCluster takes a lock of the cluster file system: a directory that only
// one can make (PVE::Cluster's cfs_lock of Proxmox VE 9). It waits until a lock
// that nobody gives back is stale.
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
			return nil, fmt.Errorf("lock %s: held by others for %v, one after the other: wait until they have finished", path, staleAfter+lockTimeout)
		case !said && time.Since(start) > 2*time.Second:
			cmdline.Logf("waiting for %s: the web interface or another phx holds it; the lock of one that was killed is free after two minutes", path)
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", path, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Marks are raw lines in which phx keeps what has to change with the
// configuration alone. A rollback and a clone take them along, as they do not
// with notes, and only root can write them. They are made of lxc.group, which
// Proxmox VE and LXC use for nothing here.
const (
	// AppliedMark is what scripts have left on the container's disks: the
	// words of the record.
	AppliedMark = "applied"
	// RestartMark is since when the container has to be restarted: seconds
	// since 1970.
	RestartMark = "restart"
)

func markPrefix(name string) string { return "phx-" + name + " " }

// Mark returns the value of a mark, "" when there is none.
func (s *Section) Mark(name string) string {
	for _, l := range s.Raw {
		if value, ok := strings.CutPrefix(l.Value, markPrefix(name)); ok && l.Key == "lxc.group" {
			return value
		}
	}
	return ""
}

// SetMark returns the text of a configuration file with the value of a mark; ""
// removes it. All else stays byte for byte.
func SetMark(text []byte, name, value string) []byte {
	head, rest := FirstSection(text)
	var lines []string
	for l := range strings.Lines(string(head)) {
		m := rawLine.FindStringSubmatch(strings.TrimRight(l, "\r\n"))
		if m != nil && m[1] == "lxc.group" && strings.HasPrefix(m[2], markPrefix(name)) {
			if value == "" || m[2] != markPrefix(name)+value {
				continue
			}
			value = "" // it stands there
		}
		lines = append(lines, l)
	}
	if value != "" {
		end := len(lines) // of what stands before the next section
		for end > 0 && strings.TrimSpace(lines[end-1]) == "" {
			end--
		}
		if end > 0 && !strings.HasSuffix(lines[end-1], "\n") {
			lines[end-1] += "\n"
		}
		lines = slices.Insert(lines, end, "lxc.group: "+markPrefix(name)+value+"\n")
	}
	return append([]byte(strings.Join(lines, "")), rest...)
}
