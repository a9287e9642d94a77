package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/guest"
)

var testProxy = proxy{
	Services: []route{
		{Name: "gateway", Host: "gateway.internal.example", URL: "http://10.0.0.153:8080"},
		{Name: "ca", Host: "ca.internal.example", URL: "https://10.0.0.10:9000", CA: true},
	},
	Trust: guest.Trust{
		Root:        "/etc/traefik/ssl/phoenix_ca.crt",
		Fingerprint: strings.Repeat("ab", 32),
		CAURL:       "https://10.0.0.10:9000",
	},
	Gateway: "10.0.0.153",
}

// served returns the route to one service.
func served(name, host, url string) []route { return []route{{Name: name, Host: host, URL: url}} }

func TestProxyIsChecked(t *testing.T) {
	if err := testProxy.check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*proxy){
		"rule":       func(p *proxy) { p.Services = served("x", "x`) || Host(`bank.example", "http://10.0.0.1:80") },
		"hosts":      func(p *proxy) { p.Services = served("x", "x.example\n127.0.0.1 bank", "http://10.0.0.1:80") },
		"name":       func(p *proxy) { p.Services = served("../x", "x.example", "http://10.0.0.1:80") },
		"scheme":     func(p *proxy) { p.Services = served("x", "x.example", "file:///etc/passwd") },
		"no port":    func(p *proxy) { p.Services = served("x", "x.example", "http://10.0.0.1") },
		"a name":     func(p *proxy) { p.Services = served("x", "x.example", "http://bank.example:80") },
		"template":   func(p *proxy) { p.Services = served("x", "x.example", "http://10.0.0.1:80/{{ env `PATH` }}") },
		"template 2": func(p *proxy) { p.Services = served("x", "x.example", "http://{{10.0.0.1}}:80") },
		"zone":       func(p *proxy) { p.Services = served("x", "x.example", "http://[fe80::1%eth0]:80") },
		"server name": func(p *proxy) {
			p.Services = []route{{Name: "x", Host: "x.example", URL: "https://10.0.0.1:80", ServerName: "{{ x }}"}}
		},
		"dashboard": func(p *proxy) {
			p.Dashboard = &config.DashboardRoute{Host: "x`) || Host(`bank.example", Allow: []string{"10.0.0.1"}}
		},
		"for nobody": func(p *proxy) { p.Dashboard = &config.DashboardRoute{Host: "x.example"} },
		"for whom": func(p *proxy) {
			p.Dashboard = &config.DashboardRoute{Host: "x.example", Allow: []string{"{{ x }}"}}
		},
		"gateway 2":   func(p *proxy) { p.GatewayAlso = []string{"everybody"} },
		"zone 2":      func(p *proxy) { p.Gateway = "fe80::1%eth0" },
		"gateway":     func(p *proxy) { p.Gateway = "everybody" },
		"URL user":    func(p *proxy) { p.CAURL = "https://u:p@10.0.0.10" },
		"URL":         func(p *proxy) { p.CAURL = "http://10.0.0.10" },
		"fingerprint": func(p *proxy) { p.Fingerprint = "AB" },
	} {
		p := testProxy
		spoil(&p)
		if p.check() == nil {
			t.Errorf("%s: %+v is accepted", name, p)
		}
	}
}

func at(t *testing.T, text []byte, path ...string) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok || m[key] == nil {
			return nil
		}
		v = m[key]
	}
	return v
}

