package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// setting is an option of pct create and pct set, and the value it should
// have.
type setting struct{ option, value string }

// difference is what one pct set has to change.
type difference struct {
	settings []setting
	deletes  []string // options to remove, and why
	reasons  map[string]string
}

// args are the arguments for pct create or pct set, none when nothing differs.
func (d *difference) args() []string {
	var args []string
	for _, s := range d.settings {
		args = append(args, "--"+s.option, s.value)
	}
	if len(d.deletes) > 0 {
		args = append(args, "--delete", strings.Join(d.deletes, ","))
	}
	return args
}

// changes says what differs, for people.
func (d *difference) changes() []string {
	var changes []string
	for _, s := range d.settings {
		changes = append(changes, s.option+" "+s.value)
	}
	for _, option := range d.deletes {
		changes = append(changes, fmt.Sprintf("%s removed: %s", option, d.reasons[option]))
	}
	return changes
}

// waitsForStart reports whether pct keeps a change of this option, of a running
// container, until the next start (pve-container 6.1). conf has the option's
// present value, if any: a new mount point is mounted at once.
func waitsForStart(option string, conf *pve.Conf) bool {
	_, exists := conf.Values[option]
	return option == "features" || option == "nameserver" || isMountPoint(option) && exists
}

// expect changes conf as pct would, of a container that runs or not.
func (d *difference) expect(conf *pve.Conf, running bool) {
	for _, s := range d.settings {
		switch {
		case running && waitsForStart(s.option, conf):
			if conf.Pending == nil {
				conf.Pending = map[string]string{}
			}
			conf.Pending[s.option] = s.value
		case s.option == "net0":
			conf.Values[s.option] = asStored(s.value)
		default:
			conf.Values[s.option] = s.value
		}
	}
	for _, option := range d.deletes {
		switch {
		case running && waitsForStart(option, conf):
			conf.Deleted = append(conf.Deleted, option)
		default:
			delete(conf.Values, option)
		}
	}
}

// asStored is a network interface as pct prints it again: the name, the other
// keys in order, and the type (pve-container 6.1).
func asStored(value string) string {
	ps := pve.ParseProperties(value)
	ps.Set("type", "veth")
	key := func(p pve.Property) string {
		if p.Key == "name" {
			return "" // before all others
		}
		return p.Key
	}
	slices.SortFunc(ps, func(a, b pve.Property) int { return strings.Compare(key(a), key(b)) })
	return ps.String()
}

// Words of the record for what phx writes beside scripts. No feature and no
// script can have such a name.
const (
	rawWord      = "+lxc"      // hashes of raw lines
	firewallWord = "+firewall" // hashes of rules, "none" for a file without: phx leads the firewall
	mountsWord   = "+mounts"   // hashes of the paths of bind mounts
	volumesWord  = "+volumes"  // hashes of the paths of volumes that have been there
	profileWord  = "+apparmor" // hash of the AppArmor profile's file; of two, one is about to be written

	formerRestartWord = "+restart" // what is a mark now
)

// wantedFirewall is the firewall that a container should have, nil if phx does
// not manage it. One that phx has set up and that is not in the configuration
// any more is switched off: without its rules, but on, it would cut the
// container off.
func wantedFirewall(c *config.Container, record pve.Record) *config.Firewall {
	if c.Firewall == nil && record[firewallWord] != "" {
		return &config.Firewall{}
	}
	return c.Firewall
}

// wanted returns how conf differs from the configuration.
func (j *job) wanted(conf *pve.Conf) *difference {
	return differences(j.c, conf, j.firewall(), parseHashes(j.written[mountsWord]))
}

// wantedRecord is the record once all is written that phx writes beside pct's
// options.
func (j *job) wantedRecord() pve.Record {
	after := maps.Clone(j.record)
	rules := ""
	if j.c.Firewall != nil && !j.firewallWaits {
		if rules = firewallHashes(j.c.Firewall); rules == "" {
			rules = "none"
		}
	}
	for _, w := range []struct{ name, hashes string }{
		{rawWord, rawHashes(wantedRaw(j.asMade()))},
		{firewallWord, rules},
		{mountsWord, mountHashes(j.c)},
		{profileWord, j.profileHash},
	} {
		if w.hashes == "" {
			delete(after, w.name)
		} else {
			after[w.name] = w.hashes
		}
	}
	delete(after, formerRestartWord)
	// Once it has been there, a volume is never allocated again.
	after.Unite(volumesWord, volumeHashes(j.c, j.conf))
	return after
}

