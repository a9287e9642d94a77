package main

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/guest"
)

// gatewayFile is what apply was asked last, in the container, for renew and the
// next apply.
const gatewayFile = stateDir + "/gateway.json"

// gateway is what is to be set up: the request from the host's half to the
// container's.
type gateway struct {
	guest.Trust
	Domain     string            `json:"domain"`              // served as itself and as *.Domain
	Names      []string          `json:"names,omitempty"`     // below Domain, of several labels: *.Domain means one
	Proxy      string            `json:"proxy"`               // IP address of the proxy, which serves HTTPS at port 443
	StatusPort int               `json:"status_port"`         // of the status page; 0 for none
	StatusHost string            `json:"status_host"`         // by which the page is served as well; "" for none
	Addresses  []string          `json:"addresses,omitempty"` // of the gateway, where it has several
	Interface  string            `json:"interface"`           // through which its neighbours are reached
	Neighbours []guest.Neighbour `json:"neighbours,omitempty"`
	AptProxy   string            `json:"apt_proxy,omitempty"` // for this request alone; "" for none
}

var domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// check refuses what would mean something else in nginx's configuration or on
// step's command line.
func (g gateway) check() error {
	switch {
	case !domainForm.MatchString(g.Domain):
		return fmt.Errorf("domain %q: not a host name in lower case", g.Domain)
	case g.StatusPort < 0 || g.StatusPort > 65535 || g.StatusPort == 80 || g.StatusPort == 443:
		return fmt.Errorf("status port %d: not a free TCP port", g.StatusPort)
	case g.StatusHost != "" && !isBelow(g.StatusHost, g.Domain):
		return fmt.Errorf("status host %q: not a host name below %s", g.StatusHost, g.Domain)
	case slices.ContainsFunc(g.Names, func(name string) bool { return !isBelow(name, g.Domain) }):
		return fmt.Errorf("names %q: not all are host names below %s", g.Names, g.Domain)
	case g.AptProxy != "" && cmdline.CheckAptProxy(g.AptProxy) != nil:
		return fmt.Errorf("apt proxy %q: %w", g.AptProxy, cmdline.CheckAptProxy(g.AptProxy))
	case g.Root == "":
		return errors.New("root certificate: no place is given")
	}
	if ip, err := netip.ParseAddr(g.Proxy); err != nil || ip.Zone() != "" {
		return fmt.Errorf("proxy %q: not an IP address", g.Proxy)
	}
	for _, address := range g.Addresses {
		if ip, err := netip.ParseAddr(address); err != nil || ip.Zone() != "" {
			return fmt.Errorf("address %q: not an IP address", address)
		}
	}
	return g.Trust.Check()
}

func isBelow(name, domain string) bool {
	return domainForm.MatchString(name) && strings.HasSuffix(name, "."+domain)
}

// names are the names of the gateway's certificate.
func (g gateway) names() []string { return append([]string{g.Domain, "*." + g.Domain}, g.Names...) }

// gatewayOf reads a gateway from the options of apply and render. What they
// leave out is as in last, and has its default where last has nothing.
func gatewayOf(c *cli.Context, last gateway) (gateway, error) {
	g := last
	g.Trust.ReadOptions(c)
	guest.ReadOptions(c, map[string]*string{"domain": &g.Domain, "proxy": &g.Proxy})
	move := func(host string) string {
		if label, below := strings.CutSuffix(host, "."+last.Domain); below {
			return label + "." + g.Domain
		}
		return host
	}
	g.StatusHost, g.Names = move(g.StatusHost), slices.Clone(g.Names)
	for i, name := range g.Names {
		g.Names[i] = move(name)
	}
	if c.IsSet("status-port") {
		g.StatusPort = c.Int("status-port")
	}
	if c.Args().Present() {
		return g, cmdline.Usagef("unexpected argument %q", c.Args().First())
	}
	return g, nil
}
