package main

import (
	"slices"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/config"
)

func TestConfiguredRules(t *testing.T) {
	c := containerWith(t, `"firewall": {"enabled": true, "rules": [
		{"type": "in", "action": "ACCEPT", "source": "10.0.0.0/24", "dest": "10.0.0.2",
			"proto": "tcp", "port": "80:85,443", "comment": " web "},
		{"type": "out", "action": "DROP", "proto": "udp"},
		{"type": "group", "action": "ssh"},
		{"type": "out", "action": "DROP", "proto": "udp", "comment": "again"}]}`)
	want := `[OPTIONS]

enable: 1

[RULES]

IN ACCEPT -source 10.0.0.0/24 -dest 10.0.0.2 -p tcp -dport 80:85,443 # web
OUT DROP -p udp
GROUP ssh

`
	if got := string(pveFirewall(c.Firewall).Rewrite(nil, nil)); got != want {
		t.Errorf("file\n%s", got)
	}
}

var testPlan = config.Plan{
	Domain: "internal.example",
	Services: []config.Service{
		{Name: "gateway", Host: "gateway.internal.example", URL: "http://10.0.0.153:8080", CTID: 101},
		{Name: "ca", Host: "ca.internal.example", URL: "https://10.0.0.10:9001", CTID: 103},
		{Name: "git", Host: "git.internal.example", URL: "http://10.0.0.50:3000", CTID: 500},
	},
	CA:      &config.Place{CTID: 103, IP: "10.0.0.10"},
	Proxy:   &config.Place{CTID: 102, IP: "10.0.0.12"},
	Gateway: &config.Place{CTID: 101, IP: "10.0.0.153"},
}

func TestFlows(t *testing.T) {
	var got []string
	for _, f := range flowsOf(testPlan) {
		got = append(got, f.String())
	}
	// What no container serves begins at the proxy, and ends nowhere.
	other := testPlan
	other.Proxy = &config.Place{CTID: 102, IP: "10.0.0.12", Also: []string{"fd00::12"}}
	other.Services = []config.Service{{Name: "nas", URL: "https://[fd00::9]:8443"},
		{Name: "vm", URL: "https://10.0.0.111:9443", VMID: 1001}}
	n := 0
	for _, f := range flowsOf(other) {
		if f.String() == "proxy -> service nas (fd00::9 port 8443)" ||
			f.String() == "proxy -> service vm (10.0.0.111 port 9443)" {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d flows to other machines: %v", n, flowsOf(other))
	}
	want := []string{
		"clients -> gateway (10.0.0.153 port 80)", "clients -> gateway (10.0.0.153 port 443)",
		"gateway -> proxy (10.0.0.12 port 443)", "gateway -> CA (10.0.0.10 port 9001)",
		"proxy -> CA (10.0.0.10 port 9001)", "CA -> proxy (10.0.0.12 port 443)",
		"proxy -> service gateway (10.0.0.153 port 8080)", "proxy -> service git (10.0.0.50 port 3000)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if none := flowsOf(config.Plan{}); none != nil {
		t.Errorf("%v", none)
	}
}

func TestCutFlows(t *testing.T) {
	c := container(t, strings.Replace(wanted, `"mount_points"`, `"_"`, 1))
	// As the old scripts left it for the gateway: one rule, for what goes out.
	cut := cutFlows(testPlan, c, []byte("[OPTIONS]\npolicy_out: DROP\n[RULES]\nOUT ACCEPT -dest 10.0.0.12 -p tcp "+
		"-dport 443\n"))
	want := []string{
		`clients -> gateway (10.0.0.153 port 80): cut by policy_in DROP; missing before it: ` +
			`{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "80"}`,
		`clients -> gateway (10.0.0.153 port 443): cut by policy_in DROP; missing before it: ` +
			`{"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "443"}`,
		`gateway -> CA (10.0.0.10 port 9001): cut by policy_out DROP; missing before it: ` +
			`{"type": "out", "action": "ACCEPT", "dest": "10.0.0.10", "proto": "tcp", "port": "9001"}`,
		`proxy -> service gateway (10.0.0.153 port 8080): cut by policy_in DROP; missing before it: ` +
			`{"type": "in", "action": "ACCEPT", "source": "10.0.0.12", "proto": "tcp", "port": "8080"}`,
	}
	if !slices.Equal(cut, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(cut, "\n"), strings.Join(want, "\n"))
	}
	cut = cutFlows(testPlan, c, []byte("[RULES]\nGROUP web\nIN ACCEPT -source 10.0.0.12\n"))
	if len(cut) != 5 || !strings.Contains(cut[0], "clients -> gateway (10.0.0.153 port 80): cannot be known, because "+
		"of the rule GROUP web; for certain with: ") {
		t.Errorf("got\n%s", strings.Join(cut, "\n"))
	}
}
