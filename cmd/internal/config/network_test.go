package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Parts of [base]: of container 103 all but the last.
const (
	caNetwork = `"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.10/24", "gw": "10.0.0.1"}`
	caMAC     = `"mac_address": "BC:24:11:00:01:03"`
	extra     = `"extra": 0`
	proxy     = `"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.12/24", "gw": "10.0.0.1"}`
)

// nets is network_configs with these interfaces, each written without its name and
// bridge.
func nets(interfaces ...string) string {
	for i, keys := range interfaces {
		interfaces[i] = fmt.Sprintf(`{"name": "eth%d", "bridge": "vmbr0", %s}`, i, keys)
	}
	return `"network_configs": [` + strings.Join(interfaces, ", ") + `]`
}

func TestNetworkMistakes(t *testing.T) {
	const (
		ca     = "lxc_configs.103."
		first  = ca + "network_configs.0."
		second = ca + "network_configs.1."
		fixed  = `"ip": "10.0.0.10/24"`
	)
	secondary := func(keys string) string {
		return `"secondary_network_config": {"name": "eth1", "bridge": "vmbr0", ` + keys + `}`
	}
	toNetwork := base[strings.Index(base, `"103": {`):strings.Index(base, caMAC)]
	marked := func(list string) string { return strings.Replace(list, "[", "¦[", 1) }
	expectMistakes(t, []mistakeCase{
		// One form or the other.
		{extra, marked(nets(`"ip": "10.0.5.1/24"`)), ca + "network_configs: there is a network_config too"},
		{caNetwork, marked(nets(fixed)) + ", " + secondary(`"ip": "10.0.5.1/24"`),
			ca + "network_configs: there is a secondary_network_config too"},
		{toNetwork, strings.NewReplacer(`"103": {`, `"103": ¦{`, caNetwork+",", "").Replace(toNetwork),
			ca + "network_config: missing: without it the container would have no interface"},
		{caNetwork, `"network_configs": ¦[]`, "without an interface nothing could reach the container"},
		{caNetwork, `"network_configs": ¦{}`, ca + "network_configs: must be a list, not an object"},
		{caNetwork, `"network_configs": [¦1]`, ca + "network_configs.0: must be an object, not a number"},
		{caNetwork, `"network_configs": [` + numbered(32,
			`{"name": "e%d", "bridge": "vmbr0", "ip": "10.0.5.1%02[1]d/16"}`) +
			`, ¦{}]`, "pct has no more than 32 interfaces"},
		{extra, `"secondary_network_config": ¦[]`, ca + "secondary_network_config: must be an object, not a list"},
		{extra, `"secondary_network_config": ¦{"bridge": "vmbr0", "ip": "dhcp"}`,
			ca + "secondary_network_config.name: missing"},

		// Lists that become one argument.
		{extra, `"searchdomain": [` + numbered(100, `"a%d.example"`) + `, ¦"b.example"]`,
			ca + "searchdomain.100: at most 100 are allowed"},
		{extra, `"nameservers": ¦"` + strings.Repeat("1.1.1.1 ", 101) + `"`,
			ca + "nameservers: at most 100 are allowed"},

		// What an interface is called.
		{extra, `"secondary_network_config": {"name": ¦"eth0", "bridge": "vmbr1", "ip": "dhcp"}`,
			ca + "secondary_network_config.name: eth0 is the name of network_config already"},
		{caNetwork, `"network_configs": [{"name": "a", "bridge": "b", ` + fixed +
			`}, {"name": ¦"a", "bridge": "b", "ip": "dhcp"}]`,
			second + "name: a is the name of network_configs.0 already"},
		{caNetwork, `"network_configs": [{"name": "a", "bridge": ¦"vmbr0 20", ` + fixed + `}]`,
			first + "bridge: "},
		{caNetwork, nets(fixed + `, "vlan": ¦20`), first + "vlan: unknown key"},

		// IPv4 and IPv6.
		{caNetwork, `"network_configs": [¦{"name": "eth0", "bridge": "vmbr0"}]`, first + "ip: missing"},
		{caNetwork, nets(fixed + `, "ip6": ¦"fd00::1"`),
			first + `ip6: "fd00::1" is not an IPv6 address with its prefix`},
		{caNetwork, nets(fixed + `, "ip6": ¦"10.0.5.1/24"`), "is not an IPv6 address with its prefix"},
		{caNetwork, nets(fixed + `, "ip6": ¦"::ffff:10.0.5.1/120"`), "is not an IPv6 address with its prefix"},
		{caNetwork, nets(fixed + `, "ip6": ¦"fd00::1%eth0/64"`), "is not an IPv6 address with its prefix"},
		{caNetwork, nets(fixed + `, "ip6": ¦"fd00::1/129"`), "is not an IPv6 address with its prefix"},
		{caNetwork, nets(fixed + `, "ip6": ¦"fd00::1/7"`), "the prefix length must be from 8 to 128, not 7"},
		{caNetwork, nets(fixed + `, "ip6": ¦"slaac"`), "nor dhcp, auto or manual"},
		{caNetwork, nets(fixed + `, "ip6": ¦"fe80::1/64"`), "fe80::1 is link-local"},
		{caNetwork, nets(fixed + `, "ip6": ¦"ff02::1/64"`), "ff02::1 is not an address of a host"},
		{caNetwork, nets(fixed + `, "ip6": ¦"::1/128"`), "::1 is not an address of a host"},
		{caNetwork, nets(fixed + `, "ip6": ¦"fd00::/64"`), "fd00:: is not an address of a host in fd00::/64"},
		{caNetwork, nets(fixed+`, "ip6": "fd00::1/64"`, `"ip6": ¦"fd00::1/48"`),
			second + "ip6: fd00::1 is the address of another interface of this container already"},
		{extra, secondary(`"ip": ¦"10.0.0.200/16"`),
			ca + "secondary_network_config.ip: 10.0.0.200 is the address of container 900"},
		{caNetwork, nets(fixed, `"ip": ¦"auto"`), "nor dhcp or manual"},
		{caNetwork, nets(fixed, `"ip": ¦4`), second + "ip: must be a string, not a number"},

		// Gateways.
		{caNetwork, nets(`"ip6": "fd00::a/64", "gw": ¦"10.0.0.1"`), first + "gw: needs an ip"},
		{caNetwork, nets(fixed + `, "gw6": ¦"fe80::1"`), first + "gw6: needs an ip6"},
		{caNetwork, nets(fixed + `, "ip6": "fd00::a/64", "gw6": ¦"10.0.0.1"`),
			first + `gw6: "10.0.0.1" is not an IPv6 address`},
		{caNetwork, nets(fixed + `, "ip6": "fd00::a/64", "gw6": ¦"fe80::1%eth0"`), "is not an IPv6 address"},
		{caNetwork, nets(fixed + `, "ip6": "fd00::a/64", "gw6": ¦"fd01::1"`), "fd01::1 is outside of fd00::/64"},
		{caNetwork, nets(fixed + `, "ip6": "fd00::a/64", "gw6": ¦"fd00::a"`), "fd00::a is the container's own address"},
		{caNetwork, nets(`"ip": "10.0.0.10/32", "gw": ¦"224.0.0.1"`), "224.0.0.1 is outside of 10.0.0.10/32"},

		// MAC addresses.
		{`"ip": "10.0.0.10/24"`, `"ip": "10.0.0.10/24", "hwaddr": ¦"BC:24:11:00:01:04"`,
			ca + "network_config.hwaddr: BC:24:11:00:01:04 is not the mac_address, " +
				"BC:24:11:00:01:03: they are one value"},
		{caNetwork, nets(fixed + `, "hwaddr": ¦"02:00:00:00:00:01"`),
			first + "hwaddr: 02:00:00:00:00:01 is not the mac_address"},
		{caNetwork, nets(fixed, `"ip": "dhcp", "hwaddr": ¦"bc:24:11:00:01:03"`),
			second + "hwaddr: BC:24:11:00:01:03 is the address of another interface of this container already"},
		{extra, secondary(`"ip": "dhcp", "hwaddr": ¦"BC:24:11:00:09:00"`),
			ca + "secondary_network_config.hwaddr: BC:24:11:00:09:00 is the address of container 900 already"},
		{extra, secondary(`"ip": "dhcp", "hwaddr": ¦"01:00:00:00:00:01"`), "is a multicast address"},

		// What else pct has.
		{extra, secondary(`"ip": "dhcp", "tag": ¦0`), ca + "secondary_network_config.tag: must be from 1 to 4094"},
		{extra, secondary(`"ip": "dhcp", "tag": ¦4095`), "must be from 1 to 4094, not 4095"},
		{extra, secondary(`"ip": "dhcp", "tag": ¦"20"`), "must be a number, not a string"},
		{extra, secondary(`"ip": "dhcp", "trunks": [20, ¦4095]`),
			ca + "secondary_network_config.trunks.1: must be from 1"},
		{extra, secondary(`"ip": "dhcp", "trunks": [20, ¦"30-"]`), `trunks.1: "30-" is not the id of a VLAN`},
		{extra, secondary(`"ip": "dhcp", "trunks": ¦"20;30-25"`), `trunks: "30-25" is not the id of a VLAN`},
		{extra, secondary(`"ip": "dhcp", "trunks": ¦"20,30"`), `"20,30" is not the id of a VLAN`},
		{extra, secondary(`"ip": "dhcp", "trunks": ¦20`), "must be a string, not a number"},
		{extra, secondary(`"ip": "dhcp", "mtu": ¦63`), "must be from 64 to 65535, not 63"},
		{extra, secondary(`"ip": "dhcp", "rate": ¦0`), "must be from 0.001 to 1048576, not 0"},
		{extra, secondary(`"ip": "dhcp", "rate": ¦1e9`), "must be from 0.001 to 1048576, not 1e9"},
		{extra, secondary(`"ip": "dhcp", "rate": ¦"1"`), "must be a number, not a string"},
		{extra, secondary(`"ip": "dhcp", "link_down": ¦1`), "must be true or false, not a number"},
		{extra, secondary(`"ip": "dhcp", "firewall": ¦1`), "must be true or false, not a number"},
		{extra, secondary(`"ip": "dhcp", "ip6": "auto", "host_managed": ¦true`),
			ca + "secondary_network_config.host_managed: Proxmox VE cannot do it with ip6 auto"},

		// Name servers.
		{`"ip": "10.0.0.10/24"`, `"nameserver": "10.0.0.53", "nameservers": ¦["1.1.1.1"], "ip": "10.0.0.10/24"`,
			ca + "network_config.nameservers: the container has other name servers already: they are one value"},
		{`"ip": "10.0.0.10/24"`, `"nameserver": ¦"dns", "ip": "10.0.0.10/24"`,
			ca + `network_config.nameserver: "dns" is not an IP address`},
		{extra, secondary(`"ip": "dhcp", "nameserver": ¦"1.1.1.1"`),
			ca + "secondary_network_config.nameserver: name servers are those of the container"},
		{caNetwork, nets(fixed, `"ip": "dhcp", "nameservers": ¦"1.1.1.1"`), "name servers are those of the container"},
		{extra, `"nameservers": ["1.1.1.1", ¦"fd00::53/64"]`, ca + `nameservers.1: "fd00::53/64" is not an IP address`},
		{extra, `"searchdomain": ¦"a_b"`, ca + `searchdomain: "a_b" is not a host name`},
		{extra, `"searchdomain": ["home.example", ¦1]`, ca + "searchdomain.1: must be a string"},

		// Who has to have a fixed address.
		{proxy, `"network_configs": [{"name": "a", "bridge": "b", "ip": ¦"dhcp"}, {"name": "c", "bridge": "b", ` +
			`"ip6": "auto"}], "application_script": "phoenix_hypervisor_lxc_102.sh"`,
			"lxc_configs.102.network_configs.0.ip: must be a fixed address, not dhcp"},
		{proxy, `"network_configs": [{"name": "a", "bridge": "b", "ip6": ¦"manual"}], ` +
			`"application_script": "phoenix_hypervisor_lxc_102.sh"`,
			"lxc_configs.102.network_configs.0.ip6: must be a fixed address, not manual"},
		{extra, secondary(`"ip6": "auto"`) + `, "firewall": {"ipfilter": ¦true}`,
			ca + "firewall.ipfilter: needs a fixed address, but secondary_network_config.ip6 is auto"},

		// Rules of a firewall.
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "source": ¦"10.0.0.1,fd00::1"}]}`,
			"is not a list of addresses and networks of one family"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "source": ¦"10.0.0.1,10.0.0.3-10.0.0.5"}]}`,
			"is not a list of addresses and networks of one family"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "source": ¦"10.0.0.1,lan"}]}`,
			"is not a list of addresses and networks of one family"},
		{extra, `"firewall": {"rules": [{"type": "in", "action": "ACCEPT", "source": "10.0.0.0/24", ` +
			`"dest": ¦"fd00::1"}]}`,
			ca + "firewall.rules.0.dest: is IPv6, and source IPv4: no packet has both"},
	})
}

// parseContainer returns a container with these keys beside those that it needs.
func parseContainer(t *testing.T, keys string) *Container {
	t.Helper()
	c, err := ParseContainer(103, []byte(`{"name": "x", "template": "t", "memory_mb": 16, "cores": 1,
		"storage_pool": "ab", "storage_size_gb": 1, `+keys+`}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestInterfaces(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	c := parseContainer(t, `"network_configs": [
		{"name": "eth0", "bridge": "vmbr0.20", "ip": "10.0.0.10/24", "gw": "10.0.0.1",
		 "ip6": "FD00::0A/64", "gw6": "fe80::1", "hwaddr": "02:00:00:00:00:0a", "tag": 20,
		 "trunks": [40, "30-32", 31, 33], "mtu": 1400, "rate": 12.50,
		 "link_down": false, "host_managed": true, "firewall": true, "nameserver": "fd00::53"},
		{"name": "eth1", "bridge": "vmbr1", "ip": "manual", "ip6": "auto", "trunks": "7;2-3;3", "link_down": true},
		{"name": "eth2", "bridge": "vmbr1", "ip6": "fd01::a/128", "gw6": "fd02::1"},
		{"name": "eth3", "bridge": "vmbr1", "ip": "10.0.5.10/32", "gw": "10.0.6.1", "trunks": []},
		{"name": "eth4", "bridge": "vmbr1", "ip": "dhcp", "ip6": "fd03::a/64", "gw6": "fd03::"}],
		"mac_address": "02:00:00:00:00:0A", "nameservers": ["fd00::53"], "searchdomain": "home.example, example.org"`)
	want := []Interface{
		{Name: "eth0", Bridge: "vmbr0.20", MAC: "02:00:00:00:00:0A",
			IPv4: Addressing{Prefix: prefix("10.0.0.10/24"), Gateway: addr("10.0.0.1")},
			IPv6: Addressing{Prefix: prefix("fd00::a/64"), Gateway: addr("fe80::1")},
			Tag:  20, Trunks: []VLANs{{30, 33}, {40, 40}}, MTU: 1400, Rate: 12.5,
			LinkDown: new(false), HostManaged: new(true), Firewall: new(true)},
		{Name: "eth1", Bridge: "vmbr1", IPv4: Addressing{Method: "manual"}, IPv6: Addressing{Method: "auto"},
			Trunks: []VLANs{{2, 3}, {7, 7}}, LinkDown: new(true)},
		{Name: "eth2", Bridge: "vmbr1", IPv6: Addressing{Prefix: prefix("fd01::a/128"), Gateway: addr("fd02::1")}},
		{Name: "eth3", Bridge: "vmbr1", Trunks: []VLANs{},
			IPv4: Addressing{Prefix: prefix("10.0.5.10/32"), Gateway: addr("10.0.6.1")}},
		{Name: "eth4", Bridge: "vmbr1", IPv4: Addressing{Method: "dhcp"},
			IPv6: Addressing{Prefix: prefix("fd03::a/64"), Gateway: addr("fd03::")}},
	}
	if !reflect.DeepEqual(c.Interfaces, want) {
		t.Errorf("got\n%+v\nwant\n%+v", c.Interfaces, want)
	}
	if got := fmt.Sprint(c.Nameservers, c.SearchDomains); got != "[fd00::53] [home.example example.org]" {
		t.Error(got)
	}
	if got := fmt.Sprint(c.Addresses()); got != "[10.0.0.10 fd00::a fd01::a 10.0.5.10 fd03::a]" {
		t.Error(got)
	}

	// The form of the scripts before phx, with the keys in any order.
	c = parseContainer(t, `"secondary_network_config": {"name": "eth1", "bridge": "vmbr1", "ip": "10.0.5.10/24",
			"gw": "10.0.5.1", "hwaddr": "02:00:00:00:00:0b"}, "mac_address": "",
		"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "dhcp", "hwaddr": "02:00:00:00:00:0a"}`)
	want = []Interface{
		{Name: "eth0", Bridge: "vmbr0", MAC: "02:00:00:00:00:0A", IPv4: Addressing{Method: "dhcp"}},
		{Name: "eth1", Bridge: "vmbr1", MAC: "02:00:00:00:00:0B",
			IPv4: Addressing{Prefix: prefix("10.0.5.10/24"), Gateway: addr("10.0.5.1")}},
	}
	if !reflect.DeepEqual(c.Interfaces, want) {
		t.Errorf("got\n%+v\nwant\n%+v", c.Interfaces, want)
	}
	if c.Address() != addr("10.0.5.10") || c.Reached().Name != "eth1" {
		t.Errorf("reached at %v, %s", c.Address(), c.Reached().Name)
	}
}

