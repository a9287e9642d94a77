package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A format is what a string has to be: what it is called, as in "is not a host
// name", what reports whether a string is that, and what the schema says of it.
// TestFormats holds the two together.
type format struct {
	what string
	is   func(string) bool
	form
}

// The formats of names.
var (
	hostName = format{"a host name: labels of letters, digits and inner hyphens, up to 63 long, joined by dots, " +
		"up to 253 together", IsHostName, hostNameForm}
	fileName = format{"a plain name: letters, digits, '.', '_' and '-', the first neither dot nor hyphen", isFileName,
		like("file name", namePattern+`{0,199}`)}
	device = format{"the name of an interface: letters, digits, '.', '_' and '-', up to 15", isInterface,
		like("name of an interface", namePattern+`{0,14}`)}
	storage = format{"the name of a storage: a letter, then letters, digits, '.', '_' or '-', " +
		"the last a letter or digit", isStorage, like("name of a storage", storagePattern)}
	snapshot = format{"a name for a snapshot: a letter, then letters, digits, '_' or '-', 2 to 40 together, " +
		"and not \"current\"", isSnapshot,
		like("name of a snapshot, not `current`", `[A-Za-z][\w-]{1,39}`).but(`^[Cc][Uu][Rr][Rr][Ee][Nn][Tt]$`)}
	template = format{"a template: a volume id such as local:vztmpl/NAME.tar.zst, or the path of a file", isTemplate,
		loose("volume id such as `local:vztmpl/NAME.tar.zst`, or a path",
			`^(`+storagePattern+`:(.*[^/])|[^:/-]|[^:-][^:]*[^:/])$`).but(`(^|/)\.\.(/|$)`)}
)

// maxHostName is the greatest length of a host name.
const maxHostName = 253

// IsHostName reports whether s is a host name as pct takes it, and no label of it
// is longer than DNS allows.
func IsHostName(s string) bool {
	if len(s) > maxHostName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isHostLabel(label) {
			return false
		}
	}
	return true
}

func isHostLabel(s string) bool {
	return len(s) <= 63 && madeOf(s, "-") && isAlnum(s[0]) && isAlnum(s[len(s)-1])
}

func isFileName(s string) bool {
	return len(s) <= 200 && madeOf(s, "._-") && s[0] != '.' && s[0] != '-'
}

// isInterface reports whether s is the name of a network interface.
func isInterface(s string) bool { return len(s) <= 15 && isFileName(s) }

func isStorage(s string) bool {
	return 2 <= len(s) && len(s) <= 100 && madeOf(s, "._-") && isLetter(s[0]) && isAlnum(s[len(s)-1])
}

func isSnapshot(s string) bool {
	return len(s) <= 40 && isConfigID(s) && !strings.EqualFold(s, "current")
}

func isTemplate(s string) bool {
	name, volume, isVolume := strings.Cut(s, ":")
	return len(s) <= 255 && !strings.HasPrefix(s, "-") && !strings.HasSuffix(s, "/") &&
		!slices.Contains(strings.Split(s, "/"), "..") && (!isVolume || isStorage(name) && volume != "")
}

// The formats of the network.
var (
	ipAddress   = format{"an IP address", isIPAddress, like("IP address", `(`+v4+`|`+v6+`)`)}
	ipv4Address = format{"an IPv4 address", isIPv4Address, like("IPv4 address", v4)}
	ipv6Address = format{"an IPv6 address", isIPv6Address, like("IPv6 address", v6)}
	ipv4Prefix  = format{"an IPv4 address with its prefix length, as in 10.0.0.10/24, nor dhcp or manual", isIPv4Prefix,
		like("IPv4 address with a prefix length from 8 to 32, `dhcp` or `manual`",
			`(`+v4+`/([89]|[12][0-9]|3[0-2])|dhcp|manual)`)}
	ipv6Prefix = format{"an IPv6 address with its prefix length, as in fd00::10/64, nor dhcp, auto or manual",
		isIPv6Prefix, like("IPv6 address with a prefix length from 8 to 128, `dhcp`, `auto` or `manual`",
			`(`+v6+`/([89]|[1-9][0-9]|1[01][0-9]|12[0-8])|dhcp|auto|manual)`)}
	macAddress = format{"a MAC address: six pairs of hexadecimal digits joined by colons", isMACAddress,
		like("MAC address, not of a group", `([0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5})?`).
			but(`^00(:00){5}$`)}
	httpsURL = format{"an https:// URL", isHTTPS, loose("https URL", "^[Hh][Tt][Tt][Pp][Ss]://"+
		"([^ \"'`$\\\\/?#@:\\[\\]%]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]*)?([/?#][^ \"'`$\\\\]*)?$")}
	urlScheme = choice("http or https", "http", "https")
)

