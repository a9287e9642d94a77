package config

import (
	"encoding/json"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// A containerKey is a key of a container's object.
type containerKey struct {
	name string
	read func(*parser, *entry, gjson.Result)
	need string // why a container must have it; "" when it need not

	// input says that application scripts read the key: when its value changes,
	// they have to run again. A change of any other key phx applies itself.
	input bool
}

// containerKeys has all keys of a container that phx knows.
var containerKeys = []containerKey{
	{name: "name", need: "the container's host name", input: true, read: func(p *parser, e *entry, v gjson.Result) {
		e.Name = p.formatted(v, hostName)
	}},
	{name: "template", read: func(p *parser, e *entry, v gjson.Result) { e.Template = p.formatted(v, template) }},
	{name: "clone_from_ctid", read: func(p *parser, e *entry, v gjson.Result) {
		if e.CloneFrom = p.ctid(v); e.CloneFrom != 0 {
			e.edges = append(e.edges, edge{int32(e.CloneFrom), int32(v.Index), -1})
		}
	}},
	{name: "full_clone", read: func(p *parser, e *entry, v gjson.Result) {
		if full := p.boolean(v); v.IsBool() {
			e.FullClone, e.full = &full, v.Index
		}
	}},
	{name: "is_template", input: true, read: func(p *parser, e *entry, v gjson.Result) {
		e.IsTemplate, e.template = p.boolean(v), v.Index
	}},
	{name: "ostype", read: func(p *parser, e *entry, v gjson.Result) { e.OSType = p.known(v, osType, osTypes) }},
	{name: "arch", read: func(p *parser, e *entry, v gjson.Result) {
		e.Arch = p.known(v, architecture, architectures)
	}},
	{name: "ssh_public_keys", read: sshKeys},
	{name: "nodename", read: func(p *parser, e *entry, v gjson.Result) { e.NodeName = p.formatted(v, nodeName) }},

	{name: "memory_mb", need: "pct needs to know the memory, in MiB", read: func(p *parser, e *entry, v gjson.Result) {
		e.MemoryMB = p.integer(v, 16, math.MaxInt32)
	}},
	{name: "swap_mb", read: func(p *parser, e *entry, v gjson.Result) {
		e.SwapMB = new(p.integer(v, 0, math.MaxInt32))
	}},
	{name: "cores", need: "pct needs to know the number of cores", read: func(p *parser, e *entry, v gjson.Result) {
		e.Cores = p.integer(v, 1, 8192)
	}},
	{name: "cpulimit", read: func(p *parser, e *entry, v gjson.Result) { e.CPULimit = new(p.decimal(v, 0, 8192)) }},
	{name: "cpuunits", read: func(p *parser, e *entry, v gjson.Result) { e.CPUUnits = new(p.integer(v, 0, 500000)) }},
	{name: "storage_pool", need: "pct needs a storage for the root disk",
		read: func(p *parser, e *entry, v gjson.Result) { e.StoragePool = p.formatted(v, storage) }},
	{name: "storage_size_gb", need: "pct needs the size of the root disk, in GiB",
		read: func(p *parser, e *entry, v gjson.Result) { e.StorageSizeGB = p.integer(v, 1, maxDiskGB) }},
	{name: "rootfs_options", read: rootOptions},
	{name: "network_config", input: true, read: networkConfig},
	{name: "secondary_network_config", input: true, read: secondaryNetworkConfig},
	{name: "network_configs", input: true, read: networkConfigs},
	{name: "mac_address", read: macAddressKey},
	{name: "nameservers", read: func(p *parser, e *entry, v gjson.Result) { p.setNameservers(e, v) }},
	{name: "searchdomain", read: searchDomain},
	{name: "unprivileged", read: func(p *parser, e *entry, v gjson.Result) { e.Unprivileged = new(p.boolean(v)) }},
	{name: "start_at_boot", read: func(p *parser, e *entry, v gjson.Result) { e.StartAtBoot = new(p.boolean(v)) }},
	{name: "boot_order", read: func(p *parser, e *entry, v gjson.Result) {
		e.BootOrder = new(p.integer(v, 0, math.MaxInt32))
	}},
	{name: "boot_delay", read: func(p *parser, e *entry, v gjson.Result) {
		e.BootDelay = new(p.integer(v, 0, math.MaxInt32))
	}},
	{name: "timezone", read: func(p *parser, e *entry, v gjson.Result) {
		p.since(v, sinceTimezone, "timezone")
		e.Timezone = p.formatted(v, timeZone)
	}},
	{name: "tags", read: tags},
	{name: "description_text", read: descriptionText},
	{name: "protection", read: func(p *parser, e *entry, v gjson.Result) { e.Protection = new(p.boolean(v)) }},
	{name: "hookscript", read: func(p *parser, e *entry, v gjson.Result) { e.HookScript = p.formatted(v, hookScript) }},

	{name: "pct_options", read: pctOptions},
	{name: "lxc_options", read: lxcOptions},
	{name: "apparmor_profile", read: func(p *parser, e *entry, v gjson.Result) {
		e.AppArmorProfile = p.formatted(v, fileName)
	}},
	{name: "apparmor_manages_nesting", read: func(p *parser, e *entry, v gjson.Result) {
		e.AppArmorManagesNesting = p.boolean(v)
	}},
	{name: "gpu_assignment", read: gpus},
	{name: "devices", read: devices},
	{name: "id_maps", read: idMaps},
	{name: "zfs_volumes", read: volumes},
	{name: "volumes", read: volumes},
	{name: "mount_points", read: mountPoints},
	{name: "firewall", read: firewall},

	{name: "features", read: features},
	{name: "bootstrap_ca_url", read: func(p *parser, e *entry, v gjson.Result) {
		e.BootstrapCAURL = p.formatted(v, httpsURL)
	}},
	{name: "application_script", read: func(p *parser, e *entry, v gjson.Result) {
		e.ApplicationScript, e.script = p.formatted(v, fileName), v.Index
	}},
	{name: "health_check", read: healthCheck},
	{name: "health_checks", read: healthChecks},
	{name: "enable_lifecycle_snapshots", read: func(p *parser, e *entry, v gjson.Result) {
		e.LifecycleSnapshots = p.boolean(v)
	}},
	{name: "template_snapshot_name", read: func(p *parser, e *entry, v gjson.Result) {
		e.TemplateSnapshot, e.snapshot = p.formatted(v, snapshot), true
	}},
	{name: "dependencies", read: dependencies},
	{name: "traefik_service", input: true, read: traefikService},
}

var (
	keyByName      = map[string]*containerKey{}
	containerNeeds []need
)

func init() {
	for i := range containerKeys {
		k := &containerKeys[i]
		keyByName[k.name] = k
		if k.need != "" {
			containerNeeds = append(containerNeeds, need{k.name, k.need})
		}
	}
}

// ScriptInput returns what application scripts read of the container's object:
// the keys that phx does not know, and those of its own that phx does not apply
// by itself. It is the object in the order and the form of [json.Marshal]: the
// same bytes as long as none of these keys gets another value.
func (c *Container) ScriptInput() ([]byte, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(c.Raw), &object); err != nil {
		return nil, fmt.Errorf("container %d: %w", c.CTID, err)
	}
	for _, k := range containerKeys {
		if !k.input {
			delete(object, k.name)
		}
	}
	return json.Marshal(object)
}

