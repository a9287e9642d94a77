package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remedy"
)

// What a container should be, as functions of its configuration and of what
// Proxmox has stored: nothing here reads or changes anything.

// settings returns the settings of a container that differ from what conf will
// be after the next start, in a fixed order. Values are compared as Proxmox
// understands them: it reorders sub-keys, adds its own, and rewrites booleans.
// What conf has and the configuration does not mention is kept.
//
// fw is what the firewall should be, nil where it stays as it is; before is the
// record of what phx has set.
func settings(c *config.Container, conf *pve.Conf, fw *config.Firewall, before pve.Record) *pve.Settings {
	s := &pve.Settings{}
	next := conf.Next()
	// What the configuration does not give, stays.
	set := func(option, value string) {
		if value != "" && next[option] != value {
			s.Set(option, value)
		}
	}
	number := func(option string, n *int) {
		if n != nil {
			set(option, strconv.Itoa(*n))
		}
	}
	boolean := func(option string, b *bool) {
		if b != nil && pve.ParseBool(next[option]) != *b {
			s.Set(option, pve.FormatBool(*b))
		}
	}
	list := func(option string, words []string) {
		if len(words) > 0 && !slices.Equal(pve.ParseList(next[option]), words) {
			s.Set(option, strings.Join(words, " "))
		}
	}
	merge := func(option string, wanted pve.Properties) {
		if value, differs := pve.ParseProperties(next[option]).Merge(wanted); differs {
			s.Set(option, value.String())
		}
	}

	set("hostname", c.Name)
	number("memory", &c.MemoryMB)
	number("swap", c.SwapMB)
	number("cores", &c.Cores)
	if c.CPULimit != nil {
		limit := strconv.FormatFloat(*c.CPULimit, 'f', -1, 64)
		if !pve.SameNumber(cmp.Or(next["cpulimit"], "0"), limit) {
			s.Set("cpulimit", limit)
		}
	}
	number("cpuunits", c.CPUUnits)
	boolean("onboot", c.StartAtBoot)
	merge("startup", startup(c))
	addInterfaces(s, c, next, fw, before.Hashes(pve.NetsWord))
	list("nameserver", texts(c.Nameservers))
	list("searchdomain", c.SearchDomains)
	merge("features", features(c))
	set("ostype", c.OSType)
	if next["arch"] == "" {
		set("arch", c.Arch)
	}
	set("timezone", c.Timezone)
	switch {
	case c.Tags == nil || pve.SameTags(pve.ParseList(next["tags"]), c.Tags):
	case len(c.Tags) == 0:
		s.Remove("tags", "there are none in the configuration")
	default:
		s.Set("tags", strings.Join(c.Tags, ";"))
	}
	boolean("protection", c.Protection)
	set("hookscript", c.HookScript)
	addDevices(s, c, next, before.Hashes(pve.DevicesWord))
	if rootfs := next["rootfs"]; rootfs != "" {
		mergeMount(s, conf, "rootfs", mountOptions(c.RootOptions, nil))
	}
	addMountPoints(s, c, conf, before.Hashes(pve.MountsWord))
	return s
}

// features are pct's features of a container.
func features(c *config.Container) pve.Properties {
	var ps pve.Properties
	for _, o := range c.PctOptions {
		ps = append(ps, pve.ParseProperties(o)...)
	}
	return ps
}

