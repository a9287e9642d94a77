package pve

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// booleanKeys are sub-keys of which Proxmox rewrites the value, with what an
// absent one means: "" where that is neither.
var booleanKeys = map[string]string{
	"firewall": "0", "link_down": "0", "host-managed": "0", "ro": "0", "backup": "0", "quota": "0", "shared": "0",
	"keepattrs": "0", "replicate": "1", "acl": "", "deny-write": "0",
	"nesting": "0", "keyctl": "0", "fuse": "0", "mknod": "0", "force_rw_sys": "0",
}

// Merge returns ps with the wanted properties set, those without a value
// removed, and whether that differs from ps as Proxmox understands it.
func (ps Properties) Merge(wanted Properties) (merged Properties, differs bool) {
	merged = slices.Clone(ps)
	for _, p := range wanted {
		switch {
		case sameValue(p.Key, ps.Get(p.Key), p.Value):
			continue
		case p.Value == "":
			merged = slices.DeleteFunc(merged, func(have Property) bool { return have.Key == p.Key })
		default:
			merged.Set(p.Key, p.Value)
		}
		differs = true
	}
	return merged, differs
}

func sameValue(key, have, wanted string) bool {
	switch {
	case have == wanted:
		return true
	case key == "hwaddr":
		return strings.EqualFold(have, wanted)
	case key == "ip6" || key == "gw6":
		return sameAddress(have, wanted)
	case key == "tag" || key == "mtu" || key == "rate":
		return SameNumber(have, wanted)
	case key == "trunks":
		return sameTrunks(have, wanted)
	case key == "mountoptions": // a set
		return slices.Equal(slices.Sorted(strings.SplitSeq(have, ";")), slices.Sorted(strings.SplitSeq(wanted, ";")))
	}
	absent, isBoolean := booleanKeys[key]
	if !isBoolean {
		return false
	}
	have, wanted = cmp.Or(have, absent), cmp.Or(wanted, absent)
	return have != "" && wanted != "" && ParseBool(have) == ParseBool(wanted)
}

// SameTags reports whether two lists of tags are the same for Proxmox, which
// sorts them and writes them in lower case, unless it is told otherwise.
func SameTags(a, b []string) bool {
	set := func(tags []string) []string {
		return slices.Compact(slices.Sorted(strings.SplitSeq(strings.ToLower(strings.Join(tags, ";")), ";")))
	}
	return slices.Equal(set(a), set(b))
}

// SameNumber reports whether two decimal numbers are the same.
func SameNumber(a, b string) bool {
	x, err1 := strconv.ParseFloat(a, 64)
	y, err2 := strconv.ParseFloat(b, 64)
	return err1 == nil && err2 == nil && x == y
}

// ParseList splits an option that is a list, such as nameserver, at any of the
// separators that Proxmox takes.
func ParseList(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(" ,;\x00", r) })
}

// Settings are what one pct create or pct set is to change.
type Settings struct {
	set     []Property // option and value
	removed []Property // option and reason
}

// Set adds an option with its new value.
func (s *Settings) Set(option, value string) { s.set = append(s.set, Property{option, value}) }

// Remove adds an option that is to be removed, and why.
func (s *Settings) Remove(option, reason string) {
	s.removed = append(s.removed, Property{option, reason})
	slices.SortFunc(s.removed, func(a, b Property) int { return strings.Compare(a.Key, b.Key) })
}

// Args returns the arguments for pct create or pct set, none when nothing is to
// be changed.
func (s *Settings) Args() []string {
	var args []string
	for _, p := range s.set {
		args = append(args, "--"+p.Key, p.Value)
	}
	var options []string
	for _, p := range s.removed {
		options = append(options, p.Key)
	}
	if len(options) > 0 {
		args = append(args, "--delete", strings.Join(options, ","))
	}
	return args
}

// Changes returns what is to be changed, for people.
func (s *Settings) Changes() []string {
	var changes []string
	for _, p := range s.set {
		changes = append(changes, p.Key+" "+p.Value)
	}
	for _, p := range s.removed {
		changes = append(changes, fmt.Sprintf("%s removed: %s", p.Key, p.Value))
	}
	return changes
}

// Apply changes conf as pct would, of a container that runs or not.
func (s *Settings) Apply(conf *Conf, running bool) {
	for _, p := range s.set {
		switch {
		case running && waitsForStart(p.Key, conf):
			if conf.Pending == nil {
				conf.Pending = map[string]string{}
			}
			conf.Pending[p.Key] = p.Value
		case netOption.MatchString(p.Key):
			conf.Values[p.Key] = interfaceAsStored(p.Value)
		default:
			conf.Values[p.Key] = p.Value
		}
	}
	for _, p := range s.removed {
		switch {
		case running && (waitsForStart(p.Key, conf) || laterNet.MatchString(p.Key)):
			conf.Deleted = append(conf.Deleted, p.Key)
		default:
			delete(conf.Values, p.Key)
		}
	}
}

// waitsForStart reports whether pct keeps a change of this option, of a running
// container, until the next start (pve-container 6.1). conf has the option's
// present value, if any: a new mount point or device is there at once.
func waitsForStart(option string, conf *Conf) bool {
	switch option {
	case "arch", "features", "nameserver", "ostype", "rootfs", "searchdomain", "timezone":
		return true
	}
	_, exists := conf.Values[option]
	return exists && (mountPointOption.MatchString(option) || deviceOption.MatchString(option))
}

// ChangesMounts reports whether a root disk, volume or mount point that is there
// is to be changed, or one is to be added: Proxmox refuses that of a container
// that is protected.
func (s *Settings) ChangesMounts() bool {
	return slices.ContainsFunc(slices.Concat(s.set, s.removed), func(p Property) bool {
		return p.Key == "rootfs" || mountPointOption.MatchString(p.Key)
	})
}
