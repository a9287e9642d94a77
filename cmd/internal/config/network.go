package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// A nic is an interface of a container, with the offsets at which mistakes may be
// found: -1 for what the file does not have.
type nic struct {
	Interface
	path           string // of its object, from the container's on
	at             int
	name, mac      int
	ip, ip6        int
	gw, gw6        int
	managed, local int // host_managed, and the first of its keys for name servers
	wrong          bool
}

// maxInterfaces is the number of pct's options net0 to net31.
const maxInterfaces = 32

// networkConfig reads the object of net0.
func networkConfig(p *parser, e *entry, v gjson.Result) {
	n := p.networkInterface(v, e, "network_config", (*parser).ignore)
	e.first = &n
}

// secondaryNetworkConfig reads the object of net1.
func secondaryNetworkConfig(p *parser, e *entry, v gjson.Result) {
	n := p.networkInterface(v, e, "secondary_network_config", (*parser).ignore)
	e.second = &n
}

// networkConfigs reads the objects of net0, net1 and so on. An unknown key is a
// mistake there: without a VLAN's tag, an interface is in another network than was
// meant.
func networkConfigs(p *parser, e *entry, v gjson.Result) {
	e.listed, e.list = []nic{}, v.Index
	if !v.IsArray() {
		e.listed = append(e.listed, nic{wrong: true}) // it is not empty
	}
	i := 0
	p.list(v, func(v gjson.Result) {
		if i++; i > maxInterfaces {
			p.fail(v, "pct has no more than %d interfaces", maxInterfaces)
			return
		}
		n := p.networkInterface(v, e, "network_configs."+strconv.Itoa(i-1), (*parser).refuse)
		if !p.full() {
			e.listed = append(e.listed, n)
		}
	})
}

// networkInterface reads the object of an interface; path is that of the object.
func (p *parser) networkInterface(v gjson.Result, e *entry, path string, unknown func(*parser, gjson.Result)) nic {
	n := nic{path: path, at: v.Index, name: -1, mac: -1, ip: -1, ip6: -1, gw: -1, gw6: -1, managed: -1, local: -1}
	mistakes := p.mistakes.count
	servers := func(v gjson.Result) {
		if n.local < 0 {
			n.local = v.Index
		}
		if path == "network_config" || path == "network_configs.0" {
			p.setNameservers(e, v)
			return
		}
		p.fail(v, "name servers are those of the container: give them as nameservers of its first interface, "+
			"or of the container itself")
	}
	p.members(v, unknown,
		member{"name", "the interface's name in the container, eth0", func(v gjson.Result) {
			n.Name, n.name = p.formatted(v, device), v.Index
		}},
		member{"bridge", "the host's bridge, vmbr0", func(v gjson.Result) { n.Bridge = p.formatted(v, device) }},
		member{"ip", "", func(v gjson.Result) {
			n.ip = v.Index
			p.addressing(v, &n.IPv4, ipv4Prefix, "dhcp", "manual")
		}},
		member{"gw", "", func(v gjson.Result) {
			n.gw, n.IPv4.Gateway = v.Index, p.address(v, ipv4Address)
		}},
		member{"ip6", "", func(v gjson.Result) {
			n.ip6 = v.Index
			p.addressing(v, &n.IPv6, ipv6Prefix, "dhcp", "auto", "manual")
		}},
		member{"gw6", "", func(v gjson.Result) {
			n.gw6, n.IPv6.Gateway = v.Index, p.address(v, ipv6Address)
		}},
		member{"hwaddr", "", func(v gjson.Result) { n.MAC, n.mac = p.mac(v), v.Index }},
		member{"tag", "", func(v gjson.Result) { n.Tag = p.integer(v, 1, maxVLAN) }},
		member{"trunks", "", func(v gjson.Result) { n.Trunks = p.trunks(v) }},
		member{"mtu", "", func(v gjson.Result) { n.MTU = p.integer(v, 64, 65535) }},
		member{"rate", "", func(v gjson.Result) { n.Rate = p.decimal(v, minRate, maxRate) }},
		member{"link_down", "", func(v gjson.Result) { n.LinkDown = new(p.boolean(v)) }},
		member{"host_managed", "", func(v gjson.Result) {
			n.managed, n.HostManaged = v.Index, new(p.boolean(v))
			p.since(v, sinceHostManaged, "host_managed")
		}},
		member{"firewall", "", func(v gjson.Result) { n.Firewall = new(p.boolean(v)) }},
		member{"nameserver", "", servers},
		member{"nameservers", "", servers},
	)
	if !v.IsObject() {
		n.wrong = true
		return n
	}
	if n.ip < 0 && n.ip6 < 0 {
		p.failUnder(v.Index, "ip",
			"missing: an address with its prefix length, 10.0.0.10/24, or dhcp or manual; or an ip6")
	}
	p.checkGateway(&n.IPv4, n.gw, "ip", n.ip >= 0)
	p.checkGateway(&n.IPv6, n.gw6, "ip6", n.ip6 >= 0)
	if isTrue(n.HostManaged) && n.IPv6.Method == "auto" && !isTrue(n.LinkDown) {
		p.failUnder(n.managed, "host_managed",
			"Proxmox VE cannot do it with ip6 auto: give an address, or dhcp or manual")
	}
	n.wrong = p.mistakes.count != mistakes
	return n
}

