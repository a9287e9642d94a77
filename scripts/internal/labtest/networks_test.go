package labtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type object = map[string]any

// A site is a configuration of its own, with its scripts, in a directory of the lab: run it instead of the lab's.
type site struct {
	lab
	dir string
	env []string // further variables, as NAME=VALUE
}

// newSite makes the directory of a site with the containers that the lab's configuration has, as edit leaves them.
func (l lab) newSite(t *testing.T, name string, edit func(containers object)) site {
	t.Helper()
	s := site{lab: l, dir: l.path(name)}
	var file struct {
		Containers object `json:"lxc_configs"`
	}
	if err := json.Unmarshal([]byte(l.read(t, "etc", "phoenix_lxc_configs.json")), &file); err != nil {
		t.Fatal(err)
	}
	edit(file.Containers)
	s.write(t, "etc/phoenix_lxc_configs.json", object{"lxc_configs": file.Containers})
	return s
}

// write makes a file of the site: a script of a text, JSON of an object.
func (s site) write(t *testing.T, name string, content any) {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	text, ok := content.(string)
	if !ok {
		data, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, string(data)+"\n", 0o644)
		return
	}
	write(t, path, text, 0o755)
}

// phoenix runs phoenix for the site, and returns its result and what it called of pct.
func (s site) phoenix(t *testing.T, args ...string) (r result, calls []string) {
	t.Helper()
	words := append([]string{"run", "env", "PHX_CONFIG=" + s.dir + "/etc/phoenix_lxc_configs.json"}, s.env...)
	before, start := s.calls(t), time.Now()
	r = s.try(t, "scripts/lab", append(append(words, "phoenix"), args...)...)
	calls = s.pctCalls(t)[before:]
	t.Logf("phoenix %s: status %d, %.1f s, calls of pct: %d\n%s", strings.Join(args, " "), r.status,
		time.Since(start).Seconds(), len(calls), r.stderr)
	return r, calls
}

// network is an object of network_configs, of an interface on vmbr0 or vmbr1 with host numbers of both families. A
// number of 0 leaves out the family.
func network(bridge, ip, ip6 int) object {
	n := object{"name": fmt.Sprintf("eth%d", bridge), "bridge": fmt.Sprintf("vmbr%d", bridge)}
	if ip != 0 {
		n["ip"] = ip4(bridge, ip) + "/24"
	}
	if ip6 != 0 {
		n["ip6"] = fmt.Sprintf("fd00:10:0:%d::%d/64", bridge, ip6)
	}
	return n
}

func ip4(bridge, host int) string { return fmt.Sprintf("10.0.%d.%d", bridge, host) }

// container is a small clone with the network interfaces, and then the further keys.
func container(name, source string, networks []object, keys object) object {
	return merge(object{"name": name, "clone_from_ctid": source, "memory_mb": 256, "cores": 1, "storage_pool": "lab",
		"storage_size_gb": 16, "unprivileged": true, "start_at_boot": true, "boot_order": 5, "boot_delay": 0,
		"pct_options": []string{"nesting=1"}, "network_configs": networks}, keys)
}

// merge gives an object further keys, takes those away that are nil, and returns it.
func merge(c, keys object) object {
	for key, value := range keys {
		if c[key] = value; value == nil {
			delete(c, key)
		}
	}
	return c
}

const gatewayIP6 = "fd00:10::153"

// get returns what the gateway answers for a host at one of its addresses, verified against the lab's root, or an
// error.
func (l lab) get(t *testing.T, address, host string) string {
	t.Helper()
	client := &http.Client{Transport: l.transportTo(address, false), Timeout: 10 * time.Second}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := l.request(client, request)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(text)
}

// gives checks what the gateway answers for hosts, at each address that it has.
func (l lab) gives(t *testing.T, want map[string]string, addresses ...string) {
	t.Helper()
	for host, text := range want {
		for _, address := range addresses {
			var got string
			if !within(20*time.Second, func() bool { got = l.get(t, address, host); return got == text }) {
				t.Errorf("https://%s/ at %s gives %q, want %q", host, address, got, text)
			}
		}
	}
}

// webScript is an application script that serves the container's name.
const webScript = `#!/bin/bash
set -euo pipefail
cat >/usr/local/bin/web <<'EOF'
` + webProgram + `EOF
chmod 755 /usr/local/bin/web
printf '%s\n' '[Service]' "ExecStart=/usr/local/bin/web $(hostname)" '[Install]' 'WantedBy=multi-user.target' \
	>/etc/systemd/system/web.service
systemctl daemon-reload
systemctl enable --now web
`

// webProgram serves one line, its argument, at port 8000 of all addresses.
const webProgram = `#!/usr/bin/perl
use strict;
use Socket;
socket(my $server, PF_INET6, SOCK_STREAM, 0) or die $!;
setsockopt($server, SOL_SOCKET, SO_REUSEADDR, 1);
bind($server, pack_sockaddr_in6(8000, Socket::IN6ADDR_ANY)) or die $!;
listen($server, 50) or die $!;
my $text = "$ARGV[0]\n";
while (accept(my $client, $server)) {
	while (<$client>) { last if /^\r?$/ }
	print $client "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ", length($text), "\r\n\r\n$text";
	close($client);
}
`

