package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// managedFirewall is the firewall that a container should have, nil if phx does
// not manage it. One that phx has set up and that is not in the configuration
// any more is switched off: without its rules, but on, it would cut the
// container off.
func managedFirewall(c *config.Container, before pve.Record) *config.Firewall {
	if c.Firewall == nil && before[pve.FirewallWord] != "" {
		return &config.Firewall{}
	}
	return c.Firewall
}

// pveFirewall is a configured firewall in pve-firewall's form, with each rule
// once.
func pveFirewall(fw *config.Firewall) *pve.Firewall {
	p := &pve.Firewall{}
	p.Options.Set("enable", pve.FormatBool(fw.Enabled))
	if fw.MACFilter != nil {
		p.Options.Set("macfilter", pve.FormatBool(*fw.MACFilter))
	}
	if fw.IPFilter != nil {
		p.Options.Set("ipfilter", pve.FormatBool(*fw.IPFilter))
	}
	if fw.PolicyIn != "" {
		p.Options.Set("policy_in", fw.PolicyIn)
	}
	if fw.PolicyOut != "" {
		p.Options.Set("policy_out", fw.PolicyOut)
	}
	for _, r := range fw.Rules {
		rule := pve.NewFirewallRule(r.Type, r.Action,
			map[string]string{"source": r.Source, "dest": r.Dest, "p": r.Proto, "dport": r.Port}, r.Comment)
		if !slices.ContainsFunc(p.Rules, func(other pve.FirewallRule) bool { return other.Match == rule.Match }) {
			p.Rules = append(p.Rules, rule)
		}
	}
	return p
}

// hasFirewallFlags reports whether Proxmox VE applies the firewall file to all the
// container's interfaces that are there and that it can be applied to.
func hasFirewallFlags(c *config.Container, conf *pve.Conf) bool {
	next := conf.Next()
	for i, n := range c.Interfaces {
		value, filtered := next[netOption(i)], n.Firewall == nil || *n.Firewall
		if value != "" && filtered && c.HasPort(i) && !pve.ParseBool(pve.ParseProperties(value).Get("firewall")) {
			return false
		}
	}
	return true
}

// enforcing says what --enforce-firewall would put in force: the options and
// rules of a firewall file, and the flows of phx that they would cut.
func enforcing(text []byte, cut []string) string {
	options := pve.FirewallOptions(text)
	lines := []string{fmt.Sprintf("its firewall is not in force, and stays so, because the container was there "+
		"before: --enforce-firewall (PHX_ENFORCE_FIREWALL=1) puts it in force, "+
		"with policy_in %s, policy_out %s and the rules:",
		options["policy_in"], options["policy_out"])}
	for _, r := range pve.FirewallRules(text) {
		lines = append(lines, r.String())
	}
	if len(cut) > 0 {
		lines = append(lines, "then phx's own flows would not all get through:")
	}
	return strings.Join(append(lines, cut...), "\n")
}

// A flow is a TCP connection that phx's services need; from and to name its ends
// in messages.
type flow struct {
	from, to string
	tcp      pve.Flow
}

func (f flow) String() string {
	return fmt.Sprintf("%s -> %s (%s port %d)", f.from, f.to, f.tcp.Dest, f.tcp.Port)
}

// flowsOf returns all that the services of phx need among each other.
func flowsOf(p config.Plan) []flow {
	var all []flow
	for _, f := range ca.Flows(&p) {
		all = append(all, flow{f.From, f.To, pve.Flow{Source: f.Source, Dest: f.Dest, Port: f.Port}})
	}
	return all
}

// cutFlows says which flows of a plan that begin or end at the container a
// firewall file would cut, and with which rule they would not be.
func cutFlows(p config.Plan, c *config.Container, text []byte) []string {
	// at returns the interface that has an address, "" for none that is filtered.
	at := func(address netip.Addr) string {
		for i, n := range c.Interfaces {
			filtered := n.Firewall == nil || *n.Firewall
			if slices.Contains(n.Addresses(), address) && filtered && c.HasPort(i) {
				return netOption(i)
			}
		}
		return ""
	}
	var cut []string
	for _, f := range flowsOf(p) {
		if f.tcp.Interface = at(f.tcp.Dest); f.tcp.Interface != "" {
			cut = append(cut, cutFlow(f, text, "in", "source", f.tcp.Source)...)
		}
		if f.tcp.Interface = at(f.tcp.Source); f.tcp.Interface != "" {
			cut = append(cut, cutFlow(f, text, "out", "dest", f.tcp.Dest)...)
		}
	}
	return cut
}

// cutFlow is [cutFlows] for one direction of a flow; side is the key of a rule
// for the other end.
func cutFlow(f flow, text []byte, direction, side string, peer netip.Addr) []string {
	options := pve.FirewallOptions(text)
	if f.tcp.Dest.Is6() && options["ndp"] == "0" && options["policy_"+direction] != "ACCEPT" {
		return []string{fmt.Sprintf("%s: cannot be known, because of ndp: 0, with which no neighbour is found but by "+
			"rules for icmpv6; for certain with the option ndp: 1", f)}
	}
	verdict, because := pve.FirewallVerdict(text, strings.ToUpper(direction), f.tcp)
	if verdict == "ACCEPT" {
		return nil
	}
	missing := fmt.Sprintf(`{"type": %q, "action": "ACCEPT", `, direction)
	if peer.IsValid() {
		missing += fmt.Sprintf(`%q: %q, `, side, peer)
	}
	missing += fmt.Sprintf(`"proto": "tcp", "port": "%d"}`, f.tcp.Port)
	if verdict == "" {
		return []string{fmt.Sprintf("%s: cannot be known, because of %s; for certain with: %s", f, because, missing)}
	}
	return []string{fmt.Sprintf("%s: cut by %s; missing before it: %s", f, because, missing)}
}
