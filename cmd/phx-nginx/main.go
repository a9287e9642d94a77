// Command phx-nginx brings a container up as the TLS gateway: nginx with a
// certificate of the internal CA, in front of the proxy.
package main

import (
	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/service"
)

const usage = `Usage:
    … | phx-fingerprint | phx-nginx [OPTIONS] | …
    phx-nginx apply [GATEWAY] [--token-file FILE]
    phx-nginx render [GATEWAY]
    phx-nginx renew

As a filter, on the host: when the gateway's container (application script
phoenix_hypervisor_lxc_101.sh) is ready and the CA's fingerprint is known, set
nginx up in the container as the TLS gateway of *.DOMAIN. Its certificate is for
DOMAIN, *.DOMAIN, and every service's name of several labels below DOMAIN.

    --pct PROGRAM         The pct to run. Default pct. (PHX_PCT)
    --pve-root DIR        Proxmox VE's configuration. Default /etc/pve. (PHX_PVE_ROOT)
    --scripts DIRS        Directories of the feature scripts: see phx-lxc.
                          (PHX_SCRIPTS)
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
Events written: ct.stage, nginx.ready, nginx.failed, warning.

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
