package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"thinkheads.ai/phx/cmd/internal/cert"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/remote"
)

const (
	program   = "/usr/local/bin/traefik"
	self      = "/usr/local/bin/phx-traefik"
	takenFile = "/etc/phx/traefik.taken"
	proxyFile = "/etc/phx/traefik/proxy.json" // what apply was asked last
	unitDir   = "/etc/systemd/system/"
	unitFile  = unitDir + "traefik.service"
)

// unitText has no option that needs a mount namespace, such as ProtectSystem
// or PrivateTmp: an unprivileged container without nesting can make none, and
// the unit would end with 226/NAMESPACE. Beyond Traefik's own files, what they
// would hide is closed to its user anyway.
//
// What remains open, and why: the network and its address families, for which
// Traefik is there; AF_UNIX, to tell systemd that it is ready; CAP_NET_ADMIN
// for the keeper of the gate alone, as some kernels want it for a filter on a
// socket: Traefik is started without it.
const unitText = `# Written by phx-traefik.
[Unit]
Description=Traefik, the proxy of the internal services
Documentation=https://doc.traefik.io/traefik/
After=network-online.target traefik-web.socket traefik-websecure.socket
Wants=network-online.target
Requires=traefik-web.socket traefik-websecure.socket
StartLimitIntervalSec=0

[Service]
Type=notify
User=traefik
Group=traefik
Sockets=traefik-web.socket traefik-websecure.socket
ExecStart=` + self + ` start --configFile=` + staticFile + `
Restart=always
RestartSec=500ms
TimeoutStopSec=15
WatchdogSec=30
LimitNOFILE=1048576
UMask=0077
CapabilityBoundingSet=CAP_NET_ADMIN
AmbientCapabilities=CAP_NET_ADMIN
NoNewPrivileges=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
KeyringMode=private
RemoveIPC=yes

[Install]
WantedBy=multi-user.target
`

// socketUnits are the sockets of the entry points, which systemd holds while
// Traefik restarts. It hands each over under the entry point's name.
var socketUnits = []struct{ unit, text string }{
	{"traefik-" + plain + ".socket", socketText(plain, 80)},
	{"traefik-" + encrypted + ".socket", socketText(encrypted, 443)},
}

func socketText(entryPoint string, port int) string {
	return fmt.Sprintf(`# Written by phx-traefik.
[Unit]
Description=Traefik's entry point %[1]s

[Socket]
ListenStream=%[2]d
FileDescriptorName=%[1]s
Service=traefik.service
Backlog=4096
TriggerLimitIntervalSec=0

[Install]
WantedBy=sockets.target
`, entryPoint, port)
}

