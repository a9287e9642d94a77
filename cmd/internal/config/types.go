// Package config reads phoenix_lxc_configs.json, the file that lists the containers and what each is to be.
//
// The file is a JSON object whose key "lxc_configs" maps container ids to
// containers. It is checked as a whole: every mistake is found at once, each
// with its place. The keys of a container are those of [Container], and the
// limits of their values are those of pct (pve-container 6.1), so that what is
// accepted here is not refused there.
//
// Beside lxc_configs there are services, which neither a container nor a virtual
// machine serves, and dashboard; other keys are passed over: a container has only
// what its own object says. So are a container's keys that belong to other programs,
// and the name of a volume: they are accepted, and have no effect. An unknown key is
// a warning; in a mount point, a volume or the firewall, where overlooking it
// would open more than was meant, it is a mistake.
//
// The package looks at the host only to keep the directories of the system from
// being given to a container, and changes nothing. It must not know how a
// container gets what its keys say: what pct is told, and what is written into
// Proxmox VE's files, is the programs' part.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The application scripts by which phx knows the gateway, the proxy and the CA.
// Each may be named by one container at most.
const (
	GatewayScript = "phoenix_hypervisor_lxc_101.sh"
	ProxyScript   = "phoenix_hypervisor_lxc_102.sh"
	CAScript      = "phoenix_hypervisor_lxc_103.sh"
)

// Limits of the file. Time and memory to read it grow with its length at most,
// whatever it holds.
const (
	// MaxFile is the greatest length of the file in bytes.
	MaxFile = 64 << 20

	// MaxContainer is the greatest length of a container's object in bytes,
	// together with the ids of what it needs and of what needs it: they have to
	// fit in one event. Blanks between tokens do not count, and characters that
	// an event has to escape count as their escapes. The ids and the services of
	// all containers together have the same limit.
	MaxContainer = 1<<20 - 64<<10

	// MaxMistakes is how many mistakes and warnings are kept: the first by
	// position. The others are counted.
	MaxMistakes = 100
)

// File is a configuration.
type File struct {
	Path       string
	Containers map[int]*Container // those without mistakes, by container id
	Wrong      map[int]*Wrong     // the others; there are none but in [Error.Rest]
	Others     []OtherService     // services
	Dashboard  *Dashboard         // dashboard; nil without
	VMs        []VM               // of a file of its own; see [LoadVMs]

	// ServedWrong is the first mistake, with its place, in what is served beside the
	// containers' services, which the gateway, the proxy and the CA have to know; ""
	// for none.
	ServedWrong string

	Warnings []Mistake // by position
	More     int       // warnings beside these

	planLength int // of what an event says of all containers and services, at most
}

