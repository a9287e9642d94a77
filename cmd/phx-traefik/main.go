// Command phx-traefik brings a container up as the proxy: Traefik with
// certificates of the internal CA, by ACME, for every internal service.
package main

import (
	"os"
	"strconv"

	"github.com/urfave/cli/v2"
	"thinkheads.ai/phx/cmd/internal/cmdline"
	"thinkheads.ai/phx/cmd/internal/guest"
	"thinkheads.ai/phx/cmd/internal/service"
)

const usage = `Usage:
    … | phx-fingerprint | phx-traefik [OPTIONS] | …
    phx-traefik apply [OPTIONS]
    phx-traefik render [OPTIONS]

Set Traefik up in the proxy's container, with a certificate for every service.
In the container, apply does it, and render prints its configuration.

Options:
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
    --config FILE          serve the services of this configuration
                           (PHX_CONFIG); default phoenix_lxc_configs.json, in
                           /usr/local/phoenix_hypervisor/etc or /etc/phx
    --domain DOMAIN        domain of the services' names; default
                           ` + cmdline.DefaultDomain + ` (PHX_DOMAIN)
    --fingerprint HEX      trust the root with this SHA-256 (PHX_FINGERPRINT)
    --root FILE            the CA's root certificate; default
                           /etc/traefik/ssl/phoenix_ca.crt (PHX_ROOT)
    --vm-config FILE       and the services of these virtual machines; default
                           phoenix_vm_configs.json beside the configuration
                           (PHX_VM_CONFIG)

phx-traefik(8) has more: man phx-traefik.
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
			// For the host's half alone.
			{Name: guest.ShownCommand, Hidden: true, Action: guest.Shown},
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
