package labtest

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// oldCA is where the scripts before phx keep the CA, in its container.
const oldCA = "/etc/step-ca/ssl"

// oldRules are the firewall files that those scripts leave: without "enable", and so not in force.
var oldRules = map[string]string{
	ca: "[RULES]\n\nIN ACCEPT -source 10.0.0.0/24 -p tcp -dport 9000 # Allow CA access\n" +
		"IN ACCEPT -p tcp -dport 22\n\n",
	proxy:   "[RULES]\n\nIN ACCEPT -source 10.0.0.153 -p tcp -dport 80 # Nginx to Traefik\n\n",
	gateway: "[RULES]\n\nOUT ACCEPT -dest 10.0.0.12 -p tcp -dport 80 # to Traefik\n\n",
}

// makeOld puts three containers in the place of those of the lab that are as the scripts before phx leave them: a CA
// in another place, firewall files that are not in force, a site of nginx of their own. What phx has recorded is gone.
func (l lab) makeOld(t *testing.T) {
	t.Helper()
	for _, ctid := range []string{gateway, proxy, ca} {
		l.try(t, "scripts/lab", "run", "pct", "stop", ctid)
		l.inside(t, "pct", "destroy", ctid)
	}
	for _, path := range []string{l.path("persistent-storage", "ssl", "phoenix_ca.crt"), l.path("pve", "priv", "phx")} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	l.inside(t, "pct", "set", base, "--delete", "description")
	names := map[string]string{gateway: "Nginx-Phoenix", proxy: "Traefik-Internal", ca: "Step-CA"}
	for _, ctid := range []string{ca, proxy, gateway} {
		l.inside(t, "pct", "clone", base, ctid, "--snapname", "final-form", "--hostname", names[ctid])
		l.inside(t, "pct", "set", ctid, "--delete", "description")
		l.inside(t, "pct", "set", ctid, "--features", "nesting=1", "--net0",
			"name=eth0,bridge=vmbr0,firewall=1,gw=10.0.0.1,ip="+ips[ctid]+"/24,hwaddr="+strings.ToUpper(macs[ctid]))
		write(t, l.path("pve", "firewall", ctid+".fw"), oldRules[ctid], 0o640)
		l.inside(t, "pct", "start", ctid)
	}
	for _, name := range []string{"step", "step-ca"} {
		l.inside(t, "pct", "push", ca, l.path("assets", name), "/usr/bin/"+name, "--perms", "0755")
	}
	l.in(t, ca, "sh", "-euc", `
		export HOME=/root STEPPATH=$1
		mkdir -p "$1"
		head -c 24 /dev/urandom | base64 >"$1/ca_password.txt"
		head -c 24 /dev/urandom | base64 >"$1/provisioner_password.txt"
		step ca init --name "Thinkheads Internal CA" --dns "$2" --dns 10.0.0.10 --address :9000 \
			--provisioner admin@thinkheads.ai --deployment-type standalone \
			--password-file "$1/ca_password.txt" --provisioner-password-file "$1/provisioner_password.txt"
		step ca provisioner add acme --type ACME --ca-config "$1/config/ca.json"
		cp "$1/certs/root_ca.crt" "$1/phoenix_root_ca.crt"
		cat "$1/certs/intermediate_ca.crt" "$1/certs/root_ca.crt" >"$1/phoenix_ca.crt"
		step certificate fingerprint "$1/certs/root_ca.crt" >"$1/root_ca.fingerprint"
		: >"$1/ca.ready"
		cat >/etc/systemd/system/step-ca.service <<-EOF
			[Unit]
			Description=Step CA
			After=network.target
			[Service]
			Environment=STEPPATH=$1
			ExecStart=/usr/bin/step-ca $1/config/ca.json --password-file $1/ca_password.txt
			Restart=always
			[Install]
			WantedBy=multi-user.target
		EOF
		systemctl enable -q --now step-ca`, "sh", oldCA, "ca."+domain)
	l.in(t, gateway, "sh", "-euc", `
		apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install nginx
		mkdir -p /etc/nginx/old
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
			-subj "/CN=*.$1" -addext "subjectAltName=DNS:*.$1" \
			-keyout /etc/nginx/old/nginx.key -out /etc/nginx/old/nginx.crt
		cat >/etc/nginx/sites-available/gateway <<-EOF
			server {
				listen 80;
				server_name *.$1;
				return 301 https://\$host\$request_uri;
			}
			server {
				listen 443 ssl;
				server_name *.$1;
				ssl_certificate /etc/nginx/old/nginx.crt;
				ssl_certificate_key /etc/nginx/old/nginx.key;
				location / { proxy_pass http://10.0.0.12:80; proxy_set_header Host \$host; }
			}
		EOF
		rm -f /etc/nginx/sites-enabled/default
		ln -s /etc/nginx/sites-available/gateway /etc/nginx/sites-enabled/gateway
		nginx -t && systemctl restart nginx`, "sh", domain)
	l.in(t, proxy, "sh", "-euc", `
		mkdir -p /etc/traefik
		printf '%s\n' 'entryPoints:' '  web:' '    address: ":80"' >/etc/traefik/traefik.yml.template`)
}

