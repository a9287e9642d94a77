package config

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// An entry is a container with what the checks across containers need.
type entry struct {
	*Container
	at       int    // the offset of its object
	length   int    // of its object in an event
	edges    []edge // its clone source and its dependencies
	address  int    // offsets of what no two containers may share
	mac      int
	service  int
	script   int
	ipfilter int
	snapshot bool     // there is a template_snapshot_name, right or wrong
	mounts   []string // the paths in the container at which something is mounted
	visited  bool     // the search for cycles has left it
	depth    int      // its place on the way of that search, from 1; 0 when it is not on it
}

// An edge is the need for another container, with the offset at which the
// file names it: in dependencies at index, or in clone_from_ctid when index
// is -1.
type edge struct{ to, at, index int32 }

func (e edge) path() string {
	if e.index < 0 {
		return "clone_from_ctid"
	}
	return fmt.Sprintf("dependencies.%d", e.index)
}

var needed = []need{
	{"name", "the container's host name"},
	{"memory_mb", "pct needs to know the memory, in MiB"},
	{"cores", "pct needs to know the number of cores"},
	{"storage_pool", "pct needs a storage for the root disk"},
	{"storage_size_gb", "pct needs the size of the root disk, in GiB"},
	{"network_config", "without it the container would have no interface"},
}

// root reads the outermost object and returns its containers in the order of
// the file.
func (p *parser) root(v gjson.Result) []*entry {
	var found []*entry
	p.object(v, []need{{"lxc_configs", "it holds the containers"}}, func(key string, v gjson.Result) {
		if key != "lxc_configs" {
			p.foreign(v)
			return
		}
		p.object(v, nil, func(key string, v gjson.Result) {
			id, err := ParseCTID(key)
			if err != nil {
				p.fail(v, "%v", err)
			}
			if e := p.container(id, v); e != nil && err == nil && !p.hopeless() {
				found = append(found, e)
			}
		})
	})
	return found
}

// container reads a container's object. It returns what could be read, nil
// when v is no object.
func (p *parser) container(ctid int, v gjson.Result) *entry {
	e := &entry{Container: &Container{CTID: ctid, Raw: v.Raw}, at: v.Index}
	c := e.Container
	if e.length = eventLength(v.Raw); e.length > MaxContainer {
		p.fail(v, "is %d bytes long; at most %d fit in an event", e.length, MaxContainer)
		return nil
	}
	template, source := -1, -1
	p.object(v, needed, func(key string, v gjson.Result) {
		switch key {
		case "template":
			template = v.Index
		case "clone_from_ctid":
			source = v.Index
		}
		if read := containerKeys[key]; read != nil {
			read(p, e, v)
		} else if p.foreign(v); !isForeign(key) {
			p.warn(v, "unknown key, ignored")
		}
	})
	if !v.IsObject() {
		return nil
	}
	switch {
	case template < 0 && source < 0:
		p.at("template", func() {
			p.fail(v, "missing: a container is made from a template or from clone_from_ctid")
		})
	case template >= 0 && source >= 0:
		p.at("clone_from_ctid", func() {
			p.failAt(source, "there is a template too: a container is made from one of them")
		})
	}
	if fw := c.Firewall; fw != nil && fw.IPFilter != nil && *fw.IPFilter && c.Network.DHCP {
		p.at("firewall", func() {
			p.at("ipfilter", func() {
				p.failAt(e.ipfilter, "needs a fixed address, but network_config.ip is dhcp: nothing could leave the container")
			})
		})
	}
	if script := c.ApplicationScript; c.Network.DHCP && c.TraefikService == nil && (script == CAScript || script == ProxyScript) {
		p.at("network_config", func() {
			p.at("ip", func() {
				p.failAt(e.address, "must be a fixed address, not dhcp: the other containers have to know where to find that of %s", script)
			})
		})
	}
	if s := c.TraefikService; s != nil {
		if c.Network.DHCP {
			p.at("traefik_service", func() {
				p.failAt(e.service, "needs a fixed address, but network_config.ip is dhcp")
			})
		}
		if s.Scheme == "" {
			s.Scheme = "http"
			if c.ApplicationScript == CAScript {
				s.Scheme = "https"
			}
		}
	}
	return e
}