// writeVM makes the file of virtual machines: the one that startVM starts, with an address and its service.
func (s site) writeVM(t *testing.T, address string) {
	t.Helper()
	s.write(t, "etc/phoenix_vm_configs.json", object{"vms": []object{{"vmid": 1007, "name": "Desk",
		"network_config":  object{"ip": address},
		"traefik_service": object{"name": "desk", "port": 8443, "insecure": true}}}})
}

// testNetworks has a template and two linked clones of it, interfaces of both families on two bridges, names of several
// labels, and the service of a virtual machine.
func (l lab) testNetworks(t *testing.T) {
	l.startVM(t)
	const template, dual, only6 = "910", "911", "912"
	s := l.newSite(t, "networks", func(containers object) {
		for ctid, n := range map[string]int{gateway: 153, proxy: 12, ca: 10} {
			c := containers[ctid].(object)["network_config"].(object)
			c["ip6"], c["gw6"] = fmt.Sprintf("fd00:10::%d/64", n), "fd00:10::1"
		}
		containers[template] = container("Web-Base", base, []object{network(0, 60, 60)},
			object{"is_template": true, "start_at_boot": false})
		containers[dual] = container("Web-Dual", template, []object{network(0, 61, 61), network(1, 61, 61)}, object{
			"application_script": "web.sh", "traefik_service": object{"name": "dual.web", "port": 8000}})
		containers[only6] = container("Web-Six", template, []object{network(0, 0, 62), network(1, 62, 62)}, object{
			"application_script": "web.sh", "dependencies": []string{vm},
			"traefik_service": object{"name": "six", "port": 8000}})
	})
	s.writeVM(t, vmIP+"/24")
	s.write(t, "scripts/web.sh", webScript)
	s.env = []string{"PHX_SCRIPTS=" + l.repo + "/scripts:" + s.dir + "/scripts"}

	want := map[string]string{
		"dual.web." + domain: "Web-Dual",
		"six." + domain:      "Web-Six",
		"desk." + domain:     "vm desk." + domain,
	}
	check := func(t *testing.T) {
		t.Helper()
		l.gives(t, want, gatewayIP, gatewayIP6)
		r, calls := s.phoenix(t)
		if r.status != 0 {
			t.Fatalf("second run: status %d", r.status)
		}
		checkUnchangedOf(t, r.stdout, 7)
		if n := len(calls); n > secondBudget {
			t.Errorf("second run: %d calls of pct: %q", n, calls)
		}
	}

	r, calls := s.phoenix(t)
	if r.status != 0 {
		t.Fatalf("status %d\n%s", r.status, r.stdout)
	}
	cloned := 0
	for _, call := range calls {
		if strings.HasPrefix(call, "clone "+template+" ") && !strings.Contains(call, "--full") {
			cloned++
		}
	}
	if conf := l.read(t, "pve", "lxc", template+".conf"); cloned != 2 || !strings.Contains(conf, "\ntemplate: 1\n") {
		t.Errorf("%d linked clones of %s, want 2:\n%s", cloned, template, conf)
	}
	for _, address := range []string{"10.0.1.61", "fd00:10:0:1::61", "10.0.1.62", "fd00:10:0:1::62"} {
		conn, err := l.dial(t.Context(), "tcp", "["+address+"]:8000")
		if err != nil {
			t.Error(err)
			continue
		}
		conn.Close()
	}
	check(t)

	// Every hop by IPv6: the proxy and the CA have nothing else.
	t.Run("IPv6 alone", func(t *testing.T) {
		s.writeVM(t, vmIP6+"/64")
		s.edit(t, func(containers object) {
			for _, ctid := range []string{proxy, ca} {
				c := containers[ctid].(object)
				c["network_config"].(object)["ip"] = "manual"
				delete(c["network_config"].(object), "gw")
				for _, rule := range c["firewall"].(object)["rules"].([]any) {
					if source, ok := rule.(object)["source"].(string); ok && rule.(object)["proto"] == "tcp" {
						rule.(object)["source"] = strings.Replace(source, "10.0.0.", "fd00:10::", 1)
					}
				}
			}
			c := containers[ca].(object)["health_check"].(object)
			c["command"] = strings.Replace(c["command"].(string), caIP, "[fd00:10::10]", 1)
		})
		if r, _ := s.phoenix(t); r.status != 0 {
			t.Fatalf("status %d\n%s", r.status, r.stdout)
		}
		check(t)
	})

	r, _ = s.phoenix(t, "--action", "delete", only6, dual, template)
	if r.status != 0 {
		t.Errorf("delete: status %d", r.status)
	}
	l.inside(t, "phoenix") // the configuration of the lab again
	checkUnchanged(t, l.inside(t, "phoenix"))
}

// edit changes the containers of the site's configuration.
func (s site) edit(t *testing.T, edit func(containers object)) {
	t.Helper()
	text, err := os.ReadFile(s.dir + "/etc/phoenix_lxc_configs.json")
	var file object
	if err == nil {
		err = json.Unmarshal(text, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	edit(file["lxc_configs"].(object))
	s.write(t, "etc/phoenix_lxc_configs.json", file)
}
