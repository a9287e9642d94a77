// What of phx-nginx starts in the container, with the files guest_*.go beside it.

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/remote"
)

// applyCommand sets the gateway up where it runs: as the host's half asks, or as
// the options do.
func applyCommand(c *cli.Context) error {
	if c.String("request") == "-" {
		return guest.ForHost(func(g gateway, ask guest.Ask, tell guest.Tell) *remote.Answer {
			return apply(c.Context, g, ask, tell)
		})
	}
	last, err := guest.LastRequest[gateway](gatewayFile)
	if err != nil {
		return err
	}
	g, err := gatewayOf(c, last)
	if err != nil {
		return err
	}
	if err := g.RequirePin(gatewayFile); err != nil {
		return err
	}
	if err := g.check(); err != nil {
		return cmdline.Usagef("%v", err)
	}
	ask := func(need string, value any) error {
		switch file := c.String("token-file"); {
		case need != "token":
			return guest.Alone(need, value)
		case file == "":
			return errors.New("a one-time token is needed: give --token-file, or run phx on the host")
		default:
			return readToken(file, value.(*string))
		}
	}
	return guest.Print(apply(c.Context, g, ask, nil))
}

// readToken reads a one-time token from a file, - being stdin.
func readToken(file string, token *string) error {
	if file == "-" {
		file = "/dev/stdin"
	}
	data, err := os.ReadFile(filepath.Clean(file))
	*token = strings.TrimSpace(string(data))
	return err
}

// apply is the container's half: it sets the gateway up where it runs. ask gets
// what only others can supply: "token" and "step_cli". tell, which may be nil, is
// told of what goes on.
func apply(ctx context.Context, g gateway, ask guest.Ask, tell guest.Tell) *remote.Answer {
	return guest.Apply(g.names(), tell, func(s *guest.Setup) error {
		if err := g.check(); err != nil {
			return err
		}
		s.AptProxy, g.AptProxy = g.AptProxy, "" // which is not kept
		roots, err := s.Prepare(ctx, "phx-nginx", g.Trust, g.Interface, g.Neighbours)
		if err != nil {
			return err
		}
		s.Stage = "packages"
		if err := s.Install(ctx, "nginx"); err != nil {
			return err
		}
		if err := s.WriteState(gatewayFile, g); err != nil {
			return err
		}
		s.Stage = "certificate"
		leaf, noCertificate := ensureCertificate(ctx, s, g, roots, ask)
		if leaf == nil {
			return noCertificate // nginx cannot be started
		}
		s.NotAfter = leaf.NotAfter
		// What does not need the CA does not wait for it.
		if err := setUpServing(ctx, s, g, roots, leaf, errors.Is(noCertificate, errReissue)); err != nil {
			return errors.Join(err, noCertificate)
		}
		if noCertificate != nil {
			s.Stage = "certificate"
			return noCertificate
		}
		return s.DropCarried(g.Trust)
	})
}

// setUpServing has nginx serve the certificate. bad says that it cannot be
// verified, so that it is not checked.
func setUpServing(ctx context.Context, s *guest.Setup, g gateway,
	roots []*x509.Certificate, leaf *x509.Certificate, bad bool,
) error {
	s.Stage = "configuration"
	if err := configure(ctx, s, g); err != nil {
		return err
	}
	s.Stage = "service" // which stays as it was where the configuration is refused
	if err := writeUnits(ctx, s); err != nil {
		return err
	}
	taken, err := serve(ctx, s, g)
	if err != nil {
		return err
	}
	if err := s.Start(ctx, renewUnit+".timer"); err != nil {
		return err
	}
	if bad {
		return nil
	}
	s.Stage = "check"
	if err := ensureServing(ctx, s, g, roots, leaf); err != nil {
		return err
	}
	for _, name := range g.names() {
		s.Certificates = append(s.Certificates, guest.CertificateOf(name, leaf, nil))
	}
	return taken()
}

// ensureServing checks that nginx serves the certificate. One that was started without
// its site has left the ports to systemd, and no reload brings it back to them.
func ensureServing(ctx context.Context, s *guest.Setup, g gateway,
	roots []*x509.Certificate, leaf *x509.Certificate,
) error {
	if len(s.Changes) > 0 { // nginx needs a moment to take it
		s.Begins("")
	}
	err := checkServing(ctx, g, roots, leaf)
	if err != nil {
		if _, err := s.Run(ctx, "systemctl", "restart", nginxUnit); err != nil {
			return err
		}
		if err = checkServing(ctx, g, roots, leaf); err == nil {
			s.Changed("restarted nginx, which did not serve its site")
		}
	}
	if err == nil && g.StatusPort != 0 {
		// nginx keeps its whole old configuration when it finds a port taken.
		url := fmt.Sprintf("http://127.0.0.1:%d/", g.StatusPort)
		if err = guest.Until(ctx, 5*time.Second, func() error { return guest.Answers(ctx, url) }); err != nil {
			err = fmt.Errorf("status page: %w", err)
		}
	}
	if err != nil {
		return errors.Join(err, guest.Journal(ctx, "nginx"))
	}
	return nil
}

// checkServing waits until nginx serves the certificate, at every address of the
// gateway. After a reload the old workers may answer for a moment.
func checkServing(ctx context.Context, g gateway, roots []*x509.Certificate, leaf *x509.Certificate) error {
	addresses := append([]string{"127.0.0.1"}, g.Addresses...)
	if local, err := net.InterfaceAddrs(); err == nil && slices.ContainsFunc(local, isLoopback6) {
		addresses = append(addresses, net.IPv6loopback.String())
	}
	for _, address := range addresses {
		for _, name := range []string{g.Domain, "phx-check." + g.Domain} {
			err := guest.Until(ctx, 10*time.Second, func() error {
				served, err := guest.Served(ctx, net.JoinHostPort(address, "443"), name, roots...)
				if err == nil && !served.Equal(leaf) {
					err = fmt.Errorf("nginx serves another certificate than %s at %s", certificateFile, address)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func isLoopback6(a net.Addr) bool {
	n, ok := a.(*net.IPNet)
	return ok && n.IP.Equal(net.IPv6loopback)
}

// renewCommand renews the certificate when it is due, from the timer.
func renewCommand(c *cli.Context) error {
	if c.Args().Present() {
		return cmdline.Usagef("unexpected argument %q", c.Args().First())
	}
	ctx := c.Context
	g, err := guest.ReadState[gateway](gatewayFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: nothing to renew before phx-nginx apply has run here", err)
	case err != nil:
		return err
	}
	s := &guest.Setup{}
	roots, err := s.Begin(ctx, "phx-nginx", g.Trust)
	if err != nil {
		return err
	}
	leaf, noCertificate := ensureCertificate(ctx, s, g, roots, nil)
	if leaf == nil {
		return noCertificate
	}
	taken, err := serve(ctx, s, g)
	if err != nil {
		return errors.Join(err, noCertificate)
	}
	if noCertificate == nil {
		err = ensureServing(ctx, s, g, roots, leaf)
	}
	for _, change := range s.Changes {
		cmdline.Logf("%s", change)
	}
	if err := errors.Join(noCertificate, err); err != nil {
		return err
	}
	return taken()
}
