package service

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/scripts"
)

// Target is the container in which a service is to be set up, and what is known
// of the host and of the containers around it.
type Target struct {
	Host      *pve.Host
	CTID      int
	Container *config.Container
	Domain    string
	Services  []config.Service
	Dashboard *config.DashboardRoute // nil for none
	CA        *config.Place          // where the CA's container can be reached
	Proxy     *config.Place          // and the proxy's; nil when the file has none
	Gateway   *config.Place          // and the gateway's

	Trust  guest.Trust // the CA, and its root certificates as mounted in the container
	CADown bool        // the CA could not be asked: the root is the one that the host has kept

	// Hashes of what the CA's container has, "" where nobody has looked: the
	// lines in its /etc/hosts that lead to the proxy, and the unit that pins its
	// neighbours.
	CAHosts, CANeighbours string

	// GatewayReady waits until the gateway has been set up, and reports whether
	// it has; false at the end of a plan in which it has not been seen.
	GatewayReady func(context.Context) bool

	rootFile string       // the CA's root certificates on the host
	scripts  scripts.Dirs // where the feature scripts are
	changes  []string     // that the host's half has made
	stages   event.Stages // that ct.stage has told
	emit     func(event.Body)
}

// Changed notes what the host's half has changed.
func (t *Target) Changed(format string, args ...any) {
	if change := fmt.Sprintf(format, args...); !slices.Contains(t.changes, change) {
		t.changes = append(t.changes, change)
	}
}

// Neighbours returns the neighbours of the container: see [Target.NeighboursOf].
func (t *Target) Neighbours() []guest.Neighbour { return t.NeighboursOf(t.CTID) }

// NeighboursOf returns those of the CA, the proxy and the gateway, without the
// container itself, of which the file has the MAC address. Of several addresses
// those count that are in a network of the container.
func (t *Target) NeighboursOf(ctid int) []guest.Neighbour {
	var own []config.Network
	device := t.Container.Reached().Name
	places := t.plan().Places()
	for _, p := range places {
		if p.CTID == ctid {
			own, device = p.Networks, p.Interface
		}
	}
	var all []guest.Neighbour
	for _, p := range places {
		switch {
		case p.CTID == ctid:
		case len(own) == 0 && p.MAC != "":
			all = append(all, guest.Neighbour{IP: p.IP, MAC: p.MAC})
		case len(own) > 0:
			all = append(all, neighboursIn(own, device, p.Networks)...)
		}
	}
	return all
}

// neighboursIn returns those of a neighbour's addresses that are in one of the
// networks, each with its interface, unless that is device.
func neighboursIn(own []config.Network, device string, neighbour []config.Network) []guest.Neighbour {
	var all []guest.Neighbour
	for _, n := range neighbour {
		ip := n.Prefix().Addr()
		i := slices.IndexFunc(own, func(o config.Network) bool { return o.Prefix().Contains(ip) })
		if i < 0 || n.MAC == "" {
			continue
		}
		at := guest.Neighbour{IP: ip.String(), MAC: n.MAC, Device: own[i].Interface}
		if at.Device == device {
			at.Device = ""
		}
		all = append(all, at)
	}
	return all
}

func (t *Target) plan() *config.Plan {
	return &config.Plan{CA: t.CA, Proxy: t.Proxy, Gateway: t.Gateway}
}

// AddressOf returns the address of a place by which the container reaches it: one
// in a network of the container, else one of a family that the container has.
func (t *Target) AddressOf(p *config.Place) string {
	var own []netip.Prefix
	for _, i := range t.Container.Interfaces {
		for _, a := range []struct {
			config.Addressing
			none netip.Addr // of its family
		}{{i.IPv4, netip.IPv4Unspecified()}, {i.IPv6, netip.IPv6Unspecified()}} {
			switch {
			case a.Prefix.IsValid():
				own = append(own, a.Prefix)
			case a.Method != "": // in an unknown network
				own = append(own, netip.PrefixFrom(a.none, a.none.BitLen()))
			}
		}
	}
	var addresses []netip.Addr
	for _, s := range p.Addresses() {
		if address, err := netip.ParseAddr(s); err == nil {
			addresses = append(addresses, address)
		}
	}
	if address := config.Closest(addresses, own); address.IsValid() {
		return address.String()
	}
	return p.IP
}

