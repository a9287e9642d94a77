// The gateway's certificate, in the container.

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
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
)

// Reasons for a new certificate.
var (
	errDue     = errors.New("two thirds of its life are over")
	errExposed = errors.New("others than root could read its key")
	errFormer  = errors.New("it is of the root that is being replaced")
	errReissue = errors.New("it cannot be renewed")
)

// inspect returns the leaf of the pair in dir, nil when nginx could not load
// it. The error is one of the reasons for a new certificate: an errReissue
// when it is missing, expired, not valid yet, of wrong names, or of another
// root.
func inspect(dir string, names []string, roots []*x509.Certificate, now time.Time) (*x509.Certificate, error) {
	reissue := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", errReissue, fmt.Sprintf(format, args...))
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "gateway.crt"), filepath.Join(dir, "gateway.key"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, reissue("there is none")
	case err != nil:
		return nil, reissue("%v", err)
	}
	leaf := pair.Leaf
	have, want := slices.Sorted(slices.Values(leaf.DNSNames)), slices.Sorted(slices.Values(names))
	if !slices.Equal(have, want) {
		return leaf, reissue("it is for %q", have)
	}
	root, err := verify(leaf, pair.Certificate[1:], roots, now)
	if err != nil {
		return leaf, reissue("%v", err)
	}
	if exposed, err := isExposed(dir); exposed || err != nil {
		return leaf, errors.Join(errExposed, err)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); now.After(leaf.NotBefore.Add(life * 2 / 3)) {
		return leaf, errDue
	}
	if root != roots[0] {
		return leaf, errFormer
	}
	return leaf, nil
}

// verify returns the first of the roots under which leaf is valid now.
func verify(leaf *x509.Certificate, rest [][]byte,
	roots []*x509.Certificate, now time.Time,
) (*x509.Certificate, error) {
	var first error
	for _, root := range roots {
		err := cert.VerifyUnder(root, leaf, rest, "", now)
		if err == nil {
			return root, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// isExposed reports whether others than root can read the key in dir, or
// could until conceal was called.
func isExposed(dir string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, exposedNote)); err == nil {
		return true, nil
	}
	for path, mode := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "gateway.key"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			return false, err
		}
		if info.Mode().Perm() != mode || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
			return true, nil
		}
	}
	return false, nil
}

// exposedNote is a file beside a key that others could read, for as long as
// there is no other pair.
const exposedNote = "exposed"

// conceal makes the key in dir root's alone again, and reports whether it was
// not.
func conceal(dir string) (changed bool, err error) {
	note, key := filepath.Join(dir, exposedNote), filepath.Join(dir, "gateway.key")
	if _, err := os.Stat(note); errors.Is(err, fs.ErrNotExist) {
		changed = true
		if err := os.WriteFile(note, nil, 0o600); err != nil {
			return false, err
		}
	}
	for path, mode := range map[string]fs.FileMode{dir + "/": 0o700, key: 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			return changed, err
		}
		if int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() { // the renewing unit may not even try
			err = os.Chown(path, os.Geteuid(), os.Getegid())
		}
		if err = errors.Join(err, os.Chmod(path, mode)); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// ensureCertificate makes sure of a good certificate. ask gets a one-time token, or the
// program step, from the host; nil means that the host cannot be asked. When
// there is no better certificate to be had, ensureCertificate returns the present one
// with the error; nil when there is none that nginx could load.
func ensureCertificate(ctx context.Context, s *guest.Setup, g gateway,
	roots []*x509.Certificate, ask guest.Ask,
) (*x509.Certificate, error) {
	present, why := inspect(pairLink, g.names(), roots, time.Now())
	if errors.Is(why, errExposed) {
		changed, err := conceal(pairLink)
		if err != nil {
			return present, err
		}
		if changed {
			s.Changed("made the key %s readable for root only", keyFile)
		}
	}
	var err error
	if ask != nil {
		err = s.RequireFeature(guest.StepProgram, "step_cli", ask)
	}
	switch {
	case why == nil:
		return present, err
	case errors.Is(why, errFormer) && ask == nil:
		return present, nil // phx on the host gets one of the new root
	case err == nil:
		s.Begins("")
		var leaf *x509.Certificate
		if leaf, err = obtain(ctx, g, roots, why, ask); err == nil {
			s.Changed("got a certificate until %s (%v)", leaf.NotAfter.UTC().Format(time.RFC3339), why)
			return leaf, nil
		}
	}
	return present, fmt.Errorf("certificate %s: %w: %w", certificateFile, why, err)
}

// obtain gets a new pair from the CA: by the present pair where that is good
// enough, else by a one-time token.
func obtain(ctx context.Context, g gateway,
	roots []*x509.Certificate, why error, ask guest.Ask,
) (*x509.Certificate, error) {
	var rekeyErr error
	if errors.Is(why, errDue) || errors.Is(why, errExposed) {
		leaf, err := replacePair(g, roots, func(crt, key string) error { return rekey(ctx, g, crt, key) })
		if err == nil {
			return leaf, nil
		}
		rekeyErr = err
	}
	if ask == nil {
		return nil, errors.Join(rekeyErr, errors.New("run phx on the host for a new one"))
	}
	var ott string
	if err := ask("token", &ott); err != nil {
		return nil, errors.Join(rekeyErr, err)
	}
	// The root that the CA must have now is in the token.
	return replacePair(g, roots[:1], func(crt, key string) error {
		_, err := guest.RunEnv(ctx, []string{"STEP_TOKEN=" + ott}, guest.StepProgram, "ca", "certificate",
			"--force", "--ca-url", g.CAURL, "--root", g.Root, g.Domain, crt, key)
		return err
	})
}

// rekey writes a pair with a new key, got with the present pair.
func rekey(ctx context.Context, g gateway, crt, key string) error {
	_, err := guest.Run(ctx, guest.StepProgram, "ca", "rekey", "--force", "--ca-url", g.CAURL, "--root", g.Root,
		"--out-cert", crt, "--out-key", key, certificateFile, keyFile)
	return err
}

// replacePair lets issue write a pair into a directory of its own, checks it, and
// puts it in the place of the present one, also for after a power failure.
// step writes certificate and key one after the other: nginx must never see
// one without the other.
func replacePair(g gateway, roots []*x509.Certificate, issue func(crt, key string) error) (*x509.Certificate, error) {
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
		leaf, err := inspect(dir, g.names(), roots, time.Now())
		if err != nil && !errors.Is(err, errFormer) {
			return nil, fmt.Errorf("the new certificate is not good: %w", err)
		}
		for _, path := range []string{crt, key, dir} {
			if err := sync(path); err != nil {
				return nil, err
			}
		}
		// A copy that followed the link, as of a backup, has left a directory.
		if info, err := os.Lstat(pairLink); err == nil && info.IsDir() {
			if err := os.Rename(pairLink, dir+".former"); err != nil {
				return nil, err
			}
		}
		return leaf, renameio.Symlink(filepath.Base(dir), pairLink)
	}()
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if err := sync(stateDir); err != nil {
		return nil, err // the old pair stays: it may be back after a power failure
	}
	removePairs(filepath.Base(dir))
	return leaf, nil
}

// sync brings a file, or the entries of a directory, to the disk.
func sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
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