// apply is the container's half: it sets Traefik up where it runs. ask gets
// what only others can supply: "traefik", "step_cli", and "gateway", which
// reports whether the gateway has been set up.
//
// Without the CA everything is done that does not need it.
func apply(ctx context.Context, p proxy, ask func(need string, value any) error) *remote.Answer {
	return guest.Apply(p.hosts(), func(s *guest.Setup) error {
		if err := p.check(); err != nil {
			return err
		}
		roots, err := s.Begin(ctx, "phx-traefik", p.Trust)
		if err != nil {
			return err
		}
		if err := s.WaitForBoot(ctx); err != nil {
			return err
		}
		s.Stage = "neighbours"
		if err := s.PinNeighbours(ctx, p.Interface, p.Neighbours); err != nil {
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
		duration := usual
		if len(foreign(p.acmeFile(), p.hosts(), roots[0])) > 0 {
			duration = allAtOnce
		}
		before := len(s.Changes)
		if err := configure(s, p, duration, roots); err != nil {
			return err
		}
		s.Stage = "service"
		taken, err := serve(ctx, s, p, duration)
		if err != nil {
			return err
		}
		s.Stage = "check"
		if err := checkServing(ctx, s, p, roots, len(s.Changes) > before); err != nil {
			return err
		}
		if duration != usual {
			s.Stage = "service"
			if err := configure(s, p, usual, roots); err != nil {
				return err
			}
			if taken, err = serve(ctx, s, p, usual); err != nil {
				return err
			}
			s.Stage = "check"
			if err := checkServing(ctx, s, p, roots, true); err != nil {
				return err
			}
		}
		if err := dropStorages(s, stateDir, p.Pins()); err != nil {
			return err
		}
		if err := taken(); err != nil {
			return err
		}
		// Nothing that Traefik does needs the program step.
		s.Stage = "gateway"
		err = checkGateway(ctx, p, roots, ask)
		if err == nil {
			s.Stage = "bootstrap"
		}
		return errors.Join(err, bootstrap(ctx, s, p, ask))
	})
}

// bootstrap makes the program step, for whoever works in the container, trust
// the CA.
func bootstrap(ctx context.Context, s *guest.Setup, p proxy, ask func(need string, value any) error) error {
	if err := s.RequireFeature(guest.StepProgram, "step_cli", ask); err != nil {
		return err
	}
	return s.Bootstrap(ctx, p.CAURL, p.Fingerprint)
}

// configure writes the files that Traefik reads, and the one that apply reads.
func configure(s *guest.Setup, p proxy, duration int, roots []*x509.Certificate) error {
	for _, f := range []struct {
		path    string
		text    []byte
		atStart bool // Traefik reads it only when it starts
	}{
		{rootFile, cert.Encode(roots...), true},
		{staticFile, p.static(duration), true},
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
func serve(ctx context.Context, s *guest.Setup, p proxy, duration int) (taken func() error, err error) {
	if err := holdSockets(ctx, s); err != nil {
		return nil, err
	}
	taken, err = s.Serve(ctx, "traefik", "restart", takenFile, p.static(duration), []byte(unitText), []byte(strings.Join(p.Pins(), " ")))
	if err != nil {
		return nil, err
	}
	err = guest.Until(ctx, 20*time.Second, func() error { return guest.Answers(ctx, pingURL) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ping Traefik: %w", err), guest.Journal(ctx, "traefik"))
	}
	return taken, nil
}

// holdSockets has systemd hold the sockets of the entry points. It cannot take
// them from a running Traefik.
func holdSockets(ctx context.Context, s *guest.Setup) error {
	held := true
	for _, u := range socketUnits {
		changed, err := s.WriteFile(unitDir+u.unit, []byte(u.text), 0o644)
		if err != nil {
			return err
		}
		held = held && !changed && guest.Active(ctx, u.unit)
	}
	if !held {
		if _, err := guest.Run(ctx, "systemctl", "daemon-reload"); err != nil {
			return err
		}
		stop := []string{"systemctl", "stop", "traefik.service"}
		for _, u := range socketUnits {
			stop = append(stop, u.unit)
		}
		if _, err := guest.Run(ctx, stop...); err != nil {
			return err
		}
	}
	for _, u := range socketUnits {
		if err := s.Start(ctx, u.unit); err != nil {
			return err
		}
	}
	return nil
}

const pingURL = "http://127.0.0.1:8080/ping"

// checkServing waits until every name is served with a certificate of the
// CA's root, and notes when the first of them expires. Traefik asks for a
// certificate when it starts or learns of a name, and tries again only when it
// is started. It gets the time for that when it has just learned of something.
func checkServing(ctx context.Context, s *guest.Setup, p proxy, roots []*x509.Certificate, learned bool) error {
	var missing []string
	verified := func() error {
		missing, s.NotAfter = nil, time.Time{}
		var all []error
		for _, host := range p.hosts() {
			leaf, err := guest.Served(ctx, "127.0.0.1:443", host, roots[0])
			if err != nil {
				missing = append(missing, host)
				all = append(all, err)
				continue
			}
			if s.NotAfter.IsZero() || leaf.NotAfter.Before(s.NotAfter) {
				s.NotAfter = leaf.NotAfter
			}
		}
		return errors.Join(all...)
	}
	patience := 2 * time.Second
	if learned {
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
			return fmt.Errorf("these wait for a certificate of the CA, which does not answer: %s: %w", strings.Join(missing, ", "), errors.Join(down, notServed))
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

// checkGateway goes the way of the clients: to the gateway, and through it.
// Firewalls are between the containers; from inside of each all looks well.
func checkGateway(ctx context.Context, p proxy, roots []*x509.Certificate, ask func(need string, value any) error) error {
	// The gateway answers for itself.
	behind := slices.DeleteFunc(slices.Clone(p.Services), func(r route) bool { return r.address() == p.Gateway })
	if p.Gateway == "" || len(behind) == 0 {
		return nil
	}
	var ready bool
	if err := ask("gateway", &ready); err != nil || !ready {
		return err
	}
	address := net.JoinHostPort(p.Gateway, "443")
	err := guest.Until(ctx, 10*time.Second, func() error {
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
	if err != nil {
		return fmt.Errorf("the gateway and the proxy are well, each by itself, but no request comes through both: "+
			"look for firewall rules that drop clients to %s port 443, or %s to port 443 of this container: %w", p.Gateway, p.Gateway, err)
	}
	return nil
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
