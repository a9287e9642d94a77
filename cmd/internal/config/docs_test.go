package config

import (
	"flag"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of docs/configuration.md")

const page = "../../../docs/configuration.md"

// TestDocumentation: the tables of docs/configuration.md are those of the keys, word
// for word; it says which of them make an application script run again, and what
// each time at which a change takes effect means. With -update it writes the tables.
func TestDocumentation(t *testing.T) {
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, table := range []struct {
		heading string
		rows    []string
	}{
		{"## A container's keys", rowsOf(containerKeys)},
		{"### network_config, secondary_network_config, network_configs", rowsOf(interfaceKeys)},
		{"### volumes, zfs_volumes", rowsOf(volumeKeys)},
		{"### rootfs_options", rowsOf(rootKeys)},
		{"### devices", rowsOf(deviceKeys)},
		{"### id_maps", rowsOf(idMapKeys)},
		{"### mount_points", rowsOf(mountPointKeys)},
		{"### firewall", rowsOf(firewallKeys)},
		{"### firewall.rules", rowsOf(ruleKeys)},
		{"### health_check", rowsOf(healthCheckKeys)},
		{"### health_checks", rowsOf(healthProbeKeys)},
		{"### traefik_service", rowsOf(serviceKeys)},
		{"### services", rowsOf(otherServiceKeys)},
		{"### dashboard", rowsOf(dashboardKeys)},
		{"### vms", rowsOf(vmKeys)},
		{"## Keys of other programs", foreignRows()},
	} {
		text = withTable(t, text, table.heading, table.rows)
	}
	if *update {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if text != string(data) {
		have, want := strings.Split(string(data), "\n"), strings.Split(text, "\n")
		for i, line := range have {
			if i >= len(want) || line != want[i] {
				t.Fatalf("docs/configuration.md:%d: %s\nis not what the keys have; go test ./cmd/internal/config "+
					"-run TestDocumentation -update writes it", i+1, line)
			}
		}
	}

	var inputs, named []string
	for _, k := range containerKeys {
		if k.input {
			inputs = append(inputs, k.name)
		}
		first, _, _ := strings.Cut(strings.ReplaceAll(k.takes, ";", ","), ",")
		if first != "a new one at once" && !strings.Contains(text, "\n* *"+strings.TrimSuffix(first,
			": they run again")+"*: ") {
			t.Errorf("%s: the page does not say when %q is", k.name, k.takes)
		}
	}
	_, said, _ := strings.Cut(text, "The application script runs again when")
	said, _, _ = strings.Cut(said, "changes")
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(said, -1) {
		named = append(named, m[1])
	}
	if !slices.Equal(named, inputs) {
		t.Errorf("the application script runs again for %v, want %v", named, inputs)
	}
}

// rowsOf returns the rows of the table of an object's keys.
func rowsOf[T any](keys []key[T]) []string {
	var rows []string
	for _, k := range keys {
		words := k.words
		if k.need != "" {
			words += ", required"
		}
		row := "| `" + k.name + "` | " + words + " | " + k.effect + " |"
		if k.takes != "" {
			row += " " + k.takes + " |"
		}
		rows = append(rows, strings.ReplaceAll(row, "|  |", "| |"))
	}
	return rows
}

func foreignRows() []string {
	var rows []string
	for _, k := range foreignKeys {
		rows = append(rows, "| `"+k.name+"` | "+k.why+" |")
	}
	return rows
}

// withTable returns the page with other rows in the table of keys below a heading.
func withTable(t *testing.T, page, heading string, rows []string) string {
	t.Helper()
	at := strings.Index(page, "\n"+heading+"\n")
	if at < 0 {
		t.Fatalf("no heading %q", heading)
	}
	table := regexp.MustCompile(`(?m)(^\| key \|.*\n\|[-|]+\|\n)((?:\|.*\n?)*)`).FindStringSubmatchIndex(page[at:])
	if table == nil || strings.Contains(page[at+len(heading)+2:at+table[0]], "\n#") {
		t.Fatalf("%s: no table of keys", heading)
	}
	return page[:at+table[4]] + strings.Join(rows, "\n") + "\n" + page[at+table[5]:]
}
