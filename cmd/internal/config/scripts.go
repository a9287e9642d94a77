package config

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/tidwall/gjson"
)

// UnknownKeys returns the keys of the container's object that phx does not know,
// with their values.
func (c *Container) UnknownKeys() (map[string]json.RawMessage, error) {
	return c.without(func(key[entry]) bool { return true })
}

// without returns the container's object without those of phx's keys that drop
// chooses.
func (c *Container) without(drop func(key[entry]) bool) (map[string]json.RawMessage, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(c.Raw), &object); err != nil {
		return nil, fmt.Errorf("container %d: %w", c.CTID, err)
	}
	for _, k := range containerKeys {
		if drop(k) {
			delete(object, k.name)
		}
	}
	return object, nil
}

// ScriptInput returns what application scripts read of the container's object:
// the keys that phx does not know, and those of its own that phx does not apply
// by itself. It is the object in the order and the form of [json.Marshal]: the
// same bytes as long as none of these keys gets another value.
func (c *Container) ScriptInput() ([]byte, error) {
	object, err := c.without(func(k key[entry]) bool { return !k.input })
	if err != nil {
		return nil, err
	}
	return json.Marshal(object)
}

func features(p *parser, e *entry, v gjson.Result) {
	e.Features = []string{}
	var named listSet[string]
	p.list(v, func(v gjson.Result) {
		name := p.formatted(v, fileName)
		switch {
		case name == "":
		case named.has(e.Features, name):
			p.fail(v, "%s is named twice", name)
		default:
			e.Features = append(e.Features, name)
		}
	})
}

// What stands for keys of a health_check that are not given.
const (
	defaultRetries  = 3
	defaultInterval = 5 // seconds
)

var healthCheckKeys = []key[HealthCheck]{
	{name: "command", need: "what to run in the container",
		value: special(commandForm, func(p *parser, h *HealthCheck, v gjson.Result) { h.Command = p.command(v) }),
		effect: "runs in the container, without a shell; the path of a program of the installation that the " +
			"container does not have: on the host, where only root may write it, and no container by a mount point"},
	{name: "retries", value: whole(1, 1000, func(h *HealthCheck, n int) { h.Retries = n }), without: defaultRetries,
		effect: fmt.Sprintf("how often it is tried; %d without", defaultRetries)},
	{name: "interval", value: whole(0, 3600, func(h *HealthCheck, n int) { h.Interval = n }), without: defaultInterval,
		effect: fmt.Sprintf("seconds between tries; %d without", defaultInterval)},
}

func healthCheck(p *parser, e *entry, v gjson.Result) {
	e.HealthCheck = &HealthCheck{Retries: defaultRetries, Interval: defaultInterval}
	readObject(p, v, e.HealthCheck, healthCheckKeys, (*parser).ignore)
}

// commandForm has what [needsShell] refuses.
var commandForm = loose("words, separated by blanks", `\S`).but("[\"'`$\\\\;|<>()]|&&|(^|\\s)&|&(\\s|$)")

// command reads a command without a shell. What a shell would not take as it is,
// is refused: a command that needs one would fail only when all is done.
func (p *parser) command(v gjson.Result) string {
	s, ok := p.str(v)
	switch {
	case !ok:
	case strings.TrimSpace(s) == "":
		p.fail(v, "must not be blank")
	case needsShell(s):
		p.fail(v, "no shell reads this, its words are what stands between blanks: put the command into a script, "+
			"in the container to be named here, or on the host as one of health_checks")
	default:
		return s
	}
	return ""
}

var healthProbeKeys = []key[HealthProbe]{
	{name: "name", value: special(anyText, func(p *parser, h *HealthProbe, v gjson.Result) { h.Name, _ = p.str(v) }),
		effect: "in messages; the script's name without"},
	{name: "script", need: "what to run on the host",
		value:  text(fileName, func(h *HealthProbe, s string) { h.Script = s }),
		effect: "[script](#scripts), runs on the host; tried 3 times, 5 seconds apart"},
	{name: "args", value: special(argsForm(), func(p *parser, h *HealthProbe, v gjson.Result) { h.Args = p.args(v) }),
		effect: "its arguments, at most 100"},
}

func healthChecks(p *parser, e *entry, v gjson.Result) {
	e.HealthChecks = []HealthProbe{}
	var h HealthProbe
	p.list(v, func(v gjson.Result) {
		h = HealthProbe{}
		readObject(p, v, &h, healthProbeKeys, (*parser).ignore)
		if h.Name == "" {
			h.Name = h.Script
		}
		if !p.full() {
			e.HealthChecks = append(e.HealthChecks, h)
		}
	})
}

// argsForm is the form of what [parser.args] reads. An argument may be empty.
func argsForm() form {
	argument := fixed("", shape{"type": "string", "pattern": `^[^\x00-\x1f\x7f-\x9f]*$`})
	list := listOf("", argument).with(shape{"maxItems": maxArgs})
	text := argument.but("[\"'`$\\\\;&|<>()*?\\[\\]{}~#!]")
	return either("list of strings, or one of words without quotes", list, text)
}

// maxArgs is more than any health check has.
const maxArgs = 100

// args reads the arguments of a script: a list, or a string of words without
// quotes, since no shell reads it.
func (p *parser) args(v gjson.Result) []string {
	var args []string
	empty := func(v gjson.Result) bool { return v.Type == gjson.String && v.Str == "" }
	switch {
	case v.IsArray():
		p.list(v, func(v gjson.Result) {
			if empty(v) {
				args = append(args, "")
			} else if s, ok := p.str(v); ok {
				args = append(args, s)
			}
		})
	case empty(v):
	default:
		if s, ok := p.str(v); ok && strings.ContainsAny(s, "\"'`$\\;&|<>()*?[]{}~#!") {
			p.fail(v, "no shell reads this: write a list of the arguments")
		} else if ok {
			args = strings.Fields(s)
		}
	}
	if len(args) > maxArgs {
		p.fail(v, "has %d arguments; at most %d are allowed", len(args), maxArgs)
		return nil
	}
	return args
}

// WritablePaths returns the directories and files of the host that containers of the
// file have as mount points, and may write as far as their owners let them.
func (t *Text) WritablePaths() ([]string, error) {
	var file struct {
		Containers map[string]struct {
			MountPoints []struct {
				HostPath string `json:"host_path"`
				ReadOnly bool   `json:"read_only"`
			} `json:"mount_points"`
		} `json:"lxc_configs"`
	}
	if err := json.Unmarshal(t.Text, &file); err != nil {
		return nil, err
	}
	var paths []string
	for _, c := range file.Containers {
		for _, m := range c.MountPoints {
			if !m.ReadOnly {
				paths = append(paths, m.HostPath)
			}
		}
	}
	return paths, nil
}
