package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pct"
)

// setting is an option of pct create and pct set, and the value it should
// have.
type setting struct{ option, value string }

// settings returns the settings of a container that differ from conf, in a
// fixed order. Values are compared as Proxmox understands them: it reorders
// sub-keys, adds its own, and rewrites booleans. What conf has and the
// configuration does not mention is kept.
func settings(c *config.Container, conf *pct.Conf) []setting {
	var differing []setting
	want := func(option, value string) {
		if conf.Value(option) != value {
			differing = append(differing, setting{option, value})
		}
	}
	merge := func(option string, wanted pct.Properties) {
		if value, differs := overlay(pct.ParseProperties(conf.Value(option)), wanted); differs {
			differing = append(differing, setting{option, value.String()})
		}
	}

	want("hostname", c.Name)
	want("memory", strconv.Itoa(c.MemoryMB))
	if c.SwapMB != nil {
		want("swap", strconv.Itoa(*c.SwapMB))
	}
	want("cores", strconv.Itoa(c.Cores))
	if c.StartAtBoot != nil && pct.ParseBool(conf.Value("onboot")) != *c.StartAtBoot {
		differing = append(differing, setting{"onboot", boolean(*c.StartAtBoot)})
	}
	merge("startup", startup(c))
	merge("net0", network(c))
	if servers := c.Network.Nameservers; len(servers) > 0 {
		words := make([]string, len(servers))
		for i, s := range servers {
			words[i] = s.String()
		}
		if !slices.Equal(strings.FieldsFunc(conf.Value("nameserver"), isListSeparator), words) {
			differing = append(differing, setting{"nameserver", strings.Join(words, " ")})
		}
	}
	var features pct.Properties
	for _, o := range c.PctOptions {
		features = append(features, pct.ParseProperties(o)...)
	}
	merge("features", features)
	return append(differing, mountPoints(c, conf)...)
}

// isListSeparator tells the characters by which Proxmox separates the
// elements of a list.
func isListSeparator(r rune) bool { return strings.ContainsRune(" ,;\x00", r) }

// overlay returns have with the wanted properties set, and whether that
// differs from have.
func overlay(have, wanted pct.Properties) (value pct.Properties, differs bool) {
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
		return pct.ParseBool(have) == pct.ParseBool(wanted)
	}
	return false
}

// startup is the order and delay of a container at the host's boot.
func startup(c *config.Container) pct.Properties {
	var ps pct.Properties
	if c.BootOrder != nil {
		ps.Set("order", strconv.Itoa(*c.BootOrder))
	}
	if c.BootDelay != nil {
		ps.Set("up", strconv.Itoa(*c.BootDelay))
		ps.Set("down", strconv.Itoa(*c.BootDelay))
	}
	return ps
}

func network(c *config.Container) pct.Properties {
	ps := pct.Properties{{Key: "name", Value: c.Network.Name}, {Key: "bridge", Value: c.Network.Bridge}}
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
	return ps
}

var mountPointOption = regexp.MustCompile(`^mp\d+$`)

func isMountPoint(option string) bool { return mountPointOption.MatchString(option) }

// mountPoints returns the mount points that differ. They are known by their
// path in the container: their numbers mean nothing.
func mountPoints(c *config.Container, conf *pct.Conf) []setting {
	byPath := map[string]string{}
	used := map[string]bool{}
	for _, values := range []map[string]string{conf.Values, conf.Pending} {
		for option, value := range values {
			if isMountPoint(option) {
				used[option] = true
				byPath[pct.ParseProperties(value).Get("mp")] = option
			}
		}
	}
	next := 0
	free := func() string {
		for {
			option := fmt.Sprintf("mp%d", next)
			next++
			if !used[option] {
				return option
			}
		}
	}
	var differing []setting
	for _, m := range c.MountPoints {
		option, exists := byPath[m.ContainerPath]
		if !exists {
			option = free()
		}
		have := pct.ParseProperties(conf.Value(option))
		// The volume is the option's default key: it may be written with or
		// without its name.
		if len(have) > 0 && have[0].Key == "volume" {
			have[0].Key = ""
		}
		wanted := pct.Properties{{Key: "", Value: m.HostPath}, {Key: "mp", Value: m.ContainerPath}, {Key: "ro", Value: boolean(m.ReadOnly)}}
		if value, differs := overlay(have, wanted); differs {
			differing = append(differing, setting{option, value.String()})
		}
	}
	return differing
}
