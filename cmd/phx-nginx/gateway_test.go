package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/smallstep/cli-utils/token"
	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/pve"
	"thinkheads.ai/phx/cmd/internal/service"
)

var testGateway = gateway{
	Trust: guest.Trust{
		Root:        "/etc/nginx/ssl/phoenix_ca.crt",
		Fingerprint: strings.Repeat("ab", 32),
		CAURL:       "https://10.0.0.10:9000",
	},
	Domain:     "internal.example",
	Proxy:      "10.0.0.12",
	StatusPort: 8080,
	StatusHost: "gateway.internal.example",
}

func TestGatewayIsChecked(t *testing.T) {
	if err := testGateway.check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*gateway){
		"domain":      func(g *gateway) { g.Domain = "x; include /etc/passwd" },
		"wildcard":    func(g *gateway) { g.Domain = "*.example" },
		"option":      func(g *gateway) { g.Domain = "-x.example" },
		"proxy":       func(g *gateway) { g.Proxy = "proxy.example" },
		"address":     func(g *gateway) { g.Addresses = []string{"10.0.0.153", "10.0.0.153/24"} },
		"root":        func(g *gateway) { g.Root = "/etc/ssl/x; y" },
		"relative":    func(g *gateway) { g.Root = "x.crt" },
		"name":        func(g *gateway) { g.Names = []string{"a.b.internal.example", "a.b.example"} },
		"name's form": func(g *gateway) { g.Names = []string{"a b.internal.example"} },
		"status":      func(g *gateway) { g.StatusPort = 443 },
		"status host": func(g *gateway) { g.StatusHost = "gateway.example" },
		"fingerprint": func(g *gateway) { g.Fingerprint = "abc" },
		"apt proxy":   func(g *gateway) { g.AptProxy = "http://u:p@cache:3142" },
		"URL":         func(g *gateway) { g.CAURL = "http://10.0.0.10:9000" },
		"URL path":    func(g *gateway) { g.CAURL = "https://10.0.0.10:9000/x" },
	} {
		g := testGateway
		spoil(&g)
		if g.check() == nil {
			t.Errorf("%s: %+v is accepted", name, g)
		}
	}
}

func TestSite(t *testing.T) {
	site := string(testGateway.site())
	for _, line := range []string{
		"server_name internal.example *.internal.example;",
		"server 10.0.0.12:443 max_fails=0;",
		"proxy_ssl_verify              on;",
		"proxy_ssl_trusted_certificate /etc/nginx/ssl/phoenix_ca.crt;",
		"proxy_ssl_session_reuse       off;",
		"ssl_certificate_key /etc/phx/nginx/tls/gateway.key;",
		"proxy_set_header Upgrade           $phoenix_upgrade;",
		"listen 8080;",
		"server_name gateway.internal.example;",
	} {
		if !strings.Contains(site, line) {
			t.Errorf("the site lacks %q", line)
		}
	}
	for _, listen := range []string{
		"80 default_server", "443 ssl http2 default_server", "80", "443 ssl http2", "8080",
	} {
		line := "    listen [::]:" + listen + ";\n"
		with, without := string(testGateway.siteWith(true)), string(testGateway.siteWith(false))
		if !strings.Contains(with, line) || strings.Contains(without, line) ||
			strings.Count(with, "listen "+listen) != strings.Count(without, "listen "+listen) {
			t.Errorf("%q: with IPv6\n%s\nwithout\n%s", line, with, without)
		}
	}
	g := testGateway
	g.StatusPort = 0
	if strings.Contains(string(g.site()), "8080") {
		t.Error("a status page without a port")
	}
}