// root reads the outermost object and returns its containers in the order of
// the file.
func (p *parser) root(v gjson.Result) []*entry {
	var found []*entry
	p.object(v, []need{{"lxc_configs", "it holds the containers"}}, func(key string, v gjson.Result) {
		switch key {
		case "lxc_configs":
		case "services":
			p.services(v)
			return
		case "dashboard":
			p.dashboard(v)
			return
		default:
			p.passOver(v)
			return
		}
		p.object(v, nil, func(key string, v gjson.Result) {
			id, err := ParseCTID(key)
			if err != nil {
				p.fail(v, "%v", err)
			}
			if e := p.container(id, v); e != nil && err == nil && !p.full() {
				found = append(found, e)
			}
		})
	})
	return found
}

// entry returns an entry for the next container: the same one again where none
// is kept any more.
func (p *parser) entry() *entry {
	if p.spare == nil || !p.full() {
		p.spare = &entry{Container: &Container{}}
	}
	return p.spare
}

// container reads a container's object. It returns what could be read, nil
// when v is no object.
func (p *parser) container(ctid int, v gjson.Result) *entry {
	e := p.entry()
	*e.Container = Container{CTID: ctid, Raw: v.Raw}
	*e = entry{Container: e.Container, at: v.Index}
	if e.length = eventLength(v.Raw); e.length > MaxContainer {
		p.fail(v, "is %d bytes long; at most %d fit in an event", e.length, MaxContainer)
		return nil
	}
	template, source := -1, -1
	p.object(v, containerNeeds, func(key string, v gjson.Result) {
		switch key {
		case "template":
			template = v.Index
		case "clone_from_ctid":
			source = v.Index
		}
		if k := keyByName[key]; k != nil {
			k.read(p, e, v)
		} else if k := foreign(key); k != nil {
			p.passOver(v)
			if k.warning != "" && asks(v) {
				p.warn(v, "passed over: %s", k.warning)
			}
		} else {
			p.passOver(v)
			p.warnings.add(v.Index, func() note { return note{v.Index, p.pathText(), unknownKey(key), -1} })
		}
	})
	if !v.IsObject() {
		return nil
	}
	p.networks(e, v.Index)
	switch {
	case template < 0 && source < 0:
		p.failUnder(v.Index, "template", "missing: a container is made from a template or from clone_from_ctid")
	case template >= 0 && source >= 0:
		p.failUnder(source, "clone_from_ctid", "there is a template too: a container is made from one of them")
	}
	if source >= 0 && (e.SSHKeys != nil || e.SSHKeysFile != "") {
		p.failUnder(e.sshKeys, "ssh_public_keys", "pct sets them only when it creates a container from a template: "+
			"a clone has those of its source")
	}
	p.keysTogether(e)
	return e
}