// eventLength returns how long valid JSON is in an event at most: without the
// blanks between its tokens, and with what can act on a terminal escaped.
func eventLength(raw string) int {
	if 6*len(raw) <= MaxContainer {
		return len(raw)
	}
	n, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; c {
		case '\\':
			n += 2
			i++
		case '"':
			quoted = !quoted
			n++
		case ' ', '\t', '\r', '\n':
			if quoted {
				n++
			}
		case 0x7f:
			n += 6
		case 0xc2, 0xd8: // the lead bytes of two, and of three, that may become 6
			n += 5
		case 0xe2:
			n += 4
		default:
			n++
		}
	}
	return n
}

// isForeign reports whether other programs than phx read a container's key.
func isForeign(key string) bool {
	switch key {
	case "ports", "tests", "integration_tests", "run_integration_tests", "vllm":
		return true
	}
	for _, prefix := range []string{"vllm_", "portainer_", "nvidia_", "$", "_"} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// containerKeys has all keys of a container that phx reads.
var containerKeys map[string]func(*parser, *entry, gjson.Result)

func init() {
	containerKeys = map[string]func(*parser, *entry, gjson.Result){
		"name":            func(p *parser, e *entry, v gjson.Result) { e.Name = p.matched(v, IsHostName, hostNameRule) },
		"template":        func(p *parser, e *entry, v gjson.Result) { e.Template = p.matched(v, isTemplate, templateRule) },
		"clone_from_ctid": cloneFrom,

		"memory_mb":    func(p *parser, e *entry, v gjson.Result) { e.MemoryMB = p.integer(v, 16, math.MaxInt32) },
		"swap_mb":      func(p *parser, e *entry, v gjson.Result) { e.SwapMB = new(p.integer(v, 0, math.MaxInt32)) },
		"cores":        func(p *parser, e *entry, v gjson.Result) { e.Cores = p.integer(v, 1, 8192) },
		"storage_pool": func(p *parser, e *entry, v gjson.Result) { e.StoragePool = p.matched(v, isStorage, storageRule) },
		"storage_size_gb": func(p *parser, e *entry, v gjson.Result) {
			e.StorageSizeGB = p.integer(v, 1, maxDiskGB)
		},
		"network_config": network,
		"mac_address":    mac,
		"unprivileged":   func(p *parser, e *entry, v gjson.Result) { e.Unprivileged = new(p.boolean(v)) },
		"start_at_boot":  func(p *parser, e *entry, v gjson.Result) { e.StartAtBoot = new(p.boolean(v)) },
		"boot_order":     func(p *parser, e *entry, v gjson.Result) { e.BootOrder = new(p.integer(v, 0, math.MaxInt32)) },
		"boot_delay":     func(p *parser, e *entry, v gjson.Result) { e.BootDelay = new(p.integer(v, 0, math.MaxInt32)) },

		"pct_options": pctOptions,
		"lxc_options": lxcOptions,
		"apparmor_profile": func(p *parser, e *entry, v gjson.Result) {
			e.AppArmorProfile = p.matched(v, isFileName, fileNameRule)
		},
		"apparmor_manages_nesting": func(p *parser, e *entry, v gjson.Result) { e.AppArmorManagesNesting = p.boolean(v) },
		"gpu_assignment":           gpus,
		"id_maps":                  idMaps,
		"zfs_volumes":              volumes,
		"volumes":                  volumes,
		"mount_points":             mountPoints,
		"firewall":                 firewall,

		"features": features,
		"bootstrap_ca_url": func(p *parser, e *entry, v gjson.Result) {
			e.BootstrapCAURL = p.matched(v, isHTTPS, "an https:// URL")
		},
		"application_script": func(p *parser, e *entry, v gjson.Result) {
			e.ApplicationScript, e.script = p.matched(v, isFileName, fileNameRule), v.Index
		},
		"health_check":               healthCheck,
		"health_checks":              healthChecks,
		"enable_lifecycle_snapshots": func(p *parser, e *entry, v gjson.Result) { e.LifecycleSnapshots = p.boolean(v) },
		"template_snapshot_name": func(p *parser, e *entry, v gjson.Result) {
			e.TemplateSnapshot, e.snapshot = p.matched(v, isSnapshot, snapshotRule), true
		},
		"dependencies":               dependencies,
		"traefik_service":            traefikService,
		"trigger_sync_on_completion": func(p *parser, e *entry, v gjson.Result) { e.TriggerSync = p.boolean(v) },
	}
}

const maxDiskGB = 1 << 20 // 1 PiB: pct has no limit of its own

// The formats of pct and of this file.
const (
	hostNameRule = "a host name: labels of letters, digits and inner hyphens, up to 63 long, joined by dots, up to 253 together"
	templateRule = "a template: a volume id such as local:vztmpl/NAME.tar.zst, or the path of a file"
	storageRule  = "the name of a storage: a letter, then letters, digits, '.', '_' or '-', the last a letter or digit"
	snapshotRule = "a name for a snapshot: a letter, then letters, digits, '_' or '-', 2 to 40 together, and not \"current\""
	fileNameRule = "a plain name: letters, digits, '.', '_' and '-', the first neither dot nor hyphen"
	deviceRule   = "the name of an interface: letters, digits, '.', '_' and '-', up to 15"
	labelRule    = "one label of a host name: letters, digits and inner hyphens, up to 63"
	macRule      = "a MAC address: six pairs of hexadecimal digits joined by colons"
)

// madeOf reports whether s has only ASCII letters, digits and others.
func madeOf(s, others string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && strings.IndexByte(others, s[i]) < 0 {
			return false
		}
	}
	return s != ""
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func isAlnum(c byte) bool  { return isLetter(c) || '0' <= c && c <= '9' }

func isLabel(s string) bool {
	return len(s) <= 63 && madeOf(s, "-") && isAlnum(s[0]) && isAlnum(s[len(s)-1])
}

func isStorage(s string) bool {
	return 2 <= len(s) && len(s) <= 100 && madeOf(s, "._-") && isLetter(s[0]) && isAlnum(s[len(s)-1])
}

func isFileName(s string) bool {
	return len(s) <= 200 && madeOf(s, "._-") && s[0] != '.' && s[0] != '-'
}

func isDevice(s string) bool { return len(s) <= 15 && isFileName(s) }

func isSnapshot(s string) bool {
	return 2 <= len(s) && len(s) <= 40 && madeOf(s, "_-") && isLetter(s[0]) && !strings.EqualFold(s, "current")
}

const maxHostName = 253

// IsHostName reports whether s is a host name as pct takes it, and no label of it
// is longer than DNS allows.
func IsHostName(s string) bool {
	if len(s) > maxHostName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isTemplate(s string) bool {
	if len(s) > 255 || s[0] == '-' || strings.HasSuffix(s, "/") || slices.Contains(strings.Split(s, "/"), "..") {
		return false
	}
	storage, volume, ok := strings.Cut(s, ":")
	return !ok || isStorage(storage) && volume != ""
}

func isHTTPS(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && u.User == nil && !strings.ContainsAny(s, " \"'`$\\") &&
		!strings.Contains(u.Hostname(), "%") // the zone of an IPv6 address
}

func cloneFrom(p *parser, e *entry, v gjson.Result) {
	if e.CloneFrom = p.ctid(v); e.CloneFrom != 0 {
		e.edges = append(e.edges, edge{int32(e.CloneFrom), int32(v.Index), -1})
	}
}

func dependencies(p *parser, e *entry, v gjson.Result) {
	e.Dependencies = []int{}
	index := int32(-1)
	var seen seen[int]
	p.list(v, func(v gjson.Result) {
		index++
		id := p.ctid(v)
		switch {
		case id == 0:
		case seen.in(e.Dependencies, id):
			p.warn(v, "%d is named twice", id)
		default:
			e.Dependencies = append(e.Dependencies, id)
			e.edges = append(e.edges, edge{int32(id), int32(v.Index), index})
		}
	})
}

func network(p *parser, e *entry, v gjson.Result) {
	n := &e.Network
	gateway := -1
	p.object(v, []need{
		{"name", "the interface's name in the container, eth0"},
		{"bridge", "the host's bridge, vmbr0"},
		{"ip", "an address with its prefix length, 10.0.0.10/24, or dhcp"},
	}, func(key string, v gjson.Result) {
		switch key {
		case "name":
			n.Name = p.matched(v, isDevice, deviceRule)
		case "bridge":
			n.Bridge = p.matched(v, isDevice, deviceRule)
		case "ip":
			e.address = v.Index
			p.address(v, n)
		case "gw":
			gateway = v.Index
			if s, ok := p.str(v); ok {
				gw, err := netip.ParseAddr(s)
				if err != nil || !gw.Is4() {
					p.fail(v, "%q is not an IPv4 address", s)
				} else {
					n.Gateway = gw
				}
			}
		case "nameservers":
			n.Nameservers = p.nameservers(v)
		default:
			p.foreign(v)
			p.warn(v, "unknown key, ignored")
		}
	})
	if !n.Gateway.IsValid() {
		return
	}
	p.at("gw", func() {
		switch {
		case n.DHCP:
			p.failAt(gateway, "with dhcp the gateway comes from there: leave it out")
		case !n.IP.IsValid():
		case !n.IP.Contains(n.Gateway):
			p.failAt(gateway, "%v is outside of %v", n.Gateway, n.IP.Masked())
		case n.Gateway == n.IP.Addr():
			p.failAt(gateway, "%v is the container's own address", n.Gateway)
		case !isHostIn(n.IP, n.Gateway):
			p.failAt(gateway, "%v is not an address of a host in %v", n.Gateway, n.IP.Masked())
		}
	})
}

func (p *parser) address(v gjson.Result, n *Network) {
	s, ok := p.str(v)
	if !ok {
		return
	}
	if s == "dhcp" {
		n.DHCP = true
		return
	}
	ip, err := netip.ParsePrefix(s)
	switch {
	case err != nil || !ip.Addr().Is4():
		p.fail(v, "%q is not an IPv4 address with its prefix length, as in 10.0.0.10/24, nor dhcp", s)
	case ip.Bits() < 8:
		p.fail(v, "the prefix length must be from 8 to 32, not %d", ip.Bits())
	case !isHostIn(ip, ip.Addr()):
		p.fail(v, "%v is not an address of a host in %v", ip.Addr(), ip.Masked())
	default:
		n.IP = ip
	}
}

// isHostIn reports whether a host may have the address a of network.
func isHostIn(network netip.Prefix, a netip.Addr) bool {
	if a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() {
		return false
	}
	if network.Bits() >= 31 {
		return true
	}
	first := network.Masked().Addr()
	last := first.As4()
	for i := network.Bits(); i < 32; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	return a != first && a != netip.AddrFrom4(last)
}

func (p *parser) nameservers(v gjson.Result) []netip.Addr {
	servers := []netip.Addr{}
	read := func(v gjson.Result, s string) {
		server, err := netip.ParseAddr(s)
		if err != nil || server.Zone() != "" {
			p.fail(v, "%q is not an IP address", s)
			return
		}
		servers = append(servers, server)
	}
	if v.IsArray() {
		p.list(v, func(v gjson.Result) {
			if s, ok := p.str(v); ok {
				read(v, s)
			}
		})
	} else if s, ok := p.str(v); ok {
		for _, s := range strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' || r == ';' }) {
			read(v, s)
		}
	}
	return servers
}

func mac(p *parser, e *entry, v gjson.Result) {
	if v.Type == gjson.String && v.Str == "" {
		return // as good as not given
	}
	s, ok := p.str(v)
	if !ok {
		return
	}
	addr, err := net.ParseMAC(s)
	switch {
	case err != nil || len(s) != len("00:00:00:00:00:00") || s[2] != ':':
		p.fail(v, "%q is not %s", s, macRule)
	case addr[0]&1 != 0:
		p.fail(v, "%s is a multicast address: the last bit of the first pair must be 0", s)
	case s == "00:00:00:00:00:00":
		p.fail(v, "must not be all zeros")
	default:
		e.MAC, e.mac = strings.ToUpper(s), v.Index
	}
}

func gpus(p *parser, e *entry, v gjson.Result) {
	s, ok := p.str(v)
	if !ok {
		return
	}
	e.GPUs = []int{}
	if s == "none" {
		return
	}
	for field := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(field), 10, 8)
		switch {
		case err != nil:
			p.fail(v, "%q is not a list of GPUs: none, or indices joined by commas", s)
			return
		case slices.Contains(e.GPUs, int(n)):
			p.fail(v, "GPU %d is named twice", n)
			return
		}
		e.GPUs = append(e.GPUs, int(n))
	}
}

