package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// The lab has no daemon that watches the firewall files, as pve-firewall does every ten seconds. Instead every call of
// pct brings the kernel's rules up to date with the files, whoever has changed them.
//
// The rules are those that pve-firewall 6.0 makes, in nftables' bridge family, with these differences: there is no
// connection tracking in that family, so a TCP segment other than a first SYN counts as established, an ICMP error or
// reply too, and a datagram of UDP when it answers one that was let through; REJECT drops; macros, logging and
// layer2_protocols are not part of the lab.

// A firewall is what one firewall file says: cluster.fw, or that of a container.
type firewall struct {
	options map[string]string
	aliases map[string]string
	ipsets  map[string][]string
	groups  map[string][]fwRule
	rules   []fwRule
}

// An fwRule is a rule that is not disabled.
type fwRule struct {
	place        string // for messages
	kind         string // in, out or group
	action       string // or the name of the group
	iface        string
	source, dest string
	proto        string
	dport, sport string
	icmpType     string
}

var (
	fwSectionRE = regexp.MustCompile(`(?i)^\[(options|aliases|rules|(?:ipset|group)\s+(\S+))\]\s*(?:#.*)?$`)
	fwOptionRE  = regexp.MustCompile(`(?i)^(?:(enable|dhcp|ndp|radv|macfilter|ipfilter|ips|ebtables):\s*([01])|` +
		`(policy_in|policy_out):\s*(ACCEPT|DROP|REJECT))$`)
	fwRuleRE = regexp.MustCompile(`^(\S+)\s+(\S+)\s*(.*)$`)
	fwWordRE = regexp.MustCompile(`^(-i|-p|--?proto|--?(?:source|dest|dport|sport|log|icmp-type)) (\S+)\s*`)
)

// parseFirewall reads a firewall file. What it cannot use it reports to warn, and leaves out, as pve-firewall does.
func parseFirewall(path string, data []byte, warn func(place, format string, a ...any)) *firewall {
	f := &firewall{options: map[string]string{}, aliases: map[string]string{}, ipsets: map[string][]string{},
		groups: map[string][]fwRule{}}
	section, name, number := "", "", 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		place := fmt.Sprintf("%s (line %d)", path, number)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if m := fwSectionRE.FindStringSubmatch(line); m != nil {
			section, name = strings.ToLower(strings.Fields(m[1])[0]), strings.ToLower(m[2])
			if section == "ipset" && f.ipsets[name] == nil {
				f.ipsets[name] = []string{} // an empty set is one
			}
			continue
		}
		switch section {
		case "options":
			if m := fwOptionRE.FindStringSubmatch(line); m != nil {
				f.options[strings.ToLower(m[1]+m[3])] = strings.ToUpper(m[2] + m[4])
			} else if key := strings.ToLower(line); !strings.HasPrefix(key, "log_") {
				warn(place, "option is not part of the lab, or cannot be parsed: %s", line)
			}
		case "aliases":
			line, _, _ = strings.Cut(line, "#")
			if words := strings.Fields(line); len(words) == 2 {
				f.aliases[strings.ToLower(words[0])] = words[1]
			} else {
				warn(place, "unable to parse alias: %s", line)
			}
		case "ipset":
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "!") {
				warn(place, "exceptions in a set are not part of the lab: %s", line)
				continue
			}
			f.ipsets[name] = append(f.ipsets[name], line)
		case "rules", "group":
			rule, enabled, err := parseFWRule(line)
			if err != nil {
				warn(place, "%v", err)
				continue
			}
			rule.place = place
			switch {
			case !enabled:
			case section == "group":
				f.groups[name] = append(f.groups[name], rule)
			default:
				f.rules = append(f.rules, rule)
			}
		default:
			warn(place, "skip line - no section")
		}
	}
	return f
}

