package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/tidwall/gjson"
)

// VM is what phoenix_vm_configs.json, which belongs to other programs, says about a
// virtual machine, as far as phx reads it: how it is called, and what it serves.
type VM struct {
	VMID    int             // vmid
	Name    string          // name: a host name; "" for none
	Address netip.Addr      // network_config.ip; not valid with dhcp, and where nothing is served
	Service *TraefikService // traefik_service
	Agent   *TraefikService // portainer_agent_hostname: at port 9001
}

// VMFile is a file of virtual machines without mistakes.
type VMFile struct {
	Path     string
	VMs      []VM      // in the file's order
	Warnings []Mistake // by position
	More     int       // warnings beside these
}

// agentPort is where Portainer's agent listens, for HTTPS alone.
const agentPort = 9001

// VMPath returns the place of the file of virtual machines that belongs to a
// configuration: the named one, or beside it, where it may be missing.
func VMPath(configPath, name string) (path string, named bool) {
	if name != "" {
		return name, true
	}
	return filepath.Join(filepath.Dir(configPath), "phoenix_vm_configs.json"), false
}

// LoadVMs reads and checks the file of the virtual machines at path. domain is that
// of the services: an agent's host name has it at its end. f gets the virtual
// machines, unless f is nil: then what f and they must not share is not checked. The
// error is an [*Error] when the file could be read but has mistakes; f then says so
// in ServedWrong.
func LoadVMs(f *File, path, domain string) (*VMFile, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the virtual machines' configuration: %w", err)
	}
	p := &vmParser{parser: newParser(text, nil), domain: domain}
	if root, ok := p.document(); ok {
		p.root(root)
		if f != nil && !p.full() {
			p.relations(f)
		}
	}
	warnings := p.report(p.warnings)
	if p.mistakes.count > 0 {
		wrong := &Error{
			File: path, Mistakes: p.report(p.mistakes), More: p.mistakes.more(),
			Warnings: warnings, MoreWarnings: p.warnings.more(),
		}
		if f != nil && f.ServedWrong == "" {
			f.ServedWrong = fmt.Sprintf("%s:%v", path, wrong.Mistakes[0])
		}
		return nil, wrong
	}
	file := &VMFile{Path: path, Warnings: warnings, More: p.warnings.more()}
	for _, vm := range p.found {
		file.VMs = append(file.VMs, vm.VM)
	}
	if f != nil {
		f.VMs = file.VMs
	}
	return file, nil
}

// A vmParser reads a file of virtual machines.
type vmParser struct {
	*parser
	domain string
	found  []vmEntry
}

// A vmEntry is a virtual machine with the offsets of its members.
type vmEntry struct {
	VM
	index                       int
	id, address, service, agent int
}

// skip passes over what belongs to other programs, whatever it is.
func skip(*parser, gjson.Result) {}

func (p *vmParser) root(v gjson.Result) {
	p.object(v, []need{{"vms", "it holds the virtual machines"}}, func(key string, v gjson.Result) {
		if key != "vms" {
			return // what belongs to other programs, whatever it is
		}
		ids, index := map[int]bool{}, 0
		p.list(v, func(v gjson.Result) {
			vm := p.vm(v)
			vm.index = index
			index++
			switch {
			case vm.VMID == 0:
			case ids[vm.VMID]:
				p.failUnder(vm.id, "vmid", "%d is that of another one already", vm.VMID)
			default:
				ids[vm.VMID] = true
			}
			if v.IsObject() && !p.full() {
				p.found = append(p.found, vm)
			}
		})
	})
}

// A vmObject is the object of a virtual machine, with values of some of its keys.
type vmObject struct {
	vmEntry
	network, portainer gjson.Result
	certificate        certificateKeys
	insecure           bool
}

var vmKeys = []key[vmObject]{
	{name: "vmid", need: "the id of the virtual machine",
		value: special(ctidForm, func(p *parser, vm *vmObject, v gjson.Result) { vm.VMID, vm.id = p.ctid(v), v.Index }).
			as("id of the virtual machine")},
	{name: "name", value: text(hostName, func(vm *vmObject, s string) { vm.Name = s }),
		effect: "in messages about what depends on it"},
	{name: "network_config", value: special(form{words: "object"},
		func(_ *parser, vm *vmObject, v gjson.Result) { vm.network = v }),
		effect: "its `ip`, an address with its prefix length, is where it is served; with `dhcp` nothing is, " +
			"and a warning says so"},
	{name: "traefik_service", value: special(form{words: "object"}, func(p *parser, vm *vmObject, v gjson.Result) {
		vm.Service = p.service(v, skip, &vm.service, &vm.certificate)
	}), effect: "as of a container; its `scheme` is `https` without"},
	{name: "portainer_agent_hostname", value: special(form{words: "host name below DOMAIN"},
		func(_ *parser, vm *vmObject, v gjson.Result) { vm.portainer = v }),
		effect: "leads to port 9001 of the machine, over `https`; another one is a warning, for the CA signs for " +
			"DOMAIN only"},
	{name: "portainer_agent_insecure", value: truth(func(vm *vmObject, b bool) { vm.insecure = b }),
		effect: "the agent's certificate is not verified"},
}

