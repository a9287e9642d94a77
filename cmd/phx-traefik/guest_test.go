package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// Who asks through the gateway, and what of an answer proves that both let
// requests pass.
func TestPasses(t *testing.T) {
	root, other := newAuthority(t), newAuthority(t)
	pair, err := tls.X509KeyPair(root.issue(t, "a.example", time.Now().Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	status := 0
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "https://elsewhere.example/")
		w.WriteHeader(status)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	defer server.Close()
	address := server.Listener.Addr().String()
	roots := []*x509.Certificate{other.cert, root.cert}
	for code, good := range map[int]bool{200: true, 302: true, 401: true, 404: true, 500: true, 502: false,
		504: false} {
		status = code
		if err := passes(context.Background(), address, "a.example", roots); (err == nil) != good {
			t.Errorf("%d: %v", code, err)
		}
	}
	status = 200
	if passes(context.Background(), address, "b.example", roots) == nil {
		t.Error("another name's certificate is accepted")
	}
	if passes(context.Background(), address, "a.example", roots[:1]) == nil {
		t.Error("another root's certificate is accepted")
	}
}

// The gateway is asked for only where there is one, and it has been set up.
func TestGatewayIsAskedFor(t *testing.T) {
	for name, tt := range map[string]struct {
		gateway string
		ready   bool
		fails   error
		asked   bool
		err     string
	}{
		"none":      {},
		"not ready": {gateway: "127.0.0.1", asked: true},
		"unknown":   {gateway: "127.0.0.1", fails: errors.New("gone"), asked: true, err: "gone"},
	} {
		p := testProxy
		p.Gateway = tt.gateway
		asked := false
		err := checkGateway(context.Background(), &guest.Setup{}, p, nil, func(need string, value any) error {
			asked = need == "gateway"
			*value.(*bool) = tt.ready
			return tt.fails
		})
		if asked != tt.asked || tt.err == "" && err != nil || tt.err != "" &&
			(err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: asked %v, %v", name, asked, err)
		}
	}
}

// The gateway is asked at each address that the proxy shares a network with; those
// that are for clients alone may be out of reach.
func TestGatewaysInReach(t *testing.T) {
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.12/24"), netip.MustParsePrefix("fd00::12/64")}
	for _, tt := range []struct{ gateways, want []string }{
		{[]string{"10.0.0.153"}, []string{"10.0.0.153"}},
		{[]string{"192.0.2.1"}, []string{"192.0.2.1"}},
		{[]string{"192.0.2.1", "10.0.0.153", "2001:db8::1", "fd00::153"}, []string{"10.0.0.153", "fd00::153"}},
	} {
		if got := inReach(tt.gateways, networks); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.gateways, got, tt.want)
		}
	}
}

// Why a name is not served is said also when the CA does not answer.
func TestNotServedIsSaid(t *testing.T) {
	p := testProxy
	p.CAURL = "https://127.0.0.1:1"
	// Learned, so that the CA is asked long before Traefik would be restarted.
	err := checkServing(t.Context(), &guest.Setup{}, p, []*x509.Certificate{newAuthority(t).cert}, true)
	if err == nil || !strings.Contains(err.Error(), "which does not answer") ||
		!strings.Contains(err.Error(), "TLS with 127.0.0.1:443 for ca.internal.example") {
		t.Error(err)
	}
}

// A feature that cannot be installed keeps nothing from being mended that does
// without it.
func TestApplyWithoutStep(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces")
	}
	if os.Getenv("PHX_TEST_NAMESPACE") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "PHX_TEST_NAMESPACE="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	// By this systemctl, units are as they are told to be.
	out, err := exec.Command("/bin/sh", "-euc", `
		mount --make-rprivate /
		ip link set lo up
		for dir in /etc /run /usr/local /var/lib; do mount -t tmpfs tmpfs "$dir"; done
		mkdir -p /etc/systemd/system /etc/traefik/ssl /etc/phx /usr/local/bin /usr/local/sbin
		echo traefik:x:998:998::/:/bin/false >/etc/passwd
		: >/usr/local/bin/traefik
		cat >/usr/local/sbin/systemctl <<'END'
#!/bin/sh
for unit; do :; done
case $1 in
is-system-running) echo running ;;
is-active) [ -e "/run/active.$unit" ] ;;
is-enabled) echo enabled ;;
start) : >"/run/active.$unit" ;;
esac
END
		chmod +x /usr/local/sbin/systemctl`).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	root := newAuthority(t)
	p := testProxy
	p.Fingerprint, p.Gateway, p.Services = cert.Fingerprint(root.cert), "", testProxy.Services[1:]
	if err := os.WriteFile(p.Root, cert.Encode(root.cert), 0o644); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(root.issue(t, caHost, time.Now().Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	ping, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	secured, err := tls.Listen("tcp", "127.0.0.1:443", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{ping, secured} {
		server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
		go server.Serve(l)
		t.Cleanup(func() { server.Close() })
	}

	var begun []string
	apply := func() *remote.Answer {
		begun = nil
		os.Remove("/run/phx-traefik.lock") // which an apply holds until its process ends
		return apply(t.Context(), p, func(need string,
			_ any) error {
			return errors.New("no " + need + " is to be had")
		}, func(n remote.Note) bool {
			begun = append(begun, n.Stage)
			return true
		})
	}
	answer := apply()
	if answer.Stage != "bootstrap" || answer.Error != "no step_cli is to be had" || answer.NotAfter.IsZero() {
		t.Errorf("answer %+v", answer)
	}
	if want := "service check bootstrap"; strings.Join(begun, " ") != want {
		t.Errorf("begun %q, want %s", begun, want)
	}
	for _, file := range []string{staticFile, dynamicFile, rootFile, unitFile, proxyFile, takenFile,
		"/run/active.traefik"} {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(dynamicFile, []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	answer = apply()
	if text, err := os.ReadFile(dynamicFile); err != nil || !bytes.Equal(text, p.dynamic()) || answer.Error == "" ||
		strings.Join(answer.Changes, " ") != "wrote "+dynamicFile {
		t.Errorf("answer %+v, %s is %q, %v", answer, filepath.Base(dynamicFile), text, err)
	}
	// Without the program itself there is nothing to mend.
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if answer := apply(); answer.Stage != "packages" || answer.Error != "no traefik is to be had" {
		t.Errorf("answer %+v", answer)
	}
}