func parseFWRule(line string) (r fwRule, enabled bool, err error) {
	line, _, _ = strings.Cut(line, "#")
	line, disabled := strings.CutPrefix(strings.TrimSpace(line), "|")
	m := fwRuleRE.FindStringSubmatch(line)
	if m == nil {
		return r, false, fmt.Errorf("unable to parse rule: %s", line)
	}
	r.kind, r.action = strings.ToLower(m[1]), m[2]
	switch {
	case r.kind != "in" && r.kind != "out" && r.kind != "group":
		return r, false, fmt.Errorf("unknown rule type '%s'", r.kind)
	case r.kind != "group" && strings.Contains(r.action, "("):
		return r, false, fmt.Errorf("macros are not part of the lab, the rule is left out: %s", line)
	case r.kind != "group" && r.action != "ACCEPT" && r.action != "DROP" && r.action != "REJECT":
		return r, false, fmt.Errorf("unknown action '%s'", r.action)
	}
	fields := map[string]*string{
		"i": &r.iface, "p": &r.proto, "proto": &r.proto, "source": &r.source, "dest": &r.dest,
		"dport": &r.dport, "sport": &r.sport, "icmp-type": &r.icmpType, "log": new(string),
	}
	for rest := m[3]; rest != ""; {
		m := fwWordRE.FindStringSubmatch(rest)
		if m == nil {
			return r, false, fmt.Errorf("unable to parse rule parameters: %s", rest)
		}
		*fields[strings.TrimLeft(m[1], "-")] = m[2]
		rest = rest[len(m[0]):]
	}
	return r, !disabled, nil
}

// on reports whether an option is set; without a line for it, whether it is by default.
func (f *firewall) on(option string, byDefault bool) bool {
	if v, ok := f.options[option]; ok {
		return v == "1"
	}
	return byDefault
}

// A filter is the firewall of one container, with the cluster's aliases, sets and groups.
type filter struct {
	guest, cluster *firewall
	warn           func(place, format string, a ...any)
}

// addresses returns the words of a source or destination as nftables takes them, by their family.
func (f *filter) addresses(text string) (v4, v6 []string, err error) {
	words := strings.Split(text, ",")
	if name, ok := strings.CutPrefix(text, "+"); ok {
		if words, err = f.lookup(name, "ipset",
			func(f *firewall, name string) ([]string, bool) { set, ok := f.ipsets[name]; return set, ok }); err != nil {
			return nil, nil, err
		}
	}
	for _, word := range words {
		first, last, isRange := strings.Cut(word, "-")
		ip, err := netip.ParseAddr(first)
		if prefix, prefixErr := netip.ParsePrefix(word); prefixErr == nil {
			ip, err, word = prefix.Addr(), nil, prefix.Masked().String()
		} else if isRange && err == nil {
			_, err = netip.ParseAddr(last)
		}
		if err != nil { // no address: a name
			alias, err := f.lookup(word, "alias",
				func(f *firewall, name string) ([]string, bool) { a, ok := f.aliases[name]; return []string{a}, ok })
			if err != nil {
				return nil, nil, err
			}
			prefix, err := netip.ParsePrefix(alias[0])
			if err != nil {
				if ip, err = netip.ParseAddr(alias[0]); err != nil {
					return nil, nil, err
				}
				prefix = netip.PrefixFrom(ip, ip.BitLen())
			}
			ip, word = prefix.Addr(), prefix.Masked().String()
		}
		if ip.Is4() {
			v4 = append(v4, word)
		} else {
			v6 = append(v6, word)
		}
	}
	return v4, v6, nil
}

// lookup finds a name that may say whose it is, the container's before the cluster's.
func (f *filter) lookup(name, what string, in func(*firewall, string) ([]string, bool)) ([]string, error) {
	scopes := []*firewall{f.guest, f.cluster}
	if local, ok := strings.CutPrefix(name, "guest/"); ok {
		name, scopes = local, scopes[:1]
	} else if global, ok := strings.CutPrefix(name, "dc/"); ok {
		name, scopes = global, scopes[1:]
	}
	for _, scope := range scopes {
		if found, ok := in(scope, strings.ToLower(name)); ok {
			return found, nil
		}
	}
	return nil, fmt.Errorf("no such %s '%s'", what, name)
}

// anyOf is a set of nftables.
func anyOf(words []string) string { return "{ " + strings.Join(words, ", ") + " }" }

var (
	fwProtocols = map[string]string{
		"tcp": "tcp", "6": "tcp", "udp": "udp", "17": "udp", "sctp": "sctp", "132": "sctp",
		"udplite": "udplite", "136": "udplite",
		"icmp": "icmp", "1": "icmp", "icmpv6": "ipv6-icmp", "ipv6-icmp": "ipv6-icmp", "58": "ipv6-icmp",
		"esp": "esp", "50": "esp", "ah": "ah", "51": "ah", "gre": "gre", "47": "gre",
	}
	fwICMPTypes = []string{
		"echo-reply", "echo-request", "destination-unreachable", "redirect", "time-exceeded", "parameter-problem",
		"packet-too-big", "timestamp-request", "timestamp-reply",
	}
)

