package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/hostdir"
)

// An entry is a container with what later checks need: the offsets at which
// mistakes may be found, and what it needs.
type entry struct {
	*Container
	at       int // of its object
	ipfilter int // of firewall.ipfilter
	script   int // of application_script
	service  int // of traefik_service.name
	template int // of is_template
	full     int // of full_clone
	sshKeys  int // of ssh_public_keys
	idMaps   int // of id_maps

	certificate certificateKeys // of traefik_service

	first, second *nic  // of network_config and secondary_network_config, nil without
	listed        []nic // of network_configs, nil without
	list          int   // offset of network_configs
	nics          []nic // those of the container, net0 first

	mac      mac          // mac_address
	length   int          // of its object in an event
	snapshot bool         // there is a template_snapshot_name, right or wrong
	edges    []edge       // its clone source and its dependencies
	owned    []ownedMount // the mount points that get an owner
	mounts   []string     // the paths in the container at which something is mounted
}

// A mac is a MAC address with its offset in the file.
type mac struct {
	address string
	at      int
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

// An ownedMount is the index of a mount point, and the offset of its host_path.
type ownedMount struct{ index, at int32 }

// keysTogether checks what several keys of a container mean together, and sets
// what one of them leaves to another.
func (p *parser) keysTogether(e *entry) {
	if len(e.MappedIDs) > 0 && e.Unprivileged != nil && !*e.Unprivileged {
		p.failUnder(e.idMaps, "id_maps", "unprivileged is false: the ids of such a container are those of the host")
	}
	isIDMap := func(o RawOption) bool { return o.Key == "lxc.idmap" }
	if len(e.MappedIDs) > 0 && slices.ContainsFunc(e.LXCOptions, isIDMap) {
		p.failUnder(e.idMaps, "id_maps", "there is lxc.idmap in lxc_options, too: write all maps in one of them")
	}
	p.templateKeys(e)
	p.checkFilters(e)
	s := e.TraefikService
	if key, at, method := e.unfixed(); method != "" {
		if script := e.ApplicationScript; script == CAScript || script == ProxyScript {
			p.failUnder(at, key, "must be a fixed address, not %s: the other containers have to know where to find "+
				"that of %s", method, script)
		}
		if s != nil {
			p.warnings.add(e.service, func() note {
				return note{e.service, p.pathTo("traefik_service"), fmt.Sprintf(
					"is not served: the container has no fixed address, and %s is %s", key, method), -1}
			})
		}
	}
	if s != nil && s.Scheme == "" {
		s.Scheme = "http"
		if e.ApplicationScript == CAScript {
			s.Scheme = "https"
		}
	}
	if s != nil && e.ApplicationScript == GatewayScript && (s.Port == 80 || s.Port == 443) {
		p.warnUnder(e.service, "traefik_service.port",
			"%d is a port of the gateway itself: its status page is served by its name alone", s.Port)
	}
	if s != nil {
		p.serviceTLS(e)
	}
}

// templateKeys checks what the other keys mean for a template of Proxmox VE,
// which never runs, has no snapshots, and takes no directories of the host.
func (p *parser) templateKeys(e *entry) {
	if e.FullClone != nil && e.CloneFrom == 0 {
		p.failUnder(e.full, "full_clone", "there is no clone_from_ctid: only a clone can be full")
	}
	if !e.IsTemplate {
		return
	}
	warn := func(format string, args ...any) {
		p.warnings.add(e.template, func() note {
			return note{e.template, p.pathTo("is_template"), message(format, args), -1}
		})
	}
	if len(e.MountPoints) > 0 {
		p.failUnder(e.template, "is_template", "there are mount_points: pct makes no template of a container that "+
			"has any: give them to its clones")
	}
	switch script := e.ApplicationScript; script {
	case GatewayScript, ProxyScript, CAScript:
		p.failUnder(e.template, "is_template", "a template never runs, so it cannot have the application script %s: "+
			"give that to a clone", script)
	}
	if e.snapshot || e.LifecycleSnapshots {
		warn("a template has no snapshots: neither template_snapshot_name nor enable_lifecycle_snapshots has an effect")
	}
	if e.StartAtBoot != nil && *e.StartAtBoot {
		warn("a template never runs: start_at_boot has no effect")
	}
	if e.TraefikService != nil {
		warn("a template never runs: its traefik_service is not served")
	}
	e.TemplateSnapshot, e.LifecycleSnapshots = "", false
}

// relations checks what concerns several containers. found is in the order of
// the file.
func (p *parser) relations(found []*entry) {
	index := make(map[int]int, len(found)) // by container id
	for i, e := range found {
		index[e.CTID] = i
	}
	p.unique(found)
	p.servedRelations(found)
	p.clones(found, index)
	p.cycles(found, index)
	p.lengths(found, index)
}

// failIn adds a mistake at an offset of a container's value; keys are those on
// the way to it.
func (p *parser) failIn(e *entry, at int, keys, format string, args ...any) {
	p.mistakes.add(at, func() note { return note{at, e.path(keys), message(format, args), -1} })
}

// failBoth is failIn for a mistake that concerns another container as well: which
// of the two is wrong, the file does not say.
func (p *parser) failBoth(e *entry, other, at int, keys, format string, args ...any) {
	p.failIn(e, at, keys, format, args...)
	if !p.full() {
		if p.others == nil {
			p.others = map[int][]int{}
		}
		p.others[at] = append(p.others[at], other)
	}
}

// path returns the path of a container's value.
func (e *entry) path(keys string) string { return fmt.Sprintf("lxc_configs.%d.%s", e.CTID, keys) }

// unique checks what no two containers may share.
func (p *parser) unique(found []*entry) {
	addresses := make(map[[16]byte]int, len(found)) // a netip.Addr takes longer to hash
	macs := make(map[string]int, len(found))
	services := make(map[string]int)
	scripts := make(map[string]int)
	for _, e := range found {
		for i := range e.nics {
			p.uniqueInterface(e, &e.nics[i], addresses, macs)
		}
		if s := e.TraefikService; s != nil && s.Name != "" {
			if first, ok := take(services, s.Name, e.CTID); !ok {
				p.failBoth(e, first, e.service, "traefik_service.name",
					"%s is the service of container %d already", s.Name, first)
			}
		}
		switch e.ApplicationScript {
		case GatewayScript, ProxyScript, CAScript:
			if first, ok := take(scripts, e.ApplicationScript, e.CTID); !ok {
				p.failBoth(e, first, e.script, "application_script",
					"%s is the script of container %d already, and there can be only one such",
					e.ApplicationScript, first)
			}
		}
	}
}

// uniqueInterface checks that no interface before it has the same addresses.
func (p *parser) uniqueInterface(e *entry, n *nic, addresses map[[16]byte]int, macs map[string]int) {
	owner := func(id int) string {
		if id == e.CTID {
			return "another interface of this container"
		}
		return fmt.Sprintf("container %d", id)
	}
	for _, a := range []struct {
		key  string
		at   int
		addr netip.Addr
	}{{"ip", n.ip, n.IPv4.Prefix.Addr()}, {"ip6", n.ip6, n.IPv6.Prefix.Addr()}} {
		if !a.addr.IsValid() {
			continue
		}
		if first, ok := take(addresses, a.addr.As16(), e.CTID); !ok {
			p.failBoth(e, first, a.at, n.path+"."+a.key, "%v is the address of %s already", a.addr, owner(first))
		}
	}
	if n.MAC == "" {
		return
	}
	if first, ok := take(macs, n.MAC, e.CTID); !ok {
		key, at := n.path+".hwaddr", n.mac
		if at < 0 {
			key, at = "mac_address", e.mac.at
		}
		p.failBoth(e, first, at, key, "%s is the address of %s already", n.MAC, owner(first))
	}
}

// take makes id the owner of key, unless key has one.
func take[K comparable](owners map[K]int, key K, id int) (owner int, ok bool) {
	if owner, taken := owners[key]; taken {
		return owner, false
	}
	owners[key] = id
	return id, true
}

// clones checks the sources of clones.
func (p *parser) clones(found []*entry, index map[int]int) {
	for _, e := range found {
		for _, edge := range e.edges {
			if edge.index >= 0 {
				continue
			}
			i, ok := index[int(edge.to)]
			if !ok {
				p.failIn(e, int(edge.at), edge.path(), "there is no container %d in the file to clone", edge.to)
				continue
			}
			switch source := found[i]; {
			case source == e:
				// A cycle, and reported as one.
			case !source.snapshot && !source.IsTemplate:
				p.failIn(e, int(edge.at), edge.path(), "container %d has neither template_snapshot_name nor "+
					"is_template, and a clone is made from a snapshot or from a template", edge.to)
			case len(source.MountPoints) > 0:
				p.failIn(e, int(edge.at), edge.path(),
					"container %d has mount_points: pct can neither snapshot nor clone it", edge.to)
			case !source.IsTemplate && e.FullClone != nil && !*e.FullClone:
				p.failIn(e, e.full, "full_clone", "must not be false: container %d is not is_template, "+
					"and a clone of a snapshot is always full", edge.to)
			default:
				p.cloneWarnings(e, source, edge)
			}
		}
	}
}

// cloneWarnings warns of a clone that cannot be made as the file has it. That
// does not matter where it has been made by other means.
func (p *parser) cloneWarnings(e, source *entry, edge edge) {
	warn := func(format string, args ...any) {
		at := int(edge.at)
		p.warnings.add(at, func() note { return note{at, e.path(edge.path()), message(format, args), -1} })
	}
	if e.Unprivileged != nil && source.Unprivileged != nil && *e.Unprivileged != *source.Unprivileged {
		warn("a clone keeps its source's unprivileged, and %d has %t", edge.to, *source.Unprivileged)
	}
	if e.StorageSizeGB < source.StorageSizeGB {
		warn("the disk of %d has %d GiB: a clone cannot have fewer", edge.to, source.StorageSizeGB)
	}
}

// cycles reports the containers that need themselves, at the place that
// closes the cycle.
func (p *parser) cycles(found []*entry, index map[int]int) {
	const done = -1
	var (
		way   []int                        // containers, of which each needs the next
		depth = make([]int32, len(found))  // of each container on the way, from 1; 0 before the search was there
		edges = make([][]edge, len(found)) // those of each container on the way that the search has not followed
	)
	enter := func(i int) {
		way = append(way, i)
		depth[i] = int32(len(way))
		edges[i] = found[i].edges
	}
	for start := range found {
		if depth[start] == 0 {
			enter(start)
		}
		for len(way) > 0 {
			from := way[len(way)-1]
			if len(edges[from]) == 0 {
				depth[from] = done
				way = way[:len(way)-1]
				continue
			}
			edge := edges[from][0]
			edges[from] = edges[from][1:]
			to, ok := index[int(edge.to)]
			switch {
			case !ok || depth[to] == done:
			case depth[to] == 0:
				enter(to)
			default:
				p.failIn(found[from], int(edge.at), edge.path(), "cycle: %s", cycleText(found, way[depth[to]-1:]))
			}
		}
	}
}

// cycleText returns the ids of a cycle's containers, of a long cycle those at
// its ends.
func cycleText(found []*entry, cycle []int) string {
	const ends = 5
	var words []string
	for i := 0; i < len(cycle); i++ {
		if more := len(cycle) - 2*ends; i == ends && more > 1 {
			words = append(words, fmt.Sprintf("(%d more)", more))
			i += more
		}
		words = append(words, strconv.Itoa(found[cycle[i]].CTID))
	}
	return strings.Join(append(words, words[0]), " -> ")
}

// lengths reports what would not fit in an event: a container with the ids of
// what it needs and of what needs it, and the plan of all containers.
func (p *parser) lengths(found []*entry, index map[int]int) {
	digits := func(id int) int { return len(strconv.Itoa(id)) + len(",") }
	lengths := make([]int, len(found))
	plan := p.served.length()
	for i, e := range found {
		lengths[i] += e.length
		plan += digits(e.CTID)
		if s := e.TraefikService; s != nil {
			plan += s.length()
		}
		for _, edge := range e.edges {
			lengths[i] += digits(int(edge.to))
			if to, ok := index[int(edge.to)]; ok {
				lengths[to] += digits(e.CTID)
			}
		}
	}
	tooLong := func(at int, path, format string, args ...any) {
		p.mistakes.add(at, func() note { return note{at, path, message(format, args), -1} })
	}
	for i, e := range found {
		if lengths[i] > MaxContainer {
			tooLong(e.at, fmt.Sprintf("lxc_configs.%d", e.CTID), "is %d bytes long together with the ids of what "+
				"it needs and of what needs it; at most %d fit in an event", lengths[i], MaxContainer)
		}
	}
	if p.planLength = plan; plan > MaxContainer {
		at, path := 0, "services"
		if len(found) > 0 {
			at, path = found[0].at, "lxc_configs"
		} else if len(p.served.others) > 0 {
			at = p.served.others[0].at
		}
		tooLong(at, path, "the ids and services of %d containers take %d bytes, together with what else is served; "+
			"at most %d fit in an event", len(found), plan, MaxContainer)
	}
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

// packaged is [hostdir.Packaged], but in tests.
var packaged = hostdir.Packaged

// packagedDirs refuses to give directories of the host's packages to containers.
func (p *parser) packagedDirs(found []*entry) error {
	var dirs []string
	for _, e := range found {
		for _, o := range e.owned {
			dirs = append(dirs, e.MountPoints[o.index].HostPath)
		}
	}
	packages, err := packaged(dirs)
	if err != nil {
		return err
	}
	for _, e := range found {
		for _, o := range e.owned {
			dir := e.MountPoints[o.index].HostPath
			if name := packages[dir]; name != "" {
				keys := fmt.Sprintf("mount_points.%d.host_path", o.index)
				p.failIn(e, int(o.at), keys, "%v", hostdir.PackagedError(dir, name))
			}
		}
	}
	return nil
}
