package pve

import (
	"regexp"
	"slices"
	"strings"
)

// usageRE matches the line that pct prints behind the reason when it refuses
// its arguments.
var usageRE = regexp.MustCompile(`^(USAGE: )?(pct|qm|pveam) [a-z_-]+( .*)?\[OPTIONS\]$`)

// blame returns the line of a command's output that says why it failed, and
// the other lines. That is the last one, but for what pct says of arguments: a
// line for each that is wrong, or "400 unable to parse option", and its usage.
func blame(output string) (reason string, rest []string) {
	lines := slices.DeleteFunc(nonEmpty(output), usageRE.MatchString)
	if len(lines) == 0 {
		return "", nil
	}
	if i := slices.Index(lines, "400 Parameter verification failed."); i >= 0 && i+1 < len(lines) {
		return strings.Join(lines[i+1:], "; "), lines[:i+1]
	}
	last := len(lines) - 1
	if last > 0 && strings.HasPrefix(lines[last], "400 unable to parse ") {
		last--
	}
	return lines[last], slices.Concat(lines[:last], lines[last+1:])
}

// hints are ways out of what pct says (pve-container 6.1). "$1" becomes
// the first group of the pattern. A pattern is a whole line but for the words
// that pct puts before a reason: the rest of a message may be somebody
// else's, as the version that a container gives its system.
var hints = compileHints([][2]string{
	{`CT is locked \([a-z-]+\)`,
		"a task of Proxmox has begun meanwhile: run this again: phx waits for such tasks, and says what to do about " +
			"the lock of one that was killed"},
	{`can't lock file '([A-Za-z0-9/._-]+)' - got timeout`,
		"another command holds $1: see which with: fuser -v $1"},
	{`volume '([A-Za-z0-9._-]+):vztmpl/([A-Za-z0-9._+-]+)' does not exist`,
		"the template is missing: let phx download it, with --download (PHX_DOWNLOAD=1), or run: pveam update && " +
			"pveam download $1 $2"},
	{`no such template`,
		"Proxmox does not offer it, or the list of this host is old: pveam update; see it with: pveam available"},
	{`storage '[A-Za-z0-9._-]+' does not exist`,
		"see the storages of this host with: pvesm status; and correct storage_pool"},
	{`storage '([A-Za-z0-9._-]+)' is disabled`,
		"switch it on with: pvesm set $1 --disable 0"},
	{`storage '([A-Za-z0-9._-]+)' does not support container directories`,
		"let the storage take containers: pvesm set $1 --content rootdir,TYPES, with the TYPES that it has already; " +
			"or choose another storage_pool"},
	{`unable to clone mountpoint '(mp[0-9]+)' \(type bind\)`,
		"Proxmox clones no container with a bind mount: take $1 out of the mount_points of the source, or clone from " +
			"another container"},
	{`Full clone of a running container is only possible from a snapshot`,
		"shut the source down first: pct shutdown CTID"},
	{`snapshot '([A-Za-z0-9_-]+)' does not exist`,
		"see the snapshots with: pct listsnapshot CTID; phx takes $1 when it provisions the container whose " +
			"template_snapshot_name it is"},
	{`bridge '([A-Za-z0-9._-]+)' does not exist`,
		"make the bridge $1 on this host, or correct bridge in the configuration"},
	{`can't remove CT [0-9]+ - protection mode enabled`,
		"the container is protected: pct set CTID --protection 0"},
	{`startup for container '([0-9]+)' failed`,
		"see LXC's own log with: pct start $1 --debug 1"},
	{`.*(?:No space left on device|not enough free space|out of space).*`,
		"the storage is full: see pvesm status"},
})

type wayOut struct {
	message *regexp.Regexp
	hint    string
}

// beforeReason is what pct puts before a reason.
const beforeReason = `trying to acquire lock\.\.\. ?|[a-z0-9]+: |unable to [a-z]+ CT [0-9]+ - |` +
	`(?:clone|create|start) failed: `

func compileHints(table [][2]string) []wayOut {
	var hints []wayOut
	for _, row := range table {
		message := regexp.MustCompile(`(?m)^(?:` + beforeReason + `)*(?:` + row[0] + `)\.?$`)
		hints = append(hints, wayOut{message, row[1]})
	}
	return hints
}

// ctidRE matches the container that a command is about.
var ctidRE = regexp.MustCompile(`^pct [a-z-]+ ([0-9]+)( |$)`)

// hint returns the way out of what a command of Proxmox's own has said, ""
// when none is known.
func hint(label, output string) string {
	for _, h := range hints {
		if m := h.message.FindStringSubmatchIndex(output); m != nil {
			hint := string(h.message.ExpandString(nil, h.hint, output, m))
			if m := ctidRE.FindStringSubmatch(label); m != nil {
				hint = strings.ReplaceAll(hint, "CTID", m[1])
			}
			return hint
		}
	}
	return ""
}