// ports returns the ports of a rule as nftables takes them.
func ports(proto, text string) ([]string, error) {
	var all []string
	for item := range strings.SplitSeq(text, ",") {
		var numbers []string
		for word := range strings.SplitSeq(item, ":") {
			n, err := net.LookupPort(proto, word)
			if err != nil {
				return nil, fmt.Errorf("invalid port '%s'", item)
			}
			numbers = append(numbers, strconv.Itoa(n))
		}
		if len(numbers) > 2 {
			return nil, fmt.Errorf("invalid port '%s'", item)
		}
		all = append(all, strings.Join(numbers, "-"))
	}
	return all, nil
}

// lines returns a rule as lines of nftables, one for each family that it names.
func (f *filter) lines(r fwRule) ([]string, error) {
	verdict := "drop"
	if r.action == "ACCEPT" {
		verdict = "goto allow"
	}
	var match string
	if r.proto != "" {
		proto := fwProtocols[r.proto]
		if proto == "" {
			return nil, fmt.Errorf("protocol '%s' is not part of the lab", r.proto)
		}
		match = "meta l4proto " + proto + " "
		icmpType := r.icmpType
		if strings.HasSuffix(proto, "icmp") {
			if r.dport != "" {
				icmpType = r.dport
			}
		} else if icmpType != "" {
			return nil, errors.New("'icmp-type' can only be set if 'icmp', 'icmpv6' or 'ipv6-icmp' is specified")
		}
		if icmpType != "" && icmpType != "any" {
			if !slices.Contains(fwICMPTypes, icmpType) {
				return nil, fmt.Errorf("icmp-type '%s' is not part of the lab", icmpType)
			}
			match = map[string]string{"icmp": "icmp", "ipv6-icmp": "icmpv6"}[proto] + " type " + icmpType + " "
		}
		for _, p := range []struct{ key, value string }{{"sport", r.sport}, {"dport", r.dport}} {
			if p.value == "" || strings.HasSuffix(proto, "icmp") {
				continue
			}
			if !slices.Contains([]string{"tcp", "udp", "sctp", "udplite"}, proto) {
				return nil, fmt.Errorf("protocol '%s' does not support ports", r.proto)
			}
			numbers, err := ports(proto, p.value)
			if err != nil {
				return nil, err
			}
			match += proto + " " + p.key + " " + anyOf(numbers) + " "
		}
	} else if r.dport != "" || r.sport != "" || r.icmpType != "" {
		return nil, errors.New("missing property 'proto': a port requires it")
	}
	if r.source == "" && r.dest == "" {
		return []string{match + verdict}, nil
	}
	var lines []string
	families := map[string][2][]string{} // source and destination
	for i, text := range []string{r.source, r.dest} {
		if text == "" {
			continue
		}
		v4, v6, err := f.addresses(text)
		if err != nil {
			return nil, err
		}
		for name, words := range map[string][]string{"ip": v4, "ip6": v6} {
			family := families[name]
			family[i] = words
			families[name] = family
		}
	}
	for _, name := range []string{"ip", "ip6"} {
		family := families[name]
		if r.source != "" && len(family[0]) == 0 || r.dest != "" && len(family[1]) == 0 {
			continue
		}
		var prefix string
		for i, key := range []string{"saddr", "daddr"} {
			if len(family[i]) > 0 {
				prefix += name + " " + key + " " + anyOf(family[i]) + " "
			}
		}
		lines = append(lines, prefix+match+verdict)
	}
	return lines, nil
}

// rules returns the rules for one interface and direction, with those of groups in their place.
func (f *filter) rules(kind, iface string) []string {
	var lines []string
	add := func(r fwRule) {
		if r.kind != kind || r.iface != "" && r.iface != iface {
			return
		}
		text, err := f.lines(r)
		if err != nil {
			f.warn(r.place, "%v, the rule is left out", err)
			return
		}
		lines = append(lines, text...)
	}
	for _, r := range f.guest.rules {
		if r.kind != "group" {
			add(r)
			continue
		}
		if r.iface != "" && r.iface != iface {
			continue
		}
		group, ok := f.cluster.groups[strings.ToLower(r.action)]
		if !ok {
			f.warn(r.place, "no such security group '%s'", r.action)
		}
		for _, member := range group {
			add(member)
		}
	}
	return lines
}

