package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"thinkheads.ai/phx/cmd/internal/guest"
)

// authority is a root, and what it signs with.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:  x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
	}
	a := authority{}
	a.cert, a.key = sign(t, template, a)
	return a
}

func sign(t *testing.T, template *x509.Certificate, by authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if by.cert == nil {
		by = authority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// issue makes a certificate, and returns it and its key as PEM.
func (a authority) issue(t *testing.T, host string, notAfter time.Time, addresses ...net.IP) (certPEM, keyPEM []byte) {
	t.Helper()
	cert, key := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{host}, IPAddresses: addresses,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: notAfter,
	}, a)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// entry is what Traefik writes of a certificate.
func (a authority) entry(t *testing.T, host string, notAfter time.Time) map[string]any {
	t.Helper()
	cert, key := a.issue(t, host, notAfter)
	return map[string]any{"domain": map[string]any{"main": host}, "certificate": cert, "key": key, "Store": "default"}
}

func storageText(t *testing.T, entries ...map[string]any) []byte {
	t.Helper()
	text, err := json.Marshal(map[string]any{resolver: map[string]any{"Account": map[string]any{"Email": ""},
		"Certificates": entries}})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Traefik renews by the clock alone: what is valid and of another root has to
// be found here, and nothing else, for all is renewed then.
func TestForeign(t *testing.T) {
	old, present := newAuthority(t), newAuthority(t)
	soon := time.Now().Add(time.Hour)
	path := filepath.Join(t.TempDir(), "acme.json")
	text := storageText(t,
		old.entry(t, "old.example", soon),
		present.entry(t, "present.example", soon),
		old.entry(t, "expired.example", time.Now().Add(-time.Hour)),
		old.entry(t, "gone.example", soon),
		map[string]any{"domain": map[string]any{"main": "damaged.example"}, "certificate": []byte("x"),
			"key": []byte("y")},
	)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	hosts := []string{"old.example", "present.example", "expired.example", "damaged.example", "new.example"}
	if got := foreign(path, hosts, present.cert); !slices.Equal(got, []string{"old.example"}) {
		t.Errorf("to be replaced: %q", got)
	}
	if got := foreign(path+".none", hosts, present.cert); got != nil {
		t.Errorf("of no storage: %q", got)
	}
}

// A host that is not served any more does not hold up the renewal of the others.
func TestDropOthers(t *testing.T) {
	a := newAuthority(t)
	later := time.Now().Add(time.Hour)
	path := filepath.Join(t.TempDir(), "acme.json")
	if err := dropOthers(path, nil); err != nil {
		t.Errorf("without a storage: %v", err)
	}
	text := storageText(t, a.entry(t, "a.example", later), a.entry(t, "b.example", later),
		a.entry(t, "c.d.example", later))
	text = append([]byte(`{"other":{"Certificates":[{"domain":{"main":"x.example"}}]},`), bytes.TrimPrefix(
		bytes.TrimSpace(text), []byte("{"))...)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, hosts := range [][]string{
		{"a.example", "b.example", "c.d.example"}, {"new.example", "c.d.example", "a.example"},
	} {
		before, err := parseStorage(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := dropOthers(path, hosts); err != nil {
			t.Fatal(err)
		}
		after, err := readStorage(path)
		if err != nil {
			t.Fatal(err)
		}
		before = slices.DeleteFunc(before, func(c stored) bool { return !slices.Contains(hosts, c.host) })
		if len(after) != len(before) {
			t.Errorf("%q: %d certificates, want %d", hosts, len(after), len(before))
		}
		for i, c := range after {
			if c.host != before[i].host || !c.pair.Leaf.Equal(before[i].pair.Leaf) {
				t.Errorf("%q: certificate %d is of %s", hosts, i, c.host)
			}
		}
		now, err := os.ReadFile(path)
		if info, statErr := os.Stat(path); err != nil || statErr != nil || info.Mode() != 0o600 ||
			!bytes.Contains(now, []byte("x.example")) || len(hosts) == len(before) && !bytes.Equal(now, text) {
			t.Errorf("%q: %v, %v, the storage is\n%s", hosts, err, statErr, now)
		}
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dropOthers(path, nil); err == nil {
		t.Error("a broken storage is none of those that can be read")
	}
}

func TestMendStorage(t *testing.T) {
	a := newAuthority(t)
	good := storageText(t, a.entry(t, "a.example", time.Now().Add(time.Hour)))
	pins := []string{strings.Repeat("ab", 32), strings.Repeat("cd", 32)}
	const this, other = "acme-abababababab.json", "acme-cdcdcdcdcdcd.json"
	write := func(name string, text []byte, mode fs.FileMode) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name     string
		prepare  []func(*testing.T, string)
		rotation bool
		want     string // what this is afterwards: "good", "empty" or "none"
		said     string // of the changes
	}{
		{name: "good", prepare: []func(*testing.T, string){write(this, good, 0o600)}, want: "good"},
		{name: "none", want: "none"},
		{name: "open to all", prepare: []func(*testing.T, string){write(this, good, 0o644)}, want: "good",
			said: "mode of"},
		{name: "broken", prepare: []func(*testing.T, string){write(this, good[:99], 0o600)}, want: "none",
			said: "aside"},
		{name: "broken twice", prepare: []func(*testing.T, string){write(this, good[:99], 0o600),
			func(t *testing.T, dir string) {
				if err := os.MkdirAll(filepath.Join(dir, this+".broken/x"), 0o755); err != nil {
					t.Fatal(err)
				}
			}}, want: "none", said: "aside"},
		{name: "empty", prepare: []func(*testing.T, string){write(this, nil, 0o600)}, want: "empty"},
		{name: "directory", prepare: []func(*testing.T, string){func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, this), 0o755); err != nil {
				t.Fatal(err)
			}
		}}, want: "none", said: "aside"},
		{name: "FIFO", prepare: []func(*testing.T, string){func(t *testing.T, dir string) {
			if err := syscall.Mkfifo(filepath.Join(dir, this), 0o600); err != nil {
				t.Fatal(err)
			}
		}}, want: "none", said: "aside"},
		{name: "link", prepare: []func(*testing.T, string){write("elsewhere", good, 0o644),
			func(t *testing.T, dir string) {
				if err := os.Symlink("elsewhere", filepath.Join(dir, this)); err != nil {
					t.Fatal(err)
				}
			}}, want: "none", said: "aside"},
		{name: "second name", prepare: []func(*testing.T, string){write("elsewhere", good, 0o644),
			func(t *testing.T, dir string) {
				if err := os.Link(filepath.Join(dir, "elsewhere"), filepath.Join(dir, this)); err != nil {
					t.Fatal(err)
				}
			}}, want: "none", said: "aside"},
		{name: "rotation", prepare: []func(*testing.T, string){write(other, good, 0o600)}, rotation: true, want: "good",
			said: "carried"},
		{name: "rotation, empty", prepare: []func(*testing.T, string){write(other, good, 0o600),
			write(this, nil, 0o600)}, rotation: true, want: "good", said: "carried"},
		{name: "rotation, broken", prepare: []func(*testing.T, string){write(other, good, 0o600),
			write(this, []byte("{"), 0o600)}, rotation: true, want: "good", said: "carried"},
		{name: "rotation, other broken", prepare: []func(*testing.T, string){write(other, []byte("{"), 0o600)},
			rotation: true, want: "none"},
		{name: "rotation, done", prepare: []func(*testing.T, string){write(other, []byte(`{"x":{}}`), 0o600),
			write(this, good, 0o600)}, rotation: true, want: "good"},
		{name: "no rotation", prepare: []func(*testing.T, string){write(other, good, 0o600)}, want: "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, prepare := range tt.prepare {
				prepare(t, dir)
			}
			carried := ""
			if tt.rotation {
				carried = filepath.Join(dir, other)
			}
			path := filepath.Join(dir, this)
			for run := range 2 {
				s := &guest.Setup{}
				if err := mendStorage(s, path, carried, os.Getuid(), os.Getgid()); err != nil {
					t.Fatal(err)
				}
				said := strings.Join(s.Changes, "\n")
				if run == 0 && (!strings.Contains(said, tt.said) || tt.said == "" && said != "") {
					t.Errorf("changes %q", said)
				}
				if run == 1 && said != "" {
					t.Errorf("a second run changes %q", said)
				}
			}
			text, err := os.ReadFile(path)
			state := "good"
			switch {
			case err != nil:
				state = "none"
			case len(text) == 0:
				state = "empty"
			case string(text) != string(good):
				state = "other"
			}
			if state != tt.want {
				t.Errorf("the storage is %s, not %s", state, tt.want)
			}
			if info, err := os.Lstat(path); err == nil && info.Mode() != 0o600 {
				t.Errorf("mode %v", info.Mode())
			}
			if info, err := os.Stat(filepath.Join(dir, "elsewhere")); err == nil && info.Mode() != 0o644 {
				t.Errorf("what the link led to was changed: %v", info.Mode())
			}
		})
	}

	dir := t.TempDir()
	for _, name := range []string{this, this + ".broken", other, "acme-efefefefefef.json", "acme-efefefefefef.json.old",
		"acme.json", "notes"} {
		write(name, good, 0o600)(t, dir)
	}
	s := &guest.Setup{}
	if err := dropStorages(s, dir, pins); err != nil || len(s.Changes) != 2 {
		t.Errorf("%q, %v", s.Changes, err)
	}
	if err := dropStorages(s, dir, pins[:1]); err != nil || len(s.Changes) != 3 {
		t.Errorf("%q, %v", s.Changes, err)
	}
	var left []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if !slices.Equal(left, []string{this, this + ".broken", "acme.json", "notes"}) {
		t.Errorf("left: %q", left)
	}
}
