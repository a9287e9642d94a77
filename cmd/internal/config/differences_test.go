package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

// differencesPage returns a section of docs/differences.md.
func differencesPage(t *testing.T, heading string) string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("no section %s", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// TestDifferences: docs/differences.md has what --explain says of the scripts
// before.
func TestDifferences(t *testing.T) {
	var want strings.Builder
	want.WriteString("\n| key | the scripts | phx |\n|---|---|---|\n")
	for _, d := range differences {
		key := "`" + d.key + "`"
		if d.text != "" {
			key += " `" + d.text + "`"
		}
		fmt.Fprintf(&want, "| %s | %s | %s |\n", key, d.before, d.now)
	}
	if section := differencesPage(t, "Keys"); !strings.HasPrefix(section, want.String()) {
		t.Errorf("docs/differences.md, Keys, has to begin with\n%s", want.String())
	}
}

// TestRefused: what docs/differences.md says is refused, with that message, and
// what it says to write instead is accepted.
func TestRefused(t *testing.T) {
	row := regexp.MustCompile("(?m)^\\| (`\".*?`)(.*?) \\| (.*?) \\| (.*) \\|$")
	member := regexp.MustCompile("`(\".*?)`")
	rows := row.FindAllStringSubmatch(differencesPage(t, "What phx refuses"), -1)
	if len(rows) < 25 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, m := range rows {
		refused, message, instead := strings.ReplaceAll(strings.Trim(m[1], "`"), `\|`, "|"), m[3], m[4]
		_, err := Parse("f.json", []byte(fileWith(refused, strings.Contains(m[2], "two containers"))))
		if err == nil || !strings.Contains(err.Error(), message) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", refused, err, message)
		}
		if m := member.FindStringSubmatch(instead); m != nil {
			if _, err := Parse("f.json", []byte(fileWith(m[1], false))); err != nil {
				t.Errorf("%s: %v", m[1], err)
			}
		}
	}
}

// fileWith returns a file of a container 103 with these members, and with twice of
// one 104 with the same; 900 can be cloned, 901 cannot.
func fileWith(members string, twice bool) string {
	has := gjson.Parse("{" + members + "}")
	container := func(id int, own string) string {
		object := own
		for _, m := range []string{
			fmt.Sprintf(`"name": "c%d"`, id), `"memory_mb": 512`, `"cores": 1`, `"storage_pool": "tank"`,
			`"storage_size_gb": 8`,
			fmt.Sprintf(`"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.9.%d.%d/8"}`, id/256, id%256),
		} {
			key, _, _ := strings.Cut(strings.TrimPrefix(m, `"`), `"`)
			if own != members || !has.Get(key).Exists() {
				object += ", " + m
			}
		}
		return fmt.Sprintf(`"%d": {%s}`, id, object)
	}
	source := `"template": "local:vztmpl/x.tar.zst"`
	own := members
	if !has.Get("clone_from_ctid").Exists() && !has.Get("template").Exists() {
		own, members = members+", "+source, members+", "+source
	}
	all := []string{
		container(900, source+`, "template_snapshot_name": "final-form"`), container(901, source), container(103, own),
	}
	if twice {
		all = append(all, container(104, own))
	}
	return `{"lxc_configs": {` + strings.Join(all, ",\n") + `}}`
}
