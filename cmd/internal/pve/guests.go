package pve

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Guest is a container or a virtual machine of the cluster, as its configuration
// file has it now and at its next start.
type Guest struct {
	ID        int
	VM        bool         // a virtual machine
	Name      string       // "" for none
	Node      string       // of the cluster
	Addresses []netip.Addr // that are fixed
	MACs      []string     // in upper case
}

// String names a guest in messages.
func (g Guest) String() string {
	kind := "container"
	if g.VM {
		kind = "virtual machine"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %d %s", kind, g.ID, g.Name))
}

// Guests returns the guests of the cluster but for templates, which never run,
// by their ids.
func (h *Host) Guests() ([]Guest, error) {
	found := map[int]Guest{}
	for _, pattern := range []string{"nodes/*/lxc/*.conf", "nodes/*/qemu-server/*.conf", "lxc/*.conf",
		"qemu-server/*.conf"} {
		paths, err := filepath.Glob(filepath.Join(h.PVERoot, pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			id, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".conf"))
			if _, known := found[id]; known || err != nil { // by that of its node
				continue
			}
			text, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) { // it has just been moved or destroyed
				continue
			}
			if err != nil {
				return nil, err
			}
			conf := ParseConf(text)
			if conf.IsTemplate() {
				continue
			}
			dir := filepath.Dir(path)
			g := Guest{ID: id, VM: filepath.Base(dir) == "qemu-server", Node: h.Node()}
			if strings.HasPrefix(pattern, "nodes/") {
				g.Node = filepath.Base(filepath.Dir(dir))
			}
			g.read(conf.Values)
			g.read(conf.Next())
			found[id] = g
		}
	}
	all := make([]Guest, 0, len(found))
	for _, g := range found {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b Guest) int { return a.ID - b.ID })
	return all, nil
}

var (
	macRE = regexp.MustCompile(`=([0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5})(?:,|$)`)
	// cloudInitOption matches what cloud-init gives an interface of a virtual machine.
	cloudInitOption = regexp.MustCompile(`^ipconfig\d+$`)
)

// read adds what values have of names and interfaces.
func (g *Guest) read(values map[string]string) {
	g.Name = values["hostname"]
	if g.VM {
		g.Name = values["name"]
	}
	for _, option := range numbered(values, netOption) {
		for _, m := range macRE.FindAllStringSubmatch(values[option], -1) {
			if mac := strings.ToUpper(m[1]); !slices.Contains(g.MACs, mac) {
				g.MACs = append(g.MACs, mac)
			}
		}
	}
	for _, option := range append(numbered(values, netOption), numbered(values, cloudInitOption)...) {
		ps := ParseProperties(values[option])
		for _, key := range []string{"ip", "ip6"} {
			prefix, err := netip.ParsePrefix(ps.Get(key))
			if address := prefix.Addr(); err == nil && !slices.Contains(g.Addresses, address) {
				g.Addresses = append(g.Addresses, address)
			}
		}
	}
}
