package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/remote"
)

const gatewayFile = stateDir + "/gateway.json" // what apply was asked last, for renew and the next apply

// apply is the container's half: it sets the gateway up where it runs. ask
// gets what only others can supply: "token" and "step_cli".
func apply(ctx context.Context, g gateway, ask func(need string, value any) error) *remote.Answer {
	return guest.Apply(g.names(), func(s *guest.Setup) error {
		if err := g.check(); err != nil {
			return err
		}
		roots, err := s.Begin(ctx, "phx-nginx", g.Trust)
		if err != nil {
			return err
		}
		if err := s.WaitForBoot(ctx); err != nil {
			return err
		}
		s.Stage = "neighbours"
		if err := s.PinNeighbours(ctx, g.Interface, g.Neighbours); err != nil {
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
		leaf, waits := certify(ctx, s, g, roots, ask)
		if leaf == nil {
			return waits // nginx cannot be started
		}
		s.NotAfter = leaf.NotAfter
		// What does not need the CA does not wait for it.
		s.Stage = "configuration"
		if err := configure(ctx, s, g); err != nil {
			return errors.Join(err, waits)
		}
		s.Stage = "service" // which stays as it was where the configuration is refused
		if err := writeUnits(ctx, s); err != nil {
			return errors.Join(err, waits)
		}
		taken, err := serve(ctx, s, g)
		if err == nil {
			err = s.Start(ctx, renewUnit+".timer")
		}
		if err != nil {
			return errors.Join(err, waits)
		}
		s.Stage = "check"
		if errors.Is(waits, errReissue) {
			s.Stage = "certificate"
			return waits // what nginx serves cannot be verified
		}
		if err := prove(ctx, s, g, roots, leaf); err != nil {
			return errors.Join(err, waits)
		}
		if err := taken(); err != nil {
			return errors.Join(err, waits)
		}
		if waits != nil {
			s.Stage = "certificate"
		}
		return waits
	})
}

// prove checks that nginx serves the certificate. One that was started without
// its site has left the ports to systemd, and no reload brings it back to them.
func prove(ctx context.Context, s *guest.Setup, g gateway, roots []*x509.Certificate, leaf *x509.Certificate) error {
	err := checkServing(ctx, g, roots, leaf)
	if err != nil {
		if _, err := guest.Run(ctx, "systemctl", "restart", nginxUnit); err != nil {
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

// checkServing waits until nginx serves the certificate. After a reload the
// old workers may answer for a moment.
func checkServing(ctx context.Context, g gateway, roots []*x509.Certificate, leaf *x509.Certificate) error {
	for _, name := range []string{g.Domain, "phx-check." + g.Domain} {
		err := guest.Until(ctx, 10*time.Second, func() error {
			served, err := guest.Served(ctx, "127.0.0.1:443", name, roots...)
			if err == nil && !served.Equal(leaf) {
				err = errors.New("nginx serves another certificate than " + certificateFile)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
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
	leaf, waits := certify(ctx, s, g, roots, nil)
	if leaf == nil {
		return waits
	}
	taken, err := serve(ctx, s, g)
	if err != nil {
		return errors.Join(err, waits)
	}
	if waits == nil {
		err = prove(ctx, s, g, roots, leaf)
	}
	for _, change := range s.Changes {
		cmdline.Logf("%s", change)
	}
	if err := errors.Join(waits, err); err != nil {
		return err
	}
	return taken()
}
