package main

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"

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
	Services   []route           `json:"services"`
	Gateway    string            `json:"gateway"`   // IP address of the gateway before it; "" for none
	Interface  string            `json:"interface"` // through which its neighbours are reached
	Neighbours []guest.Neighbour `json:"neighbours,omitempty"`
}

// route leads from a name to a container's service behind the proxy.
type route struct {
	Name string `json:"name"`         // of its router
	Host string `json:"host"`         // the name under which it is served
	URL  string `json:"url"`          // where the container answers: SCHEME://ADDRESS:PORT
	CA   bool   `json:"ca,omitempty"` // it is the CA, of which the proxy serves a part
}

// routesOf returns the routes to services; ca is the container of the CA, 0 for
// none.
func routesOf(services []config.Service, ca int) []route {
	var routes []route
	for _, s := range services {
		routes = append(routes, route{s.Name, s.Host, s.URL, s.CTID == ca})
	}
	return routes
}

// address returns the IP address where the container answers.
func (r route) address() string {
	_, at, _ := config.ParseServiceURL(r.URL)
	return at.Addr().String()
}

var (
	nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	hostForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
)

// check refuses what would mean something else in a Traefik rule, in
// /etc/hosts or on step's command line, or in Traefik's dynamic configuration,
// where {{ }} is a template whatever YAML thinks of it.
func (p proxy) check() error {
	for _, s := range p.Services {
		if !nameForm.MatchString(s.Name) {
			return fmt.Errorf("service %q: not a label of a host name in lower case", s.Name)
		}
		if !hostForm.MatchString(s.Host) {
			return fmt.Errorf("service %s: host %q: not a host name in lower case", s.Name, s.Host)
		}
		if _, _, err := config.ParseServiceURL(s.URL); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	if p.CAURL == "" {
		return errors.New("CA URL: none is given")
	}
	if ip, err := netip.ParseAddr(p.Gateway); p.Gateway != "" && (err != nil || ip.Zone() != "") {
		return fmt.Errorf("gateway %q: not an IP address", p.Gateway)
	}
	return p.Trust.Check()
}

// hosts are the names that the proxy serves.
func (p proxy) hosts() []string {
	hosts := []string{}
	for _, s := range p.Services {
		hosts = append(hosts, s.Host)
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
		ca := 0
		if place := file.Place(config.CAScript); place != nil {
			ca = place.CTID
		}
		p.Services = routesOf(file.Services(domain), ca)
	} else if c.IsSet("domain") {
		for i, s := range p.Services {
			p.Services[i].Host = s.Name + "." + domain
		}
	}
	if err := p.check(); err != nil {
		return p, cmdline.Usagef("%v", err)
	}
	return p, nil
}