func isTrue(b *bool) bool { return b != nil && *b }

// addressing reads how an interface gets its address of one family: a fixed one in
// a format, or one of methods.
func (p *parser) addressing(v gjson.Result, a *Addressing, f format, methods ...string) {
	s, ok := p.str(v)
	if !ok {
		return
	}
	if slices.Contains(methods, s) {
		a.Method = s
		return
	}
	if !p.is(v, s, f) {
		return
	}
	ip := netip.MustParsePrefix(s)
	switch {
	case ip.Bits() < 8:
		p.fail(v, "the prefix length must be from 8 to %d, not %d", ip.Addr().BitLen(), ip.Bits())
	case ip.Addr().Is6() && ip.Addr().IsLinkLocalUnicast():
		p.fail(v, "%v is link-local, and every interface makes such an address for itself", ip.Addr())
	case !isHostIn(ip, ip.Addr()):
		p.fail(v, "%v is not an address of a host in %v", ip.Addr(), ip.Masked())
	default:
		a.Prefix = ip
	}
}

// address reads an address of a format.
func (p *parser) address(v gjson.Result, f format) netip.Addr {
	if s := p.formatted(v, f); s != "" {
		return netip.MustParseAddr(s)
	}
	return netip.Addr{}
}

// checkGateway checks the gateway at an offset. Key is that of the address: ip or
// ip6.
func (p *parser) checkGateway(a *Addressing, at int, key string, given bool) {
	gw := "gw" + strings.TrimPrefix(key, "ip")
	gateway := a.Gateway
	switch {
	case !gateway.IsValid():
	case !given:
		p.failUnder(at, gw, "needs an %s", key)
	case a.Method == "manual":
		p.warnUnder(at, gw, "with %s manual the container sets its gateway by itself: passed over", key)
		a.Gateway = netip.Addr{}
	case a.Method != "":
		p.warnUnder(at, gw, "with %s %s the gateway comes from there: passed over", key, a.Method)
		a.Gateway = netip.Addr{}
	case !a.Prefix.IsValid():
	case gateway == a.Prefix.Addr():
		p.failUnder(at, gw, "%v is the container's own address", gateway)
	case gateway.Is6() && gateway.IsLinkLocalUnicast():
	case a.Prefix.IsSingleIP() && isHostIn(netip.PrefixFrom(gateway, gateway.BitLen()), gateway):
		// In a network of its own an address has its gateway outside.
	case !a.Prefix.Contains(gateway):
		p.failUnder(at, gw, "%v is outside of %v", gateway, a.Prefix.Masked())
	case gateway.Is6() && gateway == a.Prefix.Masked().Addr():
		// The address of any router of the network.
	case !isHostIn(a.Prefix, gateway):
		p.failUnder(at, gw, "%v is not an address of a host in %v", gateway, a.Prefix.Masked())
	}
}

// maxVLAN is the last id of a VLAN.
const maxVLAN = 4094

// trunks reads ids of VLANs: a list of numbers and of ranges ("20-29"), or pct's
// own form, a string of both that are joined by semicolons.
func (p *parser) trunks(v gjson.Result) []VLANs {
	var ids [maxVLAN + 1]bool
	add := func(v gjson.Result, s string) {
		vlans, err := parseVLANs(s)
		if err != nil {
			p.fail(v, "%v", err)
			return
		}
		for id := vlans.First; id <= vlans.Last; id++ {
			ids[id] = true
		}
	}
	if v.IsArray() {
		p.list(v, func(v gjson.Result) {
			if v.Type == gjson.Number {
				ids[p.integer(v, 1, maxVLAN)] = true
			} else if s, ok := p.str(v); ok {
				add(v, s)
			}
		})
	} else if s, ok := p.str(v); ok {
		for s := range strings.SplitSeq(s, ";") {
			add(v, s)
		}
	}
	trunks := []VLANs{}
	for id := 1; id <= maxVLAN; id++ {
		switch {
		case !ids[id]:
		case ids[id-1]:
			trunks[len(trunks)-1].Last = id
		default:
			trunks = append(trunks, VLANs{id, id})
		}
	}
	return trunks
}

