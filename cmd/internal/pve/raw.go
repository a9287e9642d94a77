package pve

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// RawLine is a line of LXC's own configuration in a container's conf file,
// "lxc.key: value", as in lxc.apparmor.profile: Proxmox VE passes it to LXC, and
// pct has no option for it.
type RawLine struct{ Key, Value string }

func (l RawLine) String() string { return l.Key + ": " + l.Value }

const (
	// ProfileKey is the key of the AppArmor profile's raw line.
	ProfileKey = "lxc.apparmor.profile"
	// CapKeepKey is the key of a raw line with a capability that stays.
	CapKeepKey = "lxc.cap.keep"
	// IDMapKey is the key of a raw line with a map of ids: "u 0 100000 65536"
	// gives the users 0 to 65535 of the container the host's from 100000.
	IDMapKey = "lxc.idmap"
)

// GeneratedProfile asks for what Proxmox VE does when there is no such line:
// LXC generates the profile, and Proxmox adds its own rules and those of
// nesting. With the line it would leave them out (pve-container 6.1), so that
// [RewriteRaw] never writes it: it means that no other profile may be there.
var GeneratedProfile = RawLine{Key: ProfileKey, Value: "generated"}

// repeatableKeys are the keys of which LXC takes every line. Of all others
// (lxc.apparmor.profile, lxc.autodev, lxc.init.cmd, lxc.prlimit.X, lxc.sysctl.X,
// lxc.cgroup2.memory.max, …) it takes the last.
var repeatableKeys = regexp.MustCompile(`^lxc\.(` + strings.Join([]string{
	`apparmor\.raw`,
	`cap\.(drop|keep)`,
	`cgroup2?\.(blkio|devices|io|rdma)\..*`, // one line for each device
	`environment(\.hooks|\.runtime)?`,
	`group`,
	`hook\.(autodev|clone|destroy|mount|post-stop|pre-mount|pre-start|start|stop)`,
	`idmap`,
	`include`,
	`mount\.(auto|entry)`,
	`net\..*`,
}, "|") + `)$`)

func isSingle(key string) bool { return !repeatableKeys.MatchString(key) }

// EffectiveRaw returns the lines that count, each once: of two values for a key
// that can have but one, the later, as in LXC.
func EffectiveRaw(lines []RawLine) []RawLine {
	var once []RawLine
	for i, l := range lines {
		overridden := isSingle(l.Key) &&
			slices.ContainsFunc(lines[i+1:], func(later RawLine) bool { return later.Key == l.Key })
		if !overridden && !slices.Contains(once, l) {
			once = append(once, l)
		}
	}
	return once
}

// RewriteRaw returns the text of a conf file with the wanted raw lines in its
// first section, in the order of wanted. Snapshots and pending changes, which
// follow it, are never touched. Of what is there
//
//   - a wanted line counts in any notation that Proxmox reads (key=value);
//   - another value of a key that can have but one is replaced;
//   - lines that phx has written earlier and that are not wanted any more are
//     removed, and so is the second of two equal lines;
//   - if a map of ids is wanted, all others are removed: a mixture of maps
//     cannot start;
//   - all else stays byte for byte.
//
// A text in which nothing differs is returned as it is.
func RewriteRaw(text []byte, wanted []RawLine, written Hashes) []byte {
	var texts []string             // of the lines that are to be there
	indices := map[RawLine]int{}   // into texts
	single := map[string]RawLine{} // by key, where there can be but one
	mapped := false
	for _, w := range wanted {
		if isSingle(w.Key) {
			single[w.Key] = w
		}
		if w == GeneratedProfile {
			continue
		}
		mapped = mapped || w.Key == IDMapKey
		indices[w] = len(texts)
		texts = append(texts, w.String()+"\n")
	}

	head, rest := firstSection(text)
	var lines []fileLine
	seen := map[RawLine]bool{}
	for l := range strings.Lines(string(head)) {
		raw, ok := parseRaw(l)
		if !ok {
			lines = append(lines, fileLine{l, foreign})
			continue
		}
		if index, ok := indices[raw]; ok {
			if !seen[raw] {
				lines = append(lines, fileLine{l, index})
			}
			seen[raw] = true
			continue
		}
		if value, ok := single[raw.Key]; ok {
			if index, ok := indices[value]; ok && !seen[value] {
				lines = append(lines, fileLine{texts[index], index})
				seen[value] = true
			}
			continue
		}
		if seen[raw] || mapped && raw.Key == IDMapKey || written.Has(raw.String()) {
			continue
		}
		lines = append(lines, fileLine{l, foreign})
		seen[raw] = true
	}

	end := len(lines) // of what is before the next section
	for end > 0 && strings.TrimSpace(lines[end-1].text) == "" {
		end--
	}
	return slices.Concat(joinLines(arrange(lines, texts, end)), rest)
}

// RawHashes returns the hashes of raw lines as a word of a [Record].
func RawHashes(lines []RawLine) string {
	texts := make([]string, len(lines))
	for i, l := range lines {
		texts[i] = l.String()
	}
	return HashList(texts)
}

// IDMaps returns the maps of ids among raw lines.
func IDMaps(lines []RawLine) []string {
	var idMaps []string
	for _, l := range lines {
		if l.Key == IDMapKey {
			idMaps = append(idMaps, l.Value)
		}
	}
	return idMaps
}

// HostOwner returns the host's ids of an owner and a group in a container with
// these raw lines: by its maps of ids, or else shifted by 100000 if it is
// unprivileged. An id of -1 stays.
func HostOwner(lines []RawLine, unprivileged bool, uid, gid int) (hostUID, hostGID int, err error) {
	idMaps := IDMaps(lines)
	if idMaps == nil {
		if !unprivileged {
			return uid, gid, nil
		}
		idMaps = []string{"u 0 100000 65536", "g 0 100000 65536"}
	}
	if hostUID, err = mapID(idMaps, "u", "user", uid); err != nil {
		return 0, 0, err
	}
	if hostGID, err = mapID(idMaps, "g", "group", gid); err != nil {
		return 0, 0, err
	}
	return hostUID, hostGID, nil
}

func mapID(idMaps []string, kind, what string, id int) (int, error) {
	if id == -1 {
		return id, nil
	}
	for _, m := range idMaps {
		var first, host, count int
		_, err := fmt.Sscanf(m, kind+" %d %d %d", &first, &host, &count)
		if err == nil && first <= id && id < first+count {
			return host + id - first, nil
		}
	}
	return 0, fmt.Errorf("%s %d of the container is in none of its maps of ids (%s): "+
		"nothing on the host can belong to it", what, id, strings.Join(idMaps, "; "))
}
