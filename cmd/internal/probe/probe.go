// Package probe asks on a network of the host who has an address, as a machine does
// before it takes one: by ARP (RFC 5227) and, for IPv6, by Neighbour Discovery
// (RFC 4862). The questions name no address of the host's own, so that nobody notes
// anything of them.
//
// It must not know whose addresses these are.
package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tries    = 3
	interval = 200 * time.Millisecond // between tries
	patience = 600 * time.Millisecond // after the last one
)

// Probe asks on the network of the host's interface who has these addresses, and
// returns the MAC addresses of those who answer within a second. It needs the right
// to open packet sockets.
func Probe(ctx context.Context, on string, addresses []netip.Addr) (map[netip.Addr]net.HardwareAddr, error) {
	i, err := net.InterfaceByName(on)
	if err != nil {
		return nil, err
	}
	if len(i.HardwareAddr) != 6 {
		return nil, fmt.Errorf("%s is no Ethernet", on)
	}
	const kind = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err := unix.Socket(unix.AF_PACKET, kind, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return nil, fmt.Errorf("a packet socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: i.Index}); err != nil {
		return nil, fmt.Errorf("a packet socket: %w", err)
	}
	// Neighbour advertisements to all nodes come to an interface that listens to them.
	all := unix.PacketMreq{Ifindex: int32(i.Index), Type: unix.PACKET_MR_ALLMULTI}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &all); err != nil {
		return nil, fmt.Errorf("a packet socket: %w", err)
	}

	found := map[netip.Addr]net.HardwareAddr{}
	for try := 1; try <= tries; try++ {
		for _, address := range addresses {
			if found[address] != nil {
				continue
			}
			question := question(i.HardwareAddr, address)
			if err := unix.Send(fd, question, 0); err != nil && !errors.Is(err, unix.EAGAIN) {
				return nil, fmt.Errorf("ask on %s: %w", on, err)
			}
		}
		wait := interval
		if try == tries {
			wait = patience
		}
		if err := listen(ctx, fd, time.Now().Add(wait), addresses, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// listen notes who has the addresses according to what comes until a moment.
func listen(ctx context.Context, fd int, until time.Time, addresses []netip.Addr,
	found map[netip.Addr]net.HardwareAddr) error {
	wanted := map[netip.Addr]bool{}
	for _, address := range addresses {
		wanted[address] = true
	}
	buffer := make([]byte, 2048)
	for ctx.Err() == nil {
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, min(int(left.Milliseconds())+1, 100)) // to see ctx end
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n <= 0 {
			continue
		}
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Pkttype == unix.PACKET_OUTGOING {
			continue // a question of this host
		}
		if address, mac := claim(buffer[:n]); wanted[address] && found[address] == nil {
			found[address] = mac
		}
	}
	return context.Cause(ctx)
}

func htons(n uint16) uint16 { return n<<8 | n>>8&0xff }

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	// ipv6 is what the header of a question for an IPv6 address begins with: version,
	// length of what follows, ICMPv6, and a hop limit that no router leaves.
	ipv6Header = []byte{0x60, 0, 0, 0, 0, 24, 58, 255}
)

// question is the frame in which the host with a MAC address asks who has an
// address.
func question(mac net.HardwareAddr, address netip.Addr) []byte {
	if address.Is4() {
		frame := bytes.Join([][]byte{
			broadcast, mac, {0x08, 0x06}, // ARP
			{0, 1, 0x08, 0, 6, 4, 0, 1}, // over Ethernet, for IPv4, a request
			mac, make([]byte, 4), make([]byte, 6), address.AsSlice(),
		}, nil)
		return append(frame, make([]byte, 60-len(frame))...) // of the least length
	}
	target := address.As16()
	group := [16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]}
	message := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target[:]...) // a neighbour solicitation
	binary.BigEndian.PutUint16(message[2:], checksum(group, message))
	return bytes.Join([][]byte{
		{0x33, 0x33, 0xff, target[13], target[14], target[15]}, mac, {0x86, 0xdd},
		ipv6Header, make([]byte, 16), group[:], message,
	}, nil)
}

// checksum is that of an ICMPv6 message from the unspecified address.
func checksum(to [16]byte, message []byte) uint16 {
	sum := uint32(58 + len(message))
	for _, part := range [][]byte{to[:], message} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// claim returns the address that the sender of a frame says to have, or is about to
// take, and its MAC address; none for a frame that says neither.
func claim(frame []byte) (netip.Addr, net.HardwareAddr) {
	if len(frame) < 14 {
		return netip.Addr{}, nil
	}
	body := frame[14:]
	switch {
	case frame[12] == 0x08 && frame[13] == 0x06 && len(body) >= 28 && // ARP
		bytes.Equal(body[:6], []byte{0, 1, 0x08, 0, 6, 4}):
		address := netip.AddrFrom4([4]byte(body[14:18]))
		if address.IsUnspecified() { // another one asks, too
			address = netip.AddrFrom4([4]byte(body[24:28]))
		}
		return address, bytes.Clone(body[8:14])
	case frame[12] == 0x86 && frame[13] == 0xdd && len(body) >= 64 && // a neighbour advertisement
		body[6] == 58 && body[7] == 255 && body[40] == 136:
		return netip.AddrFrom16([16]byte(body[48:64])), bytes.Clone(frame[6:12])
	}
	return netip.Addr{}, nil
}
