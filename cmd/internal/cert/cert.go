// Package cert reads the root certificate of a CA and computes its
// fingerprint. It decides what may count as the root: nothing but a CA
// certificate that has really signed itself, and only when there is no doubt
// which one is meant.
package cert

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// What can be wrong with a root certificate. The errors of this package wrap
// these.
var (
	ErrEmpty         = errors.New("it is empty")
	ErrNone          = errors.New("there is no certificate in it")
	ErrDamaged       = errors.New("a certificate in it is truncated or damaged")
	ErrLeaf          = errors.New("it is not the certificate of a CA")
	ErrNotSelfSigned = errors.New("it is not a root, for another CA has signed it")
	ErrSignature     = errors.New("its signature is wrong")
	ErrNoRoot        = errors.New("none of its certificates is a root")
	ErrSeveral       = errors.New("it has more than one certificate")
	ErrNotAlone      = errors.New("it has more than a certificate")
	ErrExpired       = errors.New("it has expired")
	ErrNotYetValid   = errors.New("it is not valid yet")
)

// Fingerprint returns the SHA-256 of the certificate's DER in lower case
// hexadecimal digits, as step certificate fingerprint does.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// ParseRoot returns the root certificate in data, PEM or DER. PEM may have
// text around it and lines that end in CR LF; as step does, it passes over
// blocks that have headers or are no certificates. Among several certificates
// there must be exactly one root, and that one counts. Whether the root is
// valid now is for [CheckValidity].
func ParseRoot(data []byte) (*x509.Certificate, error) {
	all, _, err := parse(data)
	if err != nil {
		return nil, err
	}
	if len(all) == 1 {
		if err := checkRoot(all[0]); err != nil {
			return nil, err
		}
		return all[0], nil
	}
	var root *x509.Certificate
	for _, c := range all {
		switch {
		case checkRoot(c) != nil:
		case root != nil:
			return nil, fmt.Errorf("%w that is a root: %q and %q", ErrSeveral, root.Subject, c.Subject)
		default:
			root = c
		}
	}
	if root == nil {
		return nil, fmt.Errorf("%w (%d certificates)", ErrNoRoot, len(all))
	}
	return root, nil
}

// ParseSingleRoot returns the root certificate that is the only thing in
// data, and is valid now. Unlike [ParseRoot], it rejects further certificates
// and all other PEM blocks, including keys.
func ParseSingleRoot(data []byte) (*x509.Certificate, error) {
	roots, err := parseRoots(data, 1)
	if err != nil {
		return nil, err
	}
	return roots[0], nil
}

// parseRoots is [ParseSingleRoot] for up to most roots.
func parseRoots(data []byte, most int) ([]*x509.Certificate, error) {
	all, other, err := parse(data)
	switch {
	case err != nil:
		return nil, err
	case len(all) > most:
		return nil, fmt.Errorf("%w: %d", ErrSeveral, len(all))
	case other != "":
		return nil, fmt.Errorf("%w: %s", ErrNotAlone, other)
	}
	for _, c := range all {
		if err := checkRoot(c); err != nil {
			return nil, err
		}
		if err := CheckValidity(c, time.Now()); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// CheckValidity returns an error unless c is valid at the time now.
func CheckValidity(c *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(c.NotBefore):
		return fmt.Errorf("%w: from %s on", ErrNotYetValid, c.NotBefore.Format(time.RFC3339))
	case now.After(c.NotAfter):
		return fmt.Errorf("%w: on %s", ErrExpired, c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// checkRoot returns an error unless c is a CA's certificate signed by itself.
func checkRoot(c *x509.Certificate) error {
	isCA := c.BasicConstraintsValid && c.IsCA
	self := bytes.Equal(c.RawSubject, c.RawIssuer)
	switch {
	case !isCA:
		return fmt.Errorf("%w: %q, signed by %q", ErrLeaf, c.Subject, c.Issuer)
	case !self:
		return fmt.Errorf("%w: %q, signed by %q", ErrNotSelfSigned, c.Subject, c.Issuer)
	}
	if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return fmt.Errorf("%w: %q: %v", ErrSignature, c.Subject, err)
	}
	return nil
}

// parse returns the certificates in data, at least one, and says what other
// PEM block there is.
func parse(data []byte) (all []*x509.Certificate, other string, err error) {
	isDER := bytes.HasPrefix(data, []byte{0x30}) // an ASN.1 sequence, or the text "0"
	isPEM := bytes.Contains(data, []byte("-----BEGIN "))
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, "", ErrEmpty
	case isDER:
		if all, err = x509.ParseCertificates(data); err != nil && isPEM {
			all, other, err = parsePEM(data)
		}
	case isPEM:
		all, other, err = parsePEM(data)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	if len(all) == 0 {
		return nil, "", ErrNone
	}
	return all, other, nil
}

func parsePEM(data []byte) (all []*x509.Certificate, other string, err error) {
	for {
		block, rest := pem.Decode(data)
		// Decode passes over what it cannot read; that must not be a
		// certificate.
		skipped := data
		if block != nil {
			skipped = data[:len(data)-len(rest)]
		}
		if n := bytes.Count(skipped, []byte("-----BEGIN CERTIFICATE-----")); n > 1 || n > 0 && (block == nil || block.Type != "CERTIFICATE") {
			return nil, "", errors.New("its PEM cannot be read")
		}
		if block == nil {
			return all, other, nil
		}
		data = rest
		switch {
		case block.Type != "CERTIFICATE":
			other = block.Type
			continue
		case len(block.Headers) > 0:
			other = "CERTIFICATE with headers"
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, "", err
		}
		all = append(all, c)
	}
}
