package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// storage is one entry of storage.cfg.
type storage struct {
	id, kind, path string
	content        []string
	nodes          []string // that have it; none for all
	disabled       bool
	mountpoint     bool // something is to be mounted at its path
}

// storages reads pve/storage.cfg. Without the file there are the two of the lab's layout.
func (l *lab) storages() (map[string]*storage, error) {
	f, err := os.Open(filepath.Join(l.dir, "pve", "storage.cfg"))
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]*storage{
			"lab": {id: "lab", kind: "btrfs", path: filepath.Join(l.dir, "storage", "lab"),
				content: []string{"rootdir"}},
			"local": {id: "local", kind: "dir", path: filepath.Join(l.dir, "storage", "local"),
				content: []string{"vztmpl"}},
		}, nil
	}
	if err != nil {
		return nil, die(255, "%v", err)
	}
	defer f.Close()
	all := make(map[string]*storage)
	var cur *storage
	in := bufio.NewScanner(f)
	for in.Scan() {
		line := in.Text()
		switch fields := strings.Fields(line); {
		case len(fields) == 0 || strings.HasPrefix(line, "#"):
		case line[0] != ' ' && line[0] != '\t':
			kind, id, ok := strings.Cut(line, ":")
			if !ok {
				return nil, die(255, "%s: bad line: %s", f.Name(), line)
			}
			cur = &storage{id: strings.TrimSpace(id), kind: kind}
			cur.path = filepath.Join(l.dir, "storage", cur.id) // a type without a path has its volumes here, too
			all[cur.id] = cur
		case cur != nil && fields[0] == "path" && len(fields) == 2:
			cur.path = fields[1]
		case cur != nil && fields[0] == "nodes":
			cur.nodes = splitList(strings.Join(fields[1:], ","))
		case cur != nil && fields[0] == "disable":
			cur.disabled = len(fields) == 1 || fields[1] != "0"
		case cur != nil && fields[0] == "is_mountpoint":
			cur.mountpoint = len(fields) > 1 && (fields[1] == "yes" || fields[1] == "1")
		case cur != nil && fields[0] == "content":
			cur.content = splitList(strings.Join(fields[1:], ","))
		}
	}
	if err := in.Err(); err != nil {
		return nil, die(255, "%s: %v", f.Name(), err)
	}
	return all, nil
}

func (l *lab) storage(id string) (*storage, error) {
	all, err := l.storages()
	if err != nil {
		return nil, err
	}
	if all[id] == nil {
		return nil, die(255, "storage '%s' does not exist", id)
	}
	return all[id], nil
}

func (s *storage) holds(content string) bool { return slices.Contains(s.content, content) }

// snapshots reports whether a storage of this type takes snapshots of containers' volumes. One of
// files does not: a container's disk is a raw file.
func (s *storage) snapshots() bool {
	return slices.Contains([]string{"btrfs", "lvmthin", "rbd", "zfspool"}, s.kind)
}

// clones reports whether a volume of this storage can be cloned without being copied.
func (s *storage) clones(template, fromSnapshot bool) bool {
	switch s.kind {
	case "btrfs":
		return true
	case "lvmthin", "rbd":
		return template || fromSnapshot
	case "zfspool":
		return template && !fromSnapshot
	}
	return false
}

// templates reports whether containers with volumes on this storage can become templates.
func (s *storage) templates() bool {
	return !slices.Contains([]string{"lvm", "iscsi", "iscsidirect"}, s.kind)
}

// volume is a volume of a storage. A storage of files names it STORAGE:OWNER/vm-OWNER-disk-N.raw,
// one of block devices STORAGE:vm-OWNER-disk-N, and ZFS STORAGE:subvol-OWNER-disk-N. Of a template it
// is base-… or, of ZFS, basevol-…. The name of a linked clone's has that before it on ZFS and RBD,
// whose clones go on needing it: STORAGE:basevol-900-disk-0/subvol-101-disk-0.
type volume struct {
	*storage
	owner int
	name  string // without .raw
	base  string // that of a template, which it is on top of
}

func (s *storage) files() bool {
	return !slices.Contains([]string{"lvm", "lvmthin", "rbd", "zfspool"}, s.kind)
}

