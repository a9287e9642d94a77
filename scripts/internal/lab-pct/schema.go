package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// schemaJSON is the option table of pct (pve-container 6.1): every sub-command with its
// positional arguments, whether its exit status tells that its worker failed ("task"), and its
// options. "properties" are the keys inside comma separated values such as net0's.
//
//go:embed schema.json
var schemaJSON []byte

// option describes one option, positional argument or key of a property string.
type option struct {
	Type       string   `json:"type"`
	Format     string   `json:"format"`
	Pattern    string   `json:"pattern"`
	Enum       []string `json:"enum"`
	Min        *float64 `json:"min"`
	Max        *float64 `json:"max"`
	MinLength  int      `json:"minLength"`
	MaxLength  int      `json:"maxLength"`
	Requires   string   `json:"requires"`
	Index      int      `json:"index"`      // highest N of mpN, netN, …
	Properties string   `json:"properties"` // name of the table of keys of a property string
	DefaultKey bool     `json:"defaultKey"` // the key that a part without "key=" belongs to
	Required   bool     `json:"required"`
}

// command is one sub-command.
type command struct {
	name string
	Args []string `json:"args"`
	// Task: a failure of the worker is reported by the exit status. pct push, pull, resize and
	// template have no such mapping and exit 0.
	Task    bool               `json:"task"`
	Takes   []string           `json:"takes"`
	Own     map[string]*option `json:"own"`
	options map[string]*option // by full name; mpN is spelled out as mp0, mp1, …
	names   map[string]string
	sorted  []string
}

type schema struct {
	Properties map[string]map[string]*option `json:"properties"`
	Options    map[string]*option            `json:"options"`
	Commands   map[string]*command           `json:"commands"`
}

var table = sync.OnceValue(func() *schema {
	s := new(schema)
	if err := json.Unmarshal(schemaJSON, s); err != nil {
		panic("schema.json: " + err.Error())
	}
	for _, keys := range s.Properties {
		for _, o := range keys {
			o.expandEnum()
		}
	}
	for _, o := range s.Options {
		o.expandEnum()
	}
	for name, c := range s.Commands {
		c.name = name
		c.options = make(map[string]*option)
		for _, o := range c.Takes {
			c.add(o, s.Options[o])
		}
		for o, d := range c.Own {
			d.expandEnum()
			c.add(o, d)
		}
	}
	return s
})

// expandEnum spells out the values of "mp0..mp255".
func (o *option) expandEnum() {
	for i, v := range o.Enum {
		first, last, ok := strings.Cut(v, "0..")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(last, first))
		if err != nil {
			panic("schema.json: bad enum " + v)
		}
		var all []string
		for k := range n + 1 {
			all = append(all, first+strconv.Itoa(k))
		}
		o.Enum = slices.Replace(o.Enum, i, i+1, all...)
		return
	}
}

func (c *command) add(name string, o *option) {
	if o.Index == 0 {
		c.options[name] = o
		return
	}
	stem := strings.TrimSuffix(name, "N")
	for i := range o.Index + 1 {
		c.options[stem+strconv.Itoa(i)] = o
	}
}

// optionNames are the options' names by their lower-case form, and those forms sorted.
func (c *command) optionNames() (names map[string]string, sorted []string) {
	if c.names == nil {
		c.names = make(map[string]string, len(c.options))
		for name, o := range c.options {
			if o.Type != "array" {
				c.names[strings.ToLower(name)] = name
			}
		}
		c.sorted = slices.Sorted(maps.Keys(c.names))
	}
	return c.names, c.sorted
}

// usage is the line that follows errors about parameters.
func (c *command) usage() string {
	var b strings.Builder
	b.WriteString("pct " + c.name)
	for _, a := range c.Args {
		if c.options[a].Required {
			b.WriteString(" <" + a + ">")
		} else {
			b.WriteString(" [<" + a + ">]")
		}
	}
	if len(c.options) > len(c.Args) {
		b.WriteString(" [OPTIONS]")
	}
	return b.String()
}

// usageAll is what pct prints when it was given no sub-command that it knows.
func usageAll(reason string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "ERROR: %s\nUSAGE: pct <COMMAND> [ARGS] [OPTIONS]\n\n", reason)
	for _, name := range slices.Sorted(maps.Keys(table().Commands)) {
		fmt.Fprintf(&b, "       %s\n", table().Commands[name].usage())
	}
	return b.String()
}

// params are the parsed parameters of a call by full option name. Booleans are "0" or "1".
type params map[string]string

func (p params) bool(name string) bool { return p[name] == "1" }

