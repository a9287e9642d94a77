package config

import (
	"fmt"
	"strconv"
	"strings"
)

// relations checks what concerns several containers. found is in the order of
// the file.
func (p *parser) relations(found []*entry) {
	byID := make(map[int]*entry, len(found))
	for _, e := range found {
		byID[e.CTID] = e
	}
	fail := func(e *entry, at int, path, format string, args ...any) {
		p.mistakes.add(at, func() note {
			return note{at, fmt.Sprintf("lxc_configs.%d.%s", e.CTID, path), message(format, args), -1}
		})
	}

	addresses := make(map[[4]byte]int, len(found)) // a netip.Addr takes longer to hash
	macs := make(map[string]int, len(found))
	services := make(map[string]int)
	scripts := make(map[string]int)
	for _, e := range found {
		if ip := e.Network.IP.Addr(); ip.IsValid() {
			if first, ok := take(addresses, ip.As4(), e.CTID); !ok {
				fail(e, e.address, "network_config.ip", "%v is the address of container %d already", ip, first)
			}
		}
		if e.MAC != "" {
			if first, ok := take(macs, e.MAC, e.CTID); !ok {
				fail(e, e.mac, "mac_address", "%s is the address of container %d already", e.MAC, first)
			}
		}
		if s := e.TraefikService; s != nil && s.Name != "" {
			if first, ok := take(services, s.Name, e.CTID); !ok {
				fail(e, e.service, "traefik_service.name", "%s is the service of container %d already", s.Name, first)
			}
		}
		switch e.ApplicationScript {
		case GatewayScript, ProxyScript, CAScript:
			if first, ok := take(scripts, e.ApplicationScript, e.CTID); !ok {
				fail(e, e.script, "application_script", "%s is the script of container %d already, and there can be only one such", e.ApplicationScript, first)
			}
		}
	}

	for _, e := range found {
		for _, edge := range e.edges {
			if edge.index >= 0 {
				continue
			}
			at := int(edge.at)
			switch source := byID[int(edge.to)]; {
			case source == nil:
				fail(e, at, edge.path(), "there is no container %d in the file to clone", edge.to)
			case source == e:
				// A cycle, and reported as one.
			case !source.snapshot:
				fail(e, at, edge.path(), "container %d has no template_snapshot_name, and a clone is made from a snapshot", edge.to)
			case len(source.MountPoints) > 0:
				fail(e, at, edge.path(), "container %d has mount_points: pct can neither snapshot nor clone it", edge.to)
			default:
				p.cloneWarnings(e, source, edge)
			}
		}
	}

	p.cycles(found, byID, fail)
	p.lengths(found, byID)
}

// lengths reports what would not fit in an event: a container with the ids of
// what it needs and of what needs it, and the plan of all containers.
func (p *parser) lengths(found []*entry, byID map[int]*entry) {
	digits := func(id int) int { return len(strconv.Itoa(id)) + len(",") }
	plan := 0
	for _, e := range found {
		plan += digits(e.CTID)
		if s := e.TraefikService; s != nil {
			plan += 2*len(s.Name) + maxHostName + len(`{"name":"","host":".","url":"https://255.255.255.255:65535","ctid":999999999},`)
		}
		for _, edge := range e.edges {
			e.length += digits(int(edge.to))
			if to := byID[int(edge.to)]; to != nil {
				to.length += digits(e.CTID)
			}
		}
	}
	for _, e := range found {
		if e.length > MaxContainer {
			p.mistakes.add(e.at, func() note {
				return note{e.at, fmt.Sprintf("lxc_configs.%d", e.CTID), message("is %d bytes long together with the ids of what it needs and of what needs it; at most %d fit in an event", []any{e.length, MaxContainer}), -1}
			})
		}
	}
	if plan > MaxContainer {
		p.mistakes.add(found[0].at, func() note {
			return note{found[0].at, "lxc_configs", message("the ids and services of %d containers take %d bytes; at most %d fit in an event", []any{len(found), plan, MaxContainer}), -1}
		})
	}
}

// take remembers id as the owner of key, unless key has one.
func take[K comparable](owners map[K]int, key K, id int) (owner int, ok bool) {
	if owner, taken := owners[key]; taken {
		return owner, false
	}
	owners[key] = id
	return id, true
}

// cloneWarnings tells of clones that cannot be made as the file says, which
// does not matter where they have been made by other means.
func (p *parser) cloneWarnings(e, source *entry, edge edge) {
	warn := func(format string, args ...any) {
		p.warnings.add(int(edge.at), func() note {
			return note{int(edge.at), fmt.Sprintf("lxc_configs.%d.%s", e.CTID, edge.path()), message(format, args), -1}
		})
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
func (p *parser) cycles(found []*entry, byID map[int]*entry, fail func(*entry, int, string, string, ...any)) {
	type step struct {
		e    *entry
		next int // of e.edges
	}
	for _, e := range found {
		if e.visited {
			continue
		}
		way := []step{{e: e}}
		e.depth = 1
		for len(way) > 0 {
			last := &way[len(way)-1]
			if last.next == len(last.e.edges) {
				last.e.visited, last.e.depth = true, 0
				way = way[:len(way)-1]
				continue
			}
			edge := last.e.edges[last.next]
			last.next++
			to := byID[int(edge.to)]
			if to == nil || to.visited {
				continue
			}
			if to.depth > 0 {
				cycle := way[to.depth-1:]
				var ids []string
				add := func(way []step) {
					for _, s := range way {
						ids = append(ids, strconv.Itoa(s.e.CTID))
					}
				}
				const ends = 5 // so many containers of a long cycle are shown at each
				if n := len(cycle); n <= 2*ends+1 {
					add(cycle)
				} else {
					add(cycle[:ends])
					ids = append(ids, fmt.Sprintf("(%d more)", n-2*ends))
					add(cycle[n-ends:])
				}
				ids = append(ids, strconv.Itoa(to.CTID))
				fail(last.e, int(edge.at), edge.path(), "cycle: %s", strings.Join(ids, " -> "))
				continue
			}
			way = append(way, step{e: to})
			to.depth = len(way)
		}
	}
}
