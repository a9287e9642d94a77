package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const domain = "internal.example"

// baseVMs is a file of virtual machines without mistakes, in which other programs'
// keys have whatever they like.
const baseVMs = `{
  "vm_defaults": {"cores": 2, "cores": 4},
  "vms": [
    {"vmid": 9000, "name": "image", "network_config": {"ip": "dhcp"}, "is_template": true, "x": [1, {}]},
    {"vmid": 1001, "name": "Portainer", "network_config": {"ip": "10.0.0.111/24", "gw": 7, "ip6": null},
      "traefik_service": {"name": "Portainer", "port": 9443, "extra": 0}},
    {"vmid": "1002", "name": "worker", "network_config": {"ip": "10.0.0.112/24"}, "portainer_role": 1,
      "traefik_service": {"name": "agent.b", "port": 9001}, "portainer_agent_hostname": "agent.b.internal.example"},
    {"vmid": 1003, "network_config": {"ip": "fd00::113/64"}, "portainer_agent_insecure": true,
      "traefik_service": {"name": "web", "port": 80, "scheme": "http"},
      "portainer_agent_hostname": "A.internal.example"}
  ]
}
`

// withVMs reads a configuration and a file of virtual machines.
func withVMs(t *testing.T, text, vms string) (*File, *VMFile, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vms.json")
	if err := os.WriteFile(path, []byte(vms), 0o600); err != nil {
		t.Fatal(err)
	}
	f := parse(t, text)
	file, err := LoadVMs(f, path, domain)
	return f, file, err
}

// Everything that is served, whoever serves it, is in the plan once.
func TestServices(t *testing.T) {
	text := strings.Replace(base, `"nvidia_driver_version": "580.76.05"`, `
		"services": [{"name": "NAS", "url": "https://[fd00:0::9]:8443", "insecure": true},
			{"name": "a.b", "url": "http://10.0.0.9:80"},
			{"name": "x", "url": "https://10.0.0.9:443", "server_name": "Y.internal.example"}],
		"dashboard": {"name": "Traefik", "allow": ["10.0.0.0/24", "fd00::1"]}`, 1)
	text = strings.Replace(text, `"features": ["base_setup"]`,
		`"traefik_service": {"name": "vllm-qwen2.5-7b", "port": 8000, "scheme": "https", "insecure": true}`, 1)
	text = strings.Replace(text, `["103", 1002]`, `["103", 1002, 9000, 7000]`, 1)
	f, vms, err := withVMs(t, text, baseVMs)
	if err != nil {
		t.Fatal(err)
	}
	if len(vms.Warnings) > 0 {
		t.Errorf("warnings: %v", vms.Warnings)
	}
	plan := f.Plan(domain)
	if err := plan.Check(); err != nil {
		t.Error(err)
	}
	want := []Service{
		{Name: "vllm-qwen2.5-7b", URL: "https://10.0.0.12:8000", CTID: 102, Insecure: true},
		{Name: "ca", URL: "https://10.0.0.10:9000", CTID: 103},
		{Name: "portainer", URL: "https://10.0.0.111:9443", VMID: 1001},
		{Name: "agent.b", URL: "https://10.0.0.112:9001", VMID: 1002},
		{Name: "web", URL: "http://[fd00::113]:80", VMID: 1003},
		{Name: "a", URL: "https://[fd00::113]:9001", VMID: 1003, Insecure: true},
		{Name: "nas", URL: "https://[fd00::9]:8443", Insecure: true},
		{Name: "a.b", URL: "http://10.0.0.9:80"},
		{Name: "x", URL: "https://10.0.0.9:443", ServerName: "y.internal.example"},
	}
	for i := range want {
		want[i].Host = want[i].Name + "." + domain
	}
	if !slices.Equal(plan.Services, want) {
		t.Errorf("got\n%+v\nwant\n%+v", plan.Services, want)
	}
	board := &DashboardRoute{"traefik", "traefik." + domain, []string{"10.0.0.0/24", "fd00::1"}}
	if !reflect.DeepEqual(plan.Dashboard, board) {
		t.Errorf("dashboard %+v, want %+v", plan.Dashboard, board)
	}
	names := map[int]string{1002: "worker", 9000: "image"}
	if !reflect.DeepEqual(plan.ExternalNames, names) {
		t.Errorf("external names %v, want %v", plan.ExternalNames, names)
	}
}

