// Command phx-traefik brings a container up as the proxy: Traefik with
// certificates of the internal CA, by ACME, for every internal service.
package main

import (
	"os"
	"strconv"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/service"
)

const usage = `Usage:
    … | phx-fingerprint | phx-traefik [OPTIONS] | …
    phx-traefik apply [PROXY]
    phx-traefik render [PROXY]

As a filter, on the host: when the proxy's container (application script
phoenix_hypervisor_lxc_102.sh) is ready and the CA's fingerprint is known, set
Traefik up in the container, with a router and a certificate for every
service of the configuration, and for the dashboard if it asks for that. The
CA's container learns in its /etc/hosts that these names lead to the proxy: it
connects to each before it signs. Of the CA's own API the proxy serves what
clients need to trust it: /health, /roots, /roots.pem, /root/SHA256 and /crl.
When the gateway has been set up, a request has to come through it and the
proxy. Each run names the services whose certificates the configuration says
not to verify.

    --pct PROGRAM         The pct to run. Default pct. (PHX_PCT)
    --pve-root DIR        Proxmox VE's configuration. Default /etc/pve. (PHX_PVE_ROOT)
    --scripts DIRS        Directories of the feature scripts: see phx-lxc.
                          (PHX_SCRIPTS)
    --timeout DURATION    How long a command may take, such as a clone; what has a
                          shorter limit keeps it. Default 1h. (PHX_TIMEOUT)
    --help                Print this text.
    --version             Print the version.

apply sets Traefik up in the container where it runs; a second run changes
nothing. render prints Traefik's configuration, the static and the dynamic
file, and touches nothing. Both take the PROXY by these options; what apply is
not given is as in its last run here, which it keeps in
` + proxyFile + `:

    --config FILE         Serve the services of this configuration. (PHX_CONFIG) Default
                          ` + cmdline.LocalConfig + `,
                          or without it ` + cmdline.PackagedConfig + `.
    --vm-config FILE      And those of these virtual machines. Default: beside the
                          configuration, if it is there. (PHX_VM_CONFIG)
    --domain DOMAIN       Domain of the services. Default ` + cmdline.DefaultDomain + `. (PHX_DOMAIN)
    --root FILE           The CA's root certificate.
                          Default /etc/traefik/ssl/phoenix_ca.crt. (PHX_ROOT)
    --fingerprint HEX     SHA-256 of the root certificate. (PHX_FINGERPRINT)
    --ca-url URL          The CA, https://HOST:PORT. (PHX_CA_URL)

Events read: plan.started, ct.planned, ct.ready, ct.preview, ct.failed,
ct.skipped, ca.exported, ca.failed, ca.fingerprint, nginx.ready, nginx.failed,
plan.done.
Events written: ct.stage, traefik.ready, traefik.failed, warning.

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
		&cli.StringFlag{Name: "config", Value: cmdline.DefaultConfig(), EnvVars: []string{"PHX_CONFIG"}},
		&cli.StringFlag{Name: "vm-config", EnvVars: []string{"PHX_VM_CONFIG"}},
		&cli.StringFlag{Name: "domain", Value: cmdline.DefaultDomain, EnvVars: []string{"PHX_DOMAIN"}},
		&cli.StringFlag{Name: "root", Value: "/etc/traefik/ssl/phoenix_ca.crt", EnvVars: []string{"PHX_ROOT"}},
		&cli.StringFlag{Name: "fingerprint", EnvVars: []string{"PHX_FINGERPRINT"}},
		&cli.StringFlag{Name: "ca-url", EnvVars: []string{"PHX_CA_URL"}},
	}
}
