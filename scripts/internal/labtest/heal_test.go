package labtest

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// pairFor is a certificate of the CA for names, and its key, as step certificate create makes them with these
// options: what the CA itself would not issue.
func (l lab) pairFor(t *testing.T, options ...string) (crt, key string) {
	t.Helper()
	out := l.in(t, ca, append([]string{"sh", "-euc", `
		subject=$1
		shift
		dir=$(mktemp -d)
		trap 'rm -rf "$dir"' EXIT
		crt=$(sed -n 's/^\t"crt": "\(.*\)",$/\1/p' /home/step/config/ca.json)
		key=$(sed -n 's/^\t"key": "\(.*\)",$/\1/p' /home/step/config/ca.json)
		HOME=/root /usr/local/bin/step certificate create "$subject" "$dir/crt" "$dir/key" \
			--profile leaf --bundle --no-password --insecure \
			--ca "$crt" --ca-key "$key" --ca-password-file /home/step/secrets/ca_password "$@" >/dev/null 2>&1
		cat "$dir/crt" "$dir/key"`, "sh"}, options...)...)
	at := strings.LastIndex(out, "-----BEGIN ")
	if at <= 0 {
		t.Fatalf("no certificate and key: %q", out)
	}
	return out[:at], out[at:]
}

// givePair has the gateway serve this certificate with this key, "" for the one that it has.
func (l lab) givePair(t *testing.T, crt, key string) {
	t.Helper()
	files := map[string]string{l.nginxFile(t, "ssl_certificate"): crt, l.nginxFile(t, "ssl_certificate_key"): key}
	for file, text := range files {
		if text == "" {
			continue
		}
		write := l.command("scripts/lab", "run", "pct", "exec", gateway, "--", "sh", "-euc", `cat >"$1"`, "sh", file)
		write.Stdin = strings.NewReader(text)
		if out, err := write.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// testHealing breaks what can break in the gateway, the proxy, the CA and on the host, and sees the next run mend it.
func (l lab) testHealing(t *testing.T) {
	names := []string{domain, "--san", domain, "--san", "*." + domain}
	root := l.path("persistent-storage", "ssl", "phoenix_ca.crt")
	sh := func(ctid, script string) func(*testing.T) {
		return func(t *testing.T) { l.in(t, ctid, "sh", "-euc", script) }
	}
	storage := `storage=$(ls -d /var/lib/traefik/acme-*.json); `
	type harm struct {
		what string
		do   func(*testing.T)
	}
	for _, round := range []struct {
		name  string
		harms []harm
	}{
		{"expired, lost", []harm{
			{"the gateway's certificate has expired", func(t *testing.T) {
				crt, key := l.pairFor(t, append(names, "--not-before", "-25h", "--not-after", "-1h")...)
				l.givePair(t, crt, key)
			}},
			{"the proxy's certificates are lost", sh(proxy, storage+`systemctl stop traefik; rm "$storage"`)},
			{"the CA is stopped", sh(ca, "systemctl stop step-ca")},
		}},
		{"other names, readable", []harm{
			{"the gateway's certificate is for other names", func(t *testing.T) {
				crt, key := l.pairFor(t, "other."+domain, "--san", "other."+domain)
				l.givePair(t, crt, key)
			}},
			{"others can read the proxy's keys", sh(proxy, storage+`chmod 0644 "$storage"`)},
			{"the root is lost on the host", func(t *testing.T) {
				if err := os.Remove(root); err != nil {
					t.Fatal(err)
				}
			}},
		}},
		{"mismatched, broken", []harm{
			{"the gateway's key belongs to another certificate", func(t *testing.T) {
				_, key := l.pairFor(t, names...)
				l.givePair(t, "", key)
			}},
			{"the proxy's certificates are broken",
				sh(proxy, storage+`systemctl stop traefik; echo '{"internal":' >"$storage"`)},
			{"nobody can read the root on the host", func(t *testing.T) {
				if err := os.Chmod(root, 0o600); err != nil {
					t.Fatal(err)
				}
			}},
		}},
		{"mode 0644, gone", []harm{
			{"others can read the gateway's key", func(t *testing.T) {
				l.in(t, gateway, "chmod", "-R", "a+rX", "/etc/phx/nginx")
			}},
			{"the proxy's configuration is gone",
				sh(proxy, "systemctl disable --now -q traefik; "+
					"rm /etc/traefik/traefik.yml /etc/systemd/system/traefik*")},
			{"the CA does not find the proxy", sh(ca, "sed -i '/PHX ---$/d; /"+domain+"/d' /etc/hosts")},
		}},
	} {
		t.Run(round.name, func(t *testing.T) {
			for _, harm := range round.harms {
				t.Run(harm.what, harm.do)
			}
			before := l.served(t, gatewayIP)
			r := l.try(t, "scripts/lab", "run", "phoenix")
			if r.status != 0 {
				t.Fatalf("status %d\n%s", r.status, r.stderr)
			}
			l.answers(t, append([]string{caClient}, others...)...)
			leaf := l.served(t, gatewayIP)[0]
			if leaf.Equal(before[0]) {
				t.Error("the gateway's certificate was not replaced")
			}
			if !slices.Contains(leaf.DNSNames, "*."+domain) {
				t.Errorf("the gateway serves %q", leaf.DNSNames)
			}
			if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("the root on the host: %v, %v", info, err)
			}
			if hosts := l.in(t, ca, "cat", "/etc/hosts"); !strings.Contains(hosts, proxyIP+" ca."+domain+"\n") {
				t.Errorf("the CA does not find the proxy: %s", hosts)
			}
			if modes := l.in(t, proxy, "sh", "-c",
				"stat -c '%a %U' /var/lib/traefik/acme-*.json"); modes != "600 traefik\n" {
				t.Errorf("the proxy's keys: %s", modes)
			}
			checkUnchanged(t, l.inside(t, "phoenix"))
		})
	}

	for what, script := range map[string]string{
		"restarted without its site": "rm /etc/nginx/conf.d/phoenix.conf; systemctl restart nginx",
		"masked":                     "systemctl mask --now -q nginx.service",
	} {
		t.Run(what, func(t *testing.T) {
			l.in(t, gateway, "sh", "-euc", script)
			if r := l.try(t, "scripts/lab", "run", "phoenix"); r.status != 0 {
				t.Fatalf("status %d\n%s", r.status, r.stderr)
			}
			l.answers(t, append([]string{caClient}, others...)...)
			checkUnchanged(t, l.inside(t, "phoenix"))
		})
	}
	t.Run("without the CA", func(t *testing.T) {
		l.inside(t, "pct", "stop", ca)
		l.inside(t, "pct", "set", ca, "--lock", "backup")
		defer l.inside(t, "pct", "unlock", ca)
		l.in(t, gateway, "sh", "-euc", "systemctl disable --now -q nginx.socket nginx; systemctl mask -q nginx; "+
			"rm /etc/nginx/conf.d/phoenix.conf")
		l.in(t, proxy, "sh", "-euc", "systemctl disable --now -q traefik; rm /etc/systemd/system/traefik*")
		r := l.try(t, "scripts/lab", "run", "env", "PHX_LOCK_WAIT=1s", "phoenix")
		if r.status != 1 {
			t.Errorf("status %d, want 1\n%s", r.status, r.stderr)
		}
		l.answers(t, others...) // by certificates that are still good
		l.served(t, proxyIP)
	})
	if r := l.try(t, "scripts/lab", "run", "phoenix"); r.status != 0 {
		t.Errorf("with the CA again: status %d\n%s", r.status, r.stderr)
	}
	checkUnchanged(t, l.inside(t, "phoenix"))
}
