package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// Plan is what the programs have to know of all containers together: the part of
// the event plan.started that they read.
type Plan struct {
	Config   string    `json:"config"` // the file's path
	Domain   string    `json:"domain"`
	Services []Service `json:"services"`     // as [File.Services] has them
	CA       *Place    `json:"ca,omitempty"` // nil where the file has none with a fixed address, as the next two
	Proxy    *Place    `json:"proxy,omitempty"`
	Gateway  *Place    `json:"gateway,omitempty"`

	Dashboard *DashboardRoute `json:"dashboard,omitempty"`

	// ExternalNames are those of virtual machines that containers depend on, by id.
	ExternalNames map[int]string `json:"external_names,omitempty"`
}

// Hosts returns the names under which the proxy serves: those of the services, and
// that of its dashboard.
func (p *Plan) Hosts() []string {
	hosts := []string{}
	for _, s := range p.Services {
		hosts = append(hosts, s.Host)
	}
	if p.Dashboard != nil {
		hosts = append(hosts, p.Dashboard.Host)
	}
	return hosts
}

// Check returns an error unless a checked file can have such a plan: one that was
// read may come from elsewhere.
func (p *Plan) Check() error {
	if !IsHostName(p.Domain) {
		return fmt.Errorf("domain %q: not a domain", p.Domain)
	}
	for _, place := range p.Places() {
		if err := place.Check(); err != nil {
			return err
		}
	}
	for _, s := range p.Services {
		if err := s.Check(p.Domain); err != nil {
			return err
		}
	}
	for id, name := range p.ExternalNames {
		if _, err := ParseCTID(strconv.Itoa(id)); err != nil {
			return err
		}
		if !IsHostName(name) {
			return fmt.Errorf("guest %d: %q is not a host name", id, name)
		}
	}
	if p.Dashboard != nil {
		return p.Dashboard.Check(p.Domain)
	}
	return nil
}

// Places returns those of the CA, the proxy and the gateway that the plan has.
func (p *Plan) Places() []*Place {
	return slices.DeleteFunc([]*Place{p.CA, p.Proxy, p.Gateway}, func(place *Place) bool { return place == nil })
}

// Place is where the gateway, the proxy or the CA can be reached.
type Place struct {
	CTID      int      `json:"ctid"`
	IP        string   `json:"ip"`                  // without a prefix length
	Also      []string `json:"also,omitempty"`      // its other fixed addresses, of any family and interface
	MAC       string   `json:"mac,omitempty"`       // "" where the file leaves it to Proxmox VE
	Interface string   `json:"interface,omitempty"` // the container's, which has IP

	// Networks are those of all its fixed addresses, where one of the places of
	// the plan has several addresses.
	Networks []Network `json:"networks,omitempty"`
}

// Addresses returns the fixed addresses of a place, IP first.
func (p *Place) Addresses() []string { return append([]string{p.IP}, p.Also...) }

// Check returns an error unless a checked file can have such a place.
func (p Place) Check() error {
	if _, err := ParseCTID(strconv.Itoa(p.CTID)); err != nil {
		return err
	}
	networks := []Network{{MAC: p.MAC, Interface: p.Interface}}
	for _, n := range p.Networks {
		if !n.Prefix().IsValid() || n.Prefix().Addr().Zone() != "" {
			return fmt.Errorf("container %d: %q is not an address with a prefix length", p.CTID, n.Address)
		}
		networks = append(networks, n)
	}
	for _, address := range p.Addresses() {
		if !ipAddress.is(address) {
			return fmt.Errorf("container %d: %q is not an IP address", p.CTID, address)
		}
	}
	for _, n := range networks {
		switch {
		case n.MAC != "" && !macAddress.is(n.MAC):
			return fmt.Errorf("container %d: %q is not a MAC address", p.CTID, n.MAC)
		case n.Interface != "" && !isInterface(n.Interface):
			return fmt.Errorf("container %d: %q is not the name of an interface", p.CTID, n.Interface)
		}
	}
	return nil
}

// Network is a network that a container is in by a fixed address.
type Network struct {
	Address   string `json:"address"`       // with its prefix length
	MAC       string `json:"mac,omitempty"` // of the container there; "" where the file leaves it to Proxmox VE
	Interface string `json:"interface"`     // the container's
}

// Prefix returns the container's address and the network around it; not valid when
// Address is none.
func (n Network) Prefix() netip.Prefix {
	prefix, _ := netip.ParsePrefix(n.Address)
	return prefix
}

// Plan returns what a plan of the file says of its containers. domain is that of
// the services.
func (f *File) Plan(domain string) Plan {
	p := Plan{
		Config: f.Path, Domain: domain, Services: f.Services(domain),
		CA: f.Place(CAScript), Proxy: f.Place(ProxyScript), Gateway: f.Place(GatewayScript),
		Dashboard: f.Dashboard.route(domain), ExternalNames: f.externalNames(),
	}
	places := p.Places()
	if slices.ContainsFunc(places, func(place *Place) bool { return len(place.Also) > 0 }) {
		for _, place := range places {
			place.Networks = f.Container(place.CTID).networks()
		}
	}
	return p
}

// Place returns where the container with an application script can be reached,
// nil when there is none with a fixed address.
func (f *File) Place(script string) *Place {
	c := f.first(func(c *Container) bool { return c.ApplicationScript == script && c.Address().IsValid() })
	if c == nil {
		return nil
	}
	reached := c.Reached()
	place := &Place{CTID: c.CTID, IP: c.Address().String(), MAC: reached.MAC, Interface: reached.Name}
	for _, also := range c.Addresses()[1:] {
		place.Also = append(place.Also, also.String())
	}
	return place
}

// networks returns those of the container's fixed addresses, in their order.
func (c *Container) networks() []Network {
	var all []Network
	for _, i := range c.Interfaces {
		for _, a := range []Addressing{i.IPv4, i.IPv6} {
			if a.Prefix.IsValid() {
				all = append(all, Network{Address: a.Prefix.String(), MAC: i.MAC, Interface: i.Name})
			}
		}
	}
	return all
}

// externalNames returns the names of the virtual machines on which containers
// depend, by id.
func (f *File) externalNames() map[int]string {
	known := make(map[int]string, len(f.VMs))
	for _, vm := range f.VMs {
		known[vm.VMID] = vm.Name
	}
	names := map[int]string{}
	for _, c := range f.Containers {
		for _, id := range c.Dependencies {
			if name := known[id]; name != "" {
				names[id] = name
			}
		}
	}
	return names
}
