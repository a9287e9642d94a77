// What of phx-traefik runs on the hypervisor: the filter, and what the CA's container
// needs to find the proxy.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/remote"
	"thinkheads.ai/phx/cmd/internal/service"
)

// filter is the host's half.
func filter(c *cli.Context) error {
	return service.Run(c, service.Program{
		Name:   "traefik",
		Script: config.ProxyScript,
		SetUp:  setUp,
		Shows:  shows,
		Ready:  func(r event.ServiceReady) event.Body { return event.TraefikReady(r) },
		Failed: func(f event.ServiceFailed) event.Body { return event.TraefikFailed(f) },
		Status: func(s event.ServiceStatus) event.Body { return event.TraefikStatus(s) },
	})
}

// shows are the names for which the proxy has to show a certificate.
func shows(p *config.Plan) []string { return p.Hosts() }

// setUp has the container of a target set up as the proxy, and the CA's container
// find it.
func setUp(ctx context.Context, t *service.Target) (*remote.Answer, error) {
	p, err := requestFor(t)
	if err != nil {
		return nil, err
	}
	if unverified := p.unverified(); unverified != "" {
		t.Warnf("as the configuration says (insecure), the certificates of these are not verified: %s", unverified)
	}
	// All else is done also when the CA's container cannot be reached.
	hostsErr := updateHosts(ctx, t, p)
	answer, err := t.Call(ctx, p, p.hosts(), func(need string) (any, error) {
		if need == "gateway" {
			return t.GatewayReady(ctx), nil
		}
		return nil, fmt.Errorf("the container's half asks for %q, which this phx-traefik does not know", need)
	})
	if err == nil && answer.Error == "" && hostsErr != nil {
		return &remote.Answer{Stage: "hosts"}, hostsErr
	}
	return answer, err
}

// requestFor returns the proxy that the configuration asks for.
func requestFor(t *service.Target) (proxy, error) {
	p := proxy{
		Trust: t.Trust, Services: routesOf(t.Services, t.CA.CTID), Dashboard: t.Dashboard,
		Interface: t.Container.Reached().Name, Neighbours: t.Neighbours(),
	}
	if t.Gateway != nil {
		p.Gateway = t.AddressOf(t.Gateway)
		p.GatewayAlso = slices.DeleteFunc(t.Gateway.Addresses(), func(a string) bool { return a == p.Gateway })
	}
	return p, p.check()
}

// unverified names the services whose certificates are not verified, of many the
// first.
func (p proxy) unverified() string {
	const shown = 16
	var names []string
	for _, s := range p.Services {
		if s.Insecure {
			names = append(names, fmt.Sprintf("%s (%s)", s.Host, s.URL))
		}
	}
	if n := len(names) - shown; n > 0 {
		names = append(names[:shown], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(names, ", ")
}

// reachable returns the address of the proxy to which the CA connects; not valid when
// the proxy has none of a family that the CA has.
func reachable(proxy *config.Container, ca *config.Place) netip.Addr {
	var own []netip.Prefix
	for _, n := range ca.Networks {
		own = append(own, n.Prefix())
	}
	if ip, err := netip.ParseAddr(ca.IP); err == nil && len(own) == 0 {
		own = append(own, netip.PrefixFrom(ip, ip.BitLen()))
	}
	return config.Closest(proxy.Addresses(), own)
}

// updateHosts makes the CA's container find the proxy, unless the CA is down.
func updateHosts(ctx context.Context, t *service.Target, p proxy) error {
	if t.CADown {
		return nil
	}
	changed, err := writeHosts(ctx, t, p)
	if changed {
		t.Changed("hosts of container %d", t.CA.CTID)
	}
	return err
}

// hostsScript replaces the block between two lines of /etc/hosts, or appends
// it, and keeps all else; it then writes and starts a unit. Its arguments:
// first line and last line of the block, the unit's name or "", and the unit's
// last line. The block, with its first and last line, comes through stdin, and
// the unit after it.
const hostsScript = `set -eu
umask 022
systemctl() { timeout -k 10 180 systemctl "$@"; }
hosts=$(mktemp /etc/.hosts.XXXXXX)
unit=$(mktemp /etc/systemd/system/.phx.XXXXXX)
trap 'rm -f "$hosts" "$unit"' EXIT
if grep -qxF -- "$1" /etc/hosts && ! grep -qxF -- "$2" /etc/hosts; then
	echo "/etc/hosts has the line '$1' without '$2': remove it" >&2
	exit 1
fi
# With an end to the last line, which it may lack.
sed -e '$a\' /etc/hosts | sed "/^$1\$/,/^$2\$/d" >"$hosts"
sed -u "/^$2\$/q" >>"$hosts" # and leave the rest
tail -n 1 "$hosts" | grep -qxF -- "$2"
if [ -n "$3" ]; then
	cat >"$unit"
	tail -n 1 "$unit" | grep -qxF -- "$4"
fi
chmod 0644 "$hosts" "$unit"
mv -f "$hosts" /etc/hosts
[ -n "$3" ] || exit 0
mv -f "$unit" "/etc/systemd/system/$3"
systemctl daemon-reload
systemctl enable --quiet "$3"
systemctl restart "$3"`

// writeHosts makes the CA's container find the proxy under the names for which
// it signs, and nobody else at the addresses of proxy and gateway, unless
// it has been seen to do so. It reports whether that has changed anything.
func writeHosts(ctx context.Context, t *service.Target, p proxy) (changed bool, err error) {
	address := reachable(t.Container, t.CA)
	if !address.IsValid() {
		return false, errors.New("the container has no fixed address to which the CA could connect: " +
			"give it one, of a family that the CA has, in network_config")
	}
	block := ca.HostsBlock(address.String(), p.hosts())
	name, unit, err := neighbourUnit(t.CA.Interface, t.NeighboursOf(t.CA.CTID))
	if err != nil {
		return false, err
	}
	if t.CAHosts == pve.Hash(block) && (name == "" || t.CANeighbours == pve.Hash(unit)) {
		return false, nil
	}
	last := bytes.TrimSpace(unit[bytes.LastIndexByte(bytes.TrimSpace(unit), '\n')+1:])
	cmd := t.Host.Exec(t.CA.CTID, "/bin/sh", "-c", hostsScript, "sh", ca.HostsBegin, ca.HostsEnd, name, string(last))
	cmd.Label = fmt.Sprintf("pct exec %d (write /etc/hosts)", t.CA.CTID)
	cmd.Stdin = bytes.NewReader(slices.Concat(block, unit))
	t.Begins("hosts")
	if _, err := t.Host.Run(ctx, cmd); err != nil {
		return false, err
	}
	return true, nil
}

// neighbourUnit returns the name and the text of the unit that pins the CA's
// neighbours, both empty when there is nothing to pin.
func neighbourUnit(device string, neighbours []guest.Neighbour) (name string, text []byte, err error) {
	if device == "" || len(neighbours) == 0 {
		return "", nil, nil
	}
	text, err = guest.NeighbourUnitText(device, neighbours)
	return guest.NeighbourUnit, text, err
}
