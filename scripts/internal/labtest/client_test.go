package labtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A syncWriter can be read while it is written.
type syncWriter struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buffer.Write(p)
}

func (s *syncWriter) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buffer.String()
}

// transport connects to the gateway whatever the name, and trusts what phoenix_ca.crt holds when it connects.
func (l lab) transport(keepAlive bool) *http.Transport { return l.transportTo(gatewayIP, keepAlive) }

// transportTo is transport for one of the gateway's addresses.
func (l lab) transportTo(ip string, keepAlive bool) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: !keepAlive,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			name, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			text, err := os.ReadFile(l.path("persistent-storage", "ssl", "phoenix_ca.crt"))
			if err != nil {
				return nil, err
			}
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(text) {
				return nil, errors.New("phoenix_ca.crt: no certificate")
			}
			conn, err := l.dial(ctx, network, net.JoinHostPort(ip, port))
			if err != nil {
				return nil, err
			}
			secured := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: roots})
			if err := secured.HandshakeContext(ctx); err != nil {
				conn.Close()
				return nil, err
			}
			return secured, nil
		},
	}
}

// request returns the text of a good answer.
func (l lab) request(client *http.Client, request *http.Request) (string, error) {
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", response.Status)
	}
	return string(text), err
}

// The names that clients ask for, and what they get. The CA's own name is not answered while the CA restarts.
var (
	caClient = "https://ca." + domain + "/health"
	others   = []string{"https://gateway." + domain + "/"}
)

const clientRate = 40 * time.Millisecond // between two new connections

// traffic is what clients have seen.
type traffic struct {
	mu           sync.Mutex
	made, failed int
	reasons      map[string]int
	last         time.Time // of the last failure
}

func (c *traffic) add(url string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	if err != nil {
		c.failed++
		c.reasons[url+": "+err.Error()]++
		c.last = time.Now()
	}
}

func (c *traffic) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "requests made %d, failed %d", c.made, c.failed)
	for _, reason := range slices.Sorted(maps.Keys(c.reasons)) {
		fmt.Fprintf(&b, "\n%6d %s", c.reasons[reason], reason)
	}
	return b.String()
}

// clients asks for each URL through the gateway, again and again: over a new connection each time, which reads the
// root anew, and one after the other over a connection that is kept. stop ends it, and returns what was seen.
func (l lab) clients(t *testing.T, urls ...string) (stop func() *traffic) {
	t.Helper()
	seen := &traffic{reasons: map[string]int{}}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	ask := func(client *http.Client, url string) {
		// What has begun may end: only the loop is stopped.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err == nil {
			var text string
			if text, err = l.request(client, request); err == nil && strings.TrimSpace(text) != health {
				err = fmt.Errorf("answered %.40q", text)
			}
		}
		seen.add(url, err)
	}
	var loops, requests sync.WaitGroup
	loop := func(f func(url string)) {
		loops.Go(func() {
			ticker := time.NewTicker(clientRate)
			defer ticker.Stop()
			for i := 0; ; i++ {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
					f(urls[i%len(urls)])
				}
			}
		})
	}
	fresh := &http.Client{Transport: l.transport(false)}
	kept := &http.Client{Transport: l.transport(true)}
	loop(func(url string) { requests.Go(func() { ask(fresh, url) }) })
	loop(func(url string) { ask(kept, url) })
	return func() *traffic {
		cancel()
		loops.Wait()
		requests.Wait()
		kept.CloseIdleConnections()
		return seen
	}
}

// during has clients ask while something happens, a second before and two after it.
func (l lab) during(t *testing.T, urls []string, f func()) *traffic {
	t.Helper()
	stop := l.clients(t, urls...)
	time.Sleep(time.Second)
	f()
	time.Sleep(2 * time.Second)
	seen := stop()
	t.Logf("%s", seen)
	if seen.made < 50 {
		t.Errorf("only %d requests were made", seen.made)
	}
	return seen
}

// undisturbed: no client sees a failure.
func (l lab) undisturbed(t *testing.T, urls []string, f func()) {
	t.Helper()
	if seen := l.during(t, urls, f); seen.failed > 0 {
		t.Errorf("%d of %d requests failed", seen.failed, seen.made)
	}
}

// answers waits until each URL is answered.
func (l lab) answers(t *testing.T, urls ...string) {
	t.Helper()
	for _, url := range urls {
		var err error
		if !within(time.Minute, func() bool {
			var request *http.Request
			if request, err = http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil); err == nil {
				_, err = l.request(&http.Client{Transport: l.transport(false), Timeout: 5 * time.Second}, request)
			}
			return err == nil
		}) {
			t.Fatalf("%s does not answer: %v", url, err)
		}
	}
}

