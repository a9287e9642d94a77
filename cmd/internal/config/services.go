package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// TraefikService is what a container or a virtual machine serves, to be reached
// through the proxy as https://NAME.DOMAIN.
type TraefikService struct {
	Name       string // name: of one or more labels, in lower case
	Port       int    // port: from 1 to 65535
	Scheme     string // scheme: http or https, what is spoken on Port
	Insecure   bool   // insecure: with https, its certificate is not verified
	ServerName string // server_name: with https, what its certificate must be for; "" for NAME.DOMAIN
}

// OtherService is an element of the key services: what neither a container of the
// file nor a virtual machine serves.
type OtherService struct {
	Name       string // as that of a TraefikService
	URL        string // SCHEME://ADDRESS:PORT
	Insecure   bool
	ServerName string
}

// Dashboard is where the proxy shows its dashboard, and to whom.
type Dashboard struct {
	Name  string   // name: as that of a TraefikService
	Allow []string // allow: addresses and networks, at least one
}

// Service is a service as the proxy serves it. It is that of a container, of a
// virtual machine, or, without CTID and VMID, of something else.
type Service struct {
	Name       string `json:"name"`
	Host       string `json:"host"` // NAME.DOMAIN
	URL        string `json:"url"`  // where it is served: SCHEME://ADDRESS:PORT
	CTID       int    `json:"ctid,omitempty"`
	VMID       int    `json:"vmid,omitempty"`
	Insecure   bool   `json:"insecure,omitempty"`    // its certificate is not verified
	ServerName string `json:"server_name,omitempty"` // what its certificate must be for; "" for Host
}

// Check returns an error unless a checked file can have such a service in domain.
func (s Service) Check(domain string) error {
	for _, id := range []int{s.CTID, s.VMID} {
		if _, err := ParseCTID(strconv.Itoa(id)); id != 0 && err != nil {
			return err
		}
	}
	if err := checkHost("service", s.Name, s.Host, domain); err != nil {
		return err
	}
	scheme, _, err := ParseServiceURL(s.URL)
	switch {
	case err != nil:
		return fmt.Errorf("service %q: %w", s.Name, err)
	case s.ServerName != "" && !IsHostName(s.ServerName):
		return fmt.Errorf("service %q: server name %q: not a host name", s.Name, s.ServerName)
	case scheme == "http" && (s.Insecure || s.ServerName != ""):
		return fmt.Errorf("service %q: %s has no certificate", s.Name, s.URL)
	}
	return nil
}

// checkHost returns an error unless host is that of a name in domain.
func checkHost(what, name, host, domain string) error {
	if !IsHostName(name) || host != name+"."+domain {
		return fmt.Errorf("%s %q: host %q: not a host name below %s", what, name, host, domain)
	}
	if !IsHostName(host) {
		return fmt.Errorf("%s %q: %s is not a host name: longer than %d", what, name, host, maxHostName)
	}
	return nil
}

// DashboardRoute is where the proxy serves its dashboard.
type DashboardRoute struct {
	Name  string   `json:"name"`
	Host  string   `json:"host"`  // NAME.DOMAIN
	Allow []string `json:"allow"` // addresses and networks that get it
}

// Check returns an error unless a checked file can have such a dashboard in domain.
func (d DashboardRoute) Check(domain string) error {
	if err := d.CheckAllow(); err != nil {
		return err
	}
	return checkHost("dashboard", d.Name, d.Host, domain)
}

// CheckAllow returns an error unless the dashboard is for somebody, by address.
func (d DashboardRoute) CheckAllow() error {
	if len(d.Allow) == 0 || slices.ContainsFunc(d.Allow, func(s string) bool { return !clients.is(s) }) {
		return fmt.Errorf("dashboard: %.200q: not addresses and networks", d.Allow)
	}
	return nil
}

func (d *Dashboard) route(domain string) *DashboardRoute {
	if d == nil {
		return nil
	}
	return &DashboardRoute{Name: d.Name, Host: d.Name + "." + domain, Allow: d.Allow}
}

// ParseServiceURL splits the URL of a service: http or https, and the address
// and port where it is served. It refuses anything beside these.
func ParseServiceURL(s string) (scheme string, at netip.AddrPort, err error) {
	scheme, host, _ := strings.Cut(s, "://")
	at, err = netip.ParseAddrPort(host)
	if err != nil || at.Port() == 0 || at.Addr().Zone() != "" || !urlScheme.is(scheme) {
		return "", netip.AddrPort{}, fmt.Errorf("url %q: not http:// or https:// with an address and a port", s)
	}
	return scheme, at, nil
}