func dependencies(p *parser, e *entry, v gjson.Result) {
	e.Dependencies = []int{}
	index := int32(-1)
	var named listSet[int]
	p.list(v, func(v gjson.Result) {
		index++
		id := p.ctid(v)
		switch {
		case id == 0:
		case named.has(e.Dependencies, id):
			p.warn(v, "%d is named twice", id)
		default:
			e.Dependencies = append(e.Dependencies, id)
			e.edges = append(e.edges, edge{int32(id), int32(v.Index), index})
		}
	})
}

func gpus(p *parser, e *entry, v gjson.Result) {
	s := p.formatted(v, gpuList)
	if s == "" {
		return
	}
	e.GPUs = []int{}
	if s == "none" {
		return
	}
	for field := range strings.SplitSeq(s, ",") {
		n, _ := strconv.Atoi(strings.TrimSpace(field))
		if slices.Contains(e.GPUs, n) {
			p.fail(v, "GPU %d is named twice", n)
			return
		}
		e.GPUs = append(e.GPUs, n)
	}
}

const maxDiskGB = 1 << 20 // 1 PiB: pct has no limit of its own

func volumes(p *parser, e *entry, v gjson.Result) {
	if e.Volumes == nil {
		e.Volumes = []Volume{}
	}
	p.list(v, func(v gjson.Result) {
		var vol Volume
		p.members(v, (*parser).refuse,
			member{"name", "", func(v gjson.Result) { p.str(v) }}, // passed over
			member{"pool", "the storage to allocate it from", func(v gjson.Result) {
				vol.Pool = p.formatted(v, storage)
			}},
			member{"size_gb", "its size, in GiB", func(v gjson.Result) { vol.SizeGB = p.integer(v, 1, maxDiskGB) }},
			member{"mount_point", "its place in the container", func(v gjson.Result) {
				vol.MountPoint = p.containerPath(v, e)
			}},
			member{"read_only", "", p.flag(&vol.ReadOnly)},
			member{"backup", "", p.flag(&vol.Backup)},
			member{"replicate", "", p.flag(&vol.Replicate)},
			member{"quota", "", p.flag(&vol.Quota)},
			member{"acl", "", p.flag(&vol.ACL)},
			member{"keepattrs", "", func(v gjson.Result) {
				p.since(v, sinceKeepAttrs, "keepattrs")
				vol.KeepAttrs = new(p.boolean(v))
			}},
			member{"mountoptions", "", func(v gjson.Result) { vol.Flags = p.mountFlags(v) }},
		)
		if !p.full() {
			e.Volumes = append(e.Volumes, vol)
		}
	})
}

