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

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// storage is a storage as storage.cfg gives it.
type storage struct {
	kind      string // its type
	dir       string // "" where it has none
	templates string // in dir, where the archives are that containers are created from
	snippets  string // in dir, where hook scripts are
	content   string // what it may hold, joined by commas; "" where storage.cfg does not say
	disabled  bool
	nodes     []string // of the cluster that have it; nil for all
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
		case len(fields) > 0 && fields[0] == "disable":
			current.disabled = len(fields) == 1 || ParseBool(fields[1])
		case len(fields) < 2 || line[0] == '#':
		case line[0] != ' ' && line[0] != '\t': // a section: "TYPE: NAME"
			kind := strings.TrimSuffix(fields[0], ":")
			current = &storage{kind: kind, templates: "template/cache", snippets: "snippets"}
			switch current.kind {
			case "nfs", "cifs", "cephfs", "glusterfs":
				current.dir = "/mnt/pve/" + fields[1] // unless its path says otherwise
			}
			all[fields[1]] = current
		case fields[0] == "path" || fields[0] == "mountpoint":
			current.dir = path.Clean(strings.Join(fields[1:], " "))
		case fields[0] == "content":
			current.content = strings.Join(fields[1:], "")
		case fields[0] == "nodes":
			current.nodes = ParseList(strings.Join(fields[1:], ","))
		case fields[0] == "content-dirs":
			for _, p := range ParseProperties(strings.Join(fields[1:], " ")) {
				switch p.Key {
				case "vztmpl":
					current.templates = p.Value
				case "snippets":
					current.snippets = p.Value
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

// TakesSnapshots reports whether Proxmox makes snapshots of containers with volumes
// on the storage: a directory has their disks as raw files, which have none. Of one
// that is not known it is taken to be so.
func (h *Host) TakesSnapshots(name string) bool {
	return h.storages()[name] == nil || h.LinksClones(name)
}

// AllocatesAtOnce reports whether a disk on the storage takes all of its room when
// it is made, and not as it is filled.
func (h *Host) AllocatesAtOnce(name string) bool {
	s := h.storages()[name]
	return s != nil && s.kind == "lvm"
}

// CheckStorage returns why Proxmox would not put volumes of containers on a
// storage, nil if it would, or storage.cfg does not say.
func (h *Host) CheckStorage(name string) error {
	if err := h.checkUsable(name); err != nil {
		return err
	}
	s := h.storages()[name]
	if s != nil && s.content != "" && !slices.Contains(strings.Split(s.content, ","), "rootdir") {
		return remedy.Errorf(fmt.Sprintf("choose another one, or let it take them, with: pvesm set %s --content "+
			"rootdir,%s", name, s.content), "the storage %s takes no containers (its content is %s)", name, s.content)
	}
	return nil
}

// checkUsable returns why this host cannot use a storage, nil if it can, or
// storage.cfg does not say.
func (h *Host) checkUsable(name string) error {
	all := h.storages()
	s, node := all[name], h.Node()
	switch {
	case s == nil && len(all) > 0 && name != "local": // which is there always
		return remedy.Errorf("see those of this host with: pvesm status; and correct the configuration",
			"there is no storage %s", name)
	case s == nil:
	case s.disabled:
		return remedy.Errorf(fmt.Sprintf("switch it on with: pvesm set %s --disable 0", name),
			"the storage %s is disabled", name)
	case s.nodes != nil && name != "local" && !slices.Contains(s.nodes, node):
		return remedy.Errorf(fmt.Sprintf("choose another one, or, if this node has it, too, run: "+
			"pvesm set %s --nodes %s", name, strings.Join(append(slices.Clone(s.nodes), node), ",")),
			"the storage %s is there on %s only, and this is %s", name, strings.Join(s.nodes, ", "), node)
	}
	return nil
}

// StorageStatus is what Proxmox says of a storage.
type StorageStatus struct {
	State            string // active, inactive, or disabled
	Total, Available int64  // bytes
}

// StorageStatus asks Proxmox for the storages of this host, by name.
func (h *Host) StorageStatus(ctx context.Context) (map[string]StorageStatus, error) {
	out, err := h.Run(ctx, Command{Argv: []string{cmp.Or(h.PVESM, "pvesm"), "status"}, Reads: true})
	if err != nil {
		return nil, err
	}
	return parseStorageStatus(string(out))
}

// parseStorageStatus reads what pvesm status prints: name, type, state, and in KiB
// what the storage has, what is used and what is available.
func parseStorageStatus(text string) (map[string]StorageStatus, error) {
	all := map[string]StorageStatus{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "Name" {
			continue
		}
		wrong := fmt.Errorf("pvesm status: unexpected line %q", strings.TrimSpace(line))
		if len(fields) != 7 {
			return nil, wrong
		}
		total, err1 := strconv.ParseInt(fields[3], 10, 53)
		available, err2 := strconv.ParseInt(fields[5], 10, 53)
		if err1 != nil || err2 != nil {
			return nil, wrong
		}
		all[fields[0]] = StorageStatus{fields[2], total << 10, available << 10}
	}
	return all, nil
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

// LocatesArchive reports whether storage.cfg says where the archive of a template is.
func (h *Host) LocatesArchive(template string) bool {
	file, _, _ := h.archive(template)
	return file != ""
}

// CheckArchive returns an error if the archive is missing that a container is created
// from, or cannot be looked at.
func (h *Host) CheckArchive(template string) error {
	file, missing, err := h.archive(template)
	switch command := h.downloadCommand(template); {
	case err != nil:
		return fmt.Errorf("template: %w", err)
	case missing && command != nil:
		return remedy.Errorf("let phx download it, with --download (PHX_DOWNLOAD=1), or run: pveam update && "+
			remedy.Quote(command), "the template is missing")
	case missing:
		return remedy.Errorf("put the archive there, or correct the configuration", "the template %s is missing", file)
	}
	if m := archiveRE.FindStringSubmatch(template); m != nil {
		return h.checkUsable(m[1])
	}
	return nil
}

// CheckHookScript returns an error unless a volume such as local:snippets/NAME is a
// hook script that Proxmox takes, or storage.cfg does not say where it is.
func (h *Host) CheckHookScript(volume string) error {
	name, script, _ := strings.Cut(volume, ":snippets/")
	if err := h.checkUsable(name); err != nil {
		return err
	}
	s := h.storages()[name]
	if s == nil || s.dir == "" {
		return nil
	}
	file := filepath.Join(s.dir, s.snippets, script)
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return remedy.Errorf("put it there, or correct the configuration", "the hook script %s is missing", file)
	case err != nil:
		return fmt.Errorf("hook script: %w", err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return remedy.Errorf("run: "+remedy.Quote([]string{"chmod", "+x", file}),
			"the hook script %s is not executable", file)
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
		return fmt.Errorf("%s exited 0, but %s is not there: %s", remedy.Quote(argv), file, whyNot(said))
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
