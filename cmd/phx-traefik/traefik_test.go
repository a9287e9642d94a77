package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/guest"
)

const (
	renewing = "enewing certificate from LE" // of Traefik's log
	caHost   = "ca.internal.example"
	otherOne = "other.internal.example"
	dotted   = "vllm-qwen2.5-7b.internal.example" // of two labels below the domain
	named    = "named.internal.example"           // with a certificate for another name
	stranger = "stranger.internal.example"        // with a certificate of nobody's
	unasked  = "unasked.internal.example"         // the same, and verified
	board    = "traefik.internal.example"

	gatewayIP = "127.0.0.5"
)

// backend notes what reaches it.
type backend struct {
	mu       sync.Mutex
	requests []string // METHOD PATH
	header   http.Header
	clients  []string // address of the client of each request
}

func (b *backend) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, r.Method+" "+r.URL.Path)
	b.header = r.Header
	b.clients = append(b.clients, r.RemoteAddr)
}

// got returns whether a request has come since the last call.
func (b *backend) got(request string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := false
	for _, r := range b.requests {
		found = found || r == request
	}
	b.requests = nil
	return found
}

// traefik is a running one with the configuration that phx-traefik writes, its
// places moved, which gets its sockets as from systemd.
type traefik struct {
	root           authority
	ca, other      backend
	tls            backend // behind certificates of its own
	caServer       *httptest.Server
	plain, secured string       // addresses
	from           net.Addr     // of the client; nil for any
	log            bytes.Buffer // to be read after stop
	stop           func()
}

