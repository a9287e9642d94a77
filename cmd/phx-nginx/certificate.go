package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
	"thinkheads.ai/phx/cmd/internal/guest"
)

// The gateway's certificate and key live in a directory that only root can
// enter, behind a symbolic link: exchanging the link exchanges both at once.
const (
	stateDir        = "/etc/phx/nginx"
	pairLink        = stateDir + "/tls"
	certificateFile = pairLink + "/gateway.crt"
	keyFile         = pairLink + "/gateway.key"
)

// Reasons for a new certificate.
var (
	errDue     = errors.New("two thirds of its life are over")
	errReissue = errors.New("it cannot be renewed")
)

// inspect returns the leaf of the pair in dir. The error is errDue when the
// certificate should be renewed, and an errReissue when it cannot be: it is
// missing, expired, of the wrong names, or of another root.
func inspect(dir string, names []string, root *x509.Certificate, now time.Time) (*x509.Certificate, error) {
	reissue := func(format string, args ...any) (*x509.Certificate, error) {
		return nil, fmt.Errorf("%w: %s", errReissue, fmt.Sprintf(format, args...))
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "gateway.crt"), filepath.Join(dir, "gateway.key"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return reissue("there is none")
	case err != nil:
		return reissue("%v", err)
	}
	leaf := pair.Leaf
	have, want := slices.Sorted(slices.Values(leaf.DNSNames)), slices.Sorted(slices.Values(names))
	if !slices.Equal(have, want) {
		return reissue("it is for %q", have)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(c)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now}); err != nil {
		return reissue("%v", err)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); now.After(leaf.NotBefore.Add(life * 2 / 3)) {
		return leaf, errDue
	}
	return leaf, nil
}

// certify makes sure of a good certificate. token is asked for a one-time token where one is needed; nil means
// that none can be had.
func certify(ctx context.Context, s *guest.Setup, g gateway, root *x509.Certificate, token func(*string) error) (*x509.Certificate, error) {
	leaf, why := inspect(pairLink, g.names(), root, time.Now())
	if why == nil {
		return leaf, nil
	}
	if errors.Is(why, errDue) {
		leaf, err := stage(g, root, func(crt, key string) error { return renew(ctx, crt, key) })
		if err == nil {
			s.Changed("renewed the certificate until %s", leaf.NotAfter.UTC().Format(time.RFC3339))
			return leaf, nil
		}
		why = fmt.Errorf("%w: %w", errReissue, err)
	}
	if token == nil {
		return nil, fmt.Errorf("certificate %s: %w; run phx on the host for a new one", certificateFile, why)
	}
	var ott string
	if err := token(&ott); err != nil {
		return nil, fmt.Errorf("certificate %s: %w: %w", certificateFile, why, err)
	}
	leaf, err := stage(g, root, func(crt, key string) error {
		_, err := guest.RunEnv(ctx, []string{"STEP_TOKEN=" + ott},
			guest.StepProgram, "ca", "certificate", g.Domain, crt, key, "--force")
		return err
	})
	if err != nil {
		return nil, err
	}
	s.Changed("got a certificate until %s (%v)", leaf.NotAfter.UTC().Format(time.RFC3339), why)
	return leaf, nil
}

// renew renews a copy of the present pair in place.
func renew(ctx context.Context, crt, key string) error {
	for from, to := range map[string]string{certificateFile: crt, keyFile: key} {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			return err
		}
	}
	_, err := guest.Run(ctx, guest.StepProgram, "ca", "renew", "--force", crt, key)
	return err
}

// stage lets issue write a pair into a directory of its own, checks it, and
// puts it in the place of the present one. step writes certificate and key
// one after the other: nginx must never see one without the other.
func stage(g gateway, root *x509.Certificate, issue func(crt, key string) error) (*x509.Certificate, error) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(stateDir, "pair.") // mode 0700
	if err != nil {
		return nil, err
	}
	leaf, err := func() (*x509.Certificate, error) {
		crt, key := filepath.Join(dir, "gateway.crt"), filepath.Join(dir, "gateway.key")
		if err := issue(crt, key); err != nil {
			return nil, err
		}
		info, err := os.Stat(key)
		if err != nil {
			return nil, err
		}
		if info.Mode().Perm() != 0o600 {
			return nil, fmt.Errorf("the key %s was written with mode %04o", key, info.Mode().Perm())
		}
		leaf, err := inspect(dir, g.names(), root, time.Now())
		if err != nil {
			return nil, fmt.Errorf("the new certificate is not good: %w", err)
		}
		return leaf, renameio.Symlink(filepath.Base(dir), pairLink)
	}()
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	removePairs(filepath.Base(dir))
	return leaf, nil
}

// removePairs removes the directories of earlier pairs.
func removePairs(except string) {
	dirs, _ := filepath.Glob(filepath.Join(stateDir, "pair.*"))
	for _, dir := range dirs {
		if filepath.Base(dir) != except {
			os.RemoveAll(dir)
		}
	}
}