// Services returns what the proxy is to serve: the services of the containers, by
// CTID, those of the virtual machines, and the others. One without a fixed address
// cannot be served.
func (f *File) Services(domain string) []Service {
	services := []Service{}
	add := func(t *TraefikService, at netip.Addr, service Service) {
		if t == nil || !at.IsValid() {
			return
		}
		service.Name, service.Host = t.Name, t.Name+"."+domain
		service.URL = t.Scheme + "://" + netip.AddrPortFrom(at, uint16(t.Port)).String()
		service.Insecure, service.ServerName = t.Insecure, t.ServerName
		services = append(services, service)
	}
	var proxy []netip.Prefix
	if c := f.first(func(c *Container) bool { return c.ApplicationScript == ProxyScript }); c != nil {
		proxy = c.prefixes()
	}
	for c := range f.all() {
		if c.IsTemplate || c.TraefikService == nil { // a template never runs
			continue
		}
		at := Closest(c.Addresses(), proxy)
		if !at.IsValid() {
			at = c.Address()
		}
		add(c.TraefikService, at, Service{CTID: c.CTID})
	}
	for _, vm := range f.VMs {
		add(vm.Service, vm.Address, Service{VMID: vm.VMID})
		add(vm.Agent, vm.Address, Service{VMID: vm.VMID})
	}
	for _, o := range f.Others {
		services = append(services, Service{
			Name: o.Name, Host: o.Name + "." + domain, URL: o.URL, Insecure: o.Insecure, ServerName: o.ServerName,
		})
	}
	return services
}

// prefixes returns the fixed addresses of all interfaces with their networks.
func (c *Container) prefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, i := range c.Interfaces {
		for _, p := range []netip.Prefix{i.IPv4.Prefix, i.IPv6.Prefix} {
			if p.IsValid() {
				all = append(all, p)
			}
		}
	}
	return all
}

// Closest returns the one of a machine's addresses at which another machine reaches
// it that has the addresses own, with their networks: the first in such a network,
// else the first of a family that own has. Without any it is not valid.
func Closest(addresses []netip.Addr, own []netip.Prefix) netip.Addr {
	var second netip.Addr
	for _, a := range addresses {
		for _, p := range own {
			if p.Contains(a) {
				return a
			}
			if !second.IsValid() && p.Addr().Is4() == a.Is4() {
				second = a
			}
		}
	}
	return second
}

// served is what the root of the file says about services.
type served struct {
	others []otherEntry
	board  *boardEntry
}

// An otherEntry is an element of services with the offsets of its members.
type otherEntry struct {
	OtherService
	index          int
	at, name, url  int
	certificateKey certificateKeys
}

type boardEntry struct {
	Dashboard
	name, allow int // offsets
}

// read returns what is served, when nothing in it is wrong.
func (s served) read() ([]OtherService, *Dashboard) {
	var others []OtherService
	for _, o := range s.others {
		others = append(others, o.OtherService)
	}
	if s.board == nil {
		return others, nil
	}
	return others, &s.board.Dashboard
}

// length returns how long the services are in an event at most.
func (s served) length() int {
	n := 0
	for _, o := range s.others {
		n += serviceLength(o.Name, o.ServerName)
	}
	if s.board != nil {
		n += serviceLength(s.board.Name, strings.Join(s.board.Allow, `","`))
	}
	return n
}

// length returns how long the service is in an event at most.
func (s *TraefikService) length() int { return serviceLength(s.Name, s.ServerName) }

func serviceLength(name, serverName string) int {
	return 2*len(name) + len(serverName) + maxHostName +
		len(`{"name":"","host":".","url":"https://[0000:0000:0000:0000:0000:0000:0000:0000]:65535","ctid":999999999,`+
			`"insecure":true,"server_name":""},`)
}

// certificateKeys are the offsets of the keys that are about a certificate, 0 for
// those that are not given.
type certificateKeys struct{ insecure, serverName int }

// needTLS refuses those keys where there is no certificate. keys are those on the
// way to the service.
func (p *parser) needTLS(s TraefikService, at certificateKeys, keys string) {
	if s.Scheme != "http" {
		return
	}
	if at.insecure > 0 && s.Insecure {
		p.failUnder(at.insecure, keys+"insecure", "with http there is no certificate to verify: leave it out")
	}
	if at.serverName > 0 {
		p.failUnder(at.serverName, keys+"server_name", "with http there is no certificate: leave it out")
	}
}

// serviceTLS checks what a container's service says of its certificate.
func (p *parser) serviceTLS(e *entry) {
	const keys = "traefik_service."
	p.needTLS(*e.TraefikService, e.certificate, keys)
	if e.ApplicationScript != CAScript || e.TraefikService.Scheme != "https" {
		return
	}
	if e.TraefikService.Insecure {
		p.failUnder(e.certificate.insecure, keys+"insecure", "the CA's certificate is always verified: leave it out")
	}
	if e.certificate.serverName > 0 {
		p.failUnder(e.certificate.serverName, keys+"server_name",
			"the CA's certificate is for NAME.DOMAIN: leave it out")
	}
}

