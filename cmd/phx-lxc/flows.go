package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// A firewall that was never in force can hold rules with which nothing works:
// the scripts that phx replaces wrote them for every container, and switched
// none on. So phx does not put the firewall of a container in force that it
// has not made, until it is told to.

// judgeFirewall finds out whether the configured firewall is led by phx.
func (j *job) judgeFirewall(context.Context) error {
	if j.c.Firewall == nil || j.created || j.written[firewallWord] != "" || j.enforce {
		j.notInForce = j.c.Firewall != nil && j.c.Firewall.Enabled && !j.datacenterFirewall()
		return nil
	}
	text, err := os.ReadFile(j.host.FirewallPath(j.ctid))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if fwOptions(text)["enable"] == "1" && hasFirewallFlag(j.conf) {
		j.notInForce = j.c.Firewall.Enabled && !j.datacenterFirewall()
		return nil
	}
	j.firewallWaits, j.notInForce = true, j.c.Firewall.Enabled
	if !j.c.Firewall.Enabled {
		return nil
	}
	would := editFirewall(text, j.c.Firewall, nil)
	options := fwOptions(would)
	lines := []string{fmt.Sprintf("its firewall is not in force, and stays so, because the container was there before: --enforce-firewall (PHX_ENFORCE_FIREWALL=1) puts it in force, with policy_in %s, policy_out %s and the rules:",
		options["policy_in"], options["policy_out"])}
	for _, r := range rulesOf(would) {
		lines = append(lines, r.String())
	}
	cut := j.cutFlows(would)
	if len(cut) > 0 {
		lines = append(lines, "then phx's own flows would not all get through:")
	}
	j.logf("%s", strings.Join(append(lines, cut...), "\n"))
	return nil
}

// datacenterFirewall reports whether Proxmox VE's firewall is on at all.
func (r *round) datacenterFirewall() bool {
	text, _ := os.ReadFile(filepath.Join(r.host.PVERoot, "firewall/cluster.fw"))
	return fwOptions(text)["enable"] == "1"
}

// firewall is what the container's firewall should be, nil when it is to stay
// as it is.
func (j *job) firewall() *config.Firewall {
	if j.firewallWaits {
		return nil
	}
	return wantedFirewall(j.c, j.written)
}

// hasFirewallFlag reports whether Proxmox VE applies the firewall file to the
// container's interface.
func hasFirewallFlag(conf *pve.Conf) bool {
	return pve.ParseBool(pve.ParseProperties(conf.Next()["net0"]).Get("firewall"))
}

// rulesOf returns the rules of a firewall file that are switched on.
func rulesOf(text []byte) []fwRule {
	var rules []fwRule
	current := ""
	for l := range strings.Lines(string(text)) {
		if name, ok := fwSection(l); ok {
			current = name
		} else if r, ok := parseRule(l); ok && r.enabled && current == "rules" {
			rules = append(rules, r)
		}
	}
	return rules
}

// A flow is what phx needs to get through: TCP, from somebody to somebody.
type flow struct {
	from, to string
	source   netip.Addr // not valid for clients, wherever they are
	dest     netip.Addr
	port     int
}

func (f flow) String() string {
	return fmt.Sprintf("%s -> %s (%s port %d)", f.from, f.to, f.dest, f.port)
}

// flowsOf returns all that the services of phx need among each other.
func flowsOf(p config.Plan) []flow {
	var all []flow
	add := func(from, to string, source, dest *config.Place, ports ...int) {
		for _, port := range ports {
			f := flow{from: from, to: to, port: port}
			if source != nil {
				f.source, _ = netip.ParseAddr(source.IP)
			}
			f.dest, _ = netip.ParseAddr(dest.IP)
			all = append(all, f)
		}
	}
	caPort := ca.Port(&p)
	if p.Gateway != nil {
		add("clients", "gateway", nil, p.Gateway, 80, 443)
	}
	if p.Gateway != nil && p.Proxy != nil {
		add("gateway", "proxy", p.Gateway, p.Proxy, 443)
	}
	if p.CA != nil && p.Gateway != nil {
		add("gateway", "CA", p.Gateway, p.CA, caPort)
	}
	if p.CA != nil && p.Proxy != nil {
		add("proxy", "CA", p.Proxy, p.CA, caPort)
		add("CA", "proxy", p.CA, p.Proxy, 443)
	}
	for _, s := range p.Services {
		_, at, err := config.ParseServiceURL(s.URL)
		if err != nil || p.Proxy == nil || p.CA != nil && s.CTID == p.CA.CTID {
			continue
		}
		add("proxy", "service "+s.Name, p.Proxy, &config.Place{CTID: s.CTID, IP: at.Addr().String()}, int(at.Port()))
	}
	return all
}

