package guest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
)

// authority is a CA of the test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
		NotAfter: time.Now().Add(time.Hour),
	}
	key, c := issue(t, template, nil)
	return authority{c, key}
}

// issue makes a certificate of ca, or nil for one that has signed itself.
func issue(t *testing.T, template *x509.Certificate, ca *authority) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.BasicConstraintsValid = big.NewInt(1), true
	template.NotBefore = time.Now().Add(-48 * time.Hour)
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, c
}

// What is shown for each name is told, also where it does not verify, and why.
func TestCertificates(t *testing.T) {
	t.Parallel()
	root, other := newAuthority(t, "Root"), newAuthority(t, "Other")
	tomorrow, yesterday := time.Now().Add(24*time.Hour), time.Now().Add(-24*time.Hour)
	shown := map[string]*tls.Certificate{}
	for name, tt := range map[string]struct {
		ca       authority
		names    []string
		notAfter time.Time
		usage    x509.ExtKeyUsage
	}{
		"good.example":    {root, []string{"good.example"}, tomorrow, x509.ExtKeyUsageServerAuth},
		"old.example":     {root, []string{"old.example"}, yesterday, x509.ExtKeyUsageServerAuth},
		"foreign.example": {other, []string{"foreign.example"}, tomorrow, x509.ExtKeyUsageServerAuth},
		"wrong.example":   {root, []string{"another.example"}, tomorrow, x509.ExtKeyUsageServerAuth},
		"client.example":  {root, []string{"client.example"}, tomorrow, x509.ExtKeyUsageClientAuth},
	} {
		key, c := issue(t, &x509.Certificate{
			DNSNames: tt.names, NotAfter: tt.notAfter, ExtKeyUsage: []x509.ExtKeyUsage{tt.usage},
		}, &tt.ca)
		shown[name] = &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return shown[hello.ServerName], nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = conn.(*tls.Conn).Handshake(); conn.Close() }()
		}
	}()
	want := []struct{ name, issuer, err string }{
		{"good.example", "Root", ""},
		{"old.example", "Root", "expired"},
		{"foreign.example", "Other", "unknown authority"},
		{"wrong.example", "Root", "another.example, not wrong.example"},
		{"client.example", "Root", "incompatible key usage"},
		{"none.example", "", "remote error: tls: "},
	}
	var names []string
	for _, w := range want {
		names = append(names, w.name)
	}
	got := Certificates(context.Background(), listener.Addr().String(), names, root.cert)
	for i, w := range want {
		c := got[i]
		if c.Name != w.name || c.Issuer != w.issuer || (c.Error == "") != (w.err == "") ||
			!strings.Contains(c.Error, w.err) {
			t.Errorf("%+v, want %+v", c, w)
		}
		has := shown[w.name]
		if has != nil && (c.SHA256 != cert.Fingerprint(has.Leaf) || !c.NotAfter.Equal(has.Leaf.NotAfter)) {
			t.Errorf("%+v is not %s", c, cert.Fingerprint(has.Leaf))
		}
	}
	// While a root is rotated, both count.
	both := Certificates(context.Background(), listener.Addr().String(), names[:3], root.cert, other.cert)
	if both[0].Error != "" || both[2].Error != "" || both[1].Error == "" {
		t.Errorf("with both roots: %+v", both)
	}
}

// Names that nobody answers for, however many, end with their context.
func TestCertificatesOfASilentServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithCancel(context.Background())
	accepted := make(chan net.Conn, 1000)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- conn // silent for good
			cancel()
		}
	}()
	got := Certificates(ctx, listener.Addr().String(), make([]string, 500))
	for _, c := range got {
		if c.Error == "" {
			t.Fatalf("%+v", c)
		}
	}
	if n := len(accepted); n > 8 {
		t.Errorf("%d connections at once", n)
	}
}

// A service that is about to listen is waited for, and no other.
func TestConnects(t *testing.T) {
	t.Parallel()
	first, err := net.Listen("tcp", "127.77.3.1:0") // where no other test takes the port meanwhile
	if err != nil {
		t.Fatal(err)
	}
	address := first.Addr().String()
	if err := Connects(t.Context(), address, time.Minute); err != nil {
		t.Error(err)
	}
	first.Close()
	err = Connects(t.Context(), address, 200*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nothing listens: %v", err)
	}
	listening := make(chan net.Listener, 1)
	time.AfterFunc(300*time.Millisecond, func() {
		second, err := net.Listen("tcp", address)
		if err != nil {
			t.Error(err)
			second = first
		}
		listening <- second
	})
	if err := Connects(t.Context(), address, time.Minute); err != nil {
		t.Error(err)
	}
	(<-listening).Close()
}

// What a service shows has names of any length, in what is wrong with it as well.
func TestLongWordsOfACertificate(t *testing.T) {
	leaf := &x509.Certificate{Issuer: pkix.Name{CommonName: strings.Repeat("x", 1<<18)}}
	c := CertificateOf("a.example", leaf, errors.New(strings.Repeat("x", 1<<18)))
	if len(c.Issuer)+len(c.Error) > 1<<10 {
		t.Errorf("the issuer has %d bytes, the error %d", len(c.Issuer), len(c.Error))
	}
}