func mountPoints(p *parser, e *entry, v gjson.Result) {
	e.MountPoints = []MountPoint{}
	p.list(v, func(v gjson.Result) {
		var m MountPoint
		host := v
		p.members(v, (*parser).refuse,
			member{"host_path", "the directory on the host", func(v gjson.Result) {
				// pct would take what is before a "=" for the name of a sub-key.
				m.HostPath, host = p.dirPath(v, ",="), v
				m.Directory = strings.HasSuffix(v.Str, "/")
			}},
			member{"container_path", "its place in the container", func(v gjson.Result) {
				m.ContainerPath = p.containerPath(v, e)
			}},
			member{"read_only", "", func(v gjson.Result) { m.ReadOnly = p.boolean(v) }},
			member{"owner_uid", "", func(v gjson.Result) { m.OwnerUID = new(p.integer(v, 0, 65535)) }},
			member{"owner_gid", "", func(v gjson.Result) { m.OwnerGID = new(p.integer(v, 0, 65535)) }},
			member{"replicate", "", p.flag(&m.Replicate)},
			member{"shared", "", p.flag(&m.Shared)},
		)
		if m.HostPath != "" && (m.OwnerUID != nil || m.OwnerGID != nil) {
			if err := p.checkOwner(m.HostPath); err != nil {
				p.failUnder(host.Index, "host_path", "%v", err)
			} else if !p.full() {
				e.owned = append(e.owned, ownedMount{int32(len(e.MountPoints)), int32(host.Index)})
			}
		}
		if !p.full() {
			e.MountPoints = append(e.MountPoints, m)
		}
	})
}

// maxMounts is the number of pct's options mp0 to mp255.
const maxMounts = 256

// containerPath reads a path at which the container gets something mounted.
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

// dirPath reads the path of a directory without any of the refused characters.
// It returns the path without needless slashes.
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

// pctOptions reads sub-keys of pct's option features. Proxmox VE keeps a
// boolean as it was typed, so each is given as 0 or 1 here.
func pctOptions(p *parser, e *entry, v gjson.Result) {
	e.PctOptions = []string{}
	p.list(v, func(v gjson.Result) {
		s, ok := p.str(v)
		if !ok {
			return
		}
		for option := range strings.SplitSeq(s, ",") {
			if !p.is(v, option, keyValue) {
				return
			}
			key, value, _ := strings.Cut(strings.TrimSpace(option), "=")
			f, known := pctFeatures[key]
			switch {
			case !known:
				p.fail(v, "pct knows no feature %q: there are nesting, keyctl, fuse, mknod, mount and force_rw_sys",
					key)
				return
			case !f.is(value):
				p.fail(v, "%s must be %s, not %q", key, f.what, value)
				return
			case slices.ContainsFunc(e.PctOptions, func(s string) bool { return strings.HasPrefix(s, key+"=") }):
				p.fail(v, "%s is given twice", key)
				return
			case key != "mount":
				value = pveBooleans[strings.ToLower(value)]
			}
			e.PctOptions = append(e.PctOptions, key+"="+value)
		}
	})
}

