package config

import (
	"fmt"
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
	PlaceUnknown   bool // whether it is the gateway, the proxy or the CA, or its network if it is
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
			switch before(m.Path, ".") {
			case "services", "dashboard":
				if f.ServedWrong == "" {
					f.ServedWrong = fmt.Sprintf("%s:%v", f.Path, m)
				}
			}
			continue
		}
		id, err := ParseCTID(before(path, "."))
		if err != nil {
			continue
		}
		_, path, _ = strings.Cut(path, ".")
		at := p.mistakes.first[i].at
		w := f.wrong(id, m)
		w.unknown(path, named[at] || p.others[at] != nil)
		for _, other := range p.others[at] {
			f.wrong(other, m)
		}
	}
	for _, w := range f.Wrong {
		w.addressUnknown()
	}
	if f.ServedWrong != "" {
		f.Others, f.Dashboard = nil, nil
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

// unknown notes that a value of the container has a mistake; path is that below
// its object, "" for all of it. read says that the value could be read: it is
// wrong because of another container.
func (w *Wrong) unknown(path string, read bool) {
	key := before(path, ".")
	switch {
	case path == "":
		w.NeedsUnknown, w.ServiceUnknown, w.PlaceUnknown = true, true, true
	case key == "traefik_service":
		w.ServiceUnknown = true
	case key == "application_script":
		w.PlaceUnknown = true
	case read:
	case key == "clone_from_ctid", key == "dependencies":
		w.NeedsUnknown = true
	case strings.Contains(key, "network_config"), key == "mac_address":
		w.PlaceUnknown = w.PlaceUnknown || w.HasPlace()
		last := path[strings.LastIndexByte(path, '.')+1:]
		if last == "ip" || last == "ip6" || last == key && key != "mac_address" || isDecimal(last) {
			w.Interfaces = nil // which address others would reach is not known any more
		}
	}
}

// addressUnknown notes what a missing address of the container leaves unknown.
// One that the file leaves to others, such as DHCP, is not missing.
func (w *Wrong) addressUnknown() {
	if w.ServiceUnknown {
		w.TraefikService = nil
	}
	if len(w.Interfaces) > 0 {
		return
	}
	w.ServiceUnknown = w.ServiceUnknown || w.TraefikService != nil
	w.PlaceUnknown = w.PlaceUnknown || w.HasPlace()
}

// before returns what s has before the first separator.
func before(s, separator string) string {
	s, _, _ = strings.Cut(s, separator)
	return s
}
