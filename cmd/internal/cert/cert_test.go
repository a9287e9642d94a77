package cert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "RSA":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "EC":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

type authority struct {
	*x509.Certificate
	key crypto.Signer
}

var start = time.Now().Add(-time.Hour)

// issue makes a certificate signed by parent, or by itself.
func issue(t testing.TB, kind, name string, ca bool, parent *authority, change ...func(*x509.Certificate)) *authority {
	t.Helper()
	key := newKey(t, kind)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: start, NotAfter: start.Add(24 * time.Hour),
		IsCA: ca, BasicConstraintsValid: true,
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign
	}
	for _, f := range change {
		f(template)
	}
	if parent == nil {
		parent = &authority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.Certificate, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{c, key}
}

func pemOf(certs ...*authority) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
}

func crlf(data []byte) []byte { return bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n")) }

func join(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		case []byte:
			b.Write(p)
		}
	}
	return b.Bytes()
}

func TestParse(t *testing.T) {
	root := issue(t, "EC", "root", true, nil)
	other := issue(t, "EC", "other root", true, nil)
	intermediate := issue(t, "EC", "intermediate", true, root)
	leaf := issue(t, "EC", "leaf", false, intermediate)
	selfSigned := issue(t, "EC", "leaf", false, nil)
	expired := issue(t, "EC", "expired", true, nil, func(c *x509.Certificate) { c.NotAfter = start.Add(time.Second) })
	future := issue(t, "EC", "future", true, nil, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })
	// Another CA has given itself the root's name.
	impostor := issue(t, "EC", "root", true, &authority{root.Certificate, root.key})
	forged := &authority{Certificate: &x509.Certificate{Raw: bytes.Clone(root.Raw)}}
	forged.Raw[len(forged.Raw)-1] ^= 1

	p := pemOf(root)
	withHeaders := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Raw,
		Headers: map[string]string{"a": "b"}})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("key")})

	tests := []struct {
		name           string
		data           []byte
		parse, single  error
		parseIsNotRoot bool
	}{
		{"PEM", p, nil, nil, false},
		{"PEM with CR LF", crlf(p), nil, nil, false},
		{"PEM with text around", join("Root:\n  CN = root\n", p, "end\n"), nil, nil, false},
		{"PEM with text that begins like DER", join("0: root\n", p), nil, nil, false},
		{"PEM without newline at the end", bytes.TrimSpace(p), nil, nil, false},
		{"DER", root.Raw, nil, nil, false},
		{"bundle with one root", pemOf(leaf, intermediate, root), nil, ErrSeveral, false},
		{"bundle with one root, CR LF", crlf(pemOf(intermediate, root)), nil, ErrSeveral, false},
		{"DER bundle", join(intermediate.Raw, root.Raw), nil, ErrSeveral, false},
		{"certificate with headers before", join(withHeaders, p), ErrDamaged, ErrDamaged, false},
		{"key before", join(key, p), nil, ErrNotAlone, false},
		{"expired", pemOf(expired), nil, ErrExpired, true},
		{"not yet valid", pemOf(future), nil, ErrNotYetValid, true},

		{"nothing", nil, ErrEmpty, ErrEmpty, false},
		{"blanks", []byte(" \r\n\n"), ErrEmpty, ErrEmpty, false},
		{"text", []byte("hello\n"), ErrNone, ErrNone, false},
		{"key", key, ErrNone, ErrNone, false},
		{"only a certificate with headers", withHeaders, ErrDamaged, ErrDamaged, false},
		{"truncated PEM", p[:len(p)/2], ErrDamaged, ErrDamaged, false},
		{"PEM without its end", p[:len(p)-10], ErrDamaged, ErrDamaged, false},
		{"truncated after a whole one", join(p, p[:len(p)/2]), ErrDamaged, ErrDamaged, false},
		{"truncated before a whole one", join(p[:len(p)/2], "\n", p), ErrDamaged, ErrDamaged, false},
		{"truncated before a key", join(p[:len(p)/2], "\n", key), ErrDamaged, ErrDamaged, false},
		{"truncated DER", root.Raw[:len(root.Raw)/2], ErrDamaged, ErrDamaged, false},
		{"DER and a newline", join(root.Raw, "\n"), ErrDamaged, ErrDamaged, false},
		{"PEM of something else", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), ErrDamaged,
			ErrDamaged, false},
		{"leaf", pemOf(leaf), ErrLeaf, ErrLeaf, false},
		{"self-signed leaf", pemOf(selfSigned), ErrLeaf, ErrLeaf, false},
		{"intermediate", pemOf(intermediate), ErrNotSelfSigned, ErrNotSelfSigned, false},
		{"self-issued, signed by another key", pemOf(impostor), ErrSignature, ErrSignature, false},
		{"changed signature", pemOf(forged), ErrSignature, ErrSignature, false},
		{"bundle without a root", pemOf(leaf, intermediate), ErrNoRoot, ErrSeveral, false},
		{"bundle with two roots", pemOf(root, intermediate, other), ErrSeveral, ErrSeveral, false},
		{"the same root twice", pemOf(root, root), ErrSeveral, ErrSeveral, false},
	}
	for _, tt := range tests {
		c, err := ParseRoot(tt.data)
		if !errors.Is(err, tt.parse) || tt.parse == nil && err != nil {
			t.Errorf("%s: ParseRoot: %v, want %v", tt.name, err, tt.parse)
		}
		if (c != nil) != (tt.parse == nil) || c != nil && !tt.parseIsNotRoot && !c.Equal(root.Certificate) {
			t.Errorf("%s: ParseRoot returned the wrong certificate", tt.name)
		}
		c, err = ParseSingleRoot(tt.data)
		if !errors.Is(err, tt.single) || tt.single == nil && err != nil {
			t.Errorf("%s: ParseSingleRoot: %v, want %v", tt.name, err, tt.single)
		}
		if (c != nil) != (tt.single == nil) {
			t.Errorf("%s: ParseSingleRoot returned %v with %v", tt.name, c, err)
		}
	}
}

