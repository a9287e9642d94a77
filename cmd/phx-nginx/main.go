// Command phx-nginx brings a container up as the TLS gateway: nginx with a
// certificate of the internal CA, in front of the proxy.
package main

import (
	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/service"
)

const usage = `Usage:
    … | phx-fingerprint | phx-nginx [OPTIONS] | …
    phx-nginx apply [OPTIONS]
    phx-nginx render [OPTIONS]
    phx-nginx renew

Set nginx up in the gateway's container as the TLS gateway of *.DOMAIN. In the
container, apply does it, render prints its configuration, and renew renews the
certificate when that is due.

Options:
    --apt-proxy URL        get Debian packages by this proxy, http://HOST:PORT
                           (PHX_APT_PROXY)
    --attach auto|direct|pct
                           go into containers by lxc-attach, without pct, or by
                           pct exec; default auto: without, where pct is that of
                           Proxmox VE (PHX_ATTACH)
    --lxc-path DIR         LXC's containers; default /var/lib/lxc (PHX_LXC_PATH)
    --pct PROGRAM          run this in place of pct (PHX_PCT)
    --proc DIR             processes; default /proc (PHX_PROC)
    --pve-root DIR         Proxmox VE's files; default /etc/pve (PHX_PVE_ROOT)
    --scripts DIRS         find feature scripts in these directories, separated
                           by colons (PHX_SCRIPTS); default /usr/share/phx, and
                           scripts and bin in /usr/local/phoenix_hypervisor
    --timeout DURATION     give up on a command after this time; default 1h
                           (PHX_TIMEOUT)
    --help                 print this text
    --version              print the version

Options of apply and render:
    --ca-url URL           address of the CA, https://HOST:PORT (PHX_CA_URL)
    --domain DOMAIN        serve DOMAIN and *.DOMAIN; default
                           ` + cmdline.DefaultDomain + ` (PHX_DOMAIN)
    --fingerprint HEX      trust the root with this SHA-256 (PHX_FINGERPRINT)
    --proxy ADDRESS        pass requests on to the proxy there (PHX_PROXY)
    --root FILE            the CA's root certificate; default
                           /etc/nginx/ssl/phoenix_ca.crt (PHX_ROOT)
    --status-port PORT     serve a status page over plain HTTP at this port;
                           default 0: none (PHX_STATUS_PORT)
    --token-file FILE      read the CA's one-time token there; - for stdin
                           (PHX_TOKEN_FILE)

phx-nginx(8) has more: man phx-nginx.
`

func main() {
	cmdline.Main(&cli.App{
		Name:                  "phx-nginx",
		CustomAppHelpTemplate: usage,
		Flags: append(service.Flags(),
			&cli.StringFlag{Name: "apt-proxy", EnvVars: []string{"PHX_APT_PROXY"}}),
		Action: filter,
		Commands: []*cli.Command{
			{
				Name: "apply", CustomHelpTemplate: usage, Action: applyCommand,
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "token-file", EnvVars: []string{"PHX_TOKEN_FILE"}},
					&cli.StringFlag{Name: "request", Hidden: true},
				}, gatewayFlags()...),
			},
			// For the host's half alone.
			{Name: guest.ShownCommand, Hidden: true, Action: guest.Shown},
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
