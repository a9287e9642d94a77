package service

import (
	"net/netip"
	"slices"
	"testing"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/guest"
)

func place(ctid int, networks ...config.Network) *config.Place {
	p := &config.Place{CTID: ctid, MAC: networks[0].MAC, Interface: networks[0].Interface, Networks: networks}
	for i, n := range networks {
		if address := n.Prefix().Addr().String(); i == 0 {
			p.IP = address
		} else {
			p.Also = append(p.Also, address)
		}
	}
	return p
}

// Of neighbours with several addresses those are pinned that are in a network of
// the container, each on the interface there.
func TestNeighboursOf(t *testing.T) {
	internal := func(host, mac string) config.Network {
		return config.Network{Address: "10.0.0." + host + "/24", MAC: mac, Interface: "eth0"}
	}
	gateway := place(101, config.Network{Address: "192.0.2.1/24", MAC: "02:00:00:00:01:00", Interface: "eth0"},
		config.Network{Address: "10.0.0.153/24", MAC: "02:00:00:00:01:01", Interface: "eth1"},
		config.Network{Address: "fd00::153/64", MAC: "02:00:00:00:01:01", Interface: "eth1"})
	proxy := place(102, internal("12", "02:00:00:00:02:00"),
		config.Network{Address: "fd00::12/64", MAC: "02:00:00:00:02:00", Interface: "eth0"})
	ca := place(103, internal("10", "02:00:00:00:03:00"))
	target := &Target{CTID: 101, Container: &config.Container{}, CA: ca, Proxy: proxy, Gateway: gateway}
	for ctid, want := range map[int][]guest.Neighbour{
		101: {{IP: "10.0.0.10", MAC: "02:00:00:00:03:00", Device: "eth1"},
			{IP: "10.0.0.12", MAC: "02:00:00:00:02:00", Device: "eth1"},
			{IP: "fd00::12", MAC: "02:00:00:00:02:00", Device: "eth1"}},
		102: {{IP: "10.0.0.10", MAC: "02:00:00:00:03:00"},
			{IP: "10.0.0.153", MAC: "02:00:00:00:01:01"}, {IP: "fd00::153", MAC: "02:00:00:00:01:01"}},
		103: {{IP: "10.0.0.12", MAC: "02:00:00:00:02:00"}, {IP: "10.0.0.153", MAC: "02:00:00:00:01:01"}},
	} {
		if got := target.NeighboursOf(ctid); !slices.Equal(got, want) {
			t.Errorf("%d: %+v, want %+v", ctid, got, want)
		}
	}
	// With one address each, nothing has to be chosen.
	proxy.Networks, proxy.Also, ca.Networks, target.Gateway = nil, nil, nil, nil
	want := []guest.Neighbour{{IP: "10.0.0.10", MAC: "02:00:00:00:03:00"}, {IP: "10.0.0.12", MAC: "02:00:00:00:02:00"}}
	if got := target.NeighboursOf(101); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A place is reached in a network that both are in, or at least by a family that
// the container has.
func TestAddressOf(t *testing.T) {
	fixed := func(s string) config.Addressing { return config.Addressing{Prefix: netip.MustParsePrefix(s)} }
	p := &config.Place{IP: "10.0.0.10", Also: []string{"10.1.0.10", "fd00::10"}}
	for name, tt := range map[string]struct {
		interfaces []config.Interface
		want       string
	}{
		"the same network":   {[]config.Interface{{IPv4: fixed("10.0.0.2/24")}}, "10.0.0.10"},
		"the second network": {[]config.Interface{{IPv4: fixed("10.1.0.2/24")}}, "10.1.0.10"},
		"the second interface": {[]config.Interface{{IPv4: fixed("10.9.0.2/24")}, {IPv4: fixed("10.1.0.2/24")}},
			"10.1.0.10"},
		"IPv6 alone":             {[]config.Interface{{IPv6: fixed("fd00::2/64")}}, "fd00::10"},
		"IPv6 alone, by itself":  {[]config.Interface{{IPv6: config.Addressing{Method: "auto"}}}, "fd00::10"},
		"another network":        {[]config.Interface{{IPv4: fixed("10.9.0.2/24")}}, "10.0.0.10"},
		"dhcp":                   {[]config.Interface{{IPv4: config.Addressing{Method: "dhcp"}}}, "10.0.0.10"},
		"nothing is known of it": {nil, "10.0.0.10"},
	} {
		target := &Target{Container: &config.Container{Interfaces: tt.interfaces}, CA: p}
		if got := target.AddressOf(p); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
		// The CA's URL, which is that of its first address, becomes that of this one.
		target.Trust = guest.Trust{CAURL: "https://10.0.0.10:9000"}
		if err := target.checkCA(); err != nil {
			t.Error(err)
		}
		want := "https://" + netip.AddrPortFrom(netip.MustParseAddr(tt.want), 9000).String()
		if target.Trust.CAURL != want {
			t.Errorf("%s: URL %s, want %s", name, target.Trust.CAURL, want)
		}
	}
	six := &Target{Container: &config.Container{}, CA: &config.Place{IP: "fd00::10"},
		Trust: guest.Trust{CAURL: "https://[fd00:0::10]:9000"}}
	if err := six.checkCA(); err != nil {
		t.Error(err)
	}
	six.Trust.CAURL = "https://[fd00::11]:9000"
	if six.checkCA() == nil {
		t.Error("the URL of another one is accepted")
	}
}
