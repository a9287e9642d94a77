package config

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// The formats of Proxmox VE that have a grammar of their own: pct's features,
// the raw lines of a conf file, and the rules of pve-firewall.

// pctOptions reads sub-keys of pct's option features. Proxmox VE keeps a
// boolean as it was typed, so each is given as 0 or 1 here.
func pctOptions(p *parser, e *entry, v gjson.Result) {
	e.PctOptions = []string{}
	p.list(v, func(v gjson.Result) {
		s, ok := p.str(v)
		if !ok {
			return
		}
		for option := range strings.SplitSeq(s, ",") {
			key, value, ok := strings.Cut(strings.TrimSpace(option), "=")
			if !ok {
				p.fail(v, "%q is not of the form key=value, as in nesting=1", option)
				return
			}
			switch key {
			case "nesting", "keyctl", "fuse", "mknod", "force_rw_sys":
				switch strings.ToLower(value) {
				case "1", "on", "yes", "true":
					value = "1"
				case "0", "off", "no", "false":
					value = "0"
				default:
					p.fail(v, "%s must be 0 or 1, not %q", key, value)
					return
				}
			case "mount":
				if !mountTypesRE.MatchString(value) {
					p.fail(v, "mount must be types of file systems joined by semicolons, not %q", value)
					return
				}
			default:
				p.fail(v, "pct knows no feature %q: there are nesting, keyctl, fuse, mknod, mount and force_rw_sys", key)
				return
			}
			if slices.ContainsFunc(e.PctOptions, func(s string) bool { return strings.HasPrefix(s, key+"=") }) {
				p.fail(v, "%s is given twice", key)
				return
			}
			e.PctOptions = append(e.PctOptions, key+"="+value)
		}
	})
}

var mountTypesRE = regexp.MustCompile(`^[a-zA-Z0-9_]+(;[a-zA-Z0-9_]+)*$`)

// rawKeys are the keys of raw lines that pct keeps (pve-container 6.1). It
// deletes a line with another key at the next write of the conf file.
var rawKeys = map[string]bool{}

func init() {
	for group, keys := range map[string]string{
		"":          "include arch autodev kmsg group idmap environment environment.hooks",
		"apparmor.": "profile allow_incomplete allow_nesting raw",
		"selinux.":  "context",
		"uts.":      "name",
		"signal.":   "halt reboot stop",
		"init.":     "cmd cwd uid gid groups",
		"pty.":      "max",
		"console.":  "logfile path",
		"tty.":      "max",
		"devtty.":   "dir",
		"hook.":     "autodev pre-start pre-mount mount start stop post-stop clone destroy version",
		"mount.":    "fstab entry auto",
		"rootfs.":   "mount",
		"cap.":      "drop keep",
		"seccomp.":  "profile notify.proxy notify.cookie",
		"log.":      "level file",
		"start.":    "auto delay order",
		"sysctl.":   "fs.mqueue kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni kernel.shm_rmid_forced",
	} {
		for key := range strings.FieldsSeq(keys) {
			rawKeys["lxc."+group+key] = true
		}
	}
}

// rawHints say what to do instead of a raw line that pct does not keep as it is.
var rawHints = map[string]string{
	"lxc.rootfs.path":         "Proxmox VE makes it from storage_pool",
	"lxc.rootfs.options":      "Proxmox VE has options of mount points for this",
	"lxc.environment.runtime": "Proxmox VE moves it into an option of its own; use lxc.environment",
	"lxc.aa_profile":          "it is called lxc.apparmor.profile now",
	"lxc.id_map":              "it is called lxc.idmap now",
}

// maxCapabilities is the number of bits in a set of capabilities.
const maxCapabilities = 64

// cutRaw splits a raw line, "lxc.key: value" or "lxc.key=value".
func cutRaw(s string) (key, value string, ok bool) {
	key, rest := s, ""
	if i := strings.IndexAny(s, " :="); i >= 0 {
		key, rest = s[:i], strings.TrimLeft(s[i:], " ")
	}
	name, isLXC := strings.CutPrefix(key, "lxc.")
	if !isLXC || !madeOf(name, "_.-") || name != strings.ToLower(name) || rest == "" || rest[0] != ':' && rest[0] != '=' {
		return "", "", false
	}
	return key, strings.Trim(rest[1:], " "), true
}

func lxcOptions(p *parser, e *entry, v gjson.Result) {
	e.LXCOptions = []RawOption{}
	named := map[string]int{} // capabilities, by key
	p.list(v, func(v gjson.Result) {
		s, ok := p.str(v)
		if !ok {
			return
		}
		key, value, ok := cutRaw(s)
		if !ok {
			p.fail(v, "%q is not of the form lxc.key=value", s)
			return
		}
		switch {
		case rawKeys[key], hasAnyPrefix(key, "lxc.cgroup2.", "lxc.prlimit.", "lxc.net."):
		case strings.HasPrefix(key, "lxc.cgroup."):
			p.warn(v, "Proxmox VE is about to refuse lxc.cgroup.*: use lxc.cgroup2.*")
		case strings.HasPrefix(key, "lxc.limit."):
			p.fail(v, "lxc.limit.* is called lxc.prlimit.* now")
			return
		case rawHints[key] != "":
			p.fail(v, "%s: %s", key, rawHints[key])
			return
		default:
			p.fail(v, "Proxmox VE does not accept %s: it would delete the line", key)
			return
		}
		if key == "lxc.cap.keep" || key == "lxc.cap.drop" {
			if named[key] += strings.Count(value, ",") + 1; named[key] > maxCapabilities {
				p.fail(v, "%s: Linux has no more than %d capabilities", key, maxCapabilities)
				return
			}
			for capability := range strings.SplitSeq(value, ",") {
				e.LXCOptions = append(e.LXCOptions, RawOption{key, strings.TrimSpace(capability)})
			}
			return
		}
		e.LXCOptions = append(e.LXCOptions, RawOption{key, value})
	})
}

