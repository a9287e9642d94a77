package pve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/remedy"
)

// IsTemplate reports whether the container is a template: it never runs, has no
// snapshots, and cannot be turned back.
func (s *Section) IsTemplate() bool { return s.Values["template"] == "1" }

// IsTemplate reports whether the container is there, and a template.
func (c *Container) IsTemplate() bool { return c.Conf != nil && c.Conf.IsTemplate() }

// baseVolume matches the name of a template's volume in that of one on top of it:
// zfs:basevol-900-disk-0/subvol-101-disk-0, dir:900/base-900-disk-0.raw/101/….
var baseVolume = regexp.MustCompile(`[:/]base(?:vol)?-([0-9]+)-[^/]*/`)

// HasBaseVolumes reports whether the volumes are those of a template: so they are
// where a conversion to one was interrupted, too.
func (s *Section) HasBaseVolumes() bool {
	volume := MountSource(s.Values["rootfs"])
	name := volume[strings.LastIndexAny(volume, ":/")+1:]
	return strings.HasPrefix(name, "base-") || strings.HasPrefix(name, "basevol-")
}

// volumes returns the options of rootfs and all mount points but bind mounts.
func (s *Section) volumes() []string {
	options := slices.DeleteFunc(MountPoints(s.Values), func(o string) bool { return IsBind(s.Values[o]) })
	return append([]string{"rootfs"}, options...)
}

// CheckTemplate returns why Proxmox would make no template of the container, nil
// if it would.
func (c *Container) CheckTemplate() error {
	var all []error
	if mount := c.Conf.BindMount(); mount != "" {
		all = append(all, fmt.Errorf("pct makes no template of a container with a bind mount: take it away with: "+
			"pct set %d --delete %s", c.CTID, mount))
	}
	if len(c.Conf.Snapshots) > 0 {
		var commands []string
		for _, s := range c.Conf.Snapshots {
			commands = append(commands, remedy.Quote([]string{"pct", "delsnapshot", c.ID(), s.Name}))
		}
		all = append(all, fmt.Errorf("pct makes no template of a container with snapshots, and phx deletes none: "+
			"where nothing needs them any more, run: %s", strings.Join(commands, " && ")))
	}
	for _, option := range c.Conf.volumes() {
		if name := Storage(c.Conf.Values[option]); !c.host.TakesTemplates(name) {
			all = append(all, fmt.Errorf("%s is on the storage %s, and pct makes no template on one of its type: "+
				"move it, while the container is stopped, with: pct move-volume %d %s STORAGE",
				option, name, c.CTID, option))
		}
	}
	_, managed, err := c.host.haState(c.CTID)
	if managed && err == nil {
		err = fmt.Errorf("HA manages the container, and a template never runs: take it out there with: "+
			"ha-manager remove ct:%d", c.CTID)
	}
	return errors.Join(append(all, err)...)
}

// ConvertToTemplate makes the container, which is down, a template.
func (c *Container) ConvertToTemplate(ctx context.Context) error {
	if err := c.AwaitUnlocked(ctx); err != nil {
		return err
	}
	// A conversion that was interrupted has renamed the volumes, which cannot be
	// done again, and only the mark is missing.
	args := []string{"template", c.ID()}
	if c.Conf.HasBaseVolumes() {
		args = []string{"set", c.ID(), "--template", "1"}
	}
	_, said, err := c.host.run(ctx, c.host.pctCommand(args...))
	if err != nil {
		return err
	}
	if err := c.Reread(func(conf *Conf) { conf.Values["template"] = "1" }); err != nil {
		return err
	}
	// pct template exits 0 even when it failed.
	if !c.Conf.IsTemplate() {
		return fmt.Errorf("pct template %d exited 0, but it is no template: %s", c.CTID, whyNot(said))
	}
	return nil
}

// LinkedClones returns the containers of the cluster that have disks on top of
// those of a template, or on top of such ones, in ascending order: Proxmox does not
// destroy it before them. On some storages clones have none, though they share the
// template's blocks.
func (h *Host) LinkedClones(ctid int) ([]int, error) {
	on := map[int][]int{} // containers by what they are on top of
	paths, err := h.confPaths()
	if err != nil {
		return nil, fmt.Errorf("look for linked clones: %w", err)
	}
	for id, path := range paths {
		text, err := readIfThere(path)
		if err != nil {
			return nil, fmt.Errorf("look for linked clones: %w", err)
		}
		for _, base := range bases(text) {
			on[base] = append(on[base], id)
		}
	}
	clones := []int{ctid}
	for i := 0; i < len(clones); i++ {
		for _, id := range on[clones[i]] {
			if !slices.Contains(clones, id) {
				clones = append(clones, id)
			}
		}
	}
	clones = clones[1:]
	slices.Sort(clones)
	return clones, nil
}

func joinIDs(ids []int) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = strconv.Itoa(id)
	}
	return strings.Join(words, ", ")
}

// bases returns the containers on top of whose volumes those of a configuration
// file are, used or not, in all of its sections.
func bases(text []byte) []int {
	var all []int
	for line := range strings.Lines(string(text)) {
		name, value, ok := parseValue(line)
		if !ok || name != "rootfs" && !mountPointOption.MatchString(name) && !unusedOption.MatchString(name) {
			continue
		}
		if IsBind(value) {
			continue
		}
		for _, base := range baseVolume.FindAllStringSubmatch(MountSource(value), -1) {
			if id, err := strconv.Atoi(base[1]); err == nil {
				all = append(all, id)
			}
		}
	}
	return all
}

// RawDiffers reports whether [RewriteRaw] would change the raw lines.
func (c *Conf) RawDiffers(wanted []RawLine, written Hashes) bool {
	text := c.unsettable()
	return !bytes.Equal(RewriteRaw(text, wanted, written), text)
}