// A service without a fixed address is no mistake: the proxy does not serve it, and
// a warning says so. A container whose second interface has one is served there.
func TestServiceWithoutAddress(t *testing.T) {
	text := strings.Replace(base, `"ip": "10.0.0.12/24", "gw": "10.0.0.1"},`,
		`"ip": "dhcp"}, "traefik_service": {"name": "web", "port": 80},`, 1)
	f := parse(t, text)
	const want = "36:104: lxc_configs.102.traefik_service: is not served: the container has no fixed address, " +
		"and network_config.ip is dhcp"
	if len(f.Warnings) != 2 || f.Warnings[1].String() != want {
		t.Errorf("%v, want %s", f.Warnings, want)
	}
	if services := f.Services(domain); len(services) != 1 || services[0].CTID != 103 {
		t.Errorf("services %+v", services)
	}
	c := f.Containers[102]
	c.Interfaces = append(c.Interfaces, Interface{IPv6: Addressing{Prefix: netip.MustParsePrefix("fd00::12/64")}})
	if services := f.Services(domain); len(services) != 2 || services[0].URL != "http://[fd00::12]:80" {
		t.Errorf("services %+v", services)
	}

	// Of several addresses, the one counts that the proxy reaches.
	fixed := func(v4, v6 string) Interface {
		i := Interface{IPv6: Addressing{Prefix: netip.MustParsePrefix(v6)}}
		if v4 != "" {
			i.IPv4.Prefix = netip.MustParsePrefix(v4)
		}
		return i
	}
	c.Interfaces = []Interface{fixed("10.9.0.12/24", "fd09::12/64"), fixed("10.8.0.12/24", "fd08::12/64")}
	for want, proxy := range map[string]Interface{
		"http://10.9.0.12:80":  fixed("10.7.0.1/24", "fd07::1/64"),
		"http://10.8.0.12:80":  fixed("10.8.0.1/24", "fd07::1/64"),
		"http://[fd08::12]:80": fixed("", "fd08::1/64"),
		"http://[fd09::12]:80": fixed("", "fd07::1/64"),
	} {
		f.Containers[100] = &Container{CTID: 100, ApplicationScript: ProxyScript, Interfaces: []Interface{proxy}}
		if services := f.Services(domain); services[0].URL != want {
			t.Errorf("%+v: %s, want %s", proxy, services[0].URL, want)
		}
	}
}

