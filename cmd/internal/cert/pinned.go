package cert

import (
	"crypto/x509"
	"fmt"
	"strings"

	"thinkheads.ai/phx/cmd/internal/atomicfile"
)

// ReadPinned reads the file at path, which must hold the root certificates
// with these fingerprints and nothing else, in this order: one, or two while
// one root takes the place of another.
func ReadPinned(path string, pins ...string) ([]*x509.Certificate, error) {
	data, err := ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	return ParsePinned(path, data, pins...)
}

// ParsePinned is [ReadPinned] for data, which errors name as place.
func ParsePinned(place string, data []byte, pins ...string) ([]*x509.Certificate, error) {
	roots, err := parseRoots(data, len(pins))
	if err != nil {
		return nil, fmt.Errorf("root certificate %s: %w", place, err)
	}
	if have := fingerprints(roots); have != strings.Join(pins, ", ") {
		return nil, fmt.Errorf("root certificate %s has the fingerprint %s and should have %s: it is another CA's",
			place, have, strings.Join(pins, ", "))
	}
	return roots, nil
}

// MaxFile is how many bytes a file of root certificates may have.
const MaxFile = 64 << 10

// ReadFile reads a file of root certificates: a regular file of [MaxFile] at
// most.
func ReadFile(path string) ([]byte, error) { return atomicfile.Read(path, MaxFile) }

func fingerprints(all []*x509.Certificate) string {
	hex := make([]string, len(all))
	for i, c := range all {
		hex[i] = Fingerprint(c)
	}
	return strings.Join(hex, ", ")
}