// differences returns the settings of a container that differ from what conf
// will be after the next start, in a fixed order. Values are compared as
// Proxmox understands them: it reorders sub-keys, adds its own, and rewrites
// booleans. What conf has and the configuration does not mention is kept.
//
// fw is what the firewall should be, nil where it stays as it is; written are
// the hashes of the paths of bind mounts that phx has set.
func differences(c *config.Container, conf *pve.Conf, fw *config.Firewall, written map[string]bool) *difference {
	d := &difference{reasons: map[string]string{}}
	next := conf.Next()
	set := func(option, value string) { d.settings = append(d.settings, setting{option, value}) }
	want := func(option, value string) {
		if next[option] != value {
			set(option, value)
		}
	}
	merge := func(option string, wanted pve.Properties) {
		if value, differs := overlay(pve.ParseProperties(next[option]), wanted); differs {
			set(option, value.String())
		}
	}

	want("hostname", c.Name)
	want("memory", strconv.Itoa(c.MemoryMB))
	if c.SwapMB != nil {
		want("swap", strconv.Itoa(*c.SwapMB))
	}
	want("cores", strconv.Itoa(c.Cores))
	if c.StartAtBoot != nil && pve.ParseBool(next["onboot"]) != *c.StartAtBoot {
		set("onboot", boolean(*c.StartAtBoot))
	}
	merge("startup", startup(c))
	net := pve.ParseProperties(next["net0"])
	if c.Network.DHCP { // which brings the gateway along
		net = slices.DeleteFunc(net, func(p pve.Property) bool { return p.Key == "gw" })
	}
	if value, _ := overlay(net, network(c, fw)); value.String() != next["net0"] {
		set("net0", value.String())
	}
	if servers := c.Network.Nameservers; len(servers) > 0 {
		words := make([]string, len(servers))
		for i, s := range servers {
			words[i] = s.String()
		}
		if !slices.Equal(strings.FieldsFunc(next["nameserver"], isListSeparator), words) {
			set("nameserver", strings.Join(words, " "))
		}
	}
	var features pve.Properties
	for _, o := range c.PctOptions {
		features = append(features, pve.ParseProperties(o)...)
	}
	merge("features", features)
	mountPoints(c, next, written, d)
	return d
}

// isListSeparator tells the characters by which Proxmox separates the
// elements of a list.
func isListSeparator(r rune) bool { return strings.ContainsRune(" ,;\x00", r) }

// overlay returns have with the wanted properties set, and whether that
// differs from have.
func overlay(have, wanted pve.Properties) (value pve.Properties, differs bool) {
	value = slices.Clone(have)
	for _, p := range wanted {
		if !sameValue(p.Key, have.Get(p.Key), p.Value) {
			value.Set(p.Key, p.Value)
			differs = true
		}
	}
	return value, differs
}

// booleanKeys are sub-keys of which Proxmox rewrites the value.
var booleanKeys = []string{"firewall", "link_down", "ro", "backup", "nesting", "keyctl", "fuse", "mknod", "force_rw_sys"}

func sameValue(key, have, wanted string) bool {
	switch {
	case have == wanted:
		return true
	case key == "hwaddr":
		return strings.EqualFold(have, wanted)
	case slices.Contains(booleanKeys, key):
		// An absent boolean and a false one are the same.
		return pve.ParseBool(have) == pve.ParseBool(wanted)
	}
	return false
}

// startup is the order and delay of a container at the host's boot.
func startup(c *config.Container) pve.Properties {
	var ps pve.Properties
	if c.BootOrder != nil {
		ps.Set("order", strconv.Itoa(*c.BootOrder))
	}
	if c.BootDelay != nil {
		ps.Set("up", strconv.Itoa(*c.BootDelay))
		ps.Set("down", strconv.Itoa(*c.BootDelay))
	}
	return ps
}

func network(c *config.Container, fw *config.Firewall) pve.Properties {
	ps := pve.Properties{{Key: "name", Value: c.Network.Name}, {Key: "bridge", Value: c.Network.Bridge}}
	if c.MAC != "" {
		ps.Set("hwaddr", c.MAC)
	}
	if c.Network.DHCP {
		ps.Set("ip", "dhcp")
	} else {
		ps.Set("ip", c.Network.IP.String())
	}
	if c.Network.Gateway.IsValid() {
		ps.Set("gw", c.Network.Gateway.String())
	}
	if fw != nil {
		ps.Set("firewall", boolean(fw.Enabled))
	}
	return ps
}

var mountPointOption = regexp.MustCompile(`^mp\d+$`)

var unusedOption = regexp.MustCompile(`^unused\d+$`)

func isMountPoint(option string) bool { return mountPointOption.MatchString(option) }