// cutFlows says which flows that begin or end at the container a firewall file
// would cut, and with which rule they would not be.
func (j *job) cutFlows(text []byte) []string {
	own := j.c.Network.IP.Addr()
	if !own.IsValid() {
		return nil
	}
	rules, options := rulesOf(text), fwOptions(text)
	var said []string
	for _, f := range flowsOf(j.plan) {
		for _, end := range []struct {
			kind, peer string
			here       bool
			policy     string
		}{
			{"IN", "source", f.dest == own, options["policy_in"]},
			{"OUT", "dest", f.source == own, options["policy_out"]},
		} {
			if !end.here {
				continue
			}
			verdict, because := judge(rules, end.kind, end.policy, f)
			if verdict == "ACCEPT" {
				continue
			}
			peer := f.source
			if end.kind == "OUT" {
				peer = f.dest
			}
			missing := fmt.Sprintf(`{"type": %q, "action": "ACCEPT", `, strings.ToLower(end.kind))
			if peer.IsValid() {
				missing += fmt.Sprintf(`%q: %q, `, end.peer, peer)
			}
			missing += fmt.Sprintf(`"proto": "tcp", "port": "%d"}`, f.port)
			if verdict == "" {
				said = append(said, fmt.Sprintf("%s: cannot be known, because of %s; for certain with: %s", f, because, missing))
			} else {
				said = append(said, fmt.Sprintf("%s: cut by %s; missing before it: %s", f, because, missing))
			}
		}
	}
	return said
}

// judge returns what becomes of the first packet of a flow, ACCEPT, DROP or
// REJECT, and because of which rule or policy. It is "" where that depends on
// what the file alone does not say: groups, macros, aliases and sets.
// The other packets of a connection pass (PVE::Firewall of Proxmox VE 9).
func judge(rules []fwRule, kind, policy string, f flow) (verdict, because string) {
	if len(rules) == 0 {
		return policy, "policy_" + strings.ToLower(kind) + " " + policy
	}
	r := rules[0]
	words := strings.Fields(r.match)
	rest := func() (string, string) { return judge(rules[1:], kind, policy, f) }
	if words[0] != kind && words[0] != "GROUP" {
		return rest()
	}
	action := words[1]
	matches := matches(action, words[2:], f)
	known := action == "ACCEPT" || action == "DROP" || action == "REJECT"
	switch {
	case matches == no:
		return rest()
	case matches == yes && known:
		return action, "the rule " + r.match
	}
	later, because := rest()
	if known && later == action {
		return later, because
	}
	return "", "the rule " + r.match
}

type answer int

const (
	no answer = iota
	perhaps
	yes
)

// matches reports whether the options of a rule let it apply to a flow. A rule
// that is for some clients is taken to be meant so: one that accepts applies,
// one that does not is for others.
func matches(action string, options []string, f flow) answer {
	result := yes
	for pair := range slices.Chunk(options, 2) {
		value := pair[1]
		a := yes
		switch pair[0] {
		case "-i":
			if value != "net0" {
				a = no
			}
		case "-source":
			switch {
			case f.source.IsValid():
				a = isAmong(value, f.source)
			case action != "ACCEPT":
				a = no
			}
		case "-dest":
			a = isAmong(value, f.dest)
		case "-p":
			if value != "tcp" && value != "6" {
				a = no
			}
		case "-dport":
			a = hasPort(value, f.port)
		case "-sport":
			a = perhaps
		case "-icmp-type":
			a = no
		}
		result = min(result, a)
	}
	return result
}

func isAmong(list string, addr netip.Addr) answer {
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
			result = perhaps // an alias or a set
		}
	}
	return result
}

func hasPort(list string, port int) answer {
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
			result = perhaps
		case low <= port && port <= high:
			return yes
		}
	}
	return result
}
