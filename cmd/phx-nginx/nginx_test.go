package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
)

const nginxConf = `user www-data;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log;
events {}
http {
	ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
	access_log off;
	include /etc/nginx/conf.d/*.conf;
	include /etc/nginx/sites-enabled/*;
}
`

// inNamespace runs the test again in a network of its own, with files of its
// own in the places that the gateway uses, and a real nginx. It reports
// whether it runs there already.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces")
	}
	if os.Getenv("PHX_TEST_NAMESPACE") == "" {
		dir := t.TempDir()
		program, err := exec.LookPath("nginx")
		if err != nil { // in no case is it installed here: Debian would start it
			unpacked := t.TempDir() // not in dir, over which a file system is mounted
			out, err := exec.Command("/bin/sh", "-euc", `cd "$1"; apt-get -q download nginx; dpkg -x nginx_*.deb .`,
				"sh", unpacked).CombinedOutput()
			if err != nil {
				t.Skipf("no nginx is to be had: %v\n%s", err, out)
			}
			program = filepath.Join(unpacked, "usr/sbin/nginx")
		}
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "PHX_TEST_NAMESPACE="+dir, "PHX_TEST_NGINX="+program)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Errorf("%v\n%s", err, out)
		}
		return false
	}
	out, err := exec.Command("/bin/sh", "-euc", `
		mount --make-rprivate /
		ip link set lo up
		ip address add fd00::12/128 dev lo nodad
		ip address add fd00::153/128 dev lo nodad
		ip address add 10.0.0.153/32 dev lo
		mount -t tmpfs tmpfs "$1"
		for dir in etc home var usr/local; do
			name=$(echo $dir | tr / -)
			mkdir -p "$1/$name/upper" "$1/$name/work"
			mount -t overlay -o "lowerdir=/$dir,upperdir=$1/$name/upper,workdir=$1/$name/work" overlay "/$dir"
		done
		mount -t tmpfs tmpfs /run
		rm -rf /etc/nginx /etc/phx
		mkdir -p /etc/nginx/conf.d /etc/nginx/sites-enabled /etc/nginx/sites-available /etc/nginx/ssl \
			/etc/phx/nginx /var/log/nginx /var/lib/nginx /usr/local/sbin
		cp "$2" "$1/nginx"
		ln -sf "$1/nginx" /usr/local/sbin/nginx`,
		"sh", os.Getenv("PHX_TEST_NAMESPACE"), os.Getenv("PHX_TEST_NGINX")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return true
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// proxyAddress is where tests have the proxy; the gateway listens there as well,
// and the one who listens there alone is asked.
const proxyAddress = "fd00::12"

// listen is net.Listen for one of several who listen at the same port.
func listen(t *testing.T, network, address string) *net.TCPListener {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return err
	}}
	l, err := config.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

// realGateway writes what the site of the gateway needs to be loaded.
func realGateway(t *testing.T, a *authority) gateway {
	g := testGateway
	g.Fingerprint = cert.Fingerprint(a.root)
	g.Proxy = proxyAddress
	write(t, g.Root, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.root.Raw})))
	if err := os.Symlink(a.pair(t, g.names(), time.Now().Add(time.Hour)), pairLink); err != nil {
		t.Fatal(err)
	}
	return g
}

