// Command phx-nginx brings a container up as the TLS gateway: nginx with a
// certificate of the internal CA, in front of the proxy.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
    … | phx-fingerprint | phx-nginx [OPTIONS] | …
    phx-nginx apply [GATEWAY] [--token-file FILE]
    phx-nginx render [GATEWAY]
    phx-nginx renew

As a filter, on the host: when the gateway's container (application script
phoenix_hypervisor_lxc_101.sh) is ready and the CA's fingerprint is known, set
nginx up in the container as the TLS gateway of *.DOMAIN.

    --pct PROGRAM         The pct to run. Default pct. (PHX_PCT)
    --pve-root DIR        Proxmox VE's configuration. Default /etc/pve. (PHX_PVE_ROOT)
    --scripts DIR         Directory of the feature scripts.
                          Default ` + cmdline.DefaultScripts + `. (PHX_SCRIPTS)
    --timeout DURATION    How long a command may take, such as a clone; what has a
                          shorter limit keeps it. Default 1h. (PHX_TIMEOUT)
    --help                Print this text.
    --version             Print the version.

apply sets nginx up in the container where it runs; a second run changes
nothing. render prints nginx's configuration and touches nothing. Both take the
GATEWAY by these options; what apply is not given is as in its last run here,
which it keeps in ` + gatewayFile + `:

    --domain DOMAIN       Serve DOMAIN and *.DOMAIN. Default ` + cmdline.DefaultDomain + `. (PHX_DOMAIN)
    --proxy ADDRESS       IP address of the proxy behind the gateway. (PHX_PROXY)
    --status-port PORT    Serve a status page over plain HTTP at this port;
                          0 for none. Default 0. (PHX_STATUS_PORT)
    --root FILE           The CA's root certificate.
                          Default /etc/nginx/ssl/phoenix_ca.crt. (PHX_ROOT)
    --fingerprint HEX     SHA-256 of the root certificate. (PHX_FINGERPRINT)
    --ca-url URL          The CA, https://HOST:PORT. (PHX_CA_URL)
    --token-file FILE     One-time token of the CA for the gateway's names, needed
                          only where the certificate cannot be renewed with
                          itself; - for standard input. (PHX_TOKEN_FILE)

renew renews the gateway's certificate when it is due; a timer calls it.

Events read: plan.started, ct.planned, ct.ready, ct.preview, ct.failed,
ct.skipped, ca.exported, ca.failed, ca.fingerprint, plan.done.
Events written: nginx.ready, nginx.failed.

Example:
    phx-plan | phx-lxc | phx-ca-export | phx-fingerprint | phx-nginx
    phx-nginx render --proxy 10.0.0.12
