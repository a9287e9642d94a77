// Package config reads phoenix_lxc_configs.json, the file that says which
// containers there are and what each is to be.
//
// The file is a JSON object whose key "lxc_configs" maps container ids to
// containers. It is checked as a whole: every mistake is found at once, each
// with its place. What a container's keys mean is said at [Container], and the
// limits of their values are those of pct (pve-container 6.1), so that what is
// accepted here is not refused there.
//
// Other keys beside lxc_configs pass unread. A key that a container lacks is
// not looked up there: a container is what its own object says.
//
// Keys that belong to other programs (vllm_*, ports, tests, portainer_*, …)
// pass. An unknown key is a warning; inside a mount point or a
// firewall rule, where overlooking it would open more than was meant, it is a
// mistake.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The application scripts whose containers have a part of their own in phx.
// Each may be named by one container at most.
const (
	GatewayScript = "phoenix_hypervisor_lxc_101.sh"
	ProxyScript   = "phoenix_hypervisor_lxc_102.sh"
	CAScript      = "phoenix_hypervisor_lxc_103.sh"
)

// Limits of the file. It is read in a time and a memory that grow with its
// length, whatever it holds.
const (
	// MaxFile is the greatest length of the file in bytes.
	MaxFile = 64 << 20

	// MaxContainer is the greatest length of a container's object in bytes,
	// together with the ids of what it needs and of what needs it: they have to
	// fit in one event. Blanks between tokens do not count, and characters that
	// an event has to escape count as that. The same holds for the ids and the
	// services of all containers.
	MaxContainer = 1<<20 - 64<<10

	// MaxMistakes is how many mistakes and warnings are kept: the first by
	// position. The others are counted.
	MaxMistakes = 100
)

// File is a configuration without mistakes.
type File struct {
	Path       string
	Containers map[int]*Container // by container id
	Warnings   []Mistake          // by position
	More       int                // warnings beside these
}

// Container is what the file says about one container. Pointers are nil, and
// slices nil, where the file says nothing; a slice is empty but not nil where
// the file has an empty list.
type Container struct {
	CTID int
	Name string // name: the host name, as pct takes it

	// Where its root comes from: one of the two.
	CloneFrom int    // clone_from_ctid: a container of the file that has a TemplateSnapshot
	Template  string // template: a volume id (local:vztmpl/NAME) or a path

	MemoryMB      int    // memory_mb: MiB
	SwapMB        *int   // swap_mb: MiB
	Cores         int    // cores
	StoragePool   string // storage_pool: a storage of Proxmox VE
	StorageSizeGB int    // storage_size_gb: GiB
	Network       Network
	MAC           string // mac_address: upper case; "" for one that Proxmox VE chooses
	Unprivileged  *bool  // unprivileged: pct can set it when it creates a container, never later
	StartAtBoot   *bool  // start_at_boot
	BootOrder     *int   // boot_order
	BootDelay     *int   // boot_delay: seconds

	PctOptions             []string    // pct_options: sub-keys of pct's features, as in "nesting=1"; booleans as 0 or 1
	LXCOptions             []RawOption // lxc_options: raw lines; lxc.cap.keep=a,b is a line for each capability
	AppArmorProfile        string      // apparmor_profile: "unconfined", "generated" or the name of a profile's file
	AppArmorManagesNesting bool        // apparmor_manages_nesting
	GPUs                   []int       // gpu_assignment: indices; empty for "none"
	IDMaps                 []string    // id_maps: as lxc.idmap takes them, "u 0 100000 65536"
	Volumes                []Volume    // zfs_volumes and volumes
	MountPoints            []MountPoint
	Firewall               *Firewall

	Features           []string      // features: phoenix_hypervisor_feature_install_NAME.sh, in this order
	BootstrapCAURL     string        // bootstrap_ca_url: the feature scripts' second argument
	ApplicationScript  string        // application_script: a file name
	HealthCheck        *HealthCheck  // health_check: runs in the container
	HealthChecks       []HealthProbe // health_checks: run on the host
	LifecycleSnapshots bool          // enable_lifecycle_snapshots
	TemplateSnapshot   string        // template_snapshot_name
	Dependencies       []int         // dependencies: ids; those not in the file are external
	TraefikService     *TraefikService
	TriggerSync        bool // trigger_sync_on_completion

	Raw string // the object's own text, as it stands in the file
}

// Network is network_config: the container's one interface.
type Network struct {
	Name        string       // inside the container: eth0
	Bridge      string       // on the host: vmbr0
	IP          netip.Prefix // IPv4 address and prefix length; not valid with DHCP
	DHCP        bool         // ip is "dhcp"
	Gateway     netip.Addr   // gw: inside IP's network; not valid without one
	Nameservers []netip.Addr
}

// RawOption is a raw line of a container's conf file: "key: value".
type RawOption struct{ Key, Value string }

// Volume is a disk of its own, allocated once and known by its mount point.
type Volume struct {
	Name       string
	Pool       string // a storage of Proxmox VE
	SizeGB     int    // GiB
	MountPoint string // in the container: absolute and clean
}

