package main

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cert"
)

// writeRoots brings the file of trusted roots up to date, and reports whether
// it has changed. What it holds is made of the parsed certificates alone.
// shared says that containers see its directory, which must let them.
func writeRoots(path string, shared bool, roots []*x509.Certificate) (changed bool, err error) {
	dir := filepath.Dir(path)
	if err := makeDir(dir); err != nil {
		return false, err
	}
	if shared {
		if err := openDir(path); err != nil {
			return false, err
		}
	}
	text := cert.Encode(roots...)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s: not a regular file: remove it, or name another one with --output", path)
	case info.Mode().Perm() == 0o644 && info.Size() == int64(len(text)):
		if have, err := cert.ReadFile(path); err == nil && bytes.Equal(have, text) {
			return false, nil
		}
	}
	return true, atomicfile.Write(path, text, 0o644)
}

// makeDir makes a directory that others can enter, and what is missing above
// it, whatever the umask.
func makeDir(dir string) error {
	defer syscall.Umask(syscall.Umask(0o022))
	return os.MkdirAll(dir, 0o755)
}

// openDir lets others enter the directory of path, if path is all that it
// holds: a directory of anything else is not opened because of a certificate.
func openDir(path string) error {
	dir := filepath.Dir(path)
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o055 == 0o055 {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			return fmt.Errorf("%s: mode %o: containers cannot enter it: chmod 755 %s, or let PHX_CA_FILE lie in another directory", dir, info.Mode().Perm(), dir)
		}
	}
	return os.Chmod(dir, info.Mode().Perm()|0o755)
}