// Container is what the file says about one container. Pointers are nil, and
// slices nil, where the file says nothing; a slice is empty but not nil where
// the file has an empty list.
type Container struct {
	CTID int    // the key of the container in lxc_configs
	Name string // name: the host name, as pct takes it

	// Where its root comes from: one of the two.
	CloneFrom int    // clone_from_ctid: a container of the file that IsTemplate or has a TemplateSnapshot
	Template  string // template: a volume id (local:vztmpl/NAME) or a path

	FullClone  *bool // full_clone: of a template, too, a clone that shares no disk with it
	IsTemplate bool  // is_template: it becomes a template of Proxmox VE, which never runs and has no snapshots

	OSType      string   // ostype: what pct takes the system for; "" for what it finds
	Arch        string   // arch: amd64; "" for what pct finds
	SSHKeys     []string // ssh_public_keys: lines of an authorized_keys file, for the user root
	SSHKeysFile string   // ssh_public_keys: a file on the host with such lines
	NodeName    string   // nodename: the host that the container is for; "" for any

	MemoryMB      int          // memory_mb: MiB
	SwapMB        *int         // swap_mb: MiB
	Cores         int          // cores
	CPULimit      *float64     // cpulimit: the time of so many CPUs; 0 for no limit
	CPUUnits      *int         // cpuunits: weight among the other guests
	StoragePool   string       // storage_pool: a storage of Proxmox VE
	StorageSizeGB int          // storage_size_gb: GiB
	RootOptions   MountOptions // rootfs_options
	Interfaces    []Interface  // network_config and secondary_network_config, or network_configs: net0 first
	Nameservers   []netip.Addr // nameservers: IPv4 or IPv6
	SearchDomains []string     // searchdomain: where names are looked up that are not complete
	Unprivileged  *bool        // unprivileged: pct can set it when it creates a container, never later
	StartAtBoot   *bool        // start_at_boot
	BootOrder     *int         // boot_order
	BootDelay     *int         // boot_delay: seconds

	Timezone   string   // timezone: "host" for that of the host
	Tags       []string // tags: in lower case
	Notes      *string  // description_text: lines, of which none is like that of the record; "" for none
	Protection *bool    // protection
	HookScript string   // hookscript: a volume id, local:snippets/NAME

	PctOptions             []string     // pct_options: pct's features, as in "nesting=1"; booleans are 0 or 1
	LXCOptions             []RawOption  // lxc_options: raw lines; lxc.cap.keep=a,b is a line for each capability
	AppArmorProfile        string       // apparmor_profile: the name of a profile's file, "generated" or "unconfined"
	AppArmorManagesNesting bool         // apparmor_manages_nesting
	GPUs                   []int        // gpu_assignment: indices; empty for "none"
	Devices                []Device     // devices
	IDMaps                 []string     // id_maps, the whole: as lxc.idmap takes them, "u 0 100000 65536"
	MappedIDs              []MappedIDs  // id_maps, given as objects: what IDMaps has in place of standard ones
	Volumes                []Volume     // zfs_volumes and volumes
	MountPoints            []MountPoint // mount_points
	Firewall               *Firewall    // firewall

	Features           []string        // features: phoenix_hypervisor_feature_install_NAME.sh, in this order
	BootstrapCAURL     string          // bootstrap_ca_url: the feature scripts' second argument
	ApplicationScript  string          // application_script: a file name
	HealthCheck        *HealthCheck    // health_check: runs in the container
	HealthChecks       []HealthProbe   // health_checks: run on the host
	LifecycleSnapshots bool            // enable_lifecycle_snapshots; false if IsTemplate
	TemplateSnapshot   string          // template_snapshot_name; "" if IsTemplate
	Dependencies       []int           // dependencies: ids; those not in the file are external
	TraefikService     *TraefikService // traefik_service

	Raw string // the object's own text, as in the file
}

// Interface is a network interface of a container: pct's option netN, N being
// its index in Container.Interfaces.
type Interface struct {
	Name   string // inside the container: eth0
	Bridge string // on the host: vmbr0
	MAC    string // hwaddr: upper case; "" for one that Proxmox VE chooses
	IPv4   Addressing
	IPv6   Addressing

	Tag         int     // tag: its VLAN, from 1 to 4094; 0 for none
	Trunks      []VLANs // trunks: the VLANs that pass with their tags, ascending; nil where the file says nothing
	MTU         int     // mtu: bytes; 0 for that of the bridge
	Rate        float64 // rate: MB/s; 0 for no limit
	LinkDown    *bool   // link_down
	HostManaged *bool   // host_managed: the host sets the addresses, not the container
	Firewall    *bool   // firewall: whether its packets are filtered; nil where it is as Firewall.Enabled
}

// VLANs are the ids of VLANs from First to Last.
type VLANs struct{ First, Last int }

// Addressing is how an interface gets its address of one family. The zero value
// is that of an interface without one.
type Addressing struct {
	Prefix  netip.Prefix // the fixed address with its prefix length; not valid without one
	Method  string       // dhcp, manual or, of IPv6, auto; "" with a fixed address, and without any
	Gateway netip.Addr   // inside of Prefix, or link-local; not valid without one
}

// Filtered reports whether the firewall is to filter what passes the interface.
func (i Interface) Filtered(fw *Firewall) bool {
	if i.Firewall != nil {
		return *i.Firewall
	}
	return fw != nil && fw.Enabled
}

