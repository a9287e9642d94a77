package guest

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/flock"
)

// Trust is which CA a service trusts, by root certificates that the host has
// pinned.
type Trust struct {
	Root        string `json:"root"`           // their file's place in the container
	Fingerprint string `json:"fingerprint"`    // SHA-256 of the CA's root, lower-case hex
	Also        string `json:"also,omitempty"` // of another root that counts while one takes the place of the other
	CAURL       string `json:"ca_url"`         // https://HOST:PORT

	// Carried are the certificates themselves, in PEM, where no mount point shows
	// them to the container: they are written to Root, which is [CarriedRoot].
	Carried string `json:"carried,omitempty"`
}

// CarriedRoot is the file in a container for root certificates that have come
// with a request.
const CarriedRoot = "/etc/phx/root.crt"

// Pins returns the fingerprints of the roots, that of the CA first.
func (t Trust) Pins() []string {
	if t.Also == "" {
		return []string{t.Fingerprint}
	}
	return []string{t.Fingerprint, t.Also}
}

var (
	rootForm  = regexp.MustCompile(`^/[A-Za-z0-9._/-]+$`)
	caURLForm = regexp.MustCompile(`^https://[A-Za-z0-9.:\[\]-]+$`)
)

// Check returns an error for what would mean something else in a service's
// configuration or on step's command line. What is empty is not checked.
func (t Trust) Check() error {
	switch {
	case t.Root != "" && !rootForm.MatchString(t.Root):
		return fmt.Errorf("root certificate %q: not an absolute path of letters, digits, '.', '_' and '-'", t.Root)
	case t.Carried != "" && t.Root != CarriedRoot:
		return fmt.Errorf("root certificate %q: those that come with a request go to %s", t.Root, CarriedRoot)
	case t.CAURL != "" && !caURLForm.MatchString(t.CAURL):
		return fmt.Errorf("CA URL %q: not https://HOST:PORT", t.CAURL)
	}
	for _, pin := range t.Pins() {
		if pin != "" && !cert.IsFingerprint(pin) {
			return fmt.Errorf("fingerprint %q: not 64 hexadecimal digits", pin)
		}
	}
	return nil
}

// Begin reads the root certificates, which must be those that are pinned, and
// waits until no other run of the program is at work in the container. The
// first root is that of the CA.
func (s *Setup) Begin(ctx context.Context, program string, trust Trust) ([]*x509.Certificate, error) {
	s.Stage = "trust"
	read := func() ([]*x509.Certificate, error) { return cert.ReadPinned(trust.Root, trust.Pins()...) }
	if trust.Carried != "" {
		read = func() ([]*x509.Certificate, error) {
			return cert.ParsePinned("in the request", []byte(trust.Carried), trust.Pins()...)
		}
	}
	roots, err := read()
	if err != nil {
		return nil, err
	}
	if err := s.lock(ctx, filepath.Join("/run", program+".lock")); err != nil {
		return nil, err
	}
	if trust.Carried != "" {
		_, err = s.WriteFile(trust.Root, cert.Encode(roots...), 0o644)
	}
	return roots, err
}

// DropCarried removes root certificates that an earlier request has brought, when
// nothing reads them any more.
func (s *Setup) DropCarried(trust Trust) error {
	if trust.Root == CarriedRoot {
		return nil
	}
	err := os.Remove(CarriedRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		s.Changed("removed %s", CarriedRoot)
	}
	return err
}

// lock waits for other runs of the same program in this container to end: one
// whose host was cut off goes on, and may have to install packages. The lock is
// held until the process ends.
func (s *Setup) lock(ctx context.Context, path string) error {
	_, err := flock.Acquire(ctx, path, 0)
	if errors.Is(err, flock.ErrHeld) {
		s.Begins("waiting for another run")
		_, err = flock.Acquire(ctx, path, packageLimit+2*time.Minute)
		s.Begins("")
	}
	if errors.Is(err, flock.ErrHeld) {
		return fmt.Errorf("another run is at work in this container: %w", err)
	}
	if err == nil {
		err = os.Chmod(path, 0o600) // whoever may open it may hold it
	}
	return err
}

// Bootstrap makes step trust the CA at url, pinned by the fingerprint of its
// root certificate.
func (s *Setup) Bootstrap(ctx context.Context, url, fingerprint string) error {
	if bootstrapped(url, fingerprint) {
		return nil
	}
	if err := os.MkdirAll(stepPath, 0o700); err != nil {
		return err
	}
	_, err := s.Run(ctx, StepProgram, "ca", "bootstrap", "--ca-url", url, "--fingerprint", fingerprint, "--force")
	if err != nil {
		return err
	}
	s.Changed("bootstrapped from %s", url)
	return nil
}

func bootstrapped(url, fingerprint string) bool {
	data, err := os.ReadFile(filepath.Join(stepPath, "config/defaults.json"))
	if err != nil {
		return false
	}
	var defaults struct {
		URL         string `json:"ca-url"`
		Fingerprint string `json:"fingerprint"`
		Root        string `json:"root"`
	}
	if json.Unmarshal(data, &defaults) != nil || defaults.URL != url || defaults.Fingerprint != fingerprint {
		return false
	}
	_, err = cert.ReadPinned(defaults.Root, fingerprint)
	return err == nil
}
