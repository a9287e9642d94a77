// Command phx-traefik brings a container up as the proxy: Traefik with
// certificates of the internal CA, by ACME, for every internal service.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/config"
	"thinkheads.ai/phx/cmd/internal/event"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/remote"
	"thinkheads.ai/phx/cmd/internal/service"
)

const usage = `Usage:
    … | phx-fingerprint | phx-traefik [OPTIONS] | …
    phx-traefik apply [PROXY]
    phx-traefik render [PROXY]

As a filter, on the host: when the proxy's container (application script
phoenix_hypervisor_lxc_102.sh) is ready and the CA's fingerprint is known, set
Traefik up in the container, with a router and a certificate for every
traefik_service of the configuration. The CA's container learns in its
/etc/hosts that these names lead to the proxy: it connects to each before it
signs. Of the CA's own API the proxy serves what clients need to trust it:
/health, /roots, /roots.pem, /root/SHA256 and /crl. When the gateway has been
set up, a request has to come through it and the proxy.

    --pct PROGRAM         The pct to run. Default pct. (PHX_PCT)
    --pve-root DIR        Proxmox VE's configuration. Default /etc/pve. (PHX_PVE_ROOT)
    --scripts DIR         Directory of the feature scripts.
                          Default ` + cmdline.DefaultScripts + `. (PHX_SCRIPTS)
    --timeout DURATION    How long a command may take, such as a clone; what has a
                          shorter limit keeps it. Default 1h. (PHX_TIMEOUT)
    --help                Print this text.
    --version             Print the version.

apply sets Traefik up in the container where it runs; a second run changes
nothing. render prints Traefik's configuration, the static and the dynamic
file, and touches nothing. Both take the PROXY by these options; what apply is
not given is as in its last run here, which it keeps in
` + proxyFile + `:

    --config FILE         Serve the services of this configuration.
                          Default ` + cmdline.DefaultConfig + `. (PHX_CONFIG)
    --domain DOMAIN       Domain of the services. Default ` + cmdline.DefaultDomain + `. (PHX_DOMAIN)
    --root FILE           The CA's root certificate.
                          Default /etc/traefik/ssl/phoenix_ca.crt. (PHX_ROOT)
    --fingerprint HEX     SHA-256 of the root certificate. (PHX_FINGERPRINT)
    --ca-url URL          The CA, https://HOST:PORT. (PHX_CA_URL)

Events read: plan.started, ct.planned, ct.ready, ct.preview, ct.failed,
ct.skipped, ca.exported, ca.failed, ca.fingerprint, nginx.ready, nginx.failed,
plan.done.
Events written: traefik.ready, traefik.failed.

Example:
    phx-plan | phx-lxc | phx-ca-export | phx-fingerprint | phx-traefik
    phx-traefik render --config phoenix_lxc_configs.json --ca-url https://10.0.0.10:9000
`

func main() {
	// Without what cmdline does about signals.
	if len(os.Args) == 3 && os.Args[1] == keeperCommand {
		n, err := strconv.Atoi(os.Args[2])
		if err == nil {
			err = keep(n)
		}
		if err != nil {
			cmdline.Logf("%v", err)
			os.Exit(1)
		}
		return
	}
	cmdline.Main(&cli.App{
		Name:                  "phx-traefik",
		CustomAppHelpTemplate: usage,
		Flags:                 service.Flags(),
		Action:                filter,
		Commands: []*cli.Command{
			{
				Name: "apply", CustomHelpTemplate: usage, Action: applyCommand,
				Flags: append([]cli.Flag{&cli.StringFlag{Name: "request", Hidden: true}}, proxyFlags()...),
			},
			{Name: "render", CustomHelpTemplate: usage, Action: renderCommand, Flags: proxyFlags()},
			// For the unit alone.
			{Name: "start", Hidden: true, SkipFlagParsing: true, Action: startCommand},
		},
	})
}

func proxyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Value: cmdline.DefaultConfig, EnvVars: []string{"PHX_CONFIG"}},
		&cli.StringFlag{Name: "domain", Value: cmdline.DefaultDomain, EnvVars: []string{"PHX_DOMAIN"}},
		&cli.StringFlag{Name: "root", Value: "/etc/traefik/ssl/phoenix_ca.crt", EnvVars: []string{"PHX_ROOT"}},
		&cli.StringFlag{Name: "fingerprint", EnvVars: []string{"PHX_FINGERPRINT"}},
		&cli.StringFlag{Name: "ca-url", EnvVars: []string{"PHX_CA_URL"}},
	}
}