// Addresses returns the fixed addresses of an interface, IPv4 first.
func (i Interface) Addresses() []netip.Addr {
	var all []netip.Addr
	for _, a := range []Addressing{i.IPv4, i.IPv6} {
		if a.Prefix.IsValid() {
			all = append(all, a.Prefix.Addr())
		}
	}
	return all
}

// Addresses returns the fixed addresses of all interfaces, in their order.
func (c *Container) Addresses() []netip.Addr {
	var all []netip.Addr
	for _, i := range c.Interfaces {
		all = append(all, i.Addresses()...)
	}
	return all
}

// Address returns the address under which others reach the container, the first
// of its fixed ones; not valid when it has none.
func (c *Container) Address() netip.Addr {
	for _, address := range c.Addresses() {
		return address
	}
	return netip.Addr{}
}

// Reached returns the interface that has the container's [Container.Address], the
// first one when none has.
func (c *Container) Reached() Interface {
	for _, i := range c.Interfaces {
		if len(i.Addresses()) > 0 {
			return i
		}
	}
	if len(c.Interfaces) > 0 {
		return c.Interfaces[0]
	}
	return Interface{}
}

// HasPort reports whether the container's interface netI is a port of its bridge. It
// is not where raw lines give it another type: Proxmox VE can then not filter what
// passes there.
func (c *Container) HasPort(i int) bool {
	key, kind := fmt.Sprintf("lxc.net.%d.type", i), "veth"
	for _, o := range c.LXCOptions {
		if o.Key == key && o.Value != "" {
			kind = o.Value
		}
	}
	return kind == "veth"
}

// RawOption is a raw line of a container's conf file, "Key: Value", whose key
// begins with "lxc.".
type RawOption struct{ Key, Value string }

// Volume is a disk beside the root disk, allocated once and known by its mount
// point.
type Volume struct {
	Pool       string // a storage of Proxmox VE
	SizeGB     int    // GiB
	MountPoint string // in the container: absolute and clean
	ReadOnly   *bool
	MountOptions
}

// MountPoint is a directory or a file of the host shown in the container. Both
// paths are absolute and clean.
type MountPoint struct {
	HostPath, ContainerPath string
	Directory               bool // host_path ends with a slash: it is no file
	ReadOnly                bool
	MountOptions
	OwnerUID, OwnerGID *int // inside the container, from 0 to 65535: whom all in HostPath is to belong to
}

// MountOptions are options of a root disk, a volume or a mount point, in pct's
// words. What is nil stays as the host has it.
type MountOptions struct {
	ACL, Backup, KeepAttrs, Quota, Replicate, Shared *bool

	Flags []string // mountoptions: discard, lazytime, noatime, nodev, noexec, nosuid
}

// Device is a device of the host that the container may use: pct's option devN.
type Device struct {
	Path      string // on the host and in the container: absolute and clean, below /dev
	Mode      string // four octal digits; "" for 0660
	UID, GID  *int   // its owner, inside the container; root without
	DenyWrite bool
}

// MappedIDs are ids of a container that are other ones of the host than 100000
// and its own.
type MappedIDs struct {
	Type        string // uid, gid or both
	HostID      int    // the first
	ContainerID int    // the first
	Size        int    // how many
}

// Firewall is the container's firewall. A filter or a policy that the file does
// not give stays as the host has it; the defaults of Proxmox VE are MACFilter
// on, IPFilter off, DROP and ACCEPT.
type Firewall struct {
	Enabled             bool
	MACFilter, IPFilter *bool          // macfilter, ipfilter: only its own addresses may leave the container
	PolicyIn, PolicyOut string         // policy_in, policy_out: ACCEPT, REJECT or DROP for what no rule decides
	Rules               []FirewallRule // in the order in which they apply
}

// FirewallRule is a rule in the words of pve-firewall. Fields that the file
// does not give are empty.
type FirewallRule struct {
	Type         string // in, out or group
	Action       string // ACCEPT, DROP or REJECT; for a group, its name
	Source, Dest string // addresses, networks, ranges, aliases or +sets, joined by commas
	Proto        string
	Port         string // destination ports and ranges (80:85), joined by commas
	Comment      string
}

