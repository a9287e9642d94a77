// Package ca is what phx knows of the CA: its places and names in its
// container, the root's key and the pin on the host, and how both are brought
// together.
//
// The root's key never enters the container. There the intermediate's key is
// made, and its certificate is requested from the host.
package ca

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Names and places of a CA that phx makes.
const (
	Home        = "/home/step"
	Provisioner = "phoenix" // of one-time tokens
	DefaultName = "ca"      // below the domain
	DefaultPort = 9000      // unless its traefik_service says otherwise
)

const (
	configPath       = Home + "/config/ca.json"
	rootPath         = Home + "/certs/root_ca.crt"
	intermediatePath = Home + "/certs/intermediate_ca.crt"
	keyPath          = Home + "/secrets/intermediate_ca_key"
)

// token runs step ca token in the CA's container. Where the CA lies stands in
// /etc/phx/ca.env if it was there before phx. step takes only a file with one
// root, and the CA's own has two while one takes the other's place.
const token = `set -eu
umask 077
STEPPATH=` + Home + ` ROOT= PROVISIONER=` + Provisioner + ` PASSWORD=
if [ -f /etc/phx/ca.env ]; then
	while IFS='=' read -r key value; do
		case $key in STEPPATH) STEPPATH=$value ;; ROOT) ROOT=$value ;; PROVISIONER) PROVISIONER=$value ;; PASSWORD) PASSWORD=$value ;; esac
	done </etc/phx/ca.env
fi
one=$(mktemp)
trap 'rm -f "$one"' EXIT
awk '{ print } /-----END CERTIFICATE-----/ { exit }' "${ROOT:-$STEPPATH/certs/root_ca.crt}" >"$one"
step=$(PATH=/usr/local/bin:/usr/bin:/bin command -v step)
env -i PATH=/usr/bin:/bin HOME=/root STEPPATH="$STEPPATH" "$step" ca token "$@" --root "$one" \
	--provisioner "$PROVISIONER" --password-file "${PASSWORD:-$STEPPATH/secrets/provisioner_password}"`

// TokenCommand returns the command that prints a one-time token in the CA's
// container. The provisioner's password does not leave the container.
func TokenCommand(caURL, subject string, names ...string) []string {
	argv := []string{"/bin/sh", "-c", token, "step ca token", subject, "--ca-url", caURL}
	for _, name := range names {
		argv = append(argv, "--san="+name)
	}
	return argv
}

// In the CA's /etc/hosts, the lines around those that lead to the proxy.
const (
	HostsBegin = "# --- BEGIN PHX ---"
	HostsEnd   = "# --- END PHX ---"
)

// HostsBlock returns the lines that lead every name of the proxy to its
// address.
func HostsBlock(address string, names []string) []byte {
	lines := []string{HostsBegin}
	for _, name := range slices.Sorted(slices.Values(names)) {
		lines = append(lines, address+" "+name)
	}
	return []byte(strings.Join(append(lines, HostsEnd), "\n") + "\n")
}

// hostsBlockOf returns the block that is in a file, nothing when there is none.
func hostsBlockOf(text []byte) []byte {
	_, after, ok1 := bytes.Cut(text, []byte(HostsBegin+"\n"))
	block, _, ok2 := bytes.Cut(after, []byte(HostsEnd+"\n"))
	if !ok1 || !ok2 {
		return nil
	}
	return slices.Concat([]byte(HostsBegin+"\n"), block, []byte(HostsEnd+"\n"))
}

// Settings are what the file says about the CA.
type Settings struct {
	Domain string
	Addr   netip.Addr
	Name   string // below the domain
	Port   int
	Names  []string // further names that it has to issue certificates for
}

// URL is where the CA answers: by address, for its name leads to the gateway.
func (s Settings) URL() string {
	return "https://" + net.JoinHostPort(s.Addr.String(), strconv.Itoa(s.Port))
}

// serverNames are the names of the CA's own certificate.
func (s Settings) serverNames() []string {
	return []string{s.Name + "." + s.Domain, s.Addr.String(), "127.0.0.1"}
}
