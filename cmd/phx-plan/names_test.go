package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/config"
)

// namesPlan is a plan of a gateway with addresses of both families, and a service
// below another one.
func namesPlan(t *testing.T) *plan {
	t.Helper()
	f, err := config.Parse("f.json", []byte(`{
		"services": [{"name": "nas", "url": "https://[fd00::9]:8443"}, {"name": "x.nas", "url": "http://10.0.0.9:1"}],
		"lxc_configs": {`+container(101, template+`, "application_script": "phoenix_hypervisor_lxc_101.sh",
			"secondary_network_config": {"name": "eth1", "bridge": "vmbr1",
				"ip": "10.0.1.153/24", "ip6": "fd00::153/64"}`)+
		`}}`))
	if err != nil {
		t.Fatal(err)
	}
	p := &plan{file: f, whole: f.Plan("lab.example"), name: "create", action: actions["create"], answer: "gateway"}
	if err := p.make(nil); err != nil {
		t.Fatal(err)
	}
	return p
}

func written(t *testing.T, write func(*bufio.Writer) error) string {
	t.Helper()
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	if err := write(w); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	return out.String()
}

func TestHosts(t *testing.T) {
	var want strings.Builder
	for _, name := range []string{"c101", "nas.lab.example", "x.nas.lab.example"} {
		fmt.Fprintf(&want, "10.1.0.101 %s\n10.0.1.153 %[1]s\nfd00::153 %[1]s\n", name)
	}
	if got := written(t, namesPlan(t).hosts); got != want.String() {
		t.Errorf("got\n%s\nwant\n%s", got, want.String())
	}
}

// A name that leads nowhere else than to who asks, or that dnsmasq would take for
// an address, is left out.
func TestNamesThatAreNone(t *testing.T) {
	for _, name := range []string{"localhost", "10.0.0.1", "LocalHost"} {
		p := namesPlan(t)
		p.order[0].Name = name
		for _, write := range []func(*bufio.Writer) error{p.hosts, p.dnsmasq} {
			got := strings.ToLower(written(t, write))
			if strings.Count(got, "\n") != 6 || strings.Contains(got, "localhost") {
				t.Errorf("%s: got\n%s", name, got)
			}
		}
	}
}

// What is written for dnsmasq, a real one answers: each name with all addresses, and
// nothing that was not named.
func TestDnsmasq(t *testing.T) {
	program, err := exec.LookPath("dnsmasq")
	if err != nil {
		if program = "/usr/sbin/dnsmasq"; exec.Command(program, "--version").Run() != nil {
			t.Skip("no dnsmasq")
		}
	}
	file := filepath.Join(t.TempDir(), "dnsmasq.conf")
	if err := os.WriteFile(file, []byte(written(t, namesPlan(t).dnsmasq)), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.LocalAddr().String())
	l.Close()
	cmd := exec.Command(program, "--no-daemon", "--user=", "--no-resolv", "--no-hosts", "--conf-file="+file,
		"--pid-file=", "--port="+port, "--listen-address=127.0.0.1", "--bind-interfaces")
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
	}}
	lookUp := func(name string) string {
		addresses, err := resolver.LookupHost(t.Context(), name)
		if err != nil {
			return ""
		}
		slices.Sort(addresses)
		return strings.Join(addresses, " ")
	}
	const all = "10.0.1.153 10.1.0.101 fd00::153"
	for deadline := time.Now().Add(10 * time.Second); lookUp("nas.lab.example.") == "" && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	for name, want := range map[string]string{
		"nas.lab.example.": all, "x.nas.lab.example.": all, "c101.": all,
		"y.nas.lab.example.": "", "lab.example.": "", "a.c101.": "",
	} {
		if got := lookUp(name); got != want {
			t.Errorf("%s leads to %q, want %q", name, got, want)
		}
	}
	if names, err := resolver.LookupAddr(t.Context(), "10.1.0.101"); !slices.Equal(names, []string{"c101."}) {
		t.Errorf("10.1.0.101 is %q, %v", names, err)
	}
}
