package pve

import (
	"path"
	"path/filepath"
	"strings"
)

// Storages returns the directories of Proxmox VE's storages that have one, by
// the storage's name, as storage.cfg gives them. There are none where that
// file cannot be read, as on a machine without Proxmox VE.
func (h *Host) Storages() map[string]string {
	text, err := readIfThere(filepath.Join(h.PVERoot, "storage.cfg"))
	if err != nil {
		return nil
	}
	dirs := map[string]string{}
	name := ""
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2 || line[0] == '#':
		case line[0] != ' ' && line[0] != '\t': // a section: "TYPE: NAME"
			name = fields[1]
			switch strings.TrimSuffix(fields[0], ":") {
			case "nfs", "cifs", "cephfs", "glusterfs":
				dirs[name] = "/mnt/pve/" + name // unless its path says otherwise
			}
		case fields[0] == "path" || fields[0] == "mountpoint":
			dirs[name] = path.Clean(strings.Join(fields[1:], " "))
		}
	}
	return dirs
}
