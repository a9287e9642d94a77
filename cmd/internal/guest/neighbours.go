package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Neighbour is a container on the same network whose address must lead to no
// other.
type Neighbour struct {
	IP  string `json:"ip"`
	MAC string `json:"mac"`
}

// Names of the unit that keeps the neighbours.
const (
	NeighbourUnit = "phx-neighbours.service"
	NeighbourFile = "/etc/systemd/system/" + NeighbourUnit
)

var deviceForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)

// NeighbourUnitText returns the unit that makes the entries of neighbours
// permanent: answers to ARP that somebody else gives do not count then. It
// refuses what is no address.
func NeighbourUnitText(device string, neighbours []Neighbour) ([]byte, error) {
	if !deviceForm.MatchString(device) {
		return nil, fmt.Errorf("interface %q: not the name of one", device)
	}
	var b bytes.Buffer
	b.WriteString(`# Written by phx. Changes made here are lost at its next run.
[Unit]
Description=Addresses of the CA, the gateway and the proxy that no neighbour can take
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
Restart=on-failure
RestartSec=2
TimeoutStartSec=30
`)
	for _, n := range neighbours {
		ip, err := netip.ParseAddr(n.IP)
		if err != nil || ip.Zone() != "" {
			return nil, fmt.Errorf("neighbour %q: not an IP address", n.IP)
		}
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 {
			return nil, fmt.Errorf("neighbour %s: %q is not a MAC address", n.IP, n.MAC)
		}
		fmt.Fprintf(&b, "ExecStart=/sbin/ip neighbour replace %s lladdr %s dev %s nud permanent\n", ip, mac, device)
	}
	// No option here needs a mount namespace, which a container without nesting
	// cannot have.
	b.WriteString(`NoNewPrivileges=yes
CapabilityBoundingSet=CAP_NET_ADMIN
RestrictAddressFamilies=AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
`)
	return b.Bytes(), nil
}

// PinNeighbours makes the entries of neighbours permanent, at every boot and
// now. Entries that an earlier run has made and that are not among these go:
// an address that has got another MAC address could not be reached any more.
// An entry that the kernel has lost, as it does when the interface goes down,
// is made again.
func (s *Setup) PinNeighbours(ctx context.Context, device string, neighbours []Neighbour) error {
	before, err := os.ReadFile(NeighbourFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	former := neighboursOf(before)
	if len(former) == 0 && len(neighbours) == 0 {
		return nil
	}
	text, err := NeighbourUnitText(device, neighbours)
	if err != nil {
		return err
	}
	for dev, ips := range former {
		for _, ip := range ips {
			if dev == device && slices.ContainsFunc(neighbours, func(n Neighbour) bool { return n.IP == ip }) {
				continue
			}
			// Not an error: it may be gone, as after a reboot.
			Run(ctx, "ip", "neighbour", "del", ip, "dev", dev)
			s.Changed("freed the address of neighbour %s", ip)
		}
	}
	if len(neighbours) == 0 {
		if _, err := Run(ctx, "systemctl", "disable", "--now", "--quiet", NeighbourUnit); err != nil {
			return err
		}
		if err := os.Remove(NeighbourFile); err != nil {
			return err
		}
		s.Changed("removed %s", NeighbourFile)
		return nil
	}
	changed, err := s.WriteFile(NeighbourFile, text, 0o644)
	if err != nil {
		return err
	}
	if Active(ctx, NeighbourUnit) {
		pinned, err := pinnedNeighbours(ctx, device)
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			if !strings.EqualFold(pinned[n.IP], n.MAC) {
				changed = true
			}
		}
		if changed {
			return s.Restart(ctx, NeighbourUnit)
		}
	}
	return s.Start(ctx, NeighbourUnit)
}

var entryForm = regexp.MustCompile(
	`(?m)^ExecStart=/sbin/ip neighbour replace (\S+) lladdr \S+ dev (\S+) nud permanent$`)

// neighboursOf returns the IP addresses in the text of the unit by their
// interface.
func neighboursOf(text []byte) map[string][]string {
	ips := map[string][]string{}
	for _, m := range entryForm.FindAllSubmatch(text, -1) {
		ips[string(m[2])] = append(ips[string(m[2])], string(m[1]))
	}
	return ips
}

// pinnedNeighbours returns the MAC address of each permanent entry by its IP
// address.
func pinnedNeighbours(ctx context.Context, device string) (map[string]string, error) {
	out, err := Run(ctx, "ip", "neighbour", "show", "dev", device, "nud", "permanent")
	if err != nil {
		return nil, err
	}
	pinned := map[string]string{}
	for line := range strings.Lines(out) {
		words := strings.Fields(line) // ADDRESS lladdr MAC PERMANENT
		if len(words) >= 3 && words[1] == "lladdr" {
			pinned[words[0]] = words[2]
		}
	}
	return pinned, nil
}
