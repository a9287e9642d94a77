package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// option is pct's option for the interface with an index.
func netOption(i int) string { return "net" + strconv.Itoa(i) }

// addInterfaces adds the interfaces that differ from next. written is what phx has
// set of them, in the words of [netWords]: what of that the configuration does not
// mention any more is removed, and all else stays.
func addInterfaces(s *pve.Settings, c *config.Container, next map[string]string, fw *config.Firewall,
	written pve.Hashes) {
	for i, n := range c.Interfaces {
		option := netOption(i)
		wanted := networkInterface(c, i, fw)
		have := slices.DeleteFunc(pve.ParseProperties(next[option]), func(p pve.Property) bool {
			switch {
			case wanted.Get(p.Key) != "":
				return false
			case p.Key == "gw" && n.IPv4.Method != "", p.Key == "gw6" && n.IPv6.Method != "":
				return true // it comes with the address, or the container sets it
			case p.Key == "trunks" && n.Trunks != nil:
				return true // none are wanted
			}
			return written[option+"."+p.Key]
		})
		if value, _ := have.Merge(wanted); value.String() != next[option] {
			s.Set(option, value.String())
		}
	}
	for _, option := range unmentioned(c, next) {
		if written[option] {
			s.Remove(option, fmt.Sprintf("%s is not in the configuration", describe(next[option])))
		}
	}
}

// unmentioned returns the options of interfaces that the configuration does not
// have.
func unmentioned(c *config.Container, values map[string]string) []string {
	var all []string
	for _, option := range pve.Nets(values) {
		if i, _ := strconv.Atoi(strings.TrimPrefix(option, "net")); i >= len(c.Interfaces) {
			all = append(all, option)
		}
	}
	return all
}

// describe is an interface for people.
func describe(value string) string {
	ps := pve.ParseProperties(value)
	return fmt.Sprintf("%s at %s", ps.Get("name"), ps.Get("bridge"))
}

// networkInterface is the container's interface with an index, in the words of pct.
// fw is what the firewall should be, nil where it stays as it is.
func networkInterface(c *config.Container, index int, fw *config.Firewall) pve.Properties {
	i := c.Interfaces[index]
	var ps pve.Properties
	set := func(key, value string) {
		if value != "" {
			ps.Set(key, value)
		}
	}
	boolean := func(key string, b *bool) {
		if b != nil {
			ps.Set(key, pve.FormatBool(*b))
		}
	}
	number := func(key string, n int) {
		if n > 0 {
			ps.Set(key, strconv.Itoa(n))
		}
	}
	set("name", i.Name)
	set("bridge", i.Bridge)
	set("hwaddr", i.MAC)
	for _, family := range []struct {
		ip, gw string
		config.Addressing
	}{{"ip", "gw", i.IPv4}, {"ip6", "gw6", i.IPv6}} {
		set(family.ip, family.Method)
		if family.Prefix.IsValid() {
			set(family.ip, family.Prefix.String())
		}
		if family.Gateway.IsValid() {
			set(family.gw, family.Gateway.String())
		}
	}
	number("tag", i.Tag)
	set("trunks", trunks(i.Trunks))
	number("mtu", i.MTU)
	if i.Rate > 0 {
		set("rate", strconv.FormatFloat(i.Rate, 'f', -1, 64))
	}
	boolean("link_down", i.LinkDown)
	boolean("host-managed", i.HostManaged)
	switch {
	case !c.HasPort(index): // Proxmox VE would look for a port to filter
		ps.Set("firewall", "0")
	case fw != nil || i.Firewall != nil:
		ps.Set("firewall", pve.FormatBool(i.Filtered(fw)))
	}
	return ps
}

// trunks are ids of VLANs as pct takes them, which knows no ranges.
func trunks(vlans []config.VLANs) string {
	var ids []string
	for _, v := range vlans {
		for id := v.First; id <= v.Last; id++ {
			ids = append(ids, strconv.Itoa(id))
		}
	}
	return strings.Join(ids, ";")
}

// netWords are what phx sets of interfaces, as a word of a record: "net1" for an
// interface, "net1.tag" for a sub-key that it could do without.
func netWords(c *config.Container) []string {
	var words []string
	for i, n := range c.Interfaces {
		option := netOption(i)
		words = append(words, option)
		for _, p := range networkInterface(c, i, nil) {
			switch p.Key {
			case "name", "bridge", "hwaddr": // an interface has them, or keeps them
			case "firewall":
				if n.Firewall != nil {
					words = append(words, option+"."+p.Key)
				}
			default:
				words = append(words, option+"."+p.Key)
			}
		}
	}
	return words
}

// netRecord returns [netWords] for a record. A container that has no more than could
// always be configured has none, unless its record before has: that stays as it is.
func netRecord(c *config.Container, before pve.Record) string {
	words := netWords(c)
	former := []string{"net0", "net0.ip", "net0.gw"}
	isMore := func(word string) bool { return !slices.Contains(former, word) }
	if before[pve.NetsWord] == "" && !slices.ContainsFunc(words, isMore) {
		return ""
	}
	return strings.Join(words, ",")
}

// withoutFilters returns the configuration without what its interfaces say of the
// firewall.
func withoutFilters(c *config.Container) *config.Container {
	less := *c
	less.Interfaces = slices.Clone(c.Interfaces)
	for i := range less.Interfaces {
		less.Interfaces[i].Firewall = nil
	}
	return &less
}
