package main

import (
	"bufio"
	"fmt"
	"net/netip"
	"strings"

	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
)

// hosts writes names and addresses as /etc/hosts has them.
func (p *plan) hosts(out *bufio.Writer) error {
	return p.names(func(name, address string) { fmt.Fprintf(out, "%s %s\n", address, name) })
}

// dnsmasq writes names and addresses as options of dnsmasq. Of an address the first
// name is the answer to a reverse lookup.
func (p *plan) dnsmasq(out *bufio.Writer) error {
	return p.names(func(name, address string) { fmt.Fprintf(out, "host-record=%s,%s\n", name, address) })
}

// names calls each for the containers with their own addresses, and for what the
// proxy serves with those of the gateway or the proxy. One that has several
// addresses has a line for each.
func (p *plan) names(each func(name, address string)) error {
	plan := p.whole
	leads, script := plan.Gateway, config.GatewayScript
	if p.answer == "proxy" {
		leads, script = plan.Proxy, config.ProxyScript
	}
	var hosts []string
	for _, s := range plan.Services {
		hosts = append(hosts, s.Host)
	}
	if plan.Dashboard != nil {
		hosts = append(hosts, plan.Dashboard.Host)
	}
	if leads == nil && len(hosts) > 0 {
		return fmt.Errorf("the services' names lead to the %s, and no container with a fixed address is that "+
			"(application script %s)", p.answer, script)
	}
	for _, c := range p.order {
		if !isLookedUp(c.Name) {
			cmdline.Logf("%d %s: left out: no name that can lead to a container", c.CTID, c.Name)
			continue
		}
		for _, address := range c.Addresses() {
			each(c.Name, address.String())
		}
	}
	for _, host := range hosts {
		for _, address := range append([]string{leads.IP}, leads.Also...) {
			each(host, address)
		}
	}
	return nil
}

// isLookedUp reports whether a container's name can be one for clients: an address
// is none, and localhost is everybody's own.
func isLookedUp(name string) bool {
	_, err := netip.ParseAddr(name)
	return err != nil && !strings.EqualFold(name, "localhost")
}