var idMapRE = regexp.MustCompile(`^[ug] (0|[1-9][0-9]*) (0|[1-9][0-9]*) [1-9][0-9]*$`)

func idMaps(p *parser, e *entry, v gjson.Result) {
	e.IDMaps = []string{}
	p.list(v, func(v gjson.Result) {
		s, ok := p.str(v)
		if !ok {
			return
		}
		s = strings.Join(strings.Fields(s), " ")
		if !idMapRE.MatchString(s) {
			p.fail(v, "%q is not a map of ids: u or g, first id inside, first id outside, how many", v.Str)
			return
		}
		fields := strings.Fields(s)[1:]
		count, err := strconv.ParseUint(fields[2], 10, 32)
		for _, field := range fields[:2] {
			first, err2 := strconv.ParseUint(field, 10, 32)
			if err != nil || err2 != nil || first+count > math.MaxUint32 {
				p.fail(v, "%q goes beyond the last id, %d", s, uint32(math.MaxUint32-1))
				return
			}
		}
		e.IDMaps = append(e.IDMaps, s)
	})
}

func volumes(p *parser, e *entry, v gjson.Result) {
	if e.Volumes == nil {
		e.Volumes = []Volume{}
	}
	p.list(v, func(v gjson.Result) {
		var vol Volume
		p.object(v, []need{
			{"pool", "the storage to allocate it from"},
			{"size_gb", "its size, in GiB"},
			{"mount_point", "its place in the container"},
		}, func(key string, v gjson.Result) {
			switch key {
			case "name":
				vol.Name, _ = p.str(v)
			case "pool":
				vol.Pool = p.matched(v, isStorage, storageRule)
			case "size_gb":
				vol.SizeGB = p.integer(v, 1, maxDiskGB)
			case "mount_point":
				vol.MountPoint = p.containerPath(v, e)
			default:
				p.fail(v, "unknown key")
			}
		})
		if !p.hopeless() {
			e.Volumes = append(e.Volumes, vol)
		}
	})
}