func startTraefik(t *testing.T, duration int) *traefik {
	t.Helper()
	path, err := exec.LookPath("traefik")
	if err != nil {
		t.Skip("no traefik in PATH")
	}
	tr := &traefik{root: newAuthority(t)}
	soon := time.Now().Add(24 * time.Hour)
	tr.caServer = httptest.NewUnstartedServer(&tr.ca)
	pair, err := tls.X509KeyPair(tr.root.issue(t, caHost, soon, net.IPv4(127, 0, 0, 1)))
	if err != nil {
		t.Fatal(err)
	}
	tr.caServer.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	tr.caServer.StartTLS()
	t.Cleanup(func() { tr.caServer.Close() })
	otherServer := httptest.NewServer(&tr.other)
	t.Cleanup(otherServer.Close)

	serveTLS := func(name string) string {
		pair, err := tls.X509KeyPair(tr.root.issue(t, name, soon))
		if name == "" {
			pair, err = tls.X509KeyPair(newAuthority(t).issue(t, "stranger", soon))
		}
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewUnstartedServer(&tr.tls)
		server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that Traefik breaks off
		if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
			server.Listener.Close()
			server.Listener = l
		}
		server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		server.StartTLS()
		t.Cleanup(server.Close)
		return server.URL
	}
	strangerURL := serveTLS("")

	p := proxy{
		Trust:       guest.Trust{Root: "/x", Fingerprint: strings.Repeat("ab", 32), CAURL: tr.caServer.URL},
		Gateway:     gatewayIP,
		GatewayAlso: []string{"::1"},
		Services: []route{
			{Name: "ca", Host: caHost, URL: tr.caServer.URL, CA: true},
			{Name: "other", Host: otherOne, URL: otherServer.URL},
			{Name: "vllm-qwen2.5-7b", Host: dotted, URL: serveTLS(dotted)},
			{Name: "named", Host: named, URL: serveTLS("host.internal.example"), ServerName: "host.internal.example"},
			{Name: "stranger", Host: stranger, URL: strangerURL, Insecure: true},
			{Name: "unasked", Host: unasked, URL: strangerURL},
		},
		Dashboard: &config.DashboardRoute{Name: "traefik", Host: board, Allow: []string{"10.0.0.0/24", "127.0.0.1"}},
	}
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	var entries []map[string]any
	for _, host := range p.hosts() {
		entries = append(entries, tr.root.entry(t, host, soon))
	}
	dir := t.TempDir()
	moved := strings.NewReplacer("/etc/traefik", dir, stateDir, dir)
	for name, text := range map[string][]byte{
		staticFile:   p.static(duration),
		dynamicFile:  p.dynamic(),
		rootFile:     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tr.root.cert.Raw}),
		p.acmeFile(): storageText(t, entries...),
	} {
		file := moved.Replace(name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(moved.Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", path,
		"--configFile="+moved.Replace(staticFile))
	cmd.Env = append(os.Environ(), "LISTEN_FDS=3", "LISTEN_FDNAMES="+plain+":"+encrypted+":traefik")
	var ping string
	for _, address := range []*string{&tr.plain, &tr.secured, &ping} {
		l := listenAsSystemd(t)
		*address = fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port)
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Stdout, cmd.Stderr = &tr.log, &tr.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tr.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	t.Cleanup(func() {
		tr.stop()
		if t.Failed() {
			t.Logf("Traefik:\n%s", &tr.log)
		}
	})
	err = guest.Until(context.Background(), time.Minute, func() error {
		for _, host := range p.hosts() {
			if _, err := guest.Served(context.Background(), tr.secured, host, tr.root.cert); err != nil {
				return err
			}
		}
		return guest.Answers(context.Background(), "http://"+ping+"/ping")
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// listenAsSystemd returns a listening socket for both families, where there are
// both: what the units of the entry points ask for.
func listenAsSystemd(t *testing.T) net.Listener {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// do sends a request as a client of the gateway would, without following where
// it is led.
func (tr *traefik) do(method, url, host string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return nil, err
	}
	req.Host = host
	if header != nil {
		req.Header = header
	}
	roots := x509.NewCertPool()
	roots.AddCert(tr.root.cert)
	transport := &http.Transport{DisableKeepAlives: true,
		DialContext:     (&net.Dialer{LocalAddr: tr.from}).DialContext,
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: host}}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp, err
}

func TestTraefik(t *testing.T) {
	tr := startTraefik(t, usualHours)
	t.Run("the CA's API", func(t *testing.T) {
		sum := strings.Repeat("0a", 32)
		for request, passes := range map[string]bool{
			"GET /health": true, "HEAD /health": true, "GET /1.0/health": true,
			"GET /roots": true, "GET /roots.pem": true,
			"GET /crl": true, "GET /root/" + sum: true, "GET /1.0/root/" + sum: true,
			"POST /health": false, "GET /": false, "GET /version": false,
			"GET /provisioners": false, "POST /sign": false,
			"POST /1.0/sign": false, "GET /acme/acme/directory": false,
			"POST /acme/acme/new-order": false, "POST /renew": false,
			"POST /ssh/sign": false, "GET /root/" + sum + "/x": false, "GET /root/..": false, "GET /2.0/health": false,
			"GET /healthx": false, "GET /x/health": false, "GET /provisioners/health": false, "GET /rootsXpem": false,
		} {
			method, path, _ := strings.Cut(request, " ")
			tr.ca.got("")
			resp, err := tr.do(method, "https://"+tr.secured+path, caHost, nil)
			if err != nil {
				t.Errorf("%s: %v", request, err)
				continue
			}
			reached := tr.ca.got(request)
			if reached != passes || passes && resp.StatusCode != http.StatusOK || !passes &&
				resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s: status %d, reached the CA: %v", request, resp.StatusCode, reached)
			}
		}
		// A request in a connection that the CA has just closed would not be tried again.
		if again := len(tr.ca.clients) - len(slices.Compact(slices.Sorted(slices.Values(tr.ca.clients)))); again > 0 {
			t.Errorf("%d of %d requests have come to the CA in a connection of before", again, len(tr.ca.clients))
		}
	})
	t.Run("plain", func(t *testing.T) {
		for host, want := range map[string]string{otherOne: "https://" + otherOne + "/x?y", caHost: "https://" +
			caHost + "/x?y", "bank.example": "", "internal.example": ""} {
			resp, err := tr.do("GET", "http://"+tr.plain+"/x?y", host, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := resp.Header.Get("Location"); got != want ||
				(want == "") != (resp.StatusCode == http.StatusNotFound) {
				t.Errorf("%s: status %d, led to %q", host, resp.StatusCode, got)
			}
		}
	})
	t.Run("who the client is", func(t *testing.T) {
		header := http.Header{"X-Forwarded-For": {"192.0.2.1"}, "X-Real-Ip": {"192.0.2.1"}}
		if _, err := tr.do("GET", "https://"+tr.secured+"/", otherOne, header); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(tr.other.header["X-Forwarded-For"],
			tr.other.header["X-Real-Ip"]); got != "[127.0.0.1] [127.0.0.1]" {
			t.Errorf("the service is told %s", got)
		}
	})
	t.Run("TLS", func(t *testing.T) {
		for name, config := range map[string]*tls.Config{
			"unknown name": {ServerName: "bank.example"},
			"no name":      {},
			"TLS 1.1":      {ServerName: otherOne, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10},
			"CBC": {ServerName: otherOne, MaxVersion: tls.VersionTLS12,
				CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
		} {
			config.InsecureSkipVerify = true
			conn, err := tls.Dial("tcp", tr.secured, config)
			if err == nil {
				conn.Close()
				t.Errorf("%s: accepted, with a certificate for %q", name,
					conn.ConnectionState().PeerCertificates[0].DNSNames)
			}
		}
	})
	t.Run("certificates of services", func(t *testing.T) {
		for host, want := range map[string]int{dotted: 200, named: 200, stranger: 200, unasked: 500} {
			resp, err := tr.do("GET", "https://"+tr.secured+"/x", host, nil)
			if err != nil {
				t.Fatal(err)
			}
			if reached := tr.tls.got("GET /x"); resp.StatusCode != want || reached != (want == 200) {
				t.Errorf("%s: status %d, want %d; reached it: %v", host, resp.StatusCode, want, reached)
			}
		}
	})
	t.Run("the dashboard", func(t *testing.T) {
		defer func() { tr.from = nil }()
		for _, tt := range []struct {
			from, forwarded string
			want            int
		}{
			{gatewayIP, "10.0.0.7", 200},
			{gatewayIP, "127.0.0.1", 200},
			{gatewayIP, "192.0.2.1", 403},
			{gatewayIP, "10.0.0.7, 192.0.2.1", 403}, // the gateway's word is the last one
			{gatewayIP, "", 403},
			{gatewayIP, "nobody", 403},
			{"127.0.0.1", "", 403}, // not through the gateway
			{"127.0.0.1", "10.0.0.7", 403},
			{"127.0.0.6", "10.0.0.7", 403},
		} {
			tr.from = &net.TCPAddr{IP: net.ParseIP(tt.from)}
			header := http.Header{}
			if tt.forwarded != "" {
				header.Set("X-Forwarded-For", tt.forwarded)
			}
			resp, err := tr.do("GET", "https://"+tr.secured+"/api/version", board, header)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.want {
				t.Errorf("from %s for %q: status %d, want %d", tt.from, tt.forwarded, resp.StatusCode, tt.want)
			}
		}
		tr.from = nil
		for _, host := range []string{otherOne, dotted, "bank.example"} { // it has no other name
			resp, err := tr.do("GET", "https://"+tr.secured+"/api/rawdata", host, nil)
			if err == nil && (tr.other.got("GET /api/rawdata") || tr.tls.got("GET /api/rawdata")) {
				continue
			}
			if err == nil {
				t.Errorf("%s: status %d", host, resp.StatusCode)
			}
		}
	})
	t.Run("IPv6", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(tr.secured)
		if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
			t.Skip(err)
		} else {
			l.Close()
		}
		header := http.Header{"X-Forwarded-For": {"fd00::7"}}
		if _, err := tr.do("GET", "https://[::1]:"+port+"/v6", otherOne, header); err != nil {
			t.Fatal(err)
		}
		if !tr.other.got("GET /v6") || tr.other.header.Get("X-Forwarded-For") != "fd00::7, ::1" {
			t.Errorf("the service is told %q", tr.other.header["X-Forwarded-For"])
		}
	})
	// At the end, for what was there before is not the same after it.
	t.Run("the CA restarts", func(t *testing.T) {
		address := tr.caServer.Listener.Addr().String()
		pair := tr.caServer.TLS.Certificates
		tr.caServer.Close()
		again := make(chan error, 1)
		go func() {
			time.Sleep(time.Second)
			l, err := net.Listen("tcp", address)
			if err == nil {
				tr.caServer = &httptest.Server{Listener: l, Config: &http.Server{Handler: &tr.ca},
					TLS: &tls.Config{Certificates: pair}}
				tr.caServer.StartTLS()
			}
			again <- err
		}()
		resp, err := tr.do("GET", "https://"+tr.secured+"/health", caHost, nil)
		if err := errors.Join(err, <-again); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			t.Errorf("status %d", resp.StatusCode)
		}
	})
	tr.stop()
	if strings.Contains(tr.log.String(), renewing) {
		t.Error("Traefik has tried to renew certificates that are good for a day")
	}
}

// What is needed to have all certificates renewed at once.
func TestTraefikRenewsAllAtOnce(t *testing.T) {
	tr := startTraefik(t, renewAll)
	err := guest.Until(context.Background(), time.Minute, func() error {
		if !tr.ca.got("GET /acme/acme/directory") {
			return errors.New("Traefik has not asked the CA for anything")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	tr.stop()
	if !strings.Contains(tr.log.String(), renewing) {
		t.Errorf("Traefik has not said %q, by which other tests know it", renewing)
	}
}
