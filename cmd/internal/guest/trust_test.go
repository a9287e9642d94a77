package guest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
)

func newRoot(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// A root that comes with the request is written only when it is the pinned one,
// is right again when somebody has changed its file, and goes when it is mounted.
func TestCarriedRoot(t *testing.T) {
	privateMounts(t, "/etc", "/run")
	one, two := newRoot(t), newRoot(t)
	both := Trust{Root: CarriedRoot, Fingerprint: cert.Fingerprint(one), Also: cert.Fingerprint(two),
		Carried: string(cert.Encode(one, two))}
	alone := Trust{Root: CarriedRoot, Fingerprint: cert.Fingerprint(two), Carried: string(cert.Encode(two))}
	mounted := Trust{Root: "/etc/root.pem", Fingerprint: cert.Fingerprint(two)}
	write(t, mounted.Root, alone.Carried)
	for _, tt := range []struct {
		name    string
		trust   Trust
		spoil   func() error
		changes string
		want    string // in the file
	}{
		{"the first time", both, nil, "wrote " + CarriedRoot, both.Carried},
		{"a second time", both, nil, "", both.Carried},
		{"damaged", both, func() error { return os.WriteFile(CarriedRoot, []byte("x"), 0o644) },
			"wrote " + CarriedRoot, both.Carried},
		{"of another mode", both, func() error { return os.Chmod(CarriedRoot, 0o666) },
			"wrote " + CarriedRoot, both.Carried},
		{"one root dropped", alone, nil, "wrote " + CarriedRoot, alone.Carried},
		{"mounted", mounted, nil, "removed " + CarriedRoot, ""},
		{"mounted as before", mounted, nil, "", ""},
		{"carried again", alone, nil, "wrote " + CarriedRoot, alone.Carried},
	} {
		if tt.spoil != nil {
			if err := tt.spoil(); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.RemoveAll("/run/test.lock"); err != nil { // held until the process ends
			t.Fatal(err)
		}
		s := &Setup{}
		roots, err := s.Begin(t.Context(), "test", tt.trust)
		if err == nil {
			err = s.DropCarried(tt.trust)
		}
		if err != nil || strings.Join(s.Changes, "\n") != tt.changes ||
			cert.Fingerprint(roots[0]) != tt.trust.Fingerprint {
			t.Errorf("%s: %v, %q", tt.name, err, s.Changes)
		}
		text, err := os.ReadFile(CarriedRoot)
		if string(text) != tt.want || tt.want == "" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the file is %q, %v", tt.name, text, err)
		}
	}
	for name, spoil := range map[string]func(*Trust){
		"another root":   func(t *Trust) { t.Carried = string(cert.Encode(one)) },
		"more than one":  func(t *Trust) { t.Carried = both.Carried },
		"something else": func(t *Trust) { t.Carried = "x" },
	} {
		bad := alone
		spoil(&bad)
		if _, err := (&Setup{}).Begin(t.Context(), "test", bad); err == nil ||
			!strings.HasPrefix(err.Error(), "root certificate in the request") {
			t.Errorf("%s: %v", name, err)
		}
		if text, err := os.ReadFile(CarriedRoot); err != nil || string(text) != alone.Carried {
			t.Errorf("%s: the file is %q, %v", name, text, err)
		}
	}
	elsewhere := alone
	elsewhere.Root = "/etc/passwd"
	if elsewhere.Check() == nil {
		t.Error("a root that comes with the request may go to any file")
	}
}
