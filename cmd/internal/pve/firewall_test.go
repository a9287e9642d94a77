package pve

import (
	"net/netip"
	"strings"
	"testing"
)

// firewallOf returns a firewall that is on, with rules in pve-firewall's form.
func firewallOf(t *testing.T, rules string) *Firewall {
	t.Helper()
	fw := &Firewall{Options: Properties{{"enable", "1"}}}
	for l := range strings.Lines(rules) {
		rule, ok := parseRule(l)
		if !ok {
			t.Fatalf("%q is no rule", l)
		}
		fw.Rules = append(fw.Rules, rule)
	}
	return fw
}

// hashesOf returns the hashes of a firewall's rules as a record has them.
func hashesOf(fw *Firewall) Hashes { return Record{FirewallWord: fw.Hashes()}.Hashes(FirewallWord) }

func TestParseRule(t *testing.T) {
	for _, tt := range []struct {
		line, match string // match is "" if it is no rule
		FirewallRule
	}{
		{line: "IN ACCEPT", match: "IN ACCEPT", FirewallRule: FirewallRule{Enabled: true}},
		{line: "in  ACCEPT\t-p tcp \r\n", match: "IN ACCEPT -p tcp", FirewallRule: FirewallRule{Enabled: true}},
		{line: "|OUT DROP # a # b \n", match: "OUT DROP", FirewallRule: FirewallRule{Comment: "a # b"}},
		{line: "IN ACCEPT --dport 22 --proto tcp -i net0", match: "IN ACCEPT -i net0 -p tcp -dport 22",
			FirewallRule: FirewallRule{Enabled: true}},
		{line: "IN ACCEPT -proto tcp", match: "IN ACCEPT -p tcp", FirewallRule: FirewallRule{Enabled: true}},
		{line: "IN ACCEPT -log info --icmp-type echo-request -sport 1:2 -dport 3,4 -p icmp -dest 10.0.0.1 -source " +
			"+dc/x -i net1",
			match: "IN ACCEPT -i net1 -source +dc/x -dest 10.0.0.1 -p icmp -dport 3,4 -sport 1:2 -log info " +
				"-icmp-type echo-request", FirewallRule: FirewallRule{Enabled: true}},
		{line: "IN Ping(ACCEPT) -source gw # p", match: "IN Ping(ACCEPT) -source gw",
			FirewallRule: FirewallRule{Enabled: true, Comment: "p"}},
		{line: "GROUP web -i net0#c", match: "GROUP web -i net0",
			FirewallRule: FirewallRule{Enabled: true, Comment: "c"}},
		{line: "# IN ACCEPT"}, {line: ""}, {line: "garbage"}, {line: "IN"}, {line: "IN ACCEPT -p"},
		{line: "IN ACCEPT tcp 22"},
		{line: "IN ACCEPT -m mark"}, {line: "FORWARD ACCEPT"}, {line: "IN ACCEPT -p tcp --proto udp"},
		{line: "IN ACCEPT --p tcp"}, {line: "IN ACCEPT --i net0"},
	} {
		rule, ok := parseRule(tt.line)
		tt.Match = tt.match
		if ok != (tt.match != "") || ok && rule != tt.FirewallRule {
			t.Errorf("%q: %+v, %t", tt.line, rule, ok)
		}
	}
}