// What the gateway is asked follows from the plan.
func TestRequestFor(t *testing.T) {
	target := func() *service.Target {
		return &service.Target{
			CTID: 101, Domain: "internal.example",
			Container: &config.Container{
				Interfaces: []config.Interface{{
					Name: "eth0", IPv6: config.Addressing{Prefix: netip.MustParsePrefix("fd00::153/64")},
				}},
				TraefikService: &config.TraefikService{Name: "status", Port: 8080, Scheme: "http"},
			},
			CA:       &config.Place{CTID: 103, IP: "10.0.0.10"},
			Proxy:    &config.Place{CTID: 102, IP: "10.0.0.12", Also: []string{"fd00::12"}, MAC: "02:00:00:00:02:00"},
			Gateway:  &config.Place{CTID: 101, IP: "fd00::153"},
			Services: []config.Service{{Host: "a.b.internal.example"}, {Host: "c.internal.example"}},
			Trust:    testGateway.Trust,
		}
	}
	want := gateway{
		Trust: testGateway.Trust, Domain: "internal.example", Names: []string{"a.b.internal.example"},
		Proxy:      "fd00::12",
		StatusPort: 8080, StatusHost: "status.internal.example", Interface: "eth0",
		Neighbours: []guest.Neighbour{{IP: "10.0.0.12", MAC: "02:00:00:00:02:00"}},
	}
	if got, err := requestFor(target()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	// At its own ports the gateway has the page by its name alone.
	for _, port := range []int{80, 443} {
		t1 := target()
		t1.Container.TraefikService.Port = port
		want.StatusPort = 0
		if got, err := requestFor(t1); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%d: %+v, %v, want %+v", port, got, err, want)
		}
	}
	several := target()
	several.Gateway.Also = []string{"10.0.0.153"}
	all := []string{"fd00::153", "10.0.0.153"}
	if got, err := requestFor(several); err != nil || !slices.Equal(got.Addresses, all) {
		t.Errorf("%+v, %v", got, err)
	}
	alone := target()
	alone.Proxy = nil
	if _, err := requestFor(alone); err == nil || !strings.Contains(err.Error(), config.ProxyScript) {
		t.Errorf("without a proxy: %v", err)
	}
}

// A certificate for *.DOMAIN does not cover names of several labels.
func TestDeepNames(t *testing.T) {
	target := &service.Target{Domain: "internal.example",
		Dashboard: &config.DashboardRoute{Host: "board.proxy.internal.example"}}
	for _, host := range []string{"x.internal.example", "qwen2.5-7b.internal.example", "a.b.c.internal.example",
		"a.b.c.internal.example", "a.b.example", "internal.example", "qwen2.5-7b.xinternal.example"} {
		target.Services = append(target.Services, config.Service{Host: host})
	}
	want := []string{"a.b.c.internal.example", "board.proxy.internal.example", "qwen2.5-7b.internal.example"}
	if got := deepNames(target); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// ott makes a one-time token as step-ca's provisioner does; change spoils it.
func ott(t testing.TB, change func(*token.Claims)) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	claims, err := token.NewClaims(
		token.WithSubject("internal.example"), token.WithSANS([]string{"*.internal.example", "internal.example"}),
		token.WithSHA(testGateway.Fingerprint), token.WithAudience("https://10.0.0.10:9000/1.0/sign"),
		token.WithIssuer("phoenix"), token.WithValidity(now, now.Add(5*time.Minute)))
	if err != nil {
		t.Fatal(err)
	}
	change(claims)
	s, err := claims.Sign("ES256", key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestToken(t *testing.T) {
	now := time.Now()
	good := ott(t, func(*token.Claims) {})
	if err := checkToken(good, testGateway, now); err != nil {
		t.Error(err)
	}
	for name, tt := range map[string]struct {
		token string
		now   time.Time
		want  string
	}{
		"not a token": {"x.y.z", now, "not a token"},
		"empty":       {"", now, "not a token"},
		"another root": {ott(t, func(c *token.Claims) { c.Set("sha", strings.Repeat("cd", 32)) }), now,
			"root certificate"},
		"another CA": {ott(t, func(c *token.Claims) { c.Audience = []string{"https://10.0.0.66:9000/1.0/sign"} }),
			now, "audience"},
		"not to sign": {ott(t, func(c *token.Claims) { c.Audience = []string{"https://10.0.0.10:9000/1.0/revoke"} }),
			now, "audience"},
		"more names": {ott(t, func(c *token.Claims) {
			c.Set("sans", []string{"*.internal.example", "internal.example", "bank.example"})
		}), now, "names"},
		"fewer names":    {ott(t, func(c *token.Claims) { c.Set("sans", []string{"internal.example"}) }), now, "names"},
		"other subject":  {ott(t, func(c *token.Claims) { c.Subject = "bank.example" }), now, "it is for"},
		"expired":        {good, now.Add(6 * time.Minute), "expired"},
		"not yet valid":  {good, now.Add(-3 * time.Minute), "longer than"},
		"valid too long": {good, now.Add(-time.Hour), "longer than"},
	} {
		err := checkToken(tt.token, testGateway, tt.now)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && tt.token != "" && strings.Contains(err.Error(), tt.token) {
			t.Errorf("%s: the error shows the token", name)
		}
	}
}

// A token that was printed before pct failed is good for minutes: it must not
// be in the error, which goes to stderr and into an event.
func TestTokenIsInNoError(t *testing.T) {
	secret := ott(t, func(*token.Claims) {})
	path := filepath.Join(t.TempDir(), "pct")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho "+secret+"\necho 'lost connection' >&2\nexit 1\n"),
		0o755); err != nil {
		t.Fatal(err)
	}
	_, err := fetchToken(t.Context(), &pve.Host{PCT: path}, 103, testGateway)
	if err == nil || !strings.Contains(err.Error(), "lost connection") || strings.Contains(err.Error(), secret) {
		t.Errorf("error %v", err)
	}
}

// A container that does not give a token, and takes no notice of SIGTERM, is not
// waited for.
func TestTokenThatDoesNotCome(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pct")
	script := "#!/bin/sh\ntrap '' TERM; setsid sleep 3600 & echo $! >" + dir + "/pid; while :; do sleep 0.1; done\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := fetchToken(t.Context(), &pve.Host{PCT: path, Timeout: 2 * time.Second}, 103, testGateway)
	if err == nil || !strings.Contains(err.Error(), "not done after 2s") {
		t.Errorf("error %v", err)
	}
	text, err := os.ReadFile(dir + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	var left int
	if fmt.Sscan(string(text), &left); left > 1 {
		syscall.Kill(left, syscall.SIGKILL)
	}
}

// authority is a CA with a root and an intermediate.
type authority struct {
	root, intermediate *x509.Certificate
	key                *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	rootKey, root := issue(t, "root", nil, nil, true, nil, time.Now().Add(time.Hour))
	key, intermediate := issue(t, "intermediate", root, rootKey, true, nil, time.Now().Add(time.Hour))
	return &authority{root, intermediate, key}
}

func issue(t *testing.T, name string, parent *x509.Certificate, signer *ecdsa.PrivateKey, isCA bool, names []string,
	notAfter time.Time) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, IsCA: isCA, BasicConstraintsValid: true,
	}
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, c
}

