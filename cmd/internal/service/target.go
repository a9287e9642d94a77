package service

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/cahost"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
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

	rootFile string   // the CA's root certificates on the host
	scripts  string   // directory of the feature scripts
	changes  []string // that the host's half has made
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
// container itself, of which the file has the MAC address.
func (t *Target) NeighboursOf(ctid int) []guest.Neighbour {
	var all []guest.Neighbour
	for _, p := range []*config.Place{t.CA, t.Proxy, t.Gateway} {
		if p != nil && p.CTID != ctid && p.MAC != "" {
			all = append(all, guest.Neighbour{IP: p.IP, MAC: p.MAC})
		}
	}
	return all
}

// Logf writes a message about the container to stderr.
func (t *Target) Logf(format string, args ...any) {
	cmdline.Logf("%d %s: %s", t.CTID, t.Container.Name, fmt.Sprintf(format, args...))
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
		t.Logf("the mount point %s shows %s to the container for writing: set its read_only to true; "+
			"until then the root certificate comes with the request", at, t.rootFile)
	}
	t.Trust.Root = at
	if at == "" || writable || t.Trust.Check() != nil {
		t.Trust.Root, t.Trust.Carried = guest.CarriedRoot, string(cert.Encode(roots...))
	}
	return nil
}

// checkCA returns an error unless the CA's URL leads to the CA of the plan,
// and the fingerprints are such.
func (t *Target) checkCA() error {
	if err := t.Trust.Check(); err != nil {
		return err
	}
	u, err := url.Parse(t.Trust.CAURL)
	if err != nil || u.Hostname() != t.CA.IP {
		return fmt.Errorf("CA URL %q: not that of the CA of the plan, container %d at %s",
			t.Trust.CAURL, t.CA.CTID, t.CA.IP)
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
