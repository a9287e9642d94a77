package config

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/tools/txtar"
)

// beyondSchema are the mistakes that a schema cannot see, or that would make it hard
// to read: by what phx says of them.
var beyondSchema = []*exemption{
	// What values of a file have to do with each other.
	beyondIs(`.* (is|has) .* already`, "only one may have it"),
	beyondIs(`.* is the address of .*: give that a traefik_service`, "only one may have it"),
	beyondIs(`.* has another place in `, "maps of ids"),
	beyondIs(`.* (is named|is given) twice`, "in another form"),
	beyondIs(`cycle: `, "dependencies"),
	beyondIs(`(there is no )?container \d+ (has|in the file)`, "clones"),
	beyondIs(`must not be false: container \d+ is not is_template`, "clones"),
	beyondIs(`there is no clone_from_ctid: only a clone can be full`, "two keys"),
	beyondIs(`pct sets them only when it creates a container from a template`, "two keys"),
	beyondIs(`there are mount_points: `, "two keys"),
	beyondIs(`a template never runs, `, "two keys"),
	beyondIs(`unprivileged is false: `, "two keys"),
	beyondIs(`there is lxc.idmap in lxc_options, too`, "two keys"),
	beyondIs(`with http there is no certificate`, "two keys"),
	beyondIs(`the CA's certificate is `, "two keys"),
	beyondIs(`.* is not the mac_address, `, "two keys"),
	beyondIs(`Proxmox VE cannot do it with ip6 auto`, "two keys"),
	beyondIs(`must be a fixed address, not `, "two keys"),
	beyondIs(`needs a fixed address, but `, "two keys"),
	beyondIs(`the gateway, container \d+, has no fixed address`, "two keys"),
	beyondIs(`name servers are those of the container`, "of the first interface only"),
	beyondIs(`is IPv\d, and source IPv\d`, "two keys"),
	beyondIs(`\d+ ids from \d+ on go beyond the container's last one`, "two keys"),
	beyondIs(`.* is (outside of|the container's own address)`, "arithmetic of addresses"),
	beyondIs(`key given twice`, "a JSON parser keeps one of them"),

	// What is arithmetic, or a format of its own, and would be no pattern to read.
	beyondIs(`.* is not an address of a host in `, "arithmetic of addresses"),
	beyondIs(`.* is link-local`, "arithmetic of addresses"),
	beyondIs(`.* is not the address of another machine`, "arithmetic of addresses"),
	beyondIs(`.* is the IPv4 address .*: write that`, "IPv4 in the form of IPv6"),
	beyondIs(`"::ffff:[^"]*" is not an? IP`, "IPv4 in the form of IPv6"),
	beyondIs(`"[^"]*/\d+" is not an IP address or a network`, "bits behind the prefix"),
	beyondIs(`"[^"]*-[^"]*" is not a list of addresses`, "a range from high to low"),
	beyondIs(`"\d+:\d+" is not a list of ports`, "a range from high to low"),
	beyondIs(`"[^"]*\d-\d[^"]*" is not the id of a VLAN`, "a range from high to low"),
	beyondIs(`"[^"]*" goes beyond the last id`, "arithmetic of ids"),
	beyondIs(`is a map of [ug]id in \d+ parts`, "arithmetic of ids"),
	beyondIs(`is no public key of OpenSSH`, "the blob of a key has a format of its own"),
	beyondIs(`must be a whole number, not [\d.eE+-]+$`, "1e3 and 1.0 are whole numbers in a schema"),
	beyondIs(`"\d+\.0" is not a container id`, "a whole number in a schema"),
	beyondIs(`"[^"]{200,}" is not a host name`, "the length of one of several words"),

	// How many there are, and sizes, which a schema counts in characters.
	beyondIs(`(.* )?at most \d+ (are allowed|fit in an event)`, "sizes"),
	beyondIs(`pct has no more than \d+ `, "of two lists together"),
	beyondIs(`lxc.cap.\w+: Linux has no more than \d+ capabilities`, "of several lines"),
	beyondIs(`nested deeper than \d+ levels`, "what phx reads"),

	// What is on the host.
	beyondIs(`.* (is a directory of|belongs to) the system`, "the host"),
}

type exemption struct {
	says *regexp.Regexp
	why  string // it is beyond a schema
	used bool
}

func beyondIs(says, why string) *exemption {
	return &exemption{says: regexp.MustCompile("^(?:" + says + ")"), why: why}
}

var compiled = sync.OnceValues(func() (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(Schema())))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(SchemaURL, doc); err != nil {
		return nil, err
	}
	return c.Compile(SchemaURL)
})