func TestStatic(t *testing.T) {
	text := testProxy.static(usualHours)
	acme := []string{"certificatesResolvers", "internal", "acme"}
	for key, want := range map[string]any{
		"caServer":             "https://10.0.0.10:9000/acme/acme/directory",
		"certificatesDuration": 24,
		"keyType":              "EC256",
		"storage":              "/var/lib/traefik/acme-abababababab.json",
	} {
		if got := at(t, text, append(acme, key)...); got != want {
			t.Errorf("%s: %v", key, got)
		}
	}
	if got, _ := at(t, text, append(acme, "tlsChallenge")...).(map[string]any); got == nil {
		t.Error("no challenge: Traefik would ask for no certificate")
	}
	if got := at(t, text, "entryPoints", "web", "http"); got != nil {
		t.Errorf("plain HTTP leads whoever comes to %v", got)
	}
	for _, entryPoint := range []string{"web", "websecure"} {
		if got := at(t, text, "entryPoints", entryPoint, "transport", "lifeCycle", "graceTimeOut"); got != "2s" {
			t.Errorf("%s: a stop may take %v", entryPoint, got)
		}
	}
	if got := at(t, text, "entryPoints", "websecure", "transport", "respondingTimeouts", "readTimeout"); got != "1h" {
		t.Errorf("an upload may take %v", got)
	}
	if got := at(t, text, "entryPoints", "websecure", "forwardedHeaders",
		"trustedIPs"); fmt.Sprint(got) != "[10.0.0.153]" {
		t.Errorf("the client's address is believed from %v", got)
	}
	if got := at(t, text, "entryPoints", "traefik", "address"); got != "127.0.0.1:8080" {
		t.Errorf("ping is served at %v", got)
	}
}

func TestDynamic(t *testing.T) {
	text := testProxy.dynamic()
	if got := at(t, text, "http", "routers", "gateway", "rule"); got != "Host(`gateway.internal.example`)" {
		t.Errorf("rule %v", got)
	}
	if got := at(t, text, "http", "routers", "gateway", "tls", "certResolver"); got != "internal" {
		t.Errorf("resolver %v", got)
	}
	if got := at(t, text, "http", "serversTransports", "ca", "serverName"); got != "ca.internal.example" {
		t.Errorf("server name %v", got)
	}
	if got := at(t, text, "http", "serversTransports", "gateway"); got != nil {
		t.Errorf("a transport for a plain service: %v", got)
	}
	if got := at(t, text, "http", "routers", "phx:plain",
		"rule"); got != "Host(`gateway.internal.example`) || Host(`ca.internal.example`)" {
		t.Errorf("plain HTTP is led on for %v", got)
	}
	for name, want := range map[string]any{"gateway": nil, "ca": []any{patiently}} {
		if got := at(t, text, "http", "routers", name, "middlewares"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: tried again by %v, want %v", name, got, want)
		}
	}
	if got := at(t, text, "http", "serversTransports", "ca", "disableHTTP2"); got != true {
		t.Errorf("HTTP/2 to the CA, from which a retry can take half an answer: disabled %v", got)
	}
	if got := at(t, text, "tls", "options", "default", "sniStrict"); got != true {
		t.Errorf("strict: %v", got)
	}
	empty := proxy{}
	if got := at(t, empty.dynamic(), "http"); got != nil {
		t.Errorf("without services: %v", got)
	}
}