// TestConfigure: what nginx refuses, and sites of others for our names, leave
// everything as it was.
func TestConfigure(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	g := realGateway(t, newAuthority(t))
	old := anOldSite(t, g.Domain)
	const toProxy = "server { listen 80; server_name *.internal.example; location / { proxy_pass http://PROXY:80; } }\n"
	const other = "server {\n\tlisten 443 ssl;\n\tserver_name shop.example *.internal.example; " +
		"# ours\n\tssl_certificate /etc/phx/nginx/tls/gateway.crt;\n\tssl_certificate_key " +
		"/etc/phx/nginx/tls/gateway.key;\n}\n"
	for _, tt := range []struct {
		name  string
		files map[string]string // a value that starts with / is a link
		want  string            // in the error
		gone  []string
	}{
		{name: "nothing else"},
		{name: "the package's site", files: map[string]string{
			"sites-available/default": "server { listen 80 default_server; }",
			"sites-enabled/default":   "/etc/nginx/sites-available/default",
		}, gone: []string{"sites-enabled/default"}},
		{name: "the old site", files: map[string]string{
			"sites-available/gateway": old, "sites-enabled/gateway": "/etc/nginx/sites-available/gateway",
		}, gone: []string{"sites-enabled/gateway"}},
		{name: "the old site, edited", files: map[string]string{
			"sites-enabled/gateway": strings.Replace(old, "listen 80;", "listen 80 default_server;", 1),
		}, want: "disable that site"},
		{name: "an old site that leads to the proxy", files: map[string]string{
			"sites-enabled/gateway": strings.Replace(toProxy, "PROXY", "["+proxyAddress+"]", 1),
		}, gone: []string{"sites-enabled/gateway"}},
		{name: "an old site that leads elsewhere", files: map[string]string{
			"sites-enabled/gateway": strings.Replace(toProxy, "PROXY", "10.0.0.99", 1),
		}, want: "/etc/nginx/sites-enabled/gateway serves *.internal.example as well"},
		{name: "a site of one address", files: map[string]string{
			"sites-enabled/mine": strings.Replace(strings.Replace(other, "*.internal", "x", 1),
				"443", "10.0.0.153:443", 1),
		}, want: "/etc/nginx/sites-enabled/mine listens at 10.0.0.153:443, where all requests would go to it"},
		{name: "a status page for this container", files: map[string]string{
			"sites-enabled/mine": "server { listen 127.0.0.1:80; server_name mine; }"}},
		{name: "a site of the same name", files: map[string]string{"sites-enabled/mine": other},
			want: "/etc/nginx/sites-enabled/mine serves *.internal.example as well"},
		{name: "a site of a name below", files: map[string]string{"sites-enabled/mine": strings.Replace(other, "*.",
			"x.", 1)}},
		{name: "the same name at another port",
			files: map[string]string{"sites-enabled/mine": strings.Replace(other, "443", "8443", 1)}},
		{name: "another site that is broken",
			files: map[string]string{"sites-enabled/mine": "server { listen 81; no_such_word; }"},
			want:  "no_such_word"},
		{name: "a broken nginx.conf", files: map[string]string{"nginx.conf": "worker_processes many;\n" + nginxConf},
			want: "/etc/nginx/nginx.conf:1"},
		{name: "an nginx.conf without our site", files: map[string]string{"nginx.conf": strings.Replace(nginxConf,
			"include /etc/nginx/conf.d/*.conf;", "", 1)}, want: "does not include " + siteFile},
	} {
		for _, before := range []string{"", "# an older site\n"} {
			for _, dir := range []string{"conf.d", "sites-enabled", "sites-available"} {
				all, _ := filepath.Glob("/etc/nginx/" + dir + "/*")
				for _, path := range all {
					os.Remove(path)
				}
			}
			write(t, "/etc/nginx/nginx.conf", nginxConf)
			if before != "" {
				write(t, siteFile, before)
			}
			for name, content := range tt.files {
				if strings.HasPrefix(content, "/") {
					if err := os.Symlink(content, "/etc/nginx/"+name); err != nil {
						t.Fatal(err)
					}
					continue
				}
				write(t, "/etc/nginx/"+name, content)
			}
			write(t, loadedFile, "")
			s := &guest.Setup{}
			err := configure(t.Context(), s, g)
			if _, statErr := os.Stat(loadedFile); (statErr == nil) == (tt.gone != nil) {
				t.Errorf("%s: a site is taken away: %v; the reload: %v", tt.name, tt.gone != nil, statErr)
			}
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
				}
				if site, _ := os.ReadFile(siteFile); string(site) != before {
					t.Errorf("%s: refused, and the site is\n%s", tt.name, site)
				}
				for name := range tt.files {
					if _, err := os.Stat("/etc/nginx/" + name); err != nil {
						t.Errorf("%s: refused, and gone: %v", tt.name, err)
					}
				}
				if len(s.Changes) > 0 {
					t.Errorf("%s: refused, and changed: %q", tt.name, s.Changes)
				}
				continue
			}
			if err != nil || read(t, siteFile) != string(g.site()) {
				t.Errorf("%s: %v", tt.name, err)
			}
			for _, name := range tt.gone {
				if _, err := os.Lstat("/etc/nginx/" + name); err == nil {
					t.Errorf("%s: %s is still there", tt.name, name)
				}
			}
			again := &guest.Setup{}
			if err := configure(t.Context(), again, g); err != nil || len(again.Changes) > 0 {
				t.Errorf("%s: the second run: %v, %q", tt.name, err, again.Changes)
			}
			if slices.Contains(tt.gone, "sites-enabled/gateway") {
				content, ok := tt.files["sites-available/gateway"]
				if !ok {
					content = tt.files["sites-enabled/gateway"]
				}
				if !isKept(content) {
					t.Errorf("%s: not kept in %s", tt.name, replacedDir)
				}
			}
		}
	}
}