func (v volume) String() string {
	if v.files() {
		return fmt.Sprintf("%s:%d/%s.raw", v.id, v.owner, v.name)
	}
	if v.base != "" {
		return v.id + ":" + v.base + "/" + v.name
	}
	return v.id + ":" + v.name
}

// isBase reports whether it is a template's.
func (v volume) isBase() bool {
	return strings.HasPrefix(v.name, "base-") || strings.HasPrefix(v.name, "basevol-")
}

// onBases reports whether a linked clone goes on needing the volume that it was made of.
func (s *storage) onBases() bool { return s.kind == "zfspool" || s.kind == "rbd" }

// baseFile holds the name of the volume that it is on top of.
func (v volume) baseFile() string { return v.dir() + ".base" }

// inUse reports whether another volume is on top of it.
func (v volume) inUse() (bool, error) {
	found, err := filepath.Glob(filepath.Join(v.path, "images", "*", "*.base"))
	if err != nil {
		return false, workerDie("%v", err)
	}
	for _, f := range found {
		if data, err := os.ReadFile(f); err == nil && string(data) == v.name {
			return true, nil
		}
	}
	return false, nil
}

// baseName is the name of a template's volume: vm-900-disk-0 becomes base-900-disk-0.
func baseName(name string) string {
	if rest, ok := strings.CutPrefix(name, "subvol-"); ok {
		return "basevol-" + rest
	}
	return "base-" + strings.TrimPrefix(name, "vm-")
}

// makeBase makes it a volume of a template.
func (v volume) makeBase() (volume, error) {
	base := v
	base.name = baseName(v.name)
	if v.isBase() {
		return v, workerDie("create_base not possible with base image")
	}
	if err := os.Rename(v.dir(), base.dir()); err != nil {
		return v, workerDie("rename '%s' to '%s' failed - %s", v.dir(), base.dir(), reason(err))
	}
	for _, files := range [][2]string{{v.sizeFile(), base.sizeFile()}, {v.baseFile(), base.baseFile()}} {
		if err := os.Rename(files[0], files[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return v, workerDie("%v", err)
		}
	}
	return base, nil
}

// dir is the directory that is the volume.
func (v volume) dir() string {
	return filepath.Join(v.path, "images", strconv.Itoa(v.owner), v.name)
}

// snapshotDir is the directory that is the volume at a snapshot.
func (v volume) snapshotDir(snap string) string {
	return filepath.Join(v.path, "snapshots", strconv.Itoa(v.owner), snap, v.name)
}

var (
	fileVolumeRE  = regexp.MustCompile(`^(\d+)/([a-z0-9-]+)\.raw$`)
	blockVolumeRE = regexp.MustCompile(`^(?:(base(?:vol)?-\d+-[a-z0-9-]+)/)?` +
		`((?:vm|base|subvol|basevol)-(\d+)-[a-z0-9-]+)$`)
)

// volume finds the volume of a name such as lab:103/vm-103-disk-0.raw.
func (l *lab) volume(id string) (volume, error) {
	sid, name, _ := strings.Cut(id, ":")
	s, err := l.storage(sid)
	if err != nil {
		return volume{}, err
	}
	var number, base string
	if m := fileVolumeRE.FindStringSubmatch(name); m != nil && s.files() {
		number, name = m[1], m[2]
	} else if m := blockVolumeRE.FindStringSubmatch(name); m != nil && !s.files() {
		base, name, number = m[1], m[2], m[3]
	} else {
		return volume{}, die(255, "unable to parse volume filename '%s'", name)
	}
	owner, _ := strconv.Atoi(number)
	return volume{s, owner, name, base}, nil
}

// newVolume makes the directory of the next free volume of a container.
func (s *storage) newVolume(owner int) (volume, error) {
	kind := "vm"
	if s.kind == "zfspool" {
		kind = "subvol"
	}
	for i := 0; ; i++ {
		v := volume{storage: s, owner: owner, name: fmt.Sprintf("%s-%d-disk-%d", kind, owner, i)}
		base := volume{storage: s, owner: owner, name: baseName(v.name)}
		if _, err := os.Stat(base.dir()); err == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(v.dir()), 0o755); err != nil {
			return v, workerDie("%v", err)
		}
		err := os.Mkdir(v.dir(), 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return v, workerDie("%v", err)
		}
		return v, nil
	}
}

