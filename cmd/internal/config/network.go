package config

import (
	"net/netip"
	"strings"

	"github.com/tidwall/gjson"
)

// networkConfig reads the object of net0.
func networkConfig(p *parser, e *entry, v gjson.Result) {
	var n Interface
	gateway := -1
	p.members(v, (*parser).ignore,
		member{"name", "the interface's name in the container, eth0", func(v gjson.Result) {
			n.Name = p.formatted(v, device)
		}},
		member{"bridge", "the host's bridge, vmbr0", func(v gjson.Result) { n.Bridge = p.formatted(v, device) }},
		member{"ip", "an address with its prefix length, 10.0.0.10/24, or dhcp", func(v gjson.Result) {
			e.address = v.Index
			p.ipv4(v, &n.IPv4)
		}},
		member{"gw", "", func(v gjson.Result) {
			gateway = v.Index
			if s := p.formatted(v, ipv4Address); s != "" {
				n.IPv4.Gateway = netip.MustParseAddr(s)
			}
		}},
		member{"nameservers", "", func(v gjson.Result) { e.Nameservers = p.nameservers(v) }},
	)
	p.checkGateway(n.IPv4, gateway)
	e.Interfaces = []Interface{n}
}

// checkGateway checks the gateway at an offset.
func (p *parser) checkGateway(a Addressing, at int) {
	switch {
	case !a.Gateway.IsValid():
	case a.Method == "dhcp":
		p.failUnder(at, "gw", "with dhcp the gateway comes from there: leave it out")
	case !a.Prefix.IsValid():
	case !a.Prefix.Contains(a.Gateway):
		p.failUnder(at, "gw", "%v is outside of %v", a.Gateway, a.Prefix.Masked())
	case a.Gateway == a.Prefix.Addr():
		p.failUnder(at, "gw", "%v is the container's own address", a.Gateway)
	case !isHostIn(a.Prefix, a.Gateway):
		p.failUnder(at, "gw", "%v is not an address of a host in %v", a.Gateway, a.Prefix.Masked())
	}
}

// ipv4 reads how an interface gets its IPv4 address.
func (p *parser) ipv4(v gjson.Result, a *Addressing) {
	s, ok := p.str(v)
	if !ok {
		return
	}
	if s == "dhcp" {
		a.Method = s
		return
	}
	if !p.is(v, s, ipv4Prefix) {
		return
	}
	ip := netip.MustParsePrefix(s)
	switch {
	case ip.Bits() < 8:
		p.fail(v, "the prefix length must be from 8 to 32, not %d", ip.Bits())
	case !isHostIn(ip, ip.Addr()):
		p.fail(v, "%v is not an address of a host in %v", ip.Addr(), ip.Masked())
	default:
		a.Prefix = ip
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
	if v.IsArray() {
		p.list(v, func(v gjson.Result) {
			if s, ok := p.str(v); ok {
				read(v, s)
			}
		})
	} else if s, ok := p.str(v); ok {
		for _, s := range strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' || r == ';' }) {
			read(v, s)
		}
	}
	return servers
}

func macAddressKey(p *parser, e *entry, v gjson.Result) {
	if v.Type == gjson.String && v.Str == "" {
		return // as good as not given
	}
	s := p.formatted(v, macAddress)
	if s == "" {
		return
	}
	s = strings.ToUpper(s)
	switch {
	case strings.ContainsRune("13579BDF", rune(s[1])):
		p.fail(v, "%s is a multicast address: the last bit of the first pair must be 0", v.Str)
	case s == "00:00:00:00:00:00":
		p.fail(v, "must not be all zeros")
	default:
		e.mac = mac{s, v.Index}
	}
}
