package config

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
	"thinkheads.ai/phx/cmd/internal/hostdir"
)

// Host is what a file is checked against, beside itself: the host that it is for.
type Host struct {
	// Guarded are places that no container may own, beside the directories of
	// Debian packages.
	Guarded []hostdir.Guarded

	// PCT is the version of the package pve-container, which pct belongs to. What
	// it does not know yet is a mistake. "" is a version that is not known, and
	// knows all.
	PCT string
}

// Versions of pve-container that brought what a key asks for.
const (
	sinceTags        = "3.0-12"
	sinceTimezone    = "3.1-9"
	sinceDevuan      = "3.3-4"
	sinceLazytime    = "4.1-3"
	sinceNixOS       = "4.1-5"
	sinceRISCV       = "4.4-3"
	sinceDevices     = "5.0.7"
	sinceDenyWrite   = "5.2.0"
	sinceDiscard     = "5.2.1"
	sinceHostManaged = "6.0.15"
	sinceKeepAttrs   = "6.1.2"
)

// since reports whether the host's pct knows what, which came with a version of
// pve-container. If not, that is a mistake at v.
func (p *parser) since(v gjson.Result, version, what string) bool {
	if p.pct == "" || CompareVersions(p.pct, version) >= 0 {
		return true
	}
	p.fail(v, "%s needs pve-container %s, and this host has %s: update Proxmox VE, or leave it out",
		what, version, p.pct)
	return false
}

// IsVersion reports whether s is like the version of a Debian package that is
// Proxmox's own: 6.1.10, 4.1-5.
func IsVersion(s string) bool {
	return s != "" && '0' <= s[0] && s[0] <= '9' && madeOf(s, ".+-~")
}

// CompareVersions compares the numbers of two versions, one by one, and returns
// -1, 0 or 1. What is no number counts as 0.
func CompareVersions(a, b string) int {
	for a != "" || b != "" {
		var x, y int
		x, a = nextNumber(a)
		y, b = nextNumber(b)
		if c := cmp.Compare(x, y); c != 0 {
			return c
		}
	}
	return 0
}

// nextNumber cuts a number and what separates it from the next one off a
// version.
func nextNumber(version string) (n int, rest string) {
	first, rest := version, ""
	if i := strings.IndexAny(version, ".-+~"); i >= 0 {
		first, rest = version[:i], version[i+1:]
	}
	n, _ = strconv.Atoi(first)
	return n, rest
}
