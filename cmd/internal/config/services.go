package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Plan is what the containers of a plan have to know of each other: the part
// of plan.started that the filters read.
type Plan struct {
	Config   string    `json:"config"` // the file
	Domain   string    `json:"domain"`
	Services []Service `json:"services"`
	CA       *Place    `json:"ca,omitempty"` // nil where the file has none with a fixed address
	Proxy    *Place    `json:"proxy,omitempty"`
	Gateway  *Place    `json:"gateway,omitempty"`
}

// Check returns an error for what the plan of a checked file cannot hold: a
// plan that was read may come from elsewhere.
func (p *Plan) Check() error {
	if !IsHostName(p.Domain) {
		return fmt.Errorf("domain %q: not a domain", p.Domain)
	}
	for _, place := range []*Place{p.CA, p.Proxy, p.Gateway} {
		if place == nil {
			continue
		}
		if err := place.Check(); err != nil {
			return err
		}
	}
	for _, s := range p.Services {
		if err := s.Check(p.Domain); err != nil {
			return err
		}
	}
	return nil
}

// Service is a traefik_service as the proxy serves it.
type Service struct {
	Name string `json:"name"`
	Host string `json:"host"` // NAME.DOMAIN
	URL  string `json:"url"`  // of the container itself: SCHEME://ADDRESS:PORT
	CTID int    `json:"ctid"`
}

// Place is where a container with a part of its own in phx can be reached.
type Place struct {
	CTID      int    `json:"ctid"`
	IP        string `json:"ip"`
	MAC       string `json:"mac,omitempty"`       // "" where the file leaves it to Proxmox VE
	Interface string `json:"interface,omitempty"` // the container's, which has that address
}

var interfaceForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)

// IsInterface reports whether s is the name of a network interface.
func IsInterface(s string) bool { return interfaceForm.MatchString(s) }

// Check returns an error for a place that no checked file has.
func (p Place) Check() error {
	if _, err := ParseCTID(strconv.Itoa(p.CTID)); err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(p.IP); err != nil || ip.Zone() != "" {
		return fmt.Errorf("container %d: %q is not an IP address", p.CTID, p.IP)
	}
	if mac, err := net.ParseMAC(p.MAC); p.MAC != "" && (err != nil || len(mac) != 6) {
		return fmt.Errorf("container %d: %q is not a MAC address", p.CTID, p.MAC)
	}
	if p.Interface != "" && !IsInterface(p.Interface) {
		return fmt.Errorf("container %d: %q is not the name of an interface", p.CTID, p.Interface)
	}
	return nil
}

// Check returns an error for a service that no checked file has.
func (s Service) Check(domain string) error {
	if _, err := ParseCTID(strconv.Itoa(s.CTID)); err != nil {
		return err
	}
	if !IsHostName(s.Name) || s.Host != s.Name+"."+domain {
		return fmt.Errorf("service %q: host %q: not a host name below %s", s.Name, s.Host, domain)
	}
	if _, _, err := ParseServiceURL(s.URL); err != nil {
		return fmt.Errorf("service %q: %w", s.Name, err)
	}
	return nil
}

// ParseServiceURL splits the URL of a service: http or https, and the address
// and port where its container answers. It refuses anything beside these.
func ParseServiceURL(s string) (scheme string, at netip.AddrPort, err error) {
	scheme, host, _ := strings.Cut(s, "://")
	at, err = netip.ParseAddrPort(host)
	if err != nil || at.Addr().Zone() != "" || scheme != "http" && scheme != "https" {
		return "", netip.AddrPort{}, fmt.Errorf("url %q: not http:// or https:// with an address and a port", s)
	}
	return scheme, at, nil
}

// Plan returns what a plan says of the file. domain is that of the services.
func (f *File) Plan(domain string) Plan {
	return Plan{f.Path, domain, f.Services(domain), f.Place(CAScript), f.Place(ProxyScript), f.Place(GatewayScript)}
}

// Place returns that of the container with an application script, nil when
// there is none with a fixed address.
func (f *File) Place(script string) *Place {
	for id, c := range f.Containers {
		if c.ApplicationScript == script && !c.Network.DHCP {
			return &Place{CTID: id, IP: c.Network.IP.Addr().String(), MAC: c.MAC, Interface: c.Network.Name}
		}
	}
	return nil
}

// Services returns the services of all containers, by CTID.
func (f *File) Services(domain string) []Service {
	services := []Service{}
	for _, ctid := range slices.Sorted(maps.Keys(f.Containers)) {
		c := f.Containers[ctid]
		if c.TraefikService == nil {
			continue
		}
		address := url.URL{
			Scheme: c.TraefikService.Scheme,
			Host:   net.JoinHostPort(c.Network.IP.Addr().String(), strconv.Itoa(c.TraefikService.Port)),
		}
		services = append(services, Service{c.TraefikService.Name, c.TraefikService.Name + "." + domain, address.String(), ctid})
	}
	return services
}
