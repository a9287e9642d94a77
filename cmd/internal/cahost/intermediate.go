package cahost

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/ca"
	"thinkheads.ai/phx/cmd/internal/cert"
)

const (
	rootLife         = 10 * 365 * 24 * time.Hour
	intermediateLife = 5 * 365 * 24 * time.Hour
	// renewBefore is how long before its end a certificate of a CA is replaced.
	renewBefore = 90 * 24 * time.Hour
	// backdate is for clocks that are behind.
	backdate = 5 * time.Minute
)

// newRoot makes a root certificate and its key.
func newRoot(now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// Two roots in one file must not have the same name.
		Subject: pkix.Name{
			CommonName: "Phoenix CA Root", SerialNumber: hex.EncodeToString(serial.Bytes()[:4]),
		},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
	}
	c, err := create(template, template, &key.PublicKey, key)
	return c, key, err
}

// signIntermediate signs the certificate of an intermediate that can issue
// for the domain and the CA's own addresses only. Of the request, in PEM,
// only the key counts.
func signIntermediate(request []byte, s ca.Settings,
	root *x509.Certificate, signer crypto.Signer, now time.Time,
) (*x509.Certificate, error) {
	block, rest := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		return nil, errors.New("not a certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("certificate request: its key is not of ECDSA P-256")
	}
	if signer.Public().(*ecdsa.PublicKey).Equal(csr.PublicKey) {
		return nil, errors.New("certificate request: it has the root's own key")
	}
	template := intermediateTemplate(s)
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(intermediateLife)
	if template.NotAfter.After(root.NotAfter) {
		template.NotAfter = root.NotAfter
	}
	return create(template, root, csr.PublicKey, signer)
}

// renewIntermediate has the CA get another certificate for its intermediate if
// it needs one, beside the one in use, and returns the places of certificate
// and key, "" when nothing is to change. Below another root it has another key.
func (w *work) renewIntermediate(root *x509.Certificate) (certificate, key string, err error) {
	home := w.state.home
	if !strings.HasPrefix(w.files.intermediate, home+"/") || !strings.HasPrefix(w.files.key, home+"/") {
		return "", "", fmt.Errorf("%s: the intermediate is not below %s", w.state.config, home)
	}
	data, err := w.c.read(w.files.intermediate)
	if err != nil {
		return "", "", err
	}
	why := "it cannot be read"
	key = w.files.key
	if all, err := cert.ParseChain(data); err == nil {
		if why = misfit(all[0], *w.Settings, root, w.now); why == "" {
			return "", "", nil
		}
		if !signedBy(all[0], root) {
			key = fmt.Sprintf("%s/secrets/intermediate_ca-%.8s_key", home, w.pin.Primary)
		}
	}
	_, signer, err := w.signer()
	if err != nil {
		return "", "", err
	}
	request, err := w.c.file("csr", key)
	if err != nil {
		return "", "", err
	}
	c, err := signIntermediate(request, *w.Settings, root, signer, w.now)
	if err != nil {
		return "", "", err
	}
	certificate = fmt.Sprintf("%s/certs/intermediate_ca-%.8s.crt", home, cert.Fingerprint(c))
	w.Log("the intermediate is replaced: %s", why)
	return certificate, key, w.c.put(certificate, cert.Encode(c))
}

// intermediateTemplate returns what settings ask of the intermediate.
func intermediateTemplate(s ca.Settings) *x509.Certificate {
	var addresses []*net.IPNet
	for _, address := range append(s.Addresses(), netip.AddrFrom4([4]byte{127, 0, 0, 1})) {
		addresses = append(addresses, single(address.AsSlice()))
	}
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Phoenix CA Intermediate"},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,

		// A kind of name that is not constrained could be any. The CA's own
		// certificate needs the addresses.
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{s.Domain},
		PermittedIPRanges:           addresses,
		PermittedEmailAddresses:     []string{s.Domain},
		PermittedURIDomains:         []string{s.Domain},
	}
}

// single returns the range of one address.
func single(ip net.IP) *net.IPNet {
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(8*len(ip), 8*len(ip))}
}

// misfit says why an intermediate is not the one that settings ask for, ""
// when it is.
func misfit(c *x509.Certificate, s ca.Settings, root *x509.Certificate, now time.Time) string {
	want := intermediateTemplate(s)
	ips := func(list []*net.IPNet) (all []string) {
		for _, ip := range list {
			all = append(all, ip.String())
		}
		return all
	}
	switch {
	case !signedBy(c, root):
		return "it is not of the root in use"
	case now.Before(c.NotBefore), now.Add(renewBefore).After(c.NotAfter) && c.NotAfter.Before(root.NotAfter):
		return "it is about to expire"
	case !c.IsCA || c.MaxPathLen != 0 || !c.MaxPathLenZero:
		return "its path length is not 0"
	case !slices.Equal(c.ExtKeyUsage, want.ExtKeyUsage):
		return "it is for other purposes than TLS"
	case !c.PermittedDNSDomainsCritical || !slices.Equal(c.PermittedDNSDomains, want.PermittedDNSDomains) ||
		!slices.Equal(ips(c.PermittedIPRanges), ips(want.PermittedIPRanges)) ||
		!slices.Equal(c.PermittedEmailAddresses, want.PermittedEmailAddresses) ||
		!slices.Equal(c.PermittedURIDomains, want.PermittedURIDomains):
		return "it is for other names"
	}
	return ""
}

// signedBy reports whether root has signed c.
func signedBy(c, root *x509.Certificate) bool { return c.CheckSignatureFrom(root) == nil }

// create returns the certificate of key that signer makes below parent.
func create(template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns a positive serial number of 127 bits, as RFC 5280 wants.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	return n.SetBit(n, 126, 1), nil
}