func (p params) has(name string) bool { _, ok := p[name]; return ok }

// paramError is a refusal of the command line. It prints itself as pct does.
type paramError struct {
	warnings []string          // lines before the verdict
	verdict  string            // without the leading "400 "
	fields   map[string]string // parameter -> what is wrong with it
	usage    string
}

func (e *paramError) Error() string {
	var b strings.Builder
	for _, w := range e.warnings {
		b.WriteString(w + "\n")
	}
	b.WriteString("400 " + e.verdict + "\n")
	for _, k := range slices.Sorted(maps.Keys(e.fields)) {
		b.WriteString(k + ": " + e.fields[k] + "\n")
	}
	b.WriteString(e.usage)
	return b.String()
}

func (c *command) invalid(fields map[string]string) error {
	return &paramError{verdict: "Parameter verification failed.", fields: fields, usage: c.usage()}
}

// parse reads the arguments after the sub-command the way pct does, which is Getopt::Long's:
// options and arguments may be mixed, an option starts with one or two dashes, may be shortened
// to a unique prefix, ignores case, and takes the next argument whatever that looks like, but a
// boolean takes only one that does not look like an option. extra is what follows the last
// positional argument of exec.
func (c *command) parse(args []string) (p params, extra []string, err error) {
	names, sorted := c.optionNames()
	p = make(params)
	var rest, warnings []string
	warn := func(format string, a ...any) { warnings = append(warnings, fmt.Sprintf(format, a...)) }
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			rest = append(rest, args...)
			break
		}
		if arg == "-" || !strings.HasPrefix(arg, "-") {
			rest = append(rest, arg)
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		value, inline := "", false
		if i := strings.IndexByte(name, '='); i > 0 {
			name, value, inline = name[:i], name[i+1:], true
		}
		key := strings.ToLower(name)
		if _, exact := names[key]; !exact {
			first := sort.SearchStrings(sorted, key)
			n := 0
			for first+n < len(sorted) && strings.HasPrefix(sorted[first+n], key) {
				n++
			}
			switch n {
			case 0:
				warn("Unknown option: %s", key)
				continue
			case 1:
				key = sorted[first]
			default:
				warn("Option %s is ambiguous (%s)", key, strings.Join(sorted[first:first+n], ", "))
				continue
			}
		}
		o := c.options[names[key]]
		boolean := o.Type == "boolean"
		switch {
		case inline && value != "":
		case !inline && len(args) > 0 && !(boolean && len(args[0]) > 1 && args[0][0] == '-'):
			value, args = args[0], args[1:]
		case !boolean:
			warn("Option %s requires an argument", key)
			continue
		}
		if old, again := p[names[key]]; again && strings.HasSuffix(o.Format, "-list") {
			value = old + "," + value
		}
		p[names[key]] = value
	}
	if warnings != nil {
		return nil, nil, &paramError{warnings: warnings, verdict: "unable to parse option", usage: c.usage()}
	}
	for _, a := range c.Args {
		if c.options[a].Type == "array" {
			extra, rest = rest, nil
			break
		}
		if len(rest) == 0 {
			return nil, nil, &paramError{verdict: "not enough arguments", usage: c.usage()}
		}
		p[a], rest = rest[0], rest[1:]
	}
	if len(rest) > 0 {
		return nil, nil, &paramError{verdict: "too many arguments", usage: c.usage()}
	}
	for name, value := range p {
		if c.options[name].Type != "boolean" {
			continue
		}
		b, ok := parseBool(value)
		if value == "" {
			b, ok = "1", true
		}
		if !ok {
			return nil, nil, &paramError{verdict: "unable to parse boolean option", usage: c.usage()}
		}
		p[name] = b
	}
	errs := make(map[string]string)
	for name, value := range p {
		o := c.options[name]
		o.check(name, value, errs)
		if o.Requires != "" && !p.has(o.Requires) {
			errs[o.Requires] = "missing property - '" + name + "' requires this property"
		}
	}
	if len(errs) > 0 {
		return nil, nil, c.invalid(errs)
	}
	return p, extra, nil
}

func parseBool(s string) (string, bool) {
	switch strings.ToLower(s) {
	case "1", "on", "yes", "true":
		return "1", true
	case "0", "off", "no", "false":
		return "0", true
	}
	return "", false
}

var (
	integerRE = regexp.MustCompile(`^[+-]?\d+$`)
	numberRE  = regexp.MustCompile(`^[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[Ee][+-]?\d+)?$`)
)

