// Package ca says what the CA is, for both machines: the places and names in its
// container, its URL, what its container is told, and which connections the CA and
// those that trust it need. It opens no file and runs
// nothing, and knows nothing of Proxmox VE: the CA is made and kept by package
// cahost.
package ca

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
)

// What a CA that phx makes is called, and where it listens.
const (
	DefaultName = "ca" // below the domain
	DefaultPort = 9000

	Provisioner = "phoenix" // of one-time tokens (JWK)
	ACME        = "acme"    // the provisioner of ACME
)

// Places in the CA's container. scripts/phoenix_hypervisor_lxc_103.sh, which
// can be run by hand, repeats some of them.
const (
	Home             = "/home/step" // of the CA's user
	ConfigPath       = Home + "/config/ca.json"
	RootPath         = Home + "/certs/root_ca.crt"
	IntermediatePath = Home + "/certs/intermediate_ca.crt"
	KeyPath          = Home + "/secrets/intermediate_ca_key"

	// AdoptedFile says where a CA lies that was there before phx.
	AdoptedFile = "/etc/phx/ca.env"
	// RestartFile is there while the running CA may not have what is on disk.
	RestartFile = "/run/step-ca.restart"
)

// ACMEDirectory returns the URL of the ACME directory of the CA at caURL.
func ACMEDirectory(caURL string) string { return caURL + "/acme/" + ACME + "/directory" }

// token runs step ca token in the CA's container. Where the CA lies stands in
// [AdoptedFile] if it was there before phx. step takes only a file with one
// root, and the CA's own has two while one takes the other's place.
const token = `set -eu
umask 077
STEPPATH=` + Home + ` ROOT= PROVISIONER=` + Provisioner + ` PASSWORD=
if [ -f ` + AdoptedFile + ` ]; then
	while IFS='=' read -r key value; do
		case $key in
		STEPPATH) STEPPATH=$value ;;
		ROOT) ROOT=$value ;;
		PROVISIONER) PROVISIONER=$value ;;
		PASSWORD) PASSWORD=$value ;;
		esac
	done <` + AdoptedFile + `
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

// HostsBlockOf returns the block that is in text, nil when there is none.
func HostsBlockOf(text []byte) []byte {
	_, after, ok1 := bytes.Cut(text, []byte(HostsBegin+"\n"))
	block, _, ok2 := bytes.Cut(after, []byte(HostsEnd+"\n"))
	if !ok1 || !ok2 {
		return nil
	}
	return slices.Concat([]byte(HostsBegin+"\n"), block, []byte(HostsEnd+"\n"))
}

// Settings are what the configuration says about the CA.
type Settings struct {
	Domain string
	Addr   netip.Addr
	Also   []netip.Addr // its other addresses
	Name   string       // below the domain
	Port   int
	Names  []string // further names that it has to issue certificates for; nil when they are not known
}

// SettingsOf returns what a plan says about its CA, whose name and port are those
// of its traefik_service. The plan has been checked, and has a CA.
func SettingsOf(p *config.Plan) Settings {
	settings := Settings{Domain: p.Domain, Addr: netip.MustParseAddr(p.CA.IP), Name: DefaultName, Port: Port(p),
		Names: []string{}}
	for _, also := range p.CA.Also {
		settings.Also = append(settings.Also, netip.MustParseAddr(also))
	}
	for _, s := range p.Services {
		if s.CTID == p.CA.CTID {
			settings.Name = s.Name
		}
		settings.Names = append(settings.Names, s.Host)
	}
	if p.Dashboard != nil {
		settings.Names = append(settings.Names, p.Dashboard.Host)
	}
	return settings
}

// Port returns the TCP port of a plan's CA: that of its traefik_service, or
// [DefaultPort].
func Port(p *config.Plan) int {
	port := DefaultPort
	for _, s := range p.Services {
		if _, at, err := config.ParseServiceURL(s.URL); err == nil && p.CA != nil && s.CTID == p.CA.CTID {
			port = int(at.Port())
		}
	}
	return port
}

// URL is where the CA answers: by address, for its name leads to the gateway.
func (s Settings) URL() string {
	return "https://" + net.JoinHostPort(s.Addr.String(), strconv.Itoa(s.Port))
}

// ServerNames are the names and addresses of the CA's own certificate.
func (s Settings) ServerNames() []string {
	names := []string{s.Name + "." + s.Domain}
	for _, address := range s.Addresses() {
		names = append(names, address.String())
	}
	return append(names, "127.0.0.1")
}

// Addresses are those by which others reach the CA.
func (s Settings) Addresses() []netip.Addr { return append([]netip.Addr{s.Addr}, s.Also...) }
