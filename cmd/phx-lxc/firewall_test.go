package main

import (
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/config"
)

// fwConfig returns a firewall that is on, with rules in pve-firewall's form.
func fwConfig(t *testing.T, rules string) *config.Firewall {
	t.Helper()
	fw := &config.Firewall{Enabled: true}
	for l := range strings.Lines(rules) {
		line, comment, _ := strings.Cut(strings.TrimSpace(l), " # ")
		words := strings.Fields(line)
		r := config.FirewallRule{Type: strings.ToLower(words[0]), Action: words[1], Comment: comment}
		for i := 2; i < len(words); i += 2 {
			*map[string]*string{"-source": &r.Source, "-dest": &r.Dest, "-p": &r.Proto, "-dport": &r.Port}[words[i]] = words[i+1]
		}
		fw.Rules = append(fw.Rules, r)
	}
	return fw
}

func TestParseRule(t *testing.T) {
	for _, tt := range []struct {
		line  string
		match string // "" if it is no rule
		fwRule
	}{
		{line: "IN ACCEPT", match: "IN ACCEPT", fwRule: fwRule{enabled: true}},
		{line: "in  ACCEPT\t-p tcp \r\n", match: "IN ACCEPT -p tcp", fwRule: fwRule{enabled: true}},
		{line: "|OUT DROP # a # b \n", match: "OUT DROP", fwRule: fwRule{comment: "a # b"}},
		{line: "IN ACCEPT --dport 22 --proto tcp -i net0", match: "IN ACCEPT -i net0 -p tcp -dport 22", fwRule: fwRule{enabled: true}},
		{line: "IN ACCEPT -proto tcp", match: "IN ACCEPT -p tcp", fwRule: fwRule{enabled: true}},
		{line: "IN ACCEPT -log info --icmp-type echo-request -sport 1:2 -dport 3,4 -p icmp -dest 10.0.0.1 -source +dc/x -i net1",
			match: "IN ACCEPT -i net1 -source +dc/x -dest 10.0.0.1 -p icmp -dport 3,4 -sport 1:2 -log info -icmp-type echo-request", fwRule: fwRule{enabled: true}},
		{line: "IN Ping(ACCEPT) -source gw # p", match: "IN Ping(ACCEPT) -source gw", fwRule: fwRule{enabled: true, comment: "p"}},
		{line: "GROUP web -i net0#c", match: "GROUP web -i net0", fwRule: fwRule{enabled: true, comment: "c"}},
		{line: "# IN ACCEPT"}, {line: ""}, {line: "garbage"}, {line: "IN"}, {line: "IN ACCEPT -p"}, {line: "IN ACCEPT tcp 22"},
		{line: "IN ACCEPT -m mark"}, {line: "FORWARD ACCEPT"}, {line: "IN ACCEPT -p tcp --proto udp"}, {line: "IN ACCEPT --p tcp"}, {line: "IN ACCEPT --i net0"},
	} {
		rule, ok := parseRule(tt.line)
		tt.fwRule.match = tt.match
		if ok != (tt.match != "") || ok && rule != tt.fwRule {
			t.Errorf("%q: %+v, %t", tt.line, rule, ok)
		}
	}
}

