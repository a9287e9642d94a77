package pve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// storage is a storage as storage.cfg gives it.
type storage struct {
	kind      string // its type
	dir       string // "" where it has none
	templates string // in dir, where the archives are that containers are created from
	content   string // what it may hold, joined by commas; "" where storage.cfg does not say
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
		case fields[0] == "content":
			current.content = strings.Join(fields[1:], "")
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

// CheckStorage returns why Proxmox would not put volumes of containers on a
// storage, nil if it would, or storage.cfg does not say.
func (h *Host) CheckStorage(name string) error {
	all := h.storages()
	s := all[name]
	switch {
	case s == nil && len(all) > 0 && name != "local": // which is there always
		return fmt.Errorf("there is no storage %s: see those of this host with: pvesm status; and correct the "+
			"configuration", name)
	case s != nil && s.content != "" && !slices.Contains(strings.Split(s.content, ","), "rootdir"):
		return fmt.Errorf("the storage %s takes no containers (its content is %s): choose another one, or let it take "+
			"them, with: pvesm set %[1]s --content rootdir,%[2]s", name, s.content)
	}
	return nil
}

// archiveRE matches the archive of a template on a storage.
var archiveRE = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9._-]*):vztmpl/([A-Za-z0-9][A-Za-z0-9._+-]*)$`)

// archive looks for the archive that a container is created from, a volume such as
// local:vztmpl/NAME or a path. Where storage.cfg does not say where that volume is,
// file is "", and the archive not missing.
func (h *Host) archive(template string) (file string, missing bool, err error) {
	file = template
	if !strings.HasPrefix(template, "/") {
		m := archiveRE.FindStringSubmatch(template)
		if m == nil {
			return "", false, nil
		}
		s := h.storages()[m[1]]
		if s == nil || s.dir == "" {
			return "", false, nil
		}
		file = filepath.Join(s.dir, s.templates, m[2])
	}
	if _, err = os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return file, true, nil
	}
	return file, false, err
}

// downloadCommand returns the command that fetches an archive from the templates
// that Proxmox offers, whose list is signed and has their checksums; nil for one
// that is on no storage.
func (h *Host) downloadCommand(template string) []string {
	m := archiveRE.FindStringSubmatch(template)
	if m == nil {
		return nil
	}
	return []string{cmp.Or(h.PVEAM, "pveam"), "download", m[1], m[2]}
}

// LacksArchive reports whether the archive of a template is missing that
// [Host.Download] may fetch.
func (h *Host) LacksArchive(template string) bool {
	_, missing, _ := h.archive(template)
	return missing && h.downloadCommand(template) != nil
}

// CheckArchive returns an error if the archive is missing that a container is created
// from, or cannot be looked at.
func (h *Host) CheckArchive(template string) error {
	file, missing, err := h.archive(template)
	switch command := h.downloadCommand(template); {
	case err != nil:
		return fmt.Errorf("template: %w", err)
	case missing && command != nil:
		return fmt.Errorf("the template is missing: let phx download it, with --download (PHX_DOWNLOAD=1), or run: "+
			"pveam update && %s", Quote(command))
	case missing:
		return fmt.Errorf("the template %s is missing", file)
	}
	return nil
}

// Download fetches an archive that is missing.
func (h *Host) Download(ctx context.Context, template string) error {
	argv := h.downloadCommand(template)
	_, said, err := h.run(ctx, Command{Argv: argv})
	if err != nil || h.Preview != nil {
		return err
	}
	// It exits 0 even when the task has failed.
	if file, missing, _ := h.archive(template); missing {
		return fmt.Errorf("%s exited 0, but %s is not there: %s", Quote(argv), file, whyNot(said))
	}
	return nil
}

// replicationJob matches the first line of a job in replication.cfg: its guest and
// its number.
var replicationJob = regexp.MustCompile(`^\S+:\s*([0-9]+)-([0-9]+)\s*$`)

// replication returns a job that replicates the container, "" for none.
func (h *Host) replication(ctid int) (job string, err error) {
	text, err := readIfThere(filepath.Join(h.PVERoot, "replication.cfg"))
	if err != nil {
		return "", fmt.Errorf("read the jobs of replication: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if m := replicationJob.FindStringSubmatch(line); m != nil && m[1] == strconv.Itoa(ctid) {
			return m[1] + "-" + m[2], nil
		}
	}
	return "", nil
}

// whyNot is what a command has said that did nothing, and exited 0 nevertheless.
func whyNot(said []byte) string {
	return cmp.Or(strings.TrimSpace(string(said)), "see Proxmox's task log")
}