// maxCapabilities is the number of bits in a set of capabilities.
const maxCapabilities = 64

func lxcOptions(p *parser, e *entry, v gjson.Result) {
	e.LXCOptions = []RawOption{}
	named := map[string]int{} // capabilities, by key
	p.list(v, func(v gjson.Result) {
		s := p.formatted(v, rawLine)
		if s == "" {
			return
		}
		key, value, _ := cutRaw(s)
		switch {
		case isKeptRawKey(key):
		case strings.HasPrefix(key, "lxc.cgroup."):
			p.warn(v, "Proxmox VE is about to refuse lxc.cgroup.*: use lxc.cgroup2.*")
		case strings.HasPrefix(key, "lxc.limit."):
			p.fail(v, "lxc.limit.* is called lxc.prlimit.* now")
			return
		case rawHints[key] != "":
			p.fail(v, "%s: %s", key, rawHints[key])
			return
		default:
			p.fail(v, "Proxmox VE does not accept %s: it would delete the line", key)
			return
		}
		if key != "lxc.cap.keep" && key != "lxc.cap.drop" {
			e.LXCOptions = append(e.LXCOptions, RawOption{key, value})
			return
		}
		if named[key] += strings.Count(value, ",") + 1; named[key] > maxCapabilities {
			p.fail(v, "%s: Linux has no more than %d capabilities", key, maxCapabilities)
			return
		}
		for capability := range strings.SplitSeq(value, ",") {
			e.LXCOptions = append(e.LXCOptions, RawOption{key, strings.TrimSpace(capability)})
		}
	})
}

func firewall(p *parser, e *entry, v gjson.Result) {
	f := &Firewall{}
	p.members(v, (*parser).refuse,
		member{"enabled", "", func(v gjson.Result) { f.Enabled = p.boolean(v) }},
		member{"macfilter", "", func(v gjson.Result) { f.MACFilter = new(p.boolean(v)) }},
		member{"ipfilter", "", func(v gjson.Result) { f.IPFilter, e.ipfilter = new(p.boolean(v)), v.Index }},
		member{"policy_in", "", func(v gjson.Result) { f.PolicyIn = p.formatted(v, verdict) }},
		member{"policy_out", "", func(v gjson.Result) { f.PolicyOut = p.formatted(v, verdict) }},
		member{"rules", "", func(v gjson.Result) {
			f.Rules = []FirewallRule{}
			p.list(v, func(v gjson.Result) {
				if rule := p.firewallRule(v); !p.full() {
					f.Rules = append(f.Rules, rule)
				}
			})
		}},
	)
	e.Firewall = f
}

func (p *parser) firewallRule(v gjson.Result) FirewallRule {
	var r FirewallRule
	var action, port, dest gjson.Result
	p.members(v, (*parser).refuse,
		member{"type", "in, out or group", func(v gjson.Result) { r.Type = p.formatted(v, ruleType) }},
		member{"action", "ACCEPT, DROP or REJECT, or the name of a group", func(v gjson.Result) {
			r.Action, _ = p.str(v)
			action = v
		}},
		member{"source", "", func(v gjson.Result) { r.Source = p.formatted(v, rulePeers) }},
		member{"dest", "", func(v gjson.Result) { r.Dest, dest = p.formatted(v, rulePeers), v }},
		member{"proto", "", func(v gjson.Result) { r.Proto = p.formatted(v, ruleProto) }},
		member{"port", "", func(v gjson.Result) {
			port = v
			if v.Type == gjson.Number {
				r.Port = strconv.Itoa(p.integer(v, 1, 65535))
			} else {
				r.Port = p.formatted(v, rulePorts)
			}
		}},
		member{"comment", "", func(v gjson.Result) {
			if v.Type != gjson.String || v.Str != "" {
				r.Comment, _ = p.str(v)
			}
		}},
	)
	f := verdict
	if r.Type == "group" {
		f = ruleGroup
	}
	if r.Action != "" && r.Type != "" && !f.is(r.Action) {
		p.failUnder(action.Index, "action", "%q is not %s", r.Action, f.what)
	}
	if a, b := peersFamily(r.Source), peersFamily(r.Dest); a != b && a != 0 && b != 0 {
		p.failUnder(dest.Index, "dest", "is IPv%d, and source IPv%d: no packet has both", b, a)
	}
	if r.Port != "" && r.Proto == "" {
		p.failUnder(port.Index, "port", "a port needs a proto")
	}
	return r
}

