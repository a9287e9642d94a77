package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"thinkheads.ai/phx/cmd/internal/config"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"phx-plan": main})
}

func TestScript(t *testing.T) {
	shipped, err := filepath.Abs("../../scripts/phoenix_lxc_configs.json")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("SHIPPED", shipped)
			e.Setenv("GORACE", "atexit_sleep_ms=0") // else each run takes a second under -race
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "userns" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return exec.Command("unshare", "--user", "--map-root-user", "true").Run() == nil, nil
		},
	})
}

// template has the keys of a container that others can be cloned from.
const template = `"template": "local:vztmpl/x.tar.zst", "template_snapshot_name": "final-form"`

// container returns a member of lxc_configs with a name and an address of its
// own and the extra members.
func container(id int, extra string) string {
	return fmt.Sprintf(`"%d": {"name": "c%[1]d", "memory_mb": 512, "cores": 1, "storage_pool": "lab",
		"storage_size_gb": 8, "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.1.%d.%d/8"}, %s}`,
		id, id>>8, id&255, extra)
}

// A new CA is taken by the gateway and the proxy in the same run; what else needs
// it is left alone.
func TestRecreateCA(t *testing.T) {
	f, err := config.Load("../../scripts/phoenix_lxc_configs.json")
	if err != nil {
		t.Fatal(err)
	}
	p := &plan{file: f, name: "recreate", action: actions["recreate"]}
	if err := p.make([]int{103}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range p.order {
		got = append(got, fmt.Sprintf("%d %s", c.CTID, c.action))
	}
	if want := "900 create 103 recreate 102 create 101 create"; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestOrder(t *testing.T) {
	f, err := config.Parse("f.json", []byte(`{"lxc_configs": {`+strings.Join([]string{
		container(500, template),
		container(105, template+`, "boot_order": 2`),
		container(104, template+`, "boot_order": 2, "dependencies": [500, 7000]`),
		container(103, `"clone_from_ctid": 500, "boot_order": 1, "dependencies": [500, 106]`),
		container(102, `"clone_from_ctid": 500, "boot_order": 1`),
		container(106, template+`, "boot_order": 9`),
	}, ",")+`}}`))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		action string
		named  []int
		want   string // ids, each with those before it and the external ones, behind an action other than the plan's
	}{
		{"create", nil, "105[][] 106[][] 500[][] 102[500][] 103[106 500][] 104[500][7000]"},
		{"create", []int{103}, "106[][] 500[][] 103[106 500][]"},
		{"create", []int{102, 102, 500}, "500[][] 102[500][]"},
		{"start", []int{102}, "102[][]"},
		{"start", []int{103, 102}, "102[][] 106[][] 500[][] 103[106 500][]"},
		{"stop", nil, "104[][7000] 103[][] 500[103 104][] 106[103][] 105[][] 102[][]"},
		{"stop", []int{500, 103}, "103[][] 500[103][]"},
		{"restart", []int{103, 500}, "start:106[][] 500[][] 103[106 500][]"},
		{"restart", []int{102}, "102[][]"},
		{"status", []int{103, 102}, "102[][] 103[][]"},
		{"status", []int{102, 500}, "500[][] 102[500][]"},
		{"delete", []int{103}, "103[][]"},
		{"delete", []int{500, 102, 103, 104}, "104[][7000] 103[][] 102[][] 500[102 103 104][]"},
		{"recreate", []int{500}, "500[][]"},
		{"recreate", []int{103}, "create:106[][] create:500[][] 103[106 500][]"},
		{"recreate", []int{103, 500}, "create:106[][] 500[][] 103[106 500][]"},
	}
	for _, tt := range tests {
		p := &plan{file: f, name: tt.action, action: actions[tt.action]}
		if err := p.make(tt.named); err != nil {
			t.Errorf("%s %v: %v", tt.action, tt.named, err)
			continue
		}
		var got []string
		for _, c := range p.order {
			s := fmt.Sprintf("%d%v%v", c.CTID, c.before, c.external)
			if c.action != tt.action {
				s = c.action + ":" + s
			}
			got = append(got, s)
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s %v:\n got %s\nwant %s", tt.action, tt.named, s, tt.want)
		}
	}

	for _, tt := range []struct {
		action string
		named  []int
		want   string
	}{
		{"delete", []int{500, 103},
			"delete: 102 needs 500, 104 needs 500; name them too, or leave them alone with recreate"},
		{"create", []int{7000, 102, 99999},
			"7000, 99999: not in f.json, and phx manages only the containers listed there"},
	} {
		p := &plan{file: f, name: tt.action, action: actions[tt.action]}
		if err := p.make(tt.named); err == nil || err.Error() != tt.want {
			t.Errorf("%s %v: %v, want %s", tt.action, tt.named, err, tt.want)
		}
	}
}

// TestTooLong: a plan of which one line would be too long is refused before
// anything of it is written.
func TestTooLong(t *testing.T) {
	long := make([]int, 0, 150_000)
	for id := range cap(long) {
		long = append(long, 1_000_000+id)
	}
	p := &plan{file: &config.File{}, name: "stop", order: []*planned{
		{Container: &config.Container{CTID: 100, Raw: "{}"}},
		{Container: &config.Container{CTID: 101, Raw: "{}"}, before: long},
	}}
	var out bytes.Buffer
	w := bufio.NewWriterSize(&out, 16)
	err := p.events(w)
	w.Flush()
	if err == nil || out.Len() > 0 {
		t.Errorf("%v, and %d bytes are written", err, out.Len())
	}
}

// A container that needs many others does not make every line of the table as
// long as the list of them, and an error does not list all that is in the way.
func TestManyNeeds(t *testing.T) {
	var members []string
	var all []string
	for id := 1000; id < 2000; id++ {
		members = append(members, container(id, template))
		all = append(all, fmt.Sprint(id))
	}
	members = append(members, container(999, template+`, "dependencies": [`+strings.Join(all, ",")+`]`))
	for id := 2000; id < 2100; id++ {
		members = append(members, container(id, template+`, "dependencies": [999]`))
	}
	f, err := config.Parse("f.json", []byte(`{"lxc_configs": {`+strings.Join(members, ",")+`}}`))
	if err != nil {
		t.Fatal(err)
	}
	p := &plan{file: f, name: "create", action: actions["create"]}
	if err := p.make(nil); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	if err := p.table(w); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	if n := out.Len(); n > 200*len(p.order) || !strings.Contains(out.String(), ",1015,and 984 more") {
		t.Errorf("%d bytes for %d containers", n, len(p.order))
	}
	p = &plan{file: f, name: "delete", action: actions["delete"]}
	const want = "2015 needs 999, and 84 more; name them too, or leave them alone with recreate"
	if err := p.make([]int{999}); err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestAddressesInTheTable(t *testing.T) {
	fixed := func(s string) config.Addressing { return config.Addressing{Prefix: netip.MustParsePrefix(s)} }
	dhcp, auto := config.Addressing{Method: "dhcp"}, config.Addressing{Method: "auto"}
	for _, tt := range []struct {
		interfaces []config.Interface
		want       string
	}{
		{[]config.Interface{{IPv4: fixed("10.0.0.1/24")}}, "10.0.0.1/24"},
		{[]config.Interface{{IPv4: dhcp, IPv6: auto}, {IPv6: fixed("fd00::1/64")}}, "dhcp,auto,fd00::1/64"},
		{[]config.Interface{{IPv4: dhcp}, {IPv4: dhcp}, {IPv4: dhcp}, {IPv4: dhcp}, {IPv4: dhcp}, {IPv6: auto}},
			"dhcp,dhcp,dhcp,dhcp,and 2 more"},
	} {
		if got := addressing(tt.interfaces); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