func TestFingerprint(t *testing.T) {
	for _, kind := range []string{"RSA", "EC", "Ed25519"} {
		root := issue(t, kind, "root", true, nil)
		if _, err := ParseSingleRoot(pemOf(root)); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		name := filepath.Join(t.TempDir(), "root.crt")
		if err := os.WriteFile(name, pemOf(root), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("openssl", "x509", "-in", name, "-noout", "-fingerprint", "-sha256").CombinedOutput()
		if err != nil {
			t.Fatalf("openssl: %v: %s", err, out)
		}
		_, want, _ := strings.Cut(strings.TrimSpace(string(out)), "=")
		if got := Fingerprint(root.Certificate); got != strings.ToLower(strings.ReplaceAll(want, ":", "")) {
			t.Errorf("%s: %s, openssl says %s", kind, got, want)
		}
	}
}

func TestReadPinned(t *testing.T) {
	root := issue(t, "EC", "root", true, nil)
	name := filepath.Join(t.TempDir(), "root.crt")
	if _, err := ReadPinned(name, Fingerprint(root.Certificate)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if err := os.WriteFile(name, pemOf(root), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := ReadPinned(name, Fingerprint(root.Certificate)); err != nil || len(c) != 1 ||
		!c[0].Equal(root.Certificate) {
		t.Errorf("right: %v", err)
	}
	if _, err := ReadPinned(name, strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "another CA") {
		t.Errorf("wrong fingerprint: %v", err)
	}
}

func FuzzParseRoot(f *testing.F) {
	root := issue(f, "Ed25519", "root", true, nil)
	f.Add(pemOf(root))
	f.Add(crlf(pemOf(root, issue(f, "Ed25519", "leaf", false, root))))
	f.Add(root.Raw)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseRoot(data)
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if s, err := ParseSingleRoot(data); err == nil && !s.Equal(c) {
			t.Fatal("ParseSingleRoot takes another certificate than ParseRoot")
		}
	})
}

// FuzzReadPinned: what is accepted is the pinned roots, in their order, and
// nothing else.
func FuzzReadPinned(f *testing.F) {
	// The same in each of the processes that share the inputs.
	fixed := func(seed byte) *authority {
		key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: string(rune(seed))},
			NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			f.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			f.Fatal(err)
		}
		return &authority{c, key}
	}
	one, two := fixed('1'), fixed('2')
	pins := []string{Fingerprint(one.Certificate), Fingerprint(two.Certificate)}
	f.Add(pemOf(one))
	f.Add(pemOf(one, two))
	f.Add(pemOf(two, one))
	f.Add(pemOf(one, one))
	f.Add(crlf(pemOf(one, issue(f, "Ed25519", "leaf", false, one))))
	f.Add(join("# one\n", pemOf(one), "two\n", pemOf(two)))
	f.Add(bytes.Repeat([]byte("#"), MaxFile+1))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"))
	path := filepath.Join(f.TempDir(), "root.crt")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= len(pins); n++ {
			roots, err := ReadPinned(path, pins[:n]...)
			if err != nil {
				if roots != nil {
					t.Fatalf("%v, and %d roots", err, len(roots))
				}
				continue
			}
			if len(data) > MaxFile || len(roots) != n || !roots[0].Equal(one.Certificate) || n == 2 &&
				!roots[1].Equal(two.Certificate) {
				t.Fatalf("%d bytes and %d pins: %d roots", len(data), n, len(roots))
			}
		}
	})
}
