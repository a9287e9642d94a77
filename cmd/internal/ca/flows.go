package ca

import (
	"net/netip"

	"thinkheads.ai/phx/cmd/internal/config"
)

// Flow is a TCP connection that the CA, gateway, proxy and the services need.
type Flow struct {
	From, To         string // its ends in messages
	FromCTID, ToCTID int    // the containers there; 0 for what is none of phx's
	Source           netip.Addr
	Dest             netip.Addr
	Port             int
}

// addressesOf returns all fixed addresses of a place.
func addressesOf(p *config.Place) []netip.Addr {
	var all []netip.Addr
	for _, text := range append([]string{p.IP}, p.Also...) {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// ends returns the addresses by which a place calls another one: the first ones of
// the same family. Where there are none, the source is not valid: the place may have
// an address that is not fixed.
func ends(from, to *config.Place) (source, dest netip.Addr) {
	all := addressesOf(to)
	for _, dest := range all {
		for _, source := range addressesOf(from) {
			if source.Is4() == dest.Is4() {
				return source, dest
			}
		}
	}
	if len(all) > 0 {
		dest = all[0]
	}
	return netip.Addr{}, dest
}

// Flows returns all connections that a plan's services need among each other.
func Flows(p *config.Plan) []Flow {
	var all []Flow
	add := func(from, to string, source, dest *config.Place, port int) {
		if s, d := ends(source, dest); d.IsValid() {
			all = append(all, Flow{from, to, source.CTID, dest.CTID, s, d, port})
		}
	}
	caPort := Port(p)
	if p.Gateway != nil {
		for _, address := range addressesOf(p.Gateway) {
			for _, port := range []int{80, 443} {
				f := Flow{From: "clients", To: "gateway", ToCTID: p.Gateway.CTID, Dest: address, Port: port}
				all = append(all, f)
			}
		}
	}
	if p.Gateway != nil && p.Proxy != nil {
		add("gateway", "proxy", p.Gateway, p.Proxy, 443)
	}
	if p.CA != nil && p.Gateway != nil {
		add("gateway", "CA", p.Gateway, p.CA, caPort)
	}
	if p.CA != nil && p.Proxy != nil {
		add("proxy", "CA", p.Proxy, p.CA, caPort)
		add("CA", "proxy", p.CA, p.Proxy, 443)
	}
	for _, s := range p.Services {
		_, at, err := config.ParseServiceURL(s.URL)
		if err != nil || p.Proxy == nil || p.CA != nil && s.CTID == p.CA.CTID {
			continue
		}
		service := &config.Place{CTID: s.CTID, IP: at.Addr().String()}
		add("proxy", "service "+s.Name, p.Proxy, service, int(at.Port()))
	}
	return all
}