// isIPAddress takes no address with a zone: that could be any text.
func isIPAddress(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == ""
}

func isIPv4Address(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is4()
}

// isIPv6Address takes no IPv4 address in the form of IPv6.
func isIPv6Address(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is6() && !a.Is4In6() && a.Zone() == ""
}

func isIPv6Prefix(s string) bool {
	p, err := netip.ParsePrefix(s)
	return err == nil && p.Addr().Is6() && !p.Addr().Is4In6()
}

func isIPv4Prefix(s string) bool {
	p, err := netip.ParsePrefix(s)
	return err == nil && p.Addr().Is4()
}

// isHostIn reports whether a host may have the address a of network. In IPv6 the
// first address is that of any router; there is no broadcast.
func isHostIn(network netip.Prefix, a netip.Addr) bool {
	if a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() {
		return false
	}
	if network.Bits() >= a.BitLen()-1 {
		return true
	}
	first := network.Masked().Addr()
	if a.Is6() {
		return a != first
	}
	last := first.As4()
	for i := network.Bits(); i < 32; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	return a != first && a != netip.AddrFrom4(last)
}

func isMACAddress(s string) bool {
	const example = "00:00:00:00:00:00"
	_, err := net.ParseMAC(s)
	return err == nil && len(s) == len(example) && s[2] == ':'
}

func isHTTPS(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && u.User == nil &&
		!strings.ContainsAny(s, " \"'`$\\") && !strings.Contains(u.Hostname(), "%") // no zone of an IPv6 address
}

// The formats of pct's features, maps of ids and GPUs.
var (
	keyValue    = format{what: "of the form key=value, as in nesting=1", is: isKeyValue}
	pveBoolean  = format{what: "0 or 1", is: isPVEBoolean}
	fileSystems = format{what: "types of file systems joined by semicolons", is: isFileSystems}
	pctOption   = loose("", `^\s*`+pctOptionPattern+`\s*(,\s*`+pctOptionPattern+`\s*)*$`)
	idMap       = format{"a map of ids: u or g, first id inside, first id outside, how many", isIDMap,
		loose("string `u\\|g INSIDE OUTSIDE COUNT`",
			`^\s*[ug]\s+(0|[1-9][0-9]*)\s+(0|[1-9][0-9]*)\s+[1-9][0-9]*\s*$`)}
	gpuList = format{"a list of GPUs: none, or indices joined by commas", isGPUList,
		loose("`none`, or indices joined by commas: `0,1`", `^(none|\s*`+gpuIndex+`\s*(,\s*`+gpuIndex+`\s*)*)$`)}
)

const (
	gpuIndex         = `0*(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])`
	pctOptionPattern = `((nesting|keyctl|fuse|mknod|force_rw_sys)=(0|1|[Oo][Nn]|[Oo][Ff][Ff]|[Yy][Ee][Ss]|[Nn][Oo]|` +
		`[Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])|mount=[0-9A-Za-z_]+(;[0-9A-Za-z_]+)*)`
)

// pveBooleans has what Proxmox VE takes for a boolean, in lower case.
var pveBooleans = map[string]string{
	"1": "1", "on": "1", "yes": "1", "true": "1",
	"0": "0", "off": "0", "no": "0", "false": "0",
}

func isPVEBoolean(s string) bool { return pveBooleans[strings.ToLower(s)] != "" }

