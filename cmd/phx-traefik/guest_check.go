// What is checked from inside the container: that every name is served.

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
)

const pingURL = "http://127.0.0.1:8080/ping"

// checkServing waits until every name is served with a certificate of the
// CA's root, and notes when the first of them expires. Traefik asks for a
// certificate when it starts or learns of a name, and tries again only when it
// is started. It gets the time for that when it has just learned of something.
func checkServing(ctx context.Context, s *guest.Setup, p proxy, roots []*x509.Certificate, learned bool) error {
	var missing []string
	verified := func() error {
		missing, s.NotAfter, s.Certificates = nil, time.Time{}, nil
		var all []error
		for _, host := range p.hosts() {
			leaf, err := guest.Served(ctx, "127.0.0.1:443", host, roots[0])
			if err != nil {
				missing = append(missing, host)
				all = append(all, err)
				continue
			}
			s.Certificates = append(s.Certificates, guest.CertificateOf(host, leaf, nil))
			if s.NotAfter.IsZero() || leaf.NotAfter.Before(s.NotAfter) {
				s.NotAfter = leaf.NotAfter
			}
		}
		return errors.Join(all...)
	}
	patience := 2 * time.Second
	if learned {
		s.Begins("")
		patience = 20*time.Second + time.Duration(len(p.Services))*time.Second
	}
	var err, notServed, down error
	for range 2 {
		asked := time.Now()
		err = guest.Until(ctx, patience, func() error {
			err := verified()
			if err != nil && down == nil && time.Since(asked) > time.Second {
				if down = answers(ctx, p.CAURL, roots); down != nil {
					notServed = err
					return nil
				}
			}
			return err
		})
		if down != nil {
			return fmt.Errorf("these wait for a certificate of the CA, which does not answer: %s: %w",
				strings.Join(missing, ", "), errors.Join(down, notServed))
		}
		if err == nil {
			return nil
		}
		if restartErr := s.Restart(ctx, "traefik"); restartErr != nil {
			return errors.Join(err, restartErr)
		}
		patience = 30*time.Second + time.Duration(len(p.Services))*time.Second
	}
	return errors.Join(err, guest.Journal(ctx, "traefik"))
}

// answers returns an error unless the CA at url is well.
func answers(ctx context.Context, url string, roots []*x509.Certificate) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	status, err := get(ctx, "", url+"/health", roots)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s/health: status %d", url, status)
	}
	return err
}

// get returns the status of url. address, if there is one, is where its host
// is to be found.
func get(ctx context.Context, address, url string, roots []*x509.Certificate) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: cert.Pool(roots...), MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, host string) (net.Conn, error) {
			if address != "" {
				host = address
			}
			return new(net.Dialer).DialContext(ctx, network, host)
		},
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", url, err)
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// checkGateway goes the way of the clients: to the gateway, at each of its addresses
// on a network of the proxy's, and through it.
// Firewalls are between the containers; from inside of each all looks well.
func checkGateway(ctx context.Context, s *guest.Setup, p proxy, roots []*x509.Certificate, ask guest.Ask) error {
	// The gateway answers for itself.
	behind := slices.DeleteFunc(slices.Clone(p.Services), func(r route) bool {
		return slices.Contains(p.gateways(), r.address())
	})
	if p.Gateway == "" || len(behind) == 0 {
		return nil
	}
	changed := len(s.Changes) > 0
	if changed { // else all that is to be seen of the proxy is that it is looked at
		s.Begins("waiting for the gateway")
	}
	var ready bool
	if err := ask("gateway", &ready); err != nil || !ready {
		return err
	}
	if changed {
		s.Begins("")
	}
	for _, gateway := range inReach(p.gateways(), localNetworks()) {
		if err := checkGatewayAt(ctx, gateway, behind, roots); err != nil {
			return fmt.Errorf("the gateway and the proxy are well, each by itself, but no request comes through both: "+
				"look for firewall rules that drop clients to %s port 443, or %s to port 443 of this container: %w",
				gateway, gateway, err)
		}
	}
	return nil
}

// inReach returns those of the gateway's addresses that are in one of the networks:
// others may be for clients alone. Without any it returns the first address.
func inReach(gateways []string, networks []netip.Prefix) []string {
	var all []string
	for _, gateway := range gateways {
		address, err := netip.ParseAddr(gateway)
		if err == nil && slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(address) }) {
			all = append(all, gateway)
		}
	}
	if len(all) == 0 {
		return gateways[:1]
	}
	return all
}

// localNetworks returns the networks of this container.
func localNetworks() []netip.Prefix {
	var all []netip.Prefix
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, prefix)
		}
	}
	return all
}

// checkGatewayAt returns an error unless a request for one of the services comes
// through the gateway at an address.
func checkGatewayAt(ctx context.Context, gateway string, behind []route, roots []*x509.Certificate) error {
	address := net.JoinHostPort(gateway, "443")
	return guest.Until(ctx, 10*time.Second, func() error {
		var all []error
		for _, s := range behind {
			if err := passes(ctx, address, s.Host, roots); err != nil {
				all = append(all, err)
				continue
			}
			return nil // one is enough: what is behind the proxy may be down
		}
		return errors.Join(all...)
	})
}

// passes returns an error unless a request for host comes through the gateway
// to the proxy.
func passes(ctx context.Context, address, host string, roots []*x509.Certificate) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	status, err := get(ctx, address, "https://"+host+"/", roots)
	if err == nil && (status == http.StatusBadGateway || status == http.StatusGatewayTimeout) {
		err = fmt.Errorf("https://%s/: status %d", host, status)
	}
	return err
}
