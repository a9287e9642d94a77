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
	e.first = p.networkInterface(v, e, "network_config", (*parser).ignore)
}

// secondaryNetworkConfig reads the object of net1.
func secondaryNetworkConfig(p *parser, e *entry, v gjson.Result) {
	e.second = p.networkInterface(v, e, "secondary_network_config", (*parser).ignore)
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
			e.listed = append(e.listed, *n)
		}
	})
}

// An interfaceObject is the object of an interface of a container.
type interfaceObject struct {
	nic
	e *entry
}

var interfaceKeys = []key[interfaceObject]{
	{name: "name", need: "the interface's name in the container, eth0",
		value: special(device.form, func(p *parser, n *interfaceObject, v gjson.Result) {
			n.Name, n.name = p.formatted(v, device), v.Index
		}), effect: "in the container: `eth0`"},
	{name: "bridge", need: "the host's bridge, vmbr0",
		value:  text(device, func(n *interfaceObject, s string) { n.Bridge = s }),
		effect: "on the host: `vmbr0`, `vmbr0.20`"},
	{name: "ip", value: special(ipv4Prefix.form, func(p *parser, n *interfaceObject, v gjson.Result) {
		n.ip = v.Index
		p.addressing(v, &n.IPv4, ipv4Prefix, "dhcp", "manual")
	}), effect: "its address; CA and proxy need a fixed one; this or `ip6`"},
	{name: "gw", value: special(ipv4Address.form, func(p *parser, n *interfaceObject, v gjson.Result) {
		n.gw, n.IPv4.Gateway = v.Index, p.address(v, ipv4Address)
	}), effect: "gateway, inside of the network of `ip` unless that is a /32; none with `dhcp` and `manual`"},
	{name: "ip6", value: special(ipv6Prefix.form, func(p *parser, n *interfaceObject, v gjson.Result) {
		n.ip6 = v.Index
		p.addressing(v, &n.IPv6, ipv6Prefix, "dhcp", "auto", "manual")
	}), effect: "its IPv6 address, not a link-local one; `auto` makes it of what a router announces"},
	{name: "gw6", value: special(ipv6Address.form, func(p *parser, n *interfaceObject, v gjson.Result) {
		n.gw6, n.IPv6.Gateway = v.Index, p.address(v, ipv6Address)
	}), effect: "gateway, link-local or inside of the network of `ip6` unless that is a /128; " +
		"none without a fixed address"},
	{name: "hwaddr", value: special(macAddress.form, func(p *parser, n *interfaceObject, v gjson.Result) {
		n.MAC, n.mac = p.mac(v), v.Index
	}), effect: "its MAC address; Proxmox VE chooses one without, which stays"},
	{name: "tag", value: whole(1, maxVLAN, func(n *interfaceObject, id int) { n.Tag = id }),
		effect: "its VLAN, on a bridge that is aware of VLANs"},
	{name: "trunks", value: special(trunksForm, func(p *parser, n *interfaceObject, v gjson.Result) {
		n.Trunks = p.trunks(v)
	}), effect: "VLANs that pass with their tags; in a running container: start"},
	{name: "mtu", value: whole(64, 65535, func(n *interfaceObject, bytes int) { n.MTU = bytes }),
		effect: "greatest length of a packet in bytes, not above the bridge's; in a running container: start"},
	{name: "rate", value: decimal(minRate, maxRate, func(n *interfaceObject, rate float64) { n.Rate = rate }),
		effect: "limit in MB/s of what it sends and gets"},
	{name: "link_down", value: truth(func(n *interfaceObject, b bool) { n.LinkDown = &b }),
		effect: "it is there, but its cable is not plugged in"},
	{name: "host_managed", value: special(boolean, func(p *parser, n *interfaceObject, v gjson.Result) {
		n.managed, n.HostManaged = v.Index, new(p.boolean(v))
		p.since(v, sinceHostManaged, "host_managed")
	}), effect: "the host sets its addresses and asks for them by DHCP, not the container; " +
		"in a running container: start"},
	{name: "firewall", value: truth(func(n *interfaceObject, b bool) { n.Firewall = &b }),
		effect: "the container's firewall filters what passes it; as `firewall.enabled` without"},
	{name: "nameserver", value: special(serversForm, interfaceServers).as("IP address"),
		effect: "of the first interface: the same as `nameservers`"},
	{name: "nameservers", value: special(serversForm, interfaceServers),
		effect: "of the first interface: the same as the container's"},
}