// Limits of a rate in MB/s: maxRate is more than any interface has.
const (
	minRate = 0.001
	maxRate = 1 << 20
)

// setNameservers reads the container's name servers. They are one value, wherever
// the file has them.
func (p *parser) setNameservers(e *entry, v gjson.Result) {
	mistakes := p.mistakes.count
	servers := p.nameservers(v)
	switch {
	case p.mistakes.count != mistakes:
	case e.Nameservers == nil:
		e.Nameservers = servers
	case !slices.Equal(e.Nameservers, servers):
		p.fail(v, "the container has other name servers already: they are one value")
	}
}

// nameservers reads a list of addresses, or a string with the addresses.
func (p *parser) nameservers(v gjson.Result) []netip.Addr {
	servers := []netip.Addr{}
	read := func(v gjson.Result, s string) {
		if p.is(v, s, ipAddress) {
			servers = append(servers, netip.MustParseAddr(s))
		}
	}
	p.words(v, read)
	return servers
}

func searchDomain(p *parser, e *entry, v gjson.Result) {
	e.SearchDomains = []string{}
	p.words(v, func(v gjson.Result, s string) {
		if p.is(v, s, hostName) {
			e.SearchDomains = append(e.SearchDomains, s)
		}
	})
}

func macAddressKey(p *parser, e *entry, v gjson.Result) { e.mac = mac{p.mac(v), v.Index} }

// mac reads a MAC address, in upper case. An empty one is as good as none.
func (p *parser) mac(v gjson.Result) string {
	if v.Type == gjson.String && v.Str == "" {
		return ""
	}
	s := strings.ToUpper(p.formatted(v, macAddress))
	switch {
	case s == "":
	case strings.ContainsRune("13579BDF", rune(s[1])):
		p.fail(v, "%s is a multicast address: the last bit of the first pair must be 0", v.Str)
	case s == "00:00:00:00:00:00":
		p.fail(v, "must not be all zeros")
	default:
		return s
	}
	return ""
}

// networks puts the interfaces of a container together; at is the offset of its
// object.
func (p *parser) networks(e *entry, at int) {
	switch {
	case e.listed == nil && e.first == nil:
		p.failUnder(at, "network_config", "missing: without it the container would have no interface")
		return
	case e.listed == nil:
		e.nics = []nic{*e.first}
		if e.second != nil {
			e.nics = append(e.nics, *e.second)
		}
	case e.first != nil || e.second != nil:
		other := e.first
		if other == nil {
			other = e.second
		}
		p.failUnder(e.list, "network_configs", "there is a %s too: the interfaces are in one of them", other.path)
		return
	case len(e.listed) == 0:
		p.failUnder(e.list, "network_configs", "without an interface nothing could reach the container")
		return
	default:
		e.nics = e.listed
	}
	for i := range e.nics {
		n := &e.nics[i]
		for _, other := range e.nics[:i] {
			if n.Name != "" && n.Name == other.Name {
				p.failUnder(n.name, n.path+".name", "%s is the name of %s already", n.Name, other.path)
			}
		}
	}
	if n := &e.nics[0]; e.mac.address != "" {
		switch n.MAC {
		case "":
			n.MAC = e.mac.address
			n.mac = -1
		case e.mac.address:
		default:
			p.failUnder(n.mac, n.path+".hwaddr", "%s is not the mac_address, %s: they are one value",
				n.MAC, e.mac.address)
		}
	}
	e.Interfaces = make([]Interface, len(e.nics))
	for i, n := range e.nics {
		e.Interfaces[i] = n.Interface
	}
}

// unfixed returns the key, its offset and the method of the first address of the
// container that is not fixed, where none of all is; "" where one is, or may be.
func (e *entry) unfixed() (key string, at int, method string) {
	if e.Address().IsValid() || slices.ContainsFunc(e.nics, func(n nic) bool { return n.wrong }) {
		return "", 0, ""
	}
	for _, n := range e.nics {
		if n.IPv4.Method != "" {
			return n.path + ".ip", n.ip, n.IPv4.Method
		}
		if n.IPv6.Method != "" {
			return n.path + ".ip6", n.ip6, n.IPv6.Method
		}
	}
	return "", 0, ""
}

