package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/config"
)

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

func TestJudge(t *testing.T) {
	f := flow{source: netip.MustParseAddr("10.0.0.12"), dest: netip.MustParseAddr("10.0.0.10"), port: 9000}
	clients := flow{dest: netip.MustParseAddr("10.0.0.153"), port: 443}
	for _, tt := range []struct {
		rules   string
		flow    flow
		verdict string
	}{
		{"", f, "DROP"},
		{"IN ACCEPT", f, "ACCEPT"},
		{"OUT ACCEPT", f, "DROP"},
		{"IN ACCEPT -p tcp -dport 9000", f, "ACCEPT"},
		{"in ACCEPT --proto tcp --dport 8000:9000,22", f, "ACCEPT"},
		{"IN ACCEPT -p 6 -dport 22,9000", f, "ACCEPT"},
		{"IN ACCEPT -p udp -dport 9000", f, "DROP"},
		{"IN ACCEPT -p icmp -icmp-type echo-request", f, "DROP"},
		{"IN ACCEPT -p tcp -dport 22", f, "DROP"},
		{"IN ACCEPT -p tcp -dport https", clients, "ACCEPT"},
		{"IN ACCEPT -p tcp -dport no-such-service", f, ""},
		{"IN ACCEPT -i net0", f, "ACCEPT"},
		{"IN ACCEPT -i net1", f, "DROP"},
		{"IN ACCEPT -source 10.0.0.12", f, "ACCEPT"},
		{"IN ACCEPT -source 10.0.0.13,10.0.0.0/28", f, "ACCEPT"},
		{"IN ACCEPT -source 10.0.0.1-10.0.0.12", f, "ACCEPT"},
		{"IN ACCEPT -source 10.0.0.13-10.0.0.20", f, "DROP"},
		{"IN ACCEPT -source +lan", f, ""},
		{"IN ACCEPT -source +lan,10.0.0.12", f, "ACCEPT"},
		{"IN ACCEPT -dest 10.0.0.10", f, "ACCEPT"},
		{"IN ACCEPT -dest 10.0.0.11", f, "DROP"},
		{"IN ACCEPT -sport 1024:65535", f, ""},
		{"IN DROP -p tcp\nIN ACCEPT", f, "DROP"},
		{"IN ACCEPT\nIN DROP -p tcp", f, "ACCEPT"},
		{"IN REJECT", f, "REJECT"},
		{"|IN ACCEPT", f, "DROP"},
		{"GROUP web\nIN ACCEPT", f, ""},
		{"IN Web(ACCEPT)\nIN DROP", f, ""},
		{"IN ACCEPT -source +lan\nIN ACCEPT", f, "ACCEPT"}, // whether or not it matches
		{"IN DROP -source +lan\nIN ACCEPT", f, ""},
		{"IN ACCEPT -source 192.168.0.0/16 -p tcp -dport 443", clients, "ACCEPT"}, // the clients there are
		{"IN DROP -source 192.168.0.0/16\nIN ACCEPT", clients, "ACCEPT"},
		{"IN DROP -source 192.168.0.0/16", clients, "DROP"},
	} {
		text := "[OPTIONS]\nenable: 1\n[RULES]\n" + tt.rules + "\n[ALIASES]\nIN ACCEPT\n"
		verdict, because := judge(rulesOf([]byte(text)), "IN", "DROP", tt.flow)
		if verdict != tt.verdict || because == "" {
			t.Errorf("%q: %q because of %q, want %q", tt.rules, verdict, because, tt.verdict)
		}
	}
}

func TestCutFlows(t *testing.T) {
	j := &job{round: &round{plan: testPlan}, c: container(t, strings.Replace(wanted, `"mount_points"`, `"_"`, 1))}
	// As the old scripts left it for the gateway: one rule, for what goes out.
	cut := j.cutFlows([]byte("[OPTIONS]\npolicy_out: DROP\n[RULES]\nOUT ACCEPT -dest 10.0.0.12 -p tcp -dport 443\n"))
	want := []string{
		`clients -> gateway (10.0.0.153 port 80): cut by policy_in DROP; missing before it: {"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "80"}`,
		`clients -> gateway (10.0.0.153 port 443): cut by policy_in DROP; missing before it: {"type": "in", "action": "ACCEPT", "proto": "tcp", "port": "443"}`,
		`gateway -> CA (10.0.0.10 port 9001): cut by policy_out DROP; missing before it: {"type": "out", "action": "ACCEPT", "dest": "10.0.0.10", "proto": "tcp", "port": "9001"}`,
		`proxy -> service gateway (10.0.0.153 port 8080): cut by policy_in DROP; missing before it: {"type": "in", "action": "ACCEPT", "source": "10.0.0.12", "proto": "tcp", "port": "8080"}`,
	}
	if !slices.Equal(cut, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(cut, "\n"), strings.Join(want, "\n"))
	}
	cut = j.cutFlows([]byte("[RULES]\nGROUP web\nIN ACCEPT -source 10.0.0.12\n"))
	if len(cut) != 5 || !strings.Contains(cut[0], "clients -> gateway (10.0.0.153 port 80): cannot be known, because of the rule GROUP web; for certain with: ") {
		t.Errorf("got\n%s", strings.Join(cut, "\n"))
	}
}