// mountPoints adds the mount points that differ. They are known by their path
// in the container: their numbers mean nothing. written are the hashes of the
// paths of bind mounts that phx has set.
func mountPoints(c *config.Container, next map[string]string, written map[string]bool, d *difference) {
	byPath := map[string]string{}
	for _, option := range mountOptions(next) {
		path := pve.ParseProperties(next[option]).Get("mp")
		if first, twice := byPath[path]; twice {
			if source(next[first]) == source(next[option]) {
				d.remove(option, fmt.Sprintf("%s is mounted by %s already", path, first))
			}
			continue
		}
		byPath[path] = option
	}
	index := 0
	option := func(path string) string {
		if have := byPath[path]; have != "" {
			return have
		}
		for ; ; index++ {
			free := fmt.Sprintf("mp%d", index)
			if _, used := next[free]; !used {
				index++
				return free
			}
		}
	}
	wanted := map[string]bool{}
	for _, m := range c.MountPoints {
		wanted[m.ContainerPath] = true
		o := option(m.ContainerPath)
		have := pve.ParseProperties(next[o])
		// The volume is the option's default key: it may be written with or
		// without its name.
		if len(have) > 0 && have[0].Key == "volume" {
			have[0].Key = ""
		}
		props := pve.Properties{{Key: "", Value: m.HostPath}, {Key: "mp", Value: m.ContainerPath}, {Key: "ro", Value: boolean(m.ReadOnly)}}
		if value, differs := overlay(have, props); differs {
			d.settings = append(d.settings, setting{o, value.String()})
		}
	}
	for _, v := range c.Volumes {
		wanted[v.MountPoint] = true
		if byPath[v.MountPoint] == "" {
			d.settings = append(d.settings, setting{option(v.MountPoint), fmt.Sprintf("%s:%d,mp=%s", v.Pool, v.SizeGB, v.MountPoint)})
		}
	}
	for path, o := range byPath {
		if isBind(next[o]) && written[shortHash(path)] && !wanted[path] {
			d.remove(o, path+" is not in the configuration any more")
		}
	}
	slices.Sort(d.deletes)
}

func (d *difference) remove(option, reason string) {
	d.deletes = append(d.deletes, option)
	d.reasons[option] = reason
}

// mountOptions returns the mount points' options, by number.
func mountOptions(values map[string]string) []string {
	var options []string
	for option := range values {
		if isMountPoint(option) {
			options = append(options, option)
		}
	}
	slices.SortFunc(options, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
	})
	return options
}

// source is what a mount point mounts: a volume, or a path of the host.
func source(value string) string {
	first, _, _ := strings.Cut(value, ",")
	return strings.TrimPrefix(first, "volume=")
}

// isBind tells a bind mount or device from a volume of a storage.
func isBind(value string) bool {
	return strings.HasPrefix(strings.TrimPrefix(value, "volume="), "/")
}

// mountHashes are the hashes of the paths of all configured bind mounts.
func mountHashes(c *config.Container) string {
	var paths []string
	for _, m := range c.MountPoints {
		paths = append(paths, m.ContainerPath)
	}
	return shortHashes(paths)
}

// volumeHashes are the hashes of the paths of all configured volumes that are
// there.
func volumeHashes(c *config.Container, conf *pve.Conf) string {
	if conf == nil {
		return ""
	}
	var paths []string
	for _, v := range c.Volumes {
		if option := mountedAt(conf.Next(), v.MountPoint); option != "" {
			paths = append(paths, v.MountPoint)
		}
	}
	return shortHashes(paths)
}

// mountedAt returns the option of what is mounted at a path of the container,
// "" when nothing is.
func mountedAt(values map[string]string, path string) string {
	for _, option := range mountOptions(values) {
		if pve.ParseProperties(values[option]).Get("mp") == path {
			return option
		}
	}
	return ""
}

// wrongPrivilege returns whether a configuration is unprivileged, and whether
// that is not what the container should be.
func wrongPrivilege(c *config.Container, conf *pve.Section) (have, differs bool) {
	have = pve.ParseBool(conf.Values["unprivileged"])
	return have, c.Unprivileged != nil && *c.Unprivileged != have
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
		size := pve.ParseProperties(next[option]).Get("size")
		if have, err := pve.Gigabytes(size); err == nil && have > 0 {
			all = append(all, disk{option, have, want})
		}
	}
	add("rootfs", c.StorageSizeGB)
	for _, v := range c.Volumes {
		if option := mountedAt(next, v.MountPoint); option != "" {
			add(option, v.SizeGB)
		}
	}
	return all
}

