package pipetest

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

func init() { keyCases = append(keyCases, networkCases...) }

// nics are network_configs with the plain container's own interface, and these
// further ones.
func nics(more ...map[string]any) map[string]any {
	all := []any{map[string]any{"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.50/24", "gw": "10.0.0.1"}}
	for _, n := range more {
		all = append(all, n)
	}
	return map[string]any{"network_config": nil, "network_configs": all}
}

// nic is an interface with these keys beside a name, a bridge and a MAC address.
func nic(keys map[string]any) map[string]any {
	n := map[string]any{"name": "eth1", "bridge": "vmbr1", "hwaddr": "02:00:00:00:00:01"}
	for key, value := range keys {
		n[key] = value
	}
	return n
}

// with0 is the plain container with further keys of its interface.
func with0(keys map[string]any) map[string]any {
	n := map[string]any{"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.50/24", "gw": "10.0.0.1"}
	for key, value := range keys {
		n[key] = value
	}
	return map[string]any{"network_config": n}
}

const (
	net0 = "name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=BC:24:11:00:05:00,ip=10.0.0.50/24,"
	net1 = "name=eth1,bridge=vmbr1,hwaddr=02:00:00:00:00:01,"

	record0 = " +nets=net0,net0.ip,net0.gw"
)

// added is the case of a sub-key that the plain container's interface gets.
func added(name string, keys map[string]any, set, words, restart string, conf string) keyCase {
	return keyCase{name: "network " + name, keys: with0(keys), calls: "set 500 --net0 " + net0 + "type=veth," + set,
		record: record0 + words, restart: restart, conf: []string{"net0: " + conf}}
}