// vm reads the object of a virtual machine.
func (p *vmParser) vm(v gjson.Result) vmEntry {
	var o vmObject
	readObject(p.parser, v, &o, vmKeys, skip)
	vm, network, agent := o.vmEntry, o.network, o.portainer
	if vm.Service != nil {
		if vm.Service.Scheme == "" {
			vm.Service.Scheme = "https"
		}
		p.needTLS(*vm.Service, o.certificate, "traefik_service.")
	}
	// Other programs take an empty one for none.
	if agent.Exists() && (agent.Type != gjson.String || agent.Str != "") {
		p.under("portainer_agent_hostname", func() { p.agentOf(&vm, agent, o.insecure) })
	}
	if vm.Service != nil || vm.Agent != nil {
		p.addressOf(&vm, v, network)
	}
	return vm
}

// agentOf reads the host name of a virtual machine's Portainer agent.
func (p *vmParser) agentOf(vm *vmEntry, v gjson.Result, insecure bool) {
	vm.agent = v.Index
	host := p.serviceName(v)
	name, below := strings.CutSuffix(host, "."+p.domain)
	switch {
	case host == "":
	case !below:
		p.warn(v, "is not served: %s is not below %s, for which alone the CA signs", host, p.domain)
	default:
		agent := &TraefikService{Name: name, Port: agentPort, Scheme: "https", Insecure: insecure}
		if s := vm.Service; s != nil && s.Name == name && s.Port == agentPort && s.Scheme == "https" {
			return // the service is the agent
		}
		vm.Agent = agent
	}
}

// addressOf reads where a virtual machine's services are.
func (p *vmParser) addressOf(vm *vmEntry, v, network gjson.Result) {
	at, ip := v, gjson.Result{}
	if network.Exists() {
		at = network
		p.under("network_config", func() {
			p.object(network, nil, func(key string, v gjson.Result) {
				if key != "ip" {
					return
				}
				at, ip = v, v
				s, ok := p.str(v)
				if !ok || s == "dhcp" || !p.is(v, s, vmPrefix) {
					return
				}
				vm.Address, vm.address = netip.MustParsePrefix(s).Addr(), v.Index
			})
		})
	}
	if ip.Exists() && ip.Str != "dhcp" || network.Exists() && !network.IsObject() {
		return
	}
	p.warnings.add(at.Index, func() note {
		return note{at.Index, p.pathTo("network_config.ip"),
			"its services are not served: the virtual machine has no fixed address", -1}
	})
}

// vmPrefix is the format of a virtual machine's address.
var vmPrefix = format{what: "an IP address with its prefix length, as in 10.0.0.111/24, nor dhcp", is: isVMPrefix}

func isVMPrefix(s string) bool {
	network, err := netip.ParsePrefix(s)
	a := network.Addr()
	return err == nil && !a.Is4In6() && !a.IsLoopback() && !a.IsMulticast() && !a.IsUnspecified()
}

// relations checks what no virtual machine may share with another one, a container
// or a service of f.
func (p *vmParser) relations(f *File) {
	t := takenBy(f.all())
	for i, o := range f.Others {
		t.names[o.Name] = fmt.Sprintf("services.%d of %s", i, f.Path)
		_, at, _ := ParseServiceURL(o.URL)
		t.addresses[at.Addr()] = fmt.Sprintf("services.%d of %s", i, f.Path)
	}
	if f.Dashboard != nil {
		t.names[f.Dashboard.Name] = "the dashboard"
	}
	external := map[int]bool{}
	for _, c := range f.Containers {
		for _, id := range c.Dependencies {
			external[id] = true
		}
	}
	length := f.planLength
	for _, vm := range p.found {
		fail := func(at int, key, format string, args ...any) {
			p.mistakes.add(at, func() note {
				return note{at, fmt.Sprintf("vms.%d.%s", vm.index, key), message(format, args), -1}
			})
		}
		owner := fmt.Sprintf("virtual machine %d", vm.VMID)
		if f.Container(vm.VMID) != nil {
			fail(vm.id, "vmid", "%d is a container of %s", vm.VMID, f.Path)
		}
		if external[vm.VMID] {
			length += len(vm.Name) + len(`"999999999":"",`)
		}
		for _, s := range []struct {
			*TraefikService
			at  int
			key string
		}{{vm.Service, vm.service, "traefik_service.name"}, {vm.Agent, vm.agent, "portainer_agent_hostname"}} {
			if s.TraefikService == nil {
				continue
			}
			length += s.length()
			if first := t.claim(s.Name, "the service of "+owner); first != "" {
				fail(s.at, s.key, "%s is %s already", s.Name, first)
			}
		}
		if !vm.Address.IsValid() {
			continue
		}
		if first := t.addresses[vm.Address]; first != "" {
			fail(vm.address, "network_config.ip", "%v is the address of %s already", vm.Address, first)
		} else {
			t.addresses[vm.Address] = owner
		}
	}
	if length > MaxContainer {
		p.mistakes.add(0, func() note {
			return note{0, "vms", fmt.Sprintf("the services take %d bytes together with what %s has; "+
				"at most %d fit in an event", length, f.Path, MaxContainer), -1}
		})
	}
}