// pctFeatures are the sub-keys of pct's option features.
var pctFeatures = map[string]format{
	"nesting": pveBoolean, "keyctl": pveBoolean, "fuse": pveBoolean, "mknod": pveBoolean, "force_rw_sys": pveBoolean,
	"mount": fileSystems,
}

func isKeyValue(s string) bool { return strings.Contains(s, "=") }

func isFileSystems(s string) bool {
	for kind := range strings.SplitSeq(s, ";") {
		if !madeOf(kind, "_") {
			return false
		}
	}
	return true
}

func isIDMap(s string) bool {
	f := strings.Fields(s)
	return len(f) == 4 && (f[0] == "u" || f[0] == "g") && isDecimal(f[1]) && isDecimal(f[2]) && isDecimal(f[3]) &&
		f[3] != "0"
}

// isGPUList bounds the indices as nothing else does.
func isGPUList(s string) bool {
	if s == "none" {
		return true
	}
	for index := range strings.SplitSeq(s, ",") {
		if _, err := strconv.ParseUint(strings.TrimSpace(index), 10, 8); err != nil {
			return false
		}
	}
	return true
}

// rawLine is the format of a raw line of a conf file.
var rawLine = format{what: "of the form lxc.key=value", is: isRawLine}

// rawOption is the form of a raw line that pct keeps.
var rawOption = form{"", func() shape {
	var keys []string
	for key := range rawKeys {
		keys = append(keys, regexp.QuoteMeta(strings.TrimPrefix(key, "lxc.")))
	}
	slices.Sort(keys)
	return loose("", `^lxc\.(`+strings.Join(keys, "|")+`|(cgroup2?|prlimit|net)\.[a-z0-9_.-]*) *[:=]`).shape()
}}

func isRawLine(s string) bool {
	_, _, ok := cutRaw(s)
	return ok
}

// cutRaw splits a raw line, "lxc.key: value" or "lxc.key=value".
func cutRaw(s string) (key, value string, ok bool) {
	key, rest := s, ""
	if i := strings.IndexAny(s, " :="); i >= 0 {
		key, rest = s[:i], strings.TrimLeft(s[i:], " ")
	}
	name, isLXC := strings.CutPrefix(key, "lxc.")
	if !isLXC || !madeOf(name, "_.-") || name != strings.ToLower(name) || !hasAnyPrefix(rest, ":", "=") {
		return "", "", false
	}
	return key, strings.Trim(rest[1:], " "), true
}

// rawKeys are the keys of raw lines that pct keeps (pve-container 6.1). It
// deletes a line with another key when it next writes the conf file.
var rawKeys = func() map[string]bool {
	all := map[string]bool{}
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
		"sysctl.": "fs.mqueue kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax " +
			"kernel.shmmni kernel.shm_rmid_forced",
	} {
		for key := range strings.FieldsSeq(keys) {
			all["lxc."+group+key] = true
		}
	}
	return all
}()

// isKeptRawKey reports whether pct keeps raw lines with a key.
func isKeptRawKey(key string) bool {
	return rawKeys[key] || hasAnyPrefix(key, "lxc.cgroup2.", "lxc.prlimit.", "lxc.net.")
}

// rawHints are what to do instead of a raw line that pct does not keep as it is.
var rawHints = map[string]string{
	"lxc.rootfs.path":         "Proxmox VE makes it from storage_pool",
	"lxc.rootfs.options":      "Proxmox VE has options of mount points for this",
	"lxc.environment.runtime": "Proxmox VE moves it into an option of its own; use lxc.environment",
	"lxc.aa_profile":          "it is called lxc.apparmor.profile now",
	"lxc.id_map":              "it is called lxc.idmap now",
}