`

func main() {
	cmdline.Main(&cli.App{
		Name:                  "phx-nginx",
		CustomAppHelpTemplate: usage,
		Flags:                 service.Flags(),
		Action:                filter,
		Commands: []*cli.Command{
			{
				Name: "apply", CustomHelpTemplate: usage, Action: applyCommand,
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "token-file", EnvVars: []string{"PHX_TOKEN_FILE"}},
					&cli.StringFlag{Name: "request", Hidden: true},
				}, gatewayFlags()...),
			},
			{Name: "render", CustomHelpTemplate: usage, Action: renderCommand, Flags: gatewayFlags()},
			{Name: "renew", CustomHelpTemplate: usage, Action: renewCommand},
		},
	})
}

func gatewayFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "domain", Value: cmdline.DefaultDomain, EnvVars: []string{"PHX_DOMAIN"}},
		&cli.StringFlag{Name: "proxy", EnvVars: []string{"PHX_PROXY"}},
		&cli.IntFlag{Name: "status-port", EnvVars: []string{"PHX_STATUS_PORT"}},
		&cli.StringFlag{Name: "root", Value: "/etc/nginx/ssl/phoenix_ca.crt", EnvVars: []string{"PHX_ROOT"}},
		&cli.StringFlag{Name: "fingerprint", EnvVars: []string{"PHX_FINGERPRINT"}},
		&cli.StringFlag{Name: "ca-url", EnvVars: []string{"PHX_CA_URL"}},
	}
}

// filter is the host's half.
func filter(c *cli.Context) error {
	return service.Run(c, service.Program{
		Name:   "nginx",
		Script: config.GatewayScript,
		SetUp:  setUp,
		Ready:  func(r event.ServiceReady) event.Body { return event.NginxReady(r) },
		Failed: func(f event.ServiceFailed) event.Body { return event.NginxFailed(f) },
	})
}

func setUp(ctx context.Context, t *service.Target) (*remote.Answer, error) {
	if t.Proxy == nil {
		return nil, fmt.Errorf("the configuration has no proxy behind the gateway: give a container with a fixed address the application script %s", config.ProxyScript)
	}
	g := gateway{
		Trust: t.Trust, Domain: t.Domain, Proxy: t.Proxy.IP,
		Interface: t.Container.Network.Name, Neighbours: t.Neighbours(),
	}
	if s := t.Container.TraefikService; s != nil {
		g.StatusPort, g.StatusHost = s.Port, s.Name+"."+t.Domain
		if s.Port == 80 || s.Port == 443 {
			t.Logf("no status page: its port, %d in traefik_service, is one of the gateway's own", s.Port)
			g.StatusPort, g.StatusHost = 0, ""
		}
	}
	if err := g.check(); err != nil {
		return nil, err
	}
	return t.Call(ctx, g, g.names(), func(need string) (any, error) {
		if need != "token" {
			return nil, fmt.Errorf("the container's half asks for %q, which this phx-nginx does not know", need)
		}
		t.Logf("getting a one-time token from container %d", t.CA.CTID)
		return fetchToken(ctx, t.Host, t.CA.CTID, g)
	})
}

// gatewayOf reads a gateway from the options of apply and render. What they
// leave out is as in last, and has its default where last has nothing.
func gatewayOf(c *cli.Context, last gateway) (gateway, error) {
	g := last
	for name, field := range map[string]*string{
		"domain": &g.Domain, "proxy": &g.Proxy, "root": &g.Root, "fingerprint": &g.Fingerprint, "ca-url": &g.CAURL,
	} {
		if c.IsSet(name) || *field == "" {
			*field = c.String(name)
		}
	}
	if c.IsSet("status-port") {
		g.StatusPort = c.Int("status-port")
	}
	g.Fingerprint = strings.ToLower(g.Fingerprint)
	if c.Args().Present() {
		return g, cmdline.Usagef("unexpected argument %q", c.Args().First())
	}
	return g, nil
}

func renderCommand(c *cli.Context) error {
	g, err := gatewayOf(c, gateway{})
	if err != nil {
		return err
	}
	if err := g.check(); err != nil {
		return cmdline.Usagef("%v", err)
	}
	return cmdline.ReadOnly(c.Context, func() error { return cmdline.Print(string(g.site())) })
}

func applyCommand(c *cli.Context) error {
	if c.String("request") == "-" {
		return applyForHost(c.Context, remote.NewPeer(os.Stdin, os.Stdout))
	}
	last, err := guest.ReadState[gateway](gatewayFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	g, err := gatewayOf(c, last)
	if err != nil {
		return err
	}
	if g.Fingerprint == "" || g.CAURL == "" {
		return cmdline.Usagef("--fingerprint and --ca-url are required: without the pin the CA cannot be trusted; a run of phoenix on the host leaves both in %s", gatewayFile)
	}
	if err := g.check(); err != nil {
		return cmdline.Usagef("%v", err)
	}
	answer := apply(c.Context, g, func(need string, value any) error {
		switch file := c.String("token-file"); {
		case need != "token":
			return fmt.Errorf("%s is missing: on the host, run phoenix_hypervisor_feature_install_%s.sh for this container", need, need)
		case file == "":
			return fmt.Errorf("a one-time token is needed: give --token-file, or run phx on the host")
		default:
			return readToken(file, value.(*string))
		}
	})
	return guest.Print(answer)
}

func readToken(file string, token *string) error {
	if file == "-" {
		file = "/dev/stdin"
	}
	data, err := os.ReadFile(filepath.Clean(file))
	*token = strings.TrimSpace(string(data))
	return err
}

func applyForHost(ctx context.Context, peer *remote.Peer) error {
	var g gateway
	if err := peer.Ask("request", &g); err != nil {
		return err
	}
	return peer.Answer(apply(ctx, g, peer.Ask))
}
