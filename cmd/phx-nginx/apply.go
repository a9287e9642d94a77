package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/atomicfile"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/remote"
)

const (
	siteFile    = "/etc/nginx/conf.d/phoenix.conf"
	stockSite   = "/etc/nginx/sites-enabled/default" // listens on port 80 as well
	gatewayFile = stateDir + "/gateway.json"         // what apply was asked last
	renewUnit   = "phx-nginx-renew"
)

const renewService = `# Written by phx-nginx.
[Unit]
Description=Renew the gateway's certificate when it is due
After=network-online.target

[Service]
Type=oneshot
ExecStart=/usr/local/bin/phx-nginx renew
`

const renewTimer = `# Written by phx-nginx.
[Unit]
Description=Look every 15 minutes whether the gateway's certificate is due

[Timer]
OnCalendar=*:0/15
RandomizedDelaySec=5min
Persistent=true

[Install]
WantedBy=timers.target
`

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
		root := roots[0]
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
		if err := s.Need(guest.StepProgram, "step_cli", ask); err != nil {
			return err
		}
		s.Stage = "bootstrap"
		if err := s.Bootstrap(ctx, g.CAURL, g.Fingerprint); err != nil {
			return err
		}
		s.Stage = "certificate"
		leaf, err := certify(ctx, s, g, root, func(t *string) error { return ask("token", t) })
		if err != nil {
			return err
		}
		s.NotAfter = leaf.NotAfter
		s.Stage = "configuration"
		if err := configure(ctx, s, g); err != nil {
			return err
		}
		s.Stage = "service"
		taken, err := serve(ctx, s, g)
		if err != nil {
			return err
		}
		if err := keepRenewed(ctx, s, g); err != nil {
			return err
		}
		s.Stage = "check"
		if err := checkServing(ctx, g, root, leaf); err != nil {
			return err
		}
		return taken()
	})
}

// configure writes nginx's configuration. When nginx refuses it, what was
// there before is put back.
func configure(ctx context.Context, s *guest.Setup, g gateway) error {
	before, err := os.ReadFile(siteFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	site := g.site()
	stock, _ := os.Readlink(stockSite)
	if bytes.Equal(before, site) && stock == "" {
		return nil
	}
	said := len(s.Changes)
	if stock != "" {
		if err := os.Remove(stockSite); err != nil {
			return err
		}
	}
	if _, err := s.WriteFile(siteFile, site, 0o644); err != nil {
		return err
	}
	_, err = guest.Run(ctx, "nginx", "-t", "-q")
	if err == nil {
		if stock != "" {
			s.Changed("removed %s", stockSite)
		}
		return nil
	}
	back := os.Remove(siteFile)
	if before != nil {
		back = atomicfile.Write(siteFile, before, 0o644)
	}
	if stock != "" {
		back = errors.Join(back, os.Symlink(stock, stockSite))
	}
	s.Changes = s.Changes[:said]
	return errors.Join(fmt.Errorf("nginx refuses the configuration, the old one is back: %w", err), back)
}

// serve has nginx run with the present configuration, certificate and root. A
// reload interrupts no connection.
func serve(ctx context.Context, s *guest.Setup, g gateway) (taken func() error, err error) {
	pair, err := os.Readlink(pairLink)
	if err != nil {
		return nil, err
	}
	return s.Serve(ctx, "nginx", "reload", stateDir+"/loaded", g.site(), []byte(pair), []byte(strings.Join(g.Pins(), " ")))
}

// keepRenewed installs the timer that renews the certificate.
func keepRenewed(ctx context.Context, s *guest.Setup, g gateway) error {
	state, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		return err
	}
	if _, err := s.WriteFile(gatewayFile, append(state, '\n'), 0o644); err != nil {
		return err
	}
	if _, err := s.WriteFile("/etc/systemd/system/"+renewUnit+".service", []byte(renewService), 0o644); err != nil {
		return err
	}
	if _, err := s.WriteFile("/etc/systemd/system/"+renewUnit+".timer", []byte(renewTimer), 0o644); err != nil {
		return err
	}
	return s.Start(ctx, renewUnit+".timer")
}

// lastGateway reads the gateway that keepRenewed has left in file.
func lastGateway(file string) (g gateway, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(data, &g); err != nil {
		return g, fmt.Errorf("%s: %w", file, err)
	}
	return g, nil
}

// checkServing waits until nginx serves the certificate. After a reload the
// old workers may answer for a moment.
func checkServing(ctx context.Context, g gateway, root, leaf *x509.Certificate) error {
	for _, name := range []string{g.Domain, "phx-check." + g.Domain} {
		err := guest.Until(ctx, 10*time.Second, func() error {
			served, err := guest.Served(ctx, "127.0.0.1:443", name, root)
			if err == nil && !served.Equal(leaf) {
				err = errors.New("nginx serves another certificate than " + certificateFile)
			}
			return err
		})
		if err != nil {
			return errors.Join(err, guest.Journal(ctx, "nginx"))
		}
	}
	if g.StatusPort == 0 {
		return nil
	}
	// nginx keeps its whole old configuration when it finds a port taken.
	url := fmt.Sprintf("http://127.0.0.1:%d/", g.StatusPort)
	err := guest.Until(ctx, 5*time.Second, func() error { return guest.Answers(ctx, url) })
	if err != nil {
		return errors.Join(fmt.Errorf("status page: %w", err), guest.Journal(ctx, "nginx"))
	}
	return nil
}

// renewCommand renews the certificate when it is due, from the timer.
func renewCommand(c *cli.Context) error {
	if c.Args().Present() {
		return cmdline.Usagef("unexpected argument %q", c.Args().First())
	}
	ctx := c.Context
	g, err := lastGateway(gatewayFile)
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
	root := roots[0]
	leaf, err := certify(ctx, s, g, root, nil)
	if err != nil {
		return err
	}
	taken, err := serve(ctx, s, g)
	if err != nil {
		return err
	}
	for _, change := range s.Changes {
		cmdline.Logf("%s", change)
	}
	if err := checkServing(ctx, g, root, leaf); err != nil {
		return err
	}
	return taken()
}
