package config

import (
	"fmt"
	"math"
	"strings"

	"github.com/tidwall/gjson"
	"github.com/xrash/smetrics"
)

// When a change of a key takes effect, where no more is to be said of it. The page
// says what each means.
const (
	atCreation = "creation"
	atOnce     = "at once"
	atStart    = "start"
	atBoot     = "boot"
	inRuns     = "run"

	onlyCreation = atCreation + "; a change is ignored"
	growing      = atOnce + "; a smaller one is refused"
	newAtOnce    = "a new one at once, others: " + atStart
	rerun        = atOnce + "; again when the script, or what it reads, changes"
)

// containerKeys has all keys of a container that phx knows.
var containerKeys = []key[entry]{
	{name: "name", need: "the container's host name", input: true,
		value:  text(hostName, func(e *entry, s string) { e.Name = s }),
		effect: "host name of the container", takes: atOnce,
		does: "host name: pct set --hostname"},
	{name: "template", value: text(template, func(e *entry, s string) { e.Template = s }),
		effect: "what the container is created from; this or `clone_from_ctid`", takes: onlyCreation,
		does: "what a new container is made from: pct create; a later change is ignored"},
	{name: "clone_from_ctid", value: special(ctidForm, func(p *parser, e *entry, v gjson.Result) {
		if e.CloneFrom = p.ctid(v); e.CloneFrom != 0 {
			e.edges = append(e.edges, edge{int32(e.CloneFrom), int32(v.Index), -1})
		}
	}).as("id of a container with `is_template` or `template_snapshot_name`"),
		effect: "what the container is cloned from, [below](#templates-and-clones)", takes: onlyCreation,
		does: "what a new container is cloned from: pct clone; a later change is ignored"},
	{name: "full_clone", value: special(boolean, func(p *parser, e *entry, v gjson.Result) {
		if full := p.boolean(v); v.IsBool() {
			e.FullClone, e.full = &full, v.Index
		}
	}), effect: "of a template: copy its disks; shared without, where the storage can", takes: onlyCreation,
		does: "pct clone --full where a template's disks could be shared"},
	{name: "is_template", input: true, value: special(boolean, func(p *parser, e *entry, v gjson.Result) {
		e.IsTemplate, e.template = p.boolean(v), v.Index
	}), without: false, effect: "the container becomes a template of Proxmox VE, [below](#templates-and-clones)",
		takes: atOnce + ", and for good",
		does:  "pct template, when all has been applied; from then on it is not changed any more"},
	{name: "ostype", value: special(osType.form, func(p *parser, e *entry, v gjson.Result) {
		e.OSType = p.known(v, osType, osTypes)
	}), effect: "what Proxmox VE takes the system for; without it finds out", takes: atStart,
		does: "pct set --ostype"},
	{name: "arch", value: special(architecture.form, func(p *parser, e *entry, v gjson.Result) {
		e.Arch = p.known(v, architecture, architectures)
	}), effect: "of the system; without Proxmox VE finds out", takes: atCreation,
		does: "of a new container: pct create --arch; a change is refused"},
	{name: "ssh_public_keys", value: special(sshKeysForm(), sshKeys),
		effect: "of root; only with `template`", takes: onlyCreation,
		does: "root's keys in a new container: --ssh-public-keys; a later change is ignored"},
	{name: "nodename", value: text(nodeName, func(e *entry, s string) { e.NodeName = s }),
		effect: "the container is for that host; phx refuses it on another one", takes: inRuns,
		does: "the host that the container is for; on another one it is refused"},

	{name: "memory_mb", need: "pct needs to know the memory, in MiB",
		value:  whole(16, math.MaxInt32, func(e *entry, n int) { e.MemoryMB = n }),
		effect: "memory in MiB", takes: atOnce,
		does: "pct set --memory, in a running container too"},
	{name: "swap_mb", value: whole(0, math.MaxInt32, func(e *entry, n int) { e.SwapMB = &n }),
		effect: "swap in MiB", takes: atOnce,
		does: "pct set --swap, in a running container too"},
	{name: "cores", need: "pct needs to know the number of cores",
		value:  whole(1, 8192, func(e *entry, n int) { e.Cores = n }),
		effect: "number of cores", takes: atOnce,
		does: "pct set --cores, in a running container too"},
	{name: "cpulimit", value: decimal(0, 8192, func(e *entry, n float64) { e.CPULimit = &n }),
		effect: "the time of so many CPUs; 0 is no limit", takes: atOnce,
		does: "pct set --cpulimit, in a running container too"},
	{name: "cpuunits", value: whole(0, 500000, func(e *entry, n int) { e.CPUUnits = &n }),
		effect: "weight among the other guests", takes: atOnce,
		does: "pct set --cpuunits, in a running container too"},
	{name: "storage_pool", need: "pct needs a storage for the root disk",
		value:  text(storage, func(e *entry, s string) { e.StoragePool = s }),
		effect: "storage of the root disk", takes: atCreation,
		does: "storage of a new container's root disk; another one later is refused"},
	{name: "storage_size_gb", need: "pct needs the size of the root disk, in GiB",
		value:  whole(1, maxDiskGB, func(e *entry, n int) { e.StorageSizeGB = n }),
		effect: "size of the root disk in GiB", takes: growing,
		does: "size of the root disk: pct resize; a smaller one is refused"},
	{name: "rootfs_options", value: special(objectOf(rootKeys, true, nil), rootOptions),
		effect: "options of the root disk, below", takes: atStart,
		does: "options of the root disk: pct set --rootfs"},
	{name: "network_config", input: true, value: special(interfaceForm(false), networkConfig),
		effect: "the network interface net0, below; this or `network_configs`", takes: atOnce,
		does: "net0: pct set --net0, in a running container too; name servers from its next start"},
	{name: "secondary_network_config", input: true, value: special(interfaceForm(false), secondaryNetworkConfig),
		effect: "net1 beside `network_config`, below", takes: atOnce,
		does: "net1: pct set --net1, in a running container too"},
	{name: "network_configs", input: true, value: special(interfacesForm(), networkConfigs),
		effect: fmt.Sprintf("up to %d interfaces, net0 first, below", maxInterfaces), takes: atOnce,
		does: "net0, net1, …: pct set --netN, in a running container too"},
	{name: "mac_address", value: special(macAddress.form, macAddressKey),
		effect: "of net0, the same as its `hwaddr`", takes: atOnce,
		does: "hwaddr of net0"},
	{name: "nameservers", value: special(serversForm, func(p *parser, e *entry, v gjson.Result) {
		p.setNameservers(e, v)
	}), effect: "name servers; those of the host without", takes: atStart,
		does: "pct set --nameserver"},
	{name: "searchdomain", value: special(domainsForm, searchDomain),
		effect: "where names are looked up that are not complete; as on the host without", takes: atStart,
		does: "pct set --searchdomain"},
	{name: "unprivileged", value: truth(func(e *entry, b bool) { e.Unprivileged = &b }), without: true,
		effect: "ids of the container are mapped; true without, a clone has that of its source", takes: atCreation,
		does: "of a new container, true without; a change is refused"},
	{name: "start_at_boot", value: truth(func(e *entry, b bool) { e.StartAtBoot = &b }),
		effect: "start it when the host boots", takes: atBoot,
		does: "pct set --onboot"},
	{name: "boot_order", value: whole(0, math.MaxInt32, func(e *entry, n int) { e.BootOrder = &n }),
		effect: "place in the order of starts, also in a plan", takes: atBoot,
		does: "order of pct set --startup, and of phx's own work"},
	{name: "boot_delay", value: whole(0, math.MaxInt32, func(e *entry, n int) { e.BootDelay = &n }),
		effect: "seconds to wait after its start and its stop", takes: atBoot,
		does: "up and down of pct set --startup"},
	{name: "timezone", value: special(timeZone.form, func(p *parser, e *entry, v gjson.Result) {
		p.since(v, sinceTimezone, "timezone")
		e.Timezone = p.formatted(v, timeZone)
	}), effect: "time zone, set at each start", takes: atStart,
		does: "pct set --timezone"},
	{name: "tags", value: special(tagsForm(), tags),
		effect: "all of its tags", takes: atOnce,
		does: "pct set --tags: these and no others"},
	{name: "description_text", value: special(notesForm, descriptionText),
		effect: "its notes, beside phx's own line; no line may begin with `phx:`", takes: atOnce,
		does: "its notes, beside phx's own line"},
	{name: "protection", value: truth(func(e *entry, b bool) { e.Protection = &b }),
		effect: "Proxmox VE neither destroys it nor changes its disks and mount points", takes: atOnce,
		does: "pct set --protection"},
	{name: "hookscript", value: text(hookScript, func(e *entry, s string) { e.HookScript = s }),
		effect: "script that Proxmox VE runs at starts and stops; it must exist", takes: atOnce,
		does: "pct set --hookscript"},

	{name: "pct_options", value: special(listOf("list of strings `KEY=VALUE`: `nesting`, `keyctl`, `fuse`, `mknod`, "+
		"`force_rw_sys` (0 or 1), `mount`", pctOption), pctOptions),
		effect: "pct's option `features`", takes: atStart,
		does: "pct set --features"},
	{name: "lxc_options", value: special(listOf("list of strings `lxc.KEY=VALUE` that Proxmox VE keeps", rawOption),
		lxcOptions),
		effect: "raw lines of its conf file", takes: atStart,
		does: "raw lines of the conf file, each once"},
	{name: "apparmor_profile", value: text(fileName, func(e *entry, s string) { e.AppArmorProfile = s }).
		as("`unconfined`, `generated`, or the name of a file in `etc/apparmor` of the installation, of the package " +
			"in `/etc/phx/apparmor`"),
		effect: "its AppArmor profile; the file is loaded on the host. `generated` and `unconfined` both leave the " +
			"one that Proxmox VE makes; only `lxc.apparmor.profile=unconfined` in `lxc_options` switches AppArmor off",
		takes: atStart,
		does: "profile from etc/apparmor (generated and unconfined: none), loaded on the host and named by a raw " +
			"line"},
	{name: "apparmor_manages_nesting", value: truth(func(e *entry, b bool) { e.AppArmorManagesNesting = b }),
		without: false, effect: "with a profile of its own: let AppArmor allow nesting", takes: atStart,
		does: "raw lines that allow nesting, beside a profile of its own"},
	{name: "gpu_assignment", value: special(gpuList.form, gpus),
		effect: "NVIDIA devices of the host", takes: atStart,
		does: "raw lines for these NVIDIA devices"},
	{name: "devices", value: special(listOf("list of objects", objectOf(deviceKeys, true, nil)), devices),
		effect: "devices of the host, below", takes: newAtOnce,
		does: "devices of the host: pct set --devN"},
	{name: "id_maps", value: special(idMapsForm, idMaps),
		effect: "maps of ids, in place of those that it has", takes: atStart,
		does: "raw lines lxc.idmap in place of all others"},
	{name: "zfs_volumes", value: special(volumesForm, volumes),
		effect: "volumes, below", takes: growing,
		does: "mount points mpN with a new volume each; they grow, and are never replaced"},
	{name: "volumes", value: special(volumesForm, volumes),
		effect: "more volumes: the same", takes: growing,
		does: "the same as zfs_volumes"},
	{name: "mount_points", value: special(listOf("list of objects", objectOf(mountPointKeys, true, nil)), mountPoints),
		effect: "directories and files of the host, below", takes: newAtOnce,
		does: "mount points mpN of host directories, which are made where they are missing"},
	{name: "firewall", value: special(objectOf(firewallKeys, true, nil), firewall),
		effect: "its firewall, below", takes: atOnce + ", or with `--enforce-firewall`",
		does: "rules and options of its firewall, and firewall= of its interfaces"},

	{name: "features", value: special(namesForm("list of names", fileName), features),
		effect: "`phoenix_hypervisor_feature_install_NAME.sh` runs for each, in order, on the host " +
			"([scripts](#scripts)); what it installed stays when it is removed here", takes: rerun,
		does: "feature scripts on the host, once, and again when they or what they read change"},
	{name: "bootstrap_ca_url", value: text(httpsURL, func(e *entry, s string) { e.BootstrapCAURL = s }),
		effect: "second argument of the feature scripts", takes: atOnce + ": they run again",
		does: "second argument of the feature scripts"},
	{name: "application_script", value: special(fileName.form, func(p *parser, e *entry, v gjson.Result) {
		e.ApplicationScript, e.script = p.formatted(v, fileName), v.Index
	}), effect: "runs in the container after the features ([scripts](#scripts)); phx-nginx and phx-traefik do the " +
		"work of `…_101.sh` and `…_102.sh`", takes: rerun,
		does: "script in the container, once, and again when it or what it reads changes; " +
			"phx-nginx and phx-traefik do the work of …_101.sh and …_102.sh"},
	{name: "health_check", value: special(objectOf(healthCheckKeys, false, nil), healthCheck),
		effect: "command in the container, below", takes: inRuns,
		does: "command in the container, in every run; while it fails, what depends on it waits"},
	{name: "health_checks", value: special(listOf("list of objects", objectOf(healthProbeKeys, false, nil)),
		healthChecks),
		effect: "scripts on the host, below", takes: inRuns,
		does: "scripts on the host, in every run; while one fails, what depends on it waits"},
	{name: "enable_lifecycle_snapshots", value: truth(func(e *entry, b bool) { e.LifecycleSnapshots = b }),
		without: false,
		effect:  "snapshots `pre-configured`, before any script, and `final-form`, when it is complete", takes: atOnce,
		does: "snapshots pre-configured and final-form, each taken once"},
	{name: "template_snapshot_name", value: special(snapshot.form, func(p *parser, e *entry, v gjson.Result) {
		e.TemplateSnapshot, e.snapshot = p.formatted(v, snapshot), true
	}), effect: "snapshot of the complete container, which others are cloned from; with `start_at_boot` false it is " +
		"then stopped", takes: atOnce,
		does: "snapshot of the complete container, which is then stopped, unless start_at_boot"},
	{name: "dependencies", value: special(listOf("list of container ids", ctidForm), dependencies),
		effect: "have to be ready first; one that the file does not have has to run", takes: inRuns,
		does: "these are brought up before it; one that the file does not have has to run"},
	{name: "traefik_service", input: true, value: special(objectOf(serviceKeys, false, nil), traefikService),
		effect: "what the proxy serves as `https://NAME.DOMAIN`, below", takes: atOnce,
		does: "https://NAME.DOMAIN through gateway and proxy, with a certificate of its own"},
}

var volumesForm = listOf("list of objects", objectOf(volumeKeys, true, nil))

// ctidForm is the form of a container id: a number, or a string that has one.
var ctidForm = either("container id", wholeForm(minCTID, maxCTID), like("", ctidPattern))

// namesForm is the form of a list that has nothing twice.
func namesForm(words string, item format) form {
	return listOf(words, item.form).with(shape{"uniqueItems": true})
}

func interfacesForm() form {
	return listOf("list of objects", interfaceForm(true)).with(shape{"minItems": 1, "maxItems": maxInterfaces})
}

var (
	keyByName      = map[string]*key[entry]{}
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