// testClients has clients ask all the while that something is renewed, reloaded, restarted or killed.
func (l lab) testClients(t *testing.T) {
	all := append([]string{caClient}, others...)
	l.answers(t, all...)

	t.Run("no way to the gateway", func(t *testing.T) { // the control: the clients do see an outage
		seen := l.during(t, all, func() {
			l.inside(t, "ip", "route", "add", "unreachable", gatewayIP)
			time.Sleep(500 * time.Millisecond)
			l.inside(t, "ip", "route", "delete", "unreachable", gatewayIP)
		})
		if seen.failed == 0 {
			t.Error("there was no way to the gateway, and no request failed: these tests prove nothing")
		}
	})
	t.Run("unchanged run", func(t *testing.T) {
		l.undisturbed(t, all, func() { l.inside(t, "phoenix") })
	})
	t.Run("reload of nginx", func(t *testing.T) {
		l.undisturbed(t, all, func() { l.in(t, gateway, "systemctl", "reload", "nginx") })
	})
	t.Run("restart of nginx", func(t *testing.T) {
		l.undisturbed(t, all, func() { l.in(t, gateway, "systemctl", "restart", "nginx") })
	})
	t.Run("renewal of the gateway's certificate", func(t *testing.T) {
		l.ageCertificate(t)
		before := l.served(t, gatewayIP)[0]
		l.undisturbed(t, all, func() { l.in(t, gateway, "systemctl", "start", "phx-nginx-renew") })
		if after := l.served(t, gatewayIP)[0]; after.Equal(before) {
			t.Error("the certificate was due, and was not renewed")
		}
	})
	t.Run("restart of Traefik", func(t *testing.T) {
		l.undisturbed(t, all, func() { l.in(t, proxy, "systemctl", "restart", "traefik") })
	})
	t.Run("restart of step-ca", func(t *testing.T) {
		l.undisturbed(t, all, func() { l.in(t, ca, "systemctl", "restart", "step-ca") })
	})
	l.answers(t, all...)
	for _, s := range []struct{ ctid, unit string }{{gateway, "nginx"}, {proxy, "traefik"}, {ca, "step-ca"}} {
		t.Run("killed "+s.unit, func(t *testing.T) {
			var killed time.Time
			seen := l.during(t, all, func() {
				pid := strings.TrimSpace(l.in(t, s.ctid, "systemctl", "show", "-P", "MainPID", s.unit))
				l.in(t, s.ctid, "kill", "-9", pid)
				killed = time.Now()
				back := within(time.Minute, func() bool {
					text := l.in(t, s.ctid, "systemctl", "show", "-P", "MainPID", "-P", "ActiveState", s.unit)
					return strings.Contains(text, "active\n") && !strings.Contains(text, "inactive") &&
						!strings.Contains(text, pid+"\n") && !strings.Contains(text, "activating")
				})
				if !back {
					t.Errorf("%s was killed, and is not back after a minute", s.unit)
					l.in(t, s.ctid, "systemctl", "start", s.unit)
				}
				l.answers(t, all...)
			})
			if seen.failed > 0 {
				t.Logf("the last failure was %.1f s after the kill", seen.last.Sub(killed).Seconds())
			}
		})
	}
}

// ageCertificate gives the gateway a certificate of the CA that is due, as if time had gone by.
func (l lab) ageCertificate(t *testing.T) {
	t.Helper()
	crt, key := l.nginxFile(t, "ssl_certificate"), l.nginxFile(t, "ssl_certificate_key")
	l.inside(t, "pct", "push", gateway, l.path("persistent-storage", "ssl", "phoenix_ca.crt"), "/root/aged-root.crt")
	token := l.in(t, ca, "/usr/bin/env", "HOME=/root", "STEPPATH=/home/step", "/usr/local/bin/step",
		"ca", "token", domain,
		"--provisioner", "phoenix", "--password-file", "/home/step/secrets/provisioner_password",
		"--ca-url", caURL, "--root", "/home/step/certs/root_ca.crt", "--san", domain, "--san", "*."+domain)
	// 20 of its 22 hours are over.
	issue := l.command("scripts/lab", "run", "pct", "exec", gateway, "--", "sh", "-euc",
		`HOME=/root STEP_TOKEN=$(cat) exec /usr/local/bin/step ca certificate "$1" /root/aged.crt /root/aged.key \
			--force --not-before -20h --not-after 22h --ca-url "$2" --root /root/aged-root.crt`, "sh", domain, caURL)
	issue.Stdin = strings.NewReader(token)
	if out, err := issue.CombinedOutput(); err != nil {
		t.Fatalf("issuing a certificate that is due: %v\n%s", err, out)
	}
	l.in(t, gateway, "sh", "-euc",
		`cat /root/aged.crt >"$1"; cat /root/aged.key >"$2"; rm /root/aged*; systemctl reload nginx`, "sh", crt, key)
	if !within(10*time.Second, func() bool { return time.Until(l.served(t, gatewayIP)[0].NotAfter) < 3*time.Hour }) {
		t.Fatal("the gateway does not serve the certificate that is due")
	}
}

// nginxFile is the value of a directive of nginx that names a file.
func (l lab) nginxFile(t *testing.T, directive string) string {
	t.Helper()
	for line := range strings.Lines(l.in(t, gateway, "nginx", "-T")) {
		if words := strings.Fields(line); len(words) == 2 && words[0] == directive {
			return strings.TrimSuffix(words[1], ";")
		}
	}
	t.Fatalf("nginx has no directive %s", directive)
	return ""
}

// testRotation takes a new root in three runs. No client that reads phoenix_ca.crt when it connects sees a failure.
func (l lab) testRotation(t *testing.T) {
	text := func() string { return l.read(t, "persistent-storage", "ssl", "phoenix_ca.crt") }
	roots := func() int { return strings.Count(text(), "BEGIN CERTIFICATE") }
	old := text()
	issuer := l.served(t, gatewayIP)
	for _, step := range []struct {
		name  string
		roots int
	}{{"trust", 2}, {"certificates", 2}, {"drop", 1}} {
		done := t.Run(step.name, func(t *testing.T) {
			l.undisturbed(t, append([]string{caClient}, others...), func() {
				l.inside(t, "env", "PHX_ROTATE_ROOT="+step.name, "phoenix")
			})
			if n := roots(); n != step.roots {
				t.Errorf("phoenix_ca.crt has %d roots, want %d", n, step.roots)
			}
			l.answers(t, append([]string{caClient}, others...)...)
		})
		if !done {
			return
		}
	}
	if text() == old {
		t.Error("the root is the old one")
	}
	if now := l.served(t, gatewayIP); now[1].Equal(issuer[1]) {
		t.Error("the gateway's certificate is of the old intermediate")
	}
	checkUnchanged(t, l.inside(t, "phoenix"))
}
