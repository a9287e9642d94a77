package probe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var mac = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func frame(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestQuestion(t *testing.T) {
	for address, want := range map[string]string{
		"10.0.0.153": `ffffffffffff 020000000001 0806 0001 0800 06 04 0001
			020000000001 00000000 000000000000 0a000099 000000000000000000000000000000000000`,
		"fd00:10::99": `3333ff000099 020000000001 86dd 60000000 0018 3a ff
			00000000000000000000000000000000 ff0200000000000000000001ff000099
			87 00 7c65 00000000 fd000010000000000000000000000099`,
	} {
		if have := question(mac, netip.MustParseAddr(address)); !bytes.Equal(have, frame(t, want)) {
			t.Errorf("the question for %s is\n%x, want\n%x", address, have, frame(t, want))
		}
	}
}

func TestClaim(t *testing.T) {
	advertisement := `330000000001 020000000007 86dd 60000000 0020 3a %s
		fe800000000000000000000000000007 ff020000000000000000000000000001
		88 00 0000 20000000 fd000010000000000000000000000099 0201020000000007`
	arp := `ffffffffffff 020000000007 0806 0001 0800 06 04 %s 020000000007 %s 000000000000 0a000099`
	for name, c := range map[string]struct{ frame, address string }{
		"answer":                          {fmt.Sprintf(arp, "0002", "0a000007"), "10.0.0.7"},
		"a question names who asks":       {fmt.Sprintf(arp, "0001", "0a000007"), "10.0.0.7"},
		"one who is about to take it":     {fmt.Sprintf(arp, "0001", "00000000"), "10.0.0.153"},
		"advertisement":                   {fmt.Sprintf(advertisement, "ff"), "fd00:10::99"},
		"one that a router has forwarded": {fmt.Sprintf(advertisement, "40"), ""},
		"IPv4":                            {"ffffffffffff 020000000007 0800 " + strings.Repeat("00", 60), ""},
	} {
		want := netip.Addr{}
		if c.address != "" {
			want = netip.MustParseAddr(c.address)
		}
		address, mac := claim(frame(t, c.frame))
		if address != want || want.IsValid() && mac.String() != "02:00:00:00:00:07" {
			t.Errorf("%s: %v at %v, want %v", name, address, mac, want)
		}
	}
}

// What comes from a network may be anything.
func FuzzClaim(f *testing.F) {
	f.Add(question(mac, netip.MustParseAddr("10.0.0.1")))
	f.Add(question(mac, netip.MustParseAddr("fd00::1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if address, mac := claim(b); address.IsValid() != (len(mac) == 6) {
			t.Errorf("%v, %v", address, mac)
		}
	})
}

// TestProbe asks in a network of its own, in which another end has addresses.
func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	result := make(chan func(), 1)
	go func() { // its thread stays in the namespaces, and ends with it
		runtime.LockOSThread()
		result <- probeBetween(t)
	}()
	(<-result)()
}

// probeBetween makes two namespaces of networks, and probes from one to the other.
// It returns what there is to say.
func probeBetween(t *testing.T) func() {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return func() { t.Skip("no network namespace:", err) }
	}
	there := exec.Command("unshare", "--net", "sh", "-c", `
		echo in
		read go
		ip link set there up && ip addr add 10.9.0.7/24 dev there && ip addr add fd00:9::7/64 dev there nodad
		echo up
		read end`)
	in, err := there.StdinPipe()
	if err != nil {
		return func() { t.Error(err) }
	}
	out, err := there.StdoutPipe()
	if err == nil {
		err = there.Start()
	}
	if err != nil {
		return func() { t.Error(err) }
	}
	defer func() { in.Close(); there.Wait() }()
	said := bufio.NewReader(out)
	if _, err := said.ReadString('\n'); err != nil {
		return func() { t.Error(err) }
	}
	here := exec.Command("sh", "-c", `ip link add name here type veth peer name there netns "$1" &&
		ip link set here up`, "sh", strconv.Itoa(there.Process.Pid))
	if text, err := here.CombinedOutput(); err != nil {
		return func() { t.Errorf("%v: %s", err, text) }
	}
	in.Write([]byte("go\n"))
	if _, err := said.ReadString('\n'); err != nil {
		return func() { t.Error(err) }
	}
	addresses := []netip.Addr{netip.MustParseAddr("10.9.0.7"), netip.MustParseAddr("10.9.0.8"),
		netip.MustParseAddr("fd00:9::7"), netip.MustParseAddr("fd00:9::8")}
	found, err := Probe(context.Background(), "here", addresses)
	return func() {
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 2 || found[addresses[0]] == nil || found[addresses[2]] == nil ||
			!bytes.Equal(found[addresses[0]], found[addresses[2]]) {
			t.Errorf("found %v", found)
		}
	}
}