func features(p *parser, e *entry, v gjson.Result) {
	e.Features = []string{}
	var named listSet[string]
	p.list(v, func(v gjson.Result) {
		name := p.formatted(v, fileName)
		switch {
		case name == "":
		case named.has(e.Features, name):
			p.fail(v, "%s is named twice", name)
		default:
			e.Features = append(e.Features, name)
		}
	})
}

func healthCheck(p *parser, e *entry, v gjson.Result) {
	h := &HealthCheck{Retries: 3, Interval: 5}
	p.members(v, (*parser).ignore,
		member{"command", "what to run in the container", func(v gjson.Result) { h.Command = p.command(v) }},
		member{"retries", "", func(v gjson.Result) { h.Retries = p.integer(v, 1, 1000) }},
		member{"interval", "", func(v gjson.Result) { h.Interval = p.integer(v, 0, 3600) }},
	)
	e.HealthCheck = h
}

// command reads a command without a shell. What a shell would not take as it is,
// is refused: a command that needs one would fail only when all is done.
func (p *parser) command(v gjson.Result) string {
	s, ok := p.str(v)
	switch {
	case !ok:
	case strings.TrimSpace(s) == "":
		p.fail(v, "must not be blank")
	case needsShell(s):
		p.fail(v, "no shell reads this, its words are what stands between blanks: put the command into a script, "+
			"in the container to be named here, or on the host as one of health_checks")
	default:
		return s
	}
	return ""
}

func healthChecks(p *parser, e *entry, v gjson.Result) {
	e.HealthChecks = []HealthProbe{}
	p.list(v, func(v gjson.Result) {
		var h HealthProbe
		p.members(v, (*parser).ignore,
			member{"name", "", func(v gjson.Result) { h.Name, _ = p.str(v) }},
			member{"script", "what to run on the host", func(v gjson.Result) { h.Script = p.formatted(v, fileName) }},
			member{"args", "", func(v gjson.Result) { h.Args = p.args(v) }},
		)
		if h.Name == "" {
			h.Name = h.Script
		}
		if !p.full() {
			e.HealthChecks = append(e.HealthChecks, h)
		}
	})
}

// maxArgs is more than any health check has.
const maxArgs = 100

// args reads the arguments of a script: a list, or a string of words without
// quotes, since no shell reads it.
func (p *parser) args(v gjson.Result) []string {
	var args []string
	empty := func(v gjson.Result) bool { return v.Type == gjson.String && v.Str == "" }
	switch {
	case v.IsArray():
		p.list(v, func(v gjson.Result) {
			if empty(v) {
				args = append(args, "")
			} else if s, ok := p.str(v); ok {
				args = append(args, s)
			}
		})
	case empty(v):
	default:
		if s, ok := p.str(v); ok && strings.ContainsAny(s, "\"'`$\\;&|<>()*?[]{}~#!") {
			p.fail(v, "no shell reads this: write a list of the arguments")
		} else if ok {
			args = strings.Fields(s)
		}
	}
	if len(args) > maxArgs {
		p.fail(v, "has %d arguments; at most %d are allowed", len(args), maxArgs)
		return nil
	}
	return args
}
