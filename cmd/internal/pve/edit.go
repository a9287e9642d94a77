package pve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/flock"
)

// pveMode is the only mode that Proxmox VE's cluster file system takes for a
// configuration file.
const pveMode = 0o640

// editConf replaces a container's configuration file by what rewrite makes of
// it, if that differs, while it holds the lock with which Proxmox VE keeps its
// own commands from changing the same container. Readers see the old file or
// the new one. A file that is not there is an [fs.ErrNotExist].
//
// The lock is not taken where nothing differs: a task of Proxmox may hold it
// for minutes. rewrite may be called twice.
func (h *Host) editConf(ctx context.Context, ctid int, rewrite func([]byte) []byte) (changed bool, err error) {
	lock := filepath.Join(h.lockDir(), fmt.Sprintf("pve-config-%d.lock", ctid))
	return editFile(h.confPath(ctid), rewrite, os.ReadFile,
		func() (func(), error) { return flock.Acquire(ctx, lock, lockTimeout) })
}

// removeLeftovers removes what a killed run has left beside the files that editConf
// and editFirewall replace. A directory is read once for all containers: to read it
// for each takes longer than all else where there are a thousand.
func (h *Host) removeLeftovers() {
	atomicfile.RemoveLeftovers(filepath.Join(h.PVERoot, "lxc"), ".conf")
	atomicfile.RemoveLeftovers(filepath.Join(h.PVERoot, "firewall"), ".fw")
}

// editFile replaces the file at path, which read reads, by what rewrite makes of
// it; acquire takes its lock.
func editFile(path string, rewrite func([]byte) []byte, read func(string) ([]byte, error),
	acquire func() (func(), error)) (changed bool, err error) {
	old, err := read(path)
	if err != nil {
		return false, fmt.Errorf("edit a configuration file: %w", err)
	}
	if bytes.Equal(rewrite(old), old) {
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
	text := rewrite(old)
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

// A fileLine is a line of a file, with its line end. ours is its index among
// the lines that are to be there, or foreign.
type fileLine struct {
	text string
	ours int
}

const foreign = -1

// arrange returns lines with all the desired ones in the order of desired; no
// two of lines may have the same index, and those that are there keep their
// text. Nothing moves when these are in the right order: each missing one is
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

// Marks are raw lines in which phx keeps what has to change with the
// configuration alone. A rollback and a clone take them along, as they do not
// with notes, and only root can write them. They are made of lxc.group, which
// Proxmox VE and LXC use for nothing here.
const (
	// appliedMark is what scripts have left on the container's disks: the
	// words of the record.
	appliedMark = "applied"
	// restartMark is since when the container has to be restarted, in seconds
	// since 1970, and for which options; without any, for raw lines.
	restartMark = "restart"
)

func markPrefix(name string) string { return "phx-" + name + " " }

// mark returns the value of a mark, "" when there is none.
func (s *Section) mark(name string) string {
	for _, l := range s.Raw {
		if value, ok := strings.CutPrefix(l.Value, markPrefix(name)); ok && l.Key == "lxc.group" {
			return value
		}
	}
	return ""
}

// setMark returns the text of a configuration file with the value of a mark; ""
// removes it. All else stays byte for byte.
func setMark(text []byte, name, value string) []byte {
	head, rest := firstSection(text)
	var lines []string
	for l := range strings.Lines(string(head)) {
		raw, _ := parseRaw(l)
		if raw.Key == "lxc.group" && strings.HasPrefix(raw.Value, markPrefix(name)) {
			if value == "" || raw.Value != markPrefix(name)+value {
				continue
			}
			value = "" // it is there already
		}
		lines = append(lines, l)
	}
	if value != "" {
		end := len(lines) // of what is before the next section
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