func mountPoints(p *parser, e *entry, v gjson.Result) {
	e.MountPoints = []MountPoint{}
	p.list(v, func(v gjson.Result) {
		var m MountPoint
		host := v
		p.object(v, []need{
			{"host_path", "the directory on the host"},
			{"container_path", "its place in the container"},
		}, func(key string, v gjson.Result) {
			switch key {
			case "host_path":
				m.HostPath, host = p.hostPath(v), v
				m.Directory = strings.HasSuffix(v.Str, "/")
			case "container_path":
				m.ContainerPath = p.containerPath(v, e)
			case "read_only":
				m.ReadOnly = p.boolean(v)
			case "owner_uid":
				m.OwnerUID = new(p.integer(v, 0, 65535))
			case "owner_gid":
				m.OwnerGID = new(p.integer(v, 0, 65535))
			default:
				p.fail(v, "unknown key")
			}
		})
		if m.HostPath != "" && (m.OwnerUID != nil || m.OwnerGID != nil) {
			p.at("host_path", func() {
				if p.system == nil {
					p.system = systemPlaces()
				}
				if err := checkOwner(m.HostPath, p.guarded, p.system); err != nil {
					p.fail(host, "%v", err)
				} else if !p.hopeless() {
					p.owned = append(p.owned, ownedPath{host.Index, p.pathText(), m.HostPath})
				}
			})
		}
		if !p.hopeless() {
			e.MountPoints = append(e.MountPoints, m)
		}
	})
}

