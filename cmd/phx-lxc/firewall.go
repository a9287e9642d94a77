package main

import (
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

// fwOptions are the options of a rule in the order in which pve-firewall
// writes them, and fwOption the forms in which it reads them.
var (
	fwOptions = []string{"i", "source", "dest", "p", "dport", "sport", "log", "icmp-type"}
	fwOption  = regexp.MustCompile(`^(?:-(i)|-(p)|--?(p)roto|--?(source|dest|dport|sport|log|icmp-type))$`)
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
		m := fwOption.FindStringSubmatch(pair[0])
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
	for _, name := range fwOptions {
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
//     aliases, sets of addresses, comments, and lines that nobody can read.
//
// With fw nil nothing is configured, and the firewall stays on or off. A text
// in which nothing differs is returned as it is.
func editFirewall(text []byte, fw *config.Firewall, written map[string]bool) []byte {
	if fw != nil {
		text = enableFirewall(text, fw.Enabled)
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

var fwEnable = regexp.MustCompile(`(?i)^enable:\s*([01])\s*$`)

// enableFirewall sets the option enable, unless it has that value; 0 is its
// default. The last of several counts.
func enableFirewall(text []byte, enabled bool) []byte {
	lines := slices.Collect(strings.Lines(string(text)))
	first, header, last := len(lines), -1, -1
	current, value := "", "0"
	for i, l := range lines {
		if name, ok := fwSection(l); ok {
			first = min(first, i)
			current = name
			if current == "options" && header < 0 {
				header = i
			}
		} else if m := fwEnable.FindStringSubmatch(l); m != nil && current == "options" {
			last, value = i, m[1]
		}
	}
	option := "enable: " + boolean(enabled) + "\n"
	switch {
	case value == boolean(enabled):
		return text
	case last >= 0:
		lines[last] = option
	case header >= 0:
		at := header + 1
		if at < len(lines) && strings.TrimSpace(lines[at]) == "" {
			at++
		}
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
