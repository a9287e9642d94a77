package main

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
)

// A fwRule is a rule of a container's firewall file, as pve-firewall writes
// it: "IN ACCEPT -source 10.0.0.0/24 -p tcp -dport 22 # comment".
type fwRule struct {
	match   string // the rule without its comment
	comment string
	enabled bool // without "|" before it
}

func (r fwRule) String() string {
	if r.comment == "" {
		return r.match
	}
	return r.match + " # " + r.comment
}

// ruleOptions are the options of a rule in the order in which pve-firewall
// writes them, and ruleOption the forms in which it reads them.
var (
	ruleOptions = []string{"i", "source", "dest", "p", "dport", "sport", "log", "icmp-type"}
	ruleOption  = regexp.MustCompile(`^(?:-(i)|-(p)|--?(p)roto|--?(source|dest|dport|sport|log|icmp-type))$`)
)

// parseRule reads a line of the section RULES. A line that pve-firewall would
// not take, or a comment, is none.
func parseRule(line string) (fwRule, bool) {
	if strings.HasPrefix(line, "#") {
		return fwRule{}, false
	}
	line, comment, _ := strings.Cut(line, "#")
	line, disabled := strings.CutPrefix(line, "|")
	words := strings.Fields(line)
	if len(words) < 2 || len(words)%2 != 0 {
		return fwRule{}, false
	}
	kind := strings.ToUpper(words[0])
	if kind != "IN" && kind != "OUT" && kind != "GROUP" {
		return fwRule{}, false
	}
	values := map[string]string{}
	for pair := range slices.Chunk(words[2:], 2) {
		m := ruleOption.FindStringSubmatch(pair[0])
		if m == nil {
			return fwRule{}, false
		}
		name := strings.Join(m[1:], "") // only one of them is not empty
		if values[name] != "" {
			return fwRule{}, false
		}
		values[name] = pair[1]
	}
	return fwRule{fwMatch(kind, words[1], values), strings.TrimSpace(comment), !disabled}, true
}

func fwMatch(kind, action string, values map[string]string) string {
	words := []string{kind, action}
	for _, name := range ruleOptions {
		if v := values[name]; v != "" {
			words = append(words, "-"+name, v)
		}
	}
	return strings.Join(words, " ")
}

// fwRules returns the configured rules, each once.
func fwRules(fw *config.Firewall) []fwRule {
	if fw == nil {
		return nil
	}
	var rules []fwRule
	for _, r := range fw.Rules {
		match := fwMatch(strings.ToUpper(r.Type), r.Action,
			map[string]string{"source": r.Source, "dest": r.Dest, "p": r.Proto, "dport": r.Port})
		if !slices.ContainsFunc(rules, func(other fwRule) bool { return other.match == match }) {
			rules = append(rules, fwRule{match, strings.TrimSpace(r.Comment), true})
		}
	}
	return rules
}

// firewallHashes returns the hashes of the configured rules as the record
// keeps them. Comments do not count.
func firewallHashes(fw *config.Firewall) string {
	var texts []string
	for _, r := range fwRules(fw) {
		texts = append(texts, r.match)
	}
	return shortHashes(texts)
}

// editFirewall returns the text of a container's firewall file, nil if there
// is none, with the configured rules in their order, and the firewall on or
// off. Of what is there
//
//   - a configured rule counts in any form that pve-firewall reads; it is
//     switched on, and gets the configured comment, if there is one;
//   - rules that phx has written earlier, by their hashes, and that are not
//     configured any more are removed, and so is the second of two equal rules
//     that are configured;
//   - all else stays byte for byte: other rules in their order, options,
//     aliases, sets of addresses, comments, and lines of no known form.
//
// With fw nil nothing is configured, and the firewall stays on or off. A text
// in which nothing differs is returned as it is.
func editFirewall(text []byte, fw *config.Firewall, written map[string]bool) []byte {
	if fw != nil {
		text = setFirewallOptions(text, fw)
	}
	rules := fwRules(fw)
	indices := map[string]int{}
	var texts []string
	for i, r := range rules {
		indices[r.match] = i
		texts = append(texts, r.String()+"\n")
	}

	var lines []fileLine
	seen := map[string]bool{}
	top := -1 // where rules begin
	current := ""
	for l := range strings.Lines(string(text)) {
		if name, ok := fwSection(l); ok {
			current = name
			lines = append(lines, fileLine{l, foreign})
			if current == "rules" && top < 0 {
				top = len(lines)
			}
			continue
		}
		rule, ok := parseRule(l)
		if current != "rules" || !ok {
			// An empty line stands between the header and the first rule.
			if blank := strings.TrimSpace(l) == ""; blank && len(lines) == top && strings.TrimSpace(lines[top-1].text) != "" {
				top++
			}
			lines = append(lines, fileLine{l, foreign})
			continue
		}
		index, ours := indices[rule.match]
		switch {
		case !ours && written[shortHash(rule.match)], ours && seen[rule.match]:
			continue
		case !ours:
			lines = append(lines, fileLine{l, foreign})
		case rule.enabled && (rules[index].comment == "" || rules[index].comment == rule.comment):
			lines = append(lines, fileLine{l, index})
		default:
			if rules[index].comment != "" {
				rule.comment = rules[index].comment
			}
			lines = append(lines, fileLine{rule.String() + "\n", index})
		}
		seen[rule.match] = true
	}
	if len(rules) == 0 {
		return joinLines(lines)
	}
	if top < 0 {
		if n := len(lines); n > 0 && strings.TrimSpace(lines[n-1].text) != "" {
			lines = append(lines, fileLine{"\n", foreign})
		}
		lines = append(lines, fileLine{"[RULES]\n", foreign}, fileLine{"\n", foreign}, fileLine{"\n", foreign})
		top = len(lines) - 1
	}
	return joinLines(arrange(lines, texts, top))
}

