package pct

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
)

// recordPrefix starts the line of a container's description in which phx
// keeps what it has applied: "phx: base_setup=0123456789ab …". Reading it
// costs no call. A clone of a snapshot gets the snapshot's own description; a
// rollback keeps the container's (PVE::AbstractConfig of Proxmox VE 9).
const recordPrefix = "phx:"

// Record is what phx has applied to a container: a hash by name.
type Record map[string]string

// Record returns what the description says has been applied.
func (c *Section) Record() Record {
	r := Record{}
	for line := range strings.Lines(c.Description) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), recordPrefix)
		if !ok {
			continue
		}
		for _, word := range strings.Fields(rest) {
			if name, hash, ok := strings.Cut(word, "="); ok {
				r[name] = hash
			}
		}
	}
	return r
}

// Describe returns the description with r as its record, and the user's own
// text kept. An empty record leaves no line.
func (c *Section) Describe(r Record) string {
	var lines []string
	for line := range strings.Lines(c.Description) {
		line = strings.TrimRight(line, "\n")
		if !strings.HasPrefix(strings.TrimSpace(line), recordPrefix) {
			lines = append(lines, line)
		}
	}
	if len(r) == 0 {
		return strings.Join(lines, "\n")
	}
	words := []string{recordPrefix}
	for _, name := range slices.Sorted(maps.Keys(r)) {
		words = append(words, name+"="+r[name])
	}
	return strings.Join(append(lines, strings.Join(words, " ")), "\n")
}

// Hash returns the short hash of parts that a record holds. It changes with
// any part and with their order.
func Hash(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		sum := sha256.Sum256(p)
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}
