package config

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// The map that an unprivileged container has of its own: its ids from 0 are the
// host's from standardHost.
const (
	standardHost = 100000
	standardSize = 65536
)

// maxIDMapExtents is how many parts Linux takes for a map.
const maxIDMapExtents = 340

// An idRange are ids of a container, and the host's ids that they are.
type idRange struct {
	inside, host, size int
	at                 int // the offset of the object that asks for it; -1 for a part of the standard map
	index              int // of that object in its list
}

// idMapsForm is the form of id_maps: all strings, or all objects.
var idMapsForm = either("list of strings `u\\|g INSIDE OUTSIDE COUNT`, or of objects, below",
	listOf("", idMap.form), listOf("", objectOf(idMapKeys, true, nil)))

// idMaps reads maps of ids: as LXC takes them, or ids that are other ones of the
// host than in the standard map.
func idMaps(p *parser, e *entry, v gjson.Result) {
	e.IDMaps = []string{}
	var cut []MappedIDs
	var ranges []idRange
	forms := [2]int{-1, -1} // the offsets of the first string and the first object
	index := -1
	p.list(v, func(v gjson.Result) {
		index++
		if !v.IsObject() {
			if s := p.idMapLine(v); s != "" {
				e.IDMaps = append(e.IDMaps, s)
				forms[0] = cmp.Or(max(forms[0], 0), v.Index)
			}
			return
		}
		forms[1] = cmp.Or(max(forms[1], 0), v.Index)
		if m, ok := p.mappedIDs(v); ok && !p.full() {
			cut = append(cut, m)
			ranges = append(ranges, idRange{m.ContainerID, m.HostID, m.Size, v.Index, index})
		}
	})
	if forms[0] >= 0 && forms[1] >= 0 {
		p.fail(v, "has both forms: either strings, which are the whole map, or objects, which are cut out of the "+
			"standard one")
		return
	}
	if len(cut) == 0 {
		return
	}
	e.idMaps = v.Index
	e.MappedIDs = cut
	for _, kind := range []struct{ name, line string }{{"uid", "u"}, {"gid", "g"}} {
		var own []idRange
		for i, m := range cut {
			if m.Type == kind.name || m.Type == "both" {
				own = append(own, ranges[i])
			}
		}
		whole, ok := p.wholeMap(own, kind.name)
		if !ok {
			continue
		}
		if len(whole) > maxIDMapExtents {
			p.fail(v, "is a map of %s in %d parts, and Linux takes %d", kind.name, len(whole), maxIDMapExtents)
		}
		for _, r := range whole {
			e.IDMaps = append(e.IDMaps, fmt.Sprintf("%s %d %d %d", kind.line, r.inside, r.host, r.size))
		}
	}
}

// idMapLine reads a map as LXC takes it.
func (p *parser) idMapLine(v gjson.Result) string {
	s := p.formatted(v, idMap)
	if s == "" {
		return ""
	}
	fields := strings.Fields(s)
	s = strings.Join(fields, " ")
	count, err := strconv.ParseUint(fields[3], 10, 32)
	for _, field := range fields[1:3] {
		first, err2 := strconv.ParseUint(field, 10, 32)
		if err != nil || err2 != nil || first+count > math.MaxUint32 {
			p.fail(v, "%q goes beyond the last id, %d", s, uint32(math.MaxUint32-1))
			return ""
		}
	}
	return s
}

// A mapObject is an object of id_maps, with the offset of its size.
type mapObject struct {
	MappedIDs
	size int
}

var idMapKeys = []key[mapObject]{
	{name: "type", need: "uid, gid or both", value: text(idMapType, func(m *mapObject, s string) { m.Type = s }),
		effect: "users, groups, or both"},
	{name: "host_id", need: "the first id on the host",
		value:  whole(0, math.MaxInt32, func(m *mapObject, n int) { m.HostID = n }),
		effect: "the first id on the host"},
	{name: "container_id", need: "the first id in the container",
		value:  whole(0, standardSize-1, func(m *mapObject, n int) { m.ContainerID = n }),
		effect: "the first id in the container"},
	{name: "size", value: special(wholeForm(1, standardSize), func(p *parser, m *mapObject, v gjson.Result) {
		m.Size, m.size = p.integer(v, 1, standardSize), v.Index
	}), without: 1, effect: "how many; 1 without"},
}

// mappedIDs reads an object of id_maps.
func (p *parser) mappedIDs(v gjson.Result) (MappedIDs, bool) {
	before := p.mistakes.count
	m := mapObject{MappedIDs{Size: 1}, v.Index}
	readObject(p, v, &m, idMapKeys, (*parser).refuse)
	if p.mistakes.count == before && m.ContainerID+m.Size > standardSize {
		p.failUnder(m.size, "size", "%d ids from %d on go beyond the container's last one, %d",
			m.Size, m.ContainerID, standardSize-1)
	}
	return m.MappedIDs, p.mistakes.count == before
}

// wholeMap returns the standard map with ranges in place of what it has for
// their ids. Ids that are mapped twice, in the container or on the host, are a
// mistake.
func (p *parser) wholeMap(ranges []idRange, kind string) (whole []idRange, ok bool) {
	overlaps := func(all []idRange, first func(idRange) int, where string) bool {
		slices.SortStableFunc(all, func(a, b idRange) int { return cmp.Compare(first(a), first(b)) })
		for i := 1; i < len(all); i++ {
			a, b := all[i-1], all[i]
			if first(a)+a.size <= first(b) {
				continue
			}
			if b.at < a.at { // the mistake is at the later one
				a, b = b, a
			}
			with := fmt.Sprintf("id_maps.%d", a.index)
			if a.at < 0 {
				with = fmt.Sprintf("the standard map, in which they are those from %d on in the container",
					a.inside+max(0, b.host-a.host))
			}
			p.failUnder(b.at, strconv.Itoa(b.index), "%s %d of the %s has another place in %s",
				kind, max(first(a), first(b)), where, with)
			return true
		}
		return false
	}
	inside := slices.Clone(ranges)
	if overlaps(inside, func(r idRange) int { return r.inside }, "container") {
		return nil, false
	}
	next := 0
	standard := func(end int) {
		if end > next {
			whole = append(whole, idRange{next, standardHost + next, end - next, -1, -1})
		}
	}
	for _, r := range inside { // in their order
		standard(r.inside)
		whole = append(whole, r)
		next = r.inside + r.size
	}
	standard(standardSize)
	if overlaps(slices.Clone(whole), func(r idRange) int { return r.host }, "host") {
		return nil, false
	}
	return whole, true
}
