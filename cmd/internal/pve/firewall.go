package pve

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Firewall is what phx sets in a container's firewall file.
type Firewall struct {
	Options Properties // in pve-firewall's names; those that are not listed stay as they are
	Rules   []FirewallRule
}

// FirewallRule is a rule of a firewall file, as pve-firewall writes it:
// "IN ACCEPT -source 10.0.0.0/24 -p tcp -dport 22 # comment".
type FirewallRule struct {
	Match   string // the rule without its comment
	Comment string
	Enabled bool // without "|" before it
}

func (r FirewallRule) String() string {
	if r.Comment == "" {
		return r.Match
	}
	return r.Match + " # " + r.Comment
}

// ruleOptions are the options of a rule in the order in which pve-firewall
// writes them, and ruleOption the forms in which it reads them.
var (
	ruleOptions = []string{"i", "source", "dest", "p", "dport", "sport", "log", "icmp-type"}
	ruleOption  = regexp.MustCompile(`^(?:-(i)|-(p)|--?(p)roto|--?(source|dest|dport|sport|log|icmp-type))$`)
)

// NewFirewallRule returns an enabled rule. The direction is IN, OUT or GROUP
// in any case; options are by the names of [FirewallRule]'s form, without "-",
// and an empty one is left out.
func NewFirewallRule(direction, action string, options map[string]string, comment string) FirewallRule {
	words := []string{strings.ToUpper(direction), action}
	for _, name := range ruleOptions {
		if v := options[name]; v != "" {
			words = append(words, "-"+name, v)
		}
	}
	return FirewallRule{Match: strings.Join(words, " "), Comment: strings.TrimSpace(comment), Enabled: true}
}

// parseRule reads a line of the section RULES. A line that pve-firewall would
// not take, or a comment, is none.
func parseRule(line string) (FirewallRule, bool) {
	if strings.HasPrefix(line, "#") {
		return FirewallRule{}, false
	}
	line, comment, _ := strings.Cut(line, "#")
	line, disabled := strings.CutPrefix(line, "|")
	words := strings.Fields(line)
	if len(words) < 2 || len(words)%2 != 0 {
		return FirewallRule{}, false
	}
	direction := strings.ToUpper(words[0])
	if direction != "IN" && direction != "OUT" && direction != "GROUP" {
		return FirewallRule{}, false
	}
	options := map[string]string{}
	for pair := range slices.Chunk(words[2:], 2) {
		m := ruleOption.FindStringSubmatch(pair[0])
		if m == nil {
			return FirewallRule{}, false
		}
		name := strings.Join(m[1:], "") // only one of them is not empty
		if options[name] != "" {
			return FirewallRule{}, false
		}
		options[name] = pair[1]
	}
	rule := NewFirewallRule(direction, words[1], options, comment)
	rule.Enabled = !disabled
	return rule, true
}

// firewallSection matches the header of a section of a firewall file.
var firewallSection = regexp.MustCompile(`(?i)^\[(\w+)[^\]]*\]\s*(?:#.*)?$`)

// parseFirewallSection returns the kind of the section that a line begins, in
// lower case.
func parseFirewallSection(line string) (kind string, ok bool) {
	m := firewallSection.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
	if m == nil {
		return "", false
	}
	return strings.ToLower(m[1]), true
}

// firewallOption is an option as pve-firewall reads it: a number, or a policy.
var firewallOption = regexp.MustCompile(
	`(?i)^(enable|macfilter|ipfilter|ndp|policy_in|policy_out):\s*([01]|ACCEPT|DROP|REJECT)\s*$`)

// firewallDefaults are what counts where a file has no such option.
var firewallDefaults = map[string]string{
	"enable": "0", "macfilter": "1", "ipfilter": "0", "ndp": "1", "policy_in": "DROP", "policy_out": "ACCEPT",
}

// FirewallOptions returns the options of a firewall file by name, in lower
// case, with pve-firewall's defaults. The last of several counts.
func FirewallOptions(text []byte) map[string]string {
	options := maps.Clone(firewallDefaults)
	current := ""
	for l := range strings.Lines(string(text)) {
		if name, ok := parseFirewallSection(l); ok {
			current = name
		} else if m := firewallOption.FindStringSubmatch(l); m != nil && current == "options" {
			options[strings.ToLower(m[1])] = strings.ToUpper(m[2])
		}
	}
	return options
}

// FirewallRules returns the enabled rules of a firewall file.
func FirewallRules(text []byte) []FirewallRule {
	var rules []FirewallRule
	current := ""
	for l := range strings.Lines(string(text)) {
		if name, ok := parseFirewallSection(l); ok {
			current = name
		} else if r, ok := parseRule(l); ok && r.Enabled && current == "rules" {
			rules = append(rules, r)
		}
	}
	return rules
}

