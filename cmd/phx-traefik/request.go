package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"regexp"
	"slices"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/guest"
)

// proxyFile is what apply was asked last, in the container, for the next apply.
const proxyFile = "/etc/phx/traefik/proxy.json"

// proxy is what is to be set up: the request from the host's half to the
// container's.
type proxy struct {
	guest.Trust
	Services    []route                `json:"services"`
	Dashboard   *config.DashboardRoute `json:"dashboard,omitempty"`
	Gateway     string                 `json:"gateway"`                // IP address of the gateway; "" for none
	GatewayAlso []string               `json:"gateway_also,omitempty"` // the gateway's other addresses
	Interface   string                 `json:"interface"`              // through which its neighbours are reached
	Neighbours  []guest.Neighbour      `json:"neighbours,omitempty"`
}

// route leads from a name to a service behind the proxy.
type route struct {
	Name       string `json:"name"`                  // of its router
	Host       string `json:"host"`                  // the name under which it is served
	URL        string `json:"url"`                   // where it answers: SCHEME://ADDRESS:PORT
	CA         bool   `json:"ca,omitempty"`          // it is the CA, of which the proxy serves a part
	Insecure   bool   `json:"insecure,omitempty"`    // its certificate is not verified
	ServerName string `json:"server_name,omitempty"` // what its certificate must be for; "" for Host
}

// routesOf returns the routes to services; ca is the container of the CA, 0 for
// none.
func routesOf(services []config.Service, ca int) []route {
	var routes []route
	for _, s := range services {
		routes = append(routes, route{
			Name: s.Name, Host: s.Host, URL: s.URL, CA: ca != 0 && s.CTID == ca,
			Insecure: s.Insecure, ServerName: s.ServerName,
		})
	}
	return routes
}

// serverName returns the name that a certificate of the service must be for.
func (r route) serverName() string { return cmp.Or(r.ServerName, r.Host) }

// address returns the IP address where the service answers.
func (r route) address() string {
	_, at, _ := config.ParseServiceURL(r.URL)
	return at.Addr().String()
}

var hostForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// check refuses what would mean something else in a Traefik rule, in
// /etc/hosts or on step's command line, or in Traefik's dynamic configuration,
// where {{ }} is a template whatever YAML thinks of it.
func (p proxy) check() error {
	for _, s := range p.Services {
		for _, name := range []string{s.Name, s.Host, s.serverName()} {
			if !hostForm.MatchString(name) {
				return fmt.Errorf("service %q: %q: not a host name in lower case", s.Name, name)
			}
		}
		if _, _, err := config.ParseServiceURL(s.URL); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	if p.CAURL == "" {
		return errors.New("CA URL: none is given")
	}
	for _, address := range p.gateways() {
		if ip, err := netip.ParseAddr(address); err != nil || ip.Zone() != "" {
			return fmt.Errorf("gateway %q: not an IP address", address)
		}
	}
	if d := p.Dashboard; d != nil {
		if !hostForm.MatchString(d.Host) {
			return fmt.Errorf("dashboard: %q: not a host name in lower case", d.Host)
		}
		if err := d.CheckAllow(); err != nil {
			return err
		}
	}
	return p.Trust.Check()
}

// gateways returns the addresses of the gateway, the one to reach it first.
func (p proxy) gateways() []string {
	if p.Gateway == "" {
		return nil
	}
	return append([]string{p.Gateway}, p.GatewayAlso...)
}

// hosts are the names that the proxy serves.
func (p proxy) hosts() []string {
	hosts := []string{}
	for _, s := range p.Services {
		hosts = append(hosts, s.Host)
	}
	if p.Dashboard != nil {
		hosts = append(hosts, p.Dashboard.Host)
	}
	return hosts
}

// proxyOf reads a proxy from the options of apply and render. What they leave
// out is as in last, and has its default where last has nothing.
func proxyOf(c *cli.Context, last proxy) (proxy, error) {
	p := last
	p.Trust.ReadOptions(c)
	switch {
	case c.Args().Present():
		return p, cmdline.Usagef("unexpected argument %q", c.Args().First())
	case p.CAURL == "":
		return p, cmdline.Usagef("--ca-url is required")
	}
	domain := c.String("domain")
	if c.IsSet("config") || last.CAURL == "" {
		file, err := config.Load(c.String("config"))
		if err != nil {
			return p, cmdline.Usagef("%v", err)
		}
		path, named := config.VMPath(c.String("config"), c.String("vm-config"))
		if _, err := config.LoadVMs(file, path, domain); err != nil && (named || !errors.Is(err, fs.ErrNotExist)) {
			return p, cmdline.Usagef("%v", err)
		}
		ca := 0
		if place := file.Place(config.CAScript); place != nil {
			ca = place.CTID
		}
		p.Services = routesOf(file.Services(domain), ca)
		p.Dashboard = file.Plan(domain).Dashboard
	} else if c.IsSet("domain") {
		p.Services = slices.Clone(p.Services)
		for i, s := range p.Services {
			p.Services[i].Host = s.Name + "." + domain
		}
		if p.Dashboard != nil {
			d := *p.Dashboard
			d.Host = d.Name + "." + domain
			p.Dashboard = &d
		}
	}
	if err := p.check(); err != nil {
		return p, cmdline.Usagef("%v", err)
	}
	return p, nil
}
