package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// mountOptions are the options of a root disk, a volume or a mount point that the
// configuration gives. One without a value is to be absent.
func mountOptions(o config.MountOptions, readOnly *bool) pve.Properties {
	var ps pve.Properties
	for _, flag := range []struct {
		key   string
		value *bool
	}{
		{"ro", readOnly}, {"acl", o.ACL}, {"backup", o.Backup}, {"keepattrs", o.KeepAttrs}, {"quota", o.Quota},
		{"replicate", o.Replicate}, {"shared", o.Shared},
	} {
		if flag.value != nil {
			ps.Set(flag.key, pve.FormatBool(*flag.value))
		}
	}
	if o.Flags != nil {
		ps.Set("mountoptions", strings.Join(o.Flags, ";"))
	}
	return ps
}

// newDisk is the value of an option for a disk that is to be allocated.
func newDisk(storage string, sizeGB int, options ...pve.Property) string {
	ps := pve.Properties{{Value: fmt.Sprintf("%s:%d", storage, sizeGB)}}
	ps, _ = ps.Merge(options)
	return ps.String()
}

// mergeMount sets the options of a root disk or a volume that is there. A value
// that waits for the next start keeps the size that the disk has now.
func mergeMount(s *pve.Settings, conf *pve.Conf, option string, wanted pve.Properties) {
	if len(wanted) == 0 {
		return
	}
	have := pve.ParseProperties(conf.Next()[option])
	if size := pve.ParseProperties(conf.Values[option]).Get("size"); size != "" {
		wanted = append(wanted, pve.Property{Key: "size", Value: size})
	}
	if value, differs := have.Merge(wanted); differs {
		s.Set(option, value.String())
	}
}

// addMountPoints adds the mount points that differ from those of conf at the next
// start. They are known by their path in the container: their numbers mean
// nothing. written are the hashes of the paths of bind mounts that phx has set.
func addMountPoints(s *pve.Settings, c *config.Container, conf *pve.Conf, written pve.Hashes) {
	next := conf.Next()
	byPath := map[string]string{}
	for _, option := range pve.MountPoints(next) {
		path := pve.MountPath(next[option])
		first, twice := byPath[path]
		switch {
		case !twice:
			byPath[path] = option
		case pve.MountSource(next[first]) == pve.MountSource(next[option]):
			s.Remove(option, fmt.Sprintf("%s is mounted by %s already", path, first))
		}
	}
	n := 0
	option := func(path string) string {
		if have := byPath[path]; have != "" {
			return have
		}
		free := pve.FreeMountPoint(n, next)
		n, _ = strconv.Atoi(strings.TrimPrefix(free, "mp"))
		n++
		return free
	}
	wanted := map[string]bool{}
	for _, m := range c.MountPoints {
		wanted[m.ContainerPath] = true
		o := option(m.ContainerPath)
		have := pve.ParseWithDefault(next[o], "volume")
		value, differs := have.Merge(append(pve.Properties{
			{Key: "", Value: m.HostPath}, {Key: "mp", Value: m.ContainerPath},
		}, mountOptions(m.MountOptions, &m.ReadOnly)...))
		if differs {
			s.Set(o, value.String())
		}
	}
	for _, v := range c.Volumes {
		wanted[v.MountPoint] = true
		options := mountOptions(v.MountOptions, v.ReadOnly)
		if have := byPath[v.MountPoint]; have != "" {
			mergeMount(s, conf, have, options)
		} else {
			mount := pve.Property{Key: "mp", Value: v.MountPoint}
			s.Set(option(v.MountPoint), newDisk(v.Pool, v.SizeGB, append(pve.Properties{mount}, options...)...))
		}
	}
	for path, o := range byPath {
		if pve.IsBind(next[o]) && written.Has(path) && !wanted[path] {
			s.Remove(o, path+" is not in the configuration any more")
		}
	}
}

// mountHashes are the hashes of the paths of all configured bind mounts.
func mountHashes(c *config.Container) string {
	var paths []string
	for _, m := range c.MountPoints {
		paths = append(paths, m.ContainerPath)
	}
	return pve.HashList(paths)
}

// volumeHashes are the hashes of the paths of all configured volumes that are
// there.
func volumeHashes(c *config.Container, conf *pve.Conf) string {
	if conf == nil {
		return ""
	}
	var paths []string
	for _, v := range c.Volumes {
		if pve.MountedAt(conf.Next(), v.MountPoint) != "" {
			paths = append(paths, v.MountPoint)
		}
	}
	return pve.HashList(paths)
}

// disk is a volume of a container, with its present and its configured size
// in GiB.
type disk struct {
	option     string
	have, want int
}

