package pve

import (
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// storage is a storage as storage.cfg gives it.
type storage struct {
	kind      string // its type
	dir       string // "" where it has none
	templates string // in dir, where the archives are that containers are created from
}

// storages returns the storages of storage.cfg by name: none where that file
// cannot be read, as on a machine without Proxmox VE.
func (h *Host) storages() map[string]*storage {
	text, err := readIfThere(filepath.Join(h.PVERoot, "storage.cfg"))
	if err != nil {
		return nil
	}
	all := map[string]*storage{}
	current := &storage{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2 || line[0] == '#':
		case line[0] != ' ' && line[0] != '\t': // a section: "TYPE: NAME"
			current = &storage{kind: strings.TrimSuffix(fields[0], ":"), templates: "template/cache"}
			switch current.kind {
			case "nfs", "cifs", "cephfs", "glusterfs":
				current.dir = "/mnt/pve/" + fields[1] // unless its path says otherwise
			}
			all[fields[1]] = current
		case fields[0] == "path" || fields[0] == "mountpoint":
			current.dir = path.Clean(strings.Join(fields[1:], " "))
		case fields[0] == "content-dirs":
			for _, p := range ParseProperties(strings.Join(fields[1:], " ")) {
				if p.Key == "vztmpl" {
					current.templates = p.Value
				}
			}
		}
	}
	return all
}

// Storages returns the directories of Proxmox VE's storages that have one, by
// the storage's name.
func (h *Host) Storages() map[string]string {
	dirs := map[string]string{}
	for name, s := range h.storages() {
		if s.dir != "" {
			dirs[name] = s.dir
		}
	}
	return dirs
}

// LinksClones reports whether a template's clone on the storage shares the disks
// of the template. Of a storage that is not known it is not so: a full clone can
// be made on any.
func (h *Host) LinksClones(name string) bool {
	s := h.storages()[name]
	return s != nil && slices.Contains([]string{"btrfs", "lvmthin", "rbd", "zfspool"}, s.kind)
}

// TakesTemplates reports whether Proxmox may make templates of containers with
// volumes on the storage: it does not on some types.
func (h *Host) TakesTemplates(name string) bool {
	s := h.storages()[name]
	return s == nil || !slices.Contains([]string{"lvm", "iscsi", "iscsidirect", "pbs", "esxi"}, s.kind)
}