// linkLocal is the address that IPv6 makes of a hardware address.
func linkLocal(mac net.HardwareAddr) string {
	ip := [16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3],
		14: mac[4], 15: mac[5]}
	return netip.AddrFrom16(ip).String()
}

// chains returns the two chains of an interface: what comes from the container, and what goes to it.
func (f *filter) chains(n nic, veth string) string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, "\t\t"+format+"\n", a...) }
	iface := fmt.Sprintf("net%d", n.index)
	policy := func(option, byDefault string) {
		if v := f.guest.options[option]; v == "ACCEPT" || v == "" && byDefault == "ACCEPT" {
			line("goto allow")
		} else {
			line("drop")
		}
	}
	mac, macErr := net.ParseMAC(n.values["hwaddr"])

	fmt.Fprintf(&b, "\tchain %s-OUT {\n", veth)
	if f.guest.on("dhcp", true) {
		line("udp sport . udp dport { 68 . 67, 546 . 547 } accept")
	}
	if f.guest.on("macfilter", true) && macErr == nil {
		line("ether saddr != %s drop", mac)
	}
	if !f.guest.on("radv", false) {
		line("icmpv6 type nd-router-advert drop")
	}
	set, hasSet := f.guest.ipsets["ipfilter-"+iface]
	var own []string
	for _, key := range []string{"ip", "ip6"} {
		if prefix, err := netip.ParsePrefix(n.values[key]); err == nil {
			own = append(own, prefix.Addr().String())
		}
	}
	byFamily := func(words []string) (v4, v6 []string) {
		for _, word := range words {
			a, b, err := f.addresses(word)
			if err != nil {
				f.warn("ipset ipfilter-"+iface, "%v", err)
			}
			v4, v6 = append(v4, a...), append(v6, b...)
		}
		return v4, v6
	}
	// In ARP the container's own address counts with the option alone, in IP with the option or the set.
	arp := slices.Clone(set)
	if f.guest.on("ipfilter", false) {
		arp = append(arp, own...)
	}
	if v4, _ := byFamily(arp); len(v4) > 0 && f.cluster.on("ebtables", true) {
		line("arp saddr ip != %s drop", anyOf(v4))
	}
	line("ether type != { ip, ip6 } accept")
	if hasSet || f.guest.on("ipfilter", false) {
		v4, v6 := byFamily(append(slices.Clone(set), own...))
		if macErr == nil {
			v6 = append(v6, linkLocal(mac))
		}
		for _, family := range []struct {
			name  string
			words []string
		}{{"ip", v4}, {"ip6", v6}} {
			if len(family.words) == 0 {
				line("ether type %s drop", family.name)
			} else {
				line("%s saddr != %s drop", family.name, anyOf(family.words))
			}
		}
	}
	line("jump established")
	if f.guest.on("ndp", true) {
		line("icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept")
		if f.guest.on("radv", false) {
			line("icmpv6 type nd-router-advert accept")
		}
	}
	for _, text := range f.rules("out", iface) {
		line("%s", text)
	}
	policy("policy_out", "ACCEPT")
	b.WriteString("\t}\n")

	fmt.Fprintf(&b, "\tchain %s-IN {\n", veth)
	if f.guest.on("dhcp", true) {
		line("udp sport . udp dport { 67 . 68, 547 . 546 } accept")
	}
	line("ether type != { ip, ip6 } accept")
	line("jump established")
	if f.guest.on("ndp", true) {
		line("icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept")
	}
	for _, text := range f.rules("in", iface) {
		line("%s", text)
	}
	policy("policy_in", "DROP")
	b.WriteString("\t}\n")
	return b.String()
}

