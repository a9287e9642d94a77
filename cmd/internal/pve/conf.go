package pve

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Conf is what Proxmox VE keeps about a container in /etc/pve/lxc/ID.conf.
type Conf struct {
	Section                     // the current configuration
	Pending   map[string]string // values that wait for the next start
	Deleted   []string          // options that the next start removes
	Snapshots []Snapshot        // in the file's order
}

// Section is a configuration: the current one, or that of a snapshot.
type Section struct {
	Description string            // decoded; "" when there is none
	Values      map[string]string // by option, as in "memory" → "512"
	Raw         []RawLine         // lxc.* lines, in order
}

// Snapshot is a snapshot, with the configuration that it has kept. Its
// description is its own, not that of the container.
type Snapshot struct {
	Name string
	Section
}

// unfinished reports whether a task that takes or deletes the snapshot is at
// work, or was killed in the middle: the volumes may be missing in it.
func (s *Snapshot) unfinished() bool { return s.Values["snapstate"] != "" }

// confPath is the place of a container's configuration file.
func (h *Host) confPath(ctid int) string {
	return filepath.Join(h.PVERoot, "lxc", strconv.Itoa(ctid)+".conf")
}

// confPaths returns the paths of the configuration files of all containers of the
// cluster, by CTID. Others may move or remove such a file at any time.
func (h *Host) confPaths() (map[int]string, error) {
	all := map[int]string{}
	for _, pattern := range []string{"lxc/*.conf", "nodes/*/lxc/*.conf"} {
		paths, err := filepath.Glob(filepath.Join(h.PVERoot, pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			if ctid, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".conf")); err == nil {
				all[ctid] = path
			}
		}
	}
	return all, nil
}

// HasConf reports whether a container is on this host, or may be: where that cannot be
// seen, a closer look will say why.
func (h *Host) HasConf(ctid int) bool {
	_, err := os.Stat(h.confPath(ctid))
	return !errors.Is(err, fs.ErrNotExist)
}

// ReadConf reads a container's configuration file. The error is an
// [io/fs.ErrNotExist] when there is no such container on this host.
func (h *Host) ReadConf(ctid int) (*Conf, error) {
	data, err := os.ReadFile(h.confPath(ctid))
	if err != nil {
		return nil, err
	}
	return ParseConf(data), nil
}

// Forms of lines as pve-container 6.1 reads them. A run reads the file of each container
// several times: what a line is by its beginning is not left to an expression.
var (
	rawLine    = regexp.MustCompile(`^(lxc\.[a-z0-9_\-.]+)(?::|\s*=)\s*(.*?)\s*$`)
	optionName = regexp.MustCompile(`^[a-z][a-z_]*\d*$`)
	section    = regexp.MustCompile(`^\[([^\]]+)\]\s*$`)
)

// parseRaw reads a raw line.
func parseRaw(line string) (RawLine, bool) {
	if !strings.HasPrefix(line, "lxc.") {
		return RawLine{}, false
	}
	if m := rawLine.FindStringSubmatch(strings.TrimRight(line, "\r\n")); m != nil {
		return RawLine{m[1], m[2]}, true
	}
	return RawLine{}, false
}

// parseValue reads the line of an option.
func parseValue(line string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(line, ":")
	if !ok || !optionName.MatchString(name) {
		return "", "", false
	}
	return name, strings.Trim(value, " \t\n\f\r"), true
}

// parseSection reads the line at which a section begins.
func parseSection(line string) (name string, ok bool) {
	if !strings.HasPrefix(line, "[") {
		return "", false
	}
	if m := section.FindStringSubmatch(strings.TrimRight(line, "\r\n")); m != nil {
		return m[1], true
	}
	return "", false
}

// ParseConf parses the text of a configuration file. Lines of no known form
// are passed over, as Proxmox does.
func ParseConf(data []byte) *Conf {
	c := &Conf{Pending: map[string]string{}}
	current := &c.Section
	current.Values = map[string]string{}
	pending := false
	var description []string
	flush := func() {
		current.Description = strings.Join(description, "\n")
		description = nil
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\r\n")
		if name, ok := parseSection(line); ok {
			flush()
			if pending = name == "pve:pending"; pending {
				current = &Section{}
				continue
			}
			c.Snapshots = append(c.Snapshots, Snapshot{name, Section{Values: map[string]string{}}})
			current = &c.Snapshots[len(c.Snapshots)-1].Section
			continue
		}
		if text, ok := strings.CutPrefix(line, "#"); ok {
			description = append(description, decode(text))
		} else if raw, ok := parseRaw(line); ok {
			current.Raw = append(current.Raw, raw)
		} else if name, value, ok := parseValue(line); ok {
			switch {
			case pending && name == "delete":
				c.Deleted = strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
			case pending:
				c.Pending[name] = value
			default:
				current.Values[name] = value
			}
		}
	}
	flush()
	return c
}