// tree is a listing of files with their owners, modes and contents.
func (l lab) tree(t *testing.T, ctid string, paths ...string) string {
	t.Helper()
	return l.in(t, ctid, append([]string{"sh", "-euc",
		`find "$@" -path '*/db' -prune -o -printf '%p %U:%G %m ' \
			\( -type f -exec sha256sum {} \; -o -printf '%l\n' \) | sort`, "sh"}, paths...)...)
}

// issuer returns the intermediate of the CA that answers on its port.
func (l lab) issuer(t *testing.T) *x509.Certificate {
	t.Helper()
	var issuer *x509.Certificate
	var err error
	if !within(30*time.Second, func() bool {
		var conn net.Conn
		if conn, err = l.dial(t.Context(), "tcp", caIP+":9000"); err != nil {
			return false
		}
		defer conn.Close()
		client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: caIP})
		if err = client.HandshakeContext(t.Context()); err != nil {
			return false
		}
		chain := client.ConnectionState().PeerCertificates
		issuer = chain[len(chain)-1]
		return true
	}) {
		t.Fatalf("the CA does not answer: %v", err)
	}
	return issuer
}

// testAdoption runs phx where the scripts before it have been at work. Nothing of that is replaced, cut off or lost.
func (l lab) testAdoption(t *testing.T) {
	l.makeOld(t)
	config := l.path("etc", "phoenix_lxc_configs.json")
	text, err := exec.Command("jq", `
		.lxc_configs["103"].firewall = {enabled: true, rules: [
			{type: "in", action: "ACCEPT", source: "10.0.0.0/24", proto: "tcp", port: "9000",
				comment: "Allow CA access"},
			{type: "in", action: "ACCEPT", proto: "tcp", port: "22"}]}
		| .lxc_configs["102"].firewall = {enabled: true, rules: [
			{type: "in", action: "ACCEPT", source: "10.0.0.153", proto: "tcp", port: "80",
				comment: "Nginx to Traefik"}]}
		| .lxc_configs["101"].firewall = {enabled: true, rules: [
			{type: "out", action: "ACCEPT", dest: "10.0.0.12", proto: "tcp", port: "80", comment: "to Traefik"}]}`,
		config).Output()
	if err != nil {
		t.Fatal(err)
	}
	write(t, config, string(text), 0o644)

	issuer := l.issuer(t)
	keys := l.tree(t, ca, oldCA+"/certs", oldCA+"/secrets", oldCA+"/ca_password.txt", oldCA+"/provisioner_password.txt",
		oldCA+"/phoenix_ca.crt", oldCA+"/phoenix_root_ca.crt", oldCA+"/root_ca.fingerprint", oldCA+"/ca.ready")
	sites := l.tree(t, gateway, "/etc/nginx/sites-available", "/etc/nginx/old", "/etc/nginx/nginx.conf")
	fingerprint := strings.TrimSpace(l.in(t, ca, "cat", oldCA+"/root_ca.fingerprint"))
	open := func(stage string) {
		t.Helper()
		for _, address := range []string{caIP + ":9000", gatewayIP + ":443", gatewayIP + ":80"} {
			conn, err := l.dial(t.Context(), "tcp", address)
			if err != nil {
				t.Errorf("%s: %v", stage, err)
				continue
			}
			conn.Close()
		}
	}
	open("before phx")

	for _, stage := range []string{"first run", "second run"} {
		r := l.try(t, "scripts/lab", "run", "phoenix")
		t.Logf("%s: status %d\n%s", stage, r.status, r.stderr)
		if r.status != 0 && r.status != 1 {
			t.Errorf("%s: status %d", stage, r.status)
		}
		if now := l.issuer(t); !now.Equal(issuer) {
			t.Errorf("%s: another CA answers: issued by %s", stage, now.Issuer)
		}
		if now := l.tree(t, ca, oldCA+"/certs", oldCA+"/secrets", oldCA+"/ca_password.txt",
			oldCA+"/provisioner_password.txt",
			oldCA+"/phoenix_ca.crt", oldCA+"/phoenix_root_ca.crt", oldCA+"/root_ca.fingerprint",
			oldCA+"/ca.ready"); now != keys {
			t.Errorf("%s: the CA's files were\n%s\nand are\n%s", stage, keys, now)
		}
		if now := l.tree(t, gateway, "/etc/nginx/sites-available", "/etc/nginx/old",
			"/etc/nginx/nginx.conf"); now != sites {
			t.Errorf("%s: nginx's files were\n%s\nand are\n%s", stage, sites, now)
		}
		for ctid, rules := range oldRules {
			if now := l.read(t, "pve", "firewall", ctid+".fw"); strings.Contains(now, "enable: 1") {
				t.Errorf("%s: the firewall of container %s, which was not in force, was\n%s\nand is\n%s",
					stage, ctid, rules, now)
			}
		}
		pinned := filepath.Join(l.dir, "persistent-storage", "ssl", "phoenix_ca.crt")
		if _, err := os.Stat(pinned); err == nil {
			if now := strings.TrimSpace(l.inside(t, "phx-fingerprint", pinned)); now != fingerprint {
				t.Errorf("%s: phoenix_ca.crt is %s, and the CA's root %s", stage, now, fingerprint)
			}
		} else if r.status == 0 {
			t.Errorf("%s: status 0 without a root: %v", stage, err)
		}
		l.inside(t, "pct", "list") // the lab enforces what the files say now
		open(stage)
		if r.status == 0 {
			l.answers(t, caClient)
		}
	}

	// The old site led to the proxy, and has given way: everything is served, by the old CA.
	l.in(t, gateway, "sh", "-euc", `test ! -e /etc/nginx/sites-enabled/gateway
		cmp /etc/nginx/sites-available/gateway /etc/phx/nginx/replaced/gateway`)
	r := l.try(t, "scripts/lab", "run", "phoenix")
	if r.status != 0 {
		t.Errorf("without the old site: status %d\n%s", r.status, r.stderr)
	}
	l.answers(t, caClient)
	if now := l.issuer(t); !now.Equal(issuer) {
		t.Errorf("another CA answers: issued by %s", now.Issuer)
	}

	// Told to, phx puts the firewalls in force.
	r = l.try(t, "scripts/lab", "run", "env", "PHX_ENFORCE_FIREWALL=1", "phoenix")
	t.Logf("in force: status %d\n%s", r.status, r.stderr)
	for ctid := range oldRules {
		if now := l.read(t, "pve", "firewall", ctid+".fw"); !strings.Contains(now, "enable: 1") {
			t.Errorf("the firewall of container %s should be in force:\n%s", ctid, now)
		}
	}
}