func TestFirewallRewrite(t *testing.T) {
	const (
		// As pve-firewall writes it.
		options = "[OPTIONS]\n\nenable: 1\npolicy_in: DROP\n\n"
		before  = options + "[ALIASES]\n\ngw 10.0.0.1\n\n[IPSET lan] # all\n\n10.0.0.0/24 # lan\n\n[RULES]\n\n"
		a       = "IN ACCEPT -source 10.0.0.0/24 -p tcp -dport 22\n"
		b       = "IN ACCEPT -p tcp -dport 443 # web\n"
		c       = "OUT DROP -dest 10.0.0.9\n"
		g       = "GROUP ssh\n"
		handX   = "IN ACCEPT -p tcp -dport 8080 # by hand\n"
		handY   = "|OUT REJECT -p icmp -icmp-type echo-request\n"
		junk    = "# note\n\ngarbage\n"
	)
	for _, tt := range []struct{ name, before, rules, written, want string }{
		{"nothing differs", before + a + b + c + g + "\n", a + b + c + g, "", before + a + b + c + g + "\n"},
		{"a new file", "", a + g, "", "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\n" + a + g + "\n"},
		{"a file without rules", options, a, "", options + "[RULES]\n\n" + a + "\n"},
		{"a file that ends early", strings.TrimRight(options, "\n"), a, "", strings.TrimRight(options, "\n") +
			"\n\n[RULES]\n\n" + a + "\n"},
		{"an empty section of rules", before, a + b, "", before + a + b},
		{"one that is not the last", "[RULES]\n\n\n" + options, a, "", "[RULES]\n\n" + a + "\n" + options},
		{"one without an empty line", options + "[rules]\n" + handX, a, "", options + "[rules]\n" + a + handX},
		{"new rules are at the top", before + handX + handY, a + b, "", before + a + b + handX + handY},
		{"rules are not appended again on every run", before + a + b + handX + a + b + a + b, a + b, "", before + a +
			b + handX},
		{"rules in reversed order, as each was put at the top", before + c + b + a, a + b + c, "", before + a + b + c},
		{"rules in the wrong order among others become a group", before + handX + b + handY + a + c, a + b + c, "",
			before + handX + a + b + c + handY},
		{"rules in order stay where they are", before + a + handX + b + handY + c, a + b + c, "", before + a + handX +
			b + handY + c},
		{"a missing rule goes behind the one before it", before + handX + a + handY + c, a + b + c, "", before + handX +
			a + b + handY + c},
		{"a missing first one before the second", before + handX + b + handY, a + b, "", before + handX + a + b +
			handY},
		{"no longer configured", before + a + handX + b + c, b, a + b + c, before + handX + b},
		{"no longer configured, switched off or commented by hand since", before + "|" + a +
			"in ACCEPT --dport 443 --proto tcp # mine\n" + handX, "", a + b, before + handX},
		{"made by hand and never configured", before + a + handX, "", "", before + a + handX},
		{"equal rules made by hand stay", before + handX + handX, "", "", before + handX + handX},
		{"long forms, order and case count as there", before +
			"in ACCEPT --dport 22 --proto tcp --source 10.0.0.0/24\n", a, "",
			before + "in ACCEPT --dport 22 --proto tcp --source 10.0.0.0/24\n"},
		{"a rule that is switched off is switched on", before + "|" + a + handX, a, "", before + a + handX},
		{"of one that is on and one that is off, one is left", before + "|" + a + a, a, "", before + a},
		{"the configured comment", before + "IN ACCEPT -p tcp -dport 443 # old\n", b, "", before + b},
		{"a comment made by hand", before + strings.TrimSuffix(a, "\n") + " # mine\n", a, "", before +
			strings.TrimSuffix(a, "\n") + " # mine\n"},
		{"and in another order", before + b + strings.TrimSuffix(a, "\n") + " # mine\n", a + b, "", before +
			strings.TrimSuffix(a, "\n") + " # mine\n" + b},
		{"another interface or log level is another rule", before + strings.TrimSuffix(a, "\n") + " -log info\n", a, "",
			before + a + strings.TrimSuffix(a, "\n") + " -log info\n"},
		{"what cannot be read stays", before + junk + a + junk + b + junk, a + b, "", before + junk + a + junk + b +
			junk},
		{"a rule outside of its section is none", "IN DROP\n" + before + a, "IN DROP\n" + a, "", "IN DROP\n" + before +
			"IN DROP\n" + a},
		{"rules in two sections", before + a + "\n[ALIASES]\n\nx 10.0.0.3\n\n[RULES]\n\n" + a + b, a + b, "", before +
			a + "\n[ALIASES]\n\nx 10.0.0.3\n\n[RULES]\n\n" + b},
		{"the last line lacks its end", before + strings.TrimSuffix(handX, "\n"), "", "", before +
			strings.TrimSuffix(handX, "\n")},
		{"and another line follows", before + strings.TrimSuffix(a, "\n"), a + c, "", before + a + c},
		{"switched on", strings.Replace(before, "enable: 1", "enable: 0", 1) + a, a, "", before + a},
		{"switched on for the first time", strings.Replace(before, "enable: 1\n", "", 1) + a, a, "", before + a},
		{"options without an empty line", "[OPTIONS]\npolicy_in: DROP\n", "", "",
			"[OPTIONS]\nenable: 1\npolicy_in: DROP\n"},
		{"options without a line end", "[OPTIONS]", "", "", "[OPTIONS]\nenable: 1\n"},
		{"no options", "[RULES]\n\n" + a, a, "", "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\n" + a},
		{"lines before the first section stay out of it", "# x\nenable: 0\n\n[ALIASES]\n", "", "",
			"# x\nenable: 0\n\n[OPTIONS]\n\nenable: 1\n\n[ALIASES]\n"},
		{"also without a line end", "enable: 0", "", "", "enable: 0\n[OPTIONS]\n\nenable: 1\n\n"},
		{"options in another notation", "[options]\nEnable:  1 \n", "", "", "[options]\nEnable:  1 \n"},
		{"the last of two options counts", "[OPTIONS]\nenable: 1\nenable: 0\n", "", "",
			"[OPTIONS]\nenable: 1\nenable: 1\n"},
		{"the option of another section is none", "[ALIASES]\nenable: 1\n", "", "",
			"[OPTIONS]\n\nenable: 1\n\n[ALIASES]\nenable: 1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fw := firewallOf(t, tt.rules)
			got := string(fw.Rewrite([]byte(tt.before), hashesOf(firewallOf(t, tt.written))))
			if got != tt.want {
				t.Fatalf("%s", unifiedDiff("101.fw", []byte(tt.want), []byte(got)))
			}
			again := fw.Rewrite([]byte(got), hashesOf(fw))
			if string(again) != got {
				t.Errorf("a second run changes it again:\n%s", unifiedDiff("101.fw", []byte(got), again))
			}
		})
	}
}