var fwHeader = regexp.MustCompile(`(?i)^\[(\w+)[^\]]*\]\s*(?:#.*)?$`)

// fwSection returns the kind of the section that a line begins, in lower case.
func fwSection(line string) (kind string, ok bool) {
	m := fwHeader.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
	if m == nil {
		return "", false
	}
	return strings.ToLower(m[1]), true
}

// fwOptionLine is an option as pve-firewall reads it: a number, or a policy.
var fwOptionLine = regexp.MustCompile(`(?i)^(enable|macfilter|ipfilter|policy_in|policy_out):\s*([01]|ACCEPT|DROP|REJECT)\s*$`)

// fwDefaults are what counts where a file has no such option.
var fwDefaults = map[string]string{"enable": "0", "macfilter": "1", "ipfilter": "0", "policy_in": "DROP", "policy_out": "ACCEPT"}

// fwOptions returns the options of a firewall file by name, in lower case. The
// last of several counts.
func fwOptions(text []byte) map[string]string {
	options := maps.Clone(fwDefaults)
	current := ""
	for l := range strings.Lines(string(text)) {
		if name, ok := fwSection(l); ok {
			current = name
		} else if m := fwOptionLine.FindStringSubmatch(l); m != nil && current == "options" {
			options[strings.ToLower(m[1])] = strings.ToUpper(m[2])
		}
	}
	return options
}

// setFirewallOptions sets the configured options. Those that are not
// configured stay.
func setFirewallOptions(text []byte, fw *config.Firewall) []byte {
	text = setFirewallOption(text, "enable", boolean(fw.Enabled), !fw.Enabled)
	for _, o := range []struct {
		name string
		on   *bool
	}{{"macfilter", fw.MACFilter}, {"ipfilter", fw.IPFilter}} {
		if o.on != nil {
			text = setFirewallOption(text, o.name, boolean(*o.on), false)
		}
	}
	for _, o := range []struct{ name, policy string }{{"policy_in", fw.PolicyIn}, {"policy_out", fw.PolicyOut}} {
		if o.policy != "" {
			text = setFirewallOption(text, o.name, o.policy, false)
		}
	}
	return text
}

// setFirewallOption sets an option, unless it has that value. isDefault says
// that it need not be there for it.
func setFirewallOption(text []byte, name, wanted string, isDefault bool) []byte {
	lines := slices.Collect(strings.Lines(string(text)))
	first, at, last := len(lines), -1, -1
	current, value := "", ""
	for i, l := range lines {
		section, isHeader := fwSection(l)
		if isHeader {
			first = min(first, i)
			current = section
		}
		if current != "options" || isHeader && at >= 0 {
			continue
		}
		m := fwOptionLine.FindStringSubmatch(l)
		switch {
		case isHeader:
			if at = i + 1; at < len(lines) && strings.TrimSpace(lines[at]) == "" {
				at++ // an empty line stands between the header and the first option
			}
		case m == nil:
		case strings.EqualFold(m[1], name):
			last, value = i, strings.ToUpper(m[2])
		case strings.ToLower(m[1]) < name && i >= at:
			at = i + 1
		}
	}
	option := name + ": " + wanted + "\n"
	switch {
	case value == wanted, value == "" && isDefault:
		return text
	case last >= 0:
		lines[last] = option
	case at >= 0:
		if !strings.HasSuffix(lines[at-1], "\n") {
			lines[at-1] += "\n"
		}
		lines = slices.Insert(lines, at, option)
	default:
		// Lines before the first section are in none, and stay so.
		if first > 0 && !strings.HasSuffix(lines[first-1], "\n") {
			lines[first-1] += "\n"
		}
		lines = slices.Insert(lines, first, "[OPTIONS]\n", "\n", option, "\n")
	}
	return []byte(strings.Join(lines, ""))
}