// isKept reports whether a file with this content has been moved away.
func isKept(content string) bool {
	all, _ := filepath.Glob(replacedDir + "/*")
	return slices.ContainsFunc(all, func(path string) bool {
		text, err := os.ReadFile(path)
		return err == nil && string(text) == content
	})
}

// echo is a service behind the gateway, in the place of the proxy: its
// answers are the headers of the requests.
func echo(t *testing.T, a *authority) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certificateFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	listener := tls.NewListener(listen(t, "tcp6", net.JoinHostPort(proxyAddress, "443")),
		&tls.Config{Certificates: []tls.Certificate{pair}})
	failed := map[string]*atomic.Bool{"GET": {}, "POST": {}}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/fails-once" && failed[r.Method].CompareAndSwap(false, true) {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		r.Header.Set("Host", r.Host)
		if r.Header.Get("Upgrade") != "" {
			w.Header().Set("Connection", "upgrade")
			w.Header().Set("Upgrade", r.Header.Get("Upgrade"))
			w.WriteHeader(http.StatusSwitchingProtocols)
			return
		}
		w.Header().Set("Strict-Transport-Security", "max-age=1")
		json.NewEncoder(w).Encode(r.Header)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}

// startNginx starts nginx as its unit does, with the sockets given.
func startNginx(t *testing.T) {
	t.Helper()
	var files []*os.File
	for _, address := range []string{"0.0.0.0:80", "0.0.0.0:443", "[::]:80", "[::]:443"} {
		network := "tcp4"
		if address[0] == '[' {
			network = "tcp6"
		}
		l := listen(t, network, address)
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		files = append(files, f)
	}
	cmd := exec.Command("/usr/local/sbin/nginx")
	cmd.Env, cmd.ExtraFiles = []string{"NGINX=3:4:5:6:"}, files
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	err := guest.Until(t.Context(), 10*time.Second,
		func() error { return guest.Answers(t.Context(), "http://127.0.0.1:8080/") })
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
}

// raw sends a request and returns the answer; "" when there is none.
func raw(t *testing.T, conn net.Conn, request string) string {
	t.Helper()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, strings.ReplaceAll(request, "\n", "\r\n")); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(request, "Upgrade: websocket") {
		line, _ := bufio.NewReader(conn).ReadString('\n')
		return line
	}
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