// HealthCheck is a command that exits 0 in a healthy container. It is tried
// Retries times, Interval seconds apart.
type HealthCheck struct {
	Command  string // words joined by blanks, without quotes: no shell reads it
	Retries  int    // 3 unless given
	Interval int    // seconds, 5 unless given
}

// HealthProbe is a script on the host that exits 0 when the container is
// healthy.
type HealthProbe struct {
	Name   string   // what to call it in messages: Script unless given
	Script string   // a file name
	Args   []string // at most 100
}

// Mistake is something wrong in the file. Line and Col count from 1, Col in
// bytes. Path has the keys from the outermost object on, as in
// lxc_configs.102.memory_mb; elements of lists count from 0. It is "" for the
// file as a whole.
type Mistake struct {
	Line, Col int
	Path, Msg string
}

// String returns "line:column: path: message".
func (m Mistake) String() string {
	if m.Path == "" {
		return fmt.Sprintf("%d:%d: %s", m.Line, m.Col, m.Msg)
	}
	return fmt.Sprintf("%d:%d: %s: %s", m.Line, m.Col, m.Path, m.Msg)
}

// Error is all that is wrong in a file, by position. The warnings are no part of
// the error's text, and help to understand it: a misspelt key is one, and why
// another key is missing.
type Error struct {
	File         string
	Mistakes     []Mistake
	More         int // mistakes beside these
	Warnings     []Mistake
	MoreWarnings int // warnings beside these

	// Rest is what is right in the file nevertheless. It is nil when that cannot be
	// told: the file is not JSON, it has no lxc_configs or that is wrong as a whole,
	// or it has more than [MaxMistakes] mistakes.
	Rest *File
}

// Error has a line "file:line:column: path: message" for each mistake, and one
// for those that are not kept.
func (e *Error) Error() string {
	var b strings.Builder
	for i, m := range e.Mistakes {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s:%v", e.File, m)
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "\n%s: and %d more", e.File, e.More)
	}
	return b.String()
}

// Load reads and checks the file at path. The error is an [*Error] when the
// file could be read but has mistakes.
func Load(path string) (*File, error) { return LoadOn(path, nil) }

// LoadOn is [Load] on the host that the file is for; nil is [Load].
func LoadOn(path string, host *Host) (*File, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return newParser(text, host).file(path, host != nil)
}

// readFile reads a file or a pipe into a string without a second copy of it.
// Of one that is longer than MaxFile it reads little more than that.
func readFile(path string) (string, error) {
	// With O_NONBLOCK, opening a named pipe does not wait for a writer, and
	// reading it can have a deadline.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	switch kind := info.Mode().Type(); kind {
	case 0:
		b.Grow(int(min(info.Size(), MaxFile+1)))
	case fs.ModeNamedPipe:
		f.SetReadDeadline(time.Now().Add(pipePatience))
	default:
		return "", fmt.Errorf("%s: neither a file nor a pipe", path)
	}
	_, err = io.Copy(&b, io.LimitReader(f, MaxFile+1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%s: the pipe had no end after %v", path, pipePatience)
	}
	return b.String(), err
}

// pipePatience is how long a pipe may take until its end. It is changed by
// tests.
var pipePatience = 30 * time.Second

// Parse checks the content of a file. name is the file's in errors, which are
// an [*Error].
func Parse(name string, data []byte) (*File, error) {
	return newParser(string(data), nil).file(name, false)
}