// holdSchema compares what phx and the schema say of the text of a file: what phx
// accepts the schema accepts, and what phx refuses the schema refuses, too, unless all
// that is wrong is beyond a schema.
func holdSchema(t *testing.T, text string) {
	t.Helper()
	schema, err := compiled()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return // not JSON
	}
	_, err = Parse("f.json", []byte(text))
	refused := schema.Validate(doc)
	var wrong *Error
	if !errors.As(err, &wrong) {
		if refused != nil {
			t.Errorf("phx accepts what the schema refuses: %v\n%.3000s", refused, text)
		}
		return
	}
	if refused != nil {
		return
	}
	for _, m := range wrong.Mistakes {
		if !beyond(m.Msg) {
			t.Errorf("the schema accepts what phx refuses: %s", m)
		}
	}
}

// beyond reports whether a mistake is beyond the schema.
func beyond(msg string) bool {
	for _, x := range beyondSchema {
		if x.says.MatchString(msg) {
			x.used = true
			return true
		}
	}
	return false
}

// TestMain fails when a whole run of the tests has met no mistake of a kind in
// beyondSchema.
func TestMain(m *testing.M) {
	code := m.Run()
	for _, x := range beyondSchema {
		if code == 0 && !x.used && flag.Lookup("test.run").Value.String() == "" && os.Getenv("PHX_TEST_LONG") != "" {
			fmt.Printf("beyondSchema: no test has such a mistake: %s\n", x.says)
			code = 1
		}
	}
	os.Exit(code)
}

// TestSchemaOnConfigurations: the schema holds for every configuration of the
// repository.
func TestSchemaOnConfigurations(t *testing.T) {
	count := 0
	hold := func(name, text string) {
		if strings.Contains(text, `"lxc_configs"`) {
			count++
			t.Run(name, func(t *testing.T) { holdSchema(t, text) })
		}
	}
	err := filepath.WalkDir("../../../scripts", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		switch filepath.Ext(path) {
		case ".json":
			text, err := os.ReadFile(path)
			hold(path, string(text))
			return err
		case ".txtar":
			archive, err := txtar.ParseFile(path)
			if err != nil {
				return err
			}
			for _, f := range archive.Files {
				hold(path+"/"+f.Name, string(f.Data))
			}
		}
		return nil
	})
	if err != nil || count < 10 {
		t.Errorf("%d configurations, %v", count, err)
	}
	hold("with $schema", strings.Replace(base, "{", `{"$schema": "`+SchemaURL+`",`, 1))
	if f := parse(t, strings.Replace(base, "{", `{"$schema": "./phx.schema.json",`, 1)); len(f.Warnings) != 1 {
		t.Errorf("%v, want a warning of container 103's extra alone", f.Warnings)
	}
}

// otherKeys is a file with the keys that everyKey has not.
const otherKeys = `{"lxc_configs": {"100": {
  "name": "a", "clone_from_ctid": 900, "full_clone": true, "memory_mb": 16, "cores": 1, "storage_pool": "lab",
  "storage_size_gb": 1, "nameservers": ["fd00::53"], "searchdomain": "a.example b.example", "network_configs": [
    {"name": "eth0", "bridge": "vmbr0", "ip": "dhcp", "ip6": "fd00::10/64", "gw6": "fe80::1",
      "hwaddr": "02:00:00:00:00:01", "tag": 5, "trunks": ["20-29", 30], "mtu": 1500, "rate": 2.5,
      "link_down": false, "host_managed": true,
      "firewall": true, "nameserver": "fd00::53"},
    {"name": "eth1", "bridge": "vmbr1", "ip6": "auto", "trunks": "4;7-9"}],
  "id_maps": [{"type": "both", "host_id": 1000, "container_id": 1000, "size": 1}], "health_check": {"command": "true",
    "retries": 2, "interval": 1}, "dependencies": [900]},
 "900": {"name": "b", "template": "local:vztmpl/x", "is_template": true, "memory_mb": 16, "cores": 1,
  "storage_pool": "lab", "storage_size_gb": 1, "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "manual"},
  "secondary_network_config": {"name": "eth1", "bridge": "vmbr0", "ip": "10.0.0.2/24", "hwaddr": ""},
  "ssh_public_keys": ["ssh-ed25519 ` + goodKey + `"], "description_text": ""}},
 "services": [{"name": "nas", "url": "https://10.0.0.9:8443", "insecure": true, "server_name": "nas.example"},
  {"name": "v6", "url": "http://[fd00::9]:80"}],
 "dashboard": {"name": "traefik", "allow": ["10.0.0.0/24", "fd00::1"]}}`