// Hashes returns the hashes of the rules as a word of a [Record]. Comments do
// not count.
func (fw *Firewall) Hashes() string {
	var texts []string
	for _, r := range fw.Rules {
		texts = append(texts, r.Match)
	}
	return HashList(texts)
}

// Rewrite returns the text of a container's firewall file, nil if there is
// none, with the options and, in their order, the rules of fw, of which no two
// may match the same. Of what is there
//
//   - a rule of fw counts in any form that pve-firewall reads; it is enabled,
//     and gets fw's comment, if there is one;
//   - rules that phx has written earlier and that are not in fw are removed,
//     and so is the second of two equal rules of fw;
//   - all else stays byte for byte: other rules in their order, options,
//     aliases, sets of addresses, comments, and lines of no known form.
//
// A text in which nothing differs is returned as it is.
func (fw *Firewall) Rewrite(text []byte, written Hashes) []byte {
	for _, o := range fw.Options {
		text = setFirewallOption(text, o.Key, o.Value)
	}
	indices := map[string]int{}
	var texts []string
	for i, r := range fw.Rules {
		indices[r.Match] = i
		texts = append(texts, r.String()+"\n")
	}

	var lines []fileLine
	seen := map[string]bool{}
	top := -1 // where rules begin
	current := ""
	for l := range strings.Lines(string(text)) {
		if name, ok := parseFirewallSection(l); ok {
			current = name
			lines = append(lines, fileLine{l, foreign})
			if current == "rules" && top < 0 {
				top = len(lines)
			}
			continue
		}
		rule, ok := parseRule(l)
		if current != "rules" || !ok {
			// An empty line is between the header and the first rule.
			blank := strings.TrimSpace(l) == ""
			if blank && len(lines) == top && strings.TrimSpace(lines[top-1].text) != "" {
				top++
			}
			lines = append(lines, fileLine{l, foreign})
			continue
		}
		index, ours := indices[rule.Match]
		switch {
		case !ours && written.Has(rule.Match), ours && seen[rule.Match]:
			continue
		case !ours:
			lines = append(lines, fileLine{l, foreign})
		case rule.Enabled && (fw.Rules[index].Comment == "" || fw.Rules[index].Comment == rule.Comment):
			lines = append(lines, fileLine{l, index})
		default:
			if fw.Rules[index].Comment != "" {
				rule.Comment = fw.Rules[index].Comment
			}
			lines = append(lines, fileLine{rule.String() + "\n", index})
		}
		seen[rule.Match] = true
	}
	if len(fw.Rules) == 0 {
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

// setFirewallOption sets an option, unless it has that value. "enable: 0" is
// not written into a file that has no such option.
func setFirewallOption(text []byte, name, value string) []byte {
	lines := slices.Collect(strings.Lines(string(text)))
	first, at, last := len(lines), -1, -1
	current, have := "", ""
	for i, l := range lines {
		kind, isHeader := parseFirewallSection(l)
		if isHeader {
			first = min(first, i)
			current = kind
		}
		if current != "options" || isHeader && at >= 0 {
			continue
		}
		m := firewallOption.FindStringSubmatch(l)
		switch {
		case isHeader:
			if at = i + 1; at < len(lines) && strings.TrimSpace(lines[at]) == "" {
				at++ // an empty line is between the header and the first option
			}
		case m == nil:
		case strings.EqualFold(m[1], name):
			last, have = i, strings.ToUpper(m[2])
		case strings.ToLower(m[1]) < name && i >= at:
			at = i + 1
		}
	}
	option := name + ": " + value + "\n"
	switch {
	case have == value, have == "" && name == "enable" && value == "0":
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

// Flow is a TCP connection to be made.
type Flow struct {
	Source    netip.Addr // not valid for clients at any address
	Dest      netip.Addr
	Port      int
	Interface string // of the container, by which it passes: net0
}

// FirewallVerdict returns what a firewall file does with the first packet of a
// flow in a direction, IN or OUT: ACCEPT, DROP or REJECT, and the rule or
// policy that decides. The verdict is "" where it depends on what the file
// alone does not say: groups, macros, aliases and sets. All other packets of a
// connection pass (PVE::Firewall of Proxmox VE 9).
func FirewallVerdict(text []byte, direction string, f Flow) (verdict, because string) {
	policy := "policy_" + strings.ToLower(direction)
	return f.verdict(FirewallRules(text), direction, policy+" "+FirewallOptions(text)[policy])
}

// verdict is [FirewallVerdict] for rules and a policy, as in "policy_in DROP".
func (f Flow) verdict(rules []FirewallRule, direction, policy string) (verdict, because string) {
	if len(rules) == 0 {
		_, action, _ := strings.Cut(policy, " ")
		return action, policy
	}
	r := rules[0]
	words := strings.Fields(r.Match)
	rest := func() (string, string) { return f.verdict(rules[1:], direction, policy) }
	if words[0] != direction && words[0] != "GROUP" {
		return rest()
	}
	action := words[1]
	matches := f.matches(action, words[2:])
	known := action == "ACCEPT" || action == "DROP" || action == "REJECT"
	switch {
	case matches == no:
		return rest()
	case matches == yes && known:
		return action, "the rule " + r.Match
	}
	later, because := rest()
	if known && later == action {
		return later, because
	}
	return "", "the rule " + r.Match
}

// A match is whether a rule applies to a flow.
type match int

const (
	no match = iota
	maybe
	yes
)

// matches returns whether the options of a rule let it apply to a flow. A rule
// for some addresses of clients is taken to be meant so: one that accepts
// applies, one that does not is for others.
func (f Flow) matches(action string, options []string) match {
	result := yes
	for pair := range slices.Chunk(options, 2) {
		value := pair[1]
		m := yes
		switch pair[0] {
		case "-i":
			if value != f.Interface {
				m = no
			}
		case "-source":
			switch {
			case f.Source.IsValid():
				m = isAmong(value, f.Source)
			case isOfOther(value, f.Dest):
				m = no
			case action != "ACCEPT":
				m = no
			}
		case "-dest":
			m = isAmong(value, f.Dest)
		case "-p":
			if value != "tcp" && value != "6" {
				m = no
			}
		case "-dport":
			m = hasPort(value, f.Port)
		case "-sport":
			m = maybe
		case "-icmp-type":
			m = no
		}
		result = min(result, m)
	}
	return result
}

// isOfOther reports whether a list has addresses of the other family than addr.
func isOfOther(list string, addr netip.Addr) bool {
	first := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '-' || r == '/' })
	if len(first) == 0 {
		return false
	}
	a, err := netip.ParseAddr(first[0])
	return err == nil && a.Is4() != addr.Is4()
}

func isAmong(list string, addr netip.Addr) match {
	result := no
	for item := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(item, "-")
		low, err1 := netip.ParseAddr(from)
		high, err2 := netip.ParseAddr(to)
		prefix, err3 := netip.ParsePrefix(item)
		switch {
		case isRange && err1 == nil && err2 == nil:
			if low.Compare(addr) <= 0 && addr.Compare(high) <= 0 {
				return yes
			}
		case err1 == nil:
			if low == addr {
				return yes
			}
		case err3 == nil:
			if prefix.Contains(addr) {
				return yes
			}
		default:
			result = maybe // an alias or a set
		}
	}
	return result
}

func hasPort(list string, port int) match {
	result := no
	for item := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(item, ":")
		if !isRange {
			to = from
		}
		low, err1 := net.LookupPort("tcp", from)
		high, err2 := net.LookupPort("tcp", to)
		switch {
		case err1 != nil || err2 != nil:
			result = maybe
		case low <= port && port <= high:
			return yes
		}
	}
	return result
}

// firewallPath is the place of a container's firewall file.
func (h *Host) firewallPath(ctid int) string {
	return filepath.Join(h.PVERoot, "firewall", strconv.Itoa(ctid)+".fw")
}

// ReadFirewall returns the text of a container's firewall file, nil when there
// is none.
func (h *Host) ReadFirewall(ctid int) ([]byte, error) { return readIfThere(h.firewallPath(ctid)) }

// DatacenterFirewall reports whether Proxmox VE's firewall is on at all, and
// the file that says so.
func (h *Host) DatacenterFirewall() (path string, on bool) {
	path = filepath.Join(h.PVERoot, "firewall/cluster.fw")
	text, _ := readIfThere(path)
	return path, FirewallOptions(text)["enable"] == "1"
}

// editFirewall is [Host.editConf] for a container's firewall file, which need
// not be there: rewrite gets nil then, and nothing is made of an empty result.
func (h *Host) editFirewall(ctx context.Context, ctid int, rewrite func([]byte) []byte) (changed bool, err error) {
	lock := fmt.Sprintf("firewall-vm-%d", ctid)
	return editFile(h.firewallPath(ctid), rewrite, readIfThere,
		func() (func(), error) { return h.lockCluster(ctx, lock) })
}