// filter is the host's half.
func filter(c *cli.Context) error {
	return service.Run(c, service.Program{
		Name:   "traefik",
		Script: config.ProxyScript,
		SetUp:  setUp,
		Ready:  func(r event.ServiceReady) event.Body { return event.TraefikReady(r) },
		Failed: func(f event.ServiceFailed) event.Body { return event.TraefikFailed(f) },
	})
}

func setUp(ctx context.Context, t *service.Target) (*remote.Answer, error) {
	p := proxy{Trust: t.Trust, Interface: t.Container.Network.Name, Neighbours: t.Neighbours()}
	if t.Gateway != nil {
		p.Gateway = t.Gateway.IP
	}
	for _, s := range t.Services {
		p.Services = append(p.Services, route{s.Name, s.Host, s.URL, s.CTID == t.CA.CTID})
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	// All else is done also when the CA's container cannot be reached.
	hostsErr := leadCA(ctx, t, p)
	answer, err := t.Call(ctx, p, p.hosts(), func(need string) (any, error) {
		if need == "gateway" {
			return t.GatewayReady(ctx), nil
		}
		return nil, fmt.Errorf("the container's half asks for %q, which this phx-traefik does not know", need)
	})
	if err == nil && answer.Error == "" && hostsErr != nil {
		return &remote.Answer{Stage: "hosts"}, hostsErr
	}
	return answer, err
}

// leadCA makes the CA's container find the proxy, if that container is there.
func leadCA(ctx context.Context, t *service.Target, p proxy) error {
	if t.CADown {
		return nil
	}
	changed, err := writeHosts(ctx, t, p)
	if changed {
		t.Changed("hosts of container %d", t.CA.CTID)
	}
	return err
}

// proxyOf reads a proxy from the options of apply and render. What they leave
// out is as in last, and has its default where last has nothing.
func proxyOf(c *cli.Context, last proxy) (proxy, error) {
	p := last
	for name, field := range map[string]*string{"root": &p.Root, "fingerprint": &p.Fingerprint, "ca-url": &p.CAURL} {
		if c.IsSet(name) || *field == "" {
			*field = c.String(name)
		}
	}
	p.Fingerprint = strings.ToLower(p.Fingerprint)
	switch {
	case c.Args().Present():
		return p, cmdline.Usagef("unexpected argument %q", c.Args().First())
	case p.CAURL == "":
		return p, cmdline.Usagef("--ca-url is required")
	}
	domain := c.String("domain")
	if c.IsSet("config") || last.CAURL == "" {
		file, err := config.Load(c.String("config"))
		if err != nil {
			return p, cmdline.Usagef("%v", err)
		}
		ca := 0
		if place := file.Place(config.CAScript); place != nil {
			ca = place.CTID
		}
		p.Services = nil
		for _, s := range file.Services(domain) {
			p.Services = append(p.Services, route{s.Name, s.Host, s.URL, s.CTID == ca})
		}
	} else if c.IsSet("domain") {
		for i, s := range p.Services {
			p.Services[i].Host = s.Name + "." + domain
		}
	}
	if err := p.check(); err != nil {
		return p, cmdline.Usagef("%v", err)
	}
	return p, nil
}

func renderCommand(c *cli.Context) error {
	p, err := proxyOf(c, proxy{})
	if err != nil {
		return err
	}
	return cmdline.ReadOnly(c.Context, func() error {
		return cmdline.Print(fmt.Sprintf("# %s\n%s\n# %s\n%s", staticFile, p.static(usual), dynamicFile, p.dynamic()))
	})
}

func applyCommand(c *cli.Context) error {
	ctx := c.Context
	if c.String("request") == "-" {
		peer := remote.NewPeer(os.Stdin, os.Stdout)
		var p proxy
		if err := peer.Ask("request", &p); err != nil {
			return err
		}
		return peer.Answer(apply(ctx, p, peer.Ask))
	}
	last, err := guest.ReadState[proxy](proxyFile)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case last.Fingerprint == "" && (!c.IsSet("fingerprint") || !c.IsSet("ca-url")):
		return cmdline.Usagef("--fingerprint and --ca-url are required: without the pin the CA cannot be trusted; a run of phoenix on the host leaves both in %s", proxyFile)
	}
	p, err := proxyOf(c, last)
	if err != nil {
		return err
	}
	answer := apply(ctx, p, func(need string, _ any) error {
		if need == "gateway" {
			return nil // the gateway is not known here
		}
		return fmt.Errorf("%s is missing: on the host, run phoenix_hypervisor_feature_install_%s.sh for this container", need, need)
	})
	return guest.Print(answer)
}
