package cahost

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
	"slices"
	"strings"
	"time"

	"go.step.sm/crypto/pemutil"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/pve"
)

// Store is the host's state of the CA, for root alone: which root is trusted,
// and of roots that phx has made the keys. SHA256.crt, SHA256.key and
// SHA256.password belong to the root with this fingerprint, so that changing
// from one root to another is one change of pin.json.
//
// There may be one for a host at a time, see [OpenStore].
type Store struct {
	dir pve.State

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

// pinFile is the file that says which root is trusted.
const pinFile = "pin.json"

func stateOf(host *pve.Host) pve.State { return host.State("ca") }

// OpenStore opens the store of a host, makes it if need be, and waits for others
// who work on it. They have to wait until done is called.
func OpenStore(ctx context.Context, host *pve.Host) (store *Store, done func(), err error) {
	dir := stateOf(host)
	if done, err = dir.Lock(ctx); err != nil {
		return nil, nil, err
	}
	return &Store{dir, map[encryptedKey]crypto.Signer{}}, done, nil
}

// ReadPin returns what is pinned on a host, nil when nothing is yet.
func ReadPin(host *pve.Host) (*Pin, error) { return (&Store{dir: stateOf(host)}).Pin() }

// Pin returns what is pinned, nil when nothing is yet.
func (s *Store) Pin() (*Pin, error) {
	data, err := s.dir.Read(pinFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	path := s.dir.Path(pinFile)
	const wayOut = "bring the file back, or remove it to pin the CA's root again"
	var p Pin
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s: damaged: %w: %s", path, err, wayOut)
	}
	for _, sum := range []string{p.Primary, p.Also, p.Dropped} {
		if sum != "" && !cert.IsFingerprint(sum) || p.Primary == "" {
			return nil, fmt.Errorf("%s: not the fingerprints of roots: %s", path, wayOut)
		}
	}
	if p.Step != "" && p.Step != StepTrust && p.Step != StepCertificates || (p.Step == "") != (p.Also == "") {
		return nil, fmt.Errorf("%s: %q is no step of a rotation", path, p.Step)
	}
	return &p, nil
}

// PinnedRoots returns the root certificates that are pinned on a host, that of the
// CA first; nil when nothing is pinned yet.
func PinnedRoots(host *pve.Host) ([]*x509.Certificate, error) {
	s := &Store{dir: stateOf(host)}
	pin, err := s.Pin()
	if err != nil || pin == nil {
		return nil, err
	}
	return s.roots(*pin)
}

// SetPin replaces what is pinned. Its roots must be in the store.
func (s *Store) SetPin(p Pin) error {
	if _, err := s.roots(p); err != nil {
		return err
	}
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return s.dir.Write(pinFile, append(data, '\n'))
}

// Root returns the certificate of a root.
func (s *Store) Root(sum string) (*x509.Certificate, error) {
	path := s.dir.Path(sum + ".crt")
	data, err := s.dir.Read(sum + ".crt")
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

// roots returns the certificates of a pin's roots, in its order.
func (s *Store) roots(p Pin) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for _, sum := range p.Pins() {
		root, err := s.Root(sum)
		if err != nil {
			return nil, err
		}
		roots = append(roots, root)
	}
	return roots, nil
}

// Keep keeps the certificate of a root.
func (s *Store) Keep(root *x509.Certificate) error {
	sum := cert.Fingerprint(root)
	if have, err := s.Root(sum); err == nil && have.Equal(root) {
		return nil
	}
	return s.dir.Write(sum+".crt", cert.Encode(root))
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
	if err := s.dir.Write(sum+".password", []byte(password+"\n")); err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(block)
	if err := s.dir.Write(sum+".key", text); err != nil {
		return nil, err
	}
	s.keys[encryptedKey{string(text), password}] = key
	return root, s.Keep(root)
}

// sweep removes keys without a certificate, and files that were being written.
func (s *Store) sweep() {
	names, _ := s.dir.List()
	var left []string
	for _, name := range names {
		sum, kind, _ := strings.Cut(name, ".")
		orphan := (kind == "key" || kind == "password") && cert.IsFingerprint(sum) &&
			!slices.Contains(names, sum+".crt")
		if orphan || strings.HasPrefix(name, ".") {
			left = append(left, name)
		}
	}
	for _, name := range left {
		s.dir.Remove(name) // another one may go, even if this one does not
	}
}

// HasKey reports whether this host has the key of a root. Whether it can be used, only
// [Store.Signer] tells: to decrypt it takes a tenth of a second.
func (s *Store) HasKey(sum string) (bool, error) {
	for _, kind := range []string{".key", ".password"} {
		_, err := s.dir.Read(sum + kind)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// Signer returns the key of a root. The error is an [io/fs.ErrNotExist] when
// this host does not have it.
func (s *Store) Signer(sum string) (crypto.Signer, error) {
	root, err := s.Root(sum)
	if err != nil {
		return nil, err
	}
	path := s.dir.Path(sum + ".key")
	data, err := s.dir.Read(sum + ".key")
	if err != nil {
		return nil, err
	}
	password, err := s.dir.Read(sum + ".password")
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

// CheckKey reports whether a host has the key of a root; the error is why it cannot be
// used.
func CheckKey(host *pve.Host, sum string) (has bool, err error) {
	s := &Store{stateOf(host), map[encryptedKey]crypto.Signer{}}
	if has, err = s.HasKey(sum); has && err == nil {
		_, err = s.Signer(sum)
	}
	return has, err
}

// Remove removes a root and its key.
func (s *Store) Remove(sum string) error {
	return s.dir.Remove(sum+".key", sum+".password", sum+".crt")
}