var networkCases = []keyCase{
	added("ip6 and gw6", map[string]any{"ip6": "FD00::0:50/64", "gw6": "fe80::1"}, "ip6=fd00::50/64,gw6=fe80::1",
		",net0.ip6,net0.gw6", "", "name=eth0,bridge=vmbr0,gw=10.0.0.1,gw6=fe80::1,hwaddr=BC:24:11:00:05:00,"+
			"ip=10.0.0.50/24,ip6=fd00::50/64,type=veth"),
	added("ip6 auto", map[string]any{"ip6": "auto"}, "ip6=auto", ",net0.ip6", "", net0+"ip6=auto,type=veth"),
	added("ip6 dhcp", map[string]any{"ip6": "dhcp"}, "ip6=dhcp", ",net0.ip6", "net0", net0+"ip6=dhcp,type=veth"),
	added("tag", map[string]any{"tag": 20}, "tag=20", ",net0.tag", "", net0+"tag=20,type=veth"),
	added("trunks", map[string]any{"trunks": []any{"30-32", 20}}, "trunks=20;30;31;32", ",net0.trunks", "net0",
		net0+"trunks=20;30;31;32,type=veth"),
	added("mtu", map[string]any{"mtu": 1400}, "mtu=1400", ",net0.mtu", "net0",
		"name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=BC:24:11:00:05:00,ip=10.0.0.50/24,mtu=1400,type=veth"),
	added("rate", map[string]any{"rate": 12.5}, "rate=12.5", ",net0.rate", "", net0+"rate=12.5,type=veth"),
	added("link_down", map[string]any{"link_down": true}, "link_down=1", ",net0.link_down", "",
		net0+"link_down=1,type=veth"),
	added("host_managed", map[string]any{"host_managed": true}, "host-managed=1", ",net0.host-managed", "net0",
		"name=eth0,bridge=vmbr0,gw=10.0.0.1,host-managed=1,hwaddr=BC:24:11:00:05:00,ip=10.0.0.50/24,type=veth"),
	added("firewall", map[string]any{"firewall": true}, "firewall=1", ",net0.firewall", "",
		"name=eth0,bridge=vmbr0,firewall=1,gw=10.0.0.1,hwaddr=BC:24:11:00:05:00,ip=10.0.0.50/24,type=veth"),

	{name: "network, sub-keys taken out of the configuration", before: with0(map[string]any{"ip6": "fd00::50/64",
		"gw6": "fd00::1", "tag": 20, "rate": 100, "link_down": true, "firewall": true}),
		calls: "set 500 --net0 " + net0 + "type=veth", record: record0, conf: []string{"net0: " + net0 + "type=veth"}},
	{name: "network, sub-keys for the next start taken out of the configuration",
		before: with0(map[string]any{"mtu": 1400, "trunks": "20;30", "host_managed": true}),
		calls:  "set 500 --net0 " + net0 + "type=veth", record: record0, restart: "net0",
		conf: []string{"net0: " + net0 + "type=veth"}},

	{name: "network hwaddr", keys: map[string]any{"mac_address": nil, "network_config": map[string]any{"name": "eth0",
		"bridge": "vmbr0", "ip": "10.0.0.50/24", "gw": "10.0.0.1", "hwaddr": "bc:24:11:00:05:01"}},
		calls: "set 500 --net0 name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=BC:24:11:00:05:01,ip=10.0.0.50/24,type=veth"},
	{name: "network manual", keys: map[string]any{"network_config": map[string]any{"name": "eth0",
		"bridge": "vmbr0.20", "ip": "manual"}},
		calls: "set 500 --net0 name=eth0,bridge=vmbr0.20,hwaddr=BC:24:11:00:05:00,ip=manual,type=veth"},
	{name: "network with what was added by hand", nothing: true,
		byHand: [2]string{"type=veth", "ip6=fd00::9/64,tag=7,type=veth"},
		conf:   []string{"net0: " + net0 + "ip6=fd00::9/64,tag=7,type=veth"}},
	{name: "network in another notation", before: with0(map[string]any{"ip6": "fd00::50/64", "trunks": []any{5, 6}}),
		keys:   with0(map[string]any{"ip6": "fd00::50/64", "trunks": []any{5, 6}, "rate": 10}),
		byHand: [2]string{"ip6=fd00::50/64,trunks=5;6", "ip6=FD00:0:0::50/64,rate=10.0,trunks=6;5"},
		record: record0 + ",net0.ip6,net0.trunks,net0.rate", conf: []string{"net0: " + net0 +
			"ip6=FD00:0:0::50/64,rate=10.0,trunks=6;5,type=veth"}},

	{name: "secondary_network_config",
		keys:  map[string]any{"secondary_network_config": nic(map[string]any{"ip": "10.0.1.50/24", "gw": "10.0.1.1"})},
		calls: "set 500 --net1 " + net1 + "ip=10.0.1.50/24,gw=10.0.1.1", record: record0 + ",net1,net1.ip,net1.gw",
		conf: []string{"net1: name=eth1,bridge=vmbr1,gw=10.0.1.1,hwaddr=02:00:00:00:00:01,ip=10.0.1.50/24,type=veth"}},
	{name: "network_configs", keys: nics(nic(map[string]any{"ip6": "fd00:1::50/64", "tag": 5})),
		calls: "set 500 --net1 " + net1 + "ip6=fd00:1::50/64,tag=5", record: record0 + ",net1,net1.ip6,net1.tag",
		conf: []string{"net1: " + net1 + "ip6=fd00:1::50/64,tag=5,type=veth"}},
	{name: "network_configs in place of network_config", nothing: true, keys: nics(),
		conf: []string{"net0: " + net0 + "type=veth"}},
	{name: "interface of which only the running container knows nothing yet",
		keys:  nics(nic(map[string]any{"ip": "dhcp", "mtu": 1400})),
		calls: "set 500 --net1 " + net1 + "ip=dhcp,mtu=1400", record: record0 + ",net1,net1.ip,net1.mtu",
		restart: "net1", conf: []string{"net1: " + net1 + "ip=dhcp,mtu=1400,type=veth"}},
	{name: "interface taken out of the configuration", before: nics(nic(map[string]any{"ip": "10.0.1.50/24"})),
		calls: "set 500 --delete net1", record: record0, conf: []string{"net0: " + net0 + "type=veth"},
		without: []string{"net1:", "delete:"}},
	{name: "eleventh interface taken out of the configuration", before: nics(ten()...), keys: nics(ten()[:9]...),
		calls: "set 500 --delete net10", restart: "net10", conf: []string{"delete: net10"},
		record: record0 + strings.Join(words(9), "")},

	{name: "macvlan by raw lines", keys: map[string]any{"lxc_options": []string{"lxc.net.0.type: macvlan",
		"lxc.net.0.link: vmbr0", "lxc.net.0.macvlan.mode: bridge"}}, record: " +lxc=HASHES", restart: "lxc",
		conf: []string{"net0: " + net0 + "type=veth", "lxc.net.0.type: macvlan", "lxc.net.0.link: vmbr0",
			"lxc.net.0.macvlan.mode: bridge", "lxc.net.0.script.up: "}},
	{name: "searchdomain and nameservers of the container",
		keys:    map[string]any{"searchdomain": "home.example", "nameservers": []string{"fd00::53", "10.0.0.53"}},
		calls:   "set 500 --nameserver fd00::53 10.0.0.53 --searchdomain home.example",
		restart: "nameserver searchdomain"},
}

// ten are net1 to net10.
func ten() []map[string]any {
	var all []map[string]any
	for i := range 10 {
		all = append(all, map[string]any{"name": "more" + string(rune('a'+i)), "bridge": "vmbr1", "ip": "manual",
			"hwaddr": "02:00:00:00:00:0" + string("0123456789"[i])})
	}
	return all
}

