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
	"fmt"
	"net/netip"
)

// The application scripts by which phx knows the gateway, the proxy and the CA.
// Each may be named by one container at most.
const (
	GatewayScript = "phoenix_hypervisor_lxc_101.sh"
	ProxyScript   = "phoenix_hypervisor_lxc_102.sh"
	CAScript      = "phoenix_hypervisor_lxc_103.sh"
)

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

// MappedIDs are ids of a container that are mapped to others of the host than those
// from 100000 on.
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

// IsOnlyCloned reports whether the container is only cloned from, and not started
// but to be provisioned.
func (c *Container) IsOnlyCloned() bool {
	return c.IsTemplate || c.TemplateSnapshot != "" && (c.StartAtBoot == nil || !*c.StartAtBoot)
}

// HasPlace reports whether the container is the gateway, the proxy or the CA.
func (c *Container) HasPlace() bool {
	switch c.ApplicationScript {
	case GatewayScript, ProxyScript, CAScript:
		return true
	}
	return false
}