func traefikService(p *parser, e *entry, v gjson.Result) {
	e.TraefikService = p.service(v, (*parser).ignore, &e.service, &e.certificate)
}

// A serviceObject is the object of a service of a container or a virtual machine,
// with the offset of its name.
type serviceObject struct {
	TraefikService
	name        int
	certificate certificateKeys
}

const nameEffect = "the service is `https://NAME.DOMAIN`"

var serviceKeys = []key[serviceObject]{
	{name: "name", need: "the service's host name is NAME.DOMAIN",
		value: special(hostNameForm, func(p *parser, s *serviceObject, v gjson.Result) {
			s.name, s.Name = v.Index, p.serviceName(v)
		}).as(labels), effect: nameEffect},
	{name: "port", need: "where it is served", value: whole(1, 65535, func(s *serviceObject, n int) { s.Port = n }),
		effect: "where the container serves it; of the gateway: its status page, which 80 and 443 leave to its name " +
			"alone"},
	{name: "scheme", value: text(urlScheme, func(s *serviceObject, scheme string) { s.Scheme = scheme }),
		effect: "what the container speaks there; `http` without, for the CA `https`"},
	{name: "insecure", value: special(boolean, func(p *parser, s *serviceObject, v gjson.Result) {
		s.Insecure, s.certificate.insecure = p.boolean(v), v.Index
	}), without: false,
		effect: "with `https`: its certificate is not verified, which each run of `phx-traefik` says; not for the CA"},
	{name: "server_name", value: special(hostNameForm, func(p *parser, s *serviceObject, v gjson.Result) {
		s.ServerName, s.certificate.serverName = p.serviceName(v), v.Index
	}), effect: "with `https`: the name that its certificate has to be for; `NAME.DOMAIN` without"},
}

// labels is what the name of a service has to be.
const labels = "host name of one or more labels"

// service reads the traefik_service of a container or a virtual machine. Its scheme
// is "" where none is given.
func (p *parser) service(v gjson.Result, unknown func(*parser, gjson.Result),
	name *int, at *certificateKeys,
) *TraefikService {
	s := serviceObject{name: *name, certificate: *at}
	readObject(p, v, &s, serviceKeys, unknown)
	*name, *at = s.name, s.certificate
	return &s.TraefikService
}

// serviceName reads a host name.
func (p *parser) serviceName(v gjson.Result) string { return strings.ToLower(p.formatted(v, hostName)) }

var otherServiceKeys = []key[otherEntry]{
	{name: "name", need: "the service's host name is NAME.DOMAIN",
		value: special(hostNameForm, func(p *parser, o *otherEntry, v gjson.Result) {
			o.Name, o.name = p.serviceName(v), v.Index
		}).as(labels), effect: nameEffect},
	{name: "url", need: "where it is served, as in https://10.0.0.9:8443",
		value: special(serviceURLForm, func(p *parser, o *otherEntry, v gjson.Result) {
			o.URL, o.url = p.serviceURL(v), v.Index
		}), effect: "where it is; an IPv6 address in brackets, and no host name, for whose answer nobody would stand"},
	{name: "insecure", value: special(boolean, func(p *parser, o *otherEntry, v gjson.Result) {
		o.Insecure, o.certificateKey.insecure = p.boolean(v), v.Index
	}), without: false, effect: "as in [`traefik_service`](#traefik_service)"},
	{name: "server_name", value: special(hostNameForm, func(p *parser, o *otherEntry, v gjson.Result) {
		o.ServerName, o.certificateKey.serverName = p.serviceName(v), v.Index
	}), effect: "as in [`traefik_service`](#traefik_service)"},
}

var servicesForm = listOf("list of objects", objectOf(otherServiceKeys, true, nil))

// services reads the key services of the root.
func (p *parser) services(v gjson.Result) {
	index := 0
	var o otherEntry
	p.list(v, func(v gjson.Result) {
		o = otherEntry{index: index, at: v.Index}
		index++
		readObject(p, v, &o, otherServiceKeys, (*parser).refuse)
		scheme, _, _ := ParseServiceURL(o.URL)
		p.needTLS(TraefikService{Scheme: scheme, Insecure: o.Insecure}, o.certificateKey, "")
		if v.IsObject() && !p.full() {
			p.served.others = append(p.served.others, o)
		}
	})
}

var serviceURLForm = like("`http://ADDRESS:PORT` or `https://ADDRESS:PORT`",
	`https?://(`+v4+`|\[`+v6+`\]):0*`+port)

