package config

import (
	"path"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

const maxDiskGB = 1 << 20 // 1 PiB: pct has no limit of its own

// A volumeObject is the object of a volume of a container.
type volumeObject struct {
	Volume
	e *entry
}

var volumeKeys = []key[volumeObject]{
	{name: "name", value: special(anyText, func(p *parser, _ *volumeObject, v gjson.Result) { p.str(v) }),
		effect: "none: phx passes it over"},
	{name: "pool", need: "the storage to allocate it from",
		value:  text(storage, func(d *volumeObject, s string) { d.Pool = s }),
		effect: "where it is allocated; another one is refused"},
	{name: "size_gb", need: "its size, in GiB",
		value:  whole(1, maxDiskGB, func(d *volumeObject, n int) { d.SizeGB = n }),
		effect: "size in GiB; it can grow"},
	{name: "mount_point", need: "its place in the container",
		value: special(pathForm("absolute path", `^/`, ","), func(p *parser, d *volumeObject, v gjson.Result) {
			d.MountPoint = p.containerPath(v, d.e)
		}), effect: "where the container has it"},
	{name: "read_only", value: truth(func(d *volumeObject, b bool) { d.ReadOnly = &b }),
		effect: "the container cannot write"},
	{name: "backup", value: truth(func(d *volumeObject, b bool) { d.Backup = &b }), effect: "it is in backups"},
	{name: "replicate", value: truth(func(d *volumeObject, b bool) { d.Replicate = &b }),
		effect: "it is in replications; true without"},
	{name: "quota", value: truth(func(d *volumeObject, b bool) { d.Quota = &b }), effect: "quotas of users"},
	{name: "acl", value: truth(func(d *volumeObject, b bool) { d.ACL = &b }), effect: "access control lists"},
	{name: "keepattrs", value: special(boolean, func(p *parser, d *volumeObject, v gjson.Result) {
		p.since(v, sinceKeepAttrs, "keepattrs")
		d.KeepAttrs = new(p.boolean(v))
	}), effect: "it gets owner and permissions of the directory at its mount point"},
	{name: "mountoptions", value: special(
		namesForm("list of `discard`, `lazytime`, `noatime`, `nodev`, `noexec`, `nosuid`", mountFlag),
		func(p *parser, d *volumeObject, v gjson.Result) { d.Flags = p.mountFlags(v) },
	), effect: "all of its mount options"},
}

func volumes(p *parser, e *entry, v gjson.Result) {
	if e.Volumes == nil {
		e.Volumes = []Volume{}
	}
	var d volumeObject
	p.list(v, func(v gjson.Result) {
		d = volumeObject{e: e}
		readObject(p, v, &d, volumeKeys, (*parser).refuse)
		if !p.full() {
			e.Volumes = append(e.Volumes, d.Volume)
		}
	})
}

// A mountObject is the object of a mount point of a container.
type mountObject struct {
	MountPoint
	e    *entry
	host int // the offset of host_path
}

var mountPointKeys = []key[mountObject]{
	{name: "host_path", need: "the directory on the host",
		value: special(pathForm("absolute path without `,` and `=`", `^/`, ",="),
			func(p *parser, m *mountObject, v gjson.Result) {
				// pct would take what is before a "=" for the name of a sub-key.
				m.HostPath, m.host = p.dirPath(v, ",="), v.Index
				m.Directory = strings.HasSuffix(v.Str, "/")
			}), effect: "on the host; a directory that is missing is made"},
	{name: "container_path", need: "its place in the container",
		value: special(pathForm("absolute path without `,`", `^/`, ","),
			func(p *parser, m *mountObject, v gjson.Result) { m.ContainerPath = p.containerPath(v, m.e) }),
		effect: "in the container; there is room for 256 with the volumes"},
	{name: "read_only", value: truth(func(m *mountObject, b bool) { m.ReadOnly = b }), without: false,
		effect: "the container cannot write"},
	{name: "owner_uid", value: whole(0, 65535, func(m *mountObject, n int) { m.OwnerUID = &n }),
		effect: "user in the container who owns all of it; never for a directory of the system"},
	{name: "owner_gid", value: whole(0, 65535, func(m *mountObject, n int) { m.OwnerGID = &n }),
		effect: "the same for the group"},
	{name: "replicate", value: truth(func(m *mountObject, b bool) { m.Replicate = &b }),
		effect: "false lets the container be replicated without it"},
	{name: "shared", value: truth(func(m *mountObject, b bool) { m.Shared = &b }),
		effect: "it is there on all nodes: the container may migrate"},
}

func mountPoints(p *parser, e *entry, v gjson.Result) {
	e.MountPoints = []MountPoint{}
	var m mountObject
	p.list(v, func(v gjson.Result) {
		m = mountObject{e: e, host: v.Index}
		readObject(p, v, &m, mountPointKeys, (*parser).refuse)
		if m.HostPath != "" && (m.OwnerUID != nil || m.OwnerGID != nil) {
			if err := p.checkOwner(m.HostPath); err != nil {
				p.failUnder(m.host, "host_path", "%v", err)
			} else if !p.full() {
				e.owned = append(e.owned, ownedMount{int32(len(e.MountPoints)), int32(m.host)})
			}
		}
		if !p.full() {
			e.MountPoints = append(e.MountPoints, m.MountPoint)
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

// pathForm is the form of what [parser.dirPath] reads: a path that begins as a
// pattern says, without the refused characters, of which ] is none.
func pathForm(words, begin, refused string) form {
	all := []shape{{"pattern": begin}, {"pattern": `[^/]`}, {"pattern": `\S$`}}
	if refused != "" {
		all = append(all, shape{"pattern": `^[^` + refused + `]*$`})
	}
	return form{words, anyText.with(shape{"allOf": all}).shape}.but(`(^|/)\.\.?(/|$)`)
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
	isKeyOf(mountFlags), anyOf("mount option", mountFlags)}

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

var rootKeys = []key[MountOptions]{
	{name: "acl", value: truth(func(o *MountOptions, b bool) { o.ACL = &b }), effect: "access control lists"},
	{name: "quota", value: truth(func(o *MountOptions, b bool) { o.Quota = &b }), effect: "quotas of users"},
	{name: "replicate", value: truth(func(o *MountOptions, b bool) { o.Replicate = &b }),
		effect: "it is in replications; true without"},
	{name: "mountoptions", value: special(namesForm("list, as of volumes", mountFlag),
		func(p *parser, o *MountOptions, v gjson.Result) { o.Flags = p.mountFlags(v) }),
		effect: "all of its mount options"},
}

func rootOptions(p *parser, e *entry, v gjson.Result) {
	readObject(p, v, &e.RootOptions, rootKeys, (*parser).refuse)
}
