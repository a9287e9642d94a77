package config

import (
	"maps"
	"slices"
	"strings"
)

// Wrong is a container with mistakes. What could not be read of it is as if the
// file did not say it.
type Wrong struct {
	*Container         // with its CTID at least
	Mistake    Mistake // the first; of two containers that share what only one may have, both have the same

	// What others would have to know of the container, and could not be read.
	NeedsUnknown   bool // its clone source or its dependencies
	ServiceUnknown bool // its traefik_service, or where that is
	PlaceUnknown   bool // whether it is the gateway, the proxy or the CA, or its address if it is
}

// separate moves the containers that the mistakes are about from the file's
// Containers to Wrong. It reports false where a mistake concerns all of them.
func (p *parser) separate(f *File, found []*entry, mistakes []Mistake) bool {
	if p.full() {
		return false
	}
	f.Wrong = map[int]*Wrong{}
	named := map[int]bool{} // offsets of ids that could be read
	for _, e := range found {
		for _, edge := range e.edges {
			named[int(edge.at)] = true
		}
	}
	for i, m := range mistakes {
		path, inContainers := strings.CutPrefix(m.Path, "lxc_configs.")
		if m.Path == "" || m.Path == "lxc_configs" {
			return false
		}
		if !inContainers {
			continue
		}
		key, path, _ := strings.Cut(path, ".")
		path, _, _ = strings.Cut(path, ".")
		at := p.mistakes.first[i].at
		if id, err := ParseCTID(key); err == nil {
			w := f.wrong(id, m)
			w.NeedsUnknown = w.NeedsUnknown || !named[at] && (path == "clone_from_ctid" || path == "dependencies")
			w.unknown(path)
			for _, other := range p.others[at] {
				f.wrong(other, m)
			}
		}
	}
	for _, w := range f.Wrong {
		w.addressUnknown()
	}
	return true
}

// wrong returns the container, which has the mistake m, among the wrong ones.
func (f *File) wrong(id int, m Mistake) *Wrong {
	w := f.Wrong[id]
	if w == nil {
		w = &Wrong{Container: f.Containers[id], Mistake: m}
		if w.Container == nil {
			w.Container = &Container{CTID: id}
		}
		f.Wrong[id] = w
		delete(f.Containers, id)
	}
	return w
}

// unknown notes that a key of the container has a mistake, all of it where key
// is "".
func (w *Wrong) unknown(key string) {
	switch key {
	case "":
		w.NeedsUnknown, w.ServiceUnknown, w.PlaceUnknown = true, true, true
	case "traefik_service":
		w.ServiceUnknown = true
	case "application_script":
		w.PlaceUnknown = true
	}
}

// addressUnknown notes what the missing address of the container leaves unknown.
// One that the file leaves to DHCP is not missing.
func (w *Wrong) addressUnknown() {
	if w.ServiceUnknown {
		w.TraefikService = nil
	}
	given := func(i Interface) bool { return i.IPv4.Method != "" || i.IPv6.Method != "" }
	if w.Address().IsValid() || slices.ContainsFunc(w.Interfaces, given) {
		return
	}
	w.ServiceUnknown = w.ServiceUnknown || w.TraefikService != nil
	switch w.ApplicationScript {
	case GatewayScript, ProxyScript, CAScript:
		w.PlaceUnknown = true
	}
}

// IDs returns the ids of all containers, of those with mistakes too, in ascending
// order.
func (f *File) IDs() []int {
	ids := slices.AppendSeq(make([]int, 0, len(f.Containers)+len(f.Wrong)), maps.Keys(f.Containers))
	ids = slices.AppendSeq(ids, maps.Keys(f.Wrong))
	slices.Sort(ids)
	return ids
}

// Container returns a container, a wrong one as far as it could be read, or nil
// when the file has none with this id.
func (f *File) Container(id int) *Container {
	if w := f.Wrong[id]; w != nil {
		return w.Container
	}
	return f.Containers[id]
}