// texts returns addresses as they are written.
func texts(addresses []netip.Addr) []string {
	var all []string
	for _, a := range addresses {
		all = append(all, a.String())
	}
	return all
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

// address is the container's address without its prefix length, "" when it
// has no fixed one.
func address(c *config.Container) string {
	if a := c.Address(); a.IsValid() {
		return a.String()
	}
	return ""
}

// addresses are all fixed addresses of the container, nil where there is but one.
func addresses(c *config.Container) []string {
	all := c.Addresses()
	if len(all) < 2 {
		return nil
	}
	return texts(all)
}

// unprivileged reports whether a container that is created is unprivileged, as
// it is unless the configuration says otherwise.
func unprivileged(c *config.Container) bool { return c.Unprivileged == nil || *c.Unprivileged }

// withPrivileges returns the configuration with the privileges that the
// container has, if it is there.
func withPrivileges(c *config.Container, conf *pve.Conf) *config.Container {
	if conf == nil {
		return c
	}
	actual := *c
	has := pve.ParseBool(conf.Values["unprivileged"])
	actual.Unprivileged = &has
	return &actual
}

// unconfined is the apparmor_profile of a container without one of its own.
const unconfined = "unconfined"

// rawLines returns the raw lines that the configuration asks for, each once.
// lxc_options override apparmor_profile.
//
// apparmor_profile "unconfined" is taken as the scripts before phx took it: no
// profile line is wanted, so that the container has the profile that Proxmox VE
// makes, as with "generated", see [pve.GeneratedProfile]. Only lxc_options switch
// AppArmor off. Without the key no line is wanted either, but one that was made
// by hand stays.
func rawLines(c *config.Container) []pve.RawLine {
	var lines []pve.RawLine
	add := func(key, value string) { lines = append(lines, pve.RawLine{Key: key, Value: value}) }

	switch c.AppArmorProfile {
	case "":
	case unconfined:
		add(pve.ProfileKey, pve.GeneratedProfile.Value)
	default:
		add(pve.ProfileKey, c.AppArmorProfile)
	}
	if c.AppArmorManagesNesting && customProfile(c) != "" {
		add("lxc.apparmor.allow_nesting", "1")
		add("lxc.include", "/usr/share/lxc/config/nesting.conf")
	}
	keeps := func(o config.RawOption) bool { return o.Key == pve.CapKeepKey }
	if slices.ContainsFunc(c.LXCOptions, keeps) && !unprivileged(c) {
		// LXC's own configuration of a privileged container drops some, and
		// either of the two excludes the other: the empty line ends that.
		add("lxc.cap.drop", "")
	}
	for _, o := range c.LXCOptions {
		add(o.Key, o.Value)
	}
	for i := range c.Interfaces {
		key := fmt.Sprintf("lxc.net.%d.script.up", i)
		has := func(o config.RawOption) bool { return o.Key == key }
		if !c.HasPort(i) && !slices.ContainsFunc(c.LXCOptions, has) {
			// What Proxmox VE has LXC run for each interface fails where that is
			// no veth: the empty line ends it.
			add(key, "")
		}
	}
	if len(c.GPUs) > 0 {
		add("lxc.cgroup2.devices.allow", "c 195:* rwm") // nvidia
		add("lxc.cgroup2.devices.allow", "c 243:* rwm") // nvidia-uvm
		devices := []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"}
		for _, n := range c.GPUs {
			devices = append(devices, fmt.Sprintf("nvidia%d", n))
		}
		for _, d := range devices {
			add("lxc.mount.entry", fmt.Sprintf("/dev/%s dev/%[1]s none bind,optional,create=file", d))
		}
	}
	for _, m := range c.IDMaps {
		add(pve.IDMapKey, m)
	}
	return pve.EffectiveRaw(lines)
}

// customProfile returns the name of the AppArmor profile that has a file of
// its own, "" for none.
func customProfile(c *config.Container) string {
	switch c.AppArmorProfile {
	case unconfined, pve.GeneratedProfile.Value:
		return ""
	}
	return c.AppArmorProfile
}

// record returns the record before, brought up to date with all that phx writes
// beside pct's options. fw is the firewall that phx manages, nil for none, and
// profileHash that of the container's own AppArmor profile.
func record(before pve.Record, c *config.Container, conf *pve.Conf, fw *config.Firewall,
	profileHash string) pve.Record {
	after := maps.Clone(before)
	rules := ""
	if c.Firewall != nil && fw != nil {
		if rules = pveFirewall(fw).Hashes(); rules == "" {
			rules = "none"
		}
	}
	for word, hashes := range map[string]string{
		pve.RawWord:      pve.RawHashes(rawLines(withPrivileges(c, conf))),
		pve.FirewallWord: rules,
		pve.MountsWord:   mountHashes(c),
		pve.DevicesWord:  deviceHashes(c),
		pve.ProfileWord:  profileHash,
	} {
		if hashes == "" {
			delete(after, word)
		} else {
			after[word] = hashes
		}
	}
	delete(after, pve.FormerRestartWord)
	delete(after, pve.LiftedWord)
	// Once it has been there, a volume is never allocated again.
	after.Unite(pve.VolumesWord, volumeHashes(c, conf))
	return after
}

// refusals returns what the configuration asks for and only a new container
// could be. Nothing is changed then, and nothing destroyed for it. allocated
// are the hashes of the paths of volumes that have been there.
func refusals(c *config.Container, conf *pve.Conf, allocated pve.Hashes) error {
	var all []error
	refuse := func(wayOut, format string, args ...any) {
		all = append(all, remedy.Errorf(wayOut+"; nothing was changed", format, args...))
	}
	const makeNew = "make a new container, or correct the configuration"
	if have, differs := wrongPrivilege(c, &conf.Section); differs {
		refuse(makeNew, "unprivileged is %s and should be %s: that is fixed when a container is created",
			pve.FormatBool(have), pve.FormatBool(!have))
	}
	if have := conf.Next()["arch"]; c.Arch != "" && have != "" && have != c.Arch {
		refuse(makeNew, "arch is %s and should be %s: the system in the container is of that architecture",
			have, c.Arch)
	}
	if len(c.MappedIDs) > 0 && !pve.ParseBool(conf.Values["unprivileged"]) {
		refuse("make a new container, or take id_maps out of the configuration",
			"id_maps asks for other ids of the host, and the container is privileged: its ids are those of the host")
	}
	for _, d := range disks(c, conf) {
		if d.have > d.want {
			refuse("correct the configuration", "%s has %d GiB and should have %d: Proxmox cannot shrink a disk",
				d.option, d.have, d.want)
		}
	}
	if storage := pve.Storage(conf.Next()["rootfs"]); storage != "" && storage != c.StoragePool {
		refuse(fmt.Sprintf("move it, while the container is stopped, with: pct move-volume %d rootfs %s",
			c.CTID, c.StoragePool), "rootfs is on the storage %s and should be on %s", storage, c.StoragePool)
	}
	refuseMountPoints(c, conf, allocated, refuse)
	return errors.Join(all...)
}

// wrongPrivilege returns whether a configuration is unprivileged, and whether
// that is not what the container should be.
func wrongPrivilege(c *config.Container, conf *pve.Section) (have, differs bool) {
	have = pve.ParseBool(conf.Values["unprivileged"])
	return have, c.Unprivileged != nil && *c.Unprivileged != have
}

// hostOwner returns the host's ids of an owner and a group in the container,
// -1 for one that is left as it is. kept are maps of ids that the container has
// where the configuration has none.
func hostOwner(c *config.Container, kept []pve.RawLine, uid, gid int) (hostUID, hostGID int, err error) {
	lines := rawLines(c)
	if pve.IDMaps(lines) == nil {
		lines = kept
	}
	return pve.HostOwner(lines, unprivileged(c), uid, gid)
}

// isProtected reports whether Proxmox is to change neither disks nor mount points
// of a container, nor to destroy it.
func isProtected(conf *pve.Conf) bool { return pve.ParseBool(conf.Values["protection"]) }

// ownerID is the id of an owner or a group, -1 for one that is left as it is.
func ownerID(n *int) int {
	if n == nil {
		return -1
	}
	return *n
}
