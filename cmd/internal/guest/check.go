package guest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// Served makes a TLS connection to address for name and returns the certificate
// that is shown, which must verify against one of the roots and for the name: if
// it does not, there is an error beside it.
func Served(ctx context.Context, address, name string, roots ...*x509.Certificate) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	// What is shown is of interest also where it does not verify, which is therefore
	// found out afterwards.
	dialer := tls.Dialer{
		Config: &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
	}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("TLS with %s for %s: %w", address, name, err)
	}
	defer conn.Close()
	shown := conn.(*tls.Conn).ConnectionState().PeerCertificates
	if _, err = shown[0].Verify(x509.VerifyOptions{
		DNSName: name, Roots: cert.Pool(roots...), Intermediates: cert.Pool(shown[1:]...),
	}); err != nil {
		err = fmt.Errorf("TLS with %s for %s: %w", address, name, err)
	}
	return shown[0], err
}

// askLimit is how long one TLS connection may take to come up.
const askLimit = 5 * time.Second

// Certificates returns what is shown at address for each of the names, in their
// order, and why it is none that verifies. ctx limits the time of all.
func Certificates(ctx context.Context, address string, names []string,
	roots ...*x509.Certificate) []remote.Certificate {
	all := make([]remote.Certificate, len(names))
	next := make(chan int)
	var work sync.WaitGroup
	for range min(len(names), 8) {
		work.Go(func() {
			for i := range next {
				leaf, err := Served(ctx, address, names[i], roots...)
				all[i] = CertificateOf(names[i], leaf, err)
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	work.Wait()
	return all
}

// CertificateOf describes what [Served] has returned for a name.
func CertificateOf(name string, leaf *x509.Certificate, err error) remote.Certificate {
	c := remote.Certificate{Name: name}
	if leaf != nil {
		c.Issuer, c.SHA256, c.NotAfter = leaf.Issuer.CommonName, cert.Fingerprint(leaf), leaf.NotAfter
	}
	if err != nil {
		c.Error = err.Error()
	}
	return c.Short() // there may be thousands, and each may have all names of what was shown
}

// Connects returns an error unless a TCP connection to address comes up within a
// time. One that is refused is tried again: a service may just be starting.
func Connects(ctx context.Context, address string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		conn, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		const pause = 250 * time.Millisecond
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Until(deadline) < pause {
			return err
		}
		if err := wait(ctx, pause); err != nil {
			return err
		}
	}
}

// Answers checks that url, of this container, answers with status 200.
func Answers(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// Not http.Get: no proxy, and no redirection.
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
