package pct

import "regexp"

// hints are ways out of what pct says (pve-container 6.1). "$1" stands for
// the first group of the pattern.
var hints = []struct {
	said *regexp.Regexp
	hint string
}{
	{regexp.MustCompile(`CT is locked \(create\)`),
		"the container was never finished: if no task is at work on it any more, remove it with: pct unlock CTID && pct destroy CTID"},
	{regexp.MustCompile(`CT is locked \(([a-z-]+)\)`),
		"a task of Proxmox holds the lock ($1): wait for its end, or, if no such task runs any more, release it with: pct unlock CTID"},
	{regexp.MustCompile(`can't lock file '([^']+)'`),
		"another command holds $1: see which with: fuser -v $1"},
	{regexp.MustCompile(`volume '([^':]+):vztmpl/([^']+)' does not exist`),
		"the template is missing: pveam update && pveam download $1 $2"},
	{regexp.MustCompile(`storage '([^']+)' does not exist`),
		"see the storages of this host with: pvesm status; and correct storage_pool"},
	{regexp.MustCompile(`storage '([^']+)' does not support container directories`),
		"let the storage take containers: pvesm set $1 --content rootdir,images; or choose another storage_pool"},
	{regexp.MustCompile(`snapshot feature is not available`),
		"the storage takes no snapshots, or the container has a bind mount, of which Proxmox makes none"},
	{regexp.MustCompile(`unable to clone mountpoint '(mp[0-9]+)' \(type bind\)`),
		"Proxmox clones no container with a bind mount: remove $1 from the source, or clone from another container"},
	{regexp.MustCompile(`snapshot '([^']+)' does not exist`),
		"see the snapshots with: pct listsnapshot CTID; phx takes $1 when it provisions the container whose template_snapshot_name it is"},
	{regexp.MustCompile(`bridge '([^']+)' does not exist`),
		"make the bridge $1 on this host, or correct network_config.bridge"},
	{regexp.MustCompile(`protection mode enabled`),
		"the container is protected: pct set CTID --protection 0"},
	{regexp.MustCompile(`startup for container '([0-9]+)' failed`),
		"see LXC's own log with: pct start $1 --debug 1"},
	{regexp.MustCompile(`(?:No space left on device|not enough free space|out of space)`),
		"the storage is full: see pvesm status"},
}

// hint returns the way out of what a command has said, "" when none is known.
func hint(output string) string {
	for _, h := range hints {
		if m := h.said.FindStringSubmatchIndex(output); m != nil {
			return string(h.said.ExpandString(nil, h.hint, output, m))
		}
	}
	return ""
}
