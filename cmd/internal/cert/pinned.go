package cert

import (
	"crypto/x509"
	"fmt"
	"os"
)

// ReadPinned reads the file at path, which must hold exactly one root
// certificate, valid now, of this fingerprint.
func ReadPinned(path, fingerprint string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	root, err := ParseSingleRoot(data)
	if err != nil {
		return nil, fmt.Errorf("root certificate %s: %w", path, err)
	}
	if have := Fingerprint(root); have != fingerprint {
		return nil, fmt.Errorf("root certificate %s has the fingerprint %s and should have %s: it is another CA's", path, have, fingerprint)
	}
	return root, nil
}