// checkFilters checks that the firewall's filters let the container's addresses out,
// and warns of an interface that no firewall can filter.
func (p *parser) checkFilters(e *entry) {
	said := e.Firewall == nil || !isTrue(e.Firewall.IPFilter)
	for i := range e.nics {
		n := &e.nics[i]
		if !e.HasPort(i) {
			if n.Filtered(e.Firewall) {
				p.warnUnder(n.at, n.path, "raw lines give it another type than veth, where Proxmox VE filters "+
					"nothing: the firewall is not in force there")
			}
			continue
		}
		for _, family := range []struct{ key, method string }{{"ip", n.IPv4.Method}, {"ip6", n.IPv6.Method}} {
			unknown := family.method == "dhcp" || family.method == "auto"
			if said || !unknown || n.Firewall != nil && !*n.Firewall {
				continue
			}
			said = true
			p.failUnder(e.ipfilter, "firewall.ipfilter",
				"needs a fixed address, but %s.%s is %s: nothing could leave the container from there",
				n.path, family.key, family.method)
		}
	}
}

func firewall(p *parser, e *entry, v gjson.Result) {
	f := &Firewall{}
	p.members(v, (*parser).refuse,
		member{"enabled", "", func(v gjson.Result) { f.Enabled = p.boolean(v) }},
		member{"macfilter", "", func(v gjson.Result) { f.MACFilter = new(p.boolean(v)) }},
		member{"ipfilter", "", func(v gjson.Result) { f.IPFilter, e.ipfilter = new(p.boolean(v)), v.Index }},
		member{"policy_in", "", func(v gjson.Result) { f.PolicyIn = p.formatted(v, verdict) }},
		member{"policy_out", "", func(v gjson.Result) { f.PolicyOut = p.formatted(v, verdict) }},
		member{"rules", "", func(v gjson.Result) {
			f.Rules = []FirewallRule{}
			p.list(v, func(v gjson.Result) {
				if rule := p.firewallRule(v); !p.full() {
					f.Rules = append(f.Rules, rule)
				}
			})
		}},
	)
	e.Firewall = f
}

func (p *parser) firewallRule(v gjson.Result) FirewallRule {
	var r FirewallRule
	var action, port, dest gjson.Result
	p.members(v, (*parser).refuse,
		member{"type", "in, out or group", func(v gjson.Result) { r.Type = p.formatted(v, ruleType) }},
		member{"action", "ACCEPT, DROP or REJECT, or the name of a group", func(v gjson.Result) {
			r.Action, _ = p.str(v)
			action = v
		}},
		member{"source", "", func(v gjson.Result) { r.Source = p.formatted(v, rulePeers) }},
		member{"dest", "", func(v gjson.Result) { r.Dest, dest = p.formatted(v, rulePeers), v }},
		member{"proto", "", func(v gjson.Result) { r.Proto = p.formatted(v, ruleProto) }},
		member{"port", "", func(v gjson.Result) {
			port = v
			if v.Type == gjson.Number {
				r.Port = strconv.Itoa(p.integer(v, 1, 65535))
			} else {
				r.Port = p.formatted(v, rulePorts)
			}
		}},
		member{"comment", "", func(v gjson.Result) {
			if v.Type != gjson.String || v.Str != "" {
				r.Comment, _ = p.str(v)
			}
		}},
	)
	f := verdict
	if r.Type == "group" {
		f = ruleGroup
	}
	if r.Action != "" && r.Type != "" && !f.is(r.Action) {
		p.failUnder(action.Index, "action", "%q is not %s", r.Action, f.what)
	}
	if a, b := peersFamily(r.Source), peersFamily(r.Dest); a != b && a != 0 && b != 0 {
		p.failUnder(dest.Index, "dest", "is IPv%d, and source IPv%d: no packet has both", b, a)
	}
	if r.Port != "" && r.Proto == "" {
		p.failUnder(port.Index, "port", "a port needs a proto")
	}
	return r
}

// parseVLANs reads the id of a VLAN, or a range of ids.
func parseVLANs(s string) (VLANs, error) {
	low, high, isRange := strings.Cut(s, "-")
	if !isRange {
		high = low
	}
	first, err1 := strconv.Atoi(low)
	last, err2 := strconv.Atoi(high)
	if err1 != nil || err2 != nil || !isDecimal(low) || !isDecimal(high) ||
		first < 1 || last < first || last > maxVLAN {
		return VLANs{}, fmt.Errorf("%q is not the id of a VLAN, from 1 to %d, nor a range of them, as in 20-29",
			clip(s, maxShown), maxVLAN)
	}
	return VLANs{first, last}, nil
}
