package pve

import (
	"fmt"
	"testing"
)

func TestNets(t *testing.T) {
	values := map[string]string{"net10": "", "net2": "", "net0": "", "network": "", "hostname": "", "net": ""}
	if got := fmt.Sprint(Nets(values)); got != "[net0 net2 net10]" {
		t.Error(got)
	}
}

func TestSameInterface(t *testing.T) {
	for _, tt := range []struct {
		key, have, wanted string
		same              bool
	}{
		{"ip6", "FD00:0::A/64", "fd00::a/64", true},
		{"ip6", "fd00::a/64", "fd00::a/65", false},
		{"ip6", "auto", "fd00::a/65", false},
		{"gw6", "FE80::01", "fe80::1", true},
		{"gw6", "", "fe80::1", false},
		{"rate", "12.50", "12.5", true},
		{"rate", "", "12.5", false},
		{"tag", "020", "20", true},
		{"mtu", "1400", "1401", false},
		{"trunks", "30;20;20", "20;30", true},
		{"trunks", "20", "20;30", false},
		{"host-managed", "", "0", true},
		{"host-managed", "yes", "1", true},
		{"link_down", "0", "1", false},
	} {
		if got := sameValue(tt.key, tt.have, tt.wanted); got != tt.same {
			t.Errorf("%s %q and %q: %t", tt.key, tt.have, tt.wanted, got)
		}
	}
}

// What pct says is in force, and the running container does not have yet.
func TestAppliedAtStart(t *testing.T) {
	const eth0 = "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=10.0.0.1/24"
	for _, tt := range []struct {
		have, wanted string
		later        bool
	}{
		{eth0, eth0 + ",tag=5,rate=3,firewall=1,link_down=1,ip6=auto", false},
		{eth0, "name=eth1,bridge=vmbr1,hwaddr=BC:24:11:00:00:02,ip=manual", false},
		{eth0, eth0 + ",mtu=1400", true},
		{eth0 + ",mtu=1400", eth0, true},
		{eth0 + ",mtu=1400", eth0 + ",mtu=1400,tag=5", false},
		{eth0, eth0 + ",trunks=3", true},
		{eth0, eth0 + ",host-managed=1", true},
		{eth0, eth0 + ",host-managed=0", false},
		{eth0, "name=eth0,bridge=vmbr0,ip=dhcp", true},
		{eth0, eth0 + ",ip6=dhcp", true},
		{eth0 + ",host-managed=1", "name=eth0,bridge=vmbr0,ip=dhcp,host-managed=1", false},
		{"", eth0 + ",trunks=3", false},
		{"", eth0 + ",mtu=1400", true},
		{"", "name=eth0,bridge=vmbr0,ip=dhcp", true},
		{"", "name=eth0,bridge=vmbr0,ip=dhcp,host-managed=1", false},
	} {
		s := &Settings{}
		s.Set("memory", "512")
		s.Set("net1", tt.wanted)
		got := s.AppliedAtStart(&Conf{Section: Section{Values: map[string]string{"net1": tt.have}}})
		if (len(got) == 1 && got[0] == "net1") != tt.later || len(got) > 1 {
			t.Errorf("%q to %q: %q", tt.have, tt.wanted, got)
		}
	}
}

// A restart that is needed for raw lines and for an interface is needed for both,
// until it is there.
func TestRestartForInterfaces(t *testing.T) {
	b := newBench(t, "cores: 1\nlxc.group: phx-restart 1000\n", Record{}, "running")
	for _, net := range []string{"net1", "net0", "net1"} {
		if err := b.MarkRestart(t.Context(), net); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(b.RestartRequired()); got != "[lxc net0 net1]" {
		t.Errorf("%s in\n%s", got, b.text())
	}
	if err := b.haveStarted(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.RestartRequired(); len(got) > 0 || b.text() != "cores: 1\n" {
		t.Errorf("%q in\n%s", got, b.text())
	}
	if since, waiting := restartOf(ParseConf([]byte("lxc.group: phx-restart 1000 net3 net4\n"))); since != 1000 ||
		fmt.Sprint(waiting) != "[net3 net4]" {
		t.Errorf("%d, %q", since, waiting)
	}
}

// pct does not know net10 as an interface when it is to take it out of a running
// container.
func TestLaterInterfacesAreRemovedAtStart(t *testing.T) {
	for net, pending := range map[string]bool{"net9": false, "net10": true, "net31": true} {
		s := &Settings{}
		s.Remove(net, "")
		conf := &Conf{Section: Section{Values: map[string]string{net: "name=x"}}}
		s.Apply(conf, true)
		if got := len(conf.Deleted) == 1; got != pending || (conf.Values[net] != "") != pending {
			t.Errorf("%s: %q, %q", net, conf.Deleted, conf.Values)
		}
	}
}

func TestCloneHasOtherMACs(t *testing.T) {
	from := &Snapshot{Section: Section{Values: map[string]string{
		"net0": "name=a,hwaddr=BC:24:11:00:00:01", "net3": "name=b,hwaddr=BC:24:11:00:00:02"}}}
	conf := from.Clone("x", "lab")
	for _, net := range []string{"net0", "net3"} {
		if got := ParseProperties(conf.Values[net]).Get("hwaddr"); got != "(generated)" {
			t.Errorf("%s: %s", net, conf.Values[net])
		}
	}
}