// disks returns the root disk and the configured volumes that exist. A
// directory has no size and is left out.
func disks(c *config.Container, conf *pve.Conf) []disk {
	next := conf.Next()
	var all []disk
	add := func(option string, want int) {
		// What waits for the next start may have the size of before.
		size := pve.ParseProperties(cmp.Or(conf.Values[option], next[option])).Get("size")
		if have, err := pve.Gigabytes(size); err == nil && have > 0 {
			all = append(all, disk{option, have, want})
		}
	}
	add("rootfs", c.StorageSizeGB)
	for _, v := range c.Volumes {
		if option := pve.MountedAt(next, v.MountPoint); option != "" {
			add(option, v.SizeGB)
		}
	}
	return all
}

// refuseMountPoints refuses mount points that are others than the configured
// ones, or would hide or replace data.
func refuseMountPoints(c *config.Container, conf *pve.Conf, allocated pve.Hashes,
	refuse func(wayOut, format string, args ...any)) {
	next := conf.Next()
	byPath := map[string]string{}
	for _, option := range pve.MountPoints(next) {
		path := pve.MountPath(next[option])
		first := byPath[path]
		switch {
		case first == "":
			byPath[path] = option
		case pve.MountSource(next[first]) != pve.MountSource(next[option]):
			refuse(fmt.Sprintf("remove the wrong one with: pct set %d --delete mpN", c.CTID),
				"%s and %s are both mounted at %s, the latter over the former", first, option, path)
		}
	}
	for _, v := range c.Volumes {
		option := byPath[v.MountPoint]
		storage := pve.Storage(next[option])
		switch {
		case option == "":
			if reason, wayOut := lostVolume(c, conf, v, allocated); reason != "" {
				refuse(wayOut, "%s", reason)
			}
		case pve.IsBind(next[option]):
			refuse("remove one of them", "%s is a bind mount (%s) and should be a volume", v.MountPoint, option)
		case storage != v.Pool:
			refuse(fmt.Sprintf("move it, while the container is stopped, with: pct move-volume %d %s %s",
				c.CTID, option, v.Pool),
				"%s (%s) is on the storage %s and should be on %s", option, v.MountPoint, storage, v.Pool)
		}
	}
	for _, m := range c.MountPoints {
		if option := byPath[m.ContainerPath]; option != "" && !pve.IsBind(next[option]) {
			refuse("remove one of them", "%s is a volume (%s) and should be a bind mount of %s: its data would vanish",
				m.ContainerPath, option, m.HostPath)
		}
	}
}

// lostVolume returns the reason why a volume that is not mounted is not
// allocated: it has been there, or may have been, and its data would seem to
// be lost; and the way out. "" when it is new. allocated are the hashes of the
// paths of volumes that have been there.
func lostVolume(c *config.Container, conf *pve.Conf, v config.Volume, allocated pve.Hashes) (reason, wayOut string) {
	if option := pve.MountedAt(conf.Values, v.MountPoint); option != "" && !pve.IsBind(conf.Values[option]) {
		return fmt.Sprintf("the volume at %s (%s) is removed at the next start, and a new one would be empty",
			v.MountPoint, option), fmt.Sprintf("keep it with: pct set %d --revert %s", c.CTID, option)
	}
	unused := pve.Unused(conf.Values)
	wasThere := allocated.Has(v.MountPoint)
	if !wasThere && len(unused) == 0 {
		return "", ""
	}
	free := pve.FreeMountPoint(0, conf.Values, conf.Pending)
	attach := func(volume string) string {
		return remedy.Quote([]string{"pct", "set", strconv.Itoa(c.CTID), "--" + free, volume + ",mp=" + v.MountPoint})
	}
	reason = fmt.Sprintf("the volume at %s is not mounted any more, and a new one would be empty", v.MountPoint)
	if !wasThere {
		reason = fmt.Sprintf("%s may be the place of a volume that is not mounted any more, "+
			"and a new one would be empty", v.MountPoint)
	}
	if len(unused) == 0 {
		wayOut = fmt.Sprintf("if pvesm list %s --vmid %d still shows it, mount it with: %s",
			v.Pool, c.CTID, attach("VOLUME"))
	} else {
		var ways []string
		for _, option := range unused {
			ways = append(ways, fmt.Sprintf("%s (%s)", attach(pve.MountSource(conf.Values[option])), option))
		}
		wayOut = "mount it again with: " + strings.Join(ways, " or: ")
	}
	return reason, wayOut + "; for a new, empty one run: " + attach(fmt.Sprintf("%s:%d", v.Pool, v.SizeGB))
}
