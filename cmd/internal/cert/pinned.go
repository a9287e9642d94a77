package cert

import (
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// ReadPinned reads the file at path, which must hold the root certificates
// with these fingerprints and nothing else, in this order: one, or two while
// one root takes the place of another.
func ReadPinned(path string, pins ...string) ([]*x509.Certificate, error) {
	data, err := ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	roots, err := parseRoots(data, len(pins))
	if err != nil {
		return nil, fmt.Errorf("root certificate %s: %w", path, err)
	}
	if have := fingerprints(roots); have != strings.Join(pins, ", ") {
		return nil, fmt.Errorf("root certificate %s has the fingerprint %s and should have %s: it is another CA's", path, have, strings.Join(pins, ", "))
	}
	return roots, nil
}

// MaxFile is how long a file of root certificates may be.
const MaxFile = 64 << 10

// ReadFile reads a file of root certificates. It must be a regular file of
// [MaxFile] at most: anything else could keep its reader waiting, or be
// without end.
func ReadFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(data) > MaxFile {
		err = fmt.Errorf("%s: longer than %d bytes", path, MaxFile)
	}
	return data, err
}

func fingerprints(all []*x509.Certificate) string {
	hex := make([]string, len(all))
	for i, c := range all {
		hex[i] = Fingerprint(c)
	}
	return strings.Join(hex, ", ")
}