// The block in /etc/hosts is exchanged, and all else kept, whatever the
// number of runs; the unit is written and started.
func TestWriteHosts(t *testing.T) {
	dir := t.TempDir()
	hosts, units := filepath.Join(dir, "hosts"), filepath.Join(dir, "system")
	script := strings.NewReplacer("/etc/.hosts", dir+"/.hosts", "/etc/hosts", hosts, "/etc/systemd/system",
		units).Replace(hostsScript)
	bin := filepath.Join(dir, "bin")
	for _, d := range []string{units, bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte("#!/bin/sh\necho \"systemctl $*\"\n"),
		0o755); err != nil {
		t.Fatal(err)
	}
	const own = "127.0.0.1 localhost\n# --- BEGIN PVE ---\n10.0.0.10 Step-CA\n# --- END PVE ---\n"
	if err := os.WriteFile(hosts, []byte(own), 0o644); err != nil {
		t.Fatal(err)
	}
	var said string
	write := func(unit, stdin string) string {
		last := "WantedBy=multi-user.target"
		cmd := exec.Command("/bin/sh", "-c", script, "sh", ca.HostsBegin, ca.HostsEnd, unit, last)
		cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin"}
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if said = string(out); err != nil {
			return "failed: " + said
		}
		text, err := os.ReadFile(hosts)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	first := string(ca.HostsBlock("10.0.0.12", []string{"b.example", "a.example"}))
	if got, want := write("", first), own+"# --- BEGIN PHX ---\n10.0.0.12 a.example\n10.0.0.12 b.example\n# --- END "+
		"PHX ---\n"; got != want {
		t.Errorf("hosts\n%s\nwant\n%s", got, want)
	}
	second := string(ca.HostsBlock("10.0.0.13", []string{"c.example"}))
	name, unit, err := neighbourUnit("eth0", []guest.Neighbour{{IP: "10.0.0.12", MAC: "52:54:00:67:89:C2"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := write(name, second+string(unit)); got != own+second {
			t.Errorf("hosts\n%s\nwant\n%s", got, own+second)
		}
		if text, err := os.ReadFile(filepath.Join(units, name)); err != nil || string(text) != string(unit) {
			t.Errorf("unit\n%s%v", text, err)
		}
		if !strings.HasSuffix(said, "systemctl restart phx-neighbours.service\n") {
			t.Errorf("said %q", said)
		}
	}
	if err := os.WriteFile(hosts, []byte(own+second), 0o644); err != nil {
		t.Fatal(err)
	}
	// A transfer that breaks off changes nothing.
	whole := first + strings.ReplaceAll(string(unit), "10.0.0.12", "10.0.0.99")
	for _, n := range []int{len(first) - 5, len(whole) - 5} {
		if got := write(name, whole[:n]); !strings.HasPrefix(got, "failed") {
			t.Errorf("%d bytes of %d were taken:\n%s", n, len(whole), got)
		}
	}
	if text, _ := os.ReadFile(hosts); string(text) != own+second {
		t.Errorf("hosts\n%s", text)
	}
	if text, _ := os.ReadFile(filepath.Join(units, name)); string(text) != string(unit) {
		t.Errorf("unit\n%s", text)
	}
	for _, path := range []string{hosts, filepath.Join(units, name)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*/.*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestApplyAsLastTime: options and variables win over what the last run was
// asked, and that over the defaults.
func TestApplyAsLastTime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "proxy.json")
	if _, err := guest.ReadState[proxy](file); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	text, err := json.Marshal(testProxy)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want func(*proxy)
	}{
		{nil, func(*proxy) {}},
		{[]string{"--ca-url", "https://ca.example", "--root", "/x"},
			func(p *proxy) { p.CAURL, p.Root = "https://ca.example", "/x" }},
		{[]string{"--domain", "other.example"}, func(p *proxy) {
			p.Services = []route{{Name: "gateway", Host: "gateway.other.example", URL: "http://10.0.0.153:8080"},
				{Name: "ca", Host: "ca.other.example", URL: "https://10.0.0.10:9000", CA: true}}
		}},
		{[]string{"--config", "../../scripts/phoenix_lxc_configs.json", "--domain", "x.example"}, func(p *proxy) {
			p.Services = []route{{Name: "gateway", Host: "gateway.x.example", URL: "http://10.0.0.153:8080"},
				{Name: "ca", Host: "ca.x.example", URL: "https://10.0.0.10:9000", CA: true}}
		}},
	} {
		last, err := guest.ReadState[proxy](file)
		if err != nil {
			t.Fatal(err)
		}
		want := testProxy
		tt.want(&want)
		app := &cli.App{Flags: proxyFlags(), Action: func(c *cli.Context) error {
			if p, err := proxyOf(c, last); err != nil || !reflect.DeepEqual(p, want) {
				t.Errorf("%v: %+v, %v, want %+v", tt.args, p, err, want)
			}
			return nil
		}}
		if err := app.Run(append([]string{"phx-traefik"}, tt.args...)); err != nil {
			t.Error(err)
		}
	}
}

// Without the dashboard, all is as in a proxy of before it; with it, only those who
// are allowed get it.
func TestDashboardAndCertificates(t *testing.T) {
	if got := at(t, testProxy.static(usualHours), "api"); got != nil {
		t.Errorf("the API is on: %v", got)
	}
	p := testProxy
	p.GatewayAlso = []string{"fd00::153"}
	p.Dashboard = &config.DashboardRoute{Name: "t", Host: "t.internal.example", Allow: []string{"fd00::/8"}}
	p.Services = append(served("vllm-2.5-7b", "vllm-2.5-7b.internal.example", "https://[fd00::41]:8000"),
		route{Name: "x", Host: "x.internal.example", URL: "https://10.0.0.9:1", Insecure: true,
			ServerName: "y.example"})
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	static, dynamic := p.static(usualHours), p.dynamic()
	if got := at(t, static, "api", "insecure"); at(t, static, "api") == nil || got != nil {
		t.Errorf("the API: insecure %v", got)
	}
	trusted := at(t, static, "entryPoints", "websecure", "forwardedHeaders", "trustedIPs")
	if fmt.Sprint(trusted) != "[10.0.0.153 fd00::153]" {
		t.Errorf("the client's address is believed from %v", trusted)
	}
	for path, want := range map[string]any{
		"routers phx:dashboard rule":                       "Host(`t.internal.example`)",
		"routers phx:dashboard middlewares":                []any{allowed},
		"routers phx:dashboard entryPoints":                []any{encrypted},
		"middlewares phx-allowed ipAllowList sourceRange":  []any{"fd00::/8"},
		"middlewares phx-allowed ipAllowList ipStrategy":   map[string]any{"depth": 1},
		"routers vllm-2.5-7b rule":                         "Host(`vllm-2.5-7b.internal.example`)",
		"serversTransports vllm-2.5-7b insecureSkipVerify": nil,
		"serversTransports vllm-2.5-7b rootCAs":            []any{rootFile},
		"serversTransports vllm-2.5-7b serverName":         "vllm-2.5-7b.internal.example",
		"serversTransports x insecureSkipVerify":           true,
		"serversTransports x serverName":                   "y.example",
	} {
		if got := at(t, dynamic, append([]string{"http"}, strings.Fields(path)...)...); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	const hosts = "vllm-2.5-7b.internal.example x.internal.example t.internal.example"
	if got := strings.Join(p.hosts(), " "); got != hosts {
		t.Errorf("certificates for %s", got)
	}
	if got := p.unverified(); got != "x.internal.example (https://10.0.0.9:1)" {
		t.Errorf("unverified: %s", got)
	}
	for range 20 {
		p.Services = append(p.Services, p.Services[1])
	}
	if got := p.unverified(); strings.Count(got, ",") != 16 || !strings.HasSuffix(got, ", and 5 more") {
		t.Errorf("unverified: %s", got)
	}
	// Without a gateway the client is who comes.
	p.Gateway, p.GatewayAlso = "", nil
	if got := at(t, p.dynamic(), "http", "middlewares", "phx-allowed", "ipAllowList", "ipStrategy"); got != nil {
		t.Errorf("without a gateway: %v", got)
	}
}

// A service that is not a container's is not the CA's, whichever the CA is.
func TestRoutesOf(t *testing.T) {
	services := []config.Service{
		{Name: "nas", Host: "nas.x", URL: "https://10.0.0.9:1"},
		{Name: "vm", Host: "vm.x", URL: "https://10.0.0.8:1", VMID: 103},
		{Name: "ca", Host: "ca.x", URL: "https://10.0.0.10:9000", CTID: 103},
	}
	for ca, want := range map[int]string{0: "", 103: "ca"} {
		got := ""
		for _, r := range routesOf(services, ca) {
			if r.CA {
				got += r.Name
			}
		}
		if got != want {
			t.Errorf("CA %d: the part of its API is for %q, want %q", ca, got, want)
		}
	}
}

// The CA connects to an address of the proxy on one of its own networks, or else of
// a family that it has.
func TestReachable(t *testing.T) {
	prefix := func(s string) config.Addressing {
		if s == "" {
			return config.Addressing{Method: "dhcp"}
		}
		return config.Addressing{Prefix: netip.MustParsePrefix(s)}
	}
	for _, tt := range []struct {
		proxy [][2]string // interfaces
		ca    []string
		want  string
	}{
		{[][2]string{{"10.0.0.12/24", ""}}, []string{"10.0.0.10/24"}, "10.0.0.12"},
		{[][2]string{{"10.0.0.12/24", ""}}, []string{"10.9.0.10/24"}, "10.0.0.12"},
		{[][2]string{{"10.0.0.12/24", ""}, {"10.9.0.12/24", ""}}, []string{"10.9.0.10/24"}, "10.9.0.12"},
		{[][2]string{{"10.0.0.12/24", "fd00::12/64"}}, []string{"fd00::10/64"}, "fd00::12"},
		{[][2]string{{"10.0.0.12/24", "fd00::12/64"}}, []string{"fd01::10/64"}, "fd00::12"},
		{[][2]string{{"10.0.0.12/24", "fd00::12/64"}}, []string{"10.9.0.10/24", "fd00::10/64"}, "fd00::12"},
		{[][2]string{{"", ""}, {"", "fd00::12/64"}}, []string{"10.0.0.10/24", "fd01::10/64"}, "fd00::12"},
		{[][2]string{{"10.0.0.12/24", ""}}, []string{"fd00::10/64"}, "invalid IP"},
		{[][2]string{{"", ""}}, []string{"10.0.0.10/24"}, "invalid IP"},
	} {
		c := &config.Container{}
		for _, i := range tt.proxy {
			c.Interfaces = append(c.Interfaces, config.Interface{IPv4: prefix(i[0]), IPv6: prefix(i[1])})
		}
		ca := &config.Place{IP: netip.MustParsePrefix(tt.ca[0]).Addr().String()}
		for _, n := range tt.ca {
			ca.Networks = append(ca.Networks, config.Network{Address: n})
		}
		if got := reachable(c, ca); got.String() != tt.want {
			t.Errorf("%v from %v: %v, want %s", tt.proxy, tt.ca, got, tt.want)
		}
	}
	// A plan of single addresses has no networks.
	c := &config.Container{Interfaces: []config.Interface{{IPv4: prefix("10.0.0.12/24")}}}
	if got := reachable(c, &config.Place{IP: "10.0.0.10"}); got.String() != "10.0.0.12" {
		t.Errorf("%v", got)
	}
	if got := reachable(c, &config.Place{IP: "fd00::10"}); got.IsValid() {
		t.Errorf("%v", got)
	}
}

// The sockets are for both families: an address would be of one.
func TestSocketsAreForBothFamilies(t *testing.T) {
	for _, u := range socketUnits {
		if !regexp.MustCompile(`(?m)^ListenStream=[0-9]+$`).MatchString(u.text) {
			t.Errorf("%s:\n%s", u.unit, u.text)
		}
	}
}

// Apply and render read what is served where phx-plan does.
func TestProxyOfConfigurations(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := write("main.json", `{"lxc_configs": {}, "services": [{"name": "nas", "url": "https://[fd00::9]:1"}],
		"dashboard": {"name": "t", "allow": ["10.0.0.1"]}}`)
	hosts := func(args ...string) (string, error) {
		var got string
		app := &cli.App{Flags: proxyFlags(), Action: func(c *cli.Context) error {
			last := testProxy
			last.Dashboard = &config.DashboardRoute{Name: "last", Host: "last.x", Allow: []string{"10.0.0.1"}}
			p, err := proxyOf(c, last)
			got = strings.Join(p.hosts(), " ")
			return err
		}}
		err := app.Run(append([]string{"phx-traefik"}, args...))
		return got, err
	}
	for _, tt := range []struct{ args, want string }{
		{"--domain y", "gateway.y ca.y last.y"},
		{"--config " + file + " --domain y", "nas.y t.y"},
	} {
		if got, err := hosts(strings.Fields(tt.args)...); err != nil || got != tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.args, got, err, tt.want)
		}
	}
	if _, err := hosts("--config", file, "--vm-config", filepath.Join(dir, "none")); err == nil {
		t.Error("a file that was named is missing, and nobody says so")
	}
	vms := write("phoenix_vm_configs.json", `{"vms": [{"vmid": 1001, "network_config": {"ip": "10.0.0.111/24"},
		"portainer_agent_hostname": "agent.y"}]}`)
	for _, args := range [][]string{nil, {"--vm-config", vms}} {
		got, err := hosts(append(args, "--config", file, "--domain", "y")...)
		if err != nil || got != "agent.y nas.y t.y" {
			t.Errorf("%v: %s, %v", args, got, err)
		}
	}
	write("phoenix_vm_configs.json", `{"vms": 7}`)
	_, err := hosts("--config", file)
	if err == nil || !strings.Contains(err.Error(), "json:1:9: vms: must be a list") {
		t.Errorf("%v", err)
	}
}
