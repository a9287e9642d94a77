package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/probe"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// Looks of the action check at networks.

// port is an interface of a container that is a port of a bridge.
type port struct {
	*job
	index int
	config.Interface
}

// ports returns the interfaces of containers by the bridge that they are ports of,
// and the bridges in the order of the plan.
func (s *survey) ports() (bridges []string, at map[string][]port) {
	at = map[string][]port{}
	for i, j := range s.jobs {
		for n, face := range j.c.Interfaces {
			if s.wrong[i] != nil || !j.c.HasPort(n) {
				continue
			}
			if at[face.Bridge] == nil {
				bridges = append(bridges, face.Bridge)
			}
			at[face.Bridge] = append(at[face.Bridge], port{j, n, face})
		}
	}
	return bridges, at
}

func (s *survey) bridges(context.Context) []point {
	var points []point
	bridges, at := s.ports()
	for _, bridge := range bridges {
		for _, p := range s.checkBridge(bridge, at[bridge]) {
			points = append(points, p.named("bridge %s", bridge))
		}
	}
	return points
}

// read reads a file of the host of one line, "" where it is not there.
func (s *survey) read(elem ...string) string {
	text, _ := os.ReadFile(s.path(elem...))
	return strings.TrimSpace(string(text))
}

// checkBridge looks at a bridge as Proxmox does when a container is started on it.
func (s *survey) checkBridge(bridge string, ports []port) []point {
	dir := filepath.Join("sys/class/net", bridge)
	is := func(elem ...string) bool {
		_, err := os.Stat(s.path(append([]string{dir}, elem...)...))
		return err == nil
	}
	_, err := os.Stat(s.path("sys/class/net/ovs-system"))
	ovs := err == nil
	switch {
	case !is():
		node := s.host.Node()
		return []point{bad(fmt.Sprintf("correct bridge in the configuration, or make it, with: "+
			"pvesh create /nodes/%s/network --iface %s --type bridge --autostart 1 && pvesh set /nodes/%[1]s/network",
			node, bridge), "there is no interface %s", bridge)}
	case !is("bridge") && ovs:
		return []point{good("it is Open vSwitch's")}
	case !is("bridge"):
		return []point{bad("correct bridge in the configuration", "%s is no bridge", bridge)}
	}
	var points []point
	if flags, err := strconv.ParseUint(s.read(dir, "flags"), 0, 32); err == nil && flags&1 == 0 {
		points = append(points, bad("bring it up with: ifup "+bridge, "it is down"))
	}
	var tagged, trunked []*config.Container
	for _, p := range ports {
		if p.Tag > 0 && !slices.Contains(tagged, p.c) {
			tagged = append(tagged, p.c)
		}
		if len(p.Trunks) > 0 && !slices.Contains(trunked, p.c) {
			trunked = append(trunked, p.c)
		}
	}
	aware := s.read(dir, "bridge/vlan_filtering") == "1"
	const wayOut = "give it \"bridge-vlan-aware yes\" in /etc/network/interfaces, and run: ifreload -a"
	if len(trunked) > 0 && !aware {
		points = append(points, bad(wayOut, "it does not know VLANs, and trunks need that, of: %s",
			idsOf(trunked)))
	}
	if len(tagged) > 0 && !aware && !s.hasWayOut(dir) {
		points = append(points, bad(wayOut,
			"it neither knows VLANs nor has a port to the outside on which Proxmox could make one, for: %s",
			idsOf(tagged)))
	}
	if len(points) > 0 {
		return points
	}
	if len(tagged)+len(trunked) > 0 {
		return []point{good("it is there, and VLANs can be had on it")}
	}
	return []point{good("it is there")}
}

// hasWayOut reports whether a bridge, whose directory below sys is dir, has a port
// that is an interface of the machine, a bond or a VLAN of one.
func (s *survey) hasWayOut(dir string) bool {
	ports, _ := filepath.Glob(s.path(dir, "brif/*"))
	return slices.ContainsFunc(ports, func(port string) bool {
		face := s.path("sys/class/net", filepath.Base(port))
		for _, of := range []string{"device", "bonding"} {
			if _, err := os.Stat(filepath.Join(face, of)); err == nil {
				return true
			}
		}
		_, err := os.Stat(s.path("proc/net/vlan", filepath.Base(port)))
		return err == nil
	})
}

// isPlanned reports whether a guest is a container of the plan: what its interfaces
// are to be counts then, which phx-plan has compared.
func (s *survey) isPlanned(g pve.Guest) bool {
	return !g.VM && slices.ContainsFunc(s.jobs, func(j *job) bool { return j.c.CTID == g.ID })
}

// addresses looks for others who have the addresses of the containers: this host,
// guests of the cluster by their configuration, and whoever answers.
func (s *survey) addresses(ctx context.Context) []point {
	guests, err := s.guests()
	if err != nil {
		return []point{leftOut("%v", err)}
	}
	taken := map[netip.Addr]string{}
	for _, g := range guests {
		for _, a := range g.Addresses {
			if !s.isPlanned(g) {
				taken[a] = fmt.Sprintf("the %s on %s has it", g, g.Node)
			}
		}
	}
	if own, err := net.InterfaceAddrs(); err == nil {
		for _, a := range own {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				taken[prefix.Addr()] = "this host has it itself"
			}
		}
	}
	const wayOut = "give one of the two another address"
	var points []point
	var unknown findings
	n := 0
	bridges, at := s.ports()
	for _, bridge := range bridges {
		asked := map[netip.Addr]port{}
		for _, p := range at[bridge] {
			for _, a := range p.Addresses() {
				n++
				switch {
				case taken[a] != "":
					points = append(points, bad(wayOut, "%s", taken[a]).named("address %s", a).about(p.c))
				case p.hasNow(a):
				case p.Tag > 0:
					unknown.add(p.c, leftOut("whether somebody else has one is not known: this host may not be in it").
						named("addresses in VLAN %d of %s", p.Tag, bridge))
				default:
					asked[a] = p
				}
			}
		}
		points = append(points, s.ask(ctx, bridge, asked, guests)...)
	}
	points = append(points, unknown.points()...)
	if len(points) > 0 || n == 0 {
		return points
	}
	return []point{good("nobody else has one of %d", n)}
}

