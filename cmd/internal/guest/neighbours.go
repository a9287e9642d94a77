package guest

import (
	"bytes"
	"cmp"
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
	IP     string `json:"ip"`
	MAC    string `json:"mac"`
	Device string `json:"device,omitempty"` // the interface to it; "" for the one that is given for all
}

// onDevice returns the neighbours, each with its interface.
func onDevice(device string, neighbours []Neighbour) []Neighbour {
	all := slices.Clone(neighbours)
	for i := range all {
		all[i].Device = cmp.Or(all[i].Device, device)
	}
	return all
}

// Names of the unit that keeps the neighbours.
const (
	NeighbourUnit = "phx-neighbours.service"
	NeighbourFile = "/etc/systemd/system/" + NeighbourUnit
)

var deviceForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)

// NeighbourUnitText returns the unit that makes the entries of neighbours
// permanent: answers to ARP, or to its counterpart of IPv6, that somebody else
// gives do not count then. device is the interface of those that name none. It
// refuses what is no address.
func NeighbourUnitText(device string, neighbours []Neighbour) ([]byte, error) {
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
	for _, n := range onDevice(device, neighbours) {
		if !deviceForm.MatchString(n.Device) {
			return nil, fmt.Errorf("interface %q: not the name of one", n.Device)
		}
		ip, err := netip.ParseAddr(n.IP)
		if err != nil || ip.Zone() != "" {
			return nil, fmt.Errorf("neighbour %q: not an IP address", n.IP)
		}
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 {
			return nil, fmt.Errorf("neighbour %s: %q is not a MAC address", n.IP, n.MAC)
		}
		fmt.Fprintf(&b, "ExecStart=/sbin/ip neighbour replace %s lladdr %s dev %s nud permanent\n", ip, mac, n.Device)
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
	neighbours = onDevice(device, neighbours)
	for _, f := range former {
		same := func(n Neighbour) bool { return n.Device == f.Device && sameIP(n.IP, f.IP) }
		if slices.ContainsFunc(neighbours, same) {
			continue
		}
		// Not an error: it may be gone, as after a reboot.
		s.Run(ctx, "ip", "neighbour", "del", f.IP, "dev", f.Device)
		s.Changed("freed the address of neighbour %s", f.IP)
	}
	if len(neighbours) == 0 {
		if _, err := s.Run(ctx, "systemctl", "disable", "--now", "--quiet", NeighbourUnit); err != nil {
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
		for _, n := range neighbours {
			pinned, err := isPinned(ctx, n)
			if err != nil {
				return err
			}
			changed = changed || !pinned
		}
		if changed {
			return s.Restart(ctx, NeighbourUnit)
		}
	}
	return s.Start(ctx, NeighbourUnit)
}

var entryForm = regexp.MustCompile(
	`(?m)^ExecStart=/sbin/ip neighbour replace (\S+) lladdr \S+ dev (\S+) nud permanent$`)

// neighboursOf returns the neighbours in the text of the unit, without their MAC
// addresses.
func neighboursOf(text []byte) []Neighbour {
	var all []Neighbour
	for _, m := range entryForm.FindAllSubmatch(text, -1) {
		all = append(all, Neighbour{IP: string(m[1]), Device: string(m[2])})
	}
	return all
}

func sameIP(a, b string) bool {
	x, err1 := netip.ParseAddr(a)
	y, err2 := netip.ParseAddr(b)
	return err1 == nil && err2 == nil && x == y
}

// isPinned reports whether the entry of a neighbour is permanent.
func isPinned(ctx context.Context, n Neighbour) (bool, error) {
	out, err := Run(ctx, "ip", "neighbour", "show", n.IP, "dev", n.Device, "nud", "permanent")
	if err != nil {
		return false, err
	}
	words := strings.Fields(out) // ADDRESS lladdr MAC PERMANENT
	return len(words) >= 3 && words[1] == "lladdr" && strings.EqualFold(words[2], n.MAC), nil
}