// pair writes a pair as step does: leaf and intermediate, and the key.
func (a *authority) pair(t *testing.T, names []string, notAfter time.Time) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key, leaf := issue(t, names[0], a.intermediate, a.key, false, names, notAfter)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	chain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.intermediate.Raw})...)
	for file, data := range map[string][]byte{"gateway.crt": chain,
		"gateway.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestInspect(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	names := testGateway.names()
	good := a.pair(t, names, time.Now().Add(time.Hour))
	now := time.Now()
	root := []*x509.Certificate{a.root}
	if leaf, err := inspect(good, names, root, now); err != nil || leaf.Subject.CommonName != names[0] {
		t.Errorf("a good certificate: %v", err)
	}
	// Of its two hours, 80 minutes are over in 21 minutes.
	if _, err := inspect(good, names, root, now.Add(21*time.Minute)); !errors.Is(err, errDue) {
		t.Errorf("two thirds of its life over: %v", err)
	}
	// While one root takes the place of the other, both count.
	if _, err := inspect(good, names, []*x509.Certificate{a.root, other.root}, now); err != nil {
		t.Errorf("of the root that will be replaced: %v", err)
	}
	if leaf, err := inspect(good, names, []*x509.Certificate{other.root, a.root}, now); !errors.Is(err, errFormer) ||
		leaf == nil {
		t.Errorf("of the root that is being replaced: %v", err)
	}
	mismatched := a.pair(t, names, time.Now().Add(time.Hour))
	key, _ := os.ReadFile(filepath.Join(good, "gateway.key"))
	os.WriteFile(filepath.Join(mismatched, "gateway.key"), key, 0o600)
	for name, tt := range map[string]struct {
		dir      string
		root     *x509.Certificate
		now      time.Time
		want     string
		loadable bool // by nginx
	}{
		"missing":       {t.TempDir(), a.root, now, "there is none", false},
		"expired":       {good, a.root, now.Add(2 * time.Hour), "expired", true},
		"not yet valid": {good, a.root, now.Add(-2 * time.Hour), "not yet valid", true},
		"another root":  {good, other.root, now, "unknown authority", true},
		"too few names": {a.pair(t, names[:1], time.Now().Add(time.Hour)), a.root, now, "it is for", true},
		"more names": {a.pair(t, append([]string{"x.example"}, names...), time.Now().Add(time.Hour)), a.root, now,
			"it is for", true},
		"not a pair": {mismatched, a.root, now, "private key does not match", false},
	} {
		leaf, err := inspect(tt.dir, names, []*x509.Certificate{tt.root}, tt.now)
		if !errors.Is(err, errReissue) || !strings.Contains(err.Error(), tt.want) || (leaf != nil) != tt.loadable {
			t.Errorf("%s: leaf %v, %v", name, leaf != nil, err)
		}
	}
}