// The formats of pve-firewall's rules.
var (
	ruleType  = choice("in, out or group", "in", "out", "group")
	verdict   = choice("ACCEPT, DROP or REJECT", "ACCEPT", "DROP", "REJECT")
	ruleGroup = format{"the name of a group", isConfigID, like("name of a group", configID)}
	ruleProto = format{"the name or number of one protocol, in lower case", isProtocol,
		like("protocol in lower case", `[a-z0-9][a-z0-9.+-]*`)}
	rulePeers = format{"a list of addresses and networks of one family, joined by commas, nor a range (a-b), " +
		"an alias or a +set", isPeers, like("", `(`+networks4+`(,`+networks4+`)*|`+networks6+`(,`+networks6+`)*|`+
		v4+`-`+v4+`|`+v6+`-`+v6+`|((dc|guest)/)?`+configID+`|\+((dc|guest|sdn)/)?`+configID+`)`).but(`^any$`)}
	rulePorts = format{"a list of ports or ranges (80:85), joined by commas", isPorts,
		like("ports, ranges `80:85` and names, joined by commas", ports+`(,`+ports+`)*`)}
)

// Parts of patterns. They are for regular expressions of ECMAScript and of Go.
const (
	namePattern    = `[0-9A-Za-z_][0-9A-Za-z._-]`
	storagePattern = `[A-Za-z][0-9A-Za-z._-]{0,98}[0-9A-Za-z]`
	label          = `[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?`
	configID       = `[A-Za-z][\w-]+`

	octet = `(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])`
	v4    = octet + `(\.` + octet + `){3}`
	hex   = `[0-9A-Fa-f]{1,4}`
	tail  = `(` + hex + `:` + hex + `|` + v4 + `)` // of an IPv6 address: its last 32 bits
	v6    = `((` + hex + `:){6}` + tail +
		`|::(` + hex + `:){0,5}` + tail +
		`|` + hex + `::(` + hex + `:){0,4}` + tail +
		`|(` + hex + `:){1}` + hex + `::(` + hex + `:){0,3}` + tail +
		`|(` + hex + `:){2}` + hex + `::(` + hex + `:){0,2}` + tail +
		`|(` + hex + `:){3}` + hex + `::(` + hex + `:){0,1}` + tail +
		`|(` + hex + `:){4}` + hex + `::` + tail +
		`|(` + hex + `:){0,5}` + hex + `::` + hex +
		`|(` + hex + `:){0,6}` + hex + `::|::` + hex + `|::)`
	bits4     = `/([0-9]|[12][0-9]|3[0-2])`
	bits6     = `/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8])`
	networks4 = v4 + `(` + bits4 + `)?`
	networks6 = v6 + `(` + bits6 + `)?`

	port  = `(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})`
	ports = `(` + port + `(:` + port + `)?|[a-z][a-z0-9_.+-]*)`
	vlan  = `(409[0-4]|40[0-8][0-9]|[1-3][0-9]{3}|[1-9][0-9]{0,2})`
)

var hostNameForm = fixed("host name", shape{
	"type": "string", "maxLength": maxHostName, "pattern": `^` + label + `(\.` + label + `)*$`,
})

// anyText is the form of a string that is not empty and has no control characters.
var anyText = fixed("string", shape{"type": "string", "pattern": `^[^\x00-\x1f\x7f-\x9f]+$`})

// like is the form of strings of a pattern, which allows no control characters.
func like(words, pattern string) form {
	return fixed(words, shape{"type": "string", "pattern": `^` + pattern + `$`})
}

// loose is the form of a text that has a pattern as well.
func loose(words, pattern string) form {
	return form{words, anyText.with(shape{"allOf": []shape{{"pattern": pattern}}}).shape}
}

// but takes what has a pattern out of a form.
func (f form) but(pattern string) form {
	return f.with(shape{"not": shape{"pattern": pattern}})
}

// choice is the format of some words.
func choice(what string, words ...string) format {
	is := func(s string) bool { return slices.Contains(words, s) }
	return format{what, is, fixed(alternatives(words), shape{"type": "string", "enum": words})}
}

// alternatives returns words in Markdown, as in "`a`, `b` or `c`".
func alternatives(words []string) string {
	last := len(words) - 1
	return "`" + strings.Join(words[:last], "`, `") + "` or `" + words[last] + "`"
}

// isConfigID reports whether s is what Proxmox VE calls a configuration id.
func isConfigID(s string) bool { return len(s) >= 2 && isLetter(s[0]) && madeOf(s, "_-") }

