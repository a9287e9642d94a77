package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/service"
)

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
	if !t.Container.Network.IP.IsValid() {
		return false, errors.New("the container has no fixed address to which the CA could connect: set network_config.ip")
	}
	block := ca.HostsBlock(t.Container.Network.IP.Addr().String(), p.hosts())
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
