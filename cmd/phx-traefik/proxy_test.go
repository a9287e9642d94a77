package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
	"thinkheads.ai/phx/cmd/internal/guest"
)

var testProxy = proxy{
	Services: []service{
		{"gateway", "gateway.internal.example", "http://10.0.0.153:8080", false},
		{"ca", "ca.internal.example", "https://10.0.0.10:9000", true},
	},
	Trust: guest.Trust{
		Root:        "/etc/traefik/ssl/phoenix_ca.crt",
		Fingerprint: strings.Repeat("ab", 32),
		CAURL:       "https://10.0.0.10:9000",
	},
	Gateway: "10.0.0.153",
}

func TestProxyIsChecked(t *testing.T) {
	if err := testProxy.check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*proxy){
		"rule": func(p *proxy) {
			p.Services = []service{{"x", "x`) || Host(`bank.example", "http://10.0.0.1:80", false}}
		},
		"hosts": func(p *proxy) {
			p.Services = []service{{"x", "x.example\n127.0.0.1 bank", "http://10.0.0.1:80", false}}
		},
		"name":        func(p *proxy) { p.Services = []service{{"../x", "x.example", "http://10.0.0.1:80", false}} },
		"scheme":      func(p *proxy) { p.Services = []service{{"x", "x.example", "file:///etc/passwd", false}} },
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
	text := testProxy.static(usual)
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
	if got := at(t, text, "entryPoints", "web", "http", "redirections", "entryPoint", "to"); got != "websecure" {
		t.Errorf("plain HTTP leads to %v", got)
	}
	if got := at(t, text, "entryPoints", "websecure", "transport", "respondingTimeouts", "readTimeout"); got != "1h" {
		t.Errorf("an upload may take %v", got)
	}
	if got := at(t, text, "entryPoints", "websecure", "forwardedHeaders", "trustedIPs"); fmt.Sprint(got) != "[10.0.0.153]" {
		t.Errorf("the client's address is believed from %v", got)
	}
	if got := at(t, text, "entryPoints", "traefik", "address"); got != "127.0.0.1:8080" {
		t.Errorf("ping is served at %v", got)
	}
}

func TestDynamic(t *testing.T) {
	text := testProxy.dynamic()
	if got := at(t, text, "http", "routers", "ca", "rule"); got != "Host(`ca.internal.example`)" {
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
	empty := proxy{}
	if got := at(t, empty.dynamic(), "http"); got != nil {
		t.Errorf("without services: %v", got)
	}
}

// The block in /etc/hosts is exchanged, and all else kept, whatever the
// number of runs.
func TestHostsBlock(t *testing.T) {
	hosts := filepath.Join(t.TempDir(), "hosts")
	script := strings.ReplaceAll(writeBlock, "/etc/.hosts", filepath.Dir(hosts)+"/.hosts")
	script = strings.ReplaceAll(script, "/etc/hosts", hosts)
	const own = "127.0.0.1 localhost\n# --- BEGIN PVE ---\n10.0.0.10 Step-CA\n# --- END PVE ---\n"
	if err := os.WriteFile(hosts, []byte(own), 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(block string) string {
		cmd := exec.Command("/bin/sh", "-c", script, "sh", blockBegin, blockEnd)
		cmd.Stdin = strings.NewReader(block)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "failed: " + string(out)
		}
		text, err := os.ReadFile(hosts)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	first := hostsBlock("10.0.0.12", []string{"b.example", "a.example"})
	if got, want := write(first), own+"# --- BEGIN PHX ---\n10.0.0.12 a.example\n10.0.0.12 b.example\n# --- END PHX ---\n"; got != want {
		t.Errorf("hosts\n%s\nwant\n%s", got, want)
	}
	second := hostsBlock("10.0.0.13", []string{"c.example"})
	for range 2 {
		if got := write(second); got != own+second {
			t.Errorf("hosts\n%s\nwant\n%s", got, own+second)
		}
	}
	// A last line without an end, and a block without one.
	for text, want := range map[string]string{
		strings.TrimSuffix(own, "\n"):          own + second,
		own + blockBegin + "\n10.0.0.1 a\nx\n": "failed: ",
	} {
		if err := os.WriteFile(hosts, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := write(second); !strings.HasPrefix(got, want) {
			t.Errorf("hosts\n%s\nwant\n%s", got, want)
		}
	}
	if err := os.WriteFile(hosts, []byte(own+second), 0o644); err != nil {
		t.Fatal(err)
	}
	// A transfer that breaks off changes nothing.
	if got := write(first[:len(first)-5]); !strings.HasPrefix(got, "failed") {
		t.Errorf("a part of a block was taken:\n%s", got)
	}
	if text, _ := os.ReadFile(hosts); string(text) != own+second {
		t.Errorf("hosts\n%s", text)
	}
	if info, err := os.Stat(hosts); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestApplyAsLastTime: options and variables win over what the last run was
// asked, and that over the defaults.
func TestApplyAsLastTime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "proxy.json")
	if _, err := lastProxy(file); !errors.Is(err, os.ErrNotExist) {
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
		{[]string{"--ca-url", "https://ca.example", "--root", "/x"}, func(p *proxy) { p.CAURL, p.Root = "https://ca.example", "/x" }},
		{[]string{"--domain", "other.example"}, func(p *proxy) {
			p.Services = []service{{"gateway", "gateway.other.example", "http://10.0.0.153:8080", false}, {"ca", "ca.other.example", "https://10.0.0.10:9000", true}}
		}},
		{[]string{"--config", "../../scripts/phoenix_lxc_configs.json", "--domain", "x.example"}, func(p *proxy) {
			p.Services = []service{{"gateway", "gateway.x.example", "http://10.0.0.153:8080", false}, {"ca", "ca.x.example", "https://10.0.0.10:9000", true}}
		}},
	} {
		last, err := lastProxy(file)
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