const (
	noFilters = "table bridge pve\ndelete table bridge pve\n"

	commonChains = `	set flows {
		typeof ip saddr . udp sport . ip daddr . udp dport
		flags dynamic,timeout
		timeout 30s
		size 65535
	}
	set flows6 {
		typeof ip6 saddr . udp sport . ip6 daddr . udp dport
		flags dynamic,timeout
		timeout 30s
		size 65535
	}
	chain allow {
		ip protocol udp update @flows { ip daddr . udp dport . ip saddr . udp sport }
		ip6 nexthdr udp update @flows6 { ip6 daddr . udp dport . ip6 saddr . udp sport }
		accept
	}
	chain established {
		tcp flags & (syn | ack) != syn accept
		ip saddr . udp sport . ip daddr . udp dport @flows accept
		ip6 saddr . udp sport . ip6 daddr . udp dport @flows6 accept
		icmp type { echo-reply, destination-unreachable, time-exceeded, parameter-problem } accept
		icmpv6 type { echo-reply, destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
	}
`
)

// ruleset returns what nftables has to load for the lab's files as they are, and what there is to say about them.
func (l *lab) ruleset() (string, []string, error) {
	var warnings []string
	warn := func(place, format string, a ...any) {
		if w := place + ": " + fmt.Sprintf(format, a...); !slices.Contains(warnings, w) {
			warnings = append(warnings, w)
		}
	}
	// read returns nil for a firewall that is not enabled.
	read := func(path string) (*firewall, error) {
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		said := len(warnings)
		f := parseFirewall(path, data, warn)
		if !f.on("enable", false) {
			warnings = warnings[:said]
			return nil, nil
		}
		return f, nil
	}
	cluster, err := read(filepath.Join(l.dir, "pve", "firewall", "cluster.fw"))
	if err != nil || cluster == nil {
		return noFilters, nil, err
	}
	files, err := filepath.Glob(filepath.Join(l.dir, "pve", "lxc", "*.conf"))
	if err != nil {
		return "", nil, err
	}
	var chains, from, to strings.Builder
	for _, file := range files {
		vmid, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(file), ".conf"))
		if err != nil {
			continue
		}
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // destroyed meanwhile
		}
		if err != nil {
			return "", nil, err
		}
		guest, err := read(l.firewallPath(vmid))
		if err != nil {
			return "", nil, err
		}
		if guest == nil {
			continue
		}
		f := &filter{guest, cluster, warn}
		for _, n := range parseConfig(vmid, data, new(bytes.Buffer)).nets() {
			if n.values["firewall"] != "1" {
				continue
			}
			veth := fmt.Sprintf("veth%di%d", vmid, n.index)
			chains.WriteString(f.chains(n, veth))
			fmt.Fprintf(&from, "\t\tiifname %s jump %s-OUT\n", veth, veth)
			fmt.Fprintf(&to, "\t\toifname %s jump %s-IN\n", veth, veth)
		}
	}
	if chains.Len() == 0 {
		return noFilters, warnings, nil
	}
	// Before routing the bridge has not yet learned a forged address; after it, what the host sends passes too.
	return noFilters + "table bridge pve {\n" + commonChains + chains.String() +
		"\tchain from {\n\t\ttype filter hook prerouting priority 0\n" + from.String() + "\t}\n" +
		"\tchain to {\n\t\ttype filter hook postrouting priority 0\n" + to.String() + "\t}\n}\n", warnings, nil
}

// applyFirewall has the kernel enforce the firewall files, if what follows from them has changed since the last time.
func (l *lab) applyFirewall() error {
	path := filepath.Join(l.dir, "lock", "firewall.nft")
	// What was said is part of what was loaded, so that it is said once.
	pending := func() (text string, warnings []string, err error) {
		text, warnings, err = l.ruleset()
		for _, w := range warnings {
			text += "# " + w + "\n"
		}
		loaded, readErr := os.ReadFile(path)
		if readErr == nil && string(loaded) == text || readErr != nil && text == noFilters {
			text = ""
		}
		return text, warnings, err
	}
	if text, _, err := pending(); err == nil && text == "" {
		return nil
	}
	err := func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer lock.Close()
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			return err
		}
		text, warnings, err := pending()
		if err != nil || text == "" {
			return err
		}
		for _, w := range warnings {
			fmt.Fprintln(l.stderr, "pve-firewall:", w)
		}
		if err := l.backend.filter(text); err != nil {
			return err
		}
		return renameio.WriteFile(path, []byte(text), 0o644)
	}()
	if err != nil {
		return die(255, "lab: firewall: %v", err)
	}
	return nil
}