// file reads the file's text. With onHost it refuses to give away directories
// of the host's packages.
func (p *parser) file(name string, onHost bool) (*File, error) {
	var found []*entry
	if root, ok := p.document(); ok {
		if found = p.root(root); !p.full() {
			p.relations(found)
		}
	}
	if onHost && !p.full() {
		if err := p.packagedDirs(found); err != nil {
			return nil, err
		}
	}
	warnings := p.report(p.warnings)
	file := &File{
		Path: name, Containers: make(map[int]*Container, len(found)), Warnings: warnings, More: p.warnings.more(),
	}
	for _, e := range found {
		file.Containers[e.CTID] = e.Container
	}
	file.planLength = p.planLength
	file.Others, file.Dashboard = p.served.read()
	if p.mistakes.count == 0 {
		return file, nil
	}
	wrong := &Error{
		File: name, Mistakes: p.report(p.mistakes), More: p.mistakes.more(),
		Warnings: warnings, MoreWarnings: p.warnings.more(),
	}
	if p.separate(file, found, wrong.Mistakes) {
		wrong.Rest = file
	}
	return nil, wrong
}

// ParseContainer checks the object of a single container, as the event
// ct.planned carries it. Whatever concerns several containers is not checked.
// The error is an [*Error] with positions in raw.
func ParseContainer(ctid int, raw []byte) (*Container, error) {
	p := newParser(string(raw), nil)
	var e *entry
	if root, ok := p.document(); ok {
		e = p.container(ctid, root)
	}
	if p.mistakes.count > 0 {
		name := fmt.Sprintf("container %d", ctid)
		return nil, &Error{File: name, Mistakes: p.report(p.mistakes), More: p.mistakes.more()}
	}
	return e.Container, nil
}

// IsOnlyCloned reports whether the container is only cloned from, and not started
// but to be provisioned.
func (c *Container) IsOnlyCloned() bool {
	return c.IsTemplate || c.TemplateSnapshot != "" && (c.StartAtBoot == nil || !*c.StartAtBoot)
}

// Needs returns the ids that have to be there before c: its clone source and
// its dependencies, each once and in ascending order, the containers of the
// file apart from the external ones.
func (f *File) Needs(c *Container) (needs, external []int) {
	all := make([]int, 0, len(c.Dependencies)+1)
	all = append(all, c.Dependencies...)
	if c.CloneFrom != 0 {
		all = append(all, c.CloneFrom)
	}
	slices.Sort(all)
	for _, id := range slices.Compact(all) {
		if f.Containers[id] != nil || f.Wrong[id] != nil {
			needs = append(needs, id)
		} else {
			external = append(external, id)
		}
	}
	return needs, external
}

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

// Network is a network that a container is in by a fixed address.
type Network struct {
	Address   string `json:"address"`       // with its prefix length
	MAC       string `json:"mac,omitempty"` // of the container there; "" where the file leaves it to Proxmox VE
	Interface string `json:"interface"`     // the container's
}

// Addresses returns the fixed addresses of a place, IP first.
func (p *Place) Addresses() []string { return append([]string{p.IP}, p.Also...) }

// Prefix returns the container's address and the network around it; not valid when
// Address is none.
func (n Network) Prefix() netip.Prefix {
	prefix, _ := netip.ParsePrefix(n.Address)
	return prefix
}

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
		case n.Interface != "" && !IsInterface(n.Interface):
			return fmt.Errorf("container %d: %q is not the name of an interface", p.CTID, n.Interface)
		}
	}
	return nil
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

// Places returns those of the CA, the proxy and the gateway that the plan has.
func (p *Plan) Places() []*Place {
	return slices.DeleteFunc([]*Place{p.CA, p.Proxy, p.Gateway}, func(place *Place) bool { return place == nil })
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

// HasPlace reports whether the container is the gateway, the proxy or the CA.
func (c *Container) HasPlace() bool {
	switch c.ApplicationScript {
	case GatewayScript, ProxyScript, CAScript:
		return true
	}
	return false
}

// Place returns where the container with an application script can be reached,
// nil when there is none with a fixed address.
func (f *File) Place(script string) *Place {
	for _, id := range f.IDs() {
		c := f.Container(id)
		if c.ApplicationScript != script || !c.Address().IsValid() {
			continue
		}
		reached := c.Reached()
		place := &Place{CTID: id, IP: c.Address().String(), MAC: reached.MAC, Interface: reached.Name}
		for _, also := range c.Addresses()[1:] {
			place.Also = append(place.Also, also.String())
		}
		return place
	}
	return nil
}