// An older pct would refuse the key, when half of the containers are made.
func TestHostManagedNeedsItsVersion(t *testing.T) {
	text := strings.Replace(base, proxy, nets(`"ip": "dhcp", "host_managed": true`), 1)
	for version, want := range map[string]string{
		"": "", "6.0.15": "",
		"6.0.14": "host_managed needs pve-container 6.0.15, and this host has 6.0.14: update Proxmox VE, " +
			"or leave it out",
	} {
		_, err := newParser(text, &Host{PCT: version}).file("f.json", false)
		if got := fmt.Sprint(err); (want == "") != (err == nil) || !strings.Contains(got, want) {
			t.Errorf("%s: %v", version, err)
		}
	}
}

// A MAC address is one value, wherever the file has it.
func TestMACFromEitherKey(t *testing.T) {
	for _, keys := range []string{
		`"mac_address": "02:00:00:00:00:0A", "network_config": {"name": "a", "bridge": "b", "ip": "dhcp"}`,
		`"network_config": {"name": "a", "bridge": "b", "ip": "dhcp", "hwaddr": "02:00:00:00:00:0a"}`,
		`"network_config": {"name": "a", "bridge": "b", "ip": "dhcp", "hwaddr": "02:00:00:00:00:0a"},
			"mac_address": "02:00:00:00:00:0A"`,
		`"network_configs": [{"name": "a", "bridge": "b", "ip": "dhcp", "hwaddr": ""}],
			"mac_address": "02:00:00:00:00:0A"`,
	} {
		if got := parseContainer(t, keys).Interfaces[0].MAC; got != "02:00:00:00:00:0A" {
			t.Errorf("%s: %s", keys, got)
		}
	}
}

