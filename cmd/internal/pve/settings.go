package pve

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// booleanKeys are sub-keys of which Proxmox rewrites the value.
var booleanKeys = []string{
	"firewall", "link_down", "host-managed", "ro", "backup", "nesting", "keyctl", "fuse", "mknod", "force_rw_sys",
}

// Merge returns ps with the wanted properties set, and whether that differs
// from ps as Proxmox understands it.
func (ps Properties) Merge(wanted Properties) (merged Properties, differs bool) {
	merged = slices.Clone(ps)
	for _, p := range wanted {
		if !sameValue(p.Key, ps.Get(p.Key), p.Value) {
			merged.Set(p.Key, p.Value)
			differs = true
		}
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
		return sameNumber(have, wanted)
	case key == "trunks":
		return sameTrunks(have, wanted)
	case slices.Contains(booleanKeys, key):
		// An absent boolean and a false one are the same.
		return ParseBool(have) == ParseBool(wanted)
	}
	return false
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
		case netName.MatchString(p.Key):
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
// present value, if any: a new mount point is mounted at once.
func waitsForStart(option string, conf *Conf) bool {
	_, exists := conf.Values[option]
	return option == "features" || option == "nameserver" || option == "searchdomain" ||
		mountPointOption.MatchString(option) && exists
}

// laterNet matches the interfaces that pct takes out of a running container at its
// next start only: it does not know their numbers as such (pve-container 6.1).
var laterNet = regexp.MustCompile(`^net\d\d+$`)