// TestGatewayServes: the site, in a real nginx, against clients that lie.
func TestGatewayServes(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	a := newAuthority(t)
	g := realGateway(t, a)
	write(t, "/etc/nginx/nginx.conf", nginxConf)
	if err := configure(t.Context(), &guest.Setup{}, g); err != nil {
		t.Fatal(err)
	}
	echo(t, a)
	startNginx(t)
	g.Addresses = []string{"10.0.0.153", "fd00::153"}
	if err := checkServing(t.Context(), g, []*x509.Certificate{newAuthority(t).root, a.root}, leafOf(t)); err != nil {
		t.Error(err)
	}
	for _, url := range []string{"http://10.0.0.153:8080/", "http://[fd00::153]:8080/"} {
		if err := guest.Answers(t.Context(), url); err != nil {
			t.Errorf("status page: %v", err)
		}
	}

	roots := x509.NewCertPool()
	roots.AddCert(a.root)
	dial := func(name string, change func(*tls.Config)) (*tls.Conn, error) {
		config := &tls.Config{ServerName: name, RootCAs: roots}
		if change != nil {
			change(config)
		}
		return tls.Dial("tcp", "127.0.0.1:443", config)
	}
	secure := func(request string) string {
		conn, err := dial("x.internal.example", nil)
		if err != nil {
			t.Fatal(err)
		}
		return raw(t, conn, request)
	}
	plain := func(request string) string {
		conn, err := net.Dial("tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		return raw(t, conn, request)
	}

	// Who changes something does so once.
	for method, want := range map[string]string{"GET": "HTTP/1.1 200 ", "POST": "HTTP/1.1 502 "} {
		got := secure(method + " /fails-once HTTP/1.1\nHost: x.internal.example\nContent-Length: 0\nConnection: " +
			"close\n\n")
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s of a service that fails once: %.40q", method, got)
		}
	}

	// Hosts.
	for host, want := range map[string]string{
		"x.internal.example":                         "https://x.internal.example/a?b=c",
		"internal.example":                           "https://internal.example/a?b=c",
		"bank.example":                               "",
		"10.0.0.153":                                 "",
		"xinternal.example":                          "",
		"bank.example?.internal.example":             "400",
		"bank.example#.internal.example":             "400",
		"bank.example\\.internal.example":            "400",
		"x@bank.example:80@x.internal.example":       "",
		"x.internal.example\nX-Forwarded-Host: bank": "https://x.internal.example/a?b=c",
	} {
		answer := plain("GET /a?b=c HTTP/1.1\nHost: " + host + "\nConnection: close\n\n")
		switch {
		case want == "" && answer != "", want == "400" && !strings.HasPrefix(answer, "HTTP/1.1 400 "),
			strings.HasPrefix(want, "https") && !strings.Contains(answer, "\r\nLocation: "+want+"\r\n"):
			t.Errorf("http, host %q: %q", host, answer)
		}
	}
	answer := plain("GET http://bank.example/ HTTP/1.1\nHost: x.internal.example\nConnection: close\n\n")
	if answer != "" {
		t.Errorf("a request for another host in the URL: %q", answer)
	}
	for _, name := range []string{"bank.example", "localhost", ""} {
		conn, err := dial(name, func(c *tls.Config) { c.InsecureSkipVerify = true })
		if err == nil {
			t.Errorf("TLS for %q: certificate of %q", name, conn.ConnectionState().PeerCertificates[0].DNSNames)
		}
	}
	if answer := secure("GET / HTTP/1.1\nHost: bank.example\nConnection: close\n\n"); answer != "" {
		t.Errorf("another host within TLS: %q", answer)
	}

	// Suites.
	for _, tt := range []struct {
		suite uint16
		good  bool
	}{
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true}, {tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, true},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, false}, {tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, false},
		{tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, false},
	} {
		_, err := dial("x.internal.example", func(c *tls.Config) {
			c.CipherSuites, c.MaxVersion = []uint16{tt.suite},
				tls.VersionTLS12
		})
		if (err == nil) != tt.good {
			t.Errorf("%s: %v", tls.CipherSuiteName(tt.suite), err)
		}
	}
	if _, err := dial("x.internal.example", func(c *tls.Config) {
		c.MinVersion, c.MaxVersion = tls.VersionTLS10,
			tls.VersionTLS11
	}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	if conn, err := dial("x.internal.example", nil); err != nil || conn.ConnectionState().Version != tls.VersionTLS13 {
		t.Errorf("TLS 1.3: %v", err)
	}

	// Headers.
	request := "GET / HTTP/1.1\nHost: x.internal.example\nConnection: close, X-Real-Ip\nX_Forwarded_For: " +
		"6.6.6.6\nX-Kept: yes\nX-Forwarded-For: 6.6.6.6\nX-Real-IP: 6.6.6.6\nX-Forwarded-Host: " +
		"bank.example\nX-Forwarded-Port: 6\nX-Forwarded-Proto: http\nUpgrade: h2c\nHTTP2-Settings: " +
		"AAMAAABkAARAAAAAAAIAAAAA\n"
	for _, name := range blanked {
		request += name + ": 6.6.6.6\n"
	}
	answer = secure(request + "\n")
	head, body, _ := strings.Cut(answer, "\r\n\r\n")
	head += "\r\n"
	if n := strings.Count(strings.ToLower(head), "strict-transport-security"); n != 1 ||
		!strings.Contains(head, "Strict-Transport-Security: max-age=63072000\r\n") {
		t.Errorf("HSTS: %q", head)
	}
	if strings.Contains(head, "nginx/") {
		t.Errorf("the version of nginx is told: %q", head)
	}
	start, end := strings.IndexByte(body, '{'), strings.LastIndexByte(body, '}')
	var headers http.Header
	if start < 0 || json.Unmarshal([]byte(body[start:max(start, end)+1]), &headers) != nil {
		t.Fatalf("answer %q", answer)
	}
	want := http.Header{
		"Host": {"x.internal.example"}, "X-Real-Ip": {"127.0.0.1"}, "X-Forwarded-For": {"127.0.0.1"},
		"X-Forwarded-Host": {"x.internal.example"},
		"X-Forwarded-Port": {"443"}, "X-Forwarded-Proto": {"https"}, "Connection": {"close"}, "X-Kept": {"yes"},
	}
	for name, values := range headers {
		if !slices.Equal(values, want[name]) {
			t.Errorf("the service got %s: %q", name, values)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("the service lacks %v", want)
	}

	// The same for a client of IPv6.
	conn, err := tls.Dial("tcp", "[fd00::153]:443", &tls.Config{ServerName: "a.b.internal.example", RootCAs: roots,
		InsecureSkipVerify: true}) // the certificate is for names of one label
	if err != nil {
		t.Fatal(err)
	}
	answer = raw(t, conn, "GET / HTTP/1.1\nHost: a.b.internal.example\nConnection: close\n\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 502 ") {
		t.Errorf("a name of two labels that the proxy has no certificate for: %q", answer)
	}
	conn, err = tls.Dial("tcp", "[fd00::153]:443", &tls.Config{ServerName: "x.internal.example", RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	answer = raw(t, conn, "GET / HTTP/1.1\nHost: x.internal.example\nConnection: close\n\n")
	if !strings.Contains(answer, `"X-Real-Ip":["fd00::153"]`) {
		t.Errorf("the service got another client's address: %q", answer)
	}

	// Upgrades.
	line := secure("GET / HTTP/1.1\nHost: x.internal.example\nConnection: Upgrade\nUpgrade: websocket\n\n")
	if !strings.HasPrefix(line, "HTTP/1.1 101 ") {
		t.Errorf("WebSocket: %q", line)
	}
	for _, protocol := range []string{"h2c", "websocket, h2c", "h2c, websocket", "TLS/1.0", "websocketx"} {
		answer := secure("GET / HTTP/1.1\nHost: x.internal.example\nConnection: " +
			"Upgrade, HTTP2-Settings, close\nUpgrade: " + protocol + "\nHTTP2-Settings: AAMAAABk\n\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 200 ") || strings.Contains(answer, "Upgrade") ||
			strings.Contains(answer, "Http2-Settings") {
			t.Errorf("upgrade to %s: %q", protocol, answer)
		}
	}
}

// TestBrokenByOthers: what others break in nginx's configuration is noticed in
// a run that has nothing to change, with its place, and nginx goes on.
func TestBrokenByOthers(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	a := newAuthority(t)
	g := realGateway(t, a)
	write(t, "/etc/nginx/nginx.conf", nginxConf)
	if err := configure(t.Context(), &guest.Setup{}, g); err != nil {
		t.Fatal(err)
	}
	startNginx(t)
	write(t, "/etc/nginx/sites-available/includes", "include /etc/nginx/snippet;\n")
	for path, text := range map[string]string{
		"/etc/nginx/conf.d/x.conf":       "# fine\nno_such_word;\n",
		"/etc/nginx/sites-enabled/x":     "# fine\nserver { listen 81; server_name x.example\n",
		"/etc/nginx/snippet":             "# fine\nlog_format;\n",
		"/etc/nginx/nginx.conf":          strings.Replace(nginxConf, "\n", "\nworker_processes many;\n", 1),
		"/etc/nginx/conf.d/missing.conf": "# fine\ninclude /etc/nginx/no-such-file;\n",
	} {
		before, readErr := os.ReadFile(path)
		write(t, path, text)
		if path == "/etc/nginx/snippet" {
			if err := os.Symlink("/etc/nginx/sites-available/includes",
				"/etc/nginx/sites-enabled/includes"); err != nil {
				t.Fatal(err)
			}
		}
		s := &guest.Setup{}
		err := configure(t.Context(), s, g)
		if err == nil || !strings.Contains(err.Error(), path+":") || len(s.Changes) > 0 {
			t.Errorf("%s: %v, %q", path, err, s.Changes)
		}
		if err := checkServing(t.Context(), g, []*x509.Certificate{a.root}, leafOf(t)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if readErr == nil {
			write(t, path, string(before))
		} else {
			os.Remove(path)
		}
		os.Remove("/etc/nginx/sites-enabled/includes")
		if err := configure(t.Context(), s, g); err != nil || len(s.Changes) > 0 {
			t.Errorf("%s, mended: %v, %q", path, err, s.Changes)
		}
	}
}

// TestPairWithoutLink: a good pair in a directory that is in the place of the
// link, as a backup may leave it, is served until it is due.
func TestPairWithoutLink(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	g := realGateway(t, newAuthority(t))
	dir, err := os.Readlink(pairLink)
	if err == nil {
		err = errors.Join(os.Remove(pairLink), os.CopyFS(pairLink, os.DirFS(dir)))
	}
	if err != nil {
		t.Fatal(err)
	}
	write(t, "/usr/local/sbin/systemctl", "#!/bin/sh\n")
	if err := os.Chmod("/usr/local/sbin/systemctl", 0o755); err != nil {
		t.Fatal(err)
	}
	for i, text := range units(false, true) {
		if _, err := new(guest.Setup).WriteFile(unitFiles[i], text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := serve(t.Context(), &guest.Setup{}, g); err != nil {
		t.Error(err)
	}
}

// TestRenewWithoutPair: the timer cannot get a certificate without one, says
// who can, and leaves nginx as it is.
func TestRenewWithoutPair(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	g := realGateway(t, newAuthority(t))
	if err := new(guest.Setup).WriteState(gatewayFile, g); err != nil {
		t.Fatal(err)
	}
	write(t, "/usr/local/sbin/systemctl", "#!/bin/sh\necho \"$*\" >>/run/told\n")
	if err := os.Chmod("/usr/local/sbin/systemctl", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, spoil := range []func() error{
		func() error { return os.Truncate(keyFile, 10) },
		func() error { return os.Truncate(certificateFile, 0) },
		func() error { return os.Remove(keyFile) },
		func() error { return errors.Join(os.Remove(pairLink), os.Symlink("pair.gone", pairLink)) },
		func() error { return os.Remove(pairLink) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		os.Remove("/run/phx-nginx.lock") // which a run holds until its process ends
		app := &cli.App{Action: renewCommand}
		err := app.RunContext(t.Context(), []string{"phx-nginx"})
		if err == nil || !strings.Contains(err.Error(), certificateFile) ||
			!strings.Contains(err.Error(), "run phx on the host for a new one") {
			t.Errorf("error %v", err)
		}
		if told, err := os.ReadFile("/run/told"); err == nil {
			t.Errorf("systemctl was told %q", told)
		}
	}
}

func leafOf(t *testing.T) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certificateFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func TestParseSites(t *testing.T) {
	const dump = `# configuration file /etc/nginx/nginx.conf:
events { }
http { # server {
	upstream u { server 10.0.0.1:80; }
	map $a $b { default "}"; }
	include x;
}
stream { include stream.d/*.conf; server { listen [::1]:443; } }
# configuration file /etc/nginx/sites-enabled/a:
server
{
	listen 80 ; listen [::]:443
		ssl;
	server_name "a.example"
		'~^(?<x>.{1,3})\.example$' ${host}; # server_name c.example;
	location / { if ($x) { return 200 'server { listen 443; }'; } }
}
server { server_name b.example; }
server { listen unix:/run/x; listen 10.0.0.1:8443; server_name c.example; }
# configuration file /etc/nginx/conf.d/phoenix.conf:
server { listen 443; server_name ours.example; }
# configuration file /etc/nginx/stream.d/b.conf:
server { listen 443; proxy_pass 10.0.0.1:443; }
`
	sites, found := parseSites(dump)
	var got []string
	for _, s := range sites {
		got = append(got, fmt.Sprint(s.file, s.listens, s.names, s.stream))
	}
	want := []string{
		"/etc/nginx/nginx.conf[[::1]:443] [] true",
		"/etc/nginx/sites-enabled/a[80 [::]:443] [a.example ~^(?<x>.{1,3})\\.example$ ${host}] false",
		"/etc/nginx/sites-enabled/a[] [b.example] false",
		"/etc/nginx/sites-enabled/a[unix:/run/x 10.0.0.1:8443] [c.example] false",
		"/etc/nginx/stream.d/b.conf[443] [] true",
	}
	if !found || !slices.Equal(got, want) {
		t.Errorf("found %v\n%q, want\n%q", found, got, want)
	}
	if _, found := parseSites(dump[:300]); found {
		t.Error("our site is found where it is not")
	}
}

// anOldSite returns a site that counts as one of the scripts before phx.
func anOldSite(t *testing.T, domain string) string {
	const text = "server {\n\tlisten 80;\n\tserver_name _;\n\treturn 301 https://$host$request_uri;\n}\nserver " +
		"{\n\tlisten 81;\n\tserver_name portainer.DOMAIN;\n}\n"
	sum := sha256.Sum256([]byte(text))
	before := oldSites
	oldSites += hex.EncodeToString(sum[:]) + "\n"
	t.Cleanup(func() { oldSites = before })
	return strings.ReplaceAll(text, "DOMAIN", domain)
}

// An old site is taken away only as it was installed, or when phx's site does all
// that it does.
func TestOldSite(t *testing.T) {
	old := anOldSite(t, "internal.example")
	const (
		toHTTPS = "server { listen 80; listen [::]:80; server_name *.internal.example;\n" +
			"\treturn 301 https://$host$request_uri; }\n"
		toProxy = "server { listen 443 ssl http2; server_name internal.example *.internal.example; # all\n" +
			"\tssl_certificate /x.crt; ssl_certificate_key /x.key;\n\tclient_max_body_size 10G;\n" +
			"\tlocation / { proxy_pass http://10.0.0.12:80; proxy_set_header Host $host; " +
			"proxy_set_header X-Real-IP $remote_addr; proxy_http_version 1.1; } }\n"
		byName = "upstream traefik { server 10.0.0.12:443; keepalive 2; }\n" +
			"server { listen 443 ssl; server_name x.internal.example; location / { proxy_pass https://traefik; } }\n"
		stream = "map $ssl_preread_server_name $way { default t; }\nupstream t { server 10.0.0.12:443; }\n" +
			"server { listen 443; ssl_preread on; proxy_pass $way; proxy_timeout 1h; }\n"
	)
	elsewhere := strings.Replace(stream, "default t;", "default t; x.example 10.0.0.13:443;", 1)
	change := func(text, old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("no %q in %q", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	for name, tt := range map[string]struct {
		content string
		want    bool
	}{
		"as installed":             {old, true},
		"for another domain":       {strings.ReplaceAll(old, "internal.example", "other.example"), false},
		"edited":                   {old + "# mine\n", false},
		"empty":                    {"", false},
		"all to the proxy":         {toHTTPS + toProxy, true},
		"a name to the proxy":      {toHTTPS + byName, true},
		"a service of its own":     {toHTTPS + change(toProxy, "10.0.0.12", "10.0.0.99"), false},
		"an upstream of its own":   {change(byName, "10.0.0.12", "10.0.0.99"), false},
		"another domain":           {change(toProxy, "*.internal", "shop"), false},
		"another port":             {change(toProxy, "443", "8443"), false},
		"one address":              {change(toProxy, "443", "10.0.0.153:443"), false},
		"another redirection":      {change(toHTTPS, "https://$host", "https://shop.example"), false},
		"a location of its own":    {change(toProxy, "location /", "location /x { } location /"), false},
		"files":                    {change(toProxy, "location /", "root /srv; location /"), false},
		"for some clients":         {change(toProxy, "location / {", "location / { allow 10.0.0.0/8;"), false},
		"with clients' keys":       {change(toProxy, "location /", "ssl_verify_client on; location /"), false},
		"with a password":          {change(toProxy, "X-Real-IP", "Authorization"), false},
		"not ended":                {strings.TrimSuffix(strings.TrimSpace(toProxy), "}"), false},
		"connections to the proxy": {stream, true},
		"connections elsewhere":    {elsewhere, false},
	} {
		if got := isOld([]byte(tt.content), testGateway); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A stream server cannot have the gateway's ports beside it: nginx would not
// start, and nginx -t does not say so.
func TestStreamAtOurPorts(t *testing.T) {
	const module = "ngx_stream_module.so"
	if os.Getenv("PHX_TEST_STREAM") == "" {
		dir := t.TempDir()
		if out, err := exec.Command("/bin/sh", "-euc", `cd "$1"; apt-get -q download libnginx-mod-stream
			dpkg -x libnginx-mod-stream_*.deb .`, "sh", dir).CombinedOutput(); err != nil {
			t.Skipf("no stream module of nginx is to be had: %v\n%s", err, out)
		}
		t.Setenv("PHX_TEST_STREAM", filepath.Join(dir, "usr/lib/nginx/modules", module))
	}
	if !inNamespace(t) {
		return
	}
	g := realGateway(t, newAuthority(t))
	write(t, "/etc/nginx/nginx.conf", "load_module "+os.Getenv("PHX_TEST_STREAM")+";\n"+nginxConf+
		"stream { include stream.d/*.conf; }\n")
	path := oldFiles[1]
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		target string
		kept   bool
		want   string
	}{
		"the old one, to the proxy": {"[" + proxyAddress + "]:443", false, ""},
		"to something else":         {"10.0.0.99:443", true, path + " has a stream server at port 443"},
	} {
		content := "server { listen 443; proxy_pass " + tt.target + "; }\n"
		write(t, path, content)
		s := &guest.Setup{}
		err := configure(t.Context(), s, g)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if _, err := os.Stat(path); (err == nil) != tt.kept || !tt.kept && !isKept(content) {
			t.Errorf("%s: it should be kept: %v: %v, changes %q", name, tt.kept, err, s.Changes)
		}
	}
}

// Sites whose patterns count less than ours lose our names, which is said.
func TestLosesTo(t *testing.T) {
	for pattern, want := range map[string]bool{
		`~^(?<x>.+)\.internal\.example$`: true, "~^shop\\.": false, "~(": false, "internal.*": true, "inter.*": false,
		"x.internal.*": false, "shop.example": false,
	} {
		if losesTo(pattern, testGateway) != want {
			t.Errorf("%s: want %v", pattern, want)
		}
	}
}

// Sockets that were opened otherwise, as by phx before it knew IPv6, are opened
// again, once.
func TestHoldPorts(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	if err := os.MkdirAll(unitDir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, "/usr/local/sbin/systemctl", `#!/bin/sh
for unit; do :; done
case $1 in
is-enabled) echo enabled ;;
is-active) [ -e "/run/active.$unit" ] ;;
start) : >"/run/active.$unit"; echo "$*" >>/run/told ;;
stop) rm -f /run/active.*; echo "$*" >>/run/told ;;
esac
`)
	if err := os.Chmod("/usr/local/sbin/systemctl", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, "/run/active."+socketUnit, "")
	for _, tt := range []struct {
		name   string
		before func() error
		told   string
	}{
		{"from before", func() error { return nil }, "stop nginx.service nginx.socket\nstart nginx.socket\n"},
		{"as they are", func() error { return nil }, ""},
		{"closed", func() error { return os.Remove("/run/active." + socketUnit) },
			"stop nginx.service nginx.socket\nstart nginx.socket\n"},
		{"without IPv6", func() error { return os.WriteFile(unitDir+socketUnit, []byte(socketText(false)), 0o644) },
			"stop nginx.service nginx.socket\nstart nginx.socket\n"},
	} {
		if tt.name == "from before" {
			write(t, unitDir+socketUnit, socketText(true))
		}
		if err := errors.Join(tt.before(), os.RemoveAll("/run/told")); err != nil {
			t.Fatal(err)
		}
		s := &guest.Setup{}
		err := holdPorts(t.Context(), s)
		told, _ := os.ReadFile("/run/told")
		if err != nil || string(told) != tt.told || len(s.Changes) != strings.Count(tt.told, "start") {
			t.Errorf("%s: %v, told %q, changes %q", tt.name, err, told, s.Changes)
		}
	}
}

func TestSplitListen(t *testing.T) {
	for address, want := range map[string][2]string{
		"80": {"", "80"}, "*:443": {"*", "443"}, "[::]:443": {"[::]", "443"}, "10.0.0.1": {"10.0.0.1", "80"},
		"[fd00::1]": {"[fd00::1]", "80"}, "10.0.0.1:81": {"10.0.0.1", "81"}, "unix:/run/x": {"unix:/run/x", ""},
		"localhost": {"localhost", "80"},
	} {
		if host, port := splitListen(address); host != want[0] || port != want[1] {
			t.Errorf("%s: %q, %q", address, host, port)
		}
	}
}

// TestCertifyWithoutCA: while the CA is down, a certificate that is still
// good is kept, and the failure says what waits.
func TestCertifyWithoutCA(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	a := newAuthority(t)
	g := realGateway(t, a)
	write(t, guest.StepProgram, "#!/bin/sh\necho connection refused >&2\nexit 1\n")
	if err := os.Chmod(guest.StepProgram, 0o755); err != nil {
		t.Fatal(err)
	}
	down := errors.New("the CA's container is down")
	ask := func(string, any) error { return down }
	roots := []*x509.Certificate{a.root}
	certify := func(roots []*x509.Certificate, ask func(string, any) error) (*guest.Setup, *x509.Certificate, error) {
		s := &guest.Setup{}
		leaf, err := ensureCertificate(context.Background(), s, g, roots, ask)
		return s, leaf, err
	}

	if s, leaf, err := certify(roots, ask); err != nil || leaf == nil || len(s.Changes) > 0 {
		t.Errorf("a good certificate: %v, %q", err, s.Changes)
	}
	former := []*x509.Certificate{newAuthority(t).root, a.root}
	if _, leaf, err := certify(former, nil); err != nil || leaf == nil {
		t.Errorf("the timer, while roots are exchanged: %v", err)
	}
	if _, leaf, err := certify(former, ask); !errors.Is(err, down) || errors.Is(err, errReissue) || leaf == nil {
		t.Errorf("a run, while roots are exchanged: %v", err)
	}
	if err := os.Chmod(keyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	s, leaf, err := certify(roots, ask)
	if !errors.Is(err, errExposed) || !strings.Contains(err.Error(), "connection refused") || leaf == nil ||
		len(s.Changes) != 1 {
		t.Errorf("a key that was readable: %v, %q", err, s.Changes)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("it still is: %v, %v", info.Mode(), err)
	}
	if s, _, err := certify(roots, ask); !errors.Is(err, errExposed) || len(s.Changes) > 0 {
		t.Errorf("the next run: %v, %q", err, s.Changes)
	}
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	if _, leaf, err := certify(roots, ask); !errors.Is(err, errReissue) || leaf != nil {
		t.Errorf("a lost key: %v", err)
	}
}