func hasAnyPrefix(s string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(s, prefix) })
}

func firewall(p *parser, e *entry, v gjson.Result) {
	f := &Firewall{}
	p.object(v, nil, func(key string, v gjson.Result) {
		switch key {
		case "enabled":
			f.Enabled = p.boolean(v)
		case "macfilter":
			f.MACFilter = new(p.boolean(v))
		case "ipfilter":
			f.IPFilter, e.ipfilter = new(p.boolean(v)), v.Index
		case "policy_in":
			f.PolicyIn = p.matched(v, isVerdict, verdictRule)
		case "policy_out":
			f.PolicyOut = p.matched(v, isVerdict, verdictRule)
		case "rules":
			f.Rules = []FirewallRule{}
			p.list(v, func(v gjson.Result) {
				if rule := p.firewallRule(v); !p.hopeless() {
					f.Rules = append(f.Rules, rule)
				}
			})
		default:
			p.fail(v, "unknown key")
		}
	})
	e.Firewall = f
}

var (
	groupRE = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]+$`)
	protoRE = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]*$`)
	setRE   = regexp.MustCompile(`^(\+((dc|guest|sdn)/)?|(dc|guest)/)?[A-Za-z][A-Za-z0-9_-]+$`)
	portRE  = regexp.MustCompile(`^[a-z][a-z0-9_.+-]*$`)
)

func (p *parser) firewallRule(v gjson.Result) FirewallRule {
	var r FirewallRule
	var action, port gjson.Result
	p.object(v, []need{
		{"type", "in, out or group"},
		{"action", "ACCEPT, DROP or REJECT, or the name of a group"},
	}, func(key string, v gjson.Result) {
		switch key {
		case "type":
			r.Type = p.matched(v, func(s string) bool { return s == "in" || s == "out" || s == "group" }, "in, out or group")
		case "action":
			r.Action, _ = p.str(v)
			action = v
		case "source":
			r.Source = p.matched(v, isPeer, peerRule)
		case "dest":
			r.Dest = p.matched(v, isPeer, peerRule)
		case "proto":
			r.Proto = p.matched(v, protoRE.MatchString, "the name or number of one protocol, in lower case")
		case "port":
			port = v
			if v.Type == gjson.Number {
				r.Port = strconv.Itoa(p.integer(v, 1, 65535))
			} else {
				r.Port = p.matched(v, isPorts, portRule)
			}
		case "comment":
			if v.Type != gjson.String || v.Str != "" {
				r.Comment, _ = p.str(v)
			}
		default:
			p.fail(v, "unknown key")
		}
	})
	switch {
	case r.Action == "" || r.Type == "":
	case r.Type == "group":
		if !groupRE.MatchString(r.Action) {
			p.at("action", func() { p.fail(action, "%q is not the name of a group", r.Action) })
		}
	case !isVerdict(r.Action):
		p.at("action", func() { p.fail(action, "%q is not %s", r.Action, verdictRule) })
	}
	if r.Port != "" && r.Proto == "" {
		p.at("port", func() { p.fail(port, "a port needs a proto") })
	}
	return r
}

func isVerdict(s string) bool { return s == "ACCEPT" || s == "DROP" || s == "REJECT" }

const (
	verdictRule = "ACCEPT, DROP or REJECT"

	peerRule = "a list of addresses, networks, ranges (a-b), aliases or +sets, joined by commas"
	portRule = "a list of ports or ranges (80:85), joined by commas"
)

func isPeer(s string) bool {
	for item := range strings.SplitSeq(s, ",") {
		if isAddr(item) {
			continue
		}
		if _, err := netip.ParsePrefix(item); err == nil { // which takes no zone
			continue
		}
		if from, to, ok := strings.Cut(item, "-"); ok {
			if isAddr(from) && isAddr(to) {
				a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
				if a.Is4() != b.Is4() || b.Less(a) {
					return false
				}
				continue
			}
		}
		if item == "any" || !setRE.MatchString(item) {
			return false
		}
	}
	return true
}

// isAddr reports whether s is an IP address, without a zone: that could be any
// text.
func isAddr(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == ""
}

func isPorts(s string) bool {
	for item := range strings.SplitSeq(s, ",") {
		if portRE.MatchString(item) {
			continue
		}
		from, to, isRange := strings.Cut(item, ":")
		if !isRange {
			to = from
		}
		a, ok1 := portNumber(from)
		b, ok2 := portNumber(to)
		if !ok1 || !ok2 || a > b {
			return false
		}
	}
	return true
}

func portNumber(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && 1 <= n && n <= 65535 && strconv.Itoa(n) == s
}
