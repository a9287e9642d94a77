package pve

import (
	"context"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// netOption matches the options of interfaces, and laterNet those that pct takes out
// of a running container at its next start only: it does not know their numbers as
// such (pve-container 6.1).
var (
	netOption = regexp.MustCompile(`^net\d+$`)
	laterNet  = regexp.MustCompile(`^net\d\d+$`)
)

// Nets returns the options of the interfaces among values, by number.
func Nets(values map[string]string) []string { return numbered(values, netOption) }

// interfaceAsStored is a network interface as pct prints it again: the name,
// the other keys in order, and the type (pve-container 6.1).
func interfaceAsStored(value string) string {
	ps := ParseProperties(value)
	ps.Set("type", "veth")
	key := func(p Property) string {
		if p.Key == "name" {
			return "" // before all others
		}
		return p.Key
	}
	slices.SortFunc(ps, func(a, b Property) int { return strings.Compare(key(a), key(b)) })
	return ps.String()
}

// sameAddress reports whether two texts are the same address, with or without a
// prefix length: IPv6 has many ways to write one.
func sameAddress(a, b string) bool {
	p, err1 := netip.ParsePrefix(a)
	q, err2 := netip.ParsePrefix(b)
	if err1 == nil && err2 == nil {
		return p == q
	}
	x, err1 := netip.ParseAddr(a)
	y, err2 := netip.ParseAddr(b)
	return err1 == nil && err2 == nil && x == y
}

// sameTrunks reports whether two lists of VLANs have the same ones.
func sameTrunks(a, b string) bool {
	sorted := func(list string) []string {
		ids := strings.Split(list, ";")
		slices.Sort(ids)
		return slices.Compact(ids)
	}
	return slices.Equal(sorted(a), sorted(b))
}

// AppliedAtStart returns the interfaces of a running container of which pct stores
// the new value as in force, and applies a part of it at the next start only
// (pve-container 6.1).
func (s *Settings) AppliedAtStart(conf *Conf) []string {
	var nets []string
	for _, p := range s.set {
		have, wanted := ParseProperties(conf.Values[p.Key]), ParseProperties(p.Value)
		if netOption.MatchString(p.Key) && appliedAtStart(have, wanted) {
			nets = append(nets, p.Key)
		}
	}
	return nets
}

func appliedAtStart(have, wanted Properties) bool {
	differs := func(key string) bool { return !sameValue(key, have.Get(key), wanted.Get(key)) }
	managed := ParseBool(wanted.Get("host-managed"))
	asks := func(key string) bool { return wanted.Get(key) == "dhcp" && differs(key) && !managed }
	return differs("mtu") || asks("ip") || asks("ip6") ||
		len(have) > 0 && (differs("trunks") || differs("host-managed"))
}

// MarkRestart notes that a restart of the container is needed for options of which
// pct does not say so itself.
func (c *Container) MarkRestart(ctx context.Context, options ...string) error {
	_, err := c.rewrite(ctx, func(text []byte) []byte {
		_, before := restartOf(ParseConf(text))
		return setRestart(text, append(before, options...))
	})
	return err
}

// setRestart returns the text of a configuration file with a [restartMark] for
// these options, as of now.
func setRestart(text []byte, options []string) []byte {
	mark := strconv.FormatInt(time.Now().Unix()+1, 10)
	slices.Sort(options)
	if options = slices.Compact(options); !slices.Equal(options, []string{"lxc"}) {
		mark += " " + strings.Join(options, " ")
	}
	return setMark(text, restartMark, mark)
}

// restartOf returns since when the [restartMark] says that a restart is needed, in
// seconds since 1970, and for what. A mark without words is for raw lines.
func restartOf(conf *Conf) (since int64, waiting []string) {
	words := strings.Fields(conf.mark(restartMark))
	if len(words) == 0 {
		return 0, nil
	}
	since, _ = strconv.ParseInt(words[0], 10, 64)
	if waiting = words[1:]; len(waiting) == 0 {
		waiting = []string{"lxc"}
	}
	return since, waiting
}