// TestExposedKey: a key that others could read is replaced, also when it is
// hidden again.
func TestExposedKey(t *testing.T) {
	a := newAuthority(t)
	names, root := testGateway.names(), []*x509.Certificate{a.root}
	for name, expose := range map[string]func(dir string) error{
		"key":       func(dir string) error { return os.Chmod(filepath.Join(dir, "gateway.key"), 0o644) },
		"directory": func(dir string) error { return os.Chmod(dir, 0o755) },
		"owner": func(dir string) error {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			return os.Chown(filepath.Join(dir, "gateway.key"), 65534, 65534)
		},
	} {
		dir := a.pair(t, names, time.Now().Add(time.Hour))
		link := filepath.Join(t.TempDir(), "tls")
		if err := errors.Join(os.Symlink(dir, link), expose(dir)); err != nil {
			t.Fatal(err)
		}
		if leaf, err := inspect(link, names, root, time.Now()); !errors.Is(err, errExposed) || leaf == nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range []bool{true, false} {
			if changed, err := conceal(link); err != nil || changed != want {
				t.Errorf("%s: concealed: %v, %v", name, changed, err)
			}
		}
		if info, err := os.Stat(filepath.Join(dir, "gateway.key")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: concealed: %v", name, err)
		}
		if _, err := inspect(link, names, root, time.Now()); !errors.Is(err, errExposed) {
			t.Errorf("%s: a key that others may know counts as good: %v", name, err)
		}
	}
}

// TestApplyAsLastTime: options and variables win over what the last run was
// asked, and that over the defaults.
func TestApplyAsLastTime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gateway.json")
	if _, err := guest.ReadState[gateway](file); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	const saved = `{"domain": "internal.example", "proxy": "10.0.0.12", "status_port": 8080,
		"root": "/srv/ca.crt", "fingerprint": "abab", "ca_url": "https://10.0.0.10:9000"}`
	if err := os.WriteFile(file, []byte(saved), 0o600); err != nil {
		t.Fatal(err)
	}
	last, err := guest.ReadState[gateway](file)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PHX_DOMAIN", "other.example")
	gatewayWith := func(trust guest.Trust, proxy string, statusPort int) gateway {
		return gateway{Trust: trust, Domain: "other.example", Proxy: proxy, StatusPort: statusPort}
	}
	carried := gateway{Trust: guest.Trust{Root: guest.CarriedRoot, Carried: "PEM"}, Proxy: "10.0.0.12"}
	deep := gateway{Domain: "internal.example", Proxy: "10.0.0.12", StatusHost: "gateway.internal.example",
		Names: []string{"a.b.internal.example"}}
	for _, tt := range []struct {
		last gateway
		args []string
		want gateway
	}{
		{last, nil, gatewayWith(guest.Trust{Root: "/srv/ca.crt", Fingerprint: "abab", CAURL: "https://10.0.0.10:9000"},
			"10.0.0.12", 8080)},
		{last, []string{"--status-port", "0", "--fingerprint", "CDCD", "--root", "/x"},
			gatewayWith(guest.Trust{Root: "/x", Fingerprint: "cdcd", CAURL: "https://10.0.0.10:9000"}, "10.0.0.12", 0)},
		{deep, nil, gateway{Domain: "other.example", Proxy: "10.0.0.12", StatusHost: "gateway.other.example",
			Names: []string{"a.b.other.example"}, Trust: guest.Trust{Root: "/etc/nginx/ssl/phoenix_ca.crt"}}},
		{carried, nil, gatewayWith(carried.Trust, "10.0.0.12", 0)},
		{carried, []string{"--root", "/x"}, gatewayWith(guest.Trust{Root: "/x"}, "10.0.0.12", 0)},
		{gateway{}, []string{"--proxy", "10.0.0.1"}, gatewayWith(guest.Trust{Root: "/etc/nginx/ssl/phoenix_ca.crt"},
			"10.0.0.1", 0)},
	} {
		app := &cli.App{Flags: gatewayFlags(), Action: func(c *cli.Context) error {
			if g, err := gatewayOf(c, tt.last); err != nil || !reflect.DeepEqual(g, tt.want) {
				t.Errorf("%v: %+v, %v, want %+v", tt.args, g, err, tt.want)
			}
			return nil
		}}
		if err := app.Run(append([]string{"phx-nginx"}, tt.args...)); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(file, []byte(saved[:20]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.ReadState[gateway](file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a broken file: %v", err)
	}
}
