package config

import (
	"encoding/json"
	"regexp"
	"strings"
)

// SchemaURL is the id of the JSON Schema.
const SchemaURL = "https://thinkheads.ai/phx/phoenix_lxc_configs.schema.json"

// Schema returns a JSON Schema (draft 7) of the file: the form of each value, with
// what is said about it in docs/configuration.md. What it accepts may still have
// mistakes: it knows nothing of what values have to do with each other, and of the
// host.
func Schema() []byte {
	container := objectOf(containerKeys, false, shape{
		"description":  "a container: the key is its id",
		"dependencies": shape{"secondary_network_config": []string{"network_config"}},
		"allOf": []shape{
			{"oneOf": []shape{has("template"), has("clone_from_ctid")}},
			{"oneOf": []shape{has("network_config"), has("network_configs")}},
		},
	}).shape()
	known, patterns := container["properties"].(shape), shape{}
	for _, k := range foreignKeys {
		about := shape{"description": "passed over: " + k.why}
		if prefix, any := strings.CutSuffix(k.name, "*"); any {
			patterns["^"+regexp.QuoteMeta(prefix)] = about
		} else {
			known[k.name] = about
		}
	}
	container["patternProperties"] = patterns
	text, err := json.MarshalIndent(shape{
		"$schema":     "http://json-schema.org/draft-07/schema#",
		"$id":         SchemaURL,
		"title":       "phoenix_lxc_configs.json",
		"description": "the containers of a Proxmox VE host, and what each is to be",
		"type":        "object",
		"required":    []string{"lxc_configs"},
		"properties": shape{
			"$schema": shape{"type": "string", "description": "for editors: where this schema is"},
			"lxc_configs": shape{
				"type": "object", "description": "the containers, by their ids",
				"patternProperties":    shape{"^" + ctidPattern + "$": container},
				"additionalProperties": false,
			},
			"services":  servicesForm.shape().and(shape{"description": servicesDo}),
			"dashboard": objectOf(dashboardKeys, true, shape{"description": dashboardDoes}).shape(),
		},
	}, "", "  ")
	if err != nil {
		panic(err) // nothing but strings, numbers, lists and maps
	}
	return append(text, '\n')
}

var (
	markdownLink = regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`)
	plainMarks   = strings.NewReplacer("`", "", `\|`, "|")
)

// plainText returns Markdown without links and marks.
func plainText(markdown string) string {
	return plainMarks.Replace(markdownLink.ReplaceAllString(markdown, "$1"))
}