// words are those of the record for net1 to netN.
func words(n int) []string {
	var all []string
	for i := range n {
		option := ",net" + string("123456789"[i])
		all = append(all, option+option+".ip")
	}
	return all
}

// What others have given a container, and the configuration does not mention, is
// said and stays.
func TestInterfaceOfOthersStays(t *testing.T) {
	h := newHost(t)
	h.configure(nil)
	if _, _, status, stderr := h.run(); status != 0 {
		t.Fatal(stderr)
	}
	if out, status := h.bash(`"$PHX_PCT" set 500 --net1 name=eth1,bridge=vmbr1,ip=10.0.1.50/24`); status != 0 {
		t.Fatal(out)
	}
	before := h.read("host/pve/lxc/500.conf")
	for _, args := range [][]string{{"--dry-run"}, {}, {}} {
		_, calls, status, stderr := h.run(args...)
		const said = "net1 (eth1 at vmbr1) is not in the configuration, and stays, because phx has not made it: " +
			"to remove it, run: pct set 500 --delete net1"
		same := h.read("host/pve/lxc/500.conf") == before
		if status != 0 || len(calls) > 0 || !strings.Contains(stderr, said) || !same {
			t.Fatalf("%v: status %d, calls %v\n%s", args, status, calls, stderr)
		}
	}
	if out, status := h.bash(`"$PHX_PCT" set 500 --delete net1`); status != 0 {
		t.Fatal(out)
	}
	if _, calls, status, stderr := h.run(); status != 0 || len(calls) > 0 || strings.Contains(stderr, "net1") {
		t.Errorf("status %d, calls %v\n%s", status, calls, stderr)
	}
}

// ready returns the event ct.ready of a container.
func ready(events []map[string]any, ctid float64) map[string]any {
	for _, ev := range events {
		if ev["event"] == "ct.ready" && ev["ctid"] == ctid {
			return ev
		}
	}
	return nil
}

