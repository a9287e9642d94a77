package config

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

// TestEveryKeyIsExplained: there is a sentence for each key of a container; what
// differs from the scripts before is told of keys that there are.
func TestEveryKeyIsExplained(t *testing.T) {
	for _, k := range containerKeys {
		if k.does == "" || len(k.does) > 200 || strings.HasSuffix(k.does, ".") {
			t.Errorf("%s: %q is not a short sentence without a full stop", k.name, k.does)
		}
	}
	for _, d := range differences {
		if keyByName[d.key] == nil || d.before == "" || d.now == "" || (d.value == nil) != (d.text == "") {
			t.Errorf("differences: %+v", d)
		}
	}
	for _, k := range foreignKeys {
		if keyByName[k.name] != nil || k.why == "" {
			t.Errorf("foreignKeys: %+v", k)
		}
	}
}

// TestForeignKeyWarning: a key of another program that asks for what phx does not
// do is a warning, and one that asks for nothing is not.
func TestForeignKeyWarning(t *testing.T) {
	for keys, want := range map[string]string{
		`"public_interface": {"enabled": true}`:       "passed over: phx opens no ports for it",
		`"public_interface": {"enabled": false}`:      "",
		`"public_interface": false`:                   "",
		`"trigger_sync_on_completion": true`:          "passed over: phx does not bring Portainer's stacks up to date",
		`"trigger_sync_on_completion": false`:         "",
		`"template_file": "x.tar.gz"`:                 "no script has ever used this",
		`"portainer_role": "agent", "vllm_model": ""`: "",
		`"ports": ["80:80"], "_remark": 1`:            "",
	} {
		f := parse(t, strings.Replace(base, `"extra": 0`, keys, 1))
		got := ""
		for _, w := range f.Warnings {
			got += w.String()
		}
		if !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", keys, got, want)
		}
		if f.Containers[103].Template != "" {
			t.Errorf("%s: template %q", keys, f.Containers[103].Template)
		}
	}
}

func TestMeantKey(t *testing.T) {
	for key, want := range map[string]string{
		"memroy_mb": "memory_mb", "gpu_assigment": "gpu_assignment", "core": "cores", "feature": "features",
		"health_chek": "health_check", "extra": "", "nam": "name", "": "", "Cores": "cores", "node": "",
		strings.Repeat("x", 1<<20): "",
	} {
		if got := meantKey(key); got != want {
			t.Errorf("%.20q: %q, want %q", key, got, want)
		}
	}
}

// TestExplain: each key of a file is explained once, with its containers, whatever
// else is wrong with the file.
func TestExplain(t *testing.T) {
	for name, text := range map[string]string{
		"right": base,
		"wrong": strings.NewReplacer(`"memory_mb": 2048`, `"memory_mb": "x"`, `"cores": 1`, `"cores": 0`).Replace(base),
	} {
		path := filepath.Join(t.TempDir(), "f.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := Explain(path, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(x.IDs, []int{102, 103, 900}) || (x.Wrong != nil) != (name == "wrong") || x.File == nil {
			t.Errorf("%s: %+v", name, x)
		}
		found := map[string]int{}
		for _, u := range x.Uses {
			if _, again := found[u.Key]; again || u.Does == "" {
				t.Errorf("%s: %+v", name, u)
			}
			found[u.Key] = len(u.CTIDs)
		}
		count := map[string]int{"nvidia_driver_version": 0}
		gjson.Get(text, "lxc_configs").ForEach(func(_, v gjson.Result) bool {
			v.ForEach(func(k, _ gjson.Result) bool {
				count[k.String()]++
				return true
			})
			return true
		})
		for key, n := range count {
			if got, ok := found[key]; !ok || got != n {
				t.Errorf("%s: %s: %d containers, want %d", name, key, got, n)
			}
		}
		if len(found) != len(count) {
			t.Errorf("%s: %v, want %v", name, found, count)
		}
		if x, err = Explain(path, nil, []int{103}); err != nil || !slices.Equal(x.IDs, []int{103}) {
			t.Errorf("%s: %+v, %v", name, x, err)
		}
	}
}

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
