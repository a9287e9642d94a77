package guest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
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

[Service]
Type=oneshot
RemainAfterExit=yes
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
	b.WriteString("\n[Install]\nWantedBy=multi-user.target\n")
	return b.Bytes(), nil
}

// PinNeighbours makes the entries of neighbours permanent, at every boot and
// now. Without neighbours nothing is done.
func (s *Setup) PinNeighbours(ctx context.Context, device string, neighbours []Neighbour) error {
	if len(neighbours) == 0 {
		return nil
	}
	text, err := NeighbourUnitText(device, neighbours)
	if err != nil {
		return err
	}
	changed, err := s.WriteFile(NeighbourFile, text, 0o644)
	if err != nil {
		return err
	}
	if !changed && Active(ctx, NeighbourUnit) {
		pinned, err := pinnedNeighbours(ctx, device)
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			if !strings.EqualFold(pinned[n.IP], n.MAC) {
				changed = true
			}
		}
	}
	if changed && Active(ctx, NeighbourUnit) {
		return s.Restart(ctx, NeighbourUnit)
	}
	return s.Start(ctx, NeighbourUnit)
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
