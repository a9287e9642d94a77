package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// Raw lines of a container's conf file, "lxc.key: value": Proxmox VE passes
// them to LXC, and pct has no option for them.

const (
	profileKey = "lxc.apparmor.profile"
	idMapKey   = "lxc.idmap"
	capKeepKey = "lxc.cap.keep"
)

// generated asks for what Proxmox VE does when there is no such line: LXC
// generates the profile, and Proxmox adds its own rules and those of nesting.
// With the line it would leave them out (pve-container 6.1), so that this one
// is never written: it means that no other profile may be there.
var generated = pve.RawLine{Key: profileKey, Value: "generated"}

// customProfile returns the name of the AppArmor profile that has a file of
// its own, "" for none.
func customProfile(c *config.Container) string {
	switch c.AppArmorProfile {
	case "unconfined", generated.Value:
		return ""
	}
	return c.AppArmorProfile
}

// wantedRaw returns the raw lines that the configuration asks for, each once.
// Of two values for a key that can have but one, the later counts, as in LXC:
// lxc_options win over apparmor_profile.
//
// apparmor_profile "unconfined" is written as it is, and switches AppArmor off
// for the container. For "generated", see [generated]. Without the key nothing
// is wanted, and a line that was made by hand stays.
func wantedRaw(c *config.Container) []pve.RawLine {
	var lines []pve.RawLine
	add := func(key, value string) { lines = append(lines, pve.RawLine{Key: key, Value: value}) }

	if c.AppArmorProfile != "" {
		add(profileKey, c.AppArmorProfile)
	}
	if c.AppArmorManagesNesting && customProfile(c) != "" {
		add("lxc.apparmor.allow_nesting", "1")
		add("lxc.include", "/usr/share/lxc/config/nesting.conf")
	}
	keeps := func(o config.RawOption) bool { return o.Key == capKeepKey }
	if slices.ContainsFunc(c.LXCOptions, keeps) && c.Unprivileged != nil && !*c.Unprivileged {
		// LXC's own configuration of a privileged container drops some, and
		// either of the two excludes the other: the empty line ends that.
		add("lxc.cap.drop", "")
	}
	for _, o := range c.LXCOptions {
		add(o.Key, o.Value)
	}
	if len(c.GPUs) > 0 {
		add("lxc.cgroup2.devices.allow", "c 195:* rwm") // nvidia
		add("lxc.cgroup2.devices.allow", "c 243:* rwm") // nvidia-uvm
		devices := []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"}
		for _, n := range c.GPUs {
			devices = append(devices, fmt.Sprintf("nvidia%d", n))
		}
		for _, d := range devices {
			add("lxc.mount.entry", fmt.Sprintf("/dev/%s dev/%[1]s none bind,optional,create=file", d))
		}
	}
	for _, m := range c.IDMaps {
		add(idMapKey, m)
	}

	var once []pve.RawLine
	for i, l := range lines {
		later := lines[i+1:]
		overridden := isSingle(l.Key) && slices.ContainsFunc(later, func(o pve.RawLine) bool { return o.Key == l.Key })
		if !overridden && !slices.Contains(once, l) {
			once = append(once, l)
		}
	}
	return once
}

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

// editRaw returns the text of a conf file with the wanted raw lines in its
// first section, in the order of wanted. Snapshots and pending changes, which
// follow it, are never touched. Of what is there
//
//   - a wanted line counts in any notation that Proxmox reads (key=value);
//   - another value of a key that can have but one is replaced;
//   - lines that phx has written earlier, by their hashes, and that are not
//     wanted any more are removed, and so is the second of two equal lines;
//   - if a map of ids is wanted, all others are removed: a mixture of maps
//     cannot start;
//   - all else stays byte for byte.
//
// A text in which nothing differs is returned as it is.
func editRaw(text []byte, wanted []pve.RawLine, written map[string]bool) []byte {
	var texts []string                 // of the lines that are to be there
	indices := map[pve.RawLine]int{}   // into texts
	single := map[string]pve.RawLine{} // by key, where there can be but one
	mapped := false
	for _, w := range wanted {
		if isSingle(w.Key) {
			single[w.Key] = w
		}
		if w == generated {
			continue
		}
		mapped = mapped || w.Key == idMapKey
		indices[w] = len(texts)
		texts = append(texts, rawText(w)+"\n")
	}

	head, rest := pve.FirstSection(text)
	var lines []fileLine
	seen := map[pve.RawLine]bool{}
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
		if seen[raw] || mapped && raw.Key == idMapKey || written[shortHash(rawText(raw))] {
			continue
		}
		lines = append(lines, fileLine{l, foreign})
		seen[raw] = true
	}

	end := len(lines) // of what stands before the next section
	for end > 0 && strings.TrimSpace(lines[end-1].text) == "" {
		end--
	}
	return slices.Concat(joinLines(arrange(lines, texts, end)), rest)
}

// parseRaw reads a line of a conf file's section.
func parseRaw(line string) (pve.RawLine, bool) {
	if raw := pve.ParseConf([]byte(line)).Raw; len(raw) == 1 {
		return raw[0], true
	}
	return pve.RawLine{}, false
}

func rawText(l pve.RawLine) string { return l.Key + ": " + l.Value }

// rawHashes returns the hashes of raw lines as the record keeps them.
func rawHashes(lines []pve.RawLine) string {
	texts := make([]string, len(lines))
	for i, l := range lines {
		texts[i] = rawText(l)
	}
	return shortHashes(texts)
}