// maxMounts is the number of pct's options mp0 to mp255.
const maxMounts = 256

func (p *parser) hostPath(v gjson.Result) string {
	// pct would take what stands before a "=" for the name of a sub-key.
	return p.dirPath(v, ",=")
}

func (p *parser) containerPath(v gjson.Result, e *entry) string {
	s := p.dirPath(v, ",")
	switch {
	case s == "":
	case len(e.mounts) == maxMounts:
		p.fail(v, "pct has no more than %d mount points, volumes included", maxMounts)
	case slices.Contains(e.mounts, s):
		p.fail(v, "something else is mounted at %s already", s)
	default:
		e.mounts = append(e.mounts, s)
	}
	return s
}

// dirPath returns the path of a directory in a form without needless slashes.
func (p *parser) dirPath(v gjson.Result, refused string) string {
	s, ok := p.str(v)
	if !ok {
		return ""
	}
	steps := strings.Split(s, "/")
	switch {
	case s[0] != '/':
		p.fail(v, "%q is not an absolute path", s)
	case slices.Contains(steps, "."), slices.Contains(steps, ".."):
		p.fail(v, "%q must not contain /./ or /../", s)
	case strings.ContainsAny(s, refused):
		p.fail(v, "%q must not contain a comma or an equals sign: pct could not take it", s)
	case strings.TrimSpace(s) != s:
		p.fail(v, "%q must not end with a blank", s)
	case path.Clean(s) == "/":
		p.fail(v, "must not be the root directory")
	default:
		return path.Clean(s)
	}
	return ""
}