// sizeFile holds the size of a volume, which the directory that stands for it does not have.
func (v volume) sizeFile() string { return v.dir() + ".size" }

// activate makes sure that a volume is there, or its copy in a snapshot.
func (v volume) activate(snap string) error {
	dir := v.dir()
	if snap != "" {
		if !v.snapshots() {
			return workerDie("can't snapshot this image format")
		}
		dir = v.snapshotDir(snap)
	}
	if _, err := os.Stat(dir); err != nil {
		return workerDie("volume '%s' does not exist", v)
	}
	return nil
}

// size is that of a volume as a configuration writes it, or "" if it is not known.
func (v volume) size() (string, error) {
	if err := v.activate(""); err != nil {
		return "", err
	}
	data, err := os.ReadFile(v.sizeFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", workerDie("%v", err)
	}
	return string(data), nil
}

func (v volume) setSize(size string) error {
	if err := os.WriteFile(v.sizeFile(), []byte(size), 0o644); err != nil {
		return workerDie("%v", err)
	}
	return nil
}

func (v volume) remove() error {
	err := errors.Join(os.RemoveAll(v.dir()), os.RemoveAll(v.sizeFile()), os.RemoveAll(v.baseFile()))
	os.Remove(filepath.Dir(v.dir())) // once empty
	return err
}

// copyTree copies a directory with everything that tar would keep.
func (l *lab) copyTree(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return workerDie("%v", err)
	}
	if err := os.RemoveAll(to); err != nil {
		return workerDie("%v", err)
	}
	return l.tool("cp", "-a", "--reflink=auto", "--", from, to)
}

// allocate makes the volume that a new disk such as "lab:8" asks for and completes the mount. A
// mount that names an existing volume gets its size, one of a host path stays as it is.
func (l *lab) allocate(m mount, owner int) (v volume, made bool, err error) {
	ask := compiled(`^([^:\s]+):(\d+(?:\.\d+)?)$`).FindStringSubmatch(m.volume())
	if ask == nil {
		if m.kind() == "volume" {
			l.rescan(m)
		}
		return volume{}, false, nil
	}
	s, err := l.storage(ask[1])
	if err != nil {
		return volume{}, false, err
	}
	if err := l.usable(s); err != nil {
		return volume{}, false, err
	}
	gib, _ := strconv.ParseFloat(ask[2], 64)
	if v, err = s.newVolume(owner); err != nil {
		return volume{}, false, err
	}
	m.values["volume"] = v.String()
	m.values["size"] = formatSize(int64(math.Round(gib*1048576)) << 10)
	return v, true, v.setSize(m.values["size"])
}

func (l *lab) rescan(m mount) {
	v, err := l.volume(m.volume())
	size := ""
	if err == nil {
		size, err = v.size()
	}
	if err != nil {
		fmt.Fprintf(l.stderr, "Could not rescan volume size - %v\n", err)
	} else if size != "" {
		m.values["size"] = size
	}
}

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"", 1}}

// parseSize reads 8G, 1.5M or, in bytes, 5.
func parseSize(s string) int64 {
	for _, u := range sizeUnits {
		if number, ok := strings.CutSuffix(s, u.suffix); ok {
			n, _ := strconv.ParseFloat(number, 64)
			return int64(n * float64(u.bytes))
		}
	}
	return 0
}

// formatSize writes a size exactly, in the largest unit that divides it.
func formatSize(n int64) string {
	for _, u := range sizeUnits {
		if n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.suffix
		}
	}
	return "0"
}

// ownVolumes are the volumes that a container has, in use or not, and those that it will have. What
// only a snapshot has is not among them.
func (c *config) ownVolumes() []string {
	ids := append(c.volumes(), c.pending.volumes()...)
	for k, v := range c.values {
		if strings.HasPrefix(k, "unused") {
			ids = append(ids, v)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
