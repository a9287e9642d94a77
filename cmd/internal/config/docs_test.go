package config

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocumentation: docs/configuration.md has every key of a container, and of
// the objects in it, and no other; it says which are required, and which make
// an application script run again.
func TestDocumentation(t *testing.T) {
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	text := read("../../../docs/configuration.md")
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([^|\\\\]*)")
	// rows returns the keys of the table below a heading, those that are required
	// with a star.
	rows := func(heading string) []string {
		_, section, found := strings.Cut(text, "\n"+heading+"\n")
		if !found {
			t.Fatalf("no heading %q", heading)
		}
		section, _, _ = strings.Cut(section, "\n#")
		var keys []string
		for _, m := range row.FindAllStringSubmatch(section, -1) {
			if strings.HasSuffix(strings.TrimSpace(m[2]), "required") {
				m[1] += "*"
			}
			keys = append(keys, m[1])
		}
		return keys
	}
	compare := func(heading string, want []string) {
		if have := rows(heading); !slices.Equal(have, want) {
			t.Errorf("%s has\n%v, want\n%v", heading, have, want)
		}
	}

	var keys, inputs []string
	for _, k := range containerKeys {
		if k.input {
			inputs = append(inputs, k.name)
		}
		if k.need != "" {
			k.name += "*"
		}
		keys = append(keys, k.name)
	}
	compare("## A container's keys", keys)
	_, said, _ := strings.Cut(text, "The application script runs again when")
	said, _, _ = strings.Cut(said, "changes")
	var named []string
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(said, -1) {
		named = append(named, m[1])
	}
	if !slices.Equal(named, inputs) {
		t.Errorf("the application script runs again for %v, want %v", named, inputs)
	}

	// The objects' keys are in the functions that read them.
	source := ""
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		source += read(file)
	}
	member := regexp.MustCompile(`member\{"(\w+)", (""|".+?")`)
	for heading, function := range map[string]string{
		"### network_config, secondary_network_config, network_configs": "networkInterface",
		"### volumes, zfs_volumes":                                      "volumes",
		"### rootfs_options":                                            "rootOptions",
		"### devices":                                                   "devices",
		"### id_maps":                                                   "mappedIDs",
		"### mount_points":                                              "mountPoints",
		"### firewall":                                                  "firewall",
		"### firewall.rules":                                            "firewallRule",
		"### health_check":                                              "healthCheck",
		"### health_checks":                                             "healthChecks",
		"### traefik_service":                                           "service",
		"### services":                                                  "services",
		"### dashboard":                                                 "dashboard",
		"### vms":                                                       "vm",
	} {
		body := regexp.MustCompile(`(?ms)^func (\(p \*\w+\) )?` + function + `\(.*?^}$`).FindString(source)
		var keys []string
		for _, m := range member.FindAllStringSubmatch(body, -1) {
			if m[2] != `""` {
				m[1] += "*"
			}
			keys = append(keys, m[1])
		}
		compare(heading, keys)
	}
}
