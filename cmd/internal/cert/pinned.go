package cert

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
)

// ReadPinned reads the file at path, which must hold the root certificates
// with these fingerprints and nothing else, in this order: one, or two while
// one root takes the place of another.
func ReadPinned(path string, pins ...string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
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

func fingerprints(all []*x509.Certificate) string {
	hex := make([]string, len(all))
	for i, c := range all {
		hex[i] = Fingerprint(c)
	}
	return strings.Join(hex, ", ")
}
