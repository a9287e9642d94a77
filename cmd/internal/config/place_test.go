package config

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// Where one of CA, proxy and gateway has several addresses, the networks of all
// three are told, and a stream that tells others than a file can have is refused.
func TestNetworksOfPlaces(t *testing.T) {
	fixed := func(s string) Addressing { return Addressing{Prefix: netip.MustParsePrefix(s)} }
	f := &File{Containers: map[int]*Container{
		103: {CTID: 103, ApplicationScript: CAScript, Interfaces: []Interface{
			{Name: "eth0", MAC: "02:00:00:00:03:00", IPv4: fixed("10.0.0.10/24")}}},
		101: {CTID: 101, ApplicationScript: GatewayScript, Interfaces: []Interface{
			{Name: "eth0", IPv4: Addressing{Method: "dhcp"}, IPv6: fixed("fd00::101/64")}}},
	}}
	single := f.Plan("example.test")
	for _, place := range single.Places() {
		if place.Networks != nil {
			t.Errorf("%d: %+v", place.CTID, place.Networks)
		}
	}
	f.Containers[101].Interfaces = append(f.Containers[101].Interfaces,
		Interface{Name: "eth1", MAC: "02:00:00:00:01:01", IPv4: fixed("10.0.0.101/24")})
	p := f.Plan("example.test")
	if want := (&Place{CTID: 101, IP: "fd00::101", Also: []string{"10.0.0.101"}, Interface: "eth0", Networks: []Network{
		{Address: "fd00::101/64", Interface: "eth0"},
		{Address: "10.0.0.101/24", MAC: "02:00:00:00:01:01", Interface: "eth1"},
	}}); !reflect.DeepEqual(p.Gateway, want) {
		t.Errorf("%+v, want %+v", p.Gateway, want)
	}
	if want := []Network{{Address: "10.0.0.10/24", MAC: "02:00:00:00:03:00", Interface: "eth0"}}; !reflect.DeepEqual(
		p.CA.Networks, want) {
		t.Errorf("%+v, want %+v", p.CA.Networks, want)
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Network){
		"address":   func(n *Network) { n.Address = "10.0.0.101" },
		"zone":      func(n *Network) { n.Address = "fe80::1%eth0/64" },
		"MAC":       func(n *Network) { n.MAC = "x" },
		"interface": func(n *Network) { n.Interface = "eth0 x" },
	} {
		spoiled := f.Plan("example.test")
		spoil(&spoiled.Gateway.Networks[1])
		if spoiled.Check() == nil {
			t.Errorf("%s: %+v is accepted", name, spoiled.Gateway.Networks[1])
		}
	}
}

// A status page of the gateway cannot have one of the gateway's own ports.
func TestStatusPageAtAPortOfTheGateway(t *testing.T) {
	for port, want := range map[string]string{
		"443":  "5:39: lxc_configs.101.traefik_service.port: 443 is a port of the gateway itself: ",
		"80":   "5:39: lxc_configs.101.traefik_service.port: 80 is a port of the gateway itself: ",
		"8080": "",
	} {
		text := `{"lxc_configs": {"101": {"name": "gw", "template": "local:vztmpl/x.tar.zst",
  "memory_mb": 512, "cores": 1, "storage_pool": "lab", "storage_size_gb": 4,
  "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.153/24", "gw": "10.0.0.1"},
  "application_script": "` + GatewayScript + `",
  "traefik_service": {        "name": "gateway", "port": ` + port + `}}}}`
		f, err := Parse("f.json", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, w := range f.Warnings {
			got += w.String()
		}
		if (got == "") != (want == "") || !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", port, got, want)
		}
	}
}
