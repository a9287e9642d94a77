package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// The lab's stand-in for pvesm (libpve-storage-perl 9.2), which this program is when it is called
// so: status, and set with the options that say where and for what a storage is.

// pvesmOptions are the options of pvesm set that the lab knows.
var pvesmOptions = []string{"content", "delete", "disable", "nodes"}

func (l *lab) pvesm(args []string) error {
	if len(args) == 0 {
		return die(255, "ERROR: no command specified")
	}
	usage := map[string]string{"status": "pvesm status  [OPTIONS]", "set": "pvesm set <storage> [OPTIONS]"}[args[0]]
	if usage == "" {
		return die(255, "ERROR: 'pvesm %s' is not part of the lab", args[0])
	}
	known := pvesmOptions
	if args[0] == "status" {
		known = []string{"storage"}
	}
	options, words := map[string]string{}, []string{}
	for rest := args[1:]; len(rest) > 0; rest = rest[1:] {
		name, isOption := strings.CutPrefix(rest[0], "--")
		if !isOption {
			words = append(words, rest[0])
			continue
		}
		name, value, given := strings.Cut(name, "=")
		if !slices.Contains(known, name) {
			return die(255, "Unknown option: %s\n400 unable to parse option\n%s", name, usage)
		}
		if !given {
			if len(rest) < 2 {
				return die(255, "Option %s requires an argument\n400 unable to parse option\n%s", name, usage)
			}
			value, rest = rest[1], rest[1:]
		}
		options[name] = value
	}
	switch {
	case args[0] == "status" && len(words) > 0, len(words) > 1:
		return die(255, "400 too many arguments\n%s", usage)
	case args[0] == "status":
		return l.storageStatus(options["storage"])
	case len(words) == 0:
		return die(255, "400 not enough arguments\n%s", usage)
	}
	return l.setStorage(words[0], options)
}

// storageStatus prints the storages of this node, or one of them.
func (l *lab) storageStatus(only string) error {
	all, err := l.storages()
	if err != nil {
		return err
	}
	if only != "" && all[only] == nil {
		return die(255, "storage '%s' does not exist", only)
	}
	var ids []string
	width := 0
	for _, id := range slices.Sorted(maps.Keys(all)) {
		if only == "" && !all[id].on(l.node) || only != "" && id != only {
			continue
		}
		ids = append(ids, id)
		width = max(width, len(id)+1)
	}
	fmt.Fprintf(l.stdout, "%-*s %10s %10s %15s %15s %15s %8s\n", width, "Name", "Type", "Status",
		"Total (KiB)", "Used (KiB)", "Available (KiB)", "%")
	for _, id := range ids {
		s := all[id]
		state, percent := "active", "   0.00%"
		var of syscall.Statfs_t
		if s.disabled {
			state, percent = "disabled", "     N/A"
		} else if err := s.activate(); err != nil {
			fmt.Fprintln(l.stderr, err)
			state = "inactive"
		} else if err := syscall.Statfs(s.path, &of); err != nil {
			state = "inactive"
		}
		block := of.Bsize
		total, available := int64(of.Blocks)*block, int64(of.Bavail)*block
		used := int64(of.Blocks-of.Bfree) * block
		if total > 0 {
			percent = fmt.Sprintf("% 7.2f%%", float64(used)*100/float64(total))
		}
		fmt.Fprintf(l.stdout, "%-*s %10s %10s %15d %15d %15d %s\n", width, id, s.kind, state,
			total>>10, used>>10, available>>10, percent)
	}
	return nil
}

// on reports whether the storage is on a node of the cluster.
func (s *storage) on(node string) bool {
	return s.id == "local" || len(s.nodes) == 0 || slices.Contains(s.nodes, node)
}

// activate makes the storage's directory, unless something is to be mounted there.
func (s *storage) activate() error {
	if !s.mountpoint {
		return os.MkdirAll(s.path, 0o755)
	}
	var here, above syscall.Stat_t
	err := errors.Join(syscall.Stat(s.path, &here), syscall.Stat(filepath.Dir(s.path), &above))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || here.Dev == above.Dev {
		return fmt.Errorf("unable to activate storage '%s' - directory is expected to be a mount point but is not "+
			"mounted: '%s'", s.id, s.path)
	}
	return nil
}

// usable is what Proxmox finds out before it uses a storage.
func (l *lab) usable(s *storage) error {
	switch {
	case s.disabled:
		return die(255, "storage '%s' is disabled", s.id)
	case !s.on(l.node):
		return die(255, "storage '%s' is not available on node '%s'", s.id, l.node)
	}
	if err := s.activate(); err != nil {
		return die(255, "%v", err)
	}
	return nil
}

// setStorage changes options of a storage in storage.cfg.
func (l *lab) setStorage(id string, options map[string]string) error {
	s, err := l.storage(id)
	if err != nil {
		return err
	}
	path := filepath.Join(l.dir, "pve", "storage.cfg")
	text, err := os.ReadFile(path)
	if err != nil {
		return die(255, "%v", err)
	}
	if len(options) == 0 {
		return die(255, "no options specified")
	}
	removed := splitList(options["delete"])
	delete(options, "delete")
	for _, content := range splitList(options["content"]) {
		if !slices.Contains(strings.Fields("rootdir images vztmpl iso backup snippets none import"), content) {
			return die(255, "storage does not support content type '%s'", content)
		}
	}
	if value, ok := options["disable"]; ok && value == "0" {
		delete(options, "disable")
		removed = append(removed, "disable")
	}
	var lines []string
	ours := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		fields := strings.Fields(line)
		if len(fields) > 1 && line[0] != ' ' && line[0] != '\t' {
			ours = fields[0] == s.kind+":" && fields[1] == id
		}
		_, set := options[first(fields)]
		if ours && (set || slices.Contains(removed, first(fields))) {
			continue
		}
		lines = append(lines, line)
		if ours && len(fields) > 1 && line[0] != ' ' && line[0] != '\t' {
			for _, key := range slices.Sorted(maps.Keys(options)) {
				lines = append(lines, strings.TrimRight("\t"+key+" "+options[key], " "))
			}
		}
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o640); err != nil {
		return die(255, "%v", err)
	}
	return nil
}

func first(fields []string) string {
	if len(fields) == 0 {
		return ""
	}
	return fields[0]
}
