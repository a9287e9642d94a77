package pve

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

var (
	mountPointOption = regexp.MustCompile(`^mp\d+$`)
	unusedOption     = regexp.MustCompile(`^unused\d+$`)
	deviceOption     = regexp.MustCompile(`^dev\d+$`)
)

// MountPoints returns the options of the mount points among values, by number.
func MountPoints(values map[string]string) []string { return numbered(values, mountPointOption) }

// Unused returns the options of the volumes that belong to the container and
// are not mounted, by number.
func Unused(values map[string]string) []string { return numbered(values, unusedOption) }

// Devices returns the options of the devices among values, by number.
func Devices(values map[string]string) []string { return numbered(values, deviceOption) }

// DevicePath returns the path of the device that the value of an option has.
func DevicePath(value string) string { return ParseWithDefault(value, "path").Get("") }

func numbered(values map[string]string, form *regexp.Regexp) []string {
	var options []string
	for option := range values {
		if form.MatchString(option) {
			options = append(options, option)
		}
	}
	slices.SortFunc(options, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
	})
	return options
}

// FreeMountPoint returns the first option of a mount point, from mpN on, that
// none of values has.
func FreeMountPoint(n int, values ...map[string]string) string { return freeOption("mp", n, values) }

// FreeDevice returns the first option of a device, from devN on, that values
// does not have.
func FreeDevice(n int, values map[string]string) string {
	return freeOption("dev", n, []map[string]string{values})
}

func freeOption(kind string, n int, values []map[string]string) string {
	for ; ; n++ {
		option := fmt.Sprintf("%s%d", kind, n)
		if !slices.ContainsFunc(values, func(v map[string]string) bool { _, used := v[option]; return used }) {
			return option
		}
	}
}

// MountSource returns what the value of a mount point mounts: a volume, or a
// path of the host.
func MountSource(value string) string {
	first, _, _ := strings.Cut(value, ",")
	return strings.TrimPrefix(first, "volume=")
}

// IsBind reports whether the value of a mount point is a bind mount or a
// device, and not a volume of a storage.
func IsBind(value string) bool { return strings.HasPrefix(MountSource(value), "/") }

// Storage returns the storage of the volume that the value of an option has,
// "" when there is none.
func Storage(value string) string {
	storage, _, ok := strings.Cut(MountSource(value), ":")
	if !ok {
		return ""
	}
	return storage
}

// MountPath returns the path in the container of the value of a mount point.
func MountPath(value string) string { return ParseProperties(value).Get("mp") }

// MountedAt returns the option of what is mounted at a path of the container,
// "" when nothing is.
func MountedAt(values map[string]string, path string) string {
	for _, option := range MountPoints(values) {
		if MountPath(values[option]) == path {
			return option
		}
	}
	return ""
}

// OwnVolumes returns what is destroyed with the container beside its root disk, for
// people: the paths of its volumes with their names, and those that are not mounted.
func (s *Section) OwnVolumes() []string {
	var all []string
	for _, option := range MountPoints(s.Values) {
		if value := s.Values[option]; !IsBind(value) {
			all = append(all, fmt.Sprintf("%s (%s)", MountPath(value), MountSource(value)))
		}
	}
	for _, option := range Unused(s.Values) {
		all = append(all, fmt.Sprintf("%s (%s)", option, MountSource(s.Values[option])))
	}
	return all
}

// BindMount returns the first mount point that mounts a path of the host, ""
// when there is none. Proxmox makes neither a snapshot nor a clone then.
func (s *Section) BindMount() string {
	for _, option := range MountPoints(s.Values) {
		if IsBind(s.Values[option]) {
			return option
		}
	}
	return ""
}

// sources is what is mounted, which decides whether Proxmox makes snapshots.
func (s *Section) sources() string {
	var sources []string
	for _, option := range append(MountPoints(s.Values), "rootfs") {
		sources = append(sources, MountSource(s.Values[option]))
	}
	slices.Sort(sources)
	return strings.Join(sources, "\n")
}

// takesNoSnapshots reports whether a record says that Proxmox makes no snapshot
// of a container with the volumes of s.
func (r Record) takesNoSnapshots(s *Section) bool { return r.Hashes(snapshotsWord).Has(s.sources()) }

// Clone returns the configuration that Proxmox gives to a clone of a snapshot:
// all of it, with another name, address of the network card and, unless storage
// is "", another storage.
func (s *Snapshot) Clone(hostname, storage string) *Conf {
	conf := &Conf{Section: s.Section}
	conf.Values = maps.Clone(s.Values)
	maps.DeleteFunc(conf.Values, func(option, _ string) bool {
		return option == "parent" || option == "snaptime" || option == "lock" || option == "template" ||
			strings.HasPrefix(option, "unused")
	})
	conf.Values["hostname"] = hostname
	for _, option := range append(MountPoints(conf.Values), "rootfs") {
		if _, volume, ok := strings.Cut(conf.Values[option], ":"); ok && storage != "" && !IsBind(conf.Values[option]) {
			conf.Values[option] = storage + ":" + volume
		}
	}
	for _, option := range Nets(conf.Values) {
		net := ParseProperties(conf.Values[option])
		net.Set("hwaddr", "(generated)")
		conf.Values[option] = net.String()
	}
	return conf
}