// TestSchemaOnEveryValue: the schema and phx agree on every value of files that have
// every key, when it is replaced by values that are wrong for most, and by those at
// the limits of numbers; and on every member that is missing or unknown.
func TestSchemaOnEveryValue(t *testing.T) {
	values := []any{nil, true, []any{}, []any{""}, []any{1}, map[string]any{}, "", 0, -1, 1.5, 1e9, "\x01", "ü", " "}
	numbers := slices.Clone(values)
	for limit := range limits(t) {
		numbers = append(numbers, limit-1, limit, limit+1)
	}
	for _, doc := range apart(t, `{"lxc_configs": {"801": `+everyKey+`}}`, otherKeys) {
		walk(doc, func(set func(any), old any) {
			tried := values
			if _, number := old.(float64); number {
				tried = numbers
			}
			for _, v := range tried {
				set(v)
				holdSchema(t, marshal(t, doc))
			}
		})
		walkObjects(doc, func(object map[string]any) {
			for name, v := range object {
				delete(object, name)
				holdSchema(t, marshal(t, doc))
				object[name] = v
			}
			object["unknown"] = 1
			holdSchema(t, marshal(t, doc))
			delete(object, "unknown")
		})
	}
}

// limits returns the numbers that the schema has as limits.
func limits(t *testing.T) map[int]bool {
	all := map[int]bool{}
	for _, m := range regexp.MustCompile(`"(?:minimum|maximum)": (\d+)\b`).FindAllStringSubmatch(string(Schema()), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		all[n] = true
	}
	if len(all) < 10 {
		t.Errorf("%d limits", len(all))
	}
	return all
}

// formatStrings are strings at the borders of formats.
var formatStrings = strings.Split(strings.Repeat("a", 63)+"|"+strings.Repeat("a", 64)+"|"+
	strings.Repeat("a.", 126)+"a|"+
	strings.Repeat("a.", 127)+"a|"+strings.Repeat("b", 200)+"|"+strings.Repeat("b", 201)+"|"+
	strings.Repeat("b", 100)+"|"+
	strings.Repeat("b", 101)+"|"+strings.Repeat("b", 40)+"|"+strings.Repeat("b", 41)+"|"+strings.Repeat("b", 15)+"|"+
	strings.Repeat("b", 16)+"|"+
	`a|A|0|_|-|.|a.|.a|-a|a-|_a|a_|a-b|a.b|a..b|a b|a,b|a;b|a:b|a=b|a/b|/a|a/|//|/|/a/|/a/.|/a/../b|/a/..b|/a,b|`+
	`/a=b|/a |`+
	`current|CURRENT|Current1|local:vztmpl/x|local:|:x|l:x|local:x/|local:../x|../x|x/..|-x|x-|local:snippets/a.sh|`+
	`local:snippets/|local:snippets/-a|snippets/a|0.0.0.0|1.2.3.4|1.2.3|1.2.3.256|01.2.3.4|1.2.3.4/0|1.2.3.4/8|`+
	`1.2.3.4/32|`+
	`1.2.3.4/33|1.2.3.4/08|1.2.3.4/|10.0.0.0/24|::|::1|1::|1::2|1:2:3:4:5:6:7:8|1:2:3:4:5:6:7::|::2:3:4:5:6:7:8|`+
	`1::3:4:5:6:7:8|`+
	`1:2:3:4:5:6:7:8:9|1::2::3|:::|12345::|fe80::1|fe80::1%eth0|fd00::1/64|fd00::1/7|fd00::1/8|fd00::1/128|`+
	`fd00::1/129|`+
	`::ffff:1.2.3.4|::1.2.3.4|1:2:3:4:5:6:1.2.3.4|1:2:3:4:5:6:7:1.2.3.4|[fd00::1]|dhcp|manual|auto|DHCP|`+
	`00:00:00:00:00:00|`+
	`02:00:00:00:00:01|03:00:00:00:00:01|02-00-00-00-00-01|0200.0000.0001|2:0:0:0:0:1|ab:cd:ef:AB:CD:EF|`+
	`https://a|HTTPS://a|`+
	`http://a|https://|https://:1|https://a:1|https://a:x|https://u@a|https://a/b?c#d|https://a/b c|`+
	`https://[::1]:1/|https:a|`+
	`https://a%b|http://1.2.3.4:80|https://1.2.3.4:0|https://1.2.3.4:65535|https://1.2.3.4:65536|https://1.2.3.4:080|`+
	`https://1.2.3.4|https://1.2.3.4:80/|https://[fd00::1]:80|https://fd00::1:80|nesting=1|nesting=ON|nesting=2|`+
	`nesting= 1|`+
	`mount=nfs;cifs|mount=|nesting=1,fuse=0|nesting=1, fuse=0 |nesting|x=1|Nesting=1|u 0 100000 65536|g  1 2 3 |`+
	`u 0 0 0|u 00 1 1|`+
	`x 0 1 1|u 0 1|none|0, 1|256|255|0255|1,|lxc.idmap=u 0 1 1|lxc.idmap: x|lxc.idmap|lxc.idmap x|lxc.IDMAP=x|`+
	`lxc.rootfs.path=x|`+
	`lxc.cgroup2.x=1|lxc.cgroup.x=1|lxc.net.0.type = veth|lxc.limit.x=1|lxc.x=1|lxc.cap.drop=|ACCEPT|accept|DROP|`+
	`in|out|group|`+
	`tcp|TCP|6|ipv6-icmp|22|0022|0|65535|65536|80:85|85:80|80:|22,80:85,https|22,,23|HTTP|any|+set|+dc/set|dc/a1|`+
	`guest/ab|sdn/ab|`+
	`+sdn/ab|+sdn/any|1.2.3.4-1.2.3.9|1.2.3.9-1.2.3.4|1.2.3.4-fd00::1|fd00::1-fd00::2|1.2.3.4,fd00::1|`+
	`1.2.3.4,5.6.7.8/16|`+
	`fd00::1,fd00::/8|1.2.3.4,a1|host|UTC|Europe/Vienna|Europe/|/Vienna|Etc/GMT+1|0660|1660|0668|660|00660|uid|`+
	`both|debian|Debian|`+
	`amd64|http|https|HTTP|noatime|true|a && b|a &b|a& b|a&b|&a|a|b$c|x "y"|a*|a?|[a]|{a}|~|#|!|a>b|'|\|20-29|`+
	`29-20|0-5|4094|4095|`+
	`1;2|1;|1-2;5|01|100|099|999999999|1000000000|phx:|x phx:|phx|1.1.1.1, ::1|1.1.1.1 x|;|/dev/kvm|/dev|/dev/|`+
	`//dev//kvm|/devx|`+
	`ssh-ed25519 x|/root/keys|a.b c.d,e`, "|")