func isProtocol(s string) bool { return madeOf(s, ".+-") && isAlnum(s[0]) && s == strings.ToLower(s) }

// isPeers takes what pve-firewall takes: it passes over a rule with a list in which
// anything but addresses and networks of one family is.
func isPeers(s string) bool {
	if isIPRange(s) || isAliasOrSet(s) {
		return true
	}
	families := map[bool]bool{}
	for peer := range strings.SplitSeq(s, ",") {
		p, err := netip.ParsePrefix(peer) // which takes no zone
		if err != nil {
			if !isIPAddress(peer) {
				return false
			}
			p = netip.PrefixFrom(netip.MustParseAddr(peer), 0)
		}
		families[p.Addr().Is4()] = true
	}
	return len(families) == 1
}

// peersFamily returns 4 or 6 for peers that are addresses, 0 for others.
func peersFamily(s string) int {
	first, _, _ := strings.Cut(s, ",")
	first, _, _ = strings.Cut(first, "-")
	first, _, _ = strings.Cut(first, "/")
	switch a, err := netip.ParseAddr(first); {
	case err != nil:
		return 0
	case a.Is4():
		return 4
	}
	return 6
}

func isIPRange(s string) bool {
	from, to, ok := strings.Cut(s, "-")
	if !ok || !isIPAddress(from) || !isIPAddress(to) {
		return false
	}
	a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
	return a.Is4() == b.Is4() && !b.Less(a)
}

// isAliasOrSet reports whether s is an alias, SCOPE/NAME or NAME, or a set, with
// a plus before it.
func isAliasOrSet(s string) bool {
	name, isSet := strings.CutPrefix(s, "+")
	if scope, rest, ok := strings.Cut(name, "/"); ok {
		if scope != "dc" && scope != "guest" && !(scope == "sdn" && isSet) {
			return false
		}
		name = rest
	}
	return isConfigID(name) && s != "any"
}

func isPorts(s string) bool {
	for port := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(port, ":")
		if !isRange {
			to = from
		}
		a, ok1 := portNumber(from)
		b, ok2 := portNumber(to)
		if (!ok1 || !ok2 || a > b) && !isPortName(port) {
			return false
		}
	}
	return true
}

// isPortName reports whether s is like a name of /etc/services.
func isPortName(s string) bool {
	return madeOf(s, "_.+-") && isLetter(s[0]) && s == strings.ToLower(s)
}

func portNumber(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && 1 <= n && n <= 65535 && isDecimal(s)
}

// needsShell reports whether words joined by blanks are not what a shell would
// make of them. An "&" in a word is that of a URL.
func needsShell(command string) bool {
	return strings.ContainsAny(command, "\"'`$\\;|<>()") ||
		slices.ContainsFunc(strings.Fields(command), func(word string) bool {
			return strings.Contains(word, "&&") || strings.Trim(word, "&") != word
		})
}

// The limits of a container id, and its form.
const (
	minCTID     = 100
	maxCTID     = 999999999
	ctidPattern = `[1-9][0-9]{2,8}`
)

// ParseCTID returns the container id that s is: a number from 100 to
// 999999999, in decimal digits without leading zeros.
func ParseCTID(s string) (int, error) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%.100q is not a container id: a number from 100 to 999999999", s)
		}
	}
	if len(s) < 3 || len(s) > 9 || s[0] == '0' {
		return 0, fmt.Errorf("%.100q is not a container id: a number from 100 to 999999999, without leading zeros", s)
	}
	return strconv.Atoi(s)
}

// madeOf reports whether s has only ASCII letters, digits and others, and is not
// empty.
func madeOf(s, others string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && strings.IndexByte(others, s[i]) < 0 {
			return false
		}
	}
	return s != ""
}

// isDecimal reports whether s is a number in decimal digits, without leading
// zeros.
func isDecimal(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == "" && (s == "0" || s[0] != '0')
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func isAlnum(c byte) bool  { return isLetter(c) || '0' <= c && c <= '9' }

func hasAnyPrefix(s string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(s, prefix) })
}