// check records in errs what is wrong with a value.
func (o *option) check(path, value string, errs map[string]string) {
	switch {
	case o.Type == "integer" && !integerRE.MatchString(value),
		o.Type == "number" && !numberRE.MatchString(value),
		o.Type == "boolean" && value != "0" && value != "1":
		errs[path] = fmt.Sprintf("type check ('%s') failed - got '%s'", o.Type, value)
		return
	}
	if o.Properties != "" {
		if _, err := parseProperties(o.Properties, path, value); err != nil {
			errs[path] = "invalid format - " + err.Error() + "\n"
			return
		}
	}
	if o.Format != "" {
		if err := checkFormat(o.Format, value); err != nil {
			errs[path] = "invalid format - " + err.Error() + "\n"
			return
		}
	}
	if o.Pattern != "" && !compiled(`^(?:`+o.Pattern+`)$`).MatchString(value) {
		errs[path] = "value does not match the regex pattern"
		return
	}
	if n := utf8.RuneCountInString(value); o.MaxLength > 0 && n > o.MaxLength {
		errs[path] = fmt.Sprintf("value may only be %d characters long", o.MaxLength)
		return
	} else if n < o.MinLength {
		errs[path] = fmt.Sprintf("value must be at least %d characters long", o.MinLength)
		return
	}
	if n, err := strconv.ParseFloat(value, 64); err == nil {
		if o.Max != nil && n > *o.Max {
			errs[path] = fmt.Sprintf("value must have a maximum value of %.0f", *o.Max)
			return
		}
		if o.Min != nil && n < *o.Min {
			errs[path] = fmt.Sprintf("value must have a minimum value of %.0f", *o.Min)
			return
		}
	}
	if o.Enum != nil && !slices.Contains(o.Enum, value) {
		errs[path] = fmt.Sprintf("value '%s' does not have a value in the enumeration '%s'", value,
			strings.Join(o.Enum, ", "))
	}
}

var compiled = func() func(string) *regexp.Regexp {
	cache := make(map[string]*regexp.Regexp)
	return func(pattern string) *regexp.Regexp {
		if cache[pattern] == nil {
			cache[pattern] = regexp.MustCompile(pattern)
		}
		return cache[pattern]
	}
}()

// parseProperties splits a value such as net0's into its keys and checks them. kind names a
// table of schema.json, path is the option's name for messages. Booleans come back as 0 or 1.
func parseProperties(kind, path, value string) (map[string]string, error) {
	keys := table().Properties[kind]
	got := make(map[string]string)
	for part := range strings.SplitSeq(value, ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		switch {
		case ok && (k == "" || v == ""):
			return nil, errors.New("missing key in comma-separated list property")
		case !ok:
			v, k = part, ""
			for name, o := range keys {
				if o.DefaultKey {
					k = name
				}
			}
			if k == "" {
				return nil, errors.New("value without key, but schema does not define a default key")
			}
		}
		if _, dup := got[k]; dup {
			return nil, fmt.Errorf("duplicate key in comma-separated list property: %s", k)
		}
		if o := keys[k]; o != nil && o.Type == "boolean" {
			if b, ok := parseBool(v); ok {
				v = b
			}
		}
		got[k] = v
	}
	errs := make(map[string]string)
	for k, v := range got {
		if keys[k] == nil {
			errs[path+"."+k] = "property is not defined in schema and the schema does not allow additional properties"
			continue
		}
		keys[k].check(path+"."+k, v, errs)
	}
	for k, o := range keys {
		if _, ok := got[k]; !ok && o.Required {
			errs[path+"."+k] = "property is missing and it is not optional"
		}
	}
	if len(errs) > 0 {
		msg := "format error"
		for _, k := range slices.Sorted(maps.Keys(errs)) {
			msg += "\n" + k + ": " + errs[k]
		}
		return nil, errors.New(strings.TrimSuffix(msg, "\n"))
	}
	return got, nil
}

// printProperties is the canonical form of a property string: the default key's bare value, the
// required keys, then the others, each group sorted.
func printProperties(kind string, values map[string]string) string {
	keys := table().Properties[kind]
	rank := func(k string) int {
		switch o := keys[k]; {
		case o.DefaultKey:
			return 0
		case o.Required:
			return 1
		}
		return 2
	}
	names := slices.Collect(maps.Keys(values))
	slices.SortFunc(names, func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for i, k := range names {
		if keys[k].DefaultKey {
			names[i] = values[k]
		} else {
			names[i] = k + "=" + values[k]
		}
	}
	return strings.Join(names, ",")
}

// splitList splits a list of values by NUL bytes or else by commas, semicolons and blanks.
func splitList(s string) []string {
	if strings.Contains(s, "\x00") {
		return strings.Split(s, "\x00")
	}
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(",; \t\r\n\f", r) })
}