// Who the client is, the proxy believes its gateway alone: without an address by
// which it knows the gateway, all clients would have that of the gateway itself.
func TestDashboardNeedsToKnowTheGateway(t *testing.T) {
	text := strings.Replace(base, `"nvidia_driver_version": "580.76.05"`,
		`"dashboard": {"name": "traefik", "allow": ["10.0.0.0/24"]}`, 1)
	text = strings.Replace(text, `"features"`, `"application_script": "`+GatewayScript+`", "features"`, 1)
	parse(t, text)
	text = strings.Replace(text, `"ip": "10.0.0.12/24", "gw": "10.0.0.1"`, `"ip": "dhcp"`, 1)
	holdSchema(t, text)
	_, err := Parse("f.json", []byte(text))
	const want = "f.json:2:45: dashboard.allow: the gateway, container 102, has no fixed address " +
		"(network_config.ip is dhcp): "
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestMistakesInVMs(t *testing.T) {
	const at = `"ip": "10.0.0.111/24"`
	for _, tt := range []struct{ old, new, want string }{
		{baseVMs, "¦", "the file is empty"},
		{baseVMs, "¦[]", "must be an object, not a list"},
		{baseVMs, "¦{}", "vms: missing"},
		{baseVMs, `{"vms": ¦{}}`, "vms: must be a list"},
		{baseVMs, `{"vms": [¦1]}`, "vms.0: must be an object"},
		{baseVMs, `{"vms": [¦{"name": "x"}]}`, "vms.0.vmid: missing"},
		{`1001,`, `¦99,`, "vms.1.vmid: \"99\" is not a container id"},
		{`1001,`, `¦9000,`, "vms.1.vmid: 9000 is that of another one already"},
		{`1001,`, `¦103,`, "vms.1.vmid: 103 is a container of f.json"},
		{`"Portainer",`, `¦"a b",`, `vms.1.name: "a b" is not a host name`},
		{`"name": "Portainer", "port"`, `"name": ¦"a_b", "port"`, "vms.1.traefik_service.name: "},
		{`"name": "Portainer", "port"`, `"name": ¦"CA", "port"`,
			"vms.1.traefik_service.name: ca is the service of container 103 already"},
		{`"name": "Portainer", "port"`, `"name": ¦"nas", "port"`,
			"vms.1.traefik_service.name: nas is services.0 of f.json already"},
		{`"name": "Portainer", "port"`, `"name": ¦"traefik", "port"`, "traefik is the dashboard already"},
		{`"name": "web", "port"`, `"name": ¦"portainer", "port"`,
			"vms.3.traefik_service.name: portainer is the service of virtual machine 1001 already"},
		{`"A.internal.example"`, `¦"portainer.internal.example"`,
			"vms.3.portainer_agent_hostname: portainer is the service of virtual machine 1001 already"},
		{`"A.internal.example"`, `¦"a b"`, `vms.3.portainer_agent_hostname: "a b" is not a host name`},
		{`"A.internal.example"`, `¦7`, "vms.3.portainer_agent_hostname: must be a string"},
		{`9443`, `¦"9443"`, "vms.1.traefik_service.port: must be a number"},
		{`"extra": 0`, `"scheme": "http", "insecure": ¦true`, "vms.1.traefik_service.insecure: with http there is no"},
		{at, `"ip": ¦"10.0.0.111"`,
			`vms.1.network_config.ip: "10.0.0.111" is not an IP address with its prefix length`},
		{at, `"ip": ¦7`, "vms.1.network_config.ip: must be a string"},
		{at, `"ip": ¦"127.0.0.1/8"`, "vms.1.network_config.ip: "},
		{at, `"ip": ¦"10.0.0.10/24"`, "vms.1.network_config.ip: 10.0.0.10 is the address of container 103 already"},
		{at, `"ip": ¦"10.0.0.9/24"`,
			"vms.1.network_config.ip: 10.0.0.9 is the address of services.0 of f.json already"},
		{`"10.0.0.112/24"`, `¦"10.0.0.111/24"`,
			"vms.2.network_config.ip: 10.0.0.111 is the address of virtual machine 1001 already"},
		{`{"ip": "10.0.0.111/24", "gw": 7, "ip6": null}`, `¦"10.0.0.111"`, "vms.1.network_config: must be an object"},
	} {
		text := strings.Replace(baseVMs, tt.old, tt.new, 1)
		before, after, found := strings.Cut(text, "¦")
		if !found {
			t.Fatalf("%q: nothing to replace", tt.old)
		}
		main := strings.Replace(base, `"nvidia_driver_version": "580.76.05"`, `"dashboard": {"name": "traefik",
			"allow": ["10.0.0.1"]}, "services": [{"name": "nas", "url": "https://10.0.0.9:1"}]`, 1)
		_, _, err := withVMs(t, main, before+after)
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Mistakes) != 1 {
			t.Errorf("%q: %v, want %s", tt.new, err, tt.want)
			continue
		}
		place := fmt.Sprintf("vms.json:%d:%d: ", strings.Count(before, "\n")+1,
			len(before)-strings.LastIndexByte(before, '\n'))
		if !strings.Contains(err.Error(), place) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %s%s", tt.new, err, place, tt.want)
		}
	}
}