func features(p *parser, e *entry, v gjson.Result) {
	e.Features = []string{}
	var seen seen[string]
	p.list(v, func(v gjson.Result) {
		name := p.matched(v, isFileName, fileNameRule)
		switch {
		case name == "":
		case seen.in(e.Features, name):
			p.fail(v, "%s is named twice", name)
		default:
			e.Features = append(e.Features, name)
		}
	})
}

func healthCheck(p *parser, e *entry, v gjson.Result) {
	h := &HealthCheck{Retries: 3, Interval: 5}
	p.object(v, []need{{"command", "what to run in the container"}}, func(key string, v gjson.Result) {
		switch key {
		case "command":
			h.Command = p.command(v)
		case "retries":
			h.Retries = p.integer(v, 1, 1000)
		case "interval":
			h.Interval = p.integer(v, 0, 3600)
		default:
			p.foreign(v)
			p.warn(v, "unknown key, ignored")
		}
	})
	e.HealthCheck = h
}

// command reads a command without a shell: its words are what stands between
// blanks. What a shell would not take as it is, is refused: a command that
// needs it would fail only when all is done. An "&" in a word is that of a URL.
func (p *parser) command(v gjson.Result) string {
	s, ok := p.str(v)
	if !ok {
		return ""
	}
	words := strings.Fields(s)
	shell := strings.ContainsAny(s, "\"'`$\\;|<>()") || slices.ContainsFunc(words, func(word string) bool {
		return strings.Contains(word, "&&") || strings.Trim(word, "&") != word
	})
	switch {
	case len(words) == 0:
		p.fail(v, "must not be blank")
	case shell:
		p.fail(v, "no shell reads this, its words are what stands between blanks: put the command into a script, in the container to be named here, or on the host as one of health_checks")
	default:
		return s
	}
	return ""
}

func healthChecks(p *parser, e *entry, v gjson.Result) {
	e.HealthChecks = []HealthProbe{}
	p.list(v, func(v gjson.Result) {
		var h HealthProbe
		p.object(v, []need{{"script", "what to run on the host"}}, func(key string, v gjson.Result) {
			switch key {
			case "name":
				h.Name, _ = p.str(v)
			case "script":
				h.Script = p.matched(v, isFileName, fileNameRule)
			case "args":
				if h.Args = p.args(v); len(h.Args) > maxArgs {
					p.fail(v, "has %d arguments; at most %d are allowed", len(h.Args), maxArgs)
					h.Args = nil
				}
			default:
				p.foreign(v)
				p.warn(v, "unknown key, ignored")
			}
		})
		if h.Name == "" {
			h.Name = h.Script
		}
		if !p.hopeless() {
			e.HealthChecks = append(e.HealthChecks, h)
		}
	})
}

// maxArgs is more than any health check has.
const maxArgs = 100

// args reads the arguments of a script: a list, or a string of words without
// any quoting, since no shell will read it.
func (p *parser) args(v gjson.Result) []string {
	var args []string
	switch {
	case v.IsArray():
		p.list(v, func(v gjson.Result) {
			if v.Type == gjson.String && v.Str == "" {
				args = append(args, "")
			} else if s, ok := p.str(v); ok {
				args = append(args, s)
			}
		})
	case v.Type == gjson.String && v.Str == "":
	default:
		if s, ok := p.str(v); ok && strings.ContainsAny(s, "\"'`$\\;&|<>()*?[]{}~#!") {
			p.fail(v, "no shell reads this: write a list of the arguments")
		} else if ok {
			args = strings.Fields(s)
		}
	}
	return args
}

func traefikService(p *parser, e *entry, v gjson.Result) {
	var s TraefikService
	p.object(v, []need{
		{"name", "the service's host name is NAME.DOMAIN"},
		{"port", "where the container serves it"},
	}, func(key string, v gjson.Result) {
		switch key {
		case "name":
			e.service = v.Index
			s.Name = strings.ToLower(p.matched(v, isLabel, labelRule))
		case "port":
			s.Port = p.integer(v, 1, 65535)
		case "scheme":
			s.Scheme = p.matched(v, func(s string) bool { return s == "http" || s == "https" }, "http or https")
		default:
			p.foreign(v)
			p.warn(v, "unknown key, ignored")
		}
	})
	e.TraefikService = &s
}