// A clone brings along all interfaces of its source. Those that are not its own go
// before its first start: their addresses are the source's.
func TestCloneLosesInterfacesOfItsSource(t *testing.T) {
	source := func(more map[string]any) map[string]any {
		c := map[string]any{"name": "base", "template": "local:vztmpl/debian-12-standard_12.12-1_amd64.tar.zst",
			"memory_mb": 512, "cores": 1, "storage_pool": "lab", "storage_size_gb": 4, "unprivileged": true,
			"template_snapshot_name": "golden"}
		for key, value := range more {
			c[key] = value
		}
		return c
	}
	interfaces := func(n int) any {
		return []any{
			map[string]any{"name": "eth0", "bridge": "vmbr0", "ip": fmt.Sprintf("10.0.0.%d/24", n), "tag": 7},
			map[string]any{"name": "eth1", "bridge": "vmbr1", "ip6": fmt.Sprintf("fd00:1::%d/64", n)},
			map[string]any{"name": "eth2", "bridge": "vmbr1", "ip6": fmt.Sprintf("fd00:2::%d/64", n)},
		}
	}
	h := newHost(t)
	write := func(own any) {
		clone := source(map[string]any{"name": "clone", "clone_from_ctid": 600, "network_configs": own})
		delete(clone, "template")
		delete(clone, "template_snapshot_name")
		text, err := json.Marshal(map[string]any{"lxc_configs": map[string]any{
			"600": source(map[string]any{"network_configs": interfaces(60)}), "601": clone}})
		if err != nil {
			t.Fatal(err)
		}
		h.write("phoenix_lxc_configs.json", string(text))
	}
	write([]any{map[string]any{"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.61/24"},
		map[string]any{"name": "eth1", "bridge": "vmbr0", "ip6": "fd00:1::61/64"}})
	events, calls, status, stderr := h.run("--dry-run")
	told, _, _ := previewed(events, bin+"/pct")
	if status != 3 || len(calls) > 0 || !strings.Contains(join(told), " --delete net2") {
		t.Fatalf("dry run: status %d\n%s\n%s", status, join(told), stderr)
	}
	events, calls, status, stderr = h.run()
	if status != 0 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	set, start := -1, -1
	for i, call := range calls {
		switch words := strings.Join(call, " "); {
		case strings.HasPrefix(words, "set 601 ") && strings.HasSuffix(words, " --delete net2"):
			set = i
		case words == "start 601":
			start = i
		}
	}
	if set < 0 || start < set {
		t.Errorf("the clone was started with an interface of its source:\n%s", join(calls))
	}
	conf := regexp.MustCompile("BC:24:11:[0-9A-F:]{8}").ReplaceAllString(h.read("host/pve/lxc/601.conf"), "MAC")
	for _, line := range []string{"net0: name=eth0,bridge=vmbr0,hwaddr=MAC,ip=10.0.0.61/24,type=veth",
		"net1: name=eth1,bridge=vmbr0,hwaddr=MAC,ip6=fd00:1::61/64,type=veth"} {
		if !strings.Contains(conf, line) {
			t.Errorf("the clone lacks %s:\n%s", line, conf)
		}
	}
	if strings.Contains(conf, "net2") {
		t.Errorf("the clone has net2:\n%s", conf)
	}
	if ips := fmt.Sprint(ready(events, 601)["ips"]); ips != "[10.0.0.61 fd00:1::61]" {
		t.Errorf("ips: %s", ips)
	}
	for _, args := range [][]string{{}, {"--dry-run"}} {
		if _, calls, status, stderr := h.run(args...); status != 0 || len(calls) > 0 {
			t.Errorf("second run %v: status %d, calls\n%s\n%s", args, status, join(calls), stderr)
		}
	}

	// Also when the run that has cloned it is over before they have gone.
	if out, status := h.bash(`"$PHX_PCT" stop 601 && "$PHX_PCT" destroy 601`); status != 0 {
		t.Fatal(out)
	}
	failing := h.with("PHX_LAB_FAIL=set 601")
	if _, _, status, _ := failing.run(); status != 1 {
		t.Fatalf("status %d", status)
	}
	if out, status := h.bash(`"$PHX_PCT" set 601 --net2 name=eth2,bridge=vmbr1,ip6=fd00:2::60/64`); status != 0 {
		t.Fatal(out)
	}
	_, calls, status, stderr = h.run()
	if status != 0 || !strings.Contains(join(calls), "--delete net2") {
		t.Errorf("after a run that failed: status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
}

// A macvlan has no port that Proxmox VE could filter: that is said, and its flag is
// off.
func TestFirewallOfMacvlanIsNotInForce(t *testing.T) {
	h := newHost(t)
	keys := nics(nic(map[string]any{"ip": "10.0.1.50/24"}))
	keys["lxc_options"] = []string{"lxc.net.0.type: macvlan", "lxc.net.0.link: vmbr0"}
	keys["firewall"] = map[string]any{"enabled": true}
	h.configure(keys)
	h.write("host/pve/firewall/cluster.fw", "[OPTIONS]\nenable: 1\n")
	for range 2 {
		events, _, status, stderr := h.run()
		conf := h.read("host/pve/lxc/500.conf")
		if status != 0 || !strings.Contains(conf, "\nnet1: name=eth1,bridge=vmbr1,firewall=1,") ||
			strings.Contains(conf, "bridge=vmbr0,firewall=1") {
			t.Fatalf("status %d\n%s\n%s", status, stderr, conf)
		}
		const warned = "network_configs.0: raw lines give it another type than veth"
		const said = "net0 is no port of a bridge, because of its raw lines: the firewall is not in force there"
		if ready(events, 500)["firewall_not_in_force"] != true || !strings.Contains(stderr, said) ||
			!strings.Contains(stderr, warned) {
			t.Errorf("%v\n%s", ready(events, 500), stderr)
		}
	}
}

// An interface that is to obey a firewall made by hand, of a container made by hand,
// is as any other firewall: not put in force until that is asked for.
func TestFilterOfAnInterfaceWaitsForLeave(t *testing.T) {
	h := newHost(t)
	h.configure(nil)
	if _, _, status, stderr := h.run(); status != 0 {
		t.Fatal(stderr)
	}
	h.write("host/pve/firewall/500.fw", "[OPTIONS]\n\nenable: 1\npolicy_in: DROP\n")
	h.write("host/pve/firewall/cluster.fw", "[OPTIONS]\nenable: 1\n")
	h.configure(with0(map[string]any{"firewall": true}))
	for range 2 {
		events, calls, status, stderr := h.run()
		if status != 0 || len(calls) > 0 || ready(events, 500)["firewall_not_in_force"] != true ||
			!strings.Contains(stderr, "its firewall is not in force, and stays so") {
			t.Fatalf("status %d, calls\n%s\n%s", status, join(calls), stderr)
		}
	}
	_, calls, status, stderr := h.run("--enforce-firewall")
	if status != 0 || !strings.HasSuffix(join(calls), ",firewall=1") {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
	events, calls, status, stderr := h.run()
	if status != 0 || len(calls) > 0 || ready(events, 500)["firewall_not_in_force"] != nil {
		t.Errorf("status %d, calls\n%s\n%s", status, join(calls), stderr)
	}
}
