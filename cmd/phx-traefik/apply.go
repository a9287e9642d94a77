package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/remote"
)

const (
	program   = "/usr/local/bin/traefik"
	takenFile = "/etc/phx/traefik.taken"
	proxyFile = "/etc/phx/traefik/proxy.json" // what apply was asked last
	unitFile  = "/etc/systemd/system/traefik.service"
	unitText  = `# Written by phx-traefik.
[Unit]
Description=Traefik, the proxy of the internal services
Documentation=https://doc.traefik.io/traefik/
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
User=traefik
Group=traefik
ExecStart=/usr/local/bin/traefik --configFile=` + staticFile + `
Restart=always
RestartSec=2
WatchdogSec=30
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=true
UMask=0077
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
`
)

// apply is the container's half: it sets Traefik up where it runs. ask gets
// what only others can supply: "traefik" and "step_cli".
func apply(ctx context.Context, p proxy, ask func(need string, value any) error) *remote.Answer {
	return guest.Apply(p.hosts(), func(s *guest.Setup) error {
		if err := p.check(); err != nil {
			return err
		}
		roots, err := s.Begin(ctx, "phx-traefik", p.Trust)
		if err != nil {
			return err
		}
		root := roots[0]
		if err := s.WaitForBoot(ctx); err != nil {
			return err
		}
		s.Stage = "neighbours"
		if err := s.PinNeighbours(ctx, p.Interface, p.Neighbours); err != nil {
			return err
		}
		s.Stage = "packages"
		if err := s.Need(program, "traefik", ask); err != nil {
			return err
		}
		if err := s.Need(guest.StepProgram, "step_cli", ask); err != nil {
			return err
		}
		s.Stage = "bootstrap"
		if err := s.Bootstrap(ctx, p.CAURL, p.Fingerprint); err != nil {
			return err
		}
		s.Stage = "configuration"
		if err := configure(s, p, roots); err != nil {
			return err
		}
		s.Stage = "service"
		taken, err := serve(ctx, s, p)
		if err != nil {
			return err
		}
		s.Stage = "check"
		if err := checkServing(ctx, s, p, root); err != nil {
			return err
		}
		return taken()
	})
}

// configure writes the files that Traefik reads, and the one that apply reads.
func configure(s *guest.Setup, p proxy, roots []*x509.Certificate) error {
	if err := makeStateDir(); err != nil {
		return err
	}
	state, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	var trusted []byte
	for _, root := range roots {
		trusted = append(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
	}
	for _, f := range []struct {
		path string
		text []byte
	}{
		{rootFile, trusted},
		{staticFile, p.static()},
		{dynamicFile, p.dynamic()},
		{unitFile, []byte(unitText)},
		{proxyFile, append(state, '\n')},
	} {
		if _, err := s.WriteFile(f.path, f.text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// lastProxy reads the proxy that configure has left in file.
func lastProxy(file string) (p proxy, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return p, fmt.Errorf("%s: %w", file, err)
	}
	return p, nil
}

// makeStateDir makes the directory of the ACME account and the certificates'
// keys, which only Traefik can enter.
func makeStateDir() error {
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
	return errors.Join(os.Chmod(stateDir, 0o700), os.Chown(stateDir, uid, gid))
}

// serve has Traefik run with the present static configuration.
func serve(ctx context.Context, s *guest.Setup, p proxy) (taken func() error, err error) {
	taken, err = s.Serve(ctx, "traefik", "restart", takenFile, p.static(), []byte(unitText), []byte(strings.Join(p.Pins(), " ")))
	if err != nil {
		return nil, err
	}
	err = guest.Until(ctx, 20*time.Second, func() error { return guest.Answers(ctx, pingURL) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ping Traefik: %w", err), guest.Journal(ctx, "traefik"))
	}
	return taken, nil
}

const pingURL = "http://127.0.0.1:8080/ping"

// checkServing waits until every name is served with a certificate of the CA,
// and notes when the first of them expires. Traefik asks for a certificate
// when it starts or learns of a name, and tries again only when it is started:
// it is, unless that would cut off what is served well.
func checkServing(ctx context.Context, s *guest.Setup, p proxy, root *x509.Certificate) error {
	good := 0
	verified := func() error {
		good, s.NotAfter = 0, time.Time{}
		var all []error
		for _, host := range p.hosts() {
			leaf, err := guest.Served(ctx, "127.0.0.1:443", host, root)
			if err != nil {
				all = append(all, err)
				continue
			}
			good++
			if s.NotAfter.IsZero() || leaf.NotAfter.Before(s.NotAfter) {
				s.NotAfter = leaf.NotAfter
			}
		}
		return errors.Join(all...)
	}
	patience := 2 * time.Second
	if len(s.Changes) > 0 {
		patience = 20 * time.Second
	}
	err := guest.Until(ctx, patience, verified)
	if err == nil {
		return nil
	}
	if good == 0 || len(s.Changes) > 0 {
		if err := s.Restart(ctx, "traefik"); err != nil {
			return err
		}
		err = guest.Until(ctx, 30*time.Second, verified)
	}
	if err != nil && good == 0 {
		// The CA may have lost the account, with a database of before: a new
		// account is free.
		err = newAccount(ctx, s, p, verified)
	}
	if err != nil {
		return errors.Join(err, guest.Journal(ctx, "traefik"))
	}
	return nil
}

// newAccount lets Traefik register with the CA again. The old account is kept
// beside the new one.
func newAccount(ctx context.Context, s *guest.Setup, p proxy, verified func() error) error {
	if err := os.Rename(p.acmeFile(), p.acmeFile()+".old"); err != nil {
		return err
	}
	s.Changed("dropped the ACME account")
	if err := s.Restart(ctx, "traefik"); err != nil {
		return err
	}
	return guest.Until(ctx, 30*time.Second, verified)
}