func TestFirewallOff(t *testing.T) {
	off := &Firewall{Options: Properties{{"enable", "0"}}}
	for before, want := range map[string]string{
		"":                         "", // off is the default: no file is made for it
		"[OPTIONS]\n\nenable: 1\n": "[OPTIONS]\n\nenable: 0\n",
		"[OPTIONS]\n\ndhcp: 1\n":   "[OPTIONS]\n\ndhcp: 1\n",
	} {
		if got := string(off.Rewrite([]byte(before), nil)); got != want {
			t.Errorf("%q: %q", before, got)
		}
	}
	// Nothing configured at all: only what phx has written goes.
	text := "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\nIN DROP # phx\nOUT DROP\n"
	written := hashesOf(firewallOf(t, "IN DROP\n"))
	if got, want := string((&Firewall{}).Rewrite([]byte(text), written)), strings.Replace(text, "IN DROP # phx\n", "",
		1); got != want {
		t.Errorf("%q", got)
	}
	if got := (&Firewall{}).Rewrite(nil, written); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestFirewallOptions(t *testing.T) {
	fw := &Firewall{Options: Properties{
		{"enable", "1"}, {"macfilter", "0"}, {"ipfilter", "1"}, {"policy_in", "REJECT"}, {"policy_out", "ACCEPT"},
	}}
	for _, tt := range []struct{ name, before, want string }{
		{"a new file", "", "[OPTIONS]\n\nenable: 1\nipfilter: 1\nmacfilter: 0\npolicy_in: REJECT\npolicy_out: " +
			"ACCEPT\n\n"},
		{"others stay, in their order", "[OPTIONS]\n\nenable: 1\nlog_level_in: info\npolicy_in: DROP\ndhcp: " +
			"0\n\n[RULES]\n",
			"[OPTIONS]\n\nenable: 1\nipfilter: 1\nmacfilter: 0\nlog_level_in: info\npolicy_in: REJECT\npolicy_out: " +
				"ACCEPT\ndhcp: 0\n\n[RULES]\n"},
		{"in another notation", "[options]\nEnable:  1 \nIPFILTER: 1\nmacfilter:0\npolicy_in: " +
			"reject\npolicy_out:accept\n",
			"[options]\nEnable:  1 \nIPFILTER: 1\nmacfilter:0\npolicy_in: reject\npolicy_out:accept\n"},
		{"the last of two counts", "[OPTIONS]\nenable: 1\nipfilter: 1\nipfilter: 0\nmacfilter: 0\npolicy_in: " +
			"REJECT\npolicy_out: ACCEPT\n",
			"[OPTIONS]\nenable: 1\nipfilter: 1\nipfilter: 1\nmacfilter: 0\npolicy_in: REJECT\npolicy_out: ACCEPT\n"},
	} {
		got := string(fw.Rewrite([]byte(tt.before), nil))
		if got != tt.want {
			t.Errorf("%s: %s", tt.name, unifiedDiff("101.fw", []byte(tt.want), []byte(got)))
		}
		if again := string(fw.Rewrite([]byte(got), nil)); again != got {
			t.Errorf("%s: not settled: %q", tt.name, again)
		}
		if o := FirewallOptions([]byte(got)); o["enable"] != "1" || o["ipfilter"] != "1" || o["macfilter"] != "0" ||
			o["policy_in"] != "REJECT" || o["policy_out"] != "ACCEPT" {
			t.Errorf("%s: options %v", tt.name, o)
		}
	}
	// What is not configured stays.
	const set = "[OPTIONS]\n\nenable: 1\nipfilter: 1\npolicy_in: ACCEPT\n"
	if got := string(firewallOf(t, "").Rewrite([]byte(set), nil)); got != set {
		t.Errorf("%q", got)
	}
	if o := FirewallOptions(nil); o["enable"] != "0" || o["policy_in"] != "DROP" || o["policy_out"] != "ACCEPT" ||
		o["macfilter"] != "1" {
		t.Errorf("defaults %v", o)
	}
}

func FuzzFirewall(f *testing.F) {
	f.Add("[OPTIONS]\nenable: 0\n[RULES]\n|IN ACCEPT -p tcp # x\nOUT DROP", true)
	f.Add("[RULES]\n\n\n[IPSET x]\n", false)
	f.Fuzz(func(t *testing.T, text string, enabled bool) {
		fw := firewallOf(t, "IN ACCEPT -p tcp -dport 22 # ssh\nOUT DROP\n")
		fw.Options[0].Value = map[bool]string{true: "1", false: "0"}[enabled]
		got := fw.Rewrite([]byte(text), nil)
		if again := fw.Rewrite(got, hashesOf(fw)); string(again) != string(got) {
			t.Errorf("not settled: %q, then %q", got, again)
		}
		if same := (&Firewall{}).Rewrite([]byte(text), nil); string(same) != text {
			t.Errorf("%q became %q", text, same)
		}
	})
}

func TestFirewallVerdict(t *testing.T) {
	f := Flow{Source: netip.MustParseAddr("10.0.0.12"), Dest: netip.MustParseAddr("10.0.0.10"), Port: 9000,
		Interface: "net0"}
	clients := Flow{Dest: netip.MustParseAddr("10.0.0.153"), Port: 443, Interface: "net0"}
	six := Flow{Source: netip.MustParseAddr("fd00::c"), Dest: netip.MustParseAddr("fd00::a"), Port: 9000,
		Interface: "net1"}
	clients6 := Flow{Dest: netip.MustParseAddr("fd00::153"), Port: 443, Interface: "net0"}
	for _, tt := range []struct {
		rules   string
		flow    Flow
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
		{"IN ACCEPT -i net1", six, "ACCEPT"},
		{"IN ACCEPT -i net0", six, "DROP"},
		{"IN ACCEPT -source FD00::0C -dest fd00::/64 -p tcp", six, "ACCEPT"},
		{"IN ACCEPT -source fd00::1-fd00::f", six, "ACCEPT"},
		{"IN ACCEPT -source fd00::d-fd00::f", six, "DROP"},
		{"IN ACCEPT -source 0.0.0.0/0", six, "DROP"},
		{"IN ACCEPT -dest 10.0.0.1-10.0.0.255", six, "DROP"},
		{"IN ACCEPT -p ipv6-icmp", six, "DROP"},
		{"IN ACCEPT -source 10.0.0.0/8", clients6, "DROP"},
		{"IN ACCEPT -source fd00::/8", clients6, "ACCEPT"},
		{"IN ACCEPT -source fd00::/8", clients, "DROP"},
	} {
		text := "[OPTIONS]\nenable: 1\n[RULES]\n" + tt.rules + "\n[ALIASES]\nIN ACCEPT\n"
		verdict, because := FirewallVerdict([]byte(text), "IN", tt.flow)
		if verdict != tt.verdict || because == "" {
			t.Errorf("%q: %q because of %q, want %q", tt.rules, verdict, because, tt.verdict)
		}
	}
}
