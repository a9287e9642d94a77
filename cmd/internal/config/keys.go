package config

import (
	"math"
	"strings"

	"github.com/tidwall/gjson"
	"github.com/xrash/smetrics"
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

// A foreignKey is a key of a container that belongs to other programs. phx does
// nothing with it; application scripts may read it.
type foreignKey struct {
	name    string // "*" at the end stands for anything
	scripts bool   // it is there for feature or application scripts
	why     string // whose it is

	// warning says what the file may ask for, and phx does not do; "" when there is
	// nothing to miss. It is for values that ask for something, see [asks].
	warning string
}

var foreignKeys = []foreignKey{
	{name: "vllm", scripts: true, why: "for application scripts that set up vLLM"},
	{name: "vllm_*", scripts: true, why: "for application scripts that set up vLLM"},
	{name: "nvidia_*", scripts: true, why: "for feature scripts that install NVIDIA's driver"},
	{name: "portainer_*", why: "Portainer's: phx sets up none of it"},
	{name: "trigger_sync_on_completion", why: "Portainer's: phx sets up none of it",
		warning: "phx does not bring Portainer's stacks up to date"},
	{name: "public_interface", why: "phx opens no ports but those of firewall.rules",
		warning: "phx opens no ports for it: what ports 80 and 443 need is in firewall.rules " +
			`{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "80,443"}`},
	{name: "template_file", why: "no script has ever used it",
		warning: "a container is made from template or clone_from_ctid, and no script has ever used this"},
	{name: "ports", why: "a container has an address of its own, and needs no ports mapped"},
	{name: "tests", why: "for tests of the installation before phx"},
	{name: "integration_tests", why: "for tests of the installation before phx"},
	{name: "run_integration_tests", why: "for tests of the installation before phx"},
	{name: "$*", why: "for editors and validators"},
	{name: "_*", why: "a remark"},
}

// foreign returns the foreign key that key is, or nil.
func foreign(key string) *foreignKey {
	for i := range foreignKeys {
		k := &foreignKeys[i]
		if prefix, any := strings.CutSuffix(k.name, "*"); k.name == key || any && strings.HasPrefix(key, prefix) {
			return k
		}
	}
	return nil
}

// asks reports whether the value of a foreign key asks for something: it is
// neither false nor an object whose enabled is false.
func asks(v gjson.Result) bool {
	return v.Type != gjson.False && !(v.IsObject() && v.Get("enabled").Type == gjson.False)
}

// unknownKey returns the warning for an unknown key of a container.
func unknownKey(key string) string {
	if meant := meantKey(key); meant != "" {
		return "unknown key, ignored: is " + meant + " meant?"
	}
	return "unknown key, ignored"
}

// meantKey returns the key of a container of which key is a misspelling: a letter,
// or of a long key two, are wrong, missing or too many. It is "" when there is
// none.
func meantKey(key string) string {
	meant, least := "", 2
	if len(key) >= 6 {
		least = 3
	}
	for _, k := range containerKeys {
		if diff := len(k.name) - len(key); diff <= -least || diff >= least {
			continue
		}
		if n := smetrics.WagnerFischer(key, k.name, 1, 1, 1); n < least {
			meant, least = k.name, n
		}
	}
	return meant
}