// Logf writes a message about the container to stderr.
func (t *Target) Logf(format string, args ...any) {
	cmdline.Logf("%d %s: %s", t.CTID, t.Container.Name, fmt.Sprintf(format, args...))
}

// Warnf warns people of something about the container, by a message and by an event
// that say the same.
func (t *Target) Warnf(format string, args ...any) {
	warn(t.emit, t.Container, fmt.Sprintf(format, args...))
}

func warn(emit func(event.Body), c *config.Container, text string) {
	cmdline.Logf("%d %s: %s", c.CTID, c.Name, text)
	emit(event.Warning{CTID: c.CTID, Program: cmdline.Name(), Text: text})
}

// Begins tells whoever follows the work that a stage begins that takes time, once.
func (t *Target) Begins(stage string) {
	if t.stages.Begins(stage) {
		t.emit(event.ContainerStage{CTID: t.CTID, Program: cmdline.Name(), Stage: stage})
	}
}

// checkTrust checks what the events say of the CA against the plan, against what
// the host has pinned and against the file of root certificates, and notes where
// the container sees that file. Where it does not, the certificates go with the
// request.
func (t *Target) checkTrust() error {
	if err := t.checkCA(); err != nil {
		return err
	}
	if err := t.checkPin(); err != nil {
		return err
	}
	roots, err := cert.ReadPinned(t.rootFile, t.Trust.Pins()...)
	if err != nil {
		return err
	}
	at, writable := mounted(t.Container, t.rootFile)
	if writable {
		t.Warnf("the mount point %s shows %s to the container for writing: set its read_only to true; "+
			"until then the root certificate comes with the request", at, t.rootFile)
	}
	t.Trust.Root = at
	if at == "" || writable || t.Trust.Check() != nil {
		t.Trust.Root, t.Trust.Carried = guest.CarriedRoot, string(cert.Encode(roots...))
	}
	return nil
}

// checkCA returns an error unless the CA's URL leads to the CA of the plan,
// and the fingerprints are such. Where the container reaches the CA by another of
// its addresses, the URL gets that one.
func (t *Target) checkCA() error {
	if err := t.Trust.Check(); err != nil {
		return err
	}
	at, err := netip.ParseAddrPort(strings.TrimPrefix(t.Trust.CAURL, "https://"))
	if err != nil || at.Addr().String() != t.CA.IP {
		return fmt.Errorf("CA URL %q: not that of the CA of the plan, container %d at %s",
			t.Trust.CAURL, t.CA.CTID, t.CA.IP)
	}
	if address := t.AddressOf(t.CA); address != t.CA.IP {
		t.Trust.CAURL = "https://" + net.JoinHostPort(address, strconv.Itoa(int(at.Port())))
	}
	return nil
}

// checkPin returns an error unless the fingerprints are those that the host
// has pinned, if it has: the stream may come from a file.
func (t *Target) checkPin() error {
	pin, err := cahost.ReadPin(t.Host)
	if err != nil || pin == nil {
		return err
	}
	if have, want := t.Trust.Pins(), pin.Pins(); !slices.Equal(have, want) {
		return fmt.Errorf("the stream has the root %s, and this host has pinned %s: "+
			"run phx-ca-export and phx-fingerprint again, as phoenix does",
			strings.Join(have, " and "), strings.Join(want, " and "))
	}
	return nil
}

// mounted returns the place in a container where a file of the host is seen
// through one of the container's mount points, "" where it is not, and reports
// whether the container could change it through one of them, which is then at.
func mounted(c *config.Container, path string) (at string, writable bool) {
	for _, m := range c.MountPoints {
		rest, err := filepath.Rel(m.HostPath, path)
		if err != nil || !filepath.IsLocal(rest) {
			continue
		}
		if !m.ReadOnly {
			return m.ContainerPath, true
		}
		if at == "" {
			at = filepath.Join(m.ContainerPath, rest)
		}
	}
	return at, false
}