// interfaceForm is the form of the object of an interface.
func interfaceForm(closed bool) form {
	return objectOf(interfaceKeys, closed, shape{
		"anyOf":        []shape{has("ip"), has("ip6")},
		"dependencies": shape{"gw": []string{"ip"}, "gw6": []string{"ip6"}},
	})
}

// interfaceServers reads the name servers of a container where its first interface
// has them.
func interfaceServers(p *parser, n *interfaceObject, v gjson.Result) {
	if n.local < 0 {
		n.local = v.Index
	}
	if n.path == "network_config" || n.path == "network_configs.0" {
		p.setNameservers(n.e, v)
		return
	}
	p.fail(v, "name servers are those of the container: give them as nameservers of its first interface, "+
		"or of the container itself")
}

// networkInterface reads the object of an interface; path is that of the object.
func (p *parser) networkInterface(v gjson.Result, e *entry, path string, unknown func(*parser, gjson.Result)) *nic {
	n := &interfaceObject{nic{path: path, at: v.Index,
		name: -1, mac: -1, ip: -1, ip6: -1, gw: -1, gw6: -1, managed: -1, local: -1}, e}
	mistakes := p.mistakes.count
	readObject(p, v, n, interfaceKeys, unknown)
	if !v.IsObject() {
		n.wrong = true
		return &n.nic
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
	return &n.nic
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

var trunksForm = either("list of numbers from 1 to 4094 and of ranges `\"20-29\"`, or a string `20;30`",
	listOf("", either("", wholeForm(1, maxVLAN), like("", vlan+`(-`+vlan+`)?`))),
	like("", vlan+`(-`+vlan+`)?(;`+vlan+`(-`+vlan+`)?)*`))

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

// wordsOf is the form of what [parser.words] reads: words of a pattern.
func wordsOf(words string, word format, pattern string) form {
	list := listOf("", word.form).with(shape{"maxItems": maxWords})
	return either(words, list, loose("", `^[ ,;]*(`+pattern+`([ ,;]+|$))*$`))
}

var (
	serversForm = wordsOf("list of IP addresses, or a string of them", ipAddress, `(`+v4+`|`+v6+`)`)
	domainsForm = wordsOf("list of domains, or a string of them", hostName, label+`(\.`+label+`)*`)
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

// A firewallObject is the object of a container's firewall.
type firewallObject struct {
	*Firewall
	e *entry
}

var firewallKeys = []key[firewallObject]{
	{name: "enabled", value: truth(func(f *firewallObject, b bool) { f.Enabled = b }), without: false,
		effect: "the rules apply"},
	{name: "macfilter", value: truth(func(f *firewallObject, b bool) { f.MACFilter = &b }),
		effect: "no other MAC address may leave the container"},
	{name: "ipfilter", value: special(boolean, func(p *parser, f *firewallObject, v gjson.Result) {
		f.IPFilter, f.e.ipfilter = new(p.boolean(v)), v.Index
	}), effect: "no other IP address may leave the container"},
	{name: "policy_in", value: text(verdict, func(f *firewallObject, s string) { f.PolicyIn = s }),
		effect: "for incoming packets that no rule decides about"},
	{name: "policy_out", value: text(verdict, func(f *firewallObject, s string) { f.PolicyOut = s }),
		effect: "the same for outgoing ones"},
	{name: "rules", value: special(listOf("list of objects", ruleForm),
		func(p *parser, f *firewallObject, v gjson.Result) {
			f.Rules = []FirewallRule{}
			var r ruleObject
			p.list(v, func(v gjson.Result) {
				r = ruleObject{}
				if p.firewallRule(v, &r); !p.full() {
					f.Rules = append(f.Rules, r.FirewallRule)
				}
			})
		}), effect: "rules, in order"},
}

func firewall(p *parser, e *entry, v gjson.Result) {
	e.Firewall = &Firewall{}
	readObject(p, v, &firewallObject{e.Firewall, e}, firewallKeys, (*parser).refuse)
}

// A ruleObject is the object of a rule, with the offsets of some of its keys.
type ruleObject struct {
	FirewallRule
	action, port, dest int
}

var ruleKeys = []key[ruleObject]{
	{name: "type", need: "in, out or group", value: text(ruleType, func(r *ruleObject, s string) { r.Type = s }).
		as("`in`, `out` or `group`"), effect: "direction, or a security group of Proxmox VE"},
	{name: "action", need: "ACCEPT, DROP or REJECT, or the name of a group",
		value: special(anyText, func(p *parser, r *ruleObject, v gjson.Result) {
			r.Action, _ = p.str(v)
			r.action = v.Index
		}).as("`ACCEPT`, `DROP` or `REJECT`, or the group's name")},
	{name: "source", value: text(rulePeers, func(r *ruleObject, s string) { r.Source = s }).
		as("addresses and networks of one family, joined by commas; or a range `a-b`, an alias or a `+set`"),
		effect: "where packets come from"},
	{name: "dest", value: special(rulePeers.form, func(p *parser, r *ruleObject, v gjson.Result) {
		r.Dest, r.dest = p.formatted(v, rulePeers), v.Index
	}).as("the same"), effect: "where they go"},
	{name: "proto", value: text(ruleProto, func(r *ruleObject, s string) { r.Proto = s })},
	{name: "port", value: special(either(rulePorts.words, wholeForm(1, 65535), rulePorts.form),
		func(p *parser, r *ruleObject, v gjson.Result) {
			r.port = v.Index
			if v.Type == gjson.Number {
				r.Port = strconv.Itoa(p.integer(v, 1, 65535))
			} else {
				r.Port = p.formatted(v, rulePorts)
			}
		}), effect: "destination; needs `proto`"},
	{name: "comment", value: special(either("string", anyText, fixed("", shape{"const": ""})),
		func(p *parser, r *ruleObject, v gjson.Result) {
			if v.Type != gjson.String || v.Str != "" {
				r.Comment, _ = p.str(v)
			}
		})},
}

// ruleForm is the form of the object of a rule: what action may be depends on type.
var ruleForm = objectOf(ruleKeys, true, shape{
	"if":           shape{"type": "object", "properties": shape{"type": shape{"const": "group"}}},
	"then":         shape{"type": "object", "properties": shape{"action": ruleGroup.shape()}},
	"else":         shape{"type": "object", "properties": shape{"action": verdict.shape()}},
	"dependencies": shape{"port": []string{"proto"}},
})

func (p *parser) firewallRule(v gjson.Result, r *ruleObject) {
	readObject(p, v, r, ruleKeys, (*parser).refuse)
	f := verdict
	if r.Type == "group" {
		f = ruleGroup
	}
	if r.Action != "" && r.Type != "" && !f.is(r.Action) {
		p.failUnder(r.action, "action", "%q is not %s", r.Action, f.what)
	}
	if a, b := peersFamily(r.Source), peersFamily(r.Dest); a != b && a != 0 && b != 0 {
		p.failUnder(r.dest, "dest", "is IPv%d, and source IPv%d: no packet has both", b, a)
	}
	if r.Port != "" && r.Proto == "" {
		p.failUnder(r.port, "port", "a port needs a proto")
	}
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