func matches(pattern, message string) func(string) error {
	return func(s string) error {
		if !compiled(pattern).MatchString(s) {
			return errors.New(strings.ReplaceAll(message, "%s", s))
		}
		return nil
	}
}

const dnsLabel = `[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?`

var formats = map[string]func(string) error{
	"dns-name":       matches(`^(?:`+dnsLabel+`\.)*`+dnsLabel+`$`, "value does not look like a valid DNS name"),
	"pve-vmid":       matches(`^[1-9][0-9]{2,8}$`, "value does not look like a valid VM ID"),
	"pve-node":       matches(`^`+dnsLabel+`$`, "value does not look like a valid node name"),
	"pve-configid":   matches(`^[a-zA-Z][a-zA-Z0-9_-]+$`, "invalid configuration ID '%s'"),
	"pve-storage-id": matches(`^[a-zA-Z][a-zA-Z0-9._-]*[a-zA-Z0-9]$`, "storage ID '%s' contains illegal characters"),
	"pve-volume-id":  matches(`^[a-zA-Z][a-zA-Z0-9._-]*[a-zA-Z0-9]:.+$`, "unable to parse volume ID '%s'"),
	"pve-poolid": matches(`^[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){0,2}$`,
		"value '%s' does not look like a valid pool name"),
	"pve-tag":   matches(`^[a-zA-Z0-9_][a-zA-Z0-9_+.-]*$`, "invalid characters in tag"),
	"disk-size": matches(`^\d+(?:\.\d+)?[KMGT]?$`, "value does not look like a valid disk size: %s"),
	"mac-addr": matches(`^[0-9a-fA-F][02468aceACE](?::[0-9a-fA-F]{2}){5}$`,
		"value does not look like a valid unicast MAC address"),
	"pve-lxc-dev-string": func(s string) error {
		if !strings.HasPrefix(s, "/dev/") || compiled(`/\.\.?(?:/|$)`).MatchString(s) {
			return fmt.Errorf("%s is not a valid device path", s)
		}
		return nil
	},
	"pve-lxc-mp-string": func(s string) error {
		if compiled(`/\.\.?(?:/|$)|^\.\./`).MatchString(s) {
			return fmt.Errorf("%s contains illegal character sequences", s)
		}
		return nil
	},
	"pve-startup-order": func(s string) error {
		for part := range strings.SplitSeq(s, ",") {
			if !compiled(`^(?:\s*|(?:order=)?\d+|(?:up|down)=\d+)$`).MatchString(part) {
				return errors.New("unable to parse startup options")
			}
		}
		return nil
	},
	"pve-ct-timezone": func(s string) error {
		if s == "host" || s == "UTC" {
			return nil
		}
		if fi, err := os.Stat("/usr/share/zoneinfo/" + s); err != nil || !fi.Mode().IsRegular() ||
			strings.Contains(s, "..") {
			return fmt.Errorf("invalid time zone '%s'", s)
		}
		return nil
	},
	"ipv4": func(s string) error {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return errors.New("value does not look like a valid IPv4 address")
		}
		return nil
	},
	"ipv6": func(s string) error {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is6() || a.Zone() != "" {
			return errors.New("value does not look like a valid IPv6 address")
		}
		return nil
	},
	"lxc-ip-with-ll-iface": func(s string) error {
		if a, err := netip.ParseAddr(s); err != nil || a.Zone() != "" && !a.IsLinkLocalUnicast() {
			return errors.New("value does not look like a valid IP address")
		}
		return nil
	},
	"pve-ipv4-config": func(s string) error {
		if p, err := netip.ParsePrefix(s); s != "dhcp" && s != "manual" && (err != nil || !p.Addr().Is4() ||
			p.Bits() < 8) {
			return errors.New("value does not look like a valid ipv4 network configuration")
		}
		return nil
	},
	"pve-ipv6-config": func(s string) error {
		if p, err := netip.ParsePrefix(s); s != "auto" && s != "dhcp" && s != "manual" && (err != nil ||
			!p.Addr().Is6() || p.Bits() < 8) {
			return errors.New("value does not look like a valid ipv6 network configuration")
		}
		return nil
	},
}

func checkFormat(format, value string) error {
	name, list := strings.CutSuffix(format, "-list")
	check := formats[name]
	if check == nil {
		panic("schema.json: unknown format " + format)
	}
	if !list {
		return check(value)
	}
	for _, v := range splitList(value) {
		if err := check(v); err != nil {
			return err
		}
	}
	return nil
}
