package ca

import (
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"thinkheads.ai/phx/cmd/internal/config"
)

// The scripts that can be run by hand have places and defaults of their own:
// they are those of this package.
func TestScriptsAgree(t *testing.T) {
	for script, values := range map[string]map[string]string{
		"phoenix_hypervisor_lxc_103.sh": {
			`^home=(.*)$`:                         Home,
			`^adopted=(.*)$`:                      AdoptedFile,
			`^restart=(.*)$`:                      RestartFile,
			`^root=\$home(.*)$`:                   strings.TrimPrefix(RootPath, Home),
			`^port=\$\{PHX_SERVICE_PORT:-(.*)\}$`: strconv.Itoa(DefaultPort),
			`ExecStart=\S+ \$home(\S+)`:           strings.TrimPrefix(ConfigPath, Home),
			` default (\d+)\.$`:                   strconv.Itoa(DefaultPort),
		},
		"phoenix_hypervisor_feature_install_step_ca.sh": {
			`^add_user step (.*)$`: Home,
			`mv -T \S+ (.*)$`:      Home,
		},
	} {
		text, err := os.ReadFile("../../../scripts/" + script)
		if err != nil {
			t.Fatal(err)
		}
		for form, want := range values {
			m := regexp.MustCompile(`(?m)` + form).FindSubmatch(text)
			if m == nil {
				t.Errorf("%s: no line %s", script, form)
			} else if string(m[1]) != want {
				t.Errorf("%s: %s: %q, and package ca has %q", script, form, m[1], want)
			}
		}
	}
}

func TestSettingsOf(t *testing.T) {
	plan := config.Plan{
		Domain: "example.test",
		CA:     &config.Place{CTID: 103, IP: "10.0.0.10"},
		Services: []config.Service{
			{Name: "git", Host: "git.example.test", URL: "http://10.0.0.20:3000", CTID: 120},
		},
	}
	want := Settings{
		Domain: "example.test", Addr: netip.MustParseAddr("10.0.0.10"), Name: "ca", Port: 9000,
		Names: []string{"git.example.test"},
	}
	if got := SettingsOf(&plan); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	plan.Services = append(plan.Services,
		config.Service{Name: "pki", Host: "pki.example.test", URL: "https://10.0.0.10:8443", CTID: 103})
	want.Name, want.Port, want.Names = "pki", 8443, append(want.Names, "pki.example.test")
	if got := SettingsOf(&plan); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	plan.Dashboard = &config.DashboardRoute{Host: "board.proxy.example.test"}
	want.Names = append(want.Names, "board.proxy.example.test")
	plan.CA.IP, plan.CA.Also = "fd00::10", []string{"10.0.0.10"}
	want.Addr, want.Also = netip.MustParseAddr("fd00::10"), []netip.Addr{netip.MustParseAddr("10.0.0.10")}
	got := SettingsOf(&plan)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if url := got.URL(); url != "https://[fd00::10]:8443" {
		t.Errorf("URL %s", url)
	}
	if names := got.ServerNames(); !slices.Equal(names, []string{"pki.example.test", "fd00::10", "10.0.0.10",
		"127.0.0.1"}) {
		t.Errorf("names %q", names)
	}
	if got := Port(&config.Plan{}); got != DefaultPort {
		t.Errorf("port %d without a CA", got)
	}
}

// Both halves use this package: it needs nothing of Proxmox VE.
func TestNothingOfTheHost(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pve", "event", "service", "cahost"} {
		if strings.Contains(string(out), "thinkheads.ai/phx/cmd/internal/"+name+"\n") {
			t.Errorf("it links %s", name)
		}
	}
}
