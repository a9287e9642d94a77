// Package cert reads the root certificate of a CA and computes its
// fingerprint. It decides what may count as the root: nothing but a CA
// certificate that has really signed itself, and only when there is no doubt
// which one is meant.
package cert

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
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
	ErrForm          = errors.New("programs would read it in different ways")
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

var fingerprintForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// IsFingerprint reports whether s has the form that [Fingerprint] returns.
func IsFingerprint(s string) bool { return fingerprintForm.MatchString(s) }

// ParseFingerprint returns the fingerprint that s is, in either case and with
// or without colons, in the form that [Fingerprint] returns.
func ParseFingerprint(s string) (string, error) {
	plain := strings.ToLower(strings.ReplaceAll(s, ":", ""))
	if !IsFingerprint(plain) {
		return "", fmt.Errorf("%q is not a SHA-256: 64 hexadecimal digits", s)
	}
	return plain, nil
}

// ParseRoot returns the root certificate in data, PEM or DER. PEM may have
// plain text around it, lines that end in CR LF, and keys beside it. What Go
// and OpenSSL would not read alike is rejected. Among several certificates
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

// ParseRoots returns the root certificates, one or two, that are the only
// things in data, and are valid now: two while one takes the other's place.
func ParseRoots(data []byte) ([]*x509.Certificate, error) { return parseRoots(data, 2) }

// ParseChain returns the certificates in data, one at least, which are not
// checked any further.
func ParseChain(data []byte) ([]*x509.Certificate, error) {
	all, other, err := parse(data)
	if err == nil && other != "" {
		err = fmt.Errorf("%w: %s", ErrNotAlone, other)
	}
	return all, err
}

// Encode returns certificates as PEM, in the form that every reader takes for
// the same.
func Encode(all ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range all {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
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
	for i, c := range all {
		if i > 0 && c.Equal(all[0]) {
			return nil, fmt.Errorf("%w: the same one twice", ErrSeveral)
		}
		if err := checkRoot(c); err != nil {
			return nil, err
		}
		if err := CheckValidity(c, time.Now()); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Pool returns the certificates as a pool.
func Pool(all ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range all {
		pool.AddCert(c)
	}
	return pool
}

// VerifyUnder returns an error unless leaf is good at the time now under root
// and no other, and for the name, unless that is "". rest are the certificates
// in DER that came with it.
func VerifyUnder(root, leaf *x509.Certificate, rest [][]byte, name string, now time.Time) error {
	intermediates := x509.NewCertPool()
	for _, der := range rest {
		if c, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(c)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		DNSName: name, Roots: Pool(root), Intermediates: intermediates, CurrentTime: now,
	})
	return err
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
			return parsePEM(data)
		}
		if err != nil {
			return nil, "", fmt.Errorf("%w: %v", ErrDamaged, err)
		}
	case isPEM:
		return parsePEM(data)
	}
	if len(all) == 0 {
		return nil, "", ErrNone
	}
	return all, other, nil
}

// Lines of PEM in the one form that every reader takes for the same. A body
// that is not as RFC 7468 wants it, or dashes that only look like a boundary,
// are what Go's encoding/pem skips and OpenSSL reads, or the other way round.
var (
	boundary = regexp.MustCompile(`^-----(BEGIN|END) ([A-Z0-9]+(?: [A-Z0-9]+)*)-----$`)
	bodyLine = regexp.MustCompile(`^[A-Za-z0-9+/]{1,76}={0,2}$`)
)

// parsePEM reads PEM line by line. Beside certificates it passes over text,
// and over keys, of which it says the last.
func parsePEM(data []byte) (all []*x509.Certificate, other string, err error) {
	kind, line := "", 0 // of the block that is open
	var body strings.Builder
	for text := range strings.Lines(string(data)) {
		line++
		text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
		b := boundary.FindStringSubmatch(text)
		switch {
		case b != nil && b[1] == "BEGIN" && kind == "":
			if kind = b[2]; kind != "CERTIFICATE" && !strings.HasSuffix(kind, " KEY") {
				return nil, "", fmt.Errorf("%w: line %d: a block %q", ErrForm, line, kind)
			}
			body.Reset()
		case b != nil && b[1] == "BEGIN":
			return nil, "", fmt.Errorf("%w: line %d: a block begins in another one", ErrDamaged, line)
		case b != nil && b[2] != kind:
			return nil, "", fmt.Errorf("%w: line %d: the end of a block that has not begun", ErrDamaged, line)
		case b != nil && kind != "CERTIFICATE":
			kind, other = "", kind
		case b != nil:
			kind = ""
			c, err := parseBody(body.String())
			if err != nil {
				return nil, "", fmt.Errorf("%w: line %d: %v", ErrDamaged, line, err)
			}
			all = append(all, c)
		case kind == "CERTIFICATE":
			if strings.Contains(body.String(), "=") || !bodyLine.MatchString(text) {
				return nil, "", fmt.Errorf("%w: line %d: %.80q inside of a certificate", ErrDamaged, line, text)
			}
			body.WriteString(text)
		case strings.Contains(text, "-----") || strings.ContainsFunc(text, notPlain) || !utf8.ValidString(text):
			return nil, "", fmt.Errorf("%w: line %d: %.80q is neither text nor the boundary of a block",
				ErrForm, line, text)
		}
	}
	switch {
	case kind != "":
		return nil, "", fmt.Errorf("%w: it ends in the middle of a block", ErrDamaged)
	case len(all) == 0:
		return nil, "", ErrNone
	}
	return all, other, nil
}

func parseBody(body string) (*x509.Certificate, error) {
	der, err := base64.StdEncoding.Strict().DecodeString(body)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// notPlain reports whether a character is no part of plain text.
func notPlain(r rune) bool { return r != '\t' && !unicode.IsPrint(r) }