// A gateway beside DHCP was passed on by the scripts before phx, and files have it.
func TestNetworkWarnings(t *testing.T) {
	text := strings.Replace(base, proxy, `"network_configs": [
		{"name": "a", "bridge": "b", "ip": "dhcp", "gw": "10.0.0.1", "ip6": "auto", "gw6": "fe80::1"},
		{"name": "c", "bridge": "b", "ip": "manual", "gw": "10.0.0.1", "ip6": "dhcp", "gw6": "fd00::1",
		 "firewall": false},
		{"name": "d", "bridge": "b", "ip": "10.0.5.1/24", "firewall": true}],
      "lxc_options": ["lxc.net.0.type: macvlan", "lxc.net.2.type=veth", "lxc.net.2.type=phys"],
      "firewall": {"enabled": true}`, 1)
	f := parse(t, text)
	var got []string
	for _, w := range f.Warnings {
		if w.Path != "lxc_configs.103.extra" {
			got = append(got, w.String())
		}
	}
	const none = "raw lines give it another type than veth, where Proxmox VE filters nothing: " +
		"the firewall is not in force there"
	want := []string{
		"37:3: lxc_configs.102.network_configs.0: " + none,
		"37:52: lxc_configs.102.network_configs.0.gw: with ip dhcp the gateway comes from there: passed over",
		"37:86: lxc_configs.102.network_configs.0.gw6: with ip6 auto the gateway comes from there: passed over",
		"38:54: lxc_configs.102.network_configs.1.gw: with ip manual " +
			"the container sets its gateway by itself: passed over",
		"38:88: lxc_configs.102.network_configs.1.gw6: with ip6 dhcp the gateway comes from there: passed over",
		"40:3: lxc_configs.102.network_configs.2: " + none,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for i, n := range f.Containers[102].Interfaces {
		if n.IPv4.Gateway.IsValid() || n.IPv6.Gateway.IsValid() {
			t.Errorf("interface %d has a gateway", i)
		}
	}
}
