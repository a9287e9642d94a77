package config

import (
	"path"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

const maxDiskGB = 1 << 20 // 1 PiB: pct has no limit of its own

func volumes(p *parser, e *entry, v gjson.Result) {
	if e.Volumes == nil {
		e.Volumes = []Volume{}
	}
	p.list(v, func(v gjson.Result) {
		var vol Volume
		p.members(v, (*parser).refuse,
			member{"name", "", func(v gjson.Result) { p.str(v) }}, // passed over
			member{"pool", "the storage to allocate it from", func(v gjson.Result) {
				vol.Pool = p.formatted(v, storage)
			}},
			member{"size_gb", "its size, in GiB", func(v gjson.Result) { vol.SizeGB = p.integer(v, 1, maxDiskGB) }},
			member{"mount_point", "its place in the container", func(v gjson.Result) {
				vol.MountPoint = p.containerPath(v, e)
			}},
			member{"read_only", "", p.flag(&vol.ReadOnly)},
			member{"backup", "", p.flag(&vol.Backup)},
			member{"replicate", "", p.flag(&vol.Replicate)},
			member{"quota", "", p.flag(&vol.Quota)},
			member{"acl", "", p.flag(&vol.ACL)},
			member{"keepattrs", "", func(v gjson.Result) {
				p.since(v, sinceKeepAttrs, "keepattrs")
				vol.KeepAttrs = new(p.boolean(v))
			}},
			member{"mountoptions", "", func(v gjson.Result) { vol.Flags = p.mountFlags(v) }},
		)
		if !p.full() {
			e.Volumes = append(e.Volumes, vol)
		}
	})
}

func mountPoints(p *parser, e *entry, v gjson.Result) {
	e.MountPoints = []MountPoint{}
	p.list(v, func(v gjson.Result) {
		var m MountPoint
		host := v
		p.members(v, (*parser).refuse,
			member{"host_path", "the directory on the host", func(v gjson.Result) {
				// pct would take what is before a "=" for the name of a sub-key.
				m.HostPath, host = p.dirPath(v, ",="), v
				m.Directory = strings.HasSuffix(v.Str, "/")
			}},
			member{"container_path", "its place in the container", func(v gjson.Result) {
				m.ContainerPath = p.containerPath(v, e)
			}},
			member{"read_only", "", func(v gjson.Result) { m.ReadOnly = p.boolean(v) }},
			member{"owner_uid", "", func(v gjson.Result) { m.OwnerUID = new(p.integer(v, 0, 65535)) }},
			member{"owner_gid", "", func(v gjson.Result) { m.OwnerGID = new(p.integer(v, 0, 65535)) }},
			member{"replicate", "", p.flag(&m.Replicate)},
			member{"shared", "", p.flag(&m.Shared)},
		)
		if m.HostPath != "" && (m.OwnerUID != nil || m.OwnerGID != nil) {
			if err := p.checkOwner(m.HostPath); err != nil {
				p.failUnder(host.Index, "host_path", "%v", err)
			} else if !p.full() {
				e.owned = append(e.owned, ownedMount{int32(len(e.MountPoints)), int32(host.Index)})
			}
		}
		if !p.full() {
			e.MountPoints = append(e.MountPoints, m)
		}
	})
}

// maxMounts is the number of pct's options mp0 to mp255.
const maxMounts = 256

// containerPath reads a path at which the container gets something mounted.
func (p *parser) containerPath(v gjson.Result, e *entry) string {
	s := p.dirPath(v, ",")
	switch {
	case s == "":
	case len(e.mounts) == maxMounts:
		p.fail(v, "pct has no more than %d mount points, volumes included", maxMounts)
	case slices.Contains(e.mounts, s):
		p.fail(v, "something else is mounted at %s already", s)
	default:
		e.mounts = append(e.mounts, s)
	}
	return s
}

// dirPath reads the path of a directory without any of the refused characters.
// It returns the path without needless slashes.
func (p *parser) dirPath(v gjson.Result, refused string) string {
	s, ok := p.str(v)
	if !ok {
		return ""
	}
	steps := strings.Split(s, "/")
	switch {
	case s[0] != '/':
		p.fail(v, "%q is not an absolute path", s)
	case slices.Contains(steps, "."), slices.Contains(steps, ".."):
		p.fail(v, "%q must not contain /./ or /../", s)
	case strings.ContainsAny(s, refused):
		p.fail(v, "%q must not contain a comma or an equals sign: pct could not take it", s)
	case strings.TrimSpace(s) != s:
		p.fail(v, "%q must not end with a blank", s)
	case path.Clean(s) == "/":
		p.fail(v, "must not be the root directory")
	default:
		return path.Clean(s)
	}
	return ""
}

// mountFlags are pct's mount options, with the version that brought them.
var mountFlags = map[string]string{
	"discard": sinceDiscard, "lazytime": sinceLazytime, "noatime": "", "nodev": "", "noexec": "", "nosuid": "",
}

var mountFlag = format{"a mount option that pct takes: discard, lazytime, noatime, nodev, noexec or nosuid",
	isKeyOf(mountFlags)}

// mountFlags reads a list of mount options.
func (p *parser) mountFlags(v gjson.Result) []string {
	flags := []string{}
	p.list(v, func(v gjson.Result) {
		s := p.known(v, mountFlag, mountFlags)
		if slices.Contains(flags, s) {
			p.fail(v, "%s is named twice", s)
		} else if s != "" {
			flags = append(flags, s)
		}
	})
	return flags
}

func rootOptions(p *parser, e *entry, v gjson.Result) {
	o := &e.RootOptions
	p.members(v, (*parser).refuse,
		member{"acl", "", p.flag(&o.ACL)},
		member{"quota", "", p.flag(&o.Quota)},
		member{"replicate", "", p.flag(&o.Replicate)},
		member{"mountoptions", "", func(v gjson.Result) { o.Flags = p.mountFlags(v) }},
	)
}