// MountPoint is a directory or a file of the host shown in the container. Both
// paths are absolute and clean. OwnerUID and OwnerGID are ids inside the
// container.
type MountPoint struct {
	HostPath, ContainerPath string
	Directory               bool // host_path ends with a slash: it is no file
	ReadOnly                bool
	OwnerUID, OwnerGID      *int
}

// Firewall is the container's firewall: its rules are in the order in which
// they apply.
//
// Where the file says nothing of a filter or a policy, what the host has
// stays; Proxmox VE's own are MACFilter on, IPFilter off, DROP and ACCEPT.
type Firewall struct {
	Enabled             bool
	MACFilter, IPFilter *bool  // macfilter, ipfilter: only its own addresses may leave the container
	PolicyIn, PolicyOut string // policy_in, policy_out: ACCEPT, REJECT or DROP for what no rule decides
	Rules               []FirewallRule
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

// HealthCheck is a command that exits 0 in a container that is well. It is
// tried Retries times, Interval seconds apart.
type HealthCheck struct {
	Command  string // words joined by blanks, without quotes: no shell reads it
	Retries  int    // 3 unless given
	Interval int    // seconds, 5 unless given
}

// HealthProbe is a script on the host that exits 0 when the container is well.
type HealthProbe struct {
	Name   string
	Script string // a file name
	Args   []string
}

// TraefikService says that the container serves something to be reached as
// https://NAME.DOMAIN. Such a container has a fixed address.
type TraefikService struct {
	Name   string // one label of a host name, in lower case
	Port   int
	Scheme string // http or https: what the container speaks on Port
}

// Mistake is something wrong in the file. Line and Col count from 1, Col in
// bytes. Path is the way of keys, as in lxc_configs.102.memory_mb; elements of
// lists count from 0.
type Mistake struct {
	Line, Col int
	Path, Msg string
}

func (m Mistake) String() string {
	if m.Path == "" {
		return fmt.Sprintf("%d:%d: %s", m.Line, m.Col, m.Msg)
	}
	return fmt.Sprintf("%d:%d: %s: %s", m.Line, m.Col, m.Path, m.Msg)
}

// Error is all that is wrong in a file, by position. The warnings are not
// part of the text: a misspelt key is one, and says why another is missing.
type Error struct {
	File         string
	Mistakes     []Mistake
	More         int // mistakes beside these
	Warnings     []Mistake
	MoreWarnings int // warnings beside these
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

// LoadOn is [Load] on the host that the file is for: no container may own the
// guarded places, nor a directory of a Debian package.
func LoadOn(path string, guarded []Guarded) (*File, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return (&parser{text: text, guarded: guarded}).file(path)
}

// readFile reads a file or a pipe into a string without a second copy of it.
// Of one that is longer than MaxFile it reads little more than that.
func readFile(path string) (string, error) {
	// Nobody may ever write to a named pipe: with O_NONBLOCK opening it does not
	// wait, and reading can have a limit.
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

// pipePatience is how long a pipe may take until its end.
var pipePatience = 30 * time.Second

// Parse checks a file's content; name stands for the file in errors, which
// are an [*Error].
func Parse(name string, data []byte) (*File, error) {
	return (&parser{text: string(data)}).file(name)
}

func (p *parser) file(name string) (*File, error) {
	var found []*entry
	if root, ok := p.document(); ok {
		if found = p.root(root); !p.hopeless() {
			p.relations(found)
		}
	}
	if p.guarded != nil && !p.hopeless() {
		if err := p.packaged(); err != nil {
			return nil, err
		}
	}
	warnings := p.report(p.warnings)
	if p.mistakes.count > 0 {
		return nil, &Error{name, p.report(p.mistakes), p.mistakes.more(), warnings, p.warnings.more()}
	}
	f := &File{Path: name, Containers: make(map[int]*Container, len(found)), Warnings: warnings, More: p.warnings.more()}
	for _, e := range found {
		f.Containers[e.CTID] = e.Container
	}
	return f, nil
}

// ParseContainer checks the object of a single container, as the event
// ct.planned carries it. Whatever concerns several containers is not checked.
// The error is an [*Error] with positions in raw.
func ParseContainer(ctid int, raw []byte) (*Container, error) {
	p := &parser{text: string(raw)}
	var e *entry
	if root, ok := p.document(); ok {
		e = p.container(ctid, root)
	}
	if p.mistakes.count > 0 {
		return nil, &Error{File: fmt.Sprintf("container %d", ctid), Mistakes: p.report(p.mistakes), More: p.mistakes.more()}
	}
	return e.Container, nil
}

// IsTemplate reports whether the container is there to be cloned from, not to
// run.
func (c *Container) IsTemplate() bool {
	return c.TemplateSnapshot != "" && (c.StartAtBoot == nil || !*c.StartAtBoot)
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
		if f.Containers[id] != nil {
			needs = append(needs, id)
		} else {
			external = append(external, id)
		}
	}
	return needs, external
}