// hasNow reports whether a container that runs has an address itself, and answers.
func (p port) hasNow(a netip.Addr) bool {
	if !p.ct.Running || p.isMissing() {
		return false
	}
	ps := pve.ParseProperties(p.ct.Conf.Values[netOption(p.index)])
	for _, key := range []string{"ip", "ip6"} {
		if prefix, err := netip.ParsePrefix(ps.Get(key)); err == nil && prefix.Addr() == a {
			return true
		}
	}
	return false
}

// ask asks on a bridge who has these addresses.
func (s *survey) ask(ctx context.Context, bridge string, asked map[netip.Addr]port, guests []pve.Guest) []point {
	dir := s.path("sys/class/net", bridge)
	ports, _ := filepath.Glob(filepath.Join(dir, "brif/*"))
	if _, err := os.Stat(filepath.Join(dir, "bridge")); len(asked) == 0 || err == nil && len(ports) == 0 {
		return nil // on a bridge without any port there is nobody else
	}
	if _, err := os.Stat(dir); err != nil {
		return []point{leftOut("whether somebody answers on %s is not known: see that bridge", bridge)}
	}
	var addresses []netip.Addr
	for a := range asked {
		addresses = append(addresses, a)
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	answers, err := probe.Probe(ctx, bridge, addresses)
	if err != nil {
		return []point{leftOut("whether somebody answers on %s is not known: %v", bridge, err)}
	}
	var points []point
	for _, a := range addresses {
		mac := answers[a]
		if mac == nil || strings.EqualFold(mac.String(), asked[a].MAC) {
			continue
		}
		who := ""
		for _, g := range guests {
			if slices.Contains(g.MACs, strings.ToUpper(mac.String())) {
				who = fmt.Sprintf(", that of the %s on %s", g, g.Node)
			}
		}
		wayOut := "give one of the two another address; behind which port of the bridge it is: bridge fdb show br " +
			fmt.Sprintf("%s | grep -i %s", bridge, mac)
		points = append(points, bad(wayOut, "somebody answers for it on %s, with the MAC address %s%s",
			bridge, strings.ToUpper(mac.String()), who).named("address %s", a).about(asked[a].c))
	}
	return points
}

// macs looks for others who have the MAC addresses of the containers.
func (s *survey) macs(context.Context) []point {
	guests, err := s.guests()
	if err != nil {
		return []point{leftOut("%v", err)}
	}
	taken := map[string]string{}
	for _, g := range guests {
		for _, mac := range g.MACs {
			if !s.isPlanned(g) {
				taken[mac] = fmt.Sprintf("the %s on %s has it", g, g.Node)
			}
		}
	}
	faces, _ := filepath.Glob(s.path("sys/class/net/*"))
	for _, face := range faces {
		// A port of a container has one of its own, and a bridge that of a port.
		mac := strings.ToUpper(s.read("sys/class/net", filepath.Base(face), "address"))
		if mac != "" && taken[mac] == "" {
			taken[mac] = fmt.Sprintf("the interface %s of this host has it", filepath.Base(face))
		}
	}
	var points []point
	n := 0
	for i, j := range s.jobs {
		for _, face := range j.c.Interfaces {
			if s.wrong[i] != nil || face.MAC == "" {
				continue
			}
			n++
			if who := taken[face.MAC]; who != "" {
				p := bad("give one of the two another MAC address, or leave it out of the configuration: Proxmox VE "+
					"chooses one then", "%s", who)
				points = append(points, p.named("MAC address %s", face.MAC).about(j.c))
			}
		}
	}
	if len(points) > 0 || n == 0 {
		return points
	}
	return []point{good("nobody else has one of %d", n)}
}

// firewall looks for what keeps configured firewalls from being in force, and what
// they would keep from the services.
func (s *survey) firewall(context.Context) []point {
	var points []point
	var enabled []*config.Container
	for i, j := range s.jobs {
		if s.wrong[i] != nil || j.c.Firewall == nil || !j.c.Firewall.Enabled {
			continue
		}
		enabled = append(enabled, j.c)
		have, err := s.host.ReadFirewall(j.c.CTID)
		if err != nil {
			points = append(points, leftOut("%v", err).about(j.c))
			continue
		}
		would := pveFirewall(j.c.Firewall).Rewrite(have, j.ct.Before.Hashes(pve.FirewallWord))
		for _, cut := range cutFlows(s.plan, j.c, would) {
			what, wayOut, _ := strings.Cut(cut, "; ")
			if _, rule, isRule := strings.Cut(wayOut, ": {"); isRule {
				wayOut = "add at the beginning of its firewall.rules: {" + rule
			}
			points = append(points, warns(wayOut, "%s", what).about(j.c))
		}
	}
	if path, on := s.host.DatacenterFirewall(); !on && len(enabled) > 0 {
		points = append(points, warns("once the rules of the hosts are right, switch it on with: "+
			"pvesh set /cluster/firewall/options --enable 1",
			"that of the datacenter is off (%s), and with it those of: %s", path, idsOf(enabled)))
	}
	if len(points) > 0 || len(enabled) == 0 {
		return points
	}
	return []point{good("on, with what the services need among %s", count(len(enabled), "container"))}
}