// lostVolume returns the reason why a volume that is not mounted is not
// allocated: it has been there, or may have been, and its data would seem to
// be lost. "" when it is new. allocated are the hashes of the paths of volumes
// that have been there.
func lostVolume(c *config.Container, conf *pve.Conf, v config.Volume, allocated map[string]bool) string {
	if option := mountedAt(conf.Values, v.MountPoint); option != "" && !isBind(conf.Values[option]) {
		return fmt.Sprintf("the volume at %s (%s) is removed at the next start, and a new one would be empty: keep it with: pct set %d --revert %[2]s",
			v.MountPoint, option, c.CTID)
	}
	var unused []string
	for option := range conf.Values {
		if unusedOption.MatchString(option) {
			unused = append(unused, option)
		}
	}
	if !allocated[shortHash(v.MountPoint)] && len(unused) == 0 {
		return ""
	}
	free := ""
	for i := 0; free == ""; i++ {
		option := fmt.Sprintf("mp%d", i)
		if conf.Values[option] == "" && conf.Pending[option] == "" {
			free = option
		}
	}
	attach := func(volume string) string {
		return pve.Quote([]string{"pct", "set", strconv.Itoa(c.CTID), "--" + free, volume + ",mp=" + v.MountPoint})
	}
	reason := fmt.Sprintf("the volume at %s is not mounted any more, and a new one would be empty: ", v.MountPoint)
	if !allocated[shortHash(v.MountPoint)] {
		reason = fmt.Sprintf("%s may be the place of a volume that is not mounted any more, and a new one would be empty: ", v.MountPoint)
	}
	if len(unused) == 0 {
		reason += fmt.Sprintf("if pvesm list %s --vmid %d still shows it, mount it with: %s", v.Pool, c.CTID, attach("VOLUME"))
	} else {
		slices.Sort(unused)
		var ways []string
		for _, option := range unused {
			ways = append(ways, fmt.Sprintf("%s (%s)", attach(source(conf.Values[option])), option))
		}
		reason += "mount it again with: " + strings.Join(ways, " or: ")
	}
	return reason + "; for a new, empty one run: " + attach(fmt.Sprintf("%s:%d", v.Pool, v.SizeGB))
}

// refusals returns what the configuration asks for and only a new container
// could be. Nothing is changed then, and nothing destroyed for it. allocated
// are the hashes of the paths of volumes that have been there.
func refusals(c *config.Container, conf *pve.Conf, allocated map[string]bool) error {
	var all []error
	refuse := func(format string, args ...any) {
		all = append(all, fmt.Errorf(format+"; nothing was changed", args...))
	}
	if have, differs := wrongPrivilege(c, &conf.Section); differs {
		refuse("unprivileged is %s and should be %s: that is fixed when a container is created: make a new container, or correct the configuration", boolean(have), boolean(!have))
	}
	for _, d := range disks(c, conf) {
		if d.have > d.want {
			refuse("%s has %d GiB and should have %d: Proxmox cannot shrink a disk: correct the configuration", d.option, d.have, d.want)
		}
	}
	next := conf.Next()
	if storage, _, ok := strings.Cut(next["rootfs"], ":"); ok && storage != c.StoragePool {
		refuse("rootfs is on the storage %s and should be on %s: move it, while the container is stopped, with: pct move-volume %d rootfs %s", storage, c.StoragePool, c.CTID, c.StoragePool)
	}
	byPath := map[string]string{}
	for _, option := range mountOptions(next) {
		path := pve.ParseProperties(next[option]).Get("mp")
		if first := byPath[path]; first != "" {
			if source(next[first]) != source(next[option]) {
				refuse("%s and %s are both mounted at %s, the latter over the former: remove the wrong one with: pct set %d --delete mpN", first, option, path, c.CTID)
			}
			continue
		}
		byPath[path] = option
	}
	for _, v := range c.Volumes {
		option := byPath[v.MountPoint]
		storage, _, _ := strings.Cut(strings.TrimPrefix(next[option], "volume="), ":")
		switch {
		case option == "":
			if reason := lostVolume(c, conf, v, allocated); reason != "" {
				refuse("%s", reason)
			}
		case isBind(next[option]):
			refuse("%s is a bind mount (%s) and should be a volume: remove one of them", v.MountPoint, option)
		case storage != v.Pool:
			refuse("%s (%s) is on the storage %s and should be on %s: move it, while the container is stopped, with: pct move-volume %d %s %s", option, v.MountPoint, storage, v.Pool, c.CTID, option, v.Pool)
		}
	}
	for _, m := range c.MountPoints {
		if option := byPath[m.ContainerPath]; option != "" && !isBind(next[option]) {
			refuse("%s is a volume (%s) and should be a bind mount of %s: its data would vanish: remove one of them", m.ContainerPath, option, m.HostPath)
		}
	}
	return errors.Join(all...)
}
