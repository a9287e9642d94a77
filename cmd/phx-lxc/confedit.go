package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/atomicfile"
)

// pveMode is the only mode that Proxmox VE's cluster file system takes for a
// configuration file.
const pveMode = 0o640

// lockTimeout is how long pct, too, waits for the lock of a conf file.
const lockTimeout = 10 * time.Second

// editConf replaces the file at path by what edit makes of it, if that
// differs, while it holds the lock, which is the file with which Proxmox VE
// keeps its own commands from changing the same container. Readers see the
// old file or the new one. A file that is not there is an [fs.ErrNotExist].
func editConf(ctx context.Context, path, lock string, edit func([]byte) []byte) (changed bool, err error) {
	release, err := acquire(ctx, lock, lockTimeout)
	if err != nil {
		return false, fmt.Errorf("edit %s: %w", path, err)
	}
	defer release()
	old, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("edit a configuration file: %w", err)
	}
	return replace(path, old, edit(old))
}

// editClusterFile is editConf for a file that need not be there and that
// Proxmox VE guards cluster-wide, such as the firewall's. edit gets nil when
// there is none, and nothing is made of an empty result.
func editClusterFile(ctx context.Context, path, lock string, edit func([]byte) []byte) (changed bool, err error) {
	release, err := acquireCluster(ctx, lock, lockTimeout)
	if err != nil {
		return false, fmt.Errorf("edit %s: %w", path, err)
	}
	defer release()
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("edit a configuration file: %w", err)
	}
	text := edit(old)
	if len(text) > 0 {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return false, fmt.Errorf("edit %s: %w", path, err)
		}
	}
	return replace(path, old, text)
}

func replace(path string, old, text []byte) (changed bool, err error) {
	if bytes.Equal(old, text) {
		return false, nil
	}
	if err := atomicfile.Write(path, text, pveMode); err != nil {
		return false, fmt.Errorf("replace %s: %w", path, err)
	}
	return true, nil
}

// acquireCluster takes a lock of the cluster file system: a directory that
// only one can make (PVE::Cluster's cfs_lock of Proxmox VE 9).
func acquireCluster(ctx context.Context, path string, timeout time.Duration) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(timeout); ; {
		err := os.Mkdir(path, 0o755)
		switch {
		case err == nil:
			return func() { os.Remove(path) }, nil
		case !errors.Is(err, fs.ErrExist):
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case time.Now().After(deadline):
			return nil, fmt.Errorf("lock %s: still held after %v by the web interface or another phx: wait until it has finished; the lock of one that was killed is free after two minutes", path, timeout)
		}
		// The cluster file system takes this for the wish to have the lock, and
		// frees one that has timed out.
		os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0))
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// acquire takes the lock of a file, which it makes if it is missing. The lock
// holds against other processes and within this one.
func acquire(ctx context.Context, path string, timeout time.Duration) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(timeout); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case time.Now().After(deadline):
			f.Close()
			return nil, fmt.Errorf("lock %s: still held after %v by another pct, the web interface, a backup or another phx: wait until it has finished, or find it by: fuser -v %[1]s", path, timeout)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// unifiedDiff returns how two texts of the file at path differ, "" when they
// do not. A nil text is that of a file that is not there.
func unifiedDiff(path string, old, new []byte) string {
	name := func(text []byte) string {
		if text == nil {
			return os.DevNull
		}
		return path
	}
	return string(diff.Diff(name(old), old, name(new), new))
}

// A fileLine is a line of a file, with its line end. ours is its index among
// the lines that are to be there, or foreign.
type fileLine struct {
	text string
	ours int
}

const foreign = -1

// arrange returns lines with all the desired ones in the order of desired; no
// two of lines may have the same index, and those that are there keep their
// text. Nothing moves when these stand in the right order: each missing one is
// put behind the one before it. Otherwise they become a group at the place of
// the first. If there is none, that place is before lines[none]. Foreign lines
// keep their order.
func arrange(lines []fileLine, desired []string, none int) []fileLine {
	first, last, ordered := -1, -1, true
	group := make([]fileLine, len(desired))
	present := make([]bool, len(desired))
	for i, text := range desired {
		group[i] = fileLine{text, i}
	}
	for i, l := range lines {
		if l.ours == foreign {
			continue
		}
		if first < 0 {
			first = i
		}
		ordered = ordered && l.ours > last
		last = l.ours
		group[l.ours], present[l.ours] = l, true
	}
	if first < 0 {
		return slices.Insert(lines, none, group...)
	}

	var arranged []fileLine
	for i, l := range lines {
		if l.ours == foreign {
			arranged = append(arranged, l)
			continue
		}
		from, to := l.ours, l.ours+1
		if i == first {
			from = 0
		}
		for to < len(group) && !present[to] {
			to++
		}
		switch {
		case ordered:
			arranged = append(arranged, group[from:to]...)
		case i == first:
			arranged = append(arranged, group...)
		}
	}
	return arranged
}

// joinLines returns the text of lines. One without a line end gets it, unless
// it is the last.
func joinLines(lines []fileLine) []byte {
	var b strings.Builder
	for i, l := range lines {
		b.WriteString(l.text)
		if i < len(lines)-1 && !strings.HasSuffix(l.text, "\n") {
			b.WriteByte('\n')
		}
	}
	return []byte(b.String())
}

// shortHash is what the record keeps of a line that phx has written.
func shortHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:3])
}

func shortHashes(texts []string) string {
	hashes := make([]string, len(texts))
	for i, t := range texts {
		hashes[i] = shortHash(t)
	}
	return strings.Join(hashes, ",")
}

// parseHashes reads a list of hashes of the record.
func parseHashes(list string) map[string]bool {
	hashes := map[string]bool{}
	for h := range strings.SplitSeq(list, ",") {
		if h != "" {
			hashes[h] = true
		}
	}
	return hashes
}