// serviceURL reads where a service is served.
func (p *parser) serviceURL(v gjson.Result) string {
	s, ok := p.str(v)
	if !ok {
		return ""
	}
	scheme, at, err := ParseServiceURL(s)
	switch a := at.Addr(); {
	case err != nil:
		p.fail(v, "%q is not http:// or https:// with an IP address and a port, and nothing else, as in "+
			"https://10.0.0.9:8443 or http://[fd00::9]:80", s)
	case a.Is4In6():
		p.fail(v, "%v is the IPv4 address %v: write that", a, a.Unmap())
	case a.IsLoopback(), a.IsUnspecified(), a.IsMulticast():
		p.fail(v, "%v is not the address of another machine", a)
	default:
		return scheme + "://" + at.String()
	}
	return ""
}

var dashboardKeys = []key[boardEntry]{
	{name: "name", need: "the dashboard's host name is NAME.DOMAIN",
		value: special(hostNameForm, func(p *parser, d *boardEntry, v gjson.Result) {
			d.Name, d.name = p.serviceName(v), v.Index
		}).as(labels), effect: "it is `https://NAME.DOMAIN`"},
	{name: "allow", need: "the addresses and networks whose clients get it",
		value: special(clientsForm(), func(p *parser, d *boardEntry, v gjson.Result) {
			d.allow = v.Index
			empty := v.IsArray()
			p.list(v, func(v gjson.Result) {
				empty = false
				if s := p.formatted(v, clients); s != "" && !p.full() {
					d.Allow = append(d.Allow, s)
				}
			})
			if empty {
				p.fail(v, "must not be empty: nobody would get the dashboard")
			}
		}), effect: "the clients that get it"},
}

func clientsForm() form {
	return listOf("list of IP addresses and networks, not empty", clients.form).with(shape{"minItems": 1})
}

// dashboard reads the key dashboard of the root.
func (p *parser) dashboard(v gjson.Result) {
	d := &boardEntry{}
	readObject(p, v, d, dashboardKeys, (*parser).refuse)
	p.served.board = d
}

// clients is the format of those who may use something.
var clients = format{"an IP address or a network, as in 10.0.0.0/24", isClients,
	like("IP address or network", `(`+networks4+`|`+networks6+`)`)}

func isClients(s string) bool {
	network, err := netip.ParsePrefix(s)
	if err == nil {
		return network == network.Masked() && !network.Addr().Is4In6()
	}
	address, err := netip.ParseAddr(s)
	return err == nil && address.Zone() == "" && !address.Is4In6()
}

// taken is what services must not have twice, each with whose it is.
type taken struct {
	names     map[string]string
	addresses map[netip.Addr]string // of containers and virtual machines
}

func takenBy(containers func(yield func(*Container) bool)) taken {
	t := taken{map[string]string{}, map[netip.Addr]string{}}
	for c := range containers {
		owner := "container " + strconv.Itoa(c.CTID)
		if s := c.TraefikService; s != nil {
			t.names[s.Name] = "the service of " + owner
		}
		for _, ip := range c.Addresses() {
			t.addresses[ip] = owner
		}
	}
	return t
}

// claim makes a name that of owner, and returns whose it is already, "" for
// nobody's.
func (t taken) claim(name, owner string) string {
	if name == "" {
		return ""
	}
	if first := t.names[name]; first != "" {
		return first
	}
	t.names[name] = owner
	return ""
}

// servedRelations checks what the root says about services against the containers.
func (p *parser) servedRelations(found []*entry) {
	if len(p.served.others) == 0 && p.served.board == nil {
		return
	}
	t := takenBy(func(yield func(*Container) bool) {
		for _, e := range found {
			if !yield(e.Container) {
				return
			}
		}
	})
	fail := func(at int, keys, format string, args ...any) {
		p.mistakes.add(at, func() note { return note{at, keys, message(format, args), -1} })
	}
	p.served.claim(t, fail)
	for _, e := range found {
		if board := p.served.board; board != nil && e.ApplicationScript == GatewayScript {
			if key, _, method := e.unfixed(); method != "" {
				fail(board.allow, "dashboard.allow", "the gateway, container %d, has no fixed address (%s is %s): the "+
					"proxy could not tell its clients from itself", e.CTID, key, method)
			}
		}
	}
}

// claim gives the names of what is served to their owners, and reports what is
// somebody else's.
func (s served) claim(t taken, fail func(at int, keys, format string, args ...any)) {
	for _, o := range s.others {
		keys := fmt.Sprintf("services.%d", o.index)
		if first := t.claim(o.Name, keys); first != "" {
			fail(o.name, keys+".name", "%s is %s already", o.Name, first)
		}
		_, at, _ := ParseServiceURL(o.URL)
		if owner := t.addresses[at.Addr()]; owner != "" {
			fail(o.url, keys+".url", "%v is the address of %s: give that a traefik_service", at.Addr(), owner)
		}
	}
	if s.board != nil {
		if first := t.claim(s.board.Name, "the dashboard"); first != "" {
			fail(s.board.name, "dashboard.name", "%s is %s already", s.board.Name, first)
		}
	}
}