func TestConfiguredRules(t *testing.T) {
	c := containerWith(t, `"firewall": {"enabled": true, "rules": [
		{"type": "in", "action": "ACCEPT", "source": "10.0.0.0/24", "dest": "10.0.0.2", "proto": "tcp", "port": "80:85,443", "comment": " web "},
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
	if got := string(editFirewall(nil, c.Firewall, nil)); got != want {
		t.Errorf("file\n%s", got)
	}
}

func TestEditFirewall(t *testing.T) {
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
		{"a file that ends early", strings.TrimRight(options, "\n"), a, "", strings.TrimRight(options, "\n") + "\n\n[RULES]\n\n" + a + "\n"},
		{"an empty section of rules", before, a + b, "", before + a + b},
		{"one that is not the last", "[RULES]\n\n\n" + options, a, "", "[RULES]\n\n" + a + "\n" + options},
		{"one without an empty line", options + "[rules]\n" + handX, a, "", options + "[rules]\n" + a + handX},
		{"new rules are at the top", before + handX + handY, a + b, "", before + a + b + handX + handY},
		{"rules are not appended again on every run", before + a + b + handX + a + b + a + b, a + b, "", before + a + b + handX},
		{"rules in reversed order, as each was put at the top", before + c + b + a, a + b + c, "", before + a + b + c},
		{"rules in the wrong order among others become a group", before + handX + b + handY + a + c, a + b + c, "", before + handX + a + b + c + handY},
		{"rules in order stay where they are", before + a + handX + b + handY + c, a + b + c, "", before + a + handX + b + handY + c},
		{"a missing rule goes behind the one before it", before + handX + a + handY + c, a + b + c, "", before + handX + a + b + handY + c},
		{"a missing first one before the second", before + handX + b + handY, a + b, "", before + handX + a + b + handY},
		{"no longer configured", before + a + handX + b + c, b, a + b + c, before + handX + b},
		{"no longer configured, switched off or commented by hand since", before + "|" + a + "in ACCEPT --dport 443 --proto tcp # mine\n" + handX, "", a + b, before + handX},
		{"made by hand and never configured", before + a + handX, "", "", before + a + handX},
		{"equal rules made by hand stay", before + handX + handX, "", "", before + handX + handX},
		{"long forms, order and case count as there", before + "in ACCEPT --dport 22 --proto tcp --source 10.0.0.0/24\n", a, "",
			before + "in ACCEPT --dport 22 --proto tcp --source 10.0.0.0/24\n"},
		{"a rule that is switched off is switched on", before + "|" + a + handX, a, "", before + a + handX},
		{"of one that is on and one that is off, one is left", before + "|" + a + a, a, "", before + a},
		{"the configured comment", before + "IN ACCEPT -p tcp -dport 443 # old\n", b, "", before + b},
		{"a comment made by hand", before + strings.TrimSuffix(a, "\n") + " # mine\n", a, "", before + strings.TrimSuffix(a, "\n") + " # mine\n"},
		{"and in another order", before + b + strings.TrimSuffix(a, "\n") + " # mine\n", a + b, "", before + strings.TrimSuffix(a, "\n") + " # mine\n" + b},
		{"another interface or log level is another rule", before + strings.TrimSuffix(a, "\n") + " -log info\n", a, "",
			before + a + strings.TrimSuffix(a, "\n") + " -log info\n"},
		{"what cannot be read stays", before + junk + a + junk + b + junk, a + b, "", before + junk + a + junk + b + junk},
		{"a rule outside of its section is none", "IN DROP\n" + before + a, "IN DROP\n" + a, "", "IN DROP\n" + before + "IN DROP\n" + a},
		{"rules in two sections", before + a + "\n[ALIASES]\n\nx 10.0.0.3\n\n[RULES]\n\n" + a + b, a + b, "", before + a + "\n[ALIASES]\n\nx 10.0.0.3\n\n[RULES]\n\n" + b},
		{"the last line lacks its end", before + strings.TrimSuffix(handX, "\n"), "", "", before + strings.TrimSuffix(handX, "\n")},
		{"and another line follows", before + strings.TrimSuffix(a, "\n"), a + c, "", before + a + c},
		{"switched on", strings.Replace(before, "enable: 1", "enable: 0", 1) + a, a, "", before + a},
		{"switched on for the first time", strings.Replace(before, "enable: 1\n", "", 1) + a, a, "", before + a},
		{"options without an empty line", "[OPTIONS]\npolicy_in: DROP\n", "", "", "[OPTIONS]\nenable: 1\npolicy_in: DROP\n"},
		{"options without a line end", "[OPTIONS]", "", "", "[OPTIONS]\nenable: 1\n"},
		{"no options", "[RULES]\n\n" + a, a, "", "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\n" + a},
		{"lines before the first section stay out of it", "# x\nenable: 0\n\n[ALIASES]\n", "", "", "# x\nenable: 0\n\n[OPTIONS]\n\nenable: 1\n\n[ALIASES]\n"},
		{"also without a line end", "enable: 0", "", "", "enable: 0\n[OPTIONS]\n\nenable: 1\n\n"},
		{"options in another notation", "[options]\nEnable:  1 \n", "", "", "[options]\nEnable:  1 \n"},
		{"the last of two options counts", "[OPTIONS]\nenable: 1\nenable: 0\n", "", "", "[OPTIONS]\nenable: 1\nenable: 1\n"},
		{"the option of another section is none", "[ALIASES]\nenable: 1\n", "", "", "[OPTIONS]\n\nenable: 1\n\n[ALIASES]\nenable: 1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fw := fwConfig(t, tt.rules)
			got := string(editFirewall([]byte(tt.before), fw, parseHashes(firewallHashes(fwConfig(t, tt.written)))))
			if got != tt.want {
				t.Fatalf("%s", unifiedDiff("101.fw", []byte(tt.want), []byte(got)))
			}
			again := editFirewall([]byte(got), fw, parseHashes(firewallHashes(fw)))
			if string(again) != got {
				t.Errorf("a second run changes it again:\n%s", unifiedDiff("101.fw", []byte(got), again))
			}
		})
	}
}

func TestFirewallOff(t *testing.T) {
	off := &config.Firewall{}
	for before, want := range map[string]string{
		"":                         "", // off is the default: no file is made for it
		"[OPTIONS]\n\nenable: 1\n": "[OPTIONS]\n\nenable: 0\n",
		"[OPTIONS]\n\ndhcp: 1\n":   "[OPTIONS]\n\ndhcp: 1\n",
	} {
		if got := string(editFirewall([]byte(before), off, nil)); got != want {
			t.Errorf("%q: %q", before, got)
		}
	}
	// Nothing configured at all: only what phx has written goes.
	text := "[OPTIONS]\n\nenable: 1\n\n[RULES]\n\nIN DROP # phx\nOUT DROP\n"
	written := parseHashes(firewallHashes(fwConfig(t, "IN DROP\n")))
	if got, want := string(editFirewall([]byte(text), nil, written)), strings.Replace(text, "IN DROP # phx\n", "", 1); got != want {
		t.Errorf("%q", got)
	}
	if got := editFirewall(nil, nil, written); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestFirewallOptions(t *testing.T) {
	yes, no := true, false
	fw := &config.Firewall{Enabled: true, MACFilter: &no, IPFilter: &yes, PolicyIn: "REJECT", PolicyOut: "ACCEPT"}
	for _, tt := range []struct{ name, before, want string }{
		{"a new file", "", "[OPTIONS]\n\nenable: 1\nipfilter: 1\nmacfilter: 0\npolicy_in: REJECT\npolicy_out: ACCEPT\n\n"},
		{"others stay, in their order", "[OPTIONS]\n\nenable: 1\nlog_level_in: info\npolicy_in: DROP\ndhcp: 0\n\n[RULES]\n",
			"[OPTIONS]\n\nenable: 1\nipfilter: 1\nmacfilter: 0\nlog_level_in: info\npolicy_in: REJECT\npolicy_out: ACCEPT\ndhcp: 0\n\n[RULES]\n"},
		{"in another notation", "[options]\nEnable:  1 \nIPFILTER: 1\nmacfilter:0\npolicy_in: reject\npolicy_out:accept\n", "[options]\nEnable:  1 \nIPFILTER: 1\nmacfilter:0\npolicy_in: reject\npolicy_out:accept\n"},
		{"the last of two counts", "[OPTIONS]\nenable: 1\nipfilter: 1\nipfilter: 0\nmacfilter: 0\npolicy_in: REJECT\npolicy_out: ACCEPT\n",
			"[OPTIONS]\nenable: 1\nipfilter: 1\nipfilter: 1\nmacfilter: 0\npolicy_in: REJECT\npolicy_out: ACCEPT\n"},
	} {
		got := string(editFirewall([]byte(tt.before), fw, nil))
		if got != tt.want {
			t.Errorf("%s: %s", tt.name, unifiedDiff("101.fw", []byte(tt.want), []byte(got)))
		}
		if again := string(editFirewall([]byte(got), fw, nil)); again != got {
			t.Errorf("%s: not settled: %q", tt.name, again)
		}
		if o := fwOptions([]byte(got)); o["enable"] != "1" || o["ipfilter"] != "1" || o["macfilter"] != "0" || o["policy_in"] != "REJECT" || o["policy_out"] != "ACCEPT" {
			t.Errorf("%s: options %v", tt.name, o)
		}
	}
	// What is not configured stays.
	const set = "[OPTIONS]\n\nenable: 1\nipfilter: 1\npolicy_in: ACCEPT\n"
	if got := string(editFirewall([]byte(set), &config.Firewall{Enabled: true}, nil)); got != set {
		t.Errorf("%q", got)
	}
	if o := fwOptions(nil); o["enable"] != "0" || o["policy_in"] != "DROP" || o["policy_out"] != "ACCEPT" || o["macfilter"] != "1" {
		t.Errorf("defaults %v", o)
	}
}

func FuzzEditFirewall(f *testing.F) {
	f.Add("[OPTIONS]\nenable: 0\n[RULES]\n|IN ACCEPT -p tcp # x\nOUT DROP", true)
	f.Add("[RULES]\n\n\n[IPSET x]\n", false)
	f.Fuzz(func(t *testing.T, text string, enabled bool) {
		fw := fwConfig(t, "IN ACCEPT -p tcp -dport 22 # ssh\nOUT DROP\n")
		fw.Enabled = enabled
		got := editFirewall([]byte(text), fw, nil)
		if again := editFirewall(got, fw, parseHashes(firewallHashes(fw))); string(again) != string(got) {
			t.Errorf("not settled: %q, then %q", got, again)
		}
		if same := editFirewall([]byte(text), nil, nil); string(same) != text {
			t.Errorf("%q became %q", text, same)
		}
	})
}
