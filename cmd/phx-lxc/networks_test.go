package main

import (
	"fmt"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// networked is a container with these interfaces and further keys.
func networked(t *testing.T, interfaces, keys string) *config.Container {
	t.Helper()
	text := strings.Replace(wanted, `"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.153/24",
		"gw": "10.0.0.1", "nameservers": "10.0.0.53 1.1.1.1"},`, `"network_configs": [`+interfaces+`],`+keys, 1)
	if text == wanted {
		t.Fatal("nothing to replace")
	}
	return container(t, text)
}

// nets returns what settings makes of interfaces.
func netsOf(c *config.Container, conf string, fw *config.Firewall, before pve.Record) string {
	s := &pve.Settings{}
	addInterfaces(s, c, pve.ParseConf([]byte(conf)).Next(), fw, before.Hashes(pve.NetsWord))
	return list(s)
}

const (
	eth0 = `{"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.153/24"}`
	eth1 = `{"name": "eth1", "bridge": "vmbr1", "ip6": "fd00::153/64"}`
)

func TestInterfaces(t *testing.T) {
	const (
		net0 = "net0: name=eth0,bridge=vmbr0,hwaddr=52:54:00:67:89:A1,ip=10.0.0.153/24,type=veth\n"
		net1 = "net1: name=eth1,bridge=vmbr1,hwaddr=BC:24:11:00:00:01,ip6=fd00::153/64,type=veth\n"
	)
	on, off := &config.Firewall{Enabled: true}, &config.Firewall{}
	for _, tt := range []struct {
		name, interfaces, keys, conf string
		fw                           *config.Firewall
		record, want                 string
	}{
		{name: "none is there", interfaces: eth0 + "," + eth1,
			want: "net0 name=eth0,bridge=vmbr0,hwaddr=52:54:00:67:89:A1,ip=10.0.0.153/24\n" +
				"net1 name=eth1,bridge=vmbr1,ip6=fd00::153/64"},
		{name: "all are there", interfaces: eth0 + "," + eth1, conf: net0 + net1},
		{name: "one waits for a start", interfaces: eth0 + "," + eth1, conf: net0 + "[pve:pending]\n" + net1},
		{name: "one is taken out at a start", interfaces: eth0 + "," + eth1,
			conf: net0 + net1 + "[pve:pending]\ndelete: net1\n",
			want: "net1 name=eth1,bridge=vmbr1,ip6=fd00::153/64"},
		{name: "MAC addresses stay", interfaces: eth0 + "," + eth1,
			conf: net0 + strings.Replace(net1, "vmbr1", "vmbr0", 1),
			want: "net1 name=eth1,bridge=vmbr1,hwaddr=BC:24:11:00:00:01,ip6=fd00::153/64,type=veth"},
		{name: "that of others stays", interfaces: eth0, conf: net0 + net1, record: "net0,net0.ip"},
		{name: "that of phx goes", interfaces: eth0, conf: net0 + net1, record: "net0,net1,net1.ip6",
			want: "net1 removed: eth1 at vmbr1 is not in the configuration"},
		{name: "a gap", interfaces: eth0, conf: net0 + strings.Replace(net1, "net1", "net7", 1), record: "net7",
			want: "net7 removed: eth1 at vmbr1 is not in the configuration"},
		{name: "the address of one family goes", interfaces: eth0,
			conf: strings.Replace(net0, "type", "ip6=fd00::1/64,gw6=fe80::1,type", 1), record: "net0.ip6",
			want: "net0 name=eth0,bridge=vmbr0,hwaddr=52:54:00:67:89:A1,ip=10.0.0.153/24,gw6=fe80::1,type=veth"},
		{name: "no gateway beside auto", interfaces: `{"name": "eth0", "bridge": "vmbr0", "ip6": "auto"}`,
			conf: "net0: name=eth0,bridge=vmbr0,hwaddr=52:54:00:67:89:A1,ip6=fd00::1/64,gw6=fe80::1,type=veth\n",
			want: "net0 name=eth0,bridge=vmbr0,hwaddr=52:54:00:67:89:A1,ip6=auto,type=veth"},
		{name: "no trunks", interfaces: `{"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.153/24", "trunks": []}`,
			conf: strings.Replace(net0, "type", "trunks=3;4,type", 1),
			want: "net0 name=eth0,bridge=vmbr0,hwaddr=52:54:00:67:89:A1,ip=10.0.0.153/24,type=veth"},

		// The firewall.
		{name: "its firewall is on", interfaces: eth0 + "," + eth1, conf: net0 + net1, fw: on,
			want: "net0 name=eth0,bridge=vmbr0,hwaddr=52:54:00:67:89:A1,ip=10.0.0.153/24,type=veth,firewall=1\n" +
				"net1 name=eth1,bridge=vmbr1,hwaddr=BC:24:11:00:00:01,ip6=fd00::153/64,type=veth,firewall=1"},
		{name: "its firewall is off", interfaces: eth0 + "," + eth1, conf: net0 + net1, fw: off},
		{name: "one says no", conf: net0 + net1, fw: on,
			interfaces: strings.Replace(eth0, "}", `, "firewall": false}`, 1) + "," + eth1,
			want:       "net1 name=eth1,bridge=vmbr1,hwaddr=BC:24:11:00:00:01,ip6=fd00::153/64,type=veth,firewall=1"},
		{name: "one says yes", conf: net0 + net1, fw: off,
			interfaces: eth0 + "," + strings.Replace(eth1, "}", `, "firewall": true}`, 1),
			want:       "net1 name=eth1,bridge=vmbr1,hwaddr=BC:24:11:00:00:01,ip6=fd00::153/64,type=veth,firewall=1"},
		{name: "one is a macvlan", conf: strings.Replace(net0, "type", "firewall=1,type", 1) + net1, fw: on,
			interfaces: eth0 + "," + eth1, keys: `"lxc_options": ["lxc.net.0.type: macvlan"],`,
			want: "net0 name=eth0,bridge=vmbr0,hwaddr=52:54:00:67:89:A1,ip=10.0.0.153/24,firewall=0,type=veth\n" +
				"net1 name=eth1,bridge=vmbr1,hwaddr=BC:24:11:00:00:01,ip6=fd00::153/64,type=veth,firewall=1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := networked(t, tt.interfaces, tt.keys)
			got := netsOf(c, tt.conf, tt.fw, pve.Record{pve.NetsWord: tt.record})
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// The record of a container with no more than could always be configured stays as
// it was.
func TestRecordOfInterfaces(t *testing.T) {
	for _, tt := range []struct{ interfaces, before, want string }{
		{eth0, "", ""},
		{strings.Replace(eth0, "}", `, "gw": "10.0.0.1", "firewall": true}`, 1), "",
			"net0,net0.ip,net0.gw,net0.firewall"},
		{eth0, "net1", "net0,net0.ip"},
		{eth0 + "," + eth1, "", "net0,net0.ip,net1,net1.ip6"},
		{`{"name": "eth0", "bridge": "vmbr0", "ip": "dhcp", "tag": 4, "trunks": "5-7", "mtu": 99, "rate": 0.5,
			"link_down": false, "host_managed": false}`, "",
			"net0,net0.ip,net0.tag,net0.trunks,net0.mtu,net0.rate,net0.link_down,net0.host-managed"},
	} {
		c := networked(t, tt.interfaces, "")
		if got := netRecord(c, pve.Record{pve.NetsWord: tt.before}); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.interfaces, got, tt.want)
		}
	}
	c := networked(t, strings.Replace(eth0, "}", `, "firewall": true}`, 1), `"lxc_options": ["lxc.net.0.type=phys"],`)
	if got := netRecord(withoutFilters(c), nil); got != "" || c.Interfaces[0].Firewall == nil {
		t.Errorf("%q", got)
	}
}

// A veth that is none for LXC must not be given to Proxmox VE's script.
func TestScriptOfMacvlanIsEmpty(t *testing.T) {
	for options, want := range map[string]string{
		`"lxc.net.1.type: macvlan", "lxc.net.1.link: vmbr1"`: "[lxc.net.1.type: macvlan lxc.net.1.link: vmbr1 " +
			"lxc.net.1.script.up: ]",
		`"lxc.net.1.type: macvlan", "lxc.net.1.script.up: /x"`: "[lxc.net.1.type: macvlan lxc.net.1.script.up: /x]",
		`"lxc.net.1.type: veth"`:                               "[lxc.net.1.type: veth]",
		`"lxc.net.2.type: macvlan"`:                            "[lxc.net.2.type: macvlan]",
	} {
		c := networked(t, eth0+","+eth1, `"lxc_options": [`+options+`],`)
		if got := fmt.Sprint(rawLines(c)); got != want {
			t.Errorf("%s: %s, want %s", options, got, want)
		}
	}
}

// An interface that is to be filtered and is not filtered yet is enough for a
// firewall not to be in force.
func TestFirewallFlags(t *testing.T) {
	const (
		first   = "net0: name=eth0,firewall=1\nnet1: name=eth1\n"
		both    = "net0: name=eth0,firewall=1\nnet1: name=eth1,firewall=1\n"
		macvlan = `"lxc_options": ["lxc.net.1.type: macvlan"],`
	)
	unfiltered := strings.Replace(eth1, "}", `, "firewall": false}`, 1)
	for _, tt := range []struct {
		interfaces, keys, conf string
		want                   bool
	}{
		{eth0 + "," + eth1, "", both, true},
		{eth0 + "," + eth1, "", strings.Replace(both, "=1", "=0", 1), false},
		{eth0 + "," + eth1, "", first, false},
		{eth0 + "," + eth1, "", "net0: name=eth0,firewall=1\n", true}, // net1 is still to be made
		{eth0 + "," + unfiltered, "", first, true},
		{eth0 + "," + eth1, macvlan, first, true},
	} {
		c := networked(t, tt.interfaces, tt.keys)
		if got := hasFirewallFlags(c, pve.ParseConf([]byte(tt.conf))); got != tt.want {
			t.Errorf("%s, %s: %t", tt.interfaces, tt.conf, got)
		}
	}
}

func TestFlowsOfBothFamilies(t *testing.T) {
	p := testPlan
	p.Services = []config.Service{{Name: "git", URL: "http://[fd00::50]:3000", CTID: 500},
		{Name: "old", URL: "http://10.0.0.51:3000", CTID: 501}}
	p.Gateway = &config.Place{CTID: 101, IP: "10.0.0.153", Also: []string{"fd00::153"}}
	p.Proxy = &config.Place{CTID: 102, IP: "fd00::12"}
	p.CA = &config.Place{CTID: 103, IP: "10.0.0.10", Also: []string{"fd00::10"}}
	var got []string
	for _, f := range flowsOf(p) {
		got = append(got, fmt.Sprintf("%v from %v", f, f.tcp.Source))
	}
	want := []string{
		"clients -> gateway (10.0.0.153 port 80) from invalid IP",
		"clients -> gateway (10.0.0.153 port 443) from invalid IP",
		"clients -> gateway (fd00::153 port 80) from invalid IP",
		"clients -> gateway (fd00::153 port 443) from invalid IP",
		"gateway -> proxy (fd00::12 port 443) from fd00::153",
		"gateway -> CA (10.0.0.10 port 9000) from 10.0.0.153",
		"proxy -> CA (fd00::10 port 9000) from fd00::12",
		"CA -> proxy (fd00::12 port 443) from fd00::10",
		"proxy -> service git (fd00::50 port 3000) from fd00::12",
		"proxy -> service old (10.0.0.51 port 3000) from invalid IP",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	// The gateway, whose second interface has the address of IPv6.
	c := networked(t, eth0+","+eth1, "")
	const drop = "[OPTIONS]\npolicy_in: DROP\n[RULES]\nIN ACCEPT -i net0\n"
	cut := cutFlows(p, c, []byte(drop))
	if len(cut) != 2 || !strings.HasPrefix(cut[0], "clients -> gateway (fd00::153 port 80): cut by policy_in DROP; ") {
		t.Errorf("got\n%s", strings.Join(cut, "\n"))
	}
	if cut := cutFlows(p, c, []byte(drop+"IN ACCEPT -i net1 -dest fd00::/64 -p tcp -dport 80,443\n")); cut != nil {
		t.Errorf("got\n%s", strings.Join(cut, "\n"))
	}
	cut = cutFlows(p, c, []byte("[OPTIONS]\nndp: 0\npolicy_in: DROP\n[RULES]\nIN ACCEPT -p tcp\n"))
	if len(cut) != 2 || !strings.Contains(cut[0], "(fd00::153 port 80): cannot be known, because of ndp: 0") {
		t.Errorf("got\n%s", strings.Join(cut, "\n"))
	}
	c = networked(t, eth0+","+strings.Replace(eth1, "}", `, "firewall": false}`, 1), "")
	if cut := cutFlows(p, c, []byte(drop)); cut != nil {
		t.Errorf("where nothing is filtered:\n%s", strings.Join(cut, "\n"))
	}
}