// Mistakes are shown at once, also where the configuration itself cannot be read.
func TestMistakesInVMsWithoutConfiguration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vms.json")
	if _, err := LoadVMs(nil, path, domain); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte(`{"vms": [{"vmid": 1, "name": 2}, {}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := LoadVMs(nil, path, domain)
	var wrong *Error
	if !errors.As(err, &wrong) || len(wrong.Mistakes) != 3 {
		t.Errorf("got %v", err)
	}
}

// What is not served is said, with its place.
func TestWarningsOfVMs(t *testing.T) {
	text := strings.Replace(baseVMs, `"10.0.0.111/24"`, `"dhcp"`, 1)
	text = strings.Replace(text, "A.internal.example", "a.elsewhere.example", 1)
	text = strings.Replace(text, `"network_config": {"ip": "10.0.0.112/24"}, `, "", 1)
	f, vms, err := withVMs(t, base, text)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range vms.Warnings {
		got = append(got, w.String())
	}
	want := []string{
		"5:66: vms.1.network_config.ip: its services are not served: the virtual machine has no fixed address",
		"7:5: vms.2.network_config.ip: its services are not served: the virtual machine has no fixed address",
		"11:35: vms.3.portainer_agent_hostname: is not served: a.elsewhere.example is not below internal.example, " +
			"for which alone the CA signs",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if services := f.Services(domain); len(services) != 2 || services[1].VMID != 1003 {
		t.Errorf("services %+v", services)
	}
}

// More services than fit in plan.started are refused where they stand.
func TestTooManyServices(t *testing.T) {
	service := `{"name": "s%d", "url": "http://10.1.0.1:80"}`
	text := strings.Replace(base, `"nvidia_driver_version": "580.76.05"`, `"services": [`+
		numbered(3000, service)+`]`, 1)
	got := mistakes(t, text)
	if len(got) != 1 || !strings.Contains(got[0], "at most 983040 fit in an event") {
		t.Errorf("got %.300q", got)
	}
	got = mistakes(t, `{"lxc_configs": {}, "services": [`+numbered(3000, service)+`]}`)
	if len(got) != 1 || !strings.Contains(got[0], "f.json:1:34: services: ") {
		t.Errorf("got %.300q", got)
	}
	vm := `{"vmid": 1%04d, "network_config": {"ip": "fd00::%[1]x/64"}, ` +
		`"traefik_service": {"name": "v%[1]d", "port": 1}}`
	vms := numbered(3000, vm)
	vms = strings.ReplaceAll(vms, "fd00::0/64", "fd00::ffff/64")
	_, _, err := withVMs(t, base, `{"vms": [`+vms+`]}`)
	if err == nil || !strings.Contains(err.Error(), "vms.json:1:1: vms: the services take ") {
		t.Errorf("got %.300v", err)
	}
}

// A plan comes from a stream that anybody may have written.
func TestServicesAreChecked(t *testing.T) {
	good := Plan{
		Domain: domain,
		Services: []Service{
			{Name: "a.b", Host: "a.b." + domain, URL: "https://[fd00::1]:80", VMID: 100, ServerName: "c.d"},
		},
		Dashboard:     &DashboardRoute{"t", "t." + domain, []string{"fd00::/8", "10.0.0.1"}},
		ExternalNames: map[int]string{1001: "Portainer"},
	}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	long := strings.Repeat("a.", 125) + "a"
	for name, spoil := range map[string]func(p *Plan, s *Service, d *DashboardRoute){
		"CTID":        func(_ *Plan, s *Service, _ *DashboardRoute) { s.CTID = 7 },
		"VMID":        func(_ *Plan, s *Service, _ *DashboardRoute) { s.VMID = -100 },
		"name":        func(_ *Plan, s *Service, _ *DashboardRoute) { s.Name, s.Host = "`", "`."+domain },
		"host":        func(_ *Plan, s *Service, _ *DashboardRoute) { s.Host = "bank.example" },
		"long":        func(_ *Plan, s *Service, _ *DashboardRoute) { s.Name, s.Host = long, long+"."+domain },
		"URL":         func(_ *Plan, s *Service, _ *DashboardRoute) { s.URL = "https://bank.example:443" },
		"server name": func(_ *Plan, s *Service, _ *DashboardRoute) { s.ServerName = "a b" },
		"insecure": func(_ *Plan, s *Service, _ *DashboardRoute) {
			s.URL, s.ServerName, s.Insecure = "http://10.0.0.1:1", "", true
		},
		"dashboard":  func(_ *Plan, _ *Service, d *DashboardRoute) { d.Host = "bank.example" },
		"nobody":     func(_ *Plan, _ *Service, d *DashboardRoute) { d.Allow = nil },
		"everybody":  func(_ *Plan, _ *Service, d *DashboardRoute) { d.Allow = []string{"everybody"} },
		"guest's id": func(p *Plan, _ *Service, _ *DashboardRoute) { p.ExternalNames = map[int]string{1: "x"} },
		"its name":   func(p *Plan, _ *Service, _ *DashboardRoute) { p.ExternalNames = map[int]string{100: "x\n"} },
	} {
		p, s, d := good, good.Services[0], *good.Dashboard
		spoil(&p, &s, &d)
		p.Services, p.Dashboard = []Service{s}, &d
		if p.Check() == nil {
			t.Errorf("%s: %+v, %+v is accepted", name, p, d)
		}
	}
}