// firstSection splits the text of a configuration file before its first
// section header: what is pending and the snapshots come after it.
func firstSection(text []byte) (head, rest []byte) {
	at := 0
	for line := range strings.Lines(string(text)) {
		if _, ok := parseSection(line); ok {
			return text[:at], text[at:]
		}
		at += len(line)
	}
	return text, nil
}

// decode undoes the percent-encoding of a description line, but for control
// characters: a line of the file is one line of the notes.
func decode(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil && n >= 0x20 {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// encode is the form of a description line in the file: as Proxmox VE writes
// it, with control characters, "%", ":" and all beyond ASCII percent-encoded.
func encode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' || c == ':' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Next returns the values by option as they will be after the next start.
func (c *Conf) Next() map[string]string {
	next := maps.Clone(c.Values)
	if next == nil {
		next = map[string]string{}
	}
	for _, option := range c.Deleted {
		// An option may be written as "!option" for one that is removed by force.
		delete(next, strings.TrimPrefix(option, "!"))
	}
	maps.Copy(next, c.Pending)
	return next
}

// Snapshot returns the snapshot of a name, nil when there is none, and also
// when it is unfinished.
func (c *Conf) Snapshot(name string) *Snapshot {
	for i := range c.Snapshots {
		if s := &c.Snapshots[i]; s.Name == name && !s.unfinished() {
			return s
		}
	}
	return nil
}

// RemoveUnfinished returns the command that removes the snapshot of a name of the
// container ctid, "" unless there is one and it is unfinished.
func (c *Conf) RemoveUnfinished(ctid int, name string) string {
	for i := range c.Snapshots {
		if s := &c.Snapshots[i]; s.Name == name && s.unfinished() {
			return removeSnapshot(ctid, name)
		}
	}
	return ""
}

// Property is one element of an option such as net0: "key=value", or a value
// alone for the option's default key (Key "").
type Property struct{ Key, Value string }

// Properties are the elements of an option, in order.
type Properties []Property

// ParseProperties splits an option such as
// "name=eth0,bridge=vmbr0,ip=10.0.0.10/24".
func ParseProperties(s string) Properties {
	var ps Properties
	if s == "" {
		return nil
	}
	for _, element := range strings.Split(s, ",") {
		key, value, ok := strings.Cut(element, "=")
		if !ok {
			key, value = "", element
		}
		ps = append(ps, Property{strings.TrimSpace(key), strings.TrimSpace(value)})
	}
	return ps
}

// ParseWithDefault is [ParseProperties] for an option with a default key, which may
// be written with its name or without: the key is "" here.
func ParseWithDefault(s, key string) Properties {
	ps := ParseProperties(s)
	for i := range ps {
		if ps[i].Key == key {
			ps[i].Key = ""
		}
	}
	return ps
}

// Get returns the value of a key, "" when it is absent.
func (ps Properties) Get(key string) string {
	for _, p := range ps {
		if p.Key == key {
			return p.Value
		}
	}
	return ""
}

// Set replaces the value of a key, or appends the key.
func (ps *Properties) Set(key, value string) {
	for i := range *ps {
		if (*ps)[i].Key == key {
			(*ps)[i].Value = value
			return
		}
	}
	*ps = append(*ps, Property{key, value})
}

func (ps Properties) String() string {
	elements := make([]string, len(ps))
	for i, p := range ps {
		elements[i] = p.Value
		if p.Key != "" {
			elements[i] = p.Key + "=" + p.Value
		}
	}
	return strings.Join(elements, ",")
}

// ParseBool reads a boolean as Proxmox does: 1, on, yes and true in any case.
func ParseBool(s string) bool {
	switch strings.ToLower(s) {
	case "1", "on", "yes", "true":
		return true
	}
	return false
}

// FormatBool returns a boolean as Proxmox writes it.
func FormatBool(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// Gigabytes reads a disk size such as "8G", "8192M" or "1T" in GiB, rounded
// down.
func Gigabytes(s string) (int, error) {
	digits := strings.TrimRight(s, "KMGT")
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, fmt.Errorf("disk size %q: not a number with K, M, G or T", s)
	}
	switch s[len(digits):] {
	case "K":
		n /= 1 << 20
	case "M":
		n /= 1 << 10
	case "G":
	case "T":
		n *= 1 << 10
	default:
		n /= 1 << 30
	}
	return int(n), nil
}
