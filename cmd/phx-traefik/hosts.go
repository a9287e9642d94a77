package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/join"
	"thinkheads.ai/phx/cmd/internal/pct"
)

// hostsRecord is the name under which the CA container's record keeps the
// hash of the block in its /etc/hosts.
const hostsRecord = "etc/hosts"

const (
	blockBegin = "# --- BEGIN PHX ---"
	blockEnd   = "# --- END PHX ---"
)

// writeBlock replaces the block between two lines of /etc/hosts, or appends
// it, and keeps all else. Its arguments: first line, last line; the new block
// with these lines comes through stdin.
const writeBlock = `set -eu
umask 022
new=$(mktemp /etc/.hosts.XXXXXX)
trap 'rm -f "$new"' EXIT
if grep -qxF -- "$1" /etc/hosts && ! grep -qxF -- "$2" /etc/hosts; then
	echo "/etc/hosts has the line '$1' without '$2': remove it" >&2
	exit 1
fi
# With an end to the last line, which it may lack.
sed -e '$a\' /etc/hosts | sed "/^$1\$/,/^$2\$/d" >"$new"
cat >>"$new"
tail -n 1 "$new" | grep -qxF -- "$2"
chmod 0644 "$new"
mv -f "$new" /etc/hosts
trap - EXIT`

// hostsBlock leads every name of the proxy to its address.
func hostsBlock(address string, hosts []string) string {
	lines := []string{blockBegin}
	for _, h := range slices.Sorted(slices.Values(hosts)) {
		lines = append(lines, address+" "+h)
	}
	return strings.Join(append(lines, blockEnd), "\n") + "\n"
}

// leadNames makes the CA's container find the proxy under the names for which
// it shall sign, and tells whether that has changed anything. What has been
// written is recorded in the container's notes, where looking costs no call.
//
// anew writes it even if it has been recorded.
func leadNames(ctx context.Context, t *join.Target, p proxy, anew bool) (changed bool, err error) {
	if !t.Container.Network.IP.IsValid() {
		return false, errors.New("the container has no fixed address to which the CA could connect: set network_config.ip")
	}
	block := hostsBlock(t.Container.Network.IP.Addr().String(), p.hosts())
	hash := pct.Hash([]byte(block))
	recorded, err := t.Host.Recorded(ctx, t.CA.CTID)
	if err != nil {
		return false, err
	}
	if recorded[hostsRecord] == hash && !anew {
		return false, nil
	}
	cmd := t.Host.Exec(t.CA.CTID, "/bin/sh", "-c", writeBlock, "sh", blockBegin, blockEnd)
	cmd.Label = fmt.Sprintf("pct exec %d (write /etc/hosts)", t.CA.CTID)
	cmd.Stdin = strings.NewReader(block)
	if _, err := t.Host.Run(ctx, cmd); err != nil {
		return false, err
	}
	return true, t.Host.UpdateRecord(ctx, t.CA.CTID, func(record pct.Record) { record[hostsRecord] = hash })
}