// TestSchemaOnStrings: the patterns of the schema and the formats of phx agree.
func TestSchemaOnStrings(t *testing.T) {
	every := 5 // one of so many strings is tried, another one at the next place
	switch {
	case os.Getenv("PHX_TEST_LONG") != "":
		every = 1
	case os.Getenv("PHX_TEST_FULL") == "":
		t.Skip("it tries thousands of strings: PHX_TEST_FULL=1 runs it")
	}
	leaf := 0
	more := append(slices.Clone(formatStrings), "a\nb", "a\tb", "\nphx: x", "a\n phx:x", "|", "a|b", "u|g")
	for _, doc := range apart(t, `{"lxc_configs": {"801": `+everyKey+`}}`, otherKeys) {
		walk(doc, func(set func(any), old any) {
			if _, isString := old.(string); !isString {
				return
			}
			leaf++
			for i := leaf % every; i < len(more); i += every {
				set(more[i])
				holdSchema(t, marshal(t, doc))
			}
		})
	}
}

// apart returns documents with one key each of the containers in files, beside those
// that a container must have, and one with what else is there.
func apart(t *testing.T, texts ...string) []any {
	t.Helper()
	var all []any
	for _, text := range texts {
		var file map[string]any
		if err := json.Unmarshal([]byte(text), &file); err != nil {
			t.Fatal(err)
		}
		for _, c := range file["lxc_configs"].(map[string]any) {
			for name, v := range c.(map[string]any) {
				one := map[string]any{
					"name": "a", "memory_mb": 16, "cores": 1, "storage_pool": "lab", "storage_size_gb": 1,
				}
				if name != "clone_from_ctid" {
					one["template"] = "a"
				}
				if name != "network_configs" {
					one["network_config"] = map[string]any{"name": "eth0", "bridge": "vmbr0", "ip": "10.9.9.9/24"}
				}
				one[name] = v
				all = append(all, map[string]any{"lxc_configs": map[string]any{"801": one}})
			}
		}
		file["lxc_configs"] = map[string]any{}
		all = append(all, file)
	}
	return all
}

// walk calls each for every value in doc that is no object and no list, and for the
// lists, and puts the old value back.
func walk(doc any, each func(set func(any), old any)) {
	at := func(v any, set func(any)) {
		if _, object := v.(map[string]any); !object {
			each(set, v)
			set(v)
		}
		walk(v, each)
	}
	switch doc := doc.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(doc)) {
			at(doc[name], func(v any) { doc[name] = v })
		}
	case []any:
		for i := range doc {
			at(doc[i], func(v any) { doc[i] = v })
		}
	}
}

func walkObjects(doc any, each func(map[string]any)) {
	switch doc := doc.(type) {
	case map[string]any:
		each(doc)
		for _, v := range doc {
			walkObjects(v, each)
		}
	case []any:
		for _, v := range doc {
			walkObjects(v, each)
		}
	}
}

func marshal(t *testing.T, doc any) string {
	t.Helper()
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
