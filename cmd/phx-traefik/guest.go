// What of phx-traefik starts in the container, with the files guest_*.go beside it.

package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/remote"
)

const (
	program   = "/usr/local/bin/traefik"
	self      = "/usr/local/bin/phx-traefik"
	takenFile = "/etc/phx/traefik.taken" // hash of what Traefik has taken
	unitDir   = "/etc/systemd/system/"
	unitFile  = unitDir + "traefik.service"
)

// applyCommand sets the proxy up where it runs: as the host's half asks, or as the
// options do.
func applyCommand(c *cli.Context) error {
	if c.String("request") == "-" {
		return guest.ForHost(func(p proxy, ask guest.Ask, tell guest.Tell) *remote.Answer {
			return apply(c.Context, p, ask, tell)
		})
	}
	last, err := guest.LastRequest[proxy](proxyFile)
	if err != nil {
		return err
	}
	trust := last.Trust
	trust.ReadOptions(c)
	if err := trust.RequirePin(proxyFile); err != nil {
		return err
	}
	p, err := proxyOf(c, last)
	if err != nil {
		return err
	}
	ask := func(need string, value any) error {
		if need == "gateway" {
			return nil // the gateway is not known here
		}
		return guest.Alone(need, value)
	}
	return guest.Print(apply(c.Context, p, ask, nil))
}

// apply is the container's half: it sets Traefik up where it runs. ask gets
// what only others can supply: "traefik", "step_cli", and "gateway", which
// reports whether the gateway has been set up. tell, which may be nil, is told of
// what goes on.
//
// Without the CA everything is done that does not need it.
func apply(ctx context.Context, p proxy, ask guest.Ask, tell guest.Tell) *remote.Answer {
	return guest.Apply(p.hosts(), tell, func(s *guest.Setup) error {
		if err := p.check(); err != nil {
			return err
		}
		roots, err := s.Prepare(ctx, "phx-traefik", p.Trust, p.Interface, p.Neighbours)
		if err != nil {
			return err
		}
		s.Stage = "packages"
		if err := s.RequireFeature(program, "traefik", ask); err != nil {
			return err
		}
		s.Stage = "configuration"
		if err := makeStorage(s, p); err != nil {
			return err
		}
		taken, err := setUpServing(ctx, s, p, roots)
		if err != nil {
			return err
		}
		if err := dropStorages(s, stateDir, p.Pins()); err != nil {
			return err
		}
		if err := errors.Join(taken(), s.DropCarried(p.Trust)); err != nil {
			return err
		}
		// Nothing that Traefik does needs the program step.
		s.Stage = "gateway"
		err = checkGateway(ctx, s, p, roots, ask)
		if err == nil {
			s.Stage = "bootstrap"
		}
		return errors.Join(err, bootstrap(ctx, s, p, ask))
	})
}

// setUpServing has Traefik serve every name with a certificate of the CA's root.
// Where it has certificates of another root, it is first told to renew all.
func setUpServing(ctx context.Context, s *guest.Setup, p proxy,
	roots []*x509.Certificate,
) (taken func() error, err error) {
	before := len(s.Changes)
	serveFor := func(hours int) error {
		if err := configure(s, p, hours, roots); err != nil {
			return err
		}
		s.Stage = "service"
		var err error
		if taken, err = serve(ctx, s, p, hours); err != nil {
			return err
		}
		s.Stage = "check"
		return checkServing(ctx, s, p, roots, len(s.Changes) > before)
	}
	if len(foreign(p.acmeFile(), p.hosts(), roots[0])) > 0 {
		if err := serveFor(renewAll); err != nil {
			return nil, err
		}
		s.Stage = "service"
	}
	err = serveFor(usualHours)
	return taken, err
}

// bootstrap makes the program step, for whoever works in the container, trust
// the CA.
func bootstrap(ctx context.Context, s *guest.Setup, p proxy, ask guest.Ask) error {
	if err := s.RequireFeature(guest.StepProgram, "step_cli", ask); err != nil {
		return err
	}
	return s.Bootstrap(ctx, p.CAURL, p.Fingerprint)
}

// configure writes the files that Traefik reads, and the one that apply reads.
func configure(s *guest.Setup, p proxy, hours int, roots []*x509.Certificate) error {
	for _, f := range []struct {
		path    string
		text    []byte
		atStart bool // Traefik reads it only when it starts
	}{
		{rootFile, cert.Encode(roots...), true},
		{staticFile, p.static(hours), true},
		{unitFile, []byte(unitText), true},
		{dynamicFile, p.dynamic(), false},
	} {
		if f.atStart {
			if err := forget(f.path, f.text); err != nil {
				return err
			}
		}
		if _, err := s.WriteFile(f.path, f.text, 0o644); err != nil {
			return err
		}
	}
	return s.WriteState(proxyFile, p)
}

// forget forgets what Traefik has taken unless the file at path has this
// content: Traefik may have been started with what somebody has put there.
func forget(path string, content []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, content) {
		return nil
	}
	if err := os.Remove(takenFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// makeStorage makes the directory of the ACME account and the certificates'
// keys, which only Traefik can enter, and sees to what is in it.
func makeStorage(s *guest.Setup, p proxy) error {
	u, err := user.Lookup("traefik")
	if err != nil {
		return fmt.Errorf("%w: run phoenix_hypervisor_feature_install_traefik.sh for this container on the host", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if err := os.Mkdir(stateDir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := errors.Join(os.Chmod(stateDir, 0o700), os.Chown(stateDir, uid, gid)); err != nil {
		return err
	}
	other := ""
	if p.Also != "" {
		other = storagePath(p.Also)
	}
	return mendStorage(s, p.acmeFile(), other, uid, gid)
}

// serve has Traefik run with the present static configuration.
func serve(ctx context.Context, s *guest.Setup, p proxy, hours int) (taken func() error, err error) {
	if err := holdSockets(ctx, s); err != nil {
		return nil, err
	}
	taken, err = s.Serve(ctx, "traefik", "restart", takenFile,
		p.static(hours), []byte(unitText), []byte(strings.Join(p.Pins(), " ")))
	if err != nil {
		return nil, err
	}
	err = guest.Until(ctx, 20*time.Second, func() error { return guest.Answers(ctx, pingURL) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ping Traefik: %w", err), guest.Journal(ctx, "traefik"))
	}
	return taken, nil
}
