package labtest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A served is what a status says of the gateway or the proxy.
type served struct {
	Event, Address, Error string
	CTID                  int
	Certificates          []struct {
		Name, Issuer, SHA256, Error string
		NotAfter                    string `json:"not_after"`
	}
}

// status runs phoenix status, which has to end with an exit status and to change nothing, and returns its events.
func (l lab) status(t *testing.T, want int, env ...string) string {
	t.Helper()
	files := func() string {
		return l.do(t, "sh", "-c", `cd "$PHX_LAB_DIR"
			find pve persistent-storage -type f -exec sha256sum {} + | sort`)
	}
	before := files()
	r := l.try(t, "scripts/lab", slices.Concat([]string{"run", "env"}, env, []string{"phoenix", "status"})...)
	if r.status != want {
		t.Errorf("status %d, want %d\n%s", r.status, want, r.stderr)
	}
	if after := files(); after != before {
		t.Errorf("it has changed files:\n%s\nwere\n%s", after, before)
	}
	return r.stdout
}

// find returns the event of a name, decoded.
func find[T any](t *testing.T, text, name string) (found T) {
	t.Helper()
	for _, ev := range parseEvents(t, text) {
		if ev.Event == name {
			if err := json.Unmarshal([]byte(ev.line), &found); err != nil {
				t.Fatal(err)
			}
			return found
		}
	}
	t.Errorf("there is no %s:\n%s", name, text)
	return found
}

// testStatus has phoenix status tell what is well, drift and what is broken; the next run heals it.
func (l lab) testStatus(t *testing.T) {
	services := l.services(t)
	n := l.calls(t)
	well := l.status(t, 0)
	if got := l.calls(t) - n; got != 0 {
		t.Errorf("%d calls of pct", got)
	}
	n = l.calls(t)
	l.status(t, 0, "PHX_ATTACH=pct")
	if got := l.calls(t) - n; got != 2 {
		t.Errorf("%d calls of pct, want 2: one list, and one into the CA's container", got)
	}
	for name, ip := range map[string]string{"nginx.status": gatewayIP, "traefik.status": proxyIP} {
		s := find[served](t, well, name)
		if s.Address != ip+":443" || s.Error != "" {
			t.Errorf("%s: %+v", name, s)
		}
		var names []string
		for _, c := range s.Certificates {
			names = append(names, c.Name)
			if c.Error != "" || c.Issuer == "" || len(c.SHA256) != 64 || c.NotAfter == "" {
				t.Errorf("%s: %+v", name, c)
			}
		}
		want := []string{domain, "gateway." + domain, "ca." + domain}
		if name == "traefik.status" {
			want = want[1:]
		}
		if !slices.Equal(names, want) {
			t.Errorf("%s: %q, want %q", name, names, want)
		}
	}
	if after := l.services(t); after != services {
		t.Errorf("services were restarted:\n%s\nwere\n%s", after, services)
	}

	// What the run's own check has seen is what a handshake sees.
	ran := l.inside(t, "phoenix")
	for _, name := range []string{"nginx", "traefik"} {
		shown, ready := find[served](t, well, name+".status"), find[served](t, ran, name+".ready")
		if len(ready.Certificates) == 0 || ready.Certificates[0].SHA256 != shown.Certificates[0].SHA256 {
			t.Errorf("%s.ready has %+v, %[1]s.status %+v", name, ready.Certificates, shown.Certificates)
		}
	}

	t.Run("drift", func(t *testing.T) {
		l.inside(t, "pct", "set", ca, "--memory", "900")
		out := l.status(t, 3)
		if !strings.Contains(out, `"drift":["memory 1024"]`) {
			t.Errorf("no drift:\n%s", out)
		}
		l.heal(t)
	})

	names := []string{domain, "--san", domain, "--san", "*." + domain}
	// The workers of before take connections for a moment after the reload.
	reload := func() {
		l.in(t, gateway, "sh", "-euc", `before=$(pgrep -x nginx)
			systemctl reload nginx
			for pid in $before; do
				while ps -o args= -p "$pid" | grep -q 'worker process *$'; do sleep 0.1; done
			done`)
	}
	undo := func() {}
	for _, broken := range []struct {
		what, event, want string
		do                func()
	}{
		{"nginx stopped", "nginx.status", "connection refused", func() {
			l.in(t, gateway, "systemctl", "stop", "nginx.socket", "nginx")
		}},
		{"step-ca stopped", "ca.status", "the CA does not answer", func() {
			l.in(t, ca, "systemctl", "stop", "step-ca")
			// Sooner than by a run, which waits for it first.
			undo = func() { l.in(t, ca, "systemctl", "start", "step-ca") }
		}},
		{"expired certificate", "nginx.status", "certificate has expired", func() {
			crt, key := l.pairFor(t, append(names, "--not-before", "-25h", "--not-after", "-1h")...)
			l.givePair(t, crt, key)
			reload()
		}},
		{"another CA's certificate", "nginx.status", "unknown authority", func() {
			file := l.nginxFile(t, "ssl_certificate")
			l.in(t, gateway, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
				"-nodes", "-days", "1", "-subj", "/CN="+domain,
				"-addext", fmt.Sprintf("subjectAltName=DNS:%s,DNS:*.%[1]s", domain), "-out", file,
				"-keyout", l.nginxFile(t, "ssl_certificate_key"))
			reload()
		}},
		{"the gateway's container stopped", "nginx.status", "its container is stopped", func() {
			l.inside(t, "pct", "stop", gateway)
		}},
	} {
		t.Run(broken.what, func(t *testing.T) {
			broken.do()
			out := l.status(t, 1)
			text := fmt.Sprintf("%+v", find[served](t, out, broken.event))
			if !strings.Contains(text, broken.want) {
				t.Errorf("%s says %s, want %q", broken.event, text, broken.want)
			}
			undo()
			undo = func() {}
			l.heal(t)
		})
	}

	// Where the host reaches none of them, each is asked in its container.
	t.Run("out of reach", func(t *testing.T) {
		for _, ip := range []string{gatewayIP, proxyIP} {
			l.inside(t, "ip", "route", "add", "blackhole", ip)
			defer l.inside(t, "ip", "route", "del", "blackhole", ip)
		}
		out := l.status(t, 0)
		for _, name := range []string{"nginx.status", "traefik.status"} {
			if s := find[served](t, out, name); s.Address != "127.0.0.1:443" || len(s.Certificates) < 2 {
				t.Errorf("%s: %+v", name, s)
			}
		}
	})
}

// heal has a run mend what was broken.
func (l lab) heal(t *testing.T) {
	t.Helper()
	if r := l.try(t, "scripts/lab", "run", "phoenix"); r.status != 0 {
		t.Fatalf("the run after it: status %d\n%s", r.status, r.stderr)
	}
	l.status(t, 0)
}
