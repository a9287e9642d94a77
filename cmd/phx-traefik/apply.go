package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
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
	s := &guest.Setup{}
	a := &remote.Answer{Names: p.hosts()}
	err := func() error {
		a.Stage = "trust"
		if err := p.check(); err != nil {
			return err
		}
		root, err := cert.ReadPinned(p.Root, p.Fingerprint)
		if err != nil {
			return err
		}
		a.Stage = "boot"
		if err := guest.WaitForBoot(ctx); err != nil {
			return err
		}
		if err := guest.Lock(ctx, "phx-traefik"); err != nil {
			return err
		}
		a.Stage = "packages"
		for path, need := range map[string]string{program: "traefik", guest.StepProgram: "step_cli"} {
			if guest.Exists(path) {
				continue
			}
			if err := ask(need, new(bool)); err != nil {
				return err
			}
			s.Changed("installed %s", path)
		}
		a.Stage = "bootstrap"
		if err := s.Bootstrap(ctx, p.CAURL, p.Fingerprint); err != nil {
			return err
		}
		a.Stage = "configuration"
		if err := configure(s, p, root); err != nil {
			return err
		}
		a.Stage = "service"
		if err := serve(ctx, s, p); err != nil {
			return err
		}
		a.Stage = "check"
		a.NotAfter, err = checkServing(ctx, s, p, root)
		return err
	}()
	a.Changes, a.Changed = append([]string{}, s.Changes...), len(s.Changes) > 0
	if err != nil {
		a.Error = err.Error()
	} else {
		a.Stage = ""
	}
	return a
}

// configure writes the files that Traefik reads, and the one that apply reads.
func configure(s *guest.Setup, p proxy, root *x509.Certificate) error {
	if err := makeStateDir(); err != nil {
		return err
	}
	state, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		text []byte
	}{
		{rootFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})},
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
func serve(ctx context.Context, s *guest.Setup, p proxy) error {
	if err := s.Serve(ctx, "traefik", "restart", takenFile, p.static(), []byte(unitText), []byte(p.Fingerprint)); err != nil {
		return err
	}
	err := guest.Until(ctx, 20*time.Second, func() error { return ping(ctx) })
	if err != nil {
		return errors.Join(err, guest.Journal(ctx, "traefik"))
	}
	return nil
}

func ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:8080/ping", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ping Traefik: %w", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ping Traefik: %s", resp.Status)
	}
	return nil
}

// checkServing waits until every name is served with a certificate of the CA,
// and returns when the first of them expires. Traefik asks for a certificate
// when it starts or learns of a name; where that failed, it is started again.
func checkServing(ctx context.Context, s *guest.Setup, p proxy, root *x509.Certificate) (notAfter time.Time, err error) {
	fresh := len(s.Changes) > 0
	verified := func() error {
		notAfter = time.Time{}
		for _, host := range p.hosts() {
			leaf, err := guest.Served(ctx, "127.0.0.1:443", host, root)
			if err != nil {
				return err
			}
			if notAfter.IsZero() || leaf.NotAfter.Before(notAfter) {
				notAfter = leaf.NotAfter
			}
		}
		return nil
	}
	patience := 2 * time.Second
	if fresh {
		patience = 20 * time.Second
	}
	if err = guest.Until(ctx, patience, verified); err == nil {
		return notAfter, nil
	}
	if err := s.Restart(ctx, "traefik"); err != nil {
		return time.Time{}, err
	}
	if err = guest.Until(ctx, time.Minute, verified); err != nil {
		return time.Time{}, errors.Join(err, guest.Journal(ctx, "traefik"))
	}
	return notAfter, nil
}
