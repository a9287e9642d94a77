package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.step.sm/crypto/pemutil"
	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/flock"
)

// Store is the host's state of the CA, for root alone: which root is trusted,
// and of roots that phx has made the keys. SHA256.crt, SHA256.key and
// SHA256.password belong to the root with this fingerprint, so that changing
// from one root to another is one change of pin.json.
//
// The cluster file system of Proxmox VE keeps it: plain files, replaced by
// rename, nothing else.
type Store struct {
	Dir string

	// keys are those that have been decrypted, by what their files hold:
	// decrypting is made slow, and a run may need the same key several times.
	keys map[encryptedKey]crypto.Signer
}

type encryptedKey struct{ pem, password string }

// Pin is which root is trusted.
type Pin struct {
	Primary string `json:"primary"`           // SHA-256 of the root that the CA issues from
	Also    string `json:"also,omitempty"`    // of a second one that is trusted while a rotation is under way
	Step    string `json:"step,omitempty"`    // of the rotation under way: trust, certificates; "" when there is none
	Dropped string `json:"dropped,omitempty"` // the root that the last rotation has replaced
}

// Pins returns the fingerprints of the roots that are trusted, that of the CA
// first.
func (p Pin) Pins() []string {
	if p.Also == "" {
		return []string{p.Primary}
	}
	return []string{p.Primary, p.Also}
}

// Steps of a rotation.
const (
	StepTrust        = "trust"
	StepCertificates = "certificates"
	StepDrop         = "drop"
)

// OpenStore opens the directory dir, makes it if need be, and waits for others
// who work on it. They have to wait until done is called.
func OpenStore(ctx context.Context, dir string) (store *Store, done func(), err error) {
	old := syscall.Umask(0o077)
	err = os.MkdirAll(dir, 0o700)
	syscall.Umask(old)
	if err != nil {
		return nil, nil, err
	}
	if done, err = flock.AcquireDirectory(ctx, dir, time.Minute); err != nil {
		return nil, nil, err
	}
	return &Store{dir, map[encryptedKey]crypto.Signer{}}, done, nil
}

// Pin returns what is pinned, nil when nothing is yet.
func (s *Store) Pin() (*Pin, error) {
	path := filepath.Join(s.Dir, "pin.json")
	data, err := cert.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var p Pin
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s: damaged: %w: bring the file back, or remove it to pin the CA's root anew", path, err)
	}
	for _, sum := range []string{p.Primary, p.Also, p.Dropped} {
		if sum != "" && !cert.IsFingerprint(sum) || p.Primary == "" {
			return nil, fmt.Errorf("%s: not the fingerprints of roots: bring the file back, or remove it to pin the CA's root anew", path)
		}
	}
	if p.Step != "" && p.Step != StepTrust && p.Step != StepCertificates || (p.Step == "") != (p.Also == "") {
		return nil, fmt.Errorf("%s: %q is no step of a rotation", path, p.Step)
	}
	return &p, nil
}

// SetPin replaces what is pinned. Its roots must be in the store.
func (s *Store) SetPin(p Pin) error {
	for _, sum := range p.Pins() {
		if _, err := s.Root(sum); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return s.write("pin.json", append(data, '\n'))
}

// Root returns the certificate of a root.
func (s *Store) Root(sum string) (*x509.Certificate, error) {
	path := filepath.Join(s.Dir, sum+".crt")
	data, err := cert.ReadFile(path)
	if err != nil {
		return nil, err
	}
	root, err := cert.ParseRoot(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if have := cert.Fingerprint(root); have != sum {
		return nil, fmt.Errorf("%s: has the root %s", path, have)
	}
	return root, nil
}

// Keep keeps the certificate of a root.
func (s *Store) Keep(root *x509.Certificate) error {
	sum := cert.Fingerprint(root)
	if have, err := s.Root(sum); err == nil && have.Equal(root) {
		return nil
	}
	return s.write(sum+".crt", cert.Encode(root))
}

// NewRoot makes a root. Its key and the key's password are there before its
// certificate: what a run that was killed has left is of no use, and is
// removed.
func (s *Store) NewRoot() (*x509.Certificate, error) {
	s.sweep()
	root, key, err := newRoot(time.Now())
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	random := make([]byte, 32)
	rand.Read(random)
	password := hex.EncodeToString(random)
	block, err := pemutil.EncryptPKCS8PrivateKey(rand.Reader, der, []byte(password), x509.PEMCipherAES256)
	if err != nil {
		return nil, err
	}
	sum := cert.Fingerprint(root)
	if err := s.write(sum+".password", []byte(password+"\n")); err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(block)
	if err := s.write(sum+".key", text); err != nil {
		return nil, err
	}
	s.keys[encryptedKey{string(text), password}] = key
	return root, s.Keep(root)
}

// sweep removes keys without a certificate, and files that were being written.
func (s *Store) sweep() {
	entries, _ := os.ReadDir(s.Dir)
	for _, e := range entries {
		sum, kind, _ := strings.Cut(e.Name(), ".")
		_, err := os.Stat(filepath.Join(s.Dir, sum+".crt"))
		orphan := (kind == "key" || kind == "password") && cert.IsFingerprint(sum) && errors.Is(err, fs.ErrNotExist)
		if orphan || strings.HasPrefix(e.Name(), ".") {
			os.Remove(filepath.Join(s.Dir, e.Name()))
		}
	}
}

// Signer returns the key of a root. The error is an [io/fs.ErrNotExist] when
// this host does not have it.
func (s *Store) Signer(sum string) (crypto.Signer, error) {
	root, err := s.Root(sum)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.Dir, sum+".key")
	data, err := cert.ReadFile(path)
	if err != nil {
		return nil, err
	}
	password, err := cert.ReadFile(filepath.Join(s.Dir, sum+".password"))
	if err != nil {
		return nil, err
	}
	encrypted := encryptedKey{string(data), strings.TrimSpace(string(password))}
	signer, ok := s.keys[encrypted]
	if !ok {
		key, err := pemutil.Parse(data, pemutil.WithPassword([]byte(encrypted.password)))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if signer, ok = key.(crypto.Signer); ok {
			s.keys[encrypted] = signer
		}
	}
	public, comparable := root.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !comparable || !public.Equal(signer.Public()) {
		return nil, fmt.Errorf("%s: not the key of its certificate", path)
	}
	return signer, nil
}

// Remove removes a root and its key.
func (s *Store) Remove(sum string) error {
	for _, kind := range []string{".key", ".password", ".crt"} {
		if err := os.Remove(filepath.Join(s.Dir, sum+kind)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return atomicfile.SyncDirectory(s.Dir)
}

// write replaces a file.
func (s *Store) write(name string, data []byte) error {
	return atomicfile.Write(filepath.Join(s.Dir, name), data, 0o600)
}
